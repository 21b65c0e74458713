"""A caller who reads slower than the model writes: the model waits, memory stays bounded, others notice nothing."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from local.model_service import BY_HAND, ModelService
from tests.end_to_end.answers import SSE, ask
from tests.end_to_end.hosting import HostedApp, eventually

SIZE = 60_000_000  # bytes of the answer; as events more
BOUND = 20 * 1024 * 1024  # bytes of memory that it may cost


def resident(app: HostedApp) -> int:
    """The worker's memory, in bytes."""
    status = Path(f"/proc/{app.worker_pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.fixture(scope="module")
def roomy_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    return functions_app(
        env=app_settings
        | {"MAX_OUTPUT_TOKENS": "1000000", "PING_INTERVAL_SECONDS": "0.2", "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "1"},
        fresh=True,
    )


async def slow_reader(app: HostedApp, **more: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Asks for a stream and does not read it."""
    reader, writer = await asyncio.open_connection(*app.address, limit=1024)
    body = json.dumps({"input": "x", **more}).encode()
    writer.write(b"POST /stream HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return reader, writer


async def test_memory_is_bounded_and_others_keep_their_pace(roomy_app: HostedApp, model_service: ModelService) -> None:
    tokens = ["~" * 20_000] * (SIZE // 20_000)  # no id or name has this sign in it
    model_service.answer(tokens, deployment="gpt-5.4-mini")
    model_service.answer([f"<{number}>" for number in range(10)], deployment=BY_HAND)
    model_service.tokens_per_write = 1
    async with roomy_app.client() as client:
        model_service.release(10)
        assert (await ask(client, SSE, model=BY_HAND)).endings == 1
        before = resident(roomy_app)
        reader, writer = await slow_reader(roomy_app)
        try:
            await model_service.wait_for(
                lambda service: len(service.requests) == 2 and service.requests[-1].tokens > 10
            )
            await asyncio.sleep(1.5)  # longer than the silence timeout: it is the caller who is silent
            written = model_service.requests[-1].tokens
            assert written < len(tokens) / 2, "the model was not held back"
            assert resident(roomy_app) - before < BOUND

            # Another one, word by word, meanwhile.
            late: list[float] = []
            model_service.release()
            async with client.stream("POST", "/stream", json={"input": "y", "model": BY_HAND}, timeout=10) as response:
                await read_by_hand(response, model_service, late)
            assert sorted(late)[len(late) // 2] < 0.1

            # And the slow one gets all of it in the end.
            size = 0
            tail = b""
            while b"event: done" not in tail:
                chunk = await asyncio.wait_for(reader.read(1 << 20), 5)
                assert chunk, "the stream was cut"
                size += chunk.count(b"~")
                tail = tail[-200:] + chunk
            assert size == sum(len(token) for token in tokens)
            assert resident(roomy_app) - before < BOUND
        finally:
            writer.close()


async def answered(client: httpx.AsyncClient) -> bool:
    """Whether the app has all that the first request makes."""
    return (await ask(client, SSE)).done is not None


async def read_by_hand(response: httpx.Response, service: ModelService, late: list[float]) -> None:
    seen = ""
    pieces = response.aiter_text()
    for number in range(10):
        if number:
            service.release()
        began = time.monotonic()
        while f"<{number}>" not in seen:
            seen += await asyncio.wait_for(anext(pieces), 5)
        late.append(time.monotonic() - began)


async def test_one_who_never_reads_is_let_go_at_the_deadline(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    app = functions_app(env=app_settings | {"MAX_OUTPUT_TOKENS": "1000000", "STREAM_DEADLINE_SECONDS": "1.5"})
    async with app.client() as client:
        await eventually(lambda: answered(client), within=10)
    model_service.requests.clear()
    model_service.answer(["z" * 20_000] * 2000)
    model_service.tokens_per_write = 1
    _, writer = await slow_reader(app)
    try:
        await model_service.wait_for(lambda service: service.open_requests == 1)
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=4)
        assert model_service.requests[-1].ended == "aborted"
    finally:
        writer.close()


async def test_a_break_takes_no_words_from_one_who_is_behind(roomy_app: HostedApp, model_service: ModelService) -> None:
    async with roomy_app.client() as client:
        await eventually(lambda: answered(client), within=10)
    model_service.requests.clear()
    model_service.tokens_per_write = 1
    model_service.answer([f"<{number}>" + "z" * 20_000 for number in range(601)])
    model_service.faults["*"] = "cut-midway-600"
    reader, writer = await slow_reader(roomy_app)
    content = b""
    try:
        await model_service.wait_for(lambda service: service.requests and service.requests[-1].tokens > 10)
        while chunk := await asyncio.wait_for(reader.read(1 << 16), 5):
            content += chunk
            await asyncio.sleep(0.002)
            if b"event: error" in content[-2000:]:
                break
    finally:
        writer.close()
    assert content.count(b"z") == 600 * 20_000
    assert b"<599>" in content
    assert b"upstream_interrupted" in content
