"""The worker from the host's side: its process, its control channel and the connections to it that are kept."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from local.functions_host.worker_connection import WorkerConnection

_START_SECONDS = 120.0
_LISTEN_SECONDS = 20.0
_CONTROL_LINE_BYTES = 16 * 1024 * 1024


class WorkerError(Exception):
    """The worker could not be started, or ended; the text is for the developer to read."""


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


class _WorkerProcess(asyncio.SubprocessProtocol):
    """Passes on the worker's output line by line, and notes its exit code."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.on_line = on_line
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
        self.on_line(re.sub(r"([?&]code=)[^&\s\"']+", r"\1***", text))


class Worker:
    """The worker's process, from its start to its end; `stop` ends it in every case.

    `environment` is all that it gets; `on_line` is called with each line of its output.
    """

    def __init__(self, script_root: Path, environment: dict[str, str], on_line: Callable[[str], None]) -> None:
        self.script_root = script_root
        self.environment = environment
        self.on_line = on_line
        self.functions: tuple[Function, ...] = ()
        self._address = ("127.0.0.1", 0)
        self._idle: deque[WorkerConnection] = deque()  # the one that has been idle longest first
        self._process: _WorkerProcess | None = None
        # Called with id and error text at each invocation's end.
        self.on_finished: Callable[[str, str | None], None] = lambda _id, _error: None

    async def start(self) -> None:
        """Start it and index the app; raises `WorkerError` with the app's own error when it can't be indexed."""
        own_end, worker_end = socket.socketpair()
        loop = asyncio.get_running_loop()
        with worker_end:
            _, self._process = await loop.subprocess_exec(
                lambda: _WorkerProcess(self.on_line),
                sys.executable,
                "-P",  # the app's folder comes first on its path, and this folder not at all
                str(Path(__file__).with_name("worker_process.py")),
                f"--control={worker_end.fileno()}",
                f"--host={os.getpid()}",
                f"--script-root={self.script_root}",
                stdin=None,
                cwd=self.script_root,
                env=self.environment,
                pass_fds=(worker_end.fileno(),),
                start_new_session=True,  # the host handles Ctrl-C
            )
        reader, self._control = await asyncio.open_unix_connection(sock=own_end, limit=_CONTROL_LINE_BYTES)
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = await reader.readline()
        except TimeoutError:
            raise WorkerError(f"The app could not be loaded within {_START_SECONDS:.0f} s.") from None
        if not line:
            raise WorkerError(f"The worker ended while it loaded the app ({await self.ended()}).")
        message = json.loads(line)
        if "failed" in message:
            raise WorkerError(f"The app could not be loaded:\n{message['failed'].rstrip()}")
        ready = message["ready"]
        self.functions = tuple(
            Function(function["id"], function["name"], tuple(function["bindings"])) for function in ready["functions"]
        )
        address = urlsplit(ready["uri"])
        self._address = (address.hostname or "127.0.0.1", address.port or 80)
        self._control_reader = asyncio.create_task(self._read_control(reader))
        await self._wait_until_it_listens()

    async def _wait_until_it_listens(self) -> None:
        # The library announces the address before its uvicorn listens there.
        deadline = time.monotonic() + _LISTEN_SECONDS
        while True:
            try:
                connection = await self.connect()
            except ConnectionError:
                if time.monotonic() > deadline:
                    raise WorkerError(
                        f"The worker's HTTP server did not start within {_LISTEN_SECONDS:.0f} s."
                    ) from None
                await asyncio.sleep(0.02)
            else:
                self.release(connection)
                return

    async def _read_control(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line)
            self.on_finished(message["finished"], message["error"])

    async def ended(self) -> str:
        """Wait for the process's end; returns how it ended, for the developer to read."""
        assert self._process is not None
        code = await asyncio.shield(self._process.exited)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def invoke(
        self, invocation: str, function: Function, route: dict[str, str], traceparent: str, tracestate: str
    ) -> None:
        """Tell the worker which function serves the HTTP request of this invocation; `route`: its parameters."""
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
        """An idle connection, or a new one; raises `ConnectionError` when the worker accepts none."""
        while self._idle and not self._idle[0].usable:
            self._idle.popleft().transport.close()
        if self._idle:
            return self._idle.pop()
        _, connection = await asyncio.get_running_loop().create_connection(WorkerConnection, *self._address)
        connection.idle_since = time.monotonic()
        return connection

    def release(self, connection: WorkerConnection) -> None:
        """Keep the connection for another request."""
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
