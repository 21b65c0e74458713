"""A raw server in the model service's place: it sends exactly the bytes that a test scripts, and ends as scripted.

    upstream.script(Script(W("Hello"), F, D), "deployment-1")        # or for any deployment, without a name
    upstream.script(document({"error": {"code": 429}}, content_type="application/json"))

Nothing of it is an HTTP library's: headers may be missing or huge, and a connection is reset where the script says so.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import pytest

D: Final = b"data: [DONE]\n\n"


def sse(data: Any, name: str = "") -> bytes:
    """One event: its data as it is where it is text or bytes, otherwise as JSON; `name`: its event type."""
    content = data if isinstance(data, bytes) else data.encode() if isinstance(data, str) else json.dumps(data).encode()
    return (b"event:%b\n" % name.encode() if name else b"") + b"data: %b\n\n" % content


def chunk(delta: Any, finish_reason: str | None = None, **members: Any) -> bytes:
    """One event with a chunk of one choice."""
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]} | members)


def W(text: str) -> bytes:
    """An event with words of the answer."""
    return chunk({"content": text})


F: Final = chunk({}, "stop")
USAGE: Final = sse({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})


class Script:
    """One response. `body`: its writes, each sent by itself.

    `content_type` None leaves the header out. `ending`: `end` ends the body cleanly, `cut` closes the connection before
    its end, `reset` resets it, `silent` sends nothing more and keeps the connection open, `repeat` sends the last write
    again and again, every `pause` seconds.
    """

    def __init__(
        self,
        *body: bytes,
        status: int = 200,
        content_type: str | None = "text/event-stream",
        headers: Mapping[str, str] | None = None,
        ending: Literal["end", "cut", "reset", "silent", "repeat"] = "end",
        pause: float = 0.0,
    ) -> None:
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = dict(headers or {})
        self.ending = ending
        self.pause = pause


def document(members: Any, status: int = 200, **options: Any) -> Script:
    """A response of one JSON document."""
    options.setdefault("content_type", "application/json")
    return Script(json.dumps(members).encode(), status=status, **options)


class ScriptedUpstream:
    """The server. `requests` holds the JSON bodies that it received, `headers` those of the requests, by lower case."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open_requests = 0
        self._scripts: dict[str | None, Script] = {}

    def script(self, script: Script, deployment: str | None = None) -> None:
        """Answer the requests to this deployment, or to all others, like this."""
        self._scripts[deployment] = script

    def asked(self, deployment: str) -> int:
        """How many requests named the deployment."""
        return sum(body.get("model") == deployment for body in self.requests)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                self.requests.append(body)
                self.headers.append(headers)
                self.open_requests += 1
                try:
                    await self._respond(self._scripts.get(body.get("model")) or self._scripts[None], reader, writer)
                finally:
                    self.open_requests -= 1
                if writer.is_closing():
                    return
        writer.close()

    async def _respond(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = dict(script.headers) | {"Transfer-Encoding": "chunked"}
        if script.content_type is not None:
            headers["Content-Type"] = script.content_type
        lines = [f"HTTP/1.1 {script.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for content in script.body:
            await self._write(writer, content)
            await asyncio.sleep(script.pause)
        match script.ending:
            case "end":
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            case "cut":
                writer.close()
            case "reset":
                await asyncio.sleep(0.05)  # a reset discards what has not arrived yet: let the rest arrive first
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case "silent":
                await reader.read()  # until the client closes the connection
                writer.close()
            case "repeat":
                while not reader.at_eof():
                    await self._write(writer, script.body[-1])
                    await asyncio.sleep(script.pause)
                writer.close()

    async def _write(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        if content:
            writer.write(b"%x\r\n%b\r\n" % (len(content), content))
            await writer.drain()

    @asynccontextmanager
    async def listen(self, port: int = 0) -> AsyncIterator[int]:
        """Serve on this port; yields it."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            server.close_clients()


@pytest.fixture
async def scripted_upstream(model_service_port: int) -> AsyncIterator[ScriptedUpstream]:
    """The scripted upstream, in the model service's place."""
    upstream = ScriptedUpstream()
    async with upstream.listen(model_service_port):
        yield upstream
