"""The text that a caller assembles equals what the model produced, in every format; the exact bytes of each format."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.problems import UPSTREAM_INTERRUPTED
from relay.streaming.events import AnswerTooLongError, Done, Encoder, Failed, Reasoning, Text
from relay.usage import Usage
from relay.wires import stream_encoders
from relay.wires.chat_decoders import TextDecoder
from relay.wires.stream_encoders import (
    JSONDocumentEncoder,
    NDJSONEncoder,
    PlainTextEncoder,
    SSEEncoder,
    encoder_for,
)

DONE = Done("stop", "model-1", Usage(1, 2), "id-1")
FAILED = Failed(UPSTREAM_INTERRUPTED, "for the log only", Usage(3, 4))
USAGE = {"input_tokens": 1, "output_tokens": 2}

# Lone surrogates included: a model's tokens may end in half of a pair.
TOKENS = st.lists(st.text(st.characters(), max_size=12), max_size=12)


def new_encoders() -> dict[str, Encoder]:
    return {
        "sse": SSEEncoder(),
        "ndjson": NDJSONEncoder("application/x-ndjson"),
        "plain": PlainTextEncoder(),
        "document": JSONDocumentEncoder(),
    }


def sent(encoder: Encoder, tokens: list[str], *, ascii_only: bool, done: Done = DONE) -> bytes:
    """What is sent to the caller when the model produces these tokens."""
    content = b""
    for token in tokens:
        chunk = json.dumps({"choices": [{"delta": {"content": token}}]}, ensure_ascii=ascii_only)
        for event in TextDecoder().feed(f"data: {chunk}\n\n".encode(errors="surrogatepass")):
            assert isinstance(event, Text)
            content += encoder.text(event)
    return content + encoder.done(done)


def joined(text: str, errors: str = "surrogatepass") -> str:
    """The text with the halves of surrogate pairs put together."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", errors)


def parsed_sse(content: bytes) -> list[tuple[str, Any]]:
    """By the rules of the standard, as simply as possible, for streams whose lines end in LF."""
    assert b"\r" not in content
    *blocks, rest = content.split(b"\n\n")
    assert rest == b""
    events = []
    for block in blocks:
        *kind, data = block.split(b"\n")
        assert len(kind) <= 1
        name = kind[0].removeprefix(b"event: ").decode() if kind else "message"
        assert data.startswith(b"data: ")
        events.append((name, json.loads(data[6:])))
    return events


@pytest.mark.parametrize("ascii_only", [True, False])
class TestText:
    def tokens(self, tokens: list[str], ascii_only: bool) -> list[str]:
        # Half a surrogate pair can only be sent escaped.
        return tokens if ascii_only else [token.encode(errors="ignore").decode() for token in tokens]

    @given(tokens=TOKENS)
    def test_server_sent_events(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        *texts, last = parsed_sse(sent(SSEEncoder(), tokens, ascii_only=ascii_only))
        assert {name for name, _ in texts} <= {"message"}
        assert joined("".join(members["text"] for _, members in texts)) == joined("".join(tokens))
        assert last == ("done", {"finish_reason": "stop", "model": "model-1", "usage": USAGE, "id": "id-1"})

    @given(tokens=TOKENS)
    def test_ndjson_by_any_definition_of_a_line(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        content = sent(NDJSONEncoder("application/jsonl"), tokens, ascii_only=ascii_only)
        lines = content.decode().splitlines()
        assert lines == content.decode().split("\n")[:-1]
        *texts, last = [json.loads(line) for line in lines]
        assert {line["type"] for line in texts} <= {"text"}
        assert joined("".join(line["text"] for line in texts)) == joined("".join(tokens))
        assert last == {"type": "done", "finish_reason": "stop", "model": "model-1", "usage": USAGE, "id": "id-1"}

    @given(tokens=TOKENS)
    def test_plain_text(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        content = sent(PlainTextEncoder(), tokens, ascii_only=ascii_only)
        assert content.decode() == joined("".join(tokens), "replace")

    @given(tokens=TOKENS)
    def test_one_document(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        document = json.loads(sent(JSONDocumentEncoder(), tokens, ascii_only=ascii_only))
        assert joined(document.pop("text")) == joined("".join(tokens))
        assert document == {"finish_reason": "stop", "model": "model-1", "usage": USAGE, "id": "id-1"}


@pytest.mark.parametrize("name", new_encoders())
def test_each_text_is_sent_at_once(name: str) -> None:
    encoder = new_encoders()[name]
    out = [encoder.text(Text(b'"%b"' % token)) for token in (b"one", b"two")]
    if encoder.whole:
        assert out == [b"", b""]
    else:
        assert b"one" in out[0]
        assert b"two" in out[1]


def test_one_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream_encoders._MAX_DOCUMENT_BYTES == 16 * 1024 * 1024
    monkeypatch.setattr(stream_encoders, "_MAX_DOCUMENT_BYTES", 1024 * 1024)
    encoder = JSONDocumentEncoder()
    encoder.text(Text(b'"%b"' % (b"x" * 1024 * 1024)))
    with pytest.raises(AnswerTooLongError, match="longer than the 1 MiB"):
        encoder.text(Text(b'"x"'))


class TestReasoning:
    def test_in_events(self) -> None:
        assert SSEEncoder().text(Reasoning(b'"a\xe2\x80\xa8"')) == b'event: reasoning\ndata: {"text":"a\\u2028"}\n\n'
        encoder = NDJSONEncoder("application/x-ndjson")
        assert encoder.text(Reasoning(b'"a\xe2\x80\xa8"')) == b'{"type":"reasoning","text":"a\\u2028"}\n'

    def test_plain_text_has_none(self) -> None:
        encoder = PlainTextEncoder()
        assert encoder.text(Text(b'"\\ud83c"')) == b""
        assert encoder.text(Reasoning(b'"x"')) == b""
        assert encoder.text(Text(b'"\\udf3f"')) == "🌿".encode()

    def test_in_a_document(self) -> None:
        encoder = JSONDocumentEncoder(reasoning=True)
        for text in (Reasoning(b'"a"'), Text(b'"x"'), Reasoning(b'"b"')):
            assert encoder.text(text) == b""
        document = json.loads(encoder.done(DONE))
        assert list(document) == ["text", "reasoning", "finish_reason", "model", "usage", "id"]
        assert (document["text"], document["reasoning"]) == ("x", "ab")

    def test_a_document_without_any(self) -> None:
        assert json.loads(JSONDocumentEncoder(reasoning=True).done(DONE))["reasoning"] is None
        assert "reasoning" not in json.loads(JSONDocumentEncoder().done(DONE))

    def test_that_of_an_answer_that_failed_is_dropped(self) -> None:
        encoder = JSONDocumentEncoder(reasoning=True)
        encoder.text(Reasoning(b'"a"'))
        encoder.restart()
        encoder.text(Reasoning(b'"b"'))
        assert json.loads(encoder.done(DONE))["reasoning"] == "b"
        for other in new_encoders().values():
            other.restart()

    def test_a_document_is_bounded_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stream_encoders, "_MAX_DOCUMENT_BYTES", 10)
        encoder = JSONDocumentEncoder(reasoning=True)
        encoder.text(Reasoning(b'"12345"'))
        encoder.text(Text(b'"12345"'))
        with pytest.raises(AnswerTooLongError):
            encoder.text(Reasoning(b'"1"'))


def test_the_properties_of_each_format() -> None:
    assert {name: (it.media_type, it.whole, it.breaks_off, it.ping) for name, it in new_encoders().items()} == {
        "sse": ("text/event-stream; charset=utf-8", False, False, b": ping\n\n"),
        "ndjson": ("application/x-ndjson", False, False, b""),
        "plain": ("text/plain; charset=utf-8", False, True, b""),
        "document": ("application/json", True, False, b""),
    }


class TestExactBytes:
    DONE_MEMBERS = b'"finish_reason":"stop","model":"model-1","usage":{"input_tokens":1,"output_tokens":2},"id":"id-1"'
    FAILED_MEMBERS = (
        b'"title":"The answer was cut off","status":502,"detail":"%b","code":"upstream_interrupted",'
        b'"request_id":"request-1","usage":{"input_tokens":3,"output_tokens":4}}' % UPSTREAM_INTERRUPTED.detail.encode()
    )

    def test_server_sent_events(self) -> None:
        encoder = SSEEncoder()
        assert encoder.text(Text(b'"a\\n\xc3\xa9"')) == b'data: {"text":"a\\n\xc3\xa9"}\n\n'
        assert encoder.done(DONE) == b"event: done\ndata: {%b}\n\n" % self.DONE_MEMBERS
        assert encoder.failed(FAILED, "request-1") == (
            b'event: error\ndata: {"type":"urn:problem-type:upstream_interrupted",%b\n\n' % self.FAILED_MEMBERS
        )

    def test_ndjson(self) -> None:
        encoder = NDJSONEncoder("application/jsonl")
        assert encoder.media_type == "application/jsonl"
        assert encoder.text(Text(b'"a\\n\xc3\xa9"')) == b'{"type":"text","text":"a\\n\xc3\xa9"}\n'
        assert encoder.done(DONE) == b'{"type":"done",%b}\n' % self.DONE_MEMBERS
        assert encoder.failed(FAILED, "request-1") == b'{"type":"error",%b\n' % self.FAILED_MEMBERS

    def test_plain_text(self) -> None:
        encoder = PlainTextEncoder()
        assert encoder.text(Text(b'"a\\n\xc3\xa9"')) == b"a\n\xc3\xa9"
        assert encoder.text(Text(b'""')) == b""
        assert encoder.done(DONE) == b""
        assert encoder.failed(FAILED, "request-1") is None

    def test_one_document(self) -> None:
        encoder = JSONDocumentEncoder()
        assert encoder.text(Text(b'"a\\n"')) == encoder.text(Text(b'"\xc3\xa9"')) == b""
        assert encoder.done(DONE) == b'{"text":"a\\n\xc3\xa9",%b}\n' % self.DONE_MEMBERS
        assert encoder.failed(FAILED, "request-1") is None

    def test_what_is_unknown_is_null_and_what_does_not_apply_is_left_out(self) -> None:
        unknown = Done(None, None, None, None)
        members = b'{"finish_reason":null,"model":null,"usage":null,"id":null}'
        assert SSEEncoder().done(unknown) == b"event: done\ndata: %b\n\n" % members
        failed = SSEEncoder().failed(Failed(UPSTREAM_INTERRUPTED, "x"), "request-1")
        assert failed.endswith(b'"request_id":"request-1"}\n\n')

    def test_the_categories_of_the_content_filter(self) -> None:
        done = Done("content_filter", None, None, None, {})
        assert SSEEncoder().done(done).endswith(b',"id":null,"content_filter":{}}\n\n')

    @pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
    def test_characters_that_some_readers_take_for_line_breaks_are_escaped(self, character: str) -> None:
        raw, escaped = character.encode(), b"\\u%04x" % ord(character)
        text = Text(b'"a%bb%bc"' % (raw, raw))
        assert SSEEncoder().text(text) == b'data: {"text":"a%bb%bc"}\n\n' % (escaped, escaped)
        assert NDJSONEncoder("x").text(text) == b'{"type":"text","text":"a%bb%bc"}\n' % (escaped, escaped)
        named = Done(None, character, None, None)
        assert b'"model":"%b"' % escaped in SSEEncoder().done(named)
        assert b'"model":"%b"' % escaped in NDJSONEncoder("x").done(named)
        problem = Failed(UPSTREAM_INTERRUPTED.with_detail(character), "x")
        assert b'"detail":"%b"' % escaped in SSEEncoder().failed(problem, "request-1")
        assert b'"detail":"%b"' % escaped in NDJSONEncoder("x").failed(problem, "request-1")


class TestSurrogatePairsInPlainText:
    def test_the_first_half_waits_for_the_second(self) -> None:
        encoder = PlainTextEncoder()
        assert encoder.text(Text(b'"a\\ud83c"')) == b"a"
        assert encoder.text(Text(b'"\\udf3fb"')) == "\U0001f33fb".encode()
        assert encoder.text(Text(b'"\\ud83c"')) == b""
        assert encoder.done(DONE) == "\ufffd".encode()
        assert encoder.done(DONE) == b""

    @pytest.mark.parametrize("first", ["d800", "dbff"])
    def test_every_first_half_is_held_back(self, first: str) -> None:
        encoder = PlainTextEncoder()
        assert encoder.text(Text(b'"a\\u%b"' % first.encode())) == b"a"
        assert encoder.text(Text(b'"\\udc00"')) == chr(0x10000 + ((int(first, 16) - 0xD800) << 10)).encode()

    @pytest.mark.parametrize("character", ["\\ud7ff", "\\udc00", "\\ue000"])
    def test_nothing_else_is(self, character: str) -> None:
        encoder = PlainTextEncoder()
        expected = {"\\ud7ff": "\ud7ff", "\\udc00": "\ufffd", "\\ue000": "\ue000"}[character]
        assert encoder.text(Text(b'"a%b"' % character.encode())) == f"a{expected}".encode()
        assert encoder.done(DONE) == b""

    def test_a_first_half_without_a_second(self) -> None:
        encoder = PlainTextEncoder()
        assert encoder.text(Text(b'"\\ud83c"')) == b""
        assert encoder.text(Text(b'"b"')) == "\ufffdb".encode()


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_a_terminal_event_is_one_line_with_any_text_in_it(name: str, reason: str) -> None:
    done = Done(reason, name, None, name, {"violence": {"filtered": True}})
    expected = {
        "finish_reason": reason,
        "model": name,
        "usage": None,
        "id": name,
        "content_filter": {"violence": {"filtered": True}},
    }
    assert parsed_sse(SSEEncoder().done(done)) == [("done", expected)]
    (line,) = NDJSONEncoder("x").done(done).decode().splitlines()
    assert json.loads(line) == {"type": "done", **expected}
    assert json.loads(JSONDocumentEncoder().done(done)) == {"text": "", **expected}


def test_a_failure_holds_the_problem_and_the_usage() -> None:
    ((name, members),) = parsed_sse(SSEEncoder().failed(FAILED, "request-1"))
    assert name == "error"
    assert members == UPSTREAM_INTERRUPTED.members("request-1") | {"usage": {"input_tokens": 3, "output_tokens": 4}}
    line = NDJSONEncoder("x").failed(FAILED, "request-1")
    assert json.loads(line) == members | {"type": "error"}
    assert b"for the log only" not in line
    assert PlainTextEncoder().failed(FAILED, "request-1") is None


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, SSEEncoder),
        ("", SSEEncoder),
        ("application/json", SSEEncoder),
        ("*/*", SSEEncoder),
        ("text/*", SSEEncoder),
        ("text/plain", PlainTextEncoder),
        (" Text/Plain ; charset=utf-8 ; q=0.5 ", PlainTextEncoder),
        ("application/json, text/plain;q=0.1", PlainTextEncoder),
        ("text/plain;q=0.5, application/jsonl;q=0.6", NDJSONEncoder),
        ("text/plain;q=0.6, application/jsonl;q=0.5", PlainTextEncoder),
        ("text/plain, application/jsonl", PlainTextEncoder),
        ("text/plain;q=0.5, application/x-ndjson", NDJSONEncoder),
        ("application/jsonl;q=1, text/plain", NDJSONEncoder),
        ("text/plain;Q = 0.5, text/event-stream;q=0.6", SSEEncoder),
        ("text/plain;x=1;q=0, application/jsonl;q=0.1", NDJSONEncoder),
        ("text/plain;q=0", SSEEncoder),
        ("text/plain;q=x", SSEEncoder),
        ("text/plain;q", SSEEncoder),
        ("text/plain;q=x;q=1", SSEEncoder),
        ("text/plain;q=nan", SSEEncoder),
        ("text/plain;q=-1", SSEEncoder),
        ("text/plainer", SSEEncoder),
        (",;=\x00\u00e9", SSEEncoder),
    ],
)
def test_accept(accept: str | None, kind: type) -> None:
    assert isinstance(encoder_for(accept), kind)


@pytest.mark.parametrize("media_type", ["application/x-ndjson", "application/jsonl"])
def test_ndjson_is_answered_under_the_name_that_was_asked_for(media_type: str) -> None:
    assert encoder_for(f"{media_type.upper()};q=0.2").media_type == media_type


@given(st.text())
def test_any_accept_header_selects_an_encoder(accept: str) -> None:
    assert encoder_for(accept).media_type
