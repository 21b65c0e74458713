"""Decoder of a response's text where the stream can be resumed: each part of it comes with its place in the response.

The model service numbers the events of a response and replays those after any of them. Text that arrived together goes
out together, with the number of the last event in it: whoever goes on after that number misses nothing and gets
nothing twice. Source: OpenAI's API reference, "Responses", `starting_after`; guide "Background mode".
"""

import json
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from relay.problems import UPSTREAM_ERROR
from relay.streaming.events import Done, Event, Failed, Position, ResumableReasoning, ResumableText
from relay.wires.decoding import UNREADABLE, Output, joined, valid_utf8
from relay.wires.responses_decoders import ANNOUNCED, RESPONSE_ID, Response, ResponseEvent
from relay.wires.responses_text import TEXT_DONE, ResponseTextDecoder

CANCELLED: Final = "cancelled"  # the finish reason of an answer that was stopped


class _Place(Struct, gc=False):
    """Where an event is in its response."""

    sequence_number: int | None = None
    output_index: int = 0
    summary_index: int = 0
    content_index: int = 0


class _Part(Struct, gc=False):
    """What a part of the output is."""

    type: str = ""


_decode_place: Final = msgspec.json.Decoder(_Place).decode
_NUMBERS: Final = ("sequence_number", "output_index", "summary_index", "content_index")
_CONTENT_PART: Final = b"response.content_part.added"
_REASONING_PART: Final = b"response.reasoning_summary_part.added"
_UNNUMBERED: Final = "an event of the model service's answer has no sequence number, so that it can't be resumed"


class ResumableTextDecoder(ResponseTextDecoder):
    """Decodes the event stream of a response, or the part of it after an event, into text that can be resumed.

    `response_id` and `after` are those of the event after which the stream begins; -1: at the response's beginning.
    `has_output`: whether this stream has brought any output; `ended`: whether its body came to its end.
    """

    def __init__(self, *, reasoning: bool, response_id: str | None = None, after: int = -1) -> None:
        super().__init__(reasoning=reasoning)
        self.id = response_id
        self.event_id = b"" if response_id is None or after < 0 else _event_id(response_id, after)
        self.has_output = False
        self.ended = False
        self._received = False
        self._output: _ResumableOutput = _ResumableOutput()
        # Where the stream begins midway, a part of the output may have begun before it. Of such a part the closing
        # event, which has all of its text, brings nothing; a part whose beginning is in this stream is read as ever.
        self._midway = after > 0
        self._text_announced = False
        if self._midway:
            self._in_text = self._in_reasoning = True
            self._read = self._read | ANNOUNCED

    @property
    def empty(self) -> bool:
        """Whether nothing has come that could be an event or a document."""
        return not self._received and not self._start.strip()

    def end(self) -> list[Event]:
        self.ended = True
        return super().end()

    def _read_events(self, payloads: list[bytes]) -> Done | Failed | None:
        self._received = self._received or any(not data.startswith(b"[DONE]") for data in payloads)
        return super()._read_events(payloads)

    def _take(self, kind: bytes, data: bytes, event: ResponseEvent) -> Failed | None:
        if kind not in self._read:
            return None
        known = bool(self.event_id)
        place = _place(data)
        if not self._move_to(place):
            return self._failed(_UNNUMBERED)
        if not known:
            self._output.add_position()
        if self._midway and kind in ANNOUNCED:
            self._begin_part(kind, place, event)
        elif kind in TEXT_DONE:
            self._text_announced = False
        return super()._take(kind, data, event)

    def _move_to(self, place: _Place) -> bool:
        """Note where the event that is read now is; False where that is not known."""
        if place.sequence_number is None or self.id is None or not RESPONSE_ID.fullmatch(self.id):
            return False
        self.event_id = self._output.event_id = _event_id(self.id, place.sequence_number)
        return True

    def _begin_part(self, kind: bytes, place: _Place, event: ResponseEvent) -> None:
        """A part of the output begins in this stream, or an item, which has its parts announced, too."""
        if kind == _CONTENT_PART and msgspec.json.decode(event.part, type=_Part).type != "reasoning_text":
            self._in_text, self._text_announced = False, True
        elif kind in (_CONTENT_PART, _REASONING_PART):
            self._in_reasoning = False
            # Reasoning comes first: any part of it but the very first one has one before it.
            later = place.output_index > 0 or place.summary_index > 0 or place.content_index > 0
            self._reasoned = self._reasoned or later

    def _add_text(self, string: Raw) -> Failed | None:
        before = self.deltas
        failed = super()._add_text(string)
        if self.deltas != before:
            self._output.text_id = self._output.event_id
            self.has_output = True
        return failed

    def _add_reasoning(self, string: Raw) -> None:
        super()._add_reasoning(string)
        self.has_output = True

    def _ended(self, kind: bytes, data: bytes, response: Response) -> Done | Failed | None:
        if not self._move_to(_place(data)):
            return self._failed(_UNNUMBERED)
        ended = super()._ended(kind, data, response)
        self._output.add_position()
        return ended

    def _read_output(self, output: Raw) -> None:
        """Only where none of it was sent before: where the text of the answer was announced here, and has not come."""
        if not self._midway or self._text_announced:
            super()._read_output(output)

    def _done(self, response: Response, ending: str) -> Done | Failed:
        if (self.finish_reason or ending) == CANCELLED:
            self.finish_reason = CANCELLED
            return Done(CANCELLED, self.model, self.usage, self.id, closed=True)
        return super()._done(response, ending)

    def _read_document(self, document: bytes) -> Failed:
        return Failed(UPSTREAM_ERROR, "the model service sent a document in place of numbered events", self.usage)


class _ResumableOutput(Output):
    """Output with its place in the response. `event_id`: that of the event that is read now; `text_id`: that of the
    last event with text."""

    def __init__(self) -> None:
        super().__init__()
        self.event_id = b""
        self.text_id = b""

    def add_position(self) -> None:
        self._end_text()
        self._events.append(Position(b'""', self.event_id))

    def add_reasoning(self, string: bytes) -> None:
        self._end_text()
        self._events.append(ResumableReasoning(valid_utf8(string), self.event_id))

    def _end_text(self) -> None:
        if self.strings:
            self._events.append(ResumableText(joined(self.strings), self.text_id))
            self.strings = []


def _event_id(response_id: str, number: int) -> bytes:
    return f"{response_id}.{number}".encode()


def _place(data: bytes) -> _Place:
    try:
        return _decode_place(data)
    except UNREADABLE:
        document: Any = json.loads(data.decode(errors="replace"))
        numbers = {name: document.get(name) for name in _NUMBERS}
        return _Place(**{name: number for name, number in numbers.items() if type(number) is int})
