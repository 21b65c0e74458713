"""The path of a request through the host: CORS, route, key, and then byte for byte to the worker and back."""

import asyncio
import hmac
import socket
import struct
import time
import uuid
from collections.abc import Sequence
from urllib.parse import unquote

from aiohttp import hdrs, web

from local.functions_host.cors import CorsPolicy
from local.functions_host.routes import Route
from local.functions_host.settings import LocalSettings
from local.functions_host.worker import Function, Worker
from local.functions_host.worker_connection import BrokenResponseError, WorkerConnection

_INVOCATION_HEADER = b"x-ms-invocation-id"
_MAX_BODY_BYTES = 100 * 1024 * 1024  # the Functions host's own limit
# RFC 9110, section 7.6.1; Expect is answered by the host itself.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)


class FunctionsHost:
    """Serves the HTTP functions of one worker. `key` None: function keys are not checked."""

    def __init__(self, worker: Worker, settings: LocalSettings, prefix: str, key: str | None) -> None:
        self.worker = worker
        self.key = key
        self.cors = CorsPolicy(settings.cors, credentials=settings.cors_credentials)
        http_functions = [
            function for function in worker.functions if function.trigger["type"].lower() == "httptrigger"
        ]
        self.routes = sorted((Route(function, prefix) for function in http_functions), key=lambda route: route.rank)
        self.other_functions = [function for function in worker.functions if function not in http_functions]

    def application(self) -> web.Application:
        """The aiohttp application that serves every method on every path."""
        application = web.Application()
        application.router.add_route("*", "/{path:(?s:.*)}", self.handle, expect_handler=_defer_continue)
        application.on_response_prepare.append(self._complete_headers)
        return application

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one request of a caller."""
        if (preflight := self.cors.preflight(request)) is not None:
            return preflight
        path = request.raw_path.partition("?")[0]
        if "%" in path:
            path = "/".join(unquote(segment).replace("/", "%2F") for segment in path.split("/"))
        for route in self.routes:
            parameters = route.match(request.method, path)
            if parameters is not None:
                if not route.anonymous and not self._has_key(request):
                    return web.Response(status=401)
                if (request.content_length or 0) > _MAX_BODY_BYTES:
                    return web.Response(status=413)
                return await self._forward(request, route.function, parameters)
        # The platform answers so to a wrong method, too: a method is part of the route.
        return web.Response(status=404)

    def report_end(self, invocation: str, error: str | None) -> None:
        """Log the end of an invocation if the function failed."""
        if error is not None:
            log(f"A function failed (Id={invocation}): {error}")

    async def _complete_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if not isinstance(response, _ForwardedResponse):
            response.headers[hdrs.SERVER] = "functions_host"
        elif not response.has_content_type:
            response.headers.popall(hdrs.CONTENT_TYPE, None)  # aiohttp's default; the worker sent none
        self.cors.add_headers(request, response)

    def _has_key(self, request: web.Request) -> bool:
        if self.key is None:
            return True
        given = request.headers.get("x-functions-key") or request.query.get("code") or ""
        return hmac.compare_digest(given.encode(errors="replace"), self.key.encode())

    async def _forward(
        self, request: web.Request, function: Function, parameters: dict[str, str]
    ) -> web.StreamResponse:
        """To the worker and back, each read written at once; the end of either connection ends the other one.

        aiohttp cancels this when the caller disconnects, which closes the worker's connection.
        """
        started = time.monotonic()
        invocation = str(uuid.uuid4())
        outcome = "the caller disconnected"
        response: _ForwardedResponse | None = None
        upload: asyncio.Task[None] | None = None
        reusable = False
        try:
            connection = await self.worker.connect()
        except OSError:
            return web.Response(status=502)
        try:
            connection.request(request.method.encode(), _worker_request_head(request, invocation))
            headers = request.headers
            self.worker.invoke(
                invocation, function, parameters, headers.get("traceparent", ""), headers.get("tracestate", "")
            )
            if request.body_exists:
                if headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                    await _send_continue(request)
                upload = asyncio.create_task(_upload(request, connection))
            head = await connection.head()
            response = _ForwardedResponse(head.status, head.reason, head.headers)
            await response.prepare(request)
            while data := await connection.read():
                await response.write(data)
            reusable = connection.finished and (upload is None or upload.done())
            await response.write_eof()
            outcome = str(head.status)
        except BrokenResponseError:
            if response is None:
                outcome = "no response from the worker"
                return web.Response(status=502)
            outcome = "broken off by the worker"
            _break_off(request, response)
        finally:
            if upload is not None:
                upload.cancel()
            if reusable:
                self.worker.release(connection)
            else:
                connection.transport.abort()
            milliseconds = (time.monotonic() - started) * 1000
            log(f"Executed 'Functions.{function.name}' ({outcome}, Id={invocation}, Duration={milliseconds:.0f}ms)")
        return response


class _ForwardedResponse(web.StreamResponse):
    """A response as the worker sent it, except for the headers that belong to one connection only."""

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(status=status, reason=reason)
        dropped = _connection_headers(headers)
        for name, value in headers:
            if name.lower() not in dropped:
                self.headers.add(name.decode("latin-1"), value.decode("utf-8", "replace"))
        self.has_content_type = hdrs.CONTENT_TYPE in self.headers


def _connection_headers(headers: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The names of the headers that belong to one connection only, in lower case."""
    connection = (value for name, value in headers if name.lower() == b"connection")
    return _HOP_BY_HOP.union(token.strip().lower() for value in connection for token in value.split(b","))


def _worker_request_head(request: web.Request, invocation: str) -> bytes:
    dropped = _connection_headers(request.raw_headers)
    lines = [f"{request.method} {request.raw_path} HTTP/1.1".encode("utf-8", "surrogateescape")]
    for name, value in request.raw_headers:
        lowered = name.lower()
        # The worker would wait forever for the invocation of an id that came from the caller.
        if lowered not in dropped and lowered != _INVOCATION_HEADER:
            lines.append(name + b": " + value)
    lines.append(_INVOCATION_HEADER + b": " + invocation.encode())
    if request.body_exists and request.content_length is None:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _upload(request: web.Request, connection: WorkerConnection) -> None:
    """Send the request's body, at the pace of the slower side."""
    chunked = request.content_length is None
    total = 0
    try:
        while data := await request.content.readany():
            total += len(data)
            if total > _MAX_BODY_BYTES:
                connection.transport.abort()
                return
            await connection.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        if chunked:
            await connection.write(b"0\r\n\r\n")
    except BrokenResponseError:
        return  # the reader of the response gets the same error
    except (ConnectionError, web.RequestPayloadError):
        connection.transport.abort()


async def _defer_continue(_request: web.Request) -> None:
    """Send no 100 Continue yet: a caller that waits for one gets it once its key was accepted."""


async def _send_continue(request: web.Request) -> None:
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0


def _break_off(request: web.Request, response: _ForwardedResponse) -> None:
    """End the caller's connection so that the response can't pass for a complete one."""
    transport = request.transport
    if transport is None:
        return
    end_is_marked = (
        response.chunked or hdrs.TRANSFER_ENCODING in response.headers or response.content_length is not None
    )
    if end_is_marked:
        transport.close()  # what was written is still sent; the last chunk or byte never is
    else:
        # To an HTTP/1.0 caller the connection's end is the body's end: only a reset shows the difference.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def log(text: str) -> None:
    """Print a line of the host's own log, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
