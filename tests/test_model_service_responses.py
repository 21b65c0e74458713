"""The simulated model service's Responses API over a real socket, by the official client and its types."""

import asyncio
import base64
import copy
import gc
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import aiohttp
import openai
import pydantic
import pytest
from openai.types.responses import (
    CompactedResponse,
    InputTokenCountResponse,
    Response,
    ResponseItem,
    ResponseItemList,
    ResponseOutputItem,
    ResponseStreamEvent,
)

from local.model_service import ANY_DEPLOYMENT, MANUAL_PACE, ModelService, faults, stored_responses, text_generation
from tests import model_service_requests

KEY = {"api-key": "a-key"}
WORDS = "one two three four five six seven eight"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "strict": True,
}
CLOCK: dict[str, Any] = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}

# Members that Azure sends beside those of OpenAI's reference, by the class that lacks them.
AZURE_MEMBERS = {
    "Response": {"content_filters", "frequency_penalty", "presence_penalty", "store"},
    "ResponseTextDeltaEvent": {"obfuscation"},
    "ResponseFunctionCallArgumentsDeltaEvent": {"obfuscation"},
    "ResponseReasoningSummaryTextDeltaEvent": {"obfuscation"},
    "ResponseRefusalDeltaEvent": {"obfuscation"},
}
EVENT_CLASSES: dict[str, type[pydantic.BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as running:
        yield running


@pytest.fixture
async def client(service: ModelService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=service.url, api_key="k", max_retries=0) as connected:
        yield connected


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    # Without a time of its own: what a long prompt takes depends on the machine, and a test has pytest's timeout.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(), headers=KEY) as session:
        yield session


def unknown_members(value: object) -> Iterator[str]:
    """The members, at any depth, that the types of the official client don't have, except Azure's."""
    if isinstance(value, pydantic.BaseModel):
        name = type(value).__name__
        yield from (f"{name}.{one}" for one in (value.model_extra or {}).keys() - AZURE_MEMBERS.get(name, set()))
        value = list(dict(value).values())
    if isinstance(value, list):
        for one in value:
            yield from unknown_members(one)


def checked(document: Any, kind: Any) -> Any:
    """The document as one of the client's types: nothing that is required is missing, and nothing is unknown."""
    value = pydantic.TypeAdapter(kind).validate_python(document, strict=True)
    assert list(unknown_members(value)) == []
    return value


def ask(given: Any = f"say: {WORDS}", **members: Any) -> dict[str, Any]:
    return {"model": "gpt-5.4-mini", "stream": True, "input": given} | members


async def post(
    http: aiohttp.ClientSession, service: ModelService, body: Any, path: str = "responses"
) -> tuple[int, bytes]:
    async with http.post(service.url + path, json=body) as response:
        return response.status, await response.read()


async def raw_events(http: aiohttp.ClientSession, service: ModelService, body: Any) -> list[dict[str, Any]]:
    status, text = await post(http, service, body)
    assert status == 200, text
    return list(parsed(text))


def parsed(text: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream; each has the type that its `event:` line names."""
    for block in text.decode().split("\n\n"):
        if not block:
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        yield event


async def stream(http: aiohttp.ClientSession, service: ModelService, body: Any) -> list[Any]:
    """The events of a correct stream, each checked strictly, numbered from 0."""
    events = [checked(event, EVENT_CLASSES[event["type"]]) for event in await raw_events(http, service, body)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


async def read_until_broken(events: AsyncIterator[Any]) -> tuple[list[Any], Exception | None]:
    """The events that arrive, and the error that ends them."""
    seen = []
    try:
        async for event in events:
            seen.append(event)
    except openai.APIError as error:
        return seen, error
    return seen, None


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def types_of(events: list[Any]) -> list[str]:
    """The types in their order, repetitions as one."""
    types = [event.type.removeprefix("response.") for event in events]
    return [one for index, one in enumerate(types) if index == 0 or types[index - 1] != one]


# ── Streams and documents ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_has_its_events_in_order(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = await stream(http, service, ask())
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    created, completed = events[0].response, events[-1].response
    assert (created.status, created.output, created.usage) == ("in_progress", [], None)
    assert completed.status == "completed"
    assert completed.id == created.id
    assert text_of(events) == completed.output_text == events[-4].text == events[-3].part.text == WORDS
    assert events[-2].item == completed.output[0]
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {completed.output[0].id}
    assert completed.usage.output_tokens == 8
    assert completed.usage.total_tokens == completed.usage.input_tokens + 8
    assert created.model_extra["content_filters"] is None
    prompt, completion = completed.model_extra["content_filters"]
    assert (prompt["source_type"], prompt["blocked"]) == ("prompt", False)
    assert completion["content_filter_results"]["violence"] == {"filtered": False, "severity": "safe"}
    assert completion["content_filter_offsets"]["end_offset"] == len(WORDS)
    padded = [len(json.dumps(event.delta) + event.obfuscation) for event in events if hasattr(event, "delta")]
    assert [length % 16 for length in padded] == [0] * 8
    record = service.requests[0]
    assert (record.deployment, record.tokens, record.ended, record.status) == ("gpt-5.4-mini", 8, "complete", 200)


async def test_no_obfuscation_when_it_is_declined(service: ModelService, http: aiohttp.ClientSession) -> None:
    _, text = await post(http, service, ask(stream_options={"include_obfuscation": False}))
    assert b"obfuscation" not in text


async def test_a_document_says_what_a_stream_says(service: ModelService, http: aiohttp.ClientSession) -> None:
    body = ask("write a random 30 word paragraph", metadata={"a": "b"}, temperature=0.5, instructions="Be brief.")
    streamed = (await stream(http, service, body))[-1].response
    _, text = await post(http, service, body | {"stream": False})
    whole = checked(json.loads(text), Response)
    assert whole.output_text == streamed.output_text
    assert len(whole.output_text.split()) == 30
    assert whole.usage == streamed.usage
    assert (whole.metadata, whole.temperature, whole.instructions) == ({"a": "b"}, 0.5, "Be brief.")
    assert whole.completed_at >= whole.created_at
    assert service.requests[1].tokens == service.requests[0].tokens


async def test_the_official_clients_helpers(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="m", input=f"say: {WORDS}") as helper:
        text = "".join([event.delta async for event in helper if event.type == "response.output_text.delta"])
        assert text == (await helper.get_final_response()).output_text == WORDS

    class Story(pydantic.BaseModel):
        title: str
        tags: list[str]

    answer = await client.responses.parse(model="m", input="a story", text_format=Story)
    assert answer.output_parsed is not None
    assert answer.output_parsed.tags
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


async def test_json_answers(service: ModelService, http: aiohttp.ClientSession) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 4}}}
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    events = await stream(http, service, ask(text=wanted))
    assert json.loads(text_of(events))["n"] in (3, 4)
    loose = {"format": {"type": "json_object"}}
    assert "answer" in json.loads(text_of(await stream(http, service, ask("a story as JSON", text=loose))))
    status, text = await post(http, service, ask("a story", text=loose))
    assert (status, json.loads(text)["error"]["param"]) == (400, "input")
    assert b"must contain the word 'json'" in text


async def test_the_token_limit_ends_a_response_as_incomplete(
    service: ModelService, http: aiohttp.ClientSession
) -> None:
    events = await stream(http, service, ask("say:" + " word" * 30, max_output_tokens=16))
    assert types_of(events)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    response = events[-1].response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.completed_at is None
    assert text_of(events) == response.output_text == "word" + " word" * 15
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 16
    # Reasoning counts, and may leave nothing for the answer.
    events = await stream(http, service, ask(model="o3", max_output_tokens=66))
    assert text_of(events) == "one two"
    assert events[-1].response.usage.output_tokens == 66
    for limit in (20, 64):
        spent = (await stream(http, service, ask(model="o3", max_output_tokens=limit)))[-1].response
        assert [item.type for item in spent.output] == ["reasoning"]
        assert spent.usage.output_tokens == spent.usage.output_tokens_details.reasoning_tokens == limit


async def test_reasoning_and_its_summary(service: ModelService, http: aiohttp.ClientSession) -> None:
    for kind, parts in (("auto", 2), ("concise", 1), ("detailed", 2), (None, 0)):
        reasoning = {"effort": "low", "summary": kind}
        events = await stream(http, service, ask("the weather in Kyoto?", reasoning=reasoning))
        assert types_of(events)[2:-6] == [
            "output_item.added",
            *["reasoning_summary_part.added", "reasoning_summary_text.delta"] * bool(parts),
            *["reasoning_summary_text.done", "reasoning_summary_part.done"] * bool(parts),
            *["reasoning_summary_part.added", "reasoning_summary_text.delta"] * (parts == 2),
            *["reasoning_summary_text.done", "reasoning_summary_part.done"] * (parts == 2),
            "output_item.done",
            "output_item.added",
        ]
        item, message = events[-1].response.output
        assert (item.type, message.type) == ("reasoning", "message")
        assert item.encrypted_content is None
        deltas = [event for event in events if event.type == "response.reasoning_summary_text.delta"]
        for index, part in enumerate(item.summary):
            assert part.text == "".join(event.delta for event in deltas if event.summary_index == index)
            assert "weather, Kyoto" in part.text or index
        assert len(item.summary) == parts
        assert events[-1].response.usage.output_tokens_details.reasoning_tokens == 64
    quiet = (await stream(http, service, ask(model="o3", reasoning={"effort": "none"})))[-1].response
    assert [item.type for item in quiet.output] == ["message"]


async def test_log_probabilities(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = await stream(http, service, ask(include=["message.output_text.logprobs"], top_logprobs=2))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [event.logprobs[0].token for event in deltas] == [event.delta for event in deltas]
    assert len(deltas[0].logprobs[0].top_logprobs) == 2
    part = events[-1].response.output[0].content[0]
    assert len(part.logprobs) == 8
    assert bytes(part.logprobs[0].bytes).decode() == "one"


# ── Tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_function_is_called_and_its_output_answered(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = await stream(http, service, ask("the weather in Kyoto?", tools=[WEATHER]))
    assert types_of(events)[2:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    (call,) = events[-1].response.output
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert call.arguments == "".join(deltas)
    arguments = json.loads(call.arguments)
    assert arguments.keys() == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    chained = ask([output], previous_response_id=events[-1].response.id, tools=[WEATHER])
    assert "21 degrees" in text_of(await stream(http, service, chained))
    given = [{"role": "user", "content": "the weather?"}, call.to_dict(), output]
    assert "21 degrees" in text_of(await stream(http, service, ask(given, tools=[WEATHER])))


@pytest.mark.parametrize(
    ("members", "called"),
    [
        ({"tool_choice": "auto"}, ["weather"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": "required"}, ["weather"]),
        ({"tool_choice": {"type": "function", "name": "clock"}}, ["clock"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "clock"}],
                }
            },
            ["clock"],
        ),
        ({"input": "call every tool"}, ["weather", "clock"]),
        ({"input": "call both tools", "parallel_tool_calls": False}, ["weather"]),
    ],
)
async def test_which_functions_are_called(
    service: ModelService, http: aiohttp.ClientSession, members: dict[str, Any], called: list[str]
) -> None:
    events = await stream(http, service, ask("hello", tools=[WEATHER, CLOCK]) | members)
    output = events[-1].response.output
    assert [item.name for item in output if item.type == "function_call"] == called
    assert [event.item for event in events if event.type == "response.output_item.done"] == output


@pytest.mark.parametrize(
    ("required", "names"),
    [
        (["cmd"], ["cmd"]),
        (["workdir", "cmd"], ["cmd", "workdir"]),
        ([], ["cmd", "workdir"]),
        (None, ["cmd", "workdir"]),
    ],
)
async def test_a_call_has_the_arguments_that_are_required(
    service: ModelService, http: aiohttp.ClientSession, required: list[str] | None, names: list[str]
) -> None:
    """Codex CLI's tool, whose optional arguments only a model that knows their meaning fills in."""
    parameters = {"type": "object", "properties": {"cmd": {"type": "string"}, "workdir": {"type": "string"}}}
    parameters |= {} if required is None else {"required": required}
    tool = {"type": "function", "name": "exec_command", "parameters": parameters, "strict": False}
    request = ask("Run 'echo hello'", tools=[tool], client_metadata={"turn_id": "1"})
    (call,) = (await stream(http, service, request))[-1].response.output
    arguments = json.loads(call.arguments)
    assert sorted(arguments) == names
    assert arguments["cmd"] == "echo hello"


async def test_a_required_function_is_called_again(service: ModelService, http: aiohttp.ClientSession) -> None:
    first = (await stream(http, service, ask("hello", tools=[CLOCK])))[-1].response
    output = [{"type": "function_call_output", "call_id": first.output[0].call_id, "output": "noon"}]
    again = ask(output, previous_response_id=first.id, tools=[CLOCK], tool_choice="required")
    assert (await stream(http, service, again))[-1].response.output[0].type == "function_call"


async def test_calls_and_their_outputs_belong_together(service: ModelService, http: aiohttp.ClientSession) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_2", "output": "x"}
    user = {"role": "user", "content": "x"}
    for given, message in (
        ([user, call], "No tool output found for function call call_1."),
        ([user, output], "No tool call found for function call output with call_id call_2."),
    ):
        status, text = await post(http, service, ask(given))
        assert (status, json.loads(text)["error"]["message"]) == (400, message)


# ── Input ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pictures_and_files(service: ModelService, http: aiohttp.ClientSession) -> None:
    url = "data:image/png;base64," + base64.b64encode(b"12345").decode()
    content = [
        {"type": "input_text", "text": "what is it"},
        {"type": "input_image", "image_url": url},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
    ]
    text = text_of(await stream(http, service, ask([{"role": "user", "content": content}])))
    assert "I see 2 pictures (image/png, 5 bytes, by its URL)." in text
    assert "I see 1 file (a.pdf)." in text


async def test_a_conversation_is_remembered(service: ModelService, client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model="m", input="I like lighthouses")
    second = await client.responses.create(model="m", input="why?", previous_response_id=first.id)
    assert "1 earlier turn, and that it began with lighthouses" in second.output_text
    assert second.previous_response_id == first.id
    given: list[Any] = [{"role": "user", "content": "I like lighthouses"}, *[one.to_dict() for one in first.output]]
    third = await client.responses.create(model="m", input=[*given, {"role": "user", "content": "why?"}])
    assert third.output_text == second.output_text
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    fourth = await client.responses.create(model="m", input=[given[0], reference, {"role": "user", "content": "why?"}])
    assert fourth.output_text == second.output_text
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens == 0
    long = await client.responses.create(model="m", input="say:" + " word" * 700)
    chained = await client.responses.create(model="m", input="and?", previous_response_id=long.id)
    assert long.usage is not None
    assert chained.usage is not None
    assert chained.usage.input_tokens_details.cached_tokens == long.usage.total_tokens // 128 * 128
    short = await client.responses.create(model="m", input="say:" + " word" * 300)
    chained = await client.responses.create(model="m", input="and?", previous_response_id=short.id)
    assert chained.usage is not None
    assert chained.usage.input_tokens_details.cached_tokens == 0, "a prompt of less than 1024 tokens is not cached"


async def test_encrypted_reasoning_is_of_one_account(service: ModelService, http: aiohttp.ClientSession) -> None:
    body = ask(model="o3", store=False, include=["reasoning.encrypted_content"])
    events = await stream(http, service, body)
    output = [item.to_dict() for item in events[-1].response.output]
    assert output[0]["encrypted_content"]
    more = body | {"input": [{"role": "user", "content": "x"}, *output, {"role": "user", "content": "and?"}]}
    assert (await post(http, service, more))[0] == 200
    async with ModelService(tokens_per_second=0) as other:
        status, text = await post(http, other, more)
        assert (status, json.loads(text)["error"]["code"]) == (400, "invalid_encrypted_content")
    del output[0]["encrypted_content"]
    status, text = await post(http, service, more | {"input": [*more["input"][:1], *output]})
    assert status == 400
    assert b"Items are not persisted when `store` is set to false." in text


async def test_compaction_keeps_what_the_user_wrote(service: ModelService, http: aiohttp.ClientSession) -> None:
    first = (await stream(http, service, ask("I like lighthouses")))[-1].response
    status, text = await post(
        http, service, {"model": "m", "previous_response_id": first.id, "input": "and boats"}, "responses/compact"
    )
    assert status == 200
    document = json.loads(text)
    compacted = CompactedResponse.model_construct(**document)
    assert compacted.object == "response.compaction"
    *kept, summary = document["output"]
    assert [one["content"][0]["text"] for one in kept] == ["I like lighthouses", "and boats"]
    checked(summary, ResponseOutputItem)
    more = ask([*document["output"], {"role": "user", "content": "why?"}])
    assert "2 earlier turns, and that it began with lighthouses" in text_of(await stream(http, service, more))
    status, text = await post(http, service, {"model": "m", "input": "hello"}, "responses/input_tokens")
    assert json.loads(text) == {
        "object": "response.input_tokens",
        "input_tokens": text_generation.count_prompt_tokens([{"role": "user", "content": "hello"}]),
    }


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, None, None),
        ({"input": "x"}, 400, "missing_required_parameter", "model"),
        ({"model": "m"}, 400, "missing_required_parameter", "input"),
        (ask(model="a-missing-one"), 404, "DeploymentNotFound", None),
        (ask(model="text-embedding-3-small"), 400, "OperationNotSupported", None),
        (ask(model="fault-unheard-of"), 400, "unknown_fault", "model"),
        (ask(model="fault-no-done"), 400, "unknown_fault", "model"),
        (ask(messages=[]), 400, "unsupported_parameter", "messages"),
        (ask(n=2), 400, "unknown_parameter", "n"),
        (ask(temperature="hot"), 400, "invalid_type", "temperature"),
        (ask(temperature=3), 400, "decimal_above_max_value", "temperature"),
        (ask(max_output_tokens=15), 400, "integer_below_min_value", "max_output_tokens"),
        (ask(truncation="maybe"), 400, "invalid_value", "truncation"),
        (ask(include=["everything"]), 400, "invalid_value", "include[0]"),
        (ask(metadata={"a": 1}), 400, "invalid_type", "metadata"),
        (ask(metadata={"a": "x" * 513}), 400, "invalid_value", "metadata"),
        (ask(reasoning={"effort": "huge"}), 400, "invalid_value", "reasoning.effort"),
        (ask(model="gpt-4.1", reasoning={"effort": "low"}), 400, "unsupported_parameter", "reasoning.effort"),
        (ask(model="o3", temperature=0.5), 400, "unsupported_parameter", "temperature"),
        (ask(background=True, store=False), 400, "invalid_value", "background"),
        (ask(stream=False, stream_options={}), 400, None, None),
        (ask(previous_response_id="resp_0"), 400, "previous_response_not_found", "previous_response_id"),
        (ask(previous_response_id="chat_0"), 400, "invalid_value", "previous_response_id"),
        (ask([{"role": "user"}]), 400, "invalid_type", "input[0].content"),
        (ask([{"role": "king", "content": "x"}]), 400, "invalid_value", "input[0].role"),
        (ask([{"type": "spell"}]), 400, "invalid_value", "input[0]"),
        (ask([{"type": "function_call"}]), 400, "missing_required_parameter", "input[0].call_id"),
        (ask([{"role": "user", "content": [{"type": "text"}]}]), 400, "invalid_value", "input[0].content[0]"),
        (
            ask([{"role": "user", "content": [{"type": "input_text"}]}]),
            400,
            "invalid_type",
            "input[0].content[0].text",
        ),
        (
            ask([{"role": "user", "content": [{"type": "input_image", "image_url": {"url": "x"}}]}]),
            400,
            "invalid_type",
            "input[0].content[0].image_url",
        ),
        (
            ask([{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}]),
            400,
            "invalid_value",
            "input[0].content[0].image_url",
        ),
        (
            ask([{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,%"}]}]),
            400,
            "invalid_base64_image",
            "input[0].content[0].image_url",
        ),
        (
            ask([{"role": "user", "content": [{"type": "input_file"}]}]),
            400,
            "missing_required_parameter",
            "input[0].content[0]",
        ),
        (ask([{"type": "item_reference", "id": "msg_0"}]), 400, None, "input"),
        (ask(tools=[{"type": "function", "function": {}}]), 400, "missing_required_parameter", "tools[0].name"),
        (ask(tools=[{"type": "hammer"}]), 400, "invalid_value", "tools[0].type"),
        (ask(tools=[{}]), 400, "missing_required_parameter", "tools[0].type"),
        (
            ask("x", tools=[{"type": "function", "name": "f", "parameters": {"$ref": "#"}}]),
            400,
            "invalid_json_schema",
            "tools",
        ),
        (ask(tool_choice="required"), 400, None, "tool_choice"),
        (ask(tool_choice="sometimes"), 400, "invalid_value", "tool_choice"),
        (ask(tools=[CLOCK], tool_choice={"type": "function", "name": "f"}), 400, None, "tool_choice"),
        (
            ask(text={"format": {"type": "json_schema", "name": "x"}}),
            400,
            "missing_required_parameter",
            "text.format.schema",
        ),
        (
            ask(text={"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#"}}}),
            400,
            "invalid_json_schema",
            "text.format.schema",
        ),
    ],
)  # fmt: skip
async def test_error_responses(
    service: ModelService, http: aiohttp.ClientSession, body: Any, status: int, code: str | None, param: str | None
) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(service.url + "responses", data=text) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert error["code"] == code
    assert error.get("param") == param
    assert error["message"]
    assert (service.requests[0].ended, service.requests[0].status) == ("fault", status)


async def test_a_prompt_beyond_the_context(service: ModelService, http: aiohttp.ClientSession) -> None:
    overhead = text_generation.count_prompt_tokens([{"role": "user", "content": ""}])
    assert (await post(http, service, ask(" word" * (272_000 - overhead))))[0] == 200
    long = " word" * (272_001 - overhead)
    status, text = await post(http, service, ask(long))
    assert (status, json.loads(text)["error"]["code"]) == (400, "context_length_exceeded")
    response = (await stream(http, service, ask(long, truncation="auto")))[-1].response
    assert response.usage.input_tokens == 272_000


# ── Stored responses ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_response_is_kept_until_it_is_deleted(
    service: ModelService, client: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    made = await client.responses.create(model="m", input="hello", metadata={"a": "b"})
    kept = await client.responses.retrieve(made.id)
    assert kept.to_dict() == made.to_dict()
    checked(kept.to_dict(), Response)
    await client.responses.delete(made.id)
    for attempt in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match=f"Response with id '{made.id}' not found."):
            await attempt(made.id)
    with pytest.raises(openai.BadRequestError, match="Previous response with id"):
        await client.responses.create(model="m", input="and?", previous_response_id=made.id)
    with pytest.raises(openai.BadRequestError, match="Expected an ID that begins with 'resp'"):
        await client.responses.retrieve("chatcmpl-1")
    async with http.delete(service.url + "responses/" + (await client.responses.create(model="m", input="x")).id) as it:
        document = await it.json()
        assert (document["object"], document["deleted"]) == ("response", True)


async def test_a_response_that_is_not_to_be_stored(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="m", input="hello", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)


async def test_accounts_do_not_share_responses(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="m", input="hello")
    async with (
        ModelService(tokens_per_second=0) as other,
        openai.AsyncOpenAI(base_url=other.url, api_key="k", max_retries=0) as second,
    ):
        with pytest.raises(openai.NotFoundError):
            await second.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError, match="Previous response with id"):
            await second.responses.create(model="m", input="and?", previous_response_id=made.id)


async def test_the_oldest_responses_are_forgotten(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, service: ModelService
) -> None:
    monkeypatch.setattr(stored_responses, "MAX_RESPONSES", 2)
    made = [(await client.responses.create(model="m", input="hello")).id for _ in range(3)]
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made[0])
    assert (await client.responses.retrieve(made[1])).id == made[1]
    monkeypatch.setattr(stored_responses, "MAX_BYTES", 50_000)
    large = await client.responses.create(model="m", input="x" * 50_000)
    assert len(service.responses) == 1
    assert (await client.responses.retrieve(large.id)).id == large.id
    service.reset()
    assert len(service.responses) == 0


async def test_a_chain_counts_as_what_it_keeps(
    service: ModelService, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_responses, "MAX_BYTES", 80_000)
    first = await client.responses.create(model="m", input="count to 3" + "x" * 30_000)
    await client.responses.create(model="m", input="count to 3" + "y" * 30_000, previous_response_id=first.id)
    assert len(service.responses) == 1, "the second one keeps the first one's items as well"


async def test_what_is_forgotten_is_freed(client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "MAX_RESPONSES", 1)
    gc.collect()
    before = sum(isinstance(one, stored_responses.StoredResponse) for one in gc.get_objects())
    previous: str | None = None
    for _ in range(6):
        previous = (await client.responses.create(model="m", input="x", previous_response_id=previous)).id
    gc.collect()
    assert sum(isinstance(one, stored_responses.StoredResponse) for one in gc.get_objects()) <= before + 2


async def test_input_items_are_listed_in_pages(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model="m", input="one")
    given: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "x"},
    ]
    second = await client.responses.create(model="m", input=given, previous_response_id=first.id)
    page = await client.responses.input_items.list(second.id, order="asc", limit=4)
    listed = [item async for item in page]
    for item in listed:
        checked(item.to_dict(), ResponseItem)
    assert [item.type for item in listed] == [
        "message",
        "message",
        "message",
        "message",
        "function_call",
        "function_call_output",
    ]
    ids = [item.id for item in listed]
    assert len(set(ids)) == 6
    assert ids[1] == first.output[0].id
    assert [item.id for item in page.data] == ids[:4]
    assert page.has_more
    latest = await client.responses.input_items.list(second.id, limit=2)
    assert [item.id for item in latest.data] == ids[:-3:-1]
    after = await client.responses.input_items.list(second.id, after=ids[1])
    assert [item.id for item in after.data] == [ids[0]]
    assert not after.has_more
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_0"}):
        with pytest.raises(openai.BadRequestError):
            await client.responses.input_items.list(second.id, **wrong)


# ── In the background ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_response_in_the_background_is_polled(service: ModelService, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MANUAL_PACE, input=f"say: {WORDS}", background=True)
    assert (made.status, made.output, made.background) == ("queued", [], True)
    checked(made.to_dict(), Response)
    service.release(3)
    await service.wait_for(lambda it: it.requests[0].tokens == 3)
    running = await client.responses.retrieve(made.id)
    assert (running.status, running.output, running.usage) == ("in_progress", [], None)
    with pytest.raises(openai.BadRequestError, match="Previous response with id"):
        await client.responses.create(model="m", input="and?", previous_response_id=made.id)
    service.release(5)
    await service.wait_for(lambda it: it.requests[0].tokens == 8)
    done = await client.responses.retrieve(made.id)
    assert (done.status, done.output_text) == ("completed", WORDS)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a completed response"):
        await client.responses.cancel(made.id)
    with pytest.raises(openai.BadRequestError, match="created with 'background' and 'stream'"):
        await client.responses.retrieve(made.id, stream=True)


async def test_a_stream_from_the_background_is_resumed(
    service: ModelService, client: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    body = ask(model=MANUAL_PACE, background=True)
    seen: list[Any] = []
    async with http.post(service.url + "responses", json=body) as response:
        service.release(3)
        text = b""
        while text.count(b"output_text.delta\n") < 3:
            text += await response.content.readany()
    seen = [checked(event, EVENT_CLASSES[event["type"]]) for event in parsed(text)]
    assert types_of(seen)[:3] == ["created", "queued", "in_progress"]
    assert [event.response.status for event in seen[:3]] == ["queued", "queued", "in_progress"]
    await service.wait_for(lambda it: it.requests[0].ended == "aborted")
    rest = await client.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    service.release(5)
    async for event in rest:
        seen.append(checked(event.to_dict(), EVENT_CLASSES[event.type]))
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert text_of(seen) == seen[-1].response.output_text == WORDS
    again = [event async for event in await client.responses.retrieve(seen[0].response.id, stream=True)]
    assert [event.to_dict() for event in again] == [event.to_dict() for event in seen]
    with pytest.raises(openai.BadRequestError, match="expected an integer"):
        await client.responses.retrieve(seen[0].response.id, stream=True, extra_query={"starting_after": "x"})
    plain = await client.responses.retrieve(seen[0].response.id, stream=True, include_obfuscation=False)
    assert not any(hasattr(event, "obfuscation") for event in [event async for event in plain])


async def test_several_connections_follow_one_response(
    service: ModelService, client: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    made = await client.responses.create(model=MANUAL_PACE, input=f"say: {WORDS}", background=True, stream=True)
    events = [await anext(made) for _ in range(3)]
    response_id = events[0].response.id

    async def follow(after: int) -> list[int]:
        stream = await client.responses.retrieve(response_id, stream=True, starting_after=after)
        return [event.sequence_number async for event in stream]

    followers = [asyncio.create_task(follow(after)) for after in (0, 4, 99)]
    await service.wait_for(lambda it: it.open_requests == 4)
    service.release(8)
    numbers = [event.sequence_number async for event in made]
    last = numbers[-1]
    assert numbers == list(range(3, last + 1))
    assert await asyncio.gather(*followers) == [list(range(1, last + 1)), list(range(5, last + 1)), []]


async def test_a_background_response_is_cancelled(service: ModelService, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MANUAL_PACE, input=f"say: {WORDS}", background=True, stream=True)
    response_id = (await anext(made)).response.id
    service.release(2)
    await service.wait_for(lambda it: it.requests[0].tokens == 2)
    for _ in range(2):
        cancelled = await client.responses.cancel(response_id)
        assert (cancelled.status, cancelled.output) == ("cancelled", [])
    types = [event.type async for event in made]
    assert types[-1] == "response.output_text.delta", "no terminal event follows"
    service.release(6)
    assert (await client.responses.retrieve(response_id)).status == "cancelled"
    assert service.gates[MANUAL_PACE]._value == 6, "nothing is generated any more"
    whole = await client.responses.create(model="m", input="x")
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        await client.responses.cancel(whole.id)


async def test_a_response_whose_caller_disconnects_is_cancelled(
    service: ModelService, client: openai.AsyncOpenAI
) -> None:
    made = await client.responses.create(model=MANUAL_PACE, input="count to 500", stream=True)
    response_id = (await anext(made)).response.id
    assert (await client.responses.retrieve(response_id)).status == "in_progress"
    await made.close()
    await service.wait_for(lambda it: it.requests[0].ended == "aborted")
    assert (await client.responses.retrieve(response_id)).status == "cancelled"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("cut-midway-2", "completed"),
        ("end-midway-2", "completed"),
        ("error-midway-2", "failed"),
        ("error-flat", "failed"),
    ],
)
async def test_what_becomes_of_a_response_whose_stream_breaks(
    client: openai.AsyncOpenAI, fault: str, status: str
) -> None:
    events = await client.responses.create(model=f"fault-{fault}", input=f"say: {WORDS}", stream=True)
    seen, _ = await read_until_broken(events)
    kept = await client.responses.retrieve(seen[0].response.id)
    assert kept.status == status
    assert kept.output_text == (WORDS if status == "completed" else "")
    assert (kept.error is not None) == (status == "failed")


async def test_what_is_forgotten_or_stopped_is_generated_no_more(
    service: ModelService, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def begin() -> tuple[str, Any]:
        made = await client.responses.create(model=MANUAL_PACE, input=f"say: {WORDS}", background=True, stream=True)
        return (await anext(made)).response.id, made

    async def rest(made: Any) -> list[str]:
        return [event.type async for event in made][-1:]

    first, followed = await begin()
    service.reset()
    assert (await client.responses.retrieve(first)).status == "in_progress"
    await client.responses.delete(first)
    assert await rest(followed) == ["response.content_part.added"]
    _, followed = await begin()
    monkeypatch.setattr(stored_responses, "MAX_RESPONSES", 1)
    third, following = await begin()
    assert await rest(followed) == ["response.content_part.added"]
    await service.stop()
    await service.start()
    assert (await client.responses.retrieve(third)).status == "cancelled"
    service.release(8)
    await asyncio.sleep(0)
    assert service.gates[MANUAL_PACE]._value == 8, "nothing is generated any more"
    await following.close()


async def test_a_flood_in_the_background_is_not_paced(client: openai.AsyncOpenAI, service: ModelService) -> None:
    service.tokens_per_second = 1
    made = await client.responses.create(model="fault-flood-5000", input="x", background=True, stream=True)
    assert len([event async for event in made]) > 5000


async def test_a_document_whose_caller_disconnects_is_cancelled(
    service: ModelService, client: openai.AsyncOpenAI
) -> None:
    service.time_to_first_token = 60
    request = asyncio.create_task(client.responses.create(model="m", input="x"))
    await service.wait_for(lambda it: len(it.responses))
    request.cancel()
    await service.wait_for(lambda it: it.requests[0].ended == "aborted")
    assert [one.status for one in service.responses] == ["cancelled"]


async def test_a_fault_of_one_connection_concerns_no_other(
    service: ModelService, client: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    body = ask("say: 🌿", model="fault-escaped+no-sequence", background=True)
    _, text = await post(http, service, body)
    assert b'"delta":"\\ud83c\\udf3f"' in text
    assert b"sequence_number" not in text
    async with http.get(f"{service.url}responses/{next(one.id for one in service.responses)}?stream=true") as response:
        text = await response.read()
    assert '"delta":"🌿"'.encode() in text
    assert [event["sequence_number"] for event in parsed(text)] == list(range(10))


async def test_the_pace_in_the_background(client: openai.AsyncOpenAI, service: ModelService) -> None:
    service.tokens_per_second, service.time_to_first_token = 100, 0.1
    began = time.monotonic()
    made = await client.responses.create(model="m", input=f"say: {WORDS}", background=True, stream=True)
    assert [event async for event in made][-1].response.status == "completed"
    assert time.monotonic() - began >= 0.1 + 7 * 0.01
    record = service.requests[0]
    for number, written in enumerate(record.token_times):
        assert written - record.arrived >= 0.1 + number * 0.01
    await client.responses.create(model="m", input="count to 500", background=True)


# ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", faults.RESPONSE_ERROR_CODES)
async def test_a_response_fails(service: ModelService, http: aiohttp.ClientSession, code: str) -> None:
    model = f"fault-failed-{code.replace('_', '-')}-3"
    events = await stream(http, service, ask(model=model))
    assert types_of(events)[-2:] == ["output_text.delta", "failed"]
    assert text_of(events) == "one two three"
    response = events[-1].response
    assert (response.status, response.error.code) == ("failed", code)
    assert (response.output, response.usage) == ([], None)
    assert service.requests[0].ended == "fault"
    _, text = await post(http, service, ask(model=model, stream=False))
    assert checked(json.loads(text), Response).error.code == code
    async with http.get(f"{service.url}responses/{response.id}") as kept:
        assert checked(await kept.json(), Response).status == "failed"


async def test_a_failure_within_a_summary(service: ModelService, http: aiohttp.ClientSession) -> None:
    reasoning = {"effort": "low", "summary": "auto"}
    whole = await stream(http, service, ask(model="o3", reasoning=reasoning))
    first = [event for event in whole if getattr(event, "summary_index", None) == 0 and event.type.endswith("delta")]
    events = await stream(http, service, ask(model=f"fault-failed-server-error-{len(first) + 1}", reasoning=reasoning))
    assert types_of(events)[-5:] == [
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "failed",
    ]
    summary = sum(event.type == "response.reasoning_summary_text.delta" for event in whole)
    events = await stream(http, service, ask(model=f"fault-failed-server-error-{summary + 2}", reasoning=reasoning))
    assert types_of(events)[-5:] == [
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "failed",
    ]


async def test_failures_in_the_background(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="fault-failed-server-error-3", input="hello there", background=True)
    while made.status in ("queued", "in_progress"):
        made = await client.responses.retrieve(made.id)
    assert made.status == "failed"
    assert made.error is not None
    assert made.error.code == "server_error"
    cut = await client.responses.create(model="fault-cut-midway-3", input=f"say: {WORDS}", background=True, stream=True)
    seen, error = await read_until_broken(cut)
    assert isinstance(error, openai.APIConnectionError)
    assert text_of(seen) == "one two three"
    rest = await client.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    seen += [event async for event in rest]
    assert text_of(seen) == WORDS
    assert seen[-1].type == "response.completed"


async def test_planned_faults_of_stored_responses(service: ModelService, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model="m", input="hello")
    service.faults["m"] = ["429", None, "503"]
    with pytest.raises(openai.RateLimitError):
        await client.responses.retrieve(made.id)
    await client.responses.input_items.list(made.id)
    with pytest.raises(openai.InternalServerError):
        await client.responses.delete(made.id)
    assert (await client.responses.retrieve(made.id)).id == made.id
    assert [record.fault for record in service.requests] == [None, "429", None, "503", None]
    assert {record.deployment for record in service.requests} == {"m"}


async def test_azures_rate_limit_within_a_stream(service: ModelService, http: aiohttp.ClientSession) -> None:
    *_, failed, error = await raw_events(http, service, ask(model="fault-failed-then-error"))
    assert (failed["type"], failed["response"]["error"]) == ("response.failed", None)
    assert error["error"]["code"] == "rate_limit_exceeded"
    assert error["sequence_number"] == failed["sequence_number"] + 1


async def test_error_events(service: ModelService, http: aiohttp.ClientSession, client: openai.AsyncOpenAI) -> None:
    (first,) = await raw_events(http, service, ask(model="fault-error-first"))
    assert (first["type"], first["sequence_number"], first["error"]["code"]) == ("error", 0, "server_error")
    events = await raw_events(http, service, ask(model="fault-error-midway-3"))
    assert [event["type"] for event in events][-2:] == ["response.output_text.delta", "error"]
    flat = (await stream(http, service, ask(model="fault-error-flat-3")))[-1]
    assert (flat.type, flat.code) == ("error", "server_error")
    with pytest.raises(openai.APIError, match="The server had an error"):
        _ = [
            event async for event in await client.responses.create(model="fault-error-midway-3", input="x", stream=True)
        ]


async def test_the_filter_and_the_limit_stop_an_answer(service: ModelService, http: aiohttp.ClientSession) -> None:
    for fault, reason in (("filter", "content_filter"), ("length", "max_output_tokens")):
        events = await stream(http, service, ask(model=f"fault-{fault}-midway-2"))
        response = events[-1].response
        assert events[-1].type == "response.incomplete"
        assert response.incomplete_details.reason == reason
        assert text_of(events) == response.output_text == "one two"
        completion = response.model_extra["content_filters"][1]
        assert completion["blocked"] is (fault == "filter")
        assert completion["content_filter_results"]["violence"]["filtered"] is (fault == "filter")
        assert service.requests[-1].ended == "complete"


async def test_a_refusal(service: ModelService, http: aiohttp.ClientSession) -> None:
    events = await stream(http, service, ask(model="fault-refusal"))
    assert types_of(events)[3:] == [
        "content_part.added",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    (part,) = events[-1].response.output[0].content
    assert part.refusal == "".join(event.delta for event in events if event.type == "response.refusal.delta")
    assert part.refusal == "I'm sorry, but I can't help with that."


async def test_what_faults_leave_out(service: ModelService, http: aiohttp.ClientSession) -> None:
    async def types(fault: str) -> list[str]:
        events = await raw_events(http, service, ask(model=f"fault-{fault}"))
        return list(dict.fromkeys(event["type"].removeprefix("response.") for event in events))

    assert await types("no-finish") == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert (await types("no-role"))[2] == "output_text.delta"
    assert (await types("no-close"))[4:] == ["output_text.delta", "completed"]
    assert "output_text.delta" not in await types("no-deltas")
    assert "unheard_of.delta" in await types("unknown-event")
    assert "keepalive" in await types("keepalive")
    assert (await types("end-midway-2"))[-1] == "output_text.delta"
    usage = (await stream(http, service, ask(model="fault-no-usage")))[-1].response
    assert usage.usage is None
    output = await stream(http, service, ask(model="fault-no-output"))
    assert (output[-1].response.output, text_of(output)) == ([], WORDS)
    filters = (await stream(http, service, ask(model="fault-no-filter")))[-1].response
    assert filters.model_extra["content_filters"] is None
    _, text = await post(http, service, ask(model="fault-no-sequence"))
    assert b"sequence_number" not in text
    numbers = [event["sequence_number"] for event in await raw_events(http, service, ask(model="fault-sequence-gap-2"))]
    assert numbers == [*range(6), *range(7, len(numbers) + 1)]
    twice = await raw_events(http, service, ask(model="fault-double-finish"))
    assert [event["type"] for event in twice[-2:]] == ["response.completed"] * 2
    after = await raw_events(http, service, ask(model="fault-after-done"))
    assert [event["type"] for event in after[-2:]] == ["response.completed", "response.output_text.delta"]


# The official client reads the same text from all of these.
@pytest.mark.parametrize(
    "name",
    [
        "split-1",
        "one-write",
        "crlf",
        "cr",
        "no-space",
        "data-lines",
        "fields",
        "comments",
        "no-filter",
        "no-usage",
        "escaped",
        "surrogates",
        "surrogates+split-3",
        "empty-content",
        "bytes",
        "keepalive",
        "no-event-name",
        "done-marker",
        "no-close",
        "no-role",
    ],
)
async def test_rare_but_correct(client: openai.AsyncOpenAI, service: ModelService, name: str) -> None:
    text = 'A "word" \\ and\nanother, café 🌿🌿 日本語 ]}'
    events = [
        event async for event in await client.responses.create(model=f"fault-{name}", input=f"say: {text}", stream=True)
    ]
    assert text_of(events).encode("utf-16", "surrogatepass").decode("utf-16") == text
    assert events[-1].type == "response.completed"
    assert service.requests[0].ended == "complete"


async def test_the_marks_of_faults(service: ModelService, http: aiohttp.ClientSession) -> None:
    for name, mark in {
        "crlf": b"event: response.created\r\ndata: ",
        "data-lines": b'\ndata: ,"sequence_number":1,',
        "fields": b"id: 7\n",
        "comments": b": a comment",
        "done-marker": b"data: [DONE]\n\n",
        "null-content": b'"delta":null',
        "lone-surrogate": b'"\\ud83d"',
        "invalid-utf8": b"caf\xe9 \xff\xfe",
        "garbage-first": b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"cut',
        "html": b"<html>",
        "escaped": b"\\ud83c\\udf3f",
    }.items():
        assert mark in (await post(http, service, ask("say: 🌿", model=f"fault-{name}")))[1], name
    assert b"event:" not in (await post(http, service, ask(model="fault-no-event-name")))[1]


@pytest.mark.parametrize("streams", [True, False])
# Whole responses past the HTTP server are the same on every wire: `tests/test_model_service.py`.
@pytest.mark.parametrize(
    "fault", [fault for fault in faults.FAULTS.values() if fault.connection is None], ids=lambda fault: fault.name
)
async def test_every_fault_in_the_table(
    service: ModelService, http: aiohttp.ClientSession, fault: faults.Fault, streams: bool
) -> None:
    name = model_service_requests.example_of(fault)
    arrived, broken = await model_service_requests.read_until_broken(
        http, service.url + "responses", ask(model=name, stream=streams)
    )
    await service.wait_for(lambda one: one.requests[0].ended != "open")
    record = service.requests[0]
    if "responses" not in fault.wires:
        assert b"unknown_fault" in arrived
        return
    assert record.fault == name
    if fault.error or fault.errors:
        assert (record.ended, broken) == ("fault", False)
        assert record.status is not None
        assert record.status >= 400 or fault.name in ("html-always", "error-document")
    else:
        assert record.ended == ("fault" if fault.breaks else "complete")
        assert broken == fault.name.startswith(("cut", "reset", "brotli"))


async def test_errors_in_the_words_of_the_api(service: ModelService, http: aiohttp.ClientSession) -> None:
    for name, param, text in (
        ("400", "input", "Invalid value."),
        ("context-length", "input", "Your input exceeds the context window of this model."),
        ("401-role", None, "OpenAI/responses/write"),
        ("previous-unknown", "previous_response_id", "Previous response with id"),
        ("content-filter", "prompt", "content management policy"),
    ):
        _, body = await post(http, service, ask(model=f"fault-{name}"))
        error = json.loads(body)["error"]
        assert error.get("param") == param
        assert text in error["message"]
    (filtered,) = error["content_filters"]
    assert filtered["blocked"]
    assert filtered["content_filter_results"]["violence"] == {"filtered": True, "severity": "medium"}


async def test_answers_and_schedules_are_those_of_every_wire(service: ModelService, client: openai.AsyncOpenAI) -> None:
    service.answer(["x", "y"])
    assert (await client.responses.create(model="m", input="hello")).output_text == "xy"
    service.faults[ANY_DEPLOYMENT] = "503"
    with pytest.raises(openai.InternalServerError):
        await client.responses.create(model="m", input="hello")
    service.reset()
    made = await client.responses.create(model=MANUAL_PACE, input="count to 5", stream=True)
    _ = [await anext(made) for _ in range(4)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await service.wait_for(lambda it: it.requests[-1].tokens)
    service.release(9)
    assert [event async for event in made][-1].response.output_text == "1, 2, 3, 4, 5"


# ── Azure's older paths ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_dated_api(service: ModelService, http: aiohttp.ClientSession) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=service.origin, api_key="k", api_version="2025-04-01-preview", max_retries=0
    ) as azure:
        made = await azure.responses.create(model="m", input=f"say: {WORDS}")
        assert made.output_text == WORDS
        assert (await azure.responses.retrieve(made.id)).id == made.id
        await azure.responses.delete(made.id)
        assert [model.id for model in (await azure.models.list()).data] == ["gpt-5.4-mini"]
    assert {record.auth for record in service.requests} == {"key"}
    async with http.post(service.origin + "/v1/responses", json=ask()) as response:
        assert response.status == 200
    path = f"{service.origin}/openai/deployments/mine/responses"
    async with http.post(path + "?api-version=2025-04-01-preview", json={"input": f"say: {WORDS}"}) as response:
        assert (await response.json())["model"] == "mine"
    assert service.requests[-1].deployment == "mine"
    async with http.post(path, json={"input": "x"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "404")


# ── Whatever a request contains ──────────────────────────────────────────────────────────────────────────────────────

EVERYTHING: dict[str, Any] = {
    "model": "gpt-5.4-mini",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "call every tool"},
                {"type": "input_image", "image_url": "https://example.com/a.png"},
                {"type": "input_file", "file_data": "AAAA", "filename": "a"},
            ],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "y"}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "q"}]},
        {"role": "user", "content": "again"},
    ],
    "instructions": "be brief",
    "tools": [WEATHER, {"type": "web_search"}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "metadata": {"a": "b"},
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 99,
    "top_logprobs": 3,
}
JUNK: tuple[Any, ...] = (None, 7, -1, 1.5, "", "x", True, [], {}, [1], ["x"], [{}], {"a": 1}, {"type": 7}, 10**30)
STATEFUL = (
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"type": "item_reference", "id": "msg_1"},
    {"type": "compaction", "encrypted_content": "zz"},
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values within a document."""
    if place:
        yield place
    for name in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[name], (*place, name))


async def test_whatever_a_request_contains_is_answered_or_rejected(
    service: ModelService, http: aiohttp.ClientSession
) -> None:
    dice = random.Random(11)
    statuses = []
    for round_number in range(400):
        body = copy.deepcopy(EVERYTHING)
        if round_number % 10 == 0:
            body["input"].insert(0, dict(dice.choice(STATEFUL)))
        for _ in range(dice.choice((0, 1, 1, 2))):
            *path, last = dice.choice([place for place in places(body) if place != ("model",)])
            parent: Any = body
            for step in path:
                parent = parent[step]
            parent[last] = dice.choice(JUNK)
        status, text = await post(http, service, body)
        statuses.append(status)
        document = json.loads(text)
        assert status == 200 or document["error"]["message"], body
        assert status == 400 or document["status"] in ("completed", "incomplete")
    assert set(statuses) == {200, 400}


async def test_a_lenient_service_judges_nothing(http: aiohttp.ClientSession) -> None:
    """What the tests of client libraries expect: they send examples of every parameter, and ids that no one has."""
    wrong = {"input": ["x"], "previous_response_id": "y", "tool_choice": "z", "unknown": 1, "max_output_tokens": 0}
    async with ModelService(tokens_per_second=0, lenient=True) as service:
        url = service.url + "responses"

        async def ask(method: str, path: str, kind: Any, **options: Any) -> Any:
            async with http.request(method, url + path, **options) as answer:
                assert answer.status == 200, await answer.text()
                return kind.model_validate_json(await answer.read())

        for body in ({"model": "m"}, {"model": "m", **wrong}):
            assert (await ask("POST", "", Response, json=body)).status == "completed"
            assert (await ask("POST", "/compact", CompactedResponse, json=body)).object == "response.compaction"
            assert (await ask("POST", "/input_tokens", InputTokenCountResponse, json=body)).input_tokens > 0
            async with http.post(url, json=body | {"stream": True}) as answer:
                assert b"event: response.completed" in await answer.read()
        for response_id in ("resp_1", "any"):
            assert (await ask("GET", f"/{response_id}", Response)).id == response_id
            assert (await ask("POST", f"/{response_id}/cancel", Response)).status == "cancelled"
            items = await ask("GET", f"/{response_id}/input_items?limit=0&after=x", ResponseItemList)
            assert len(items.data) == 1
            async with http.get(f"{url}/{response_id}?stream=true&starting_after=2") as answer:
                events = await answer.text()
            assert "event: response.completed" in events
            assert '"sequence_number":2,' not in events
            async with http.delete(f"{url}/{response_id}") as answer:
                assert (await answer.json())["deleted"] is True
