"""Every failure: each row of the contract's table of errors, and each fault of the model service, in every format."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from local.model_service import ModelService, faults
from tests.end_to_end.answers import (
    DOCUMENT,
    FORMATS,
    NDJSON,
    PLAIN,
    SSE,
    STREAMS,
    ReceivedAnswer,
    join_surrogates,
    post_stream,
)
from tests.end_to_end.hosting import HostedApp, eventually

TOKENS = ["Leaves", " of", " gr\u00fcn", " \U0001f33f", ",", " and", " one", " more", "\n", "line", "."]
TEXT = "".join(TOKENS)
FIRST_FIVE = "".join(TOKENS[:5])
SILENCE_TIMEOUT = 1.5  # seconds; a busy machine is not silent for as long


@dataclass(frozen=True)
class Refused:
    """No part of an answer: the problem with its own status."""

    status: int
    code: str
    retry_after: tuple[int, ...] = ()  # one of these; none where this is empty
    content_filter: dict[str, Any] | None = None


@dataclass(frozen=True)
class Interrupted:
    """This text, then an `error` event; in a format that sends nothing before the end, the problem with its status."""

    status: int
    code: str
    text: str = FIRST_FIVE


@dataclass(frozen=True)
class Complete:
    """This text, then `done`."""

    text: str = TEXT
    finish_reason: str | None = "stop"
    usage: bool = True
    content_filter: dict[str, Any] | None = None


VIOLENCE = {"violence": {"filtered": True, "severity": "medium"}}
UPSTREAM_ERROR = Refused(502, "upstream_error")
UPSTREAM_AUTH = Refused(502, "upstream_auth")
UPSTREAM_TIMEOUT = Refused(504, "upstream_timeout")
CUT = Interrupted(502, "upstream_interrupted")


def text_of_fault(fault: str) -> str:
    """The text of a fault that has a text of its own."""
    (injection,) = faults.parse(fault)
    assert injection.fault.text is not None
    return "".join(injection.fault.text(injection.arguments))


# What a client receives for each fault; a combination is there for its last one. The arguments (`429-7`) are arbitrary.
OUTCOMES: dict[str, Refused | Interrupted | Complete] = {
    "400": Refused(400, "invalid_request"),
    "context-length": Refused(400, "context_length_exceeded"),
    "content-filter": Refused(400, "content_filter", content_filter=VIOLENCE),
    "401": UPSTREAM_AUTH,
    "401-role": UPSTREAM_AUTH,
    "403": UPSTREAM_AUTH,
    "404": Refused(404, "model_not_found"),
    "408": UPSTREAM_TIMEOUT,
    "429-7": Refused(429, "rate_limited", (7,)),
    "429-date-9": Refused(429, "rate_limited", (8, 9)),
    "429-ms-1500": Refused(429, "rate_limited", (2,)),
    "429-x-ms-1500": Refused(429, "rate_limited", (2,)),
    "429-absurd": Refused(429, "rate_limited", (120,)),
    "429-garbled": Refused(429, "rate_limited"),
    "429-none": Refused(429, "rate_limited"),
    "500": UPSTREAM_ERROR,
    "502": UPSTREAM_ERROR,
    "503": UPSTREAM_ERROR,
    "503-after-3": Refused(502, "upstream_error", (3,)),
    "504": UPSTREAM_TIMEOUT,
    "html-always": UPSTREAM_ERROR,
    "error-document": UPSTREAM_ERROR,
    "no-stream-options": Complete(usage=False),
    "no-stream-options-event": Complete(usage=False),
    "no-max-completion-tokens": Complete(),
    "ignores-max-completion-tokens": Complete(),
    "one-limit": Complete(),
    "limit-12288": Complete(),
    "context-8192": Complete(),
    "accepts-empty": Complete(),
    "429-large-1-60": Refused(429, "rate_limited", (60,)),
    "stall-headers": UPSTREAM_TIMEOUT,
    "stall-first": UPSTREAM_TIMEOUT,
    "stall-midway": Interrupted(504, "upstream_timeout"),
    "stall-comments": Interrupted(504, "upstream_timeout"),
    "cut-headers": UPSTREAM_ERROR,
    "cut-first": UPSTREAM_ERROR,
    "stall-midway-0.1+cut-midway": CUT,
    "reset-headers": UPSTREAM_ERROR,
    "stall-midway-0.1+reset-midway": CUT,
    "end-midway": CUT,
    "no-done": Complete(),
    "no-finish": Complete(finish_reason=None),
    "filter-midway": Complete(FIRST_FIVE, "content_filter", content_filter=VIOLENCE),
    "length-midway": Complete(FIRST_FIVE, "length"),
    "refusal": Complete(text_of_fault("refusal")),
    "error-first": UPSTREAM_ERROR,
    "error-midway": Interrupted(502, "upstream_error"),
    "error-event": Interrupted(429, "rate_limited"),
    "error-members": Interrupted(502, "upstream_error"),
    "error-object": Interrupted(502, "upstream_error"),
    "error-bare": Interrupted(429, "rate_limited"),
    "error-choice": Interrupted(502, "upstream_error"),
    "error-finish": Interrupted(502, "upstream_error", TEXT),
    "error-bad-request": Refused(400, "invalid_request"),
    "error-too-long": Refused(400, "context_length_exceeded"),
    "no-chunk": Complete(),
    "no-finish+no-chunk": Interrupted(502, "upstream_error", TEXT),
    "no-answer": UPSTREAM_ERROR,
    "garbage-first": UPSTREAM_ERROR,
    "garbage-midway": Interrupted(502, "upstream_error"),
    "html": UPSTREAM_ERROR,
    "empty": UPSTREAM_ERROR,
    "content-type": Complete(),
    "json-type": Complete(),
    "document": Complete(),
    "unfinished-end": Complete(),
    "stall-midway-0.1+reset-end": Complete(),
    "late-usage": Complete(),
    "pings": Complete(),
    # These also precede the finish and [DONE].
    "invalid-utf8": Complete("".join("caf\ufffd \ufffd\ufffd" + token for token in [*TOKENS, "", ""])),
    "lone-surrogate": Complete("".join("\ud83d" + token for token in [*TOKENS, "", ""])),
    "after-done": Complete(),
    "surrogates": Complete(),
    "escaped": Complete(),
    "async-filter": Complete(),
    "no-filter": Complete(),
    "no-role": Complete(),
    "no-usage": Complete(usage=False),
    "double-finish": Complete(),
    "empty-content": Complete(),
    "null-content": Complete(),
    "thinking": Complete(),
    "comments": Complete(),
    "crlf": Complete(),
    "cr": Complete(),
    "no-space": Complete(),
    "data-lines": Complete(),
    "fields": Complete(),
    "bytes": Complete(),
    "split-1": Complete(),
    "one-write": Complete(),
    "gzip": Complete(),
    "deflate": Complete(),
    "brotli": UPSTREAM_ERROR,
    "header": Complete(),
    "headers": Complete(),
    "error-stall": Refused(429, "rate_limited", (7,)),
    "error-trickle-503": Refused(502, "upstream_error", (7,)),
    "redirect": UPSTREAM_ERROR,
    "no-content": UPSTREAM_ERROR,
    "invalid-chunk": UPSTREAM_ERROR,
    "short-body": UPSTREAM_ERROR,
    "two-lengths": UPSTREAM_ERROR,
    "long-40000": Complete(text_of_fault("long-40000")),
    "huge-chunk": Complete(text_of_fault("huge-chunk")),
    "flood-8000": Complete(text_of_fault("flood-8000")),
    "silent": Complete(""),
}


# A deployment with one of these refuses something that the app adds, and gets the request once more without it.
REPEATED: Final = {
    "no-stream-options",
    "no-stream-options-event",
    "no-max-completion-tokens",
    "one-limit",
    "limit-12288",
    "context-8192",
}


def alias(fault: str, media_type: str) -> str:
    """A deployment with the fault for one format only, so that no other request meets its cool-down."""
    return f"{fault}/{FORMATS.index(media_type)}"


@pytest.fixture
async def faulty_client(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService, fault: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with a deployment for each fault and format, with the faults planned.

    Only where the model service is to be silent does the app soon find it so: it may take long to write a long answer.
    """
    model_service.answer(TOKENS)
    model_service.tokens_per_write = 3
    model_service.faults.update({alias(fault, media_type): fault for fault in OUTCOMES for media_type in FORMATS})
    env = app_settings | {
        "AZURE_OPENAI_DEPLOYMENTS": ",".join(model_service.faults),
        "COMMIT_WAIT_SECONDS": "10",
        "MAX_OUTPUT_TOKENS": "1000000",
    }
    if "stall" in fault:
        env["UPSTREAM_SILENCE_TIMEOUT_SECONDS"] = str(SILENCE_TIMEOUT)
    async with functions_app(env=env).client() as client:
        yield client


def test_every_fault_is_in_the_table() -> None:
    of_this_wire = {name for name, fault in faults.FAULTS.items() if "chat" in fault.wires}
    assert {faults.parse(name)[-1].fault.name for name in OUTCOMES} == of_this_wire


@pytest.mark.parametrize("fault", OUTCOMES)
async def test_fault_of_the_model_service(
    faulty_client: httpx.AsyncClient, model_service: ModelService, fault: str
) -> None:
    outcome = OUTCOMES[fault]
    answers = await asyncio.gather(
        *[post_stream(faulty_client, media_type, model=alias(fault, media_type)) for media_type in FORMATS]
    )
    for media_type, received in zip(FORMATS, answers, strict=True):
        match outcome:
            case Refused():
                check_problem(received, outcome.status, outcome.code, outcome.retry_after)
                assert received.problem is not None
                assert received.problem.get("content_filter") == outcome.content_filter
            case Interrupted():
                check_interruption(received, media_type, outcome)
            case Complete():
                check_completion(received, media_type, outcome)
    await eventually(lambda: model_service.open_requests == 0)
    times = 2 if fault in REPEATED else 1
    assert len(model_service.requests) == len(FORMATS) * times, "how often a request is sent to a deployment"


def check_problem(received: ReceivedAnswer, status: int, code: str, retry_after: tuple[int, ...] = ()) -> None:
    problem = received.problem
    assert problem is not None, received
    assert (received.status, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:problem-type:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == received.headers["x-request-id"]
    assert received.headers["content-type"] == "application/problem+json"
    assert received.headers["cache-control"] == "no-store"
    if retry_after:
        assert problem["retry_after"] in retry_after
        assert received.headers["retry-after"] == str(problem["retry_after"])
    else:
        assert "retry_after" not in problem
        assert "retry-after" not in received.headers


def check_interruption(received: ReceivedAnswer, media_type: str, outcome: Interrupted) -> None:
    if media_type == DOCUMENT:
        check_problem(received, outcome.status, outcome.code)
        return
    assert received.status == 200
    assert received.text == outcome.text
    if media_type == PLAIN:
        assert received.broken, "a cut answer looks complete"
        return
    assert not received.broken
    assert received.endings == 1
    assert received.error is not None
    assert (received.error["code"], received.error["status"]) == (outcome.code, outcome.status)
    assert received.error["request_id"] == received.headers["x-request-id"]
    assert received.error["title"]
    assert received.error["detail"]


def check_completion(received: ReceivedAnswer, media_type: str, outcome: Complete) -> None:
    assert received.status == 200, received.problem
    assert not received.broken
    assert received.endings == 1
    if media_type == PLAIN:
        assert received.text == outcome.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return
    assert join_surrogates(received.text) == outcome.text
    assert received.done is not None
    assert received.done["finish_reason"] == outcome.finish_reason
    assert received.done["model"] == "gpt-5.4-mini-2026-03-17"
    assert received.done["id"].startswith("chatcmpl-")
    assert received.done.get("content_filter") == outcome.content_filter
    assert (received.done["usage"] is not None) == outcome.usage
    if outcome.usage:
        assert received.done["usage"]["output_tokens"] >= 0
        assert received.done["usage"]["input_tokens"] > 0


# ── After the commit ─────────────────────────────────────────────────────────────────────────────────────────────────


DEADLINE: Final = 2.5  # seconds
BODY_LIMIT: Final = 2000  # bytes
OUTPUT_LIMIT: Final = 100  # tokens


@pytest.fixture(scope="module")
def limited_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with short times and low limits."""
    return functions_app(
        env=app_settings
        | {
            "COMMIT_WAIT_SECONDS": "0.25",
            "PING_INTERVAL_SECONDS": "0.1",
            "STREAM_DEADLINE_SECONDS": str(DEADLINE),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "MAX_BODY_BYTES": str(BODY_LIMIT),
            "MAX_OUTPUT_TOKENS": str(OUTPUT_LIMIT),
        }
    )


LATE = {
    "stall-headers": "upstream_timeout",
    "stall-first": "upstream_timeout",
    "cut-first+stall-headers-0.6": "upstream_interrupted",
    "error-first+stall-headers-0.6": "upstream_error",
    "garbage-first+stall-headers-0.6": "upstream_error",
    "html+stall-headers-0.6": "upstream_error",
}


@pytest.mark.parametrize("fault", LATE)
async def test_failure_after_the_commit_is_an_event_where_the_format_has_pings(
    limited_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    model_service.faults["*"] = fault
    async with limited_app.client() as client:
        answers = await asyncio.gather(*[post_stream(client, media_type) for media_type in STREAMS])
    for media_type, received in zip(STREAMS, answers, strict=True):
        if media_type != SSE:
            # A format without pings commits with its first output: the failure keeps its status.
            code = LATE[fault].replace("upstream_interrupted", "upstream_error")
            check_problem(received, 504 if code == "upstream_timeout" else 502, code)
            continue
        assert received.status == 200
        assert received.text == ""
        assert received.endings == 1
        assert received.error is not None
        assert received.error["code"] == LATE[fault]
        assert received.pings >= 2
    await eventually(lambda: model_service.open_requests == 0)


async def test_the_deadline_ends_a_stream(limited_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 15
    model_service.answer([f"word{number} " for number in range(200)])
    began = time.monotonic()
    async with limited_app.client() as client:
        answers = await asyncio.gather(*[post_stream(client, media_type) for media_type in FORMATS])
    assert DEADLINE <= time.monotonic() - began < 6  # of the 6.7 s that the output limit's tokens take
    for media_type, received in zip(FORMATS, answers, strict=True):
        if media_type == DOCUMENT:
            check_problem(received, 504, "deadline_exceeded")
            continue
        assert received.status == 200
        assert received.text.startswith("word0 word1 ")
        if media_type == PLAIN:
            assert received.broken
        else:
            assert received.error is not None
            assert received.error["code"] == "deadline_exceeded"
    await eventually(lambda: model_service.open_requests == 0)
    assert {record.ended for record in model_service.requests} == {"aborted"}


# ── Rows of the table that need no fault ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"input": "caf\xe9"}', "invalid_json"),
        ('{"input": "x"}'.encode("utf-16"), "invalid_json"),
        (b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "invalid_json"),
        (b'{"input": "x", "max_output_tokens": ' + b"9" * 6000 + b"}", "invalid_json"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
        (b'"input"', "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"input": ""}', "invalid_request"),
        (b'{"input": " \\n "}', "invalid_request"),
        (b'{"input": []}', "invalid_request"),
        (b'{"input": 1}', "invalid_request"),
        (b'{"input": "x", "temperature": 3}', "invalid_request"),
        (b'{"input": "x", "temperature": NaN}', "invalid_request"),
        (b'{"input": "x", "max_output_tokens": 0}', "invalid_request"),
        (b'{"input": "x", "prompt": "y"}', "invalid_request"),
    ],
    ids=range(18),
)
async def test_invalid_body(client: httpx.AsyncClient, model_service: ModelService, body: bytes, code: str) -> None:
    answer = await client.post("/stream", content=body, headers={"Content-Type": "application/json"})
    check_problem(received_from(answer), 400, code)
    assert model_service.requests == []


async def test_unknown_field_is_named(client: httpx.AsyncClient) -> None:
    problem = (await client.post("/stream", json={"input": "x", "promt": "y"})).json()
    assert problem["errors"] == [{"field": "promt", "message": "is not a field of this request; leave it out"}]


async def test_many_wrong_fields_get_a_short_response(client: httpx.AsyncClient) -> None:
    body = b'{"input": "x", ' + b",".join(b'"field%d": 0' % number for number in range(50_000)) + b"}"
    answer = await client.post("/stream", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert len(answer.content) < 8192
    assert answer.json()["errors"]


async def test_unknown_model(client: httpx.AsyncClient, model_service: ModelService) -> None:
    check_problem(
        received_from(await client.post("/stream", json={"input": "x", "model": "y"})), 404, "model_not_found"
    )
    assert model_service.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "multipart/media_type-data; boundary=application/json"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "identity, gzip"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
async def test_unsupported_media_type(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post("/stream", content=b'{"input": "x"}', headers=headers)
    check_problem(received_from(answer), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON;charset=utf-8", "application/problem+json", "application/json ; x=y", None],
)
async def test_supported_media_type(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await client.post("/stream", content=b'{"input": "x"}', headers=headers)).status_code == 200


# ── The size of the body ─────────────────────────────────────────────────────────────────────────────────────────────


def body_of(size: int) -> bytes:
    empty = len(json.dumps({"input": ""}))
    return json.dumps({"input": "x" * (size - empty)}).encode()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(BODY_LIMIT, 200), (BODY_LIMIT + 1, 413), (3_000_000, 413)])
async def test_body_limit(
    limited_app: HostedApp, model_service: ModelService, *, size: int, status: int, chunked: bool
) -> None:
    body = body_of(size)
    assert len(body) == size

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 1500):
            yield body[start : start + 1500]

    async with limited_app.client() as client:
        answer = await client.post(
            "/stream", content=chunks() if chunked else body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status
        if status == 413:
            check_problem(received_from(answer), 413, "body_too_large")
            assert str(BODY_LIMIT) in answer.json()["detail"]
        # The next request is answered.
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200


async def test_a_chunked_body_over_the_limit_is_rejected_at_its_end(limited_app: HostedApp) -> None:
    # The app answers as soon as it has read too much, but the host's proxy reads no response before it has sent it all.
    reader, writer = await asyncio.open_connection(*limited_app.address)
    try:
        writer.write(b"POST /stream HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (BODY_LIMIT + 1, b"x" * (BODY_LIMIT + 1)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        writer.write(b"0\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 413 ")
    finally:
        writer.close()


def received_from(response: httpx.Response) -> ReceivedAnswer:
    """The same response, for `check_problem`."""
    received = ReceivedAnswer(response.status_code, response.headers, response.content)
    if response.status_code != 200:
        received.problem = response.json()
    return received


# ── The model service is missing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def unused_port() -> Iterator[int]:
    """A port on which no server listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.fixture(scope="module")
def misdirected_app(functions_app: Callable[..., HostedApp], model_service_port: int, unused_port: int) -> HostedApp:
    """The app with wrong endpoints: there is no server, or no API at the path."""
    endpoints = {
        "no-server": f"http://127.0.0.1:{unused_port}/v1/",
        "wrong-path": f"http://127.0.0.1:{model_service_port}/nothing/v1/",
    }
    backends = [{"endpoint": endpoint, "deployment": name} for name, endpoint in endpoints.items()]
    return functions_app(env={"AZURE_OPENAI_BACKENDS": json.dumps(backends)})


async def test_no_server_at_the_endpoint(misdirected_app: HostedApp, unused_port: int) -> None:
    async with misdirected_app.client() as client:
        for media_type in (SSE, NDJSON, DOCUMENT):
            received = await post_stream(client, media_type, model="no-server")
            check_problem(received, 502, "upstream_error")
            assert str(unused_port) not in received.raw.decode()


async def test_wrong_path_at_the_endpoint(misdirected_app: HostedApp, model_service: ModelService) -> None:
    async with misdirected_app.client() as client:
        received = await post_stream(client, SSE, model="wrong-path")
    check_problem(received, 503, "not_configured")
