"""Whatever HTTP servers really send: an answer is read where there is one, and how it ended is never misreported."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from relay.problems import UPSTREAM_ERROR, UPSTREAM_TIMEOUT
from relay.settings import Settings
from relay.upstream.answer import Answer
from relay.upstream.failures import Refusal
from relay.upstream.pool import BackendPool, Failover
from relay.upstream.request import UpstreamRequest
from relay.upstream.transport import create_session
from tests.certificates import Certificates
from tests.relay.upstream.raw_server import HOLD, RECEIVE, RESET, RawServer, Step, chunked, response

REQUEST = UpstreamRequest("/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, stream=True)
EVENT = b"data: x\n\n"
OK = b"HTTP/1.1 200 OK\r\n"


class Asker:
    """Asks the one backend of a pool; `repeats` counts the requests that were sent once more."""

    def __init__(self, pool: BackendPool) -> None:
        self.pool = pool
        self.repeats = 0

    async def __call__(self, request: UpstreamRequest = REQUEST) -> Answer | Refusal:
        failover = self.pool.failover(None)
        assert isinstance(failover, Failover)
        backend = failover.next()
        assert backend is not None
        try:
            return await backend.open(request, "request-1", self._count)
        finally:
            failover.release()

    def _count(self) -> None:
        self.repeats += 1


@contextlib.asynccontextmanager
async def asker(url: str, **settings: str) -> AsyncIterator[Asker]:
    """Asks the model service at an address."""
    environ = {"AZURE_OPENAI_ENDPOINT": url, "AZURE_OPENAI_DEPLOYMENTS": "some", **settings}
    pool = BackendPool(Settings.read(environ))
    await pool.connect()
    try:
        yield Asker(pool)
    finally:
        await pool.close()


async def read(answer: Answer | Refusal) -> tuple[bytes, bool]:
    """What is received, and whether the body ended as it should."""
    assert not isinstance(answer, Refusal), answer
    received = b""
    try:
        while content := await asyncio.wait_for(answer.read(), 5):
            received += content
    except TimeoutError:
        pytest.fail("the reader was not told of the end")
    except answer.connection_errors:
        received += answer.read_remaining()
        answer.close()
        return received, False
    await answer.end()
    return received, True


@pytest.mark.parametrize(
    "content",
    [
        OK + b"X: " + b"x" * 9000 + b"\r\nContent-Length: 9\r\n\r\n" + EVENT,
        OK + b"X: " + b"x" * 60_000 + b"\r\nContent-Length: 9\r\n\r\n" + EVENT,
        OK + b"X-" + b"x" * 9000 + b": y\r\nContent-Length: 9\r\n\r\n" + EVENT,
        b"HTTP/1.1 200 " + b"x" * 9000 + b"\r\nContent-Length: 9\r\n\r\n" + EVENT,
        OK + b"".join(b"X-%d: %b\r\n" % (n, b"y" * 50) for n in range(900)) + b"Content-Length: 9\r\n\r\n" + EVENT,
        OK + b"X-A: 1\r\nX-A: 2\r\nContent-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 9\r\n\r\n" + EVENT,
        OK + b"X-A: b\r\n  folded\r\nContent-Length: 9\r\n\r\n" + EVENT,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + response(EVENT),
        OK + b"Connection: close\r\n\r\n" + EVENT,
        b"HTTP/1.0 200 OK\r\n\r\n" + EVENT,
        b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n" + EVENT,
        OK + b"\r\n" + EVENT,
        b"HTTP/1.1 200\r\nContent-Length: 9\r\n\r\n" + EVENT,
        OK + b'Transfer-Encoding: chunked\r\n\r\n9;name="a b";c\r\n' + EVENT + b"\r\n0;x\r\nX-Trailer: y\r\n\r\n",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n0009\r\n" + EVENT + b"\r\n000\r\n\r\n",
        OK.replace(b"\r", b"") + b"Content-Length: 9\n\n" + EVENT,
    ],
    ids=range(16),
)
async def test_an_answer(content: bytes) -> None:
    async with RawServer((RECEIVE, content)) as server, asker(server.url) as ask:
        assert await read(await ask()) == (EVENT, True)


@pytest.mark.parametrize(
    ("script", "received"),
    [
        ((response(EVENT, length=50),), EVENT),
        ((response(EVENT, length=50), RESET), EVENT),
        ((chunked(EVENT),), EVENT),
        ((chunked(EVENT), RESET), EVENT),
        ((chunked(EVENT) + b"9\r\ndata",), EVENT + b"data"),
        ((chunked(EVENT), 0.05, b"ZZ\r\n", HOLD), EVENT),
        ((response(EVENT, "Content-Encoding: gzip"),), b""),
    ],
    ids=range(7),
)
async def test_an_answer_that_is_cut(script: tuple[Step, ...], received: bytes) -> None:
    async with RawServer((RECEIVE, *script)) as server, asker(server.url) as ask:
        assert await read(await ask()) == (received, False)


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content"])
async def test_an_answer_without_a_body(status: str) -> None:
    content = f"HTTP/1.1 {status}\r\n{'Content-Length: 0\r\n' if '205' in status else ''}\r\n".encode()
    async with RawServer((RECEIVE, content, HOLD)) as server, asker(server.url) as ask:
        assert await read(await ask()) == (b"", True)


async def test_a_body_that_is_longer_than_announced_is_as_long_as_announced() -> None:
    script = (RECEIVE, response(b"", length=9), 0.05, EVENT, 0.05, b"and more", HOLD)
    async with RawServer(script) as server, asker(server.url) as ask:
        assert await read(await ask()) == (EVENT, True)
        await server.ended.wait()  # what followed has arrived, and ended the connection
        again = asyncio.create_task(ask())
        while server.connections < 2:  # what followed is no part of the next answer
            await asyncio.sleep(0.005)
        again.cancel()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (OK + b"Content-Length: 9\r\nContent-Length: 10\r\n\r\n" + EVENT, "BadHttpMessage"),
        (
            OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n" + EVENT + b"\r\n0\r\n\r\n",
            "BadHttpMessage",
        ),
        (OK + b"Content-Length: nine\r\n\r\n" + EVENT, "BadHttpMessage"),
        (OK + b"Content-Length: -9\r\n\r\n" + EVENT, "BadHttpMessage"),
        (OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n", "LineTooLong"),
        (OK + b"".join(b"X-%d: y\r\n" % number for number in range(1001)) + b"\r\n", "BadHttpMessage"),
        (OK + b"no colon\r\n\r\n", "BadHttpMessage"),
        (b"HTTP/3.7 200 OK\r\n\r\n", "BadStatusLine"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "BadStatusLine"),
        (b"<html>", "BadStatusLine"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "BadStatusLine"),
    ],
    ids=range(11),
)
async def test_what_is_not_http(content: bytes, error: str) -> None:
    async with RawServer((RECEIVE, content, HOLD)) as server, asker(server.url) as ask:
        refused = await asyncio.wait_for(ask(), 5)
    assert isinstance(refused, Refusal)
    assert refused.problem == UPSTREAM_ERROR
    assert refused.reason == f"the model service's answer is not valid HTTP ({error})"


async def test_a_switch_of_protocols_is_a_refusal() -> None:
    content = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    async with RawServer((RECEIVE, content, HOLD)) as server, asker(server.url) as ask:
        refused = await asyncio.wait_for(ask(), 5)
    assert isinstance(refused, Refusal)
    assert (refused.problem, refused.status) == (UPSTREAM_ERROR, 101)


class TestKeptConnections:
    """A request is sent once more where the server had closed the connection before it, and never otherwise."""

    async def second(self, *script: Step) -> tuple[Asker, RawServer, Answer | Refusal]:
        """The outcome of a request on a kept connection."""
        scripts = ((RECEIVE, response(EVENT), *script), (RECEIVE, response(b"again")))
        async with RawServer(*scripts) as server, asker(server.url) as ask:
            assert await read(await ask()) == (EVENT, True)
            outcome = await ask()
            if not isinstance(outcome, Refusal):
                assert await read(outcome) == (b"again", True)
            return ask, server, outcome

    @pytest.mark.parametrize("script", [(RECEIVE,), (RECEIVE, RESET)], ids=["closed", "reset"])
    async def test_one_that_is_closed_at_once(self, script: tuple[Step, ...]) -> None:
        ask, server, outcome = await self.second(*script)
        assert not isinstance(outcome, Refusal)
        assert (ask.repeats, server.connections) == (1, 2)

    @pytest.mark.parametrize("script", [(RECEIVE, 0.7), (RECEIVE, 0.7, RESET)], ids=["closed", "reset"])
    async def test_one_that_is_closed_after_a_while_of_work(self, script: tuple[Step, ...]) -> None:
        ask, server, outcome = await self.second(*script)
        assert isinstance(outcome, Refusal)
        assert (ask.repeats, server.connections) == (0, 1)

    @pytest.mark.parametrize(
        "begun",
        [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nX-A: b", b"HTTP/1.1 103 Early\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
    )
    async def test_one_that_is_closed_within_a_response(self, begun: bytes) -> None:
        ask, server, outcome = await self.second(RECEIVE, begun)
        assert isinstance(outcome, Refusal)
        assert (ask.repeats, server.connections) == (0, 1)

    async def test_a_new_connection_that_is_closed_at_once(self) -> None:
        async with RawServer((RECEIVE,)) as server, asker(server.url) as ask:
            refused = await ask()
            assert isinstance(refused, Refusal)
            assert (
                refused.reason == "the model service closed the connection without an answer (ServerDisconnectedError)"
            )
            assert (ask.repeats, server.connections) == (0, 1)


class TestConnecting:
    """One limit for all of it: the name, TCP, the proxy, TLS."""

    @staticmethod
    async def in_time(ask: Callable[[], Awaitable[Answer | Refusal]]) -> Refusal:
        loop = asyncio.get_running_loop()
        began = loop.time()
        refused = await asyncio.wait_for(ask(), 5)
        assert 0.25 < loop.time() - began < 2
        assert refused == Refusal(UPSTREAM_TIMEOUT, "no connection in time")
        return refused

    async def test_a_name_that_is_not_resolved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        looked_up: list[Any] = []

        async def hang(host: Any, *_: object, **__: object) -> None:
            looked_up.append(host)
            await loop.create_future()

        monkeypatch.setattr(loop, "getaddrinfo", hang)
        async with asker("http://service.example.com/v1", UPSTREAM_CONNECT_TIMEOUT_SECONDS="0.3") as ask:
            for _ in range(2):
                await asyncio.gather(*(self.in_time(ask) for _ in range(20)))
        assert looked_up == ["service.example.com"], "each look-up occupies a thread"

    async def test_tls_that_is_not_answered(self) -> None:
        async with RawServer((HOLD,)) as server:
            address = f"https://127.0.0.1:{server.port}/v1"
            async with asker(address, UPSTREAM_CONNECT_TIMEOUT_SECONDS="0.3") as ask:
                await self.in_time(ask)
                await asyncio.wait_for(server.ended.wait(), 2)

    async def test_a_slow_answer_is_none_of_it(self) -> None:
        async with (
            RawServer((RECEIVE, 0.6, response(EVENT))) as server,
            asker(server.url, UPSTREAM_CONNECT_TIMEOUT_SECONDS="0.3") as ask,
        ):
            assert await read(await ask()) == (EVENT, True)

    async def test_a_proxy_that_opens_no_tunnel(self) -> None:
        settings = Settings((), upstream_connect_timeout=0.3)
        async with RawServer((HOLD,)) as proxy, create_session(settings) as session:
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await session.post("https://service.example.com/", proxy=f"http://127.0.0.1:{proxy.port}")
            await asyncio.wait_for(proxy.ended.wait(), 2)


class TestReasons:
    """The log names what keeps the app from an answer."""

    async def reason(self, url: str) -> str:
        async with asker(url) as ask:
            refused = await asyncio.wait_for(ask(), 5)
        assert isinstance(refused, Refusal)
        assert refused.problem == UPSTREAM_ERROR
        assert refused.status is None
        return refused.reason

    async def test_the_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "SECRET")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
        reason = await self.reason("http://service.example.com/v1")
        assert reason == "the name of the model service's host can't be resolved (gaierror)"

    async def test_the_port(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            reason = await self.reason(f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        assert reason == "no connection to the model service (ConnectionRefusedError)"

    async def test_the_certificate(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        certificates = Certificates(tmp_path_factory.mktemp("certificates"))
        async with RawServer((HOLD,), tls=certificates.server_context()) as server:
            reason = await self.reason(server.url)
        assert reason == "the model service's TLS certificate is not trusted (SSLCertVerificationError)"

    async def test_tls(self) -> None:
        async with RawServer((b"220 mail.example.com ESMTP\r\n", HOLD)) as server:
            reason = await self.reason(server.url.replace("http:", "https:"))
        assert reason == "no TLS connection to the model service (SSLError)"
