"""Several backends of one model: the choice among them, cool-down and probation, and what a caller receives for any
mixture of faults: one complete answer, or the contract's error; never text of two backends, never a second pass."""

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from local.model_service import MANUAL_PACE, ModelService
from tests.end_to_end.answers import post_streamed
from tests.end_to_end.hosting import HostedApp, eventually

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")
FAILOVER_AFTER: Final = 0.8  # seconds; a busy machine is not silent for as long
SILENCE_TIMEOUT: Final = 2.4  # seconds; a busy machine may stand still for longer than one
MODELS: Final = 300  # each test takes models that no request has named, whose backends have no state yet

# Three accounts, each with an answer of its own.
TOKENS: Final = [[f"{account}{number} " for number in range(9)] for account in "ABC"]
TEXTS: Final = ["".join(tokens) for tokens in TOKENS]
BEGINNINGS: Final = ["".join(tokens[:5]) for tokens in TOKENS]


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, ...]]:
    """The ports of the three accounts, for all of these tests."""
    with ExitStack() as stack:
        numbers = []
        for _ in TOKENS:
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            numbers.append(reserved.getsockname()[1])
        yield tuple(numbers)


def backends(ports: Sequence[int], models: Sequence[str], priorities: Sequence[int] = (1, 1, 1)) -> str:
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
    """The app with three accounts of one priority, which fails over from a silent one."""
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": backends(ports, [f"m{number}" for number in range(MODELS)]),
            "FAILOVER_AFTER_SECONDS": str(FAILOVER_AFTER),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": "10",
        }
    )


@pytest.fixture(scope="module")
def unused_models() -> Iterator[str]:
    """Names of models that no request has named yet."""
    return iter([f"m{number}" for number in range(MODELS)])


# The connection is closed without a response.
UNANSWERED: Final = ("cut-headers", "reset-headers")


@dataclass
class Accounts:
    """The three accounts, A, B and C."""

    services: list[ModelService]

    def plan_faults(self, model: str, *faults: Any) -> None:
        """Plan a fault, or a list of them, for this model on each account."""
        for service, fault in zip(self.services, faults, strict=True):
            service.faults[model] = fault

    def requested(self, model: str) -> str:
        """The accounts that received a request for this model, in order.

        A kept connection that is closed without a response may have been closed before the request arrived: it is sent
        again on a new connection, and counts once.
        """
        records: dict[object, tuple[float, str]] = {}
        for name, service in zip("ABC", self.services, strict=True):
            for record in service.requests:
                if record.deployment == model:
                    request_id = record.headers["x-ms-client-request-id"]
                    key = (request_id, name) if record.fault in UNANSWERED else f"{record.index}{name}"
                    records.setdefault(key, (record.arrived, name))  # the first time that it arrived
        return "".join(name for _, name in sorted(records.values()))

    @property
    def open_requests(self) -> int:
        """The number of requests that have not ended."""
        return sum(service.open_requests for service in self.services)

    async def stop(self) -> None:
        """Stop all three, which closes every connection to them."""
        for service in self.services:
            await service.stop()

    async def start(self) -> None:
        """Start them again."""
        for service in self.services:
            await service.start()


@pytest.fixture
async def accounts(ports: tuple[int, ...]) -> AsyncIterator[Accounts]:
    """The three accounts, new for this test."""
    async with AsyncExitStack() as stack:
        services = []
        for port, tokens in zip(ports, TOKENS, strict=True):
            service = ModelService(port=port, tokens_per_second=0, tokens_per_write=2)
            service.answer(tokens)
            services.append(await stack.enter_async_context(service))
        yield Accounts(services)


# ── What a caller receives, for each kind of answer ──────────────────────────────────────────────────────────────────

KINDS: Final = ("stream", "document", "openai stream", "openai document")


@dataclass
class Outcome:
    """The outcome of a request. `ending`: `done`, or the error's code. `status` is that of the response."""

    status: int
    text: str
    ending: str | None
    retry_after: int | None = None
    request_id: str = ""


async def send(client: httpx.AsyncClient, kind: str, model: str) -> Outcome:
    """Request a kind of answer, and parse it strictly."""
    if kind.startswith("openai"):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Say something."}]}
        url = "/v1/chat/completions"
    else:
        body, url = {"input": "Say something."}, "/stream"
    body |= {"model": model, "stream": kind.endswith("stream")}
    response = await post_streamed(client, url, body)
    outcome = Outcome(response.status_code, "", None, request_id=response.headers["x-request-id"])
    if response.status_code != 200:
        document = response.json()
        outcome.ending = document["error"]["code"] if "error" in document else document["code"]
        if "retry-after" in response.headers:
            outcome.retry_after = int(response.headers["retry-after"])
    elif kind == "document":
        outcome.text, outcome.ending = response.json()["text"], "done"
    elif kind == "openai document":
        outcome.text, outcome.ending = response.json()["choices"][0]["message"]["content"], "done"
    else:
        parse_events(outcome, response.text)
        assert response.broken == (outcome.ending != "done" and kind.startswith("openai"))
    return outcome


def parse_events(outcome: Outcome, content: str) -> None:
    for event in content.removesuffix("\n\n").split("\n\n"):
        if event == ": ping":
            continue
        assert outcome.ending is None, f"there is an event after the terminal event: {event}"
        *event_type, data = event.split("\n")
        data = data.removeprefix("data: ")
        if event_type or data == "[DONE]" or '"error"' in data:
            members = {} if data == "[DONE]" else json.loads(data)
            outcome.ending = members["error"]["code"] if "error" in members else members.get("code", "done")
        else:
            members = json.loads(data)
            choices = members.get("choices", ())
            text = members.get("text", "") + "".join(choice["delta"].get("content") or "" for choice in choices)
            outcome.text += text
    assert outcome.ending is not None, "a stream without a terminal event"


# ── What the contract requires ───────────────────────────────────────────────────────────────────────────────────────

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
# Faults after which another backend is tried: the code and `Retry-After` that a caller receives where all fail.
RETRYABLE: Final[dict[str, tuple[str, int | None]]] = {
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
    "no-answer": (ERROR, None),
}
FINAL: Final = {
    "400": "invalid_request",
    "context-length": "context_length_exceeded",
    "content-filter": "content_filter",
    "404": "model_not_found",
    "error-bad-request": "invalid_request",
    "error-too-long": "context_length_exceeded",
}
MIDWAY: Final = {
    "cut-midway": "upstream_interrupted",
    "end-midway": "upstream_interrupted",
    "error-midway": ERROR,
    "garbage-midway": ERROR,
    "error-event": LIMITED,
    "error-choice": ERROR,
}
STALL: Final = "stall-headers"
FAULTS: Final = (*GOOD, *RETRYABLE, *FINAL, *MIDWAY, STALL)


@dataclass
class Expected:
    """`requested`: the accounts that receive a request, in this order, and no others."""

    requested: str
    text: str | None
    ending: str
    status: int
    retry_after: int | None = None


def expected_outcome(kind: str, faults: Sequence[str | None]) -> Expected:
    """What the contract requires for three accounts of one priority that have no other requests."""
    refusals: list[tuple[str, int | None]] = []
    for place, fault in enumerate(faults):
        requested = "ABC"[: place + 1]
        if fault in GOOD:
            return Expected(requested, TEXTS[place], "done", 200)
        if fault in FINAL:
            code = "invalid_value" if fault == "400" and kind.startswith("openai") else FINAL[fault]
            return Expected(requested, None, code, STATUS[code])
        if fault in MIDWAY and kind != "openai document":
            code = MIDWAY[fault]
            if kind == "document":
                return Expected(requested, None, code, STATUS[code])
            return Expected(requested, BEGINNINGS[place], code, 200)
        if fault == STALL:
            if place == len(faults) - 1:
                return Expected(requested, None, TIMEOUT, STATUS[TIMEOUT])
            refusals.append((TIMEOUT, None))
        else:
            refusals.append(RETRYABLE.get(fault or "", (ERROR, None)))
    timed = [(seconds, code) for code, seconds in refusals if seconds is not None]
    if timed:
        seconds, code = min(timed, key=lambda it: it[0])
        return Expected("ABC", None, code, STATUS[code], seconds)
    limited = [code for code, _ in refusals if code == LIMITED]
    code = limited[-1] if limited else refusals[-1][0]
    return Expected("ABC", None, code, STATUS[code])


def check(outcome: Outcome, expected: Expected) -> None:
    assert (outcome.status, outcome.ending, outcome.text) == (expected.status, expected.ending, expected.text or "")
    assert outcome.retry_after == expected.retry_after


@pytest.mark.parametrize("seed", range(4))
async def test_any_mixture_of_faults(
    pooled_app: HostedApp, accounts: Accounts, unused_models: Iterator[str], seed: int
) -> None:
    dice = random.Random(seed)
    at_once = asyncio.Semaphore(8)

    async def one(client: httpx.AsyncClient) -> None:
        kind, faults, model = dice.choice(KINDS), dice.choices(FAULTS, k=3), next(unused_models)
        accounts.plan_faults(model, *faults)
        expected = expected_outcome(kind, faults)
        async with at_once:
            outcome = await send(client, kind, model)
        try:
            check(outcome, expected)
            assert accounts.requested(model) == expected.requested
        except AssertionError as error:
            raise AssertionError(f"{kind}, faults {faults}: {error}") from error

    async with pooled_app.client() as client:
        await asyncio.gather(*(one(client) for _ in range(30)))
    await eventually(lambda: accounts.open_requests == 0)


@pytest.mark.parametrize("fault", [*RETRYABLE, STALL])
async def test_the_next_backend_answers_where_one_failed(
    pooled_app: HostedApp, accounts: Accounts, unused_models: Iterator[str], fault: str
) -> None:
    async def one(client: httpx.AsyncClient, kind: str) -> None:
        model = next(unused_models)
        accounts.plan_faults(model, fault, None, None)
        check(await send(client, kind, model), Expected("AB", TEXTS[1], "done", 200))
        assert accounts.requested(model) == "AB"

    kinds = [kind for kind in KINDS if kind != "openai document" or fault not in ("error-first", "garbage-first")]
    async with pooled_app.client() as client:
        await asyncio.gather(*(one(client, kind) for kind in kinds))
    await eventually(lambda: accounts.open_requests == 0)


# ── Many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
async def test_many_requests_at_random_times(
    pooled_app: HostedApp, accounts: Accounts, unused_models: Iterator[str], seed: int
) -> None:
    dice = random.Random(seed)
    model = next(unused_models)
    faults = [
        None,
        None,
        None,
        "429-ms-50",
        "429-none",
        "500",
        "cut-first",
        "error-midway",
        "cut-headers",
        STALL,
        "404",
    ]
    accounts.plan_faults(model, *([dice.choice(faults) for _ in range(60)] for _ in TOKENS))

    async def one(client: httpx.AsyncClient) -> Outcome:
        await asyncio.sleep(dice.random() * 1.5)
        kind = dice.choice(KINDS)
        outcome = await send(client, kind, model)
        if outcome.ending == "done":
            assert outcome.text in TEXTS
        else:
            cut = outcome.text in BEGINNINGS and outcome.ending == ERROR and kind.endswith("stream")
            assert outcome.text == "" or cut
            assert outcome.ending in STATUS
        return outcome

    async with pooled_app.client(limits=httpx.Limits(max_connections=80)) as client:
        outcomes = await asyncio.gather(*(one(client) for _ in range(60)))
    assert Counter(outcome.ending for outcome in outcomes)["done"] > 0  # how many is a matter of the machine's pace
    await eventually(lambda: accounts.open_requests == 0)
    for service in accounts.services:
        received = Counter(
            record.headers["x-ms-client-request-id"] for record in service.requests if record.fault not in UNANSWERED
        )
        assert max(received.values()) == 1, "a request is sent to a deployment once"
        assert set(received) <= {outcome.request_id for outcome in outcomes}


# ── The choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ranked_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """The app with two accounts of the first priority and one of the second; it does not fail over from silence."""
    return start_ranked_app(functions_app, ports, commit_wait="0.1")


@pytest.fixture(scope="module")
def patient_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...]) -> HostedApp:
    """The same with a long commit wait, so that a refusal keeps its status on a busy machine."""
    return start_ranked_app(functions_app, ports, commit_wait="10")


def start_ranked_app(functions_app: Callable[..., HostedApp], ports: tuple[int, ...], *, commit_wait: str) -> HostedApp:
    models = [
        MANUAL_PACE,
        *(f"{MANUAL_PACE}-{number}" for number in range(12)),
        *(f"r{number}" for number in range(12)),
    ]
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": backends(ports, models, (1, 1, 2)),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": commit_wait,
            "PING_INTERVAL_SECONDS": "0.1",
        }
    )


async def test_by_priority_then_by_load(ranked_app: HostedApp, accounts: Accounts) -> None:
    def finished() -> int:
        """The number of streams that the app has finished; their load does not count any more."""
        records = ranked_app.stream_records().values()
        return sum(record["gen_ai.request.model"] == MANUAL_PACE for record in records)

    async with ranked_app.client() as client:
        sending = [asyncio.create_task(send(client, "stream", MANUAL_PACE)) for _ in range(6)]
        await eventually(lambda: accounts.open_requests == 6)
        assert Counter(accounts.requested(MANUAL_PACE)) == {"A": 3, "B": 3}
        accounts.services[0].release(9 * 3)
        await eventually(lambda: finished() == 3)
        sending += [asyncio.create_task(send(client, "stream", MANUAL_PACE)) for _ in range(2)]
        await eventually(lambda: accounts.open_requests == 5)
        assert Counter(accounts.requested(MANUAL_PACE)) == {"A": 5, "B": 3}, "A has the least load again"
        for service in accounts.services:
            service.release(9 * 5)
        assert {outcome.ending for outcome in await asyncio.gather(*sending)} == {"done"}


async def test_a_backend_that_cools_down_gets_no_requests_until_then(ranked_app: HostedApp, accounts: Accounts) -> None:
    cool_down = 3  # seconds
    accounts.plan_faults("r0", [f"429-{cool_down}"], "500", None)
    async with ranked_app.client() as client:
        assert (await send(client, "stream", "r0")).text == TEXTS[2]
        cooling_down_since = time.monotonic()
        assert accounts.requested("r0") == "ABC"
        for _ in range(5):
            assert (await send(client, "stream", "r0")).text == TEXTS[2]
        assert "A" not in accounts.requested("r0")[3:]
        accounts.plan_faults("r0", None, None, None)
        await asyncio.sleep(cooling_down_since + cool_down + 0.1 - time.monotonic())
        outcome = await send(client, "stream", "r0")
    assert outcome.text == TEXTS[0], "after its cool-down it comes first again"


PROBATION: Final = 2.0  # seconds for which the app tries a backend last after a failure


async def test_a_backend_that_failed_is_tried_last_for_a_moment(ranked_app: HostedApp, accounts: Accounts) -> None:
    async def requested(client: httpx.AsyncClient, model: str) -> str:
        accounts.plan_faults(model, "500", None, None)
        for _ in range(3):
            assert (await send(client, "openai stream", model)).text == TEXTS[1]
        # It is tried last, but it is tried.
        accounts.plan_faults(model, None, "500", "500")
        assert (await send(client, "openai stream", model)).text == TEXTS[0]
        return accounts.requested(model)

    async with ranked_app.client() as client:
        for model in ("r1", "r6", "r7", "r8"):
            began = time.monotonic()
            order = await requested(client, model)
            if time.monotonic() - began < PROBATION:  # otherwise the machine is too busy to tell
                assert order == "ABBB" + "BCA"
                return
    pytest.fail("four requests took longer than the probation, four times")


async def test_a_backend_that_was_silent_is_tried_last_for_a_moment(ranked_app: HostedApp, accounts: Accounts) -> None:
    accounts.plan_faults("r5", STALL, None, None)
    async with ranked_app.client() as client:
        assert (await send(client, "document", "r5")).ending == TIMEOUT
        assert (await send(client, "document", "r5")).text == TEXTS[1]


async def test_while_all_backends_cool_down_each_is_tried_now_and_then(
    patient_app: HostedApp, accounts: Accounts
) -> None:
    accounts.plan_faults("r2", "429-30", "429-20", "503-after-25")
    async with patient_app.client() as client:
        first = await send(client, "stream", "r2")
        assert (first.status, first.ending, first.retry_after) == (429, LIMITED, 20)
        assert accounts.requested("r2") == "ABC"
        for kind in KINDS:
            outcome = await send(client, kind, "r2")
            assert (outcome.status, outcome.ending) == (429, LIMITED)
            assert outcome.retry_after is not None
            assert 1 <= outcome.retry_after <= 20
        requested = accounts.requested("r2")
        assert requested.startswith("ABCABC"), "in turns, one for each request"
        assert len(requested) <= 3 + len(KINDS)
        accounts.plan_faults("r2", None, "429-20", "503-after-25")
        outcome = await send(client, "stream", "r2")
        while outcome.ending != "done":
            await asyncio.sleep(0.2)  # until the next trial of A is due
            outcome = await send(client, "stream", "r2")
        requested = accounts.requested("r2")
        for kind in KINDS:
            assert (await send(client, kind, "r2")).text == TEXTS[0], "its answer has ended its cool-down"
    assert accounts.requested("r2") == requested + "A" * len(KINDS)


async def test_a_retry_after_in_the_past_is_no_cool_down(ranked_app: HostedApp, accounts: Accounts) -> None:
    accounts.plan_faults("r3", "429-0", "429-ms-0", None)
    async with ranked_app.client() as client:
        for _ in range(2):
            assert (await send(client, "stream", "r3")).text == TEXTS[2]
        accounts.plan_faults("r3", None, "500", "500")
        assert (await send(client, "stream", "r3")).text == TEXTS[0]


# ── Before and after the first output ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["stream", "openai stream"])
@pytest.mark.parametrize("fault", ["cut-first", "error-first", "garbage-first", "html", "empty"])
async def test_failover_between_the_commit_and_the_first_output(
    ranked_app: HostedApp, accounts: Accounts, fault: str, kind: str
) -> None:
    number = ["cut-first", "error-first", "garbage-first", "html", "empty"].index(fault)
    model = f"{MANUAL_PACE}-{2 * number + (kind == 'stream')}"
    accounts.plan_faults(model, f"stall-headers-0.4+{fault}", None, None)
    accounts.services[1].release(9, model)
    async with ranked_app.client() as client:
        check(await send(client, kind, model), Expected("AB", TEXTS[1], "done", 200))
    assert accounts.requested(model) == "AB"


async def test_without_the_setting_there_is_no_failover_from_silence(ranked_app: HostedApp, accounts: Accounts) -> None:
    accounts.plan_faults("r4", STALL, None, None)
    async with ranked_app.client() as client:
        outcome = await send(client, "document", "r4")
    assert (outcome.status, outcome.ending) == (504, TIMEOUT)
    assert accounts.requested("r4") == "A"


async def test_after_a_disconnect_there_is_no_failover(
    pooled_app: HostedApp, accounts: Accounts, unused_models: Iterator[str]
) -> None:
    model = next(unused_models)
    accounts.plan_faults(model, STALL, STALL, STALL)
    async with pooled_app.client() as client:
        sending = asyncio.create_task(send(client, "stream", model))
        await eventually(lambda: accounts.open_requests == 1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await eventually(lambda: accounts.open_requests == 0)
        await asyncio.sleep(FAILOVER_AFTER + 0.1)
    assert len(accounts.requested(model)) == 1


# ── Nothing remains ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_remains_of_failovers(
    functions_app: Callable[..., HostedApp], accounts: Accounts, ports: tuple[int, ...]
) -> None:
    app = functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": backends(ports, ["m"]),
            "FAILOVER_AFTER_SECONDS": "0.1",
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "0.3",
            "COMMIT_WAIT_SECONDS": "5",
        },
        script_root=INSPECTED_APP,
        fresh=True,
    )
    dice = random.Random(1)
    at_once = 40
    faults = [None, "429-none", "500", "cut-first", "error-first", "cut-midway", "cut-headers", STALL]

    async def burst(client: httpx.AsyncClient, count: int) -> None:
        accounts.plan_faults("m", *([dice.choice(faults) for _ in range(count)] for _ in TOKENS))
        for _ in range(count // at_once):
            await asyncio.gather(*(send(client, dice.choice(KINDS), "m") for _ in range(at_once)))
        await eventually(lambda: accounts.open_requests == 0)

    async def state_at_rest() -> dict[str, Any]:
        """The state of the worker once no stream exists and no connection to an account is kept."""
        await accounts.stop()

        async def state() -> dict[str, Any] | None:
            async with app.client(headers={"Connection": "close"}) as client:
                found = (await client.get("/inspect")).json()
            return None if any(found["objects"].values()) else dict(found)

        at_rest = await eventually(state)
        await accounts.start()
        return at_rest

    async with app.client(limits=httpx.Limits(max_connections=50)) as client:
        await burst(client, 80)
        before = await state_at_rest()
        await burst(client, 120)
        after = await state_at_rest()
        assert after["open_files"] <= before["open_files"] + at_once  # the host's idle connections to the worker
        growth = after["resident"] - before["resident"]
        assert growth < 120 * 8 * 1024, f"{growth / 120:.0f} bytes per request"
        # A load that was counted and never released would keep requests away from a backend.
        assert after["loads"] == [0, 0, 0]
