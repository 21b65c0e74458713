"""The upstream request, and what this app adds to a caller's parameters."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from relay.upstream.request import UpstreamRequest, chat_additions


class TestChatAdditions:
    @pytest.mark.parametrize(
        ("arguments", "additions"),
        [
            ({}, {"max_completion_tokens": 100}),
            ({"choices": 1}, {"max_completion_tokens": 100}),
            ({"choices": 3}, {"max_completion_tokens": 33}),
            ({"choices": 100}, {"max_completion_tokens": 1}),
            ({"choices": 101}, {"max_completion_tokens": 1}),
            ({"output_limits": {}}, {"max_completion_tokens": 100}),
            ({"output_limits": {"max_tokens": 99}}, {"max_tokens": 99}),
            ({"output_limits": {"max_tokens": 101}}, {"max_tokens": 100}),
            ({"output_limits": {"max_tokens": 7, "max_completion_tokens": 8}, "choices": 14}, {
                "max_tokens": 7,
                "max_completion_tokens": 7,
            }),
        ],
    )  # fmt: skip
    def test_output_limits(self, arguments: dict[str, Any], additions: dict[str, int]) -> None:
        assert chat_additions(stream=False, max_output_tokens=100, **arguments) == additions

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
        assert chat_additions(stream=True, max_output_tokens=1, stream_options=options) == {
            "max_completion_tokens": 1,
            "stream_options": sent,
        }
        assert options == given, "the caller's own options were changed"

    def test_without_options_of_the_caller(self) -> None:
        additions = chat_additions(stream=True, max_output_tokens=1)
        assert additions == {"max_completion_tokens": 1, "stream_options": {"include_usage": True}}

    def test_a_document_is_not(self) -> None:
        additions = chat_additions(stream=False, max_output_tokens=1, stream_options={"include_usage": True})
        assert additions == {"max_completion_tokens": 1}


class TestUpstreamRequest:
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
