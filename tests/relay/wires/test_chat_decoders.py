"""What the bytes of an answer mean, wherever the reads were split: as text, as events to pass on, as a document."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.problems import CONTENT_FILTER, CONTEXT_LENGTH_EXCEEDED, RATE_LIMITED, UPSTREAM_ERROR, UPSTREAM_INTERRUPTED
from relay.streaming.events import Decoder, Done, Event, Failed, Reasoning, Text, Verbatim
from relay.upstream import sse
from relay.usage import Usage
from relay.wires import chat_decoders
from relay.wires.chat_decoders import DocumentDecoder, TextDecoder, VerbatimDecoder
from tests.relay.event_streams import DONE, LINE_ENDS, delta, event, split_at, text_of

STREAM_DECODERS = [TextDecoder, VerbatimDecoder]
USAGE = {"prompt_tokens": 1, "completion_tokens": 2}


def decoded(*chunks: bytes) -> list[Event]:
    decoder = TextDecoder()
    return [found for chunk in chunks for found in decoder.feed(chunk)]


def verbatim(*chunks: bytes) -> list[Event]:
    decoder = VerbatimDecoder()
    return [found for chunk in chunks for found in decoder.feed(chunk)]


def data(content: bytes) -> list[bytes]:
    """The data of one-line events."""
    return [line.removeprefix(b"data: ") for line in content.split(b"\n\n")[:-1]]


class TestText:
    @settings(max_examples=60)
    @given(
        tokens=st.lists(st.text(max_size=20), min_size=1, max_size=10),
        ascii_only=st.booleans(),
        end=st.sampled_from(LINE_ENDS),
        cuts=st.lists(st.integers(0, 3000), max_size=30),
    )
    def test_any_text_in_any_pieces(self, tokens: list[str], ascii_only: bool, end: str, cuts: list[int]) -> None:
        lines = [
            f"data: {json.dumps({'choices': [{'delta': {'content': token}}]}, ensure_ascii=ascii_only)}{end}{end}"
            for token in tokens
        ] + [f"data: [DONE]{end}{end}"]
        events = decoded(*split_at("".join(lines).encode(), cuts))
        assert text_of(events) == "".join(tokens)
        assert isinstance(events[-1], Done)
        assert not any(isinstance(found, Done | Failed) for found in events[:-1])

    @given(text=st.text(st.characters(min_codepoint=0x10000), min_size=1, max_size=8), cuts=st.lists(st.integers(0, 9)))
    def test_surrogate_pairs_over_two_chunks(self, text: str, cuts: list[int]) -> None:
        units = text.encode("utf-16-le")
        positions = sorted({0, len(units), *(cut % (len(units) // 2 + 1) * 2 for cut in cuts)})
        halves = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(positions)]
        assert text_of(decoded(b"".join(delta(half) for half in halves))) == text

    def test_text_that_arrived_together_is_one_event(self) -> None:
        events = decoded(delta("a") + delta('"') + delta("\u00e9") + DONE)
        assert [type(found) for found in events] == [Text, Done]
        assert text_of(events) == 'a"\u00e9'
        assert events[0] == Text(rb'"a\"\u00e9"')

    def test_the_json_string_is_copied_as_it_stands(self) -> None:
        events = decoded(b'data: {"choices":[{"delta":{"content": "\\u0061\\/\xc3\xa9" }}]}\n\n')
        assert events == [Text(b'"\\u0061\\/\xc3\xa9"')]

    def test_text_that_has_arrived_is_not_held_back(self) -> None:
        decoder = TextDecoder()
        assert [text_of(decoder.feed(delta(token))) for token in ("a", "b", "c")] == ["a", "b", "c"]
        assert decoder.feed(b": comment\n\n") == []

    def test_a_refusal_is_text_too(self) -> None:
        assert text_of(decoded(event(choices=[{"delta": {"refusal": "I can't."}}]))) == "I can't."
        assert text_of(decoded(event(choices=[{"delta": {"refusal": "b", "content": "a"}}]))) == "ab"

    def test_deltas_with_output_are_counted(self) -> None:
        decoder = TextDecoder()
        decoder.feed(delta("a") + delta("") + delta(None) + delta("b") + delta("x", index=1))
        assert decoder.deltas == 2
        assert TextDecoder().deltas == 0

    @pytest.mark.parametrize(
        "chunk",
        [
            event(choices=[], prompt_filter_results=[{"prompt_index": 0}]),
            event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
            event(choices=[{"delta": {"content": None}}]),
            event(choices=[{"delta": {}}]),
            event(choices=[{"delta": None}]),
            event(choices=[{"content_filter_offsets": {"check_offset": 1}, "finish_reason": None}]),
            event(choices=None),
            event(),
            event(choices=[{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "x"}}]),
            b": comment\n\n",
            b"data\n\n",
            b"data:\n\n",
        ],
        ids=range(12),
    )
    def test_events_without_text(self, chunk: bytes) -> None:
        decoder = TextDecoder()
        assert decoder.feed(chunk) == []
        assert text_of(decoder.feed(delta("next"))) == "next"

    def test_an_event_without_data_ends_nothing(self) -> None:
        assert text_of(decoded(delta("a") + b"data:\n\n" + delta("b"))) == "ab"

    def test_only_the_first_choice_is_read(self) -> None:
        other = {"index": 1, "delta": {"content": "x"}, "finish_reason": "length"}
        first = {"index": 0, "delta": {"content": "a"}}
        decoder = TextDecoder()
        assert text_of(decoder.feed(event(choices=[other, first, other, first]))) == "aa"
        assert decoder.finish_reason is None

    def test_a_server_that_counts_its_one_choice_from_1(self) -> None:
        decoder = TextDecoder()
        chunks = delta("a", index=1) + delta("x", index=2) + delta("x") + delta("b", index=1)
        assert text_of(decoder.feed(chunks)) == "ab"
        decoder = TextDecoder()
        assert text_of(decoder.feed(delta("") + delta("x", index=1) + delta("a") + delta("x", index=1))) == "a"

    def test_unknown_members_are_ignored(self) -> None:
        chunk = event(choices=[{"delta": {"content": "a", "new": [1, {"x": None}]}, "new": 1.5}], new={"y": []})
        assert text_of(decoded(chunk)) == "a"

    def test_text_before_a_failure_is_kept(self) -> None:
        events = decoded(delta("a") + delta("b") + event(error={"code": "x"}))
        assert [type(found) for found in events] == [Text, Failed]
        assert text_of(events) == "ab"


class TestReasoning:
    """What open models send beside the text of the answer."""

    @staticmethod
    def decoded(*deltas: dict[str, Any], reasoning: bool = True) -> list[Event]:
        decoder = TextDecoder(reasoning=reasoning)
        chunks = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
        return decoder.feed("".join(f"data: {chunk}\n\n" for chunk in chunks).encode())

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    def test_under_each_of_its_names(self, name: str) -> None:
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": "", name: ""},
            {name: "hm", "content": None},
            {name: "so", "content": "a"},
            {name: None, "content": "b"},
        ]
        assert self.decoded(*deltas) == [Reasoning(b'"hm"'), Reasoning(b'"so"'), Text(b'"ab"')]
        assert self.decoded(*deltas, reasoning=False) == [Text(b'"ab"')]

    def test_once_under_both_names(self) -> None:
        assert self.decoded({"reasoning_content": "hm", "reasoning": "hm"}) == [Reasoning(b'"hm"')]
        assert self.decoded({"reasoning_content": "", "reasoning": "hm"}) == [Reasoning(b'"hm"')]

    @pytest.mark.parametrize("value", [1, {"a": 1}, ["hm"], True])
    def test_what_is_no_text(self, value: Any) -> None:
        assert self.decoded({"reasoning": value, "content": "a"}) == [Text(b'"a"')]

    def test_as_parts_of_the_content(self) -> None:
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}, 1]}
        parts = [thinking, {"type": "thinking", "thinking": "x"}, {"type": "text", "text": "a"}]
        assert self.decoded({"content": parts}) == [Reasoning(b'"hm"'), Text(b'"a"')]
        assert self.decoded({"content": parts}, reasoning=False) == [Text(b'"a"')]

    def test_it_is_no_output_token(self) -> None:
        decoder = TextDecoder(reasoning=True)
        decoder.feed(b'data: {"choices":[{"index":0,"delta":{"reasoning":"x"}}]}\n\n')
        assert (decoder.deltas, decoder.progress) == (0, 1)

    @pytest.mark.parametrize("half", ["", "\\ud83c"])
    def test_in_a_document_in_place_of_a_stream(self, half: str) -> None:
        decoder = TextDecoder(reasoning=True)
        message = f'{{"content":"a{half}","reasoning_content":"hm"}}'
        decoder.feed(f'{{"choices":[{{"index":0,"message":{message},"finish_reason":"stop"}}]}}'.encode())
        assert decoder.end()[:-1] == [Reasoning(b'"hm"'), Text(f'"a{half}"'.encode())]

    def test_beside_half_a_surrogate_pair(self) -> None:
        decoder = TextDecoder(reasoning=True)
        events = decoder.feed(b'data: {"id":"\\ud83c","choices":[{"index":0,"delta":{"reasoning":"hm"}}]}\n\n')
        assert events == [Reasoning(b'"hm"')]

    def test_bytes_that_are_not_utf8(self) -> None:
        decoder = TextDecoder(reasoning=True)
        events = decoder.feed(b'data: {"choices":[{"index":0,"delta":{"reasoning":"caf\xe9"}}]}\n\n')
        assert events == [Reasoning('"caf\ufffd"'.encode())]


class TestEnd:
    def test_all_that_is_known(self) -> None:
        usage = {
            "prompt_tokens": 12,
            "completion_tokens": 34,
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
            "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 2},
        }
        (done,) = decoded(
            event(id="c-1", model="m-1", choices=[{"delta": {}, "finish_reason": "length"}])
            + event(id="c-1", model="m-1", choices=[], usage=usage)
            + DONE
        )
        assert isinstance(done, Done)
        assert done == Done("length", "m-1", Usage(12, 34, 5, 6, 2), "c-1")
        assert (done.finish_reason, done.model, done.id) == ("length", "m-1", "c-1")
        assert done.usage == Usage(12, 34, 5, 6, 2)
        assert done.usage.members() == {
            "input_tokens": 12,
            "output_tokens": 34,
            "reasoning_tokens": 5,
            "cached_tokens": 6,
            "cache_write_tokens": 2,
        }

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_what_is_unknown_is_none(self, new_decoder: Callable[[], Decoder]) -> None:
        assert new_decoder().feed(event(choices=[{}]) + DONE)[-1] == Done(None, None, None, None)

    @pytest.mark.parametrize(
        ("counts", "usage"),
        [
            ({}, Usage(0, 0)),
            ({"prompt_tokens": 3, "completion_tokens_details": {}, "prompt_tokens_details": {}}, Usage(3, 0)),
            ({"completion_tokens": 4, "completion_tokens_details": None}, Usage(0, 4)),
            ({"completion_tokens_details": {"reasoning_tokens": 0}}, Usage(0, 0, 0)),
        ],
    )
    def test_counts_that_are_left_out(self, counts: dict[str, Any], usage: Usage) -> None:
        assert decoded(event(choices=[{}], usage=counts) + DONE) == [Done(None, None, usage, None)]

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_the_last_values_count_and_empty_ones_do_not(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(
            event(id="a", model="m", choices=[{"finish_reason": "stop"}], usage=USAGE)
            + event(id="b" * 300, model="n" * 300, choices=[{"finish_reason": "length"}])
            + event(id="", model="", choices=[{"finish_reason": ""}, {"finish_reason": None}], usage=None)
            + event(id=None, model=None, choices=[])
        )
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("b" * 256, "n" * 256, "length")
        assert decoder.usage == Usage(1, 2)

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_nothing_comes_after_it(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        assert len(decoder.feed(delta("a") + DONE + delta("more") + DONE)) == 2
        assert decoder.feed(delta("more") + event(error={"code": "x"}) + DONE) == []

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_nothing_comes_after_a_failure(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        assert [type(found) for found in decoder.feed(event(error={}) + delta("more") + DONE)] == [Failed]
        assert decoder.feed(delta("more") + DONE) == []

    @pytest.mark.parametrize("marker", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE] \n\n"])
    def test_the_marker(self, marker: bytes) -> None:
        assert [type(found) for found in decoded(delta("a") + marker)] == [Text, Done]

    def test_a_filter_that_stops_the_answer_is_an_end(self) -> None:
        results = {
            "violence": {"filtered": True, "severity": "medium", "text": "what it said"},
            "hate": {"filtered": False, "severity": "safe"},
            "jailbreak": {"filtered": True, "detected": True},
            "<script>": {"filtered": True},
            "odd": 7,
        }
        chunk = event(choices=[{"delta": {}, "finish_reason": "content_filter", "content_filter_results": results}])
        (done,) = decoded(chunk + DONE)
        assert isinstance(done, Done)
        assert done.finish_reason == "content_filter"
        assert done.content_filter == {
            "violence": {"filtered": True, "severity": "medium"},
            "jailbreak": {"filtered": True, "detected": True},
        }

    @pytest.mark.parametrize("results", [{}, None, [], "x", {"hate": {"filtered": False}}])
    def test_a_filter_that_names_no_category(self, results: Any) -> None:
        chunk = event(choices=[{"finish_reason": "content_filter", "content_filter_results": results}])
        named = event(
            choices=[{"finish_reason": "content_filter", "content_filter_results": {"hate": {"filtered": True}}}]
        )
        assert decoded(chunk + DONE) == [Done("content_filter", None, None, None, {})]
        expected = Done("content_filter", None, None, None, {"hate": {"filtered": True}})
        assert decoded(named + chunk + DONE) == [expected], "later results do not take it back"

    def test_results_of_the_filter_do_not_matter_where_it_did_not_stop_the_answer(self) -> None:
        results = {"hate": {"filtered": True}}
        chunk = event(choices=[{"finish_reason": "stop", "content_filter_results": results}])
        assert decoded(chunk + DONE) == [Done("stop", None, None, None, None)]


class TestFailure:
    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_a_connection_that_breaks(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(delta("all") + event(choices=[], usage=USAGE))
        assert decoder.cut("why") == [Failed(UPSTREAM_INTERRUPTED, "why", Usage(1, 2))]
        assert decoder.feed(DONE) == []

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_an_end_without_a_finish_reason_is_a_cut(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(delta("all") + event(choices=[], usage=USAGE))
        reason = "the model service's answer ended without a finish reason"
        assert decoder.end() == [Failed(UPSTREAM_INTERRUPTED, reason, Usage(1, 2))]

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            ({"code": "content_filter"}, "content_filter"),
            ({"code": "429"}, "rate_limited"),
            ({"code": 429}, "rate_limited"),
            ({"type": "rate_limit_exceeded"}, "rate_limited"),
            ({"code": "server_error"}, "upstream_error"),
            ({"code": "context_length_exceeded"}, "context_length_exceeded"),
            ({}, "upstream_error"),
            ("text", "upstream_error"),
            (["a"], "upstream_error"),
            (False, "upstream_error"),
            ({"code": {"a": 1}}, "upstream_error"),
        ],
        ids=str,
    )
    def test_an_error_in_the_stream(self, error: Any, code: str) -> None:
        events = decoded(delta("words") + event(error=error))
        assert text_of(events) == "words"
        assert isinstance(events[-1], Failed)
        assert events[-1].problem.code == code

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    @pytest.mark.parametrize(
        ("sent", "code"),
        [
            (b"event: error\n\n", "upstream_error"),
            (b"event: error\ndata:\n\n", "upstream_error"),
            (b'[{"error":{"code":429}}]\n\n', "rate_limited"),
            (event(code=429, msg="x"), "rate_limited"),
            (event(choices=[{"delta": {}}], x_groq={"error": "over capacity"}), "upstream_error"),
            (event(choices=[{"delta": {}, "finish_reason": "rate_limited"}]), "rate_limited"),
        ],
    )
    def test_an_error_in_an_odd_place(self, new_decoder: Callable[[], Decoder], sent: bytes, code: str) -> None:
        text, failed = new_decoder().feed(delta("words") + sent + DONE)
        assert isinstance(text, Text)
        assert isinstance(failed, Failed)
        assert failed.problem.code == code

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_what_groq_adds_is_no_error(self, new_decoder: Callable[[], Decoder]) -> None:
        sent = event(x_groq={"id": "r"}, choices=[{"delta": {"content": "a"}}])
        text, done = new_decoder().feed(sent + DONE)
        assert isinstance(text, Text)
        assert isinstance(done, Done)

    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            ({"prompt_tokens": 1.0, "completion_tokens": 2.0}, Usage(1, 2)),
            ({"prompt_tokens": "1", "completion_tokens": "2"}, Usage(1, 2)),
            ({"prompt_tokens": 1, "completion_tokens": None}, Usage(1, 0)),
            ({"prompt_tokens": 1, "completion_tokens": -2.5}, None),
            ({"prompt_tokens": "9" * 5000, "completion_tokens": 1}, None),
        ],
        ids=range(5),
    )
    def test_usage_in_other_types(self, usage: dict[str, Any], expected: Usage | None) -> None:
        decoder = TextDecoder()
        decoder.feed(delta("a") + event(choices=[], usage=usage) + DONE)
        assert decoder.usage == expected

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_an_error_with_all_that_is_known(self, new_decoder: Callable[[], Decoder]) -> None:
        reason = "the model service sent an error in its answer, code"
        filtered = {"code": "content_filter", "innererror": {"content_filter_result": {"hate": {"filtered": True}}}}
        for error, expected in (
            ({"code": "429"}, Failed(RATE_LIMITED, f"{reason} 429", Usage(1, 2))),
            (
                {"code": "context_length_exceeded"},
                Failed(
                    CONTEXT_LENGTH_EXCEEDED.with_upstream_error({"code": "context_length_exceeded"}),
                    f"{reason} context_length_exceeded",
                    Usage(1, 2),
                ),
            ),
            ("text", Failed(UPSTREAM_ERROR, f"{reason} none", Usage(1, 2))),
            (
                filtered,
                Failed(
                    CONTENT_FILTER.with_content_filter({"hate": {"filtered": True}}),
                    f"{reason} content_filter",
                    Usage(1, 2),
                ),
            ),
        ):
            assert new_decoder().feed(event(error=error, usage=USAGE)) == [expected]

    def test_the_text_of_an_error_is_not_repeated(self) -> None:
        (failed,) = decoded(event(error={"code": "a b\nforged line", "message": "SECRET", "type": "SECRET"}))
        assert "SECRET" not in repr(failed)
        assert "forged" not in repr(failed)

    @pytest.mark.parametrize("usage", [{"prompt_tokens": "many"}, [], 1, "x", {"prompt_tokens": 1e400}])
    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_unreadable_usage_takes_no_text_away(self, new_decoder: Callable[[], Decoder], usage: Any) -> None:
        decoder = new_decoder()
        chunk = event(choices=[{"delta": {"content": "x"}}], usage=usage)
        assert [type(found) for found in decoder.feed(chunk + DONE)] in ([Text, Done], [Verbatim, Done])
        assert decoder.usage is None

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b'lo"}}]}',
            b'{"choices": [{"delta": {"content": 5}}]}',
            b'{"choices": [{"delta": {"content": {}}}]}',
            rb'{"choices": [{"delta": {"content": "\q"}}]}',
            rb'{"choices": [{"delta": {"content": "\u12"}}]}',
            b'{"choices": [{"delta": {"content": "a\x00b"}}]}',
            b'{"choices": [{"delta": {"content": "a\ndata: forged"}}]}',
            b'{"choices": [' + b"[" * 100_000 + b"]}",
        ],
        ids=range(9),
    )
    def test_a_damaged_chunk(self, content: bytes) -> None:
        lines = b"".join(b"data: " + line + b"\n" for line in content.split(b"\n"))
        events = decoded(lines + b"\n")
        assert len(events) == 1
        assert isinstance(events[0], Failed)
        assert events[0].problem.code == "upstream_error"

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_the_reason_names_the_kind_of_error_and_nothing_else(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(event(choices=[], usage=USAGE))
        reason = "an event is not a chat completion chunk (JSONDecodeError)"
        assert decoder.feed(b"data: {SECRET\n\n") == [Failed(UPSTREAM_ERROR, reason, Usage(1, 2))]

    @pytest.mark.parametrize("content", [b"5", b"{}", b"true", b'{"type":"text"}'])
    def test_content_that_is_no_string(self, content: bytes) -> None:
        (failed,) = decoded(b'data: {"choices": [{"delta": {"content": %b}}]}\n\n' % content)
        assert failed == Failed(UPSTREAM_ERROR, "the content of a delta is not a string")

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_an_event_that_is_too_long(
        self, new_decoder: Callable[[], Decoder], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
        decoder = new_decoder()
        assert decoder.feed(b"data: " + b"x" * 94) == []
        reason = "an event is not a chat completion chunk (EventTooLongError)"
        assert decoder.feed(b"x") == [Failed(UPSTREAM_ERROR, reason)]
        assert decoder.feed(b"\n\n" + DONE) == []

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_a_chunk_that_is_nested_too_deeply(self, new_decoder: Callable[[], Decoder]) -> None:
        nested = b'{"choices":[],"new":%b%b}' % (b"[" * 100_000, b"]" * 100_000)
        (failed,) = new_decoder().feed(b"data: %b\n\n" % nested)
        assert failed == Failed(UPSTREAM_ERROR, "an event is not a chat completion chunk (RecursionError)")

    @given(st.binary(max_size=300))
    def test_any_bytes(self, content: bytes) -> None:
        for found in decoded(b"data: " + content + b"\n\n", content, b"\n\n"):
            if isinstance(found, Text):
                assert isinstance(json.loads(found.json), str)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["choices", "delta", "content", "index", "usage", "error", "finish_reason", "x"]),
                    inner,
                    max_size=5,
                )
            ),
        )
    )
    def test_any_document(self, document: Any) -> None:
        for found in decoded(event(choices=[document]) + b"data: " + json.dumps(document).encode() + b"\n\n"):
            if isinstance(found, Text):
                assert isinstance(json.loads(found.json), str)


class TestInvalidUtf8:
    @pytest.mark.parametrize(
        ("raw", "text"), [(b"caf\xe9 x", "caf\ufffd x"), (b"\xff\xfe", "\ufffd\ufffd"), (b"caf\xc3", "caf\ufffd")]
    )
    def test_it_becomes_replacement_characters(self, raw: bytes, text: str) -> None:
        assert text_of(decoded(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % raw)) == text

    def test_elsewhere_it_does_not_matter(self) -> None:
        assert text_of(decoded(b'data: {"model":"\xff","choices":[{"delta":{"content":"a"}}]}\n\n')) == "a"


class TestHalfSurrogatePairs:
    """The strict parser refuses half a surrogate pair, escaped; such a chunk is read by a second parser."""

    def test_the_rest_of_the_chunk_is_read_as_usual(self) -> None:
        decoder = TextDecoder()
        events = decoder.feed(
            b'data: {"id":"c","model":"m","usage":{"prompt_tokens":1,"completion_tokens":2},"choices":['
            b'{"index":1,"delta":{"content":"other \\ud83c"}},'
            b'{"delta":{"refusal":"b","content":"a\\ud83c"}},'
            b'{"delta":null,"finish_reason":"stop"}]}\n\n'
        )
        assert events == [Text(b'"a\\ud83cb"')]
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("c", "m", "stop")
        assert (decoder.usage, decoder.deltas) == (Usage(1, 2), 2)

    def test_in_both_strings_of_a_delta(self) -> None:
        events = decoded(b'data: {"choices":[{"delta":{"refusal":"\\udf3f","content":"\\ud83c"}}]}\n\n')
        assert events == [Text(b'"\\ud83c\\udf3f"')]

    @pytest.mark.parametrize(
        "members",
        [b'"id":20260608123456', b'"model":["m"]', b'"id":null,"model":null', b'"object":5,"created":"soon"'],
    )
    def test_members_that_are_not_needed_may_be_anything(self, members: bytes) -> None:
        (text,) = decoded(b'data: {%b,"choices":[{"index":null,"delta":{"content":"a"}},{"delta":[]}]}\n\n' % members)
        assert text == Text(b'"a"')

    def test_the_index_of_a_choice(self) -> None:
        choices = b'{"index":2,"delta":{"content":"x"}},{"index":"?","delta":{"content":"a"}}'
        assert text_of(decoded(b'data: {"choices":[%b]}\n\n' % choices)) == "a"

    def test_an_error(self) -> None:
        (failed,) = decoded(b'data: {"error":{"code":"429","message":"\\ud83c"}}\n\n')
        reason = "the model service sent an error in its answer, code 429"
        assert failed == Failed(RATE_LIMITED, reason)

    def test_the_results_of_the_content_filter(self) -> None:
        choice = b'{"finish_reason":"content_filter","content_filter_results":{"hate":{"filtered":true},"\\ud83c":1}}'
        expected = Done("content_filter", None, None, None, {"hate": {"filtered": True}})
        assert decoded(b'data: {"choices":[%b]}\n\n' % choice, DONE) == [expected]

    def test_outside_of_the_text(self) -> None:
        events = decoded(b'data: {"x":"\\ud83c","choices":[{"delta":{"content":"a"}}]}\n\n')
        assert text_of(events) == "a"

    @pytest.mark.parametrize(
        "content",
        [
            b'["\\ud83c"]',
            b'{"choices":["\\ud83c"]}',
            b'{"choices":5,"x":"\\ud83c"}',
            b'{"choices":{"\\ud83c":1}}',
        ],
    )
    def test_what_is_not_a_chunk(self, content: bytes) -> None:
        _, failed = decoded(delta("a"), b"data: %b\n\n" % content, DONE)
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_ERROR


ROLE = event(choices=[{"delta": {"role": "assistant", "content": "", "refusal": None, "tool_calls": [], "x": {}}}])
REPORT = event(choices=[], prompt_filter_results=[])
COUNTS = event(choices=[], usage=USAGE)


class TestVerbatim:
    def test_events_are_passed_on_as_they_came(self) -> None:
        chunk = (
            b'data: {"choices": [ {"delta":{"content":"a"}} ], "new": 1.50}\r\n\r\n: comment\n\ndata: {\ndata: }\n\n'
        )
        assert verbatim(chunk) == [Verbatim(b"", [b'{"choices": [ {"delta":{"content":"a"}} ], "new": 1.50}', b"{\n}"])]

    def test_events_that_arrived_together_are_one(self) -> None:
        stream = delta("a") + delta("b")
        assert verbatim(stream) == [Verbatim(b"", data(stream))]

    def test_nothing_is_held_back_once_there_is_output(self) -> None:
        decoder = VerbatimDecoder()
        for chunk in (delta("a"), REPORT, ROLE, delta("b")):
            assert decoder.feed(chunk) == [Verbatim(b"", data(chunk))]

    def test_what_precedes_the_output_is_held_until_it(self) -> None:
        decoder = VerbatimDecoder()
        assert decoder.feed(REPORT) == decoder.feed(ROLE) == []
        assert decoder.feed(delta("a")) == [Verbatim(b"", data(REPORT + ROLE + delta("a")))]
        assert decoder.deltas == 1

    def test_it_is_passed_on_with_an_end_without_output(self) -> None:
        finish = event(choices=[{"delta": {}, "finish_reason": "content_filter"}])
        stream = REPORT + ROLE + finish
        assert verbatim(stream, DONE) == [
            Verbatim(b"", data(stream)),
            Done("content_filter", None, None, None),
        ]

    def test_it_is_dropped_with_a_failure_without_output(self) -> None:
        events = verbatim(REPORT + ROLE, event(error={"code": "429"}))
        assert [type(found) for found in events] == [Failed]

    def test_output_that_arrived_with_a_failure_is_passed_on(self) -> None:
        events = verbatim(ROLE + delta("a") + event(error={"code": "429"}))
        assert events[0] == Verbatim(b"", data(ROLE + delta("a")))
        assert [type(found) for found in events] == [Verbatim, Failed]

    @pytest.mark.parametrize(
        "output",
        [
            {"content": "a"},
            {"refusal": "a"},
            {"tool_calls": [{"index": 0}]},
            {"role": "assistant", "unknown": 0},
            {"reasoning": " "},
        ],
    )
    def test_any_member_of_a_delta_but_the_role_is_output(self, output: dict[str, Any]) -> None:
        decoder = VerbatimDecoder()
        chunk = event(choices=[{"delta": None}, {"delta": output}])
        assert decoder.feed(chunk) == [Verbatim(b"", data(chunk))]
        assert decoder.deltas == 1

    def test_output_is_counted_once_for_each_choice(self) -> None:
        decoder = VerbatimDecoder()
        both = {"delta": {"content": "a", "refusal": "b"}}
        decoder.feed(event(choices=[both, {"delta": {"role": "assistant"}}, both]))
        assert decoder.deltas == 2

    def test_the_usage_is_kept_apart(self) -> None:
        stream = delta("a") + COUNTS + REPORT
        assert verbatim(stream) == [
            Verbatim(b"", data(delta("a"))),
            Verbatim(b"", data(COUNTS), usage=True),
            Verbatim(b"", data(REPORT)),
        ]
        assert verbatim(delta("a") + COUNTS + COUNTS)[1:] == [Verbatim(b"", data(COUNTS) * 2, usage=True)]

    def test_an_event_with_choices_is_not_the_usage_alone(self) -> None:
        chunk = event(choices=[{"delta": {"content": "a"}}], usage=USAGE)
        assert verbatim(chunk) == [Verbatim(b"", data(chunk))]

    @pytest.mark.parametrize("chunk", [event(usage=USAGE), event(choices=None, usage=USAGE)])
    def test_an_event_without_choices_is(self, chunk: bytes) -> None:
        assert verbatim(delta("a"), chunk)[1] == Verbatim(b"", data(chunk), usage=True)

    @pytest.mark.parametrize(
        "content",
        [
            b'{"choices":[{"delta":{"content":"\\ud83c"}}]}',
            b'{"choices":[{"index":null,"delta":{"content":"a"}}],"id":1,"model":[]}',
            b'{"choices":[{"index":0,"delta":{"unknown":0}},5],"x":"\\ud83c"}',
        ],
    )
    def test_odd_members_do_not_matter(self, content: bytes) -> None:
        decoder = VerbatimDecoder()
        assert decoder.feed(b"data: %b\n\n" % content) == [Verbatim(b"", [content])]
        assert (decoder.deltas, decoder.id, decoder.finish_reason) == (1, None, None)

    @pytest.mark.parametrize("content", [b'{"choices":5}', b'{"choices":[{"delta":[]}]}', b'{"id":1}'])
    def test_an_object_without_output_is_held(self, content: bytes) -> None:
        decoder = VerbatimDecoder()
        assert decoder.feed(b"data: %b\n\n" % content) == []
        assert decoder.feed(delta("a")) == [Verbatim(b"", [content, *data(delta("a"))])]
        assert decoder.deltas == 1

    def test_invalid_utf8_where_it_is_not_read(self) -> None:
        content = b'{"choices":[],"new":"\xff"}'
        assert verbatim(b"data: %b\n\n" % content, delta("a")) == [Verbatim(b"", [content, *data(delta("a"))])]

    def test_invalid_utf8_where_it_is_read(self) -> None:
        content = b'{"choices":[{"delta":{"content":"a"}}],"model":"\xff"}'
        assert verbatim(b"data: %b\n\n" % content) == [Verbatim(b"", [content])]

    @pytest.mark.parametrize("content", [b"{", b'"text', b"[" * 100_000])
    def test_a_damaged_chunk_is_a_failure(self, content: bytes) -> None:
        (failed,) = verbatim(b"data: %b\n\n" % content)
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_ERROR
        assert failed.reason.startswith("an event is not a chat completion chunk (")

    @pytest.mark.parametrize("content", [b"[]", b"5", b'["\\ud83c"]', b"null", b'"text"', b"Bad Gateway", b"ping"])
    def test_what_is_no_json_object_is_not_passed_on(self, content: bytes) -> None:
        assert verbatim(delta("a"), b"data: %b\n\n" % content) == [Verbatim(b"", data(delta("a")))]

    def test_an_answer_without_output_is_given_up(self) -> None:
        decoder = VerbatimDecoder()
        chunk = b'data: {"choices":[],"filler":"%b"}\n\n' % (b"x" * 1_000_000)
        events = [found for _ in range(40) for found in decoder.feed(chunk)]
        assert [type(found) for found in events] == [Failed]

    def test_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size = len(data(REPORT)[0])
        monkeypatch.setattr(chat_decoders, "MAX_EVENT_BYTES", 3 * size)
        decoder = VerbatimDecoder()
        assert [decoder.feed(REPORT) for _ in range(3)] == [[], [], []]
        assert decoder.feed(REPORT) == [Failed(UPSTREAM_ERROR, "the model service's answer has no output")]
        with_output = VerbatimDecoder()
        assert [with_output.feed(REPORT) for _ in range(3)] == [[], [], []]
        assert [type(found) for found in with_output.feed(delta("a"))] == [Verbatim]
        assert all(with_output.feed(REPORT) for _ in range(9)), "there is no limit after the first output"


class TestDocument:
    def end(self, document: bytes) -> Done | Failed:
        decoder = DocumentDecoder()
        assert decoder.feed(document) == []
        (terminal,) = decoder.end()
        assert isinstance(terminal, Done | Failed)
        return terminal

    @pytest.mark.parametrize(
        "document",
        [
            b'{"choices": [{}], "usage": {"prompt_tokens": []}}',
            b'{"choices": [{"message": {"content": "\\ud83d"}}]}',
            b'{"choices": [{}, "odd"], "id": 5, "model": ["m"]}',
            b'{"choices": [{"message": {"content": "x"}, "finish_reason": 5}], "error": null}',
        ],
    )
    def test_it_is_passed_on_even_if_not_all_of_it_can_be_read(self, document: bytes) -> None:
        end = self.end(document)
        assert isinstance(end, Done)
        assert end.document == document

    def test_what_can_be_read_of_it_is(self) -> None:
        document = (
            b' {"id": "c", "model": "m", "choices": [{"finish_reason": "length"}, {"finish_reason": "stop"}],'
            b'"usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}}'
        )
        decoder = DocumentDecoder()
        assert decoder.feed(document[:50]) == decoder.feed(document[50:]) == []
        assert (decoder.id, decoder.model, decoder.finish_reason) == (None, None, None)
        assert (decoder.usage, decoder.deltas) == (None, 0)
        assert decoder.end() == [Done("length", "m", Usage(3, 4, None, 1), "c", document=document)]
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("c", "m", "length")
        assert decoder.usage == Usage(3, 4, None, 1)

    def test_what_is_left_out_is_unknown(self) -> None:
        document = b'{"choices":[{}]}'
        assert self.end(document) == Done(None, None, None, None, document=document)

    def test_a_document_that_can_not_be_read(self) -> None:
        document = b'{"id": "\\ud83d", "model": "m", "choices": [{"finish_reason": "stop"}]}'
        assert self.end(document) == Done("stop", "m", None, "\ud83d", document=document)

    @pytest.mark.parametrize(
        "document",
        [
            *(b"", b" ", b"<html>", b"[]", b"{", b"null", b"{}", b"data: x"),
            *(b'{"choices":null}', b'{"choices":"odd"}', b'{"choices":[]}', b'{"choices":["odd"]}'),
        ],
    )
    def test_what_is_no_document(self, document: bytes) -> None:
        assert isinstance(self.end(document), Failed)

    def test_the_reason_names_the_kind_of_error(self) -> None:
        reason = "the model service's answer is not a chat completion"
        assert self.end(b"SECRET") == Failed(UPSTREAM_ERROR, f"{reason} (DecodeError)")
        assert self.end(b'"\xff') == Failed(UPSTREAM_ERROR, f"{reason} (DecodeError)")
        assert self.end(b"[]") == Failed(UPSTREAM_ERROR, f"{reason} (TypeError)")
        assert self.end(b"{") == Failed(UPSTREAM_ERROR, f"{reason} (JSONDecodeError)")

    def test_a_document_that_is_nested_too_deeply(self) -> None:
        reason = "the model service's answer is not a chat completion (RecursionError)"
        assert self.end(b'{"new":' * 100_000) == Failed(UPSTREAM_ERROR, reason)

    def test_its_usage_is_read(self) -> None:
        end = self.end(b'{"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": -4}}')
        assert isinstance(end, Done)
        assert end.usage == Usage(3, 0)
        negative = self.end(b'{"choices": [{}], "usage": {"prompt_tokens": -3, "completion_tokens": 1}}')
        assert isinstance(negative, Done)
        assert negative.usage == Usage(0, 1)
        unknown = b'{"choices": [{}], "usage": null}'
        assert self.end(unknown) == Done(None, None, None, None, document=unknown)

    def test_bytes_that_are_not_utf8_are_replaced(self) -> None:
        end = self.end(b'{"choices":[{}],"id":"\xff"}')
        assert end == Done(None, None, None, "\ufffd", document='{"choices":[{}],"id":"\ufffd"}'.encode())

    def test_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert chat_decoders._MAX_DOCUMENT_BYTES == 64 * 1024 * 1024
        monkeypatch.setattr(chat_decoders, "_MAX_DOCUMENT_BYTES", 2 * 1024**2)
        for new_decoder in (DocumentDecoder, *STREAM_DECODERS):
            decoder = new_decoder()
            assert decoder.feed(b"{" * 2 * 1024**2) == []
            (failed,) = decoder.feed(b"x")
            assert isinstance(failed, Failed)
            assert failed.problem.code == "upstream_error"
            assert "longer than the 2 MiB that this app takes" in failed.problem.detail
            assert failed.reason == "the model service's answer is longer than 2 MiB"

    @pytest.mark.parametrize("document", [b'{"id": "c"}', b'{"choices":[{', b"", b"<html>"])
    def test_a_connection_that_breaks(self, document: bytes) -> None:
        decoder = DocumentDecoder()
        decoder.feed(document)
        assert decoder.cut("why") == [Failed(UPSTREAM_INTERRUPTED, "why")]

    def test_a_document_that_is_whole_when_the_connection_breaks(self) -> None:
        decoder = DocumentDecoder()
        decoder.feed(b'{"choices":[{}]}')
        assert decoder.cut("why") == [Done(None, None, None, None, document=b'{"choices":[{}]}')]


FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])


class TestProgress:
    """What keeps the silence timeout away: a part of the answer, and nothing else."""

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    @pytest.mark.parametrize(
        ("chunk", "progress"),
        [
            (delta("a"), True),
            (delta(""), True),
            (FINISH, True),
            (COUNTS, True),
            (b"data: {", True),
            (b": [{", False),
            (b": comment\n\n", False),
            (b": comm", False),
            (b"\n", False),
            (b"data:\n\n", False),
            (b"data: ping\n\n", False),
            (b"event: ping\ndata: {}\n\n", False),
            (event(type="ping"), False),
            (event(foo=1), False),
            (event(choices=[]), False),
            (REPORT, False),
        ],
    )
    def test_of_a_stream(self, new_decoder: Callable[[], Decoder], chunk: bytes, progress: bool) -> None:
        decoder = new_decoder()
        decoder.feed(delta("a"))
        before = decoder.progress
        decoder.feed(chunk)
        assert (decoder.progress != before) is progress

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_of_an_event_byte_by_byte(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(delta("a"))
        before = decoder.progress
        for byte in b"data: {":
            decoder.feed(bytes([byte]))
        assert decoder.progress == before + 3

    @pytest.mark.parametrize("new_decoder", [DocumentDecoder, *STREAM_DECODERS])
    def test_of_a_document(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(b" \n")
        assert decoder.progress == 0
        decoder.feed(b"{")
        assert decoder.progress == 1
        assert decoder.feed(b'"a') == []
        assert decoder.progress == 2


class TestComplete:
    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_a_finish_reason_completes_it(self, new_decoder: Callable[[], Decoder]) -> None:
        for end in (lambda it: it.end(), lambda it: it.cut("why"), lambda it: it.feed(DONE)):
            decoder = new_decoder()
            decoder.feed(delta("a"))
            assert not decoder.complete
            assert [type(found) for found in decoder.feed(FINISH)] in ([], [Verbatim])
            assert decoder.complete
            assert end(decoder) == [Done("stop", None, None, None)]
            assert decoder.complete

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_the_marker_without_a_finish_reason_does(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        assert isinstance(decoder.feed(delta("a") + DONE)[-1], Done)
        assert decoder.complete
        assert decoder.cut("why") == decoder.end() == [Done(None, None, None, None)]

    @pytest.mark.parametrize(
        "marker",
        [
            b"data:[DONE]",
            b"data:  [DONE]",
            b"data:\t[DONE] ",
            b"data: [Done]",
            b"data: [done]",
            b'data: "[DONE]"',
            b"event: done\ndata: [DONE]",
            b"event: done\ndata:  [DONE]",
        ],
    )
    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_so_does_the_marker_in_other_forms(self, new_decoder: Callable[[], Decoder], marker: bytes) -> None:
        decoder = new_decoder()
        texts = decoder.feed(delta("a"))
        assert decoder.feed(marker + b"\n\n" + delta("x")) == [Done(None, None, None, None)]
        assert decoder.feed(event(choices=[], usage=USAGE)) in ([], [Verbatim(b"", data(COUNTS), usage=True)])
        assert decoder.usage == Usage(1, 2)
        assert len(texts) == 1

    @pytest.mark.parametrize(
        "marker", [b"data: done", b"data: [END]", b'data: "done"', b"data: [DONE" + b" " * 40 + b"]"]
    )
    def test_what_is_no_marker(self, marker: bytes) -> None:
        decoder = TextDecoder()
        events = [*decoder.feed(delta("a") + marker + b"\n\n"), *decoder.feed(DONE)]
        assert isinstance(events[-1], Failed)

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_what_was_held_is_passed_on_at_the_end(self, new_decoder: Callable[[], Decoder]) -> None:
        for end in (lambda it: it.end(), lambda it: it.cut("why")):
            decoder = new_decoder()
            assert decoder.feed(ROLE + FINISH) == []
            *texts, done = end(decoder)
            assert isinstance(done, Done)
            assert texts in ([], [Verbatim(b"", data(ROLE + FINISH))])

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_the_last_event_counts_without_its_blank_line(self, new_decoder: Callable[[], Decoder]) -> None:
        for last in (b"data: [DONE]", b"data: [DONE]\n", FINISH.rstrip()):
            decoder = new_decoder()
            decoder.feed(delta("a"))
            assert decoder.feed(last) == []
            assert isinstance(decoder.end()[-1], Done)
            decoder = new_decoder()
            decoder.feed(delta("a") + last)
            assert isinstance(decoder.cut("why")[-1], Failed), "of a body that was cut it may be a part"

    def test_the_text_of_the_last_event(self) -> None:
        decoder = TextDecoder()
        decoder.feed(delta("a"))
        assert decoder.feed(delta("b").rstrip()) == []
        text, failed = decoder.end()
        assert text == Text(b'"b"')
        assert isinstance(failed, Failed)

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_a_last_event_that_is_a_part_of_one(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(delta("a") + b'data: {"choices":[{')
        (failed,) = decoder.end()
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_INTERRUPTED

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_damage_behind_the_finish_reason_does_not_matter(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(delta("a") + FINISH + b'data: {"usage":{\n\n')
        assert decoder.feed(DONE) == [Done("stop", None, None, None)]

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_an_error_behind_it_does(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        failed = decoder.feed(delta("a") + FINISH + event(error={"code": 500}))[-1]
        assert isinstance(failed, Failed)

    @pytest.mark.parametrize("reason", ["null", "None", {"type": ""}, 5, ["stop"]])
    def test_what_is_no_finish_reason(self, reason: Any) -> None:
        decoder = TextDecoder()
        decoder.feed(event(choices=[{"delta": {"content": "a"}, "finish_reason": reason}]))
        assert (decoder.complete, decoder.finish_reason) == (False, None)

    def test_a_finish_reason_is_bounded(self) -> None:
        for new_decoder in STREAM_DECODERS:
            decoder = new_decoder()
            decoder.feed(event(choices=[{"delta": {}, "finish_reason": "x" * 100_000}]))
            assert decoder.finish_reason == "x" * 256

    def test_sglangs_own_finish_reason(self) -> None:
        decoder = TextDecoder()
        decoder.feed(event(choices=[{"delta": {}, "finish_reason": {"type": "length", "length": 5}}]))
        assert decoder.finish_reason == "length"


class TestLateUsage:
    def test_behind_the_marker(self) -> None:
        decoder = TextDecoder()
        assert decoder.feed(delta("a") + DONE + COUNTS)[-1] == Done(None, None, Usage(1, 2), None)
        decoder = TextDecoder()
        assert decoder.feed(delta("a") + DONE)[-1] == Done(None, None, None, None)
        assert decoder.feed(COUNTS) == []
        assert decoder.usage == Usage(1, 2)

    def test_it_is_passed_on(self) -> None:
        usage = Verbatim(b"", data(COUNTS), usage=True)
        decoder = VerbatimDecoder()
        assert decoder.feed(delta("a") + DONE + COUNTS)[1:] == [usage, Done(None, None, Usage(1, 2), None)]
        decoder = VerbatimDecoder()
        decoder.feed(delta("a") + DONE)
        assert decoder.feed(COUNTS + COUNTS) == [usage]

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    @pytest.mark.parametrize(
        "late", [b'data: {"usage"\n\n', event(choices=[{"delta": {"content": "b"}}], usage=USAGE), event(usage=None)]
    )
    def test_nothing_else_is(self, new_decoder: Callable[[], Decoder], late: bytes) -> None:
        decoder = new_decoder()
        decoder.feed(delta("a") + DONE)
        assert decoder.feed(late) == []
        assert decoder.usage is None

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_nor_behind_a_failure(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(delta("a") + event(error={"code": 500}))
        assert decoder.feed(COUNTS) == []
        assert decoder.usage is None


WHOLE = {
    "id": "c",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "length"}],
    "usage": USAGE,
}
WHOLE_CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "length", "delta": {"role": "assistant", "content": "ab"}}],
}


class TestADocumentInPlaceOfAStream:
    def test_its_text(self) -> None:
        content = b"\xef\xbb\xbf \r\n" + json.dumps(WHOLE).encode()
        for cut in range(len(content)):
            decoder = TextDecoder()
            assert decoder.feed(content[:cut]) == decoder.feed(content[cut:]) == []
            assert decoder.end() == [Text(b'"ab"'), Done("length", "m", Usage(1, 2), "c")]

    def test_as_events(self) -> None:
        for content in (json.dumps(WHOLE).encode(), event(**WHOLE)):
            decoder = VerbatimDecoder()
            events = [*decoder.feed(content), *decoder.end()]
            chunk, usage, done = events
            assert isinstance(chunk, Verbatim)
            assert isinstance(usage, Verbatim)
            assert [json.loads(it) for it in chunk.events] == [WHOLE_CHUNK]
            assert usage.usage
            assert [json.loads(it) for it in usage.events] == [WHOLE_CHUNK | {"choices": [], "usage": USAGE}]
            assert done == Done("length", "m", Usage(1, 2), "c")

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    @pytest.mark.parametrize(
        ("document", "code"),
        [
            (b'{"error":{"code":429}}', "rate_limited"),
            (b'[{"error":{"code":400}}]', "invalid_request"),
            (b'{"error":"text"}', "upstream_error"),
            (b'{"choices":[{"message":{"content":"x"},"finish_reason":"error"}]}', "upstream_error"),
            (b'{"choices":[]}', "upstream_error"),
            (b'{"choices":null}', "upstream_error"),
            (b'{"choices":5}', "upstream_error"),
            (b"{", "upstream_error"),
            (b"[1]", "upstream_error"),
            (b'{"a":' * 100_000, "upstream_error"),
            (b"<html>", "upstream_error"),
            (b"  <?xml", "upstream_error"),
        ],
    )
    def test_what_is_no_answer(self, new_decoder: Callable[[], Decoder], document: bytes, code: str) -> None:
        decoder = new_decoder()
        (failed,) = decoder.feed(document) or decoder.end()
        assert isinstance(failed, Failed)
        assert failed.problem.code == code
        assert decoder.feed(DONE) == []

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_a_connection_that_breaks(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        decoder.feed(json.dumps(WHOLE).encode())
        assert isinstance(decoder.cut("why")[-1], Done)
        decoder = new_decoder()
        decoder.feed(json.dumps(WHOLE).encode()[:-1])
        assert decoder.cut("why") == [Failed(UPSTREAM_INTERRUPTED, "why")]

    @pytest.mark.parametrize("new_decoder", STREAM_DECODERS)
    def test_white_space_is_no_answer(self, new_decoder: Callable[[], Decoder]) -> None:
        decoder = new_decoder()
        assert decoder.feed(b" " * 5000) == []
        assert isinstance(decoder.end()[-1], Failed)

    def test_a_message_behind_deltas_is_not_repeated(self) -> None:
        whole = event(choices=[{"message": {"content": "ab"}, "finish_reason": "stop"}])
        assert text_of(decoded(delta("a"), delta("b"), whole, DONE)) == "ab"


class TestAStreamInPlaceOfADocument:
    def test_it_is_put_together(self) -> None:
        decoder = DocumentDecoder()
        decoder.feed(
            b": comment\n\n"
            + event(id="c", model="m", choices=[{"index": 0, "delta": {"role": "assistant", "content": "a"}}])
            + event(id="c", model="m", choices=[{"index": 0, "delta": {"content": "b"}, "finish_reason": None}])
            + event(id="c", model="m", choices=[{"index": 0, "delta": {}, "finish_reason": "length"}], usage=USAGE)
            + DONE
        )
        (done,) = decoder.end()
        assert isinstance(done, Done)
        assert json.loads(done.document or b"") == WHOLE
        assert (done.finish_reason, done.model, done.usage, done.id) == ("length", "m", Usage(1, 2), "c")

    def test_the_marker_behind_a_document(self) -> None:
        for marker in (b"\n\ndata: [DONE]\n\n", b"\ndata:[DONE]", b"data: [DONE]"):
            decoder = DocumentDecoder()
            decoder.feed(json.dumps(WHOLE).encode() + marker)
            assert decoder.end() == [Done("length", "m", Usage(1, 2), "c", document=json.dumps(WHOLE).encode())]

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (delta("a") + event(error={"code": 429}), "rate_limited"),
            (delta("a"), "upstream_interrupted"),
            (DONE, "upstream_error"),
            (b"event: error\ndata: no\n\n", "upstream_error"),
        ],
    )
    def test_what_is_no_answer(self, content: bytes, code: str) -> None:
        decoder = DocumentDecoder()
        decoder.feed(content)
        (failed,) = decoder.end()
        assert isinstance(failed, Failed)
        assert failed.problem.code == code
