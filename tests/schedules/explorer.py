"""Tries the schedules of a scenario: all of them up to a depth, and seeded random ones beyond it."""

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

import relay.streaming.stream as stream_module
from tests.schedules import virtual_loop
from tests.schedules.invariants import check_at_rest, check_end
from tests.schedules.virtual_loop import VirtualLoop
from tests.schedules.world import Scenario, World

_LONGEST = 400  # turns; a schedule that takes more does not come to an end

type Choose = Callable[[list[str]], str]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a schedule: who acts, and how many rounds of the event loop follow (None: until all is at rest)."""

    actor: str
    rounds: int | None = None

    def __str__(self) -> str:
        return self.actor if self.rounds is None else f"{self.actor}/{self.rounds}"

    @classmethod
    def parse(cls, text: str) -> "Turn":
        actor, _, rounds = text.partition("/")
        return cls(actor, int(rounds) if rounds else None)


class Schedule:
    """The turns of one run; `choose` picks each among the options. What was chosen is kept, for a replay."""

    def __init__(self, choose: Callable[[list[str]], Turn]) -> None:
        self._choose = choose
        self.turns: list[Turn] = []
        self.options: list[list[str]] = []

    def next(self, options: list[str]) -> Turn:
        turn = self._choose(options)
        self.turns.append(turn)
        self.options.append(options)
        return turn

    @property
    def hasty(self) -> bool:
        """Whether the last turn was not followed by rest."""
        return bool(self.turns) and self.turns[-1].rounds is not None

    def __str__(self) -> str:
        return " ".join(map(str, self.turns))


def run(scenario: Scenario, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> World:
    """One run of the scenario by the schedule, with all checks; returns the world as it is at the end."""

    async def main() -> World:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        world = World(scenario, loop)
        monkeypatch.setattr(stream_module, "report", world.report)
        await loop.rest()
        check_at_rest(world)
        while True:
            options = world.options()
            if schedule.hasty:
                # Time does not pass while callbacks are ready: the event loop is not blocked here.
                options = [option for option in options if option != "clock"]
                if not options:
                    await loop.rest()
                    check_at_rest(world)
                    options = world.options()
            if world.over or not options:
                break
            turn = schedule.next(options)
            await world.act(turn.actor)
            if turn.rounds is None:
                await loop.rest()
                check_at_rest(world)
            else:
                for _ in range(turn.rounds):
                    await asyncio.sleep(0)
            assert len(schedule.turns) < _LONGEST, "no end"
        if not world.over and not world.caller.gone:
            world.caller.disconnect()  # a caller who never reads to the end does so at last
        await loop.rest()
        while not world.stream._task.done() and await loop.advance():
            await loop.rest()
        check_end(world)
        return world

    return virtual_loop.run(main())


def explore(scenario: Scenario, depth: int, hasty: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run every schedule whose first `depth` turns differ; at most `hasty` of these are not followed by rest.

    After these turns the parties act in a fixed order. Returns the number of runs. A failure names its schedule, which
    SCHEDULE=… replays.
    """
    runs = 0
    for prefix in _prefixes(scenario, depth, hasty, monkeypatch):
        runs += prefix
    return runs


def _prefixes(scenario: Scenario, depth: int, hasty: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Depth-first over the choices, each run from the start: a stack of the alternatives that are left."""
    stack: list[list[Turn]] = [[]]
    while stack:
        prefix = stack.pop()
        schedule = Schedule(_following(prefix))
        attempt(scenario, schedule, monkeypatch)
        yield 1
        # The alternatives to the turns after the prefix, which are new to this run.
        for position in range(len(prefix), min(depth, len(schedule.turns))):
            taken = schedule.turns[:position]
            spent = sum(turn.rounds is not None for turn in taken)
            for option in schedule.options[position]:
                for rounds in (None, 0) if spent < hasty else (None,):
                    turn = Turn(option, rounds)
                    if turn != schedule.turns[position]:
                        stack.append([*taken, turn])


def _following(prefix: list[Turn]) -> Callable[[list[str]], Turn]:
    remaining = list(prefix)

    def choose(options: list[str]) -> Turn:
        return remaining.pop(0) if remaining else Turn(options[0])

    return choose


def randomly(scenario: Scenario, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run by a random schedule, which the seed decides."""
    dice = random.Random(seed)

    def choose(options: list[str]) -> Turn:
        # The clock would otherwise win as often as all others together.
        weights = [1 if option == "clock" else 4 for option in options]
        return Turn(dice.choices(options, weights)[0], dice.choice((None, None, None, 0, 1, 2, 3)))

    attempt(scenario, Schedule(choose), monkeypatch, f"SCHEDULE_SEED={seed} ")


def attempt(scenario: Scenario, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, how: str = "") -> None:
    """One run; a failure names what replays it."""
    try:
        run(scenario, schedule, monkeypatch)
    except Exception as error:
        raise AssertionError(f"{error}\nreplay: {how}SCHEDULE='{schedule}'") from error


def replayed() -> list[Turn] | None:
    """The schedule of the environment variable SCHEDULE, for the one test that is run with it."""
    text = os.environ.get("SCHEDULE")
    return [Turn.parse(turn) for turn in text.split()] if text else None
