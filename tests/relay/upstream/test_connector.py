"""Connections to the model service: they end at once, and whoever waits on them learns of it."""

import asyncio
import contextlib
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

import aiohttp
import aiohttp.connector
import httpx2
import pytest

from relay.settings import Settings
from relay.upstream.transport import AIOHTTP_RESPONSE, AiohttpTransport, StreamedAnswer, create_session, refusal_text
from tests.certificates import Certificates
from tests.relay.upstream.raw_server import (
    HOLD,
    LAST_CHUNK,
    RECEIVE,
    RECEIVE_HEAD,
    RawServer,
    Step,
    Tap,
    chunked,
    response,
)

LARGE: Final = 10_000_000  # bytes of a request; more than the kernel's buffers take


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """For 127.0.0.1."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def trusted(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust them. aiohttp reads the trusted certificates when it is imported."""
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", certificates.client_context())


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on each of the two event loops."""

    def run(test: Coroutine[Any, Any, None]) -> None:
        factory = None
        if request.param == "uvloop":
            factory = pytest.importorskip("uvloop", reason="there is none for this operating system").new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(test, 20))

    return run


@contextlib.asynccontextmanager
async def transport() -> AsyncIterator[AiohttpTransport]:
    """A transport with a session of its own."""
    async with create_session(Settings(())) as session:
        yield AiohttpTransport(session)


@contextlib.asynccontextmanager
async def tapped(certificates: Certificates, *script: Step) -> AsyncIterator[tuple[RawServer, Tap, AiohttpTransport]]:
    """A server with TLS, and what is between it and a transport."""
    async with (
        RawServer(script, tls=certificates.server_context()) as server,
        Tap(server.port) as tap,
        transport() as sender,
    ):
        yield server, tap, sender


async def send(transport: AiohttpTransport, url: str, content: bytes = b"{}") -> StreamedAnswer:
    """Send a request; returns the answer, once its headers have arrived."""
    response = await transport.handle_async_request(httpx2.Request("POST", url, content=content))
    return StreamedAnswer(response.extensions[AIOHTTP_RESPONSE])


class TestAbort:
    """A server that does not respond to TLS's goodbye keeps no connection that the app has left."""

    def test_of_an_answer(self, run: Any, certificates: Certificates) -> None:
        async def test() -> None:
            script = (RECEIVE, chunked(b"data: x\n\n"), HOLD)
            async with tapped(certificates, *script) as (_server, tap, sender):
                answer = await send(sender, f"https://127.0.0.1:{tap.port}/v1")
                await answer.read()
                tap.deafen()
                answer.close()
                await tap.wait_for_end()

        run(test())

    def test_of_a_request_without_an_answer(self, run: Any, certificates: Certificates) -> None:
        async def test() -> None:
            async with tapped(certificates, RECEIVE, HOLD) as (server, tap, sender):
                sending = asyncio.create_task(send(sender, f"https://127.0.0.1:{tap.port}/v1"))
                while not server.received:
                    await asyncio.sleep(0.005)
                tap.deafen()
                sending.cancel()
                await tap.wait_for_end()
                with pytest.raises(asyncio.CancelledError):
                    await sending

        run(test())

    def test_of_a_connection_whose_tls_is_not_answered(self, run: Any, certificates: Certificates) -> None:
        async def test() -> None:
            async with RawServer((HOLD,)) as server, transport() as sender:
                sending = asyncio.create_task(send(sender, f"https://127.0.0.1:{server.port}/v1"))
                while not server.connections:
                    await asyncio.sleep(0.005)
                sending.cancel()
                await asyncio.wait_for(server.ended.wait(), 2)

        run(test())

    def test_of_an_answer_whose_end_does_not_come(self, run: Any, certificates: Certificates) -> None:
        async def test() -> None:
            script = (RECEIVE, chunked(b"data: [DONE]\n\n"), HOLD)
            async with tapped(certificates, *script) as (_server, tap, sender):
                answer = await send(sender, f"https://127.0.0.1:{tap.port}/v1")
                await answer.read()
                tap.deafen()
                await answer.end()
                await tap.wait_for_end()

        run(test())

    def test_of_a_refusal_whose_body_stalls(self, run: Any, certificates: Certificates) -> None:
        async def test() -> None:
            script = (RECEIVE, response(b'{"error"', status="429 No", length=100), HOLD)
            async with tapped(certificates, *script) as (server, tap, sender):
                request = httpx2.Request("POST", f"https://127.0.0.1:{tap.port}/v1", content=b"{}")
                sending = asyncio.create_task(sender.handle_async_request(request))
                while not server.received:
                    await asyncio.sleep(0.005)
                tap.deafen()
                assert await refusal_text((await sending).extensions[AIOHTTP_RESPONSE]) == '{"error"'
                await tap.wait_for_end()

        run(test())

    def test_after_bytes_that_are_not_http(self, run: Any, certificates: Certificates) -> None:
        async def test() -> None:
            script = (RECEIVE, chunked(b"data: x\n\n"), 0.1, b"ZZ\r\n", HOLD)
            async with tapped(certificates, *script) as (_server, tap, sender):
                answer = await send(sender, f"https://127.0.0.1:{tap.port}/v1")
                tap.deafen()
                assert await answer.read() == b"data: x\n\n"
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
                answer.close()
                await tap.wait_for_end()

        run(test())


class TestLargeRequests:
    """What the model service does not take is not kept, however the request ends."""

    @pytest.fixture(autouse=True)
    def traced(self) -> Iterator[None]:
        tracemalloc.start()
        yield
        tracemalloc.stop()

    @staticmethod
    async def send_all(server: RawServer, sender: AiohttpTransport) -> list[asyncio.Task[httpx2.Response]]:
        """Three requests, of which only the heads are received."""
        address = f"http://127.0.0.1:{server.port}/v1"
        tasks = [
            asyncio.create_task(sender.handle_async_request(httpx2.Request("POST", address, content=bytes(LARGE))))
            for _ in range(3)
        ]
        while len(server.received) < len(tasks):
            await asyncio.sleep(0.005)
        return tasks

    @staticmethod
    async def forgotten() -> None:
        """Wait until no request is in memory any more: the event loop closes connections when it comes to it."""
        async with asyncio.timeout(30):
            while tracemalloc.get_traced_memory()[0] >= LARGE:
                await asyncio.sleep(0.005)

    def test_that_are_left(self, run: Any) -> None:
        async def test() -> None:
            async with RawServer((RECEIVE_HEAD, HOLD)) as server, transport() as sender:
                tasks = await self.send_all(server, sender)
                assert tracemalloc.get_traced_memory()[0] > 3 * LARGE
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                del tasks, task
                await self.forgotten()

        run(test())

    def test_that_are_refused_before_they_were_taken(self, run: Any) -> None:
        async def test() -> None:
            script = (RECEIVE_HEAD, response(b"{}", status="413 Too Large"), 30.0)
            async with RawServer(script) as server, transport() as sender:
                tasks = await self.send_all(server, sender)
                for task in tasks:
                    assert await refusal_text((await task).extensions[AIOHTTP_RESPONSE]) == "{}"
                del tasks, task
                await self.forgotten()

        run(test())


class TestBrokenBodies:
    """The reader of a body learns that it is broken, with all that had arrived before."""

    @pytest.mark.parametrize(
        "broken",
        [b"ZZ\r\nabc\r\n", b"-5\r\nabc", b"f" * 20 + b"\r\n", b"\r\n", b"3\r\nabcdef\r\n", b"HTTP/1.1 200 OK\r\n"],
        ids=["hex", "negative", "huge", "empty", "longer", "response"],
    )
    async def test_of_invalid_chunks(self, broken: bytes) -> None:
        async with RawServer((RECEIVE, chunked(b"data: x\n\n"), 0.05, broken, HOLD)) as server, transport() as sender:
            answer = await send(sender, server.url)
            assert await answer.read() == b"data: x\n\n"
            while True:
                try:
                    received = await asyncio.wait_for(answer.read(), 5)
                except aiohttp.ClientPayloadError:
                    break
                assert received == b"abc"
            assert answer.read_remaining() in (b"", b"abc")

    async def test_a_body_that_was_complete_stays_complete(self) -> None:
        script = (RECEIVE, response(b"", "Content-Type: text/plain", length=4), 0.05, b"data and more", HOLD)
        async with RawServer(script) as server, transport() as sender:
            answer = await send(sender, server.url)
            assert await answer.read() == b"data"
            assert await answer.read() == b""
            await answer.end()
            second = asyncio.create_task(send(sender, server.url))
            while server.connections < 2:
                await asyncio.sleep(0.005)
            second.cancel()


class TestUnsolicitedResponses:
    """A response that no request asked for answers none: some servers report a timeout on an idle connection."""

    async def test_on_an_idle_connection(self) -> None:
        unsolicited = response(b"theirs", status="200 OK")
        scripts = (
            (RECEIVE, response(b"first"), 0.05, unsolicited, HOLD),
            (RECEIVE, response(b"second"), HOLD),
        )
        async with RawServer(*scripts) as server, transport() as sender:
            answer = await send(sender, server.url)
            assert await answer.read() == b"first"
            await answer.end()
            await server.ended.wait()  # it has arrived, and ended the connection
            answer = await send(sender, server.url)
            assert await answer.read() == b"second"
            assert server.connections == 2

    async def test_behind_an_answer(self) -> None:
        scripts = (
            (RECEIVE, response(b"first") + response(b"theirs"), HOLD),
            (RECEIVE, response(b"second"), HOLD),
        )
        async with RawServer(*scripts) as server, transport() as sender:
            answer = await send(sender, server.url)
            assert await answer.read() == b"first"
            await answer.end()
            answer = await send(sender, server.url)
            assert await answer.read() == b"second"


class TestSlowReaders:
    """An answer that no one reads is not received: its model service has to wait."""

    @pytest.mark.parametrize("size", [100, 100_000])
    @pytest.mark.parametrize("coding", ["identity", "gzip"])
    async def test_what_is_received_is_bounded(self, size: int, coding: str) -> None:
        headers = f"Content-Type: text/event-stream\r\nContent-Encoding: {coding}\r\n"
        content = random.Random(1).randbytes(size)
        flood = chunked(*[content] * (30_000_000 // size), headers=headers)
        async with RawServer((RECEIVE, flood, HOLD)) as server, transport() as sender:
            body = (await send(sender, server.url))._response.content
            received = -1
            while received != body.total_bytes:
                received = body.total_bytes
                await asyncio.sleep(0.1)
            assert 100_000 < received < 1_500_000


async def test_a_connection_is_kept_where_all_is_well() -> None:
    once = (RECEIVE, chunked(b"data: x\n\n"), LAST_CHUNK)
    async with RawServer((*once, *once, *once, HOLD)) as server, transport() as sender:
        for _ in range(3):
            answer = await send(sender, server.url)
            assert await answer.read() == b"data: x\n\n"
            await answer.end()
        assert server.connections == 1
