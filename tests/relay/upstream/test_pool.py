"""The pool of backends: the choice among them, fail-over, cool-down and probation, and the connections they share."""

import asyncio
import itertools
import json
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.problems import (
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_ERROR,
    UPSTREAM_TIMEOUT,
    FieldError,
    Problem,
)
from relay.settings import BackendSettings, Identity, Settings, Wire
from relay.upstream import pool as pool_module
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, BackendPool, Failover
from relay.upstream.request import Refused, UpstreamRequest, chat_additions

BUSY: Final = Refusal(RATE_LIMITED, "429", status=429)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "500", status=500)
SILENT: Final = Refusal(UPSTREAM_TIMEOUT, "silent")


class Clock:
    """A clock that the test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def backends(clock: Clock, *priorities: int) -> list[Backend]:
    """Backends b0, b1 and so on, with these priorities."""
    return [
        Backend(BackendSettings(f"b{number}", "http://h/v1/", "d", "m", priority), {}, clock)
        for number, priority in enumerate(priorities)
    ]


def busy(seconds: float) -> Refusal:
    return replace(BUSY, problem=RATE_LIMITED.with_retry_after(round(seconds)), retry_after=seconds)


def names(failover: Failover, refusal: Refusal = BROKEN) -> list[str]:
    """The backends that are asked when each of them refuses."""
    asked = []
    while (backend := failover.next()) is not None:
        asked.append(backend.settings.name)
        failover.record_refusal(refusal)
    return asked


class TestOrder:
    def test_by_priority_then_by_load(self, clock: Clock) -> None:
        pool = backends(clock, 2, 1, 1)
        pool[1].load = 1
        assert names(Failover("m", list(pool))) == ["b2", "b1", "b0"]
        assert [backend.load for backend in pool] == [0, 1, 0]

    def test_by_the_order_of_the_settings_where_all_else_is_equal(self, clock: Clock) -> None:
        assert names(Failover("m", backends(clock, 1, 1, 1))) == ["b0", "b1", "b2"]

    def test_equals_take_turns(self, clock: Clock) -> None:
        pool = backends(clock, 1, 1, 1, 2)
        answered = []
        for _ in range(7):
            failover = Failover("m", list(pool))
            backend = failover.next()
            assert backend is not None
            answered.append(backend.settings.name)
            failover.release()
        assert answered == ["b0", "b1", "b2", "b0", "b1", "b2", "b0"]

    def test_the_load_comes_before_the_turn(self, clock: Clock) -> None:
        pool = backends(clock, 1, 1)
        first, second = Failover("m", list(pool)), Failover("m", list(pool))
        assert first.next() is pool[0]
        assert second.next() is pool[1]
        second.release()
        assert Failover("m", list(pool)).next() is pool[1], "it has less load, though the other's turn is longer ago"

    def test_the_rank(self, clock: Clock) -> None:
        (backend,) = backends(clock, 7)
        assert backend.rank() == (False, 7, 0, 0)
        backend.begin(11)
        assert backend.rank() == (False, 7, 1, 11)
        backend.record_refusal(BROKEN)
        assert backend.rank() == (True, 7, 1, 11)


class TestCoolDown:
    def test_a_backend_is_not_asked_for_as_long_as_it_requested_while_another_answers(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        pool[0].record_refusal(busy(30))
        for _ in range(3):
            assert first_asked(pool) == "b1"
        clock.now += 29.9
        assert first_asked(pool) == "b1"
        clock.now += 0.2
        assert first_asked(pool) == "b0"

    def test_it_ends_at_its_time(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(30))
        clock.now += 29.5
        assert backend.cooling_down() is not None
        clock.now += 0.5
        assert backend.cooling_down() is None

    def test_a_new_backend_is_not_cooling_down(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        clock.now = -5.0  # a monotonic clock may begin anywhere
        assert backend.cooling_down() is None

    def test_a_shorter_request_does_not_shorten_it(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(30))
        backend.record_refusal(busy(1))
        clock.now += 5
        assert backend.cooling_down() is not None

    def test_a_longer_request_extends_it(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(10))
        clock.now += 5
        backend.record_refusal(replace(busy(10), reason="another"))
        clock.now += 9
        assert backend.cooling_down() == Refusal(
            RATE_LIMITED.with_retry_after(1), "another; cooling down for 1.0 s more", retry_after=1.0, status=429
        )

    @pytest.mark.parametrize("refusal", [BUSY, BROKEN, SILENT, busy(0)])
    def test_without_a_request_there_is_none(self, clock: Clock, refusal: Refusal) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(refusal)
        assert backend.cooling_down() is None

    def test_its_refusal_names_the_time_that_is_left(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(30))
        clock.now += 17.75
        assert backend.cooling_down() == Refusal(
            RATE_LIMITED.with_retry_after(13), "429; cooling down for 12.2 s more", retry_after=12.25, status=429
        )

    def test_it_keeps_its_reason(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(100))
        backend.record_refusal(BROKEN)
        backend.begin(1)  # a trial, as long as which there is no other
        failover = Failover("m", [backend])
        assert failover.next() is None
        assert failover.outcome().problem.code == RATE_LIMITED.code
        assert failover.outcome().problem.retry_after == 100

    def test_of_two_equal_requests_the_first_counts(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(replace(busy(30), reason="first"))
        backend.record_refusal(replace(busy(30), reason="second"))
        cooling_down = backend.cooling_down()
        assert cooling_down is not None
        assert cooling_down.reason.startswith("first; ")

    def test_a_success_does_not_end_it(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(30))
        backend.record_success()
        assert backend.cooling_down() is not None


class TestTrials:
    """A backend that cools down is asked where no other one is left, now and then."""

    @pytest.fixture
    def backend(self, clock: Clock) -> Backend:
        (backend,) = backends(clock, 1)
        backend.record_refusal(busy(60))
        return backend

    def test_one_at_a_time(self, backend: Backend) -> None:
        trial, other = Failover("m", [backend]), Failover("m", [backend])
        assert trial.next() is backend
        assert other.next() is None
        assert (trial.attempts, other.attempts, backend.load) == (1, 0, 1)
        assert other.outcome().problem.retry_after == 60
        trial.release()
        assert backend.load == 0

    def test_an_answer_ends_the_cool_down(self, backend: Backend) -> None:
        trial = Failover("m", [backend])
        assert trial.next() is backend
        trial.record_answer()
        assert backend.cooling_down() is None
        assert Failover("m", [backend]).next() is backend
        assert Failover("m", [backend]).next() is backend, "as many as there are"

    def test_after_an_answer_the_next_cool_down_is_tried_at_once(self, backend: Backend, clock: Clock) -> None:
        self.trials(backend, clock, 10)
        clock.now += 6
        trial = Failover("m", [backend])
        assert trial.next() is backend
        trial.record_answer()
        trial.record_refusal(busy(60))
        trial.release()
        assert self.trials(backend, clock, 3) == [0, 1, 3]

    def test_an_answer_to_a_request_from_before_the_cool_down_tells_nothing(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        before = Failover("m", [backend])
        before.next()
        backend.record_refusal(busy(60))
        before.record_answer()
        assert backend.cooling_down() is not None

    def trials(self, backend: Backend, clock: Clock, seconds: int, *, asks: int = 4) -> list[float]:
        """When the backend is asked, in seconds, by so many requests a second, which it all refuses."""
        began = clock.now
        times = []
        while clock.now <= began + seconds:
            failover = Failover("m", [backend])
            if failover.next() is not None:
                times.append(clock.now - began)
                failover.record_refusal(BUSY)
                failover.release()
            clock.now += 1 / asks
        return times

    def test_the_first_is_at_once_and_the_others_are_rarer_each_time(self, backend: Backend, clock: Clock) -> None:
        backend.record_refusal(busy(120))
        assert self.trials(backend, clock, 119) == [0, 1, 3, 7, 15, 31, 61, 91]

    def test_a_caller_who_disconnects_makes_them_no_more_frequent(self, backend: Backend, clock: Clock) -> None:
        for time, asked in ((0, True), (0.5, False), (0.5, True), (1.5, False), (0.5, True)):
            clock.now += time
            failover = Failover("m", [backend])
            assert (failover.next() is backend) is asked
            failover.release()

    def test_a_refusal_without_a_time_gets_that_of_the_cool_down(self, backend: Backend, clock: Clock) -> None:
        clock.now += 20
        trial = Failover("m", [backend])
        trial.next()
        trial.record_refusal(BUSY)
        assert trial.next() is None
        assert trial.outcome().problem == RATE_LIMITED.with_retry_after(40)

    def test_another_backend_is_asked_before(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2, 2)
        pool[0].record_refusal(busy(60))
        assert names(Failover("m", list(pool)), BROKEN) == ["b1", "b2", "b0"]

    def test_a_request_is_a_trial_of_one_backend_only(self, clock: Clock) -> None:
        pool = backends(clock, 1, 1, 1)
        for backend in pool:
            backend.record_refusal(busy(60))
        assert names(Failover("m", list(pool)), BUSY) == ["b0"]
        assert names(Failover("m", list(pool)), BUSY) == ["b1"]
        failover = Failover("m", list(pool))
        assert failover.has_more()
        assert failover.next() is pool[2]
        assert not failover.has_more()
        assert failover.next() is None
        assert failover.outcome().problem.retry_after == 60, "of those that were not asked, too"

    def test_when_one_can_be_tried(self, backend: Backend, clock: Clock) -> None:
        assert backend.can_be_tried()
        assert backend.begin(1)
        assert not backend.can_be_tried()
        clock.now += 1
        assert not backend.can_be_tried()
        backend.end(trial=True)
        assert backend.can_be_tried()
        clock.now += 59
        assert not backend.begin(2), "it cools down no more"
        backend.end(trial=False)
        assert (backend.load, backend.can_be_tried()) == (0, True)


def first_asked(pool: list[Backend]) -> str | None:
    """The backend that a request is sent to, which answers."""
    failover = Failover("m", list(pool))
    backend = failover.next()
    failover.release()
    return None if backend is None else backend.settings.name


class TestProbation:
    def test_a_failed_backend_is_asked_last(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        pool[0].record_refusal(BROKEN)
        assert names(Failover("m", list(pool)), BUSY) == ["b1", "b0"]

    def test_after_an_error_it_lasts_two_seconds(self, clock: Clock) -> None:
        self.check(clock, BROKEN, 2)

    def test_after_a_silence_it_lasts_thirty(self, clock: Clock) -> None:
        self.check(clock, SILENT, 30)

    def check(self, clock: Clock, refusal: Refusal, seconds: float) -> None:
        (backend,) = backends(clock, 1)
        assert not backend.rank()[0]
        backend.record_refusal(refusal)
        clock.now += seconds - 0.25
        assert backend.rank()[0]
        clock.now += 0.25
        assert not backend.rank()[0]

    def test_an_error_does_not_shorten_the_one_after_a_silence(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(SILENT)
        clock.now += 1
        backend.record_refusal(BROKEN)
        clock.now += 28.75
        assert backend.rank()[0]
        clock.now += 0.25
        assert not backend.rank()[0]

    def test_an_error_after_it_begins_another(self, clock: Clock) -> None:
        (backend,) = backends(clock, 1)
        backend.record_refusal(BROKEN)
        clock.now += 1.5
        backend.record_refusal(BROKEN)
        clock.now += 1.75
        assert backend.rank()[0]

    def test_a_clock_that_has_just_begun(self, clock: Clock) -> None:
        clock.now = 0.25
        (backend,) = backends(clock, 1)
        assert not backend.rank()[0]
        backend.record_refusal(BROKEN)
        assert backend.rank()[0]
        backend.record_success()
        assert not backend.rank()[0]

    def test_a_success_ends_it(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        pool[0].record_refusal(BROKEN)
        assert names(Failover("m", list(pool)))[0] == "b1"
        clock.now += 60
        pool[0].record_refusal(BROKEN)
        pool[0].record_success()
        assert names(Failover("m", list(pool)))[0] == "b0"


class TestFailover:
    def test_its_state(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        failover = Failover("m", list(pool))
        assert (failover.model, failover.backend, failover.attempts, failover.has_more()) == ("m", None, 0, True)
        assert failover.next() is failover.backend is pool[0]
        assert (failover.attempts, failover.has_more()) == (1, True)
        assert failover.next() is failover.backend is pool[1]
        assert (failover.attempts, failover.has_more()) == (2, False)
        assert failover.next() is failover.backend is None
        assert failover.attempts == 2

    def test_the_load_lasts_until_the_release(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        failover, other = Failover("m", list(pool)), Failover("m", list(pool))
        failover.next()
        other.next()
        assert [it.load for it in pool] == [2, 0]
        failover.next()
        assert [it.load for it in pool] == [1, 1]
        failover.release()
        failover.release()
        other.release()
        assert [it.load for it in pool] == [0, 0]

    def test_has_more_counts_a_backend_that_cools_down_where_it_can_be_tried(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        failover = Failover("m", list(pool))
        failover.next()
        pool[1].record_refusal(busy(30))
        assert failover.has_more()
        pool[1].begin(1)
        assert not failover.has_more()

    def test_a_refusal_is_recorded_with_the_current_backend(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        failover = Failover("m", list(pool))
        failover.next()
        failover.record_refusal(busy(5))
        assert [it.cooling_down() is None for it in pool] == [False, True]
        failover.release()
        failover.record_refusal(busy(5))
        assert pool[1].cooling_down() is None, "there was no current backend"

    def test_a_backend_that_cools_down_is_no_attempt(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        pool[0].record_refusal(busy(30))
        pool[0].begin(1)
        clock.now += 10  # after its probation
        failover = Failover("m", list(pool))
        assert failover.next() is pool[1]
        failover.record_refusal(BUSY)
        assert failover.next() is None
        assert failover.attempts == 1
        assert failover.outcome().retry_after == 20, "its cool-down counts as its refusal"


class TestOutcome:
    def outcome(self, clock: Clock, *refusals: Refusal) -> Refusal:
        failover = Failover("m", backends(clock, *[1] * len(refusals)))
        for refusal in refusals:
            assert failover.next() is not None
            failover.record_refusal(refusal)
        assert failover.next() is None
        return failover.outcome()

    def test_the_soonest_retry_after(self, clock: Clock) -> None:
        assert self.outcome(clock, busy(30), busy(5), busy(20), BROKEN) == busy(5)
        assert self.outcome(clock, busy(1), busy(0), SILENT) == busy(0)

    def test_else_the_last_that_was_busy(self, clock: Clock) -> None:
        second = replace(BUSY, reason="second")
        assert self.outcome(clock, BUSY, second, BROKEN) is second

    def test_else_the_last(self, clock: Clock) -> None:
        assert self.outcome(clock, SILENT, BROKEN) is BROKEN
        assert self.outcome(clock, BROKEN, SILENT) is SILENT


REFUSALS: Final = st.one_of(
    st.just(BROKEN), st.just(BUSY), st.builds(busy, st.integers(1, 120).map(float)), st.just(replace(BUSY))
)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 40), st.lists(REFUSALS | st.none(), min_size=4, max_size=4)), max_size=12),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history(clock: Clock, priorities: list[int], history: list[tuple[float, list[Refusal | None]]]) -> None:
    """Requests one after the other, each with the results that its backends give: None is an answer."""
    pool = backends(clock, *priorities)
    cool_downs: dict[str, float] = {}
    next_trials: dict[str, float] = {}
    for pause, results in history:
        clock.now += pause
        failover = Failover("m", list(pool))
        asked: list[Backend] = []
        refused: list[Refusal] = []
        trials = 0
        for refusal in itertools.chain(results, itertools.repeat(BROKEN)):
            backend = failover.next()
            if backend is None:
                break
            assert backend not in asked, "more than one pass"
            if cool_downs.get(backend.settings.name, 0.0) > clock.now:  # a trial
                rest = [it for it in pool if it not in asked and it is not backend]
                assert all(it.cooling_down() is not None for it in rest), "asked while another could be"
                assert clock.now >= next_trials.get(backend.settings.name, 0.0), "tried too soon"
                next_trials[backend.settings.name] = clock.now + 1
                trials += 1
            assert backend.load == 1
            asked.append(backend)
            if refusal is None:
                failover.record_answer()
                backend.record_success()
                failover.release()
                if cool_downs.pop(backend.settings.name, 0.0) > clock.now:
                    next_trials.pop(backend.settings.name)
                break
            failover.record_refusal(refusal)
            refused.append(refusal)
            if refusal.retry_after:
                until = clock.now + refusal.retry_after
                cool_downs[backend.settings.name] = max(cool_downs.get(backend.settings.name, 0.0), until)
        else:
            raise AssertionError("the pass has no end")
        assert trials <= 1
        assert all(backend.load == 0 for backend in pool)
        assert failover.attempts == len(asked)
        if len(refused) == len(asked):  # no answer: all were asked or cool down
            cooling_down = [name for name, until in cool_downs.items() if until > clock.now]
            assert {it.settings.name for it in asked} | set(cooling_down) == {it.settings.name for it in pool}
            if cooling_down:
                times = [cool_downs[name] - clock.now for name in cooling_down]
                soonest = min([*times, *(it.retry_after for it in refused if it.retry_after is not None)])
                retry_after = failover.outcome().problem.retry_after
                assert retry_after is not None
                assert soonest - 1 <= retry_after <= soonest + 1


async def test_a_backend_asks_its_endpoint_for_its_deployment() -> None:
    asked = []

    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        async def open(self, *arguments: Any) -> Refusal:
            asked.append((self.name, *arguments))
            return BROKEN

    clients: Any = {"http://one/v1/": Client("one"), "http://two/v1/": Client("two")}
    backend = Backend(BackendSettings("b", "http://two/v1/", "the-deployment", "the-model"), clients)
    request = UpstreamRequest("/path", {}, stream=True)
    on_repeat, on_refusal = asked.clear, asked.copy  # any functions
    assert await backend.open(request, "request-1", on_repeat, on_refusal) is BROKEN  # type: ignore[arg-type]
    assert asked == [("two", request, "the-deployment", "request-1", on_repeat, on_refusal)]


def test_the_clock_is_monotonic_time() -> None:
    (backend,) = [Backend(BackendSettings("b", "e", "d", "m"), {})]
    assert backend._clock is pool_module.time.monotonic


class FakeSession:
    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class FakeConnection:
    """Stands in for `relay.upstream.connection` and notes what is created."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.imports = 0
        self.sessions: list[tuple[Settings, FakeSession]] = []
        self.tokens: list[SimpleNamespace] = []
        self.clients: list[tuple[str, Any, FakeSession]] = []
        self.key_headers: list[str | None] = []
        self.proxies: dict[str, str] = {}
        monkeypatch.setattr(pool_module, "_import_connection", self.import_module)

    def import_module(self) -> Any:
        self.imports += 1
        return SimpleNamespace(
            create_session=self.create_session, EntraToken=self.token, ModelServiceClient=self.client
        )

    def create_session(self, settings: Settings) -> FakeSession:
        session = FakeSession()
        self.sessions.append((settings, session))
        return session

    def token(self, identity: Identity) -> SimpleNamespace:
        token = SimpleNamespace(identity=identity, closed=0)

        async def close() -> None:
            token.closed += 1

        token.close = close
        self.tokens.append(token)
        return token

    def client(self, endpoint: str, credential: Any, session: FakeSession, *, key_header: str | None) -> Any:
        self.clients.append((endpoint, credential, session))
        self.key_headers.append(key_header)
        return SimpleNamespace(endpoint=endpoint, proxy=self.proxies.get(endpoint))


ONE, TWO = "https://one.example.com/v1/", "https://two.example.com/v1/"
SEVERAL = (
    BackendSettings("a", ONE, "mini-1", "mini"),
    BackendSettings("b", TWO, "mini-2", "mini", 2),
    BackendSettings("c", TWO, "large", "large"),
)
WIRES = Settings(
    (
        BackendSettings("a", ONE, "m1", "mixed", 1, "chat"),
        BackendSettings("b", TWO, "m2", "mixed", 2, "responses"),
        BackendSettings("c", TWO, "m3", "mixed", 3, "chat"),
        BackendSettings("d", ONE, "c", "chat"),
        BackendSettings("e", ONE, "r", "responses", 1, "responses"),
        BackendSettings("f", ONE, "e", "embeddings", 1, "embeddings"),
    )
)


class TestBackendPool:
    @pytest.fixture(autouse=True)
    def connection(self, monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
        return FakeConnection(monkeypatch)

    def test_models_and_backends(self) -> None:
        settings = Settings((SEVERAL[0], SEVERAL[2], SEVERAL[1]))
        pool = BackendPool(settings)
        assert pool.settings is settings
        assert pool.models == ("mini", "large")
        assert [backend.settings.name for backend in pool.all()] == ["a", "b", "c"]

    def test_a_pass_over_the_backends_of_a_model(self) -> None:
        pool = BackendPool(Settings(SEVERAL))
        mini, large = ("mini", ["a", "b"]), ("large", ["c"])
        for model, (expected, asked) in (("mini", mini), ("large", large), (None, mini)):
            failover = pool.failover(model)
            assert isinstance(failover, Failover)
            assert failover.model == expected
            assert names(failover, BUSY) == asked
        assert pool.failover("unknown") is MODEL_NOT_FOUND
        again = pool.failover("mini")
        assert isinstance(again, Failover)
        assert again.has_more(), "a pass takes no backend from the next one"

    @pytest.mark.parametrize(
        ("wires", "asked"),
        [
            (("chat", "responses"), {"mixed": ["a", "b", "c"], "chat": ["d"], "responses": ["e"]}),
            (("chat",), {"mixed": ["a", "c"], "chat": ["d"], "responses": ["e"]}),
            (("responses",), {"mixed": ["b"], "chat": ["d"], "responses": ["e"]}),
            (("embeddings",), {"mixed": ["a", "b", "c"], "chat": ["d"], "embeddings": ["f"]}),
        ],
        ids=["stream", "chat", "responses", "embeddings"],
    )
    def test_the_backends_that_have_the_wire_are_asked_and_where_none_is_known_to_all(
        self, wires: tuple[Wire, ...], asked: dict[str, list[str]]
    ) -> None:
        pool = BackendPool(WIRES)
        for model, expected in asked.items():
            failover = pool.failover(model, wires=wires)
            assert isinstance(failover, Failover)
            assert names(failover, BUSY) == expected

    def test_a_model_of_embeddings_generates_no_text(self) -> None:
        wires: tuple[tuple[Wire, ...], ...] = (("chat",), ("responses",), ("chat", "responses"))
        for by in wires:
            problem = BackendPool(WIRES).failover("embeddings", wires=by)
            assert isinstance(problem, Problem)
            assert (problem.code, problem.status) == ("invalid_request", 400)
            assert problem.errors == (
                FieldError(
                    "model",
                    "is a model of embeddings: send it to POST /v1/embeddings, or name a model of text out of "
                    "GET /v1/models",
                ),
            )

    def test_the_wire_is_that_of_the_backend_asked_now(self) -> None:
        failover = BackendPool(WIRES).failover("mixed")
        assert isinstance(failover, Failover)
        found = [failover.wire]
        while failover.next() is not None:
            found.append(failover.wire)
        assert found == ["chat", "chat", "responses", "chat"]
        assert Failover("m", []).wire == "chat"

    async def test_connecting(self, connection: FakeConnection) -> None:
        settings = Settings(SEVERAL, api_key="the-key")
        pool = BackendPool(settings)
        await pool.connect()
        imports = connection.imports
        await pool.connect()
        assert connection.imports == imports, "a connected pool starts another thread"
        ((given, session),) = connection.sessions
        assert given is settings
        assert connection.clients == [(ONE, "the-key", session), (TWO, "the-key", session)]
        assert connection.tokens == []
        assert [pool._clients[it.endpoint].endpoint for it in SEVERAL] == [ONE, TWO, TWO]  # type: ignore[attr-defined]
        assert all(backend._clients is pool._clients for backend in pool.all())

    async def test_the_header_of_the_key(self, connection: FakeConnection) -> None:
        await BackendPool(Settings(SEVERAL, api_key="the-key", api_key_header="api-key")).connect()
        assert connection.key_headers == ["api-key", "api-key"]

    async def test_a_proxy_is_logged_once(self, connection: FakeConnection, capsys: pytest.CaptureFixture[str]) -> None:
        connection.proxies[TWO] = "http://proxy:3128"
        pool = BackendPool(Settings(SEVERAL))
        assert [backend.proxy for backend in pool.all()] == [None, None, None], "not known yet"
        await pool.connect()
        await pool.connect()
        assert [backend.proxy for backend in pool.all()] == [None, "http://proxy:3128", "http://proxy:3128"]
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
            {"event": "proxy", "relay.proxy": "http://proxy:3128"}
        ]

    async def test_concurrent_first_requests_create_one_session(self, connection: FakeConnection) -> None:
        pool = BackendPool(Settings(SEVERAL))
        await asyncio.gather(*(pool.connect() for _ in range(5)))
        assert len(connection.sessions) == 1
        assert len(connection.clients) == 2

    async def test_without_a_key_a_placeholder_is_sent(self, connection: FakeConnection) -> None:
        await BackendPool(Settings(SEVERAL)).connect()
        assert [credential for _, credential, _ in connection.clients] == ["none", "none"]

    async def test_an_identity_is_used_by_all(self, connection: FakeConnection) -> None:
        identity = Identity("managed", "scope")
        await BackendPool(Settings(SEVERAL, identity=identity)).connect()
        (token,) = connection.tokens
        assert token.identity is identity
        assert [credential for _, credential, _ in connection.clients] == [token, token]

    async def test_closing(self, connection: FakeConnection) -> None:
        pool = BackendPool(Settings(SEVERAL, identity=Identity("managed", "scope")))
        await pool.close()  # before any request
        await pool.connect()
        await pool.close()
        ((_, session),) = connection.sessions
        assert (session.closed, connection.tokens[0].closed, pool._clients) == (1, 1, {})
        await BackendPool(Settings(SEVERAL)).close()

    async def test_after_closing_it_can_connect_again(self, connection: FakeConnection) -> None:
        pool = BackendPool(Settings(SEVERAL))
        await pool.connect()
        await pool.close()
        await pool.connect()
        assert len(connection.sessions) == 2

    def test_from_the_environment(self) -> None:
        pool = BackendPool.from_environment({"AZURE_OPENAI_ENDPOINT": ONE, "AZURE_OPENAI_DEPLOYMENTS": "a,b"})
        assert isinstance(pool, BackendPool)
        assert pool.models == ("a", "b")

    def test_a_wrong_environment_is_logged_and_a_problem(self, capsys: pytest.CaptureFixture[str]) -> None:
        environ = {"AZURE_OPENAI_ENDPOINT": ONE, "MAX_OUTPUT_TOKENS": "x", "AZURE_OPENAI_DEPLOYMENTS": "a b"}
        problem = BackendPool.from_environment(environ)
        deployments = (
            "must be names without spaces and quotation marks, for example gpt-5.4-mini (several: separated by commas, "
            "the default one first)."
        )
        tokens = "must be a whole number from 1 to 1000000, for example 16384."
        assert problem == NOT_CONFIGURED.with_errors(
            FieldError("AZURE_OPENAI_DEPLOYMENTS", deployments), FieldError("MAX_OUTPUT_TOKENS", tokens)
        )
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
            {"event": "not_configured", "setting": "AZURE_OPENAI_DEPLOYMENTS", "message": deployments},
            {"event": "not_configured", "setting": "MAX_OUTPUT_TOKENS", "message": tokens},
        ]


def test_the_import_begins_with_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    class Thread:
        def __init__(self, *, target: Any, name: str, daemon: bool) -> None:
            threads.append((target, daemon))

        def start(self) -> None:
            threads.append("started")

    monkeypatch.setattr(pool_module, "threading", SimpleNamespace(Thread=Thread))
    BackendPool(Settings(SEVERAL))
    assert threads == [(pool_module._import_connection, True), "started"]


def test_the_module_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOG", "debug")
    module = pool_module._import_connection()
    assert module.__name__ == "relay.upstream.connection"
    assert {"EntraToken", "ModelServiceClient", "create_session"} <= set(vars(module))
    assert "OPENAI_LOG" not in os.environ


class TestRefusedAdditions:
    """What a deployment refuses of the app's additions: taken back, remembered once it answers, and tried again."""

    UNKNOWN: Final = replace(
        Refusal(INVALID_REQUEST, "400", status=400), error={"message": "unknown", "param": "stream_options"}
    )
    TOO_LARGE: Final = replace(UNKNOWN, error={"message": "max_completion_tokens must be <= 10"})
    NO_ROOM: Final = replace(UNKNOWN, error={"message": "max_completion_tokens: no room in the context"})

    @pytest.fixture
    def backend(self, clock: Clock) -> Backend:
        return Backend(BackendSettings("b", "https://a.openai.azure.com/openai/v1/", "d", "m"), {}, clock)

    @staticmethod
    def request() -> UpstreamRequest:
        additions = chat_additions(stream=True, max_output_tokens=100)
        return UpstreamRequest("/path", {"messages": [], **additions.parameters()}, True, {}, additions)

    def sent(self, failover: Failover) -> dict[str, Any]:
        return failover.adapted(self.request()).parameters

    def test_a_request_is_repeated_without(self, backend: Backend) -> None:
        failover = Failover("m", [backend])
        assert failover.next() is backend
        assert self.sent(failover) == self.request().parameters
        assert failover.repeat_without(self.UNKNOWN)
        assert failover.next() is backend
        assert (failover.attempts, backend.load) == (2, 1)
        assert self.sent(failover) == {"messages": [], "max_completion_tokens": 100}
        assert failover.repeat_without(self.TOO_LARGE)
        assert failover.next() is backend
        assert self.sent(failover) == {"messages": [], "max_completion_tokens": 10}
        assert failover.attempts == 3
        assert failover.next() is None
        assert backend.load == 0

    def test_another_refusal_is_none_of_it(self, backend: Backend) -> None:
        failover = Failover("m", [backend])
        failover.next()
        assert not failover.repeat_without(BROKEN), "before a request"
        self.sent(failover)
        assert not failover.repeat_without(BROKEN)
        assert failover.next() is None

    def test_the_same_refusal_twice_is_not_repeated(self, backend: Backend) -> None:
        failover = Failover("m", [backend])
        failover.next()
        self.sent(failover)
        assert failover.repeat_without(self.UNKNOWN)
        failover.next()
        assert not failover.repeat_without(self.UNKNOWN)

    def test_there_is_an_end(self, backend: Backend) -> None:
        failover = Failover("m", [backend])
        failover.next()
        self.sent(failover)
        repeats = 0
        for most in range(99, 0, -1):
            repeats += failover.repeat_without(replace(self.UNKNOWN, error=f"max_completion_tokens must be <= {most}"))
        assert repeats == 4

    def test_nothing_is_remembered_before_there_is_an_answer(self, backend: Backend) -> None:
        failover = Failover("m", [backend])
        failover.next()
        failover.record_answer()
        self.sent(failover)
        failover.repeat_without(self.UNKNOWN)
        assert not backend.refused
        failover.record_answer()
        assert backend.refused == Refused(frozenset(("stream_options",)))

    def test_what_is_remembered_holds_for_the_next_request(
        self, backend: Backend, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for times in (3, 1, 1):
            failover = Failover("m", [backend])
            failover.next()
            if "stream_options" in self.sent(failover):
                failover.repeat_without(self.UNKNOWN)
                failover.next()
                failover.repeat_without(self.TOO_LARGE)
                failover.next()
            assert self.sent(failover) == {"messages": [], "max_completion_tokens": 10}
            failover.record_answer()
            failover.record_answer()
            assert failover.attempts == times
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
            {
                "event": "refused_additions",
                "relay.backend": "b",
                "relay.refused_additions": ["stream_options", "an output limit above 10"],
            }
        ]

    def test_what_depends_on_the_prompt_is_not_remembered(
        self, backend: Backend, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failover = Failover("m", [backend])
        failover.next()
        self.sent(failover)
        assert failover.repeat_without(self.NO_ROOM)
        assert "max_completion_tokens" not in self.sent(failover)
        failover.record_answer()
        assert not backend.refused
        assert capsys.readouterr().out == ""

    def test_two_requests_learn_two_things(self, backend: Backend) -> None:
        one, other = Failover("m", [backend]), Failover("m", [backend])
        for failover, refusal in ((one, self.UNKNOWN), (other, self.TOO_LARGE)):
            failover.next()
            self.sent(failover)
            failover.repeat_without(refusal)
        one.record_answer()
        other.record_answer()
        assert backend.refused == Refused(frozenset(("stream_options",)), 10)

    def test_after_an_hour_everything_is_tried_again(self, backend: Backend, clock: Clock) -> None:
        backend.remember_refused(Refused(most=10))
        clock.now += 3599
        assert backend.refused == Refused(most=10)
        backend.remember_refused(Refused(most=10))  # known already: the hour does not begin anew
        clock.now += 1
        assert not backend.refused
        backend.remember_refused(Refused(most=5))
        assert backend.refused == Refused(most=5)

    def test_another_backend_gets_all_of_it(self, clock: Clock, backend: Backend) -> None:
        (other,) = backends(clock, 2)
        failover = Failover("m", [backend, other])
        failover.next()
        self.sent(failover)
        failover.repeat_without(self.UNKNOWN)
        failover.next()
        failover.record_refusal(BROKEN)
        assert failover.next() is other
        assert self.sent(failover) == {**self.request().parameters, "max_tokens": 100}, "not Azure's: both limits"
