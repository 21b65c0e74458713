"""The formats of `POST /stream`: Server-Sent Events, NDJSON, plain text, one JSON document."""

import json
from typing import Any, Final

import msgspec

from relay.streaming.events import AnswerTooLongError, Done, Encoder, Failed, Reasoning, Text

_encode: Final = msgspec.json.encode


class SSEEncoder(Encoder):
    """`text/event-stream` (WHATWG HTML, section 9.2): text as unnamed events, the reasoning as `event: reasoning`, then
    `event: done` or `event: error`."""

    media_type = "text/event-stream; charset=utf-8"
    whole = False
    breaks_off = False
    ping = b": ping\n\n"

    def text(self, text: Text) -> bytes:
        if isinstance(text, Reasoning):
            return b'event: reasoning\ndata: {"text":%b}\n\n' % _one_line(text.json)
        return b'data: {"text":%b}\n\n' % _one_line(text.json)

    def done(self, done: Done) -> bytes:
        return b"event: done\ndata: %b\n\n" % _one_line(_encode(_done_members(done)))

    def failed(self, failed: Failed, request_id: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % _one_line(_encode(_failed_members(failed, request_id)))


class NDJSONEncoder(Encoder):
    """One JSON object a line, `type` telling them apart. The format has no comments, so it has no ping."""

    whole = False
    breaks_off = False
    ping = b""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    def text(self, text: Text) -> bytes:
        kind = b"reasoning" if isinstance(text, Reasoning) else b"text"
        return b'{"type":"%b","text":%b}\n' % (kind, _one_line(text.json))

    def done(self, done: Done) -> bytes:
        return _one_line(_encode({"type": "done", **_done_members(done)})) + b"\n"

    def failed(self, failed: Failed, request_id: str) -> bytes:
        # The problem's own `type` is replaced: in NDJSON that member tells the lines apart.
        return _one_line(_encode({**_failed_members(failed, request_id), "type": "error"})) + b"\n"


class PlainTextEncoder(Encoder):
    """The text and nothing else, no reasoning. A failure can't be written in it: the connection is broken off instead,
    so that the text can't pass for complete."""

    media_type = "text/plain; charset=utf-8"
    whole = False
    breaks_off = True
    ping = b""

    def __init__(self) -> None:
        self._half = ""  # the first half of a surrogate pair, which UTF-8 can't write without the other

    def text(self, text: Text) -> bytes:
        if isinstance(text, Reasoning):
            return b""
        decoded = self._half + json.loads(text.json)
        self._half = ""
        if decoded and "\ud800" <= decoded[-1] <= "\udbff":
            decoded, self._half = decoded[:-1], decoded[-1]
        return _utf8(decoded)

    def done(self, done: Done) -> bytes | None:
        text, self._half = self._half, ""
        return _utf8(text)

    def failed(self, failed: Failed, request_id: str) -> None:
        return None


_MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024  # bytes; the longest answer of a model is a fraction of it


class JSONDocumentEncoder(Encoder):
    """`"stream": false`: one JSON document when the answer is complete; `reasoning`: the caller asked for that, too."""

    media_type = "application/json"
    whole = True
    breaks_off = False
    ping = b""

    def __init__(self, *, reasoning: bool = False) -> None:
        self._text = bytearray()
        self._reasoning = bytearray()
        self._shows_reasoning = reasoning

    def restart(self) -> None:
        self._reasoning.clear()

    def text(self, text: Text) -> bytes:
        part = self._reasoning if isinstance(text, Reasoning) else self._text
        part += text.json[1:-1]
        if len(self._text) + len(self._reasoning) > _MAX_DOCUMENT_BYTES:
            raise AnswerTooLongError(
                f"The answer is longer than the {_MAX_DOCUMENT_BYTES // 1024**2} MiB that this app collects for one "
                'document. Send the request with "stream": true, or ask for a shorter answer.'
            )
        return b""

    def done(self, done: Done) -> bytes:
        reasoning = b""
        if self._shows_reasoning:
            reasoning = b'"reasoning":%b,' % (b'"%b"' % bytes(self._reasoning) if self._reasoning else b"null")
        return b'{"text":"%b",%b%b\n' % (bytes(self._text), reasoning, _encode(_done_members(done))[1:])

    def failed(self, failed: Failed, request_id: str) -> None:
        return None


def encoder_for(accept: str | None) -> Encoder:
    """The encoder of a stream for an `Accept` header (RFC 9110, section 12.5.1): SSE unless another is asked for."""
    best: str = ""
    best_quality = 0.0
    for media_range in (accept or "").split(","):
        media_type, *parameters = media_range.split(";")
        media_type = media_type.strip().lower()
        quality = _quality(parameters)
        if media_type in _STREAM_TYPES and quality > best_quality:
            best, best_quality = media_type, quality
    if best == "text/plain":
        return PlainTextEncoder()
    if best in _NDJSON_TYPES:
        return NDJSONEncoder(best)
    return SSEEncoder()


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


# JSON may contain these unescaped, but some line readers break lines at them (Python's str.splitlines).
_LINE_BREAKS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def _one_line(document: bytes) -> bytes:
    """The same JSON, on one line for every reader."""
    if not document.isascii():
        for raw, escaped in _LINE_BREAKS:
            if raw in document:
                document = document.replace(raw, escaped)
    return document


def _utf8(text: str) -> bytes:
    """UTF-8, with surrogate pairs put together and U+FFFD for half of one."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
