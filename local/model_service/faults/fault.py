"""One fault, and a fault with its arguments."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from local.model_service.errors import ErrorResponse
from local.model_service.reply import Reply
from local.model_service.steps import Frame, Step

type Arguments = tuple[float, ...]
type Steps = Iterator[Step]
type StepChange = Callable[[Steps, Reply, Arguments], Steps]
type Splitter = Callable[[bytes | None], Iterable[bytes]]  # bytes in, the pieces to write out; None: the response's end


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. Each of the functions changes one thing about a response; where it is None, nothing."""

    name: str
    description: str
    defaults: Arguments = ()  # of the arguments; a name may carry as many as there are defaults
    error: Callable[[Arguments], ErrorResponse] | None = None  # the whole response
    steps: StepChange | None = None
    frame: Frame | None = None
    split: Callable[[Arguments], Splitter] | None = None
    text: Callable[[Arguments], Sequence[str]] | None = None  # the answer, as tokens
    content_type: str | None = None
    unpaced: bool = False
    refuse: Callable[[dict[str, Any], Arguments], ErrorResponse | None] | None = None  # the request, by its body
    lenient: bool = False  # no request is invalid
    ignored: frozenset[str] = frozenset()  # parameters that have no effect
    breaks: bool = False  # the response is not complete and correct: its record ends as "fault"


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault with its arguments, as a name asks for it."""

    fault: Fault
    arguments: Arguments
