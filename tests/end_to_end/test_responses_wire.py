"""`/v1/responses` on the wire: what is passed on byte for byte, how every stream ends, and where a stored response is
looked for."""

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService, faults
from tests.end_to_end.answers import read_until_broken
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import (
    BODY_LIMIT,
    DEADLINE,
    OUTCOMES,
    OUTPUT_LIMIT,
    SILENCE_TIMEOUT,
    TEXT,
    TOKENS,
    Complete,
    Interrupted,
    Refused,
    limited_app,
)
from tests.end_to_end.test_openai_wire import TYPES, check_error, check_refused, record_of

__all__ = ("limited_app",)

URL: Final = "/v1/responses"
PING: Final = b": ping\n\n"
ENDS: Final = ("response.completed", "response.incomplete", "response.failed", "error")


def body_of(**members: Any) -> dict[str, Any]:
    """The body of a request for one document."""
    return {"model": DEFAULT_DEPLOYMENT, "input": "Say something."} | members


@dataclass
class Received:
    """One answer, read to its end. `events` are the members of each event; `broken`: the transfer broke off."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    raw: bytes = b""
    broken: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def text(self) -> str:
        return "".join(event["delta"] for event in self.events if event["type"] == "response.output_text.delta")

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def pings(self) -> int:
        return self.raw.count(PING)


async def receive(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> Received:
    """Request a stream, and read it to its end. Strict: an event has its type as its name, and there is one end."""
    received = Received()
    async with client.stream(method, url, **options) as response:
        received.raw, received.broken = await read_until_broken(response)
        received.status, received.headers = response.status_code, response.headers
    if received.status != 200:
        return received
    assert received.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = received.raw.replace(PING, b"").split(b"\n\n")
    assert blocks.pop() == b""
    for block in blocks:
        name, _, data = block.partition(b"\n")
        members = json.loads(data.replace(b"\ndata: ", b"\n").removeprefix(b"data: ").decode(errors="replace"))
        assert name.decode() == f"event: {members['type']}"
        received.events.append(members)
    assert [kind in ENDS for kind in received.types] == [False] * (len(blocks) - 1) + [True], received.types
    assert received.broken == (received.last["type"] == "error")
    return received


async def stream(client: httpx.AsyncClient, **members: Any) -> Received:
    """Create a response as a stream."""
    return await receive(client, "POST", URL, json=body_of(stream=True, **members))


def check_numbers(received: Received) -> None:
    assert [event["sequence_number"] for event in received.events] == list(range(len(received.events)))


# ── An upstream that sends exactly what the test sets ────────────────────────────────────────────────────────────────


class RawUpstream:
    """A server in the model service's place that writes raw bytes: `head` and then `writes`, each by itself, and then
    closes the connection. `heads` are the heads of the requests that it received."""

    def __init__(self) -> None:
        self.head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        self.writes: Sequence[bytes] = ()
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, found, length = head.lower().partition(b"content-length: ")
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(int(length.split(b"\r")[0])) if found else b"")
        for content in (self.head, *self.writes):
            writer.write(content)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    def set_chunked(self, content: bytes, *, whole: bool) -> None:
        """A chunked body; where it is not `whole`, its end is missing."""
        self.head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.writes = [b"%x\r\n%b\r\n" % (len(content), content)] * bool(content) + [b"0\r\n\r\n"] * whole


@pytest.fixture
async def upstream(model_service_port: int) -> AsyncIterator[RawUpstream]:
    """The raw upstream, in the model service's place."""
    upstream = RawUpstream()
    async with await asyncio.start_server(upstream, "127.0.0.1", model_service_port, reuse_address=True):
        yield upstream


@pytest.fixture
async def raw_client(app: HostedApp, upstream: RawUpstream) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


def event(kind: str, number: int, **members: Any) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": number, **members}, separators=(",", ":")).encode()
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


RESPONSE: Final = {"id": "resp_1", "object": "response", "model": "m", "status": "in_progress", "output": []}
USAGE: Final = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 10,
}
EVENTS: Final = [
    event("response.created", 0, response=RESPONSE),
    event("response.in_progress", 1, response=RESPONSE),
    event("response.output_item.added", 2, item={"type": "message", "content": []}),
    event("response.output_text.delta", 3, delta="Grün \\/ 🌿", logprobs=[], obfuscation="aZ"),
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta", "sequence_number":4 ,'
    b'"delta":"\\ud83d", "big":123456789012345678901234567890,"exact":0.10}\n\n',
    event("response.output_text.done", 5, text="x" * 100_000),
    event("response.completed", 6, response=RESPONSE | {"status": "completed", "usage": USAGE, "error": None}),
]
WHOLE: Final = b"".join(EVENTS)


async def test_events_are_passed_on_byte_for_byte(
    app: HostedApp, raw_client: httpx.AsyncClient, upstream: RawUpstream
) -> None:
    upstream.set_chunked(WHOLE, whole=True)
    answer = await raw_client.post(URL, json=body_of(stream=True))
    assert answer.content == WHOLE
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    record = await record_of(app, answer.headers["x-request-id"])
    assert (record["relay.outcome"], record["gen_ai.operation.name"]) == ("completed", "chat")
    assert record["gen_ai.response.id"] == "resp_1"
    assert record["gen_ai.response.finish_reasons"] == ["completed"]
    assert (record["gen_ai.usage.input_tokens"], record["gen_ai.usage.output_tokens"]) == (7, 3)
    assert record["gen_ai.usage.reasoning.output_tokens"] == 2
    assert record["gen_ai.usage.cache_read.input_tokens"] == 4


@pytest.fixture
def run_raw(app: HostedApp, model_service_port: int) -> Iterator[Callable[[Sequence[bytes]], bytes]]:
    """Gives what a client receives for these writes of the upstream, in an event loop of its own."""
    upstream = RawUpstream()

    async def request(client: httpx.AsyncClient, writes: Sequence[bytes]) -> bytes:
        upstream.writes = writes
        return (await client.post(URL, json=body_of(stream=True))).content

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        client = runner.run(stack.enter_async_context(app.client()))
        start = asyncio.start_server(upstream, "127.0.0.1", model_service_port, reuse_address=True)
        runner.run(stack.enter_async_context(runner.run(start)))
        yield lambda writes: runner.run(request(client, writes))
        runner.run(stack.aclose())


@given(st.lists(st.integers(1, 700), max_size=20), st.sampled_from([b"\n", b"\r", b"\r\n"]), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_events_in_any_reads(
    run_raw: Callable[[Sequence[bytes]], bytes], sizes: list[int], end: bytes, named: bool
) -> None:
    content = WHOLE if named else b"".join(b"data" + it.partition(b"\ndata")[2] for it in EVENTS)
    content = content.replace(b"\n", end)
    writes, start = [], 0
    for size in sizes:
        writes.append(content[start : start + size])
        start += size
    assert run_raw([write for write in (*writes, content[start:]) if write]) == WHOLE


SHORT: Final = [it for it in EVENTS if len(it) < 1000]
SHORT_WHOLE: Final = b"".join(SHORT)


@pytest.mark.parametrize("broken", [False, True])
async def test_a_cut_anywhere_is_never_complete(
    raw_client: httpx.AsyncClient, upstream: RawUpstream, *, broken: bool
) -> None:
    edges = {
        position + near
        for it in range(len(SHORT))
        for near in (-1, 0)
        if (position := len(b"".join(SHORT[:it]))) + near >= 0
    }
    positions = sorted(edges | set(range(0, len(SHORT_WHOLE) - 1, 251)))
    first_output = len(b"".join(SHORT[:4]))
    for position in positions:
        upstream.set_chunked(SHORT_WHOLE[:position], whole=not broken)
        received = await receive(raw_client, "POST", URL, json=body_of(stream=True))
        # The last event of a body that ended cleanly counts without its blank line.
        if position < first_output - 2:
            check_error(
                httpx.Response(received.status, headers=received.headers, content=received.raw),
                502,
                "upstream_error",
                "server_error",
            )
            continue
        if received.status == 502:
            assert position < first_output + 1
            continue
        assert (received.status, received.last["type"]) == (200, "error"), position
        assert received.last["code"] == "upstream_interrupted"
        assert set(received.last) == {"type", "code", "message", "param", "sequence_number"}
        passed_on = b"".join(received.raw.split(b"event: error\n")[:-1])
        assert SHORT_WHOLE.startswith(passed_on)
        assert received.last["sequence_number"] == received.events[-2]["sequence_number"] + 1


async def test_a_document_is_passed_on_byte_for_byte(
    app: HostedApp, raw_client: httpx.AsyncClient, upstream: RawUpstream
) -> None:
    document = (
        '{ "id" : "resp_1", "object":"response","status":"completed","model":"m","output":[{"x":"grün \\u00fc 🌿"}],\n'
        f'"usage":{json.dumps(USAGE)},"unknown":[0.10,123456789012345678901234567890] }}'
    ).encode()
    upstream.head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(document)
    upstream.writes = [document[:30], document[30:]]
    answer = await raw_client.post(URL, json=body_of())
    assert (answer.status_code, answer.content) == (200, document)
    record = await record_of(app, answer.headers["x-request-id"])
    assert (record["gen_ai.usage.input_tokens"], record["gen_ai.usage.output_tokens"]) == (7, 3)
    assert record["gen_ai.response.id"] == "resp_1"


async def test_the_request_is_passed_on_value_by_value(raw_client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    upstream.set_chunked(WHOLE, whole=True)
    members = (
        b'"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:,"}]}],"temperature":0.10,'
        b'"tools":[ {"type":"function","name":"f","parameters":{"const":1.0}} ],"store":false,"include":["x"],'
        b'"metadata":{"\\ud83d\\ude00":"\\u2028"},"unknown":[1e400,-0.0],"stream":true,"previous_response_id":"resp_0"'
    )
    answer = await raw_client.post(URL, content=b'{"model":"%b",%b}' % (DEFAULT_DEPLOYMENT.encode(), members))
    assert answer.status_code == 200
    assert members in upstream.bodies[0]
    assert json.loads(upstream.bodies[0])["max_output_tokens"] == 16384


# ── Every failure ────────────────────────────────────────────────────────────────────────────────────────────────────

FAILED: Final = {
    f"failed-{name.removeprefix('failed-')}": name
    for name in faults.FAULTS
    if name.startswith("failed-") and name not in ("failed-null", "failed-then-error")
}
UPSTREAM_ERROR: Final = Refused(502, "upstream_error")
# Outcomes that differ from those of `/stream`, or that only this wire has.
OF_THIS_WIRE: Final[dict[str, Refused | Interrupted | Complete]] = {
    "400": Refused(400, "invalid_value"),
    "refusal": Complete(""),
    "content-type": Complete(),
    "no-finish": Interrupted(502, "upstream_interrupted", TEXT),
    "length-midway": Complete("".join(TOKENS[:5]), "max_output_tokens"),
    "filter-midway": Complete("".join(TOKENS[:5]), "content_filter"),
    "previous-unknown": Refused(400, "previous_response_not_found"),
    "failed-then-error": Refused(429, "rate_limited"),
    "error-flat": Interrupted(502, "upstream_error"),
    "no-deltas": Complete(""),
    "no-close": Complete(),
    "unknown-event": Complete(),
    "keepalive": Complete(),
    "no-event-name": Complete(),
    "done-marker": Complete(),
    "no-sequence": Complete(),
    "sequence-gap": Complete(),
}
WITHOUT_NUMBERS: Final = (
    "no-sequence",
    "sequence-gap",
    "unknown-event",
    "keepalive",
    "no-close",
    "no-deltas",
    "no-role",
)
EXPECTED: Final[dict[str, Refused | Interrupted | Complete]] = {
    fault: outcome
    for fault, outcome in (OUTCOMES | OF_THIS_WIRE).items()
    if all("responses" in injection.fault.wires for injection in faults.parse(fault))
    # What a text decoder makes of these is no matter of a wire that passes everything on.
    and fault not in ("invalid-utf8", "lone-surrogate", "empty-content", "null-content", "surrogates", "double-finish")
}


@pytest.fixture(scope="module")
def faulty_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with two deployments for each fault, one for a stream and one for a document."""
    names = [*EXPECTED, *FAILED.values()]
    return functions_app(
        env=app_settings
        | {
            "AZURE_OPENAI_DEPLOYMENTS": ",".join(f"{fault}/{it}" for fault in names for it in ("stream", "document")),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": "10",
            "MAX_OUTPUT_TOKENS": "1000000",
        }
    )


async def both(app: HostedApp, service: ModelService, fault: str) -> tuple[Received, httpx.Response]:
    """The stream and the document that a client receives for a fault."""
    service.answer(TOKENS)
    service.tokens_per_write = 3
    service.faults.update({f"{fault}/{it}": fault for it in ("stream", "document")})
    async with app.client() as client:
        return await asyncio.gather(
            stream(client, model=f"{fault}/stream"), client.post(URL, json=body_of(model=f"{fault}/document"))
        )


def as_response(received: Received) -> httpx.Response:
    return httpx.Response(received.status, headers=received.headers, content=received.raw)


@pytest.mark.parametrize("fault", EXPECTED)
async def test_fault_of_the_model_service(faulty_app: HostedApp, model_service: ModelService, fault: str) -> None:
    outcome = EXPECTED[fault]
    received, document = await both(faulty_app, model_service, fault)
    match outcome:
        case Refused():
            check_refused(as_response(received), outcome)
        case Interrupted():
            assert received.text == outcome.text
            assert (received.last["type"], received.last["code"]) == ("error", outcome.code)
            check_numbers(received)
        case Complete():
            assert received.text == outcome.text
            if outcome.finish_reason in ("max_output_tokens", "content_filter"):
                assert received.last["type"] == "response.incomplete"
                assert received.last["response"]["incomplete_details"]["reason"] == outcome.finish_reason
            else:
                assert received.last["type"] == "response.completed"
            if fault not in WITHOUT_NUMBERS:
                check_numbers(received)
    if document.status_code == 200:
        assert not isinstance(outcome, Refused) or fault in ("error-first", "failed-then-error")
        assert document.json()["object"] == "response"
    else:
        code = "upstream_error" if isinstance(outcome, Complete) else outcome.code
        code = code.replace("upstream_interrupted", "upstream_error")
        kind = "server_error" if isinstance(outcome, Complete) else TYPES.get(outcome.status, "server_error")
        if fault == "failed-then-error":
            code, kind = "upstream_error", "server_error"
        check_error(document, document.status_code, code, kind)
    await eventually(lambda: model_service.open_requests == 0)
    assert len(model_service.requests) == 2, "a request is sent to a deployment once"


@pytest.mark.parametrize("fault", FAILED.values())
async def test_a_failed_response(faulty_app: HostedApp, model_service: ModelService, fault: str) -> None:
    received, document = await both(faulty_app, model_service, fault)
    error = received.last["response"]["error"]
    assert received.last["type"] == "response.failed"
    assert error["code"].replace("_", "-") == fault.removeprefix("failed-")
    assert received.text == "".join(TOKENS[:5])
    check_numbers(received)
    record = await record_of(faulty_app, received.headers["x-request-id"])
    assert record["relay.outcome"] == "failed"
    # The model's own failures are this app's 502; what is wrong with the request is its caller's.
    retryable = {"failed-server-error": 502, "failed-vector-store-timeout": 502, "failed-rate-limit-exceeded": 429}
    assert document.status_code == retryable.get(fault, 400)
    assert record["relay.code"] == document_code(document)


def document_code(document: httpx.Response) -> str:
    code = document.json()["error"]["code"]
    return "invalid_request" if document.status_code == 400 else str(code)


async def test_failures_before_the_upstream_request(limited_app: HostedApp, model_service: ModelService) -> None:
    async with limited_app.client() as client:
        check_error(await client.post(URL, json=body_of(model="unknown")), 404, "model_not_found", TYPES[404])
        check_error(await client.post(URL, json=body_of(user="x" * BODY_LIMIT)), 413, "body_too_large", TYPES[400])
        answer = await client.post(URL, json={"max_output_tokens": 0})
        check_error(answer, 400, "invalid_request", TYPES[400])
        answer = await client.post(URL, content=b"{}", headers={"Content-Type": "text/plain"})
        check_error(answer, 415, "unsupported_media_type", TYPES[400])
        for method, path in (
            ("GET", "/resp.1"),
            ("GET", "/resp%2E%2E"),
            ("DELETE", "/%C3%A4"),
            ("POST", "/a%20b/cancel"),
            ("GET", f"/{'a' * 257}/input_items"),
            ("GET", "/resp_1?unknown=1"),
            ("GET", "/resp_1?stream=maybe"),
        ):
            check_error(await client.request(method, URL + path), 400, "invalid_request", TYPES[400])
    assert model_service.requests == []


async def test_the_output_limit(limited_app: HostedApp, model_service: ModelService) -> None:
    async with limited_app.client() as client:
        for limit in (None, OUTPUT_LIMIT + 5, 20):
            await client.post(URL, json=body_of() if limit is None else body_of(max_output_tokens=limit))
    sent = [request.body["max_output_tokens"] for request in model_service.requests]
    assert sent == [max(OUTPUT_LIMIT, 16), max(OUTPUT_LIMIT, 16), min(20, max(OUTPUT_LIMIT, 16))]


# ── The life of a stream ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_event_is_sent_when_it_arrives(app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(["one", "two", "three"], MANUAL_PACE)
    model_service.release()  # the commit comes with the first output
    body = body_of(model=MANUAL_PACE, stream=True)
    async with app.client() as client, client.stream("POST", URL, json=body) as response:
        received = b""
        chunks = response.aiter_raw()
        for token in (b'"one"', b'"two"', b'"three"'):
            async with asyncio.timeout(30):
                while token not in received:
                    received += await anext(chunks)
            model_service.release()


async def test_disconnect_ends_the_upstream_request(app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(["one", "two", "three"])

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", URL, json=body_of(model=MANUAL_PACE, stream=True)) as response:
            async for _ in response.aiter_raw():
                pass

    async with app.client(headers={"X-Request-Id": "disconnect-response"}) as client:
        reading = asyncio.create_task(read(client))
        await model_service.wait_for(lambda service: service.open_requests)
        model_service.release(2)
        await asyncio.sleep(0.2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await model_service.wait_for(lambda service: service.open_requests == 0, timeout=4)
    assert model_service.requests[0].ended == "aborted"
    record = await record_of(app, "disconnect-response")
    assert record["relay.outcome"] == "cancelled"
    assert (record["gen_ai.usage.output_tokens"], record["relay.usage_estimated"]) == (2, True)
    assert record["gen_ai.usage.input_tokens"] > 0


LATE: Final = {
    "stall-headers": "upstream_timeout",
    "stall-first": "upstream_timeout",
    "cut-first+stall-headers-0.6": "upstream_interrupted",
    "error-first+stall-headers-0.6": "upstream_error",
    "html+stall-headers-0.6": "upstream_error",
    "failed-server-error-0+stall-headers-0.6": "upstream_error",
}


@pytest.mark.parametrize("fault", LATE)
async def test_failure_after_the_commit_is_an_event(
    limited_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    model_service.faults["*"] = fault
    async with limited_app.client() as client:
        received = await stream(client)
    assert received.pings >= 2
    assert received.types == ["error"]
    assert (received.last["code"], received.last["sequence_number"]) == (LATE[fault], 0)
    await eventually(lambda: model_service.open_requests == 0)


async def test_pings_during_a_silence(limited_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(TOKENS)
    model_service.faults["*"] = "stall-first-0.6+stall-midway-0.6"
    async with limited_app.client() as client:
        received = await stream(client)
    assert received.raw.startswith(PING)
    assert received.pings >= 4
    assert (received.text, received.last["type"]) == (TEXT, "response.completed")
    check_numbers(received)


async def test_the_deadline(limited_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 15
    model_service.answer([f"word{number} " for number in range(200)])
    async with limited_app.client() as client:
        began = time.monotonic()
        received = await stream(client)
        assert DEADLINE <= time.monotonic() - began < 6
    assert received.text.startswith("word0 word1 ")
    assert (received.last["type"], received.last["code"]) == ("error", "deadline_exceeded")
    check_numbers(received)
    await eventually(lambda: model_service.open_requests == 0)


async def test_the_addition_is_taken_back(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], upstream: RawUpstream
) -> None:
    """A deployment whose own limit is lower than the app's cap answers all the same, and the app remembers it."""
    app = functions_app(env=app_settings, fresh=True)
    message = "max_output_tokens is too large: 16384. This model supports at most 12288 output tokens."
    error = json.dumps({"error": {"message": message, "param": "max_output_tokens", "code": "invalid_value"}}).encode()
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    refused, accepted = refusal % len(error) + b"Connection: close\r\n\r\n", upstream.head

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        limit = json.loads(await reader.readexactly(length))["max_output_tokens"]
        writer.write(refused + error if limit > 12288 else accepted + WHOLE)
        await writer.drain()
        writer.close()

    upstream.__class__.__call__, original = staticmethod(respond), upstream.__class__.__call__  # type: ignore[method-assign,assignment]
    try:
        async with app.client() as client:
            answer = await client.post(URL, json=body_of(stream=True))
            assert answer.content == WHOLE
            refused_to_caller = await client.post(URL, json=body_of(stream=True, max_output_tokens=13000))
        assert refused_to_caller.status_code == 400, "the caller's own limit is the caller's to correct"
    finally:
        upstream.__class__.__call__ = original  # type: ignore[method-assign]


# ── Several accounts ─────────────────────────────────────────────────────────────────────────────────────────────────

SEED: Final = random.randrange(10**6)


@dataclass
class Accounts:
    """Three accounts, A, B and C, whose models have one name, and one model each that only they have."""

    services: list[ModelService]

    def asked(self) -> str:
        """Who was asked since the last time, in order."""
        records = [
            (it.arrived, name) for name, service in zip("ABC", self.services, strict=True) for it in service.requests
        ]
        for service in self.services:
            service.requests.clear()
        return "".join(name for _, name in sorted(records))


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, ...]]:
    with ExitStack() as stack:
        numbers = []
        for _ in "ABC":
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            numbers.append(reserved.getsockname()[1])
        yield tuple(numbers)


@pytest.fixture
async def accounts(ports: tuple[int, ...]) -> AsyncIterator[Accounts]:
    async with AsyncExitStack() as stack:
        services = [ModelService(port=port, tokens_per_second=0) for port in ports]
        for name, service in zip("ABC", services, strict=True):
            service.answer([f"{name}{number} " for number in range(9)])
            await stack.enter_async_context(service)
        yield Accounts(services)


def pooled(functions_app: Callable[..., HostedApp], ports: tuple[int, ...], **env: str) -> HostedApp:
    backends = [
        {
            "endpoint": f"http://127.0.0.1:{port}/v1/",
            "deployment": model,
            "model": model,
            "name": f"{name}/{model}",
            "priority": priority,
        }
        for priority, (name, port) in enumerate(zip("ABC", ports, strict=True), start=1)
        for model in ("shared", f"only-{name}", "busy")
    ]
    return functions_app(env={"AZURE_OPENAI_BACKENDS": json.dumps(backends)} | env, fresh=True)


@pytest.fixture(scope="module")
def pooled_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """The app with three accounts, A preferred."""
    return pooled(functions_app, ports)


@pytest.fixture(scope="module")
def other_instance(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """Another instance of the same app, which knows nothing of the first one's responses."""
    return pooled(functions_app, ports, PING_INTERVAL_SECONDS="14")


async def test_a_stored_response_is_found_on_its_account(
    pooled_app: HostedApp, other_instance: HostedApp, accounts: Accounts
) -> None:
    async with pooled_app.client() as client, other_instance.client() as other:
        for streams in (False, True):
            if streams:
                response_id = (await stream(client, model="only-B")).last["response"]["id"]
            else:
                response_id = (await client.post(URL, json=body_of(model="only-B"))).json()["id"]
            assert accounts.asked() == "B"
            found = await client.get(f"{URL}/{response_id}")
            assert (found.status_code, found.json()["id"], accounts.asked()) == (200, response_id, "B")
            elsewhere = await other.get(f"{URL}/{response_id}")
            assert (elsewhere.content, accounts.asked()) == (found.content, "AB")
            listed = await other.get(f"{URL}/{response_id}/input_items", params={"limit": 1, "order": "asc"})
            assert (len(listed.json()["data"]), accounts.asked()) == (1, "B"), "now it knows"
            assert (await other.head(f"{URL}/{response_id}?stream=true")).status_code == 200
            accounts.asked()
            deleted = await client.delete(f"{URL}/{response_id}")
            assert (deleted.json()["deleted"], accounts.asked()) == (True, "B")
            check_error(await client.get(f"{URL}/{response_id}"), 404, "response_not_found", TYPES[404])
            assert accounts.asked() == "BAC"


async def test_a_following_response_is_made_where_the_previous_one_is(
    pooled_app: HostedApp, other_instance: HostedApp, accounts: Accounts
) -> None:
    async with pooled_app.client() as client, other_instance.client() as other:
        first = (await client.post(URL, json=body_of(model="only-C"))).json()
        accounts.asked()
        for streams in (False, True):
            body = body_of(model="shared", previous_response_id=first["id"], stream=streams)
            answer = await client.post(URL, json=body)
            assert (answer.status_code, accounts.asked()) == (200, "C")
            assert b"C0 " in answer.content
        received = await receive(
            other, "POST", URL, json=body_of(model="shared", previous_response_id=first["id"], stream=True)
        )
        assert accounts.asked() == "ABC"
        assert received.text.startswith("C0 ")
        check_numbers(received)
        compacted = await other.post(f"{URL}/compact", json={"model": "shared", "previous_response_id": first["id"]})
        assert compacted.status_code == 200, compacted.text
        accounts.asked()
        lost = await client.post(URL, json=body_of(model="shared", previous_response_id="resp_0"))
        check_error(lost, 400, "previous_response_not_found", TYPES[400])
        assert lost.json()["error"]["param"] == "previous_response_id"
        assert accounts.asked() == "ABC"
        plain = await client.post(URL, json=body_of(model="shared"))
        assert (plain.status_code, accounts.asked()) == (200, "A"), "an account without the response is no worse for it"


async def test_an_account_that_fails_may_have_it(other_instance: HostedApp, accounts: Accounts) -> None:
    async with other_instance.client() as client:
        await accounts.services[1].stop()
        answer = await client.get(f"{URL}/resp_of_no_one")
        check_error(answer, 502, "upstream_error", "server_error")
        assert accounts.asked() == "AC"
        await accounts.services[1].start()
        await eventually(lambda: True)
        check_error(await client.get(f"{URL}/resp_of_no_one"), 404, "response_not_found", TYPES[404])


async def test_a_deployment_at_its_limit_keeps_no_stored_response_away(
    pooled_app: HostedApp, accounts: Accounts
) -> None:
    async with pooled_app.client() as client:
        first = (await client.post(URL, json=body_of(model="busy"))).json()
        for service in accounts.services:
            service.faults["busy"] = ["429-30", None]
        check_refused(await client.post(URL, json=body_of(model="busy")), Refused(429, "rate_limited", (29, 30)))
        assert (await client.get(f"{URL}/{first['id']}")).status_code == 200


async def test_nothing_of_a_refused_attempt_reaches_the_caller(
    functions_app: Callable[..., HostedApp], ports: tuple[int, ...], accounts: Accounts
) -> None:
    app = pooled(functions_app, ports)
    async with app.client() as client:
        for fault in (
            "failed-server-error-0",
            "failed-then-error",
            "error-first",
            "cut-first",
            "stall-headers-0.1+cut-first",
            "garbage-first",
            "html",
        ):
            accounts.services[0].faults["shared"] = fault
            received = await stream(client, model="shared")
            assert received.last["type"] == "response.completed", fault
            assert set(received.text.split()) <= {f"{name}{number}" for name in "BC" for number in range(9)}
            check_numbers(received)
            ids = {event["response"]["id"] for event in received.events if "response" in event}
            assert len(ids) == 1
            await asyncio.sleep(2.1)  # the probation ends


async def test_a_response_in_the_background_is_not_failed_over(pooled_app: HostedApp, accounts: Accounts) -> None:
    accounts.services[0].faults["shared"] = ["cut-midway-2", None]
    async with pooled_app.client() as client:
        received = await stream(client, model="shared", background=True)
        assert received.types[0] == "response.created"
        response_id = received.events[0]["response"]["id"]
        number = received.events[-2]["sequence_number"]
        rest = await receive(client, "GET", f"{URL}/{response_id}", params={"stream": "true", "starting_after": number})
    assert accounts.asked().endswith("A")
    assert [event["sequence_number"] for event in rest.events] == list(range(number + 1, number + 1 + len(rest.events)))
    assert rest.last["type"] == "response.completed"
