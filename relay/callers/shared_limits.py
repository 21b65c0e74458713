"""The limits of a caller over all instances of the app: each instance leases a little of what is left, from one store.

The store has, for each caller, the same leaking buckets as `relay.callers.limits`, by the store's own clock. A request
is admitted from the instance's lease, without the store. Where the lease does not suffice, the request waits a moment
for more; it is refused only where the store has no more to give. What is leased is counted as used until it is given
back, so instances together never lease more than the limit; leases grow smaller the less is left.

A store that does not answer is never the reason why a request fails: the instance goes on by its own count, and the
store learns of it afterwards.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from relay import telemetry
from relay.callers.limits import STREAM_WAIT, Account, Bucket, Cost

# The part of a limit that an instance leases beyond what it needs now; never more than that part of what is left.
_SPARE: Final = 1 / 20
_SPARE_OF_A_DAY: Final = 1 / 200

_STORE_WAIT: Final = 0.5  # seconds that a request waits for the store
_LOCAL_FOR: Final = 5.0  # seconds for which no request waits for a store that did not answer
_IDLE: Final = 2.0  # seconds after its caller's last request until a lease is given back
_TICK: Final = 1.0  # seconds between two looks at the leases
_HEARTBEAT: Final = 15.0  # seconds after which an instance says that its streams are still open
STREAMS_EXPIRE: Final = 60.0  # seconds after which the streams of an instance that says nothing are taken for ended
_DENIED_FOR: Final = 1.0  # seconds for which the store is not asked again for what it did not have
_MOST_SYNCS: Final = 16  # at a time


class StoreError(Exception):
    """The store did not do what was asked; the text is for the log, and has no address and no key in it."""


@dataclass(frozen=True, slots=True)
class State:
    """What is used of a caller's limits, at the time `at` of the store's clock, in seconds.

    `streams` are those that each instance has leased, and when it last reported.
    """

    requests: float = 0.0
    minute: float = 0.0
    day: float = 0.0
    at: float = 0.0
    streams: dict[str, tuple[int, float]] = field(default_factory=dict)


Change = Callable[[State, float], State]


class Store(Protocol):
    """Keeps a `State` for each caller (`relay.callers.table_store`)."""

    async def update(self, name: str, change: Change) -> State:
        """Replace a caller's state by `change(state, now)`, atomically; raises `StoreError`.

        `change` may be called several times, and `now` never goes back.
        """
        ...


_KINDS: Final = ("requests", "minute", "day")


@dataclass(slots=True)
class _Lease:
    """What this instance has leased of one caller's limits.

    `left` of each limit is negative where more was used than leased. `needed` is what requests wait for.
    """

    account: Account
    left: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))
    needed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))
    streams: int = 0
    streams_needed: int = 0
    used_at: float = 0.0
    synced_at: float = -math.inf
    syncs: int = 0  # that have begun
    synced: int = 0  # the number of the last one that has ended
    task: asyncio.Task[None] | None = None
    wait_until: float = 0.0  # when the store will have what it did not have
    denied_until: float = -math.inf
    denied: Cost | None = None

    def amounts(self, cost: Cost) -> dict[str, float]:
        """What the request takes of each limit that there is; of one that it exceeds, the whole limit."""
        amounts = {"requests": cost.requests, "minute": cost.tokens, "day": cost.tokens}
        return {kind: min(amounts[kind], bucket.capacity) for kind, bucket in _buckets(self.account)}

    def covers(self, cost: Cost) -> bool:
        """Whether the request can be admitted from what is left."""
        limit = self.account.limits.streams
        if limit is not None and self.account.streams >= self.streams:
            return False
        return all(self.left[kind] >= amount - 1e-6 for kind, amount in self.amounts(cost).items())

    def take(self, cost: Cost) -> None:
        """Take what the request needs, whether it is there or not."""
        self.left["requests"] -= cost.requests
        self.give_tokens(-cost.tokens)

    def give_tokens(self, tokens: float) -> None:
        """Give tokens back, or take them (negative)."""
        self.left["minute"] += tokens
        self.left["day"] += tokens

    def need(self, cost: Cost, sign: int) -> None:
        """A request waits for this, or no longer (-1)."""
        for kind, amount in self.amounts(cost).items():
            self.needed[kind] += sign * amount
        self.streams_needed += sign

    def surplus(self, *, idle: bool) -> dict[str, float]:
        """What to give back of each limit: all when idle, otherwise what was leased for requests that were refused.

        Negative: what is owed.
        """
        surplus = {}
        for kind, bucket in _buckets(self.account):
            kept = 0.0 if idle else max(0.0, self.needed[kind]) + _spare(kind, bucket.capacity)
            left = self.left[kind]
            surplus[kind] = left if left < 0 else max(0.0, left - kept)
        return surplus

    def is_low(self) -> bool:
        """Whether the lease should grow before a request has to wait."""
        return any(self.left[kind] < _spare(kind, bucket.capacity) / 2 for kind, bucket in _buckets(self.account))

    def is_empty(self) -> bool:
        """Whether nothing is left to give back."""
        return self.streams == 0 and all(abs(self.left[kind]) <= 1e-6 for kind, _ in _buckets(self.account))


class LeasedLimits:
    """The leases of this instance (`relay.callers.limits.SharedLimits`). `clock` gives seconds."""

    def __init__(self, store: Store, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._instance = instance
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._local_until = -math.inf
        self._ticking: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_MOST_SYNCS)

    async def begin(self, name: str, account: Account, cost: Cost) -> float | None:
        """Admit a request: 0, or the seconds to wait; None: the store does not answer, and the own count decides."""
        lease = self._leases.get(name)
        if lease is None or lease.account is not account:
            lease = self._leases[name] = _Lease(account)
        now = lease.used_at = self._clock()
        self._tick_on()
        if lease.covers(cost):
            lease.take(cost)
            if lease.is_low() and lease.task is None and now >= max(lease.denied_until, self._local_until):
                self._sync(name, lease)
            return 0.0
        if now < self._local_until:
            return None
        is_denied = now < min(lease.denied_until, lease.wait_until)
        if is_denied and lease.denied is not None and cost.tokens >= lease.denied.tokens:
            return lease.wait_until - now
        return await self._begin_later(name, lease, cost)

    async def _begin_later(self, name: str, lease: _Lease, cost: Cost) -> float | None:
        lease.need(cost, 1)
        last = lease.syncs  # what is under way does not know of this request
        try:
            async with asyncio.timeout(_STORE_WAIT):
                while True:
                    await asyncio.shield(self._sync(name, lease))
                    if lease.covers(cost):
                        lease.take(cost)
                        return 0.0
                    if lease.synced > last and lease.wait_until > self._clock():
                        break
        except (TimeoutError, StoreError):
            self._local_until = self._clock() + _LOCAL_FOR
            return None
        finally:
            lease.need(cost, -1)
        now = self._clock()
        lease.denied, lease.denied_until = cost, now + _DENIED_FOR
        return lease.wait_until - now

    def count_locally(self, name: str, cost: Cost) -> None:
        """Note a request that was admitted by the own count; the store learns of it when it answers again."""
        if (lease := self._leases.get(name)) is not None:
            lease.take(cost)

    def end(self, name: str, account: Account, tokens: float) -> None:
        """Note the end of a request that took so many tokens more than were reserved for it (or less: negative)."""
        lease = self._leases.get(name)
        if lease is None or lease.account is not account:
            lease = self._leases[name] = _Lease(account)
        lease.give_tokens(-tokens)
        self._tick_on()

    # Between lease and store

    def _sync(self, name: str, lease: _Lease) -> asyncio.Task[None]:
        """The update of the lease that is under way, or a new one."""
        if lease.task is None:
            lease.syncs += 1
            lease.task = asyncio.create_task(self._update(name, lease, lease.syncs))
            lease.task.add_done_callback(_take_error)
        return lease.task

    async def _update(self, name: str, lease: _Lease, number: int) -> None:
        now = self._clock()
        idle = now - lease.used_at >= _IDLE and not lease.streams_needed
        # Removed before the store is asked, so that no request takes what is being given back.
        back = lease.surplus(idle=idle)
        for kind, amount in back.items():
            lease.left[kind] -= amount
        if idle:
            lease.streams = min(lease.streams, lease.account.streams)
        grant: dict[str, float] = {}
        streams = others = 0
        wait = 0.0

        def change(state: State, at: float) -> State:
            nonlocal streams, others, wait
            wait = 0.0
            used = {}
            for kind, bucket in _buckets(lease.account):
                leaked = max(0.0, at - state.at) * bucket.capacity / bucket.period
                before = max(0.0, max(0.0, getattr(state, kind) - leaked) - back[kind])
                free = max(0.0, bucket.capacity - before)
                needed = max(0.0, lease.needed[kind] - lease.left[kind])
                spare = 0.0 if idle else _spare(kind, min(bucket.capacity, free)) - max(0.0, lease.left[kind])
                grant[kind] = min(free, needed + max(0.0, spare))
                used[kind] = before + grant[kind]
                if needed > free:
                    wait = max(wait, (needed + before - bucket.capacity) * bucket.period / bucket.capacity)
            fresh = {
                instance: (count, when)
                for instance, (count, when) in state.streams.items()
                if instance != self._instance and at - when < STREAMS_EXPIRE
            }
            others = sum(count for count, _ in fresh.values())
            limit = lease.account.limits.streams
            if limit is not None:
                open_now = lease.account.streams
                wanted = max(lease.streams, open_now + lease.streams_needed + (0 if idle else int(limit * _SPARE)))
                streams = max(open_now, min(wanted, limit - others))
                if open_now + lease.streams_needed > streams:
                    wait = max(wait, STREAM_WAIT)
                if streams:
                    fresh[self._instance] = (streams, at)
            return replace(state, **used, at=max(at, state.at), streams=fresh)

        try:
            async with self._slots:
                state = await self._store.update(name, change)
        except BaseException as error:
            for kind, amount in back.items():
                lease.left[kind] += amount
            if isinstance(error, StoreError):
                self._local_until = self._clock() + _LOCAL_FOR
                telemetry.log_limits_store_away(str(error))
            raise
        finally:
            lease.task = None
        now = self._clock()
        for kind, bucket in _buckets(lease.account):
            lease.left[kind] += grant[kind]
            # What the headers tell, and what the own count goes on from if the store does not answer.
            bucket.set(getattr(state, kind) - max(0.0, lease.left[kind]), now)
        lease.streams, lease.account.streams_elsewhere = streams, others
        lease.synced, lease.synced_at, lease.wait_until = number, now, now + wait

    def _tick_on(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        """While there are leases: pay what is owed, give back what is idle, and report streams that are open."""
        try:
            while self._leases:
                await asyncio.sleep(_TICK * random.uniform(0.8, 1.2))  # noqa: S311 (so that instances do not meet)
                now = self._clock()
                if now < self._local_until:
                    continue
                for name, lease in list(self._leases.items()):
                    idle = now - lease.used_at >= _IDLE
                    if idle and lease.account.streams == 0 and lease.task is None and lease.is_empty():
                        del self._leases[name]
                    elif self._is_due(lease, now, idle=idle):
                        self._sync(name, lease)
        finally:
            self._ticking = None

    def _is_due(self, lease: _Lease, now: float, *, idle: bool) -> bool:
        """Whether the store is to be told something: what is owed or given back, or that streams are still open."""
        if any(abs(amount) > 1e-6 for amount in lease.surplus(idle=idle).values()):
            return True
        if idle and lease.streams > lease.account.streams:
            return True
        return lease.streams > 0 and now - lease.synced_at >= _HEARTBEAT


def _take_error(task: asyncio.Task[None]) -> None:
    """A failure was logged; who waits for it gets it as well."""
    if not task.cancelled():
        task.exception()


def _buckets(account: Account) -> list[tuple[str, Bucket]]:
    named = (("requests", account.requests), ("minute", account.minute), ("day", account.day))
    return [(kind, bucket) for kind, bucket in named if bucket is not None]


def _spare(kind: str, capacity: float) -> float:
    """What an instance leases beyond its need, out of so much; only whole requests are of use."""
    spare = capacity * (_SPARE_OF_A_DAY if kind == "day" else _SPARE)
    return float(int(spare)) if kind == "requests" else spare
