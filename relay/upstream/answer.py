"""An upstream answer that has begun, as the rest of the app sees it.

Apart from `relay.upstream.client`, so that importing it does not import the HTTP libraries.
"""

from typing import Protocol

from relay.problems import Problem


class Answer(Protocol):
    """An answer that has begun. Its owner must `end` or `close` it."""

    async def read(self) -> bytes:
        """All bytes that have arrived; waits where there are none; empty at the end.

        Raises one of `connection_errors` when the connection breaks. Cancelling it loses no bytes.
        """
        ...

    def read_remaining(self) -> bytes:
        """After `read` has raised: the bytes that had arrived before the connection broke."""
        ...

    @property
    def connection_errors(self) -> tuple[type[Exception], ...]:
        """What `read` raises."""
        ...

    @property
    def media_type(self) -> str:
        """The answer's media type, without parameters; its bytes show what was sent."""
        ...

    def redact(self, problem: Problem) -> Problem:
        """The same problem, without the model service's address and credential in the text of an upstream error."""
        ...

    def close(self) -> None:
        """Abort the answer at once; the model service sees its client disconnect."""
        ...

    async def end(self) -> None:
        """Return the connection to the pool, once the end of the body has arrived."""
        ...
