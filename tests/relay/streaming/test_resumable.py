"""The life of a stream that can be resumed, case by case, at exact times; every order is in tests/schedules."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import relay.streaming.stream as stream_module
from relay.problems import RESPONSE_NOT_FOUND
from relay.streaming.resumable import ResumableStream
from relay.upstream.background import StoredAnswer
from relay.upstream.failures import Refusal
from relay.wires.resumable import Resumption
from tests.relay.virtual_time import virtual_time
from tests.schedules.test_resumable import (
    NEW,
    SETTINGS,
    Received,
    ResumableWorld,
    completed,
    created,
    failed,
    quiet,
    text,
)
from tests.schedules.virtual_loop import VirtualLoop
from tests.schedules.world import Break, End, Headers, Scenario, UpstreamStep, step

type Begin = Callable[..., ResumableWorld]
BEGUN: tuple[UpstreamStep, ...] = (Headers(), created("resp_0"), text(1), text(2))
NDJSON = "application/x-ndjson"


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Begins a stream; `stored`: the status of the earlier response that it goes on with, `after` an event."""

    def begin(
        *upstream: tuple[UpstreamStep, ...],
        caller: tuple[Any, ...] = (),
        accept: str | None = None,
        stored: str | None = None,
        after: int = -1,
        **settings: Any,
    ) -> ResumableWorld:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        request: Any = NEW
        earlier = None
        if stored is not None:
            request = Resumption("resp_0", after, accept=accept).stream(reasoning=False)
            earlier = StoredAnswer("resp_0", stored, reasoning=False)
        monkeypatch.setattr(ResumableWorld, "stored", earlier)
        wires = ("responses",) * len(upstream)
        world = ResumableWorld(Scenario(request, upstream, caller, accept, SETTINGS | settings, wires=wires), loop)
        monkeypatch.setattr(stream_module, "report", world.report)
        return world

    return begin


async def finish(world: ResumableWorld) -> Received:
    await world.loop.rest()
    while not world.over:
        if "server" in world.options():
            await world.act("server")
        else:
            assert await world.loop.advance(), "the stream never ends"
        await world.loop.rest()
    assert not world.caller.violations
    assert world.loop.timers() == []
    return Received.of(world)


def ending(world: ResumableWorld) -> str:
    (found,) = [it[2] for it in world.background.reported if it[0] == "detach"]
    return found


@pytest.mark.parametrize(("deadline", "limit"), [(20.0, 18.0), (220.0, 215.0), (50.0, 45.0)])
@virtual_time
async def test_it_ends_before_the_deadline_so_that_the_caller_goes_on(
    begin: Begin, deadline: float, limit: float
) -> None:
    world = begin(BEGUN, stream_deadline=deadline, upstream_silence_timeout=1000.0)
    await step(world, "backend-0", "backend-0", "server", "backend-0", "backend-0")
    received = await finish(world)
    assert (received.text, received.ends, received.last_id) == ("<1><2>", ["continue"], "resp_0.2")
    assert received.members == {"id": "resp_0", "after": 2}
    assert world.recorded_at - world.began == limit
    (record,) = world.records
    assert (record.outcome, record.status, record.code) == ("continued", 200, None)
    assert (record.usage_estimated, record.usage and record.usage.output_tokens) == (True, 2)
    assert ending(world) == "handed_over"
    assert world.backends[0].answer is not None
    assert world.backends[0].answer.state == "closed"


@virtual_time
async def test_plain_text_is_broken_off_in_time(begin: Begin) -> None:
    world = begin(BEGUN, accept="text/plain", upstream_silence_timeout=1000.0)
    await step(world, "backend-0", "backend-0", "backend-0", "server", "backend-0")
    received = await finish(world)
    assert (received.text, world.caller.ended) == ("<1><2>", False)
    assert world.closed_at == world.began + 17.0, "a second is left for the last text to arrive"
    assert world.records[0].outcome == "continued"


@pytest.mark.parametrize("accept", [None, NDJSON])
@virtual_time
async def test_what_a_slow_reader_has_not_taken_is_not_lost(begin: Begin, accept: str | None) -> None:
    """The time limit comes while text waits for the caller to read."""
    world = begin(BEGUN, caller=("stop reading", "read on"), accept=accept, upstream_silence_timeout=1000.0)
    await step(world, "backend-0", "backend-0", "backend-0", "server", "caller", "backend-0")
    assert Received.of(world).text == "<1>"
    await asyncio.sleep(20)
    await step(world, "caller")
    received = await finish(world)
    assert (received.text, received.ends, received.last_id) == ("<1><2>", ["continue"], "resp_0.2")


@virtual_time
async def test_a_caller_who_reads_too_late_goes_on_after_what_was_read(begin: Begin) -> None:
    world = begin(BEGUN, caller=("stop reading", "read on"), upstream_silence_timeout=1000.0)
    await step(world, "backend-0", "backend-0", "backend-0", "server", "caller", "backend-0")
    await asyncio.sleep(40)
    received = Received.of(world)
    assert (received.text, received.ends, received.last_id) == ("<1>", [], "resp_0.1")
    await finish(world)
    assert ending(world) == "lost"


@virtual_time
async def test_content_waits_for_the_web_server(begin: Begin) -> None:
    """The time limit comes between the commit and the moment when the web server takes the response."""
    world = begin(BEGUN, accept=NDJSON, upstream_silence_timeout=1000.0)
    await step(world, "backend-0", "backend-0", "backend-0")
    await asyncio.sleep(18)
    await step(world, "server")
    received = await finish(world)
    assert (received.text, received.ends, received.last_id) == ("<1>", ["continue"], "resp_0.1")


@virtual_time
async def test_a_silent_model_service_is_no_failure(begin: Begin) -> None:
    world = begin(BEGUN)
    await step(world, "backend-0", "backend-0", "server")
    received = await finish(world)
    assert (received.ends, received.last_id) == (["continue"], "resp_0.0")
    assert world.recorded_at - world.began == 8.0


@virtual_time
async def test_before_the_response_has_an_id_it_is_one(begin: Begin) -> None:
    world = begin((Headers(),))
    await step(world, "backend-0")
    received = await finish(world)
    assert received.ends == ["error"]
    assert received.members["code"] == "upstream_timeout"
    assert world.background.reported == []


@virtual_time
async def test_the_id_is_sent_at_once(begin: Begin) -> None:
    world = begin(BEGUN)
    await step(world, "backend-0", "backend-0", "server")
    assert world.caller.body == b"retry: 1000\nid: resp_0.0\n\n"
    assert world.caller.received_headers["x-response-id"] == "resp_0"
    assert world.background.reported == [("attach", "resp_0")]
    await finish(world)
    assert world.records[0].time_to_first_token is None


@virtual_time
async def test_it_is_stopped(begin: Begin) -> None:
    world = begin(BEGUN)
    await step(world, "backend-0", "backend-0", "backend-0", "server")
    assert isinstance(world.stream, ResumableStream)
    world.stream.stop()
    received = await finish(world)
    assert (received.text, received.ends, received.members["finish_reason"]) == ("<1>", ["done"], "cancelled")
    assert ending(world) == "none", "who stops it deletes it"
    assert world.records[0].usage_estimated


@virtual_time
async def test_a_client_that_disconnects_before_there_is_an_id(begin: Begin) -> None:
    """The response can only be stopped by its id, so that is waited for."""
    world = begin(BEGUN, caller=("disconnect",))
    await step(world, "backend-0", "caller")
    assert world.records == []
    await step(world, "backend-0")
    await finish(world)
    assert world.background.reported == [("attach", "resp_0"), ("detach", "resp_0", "lost")]
    assert world.records[0].outcome == "cancelled"
    assert world.backends[0].answer is not None
    assert world.backends[0].answer.state == "closed"


@virtual_time
async def test_another_deployment_takes_over_and_the_first_response_is_given_up(begin: Begin) -> None:
    other = (Headers(), created("resp_1"), text(1), completed(2, "resp_1"), End())
    world = begin((Headers(), created("resp_0"), Break()), other)
    await step(world, "backend-0", "backend-0", "server", "backend-0", *["backend-1"] * 4)
    received = await finish(world)
    assert (received.text, received.ends, received.last_id) == ("<1>", ["done"], "resp_1.2")
    assert world.caller.body.count(b"\n\n") == 4, "the id of each response is sent at once"
    assert world.background.reported == [
        ("attach", "resp_0"),
        ("detach", "resp_0", "none"),
        ("abandon", "resp_0"),
        ("attach", "resp_1"),
        ("detach", "resp_1", "ended"),
    ]


@virtual_time
async def test_a_connection_that_breaks_is_gone_on_with_where_it_has_brought_something(begin: Begin) -> None:
    world = begin((Headers(), text(5), Break()), stored="in_progress", after=4)
    await step(world, "backend-0", "backend-0", "server", "backend-0")
    received = await finish(world)
    assert (received.text, received.ends, received.last_id) == ("<5>", ["continue"], "resp_0.5")
    nothing = begin((Headers(), quiet(5), Break()), stored="in_progress", after=4)
    await step(nothing, "backend-0", "backend-0", "backend-0")
    await finish(nothing)
    assert (nothing.caller.status, nothing.records[0].code) == (502, "upstream_error")
    assert ending(nothing) == "lost"


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
@virtual_time
async def test_nothing_follows_the_end(begin: Begin, status: str) -> None:
    world = begin((Headers(), End()), stored=status, after=4)
    await step(world, "backend-0", "backend-0")
    await finish(world)
    assert (world.caller.status, world.caller.body) == (204, b"")
    assert (ending(world), world.records[0].outcome) == ("ended", "completed")


@pytest.mark.parametrize("steps", [(Headers(), Break()), (Headers(), quiet(5), End())], ids=["cut", "not all"])
@virtual_time
async def test_an_end_that_is_none(begin: Begin, steps: tuple[UpstreamStep, ...]) -> None:
    """Only a response without any more events has been sent to its end."""
    world = begin(steps, stored="completed", after=4)
    await step(world, *["backend-0"] * len(steps))
    await finish(world)
    assert (world.caller.status, world.records[0].outcome) == (502, "failed")


@virtual_time
async def test_one_that_runs_has_no_end_yet(begin: Begin) -> None:
    world = begin((Headers(), End()), stored="in_progress", after=4)
    await step(world, "backend-0", "backend-0")
    await finish(world)
    assert world.caller.status == 502


@virtual_time
async def test_one_that_was_stopped(begin: Begin) -> None:
    world = begin((Headers(), text(5), End()), stored="cancelled", after=4)
    await step(world, "backend-0", "backend-0", "server", "backend-0")
    received = await finish(world)
    assert (received.text, received.ends, received.members["finish_reason"]) == ("<5>", ["done"], "cancelled")
    cut = begin((Headers(), text(5), Break()), stored="cancelled", after=4)
    await step(cut, "backend-0", "backend-0", "server", "backend-0")
    assert (await finish(cut)).ends == ["continue"], "more of it may follow"


@virtual_time
async def test_a_failure_of_the_model_is_an_error(begin: Begin) -> None:
    world = begin((Headers(), created("resp_0"), text(1), failed(2, "resp_0")))
    await step(world, "backend-0", "backend-0", "server", "backend-0", "backend-0")
    received = await finish(world)
    assert (received.text, received.ends, received.last_id) == ("<1>", ["error"], "resp_0.2")


@virtual_time
async def test_the_account_refuses(begin: Begin) -> None:
    world = begin((Refusal(RESPONSE_NOT_FOUND, "404", status=404),), stored="completed", after=4)
    await step(world, "backend-0")
    await finish(world)
    assert world.caller.status == 404


@virtual_time
async def test_plain_text_that_has_not_begun_keeps_its_status(begin: Begin) -> None:
    """There is nothing to break off, and nowhere to go on."""
    world = begin((Headers(), created("resp_0")), accept="text/plain")
    await step(world, "backend-0", "backend-0")
    await finish(world)
    assert (world.caller.status, world.records[0].code) == (504, "upstream_timeout")
    assert world.background.reported == [("attach", "resp_0"), ("detach", "resp_0", "lost")]


@virtual_time
async def test_nothing_is_stopped_where_the_app_shuts_down(begin: Begin) -> None:
    """The caller may go on with another instance."""
    world = begin(BEGUN, caller=("shut down",))
    await step(world, "backend-0", "backend-0", "backend-0", "server", "caller")
    assert world.background.reported == [("attach", "resp_0"), ("detach", "resp_0", "none")]
    assert world.records[0].outcome == "cancelled"
