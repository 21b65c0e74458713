"""A function app that does, on demand, all that a host must cope with; what happened to it can be asked at /seen."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator

import azure.functions as func
from azurefunctions.extensions.http.fastapi import JSONResponse, Request, Response, StreamingResponse
from starlette.requests import ClientDisconnect

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
seen: dict[str, float] = {}


@app.route("stream", methods=["GET", "POST"])
async def stream(req: Request) -> StreamingResponse:
    """`count` events, `pause` seconds apart; `break` raises after as many; `size` pads each to so many bytes."""
    query = req.query_params
    name, size = query.get("name", ""), int(query.get("size", "0"))
    count, pause, breaks = int(query.get("count", "3")), float(query.get("pause", "0")), query.get("break")

    async def events() -> AsyncIterator[bytes]:
        try:
            for number in range(count):
                if breaks is not None and number == int(breaks):
                    raise RuntimeError("broken on demand")
                yield f"data: {number}".encode().ljust(size, b".") + b"\n\n"
                seen[f"{name} sent"] = number + 1
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            seen[f"{name} cancelled"] = time.time()
            raise

    headers = {"Content-Length": query["length"]} if "length" in query else None
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@app.route("silent", methods=["GET"])
async def silent(req: Request) -> Response:
    """Answer never, but notice that the caller left."""
    name = req.query_params.get("name", "")
    seen[f"{name} waits"] = time.time()
    for _ in range(600):
        if await req.is_disconnected():
            seen[f"{name} left"] = time.time()
            break
        await asyncio.sleep(0.02)
    return Response(status_code=204)


@app.route("seen", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def seen_so_far(req: Request) -> JSONResponse:
    """What happened until now, by the names that the requests brought along."""
    return JSONResponse(seen)


@app.route("echo", auth_level=func.AuthLevel.ANONYMOUS)
async def echo(req: Request) -> JSONResponse:
    """The request as it arrived here."""
    body = await req.body() if req.method not in ("GET", "HEAD") else b""
    return JSONResponse(
        {
            "method": req.method,
            "path": req.scope["raw_path"].decode(),
            "query": req.scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in req.headers.raw],
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        },
        headers={"X-Sample": "yes", "Connection": "keep-alive, x-hop", "X-Hop": "not for the caller"},
    )


@app.route("early", methods=["POST"])
async def early(req: Request) -> Response:
    """Refuse without reading the body."""
    return Response("too much", status_code=413)


@app.route("back", methods=["POST"])
async def back(req: Request) -> Response:
    """The body, back again."""
    name = req.query_params.get("name", "")
    seen[f"{name} begun"] = time.time()
    try:
        body = await req.body()
    except ClientDisconnect:
        seen[f"{name} disconnected"] = time.time()
        return Response(status_code=400)
    return Response(body, media_type="application/octet-stream")


@app.route("things/{kind:alpha}/{number:int?}", methods=["GET"])
async def thing(req: Request) -> JSONResponse:
    """The route's parameters."""
    return JSONResponse(dict(req.path_params))


@app.route("things/special", methods=["GET"])
async def special(req: Request) -> Response:
    """A literal beside a parameter: it wins."""
    return Response("special")


@app.route("raises", methods=["GET"])
async def raises(req: Request) -> Response:
    """A function that fails."""
    raise RuntimeError("raised on demand")


@app.route("nothing", methods=["GET"])
async def nothing(req: Request) -> Response:
    """A function that forgets to answer."""
    return None  # type: ignore[return-value]


@app.route("empty", methods=["GET", "DELETE"])
async def empty(req: Request) -> Response:
    """No content, no content type."""
    return Response(status_code=204)


@app.route("dies", methods=["GET"])
async def dies(req: Request) -> Response:
    """Take the worker down."""
    os._exit(3)
