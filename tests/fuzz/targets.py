"""What must hold whatever the bytes are: one function a target, which raises when it does not hold.

They need no fuzzer: `tests/test_fuzz_corpus.py` runs them on the corpus.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from relay import chat, prompt
from relay.completion import Completion, Done, EventReader, Failed, Reading, Text, Verbatim, VerbatimCompletion
from relay.completion import WholeCompletion as Whole
from relay.formats import JsonDocument, NewlineDelimitedJson, OpenAIEvents, PlainText, ServerSentEvents, choose
from relay.problems import Problem

_LIMIT: Final = 1000  # the output limit that the app is told


def read_prompt(data: bytes) -> None:
    """`POST /stream`: a prompt whose parameters are JSON and say what the body says, or a problem with a document."""
    asked = prompt.read(data)
    if isinstance(asked, Problem):
        _check_problem(asked)
        return
    body = json.loads(data.decode("utf-8-sig"))
    parameters = json.loads(msgspec.json.encode(asked.parameters(max_output_tokens=_LIMIT)))
    said = parameters["messages"][-1]["content"]
    assert said == (body["input"] if isinstance(body["input"], str) else body["input"][-1]["content"])
    assert 1 <= parameters["max_completion_tokens"] <= _LIMIT
    asked.form("text/plain")


def read_chat(data: bytes) -> None:
    """`POST /v1/chat/completions`: the body's members as they are but for what the app decides, or a problem."""
    asked = chat.read(data)
    if isinstance(asked, Problem):
        _check_problem(asked)
        return
    decided = ("model", "stream_options", "max_tokens", "max_completion_tokens")
    parameters = json.loads(msgspec.json.encode({**asked.parameters(max_output_tokens=_LIMIT), "model": "m"}))
    body = json.loads(data.decode("utf-8-sig"))
    for name, value in body.items():
        assert name in decided or parameters[name] == value, name
    for name in decided[2:]:
        assert parameters.get(name) is None or 1 <= parameters[name] <= _LIMIT
    assert asked.stream == (body.get("stream") is True)
    asked.form(None)


def _check_problem(problem: Problem) -> None:
    for document in (problem.document("a-request"), problem.openai_document("a-request")):
        assert isinstance(json.loads(document), dict)
        assert len(document) < 10_000, "an answer is no multiple of a hostile request"


def split_events(data: bytes) -> None:
    """The reader of the event stream splits as the standard says, wherever the reads were split."""
    stream, cuts = _cut(data)
    whole = EventReader().feed(stream)
    assert whole == list(_events(stream))
    pieces = EventReader()
    assert [event for piece in cuts for event in pieces.feed(piece)] == whole


def _cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """A stream, and the same in pieces, whose sizes its first bytes give: how many, then each."""
    count = data[0] % 16 if data else 0
    sizes, stream = data[1 : 1 + count], data[1 + count :]
    pieces, at = [], 0
    while at < len(stream):
        size = 1 + (sizes[len(pieces) % len(sizes)] if sizes else len(stream))
        pieces.append(stream[at : at + size])
        at += size
    return stream, pieces


def _events(stream: bytes) -> Iterator[bytes]:
    """The data of the events, by the letter of WHATWG HTML, section 9.2.6."""
    *lines, _ = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if line == b"":
            if data:
                yield b"\n".join(data)
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))


def read_words(data: bytes) -> None:
    """An answer read for its words: the same wherever it was split, the words that were said, in every format."""
    stream, cuts = _cut(data)
    whole, end = _read(Completion(), [stream])
    pieces, same_end = _read(Completion(), cuts)
    words, split = ("".join(_strings(texts)) for texts in (whole, pieces))
    assert _utf16(split) == _utf16(words)
    assert _kind(end) == _kind(same_end)
    said = _said(stream)
    if said is not None:
        assert _utf16(words) == _utf16(said) if isinstance(end, Done) else _utf16(said).startswith(_utf16(words))
    _check_formats(whole, end, words)


def _read(reading: Reading, pieces: list[bytes]) -> tuple[list[Text], Done | Failed]:
    """All that a reading makes of an answer; one end, and nothing after it."""
    texts: list[Text] = []
    end: Done | Failed | None = None
    for piece in pieces:
        for event in reading.read(piece):
            assert end is None, "something came after the end"
            if isinstance(event, Text):
                texts.append(event)
            else:
                end = event
    return texts, end or reading.end()


def _strings(texts: list[Text]) -> list[str]:
    """What each says; its JSON is in UTF-8, whatever came."""
    return [json.loads(text.json.decode()) for text in texts]


def _utf16(words: str) -> bytes:
    """Code units: where a surrogate pair was split over two texts, its halves are a pair again."""
    return words.encode("utf-16-le", "surrogatepass")


def _kind(end: Done | Failed) -> tuple[Any, ...]:
    if isinstance(end, Failed):
        return ("failed", end.problem.code, end.usage)
    return ("done", end.finish_reason, end.model, end.usage, end.id, end.content_filter)


def _said(stream: bytes) -> str | None:
    """The words of an answer up to its end, read plainly; None where it can't be read so."""
    words: list[str] = []
    try:
        for data in _events(stream):
            if data == b"[DONE]":
                break
            if not data:
                continue
            chunk = json.loads(data.decode(errors="replace"))
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                if choice.get("index", 0) == 0:
                    words += [delta[name] for name in ("content", "refusal") if delta.get(name)]
        return "".join(words)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _check_formats(texts: list[Text], end: Done | Failed, words: str) -> None:
    """Every format says the words, and nothing in them is taken for something else."""
    sse = ServerSentEvents()
    events = list(_events(b"".join(map(sse.text, texts))))
    assert [json.loads(event)["text"] for event in events] == _strings(texts)
    lines = NewlineDelimitedJson("application/x-ndjson")
    written = b"".join(map(lines.text, texts)).decode().splitlines()
    assert [json.loads(line)["text"] for line in written] == _strings(texts)
    plain, document = PlainText(), JsonDocument()
    bare = b"".join(map(plain.text, texts))
    for text in texts:
        document.text(text)
    if isinstance(end, Done):
        assert (bare + plain.done(end)).decode() == _utf16(words).decode("utf-16-le", "replace")
        assert _utf16(json.loads(document.done(end))["text"]) == _utf16(words)
        assert len(list(_events(sse.done(end)))) == 1
        assert json.loads(lines.done(end))["type"] == "done"
    else:
        assert len(list(_events(sse.failed(end, "a-request")))) == 1
        assert json.loads(lines.failed(end, "a-request"))["type"] == "error"


def read_verbatim(data: bytes) -> None:
    """An answer passed on event by event: the same wherever it was split, and what was sent is what goes out."""
    stream, cuts = _cut(data)
    whole, end = _read(VerbatimCompletion(), [stream])
    pieces, same_end = _read(VerbatimCompletion(), cuts)
    assert [event for text in pieces for event in text.events] == [event for text in whole for event in text.events]
    assert _kind(end) == _kind(same_end)
    sent = [event for event in _events(stream) if event]  # one without data says nothing
    passed = [(event, text.usage) for text in whole if isinstance(text, Verbatim) for event in text.events]
    assert [event for event, _ in passed] == sent[: len(passed)]
    form = OpenAIEvents(include_usage=True)
    assert list(_events(b"".join(map(form.text, whole)))) == [event for event, _ in passed]
    quiet = OpenAIEvents(include_usage=False)
    shown = [event for event, usage in passed if not usage]
    assert list(_events(b"".join(map(quiet.text, whole)))) == shown
    if isinstance(end, Failed):
        assert len(list(_events(form.failed(end, "a-request")))) == 1


def read_document(data: bytes) -> None:
    """An answer in one document: passed on as it is, or a failure."""
    reading = Whole()
    assert reading.read(data) == []
    end = reading.end()
    if isinstance(end, Done):
        assert end.document == data
        assert isinstance(json.loads(data.decode(errors="replace")), dict)


def choose_format(data: bytes) -> None:
    """An `Accept` header chooses a format, whatever it says."""
    choose(data.decode("latin-1"))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "prompt": read_prompt,
    "chat": read_chat,
    "events": split_events,
    "words": read_words,
    "verbatim": read_verbatim,
    "document": read_document,
    "accept": choose_format,
}
