"""An event loop whose clock is virtual: time passes only when a test says so, and never while a callback is ready."""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any


class DeadlockError(RuntimeError):
    """Nothing is ready, no timer is set and no test waits for that: the loop would wait for ever."""


class _VirtualSelector(selectors.BaseSelector):
    """Waits for no file; instead it lets a test know that all is at rest, or moves the clock to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at_rest: asyncio.Future[None] | None = None
        self._registered: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._registered[fileobj] = selectors.SelectorKey(fileobj, fileobj, events, data)
        return self._registered[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._registered.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._registered

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return []  # callbacks are ready
        if self.at_rest is not None:
            waiter, self.at_rest = self.at_rest, None
            waiter.set_result(None)
            return []
        if timeout is None:
            raise DeadlockError
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual. `rest` and `advance` are for the one coroutine that conducts the test."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now

    async def rest(self) -> None:
        """Return when no other callback is ready; time does not pass."""
        self._virtual.at_rest = self.create_future()
        await self._virtual.at_rest

    async def advance(self) -> bool:
        """Move the clock to the next timer and let it fire; False, and nothing happens, where no timer is set."""
        timers = [handle.when() for handle in self.timers()]
        if not timers:
            return False
        self._virtual.now = max(self._virtual.now, min(timers))
        await asyncio.sleep(0)  # the loop collects the timers that are due
        return True

    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are set."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [handle for handle in scheduled if not handle.cancelled()]


def run[T](main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a new virtual loop, as `asyncio.run` does on a real one."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
