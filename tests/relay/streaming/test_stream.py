"""The life of a stream whose caller is controlled by the test: what can't be provoked at will with a socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

import relay.streaming.stream as stream_module
from local.model_service import MANUAL_PACE, ModelService
from relay.callers.request import CallerRequest
from relay.settings import Settings
from relay.streaming.stream import Stream
from relay.telemetry import Record
from relay.upstream.pool import BackendPool, Failover
from relay.wires import stream as stream_wire
from relay.wires.stream import StreamRequest


class Caller:
    """A caller who takes what is sent only while `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.content = b""
        self.ended = False
        self.blocked = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(self, message: Any) -> None:
        if not self.reads.is_set():
            self.blocked.set()
        await self.reads.wait()
        self.content += message.get("body", b"")
        if message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as service:
        service.answer(["one ", "two ", "three"])
        yield service


@contextlib.asynccontextmanager
async def streaming(service: ModelService, caller: Caller, **settings: str) -> AsyncIterator[asyncio.Task[None]]:
    """A stream to the caller, of the deployment whose tokens the test releases."""
    environ = {"AZURE_OPENAI_ENDPOINT": service.url, "AZURE_OPENAI_DEPLOYMENTS": MANUAL_PACE, **settings}
    pool = BackendPool(Settings.read(environ))
    await pool.connect()
    request = stream_wire.parse(b'{"input": "x"}')
    assert isinstance(request, StreamRequest)
    failover = pool.failover(None)
    assert isinstance(failover, Failover)
    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": [], "query_string": b""}
    caller_request = CallerRequest(Request(scope, caller.receive))
    stream = Stream(caller_request, failover, request, request.encoder(None), pool.settings)
    task = asyncio.create_task(respond(stream, scope, caller))
    try:
        yield task
    finally:
        task.cancel()
        await pool.close()


async def respond(stream: Stream, scope: Any, caller: Caller) -> None:
    response = await stream.respond()
    await response(scope, caller.receive, caller.send)  # type: ignore[arg-type]


async def test_text_and_its_end(service: ModelService) -> None:
    caller = Caller()
    async with streaming(service, caller) as task:
        service.release(10)
        await asyncio.wait_for(task, 5)
    assert caller.ended
    assert caller.content.count(b"event: done") == 1
    assert b"one " in caller.content


@pytest.mark.parametrize("text_waits", [False, True], ids=["in a ping", "in text behind a ping"])
async def test_the_deadline_while_the_caller_has_not_taken_a_ping(service: ModelService, text_waits: bool) -> None:
    caller = Caller()
    async with streaming(
        service, caller, PING_INTERVAL_SECONDS="0.1", STREAM_DEADLINE_SECONDS="1", COMMIT_WAIT_SECONDS="0"
    ) as task:
        service.release()
        async with asyncio.timeout(5):
            while b"one " not in caller.content:
                await asyncio.sleep(0.01)
        caller.reads.clear()
        await asyncio.wait_for(caller.blocked.wait(), 5)
        if text_waits:
            service.release()
        await service.wait_for(lambda it: it.open_requests == 0)  # the deadline has aborted the answer
        caller.reads.set()
        await asyncio.wait_for(task, 5)
    assert caller.content.count(b"event: error") == 1, "the end was never sent"
    assert b"deadline_exceeded" in caller.content
    assert caller.ended


async def test_a_function_that_is_cancelled_ends_its_stream(service: ModelService) -> None:
    async with streaming(service, Caller(), COMMIT_WAIT_SECONDS="60") as task:
        await service.wait_for(lambda it: it.open_requests == 1)
        task.cancel()
        await service.wait_for(lambda it: it.open_requests == 0, timeout=2)


async def test_a_stream_that_is_cancelled_before_it_begins(
    service: ModelService, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Record] = []
    monkeypatch.setattr(stream_module, "report", records.append)
    begin = Stream.respond

    async def respond_cancelled(self: Stream) -> Response:
        self._task.cancel()
        return await begin(self)

    monkeypatch.setattr(Stream, "respond", respond_cancelled)
    caller = Caller()
    async with streaming(service, caller) as task:
        await asyncio.wait_for(task, 5)
    assert b"internal_error" in caller.content
    (record,) = records
    assert (record.outcome, record.reason) == ("cancelled", "the stream was cancelled: the app is shutting down")
