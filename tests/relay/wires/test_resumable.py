"""`/stream/{id}`: where a request is to go on, what is wrong with it, and what is asked of the model service."""

import json
from typing import Any

import pytest

from relay.problems import UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, FieldError, Problem
from relay.settings import BackendSettings, Settings
from relay.streaming.events import Continued, Done, Failed, Position, ResumableReasoning, ResumableText
from relay.upstream.request import Accounts
from relay.wires.resumable import ResumableRequest, Resumption, parse_resumption, parse_stop, stopped
from relay.wires.resumable_encoders import (
    ResumableNDJSONEncoder,
    ResumablePlainTextEncoder,
    ResumableSSEEncoder,
    resumable_encoder_for,
)
from relay.wires.resumable_text import ResumableTextDecoder
from relay.wires.stream import StreamRequest
from tests.relay.wires.test_responses_decoders import COMPLETED, CREATED, DELTA, event, response

NDJSON = "application/x-ndjson"


def parsed(place: str, query: list[tuple[str, str]] | None = None, **headers: str) -> Resumption | Problem:
    return parse_resumption(place, query or [], {name.replace("_", "-"): value for name, value in headers.items()})


class TestWhereToGoOn:
    @pytest.mark.parametrize(
        ("place", "query", "headers", "after"),
        [
            ("resp_1", [], {}, -1),
            ("resp_1.7", [], {}, 7),
            ("resp_1.7", [("after", "8")], {}, 8),
            ("resp_1.7", [("after", "8")], {"last_event_id": "resp_1.9"}, 9),
            ("resp_1.7", [], {"last_event_id": "resp_1.0"}, 0),
            ("resp_1", [("after", "0"), ("code", "a-key")], {"last_event_id": ""}, 0),
        ],
    )
    def test_the_latest_that_the_caller_can_know(
        self, place: str, query: list[tuple[str, str]], headers: dict[str, str], after: int
    ) -> None:
        assert parsed(place, query, **headers) == Resumption("resp_1", after)

    def test_plain_text_by_bytes(self) -> None:
        found = parsed("resp_1.5", [("after_bytes", "100")], accept="text/plain")
        assert found == Resumption("resp_1", -1, 100, "text/plain")

    @pytest.mark.parametrize(
        ("place", "query", "headers", "field"),
        [
            ("", [], {}, "response_id"),
            ("resp 1", [], {}, "response_id"),
            ("resp_1.", [], {}, "response_id"),
            ("resp_1.-1", [], {}, "response_id"),
            ("resp_1.1.1", [], {}, "response_id"),
            ("x" * 257, [], {}, "response_id"),
            ("resp_1." + "1" * 19, [], {}, "response_id"),
            ("resp_1", [("after", "")], {}, "after"),
            ("resp_1", [("after", "x")], {}, "after"),
            ("resp_1", [("after_bytes", "-1")], {"accept": "text/plain"}, "after_bytes"),
            ("resp_1", [("after_bytes", "1")], {}, "after_bytes"),
            ("resp_1", [("after_bytes", "1")], {"accept": NDJSON}, "after_bytes"),
            ("resp_1", [("starting_after", "1")], {}, "starting_after"),
            ("resp_1", [("a b", "1")], {}, "query"),
            ("resp_1", [], {"last_event_id": "resp_2.1"}, "Last-Event-ID"),
            ("resp_1", [], {"last_event_id": "resp_1"}, "Last-Event-ID"),
            ("resp_1", [], {"last_event_id": "7"}, "Last-Event-ID"),
        ],
    )
    def test_errors_name_the_field(
        self, place: str, query: list[tuple[str, str]], headers: dict[str, str], field: str
    ) -> None:
        found = parsed(place, query, **headers)
        assert isinstance(found, Problem)
        assert [error.field for error in found.errors] == [field]

    def test_a_hostile_query_gets_a_short_answer(self) -> None:
        found = parsed("resp_1", [(f"x{number}", "1") for number in range(10_000)])
        assert isinstance(found, Problem)
        assert len(found.errors) == 16

    def test_stop(self) -> None:
        assert (parse_stop("resp_1"), parse_stop("resp_1.7")) == ("resp_1", "resp_1")
        assert isinstance(parse_stop("resp/1"), Problem)
        assert json.loads(stopped("resp_1")) == {"id": "resp_1", "deleted": True}


class TestUpstreamRequests:
    def test_a_new_response(self) -> None:
        request = ResumableRequest(StreamRequest(input="x", resumable=True, model="m"), "me")
        sent = request.on("responses").upstream_request(max_output_tokens=50)
        assert sent.parameters == {
            "input": "x",
            "stream": True,
            "store": True,
            "background": True,
            "metadata": {"relay_caller": "me"},
            "max_output_tokens": 50,
        }
        assert (sent.path, sent.creates_response, request.model, request.response_id) == ("/responses", True, "m", None)
        assert request.wires == ("responses",)

    @pytest.mark.parametrize(
        ("after", "query"),
        [(-1, "?stream=true"), (0, "?stream=true&starting_after=0"), (7, "?stream=true&starting_after=7")],
    )
    def test_an_earlier_one(self, after: int, query: str) -> None:
        request = Resumption("resp_1", after).stream(reasoning=False)
        sent = request.upstream_request(max_output_tokens=50)
        assert (sent.method, sent.path, sent.parameters, sent.stream) == (
            "GET",
            f"/responses/resp_1{query}",
            None,
            True,
        )
        assert request.model is Accounts.EVERY

    def test_what_the_settings_must_have(self) -> None:
        def backend(model: str, wire: Any) -> BackendSettings:
            return BackendSettings(f"{model}-{wire}", "http://x/v1/", model, model, 1, wire)

        backends = (backend("a", "chat"), backend("b", "responses"), backend("b", "chat"))
        on, off = Settings(backends, resumable_streams=True), Settings(backends)
        request = ResumableRequest(StreamRequest(input="x", resumable=True), "me")

        def field(problem: Problem | None) -> tuple[str, str] | None:
            return None if problem is None else (problem.errors[0].field, problem.errors[0].message.split(";")[0])

        assert field(request.check("b", on)) is None
        assert field(request.check("unknown", on)) is None, "a problem of its own"
        assert field(request.check("b", off)) == (
            "resumable",
            "is not allowed here: the app setting RESUMABLE_STREAMS is off",
        )
        for model in ("a", None):
            found = field(request.check(model, on))
            assert found is not None
            assert "Responses API" in found[1]
        document = ResumableRequest(StreamRequest(input="x", resumable=True, stream=False), "me")
        assert field(document.check("b", on)) == (
            "resumable",
            'needs a stream: leave out "stream": false, or this field',
        )


DONE = Done("stop", "m", None, "resp_1")
FAILED = Failed(UPSTREAM_INTERRUPTED, "?")


class TestEncoders:
    def test_sse(self) -> None:
        encoder = ResumableSSEEncoder()
        assert not encoder.can_continue
        assert encoder.text(Position(b'""', b"resp_1.0")) == b"retry: 1000\nid: resp_1.0\n\n"
        assert encoder.can_continue
        assert encoder.text(Position(b'""', b"resp_1.1")) == b""
        assert encoder.text(ResumableText(b'"a"', b"resp_1.2")) == b'id: resp_1.2\ndata: {"text":"a"}\n\n'
        thought = encoder.text(ResumableReasoning(b'"b"', b"resp_1.3"))
        assert thought == b'id: resp_1.3\nevent: reasoning\ndata: {"text":"b"}\n\n'
        continued = encoder.done(Continued(None, None, None, "resp_1"))
        assert continued == b'id: resp_1.3\nevent: continue\ndata: {"id":"resp_1","after":3}\n\n'
        assert encoder.done(DONE).startswith(b'id: resp_1.3\nevent: done\ndata: {"finish_reason":"stop"')
        assert encoder.failed(FAILED, "r").startswith(b"id: resp_1.3\nevent: error\n")

    def test_sse_from_an_event_on(self) -> None:
        encoder = ResumableSSEEncoder(b"resp_1.4")
        assert encoder.text(Position(b'""', b"resp_1.5")) == b""
        first = encoder.text(ResumableText(b'"a"', b"resp_1.6"))
        assert first == b'retry: 1000\nid: resp_1.6\ndata: {"text":"a"}\n\n'
        encoder.restart()
        assert encoder.failed(FAILED, "r").startswith(b"id: resp_1.4\nevent: error\n")

    def test_a_failure_before_there_is_an_id(self) -> None:
        assert ResumableSSEEncoder().failed(FAILED, "r").startswith(b"retry: 1000\nevent: error\n")
        assert "id" not in json.loads(ResumableNDJSONEncoder(NDJSON).failed(FAILED, "r"))

    def test_another_response_after_a_restart(self) -> None:
        encoder = ResumableSSEEncoder()
        encoder.text(Position(b'""', b"resp_1.0"))
        encoder.restart()
        assert encoder.text(Position(b'""', b"resp_2.0")) == b"id: resp_2.0\n\n"

    def test_ndjson(self) -> None:
        encoder = ResumableNDJSONEncoder(NDJSON)
        assert encoder.text(Position(b'""', b"resp_1.0")) == b""
        assert encoder.can_continue
        text = encoder.text(ResumableText(b'"a"', b"resp_1.2"))
        assert text == b'{"type":"text","text":"a","id":"resp_1.2"}\n'
        continued = encoder.done(Continued(None, None, None, "resp_1"))
        assert json.loads(continued) == {"type": "continue", "after": 2, "id": "resp_1.2"}
        assert json.loads(encoder.done(DONE))["id"] == "resp_1.2"
        assert json.loads(encoder.failed(FAILED, "r"))["id"] == "resp_1.2"
        encoder.restart()
        assert not encoder.can_continue

    def test_plain_text(self) -> None:
        encoder = ResumablePlainTextEncoder(skipped=3)
        assert encoder.text(Position(b'""', b"resp_1.0")) == b""
        assert [encoder.text(ResumableText(it, b"resp_1.1")) for it in (b'"ab"', b'"cd"', b'"ef"')] == [
            b"",
            b"d",
            b"ef",
        ]
        assert encoder.done(Continued(None, None, None, "resp_1")) is None
        assert encoder.done(DONE) == b""

    def test_by_accept(self) -> None:
        kinds = {None: ResumableSSEEncoder, NDJSON: ResumableNDJSONEncoder, "text/plain": ResumablePlainTextEncoder}
        for accept, kind in kinds.items():
            assert type(resumable_encoder_for(accept)) is kind


class TestDecoder:
    def test_events_without_numbers_can_not_be_resumed(self) -> None:
        decoder = ResumableTextDecoder(reasoning=False)
        unnumbered = event("response.created", 0, response=response("queued")).replace(b'"sequence_number":0,', b"")
        (failed,) = decoder.feed(unnumbered)
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_ERROR
        assert "no sequence number" in failed.reason

    @pytest.mark.parametrize("response_id", ["resp 1", "a/b", "a\nb", "resp.1"])
    def test_an_id_that_can_be_no_part_of_a_path(self, response_id: str) -> None:
        created = event("response.created", 0, response=response("queued") | {"id": response_id})
        (failed,) = ResumableTextDecoder(reasoning=False).feed(created)
        assert isinstance(failed, Failed)

    def test_a_document_is_none(self) -> None:
        decoder = ResumableTextDecoder(reasoning=False)
        decoder.feed(json.dumps(response("completed")).encode())
        *_, failed = decoder.end()
        assert isinstance(failed, Failed)
        assert not decoder.empty

    def test_where_it_is(self) -> None:
        decoder = ResumableTextDecoder(reasoning=False)
        assert (decoder.event_id, decoder.has_output, decoder.empty) == (b"", False, True)
        assert decoder.feed(CREATED) == [Position(b'""', b"resp_1.0")]
        assert (decoder.event_id, decoder.has_output, decoder.empty) == (b"resp_1.0", False, False)
        assert decoder.feed(DELTA) == [ResumableText(b'"a"', b"resp_1.4")]
        assert decoder.has_output
        position, done = decoder.feed(COMPLETED)
        assert (position, isinstance(done, Done)) == (Position(b'""', b"resp_1.5"), True)

    def test_keep_alives_are_none(self) -> None:
        decoder = ResumableTextDecoder(reasoning=False, response_id="resp_1", after=3)
        assert decoder.feed(b'data: {"type":"keepalive"}\n\n') == []
        assert decoder.event_id == b"resp_1.3"

    def test_one_that_was_cancelled(self) -> None:
        cancelled = event("response.cancelled", 5, response=response("cancelled"))
        decoder = ResumableTextDecoder(reasoning=False, response_id="resp_1", after=3)
        _, done = decoder.feed(cancelled)
        assert isinstance(done, Done)
        assert done.finish_reason == "cancelled"


def test_a_field_error_is_a_sentence() -> None:
    found = parsed("resp_1", [("after", "x")])
    assert isinstance(found, Problem)
    assert found.errors == (FieldError("after", "must be a whole number, 0 or greater"),)
