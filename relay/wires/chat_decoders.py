"""Decoders of chat completions: the model service's events or document → `Text` or `Verbatim`, `Done`, `Failed`.

Nothing is validated that is not used, and text is not even decoded: the JSON string of a delta is copied as it stands
into the response. How an answer ended is judged in one place for all wires (`relay.upstream.ending`), and so is an
error in it (`relay.upstream.failures`). Sources: OpenAI's API reference, "Chat completion chunk"; Azure's additions,
"Content Streaming" in Azure OpenAI's documentation.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from relay.problems import UPSTREAM_ERROR, Problem
from relay.streaming.events import Done, Event, Failed, Verbatim
from relay.upstream.ending import Ending
from relay.upstream.failures import filtered_categories, find_error, is_failed_finish
from relay.upstream.sse import MAX_EVENT_BYTES, EventTooLongError
from relay.usage import Usage
from relay.wires.chat_documents import chunk_of, document_of, usage_chunk_of
from relay.wires.decoding import (
    BOM,
    MAX_NAME_LENGTH,
    OF_JSON,
    UNREADABLE,
    EventStreamDecoder,
    Output,
    WholeDocumentDecoder,
    as_raw,
    event_name,
    failure_by,
    is_document,
    is_event_stream,
    short_name,
    valid_utf8,
    without_marker,
)


class _Details(Struct, gc=False):
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


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
            prompt.cache_write_tokens if prompt else None,
        )


# Members that are of any type do not make a chunk unreadable; they are looked at where they are used.


class _Delta(Struct, gc=False):
    content: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")
    error: Any = None


class _Choice(Struct, gc=False):
    index: Any = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: Any = None
    error: Any = None
    content_filter_results: Raw = Raw(b"null")


class _Chunk(Struct, gc=False):
    id: Any = None
    model: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    error_type: Any = None
    error_message: Any = None
    x_groq: Any = None  # Groq's own, on the first and the last chunk


class _ReasoningDelta(_Delta, gc=False):
    """With the reasoning that some servers send beside the answer: DeepSeek, vLLM and SGLang under the first name, and
    OpenRouter, Ollama and newer versions of vLLM under the second."""

    reasoning_content: Raw = Raw(b"null")
    reasoning: Raw = Raw(b"null")


class _ReasoningChoice(_Choice, gc=False):
    delta: _ReasoningDelta | None = None
    message: _ReasoningDelta | None = None


class _ReasoningChunk(_Chunk, gc=False):
    choices: list[_ReasoningChoice] | None = None  # type: ignore[assignment]  # only read, so that it may be narrower


class _AnyChoice(Struct, gc=False):
    """A choice of which only the presence of output in its delta matters."""

    index: Any = 0
    delta: dict[str, Raw] | None = None
    message: Any = None
    finish_reason: Any = None
    error: Any = None


class _AnyChunk(Struct, gc=False):
    id: Any = None
    model: Any = None
    choices: list[_AnyChoice] | None = None
    usage: Any = None
    error: Any = None
    error_type: Any = None
    error_message: Any = None
    x_groq: Any = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_reasoning_chunk: Final = msgspec.json.Decoder(_ReasoningChunk).decode
_decode_any_chunk: Final = msgspec.json.Decoder(_AnyChunk).decode
_NULL: Final = b"null"
_EMPTY: Final = b'""'
_NO_OUTPUT: Final = frozenset((_NULL, _EMPTY, b"[]", b"{}"))
_NO_VALUE: Final[tuple[Any, ...]] = (None, "", [], {})
_NO_DELTA: Final[dict[str, Raw]] = {}
_QUOTATION_MARK: Final = 0x22

# A document in which this occurs is looked at as a whole: wherever an error is, its member or its value begins so.
_ERROR: Final = b'"error'
# Azure's report on the prompt, which is no part of the answer and no error.
_PROMPT_REPORT: Final = b'"prompt_filter_results"'
# Events that keep a connection open: the data, or the event type, in lower case.
_KEEP_ALIVE: Final = frozenset((b"ping", b"pong", b"keepalive", b"keep-alive", b"keep_alive", b"heartbeat", b"alive"))
_NAMES_TO_INSPECT: Final = _KEEP_ALIVE | {b"error"}
_MARKER: Final = b"[DONE]"
_MAX_WORD: Final = 32  # bytes of an event that is a word

_MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024  # bytes; more than any model's longest answer


class _StreamDecoder(EventStreamDecoder):
    """What the two decoders of a chat completion's event stream have in common."""

    def __init__(self, choices: int = 1) -> None:
        super().__init__(choices)
        self.content_filter: dict[str, Any] | None = None
        self._chunks = 0  # those with choices, which are parts of the answer
        self._over = False  # nothing that follows belongs to the answer

    @property
    def complete(self) -> bool:
        """Whether the answer is complete, whatever follows."""
        return self._judgement.complete or isinstance(self._terminal, Done)

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete; text that arrived together is one event."""
        if not self._in_events:
            return [] if self._over else self._feed_start(chunk)
        events: list[Event] = []
        try:
            payloads = self._sse.feed(chunk)
        except EventTooLongError as error:
            return self._close(events, None if self._over else self._not_a_chunk(error))
        terminal = self._read_events(payloads)
        if terminal is not None:
            return self._close(events, terminal)
        if not payloads and self._sse.within_data:
            self.progress += 1
        self._collect(events, self._terminal)
        return events

    def _read_events(self, payloads: list[bytes]) -> Done | Failed | None:
        """Read these events; returns the terminal event, if they hold what ends the answer."""
        over, named = self._over, self._sse.named
        for data in payloads:
            if self._over:
                self._read_late_usage(data)
            elif named and event_name(data) in _NAMES_TO_INSPECT and not data.startswith(_MARKER):
                if (failed := self._inspect(data)) is not None:
                    self._over = True
                    return failed
            elif not data:
                continue  # some servers keep a connection alive with these
            elif data.startswith(_MARKER):
                self._over = True
            elif (failed := self._chunk(data)) is not None:
                self._over = True
                return failed
        return self._judged(Ending.MARKER) if self._over and not over else None

    def end(self) -> list[Event]:
        """The last events, given that the body ended here; the last one is the terminal one."""
        if self._terminal is not None:
            return [self._terminal]
        events: list[Event] = []
        if self._start:
            return self._close(events, self._document())
        self._at_end = True
        try:
            terminal = self._read_events(self._sse.end())
        except EventTooLongError:
            terminal = None
        return self._close(events, terminal or self._judged(Ending.CLEAN))

    def cut(self, reason: str) -> list[Event]:
        """The last events, given that nothing more can be read."""
        if self._terminal is not None:
            return [self._terminal]
        terminal = self._document() if self._start else None
        if terminal is None or (isinstance(terminal, Failed) and terminal.error is None):
            terminal = self._judged(Ending.BROKEN, reason)
        return self._close([], terminal)

    def _close(self, events: list[Event], terminal: Done | Failed | None) -> list[Event]:
        self._over = True
        self._collect(events, terminal)
        if terminal is not None:
            self._terminal = terminal
            events.append(terminal)
        return events

    def _ended_by(self, terminal: Done | Failed) -> list[Event]:
        return self._close([], terminal)

    def _too_long(self, size: int) -> Failed | None:
        return _too_long(size)

    def _judged(self, ending: Ending, reason: str | None = None) -> Done | Failed:
        verdict = self._verdict(ending)
        if verdict is None:
            return Done(self.finish_reason, self.model, self.usage, self.id, self.content_filter)
        problem, why = verdict
        return Failed(problem, reason or why, self.usage)

    def _verdict(self, ending: Ending) -> tuple[Problem, str] | None:
        self._judgement.begun = self._chunks > 0
        return self._judgement.at(ending)

    def _document(self) -> Done | Failed:
        """The answer that came as one document."""
        try:
            content = without_marker(bytes(self._start).removeprefix(BOM))
            document = json.loads(content.decode(errors="replace"))
            error = find_error(document)
            if error is not None:
                return self._error(error)
            choices = document["choices"]
            if not any(isinstance(choice, dict) for choice in choices):
                raise ValueError
            self._note(_lenient_chunk(document))
            failed = self._read_document(document)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            return self._failed(f"the model service's answer is not a chat completion ({type(error).__name__})")
        return failed or Done(self.finish_reason, self.model, self.usage, self.id, self.content_filter)

    def _read_document(self, document: dict[str, Any]) -> Failed | None:
        """Read the answer in a document, which has choices and no error."""
        raise NotImplementedError

    # Events

    def _collect(self, events: list[Event], terminal: Done | Failed | None) -> None:
        """Add the output read since the last time to `events`."""
        raise NotImplementedError

    def _chunk(self, data: bytes) -> Failed | None:
        raise NotImplementedError

    def _read_leniently(self, data: bytes, document: dict[str, Any]) -> Failed | None:
        """Read a chunk that the strict decoder refuses, or that had to be looked at as a whole; it has choices."""
        raise NotImplementedError

    def _hold(self, data: bytes, *, usage: bool) -> None:
        """Keep an event without choices, if this decoder passes events on."""

    def _note(self, chunk: _Chunk | _AnyChunk) -> None:
        """Read what both decoders need of every chunk."""
        self.progress += 1
        self._chunks += 1
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage)
        if chunk.id != self.id and chunk.id:
            self.id = short_name(chunk.id) or self.id
        if chunk.model != self.model and chunk.model:
            self.model = short_name(chunk.model) or self.model

    def _finish(self, choice: int, reason: Any) -> Failed | None:
        """Note a finish reason; some servers send the word null until there is one."""
        if isinstance(reason, dict):
            reason = reason.get("type")  # SGLang's own form
        if not isinstance(reason, str) or reason.lower() in ("", "null", "none"):
            return None
        if is_failed_finish(reason):
            return self._error({"code": reason})
        self.finish_reason = reason[:MAX_NAME_LENGTH]
        self._judgement.finish(choice)
        return None

    def _inspect(self, data: bytes) -> Failed | None:
        """Look at an event as a whole: one that may be an error, or no chunk, or one with odd members."""
        try:
            document = json.loads(data.decode(errors="replace"))
            if isinstance(document, dict) and document.get("usage"):
                self.usage = _usage(document["usage"])
            error = find_error(document)
            if error is None and event_name(data) == b"error":
                error = document if isinstance(document, dict) else {"message": document}
            if error is not None:
                return self._error(error)
            choices = document.get("choices") if isinstance(document, dict) else None
            if isinstance(choices, list) and any(isinstance(choice, dict) for choice in choices):
                if not all(isinstance(it, dict) and isinstance(it.get("delta") or {}, dict) for it in choices):
                    self._judgement.doubtful = True
                return self._read_leniently(data, document)
            return self._without_choices(data, document)
        except ValueError as error:
            return self._not_json(data, error)
        except RecursionError as error:
            return self._not_a_chunk(error)

    def _without_choices(self, data: bytes, document: Any) -> Failed | None:
        """An event that is JSON, and neither an error nor a part of the answer: information, or not understood."""
        if not isinstance(document, dict):
            if document == _MARKER.decode():
                self._over = True  # some servers write it as JSON
            self._judgement.doubtful = not self._over
            return None
        if document.get("usage"):
            self.progress += 1
        known = document.get("usage") or document.get("choices") == [] or "prompt_filter_results" in document
        if not known and document.get("type") != "ping" and event_name(data) not in _KEEP_ALIVE:
            self._judgement.doubtful = True
        self._hold(data, usage=bool(document.get("usage")))
        return None

    def _not_json(self, data: bytes, error: Exception) -> Failed | None:
        """An event that is not JSON: it keeps the connection open, or it is a word that says something, or a damaged
        chunk, with which a part of the answer is lost."""
        if event_name(data) == b"error":
            return self._error({"message": data.decode(errors="replace")})
        word = data[:_MAX_WORD].strip().lower()
        if word == _MARKER.lower():
            self._over = True
            return None
        if event_name(data) in _KEEP_ALIVE or word in _KEEP_ALIVE:
            return None
        if self._judgement.complete:
            return None
        if self._at_end or not OF_JSON.intersection(data):
            self._judgement.doubtful = True
            return None
        return self._not_a_chunk(error)

    def _read_late_usage(self, data: bytes) -> None:
        """Read an event after the marker: only the usage is of interest."""
        if self.usage is not None or b'"usage"' not in data or isinstance(self._terminal, Failed):
            return
        if self._verdict(Ending.MARKER) is not None:
            return  # there is no answer that it could belong to
        try:
            chunk = msgspec.json.decode(data, type=_AnyChunk)
        except UNREADABLE:
            return
        if chunk.usage is not None and not chunk.choices:
            self.usage = _usage(chunk.usage)
            self._hold(data, usage=True)

    def _not_a_chunk(self, error: Exception) -> Failed:
        return self._failed(f"an event is not a chat completion chunk ({type(error).__name__})")


class TextDecoder(_StreamDecoder):
    """Decodes a streamed chat completion into its text; `reasoning`: and into the reasoning that is sent beside it."""

    def __init__(self, *, reasoning: bool = False) -> None:
        super().__init__()
        self._output = Output()
        self._index: int | None = None  # of the one answer that was asked for
        self._reasoning = reasoning
        self._decode_chunk: Callable[[bytes], _Chunk] = _decode_reasoning_chunk if reasoning else _decode_chunk

    def _collect(self, events: list[Event], terminal: Done | Failed | None) -> None:
        events += self._output.take()

    def _chunk(self, data: bytes) -> Failed | None:
        try:
            chunk = self._decode_chunk(data)
        except UNREADABLE:
            return self._inspect(data)
        choices = chunk.choices
        if not choices or _may_be_error(chunk):
            return None if _is_prompt_report(data, chunk) else self._inspect(data)
        self._note(chunk)
        return self._read(choices)

    def _read_leniently(self, data: bytes, document: dict[str, Any]) -> Failed | None:
        chunk = _lenient_chunk(document)
        self._note(chunk)
        return self._read(chunk.choices or [])

    def _read_document(self, document: dict[str, Any]) -> Failed | None:
        return self._read(_lenient_chunk(document).choices or [])

    def _read(self, choices: list[_Choice]) -> Failed | None:
        for choice in choices:
            if choice.index or self._index:
                index = _index(choice.index)
                if self._index is None:
                    self._index = index if self._chunks == 1 and len(choices) == 1 else 0
                if index != self._index:
                    continue  # one answer was asked for
            delta = choice.delta
            if choice.error or (delta is not None and delta.error):
                return self._error(find_error({"error": choice.error or (delta and delta.error)}) or {})
            if delta is None and not self.deltas:
                delta = choice.message  # a whole answer in an event
            if delta is not None:
                if self._reasoning:
                    self._read_reasoning(delta)
                for string in (delta.content, delta.refusal):
                    text = bytes(string)
                    if text in (_NULL, _EMPTY):
                        continue
                    if text[0] != _QUOTATION_MARK:
                        parts = _text_parts(text)
                        if parts is None:
                            return self._failed("the content of a delta is not a string")
                        if not parts:
                            continue
                        text = parts
                    self._output.strings.append(text if text.isascii() else valid_utf8(text))
                    self.deltas += 1
            if choice.finish_reason:
                if (failed := self._finish(0, choice.finish_reason)) is not None:
                    return failed
                if choice.finish_reason == "content_filter":
                    categories = filtered_categories(_json_object(bytes(choice.content_filter_results)))
                    self.content_filter = categories or self.content_filter or {}
        return None

    def _read_reasoning(self, delta: _Delta) -> None:
        """What the delta has of the reasoning, under one of its names."""
        names = (delta.reasoning_content, delta.reasoning) if isinstance(delta, _ReasoningDelta) else ()
        found = next((text for raw in names if (text := bytes(raw))[:1] == b'"' and text != _EMPTY), None)
        if found is None:
            found = _thinking_parts(bytes(delta.content))
        if found:
            self._output.add_reasoning(found)


class VerbatimDecoder(_StreamDecoder):
    """Decodes a streamed chat completion into events to pass on unchanged, whatever is in them.

    What precedes the first output (the filter's report on the prompt, the role) is held until there is output: until
    then another backend may take over, and two answers are never spliced.
    """

    def __init__(self, choices: int = 1) -> None:
        super().__init__(choices)
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
        except UNREADABLE:
            return self._inspect(data) or self._within_limit()
        choices = chunk.choices
        if not choices or _may_be_error(chunk):
            if not _is_prompt_report(data, chunk):
                return self._inspect(data) or self._within_limit()
            self._hold(data, usage=False)
            return self._within_limit()
        for choice in choices:
            if choice.error or (choice.delta is not None and "error" in choice.delta):
                return self._inspect(data) or self._within_limit()
        self._note(chunk)
        self._hold(data, usage=False)
        return self._read(choices)

    def _within_limit(self) -> Failed | None:
        if not self._output_begun and self._held_bytes > MAX_EVENT_BYTES:
            return self._failed("the model service's answer has no output")
        return None

    def _read_leniently(self, data: bytes, document: dict[str, Any]) -> Failed | None:
        self._note(_lenient_chunk(document))
        self._hold(data, usage=False)
        return self._read(_lenient_choices(document))

    def _read_document(self, document: dict[str, Any]) -> Failed | None:
        chunk = chunk_of(document)
        self._hold(chunk, usage=False)
        if (counts := usage_chunk_of(document)) is not None:
            self._hold(counts, usage=True)
        return self._read(_lenient_choices(json.loads(chunk)))

    def _read(self, choices: list[_AnyChoice]) -> Failed | None:
        for choice in choices:
            if choice.finish_reason and (
                failed := self._finish(_index(choice.index) if choice.index else 0, choice.finish_reason)
            ):
                return failed
            if choice.delta is None and choice.message and not self.deltas:
                # A whole answer in an event is passed on as a chunk, which is what the caller looks for.
                return self._read_document(json.loads(self._held[-1].events.pop().decode(errors="replace")))
            for name, value in (choice.delta or _NO_DELTA).items():
                if name != "role" and bytes(value) not in _NO_OUTPUT:
                    self._output_begun = True
                    self.deltas += 1
                    break
        return self._within_limit()


class _Finish(Struct, gc=False):
    finish_reason: Any = None


class _Document(Struct, gc=False):
    choices: list[_Finish] | None = None
    id: Any = None
    model: Any = None
    usage: Any = None
    error: Any = None


class DocumentDecoder(WholeDocumentDecoder):
    """Decodes a chat completion that is not a stream: a document, read for the record and passed on unchanged.

    Where a stream was sent all the same, its chunks are put together. `choices`: how many answers were asked for.
    """

    def __init__(self, choices: int = 1) -> None:
        super().__init__()
        self._choices = choices

    def _too_long(self, size: int) -> Failed | None:
        return _too_long(size)

    def end(self) -> list[Event]:
        """The document is complete, if it is one."""
        content = without_marker(bytes(self._document).removeprefix(BOM))
        if is_document(content):
            return [self._whole(content)]
        if is_event_stream(content):
            return [self._assembled(bytes(self._document))]
        return [_not_a_completion("DecodeError")]

    def _whole(self, content: bytes) -> Done | Failed:
        try:
            document = msgspec.json.decode(content, type=_Document)
            lenient = document.choices is None
        except UNREADABLE:
            lenient = True
        if lenient or _ERROR in content:
            try:
                members = json.loads(content.decode(errors="replace"))
                error = find_error(members)
                if error is not None:
                    return self._error(error)
                if not isinstance(members["choices"], list):
                    raise TypeError
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                return _not_a_completion(type(error).__name__)
            if lenient:
                chunk = _lenient_chunk(members)
                finishes = [_Finish(choice.finish_reason) for choice in chunk.choices or ()]
                document = _Document(finishes, chunk.id, chunk.model, chunk.usage)
        self.id, self.model = short_name(document.id), short_name(document.model)
        self.usage = None if document.usage is None else _usage(document.usage)
        if not document.choices:
            return _not_a_completion("no choices")
        reasons = [it.finish_reason for it in document.choices if isinstance(it.finish_reason, str)]
        failed = next((reason for reason in reasons if is_failed_finish(reason)), None)
        if failed is not None:
            return self._error({"code": failed})
        self.finish_reason = reasons[0][:MAX_NAME_LENGTH] if reasons else None
        return Done(self.finish_reason, self.model, self.usage, self.id, document=valid_utf8(content))

    def _assembled(self, content: bytes) -> Done | Failed:
        """The document in an event, or the one that events add up to."""
        decoder = VerbatimDecoder(self._choices)
        events = decoder.feed(content)
        if not events or not isinstance(events[-1], Done | Failed):
            events += decoder.end()
        terminal = events[-1]
        self.id, self.model, self.usage = decoder.id, decoder.model, decoder.usage
        self.finish_reason = decoder.finish_reason
        if not isinstance(terminal, Done):
            assert isinstance(terminal, Failed)  # noqa: S101 (the last event is the terminal one)
            return terminal
        chunks = [data for it in events if isinstance(it, Verbatim) for data in it.events]
        try:
            document = document_of([json.loads(data.decode(errors="replace")) for data in chunks])
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return _not_a_completion(type(error).__name__)
        return Done(self.finish_reason, self.model, self.usage, self.id, document=document)

    def _error(self, error: dict[str, Any]) -> Failed:
        return failure_by(error, self.usage)


def _too_long(size: int) -> Failed | None:
    if size <= _MAX_DOCUMENT_BYTES:
        return None
    limit = _MAX_DOCUMENT_BYTES // 1024**2
    detail = f"The model service's answer is longer than the {limit} MiB that this app takes. Ask for a shorter one."
    return Failed(UPSTREAM_ERROR.with_detail(detail), f"the model service's answer is longer than {limit} MiB")


def _not_a_completion(error: str) -> Failed:
    return Failed(UPSTREAM_ERROR, f"the model service's answer is not a chat completion ({error})")


def _is_prompt_report(data: bytes, chunk: _Chunk | _AnyChunk) -> bool:
    return _PROMPT_REPORT in data and chunk.choices == [] and chunk.usage is None and not _may_be_error(chunk)


def _may_be_error(chunk: _Chunk | _AnyChunk) -> bool:
    """Whether the chunk has to be looked at as a whole; an error in a choice is looked for where that is read."""
    return (
        chunk.error is not None
        or chunk.error_type is not None
        or chunk.error_message is not None
        or chunk.x_groq is not None
    )


def _usage(counts: Any) -> Usage | None:
    """The counts; None where they can't be read, as the answer is complete without them."""
    try:
        return msgspec.convert(counts, _Usage).usage()
    except (msgspec.ValidationError, RecursionError):
        pass
    if not isinstance(counts, dict):
        return None
    prompt, completion = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    return None if prompt is None or completion is None else Usage(prompt, completion)


def _count(value: Any) -> int | None:
    """A number of tokens in another type than the API's; None where it can't be read."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int | float) and 0 <= value < 10**9:
        return int(value)
    return 0 if value is None else None


def _text_parts(content: bytes) -> bytes | None:
    """The texts of a content that is a list of parts, as one JSON string; None where it is none.

    Mistral's reasoning models send these; what is not text, such as their thinking, is no part of the answer.
    """
    try:
        value = json.loads(content.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = [value]
    if not isinstance(value, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else part for part in value]
    text = "".join(it for it in texts if isinstance(it, str))
    return json.dumps(text).encode() if text else b""


def _thinking_parts(content: bytes) -> bytes:
    """The thinking in such a list, as one JSON string; empty where there is none."""
    if not content.startswith(b"["):
        return b""
    parts = [it for it in _json_list(content) if isinstance(it, dict) and it.get("type") == "thinking"]
    thoughts = [it for part in parts if isinstance(part.get("thinking"), list) for it in part["thinking"]]
    text = "".join(it["text"] for it in thoughts if isinstance(it, dict) and isinstance(it.get("text"), str))
    return json.dumps(text).encode() if text else b""


def _json_list(text: bytes) -> list[Any]:
    try:
        value = json.loads(text.decode(errors="replace"))
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


_TEXT_PARTS: Final = (None, "text", "output_text")


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _index(index: Any) -> int:
    """Which choice it is: the first one where nothing tells."""
    if isinstance(index, str) and index.isdecimal() and len(index) < 10:
        return int(index)
    return index if isinstance(index, int) else 0


def _lenient_chunk(document: dict[str, Any]) -> _Chunk:
    """A chunk that the strict decoder refuses but that can be read: half a surrogate pair, bytes that are not UTF-8,
    unexpected types in members that are not needed."""
    choices = document.get("choices")
    return _Chunk(
        id=document.get("id"),
        model=document.get("model"),
        choices=[_lenient_choice(it) for it in choices if isinstance(it, dict)] if isinstance(choices, list) else None,
        usage=document.get("usage"),
    )


def _lenient_choice(choice: dict[str, Any]) -> _Choice:
    return _Choice(
        index=choice.get("index"),
        delta=_lenient_delta(choice.get("delta")),
        message=_lenient_delta(choice.get("message")),
        finish_reason=choice.get("finish_reason"),
        content_filter_results=as_raw(choice.get("content_filter_results")),
    )


def _lenient_delta(delta: Any) -> _Delta | None:
    if not isinstance(delta, dict):
        return None
    names = ("content", "refusal", "reasoning_content", "reasoning")
    return _ReasoningDelta(**{name: as_raw(delta.get(name)) for name in names})


def _lenient_choices(document: dict[str, Any]) -> list[_AnyChoice]:
    """The choices of such a chunk, for those who look only for the presence of output."""
    return [
        _AnyChoice(
            index=choice.get("index"),
            delta={name: Raw(_NULL if value in _NO_VALUE else b"1") for name, value in delta.items()}
            if isinstance(delta := choice.get("delta"), dict)
            else None,
            message=choice.get("message"),
            finish_reason=choice.get("finish_reason"),
        )
        for choice in document["choices"]
        if isinstance(choice, dict)
    ]
