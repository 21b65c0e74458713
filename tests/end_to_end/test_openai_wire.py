"""`/v1/chat/completions` and `/v1/models` on the wire: what is passed on byte for byte, what the app decides, and every
failure as OpenAI's error object."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService, faults, steps
from local.model_service.wires import chat_completions
from tests.end_to_end.answers import StreamedResponse, join_surrogates, post_streamed
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import (
    BODY_LIMIT,
    DEADLINE,
    OUTCOMES,
    OUTPUT_LIMIT,
    REPEATED,
    SILENCE_TIMEOUT,
    TEXT,
    TOKENS,
    Complete,
    Interrupted,
    Refused,
    limited_app,
)

__all__ = ("limited_app",)

URL: Final = "/v1/chat/completions"
DONE: Final = b"[DONE]"
PING: Final = b": ping"


def document_request(**members: Any) -> dict[str, Any]:
    """The body of a request for one document."""
    return {"model": DEFAULT_DEPLOYMENT, "messages": [{"role": "user", "content": "Say something."}]} | members


def stream_request(**members: Any) -> dict[str, Any]:
    """The body of a request for a stream."""
    return document_request(stream=True, **members)


# ── An upstream that sends exactly what the test sets ────────────────────────────────────────────────────────────────


@dataclass
class ScriptedUpstream:
    """A server in the model service's place. `writes` is the body of its response, write by write; `bodies` and
    `headers` are those of the requests that it received."""

    writes: Sequence[bytes] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def set_events(self, *payloads: bytes, frame: Callable[[bytes], bytes] = steps.sse_frame) -> None:
        """Let the response be these events, in one write."""
        self.writes = [b"".join(map(frame, payloads))]

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        response = web.StreamResponse(status=self.status, headers={"Content-Type": self.content_type})
        await response.prepare(request)
        for content in self.writes:
            await response.write(content)
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    @asynccontextmanager
    async def listen(self, port: int) -> AsyncIterator[None]:
        """Serve on this port."""
        application = web.Application(client_max_size=16 * 1024 * 1024)
        application.router.add_post("/openai/v1/chat/completions", self.respond)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        yield
        await runner.cleanup()


@pytest.fixture
async def upstream(model_service_port: int) -> AsyncIterator[ScriptedUpstream]:
    """The scripted upstream, in the model service's place."""
    upstream = ScriptedUpstream()
    async with upstream.listen(model_service_port):
        yield upstream


@pytest.fixture
async def scripted_client(app: HostedApp, upstream: ScriptedUpstream) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, whose upstream is scripted."""
    async with app.client() as client:
        yield client


def events_of(raw: bytes) -> list[bytes]:
    """The data of each event; strict: beside the events there may only be pings."""
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
        step.payload if isinstance(step, steps.Event) else reply.token(step)
        for reply in [
            chat_completions.ChatReply(
                model="m", choices=[chat_completions.Choice(["Grün", " 🌿"], "stop")], prompt_tokens=3, logprobs=True
            )
        ]
        for step in reply.stream()
        if isinstance(step, steps.Event | steps.Token) and step is not steps.DONE
    ],
    "tools and two choices": [
        step.payload if isinstance(step, steps.Event) else reply.token(step)
        for reply in [
            chat_completions.ChatReply(
                model="m",
                choices=[
                    chat_completions.Choice(
                        (), "tool_calls", [chat_completions.ToolCall("weather", ['{"city', '":"Köln"}'])]
                    ),
                    chat_completions.Choice(["one", "two", "three"], "length"),
                ],
                prompt_tokens=3,
            )
        ]
        for step in reply.stream()
        if isinstance(step, steps.Event | steps.Token) and step is not steps.DONE
    ],
    "white space, order and escapes": [
        b'{ "choices" : [ {"delta":{"content":"gr\\u00fcn \\/ \\ud83c\\udf3f"},\t"index":0} ] , "id":"c"}',
        '{"id":"c","choices":[{"delta":{"content":"grün / 🌿\u2028\u0085"},"index":0}]}'.encode(),
        b'{"choices":[{"index":0,"delta":{"content":"\\ud83c"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\\udf3f"}}]}',
    ],
    "numbers that a float can't hold": [
        chunk({"content": "x"})[:-1] + b',"big":123456789012345678901234567890,"small":1e-400,"exact":0.10}'
    ],
    "unknown members": [
        chunk({"role": "assistant", "reasoning_content": "Let me think"}, unknown={"of": [1, None, {"x": "y"}]}),
        chunk({"content": "x", "annotations": [{"type": "url_citation"}], "audio": {"id": "a"}}, service_tier="flex"),
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":128009}],"provider":"x"}',
    ],
    "a refusal": [chunk({"refusal": "I can't"}), chunk({"refusal": " do that."})],
    "usage beside text": [chunk({"content": "x"}, usage={"prompt_tokens": 1, "completion_tokens": 1})],
    "no text": [chunk({"role": "assistant"}), b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'],
    "a name twice": [b'{"choices":[{"index":0,"delta":{"content":"a","content":"b"}}],"id":"c","id":"d"}'],
    "a line break in an event": [b'{"choices":[{"index":0,"delta":\n{"content":"two lines"}}]}'],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_events_are_passed_on_byte_for_byte(
    scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream, name: str
) -> None:
    events = STREAMS[name]
    frames: tuple[Callable[[bytes], bytes], ...] = (
        lambda data: b"data: %b\n\n" % data.replace(b"\n", b"\ndata: "),
        lambda data: b"data:%b\r\n\r\n" % data.replace(b"\n", b"\r\ndata:"),
    )
    for frame in frames:
        upstream.set_events(*events, DONE, frame=frame)
        answer = await scripted_client.post(URL, json=stream_request())
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
    lambda delta, members, separators, escape: json.dumps(
        {**members, "choices": [{"index": 0, "delta": delta}]}, ensure_ascii=escape, separators=separators
    ).encode(errors="surrogatepass" if escape else "replace"),
    st.dictionaries(st.sampled_from(["content", "tool_calls", "reasoning_content", "ü", "role"]), JSON, max_size=3),
    st.dictionaries(st.sampled_from(["x", "created", "ü\n", "service_tier"]), JSON, max_size=2),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", "\t:  ")]),
    st.booleans(),
)


@given(
    st.lists(CHUNKS, min_size=1, max_size=8),
    st.lists(st.integers(1, 400), max_size=12),
    st.sampled_from(["\n", "\r", "\r\n"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_events_in_any_reads(
    assert_passed_on: Callable[[list[bytes], Sequence[bytes]], None], events: list[bytes], sizes: list[int], end: str
) -> None:
    content = b"".join(b"data: %b%b" % (data, end.encode() * 2) for data in [*events, DONE])
    writes, start = [], 0
    for size in sizes:
        writes.append(content[start : start + size])
        start += size
    assert_passed_on(events, [write for write in (*writes, content[start:]) if write])


@pytest.fixture
def assert_passed_on(
    app: HostedApp, model_service_port: int
) -> Iterator[Callable[[list[bytes], Sequence[bytes]], None]]:
    """Sends the writes upstream, in an event loop of its own, and compares what a client receives with the events."""
    upstream = ScriptedUpstream()

    async def check(client: httpx.AsyncClient, events: list[bytes], writes: Sequence[bytes]) -> None:
        upstream.writes = writes
        response = await client.post(URL, json=stream_request())
        assert events_of(response.content) == [*events, DONE]

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        client = runner.run(stack.enter_async_context(app.client()))
        runner.run(stack.enter_async_context(upstream.listen(model_service_port)))
        yield lambda events, writes: runner.run(check(client, events, writes))
        runner.run(stack.aclose())


# ── Usage ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def record_of(app: HostedApp, request_id: str) -> dict[str, Any]:
    """The record of a stream, which is printed after its end."""
    return await eventually(lambda: app.stream_records().get(request_id))


@pytest.mark.parametrize(
    ("options", "requested"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": None}, False),
        ({"include_usage": False, "include_obfuscation": False}, False),
        ({"include_usage": True, "include_obfuscation": True, "unknown": [1]}, True),
    ],
)
async def test_usage_is_always_requested_and_sent_to_a_caller_who_requested_it(
    app: HostedApp,
    scripted_client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    options: dict[str, Any] | None,
    *,
    requested: bool,
) -> None:
    text = chunk({"content": "x"})
    upstream.set_events(text, USAGE, DONE)
    body = stream_request() if options is None else stream_request(stream_options=options)
    answer = await scripted_client.post(URL, json=body)
    assert events_of(answer.content) == ([text, USAGE, DONE] if requested else [text, DONE])
    assert json.loads(upstream.bodies[0])["stream_options"] == {**(options or {}), "include_usage": True}
    record = await record_of(app, answer.headers["x-request-id"])
    assert record["gen_ai.usage.input_tokens"] == 7
    assert record["gen_ai.usage.output_tokens"] == 3
    assert record["gen_ai.usage.reasoning.output_tokens"] == 2


async def test_a_document_is_passed_on_byte_for_byte(
    app: HostedApp, scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    document = (
        '{ "id" : "c", "choices":[{"index":0,"message":{"content":"grün \\u00fc 🌿"},"finish_reason":"stop"}],\n'
        '"usage":{"prompt_tokens":7,"completion_tokens":3},"unknown":{"of":0.10,"big":123456789012345678901234567890}}'
    ).encode()
    upstream.content_type = "application/json"
    upstream.writes = [document[:20], document[20:71], document[71:]]  # the second write ends within a character
    answer = await scripted_client.post(URL, json=document_request())
    assert answer.status_code == 200
    assert answer.content == document
    assert answer.headers["content-type"] == "application/json"
    assert "stream_options" not in json.loads(upstream.bodies[0])
    record = await record_of(app, answer.headers["x-request-id"])
    assert (record["gen_ai.usage.input_tokens"], record["gen_ai.usage.output_tokens"]) == (7, 3)
    assert record["relay.bytes_sent"] == len(document)


# ── The upstream request ─────────────────────────────────────────────────────────────────────────────────────────────

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
    "unknown": "[1e400, -0.0, 1e-400, 12345678901234567890.123456789]",
    "ünknown": '{"deep":' + "[" * 60 + "]" * 60 + "}",
}


@pytest.mark.parametrize("stream", ["true", "false", "null"])
async def test_members_are_sent_upstream_unchanged(
    scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream, stream: str
) -> None:
    members = {"model": f'"{DEFAULT_DEPLOYMENT}"', "stream": stream, "max_completion_tokens": "5", **MEMBERS}
    body = "{" + " ,\n".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "}"
    upstream.set_events(chunk({"content": "x"}), DONE)
    if stream != "true":
        upstream.content_type, upstream.writes = "application/json", [b'{"choices":[{}]}']
    answer = await scripted_client.post(URL, content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    sent = msgspec.json.decode(upstream.bodies[0], type=dict[str, msgspec.Raw])
    assert {name: bytes(sent[name]).decode() for name in members} == members
    assert set(sent) - set(members) == ({"stream_options", "max_tokens"} if stream == "true" else {"max_tokens"})
    assert bytes(sent["max_tokens"]) == b"5", "the caller's limit, under the name that other servers know"
    assert upstream.headers[0]["accept"] == ("text/event-stream" if stream == "true" else "application/json")


async def test_half_a_surrogate_pair_is_sent_upstream(
    scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    upstream.set_events(chunk({"content": "x"}), DONE)
    body = b'{"stream":true,"messages":[{"role":"user","content":"\\ud83d"}],"user":"\\ude00"}'
    answer = await scripted_client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    sent = msgspec.json.decode(upstream.bodies[0].replace(b"\\ud", b"\\\\ud"))
    assert sent["messages"][0]["content"] == "\\ud83d"
    assert sent["user"] == "\\ude00"


async def test_the_callers_headers_are_not_sent_upstream(
    scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    upstream.set_events(chunk({"content": "x"}), DONE)
    headers = {"X-Functions-Key": "a-key", "Cookie": "a=b", "Authorization": "Bearer mine", "OpenAI-Organization": "o"}
    answer = await scripted_client.post(URL, json=stream_request(), headers=headers | {"X-Stainless-Lang": "js"})
    assert answer.status_code == 200
    (sent,) = upstream.headers
    assert not {"x-functions-key", "cookie", "openai-organization"} & set(sent)
    assert "mine" not in str(sent)
    assert sent["content-type"] == "application/json"
    assert sent["accept"] == "text/event-stream"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, dict.fromkeys(("max_completion_tokens", "max_tokens"), OUTPUT_LIMIT)),
        ({"max_tokens": None}, dict.fromkeys(("max_completion_tokens", "max_tokens"), OUTPUT_LIMIT)),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": OUTPUT_LIMIT + 1}, {"max_tokens": OUTPUT_LIMIT}),
        ({"max_completion_tokens": 7}, {"max_completion_tokens": 7, "max_tokens": 7}),
        ({"max_completion_tokens": 10**30}, dict.fromkeys(("max_completion_tokens", "max_tokens"), OUTPUT_LIMIT)),
        (
            {"max_completion_tokens": OUTPUT_LIMIT, "max_tokens": 5000},
            {"max_completion_tokens": OUTPUT_LIMIT, "max_tokens": OUTPUT_LIMIT},
        ),
        ({"max_completion_tokens": None, "max_tokens": 5000}, {"max_tokens": OUTPUT_LIMIT}),
    ],
)
async def test_the_output_limit_is_capped(
    limited_app: HostedApp, upstream: ScriptedUpstream, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    upstream.set_events(chunk({"content": "x"}), DONE)
    async with limited_app.client() as client:
        assert (await client.post(URL, json=stream_request(**given))).status_code == 200
    body = json.loads(upstream.bodies[0])
    limits = {name: body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None}
    assert limits == sent


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (document_request(max_tokens=0), "max_tokens"),
        (document_request(max_tokens="5"), "max_tokens"),
        (document_request(max_completion_tokens=True), "max_completion_tokens"),
        (document_request(max_completion_tokens=1.5), "max_completion_tokens"),
        (document_request(model=""), "model"),
        (document_request(model=["a"]), "model"),
        (document_request(stream="yes"), "stream"),
        (stream_request(stream_options=[]), "stream_options"),
        ({"model": DEFAULT_DEPLOYMENT}, "messages"),
        (document_request(Model="gpt-5.5"), "Model"),
        (document_request(MAX_TOKENS=10**6), "MAX_TOKENS"),
        (document_request() | {"max_to\u212aens": 10**6}, "max_to\u212aens"),
        (stream_request(stream_options={"INCLUDE_USAGE": False}), "stream_options.INCLUDE_USAGE"),
    ],
)
async def test_a_wrong_member_is_named(
    client: httpx.AsyncClient, model_service: ModelService, body: dict[str, Any], param: str
) -> None:
    answer = await client.post(URL, json=body)
    check_error(answer, 400, "invalid_request", "invalid_request_error")
    assert answer.json()["error"]["param"] == param
    assert param in answer.json()["error"]["message"]
    assert model_service.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": [}', b'{"messages": "caf\xe9"}', b'{"messages": NaN}', b'{"a":' + b"[" * 99_999]
)
async def test_body_that_is_not_json(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(URL, content=body, headers={"Content-Type": "application/json"})
    check_error(answer, 400, "invalid_json", "invalid_request_error")


# ── The same answers as without the app ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "members",
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
    ids=lambda members: " ".join(members) or "plain",
)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_is_the_model_services_own(
    client: httpx.AsyncClient, model_service: ModelService, members: dict[str, Any], *, stream: bool
) -> None:
    body = document_request(stream=stream, **members) | ({"stream_options": {"include_usage": True}} if stream else {})
    relayed = await client.post(URL, json=body)
    async with httpx.AsyncClient(headers={"api-key": "k"}) as direct_client:
        direct = await direct_client.post(model_service.url + "chat/completions", json=body)
    assert relayed.status_code == direct.status_code == 200
    assert without_ids(relayed.content) == without_ids(direct.content)


def without_ids(content: bytes) -> bytes:
    """The same without what differs from one answer to the next: ids and the time."""
    return re.sub(rb'"(chatcmpl-|call_)[\w-]+"|"created":\d+', b"-", content)


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/plain", "application/x-ndjson", "text/event-stream;q=0", "nonsense"]
)
async def test_accept_has_no_effect(client: httpx.AsyncClient, accept: str) -> None:
    answer = await client.post(URL, json=stream_request(), headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events_of(answer.content)[-1] == DONE
    answer = await client.post(URL, json=document_request(), headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["object"] == "chat.completion"


async def test_default_model(client: httpx.AsyncClient, model_service: ModelService) -> None:
    body = document_request()
    del body["model"]
    for model in ({}, {"model": None}):
        assert (await client.post(URL, json=body | model)).status_code == 200
    assert {record.deployment for record in model_service.requests} == {DEFAULT_DEPLOYMENT}


async def test_list_of_models(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["object"] == "list"
    assert [model["id"] for model in document["data"]] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]
    for model in document["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert model["object"] == "model"
        assert isinstance(model["created"], int)


# ── Failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_error(answer: httpx.Response | StreamedResponse, status: int, code: str | None, kind: str) -> None:
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
# Outcomes other than those of `/stream`: the model service's own error about the request is passed on, and a refusal is
# no content.
OF_THIS_WIRE: Final = {"400": Refused(400, "invalid_value"), "refusal": Complete("")}


@pytest.fixture(scope="module")
def faulty_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with two deployments for each fault, one for a stream and one for a document."""
    deployments = [f"{fault}/{answer}" for fault in OUTCOMES for answer in ("stream", "document")]
    return functions_app(
        env=app_settings
        | {
            "AZURE_OPENAI_DEPLOYMENTS": ",".join(deployments),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": "10",
            "MAX_OUTPUT_TOKENS": "1000000",
        }
    )


@pytest.mark.parametrize("fault", OUTCOMES)
async def test_fault_of_the_model_service(faulty_app: HostedApp, model_service: ModelService, fault: str) -> None:
    outcome = OF_THIS_WIRE.get(fault, OUTCOMES[fault])
    model_service.answer(TOKENS)
    model_service.tokens_per_write = 3
    model_service.faults.update({f"{fault}/{answer}": fault for answer in ("stream", "document")})
    async with faulty_app.client() as client:
        stream, document = await asyncio.gather(
            post_streamed(client, URL, stream_request(model=f"{fault}/stream")),
            client.post(URL, json=document_request(model=f"{fault}/document")),
        )
    # Some clients skip an error event, and a clean end behind it would pass for that of a complete answer.
    assert stream.broken == isinstance(outcome, Interrupted)
    match outcome:
        case Refused():
            check_refused(stream, outcome, OWN_TYPES.get(fault))
        case Interrupted():
            *chunks, last = events_of(stream.content)
            assert text_of(chunks) == outcome.text
            assert DONE not in chunks
            check_error_members(json.loads(last), outcome.code, TYPES.get(outcome.status, "server_error"))
        case Complete():
            *chunks, last = events_of(stream.content)
            assert last == DONE
            assert join_surrogates(text_of(chunks)) == outcome.text
            assert not any(b'"usage":{' in data for data in chunks), "usage was not requested"
    # Nothing of a document is sent before its end: each failure has its own status.
    if isinstance(outcome, Refused) and (outcome.status == 400 or fault not in STREAM_FAULTS):
        check_refused(document, outcome, OWN_TYPES.get(fault))
    elif isinstance(outcome, Interrupted) and fault not in STREAM_FAULTS:
        # Nothing was sent, so that nothing was interrupted.
        code = {"upstream_interrupted": "upstream_error"}.get(outcome.code, outcome.code)
        check_error(document, outcome.status, code, "server_error")
    elif document.status_code == 200:
        assert document.json()["object"] == "chat.completion"
    else:
        check_error(document, 502, "upstream_error", "server_error")
    await eventually(lambda: model_service.open_requests == 0)
    times = (fault in REPEATED) + (fault in REPEATED and "no-stream-options" not in fault)
    assert len(model_service.requests) == 2 + times, "how often a request is sent to a deployment"


OWN_TYPES: Final = {"error-too-long": "BadRequestError"}  # passed on with the model service's own words

# Faults in events, of which a document has none: it is complete or invalid.
STREAM_FAULTS: Final = {
    *(fault for fault in OUTCOMES if fault.startswith(("error-", "garbage-")) and faults.parse(fault)[0].fault.steps),
    *("invalid-utf8", "no-chunk", "no-finish+no-chunk", "pings"),
}


def check_refused(answer: httpx.Response | StreamedResponse, outcome: Refused, kind: str | None = None) -> None:
    check_error(answer, outcome.status, outcome.code, kind or TYPES.get(outcome.status, "server_error"))
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
        for choice in json.loads(data.decode(errors="replace")).get("choices") or ()
    )


async def test_failures_before_the_upstream_request(
    functions_app: Callable[..., HostedApp], limited_app: HostedApp, model_service: ModelService
) -> None:
    async with limited_app.client() as client:
        check_error(await client.post(URL, json=document_request(model="unknown")), 404, "model_not_found", TYPES[404])
        check_error(
            await client.post(URL, json=document_request(user="x" * BODY_LIMIT)), 413, "body_too_large", TYPES[400]
        )
        headers = {"Content-Type": "text/plain"}
        answer = await client.post(URL, content=b"{}", headers=headers)
        check_error(answer, 415, "unsupported_media_type", TYPES[400])
    async with functions_app(env={"AZURE_OPENAI_DEPLOYMENTS": "x"}).client() as client:
        for answer in (await client.post(URL, json=document_request()), await client.get("/v1/models")):
            check_error(answer, 503, "not_configured", "server_error")
            assert "AZURE_OPENAI_ENDPOINT" in answer.json()["error"]["message"]
    assert model_service.requests == []


async def test_the_model_services_error_about_the_request_is_passed_on(
    scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    error = {
        "message": "Unsupported value: 'temperature' does not support 0.3 with this model.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    }
    upstream.status, upstream.content_type = 400, "application/json"
    upstream.writes = [json.dumps({"error": error}).encode()]
    answer = await scripted_client.post(URL, json=stream_request(temperature=0.3))
    check_error(answer, 400, "unsupported_value", "invalid_request_error")
    assert answer.json()["error"] == error


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
async def test_the_model_services_address_is_never_passed_on(
    scripted_client: httpx.AsyncClient, upstream: ScriptedUpstream, model_service_port: int, status: int
) -> None:
    host = f"127.0.0.1:{model_service_port}"
    message = f"Resource http://{host}/openai/v1/ ({host}, 127.0.0.1) can't do this: see http://{host}/help."
    error = {"message": message, "type": host, "param": host, "code": host}
    upstream.status, upstream.content_type = status, "application/json"
    upstream.writes = [json.dumps({"error": error}).encode()]
    for body in (stream_request(), document_request()):
        answer = await scripted_client.post(URL, json=body)
        assert answer.status_code >= 400
        assert "127.0.0.1" not in answer.text
        assert str(model_service_port) not in answer.text


# ── The life of a stream ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_chunk_is_sent_when_it_arrives(client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["one", "two", "three"], MANUAL_PACE)
    model_service.release()  # the commit comes with the first output
    async with client.stream("POST", URL, json=stream_request(model=MANUAL_PACE)) as response:
        received = b""
        chunks = response.aiter_raw()
        for token in (b"one", b"two", b"three"):
            async with asyncio.timeout(30):
                while token not in received:
                    received += await anext(chunks)
            model_service.release()
        async for content in chunks:
            received += content
    assert events_of(received)[-1] == DONE


@pytest.mark.parametrize("moment", ["before-the-headers", "before-the-text", "within-the-text", "in-a-document"])
async def test_disconnect_ends_the_upstream_request(app: HostedApp, model_service: ModelService, moment: str) -> None:
    body = stream_request(model=MANUAL_PACE)
    model_service.answer(["one", "two", "three"])
    if moment == "before-the-headers":
        model_service.faults[MANUAL_PACE] = "stall-headers"
    elif moment == "in-a-document":
        body = document_request()
        model_service.faults["*"] = "stall-headers"
    request_id = f"disconnect-{moment}"
    received = bytearray()

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", URL, json=body) as response:
            async for content in response.aiter_raw():
                received.extend(content)

    async with app.client(headers={"X-Request-Id": request_id}) as client:
        reading = asyncio.create_task(read(client))
        await model_service.wait_for(lambda service: service.open_requests)
        if moment == "within-the-text":
            model_service.release(2)
            await eventually(lambda: b"two" in received)
        else:
            await asyncio.sleep(0.1)  # what the upstream has sent can arrive
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    # Sooner than the first ping: it is not a failed write that ends the stream.
    await model_service.wait_for(lambda service: service.open_requests == 0, timeout=4)
    assert model_service.requests[0].ended == "aborted"
    record = await record_of(app, request_id)
    assert record["relay.outcome"] == "cancelled"
    if moment == "within-the-text":
        assert record["gen_ai.usage.output_tokens"] == 2
        assert record["relay.usage_estimated"] is True


LATE: Final = {
    "stall-headers": "upstream_timeout",
    "stall-first": "upstream_timeout",
    "cut-first+stall-headers-0.6": "upstream_interrupted",
    "error-first+stall-headers-0.6": "upstream_error",
    "html+stall-headers-0.6": "upstream_error",
}


@pytest.mark.parametrize("fault", LATE)
async def test_failure_after_the_commit_is_an_event(
    limited_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    model_service.faults["*"] = fault
    async with limited_app.client() as client:
        answer = await post_streamed(client, URL, stream_request())
    assert (answer.status_code, answer.broken) == (200, True)
    assert answer.content.count(PING + b"\n\n") >= 2
    (last,) = events_of(answer.content)
    check_error_members(json.loads(last), LATE[fault], "server_error")
    await eventually(lambda: model_service.open_requests == 0)


async def test_pings_during_a_silence(limited_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(TOKENS)
    model_service.faults["*"] = "stall-first-0.6+stall-midway-0.6"
    async with limited_app.client() as client:
        answer = await client.post(URL, json=stream_request())
    assert answer.content.startswith(PING + b"\n\n")
    assert answer.content.count(PING + b"\n\n") >= 4
    *chunks, last = events_of(answer.content)
    assert last == DONE
    assert text_of(chunks) == TEXT


async def test_pings_keep_their_interval_where_the_commit_wait_is_longer(
    limited_app: HostedApp, model_service: ModelService
) -> None:
    model_service.faults["*"] = "stall-headers-1.1"
    async with limited_app.client() as client:
        answer = await client.post(URL, json=stream_request())
    assert answer.content.count(PING + b"\n\n") >= 5


async def test_the_deadline(limited_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 15
    model_service.answer([f"word{number} " for number in range(200)])
    async with limited_app.client() as client:
        began = time.monotonic()
        stream, document = await asyncio.gather(
            post_streamed(client, URL, stream_request()), client.post(URL, json=document_request())
        )
        assert DEADLINE <= time.monotonic() - began < 6  # of the 6.7 s that the output limit's tokens take
    assert stream.broken
    *chunks, last = events_of(stream.content)
    assert text_of(chunks).startswith("word0 word1 ")
    assert DONE not in chunks
    check_error_members(json.loads(last), "deadline_exceeded", "server_error")
    # The model service is silent until its document is complete.
    assert document.status_code == 504
    assert document.json()["error"]["code"] in ("deadline_exceeded", "upstream_timeout")
    await eventually(lambda: model_service.open_requests == 0)
