"""Client disconnects: the upstream request ends at once, and nothing of the stream remains in the process."""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from local.model_service import MANUAL_PACE, ModelService
from tests.end_to_end.answers import DOCUMENT, NDJSON, PLAIN, SSE, request_body
from tests.end_to_end.hosting import HostedApp, eventually

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")
COMMIT_WAIT: Final = 0.3  # seconds
# Seconds within which the model service sees its client disconnect. There are no pings, and no timeout is as short: it
# is the disconnect itself that ends the stream, and not a failed write.
AT_ONCE: Final = 2.0


@pytest.fixture(scope="module")
def inspected_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with `GET /inspect`, with a short commit wait and without pings."""
    settings = {
        "COMMIT_WAIT_SECONDS": str(COMMIT_WAIT),
        "PING_INTERVAL_SECONDS": "60",
        "MAX_OUTPUT_TOKENS": "1000000",
    }
    return functions_app(env=app_settings | settings, script_root=INSPECTED_APP)


async def inspect(app: HostedApp) -> dict[str, Any]:
    """What exists in the worker process."""
    async with app.client(headers={"Connection": "close"}) as client:
        return dict((await client.get("/inspect")).json())


async def settled(app: HostedApp) -> dict[str, Any]:
    """The state of the worker process once no earlier request is being cleaned up any more."""

    async def state_at_rest() -> dict[str, Any] | None:
        state = await inspect(app)
        return None if any(state["objects"].values()) or state["requests_kept"] > 1 else state

    return await eventually(state_at_rest)


@contextlib.asynccontextmanager
async def nothing_remains(app: HostedApp, service: ModelService, *, kept: int = 2) -> AsyncIterator[None]:
    """All that is created inside is released soon afterwards: tasks, objects, entries of requests, open files.

    `kept`: the number of connections that may be kept for later requests.
    """
    before = after = await settled(app)
    yield

    async def as_before() -> bool:
        nonlocal after
        after = await inspect(app)
        return (
            after["tasks"] == before["tasks"]
            and after["objects"] == before["objects"]
            and after["requests_kept"] == before["requests_kept"]
            and after["open_files"] <= before["open_files"] + kept
        )

    try:
        await eventually(as_before)
    except AssertionError:
        assert after == before
    assert service.open_requests == 0


@pytest.fixture
async def warm_app(inspected_app: HostedApp, model_service: ModelService) -> HostedApp:
    """`inspected_app` after a request, with which it creates what it creates once."""
    async with inspected_app.client() as client:
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200
    await model_service.wait_for(lambda service: service.open_requests == 0)
    model_service.requests.clear()
    return inspected_app


class RawClient:
    """A client with a socket of its own, which can disconnect at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.media_type = ""

    @classmethod
    async def connect(cls, app: HostedApp) -> "RawClient":
        """A connection to the app."""
        return cls(*await asyncio.open_connection(*app.address))

    @classmethod
    async def post_stream(cls, app: HostedApp, media_type: str, **members: Any) -> "RawClient":
        """Send a request for an answer in a format."""
        client = await cls.connect(app)
        client.media_type = media_type
        body = json.dumps(request_body(media_type, **members)).encode()
        accept = "" if media_type == DOCUMENT else f"Accept: {media_type}\r\n"
        head = f"POST /stream HTTP/1.1\r\nHost: h\r\n{accept}Content-Length: {len(body)}\r\n\r\n"
        client.writer.write(head.encode() + body)
        return client

    async def read_until(self, text: str) -> None:
        """Read until this text has been received."""
        await asyncio.wait_for(self.reader.readuntil(text.encode()), 30)

    def disconnect(self, *, reset: bool = False) -> None:
        """Close the connection, or reset it."""
        if reset:
            connection: socket.socket = self.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort() if reset else self.writer.close()


# A moment: sends a request by the function, and returns its client when the moment has come.
type Moment = Callable[[ModelService, Callable[[], Awaitable[RawClient]]], Awaitable[RawClient]]


async def before_the_upstream_response(service: ModelService, post: Callable[[], Awaitable[RawClient]]) -> RawClient:
    service.faults["*"] = "stall-headers"
    client = await post()
    await service.wait_for(lambda service: service.open_requests == 1)
    return client


async def before_the_first_token(service: ModelService, post: Callable[[], Awaitable[RawClient]]) -> RawClient:
    service.faults["*"] = "stall-first"
    client = await post()
    await service.wait_for(lambda service: service.open_requests == 1 and service.requests[-1].status == 200)
    return client


async def after_the_commit_before_the_first_token(
    service: ModelService, post: Callable[[], Awaitable[RawClient]]
) -> RawClient:
    service.faults["*"] = "stall-headers"
    client = await post()
    if client.media_type == SSE:  # a format without pings commits with its first output
        await client.read_until("HTTP/1.1 200 OK")
    else:
        await service.wait_for(lambda service: service.open_requests == 1)
    return client


async def between_tokens(service: ModelService, post: Callable[[], Awaitable[RawClient]]) -> RawClient:
    service.tokens_per_second = 30
    service.answer([f"word{number} " for number in range(500)])
    client = await post()
    await client.read_until("word2")
    return client


async def in_a_silence_midway(service: ModelService, post: Callable[[], Awaitable[RawClient]]) -> RawClient:
    service.faults["*"] = "stall-midway"
    service.answer([f"word{number} " for number in range(9)])
    client = await post()
    await client.read_until("word4")
    return client


async def in_a_flood(service: ModelService, post: Callable[[], Awaitable[RawClient]]) -> RawClient:
    service.faults["*"] = "flood-500000"
    client = await post()
    await client.read_until("the")
    return client


MOMENTS: tuple[Moment, ...] = (
    before_the_upstream_response,
    before_the_first_token,
    after_the_commit_before_the_first_token,
    between_tokens,
    in_a_silence_midway,
    in_a_flood,
)


@pytest.mark.parametrize(
    ("media_type", "reset"),
    [(SSE, False), (SSE, True), (NDJSON, False), (PLAIN, True)],
    ids=["sse", "sse-reset", "ndjson", "plain-reset"],
)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
async def test_disconnect_ends_the_upstream_request(
    warm_app: HostedApp, model_service: ModelService, moment: Moment, media_type: str, *, reset: bool
) -> None:
    async with nothing_remains(warm_app, model_service):
        client = await moment(model_service, lambda: RawClient.post_stream(warm_app, media_type))
        client.disconnect(reset=reset)
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=AT_ONCE)
    assert [record.ended for record in model_service.requests] == ["aborted"]


@pytest.mark.parametrize("fault", ["stall-headers", "stall-first", "stall-midway"])
async def test_disconnect_from_a_document_ends_the_upstream_request(
    warm_app: HostedApp, model_service: ModelService, fault: str
) -> None:
    model_service.faults["*"] = fault
    async with nothing_remains(warm_app, model_service):
        client = await RawClient.post_stream(warm_app, DOCUMENT)
        await model_service.wait_for(lambda service: service.open_requests == 1)
        await asyncio.sleep(COMMIT_WAIT + 0.1)  # a document has no commit: the end of the wait changes nothing
        client.disconnect()
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=AT_ONCE)
    assert [record.ended for record in model_service.requests] == ["aborted"]


async def test_disconnect_within_a_chunked_body(warm_app: HostedApp, model_service: ModelService) -> None:
    async def body_is_being_read() -> bool:
        return bool((await inspect(warm_app))["objects"]["CallerRequest"])

    async with nothing_remains(warm_app, model_service):
        client = await RawClient.connect(warm_app)
        # Complete, but for the last chunk.
        client.writer.write(
            b'POST /stream HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"input": "x"}\r\n'
        )
        await eventually(body_is_being_read)
        client.disconnect()
    assert model_service.requests == [], "half a request was sent upstream"


async def test_disconnect_within_a_body_of_known_length(warm_app: HostedApp, model_service: ModelService) -> None:
    # The host reads such a body to its end before the app is called: of this one the app never learns.
    async with nothing_remains(warm_app, model_service):
        client = await RawClient.connect(warm_app)
        client.writer.write(b'POST /stream HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{"input": "x"}')
        await client.writer.drain()
        client.disconnect()
    assert model_service.requests == [], "half a request was sent upstream"


async def test_many_disconnects_at_random_times(warm_app: HostedApp, model_service: ModelService) -> None:
    model_service.tokens_per_second = 100
    model_service.answer(["word "] * 40)
    dice = random.Random(7)

    async def connect_and_disconnect() -> None:
        client = await RawClient.post_stream(warm_app, dice.choice((SSE, NDJSON, PLAIN, DOCUMENT)))
        await asyncio.sleep(dice.random() * 0.6)
        client.disconnect(reset=dice.random() < 0.5)

    async with nothing_remains(warm_app, model_service, kept=50):
        await asyncio.gather(*[connect_and_disconnect() for _ in range(50)])
        # A busy machine may have requests to read that were sent before the disconnect.
        await model_service.wait_for(lambda service: service.open_requests == 0, timeout=15)


async def test_disconnect_leaves_other_streams_alone(warm_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(["first ", "second"])
    one = await RawClient.post_stream(warm_app, SSE, model=MANUAL_PACE)
    other = await RawClient.post_stream(warm_app, SSE, model=MANUAL_PACE)
    await model_service.wait_for(lambda service: service.open_requests == 2)
    one.disconnect()
    await model_service.wait_for(lambda service: service.open_requests == 1, timeout=AT_ONCE)
    model_service.release(10)
    await other.read_until("second")
    await other.read_until("event: done")
    other.disconnect()
