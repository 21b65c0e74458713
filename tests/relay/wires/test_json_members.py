"""The members of a JSON object, kept as they stand in the body, and those that are read."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from relay.problems import FieldError
from relay.wires.json_members import MemberReader, split_members

HALF_PAIR = rb"\ud83c"  # valid in JSON, refused by msgspec: such a body is split by the second parser


def split(body: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in split_members(body).items()}


class TestSplitMembers:
    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["by msgspec", "by json"])
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

    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["by msgspec", "by json"])
    def test_white_space_around_members_is_dropped(self, marker: bytes) -> None:
        body = b' \t\r\n{ \t"a"\r\n:\n"%b" ,\n "b"\t: \r 2 \n}\n ' % marker
        assert split(body) == {"a": b'"%b"' % marker, "b": b"2"}

    @pytest.mark.parametrize("marker", [b"x", HALF_PAIR], ids=["by msgspec", "by json"])
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
            split_members(body)
        assert not isinstance(caught.value, msgspec.ValidationError)

    def test_the_error_of_a_constant_names_it(self) -> None:
        with pytest.raises(ValueError, match=r"^-Infinity is not JSON$"):
            split_members(b'{"a":-Infinity,"b":"\\ud83c"}')

    @pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"[1]"])
    def test_what_is_not_an_object_is_a_validation_error(self, body: bytes) -> None:
        with pytest.raises(msgspec.ValidationError):
            split_members(body)

    @pytest.mark.parametrize("body", [rb'["\ud83c"]', rb'"\ud83c"'])
    def test_nor_to_the_second_parser(self, body: bytes) -> None:
        with pytest.raises((msgspec.ValidationError, TypeError)):
            split_members(body)

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
        found = split_members(json.dumps(document, indent=indent).encode())
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
    @pytest.mark.parametrize("value", [LONG, b"[" * 200_000], ids=["a long number", "deeply nested"])
    def test_what_can_not_be_read(self, method: str, value: bytes) -> None:
        found = reader(a=value)
        assert not getattr(found, method)("a")
        assert found.errors == [FieldError("a", "can't be read")]

    def test_errors_are_collected_in_order(self) -> None:
        found = reader(a=b"1", b=b"2")
        found.string("a")
        found.boolean("b")
        found.add_error("c", "is required")
        assert [error.field for error in found.errors] == ["a", "b", "c"]
        assert found.errors[2] == FieldError("c", "is required")
