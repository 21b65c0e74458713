"""Many streams at once: none fails or loses an event, and memory does not grow.

`STREAMS_SECONDS` in the environment makes the first test last longer.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.hosting import HostedApp, eventually

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")
SECONDS: Final = float(os.environ.get("STREAMS_SECONDS", "4"))
STREAMS: Final = 200
TOKENS_PER_SECOND: Final = 10.0  # of each stream
TOKENS: Final = [f"w{number} " for number in range(20)]
TEXT: Final = "".join(TOKENS)
MEMORY_GROWTH_LIMIT: Final = 8 * 1024 * 1024  # bytes that the allocator may keep


@pytest.fixture(scope="module")
def loaded_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with `GET /inspect`."""
    return functions_app(env=app_settings, script_root=INSPECTED_APP)


async def one_stream(session: aiohttp.ClientSession, url: str, model: str = DEFAULT_DEPLOYMENT) -> None:
    """One answer, of which every event is checked."""
    async with session.post(f"{url}/stream", json={"input": "x", "model": model}) as response:
        assert response.status == 200
        content = await response.read()
    *events, done = content.decode().removesuffix("\n\n").split("\n\n")
    assert done.startswith("event: done\ndata: {")
    texts = [event for event in events if event != ": ping"]
    assert "".join(json.loads(text.removeprefix("data: "))["text"] for text in texts) == TEXT


async def inspect(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """What exists in the worker process: counts, and its memory in bytes."""
    async with session.get(f"{url}/inspect") as response:
        state = await response.json()
    return {
        "tasks": len(state["tasks"]),
        "streams": state["objects"]["Stream"],
        "requests_kept": state["requests_kept"],
        "resident": state["resident"],
    }


async def state_at_rest(session: aiohttp.ClientSession, url: str) -> dict[str, int] | None:
    """The same, once no stream exists; None before."""
    state = await inspect(session, url)
    return None if state["streams"] else state


@pytest.mark.timeout(SECONDS + 90)
async def test_two_hundred_streams_at_once(
    loaded_app: HostedApp, model_service: ModelService, record_property: Callable[[str, object], None]
) -> None:
    url = loaded_app.url
    model_service.answer(TOKENS)
    completed = 0

    async def stream_repeatedly(session: aiohttp.ClientSession, until: float) -> None:
        nonlocal completed
        while time.monotonic() < until:
            await one_stream(session, url)
            completed += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        # All are open before any of them gets a token. Afterwards, what is created once for each connection exists.
        streams = [asyncio.create_task(one_stream(session, url, MANUAL_PACE)) for _ in range(STREAMS)]
        await model_service.wait_for(lambda service: service.open_requests == STREAMS, timeout=60)
        model_service.release(STREAMS * len(TOKENS))
        await asyncio.gather(*streams)

        before = await eventually(lambda: state_at_rest(session, url))
        model_service.tokens_per_second = TOKENS_PER_SECOND
        until = time.monotonic() + SECONDS
        await asyncio.gather(*[stream_repeatedly(session, until) for _ in range(STREAMS)])
        assert completed >= STREAMS

        async def as_before() -> dict[str, int] | None:
            now = await inspect(session, url)
            return now if now["tasks"] <= before["tasks"] and now["streams"] == before["streams"] else None

        after = await eventually(as_before)
    record_property("streams", completed)
    record_property("resident_before", before["resident"])
    record_property("resident_after", after["resident"])
    print(f"{completed} streams; resident {before['resident'] >> 10} KiB before, {after['resident'] >> 10} KiB after")
    assert after["requests_kept"] <= before["requests_kept"] + 1
    assert after["resident"] - before["resident"] < MEMORY_GROWTH_LIMIT
    assert model_service.open_requests == 0
    assert {record.ended for record in model_service.requests} == {"complete"}
    assert "Traceback" not in loaded_app.output


async def test_streams_keep_their_pace_beside_many_others(loaded_app: HostedApp, model_service: ModelService) -> None:
    """Of each of fifty streams every token arrives before the model service writes another one in any of them."""
    streams, tokens = 50, 30
    model_service.answer([f"<{number}>" for number in range(tokens)])
    received = [0] * streams
    gate = model_service.gates[MANUAL_PACE]

    async def stream(session: aiohttp.ClientSession, number: int) -> None:
        body = {"input": "x", "model": MANUAL_PACE}
        async with session.post(f"{loaded_app.url}/stream", json=body) as response:
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                while b"<%d>" % received[number] in content:
                    received[number] += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        running = [asyncio.create_task(stream(session, number)) for number in range(streams)]
        for token in range(tokens):
            await eventually(lambda: len(gate._waiters or ()) == streams)  # each will be given one
            model_service.release(streams)
            await eventually(lambda token=token: received == [token + 1] * streams)
        await asyncio.gather(*running)


async def test_a_finished_stream_is_freed_without_the_garbage_collector(
    loaded_app: HostedApp, model_service: ModelService
) -> None:
    """Under load the collector runs late, and memory that waits for it is memory that grows."""
    async with loaded_app.client() as client:
        await client.get("/inspect?collector=off")
        try:
            for _ in range(30):
                assert (await client.post("/stream", json={"input": "x"})).status_code == 200
        finally:
            uncollected = (await client.get("/inspect")).json()["uncollected"]
    assert uncollected <= 2
