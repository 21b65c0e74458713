"""What the decoders of all wires share: how an answer begins, documents, and the errors in them."""

import json
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from relay.problems import UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, Problem
from relay.streaming.events import Done, Event, Failed, Reasoning, Text
from relay.upstream.ending import Judgement
from relay.upstream.failures import classify, find_error
from relay.upstream.sse import NamedEvent, SSEDecoder
from relay.usage import Usage

MAX_NAME_LENGTH: Final = 256  # characters kept of the upstream's own names
BOM: Final = b"\xef\xbb\xbf"
# A damaged event has at least one of these in it, and a word that is no JSON has none.
OF_JSON: Final = frozenset(b'{}[]"')
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # raised for what is not JSON to msgspec

_BEFORE_JSON: Final = BOM + b" \t\r\n"
_FIRST_BYTES: Final = 1024  # that are looked at to tell what was sent


class AnswerDecoder:
    """What is known of an answer, for its record: all of it at its end."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.deltas = 0
        self.progress = 0


class EventStreamDecoder(AnswerDecoder):
    """What the decoders of an event stream have in common.

    The first bytes tell what was sent, whatever it is called: events, one JSON document, or a page of HTML. `choices`:
    how many answers were asked for.
    """

    def __init__(self, choices: int = 1) -> None:
        super().__init__()
        self._judgement = Judgement(choices)
        self._sse = SSEDecoder()
        self._in_events = False  # the answer is known to be an event stream
        self._start = bytearray()  # what was received of an answer that is none, or not known to be one
        self._at_end = False  # the body has ended: its last event may be cut
        self._terminal: Done | Failed | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete; what arrived together is one event."""
        raise NotImplementedError

    def _ended_by(self, terminal: Done | Failed) -> list[Event]:
        """What is to be passed on of the answer that ends here, and the terminal event."""
        raise NotImplementedError

    def _too_long(self, size: int) -> Failed | None:
        """The failure that a document of so many bytes is, if it is longer than is taken."""
        raise NotImplementedError

    def _feed_start(self, chunk: bytes) -> list[Event]:
        self._start += chunk
        match _beginning_of(self._start):
            case "document":
                self.progress += 1
                too_long = self._too_long(len(self._start))
                return [] if too_long is None else self._ended_by(too_long)
            case "page":
                return self._ended_by(self._failed("the model service's answer is a page of HTML"))
            case None:
                return []
        content = bytes(self._start)
        self._start.clear()
        self._in_events = True
        return self.feed(content)

    def _error(self, error: dict[str, Any]) -> Failed:
        """An error in the answer."""
        return failure_by(error, self.usage)

    def _failed(self, reason: str, problem: Problem = UPSTREAM_ERROR) -> Failed:
        return Failed(problem, reason, self.usage)


class Output:
    """The text of an answer and its reasoning that were read since the last time, in order, as JSON strings.

    `strings`: the text since the last reasoning; what arrived together goes out together.
    """

    def __init__(self) -> None:
        self.strings: list[bytes] = []
        self._events: list[Event] = []

    def add_reasoning(self, string: bytes) -> None:
        self._end_text()
        self._events.append(Reasoning(valid_utf8(string)))

    def take(self) -> list[Event]:
        self._end_text()
        events, self._events = self._events, []
        return events

    def _end_text(self) -> None:
        if self.strings:
            self._events.append(Text(joined(self.strings)))
            self.strings = []


def joined(strings: list[bytes]) -> bytes:
    """The JSON strings as one: concatenated, without the quotation marks between them."""
    if len(strings) == 1:
        return strings[0]
    return b'"%b"' % b"".join([string[1:-1] for string in strings])


class WholeDocumentDecoder(AnswerDecoder):
    """What the decoders of a document have in common: they collect it, and look at it at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._document = bytearray()

    @property
    def complete(self) -> bool:
        """Never before the end of the document."""
        return False

    def feed(self, chunk: bytes) -> list[Event]:
        """No event before the end, unless the document is too long."""
        self._document += chunk
        if not chunk.isspace():
            self.progress += 1
        too_long = self._too_long(len(self._document))
        return [] if too_long is None else [too_long]

    def end(self) -> list[Event]:
        """What the document is: one terminal event."""
        raise NotImplementedError

    def cut(self, reason: str) -> list[Event]:
        """The connection broke; a document that is whole all the same counts."""
        (terminal,) = self.end()
        if isinstance(terminal, Failed) and terminal.error is None:
            terminal = Failed(UPSTREAM_INTERRUPTED, reason)
        return [terminal]

    def _too_long(self, size: int) -> Failed | None:
        """The failure that a document of so many bytes is, if it is longer than is taken."""
        raise NotImplementedError


def _beginning_of(received: bytearray) -> Literal["document", "page", "events"] | None:
    """What the answer is that begins with these bytes; None while they do not tell."""
    start = bytes(received[:_FIRST_BYTES]).lstrip(_BEFORE_JSON)
    if start[:1] in (b"{", b"["):
        return "document"
    if start[:1] == b"<":
        return "page"
    return "events" if start or len(received) >= _FIRST_BYTES else None


def is_document(content: bytes) -> bool:
    """Whether the content begins as JSON that holds something does."""
    return content[:_FIRST_BYTES].lstrip(_BEFORE_JSON)[:1] in (b"{", b"[")


def is_event_stream(content: bytes) -> bool:
    """Whether the content begins as an event stream does, where a document was asked for."""
    start = content[:_FIRST_BYTES].lstrip(_BEFORE_JSON)
    return start.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))


def without_marker(content: bytes) -> bytes:
    """The document without the marker of a stream's end that some servers send after it."""
    if content.rstrip().endswith(b"[DONE]"):
        document, _, marker = content.rpartition(b"data:")
        if marker.strip() == b"[DONE]" and document.rstrip().endswith((b"}", b"]")):
            return document.rstrip()
    return content


def event_name(data: bytes) -> bytes:
    """The event's own type, as the stream names it, in lower case; empty where it has none."""
    return data.name.lower() if isinstance(data, NamedEvent) else b""


def short_name(value: object) -> str | None:
    """One of the upstream's own names, as much of it as is kept; None where it is no text."""
    return value[:MAX_NAME_LENGTH] if isinstance(value, str) else None


def valid_utf8(text: bytes) -> bytes:
    """The same with U+FFFD for bytes that are not UTF-8, as the standard decodes an event stream."""
    if text.isascii():
        return text
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode(errors="replace").encode()
    return text


def as_raw(value: object) -> Raw:
    """The value as msgspec keeps JSON that is not decoded yet."""
    return Raw(json.dumps(value).encode("ascii"))


def failure_by(error: object, usage: Usage | None = None) -> Failed:
    """The failure of an answer by the error in it."""
    refusal = classify(error)
    return Failed(refusal.problem, refusal.reason, usage, error)


def failure_in(content: bytes) -> Failed | None:
    """The failure that a document is, if it is an error in whatever shape."""
    try:
        error = find_error(json.loads(content.decode(errors="replace")))
    except (ValueError, RecursionError):
        return None
    return None if error is None else failure_by(error)
