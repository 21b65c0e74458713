"""The limit of the platform: the upstream's bytes are copied as they arrive; nothing is parsed."""

import json
import os

import aiohttp
import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, StreamingResponse

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
URL = os.environ["BENCH_UPSTREAM"] + "/openai/v1/chat/completions"
sessions = []


async def copy(response):
    async for chunk in response.content.iter_any():
        yield chunk


@app.route(route="stream", methods=["POST"])
async def stream(req: Request) -> StreamingResponse:
    if not sessions:
        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout()))
    body = {"stream": True, "messages": [{"role": "user", "content": (await req.json())["input"]}]}
    headers = {"content-type": "application/json"}
    response = await sessions[0].post(URL, data=json.dumps(body), headers=headers)
    return StreamingResponse(copy(response), media_type="text/event-stream")
