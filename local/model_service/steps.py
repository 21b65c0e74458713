"""A response as a list of steps. A wire makes the list of a healthy response; a fault turns it into another list."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

FOREVER = math.inf


@dataclass(frozen=True, slots=True)
class Headers:
    """Send the status line and the headers."""


type TokenKind = Literal["text", "arguments", "reasoning", "refusal"]


@dataclass(frozen=True, slots=True)
class Token:
    """Send one token, when it is due.

    `choice`: the choice, or the output item, that it belongs to; `part`: which of the tool calls of a choice, or of the
    parts of an output item's reasoning summary.
    """

    text: str
    choice: int = 0
    kind: TokenKind = "text"
    part: int = 0


# What an event is to the faults, on any wire: "role" begins a choice or an output item, "close" ends an output item,
# "finish" ends the answer, "done" marks the end of the stream.
type EventKind = Literal["begin", "filter", "role", "content", "close", "finish", "usage", "done", "odd"]


@dataclass(frozen=True, slots=True)
class Event:
    """Send one server-sent event; `name` is its event type, none where it is empty."""

    kind: EventKind
    payload: bytes
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class Raw:
    """Send bytes as they are, in no event."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Send nothing for some seconds, or never again (`FOREVER`)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing until this has happened."""

    until: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection: close it, or reset it so that what was not received yet may be lost."""

    reset: bool = False


type Step = Headers | Token | Event | Raw | Pause | Wait | Cut
DONE = Event("done", b"[DONE]")


class Frame(Protocol):
    """How an event becomes bytes: from its payload and its event type, if it has one."""

    def __call__(self, payload: bytes, name: bytes = b"", /) -> bytes: ...


def sse_frame(payload: bytes, name: bytes = b"", /) -> bytes:
    """One event as the service sends it."""
    return b"event: %b\ndata: %b\n\n" % (name, payload) if name else b"data: %b\n\n" % payload
