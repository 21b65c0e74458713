"""The OpenAI Agents SDK: runs with a tool, structured output, a hand-off and a session, streamed and not."""

from collections.abc import Callable

import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncAzureOpenAI, AsyncOpenAI, RateLimitError
from pydantic import BaseModel
from target import MODEL, REASONING, URL

set_tracing_disabled(True)
OPENAI = AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
AZURE = AsyncAzureOpenAI(azure_endpoint=URL, api_version="2025-04-01-preview", api_key="unused", max_retries=0)

type MakeModel = Callable[[str], Model]

WIRES: dict[str, MakeModel] = {
    "responses": lambda name: OpenAIResponsesModel(name, OPENAI),
    "chat": lambda name: OpenAIChatCompletionsModel(name, OPENAI),
    "azure-responses": lambda name: OpenAIResponsesModel(name, AZURE),
    "azure-chat": lambda name: OpenAIChatCompletionsModel(name, AZURE),
}
each_wire = pytest.mark.parametrize("make", WIRES.values(), ids=WIRES)
streamed_or_not = pytest.mark.parametrize("streamed", [False, True], ids=["document", "stream"])


class City(BaseModel):
    """A city."""

    name: str
    people: int


async def run(agent: Agent, prompt: str, *, streamed: bool, session: SQLiteSession | None = None) -> object:
    if not streamed:
        return (await Runner.run(agent, prompt, session=session)).final_output
    result = Runner.run_streamed(agent, prompt, session=session)
    async for _ in result.stream_events():
        pass
    return result.final_output


@each_wire
@streamed_or_not
async def test_a_tool(make: MakeModel, streamed: bool) -> None:
    called = []

    @function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "Rain."

    agent = Agent(name="a", instructions="Be brief.", model=make(MODEL), tools=[weather])
    assert "Rain." in str(await run(agent, "How is the weather in 'Lisbon'?", streamed=streamed))
    assert called == ["Lisbon"]


@each_wire
@streamed_or_not
async def test_structured_output(make: MakeModel, streamed: bool) -> None:
    agent = Agent(name="a", model=make(MODEL), output_type=City)
    assert await run(agent, "'Lisbon' with 500000 people", streamed=streamed) == City(name="Lisbon", people=500000)


@each_wire
@streamed_or_not
async def test_a_hand_off(make: MakeModel, streamed: bool) -> None:
    poet = Agent(name="poet", model=make(MODEL))
    agent = Agent(name="clerk", model=make(MODEL), handoffs=[poet])
    if streamed:
        result = Runner.run_streamed(agent, "A poem.")
        async for _ in result.stream_events():
            pass
        assert result.last_agent is poet
    else:
        assert (await Runner.run(agent, "A poem.")).last_agent is poet


@each_wire
@streamed_or_not
async def test_a_session(make: MakeModel, streamed: bool) -> None:
    agent, session = Agent(name="a", model=make(MODEL)), SQLiteSession("1")
    await run(agent, "What are lanterns?", streamed=streamed, session=session)
    assert "I remember 1 earlier turn" in str(await run(agent, "And mirrors?", streamed=streamed, session=session))


@streamed_or_not
async def test_reasoning_and_a_previous_response(streamed: bool) -> None:
    settings = ModelSettings(reasoning={"effort": "low", "summary": "auto"})
    agent = Agent(name="a", model=WIRES["responses"](REASONING), model_settings=settings)
    first = await Runner.run(agent, "What are lanterns?")
    assert any(item.type == "reasoning_item" for item in first.new_items)
    if streamed:
        second = Runner.run_streamed(agent, "And mirrors?", previous_response_id=first.last_response_id)
        async for _ in second.stream_events():
            pass
        assert "I remember 1 earlier turn" in second.final_output
    else:
        second = await Runner.run(agent, "And mirrors?", previous_response_id=first.last_response_id)
        assert "I remember 1 earlier turn" in second.final_output


@each_wire
@streamed_or_not
async def test_a_refused_request(make: MakeModel, streamed: bool) -> None:
    agent = Agent(name="a", model=make("fault-429-7"))
    with pytest.raises(RateLimitError):
        await run(agent, "Hello", streamed=streamed)
