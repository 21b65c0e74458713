"""Embeddings: what a caller may ask, and the document, which is passed on as it came."""

import json
from typing import Any

import msgspec
import pytest

from relay.problems import INVALID_JSON, INVALID_REQUEST, RATE_LIMITED, UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, FieldError
from relay.streaming.events import Done, Failed
from relay.upstream import sse
from relay.usage import Usage
from relay.wires import embeddings
from relay.wires.chat_completions import DocumentEncoder
from relay.wires.embeddings import EmbeddingDecoder, EmbeddingRequest
from tests.relay.event_streams import split_at


class TestParse:
    def test_all_is_sent_as_it_came(self) -> None:
        body = b'{"input":[[1,2],[3]],"model":"m","encoding_format":"base64","dimensions":256.0}'
        request = embeddings.parse(b"\xef\xbb\xbf" + body)
        assert isinstance(request, EmbeddingRequest)
        assert (request.model, request.response_id) == ("m", None)
        upstream = request.upstream_request(max_output_tokens=5)
        assert msgspec.json.encode(upstream.parameters) == body
        assert (upstream.path, upstream.stream, upstream.operation) == ("/embeddings", False, "embeddings")
        assert not upstream.creates_response
        assert isinstance(request.decoder(), EmbeddingDecoder)
        assert isinstance(request.encoder("text/event-stream"), DocumentEncoder)

    @pytest.mark.parametrize(
        ("body", "errors"),
        [
            (b'{"input":"x"}', [FieldError("model", "is required: name a model of embeddings, one of GET /v1/models")]),
            (b'{"model":"m"}', [FieldError("input", "is required")]),
            (b'{"model":7,"input":"x"}', [FieldError("model", "must be a string and not empty")]),
        ],
        ids=range(3),
    )
    def test_what_is_missing_or_wrong(self, body: bytes, errors: list[FieldError]) -> None:
        assert embeddings.parse(body) == INVALID_REQUEST.with_errors(*errors)

    def test_a_deployment_in_the_path_decides(self) -> None:
        request = embeddings.parse(b'{"input":"x"}', "z")
        assert isinstance(request, EmbeddingRequest)
        assert request.model == "z"

    def test_names_that_a_service_may_take_for_others_are_rejected(self) -> None:
        problem = embeddings.parse(b'{"input":"x","model":"m","MODEL":"y"}')
        assert problem == INVALID_REQUEST.with_errors(FieldError("MODEL", "must be written model, or left out"))

    def test_a_body_that_is_no_object(self) -> None:
        expected = "The body must be one JSON object with model and input in it."
        assert embeddings.parse(b"[]") == INVALID_REQUEST.with_detail(expected)

    @pytest.mark.parametrize("body", [b"", b"{", b'{"input":"\xff"}', b'{"a":' * 100_000])
    def test_a_body_that_is_not_json(self, body: bytes) -> None:
        expected = "Send one JSON object in UTF-8, with model and input in it."
        assert embeddings.parse(body) == INVALID_JSON.with_detail(expected)


def ended(content: bytes) -> Done | Failed:
    decoder = EmbeddingDecoder()
    for chunk in split_at(content, [3, 7]):
        assert decoder.feed(chunk) == []
    (terminal,) = decoder.end()
    assert isinstance(terminal, Done | Failed)
    return terminal


def document(**members: Any) -> bytes:
    embedding = {"object": "embedding", "index": 0, "embedding": [0.1, -2e-05]}
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return json.dumps({"object": "list", "data": [embedding], "model": "e-1", "usage": usage} | members).encode()


class TestDecoder:
    @pytest.fixture(params=[False, True], autouse=True)
    def long(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether the document counts as too long to be parsed."""
        long: bool = request.param
        monkeypatch.setattr(embeddings, "_MAX_PARSED_BYTES", 10 if long else 1000)
        return long

    def test_a_document(self, long: bool) -> None:
        content = document() + b"\n"
        assert ended(content) == Done(None, None if long else "e-1", Usage(7, 0), None, document=content)

    @pytest.mark.parametrize("usage", [None, {"prompt_tokens": -1}, {"total_tokens": 3}])
    def test_usage_that_is_not_there(self, usage: Any) -> None:
        done = ended(document(usage=usage))
        assert isinstance(done, Done)
        assert done.usage in (None, Usage(0, 0))

    @pytest.mark.parametrize("content", [b"<html>no embeddings</html>", b'[{"object":"list"}]', b'{"object":"list",'])
    def test_what_is_no_document(self, content: bytes) -> None:
        failed = ended(content)
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_ERROR
        assert failed.reason.startswith("the model service's answer is not a list of embeddings")

    def test_a_document_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embeddings, "_MAX_DOCUMENT_BYTES", 100)
        decoder = EmbeddingDecoder()
        assert decoder.feed(b"x" * 100) == []
        (failed,) = decoder.feed(b"x")
        assert isinstance(failed, Failed)
        assert (failed.problem.code, failed.problem.errors[0].field) == ("invalid_request", "input")
        assert failed.reason == "the model service's answer is longer than 100 bytes"

    def test_its_properties(self) -> None:
        decoder = EmbeddingDecoder()
        assert (decoder.complete, decoder.deltas) == (False, 0)
        assert (decoder.id, decoder.model, decoder.finish_reason, decoder.usage) == (None, None, None, None)
        assert decoder.cut("broke off") == [Failed(UPSTREAM_INTERRUPTED, "broke off")]
        decoder.feed(document())
        decoder.end()
        assert decoder.usage == Usage(7, 0)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"error": {"code": "rate_limit_exceeded"}}, RATE_LIMITED),
        ({"error": "x"}, UPSTREAM_ERROR),
        ({}, UPSTREAM_ERROR),
        ({"object": 7}, UPSTREAM_ERROR),
        ({"object": "response"}, UPSTREAM_ERROR),
        ({"object": "response", "data": [1]}, UPSTREAM_ERROR),
        ({"object": "list"}, UPSTREAM_ERROR),
        ({"object": "list", "data": None}, UPSTREAM_ERROR),
        ({"object": "list", "data": []}, UPSTREAM_ERROR),
        ({"object": "list", "data": [1], "error": {"code": 429}}, RATE_LIMITED),
        ({"code": 429, "msg": "x"}, RATE_LIMITED),
    ],
    ids=range(11),
)
def test_a_failure_is_no_document(members: dict[str, Any], problem: Any) -> None:
    failed = ended(json.dumps(members).encode())
    assert isinstance(failed, Failed)
    assert failed.problem == problem


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"object": None}, 7),
        ({"model": 5}, 7),
        ({"usage": {"prompt_tokens": 7.0}}, 7),
        ({"usage": {"prompt_tokens": None}}, None),
        ({"usage": {"prompt_tokens": "7"}}, None),
        ({"usage": [7]}, None),
        ({"error": None}, 7),
    ],
    ids=str,
)
def test_members_that_are_not_needed_may_be_anything(members: dict[str, Any], tokens: int | None) -> None:
    content = document(**members)
    done = ended(content)
    assert isinstance(done, Done)
    assert done.document == content
    assert done.usage == (None if tokens is None else Usage(tokens, 0))


def test_a_list_that_is_not_called_one() -> None:
    content = b'{"data": [ {"embedding": [1]} ]}'
    done = ended(content)
    assert isinstance(done, Done)
    assert done.document == content


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"data: ", b": comment\n\ndata: "])
def test_what_stands_before_the_document(before: bytes) -> None:
    done = ended(before + document() + b"\n\ndata: [DONE]\n\n")
    assert isinstance(done, Done)
    assert done.document == document()


@pytest.mark.parametrize("content", [b": comment\n\n", b'data: {"error":{"code":429}}\n\n'])
def test_a_stream_without_a_document(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ended(content)
    assert isinstance(failed, Failed)
    assert failed.problem == (RATE_LIMITED if b"429" in content else UPSTREAM_ERROR)
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 5)
    failed = ended(content.rstrip())
    assert isinstance(failed, Failed)
    assert failed.problem == UPSTREAM_ERROR


def test_a_connection_that_breaks_behind_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = EmbeddingDecoder()
    decoder.feed(document())
    (done,) = decoder.cut("broke off")
    assert isinstance(done, Done)
    monkeypatch.setattr(embeddings, "_MAX_PARSED_BYTES", 10)
    decoder = EmbeddingDecoder()
    decoder.feed(document())  # it is not parsed, and may be cut
    assert decoder.cut("broke off") == [Failed(UPSTREAM_INTERRUPTED, "broke off")]


def test_a_name_too_long_is_cut() -> None:
    done = ended(document(model="m" * 300))
    assert isinstance(done, Done)
    assert done.model == "m" * 256


def test_a_batch_of_the_largest_size_is_passed_on() -> None:
    content = document(data=["A" * 16384] * 2048)
    done = ended(content)
    assert isinstance(done, Done)
    assert (done.document, done.usage) == (content, Usage(7, 0))
