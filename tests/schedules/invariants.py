"""What must hold in every schedule: at every moment of rest, and when all is over."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from relay.problems import CATALOGUE, CLIENT_CLOSED_REQUEST, DEADLINE_EXCEEDED, UPSTREAM_TIMEOUT
from relay.streaming.stream import (
    _LATE_USAGE_TIMEOUT,
    _SILENCE_AFTER_FINISH,
    _TERMINAL_EVENT_TIMEOUT,
    BREAK_DELAY,
)
from relay.telemetry import Record
from relay.upstream.failures import Refusal
from relay.usage import Usage
from relay.wires.chat_decoders import DocumentDecoder, TextDecoder
from relay.wires.responses_decoders import DocumentDecoder as ResponseDecoder
from relay.wires.responses_text import ResponseTextDecoder
from tests.schedules.world import BODY_BYTES, Break, Headers, ScriptedBackend, UpstreamStep, World

_TEXT_DECODERS = (TextDecoder, ResponseTextDecoder)  # those of `POST /stream`
_STATUS = {problem.code: int(problem.status) for problem in CATALOGUE}
_LIMITS = {DEADLINE_EXCEEDED.code, UPSTREAM_TIMEOUT.code}
_SHORTEST_PROBATION = 2.0
_RETRYABLE = {"upstream_error", "upstream_timeout", "upstream_auth", "rate_limited"}


@dataclass(slots=True)
class Received:
    """What the caller has received: the text, how it ended, and the pings in between."""

    text: str = ""
    reasoning: str = ""
    outcome: str | None = None  # done, error, or None where there was no terminal event
    code: str | None = None
    usage: dict[str, int] | None = None
    pings: int = 0
    terminals: int = 0
    events: int = 0  # of the Responses API
    passed_on: bool = False  # the model service's own event told of the failure


def received(world: World) -> Received:
    """Parses the response's body by its format."""
    body, caller = world.caller.body, world.caller
    result = Received()
    if caller.status is None:
        return result
    if caller.status != 200:
        result.outcome, result.code = "error", json.loads(body)["code"] if body else None
        return result
    media_type = world.encoder.media_type.partition(";")[0]
    if world.encoder.whole:
        if body:
            document = json.loads(body)
            result.text = _text_of(document)
            result.reasoning = document.get("reasoning") or ""
            result.outcome, result.terminals = "done", 1
    elif media_type == "text/plain":
        result.text = body.decode()
        result.outcome = "done" if caller.ended else None
    elif media_type == "text/event-stream":
        _parse_events(body, result)
    else:
        for line in body.decode().splitlines():
            _parse_member(json.loads(line), json.loads(line)["type"], result)
    return result


def _text_of(document: dict[str, Any]) -> str:
    if "output" in document:
        return str(document["output"][0]["content"][0]["text"])
    return str(document["text"] if "text" in document else document["choices"][0]["message"]["content"])


def _parse_events(body: bytes, result: Received) -> None:
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == "", "an event was not finished"
    for block in blocks:
        lines = block.split("\n")
        if lines == [": ping"]:
            result.pings += 1
            continue
        fields = dict(line.split(": ", 1) for line in lines)
        if fields["data"] == "[DONE]":
            result.terminals += 1
            result.outcome = result.outcome or "done"
            continue
        members = json.loads(fields["data"])
        if members == {"foo": 1}:
            continue  # not understood, and passed on
        if fields.get("event", "") == members.get("type"):
            _parse_response_event(members, result)
        elif "choices" in members:
            result.text += "".join(choice["delta"].get("content") or "" for choice in members["choices"])
        elif "error" in members and isinstance(members["error"], dict):
            _parse_member({"code": members["error"]["code"]}, "error", result)
        else:
            _parse_member(members, fields.get("event", "text"), result)


def _parse_response_event(members: dict[str, Any], result: Received) -> None:
    """An event of the Responses API: numbered without a gap, and with its type as its name."""
    assert result.outcome is None, "something followed the terminal event"
    assert members["sequence_number"] == result.events, "the numbers have a gap"
    result.events += 1
    match members["type"]:
        case "response.output_text.delta":
            result.text += members["delta"]
        case "response.completed" | "response.incomplete":
            result.outcome, result.terminals = "done", result.terminals + 1
        case "response.failed":
            result.outcome, result.terminals, result.passed_on = "error", result.terminals + 1, True
        case "error":
            _parse_member({"code": members["code"]}, "error", result)


def _parse_member(members: dict[str, object], kind: str, result: Received) -> None:
    assert result.outcome is None, "something followed the terminal event"
    if kind == "text":
        result.text += str(members["text"])
    elif kind == "reasoning":
        result.reasoning += str(members["text"])
    else:
        result.outcome, result.terminals = kind, result.terminals + 1
        result.code = str(members["code"]) if kind == "error" else None
        result.usage = members.get("usage")  # type: ignore[assignment]


def check_at_rest(world: World) -> None:
    """Nothing is ready to run: what has arrived is with the caller, and no limit is passed."""
    caller, settings, encoder = world.caller, world.settings, world.encoder
    now, stream = world.loop.time(), world.stream
    live = not stream._task.done()
    assert not caller.violations, caller.violations
    streaming = world.server is not None and caller.status == 200 and not encoder.whole
    answering = [it for it in world.backends if it.answer is not None and it.answer.state == "open"]
    assert len(answering) <= 1, "two answers are open at once"

    # The function answers as soon as there is something to answer with, and never later than the commit wait.
    if world.responded_at is None:
        assert live, "the stream is over and the function still waits"
        assert not encoder.ping or world.elapsed < settings.commit_wait, "the commit is late"

    # Text that arrived is held back by nothing but the caller.
    if streaming and caller.reads and not caller.gone and answering and live:
        assert received(world).text == answering[0].delivered, "text is held back"
        if world.shows_reasoning:
            assert received(world).reasoning == answering[0].reasoning, "reasoning is held back"

    # A caller who reads is never left in silence.
    if streaming and encoder.ping and caller.reads and not caller.gone and live:
        last = max([when for when, _ in caller.writes], default=world.responded_at or 0.0)
        assert now - last < settings.ping_interval + 1e-6, "a ping is missing"

    # Limits.
    taken = world.server is not None or not world.function.done()
    if live and taken and not world.shut_down:
        assert world.elapsed < settings.stream_deadline + _TERMINAL_EVENT_TIMEOUT, "the stream outlives its deadline"
        if caller.reads:
            assert world.elapsed < settings.stream_deadline, "the deadline has passed"
    if live and answering and caller.reads and streaming:
        it = answering[0]
        # While the caller does not read, the end waits in the socket, and the usage is waited for from then on.
        waited = now >= it.over_at + _LATE_USAGE_TIMEOUT if it.over_at is not None and not _slow(world) else False
        if it.over_at is not None and (it.usage_delivered or it.ended or waited):
            raise AssertionError("the answer is over and the stream goes on")
        assert not (it.complete and it.ended), "the answer is complete and the stream goes on"
        if it.complete:
            last = max([it.last_step, *(when for when, _ in caller.writes)])
            assert now < last + _SILENCE_AFTER_FINISH, "the answer is complete and the stream goes on"

    # A caller who disconnected costs nothing more.
    if caller.gone and taken:
        assert not answering, "the model service still works for a caller who has disconnected"
        assert not live, "the stream outlives its caller"

    if settings.failover_after is not None:
        for it in world.backends[:-1]:
            assert not it.awaited or now - it.asked_at < settings.failover_after, "the fail-over is late"

    if (world.shut_down and world.over) or (world.cancelled and stream._termination is None):
        assert not live, "the stream outlives the web server, or its own cancellation"
        assert not answering

    # The load is what is open.
    for backend, scripted in zip(world.pool, world.backends, strict=True):
        asked = live and stream._failover.backend is backend
        assert backend.load == int(asked), f"the load of {scripted.name} is {backend.load}"


def _slow(world: World) -> bool:
    return "stop reading" in world.scenario.caller


def check_end(world: World) -> None:
    """All is over: the caller, the record and the model service agree on how, and nothing is left."""
    records = world.records
    assert len(records) == 1, f"{len(records)} records"
    _check_nothing_left(world)
    _check_limits(world, records[0])
    if world.shut_down or world.cancelled:
        assert world.responded_at is not None, "the function still waits"
        if records[0].outcome != "completed":
            assert received(world).outcome != "done", "passed for complete"
        return
    (record,) = records
    caller, result = world.caller, received(world)
    answering = _answering(world)
    if not caller.gone:
        _check_told(world, result, record, answering)
    _check_text(world, result, record, answering)
    _check_break(world, record)
    _check_record(world, result, record)
    _check_failover(world, record)


def _answering(world: World) -> ScriptedBackend | None:
    """The last backend whose answer began."""
    return next((it for it in reversed(world.backends) if it.answer is not None), None)


def _check_nothing_left(world: World) -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not tasks, f"tasks are left: {tasks}"
    assert not world.loop.timers(), f"timers are left: {world.loop.timers()}"
    assert [backend.load for backend in world.pool] == [0] * len(world.pool), "a load is left"
    for scripted in world.backends:
        assert scripted.answer is None or scripted.answer.state != "open", "an answer is left open"
    assert not world.caller.violations, world.caller.violations


def _check_limits(world: World, record: Record) -> None:
    """Whatever the end, the stream is given back to its caller's limits, and the tokens that it used are counted."""
    account = world.caller.account
    assert account.day is not None
    ((settled, prompt_read),) = world.caller.settled
    assert settled is record, "the limits were told of another end"
    assert account.streams == 0, "the stream is not given back"
    may_be_read = any(it.asked > it.refusals for it in world.backends)
    assert prompt_read == may_be_read, "a prompt that may have been read is not counted, or one that was refused is"
    if record.usage is not None:
        used: float = record.usage.input_tokens + record.usage.output_tokens
    else:
        used = BODY_BYTES / 4 if may_be_read else 0.0
    assert account.day.used(world.loop.time()) == pytest.approx(used)


def _check_told(world: World, result: Received, record: Record, answering: ScriptedBackend | None) -> None:
    """A caller who stayed is told once how it ended, and that is how it ended."""
    caller, encoder = world.caller, world.encoder
    if "did not read" in (record.reason or ""):
        assert "stop reading" in world.scenario.caller
        return
    if caller.status != 200:
        assert record.outcome == "failed"
        assert (result.code, caller.status) == (record.code, record.status)
        assert caller.status == _STATUS[record.code or ""]
        return
    if encoder.media_type.startswith("text/plain"):
        assert caller.ended == (record.outcome == "completed")
    else:
        broken = encoder.breaks_off and record.outcome == "failed" and not result.passed_on
        assert caller.ended != broken, "the body's end tells otherwise"
        assert result.outcome == ("done" if record.outcome == "completed" else "error"), "told otherwise than recorded"
        assert result.terminals == 1, f"{result.terminals} terminal events"
        assert result.passed_on or result.code == record.code
    if record.outcome == "completed":
        assert answering is not None
        assert answering.complete, "passed for complete"
    elif answering is not None and answering.complete and answering.last_step < world.recorded_at:
        assert answering.failed, "a complete answer is reported as a failure"
    assert record.status == 200


def _check_text(world: World, result: Received, record: Record, answering: ScriptedBackend | None) -> None:
    """All text of the answer, once: also what arrived together with its failure."""
    delivered = answering.delivered if answering else ""
    assert delivered.startswith(result.text), "text of another answer, or twice"
    if world.caller.gone or "did not read" in (record.reason or ""):
        return
    if record.outcome == "completed" or (record.code not in _LIMITS and not world.encoder.whole):
        assert result.text == delivered, "text is lost"
    if record.outcome == "completed" and answering is not None:
        document = world.encoder.whole and getattr(world.scenario.request, "reasoning_summary", None) is not None
        assert result.reasoning == (answering.reasoning if document or world.shows_reasoning else ""), "not its own"


def _check_break(world: World, record: Record) -> None:
    """What was sent before a break has a moment to reach the caller; no other end waits."""
    caller, closed_at = world.caller, world.closed_at
    assert closed_at is not None
    broken = caller.status == 200 and not caller.ended and not caller.gone
    if broken:
        last = max((when for when, _ in caller.writes), default=world.began)
        assert closed_at >= last + BREAK_DELAY, "the last bytes had no time to leave"
        if "stop reading" in world.scenario.caller:
            last = world.recorded_at
        assert closed_at <= max(world.recorded_at, last + BREAK_DELAY), "the break is late"
    elif "stop reading" not in world.scenario.caller and not (caller.gone and record.outcome == "failed"):
        assert closed_at <= world.recorded_at, "the end is late"


def _check_record(world: World, result: Received, record: Record) -> None:
    caller, settings = world.caller, world.settings
    unread = "did not read" in (record.reason or "")
    assert record.attempts == sum(it.asked for it in world.backends)
    assert record.pings >= result.pings
    assert record.time_to_commit == (None if world.responded_at is None else world.responded_at - world.began)
    assert record.duration == world.recorded_at - world.began
    assert record.duration <= settings.stream_deadline + _TERMINAL_EVENT_TIMEOUT
    if not caller.gone and not unread:
        assert record.pings == result.pings
        if record.status == 200:
            assert record.bytes_sent == len(caller.body) - result.pings * len(world.encoder.ping)
    match record.outcome:
        case "cancelled":
            assert caller.gone
            assert record.code is None
            assert record.status in (200, CLIENT_CLOSED_REQUEST)
            assert caller.status is None or caller.status == record.status, "the record's status is not what was sent"
        case "completed":
            assert record.code is None
            assert record.status == 200
            assert unread or record.reason is None
        case outcome:
            assert outcome == "failed"
            assert record.code in _STATUS
            assert record.reason
    if record.code == UPSTREAM_TIMEOUT.code and "was silent" in (record.reason or ""):
        # The model service counts as silent while the stream could have taken what it sends.
        pings = {world.encoder.ping}
        active = [it.last_progress for it in world.backends if it.last_progress < world.recorded_at]
        active += [when for when, content in caller.writes if content not in pings and when < world.recorded_at]
        assert world.recorded_at - max(active, default=world.began) >= settings.upstream_silence_timeout, (
            "it was not silent for so long"
        )
    _check_output(world, record)
    answering = _answering(world)
    last = next((it for it in reversed(world.backends) if it.asked), None)
    told = result.outcome == "error" and caller.status == 200
    told = told and isinstance(world.stream._decoder, _TEXT_DECODERS)  # the other wires have no usage in an error
    if answering is not None and answering is last and answering.usage_delivered and told:
        assert result.usage == Usage(3, 2).members() or answering.last_step == world.recorded_at, "the usage is lost"
    if "stop reading" not in world.scenario.caller and not caller.gone:
        _check_pings(world, record)


def _check_output(world: World, record: Record) -> None:
    """What the record has of the answer: when its text came, and what it cost."""
    answering = _answering(world)
    if answering is None:
        assert record.usage is None
        return
    decoder = world.stream._decoder
    if (
        answering.text_times
        and not isinstance(decoder, DocumentDecoder | ResponseDecoder)
        and record.outcome == "completed"
    ):
        assert record.time_to_first_token == answering.output_times[0] - world.began
        if "stop reading" not in world.scenario.caller and isinstance(decoder, _TEXT_DECODERS):
            gaps = [later - earlier for earlier, later in itertools.pairwise(answering.output_times)]
            assert record.largest_gap == max(gaps, default=0.0)
    if not answering.output_times and isinstance(decoder, _TEXT_DECODERS):
        assert record.time_to_first_token is None
    if answering.usage_delivered and record.outcome == "completed":
        too_late = answering.last_step == world.recorded_at  # it arrived in the moment of the end
        assert (record.usage, record.usage_estimated) == (Usage(3, 2), False) or too_late
    elif record.outcome == "completed":
        assert record.usage is None or record.usage.output_tokens == len(answering.text_times)
        assert record.usage_estimated == (record.usage is not None)
    assert record.response_id == decoder.id
    assert record.response_model == decoder.model
    assert record.finish_reason == decoder.finish_reason


def _check_pings(world: World, record: Record) -> None:
    """A ping at a commit without text, and then only after a full interval without anything."""
    writes, ping = world.caller.writes, world.encoder.ping
    if not ping or world.caller.status != 200 or world.encoder.whole:
        assert record.pings == 0
        return
    assert world.responded_at is not None
    answering = _answering(world)
    if answering is not None and answering.complete and not answering.output_times:
        return  # what commits the response is an answer without text
    silent = answering is None or not answering.output_times or answering.output_times[0] > world.responded_at
    if silent and world.recorded_at > world.responded_at:
        assert writes[0] == (world.responded_at, ping), "no ping at the commit"
    for (earlier, _), (later, content) in itertools.pairwise(writes):
        if content == ping:
            assert later - earlier == pytest.approx(world.settings.ping_interval), "a ping at the wrong time"


def _refuses_addition(script: Sequence[UpstreamStep]) -> bool:
    return bool(script) and isinstance(script[0], Refusal) and script[0].error is not None


def _check_failover(world: World, record: Record) -> None:
    """Backends are asked in their order, and one more only after a failure that it may make good: once each, and once
    more where they refused something that the app had added."""
    asked = [it for it in world.backends if it.asked]
    assert asked == world.backends[: len(asked)], "asked out of order"
    repeats = sum(it.asked - 1 for it in asked)
    for it in asked:
        assert it.asked <= 1 + _refuses_addition(world.scenario.upstream[it.index]), "asked twice"
    assert len(record.refusals) in (len(asked) + repeats, len(asked) + repeats - 1)
    for it, script in zip(asked[:-1], world.scenario.upstream, strict=False):
        assert not it.delivered, "another backend was asked after text had gone out"
        assert not (it.reasoning and world.shows_reasoning), "another backend was asked after reasoning had gone out"
        begun = script[it.asked - 1] if len(script) >= it.asked else None
        if isinstance(begun, Refusal):
            # Refused for this app's addition once more, it is no bad request of the caller's.
            assert begun.problem.code in _RETRYABLE or begun.error, "a bad request was asked elsewhere"
        else:
            assert isinstance(begun, Headers | Break | None)
    if asked:
        assert record.backend == asked[-1].name
    for it, backend in zip(world.backends, world.pool, strict=True):
        refusal = next((step for step in world.scenario.upstream[it.index][:1] if isinstance(step, Refusal)), None)
        if (not it.asked and it.index not in world.scenario.on_probation) or (
            it is asked[-1] and record.outcome == "completed"
        ):
            assert not backend.rank()[0], f"{it.name} is on probation without a failure"
        if it.answer is not None:
            returned = it is asked[-1] and record.outcome == "completed" and "did not read" not in (record.reason or "")
            assert it.answer.state == ("returned" if returned else "closed")
        if it is asked[-1] and record.code == UPSTREAM_TIMEOUT.code:
            assert backend.rank()[0], "a silent backend is asked first again"
        if it in asked[:-1] and world.loop.time() - asked[it.index + 1].asked_at < _SHORTEST_PROBATION:
            assert backend.rank()[0], f"{it.name} is asked first again"
            assert refusal is None or (backend.cooling_down() is not None) == (refusal.retry_after is not None)
        if refusal is not None and not refusal.retryable and record.code == refusal.problem.code:
            assert not backend.rank()[0], "a bad request puts its backend on probation"
