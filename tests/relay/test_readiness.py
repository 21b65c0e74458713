"""How often the backends are probed for `GET /ready`, and for how long."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from local.model_service import ModelService
from relay import readiness
from relay.readiness import Readiness
from relay.settings import Settings
from relay.upstream.pool import BackendPool


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as running:
        yield running


@pytest.fixture
async def pool(service: ModelService) -> AsyncIterator[BackendPool]:
    pool = BackendPool(
        Settings.read({"AZURE_OPENAI_ENDPOINT": service.url, "AZURE_OPENAI_DEPLOYMENTS": "first,second"})
    )
    yield pool
    await pool.close()


async def ready(readiness: Readiness) -> tuple[int, dict[str, Any]]:
    status, document = await readiness.document()
    return status, json.loads(document)


async def test_findings_are_cached(monkeypatch: pytest.MonkeyPatch, service: ModelService, pool: BackendPool) -> None:
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    cached = Readiness(pool)
    service.faults["first"] = "503"
    assert (await ready(cached))[0] == 503
    service.faults.clear()
    clock.now += 9.9
    assert (await ready(cached))[0] == 503
    assert len(service.requests) == 2
    clock.now += 0.1
    assert (await ready(cached))[0] == 200
    assert len(service.requests) == 4


async def test_concurrent_requests_share_one_probe(service: ModelService, pool: BackendPool) -> None:
    service.faults["*"] = "stall-headers-0.2"
    cached = Readiness(pool)
    answers = await asyncio.gather(*(cached.document() for _ in range(50)))
    assert len(set(answers)) == 1
    assert len(service.requests) == 2


async def test_a_client_that_disconnects_does_not_cancel_the_probe(service: ModelService, pool: BackendPool) -> None:
    service.faults["*"] = "stall-headers-0.2"
    cached = Readiness(pool)
    disconnecting = asyncio.create_task(cached.document())
    waiting = asyncio.create_task(cached.document())
    await service.wait_for(lambda it: it.open_requests == 2)
    disconnecting.cancel()
    assert (await waiting)[0] == 200
    assert len(service.requests) == 2


async def test_a_silent_backend_is_given_up(
    monkeypatch: pytest.MonkeyPatch, service: ModelService, pool: BackendPool
) -> None:
    monkeypatch.setattr(readiness, "_PROBE_TIMEOUT", 0.3)
    service.faults["second"] = "stall-headers"
    began = time.monotonic()
    status, document = await ready(Readiness(pool))
    assert time.monotonic() - began < 1
    assert status == 503
    first, second = document["backends"]
    assert first["ready"]
    assert second["code"] == "upstream_timeout"
    assert second["checks"]["answers"] is False
    await service.wait_for(lambda it: it.open_requests == 0)


async def test_a_probe_starts_no_cool_down(service: ModelService, pool: BackendPool) -> None:
    service.faults["*"] = ["429-100", "429-100"]
    assert (await ready(Readiness(pool)))[0] == 503
    assert [backend.cooling_down() for backend in pool.all()] == [None, None]
    assert [backend.load for backend in pool.all()] == [0, 0]


async def test_a_server_that_accepts_the_probe_is_ready(monkeypatch: pytest.MonkeyPatch, pool: BackendPool) -> None:
    monkeypatch.setitem(readiness._PROBE.parameters, "messages", [{"role": "user", "content": "x"}])
    assert (await ready(Readiness(pool)))[0] == 200
