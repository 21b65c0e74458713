"""The formats of a stream that can be resumed: those of `POST /stream`, with the place of each part in the response.

`event: continue` (in NDJSON: `"type":"continue"`) ends a stream whose answer goes on. Plain text has no place for
either: who resumes it names the bytes that were received.
"""

from dataclasses import replace
from typing import Final

import msgspec

from relay.streaming.events import (
    Continued,
    Done,
    Failed,
    Position,
    ResumableReasoning,
    ResumableText,
    Text,
)
from relay.wires.stream_encoders import NDJSONEncoder, PlainTextEncoder, SSEEncoder, encoder_for

_RETRY: Final = b"retry: 1000\n"  # milliseconds after which an EventSource connects again


type ResumableEncoder = ResumableSSEEncoder | ResumableNDJSONEncoder | ResumablePlainTextEncoder


class _Placed:
    """Where the caller is in the response: `event_id` is that of the event after which the stream begins; empty: the
    beginning of a new response."""

    def __init__(self, event_id: bytes) -> None:
        self._first = self._event_id = event_id

    @property
    def can_continue(self) -> bool:
        return bool(self._event_id)

    def restart(self) -> None:
        self._event_id = self._first


class ResumableSSEEncoder(_Placed, SSEEncoder):
    """Server-Sent Events with `id:` (WHATWG HTML, section 9.2.6), which an `EventSource` sends when it connects again.

    The id of a response is sent as soon as it is known, in a block without data, which is no event but sets the id.
    """

    def __init__(self, event_id: bytes = b"") -> None:
        super().__init__(event_id)
        self._head = _RETRY

    def text(self, text: Text) -> bytes:
        if isinstance(text, ResumableText | ResumableReasoning):
            self._event_id = text.event_id
            return self._framed(super().text(text))
        if isinstance(text, Position):
            begins = not self._event_id
            self._event_id = text.event_id
            return self._framed(b"\n") if begins else b""
        return b""

    def done(self, done: Done) -> bytes:
        if isinstance(done, Continued):
            return self._framed(b"event: continue\ndata: %b\n\n" % _continued(self._event_id))
        return self._framed(super().done(done))

    def failed(self, failed: Failed, request_id: str) -> bytes:
        return self._framed(super().failed(failed, request_id))

    def _framed(self, event: bytes) -> bytes:
        head, self._head = self._head, b""
        return b"%bid: %b\n%b" % (head, self._event_id, event) if self._event_id else head + event


class ResumableNDJSONEncoder(_Placed, NDJSONEncoder):
    """One JSON object a line, each with the member `id`."""

    def __init__(self, media_type: str, event_id: bytes = b"") -> None:
        _Placed.__init__(self, event_id)
        NDJSONEncoder.__init__(self, media_type)

    def text(self, text: Text) -> bytes:
        if isinstance(text, ResumableText | ResumableReasoning):
            self._event_id = text.event_id
            return self._with_id(super().text(text))
        if isinstance(text, Position):
            self._event_id = text.event_id
        return b""

    def done(self, done: Done) -> bytes:
        if isinstance(done, Continued):
            number = self._event_id.rpartition(b".")[2]
            return b'{"type":"continue","after":%b,"id":"%b"}\n' % (number, self._event_id)
        # The response's own id is the part of it before the dot.
        return super().done(replace(done, id=self._event_id.decode()))

    def failed(self, failed: Failed, request_id: str) -> bytes:
        return self._with_id(super().failed(failed, request_id))

    def _with_id(self, line: bytes) -> bytes:
        return b'%b,"id":"%b"}\n' % (line[:-2], self._event_id) if self._event_id else line


class ResumablePlainTextEncoder(PlainTextEncoder):
    """The text and nothing else, without its first `skipped` bytes, which the caller has."""

    can_continue = True  # by breaking off: the caller knows how many bytes there were

    def __init__(self, skipped: int = 0) -> None:
        super().__init__()
        self._skipped = skipped

    def text(self, text: Text) -> bytes:
        return self._rest(super().text(text))

    def done(self, done: Done) -> bytes | None:
        return None if isinstance(done, Continued) else self._rest(super().done(done) or b"")

    def _rest(self, content: bytes) -> bytes:
        skipped = min(self._skipped, len(content))
        self._skipped -= skipped
        return content[skipped:]


def resumable_encoder_for(accept: str | None, event_id: bytes = b"", skipped: int = 0) -> ResumableEncoder:
    """The encoder of a stream that can be resumed, for an `Accept` header; the stream begins after `event_id`."""
    encoder = encoder_for(accept)
    if isinstance(encoder, PlainTextEncoder):
        return ResumablePlainTextEncoder(skipped)
    if isinstance(encoder, NDJSONEncoder):
        return ResumableNDJSONEncoder(encoder.media_type, event_id)
    return ResumableSSEEncoder(event_id)


def _continued(event_id: bytes) -> bytes:
    response_id, _, number = event_id.decode().rpartition(".")
    return msgspec.json.encode({"id": response_id, "after": int(number)})
