"""The upstream request, and what this app adds to a caller's parameters."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from msgspec import Raw

from relay.upstream.request import (
    NOTHING,
    OUTPUT_LIMITS,
    STREAM_OPTIONS,
    Refused,
    UpstreamRequest,
    chat_additions,
)


class TestAdditions:
    @pytest.mark.parametrize(
        ("arguments", "additions"),
        [
            ({}, {"max_completion_tokens": 100}),
            ({"choices": 1}, {"max_completion_tokens": 100}),
            ({"choices": 3}, {"max_completion_tokens": 33}),
            ({"choices": 100}, {"max_completion_tokens": 1}),
            ({"choices": 101}, {"max_completion_tokens": 1}),
            ({"output_limits": {}}, {"max_completion_tokens": 100}),
            ({"limit": 7}, {"max_completion_tokens": 7}),
            ({"limit": 101}, {"max_completion_tokens": 100}),
            ({"limit": 34, "choices": 3}, {"max_completion_tokens": 33}),
            ({"output_limits": {"max_tokens": 99}}, {"max_tokens": 99}),
            ({"output_limits": {"max_tokens": 101}}, {"max_tokens": 100}),
            ({"output_limits": {"max_tokens": 7, "max_completion_tokens": 8}, "choices": 14}, {
                "max_tokens": 7,
                "max_completion_tokens": 7,
            }),
        ],
    )  # fmt: skip
    def test_output_limits(self, arguments: dict[str, Any], additions: dict[str, int]) -> None:
        assert chat_additions(stream=False, max_output_tokens=100, **arguments).parameters() == additions

    @pytest.mark.parametrize(
        ("options", "sent"),
        [
            (None, {"include_usage": True}),
            ({}, {"include_usage": True}),
            ({"include_usage": False}, {"include_usage": True}),
            ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ],
    )
    def test_a_stream_is_asked_for_its_usage(self, options: dict[str, Any] | None, sent: dict[str, Any]) -> None:
        given = None if options is None else dict(options)
        additions = chat_additions(stream=True, max_output_tokens=1, stream_options=options)
        assert additions.adds_usage
        assert additions.parameters() == {"max_completion_tokens": 1, "stream_options": sent}
        assert options == given, "the caller's own options were changed"

    def test_without_options_of_the_caller(self) -> None:
        additions = chat_additions(stream=True, max_output_tokens=1).parameters()
        assert additions == {"max_completion_tokens": 1, "stream_options": {"include_usage": True}}

    def test_a_document_is_not(self) -> None:
        additions = chat_additions(stream=False, max_output_tokens=1, stream_options={"include_usage": False})
        assert not additions.adds_usage
        assert additions.parameters() == {"max_completion_tokens": 1}

    def test_what_the_caller_asked_for_is_not_added(self) -> None:
        additions = chat_additions(stream=True, max_output_tokens=1, stream_options={"include_usage": True})
        assert not additions.adds_usage
        assert additions.parameters() == {"max_completion_tokens": 1}

    @pytest.mark.parametrize(
        ("arguments", "caps"),
        [
            ({}, True),
            ({"limit": 100}, False),
            ({"limit": 101}, True),
            ({"output_limits": {"max_tokens": 100}}, False),
            ({"output_limits": {"max_tokens": 100, "max_completion_tokens": 101}}, True),
        ],
    )
    def test_whose_the_limit_is(self, arguments: dict[str, Any], caps: bool) -> None:
        assert chat_additions(stream=False, max_output_tokens=100, **arguments).caps is caps


NEW, OLD = OUTPUT_LIMITS


class TestRefused:
    def test_together(self) -> None:
        one, other = Refused(frozenset("a"), 5), Refused(frozenset("b"), 7)
        assert one | other == other | one == Refused(frozenset("ab"), 5)
        assert one | NOTHING == NOTHING | one == one
        assert NOTHING | NOTHING == NOTHING

    def test_whether_it_is_anything(self) -> None:
        assert not NOTHING
        assert Refused(frozenset("a"))
        assert Refused(most=1)

    def test_its_description(self) -> None:
        assert NOTHING.descriptions() == []
        assert Refused(frozenset("ba"), 5).descriptions() == ["a", "b", "an output limit above 5"]

    @pytest.mark.parametrize(
        ("arguments", "refused", "both_limits", "limits"),
        [
            ({}, NOTHING, True, {NEW: 100, OLD: 100}),
            ({"limit": 7}, NOTHING, True, {NEW: 7, OLD: 7}),
            ({}, Refused(frozenset((NEW,))), True, {OLD: 100}),
            ({}, Refused(frozenset((OLD,))), True, {NEW: 100}),
            ({}, Refused(frozenset((NEW,))), False, {OLD: 100}),
            ({}, Refused(frozenset((OLD,))), False, {NEW: 100}),
            ({}, Refused(frozenset(OUTPUT_LIMITS)), False, {}),
            ({}, Refused(frozenset(OUTPUT_LIMITS)), True, {}),
            ({}, Refused(most=12), True, {NEW: 12, OLD: 12}),
            ({}, Refused(most=1000), False, {NEW: 100}),
            ({"limit": 50}, Refused(most=12), False, {NEW: 50}),
            ({"limit": 101}, Refused(most=12), False, {NEW: 12}),
            ({"output_limits": {NEW: 50}}, NOTHING, True, {NEW: 50, OLD: 50}),
            ({"output_limits": {NEW: 500}}, Refused(most=12), True, {NEW: 12, OLD: 12}),
            ({"output_limits": {NEW: 50}}, NOTHING, False, {NEW: 50}),
            ({"output_limits": {NEW: 50}}, Refused(frozenset((OLD,))), True, {NEW: 50}),
            ({"output_limits": {NEW: 50}}, Refused(frozenset((NEW,))), True, {NEW: 50, OLD: 50}),
            ({"output_limits": {OLD: 50}}, NOTHING, True, {OLD: 50}),
            ({"output_limits": {OLD: 50}}, Refused(frozenset((OLD,))), True, {OLD: 50}),
            ({"output_limits": {OLD: 50, NEW: 60}}, Refused(frozenset(OUTPUT_LIMITS), 7), True, {OLD: 50, NEW: 60}),
        ],
    )
    def test_the_limits_that_are_left(
        self, arguments: dict[str, Any], refused: Refused, both_limits: bool, limits: dict[str, int]
    ) -> None:
        additions = chat_additions(stream=False, max_output_tokens=100, **arguments)
        assert additions.parameters(refused, both_limits=both_limits) == limits


class TestUpstreamRequest:
    def request(self, **arguments: Any) -> UpstreamRequest:
        additions = chat_additions(**{"stream": True, "max_output_tokens": 100, **arguments})
        parameters = {"messages": [], "stream": True, "max_tokens": None, "stream_options": Raw(b"{}")}
        return UpstreamRequest("/path", parameters | additions.parameters(), True, {"a": "b"}, additions)

    def test_as_it_is_where_nothing_is_refused(self) -> None:
        request = self.request()
        assert request.without(NOTHING) is request
        plain = UpstreamRequest("/path", {"max_tokens": 1}, stream=True)
        assert plain.without(Refused(most=1), both_limits=True) is plain

    def test_without_what_is_refused(self) -> None:
        request = self.request()
        refused = Refused(frozenset((STREAM_OPTIONS, NEW)), 7)
        changed = request.without(refused)
        assert changed.parameters == {"messages": [], "stream": True, "max_tokens": 7}
        assert changed.without(NOTHING, both_limits=True).parameters == {
            "messages": [],
            "stream": True,
            "max_completion_tokens": 100,
            "max_tokens": 100,
            "stream_options": {"include_usage": True},
        }
        assert (changed.path, changed.stream, changed.fields) == ("/path", True, {"a": "b"})
        assert request.parameters[NEW] == 100, "the request itself was changed"

    def test_the_callers_own_options_stay(self) -> None:
        request = self.request(stream_options={"include_obfuscation": False})
        changed = request.without(Refused(frozenset((STREAM_OPTIONS,))))
        assert changed.parameters[STREAM_OPTIONS] == {"include_obfuscation": False}
        request = self.request(stream_options={"include_usage": True})
        assert request.without(Refused(frozenset((STREAM_OPTIONS,)))).parameters[STREAM_OPTIONS] == {
            "include_usage": True
        }

    def test_no_fields_are_mapped_by_default(self) -> None:
        assert UpstreamRequest("/path", {}, stream=True).fields == {}

    def test_it_is_immutable(self) -> None:
        with pytest.raises(FrozenInstanceError):
            UpstreamRequest("/path", {}, stream=True).path = "/other"  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("parameters", "tokens"),
        [
            ({"messages": ["x" * 36]}, 10),  # 40 bytes of JSON
            ({"messages": ["x" * 39]}, 10),
            ({"messages": ["x" * 40], "other": "x" * 1000}, 11),
            ({"messages": ["\u00fc" * 18]}, 10),
            ({}, 1),
        ],
    )
    def test_input_tokens_are_estimated_by_the_messages(self, parameters: dict[str, Any], tokens: int) -> None:
        assert UpstreamRequest("/path", parameters, stream=True).estimated_input_tokens() == tokens
