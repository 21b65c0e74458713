"""What a caller may ask, and what the model service is asked for it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import prompt
from relay.problems import Problem
from relay.prompt import MAX_MESSAGES, Prompt


def asked(document: Any) -> Prompt:
    found = prompt.read(json.dumps(document).encode())
    assert isinstance(found, Prompt), found
    return found


def refused(document: Any) -> Problem:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    found = prompt.read(body)
    assert isinstance(found, Problem), found
    return found


def errors(document: Any) -> dict[str, str]:
    problem = refused(document)
    assert problem.code == "invalid_request"
    return {error.field: error.message for error in problem.errors}


def test_the_least_that_can_be_asked() -> None:
    assert asked({"input": "hello"}).parameters(max_output_tokens=100) == {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 100,
    }


def test_the_most_that_can_be_asked() -> None:
    conversation = [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant", "user")]
    found = asked(
        {
            "input": conversation,
            "instructions": "Be brief.",
            "model": "m",
            "temperature": 2,
            "top_p": 0,
            "max_output_tokens": 50,
            "reasoning_effort": "high",
            "stream": False,
        }
    )
    assert (found.model, found.stream) == ("m", False)
    assert found.parameters(max_output_tokens=100) == {
        "messages": [{"role": "system", "content": "Be brief."}, *conversation],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 50,
        "temperature": 2,
        "top_p": 0,
        "reasoning_effort": "high",
    }


@pytest.mark.parametrize(("wanted", "sent"), [(None, 100), (1, 1), (100, 100), (101, 100), (10**30, 100)])
def test_the_output_limit_is_the_lower_one(wanted: int | None, sent: int) -> None:
    found = asked({"input": "x", "max_output_tokens": wanted})
    assert found.parameters(max_output_tokens=100)["max_completion_tokens"] == sent


def test_null_is_as_good_as_absent() -> None:
    assert asked({"input": "x", "temperature": None, "model": None, "instructions": None}) == asked({"input": "x"})


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace()))
def test_any_text_reaches_the_model_as_it_is(text: str) -> None:
    problem_or_prompt = prompt.read(json.dumps({"input": text}).encode())
    if isinstance(problem_or_prompt, Problem):
        # Rust and Python differ on which characters are white space; only such a text may be refused.
        assert not any(character.isalnum() for character in text)
        return
    assert problem_or_prompt.parameters(max_output_tokens=1)["messages"] == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b" \n", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"input": "x"} {}', "invalid_json"),
        (b"{'input': 'x'}", "invalid_json"),
        (b'{"input": "caf\xe9"}', "invalid_json"),
        (b'{"input": "\\ud800"}', "invalid_json"),
        (b'{"input":' * 1000, "invalid_json"),
        (b'{"input": "x", "max_output_tokens": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[]", "invalid_request"),
        (b"1", "invalid_request"),
        (b"null", "invalid_request"),
    ],
    ids=range(12),
)
def test_what_is_no_request(body: bytes, code: str) -> None:
    problem = refused(body)
    assert (problem.code, problem.status) == (code, 400)
    assert "JSON object" in problem.detail


def test_a_byte_order_mark_is_passed_over() -> None:
    assert isinstance(prompt.read(b'\xef\xbb\xbf{"input": "x"}'), Prompt)


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ({}, "input", "is required"),
        ({"input": None}, "input", "must be a string or a list of messages"),
        ({"input": {}}, "input", "must be a string or a list of messages"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": "\t\n "}, "input", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": ["x"]}, "input[0]", "must be a JSON object"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content", "must be a string"),
        (
            {"input": [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}]},
            "input[1].role",
            "must be 'user', 'assistant', 'system' or 'developer'",
        ),
        (
            {"input": [{"role": "user", "content": "x", "name": "y"}]},
            "input[0].name",
            "is not a field of this request; leave it out",
        ),
        ({"input": "x", "promt": 1}, "promt", "is not a field of this request; leave it out"),
        ({"input": "x", "instructions": 1}, "instructions", "must be a string"),
        ({"input": "x", "model": ""}, "model", "must not be empty"),
        ({"input": "x", "temperature": "1"}, "temperature", "must be a number"),
        ({"input": "x", "temperature": -0.1}, "temperature", "must be at least 0"),
        ({"input": "x", "temperature": 2.1}, "temperature", "must be at most 2"),
        ({"input": "x", "temperature": float("nan")}, "temperature", "must be a finite number"),
        ({"input": "x", "temperature": True}, "temperature", "must be a number"),
        ({"input": "x", "top_p": 1.1}, "top_p", "must be at most 1"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "must be greater than 0"),
        ({"input": "x", "max_output_tokens": 1.5}, "max_output_tokens", "must be a whole number"),
        ({"input": "x", "max_output_tokens": "1"}, "max_output_tokens", "must be a whole number"),
        ({"input": "x", "reasoning_effort": "x" * 33}, "reasoning_effort", "must have at most 32 characters"),
        ({"input": "x", "stream": "no"}, "stream", "must be true or false"),
        ({"input": "x", "stream": 0}, "stream", "must be true or false"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:40],
)
def test_each_wrong_field_is_named_with_its_mend(document: Any, field: str, message: str) -> None:
    assert errors(document) == {field: message}


def test_all_wrong_fields_are_named_at_once() -> None:
    assert set(errors({"temperature": 9, "stream": 1, "x": 1})) == {"input", "temperature", "stream", "x"}


def test_a_conversation_has_a_limit() -> None:
    messages = [{"role": "user", "content": "x"}] * MAX_MESSAGES
    asked({"input": messages})
    assert errors({"input": [*messages, messages[0]]}) == {"input": f"must have at most {MAX_MESSAGES} messages"}


def test_the_answer_to_a_hostile_request_is_short() -> None:
    assert len(refused({"x" * 100_000: 1} | {f"f{number}": 1 for number in range(10_000)}).document("id")) < 8192


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "input", "model", "stream"]), inner, max_size=4)
        ),
    )
)
def test_no_document_harms(document: Any) -> None:
    for body in (document, {"input": document}, {"input": "x", "model": document}, {"input": [document]}):
        found = prompt.read(json.dumps(body).encode())
        if isinstance(found, Problem):
            assert json.loads(found.document("id"))["code"] in ("invalid_request", "invalid_json")


@given(st.binary(max_size=200))
def test_no_bytes_harm(body: bytes) -> None:
    assert isinstance(prompt.read(body), Prompt | Problem)
