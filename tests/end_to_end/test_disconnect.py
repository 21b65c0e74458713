"""A caller who leaves: the model service's work ends at once, and nothing of the stream is left in the process."""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from local.model_service import BY_HAND, ModelService
from tests.end_to_end.answers import DOCUMENT, NDJSON, PLAIN, SSE, body_for
from tests.end_to_end.hosting import HostedApp, eventually

INSPECTED_APP = Path(__file__).with_name("inspected_app")
PROMISE = 0.5  # seconds in which the model service has seen the end of its request


@pytest.fixture(scope="module")
def inspected_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a window; it answers 200 after 0.3 s whatever the model service does."""
    return functions_app(
        env=app_settings
        | {"COMMIT_WAIT_SECONDS": "0.3", "PING_INTERVAL_SECONDS": "0.1", "MAX_OUTPUT_TOKENS": "1000000"},
        script_root=INSPECTED_APP,
    )


@contextlib.asynccontextmanager
async def nothing_left(app: HostedApp, service: ModelService, *, kept: int = 2) -> AsyncIterator[None]:
    """Whatever happens inside, all that it made in the app's process is gone soon after.

    `kept`: connections that may wait for the next request.
    """

    async def lives() -> dict[str, Any]:
        async with app.client(headers={"Connection": "close"}) as client:
            return dict((await client.get("/inspect")).json())

    before = await lives()
    yield

    async def as_before() -> bool:
        nonlocal after
        after = await lives()
        return (
            after["tasks"] == before["tasks"]
            and after["objects"] == before["objects"]
            and after["requests_kept"] == before["requests_kept"]
            and after["open_files"] <= before["open_files"] + kept
        )

    after = before
    try:
        await eventually(as_before, within=3)
    except AssertionError:
        assert after == before
    assert service.open_requests == 0


async def warm(app: HostedApp) -> None:
    """Let the process make what it makes once."""
    async with app.client() as client:
        for _ in range(2):
            await client.post("/stream", json={"input": "x"})


class Caller:
    """A caller with a connection of its own, who can go away as callers do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def asks(cls, app: HostedApp, form: str, **more: Any) -> "Caller":
        caller = cls(*await asyncio.open_connection(*app.address))
        body = json.dumps(body_for(form, **more)).encode()
        accept = "" if form == DOCUMENT else f"Accept: {form}\r\n"
        head = f"POST /stream HTTP/1.1\r\nHost: h\r\n{accept}Content-Length: {len(body)}\r\n\r\n"
        caller.writer.write(head.encode() + body)
        return caller

    async def hears(self, words: str) -> None:
        """Wait for these words."""
        await asyncio.wait_for(self.reader.readuntil(words.encode()), 5)

    def leaves(self, *, rudely: bool = False) -> None:
        """Close the connection, or reset it."""
        if rudely:
            connection: socket.socket = self.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort() if rudely else self.writer.close()


type Moment = Callable[[ModelService, Callable[[], Awaitable[Caller]]], Awaitable[Caller]]


async def while_it_has_not_answered(service: ModelService, ask: Callable[[], Awaitable[Caller]]) -> Caller:
    service.faults["*"] = "stall-headers"
    caller = await ask()
    await service.wait_for(lambda service: service.open_requests == 1)
    return caller


async def while_the_first_token_is_awaited(service: ModelService, ask: Callable[[], Awaitable[Caller]]) -> Caller:
    service.faults["*"] = "stall-first"
    caller = await ask()
    await service.wait_for(lambda service: service.open_requests == 1 and service.requests[-1].status == 200)
    return caller


async def after_the_commit_before_the_first_token(
    service: ModelService, ask: Callable[[], Awaitable[Caller]]
) -> Caller:
    service.faults["*"] = "stall-headers"
    caller = await ask()
    await caller.hears("HTTP/1.1 200 OK")
    return caller


async def between_tokens(service: ModelService, ask: Callable[[], Awaitable[Caller]]) -> Caller:
    service.tokens_per_second = 30
    service.answer([f"word{number} " for number in range(500)])
    caller = await ask()
    await caller.hears("word2")
    return caller


async def while_it_is_silent_midway(service: ModelService, ask: Callable[[], Awaitable[Caller]]) -> Caller:
    service.faults["*"] = "stall-midway"
    service.answer([f"word{number} " for number in range(9)])
    caller = await ask()
    await caller.hears("word4")
    return caller


async def in_a_flood(service: ModelService, ask: Callable[[], Awaitable[Caller]]) -> Caller:
    service.faults["*"] = "flood-500000"
    caller = await ask()
    await caller.hears("the")
    return caller


MOMENTS: tuple[Moment, ...] = (
    while_it_has_not_answered,
    while_the_first_token_is_awaited,
    after_the_commit_before_the_first_token,
    between_tokens,
    while_it_is_silent_midway,
    in_a_flood,
)


@pytest.mark.parametrize(
    ("form", "rudely"),
    [(SSE, False), (SSE, True), (NDJSON, False), (PLAIN, True)],
    ids=["sse", "sse-reset", "ndjson", "plain-reset"],
)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
async def test_a_caller_leaves(
    inspected_app: HostedApp, model_service: ModelService, moment: Moment, form: str, *, rudely: bool
) -> None:
    await warm(inspected_app)
    model_service.requests.clear()
    async with nothing_left(inspected_app, model_service):
        caller = await moment(model_service, lambda: Caller.asks(inspected_app, form))
        caller.leaves(rudely=rudely)
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=PROMISE)
    assert [record.ended for record in model_service.requests] == ["aborted"]


@pytest.mark.parametrize("fault", ["stall-headers", "stall-first", "stall-midway"])
async def test_a_caller_who_wants_one_document_leaves(
    inspected_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    await warm(inspected_app)
    model_service.requests.clear()
    model_service.faults["*"] = fault
    async with nothing_left(inspected_app, model_service):
        caller = await Caller.asks(inspected_app, DOCUMENT)
        await model_service.wait_for(lambda service: service.open_requests == 1)
        await asyncio.sleep(0.4)  # past the commit, which a document knows nothing of
        caller.leaves()
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=PROMISE)
    assert [record.ended for record in model_service.requests] == ["aborted"]


@pytest.mark.parametrize("head", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_a_caller_leaves_in_the_middle_of_the_body(
    inspected_app: HostedApp, model_service: ModelService, head: bytes
) -> None:
    await warm(inspected_app)
    model_service.requests.clear()
    async with nothing_left(inspected_app, model_service):
        caller = Caller(*await asyncio.open_connection(*inspected_app.address))
        caller.writer.write(b"POST /stream HTTP/1.1\r\nHost: h\r\n" + head + b'\r\n\r\n{"input": "x"}')
        await asyncio.sleep(0.2)
        caller.leaves()
    assert model_service.requests == [], "half a request was passed on"


async def test_many_callers_leave_at_any_time(inspected_app: HostedApp, model_service: ModelService) -> None:
    await warm(inspected_app)
    model_service.requests.clear()
    model_service.tokens_per_second = 100
    model_service.answer(["word "] * 40)
    dice = random.Random(7)

    async def come_and_go() -> None:
        caller = await Caller.asks(inspected_app, dice.choice((SSE, NDJSON, PLAIN, DOCUMENT)))
        await asyncio.sleep(dice.random() * 0.6)
        caller.leaves(rudely=dice.random() < 0.5)

    async with nothing_left(inspected_app, model_service, kept=100):
        await asyncio.gather(*[come_and_go() for _ in range(100)])
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=2)


async def test_one_who_leaves_takes_nobody_along(inspected_app: HostedApp, model_service: ModelService) -> None:
    await warm(inspected_app)
    model_service.requests.clear()
    model_service.answer(["first ", "second"])
    one = await Caller.asks(inspected_app, SSE, model=BY_HAND)
    other = await Caller.asks(inspected_app, SSE, model=BY_HAND)
    await model_service.wait_for(lambda service: service.open_requests == 2)
    one.leaves()
    await model_service.wait_for(lambda service: service.open_requests == 1, timeout=PROMISE)
    model_service.release(10)
    await other.hears("second")
    await other.hears("event: done")
    other.leaves()
