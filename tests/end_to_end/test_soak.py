"""Everything at once: all faults, callers who leave, slow readers, restarts of the model service, in a random mixture.

Each stream must end as promised and nothing may be left of it. 300 streams every day; `SOAK_STREAMS` in the
environment sets another number (`make soak`: 10,000), `SOAK_SEED` runs a mixture again that was printed before.
"""

import asyncio
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import httpx
import pytest

from local.model_service import ModelService
from tests.end_to_end.answers import DOCUMENT, FORMATS, PLAIN, SSE, Heard, body_for, understand, whole
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import (
    OUTCOMES,
    TOKENS,
    Complete,
    Interrupted,
    Refused,
    check_completion,
    check_interruption,
    words_of,
)

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")
STREAMS: Final = int(os.environ.get("SOAK_STREAMS", "300"))
SEED: Final = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(10**9))))
AT_ONCE: Final = 40
SILENCE: Final = 2.5  # seconds that the model service may be silent; a loaded machine's own pauses are shorter
GROWTH: Final = 16 * 1024 * 1024  # bytes that the allocator may keep: 1.6 kB for each of 10,000 streams
ECHO: Final = "echo"  # the deployment that says what it is asked to say

# An answer of 100 kB at the pace of this test would take minutes.
FAULTS: Final = {fault: outcome for fault, outcome in OUTCOMES.items() if not fault.startswith("long-")} | {
    "long-3000": Complete(words_of("long-3000"))
}
DEPLOYMENTS: Final = {f"soak-{number}": fault for number, fault in enumerate(FAULTS)}

type Manner = Literal["reads", "reads slowly", "leaves before the answer", "leaves midway"]


@dataclass
class Plan:
    """One stream of the mixture; the same seed and number give the same one."""

    number: int
    dice: random.Random = field(repr=False)
    form: str = ""
    manner: Manner = "reads"
    deployment: str = ECHO
    prompt: str = ""
    rudely: bool = False
    patience: float = 0.0  # seconds until it leaves

    @classmethod
    def make(cls, number: int) -> "Plan":
        dice = random.Random(f"{SEED} {number}")
        plan = cls(number, dice)
        plan.form = dice.choice(FORMATS)
        plan.manner = dice.choices(
            ("reads", "reads slowly", "leaves before the answer", "leaves midway"), (6, 2, 1, 2)
        )[0]
        plan.prompt = "echo " + plan.answer()
        if dice.random() < 0.6:
            plan.deployment = dice.choice(list(DEPLOYMENTS))
        plan.rudely = dice.random() < 0.5
        plan.patience = dice.choice((0.0, 0.002, 0.02, 0.1, 0.5)) * dice.random()
        return plan

    def answer(self) -> str:
        """A text that no other stream has."""
        words = (
            "grün",
            "東京",
            "🦊",
            '"so"',
            "back\\slash",
            "\n\n",
            "\u2028",
            "the",
            "fox",
            "naïve",
            "{}",
            "data:",
            "<b>",
        )
        return f"{self.number} " + " ".join(self.dice.choice(words) for _ in range(self.dice.randint(1, 60))) + "."

    @property
    def promised(self) -> Complete | Interrupted | Refused:
        """How it must end when nothing but its fault happens."""
        if self.deployment == ECHO:
            return Complete(self.prompt.removeprefix("echo "))
        return FAULTS[DEPLOYMENTS[self.deployment]]


def check(plan: Plan, heard: Heard) -> None:
    """It ended as promised."""
    promised = plan.promised
    if isinstance(promised, Refused):
        # A deployment that asked to be left alone refuses the next ones from memory, with less time left.
        assert heard.problem is not None, heard
        assert (heard.status, heard.problem["code"]) == (promised.status, promised.code)
        assert heard.problem.get("retry_after", 0) <= max(promised.retry_after, default=0)
    elif isinstance(promised, Interrupted):
        fault = DEPLOYMENTS[plan.deployment]
        if "reset" in fault and plan.form != DOCUMENT and promised.text.startswith(heard.text):
            # A reset overtakes what the kernel has not handed over: which words came is chance.
            promised = Interrupted(promised.status, promised.code, heard.text)
        check_interruption(heard, plan.form, promised)
    else:
        check_completion(heard, plan.form, promised)


def check_cut(plan: Plan, heard: Heard) -> None:
    """The model service went away meanwhile: the words are the beginning of the answer, and the end says so."""
    if heard.status != 200:
        assert heard.problem is not None
        assert heard.problem["code"] in ("upstream_error", "upstream_timeout", "upstream_interrupted"), heard
        return
    promised = plan.promised
    assert ("" if isinstance(promised, Refused) else promised.text).startswith(heard.text), heard
    if plan.form == PLAIN:
        assert heard.broken, "a cut answer passed for a complete one"
        return
    assert not heard.broken, heard
    assert heard.error is not None, heard
    assert heard.error["code"] in ("upstream_interrupted", "upstream_error", "upstream_timeout"), heard


class Mixture:
    """The streams under way and how they ended."""

    def __init__(self, app: HostedApp, service: ModelService) -> None:
        self.app = app
        self.service = service
        self.failures: list[str] = []
        self.endings: Counter[str] = Counter()
        self.restarts: list[tuple[float, float]] = []
        self.restarting = 0.0

    async def run(self, numbers: range, *, restart_every: float | None) -> None:
        waiting = iter(numbers)

        async def caller(session: aiohttp.ClientSession) -> None:
            for number in waiting:
                await self.one(session, Plan.make(number))

        # One connection for each request: what a caller leaves behind is then all that is counted afterwards.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=2048) as session:
            disturbing = asyncio.create_task(self.disturb(restart_every)) if restart_every else None
            try:
                await asyncio.gather(*(caller(session) for _ in range(AT_ONCE)))
            finally:
                if disturbing is not None:
                    disturbing.cancel()
                    await asyncio.wait((disturbing,))
        if self.restarting:
            await self.service.start()

    async def disturb(self, every: float) -> None:
        """Restart the model service again and again, and change its pace."""
        dice = random.Random(SEED)
        while True:
            self.service.tokens_per_second = dice.choice((0.0, 150.0, 600.0))
            await asyncio.sleep(every * dice.uniform(0.5, 1.5))
            self.restarting = time.monotonic()
            await self.service.stop()
            await asyncio.sleep(dice.choice((0.0, 0.3)))
            await self.service.start()
            self.restarts.append((self.restarting, time.monotonic()))
            self.restarting = 0.0

    def disturbed(self, began: float) -> bool:
        """Whether the model service was away at any time since."""
        return bool(self.restarting) or any(end >= began for _, end in self.restarts)

    async def one(self, session: aiohttp.ClientSession, plan: Plan) -> None:
        began = time.monotonic()
        heard: Heard | None = None
        try:
            async with asyncio.timeout(60):
                heard = await hear(session, self.app.url, plan)
            if heard is None:
                self.endings[plan.manner] += 1
                return
            try:
                check(plan, heard)
                self.endings["as promised"] += 1
            except AssertionError:
                if not self.disturbed(began):
                    raise
                check_cut(plan, heard)
                self.endings["cut by a restart"] += 1
                await asyncio.sleep(0.1)  # or most streams would be spent on a service that is away
        except Exception as error:  # noqa: BLE001 (all streams run on; what failed is told at the end)
            fault = DEPLOYMENTS.get(plan.deployment, "none")
            ended = f"{heard.status} {heard.raw[-300:]!r}" if heard else "nothing was heard"
            self.failures.append(f"{plan}, fault {fault}: {type(error).__name__} {str(error)[:300]}; {ended}")


async def hear(session: aiohttp.ClientSession, url: str, plan: Plan) -> Heard | None:
    """One stream, read in the plan's manner; None when its caller left."""
    headers = {"Content-Type": "application/json"} | ({} if plan.form == DOCUMENT else {"Accept": plan.form})
    body = json.dumps(body_for(plan.form, plan.prompt, model=plan.deployment))
    asking = asyncio.ensure_future(session.post(f"{url}/stream", data=body, headers=headers))
    if plan.manner == "leaves before the answer":
        await asyncio.wait((asking,), timeout=plan.patience)
        if not asking.done():
            asking.cancel()
            return None
    response = await asking
    heard = Heard(response.status, httpx.Headers(list(response.headers.items())))
    pieces: list[bytes] = []
    leaves = time.monotonic() + plan.patience if plan.manner == "leaves midway" else None
    async with response:
        try:
            while True:
                left = None if leaves is None else leaves - time.monotonic()
                async with asyncio.timeout(left):
                    piece = await response.content.read(700)
                if not piece:
                    break
                pieces.append(piece)
                if plan.manner == "reads slowly" and len(pieces) < 150:
                    await asyncio.sleep(0.004)
        except TimeoutError:
            leave(response, rudely=plan.rudely)
            check_beginning(plan, response.status, b"".join(pieces))
            return None
        except aiohttp.ClientPayloadError:
            heard.broken = True
            # aiohttp's reader raises before it has given away all that came before the break.
            response.content.set_exception(None)  # type: ignore[arg-type]
            pieces.append(response.content.read_nowait())
    heard.raw = b"".join(pieces)
    understand(heard, plan.form)
    return heard


def leave(response: aiohttp.ClientResponse, *, rudely: bool) -> None:
    """Close the connection, or reset it."""
    transport = response.connection.transport if response.connection else None
    if rudely and transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    response.close()


def check_beginning(plan: Plan, status: int, raw: bytes) -> None:
    """Whoever left has heard the beginning of the answer and nothing else."""
    promised = plan.promised
    if status != 200 or plan.form != SSE or isinstance(promised, Refused):
        return
    events = raw.split(b"\n\n")[:-1]
    texts = [json.loads(event.removeprefix(b"data: "))["text"] for event in events if event.startswith(b"data: ")]
    assert promised.text.startswith(whole("".join(texts))) or "surrogate" in DEPLOYMENTS.get(plan.deployment, "")


@asynccontextmanager
async def nothing_left(app: HostedApp, service: ModelService) -> AsyncIterator[None]:
    """All that is made inside is gone soon after: tasks, streams, sockets, memory; the worker is the same."""

    async def lives() -> dict[str, Any]:
        async with app.client(headers={"Connection": "close"}) as client:
            return dict((await client.get("/inspect")).json())

    async def at_rest() -> dict[str, Any]:
        # Without the model service no connection to it is kept.
        await service.stop()
        found = await lives()
        await service.start()
        return found

    pid = app.worker_pid
    before = await at_rest()
    yield
    await eventually(lambda: service.open_requests == 0, within=5)
    await service.stop()
    after = before

    async def as_before() -> bool:
        nonlocal after
        after = await lives()
        return all(after[what] == before[what] for what in ("tasks", "objects", "requests_kept")) and (
            after["open_files"] <= before["open_files"]
        )

    try:
        await eventually(as_before, within=10)  # uvicorn keeps idle connections for 5 s
    except AssertionError:
        assert {**after, "resident": 0} == {**before, "resident": 0}, "something was left behind"
    grown = after["resident"] - before["resident"]
    print(f"memory of the worker: {before['resident'] / 2**20:.1f} MiB before, {grown / 2**20:+.1f} MiB")
    assert grown < GROWTH
    assert app.worker_pid == pid, "the worker was restarted"


@pytest.fixture(scope="module")
def soaked_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a deployment for each fault, and a window into its process."""
    settings = {
        "AZURE_OPENAI_DEPLOYMENTS": ",".join((ECHO, *DEPLOYMENTS)),
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE),
        "PING_INTERVAL_SECONDS": "0.5",
        "COMMIT_WAIT_SECONDS": "20",
        "MAX_OUTPUT_TOKENS": "1000000",
    }
    return functions_app(env=app_settings | settings, script_root=INSPECTED_APP, fresh=True)


@pytest.mark.timeout(60 + STREAMS)
async def test_nothing_breaks_and_nothing_is_left(soaked_app: HostedApp, model_service: ModelService) -> None:
    print(f"\nSOAK_SEED={SEED} SOAK_STREAMS={STREAMS}")
    model_service.faults.update(DEPLOYMENTS)
    for deployment in DEPLOYMENTS:
        model_service.answer(TOKENS, deployment)
    model_service.tokens_per_write = 3
    mixture = Mixture(soaked_app, model_service)
    # The process makes what it makes once, and its memory finds its size.
    await mixture.run(range(-max(100, STREAMS // 20), 0), restart_every=None)
    began = time.monotonic()
    async with nothing_left(soaked_app, model_service):
        await mixture.run(range(STREAMS), restart_every=1.5 if STREAMS < 1000 else 4)
    print(f"{STREAMS} streams in {time.monotonic() - began:.0f} s, {len(mixture.restarts)} restarts: {mixture.endings}")
    assert not mixture.failures, f"SOAK_SEED={SEED}: {len(mixture.failures)} failed:\n" + "\n".join(
        mixture.failures[:20]
    )
    assert sum(mixture.endings.values()) >= STREAMS
    assert model_service.open_requests == 0
    asked = Counter(record.headers["x-ms-client-request-id"] for record in model_service.requests)
    assert max(asked.values()) <= 2, "once, and once again when a kept connection turned out to be closed"
