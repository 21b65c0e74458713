"""How an answer ended: one judgement for every wire, made of what was received of it and of how its bytes ended.

A decoder notes what it reads (`Judgement`); the table says what that means once the bytes have ended. An error in the
answer is not in it, as it decides at once, wherever it is (`relay.upstream.failures`).
"""

from enum import Enum
from typing import Final

from relay.problems import UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, Problem


class Ending(Enum):
    """How the bytes of an answer ended."""

    MARKER = "[DONE]"  # the wire's marker that nothing follows
    CLEAN = "the end of the body"
    BROKEN = "a broken connection"


class State(Enum):
    """What was received of an answer."""

    COMPLETE = "all of it: each of its choices has a finish reason that is no error"
    UNDERSTOOD = "a part of it, and nothing else"
    DOUBTFUL = "a part of it, and something that was not understood"
    NOTHING = "no part of it"


_NO_ANSWER: Final = (UPSTREAM_ERROR, "the model service's answer has no part that is understood")
_CUT: Final = (UPSTREAM_INTERRUPTED, "the model service's answer ended without a finish reason")
_BROKEN: Final = (UPSTREAM_INTERRUPTED, "the model service's answer broke off")

# None: complete. Otherwise the problem, and the reason for the log.
_TABLE: Final[dict[Ending, dict[State, tuple[Problem, str] | None]]] = {
    Ending.MARKER: {
        State.COMPLETE: None,
        State.UNDERSTOOD: None,
        State.DOUBTFUL: (
            UPSTREAM_ERROR,
            "events of the model service's answer are not understood, and it has no finish reason",
        ),
        State.NOTHING: _NO_ANSWER,
    },
    Ending.CLEAN: {
        State.COMPLETE: None,
        State.UNDERSTOOD: _CUT,
        State.DOUBTFUL: _CUT,
        State.NOTHING: _NO_ANSWER,
    },
    Ending.BROKEN: {
        State.COMPLETE: None,
        State.UNDERSTOOD: _BROKEN,
        State.DOUBTFUL: _BROKEN,
        State.NOTHING: _BROKEN,
    },
}


class Judgement:
    """What is known of one answer, as far as its ending depends on it.

    `choices` is how many answers were asked for at once: it is complete when each has its finish reason. `begun`: a
    part of it was understood, which every answer has. `doubtful`: something in it was not understood, so that only the
    finish reason tells that it is complete.
    """

    __slots__ = ("_choices", "_finished", "begun", "complete", "doubtful")

    def __init__(self, choices: int = 1) -> None:
        self.begun = False
        self.doubtful = False
        self.complete = False
        self._choices = choices
        self._finished: set[int] = set()

    def finish(self, choice: int = 0) -> None:
        """Note a finish reason, which is no error, of this choice."""
        self.begun = True
        self._finished.add(choice)
        self.complete = len(self._finished) >= self._choices

    @property
    def state(self) -> State:
        """What was received up to now."""
        if self.complete:
            return State.COMPLETE
        if not self.begun:
            return State.NOTHING
        return State.DOUBTFUL if self.doubtful else State.UNDERSTOOD

    def at(self, ending: Ending) -> tuple[Problem, str] | None:
        """None where the answer is complete, given that its bytes ended like this; otherwise the problem and why."""
        return _TABLE[ending][self.state]
