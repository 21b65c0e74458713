"""A server of scripted bytes, for what no HTTP library sends."""

import asyncio
import contextlib
import enum
import socket
import ssl
import struct
from types import TracebackType
from typing import Final, Self


class Do(enum.Enum):
    """A step of a script that is not bytes to send."""

    RECEIVE = enum.auto()  # one request, with its body
    RECEIVE_HEAD = enum.auto()  # the head of a request, and nothing after it
    HOLD = enum.auto()  # leave the connection open until the client ends it
    RESET = enum.auto()


type Step = bytes | float | Do  # a number: seconds to wait
RECEIVE, RECEIVE_HEAD, HOLD, RESET = Do.RECEIVE, Do.RECEIVE_HEAD, Do.HOLD, Do.RESET


def response(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """A response with a Content-Length, which is wrong where the test says so."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunked(*chunks: bytes, headers: str = "Content-Type: text/event-stream\r\n") -> bytes:
    """The head of a chunked response and these chunks, without the last one."""
    head = f"HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in chunks)


class _Listening:
    """What listens, with the connections that it has: at its end it aborts all of them."""

    _server: asyncio.Server
    writers: list[asyncio.StreamWriter]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()


class RawServer(_Listening):
    """Each connection carries out one script, the last one again and again; at its end it is closed.

    `received`: the requests. `ended`: set when a client has ended a connection on which the script holds.
    """

    def __init__(self, *scripts: tuple[Step, ...], tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.received: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self._scripts = scripts
        self._tls = tls
        self._port = port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url: str = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/v1"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            for step in script:
                await self._carry_out(step, reader, writer)
        writer.close()

    async def _carry_out(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            writer.write(step)
        elif isinstance(step, float | int):
            await asyncio.sleep(step)
        elif step is RECEIVE_HEAD:
            self.received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        elif step is RECEIVE:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self.received.append(head + await reader.readexactly(length))
        elif step is HOLD:
            try:
                await reader.read()
            finally:
                self.ended.set()
        else:
            await asyncio.sleep(0.05)  # a reset discards what has not arrived yet
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Tap(_Listening):
    """Passes the bytes of connections on to a server, until it is made deaf.

    A client that says goodbye to a server which does not respond has not ended its connection: only `ended`, the number
    of connections whose end has arrived here, tells.
    """

    def __init__(self, server_port: int, port: int = 0) -> None:
        self.opened = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = 0
        self.changed = asyncio.Event()
        self._deaf: set[int] = set()  # numbers of connections
        self._server_port = server_port
        self._port = port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        number = self.opened
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self.writers += writer, server_writer
        back = asyncio.create_task(self._pass_back(server_reader, writer))
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(65536):
                if number not in self._deaf:
                    server_writer.write(received)
        self.ended += 1
        self.changed.set()
        back.cancel()
        server_writer.transport.abort()

    async def _pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(65536):
                writer.write(received)
                await writer.drain()
            writer.close()

    def deafen(self) -> None:
        """Lose what clients send on the connections of now from here on."""
        self._deaf.update(range(1, self.opened + 1))

    async def wait_for_end(self, count: int = 1, *, within: float = 2.0) -> None:
        """Until the clients have ended so many connections; raises `TimeoutError`."""
        async with asyncio.timeout(within):
            while self.ended < count:
                self.changed.clear()
                await self.changed.wait()


LAST_CHUNK: Final = b"0\r\n\r\n"
