"""The simulated model service over a real socket: Azure's responses, and every fault on demand."""

import asyncio
import base64
import json
import random
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import openai
import pytest

from local.model_service import (
    ANY_DEPLOYMENT,
    MANUAL_PACE,
    IdentityEndpoint,
    ModelService,
    Record,
    faults,
    schema_values,
    steps,
    text_generation,
)
from local.model_service.answers import SCHEMA_ERRORS
from local.model_service.patterns import text_for_pattern
from tests.model_service_requests import example_of, read_until_broken

ROOT = Path(__file__).parent.parent
KEY = {"api-key": "a-key"}


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    # Without a time of its own: what a long answer takes depends on the machine, and a test has pytest's timeout.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
        yield session


def ask(prompt: str = "say: one two three four five six seven eight", **members: Any) -> dict[str, Any]:
    return {"model": "gpt-5.4-mini", "stream": True, "messages": [{"role": "user", "content": prompt}]} | members


async def body_of(http: aiohttp.ClientSession, service: ModelService, body: dict[str, Any]) -> bytes:
    async with http.post(service.url + "chat/completions", json=body, headers=KEY) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def read_chat(http: aiohttp.ClientSession, service: ModelService, body: dict[str, Any]) -> tuple[bytes, bool]:
    """A response of the chat wire as `read_until_broken` reads it."""
    return await read_until_broken(http, service.url + "chat/completions", body, KEY)


async def raw_stream(service: ModelService, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which the request was sent, for what an HTTP client would hide."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    text = json.dumps(body).encode()
    head = f"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\napi-key: k\r\nContent-Length: {len(text)}\r\n\r\n"
    writer.write(head.encode() + text)
    return reader, writer


def events_of(body: bytes) -> list[Any]:
    """The events of a stream by the rules of the HTML standard, decoded except `[DONE]`."""
    events: list[Any] = []
    data: list[str] = []
    for line in body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line and data:
            text = "\n".join(data)
            events.append("[DONE]" if text == "[DONE]" else json.loads(text))
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    return events


def text_of(events: list[Any], index: int = 0) -> str:
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    parts = [choice.get("delta", {}).get("content") or "" for choice in choices if choice["index"] == index]
    return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16")


async def test_a_stream_has_azures_events_in_azures_order(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = events_of(await body_of(http, service, ask(stream_options={"include_usage": True})))
    first, role, *content, finish, usage, done = events
    assert first["choices"] == []
    assert first["prompt_filter_results"][0]["content_filter_results"]["jailbreak"]["filtered"] is False
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["delta"]["content"] for event in content][:3] == ["one", " two", " three"]
    assert all(event["choices"][0]["content_filter_results"]["hate"]["severity"] == "safe" for event in content)
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(content) == 8
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 8
    assert done == "[DONE]"
    assert {event["model"] for event in events[1:-1]} == {"gpt-5.4-mini-2026-03-17"}
    assert len({(event["id"], event["created"], event["system_fingerprint"]) for event in events[1:-1]}) == 1
    # Padding fills each chunk to whole blocks, so that its length reveals less of the token.
    padded = [len(json.dumps(event["choices"][0]["delta"]["content"]) + event["obfuscation"]) for event in content]
    assert [length % 16 for length in padded] == [0] * 8


async def test_usage_and_obfuscation_only_on_request(service: ModelService, http: aiohttp.ClientSession) -> None:
    body = await body_of(http, service, ask(stream_options={"include_obfuscation": False}))
    assert b'"usage"' not in body
    assert b'"obfuscation"' not in body


async def test_the_official_client_reads_streams_and_documents(service: ModelService) -> None:
    async with openai.AsyncOpenAI(base_url=service.url, api_key="k", max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": "write a random 100 word paragraph"}]
        stream = await client.chat.completions.create(model="gpt-5.4-mini", messages=messages, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        whole = await client.chat.completions.create(model="gpt-5.4-mini", messages=messages)
        assert whole.choices[0].message.content == streamed
        assert len(streamed.split()) == 100
        assert whole.usage is not None
        assert whole.usage.completion_tokens == len(text_generation.tokenize(streamed))
        assert [model.id for model in (await client.models.list()).data] == ["gpt-5.4-mini"]
        assert (await client.models.retrieve("any-name")).id == "any-name"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("missing-one")
        two = await client.chat.completions.create(model="m", messages=messages, n=2, stream=True)
        seen = {choice.index async for chunk in two for choice in chunk.choices}
        assert seen == {0, 1}
    assert service.requests[0].auth == "token"
    assert [record.ended for record in service.requests] == ["complete"] * 3


async def test_limits_and_stop(service: ModelService, http: aiohttp.ClientSession) -> None:
    limited = events_of(await body_of(http, service, ask(max_completion_tokens=3)))
    assert text_of(limited) == "one two three"
    assert limited[-2]["choices"][0]["finish_reason"] == "length"
    stopped = events_of(await body_of(http, service, ask(stop=["six", " four"])))
    assert text_of(stopped) == "one two three"
    assert stopped[-2]["choices"][0]["finish_reason"] == "stop"


async def test_a_tool_is_called_and_its_result_answered(service: ModelService) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
    }
    tools: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    messages: list[Any] = [{"role": "user", "content": "the weather in Kyoto?"}]
    async with openai.AsyncOpenAI(base_url=service.url, api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=messages, tools=tools, stream=True)
        calls = []
        async for chunk in stream:
            calls += chunk.choices[0].delta.tool_calls or [] if chunk.choices else []
            reason = chunk.choices[0].finish_reason if chunk.choices else None
        assert reason == "tool_calls"
        assert calls[0].function.name == "weather"
        assert len(calls) > 3
        arguments = json.loads("".join(call.function.arguments for call in calls))
        assert arguments.keys() == {"city", "unit", "days"}
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert 1 <= arguments["days"] <= 7
        whole = await client.chat.completions.create(model="m", messages=messages, tools=tools)
        call = whole.choices[0].message.tool_calls
        assert call is not None
        messages += [whole.choices[0].message, {"role": "tool", "tool_call_id": call[0].id, "content": "21 degrees"}]
        answer = await client.chat.completions.create(model="m", messages=messages, tools=tools)
        assert "21 degrees" in str(answer.choices[0].message.content)


TOOL_RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
HAMMER: dict[str, Any] = {"type": "function", "function": {"name": "hammer"}}
NAIL: dict[str, Any] = {"type": "function", "function": {"name": "nail", "parameters": {"properties": {"n": {}}}}}


@pytest.mark.parametrize(
    ("members", "called"),
    [
        ({"tool_choice": "auto"}, ["hammer"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": "required"}, ["hammer"]),
        ({"tool_choice": {"type": "function", "function": {"name": "nail"}}}, ["nail"]),
        ({"messages": [{"role": "user", "content": "use all tools"}]}, ["hammer", "nail"]),
        ({"messages": [{"role": "user", "content": "use all tools"}], "parallel_tool_calls": False}, ["hammer"]),
        ({"messages": [TOOL_RESULT]}, []),
        ({"messages": [TOOL_RESULT], "tool_choice": "required"}, ["hammer"]),
    ],
)
async def test_which_tools_are_called(service: ModelService, members: dict[str, Any], called: list[str]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "tools": [HAMMER, NAIL]} | members
    async with openai.AsyncOpenAI(base_url=service.url, api_key="k", max_retries=0) as client:
        whole = (await client.chat.completions.create(**body)).choices[0].message
        calls = whole.tool_calls or []
        assert [call.function.name for call in calls] == called
        async with client.chat.completions.stream(**body) as stream:
            streamed = (await stream.get_final_completion()).choices[0].message
        assert [call.function.name for call in streamed.tool_calls or []] == called
        assert [call.function.arguments for call in streamed.tool_calls or []] == [
            call.function.arguments for call in calls
        ]
        assert streamed.content == whole.content


async def test_each_of_several_choices_calls_the_tool(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = events_of(await body_of(http, service, ask("hello", n=2, tools=[HAMMER])))
    finished = [choice for event in events[:-1] for choice in event["choices"] if choice["finish_reason"]]
    assert [(choice["index"], choice["finish_reason"]) for choice in finished] == [(0, "tool_calls"), (1, "tool_calls")]


async def test_the_dated_api_names_the_deployment_in_the_path(
    service: ModelService, http: aiohttp.ClientSession
) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=service.origin, api_key="k", api_version="2024-10-21", max_retries=0
    ) as azure:
        messages: list[Any] = [{"role": "user", "content": "say: hello"}]
        whole = await azure.chat.completions.create(model="mine", messages=messages)
        assert whole.choices[0].message.content == "hello"
        assert [model.id for model in (await azure.models.list()).data] == ["gpt-5.4-mini"]
        assert (await azure.models.retrieve("mine")).id == "mine"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await azure.chat.completions.create(model="a-missing-one", messages=messages)
        with pytest.raises(openai.RateLimitError):
            await azure.chat.completions.create(model="fault-429", messages=messages)
    record = service.requests[0]
    assert (record.deployment, record.path) == ("mine", "/openai/deployments/mine/chat/completions")
    path = f"{service.origin}/openai/deployments/mine/chat/completions"
    async with http.post(path + "?api-version=2024-10-21", json={"messages": messages}, headers=KEY) as response:
        assert response.status == 200
    assert service.requests[-1].deployment == "mine"
    assert "model" not in service.requests[-1].body
    async with http.post(path, json={"messages": messages}, headers=KEY) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "404")


async def test_json_and_pictures_and_logprobs(service: ModelService, http: aiohttp.ClientSession) -> None:
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 4},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 3},
            "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "$defs": {"tag": {"type": "string", "const": "t"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    value = json.loads(text_of(events_of(await body_of(http, service, ask("a story", response_format=wanted)))))
    assert len(value["title"]) <= 4
    assert value["tags"] == ["t", "t", "t"]
    loose = ask("a story", response_format={"type": "json_object"})
    assert json.loads(text_of(events_of(await body_of(http, service, loose))))["topics"] == ["story"]
    named = ask("a joke as JSON, with `setup` and 'punchline'", response_format={"type": "json_object"})
    joke = json.loads(text_of(events_of(await body_of(http, service, named))))
    assert list(joke) == ["setup", "punchline"]
    assert joke["setup"] != joke["punchline"]

    url = "data:image/png;base64," + base64.b64encode(b"12345").decode()
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    seen = text_of(events_of(await body_of(http, service, ask(messages=[{"role": "user", "content": parts}]))))
    assert "I see 1 picture (image/png, 5 bytes)." in seen

    likely = events_of(await body_of(http, service, ask(logprobs=True, top_logprobs=2)))[2]["choices"][0]["logprobs"]
    assert likely["content"][0]["token"] == "one"
    assert len(likely["content"][0]["top_logprobs"]) == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, None, None),
        (b"\xff", 400, None, None),
        (b"[]", 400, None, None),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "missing_required_parameter", "model"),
        ({"model": "m"}, 400, "missing_required_parameter", "messages"),
        ({"model": "m", "messages": ["x"]}, 400, "invalid_type", "messages"),
        (ask(n="two"), 400, "invalid_type", "n"),
        (ask(n=0), 400, "invalid_type", "n"),
        (ask(stop=7), 400, "invalid_type", "stop"),
        (ask(tools=["hammer"]), 400, "invalid_type", "tools"),
        (ask(response_format={"type": "json_schema"}), 400, "invalid_json_schema", "response_format"),
        (
            ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}),
            400,
            "invalid_json_schema",
            "response_format",
        ),
        (ask(model="o3", temperature=0.5), 400, "unsupported_value", "temperature"),
        (ask(model="my-reasoning", max_tokens=5), 400, "unsupported_parameter", "max_tokens"),
        (ask(model="a-missing-one"), 404, "DeploymentNotFound", None),
        (ask(model="text-embedding-3-small"), 400, "OperationNotSupported", None),
        (ask(tool_choice="sometimes"), 400, "invalid_type", "tool_choice"),
        (ask(model="fault-unheard-of"), 400, "unknown_fault", "model"),
        (ask(model="fault-429-1-2-3"), 400, "unknown_fault", "model"),
    ],
)
async def test_error_responses(
    service: ModelService, http: aiohttp.ClientSession, body: Any, status: int, code: str | None, param: str | None
) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(service.url + "chat/completions", data=text, headers=KEY) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert error["code"] == code
    assert error.get("param") == param
    assert service.requests[0].ended == "fault"
    assert service.requests[0].status == status


@pytest.mark.parametrize(
    ("deployment", "status", "code"),
    [
        ("gpt-5.4-mini", 400, "missing_required_parameter"),
        ("a-missing-one", 404, "DeploymentNotFound"),
        ("fault-429", 429, "RateLimitReached"),
        ("fault-401-role", 401, "PermissionDenied"),
        ("fault-stall-headers-0.2", 400, "missing_required_parameter"),
        ("fault-stall-headers-0.2+429", 429, "RateLimitReached"),
        ("fault-stall-midway-ever", 400, "missing_required_parameter"),
    ],
)
async def test_errors_of_the_deployment_come_before_those_of_the_messages(
    service: ModelService, http: aiohttp.ClientSession, deployment: str, status: int, code: str
) -> None:
    began = time.monotonic()
    body = {"model": deployment, "messages": []}
    async with http.post(service.url + "chat/completions", json=body, headers=KEY) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
    assert time.monotonic() - began >= (0.2 if deployment.endswith("0.2") else 0)


async def test_a_connection_is_cut_before_the_messages_are_validated(
    service: ModelService, http: aiohttp.ClientSession
) -> None:
    assert await read_chat(http, service, {"model": "fault-cut-headers", "messages": []}) == (b"", True)
    await service.wait_for(lambda it: it.requests[0].ended == "fault")


async def test_authentication(http: aiohttp.ClientSession) -> None:
    async with ModelService(tokens_per_second=0, api_key="right", accept_token="t0ken") as service:

        async def status(**headers: str) -> int:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            async with http.post(service.url + "chat/completions", json=ask(), headers=given) as response:
                return response.status

        assert await status() == 401
        assert await status(api_key="wrong") == 401
        assert await status(api_key="right") == 200
        assert await status(Authorization="Bearer ") == 401
        assert await status(Authorization="Bearer wrong") == 401
        assert await status(Authorization="Bearer t0ken") == 200
        assert await status(Authorization="Bearer right") == 200  # how an OpenAI client sends a key
        assert [record.auth for record in service.requests] == [None, "key", "key", None, "token", "token", "token"]
        async with http.get(service.url + "models") as response:
            assert response.status == 401


async def test_managed_identity(http: aiohttp.ClientSession) -> None:
    identity = IdentityEndpoint(header="secret")
    async with ModelService(tokens_per_second=0, require_issued_token=True, identity=identity) as service:
        query = {"api-version": "2019-08-01", "resource": "https://cognitiveservices.azure.com", "client_id": "c"}

        async def token(header: str = "secret") -> tuple[int, dict[str, Any]]:
            headers = {"X-IDENTITY-HEADER": header}
            async with http.get(service.identity_url, params=query, headers=headers) as response:
                return response.status, await response.json()

        async def status(bearer: str) -> int:
            headers = {"Authorization": f"Bearer {bearer}"}
            async with http.post(service.url + "chat/completions", json=ask(), headers=headers) as response:
                return response.status

        got, issued = await token()
        assert got == 200
        assert issued["token_type"] == "Bearer"
        assert issued["resource"] == query["resource"]
        assert int(issued["expires_on"]) == pytest.approx(time.time() + identity.lifetime, abs=5)
        assert await status(issued["access_token"]) == 200
        assert await status("unknown-token") == 401
        identity.lifetime = -1
        assert await status((await token())[1]["access_token"]) == 401
        assert (await token("wrong"))[0] == 401
        identity.failure = [500, None]
        assert [(await token())[0] for _ in range(3)] == [500, 200, 200]
        identity.failure = 503
        assert (await token())[0] == 503
        assert len(identity.calls) == 7
        assert identity.calls[0] == query


async def test_azure_identity_gets_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity.aio import ManagedIdentityCredential

    async with ModelService(tokens_per_second=0, require_issued_token=True) as service:
        monkeypatch.setenv("IDENTITY_ENDPOINT", service.identity_url)
        monkeypatch.setenv("IDENTITY_HEADER", service.identity.header)
        async with ManagedIdentityCredential() as credential:
            token = await credential.get_token("https://cognitiveservices.azure.com/.default")
        assert service.identity.accepts(token.token)


# ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ERRORS = {
    "400": (400, "invalid_value", {}),
    "context-length": (400, "context_length_exceeded", {}),
    "content-filter": (400, "content_filter", {}),
    "401": (401, "401", {}),
    "401-role": (401, "PermissionDenied", {}),
    "403": (403, "403", {}),
    "404": (404, "DeploymentNotFound", {}),
    "408": (408, "Timeout", {}),
    "429": (429, "RateLimitReached", {"Retry-After": "1"}),
    "429-7": (429, "RateLimitReached", {"Retry-After": "7"}),
    "429-ms-40": (429, "RateLimitReached", {"retry-after-ms": "40"}),
    "429-x-ms-50": (429, "RateLimitReached", {"x-ms-retry-after-ms": "50"}),
    "429-absurd": (429, "RateLimitReached", {"Retry-After": "86400"}),
    "429-garbled": (429, "RateLimitReached", {"Retry-After": "soon"}),
    "429-none": (429, "RateLimitReached", {}),
    "500": (500, "InternalServerError", {}),
    "503": (503, "ServiceUnavailable", {}),
    "503-after-3": (503, "ServiceUnavailable", {"Retry-After": "3"}),
    "504": (504, "GatewayTimeout", {}),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_faults_that_are_errors(service: ModelService, http: aiohttp.ClientSession, name: str) -> None:
    status, code, headers = ERRORS[name]
    async with http.post(service.url + "chat/completions", json=ask(model="fault-" + name), headers=KEY) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
        retry = ("Retry-After", "retry-after-ms", "x-ms-retry-after-ms")
        assert {header: response.headers[header] for header in retry if header in response.headers} == headers
    assert service.requests[0].fault == "fault-" + name


async def test_errors_in_other_shapes(service: ModelService, http: aiohttp.ClientSession) -> None:
    async with http.post(service.url + "chat/completions", json=ask(model="fault-502"), headers=KEY) as response:
        assert (response.status, response.content_type) == (502, "text/html")
    async with http.post(service.url + "chat/completions", json=ask(model="fault-429-date"), headers=KEY) as response:
        assert response.headers["Retry-After"].endswith(" GMT")
    async with http.post(
        service.url + "chat/completions", json=ask(model="fault-content-filter"), headers=KEY
    ) as response:
        inner = (await response.json())["error"]["innererror"]
        assert inner["content_filter_result"]["violence"] == {"filtered": True, "severity": "medium"}


# The same text arrives in all these encodings.
HARMLESS = [
    "split-1",
    "split-2",
    "one-write",
    "crlf",
    "cr",
    "no-space",
    "data-lines",
    "fields",
    "comments",
    "async-filter",
    "no-filter",
    "no-role",
    "no-usage",
    "double-finish",
    "empty-content",
    "null-content",
    "thinking",
    "escaped",
    "surrogates",
    "surrogates+split-3",
    "crlf+comments+split-9",
    "bytes",
]


@pytest.mark.parametrize("name", HARMLESS)
async def test_rare_but_correct(service: ModelService, http: aiohttp.ClientSession, name: str) -> None:
    text = 'A "word" \\ and\nanother, café 🌿🌿 日本語 ]}'
    body = await body_of(http, service, ask(f"say: {text}", model="fault-" + name))
    events = events_of(body)
    assert text_of(events) == text
    assert events[-1] == "[DONE]"
    plain = events_of(await body_of(http, service, ask(f"say: {text}")))
    marks = {
        "crlf": b"\r\n\r\n",
        "cr": b"\r\r",
        "no-space": b"data:{",
        "comments": b": a comment",
        "fields": b"id: 7\n",
    }
    marks |= {
        "escaped": b"\\ud83c\\udf3f",
        "async-filter": b"content_filter_offsets",
        "null-content": b'"content":null',
        "reasoning": b'"delta":{"reasoning_content":"Let me "}',
    }
    for part in name.split("+"):
        assert marks.get(part, b"") in body
    if name.startswith(("no-role", "no-filter")):
        assert len(events) == len(plain) - 1
    if name in ("double-finish", "empty-content", "null-content", "reasoning", "surrogates"):
        assert len(events) > len(plain)
    assert service.requests[0].ended == "complete"


async def test_each_byte_is_a_write_of_its_own(service: ModelService) -> None:
    reader, writer = await raw_stream(service, ask("say: é", model="fault-bytes"))
    await reader.readuntil(b"\r\n\r\n")
    sizes = []
    while size := int(await reader.readline(), 16):
        sizes.append(size)
        await reader.readexactly(size + 2)
    assert set(sizes) == {1}
    writer.close()


async def test_the_filter_stops_an_answer(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = events_of(await body_of(http, service, ask(model="fault-filter-midway-2")))
    assert text_of(events) == "one two"
    finish = events[-2]["choices"][0]
    assert finish["finish_reason"] == "content_filter"
    assert finish["content_filter_results"]["violence"] == {"filtered": True, "severity": "medium"}
    limited = events_of(await body_of(http, service, ask(model="fault-length-midway-2")))
    assert (text_of(limited), limited[-2]["choices"][0]["finish_reason"]) == ("one two", "length")
    whole = json.loads(await body_of(http, service, ask(model="fault-filter-midway-2", stream=False)))["choices"][0]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("content_filter", "one two")


async def test_a_refusal(service: ModelService) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}]
    async with openai.AsyncOpenAI(base_url=service.url, api_key="k", max_retries=0) as client:
        whole = (await client.chat.completions.create(model="fault-refusal", messages=messages)).choices[0].message
        async with client.chat.completions.stream(model="fault-refusal", messages=messages) as stream:
            streamed = (await stream.get_final_completion()).choices[0].message
    assert whole.refusal == streamed.refusal == "I'm sorry, but I can't help with that."
    assert not whole.content
    assert not streamed.content


@pytest.mark.parametrize(
    ("name", "text", "tail"),
    [
        ("end-midway-3", "one two three", b""),
        ("no-done", "one two three four five six seven eight", b""),
        ("no-finish", "one two three four five six seven eight", b"data: [DONE]\n\n"),
        ("error-midway-3", "one two three", b'"type":"server_error"}}\n\n'),
        ("garbage-midway-99", "one two three four five six seven eight", b"data: [DONE]\n\n"),
    ],
)
async def test_wrong_endings(
    service: ModelService, http: aiohttp.ClientSession, name: str, text: str, tail: bytes
) -> None:
    body = await body_of(http, service, ask(model="fault-" + name))
    assert body.endswith(tail)
    good = [line for line in body.split(b"\n\n") if line.startswith(b'data: {"choices"') and line.endswith(b"}")]
    assert text_of(events_of(b"\n\n".join(good) + b"\n\n")) == text
    if not tail:
        assert b"[DONE]" not in body
    await service.wait_for(lambda one: one.requests[0].ended == "fault")


async def test_wrong_beginnings(service: ModelService, http: aiohttp.ClientSession) -> None:
    assert b"server_error" in (await body_of(http, service, ask(model="fault-error-first"))).split(b"\n\n")[0]
    with pytest.raises(json.JSONDecodeError):
        events_of(await body_of(http, service, ask(model="fault-garbage-first")))
    assert (await body_of(http, service, ask(model="fault-html"))).startswith(b"<html>")
    assert await body_of(http, service, ask(model="fault-empty")) == b""
    with pytest.raises(UnicodeDecodeError):
        events_of(await body_of(http, service, ask(model="fault-invalid-utf8")))
    assert b'"content":"\\ud83d"}' in await body_of(http, service, ask(model="fault-lone-surrogate"))
    assert (await body_of(http, service, ask(model="fault-after-done"))).index(b"[DONE]") > 0
    assert text_of(events_of(await body_of(http, service, ask(model="fault-silent")))) == ""
    async with http.post(service.url + "chat/completions", json=ask(model="fault-content-type"), headers=KEY) as got:
        assert got.content_type == "text/plain"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["cut-headers", "cut-first", "cut-midway-3", "reset-headers", "reset-midway-3"])
async def test_broken_connections(service: ModelService, http: aiohttp.ClientSession, name: str, stream: bool) -> None:
    arrived, broken = await read_chat(http, service, ask(model="fault-" + name, stream=stream))
    assert broken
    await service.wait_for(lambda one: one.requests[0].ended != "open")
    record = service.requests[0]
    assert record.ended == "fault"
    assert record.status == (None if name.endswith("headers") else 200)
    if stream and name == "cut-midway-3":
        assert text_of(events_of(arrived)) == "one two three"
        assert record.tokens == 3


async def test_long_answers(service: ModelService, http: aiohttp.ClientSession) -> None:
    text = text_of(events_of(await body_of(http, service, ask(model="fault-long-60000"))))
    assert 59_990 <= len(text.encode()) <= 60_000
    huge = events_of(await body_of(http, service, ask(model="fault-huge-chunk-300000")))
    assert len(huge) == 5
    assert len(text_of(huge).encode()) > 299_990
    assert len(events_of(await body_of(http, service, ask(model="fault-flood-6000")))) == 6_004


@pytest.mark.parametrize("fault", faults.FAULTS.values(), ids=lambda fault: fault.name)
async def test_every_fault_in_the_table(
    service: ModelService, http: aiohttp.ClientSession, fault: faults.Fault
) -> None:
    name = example_of(fault)
    (injection,) = faults.parse(name)
    assert injection.fault is fault
    assert injection.arguments == (0.02 if fault.name.startswith("stall") else 2.0,) * len(fault.defaults)
    if fault.connection:
        reader, writer = await raw_stream(service, ask(model=name))
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
        writer.close()
        await service.wait_for(lambda one: one.requests[0].ended in ("fault", "aborted"))
        return
    arrived, broken = await read_chat(http, service, ask(model=name))
    await service.wait_for(lambda one: one.requests[0].ended != "open")
    record = service.requests[0]
    if "chat" not in fault.wires:
        assert b"unknown_fault" in arrived
        return
    assert record.fault == name
    if fault.error or record.status in (400, 429):  # the second by the request's own size
        assert (record.ended, broken) == ("fault", False)
        assert record.status is not None
        assert record.status >= 400 or fault.name in ("html-always", "error-document")
    else:
        assert record.ended == ("fault" if fault.breaks else "complete")
        assert broken == fault.name.startswith(("cut", "reset", "brotli"))
        assert fault.breaks or b"[DONE]" in arrived or fault.name == "document"


def test_the_names_of_faults() -> None:
    assert faults.parse("stall-midway-ever-3")[0].arguments == (steps.FOREVER, 3.0)
    assert faults.parse("429")[0].arguments == (1.0,)
    assert [one.fault.name for one in faults.parse("fault-crlf+split-7+429-ms-5")] == ["crlf", "split", "429-ms"]
    assert faults.parse("no-done", "chat")[0].fault.wires == {"chat"}
    with pytest.raises(ValueError, match="the fault 'no-done' is one of chat, not of responses"):
        faults.parse("crlf+no-done", "responses")
    for wrong in ("", "nothing", "429-soon", "crlf-1", "429-1-2"):
        with pytest.raises(ValueError, match=r"fault|float"):
            faults.parse(wrong)


@pytest.mark.parametrize("moment", ["stall-headers", "stall-first", "stall-midway-ever-3", "waiting", "streaming"])
async def test_a_caller_that_disconnects_is_noticed(moment: str) -> None:
    deployment = {"waiting": MANUAL_PACE, "streaming": "gpt-5.4-mini"}.get(moment, f"fault-{moment}")
    async with ModelService(tokens_per_second=200) as service:
        reader, writer = await raw_stream(service, ask("count to 500", model=deployment))
        await service.wait_for(lambda one: one.requests)
        if moment != "stall-headers":
            await reader.readuntil(b"assistant")
        if moment in ("stall-midway-ever-3", "streaming"):
            await service.wait_for(lambda one: one.requests[0].tokens >= 3)
        assert service.open_requests == 1
        writer.close()
        await service.wait_for(lambda one: one.requests[0].ended != "open")
        record = service.requests[0]
        assert record.ended == "aborted"
        assert record.ended_at is not None
        assert service.open_requests == 0


async def test_a_response_continues_after_a_stall(service: ModelService, http: aiohttp.ClientSession) -> None:
    for name in ("stall-headers-0.1", "stall-first-0.1", "stall-midway-0.1-3"):
        began = time.monotonic()
        assert text_of(events_of(await body_of(http, service, ask("say: a b c d e f", model="fault-" + name)))) == (
            "a b c d e f"
        )
        assert time.monotonic() - began >= 0.1


async def test_faults_by_schedule(service: ModelService, http: aiohttp.ClientSession) -> None:
    async def status(deployment: str) -> int:
        async with http.post(service.url + "chat/completions", json=ask(model=deployment), headers=KEY) as response:
            return response.status

    service.faults["a"] = ["429-ms-20", None, "fault-503"]
    service.faults["b"] = "500"
    assert [await status("a") for _ in range(5)] == [429, 200, 503, 200, 200]
    assert [await status("b") for _ in range(3)] == [500] * 3
    service.faults = {ANY_DEPLOYMENT: "403"}
    assert await status("c") == 403
    async with http.get(service.url + "models", headers=KEY) as response:
        assert response.status == 403
    service.reset()
    assert await status("b") == 200


# ── Pace, answers, control ───────────────────────────────────────────────────────────────────────────────────────────


async def test_with_manual_pace_each_token_waits_for_its_release(service: ModelService) -> None:
    reader, writer = await raw_stream(service, ask("count to 5", model=MANUAL_PACE))
    await reader.readuntil(b'"assistant"')
    for number in range(1, 6):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await reader.readuntil(b'"delta":{"content":')
        service.release(2 if number > 1 else 1)  # a figure and, but for the first, the comma before it
        for _ in range(2 if number > 1 else 1):
            await asyncio.wait_for(reader.readuntil(b'"delta":{"content":"'), 1)
        assert (await reader.readexactly(2)).strip().startswith(str(number).encode())
        assert service.requests[0].tokens == 2 * number - 1
    await reader.readuntil(b"[DONE]")
    writer.close()


async def test_the_pace(http: aiohttp.ClientSession) -> None:
    async with ModelService(tokens_per_second=100, time_to_first_token=0.1) as service:
        await body_of(http, service, ask("say:" + " word" * 20))
        record = service.requests[0]
        # A busy machine may be late, but no token is early.
        for number, written in enumerate(record.token_times):
            assert written - record.arrived >= 0.1 + number * 0.01
        assert len(set(record.token_times)) == 20, "each token is a write of its own"
        whole = await body_of(http, service, ask("say:" + " word" * 20, stream=False))
        assert json.loads(whole)["choices"][0]["message"]["content"] == "word" + " word" * 19
        ended = service.requests[1].ended_at
        assert ended is not None
        assert ended - service.requests[1].arrived >= 0.3


async def test_any_text_in_any_tokens(service: ModelService, http: aiohttp.ClientSession) -> None:
    dice = random.Random(5)
    planes = (range(0x20), range(0x20, 0x7F), range(0x80, 0xD800), range(0xE000, 0x110000))
    text = "".join(chr(dice.choice(dice.choice(planes))) for _ in range(5_000)) + "\r\n\r\ndata: [DONE]\n\n"
    service.answer(text)
    assert text_of(events_of(await body_of(http, service, ask()))) == text
    service.answer(["a", "", "\n\n", "data: x"], "mine")
    events = events_of(await body_of(http, service, ask(model="mine")))
    assert [event["choices"][0]["delta"]["content"] for event in events[2:-2]] == ["a", "", "\n\n", "data: x"]
    megabyte = "é🌿" * 170_000
    service.answer(megabyte)
    assert json.loads(await body_of(http, service, ask(stream=False)))["choices"][0]["message"]["content"] == megabyte


async def test_control_by_http(service: ModelService, http: aiohttp.ClientSession) -> None:
    async def control(name: str, body: Any = None) -> tuple[int, Any]:
        async with http.post(f"{service.origin}/control/{name}", json=body) as response:
            return response.status, await response.json()

    assert (await control("answer", {"tokens": ["x", "y"]}))[0] == 200
    assert text_of(events_of(await body_of(http, service, ask()))) == "xy"
    assert (await control("answer", {}))[0] == 200
    assert (await control("faults", {"gpt-5.4-mini": ["429"]}))[0] == 200
    async with http.post(service.url + "chat/completions", json=ask(), headers=KEY) as response:
        assert response.status == 429
    assert (await control("faults", {"gpt-5.4-mini": "no-such-fault"}))[0] == 400
    headers = KEY | {"x-ms-client-request-id": "mine"}
    async with http.post(service.url + "chat/completions", json=ask(model=MANUAL_PACE), headers=headers) as response:
        assert response.headers["x-ms-client-request-id"] == "mine"
        state = (await control("release?tokens=3"))[1]
        assert state["open_requests"] == 1
        assert state["stored_responses"] == 0
        await service.wait_for(lambda one: one.requests[-1].tokens == 3)
    await service.wait_for(lambda one: one.requests[-1].ended == "aborted")
    async with http.get(f"{service.origin}/control/requests?limit=2") as response:
        failed, paced = await response.json()
    assert (failed["status"], failed["ended"], failed["fault"]) == (429, "fault", "429")
    assert (paced["tokens"], paced["ended"], paced["auth"]) == (3, "aborted", "key")
    assert paced["headers"]["x-ms-client-request-id"] == "mine"
    assert len(paced["token_times"]) == 3
    await control("pace", {"tokens_per_second": 7})
    assert service.tokens_per_second == 7
    await control("identity", {"failure": 500, "lifetime": 3})
    assert (service.identity.failure, service.identity.lifetime) == (500, 3)
    await control("reset")
    assert service.requests == []


async def test_a_restart_listens_on_the_same_port(http: aiohttp.ClientSession) -> None:
    service = ModelService(tokens_per_second=0)
    await service.start()
    port = service.port
    with pytest.raises(OSError, match="in use"):
        await ModelService(port=port).start()
    stalled = await raw_stream(service, ask(model="fault-stall-midway"))
    await service.wait_for(lambda one: one.open_requests)
    began = time.monotonic()
    await service.stop()
    assert time.monotonic() - began < 10, "it does not wait for open requests"
    stalled[1].close()
    await service.start()
    assert service.port == port
    assert await body_of(http, service, ask())
    await service.stop()


async def test_the_command(http: aiohttp.ClientSession) -> None:
    arguments = ("-m", "local.model_service", "--port", "0", "--tokens-per-second", "0", "--deployments", "b,c")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("model service on http://127.0.0.1:")
        url = line.split()[-1]
        assert url.endswith("/openai/v1/")
        async with http.get(url + "models", headers=KEY) as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["gpt-5.4-mini", "b", "c"]
        async with http.post(url + "chat/completions", json=ask("say: my secret"), headers=KEY) as response:
            assert b"secret" in await response.read()
    finally:
        process.terminate()
        output, errors = await process.communicate()
    assert (process.returncode, output, errors) == (0, b"", b"")


async def test_the_table_of_faults_names_the_wires() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local.model_service.faults", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    lines = {line.split()[0]: line for line in output.decode().splitlines()}
    assert lines.keys() == {f"fault-{name}" for name in faults.FAULTS}
    assert " every wire " in lines["fault-429"]
    assert " chat responses " in lines["fault-no-finish"]
    assert " responses " in lines["fault-failed-server-error"]


# ── Text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_to(prompt: str) -> str:
    return text_generation.compose([{"role": "user", "content": prompt}])


def test_the_requested_number_of_words() -> None:
    for count in (*range(1, 60), 100, 1234):
        assert len(answer_to(f"write a random {count} word paragraph").split()) == count


def test_answers_fit_the_prompt() -> None:
    assert answer_to("count to 4") == "1, 2, 3, 4"
    assert answer_to("Repeat:  two  spaces\n") == " two  spaces\n"
    assert answer_to("echo [DONE]") == "[DONE]"
    assert answer_to("write 3 sentences").count(".") == 3
    assert len(answer_to("two paragraphs of 30 words each").split("\n\n")) == 2
    assert answer_to("a list of 5 things").count("\n") == 4
    markdown = answer_to("show me some markdown")
    assert all(sign in markdown for sign in ("# ", "\n- **", "|---|", "```python"))
    assert "temples" in answer_to("Tell me about the temples of Kyoto")
    assert answer_to("hello") == answer_to("hello") != answer_to("goodbye")
    turns = [{"role": "user", "content": "I like lighthouses"}, {"role": "assistant", "content": "Good."}]
    assert "1 earlier turn, and that it began with lighthouses" in text_generation.compose(
        [*turns, {"role": "user", "content": "why?"}]
    )


def test_the_tokens_joined_are_the_text() -> None:
    text = "Straße, naïve_words  and\n\n\ttabs — 12345 日本語のテキスト👩‍👩‍👧 incomprehensibilities!!!!!!\r\n "
    tokens = text_generation.tokenize(text)
    assert "".join(tokens) == text
    assert " and" in tokens
    assert max(map(len, tokens)) <= 8


def test_only_the_first_ending_of_a_record_counts() -> None:
    record = Record(0, "m", "/", {}, None, {}, 0.0)
    record.end("fault")
    record.end("aborted")
    assert record.ended == "fault"


SCHEMAS: list[Any] = [
    {"type": "integer", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "number", "multipleOf": 0.25, "minimum": 0.1, "maximum": 2},
    {"type": "integer", "multipleOf": 5, "minimum": 7, "maximum": 12},
    {"type": "number", "maximum": -10},
    {"type": "integer", "maximum": -10},
    {"type": "string", "minLength": 50},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    {"type": "string", "format": "date", "minLength": 3},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 4},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "array", "maxItems": 1, "items": {"type": "string"}},
    {"type": "array"},
    {"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}},
    {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
    {"type": ["string", "null"]},
    {"type": ["null", "integer"]},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    },
    {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "allOf": [{"properties": {"b": {"const": 3}}, "required": ["b"]}],
    },
    {"properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    },
    {"const": None},
    {"enum": [None, 1]},
    True,
    {},
    {"$defs": {"a/b": {"type": "integer"}}, "$ref": "#/$defs/a~1b"},
    {
        "type": "object",
        "properties": {"id": {"type": "string", "format": "uuid"}, "when": {"type": "string", "format": "date-time"}},
        "required": ["id"],
    },
    {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]},
    {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": "x"}}, "required": ["k"]},
            {"type": "object", "properties": {"k": {"const": "y"}}, "required": ["k"]},
        ]
    },
    {"definitions": {"c": {"type": "string"}}, "type": "object", "properties": {"c": {"$ref": "#/definitions/c"}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_values_are_valid_by_their_schema(schema: Any) -> None:
    for prompt in ("a story about rivers", "hello", "a", "numbers 1"):
        value = schema_values.value_for_schema(schema, prompt)
        jsonschema_rs.validate(schema, value)
        assert value == schema_values.value_for_schema(schema, prompt)


@pytest.mark.parametrize(
    ("prompt", "schema", "values"),
    [
        ("What is f(3)?", {"type": "integer", "minimum": -1000, "maximum": 1000}, [3]),
        ("From -4 to 2.5", {"type": "number"}, [-4, 2.5]),
        ("From -4 to 2.5", {"type": "integer"}, [-4]),
        ("7, or 20, or 9", {"type": "integer", "minimum": 8, "exclusiveMaximum": 20}, [9]),
        ("7, or 9, or 8", {"type": "integer", "multipleOf": 4}, [8]),
        ("By gpt-5.4 in v2 of 2026-03-17", {"type": "integer", "minimum": 2, "maximum": 3000}, [2026]),
        ("Take ‘this’, 'that' and \"the other\".", {"type": "string"}, ["that", "the other"]),
        ("It's what they don't say: «你好», `x`, “y”", {"type": "string"}, ["你好", "x", "y"]),
    ],
    ids=str,
)
def test_values_are_taken_from_the_prompt(prompt: str, schema: Any, values: list[Any]) -> None:
    several = {"type": "array", "items": schema, "minItems": 3}
    assert schema_values.value_for_schema(several, prompt)[: len(values)] == values


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "("},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
    ],
    ids=json.dumps,
)
def test_no_value_for_a_schema_that_nothing_is_valid_by(schema: Any) -> None:
    with pytest.raises(SCHEMA_ERRORS):
        schema_values.value_for_schema(schema, "hello")


PATTERNS = (
    r"^[A-Z]{3}-\d{4}$",
    r"^(foo|bar)+$",
    r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
    r"^(a|b)\1$",
    r"\w+",
    r"^.{3}$",
    r"^#?([a-f0-9]{6}|[a-f0-9]{3})$",
    r"^(?:\+?\d{1,3})?[- ]?\(?\d{3}\)?$",
    r"^\S+ \D \W$",
    r"^(?>ab?+)c*?[^x]$",
    "^é[^a]$",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_text_for_a_pattern_matches_it(pattern: str) -> None:
    texts = {text_for_pattern(pattern, random.Random(seed)) for seed in range(50)}
    assert all(re.search(pattern, text) for text in texts)
    assert len(texts) > 1
