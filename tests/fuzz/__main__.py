"""`python -m tests.fuzz`: let atheris search for input that breaks a target; what it finds goes into the corpus.

A crash is written to `corpus/TARGET/crash-…`, where `tests/fuzz/test_corpus.py` runs it from then on: commit it with
the fix.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).with_name("corpus")
TARGET_NAMES: Final = ("stream", "chat", "sse", "text", "verbatim", "document", "response", "responses", "accept")


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
        # libFuzzer writes new inputs to the first of the folders it is given; only crashes are kept.
        arguments = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=10",
            "-print_final_stats=0",
            "-verbosity=0",
        ]
        arguments += [f"-artifact_prefix={corpus}/", f"-dict={CORPUS.with_name('fuzz.dict')}", found, str(corpus)]
        atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
        atheris.Fuzz()


def main() -> None:
    """The command: each target in a process of its own, since libFuzzer ends its process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGET_NAMES)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.targets) - set(TARGET_NAMES):
        parser.error(f"no target is named {', '.join(sorted(unknown))}; the targets are {', '.join(TARGET_NAMES)}")
    if chosen.in_process:
        fuzz(chosen.targets[0], chosen.seconds)
        return
    broken = []
    for name in chosen.targets or TARGET_NAMES:
        command = [sys.executable, "-m", "tests.fuzz", name, f"--seconds={chosen.seconds}", "--in-process"]
        print(f"{name}: {chosen.seconds} s", flush=True)
        if subprocess.run(command, check=False).returncode:
            broken.append(name)
    if broken:
        sys.exit(f"Broken: {', '.join(broken)}. The inputs are in {CORPUS}.")


if __name__ == "__main__":
    main()
