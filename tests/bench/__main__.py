"""`python -m tests.bench`: runs the scenarios, prints the ratios, and writes the figures and the plot to `results/`."""

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
from tests.bench.load import RelayAnswer
from tests.bench.processes import APPS, FOLDER, App, ModelServiceProcess, event_loop, pin_to_core
from tests.bench.scenarios import SCENARIOS, Bench, Results


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with a turn for each app (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of half a second, to check that it runs")
    parser.add_argument(
        "--beside", type=Path, help="folder of another version of this app, to be measured in the same run"
    )
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder to write to (%(default)s)")
    chosen = parser.parse_args()
    for name in chosen.scenarios:
        if name not in SCENARIOS:
            parser.error(f"{name} is not a scenario; choose from {', '.join(SCENARIOS)}")
    if chosen.quick:
        chosen.rounds, chosen.seconds = 2, 0.5
    return chosen


async def run(chosen: argparse.Namespace) -> list[Results]:
    """Run the chosen scenarios, and print the results of each."""
    done: list[Results] = []
    model_service = ModelServiceProcess()
    try:
        async with AsyncExitStack() as stack:
            apps = [await stack.enter_async_context(App(name, model_service)) for name in APPS]
            print("Event loops:", ", ".join(f"{app.name} {event_loop(app.pid)}" for app in apps), flush=True)
            bench = Bench(apps, model_service, chosen.rounds, chosen.seconds)
            for name in chosen.scenarios or SCENARIOS:
                results = await SCENARIOS[name](bench)
                print(report.table(results), flush=True)
                done.append(results)
    finally:
        model_service.stop()
    return done


def main() -> None:
    """Run the command."""
    if sys.platform != "linux":
        sys.exit("The benchmark reads the CPU time of other processes and pins them to cores, which needs Linux.")
    chosen = options()
    if chosen.beside is not None:
        APPS["other version"] = (chosen.beside.resolve(), RelayAnswer)
    cores = len(os.sched_getaffinity(0))
    if cores == 1:
        print("There is only one core: the load generator shares it with the apps, and adds to the delays.")
    print(f"Python {platform.python_version()}, {cores} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    pin_to_core(1)  # the apps have the other one to themselves
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
