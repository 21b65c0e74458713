"""The scenarios: each measures every target in turn, in several rounds, and verifies every answer."""

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

from tests.bench.load import Connection, ParsedAnswer, RawAnswer, Target, WrongAnswerError
from tests.bench.processes import (
    APPS,
    App,
    Clocks,
    ModelServiceProcess,
    app_environment,
    resident_bytes,
    settle,
)
from tests.bench.upstream import Plan

SATURATED: Final = 0.9  # share of a core that the model service and the load generator use together


@dataclass(slots=True)
class Results:
    """All figures of one scenario: `figures[metric][target]` has one value for each round.

    `busy` is the share of their core that the model service and the load generator used; `overwhelmed` are the targets
    that could not keep the pace; `verified` counts the answers, all of which were verified.
    """

    name: str
    title: str
    figures: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    busy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    overwhelmed: set[str] = field(default_factory=set)
    verified: int = 0

    def add(self, metric: str, target: str, value: float) -> None:
        """Add the figure of one round."""
        self.figures[metric][target].append(value)

    def add_busy(self, target: str, begin: Clocks, end: Clocks) -> None:
        """Add how busy the model service and the load generator were between the two readings."""
        used = (end.model_service - begin.model_service) + (end.load - begin.load)
        self.busy[target].append(used / (end.wall - begin.wall))

    def saturated(self, target: str) -> bool:
        """Whether the model service and the load generator were the bottleneck."""
        return self.busy_share(target) > SATURATED

    def busy_share(self, target: str) -> float:
        """The median share of their core that the model service and the load generator used for this target."""
        return statistics.median(self.busy.get(target) or [0.0])

    def median(self, metric: str, target: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures[metric][target])

    def ratio(self, metric: str, target: str, to: str) -> float:
        """The median of the ratios within each round, where noise affects both."""
        values = zip(self.figures[metric][target], self.figures[metric][to], strict=True)
        return statistics.median(one / other for one, other in values)

    def as_document(self) -> dict[str, object]:
        """The figures for JSON, in seconds, bytes and shares."""
        return {"name": self.name, "title": self.title, "figures": self.figures, "busy": self.busy}


@dataclass(slots=True)
class Bench:
    """The processes, the number of rounds, and the seconds of a turn."""

    apps: Sequence[App]
    model_service: ModelServiceProcess
    rounds: int
    seconds: float

    def clocks(self, app: App | None) -> Clocks:
        """The clocks now; None: there is no app in between."""
        return Clocks.read(os.getpid() if app is None else app.pid, self.model_service.pid)

    def turns(self) -> Iterator[tuple[int, App]]:
        """Each app in each round, in a different order in every round."""
        for number in range(self.rounds):
            order = list(self.apps)
            shift = number % len(order)
            for app in order[shift:] + order[:shift]:
                yield number, app


def verified(results: Results, target: Target, answers: Sequence[RawAnswer]) -> list[ParsedAnswer]:
    """The answers, parsed and verified."""
    try:
        parsed = [target.parse(answer) for answer in answers]
    except WrongAnswerError as error:
        raise WrongAnswerError(f"{results.name}, {target.name}: {error}") from error
    results.verified += len(parsed)
    return parsed


async def begin_streams(
    target: Target, plan: Plan, count: int, spacing: float = 0.0
) -> tuple[list[RawAnswer], list[Connection]]:
    """Begin `count` streams, `spacing` seconds apart."""
    answers: list[RawAnswer] = []
    connections: list[Connection] = []
    for _ in range(count):
        answer, connection = await target.begin(plan)
        answers.append(answer)
        connections.append(connection)
        await asyncio.sleep(spacing)
    return answers, connections


async def finish_streams(target: Target, connections: Sequence[Connection]) -> None:
    """Wait for the end of all of them."""
    await asyncio.gather(*(connection.done for connection in connections))
    for connection in connections:
        target.keep(connection)


async def paced(bench: Bench, name: str, count: int, every: float, burst: int) -> Results:
    """Streams with tokens at a pace: the app's CPU time for each token, and the delay of the tokens."""
    together = f", {burst} together" if burst > 1 else ""
    results = Results(
        name, f"{count} streams, a token every {every * 1000 / burst:g} ms{together}; CPU time for each token"
    )

    async def window(target: Target, app: App | None) -> None:
        starting = 0.3 + count * 0.006  # seconds until all have begun, unless the app is overwhelmed
        plan = Plan(int((starting + bench.seconds + 0.2) / every) * burst, every, burst)
        answers, connections = await begin_streams(target, plan, count, 0.005)
        await asyncio.sleep(0.3)
        begin = bench.clocks(app)
        await asyncio.sleep(bench.seconds)
        end = bench.clocks(app)
        _, unfinished = await asyncio.wait([connection.done for connection in connections], timeout=starting + 1)
        await finish_streams(target, connections)
        if unfinished:
            # CPU time was used for other tokens than those that arrived in this window: take all until the end.
            results.overwhelmed.add(target.name)
            end = bench.clocks(app)
        parsed = verified(results, target, answers)
        tokens = sum(answer.tokens_between(begin.wall, end.wall) for answer in parsed)
        delays = sorted(delay for answer in parsed for delay in answer.delays(begin.wall, end.wall))
        results.add_busy(target.name, begin, end)
        results.add("delay_p50", target.name, delays[len(delays) // 2])
        results.add("delay_p99", target.name, delays[len(delays) * 99 // 100])
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
    """Streams whose tokens are sent as fast as they are read."""
    results = Results(name, f"{count} streams as fast as possible; CPU time for each token")
    for _, app in bench.turns():
        # About the same time for each app: the usual way is a fraction as fast.
        plan = Plan(int((400 if app.name == "usual way" else 6000) * bench.seconds / 2 * 50 / count))
        begin = bench.clocks(app)
        answers, connections = await begin_streams(app.target, plan, count)
        await finish_streams(app.target, connections)
        end = bench.clocks(app)
        verified(results, app.target, answers)
        tokens = count * plan.tokens
        results.add_busy(app.name, begin, end)
        results.add("cpu", app.name, (end.app - begin.app) / tokens)
        results.add("per_second", app.name, tokens / (end.wall - begin.wall))
        await settle()
    return results


async def requests(bench: Bench, name: str, *, at_once: int, tokens: int) -> Results:
    """Many short answers: the app's CPU time for each request."""
    results = Results(name, f"answers of {tokens} tokens, {at_once} at once; CPU time for each answer")
    plan = Plan(tokens)

    async def client(target: Target, number: int) -> list[RawAnswer]:
        return [await target.request(plan) for _ in range(number)]

    for number, app in bench.turns():
        each = max(10, int(200 * bench.seconds / at_once))
        if number == 0:
            await asyncio.gather(*(client(app.target, 5) for _ in range(at_once)))
        begin = bench.clocks(app)
        answers = await asyncio.gather(*(client(app.target, each) for _ in range(at_once)))
        end = bench.clocks(app)
        verified(results, app.target, [answer for of_client in answers for answer in of_client])
        results.add_busy(app.name, begin, end)
        results.add("cpu", app.name, (end.app - begin.app) / (at_once * each))
        results.add("per_second", app.name, at_once * each / (end.wall - begin.wall))
        await settle()
    return results


async def first_token(bench: Bench, name: str) -> Results:
    """One request after the other: the time to the first token, with an app and without."""
    results = Results(name, "one request after the other, to each app and directly to the model service")
    plan = Plan(3)
    direct = bench.model_service.direct

    async def window(target: Target) -> list[float]:
        answers = []
        for _ in range(int(100 * bench.seconds)):
            answers.append(await target.request(plan))
            await asyncio.sleep(0.002)
        return sorted(answer.time_to_first_token for answer in verified(results, target, answers))

    for _, app in bench.turns():
        for target in (direct, app.target) if app is bench.apps[0] else (app.target,):
            times = await window(target)
            results.add("first_p50", target.name, times[len(times) // 2])
            results.add("first_p99", target.name, times[len(times) * 99 // 100])
        await settle()
    direct.close()
    return results


async def memory(bench: Bench, name: str) -> Results:
    """The app's memory for each open stream, from the hundredth to the four hundredth."""
    results = Results(name, "open streams, from the hundredth to the four hundredth")
    for _ in range(max(1, bench.rounds // 3)):
        async with AsyncExitStack() as stack:
            for app_name in APPS:
                app = await stack.enter_async_context(App(app_name, bench.model_service))
                plan = Plan(20, 0.4)
                first, first_connections = await begin_streams(app.target, plan, 100, 0.005)
                await asyncio.gather(*(connection.begun for connection in first_connections))
                await asyncio.sleep(0.5)
                before = resident_bytes(app.pid)
                others, other_connections = await begin_streams(app.target, plan, 300, 0.005)
                await asyncio.gather(*(connection.begun for connection in other_connections))
                await asyncio.sleep(1)
                results.add("bytes", app_name, (resident_bytes(app.pid) - before) / 300)
                await finish_streams(app.target, [*first_connections, *other_connections])
                verified(results, app.target, first + others)
    return results


# Run by a new interpreter in the app's folder. `worker`: what the worker imports before the app is imported first.
_IMPORT_SCRIPT: Final = """
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
    """CPU time for the app's import in a new interpreter, and for the first answer of a new worker."""
    results = Results(name, "a new interpreter imports the app; a new worker sends its first answer")
    environment = app_environment(bench.model_service.port)
    for number in range(2 * bench.rounds + 1):
        for app_name, (folder, _) in APPS.items():
            for metric, worker in (("import", False), ("import_in_worker", True)):
                command = [sys.executable, "-P", "-c", _IMPORT_SCRIPT.format(worker=worker)]
                done = await asyncio.to_thread(
                    subprocess.run, command, cwd=folder, env=environment, capture_output=True, check=True
                )
                if number:  # the first one writes the bytecode files
                    results.add(metric, app_name, float(done.stdout))
    for _ in range(bench.rounds):
        for app_name in APPS:
            async with App(app_name, bench.model_service) as app:
                begin = bench.clocks(app)
                answer = await app.target.request(Plan(3))
                end = bench.clocks(app)
                verified(results, app.target, [answer])
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
