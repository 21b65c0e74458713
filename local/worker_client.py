"""The host's side of the worker: its process, its control channel, and the HTTP connections to its uvicorn."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

# uvicorn closes a connection that was idle for 5 s; one that was idle for less is safe to use again.
_IDLE_SECONDS = 3.0
# What may wait here for a slow caller, per response, before the worker is told to wait.
_HIGH_WATER = 64 * 1024
_START_SECONDS = 120.0


class WorkerError(Exception):
    """The worker could not be started, or ended; the text is meant for the developer."""


class BrokenResponseError(ConnectionError):
    """The worker's connection ended before its response did."""


@dataclass(slots=True)
class ResponseHead:
    """Status line and headers as the worker sent them."""

    status: int = 0
    reason: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class WorkerConnection(asyncio.Protocol):
    """One HTTP/1.1 connection to the worker; carries one request at a time.

    A response is complete by its Content-Length or its last chunk and by nothing else: a connection that ends before
    that raises `BrokenResponseError` in whoever reads.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.idle_since = 0.0
        self._lost = False
        self._writable: asyncio.Future[None] | None = None
        self._write_paused = False
        self._read_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._begin(b"")

    def _begin(self, method: bytes) -> None:
        self._method = method
        self._head = ResponseHead()
        self._head_complete = False
        self._complete = False
        self._reusable = False
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._parser = httptools.HttpResponseParser(self)

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self.transport.abort()  # nothing may come between a response and the next request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        if self._waiting > _HIGH_WATER and not self._read_paused and not self._complete:
            self._read_paused = True
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost = True
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # What the parser tells

    def on_message_begin(self) -> None:
        self._head = ResponseHead()

    def on_status(self, reason: bytes) -> None:
        self._head.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head.status = self._parser.get_status_code()
        if self._head.status < 200:
            return
        self._head_complete = True
        if self._method == b"HEAD":
            # Its Content-Length speaks of a body that never comes, and the parser can't be told.
            self._complete = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._waiting += len(body)

    def on_message_complete(self) -> None:
        if self._head_complete and not self._complete:
            self._complete = True
            # After a 500 for an exception uvicorn closes the connection, and has not said so in the response.
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

    # What the host does with it

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not (self._lost or self.transport.is_closing()) and time.monotonic() - self.idle_since < _IDLE_SECONDS

    def request(self, method: bytes, head: bytes) -> None:
        """Send a request's head, the empty line included."""
        self._begin(method)
        self.transport.write(head)

    async def write(self, data: bytes) -> None:
        """Send a part of the request's body, waiting while the worker doesn't take it."""
        if self._lost or self.transport.is_closing():
            raise BrokenResponseError
        self.transport.write(data)
        if self._write_paused:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    async def head(self) -> ResponseHead:
        """The final status and headers, once they are here."""
        while not self._head_complete:
            if self._lost:
                raise BrokenResponseError
            await self._wait()
        return self._head

    async def read(self) -> bytes:
        """All of the body that has arrived, as soon as anything has; empty at the response's end."""
        while not self._pieces:
            if self._complete:
                return b""
            if self._lost:
                raise BrokenResponseError
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting = 0
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()
        return data

    @property
    def finished(self) -> bool:
        """Whether the response has been read to its end and the connection may serve another request."""
        return self._complete and self._reusable and not self._pieces


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the app, as its worker indexed it."""

    id: str
    name: str
    bindings: tuple[dict[str, Any], ...]

    @property
    def trigger(self) -> dict[str, Any]:
        """The binding that starts it."""
        return next(binding for binding in self.bindings if str(binding["type"]).lower().endswith("trigger"))


class _Process(asyncio.SubprocessProtocol):
    """Passes on the worker's words line by line, and its end."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.SubprocessTransport = cast(asyncio.SubprocessTransport, None)
        self._partial = {1: b"", 2: b""}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._partial[fd] = (self._partial[fd] + data).split(b"\n")
        for line in lines:
            self._pass_on(line)

    def pipe_connection_lost(self, fd: int, _error: Exception | None) -> None:
        if rest := self._partial.get(fd):
            self._partial[fd] = b""
            self._pass_on(rest)

    def process_exited(self) -> None:
        code = self.transport.get_returncode()
        if not self.exited.done():
            self.exited.set_result(0 if code is None else code)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        # uvicorn's access log has whole URLs in it, and a key may be in the query.
        self.say(re.sub(r"([?&]code=)[^&\s\"']+", r"\1***", text))


class Worker:
    """The worker process: started, spoken to, and killed in every case."""

    def __init__(self, script_root: Path, environment: dict[str, str], say: Callable[[str], None]) -> None:
        self.script_root = script_root
        self.environment = environment
        self.say = say
        self.functions: tuple[Function, ...] = ()
        self._address = ("127.0.0.1", 0)
        self._idle: deque[WorkerConnection] = deque()  # the one that waited longest first
        self._process: _Process | None = None
        # Called with id and error text at each invocation's end.
        self.on_finished: Callable[[str, str | None], None] = lambda _id, _error: None

    async def start(self) -> None:
        """Start it and index the app; raises `WorkerError` with the app's own error when it can't be indexed."""
        ours, its = socket.socketpair()
        loop = asyncio.get_running_loop()
        with its:
            _, self._process = await loop.subprocess_exec(
                lambda: _Process(self.say),
                sys.executable,
                "-P",  # the app's folder comes first on its path, and this folder not at all
                str(Path(__file__).with_name("worker_process.py")),
                f"--control={its.fileno()}",
                f"--host={os.getpid()}",
                f"--script-root={self.script_root}",
                stdin=None,
                cwd=self.script_root,
                env=self.environment,
                pass_fds=(its.fileno(),),
                start_new_session=True,  # Ctrl-C is the host's to handle
            )
        reader, self._control = await asyncio.open_connection(sock=ours, limit=16 * 1024 * 1024)
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = await reader.readline()
        except TimeoutError:
            raise WorkerError(f"The app could not be loaded within {_START_SECONDS:.0f} s.") from None
        if not line:
            raise WorkerError(f"The worker ended while it loaded the app ({await self.ended()}).")
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(f"The app could not be loaded:\n{answer['failed'].rstrip()}")
        ready = answer["ready"]
        self.functions = tuple(
            Function(function["id"], function["name"], tuple(function["bindings"])) for function in ready["functions"]
        )
        address = urlsplit(ready["uri"])
        self._address = (address.hostname or "127.0.0.1", address.port or 80)
        self._listener = asyncio.create_task(self._listen(reader))
        await self._wait_until_it_listens()

    async def _wait_until_it_listens(self) -> None:
        # The library announces the address before its uvicorn listens there.
        deadline = time.monotonic() + 20
        while True:
            try:
                connection = await self.connect()
            except ConnectionError:
                if time.monotonic() > deadline:
                    raise WorkerError("The worker's HTTP server did not come up within 20 s.") from None
                await asyncio.sleep(0.02)
            else:
                self.release(connection)
                return

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line)
            self.on_finished(message["finished"], message["error"])

    async def ended(self) -> str:
        """Wait for the process's end and say how it ended."""
        assert self._process is not None
        code = await asyncio.shield(self._process.exited)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def invoke(
        self, invocation: str, function: Function, route: dict[str, str], traceparent: str, tracestate: str
    ) -> None:
        """Tell the worker which function the HTTP request of this invocation is for."""
        message = {
            "id": invocation,
            "function": function.id,
            "parameter": function.trigger["name"],
            "route": route,
            "traceparent": traceparent,
            "tracestate": tracestate,
        }
        self._control.write(json.dumps(message).encode() + b"\n")

    async def connect(self) -> WorkerConnection:
        """A connection that is free, or a new one; raises `ConnectionError` when the worker takes none."""
        while self._idle and not self._idle[0].usable:
            self._idle.popleft().transport.close()
        if self._idle:
            return self._idle.pop()
        _, connection = await asyncio.get_running_loop().create_connection(WorkerConnection, *self._address)
        connection.idle_since = time.monotonic()
        return connection

    def release(self, connection: WorkerConnection) -> None:
        """Keep the connection for the next request."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    async def stop(self) -> None:
        """Kill it: its uvicorn would wait for open streams."""
        if self._process is None:
            return
        if not self._process.exited.done():
            self._process.transport.kill()
            await self._process.exited
        self._process.transport.close()
