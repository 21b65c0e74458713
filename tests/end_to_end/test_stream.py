"""`POST /stream` as it should go: the formats, the headers, the commit, words one by one, byte for byte."""

import asyncio
import json
import random
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local import answers as model_answers
from local.model_service import BY_HAND, ModelService
from tests.end_to_end.answers import DOCUMENT, FORMATS, NDJSON, PLAIN, SSE, STREAMS, ask
from tests.end_to_end.hosting import HostedApp, eventually

# Every plane of Unicode that has characters, line ends of every kind, and what looks like a protocol.
STRANGE = (
    "plain, \u00e9, \u03a9, \u4e2d, \u0627\u0644\u0639, \U0001f33f\U0001f468\u200d\U0001f469\u200d\U0001f467, "
    "\U00010348, \U00020000, \U000e0041, \U000f0000, \U0010fffd | "
    "\n \r \r\n \u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e \x00 \x1f \x7f \ufeff \ufffd \ufffe | "
    'data: {"text":"no"}\n\nevent: done\ndata: {}\n\n: ping\n\nid: 1\nretry: 1\n | "quoted" \\ \\u0041 </script> '
)


# ── Formats and headers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMATS)
async def test_the_words_and_their_end(caller: httpx.AsyncClient, model_service: ModelService, form: str) -> None:
    model_service.answer(["The", " quick", " brown", " fox"])
    heard = await ask(caller, form)
    assert heard.text == "The quick brown fox"
    assert heard.endings == 1
    if form != PLAIN:
        assert heard.done is not None
        assert heard.done["id"].startswith("chatcmpl-")
        assert heard.done == {
            "finish_reason": "stop",
            "model": "gpt-5.4-mini-2026-03-17",
            "usage": heard.done["usage"],
            "id": heard.done["id"],
        }
        assert heard.done["usage"]["output_tokens"] == 4
        assert heard.done["usage"]["input_tokens"] > 0


async def test_server_sent_events_to_the_byte(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["The", " quick"])
    heard = await ask(caller, SSE)
    assert re.fullmatch(
        rb'data: \{"text":"The quick"\}\n\n'
        rb'event: done\ndata: \{"finish_reason":"stop","model":"gpt-5\.4-mini-2026-03-17",'
        rb'"usage":\{[^\n]*\},"id":"[^\n]*"\}\n\n',
        heard.raw,
    )


async def test_ndjson_to_the_byte(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["The", " quick"])
    heard = await ask(caller, NDJSON)
    assert re.fullmatch(rb'\{"type":"text","text":"The quick"\}\n\{"type":"done","finish_reason":[^\n]*\}\n', heard.raw)


@pytest.mark.parametrize("form", STREAMS)
async def test_the_headers_of_a_stream(caller: httpx.AsyncClient, form: str) -> None:
    headers = (await ask(caller, form)).headers
    assert headers["content-type"].partition(";")[0] == form
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"]
    assert "content-length" not in headers
    assert "content-encoding" not in headers


async def test_the_headers_of_a_document(caller: httpx.AsyncClient) -> None:
    heard = await ask(caller, DOCUMENT)
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["cache-control"] == "no-store"
    assert heard.headers["x-content-type-options"] == "nosniff"
    assert int(heard.headers["content-length"]) == len(heard.raw)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, SSE),
        ("*/*", SSE),
        ("application/json", SSE),
        ("text/html,application/xhtml+xml,*/*;q=0.8", SSE),
        ("", SSE),
        (";;;,,,=q", SSE),
        ("text/plain;q=0", SSE),
        ("text/plain;q=nonsense", SSE),
        ("text/event-stream", SSE),
        ("text/plain", PLAIN),
        ("TEXT/PLAIN; charset=utf-8", PLAIN),
        ("application/x-ndjson", NDJSON),
        ("application/jsonl", "application/jsonl"),
        ("application/json, text/plain", PLAIN),
        ("text/plain;q=0.2, application/x-ndjson;q=0.9", NDJSON),
        ("text/event-stream;q=0.3, text/plain;q=0.4", PLAIN),
        ("text/event-stream, text/plain", SSE),
    ],
)
async def test_accept_picks_the_format(caller: httpx.AsyncClient, accept: str | None, media_type: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    request = caller.build_request("POST", "/stream", json={"input": "x"}, headers=headers)
    if accept is None:
        del request.headers["accept"]
    answer = await caller.send(request)
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == media_type


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_reaches_no_function(
    caller: httpx.AsyncClient, model_service: ModelService, method: str
) -> None:
    assert (await caller.request(method, "/stream")).status_code == 404
    assert model_service.requests == []


# ── What the model service is asked ──────────────────────────────────────────────────────────────────────────────────


async def test_all_that_the_caller_says_reaches_the_model(
    caller: httpx.AsyncClient, model_service: ModelService
) -> None:
    conversation = [
        {"role": "developer", "content": "one"},
        {"role": "user", "content": "two " + STRANGE},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "four"},
    ]
    await ask(
        caller,
        SSE,
        {"input": conversation, "instructions": "Be brief.", "temperature": 0.5, "top_p": 1, "max_output_tokens": 7},
        reasoning_effort="low",
    )
    assert model_service.requests[-1].body == {
        "model": "gpt-5.4-mini",
        "messages": [{"role": "system", "content": "Be brief."}, *conversation],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 1,
        "reasoning_effort": "low",
    }


async def test_nothing_is_sent_that_was_not_given(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    await ask(caller, SSE, "hello")
    assert model_service.requests[-1].body == {
        "model": "gpt-5.4-mini",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 16384,
    }


async def test_the_output_limit_is_capped(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    await ask(caller, SSE, max_output_tokens=10**9)
    assert model_service.requests[-1].body["max_completion_tokens"] == 16384


async def test_a_reasoning_model_is_not_asked_for_what_it_refuses(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    app = functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": "o3"})
    async with app.client() as client:
        assert (await ask(client, SSE)).endings == 1
        heard = await ask(client, SSE, temperature=0.2)
    assert heard.problem is not None
    assert (heard.status, heard.problem["code"]) == (400, "invalid_request")
    assert "temperature" in json.dumps(heard.problem["errors"])


# ── The request's id ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_may_name_the_request(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    answer = await caller.post("/stream", json={"input": "x"}, headers={"X-Request-Id": "order-66:abc.DEF_1"})
    assert answer.headers["x-request-id"] == "order-66:abc.DEF_1"
    assert model_service.requests[-1].headers["x-ms-client-request-id"] == "order-66:abc.DEF_1"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "short",
        "x" * 129,
        "with space in",
        "<script>alert(1)</script>",
        "a\tbcdefghi",
        "-bcdefghi",
        "h\u00f6flichst",
    ],
)
async def test_a_name_that_is_no_plain_word_is_replaced(caller: httpx.AsyncClient, given: str) -> None:
    answer = await caller.post("/stream", json={"input": "x"}, headers={"X-Request-Id": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.headers["x-request-id"])


# ── One by one ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", STREAMS)
async def test_each_token_is_seen_before_the_next_is_made(
    caller: httpx.AsyncClient, model_service: ModelService, form: str
) -> None:
    tokens = [f"<{number}>" for number in range(12)]
    model_service.answer(tokens)
    seen = ""
    request = caller.stream("POST", "/stream", json={"input": "x", "model": BY_HAND}, headers={"Accept": form})
    opening = asyncio.create_task(request.__aenter__())
    await model_service.wait_for(lambda service: service.open_requests == 1)
    model_service.release()
    response = await asyncio.wait_for(opening, 5)
    pieces = response.aiter_text()
    for number, token in enumerate(tokens):
        if number:
            model_service.release()
        while token not in seen:
            seen += await asyncio.wait_for(anext(pieces), 5)
        # What the caller has now, the model made before it made anything else.
        assert model_service.requests[-1].tokens == number + 1
        assert f"<{number + 1}>" not in seen
    model_service.release()
    seen += "".join([piece async for piece in pieces])
    assert (seen == "".join(tokens)) if form == PLAIN else ("done" in seen)
    await request.__aexit__(None, None, None)


async def test_words_are_not_late(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.tokens_per_second = 50
    tokens = [f"<{number}>" for number in range(25)]
    model_service.answer(tokens)
    late: list[float] = []
    seen = ""
    async with caller.stream("POST", "/stream", json={"input": "x"}) as response:
        async for piece in response.aiter_text():
            now = time.monotonic()
            seen += piece
            made = model_service.requests[-1].token_times
            while len(late) < len(tokens) and tokens[len(late)] in seen:
                late.append(now - made[len(late)])
    assert len(late) == len(tokens)
    assert sorted(late)[len(late) // 2] < 0.05


# ── The commit, and the pings ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def patient_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    return functions_app(env=app_settings | {"COMMIT_WAIT_SECONDS": "0.3", "PING_INTERVAL_SECONDS": "0.2"})


async def test_the_status_comes_when_the_wait_is_over_and_pings_fill_the_silence(
    patient_app: HostedApp, model_service: ModelService
) -> None:
    async with patient_app.client() as client:
        await ask(client, SSE)  # the first one waits for what the app imports
    model_service.faults["*"] = "stall-headers-1.3"
    began = time.monotonic()
    async with (
        patient_app.client() as client,
        client.stream("POST", "/stream", json={"input": "x"}) as response,
    ):
        assert 0.2 < time.monotonic() - began < 1
        pieces = response.aiter_raw()
        assert await anext(pieces) == b": ping\n\n", "a first byte takes the headers along"
        assert time.monotonic() - began < 1
        raw = b"".join([piece async for piece in pieces])
    assert 3 <= raw.count(b": ping\n\n") <= 8
    assert raw.endswith(b"\n\n")
    assert raw.count(b"event: done") == 1


async def test_pings_between_tokens_disturb_nothing(patient_app: HostedApp, model_service: ModelService) -> None:
    model_service.faults["*"] = "stall-midway-1"
    model_service.answer(["a", "b", "c", "d", "e", "f"])
    async with patient_app.client() as client:
        answers = dict(zip(STREAMS, await asyncio.gather(*[ask(client, form) for form in STREAMS]), strict=True))
    assert {heard.text for heard in answers.values()} == {"abcdef"}
    assert answers[SSE].pings >= 2
    assert answers[NDJSON].raw.count(b"\n") == 3, "two reads and the end: the format has no pings"


async def test_no_ping_while_words_flow(patient_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 20
    model_service.answer(["word "] * 20)
    async with patient_app.client() as client:
        assert (await ask(client, SSE)).pings == 0


# ── Byte for byte ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "fault", [None, "split-3", "bytes", "escaped", "surrogates+split-4", "cr+split-5", "data-lines+crlf"]
)
async def test_strange_text_arrives_as_it_was_made(
    caller: httpx.AsyncClient, model_service: ModelService, form: str, fault: str | None
) -> None:
    model_service.answer(STRANGE)
    model_service.faults["*"] = fault
    heard = await ask(caller, form)
    assert heard.text == STRANGE
    assert heard.endings == 1


async def test_a_megabyte_arrives_as_it_was_made(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    dice = random.Random(11)
    text = "".join(
        chr(dice.choice((dice.randrange(0x20, 0x7F), dice.randrange(0xA0, 0xD800), dice.randrange(0x10000, 0x110000))))
        for _ in range(400_000)
    )
    assert len(text.encode()) > 1_000_000
    pieces = [text[at : at + 50] for at in range(0, len(text), 50)]
    model_service.answer(pieces)
    answers = await asyncio.gather(*[ask(caller, form) for form in FORMATS])
    assert [heard.text == text for heard in answers] == [True] * len(FORMATS)


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    tokens=st.lists(UNICODE, min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    frame=st.sampled_from(
        ["", "crlf+", "cr+", "no-space+", "data-lines+", "comments+", "fields+", "escaped+", "surrogates+"]
    ),
)
async def test_any_text_in_any_pieces(
    caller: httpx.AsyncClient, model_service: ModelService, tokens: list[str], seed: int, frame: str
) -> None:
    model_service.answer(tokens)
    model_service.faults["*"] = f"{frame}split-{seed}"
    for form, heard in zip(FORMATS, await asyncio.gather(*[ask(caller, form) for form in FORMATS]), strict=True):
        assert heard.text == "".join(tokens), form
        assert heard.endings == 1


# ── The seed article's own command ───────────────────────────────────────────────────────────────────────────────────


def curl(url: str, *more: str) -> subprocess.Popen[bytes]:
    """The command of the article that this app began as, but for the address; `more` goes before it."""
    return subprocess.Popen(
        [
            *("curl", *more, "-L", "-H", "Accept: application/json", "-H", "Connection: close"),
            *("-H", "Content-type: application/json", "-X", "POST"),
            *("-d", '{"input": "write a random 100 word paragraph"}', url, "--no-buffer", "--verbose"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def read_until(process: subprocess.Popen[bytes], count: int) -> bytes:
    assert process.stdout is not None
    output = b""
    while output.count(b"data: ") < count:
        chunk = await asyncio.wait_for(asyncio.to_thread(process.stdout.read1), 5)  # type: ignore[attr-defined]
        assert chunk, "the end came before the words"
        output += chunk
    return output


async def test_the_articles_own_command_shows_words_as_they_are_made(
    app: HostedApp, model_service: ModelService
) -> None:
    model_service.tokens_per_second = 60
    process = curl(f"{app.url}/stream")
    try:
        await read_until(process, 3)
        assert model_service.open_requests == 1, "words came only when the answer was complete"
        rest, talk = await asyncio.to_thread(process.communicate, timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0
    assert b"HTTP/1.1 200 OK" in talk
    assert b"event: done\n" in rest
    words = model_answers.compose([{"role": "user", "content": "write a random 100 word paragraph"}])
    assert len(words.split()) == 100
    assert model_service.requests[-1].body["messages"][-1]["content"] == "write a random 100 word paragraph"


@pytest.mark.parametrize(("accept", "end"), [("text/plain", None), ("application/x-ndjson", b'{"type":"done"')])
async def test_curl_shows_plain_words_and_lines_of_json(
    app: HostedApp, model_service: ModelService, accept: str, end: bytes | None
) -> None:
    model_service.answer("Words, and words.\n")
    command = ["curl", "-sN", f"{app.url}/stream", "-H", f"Accept: {accept}", "--json", '{"input": "x"}']
    # `--json` sets an Accept of its own, unless one is given.
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=10, check=True)
    if end is None:
        assert done.stdout == b"Words, and words.\n"
    else:
        assert done.stdout.splitlines()[-1].startswith(end)


# ── Headers that should do nothing ───────────────────────────────────────────────────────────────────────────────────


async def raw_answer(app: HostedApp, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*app.address)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_an_invocation_id_from_outside_harms_nobody(app: HostedApp, model_service: ModelService) -> None:
    async with app.client() as client:
        for given in ("", "x", "00000000-0000-0000-0000-000000000000", "a" * 4000):
            answer = await client.post("/stream", json={"input": "x"}, headers={"x-ms-invocation-id": given})
            assert answer.status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 14\r\nContent-Length: 15",
        b"Content-Length: 14\r\nTransfer-Encoding: chunked",
        b"Content-Length: -1",
        b"Content-Length: 0x0e",
        b"Content-Length: " + b"9" * 5000,
        b"Transfer-Encoding: chunked, identity",
        b"X-Request-Id: abcdefgh\r\n\tX: folded",
        b"Bad Header: x\r\nContent-Length: 14",
        b"X-Long: " + b"x" * 100_000,
    ],
    ids=range(9),
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(
    app: HostedApp, model_service: ModelService, head: bytes
) -> None:
    request = b"POST /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + head + b'\r\n\r\n{"input": "x"}'
    answer = await raw_answer(app, request)
    assert re.match(rb"HTTP/1\.[01] 4\d\d ", answer) or answer == b""
    assert model_service.requests == []


# ── What must not be said ────────────────────────────────────────────────────────────────────────────────────────────

MARK = "xyzzy-plugh-4711"


async def test_no_prompt_no_answer_and_no_key_is_printed(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    key, upstream_key = f"function-{MARK}", f"upstream-{MARK}"
    app = functions_app(env=app_settings | {"AZURE_OPENAI_API_KEY": upstream_key}, key=key, fresh=True)
    model_service.answer(["Answer ", MARK])
    cases: list[dict[str, Any]] = [
        {"input": MARK},
        {"input": MARK, "stream": False},
        {"input": MARK, MARK: 1},
        {"input": MARK, "model": MARK},
        {"input": [{"role": MARK, "content": MARK}]},
    ]
    async with app.client() as client:
        for body in cases:
            assert (await client.post("/stream", json=body)).status_code in (200, 400, 404)
            assert (await client.post(f"/stream?code={key}&q={MARK}", json=body)).status_code in (200, 400, 404)
        for fault in ("garbage-midway", "error-midway", "cut-midway", "400", "401", "500", "html", "lone-surrogate"):
            model_service.faults["*"] = fault
            await client.post("/stream", json={"input": MARK})
        await client.post(
            "/stream", content=f'{{"input": "{MARK}'.encode(), headers={"Content-Type": "application/json"}
        )
        async with client.stream("POST", "/stream", json={"input": MARK}):
            pass
    assert model_service.requests[0].auth is not None
    await eventually(lambda: app.output.count('"event":"stream"') >= 10)
    said = app.output.replace(f"Function key: {key}", "")
    assert MARK not in said
    assert "Traceback" not in said


async def test_one_line_of_record_for_each_stream(app: HostedApp, model_service: ModelService) -> None:
    async with app.client() as client:
        given = {"X-Request-Id": "the-record-of-this-test"}
        await client.post("/stream", json={"input": "x"}, headers=given)

    def lines() -> list[dict[str, Any]]:
        found = [line for line in app.output.splitlines() if "the-record-of-this-test" in line]
        return [json.loads(line[line.index("{") :]) for line in found]

    await eventually(lines)
    (record,) = lines()
    assert record["event"] == "stream"
    assert record["relay.outcome"] == "completed"
    assert record["gen_ai.usage.output_tokens"] > 0
