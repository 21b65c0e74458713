"""The choice among the deployments of a model: one pass, nobody who rests, the least loaded, the soonest."""

import itertools
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay import backends
from relay.backends import Backend, Route
from relay.problems import RATE_LIMITED, UPSTREAM_ERROR
from relay.settings import BackendSettings
from relay.upstream import Refusal

BUSY: Final = Refusal(RATE_LIMITED, "429", elsewhere=True, status=429)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "500", elsewhere=True, status=500)


class Clock:
    """Time as the test has it, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backends, "time", clock)
    return clock


def deployments(*priorities: int) -> list[Backend]:
    return [
        Backend(BackendSettings(f"b{number}", "http://h/v1/", "d", "m", priority), {})
        for number, priority in enumerate(priorities)
    ]


def busy(seconds: float) -> Refusal:
    return replace(BUSY, problem=RATE_LIMITED.after(round(seconds)), retry_after=seconds)


def names(route: Route, refusal: Refusal = BROKEN) -> list[str]:
    """Whom a request asks when everybody refuses."""
    asked = []
    while (backend := route.next()) is not None:
        asked.append(backend.settings.name)
        route.refused(refusal)
    return asked


def test_by_priority_then_by_load(clock: Clock) -> None:
    pool = deployments(2, 1, 1)
    pool[1].load = 1
    assert names(Route("m", list(pool))) == ["b2", "b1", "b0"]
    assert [backend.load for backend in pool] == [0, 1, 0]


def test_who_asked_to_be_left_alone_is(clock: Clock) -> None:
    pool = deployments(1, 2)
    pool[0].refused(busy(30))
    assert names(Route("m", list(pool))) == ["b1"]
    clock.now += 29.9
    assert names(Route("m", list(pool))) == ["b1"]
    clock.now += 0.2
    assert names(Route("m", list(pool)))[0] == "b0"


def test_a_shorter_wish_does_not_shorten_a_rest(clock: Clock) -> None:
    (backend,) = deployments(1)
    backend.refused(busy(30))
    backend.refused(busy(1))
    clock.now += 5
    assert backend.resting() is not None


def test_who_answers_again_is_not_in_doubt(clock: Clock) -> None:
    pool = deployments(1, 2)
    pool[0].refused(BROKEN)
    assert names(Route("m", list(pool)))[0] == "b1"
    clock.now += 60
    pool[0].refused(BROKEN)
    pool[0].answered()
    assert names(Route("m", list(pool)))[0] == "b0"


def test_a_rest_keeps_its_reason(clock: Clock) -> None:
    (backend,) = deployments(1)
    backend.refused(busy(100))
    backend.refused(BROKEN)
    route = Route("m", [backend])
    assert route.next() is None
    assert route.outcome().problem.code == RATE_LIMITED.code
    assert route.outcome().problem.retry_after == 100


REFUSALS: Final = st.one_of(
    st.just(BROKEN), st.just(BUSY), st.builds(busy, st.integers(1, 120).map(float)), st.just(replace(BUSY))
)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 40), st.lists(REFUSALS | st.none(), min_size=4, max_size=4)), max_size=12),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history(clock: Clock, priorities: list[int], history: list[tuple[float, list[Refusal | None]]]) -> None:
    """Requests one after the other, each told what it meets: None is an answer."""
    pool = deployments(*priorities)
    rests: dict[str, float] = {}
    for pause, meets in history:
        clock.now += pause
        route = Route("m", list(pool))
        asked: list[Backend] = []
        told: list[Refusal] = []
        for refusal in itertools.chain(meets, itertools.repeat(BROKEN)):
            backend = route.next()
            if backend is None:
                break
            assert backend not in asked, "one pass"
            assert rests.get(backend.settings.name, 0.0) <= clock.now, "it asked to be left alone"
            assert backend.load == 1
            asked.append(backend)
            if refusal is None:
                backend.answered()
                route.leave()
                break
            route.refused(refusal)
            told.append(refusal)
            if refusal.retry_after:
                until = clock.now + refusal.retry_after
                rests[backend.settings.name] = max(rests.get(backend.settings.name, 0.0), until)
        else:
            raise AssertionError("the pass has no end")
        assert all(backend.load == 0 for backend in pool)
        assert route.attempts == len(asked)
        if len(told) == len(asked):  # nobody answered: all were asked, or rest
            resting = [name for name, until in rests.items() if until > clock.now]
            assert {backend.settings.name for backend in asked} | set(resting) == {it.settings.name for it in pool}
            if resting:
                soonest = min(rests[name] for name in resting) - clock.now
                retry_after = route.outcome().problem.retry_after
                assert retry_after is not None
                assert soonest - 1 <= retry_after <= soonest + 1
