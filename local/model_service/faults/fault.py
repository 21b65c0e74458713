"""One fault, and a fault with its arguments."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from local.model_service.errors import ErrorResponse
from local.model_service.reply import Reply
from local.model_service.steps import Frame, Step

type Arguments = tuple[float, ...]
type MakeError = Callable[[Arguments], ErrorResponse]
type Steps = Iterator[Step]
type StepChange = Callable[[Steps, Reply, Arguments], Steps]
type ReplyChange = Callable[[Reply, Arguments], None]
type Splitter = Callable[[bytes | None], Iterable[bytes]]  # bytes in, the pieces to write out; None: the response's end


# The names of the wires that generate something.
CHAT = frozenset({"chat"})
RESPONSES = frozenset({"responses"})
EMBEDDINGS = frozenset({"embeddings"})
STREAMING = CHAT | RESPONSES
EVERY_WIRE = STREAMING | EMBEDDINGS


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. Each of the functions changes one thing about a response; where it is None, nothing.

    A fault says what happens; how it looks is up to the wire (`Reply`). `wires`: those on which it can happen.
    """

    name: str
    description: str
    defaults: Arguments = ()  # of the arguments; a name may carry as many as there are defaults
    error: MakeError | None = None  # the whole response
    reply: ReplyChange | None = None  # the reply before its first step: how its answer ends, how it is encoded
    steps: StepChange | None = None
    frame: Frame | None = None
    split: Callable[[Arguments], Splitter] | None = None
    text: Callable[[Arguments], Sequence[str]] | None = None  # the answer, as tokens
    content_type: str | None = None
    headers: Callable[[Arguments], Mapping[str, str]] | None = None  # beside the usual ones
    connection: Callable[[Arguments], Steps] | None = None  # the whole response, as bytes past the HTTP server
    unpaced: bool = False
    refuse: Callable[[dict[str, Any], Arguments], ErrorResponse | None] | None = None  # the request, by its body
    lenient: bool = False  # no request is invalid
    ignored: frozenset[str] = frozenset()  # parameters that have no effect
    breaks: bool = False  # the response is not complete and correct: its record ends as "fault"
    wires: frozenset[str] = EVERY_WIRE
    errors: Mapping[str, MakeError] = field(default_factory=dict)  # by wire, in place of `error`


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault with its arguments, as a name asks for it."""

    fault: Fault
    arguments: Arguments

    def error(self, wire: str) -> ErrorResponse | None:
        """The error that replaces the response on the wire; None: this fault does something else."""
        make = self.fault.errors.get(wire, self.fault.error)
        return make(self.arguments) if make else None
