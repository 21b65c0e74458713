"""Decoders of the Responses API: the model service's typed events or document → `Verbatim`, `Done`, `Failed`.

Events are passed on unchanged. Of most of them only the type is looked at, which stands first in the data: no event is
parsed but those that end a response, and those before the first output. Sources: OpenAI's API reference, "Responses",
"Streaming events".
"""

import json
import re
from dataclasses import replace
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from relay.problems import UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, Problem
from relay.streaming.events import Done, Encoder, Event, Failed, Text, Verbatim
from relay.upstream.ending import Ending
from relay.upstream.failures import find_error, printable_code
from relay.upstream.sse import MAX_EVENT_BYTES, EventTooLongError, SSEDecoder
from relay.usage import Usage
from relay.wires.decoding import (
    OF_JSON,
    UNREADABLE,
    EventStreamDecoder,
    WholeDocumentDecoder,
    as_raw,
    event_name,
    failure_by,
    failure_in,
    is_event_stream,
    short_name,
    without_marker,
)


class _InputDetails(Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None

    def usage(self) -> Usage:
        output, prompt = self.output_tokens_details, self.input_tokens_details
        return Usage(
            max(0, self.input_tokens),
            max(0, self.output_tokens),
            output.reasoning_tokens if output else None,
            prompt.cached_tokens if prompt else None,
            prompt.cache_write_tokens if prompt else None,
        )


class Response(Struct, gc=False):
    """What is read of a response object."""

    id: Any = None
    model: Any = None
    object: Any = None
    status: Any = None
    usage: Raw = Raw(b"null")
    error: Any = None
    incomplete_details: Any = None
    output: Raw = Raw(b"null")
    content_filters: Raw = Raw(b"null")


class ResponseEvent(Struct, gc=False):
    """What is read of an event that is not passed on unread, or skipped."""

    type: Any = None
    response: Response | None = None
    item: Raw = Raw(b"null")
    part: Raw = Raw(b"null")
    delta: Raw = Raw(b"null")
    text: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")


RESPONSE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")  # so that an id is one segment of a path, and stays one

_MAX_TYPE_LENGTH: Final = 80  # bytes of an event's type
_TYPE: Final = b'{"type":"'
_PREFIX: Final = b"response."  # of the type of every event but `error`
_TYPED: Final = _TYPE + _PREFIX
NULL: Final = b"null"

_DELTA: Final = b".delta"  # at the end of the type of an event that carries a piece of output
# The last one is OpenRouter's, of its beta.
_COMPLETED: Final = frozenset((b"response.completed", b"response.incomplete", b"response.cancelled", b"response.done"))
FAILED: Final = b"response.failed"
_ERROR: Final = b"error"
_ERRORS: Final = frozenset((_ERROR, b"response.error"))
# What these events say is that the model service has accepted the request. They are held back until there is output:
# until then another backend may take over, and the caller must not see the start of two responses.
_ACCEPTED: Final = frozenset((b"response.created", b"response.queued", b"response.in_progress"))
# These announce what is to follow, and are no output either as long as they are empty.
ANNOUNCED: Final = frozenset(
    (b"response.output_item.added", b"response.content_part.added", b"response.reasoning_summary_part.added")
)
_INCOMPLETE: Final = ("max_output_tokens", "content_filter", "incomplete")  # reasons why a response is not complete
_FAILED_SILENTLY: Final = "the model service's response failed without an error"
READ_ALWAYS: Final = _COMPLETED | _ACCEPTED | _ERRORS | {FAILED}  # whatever came before

_decode_event: Final = msgspec.json.Decoder(ResponseEvent).decode


class ResponseStreamDecoder(EventStreamDecoder):
    """What the two decoders of a response's event stream have in common."""

    def __init__(self) -> None:
        super().__init__()
        self._failed_silently = False

    @property
    def complete(self) -> bool:
        """Whether the response is complete; nothing follows its last event."""
        return isinstance(self._terminal, Done)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete; those that arrived together are one."""
        if self._terminal is not None:
            return []
        if not self._in_events:
            return self._feed_start(chunk)
        try:
            payloads = self._sse.feed(chunk)
        except EventTooLongError as error:
            return self._close(self._not_an_event(error))
        if not payloads and self._sse.within_data:
            self.progress += 1
        return self._close(self._read_events(payloads))

    def end(self) -> list[Event]:
        """The last events, given that the body ended here; the last one is the terminal one."""
        if self._terminal is not None:
            return [self._terminal]
        if self._start:
            return self._close(self._document())
        self._at_end = True
        try:
            terminal = self._read_events(self._sse.end())
        except EventTooLongError:
            terminal = None
        return self._close(terminal or self._judged(Ending.CLEAN))

    def cut(self, reason: str) -> list[Event]:
        """The same, given that nothing more can be read."""
        if self._terminal is not None:
            return [self._terminal]
        return self._close(self._judged(Ending.BROKEN, reason))

    def _close(self, terminal: Done | Failed | None) -> list[Event]:
        """What is to be passed on now, and the terminal event."""
        events = self._collect(terminal)
        if terminal is not None:
            self._terminal = terminal
            events.append(terminal)
        return events

    def _ended_by(self, terminal: Done | Failed) -> list[Event]:
        return self._close(terminal)

    def _too_long(self, size: int) -> Failed | None:
        return _too_long(size)

    def _judged(self, ending: Ending, reason: str | None = None) -> Failed:
        if self._failed_silently:
            return self._failed(_FAILED_SILENTLY)
        # Only its own event completes a response, so that there is always a verdict here.
        problem, why = self._judgement.at(ending) or (UPSTREAM_INTERRUPTED, "")
        return self._failed(reason or why, problem)

    def _document(self) -> Done | Failed:
        """The response that came as one document."""
        decoder = DocumentDecoder()
        terminal = decoder.read(bytes(self._start))
        if isinstance(terminal, Failed) or terminal.document is None:
            return terminal
        if decoder.finish_reason is None:
            return self._failed("the model service's answer is a response that goes on")
        self.id, self.model, self.usage = decoder.id, decoder.model, decoder.usage
        self.finish_reason = decoder.finish_reason
        return self._read_document(terminal.document)

    # What the two differ in

    def _collect(self, terminal: Done | Failed | None) -> list[Event]:
        """The output read since the last time, given how the response ended, if it has."""
        raise NotImplementedError

    def _read_document(self, document: bytes) -> Done | Failed:
        """Read the response in a document, which is complete."""
        raise NotImplementedError

    def _read_events(self, payloads: list[bytes]) -> Done | Failed | None:
        """Read these events; returns the terminal event, if they hold what ends the response."""
        raise NotImplementedError

    def _take(self, kind: bytes, data: bytes, event: ResponseEvent) -> Failed | None:
        """Read one event, which ends nothing."""
        raise NotImplementedError

    def _ended(self, kind: bytes, data: bytes, response: Response) -> Done | Failed | None:
        """The response ended by its own event; None where another one is to tell why."""
        raise NotImplementedError

    # Events

    def _event(self, data: bytes) -> Done | Failed | None:
        """Read one event; returns how the response ended, if it is the one that ends it."""
        try:
            event = _decode(data)
        except (ValueError, TypeError, RecursionError) as error:
            return self._unreadable(data, error)
        kind = event.type.encode(errors="replace") if isinstance(event.type, str) else b""
        found = None if kind.startswith(_PREFIX) and kind not in _ERRORS else _error_in(data, kind)
        if found is not None:
            return self._error(found)
        if self._failed_silently:
            return self._failed(_FAILED_SILENTLY)
        if event.response is not None:
            self._note(event.response)
        if kind.startswith(_PREFIX):
            self._judgement.begun = True
            self.progress += 1
        if kind in _COMPLETED or kind == FAILED:
            return self._ended(kind, data, event.response or Response())
        return self._take(kind, data, event)

    def _unreadable(self, data: bytes, error: Exception) -> Failed | None:
        """An event that is no JSON object: an error as plain text, a keep-alive, or a damaged one."""
        if event_name(data) == _ERROR:
            return self._error({"message": data.decode(errors="replace")})
        if self._at_end or not OF_JSON.intersection(data) or data[:1] not in b"{":
            return None
        return self._not_an_event(error)

    def _note(self, response: Response) -> None:
        self.id = short_name(response.id) or self.id
        self.model = short_name(response.model) or self.model
        self.finish_reason = _finish_reason(response) or self.finish_reason
        if bytes(response.usage) != NULL:
            self.usage = _usage(response.usage)

    def _not_an_event(self, error: Exception) -> Failed:
        return self._failed(f"an event is none of the Responses API ({type(error).__name__})")


def is_to_read(data: bytes) -> bool:
    """Whether an event has anything in it; the end marker is no part of this API, whose own event ends a response."""
    return bool(data or event_name(data) == _ERROR) and not data.startswith(b"[DONE]")


class EventDecoder(ResponseStreamDecoder):
    """Decodes the event stream of a response into events to pass on unchanged, whatever is in them.

    `Verbatim.events` are whole events here, with their names. `hold`: what precedes the first output is held until
    there is output.
    """

    def __init__(self, *, hold: bool = True) -> None:
        super().__init__()
        self._output_begun = not hold
        self._held: list[bytes] = []
        self._held_bytes = 0

    def _collect(self, terminal: Done | Failed | None) -> list[Event]:
        if not self._held or not (self._output_begun or isinstance(terminal, Done)):
            return []
        held, self._held = self._held, []
        return [Verbatim(b"", held)]

    def _read_document(self, document: bytes) -> Done:
        """The events that begin and end the response."""
        kind = b"response.incomplete" if self.finish_reason in _INCOMPLETE else b"response.completed"
        for number, name in enumerate((b"response.created", kind)):
            data = b'{"type":"%b","sequence_number":%d,"response":%b}' % (name, number, document)
            self._held.append(_frame(name, data))
        return Done(self.finish_reason, self.model, self.usage, self.id, closed=True)

    def _read_events(self, payloads: list[bytes]) -> Done | Failed | None:
        for data in payloads:
            kind = event_type(data)
            if kind is not None and self._output_begun and kind not in READ_ALWAYS:
                if kind.endswith(_DELTA):
                    self.deltas += 1
                self.progress += 1
                self._held.append(_frame(kind, data))
            elif is_to_read(data):
                terminal = self._event(data)
                if terminal is not None:
                    return terminal
        return None

    def _take(self, kind: bytes, data: bytes, event: ResponseEvent) -> Failed | None:
        if not self._output_begun:
            self._output_begun = _is_output(kind, event)
        if kind.endswith(_DELTA):
            self.deltas += 1
        self._pass_on(kind, data)
        if not self._output_begun and self._held_bytes > MAX_EVENT_BYTES:
            return self._failed("the model service's answer has no output")
        return None

    def _pass_on(self, kind: bytes, data: bytes) -> None:
        self._held_bytes += 0 if self._output_begun else len(data)
        self._held.append(_frame(kind, data))

    def _ended(self, kind: bytes, data: bytes, response: Response) -> Done | Failed | None:
        """Its event is passed on where the caller has seen the beginning of the response."""
        failed = failure_of(response)
        if failed is None and kind != FAILED:
            self._pass_on(kind, data)
            return Done(self.finish_reason, self.model, self.usage, self.id, closed=True)
        if not response.error and not self._output_begun:
            # Azure has an `error` event follow, which tells why (earendil-works/pi#7983).
            self._failed_silently = True
            return None
        failed = failed or Failed(UPSTREAM_ERROR, _FAILED_SILENTLY)
        passed_on = self._output_begun and kind == FAILED
        return replace(failed, usage=self.usage, event=bytes(data) if passed_on else None)


class EventEncoder(Encoder):
    """The event stream of a response: the upstream's events as they came.

    Where the model service's own event does not end it, an `error` event does, with the sequence number that follows
    the last one sent. `starting_after` is the last that the caller had before.
    """

    media_type = "text/event-stream; charset=utf-8"
    whole = False
    ping = b": ping\n\n"
    breaks_off = True

    def __init__(self, *, starting_after: int = -1) -> None:
        self._starting_after = starting_after
        self._count = 0
        self._last: bytes | None = None

    def text(self, text: Text) -> bytes:
        if not isinstance(text, Verbatim):
            return b""
        self._count += len(text.events)
        self._last = text.events[-1]
        return b"".join(text.events)

    def done(self, done: Done) -> bytes:
        return b""

    def failed(self, failed: Failed, request_id: str) -> bytes:
        if failed.event is not None:
            return _frame(FAILED, _with_error(failed.event, failed.problem))
        error = failed.problem.openai_error()
        members = {
            "type": "error",
            "code": error["code"],
            "message": error["message"],
            "param": error["param"],
            "sequence_number": self._next_number(),
        }
        return _frame(_ERROR, msgspec.json.encode(members))

    def _next_number(self) -> int:
        """Numbers are looked for only here, in the last event, so that none costs anything on its way."""
        data = b"\n".join(line[6:] for line in (self._last or b"").split(b"\n") if line.startswith(b"data: "))
        try:
            number = json.loads(data.decode(errors="replace"))["sequence_number"]
        except (ValueError, TypeError, KeyError, RecursionError):
            number = None
        if isinstance(number, int) and not isinstance(number, bool):
            return number + 1
        return self._starting_after + self._count + 1


def _with_error(event: bytes, problem: Problem) -> bytes:
    """The event of a failed response, with the error's text as the problem has it: the upstream's own may hold
    anything (`relay.upstream.redaction`). The error's code is kept where it is a plain one."""
    document = json.loads(event.decode(errors="replace"))
    response = document.get("response")
    error = response.get("error") if isinstance(response, dict) else None
    if isinstance(response, dict) and error:
        code = error.get("code") if isinstance(error, dict) else None
        told = problem.openai_error()
        plain = isinstance(code, str) and printable_code(code) == code
        response["error"] = {"code": code if plain else told["code"], "message": told["message"]}
    return json.dumps(document, separators=(",", ":")).encode()


class _Item(Struct, gc=False):
    """What an announced item or part already holds."""

    type: Any = None
    content: Any = None
    summary: Any = None
    text: Any = None
    encrypted_content: Any = None


# Items that only get their output by later events; any other, such as a tool call, has a name or has begun to act.
_FILLED_LATER: Final = frozenset(("message", "reasoning", "output_text", "refusal", "reasoning_text", "summary_text"))


def _is_output(kind: bytes, event: ResponseEvent) -> bool:
    """Whether the event is more than the announcement of output to come."""
    if kind in _ACCEPTED or not kind.startswith(_PREFIX):
        return False
    if kind not in ANNOUNCED:
        return True
    announced = event.part if bytes(event.item) == NULL else event.item
    try:
        item = msgspec.json.decode(announced, type=_Item)
    except UNREADABLE:
        return True
    held = item.content or item.summary or item.text or item.encrypted_content
    return bool(held) or item.type not in _FILLED_LATER


def _error_in(data: bytes, kind: bytes) -> dict[str, Any] | None:
    """The error that an event without a type of this API is; None where it is none.

    OpenAI's reference has the members of an error in the event itself, its service in `error`.
    """
    document = json.loads(data.decode(errors="replace"))
    error = find_error(document)
    if error is None and (kind in _ERRORS or event_name(data) == _ERROR):
        return document if isinstance(document, dict) else {}
    return error


def event_type(data: bytes) -> bytes | None:
    """The event's type, where it stands first, as it does in what OpenAI and Azure send, and None otherwise."""
    if data.startswith(_TYPED) and data.endswith(b"}"):
        end = data.find(b'"', len(_TYPE), len(_TYPE) + _MAX_TYPE_LENGTH)
        kind = data[len(_TYPE) : end]
        if end > 0 and b"\\" not in kind:
            return kind
    return None


def _frame(kind: bytes, data: bytes) -> bytes:
    """The event as the model service writes it: with its type as its name (WHATWG HTML, section 9.2)."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    if b"\n" in kind or b"\r" in kind:
        return b"data: %b\n\n" % data
    return b"event: %b\ndata: %b\n\n" % (kind, data)


def _decode(data: bytes) -> ResponseEvent:
    """Raises ValueError (msgspec's errors and those of decoding UTF-8 are of that kind), TypeError, RecursionError."""
    try:
        return _decode_event(data)
    except UNREADABLE:
        # Read all the same where it is JSON to other parsers: half a surrogate pair, or a response that is no object.
        document = json.loads(data.decode(errors="replace"))
        if not isinstance(document, dict):
            raise TypeError("not an object") from None
        response = document.get("response")
        return ResponseEvent(
            response=_response(response) if isinstance(response, dict) else None,
            type=document.get("type"),
            **{name: as_raw(document.get(name)) for name in ("item", "part", "delta", "text", "refusal")},
        )


def _response(document: dict[str, Any]) -> Response:
    names = ("id", "model", "object", "status", "error", "incomplete_details")
    members: dict[str, Any] = {name: document.get(name) for name in names}
    raw = {name: as_raw(document.get(name)) for name in ("usage", "output", "content_filters")}
    return Response(**members, **raw)


def _finish_reason(response: Response) -> str | None:
    """Why the response ended, by the names of this API: `completed`, `max_output_tokens`, `content_filter`, …"""
    if isinstance(response.incomplete_details, dict):
        return short_name(response.incomplete_details.get("reason")) or "incomplete"
    return None if response.status in ("queued", "in_progress") else short_name(response.status) or None


def failure_of(response: Response) -> Failed | None:
    """How a response failed, by its own error; None where it did not."""
    if response.error:
        return failure_by(response.error)
    return Failed(UPSTREAM_ERROR, _FAILED_SILENTLY) if response.status == "failed" else None


def _usage(counts: Raw) -> Usage | None:
    """The counts; None where they can't be read, as the response is complete without them."""
    try:
        return msgspec.json.decode(counts, type=_Usage).usage()
    except UNREADABLE:
        return None


_MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024  # bytes; more than any model's longest response


class DocumentDecoder(WholeDocumentDecoder):
    """Decodes a document of this API: read for the record, and passed on unchanged.

    `response_id` is the id of the response that the request names: the document may be anything about it, and the
    response may have failed. Otherwise the document is a new response. Where a stream was sent all the same, the
    document is in its last event.
    """

    def __init__(self, response_id: str | None = None) -> None:
        super().__init__()
        self.id = response_id
        self._about_another = response_id is not None

    def _too_long(self, size: int) -> Failed | None:
        return _too_long(size)

    def end(self) -> list[Event]:
        """The document is complete, if it is one."""
        return [self.read(bytes(self._document))]

    def read(self, content: bytes) -> Done | Failed:
        """What the whole content is."""
        content = without_marker(content)
        if is_event_stream(content):
            content = _document_in(content)
        try:
            response = decode_response(content)
        except (ValueError, TypeError, RecursionError) as error:
            return failure_in(content) or _no_response(type(error).__name__)
        if self._about_another and isinstance(response.object, str) and response.object != "error":
            return Done(None, None, None, self.id, document=content)
        if (failed := failure_of(response)) is not None:
            return failed
        if not isinstance(response.object, str) and not isinstance(response.status, str):
            return failure_in(content) or _no_response("no object")
        if response.object == "error":
            return failure_in(content) or _no_response("error")
        self.id, self.model = short_name(response.id) or None, short_name(response.model) or None
        self.finish_reason = _finish_reason(response)
        self.usage = _usage(response.usage) if bytes(response.usage) != NULL else None
        return Done(self.finish_reason, self.model, self.usage, self.id, document=content)


def _too_long(size: int) -> Failed | None:
    if size <= _MAX_DOCUMENT_BYTES:
        return None
    return Failed(UPSTREAM_ERROR, f"the model service's answer is longer than {_MAX_DOCUMENT_BYTES} bytes")


def _no_response(why: str) -> Failed:
    return Failed(UPSTREAM_ERROR, f"the model service's answer is not a response ({why})")


class _LastEvent(Struct, gc=False):
    response: Raw = Raw(b"")
    error: Raw = Raw(b"")


def _document_in(content: bytes) -> bytes:
    """The document in the last event of a stream that says how it ended; the content itself where there is none."""
    decoder = SSEDecoder()
    try:
        events = decoder.feed(content) + decoder.end()
        for data in reversed(events):
            if data.startswith(b"{"):
                last = msgspec.json.decode(data, type=_LastEvent)
                return bytes(last.response) or data
    except (EventTooLongError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return content


def decode_response(content: bytes) -> Response:
    """Raises as `_decode` does."""
    try:
        return msgspec.json.decode(content, type=Response)
    except UNREADABLE:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise TypeError("not an object") from None
        return _response(document)
