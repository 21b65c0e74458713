"""`POST /stream` without failures: formats, headers, commit, pings, tokens one by one, text byte for byte."""

import asyncio
import json
import random
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService, text_generation
from tests.end_to_end.answers import DOCUMENT, FORMATS, NDJSON, PING, PLAIN, SSE, STREAMS, post_stream
from tests.end_to_end.hosting import HostedApp, eventually, own_host

# Characters of every plane of Unicode that has any, all line ends, and text that looks like the protocols.
DIFFICULT_TEXT: Final = (
    "plain, \u00e9, \u03a9, \u4e2d, \u0627\u0644\u0639, \U0001f33f\U0001f468\u200d\U0001f469\u200d\U0001f467, "
    "\U00010348, \U00020000, \U000e0041, \U000f0000, \U0010fffd | "
    "\n \r \r\n \u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e \x00 \x1f \x7f \ufeff \ufffd \ufffe | "
    'data: {"text":"no"}\n\nevent: done\ndata: {}\n\n: ping\n\nid: 1\nretry: 1\n | "quoted" \\ \\u0041 </script> '
)


# ── Formats and headers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("media_type", FORMATS)
async def test_text_and_terminal_event(client: httpx.AsyncClient, model_service: ModelService, media_type: str) -> None:
    model_service.answer(["The", " quick", " brown", " fox"])
    received = await post_stream(client, media_type)
    assert received.text == "The quick brown fox"
    assert received.endings == 1
    if media_type != PLAIN:
        assert received.done is not None
        assert received.done["id"].startswith("chatcmpl-")
        assert received.done == {
            "finish_reason": "stop",
            "model": "gpt-5.4-mini-2026-03-17",
            "usage": received.done["usage"],
            "id": received.done["id"],
        }
        assert received.done["usage"]["output_tokens"] == 4
        assert received.done["usage"]["input_tokens"] > 0


async def test_server_sent_events_byte_for_byte(client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["The", " quick"])
    received = await post_stream(client, SSE)
    assert re.fullmatch(
        rb'data: \{"text":"The quick"\}\n\n'
        rb'event: done\ndata: \{"finish_reason":"stop","model":"gpt-5\.4-mini-2026-03-17",'
        rb'"usage":\{[^\n]*\},"id":"[^\n]*"\}\n\n',
        received.raw,
    )


async def test_ndjson_byte_for_byte(client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["The", " quick"])
    received = await post_stream(client, NDJSON)
    assert re.fullmatch(
        rb'\{"type":"text","text":"The quick"\}\n\{"type":"done","finish_reason":[^\n]*\}\n', received.raw
    )


@pytest.mark.parametrize("media_type", STREAMS)
async def test_headers_of_a_stream(client: httpx.AsyncClient, media_type: str) -> None:
    headers = (await post_stream(client, media_type)).headers
    assert headers["content-type"].partition(";")[0] == media_type
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"]
    assert "content-length" not in headers
    assert "content-encoding" not in headers


async def test_headers_of_a_document(client: httpx.AsyncClient) -> None:
    received = await post_stream(client, DOCUMENT)
    assert received.headers["content-type"] == "application/json"
    assert received.headers["cache-control"] == "no-store"
    assert received.headers["x-content-type-options"] == "nosniff"
    assert int(received.headers["content-length"]) == len(received.raw)


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
async def test_accept_selects_the_format(client: httpx.AsyncClient, accept: str | None, media_type: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    request = client.build_request("POST", "/stream", json={"input": "x"}, headers=headers)
    if accept is None:
        del request.headers["accept"]
    answer = await client.send(request)
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == media_type


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_not_found(client: httpx.AsyncClient, model_service: ModelService, method: str) -> None:
    assert (await client.request(method, "/stream")).status_code == 404
    assert model_service.requests == []


# ── The upstream request ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_all_fields_are_sent_to_the_model(client: httpx.AsyncClient, model_service: ModelService) -> None:
    conversation = [
        {"role": "developer", "content": "one"},
        {"role": "user", "content": "two " + DIFFICULT_TEXT},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "four"},
    ]
    await post_stream(
        client,
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
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 1,
        "reasoning_effort": "low",
    }


async def test_fields_that_were_not_given_are_not_sent(client: httpx.AsyncClient, model_service: ModelService) -> None:
    await post_stream(client, SSE, "hello")
    assert model_service.requests[-1].body == {
        "model": "gpt-5.4-mini",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 16384,
        "max_tokens": 16384,
    }


async def test_the_output_limit_is_capped(client: httpx.AsyncClient, model_service: ModelService) -> None:
    await post_stream(client, SSE, max_output_tokens=10**9)
    assert model_service.requests[-1].body["max_completion_tokens"] == 16384


async def test_a_reasoning_model_gets_a_parameter_that_it_refuses_once_at_most(
    short_interval_app: HostedApp, model_service: ModelService
) -> None:
    async with short_interval_app.client() as client:
        assert (await post_stream(client, SSE, model=REASONING_MODEL)).endings == 1
        model_service.requests.clear()
        assert (await post_stream(client, SSE, model=REASONING_MODEL)).endings == 1
        assert ["max_tokens" in record.body for record in model_service.requests] == [False]
        received = await post_stream(client, SSE, model=REASONING_MODEL, temperature=0.2)
    assert received.problem is not None
    assert (received.status, received.problem["code"]) == (400, "invalid_request")
    assert "temperature" in json.dumps(received.problem["errors"])


# ── The request id ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_callers_request_id_is_kept(client: httpx.AsyncClient, model_service: ModelService) -> None:
    answer = await client.post("/stream", json={"input": "x"}, headers={"X-Request-Id": "order-66:abc.DEF_1"})
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
    ],
)
async def test_a_request_id_that_is_no_plain_identifier_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/stream", json={"input": "x"}, headers={"X-Request-Id": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.headers["x-request-id"])


# ── Tokens one by one ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("media_type", STREAMS)
async def test_each_token_is_received_before_the_next_is_written(
    client: httpx.AsyncClient, model_service: ModelService, media_type: str
) -> None:
    tokens = [f"<{number}>" for number in range(12)]
    model_service.answer(tokens)
    text = ""
    model_service.release()
    async with client.stream(
        "POST", "/stream", json={"input": "x", "model": MANUAL_PACE}, headers={"Accept": media_type}
    ) as response:
        chunks = response.aiter_text()
        for number, token in enumerate(tokens):
            if number:
                model_service.release()
            while token not in text:
                text += await asyncio.wait_for(anext(chunks), 30)
            # The model has written this token and no other one since.
            assert model_service.requests[-1].tokens == number + 1
            assert f"<{number + 1}>" not in text
        model_service.release()
        text += "".join([chunk async for chunk in chunks])
    assert (text == "".join(tokens)) if media_type == PLAIN else ("done" in text)


async def test_tokens_are_not_delayed(client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.tokens_per_second = 25
    tokens = [f"<{number}>" for number in range(25)]
    model_service.answer(tokens)
    delays: list[float] = []
    text = ""
    async with client.stream("POST", "/stream", json={"input": "x"}) as response:
        async for chunk in response.aiter_text():
            now = time.monotonic()
            text += chunk
            written = model_service.requests[-1].token_times
            while len(delays) < len(tokens) and tokens[len(delays)] in text:
                delays.append(now - written[len(delays)])
    assert len(delays) == len(tokens)
    assert sorted(delays)[len(delays) // 2] < 0.2  # generous for a busy machine; an answer sent as a whole takes 0.5 s


# ── The commit, and the pings ────────────────────────────────────────────────────────────────────────────────────────


COMMIT_WAIT: Final = 0.3  # seconds
PING_INTERVAL: Final = 0.3  # seconds
REASONING_MODEL: Final = "o3"


@pytest.fixture(scope="module")
def short_interval_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a short commit wait and ping interval, and with a reasoning model."""
    settings = {
        "AZURE_OPENAI_DEPLOYMENTS": f"{DEFAULT_DEPLOYMENT},{MANUAL_PACE},{REASONING_MODEL}",
        "COMMIT_WAIT_SECONDS": str(COMMIT_WAIT),
        "PING_INTERVAL_SECONDS": str(PING_INTERVAL),
    }
    return functions_app(env=app_settings | settings)


async def test_the_commit_after_the_wait_and_pings_during_the_silence(
    short_interval_app: HostedApp, model_service: ModelService
) -> None:
    model_service.answer(["a", "b"])
    requested_at = time.monotonic()
    async with (
        short_interval_app.client() as client,
        client.stream("POST", "/stream", json={"input": "x", "model": MANUAL_PACE}) as response,
    ):
        assert time.monotonic() - requested_at >= COMMIT_WAIT
        assert response.status_code == 200
        chunks = response.aiter_raw()
        content = await asyncio.wait_for(anext(chunks), 30)
        first_ping_at = time.monotonic()
        assert content.startswith(PING), "without a first byte of the body, a proxy may hold the headers back"
        while content.count(PING) < 4:
            content += await asyncio.wait_for(anext(chunks), 30)
        # A busy machine may delay any ping, and so shorten the time from the first one to the last by one interval.
        assert time.monotonic() - first_ping_at > 2 * PING_INTERVAL - 0.05
        assert content == PING * content.count(PING)
        assert model_service.requests[-1].tokens == 0
        model_service.release(2)
        content = b"".join([chunk async for chunk in chunks])
    assert content.endswith(b"\n\n")
    assert content.count(b"event: done") == 1


async def test_pings_between_tokens_change_nothing(short_interval_app: HostedApp, model_service: ModelService) -> None:
    model_service.faults["*"] = f"stall-midway-{3 * PING_INTERVAL:g}"
    model_service.answer(["a", "b", "c", "d", "e", "f"])
    async with short_interval_app.client() as client:
        answers = dict(
            zip(
                STREAMS, await asyncio.gather(*[post_stream(client, media_type) for media_type in STREAMS]), strict=True
            )
        )
    assert {received.text for received in answers.values()} == {"abcdef"}
    assert answers[SSE].pings >= 2
    *lines, done = map(json.loads, answers[NDJSON].raw.splitlines())
    assert all(line["text"] for line in lines), "the format has no pings"
    assert done["type"] == "done"


async def test_no_pings_while_tokens_arrive(short_interval_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 20
    model_service.answer(["word "] * 20)
    async with short_interval_app.client() as client:
        received = await post_stream(client, SSE)
    assert received.done
    record = await eventually(lambda: short_interval_app.stream_records().get(received.headers["x-request-id"]))
    # On a busy machine the tokens themselves can pause for that long.
    assert received.pings == 0 or record["relay.largest_gap"] > PING_INTERVAL - 0.06


# ── Byte for byte ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("media_type", FORMATS)
@pytest.mark.parametrize(
    "fault", [None, "split-3", "bytes", "escaped", "surrogates+split-4", "cr+split-5", "data-lines+crlf"]
)
async def test_difficult_text_is_received_unchanged(
    client: httpx.AsyncClient, model_service: ModelService, media_type: str, fault: str | None
) -> None:
    model_service.answer([DIFFICULT_TEXT[start : start + 20] for start in range(0, len(DIFFICULT_TEXT), 20)])
    model_service.faults["*"] = fault
    received = await post_stream(client, media_type)
    assert received.text == DIFFICULT_TEXT
    assert received.endings == 1


async def test_a_megabyte_is_received_unchanged(client: httpx.AsyncClient, model_service: ModelService) -> None:
    dice = random.Random(11)
    text = "".join(
        chr(dice.choice((dice.randrange(0x20, 0x7F), dice.randrange(0xA0, 0xD800), dice.randrange(0x10000, 0x110000))))
        for _ in range(400_000)
    )
    assert len(text.encode()) > 1_000_000
    model_service.answer([text[start : start + 50] for start in range(0, len(text), 50)])
    answers = await asyncio.gather(*[post_stream(client, media_type) for media_type in FORMATS])
    assert [received.text == text for received in answers] == [True] * len(FORMATS)


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
async def test_any_text_in_any_reads(
    client: httpx.AsyncClient, model_service: ModelService, tokens: list[str], seed: int, frame: str
) -> None:
    model_service.answer(tokens)
    model_service.faults["*"] = f"{frame}split-{seed}"
    for media_type, received in zip(
        FORMATS, await asyncio.gather(*[post_stream(client, media_type) for media_type in FORMATS]), strict=True
    ):
        assert received.text == "".join(tokens), media_type
        assert received.endings == 1


# ── The article's curl command ───────────────────────────────────────────────────────────────────────────────────────


def curl(url: str, *more: str) -> subprocess.Popen[bytes]:
    """The command of the article that this app began as, with another address; `more` are further options."""
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
        chunk = await asyncio.wait_for(asyncio.to_thread(process.stdout.read1), 30)  # type: ignore[attr-defined]
        assert chunk, "the output ended before the text"
        output += chunk
    return output


async def test_the_articles_command_prints_tokens_as_they_arrive(app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 60
    process = curl(f"{app.url}/stream")
    try:
        await read_until(process, 3)
        assert model_service.open_requests == 1, "nothing was printed before the answer was complete"
        output, log = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert b"HTTP/1.1 200 OK" in log
    assert b"event: done\n" in output
    text = text_generation.compose([{"role": "user", "content": "write a random 100 word paragraph"}])
    assert len(text.split()) == 100
    assert model_service.requests[-1].body["messages"][-1]["content"] == "write a random 100 word paragraph"


@pytest.mark.parametrize(("accept", "end"), [("text/plain", None), ("application/x-ndjson", b'{"type":"done"')])
async def test_curl_prints_plain_text_and_lines_of_json(
    app: HostedApp, model_service: ModelService, accept: str, end: bytes | None
) -> None:
    model_service.answer("Some plain text.\n")
    command = ["curl", "-sN", f"{app.url}/stream", "-H", f"Accept: {accept}", "--json", '{"input": "x"}']
    # `--json` sets the Accept header, unless one is given.
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=True)
    if end is None:
        assert done.stdout == b"Some plain text.\n"
    else:
        assert done.stdout.splitlines()[-1].startswith(end)


# ── Headers that must have no effect ─────────────────────────────────────────────────────────────────────────────────


async def raw_response(app: HostedApp, request: bytes) -> bytes:
    """The response; empty where the connection is reset, as it is when more arrives after a response was sent."""
    reader, writer = await asyncio.open_connection(*app.address)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@own_host("it may keep the caller's, as hosts of 2024 did")
async def test_an_invocation_id_from_outside_is_ignored(app: HostedApp, model_service: ModelService) -> None:
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
async def test_a_request_that_servers_could_parse_differently_is_rejected(
    app: HostedApp, model_service: ModelService, head: bytes
) -> None:
    request = b"POST /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + head + b'\r\n\r\n{"input": "x"}'
    answer = await raw_response(app, request)
    # 500, as on the platform, where the host accepts the head and the chunks are none.
    assert re.match(rb"HTTP/1\.[01] (4\d\d|500) ", answer) or answer == b""
    assert model_service.requests == []


# ── What is printed ──────────────────────────────────────────────────────────────────────────────────────────────────

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
    output = app.output.replace(f"Function key: {key}", "")
    assert MARK not in output
    assert "Traceback" not in output


async def test_one_line_is_printed_for_each_stream(app: HostedApp, model_service: ModelService) -> None:
    async with app.client() as client:
        await client.post("/stream", json={"input": "x"}, headers={"X-Request-Id": "the-record-of-this-test"})

    def lines() -> list[dict[str, Any]]:
        found = [line for line in app.output.splitlines() if "the-record-of-this-test" in line]
        return [json.loads(line[line.index("{") :]) for line in found]

    await eventually(lines)
    (record,) = lines()
    assert record["event"] == "stream"
    assert record["relay.outcome"] == "completed"
    assert record["gen_ai.usage.output_tokens"] > 0
