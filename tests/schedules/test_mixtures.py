"""Whatever the backends send, in whatever order: `done` if and only if the answer was complete upstream.

The scripts are random, and the schedules in which they are played. What is complete is decided here, by a few lines of
their own; the invariants of every schedule do the rest: the caller and the record are told the same, no text is lost,
repeated or spliced, and a bad request is asked once.

MIXTURE_SEED=12345 pytest tests/schedules/test_mixtures.py     # replays one
MIXTURES=100000 pytest tests/schedules/test_mixtures.py        # more of them
"""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import pytest

from relay.settings import Wire
from tests.schedules.explorer import randomly
from tests.schedules.test_schedules import (
    BAD,
    BROKEN,
    BUSY,
    CHAT,
    COMMENT,
    COMPLETED,
    CREATED,
    DOCUMENT,
    ERROR,
    FAILED_SILENTLY,
    FILTER,
    FINISH,
    INCOMPLETE,
    NOTHING,
    PING,
    REASONING,
    REFUSED,
    RESPONSE_ERROR,
    RESPONSE_FAILED,
    STREAM,
    UNKNOWN,
    USAGE,
    response_event,
    response_text,
    response_thought,
    scenario,
    text,
)
from tests.schedules.world import Break, CallerStep, End, Headers, Send, UpstreamStep

GARBAGE: Final = Send(b'data: {"choices":[{"delta":{"con\n\n')
NO_TEXT: Final = response_event(1, "response.function_call_arguments.delta", '"delta":"{"')
FAILED_FINISH: Final = Send(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}\n\n')
NAMED_ERROR: Final = Send(b'event: error\ndata: {"reason":"?"}\n\n')
FLAT_ERROR: Final = Send(b'data: {"choices":null,"error_type":"InternalServerError","error_message":"?"}\n\n')
ERRORS: Final = (ERROR, REFUSED, FAILED_FINISH, NAMED_ERROR, FLAT_ERROR)
OTHERS: Final = (FINISH, FINISH, USAGE, FILTER, COMMENT, PING, UNKNOWN, GARBAGE, NOTHING, NOTHING)
RESPONSE_OTHERS: Final = (
    *(CREATED, CREATED, COMPLETED, COMPLETED, COMPLETED, INCOMPLETE, COMMENT, PING, NO_TEXT),
    *(FAILED_SILENTLY, RESPONSE_FAILED, RESPONSE_ERROR),
)
ENDS: Final = (End(), End(), Break())

MIXTURES: Final = int(os.environ.get("MIXTURES", "400"))
SEED: Final = os.environ.get("MIXTURE_SEED")


def script(dice: random.Random, backend: int) -> list[UpstreamStep]:
    """What one backend does."""
    if dice.random() < 0.2:
        return [dice.choice((BUSY, BROKEN, BROKEN, BAD))]
    steps: list[UpstreamStep] = []
    for number in range(dice.randint(0, 5)):
        draw = dice.random()
        if draw < 0.45:
            steps.append(text(f"{backend}.{number} "))
        else:
            steps.append(dice.choice(ERRORS if draw < 0.55 else OTHERS))
    if dice.random() < 0.9:
        steps.append(dice.choice(ENDS))
    return [Headers(), *judged(steps)]


def response_script(dice: random.Random, backend: int) -> list[UpstreamStep]:
    """The same for a backend that is asked by the Responses API."""
    if dice.random() < 0.2:
        return [dice.choice((BUSY, BROKEN, BROKEN, BAD))]
    steps: list[UpstreamStep] = []
    for number in range(dice.randint(0, 5)):
        draw = dice.random()
        if draw < 0.4:
            steps.append(response_text(number, f"{backend}.{number} "))
        elif draw < 0.5:
            steps.append(response_thought(number, f"{backend}.{number} "))
        else:
            steps.append(dice.choice(RESPONSE_OTHERS))
    if dice.random() < 0.9:
        steps.append(dice.choice(ENDS))
    return [Headers(), *judged_response(steps)]


def judged_response(steps: Sequence[UpstreamStep]) -> Iterator[UpstreamStep]:
    """Only its own event completes a response; one that failed without an error goes on until the next event."""
    failed = False
    for step in steps:
        if not isinstance(step, Send) or not step.progress:
            yield step
        elif failed or step in (RESPONSE_FAILED, RESPONSE_ERROR):
            yield Send(step.content, fails=True)
            return
        else:
            failed = step is FAILED_SILENTLY
            yield replace(step, fails=failed)
            if step.completes:
                return


def judged(steps: Sequence[UpstreamStep]) -> Iterator[UpstreamStep]:
    """The steps up to the end of the answer, with what each means for it."""
    begun = finished = doubtful = False
    for step in steps:
        if isinstance(step, Send):
            if step in ERRORS or (step is GARBAGE and not finished):
                yield replace(step, fails=True)
                return
            if step is NOTHING:
                complete = finished or (begun and not doubtful)
                yield replace(step, completes=complete, fails=not complete)
                return
            begun = begun or bool(step.text) or step is FINISH
            finished = finished or step is FINISH
            doubtful = doubtful or step is UNKNOWN
            if finished and step.text:
                continue  # no server is known to go on behind its own finish reason
            yield replace(step, progress=step.progress and step is not GARBAGE)
        elif isinstance(step, End):
            yield replace(step, completes=finished)
        else:
            yield step


@pytest.mark.parametrize("part", range(4))
def test_any_mixture(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [int(SEED)] if SEED else [random.randrange(2**32) for _ in range(MIXTURES // 4)]
    for seed in seeds:
        dice = random.Random(seed)
        request = dice.choice((STREAM, STREAM, REASONING, CHAT, DOCUMENT))
        caller: tuple[CallerStep, ...] = dice.choice(((), (), (), ("stop reading", "read on"), ("disconnect",)))
        accept = dice.choice((None, "application/x-ndjson", "text/plain"))
        choice: tuple[Wire, ...] = ("chat",) if request is CHAT else ("chat", "responses")
        wires = tuple(dice.choice(choice) for _ in range(dice.randint(1, 3)))
        scripts = {"chat": script, "responses": response_script}
        upstream = [tuple(scripts[wire](dice, backend)) for backend, wire in enumerate(wires)]
        mixture = scenario(*upstream, request=request, caller=caller, accept=accept, wires=wires)
        try:
            randomly(mixture, seed, monkeypatch)
        except AssertionError as error:
            raise AssertionError(f"MIXTURE_SEED={seed}: {upstream}\n{error}") from error
