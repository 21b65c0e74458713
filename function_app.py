"""The app's functions: read, call, return. The docs describe the contract of every route."""

import functools
import os
import time
from collections.abc import Awaitable, Callable

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from relay import openapi, page, telemetry, worker_patches
from relay.callers.door import Door
from relay.callers.limits import Limiter
from relay.callers.owner import owner_of
from relay.callers.request import CallerRequest
from relay.callers.routes import Handler, Route, Routes
from relay.callers.table_store import leased_limits
from relay.problems import (
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_FOUND,
    PREVIOUS_RESPONSE_NOT_FOUND,
    RESPONSE_NOT_FOUND,
    Problem,
)
from relay.readiness import Readiness
from relay.settings import ChatSettings, auth_level
from relay.streaming.resumable import ResumableStream
from relay.streaming.stream import Stream
from relay.upstream.background import BackgroundResponses, StoredAnswer
from relay.upstream.pool import BackendPool
from relay.upstream.request import Accounts
from relay.version import VERSION
from relay.wires import chat_completions as chat_completions_wire
from relay.wires import embeddings as embeddings_wire
from relay.wires import models as models_wire
from relay.wires import responses as responses_wire
from relay.wires import resumable as resumable_wire
from relay.wires import stream as stream_wire
from relay.wires.wire import WireRequest

worker_patches.apply()
telemetry.silence_noisy_loggers()
pool = BackendPool.from_environment(os.environ)
background: BackgroundResponses | Problem  # those of streams that can be resumed
readiness: Readiness | Problem
if isinstance(pool, Problem):
    background = readiness = pool
elif pool.settings.resumable_streams:
    background = BackgroundResponses(pool)
    readiness = Readiness(pool, background.members)
else:
    background = resumable_wire.OFF
    readiness = Readiness(pool)
door = Door.from_environment(os.environ)  # None: no callers are named, and the Functions host checks its function key
limiter = Limiter(None if door is None else leased_limits(door.limits_store))
started = int(time.time())
chat = ChatSettings.read(os.environ)
chat_config = chat.page_config()
if not isinstance(pool, Problem):
    chat_config["maxBodyBytes"] = pool.settings.max_body_bytes
    chat_config["resumable"] = pool.settings.resumable_streams
# All that the Functions host and the web server inside the worker both know; another would leave its invocation stuck.
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = func.FunctionApp(http_auth_level=func.AuthLevel[auth_level(os.environ)])


@app.route(route="stream", methods=["POST"])
async def stream(req: Request) -> Response:
    """Answers a prompt, as a stream."""
    return await admitted(CallerRequest(req), lambda caller: answer(caller, functools.partial(parse_stream, caller)))


async def admitted(caller: CallerRequest, handler: Callable[[CallerRequest], Awaitable[Response]]) -> Response:
    """Every route that costs something passes through here: the handler is called for an admitted caller only."""
    try:
        if door is not None and (problem := caller.admit(door)) is not None:
            return caller.reject(problem)
        return await handler(caller)
    except Exception as error:  # noqa: BLE001 (the worker would answer a bare 500 and log the error's text)
        return caller.internal_error(error)


def parse_stream(caller: CallerRequest, body: bytes) -> WireRequest | Problem:
    """What the body asks for; a stream that can be resumed is its caller's own."""
    request = stream_wire.parse(body)
    if isinstance(request, Problem) or not request.resumable:
        return request
    return resumable_wire.ResumableRequest(request, owner_of(caller))


async def answer(caller: CallerRequest, parse: Callable[[bytes], WireRequest | Problem]) -> Response:
    """Every prompt passes through here: the body, what it asks for, the backends that have the model, the stream."""
    if isinstance(pool, Problem):
        return caller.reject(pool)
    body = await caller.read_body(pool.settings.max_body_bytes)
    if body is None:
        return caller.client_closed_request()
    if isinstance(body, Problem):
        return caller.reject(body)
    request = parse(body)
    if isinstance(request, Problem):
        return caller.reject(request)
    model = caller.allowed_model(request.model, pool.models)
    if isinstance(model, Problem):
        return caller.reject(model)
    if isinstance(request, resumable_wire.ResumableRequest):
        problem = request.check(model, pool.settings)
        if problem is not None:
            return caller.reject(problem)
    failover = pool.failover(model, request.response_id, request.wires)
    if isinstance(failover, Problem):
        return caller.reject(failover)
    await pool.connect()
    if await is_anothers(caller, request.response_id):
        return caller.reject(RESPONSE_NOT_FOUND if model is Accounts.EVERY else PREVIOUS_RESPONSE_NOT_FOUND)
    if (refused := await caller.reserve(limiter, len(body), counts_tokens=model is not Accounts.EVERY)) is not None:
        return caller.reject(refused)
    accept = caller.request.headers.get("accept")
    if isinstance(request, resumable_wire.ResumableRequest) and isinstance(background, BackgroundResponses):
        resumable = request.encoder(accept)
        return await ResumableStream(caller, failover, request, resumable, pool.settings, background).respond()
    encoder = request.encoder(accept)
    return await Stream(caller, failover, request, encoder, pool.settings).respond()


@app.route(route="stream/{response_id}", methods=["GET", "HEAD"])
async def resume_stream(req: Request) -> Response:
    """Goes on with a stream that can be resumed."""
    return await admitted(CallerRequest(req), resume)


@app.route(route="stream/{response_id}", methods=["DELETE"])
async def stop_stream(req: Request) -> Response:
    """Stops the answer of a stream that can be resumed, and deletes it."""
    return await admitted(CallerRequest(req), stop)


async def resume(caller: CallerRequest) -> Response:
    """The rest of an answer in the background, if it is the caller's."""
    if isinstance(background, Problem):
        return caller.reject(background)
    query, headers = caller.request.query_params.multi_items(), caller.request.headers
    place = resumable_wire.parse_resumption(caller.last_segment, query, headers)
    if isinstance(place, Problem):
        return caller.reject(place)
    earlier = await own_response(caller, background, place.response_id)
    if isinstance(earlier, Problem):
        return caller.reject(earlier)
    request = place.stream(reasoning=earlier.reasoning)
    encoder = request.encoder(place.accept)
    if caller.request.method == "HEAD":  # its answer has no body: a stream would run for no one
        return caller.response(b"", encoder.media_type)
    failover = background.pool.failover(request.model, request.response_id)
    if isinstance(failover, Problem):
        return caller.reject(failover)
    if (refused := await caller.reserve(limiter, 0, counts_tokens=False)) is not None:
        return caller.reject(refused)
    settings = background.pool.settings
    return await ResumableStream(caller, failover, request, encoder, settings, background, earlier).respond()


async def stop(caller: CallerRequest) -> Response:
    """Stop an answer in the background, if it is the caller's, and delete it."""
    if isinstance(background, Problem):
        return caller.reject(background)
    response_id = resumable_wire.parse_stop(caller.last_segment)
    if isinstance(response_id, Problem):
        return caller.reject(response_id)
    earlier = await own_response(caller, background, response_id)
    problem = earlier if isinstance(earlier, Problem) else await background.stop(response_id, caller.request_id)
    return caller.response(resumable_wire.stopped(response_id)) if problem is None else caller.reject(problem)


async def own_response(
    caller: CallerRequest, responses: BackgroundResponses, response_id: str
) -> StoredAnswer | Problem:
    """The response in the background with this id, if it is the caller's."""
    if not await caller.skip_body():
        return INVALID_REQUEST.with_detail("The request takes no body.")
    await responses.pool.connect()
    return await responses.find(response_id, owner_of(caller), caller.request_id)


async def is_anothers(caller: CallerRequest, response_id: str | None) -> bool:
    """Whether the response that a request of OpenAI's API names is the resumable stream of another caller."""
    if door is None or response_id is None or isinstance(background, Problem):
        return False
    return await background.is_anothers(response_id, owner_of(caller), caller.request_id)


def prompts(parse: Callable[..., WireRequest | Problem]) -> Handler:
    """The handler of a route of OpenAI's API that takes prompts; in Azure's paths, the deployment is the model."""

    async def handler(caller: CallerRequest, deployment: str | None) -> Response:
        return await answer(caller, parse if deployment is None else functools.partial(parse, deployment=deployment))

    return handler


def stored(parse: Callable[[str, list[tuple[str, str]]], WireRequest | Problem]) -> Handler:
    """The handler of a route whose path names a stored response; a body has no meaning in it."""

    async def handler(caller: CallerRequest, response_id: str | None) -> Response:
        # The answer to HEAD has no body: a stream would run for no one.
        query = [] if caller.request.method == "HEAD" else caller.request.query_params.multi_items()
        return await answer(caller, lambda body: parse(response_id or "", query))

    return handler


async def list_models(caller: CallerRequest, _: str | None) -> Response:
    """The models that callers may name, the default one first."""
    if isinstance(pool, Problem):
        return caller.reject(pool)
    return caller.response(models_wire.document(caller.allowed_models(pool.models), started))


async def retrieve_model(caller: CallerRequest, model: str | None) -> Response:
    """One of them."""
    if isinstance(pool, Problem):
        return caller.reject(pool)
    if model not in caller.allowed_models(pool.models):
        return caller.reject(MODEL_NOT_FOUND)
    return caller.response(models_wire.model_document(model, started))


OPENAI_API = Routes(
    Route("POST", "/chat/completions", prompts(chat_completions_wire.parse), by_deployment=True),
    Route("POST", "/responses", prompts(responses_wire.parse)),
    Route("POST", "/responses", prompts(responses_wire.parse), by_deployment=True, addresses=("/openai",)),
    Route("POST", "/responses/compact", prompts(responses_wire.parse_compact)),
    Route("POST", "/responses/input_tokens", prompts(responses_wire.parse_input_tokens)),
    Route("GET", "/responses/{response_id}", stored(responses_wire.retrieve)),
    Route("DELETE", "/responses/{response_id}", stored(responses_wire.delete)),
    Route("POST", "/responses/{response_id}/cancel", stored(responses_wire.cancel)),
    Route("GET", "/responses/{response_id}/input_items", stored(responses_wire.input_items)),
    Route("POST", "/embeddings", prompts(embeddings_wire.parse), by_deployment=True),
    Route("GET", "/models", list_models),
    Route("GET", "/models/{model}", retrieve_model),
)


# One function for each address and no function for each operation: so every path below gets an answer in OpenAI's form,
# also one that does not exist, and nothing depends on the order in which the Functions host tries overlapping routes.
@app.route(route="v1/{*path}", methods=METHODS)
async def openai_api(req: Request) -> Response:
    """OpenAI's API, for any OpenAI client."""
    return await admitted(CallerRequest(req, openai=True), call_openai_api)


@app.route(route="openai/{*path}", methods=METHODS)
async def azure_openai_api(req: Request) -> Response:
    """The same at Azure OpenAI's own paths, for the clients of Azure OpenAI."""
    return await admitted(CallerRequest(req, openai=True), call_openai_api)


async def call_openai_api(caller: CallerRequest) -> Response:
    """Call what the table has for the request."""
    found = OPENAI_API.find(caller.request.method, caller.request.scope["path"])
    if isinstance(found, Problem):
        return caller.reject(found)
    handler, name = found
    return await handler(caller, name)


@app.route(route="/", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def home(req: Request) -> Response:
    """Leads to the chat page."""
    return page.redirect() if chat.enabled else CallerRequest(req).reject(NOT_FOUND)


@app.route(route="chat", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_page(req: Request) -> Response:
    """The chat page, which uses `/stream`."""
    if not chat.enabled:
        return CallerRequest(req).reject(NOT_FOUND)
    return page.chat_page(req.headers, chat_config)


@app.route(route="chat/assets/{name}", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_asset(req: Request) -> Response:
    """A file that the chat page loads on first use."""
    name = req.scope["path"].rpartition("/")[2]
    return (chat.enabled and page.asset(name, req.headers)) or CallerRequest(req).reject(NOT_FOUND)


@app.route(route="ready", methods=["GET", "HEAD"])
async def ready(req: Request) -> Response:
    """Whether the app can serve: what is wrong, for each backend, and the remedy."""
    return await admitted(CallerRequest(req), report_readiness)


async def report_readiness(caller: CallerRequest) -> Response:
    """The document, or the settings that are wrong."""
    if isinstance(readiness, Problem):
        return caller.reject(readiness)
    status, document = await readiness.document()
    return caller.response(document, status=status)


@app.route(route="openapi", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def openapi_description(req: Request) -> Response:
    """The HTTP contract, for tools."""
    return CallerRequest(req).response(openapi.document())


@app.route(route="health", methods=["GET", "HEAD"], auth_level=func.AuthLevel.ANONYMOUS)
async def health(req: Request) -> Response:
    """The process is up. Calls nothing, and so tells nothing about the model service; `/ready` does."""
    return CallerRequest(req).response(b'{"status":"ok","version":"%s"}' % VERSION.encode())
