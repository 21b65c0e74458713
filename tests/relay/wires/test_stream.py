"""`POST /stream`: what a caller may ask, and the upstream request made of it."""

import json
import tracemalloc
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.problems import INVALID_JSON, INVALID_REQUEST, FieldError, Problem
from relay.settings import Wire
from relay.streaming.events import Done, Reasoning
from relay.upstream.request import UpstreamRequest, chat_additions, response_additions
from relay.wires import stream
from relay.wires.chat_decoders import TextDecoder
from relay.wires.responses_text import ResponseTextDecoder
from relay.wires.stream import MAX_MESSAGES, MAX_PARTS, MAX_URL_LENGTH, StreamRequest
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
    return request.on("chat").upstream_request(max_output_tokens=max_output_tokens).parameters


class TestUpstreamRequest:
    def test_a_minimal_request(self) -> None:
        request = accepted({"input": "hello"}).on("chat").upstream_request(max_output_tokens=100)
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
        with_limit = (
            accepted({"input": "hello", "max_output_tokens": 7}).on("chat").upstream_request(max_output_tokens=100)
        )
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
        assert request.on("chat").upstream_request(max_output_tokens=100).stream, (
            "the upstream is always asked for a stream"
        )

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


LONG: Final = 16 * 1024  # bytes; a body above that is pruned before the validator reads it
UNKNOWN: Final = "is not a field of this request; leave it out"
IMAGE: Final = "https://pictures.example.com/cat.png?sig=a%2Fb"
DATA_URL: Final = "data:image/png;base64,iVBORw0KGgo="
PARTS: Final = [
    {"type": "input_text", "text": "What is it?"},
    {"type": "input_image", "image_url": IMAGE, "detail": "low"},
    {"type": "input_image", "image_url": DATA_URL},
]


class TestUpstreamRequestByResponses:
    @staticmethod
    def sent(document: Any, max_output_tokens: int = 100) -> UpstreamRequest:
        return accepted(document).on("responses").upstream_request(max_output_tokens=max_output_tokens)

    def test_a_minimal_request(self) -> None:
        request = self.sent({"input": "hello"})
        assert request.parameters == {"input": "hello", "stream": True, "store": False, "max_output_tokens": 100}
        assert (request.path, request.stream, request.method) == ("/responses", True, "POST")
        assert (request.creates_response, request.counts_usage, request.operation) == (False, True, "chat")
        assert request.fields == {
            "input": "input",
            "instructions": "instructions",
            "temperature": "temperature",
            "top_p": "top_p",
            "reasoning.effort": "reasoning_effort",
            "reasoning.summary": "reasoning_summary",
        }, "a limit that the caller did not set is not the caller's"
        with_limit = self.sent({"input": "hello", "max_output_tokens": 7})
        assert with_limit.fields == {**request.fields, "max_output_tokens": "max_output_tokens"}
        assert with_limit.additions == response_additions(max_output_tokens=100, limit=7)

    def test_a_request_with_all_fields(self) -> None:
        conversation = [
            {"role": role, "content": role} for role in ("system", "developer", "user", "assistant", "user")
        ]
        request = self.sent(
            {
                "input": conversation,
                "instructions": "Be brief.",
                "model": "m",
                "temperature": 2,
                "top_p": 0,
                "max_output_tokens": 50,
                "reasoning_effort": "high",
                "reasoning_summary": "detailed",
                "stream": False,
            }
        )
        assert request.parameters == {
            "input": conversation,
            "instructions": "Be brief.",
            "stream": True,
            "store": False,
            "max_output_tokens": 50,
            "temperature": 2,
            "top_p": 0,
            "reasoning": {"effort": "high", "summary": "detailed"},
        }
        assert request.stream, "the upstream is always asked for a stream"

    @pytest.mark.parametrize(("name", "member"), [("reasoning_effort", "effort"), ("reasoning_summary", "summary")])
    def test_one_of_the_two_about_reasoning(self, name: str, member: str) -> None:
        parameters = self.sent({"input": "x", name: "auto"}).parameters
        assert parameters is not None
        assert parameters["reasoning"] == {member: "auto"}

    @pytest.mark.parametrize(("requested", "sent"), [(None, 100), (1, 1), (100, 100), (101, 100)])
    def test_the_output_limit_is_the_lower_one(self, requested: int | None, sent: int) -> None:
        parameters = self.sent({"input": "x", "max_output_tokens": requested}).parameters
        assert parameters is not None
        assert parameters["max_output_tokens"] == sent

    def test_empty_instructions_are_not_sent(self) -> None:
        assert "instructions" not in (self.sent({"input": "x", "instructions": ""}).parameters or {})

    def test_images(self) -> None:
        request = self.sent({"input": [{"role": "user", "content": PARTS}]})
        assert request.parameters is not None
        assert request.parameters["input"] == [
            {"role": "user", "content": [PARTS[0], PARTS[1], {**PARTS[2], "detail": "auto"}]}
        ]
        assert request.image_bytes == len(IMAGE) + len(DATA_URL)

    @pytest.mark.parametrize("asked", [True, False])
    def test_the_decoder(self, asked: bool) -> None:
        call = accepted({"input": "x", **({"reasoning_summary": "auto"} if asked else {})}).on("responses")
        decoder = call.decoder()
        assert isinstance(decoder, ResponseTextDecoder)
        assert call.decoder() is not decoder
        thought = b'data: {"type":"response.reasoning_summary_text.delta","delta":"x"}\n\n'
        assert decoder.feed(thought) == ([Reasoning(b'"x"')] if asked else [])


class TestImages:
    def test_by_chat_completions(self) -> None:
        request = accepted({"input": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "a cat"}]})
        assert parameters(request)["messages"] == [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": DATA_URL}},
                ],
            },
            {"role": "assistant", "content": "a cat"},
        ]
        assert request.on("chat").upstream_request(max_output_tokens=1).image_bytes == len(IMAGE) + len(DATA_URL)

    def test_their_length_is_not_taken_for_tokens(self) -> None:
        """A token of text is about four bytes; an image is some hundreds of tokens, however long its data URL is."""
        content = [{"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}]
        request = accepted({"input": [{"role": "user", "content": content}]})
        wires: tuple[Wire, ...] = ("chat", "responses")
        for wire in wires:
            assert request.on(wire).upstream_request(max_output_tokens=1).estimated_input_tokens() < 100

    @pytest.mark.parametrize(
        "url",
        [
            "https://x/",
            "https://x",
            "https://x?a=b@c",
            "https://caf\u00e9.example.com:8443/\u00e9.png#x",
            "https://[::1]/a.png",
            "https://x/" + "a" * (MAX_URL_LENGTH - 10),
            DATA_URL,
            "data:image/jpeg;base64,/9j/4AAQ",
            "data:image/gif;base64,R0lG",
            "data:image/webp;base64," + "A" * 200_000 + "==",
        ],
        ids=lambda url: url[:40],
    )
    def test_an_address(self, url: str) -> None:
        request = accepted({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]})
        (message,) = parameters(request)["messages"]
        assert message["content"][0]["image_url"]["url"] == url

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "http://x/a.png",
            "HTTPS://x/a.png",
            "https://",
            "https:///a.png",
            "https://user:secret@x/a.png",
            "https://user@x",
            "https://x/a b.png",
            "https://x/a.png\n",
            "https:\\\\x",
            "ftp://x/a.png",
            "file:///etc/passwd",
            "a.png",
            "data:image/svg+xml;base64,AAAA",
            "data:text/html;base64,AAAA",
            "data:image/png,AAAA",
            "data:image/png;base64,",
            "data:image/png;base64,A-_A",
            "data:image/png;base64,AAA\n",
            "data:image/png;base64,A===",
            " " + DATA_URL,
        ],
    )
    def test_what_is_no_address_of_an_image(self, url: str) -> None:
        parts = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": url}]
        messages = [{"role": "user", "content": "x"}, {"role": "user", "content": parts}]
        expected = {
            "input[1].content[1].image_url": "must be an https:// address, or a data URL of a png, jpeg, gif or webp "
            "image in base64, such as data:image/png;base64,\u2026"
        }
        assert errors({"input": messages}) == errors({"input": messages, "instructions": "x" * LONG}) == expected

    def test_too_long_an_address(self) -> None:
        content = [{"type": "input_image", "image_url": "https://x/" + "a" * (MAX_URL_LENGTH - 9)}]
        assert errors({"input": [{"role": "user", "content": content}]}) == {
            "input[0].content[0].image_url": "must have at most 8192 characters, or be a data URL"
        }

    @pytest.mark.parametrize("role", ["system", "developer", "assistant"])
    def test_only_a_user_sends_parts(self, role: str) -> None:
        assert errors({"input": [{"role": role, "content": PARTS}]}) == {
            "input[0].content": "must be a string; only a message of the user may be a list"
        }

    def test_the_number_of_parts_is_bounded(self) -> None:
        messages = [{"role": "user", "content": [PARTS[0]] * MAX_PARTS}]
        assert len(parameters(accepted({"input": messages}))["messages"][0]["content"]) == MAX_PARTS
        messages[0]["content"] = [PARTS[0]] * (MAX_PARTS + 1)
        for document in ({"input": messages}, {"input": messages, "instructions": "x" * LONG}):
            assert errors(document) == {"input[0].content": "must have at most 64 parts"}

    @pytest.mark.parametrize(
        ("part", "field", "message"),
        [
            ({}, "[0].type", "must be 'input_text' or 'input_image'"),
            ({"type": "image_url"}, "[0].type", "must be 'input_text' or 'input_image'"),
            ({"type": 1}, "[0].type", "must be 'input_text' or 'input_image'"),
            (1, "[0]", "must be a JSON object"),
            ({"type": "input_text"}, "[0].text", "is required"),
            ({"type": "input_text", "text": None}, "[0].text", "must be a string"),
            ({"type": "input_text", "text": "x", "input_text": 1}, "[0].input_text", UNKNOWN),
            ({"type": "input_image"}, "[0].image_url", "is required"),
            ({"type": "input_image", "image_url": {"url": IMAGE}}, "[0].image_url", "must be a string"),
            ({"type": "input_image", "image_url": IMAGE, "detail": 1}, "[0].detail", "must be 'auto', 'low' or 'high'"),
            ({"type": "input_image", "file_id": "f"}, "[0].image_url", "is required"),
        ],
    )
    def test_a_wrong_part(self, part: Any, field: str, message: str) -> None:
        found = errors({"input": [{"role": "user", "content": [part]}]})
        assert found[f"input[0].content{field}"] == message

    @pytest.mark.parametrize("wrong", [1, {}, {"type": "input_text", "text": "x", "a": 1}])
    def test_a_wrong_part_of_a_long_body(self, wrong: Any) -> None:
        messages = [{"role": "user", "content": "x"}, {"role": "user", "content": [PARTS[0], wrong]}]
        assert rejected(padded({"input": messages})) == INVALID_REQUEST.with_errors(
            FieldError(
                "input[1].content[1]",
                'must be {"type": "input_text", "text": "\u2026"} or {"type": "input_image", "image_url": "\u2026"}',
            )
        )

    def test_names_that_are_like_those_of_kinds(self) -> None:
        assert errors({"input": [{"role": "user", "content": "x", "(text)": 1}]}) == {"input[0].(text)": UNKNOWN}
        assert errors({"input": [{"role": "user", "content": "x", "input_text": 1}]}) == {
            "input[0].input_text": UNKNOWN
        }


@pytest.mark.parametrize("summary", ["auto", "concise", "detailed"])
def test_a_summary_of_the_reasoning(summary: str) -> None:
    request = accepted({"input": "x", "reasoning_summary": summary})
    assert "reasoning" not in json.dumps(parameters(request)), "chat completions have no parameter for it"
    thought = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"x"}}]}\n\n'
    assert request.on("chat").decoder().feed(thought) == [Reasoning(b'"x"')]
    assert accepted({"input": "x"}).on("chat").decoder().feed(thought) == []


def test_no_such_summary() -> None:
    assert errors({"input": "x", "reasoning_summary": "none"}) == {
        "reasoning_summary": "must be 'auto', 'concise' or 'detailed'"
    }


def test_a_document_shows_the_reasoning_that_was_asked_for() -> None:
    for document in ({"input": "x", "stream": False}, {"input": "x", "stream": False, "reasoning_summary": "auto"}):
        encoder = accepted(document).encoder(None)
        shown = json.loads(encoder.done(Done("stop", None, None, None)) or b"")
        assert ("reasoning" in shown) == ("reasoning_summary" in document)


def test_a_request_is_immutable() -> None:
    with pytest.raises(ValidationError):
        accepted({"input": "x"}).stream = False  # type: ignore[misc]


class TestDecoderAndEncoder:
    @pytest.mark.parametrize("streamed", [True, False])
    def test_the_answer_is_always_decoded_from_a_stream(self, streamed: bool) -> None:
        request = accepted({"input": "x", "stream": streamed})
        first, second = request.on("chat").decoder(), request.on("chat").decoder()
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
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]", "must be a JSON object"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content", "must be a string or a list of parts"),
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
        assert (
            accepted(document).on("chat").upstream_request(max_output_tokens=1).parameters["messages"]
            == document["input"]
        )
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
            {"input": [{"role": "user", "content": {"a": 1}}]},
            {"input": [{"role": "user", "content": []}]},
            {"input": [{"role": "user", "content": [{"type": "text"}]}]},
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": [1]}]}]},
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/"}]}]},
            {"input": [{"role": "system", "content": [{"type": "input_text", "text": "x"}]}]},
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
            {"input": [{"role": "user", "content": [{"type": []}] * 20_000}]},
            {"input": [{"role": "user", "content": [{"type": "input_text"} | {f"f{n}": 1 for n in range(20_000)}]}]},
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
