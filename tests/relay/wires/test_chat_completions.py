"""OpenAI's API: what a caller may ask, as far as this app decides it, and what is sent back."""

from typing import Any

import msgspec
import pytest

from relay.problems import INVALID_JSON, INVALID_REQUEST, RATE_LIMITED, FieldError, Problem
from relay.streaming.events import Done, Failed, Text, Verbatim
from relay.wires import chat_completions
from relay.wires.chat_completions import ChatCompletionRequest, DocumentEncoder, EventEncoder
from relay.wires.chat_decoders import DocumentDecoder, VerbatimDecoder


def accepted(**members: Any) -> ChatCompletionRequest:
    request = chat_completions.parse(msgspec.json.encode({"messages": [], **members}))
    assert isinstance(request, ChatCompletionRequest), request
    return request


def rejected(body: bytes) -> Problem:
    problem = chat_completions.parse(body)
    assert isinstance(problem, Problem), problem
    return problem


class TestParse:
    def test_a_minimal_request(self) -> None:
        request = accepted()
        assert (request.model, request.stream, request.stream_options) == (None, False, {})
        assert (request.output_limits, request.choices) == ({}, 1)

    def test_all_members_that_are_read(self) -> None:
        request = accepted(
            model="m", stream=True, stream_options={"a": 1}, n=3, max_tokens=5, max_completion_tokens=6, user="u"
        )
        assert (request.model, request.stream, request.stream_options) == ("m", True, {"a": 1})
        assert (request.output_limits, request.choices) == ({"max_completion_tokens": 6, "max_tokens": 5}, 3)
        assert bytes(request.members["user"]) == b'"u"'

    def test_a_byte_order_mark_is_ignored(self) -> None:
        assert isinstance(chat_completions.parse(b'\xef\xbb\xbf{"messages":[]}'), ChatCompletionRequest)

    @pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', rb'["\ud83d"]'])
    def test_a_body_that_is_no_object(self, body: bytes) -> None:
        expected = INVALID_REQUEST.with_detail("The body must be one JSON object with messages in it.")
        assert rejected(body) == expected

    @pytest.mark.parametrize("body", [b"", b"{", b'{"messages":"\xff"}', b'{"messages":[]}x', b'{"a":' * 100_000])
    def test_a_body_that_is_not_json(self, body: bytes) -> None:
        expected = INVALID_JSON.with_detail('Send one JSON object in UTF-8, with "model" and "messages".')
        assert rejected(body) == expected

    def test_all_wrong_members_are_named_at_once(self) -> None:
        body = b'{"model":"","stream":1,"stream_options":[],"max_completion_tokens":0,"max_tokens":"1","n":1.5}'
        assert rejected(body) == INVALID_REQUEST.with_errors(
            FieldError("model", "must be a string and not empty"),
            FieldError("stream", "must be true or false"),
            FieldError("stream_options", "must be a JSON object"),
            FieldError("max_completion_tokens", "must be a whole number greater than 0"),
            FieldError("max_tokens", "must be a whole number greater than 0"),
            FieldError("n", "must be a whole number greater than 0"),
            FieldError("messages", "is required"),
        )

    def test_a_body_for_the_other_api_is_told_where_it_belongs(self) -> None:
        expected = FieldError("messages", "is required; a body with input is for POST /v1/responses")
        assert rejected(b'{"model":"m","input":"x"}') == INVALID_REQUEST.with_errors(expected)

    @pytest.mark.parametrize(
        ("name", "like"),
        [
            ("Model", "model"),
            ("MAX_TOKENS", "max_tokens"),
            ("max_completion_to\u212aens", "max_completion_tokens"),
            ("\u017ftream", "stream"),
            ("Stream_Options", "stream_options"),
            ("N", "n"),
            ("Messages", "messages"),
            ("maxTokens", "max_tokens"),
        ],
    )
    def test_a_name_that_looks_like_one_that_is_read_is_rejected(self, name: str, like: str) -> None:
        expected = INVALID_REQUEST.with_errors(FieldError(name, f"must be written {like}, or left out"))
        for members in ({}, {"model": "m", "max_tokens": 5}):
            assert rejected(msgspec.json.encode({"messages": [], **members, name: 1})) == expected
        escaped = "".join(f"\\u{ord(character):04x}" for character in name).encode()
        assert rejected(b'{"messages":[],"%b":1}' % escaped) == expected

    def test_so_is_one_in_stream_options(self) -> None:
        body = b'{"messages":[],"stream":true,"stream_options":{"Include_Usage":false,"include_usage":true}}'
        assert rejected(body) == INVALID_REQUEST.with_errors(
            FieldError("stream_options.Include_Usage", "must be written include_usage, or left out")
        )

    def test_names_that_are_not_read_may_have_any_case(self) -> None:
        assert list(accepted(Temperature=1, temperature=1, SEED=1).members) == [
            "messages",
            "Temperature",
            "temperature",
            "SEED",
        ]

    def test_an_escaped_name_is_the_same_name(self) -> None:
        request = chat_completions.parse(rb'{"messages":[],"mod\u0065l":"m","\u006dax_tokens":7}')
        assert isinstance(request, ChatCompletionRequest)
        assert (request.model, request.output_limits) == ("m", {"max_tokens": 7})

    def test_of_equal_names_the_last_is_read_and_only_that_is_sent(self) -> None:
        request = chat_completions.parse(
            rb'{"max_tokens":7,"messages":[],"model":"a","stream":true,"mod\u0065l":"b","stream":false,"max_tokens":900}'
        )
        assert isinstance(request, ChatCompletionRequest)
        assert (request.model, request.stream) == ("b", False)
        sent = msgspec.json.encode(request.upstream_request(max_output_tokens=100).parameters)
        assert sent == b'{"max_tokens":100,"messages":[],"model":"b","stream":false}'

    def test_the_number_of_members_has_a_limit(self) -> None:
        members = {f"m{number}": 1 for number in range(255)}
        accepted(**members)
        problem = rejected(msgspec.json.encode({"messages": [], **members, "one_more": 1}))
        assert problem == INVALID_REQUEST.with_detail("The body may have 256 members at most; leave out the others.")

    def test_the_errors_are_few_and_short(self) -> None:
        wrong = {f"model{'_' * number}": 1 for number in range(1, 200)} | {"N" + "_" * 10_000: 1}
        problem = rejected(msgspec.json.encode({**wrong, "messages": []}))
        assert len(problem.errors) == 20
        problem = rejected(msgspec.json.encode({"N" + "_" * 10_000: 1, "messages": []}))
        assert problem.errors[0].field == "N" + "_" * 99

    @pytest.mark.parametrize("given", [b"", b'"model":"another",', b'"model":null,', b'"model":5,'])
    def test_the_deployment_of_the_path_is_the_model(self, given: bytes) -> None:
        request = chat_completions.parse(b'{%b"messages":[]}' % given, deployment="meta/llama")
        assert isinstance(request, ChatCompletionRequest)
        assert request.model == "meta/llama"

    def test_messages_are_left_to_the_model_service(self) -> None:
        assert isinstance(chat_completions.parse(b'{"messages":null}'), ChatCompletionRequest)

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "stream", "model", "stream_options"])
    def test_a_number_of_thousands_of_digits_is_rejected_by_name(self, name: str) -> None:
        problem = rejected(b'{"messages": [], "%b": %b}' % (name.encode(), b"1" * 5000))
        assert problem.status == 400
        assert problem.errors[0].field == name


class TestUpstreamRequest:
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
    def test_the_cap_applies_to_all_choices_together(self, members: dict[str, Any], limits: dict[str, int]) -> None:
        parameters = accepted(**members).upstream_request(max_output_tokens=100).parameters
        assert {name: parameters[name] for name in parameters if name.startswith("max_")} == limits

    @pytest.mark.parametrize("streamed", [False, True])
    def test_members_are_forwarded_as_they_stand(self, streamed: bool) -> None:
        body = b'{"messages":[ 1.50 ],"stream":%b,"n":2.0,"seed":12345678901234567890123,"max_tokens":9e1}' % (
            b"true" if streamed else b"false"
        )
        request = chat_completions.parse(body)
        assert isinstance(request, ChatCompletionRequest)
        upstream = request.upstream_request(max_output_tokens=100)
        assert (upstream.path, upstream.stream, upstream.fields) == ("/chat/completions", streamed, {})
        expected = body.replace(b"9e1", b"50")
        if streamed:
            expected = expected[:-1] + b',"stream_options":{"include_usage":true}}'
        assert msgspec.json.encode(upstream.parameters) == expected

    def test_usage_is_always_requested_of_a_stream(self) -> None:
        request = accepted(stream=True, stream_options={"include_usage": False, "include_obfuscation": False})
        assert request.upstream_request(max_output_tokens=1).parameters["stream_options"] == {
            "include_usage": True,
            "include_obfuscation": False,
        }

    def test_without_a_stream_the_callers_stream_options_are_forwarded(self) -> None:
        parameters = accepted(stream_options={"a": 1}).upstream_request(max_output_tokens=1).parameters
        assert bytes(parameters["stream_options"]) == b'{"a":1}'


class TestDecoderAndEncoder:
    def test_of_a_stream(self) -> None:
        request = accepted(stream=True)
        assert isinstance(request.decoder(), VerbatimDecoder)
        assert isinstance(request.encoder("text/plain"), EventEncoder)

    def test_of_a_document(self) -> None:
        request = accepted()
        assert isinstance(request.decoder(), DocumentDecoder)
        assert isinstance(request.encoder("text/event-stream"), DocumentEncoder)

    @pytest.mark.parametrize(
        ("options", "sent"), [({"include_usage": True}, True), ({"include_usage": 1}, False), ({}, False)]
    )
    def test_usage_is_sent_to_a_caller_who_asked_for_it(self, options: dict[str, Any], sent: bool) -> None:
        encoder = accepted(stream=True, stream_options=options).encoder(None)
        assert encoder.text(Verbatim(b"", [b"{}"], usage=True)) == (b"data: {}\n\n" if sent else b"")

    def test_an_answer_is_complete_when_each_of_its_choices_is(self) -> None:
        finish = b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}\n\n'
        decoder = accepted(stream=True, n=2).decoder()
        decoder.feed(finish % 0)
        assert not decoder.complete
        decoder.feed(finish % 1)
        assert decoder.complete
        decoder = accepted(n=2).decoder()
        decoder.feed(finish % 1)
        assert isinstance(decoder.end()[-1], Failed)


class TestEventEncoder:
    def test_properties(self) -> None:
        encoder = EventEncoder(include_usage=False)
        assert (encoder.media_type, encoder.whole) == ("text/event-stream; charset=utf-8", False)
        assert encoder.breaks_off, "a client that skips the error would take a clean end for a complete answer"
        assert encoder.ping == b": ping\n\n"

    @pytest.mark.parametrize("include_usage", [False, True])
    def test_events_are_sent_as_they_came(self, include_usage: bool) -> None:
        encoder = EventEncoder(include_usage=include_usage)
        assert encoder.text(Verbatim(b"", [b'{"a": 1}'])) == b'data: {"a": 1}\n\n'
        assert encoder.text(Verbatim(b"", [b"1", b"{\n}", b"3"])) == b"data: 1\n\ndata: {\ndata: }\n\ndata: 3\n\n"
        assert encoder.text(Text(b'"text"')) == b""

    def test_the_end(self) -> None:
        assert EventEncoder(include_usage=True).done(Done("stop", None, None, None)) == b"data: [DONE]\n\n"

    def test_a_failure(self) -> None:
        encoder = EventEncoder(include_usage=True)
        assert encoder.failed(Failed(RATE_LIMITED, "for the log only"), "request-1") == (
            b"data: %b\n\n" % RATE_LIMITED.openai_document("request-1")
        )


def test_the_document_encoder_sends_the_document() -> None:
    encoder = DocumentEncoder()
    assert (encoder.media_type, encoder.whole, encoder.ping) == ("application/json", True, b"")
    assert not encoder.breaks_off
    assert encoder.text(Text(b'"x"')) == b""
    assert encoder.done(Done("stop", None, None, None, document=b'{ "id": 1 }')) == b'{ "id": 1 }'
    assert encoder.done(Done("stop", None, None, None)) == b""
    assert encoder.failed(Failed(RATE_LIMITED, "x"), "request-1") is None
