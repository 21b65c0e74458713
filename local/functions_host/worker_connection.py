"""One HTTP connection from the host to the worker's uvicorn."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import httptools

# As long as the platform's proxy keeps an idle connection. uvicorn's default is to close it after 5 s.
_IDLE_SECONDS = 60.0
# How much of a response is buffered here for a slow caller before the worker is made to wait, in bytes.
_HIGH_WATER = 64 * 1024


class BrokenResponseError(ConnectionError):
    """The worker's connection ended before its response did."""


class ResponseTimeoutError(Exception):
    """No byte went over the connection for too long, and it was closed."""


@dataclass(slots=True)
class ResponseHead:
    """Status line and headers as the worker sent them."""

    status: int = 0
    reason: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class WorkerConnection(asyncio.Protocol):
    """One HTTP/1.1 connection to the worker; carries one request at a time.

    When the connection ends before a response's Content-Length or last chunk, its reader gets `BrokenResponseError`. A
    response with neither, such as uvicorn's own 400, is complete when the worker closes the connection.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.idle_since = 0.0
        self.used = False  # whether it served an earlier request
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._activity = 0.0
        self._lost = False
        self._writable: asyncio.Future[None] | None = None
        self._write_paused = False
        self._read_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._end_of_data = False
        self._begin(b"")

    def _begin(self, method: bytes) -> None:
        self._method = method
        self._head = ResponseHead()
        self._head_complete = False
        self._complete = False
        self._reusable = False
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._parser = httptools.HttpResponseParser(self)

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self.transport.abort()  # nothing may come between a response and the next request
            return
        self._activity = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        if self._buffered > _HIGH_WATER and not self._read_paused and not self._complete:
            self._read_paused = True
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._stop_timer()
        if self._head_complete and error is None and self._end_of_data and not self._length_known():
            self._complete = True
        self._wake()
        self.resume_writing()

    def eof_received(self) -> None:
        self._end_of_data = True

    def _length_known(self) -> bool:
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._head.headers)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # Called by the parser

    def on_message_begin(self) -> None:
        self._head = ResponseHead()

    def on_status(self, reason: bytes) -> None:
        self._head.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head.status = self._parser.get_status_code()
        if self._head.status < 200:
            return
        self._head_complete = True
        if self._method == b"HEAD":
            # Its Content-Length is of a body that is not sent, which the parser can't know.
            self._complete = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._head_complete and not self._complete:
            self._complete = True
            # After a 500 for an exception uvicorn closes the connection without announcing it in the response.
            self._reusable = self._parser.should_keep_alive() and self._head.status < 500

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # Called by the host

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not (self._lost or self.transport.is_closing()) and time.monotonic() - self.idle_since < _IDLE_SECONDS

    def request(self, method: bytes, head: bytes, activity_seconds: float) -> None:
        """Send a request's head, the empty line included.

        The connection is closed when no byte comes or goes for `activity_seconds`, until the response is complete.
        """
        self._begin(method)
        self._activity = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(activity_seconds, self._check_activity, activity_seconds)
        self.transport.write(head)

    def _check_activity(self, seconds: float) -> None:
        remaining = self._activity + seconds - time.monotonic()
        if remaining > 0:
            self._timer = asyncio.get_running_loop().call_later(remaining, self._check_activity, seconds)
            return
        self._timed_out = True
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def keep(self) -> None:
        """The response was read to its end, and the connection waits for another request."""
        self._stop_timer()
        self.used = True
        self.idle_since = time.monotonic()

    def _raise_if_lost(self) -> None:
        if self._timed_out:
            raise ResponseTimeoutError
        if self._lost:
            raise BrokenResponseError

    async def write(self, data: bytes) -> None:
        """Send a part of the request's body, waiting while the worker doesn't take it."""
        self._raise_if_lost()
        if self.transport.is_closing():
            raise BrokenResponseError
        self._activity = time.monotonic()
        self.transport.write(data)
        if self._write_paused:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    async def head(self) -> ResponseHead:
        """The final status and headers, once they have arrived."""
        while not self._head_complete:
            self._raise_if_lost()
            await self._wait()
        return self._head

    async def read(self) -> bytes:
        """All of the body that has arrived, as soon as anything has; empty at the response's end."""
        while not self._pieces:
            if self._complete:
                return b""
            self._raise_if_lost()
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()
        return data

    @property
    def finished(self) -> bool:
        """Whether the response has been read to its end and the connection may serve another request."""
        return self._complete and self._reusable and not self._pieces
