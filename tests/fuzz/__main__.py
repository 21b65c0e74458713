"""`python -m tests.fuzz`: let atheris look for bytes that break a target; what it finds goes into the corpus.

A crash lies in `corpus/TARGET/crash-…` then, where `tests/test_fuzz_corpus.py` runs it from now on: commit it with the
mend.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).with_name("corpus")
_NAMES: Final = ("prompt", "chat", "events", "words", "verbatim", "document", "accept")


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: tests/fuzz/requirements.txt names it (Linux only).")
    with atheris.instrument_imports(include=["relay", "json"]):
        from tests.fuzz.targets import TARGETS
    corpus = CORPUS / name
    with tempfile.TemporaryDirectory() as found:
        # Its first folder is where libFuzzer writes what it finds on the way; only crashes are kept.
        arguments = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=10",
            "-print_final_stats=0",
            "-verbosity=0",
        ]
        arguments += [f"-artifact_prefix={corpus}/", f"-dict={CORPUS.with_name('words.dict')}", found, str(corpus)]
        atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
        atheris.Fuzz()


def main() -> None:
    """The command: each target in a process of its own, because libFuzzer ends its process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(_NAMES)}; all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.targets) - set(_NAMES):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(_NAMES)}")
    if chosen.here:
        fuzz(chosen.targets[0], chosen.seconds)
        return
    broken = []
    for name in chosen.targets or _NAMES:
        command = [sys.executable, "-m", "tests.fuzz", name, f"--seconds={chosen.seconds}", "--here"]
        print(f"{name}: {chosen.seconds} s", flush=True)
        if subprocess.run(command, check=False).returncode:
            broken.append(name)
    if broken:
        sys.exit(f"Broken: {', '.join(broken)}. What broke them is in {CORPUS}.")


if __name__ == "__main__":
    main()
