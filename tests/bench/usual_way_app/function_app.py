"""The usual way: a streaming endpoint as articles show it, which turns the openai client's chunk objects into text."""

import os

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, StreamingResponse
from openai import AsyncAzureOpenAI

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
deployment = os.environ["AZURE_OPENAI_DEPLOYMENTS"]
client = AsyncAzureOpenAI(
    azure_endpoint=os.environ["BENCH_UPSTREAM"], api_key=os.environ["AZURE_OPENAI_API_KEY"], api_version="2024-10-21"
)


async def stream_processor(response):
    async for chunk in response:
        if len(chunk.choices) > 0:
            delta = chunk.choices[0].delta
            if delta.content:
                yield delta.content


@app.route(route="stream", methods=[func.HttpMethod.POST])
async def stream_openai_text(req: Request) -> StreamingResponse:
    body = await req.json()
    response = await client.chat.completions.create(
        model=deployment, messages=[{"role": "user", "content": body["input"]}], stream=True
    )
    return StreamingResponse(stream_processor(response), media_type="text/event-stream")
