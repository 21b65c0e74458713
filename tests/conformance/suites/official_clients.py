"""OpenAI's Python client in its four kinds, at each address: what its users call."""

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from target import EMBEDDINGS, MODEL, PARAMETERS, PROMPT, TEXT, URL

AZURE = {"azure_endpoint": URL, "api_version": "2025-04-01-preview"}
CLIENTS: dict[str, Callable[[], Any]] = {
    "OpenAI": lambda: openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0),
    "AsyncOpenAI": lambda: openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0),
    "OpenAI-azure-v1": lambda: openai.OpenAI(base_url=f"{URL}/openai/v1/", api_key="unused", max_retries=0),
    "AzureOpenAI": lambda: openai.AzureOpenAI(**AZURE, api_key="unused", max_retries=0),
    "AsyncAzureOpenAI": lambda: openai.AsyncAzureOpenAI(**AZURE, api_key="unused", max_retries=0),
    "AsyncAzureOpenAI-deployment": lambda: openai.AsyncAzureOpenAI(
        **AZURE, azure_deployment=MODEL, api_key="unused", max_retries=0
    ),
}


class City(BaseModel):
    """A city."""

    name: str


@pytest.fixture(params=CLIENTS)
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    made = CLIENTS[request.param]()
    yield made
    await of(made.close())


async def of(result: Any) -> Any:
    """The result of a call of a client that is asynchronous or not."""
    return await result if inspect.isawaitable(result) else result


async def listed(stream: Any) -> list[Any]:
    """All that a stream, or the pages of a list, have."""
    return [it async for it in stream] if hasattr(stream, "__aiter__") else list(stream)


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_responses_create(client: Any) -> None:
    response = await of(client.responses.create(model=MODEL, input=PROMPT))
    assert response.output_text == TEXT
    events = await listed(await of(client.responses.create(model=MODEL, input=PROMPT, stream=True)))
    assert text_of(events) == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"


async def test_responses_stream(client: Any) -> None:
    manager = client.responses.stream(model=MODEL, input=PROMPT, text_format=City)
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            await listed(stream)
            final = await stream.get_final_response()
    else:
        with manager as stream:
            await listed(stream)
            final = stream.get_final_response()
    assert isinstance(final.output_parsed, City)


async def test_responses_parse(client: Any) -> None:
    response = await of(client.responses.parse(model=MODEL, input=PROMPT, text_format=City))
    assert isinstance(response.output_parsed, City)


async def test_responses_retrieve_after_an_event(client: Any) -> None:
    created = await listed(await of(client.responses.create(model=MODEL, input=PROMPT, background=True, stream=True)))
    response_id = created[0].response.id
    events = await listed(await of(client.responses.retrieve(response_id, stream=True, starting_after=5)))
    assert events == created[6:]
    assert (await of(client.responses.retrieve(response_id))).output_text == TEXT
    assert [item.type for item in await listed(await of(client.responses.input_items.list(response_id)))] == ["message"]
    await of(client.responses.delete(response_id))
    with pytest.raises(openai.NotFoundError):
        await of(client.responses.retrieve(response_id))


async def test_responses_cancel(client: Any) -> None:
    response = await of(client.responses.create(model="paced-by-hand", input="x", background=True))
    assert (await of(client.responses.cancel(response.id))).status == "cancelled"


async def test_responses_compact(client: Any) -> None:
    response = await of(client.responses.create(model=MODEL, input=PROMPT))
    compacted = await of(client.responses.compact(model=MODEL, previous_response_id=response.id))
    assert compacted.object == "response.compaction"


async def test_a_function_and_a_conversation(client: Any) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
    first = await of(client.responses.create(model=MODEL, input="'Lisbon'", tools=tools))
    assert first.output[0].arguments == '{"city":"Lisbon"}'
    output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "Rain."}
    second = await of(client.responses.create(model=MODEL, previous_response_id=first.id, input=[output], tools=tools))
    assert "Rain." in second.output_text


async def test_chat_completions(client: Any) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    completion = await of(client.chat.completions.create(model=MODEL, messages=messages))
    assert completion.choices[0].message.content == TEXT
    stream = await of(client.chat.completions.create(model=MODEL, messages=messages, stream=True))
    chunks = await listed(stream)
    assert "".join(it.choices[0].delta.content or "" for it in chunks if it.choices) == TEXT


async def test_embeddings_create(client: Any, request: pytest.FixtureRequest) -> None:
    if "deployment" in request.node.callspec.id:
        pytest.skip("its one deployment is for text")
    made = await of(client.embeddings.create(model=EMBEDDINGS, input=["x", "y"]))
    assert [len(it.embedding) for it in made.data] == [1536, 1536]


async def test_models(client: Any, request: pytest.FixtureRequest) -> None:
    if "deployment" in request.node.callspec.id:
        pytest.skip("the client asks for models below its deployment, where Azure has none")
    assert MODEL in [model.id for model in await listed(await of(client.models.list()))]
    assert (await of(client.models.retrieve(MODEL))).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await of(client.models.retrieve("none"))


@pytest.mark.parametrize("stream", [False, True])
async def test_errors(client: Any, stream: bool, request: pytest.FixtureRequest) -> None:
    for model, error in (("fault-429-7", openai.RateLimitError), ("fault-content-filter", openai.BadRequestError)):
        with pytest.raises(error):
            await of(client.responses.create(model=model, input="x", stream=stream))


async def test_an_answer_that_breaks_off(client: Any) -> None:
    stream = await of(client.responses.create(model="fault-cut-midway", input="x", stream=True))
    types: list[str] = []

    async def read() -> None:
        if hasattr(stream, "__aiter__"):
            async for event in stream:
                types.append(event.type)
        else:
            for event in stream:
                types.append(event.type)

    with pytest.raises(openai.APIError):
        await read()
    assert types[-1] == "error"
