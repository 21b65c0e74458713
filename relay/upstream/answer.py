"""What a model service gives back: an answer that has begun, as bytes, or a refusal.

Apart from `relay.upstream`, so that what only speaks of them need not wait for the HTTP libraries to be imported.
"""

from dataclasses import dataclass
from typing import Protocol

from relay.problems import Problem


@dataclass(frozen=True, slots=True)
class Refusal:
    """The model service gave no answer.

    `elsewhere`: another deployment may still give one. `retry_after`: seconds that this one asked to be left alone,
    bounded. `reason` is for the log, never for a caller. `status` is the one of the model service, if it gave one.
    """

    problem: Problem
    reason: str
    elsewhere: bool = False
    retry_after: float | None = None
    status: int | None = None


class Answer(Protocol):
    """An answer that has begun. Whoever got it must end it or close it."""

    async def read(self) -> bytes:
        """All bytes that have arrived; waits where there are none; empty at the end.

        Raises one of `broken` when the connection breaks. It may be cancelled, and loses nothing by it.
        """
        ...

    def rest(self) -> bytes:
        """After `read` has raised: all bytes that had arrived before the connection broke."""
        ...

    @property
    def broken(self) -> tuple[type[Exception], ...]:
        """What `read` raises."""
        ...

    @property
    def media_type(self) -> str:
        """The answer's media type, without parameters."""
        ...

    def close(self) -> None:
        """Abort the answer at once; the model service sees its caller leave."""
        ...

    async def end(self) -> None:
        """Give the connection back for the next request, once the answer's end has come."""
        ...
