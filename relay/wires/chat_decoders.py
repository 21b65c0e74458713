"""The upstream's bytes, read as Server-Sent Events, and what they mean: `Text` or `Verbatim`, `Done`, `Failed`.

Nothing is validated that is not used, and text is not even decoded: the JSON string of a delta is copied as it stands
into what goes out. Sources: the event stream's grammar, WHATWG HTML, section 9.2.6; the chunk object, OpenAI's API
reference, "Chat completion chunk"; Azure's additions, "Content Streaming" in Azure OpenAI's documentation.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw, Struct

from relay.problems import CONTENT_FILTER, RATE_LIMITED, UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, Problem


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that the upstream counted; `reasoning_tokens` and `cached_tokens` are parts of the two others."""

    input_tokens: int
    output_tokens: int
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None

    def members(self) -> dict[str, int]:
        """As JSON members, those that were not given left out."""
        counts = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cached_tokens": self.cached_tokens,
        }
        return {name: count for name, count in counts.items() if count is not None}


@dataclass(frozen=True, slots=True)
class Text:
    """Words of the answer, as one JSON string in UTF-8, its quotation marks included.

    All that arrived together is one `Text`. The string may end in half a surrogate pair whose other half comes with the
    next one: concatenating the decoded strings, code unit by code unit, gives the answer.
    """

    json: bytes


@dataclass(frozen=True, slots=True)
class Verbatim(Text):
    """Events of the upstream's to pass on as they stand: the data of each, in `events`, and nothing in `json`.

    `usage`: it is the event that brings the usage and nothing else.
    """

    events: list[bytes]
    usage: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The upstream said that the answer is complete; `document` is the whole of one that was no stream."""

    finish_reason: str | None
    model: str | None
    usage: Usage | None
    id: str | None
    content_filter: dict[str, Any] | None = None
    document: bytes | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream ended without being complete; `reason` is for the log, never for the caller."""

    problem: Problem
    reason: str
    usage: Usage | None = None


Event = Text | Done | Failed


class Reading(Protocol):
    """How the bytes of one answer are read. After the one `Done` or `Failed`, nothing more comes out of it.

    `media_type` is what the answer must be. `deltas` counts those that carried words: what the log estimates the output
    tokens by when the usage never came.
    """

    media_type: str
    id: str | None
    model: str | None
    finish_reason: str | None
    usage: Usage | None
    deltas: int

    def read(self, chunk: bytes) -> list[Event]:
        """What these bytes add; words that arrived together come out together."""
        ...

    def end(self) -> Done | Failed:
        """What it means that the bytes end here."""
        ...

    def cut(self, reason: str) -> Failed:
        """The connection broke."""
        ...


_LONGEST_EVENT: Final = 16 * 1024 * 1024  # bytes; a model's longest answer in one chunk is a fraction of it


class EventTooLongError(ValueError):
    """An event of the upstream's has no end."""


class EventReader:
    """Splits the bytes of an event stream into the data of its events, wherever the reads were split.

    Line ends may be LF, CR or CRLF, also mixed; a leading byte order mark is dropped; an event's several `data:` lines
    are joined by LF; comments and the other fields are passed over. An event that the end of the bytes cuts is dropped,
    as the standard says. `feed` raises `EventTooLongError` for one that has grown beyond every measure.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the beginning of a line whose end has not arrived; joined once, when it does
        self._data: list[bytes] = []  # the data lines of the event that is being read
        self._after_cr = False
        self._held = 0  # bytes of the event that is being read
        self._first = True  # no line has been read

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes, in order."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk[-1] == 0x0D
        lines = chunk.splitlines(keepends=False)
        unfinished = lines.pop() if chunk[-1] not in b"\r\n" else None
        self._held += len(chunk)
        if self._rest and lines:
            self._rest.append(lines[0])
            lines[0] = b"".join(self._rest)
            self._rest = []
        if unfinished:
            self._rest.append(unfinished)
        if self._first and lines:
            self._first = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                self._held = 0
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
            elif line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                data.append(b"")
        if self._held > _LONGEST_EVENT:
            raise EventTooLongError
        return events


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
    """A choice of which all that matters is whether there is something in its delta."""

    delta: dict[str, Raw] | None = None
    finish_reason: str | None = None


class _AnyChunk(Struct, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_AnyChoice] | None = None
    usage: Raw = Raw(b"null")
    error: Any = None


_LONGEST_NAME: Final = 256  # characters of the upstream's own names that are kept

_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_decode_any_chunk: Final = msgspec.json.Decoder(_AnyChunk).decode
_NULL: Final = b"null"
_EMPTY: Final = b'""'
_NO_WORDS: Final = frozenset((_NULL, _EMPTY, b"[]", b"{}"))
_NOTHING: Final[dict[str, Raw]] = {}
_QUOTATION_MARK: Final = 0x22


class _Streamed:
    """What the two readings of a stream have in common."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.content_filter: dict[str, Any] | None = None
        self.deltas = 0
        self._events = EventReader()
        self._ended = False

    def read(self, chunk: bytes) -> list[Event]:
        """What these bytes add; words that arrived together come out together."""
        meanings: list[Event] = []
        try:
            events = self._events.feed(chunk)
        except EventTooLongError as error:
            self._ended = True
            return [self._garbage(error)]
        for data in events:
            if self._ended:
                break
            if not data:
                continue  # some servers keep a connection alive with these
            terminal = self._done() if data.startswith(b"[DONE]") else self._chunk(data)
            if terminal is not None:
                self._ended = True
                self._gather(meanings, terminal)
                meanings.append(terminal)
        self._gather(meanings, None)
        return meanings

    def end(self) -> Failed:
        """The bytes ended without the event that says that the answer is complete."""
        return self.cut("the model service's answer ended without [DONE]")

    def cut(self, reason: str) -> Failed:
        """The connection broke."""
        self._ended = True
        return Failed(UPSTREAM_INTERRUPTED, reason, self.usage)

    def _gather(self, meanings: list[Event], terminal: Done | Failed | None) -> None:
        """Add the words of the events read since the last time."""
        raise NotImplementedError

    def _chunk(self, data: bytes) -> Failed | None:
        raise NotImplementedError

    def _done(self) -> Done:
        return Done(self.finish_reason, self.model, self.usage, self.id, self.content_filter)

    def _note(self, chunk: _Chunk | _AnyChunk) -> Failed | None:
        """What is of interest in every chunk, whoever reads it."""
        if bytes(chunk.usage) != _NULL:
            self.usage = _usage(chunk.usage)
        if chunk.id:
            self.id = chunk.id[:_LONGEST_NAME]
        if chunk.model:
            self.model = chunk.model[:_LONGEST_NAME]
        if chunk.error is not None:
            return self._error(chunk.error if isinstance(chunk.error, dict) else {})
        return None

    def _error(self, error: dict[str, Any]) -> Failed:
        """An error object in the stream: what kind of failure it is (its text stays here)."""
        code = str(error.get("code") or error.get("type") or "none")
        reason = f"the model service sent an error in the stream, code {printable(code)}"
        if code == "content_filter":
            return self._failed(CONTENT_FILTER.filtered(filtered_categories(filter_results(error))), reason)
        if code in ("429", "rate_limit_exceeded", "too_many_requests", "insufficient_quota"):
            return self._failed(RATE_LIMITED, reason)
        return self._failed(UPSTREAM_ERROR, reason)

    def _failed(self, problem: Problem, reason: str) -> Failed:
        return Failed(problem, reason, self.usage)

    def _garbage(self, error: Exception) -> Failed:
        return self._failed(UPSTREAM_ERROR, f"an event is no chat completion chunk ({type(error).__name__})")


class Completion(_Streamed):
    """One streamed chat completion, read for its words."""

    def __init__(self) -> None:
        super().__init__()
        self._text: list[bytes] = []

    def _gather(self, meanings: list[Event], terminal: Done | Failed | None) -> None:
        if self._text:
            meanings.append(_joined(self._text))
            self._text = []

    def _chunk(self, data: bytes) -> Failed | None:
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            try:
                chunk = _decode_leniently(data)
            except (ValueError, TypeError, RecursionError) as error:
                return self._garbage(error)
        if (failed := self._note(chunk)) is not None:
            return failed
        for choice in chunk.choices or ():
            if choice.index:
                continue  # one answer was asked for
            if choice.delta is not None:
                for string in (choice.delta.content, choice.delta.refusal):
                    words = bytes(string)
                    if words in (_NULL, _EMPTY):
                        continue
                    if words[0] != _QUOTATION_MARK:
                        return self._failed(UPSTREAM_ERROR, "the content of a delta is not a string")
                    self._text.append(words if words.isascii() else _valid_utf8(words))
                    self.deltas += 1
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
                if choice.finish_reason == "content_filter":
                    categories = filtered_categories(_object(bytes(choice.content_filter_results)))
                    self.content_filter = categories or self.content_filter or {}
        return None


class VerbatimCompletion(_Streamed):
    """One streamed chat completion, read to be passed on event by event, whatever is in it.

    What comes before the first words (the filter's report on the prompt, the role) waits for them: until there are
    words, another deployment may still take over, and two answers are never spliced.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passing: list[Verbatim] = []
        self._spoken = False
        self._waiting = 0  # bytes that came before the first words

    def _gather(self, meanings: list[Event], terminal: Done | Failed | None) -> None:
        if self._spoken or isinstance(terminal, Done):
            meanings += self._passing
            self._passing = []

    def _pass(self, data: bytes, *, usage: bool) -> None:
        self._waiting += 0 if self._spoken else len(data)
        if self._passing and self._passing[-1].usage == usage:
            self._passing[-1].events.append(data)
        else:
            self._passing.append(Verbatim(b"", [data], usage))

    def _chunk(self, data: bytes) -> Failed | None:
        try:
            chunk = _decode_any_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Passed on all the same, if it is JSON for other readers: half a surrogate pair, say.
            try:
                document = json.loads(data)
                if not isinstance(document, dict):
                    raise TypeError
            except (ValueError, TypeError, RecursionError) as error:
                return self._garbage(error)
            chunk = _AnyChunk(choices=[_AnyChoice(delta={"unread": Raw(data)})])
        if (failed := self._note(chunk)) is not None:
            return failed
        choices = chunk.choices
        self._pass(data, usage=not choices and bytes(chunk.usage) != _NULL)
        for choice in choices or ():
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
            for name, value in (choice.delta or _NOTHING).items():
                if name != "role" and bytes(value) not in _NO_WORDS:
                    self._spoken = True
                    self.deltas += 1
                    break
        if not self._spoken and self._waiting > _LONGEST_EVENT:
            return self._failed(UPSTREAM_ERROR, "the model service's answer has no words")
        return None


class _Finish(Struct, gc=False):
    finish_reason: str | None = None


class _Document(Struct, gc=False):
    choices: list[_Finish] | None = None
    id: str | None = None
    model: str | None = None
    usage: Raw = Raw(b"null")


_LONGEST_DOCUMENT: Final = 64 * 1024 * 1024  # bytes; more than any model's longest answer


class WholeCompletion:
    """One chat completion that is no stream: a document, read for the record and passed on as it is."""

    media_type = "application/json"

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.deltas = 0
        self._document = bytearray()

    def read(self, chunk: bytes) -> list[Event]:
        """Nothing comes out before the end."""
        self._document += chunk
        if len(self._document) > _LONGEST_DOCUMENT:
            return [Failed(UPSTREAM_ERROR, f"the model service's answer is longer than {_LONGEST_DOCUMENT} bytes")]
        return []

    def end(self) -> Done | Failed:
        """The document is complete, if it is one."""
        content = bytes(self._document)
        try:
            document = msgspec.json.decode(content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if not _object(content):
                reason = f"the model service's answer is no chat completion ({type(error).__name__})"
                return Failed(UPSTREAM_ERROR, reason)
            document = _Document()  # the caller may read more in it than the record does
        self.id, self.model = document.id, document.model
        self.usage = _usage(document.usage) if bytes(document.usage) != _NULL else None
        self.finish_reason = document.choices[0].finish_reason if document.choices else None
        return Done(self.finish_reason, self.model, self.usage, self.id, document=content)

    def cut(self, reason: str) -> Failed:
        """The connection broke."""
        return Failed(UPSTREAM_INTERRUPTED, reason)


def filter_results(error: dict[str, Any]) -> dict[str, Any]:
    """What Azure's content filter said of the prompt, out of the error object that refuses it."""
    inner = error.get("innererror")
    results = inner.get("content_filter_result") if isinstance(inner, dict) else None
    return results if isinstance(results, dict) else {}


def filtered_categories(results: dict[str, Any]) -> dict[str, Any]:
    """The categories that the filter acted on, of all that it reports on: `{"violence": {"filtered": true, …}}`."""
    categories: dict[str, Any] = {}
    for category, result in results.items():
        if not isinstance(result, dict) or not result.get("filtered") or not _CATEGORY.fullmatch(category):
            continue
        said: dict[str, Any] = {"filtered": True}
        if isinstance(severity := result.get("severity"), str) and _CATEGORY.fullmatch(severity):
            said["severity"] = severity
        if isinstance(detected := result.get("detected"), bool):
            said["detected"] = detected
        categories[category] = said
    return categories


def printable(code: str) -> str:
    """A code of the upstream's, fit for a log line: a code is a word, and what is not a word is not repeated."""
    return code if _CODE.fullmatch(code) else "unreadable"


_CATEGORY: Final = re.compile(r"[a-z][a-z0-9_]{0,49}")
_CODE: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def _usage(counts: Raw) -> Usage | None:
    """The counts, or none where they can't be read: an answer is not less complete for it."""
    try:
        return msgspec.json.decode(counts, type=_Usage).usage()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _joined(words: list[bytes]) -> Text:
    """JSON strings end to end are one JSON string: only the quotation marks between them go."""
    if len(words) == 1:
        return Text(words[0])
    return Text(b'"%b"' % b"".join([part[1:-1] for part in words]))


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _valid_utf8(words: bytes) -> bytes:
    """The same, with U+FFFD for bytes that are not UTF-8, as the standard has an event stream decoded."""
    try:
        words.decode()
    except UnicodeDecodeError:
        return words.decode(errors="replace").encode()
    return words


def _decode_leniently(data: bytes) -> _Chunk:
    """A chunk that the strict decoder refuses though it can be read: half a surrogate pair, bytes that are not UTF-8.

    Raises ValueError or TypeError for what is no chunk.
    """
    document = json.loads(data.decode(errors="replace"))
    texts: list[tuple[int, str, bytes]] = []
    choices = document.get("choices") if isinstance(document, dict) else None
    for position, choice in enumerate(choices or ()):
        delta = choice.get("delta") if isinstance(choice, dict) else None
        for name in ("content", "refusal"):
            if isinstance(delta, dict) and isinstance(delta.get(name), str):
                texts.append((position, name, json.dumps(delta.pop(name)).encode("ascii")))
    chunk = _decode_chunk(json.dumps(document).encode())
    for position, name, text in texts:
        setattr((chunk.choices or [])[position].delta, name, Raw(text))
    return chunk
