"""The Responses API: what a caller may ask, as far as this app decides it, and the upstream request made of it."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.problems import INVALID_JSON, INVALID_REQUEST, RESPONSE_NOT_FOUND, FieldError, Problem
from relay.upstream.request import Accounts, UpstreamRequest
from relay.wires import responses
from relay.wires.chat_completions import DocumentEncoder
from relay.wires.responses import NewResponse, Query, StoredResponse
from relay.wires.responses_decoders import DocumentDecoder, EventDecoder, EventEncoder

ID = "resp_67cb61fa3a448190bcf2c42d96f0d1a8"


def accepted(**members: Any) -> NewResponse:
    request = responses.parse(msgspec.json.encode({"input": "x", **members}))
    assert isinstance(request, NewResponse), request
    return request


def rejected(body: bytes) -> Problem:
    problem = responses.parse(body)
    assert isinstance(problem, Problem), problem
    return problem


class TestParse:
    def test_a_minimal_request(self) -> None:
        request = accepted()
        assert (request.model, request.stream, request.background) == (None, False, False)
        assert (request.max_output_tokens, request.response_id, request.action) == (None, None, None)

    def test_all_members_that_are_read(self) -> None:
        request = accepted(
            model="m", stream=True, background=True, max_output_tokens=20, previous_response_id=ID, store=True
        )
        assert (request.model, request.stream, request.background) == ("m", True, True)
        assert (request.max_output_tokens, request.response_id) == (20, ID)
        assert bytes(request.members["store"]) == b"true"

    @pytest.mark.parametrize("body", [b"{}", b'{"prompt":{"id":"p"}}', b'{"previous_response_id":"resp_1"}'])
    def test_what_a_response_is_made_of_is_left_to_the_model_service(self, body: bytes) -> None:
        assert isinstance(responses.parse(body), NewResponse)

    def test_a_byte_order_mark_is_ignored(self) -> None:
        assert isinstance(responses.parse(b'\xef\xbb\xbf{"input":[]}'), NewResponse)

    @pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', rb'["\ud83d"]'])
    def test_a_body_that_is_no_object(self, body: bytes) -> None:
        assert rejected(body) == INVALID_REQUEST.with_detail("The body must be one JSON object with an input in it.")

    @pytest.mark.parametrize("body", [b"", b"{", b'{"input":"\xff"}', b'{"input":[]}x', b'{"a":' * 100_000])
    def test_a_body_that_is_not_json(self, body: bytes) -> None:
        expected = INVALID_JSON.with_detail("Send one JSON object in UTF-8, with an input in it.")
        assert rejected(body) == expected

    def test_all_wrong_members_are_named_at_once(self) -> None:
        body = b'{"model":"","stream":1,"background":"x","max_output_tokens":0,"previous_response_id":7}'
        assert rejected(body) == INVALID_REQUEST.with_errors(
            FieldError("model", "must be a string and not empty"),
            FieldError("stream", "must be true or false"),
            FieldError("background", "must be true or false"),
            FieldError("max_output_tokens", "must be a whole number greater than 0"),
            FieldError("previous_response_id", "must be a string and not empty"),
        )

    def test_names_that_a_service_may_take_for_others_are_rejected(self) -> None:
        problem = rejected(b'{"input":"x","MAX_OUTPUT_TOKENS":99,"Model":"y"}')
        assert [error.field for error in problem.errors] == ["MAX_OUTPUT_TOKENS", "Model"]

    def test_the_members_are_bounded(self) -> None:
        assert "256" in rejected(b'{"input":"x",%b}' % b",".join(b'"m%d":1' % number for number in range(300))).detail

    def test_a_deployment_in_the_path_decides(self) -> None:
        for parse in (responses.parse, responses.parse_compact):
            request = parse(b'{"input":"x","model":"y"}', "z")
            assert isinstance(request, NewResponse)
            assert request.model == "z"

    def test_null_counts_as_absent(self) -> None:
        request = accepted(model=None, stream=None, background=None, max_output_tokens=None, previous_response_id=None)
        assert (request.model, request.stream, request.max_output_tokens, request.response_id) == (
            None,
            False,
            None,
            None,
        )


class TestUpstreamRequest:
    @pytest.mark.parametrize(
        ("given", "cap", "sent"),
        [(None, 100, 100), (50, 100, 50), (200, 100, 100), (None, 5, 16), (100, 5, 16), (10, 5, 10), (10, 100, 10)],
    )
    def test_the_output_limit(self, given: int | None, cap: int, sent: int) -> None:
        members = {} if given is None else {"max_output_tokens": given}
        request = accepted(**members).upstream_request(max_output_tokens=cap)
        assert request.parameters is not None
        assert request.parameters["max_output_tokens"] == sent

    def test_all_else_is_sent_as_it_came(self) -> None:
        body = b'{"input":[{"x":1.0}],"tools":[ ],"metadata":{"a":"b"},"include":["x"],"reasoning":{"effort":"low"}}'
        request = responses.parse(body)
        assert isinstance(request, NewResponse)
        sent = request.upstream_request(max_output_tokens=100).parameters
        assert msgspec.json.encode(sent) == body[:-1] + b',"max_output_tokens":100}'

    @pytest.mark.parametrize("stream", [True, False])
    def test_its_kind(self, stream: bool) -> None:
        request = accepted(stream=stream).upstream_request(max_output_tokens=100)
        assert (request.path, request.stream, request.method) == ("/responses", stream, "POST")
        assert (request.operation, request.creates_response, request.not_found) == ("chat", True, None)

    def test_a_compact_request_has_no_output_limit(self) -> None:
        body = b'{"input":"x","model":"m","stream":true,"max_output_tokens":0,"previous_response_id":"resp_1"}'
        request = responses.parse_compact(body)
        assert isinstance(request, NewResponse)
        assert (request.model, request.response_id, request.stream) == ("m", "resp_1", False)
        upstream = request.upstream_request(max_output_tokens=100)
        assert msgspec.json.encode(upstream.parameters) == body
        assert (upstream.path, upstream.stream) == ("/responses/compact", False)
        assert (upstream.operation, upstream.creates_response) == ("compact_response", False)

    @pytest.mark.parametrize(("stream", "background"), [(False, False), (True, False), (True, True)])
    def test_the_decoder_and_the_encoder(self, stream: bool, background: bool) -> None:
        request = accepted(stream=stream, background=background)
        created = b'data: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
        decoder, encoder = request.decoder(), request.encoder("text/plain")
        if stream:
            assert isinstance(decoder, EventDecoder)
            assert isinstance(encoder, EventEncoder)
            assert bool(decoder.feed(created)) is background
        else:
            assert isinstance(decoder, DocumentDecoder)
            assert isinstance(encoder, DocumentEncoder)


PARSERS: dict[Callable[[str, Query], StoredResponse | Problem], tuple[str, str, str]] = {
    responses.retrieve: ("GET", f"/responses/{ID}", "fetch_response"),
    responses.delete: ("DELETE", f"/responses/{ID}", "delete_response"),
    responses.cancel: ("POST", f"/responses/{ID}/cancel", "cancel_response"),
    responses.input_items: ("GET", f"/responses/{ID}/input_items", "list_input_items"),
}


class TestStoredResponses:
    @pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
    def test_the_upstream_request(self, parse: Callable[[str, Query], StoredResponse | Problem]) -> None:
        method, path, operation = PARSERS[parse]
        request = parse(ID, [("code", "key"), ("clientId", "x"), ("api-version", "v1"), ("subscription-key", "k")])
        assert isinstance(request, StoredResponse)
        assert (request.model, request.response_id, request.stream) == (Accounts.EVERY, ID, False)
        assert request.upstream_request(max_output_tokens=5) == UpstreamRequest(
            path,
            None,
            stream=False,
            method=method,  # type: ignore[arg-type]
            not_found=RESPONSE_NOT_FOUND,
            operation=operation,
            creates_response=True,
            counts_usage=False,
        )
        assert request.decoder().id == ID
        assert isinstance(request.encoder(None), DocumentEncoder)

    @pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
    @pytest.mark.parametrize(
        "response_id", ["", "..", ".", "a/b", "a%2Fb", "a?b", "a#b", "a b", "ä", "a\n", "a" * 257, "a\x00"]
    )
    def test_an_id_that_could_lead_elsewhere(
        self, parse: Callable[[str, Query], StoredResponse | Problem], response_id: str
    ) -> None:
        problem = parse(response_id, [])
        assert isinstance(problem, Problem)
        assert (problem.status, [error.field for error in problem.errors]) == (400, ["response_id"])

    @given(st.text(max_size=20))
    def test_any_id_is_one_segment_of_the_path(self, response_id: str) -> None:
        request = responses.retrieve(response_id, [])
        if isinstance(request, StoredResponse):
            assert request.path.split("/") == ["", "responses", response_id]
            assert not set(request.path) & set("?#%.\\")

    def test_ids_of_any_length_up_to_the_limit(self) -> None:
        assert isinstance(responses.retrieve("a" * 256, []), StoredResponse)

    def test_the_query_is_passed_on(self) -> None:
        query = [("include[]", "a.b"), ("include[]", "c&d=e"), ("stream", "false"), ("include_obfuscation", "false")]
        request = responses.retrieve(ID, query)
        assert isinstance(request, StoredResponse)
        expected = "include%5B%5D=a.b&include%5B%5D=c%26d%3De&stream=false&include_obfuscation=false"
        assert request.path == f"/responses/{ID}?{expected}"
        assert (request.stream, request.starting_after) == (False, -1)

    @pytest.mark.parametrize("value", ["true", "True"])
    def test_a_stream(self, value: str) -> None:
        request = responses.retrieve(ID, [("stream", value), ("starting_after", "41")])
        assert isinstance(request, StoredResponse)
        assert request.path == f"/responses/{ID}?stream={value}&starting_after=41"
        assert request.upstream_request(max_output_tokens=5).stream
        decoder, encoder = request.decoder(), request.encoder(None)
        assert isinstance(decoder, EventDecoder)
        assert isinstance(encoder, EventEncoder)
        assert decoder.feed(b'data: {"type":"response.created"}\n\n') != []
        decoder.feed(b'data: {"type":"response.completed","response":{"usage":{"input_tokens":1}}}\n\n')
        assert not request.upstream_request(max_output_tokens=5).counts_usage
        assert encoder._starting_after == 41

    def test_the_pages_of_a_list(self) -> None:
        query = [("after", "item_1"), ("before", "item_2"), ("limit", "5"), ("order", "asc"), ("include", "x")]
        request = responses.input_items(ID, query)
        assert isinstance(request, StoredResponse)
        assert request.path == f"/responses/{ID}/input_items?after=item_1&before=item_2&limit=5&order=asc&include=x"

    @pytest.mark.parametrize(
        ("query", "field", "message"),
        [
            ([("stream", "1")], "stream", "must be true or false"),
            ([("starting_after", "-1")], "starting_after", "whole number"),
            ([("starting_after", "x")], "starting_after", "whole number"),
            ([("starting_after", "1" * 19)], "starting_after", "whole number"),
            ([("starting_afer", "1")], "starting_afer", "include, include[]"),
            ([("limit", "1")], "limit", "is not a parameter of this request"),
            ([("a b", "1")], "query", "is not a parameter of this request"),
            ([("include", "x" * 257)], "include", "256 characters"),
            ([("include", "x")] * 33, "query", "32 parameters"),
        ],
        ids=range(9),
    )
    def test_a_query_that_is_wrong(self, query: list[tuple[str, str]], field: str, message: str) -> None:
        problem = responses.retrieve(ID, query)
        assert isinstance(problem, Problem)
        assert problem.errors[0].field == field
        assert message in problem.errors[0].message

    def test_a_query_where_none_is_known(self) -> None:
        for parse in (responses.delete, responses.cancel):
            problem = parse(ID, [("stream", "true")])
            assert isinstance(problem, Problem)
            assert problem.errors == (FieldError("stream", "is not a parameter of this request; leave it out"),)

    def test_the_limits_themselves_are_allowed(self) -> None:
        assert isinstance(responses.retrieve(ID, [("include", "x" * 256)] * 32), StoredResponse)
        assert isinstance(responses.retrieve(ID, [("starting_after", "1" * 18)]), StoredResponse)
