"""The connections of callers: an HTTP/1.1 server that handles requests and writes responses as the platform's does."""

import asyncio
import email.utils
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import cast

from local.functions_host.request_parser import RequestError, RequestHead, RequestParser

type Headers = Sequence[tuple[bytes, bytes]]
type Handler = Callable[[CallerRequest, CallerResponse], Awaitable[None]]

_MIN_UPLOAD_RATE = 240  # bytes a second
# How much of a body is buffered before the caller is made to wait, in bytes.
_HIGH_WATER = 256 * 1024
_MAX_PIPELINED = 8
# Seconds for which the rest of a rejected body is read and dropped: a caller that still sends would not see the
# response if the connection was closed at once.
_DRAIN_SECONDS = 5.0
_SERVER = b"functions_host"
_NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0


class RequestBodyError(Exception):
    """The request's body did not arrive: the caller disconnected, sent too much or too slowly, or broke the framing."""


class CallerRequest:
    """One request. `rejected` is the status with which the server itself answers it, 0 for none.

    Kestrel's minimum rate of a body holds: after `upload_seconds` of waiting for it, 240 bytes for each second.
    """

    def __init__(self, connection: "CallerConnection", head: RequestHead | None, *, rejected: int = 0) -> None:
        self.connection = connection
        self.rejected = rejected
        head = head or RequestHead("", b"/", http_1_0=False, keep_alive=False)
        self.method = head.method
        self.target = head.target
        self.headers = head.headers
        self.http_1_0 = head.http_1_0
        self.keep_alive = head.keep_alive
        self.content_length = head.content_length
        self.chunked = head.chunked
        self.expects_continue = head.expects_continue
        self.complete = False
        self.received = 0  # bytes of the body
        self._error: str | None = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._waited = 0.0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_body(self) -> bool:
        """Whether a body of at least one byte, or of unknown length, was announced."""
        return self.chunked or bool(self.content_length)

    def header(self, name: bytes) -> str | None:
        """The first value of a header; `name` in lower case."""
        for other, value in self.headers:
            if other.lower() == name:
                return value.decode("utf-8", "replace")
        return None

    # Called by the connection

    def feed(self, data: bytes) -> None:
        self.received += len(data)
        self._buffered += len(data)
        self._pieces.append(data)
        if self._buffered > _HIGH_WATER:
            self.connection.pause_reading()
        self._wake()

    def end(self, error: str | None = None) -> None:
        if error is None:
            self.complete = True
        elif not self.complete:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Called by the host

    async def read(self) -> bytes:
        """The next part of the body, empty at its end; raises `RequestBodyError`."""
        if self.expects_continue:
            self.expects_continue = False
            if not self._pieces and not self.complete:
                self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._pieces:
            if self._error is not None:
                raise RequestBodyError(self._error)
            if self.complete:
                return b""
            allowed = max(self.connection.upload_seconds, self.received / _MIN_UPLOAD_RATE) - self._waited
            self._waiter = asyncio.get_running_loop().create_future()
            started = time.monotonic()
            try:
                async with asyncio.timeout(allowed):
                    await self._waiter
            except TimeoutError:
                self._error = f"the upload was slower than {_MIN_UPLOAD_RATE} bytes a second"
            finally:
                self._waiter = None
                self._waited += time.monotonic() - started
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        self.connection.resume_reading()
        return data

    def abandon(self) -> None:
        """Read no more of the body: the connection is closed after the response, while the caller may still send."""
        self.keep_alive = False
        self.end("it is not read any more")

    async def drop_rest(self) -> None:
        """Read the rest of the body and drop it; the connection is of no more use when that takes too long."""
        self.expects_continue = False
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while await self.read():
                    pass
        except (TimeoutError, RequestBodyError):
            self.keep_alive = False


class CallerResponse:
    """The response to one request. Its head is sent with the first byte of the body, or at the response's end."""

    def __init__(self, request: CallerRequest) -> None:
        self.request = request
        self.connection = request.connection
        self.extra_headers: Headers = ()  # of the host's own, for whatever response
        self.started = False  # whether the caller was sent anything
        self.finished = False
        self._head: bytes | None = None
        self._chunked = False
        self._has_length = False
        self._has_body = True

    def prepare(self, status: int, reason: bytes, headers: Headers) -> None:
        """Set status and headers, without any that concerns the connection; nothing is sent yet."""
        self._has_body = self.request.method != "HEAD" and status not in _NO_BODY
        self._has_length = any(name.lower() == b"content-length" for name, _ in headers)
        lines = [b"HTTP/1.1 %d %b" % (status, reason)]
        lines += [name + b": " + value for name, value in (*headers, *self.extra_headers)]
        self._head = b"\r\n".join(lines) + b"\r\n"

    async def write(self, data: bytes) -> None:
        """Send a part of the body, which is not empty, and wait while the caller doesn't take it."""
        if not self.started:
            if not self._has_length and self.request.http_1_0:
                self.request.keep_alive = False  # the connection's end is the body's end
            self._chunked = not self._has_length and not self.request.http_1_0
            head = self._start(b"Transfer-Encoding: chunked\r\n" if self._chunked else b"")
            self.connection.write(head + (b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data))
        else:
            self.connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if self.connection.write_paused:
            await self.connection.writable()

    def finish(self) -> None:
        """End the response as a complete one."""
        if not self.started:
            self.connection.write(
                self._start(b"" if self._has_length or not self._has_body else b"Content-Length: 0\r\n")
            )
        elif self._chunked:
            self.connection.write(b"0\r\n\r\n")
        self.finished = True

    def send_bare(self, status: int, headers: Headers = ()) -> None:
        """Send a response without a body, in place of whatever was prepared."""
        if self.request.has_body and not self.request.complete and self.request.expects_continue:
            self.request.keep_alive = False  # the caller may or may not send its body now
        date = email.utils.formatdate(usegmt=True).encode()
        phrase = HTTPStatus(status).phrase.encode()
        self.prepare(status, phrase, [(b"Date", date), (b"Server", _SERVER), *headers])
        self.finish()

    def break_off(self) -> None:
        """Reset the caller's connection, so that what was sent can't pass for a complete response."""
        self.connection.reset()

    def _start(self, framing: bytes) -> bytes:
        assert self._head is not None
        self.started = True
        if not self.request.keep_alive:
            framing += b"Connection: close\r\n"
        elif self.request.http_1_0:
            framing += b"Connection: keep-alive\r\n"
        return self._head + framing + b"\r\n"


class CallerConnection(asyncio.Protocol):
    """One connection of a caller. Its requests are handled one after the other, each by one call of `handle`.

    `upload_seconds`: for how long a body may be awaited before the minimum rate holds.
    """

    def __init__(self, handle: Handler, connections: "set[CallerConnection]", upload_seconds: float) -> None:
        self.upload_seconds = upload_seconds
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.lost = False
        self.write_paused = False
        self.serving: asyncio.Task[None] | None = None
        self._handle = handle
        self._connections = connections
        self._requests: deque[CallerRequest] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._read_paused = False
        self._refused = False
        self._drained: asyncio.Future[None] | None = None
        self._on_disconnect: Callable[[], object] | None = None
        self._parser = RequestParser(self)
        self._request: CallerRequest | None = None  # the one that is being received

    @property
    def peer(self) -> str:
        """The caller's IP address."""
        return str(self.transport.get_extra_info("peername")[0])

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self.serving = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            self._parser.feed(data)
        except RequestError as error:
            # No more can be read from this connection.
            self._refused = True
            if self._request is not None:
                self._request.keep_alive = False
                self._request.end("its framing is broken")
                return
            self._request = CallerRequest(self, None, rejected=error.status)
            self._enqueue(self._request)
            self.on_end()

    def eof_received(self) -> None:
        self._disconnected()

    def connection_lost(self, _error: Exception | None) -> None:
        self._connections.discard(self)
        self._disconnected()
        self.resume_writing()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _disconnected(self) -> None:
        self.lost = True
        for request in self._requests:
            request.end("the caller disconnected")
        if self._on_disconnect is not None:
            self._on_disconnect()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # Called by the parser

    def on_head(self, head: RequestHead) -> None:
        self._request = CallerRequest(self, head)
        self._enqueue(self._request)

    def on_body(self, data: bytes) -> None:
        assert self._request is not None
        self._request.feed(data)

    def on_end(self) -> None:
        assert self._request is not None
        self._request.end()
        self._request = None

    def _enqueue(self, request: CallerRequest) -> None:
        self._requests.append(request)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        if len(self._requests) > _MAX_PIPELINED:
            self.pause_reading()

    async def _serve(self) -> None:
        while not self.lost:
            if not self._requests:
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
                self._arrived = None
                continue
            request = self._requests[0]
            response = CallerResponse(request)
            if request.rejected:
                response.send_bare(request.rejected)
            else:
                try:
                    await self._handle(request, response)
                finally:
                    if not response.finished:
                        self.reset()
            if not response.finished:
                return
            if request.keep_alive or not request.expects_continue:
                await request.drop_rest()
            if not request.keep_alive:
                break
            self._requests.popleft()
            self.resume_reading()
        self.transport.close()

    # Called by the host

    def on_disconnect(self, call: Callable[[], object] | None) -> None:
        """Have `call` called when the caller disconnects, or at once when it has; None: no longer."""
        self._on_disconnect = call
        if call is not None and self.lost:
            call()

    def write(self, data: bytes) -> None:
        """Send bytes; what is sent to a caller that has disconnected is dropped."""
        if not self.lost:
            self.transport.write(data)

    async def writable(self) -> None:
        """Wait until the caller has taken most of what was written."""
        if self.write_paused and not self.lost:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()

    def reset(self) -> None:
        """End the connection by a reset: what the caller has not received yet is lost."""
        self._disconnected()
        if not self.transport.is_closing():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()
