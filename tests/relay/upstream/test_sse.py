"""The decoding of Server-Sent Events, wherever the reads were split."""

import re

import pytest
from httpx_sse._decoders import SSEDecoder as ReferenceDecoder
from hypothesis import example, given
from hypothesis import strategies as st

from relay.upstream import sse
from relay.upstream.sse import EventTooLongError, NamedEvent, SSEDecoder
from tests.relay.event_streams import LINE_ENDS, split_at


def decoded(*chunks: bytes) -> list[bytes]:
    decoder = SSEDecoder()
    return [data for chunk in chunks for data in decoder.feed(chunk)]


class TestAnyStream:
    """Compared with the decoder of httpx-sse, an independent implementation of the standard."""

    # Without `id`, `event` and `retry`, for which that decoder creates events without data; the standard has none.
    LINE = st.one_of(
        st.just(""),
        st.sampled_from(["data", "data:", "data: ", "data:  x", ":", ": data: x", "datas: x", " data: x", "DATA: x"]),
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).map(
            lambda text: f"data: {text}"
        ),
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).filter(
            lambda text: not re.match(r"\ufeff|\{|(id|event|retry|data)(:|$)", text)
        ),
    )

    @given(
        lines=st.lists(st.tuples(LINE, st.sampled_from(LINE_ENDS)), max_size=20),
        cuts=st.lists(st.integers(0, 500), max_size=30),
    )
    @example(lines=[("data: a", "\r\n"), ("", "\r\n")], cuts=[8, 9, 10])
    @example(lines=[("data: a", "\r"), ("", "\n")], cuts=[8])
    def test_it_decodes_what_the_reference_decodes(self, lines: list[tuple[str, str]], cuts: list[int]) -> None:
        text = "".join(line + end for line, end in lines)
        reference = ReferenceDecoder()
        split = re.split(r"\r\n|\r|\n", text)[:-1] if text else []
        expected = [found.data.encode() for line in split if (found := reference.decode(line)) is not None]
        assert decoded(*split_at(text.encode(), cuts)) == expected

    @given(st.lists(st.binary(max_size=40), max_size=20))
    def test_the_splitting_of_any_bytes_does_not_matter(self, chunks: list[bytes]) -> None:
        content = b"".join(chunks)
        expected = decoded(content)
        assert decoded(*chunks) == expected
        assert decoded(*(content[at : at + 1] for at in range(len(content)))) == expected


class TestLines:
    @pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
    def test_all_line_ends(self, end: bytes) -> None:
        stream = end.join([b"data: a", b"", b"data: b", b"data: c", b"", b""])
        for cut in range(len(stream)):
            assert decoded(stream[:cut], stream[cut:]) == [b"a", b"b\nc"]

    def test_a_line_feed_after_a_carriage_return_of_the_read_before_ends_no_line(self) -> None:
        assert decoded(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [b"a\nb"]
        assert decoded(b"data: a\r", b"\n", b"\n") == [b"a"]
        assert decoded(b"data: a\r", b"", b"\n", b"data: b\n\n") == [b"a\nb"]

    def test_any_other_line_feed_does(self) -> None:
        assert decoded(b"data: a\r", b"\r", b"data: b\r\n", b"\n") == [b"a", b"b"]
        assert decoded(b"data: a\n", b"\n") == [b"a"]
        assert decoded(b"data: a\r", b"data: b\n", b"\n") == [b"a\nb"]

    def test_an_event_is_decoded_as_soon_as_it_ends(self) -> None:
        decoder = SSEDecoder()
        assert [decoder.feed(chunk) for chunk in (b"data: a", b"\r", b"\r", b"\n", b"data: b\n\n")] == [
            [],
            [],
            [b"a"],
            [],
            [b"b"],
        ]

    @pytest.mark.parametrize("separator", [b"\x0b", b"\x0c", b"\x1c", b"\x85", "\u2028".encode()])
    def test_other_line_separators_are_data(self, separator: bytes) -> None:
        assert decoded(b"data: a%bb\n\n" % separator) == [b"a%bb" % separator]


class TestFields:
    @pytest.mark.parametrize(
        ("lines", "events"),
        [
            (b"data: a\n\n", [b"a"]),
            (b"data:a\n\n", [b"a"]),
            (b"data:  a \n\n", [b" a "]),
            (b"data:\n\n", [b""]),
            (b"data\n\n", [b""]),
            (b"data\ndata:\ndata: \n\n", [b"\n\n"]),
            (b"data: a\ndata: b\n\n", [b"a\nb"]),
            (b"data: a: b\n\n", [b"a: b"]),
            (b"data: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
            (b"\n\n\n", []),
            (b": comment\n\n", []),
            (b"id: 1\nevent: x\nretry: 5\n\n", []),
            (b"event: x\ndata: a\nid: 1\n\n", [b"a"]),
            (b" data: a\n\n", []),
            (b"dataa: a\n\n", []),
            (b"DATA: a\n\n", []),
            (b"datab\n\n", []),
        ],
    )
    def test_what_is_data(self, lines: bytes, events: list[bytes]) -> None:
        assert decoded(lines) == events

    def test_an_event_cut_by_the_end_is_dropped(self) -> None:
        assert decoded(b"data: a\n\ndata: b\n") == [b"a"]

    def test_data_over_several_reads(self) -> None:
        assert decoded(b"da", b"ta", b": a", b"bc\nda", b"ta: d\n", b"\n") == [b"abc\nd"]
        assert decoded(b"data: a\n", b"data: b\n", b"\n", b"data: c\n\n") == [b"a\nb", b"c"]

    @pytest.mark.parametrize("byte", [b"X", b" ", b":", b"\x00", b"\xff"])
    def test_a_read_may_end_in_any_byte(self, byte: bytes) -> None:
        assert decoded(b"data: a" + byte, b"b\n\n") == [b"a" + byte + b"b"]


class TestByteOrderMark:
    def test_it_is_dropped_at_the_beginning(self) -> None:
        assert decoded(b"\xef\xbb\xbfdata: a\n\n") == [b"a"]
        assert decoded(b"\xef", b"\xbb\xbf", b"data: a\n", b"\n") == [b"a"]

    def test_it_is_not_dropped_later(self) -> None:
        assert decoded(b"\n\xef\xbb\xbfdata: a\n\n") == []
        assert decoded(b"data: a\n", b"\xef\xbb\xbfdata: b\n\n") == [b"a"]
        assert decoded(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n") == []
        assert decoded(b"data: \xef\xbb\xbf\n\n") == [b"\xef\xbb\xbf"]


class TestLength:
    def test_a_long_line_in_many_reads(self) -> None:
        line = b"data: " + b"x" * 2_000_000 + b"\n\n"
        events = decoded(*(line[at : at + 100] for at in range(0, len(line), 100)))
        assert [len(data) for data in events] == [2_000_000]

    def test_the_limit(self) -> None:
        assert sse.MAX_EVENT_BYTES == 16 * 1024 * 1024

    def test_an_event_of_the_limit_is_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 20)
        assert decoded(b"data: 0123456789\n\n") == [b"0123456789"]
        assert decoded(b"data: 01234", b"567890123", b"\n\n") == [b"01234567890123"]

    @pytest.mark.parametrize(
        "chunks",
        [
            [b"x" * 20, b"x"],
            [b"data: 0123\n", b"data: 01234"],
            [b": 01234567\n", b": 0123456", b"\n"],
            [b"data: 01\n\n", b"x" * 20, b"x"],
        ],
    )
    def test_a_longer_one_is_an_error(self, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 20)
        decoder = SSEDecoder()
        for chunk in chunks[:-1]:
            decoder.feed(chunk)
        with pytest.raises(EventTooLongError):
            decoder.feed(chunks[-1])

    def test_each_event_has_the_limit_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 20)
        assert decoded(b"data: 0123456\n\n" * 3, b"data: 0123456", b"\n\n", b"\n" * 50) == [b"0123456"] * 4


class TestNames:
    def test_the_event_type_is_kept_with_the_data(self) -> None:
        named, plain, other = decoded(b"event: error\ndata: a\n\ndata: b\n\ndata: c\nevent:x \n\n")
        assert (named, plain, other) == (b"a", b"b", b"c")
        assert isinstance(named, NamedEvent)
        assert named.name == b"error"
        assert type(plain) is bytes
        assert isinstance(other, NamedEvent)
        assert other.name == b"x "

    def test_an_event_type_without_data_does_not_last(self) -> None:
        (plain,) = decoded(b"event: delta\n\ndata: a\n\n")
        assert type(plain) is bytes

    @pytest.mark.parametrize("name", [b"error", b"Error"])
    def test_an_error_needs_no_data(self, name: bytes) -> None:
        error, plain = decoded(b"event: %b\n\ndata: a\n\n" % name)
        assert isinstance(error, NamedEvent)
        assert (error, error.name) == (b"", name)
        assert type(plain) is bytes
        decoder = SSEDecoder()
        assert decoder.feed(b"event: error\n") == []
        (error,) = decoder.end()
        assert isinstance(error, NamedEvent)


class TestEnd:
    @pytest.mark.parametrize("content", [b"data: a", b"data: a\n", b"data: a\r", b"data: a\r\n"])
    def test_a_last_event_without_its_blank_line(self, content: bytes) -> None:
        for cut in range(len(content)):
            decoder = SSEDecoder()
            assert decoder.feed(content[:cut]) == decoder.feed(content[cut:]) == []
            assert decoder.end() == [b"a"]
            assert decoder.end() == []

    @pytest.mark.parametrize("content", [b"", b"data: a\n\n", b": comment", b"id: 5"])
    def test_there_may_be_none(self, content: bytes) -> None:
        decoder = SSEDecoder()
        decoder.feed(content)
        assert decoder.end() == []


def test_a_line_that_begins_as_a_json_object_is_data() -> None:
    assert decoded(b'data: a\n\n{"error":1}\n\n{"b":\n2}\n\n[1]\n\n') == [b"a", b'{"error":1}', b'{"b":']


@pytest.mark.parametrize(
    ("content", "within"),
    [(b"data: a", True), (b"data: a\n", True), (b"data: a\n\n", False), (b": data", False), (b"", False)],
)
def test_data_that_has_not_all_arrived(content: bytes, within: bool) -> None:
    decoder = SSEDecoder()
    decoder.feed(content)
    assert decoder.within_data is within
