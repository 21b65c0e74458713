"""The callers of the benchmark: as little work as possible while the clock runs, every answer verified afterwards."""

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

from local.worker_client import Function, Worker
from tests.bench import upstream
from tests.bench.upstream import Plan

_LAST_CHUNK: Final = b"0\r\n\r\n"
_KEPT: Final = 3.0  # seconds; uvicorn closes a connection that was idle for 5


class WrongAnswerError(Exception):
    """An answer is not, byte for byte, what the model service said."""


@dataclass(slots=True)
class Heard:
    """One answer: when each read came, in seconds of the monotonic clock, and its bytes."""

    plan: Plan
    asked: float = 0.0
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    def bodies(self) -> Iterator[tuple[float, bytes]]:
        """The same without HTTP; raises `WrongAnswerError` when it is no complete answer with status 200."""
        collector = _Body()
        parser = httptools.HttpResponseParser(collector)
        for when, data in self.reads:
            try:
                parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise WrongAnswerError(f"not HTTP: {error}") from None
            if collector.pieces:
                yield when, b"".join(collector.pieces)
                collector.pieces.clear()
        if not collector.complete or parser.get_status_code() != 200:
            raise WrongAnswerError(f"no complete answer: {self.reads[-1:]!r}")


class _Body:
    """What httptools' parser tells to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


class Connection(asyncio.Protocol):
    """One connection; carries one request at a time."""

    def __init__(self) -> None:
        self.heard: Heard | None = None
        self.lost = False
        self.idle_since = 0.0
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        if self.heard is not None:
            self._finish()

    def data_received(self, data: bytes) -> None:
        heard = self.heard
        if heard is None:
            return
        if not heard.reads:
            self._begun.set_result(None)
            if not data.startswith(b"HTTP/1.1 200"):
                self.transport.abort()
        heard.reads.append((time.monotonic(), data))
        self._end = data[-5:] if len(data) >= 5 else (self._end + data)[-5:]
        if self._end == _LAST_CHUNK:
            self._finish()

    def _finish(self) -> None:
        self.heard = None
        if not self._begun.done():
            self._begun.set_result(None)
        if not self.done.done():
            self.done.set_result(None)

    def ask(self, head: bytes, plan: Plan) -> Heard:
        """Send a request; `begun` and `done` tell how far the answer is."""
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        heard = self.heard = Heard(plan, time.monotonic())
        self.transport.write(head)
        return heard

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not (self.lost or self.transport.is_closing()) and time.monotonic() - self.idle_since < _KEPT

    @property
    def begun(self) -> asyncio.Future[None]:
        """Done when the first bytes are here."""
        return self._begun


class Target:
    """What is asked: an app in its worker, at the worker's own web server, or the model service directly."""

    def __init__(self, name: str, address: tuple[str, int], worker: Worker | None, read: "Read") -> None:
        self.name = name
        self.read = read
        self._address = address
        self._worker = worker
        self._function: Function | None = None
        if worker is not None:
            self._function = next(it for it in worker.functions if it.trigger.get("route") == "stream")
        self._idle: list[Connection] = []

    async def begin(self, plan: Plan) -> tuple[Heard, Connection]:
        """Ask for an answer."""
        while self._idle and not self._idle[-1].usable:
            self._idle.pop().transport.abort()
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, *self._address)
        if self._worker is None or self._function is None:
            asked = json.dumps({"stream": True, "messages": [{"role": "user", "content": plan.prompt}]})
            return connection.ask(_request("/openai/v1/chat/completions", asked, ""), plan), connection
        invocation = str(uuid.uuid4())
        head = _request("/stream", json.dumps({"input": plan.prompt}), f"x-ms-invocation-id: {invocation}\r\n")
        heard = connection.ask(head, plan)
        self._worker.invoke(invocation, self._function, {}, "", "")
        return heard, connection

    async def ask(self, plan: Plan) -> Heard:
        """Ask for an answer and hear it to its end."""
        heard, connection = await self.begin(plan)
        await connection.done
        self.keep(connection)
        return heard

    def keep(self, connection: Connection) -> None:
        """Use the connection again."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Let go of the connections that are kept."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()


def _request(path: str, body: str, headers: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


# How the answer of each target is read: what it says, as it comes, in bytes of text and in tokens.


@cache
def _ends() -> list[int]:
    """How long the text is, in bytes, after each token but the first."""
    return list(accumulate(len(word.encode()) for word in upstream.vocabulary()))


def _tokens_in(length: int) -> int:
    """How many whole tokens a text of this many bytes has, without the first one."""
    rounds, rest = divmod(length, _ends()[-1])
    return rounds * len(_ends()) + bisect_right(_ends(), rest)


class Reading:
    """What one answer was: `due`, when its first token was, and when how many tokens had arrived."""

    def __init__(self, heard: Heard) -> None:
        self.plan = heard.plan
        self.asked = heard.asked
        self.due = 0.0
        self.arrived: list[tuple[float, int]] = []
        self._read(heard)

    def _read(self, heard: Heard) -> None:
        raise NotImplementedError

    def between(self, begin: float, end: float) -> int:
        """How many tokens came between the two times."""
        before = max((tokens for when, tokens in self.arrived if when < begin), default=0)
        until = max((tokens for when, tokens in self.arrived if when < end), default=0)
        return until - before

    def lateness(self, begin: float, end: float) -> list[float]:
        """How many seconds late each token was that came between the two times."""
        late: list[float] = []
        known = 0
        for when, tokens in self.arrived:
            if begin <= when < end:
                late += [
                    when - (self.due + token // self.plan.burst * self.plan.every) for token in range(known, tokens)
                ]
            known = tokens
        return late

    @property
    def first(self) -> float:
        """Seconds from the request to the first token."""
        return next(when for when, tokens in self.arrived if tokens) - self.asked

    @property
    def end(self) -> float:
        """When the last byte came."""
        return self.arrived[-1][0]


class _TextReading(Reading):
    """An answer whose text is compared, and counted by its length."""

    def _understand(self, received: bytes) -> tuple[bytes, bytes]:
        """The text in what was received, and what of it can't be understood yet."""
        raise NotImplementedError

    def _conclude(self, rest: bytes) -> None:
        raise NotImplementedError

    def _read(self, heard: Heard) -> None:
        rest, said, length, first = b"", [], 0, 0
        for when, body in heard.bodies():
            text, rest = self._understand(rest + body)
            if text:
                said.append(text)
                length += len(text)
                if not first and (found := re.match(rb"[\d.]+ ", b"".join(said))):
                    first, self.due = found.end(), float(found[0])
            self.arrived.append((when, 1 + _tokens_in(length - first) if first else 0))
        self._conclude(rest)
        if b"".join(said) != (upstream.first_token(self.due) + upstream.text(self.plan.tokens)).encode():
            raise WrongAnswerError("the words are not those of the model service")


class RelayReading(_TextReading):
    """Server-Sent Events of `/stream`, with exactly one `done` at the end."""

    done = 0

    def _understand(self, received: bytes) -> tuple[bytes, bytes]:
        *events, rest = received.split(b"\n\n")
        text = ""
        for event in events:
            if event.startswith(b"data: ") and not self.done:
                text += json.loads(event[6:])["text"]
            elif event.startswith(b"event: done\ndata: "):
                self.done += 1
            elif event != b": ping":
                raise WrongAnswerError(f"an odd event: {event[:200]!r}")
        return text.encode(), rest

    def _conclude(self, rest: bytes) -> None:
        if self.done != 1 or rest:
            raise WrongAnswerError("the answer does not end with one done")


class SeedReading(_TextReading):
    """The bare text."""

    def _understand(self, received: bytes) -> tuple[bytes, bytes]:
        return received, b""

    def _conclude(self, rest: bytes) -> None:
        pass


class WireReading(Reading):
    """The model service's own bytes."""

    def _read(self, heard: Heard) -> None:
        whole = bytearray()
        for when, body in heard.bodies():
            seen = max(0, len(whole) - 8)
            whole += body
            counted = self.arrived[-1][1] if self.arrived else 0
            self.arrived.append((when, counted + whole.count(b'"obfuscat', seen)))
        found = re.search(rb'"content":"(\d[\d.]*) "', whole)
        if found is None:
            raise WrongAnswerError("there is no first token")
        self.due = float(found[1])
        if whole != upstream.body().whole(self.due, self.plan.tokens):
            raise WrongAnswerError("the bytes are not those of the model service")


type Read = Callable[[Heard], Reading]
