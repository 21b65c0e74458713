"""A function app that does, on demand, all that a host must handle; `GET /events` returns what happened in it.

With `SAMPLE_BOUND_THE_WAITS` it ends invocations whose HTTP request does not arrive, as this repository's app does.
"""

import asyncio
import hashlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import azure.functions as func
import azure_functions_runtime.handle_event as library
from azure_functions_runtime.bindings.datumdef import Datum
from azurefunctions.extensions.http.fastapi import JSONResponse, Request, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if os.environ.get("SAMPLE_BOUND_THE_WAITS"):
    sys.path.append(str(Path(__file__).resolve().parents[3]))
    from relay.worker_patches import invocations

    invocations.bound_the_waits()

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
happened: dict[str, float] = {}  # a name of the test's own and an event: a time or a count
gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))

trigger_metadata: ContextVar[dict[str, Any]] = ContextVar("trigger_metadata")

original_convert = library.from_incoming_proto
original_data_received = HttpToolsProtocol.data_received


def record_metadata(binding: str, pb: Any, **options: Any) -> Any:
    """Convert the trigger as the library does, and keep its metadata for the function."""
    found = options["trigger_metadata"]
    data = {name: Datum.from_typed_data(value) for name, value in found.items()} if found else {}
    trigger_metadata.set({name: [datum.type, datum.python_value] for name, datum in data.items()})
    return original_convert(binding, pb, **options)


def drop_kept_connection(self: HttpToolsProtocol, data: bytes) -> None:
    """Close a connection that has served a request when one with the header X-Drop comes, as if it had been idle."""
    if b"x-drop:" in data.lower() and vars(self).get("sample_used"):
        happened["dropped"] = happened.get("dropped", 0) + 1
        self.transport.abort()
        return
    vars(self)["sample_used"] = True
    original_data_received(self, data)


library.from_incoming_proto = record_metadata
HttpToolsProtocol.data_received = drop_kept_connection  # type: ignore[method-assign]


@app.route("stream", methods=["GET", "POST"])
async def stream(req: Request) -> StreamingResponse:
    """`count` events, `pause` seconds apart, or each after a `POST /release` if `gated`; `break` raises after as many;
    `size` pads each to so many bytes.
    """
    query = req.query_params
    name, size = query.get("name", ""), int(query.get("size", "0"))
    count, pause, breaks = int(query.get("count", "3")), float(query.get("pause", "0")), query.get("break")
    gate = gates[name] if "gated" in query else None
    happened[f"{name} called"] = time.time()

    async def events() -> AsyncIterator[bytes]:
        try:
            for number in range(count):
                if breaks is not None and number == int(breaks):
                    raise RuntimeError("broken on demand")
                if gate is not None:
                    await gate.acquire()
                yield f"data: {number}".encode().ljust(size, b".") + b"\n\n"
                happened[f"{name} sent"] = number + 1
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            happened[f"{name} cancelled"] = time.time()
            raise

    headers = {"Content-Length": query["length"]} if "length" in query else None
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@app.route("release", methods=["POST"])
async def release(req: Request) -> Response:
    """Let the gated stream of this `name` send one more event."""
    gates[req.query_params["name"]].release()
    return Response(status_code=204)


@app.route("silent", methods=["GET"])
async def silent(req: Request) -> Response:
    """Send no response, but notice that the caller disconnected."""
    name = req.query_params.get("name", "")
    happened[f"{name} waiting"] = time.time()
    for _ in range(600):
        if await req.is_disconnected():
            happened[f"{name} disconnected"] = time.time()
            break
        await asyncio.sleep(0.02)
    return Response(status_code=204)


@app.route("events", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def events_so_far(req: Request) -> JSONResponse:
    """What happened until now, by the names in the requests."""
    return JSONResponse(happened)


@app.route("event-loop", methods=["GET"])
async def event_loop(req: Request) -> JSONResponse:
    """The event loop's class, and for the function's own task and one that it creates the class and invocation id."""

    async def describe_task() -> dict[str, Any]:
        task = asyncio.current_task()
        return {
            "classes": [kind.__name__ for kind in type(task).mro()],
            "invocation_id": getattr(task, "__azure_function_invocation_id__", None),
        }

    loop = type(asyncio.get_running_loop())
    return JSONResponse(
        {
            "loop": f"{loop.__module__}.{loop.__name__}",
            "own_task": await describe_task(),
            "new_task": await asyncio.create_task(describe_task()),
        }
    )


@app.route("echo", auth_level=func.AuthLevel.ANONYMOUS)
async def echo(req: Request) -> JSONResponse:
    """The request as it arrived."""
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
    """Reject the request without reading its body."""
    happened[f"{req.query_params.get('name', '')} answered"] = time.time()
    return Response("too much", status_code=413)


@app.route("metadata", methods=["POST"])
async def metadata(req: Request) -> JSONResponse:
    """The invocation's trigger metadata: kind and value by name."""
    return JSONResponse(trigger_metadata.get())


@app.route("back", methods=["POST"])
async def back(req: Request) -> Response:
    """The request's body as the response."""
    name = req.query_params.get("name", "")
    happened[f"{name} started"] = time.time()
    try:
        body = await req.body()
    except ClientDisconnect:
        happened[f"{name} disconnected"] = time.time()
        return Response(status_code=400)
    return Response(body, media_type="application/octet-stream")


@app.route("things/{kind:alpha}/{number:int?}", methods=["GET"])
async def thing(req: Request) -> JSONResponse:
    """The route's parameters."""
    return JSONResponse(dict(req.path_params))


@app.route("things/special", methods=["GET", "HEAD"])
async def special(req: Request) -> Response:
    """A literal in the place of a parameter: it has precedence."""
    return Response("special")


@app.route("raises", methods=["GET"])
async def raises(req: Request) -> Response:
    """A function that fails."""
    raise RuntimeError("raised on demand")


@app.route("nothing", methods=["GET"])
async def nothing(req: Request) -> Response:
    """A function that returns no response."""
    return None  # type: ignore[return-value]


@app.route("empty", methods=["GET", "DELETE"])
async def empty(req: Request) -> Response:
    """No content and no content type."""
    return Response(status_code=204)


@app.route("dies", methods=["GET"])
async def dies(req: Request) -> Response:
    """End the worker."""
    os._exit(3)
