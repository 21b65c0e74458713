"""The responses that an account keeps: by id, for later retrieval, and as the context of a following request."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from local.model_service.encoding import Document

MAX_RESPONSES = 1_000  # the oldest ones are forgotten beyond
MAX_BYTES = 256 * 1024 * 1024  # of their contexts together

type Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
RUNNING: tuple[Status, ...] = ("queued", "in_progress")


@dataclass(slots=True)
class Progress:
    """How far the events of a response have been generated; those who wait for more of them are woken."""

    made: int = 0  # events
    ended: bool = False
    _waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def advance(self) -> None:
        """One more event was generated."""
        self.made += 1
        self._wake()

    def end(self) -> None:
        """No more events follow."""
        self.ended = True
        self._wake()

    async def past(self, number: int) -> None:
        """Wait until the event with this number was generated, or no more events follow."""
        while self.made <= number and not self.ended:
            changed = asyncio.get_running_loop().create_future()
            self._waiters.add(changed)
            try:
                await changed
            finally:
                self._waiters.discard(changed)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


@dataclass(slots=True)
class StoredResponse:
    """One response, whether it is still being generated or not."""

    id: str
    deployment: str
    background: bool
    streamed: bool
    input_items: Sequence[Document] = ()  # with those of the responses before it
    size: int = 0  # bytes of JSON of all its items
    reply: Any = None  # what makes its document and its events
    status: Status = "in_progress"
    completed_at: int | None = None
    output: Sequence[Document] = ()
    progress: Progress = field(default_factory=Progress)
    task: asyncio.Task[None] | None = None  # of a background response

    def finish(self, status: Status, now: int, output: Sequence[Document] = ()) -> None:
        """Set the final status; only the first one counts."""
        if self.status in RUNNING:
            self.status, self.output = status, output
            self.completed_at = now if status == "completed" else None

    def cancel(self, now: int) -> None:
        """End the generation."""
        self.finish("cancelled", now)
        self.progress.end()
        if self.task is not None:
            self.task.cancel()

    @property
    def items(self) -> Iterator[Document]:
        """All items of the conversation up to the end of this response."""
        yield from self.input_items
        yield from self.output


class ResponseStore:
    """The stored responses of one account, in the order of their creation."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def get(self, response_id: str) -> StoredResponse | None:
        """The response with this id."""
        return self._responses.get(response_id)

    def item(self, item_id: str) -> Document | None:
        """The latest item with this id, an input item or an output item of a stored response."""
        for response in reversed(self._responses.values()):
            for item in response.items:
                if item.get("id") == item_id:
                    return item
        return None

    def add(self, response: StoredResponse) -> None:
        """Keep a response; the oldest ones go where there is no room for all."""
        self._responses[response.id] = response
        size = sum(one.size for one in self._responses.values())
        while len(self._responses) > MAX_RESPONSES or (size > MAX_BYTES and len(self._responses) > 1):
            _, oldest = self._responses.popitem(last=False)
            oldest.cancel(0)
            size -= oldest.size

    def delete(self, response_id: str) -> None:
        """Forget a response, and end its generation; it need not be kept here."""
        if (forgotten := self._responses.pop(response_id, None)) is not None:
            forgotten.cancel(0)

    def forget_ended(self) -> None:
        """Forget every response that is not being generated."""
        for response_id in [one.id for one in self._responses.values() if one.status not in RUNNING]:
            del self._responses[response_id]

    def cancel_all(self) -> None:
        """End the generation of every response."""
        for response in self._responses.values():
            response.cancel(0)

    def __len__(self) -> int:
        return len(self._responses)

    def __iter__(self) -> Iterator[StoredResponse]:
        """The responses, the oldest first."""
        return iter(tuple(self._responses.values()))
