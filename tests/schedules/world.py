"""The world around one stream: a scripted model service and caller, the web server, and a log of what happened.

The stream under test is the real one with the real pool, decoder and encoder; no socket is involved.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from starlette.responses import Response

from relay.callers.limits import Account, Bucket, Cost, Limiter, Reservation
from relay.callers.request import CallerRequest
from relay.callers.settings import Limits
from relay.problems import UPSTREAM_ERROR, Problem
from relay.settings import BackendSettings, Settings, Wire
from relay.streaming.stream import Stream
from relay.telemetry import Record
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, Failover
from relay.upstream.request import UpstreamRequest
from relay.wires.stream_encoders import NDJSONEncoder, SSEEncoder
from relay.wires.wire import WireRequest
from tests.schedules.virtual_loop import VirtualLoop

# ── What scripts consist of ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Headers:
    """The answer begins: 200 and its headers."""

    media_type: str = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes of the answer arrive.

    `text` is what they add to its text, and `reasoning` to its reasoning; `finishes`: they hold the finish reason,
    which completes it; `completes`: they hold the event that ends a complete answer; `usage`: they hold the usage;
    `progress`: they are a part of the answer, and not only something that keeps the connection open; `fails`: they hold
    an error.
    """

    content: bytes
    text: str = ""
    reasoning: str = ""
    completes: bool = False
    finishes: bool = False
    usage: bool = False
    progress: bool = True
    fails: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The body ends; `completes`: which completes the answer; `text` and `usage`: what that shows of it."""

    completes: bool = False
    text: str = ""
    usage: bool = False


@dataclass(frozen=True, slots=True)
class Break:
    """The connection breaks."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What the stream waits for is cancelled, and not the stream: an answer that has not begun."""


UpstreamStep = Headers | Refusal | Send | End | Break | Cancelled
CallerStep = Literal["stop reading", "read on", "disconnect", "shut down", "cancel"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens, but for the order in which the parties take turns.

    `upstream` has one script for each backend, in the order in which they are preferred; a script that ends early goes
    silent. `wires` are those of the backends, by default chat completions. `caller`: what the caller (and at last the
    web server, which may shut down) does. `on_probation`: the backends that failed a moment ago.
    """

    request: WireRequest
    upstream: Sequence[Sequence[UpstreamStep]]
    caller: Sequence[CallerStep] = ()
    accept: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    on_probation: Sequence[int] = ()
    wires: Sequence[Wire] = ()


# ── The parties ──────────────────────────────────────────────────────────────────────────────────────────────────────


class ScriptedAnswer:
    """An answer that has begun (`relay.upstream.answer.Answer`), fed by its backend's script."""

    connection_errors: Final = (ConnectionError,)

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type
        self.state: Literal["open", "closed", "returned"] = "open"
        self._buffer = b""
        self._over: End | Break | None = None
        self._arrived: asyncio.Future[None] | None = None

    def deliver(self, step: Send | End | Break) -> None:
        if isinstance(step, Send):
            self._buffer += step.content
        else:
            self._over = step
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def read(self) -> bytes:
        assert self.state == "open", f"read after it was {self.state}"
        while not self._buffer and self._over is None:
            assert self._arrived is None, "two reads at once"
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        if isinstance(self._over, Break):
            raise ConnectionResetError  # as aiohttp does, whatever has arrived
        return self.read_remaining()

    def read_remaining(self) -> bytes:
        content, self._buffer = self._buffer, b""
        return content

    def redact(self, problem: Problem) -> Problem:
        return problem

    def close(self) -> None:
        self.state = "closed"

    async def end(self) -> None:
        assert self.state == "open", f"ended after it was {self.state}"
        self.state = "returned"


class ScriptedBackend:
    """The client of one backend's model service (`relay.upstream.client.ModelServiceClient`) and its script."""

    def __init__(self, index: int, script: Sequence[UpstreamStep], *, shows_reasoning: bool = False) -> None:
        self.index = index
        self.name = f"backend-{index}"
        self.remaining = list(script)
        self.played: list[UpstreamStep] = []
        self.asked = 0  # times
        self.refusals = 0  # that were received
        self.asked_at = 0.0  # in the loop's time
        self.request: UpstreamRequest | None = None
        self.request_id = ""
        self.answer: ScriptedAnswer | None = None
        self.delivered = ""  # text
        self.text_times: list[float] = []  # when each part of the text arrived, in the loop's time
        self.reasoning = ""  # what was delivered of it
        self.output_times: list[float] = []  # when text arrived, or reasoning that the caller is sent
        self.shows_reasoning = shows_reasoning
        self.last_step = 0.0  # when the script's last step happened
        self.last_progress = 0.0  # when the last step happened that was a part of an answer
        self.usage_delivered = False
        self.complete = False  # the event that completes the answer has arrived
        self.over_at: float | None = None  # when the event arrived behind which no text follows
        self.ended = False
        self.failed = False  # an error has arrived, which outweighs a finish reason
        self._begun: asyncio.Future[Headers | Refusal] | None = None

    async def open(
        self, request: UpstreamRequest, deployment: str, request_id: str, *hooks: Callable[[], None]
    ) -> ScriptedAnswer | Refusal:
        assert deployment == self.name
        self.request, self.request_id = request, request_id
        self.asked += 1
        self.asked_at = asyncio.get_running_loop().time()
        self._begun = asyncio.get_running_loop().create_future()
        try:
            begun = await self._begun
        finally:
            self._begun = None
        if isinstance(begun, Refusal):
            self.refusals += 1
            return begun
        self.answer = ScriptedAnswer(begun.media_type)
        return self.answer

    @property
    def awaited(self) -> bool:
        """Whether it was asked and its answer has not begun."""
        return self._begun is not None and not self._begun.done()

    @property
    def can_act(self) -> bool:
        """Whether the next step of the script can happen now."""
        if not self.remaining:
            return False
        if isinstance(self.remaining[0], Headers | Refusal | Cancelled):
            return self.awaited
        return self.answer is not None and self.answer.state == "open"

    def act(self) -> None:
        step = self.remaining.pop(0)
        self.played.append(step)
        now = self.last_step = asyncio.get_running_loop().time()
        if not isinstance(step, Send) or step.progress:
            self.last_progress = now
        if isinstance(step, Cancelled):
            assert self._begun is not None
            self._begun.cancel()
            return
        if isinstance(step, Headers | Refusal):
            assert self._begun is not None
            self._begun.set_result(step)
            return
        assert self.answer is not None
        if isinstance(step, Send | End):
            self.delivered += step.text
            if step.text:
                self.text_times.append(now)
            reasoning = step.reasoning if isinstance(step, Send) else ""
            self.reasoning += reasoning
            if step.text or (reasoning and self.shows_reasoning):
                self.output_times.append(now)
            if step.completes:
                self.complete, self.over_at = True, now
            self.usage_delivered = self.usage_delivered or step.usage
        if isinstance(step, Send):
            self.complete = self.complete or step.finishes
            self.failed = self.failed or step.fails
        else:
            self.ended = True
        self.answer.deliver(step)


RESERVED = 100.0  # tokens of the caller's limits, before the stream began
BODY_BYTES = 40  # of the caller's request, about 10 tokens


class ScriptedCaller:
    """The caller with its connection, as uvicorn has it: a `send` waits while the caller does not read, and does
    nothing once the caller is gone."""

    request_id = "request-1"
    invocation_id = "invocation-1"

    def __init__(self, script: Sequence[CallerStep], loop: VirtualLoop) -> None:
        self.remaining = list(script)
        self.reads = True
        self.gone = False
        self.writes: list[tuple[float, bytes]] = []
        self.status: int | None = None
        self.sent_messages = 0
        self.received_headers: dict[str, str] = {}
        self.ended = False  # the body's end was sent
        self.settled: list[tuple[Record, bool]] = []  # what the caller's limits were told of the end
        self.limiter = Limiter(clock=loop.time)
        self.account = Account(Limits(streams=1))
        self.account.day = Bucket(1e6, 1e18)  # nothing runs out
        self.account.token_buckets = (self.account.day,)
        cost = Cost(RESERVED)
        self.account.begin(cost, loop.time())
        self._reservation = Reservation(self.limiter, "team-a", self.account, cost, BODY_BYTES)
        self.violations: list[str] = []  # of ASGI's rules; an exception would be the stream's to handle
        self._loop = loop
        self._gone: asyncio.Future[None] = loop.create_future()
        self._readable: list[asyncio.Future[None]] = []
        self._sending = 0

    # What the stream calls

    async def wait_for_disconnect(self) -> None:
        await asyncio.shield(self._gone)

    def headers(self, media_type: str) -> dict[str, str]:
        return {"content-type": media_type}

    def response(self, content: bytes, media_type: str) -> Response:
        return Response(content, media_type=media_type)

    def error_response(self, problem: Problem) -> Response:
        return Response(problem.document(self.request_id), int(problem.status))

    def client_closed_request(self) -> Response:
        return CallerRequest.client_closed_request(cast(CallerRequest, self))

    def settle(self, record: Record, *, answering: bool) -> None:
        self.settled.append((record, answering))
        self._reservation.settle(record.usage, estimated=record.usage_estimated, answering=answering)

    # What the web server calls

    async def send(self, message: Any) -> None:
        self._sending += 1
        if self._sending > 1:
            self.violations.append("two writes at once")
        try:
            while not self.reads and not self.gone:
                readable = self._loop.create_future()
                self._readable.append(readable)
                await readable
        finally:
            self._sending -= 1
        if self.gone:
            return
        self.sent_messages += 1
        if self.ended:
            self.violations.append("something was sent after the body's end")
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.received_headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if message["type"] != "http.response.body":
            self.violations.append(f"an unknown message, {message['type']}")
        if message["body"]:
            self.writes.append((self._loop.time(), message["body"]))
        self.ended = not message.get("more_body", False)

    # What the script does

    def act(self, world: "World") -> None:
        step = self.remaining.pop(0)
        if step == "stop reading":
            self.reads = False
        elif step == "shut down":
            world.shut_down = True
            if world.server is not None:
                world.server.cancel()
        elif step == "disconnect":
            self.disconnect()
        elif step == "cancel":
            world.cancelled = True
            world.stream._task.cancel()
        else:
            self._read_on()

    def disconnect(self) -> None:
        """Close the connection; whatever waits for the caller to read is released, as by uvicorn."""
        self.gone = True
        self._gone.set_result(None)
        self._read_on()

    def _read_on(self) -> None:
        self.reads = True
        for readable in self._readable:
            if not readable.done():
                readable.set_result(None)
        self._readable.clear()

    @property
    def body(self) -> bytes:
        return b"".join(content for _, content in self.writes)


class World:
    """One run of a scenario. The parties act one at a time, by `options` and `act`."""

    def __init__(self, scenario: Scenario, loop: VirtualLoop) -> None:
        self.scenario = scenario
        self.loop = loop
        self.began = loop.time()
        self.settings = Settings(backends=(), **scenario.settings)
        self.encoder = scenario.request.encoder(scenario.accept)
        asked = getattr(scenario.request, "reasoning_summary", None) is not None
        self.shows_reasoning = asked and isinstance(self.encoder, SSEEncoder | NDJSONEncoder)
        self.backends = [
            ScriptedBackend(n, script, shows_reasoning=self.shows_reasoning)
            for n, script in enumerate(scenario.upstream)
        ]
        wires: Sequence[Wire] = scenario.wires or ("chat",) * len(self.backends)
        self.caller = ScriptedCaller(scenario.caller, loop)
        self.pool = [
            Backend(
                BackendSettings(it.name, f"http://{it.name}/", it.name, "model", priority, wire),
                {f"http://{it.name}/": cast(Any, it)},
                clock=loop.time,
            )
            for priority, (it, wire) in enumerate(zip(self.backends, wires, strict=True))
        ]
        for index in scenario.on_probation:
            self.pool[index].record_refusal(Refusal(UPSTREAM_ERROR, "500"))
        self.records: list[Record] = []
        self.recorded_at = 0.0
        self.server: asyncio.Task[None] | None = None
        self.serving = False  # the web server has called the response
        self.shut_down = False
        self.closed_at: float | None = None  # when the response was over: the web server closes what has no end
        self.cancelled = False  # the stream's task was, from outside
        self.responded_at: float | None = None
        self.stream = self.new_stream()
        self.function = loop.create_task(self._call_function())

    def new_stream(self) -> Stream:
        return Stream(
            cast(Any, self.caller),
            Failover("model", list(self.pool)),
            self.scenario.request,
            self.encoder,
            self.settings,
        )

    async def _call_function(self) -> Response:
        response = await self.stream.respond()
        self.responded_at = self.loop.time()
        return response

    async def _serve(self, response: Response) -> None:
        self.serving = True

        async def receive() -> Any:
            await self.loop.create_future()

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        try:
            await response(scope, receive, self.caller.send)
        finally:
            self.closed_at = self.loop.time()

    def report(self, record: Record) -> None:
        """Takes the record of the stream, in the place of `relay.telemetry.report`."""
        self.records.append(record)
        self.recorded_at = self.loop.time()

    @property
    def elapsed(self) -> float:
        return self.loop.time() - self.began

    @property
    def over(self) -> bool:
        """The function has returned and its response has been sent as far as it ever will be."""
        return self.server is not None and self.server.done()

    def options(self) -> list[str]:
        """Who could act next."""
        options = [it.name for it in self.backends if it.can_act]
        if self.function.done() and self.server is None:
            options.append("server")
        if self.caller.remaining and not self.over and (self.caller.remaining[0] != "shut down" or self.serving):
            options.append("caller")
        # The web server takes a response as soon as the function has returned it, on the same event loop.
        if self.loop.timers() and "server" not in options:
            options.append("clock")
        return options

    async def act(self, option: str) -> None:
        if option == "server":
            self.server = self.loop.create_task(self._serve(self.function.result()))
        elif option == "caller":
            self.caller.act(self)
        elif option == "clock":
            await self.loop.advance()
        else:
            next(it for it in self.backends if it.name == option).act()


async def step(world: World, *actors: str) -> None:
    """Each of these acts, and all comes to rest."""
    await world.loop.rest()
    for actor in actors:
        assert actor in world.options(), f"{actor} can't act, only {world.options()}"
        await world.act(actor)
        await world.loop.rest()
