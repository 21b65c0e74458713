"""The app's functions, one a route: read, call, return. README.md has the contract of every route."""

import os

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from relay import formats, page, prompt, worker
from relay.backends import Backends
from relay.caller import Call
from relay.problems import Problem
from relay.stream import Stream

worker.mend()
backends = Backends.configured(os.environ)
app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


@app.route(route="stream", methods=["POST"])
async def stream(req: Request) -> Response:
    """A prompt in, the answer out as it is generated."""
    call = Call(req)
    if isinstance(backends, Problem):
        return call.refuse(backends)
    body = await call.body(backends.settings.max_body_bytes)
    if isinstance(body, Problem):
        return call.refuse(body)
    asked = prompt.read(body)
    if isinstance(asked, Problem):
        return call.refuse(asked)
    route = backends.route(asked.model)
    if isinstance(route, Problem):
        return call.refuse(route)
    form = formats.choose(req.headers.get("accept")) if asked.stream else formats.JsonDocument()
    parameters = asked.parameters(max_output_tokens=backends.settings.max_output_tokens)
    return await Stream(call, route, parameters, form, backends.settings).respond()


@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def health(req: Request) -> Response:
    """The process is up. Calls nothing, and so says nothing of the model service; `/ready` does."""
    return Call(req).answer(b'{"status":"ok"}')


@app.route(route="chat", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat(req: Request) -> Response:
    """The chat page. It holds nothing secret; what it asks of `/stream` needs a key like any caller's question."""
    return page.chat_page(req.headers.get("if-none-match"))
