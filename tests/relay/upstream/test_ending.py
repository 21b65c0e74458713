"""What an ending means: each cell of the table."""

import itertools

import pytest

from relay.problems import UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, Problem
from relay.upstream.ending import Ending, Judgement, State


def judgement(state: State) -> Judgement:
    made = Judgement()
    made.begun = state is not State.NOTHING
    made.doubtful = state is State.DOUBTFUL
    if state is State.COMPLETE:
        made.finish()
    assert made.state is state
    return made


COMPLETE = {
    *((ending, State.COMPLETE) for ending in Ending),
    (Ending.MARKER, State.UNDERSTOOD),
}
INTERRUPTED = {
    (Ending.CLEAN, State.UNDERSTOOD),
    (Ending.CLEAN, State.DOUBTFUL),
    *((Ending.BROKEN, state) for state in State if state is not State.COMPLETE),
}


@pytest.mark.parametrize(("ending", "state"), itertools.product(Ending, State))
def test_the_table(ending: Ending, state: State) -> None:
    verdict = judgement(state).at(ending)
    if (ending, state) in COMPLETE:
        assert verdict is None
        return
    assert verdict is not None
    problem, reason = verdict
    expected: Problem = UPSTREAM_INTERRUPTED if (ending, state) in INTERRUPTED else UPSTREAM_ERROR
    assert problem is expected
    assert reason


def test_several_answers_are_complete_when_each_is() -> None:
    several = Judgement(2)
    several.finish(1)
    several.finish(1)
    assert (several.complete, several.state) == (False, State.UNDERSTOOD)
    several.finish(0)
    assert several.complete


def test_a_finish_reason_outweighs_doubt() -> None:
    doubtful = Judgement()
    doubtful.doubtful = True
    assert doubtful.state is State.NOTHING
    doubtful.finish()
    assert doubtful.state is State.COMPLETE
