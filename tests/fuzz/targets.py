"""Properties that must hold for any input: one function a target, which raises when its property does not hold.

They need no fuzzer: `tests/fuzz/test_corpus.py` runs them on the corpus.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import msgspec

from relay.problems import Problem
from relay.settings import TEXT_WIRES
from relay.streaming.events import Decoder, Done, Failed, Text, Verbatim
from relay.upstream.sse import SSEDecoder
from relay.wires import chat_completions, responses, stream
from relay.wires.chat_completions import EventEncoder
from relay.wires.chat_decoders import DocumentDecoder, TextDecoder, VerbatimDecoder
from relay.wires.responses_decoders import EventDecoder
from relay.wires.responses_decoders import EventEncoder as ResponseEncoder
from relay.wires.stream_encoders import (
    JSONDocumentEncoder,
    NDJSONEncoder,
    PlainTextEncoder,
    SSEEncoder,
    encoder_for,
)

_LIMIT: Final = 1000  # the app's output limit


def parse_stream_request(data: bytes) -> None:
    """`POST /stream`: a request whose upstream parameters are JSON and hold the body's text, or a problem."""
    request = stream.parse(data)
    if isinstance(request, Problem):
        _check_problem(request)
        return
    body = json.loads(data.decode("utf-8-sig"))
    sent = {}
    for wire in TEXT_WIRES:
        upstream_request = request.on(wire).upstream_request(max_output_tokens=_LIMIT)
        sent[wire] = json.loads(msgspec.json.encode(upstream_request.parameters))
    last = body["input"] if isinstance(body["input"], str) else body["input"][-1]["content"]
    items = sent["responses"]["input"]
    contents = (sent["chat"]["messages"][-1]["content"], items if isinstance(items, str) else items[-1]["content"])
    for content in contents:
        assert content == last if isinstance(last, str) else len(content) == len(last)
    assert 1 <= sent["chat"]["max_completion_tokens"] <= _LIMIT
    assert 1 <= sent["responses"]["max_output_tokens"] <= _LIMIT
    request.encoder("text/plain")


def parse_chat_request(data: bytes) -> None:
    """`POST /v1/chat/completions`: the body's members unchanged except those that the app decides, or a problem."""
    request = chat_completions.parse(data)
    if isinstance(request, Problem):
        _check_problem(request)
        return
    decided = ("model", "stream_options", "max_tokens", "max_completion_tokens")
    upstream_request = request.upstream_request(max_output_tokens=_LIMIT)
    parameters = json.loads(msgspec.json.encode({**upstream_request.parameters, "model": "m"}))
    body = json.loads(data.decode("utf-8-sig"))
    for name, value in body.items():
        assert name in decided or parameters[name] == value, name
    for name in decided[2:]:
        assert parameters.get(name) is None or 1 <= parameters[name] <= _LIMIT
    assert request.stream == upstream_request.stream == (body.get("stream") is True)
    request.encoder(None)


def _check_problem(problem: Problem) -> None:
    for document in (problem.document("a-request"), problem.openai_document("a-request")):
        assert isinstance(json.loads(document), dict)
        assert len(document) < 10_000, "the response is a multiple of a hostile request"


def split_events(data: bytes) -> None:
    """The decoder of the event stream splits as the standard says, wherever the reads were split."""
    content, chunks = _cut(data)
    whole = SSEDecoder().feed(content)
    assert whole == list(_events(content))
    decoder = SSEDecoder()
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == whole


def _cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """A stream, and the same in chunks, whose sizes are given by its first bytes: their number, then each size."""
    count = data[0] % 16 if data else 0
    sizes, content = data[1 : 1 + count], data[1 + count :]
    chunks, position = [], 0
    while position < len(content):
        size = 1 + (sizes[len(chunks) % len(sizes)] if sizes else len(content))
        chunks.append(content[position : position + size])
        position += size
    return content, chunks


def _events(content: bytes) -> Iterator[bytes]:
    """The data of the events, by the letter of WHATWG HTML, section 9.2.6."""
    *lines, _ = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if line == b"":
            if data:
                yield b"\n".join(data)
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
        elif line.startswith(b"{"):
            data.append(line)  # the decoder's own rule


def decode_text(data: bytes) -> None:
    """The text of an answer: the same wherever it was split, equal to what was sent, in every format."""
    content, chunks = _cut(data)
    whole, terminal = _decode(TextDecoder(), [content])
    parts, same_terminal = _decode(TextDecoder(), chunks)
    text, split = ("".join(_strings(texts)) for texts in (whole, parts))
    assert _utf16(split) == _utf16(text)
    assert _summary(terminal) == _summary(same_terminal)
    sent = _sent_text(content)
    if sent is not None:
        complete = isinstance(terminal, Done)
        assert _utf16(text) == _utf16(sent) if complete else _utf16(sent).startswith(_utf16(text))
    _check_encoders(whole, terminal, text)


def _decode(decoder: Decoder, chunks: list[bytes]) -> tuple[list[Text], Done | Failed]:
    """All that a decoder makes of an answer; one terminal event, and nothing after it but the usage."""
    texts: list[Text] = []
    terminal: Done | Failed | None = None
    for chunk in chunks:
        for event in decoder.feed(chunk):
            late_usage = isinstance(terminal, Done) and isinstance(event, Verbatim) and event.usage
            assert terminal is None or late_usage, "an event came after the terminal one"
            if isinstance(event, Text):
                texts.append(event)
            else:
                terminal = event
    if terminal is None:
        *rest, last = decoder.end()
        texts += [event for event in rest if isinstance(event, Text)]
        assert isinstance(last, Done | Failed)
        terminal = last
    if isinstance(terminal, Done):
        terminal = replace(terminal, usage=decoder.usage)
    return texts, terminal


def _strings(texts: list[Text]) -> list[str]:
    """Each part of the text, decoded; its JSON is UTF-8, whatever was received."""
    return [json.loads(text.json.decode()) for text in texts]


def _utf16(text: str) -> bytes:
    """Code units: where a surrogate pair was split over two events, its halves are a pair again."""
    return text.encode("utf-16-le", "surrogatepass")


def _summary(terminal: Done | Failed) -> tuple[Any, ...]:
    if isinstance(terminal, Failed):
        return ("failed", terminal.problem.code, terminal.usage)
    return ("done", terminal.finish_reason, terminal.model, terminal.usage, terminal.id, terminal.content_filter)


def _sent_text(content: bytes) -> str | None:
    """The text of an answer up to its end, by a straightforward parser; None where that can't read it."""
    text: list[str] = []
    try:
        for data in _events(content):
            if data == b"[DONE]":
                break
            if not data:
                continue
            chunk = json.loads(data.decode(errors="replace"))
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                if choice.get("index", 0) == 0:
                    text += [delta[name] for name in ("content", "refusal") if delta.get(name)]
        return "".join(text)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _check_encoders(texts: list[Text], terminal: Done | Failed, text: str) -> None:
    """Every format holds the text, and nothing in the text is taken for something else."""
    sse = SSEEncoder()
    events = list(_events(b"".join(map(sse.text, texts))))
    assert [json.loads(event)["text"] for event in events] == _strings(texts)
    ndjson = NDJSONEncoder("application/x-ndjson")
    lines = b"".join(map(ndjson.text, texts)).decode().splitlines()
    assert [json.loads(line)["text"] for line in lines] == _strings(texts)
    plain, document = PlainTextEncoder(), JSONDocumentEncoder()
    plain_text = b"".join(map(plain.text, texts))
    for part in texts:
        document.text(part)
    if isinstance(terminal, Done):
        assert (plain_text + plain.done(terminal)).decode() == _utf16(text).decode("utf-16-le", "replace")
        assert _utf16(json.loads(document.done(terminal))["text"]) == _utf16(text)
        assert len(list(_events(sse.done(terminal)))) == 1
        assert json.loads(ndjson.done(terminal))["type"] == "done"
    else:
        assert len(list(_events(sse.failed(terminal, "a-request")))) == 1
        assert json.loads(ndjson.failed(terminal, "a-request"))["type"] == "error"


def decode_verbatim(data: bytes) -> None:
    """An answer passed on event by event: the same wherever it was split; what was received is what goes out."""
    content, chunks = _cut(data)
    whole, terminal = _decode(VerbatimDecoder(), [content])
    parts, same_terminal = _decode(VerbatimDecoder(), chunks)
    assert _verbatim_events(parts) == _verbatim_events(whole)
    assert _summary(terminal) == _summary(same_terminal)
    received = [event for event in _events(content) if event]  # an event without data is not passed on
    passed = _verbatim_events(whole)
    assert [event for event, _ in passed] == received[: len(passed)]
    with_usage = EventEncoder(include_usage=True)
    assert list(_events(b"".join(map(with_usage.text, whole)))) == [event for event, _ in passed]
    without_usage = EventEncoder(include_usage=False)
    shown = [event for event, usage in passed if not usage]
    assert list(_events(b"".join(map(without_usage.text, whole)))) == shown
    if isinstance(terminal, Failed):
        assert len(list(_events(with_usage.failed(terminal, "a-request")))) == 1


def _verbatim_events(texts: list[Text]) -> list[tuple[bytes, bool]]:
    """The data of each event, and whether it carries the usage alone."""
    return [(event, text.usage) for text in texts if isinstance(text, Verbatim) for event in text.events]


def decode_response(data: bytes) -> None:
    """A streamed response: the same wherever it was split; what was received is what goes out, under its type; and
    complete only by the event that says so."""
    content, chunks = _cut(data)
    whole, terminal = _decode(EventDecoder(), [content])
    parts, same_terminal = _decode(EventDecoder(), chunks)
    encoder, other = ResponseEncoder(), ResponseEncoder()
    passed = b"".join(map(encoder.text, whole))
    assert b"".join(map(other.text, parts)) == passed
    assert _summary(terminal) == _summary(same_terminal)
    received = iter(_events(content))
    events = list(_events(passed))
    assert all(event in received for event in events), "an event that was not received, or out of order"
    if isinstance(terminal, Done):
        assert json.loads(events[-1].decode(errors="replace"))["type"].startswith("response.")
    else:
        (error,) = list(_events(encoder.failed(terminal, "a-request"))) or events[-1:]
        assert json.loads(error.decode(errors="replace"))["type"] in ("error", "response.failed")


def parse_response_request(data: bytes) -> None:
    """`POST /v1/responses`: the body's members unchanged except those that the app decides, or a problem."""
    request = responses.parse(data)
    if isinstance(request, Problem):
        _check_problem(request)
        return
    sent = request.upstream_request(max_output_tokens=_LIMIT).parameters or {}
    parameters = json.loads(msgspec.json.encode({**sent, "model": "m"}))
    for name, value in json.loads(data.decode("utf-8-sig")).items():
        assert name in ("model", "max_output_tokens") or parameters[name] == value, name
    assert 1 <= parameters["max_output_tokens"] <= _LIMIT


def decode_document(data: bytes) -> None:
    """An answer in one document: passed on as it is, or a failure."""
    decoder = DocumentDecoder()
    assert decoder.feed(data) == []
    (terminal,) = decoder.end()
    if isinstance(terminal, Done):
        assert isinstance(json.loads(terminal.document or b""), dict)
        if data.lstrip().startswith(b"{") and not data.rstrip().endswith(b"[DONE]"):
            assert terminal.document == data.decode(errors="replace").encode()


def choose_encoder(data: bytes) -> None:
    """Any `Accept` header selects an encoder."""
    encoder_for(data.decode("latin-1"))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "stream": parse_stream_request,
    "chat": parse_chat_request,
    "sse": split_events,
    "text": decode_text,
    "verbatim": decode_verbatim,
    "document": decode_document,
    "response": decode_response,
    "responses": parse_response_request,
    "accept": choose_encoder,
}
