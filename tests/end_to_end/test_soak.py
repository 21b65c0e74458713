"""A random mixture of all faults, client disconnects, slow readers and restarts of the model service.

Each stream must end as the contract requires, and nothing may remain of it. There are 300 streams, and the same ones in
each run. `SOAK_STREAMS` in the environment sets another number (`make soak`: 10,000), of a random mixture; `SOAK_SEED`
repeats a run whose seed was printed.

Beside them: callers that disconnect within 10 ms (300, or 2,000 with `SOAK_STREAMS`) and requests of every odd kind.
"""

import asyncio
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import httpx
import pytest

from local.model_service import MANUAL_PACE, ModelService
from tests.end_to_end.answers import (
    DOCUMENT,
    FORMATS,
    PLAIN,
    SSE,
    ReceivedAnswer,
    join_surrogates,
    parse_answer,
    post_stream,
    request_body,
)
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import (
    OUTCOMES,
    TOKENS,
    Complete,
    Interrupted,
    Refused,
    check_completion,
    check_interruption,
    text_of_fault,
)

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")
STREAMS: Final = int(os.environ.get("SOAK_STREAMS", "300"))
RANDOM_SEED: Final = random.SystemRandom().randrange(10**9) if "SOAK_STREAMS" in os.environ else 1
SEED: Final = int(os.environ.get("SOAK_SEED", RANDOM_SEED))
LEAVERS: Final = 2000 if "SOAK_STREAMS" in os.environ else 300  # callers that disconnect at once
AT_ONCE: Final = 40
SILENCE_TIMEOUT: Final = 2.5  # seconds; the pauses of a busy machine are shorter
MEMORY_GROWTH_LIMIT: Final = 16 * 1024 * 1024  # bytes that the allocator may keep: 1.6 kB for each of 10,000 streams
ECHO: Final = "echo"  # the deployment that answers with the text of the prompt

# A long answer at the pace of this test would take minutes.
FAULTS: Final = {fault: outcome for fault, outcome in OUTCOMES.items() if not fault.startswith("long-")} | {
    "long-3000": Complete(text_of_fault("long-3000"))
}
DEPLOYMENTS: Final = {f"soak-{number}": fault for number, fault in enumerate(FAULTS)}

type Behaviour = Literal["reads", "reads slowly", "disconnects before the answer", "disconnects midway"]


@dataclass
class Plan:
    """One stream of the mixture, the same for the same seed and number."""

    number: int
    dice: random.Random = field(repr=False)
    media_type: str = ""
    behaviour: Behaviour = "reads"
    deployment: str = ECHO
    prompt: str = ""
    reset: bool = False  # a disconnect resets the connection
    disconnect_after: float = 0.0  # seconds

    @classmethod
    def make(cls, number: int) -> "Plan":
        dice = random.Random(f"{SEED} {number}")
        plan = cls(number, dice)
        plan.media_type = dice.choice(FORMATS)
        plan.behaviour = dice.choices(
            ("reads", "reads slowly", "disconnects before the answer", "disconnects midway"), (6, 2, 1, 2)
        )[0]
        plan.prompt = "echo " + plan.answer()
        if dice.random() < 0.6:
            plan.deployment = dice.choice(list(DEPLOYMENTS))
        plan.reset = dice.random() < 0.5
        plan.disconnect_after = dice.choice((0.0, 0.002, 0.02, 0.1, 0.5)) * dice.random()
        return plan

    def answer(self) -> str:
        """A text that no other stream has."""
        words = (
            "grün",
            "東京",
            "🦊",
            '"so"',
            "back\\slash",
            "\n\n",
            "\u2028",
            "the",
            "fox",
            "naïve",
            "{}",
            "data:",
            "<b>",
        )
        return f"{self.number} " + " ".join(self.dice.choice(words) for _ in range(self.dice.randint(1, 60))) + "."

    @property
    def outcome(self) -> Complete | Interrupted | Refused:
        """How it must end where nothing happens but its fault."""
        if self.deployment == ECHO:
            return Complete(self.prompt.removeprefix("echo "))
        return FAULTS[DEPLOYMENTS[self.deployment]]


def check(plan: Plan, received: ReceivedAnswer) -> None:
    """The answer ended as it must."""
    outcome = plan.outcome
    if isinstance(outcome, Refused):
        # While a backend cools down, the time to wait decreases.
        assert received.problem is not None, received
        assert (received.status, received.problem["code"]) == (outcome.status, outcome.code)
        assert received.problem.get("retry_after", 0) <= max(outcome.retry_after, default=0)
    elif isinstance(outcome, Interrupted):
        fault = DEPLOYMENTS[plan.deployment]
        if "reset" in fault and plan.media_type != DOCUMENT and outcome.text.startswith(received.text):
            # A reset drops what the kernel has not delivered: how much text was received is chance.
            outcome = Interrupted(outcome.status, outcome.code, received.text)
        check_interruption(received, plan.media_type, outcome)
    else:
        check_completion(received, plan.media_type, outcome)


def check_cut(plan: Plan, received: ReceivedAnswer) -> None:
    """The model service was stopped meanwhile: the text is the beginning of the answer, and it ended with an error.

    Where it was stopped after the finish reason, the answer is complete, without its usage.
    """
    if received.status != 200:
        assert received.problem is not None
        assert received.problem["code"] in ("upstream_error", "upstream_timeout", "upstream_interrupted"), received
        return
    outcome = plan.outcome
    if received.done is not None and isinstance(outcome, Complete):
        assert received.text == outcome.text, received
        assert (received.done["finish_reason"], received.done["usage"]) == (outcome.finish_reason, None), received
        return
    assert ("" if isinstance(outcome, Refused) else outcome.text).startswith(received.text), received
    if plan.media_type == PLAIN:
        assert received.broken, "a cut answer looks complete"
        return
    assert not received.broken, received
    assert received.error is not None, received
    assert received.error["code"] in ("upstream_interrupted", "upstream_error", "upstream_timeout"), received


class Mixture:
    """Runs the streams, and counts how they ended."""

    def __init__(self, app: HostedApp, service: ModelService) -> None:
        self.app = app
        self.service = service
        self.failures: list[str] = []
        self.endings: Counter[str] = Counter()
        self.restarts: list[tuple[float, float]] = []
        self.restarting = 0.0

    async def run(self, numbers: range, *, restart_every: float | None) -> None:
        """Run these streams, with a restart of the model service about every `restart_every` seconds."""
        remaining = iter(numbers)

        async def client(session: aiohttp.ClientSession) -> None:
            for number in remaining:
                await self.run_one(session, Plan.make(number))

        # One connection for each request, so that no kept connections are counted afterwards.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=2048) as session:
            restarting = asyncio.create_task(self.restart_repeatedly(restart_every)) if restart_every else None
            try:
                await asyncio.gather(*(client(session) for _ in range(AT_ONCE)))
            finally:
                if restarting is not None:
                    restarting.cancel()
                    await asyncio.wait((restarting,))
        if self.restarting:
            await self.service.start()

    async def restart_repeatedly(self, every: float) -> None:
        """Restart the model service about every so many seconds, and change its pace."""
        dice = random.Random(SEED)
        while True:
            self.service.tokens_per_second = dice.choice((0.0, 150.0, 600.0))
            await asyncio.sleep(every * dice.uniform(0.5, 1.5))
            self.restarting = time.monotonic()
            await self.service.stop()
            await asyncio.sleep(dice.choice((0.0, 0.3)))
            await self.service.start()
            self.restarts.append((self.restarting, time.monotonic()))
            self.restarting = 0.0

    def was_restarted(self, began: float) -> bool:
        """Whether the model service was stopped at any time since `began`."""
        return bool(self.restarting) or any(end >= began for _, end in self.restarts)

    async def run_one(self, session: aiohttp.ClientSession, plan: Plan) -> None:
        began = time.monotonic()
        received: ReceivedAnswer | None = None
        try:
            async with asyncio.timeout(60):
                received = await receive(session, self.app.url, plan)
            if received is None:
                self.endings[plan.behaviour] += 1
                return
            try:
                check(plan, received)
                self.endings["as required"] += 1
            except AssertionError:
                if not self.was_restarted(began):
                    raise
                check_cut(plan, received)
                self.endings["cut by a restart"] += 1
                await asyncio.sleep(0.1)  # otherwise most streams would meet a stopped service
        except Exception as error:  # noqa: BLE001 (the other streams go on; failures are reported at the end)
            fault = DEPLOYMENTS.get(plan.deployment, "none")
            ended = f"{received.status} {received.raw[-300:]!r}" if received else "nothing was received"
            self.failures.append(f"{plan}, fault {fault}: {type(error).__name__} {str(error)[:300]}; {ended}")


async def receive(session: aiohttp.ClientSession, url: str, plan: Plan) -> ReceivedAnswer | None:
    """One answer, read as planned; None if the client disconnected."""
    headers = {"Content-Type": "application/json"} | (
        {} if plan.media_type == DOCUMENT else {"Accept": plan.media_type}
    )
    body = json.dumps(request_body(plan.media_type, plan.prompt, model=plan.deployment))
    requesting = asyncio.ensure_future(session.post(f"{url}/stream", data=body, headers=headers))
    if plan.behaviour == "disconnects before the answer":
        await asyncio.wait((requesting,), timeout=plan.disconnect_after)
        if not requesting.done():
            requesting.cancel()
            return None
    response = await requesting
    received = ReceivedAnswer(response.status, httpx.Headers(list(response.headers.items())))
    chunks: list[bytes] = []
    disconnect_at = time.monotonic() + plan.disconnect_after if plan.behaviour == "disconnects midway" else None
    async with response:
        try:
            while True:
                timeout = None if disconnect_at is None else disconnect_at - time.monotonic()
                async with asyncio.timeout(timeout):
                    chunk = await response.content.read(700)
                if not chunk:
                    break
                chunks.append(chunk)
                if plan.behaviour == "reads slowly" and len(chunks) < 150:
                    await asyncio.sleep(0.004)
        except TimeoutError:
            disconnect(response, reset=plan.reset)
            check_beginning(plan, response.status, b"".join(chunks))
            return None
        except aiohttp.ClientPayloadError:
            received.broken = True
            # aiohttp's reader raises before it has returned all that arrived before.
            response.content.set_exception(None)  # type: ignore[arg-type]
            chunks.append(response.content.read_nowait())
    received.raw = b"".join(chunks)
    parse_answer(received, plan.media_type)
    return received


def disconnect(response: aiohttp.ClientResponse, *, reset: bool) -> None:
    """Close the connection, or reset it."""
    transport = response.connection.transport if response.connection else None
    if reset and transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    response.close()


def check_beginning(plan: Plan, status: int, raw: bytes) -> None:
    """A client that disconnected has received the beginning of the answer and nothing else."""
    outcome = plan.outcome
    if status != 200 or plan.media_type != SSE or isinstance(outcome, Refused):
        return
    events = raw.split(b"\n\n")[:-1]
    texts = [json.loads(event.removeprefix(b"data: "))["text"] for event in events if event.startswith(b"data: ")]
    assert outcome.text.startswith(join_surrogates("".join(texts))) or "surrogate" in DEPLOYMENTS.get(
        plan.deployment, ""
    )


@asynccontextmanager
async def nothing_remains(app: HostedApp, service: ModelService) -> AsyncIterator[None]:
    """All that is created inside is released soon afterwards (tasks, objects, sockets, memory), in the same process."""

    async def inspect() -> dict[str, Any]:
        async with app.client(headers={"Connection": "close"}) as client:
            return dict((await client.get("/inspect")).json())

    async def state_at_rest() -> dict[str, Any] | None:
        state = await inspect()
        return None if any(state["objects"].values()) or state["requests_kept"] > 1 else state

    pid = app.worker_pid
    await service.stop()  # so that no connection to it is kept
    before = after = await eventually(state_at_rest)
    await service.start()
    yield
    await eventually(lambda: service.open_requests == 0)
    await service.stop()

    async def as_before() -> bool:
        nonlocal after
        after = await inspect()
        return (
            all(after[name] == before[name] for name in ("tasks", "objects", "requests_kept"))
            # The host keeps its connections to the worker for a minute.
            and after["open_files"] <= before["open_files"] + AT_ONCE
            and await app.open_invocations() == 0
        )

    try:
        await eventually(as_before, within=20)
    except AssertionError:
        assert {**after, "resident": 0} == {**before, "resident": 0}, "something remains"
    growth = after["resident"] - before["resident"]
    print(f"memory of the worker: {before['resident'] / 2**20:.1f} MiB before, {growth / 2**20:+.1f} MiB")
    assert await app.open_invocations() == 0
    assert growth < MEMORY_GROWTH_LIMIT
    assert app.worker_pid == pid, "the worker was restarted"


@pytest.fixture(scope="module")
def soaked_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with `GET /inspect` and a deployment for each fault."""
    settings = {
        "AZURE_OPENAI_DEPLOYMENTS": ",".join((ECHO, MANUAL_PACE, *DEPLOYMENTS)),
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
        "PING_INTERVAL_SECONDS": "0.5",
        "COMMIT_WAIT_SECONDS": "20",
        "MAX_OUTPUT_TOKENS": "1000000",
    }
    return functions_app(env=app_settings | settings, script_root=INSPECTED_APP, fresh=True)


@pytest.mark.timeout(60 + STREAMS)
async def test_random_mixture(soaked_app: HostedApp, model_service: ModelService) -> None:
    print(f"\nSOAK_SEED={SEED} SOAK_STREAMS={STREAMS}")
    model_service.faults.update(DEPLOYMENTS)
    for deployment in DEPLOYMENTS:
        model_service.answer(TOKENS, deployment)
    model_service.tokens_per_write = 3
    mixture = Mixture(soaked_app, model_service)
    # The process creates what it creates once, and allocates its memory.
    await mixture.run(range(-max(100, STREAMS // 20), 0), restart_every=None)
    began = time.monotonic()
    async with nothing_remains(soaked_app, model_service):
        await mixture.run(range(STREAMS), restart_every=1.5 if STREAMS < 1000 else 4)
    print(f"{STREAMS} streams in {time.monotonic() - began:.0f} s, {len(mixture.restarts)} restarts: {mixture.endings}")
    assert not mixture.failures, f"SOAK_SEED={SEED}: {len(mixture.failures)} failed:\n" + "\n".join(
        mixture.failures[:20]
    )
    assert sum(mixture.endings.values()) >= STREAMS
    assert model_service.open_requests == 0
    received = Counter(record.headers["x-ms-client-request-id"] for record in model_service.requests)
    assert max(received.values()) <= 2, "a request is sent once, and again where a kept connection was closed"


# ── Callers that disconnect at once, and odd requests ────────────────────────────────────────────────────────────────


def raw_request(
    line: str, *headers: str, body: bytes | None = None, chunked: bool = False, trailers: str = ""
) -> bytes:
    """A request; after the response the host closes the connection."""
    head = [f"{line} HTTP/1.1", "Host: h", "Connection: close", *headers]
    content = body or b""
    if chunked:
        head.append("Transfer-Encoding: chunked")
        content = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(content), content, trailers.encode())
    elif body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*head, "", "")).encode() + content


def post(media_type: str, *headers: str, **options: Any) -> bytes:
    """A request for a stream in a format."""
    body = json.dumps(request_body(media_type, "echo of no one", model=ECHO)).encode()
    accept = () if media_type == DOCUMENT else (f"Accept: {media_type}",)
    return raw_request("POST /stream", *accept, *headers, **{"body": body} | options)


def openai_request(path: str, **members: Any) -> bytes:
    """A request of OpenAI's API."""
    return raw_request(f"POST /{path}", body=json.dumps({"model": ECHO, **members}).encode())


MESSAGES: Final = [{"role": "user", "content": "echo of no one"}]
AZURE_PATH: Final = f"openai/deployments/{ECHO}/chat/completions?api-version=2024-10-21"


# One of every route, method and format.
ORDINARY_REQUESTS: Final = (
    *(raw_request(f"{method} /{path}") for path in ("health", "ready", "chat", "openapi", "v1/models", "nowhere")
      for method in ("GET", "HEAD")),
    *(post(media_type, chunked=chunked) for media_type in FORMATS for chunked in (False, True)),
    *(openai_request("v1/chat/completions", messages=MESSAGES, stream=stream) for stream in (True, False)),
    *(openai_request("v1/responses", input="echo of no one", stream=stream) for stream in (True, False)),
    openai_request(AZURE_PATH, messages=MESSAGES, stream=True),
    openai_request("v1/embeddings", input="x"),
    raw_request("GET /v1/responses/resp_1"),
    raw_request(f"GET /v1/models/{ECHO}"),
)  # fmt: skip

MANY_MEMBERS: Final = json.dumps({"input": "x"} | {f"m{number}": 0 for number in range(95_000)}).encode()
ODD_HEADERS: Final = {
    "UTF-8": ("X-Name: h\u00f6flich",),
    "UTF-8 in a cookie": ("Cookie: name=\u6771\u4eac",),
    "UTF-8 in Referer": ("Referer: http://h/\u00f6",),
    "a control character": ("X-Name: a\x01b",),
    "DEL": ("User-Agent: a\x7fb",),
    "a control character and UTF-8": ("X-Name: \x1b\u00f6",),
    "a foreign invocation id": ("x-ms-invocation-id: 00000000-0000-0000-0000-000000000000",),
    "no invocation id": ("x-ms-invocation-id: ",),
    "many headers": tuple(f"X-Header-{number}: {number}" for number in range(95)),
    "an upgrade to WebSocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "an upgrade to HTTP/2": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "Expect": ("Expect: 100-continue",),
}
ODD_REQUESTS: Final = {
    **{f"GET with {name}": raw_request("GET /health", *headers) for name, headers in ODD_HEADERS.items()},
    **{f"POST with {name}": post(SSE, *headers) for name, headers in ODD_HEADERS.items()},
    "trailers": post(SSE, "Trailer: X-Name", chunked=True, trailers="X-Name: a\r\n"),
    "trailers in UTF-8": post(SSE, chunked=True, trailers="X-Name: \u00f6\r\n"),
    "GET with a body": raw_request("GET /health", body=b"{}"),
    "very many members": raw_request("POST /stream", body=MANY_MEMBERS),
    "GET with very many members": raw_request("GET /health", body=MANY_MEMBERS),
}
CUT_REQUESTS: Final = (
    post(SSE)[:-1],
    post(SSE, chunked=True)[:-2],
    raw_request("GET /health", body=b"{}")[:-1],
    raw_request("POST /stream", body=MANY_MEMBERS)[:-1],
    raw_request("POST /stream", "Expect: 100-continue", "Content-Length: 10"),
)


async def leave(app: HostedApp, request: bytes, after: float, *, reset: bool) -> None:
    """Send a request, and disconnect after so many seconds."""
    _, writer = await asyncio.open_connection(*app.address)
    writer.write(request)
    await asyncio.sleep(after)
    if reset:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if reset else writer.close()


async def status_of(app: HostedApp, request: bytes) -> int:
    """Send a request and read its response to the end; returns its status."""
    reader, writer = await asyncio.open_connection(*app.address)
    try:
        writer.write(request)
        response = await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
    response = response.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 "), response[:100]
    return int(response.split(b" ", 2)[1])


@pytest.mark.timeout(120 + LEAVERS // 10)
async def test_callers_that_disconnect_at_once_and_odd_requests(
    soaked_app: HostedApp, model_service: ModelService
) -> None:
    tokens = [f"<{number}>" for number in range(1000)]
    model_service.answer(tokens, MANUAL_PACE)
    dice = random.Random(SEED)
    statuses: dict[str, int] = {}

    async def disconnect_at_once(requests: list[bytes]) -> None:
        async def one_after_the_other() -> None:
            while requests:
                after = dice.choice((0.0, dice.random() * 0.01))
                await leave(soaked_app, requests.pop(), after, reset=dice.random() < 0.5)

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))

    async def ask(name: str, request: bytes) -> None:
        statuses[name] = await status_of(soaked_app, request)

    async def all_at_once() -> None:
        await asyncio.gather(
            disconnect_at_once(dice.choices(ORDINARY_REQUESTS, k=LEAVERS)),
            disconnect_at_once([*ODD_REQUESTS.values(), *CUT_REQUESTS] * 2),
            *(ask(name, request) for name, request in ODD_REQUESTS.items()),
        )

    await all_at_once()  # the process creates what it creates once, and allocates its memory
    statuses.clear()
    async with nothing_remains(soaked_app, model_service), soaked_app.client(headers={"Connection": "close"}) as client:
        beside = asyncio.create_task(post_stream(client, SSE, model=MANUAL_PACE))
        releasing = asyncio.create_task(release_one_by_one(model_service))
        try:
            await model_service.wait_for(lambda service: service.open_requests == 1)
            await all_at_once()
        finally:
            releasing.cancel()
        model_service.release(len(tokens))
        received = await asyncio.wait_for(beside, 30)
    assert received.text == "".join(tokens), "the stream beside them has lost something"
    assert received.done is not None
    odd = {name: status for name, status in statuses.items() if status not in (200, 400)}
    refused = {name for name in ODD_REQUESTS if "UTF-8" in name and "trailers" not in name}
    assert {name for name, status in odd.items() if status == 500} == refused, odd
    assert statuses["GET with many headers"] == statuses["POST with many headers"] == 200
    assert statuses["GET with an upgrade to WebSocket"] == statuses["POST with an upgrade to HTTP/2"] == 200


async def release_one_by_one(service: ModelService) -> None:
    """Release a token every 20 ms."""
    while True:
        service.release()
        await asyncio.sleep(0.02)
