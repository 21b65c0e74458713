"""The command `python -m tests.conformance`: runs the suites, compares them with what is known, prints the table."""

import argparse
import asyncio
import datetime
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from local.model_service import ModelService
from tests.conformance import results
from tests.conformance.catalogue import MODELS, RUNNERS, Runner, node
from tests.conformance.results import Check
from tests.end_to_end.hosting import HostedApp, bare_environment

SUITE_SECONDS = 600.0


async def run_suite(runner: Runner, folder: Path) -> dict[str, Check]:
    """Run one suite against an app of its own; the result of each test."""
    async with ModelService(tokens_per_second=0, lenient=runner.lenient) as service:
        settings = {"AZURE_OPENAI_ENDPOINT": service.url, "AZURE_OPENAI_DEPLOYMENTS": ",".join(MODELS)}
        app = await asyncio.to_thread(HostedApp, folder / "app", env=settings)
        try:
            return await _results(runner, folder, app.url)
        finally:
            await asyncio.to_thread(app.stop)


async def _results(runner: Runner, folder: Path, url: str) -> dict[str, Check]:
    report, home = folder / "report.xml", folder / "home"
    home.mkdir()
    # A home of its own: a developer's settings and keys must not reach the clients.
    environment = bare_environment() | {
        "HOME": str(home),
        "RELAY_URL": url,
        "TEST_API_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "unused",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it downloads prices
        "NODE": node(),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with (folder / "output.txt").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *runner.command(report), cwd=runner.folder, env=environment, stdout=log, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(SUITE_SECONDS):
                await process.wait()
        except TimeoutError:
            return {"the whole suite": Check("failed", f"not within {SUITE_SECONDS:g} s")}
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if runner.prints_results:
        return results.read_lines((folder / "output.txt").read_text())
    return results.read_junit(report.read_bytes()) if report.exists() else {}


def main() -> int:
    """Run the chosen suites; 0 if all are as known."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    names = [runner.suite.name for runner in RUNNERS]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument("--record", action="store_true", help="write the counts and the table of docs/compatibility.md")
    parser.add_argument("--output", type=Path, help="a folder that keeps what the suites print")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(names):
        parser.error(f"no suite is called {', '.join(sorted(unknown))}")
    chosen = [runner for runner in RUNNERS if not options.suites or runner.suite.name in options.suites]
    known, failed, counted = results.deviations(), False, {}
    recorded = results.recorded() if results.RECORDED.exists() else {}
    # Absolute, as each suite runs in a folder of its own.
    folder = options.output.resolve() if options.output else Path(tempfile.mkdtemp(prefix="conformance-"))
    for runner in chosen:
        name, began = runner.suite.name, time.monotonic()
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        checks = asyncio.run(run_suite(runner, place))
        counted[name] = results.counts(checks)
        lines = results.changes(name, checks, known)
        if not options.record and counted[name] != recorded.get(name):
            lines.append(
                f"{counted[name]} differs from the recorded {recorded.get(name)}: make conformance ARGS=--record"
            )
        shown = ", ".join(f"{count} {outcome}" for outcome, count in counted[name].items())
        print(f"{name}: {shown} ({time.monotonic() - began:.0f} s)", flush=True)
        for line in lines:
            print(f"  {line}", flush=True)
        failed = failed or bool(lines)
    suites = [runner.suite for runner in RUNNERS]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    print("\n" + results.table([suite for suite in suites if suite.name in counted], counted, date))
    if options.record and not failed:
        results.record(suites, recorded | counted, date)
    elif not options.record and results.documented_table() != results.table(suites, recorded, results.recorded_date()):
        print(f"The table in {results.DOCUMENT.name} is not that of {results.RECORDED.name}.")
        failed = True
    if failed:
        print(f"What the suites printed is in {folder}.")
    elif options.output is None:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the app and the suite end with it
    sys.exit(main())
