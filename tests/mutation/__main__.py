"""`python -m tests.mutation [MODULE …]`: run mutmut on the request path and print the killed mutants by module.

A module is given as its path (`relay/upstream/pool.py`); without one, all are mutated. What is mutated and which tests
run is set in pyproject.toml, [tool.mutmut]. mutmut keeps its results in `mutants/`, and continues there when it runs
again. Each mutant that survived is listed: `mutmut show NAME` prints it.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "mutants"

# mutmut's exit codes of a mutant's test run; those that are not here are errors of the tool.
KILLED = {1, 3}
TIMED_OUT = {-24, 24, 36, 152, 255}
SURVIVED = {0}
WITHOUT_TESTS = {5, 33}
CRASHED = {-11, -9}


def outcomes(module: Path) -> dict[str, int | None]:
    """The exit code of each mutant of a module; None for one that was not run."""
    meta = RESULTS / module.with_name(module.name + ".meta")
    codes: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
    return codes


def report(modules: Sequence[Path]) -> None:
    """Print a table of the modules, then the survivors."""
    total: Counter[str] = Counter()
    survivors: list[str] = []
    print(f"{'module':44} {'mutants':>7} {'killed':>7} {'share':>6}")
    for module in modules:
        codes = outcomes(module)
        if not codes:
            continue
        killed = sum(code in KILLED | TIMED_OUT | CRASHED for code in codes.values())
        print(f"{module!s:44} {len(codes):7} {killed:7} {killed / len(codes):6.1%}")
        total.update(mutants=len(codes), killed=killed)
        survivors += [name for name, code in codes.items() if code not in KILLED | TIMED_OUT | CRASHED]
    if total["mutants"]:
        print(f"{'all':44} {total['mutants']:7} {total['killed']:7} {total['killed'] / total['mutants']:6.1%}")
    print("\nnot killed:" if survivors else "\nall were killed")
    for name in survivors:
        print(f"  {name}")


def main(arguments: Sequence[str]) -> int:
    """Run and report; returns mutmut's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("module", nargs="*", type=Path, help="such as relay/upstream/pool.py (default: all)")
    chosen: list[Path] = parser.parse_args(arguments).module
    modules = chosen or sorted(
        path.relative_to(ROOT) for path in (ROOT / "relay").rglob("*.py") if path.name != "__init__.py"
    )
    names = [".".join(module.with_suffix("").parts) + ".*" for module in chosen]
    done = subprocess.run([sys.executable, "-m", "mutmut", "run", *names], cwd=ROOT, check=False)
    report(modules)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
