"""The app's functions, one a route: read, call, return. README.md has the contract of every route."""

import os
import time
from collections.abc import Callable

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from relay import chat, description, page, prompt, telemetry, worker
from relay.backends import Backends
from relay.caller import Call
from relay.problems import Problem
from relay.readiness import Readiness
from relay.settings import auth_level
from relay.stream import Stream

worker.mend()
telemetry.hush()
backends = Backends.configured(os.environ)
readiness = backends if isinstance(backends, Problem) else Readiness(backends)
since = int(time.time())
app = func.FunctionApp(http_auth_level=func.AuthLevel[auth_level(os.environ)])


@app.route(route="stream", methods=["POST"])
async def stream(req: Request) -> Response:
    """A prompt in, the answer out as it is generated."""
    return await answer(Call(req), prompt.read)


@app.route(route="v1/chat/completions", methods=["POST"])
async def chat_completions(req: Request) -> Response:
    """OpenAI's wire, for any OpenAI client."""
    return await answer(Call(req, openai=True), chat.read)


async def answer(call: Call, read: Callable[[bytes], prompt.Prompt | chat.Chat | Problem]) -> Response:
    """The way of every prompt: the body, what it asks for, the deployments that have the model, the stream."""
    if isinstance(backends, Problem):
        return call.turn_away(backends)
    try:
        body = await call.body(backends.settings.max_body_bytes)
        if body is None:
            return call.nobody()
        if isinstance(body, Problem):
            return call.turn_away(body)
        asked = read(body)
        if isinstance(asked, Problem):
            return call.turn_away(asked)
        route = backends.route(asked.model)
        if isinstance(route, Problem):
            return call.turn_away(route)
        await backends.connect()
        parameters = asked.parameters(max_output_tokens=backends.settings.max_output_tokens)
        form = asked.form(call.request.headers.get("accept"))
        return await Stream(call, route, parameters, asked.reading, form, backends.settings).respond()
    except Exception as error:  # noqa: BLE001 (the worker would answer a bare 500 and log the error's text)
        return call.crashed(error)


@app.route(route="v1/models", methods=["GET"])
async def models(req: Request) -> Response:
    """The models that callers may name, the default one first."""
    call = Call(req, openai=True)
    return (
        call.turn_away(backends) if isinstance(backends, Problem) else call.answer(chat.models(backends.models, since))
    )


@app.route(route="chat", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_page(req: Request) -> Response:
    """A chat page that uses `/stream`."""
    return page.chat_page(req.headers.get("if-none-match"))


@app.route(route="ready", methods=["GET"])
async def ready(req: Request) -> Response:
    """Whether the app can do its work: what is wrong, for each deployment, and how to mend it."""
    call = Call(req)
    if isinstance(readiness, Problem):
        return call.turn_away(readiness)
    try:
        status, document = await readiness.document()
    except Exception as error:  # noqa: BLE001 (as above)
        return call.crashed(error)
    return call.answer(document, status=status)


@app.route(route="openapi", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def openapi(req: Request) -> Response:
    """The contract of these routes, for tools."""
    return Call(req).answer(description.document())


@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def health(req: Request) -> Response:
    """The process is up. Calls nothing, and so says nothing of the model service; `/ready` does."""
    return Call(req).answer(b'{"status":"ok"}')
