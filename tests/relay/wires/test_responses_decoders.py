"""What the bytes of a response mean, wherever the reads were split: as events to pass on, as a document."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.problems import (
    CONTENT_FILTER,
    DEADLINE_EXCEEDED,
    INVALID_REQUEST,
    RATE_LIMITED,
    UPSTREAM_ERROR,
    UPSTREAM_INTERRUPTED,
    Problem,
)
from relay.streaming.events import Done, Event, Failed, Text, Verbatim
from relay.usage import Usage
from relay.wires import responses_decoders
from relay.wires.responses_decoders import DocumentDecoder, EventDecoder, EventEncoder
from tests.relay.event_streams import LINE_ENDS, split_at

COUNTS = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 2},
    "output_tokens": 34,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 46,
}
USAGE = Usage(12, 34, 5, 6, 2)


def data(kind: str, number: int, **members: Any) -> bytes:
    """The data of an event, its members in the order in which OpenAI writes them."""
    return json.dumps({"type": kind, "sequence_number": number, **members}, separators=(",", ":")).encode()


def frame(payload: bytes) -> bytes:
    """The event as the model service writes it."""
    return b"event: %b\ndata: %b\n\n" % (json.loads(payload)["type"].encode(), payload)


def event(kind: str, number: int = 0, **members: Any) -> bytes:
    return frame(data(kind, number, **members))


def response(status: str, **members: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "model": "m-1", "status": status, "output": [], **members}


CREATED = event("response.created", 0, response=response("in_progress", usage=None, error=None))
IN_PROGRESS = event("response.in_progress", 1, response=response("in_progress", usage=None, error=None))
ITEM = event("response.output_item.added", 2, item={"type": "message", "content": []})
PART = event("response.content_part.added", 3, part={"type": "output_text", "text": ""})
DELTA = event("response.output_text.delta", 4, delta="a")
COMPLETED = event("response.completed", 5, response=response("completed", usage=COUNTS, error=None))
FAILED = event("response.failed", 5, response=response("failed", error={"code": "server_error", "message": "secret"}))


def decoded(*chunks: bytes, hold: bool = True) -> list[Event]:
    decoder = EventDecoder(hold=hold)
    return [found for chunk in chunks for found in decoder.feed(chunk)]


def passed_on(events: list[Event]) -> bytes:
    """The bytes that a caller gets."""
    return b"".join(b"".join(found.events) for found in events if isinstance(found, Verbatim))


def ending(events: list[Event]) -> Done | Failed:
    *_, last = events
    assert isinstance(last, Done | Failed)
    return last


class TestEvents:
    @settings(max_examples=80)
    @given(
        deltas=st.lists(st.text(max_size=20) | st.just("x" * 100_000), max_size=8),
        ascii_only=st.booleans(),
        type_first=st.booleans(),
        end=st.sampled_from(LINE_ENDS),
        named=st.booleans(),
        last=st.sampled_from(["response.completed", "response.incomplete"]),
        cuts=st.lists(st.integers(0, 3000), max_size=30),
    )
    def test_any_events_in_any_pieces_pass_unchanged(
        self,
        deltas: list[str],
        ascii_only: bool,
        type_first: bool,
        end: str,
        named: bool,
        last: str,
        cuts: list[int],
    ) -> None:
        documents: list[dict[str, Any]] = [{"type": "response.created", "response": response("in_progress")}]
        documents += [{"type": "response.output_text.delta", "delta": delta} for delta in deltas]
        documents += [{"type": last, "response": response("completed", usage=COUNTS)}]
        sent, expected = "", ""
        for number, document in enumerate(documents):
            members = document | {"sequence_number": number}
            if not type_first:
                members = dict(reversed(members.items()))
            text = json.dumps(members, ensure_ascii=ascii_only, separators=(",", ":"))
            name = f"event: {document['type']}"
            sent += f"{name}{end}" * named + f"data: {text}{end}{end}"
            expected += f"{name}\ndata: {text}\n\n"
        events = decoded(*split_at(sent.encode(), cuts))
        assert passed_on(events).decode() == expected
        assert ending(events) == Done("completed", "m-1", USAGE, "resp_1", closed=True)
        assert not any(isinstance(found, Done | Failed) for found in events[:-1])

    def test_events_that_arrived_together_are_one(self) -> None:
        events = decoded(CREATED + ITEM + DELTA + DELTA + COMPLETED)
        assert [type(found) for found in events] == [Verbatim, Done]

    def test_output_that_has_arrived_is_not_held_back(self) -> None:
        decoder = EventDecoder()
        assert passed_on(decoder.feed(CREATED + DELTA)) == CREATED + DELTA
        assert [passed_on(decoder.feed(DELTA)) for _ in range(3)] == [DELTA] * 3
        assert decoder.feed(b": comment\n\n") == []

    def test_deltas_are_counted(self) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + ITEM + PART + DELTA + DELTA + event("response.output_text.done", text="aa"))
        assert decoder.deltas == 2

    def test_data_on_several_lines(self) -> None:
        events = decoded(b'data: {"type":"response.output_text.delta",\ndata: "delta":"a"}\n\n')
        assert passed_on(events) == (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",\ndata: "delta":"a"}\n\n'
        )

    @pytest.mark.parametrize(
        "payload",
        [
            b'{"type":"response.output_text.delta","delta":"\\ud83c"}',
            b'{"type":"response.new_kind","x":123456789012345678901234567890}',
            b'{ "type" : "response.output_text.delta" }',
            b'{"delta":"\\ud83c","type":"response.output_text.delta"}',
            b'{"type":"response.\\u006eew"}',
            b'{"type":"' + b"x" * 200 + b'"}',
            b'{"type":"keepalive","sequence_number":3}',
        ],
        ids=range(7),
    )
    def test_whatever_an_event_holds(self, payload: bytes) -> None:
        for hold in (True, False):
            events = decoded(b"data: " + payload + b"\n\n", DELTA, hold=hold)
            assert passed_on(events).removesuffix(DELTA) == b"event: %b\ndata: %b\n\n" % (
                json.loads(payload)["type"].encode(),
                payload,
            )

    def test_a_type_that_would_break_the_line_is_no_name(self) -> None:
        payload = b'{"type":"response.a\\nb"}'
        sent = b"data: " + payload + b"\n\n"
        assert passed_on(decoded(sent)) == sent

    @pytest.mark.parametrize("payload", [b"ping", b"", b"[DONE]", b"[1]", b"1"])
    def test_what_is_no_event_is_ignored(self, payload: bytes) -> None:
        decoder = EventDecoder(hold=False)
        assert decoder.feed(b"data: " + payload + b"\n\n") == []
        assert passed_on(decoder.feed(DELTA)) == DELTA

    @pytest.mark.parametrize("payload", [b'{"type":', b"{x}", b'{"type":"response.output_text.delta","delta":"a'])
    def test_half_an_event_is_a_failure(self, payload: bytes) -> None:
        failed = ending(decoded(CREATED, DELTA, b"data: " + payload + b"\n\n", DELTA))
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_ERROR
        assert failed.reason.startswith("an event is none of the Responses API (")

    def test_an_event_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("relay.upstream.sse.MAX_EVENT_BYTES", 100)
        failed = ending(decoded(b"data: " + b"x" * 101))
        assert isinstance(failed, Failed)
        assert failed.reason == "an event is none of the Responses API (EventTooLongError)"

    def test_most_events_are_not_parsed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + DELTA)
        monkeypatch.setattr(responses_decoders, "_decode", lambda data: pytest.fail("parsed"))
        for kind in ("response.output_text.delta", "response.output_item.done", "response.new"):
            assert passed_on(decoder.feed(event(kind, delta="a"))) == event(kind, delta="a")


class TestBeforeTheFirstOutput:
    @pytest.mark.parametrize(
        "sent",
        [
            CREATED,
            event("response.queued", response=response("queued")),
            CREATED + IN_PROGRESS,
            CREATED + IN_PROGRESS + ITEM,
            CREATED + IN_PROGRESS + ITEM + PART,
            event("response.output_item.added", item={"type": "reasoning", "summary": []}),
            event("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}),
            event("response.content_part.added", part={"type": "refusal", "refusal": ""}),
            CREATED + event("keepalive"),
        ],
        ids=range(9),
    )
    def test_what_announces_output_is_held(self, sent: bytes) -> None:
        decoder = EventDecoder()
        assert decoder.feed(sent) == []
        assert passed_on(decoder.feed(DELTA)) == sent + DELTA

    @pytest.mark.parametrize(
        "sent",
        [
            DELTA,
            event("response.output_item.added", item={"type": "function_call", "name": "f", "arguments": ""}),
            event("response.output_item.added", item={"type": "web_search_call", "status": "in_progress"}),
            event("response.output_item.added", item={"type": "message", "content": [{"type": "output_text"}]}),
            event("response.output_item.added", item={"type": "reasoning", "summary": [], "encrypted_content": "x"}),
            event("response.content_part.added", part={"type": "output_text", "text": "a"}),
            event("response.content_part.added", part=[]),
            event("response.output_item.done", item={"type": "message", "content": []}),
            event("response.reasoning_summary_text.delta", delta="a"),
            event("response.new_kind"),
        ],
        ids=range(10),
    )
    def test_what_carries_output_is_not(self, sent: bytes) -> None:
        assert passed_on(decoded(CREATED, sent)) == CREATED + sent

    def test_a_response_in_the_background_is_not_held(self) -> None:
        decoder = EventDecoder(hold=False)
        assert passed_on(decoder.feed(CREATED)) == CREATED
        assert decoder.id == "resp_1"

    @pytest.mark.parametrize("end", [FAILED, event("error", 2, code="server_error", message="x", param=None), None])
    def test_nothing_is_passed_on_of_a_failure(self, end: bytes | None) -> None:
        decoder = EventDecoder()
        events = decoder.feed(CREATED + IN_PROGRESS + ITEM + PART + (end or b"")) or [decoder.end()[-1]]
        assert len(events) == 1
        assert isinstance(events[0], Failed)
        assert events[0].event is None

    def test_a_response_without_output(self) -> None:
        events = decoded(CREATED + COMPLETED)
        assert passed_on(events) == CREATED + COMPLETED
        assert isinstance(ending(events), Done)

    def test_what_is_held_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(responses_decoders, "MAX_EVENT_BYTES", 3 * len(IN_PROGRESS))
        decoder = EventDecoder()
        assert decoder.feed(IN_PROGRESS * 3) == []
        failed = ending(decoder.feed(IN_PROGRESS))
        assert failed == Failed(UPSTREAM_ERROR, "the model service's answer has no output")
        decoder = EventDecoder()
        decoder.feed(IN_PROGRESS * 2 + DELTA)
        assert passed_on(decoder.feed(DELTA * 100)) == DELTA * 100


class TestEnd:
    def test_completed(self) -> None:
        decoder = EventDecoder()
        assert ending(decoder.feed(CREATED + DELTA + COMPLETED)) == Done(
            "completed", "m-1", USAGE, "resp_1", closed=True
        )
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("resp_1", "m-1", "completed")
        assert decoder.usage == USAGE
        assert decoder.feed(DELTA) == []

    @pytest.mark.parametrize(
        ("details", "reason"),
        [
            ({"reason": "max_output_tokens"}, "max_output_tokens"),
            ({"reason": "content_filter"}, "content_filter"),
            ({}, "incomplete"),
            (None, "incomplete"),
        ],
    )
    def test_incomplete(self, details: dict[str, str] | None, reason: str) -> None:
        last = event("response.incomplete", response=response("incomplete", incomplete_details=details, usage=COUNTS))
        events = decoded(CREATED + DELTA + last)
        assert passed_on(events) == CREATED + DELTA + last
        assert ending(events) == Done(reason, "m-1", USAGE, "resp_1", closed=True)

    def test_the_end_as_openrouter_calls_it(self) -> None:
        end = event("response.done", 5, response=response("completed", usage=COUNTS))
        events = decoded(CREATED + DELTA + end)
        assert passed_on(events) == CREATED + DELTA + end
        assert ending(events) == Done("completed", "m-1", USAGE, "resp_1", closed=True)

    def test_cancelled(self) -> None:
        last = event("response.cancelled", response=response("cancelled"))
        events = decoded(CREATED + DELTA + last)
        assert passed_on(events) == CREATED + DELTA + last
        assert ending(events) == Done("cancelled", "m-1", None, "resp_1", closed=True)

    def test_failed_is_passed_on_after_output(self) -> None:
        events = decoded(CREATED + DELTA + FAILED)
        assert passed_on(events) == CREATED + DELTA
        failed = ending(events)
        assert isinstance(failed, Failed)
        assert failed.problem == UPSTREAM_ERROR
        assert failed.event is not None
        assert b"data: %b\n\n" % failed.event in FAILED
        assert failed.reason == "the model service sent an error in its answer, code server_error"

    @pytest.mark.parametrize("error", [None, {}])
    def test_failed_without_an_error(self, error: Any) -> None:
        last = event("response.failed", response=response("failed", error=error))
        silent = "the model service's response failed without an error"
        data = last.split(b"data: ")[1].rstrip()
        assert ending(decoded(DELTA, last)) == Failed(UPSTREAM_ERROR, silent, event=data)
        told = event("error", error={"code": "rate_limit_exceeded", "message": "x"})
        for sent, problem in ((told, RATE_LIMITED), (DELTA, UPSTREAM_ERROR), (COMPLETED, UPSTREAM_ERROR)):
            decoder = EventDecoder()
            assert decoder.feed(CREATED + last) == []
            events = decoder.feed(sent)
            assert passed_on(events) == b""
            failed = ending(events)
            assert isinstance(failed, Failed)
            assert (failed.problem, failed.event) == (problem, None)
        decoder = EventDecoder()
        decoder.feed(last)
        assert decoder.end()[-1] == Failed(UPSTREAM_ERROR, silent)
        assert decoder.feed(DELTA) == []

    @pytest.mark.parametrize("members", [{"status": "failed"}, {"error": {"code": "server_error", "message": "x"}}])
    def test_a_failure_is_never_complete(self, members: dict[str, Any]) -> None:
        last = event("response.completed", response=response("completed") | members)
        events = decoded(CREATED, DELTA, last)
        assert passed_on(events) == CREATED + DELTA
        assert isinstance(ending(events), Failed)

    def test_usage_until_a_failure(self) -> None:
        progress = event("response.in_progress", response=response("in_progress", usage=COUNTS))
        decoder = EventDecoder()
        decoder.feed(progress + DELTA)
        assert decoder.cut("broke off")[-1] == Failed(UPSTREAM_INTERRUPTED, "broke off", USAGE)
        last = event("response.failed", response=response("failed", error={"code": "x"}, usage=COUNTS))
        failed = ending(decoded(DELTA + last))
        assert isinstance(failed, Failed)
        assert failed.usage == USAGE

    @pytest.mark.parametrize("counts", [{"input_tokens": "x"}, [], "x", {"input_tokens": -1, "output_tokens": 2}])
    def test_usage_that_cannot_be_read(self, counts: Any) -> None:
        done = ending(decoded(event("response.completed", response=response("completed", usage=counts))))
        assert isinstance(done, Done)
        assert done.usage in (None, Usage(0, 2))

    def test_the_body_ends_too_early(self) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + DELTA)
        reason = "the model service's answer ended without a finish reason"
        assert decoder.end()[-1] == Failed(UPSTREAM_INTERRUPTED, reason)
        assert decoder.feed(DELTA) == []

    def test_done_marks_nothing_as_complete(self) -> None:
        decoder = EventDecoder()
        assert passed_on(decoder.feed(CREATED + DELTA + b"data: [DONE]\n\n")) == CREATED + DELTA
        assert isinstance(decoder.end()[-1], Failed)

    @pytest.mark.parametrize("position", range(0, len(DELTA + COMPLETED), 7))
    def test_a_cut_anywhere_is_never_complete(self, position: int) -> None:
        decoder = EventDecoder()
        events = decoder.feed((DELTA + COMPLETED)[:position])
        assert not any(isinstance(found, Done) for found in events)
        assert (DELTA + COMPLETED).startswith(passed_on(events))
        assert isinstance(decoder.cut("broke off")[-1], Failed)

    def test_long_names_are_cut(self) -> None:
        decoder = EventDecoder()
        decoder.feed(event("response.created", response={"id": "r" * 300, "model": "m" * 300}))
        assert (decoder.id, decoder.model) == ("r" * 256, "m" * 256)

    def test_what_is_not_a_name_is_ignored(self) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + event("response.in_progress", response={"id": 7, "model": None, "status": []}))
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("resp_1", "m-1", None)

    def test_half_a_surrogate_pair_in_a_last_event(self) -> None:
        last = b'data: {"type":"response.completed","response":{"id":"r","output":["\\ud83c"],"status":"completed",'
        last += b'"usage":{"input_tokens":1,"output_tokens":2}}}\n\n'
        assert ending(decoded(last)) == Done("completed", None, Usage(1, 2), "r", closed=True)


class TestWhateverItIsCalled:
    """The first bytes tell what was sent, and the last ones count without their blank line."""

    def test_a_page_of_html(self) -> None:
        for content in (b"<html>", b"\xef\xbb\xbf \n<!DOCTYPE html>"):
            failed = ending(decoded(content))
            assert failed == Failed(UPSTREAM_ERROR, "the model service's answer is a page of HTML")

    @pytest.mark.parametrize(
        ("members", "kind", "reason"),
        [
            ({"status": "completed"}, "response.completed", "completed"),
            ({"status": "incomplete", "incomplete_details": {"reason": "x"}}, "response.completed", "x"),
            (
                {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
                "response.incomplete",
                "content_filter",
            ),
        ],
        ids=range(3),
    )
    def test_a_document_is_passed_on_as_events(self, members: dict[str, Any], kind: str, reason: str) -> None:
        document = json.dumps(response("completed", usage=COUNTS) | members, indent=1).encode()
        decoder = EventDecoder()
        for part in split_at(document + b"\n\ndata: [DONE]\n\n", [7, 30]):
            assert decoder.feed(part) == []
        *events, done = decoder.end()
        assert done == Done(reason, "m-1", USAGE, "resp_1", closed=True)
        sent = passed_on(events).replace(b"\ndata: ", b"\n").split(b"\n\n")
        first, last = (it.split(b"\n", 1) for it in sent[:2])
        assert (first[0], last[0]) == (b"event: response.created", b"event: " + kind.encode())
        assert [json.loads(it[1])["sequence_number"] for it in (first, last)] == [0, 1]
        assert json.loads(last[1])["response"] == json.loads(document)
        assert decoder.progress > 0

    @pytest.mark.parametrize(
        ("document", "problem"),
        [
            ({"error": {"code": "rate_limit_exceeded", "message": "x"}}, RATE_LIMITED),
            (response("failed"), UPSTREAM_ERROR),
            (response("queued"), UPSTREAM_ERROR),
            ({"choices": []}, UPSTREAM_ERROR),
        ],
        ids=range(4),
    )
    def test_a_document_that_is_none(self, document: dict[str, Any], problem: Any) -> None:
        decoder = EventDecoder()
        assert decoder.feed(json.dumps(document).encode()) == []
        failed = ending(decoder.end())
        assert isinstance(failed, Failed)
        assert failed.problem == problem

    def test_a_document_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(responses_decoders, "_MAX_DOCUMENT_BYTES", 10)
        assert isinstance(ending(decoded(b"{" * 11)), Failed)

    def test_half_a_document(self) -> None:
        decoder = EventDecoder()
        decoder.feed(b'{"object":')
        assert decoder.cut("broke off")[-1] == Failed(UPSTREAM_INTERRUPTED, "broke off")

    @pytest.mark.parametrize("end", [b"\n", b"", b"\r"])
    def test_a_last_event_without_its_blank_line(self, end: bytes) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + DELTA + COMPLETED.rstrip() + end)
        *events, done = decoder.end()
        assert passed_on(events) == COMPLETED
        assert isinstance(done, Done)
        assert decoder.complete
        assert decoder.end() == [done] == decoder.cut("late")

    def test_half_of_a_last_event_is_no_damage_but_a_cut(self) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + DELTA + COMPLETED[:60])
        failed = ending(decoder.end())
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_INTERRUPTED

    def test_nothing_at_all(self) -> None:
        for content in (b"", b" \n", b": comment\n\n", b"data: [DONE]\n\n"):
            decoder = EventDecoder()
            assert decoder.feed(content) == []
            failed = ending(decoder.end())
            assert isinstance(failed, Failed)
            assert failed.problem is UPSTREAM_ERROR

    def test_a_stream_in_place_of_a_document(self) -> None:
        decoder = DocumentDecoder()
        for part in split_at(CREATED + DELTA + COMPLETED, [9, 80]):
            assert decoder.feed(part) == []
        (done,) = decoder.end()
        assert isinstance(done, Done)
        assert json.loads(done.document or b"") == json.loads(COMPLETED.split(b"data: ")[1])["response"]
        assert (done.usage, done.id) == (USAGE, "resp_1")
        failed = DocumentDecoder()
        failed.feed(CREATED + event("error", error={"code": "rate_limit_exceeded"}))
        assert failed.end()[-1].problem == RATE_LIMITED  # type: ignore[union-attr]

    def test_a_document_before_the_marker_of_a_stream(self) -> None:
        document = json.dumps(response("completed")).encode()
        decoder = DocumentDecoder()
        decoder.feed(document + b"\n\ndata: [DONE]\n\n")
        assert decoder.end()[-1].document == document  # type: ignore[union-attr]

    def test_what_keeps_the_connection_open_is_no_progress(self) -> None:
        decoder = EventDecoder()
        decoder.feed(CREATED + DELTA)
        before = decoder.progress
        decoder.feed(b": x\n\ndata: ping\n\n" + event("keepalive"))
        assert decoder.progress == before
        decoder.feed(DELTA)
        assert decoder.progress == before + 1
        decoder.feed(b'data: {"type":')
        assert decoder.progress == before + 2


class TestErrors:
    def test_an_error_without_data(self) -> None:
        for sent in (DELTA + b"event: error\n\n", DELTA + b"event: error\ndata:\n\n"):
            events = decoded(sent)
            assert passed_on(events) == DELTA
            failed = ending(events)
            assert isinstance(failed, Failed)
            assert failed.problem == UPSTREAM_ERROR

    @pytest.mark.parametrize("data", [b'{"code":"Throttling.Quota","message":"x"}', b"rate limit exceeded", b"{}"])
    def test_an_event_that_is_called_an_error(self, data: bytes) -> None:
        failed = ending(decoded(DELTA, b"event: error\ndata: " + data + b"\n\n"))
        assert isinstance(failed, Failed)
        assert failed.problem == (RATE_LIMITED if b"Throttling" in data else UPSTREAM_ERROR)

    @pytest.mark.parametrize(
        ("error", "problem"),
        [
            ({"type": "error", "code": "server_error", "message": "x", "param": None}, UPSTREAM_ERROR),
            ({"type": "error", "code": "rate_limit_exceeded", "message": "x"}, RATE_LIMITED),
            ({"type": "error", "error": {"code": "rate_limit_exceeded", "message": "x"}}, RATE_LIMITED),
            ({"error": {"code": "rate_limit_exceeded"}}, RATE_LIMITED),
            ({"error": {"code": "content_filter"}}, CONTENT_FILTER.with_content_filter({})),
            ({"error": "Unexpected endpoint"}, UPSTREAM_ERROR),
            ({"code": "rate_limit_exceeded", "message": "x"}, RATE_LIMITED),
            ({"object": "error", "message": "x", "type": "InternalServerError", "code": 500}, UPSTREAM_ERROR),
            ({"type": "error"}, UPSTREAM_ERROR),
            ({"type": "response.error", "error": {"code": "rate_limit_exceeded"}}, RATE_LIMITED),
            ({"type": "response.error", "code": "rate_limit_exceeded"}, RATE_LIMITED),
            ({"code": 429, "msg": "x"}, RATE_LIMITED),
        ],
        ids=range(12),
    )
    def test_an_error_in_place_of_an_event(self, error: dict[str, Any], problem: Any) -> None:
        sent = b"data: " + json.dumps(error).encode() + b"\n\n"
        for before in (b"", CREATED, CREATED + DELTA):
            events = decoded(before + sent + DELTA)
            failed = ending(events)
            assert isinstance(failed, Failed)
            assert (failed.problem, failed.event) == (problem, None)
            assert passed_on(events) == (before if DELTA in before else b"")


class TestEncoder:
    @pytest.mark.parametrize(
        ("events", "number"),
        [
            ([], 0),
            ([CREATED], 1),
            ([CREATED, DELTA], 5),
            ([DELTA, event("response.new", 41)], 42),
            ([CREATED, b'event: response.new\ndata: {"type":"response.new"}\n\n'], 2),
            ([b'data: {"sequence_number":true}\n\n'], 1),
            ([b'data: {"sequence_number":"7"}\n\n'], 1),
            ([b'data: {"sequence_number":\ndata: 7}\n\n'], 8),
            ([b'data: {"sequence_number":7,"x":"\\ud83c"}\n\n'], 8),
            ([b"data: [7]\n\n"], 1),
        ],
        ids=range(10),
    )
    def test_an_error_has_the_next_number(self, events: list[bytes], number: int) -> None:
        for together in (True, False):
            encoder = EventEncoder()
            for part in [events] if together and events else [[it] for it in events]:
                assert encoder.text(Verbatim(b"", part)) == b"".join(part)
            content = encoder.failed(Failed(UPSTREAM_INTERRUPTED, "reason"), "request-1")
            name, members = content.removesuffix(b"\n\n").split(b"\ndata: ")
            assert name == b"event: error"
            assert json.loads(members) == {
                "type": "error",
                "code": "upstream_interrupted",
                "message": f"{UPSTREAM_INTERRUPTED.title}. {UPSTREAM_INTERRUPTED.detail}",
                "param": None,
                "sequence_number": number,
            }

    def test_the_number_follows_what_the_caller_had(self) -> None:
        content = EventEncoder(starting_after=5).failed(Failed(DEADLINE_EXCEEDED, "reason"), "request-1")
        assert b'"sequence_number":6}' in content

    def test_the_model_services_own_words_on_a_bad_request(self) -> None:
        error = {"message": "Too large.", "type": "invalid_request_error", "param": "input", "code": "too_large"}
        failed = Failed(INVALID_REQUEST.with_upstream_error(error), "reason")
        members = json.loads(EventEncoder().failed(failed, "request-1").split(b"data: ")[1])
        assert (members["code"], members["message"], members["param"]) == ("too_large", "Too large.", "input")

    def test_the_model_services_own_end_is_the_only_one(self) -> None:
        encoder = EventEncoder()
        assert encoder.done(Done("completed", None, None, None)) == b""
        assert encoder.text(Text(b'"x"')) == b""

    @pytest.mark.parametrize(
        ("error", "problem", "told"),
        [
            (
                {"code": "server_error", "message": "at https://secret.example.com"},
                UPSTREAM_ERROR,
                {"code": "server_error", "message": f"{UPSTREAM_ERROR.title}. {UPSTREAM_ERROR.detail}"},
            ),
            (
                {"code": "a secret", "message": "x"},
                UPSTREAM_ERROR,
                {"code": "upstream_error", "message": f"{UPSTREAM_ERROR.title}. {UPSTREAM_ERROR.detail}"},
            ),
            (
                {"code": "invalid_prompt", "message": "a secret", "more": "a secret"},
                INVALID_REQUEST.with_upstream_error({"message": "Not this."}),
                {"code": "invalid_prompt", "message": "Not this."},
            ),
            (
                "a secret",
                RATE_LIMITED,
                {"code": "rate_limited", "message": f"{RATE_LIMITED.title}. {RATE_LIMITED.detail}"},
            ),
            (None, UPSTREAM_ERROR, None),
        ],
        ids=range(5),
    )
    def test_a_failed_response_says_what_the_problem_says(self, error: Any, problem: Problem, told: Any) -> None:
        """The upstream's text can hold anything; the rest of its event is passed on."""
        members = response("failed", error=error, output=[1.0, "caf\u00e9", "\ud83c"])
        sent = data("response.failed", 7, response=members)
        content = EventEncoder().failed(Failed(problem, "reason", event=sent), "request-1")
        name, shown = content.removesuffix(b"\n\n").split(b"\ndata: ")
        assert name == b"event: response.failed"
        assert json.loads(shown) == {**json.loads(sent), "response": {**members, "error": told}}

    @pytest.mark.parametrize("sent", [b'{"type":"response.failed"}', b'{"type":"response.failed","response":1}'])
    def test_a_failed_response_without_one(self, sent: bytes) -> None:
        content = EventEncoder().failed(Failed(UPSTREAM_ERROR, "reason", event=sent), "request-1")
        assert content == b"event: response.failed\ndata: %b\n\n" % sent

    def test_its_properties(self) -> None:
        encoder = EventEncoder()
        assert (encoder.media_type, encoder.whole) == ("text/event-stream; charset=utf-8", False)
        assert (encoder.ping, encoder.breaks_off) == (b": ping\n\n", True)


class TestDocument:
    def ended(self, content: bytes, response_id: str | None = None) -> Done | Failed:
        decoder = DocumentDecoder(response_id)
        for chunk in split_at(content, [3, 7]):
            assert decoder.feed(chunk) == []
        (terminal,) = decoder.end()
        assert isinstance(terminal, Done | Failed)
        return terminal

    def test_a_response(self) -> None:
        content = json.dumps(response("completed", usage=COUNTS, error=None)).encode()
        assert self.ended(content) == Done("completed", "m-1", USAGE, "resp_1", document=content)

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"),
            ({"status": "queued"}, None),
            ({"status": "in_progress"}, None),
            ({"status": "cancelled"}, "cancelled"),
            ({"object": "response.compaction", "status": None}, None),
            ({"object": None, "status": "completed"}, "completed"),
            ({"output": ["\ud83c"]}, "completed"),
        ],
        ids=range(7),
    )
    def test_why_it_ended(self, members: dict[str, Any], reason: str | None) -> None:
        content = json.dumps(response("completed") | members).encode()
        done = self.ended(content)
        assert isinstance(done, Done)
        assert (done.finish_reason, done.document) == (reason, content)

    @pytest.mark.parametrize(
        ("members", "problem"),
        [
            ({"error": {"code": "rate_limit_exceeded", "message": "x"}}, RATE_LIMITED),
            ({"error": "Unexpected endpoint"}, UPSTREAM_ERROR),
            (response("failed", error={"code": "rate_limit_exceeded"}), RATE_LIMITED),
            (response("failed"), UPSTREAM_ERROR),
            ({}, UPSTREAM_ERROR),
            ({"choices": []}, UPSTREAM_ERROR),
        ],
        ids=range(6),
    )
    def test_a_failure_is_no_response(self, members: dict[str, Any], problem: Any) -> None:
        failed = self.ended(json.dumps(members).encode())
        assert isinstance(failed, Failed)
        assert failed.problem == problem

    @pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"1", b'{"object":"response"', b'{"object":"\xff"}'])
    @pytest.mark.parametrize("response_id", [None, "resp_1"])
    def test_what_is_no_document(self, content: bytes, response_id: str | None) -> None:
        failed = self.ended(content, response_id)
        assert isinstance(failed, Failed)
        assert failed.problem is UPSTREAM_ERROR

    @pytest.mark.parametrize(
        "members",
        [
            response("failed", error={"code": "server_error", "message": "x"}, usage=COUNTS),
            {"object": "list", "data": []},
            {"id": "resp_1", "object": "response", "deleted": True},
        ],
        ids=range(3),
    )
    def test_what_is_said_of_a_stored_response(self, members: dict[str, Any]) -> None:
        content = json.dumps(members).encode()
        assert self.ended(content, "resp_9") == Done(None, None, None, "resp_9", document=content)

    @pytest.mark.parametrize("members", [{"error": {"code": "rate_limit_exceeded"}}, {"object": "error", "error": "x"}])
    def test_an_error_about_a_stored_response(self, members: dict[str, Any]) -> None:
        assert isinstance(self.ended(json.dumps(members).encode(), "resp_9"), Failed)

    def test_a_document_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(responses_decoders, "_MAX_DOCUMENT_BYTES", 10)
        decoder = DocumentDecoder()
        assert decoder.feed(b"x" * 10) == []
        assert decoder.feed(b"x") == [Failed(UPSTREAM_ERROR, "the model service's answer is longer than 10 bytes")]

    def test_its_properties(self) -> None:
        decoder = DocumentDecoder()
        assert (decoder.complete, decoder.deltas, decoder.id) == (False, 0, None)
        assert decoder.cut("broke off")[-1] == Failed(UPSTREAM_INTERRUPTED, "broke off")
        assert DocumentDecoder("resp_9").id == "resp_9"

    def test_one_that_is_whole_when_the_connection_breaks(self) -> None:
        content = msgspec.json.encode(response("completed", usage=COUNTS))
        for cut in (0, 1):
            decoder = DocumentDecoder()
            decoder.feed(content[: len(content) - cut])
            (terminal,) = decoder.cut("broke off")
            assert isinstance(terminal, Failed if cut else Done)
        decoder = DocumentDecoder()
        decoder.feed(b'{"error":{"code":429}}')
        (failed,) = decoder.cut("broke off")
        assert isinstance(failed, Failed)
        assert failed.problem == RATE_LIMITED

    def test_the_documents_members_are_recorded(self) -> None:
        decoder = DocumentDecoder()
        decoder.feed(msgspec.json.encode(response("completed", usage=COUNTS)))
        decoder.end()[-1]
        assert (decoder.id, decoder.model, decoder.finish_reason) == ("resp_1", "m-1", "completed")
        assert decoder.usage == USAGE
