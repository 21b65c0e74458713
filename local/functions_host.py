"""A host for the app on a machine without Azure Functions Core Tools: a development tool, not the Functions host.

It does for HTTP functions that stream what `func start` does: local.settings.json, CORS, keys on demand, routes; the
app itself runs in the official worker library, in a process of its own.
"""

import argparse
import asyncio
import contextlib
import errno
import hmac
import json
import os
import re
import resource
import secrets
import signal
import socket
import struct
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from aiohttp import hdrs, web

from local.worker_client import BrokenResponseError, Function, Worker, WorkerConnection, WorkerError

_ADDRESS = "127.0.0.1"
_DEFAULT_PORT = 7071
_KEY_SETTING = "FUNCTIONS_HOST_KEY"
_INVOCATION_HEADER = b"x-ms-invocation-id"
_MAX_BODY_BYTES = 100 * 1024 * 1024  # the Functions host's own limit
# RFC 9110, section 7.6.1; Expect is answered here.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)


class HostError(Exception):
    """The host can't start; the text tells the developer why and what to do."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What local.settings.json says: app settings, and the host's own port and CORS origins."""

    values: Mapping[str, str]
    port: int
    cors: tuple[str, ...]
    cors_credentials: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; one that is not there says nothing. Raises `HostError` naming what is wrong in it."""
        document = _json_object(path) if path.exists() else {}
        if document.get("IsEncrypted"):
            raise HostError(f"{path.name} is encrypted, which only Core Tools can read: set IsEncrypted to false.")
        values, host = document.get("Values") or {}, document.get("Host") or {}
        if not isinstance(values, dict) or not isinstance(host, dict):
            raise HostError(f"{path.name}: Values and Host must be objects.")
        for name, value in values.items():
            if not isinstance(value, str):
                raise HostError(f"{path.name}: the value of {name} must be a string.")
        port = host.get("LocalHttpPort", _DEFAULT_PORT)
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise HostError(f"{path.name}: Host.LocalHttpPort must be a port number.")
        origins = (origin.strip().rstrip("/") for origin in str(host.get("CORS") or "").split(","))
        return cls(
            values=values,
            port=port,
            cors=tuple(origin for origin in origins if origin),
            cors_credentials=bool(host.get("CORSCredentials")),
        )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise HostError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise HostError(f"{path.name} must be a JSON object.")
    return document


def route_prefix(script_root: Path) -> str:
    """`extensions.http.routePrefix` of host.json; `api` where it says nothing, as on the platform."""
    path = script_root / "host.json"
    if not path.exists():
        raise HostError(f"There is no host.json in {script_root}: it is not the folder of a function app.")
    http = _json_object(path).get("extensions", {}).get("http", {})
    return str(http.get("routePrefix", "api")).strip("/")


# ASP.NET's inline constraints that a segment can be held to here; any other is taken as satisfied.
_CONSTRAINTS = {"int": r"-?\d+", "long": r"-?\d+", "alpha": r"[A-Za-z]+", "guid": r"[0-9A-Fa-f-]{32,36}"}
_PARAMETER = re.compile(r"\{(?P<rest>\*{0,2})(?P<name>\w+)(?::(?P<constraint>\w+)[^}?]*)?(?P<optional>\??)\}")


class Route:
    """Path and methods of one HTTP function, by the rules of ASP.NET's route templates."""

    def __init__(self, function: Function, prefix: str) -> None:
        trigger = function.trigger
        template = str(trigger.get("route") or function.name).strip("/")
        self.function = function
        self.path = "/" + "/".join(part for part in (prefix, template) if part)
        self.methods = tuple(str(method).upper() for method in trigger.get("methods") or ())
        self.anonymous = str(trigger.get("authLevel", "function")).lower() == "anonymous"
        pattern, rank = "", []
        for segment in self.path.strip("/").split("/"):
            parameter = _PARAMETER.fullmatch(segment)
            if parameter is None:
                pattern += "/" + re.escape(segment)
                rank.append(0)
            elif parameter["rest"]:
                pattern += f"(?:/(?P<{parameter['name']}>.*))?"
                rank.append(2)
            else:
                value = f"/(?P<{parameter['name']}>{_CONSTRAINTS.get(parameter['constraint'] or '', '[^/]+')})"
                pattern += f"(?:{value})?" if parameter["optional"] else value
                rank.append(1)
        self.rank = tuple(rank)
        self._pattern = re.compile(pattern, re.IGNORECASE)

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The route's parameters if the request is this function's, else None; `path` is decoded but for `%2F`."""
        if self.methods and method not in self.methods:
            return None
        found = self._pattern.fullmatch(path.rstrip("/") or "/")
        if found is None:
            return None
        return {name: value for name, value in found.groupdict().items() if value is not None}


class FunctionsHost:
    """The way of a request: CORS, route, key, and then byte for byte to the worker and back."""

    def __init__(self, worker: Worker, settings: LocalSettings, prefix: str, key: str | None) -> None:
        self.worker = worker
        self.settings = settings
        self.key = key
        triggered = [function for function in worker.functions if function.trigger["type"].lower() == "httptrigger"]
        self.routes = sorted((Route(function, prefix) for function in triggered), key=lambda route: route.rank)
        self.others = [function for function in worker.functions if function not in triggered]

    def application(self) -> web.Application:
        """The aiohttp application that serves every method on every path."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.handle, expect_handler=_expect_later)
        application.on_response_prepare.append(self._finish_headers)
        return application

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request of a caller."""
        if (preflight := self._preflight(request)) is not None:
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
        # The platform's answer to a wrong method, too: a method is part of the route.
        return web.Response(status=404)

    def _preflight(self, request: web.Request) -> web.Response | None:
        headers = request.headers
        if (
            not self.settings.cors
            or request.method != "OPTIONS"
            or hdrs.ORIGIN not in headers
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in headers
        ):
            return None
        response = web.Response(status=204)
        if self._allowed_origin(headers[hdrs.ORIGIN]):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = headers[hdrs.ACCESS_CONTROL_REQUEST_METHOD]
            if hdrs.ACCESS_CONTROL_REQUEST_HEADERS in headers:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = headers[hdrs.ACCESS_CONTROL_REQUEST_HEADERS]
        return response

    def _allowed_origin(self, origin: str) -> str | None:
        if "*" in self.settings.cors:
            return origin if self.settings.cors_credentials else "*"
        return origin if origin.lower() in (allowed.lower() for allowed in self.settings.cors) else None

    async def _finish_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if not isinstance(response, _Passed):
            response.headers[hdrs.SERVER] = "functions_host"
        elif not response.typed:
            response.headers.popall(hdrs.CONTENT_TYPE, None)  # aiohttp's default; the worker sent none
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self.settings.cors:
            return
        if (allowed := self._allowed_origin(origin)) is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
            if self.settings.cors_credentials:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        if allowed != "*":
            response.headers.add(hdrs.VARY, "Origin")

    def _has_key(self, request: web.Request) -> bool:
        if self.key is None:
            return True
        given = request.headers.get("x-functions-key") or request.query.get("code") or ""
        return hmac.compare_digest(given.encode(errors="replace"), self.key.encode())

    async def _forward(
        self, request: web.Request, function: Function, parameters: dict[str, str]
    ) -> web.StreamResponse:
        """To the worker and back, each read written at once; whichever side leaves takes the other side with it.

        aiohttp cancels this when the caller leaves, which closes the worker's side.
        """
        started = time.monotonic()
        invocation = str(uuid.uuid4())
        outcome = "the caller left"
        response: _Passed | None = None
        upload: asyncio.Task[None] | None = None
        reusable = False
        try:
            connection = await self.worker.connect()
        except OSError:
            return web.Response(status=502)
        try:
            connection.request(request.method.encode(), _worker_head(request, invocation))
            headers = request.headers
            self.worker.invoke(
                invocation, function, parameters, headers.get("traceparent", ""), headers.get("tracestate", "")
            )
            if request.body_exists:
                if headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                    await _continue(request)
                upload = asyncio.create_task(_upload(request, connection))
            head = await connection.head()
            response = _Passed(head.status, head.reason, head.headers)
            await response.prepare(request)
            while data := await connection.read():
                await response.write(data)
            reusable = connection.finished and (upload is None or upload.done())
            await response.write_eof()
            outcome = str(head.status)
        except BrokenResponseError:
            if response is None:
                outcome = "no answer from the worker"
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
            say(f"Executed 'Functions.{function.name}' ({outcome}, Id={invocation}, Duration={milliseconds:.0f}ms)")
        return response

    def finished(self, invocation: str, error: str | None) -> None:
        """What the worker says at an invocation's end."""
        if error is not None:
            say(f"A function failed (Id={invocation}): {error}")


class _Passed(web.StreamResponse):
    """A response as the worker sent it, but for the headers that belong to one connection only."""

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(status=status, reason=reason)
        dropped = _connection_headers(headers)
        for name, value in headers:
            if name.lower() not in dropped:
                self.headers.add(name.decode("latin-1"), value.decode("utf-8", "replace"))
        self.typed = hdrs.CONTENT_TYPE in self.headers


def _connection_headers(headers: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    named = (value for name, value in headers if name.lower() == b"connection")
    return _HOP_BY_HOP.union(token.strip().lower() for value in named for token in value.split(b","))


def _worker_head(request: web.Request, invocation: str) -> bytes:
    dropped = _connection_headers(request.raw_headers)
    lines = [f"{request.method} {request.raw_path} HTTP/1.1".encode("utf-8", "surrogateescape")]
    for name, value in request.raw_headers:
        lowered = name.lower()
        # An id that a caller brings along would be waited for by the worker for ever.
        if lowered not in dropped and lowered != _INVOCATION_HEADER:
            lines.append(name + b": " + value)
    lines.append(_INVOCATION_HEADER + b": " + invocation.encode())
    if request.body_exists and request.content_length is None:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _upload(request: web.Request, connection: WorkerConnection) -> None:
    """The request's body, at the pace of the slower side."""
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
        return  # whoever reads the response finds the same
    except (ConnectionError, web.RequestPayloadError):
        connection.transport.abort()


async def _expect_later(_request: web.Request) -> None:
    """A caller that waits for 100 Continue gets it when its key was accepted, and not before."""


async def _continue(request: web.Request) -> None:
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0


def _break_off(request: web.Request, response: _Passed) -> None:
    """End the caller's connection so that the response can't pass for complete."""
    transport = request.transport
    if transport is None:
        return
    ends_by_itself = (
        response.chunked or hdrs.TRANSFER_ENCODING in response.headers or response.content_length is not None
    )
    if ends_by_itself:
        transport.close()  # what was written still goes out; the last chunk or byte never does
    else:
        # To an HTTP/1.0 caller an end of the connection is the body's end: only a reset tells the difference.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def say(text: str) -> None:
    """Print a line of the host's own, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _worker_says(line: str) -> None:
    print(f"[worker] {line}", flush=True)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_ADDRESS, port), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise HostError(
            f"Port {port} is taken by another process. Choose another one: make start PORT={port + 10} "
            f"(or --port {port + 10}, or Host.LocalHttpPort in local.settings.json)."
        ) from None


def _environment(settings: LocalSettings, script_root: Path) -> dict[str, str]:
    environment = {
        **settings.values,
        "AZURE_FUNCTIONS_ENVIRONMENT": "Development",
        "AzureWebJobsScriptRoot": str(script_root),
        "FUNCTIONS_WORKER_RUNTIME": "python",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
    }
    environment.pop(_KEY_SETTING, None)
    return environment


def _introduce(host: FunctionsHost, address: str) -> None:
    print("\nFunctions:\n")
    for route in host.routes:
        print(f"        {route.function.name}: [{','.join(route.methods) or 'ALL'}] {address}{route.path}\n")
    for function in host.others:
        print(f"        {function.name}: {function.trigger['type']} (this host serves HTTP only: it never runs here)\n")
    if host.key is not None:
        print(f"Function key: {host.key}\n")
    print(f"Listening on {address}", flush=True)


def _allow_many_connections() -> None:
    """Raise the limit of open files, which the worker inherits: each stream takes two here, and 1,024 are usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (65536 if most == resource.RLIM_INFINITY else most, most))


async def serve(options: argparse.Namespace) -> int:
    """Host the app until a signal comes; the exit code is 0 then, and 1 when the worker ended by itself.

    Raises `HostError` and `WorkerError` when the start fails.
    """
    _allow_many_connections()
    script_root = options.script_root.resolve()
    prefix = route_prefix(script_root)
    settings = LocalSettings.read(options.settings or script_root / "local.settings.json")
    key: str | None = None
    if options.enable_auth:
        key = options.function_key or os.environ.get(_KEY_SETTING) or settings.values.get(_KEY_SETTING)
        key = key or secrets.token_urlsafe(24)
    print(
        "This is a development tool that stands in for Azure Functions Core Tools; it is not the Functions host.",
        flush=True,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(_listen(settings.port if options.port is None else options.port))
        worker = Worker(script_root, _environment(settings, script_root), _worker_says)
        stack.push_async_callback(worker.stop)
        if not await _unless(stopped, worker.start()):
            return 0
        host = FunctionsHost(worker, settings, prefix, key)
        worker.on_finished = host.finished
        runner = web.AppRunner(
            host.application(),
            access_log=None,
            auto_decompress=False,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=0.2,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listener, backlog=1024).start()
        _introduce(host, f"http://{_ADDRESS}:{listener.getsockname()[1]}")
        ended = asyncio.create_task(worker.ended())
        if await _unless(stopped, ended):
            say(f"The worker ended by itself ({ended.result()}); it is not started again. See its words above.")
            return 1
        return 0


async def _unless(stopped: asyncio.Event, work: Any) -> bool:
    """Wait for `work`, but no longer than until `stopped`; whether it came to its end."""
    task = asyncio.ensure_future(work)
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        return False
    task.result()
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m local.functions_host", description=__doc__)
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: local.settings.json)")
    parser.add_argument("--enable-auth", action="store_true", help="check function keys, as the platform does")
    parser.add_argument("--function-key", help=f"the key (default: ${_KEY_SETTING}, or a new one)")
    parser.add_argument("--script-root", type=Path, default=Path.cwd(), help="folder of the app (default: this one)")
    parser.add_argument("--settings", type=Path, help="default: local.settings.json in the app's folder")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(serve(options))
    except (HostError, WorkerError) as error:
        print(error, file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
