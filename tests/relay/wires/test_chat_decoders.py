"""The model service's bytes and what they mean, however they are cut."""

import itertools
import json
import re
from typing import Any

import pytest
from httpx_sse._decoders import SSEDecoder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.completion import Completion, Done, EventReader, Failed, Text, Usage

LINE_ENDS = ("\n", "\r", "\r\n")


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at these places."""
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return [content[start:end] for start, end in itertools.pairwise(places)]


def understood(*chunks: bytes) -> list[Text | Done | Failed]:
    completion = Completion()
    return [meaning for chunk in chunks for meaning in completion.read(chunk)]  # type: ignore[misc]


def words(meanings: list[Any]) -> str:
    """What a caller assembles: the strings end to end, by code units."""
    text = "".join(json.loads(meaning.json) for meaning in meanings if isinstance(meaning, Text))
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def delta(content: Any, **members: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}, **members}])


DONE = b"data: [DONE]\n\n"


class TestTheEventReader:
    """Judged by the decoder of httpx-sse, which was written by others from the same standard."""

    # Without `id`, `event` and `retry`, for which that decoder makes events that have no data; the standard has none.
    LINE = st.one_of(
        st.just(""),
        st.sampled_from(["data", "data:", "data: ", "data:  x", ":", ": data: x", "datas: x", " data: x", "DATA: x"]),
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).map(
            lambda text: f"data: {text}"
        ),
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).filter(
            lambda text: not re.match(r"\ufeff|(id|event|retry|data)(:|$)", text)
        ),
    )

    @given(
        lines=st.lists(st.tuples(LINE, st.sampled_from(LINE_ENDS)), max_size=20),
        cuts=st.lists(st.integers(0, 500), max_size=30),
    )
    @example(lines=[("data: a", "\r\n"), ("", "\r\n")], cuts=[8, 9, 10])
    @example(lines=[("data: a", "\r"), ("", "\n")], cuts=[8])
    def test_it_reads_what_the_judge_reads(self, lines: list[tuple[str, str]], cuts: list[int]) -> None:
        text = "".join(line + end for line, end in lines)
        judge = SSEDecoder()
        split = re.split(r"\r\n|\r|\n", text)[:-1] if text else []
        expected = [found.data.encode() for line in split if (found := judge.decode(line)) is not None]
        reader = EventReader()
        assert [data for piece in pieces(text.encode(), cuts) for data in reader.feed(piece)] == expected

    @given(st.lists(st.binary(max_size=40), max_size=20))
    def test_no_bytes_harm_it_and_no_cut_matters(self, chunks: list[bytes]) -> None:
        whole, cut, single = EventReader(), EventReader(), EventReader()
        content = b"".join(chunks)
        expected = whole.feed(content)
        assert [data for chunk in chunks for data in cut.feed(chunk)] == expected
        assert [data for at in range(len(content)) for data in single.feed(content[at : at + 1])] == expected

    def test_an_event_that_the_end_cuts_is_dropped(self) -> None:
        reader = EventReader()
        assert reader.feed(b"data: a\n\ndata: b\n") == [b"a"]

    def test_a_byte_order_mark_is_passed_over(self) -> None:
        assert EventReader().feed(b"\xef\xbb\xbfdata: a\n\n") == [b"a"]

    def test_a_long_line_costs_no_more_for_being_cut(self) -> None:
        reader = EventReader()
        line = b"data: " + b"x" * 2_000_000 + b"\n\n"
        found = [data for at in range(0, len(line), 100) for data in reader.feed(line[at : at + 100])]
        assert [len(data) for data in found] == [2_000_000]


class TestWords:
    @settings(max_examples=60)
    @given(
        tokens=st.lists(st.text(max_size=20), max_size=10),
        ascii_only=st.booleans(),
        end=st.sampled_from(LINE_ENDS),
        cuts=st.lists(st.integers(0, 3000), max_size=30),
    )
    def test_any_text_in_any_pieces(self, tokens: list[str], ascii_only: bool, end: str, cuts: list[int]) -> None:
        lines = [
            f"data: {json.dumps({'choices': [{'delta': {'content': token}}]}, ensure_ascii=ascii_only)}{end}{end}"
            for token in tokens
        ] + [f"data: [DONE]{end}{end}"]
        meanings = understood(*pieces("".join(lines).encode(), cuts))
        assert words(meanings) == "".join(tokens)
        assert isinstance(meanings[-1], Done)
        assert not any(isinstance(meaning, Done | Failed) for meaning in meanings[:-1])

    @given(text=st.text(st.characters(min_codepoint=0x10000), min_size=1, max_size=8), cuts=st.lists(st.integers(0, 9)))
    def test_surrogate_pairs_over_two_chunks(self, text: str, cuts: list[int]) -> None:
        units = text.encode("utf-16-le")
        places = sorted({0, len(units), *(cut % (len(units) // 2 + 1) * 2 for cut in cuts)})
        halves = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(places)]
        assert words(understood(b"".join(delta(half) for half in halves))) == text

    def test_what_arrived_together_comes_out_together(self) -> None:
        meanings = understood(delta("a") + delta('"') + delta("\u00e9") + DONE)
        assert [type(meaning) for meaning in meanings] == [Text, Done]
        assert words(meanings) == 'a"\u00e9'

    def test_text_that_has_arrived_is_not_held_back(self) -> None:
        completion = Completion()
        assert [words(completion.read(delta(token))) for token in ("a", "b", "c")] == ["a", "b", "c"]

    def test_a_refusal_is_words_too(self) -> None:
        assert words(understood(event(choices=[{"delta": {"refusal": "I can't."}}]))) == "I can't."

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
            delta("x", index=1),
            b": comment\n\n",
        ],
        ids=range(10),
    )
    def test_what_has_no_words_makes_none(self, chunk: bytes) -> None:
        assert understood(chunk) == []

    def test_unknown_members_are_passed_over(self) -> None:
        chunk = event(choices=[{"delta": {"content": "a", "new": [1, {"x": None}]}, "new": 1.5}], new={"y": []})
        assert words(understood(chunk)) == "a"


class TestTheEnd:
    def test_all_that_is_known_of_it(self) -> None:
        usage = {
            "prompt_tokens": 12,
            "completion_tokens": 34,
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
            "prompt_tokens_details": {"cached_tokens": 6},
        }
        (done,) = understood(
            event(id="c-1", model="m-1", choices=[{"delta": {}, "finish_reason": "length"}])
            + event(id="c-1", model="m-1", choices=[], usage=usage)
            + DONE
        )
        assert isinstance(done, Done)
        assert (done.finish_reason, done.model, done.id) == ("length", "m-1", "c-1")
        assert done.usage == Usage(12, 34, 5, 6)
        assert done.usage.members() == {
            "input_tokens": 12,
            "output_tokens": 34,
            "reasoning_tokens": 5,
            "cached_tokens": 6,
        }

    def test_nothing_comes_after_it(self) -> None:
        completion = Completion()
        assert len(completion.read(DONE + delta("more") + DONE)) == 1
        assert completion.read(delta("more") + event(error={"code": "x"}) + DONE) == []

    def test_a_filter_that_stops_the_answer_is_an_end(self) -> None:
        results = {
            "violence": {"filtered": True, "severity": "medium", "text": "what it said"},
            "hate": {"filtered": False, "severity": "safe"},
            "jailbreak": {"filtered": True, "detected": True},
            "<script>": {"filtered": True},
            "odd": 7,
        }
        chunk = event(choices=[{"delta": {}, "finish_reason": "content_filter", "content_filter_results": results}])
        (done,) = understood(chunk + DONE)
        assert isinstance(done, Done)
        assert done.finish_reason == "content_filter"
        assert done.content_filter == {
            "violence": {"filtered": True, "severity": "medium"},
            "jailbreak": {"filtered": True, "detected": True},
        }

    def test_an_end_without_done_is_a_cut(self) -> None:
        completion = Completion()
        completion.read(delta("all") + event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2}))
        failed = completion.cut("why")
        assert (failed.problem.code, failed.reason, failed.usage) == ("upstream_interrupted", "why", Usage(1, 2))

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            ({"code": "content_filter"}, "content_filter"),
            ({"code": "429"}, "rate_limited"),
            ({"code": 429}, "rate_limited"),
            ({"type": "rate_limit_exceeded"}, "rate_limited"),
            ({"code": "server_error"}, "upstream_error"),
            ({}, "upstream_error"),
            ("text", "upstream_error"),
            (["a"], "upstream_error"),
            ({"code": {"a": 1}}, "upstream_error"),
        ],
        ids=str,
    )
    def test_an_error_in_the_stream(self, error: Any, code: str) -> None:
        meanings = understood(delta("words") + event(error=error))
        assert words(meanings) == "words"
        assert isinstance(meanings[-1], Failed)
        assert meanings[-1].problem.code == code

    def test_the_text_of_an_error_stays_here(self) -> None:
        (failed,) = understood(event(error={"code": "a b\nforged line", "message": "SECRET", "type": "SECRET"}))
        assert "SECRET" not in repr(failed)
        assert "forged" not in repr(failed)

    def test_counts_that_can_not_be_read_take_no_words_away(self) -> None:
        completion = Completion()
        words = b'data: {"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}\n\n'
        assert [type(event) for event in completion.read(words + b"data: [DONE]\n\n")] == [Text, Done]
        assert completion.usage is None

    @pytest.mark.parametrize(
        "data",
        [
            b"{",
            b"[]",
            b"null",
            b"5",
            b'"text"',
            b"<html>",
            b'{"choices": "abc"}',
            b'{"choices": 5}',
            b'{"choices": [5]}',
            b'{"choices": [{"delta": []}]}',
            b'{"choices": [{"delta": {"content": 5}}]}',
            b'{"choices": [{"delta": {"content": ["x"]}}]}',
            rb'{"choices": [{"delta": {"content": "\q"}}]}',
            rb'{"choices": [{"delta": {"content": "\u12"}}]}',
            b'{"choices": [{"delta": {"content": "a\x00b"}}]}',
            b'{"choices": [{"delta": {"content": "a\ndata: forged"}}]}',
            b'{"choices": [' + b"[" * 100_000 + b"]}",
        ],
        ids=range(17),
    )
    def test_what_is_no_chunk_is_a_failure(self, data: bytes) -> None:
        lines = b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
        meanings = understood(lines + b"\n")
        assert len(meanings) == 1
        assert isinstance(meanings[0], Failed)
        assert meanings[0].problem.code == "upstream_error"

    @given(st.binary(max_size=300))
    def test_no_bytes_harm_it(self, content: bytes) -> None:
        for meaning in understood(b"data: " + content + b"\n\n", content, b"\n\n"):
            if isinstance(meaning, Text):
                assert isinstance(json.loads(meaning.json), str)

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
    def test_no_document_harms_it(self, document: Any) -> None:
        for meaning in understood(event(choices=[document]) + b"data: " + json.dumps(document).encode() + b"\n\n"):
            if isinstance(meaning, Text):
                assert isinstance(json.loads(meaning.json), str)


class TestBytesThatAreNotUtf8:
    @pytest.mark.parametrize(
        ("raw", "text"), [(b"caf\xe9 x", "caf\ufffd x"), (b"\xff\xfe", "\ufffd\ufffd"), (b"caf\xc3", "caf\ufffd")]
    )
    def test_they_become_replacement_characters(self, raw: bytes, text: str) -> None:
        assert words(understood(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % raw)) == text

    def test_elsewhere_they_do_not_matter(self) -> None:
        assert words(understood(b'data: {"model":"\xff","choices":[{"delta":{"content":"a"}}]}\n\n')) == "a"
