"""The members of a JSON object, kept as they stand in the body, and those that are read."""

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from relay.problems import FieldError
from relay.wires.json_members import LookAlikes, MemberReader, TooManyMembersError, split_members

HALF_PAIR = rb"\ud83c"  # valid in JSON, refused by msgspec: something else stands in for it meanwhile
MOST = 20


def split(body: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in split_members(body, MOST).items()}


class TestSplitMembers:
    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["as usual", "with half a pair"])
    def test_every_value_is_kept_as_it_stands(self, marker: bytes) -> None:
        values = {
            "marker": b'"%b"' % marker,
            "number": b"1.50e+1",
            "big": b"123456789012345678901234567890",
            "object": b'{ "b" : 1,"a":[ ] , "s": "},{" }',
            "array": b'[ 1 , "]" , null ]',
            "text": '"grün, \\u00e9"'.encode(),
            "null": b"null",
            "true": b"true",
        }
        members = b",".join(b'"%b":%b' % (name.encode(), value) for name, value in values.items())
        assert split(b"{%b}" % members) == values

    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["as usual", "with half a pair"])
    def test_white_space_around_members_is_dropped(self, marker: bytes) -> None:
        body = b' \t\r\n{ \t"a"\r\n:\n"%b" ,\n "b"\t: \r 2 \n}\n ' % marker
        assert split(body) == {"a": b'"%b"' % marker, "b": b"2"}

    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["as usual", "with half a pair"])
    def test_the_last_of_equal_names_counts(self, marker: bytes) -> None:
        assert split(b'{"a":1,"b":"%b","a":2}' % marker) == {"a": b"2", "b": b'"%b"' % marker}

    def test_names_are_decoded(self) -> None:
        body = rb'{"\u0061":1,"gr\u00fcn":"\ud83c","\ud83c\udf3f":2}'
        assert split(body) == {"a": b"1", "grün": rb'"\ud83c"', "\U0001f33f": b"2"}

    def test_an_empty_object_has_none(self) -> None:
        assert split(b"{}") == split(b" { } ") == {}

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b'{"a":}',
            b'{"a":1,}',
            b'{"a":1}x',
            b"{'a':1}",
            b'{"a":NaN,"b":"\\ud83c"}',
            b'{"a":Infinity,"b":"\\ud83c"}',
            b'{"\\ud83c":1}',
            b'{"a":"\xff"}',
            b'{"a":"\\ud83c"',
            b"nonsense",
        ],
    )
    def test_what_is_not_json_is_a_value_error(self, body: bytes) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (its many kinds all count)
            split_members(body, MOST)
        assert not isinstance(caught.value, msgspec.ValidationError)

    @pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"[1]"])
    def test_what_is_not_an_object_is_a_validation_error(self, body: bytes) -> None:
        with pytest.raises(msgspec.ValidationError):
            split_members(body, MOST)

    @pytest.mark.parametrize("body", [rb'["\ud83c"]', rb'"\ud83c"'])
    def test_nor_with_half_a_pair(self, body: bytes) -> None:
        with pytest.raises(msgspec.ValidationError):
            split_members(body, MOST)

    @pytest.mark.parametrize("marker", [b"", HALF_PAIR], ids=["as usual", "with half a pair"])
    def test_the_number_of_members_has_a_limit(self, marker: bytes) -> None:
        body = b",".join(b'"%d":"%b"' % (number, marker) for number in range(MOST))
        assert len(split(b"{%b}" % body)) == MOST
        with pytest.raises(TooManyMembersError):
            split(b'{%b,"one more":1}' % body)

    @pytest.mark.parametrize(
        "text",
        [
            rb"\ud83c",
            rb"\udf3f",
            rb"\uD83c \uDf3F",
            rb"\udf3f\ud83c",
            rb"\ud83c\ud83c\udf3f",
            rb"\ud83c\udf3f\udf3f",
            rb"\\\ud83c",
            rb"\\\\ud83c\ud83c",
            rb"\\ud83c\ud83c\\udf3f",
            rb"\ud83c\n\udf3f",
            rb"\ud83cu\u00e9",
            "\x80\x81\x82".encode() + rb"\ud83c",
        ],
    )
    def test_half_pairs_are_kept_as_they_stand(self, text: bytes) -> None:
        assert split(b'{"a":"%b","b":["%b"]}' % (text, text)) == {"a": b'"%b"' % text, "b": b'["%b"]' % text}

    @pytest.mark.parametrize("text", [rb"\ud83c\udf3f", rb"\\ud83c", "\x01\x02\x80"])
    def test_text_without_half_pairs_is_kept_too(self, text: bytes | str) -> None:
        value = json.dumps(text).encode() if isinstance(text, str) else b'"%b"' % text
        assert split(b'{"a":%b}' % value) == {"a": value}

    def test_a_name_may_be_a_control_character(self) -> None:
        assert split(rb'{"\u0080":1,"b":"\ud83c"}') == {"\x80": b"1", "b": rb'"\ud83c"'}

    def test_some_of_the_control_characters_do_no_harm(self) -> None:
        text = "".join(chr(code) for code in range(0x80, 0x99)).encode() + HALF_PAIR
        assert split(b'{"a":"%b"}' % text) == {"a": b'"%b"' % text}

    @pytest.mark.parametrize("control", [b"\x01", b"\x02", "".join(map(chr, range(0x80, 0xA0))).encode()])
    def test_control_characters_beside_half_a_pair_are_a_value_error(self, control: bytes) -> None:
        with pytest.raises(ValueError, match="control"):
            split(b'{"a":"%b\\ud83c"}' % control)

    def test_half_a_pair_in_a_name_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="half a surrogate pair in a name"):
            split(rb'{"\udf3f":1}')

    def test_too_many_half_pairs_are_a_value_error(self) -> None:
        assert split(b'{"a":"%b"}' % (HALF_PAIR * 10_000))
        with pytest.raises(ValueError):  # noqa: PT011 (msgspec's own)
            split(b'{"a":"%b"}' % (HALF_PAIR * 10_001))

    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["as usual", "with half a pair"])
    @pytest.mark.parametrize("value", [b"1", b"[]", b"{}", b'""', b'{"f":1}', b"1.5", b"[" * 50 + b"]" * 50])
    def test_no_value_is_decoded(self, marker: bytes, value: bytes) -> None:
        """Neither once nor, which took most of the time, twice: as objects, the values take 8 to 56 times the space."""
        body = b'{"a":"%b","b":[%b]}' % (marker, b",".join([value] * (200_000 // len(value))))
        tracemalloc.start()
        try:
            split(body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * len(body)

    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            ),
            max_size=5,
        ),
        st.sampled_from([None, 1]),
        st.booleans(),
    )
    def test_any_object(self, document: dict[str, Any], indent: int | None, half_pair: bool) -> None:
        if half_pair:
            document = {"half": "\ud83c", **document}
        found = split_members(json.dumps(document, indent=indent).encode(), MOST)
        assert {name: json.loads(bytes(raw)) for name, raw in found.items()} == document


def reader(**members: bytes) -> MemberReader:
    return MemberReader({name: Raw(value) for name, value in members.items()})


LONG = b"1" * 5000  # more digits than Python converts


class TestMemberReader:
    @pytest.mark.parametrize("value", [b'"text"', b'" "'])
    def test_a_string(self, value: bytes) -> None:
        found = reader(a=value)
        assert found.string("a") == json.loads(value)
        assert found.errors == []

    @pytest.mark.parametrize("value", [b'""', b"0", b"1", b"true", b"false", b"[]", b"{}"])
    def test_what_is_no_string(self, value: bytes) -> None:
        found = reader(a=value)
        assert found.string("a") is None
        assert found.errors == [FieldError("a", "must be a string and not empty")]

    @pytest.mark.parametrize(("value", "expected"), [(b"true", True), (b"false", False)])
    def test_a_boolean(self, value: bytes, expected: bool) -> None:
        found = reader(a=value)
        assert found.boolean("a") is expected
        assert found.errors == []

    @pytest.mark.parametrize("value", [b"0", b"1", b'"true"', b"[]", b"{}", b'""'])
    def test_what_is_no_boolean(self, value: bytes) -> None:
        found = reader(a=value)
        assert found.boolean("a") is False
        assert found.errors == [FieldError("a", "must be true or false")]

    @pytest.mark.parametrize("value", [b"{}", b'{"a":{"b":[1,null]}}', '{"a":"grün"}'.encode()])
    def test_an_object(self, value: bytes) -> None:
        found = reader(a=value)
        assert found.object("a") == json.loads(value)
        assert found.errors == []

    @pytest.mark.parametrize("value", [b"[]", b"0", b'""', b"false", b'"{}"'])
    def test_what_is_no_object(self, value: bytes) -> None:
        found = reader(a=value)
        assert found.object("a") == {}
        assert found.errors == [FieldError("a", "must be a JSON object")]

    @pytest.mark.parametrize("value", [rb'{"a":"\ud83c"}', rb'{"\ud83c":1}'])
    def test_an_object_that_can_not_be_written_again(self, value: bytes) -> None:
        found = reader(a=value)
        found.object("a")
        assert found.errors == [FieldError("a", "must not hold half a surrogate pair")]

    @pytest.mark.parametrize(("value", "expected"), [(b"1", 1), (b"7", 7), (b"348.0", 348), (b"1e3", 1000)])
    def test_a_positive_integer(self, value: bytes, expected: int) -> None:
        found = reader(a=value)
        number = found.positive_integer("a")
        assert number == expected
        assert type(number) is int
        assert found.errors == []

    @pytest.mark.parametrize("value", [b"0", b"-1", b"0.0", b"1.5", b'"1"', b"true", b"false", b"[]", b"1e400"])
    def test_what_is_no_positive_integer(self, value: bytes) -> None:
        found = reader(a=value)
        assert found.positive_integer("a") is None
        assert found.errors == [FieldError("a", "must be a whole number greater than 0")]

    @pytest.mark.parametrize("members", [{}, {"a": b"null"}], ids=["absent", "null"])
    def test_null_counts_as_absent(self, members: dict[str, bytes]) -> None:
        found = reader(**members)
        assert (found.string("a"), found.positive_integer("a")) == (None, None)
        assert found.boolean("a") is False
        assert found.object("a") == {}
        assert found.errors == []

    @pytest.mark.parametrize("method", ["string", "boolean", "object", "positive_integer"])
    @pytest.mark.parametrize("value", [LONG, b"[" * 16_384], ids=["a long number", "deeply nested"])
    def test_what_can_not_be_read(self, method: str, value: bytes) -> None:
        found = reader(a=value)
        assert not getattr(found, method)("a")
        assert found.errors == [FieldError("a", "can't be read")]

    @pytest.mark.parametrize("method", ["string", "boolean", "object", "positive_integer"])
    def test_a_long_value_is_not_read(self, method: str) -> None:
        for value in (b'"' + b"x" * 16_383 + b'"', b"[" * 200_000):
            found = reader(a=value)
            assert not getattr(found, method)("a")
            assert found.errors == [FieldError("a", "is too long: it may have 16384 bytes at most")]

    def test_the_longest_value_is_read(self) -> None:
        assert reader(a=b'"' + b"x" * 16_382 + b'"').string("a") == "x" * 16_382

    def test_errors_are_collected_in_order(self) -> None:
        found = reader(a=b"1", b=b"2")
        found.string("a")
        found.boolean("b")
        found.add_error("c", "is required")
        assert [error.field for error in found.errors] == ["a", "b", "c"]
        assert found.errors[2] == FieldError("c", "is required")


class TestLookAlikes:
    @pytest.mark.parametrize(
        ("name", "like"),
        [
            ("MODEL", "model"),
            ("Model", "model"),
            ("modeL", "model"),
            ("MAX_TO\u212aENS", "max_tokens"),
            ("max_token\u017f", "max_tokens"),
            ("\u017ftream", "stream"),
            ("l\u0131m\u0130t", "limit"),
            ("maxTokens", "max_tokens"),
            ("maxtokens", "max_tokens"),
            ("max-tokens", "max_tokens"),
            ("_max__tokens" + "_" * 1000, "max_tokens"),
            ("model\0", "model"),
            ("Model\0 and so on", "model"),
            ("N", "n"),
        ],
    )
    def test_a_name_that_a_lenient_service_takes_for_another(self, name: str, like: str) -> None:
        read = ("model", "max_tokens", "stream", "limit", "n")
        assert LookAlikes(*read).find(["x", name, *read]) == [(name, like)]

    @pytest.mark.parametrize(
        "name", ["", "models", "mode", "model ", " model", "max tokens", "m\u00f6del", "x" * 100_000]
    )
    def test_other_names_are_none(self, name: str) -> None:
        assert LookAlikes("model", "max_tokens").find([name]) == []

    def test_no_more_of_a_long_name_is_folded_than_matters(self) -> None:
        name = "\u0149" * 300_000  # three characters each, in upper case
        tracemalloc.start()
        try:
            assert LookAlikes("model").find([name]) == []
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 10_000
