"""The events of a stream as the caller asked for them: Server-Sent Events, NDJSON, plain text, one JSON document, or
OpenAI's own wire."""

import json
from typing import Any, Final, Protocol

import msgspec

from relay.completion import Done, Failed, Text, Verbatim

_encode: Final = msgspec.json.encode


class Format(Protocol):
    """One way to write a stream down. An instance serves one stream.

    `whole`: nothing goes out before the end, so that a failure keeps its true status. `ping`: what fills a silence, or
    nothing where the format has no place for it.
    """

    media_type: str
    whole: bool
    ping: bytes

    def text(self, text: Text) -> bytes:
        """Words of the answer."""
        ...

    def done(self, done: Done) -> bytes:
        """The end of a complete answer."""
        ...

    def failed(self, failed: Failed, request_id: str) -> bytes | None:
        """The end of a failed one; None: only a broken connection can say it."""
        ...


class ServerSentEvents:
    """`text/event-stream` (WHATWG HTML, section 9.2): text as unnamed events, then `event: done` or `event: error`."""

    media_type = "text/event-stream; charset=utf-8"
    whole = False
    ping = b": ping\n\n"

    def text(self, text: Text) -> bytes:
        return b'data: {"text":%b}\n\n' % _one_line(text.json)

    def done(self, done: Done) -> bytes:
        return b"event: done\ndata: %b\n\n" % _one_line(_encode(_done_members(done)))

    def failed(self, failed: Failed, request_id: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % _one_line(_encode(_failed_members(failed, request_id)))


class NewlineDelimitedJson:
    """One JSON object a line, `type` telling them apart. The format has no comments, so it has no ping."""

    whole = False
    ping = b""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    def text(self, text: Text) -> bytes:
        return b'{"type":"text","text":%b}\n' % _one_line(text.json)

    def done(self, done: Done) -> bytes:
        return _one_line(_encode({"type": "done", **_done_members(done)})) + b"\n"

    def failed(self, failed: Failed, request_id: str) -> bytes:
        # A problem's own `type` gives way: here it tells the lines apart.
        return _one_line(_encode({**_failed_members(failed, request_id), "type": "error"})) + b"\n"


class PlainText:
    """The words and nothing else. A failure has no words: the connection breaks off, and can't pass for an end."""

    media_type = "text/plain; charset=utf-8"
    whole = False
    ping = b""

    def __init__(self) -> None:
        self._half = ""  # the first half of a surrogate pair, which UTF-8 can't write without the other

    def text(self, text: Text) -> bytes:
        words = self._half + json.loads(text.json)
        self._half = ""
        if words and "\ud800" <= words[-1] <= "\udbff":
            words, self._half = words[:-1], words[-1]
        return _utf8(words)

    def done(self, done: Done) -> bytes:
        words, self._half = self._half, ""
        return _utf8(words)

    def failed(self, failed: Failed, request_id: str) -> None:
        return None


class JsonDocument:
    """`"stream": false`: one JSON document when the answer is complete."""

    media_type = "application/json"
    whole = True
    ping = b""

    def __init__(self) -> None:
        self._words: list[bytes] = []

    def text(self, text: Text) -> bytes:
        self._words.append(text.json[1:-1])
        return b""

    def done(self, done: Done) -> bytes:
        return b'{"text":"%b",%b\n' % (b"".join(self._words), _encode(_done_members(done))[1:])

    def failed(self, failed: Failed, request_id: str) -> None:
        return None


class OpenAIEvents:
    """OpenAI's own stream: the upstream's events as they came, the usage only for a caller who asked for it."""

    media_type = "text/event-stream; charset=utf-8"
    whole = False
    ping = b": ping\n\n"

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage

    def text(self, text: Text) -> bytes:
        if not isinstance(text, Verbatim) or (text.usage and not self._include_usage):
            return b""
        events = b"\n\ndata: ".join([event.replace(b"\n", b"\ndata: ") for event in text.events])
        return b"data: %b\n\n" % events

    def done(self, done: Done) -> bytes:
        return b"data: [DONE]\n\n"

    def failed(self, failed: Failed, request_id: str) -> bytes:
        return b"data: %b\n\n" % failed.problem.openai_document(request_id)


class OpenAIDocument:
    """OpenAI's own document, as the upstream wrote it."""

    media_type = "application/json"
    whole = True
    ping = b""

    def text(self, text: Text) -> bytes:
        return b""

    def done(self, done: Done) -> bytes:
        return done.document or b""

    def failed(self, failed: Failed, request_id: str) -> None:
        return None


def choose(accept: str | None) -> Format:
    """The format of a stream for an `Accept` header (RFC 9110, section 12.5.1): SSE unless another is asked for."""
    best: str = ""
    best_quality = 0.0
    for media_range in (accept or "").split(","):
        media_type, *parameters = media_range.split(";")
        media_type = media_type.strip().lower()
        quality = _quality(parameters)
        if media_type in _STREAM_TYPES and quality > best_quality:
            best, best_quality = media_type, quality
    if best == "text/plain":
        return PlainText()
    if best in _NDJSON_TYPES:
        return NewlineDelimitedJson(best)
    return ServerSentEvents()


_NDJSON_TYPES: Final = ("application/x-ndjson", "application/jsonl")
_STREAM_TYPES: Final = ("text/event-stream", "text/plain", *_NDJSON_TYPES)


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _done_members(done: Done) -> dict[str, Any]:
    members: dict[str, Any] = {
        "finish_reason": done.finish_reason,
        "model": done.model,
        "usage": done.usage.members() if done.usage else None,
        "id": done.id,
    }
    if done.content_filter is not None:
        members["content_filter"] = done.content_filter
    return members


def _failed_members(failed: Failed, request_id: str) -> dict[str, Any]:
    members = failed.problem.members(request_id)
    if failed.usage is not None:
        members["usage"] = failed.usage.members()
    return members


# JSON may hold these as they are, but there are readers of lines that break a line at them (Python's str.splitlines).
_LINE_BREAKS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def _one_line(document: bytes) -> bytes:
    """The same JSON, on one line for every reader."""
    if not document.isascii():
        for raw, escaped in _LINE_BREAKS:
            if raw in document:
                document = document.replace(raw, escaped)
    return document


def _utf8(words: str) -> bytes:
    """UTF-8, with surrogate pairs put together and U+FFFD for half of one."""
    try:
        return words.encode()
    except UnicodeEncodeError:
        return words.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
