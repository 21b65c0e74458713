"""Conformance: other people's test suites and clients, unchanged, against the app on its local host.

`make conformance` runs them. Behind the app is the simulated model service, so a run needs no network but for the
packages, which are pinned and in an environment of their own.

| | |
|---|---|
| `requirements.txt`, `package.json` | the suites and clients |
| `suites/` | what runs each of them |
| `deviations.toml` | every test that is known to fail, with the reason |
| `results.toml` | the counts of the last run that was recorded, from which docs/compatibility.md has its table |

A run fails if a test fails that is not among the deviations, if one among them passes or is gone, or if the counts are
not the recorded ones (`make conformance ARGS=--record` records them).
"""
