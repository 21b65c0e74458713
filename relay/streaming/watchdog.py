"""The timer of one stream: pings in a silence, the silence timeout and the deadline.

One timer handle a stream. It is not moved with each token but checks, when it fires, what has become due since.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_RECHECK: Final = 1.0  # seconds after which something that is due but can't be done now is looked at again


def _ignore() -> None:
    pass


class Watchdog:
    """Watches over one stream. All times are in seconds of the event loop's clock.

    `on_deadline` and `on_silence` are called at most once, together; `on_ping` whenever a ping is due. `ping_interval`
    is None for a format without pings. The stream keeps up to date: `last_received` (when the model service last sent
    a part of the answer, or could have), `last_written` (when the caller was last sent something) and
    `awaiting_upstream` (nothing is being written, since the stream waits for the model service).
    """

    def __init__(
        self,
        *,
        deadline: float,
        silence_timeout: float,
        ping_interval: float | None,
        on_deadline: Callable[[], None],
        on_silence: Callable[[], None],
        on_ping: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.started = self._loop.time()
        self.last_received = self.started
        self.last_written = self.started
        self.awaiting_upstream = False
        self._deadline = self.started + deadline
        self._silence_timeout = self._current_silence_timeout = silence_timeout
        self._ping_interval = ping_interval
        self._pings_enabled = False
        self._on_deadline = on_deadline
        self._on_silence = on_silence
        self._on_ping = on_ping
        self._timer = self._loop.call_at(self._next_check(), self._check)

    @property
    def elapsed(self) -> float:
        """Seconds since the stream began."""
        return self._loop.time() - self.started

    def enable_pings(self) -> None:
        """From now on the caller can be sent pings: the first one is due a full interval from now."""
        self._pings_enabled = True
        self.last_written = self._loop.time()
        self._timer.cancel()
        self._timer = self._loop.call_at(self._next_check(), self._check)

    def begin_silence(self) -> None:
        """The model service is asked now, and has the whole silence timeout to begin its answer."""
        self._current_silence_timeout = self._silence_timeout
        self.last_received = self._loop.time()

    def lower_silence_timeout(self, seconds: float) -> None:
        """Let the silence timeout be at most so long, until the model service is asked again."""
        if seconds < self._current_silence_timeout:
            self._current_silence_timeout = seconds
            self._timer.cancel()
            self._timer = self._loop.call_at(self._next_check(), self._check)

    def stop(self) -> None:
        """Call nothing any more, and drop the callbacks: a reference cycle would keep the stream in memory."""
        self._timer.cancel()
        self._on_deadline = self._on_silence = self._on_ping = _ignore

    def _next_check(self) -> float:
        due = min(self._deadline, self.last_received + self._current_silence_timeout)
        if self._ping_interval is not None and self._pings_enabled:
            due = min(due, self.last_written + self._ping_interval)
        return due

    def _check(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self._on_deadline()
            return
        if self.awaiting_upstream:
            if now >= self.last_received + self._current_silence_timeout:
                self._on_silence()
                return
            if (
                self._ping_interval is not None
                and self._pings_enabled
                and now >= self.last_written + self._ping_interval
            ):
                self.last_written = now
                self._on_ping()
        due = self._next_check()
        if due <= now:  # but it can't be done now, since the caller does not read
            due = now + _RECHECK
        self._timer = self._loop.call_at(due, self._check)
