"""Many streams at once: none fails, none loses an event, and memory is flat afterwards.

`STREAMS_SECONDS` in the environment makes it last longer than the few seconds of every day.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from local.model_service import ModelService
from tests.end_to_end.hosting import HostedApp, eventually

INSPECTED_APP = Path(__file__).with_name("inspected_app")
SECONDS = float(os.environ.get("STREAMS_SECONDS", "6"))
STREAMS = 200
PACE = 10.0  # tokens a second, each stream
TOKENS = [f"w{number} " for number in range(20)]
TEXT = "".join(TOKENS)
GROWTH = 8 * 1024 * 1024  # bytes that the allocator may keep


@pytest.fixture(scope="module")
def loaded_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    return functions_app(env=app_settings, script_root=INSPECTED_APP)


async def one_stream(session: aiohttp.ClientSession, url: str) -> None:
    """One answer, each event counted; fails when anything is amiss."""
    async with session.post(f"{url}/stream", json={"input": "x"}) as response:
        assert response.status == 200
        content = await response.read()
    *texts, done = content.decode().removesuffix("\n\n").split("\n\n")
    assert done.startswith("event: done\ndata: {")
    words = [text for text in texts if text != ": ping"]
    assert "".join(json.loads(text.removeprefix("data: "))["text"] for text in words) == TEXT


async def state(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    async with session.get(f"{url}/inspect") as response:
        found = await response.json()
    return {
        "tasks": len(found["tasks"]),
        "streams": found["objects"]["Stream"],
        "requests_kept": found["requests_kept"],
        "resident": found["resident"],
    }


@pytest.mark.timeout(SECONDS + 90)
async def test_two_hundred_streams(
    loaded_app: HostedApp, model_service: ModelService, record_property: Callable[[str, object], None]
) -> None:
    url = loaded_app.url
    model_service.answer(TOKENS)
    completed = 0

    async def keep_asking(session: aiohttp.ClientSession, until: float) -> None:
        nonlocal completed
        while time.monotonic() < until:
            await one_stream(session, url)
            completed += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        # As many streams as later, so that what is made once for each connection is there.
        await asyncio.gather(*[one_stream(session, url) for _ in range(STREAMS)])
        before = await state(session, url)
        model_service.tokens_per_second = PACE
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                await asyncio.sleep(0.5)
                most = max(most, model_service.open_requests)

        watching = asyncio.create_task(watch())
        until = time.monotonic() + SECONDS
        await asyncio.gather(*[keep_asking(session, until) for _ in range(STREAMS)])
        watching.cancel()
        assert most >= STREAMS * 0.9, "the streams were not open at once"
        assert completed >= STREAMS

        async def at_rest() -> bool:
            now = await state(session, url)
            return now["tasks"] <= before["tasks"] and now["streams"] == before["streams"]

        await eventually(at_rest, within=5)
        after = await state(session, url)
    record_property("streams", completed)
    record_property("resident_before", before["resident"])
    record_property("resident_after", after["resident"])
    print(f"{completed} streams; resident {before['resident'] >> 10} KiB before, {after['resident'] >> 10} KiB after")
    assert after["requests_kept"] <= before["requests_kept"] + 1
    assert after["resident"] - before["resident"] < GROWTH
    assert model_service.open_requests == 0
    assert {record.ended for record in model_service.requests} == {"complete"}
    assert "Traceback" not in loaded_app.output


async def test_streams_keep_their_pace_beside_many_others(loaded_app: HostedApp, model_service: ModelService) -> None:
    """Each of fifty streams, measured from the model's making of a token to its sight at the caller."""
    model_service.tokens_per_second = 20
    model_service.answer([f"<{number}>" for number in range(30)])
    late: list[float] = []

    async def measured(session: aiohttp.ClientSession, number: int) -> None:
        name = f"pace-of-stream-{number:04}"
        async with session.post(
            f"{loaded_app.url}/stream", json={"input": "x"}, headers={"X-Request-Id": name}
        ) as response:
            (made,) = [
                record.token_times
                for record in model_service.requests
                if record.headers.get("x-ms-client-request-id") == name
            ]
            seen = 0
            async for chunk in response.content.iter_any():
                now = time.monotonic()
                while seen < 30 and b"<%d>" % seen in chunk:
                    late.append(now - made[seen])
                    seen += 1
            assert seen == 30

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[measured(session, number) for number in range(50)])
    assert len(late) == 50 * 30
    assert statistics.median(late) < 0.1


async def test_a_stream_that_has_ended_is_gone_at_once(loaded_app: HostedApp, model_service: ModelService) -> None:
    """Without the garbage collector: under load it comes late, and memory that waits for it is memory that grows."""
    async with loaded_app.client() as client:
        await client.get("/inspect?collector=off")
        try:
            for _ in range(30):
                assert (await client.post("/stream", json={"input": "x"})).status_code == 200
        finally:
            kept = (await client.get("/inspect")).json()["uncollected"]
    assert kept <= 2
