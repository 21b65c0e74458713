"""`/v1/chat/completions` and `/v1/models` on the wire: what goes through byte for byte, what this app decides, and
every way to fail in OpenAI's form."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local import wire
from local.model_service import BY_HAND, DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.answers import whole
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import OUTCOMES, TOKENS, WORDS, Complete, Interrupted, Refused

URL: Final = "/v1/chat/completions"
DONE: Final = b"[DONE]"
PING: Final = b": ping"


def asked(**members: Any) -> dict[str, Any]:
    return {"model": DEFAULT_DEPLOYMENT, "messages": [{"role": "user", "content": "Say something."}]} | members


def streamed(**members: Any) -> dict[str, Any]:
    return asked(stream=True, **members)


# ── An upstream that says exactly what the test tells it to ──────────────────────────────────────────────────────────


@dataclass
class Script:
    """An upstream for the wire itself: `pieces` are its writes (a number: seconds of silence; None: the connection
    breaks); `bodies` and `headers` are what it was sent."""

    pieces: Sequence[bytes | float | None] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def says(self, *payloads: bytes, frame: Callable[[bytes], bytes] = wire.plain_frame) -> None:
        self.pieces = [b"".join(map(frame, payloads))]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        response = web.StreamResponse(status=self.status, headers={"Content-Type": self.content_type})
        await response.prepare(request)
        for piece in self.pieces:
            match piece:
                case bytes():
                    await response.write(piece)
                    await asyncio.sleep(0)
                case None:
                    assert request.transport is not None
                    request.transport.close()
                    return response
                case seconds:
                    await asyncio.sleep(seconds)
        await response.write_eof()
        return response


@pytest.fixture
async def script(model_service_port: int) -> AsyncIterator[Script]:
    """The scripted upstream, in the model service's place."""
    script = Script()
    application = web.Application(client_max_size=16 * 1024 * 1024)
    application.router.add_post("/openai/v1/chat/completions", script.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", model_service_port, reuse_address=True).start()
    yield script
    await runner.cleanup()


@pytest.fixture
async def scripted(app: HostedApp, script: Script) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, whose upstream is scripted."""
    async with app.client() as client:
        yield client


def events_of(raw: bytes) -> list[bytes]:
    """The data of each event; strict about the frame, in which nothing else may stand but pings."""
    assert raw.endswith(b"\n\n"), raw[-80:]
    events = []
    for block in raw.split(b"\n\n")[:-1]:
        if block == PING:
            continue
        lines = block.split(b"\n")
        assert all(line.startswith(b"data: ") for line in lines), block
        events.append(b"\n".join(line[6:] for line in lines))
    return events


def chunk(delta: dict[str, Any], **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]} | members).encode()


USAGE: Final = (
    b'{"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
    b'"completion_tokens_details":{"reasoning_tokens":2}}}'
)

STREAMS: dict[str, list[bytes]] = {
    "as Azure writes it": [
        step.payload if isinstance(step, wire.Event) else reply.token(step)
        for reply in [
            wire.Reply(model="m", choices=[wire.Choice(["Grün", " 🌿"], "stop")], prompt_tokens=3, logprobs=True)
        ]
        for step in wire.streamed(reply)
        if isinstance(step, wire.Event | wire.Token) and step is not wire.DONE
    ],
    "tools and two choices": [
        step.payload if isinstance(step, wire.Event) else reply.token(step)
        for reply in [
            wire.Reply(
                model="m",
                choices=[
                    wire.Choice((), "tool_calls", wire.Call("weather", ['{"city', '":"Köln"}'])),
                    wire.Choice(["one", "two", "three"], "length"),
                ],
                prompt_tokens=3,
            )
        ]
        for step in wire.streamed(reply)
        if isinstance(step, wire.Event | wire.Token) and step is not wire.DONE
    ],
    "white space, order and escapes are the upstream's": [
        b'{ "choices" : [ {"delta":{"content":"gr\\u00fcn \\/ \\ud83c\\udf3f"},\t"index":0} ] , "id":"c"}',
        '{"id":"c","choices":[{"delta":{"content":"grün / 🌿\u2028\u0085"},"index":0}]}'.encode(),
        b'{"choices":[{"index":0,"delta":{"content":"\\ud83c"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\\udf3f"}}]}',
    ],
    "numbers that no float holds": [
        chunk({"content": "x"})[:-1] + b',"big":123456789012345678901234567890,"small":1e-400,"exact":0.10}'
    ],
    "members that nobody has heard of": [
        chunk({"role": "assistant", "reasoning_content": "Let me think"}, unheard={"of": [1, None, {"x": "y"}]}),
        chunk({"content": "x", "annotations": [{"type": "url_citation"}], "audio": {"id": "a"}}, service_tier="flex"),
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":128009}],"provider":"x"}',
    ],
    "a refusal": [chunk({"refusal": "I can't"}), chunk({"refusal": " do that."})],
    "usage beside words": [chunk({"content": "x"}, usage={"prompt_tokens": 1, "completion_tokens": 1})],
    "no words at all": [chunk({"role": "assistant"}), b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'],
    "nothing": [],
    "the same name twice": [b'{"choices":[{"index":0,"delta":{"content":"a","content":"b"}}],"id":"c","id":"d"}'],
    "the event with a line break": [b'{"choices":[{"index":0,"delta":\n{"content":"two lines"}}]}'],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_each_event_goes_through_byte_for_byte(scripted: httpx.AsyncClient, script: Script, name: str) -> None:
    events = STREAMS[name]
    for frame in (wire.plain_frame, lambda data: b"data:%b\r\n\r\n" % data.replace(b"\n", b"\r\ndata:")):
        if frame is wire.plain_frame:
            script.says(*events, DONE, frame=lambda data: b"data: %b\n\n" % data.replace(b"\n", b"\ndata: "))
        else:
            script.says(*events, DONE, frame=frame)
        answer = await scripted.post(URL, json=streamed())
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers
        assert events_of(answer.content) == [*events, DONE]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CHUNKS = st.builds(
    lambda delta, more, spaces, escape: json.dumps(
        {**more, "choices": [{"index": 0, "delta": delta}]}, ensure_ascii=escape, separators=spaces
    ).encode(errors="surrogatepass" if escape else "replace"),
    st.dictionaries(st.sampled_from(["content", "tool_calls", "reasoning_content", "ü", "role"]), JSON, max_size=3),
    st.dictionaries(st.sampled_from(["x", "created", "ü\n", "service_tier"]), JSON, max_size=2),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", "\t:  ")]),
    st.booleans(),
)


@given(st.lists(CHUNKS, max_size=8), st.lists(st.integers(1, 400), max_size=12), st.sampled_from(["\n", "\r", "\r\n"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_events_however_they_arrive(
    byte_for_byte: Callable[[list[bytes], Sequence[bytes]], None], events: list[bytes], cuts: list[int], end: str
) -> None:
    whole_stream = b"".join(b"data: %b%b" % (data, end.encode() * 2) for data in [*events, DONE])
    pieces, at = [], 0
    for size in cuts:
        pieces.append(whole_stream[at : at + size])
        at += size
    byte_for_byte(events, [piece for piece in (*pieces, whole_stream[at:]) if piece])


@pytest.fixture
def byte_for_byte(app: HostedApp, model_service_port: int) -> Callable[[list[bytes], Sequence[bytes]], None]:
    """Plays the pieces upstream in an event loop of its own, and compares what a caller gets with the events."""

    async def play(events: list[bytes], pieces: Sequence[bytes]) -> None:
        script = Script(pieces)
        application = web.Application()
        application.router.add_post("/openai/v1/chat/completions", script.answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", model_service_port, reuse_address=True).start()
        try:
            async with app.client() as client:
                answer = await client.post(URL, json=streamed())
                assert events_of(answer.content) == [*events, DONE]
        finally:
            await runner.cleanup()

    return lambda events, pieces: asyncio.run(play(events, pieces))


# ── Usage ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def record_of(app: HostedApp, request_id: str) -> dict[str, Any] | None:
    for line in app.output.splitlines():
        if request_id in line and '"event":"stream"' in line:
            return json.loads(line.removeprefix("[worker] "))
    return None


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": None}, False),
        ({"include_usage": False, "include_obfuscation": False}, False),
        ({"include_usage": True, "include_obfuscation": True, "unheard": [1]}, True),
    ],
)
async def test_usage_is_always_asked_for_and_given_to_who_asked(
    app: HostedApp, scripted: httpx.AsyncClient, script: Script, options: dict[str, Any] | None, *, asks: bool
) -> None:
    words = chunk({"content": "x"})
    script.says(words, USAGE, DONE)
    body = streamed() if options is None else streamed(stream_options=options)
    answer = await scripted.post(URL, json=body)
    assert events_of(answer.content) == ([words, USAGE, DONE] if asks else [words, DONE])
    assert json.loads(script.bodies[0])["stream_options"] == {**(options or {}), "include_usage": True}
    record = await eventually(lambda: record_of(app, answer.headers["x-request-id"]))
    assert record["gen_ai.usage.input_tokens"] == 7
    assert record["gen_ai.usage.output_tokens"] == 3
    assert record["gen_ai.usage.reasoning.output_tokens"] == 2


async def test_a_document_goes_through_byte_for_byte(
    app: HostedApp, scripted: httpx.AsyncClient, script: Script
) -> None:
    document = (
        '{ "id" : "c", "choices":[{"index":0,"message":{"content":"grün \\u00fc 🌿"},"finish_reason":"stop"}],\n'
        '"usage":{"prompt_tokens":7,"completion_tokens":3},"unheard":{"of":0.10,"big":123456789012345678901234567890}}'
    ).encode()
    script.content_type = "application/json"
    script.pieces = [document[:20], document[20:71], document[71:]]  # the second cut is in a character
    answer = await scripted.post(URL, json=asked())
    assert answer.status_code == 200
    assert answer.content == document
    assert answer.headers["content-type"] == "application/json"
    assert "stream_options" not in json.loads(script.bodies[0])
    record = await eventually(lambda: record_of(app, answer.headers["x-request-id"]))
    assert (record["gen_ai.usage.input_tokens"], record["gen_ai.usage.output_tokens"]) == (7, 3)
    assert record["relay.bytes_sent"] == len(document)


# ── What reaches the upstream ────────────────────────────────────────────────────────────────────────────────────────

MEMBERS: Final = {
    "messages": '[{"role":"user","content":[{"type":"text","text":"gr\\u00fcn \\/ grün 🌿"},'
    '{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA","detail":"low"}}]}]',
    "temperature": "0.10",
    "seed": "123456789012345678901234567890",
    "logit_bias": '{"50256": -100, "7":1E2}',
    "tools": '[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}]',
    "tool_choice": '{"type" : "function", "function": {"name":"f"}}',
    "response_format": '{"type":"json_schema","json_schema":{"name":"s","schema":{"const":1.0}}}',
    "n": "2",
    "logprobs": "true",
    "stop": "null",
    "user": '"\\ud83d\\ude00 \\u0000"',
    "metadata": '{"ü\\n":"\\u2028","": [ ]}',
    "unheard_of": "[1e400, -0.0, 1e-400, 12345678901234567890.123456789]",
    "ünheard": '{"deep":' + "[" * 60 + "]" * 60 + "}",
}


@pytest.mark.parametrize("stream", ["true", "false", "null"])
async def test_members_reach_the_upstream_as_they_stood(
    scripted: httpx.AsyncClient, script: Script, stream: str
) -> None:
    members = {"model": f'"{DEFAULT_DEPLOYMENT}"', "stream": stream, "max_completion_tokens": "5", **MEMBERS}
    body = "{" + " ,\n".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "}"
    script.says(chunk({"content": "x"}), DONE)
    if stream != "true":
        script.content_type, script.pieces = "application/json", [b'{"choices":[]}']
    answer = await scripted.post(URL, content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    sent = msgspec.json.decode(script.bodies[0], type=dict[str, msgspec.Raw])
    assert {name: bytes(sent[name]).decode() for name in members} == members
    assert set(sent) - set(members) == ({"stream_options"} if stream == "true" else set())


async def test_half_a_surrogate_pair_reaches_the_upstream(scripted: httpx.AsyncClient, script: Script) -> None:
    script.says(chunk({"content": "x"}), DONE)
    body = b'{"stream":true,"messages":[{"role":"user","content":"\\ud83d"}],"user":"\\ude00"}'
    answer = await scripted.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    sent = msgspec.json.decode(script.bodies[0].replace(b"\\ud", b"\\\\ud"))
    assert sent["messages"][0]["content"] == "\\ud83d"
    assert sent["user"] == "\\ude00"


async def test_nothing_of_the_callers_headers_reaches_the_upstream(scripted: httpx.AsyncClient, script: Script) -> None:
    script.says(chunk({"content": "x"}), DONE)
    headers = {"X-Functions-Key": "a-key", "Cookie": "a=b", "Authorization": "Bearer mine", "OpenAI-Organization": "o"}
    answer = await scripted.post(URL, json=streamed(), headers=headers | {"X-Stainless-Lang": "js"})
    assert answer.status_code == 200
    (sent,) = script.headers
    assert not {"x-functions-key", "cookie", "openai-organization"} & set(sent)
    assert "mine" not in str(sent)
    assert sent["content-type"] == "application/json"
    assert sent["accept"] == "text/event-stream"


@pytest.fixture(scope="module")
def frugal_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app that allows 100 tokens."""
    return functions_app(env=app_settings | {"MAX_OUTPUT_TOKENS": "100"})


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"max_completion_tokens": 100}),
        ({"max_tokens": None}, {"max_completion_tokens": 100}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 101}, {"max_tokens": 100}),
        ({"max_completion_tokens": 10**30}, {"max_completion_tokens": 100}),
        ({"max_completion_tokens": 100, "max_tokens": 5000}, {"max_completion_tokens": 100, "max_tokens": 100}),
        ({"max_completion_tokens": None, "max_tokens": 5000}, {"max_tokens": 100}),
    ],
)
async def test_the_output_limit_is_capped(
    frugal_app: HostedApp, script: Script, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    script.says(chunk({"content": "x"}), DONE)
    async with frugal_app.client() as client:
        assert (await client.post(URL, json=streamed(**given))).status_code == 200
    body = json.loads(script.bodies[0])
    limits = {name: body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None}
    assert limits == sent


@pytest.mark.parametrize(
    ("body", "field_"),
    [
        (asked(max_tokens=0), "max_tokens"),
        (asked(max_tokens="5"), "max_tokens"),
        (asked(max_completion_tokens=True), "max_completion_tokens"),
        (asked(max_completion_tokens=1.5), "max_completion_tokens"),
        (asked(model=""), "model"),
        (asked(model=["a"]), "model"),
        (asked(stream="yes"), "stream"),
        (streamed(stream_options=[]), "stream_options"),
        ({"model": DEFAULT_DEPLOYMENT}, "messages"),
    ],
)
async def test_a_member_that_this_app_can_not_read_is_named(
    caller: httpx.AsyncClient, model_service: ModelService, body: dict[str, Any], field_: str
) -> None:
    answer = await caller.post(URL, json=body)
    check_error(answer, 400, "invalid_request", "invalid_request_error")
    assert answer.json()["error"]["param"] == field_
    assert field_ in answer.json()["error"]["message"]
    assert model_service.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": [}', b'{"messages": "caf\xe9"}', b'{"messages": NaN}', b'{"a":' + b"[" * 99_999]
)
async def test_a_body_that_is_not_json(caller: httpx.AsyncClient, body: bytes) -> None:
    answer = await caller.post(URL, content=body, headers={"Content-Type": "application/json"})
    check_error(answer, 400, "invalid_json", "invalid_request_error")


# ── The same answers as the model service's own ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]},
        {"reasoning_effort": "low", "verbosity": "low"},
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                },
            ]
        },
    ],
    ids=lambda more: " ".join(more) or "plain",
)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_same_as_from_the_model_service_itself(
    caller: httpx.AsyncClient, model_service: ModelService, more: dict[str, Any], *, stream: bool
) -> None:
    body = asked(stream=stream, **more) | ({"stream_options": {"include_usage": True}} if stream else {})
    through = await caller.post(URL, json=body)
    async with httpx.AsyncClient(headers={"api-key": "k"}) as client:
        directly = await client.post(model_service.url + "chat/completions", json=body)
    assert through.status_code == directly.status_code == 200
    assert the_same(through.content) == the_same(directly.content)


def the_same(content: bytes) -> bytes:
    """Without what differs from one answer to the next: ids and the time."""
    return re.sub(rb'"(chatcmpl-|call_)[\w-]+"|"created":\d+', b"-", content)


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/plain", "application/x-ndjson", "text/event-stream;q=0", "nonsense"]
)
async def test_accept_makes_no_difference(caller: httpx.AsyncClient, accept: str) -> None:
    answer = await caller.post(URL, json=streamed(), headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events_of(answer.content)[-1] == DONE
    answer = await caller.post(URL, json=asked(), headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["object"] == "chat.completion"


async def test_the_default_model(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    body = asked()
    del body["model"]
    for model in ({}, {"model": None}):
        assert (await caller.post(URL, json=body | model)).status_code == 200
    assert {record.deployment for record in model_service.requests} == {DEFAULT_DEPLOYMENT}


async def test_the_list_of_models(caller: httpx.AsyncClient) -> None:
    answer = await caller.get("/v1/models")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == [DEFAULT_DEPLOYMENT, BY_HAND]
    for model in document["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert model["object"] == "model"
        assert isinstance(model["created"], int)


# ── Every way to fail ────────────────────────────────────────────────────────────────────────────────────────────────


def check_error(answer: httpx.Response, status: int, code: str | None, kind: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    check_error_members(answer.json(), code, kind)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def check_error_members(document: dict[str, Any], code: str | None, kind: str) -> None:
    error = document["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] == code
    assert error["type"] == kind
    assert "127.0.0.1" not in str(document)


TYPES: Final = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}
# Where OpenAI's wire tells something else than the app's own: the model service's own words about the request,.
ON_THE_WIRE: Final = {"400": Refused(400, "invalid_value")}


@pytest.fixture(scope="module")
def faulty_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a deployment for each fault, one for a stream and one for a document."""
    deployments = [f"{fault}/{way}" for fault in OUTCOMES for way in ("stream", "document")]
    return functions_app(
        env=app_settings
        | {
            "AZURE_OPENAI_DEPLOYMENTS": ",".join(deployments),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "1",
            "COMMIT_WAIT_SECONDS": "10",
            "MAX_OUTPUT_TOKENS": "1000000",
        }
    )


@pytest.mark.parametrize("fault", OUTCOMES)
async def test_a_fault_of_the_model_service(faulty_app: HostedApp, model_service: ModelService, fault: str) -> None:
    outcome = ON_THE_WIRE.get(fault, OUTCOMES[fault])
    model_service.answer(TOKENS)
    model_service.tokens_per_write = 3
    model_service.faults.update({f"{fault}/{way}": fault for way in ("stream", "document")})
    async with faulty_app.client() as client:
        stream, document = await asyncio.gather(
            client.post(URL, json=streamed(model=f"{fault}/stream")),
            client.post(URL, json=asked(model=f"{fault}/document")),
        )
    match outcome:
        case Refused():
            check_refused(stream, outcome)
        case Interrupted():
            *chunks, last = events_of(stream.content)
            assert text_of(chunks) == outcome.text
            assert DONE not in chunks
            check_error_members(json.loads(last), outcome.code, TYPES.get(outcome.status, "server_error"))
        case Complete():
            *chunks, last = events_of(stream.content)
            assert last == DONE
            assert whole(text_of(chunks)) == outcome.text
            assert not any(b'"usage":{' in data for data in chunks), "usage was not asked for"
    # A document has no middle: each failure has its own status.
    if isinstance(outcome, Refused) and fault not in OF_A_STREAM:
        check_refused(document, outcome)
    elif isinstance(outcome, Interrupted) and fault not in OF_A_STREAM:
        # Nothing of it went out, so that nothing was interrupted.
        code = {"upstream_interrupted": "upstream_error"}.get(outcome.code, outcome.code)
        check_error(document, outcome.status, code, "server_error")
    elif document.status_code == 200:
        assert document.json()["object"] == "chat.completion"
    else:
        check_error(document, 502, "upstream_error", "server_error")
    await eventually(lambda: model_service.open_requests == 0)
    assert len(model_service.requests) == 2, "one request asks one deployment once"


# Faults of events: a document has none, so that it is whole, or is none at all.
OF_A_STREAM: Final = {"no-done", "error-first", "error-midway", "garbage-first", "garbage-midway", "invalid-utf8"}


def check_refused(answer: httpx.Response, outcome: Refused) -> None:
    check_error(answer, outcome.status, outcome.code, TYPES.get(outcome.status, "server_error"))
    if outcome.retry_after:
        assert int(answer.headers["retry-after"]) in outcome.retry_after
    else:
        assert "retry-after" not in answer.headers
    if outcome.content_filter:
        assert answer.json()["error"]["innererror"]["content_filter_result"] == outcome.content_filter


def text_of(chunks: Sequence[bytes]) -> str:
    return "".join(
        choice.get("delta", {}).get("content") or ""
        for data in chunks
        for choice in json.loads(data.decode(errors="replace"))["choices"]
    )


async def test_rows_that_need_no_model_service(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    app = functions_app(env=app_settings | {"MAX_BODY_BYTES": "2000"})
    async with app.client() as client:
        check_error(await client.post(URL, json=asked(model="none-of-ours")), 404, "model_not_found", TYPES[404])
        check_error(await client.post(URL, json=asked(user="x" * 2000)), 413, "body_too_large", TYPES[400])
        headers = {"Content-Type": "text/plain"}
        answer = await client.post(URL, content=b"{}", headers=headers)
        check_error(answer, 415, "unsupported_media_type", TYPES[400])
    async with functions_app(env={"AZURE_OPENAI_DEPLOYMENTS": "x"}).client() as client:
        for answer in (await client.post(URL, json=asked()), await client.get("/v1/models")):
            check_error(answer, 503, "not_configured", "server_error")
            assert "AZURE_OPENAI_ENDPOINT" in answer.json()["error"]["message"]
    assert model_service.requests == []


async def test_what_the_model_service_says_of_the_request_is_passed_on(
    scripted: httpx.AsyncClient, script: Script
) -> None:
    error = {
        "message": "Unsupported value: 'temperature' does not support 0.3 with this model.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    }
    script.status, script.content_type = 400, "application/json"
    script.pieces = [json.dumps({"error": error}).encode()]
    answer = await scripted.post(URL, json=streamed(temperature=0.3))
    check_error(answer, 400, "unsupported_value", "invalid_request_error")
    assert answer.json()["error"] == error


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
async def test_the_model_services_address_is_never_passed_on(
    scripted: httpx.AsyncClient, script: Script, model_service_port: int, status: int
) -> None:
    host = f"127.0.0.1:{model_service_port}"
    message = f"Resource http://{host}/openai/v1/ ({host}, 127.0.0.1) can't do this: see http://{host}/help."
    error = {"message": message, "type": host, "param": host, "code": host}
    script.status, script.content_type = status, "application/json"
    script.pieces = [json.dumps({"error": error}).encode()]
    for body in (streamed(), asked()):
        answer = await scripted.post(URL, json=body)
        assert answer.status_code >= 400
        assert "127.0.0.1" not in answer.text
        assert str(model_service_port) not in answer.text


# ── The life of a stream ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_chunk_goes_out_when_it_comes(caller: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["one", "two", "three"], BY_HAND)
    model_service.release()  # the headers come with the first words
    async with caller.stream("POST", URL, json=streamed(model=BY_HAND)) as response:
        arrived = b""
        pieces = response.aiter_raw()
        for word in (b"one", b"two", b"three"):
            async with asyncio.timeout(5):
                while word not in arrived:
                    arrived += await anext(pieces)
            model_service.release()
        async for piece in pieces:
            arrived += piece
    assert events_of(arrived)[-1] == DONE


@pytest.mark.parametrize("moment", ["before the headers", "before the words", "among the words", "of a document"])
async def test_a_caller_that_leaves_ends_the_upstream(app: HostedApp, model_service: ModelService, moment: str) -> None:
    body = streamed(model=BY_HAND)
    if moment == "before the headers":
        model_service.faults[BY_HAND] = "stall-headers"
    elif moment == "of a document":
        body = asked()
        model_service.faults["*"] = "stall-headers"
    async with app.client(headers={"X-Request-Id": f"leaving-{moment.replace(' ', '-')}"}) as client:
        asking = asyncio.create_task(read(client, body))
        await model_service.wait_for(lambda service: service.open_requests)
        if moment == "among the words":
            model_service.release(2)
            await model_service.wait_for(lambda service: service.requests[0].tokens == 2)
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await model_service.wait_for(lambda service: service.open_requests == 0, timeout=1)
    assert model_service.requests[0].ended == "aborted"
    record = await eventually(lambda: record_of(app, f"leaving-{moment.replace(' ', '-')}"))
    assert record["relay.outcome"] == "cancelled"
    if moment == "among the words":
        assert record["gen_ai.usage.output_tokens"] == 2
        assert record["relay.usage_estimated"] is True


async def read(client: httpx.AsyncClient, body: dict[str, Any]) -> bytes:
    async with client.stream("POST", URL, json=body) as response:
        return b"".join([piece async for piece in response.aiter_raw()])


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


LATE: Final = {
    "stall-headers": "upstream_timeout",
    "stall-first": "upstream_timeout",
    "cut-first+stall-headers-0.4": "upstream_interrupted",
    "error-first+stall-headers-0.4": "upstream_error",
    "html+stall-headers-0.4": "upstream_error",
}


@pytest.mark.parametrize("fault", LATE)
async def test_what_fails_after_the_commit_is_an_event(
    hasty_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    model_service.faults["*"] = fault
    async with hasty_app.client() as client:
        answer = await client.post(URL, json=streamed())
    assert answer.status_code == 200
    assert answer.content.count(PING + b"\n\n") >= 2
    (last,) = events_of(answer.content)
    check_error_members(json.loads(last), LATE[fault], "server_error")
    await eventually(lambda: model_service.open_requests == 0)


async def test_silence_is_filled_with_pings(hasty_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(TOKENS)
    model_service.faults["*"] = "stall-first-0.5+stall-midway-0.5"
    async with hasty_app.client() as client:
        answer = await client.post(URL, json=streamed())
    assert answer.content.startswith(PING + b"\n\n")
    assert answer.content.count(PING + b"\n\n") >= 4
    *chunks, last = events_of(answer.content)
    assert last == DONE
    assert text_of(chunks) == WORDS


async def test_pings_keep_their_interval_where_the_commit_takes_longer(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    app = functions_app(env=app_settings | {"COMMIT_WAIT_SECONDS": "0.25", "PING_INTERVAL_SECONDS": "0.1"})
    model_service.faults["*"] = "stall-headers-1"
    async with app.client() as client:
        answer = await client.post(URL, json=streamed())
    assert answer.content.count(PING + b"\n\n") >= 5


async def test_the_deadline(hasty_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 20
    model_service.answer([f"word{number} " for number in range(200)])
    async with hasty_app.client() as client:
        began = asyncio.get_running_loop().time()
        stream, document = await asyncio.gather(client.post(URL, json=streamed()), client.post(URL, json=asked()))
        assert 1.3 < asyncio.get_running_loop().time() - began < 3
    *chunks, last = events_of(stream.content)
    assert text_of(chunks).startswith("word0 word1 ")
    assert DONE not in chunks
    check_error_members(json.loads(last), "deadline_exceeded", "server_error")
    # The model service is silent until its document is whole.
    assert document.status_code == 504
    assert document.json()["error"]["code"] in ("deadline_exceeded", "upstream_timeout")
    await model_service.wait_for(lambda service: service.open_requests == 0, timeout=1)
