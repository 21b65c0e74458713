"""Every way to fail: each row of the contract's table of errors, and each fault of the model service, by format."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from local import faults
from local.model_service import ModelService
from tests.end_to_end.answers import DOCUMENT, FORMATS, NDJSON, PLAIN, SSE, STREAMS, Heard, ask, whole
from tests.end_to_end.hosting import HostedApp, eventually

TOKENS = ["Leaves", " of", " gr\u00fcn", " \U0001f33f", ",", " and", " one", " more", "\n", "line", "."]
WORDS = "".join(TOKENS)
FIRST_FIVE = "".join(TOKENS[:5])
SILENCE = 1.0  # seconds that the model service may be silent


@dataclass(frozen=True)
class Refused:
    """Nothing of an answer came: the problem with its own status."""

    status: int
    code: str
    retry_after: tuple[int, ...] = ()  # either of these; none at all when empty
    content_filter: dict[str, Any] | None = None


@dataclass(frozen=True)
class Interrupted:
    """These words came, then an `error`; where nothing is sent before the end, the problem with its own status."""

    status: int
    code: str
    text: str = FIRST_FIVE


@dataclass(frozen=True)
class Complete:
    """These words came, then `done`."""

    text: str = WORDS
    finish_reason: str | None = "stop"
    usage: bool = True
    content_filter: dict[str, Any] | None = None


VIOLENCE = {"violence": {"filtered": True, "severity": "medium"}}
UPSTREAM_ERROR = Refused(502, "upstream_error")
UPSTREAM_AUTH = Refused(502, "upstream_auth")
UPSTREAM_TIMEOUT = Refused(504, "upstream_timeout")
CUT = Interrupted(502, "upstream_interrupted")


def words_of(fault: str) -> str:
    """The answer that a fault of its own makes."""
    (injection,) = faults.parse(fault)
    assert injection.fault.text is not None
    return "".join(injection.fault.text(injection.arguments))


# What a caller sees of each fault, the last one of a name. The arguments (`429-7`) are this table's choice.
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
    "stall-headers": UPSTREAM_TIMEOUT,
    "stall-first": UPSTREAM_TIMEOUT,
    "stall-midway": Interrupted(504, "upstream_timeout"),
    "cut-headers": UPSTREAM_ERROR,
    "cut-first": UPSTREAM_ERROR,
    "stall-midway-0.1+cut-midway": CUT,
    "reset-headers": UPSTREAM_ERROR,
    "stall-midway-0.1+reset-midway": CUT,
    "end-midway": CUT,
    "no-done": Interrupted(502, "upstream_interrupted", WORDS),
    "no-finish": Complete(finish_reason=None),
    "filter-midway": Complete(FIRST_FIVE, "content_filter", content_filter=VIOLENCE),
    "error-first": UPSTREAM_ERROR,
    "error-midway": Interrupted(502, "upstream_error"),
    "garbage-first": UPSTREAM_ERROR,
    "garbage-midway": Interrupted(502, "upstream_error"),
    "html": UPSTREAM_ERROR,
    "empty": UPSTREAM_ERROR,
    "content-type": UPSTREAM_ERROR,
    # These come before the finish and before [DONE] as well.
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
    "comments": Complete(),
    "crlf": Complete(),
    "cr": Complete(),
    "no-space": Complete(),
    "data-lines": Complete(),
    "fields": Complete(),
    "bytes": Complete(),
    "split-1": Complete(),
    "one-write": Complete(),
    "long-100000": Complete(words_of("long-100000")),
    "huge-chunk": Complete(words_of("huge-chunk")),
    "flood-20000": Complete(words_of("flood-20000")),
    "silent": Complete(""),
}


def alias(fault: str, form: str) -> str:
    """A deployment that commits the fault for one format alone, so that one's refusal does not rest another."""
    return f"{fault}/{FORMATS.index(form)}"


@pytest.fixture(scope="module")
def faulty_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a deployment for each fault and format."""
    deployments = [alias(fault, form) for fault in OUTCOMES for form in FORMATS]
    return functions_app(
        env=app_settings
        | {
            "AZURE_OPENAI_DEPLOYMENTS": ",".join(deployments),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE),
            "COMMIT_WAIT_SECONDS": "10",
            "MAX_OUTPUT_TOKENS": "1000000",
        }
    )


@pytest.fixture
async def faulty(faulty_app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app with the faults planned."""
    model_service.answer(TOKENS)
    model_service.tokens_per_write = 3
    model_service.faults.update({alias(fault, form): fault for fault in OUTCOMES for form in FORMATS})
    async with faulty_app.client() as client:
        yield client


def test_the_table_has_every_fault() -> None:
    assert {faults.parse(name)[-1].fault.name for name in OUTCOMES} == set(faults.FAULTS)


@pytest.mark.parametrize("fault", OUTCOMES)
async def test_a_fault_of_the_model_service(faulty: httpx.AsyncClient, model_service: ModelService, fault: str) -> None:
    outcome = OUTCOMES[fault]
    for form, heard in zip(
        FORMATS,
        await asyncio.gather(*[ask(faulty, form, model=alias(fault, form)) for form in FORMATS]),
        strict=True,
    ):
        match outcome:
            case Refused():
                check_refusal(heard, outcome.status, outcome.code, outcome.retry_after)
                assert heard.problem is not None
                assert heard.problem.get("content_filter") == outcome.content_filter
            case Interrupted():
                check_interruption(heard, form, outcome)
            case Complete():
                check_completion(heard, form, outcome)
    await eventually(lambda: model_service.open_requests == 0)
    assert len(model_service.requests) == len(FORMATS), "one request asks one deployment once"


def check_refusal(heard: Heard, status: int, code: str, retry_after: tuple[int, ...] = ()) -> None:
    problem = heard.problem
    assert problem is not None, heard
    assert (heard.status, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:problem-type:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == heard.headers["x-request-id"]
    assert heard.headers["content-type"] == "application/problem+json"
    assert heard.headers["cache-control"] == "no-store"
    if retry_after:
        assert problem["retry_after"] in retry_after
        assert heard.headers["retry-after"] == str(problem["retry_after"])
    else:
        assert "retry_after" not in problem
        assert "retry-after" not in heard.headers


def check_interruption(heard: Heard, form: str, outcome: Interrupted) -> None:
    if form == DOCUMENT:
        check_refusal(heard, outcome.status, outcome.code)
        return
    assert heard.status == 200
    assert heard.text == outcome.text
    if form == PLAIN:
        assert heard.broken, "a cut answer passed for a complete one"
        return
    assert not heard.broken
    assert heard.endings == 1
    assert heard.error is not None
    assert (heard.error["code"], heard.error["status"]) == (outcome.code, outcome.status)
    assert heard.error["request_id"] == heard.headers["x-request-id"]
    assert heard.error["title"]
    assert heard.error["detail"]


def check_completion(heard: Heard, form: str, outcome: Complete) -> None:
    assert heard.status == 200, heard.problem
    assert not heard.broken
    assert heard.endings == 1
    if form == PLAIN:
        assert heard.text == outcome.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return
    assert whole(heard.text) == outcome.text
    assert heard.done is not None
    assert heard.done["finish_reason"] == outcome.finish_reason
    assert heard.done["model"] == "gpt-5.4-mini-2026-03-17"
    assert heard.done["id"].startswith("chatcmpl-")
    assert heard.done.get("content_filter") == outcome.content_filter
    assert (heard.done["usage"] is not None) == outcome.usage
    if outcome.usage:
        assert heard.done["usage"]["output_tokens"] >= 0
        assert heard.done["usage"]["input_tokens"] > 0


# ── After the commit ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hasty_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app that answers 200 soon, pings often and ends early."""
    return functions_app(
        env=app_settings
        | {
            "COMMIT_WAIT_SECONDS": "0.1",
            "PING_INTERVAL_SECONDS": "0.15",
            "STREAM_DEADLINE_SECONDS": "1.5",
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "0.8",
        }
    )


LATE = {
    "stall-headers": "upstream_timeout",
    "stall-first": "upstream_timeout",
    "cut-first+stall-headers-0.4": "upstream_interrupted",
    "error-first+stall-headers-0.4": "upstream_error",
    "garbage-first+stall-headers-0.4": "upstream_error",
    "html+stall-headers-0.4": "upstream_error",
}


@pytest.mark.parametrize("fault", LATE)
async def test_what_fails_after_the_commit_is_an_event(
    hasty_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    model_service.faults["*"] = fault
    async with hasty_app.client() as client:
        answers = await asyncio.gather(*[ask(client, form) for form in STREAMS])
    for form, heard in zip(STREAMS, answers, strict=True):
        assert heard.status == 200
        assert heard.text == ""
        if form == PLAIN:
            assert heard.broken
            assert heard.raw == b""
            continue
        assert heard.endings == 1
        assert heard.error is not None
        assert heard.error["code"] == LATE[fault]
        assert heard.pings >= (2 if form == SSE else 0)
    await eventually(lambda: model_service.open_requests == 0)


async def test_the_deadline_ends_a_stream(hasty_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 20
    model_service.answer([f"word{number} " for number in range(200)])
    began = asyncio.get_running_loop().time()
    async with hasty_app.client() as client:
        answers = await asyncio.gather(*[ask(client, form) for form in FORMATS])
    assert 1.3 < asyncio.get_running_loop().time() - began < 3
    for form, heard in zip(FORMATS, answers, strict=True):
        if form == DOCUMENT:
            check_refusal(heard, 504, "deadline_exceeded")
            continue
        assert heard.status == 200
        assert heard.text.startswith("word0 word1 ")
        if form == PLAIN:
            assert heard.broken
        else:
            assert heard.error is not None
            assert heard.error["code"] == "deadline_exceeded"
    await model_service.wait_for(lambda service: service.open_requests == 0, timeout=1)
    assert {record.ended for record in model_service.requests} == {"aborted"}


# ── Rows of the contract's table that need no fault ──────────────────────────────────────────────────────────────────


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
async def test_a_body_that_is_not_as_it_should_be(
    caller: httpx.AsyncClient, model_service: ModelService, body: bytes, code: str
) -> None:
    answer = await caller.post("/stream", content=body, headers={"Content-Type": "application/json"})
    check_refusal(heard_at_once(answer), 400, code)
    assert model_service.requests == []


async def test_an_unknown_field_is_named(caller: httpx.AsyncClient) -> None:
    problem = (await caller.post("/stream", json={"input": "x", "promt": "y"})).json()
    assert problem["errors"] == [{"field": "promt", "message": "is not a field of this request; leave it out"}]


async def test_a_multitude_of_wrong_fields_gets_a_short_answer(caller: httpx.AsyncClient) -> None:
    body = b'{"input": "x", ' + b",".join(b'"field%d": 0' % number for number in range(50_000)) + b"}"
    answer = await caller.post("/stream", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert len(answer.content) < 8192
    assert answer.json()["errors"]


async def test_an_unknown_model(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    check_refusal(
        heard_at_once(await caller.post("/stream", json={"input": "x", "model": "y"})), 404, "model_not_found"
    )
    assert model_service.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "multipart/form-data; boundary=application/json"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "identity, gzip"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
async def test_a_body_of_another_kind(caller: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await caller.post("/stream", content=b'{"input": "x"}', headers=headers)
    check_refusal(heard_at_once(answer), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON;charset=utf-8", "application/problem+json", "application/json ; x=y", None],
)
async def test_a_body_of_the_right_kind(caller: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert (await caller.post("/stream", content=b'{"input": "x"}', headers=headers)).status_code == 200


# ── The size of the body ─────────────────────────────────────────────────────────────────────────────────────────────

LIMIT = 2000


@pytest.fixture(scope="module")
def narrow_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app that takes small bodies only."""
    return functions_app(env=app_settings | {"MAX_BODY_BYTES": str(LIMIT)})


def body_of(size: int) -> bytes:
    empty = len(json.dumps({"input": ""}))
    return json.dumps({"input": "x" * (size - empty)}).encode()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413), (3_000_000, 413)])
async def test_the_limit_of_the_body(
    narrow_app: HostedApp, model_service: ModelService, *, size: int, status: int, chunked: bool
) -> None:
    body = body_of(size)
    assert len(body) == size

    async def in_pieces() -> AsyncIterator[bytes]:
        for at in range(0, size, 1500):
            yield body[at : at + 1500]

    async with narrow_app.client() as client:
        answer = await client.post(
            "/stream", content=in_pieces() if chunked else body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status
        if status == 413:
            check_refusal(heard_at_once(answer), 413, "body_too_large")
            assert str(LIMIT) in answer.json()["detail"]
        # And the next one is served.
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200


async def test_a_body_over_the_limit_is_refused_before_its_end(
    narrow_app: HostedApp, model_service: ModelService
) -> None:
    reader, writer = await asyncio.open_connection(*narrow_app.address)
    try:
        writer.write(b"POST /stream HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1)))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 413 ")
    finally:
        writer.close()


def heard_at_once(answer: httpx.Response) -> Heard:
    heard = Heard(answer.status_code, answer.headers, answer.content)
    if answer.status_code != 200:
        heard.problem = answer.json()
    return heard


# ── The model service is not there ───────────────────────────────────────────────────────────────────────────────────


async def test_nobody_listens_at_the_endpoint(functions_app: Callable[..., HostedApp]) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        app = functions_app(
            env={"AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{port}/v1/", "AZURE_OPENAI_DEPLOYMENTS": "some"}
        )
        async with app.client() as client:
            for form in (SSE, NDJSON, DOCUMENT):
                heard = await ask(client, form)
                check_refusal(heard, 502, "upstream_error")
                assert str(port) not in heard.raw.decode()


async def test_a_wrong_path_at_the_endpoint(
    functions_app: Callable[..., HostedApp], model_service: ModelService
) -> None:
    app = functions_app(
        env={
            "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{model_service.port}/nothing/v1/",
            "AZURE_OPENAI_DEPLOYMENTS": "some",
        }
    )
    async with app.client() as client:
        heard = await ask(client, SSE)
    check_refusal(heard, 503, "not_configured")
