"""How often and how long the readiness of the deployments is asked for."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from local.model_service import ModelService
from relay import readiness
from relay.backends import Backends
from relay.readiness import Readiness
from relay.settings import Settings


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as running:
        yield running


@pytest.fixture
async def backends(service: ModelService) -> AsyncIterator[Backends]:
    backends = Backends(
        Settings.read({"AZURE_OPENAI_ENDPOINT": service.url, "AZURE_OPENAI_DEPLOYMENTS": "first,second"})
    )
    yield backends
    await backends.close()


async def ready(asked: Readiness) -> tuple[int, dict[str, Any]]:
    status, document = await asked.document()
    return status, json.loads(document)


async def test_a_finding_is_kept_for_a_while(
    monkeypatch: pytest.MonkeyPatch, service: ModelService, backends: Backends
) -> None:
    monkeypatch.setattr(readiness, "_KEPT", 0.3)
    asked = Readiness(backends)
    service.faults["first"] = "503"
    assert (await ready(asked))[0] == 503
    service.faults.clear()
    assert (await ready(asked))[0] == 503
    assert len(service.requests) == 2
    await asyncio.sleep(0.35)
    assert (await ready(asked))[0] == 200
    assert len(service.requests) == 4


async def test_it_is_asked_once_however_many_ask(service: ModelService, backends: Backends) -> None:
    service.faults["*"] = "stall-headers-0.2"
    asked = Readiness(backends)
    answers = await asyncio.gather(*(asked.document() for _ in range(50)))
    assert len(set(answers)) == 1
    assert len(service.requests) == 2


async def test_who_leaves_takes_nothing_from_the_others(service: ModelService, backends: Backends) -> None:
    service.faults["*"] = "stall-headers-0.2"
    asked = Readiness(backends)
    leaving = asyncio.create_task(asked.document())
    staying = asyncio.create_task(asked.document())
    await service.wait_for(lambda it: it.open_requests == 2)
    leaving.cancel()
    assert (await staying)[0] == 200
    assert len(service.requests) == 2


async def test_a_slow_deployment_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch, service: ModelService, backends: Backends
) -> None:
    monkeypatch.setattr(readiness, "_LONGEST", 0.3)
    service.faults["second"] = "stall-headers"
    began = time.monotonic()
    status, document = await ready(Readiness(backends))
    assert time.monotonic() - began < 1
    assert status == 503
    first, second = document["backends"]
    assert first["ready"]
    assert second["code"] == "upstream_timeout"
    assert second["checks"]["answers"] is False
    await service.wait_for(lambda it: it.open_requests == 0)


async def test_asking_puts_nobody_to_rest(service: ModelService, backends: Backends) -> None:
    service.faults["*"] = ["429-100", "429-100"]
    assert (await ready(Readiness(backends)))[0] == 503
    assert [backend.resting() for backend in backends.all()] == [None, None]
    assert [backend.load for backend in backends.all()] == [0, 0]


async def test_a_server_that_finds_nothing_wrong_is_ready(monkeypatch: pytest.MonkeyPatch, backends: Backends) -> None:
    monkeypatch.setitem(readiness._NOTHING, "messages", [{"role": "user", "content": "x"}])
    assert (await ready(Readiness(backends)))[0] == 200
