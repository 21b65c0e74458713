"""The pool of backends: the choice among them, fail-over, cool-down and probation, and the connections they share."""

import asyncio
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.problems import (
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_ERROR,
    UPSTREAM_TIMEOUT,
    FieldError,
)
from relay.settings import BackendSettings, Identity, Settings
from relay.upstream import pool as pool_module
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, BackendPool, Failover
from relay.upstream.request import UpstreamRequest

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

    def test_the_rank(self, clock: Clock) -> None:
        (backend,) = backends(clock, 7)
        backend.load = 3
        assert backend.rank() == (False, 7, 3)
        backend.record_refusal(BROKEN)
        assert backend.rank() == (True, 7, 3)


class TestCoolDown:
    def test_a_backend_is_not_asked_for_as_long_as_it_requested(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2)
        pool[0].record_refusal(busy(30))
        assert names(Failover("m", list(pool))) == ["b1"]
        clock.now += 29.9
        assert names(Failover("m", list(pool))) == ["b1"]
        clock.now += 0.2
        assert names(Failover("m", list(pool)))[0] == "b0"

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

    def test_has_more_ignores_backends_that_cool_down(self, clock: Clock) -> None:
        pool = backends(clock, 1, 2, 3)
        failover = Failover("m", list(pool))
        failover.next()
        pool[1].record_refusal(busy(30))
        assert failover.has_more()
        pool[2].record_refusal(busy(30))
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
        clock.now += 10  # after its probation
        failover = Failover("m", list(pool))
        assert failover.next() is pool[1]
        assert failover.attempts == 1
        assert [it.load for it in pool] == [0, 1]
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
    for pause, results in history:
        clock.now += pause
        failover = Failover("m", list(pool))
        asked: list[Backend] = []
        refused: list[Refusal] = []
        for refusal in itertools.chain(results, itertools.repeat(BROKEN)):
            backend = failover.next()
            if backend is None:
                break
            assert backend not in asked, "more than one pass"
            assert cool_downs.get(backend.settings.name, 0.0) <= clock.now, "asked while cooling down"
            assert backend.load == 1
            asked.append(backend)
            if refusal is None:
                backend.record_success()
                failover.release()
                break
            failover.record_refusal(refusal)
            refused.append(refusal)
            if refusal.retry_after:
                until = clock.now + refusal.retry_after
                cool_downs[backend.settings.name] = max(cool_downs.get(backend.settings.name, 0.0), until)
        else:
            raise AssertionError("the pass has no end")
        assert all(backend.load == 0 for backend in pool)
        assert failover.attempts == len(asked)
        if len(refused) == len(asked):  # no answer: all were asked or cool down
            cooling_down = [name for name, until in cool_downs.items() if until > clock.now]
            assert {it.settings.name for it in asked} | set(cooling_down) == {it.settings.name for it in pool}
            if cooling_down:
                soonest = min(cool_downs[name] for name in cooling_down) - clock.now
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
    assert await backend.open(request, "request-1") is BROKEN
    assert asked == [("two", request, "the-deployment", "request-1")]


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

    def client(self, endpoint: str, credential: Any, session: FakeSession) -> Any:
        self.clients.append((endpoint, credential, session))
        return SimpleNamespace(endpoint=endpoint)


ONE, TWO = "https://one.example.com/v1/", "https://two.example.com/v1/"
SEVERAL = (
    BackendSettings("a", ONE, "mini-1", "mini"),
    BackendSettings("b", TWO, "mini-2", "mini", 2),
    BackendSettings("c", TWO, "large", "large"),
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


def test_the_module_that_is_imported() -> None:
    module = pool_module._import_connection()
    assert module.__name__ == "relay.upstream.connection"
    assert {"EntraToken", "ModelServiceClient", "create_session"} <= set(vars(module))
