"""The Responses API and embeddings with the official client, unchanged, synchronous and not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.hosting import HostedApp, eventually

KEY: Final = "the-function-key"
EMBEDDINGS: Final = "text-embedding-3-small"
TEXT: Final = "Grün 🌿 is\na colour, and \u2028 so on."
PROMPT: Final = f"say: {TEXT}"  # the model service answers with the text
WEATHER: Final[Any] = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
# What the client raises before the answer has begun.
REFUSALS: Final = {
    "fault-400": (openai.BadRequestError, 400, "invalid_value"),
    "fault-context-length": (openai.BadRequestError, 400, "context_length_exceeded"),
    "fault-content-filter": (openai.BadRequestError, 400, "content_filter"),
    "fault-404": (openai.NotFoundError, 404, "model_not_found"),
    "fault-429-7": (openai.RateLimitError, 429, "rate_limited"),
    "fault-401": (openai.InternalServerError, 502, "upstream_auth"),
    "fault-500": (openai.InternalServerError, 502, "upstream_error"),
    "fault-504": (openai.InternalServerError, 504, "upstream_timeout"),
    "fault-error-first": (openai.InternalServerError, 502, "upstream_error"),
    "fault-cut-first": (openai.InternalServerError, 502, "upstream_error"),
    "fault-failed-server-error-0": (openai.InternalServerError, 502, "upstream_error"),
    "fault-failed-then-error": (openai.RateLimitError, 429, "rate_limited"),
}
# How a stream ends that had begun: the type of its last event, and the code in it.
MIDWAY: Final = {
    "fault-cut-midway": ("error", "upstream_interrupted"),
    "fault-reset-midway": ("error", "upstream_interrupted"),
    "fault-end-midway": ("error", "upstream_interrupted"),
    "fault-no-finish": ("error", "upstream_interrupted"),
    "fault-error-midway": ("error", "upstream_error"),
    "fault-error-flat": ("error", "upstream_error"),
    "fault-garbage-midway": ("error", "upstream_error"),
    "fault-failed-server-error": ("response.failed", "server_error"),
    "fault-failed-rate-limit-exceeded": ("response.failed", "rate_limit_exceeded"),
    "fault-failed-null": ("response.failed", None),
}


@pytest.fixture(scope="module")
def keyed_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with its key checked, and a deployment for each fault."""
    deployments = [DEFAULT_DEPLOYMENT, MANUAL_PACE, "o3-reasoning", EMBEDDINGS, *REFUSALS, *MIDWAY]
    return functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": ",".join(deployments)}, key=KEY, fresh=True)


def options(app: HostedApp) -> dict[str, Any]:
    """How a client is made of this app, as the documentation shows it, without retries."""
    headers = {"x-functions-key": KEY}
    return {"base_url": app.url + "/v1", "api_key": "unused", "default_headers": headers, "max_retries": 0}


@pytest.fixture
async def client(keyed_app: HostedApp, model_service: ModelService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**options(keyed_app)) as client:
        yield client


async def events_of(stream: Any) -> tuple[list[ResponseStreamEvent], bool]:
    """All events of a stream, and whether the transfer broke off behind them."""
    events: list[ResponseStreamEvent] = []
    try:
        async for event in stream:
            events.append(event)
    except openai.APIConnectionError:
        return events, True
    return events, False


def numbers_of(events: list[ResponseStreamEvent]) -> list[int]:
    return [event.sequence_number for event in events]


async def test_document_and_stream(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(model=DEFAULT_DEPLOYMENT, input=PROMPT, metadata={"a": "b"})
    assert response.output_text == TEXT
    assert (response.status, response.metadata) == ("completed", {"a": "b"})
    assert response.usage is not None
    stream = await client.responses.create(input=PROMPT, stream=True)  # type: ignore[call-overload]
    events, broken = await events_of(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert (events[0].type, events[-1].type, broken) == ("response.created", "response.completed", False)
    assert numbers_of(events) == list(range(len(events)))


async def test_synchronous_client(keyed_app: HostedApp, model_service: ModelService) -> None:
    def request() -> None:
        with openai.OpenAI(**options(keyed_app)) as client:
            response = client.responses.create(model=DEFAULT_DEPLOYMENT, input=PROMPT)
            assert response.output_text == TEXT
            with client.responses.stream(model=DEFAULT_DEPLOYMENT, input=PROMPT) as stream:
                assert "".join(it.delta for it in stream if it.type == "response.output_text.delta") == TEXT
                assert stream.get_final_response().output_text == TEXT
            assert client.responses.retrieve(response.id).output_text == TEXT
            assert [item.type for item in client.responses.input_items.list(response.id)] == ["message"]
            client.responses.delete(response.id)
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(response.id)
            assert len(client.embeddings.create(model=EMBEDDINGS, input="x").data[0].embedding) == 1536

    await asyncio.to_thread(request)


async def test_the_stream_helper(client: openai.AsyncOpenAI) -> None:
    class City(BaseModel):
        name: str

    async with client.responses.stream(model=DEFAULT_DEPLOYMENT, input=PROMPT, text_format=City) as stream:
        types = {event.type async for event in stream}
        final = await stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.completed"} <= types
    assert isinstance(final.output_parsed, City)


async def test_tools_and_a_conversation(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model=DEFAULT_DEPLOYMENT, input=PROMPT, tools=[WEATHER])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert set(json.loads(call.arguments)) == {"city"}
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    second = await client.responses.create(
        model=DEFAULT_DEPLOYMENT, previous_response_id=first.id, input=[output], tools=[WEATHER]
    )
    assert second.previous_response_id == first.id
    items = [item async for item in client.responses.input_items.list(second.id, limit=1, order="asc")]
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


async def test_reasoning_and_images(client: openai.AsyncOpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": PROMPT},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
    ]
    stream = await client.responses.create(
        model="o3-reasoning",
        input=[{"role": "user", "content": content}],
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=False,
        stream=True,
    )
    events, _ = await events_of(stream)
    assert events[-1].type == "response.completed"
    assert {"reasoning", "message"} <= {item.type for item in events[-1].response.output}


async def test_stored_responses(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(model=DEFAULT_DEPLOYMENT, input=PROMPT)
    again = await client.responses.retrieve(response.id, include=["message.output_text.logprobs"])
    assert again.output_text == TEXT
    compacted = await client.responses.compact(model=DEFAULT_DEPLOYMENT, previous_response_id=response.id)
    assert compacted.object == "response.compaction"
    await client.responses.delete(response.id)
    requests: list[Awaitable[object]] = [
        client.responses.retrieve(response.id),
        client.responses.delete(response.id),
        client.responses.cancel(response.id),
        client.responses.input_items.list(response.id),
    ]
    for request in requests:
        with pytest.raises(openai.NotFoundError) as raised:
            await request
        assert raised.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=DEFAULT_DEPLOYMENT, input="x", previous_response_id=response.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_response_in_the_background(client: openai.AsyncOpenAI, model_service: ModelService) -> None:
    model_service.answer(["one ", "two ", "three"], MANUAL_PACE)
    stream = await client.responses.create(model=MANUAL_PACE, input="x", background=True, stream=True)
    model_service.release(1)
    seen: list[ResponseStreamEvent] = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    assert seen[0].type == "response.created"
    response_id = seen[0].response.id
    assert (await client.responses.retrieve(response_id)).status == "in_progress"
    model_service.release(2)
    following = await client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    events, broken = await events_of(following)
    assert (events[-1].type, broken) == ("response.completed", False)
    assert numbers_of([*seen, *events]) == list(range(len(seen) + len(events)))
    assert events[-1].response.output_text == "one two three"


async def test_cancel(client: openai.AsyncOpenAI, model_service: ModelService) -> None:
    response = await client.responses.create(model=MANUAL_PACE, input="x", background=True)
    assert response.status in ("queued", "in_progress")
    assert (await client.responses.cancel(response.id)).status == "cancelled"

    async def cancelled() -> Response | None:
        found = await client.responses.retrieve(response.id)
        return found if found.status == "cancelled" else None

    assert await eventually(cancelled)
    other = await client.responses.create(model=DEFAULT_DEPLOYMENT, input="x")
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        await client.responses.cancel(other.id)


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    one = await client.embeddings.create(model=EMBEDDINGS, input="x")  # the client asks for base64
    batch = await client.embeddings.create(model=EMBEDDINGS, input=["x", "y"], encoding_format="float")
    assert batch.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-6)
    assert [item.index for item in batch.data] == [0, 1]
    assert batch.usage.prompt_tokens == 2 * one.usage.prompt_tokens > 0
    shorter = await client.embeddings.create(model=EMBEDDINGS, input=[[1, 2], [3]], dimensions=256)
    assert [len(item.embedding) for item in shorter.data] == [256, 256]
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model=DEFAULT_DEPLOYMENT, input="x")
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="unknown", input="x")


@pytest.mark.parametrize("deployment", REFUSALS)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals(client: openai.AsyncOpenAI, deployment: str, *, stream: bool) -> None:
    kind, status, code = REFUSALS[deployment]
    if deployment in ("fault-error-first", "fault-failed-then-error") and not stream:
        pytest.skip("a document has no events")
    with pytest.raises(kind) as raised:
        await client.responses.create(model=deployment, input=PROMPT, stream=stream)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    if "429-7" in deployment:
        assert raised.value.response.headers["retry-after"] in ("6", "7")


@pytest.mark.parametrize("deployment", MIDWAY)
async def test_failures_midway(client: openai.AsyncOpenAI, deployment: str) -> None:
    kind, code = MIDWAY[deployment]
    events, broken = await events_of(await client.responses.create(model=deployment, input=PROMPT, stream=True))
    *before, last = events
    assert any(event.type == "response.output_text.delta" for event in before)
    assert last.type == kind
    if last.type == "error":
        assert (last.code, last.param) == (code, None)
        assert last.message
        assert broken, "a failure that this app reports must not pass for a complete answer"
    elif last.type == "response.failed":
        assert (last.response.error.code if last.response.error else None) == code
        assert not broken
    assert numbers_of(events) == list(range(len(events)))
