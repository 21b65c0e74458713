"""A client that reads more slowly than the model writes: the model waits, memory is bounded, other streams go on."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import httpx
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService, Record
from tests.end_to_end.answers import PLAIN, SSE, post_stream
from tests.end_to_end.hosting import HostedApp

MIB: Final = 1024 * 1024
MEMORY_LIMIT: Final = 20 * MIB  # that one slow client may cost, whatever the size of its answer
SILENCE_TIMEOUT: Final = 1.0  # seconds
RECEIVE_BUFFER: Final = 16 * 1024  # bytes, of the slow client
TOKEN_SIZE: Final = 20_000  # bytes
LATE: Final = 0.5  # seconds after the end of an answer in which its client reads nothing


def buffer_capacity() -> int:
    """The bytes that the kernel's and the processes' buffers between the model service and a client hold at most.

    There are three connections; the receive buffer of the last one is the slow client's, and small.
    """

    def most(name: str, default: int) -> int:
        setting = Path(f"/proc/sys/net/ipv4/{name}")
        return int(setting.read_text().split()[2]) if setting.exists() else default

    return 3 * most("tcp_wmem", 4 * MIB) + 2 * most("tcp_rmem", 6 * MIB) + 4 * MIB


# The buffers can't hold this answer.
TOKENS: Final = buffer_capacity() // TOKEN_SIZE + 500


def resident(app: HostedApp) -> int:
    """The worker's memory, in bytes."""
    status = Path(f"/proc/{app.worker_pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.fixture(scope="module")
def slow_reader_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a high output limit, and with times that are shorter than these tests."""
    settings = {
        "MAX_OUTPUT_TOKENS": "1000000",
        "PING_INTERVAL_SECONDS": "0.2",
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
    }
    return functions_app(env=app_settings | settings, fresh=True)


async def warm_up(app: HostedApp, service: ModelService) -> None:
    """Send a request, with which the app creates what it creates once."""
    service.answer("x")
    async with app.client() as client:
        assert (await post_stream(client, SSE)).done
    service.requests.clear()


@contextlib.asynccontextmanager
async def slow_client(app: HostedApp, accept: str = SSE) -> AsyncIterator[asyncio.StreamReader]:
    """Requests a stream; only what the caller of this function reads is taken from the connection."""
    connection = socket.socket()
    # Before the connection is made: afterwards the window that was announced would stay.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, app.address)
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    body = json.dumps({"input": "x"}).encode()
    head = f"POST /stream HTTP/1.1\r\nHost: h\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        yield reader
    finally:
        writer.close()


async def held_back(record: Record, *, seconds: float) -> int:
    """Wait until the model service could not write for so many seconds; returns how many tokens it has written."""
    async with asyncio.timeout(60):
        written = -1
        while record.tokens != written or not written:
            written = record.tokens
            await asyncio.sleep(seconds)
    return written


async def test_memory_is_bounded_and_other_streams_keep_their_pace(
    slow_reader_app: HostedApp, model_service: ModelService
) -> None:
    await warm_up(slow_reader_app, model_service)
    model_service.answer(["~" * TOKEN_SIZE] * TOKENS, deployment=DEFAULT_DEPLOYMENT)  # no id or name contains this
    model_service.answer([f"<{number}>" for number in range(10)], deployment=MANUAL_PACE)
    model_service.tokens_per_write = 1
    before = resident(slow_reader_app)
    async with slow_client(slow_reader_app) as reader:
        await model_service.wait_for(lambda service: service.open_requests == 1)
        (record,) = model_service.requests
        # For longer than the silence timeout: the silence is the client's, and the stream goes on.
        written = await held_back(record, seconds=SILENCE_TIMEOUT + 0.3)
        assert written < TOKENS, "the model was not held back"
        assert record.ended == "open"
        assert resident(slow_reader_app) - before < MEMORY_LIMIT

        # Meanwhile another stream receives each token as it is written.
        async with slow_reader_app.client() as client:
            delays = await token_delays(client, model_service)
        assert sorted(delays)[len(delays) // 2] < 0.3

        # And the slow client receives all of its answer in the end.
        received = 0
        tail = b""
        while b"event: done" not in tail:
            chunk = await asyncio.wait_for(reader.read(MIB), 30)
            assert chunk, "the stream was cut"
            received += chunk.count(b"~")
            tail = tail[-200:] + chunk
        assert received == TOKENS * TOKEN_SIZE
        assert resident(slow_reader_app) - before < MEMORY_LIMIT


async def token_delays(client: httpx.AsyncClient, service: ModelService) -> list[float]:
    """Seconds from the release of each of ten tokens to its arrival at a client."""
    delays: list[float] = []
    received = ""
    service.release()
    async with client.stream("POST", "/stream", json={"input": "y", "model": MANUAL_PACE}) as response:
        chunks = response.aiter_text()
        for number in range(10):
            if number:
                service.release()
            released_at = time.monotonic()
            while f"<{number}>" not in received:
                received += await asyncio.wait_for(anext(chunks), 30)
            delays.append(time.monotonic() - released_at)
    return delays


async def test_the_deadline_ends_a_stream_that_is_not_read(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    deadline = 1.5
    settings = {"MAX_OUTPUT_TOKENS": "1000000", "STREAM_DEADLINE_SECONDS": str(deadline)}
    app = functions_app(env=app_settings | settings)
    await warm_up(app, model_service)
    model_service.answer(["z" * TOKEN_SIZE] * TOKENS)
    model_service.tokens_per_write = 1
    async with slow_client(app):
        await model_service.wait_for(lambda service: service.requests)
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=deadline + 10)
    (record,) = model_service.requests
    assert record.ended == "aborted"
    assert record.tokens < TOKENS
    assert record.ended_at is not None
    # The terminal event, for which a client that does not read is given 10 s, is not waited for.
    assert deadline - 0.5 < record.ended_at - record.arrived < deadline + 5


async def test_a_broken_connection_loses_no_text_of_a_slow_client(
    slow_reader_app: HostedApp, model_service: ModelService
) -> None:
    await warm_up(slow_reader_app, model_service)
    model_service.tokens_per_write = 1
    model_service.answer(["<first>", *["z" * TOKEN_SIZE] * TOKENS, "<last>", "<never written>"])
    model_service.faults["*"] = f"cut-midway-{TOKENS + 2}"
    content = bytearray()
    async with slow_client(slow_reader_app) as reader:
        await model_service.wait_for(lambda service: service.requests)
        # The app can't write, so that it has not read all of what arrives before the connection breaks.
        assert await held_back(model_service.requests[-1], seconds=0.3) < TOKENS
        while b"event: error" not in content[-2000:]:
            chunk = await asyncio.wait_for(reader.read(MIB), 30)
            assert chunk, "the stream was cut"
            content += chunk
    assert content.count(b"z") == TOKENS * TOKEN_SIZE
    assert content.count(b"<first>") == content.count(b"<last>") == 1
    assert b"upstream_interrupted" in content


@pytest.mark.parametrize("fault", ["cut-midway-20", "error-midway-20"])
async def test_what_was_sent_before_a_break_reaches_a_client_that_reads_late(
    slow_reader_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    await warm_up(slow_reader_app, model_service)
    model_service.tokens_per_write = 1
    model_service.answer(["z" * TOKEN_SIZE] * 21)
    model_service.faults["*"] = fault
    content = bytearray()
    async with slow_client(slow_reader_app, PLAIN) as reader:
        await model_service.wait_for(lambda service: service.requests and service.open_requests == 0)
        await asyncio.sleep(LATE)
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.wait_for(reader.read(MIB), 30):
                content += chunk
    assert not content.endswith(b"0\r\n\r\n"), "a cut answer looks complete"
    assert content.count(b"z") == TOKEN_SIZE * 20
