"""Several deployments of one model: the choice among them, the rest that a refusal earns, and what a caller gets of any
mixture of faults: one whole answer, or the error that was promised; never two models' words, never a second pass."""

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.model_service import BY_HAND, ModelService
from tests.end_to_end.hosting import HostedApp, eventually

FAILOVER_AFTER: Final = 0.25  # seconds
SILENCE: Final = 0.8  # seconds
FRESH: Final = 330  # models that no request has named: each example takes one, with deployments that no fault has met

# Three accounts, each in its own words.
WORDS: Final = [[f"{account}{number} " for number in range(9)] for account in "ABC"]


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, ...]]:
    """Three ports that are the accounts' for all of these tests."""
    with ExitStack() as stack:
        numbers = []
        for _ in WORDS:
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            numbers.append(reserved.getsockname()[1])
        yield tuple(numbers)


def pool(ports: Sequence[int], models: Sequence[str], priorities: Sequence[int] = (1, 1, 1)) -> str:
    """`AZURE_OPENAI_BACKENDS` with every model on every account."""
    return json.dumps(
        [
            {
                "endpoint": f"http://127.0.0.1:{port}/v1/",
                "deployment": model,
                "name": f"{account}/{model}",
                "priority": priority,
            }
            for model in models
            for account, port, priority in zip("ABC", ports, priorities, strict=True)
        ],
        separators=(",", ":"),
    )


@pytest.fixture(scope="module")
def pooled_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """The app with three accounts, which moves on from silence."""
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": pool(ports, [f"m{number}" for number in range(FRESH)]),
            "FAILOVER_AFTER_SECONDS": str(FAILOVER_AFTER),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE),
            "COMMIT_WAIT_SECONDS": "10",
        }
    )


@pytest.fixture(scope="module")
def fresh() -> Iterator[str]:
    """Names of models whose deployments have not been asked yet."""
    return iter([f"m{number}" for number in range(FRESH)])


# Closed before a word of an answer.
UNANSWERED: Final = ("cut-headers", "reset-headers")


@dataclass
class Accounts:
    """The three accounts, A, B and C."""

    services: list[ModelService]

    def fault(self, model: str, *planned: Any) -> None:
        for service, fault in zip(self.services, planned, strict=True):
            service.faults[model] = fault

    def asked(self, model: str) -> str:
        """Which accounts were asked for this model, in order.

        A kept connection that is closed without a word may have been closed before the request came: it is sent again
        on a new one, and counts once.
        """
        records = {
            (record.headers["x-ms-client-request-id"], name)
            if record.fault in UNANSWERED
            else str(record.index) + name: (record.arrived, name)
            for name, service in zip("ABC", self.services, strict=True)
            for record in service.requests
            if record.deployment == model
        }
        return "".join(name for _, name in sorted(records.values()))

    @property
    def open(self) -> int:
        return sum(service.open_requests for service in self.services)


async def start(stack: AsyncExitStack, ports: Sequence[int]) -> Accounts:
    services = []
    for port, words in zip(ports, WORDS, strict=True):
        service = ModelService(port=port, tokens_per_second=0, tokens_per_write=2)
        service.answer(words)
        services.append(await stack.enter_async_context(service))
    return Accounts(services)


@pytest.fixture
async def accounts(ports: tuple[int, ...]) -> Any:
    """The three accounts, new for this test."""
    async with AsyncExitStack() as stack:
        yield await start(stack, ports)


# ── What a caller gets, whichever way it asked ───────────────────────────────────────────────────────────────────────

WAYS: Final = ("stream", "document", "openai stream", "openai document")


@dataclass
class Got:
    """`ending`: `done`, or the error's code. `status` is the response's own."""

    status: int
    text: str
    ending: str | None
    retry_after: int | None = None
    request_id: str = ""


async def get(client: httpx.AsyncClient, way: str, model: str, **headers: str) -> Got:
    """Ask, and read the answer strictly."""
    if way.startswith("openai"):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Say something."}]}
        url = "/v1/chat/completions"
    else:
        body, url = {"input": "Say something."}, "/stream"
    body |= {"model": model, "stream": way.endswith("stream")}
    answer = await client.post(url, json=body, headers=headers)
    got = Got(answer.status_code, "", None, request_id=answer.headers["x-request-id"])
    if answer.status_code != 200:
        document = answer.json()
        got.ending = document["error"]["code"] if "error" in document else document["code"]
        if "retry-after" in answer.headers:
            got.retry_after = int(answer.headers["retry-after"])
        return got
    if way == "document":
        got.text, got.ending = answer.json()["text"], "done"
    elif way == "openai document":
        got.text, got.ending = answer.json()["choices"][0]["message"]["content"], "done"
    else:
        read_events(got, answer.text)
    return got


def read_events(got: Got, text: str) -> None:
    for event in text.removesuffix("\n\n").split("\n\n"):
        if event == ": ping":
            continue
        assert got.ending is None, f"something came after the end: {event}"
        *kind, data = event.split("\n")
        data = data.removeprefix("data: ")
        if kind or data == "[DONE]" or '"error"' in data:
            members = {} if data == "[DONE]" else json.loads(data)
            got.ending = members["error"]["code"] if "error" in members else members.get("code", "done")
        else:
            members = json.loads(data)
            choices = members.get("choices", ())
            got.text += members.get("text", "") + "".join(choice["delta"].get("content") or "" for choice in choices)
    assert got.ending is not None, "a stream without a terminal event"


# ── What was promised ────────────────────────────────────────────────────────────────────────────────────────────────

ERROR, AUTH, TIMEOUT, LIMITED = "upstream_error", "upstream_auth", "upstream_timeout", "rate_limited"
STATUS: Final = {
    ERROR: 502,
    AUTH: 502,
    TIMEOUT: 504,
    LIMITED: 429,
    "content_filter": 400,
    "context_length_exceeded": 400,
    "invalid_request": 400,
    "invalid_value": 400,
    "model_not_found": 404,
    "upstream_interrupted": 502,
}
GOOD: Final = (None, "crlf", "split-5", "no-filter", "comments", "no-usage")
# What the next one may make good: the code, and the time that the caller hears of, if all fail.
MENDED: Final[dict[str, tuple[str, int | None]]] = {
    "429-7": (LIMITED, 7),
    "429-ms-2500": (LIMITED, 3),
    "429-x-ms-4500": (LIMITED, 5),
    "429-absurd": (LIMITED, 120),
    "429-none": (LIMITED, None),
    "429-garbled": (LIMITED, None),
    "503-after-4": (ERROR, 4),
    "500": (ERROR, None),
    "502": (ERROR, None),
    "503": (ERROR, None),
    "408": (TIMEOUT, None),
    "504": (TIMEOUT, None),
    "401": (AUTH, None),
    "403": (AUTH, None),
    "cut-headers": (ERROR, None),
    "reset-headers": (ERROR, None),
    "html": (ERROR, None),
    "empty": (ERROR, None),
    "cut-first": (ERROR, None),
    "error-first": (ERROR, None),
    "garbage-first": (ERROR, None),
}
FINAL: Final = {
    "400": "invalid_request",
    "context-length": "context_length_exceeded",
    "content-filter": "content_filter",
    "404": "model_not_found",
}
MIDWAY: Final = {
    "cut-midway": "upstream_interrupted",
    "end-midway": "upstream_interrupted",
    "error-midway": ERROR,
    "garbage-midway": ERROR,
}
STALL: Final = "stall-headers"
FAULTS: Final = (*GOOD, *MENDED, *FINAL, *MIDWAY, STALL)


@dataclass
class Promise:
    """`asked`: the accounts that are asked, in this order, and no more."""

    asked: str
    text: str | None
    ending: str
    status: int
    retry_after: int | None = None


def promise(way: str, faults: Sequence[str | None]) -> Promise:
    """What the contract promises for three accounts of one priority that no one else asks."""
    refusals: list[tuple[str, int | None]] = []
    for place, fault in enumerate(faults):
        asked = "ABC"[: place + 1]
        words = WORDS[place]
        if fault in GOOD:
            return Promise(asked, "".join(words), "done", 200)
        if fault in FINAL:
            code = "invalid_value" if fault == "400" and way.startswith("openai") else FINAL[fault]
            return Promise(asked, None, code, STATUS[code])
        if fault in MIDWAY and way != "openai document":
            code = MIDWAY[fault]
            if way == "document":
                return Promise(asked, None, code, STATUS[code])
            return Promise(asked, "".join(words[:5]), code, 200)
        if fault == STALL:
            if place == len(faults) - 1:
                return Promise(asked, None, TIMEOUT, STATUS[TIMEOUT])
            refusals.append((TIMEOUT, None))
        else:
            refusals.append(MENDED.get(fault or "", (ERROR, None)))
    timed = [(seconds, code) for code, seconds in refusals if seconds is not None]
    if timed:
        seconds, code = min(timed, key=lambda one: one[0])
        return Promise("ABC", None, code, STATUS[code], seconds)
    limited = [code for code, _ in refusals if code == LIMITED]
    code = limited[-1] if limited else refusals[-1][0]
    return Promise("ABC", None, code, STATUS[code])


def hold(got: Got, promised: Promise) -> None:
    assert (got.status, got.ending, got.text) == (promised.status, promised.ending, promised.text or "")
    assert got.retry_after == promised.retry_after


@given(st.lists(st.sampled_from(FAULTS), min_size=3, max_size=3), st.sampled_from(WAYS))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_mixture_of_faults_ends_as_promised(
    mixture: Callable[[list[str | None], str], None], faults: list[str | None], way: str
) -> None:
    mixture(faults, way)


@pytest.fixture
def mixture(pooled_app: HostedApp, ports: tuple[int, ...], fresh: Iterator[str]) -> Iterator[Callable[..., None]]:
    """Commits the faults, one an account, on a model that nobody has asked for yet, and compares with the promise."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        accounts = runner.run(start(stack, ports))

        async def one(faults: list[str | None], way: str) -> None:
            model = next(fresh)
            accounts.fault(model, *faults)
            promised = promise(way, faults)
            async with pooled_app.client() as client:
                hold(await get(client, way, model), promised)
            assert accounts.asked(model) == promised.asked
            await eventually(lambda: accounts.open == 0)

        yield lambda faults, way: runner.run(one(faults, way))
        runner.run(stack.aclose())


@pytest.mark.parametrize(
    ("fault", "way"),
    [
        (fault, way)
        for fault in (*MENDED, STALL)
        for way in WAYS
        if way != "openai document" or fault not in ("error-first", "garbage-first")  # a document has no events
    ],
)
async def test_the_next_one_makes_good_what_one_failed(
    pooled_app: HostedApp, accounts: Accounts, fresh: Iterator[str], fault: str, way: str
) -> None:
    model = next(fresh)
    accounts.fault(model, fault, None, None)
    async with pooled_app.client() as client:
        hold(await get(client, way, model), Promise("AB", "".join(WORDS[1]), "done", 200))
    assert accounts.asked(model) == "AB"
    await eventually(lambda: accounts.open == 0)


# ── Many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
async def test_many_at_once_under_any_schedule(
    pooled_app: HostedApp, accounts: Accounts, fresh: Iterator[str], seed: int
) -> None:
    dice = random.Random(seed)
    model = next(fresh)
    kinds = [None, None, None, "429-ms-50", "429-none", "500", "cut-first", "error-midway", "cut-headers", STALL, "404"]
    accounts.fault(model, *([dice.choice(kinds) for _ in range(60)] for _ in WORDS))
    wholes = {"".join(words) for words in WORDS}
    beginnings = {"".join(words[:5]) for words in WORDS}

    async def one(client: httpx.AsyncClient) -> Got:
        await asyncio.sleep(dice.random() * 1.5)
        way = dice.choice(WAYS)
        got = await get(client, way, model)
        if got.ending == "done":
            assert got.text in wholes
        else:
            assert got.text == "" or (got.text in beginnings and got.ending == ERROR and way.endswith("stream"))
            assert got.ending in STATUS
        return got

    async with pooled_app.client(limits=httpx.Limits(max_connections=80)) as client:
        answers = await asyncio.gather(*(one(client) for _ in range(60)))
    assert Counter(got.ending for got in answers)["done"] > 20
    await eventually(lambda: accounts.open == 0)
    for service in accounts.services:
        asked = Counter(
            record.headers["x-ms-client-request-id"] for record in service.requests if record.fault not in UNANSWERED
        )
        assert max(asked.values()) == 1, "one request asks one deployment once"
        assert set(asked) <= {got.request_id for got in answers}


# ── The choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ranked_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """The app with two accounts of the first priority and one of the second; it does not move on from silence."""
    return ranked(functions_app, ports, commit_wait="0.1")


@pytest.fixture(scope="module")
def patient_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """The same, which gives a refusal all the time that a busy machine may take for it."""
    return ranked(functions_app, ports, commit_wait="10")


def ranked(functions_app: Callable[..., HostedApp], ports: tuple[int, ...], *, commit_wait: str) -> HostedApp:
    models = [BY_HAND, *(f"{BY_HAND}-{number}" for number in range(12)), *(f"r{number}" for number in range(12))]
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": pool(ports, models, (1, 1, 2)),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE),
            "COMMIT_WAIT_SECONDS": commit_wait,
            "PING_INTERVAL_SECONDS": "0.1",
        }
    )


async def test_by_priority_then_the_least_loaded(ranked_app: HostedApp, accounts: Accounts) -> None:
    async with ranked_app.client() as client:
        asking = [asyncio.create_task(get(client, "stream", BY_HAND)) for _ in range(6)]
        await eventually(lambda: accounts.open == 6)
        assert Counter(accounts.asked(BY_HAND)) == {"A": 3, "B": 3}
        accounts.services[0].release(9 * 3)
        await asyncio.gather(*asking[:0], eventually(lambda: accounts.services[0].open_requests == 0))
        asking += [asyncio.create_task(get(client, "stream", BY_HAND)) for _ in range(2)]
        await eventually(lambda: accounts.open == 5)
        assert Counter(accounts.asked(BY_HAND)) == {"A": 5, "B": 3}, "what was free again is the least loaded"
        for service in accounts.services:
            service.release(9 * 5)
        assert {got.ending for got in await asyncio.gather(*asking)} == {"done"}


async def test_the_load_moves_away_while_one_rests_and_back_afterwards(
    ranked_app: HostedApp, accounts: Accounts
) -> None:
    accounts.fault("r0", ["429-1.5"], "500", None)
    loop = asyncio.get_running_loop()
    async with ranked_app.client() as client:
        assert (await get(client, "stream", "r0")).text == "".join(WORDS[2])
        rested = loop.time()
        assert accounts.asked("r0") == "ABC"
        for _ in range(5):
            assert (await get(client, "stream", "r0")).text == "".join(WORDS[2])
        assert "A" not in accounts.asked("r0")[3:], "it asked to be left alone"
        accounts.fault("r0", None, None, None)
        await asyncio.sleep(max(0.0, rested + 2.2 - loop.time()))
        got = await get(client, "stream", "r0")
    assert got.text == "".join(WORDS[0]), "after its rest it is asked first again"


async def test_one_that_failed_without_a_word_is_tried_last_for_a_moment(
    ranked_app: HostedApp, accounts: Accounts
) -> None:
    accounts.fault("r1", "500", None, None)
    async with ranked_app.client() as client:
        for _ in range(3):
            assert (await get(client, "openai stream", "r1")).text == "".join(WORDS[1])
        assert accounts.asked("r1") == "ABBB"
        # It is tried last, but it is tried.
        accounts.fault("r1", None, "500", "500")
        assert (await get(client, "openai stream", "r1")).text == "".join(WORDS[0])
        assert accounts.asked("r1")[4:] == "BCA"


async def test_one_that_was_silent_to_the_end_is_tried_last_for_a_moment(
    ranked_app: HostedApp, accounts: Accounts
) -> None:
    accounts.fault("r5", STALL, None, None)
    async with ranked_app.client() as client:
        assert (await get(client, "document", "r5")).ending == TIMEOUT
        assert (await get(client, "document", "r5")).text == "".join(WORDS[1])


async def test_while_all_rest_nobody_is_asked(patient_app: HostedApp, accounts: Accounts) -> None:
    accounts.fault("r2", "429-30", "429-20", "503-after-25")
    async with patient_app.client() as client:
        first = await get(client, "stream", "r2")
        assert (first.status, first.ending, first.retry_after) == (429, LIMITED, 20)
        await asyncio.sleep(1.1)
        for way in WAYS:
            got = await get(client, way, "r2")
            assert (got.status, got.ending) == (429, LIMITED)
            assert got.retry_after in (18, 19)
    assert accounts.asked("r2") == "ABC"


async def test_a_refusal_in_the_past_is_no_rest(ranked_app: HostedApp, accounts: Accounts) -> None:
    accounts.fault("r3", "429-0", "429-ms-0", None)
    async with ranked_app.client() as client:
        for _ in range(2):
            assert (await get(client, "stream", "r3")).text == "".join(WORDS[2])
        accounts.fault("r3", None, "500", "500")
        assert (await get(client, "stream", "r3")).text == "".join(WORDS[0])


# ── Before and after the first words ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["stream", "openai stream"])
@pytest.mark.parametrize("fault", ["cut-first", "error-first", "garbage-first", "html", "empty"])
async def test_after_the_commit_and_before_the_first_words_another_takes_over(
    ranked_app: HostedApp, accounts: Accounts, fault: str, way: str
) -> None:
    number = ["cut-first", "error-first", "garbage-first", "html", "empty"].index(fault)
    model = f"{BY_HAND}-{2 * number + (way == 'stream')}"
    accounts.fault(model, f"stall-headers-0.4+{fault}", None, None)
    accounts.services[1].release(9, model)
    async with ranked_app.client() as client:
        hold(await get(client, way, model), Promise("AB", "".join(WORDS[1]), "done", 200))
    assert accounts.asked(model) == "AB"


async def test_without_the_setting_silence_is_waited_out(ranked_app: HostedApp, accounts: Accounts) -> None:
    accounts.fault("r4", STALL, None, None)
    async with ranked_app.client() as client:
        got = await get(client, "document", "r4")
    assert (got.status, got.ending) == (504, TIMEOUT)
    assert accounts.asked("r4") == "A"


async def test_a_caller_that_leaves_is_asked_for_nowhere_else(pooled_app: HostedApp, accounts: Accounts) -> None:
    accounts.fault("m0", STALL, STALL, STALL)
    async with pooled_app.client() as client:
        asking = asyncio.create_task(get(client, "stream", "m0"))
        await eventually(lambda: accounts.open == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: accounts.open == 0, within=1)
        await asyncio.sleep(FAILOVER_AFTER + 0.1)
    assert len(accounts.asked("m0")) == 1


# ── Nothing is left ──────────────────────────────────────────────────────────────────────────────────────────────────


def resident(pid: int) -> int:
    """Bytes of memory that the process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_nothing_is_left_of_failovers(
    functions_app: Callable[..., HostedApp], accounts: Accounts, ports: tuple[int, ...]
) -> None:
    app = functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": pool(ports, ["m", BY_HAND]),
            "FAILOVER_AFTER_SECONDS": "0.1",
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "0.3",
            "COMMIT_WAIT_SECONDS": "5",
        },
        fresh=True,
    )
    dice = random.Random(1)
    kinds = [None, "429-none", "500", "cut-first", "error-first", "cut-midway", "cut-headers", "stall-headers"]

    async def burst(client: httpx.AsyncClient, count: int) -> None:
        accounts.fault("m", *([dice.choice(kinds) for _ in range(count)] for _ in WORDS))
        for _ in range(count // 20):
            await asyncio.gather(*(get(client, dice.choice(WAYS), "m") for _ in range(20)))
        await eventually(lambda: accounts.open == 0)

    async with app.client(limits=httpx.Limits(max_connections=30)) as client:
        await burst(client, 120)
        before, files = resident(app.worker_pid), len(list(Path(f"/proc/{app.worker_pid}/fd").iterdir()))
        await burst(client, 240)
        after = resident(app.worker_pid)
        assert len(list(Path(f"/proc/{app.worker_pid}/fd").iterdir())) <= files + 20
        assert after - before < 240 * 8 * 1024, f"{(after - before) / 240:.0f} bytes a request"
        # A load that was counted and never let go would keep the choice away from one of them.
        accounts.fault(BY_HAND, None, None, None)
        asking = [asyncio.create_task(get(client, "stream", BY_HAND)) for _ in range(9)]
        await eventually(lambda: accounts.open == 9)
        assert Counter(accounts.asked(BY_HAND)) == {"A": 3, "B": 3, "C": 3}
        for service in accounts.services:
            service.release(27)
        await asyncio.gather(*asking)
