"""`litellm.completion`, unchanged: prints the results as one JSON object."""

import asyncio
import json
import os

import litellm

prompt = os.environ["RELAY_PROMPT"]


def options(model: str = os.environ["RELAY_MODEL"], **more: object) -> dict[str, object]:
    return {
        "model": f"openai/{model}",
        "messages": [{"role": "user", "content": prompt}],
        "api_base": os.environ["RELAY_URL"] + "/v1",
        "api_key": "unused",
        "extra_headers": {"x-functions-key": os.environ["RELAY_KEY"]},
        "num_retries": 0,
        "max_retries": 0,
        **more,
    }


async def asynchronous() -> str:
    chunks = await litellm.acompletion(**options(stream=True))
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
document = litellm.completion(**options())
chunks = list(litellm.completion(**options(stream=True, stream_options={"include_usage": True})))
(call,) = (
    litellm.completion(**options(tools=[{"type": "function", "function": function}])).choices[0].message.tool_calls
)
results = {
    "document": document.choices[0].message.content,
    "tokens": document.usage.completion_tokens,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "streamed_tokens": chunks[-1].usage.completion_tokens,
    "tool": [call.function.name, list(json.loads(call.function.arguments))],
    "astream": asyncio.run(asynchronous()),
}
try:
    litellm.completion(**options("fault-429-7"))
except litellm.RateLimitError as error:
    results["error"] = error.status_code
print(json.dumps(results))
