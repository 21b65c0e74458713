"""`POST /stream`: what a caller may ask, and the upstream request made of it."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.problems import INVALID_JSON, INVALID_REQUEST, FieldError, Problem
from relay.upstream.request import chat_additions
from relay.wires import stream
from relay.wires.chat_decoders import TextDecoder
from relay.wires.stream import MAX_MESSAGES, StreamRequest
from relay.wires.stream_encoders import JSONDocumentEncoder, NDJSONEncoder, SSEEncoder


def accepted(document: Any) -> StreamRequest:
    request = stream.parse(json.dumps(document).encode())
    assert isinstance(request, StreamRequest), request
    return request


def rejected(document: Any) -> Problem:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    problem = stream.parse(body)
    assert isinstance(problem, Problem), problem
    return problem


def errors(document: Any) -> dict[str, str]:
    problem = rejected(document)
    assert problem.code == "invalid_request"
    assert problem.detail == INVALID_REQUEST.detail
    return {error.field: error.message for error in problem.errors}


def parameters(request: StreamRequest, max_output_tokens: int = 100) -> dict[str, Any]:
    return request.upstream_request(max_output_tokens=max_output_tokens).parameters


class TestUpstreamRequest:
    def test_a_minimal_request(self) -> None:
        request = accepted({"input": "hello"}).upstream_request(max_output_tokens=100)
        assert request.parameters == {
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 100,
        }
        assert (request.path, request.stream) == ("/chat/completions", True)
        assert request.fields == {
            "messages": "input",
            "temperature": "temperature",
            "top_p": "top_p",
            "reasoning_effort": "reasoning_effort",
        }, "a limit that the caller did not set is not the caller's"
        with_limit = accepted({"input": "hello", "max_output_tokens": 7}).upstream_request(max_output_tokens=100)
        limits = {"max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens"}
        assert with_limit.fields == {**request.fields, **limits}
        assert with_limit.additions == chat_additions(stream=True, max_output_tokens=100, limit=7)

    def test_a_request_with_all_fields(self) -> None:
        conversation = [
            {"role": role, "content": role} for role in ("system", "developer", "user", "assistant", "user")
        ]
        request = accepted(
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
        assert (request.model, request.stream) == ("m", False)
        assert parameters(request) == {
            "messages": [{"role": "system", "content": "Be brief."}, *conversation],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 50,
            "temperature": 2,
            "top_p": 0,
            "reasoning_effort": "high",
        }
        assert request.upstream_request(max_output_tokens=100).stream, "the upstream is always asked for a stream"

    @pytest.mark.parametrize(("requested", "sent"), [(None, 100), (1, 1), (100, 100), (101, 100), (10**30, 100)])
    def test_the_output_limit_is_the_lower_one(self, requested: int | None, sent: int) -> None:
        assert parameters(accepted({"input": "x", "max_output_tokens": requested}))["max_completion_tokens"] == sent

    def test_null_counts_as_absent(self) -> None:
        absent = accepted({"input": "x"})
        assert accepted({"input": "x", "temperature": None, "model": None, "instructions": None}) == absent

    def test_empty_instructions_are_not_sent(self) -> None:
        request = accepted({"input": "x", "instructions": ""})
        assert parameters(request)["messages"] == [{"role": "user", "content": "x"}]

    @pytest.mark.parametrize("number", ["348.0", "3.48e2", "348"])
    def test_a_whole_number_in_any_notation(self, number: str) -> None:
        request = stream.parse(b'{"input": "x", "max_output_tokens": %b}' % number.encode())
        assert isinstance(request, StreamRequest)
        sent = parameters(request, 1000)["max_completion_tokens"]
        assert sent == 348
        assert isinstance(sent, int)

    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace()))
    def test_any_text_reaches_the_model_unchanged(self, text: str) -> None:
        request = stream.parse(json.dumps({"input": text}).encode())
        if isinstance(request, Problem):
            # Rust and Python differ on which characters are white space; only such a text may be rejected.
            assert not any(character.isalnum() for character in text)
            return
        assert parameters(request, 1)["messages"] == [{"role": "user", "content": text}]


def test_a_request_is_immutable() -> None:
    with pytest.raises(ValidationError):
        accepted({"input": "x"}).stream = False  # type: ignore[misc]


class TestDecoderAndEncoder:
    @pytest.mark.parametrize("streamed", [True, False])
    def test_the_answer_is_always_decoded_from_a_stream(self, streamed: bool) -> None:
        request = accepted({"input": "x", "stream": streamed})
        first, second = request.decoder(), request.decoder()
        assert isinstance(first, TextDecoder)
        assert first is not second

    def test_the_accept_header_selects_the_format_of_a_stream(self) -> None:
        assert isinstance(accepted({"input": "x"}).encoder(None), SSEEncoder)
        assert isinstance(accepted({"input": "x", "stream": True}).encoder("application/jsonl"), NDJSONEncoder)

    def test_without_a_stream_the_response_is_a_document(self) -> None:
        assert isinstance(accepted({"input": "x", "stream": False}).encoder("application/jsonl"), JSONDocumentEncoder)


EMPTY = 'The body is empty. Send one JSON object, for example {"input": "write a haiku"}.'
NO_OBJECT = 'The body must be one JSON object, for example {"input": "write a haiku"}.'


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", INVALID_JSON.with_detail(EMPTY)),
        (b" \n", INVALID_JSON.with_detail(EMPTY)),
        (b"\xef\xbb\xbf\t", INVALID_JSON.with_detail(EMPTY)),
        (b"{", INVALID_JSON),
        (b'{"input": "x"} {}', INVALID_JSON),
        (b"{'input': 'x'}", INVALID_JSON),
        (b'{"input": "caf\xe9"}', INVALID_JSON),
        (b'{"input": "\\ud800"}', INVALID_JSON),
        (b'{"input":' * 1000, INVALID_JSON),
        (b'{"input": "x", "max_output_tokens": ' + b"9" * 5000 + b"}", INVALID_JSON),
        (b"[]", INVALID_REQUEST.with_detail(NO_OBJECT)),
        (b"1", INVALID_REQUEST.with_detail(NO_OBJECT)),
        (b"null", INVALID_REQUEST.with_detail(NO_OBJECT)),
    ],
    ids=range(13),
)
def test_a_body_that_is_no_request(body: bytes, problem: Problem) -> None:
    assert rejected(body) == problem
    assert problem.status == 400
    assert "JSON object" in problem.detail


def test_a_byte_order_mark_is_ignored() -> None:
    assert stream.parse(b'\xef\xbb\xbf{"input": "x"}') == accepted({"input": "x"})


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ({}, "input", "is required"),
        ({"input": None}, "input", "must be a string or a list of messages"),
        ({"input": {}}, "input", "must be a string or a list of messages"),
        ({"input": 1}, "input", "must be a string or a list of messages"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": "\t\n "}, "input", "must not be empty"),
        ({"input": "\x85\ufeff"}, "input", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": ["x"]}, "input[0]", "must be a JSON object"),
        ({"input": [[]]}, "input[0]", "must be a JSON object"),
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
        ({"input": "x", "model": 1}, "model", "must be a string"),
        ({"input": "x", "temperature": "1"}, "temperature", "must be a number"),
        ({"input": "x", "temperature": -0.1}, "temperature", "must be at least 0"),
        ({"input": "x", "temperature": 2.1}, "temperature", "must be at most 2"),
        ({"input": "x", "temperature": float("nan")}, "temperature", "must be a finite number"),
        ({"input": "x", "temperature": float("inf")}, "temperature", "must be a finite number"),
        ({"input": "x", "temperature": True}, "temperature", "must be a number"),
        ({"input": "x", "top_p": -0.1}, "top_p", "must be at least 0"),
        ({"input": "x", "top_p": 1.1}, "top_p", "must be at most 1"),
        ({"input": "x", "top_p": float("nan")}, "top_p", "must be a finite number"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "must be greater than 0"),
        ({"input": "x", "max_output_tokens": 1.5}, "max_output_tokens", "must be a whole number"),
        ({"input": "x", "max_output_tokens": float("inf")}, "max_output_tokens", "must be a whole number"),
        ({"input": "x", "max_output_tokens": "1"}, "max_output_tokens", "must be a whole number"),
        ({"input": "x", "max_output_tokens": True}, "max_output_tokens", "must be a whole number"),
        ({"input": "x", "reasoning_effort": ""}, "reasoning_effort", "must not be empty"),
        ({"input": "x", "reasoning_effort": "x" * 33}, "reasoning_effort", "must have at most 32 characters"),
        ({"input": "x", "stream": "no"}, "stream", "must be true or false"),
        ({"input": "x", "stream": 0}, "stream", "must be true or false"),
        ({"input": "x", "stream": None}, "stream", "must be true or false"),
        ({"input": "x", "x" * 101: 1}, "x" * 100, "is not a field of this request; leave it out"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:40],
)
def test_a_wrong_field_is_named_with_its_remedy(document: Any, field: str, message: str) -> None:
    assert errors(document) == {field: message}


@pytest.mark.parametrize(
    "document",
    [
        {"input": "x", "temperature": 0, "top_p": 1, "max_output_tokens": 1, "reasoning_effort": "x" * 32},
        {"input": "x", "temperature": 2.0, "top_p": 0.0, "reasoning_effort": "x", "model": "m"},
        {"input": [{"role": "user", "content": ""}], "instructions": ""},
    ],
)
def test_values_at_the_bounds_are_accepted(document: Any) -> None:
    assert accepted(document).model_dump(exclude_unset=True) == document


def test_all_wrong_fields_are_named_at_once() -> None:
    assert set(errors({"temperature": 9, "stream": 1, "x": 1})) == {"input", "temperature", "stream", "x"}


def test_only_the_first_wrong_message_is_named() -> None:
    assert errors({"input": [{"role": "user", "content": "x"}, 1, 2, {}]}) == {"input[1]": "must be a JSON object"}


def test_a_conversation_has_a_limit() -> None:
    messages = [{"role": "user", "content": "x"}] * MAX_MESSAGES
    assert MAX_MESSAGES == 2048
    accepted({"input": messages})
    assert errors({"input": [*messages, messages[0]]}) == {"input": "must have at most 2048 messages"}


class TestHostileRequests:
    def test_the_response_is_short(self) -> None:
        problem = rejected({"x" * 100_000: 1} | {f"f{number}": 1 for number in range(10_000)})
        assert len(problem.document("id")) < 8192

    def test_it_names_twenty_fields_at_most(self) -> None:
        problem = rejected({f"f{number:02}": 1 for number in range(30)} | {"input": "x"})
        unknown = "is not a field of this request; leave it out"
        assert problem.errors == tuple(FieldError(f"f{number:02}", unknown) for number in range(20))

    def test_equal_errors_are_named_once(self) -> None:
        assert len(rejected({"input": "x", "x" * 100 + "a": 1, "x" * 100 + "b": 1}).errors) == 1


LONG = 16 * 1024  # bytes; a body above that is pruned before the validator reads it


def padded(document: Any) -> bytes:
    """The same document in a body that is pruned."""
    return json.dumps(document).encode() + b" " * LONG


class TestLongBodies:
    """What is left out of a long body makes no difference to the request, and hardly any to the problem."""

    @pytest.mark.parametrize(
        "document",
        [
            {"input": "x"},
            {"input": [{"role": "user", "content": "x"}, {"content": "y", "role": "assistant"}]},
            {
                "input": 'gr\u00fcn \U0001f33f \\ "',
                "instructions": "\n",
                "model": "m",
                "temperature": 1.50,
                "stream": False,
            },
            {"input": "x", "max_output_tokens": 7.0, "top_p": None, "reasoning_effort": "low"},
        ],
    )
    def test_a_request_is_the_same(self, document: Any) -> None:
        assert stream.parse(padded(document)) == accepted(document)
        assert stream.parse(b"\xef\xbb\xbf" + padded(document)) == accepted(document)

    def test_a_request_with_the_longest_conversation(self) -> None:
        document = {"input": [{"role": "user", "content": f"message {number}"} for number in range(MAX_MESSAGES)]}
        assert accepted(document).upstream_request(max_output_tokens=1).parameters["messages"] == document["input"]
        document["input"].append(document["input"][0])
        assert errors(document) == {"input": "must have at most 2048 messages"}

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"input": None},
            {"input": {}},
            {"input": {"a": [1]}},
            {"input": ""},
            {"input": []},
            {"input": "x", "promt": 1},
            {"input": "x", "temperature": [1, 2], "model": {"a": 1}, "stream": [[]], "instructions": [{}]},
            {"input": "x", "max_output_tokens": {}},
            {"input": [{"role": "user", "content": [1]}]},
            {"input": [{"role": {"a": 1}, "content": "x"}]},
            {"input": [{"role": "tool", "content": "x"}]},
            {f"f{number:02}": 1 for number in range(30)},
            {f"f{number:02}": 1 for number in range(30)} | {"input": 1, "stream": 1},
            [],
            1,
            None,
        ],
        ids=lambda document: json.dumps(document)[:40],
    )
    def test_a_problem_is_the_same(self, document: Any) -> None:
        assert rejected(padded(document)) == rejected(document)

    @pytest.mark.parametrize(
        ("messages", "wrong"),
        [
            ([1], 0),
            ([[]], 0),
            ([{}], 0),
            ([{"role": "user"}], 0),
            ([{"role": "user", "content": "x"}] * 7 + [{"role": "user", "content": "x", "name": "y"}], 7),
            ([{"role": "user", "content": "x"}, None], 1),
        ],
    )
    def test_a_wrong_message_is_named(self, messages: Any, wrong: int) -> None:
        assert rejected(padded({"input": messages})) == INVALID_REQUEST.with_errors(
            FieldError(f"input[{wrong}]", 'must be {"role": "\u2026", "content": "\u2026"} without other fields')
        )

    @pytest.mark.parametrize(
        "body",
        [
            b"{" + b" " * LONG,
            b'{"input":"x"} {}' + b" " * LONG,
            b'{"input":"x","temperature":NaN}' + b" " * LONG,
            b'{"input":"caf\xe9"}' + b" " * LONG,
            b'{"input":"\\ud83c"}' + b" " * LONG,
            b'{"input":[{"role":"user","content":"x"},' + b" " * LONG,
            b'{"a":' * LONG,
            b'{"input":' + b"[" * LONG,
        ],
        ids=range(8),
    )
    def test_what_is_not_json(self, body: bytes) -> None:
        assert rejected(body) == INVALID_JSON

    @pytest.mark.parametrize(
        "body",
        [
            {f"f{number}": 1 for number in range(20_000)},
            {"input": "x"} | {f"f{number}": {} for number in range(20_000)},
            {"input": [{"role": "user"} | {f"f{number}": 1 for number in range(20_000)}]},
            {"input": [1] * 100_000},
            {"input": [{}] * 80_000},
            {"input": [{"role": "user", "content": "x"}] * 9000},
            {"input": [{"role": "user", "content": [[]] * 80_000}]},
            {"input": {f"f{number}": 1 for number in range(20_000)}},
            {"input": "x", "instructions": [[]] * 80_000},
            {"input": "x", "max_output_tokens": [{"a": 1}] * 20_000},
        ],
        ids=lambda body: json.dumps(body)[:40],
    )
    def test_the_validator_gets_no_more_than_errors_can_name(self, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """It takes 3 µs for each wrong member and creates an object for each value."""
        given: list[bytes] = []

        def validate(content: bytes) -> StreamRequest:
            given.append(content)
            return StreamRequest.__pydantic_validator__.validate_json(content)

        monkeypatch.setattr(StreamRequest, "model_validate_json", validate)
        content = json.dumps(body).encode()
        assert len(content) > 200_000
        rejected(content)
        values = sum(it.count(b":") + it.count(b",") for it in given)
        assert values <= 4 * (MAX_MESSAGES + 1) + 40

    def test_values_that_no_field_has_are_not_decoded(self) -> None:
        body = json.dumps({"input": "x", "instructions": [[]] * 80_000}).encode()
        tracemalloc.start()
        try:
            rejected(body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "input", "model", "stream"]), inner, max_size=4)
        ),
    )
)
def test_any_document_is_a_request_or_a_problem(document: Any) -> None:
    for body in (document, {"input": document}, {"input": "x", "model": document}, {"input": [document]}):
        found = stream.parse(json.dumps(body).encode())
        if isinstance(found, Problem):
            assert json.loads(found.document("id"))["code"] in ("invalid_request", "invalid_json")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_problem(body: bytes) -> None:
    assert isinstance(stream.parse(body), StreamRequest | Problem)
