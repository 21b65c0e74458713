"""What a stream sends, records and closes, at exact times: one case at a time, on a virtual clock, without sockets.

`tests/schedules` tries what happens in every order and checks what must always hold; here each case has its own end.
"""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import pytest

import relay.streaming.stream as stream_module
from relay.problems import CLIENT_CLOSED_REQUEST, INVALID_REQUEST, RATE_LIMITED, UPSTREAM_ERROR
from relay.settings import Price, Wire
from relay.streaming.events import Decoder, Encoder
from relay.telemetry import Record
from relay.upstream.failures import Refusal
from relay.upstream.request import UpstreamRequest
from relay.usage import Usage
from relay.wires import chat_completions, stream
from relay.wires.stream import StreamRequest
from relay.wires.stream_encoders import JSONDocumentEncoder, SSEEncoder
from relay.wires.wire import WireRequest
from tests.relay.virtual_time import virtual_time
from tests.schedules.virtual_loop import VirtualLoop
from tests.schedules.world import Break, End, Headers, Scenario, Send, UpstreamStep, World, step

PING: Final = b": ping\n\n"
ENDED: Final = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
DONE: Final = Send(ENDED)
FINISH: Final = Send(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
USAGE: Final = Send(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n')
SERVER_ERROR: Final = Send(b'data: {"error":{"code":"server_error","message":"?"}}\n\n')
FILTER_ERROR: Final = Send(b'data: {"error":{"code":"content_filter","message":"?"}}\n\n')
BUSY: Final = Refusal(RATE_LIMITED.with_retry_after(3), "answered 429", retry_after=3.0, status=429)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "answered 500", status=500)
BAD: Final = Refusal(INVALID_REQUEST, "answered 400", status=400)


def text(words: str) -> Send:
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": words}}]}
    return Send(f"data: {json.dumps(chunk)}\n\n".encode(), words)


def parsed(body: bytes) -> StreamRequest:
    request = stream.parse(body)
    assert isinstance(request, StreamRequest)
    return request


STREAM: Final = parsed(b'{"input": "one two three"}')
DOCUMENT: Final = parsed(b'{"input": "one two three", "stream": false}')
CHAT: Final = chat_completions.parse(b'{"messages": [], "stream": true}')
EMPTY: Final = Send(b'data: {"choices":[]}\n\n')

type Begin = Callable[..., World]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Begins a stream; each script is of one backend."""

    def begin(
        *upstream: tuple[UpstreamStep, ...], request: Any = STREAM, accept: str | None = None, **settings: Any
    ) -> World:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        defaults = {
            "commit_wait": 2.0,
            "ping_interval": 3.0,
            "stream_deadline": 50.0,
            "upstream_silence_timeout": 20.0,
        }
        world = World(Scenario(request, upstream, (), accept, {**defaults, **settings}), loop)
        monkeypatch.setattr(stream_module, "report", world.report)
        return world

    return begin


async def serve(world: World) -> None:
    """The web server takes the response of the function, which has returned."""
    await step(world, "server")


async def finish(world: World) -> Record:
    """The record, once the stream has ended and left nothing behind."""
    await world.loop.rest()
    while not world.over:
        if "server" in world.options():
            await world.act("server")
        else:
            assert await world.loop.advance(), "the stream never ends"
        await world.loop.rest()
    assert not world.caller.violations
    assert world.loop.timers() == []
    assert [backend.load for backend in world.pool] == [0] * len(world.pool)
    assert {it.answer.state for it in world.backends if it.answer is not None} <= {"closed", "returned"}
    (record,) = world.records
    return record


def events(world: World) -> list[tuple[str, Any]]:
    """The events that the caller has received, pings left out."""
    result = []
    for block in world.caller.body.decode().replace(PING.decode(), "").split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        result.append((fields.get("event", "text"), json.loads(fields["data"])))
    return result


class TestCompleteAnswer:
    @virtual_time
    async def test_its_record(self, begin: Begin) -> None:
        world = begin((Headers(), text("one "), text("two "), text("three"), DONE, End()))
        await asyncio.sleep(1)
        await step(world, "backend-0")
        await asyncio.sleep(0.5)
        await step(world, "backend-0", "server")
        await asyncio.sleep(2.5)
        await step(world, "backend-0")
        await asyncio.sleep(1)
        await step(world, "backend-0")
        await asyncio.sleep(0.25)
        await step(world, "backend-0")
        record = await finish(world)
        assert world.recorded_at - world.began == 5.25
        assert record == Record(
            "request-1",
            "invocation-1",
            "model",
            outcome="completed",
            status=200,
            finish_reason="stop",
            response_id="c",
            response_model="m",
            backend="backend-0",
            attempts=1,
            time_to_commit=1.5,
            time_to_first_token=1.5,
            largest_gap=2.5,
            duration=5.25,
            usage=Usage(3, 2),
            bytes_sent=len(world.caller.body),
            stream=True,
            server=("backend-0", 80),
        )

    @virtual_time
    async def test_the_cost_of_an_answer_by_the_models_price(self, begin: Begin) -> None:
        prices = {"model": Price(input=2.0, output=10.0), "another": Price(input=1.0)}
        world = begin((Headers(), text("one "), DONE), prices=prices)
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        assert (await finish(world)).cost == pytest.approx((3 * 2 + 2 * 10) / 1e6)

    @virtual_time
    async def test_an_answer_without_a_price_has_no_cost(self, begin: Begin) -> None:
        world = begin((Headers(), text("one "), DONE), prices={"another": Price(input=1.0)})
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        assert (await finish(world)).cost is None

    @virtual_time
    async def test_what_the_caller_receives(self, begin: Begin) -> None:
        world = begin((Headers(), text("one "), text("two"), DONE))
        await step(world, "backend-0", "backend-0", "server", "backend-0", "backend-0")
        await finish(world)
        assert (world.caller.status, world.caller.ended) == (200, True)
        assert world.caller.received_headers == {"content-type": "text/event-stream; charset=utf-8"}
        assert [kind for kind, _ in events(world)] == ["text", "text", "done"]
        assert [members["text"] for _, members in events(world)[:2]] == ["one ", "two"]
        assert events(world)[2][1]["usage"] == Usage(3, 2).members()
        assert len(world.caller.writes) == 3

    @virtual_time
    async def test_what_arrived_together_goes_out_in_one_write(self, begin: Begin) -> None:
        world = begin((Headers(), Send(text("one ").content + text("two").content + ENDED)))
        await step(world, "backend-0", "backend-0", "server")
        await finish(world)
        assert len(world.caller.writes) == 1
        assert [members.get("text") for _, members in events(world)] == ["one two", None]

    @virtual_time
    async def test_the_request_to_the_model_service(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE), max_output_tokens=7)
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        await finish(world)
        sent = world.backends[0].request
        assert sent is not None
        expected = STREAM.on("chat").upstream_request(max_output_tokens=7)
        # Not an address of Azure: the limit goes under both of its names.
        assert sent.parameters == {**expected.parameters, "max_tokens": 7}
        assert (sent.path, sent.stream, sent.fields) == (expected.path, True, expected.fields)
        assert world.backends[0].request_id == "request-1"

    @virtual_time
    async def test_its_connection_is_reused(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        await finish(world)
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "returned"

    @virtual_time
    async def test_without_a_usage_it_is_estimated(self, begin: Begin) -> None:
        world = begin((Headers(), text("one "), text("two"), Send(b"data: [DONE]\n\n")))
        await step(world, "backend-0", "backend-0", "server", "backend-0", "backend-0")
        record = await finish(world)
        estimate = STREAM.on("chat").upstream_request(max_output_tokens=1).estimated_input_tokens()
        assert (record.usage, record.usage_estimated) == (Usage(estimate, 2), True)

    @virtual_time
    async def test_without_output_no_usage_is_estimated(self, begin: Begin) -> None:
        world = begin((Headers(), FINISH))
        await step(world, "backend-0", "backend-0")
        record = await finish(world)
        assert (record.outcome, record.usage, record.usage_estimated) == ("completed", None, False)
        assert (record.time_to_first_token, record.largest_gap) == (None, 0.0)
        assert [kind for kind, _ in events(world)] == ["done"]

    @virtual_time
    async def test_events_of_two_kinds_that_arrived_together(self, begin: Begin) -> None:
        request = chat_completions.parse(b'{"messages": [], "stream": true, "stream_options": {"include_usage": true}}')
        world = begin(
            (Headers(), Send(text("one ").content + text("two").content + USAGE.content), DONE), request=request
        )
        await step(world, "backend-0", "backend-0", "server")
        assert world.caller.body.count(b"data: ") == 3
        assert b"one " in world.caller.body
        assert b'"prompt_tokens"' in world.caller.body
        await step(world, "backend-0")
        await finish(world)

    @virtual_time
    async def test_a_backend_that_completes_is_no_longer_on_probation(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        world.pool[0].record_refusal(BROKEN)
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        await finish(world)
        assert not world.pool[0].rank()[0]


class TestCommit:
    @virtual_time
    async def test_it_waits_for_the_first_output(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        await step(world, "backend-0")
        await asyncio.sleep(1.99)
        assert not world.function.done()
        await step(world, "backend-0")
        assert world.function.done()
        await serve(world)
        assert [content for _, content in world.caller.writes if content == PING] == []

    @virtual_time
    async def test_it_waits_no_longer_than_its_time_and_begins_with_a_ping(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        await step(world, "backend-0")
        await asyncio.sleep(2)
        await serve(world)
        assert world.responded_at == world.began + 2
        assert world.caller.writes == [(world.began + 2, PING)]
        await step(world, "backend-0", "backend-0")
        record = await finish(world)
        assert (record.time_to_commit, record.time_to_first_token, record.pings) == (2, 2, 1)
        assert record.bytes_sent == len(world.caller.body) - len(PING)

    @pytest.mark.parametrize("accept", ["application/x-ndjson", "text/plain"])
    @virtual_time
    async def test_a_format_without_pings_waits_for_its_first_output(self, begin: Begin, accept: str) -> None:
        world = begin((Headers(), text("one"), text("two"), DONE), accept=accept)
        await step(world, "backend-0")
        await asyncio.sleep(19)
        assert not world.function.done()
        await step(world, "backend-0", "server")
        await asyncio.sleep(19)
        await step(world, "backend-0", "backend-0")
        record = await finish(world)
        assert (record.time_to_commit, record.pings, record.largest_gap) == (19, 0, 19)
        assert PING not in world.caller.body
        assert world.caller.received_headers["content-type"].startswith(accept)

    @virtual_time
    async def test_output_between_the_commit_and_the_web_server_takes_the_place_of_the_ping(self, begin: Begin) -> None:
        """The stream waits for the web server, not for the model service: no ping is due."""
        world = begin((Headers(), text("one"), DONE))
        await step(world, "backend-0")
        await asyncio.sleep(2)
        await world.loop.rest()
        await step(world, "backend-0", "server")
        assert world.caller.writes[0][1] != PING

    @virtual_time
    async def test_text_that_arrives_during_the_first_ping_follows_it(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        caller, send = world.caller, world.caller.send

        async def send_and_stop_reading(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                caller.reads = False

        caller.send = send_and_stop_reading  # type: ignore[method-assign]
        await step(world, "backend-0")
        await asyncio.sleep(2)
        await step(world, "server", "backend-0")
        assert (caller.status, caller.body) == (200, b"")
        caller._read_on()
        await step(world, "backend-0")
        await finish(world)
        assert caller.body.startswith(PING + b"data: ")


class TestPings:
    @virtual_time
    async def test_one_for_each_interval_of_silence(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two"), DONE))
        await step(world, "backend-0", "backend-0", "server")
        await asyncio.sleep(10)
        await step(world, "backend-0")
        await asyncio.sleep(2.5)
        await step(world, "backend-0")
        record = await finish(world)
        assert [when - world.began for when, content in world.caller.writes if content == PING] == [3, 6, 9]
        assert record.pings == 3

    @virtual_time
    async def test_none_follows_one_that_the_caller_has_not_taken(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two"), DONE))
        await step(world, "backend-0", "backend-0", "server")
        world.caller.reads = False
        await asyncio.sleep(12)
        world.caller._read_on()
        await world.loop.rest()
        assert [content for _, content in world.caller.writes[1:]] == [PING]
        await step(world, "backend-0", "backend-0")
        assert (await finish(world)).pings == 1

    @virtual_time
    async def test_text_behind_one_that_the_caller_has_not_taken(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two"), DONE))
        await step(world, "backend-0", "backend-0", "server")
        world.caller.reads = False
        await asyncio.sleep(4)
        await step(world, "backend-0")
        world.caller._read_on()
        await world.loop.rest()
        assert [content[:6] for _, content in world.caller.writes] == [b"data: ", PING[:6], b"data: "]
        await step(world, "backend-0")
        await finish(world)


class TestSilence:
    @virtual_time
    async def test_midway(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), USAGE))
        await step(world, "backend-0", "backend-0", "server")
        await asyncio.sleep(1)
        await step(world, "backend-0")
        record = await finish(world)
        assert world.recorded_at - world.began == 21
        assert (record.outcome, record.status, record.code) == ("failed", 200, "upstream_timeout")
        assert "silent for 20 s" in str(record.reason)
        assert [kind for kind, _ in events(world)] == ["text", "error"]
        members = events(world)[1][1]
        assert (members["code"], members["request_id"]) == ("upstream_timeout", "request-1")
        assert members["usage"] == Usage(3, 2).members()
        assert world.caller.ended
        assert record.duration == 21
        assert world.pool[0].rank()[0], "it is on probation"

    @virtual_time
    async def test_before_the_commit_it_has_a_status(self, begin: Begin) -> None:
        world = begin((Headers(),), upstream_silence_timeout=1.0)
        record = await finish(world)
        assert world.caller.status == record.status == 504
        assert json.loads(world.caller.body)["code"] == record.code == "upstream_timeout"
        assert record.time_to_commit == record.duration == 1

    @virtual_time
    async def test_before_the_headers(self, begin: Begin) -> None:
        world = begin((), commit_wait=0.0)
        record = await finish(world)
        assert record.duration == 20
        assert (record.code, record.attempts, record.backend) == ("upstream_timeout", 1, "backend-0")
        assert [kind for kind, _ in events(world)] == ["error"]

    @virtual_time
    async def test_it_is_measured_anew_for_each_backend(self, begin: Begin) -> None:
        world = begin((BROKEN,), ())
        await asyncio.sleep(15)
        await step(world, "backend-0")
        await asyncio.sleep(15)
        await world.loop.rest()
        assert world.records == []
        assert (await finish(world)).duration == 35

    @virtual_time
    async def test_a_slow_reader_is_not_the_model_services_silence(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two"), DONE), ping_interval=100.0)
        await step(world, "backend-0", "backend-0", "server")
        world.caller.reads = False
        await step(world, "backend-0")
        await asyncio.sleep(30)
        world.caller._read_on()
        await asyncio.sleep(19)
        assert world.records == []
        await step(world, "backend-0")
        assert (await finish(world)).outcome == "completed"

    @virtual_time
    async def test_what_is_passed_on_without_being_a_part_of_the_answer_does_not_end_it(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), EMPTY, EMPTY, EMPTY), request=CHAT, ping_interval=100.0)
        await step(world, "backend-0", "backend-0", "server")
        for _ in range(3):
            await asyncio.sleep(6)
            await step(world, "backend-0")
        assert EMPTY.content in world.caller.body
        record = await finish(world)
        assert (record.code, record.duration) == ("upstream_timeout", 20)

    @virtual_time
    async def test_the_time_in_which_the_caller_takes_that_is_not_the_model_services(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), EMPTY), request=CHAT, ping_interval=100.0)
        await step(world, "backend-0", "backend-0", "server")
        await asyncio.sleep(6)
        world.caller.reads = False
        await step(world, "backend-0")
        await asyncio.sleep(7)
        world.caller._read_on()
        record = await finish(world)
        assert (record.code, record.duration) == ("upstream_timeout", 27)


class TestDeadline:
    @virtual_time
    async def test_midway(self, begin: Begin) -> None:
        world = begin((Headers(), text("one")), stream_deadline=5.0)
        await step(world, "backend-0", "backend-0", "server")
        record = await finish(world)
        assert world.recorded_at - world.began == record.duration == 5
        assert (record.outcome, record.status, record.code) == ("failed", 200, "deadline_exceeded")
        assert record.reason == "no end after 5 s"
        assert [kind for kind, _ in events(world)] == ["text", "error"]
        assert events(world)[1][1]["code"] == "deadline_exceeded"
        assert record.usage_estimated
        assert not world.pool[0].rank()[0], "the backend is not to blame"

    @virtual_time
    async def test_the_usage_is_in_the_event(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), USAGE), stream_deadline=5.0)
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        record = await finish(world)
        assert events(world)[1][1]["usage"] == Usage(3, 2).members()
        assert (record.usage, record.usage_estimated) == (Usage(3, 2), False)

    @virtual_time
    async def test_before_the_commit_it_has_a_status(self, begin: Begin) -> None:
        world = begin((Headers(),), stream_deadline=1.0)
        record = await finish(world)
        assert world.caller.status == record.status == 504
        assert record.code == "deadline_exceeded"

    @pytest.mark.parametrize("complete", [False, True])
    @virtual_time
    async def test_a_caller_who_does_not_read_the_end(self, begin: Begin, complete: bool) -> None:
        world = begin((Headers(), text("one"), DONE), stream_deadline=30.0, upstream_silence_timeout=60.0)
        await step(world, "backend-0", "backend-0", "server")
        world.caller.reads = False
        if complete:
            await step(world, "backend-0")
        await asyncio.sleep(9.99 if complete else 39.99)
        await world.loop.rest()
        assert world.records == []
        await asyncio.sleep(0.01)
        await world.loop.rest()
        (record,) = world.records
        assert record.duration == pytest.approx(10 if complete else 40)
        assert record.outcome == ("completed" if complete else "failed")
        begun = "the answer is complete" if complete else "no end after 30 s"
        assert record.reason == f"{begun}; the caller did not read its end"
        world.caller._read_on()
        await finish(world)
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "closed"
        assert not world.caller.ended

    @virtual_time
    async def test_it_does_not_cut_an_end_that_waits_for_the_caller(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE), stream_deadline=15.0)
        await step(world, "backend-0", "backend-0", "server")
        await asyncio.sleep(10)
        world.caller.reads = False
        await step(world, "backend-0")
        await asyncio.sleep(7)
        world.caller._read_on()
        record = await finish(world)
        assert (record.outcome, record.duration, record.reason) == ("completed", 17, None)
        assert world.caller.ended


class TestDisconnect:
    @virtual_time
    async def test_before_the_commit(self, begin: Begin) -> None:
        world = begin((Headers(), text("one")))
        await step(world, "backend-0")
        await asyncio.sleep(1)
        world.caller.disconnect()
        await world.loop.rest()
        assert world.function.done()
        response = world.function.result()
        assert response.status_code == CLIENT_CLOSED_REQUEST
        (record,) = world.records
        assert (record.outcome, record.status) == ("cancelled", CLIENT_CLOSED_REQUEST)
        assert (record.code, record.reason, record.time_to_commit, record.duration) == (None, None, 1, 1)
        await finish(world)

    @virtual_time
    async def test_midway(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two")))
        await step(world, "backend-0", "backend-0", "server")
        world.caller.disconnect()
        await world.loop.rest()
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "closed"
        record = await finish(world)
        assert (record.outcome, record.status, record.code, record.reason) == ("cancelled", 200, None, None)
        assert (record.usage_estimated, record.response_id) == (True, "c")
        assert len(world.caller.writes) == 1

    @virtual_time
    async def test_while_the_caller_does_not_read(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two")))
        await step(world, "backend-0", "backend-0", "server")
        world.caller.reads = False
        await step(world, "backend-0")
        world.caller.disconnect()
        assert (await finish(world)).outcome == "cancelled"

    @virtual_time
    async def test_between_the_commit_and_the_web_server(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two")))
        await step(world, "backend-0", "backend-0")
        world.caller.disconnect()
        await world.loop.rest()
        assert world.over or world.function.result().status_code == 200
        record = await finish(world)
        assert record.outcome == "cancelled"

    @virtual_time
    async def test_while_the_end_waits_for_the_caller_to_read(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        await step(world, "backend-0", "backend-0", "server")
        world.caller.reads = False
        await step(world, "backend-0")
        await asyncio.sleep(3)
        world.caller.disconnect()
        record = await finish(world)
        assert (record.outcome, record.duration, record.reason) == ("completed", 3, None)

    @virtual_time
    async def test_after_the_end(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE))
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        world.caller.disconnect()
        assert (await finish(world)).outcome == "completed"


class TestRefusals:
    @virtual_time
    async def test_one_that_no_other_backend_makes_good(self, begin: Begin) -> None:
        world = begin((BAD,), (Headers(), text("one"), DONE))
        await asyncio.sleep(1)
        await step(world, "backend-0", "server")
        record = await finish(world)
        assert world.caller.status == record.status == 400
        assert json.loads(world.caller.body)["code"] == record.code == "invalid_request"
        assert (record.outcome, record.reason, record.attempts) == ("failed", "answered 400", 1)
        assert (record.refusals, record.backend) == ([], "backend-0")
        assert (record.time_to_commit, record.duration) == (1, 1)
        assert record.time_to_first_token is None
        assert record.bytes_sent == 0
        assert world.backends[1].asked == 0

    @virtual_time
    async def test_after_the_commit(self, begin: Begin) -> None:
        world = begin((BAD,))
        await asyncio.sleep(2)
        await step(world, "server", "backend-0")
        record = await finish(world)
        assert world.caller.status == record.status == 200
        assert [kind for kind, _ in events(world)] == ["error"]
        assert record.code == "invalid_request"

    @virtual_time
    async def test_one_that_another_backend_makes_good(self, begin: Begin) -> None:
        world = begin((BUSY,), (Headers(), text("one"), DONE))
        await step(world, "backend-0")
        assert [backend.load for backend in world.pool] == [0, 1]
        await step(world, "backend-1", "backend-1", "server", "backend-1")
        record = await finish(world)
        assert (record.outcome, record.code, record.reason) == ("completed", None, None)
        assert (record.backend, record.attempts) == ("backend-1", 2)
        assert record.refusals == ["backend-0: answered 429"]
        assert world.pool[0].cooling_down() is not None

    @virtual_time
    async def test_all_refuse(self, begin: Begin) -> None:
        world = begin((BUSY,), (BROKEN,))
        await step(world, "backend-0", "backend-1")
        record = await finish(world)
        assert world.caller.status == record.status == 429
        assert json.loads(world.caller.body)["retry_after"] == 3
        assert (record.code, record.reason) == ("rate_limited", "answered 429")
        assert record.refusals == ["backend-0: answered 429", "backend-1: answered 500"]
        assert (record.backend, record.attempts) == ("backend-1", 2)

    @virtual_time
    async def test_silence_before_the_headers_while_another_backend_is_left(self, begin: Begin) -> None:
        world = begin((), (), failover_after=4.5)
        await asyncio.sleep(4.49)
        assert world.backends[1].asked == 0
        await asyncio.sleep(0.01)
        await world.loop.rest()
        assert world.backends[1].asked_at == world.began + 4.5
        record = await finish(world)
        assert record.duration == 24.5, "the last one is given the silence timeout"
        assert record.refusals == ["backend-0: silent for 4.5 s before its answer began"]
        assert world.pool[0].rank()[0]


class TestFailureBeforeOutput:
    """An answer that fails before its output is no answer: another backend is asked."""

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ((Headers(), Break()), "broke off (ConnectionResetError)"),
            ((Headers(), End()), "has no part that is understood"),
            ((Headers(), Send(b"data: [DONE]\n\n")), "has no part that is understood"),
            ((Headers(), SERVER_ERROR), "code server_error"),
            ((Headers("text/html"), Send(b"<html></html>")), "its media type is text/html"),
        ],
        ids=["cut", "ended", "only the marker", "error event", "HTML"],
    )
    @pytest.mark.parametrize("others", [0, 1])
    @virtual_time
    async def test_it(self, begin: Begin, script: tuple[UpstreamStep, ...], reason: str, others: int) -> None:
        world = begin(script, *[(Headers(), text("one"), DONE)] * others)
        await step(world, *["backend-0"] * len(script))
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "closed"
        assert world.pool[0].rank()[0], "it is on probation"
        await step(world, *["backend-1"] * 3 * others)
        record = await finish(world)
        (refusal,) = record.refusals
        assert refusal.startswith("backend-0: ")
        assert reason in refusal
        if others:
            assert (record.outcome, record.backend, record.attempts) == ("completed", "backend-1", 2)
            assert [kind for kind, _ in events(world)] == ["text", "done"]
            return
        assert (record.outcome, record.code) == ("failed", "upstream_error")
        assert reason in str(record.reason)
        assert world.caller.status == record.status == 502

    @virtual_time
    async def test_after_the_commit_the_caller_is_told_that_it_was_cut(self, begin: Begin) -> None:
        world = begin((Headers(), Break()))
        await step(world, "backend-0")
        await asyncio.sleep(2)
        await step(world, "server", "backend-0")
        record = await finish(world)
        assert record.code == events(world)[0][1]["code"] == "upstream_interrupted"
        assert record.status == 200

    @virtual_time
    async def test_an_error_of_the_model_service_keeps_its_code_after_the_commit(self, begin: Begin) -> None:
        world = begin((Headers(), SERVER_ERROR))
        await step(world, "backend-0")
        await asyncio.sleep(2)
        await step(world, "server", "backend-0")
        assert (await finish(world)).code == "upstream_error"

    @virtual_time
    async def test_one_that_no_other_backend_makes_good(self, begin: Begin) -> None:
        world = begin((Headers(), FILTER_ERROR), (Headers(), text("one"), DONE))
        await step(world, "backend-0", "backend-0", "server")
        record = await finish(world)
        assert (record.code, record.attempts, record.refusals) == ("content_filter", 1, [])
        assert world.caller.status == record.status == 400
        assert world.backends[1].asked == 0
        assert not world.pool[0].rank()[0]

    @virtual_time
    async def test_the_decoder_of_the_next_answer_is_a_new_one(self, begin: Begin) -> None:
        half = Send(b'data: {"id":"first","choices":[]}\n\ndata: {"cho')
        world = begin((Headers(), half, Break()), (Headers(), text("one"), DONE))
        await step(world, *["backend-0"] * 3, "backend-1", "backend-1", "server", "backend-1")
        record = await finish(world)
        assert (record.outcome, record.response_id) == ("completed", "c")


class TestFailureMidway:
    @pytest.mark.parametrize(
        ("failure", "code", "reason"),
        [
            (Break(), "upstream_interrupted", "broke off (ConnectionResetError)"),
            (End(), "upstream_interrupted", "ended without a finish reason"),
            (SERVER_ERROR, "upstream_error", "code server_error"),
        ],
    )
    @virtual_time
    async def test_no_other_backend_is_asked(self, begin: Begin, failure: UpstreamStep, code: str, reason: str) -> None:
        world = begin((Headers(), text("one"), failure), (Headers(), text("two"), DONE))
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        record = await finish(world)
        assert (record.outcome, record.status, record.code) == ("failed", 200, code)
        assert reason in str(record.reason)
        assert (record.attempts, record.refusals, world.backends[1].asked) == (1, [], 0)
        assert [kind for kind, _ in events(world)] == ["text", "error"]
        assert events(world)[1][1]["code"] == code
        assert world.caller.ended
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "closed"

    @virtual_time
    async def test_text_that_arrived_with_its_failure_precedes_it(self, begin: Begin) -> None:
        """Nothing was sent yet, but a status would lose the text."""
        world = begin((Headers(), Send(text("one").content + SERVER_ERROR.content)))
        await step(world, "backend-0", "backend-0", "server")
        record = await finish(world)
        assert world.caller.status == record.status == 200
        assert [kind for kind, _ in events(world)] == ["text", "error"]
        assert len(world.caller.writes) == 1
        assert record.bytes_sent == len(world.caller.body)

    @virtual_time
    async def test_text_that_arrived_before_the_connection_broke(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two"), Break()))
        await step(world, "backend-0", "backend-0", "server")
        await world.loop.rest()
        world.backends[0].act()
        await step(world, "backend-0")
        await finish(world)
        assert [members.get("text") for _, members in events(world)] == ["one", "two", None]

    @virtual_time
    async def test_in_plain_text_the_connection_is_cut(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two"), Break()), accept="text/plain")
        await step(world, "backend-0", "backend-0", "server")
        world.backends[0].act()
        await step(world, "backend-0")
        record = await finish(world)
        assert (world.caller.body, world.caller.ended) == (b"onetwo", False)
        assert (record.bytes_sent, record.status, record.code) == (6, 200, "upstream_interrupted")

    @virtual_time
    async def test_in_plain_text_nothing_is_written_where_nothing_waits(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), Break()), accept="text/plain")
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        await finish(world)
        assert world.caller.sent_messages == 2, "the start and the text"
        assert not world.caller.ended


class TestOneDocument:
    @virtual_time
    async def test_it(self, begin: Begin) -> None:
        world = begin((Headers(), text("one "), text("two"), DONE), request=DOCUMENT)
        await step(world, "backend-0", "backend-0")
        await asyncio.sleep(10)
        assert not world.function.done(), "no commit before the end"
        await step(world, "backend-0", "backend-0")
        record = await finish(world)
        assert json.loads(world.caller.body)["text"] == "one two"
        length = str(len(world.caller.body))
        assert world.caller.received_headers == {"content-type": "application/json", "content-length": length}
        assert (record.outcome, record.status, record.bytes_sent) == ("completed", 200, len(world.caller.body))
        assert (record.time_to_first_token, record.largest_gap) == (0, 10)
        assert (record.time_to_commit, record.pings) == (10, 0)

    @virtual_time
    async def test_a_failure_midway_has_a_status(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), Break()), (Headers(), text("two"), DONE), request=DOCUMENT)
        await step(world, "backend-0", "backend-0", "backend-0", "server")
        record = await finish(world)
        assert (world.caller.status, record.status) == (502, 502)
        assert json.loads(world.caller.body)["code"] == record.code == "upstream_interrupted"
        assert (record.attempts, record.bytes_sent) == (1, 0)


@dataclass(frozen=True)
class Faulty:
    """A request whose decoder or encoder has a bug that shows where `fails` says."""

    fails: str
    whole: bool = False
    request: WireRequest = STREAM

    def on(self, wire: Wire) -> Self:
        return self

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        return self.request.on("chat").upstream_request(max_output_tokens=max_output_tokens)

    def decoder(self) -> Decoder:
        decoder = self.request.on("chat").decoder()
        if self.fails == "feed":
            feed = decoder.feed

            def faulty(chunk: bytes) -> Any:
                events = feed(chunk)
                if decoder.deltas > 1:
                    raise RuntimeError("a secret")
                return events

            decoder.feed = faulty  # type: ignore[method-assign]
        elif self.fails == "open":
            decoder.feed = self._fail  # type: ignore[method-assign, assignment]
        return decoder

    def encoder(self, accept: str | None) -> Encoder:
        encoder: Any = JSONDocumentEncoder() if self.whole else SSEEncoder()
        if self.fails in ("done", "failed"):
            setattr(encoder, self.fails, self._fail)
        return encoder  # type: ignore[no-any-return]

    def _fail(self, *_: Any) -> Any:
        raise RuntimeError("a secret")


class TestFaultsOfThisApp:
    """The caller learns of the end all the same, and the record names the place without the error's text."""

    def check(self, record: Record) -> None:
        assert (record.outcome, record.code) == ("failed", "internal_error")
        reason = str(record.reason)
        assert reason.startswith("RuntimeError at test_life.py:"), reason
        assert "secret" not in reason

    @virtual_time
    async def test_midway(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two")), request=Faulty("feed"))
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        record = await finish(world)
        self.check(record)
        assert record.status == 200
        assert [kind for kind, _ in events(world)] == ["text", "error"]
        assert events(world)[1][1]["code"] == "internal_error"
        assert world.caller.ended

    @virtual_time
    async def test_before_the_commit(self, begin: Begin) -> None:
        world = begin((Headers(), text("one")), request=Faulty("open"))
        await step(world, "backend-0", "backend-0", "server")
        record = await finish(world)
        self.check(record)
        assert world.caller.status == record.status == 500
        assert json.loads(world.caller.body)["code"] == "internal_error"

    @virtual_time
    async def test_at_the_end_of_a_complete_answer(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE), request=Faulty("done"))
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        self.check(await finish(world))
        assert not world.caller.ended, "the stream is cut"
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "closed"

    @virtual_time
    async def test_at_the_end_of_a_document(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), DONE), request=Faulty("done", whole=True))
        await step(world, "backend-0", "backend-0", "backend-0", "server")
        self.check(await finish(world))
        assert world.caller.status == 500
        assert json.loads(world.caller.body)["code"] == "internal_error"

    @virtual_time
    async def test_at_the_end_of_a_failed_answer(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), Break()), request=Faulty("failed"))
        await step(world, "backend-0", "backend-0", "server", "backend-0")
        self.check(await finish(world))
        assert not world.caller.ended


class TestShutDown:
    @virtual_time
    async def test_the_web_server_stops(self, begin: Begin) -> None:
        world = begin((Headers(), text("one"), text("two")))
        await step(world, "backend-0", "backend-0", "server")
        assert world.server is not None
        world.server.cancel()
        await world.loop.rest()
        answer = world.backends[0].answer
        assert answer is not None
        assert answer.state == "closed"
        assert world.loop.timers() == []
        assert world.pool[0].load == 0
        assert len(asyncio.all_tasks()) == 1, "this one"


@pytest.mark.parametrize("ending", ["done", "disconnect", "silence", "failure"])
@virtual_time
async def test_a_stream_that_has_ended_is_freed_at_once(begin: Begin, ending: str) -> None:
    """Without a reference cycle: what it holds does not wait for the garbage collector."""
    last = {"done": DONE, "failure": Break()}.get(ending, text("two"))
    world = begin((Headers(), text("one"), last))
    gc.disable()
    try:
        await step(world, "backend-0", "backend-0", "server")
        await asyncio.sleep(4)  # a ping
        if ending == "disconnect":
            world.caller.disconnect()
        elif ending != "silence":
            await step(world, "backend-0")
        await finish(world)
        reference = weakref.ref(world.stream)
        del world.stream
        world.function = world.server = None  # type: ignore[assignment]
        await world.loop.rest()
        assert reference() is None
    finally:
        gc.enable()
