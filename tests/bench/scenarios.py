"""What is measured, and what of it is compared: each scenario runs every target in turn, several times over."""

import asyncio
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from tests.bench.load import Connection, Heard, Reading, Target
from tests.bench.processes import (
    APPS,
    App,
    ModelServiceProcess,
    Moment,
    app_environment,
    resident_bytes,
    settle,
)
from tests.bench.upstream import Plan

SATURATED: Final = 0.9  # of a core, for the model service and the callers together, who share one


@dataclass(slots=True)
class Results:
    """All figures of one scenario: `figures[what][target]`, one value a round.

    `busy` is the share of their core that the model service and the callers used; `overwhelmed` are those that could
    not keep the pace; `verified` counts the answers, each of which was what the model service said.
    """

    name: str
    title: str
    figures: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    busy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    overwhelmed: set[str] = field(default_factory=set)
    verified: int = 0

    def add(self, what: str, target: str, value: float) -> None:
        """Note one round's figure."""
        self.figures[what][target].append(value)

    def note(self, target: str, begin: Moment, end: Moment) -> None:
        """Note how busy the others were meanwhile."""
        others = (end.model_service - begin.model_service) + (end.callers - begin.callers)
        self.busy[target].append(others / (end.wall - begin.wall))

    def saturated(self, target: str) -> bool:
        """Whether the model service and the callers were the bottleneck."""
        return self.busy_share(target) > SATURATED

    def busy_share(self, target: str) -> float:
        """The median share of their core that the model service and the callers used for this target."""
        return statistics.median(self.busy.get(target) or [0.0])

    def median(self, what: str, target: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures[what][target])

    def ratio(self, what: str, target: str, to: str) -> float:
        """The median of the rounds' own ratios: a noisy moment is in both of them."""
        values = zip(self.figures[what][target], self.figures[what][to], strict=True)
        return statistics.median(one / other for one, other in values)

    def as_document(self) -> dict[str, object]:
        """The figures as JSON has them, in seconds, bytes and shares."""
        return {"name": self.name, "title": self.title, "figures": self.figures, "busy": self.busy}


@dataclass(slots=True)
class Bench:
    """The processes, and how long each window is."""

    apps: Sequence[App]
    model_service: ModelServiceProcess
    rounds: int
    seconds: float

    def moment(self, app: App | None) -> Moment:
        """The clocks' state."""
        return Moment.now(os.getpid() if app is None else app.pid, self.model_service.pid)

    def turns(self) -> Iterator[tuple[int, App]]:
        """Each app in each round, every round in another order."""
        for number in range(self.rounds):
            order = list(self.apps)
            shift = number % len(order)
            for app in order[shift:] + order[:shift]:
                yield number, app


def understood(results: Results, target: Target, answers: Sequence[Heard]) -> list[Reading]:
    """Every answer, verified."""
    readings = [target.read(heard) for heard in answers]
    results.verified += len(readings)
    return readings


async def streams(target: Target, plan: Plan, count: int, spacing: float = 0.0) -> tuple[list[Heard], list[Connection]]:
    """Begin `count` streams, `spacing` seconds apart."""
    heard: list[Heard] = []
    connections: list[Connection] = []
    for _ in range(count):
        one, connection = await target.begin(plan)
        heard.append(one)
        connections.append(connection)
        await asyncio.sleep(spacing)
    return heard, connections


async def finished(target: Target, connections: Sequence[Connection]) -> None:
    """Wait for the end of all of them."""
    await asyncio.gather(*(connection.done for connection in connections))
    for connection in connections:
        target.keep(connection)


async def paced(bench: Bench, name: str, count: int, every: float, burst: int) -> Results:
    """Streams with tokens at a pace: the app's CPU time for each token, and how late the tokens came."""
    together = f", {burst} together" if burst > 1 else ""
    results = Results(
        name, f"{count} streams, a token every {every * 1000 / burst:g} ms{together}; CPU is for each token"
    )

    async def window(target: Target, app: App | None) -> None:
        starting = 0.3 + count * 0.006  # all of them have begun by then, unless the app is overwhelmed
        plan = Plan(int((starting + bench.seconds + 0.2) / every) * burst, every, burst)
        heard, connections = await streams(target, plan, count, 0.005)
        await asyncio.sleep(0.3)
        begin = bench.moment(app)
        await asyncio.sleep(bench.seconds)
        end = bench.moment(app)
        _, late_ones = await asyncio.wait([connection.done for connection in connections], timeout=starting + 1)
        if late_ones:
            # The tokens of this window are not those that its CPU time was used for; all of them together are.
            results.overwhelmed.add(target.name)
            await finished(target, connections)
            end = bench.moment(app)
        await finished(target, connections)
        readings = understood(results, target, heard)
        tokens = sum(reading.between(begin.wall, end.wall) for reading in readings)
        late = sorted(late for reading in readings for late in reading.lateness(begin.wall, end.wall))
        results.note(target.name, begin, end)
        results.add("late_p50", target.name, late[len(late) // 2])
        results.add("late_p99", target.name, late[len(late) * 99 // 100])
        if app is not None:
            results.add("cpu", target.name, (end.app - begin.app) / tokens)
            results.add("core", target.name, (end.app - begin.app) / (end.wall - begin.wall))
            results.add("waited", target.name, (end.waited - begin.waited) / (end.wall - begin.wall))
            due = count * burst / every * (end.wall - begin.wall)
            results.add("delivered", target.name, tokens / due)

    direct = bench.model_service.direct
    for _, app in bench.turns():
        if app is bench.apps[0]:
            await window(direct, None)
        await window(app.target, app)
        await settle()
    direct.close()
    return results


async def flood(bench: Bench, name: str, count: int) -> Results:
    """Streams whose tokens come as fast as they are taken."""
    results = Results(name, f"{count} streams as fast as they go; CPU is for each token")
    for _, app in bench.turns():
        # About as long for each of them; to the seed's pace a fraction is enough.
        plan = Plan(int((400 if app.name == "seed" else 6000) * bench.seconds / 2 * 50 / count))
        begin = bench.moment(app)
        heard, connections = await streams(app.target, plan, count)
        await finished(app.target, connections)
        end = bench.moment(app)
        understood(results, app.target, heard)
        tokens = count * plan.tokens
        results.note(app.name, begin, end)
        results.add("cpu", app.name, (end.app - begin.app) / tokens)
        results.add("per_second", app.name, tokens / (end.wall - begin.wall))
        await settle()
    return results


async def requests(bench: Bench, name: str, *, at_once: int, tokens: int) -> Results:
    """Many short answers: the app's CPU time for each request."""
    results = Results(name, f"answers of {tokens} tokens, {at_once} at once; CPU is for each answer")
    plan = Plan(tokens)

    async def caller(target: Target, number: int) -> list[Heard]:
        return [await target.ask(plan) for _ in range(number)]

    for number, app in bench.turns():
        each = max(10, int(200 * bench.seconds / at_once))
        if number == 0:
            await asyncio.gather(*(caller(app.target, 5) for _ in range(at_once)))
        begin = bench.moment(app)
        heard = await asyncio.gather(*(caller(app.target, each) for _ in range(at_once)))
        end = bench.moment(app)
        understood(results, app.target, [one for several in heard for one in several])
        results.note(app.name, begin, end)
        results.add("cpu", app.name, (end.app - begin.app) / (at_once * each))
        results.add("per_second", app.name, at_once * each / (end.wall - begin.wall))
        await settle()
    return results


async def first_token(bench: Bench, name: str) -> Results:
    """One request after the other: the time to its first token, with the app and without."""
    results = Results(name, "one request after the other, through the app and directly at the model service")
    plan = Plan(3)
    direct = bench.model_service.direct

    async def window(target: Target) -> list[float]:
        heard = []
        for _ in range(int(100 * bench.seconds)):
            heard.append(await target.ask(plan))
            await asyncio.sleep(0.002)
        return sorted(reading.first for reading in understood(results, target, heard))

    for _, app in bench.turns():
        for target in (direct, app.target) if app is bench.apps[0] else (app.target,):
            times = await window(target)
            results.add("first_p50", target.name, times[len(times) // 2])
            results.add("first_p99", target.name, times[len(times) * 99 // 100])
        await settle()
    direct.close()
    return results


async def memory(bench: Bench, name: str) -> Results:
    """Streams that are open: the app's memory for each, from the hundredth to the four hundredth."""
    results = Results(name, "open streams, from the hundredth to the four hundredth")
    for number in range(max(1, bench.rounds // 3)):
        del number
        async with AsyncExitStack() as stack:
            for app_name in APPS:
                app = await stack.enter_async_context(App(app_name, bench.model_service))
                plan = Plan(20, 0.4)
                few, their = await streams(app.target, plan, 100, 0.005)
                await asyncio.gather(*(connection.begun for connection in their))
                await asyncio.sleep(0.5)
                before = resident_bytes(app.pid)
                many, other = await streams(app.target, plan, 300, 0.005)
                await asyncio.gather(*(connection.begun for connection in other))
                await asyncio.sleep(1)
                results.add("bytes", app_name, (resident_bytes(app.pid) - before) / 300)
                await finished(app.target, [*their, *other])
                understood(results, app.target, few + many)
    return results


# Run by a fresh interpreter in the app's folder. `worker` imports what the worker has imported before the app.
_IMPORTING: Final = """
import sys, time
sys.path.insert(0, ".")
if {worker}:
    import azure_functions_runtime
    import azurefunctions.extensions.http.fastapi
begin = time.process_time()
import function_app
print(time.process_time() - begin)
"""


async def cold_start(bench: Bench, name: str) -> Results:
    """The app's import in a fresh interpreter (CPU time), and the way from nothing to the first answer."""
    results = Results(name, "a fresh interpreter imports the app; a fresh worker gives its first answer")
    environment = app_environment(bench.model_service.port)
    for number in range(2 * bench.rounds + 1):
        for app_name, (folder, _) in APPS.items():
            for what, worker in (("import", False), ("import_in_worker", True)):
                command = [sys.executable, "-P", "-c", _IMPORTING.format(worker=worker)]
                done = await asyncio.to_thread(
                    subprocess.run, command, cwd=folder, env=environment, capture_output=True, check=True
                )
                if number:  # the first one writes the byte code down
                    results.add(what, app_name, float(done.stdout))
    for _ in range(bench.rounds):
        for app_name in APPS:
            async with App(app_name, bench.model_service) as app:
                begin = bench.moment(app)
                heard = await app.target.ask(Plan(3))
                end = bench.moment(app)
                understood(results, app.target, [heard])
                results.add("start_cpu", app_name, end.app)
                results.add("first_request_cpu", app_name, end.app - begin.app)
    return results


SCENARIOS: Final[dict[str, Callable[[Bench], Awaitable[Results]]]] = {
    "requests": lambda bench: requests(bench, "requests", at_once=8, tokens=5),
    "paced-20": lambda bench: paced(bench, "paced-20", 20, 0.02, 1),
    "paced-50": lambda bench: paced(bench, "paced-50", 50, 0.02, 1),
    "paced-200": lambda bench: paced(bench, "paced-200", 200, 0.02, 1),
    "bursts": lambda bench: paced(bench, "bursts", 50, 0.2, 10),
    "flood": lambda bench: flood(bench, "flood", 50),
    "first-token": lambda bench: first_token(bench, "first-token"),
    "memory": lambda bench: memory(bench, "memory"),
    "cold-start": lambda bench: cold_start(bench, "cold-start"),
}
