"""What a caller may use: counted in this process, reserved by estimate before an answer, settled by its true usage.

Each limit is a bucket that leaks: what is used is added, and runs out at the rate of the limit (the generic cell rate
algorithm). So a caller that pauses may use the whole limit at once, and from then on what runs out; within any time `t`
it uses at most `limit + limit * t / period`.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from relay.callers.door import Identity
from relay.callers.settings import Limits
from relay.problems import RATE_LIMITED, Problem
from relay.usage import Usage

MINUTE: Final = 60.0  # seconds
DAY: Final = 86400.0
# Callers whose use is remembered; of more, as only sign-in can bring them, those that have used nothing are forgotten.
_MAX_ACCOUNTS: Final = 10_000
_LOOKED_AT: Final = 16  # accounts, for each new one, to find an idle one
_ROUNDING: Final = 1e-6  # of a request or a token: sums of fractions are not exact

# Seconds to wait for the end of one of the caller's own streams, which no one knows.
STREAM_WAIT: Final = 1.0


class Bucket:
    """One limit: `capacity` within `period` seconds. `now` is in seconds of a clock that may stand still."""

    __slots__ = ("_at", "_rate", "_used", "capacity", "period")

    def __init__(self, capacity: float, period: float) -> None:
        self.capacity = capacity
        self.period = period
        self._rate = capacity / period
        self._used = 0.0
        self._at = -math.inf

    def used(self, now: float) -> float:
        """What is used now; more than the capacity where answers took more than was reserved for them."""
        if now > self._at:  # a clock that goes back gives nothing away
            if self._used:
                left = self._used - (now - self._at) * self._rate
                self._used = left if left > 0.0 else 0.0
            self._at = now
        return self._used

    def add(self, amount: float, now: float) -> None:
        """Note a use, or give back what was not used (negative)."""
        used = self.used(now) + amount
        self._used = used if used > 0.0 else 0.0

    def set(self, used: float, now: float) -> None:
        """Replace what is used, by what is known of all instances together."""
        self.used(now)
        self._used = max(0.0, used)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much can be used; 0: now. An amount beyond the capacity needs an empty bucket."""
        capacity = self.capacity
        excess = self.used(now) + (amount if amount < capacity else capacity) - capacity
        return excess / self._rate if excess > _ROUNDING else 0.0

    def remaining(self, now: float) -> int:
        """What can be used now, in whole requests or tokens."""
        left = int(self.capacity - self.used(now) + _ROUNDING)
        return left if left > 0 else 0

    def reset(self, now: float) -> float:
        """Seconds until nothing is used any more."""
        return self.used(now) / self._rate


@dataclass(slots=True)
class Cost:
    """What one request takes of its caller's limits; it is one stream as well."""

    tokens: float
    requests: float = 1.0


class Account:
    """The use of one caller in this process, and what its requests usually take."""

    __slots__ = (
        "day",
        "limits",
        "mean_output",
        "minute",
        "requests",
        "streams",
        "streams_elsewhere",
        "token_buckets",
        "tokens_per_byte",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = _bucket(limits.requests_per_minute, MINUTE)
        self.minute = _bucket(limits.tokens_per_minute, MINUTE)
        self.day = _bucket(limits.tokens_per_day, DAY)
        self.token_buckets = tuple(bucket for bucket in (self.minute, self.day) if bucket is not None)
        self.streams = 0
        self.streams_elsewhere = 0  # on other instances, where that is known
        self.tokens_per_byte = _TOKENS_PER_BYTE
        self.mean_output = _MEAN_OUTPUT

    def estimate(self, body_bytes: int) -> float:
        """The tokens that a request with a body of this size will take, by the caller's last ones."""
        return body_bytes * self.tokens_per_byte + self.mean_output

    def learn(self, body_bytes: int, usage: Usage) -> None:
        """Take an answer's true usage into the estimates."""
        if body_bytes:
            ratio = min(_MOST_TOKENS_PER_BYTE, usage.input_tokens / body_bytes)
            self.tokens_per_byte += _LEARNING * (ratio - self.tokens_per_byte)
        self.mean_output += _LEARNING * (usage.output_tokens - self.mean_output)

    def wait(self, cost: Cost, now: float) -> float:
        """Seconds until the caller may make such a request; 0: now."""
        wait = STREAM_WAIT if self.is_streaming_enough else 0.0
        if self.requests is not None:
            wait = max(wait, self.requests.wait(cost.requests, now))
        for bucket in self.token_buckets:
            wait = max(wait, bucket.wait(cost.tokens, now))
        return wait

    @property
    def is_streaming_enough(self) -> bool:
        """Whether as many streams are open as may be."""
        return self.limits.streams is not None and self.streams + self.streams_elsewhere >= self.limits.streams

    def begin(self, cost: Cost, now: float) -> None:
        """Note a request that begins."""
        self.streams += 1
        if self.requests is not None:
            self.requests.add(cost.requests, now)
        self.add_tokens(cost.tokens, now)

    def add_tokens(self, tokens: float, now: float) -> None:
        """Note tokens, or give them back (negative)."""
        for bucket in self.token_buckets:
            bucket.add(tokens, now)

    def is_idle(self, now: float) -> bool:
        """Whether nothing is used, so that a new account is the same."""
        buckets = (*self.token_buckets, *([] if self.requests is None else [self.requests]))
        return self.streams == 0 and all(bucket.used(now) == 0 for bucket in buckets)

    def headers(self, now: float) -> dict[str, str]:
        """The headers of a response, by the names and formats of OpenAI's API ("Rate limits", "Headers").

        Of two limits of tokens they describe the one of which less remains.
        """
        headers: dict[str, str] = {}
        if self.requests is not None:
            headers["x-ratelimit-limit-requests"] = str(int(self.requests.capacity))
            headers["x-ratelimit-remaining-requests"] = str(self.requests.remaining(now))
            headers["x-ratelimit-reset-requests"] = duration(self.requests.reset(now))
        if self.token_buckets:
            tokens = self.token_buckets[0]
            for other in self.token_buckets[1:]:
                if other.remaining(now) < tokens.remaining(now):
                    tokens = other
            headers["x-ratelimit-limit-tokens"] = str(int(tokens.capacity))
            headers["x-ratelimit-remaining-tokens"] = str(tokens.remaining(now))
            headers["x-ratelimit-reset-tokens"] = duration(tokens.reset(now))
        return headers


# Before anything is known of a caller. A token is about four bytes; an answer of 256 tokens is about 200 words.
_TOKENS_PER_BYTE: Final = 0.25
_MOST_TOKENS_PER_BYTE: Final = 4.0
_MEAN_OUTPUT: Final = 256.0
_LEARNING: Final = 0.2  # the weight of the last answer


def _bucket(capacity: int | None, period: float) -> Bucket | None:
    return None if capacity is None else Bucket(capacity, period)


def duration(seconds: float) -> str:
    """As OpenAI's API writes it: 20ms, 1s, 6m0s, 1h0m0s."""
    if seconds <= _ROUNDING:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000 - _ROUNDING)}ms"
    whole = math.ceil(seconds - _ROUNDING)
    if whole < 60:
        return f"{whole}s"
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{minutes}m{whole}s"


class Reservation:
    """What one request has taken of its caller's limits; `settle` corrects it once, by what was really used.

    `headers` tell the caller what is left of its limits. `store_away`: by this instance's count alone, since the store
    of all instances did not answer.
    """

    __slots__ = ("_account", "_body_bytes", "_cost", "_limiter", "_name", "headers", "store_away")

    def __init__(self, limiter: "Limiter", name: str, account: Account, cost: Cost, body_bytes: int) -> None:
        self._limiter: Limiter | None = limiter
        self._name = name
        self._account = account
        self._cost = cost
        self._body_bytes = body_bytes
        self.headers: dict[str, str] = {}
        self.store_away = False

    def settle(self, usage: Usage | None, *, estimated: bool = False, answering: bool = False) -> None:
        """Note the end of the request. `usage` is what it used; `estimated`: not counted by the model service.

        None: nothing was, unless the model service was `answering`: then it has read the prompt.
        """
        limiter, self._limiter = self._limiter, None
        if limiter is None:
            return
        if usage is not None:
            used: float = usage.input_tokens + usage.output_tokens
            if not estimated and self._cost.tokens:
                self._account.learn(self._body_bytes, usage)
        else:
            used = self._body_bytes * self._account.tokens_per_byte if answering and self._cost.tokens else 0.0
        limiter.end(self._name, self._account, used - self._cost.tokens)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request beyond its caller's limits."""

    problem: Problem
    headers: dict[str, str]


class SharedLimits(Protocol):
    """What all instances of the app know of their callers' use (`relay.callers.shared_limits`)."""

    async def begin(self, name: str, account: Account, cost: Cost) -> float | None:
        """Reserve for a request: 0, or the seconds until it can be; None where the store does not answer."""
        ...

    def count_locally(self, name: str, cost: Cost) -> None:
        """Note a request that was admitted after `begin` gave None."""
        ...

    def end(self, name: str, account: Account, tokens: float) -> None:
        """Note the end of a request that took so many tokens more than were reserved for it (or less: negative)."""
        ...


_OVER_LIMIT: Final = replace(RATE_LIMITED, title="A limit of this caller is reached")


class Limiter:
    """The accounts of all callers that have limits. `clock` gives seconds and never goes back by itself."""

    def __init__(self, shared: SharedLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._clock = clock
        self._accounts: dict[str, Account] = {}  # the one that was used the longest ago first

    async def reserve(
        self, identity: Identity, body_bytes: int, *, counts_tokens: bool = True
    ) -> Reservation | Refused:
        """Reserve what a request with a body of this size will take, or refuse it with the time to wait.

        `counts_tokens`: False for a request that generates nothing.
        """
        name = identity.caller.name
        account = self._account(name, identity.caller.limits)
        cost = Cost(account.estimate(body_bytes) if counts_tokens else 0.0)
        wait = None if self._shared is None else await self._shared.begin(name, account, cost)
        now = self._clock()
        is_local = wait is None
        if wait is None:
            wait = account.wait(cost, now)
        if wait > 0:
            seconds = max(1, math.ceil(wait - _ROUNDING))
            detail = f"{_reached(account, cost, now)} Try again in {seconds} s."
            return Refused(_OVER_LIMIT.with_detail(detail).with_retry_after(seconds), account.headers(now))
        account.begin(cost, now)
        reservation = Reservation(self, name, account, cost, body_bytes)
        if self._shared is not None and is_local:
            reservation.store_away = True
            self._shared.count_locally(name, cost)
        reservation.headers = account.headers(now)
        return reservation

    def end(self, name: str, account: Account, tokens: float) -> None:
        """Note the end of a request, and its tokens beyond what was reserved for it (or less: negative)."""
        account.streams -= 1
        account.add_tokens(tokens, self._clock())
        if self._shared is not None:
            self._shared.end(name, account, tokens)

    def _account(self, name: str, limits: Limits) -> Account:
        account = self._accounts.pop(name, None)
        if account is None:
            account = Account(limits)
            if len(self._accounts) >= _MAX_ACCOUNTS:
                self._forget()
        self._accounts[name] = account
        return account

    def _forget(self) -> None:
        """Make place: of a few that were used the longest ago, those that are idle; otherwise the oldest without a
        stream, whose use is then forgotten."""
        now = self._clock()
        oldest = list(itertools.islice(self._accounts, _LOOKED_AT))
        idle = [name for name in oldest if self._accounts[name].is_idle(now)]
        for name in idle or [name for name in oldest if self._accounts[name].streams == 0][:1]:
            del self._accounts[name]


def _reached(account: Account, cost: Cost, now: float) -> str:
    """Which limit it is."""
    limits = account.limits
    if account.is_streaming_enough:
        return f"The limit is {limits.streams} streams at a time."
    if account.requests is not None and account.requests.wait(cost.requests, now) > 0:
        return f"The limit is {limits.requests_per_minute} requests a minute."
    if account.day is not None and account.day.wait(cost.tokens, now) > 0:
        return f"The limit is {limits.tokens_per_day} tokens a day."
    if account.minute is not None and account.minute.wait(cost.tokens, now) > 0:
        return f"The limit is {limits.tokens_per_minute} tokens a minute."
    return "A limit is reached, on all instances of the app together."
