"""LangChain's ChatOpenAI, unchanged: prints the results as one JSON object."""

import asyncio
import json
import os

import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


class City(BaseModel):
    """A city."""

    name: str


def chat(model: str = os.environ["RELAY_MODEL"], **options: object) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=os.environ["RELAY_URL"] + "/v1",
        api_key="unused",
        default_headers={"x-functions-key": os.environ["RELAY_KEY"]},
        max_retries=0,
        **options,
    )


async def asynchronous(prompt: str) -> dict[str, object]:
    return {
        "ainvoke": (await chat().ainvoke(prompt)).text,
        "astream": "".join([chunk.text async for chunk in chat().astream(prompt)]),
    }


prompt = os.environ["RELAY_PROMPT"]
document = chat().invoke(prompt)
chunks = list(chat(stream_usage=True).stream(prompt))
last = chunks[0]
for chunk in chunks[1:]:
    last += chunk
(call,) = chat().bind_tools([weather]).invoke(prompt).tool_calls
results = {
    "document": document.text,
    "tokens": document.usage_metadata["output_tokens"],
    "streamed": last.text,
    "streamed_tokens": last.usage_metadata["output_tokens"],
    "tool": [call["name"], list(call["args"])],
    "structured": type(chat().with_structured_output(City).invoke(prompt)).__name__,
    **asyncio.run(asynchronous(prompt)),
}
try:
    chat("fault-429-7").invoke(prompt)
except openai.RateLimitError as error:
    results["error"] = error.status_code
print(json.dumps(results))
