"""The way to one model service, on its wire: what is read, what is refused, and the token that opens it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from local.model_service import ModelService
from relay.answer import Answer, Refusal
from relay.backends import Backends
from relay.settings import AZURE_TOKEN_SCOPE, Identity, Settings
from relay.upstream import LONGEST_RETRY_AFTER, EntraToken, SignInError

ASKED = {"messages": [{"role": "user", "content": "x"}], "stream": True}


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as service:
        yield service


@contextlib.asynccontextmanager
async def way_to(url: str, **more: str) -> AsyncIterator[Callable[[], Awaitable[Answer | Refusal]]]:
    """Opens answers of the model service at an address."""
    environ = {"AZURE_OPENAI_ENDPOINT": url, "AZURE_OPENAI_DEPLOYMENTS": "some", **more}
    backends = Backends(Settings.read(environ))
    await backends.connect()

    async def ask() -> Answer | Refusal:
        route = backends.route(None)
        assert not hasattr(route, "title")
        backend = route.next()  # type: ignore[union-attr]
        assert backend is not None
        try:
            return await backend.open(dict(ASKED), "request-1")
        finally:
            route.leave()  # type: ignore[union-attr]

    try:
        yield ask
    finally:
        await backends.close()


async def all_of(answer: Answer | Refusal) -> bytes:
    assert not isinstance(answer, Refusal), answer
    content = b""
    while chunk := await answer.read():
        content += chunk
    return content


async def test_an_answers_bytes(service: ModelService) -> None:
    async with way_to(service.url) as ask:
        answer = await ask()
        content = await all_of(answer)
        assert content.endswith(b"data: [DONE]\n\n")
        assert not isinstance(answer, Refusal)
        assert answer.media_type == "text/event-stream"
        await answer.end()
    (record,) = service.requests
    assert record.body == ASKED | {"model": "some"}
    assert record.headers["x-ms-client-request-id"] == "request-1"
    assert record.headers["x-stainless-retry-count"] == "0"


async def test_what_arrived_before_a_break_can_still_be_read(service: ModelService) -> None:
    service.answer(["one", "two", "three"])
    service.faults["*"] = "cut-midway-2"
    async with way_to(service.url) as ask:
        answer = await ask()
        assert not isinstance(answer, Refusal)
        await asyncio.sleep(0.2)  # the words and the end of the connection are both there
        content = b""
        try:
            while chunk := await answer.read():
                content += chunk
        except answer.broken:
            content += answer.rest()
        else:
            pytest.fail("a cut passed for the end")
        assert b"one" in content
        assert b"two" in content
        answer.close()


async def test_closing_an_answer_ends_the_model_services_work(service: ModelService) -> None:
    service.faults["*"] = "stall-midway"
    async with way_to(service.url) as ask:
        answer = await ask()
        assert not isinstance(answer, Refusal)
        await answer.read()
        answer.close()
        await service.wait_for(lambda service: service.open_requests == 0, timeout=0.5)
    assert service.requests[0].ended == "aborted"


async def test_a_connection_is_kept_and_used_again() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                body = b"data: [DONE]\n\n"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 14\r\n\r\n" + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with way_to(f"http://127.0.0.1:{port}/v1") as ask:
            for _ in range(3):
                answer = await ask()
                assert not isinstance(answer, Refusal)
                assert await answer.read() == b"data: [DONE]\n\n"
                await answer.end()
    assert connections == 1


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        # One answer, then the connection is closed at the moment of the next request.
        for turn in range(2):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            if turn == 1:
                break
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
            served += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with way_to(f"http://127.0.0.1:{port}/v1") as ask:
            for _ in range(3):
                answer = await ask()
                assert not isinstance(answer, Refusal), answer
                await answer.end()
    assert served == 3


class Wire:
    """A server that answers anything with these bytes, and then closes or stays."""

    def __init__(self, answer: bytes, *, stays: bool = False) -> None:
        self.answer = answer
        self.stays = stays

    async def __aenter__(self) -> str:
        self.ended = asyncio.Event()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        if self.stays:
            await self.ended.wait()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.ended.set()
        self.server.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\nContent-Length: 0\r\n\r\n", "upstream_error"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\n{", "upstream_error"),
        (b'HTTP/1.1 401 No\r\nContent-Length: 1000\r\n\r\n{"error":', "upstream_auth"),
        (b"HTTP/1.1 429 No\r\nContent-Length: 4\r\n\r\nnull", "rate_limited"),
        (b'HTTP/1.1 400 No\r\nContent-Length: 13\r\n\r\n{"error":[1]}', "invalid_request"),
        (b'HTTP/1.1 400 No\r\nContent-Length: 26\r\n\r\n{"error":{"code":{"a":1}}}', "invalid_request"),
        (b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", "upstream_error"),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "upstream_error"),
        (b"HTTP/1.1 500 Odd\r\nContent-Type: a/json; charset=idna\r\nContent-Length: 2\r\n\r\n\xff.", "upstream_error"),
        (b"HTTP/1.1 500 Odd\r\nContent-Type: a/json; charset=base64\r\nContent-Length: 2\r\n\r\n{}", "upstream_error"),
        (
            b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n"
            b'{"error":{"message":"what\\ud83d"}}',
            "invalid_request",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "upstream_error"),
        (b"", "upstream_error"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "upstream_error"),
    ],
    ids=range(14),
)
async def test_odd_answers_are_refusals(answer: bytes, code: str) -> None:
    async with Wire(answer) as url, way_to(url) as ask:
        refused = await asyncio.wait_for(ask(), 5)
        assert isinstance(refused, Refusal), refused
        assert refused.problem.code == code
        assert refused.problem.openai_document("x")
        assert "example.com" not in refused.problem.document("x").decode()


async def test_an_endless_error_is_not_read_to_its_end() -> None:
    answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 200_000
    async with Wire(answer, stays=True) as url, way_to(url) as ask:
        refused = await asyncio.wait_for(ask(), 5)
        assert isinstance(refused, Refusal)
        assert refused.problem.code == "upstream_error"


async def test_nobody_there() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        async with way_to(f"http://127.0.0.1:{unheard.getsockname()[1]}/v1") as ask:
            refused = await ask()
    assert isinstance(refused, Refusal)
    assert (refused.problem.code, refused.elsewhere) == ("upstream_error", True)


@pytest.mark.parametrize(
    ("fault", "seconds", "told"),
    [
        ("429-0", 0, 0),
        ("429-7", 7, 7),
        ("429-ms-1500", 1.5, 2),
        ("429-x-ms-400", 0.4, 1),
        ("429-absurd", LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER),
        ("429-garbled", None, None),
        ("429-none", None, None),
        ("503-after-3", 3, 3),
        ("503", None, None),
    ],
)
async def test_how_long_to_wait(service: ModelService, fault: str, seconds: float | None, told: int | None) -> None:
    service.faults["*"] = fault
    async with way_to(service.url) as ask:
        refused = await ask()
    assert isinstance(refused, Refusal)
    assert (refused.retry_after, refused.problem.retry_after) == (seconds, told)
    assert refused.elsewhere


@pytest.mark.parametrize("fault", ["400", "context-length", "content-filter", "404"])
async def test_what_no_other_deployment_mends(service: ModelService, fault: str) -> None:
    service.faults["*"] = fault
    async with way_to(service.url) as ask:
        refused = await ask()
    assert isinstance(refused, Refusal)
    assert not refused.elsewhere


class Clock:
    """The time of day, which a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
async def token(service: ModelService, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EntraToken]:
    """A managed identity's token, of an hour."""
    service.identity.lifetime = 3600
    monkeypatch.setenv("IDENTITY_ENDPOINT", service.identity_url)
    monkeypatch.setenv("IDENTITY_HEADER", service.identity.header)
    token = EntraToken(Identity("managed", AZURE_TOKEN_SCOPE))
    yield token
    await token.close()


async def settled(service: ModelService, calls: int) -> None:
    """Wait until the identity endpoint was asked so many times, and its answer has come."""
    async with asyncio.timeout(5):
        while len(service.identity.calls) < calls:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


class TestTheToken:
    async def test_it_is_fetched_once_for_all(self, service: ModelService, token: EntraToken) -> None:
        service.identity.delay = 0.1
        assert len(set(await asyncio.gather(*[token() for _ in range(20)]))) == 1
        await token()
        assert len(service.identity.calls) == 1

    async def test_it_is_renewed_before_its_end_and_nobody_waits(
        self, service: ModelService, token: EntraToken, clock: Clock
    ) -> None:
        first = await token()
        clock.ahead = 3600 - 310
        assert await token() == first
        assert len(service.identity.calls) == 1
        clock.ahead = 3600 - 290
        service.identity.delay = 0.3
        began = time.monotonic()
        assert await token() == first
        assert time.monotonic() - began < 0.2
        await settled(service, 2)
        async with asyncio.timeout(5):
            while await token() == first:
                await asyncio.sleep(0.01)
        assert len(service.identity.calls) == 2

    async def test_a_renewal_that_fails_is_tried_again_and_nobody_notices(
        self, service: ModelService, token: EntraToken, clock: Clock
    ) -> None:
        first = await token()
        service.identity.failure = [400]
        clock.ahead = 3600 - 290
        assert await token() == first
        await settled(service, 2)
        assert await token() == first
        assert len(service.identity.calls) == 2, "not again at once"
        clock.ahead = 3600 - 200
        assert await token() == first
        await settled(service, 3)
        assert await token() != first

    async def test_it_is_never_used_beyond_its_end(
        self, service: ModelService, token: EntraToken, clock: Clock
    ) -> None:
        first = await token()
        service.identity.failure = [400]
        clock.ahead = 3600 - 10
        assert await token() == first
        await settled(service, 2)
        clock.ahead = 3600 + 5
        renewed = await token()
        assert renewed != first
        assert service.identity.accepts(renewed)

    async def test_who_leaves_does_not_take_it_from_the_others(self, service: ModelService, token: EntraToken) -> None:
        service.identity.delay = 0.2
        leaving, staying = asyncio.create_task(token()), asyncio.create_task(token())
        await asyncio.sleep(0.05)
        leaving.cancel()
        assert await staying
        assert len(service.identity.calls) == 1

    async def test_a_failure_is_told_to_all_and_not_remembered(self, service: ModelService, token: EntraToken) -> None:
        service.identity.failure = 400
        results = await asyncio.gather(*[token() for _ in range(3)], return_exceptions=True)
        assert [type(result) for result in results] == [SignInError] * 3
        assert service.identity.header not in str(results)
        service.identity.failure = None
        assert await token()


async def test_a_request_while_the_token_is_renewed(
    service: ModelService, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", service.identity_url)
    monkeypatch.setenv("IDENTITY_HEADER", service.identity.header)
    service.identity.lifetime = 3600
    service.require_issued_token = True
    more: dict[str, Any] = {"IDENTITY_ENDPOINT": service.identity_url, "AZURE_OPENAI_TOKEN_SCOPE": AZURE_TOKEN_SCOPE}
    async with way_to(service.url, **more) as ask:
        for ahead in (0, 1800, 3400, 3590, 7000, 9000, 20_000):
            clock.ahead = ahead
            answer = await ask()
            assert (await all_of(answer)).endswith(b"data: [DONE]\n\n")
            assert not isinstance(answer, Refusal)
            await answer.end()
    assert {record.auth for record in service.requests} == {"token"}
