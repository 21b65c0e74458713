"""Decoders of chat completions: the model service's events or document → `Text` or `Verbatim`, `Done`, `Failed`.

Nothing is validated that is not used, and text is not even decoded: the JSON string of a delta is copied as it stands
into the response. Sources: OpenAI's API reference, "Chat completion chunk"; Azure's additions, "Content Streaming" in
Azure OpenAI's documentation.
"""

import json
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from relay.problems import UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, Problem
from relay.streaming.events import Done, Event, Failed, Text, Verbatim
from relay.upstream.failures import classify, filtered_categories
from relay.upstream.sse import MAX_EVENT_BYTES, EventTooLongError, SSEDecoder
from relay.usage import Usage


class _Details(Struct, gc=False):
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion_tokens_details: _Details | None = None
    prompt_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        output, prompt = self.completion_tokens_details, self.prompt_tokens_details
        return Usage(
            max(0, self.prompt_tokens),
            max(0, self.completion_tokens),
            output.reasoning_tokens if output else None,
            prompt.cached_tokens if prompt else None,
        )


class _Delta(Struct, gc=False):
    content: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    content_filter_results: Raw = Raw(b"null")


class _Chunk(Struct, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Raw = Raw(b"null")
    error: Any = None


class _AnyChoice(Struct, gc=False):
    """A choice of which only the presence of output in its delta matters."""

    delta: dict[str, Raw] | None = None
    finish_reason: str | None = None


class _AnyChunk(Struct, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_AnyChoice] | None = None
    usage: Raw = Raw(b"null")
    error: Any = None


_MAX_NAME_LENGTH: Final = 256  # characters kept of the upstream's own names

_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_any_chunk: Final = msgspec.json.Decoder(_AnyChunk).decode
_NULL: Final = b"null"
_EMPTY: Final = b'""'
_NO_OUTPUT: Final = frozenset((_NULL, _EMPTY, b"[]", b"{}"))
_NO_DELTA: Final[dict[str, Raw]] = {}
_QUOTATION_MARK: Final = 0x22


class _StreamDecoder:
    """What the two decoders of an event stream have in common."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.content_filter: dict[str, Any] | None = None
        self.deltas = 0
        self._events = SSEDecoder()
        self._ended = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete; text that arrived together is one event."""
        events: list[Event] = []
        try:
            payloads = self._events.feed(chunk)
        except EventTooLongError as error:
            self._ended = True
            return [self._not_a_chunk(error)]
        for data in payloads:
            if self._ended:
                break
            if not data:
                continue  # some servers keep a connection alive with these
            terminal = self._done() if data.startswith(b"[DONE]") else self._chunk(data)
            if terminal is not None:
                self._ended = True
                self._collect(events, terminal)
                events.append(terminal)
        self._collect(events, None)
        return events

    def end(self) -> Failed:
        """The body ended without the event that marks the answer as complete."""
        return self.cut("the model service's answer ended without [DONE]")

    def cut(self, reason: str) -> Failed:
        """The connection broke."""
        self._ended = True
        return Failed(UPSTREAM_INTERRUPTED, reason, self.usage)

    def _collect(self, events: list[Event], terminal: Done | Failed | None) -> None:
        """Add the output read since the last time to `events`."""
        raise NotImplementedError

    def _chunk(self, data: bytes) -> Failed | None:
        raise NotImplementedError

    def _done(self) -> Done:
        return Done(self.finish_reason, self.model, self.usage, self.id, self.content_filter)

    def _note(self, chunk: _Chunk | _AnyChunk) -> Failed | None:
        """Read what both decoders need of every chunk."""
        if bytes(chunk.usage) != _NULL:
            self.usage = _usage(chunk.usage)
        if chunk.id:
            self.id = chunk.id[:_MAX_NAME_LENGTH]
        if chunk.model:
            self.model = chunk.model[:_MAX_NAME_LENGTH]
        if chunk.error is not None:
            return self._error(chunk.error if isinstance(chunk.error, dict) else {})
        return None

    def _error(self, error: dict[str, Any]) -> Failed:
        """An error object in the stream; its text goes no further."""
        refusal = classify(error)
        return Failed(refusal.problem, refusal.reason, self.usage, error)

    def _failed(self, problem: Problem, reason: str) -> Failed:
        return Failed(problem, reason, self.usage)

    def _not_a_chunk(self, error: Exception) -> Failed:
        return self._failed(UPSTREAM_ERROR, f"an event is not a chat completion chunk ({type(error).__name__})")


class TextDecoder(_StreamDecoder):
    """Decodes a streamed chat completion into its text."""

    def __init__(self) -> None:
        super().__init__()
        self._text: list[bytes] = []

    def _collect(self, events: list[Event], terminal: Done | Failed | None) -> None:
        if self._text:
            events.append(_joined(self._text))
            self._text = []

    def _chunk(self, data: bytes) -> Failed | None:
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            try:
                chunk = _decode_leniently(data)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                return self._not_a_chunk(error)
        if (failed := self._note(chunk)) is not None:
            return failed
        for choice in chunk.choices or ():
            if choice.index:
                continue  # one answer was asked for
            if choice.delta is not None:
                for string in (choice.delta.content, choice.delta.refusal):
                    text = bytes(string)
                    if text in (_NULL, _EMPTY):
                        continue
                    if text[0] != _QUOTATION_MARK:
                        return self._failed(UPSTREAM_ERROR, "the content of a delta is not a string")
                    self._text.append(text if text.isascii() else _valid_utf8(text))
                    self.deltas += 1
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
                if choice.finish_reason == "content_filter":
                    categories = filtered_categories(_json_object(bytes(choice.content_filter_results)))
                    self.content_filter = categories or self.content_filter or {}
        return None


class VerbatimDecoder(_StreamDecoder):
    """Decodes a streamed chat completion into events to pass on unchanged, whatever is in them.

    What precedes the first output (the filter's report on the prompt, the role) is held until there is output: until
    then another backend may take over, and two answers are never spliced.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Verbatim] = []
        self._output_begun = False
        self._held_bytes = 0  # size of the events before the first output

    def _collect(self, events: list[Event], terminal: Done | Failed | None) -> None:
        if self._output_begun or isinstance(terminal, Done):
            events += self._held
            self._held = []

    def _hold(self, data: bytes, *, usage: bool) -> None:
        self._held_bytes += 0 if self._output_begun else len(data)
        if self._held and self._held[-1].usage == usage:
            self._held[-1].events.append(data)
        else:
            self._held.append(Verbatim(b"", [data], usage))

    def _chunk(self, data: bytes) -> Failed | None:
        try:
            chunk = _decode_any_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Passed on all the same if it is JSON to other parsers: half a surrogate pair, for example.
            try:
                document = json.loads(data)
                if not isinstance(document, dict):
                    raise TypeError
            except (ValueError, TypeError, RecursionError) as error:
                return self._not_a_chunk(error)
            chunk = _AnyChunk(choices=[_AnyChoice(delta={"unread": Raw(data)})])
        if (failed := self._note(chunk)) is not None:
            return failed
        choices = chunk.choices
        self._hold(data, usage=not choices and bytes(chunk.usage) != _NULL)
        for choice in choices or ():
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
            for name, value in (choice.delta or _NO_DELTA).items():
                if name != "role" and bytes(value) not in _NO_OUTPUT:
                    self._output_begun = True
                    self.deltas += 1
                    break
        if not self._output_begun and self._held_bytes > MAX_EVENT_BYTES:
            return self._failed(UPSTREAM_ERROR, "the model service's answer has no output")
        return None


class _Finish(Struct, gc=False):
    finish_reason: str | None = None


class _Document(Struct, gc=False):
    choices: list[_Finish] | None = None
    id: str | None = None
    model: str | None = None
    usage: Raw = Raw(b"null")
    error: Any = None


_MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024  # bytes; more than any model's longest answer


class DocumentDecoder:
    """Decodes a chat completion that is not a stream: a document, read for the record and passed on unchanged."""

    media_type = "application/json"

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.deltas = 0
        self._document = bytearray()

    def feed(self, chunk: bytes) -> list[Event]:
        """No event before the end, unless the document is too long."""
        self._document += chunk
        if len(self._document) > _MAX_DOCUMENT_BYTES:
            return [Failed(UPSTREAM_ERROR, f"the model service's answer is longer than {_MAX_DOCUMENT_BYTES} bytes")]
        return []

    def end(self) -> Done | Failed:
        """The document is complete, if it is one."""
        content = bytes(self._document)
        try:
            document = msgspec.json.decode(content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not _json_object(content):
                reason = f"the model service's answer is not a chat completion ({type(error).__name__})"
                return Failed(UPSTREAM_ERROR, reason)
            document = _Document()  # passed on: the caller may understand more of it
        if document.error is not None:
            refusal = classify(document.error)
            return Failed(refusal.problem, refusal.reason, error=document.error)
        self.id, self.model = document.id, document.model
        self.usage = _usage(document.usage) if bytes(document.usage) != _NULL else None
        self.finish_reason = document.choices[0].finish_reason if document.choices else None
        return Done(self.finish_reason, self.model, self.usage, self.id, document=content)

    def cut(self, reason: str) -> Failed:
        """The connection broke."""
        return Failed(UPSTREAM_INTERRUPTED, reason)


def _usage(counts: Raw) -> Usage | None:
    """The counts; None where they can't be read, as the answer is complete without them."""
    try:
        return msgspec.json.decode(counts, type=_Usage).usage()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _joined(strings: list[bytes]) -> Text:
    """The JSON strings as one: concatenated, without the quotation marks between them."""
    if len(strings) == 1:
        return Text(strings[0])
    return Text(b'"%b"' % b"".join([string[1:-1] for string in strings]))


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _valid_utf8(text: bytes) -> bytes:
    """The same with U+FFFD for bytes that are not UTF-8, as the standard decodes an event stream."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode(errors="replace").encode()
    return text


def _decode_leniently(data: bytes) -> _Chunk:
    """A chunk that the strict decoder refuses but that can be read: half a surrogate pair, bytes that are not UTF-8,
    unexpected types in members that are not needed.

    Raises ValueError, TypeError or AttributeError for what is not a chunk.
    """
    document = json.loads(data.decode(errors="replace"))
    if not isinstance(document, dict):
        raise TypeError
    choices = document.get("choices")
    return _Chunk(
        id=_string(document.get("id")),
        model=_string(document.get("model")),
        choices=None if choices is None else [_lenient_choice(choice) for choice in choices],
        usage=_raw(document.get("usage")),
        error=document.get("error"),
    )


def _lenient_choice(choice: Any) -> _Choice:
    index, delta = choice.get("index"), choice.get("delta")
    return _Choice(
        index=index if isinstance(index, int) else 0,
        delta=_Delta(_raw(delta.get("content")), _raw(delta.get("refusal"))) if isinstance(delta, dict) else None,
        finish_reason=_string(choice.get("finish_reason")),
        content_filter_results=_raw(choice.get("content_filter_results")),
    )


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode("ascii"))
