"""What a caller assembles equals what the model produced, in every format."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import formats
from relay.completion import Completion, Done, Failed, Text, Usage
from relay.problems import UPSTREAM_INTERRUPTED

DONE = Done("stop", "model-1", Usage(1, 2), "id-1")
USAGE = {"input_tokens": 1, "output_tokens": 2}

# Lone surrogates included: a model's tokens may end in half of a pair.
TOKENS = st.lists(st.text(st.characters(), max_size=12), max_size=12)


def every_format() -> dict[str, formats.Format]:
    return {
        "sse": formats.ServerSentEvents(),
        "ndjson": formats.NewlineDelimitedJson("application/x-ndjson"),
        "plain": formats.PlainText(),
        "document": formats.JsonDocument(),
    }


def sent(form: formats.Format, tokens: list[str], *, ascii_only: bool, done: Done = DONE) -> bytes:
    """What goes out when the model produces these tokens."""
    content = b""
    for token in tokens:
        chunk = json.dumps({"choices": [{"delta": {"content": token}}]}, ensure_ascii=ascii_only)
        for meaning in Completion().read(f"data: {chunk}\n\n".encode(errors="surrogatepass")):
            assert isinstance(meaning, Text)
            content += form.text(meaning)
    return content + form.done(done)


def whole(text: str, errors: str = "surrogatepass") -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", errors)


def heard_sse(content: bytes) -> list[tuple[str, Any]]:
    """By the rules of the standard, as simply as can be, for what ends its lines with LF."""
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
class TestTheWords:
    def tokens(self, tokens: list[str], ascii_only: bool) -> list[str]:
        # Half a surrogate pair can only be sent escaped.
        return tokens if ascii_only else [token.encode(errors="ignore").decode() for token in tokens]

    @given(tokens=TOKENS)
    def test_as_server_sent_events(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        *texts, last = heard_sse(sent(formats.ServerSentEvents(), tokens, ascii_only=ascii_only))
        assert {name for name, _ in texts} <= {"message"}
        assert whole("".join(members["text"] for _, members in texts)) == whole("".join(tokens))
        assert last == ("done", {"finish_reason": "stop", "model": "model-1", "usage": USAGE, "id": "id-1"})

    @given(tokens=TOKENS)
    def test_as_lines_for_every_idea_of_a_line(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        content = sent(formats.NewlineDelimitedJson("application/jsonl"), tokens, ascii_only=ascii_only)
        lines = content.decode().splitlines()
        assert lines == content.decode().split("\n")[:-1]
        *texts, last = [json.loads(line) for line in lines]
        assert {line["type"] for line in texts} <= {"text"}
        assert whole("".join(line["text"] for line in texts)) == whole("".join(tokens))
        assert last == {"type": "done", "finish_reason": "stop", "model": "model-1", "usage": USAGE, "id": "id-1"}

    @given(tokens=TOKENS)
    def test_as_plain_text(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        content = sent(formats.PlainText(), tokens, ascii_only=ascii_only)
        assert content.decode() == whole("".join(tokens), "replace")

    @given(tokens=TOKENS)
    def test_as_one_document(self, ascii_only: bool, tokens: list[str]) -> None:
        tokens = self.tokens(tokens, ascii_only)
        document = json.loads(sent(formats.JsonDocument(), tokens, ascii_only=ascii_only))
        assert whole(document.pop("text")) == whole("".join(tokens))
        assert document == {"finish_reason": "stop", "model": "model-1", "usage": USAGE, "id": "id-1"}


@pytest.mark.parametrize("form", every_format())
def test_each_text_goes_out_at_once(form: str) -> None:
    writer = every_format()[form]
    out = [writer.text(Text(b'"%b"' % token)) for token in (b"one", b"two")]
    if writer.whole:
        assert out == [b"", b""]
    else:
        assert b"one" in out[0]
        assert b"two" in out[1]


def test_half_a_pair_waits_for_the_other_in_plain_text() -> None:
    form = formats.PlainText()
    assert form.text(Text(b'"a\\ud83c"')) == b"a"
    assert form.text(Text(b'"\\udf3fb"')) == "\U0001f33fb".encode()
    assert form.text(Text(b'"\\ud83c"')) == b""
    assert form.done(DONE) == "\ufffd".encode()


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_a_terminal_event_is_one_line_whatever_the_model_service_calls_itself(name: str, reason: str) -> None:
    done = Done(reason, name, None, name, {"violence": {"filtered": True}})
    expected = {
        "finish_reason": reason,
        "model": name,
        "usage": None,
        "id": name,
        "content_filter": {"violence": {"filtered": True}},
    }
    assert heard_sse(formats.ServerSentEvents().done(done)) == [("done", expected)]
    (line,) = formats.NewlineDelimitedJson("x").done(done).decode().splitlines()
    assert json.loads(line) == {"type": "done", **expected}
    assert json.loads(formats.JsonDocument().done(done)) == {"text": "", **expected}


def test_a_failure_says_the_problem_and_the_usage() -> None:
    failed = Failed(UPSTREAM_INTERRUPTED, "for the log only", Usage(3, 4))
    ((name, members),) = heard_sse(formats.ServerSentEvents().failed(failed, "request-1"))
    assert name == "error"
    assert members == UPSTREAM_INTERRUPTED.members("request-1") | {"usage": {"input_tokens": 3, "output_tokens": 4}}
    line = formats.NewlineDelimitedJson("x").failed(failed, "request-1")
    assert line is not None
    assert json.loads(line) == members | {"type": "error"}
    assert b"for the log only" not in line
    assert formats.PlainText().failed(failed, "request-1") is None


def test_a_ping_is_a_comment() -> None:
    assert formats.ServerSentEvents().ping == b": ping\n\n"
    assert {form: every_format()[form].ping for form in ("ndjson", "plain", "document")} == {
        "ndjson": b"",
        "plain": b"",
        "document": b"",
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, formats.ServerSentEvents),
        ("", formats.ServerSentEvents),
        ("application/json", formats.ServerSentEvents),
        ("*/*", formats.ServerSentEvents),
        ("text/*", formats.ServerSentEvents),
        ("text/plain", formats.PlainText),
        (" Text/Plain ; charset=utf-8 ; q=0.5 ", formats.PlainText),
        ("application/json, text/plain;q=0.1", formats.PlainText),
        ("text/plain;q=0.5, application/jsonl;q=0.6", formats.NewlineDelimitedJson),
        ("text/plain;q=0", formats.ServerSentEvents),
        ("text/plain;q=x", formats.ServerSentEvents),
        ("text/plain;q=nan", formats.ServerSentEvents),
        ("text/plain;q=-1", formats.ServerSentEvents),
        ("text/plainer", formats.ServerSentEvents),
        (",;=\x00\u00e9", formats.ServerSentEvents),
    ],
)
def test_what_accept_asks_for(accept: str | None, kind: type) -> None:
    assert isinstance(formats.choose(accept), kind)


@given(st.text())
def test_no_accept_harms(accept: str) -> None:
    assert formats.choose(accept).media_type
