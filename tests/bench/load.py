"""The load generator: it does as little as possible while the clock runs, and verifies every answer afterwards."""

import asyncio
import json
import re
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Final, cast

import httptools

from local.functions_host import Function, Worker
from tests.bench import upstream
from tests.bench.upstream import Plan

_LAST_CHUNK: Final = b"0\r\n\r\n"
_IDLE_LIMIT: Final = 3.0  # seconds; uvicorn closes a connection that was idle for 5


class WrongAnswerError(Exception):
    """An answer is not, byte for byte, what the model service sent."""


@dataclass(slots=True)
class RawAnswer:
    """One answer: its reads, each with its time in seconds of the monotonic clock."""

    plan: Plan
    requested_at: float = 0.0
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    def bodies(self) -> Iterator[tuple[float, bytes]]:
        """The same without HTTP; raises `WrongAnswerError` if it is not a complete response with status 200."""
        collector = _BodyCollector()
        parser = httptools.HttpResponseParser(collector)
        for when, data in self.reads:
            try:
                parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise WrongAnswerError(f"not HTTP: {error}") from None
            if collector.parts:
                yield when, b"".join(collector.parts)
                collector.parts.clear()
        if not collector.complete or parser.get_status_code() != 200:
            raise WrongAnswerError(f"not a complete response: {self.reads[-1:]!r}")


class _BodyCollector:
    """The receiver of httptools' callbacks."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


class Connection(asyncio.Protocol):
    """One connection; carries one request at a time."""

    def __init__(self) -> None:
        self.answer: RawAnswer | None = None
        self.lost = False
        self.idle_since = 0.0
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        if self.answer is not None:
            self._finish()

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None:
            return
        if not answer.reads:
            self._begun.set_result(None)
            if not data.startswith(b"HTTP/1.1 200"):
                self.transport.abort()
        answer.reads.append((time.monotonic(), data))
        self._end = data[-5:] if len(data) >= 5 else (self._end + data)[-5:]
        if self._end == _LAST_CHUNK:
            self._finish()

    def _finish(self) -> None:
        self.answer = None
        if not self._begun.done():
            self._begun.set_result(None)
        if not self.done.done():
            self.done.set_result(None)

    def send(self, request: bytes, plan: Plan) -> RawAnswer:
        """Send a request; `begun` and `done` are the progress of its answer."""
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        answer = self.answer = RawAnswer(plan, time.monotonic())
        self.transport.write(request)
        return answer

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not (self.lost or self.transport.is_closing()) and time.monotonic() - self.idle_since < _IDLE_LIMIT

    @property
    def begun(self) -> asyncio.Future[None]:
        """Done when the first bytes have arrived."""
        return self._begun


class Target:
    """What the load goes to: an app in its worker, at the worker's own web server, or the model service directly."""

    def __init__(self, name: str, address: tuple[str, int], worker: Worker | None, parse: "ParseAnswer") -> None:
        self.name = name
        self.parse = parse
        self._address = address
        self._worker = worker
        self._function: Function | None = None
        if worker is not None:
            self._function = next(it for it in worker.functions if it.trigger.get("route") == "stream")
        self._idle: list[Connection] = []

    async def begin(self, plan: Plan) -> tuple[RawAnswer, Connection]:
        """Send a request."""
        while self._idle and not self._idle[-1].usable:
            self._idle.pop().transport.abort()
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, *self._address)
        if self._worker is None or self._function is None:
            body = json.dumps({"stream": True, "messages": [{"role": "user", "content": plan.prompt}]})
            return connection.send(_request("/openai/v1/chat/completions", body, ""), plan), connection
        invocation = str(uuid.uuid4())
        request = _request("/stream", json.dumps({"input": plan.prompt}), f"x-ms-invocation-id: {invocation}\r\n")
        answer = connection.send(request, plan)
        invoked = self._worker.invoke(invocation, self._function)
        invoked.finished.add_done_callback(lambda _: invoked.close())
        return answer, connection

    async def request(self, plan: Plan) -> RawAnswer:
        """Send a request and wait for the end of its answer."""
        answer, connection = await self.begin(plan)
        await connection.done
        self.keep(connection)
        return answer

    def keep(self, connection: Connection) -> None:
        """Keep the connection for another request."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections that were kept."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()


def _request(path: str, body: str, headers: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


# Parsers of the targets' answers: the text, and how many tokens had arrived at each time.


@cache
def _token_ends() -> list[int]:
    """The length of the text, in bytes, up to the end of each token but the first."""
    return list(accumulate(len(token.encode()) for token in upstream.vocabulary()))


def _tokens_in(length: int) -> int:
    """The number of whole tokens in a text of this many bytes, without the first one."""
    rounds, remainder = divmod(length, _token_ends()[-1])
    return rounds * len(_token_ends()) + bisect_right(_token_ends(), remainder)


class ParsedAnswer:
    """One verified answer: `due`, when its first token was due, and `arrived`, how many tokens had arrived when."""

    def __init__(self, answer: RawAnswer) -> None:
        self.plan = answer.plan
        self.requested_at = answer.requested_at
        self.due = 0.0
        self.arrived: list[tuple[float, int]] = []
        self._parse(answer)

    def _parse(self, answer: RawAnswer) -> None:
        raise NotImplementedError

    def tokens_between(self, begin: float, end: float) -> int:
        """The number of tokens that arrived between the two times."""
        before = max((tokens for when, tokens in self.arrived if when < begin), default=0)
        until = max((tokens for when, tokens in self.arrived if when < end), default=0)
        return until - before

    def delays(self, begin: float, end: float) -> list[float]:
        """The delay, in seconds, of each token that arrived between the two times."""
        delays: list[float] = []
        known = 0
        for when, tokens in self.arrived:
            if begin <= when < end:
                delays += [
                    when - (self.due + token // self.plan.burst * self.plan.every) for token in range(known, tokens)
                ]
            known = tokens
        return delays

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the request to the first token."""
        return next(when for when, tokens in self.arrived if tokens) - self.requested_at


class _TextOfAnswer(ParsedAnswer):
    """An answer whose text is compared, and whose tokens are counted by its length."""

    def _extract(self, received: bytes) -> tuple[bytes, bytes]:
        """The text in what was received, and the bytes that can't be parsed yet."""
        raise NotImplementedError

    def _end(self, remaining: bytes) -> None:
        raise NotImplementedError

    def _parse(self, answer: RawAnswer) -> None:
        remaining, texts, length, first = b"", [], 0, 0
        for when, body in answer.bodies():
            text, remaining = self._extract(remaining + body)
            if text:
                texts.append(text)
                length += len(text)
                if not first and (found := re.match(rb"[\d.]+ ", b"".join(texts))):
                    first, self.due = found.end(), float(found[0])
            self.arrived.append((when, 1 + _tokens_in(length - first) if first else 0))
        self._end(remaining)
        if b"".join(texts) != (upstream.first_token(self.due) + upstream.text(self.plan.tokens)).encode():
            raise WrongAnswerError("the text is not that of the model service")


class RelayAnswer(_TextOfAnswer):
    """Server-Sent Events of `/stream`, with exactly one `done` at the end."""

    done = 0

    def _extract(self, received: bytes) -> tuple[bytes, bytes]:
        *events, remaining = received.split(b"\n\n")
        text = ""
        for event in events:
            if event.startswith(b"data: ") and not self.done:
                text += json.loads(event[6:])["text"]
            elif event.startswith(b"event: done\ndata: "):
                self.done += 1
            elif event != b": ping":
                raise WrongAnswerError(f"an unexpected event: {event[:200]!r}")
        return text.encode(), remaining

    def _end(self, remaining: bytes) -> None:
        if self.done != 1 or remaining:
            raise WrongAnswerError("the answer does not end with one done")


class TextAnswer(_TextOfAnswer):
    """The plain text, as the usual way sends it."""

    def _extract(self, received: bytes) -> tuple[bytes, bytes]:
        return received, b""

    def _end(self, remaining: bytes) -> None:
        pass


class UpstreamAnswer(ParsedAnswer):
    """The model service's own bytes."""

    def _parse(self, answer: RawAnswer) -> None:
        content = bytearray()
        for when, body in answer.bodies():
            counted_until = max(0, len(content) - 8)
            content += body
            counted = self.arrived[-1][1] if self.arrived else 0
            self.arrived.append((when, counted + content.count(b'"obfuscat', counted_until)))
        found = re.search(rb'"content":"(\d[\d.]*) "', content)
        if found is None:
            raise WrongAnswerError("there is no first token")
        self.due = float(found[1])
        if content != upstream.body().answer(self.due, self.plan.tokens):
            raise WrongAnswerError("the bytes are not those of the model service")


type ParseAnswer = Callable[[RawAnswer], ParsedAnswer]
