"""Stand-ins for aiohttp's session and response: HTTP without sockets."""

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
import yarl
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict


class FakeResponse:
    """A response whose body is fed by the test; without `content`, its end has not arrived."""

    def __init__(
        self,
        status: int = 200,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        content_type: str | None = "text/event-stream",
    ) -> None:
        loop = asyncio.get_running_loop()
        self.status = status
        headers = {"Content-Type": content_type, **(headers or {})} if content_type else headers or {}
        self.headers = CIMultiDict(headers)
        self.raw_headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
        protocol = BaseProtocol(loop)
        protocol.connection_made(asyncio.Transport())
        self.content = aiohttp.StreamReader(protocol, 2**16, loop=loop)
        self.state = "open"
        if content is not None:
            self.content.feed_data(content)
            self.content.feed_eof()

    def close(self) -> None:
        self.state = "closed"

    def release(self) -> None:
        self.state = "released"


class FakeSession:
    """Gives these responses, or raises these errors, one for each request; `requests` holds what was sent.

    `reused`: for each request, whether it is sent on a kept connection; by default on a new one.
    """

    def __init__(self, *outcomes: FakeResponse | Exception, reused: tuple[bool, ...] = ()) -> None:
        self.outcomes = list(outcomes)
        self.reused = list(reused)
        self.requests: list[SimpleNamespace] = []

    async def request(self, method: str, url: yarl.URL, *, trace_request_ctx: dict[str, float], **options: Any) -> Any:
        if self.reused and self.reused.pop(0):
            trace_request_ctx["reused_at"] = asyncio.get_running_loop().time()
        self.requests.append(SimpleNamespace(method=method, url=url, **options))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
