"""The life of a stream whose caller's side is the test's own: what a socket can't be made to do at will."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from local.model_service import BY_HAND, ModelService
from relay import prompt
from relay.backends import Backends, Route
from relay.caller import Call
from relay.prompt import Prompt
from relay.settings import Settings
from relay.stream import Stream


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
    """A stream of the deployment that is paced by hand, under way to the caller."""
    environ = {"AZURE_OPENAI_ENDPOINT": service.url, "AZURE_OPENAI_DEPLOYMENTS": BY_HAND, **settings}
    backends = Backends(Settings.read(environ))
    await backends.connect()
    asked = prompt.read(b'{"input": "x"}')
    assert isinstance(asked, Prompt)
    route = backends.route(None)
    assert isinstance(route, Route)
    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": [], "query_string": b""}
    call = Call(Request(scope, caller.receive))
    parameters = asked.parameters(max_output_tokens=100)
    stream = Stream(call, route, parameters, asked.reading, asked.form(None), backends.settings)
    carrying = asyncio.create_task(answer(stream, scope, caller))
    try:
        yield carrying
    finally:
        carrying.cancel()
        await backends.close()


async def answer(stream: Stream, scope: Any, caller: Caller) -> None:
    response = await stream.respond()
    await response(scope, caller.receive, caller.send)  # type: ignore[arg-type]


async def test_words_and_their_end(service: ModelService) -> None:
    caller = Caller()
    async with streaming(service, caller) as carrying:
        service.release(10)
        await asyncio.wait_for(carrying, 5)
    assert caller.ended
    assert caller.content.count(b"event: done") == 1
    assert b"one " in caller.content


@pytest.mark.parametrize("words_wait", [False, True], ids=["in a ping", "in words behind a ping"])
async def test_the_deadline_finds_a_caller_who_has_not_taken_a_ping(service: ModelService, words_wait: bool) -> None:
    caller = Caller()
    async with streaming(
        service, caller, PING_INTERVAL_SECONDS="0.1", STREAM_DEADLINE_SECONDS="1", COMMIT_WAIT_SECONDS="0"
    ) as carrying:
        service.release()
        while b"one " not in caller.content:
            await asyncio.sleep(0.01)
        caller.reads.clear()
        await asyncio.wait_for(caller.blocked.wait(), 5)
        if words_wait:
            service.release()
        await asyncio.sleep(1.2)
        caller.reads.set()
        await asyncio.wait_for(carrying, 5)
    assert caller.content.count(b"event: error") == 1, "the end was never told"
    assert b"deadline_exceeded" in caller.content
    assert caller.ended
