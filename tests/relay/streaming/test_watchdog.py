"""The timer of a stream, on a clock that the test moves."""

import heapq
import itertools
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from relay.streaming import watchdog as watchdog_module
from relay.streaming.watchdog import Watchdog


class FakeLoop:
    """An event loop's clock and timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.set_timers = 0
        self._timers: list[tuple[float, int, Callable[[], None], SimpleNamespace]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> SimpleNamespace:
        handle = SimpleNamespace(cancelled=False, when=when)
        handle.cancel = lambda: setattr(handle, "cancelled", True)
        self.set_timers += 1
        heapq.heappush(self._timers, (when, next(self._numbers), callback, handle))
        return handle

    @property
    def pending(self) -> list[float]:
        """The times of the timers that are set, since the beginning."""
        return sorted(when - 1000.0 for when, _, _, handle in self._timers if not handle.cancelled)

    def advance(self, seconds: float) -> None:
        """Let time pass, and fire the timers that become due."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, callback, handle = heapq.heappop(self._timers)
            if not handle.cancelled:
                self.now = max(self.now, when)
                callback()
        self.now = end


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    monkeypatch.setattr(watchdog_module, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    return loop


class Watched:
    """A watchdog, and the calls that it makes with their times since the beginning."""

    def __init__(
        self, loop: FakeLoop, *, deadline: float = 100, silence_timeout: float = 40, ping_interval: float | None = 15
    ) -> None:
        self.calls: list[tuple[float, str]] = []

        def note(name: str) -> Callable[[], None]:
            return lambda: self.calls.append((loop.now - 1000.0, name))

        self.watchdog = Watchdog(
            deadline=deadline,
            silence_timeout=silence_timeout,
            ping_interval=ping_interval,
            on_deadline=note("deadline"),
            on_silence=note("silence"),
            on_ping=note("ping"),
        )


class TestDeadline:
    def test_it_is_called_once_at_its_time(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=30)
        loop.advance(29.75)
        assert watched.calls == []
        loop.advance(0.25)
        assert watched.calls == [(30, "deadline")]
        loop.advance(1000)
        assert watched.calls == [(30, "deadline")]
        assert loop.pending == []

    def test_it_does_not_depend_on_what_the_stream_does(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=30, silence_timeout=10)
        for _ in range(29):
            loop.advance(1)
            watched.watchdog.last_received = watched.watchdog.last_written = loop.now
            watched.watchdog.awaiting_upstream = False
        assert watched.calls == []
        loop.advance(1)
        assert watched.calls == [(30, "deadline")]

    def test_it_precedes_a_silence_at_the_same_time(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=40, silence_timeout=40)
        watched.watchdog.awaiting_upstream = True
        loop.advance(1000)
        assert watched.calls == [(40, "deadline")]


class TestSilence:
    def test_it_is_called_once_at_its_time(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        watched.watchdog.awaiting_upstream = True
        loop.advance(39.75)
        assert watched.calls == []
        loop.advance(0.25)
        assert watched.calls == [(40, "silence")]
        loop.advance(1000)
        assert watched.calls == [(40, "silence")]
        assert loop.pending == []

    def test_it_is_measured_from_the_last_receipt(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        watched.watchdog.awaiting_upstream = True
        loop.advance(30)
        watched.watchdog.last_received = loop.now
        loop.advance(39.75)
        assert watched.calls == []
        loop.advance(0.25)
        assert watched.calls == [(70, "silence")]

    def test_a_stream_that_is_writing_is_not_silent(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        loop.advance(60)
        assert watched.calls == []
        watched.watchdog.awaiting_upstream = True
        loop.advance(0.75)
        assert watched.calls == []
        loop.advance(0.25)
        assert watched.calls == [(61, "silence")], "it is looked at again every second"

    def test_while_it_can_not_be_called_the_deadline_still_is(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=60.5)
        loop.advance(1000)
        assert [name for _, name in watched.calls] == ["deadline"]
        assert 60.5 <= watched.calls[0][0] <= 61.5


class TestPings:
    def test_none_before_they_are_enabled(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        watched.watchdog.awaiting_upstream = True
        loop.advance(39)
        assert watched.calls == []
        assert loop.pending == [40]

    def test_one_for_each_interval_from_then_on(self, loop: FakeLoop) -> None:
        watched = Watched(loop, silence_timeout=1000)
        watched.watchdog.awaiting_upstream = True
        loop.advance(10)
        watched.watchdog.enable_pings()
        loop.advance(14.75)
        assert watched.calls == []
        loop.advance(50.25)
        assert watched.calls == [(25, "ping"), (40, "ping"), (55, "ping"), (70, "ping")]

    def test_the_interval_begins_with_the_last_write(self, loop: FakeLoop) -> None:
        watched = Watched(loop, silence_timeout=1000)
        watched.watchdog.awaiting_upstream = True
        watched.watchdog.enable_pings()
        loop.advance(10)
        watched.watchdog.last_written = loop.now
        loop.advance(14.75)
        assert watched.calls == []
        loop.advance(0.25)
        assert watched.calls == [(25, "ping")]

    def test_none_while_the_stream_is_writing(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        watched.watchdog.enable_pings()
        loop.advance(20)
        assert watched.calls == []
        watched.watchdog.awaiting_upstream = True
        loop.advance(1)
        assert watched.calls == [(21, "ping")], "it is looked at again every second"

    def test_they_do_not_end_a_silence(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        watched.watchdog.awaiting_upstream = True
        watched.watchdog.enable_pings()
        loop.advance(1000)
        assert watched.calls == [(15, "ping"), (30, "ping"), (40, "silence")]

    def test_none_in_a_format_without_them(self, loop: FakeLoop) -> None:
        watched = Watched(loop, ping_interval=None)
        watched.watchdog.awaiting_upstream = True
        watched.watchdog.enable_pings()
        loop.advance(30)
        watched.watchdog.last_received = loop.now
        loop.advance(39)
        assert watched.calls == []
        assert loop.pending == [70]

    def test_enabling_them_leaves_one_timer(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        assert loop.pending == [40]
        loop.advance(10)
        watched.watchdog.enable_pings()
        assert loop.pending == [25]
        assert watched.watchdog.last_written == loop.now


class TestTimer:
    def test_it_is_not_set_anew_for_each_token(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        for _ in range(1000):
            loop.advance(0.05)
            watched.watchdog.last_received = loop.now
        assert loop.set_timers <= 3
        assert watched.calls == []

    def test_it_is_set_to_the_next_thing_that_is_due(self, loop: FakeLoop) -> None:
        watched = Watched(loop)
        watched.watchdog.awaiting_upstream = True
        loop.advance(20)
        watched.watchdog.last_received = loop.now
        loop.advance(20)
        assert loop.pending == [60]
        watched.watchdog.last_received = loop.now + 15
        loop.advance(20)
        assert loop.pending == [95]
        watched.watchdog.last_received = loop.now + 30
        loop.advance(35)
        assert loop.pending == [100]

    def test_what_can_not_be_done_now_is_looked_at_again_after_a_second(self, loop: FakeLoop) -> None:
        Watched(loop)
        loop.advance(40)
        assert loop.pending == [41]
        loop.advance(1)
        assert loop.pending == [42]

    @pytest.mark.parametrize("pings", [False, True])
    def test_stopping_it(self, loop: FakeLoop, pings: bool) -> None:
        watched = Watched(loop)
        watched.watchdog.awaiting_upstream = True
        if pings:
            watched.watchdog.enable_pings()
        loop.advance(30)
        watched.watchdog.stop()
        assert loop.pending == []
        watched.calls.clear()
        loop.advance(1000)
        assert watched.calls == []

    def test_a_stopped_one_keeps_no_callback(self, loop: FakeLoop) -> None:
        class Stream:
            def end(self) -> None: ...

        streams = [Stream(), Stream(), Stream()]
        references = [weakref.ref(stream) for stream in streams]
        on_deadline, on_silence, on_ping = (stream.end for stream in streams)
        watchdog = Watchdog(
            deadline=10,
            silence_timeout=10,
            ping_interval=1,
            on_deadline=on_deadline,
            on_silence=on_silence,
            on_ping=on_ping,
        )
        watchdog.stop()
        del on_deadline, on_silence, on_ping
        streams.clear()
        assert [reference() for reference in references] == [None, None, None]


def test_the_elapsed_time(loop: FakeLoop) -> None:
    watched = Watched(loop)
    assert watched.watchdog.elapsed == 0
    assert watched.watchdog.started == watched.watchdog.last_received == watched.watchdog.last_written == 1000
    assert watched.watchdog.awaiting_upstream is False
    loop.advance(12.5)
    assert watched.watchdog.elapsed == 12.5


class TestLowerSilence:
    """Behind a finish reason the model service has less time to end its answer."""

    def test_it_holds_until_the_model_service_is_asked_again(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=1000, silence_timeout=100)
        watched.watchdog.awaiting_upstream = True
        watched.watchdog.lower_silence_timeout(5.0)
        loop.advance(4.0)
        watched.watchdog.begin_silence()
        loop.advance(99.0)
        assert watched.calls == []
        loop.advance(1.0)
        assert watched.calls == [(104.0, "silence")]

    def test_it_is_measured_from_the_last_receipt(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=1000, silence_timeout=100)
        watched.watchdog.awaiting_upstream = True
        loop.advance(3.0)
        watched.watchdog.lower_silence_timeout(5.0)
        watched.watchdog.lower_silence_timeout(50.0)
        assert loop.set_timers == 2
        loop.advance(2.0)
        assert watched.calls == [(5.0, "silence")]

    def test_a_shorter_one_stays(self, loop: FakeLoop) -> None:
        watched = Watched(loop, deadline=1000, silence_timeout=2)
        watched.watchdog.awaiting_upstream = True
        watched.watchdog.lower_silence_timeout(5.0)
        loop.advance(2.0)
        assert watched.calls == [(2.0, "silence")]
