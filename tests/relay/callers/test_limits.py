"""The limits of a caller: never exceeded by more than what was not foreseen, refused with a true time, settled once."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.callers import limits as limits_module
from relay.callers.door import Identity
from relay.callers.limits import Account, Bucket, Cost, Limiter, Refused, Reservation, duration
from relay.callers.settings import Limits, NamedCaller
from relay.usage import Usage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def identity(name: str = "team-a", **limits: int) -> Identity:
    return Identity(NamedCaller(name, limits=Limits(**limits)), "key:00000000")


async def reserve(limiter: Limiter, who: Identity, body_bytes: int = 400, **options: Any) -> Reservation:
    reserved = await limiter.reserve(who, body_bytes, **options)
    assert isinstance(reserved, Reservation), reserved
    return reserved


async def refuse(limiter: Limiter, who: Identity, body_bytes: int = 400) -> Refused:
    refused = await limiter.reserve(who, body_bytes)
    assert isinstance(refused, Refused)
    assert (refused.problem.status, refused.problem.code) == (429, "rate_limited")
    return refused


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock=clock)


async def test_requests_a_minute(limiter: Limiter, clock: Clock) -> None:
    who = identity(requests_per_minute=3)
    headers = [(await reserve(limiter, who)).headers for _ in range(3)]
    assert headers[0] == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
    }
    assert headers[2]["x-ratelimit-remaining-requests"] == "0"
    assert headers[2]["x-ratelimit-reset-requests"] == "1m0s"
    clock.now += 0.5
    refused = await refuse(limiter, who)
    assert refused.problem.retry_after == 20
    assert refused.problem.title == "A limit of this caller is reached"
    assert refused.problem.detail == "The limit is 3 requests a minute. Try again in 20 s."
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 18.9
    assert (await refuse(limiter, who)).problem.retry_after == 1
    clock.now += 0.6
    await reserve(limiter, who)
    await refuse(limiter, who)


async def test_other_callers_are_not_concerned(limiter: Limiter) -> None:
    await reserve(limiter, identity(requests_per_minute=1))
    await refuse(limiter, identity(requests_per_minute=1))
    await reserve(limiter, identity("team-b", requests_per_minute=1))


async def test_streams_at_a_time(limiter: Limiter) -> None:
    who = identity(streams=2)
    first, second = await reserve(limiter, who), await reserve(limiter, who)
    refused = await refuse(limiter, who)
    assert refused.problem.retry_after == 1
    assert refused.problem.detail.startswith("The limit is 2 streams at a time.")
    assert refused.headers == {}
    first.settle(None)
    first.settle(None)
    await reserve(limiter, who)
    await refuse(limiter, who)
    second.settle(Usage(1, 1))
    await reserve(limiter, who)


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
async def test_tokens_are_reserved_by_estimate_and_settled_by_usage(limiter: Limiter, clock: Clock, limit: str) -> None:
    who = identity(**{limit: 1000})
    reservation = await reserve(limiter, who)  # 400 bytes are about 100 tokens, and an answer has about 256
    assert reservation.headers["x-ratelimit-limit-tokens"] == "1000"
    assert reservation.headers["x-ratelimit-remaining-tokens"] == "644"
    reservation.settle(Usage(300, 600))
    reservation.settle(Usage(300, 600))
    account = limiter._accounts["team-a"]
    (bucket,) = account.token_buckets
    assert bucket.remaining(clock.now) == 100
    refused = await refuse(limiter, who)
    assert refused.problem.detail.startswith(f"The limit is 1000 tokens a {limit.removeprefix('tokens_per_')}.")
    period = 60 if limit == "tokens_per_minute" else 86400
    assert account.estimate(400) == pytest.approx(400 * 0.35 + 256 * 0.8 + 600 * 0.2)
    assert refused.problem.retry_after == math.ceil((account.estimate(400) - 100) * period / 1000)


async def test_an_estimated_usage_counts_and_teaches_nothing(limiter: Limiter, clock: Clock) -> None:
    who = identity(tokens_per_minute=1000)
    before = (await reserve(limiter, who))._account.estimate(400)
    reservation = await reserve(limiter, who)
    reservation.settle(Usage(100, 1), estimated=True)
    account = limiter._accounts["team-a"]
    assert account.minute is not None
    assert account.minute.used(clock.now) == pytest.approx(356 + 101)
    assert account.estimate(400) == before


@pytest.mark.parametrize(("answering", "used"), [(False, 0.0), (True, 100.0)])
async def test_without_a_usage_the_prompt_counts_if_it_was_read(
    limiter: Limiter, clock: Clock, answering: bool, used: float
) -> None:
    reservation = await reserve(limiter, identity(tokens_per_minute=1000))
    reservation.settle(None, answering=answering)
    account = limiter._accounts["team-a"]
    assert account.minute is not None
    assert account.minute.used(clock.now) == pytest.approx(used)


async def test_a_request_that_generates_nothing_takes_no_tokens(limiter: Limiter, clock: Clock) -> None:
    who = identity(tokens_per_minute=1000, requests_per_minute=5)
    reservation = await reserve(limiter, who, counts_tokens=False)
    assert reservation.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert reservation.headers["x-ratelimit-remaining-requests"] == "4"
    reservation.settle(None, answering=True)
    assert reservation._account.minute is not None
    assert reservation._account.minute.used(clock.now) == 0


async def test_a_request_beyond_the_whole_limit_has_it_to_itself(limiter: Limiter, clock: Clock) -> None:
    """It would never be served otherwise; what it uses counts, and the next one waits the longer."""
    who = identity(tokens_per_minute=100)
    reservation = await reserve(limiter, who, 100_000)
    reservation.settle(Usage(25_000, 0))
    refused = await refuse(limiter, who, 0)
    wait = (25_000 + min(100, 256 * 0.8) - 100) * 60 / 100
    assert refused.problem.retry_after == math.ceil(wait)
    clock.now += refused.problem.retry_after or 0
    await reserve(limiter, who, 0)


async def test_the_headers_are_of_the_limit_of_which_less_remains(limiter: Limiter) -> None:
    who = identity(tokens_per_minute=1000, tokens_per_day=900)
    assert (await reserve(limiter, who)).headers["x-ratelimit-limit-tokens"] == "900"
    who = identity("team-b", tokens_per_minute=900, tokens_per_day=1000)
    assert (await reserve(limiter, who)).headers["x-ratelimit-limit-tokens"] == "900"


async def test_a_clock_that_goes_back_gives_nothing_away(limiter: Limiter, clock: Clock) -> None:
    who = identity(requests_per_minute=1)
    await reserve(limiter, who)
    for now in (400.0, 999.9, 1000.0, -1e9, 1000.0, 1059.9):
        clock.now = now
        await refuse(limiter, who)
    clock.now = 1060.0
    await reserve(limiter, who)


async def test_the_estimates_follow_the_caller(limiter: Limiter) -> None:
    """A picture of a megabyte is a thousand tokens, not 250,000."""
    who = identity(tokens_per_day=10**9)
    for _ in range(40):
        (await reserve(limiter, who, 1_000_000)).settle(Usage(1000, 10))
    account = limiter._accounts["team-a"]
    assert account.estimate(1_000_000) == pytest.approx(1010, rel=0.1)
    (await reserve(limiter, who, 0)).settle(Usage(1000, 10))
    (await reserve(limiter, who, 1)).settle(Usage(10**9, 10))
    assert account.tokens_per_byte < 1, "no answer teaches more than four tokens a byte"


async def test_the_memory_is_bounded(limiter: Limiter, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(limits_module, "_MAX_ACCOUNTS", 100)
    streaming = [await reserve(limiter, identity(f"open-{number}", requests_per_minute=9)) for number in range(10)]
    for number in range(1000):
        (await reserve(limiter, identity(f"n-{number}", requests_per_minute=9))).settle(None)
    assert len(limiter._accounts) == 100
    assert all(f"open-{number}" in limiter._accounts for number in range(10)), "an open stream is never forgotten"
    for reservation in streaming:
        reservation.settle(None)
    clock.now += 60
    await reserve(limiter, identity("another", requests_per_minute=9))
    assert len(limiter._accounts) == 100 - 16 + 1, "what is idle is forgotten first"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-9, "0s"),
        (0.0171, "18ms"),
        (0.02, "20ms"),
        (0.9999, "1000ms"),
        (1, "1s"),
        (1.1, "2s"),
        (59.5, "1m0s"),
        (60, "1m0s"),
        (366, "6m6s"),
        (3600, "1h0m0s"),
        (86399.2, "24h0m0s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ── Every schedule ───────────────────────────────────────────────────────────────────────────────────────────────────

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0, 100)),
        st.tuples(st.just("back"), st.floats(0, 100)),
        st.tuples(st.just("ask"), st.integers(0, 4000)),
        st.tuples(st.just("settle"), st.tuples(st.integers(0, 30), st.integers(0, 2000))),
        st.tuples(st.just("unknown"), st.tuples(st.integers(0, 30), st.booleans())),
    ),
    max_size=60,
)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "requests_per_minute": st.integers(1, 20),
        "tokens_per_minute": st.integers(1, 5000),
        "tokens_per_day": st.integers(1, 20_000),
        "streams": st.integers(1, 5),
    },
)


@settings(max_examples=300, deadline=None)
@given(LIMITS, STEPS)
def test_every_schedule(limits: dict[str, int], steps: Sequence[tuple[str, Any]]) -> None:
    """Against a model that adds up all that was admitted, over every stretch of time."""
    clock, now = Clock(), 1000.0
    limiter = Limiter(clock=clock)
    who = identity(**limits)
    known = limiter._account("team-a", who.caller.limits)
    for bucket in (known.requests, known.minute, known.day):
        if bucket is not None:
            bucket.used(now)  # the clock goes back from a time that was seen
    open_streams: list[tuple[Reservation, int]] = []
    admitted: list[float] = []
    tokens: list[tuple[float, float]] = []  # what was used, and when it was known

    def check(limit: str, uses: Sequence[tuple[float, float]], period: float, largest: float) -> None:
        if limit not in limits:
            return
        capacity = limits[limit]
        for first in range(len(uses)):
            total = 0.0
            for when, amount in uses[first:]:
                total += amount
                assert total <= capacity * (1 + (when - uses[first][0]) / period) + largest + 1e-3

    async def run() -> None:
        nonlocal now
        for step, value in steps:
            match step:
                case "pass":
                    now = clock.now = now + value
                case "back":
                    clock.now = now - value
                case "ask":
                    account = limiter._account("team-a", who.caller.limits)
                    cost = account.estimate(value)
                    outcome = await limiter.reserve(who, value)
                    if isinstance(outcome, Reservation):
                        open_streams.append((outcome, value))
                        admitted.append(now)
                        tokens.append((now, cost))
                    else:
                        wait = outcome.problem.retry_after
                        assert wait is not None
                        assert wait >= 1
                        if "streams" in limits and len(open_streams) >= limits["streams"]:
                            continue
                        saved = clock.now
                        clock.now = now + wait
                        assert account.wait(Cost(cost), clock.now) == 0, "the time to wait is too short"
                        clock.now = saved
                        # The account has seen a later time by now, so that the run goes on from there.
                        now += wait
                case "settle" if open_streams:
                    reservation, _ = open_streams.pop(value[0] % len(open_streams))
                    tokens.append((now, value[1] - reservation._cost.tokens))
                    reservation.settle(Usage(value[1], 0))
                case "unknown" if open_streams:
                    reservation, size = open_streams.pop(value[0] % len(open_streams))
                    used = size * reservation._account.tokens_per_byte if value[1] else 0.0
                    tokens.append((now, used - reservation._cost.tokens))
                    reservation.settle(None, answering=value[1])
            if "streams" in limits:
                assert len(open_streams) <= limits["streams"]
            clock.now = max(clock.now, now) if step != "back" else clock.now

    asyncio.run(run())
    check("requests_per_minute", [(when, 1.0) for when in admitted], 60, 0)
    account = limiter._account("team-a", who.caller.limits)
    assert account.streams == len(open_streams)
    if all(kind != "settle" for kind, _ in steps):
        # Without an answer that took more than was foreseen, the estimates alone are held; one that is beyond the whole
        # limit has it to itself.
        largest = max((amount for _, amount in tokens), default=0.0)
        for limit, period in (("tokens_per_minute", 60.0), ("tokens_per_day", 86400.0)):
            check(limit, tokens, period, max(0.0, largest - limits.get(limit, 0)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 200)), max_size=40), st.floats(1, 100))
def test_what_is_given_back_is_as_if_it_was_never_taken(uses: list[tuple[float, float]], capacity: float) -> None:
    taken, plain, now = Bucket(capacity, 60), Bucket(capacity, 60), 0.0
    for pause, amount in uses:
        now += pause
        taken.add(amount + 50, now)
        plain.add(amount, now)
        taken.add(-50, now)
        assert taken.used(now) == pytest.approx(plain.used(now))
    assert taken.wait(capacity, now) == pytest.approx(plain.wait(capacity, now), abs=1e-3)


def test_an_account_without_limits_is_never_refused() -> None:
    account = Account(Limits())
    assert account.wait(Cost(1e9), 0.0) == 0
    assert account.headers(0.0) == {}
    assert account.is_idle(0.0)
