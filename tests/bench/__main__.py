"""`python -m tests.bench`: run the scenarios, print the ratios, write the figures and the plot to `results/`."""

import argparse
import asyncio
import json
import os
import platform
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import report
from tests.bench.load import RelayReading
from tests.bench.processes import APPS, FOLDER, App, ModelServiceProcess, stay_on_core
from tests.bench.scenarios import SCENARIOS, Bench, Results


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all of them")
    parser.add_argument("--rounds", type=int, default=5, help="how often each app has its turn (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long a turn is (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of half a second: to see that it runs")
    parser.add_argument("--beside", type=Path, help="folder of another state of this app, measured in the same run")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="where to write (%(default)s)")
    chosen = parser.parse_args()
    for name in chosen.scenarios:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name}; there are {', '.join(SCENARIOS)}")
    if chosen.quick:
        chosen.rounds, chosen.seconds = 2, 0.5
    return chosen


async def run(chosen: argparse.Namespace) -> list[Results]:
    """Run what was chosen, printing each scenario as it is done."""
    done: list[Results] = []
    model_service = ModelServiceProcess()
    try:
        async with AsyncExitStack() as stack:
            apps = [await stack.enter_async_context(App(name, model_service)) for name in APPS]
            bench = Bench(apps, model_service, chosen.rounds, chosen.seconds)
            for name in chosen.scenarios or SCENARIOS:
                results = await SCENARIOS[name](bench)
                print(report.table(results), flush=True)
                done.append(results)
    finally:
        model_service.stop()
    return done


def main() -> None:
    """The command."""
    if sys.platform != "linux":
        sys.exit("The benchmark reads the CPU time of other processes and pins them to cores, which needs Linux.")
    chosen = options()
    if chosen.beside is not None:
        APPS["beside"] = (chosen.beside.resolve(), RelayReading)
    cores = len(os.sched_getaffinity(0))
    if cores == 1:
        print("There is one core only: the callers take their share of it from the app, and lateness is theirs too.")
    print(f"Python {platform.python_version()}, {cores} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    stay_on_core(1)  # the apps have the other one to themselves
    done = asyncio.run(run(chosen))
    print(report.verdicts(done))
    chosen.results.mkdir(exist_ok=True)
    figures = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": cores,
        "load_average": os.getloadavg(),
        "scenarios": [results.as_document() for results in done],
    }
    (chosen.results / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    written = report.plot(done, chosen.results)
    print("Wrote", ", ".join(path.name for path in (chosen.results / "figures.json", *written)), "to", chosen.results)


if __name__ == "__main__":
    main()
