"""The text of a response, wherever the reads were split: its pieces, its end, its reasoning, its failures."""

import itertools
import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.problems import (
    CONTENT_FILTER,
    INVALID_REQUEST,
    RATE_LIMITED,
    UPSTREAM_ERROR,
    UPSTREAM_INTERRUPTED,
    Problem,
)
from relay.streaming.events import Done, Event, Failed, Reasoning, Text
from relay.upstream.sse import MAX_EVENT_BYTES
from relay.wires.responses_text import ResponseTextDecoder
from tests.relay.event_streams import LINE_ENDS, split_at
from tests.relay.wires.test_responses_decoders import (
    COMPLETED,
    CREATED,
    FAILED,
    IN_PROGRESS,
    ITEM,
    PART,
    USAGE,
    event,
    response,
)

DONE: Final = Done("stop", "m-1", USAGE, "resp_1", closed=True)
SILENT: Final = Failed(UPSTREAM_ERROR, "the model service's response failed without an error")


def delta(text: Any, kind: str = "output_text") -> bytes:
    return event(f"response.{kind}.delta", 4, item_id="msg_1", output_index=0, content_index=0, delta=text)


def message(*texts: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text, "annotations": []} for text in texts]}


def decoded(*chunks: bytes, reasoning: bool = False, ends: bool = False) -> list[Event]:
    decoder = ResponseTextDecoder(reasoning=reasoning)
    events = [found for chunk in chunks for found in decoder.feed(chunk)]
    return events + decoder.end() if ends else events


def text_of(events: list[Event], kind: type[Text] = Text) -> str:
    return "".join(json.loads(it.json) for it in events if type(it) is kind)


def ending(events: list[Event]) -> Done | Failed:
    *_, last = events
    assert isinstance(last, Done | Failed)
    return last


def failed(events: list[Event]) -> Failed:
    last = ending(events)
    assert isinstance(last, Failed)
    return last


def _unescaped(sent: bytes, text: str) -> bytes:
    """The same event with its text in UTF-8."""
    return sent.replace(json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode())


class TestText:
    @settings(max_examples=60)
    @given(
        st.lists(st.text(max_size=4) | st.sampled_from(["\u2028", "🌿", '"', "\\", "\n"]), max_size=8),
        st.lists(st.integers(0, 3000)),
        st.sampled_from(LINE_ENDS),
        st.booleans(),
    )
    def test_it_is_that_of_the_deltas(self, texts: list[str], cuts: list[int], line_end: str, raw: bool) -> None:
        deltas = [_unescaped(delta(text), text) if raw else delta(text) for text in texts]
        content = (CREATED + IN_PROGRESS + ITEM + PART + b"".join(deltas) + COMPLETED).replace(b"\n", line_end.encode())
        events = decoded(*split_at(content, cuts))
        assert text_of(events) == "".join(texts)
        assert ending(events) == DONE

    def test_what_arrived_together_is_one_event(self) -> None:
        events = decoded(CREATED + delta("a") + delta("b\u00e9") + COMPLETED)
        assert events == [Text(b'"ab\\u00e9"'), DONE]

    def test_each_delta_is_passed_on_at_once(self) -> None:
        decoder = ResponseTextDecoder()
        assert decoder.feed(CREATED + ITEM) == []
        for number in range(1, 4):
            assert decoder.feed(delta("a")) == [Text(b'"a"')]
            assert decoder.deltas == number
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("resp_1", "m-1", None)
        assert not decoder.complete
        assert decoder.feed(COMPLETED) == [DONE]
        assert (decoder.complete, decoder.finish_reason, decoder.usage) == (True, "stop", USAGE)
        assert decoder.feed(delta("x")) == []
        assert decoder.end() == [DONE]
        assert decoder.cut("x") == [DONE]

    def test_items_and_parts_keep_their_order(self) -> None:
        sent = [delta("Let me look. "), ITEM, delta("It is"), PART, delta(" here", "refusal"), delta(".")]
        assert text_of(decoded(*sent, COMPLETED)) == "Let me look. It is here."

    def test_members_in_any_order(self) -> None:
        """As servers that are not OpenAI's write them: vLLM has the type last."""
        sent = b'data: {"delta":"a","output_index":0,"type":"response.output_text.delta"}\n\n'
        assert text_of(decoded(CREATED, sent, COMPLETED)) == "a"

    @pytest.mark.parametrize(
        ("sent", "text"),
        [
            (b'"\\ud83c"', "\ud83c"),
            (b'"caf\xe9"', "caf\ufffd"),
            (b'""', ""),
            (b"null", ""),
        ],
    )
    def test_odd_text(self, sent: bytes, text: str) -> None:
        of_openai = b'data: {"type":"response.output_text.delta","delta":%b}\n\n' % sent
        of_others = b'data: {"delta":%b,"type":"response.output_text.delta"}\n\n' % sent
        for content in (of_openai, of_others):
            assert text_of(decoded(CREATED, content, COMPLETED)) == text

    @pytest.mark.parametrize("value", [1, {}, ["x"], True])
    def test_what_is_no_text(self, value: Any) -> None:
        assert failed(decoded(CREATED, delta(value))) == Failed(UPSTREAM_ERROR, "the text of an event is not a string")

    def test_other_output_is_none(self) -> None:
        others = [
            event("response.function_call_arguments.delta", delta="{"),
            event("response.reasoning_summary_text.delta", delta="hm"),
            event("response.reasoning_text.delta", delta="hm"),
            event("response.reasoning_summary_text.done", text="hm"),
            event("response.output_text.annotation.added", annotation={}),
            event("response.something_new", delta="x"),
        ]
        decoder = ResponseTextDecoder()
        before = decoder.progress
        for number, it in enumerate(others, 1):
            assert decoder.feed(it) == []
            assert decoder.progress == before + number, "it shows that the model works"
        assert decoder.deltas == 0

    def test_a_comment_is_no_progress_and_a_part_of_an_event_is(self) -> None:
        decoder = ResponseTextDecoder()
        decoder.feed(CREATED)
        before = decoder.progress
        assert decoder.feed(b": ping\n\n") == []
        assert decoder.progress == before
        assert decoder.feed(b"data: {") == []
        assert decoder.progress == before + 1


class TestTextWithoutDeltas:
    @pytest.mark.parametrize(("kind", "member"), [("output_text", "text"), ("refusal", "refusal")])
    def test_the_whole_text_of_a_part(self, kind: str, member: str) -> None:
        done = event(f"response.{kind}.done", **{member: "whole"})
        assert text_of(decoded(CREATED, done, COMPLETED)) == "whole"
        assert text_of(decoded(CREATED, delta("a"), done, done, COMPLETED)) == "awhole"
        assert text_of(decoded(CREATED, delta("a", kind), delta("b", kind), done, COMPLETED)) == "ab"

    def test_the_output_of_the_last_event(self) -> None:
        refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "No."}, {"type": "x", "text": 1}, 5]}
        output = [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            message("a", "b"),
            refusal,
            7,
        ]
        last = event("response.completed", response=response("completed", output=output))
        assert text_of(decoded(CREATED, last)) == "abNo."
        assert text_of(decoded(CREATED, delta("x"), last)) == "x", "it is what was streamed"

    @pytest.mark.parametrize("output", [None, "x", {"a": 1}, [], [1], [{"type": "message", "content": "x"}]])
    def test_odd_output(self, output: Any) -> None:
        last = event("response.completed", response=response("completed", output=output))
        events = decoded(CREATED, last)
        assert text_of(events) == ""
        assert ending(events) == Done("stop", "m-1", None, "resp_1", closed=True)


class TestReasoning:
    THINKING: Final = (
        event("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}),
        event("response.reasoning_summary_text.delta", delta="First"),
        event("response.reasoning_summary_text.delta", delta=" this."),
        event("response.reasoning_summary_text.done", text="First this."),
        event("response.reasoning_summary_text.delta", delta="Then that."),
        event("response.reasoning_summary_text.done", text="Then that."),
    )

    def test_it_is_passed_on_where_it_is_wanted(self) -> None:
        events = decoded(CREATED, *self.THINKING, delta("a"), COMPLETED, reasoning=True)
        assert events == [
            Reasoning(b'"First"'),
            Reasoning(b'" this."'),
            Reasoning(b'"\\n\\nThen that."'),
            Text(b'"a"'),
            DONE,
        ]
        assert decoded(CREATED, *self.THINKING, delta("a"), COMPLETED) == [Text(b'"a"'), DONE]

    def test_it_keeps_its_place_in_the_text(self) -> None:
        events = decoded(CREATED + delta("a") + delta("b") + self.THINKING[1] + delta("c"), reasoning=True)
        assert events == [Text(b'"ab"'), Reasoning(b'"First"'), Text(b'"c"')]

    def test_it_is_no_output_token(self) -> None:
        decoder = ResponseTextDecoder(reasoning=True)
        decoder.feed(b"".join(self.THINKING))
        assert decoder.deltas == 0

    def test_the_reasoning_itself(self) -> None:
        sent = event("response.reasoning_text.delta", delta="hm"), event("response.reasoning_text.done", text="hm")
        assert text_of(decoded(CREATED, *sent, COMPLETED, reasoning=True), Reasoning) == "hm"

    def test_without_deltas(self) -> None:
        done = [event("response.reasoning_summary_text.done", text=text) for text in ("one", "", "two")]
        assert text_of(decoded(CREATED, *done, COMPLETED, reasoning=True), Reasoning) == "one\n\ntwo"

    @pytest.mark.parametrize("value", [None, 1, {"a": 1}, ""])
    def test_what_is_no_text_is_left_out(self, value: Any) -> None:
        sent = event("response.reasoning_summary_text.delta", delta=value)
        assert decoded(CREATED, sent, delta("a"), COMPLETED, reasoning=True) == [Text(b'"a"'), DONE]

    def test_of_a_whole_document(self) -> None:
        thoughts = [{"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}, {"text": None}]
        output = [
            {"type": "reasoning", "summary": thoughts, "content": [{"type": "reasoning_text", "text": "three"}]},
            message("a"),
        ]
        content = json.dumps(response("completed", output=output)).encode()
        events = decoded(content, reasoning=True, ends=True)
        assert (text_of(events, Reasoning), text_of(events)) == ("one\n\ntwo\n\nthree", "a")
        assert text_of(decoded(content, ends=True), Reasoning) == ""


class TestEnd:
    @pytest.mark.parametrize(
        ("kind", "members", "reason"),
        [
            ("completed", {}, "stop"),
            ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "length"),
            ("incomplete", {"incomplete_details": {"reason": "max_tokens"}}, "length"),
            ("incomplete", {"incomplete_details": {"reason": "content_filter"}}, "content_filter"),
            ("incomplete", {"incomplete_details": {"reason": "new"}}, "new"),
            ("incomplete", {"incomplete_details": {}}, "incomplete"),
            ("incomplete", {}, "incomplete"),
            ("completed", {"incomplete_details": None}, "stop"),
        ],
    )
    def test_its_reason(self, kind: str, members: dict[str, Any], reason: str) -> None:
        last = event(f"response.{kind}", response=response(kind, **members))
        done = ending(decoded(CREATED, delta("a"), last))
        assert isinstance(done, Done)
        assert done.finish_reason == reason
        assert done.content_filter == ({} if reason == "content_filter" else None)

    @pytest.mark.parametrize("kind", ["completed", "incomplete"])
    def test_without_a_response(self, kind: str) -> None:
        reason = "stop" if kind == "completed" else kind
        assert ending(decoded(delta("a"), event(f"response.{kind}"))) == Done(reason, None, None, None, closed=True)

    def test_what_the_filter_stopped_it_for(self) -> None:
        results = {"violence": {"filtered": True, "severity": "medium"}, "hate": {"filtered": False}}
        filters = [
            {"source_type": "prompt", "blocked": False, "content_filter_results": {"violence": {"filtered": False}}},
            {"source_type": "completion", "blocked": True, "content_filter_results": results},
        ]
        members = {"incomplete_details": {"reason": "content_filter"}, "content_filters": filters}
        for name in ("incomplete", "completed"):
            done = ending(decoded(CREATED, event(f"response.{name}", response=response("incomplete", **members))))
            assert isinstance(done, Done)
            assert done.content_filter == {"violence": {"filtered": True, "severity": "medium"}}

    def test_a_cancelled_one_is_not_complete(self) -> None:
        last = event("response.cancelled", response=response("cancelled", usage={"input_tokens": 1}))
        problem = failed(decoded(CREATED, delta("a"), last))
        assert problem.problem is UPSTREAM_ERROR
        assert problem.usage is not None
        assert failed(decoded(json.dumps(response("cancelled")).encode(), ends=True)).problem is UPSTREAM_ERROR

    @pytest.mark.parametrize("end", ["cut", "end"])
    @pytest.mark.parametrize(
        ("sent", "problem"),
        [
            (b"", UPSTREAM_ERROR),
            (CREATED, UPSTREAM_INTERRUPTED),
            (CREATED + delta("a"), UPSTREAM_INTERRUPTED),
            (CREATED + delta("a") + COMPLETED[:-30], UPSTREAM_INTERRUPTED),
            (CREATED + event("response.function_call_arguments.delta", delta="x"), UPSTREAM_INTERRUPTED),
            (CREATED + delta("a") + b"data: [DONE]\n\n", UPSTREAM_INTERRUPTED),
        ],
        ids=range(6),
    )
    def test_without_its_event_it_is_cut(self, sent: bytes, problem: Problem, end: str) -> None:
        decoder = ResponseTextDecoder()
        decoder.feed(sent)
        last = decoder.cut("a reason") if end == "cut" else decoder.end()
        assert failed(last).problem is (UPSTREAM_INTERRUPTED if end == "cut" else problem)
        if end == "cut":
            assert failed(last).reason == "a reason"

    def test_cut_anywhere(self) -> None:
        content = CREATED + ITEM + delta("ab") + delta("c") + COMPLETED
        for size in range(len(content) - 1):
            decoder = ResponseTextDecoder()
            events = decoder.feed(content[:size])
            last = failed(events + decoder.cut("x"))
            assert last.problem is UPSTREAM_INTERRUPTED
            assert "abc".startswith(text_of(events))

    def test_the_last_event_without_its_blank_line(self) -> None:
        assert ending(decoded(CREATED, delta("a"), COMPLETED.rstrip(), ends=True)) == DONE

    def test_too_long_an_event(self) -> None:
        decoder = ResponseTextDecoder()
        decoder.feed(CREATED)
        events = decoder.feed(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))
        assert failed(events).problem is UPSTREAM_ERROR


class TestDocument:
    """What a server sends that ignores `"stream": true`."""

    @pytest.mark.parametrize("kind", ["completed", "incomplete"])
    def test_it_is_the_answer(self, kind: str) -> None:
        details = {"reason": "max_output_tokens"} if kind == "incomplete" else None
        document = response(kind, output=[message("a", "b"), message("\ud83c")], incomplete_details=details)
        reason = "stop" if kind == "completed" else "length"
        for content in split_at(json.dumps(document, indent=2).encode(), [7, 90]), [json.dumps(document).encode()]:
            events = decoded(*content, ends=True)
            assert text_of(events) == "ab\ud83c"
            assert ending(events) == Done(reason, "m-1", None, "resp_1", closed=True)

    @pytest.mark.parametrize(
        ("document", "problem"),
        [
            ({"error": {"code": "rate_limit_exceeded", "message": "x"}}, RATE_LIMITED),
            (response("failed", error={"code": "server_error", "message": "x"}), UPSTREAM_ERROR),
            (response("in_progress"), UPSTREAM_ERROR),
            (response("queued"), UPSTREAM_ERROR),
            ({"a": 1}, UPSTREAM_ERROR),
            ([1], UPSTREAM_ERROR),
        ],
        ids=range(6),
    )
    def test_it_is_none(self, document: Any, problem: Problem) -> None:
        assert failed(decoded(json.dumps(document).encode(), ends=True)).problem is problem

    def test_a_page(self) -> None:
        assert failed(decoded(b"<html>")).reason == "the model service's answer is a page of HTML"


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "problem"),
        [
            ({"type": "error", "code": "rate_limit_exceeded", "message": "x", "param": None}, RATE_LIMITED),
            ({"type": "error", "error": {"type": "too_many_requests", "code": "too_many_requests"}}, RATE_LIMITED),
            ({"error": {"code": "content_filter"}}, CONTENT_FILTER.with_content_filter({})),
            ({"error": "Unexpected endpoint"}, UPSTREAM_ERROR),
        ],
    )
    def test_an_error_event(self, error: dict[str, Any], problem: Problem) -> None:
        sent = b"data: " + json.dumps(error).encode() + b"\n\n"
        for before in (b"", CREATED, CREATED + delta("a")):
            events = decoded(before + sent + delta("b"))
            assert failed(events).problem == problem
            assert failed(events).event is None
            assert text_of(events) == ("a" if delta("a") in before else "")

    def test_an_error_as_plain_text(self) -> None:
        assert failed(decoded(CREATED, b"event: error\ndata: overloaded\n\n")).problem is UPSTREAM_ERROR

    @pytest.mark.parametrize("before", [b"", CREATED, CREATED + delta("a")])
    def test_a_failed_response(self, before: bytes) -> None:
        last = failed(decoded(before + FAILED))
        assert (last.problem, last.event) == (UPSTREAM_ERROR, None)
        assert last.reason == "the model service sent an error in its answer, code server_error"
        assert last.error == {"code": "server_error", "message": "secret"}

    @pytest.mark.parametrize("kind", ["completed", "incomplete"])
    def test_an_error_outweighs_the_name_of_the_event(self, kind: str) -> None:
        error = {"code": "rate_limit_exceeded", "message": "x"}
        last = event(f"response.{kind}", response=response(kind, error=error))
        assert failed(decoded(CREATED, delta("a"), last)).problem is RATE_LIMITED
        last = event(f"response.{kind}", response=response("failed"))
        assert failed(decoded(CREATED, delta("a"), last, ends=True)) == SILENT

    @pytest.mark.parametrize("error", [None, {}])
    @pytest.mark.parametrize("before", [CREATED, CREATED + delta("a")])
    def test_the_event_that_follows_tells_why(self, before: bytes, error: Any) -> None:
        last = before + event("response.failed", response=response("failed", error=error))
        told = event("error", error={"code": "rate_limit_exceeded", "message": "x"})
        assert failed(decoded(last, told)).problem is RATE_LIMITED
        assert failed(decoded(last, delta("b"))) == SILENT
        assert failed(decoded(last, COMPLETED)).reason == SILENT.reason
        assert failed(decoded(last, ends=True)) == SILENT

    @pytest.mark.parametrize("damaged", [b'data: {"type":"response.output_text.delta","delta":"\n\n', b"data: {]\n\n"])
    def test_a_damaged_event(self, damaged: bytes) -> None:
        events = decoded(CREATED, delta("a"), damaged, delta("b"))
        assert failed(events).problem is UPSTREAM_ERROR
        assert text_of(events) == "a"

    def test_what_keeps_a_connection_open(self) -> None:
        kept = [b"data: ping\n\n", b"event: keepalive\ndata:\n\n", b'data: {"type":"ping"}\n\n', b"data: [DONE]\n\n"]
        for order in itertools.permutations(kept, 2):
            assert text_of(decoded(CREATED, order[0], delta("a"), order[1], COMPLETED)) == "a"

    def test_a_bad_request_is_the_callers(self) -> None:
        error = {"code": "invalid_prompt", "message": "Not this."}
        last = event("response.failed", response=response("failed", error=error))
        assert failed(decoded(CREATED, last)).problem.code == INVALID_REQUEST.code
