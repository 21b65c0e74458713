"""The upstream's bytes, read as Server-Sent Events, and what they mean: `Text`, `Done`, `Failed`.

Nothing is validated that is not used, and text is not even decoded: the JSON string of a delta is copied as it stands
into what goes out. Sources: the event stream's grammar, WHATWG HTML, section 9.2.6; the chunk object, OpenAI's API
reference, "Chat completion chunk"; Azure's additions, "Content Streaming" in Azure OpenAI's documentation.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

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
class Done:
    """The upstream said that the answer is complete."""

    finish_reason: str | None
    model: str | None
    usage: Usage | None
    id: str | None
    content_filter: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream ended without being complete; `reason` is for the log, never for the caller."""

    problem: Problem
    reason: str
    usage: Usage | None = None


Event = Text | Done | Failed


class EventReader:
    """Splits the bytes of an event stream into the data of its events, wherever the reads were split.

    Line ends may be LF, CR or CRLF, also mixed; an event's several `data:` lines are joined by LF; comments and the
    other fields are passed over. An event that the end of the bytes cuts is dropped, as the standard says.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the beginning of a line whose end has not arrived; joined once, when it does
        self._data: list[bytes] = []  # the data lines of the event that is being read
        self._after_cr = False

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
        if self._rest and lines:
            self._rest.append(lines[0])
            lines[0] = b"".join(self._rest)
            self._rest = []
        if unfinished:
            self._rest.append(unfinished)
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
            elif line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                data.append(b"")
        return events


class _Delta(Struct, gc=False):
    content: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    content_filter_results: Raw = Raw(b"null")


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
            self.prompt_tokens,
            self.completion_tokens,
            output.reasoning_tokens if output else None,
            prompt.cached_tokens if prompt else None,
        )


class _Chunk(Struct, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_NULL: Final = b"null"
_EMPTY: Final = b'""'
_QUOTATION_MARK: Final = 0x22


class Completion:
    """What one chat completion's events mean, gathered over the stream.

    After the one `Done` or `Failed`, nothing more comes out of it.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.content_filter: dict[str, Any] | None = None
        self.deltas = 0  # how many carried text: what the log estimates output tokens by when usage never came
        self.ended = False

    def read(self, events: Iterable[bytes]) -> list[Event]:
        """What these events mean; text that arrived together comes out together."""
        meanings: list[Event] = []
        text: list[bytes] = []
        for data in events:
            if self.ended:
                break
            if data == b"[DONE]":
                terminal: Done | Failed | None = self._done()
            else:
                terminal = self._chunk(data, text)
            if terminal is not None:
                self.ended = True
                if text:
                    meanings.append(_joined(text))
                    text = []
                meanings.append(terminal)
        if text:
            meanings.append(_joined(text))
        return meanings

    def cut(self, reason: str) -> Failed:
        """The bytes ended before the upstream said that the answer was complete."""
        self.ended = True
        return Failed(UPSTREAM_INTERRUPTED, reason, self.usage)

    def _done(self) -> Done:
        return Done(self.finish_reason, self.model, self.usage, self.id, self.content_filter)

    def _chunk(self, data: bytes, text: list[bytes]) -> Failed | None:
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            try:
                chunk = _decode_leniently(data)
            except (ValueError, TypeError, RecursionError) as error:
                return self._failed(UPSTREAM_ERROR, f"an event is no chat completion chunk ({type(error).__name__})")
        if chunk.usage is not None:
            self.usage = chunk.usage.usage()
        if chunk.id:
            self.id = chunk.id
        if chunk.model:
            self.model = chunk.model
        if chunk.error is not None:
            return self._error(chunk.error if isinstance(chunk.error, dict) else {})
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
                    text.append(words if words.isascii() else _valid_utf8(words))
                    self.deltas += 1
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
                if choice.finish_reason == "content_filter":
                    self.content_filter = filtered_categories(_object(bytes(choice.content_filter_results)))
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
