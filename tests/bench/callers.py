"""`python -m tests.bench.callers`: what named callers and their limits cost a request, without and with them.

All that is done for a request because callers have names: the key, the model, the reservation with its headers, the
settlement. In microseconds of CPU time, the median of several rounds, with 10,000 callers.
"""

import asyncio
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request

from relay.callers.door import Door
from relay.callers.limits import Limiter
from relay.callers.request import CallerRequest
from relay.problems import Problem
from relay.telemetry import Record
from relay.usage import Usage

CALLERS: Final = 10_000
REQUESTS: Final = 5_000
ROUNDS: Final = 7
MODELS: Final = ("gpt-5.4-mini", "gpt-5.4")
# As clients send them.
HEADERS: Final = [
    (b"host", b"127.0.0.1"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"AsyncOpenAI/Python 3.54.0"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-async", b"async:asyncio"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"content-length", b"400"),
    (b"x-ms-invocation-id", b"00000000-0000-0000-0000-000000000000"),
]
LIMITS: Final = {"requests_per_minute": 10**9, "tokens_per_minute": 10**11, "tokens_per_day": 10**12, "streams": 10**6}


def key(number: int) -> str:
    return f"relay_{number:043d}"


def door() -> Door:
    """The door for so many callers, whose settings are in as many environment variables as they need."""
    entries = {
        f"team-{number}": {
            "key_digests": [hashlib.sha256(key(number).encode()).hexdigest()],
            "models": list(MODELS),
            "limits": LIMITS,
        }
        for number in range(CALLERS)
    }
    names = list(entries)
    parts = [names[start : start + 200] for start in range(0, len(names), 200)]
    environ = {
        f"CALLERS_{part}": json.dumps({name: entries[name] for name in chosen})
        for part, chosen in enumerate(parts, start=1)
    }
    opened = Door.from_environment(environ)
    assert opened is not None
    return opened


def request(number: int) -> Request:
    authorization = (b"authorization", f"Bearer {key(number * 7919 % CALLERS)}".encode())
    return Request({"type": "http", "method": "POST", "headers": [*HEADERS, authorization], "query_string": b""})


async def admitted(opened: Door | None, limiter: Limiter, caller: CallerRequest) -> None:
    """The steps of `function_app.py` and of a stream that concern the caller."""
    if opened is not None:
        assert caller.admit(opened) is None
    assert not isinstance(caller.allowed_model(MODELS[0], MODELS), Problem)
    assert await caller.reserve(limiter, 400, counts_tokens=True) is None
    caller.headers("text/event-stream")
    record = Record(caller.request_id, caller.invocation_id, MODELS[0], usage=Usage(100, 200))
    caller.settle(record, answering=True)


async def measure(opened: Door | None) -> float:
    """Microseconds of a request."""
    rounds = []
    limiter = Limiter()
    for _ in range(ROUNDS):
        callers = [CallerRequest(request(number), openai=True) for number in range(REQUESTS)]
        rounds.append(await timed(callers, lambda caller: admitted(opened, limiter, caller)))
    return statistics.median(rounds)


async def timed(callers: list[CallerRequest], step: Callable[[CallerRequest], Awaitable[None]]) -> float:
    began = time.process_time()
    for caller in callers:
        await step(caller)
    return (time.process_time() - began) / len(callers) * 1e6


async def main() -> int:
    began = time.process_time()
    opened = door()
    reading = time.process_time() - began
    off, on = await measure(None), await measure(opened)
    print(f"settings of {CALLERS} callers read in {reading * 1000:.0f} ms")
    print(f"without callers {off:.1f} µs a request, with them and all limits {on:.1f} µs: {on - off:.1f} µs more")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
