"""The limits of callers in a real table of Azurite, shared by several processes of the app.

Azurite takes half a minute to install: AZURITE=1 pytest tests/end_to_end/test_limits_store.py -s
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from local.key import new_key
from local.model_service import MANUAL_PACE, ModelService
from relay.callers.settings import LimitsStore
from relay.callers.shared_limits import _SPARE, State
from relay.callers.table_store import TableStore
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_callers import digest

if not os.environ.get("AZURITE"):
    pytest.skip("AZURITE=1 installs and starts Azurite", allow_module_level=True)

PACKAGE: Final = Path(__file__).with_name("azurite") / "package.json"
INSTANCES: Final = 3
LIMIT: Final = 60  # requests a minute
PROMPT: Final = {"input": "say: hello"}
KEYS: Final = {name: new_key() for name in ("busy", "streaming", "away")}


@pytest.fixture(scope="module")
def table() -> Iterator[tuple[LimitsStore, subprocess.Popen[bytes]]]:
    """A table that is not there yet of a new Azurite, and its process."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = Path(sys.prefix) / "azurite"
    folder.mkdir(exist_ok=True)
    shutil.copy(PACKAGE, folder)
    if not (folder / "node_modules" / "azurite").exists():
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"npm can't install Azurite: {done.stderr[-300:]}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = folder / "node_modules" / "azurite" / "dist" / "src" / "table" / "main.js"
    options = ["--tablePort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    azurite = subprocess.Popen([node, program, *options, "--silent"], stdout=subprocess.DEVNULL)
    store = LimitsStore(f"http://127.0.0.1:{port}/devstoreaccount1", "limits")
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert azurite.poll() is None
                assert time.monotonic() < deadline, "Azurite does not start"
                time.sleep(0.05)
        yield store, azurite
    finally:
        azurite.kill()
        azurite.wait()


@pytest.fixture(scope="module")
def apps(
    functions_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    table: tuple[LimitsStore, subprocess.Popen[bytes]],
) -> list[HostedApp]:
    limits: dict[str, Any] = {
        "busy": {"requests_per_minute": LIMIT},
        "streaming": {"streams": 4},
        "away": {"requests_per_minute": LIMIT},
    }
    callers = {name: {"key_digests": [digest(KEYS[name])], "limits": limits[name]} for name in KEYS}
    address = f"{table[0].endpoint}/{table[0].table}"
    env = app_settings | {"CALLERS": json.dumps(callers), "LIMITS_STORE": address}
    return [functions_app(env=env, fresh=True) for _ in range(INSTANCES)]


@pytest.fixture
async def clients(apps: list[HostedApp]) -> AsyncIterator[Callable[[str], list[httpx.AsyncClient]]]:
    """Of a caller, a client of each app."""
    async with AsyncExitStack() as stack:
        made: dict[str, list[httpx.AsyncClient]] = {}
        for name, key in KEYS.items():
            options: dict[str, Any] = {"headers": {"api-key": key}, "timeout": 30, "verify": False}
            made[name] = [
                await stack.enter_async_context(httpx.AsyncClient(base_url=app.url, **options)) for app in apps
            ]
        yield made.__getitem__


async def test_an_update_is_atomic(table: tuple[LimitsStore, subprocess.Popen[bytes]]) -> None:
    stores = [TableStore(table[0]) for _ in range(4)]

    def add(state: State, now: float) -> State:
        assert now >= state.at
        assert abs(now - time.time()) < 5
        return State(state.requests + 1, 0.5, 2.5, now, {**state.streams, "an-instance": (3, now)})

    await asyncio.gather(*(store.update("atomic", add) for store in stores for _ in range(2)))
    state = await stores[0].update("atomic", add)
    assert (state.requests, state.minute, state.day) == (9, 0.5, 2.5)
    assert state.streams == {"an-instance": (3, state.at)}
    for store in stores:
        await store.close()


async def test_the_processes_together_hold_a_limit(
    clients: Callable[[str], list[httpx.AsyncClient]], model_service: ModelService
) -> None:
    """Far more requests than the limit, to all processes at once, for a while."""
    callers = clients("busy")
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    window = asyncio.Semaphore(4 * INSTANCES)

    async def ask(number: int) -> None:
        async with window:
            answer = await callers[number % INSTANCES].post("/stream", json=PROMPT)
            statuses[answer.status_code] += 1
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.headers["x-ratelimit-limit-requests"] == str(LIMIT)

    await asyncio.gather(*(ask(number) for number in range(6 * LIMIT)))
    elapsed = time.monotonic() - began
    allowed = LIMIT * (1 + (elapsed + 1) / 60)  # the service tells its time in whole seconds
    overshoot = statuses[200] / allowed - 1
    print(f"{statuses[200]} of {6 * LIMIT} admitted in {elapsed:.1f} s, {allowed:.1f} allowed: {overshoot:+.1%}")
    assert set(statuses) == {200, 429}
    assert overshoot <= INSTANCES * _SPARE
    assert statuses[200] >= 0.8 * LIMIT, "leases keep more than is stated"


async def test_the_processes_together_hold_a_number_of_streams(
    clients: Callable[[str], list[httpx.AsyncClient]], model_service: ModelService
) -> None:
    callers = clients("streaming")
    body = {"input": "write a long text", "model": MANUAL_PACE}
    async with AsyncExitStack() as streams:
        for number in range(4):
            answer = await streams.enter_async_context(callers[number % INSTANCES].stream("POST", "/stream", json=body))
            assert answer.status_code == 200
        for caller in callers:
            refused = await caller.post("/stream", json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")

    async def admitted() -> bool:
        return (await callers[1].post("/stream", json=PROMPT)).status_code == 200

    deadline = time.monotonic() + 20
    while not await admitted():
        assert time.monotonic() < deadline, "streams that ended are not given back"
        await asyncio.sleep(0.2)


async def test_without_the_store_requests_go_on(
    apps: list[HostedApp],
    clients: Callable[[str], list[httpx.AsyncClient]],
    table: tuple[LimitsStore, subprocess.Popen[bytes]],
    model_service: ModelService,
) -> None:
    """The last test of this module: it ends Azurite."""
    table[1].kill()
    table[1].wait()
    for caller in clients("away"):
        began = time.monotonic()
        answer = await caller.post("/stream", json=PROMPT)
        assert answer.status_code == 200
        assert time.monotonic() - began < 5
        assert answer.headers["x-ratelimit-remaining-requests"] == str(LIMIT - 1)
    for app in apps:
        assert '"event":"limits_store_away"' in app.output
        assert "127.0.0.1" not in app.output.partition('"event":"limits_store_away"')[2].partition("\n")[0]
        records = lambda app=app: [it for it in app.stream_records().values() if it.get("relay.caller") == "away"]  # noqa: E731
        await eventually(lambda records=records: bool(records()))
        assert [it["relay.limits_store_away"] for it in records()] == [True]
