"""The path of a request through the host: CORS, route, key, and then in two halves to the worker.

The halves are sent at the same moment and go their ways independently: the HTTP request over a connection to the
worker's web server, and the invocation over the control channel. The invocation is never cancelled, whatever becomes of
the HTTP request, and a response that could not be forwarded ends when its invocation does.
"""

import asyncio
import hmac
import json
import re
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote

from local.functions_host.caller_connection import CallerRequest, CallerResponse, RequestBodyError
from local.functions_host.cors import CorsPolicy
from local.functions_host.routes import Route
from local.functions_host.settings import Limits, LocalSettings
from local.functions_host.worker import Function, Invocation, Worker
from local.functions_host.worker_connection import BrokenResponseError, ResponseTimeoutError, WorkerConnection

_STATE_PATH = "/_state"
_INVOCATION_HEADER = b"x-ms-invocation-id"
# What the platform's proxy (YARP) does not pass on, in either direction, whatever Connection names.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
# What it drops of a request, and mostly sets itself. Expect is answered by the host.
_REPLACED = frozenset(
    (
        b"host",
        b"expect",
        b"content-length",
        b"proxy-authorization",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-prefix",
        _INVOCATION_HEADER,
    )
)
# The pauses, in seconds, between the platform's ten attempts to send a request.
_PAUSES = (0.05, 0.1, 0.2, *(0.25,) * 6)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a request or its response could not be forwarded, and the status for a caller who has none yet."""

    status: int
    reason: str


class FunctionsHost:
    """Serves the HTTP functions of one worker. `key` None: function keys are not checked."""

    def __init__(
        self,
        worker: Worker,
        settings: LocalSettings,
        prefix: str,
        key: str | None,
        limits: Limits | None = None,
        *,
        log_successes: bool = True,
    ) -> None:
        self.worker = worker
        self._log_successes = log_successes
        self.key = key
        self.limits = limits or Limits()
        self.cors = CorsPolicy(settings.cors, credentials=settings.cors_credentials)
        http_functions = [
            function for function in worker.functions if function.trigger["type"].lower() == "httptrigger"
        ]
        self.routes = sorted((Route(function, prefix) for function in http_functions), key=lambda route: route.rank)
        self.other_functions = [function for function in worker.functions if function not in http_functions]

    async def handle(self, request: CallerRequest, response: CallerResponse) -> None:
        """Serve one request of a caller."""
        response.extra_headers = self.cors.headers(request)
        if (preflight := self.cors.preflight(request)) is not None:
            response.send_bare(HTTPStatus.NO_CONTENT, preflight)
            return
        path = _path(request.target)
        if path == _STATE_PATH and request.method == "GET":
            await self._send_state(response)
            return
        for route in self.routes:
            parameters = route.match(request.method, path)
            if parameters is not None:
                if route.anonymous or self._has_key(request):
                    await self._invoke(request, response, route.function, parameters)
                else:
                    response.send_bare(HTTPStatus.UNAUTHORIZED)
                return
        # The platform answers so to a wrong method, too: a method is part of the route.
        response.send_bare(HTTPStatus.NOT_FOUND)

    async def _send_state(self, response: CallerResponse) -> None:
        """For tests: how many invocations are open, those included whose caller is gone."""
        content = json.dumps({"open": self.worker.open_invocations}).encode()
        headers = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(content))]
        response.prepare(HTTPStatus.OK, b"OK", headers)
        await response.write(content)
        response.finish()

    def _has_key(self, request: CallerRequest) -> bool:
        if self.key is None:
            return True
        given = request.header(b"x-functions-key")
        if not given:
            given = parse_qs(request.target.partition(b"?")[2].decode()).get("code", [""])[0]
        return hmac.compare_digest(given.encode(errors="replace"), self.key.encode())

    async def _invoke(
        self, request: CallerRequest, response: CallerResponse, function: Function, parameters: dict[str, str]
    ) -> None:
        if not _is_uri_host(request.header(b"host") or ""):
            log(f"The URL of a request for 'Functions.{function.name}' could not be read: its Host header is no host.")
            response.send_bare(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        body: bytes | None = None
        if not request.chunked and request.has_body:
            try:
                body = await self._read_body(request)
            except RequestBodyError as unread:
                log(f"The body of a request for 'Functions.{function.name}' could not be read: {unread}.")
                request.abandon()
                response.send_bare(HTTPStatus.INTERNAL_SERVER_ERROR)
                return
        started = time.monotonic()
        await self.worker.ready()
        invocation = self.worker.invoke(
            str(uuid.uuid4()),
            function,
            route=parameters,
            metadata=_trigger_metadata(request),
            body=body,
            trace=(request.header(b"traceparent") or "", request.header(b"tracestate") or ""),
            seconds=self.limits.function_seconds,
        )
        if self._log_successes:
            log(
                f"Executing 'Functions.{function.name}' (Reason='This function was programmatically called via the "
                f"host APIs.', Id={invocation.id})"
            )
        forwarding = asyncio.create_task(self._forward(request, response, invocation, body))
        request.connection.on_disconnect(forwarding.cancel)
        try:
            error = await invocation.finished
            if invocation.worker_ended:
                forwarding.cancel()
            await asyncio.wait((forwarding,))
        finally:
            forwarding.cancel()
            request.connection.on_disconnect(None)
            invocation.close()
        failure = None if forwarding.cancelled() else forwarding.result()
        if forwarding.cancelled():
            reason = "the worker ended" if invocation.worker_ended else "the caller disconnected"
            failure = _Failure(HTTPStatus.BAD_GATEWAY, reason)
        result = "Failed" if failure is not None or error is not None else "Succeeded"
        milliseconds = (time.monotonic() - started) * 1000
        if self._log_successes:
            log(f"Executed 'Functions.{function.name}' ({result}, Id={invocation.id}, Duration={milliseconds:.0f}ms)")
        if error is not None and (self._log_successes or not invocation.worker_ended):
            log(f"Exception while executing function: Functions.{function.name} (Id={invocation.id}): {error}")
        elif failure is not None and self._log_successes:
            log(f"The HTTP request could not be proxied (Id={invocation.id}): {failure.reason}.")
        if failure is None:
            response.finish()
        elif response.started:
            response.break_off()
        else:
            request.keep_alive = request.keep_alive and request.complete
            response.send_bare(failure.status)

    async def _read_body(self, request: CallerRequest) -> bytes:
        assert request.content_length is not None
        if request.content_length > self.limits.body_bytes:
            raise RequestBodyError(f"it has more than {self.limits.body_bytes} bytes")
        pieces = []
        while data := await request.read():
            pieces.append(data)
        return b"".join(pieces)

    async def _forward(
        self, request: CallerRequest, response: CallerResponse, invocation: Invocation, body: bytes | None
    ) -> _Failure | None:
        """To the worker and back, each read written at once. The end of the caller's connection cancels this.

        A failure ends a response that has begun at once.
        """
        # A caller that is gone by now is one whose disconnect is known after the next look at the sockets.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        failure = await self._exchange(request, response, invocation, body)
        if failure is not None and response.started:
            request.connection.on_disconnect(None)
            response.break_off()
        return failure

    async def _exchange(
        self, request: CallerRequest, response: CallerResponse, invocation: Invocation, body: bytes | None
    ) -> _Failure | None:
        head = _worker_request_head(request, invocation.id, self.worker.address)
        connection: WorkerConnection | None = None
        reusable = False
        try:
            for attempt in range(len(_PAUSES) + 1):
                if attempt > 0 and not (connection is not None and connection.used):
                    await asyncio.sleep(_PAUSES[attempt - 1])
                connection = None
                # The platform's HTTP client refuses such a header each time.
                if not head.isascii():
                    continue
                try:
                    connection = await self.worker.connect(new=attempt > 0)
                except OSError:
                    continue
                try:
                    connection.request(request.method.encode(), head, self.limits.activity_seconds)
                    if body is not None:
                        await connection.write(body)
                    elif request.chunked:
                        await self._upload(request, connection)
                    answer = await connection.head()
                except BrokenResponseError:
                    if request.has_body:  # it can't be sent a second time
                        return _Failure(HTTPStatus.BAD_GATEWAY, "the worker closed the connection")
                    connection.transport.abort()
                else:
                    break
            else:
                if head.isascii():
                    return _Failure(HTTPStatus.BAD_GATEWAY, "the worker could not be reached")
                return _Failure(HTTPStatus.INTERNAL_SERVER_ERROR, "a header has characters outside ASCII")
            assert connection is not None
            response.prepare(
                answer.status, answer.reason, [item for item in answer.headers if item[0].lower() not in _HOP_BY_HOP]
            )
            while data := await connection.read():
                await response.write(data)
            reusable = connection.finished
        except RequestBodyError as error:
            request.abandon()
            if connection is not None:
                connection.transport.abort()
            await asyncio.sleep(sum(_PAUSES))  # the proxy tries again, and has no body to send any more
            return _Failure(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except ResponseTimeoutError:
            return _Failure(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"no byte came for {self.limits.activity_seconds:g} seconds"
            )
        except BrokenResponseError:
            return _Failure(HTTPStatus.INTERNAL_SERVER_ERROR, "the worker broke the response off")
        finally:
            if reusable and connection is not None:
                self.worker.release(connection)
            elif connection is not None:
                connection.transport.abort()
        return None

    async def _upload(self, request: CallerRequest, connection: WorkerConnection) -> None:
        """Send a chunked body, at the pace of the slower side."""
        while data := await request.read():
            if request.received > self.limits.body_bytes:
                raise RequestBodyError(f"the body has more than {self.limits.body_bytes} bytes")
            await connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        await connection.write(b"0\r\n\r\n")


def _path(target: bytes) -> str:
    """The path of a request, decoded except for `%2F`, and without dot segments (RFC 3986, section 5.2.4)."""
    segments: list[str] = []
    parts = [unquote(part).replace("/", "%2F") for part in target.partition(b"?")[0].decode().split("/")[1:]]
    for index, segment in enumerate(parts):
        if segment == "..":
            segments[-1:] = []
        elif segment != ".":
            segments.append(segment)
        if segment in ("..", ".") and index == len(parts) - 1:
            segments.append("")
    return "/" + "/".join(segments)


def _trigger_metadata(request: CallerRequest) -> dict[str, Any]:
    """What the HTTP trigger's binding makes of a request beside its body: headers and query."""
    headers = {name.decode(): value.decode() for name, value in request.headers}
    query = dict(parse_qsl(request.target.partition(b"?")[2].decode(), keep_blank_values=True))
    return {"Headers": headers, "Query": query}


def _is_uri_host(host: str) -> bool:
    """Whether the HTTP trigger's binding can make a URI of a Host header that the server has accepted."""
    name, _, port = host.rpartition(":") if re.search(r":\d*$", host) else (host, "", "")
    return bool(name) and int(port or 0) <= 65535


def _worker_request_head(request: CallerRequest, invocation: str, worker: tuple[str, int]) -> bytes:
    """The request as the platform's proxy sends it: with one line for each header, and characters of URLs encoded."""
    path = quote(_path(request.target), safe="/:@!$&'()*+,;=").replace("%252F", "%2F")
    _, mark, query = request.target.partition(b"?")
    target = path.encode() + mark + quote(query, safe="%/?:@!$&'()*+,;=[]").encode()
    headers: dict[bytes, tuple[bytes, list[bytes]]] = {}
    for name, value in request.headers:
        lowered = name.lower()
        if lowered not in _HOP_BY_HOP and lowered not in _REPLACED:
            headers.setdefault(lowered, (name, []))[1].append(value)
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), target), b"Host: %b:%d" % (worker[0].encode(), worker[1])]
    for lowered, (name, values) in headers.items():
        lines.append(name + b": " + (b"; " if lowered == b"cookie" else b", ").join(values))
    if request.content_length is not None:
        lines.append(b"Content-Length: %d" % request.content_length)
    lines.append(_INVOCATION_HEADER + b": " + invocation.encode())
    lines.append(b"X-Forwarded-For: " + request.connection.peer.encode())
    lines.append(b"X-Forwarded-Host: " + (request.header(b"host") or "").encode())
    lines.append(b"X-Forwarded-Proto: http")
    if request.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def log(text: str) -> None:
    """Print a line of the host's own log, with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
