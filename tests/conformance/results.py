"""Results of suites: what is expected of them, and the table of them in docs/compatibility.md."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from xml.etree import ElementTree

FOLDER: Final = Path(__file__).parent
DEVIATIONS: Final = FOLDER / "deviations.toml"
RECORDED: Final = FOLDER / "results.toml"
DOCUMENT: Final = FOLDER.parents[1] / "docs/compatibility.md"
_TABLE: Final = re.compile(r"(?<=<!-- conformance -->\n).*?(?=<!-- /conformance -->)", re.DOTALL)

type Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite or client.

    `title` is its row in the table, `packages` the names of what is tested with: keys of `versions()`.
    """

    name: str
    title: str
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one test; `detail` is why it failed."""

    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Tests of one suite that are known to fail, and the reason.

    A test is listed by its name, or with others by the beginning of their names and a `*`: then all of them must fail.
    """

    suite: str
    tests: tuple[str, ...]
    reason: str

    def expected(self, names: Iterable[str]) -> set[str]:
        """The tests among these that must fail; a listed one that is not there included."""
        expected = set()
        for listed in self.tests:
            matching = {name for name in names if listed.endswith("*") and name.startswith(listed[:-1])}
            expected |= matching or {listed}
        return expected


type Checks = Mapping[str, Check]


def versions() -> dict[str, str]:
    """The pinned versions of the direct dependencies, of PyPI and of npm."""
    lines = (FOLDER / "requirements.in").read_text().splitlines()
    pinned = dict(line.partition(" ")[0].split("==") for line in lines if "==" in line)
    packages = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    return pinned | {f"npm:{name}": version for name, version in packages.items()}


def deviations() -> list[Deviation]:
    """All known deviations."""
    read = tomllib.loads(DEVIATIONS.read_text())["deviation"]
    return [Deviation(it["suite"], tuple(it["tests"]), it["reason"]) for it in read]


def recorded() -> dict[str, dict[str, int]]:
    """The counts of the recorded run, by suite and outcome."""
    return {name: counts for name, counts in tomllib.loads(RECORDED.read_text()).items() if isinstance(counts, dict)}


def recorded_date() -> str:
    """The day of the recorded run."""
    return str(tomllib.loads(RECORDED.read_text())["date"])


def counts(checks: Checks) -> dict[str, int]:
    """How many tests there are of each outcome."""
    counted = Counter(check.outcome for check in checks.values())
    return {outcome: counted[outcome] for outcome in ("passed", "failed", "skipped")}


def changes(suite: str, checks: Checks, known: Iterable[Deviation]) -> list[str]:
    """What differs from the known deviations, a line each."""
    expected = {test for deviation in known if deviation.suite == suite for test in deviation.expected(checks)}
    failed = {name for name, check in checks.items() if check.outcome == "failed"}
    lines = [f"{name} fails: {checks[name].detail}" for name in sorted(failed - expected)]
    for name in sorted(expected - failed):
        outcome = checks[name].outcome if name in checks else "gone"
        lines.append(f"{name} is a known deviation and now is {outcome}: remove it from {DEVIATIONS.name}")
    return lines if checks else [*lines, "no test ran"]


def read_junit(report: bytes) -> dict[str, Check]:
    """The tests in a JUnit report of pytest, by file, class and name."""
    checks = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('suites.')[2]}::{case.get('name')}"
        problem = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        if problem is not None:
            checks[name] = Check("failed", (problem.get("message") or "").split("\n")[0][:300])
        elif case.find("skipped") is not None:
            checks.setdefault(name, Check("skipped"))
        else:
            checks.setdefault(name, Check("passed"))
    return checks


def read_lines(output: str) -> dict[str, Check]:
    """The tests that a script prints, each as a line of JSON with `name`, `outcome` and `detail`."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith('{"name":')]
    return {it["name"]: Check(it["outcome"], it.get("detail", "")) for it in found}


def table(suites: Sequence[Suite], counted: Mapping[str, Mapping[str, int]], date: str) -> str:
    """The table of docs/compatibility.md."""
    pinned = versions()
    lines = [
        f"Run on {date}:\n",
        "| suite or client | version | pass | known deviations | skipped |",
        "|---|---|---:|---:|---:|",
    ]
    for suite in (suite for suite in suites if suite.name in counted):
        named = ", ".join(f"{name.removeprefix('npm:')} {pinned[name]}" for name in suite.packages)
        one = counted[suite.name]
        lines.append(f"| {suite.title} | {named or '—'} | {one['passed']} | {one['failed']} | {one['skipped']} |")
    return "\n".join(lines) + "\n"


def documented_table() -> str:
    """The table as docs/compatibility.md has it."""
    found = _TABLE.search(DOCUMENT.read_text())
    return found[0] if found else ""


def record(suites: Sequence[Suite], counted: Mapping[str, Mapping[str, int]], date: str) -> None:
    """Write the counts and the table; a suite that never ran is in neither."""
    lines = ["# Written by `make conformance ARGS=--record`.\n", f'date = "{date}"\n']
    for suite in (suite for suite in suites if suite.name in counted):
        members = "".join(f"{outcome} = {count}\n" for outcome, count in counted[suite.name].items())
        lines.append(f"\n[{suite.name}]\n{members}")
    RECORDED.write_text("".join(lines))
    DOCUMENT.write_text(_TABLE.sub(lambda _: table(suites, counted, date), DOCUMENT.read_text()))
