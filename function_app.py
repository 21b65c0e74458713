"""The app's functions, one for each route: read, call, return. The docs describe the contract of every route."""

import os
import time
from collections.abc import Callable

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from relay import openapi, page, telemetry, worker_patches
from relay.callers.request import CallerRequest
from relay.problems import Problem
from relay.readiness import Readiness
from relay.settings import auth_level
from relay.streaming.stream import Stream
from relay.upstream.pool import BackendPool
from relay.wires import chat_completions as chat_completions_wire
from relay.wires import models as models_wire
from relay.wires import stream as stream_wire
from relay.wires.wire import WireRequest

worker_patches.apply()
telemetry.silence_noisy_loggers()
pool = BackendPool.from_environment(os.environ)
readiness = pool if isinstance(pool, Problem) else Readiness(pool)
started = int(time.time())
app = func.FunctionApp(http_auth_level=func.AuthLevel[auth_level(os.environ)])


@app.route(route="stream", methods=["POST"])
async def stream(req: Request) -> Response:
    """Answers a prompt, as a stream."""
    return await answer(CallerRequest(req), stream_wire.parse)


@app.route(route="v1/chat/completions", methods=["POST"])
async def chat_completions(req: Request) -> Response:
    """OpenAI's API, for any OpenAI client."""
    return await answer(CallerRequest(req, openai=True), chat_completions_wire.parse)


async def answer(caller: CallerRequest, parse: Callable[[bytes], WireRequest | Problem]) -> Response:
    """Every prompt passes through here: the body, what it asks for, the backends that have the model, the stream."""
    if isinstance(pool, Problem):
        return caller.reject(pool)
    try:
        body = await caller.read_body(pool.settings.max_body_bytes)
        if body is None:
            return caller.client_closed_request()
        if isinstance(body, Problem):
            return caller.reject(body)
        request = parse(body)
        if isinstance(request, Problem):
            return caller.reject(request)
        failover = pool.failover(request.model)
        if isinstance(failover, Problem):
            return caller.reject(failover)
        await pool.connect()
        encoder = request.encoder(caller.request.headers.get("accept"))
        return await Stream(caller, failover, request, encoder, pool.settings).respond()
    except Exception as error:  # noqa: BLE001 (the worker would answer a bare 500 and log the error's text)
        return caller.internal_error(error)


@app.route(route="v1/models", methods=["GET", "HEAD"])
async def models(req: Request) -> Response:
    """The models that callers may name, the default one first."""
    caller = CallerRequest(req, openai=True)
    return (
        caller.reject(pool)
        if isinstance(pool, Problem)
        else caller.response(models_wire.document(pool.models, started))
    )


@app.route(route="chat", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_page(req: Request) -> Response:
    """The chat page, which uses `/stream`."""
    return page.chat_page(req.headers.get("if-none-match"))


@app.route(route="ready", methods=["GET", "HEAD"])
async def ready(req: Request) -> Response:
    """Whether the app can serve: what is wrong, for each backend, and the remedy."""
    caller = CallerRequest(req)
    if isinstance(readiness, Problem):
        return caller.reject(readiness)
    try:
        status, document = await readiness.document()
    except Exception as error:  # noqa: BLE001 (as above)
        return caller.internal_error(error)
    return caller.response(document, status=status)


@app.route(route="openapi", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def openapi_description(req: Request) -> Response:
    """The HTTP contract, for tools."""
    return CallerRequest(req).response(openapi.document())


@app.route(route="health", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def health(req: Request) -> Response:
    """The process is up. Calls nothing, and so tells nothing about the model service; `/ready` does."""
    return CallerRequest(req).response(b'{"status":"ok"}')
