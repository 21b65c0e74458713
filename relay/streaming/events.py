"""What passes from the decoder of an answer to its encoder: `Text`, `Reasoning` or `Verbatim`, then one `Done` or
`Failed`."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.problems import Problem
from relay.usage import Usage


@dataclass(frozen=True, slots=True)
class Text:
    """Text of the answer, as one JSON string in UTF-8, its quotation marks included.

    All text that arrived together is one `Text`. The string may end in the first half of a surrogate pair, the second
    half being in the next one: the decoded strings, concatenated code unit by code unit, are the answer.
    """

    json: bytes


@dataclass(frozen=True, slots=True)
class Reasoning(Text):
    """A part of the summary of a model's reasoning, or of the reasoning itself, as one JSON string.

    It is no part of the answer, and output only where the caller is sent it at once: until then another backend may
    take over.
    """


@dataclass(frozen=True, slots=True)
class Verbatim(Text):
    """Upstream events to pass on unchanged: the data of each, in `events`; `json` is empty.

    `usage`: the event carries the usage and nothing else.
    """

    events: list[bytes]
    usage: bool = False


# Of a stream that can be resumed. `event_id` is RESPONSE.N: the id of the response and the sequence number of the
# upstream event after which to go on. It is in ASCII, without white space.


@dataclass(frozen=True, slots=True)
class ResumableText(Text):
    """Text, and where to go on after it."""

    event_id: bytes


@dataclass(frozen=True, slots=True)
class ResumableReasoning(Reasoning):
    """A part of the reasoning, and where to go on after it."""

    event_id: bytes


@dataclass(frozen=True, slots=True)
class Position(Reasoning):
    """Where to go on from here, after events without output; `json` is an empty string."""

    event_id: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete; `document` is the whole response where no stream was requested from the upstream.

    `closed`: nothing of the answer can follow, not even its usage.
    """

    finish_reason: str | None
    model: str | None
    usage: Usage | None
    id: str | None
    content_filter: dict[str, Any] | None = None
    document: bytes | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Continued(Done):
    """The stream ends and its answer goes on: the caller goes on after the last event that was sent."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer ended without being complete; `reason` is for the log, never for the caller.

    `error` is the upstream's error as it came, where there was one; it goes nowhere.
    `event` is the data of the event by which the model service ended it, where that is passed on, with the error as
    the problem has it.
    """

    problem: Problem
    reason: str
    usage: Usage | None = None
    error: object = field(default=None, repr=False, compare=False)
    event: bytes | None = field(default=None, repr=False)


Event = Text | Done | Failed


class AnswerTooLongError(Exception):
    """An answer that is sent as a whole has grown beyond what is collected for it; the text is for the caller."""


class Decoder(Protocol):
    """Reads the bytes of one answer. After the one `Done` or `Failed` it yields nothing more but a usage that follows a
    `Done` without one; it is in `usage` then, too.

    `deltas` counts the deltas that carried output: the record estimates the output tokens by it when no usage was
    received. `progress` changes with each part of the answer that arrives, and not with what only keeps the connection
    open.
    """

    id: str | None
    model: str | None
    finish_reason: str | None
    usage: Usage | None
    deltas: int
    progress: int

    @property
    def complete(self) -> bool:
        """Whether the answer is complete, whatever follows."""
        ...

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete; text that arrived together is one event."""
        ...

    def end(self) -> list[Event]:
        """The last events, given that the body ended here; the last one is the terminal one."""
        ...

    def cut(self, reason: str) -> list[Event]:
        """The same, given that nothing more can be read, for this reason."""
        ...


class Encoder(Protocol):
    """Writes the events of one stream in the format that its caller asked for.

    `whole`: nothing goes out before the end, so that a failure keeps its HTTP status. `breaks_off`: the transfer is
    broken off after the end of a failed answer, for clients that would otherwise take it for a complete one. `ping`:
    the bytes that fill a silence; empty where the format has no place for them.
    """

    media_type: str
    whole: bool
    breaks_off: bool
    ping: bytes

    def text(self, text: Text) -> bytes:
        """A part of the answer; raises `AnswerTooLongError`."""
        ...

    def done(self, done: Done) -> bytes | None:
        """The end of a complete answer; None where only breaking the connection can express it (`Continued`)."""
        ...

    def failed(self, failed: Failed, request_id: str) -> bytes | None:
        """The end of a failed answer; None where only breaking the connection can express it."""
        ...

    def restart(self) -> None:
        """Drop what is collected of an answer that failed before its first output, since another one may follow."""
        return
