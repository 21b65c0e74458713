"""The model service of the benchmark: it sends bytes that were prepared in advance, so that it is not what is measured.

The prompt contains the pace of the answer (`Plan`). The first token is the time at which it was due, from which the
load generator computes the delay of each token.
"""

import argparse
import asyncio
import random
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, cast

from local.model_service.steps import DONE, Event, Token, sse_frame
from local.model_service.wires.chat_completions import ChatReply, Choice

_MODEL: Final = "gpt-5.4-mini-2026-03-17"
_VOCABULARY: Final = 4096  # tokens; a longer answer repeats them
_WORDS: Final = (
    " the", " of", " and", " a", " stream", " token", ",", ".", " model", " answer", "ing", " is", " quick", " brown",
    " fox", " jumps", " grün", "—", " 東京", " 🦊", ' "so"', "\n\n", " back\\slash", " naïve", " it", " in", " that",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """The pace of an answer of `tokens`: `burst` of them together every `every` seconds (0: as fast as possible)."""

    tokens: int
    every: float = 0.0
    burst: int = 1

    @property
    def prompt(self) -> str:
        """The prompt that contains the plan."""
        return f"plan {self.tokens} {self.every:g} {self.burst} end"

    @classmethod
    def parse(cls, request: bytes) -> "Plan":
        """The plan in a request."""
        found = re.search(rb"plan (\d+) ([0-9.e-]+) (\d+) end", request)
        if found is None:
            raise ValueError("there is no plan in the request")
        return cls(int(found[1]), float(found[2]), int(found[3]))


@cache
def vocabulary() -> tuple[str, ...]:
    """The tokens of every answer, in order."""
    dice = random.Random(1)
    return tuple(dice.choice(_WORDS) for _ in range(_VOCABULARY))


def first_token(due: float) -> str:
    """The first token of an answer: the time at which it was due, in seconds of the monotonic clock."""
    return f"{due:.6f} "


def text(tokens: int) -> str:
    """The text of an answer after its first token; `tokens` includes the first one."""
    others = tokens - 1
    return "".join(vocabulary()) * (others // _VOCABULARY) + "".join(vocabulary()[: others % _VOCABULARY])


class EncodedAnswers:
    """The bytes of answers; `frame` is applied to each event."""

    def __init__(self, frame: Callable[[bytes], bytes]) -> None:
        self._reply = ChatReply(model=_MODEL, choices=[Choice((), "stop")], prompt_tokens=17, include_usage=True)
        self._reply.id, self._reply.created = "chatcmpl-CkT3v0mJqXHk2sVb9fYdLrZ8nW1uP", 1767225600
        self._frame = frame
        self.tokens = tuple(self.token(token) for token in vocabulary())
        self.before = self._event(self._reply.prompt_filter()) + self._event(self._reply.role(0))
        self.after = b"".join(map(self._event, (self._reply.finish(0), self._reply.usage_event(), DONE)))

    def _event(self, event: Event) -> bytes:
        return self._frame(sse_frame(event.payload))

    def token(self, text: str) -> bytes:
        """The bytes of one token."""
        return self._event(Event("content", self._reply.token(Token(text))))

    def answer(self, due: float, tokens: int) -> bytes:
        """The bytes of a complete answer."""
        return self.before + self.token(first_token(due)) + self.tokens_between(0, tokens - 1) + self.after

    def tokens_between(self, begin: int, end: int) -> bytes:
        """The bytes of the tokens from `begin` to `end`, counted without the first one."""
        begin, end = begin % _VOCABULARY, begin % _VOCABULARY + end - begin
        tokens = self.tokens[begin:end]
        while end > _VOCABULARY:
            end -= _VOCABULARY
            tokens += self.tokens[:end]
        return b"".join(tokens)


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


@cache
def wire() -> EncodedAnswers:
    """The bytes as they are sent: each event in an HTTP chunk of its own, as Azure sends them."""
    return EncodedAnswers(_chunk)


@cache
def body() -> EncodedAnswers:
    """The bytes as an HTTP client receives them, without chunks."""
    return EncodedAnswers(bytes)


_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache\r\napim-request-id: 7e3c9f1e-2f4b-4d8a-9a55-5ad7d5b7d3a1\r\n"
    b"x-ms-region: Sweden Central\r\nx-ratelimit-remaining-requests: 9999\r\nx-ratelimit-remaining-tokens: 999999\r\n"
    b"strict-transport-security: max-age=31536000; includeSubDomains\r\nx-content-type-options: nosniff\r\n\r\n"
)
_FLOOD_WRITE: Final = 64  # tokens in one write of a flood: about 25 kB
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class _Connection(asyncio.Protocol):
    """One connection; serves one request at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._task: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = asyncio.get_running_loop()
        self._full = False
        self._flooding = False

    def connection_lost(self, _error: Exception | None) -> None:
        self._flooding = False
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if found and length and len(body) >= int(length[1]):
            self._received = b""
            self._begin(Plan.parse(body))

    def _begin(self, plan: Plan) -> None:
        self._plan = plan
        self._due = self._loop.time()
        self._sent = min(plan.burst, plan.tokens)
        begin = _HEAD + wire().before + wire().token(first_token(self._due)) + wire().tokens_between(0, self._sent - 1)
        if plan.every:
            self._transport.write(begin)
            self._schedule()
        elif plan.tokens <= _FLOOD_WRITE:
            self._transport.write(
                begin + wire().tokens_between(self._sent - 1, plan.tokens - 1) + wire().after + b"0\r\n\r\n"
            )
        else:
            self._transport.write(begin)
            self._flooding = True
            self._flood()

    def _schedule(self) -> None:
        self._due += self._plan.every
        self._task = self._loop.call_at(self._due, self._next)

    def _next(self) -> None:
        end = min(self._sent + self._plan.burst, self._plan.tokens)
        content = wire().tokens_between(self._sent - 1, end - 1)
        self._sent = end
        if end < self._plan.tokens:
            self._transport.write(content)
            self._schedule()
        else:
            self._transport.write(content + wire().after + b"0\r\n\r\n")

    def _flood(self) -> None:
        while self._flooding and not self._full:
            end = min(self._sent + _FLOOD_WRITE, self._plan.tokens)
            content = wire().tokens_between(self._sent - 1, end - 1)
            self._sent = end
            if end == self._plan.tokens:
                self._flooding = False
                content += wire().after + b"0\r\n\r\n"
            self._transport.write(content)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flood()


async def _serve() -> None:
    wire()
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    # stdin closes when the process that started this one ends.
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    asyncio.run(_serve())
