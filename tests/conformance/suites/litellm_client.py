"""LiteLLM as a client, over chat completions, Responses and embeddings, at OpenAI's address and at Azure's."""

import json
from typing import Any

import litellm
import pytest
from target import EMBEDDINGS, MODEL, PARAMETERS, PROMPT, TEXT, URL

MESSAGES = [{"role": "user", "content": PROMPT}]
PROVIDERS: dict[str, dict[str, Any]] = {
    "openai": {"api_base": f"{URL}/v1", "api_key": "unused"},
    "azure": {"api_base": URL, "api_key": "unused", "api_version": "2025-04-01-preview"},
}


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def options(provider: str, model: str = MODEL, **more: object) -> dict[str, Any]:
    return {"model": f"{provider}/{model}", "max_retries": 0, "num_retries": 0, **PROVIDERS[provider], **more}


def test_completion(provider: str) -> None:
    document = litellm.completion(**options(provider, messages=MESSAGES))
    assert document.choices[0].message.content == TEXT
    assert document.usage.completion_tokens > 0


async def test_streamed_completion(provider: str) -> None:
    more = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    chunks = [chunk async for chunk in await litellm.acompletion(**options(provider, **more))]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_tool(provider: str, stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    document = litellm.completion(**options(provider, messages=MESSAGES, tools=tools, stream=stream))
    if stream:
        document = litellm.stream_chunk_builder(list(document))
    (call,) = document.choices[0].message.tool_calls
    assert (call.function.name, list(json.loads(call.function.arguments))) == ("weather", ["city"])


def test_response(provider: str) -> None:
    response = litellm.responses(**options(provider, input=PROMPT))
    assert response.output[-1].content[0].text == TEXT
    # It writes the provider into the id, and takes it out again.
    second = litellm.responses(**options(provider, input="And mirrors?", previous_response_id=response.id))
    assert "I remember 1 earlier turn" in second.output[-1].content[0].text


async def test_streamed_response(provider: str) -> None:
    events = [event async for event in await litellm.aresponses(**options(provider, input=PROMPT, stream=True))]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[-1].type == "response.completed"


def test_embedding(provider: str) -> None:
    made = litellm.embedding(**options(provider, EMBEDDINGS, input=["x", "y"]))
    assert [len(item["embedding"]) for item in made.data] == [1536, 1536]


@pytest.mark.parametrize("stream", [False, True])
def test_refused_request(provider: str, stream: bool) -> None:
    with pytest.raises(litellm.RateLimitError):
        litellm.completion(**options(provider, "fault-429-7", messages=MESSAGES, stream=stream))


def test_interrupted_answer(provider: str) -> None:
    chunks = litellm.completion(**options(provider, "fault-cut-midway", messages=MESSAGES, stream=True))
    with pytest.raises(litellm.exceptions.MidStreamFallbackError, match="The answer was cut off"):
        list(chunks)
