"""What a caller of OpenAI's wire may ask, as far as this app decides it."""

from typing import Any

import msgspec
import pytest

from relay import chat
from relay.chat import Chat
from relay.completion import Done, Failed, Usage, VerbatimCompletion, WholeCompletion
from relay.problems import Problem


def asked(**members: Any) -> Chat:
    read = chat.read(msgspec.json.encode({"messages": [], **members}))
    assert isinstance(read, Chat), read
    return read


@pytest.mark.parametrize(
    ("members", "limits"),
    [
        ({}, {"max_completion_tokens": 100}),
        ({"n": 4}, {"max_completion_tokens": 25}),
        ({"n": 4, "max_tokens": 1000}, {"max_tokens": 25}),
        ({"n": 4, "max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ({"n": 1000}, {"max_completion_tokens": 1}),
        ({"max_tokens": 5, "max_completion_tokens": 500}, {"max_tokens": 5, "max_completion_tokens": 100}),
    ],
)
def test_the_cap_is_for_all_choices_together(members: dict[str, Any], limits: dict[str, int]) -> None:
    parameters = asked(**members).parameters(max_output_tokens=100)
    assert {name: parameters[name] for name in parameters if name.startswith("max_")} == limits


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "stream", "model", "stream_options"])
def test_a_number_of_thousands_of_digits_is_refused_by_name(name: str) -> None:
    refused = chat.read(b'{"messages": [], "%b": %b}' % (name.encode(), b"1" * 5000))
    assert isinstance(refused, Problem)
    assert refused.status == 400
    assert refused.errors[0].field == name


class TestAWholeAnswer:
    def end(self, document: bytes) -> Done | Failed:
        reading = WholeCompletion()
        assert reading.read(document) == []
        return reading.end()

    @pytest.mark.parametrize(
        "document",
        [
            b'{"choices": null, "id": "x"}',
            b'{"choices": [], "usage": {"prompt_tokens": 1.5}}',
            b'{"choices": [{"message": {"content": "\\ud83d"}}]}',
            b'{"choices": "odd"}',
        ],
    )
    def test_it_passes_even_if_the_record_can_not_read_all_of_it(self, document: bytes) -> None:
        end = self.end(document)
        assert isinstance(end, Done)
        assert end.document == document

    @pytest.mark.parametrize("document", [b"", b"<html>", b"[]", b"{"])
    def test_what_is_none_does_not(self, document: bytes) -> None:
        assert isinstance(self.end(document), Failed)

    def test_its_counts_are_read(self) -> None:
        end = self.end(b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": -4}}')
        assert isinstance(end, Done)
        assert end.usage == Usage(3, 0)


def test_an_answer_that_never_comes_to_its_words_is_given_up() -> None:
    reading = VerbatimCompletion()
    chunk = b'data: {"choices":[],"filler":"%b"}\n\n' % (b"x" * 1_000_000)
    ends = [event for _ in range(40) for event in reading.read(chunk)]
    assert [type(end) for end in ends] == [Failed]
