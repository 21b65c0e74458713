"""Streams that can be resumed, in random orders of what the model service, the caller, the clock and the server do.

In each: what the caller has received is exactly the text up to the last id that it has received, so that going on after
it neither loses nor repeats anything; and the response is stopped, deleted or left alone by how the stream ended.

RESUMABLE_SEED=12345 pytest tests/schedules/test_resumable.py      # replays one
RESUMABLE_RUNS=100000 pytest tests/schedules/test_resumable.py     # more of them
"""

import asyncio
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pytest

import relay.streaming.stream as stream_module
from relay.problems import UPSTREAM_ERROR
from relay.streaming.resumable import ResumableStream
from relay.streaming.stream import Stream
from relay.upstream.background import StoredAnswer
from relay.upstream.failures import Refusal
from relay.upstream.pool import Failover
from relay.usage import Usage
from relay.wires.resumable import ResumableRequest, Resumption
from relay.wires.stream import StreamRequest
from tests.schedules import virtual_loop
from tests.schedules.explorer import Turn
from tests.schedules.virtual_loop import VirtualLoop
from tests.schedules.world import Break, CallerStep, End, Headers, Scenario, Send, UpstreamStep, World

RUNS: Final = int(os.environ.get("RESUMABLE_RUNS", "1500"))
SEED: Final = os.environ.get("RESUMABLE_SEED")
SETTINGS: Final = {
    "commit_wait": 2.0,
    "ping_interval": 3.0,
    "stream_deadline": 20.0,
    "upstream_silence_timeout": 8.0,
    "resumable_streams": True,
}
LIMIT: Final = 18.0  # seconds: two before the deadline
NEW: Final = ResumableRequest(StreamRequest(input="x", resumable=True), "me")
BUSY: Final = Refusal(UPSTREAM_ERROR, "500", status=500)
FAILED: Final = "failed"


def event(number: int, kind: str, **members: Any) -> bytes:
    data = json.dumps({"type": f"response.{kind}", "sequence_number": number, **members}, separators=(",", ":"))
    return f"event: response.{kind}\ndata: {data}\n\n".encode()


def response(response_id: str, status: str, **members: Any) -> dict[str, Any]:
    return {"response": {"id": response_id, "model": "m", "status": status, **members}}


def created(response_id: str) -> Send:
    return Send(event(0, "created", **response(response_id, "queued")))


def text(number: int) -> Send:
    words = f"<{number}>"
    return Send(event(number, "output_text.delta", delta=words), words)


def quiet(number: int) -> Send:
    return Send(event(number, "output_item.done", item={}))


def completed(number: int, response_id: str) -> Send:
    usage = {"input_tokens": 3, "output_tokens": 2}
    return Send(event(number, "completed", **response(response_id, "completed", usage=usage)), completes=True)


def failed(number: int, response_id: str) -> Send:
    error = {"code": "server_error", "message": "?"}
    return Send(event(number, "failed", **response(response_id, "failed", error=error)), fails=True)


def script(dice: random.Random, response_id: str, first: int) -> list[UpstreamStep]:
    """What the model service does from the event with this number on."""
    steps: list[UpstreamStep] = [Headers()]
    if first == 0:
        if dice.random() < 0.15:
            return [BUSY]
        steps.append(created(response_id))
    number = max(first, 1)
    for _ in range(dice.randint(0, 6)):
        steps.append(text(number) if dice.random() < 0.7 else quiet(number))
        number += 1
    draw = dice.random()
    if draw < 0.4:
        steps.append(completed(number, response_id))
    elif draw < 0.5:
        steps.append(failed(number, response_id))
    if dice.random() < 0.6:
        steps.append(dice.choice((End(), Break())))
    if dice.random() < 0.2:
        del steps[dice.randint(1, len(steps)) :]
    return steps


@dataclass
class Background:
    """What the stream reports of its response, in the place of `relay.upstream.background.BackgroundResponses`."""

    reported: list[tuple[str, ...]] = field(default_factory=list)
    counted: list[tuple[str, int, bool]] = field(default_factory=list)

    def attach(self, response_id: str, reader: Any) -> None:
        self.reported.append(("attach", response_id))

    def detach(self, response_id: str, reader: Any, ending: str | None) -> None:
        self.reported.append(("detach", response_id, ending or "none"))

    def abandon(self, response_id: str) -> None:
        self.reported.append(("abandon", response_id))

    def count(self, response_id: str, usage: Usage, *, final: bool) -> Usage | None:
        self.counted.append((response_id, usage.output_tokens, final))
        return usage


class ResumableWorld(World):
    """The world of a stream that can be resumed; `stored`: it goes on with an earlier response."""

    stored: StoredAnswer | None = None

    def new_stream(self) -> Stream:
        self.background = Background()
        return ResumableStream(
            cast(Any, self.caller),
            Failover("model", list(self.pool)),
            self.scenario.request,
            cast(Any, self.encoder),
            self.settings,
            cast(Any, self.background),
            self.stored,
        )


def choose(dice: random.Random) -> tuple[Scenario, StoredAnswer | None]:
    caller: Sequence[CallerStep] = dice.choice(
        ((), (), ("stop reading",), ("stop reading", "read on"), ("disconnect",), ("stop reading", "disconnect"))
    )
    if dice.random() < 0.1:
        caller = ("shut down",)
    accept = dice.choice((None, "application/x-ndjson", "text/plain"))
    if dice.random() < 0.5:
        upstream = [script(dice, f"resp_{backend}", 0) for backend in range(dice.randint(1, 2))]
        wires = ("responses",) * len(upstream)
        return Scenario(NEW, upstream, caller, accept, SETTINGS, wires=wires), None
    after = dice.choice((-1, 0, 4))
    status = dice.choice(("in_progress", "completed", "cancelled"))
    request = Resumption("resp_0", after, accept=accept).stream(reasoning=False)
    stored = StoredAnswer("resp_0", status, reasoning=False)
    return Scenario(request, [script(dice, "resp_0", after + 1)], caller, accept, SETTINGS), stored


async def play(dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> ResumableWorld:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    scenario, stored = choose(dice)
    monkeypatch.setattr(ResumableWorld, "stored", stored)
    world = ResumableWorld(scenario, loop)
    monkeypatch.setattr(stream_module, "report", world.report)
    await loop.rest()
    for _ in range(400):
        options = world.options()
        if world.over or not options:
            break
        weights = [1 if option == "clock" else 4 for option in options]
        turn = Turn(dice.choices(options, weights)[0], dice.choice((None, None, None, 0, 1, 2)))
        if turn.actor == "clock":
            await loop.rest()  # time does not pass while callbacks are ready
        await world.act(turn.actor)
        if turn.rounds is None or turn.actor == "clock":
            await loop.rest()
        else:
            for _ in range(turn.rounds):
                await asyncio.sleep(0)
    if not world.over and not world.caller.gone:
        world.caller.disconnect()
    await loop.rest()
    while not world.stream._task.done() and await loop.advance():
        await loop.rest()
    return world


@dataclass
class Received:
    text: str = ""
    last_id: str = ""
    ends: list[str] = field(default_factory=list)
    members: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World) -> "Received":
        """What a client reads; it ignores an event that has not come to its end."""
        received, body = cls(), world.caller.body
        if world.caller.status != 200 or not body:
            return received
        media_type = world.caller.received_headers["content-type"].partition(";")[0]
        if media_type == "text/plain":
            received.text = body.decode()
        elif media_type == "application/x-ndjson":
            for line in body.decode().split("\n")[:-1]:
                members = json.loads(line)
                received._take(members.get("id", received.last_id), members["type"], members)
        else:
            for block in body.decode().replace(": ping\n\n", "").split("\n\n")[:-1]:
                fields = dict(line.split(": ", 1) for line in block.split("\n"))
                received.last_id = fields.get("id", received.last_id)
                if "data" in fields:
                    received._take(received.last_id, fields.get("event", "text"), json.loads(fields["data"]))
        return received

    def _take(self, event_id: str, kind: str, members: dict[str, Any]) -> None:
        assert not self.ends, "something follows the end"
        self.last_id = event_id
        if kind == "text":
            self.text += members["text"]
        else:
            self.ends.append(kind)
            self.members = members


def check(world: ResumableWorld) -> None:
    received = Received.of(world)
    caller = world.caller
    assert not caller.violations
    assert len(world.records) == 1, world.records
    assert world.loop.timers() == []
    assert [it.load for it in world.pool] == [0] * len(world.pool)
    assert {it.answer.state for it in world.backends if it.answer is not None} <= {"closed", "returned"}
    first = world.scenario.request
    after = first.resumption.after if world.stored is not None else -1  # type: ignore[attr-defined]
    check_text(world, received, after)
    check_end(world, received)
    check_response(world, received)


def check_text(world: ResumableWorld, received: Received, after: int) -> None:
    """Exactly what is between where the stream began and where the caller is to go on."""
    sent = "".join(it.delivered for it in world.backends)
    assert (
        sent.startswith(received.text) or received.text in [it.delivered for it in world.backends] or not received.text
    )
    if not received.last_id:
        return
    response_id, _, last = received.last_id.rpartition(".")
    backend = world.backends[int(response_id.removeprefix("resp_"))]
    due = "".join(f"<{n}>" for n in range(after + 1, int(last) + 1) if f"<{n}>" in backend.delivered)
    assert received.text == due, (received, due)


def check_end(world: ResumableWorld, received: Received) -> None:
    record, caller = world.records[0], world.caller
    outcome = {"done": "completed", "continue": "continued", "error": "failed"}
    if received.ends:
        assert record.outcome == outcome[received.ends[0]]
    if received.ends == ["continue"]:
        assert record.usage_estimated
        number = int(received.last_id.rpartition(".")[2])
        assert received.members["after"] == number
    if record.outcome == "completed" and caller.status == 200 and record.finish_reason != "cancelled":
        assert any(it.complete for it in world.backends) or world.stored is not None
    assert record.duration <= LIMIT + 10 + 1


def check_response(world: ResumableWorld, received: Received) -> None:
    """It is left alone, stopped or deleted by how the stream ended, once."""
    reported = world.background.reported
    detached = [it for it in reported if it[0] == "detach" and it[2] != "none"]
    attached = [it for it in reported if it[0] == "attach"]
    abandoned = {it[1] for it in reported if it[0] == "abandon"}
    assert len(detached) <= 1
    assert len(attached) == len([it for it in reported if it[0] == "detach"])
    known = {f"resp_{it.index}" for it in world.backends if any(b"created" in part for part in taken(it))}
    if world.stored is not None:
        known = {"resp_0"}
        assert not abandoned
    told = {it[1] for it in detached}
    if world.shut_down and not detached:
        return
    assert known == abandoned | told, (known, reported)
    if not detached:
        return
    ((_, _, ending),) = detached
    record = world.records[0]
    if ending == "ended":
        assert record.outcome == "completed"
    elif ending == "handed_over":
        assert record.outcome == "continued"
    if world.caller.ended and received.ends == ["done"] and not (world.caller.gone or world.shut_down):
        assert ending == "ended"


def taken(backend: Any) -> list[bytes]:
    """What the stream has read of the backend's answer: all that was delivered, unless it was closed before."""
    return [it.content for it in backend.played if isinstance(it, Send)]


@pytest.mark.parametrize("part", range(3))
def test_any_order(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [int(SEED)] if SEED else [random.randrange(2**32) for _ in range(RUNS // 3)]
    for seed in seeds:
        dice = random.Random(seed)
        try:
            world = virtual_loop.run(play(dice, monkeypatch))
            check(world)
        except AssertionError as error:
            raise AssertionError(f"RESUMABLE_SEED={seed}: {error}") from error
