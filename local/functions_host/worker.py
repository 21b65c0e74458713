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
_JSON_SPACE = b" \t\r\n\xef\xbb\xbf"  # and a byte order mark
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


class Invocation:
    """One call of a function, open until its HTTP response has ended, too; `close` ends it then."""

    def __init__(self, identifier: str, function: Function, on_close: Callable[["Invocation"], None]) -> None:
        self.id = identifier
        self.function = function
        # Its result is the function's error text, None for a success.
        self.finished: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.worker_ended = False
        self.timer: asyncio.TimerHandle | None = None
        self.close: Callable[[], None] = lambda: on_close(self)

    def finish(self, error: str | None, *, worker_ended: bool = False) -> None:
        """Note the function's end."""
        if not self.finished.done():
            self.worker_ended = worker_ended
            self.finished.set_result(error)


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

    `environment` is all that it gets; `on_line` is called with each line of its output, and `log` with what happens to
    the worker itself.
    """

    def __init__(
        self,
        script_root: Path,
        environment: dict[str, str],
        on_line: Callable[[str], None],
        log: Callable[[str], None] = print,
    ) -> None:
        self.log = log
        self.script_root = script_root
        self.environment = environment
        self.on_line = on_line
        self.functions: tuple[Function, ...] = ()
        self.address = ("127.0.0.1", 0)
        self._idle: deque[WorkerConnection] = deque()  # the one that has been idle longest first
        self._process: _WorkerProcess | None = None
        self._open: dict[str, Invocation] = {}
        self._function_ids: dict[str, str] = {}  # by name; the library makes new ones at each start
        self._ready = asyncio.Event()
        self._restarting: asyncio.Task[None] | None = None

    @property
    def open_invocations(self) -> int:
        """The number of invocations whose function or response has not ended."""
        return len(self._open)

    async def start(self) -> None:
        """Start it and index the app; raises `WorkerError` with the app's own error when it can't be indexed."""
        own_end, worker_end = socket.socketpair()
        loop = asyncio.get_running_loop()
        with worker_end:
            _, process = await loop.subprocess_exec(
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
        self._process = process
        reader, self._control = await asyncio.open_unix_connection(sock=own_end, limit=_CONTROL_LINE_BYTES)
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = await reader.readline()
        except TimeoutError:
            raise WorkerError(f"The app could not be loaded within {_START_SECONDS:.0f} s.") from None
        if not line:
            raise WorkerError(f"The worker ended while it loaded the app ({_how_ended(await process.exited)}).")
        message = json.loads(line)
        if "failed" in message:
            raise WorkerError(f"The app could not be loaded:\n{message['failed'].rstrip()}")
        ready = message["ready"]
        self.functions = tuple(
            Function(function["id"], function["name"], tuple(function["bindings"])) for function in ready["functions"]
        )
        self._function_ids = {function.name: function.id for function in self.functions}
        address = urlsplit(ready["uri"])
        self.address = (address.hostname or "127.0.0.1", address.port or 80)
        self._control_reader = asyncio.create_task(self._read_control(reader))
        await self._wait_until_it_listens()
        self._ready.set()

    async def ready(self) -> None:
        """Wait until the worker serves: a restart may be under way."""
        await self._ready.wait()

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
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                message = json.loads(line)
                if (invocation := self._open.get(message["finished"])) is not None:
                    invocation.finish(message["error"])
        except ConnectionError:
            pass
        self._control.close()
        for invocation in list(self._open.values()):
            invocation.finish("The worker ended.", worker_ended=True)

    async def ended(self) -> str:
        """Wait for the process's end, unless it is restarted; returns how it ended, for the developer to read.

        Raises `WorkerError` when it could not be started anew.
        """
        while True:
            assert self._process is not None
            code = await asyncio.shield(self._process.exited)
            if self._restarting is None:
                return _how_ended(code)
            await asyncio.shield(self._restarting)

    def invoke(
        self,
        identifier: str,
        function: Function,
        *,
        route: dict[str, str] | None = None,
        metadata: dict[str, Any] | None = None,
        body: bytes | None = None,
        trace: tuple[str, str] = ("", ""),
        seconds: float | None = None,
    ) -> Invocation:
        """Tell the worker which function serves the HTTP request with this id.

        `route`: its parameters. `metadata`: the trigger's; the members of a JSON object as `body`, of a request with a
        Content-Length, are added to it. `trace`: traceparent and tracestate. After `seconds` the worker is restarted.
        """
        invocation = Invocation(identifier, function, self._close_invocation)
        self._open[identifier] = invocation
        members = body if body is not None and body.lstrip(_JSON_SPACE).startswith(b"{") else b""
        message = {
            "id": identifier,
            "function": self._function_ids.get(function.name, ""),
            "parameter": function.trigger["name"],
            "route": route or {},
            "traceparent": trace[0],
            "tracestate": trace[1],
            "metadata": metadata or {},
            "members": len(members),
        }
        if self._control.is_closing():
            invocation.finish("The worker ended.", worker_ended=True)
            return invocation
        self._control.write(json.dumps(message).encode() + b"\n")
        if members:
            self._control.write(members)
        if seconds is not None:
            loop = asyncio.get_running_loop()
            invocation.timer = loop.call_later(seconds, self._time_out, invocation, seconds)
        return invocation

    def _close_invocation(self, invocation: Invocation) -> None:
        self._open.pop(invocation.id, None)
        if invocation.timer is not None:
            invocation.timer.cancel()

    def _time_out(self, invocation: Invocation, seconds: float) -> None:
        if self._restarting is not None:
            return
        self.log(
            f"Timeout value of {seconds:g} seconds exceeded by function 'Functions.{invocation.function.name}' "
            f"(Id={invocation.id}). The worker is restarted."
        )
        self._ready.clear()
        self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        assert self._process is not None
        old = self._process
        if not old.exited.done():
            old.transport.kill()
        await old.exited
        old.transport.close()
        await self._control_reader  # it ends all open invocations
        while self._idle:
            self._idle.pop().transport.abort()
        await self.start()
        self.log("The worker was restarted.")
        self._restarting = None

    async def connect(self, *, new: bool = False) -> WorkerConnection:
        """An idle connection, or a new one; raises `ConnectionError` when the worker accepts none."""
        while self._idle and not self._idle[0].usable:
            self._idle.popleft().transport.close()
        if self._idle and not new:
            return self._idle.pop()
        _, connection = await asyncio.get_running_loop().create_connection(WorkerConnection, *self.address)
        connection.idle_since = time.monotonic()
        return connection

    def release(self, connection: WorkerConnection) -> None:
        """Keep the connection for another request."""
        connection.keep()
        self._idle.append(connection)

    async def stop(self) -> None:
        """Kill it: its uvicorn would wait for open streams."""
        if self._restarting is not None:
            self._restarting.cancel()
        if self._process is None:
            return
        if not self._process.exited.done():
            self._process.transport.kill()
            await self._process.exited
        self._process.transport.close()


def _how_ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
