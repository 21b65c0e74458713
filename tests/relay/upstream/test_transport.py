"""The HTTP transport on aiohttp: the answer's bytes, the session's settings, reuse of connections, errors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx2
import pytest
import yarl

from relay.settings import Settings
from relay.upstream.transport import AIOHTTP_RESPONSE, AiohttpTransport, StreamedAnswer, create_session
from tests.relay.upstream.fakes import FakeResponse, FakeSession
from tests.relay.virtual_time import virtual_time

ADDRESS = "http://account.example.com/v1/chat/completions"
CONNECTION_ERRORS = [
    aiohttp.ClientPayloadError("x"),
    aiohttp.ServerDisconnectedError(),
    ConnectionResetError(),
    RuntimeError("Connection closed."),
]


def answer(response: FakeResponse) -> StreamedAnswer:
    return StreamedAnswer(response)  # type: ignore[arg-type]


class TestStreamedAnswer:
    async def test_reading(self) -> None:
        response = FakeResponse(content_type="text/event-stream")
        begun = answer(response)
        assert begun.media_type == "text/event-stream"
        response.content.feed_data(b"one ")
        response.content.feed_data(b"two")
        assert await begun.read() == b"one two"
        response.content.feed_eof()
        assert await begun.read() == b""

    @pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
    async def test_what_arrived_before_the_connection_broke_can_be_read(self, error: Exception) -> None:
        response = FakeResponse()
        response.content.feed_data(b"one ")
        response.content.feed_data(b"two")
        response.content.set_exception(error)
        broken = answer(response)
        with pytest.raises(broken.connection_errors):
            await broken.read()
        assert broken.read_remaining() == b"one two"
        assert broken.read_remaining() == b""

    async def test_closing(self) -> None:
        response = FakeResponse()
        answer(response).close()
        assert response.state == "closed"


class TestEndOfAnAnswer:
    async def test_it_returns_the_connection_where_the_end_has_arrived(self) -> None:
        response = FakeResponse(content=b"")
        await answer(response).end()
        assert response.state == "released"

    async def test_what_follows_the_last_event_is_read(self) -> None:
        response = FakeResponse(content=b"\n\n")
        await answer(response).end()
        assert response.state == "released"
        assert response.content.at_eof()

    @virtual_time
    async def test_the_end_is_waited_for(self) -> None:
        response = FakeResponse()
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, response.content.feed_data, b"\n")
        loop.call_later(0.4, response.content.feed_eof)
        began = loop.time()
        await answer(response).end()
        assert loop.time() - began == pytest.approx(0.4)
        assert response.state == "released"

    @virtual_time
    async def test_but_not_for_long(self) -> None:
        response = FakeResponse()
        loop = asyncio.get_running_loop()
        began = loop.time()
        loop.call_later(0.4, response.content.feed_data, b"\n")
        await answer(response).end()
        assert loop.time() - began == pytest.approx(0.5)
        assert response.state == "closed"

    @pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
    async def test_a_connection_that_breaks_is_closed(self, error: Exception) -> None:
        response = FakeResponse()
        response.content.set_exception(error)
        await answer(response).end()
        assert response.state == "closed"


class TestSession:
    @pytest.fixture
    async def session(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[aiohttp.ClientSession]:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        async with create_session(Settings((), upstream_connect_timeout=7.5)) as session:
            yield session

    async def test_only_connecting_is_timed(self, session: aiohttp.ClientSession) -> None:
        assert session.timeout == aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=7.5)

    async def test_connections_are_kept_and_not_limited(self, session: aiohttp.ClientSession) -> None:
        connector: Any = session.connector
        assert (connector.limit, connector.limit_per_host) == (0, 0)
        assert (connector.force_close, connector._keepalive_timeout) == (False, 60)

    async def test_no_cookie_is_kept(self, session: aiohttp.ClientSession) -> None:
        address = yarl.URL("https://account.openai.azure.com/")
        session.cookie_jar.update_cookies({"name": "value"}, address)
        assert not session.cookie_jar.filter_cookies(address)

    async def test_nothing_is_taken_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://proxy.example.com:3128")
        async with create_session(Settings(())) as session:
            assert not session.trust_env

    async def test_the_reuse_of_a_connection_is_noted(self, session: aiohttp.ClientSession) -> None:
        (trace,) = session.trace_configs
        (note,) = trace.on_connection_reuseconn
        noted: dict[str, bool] = {}
        await note(session, SimpleNamespace(trace_request_ctx=noted), aiohttp.TraceConnectionReuseconnParams())  # type: ignore[arg-type]
        assert noted == {"reused": True}

    async def test_the_connect_timeout_is_applied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()

        async def hang(*_: object) -> None:
            await loop.create_future()

        monkeypatch.setattr(loop, "sock_connect", hang)
        async with create_session(Settings((), upstream_connect_timeout=0.01)) as session:
            with pytest.raises(httpx2.ConnectTimeout, match=r"^no connection in time$"):
                await AiohttpTransport(session).handle_async_request(httpx2.Request("GET", "http://127.0.0.1:9/"))


def transport(session: FakeSession) -> AiohttpTransport:
    return AiohttpTransport(session)  # type: ignore[arg-type]


def request() -> httpx2.Request:
    return httpx2.Request("POST", ADDRESS, headers=[("a", "1"), ("b", "2"), ("a", "3")], content=b"the body")


class TestRequests:
    async def test_a_request_is_sent_as_it_is(self) -> None:
        session = FakeSession(FakeResponse())
        await transport(session).handle_async_request(
            httpx2.Request("PUT", ADDRESS + "/%61%2fb?c=%20%64", content=b"x")
        )
        (sent,) = session.requests
        assert (sent.method, str(sent.url), sent.data) == ("PUT", ADDRESS + "/%61%2fb?c=%20%64", b"x")

    async def test_its_headers_too(self) -> None:
        session = FakeSession(FakeResponse())
        await transport(session).handle_async_request(request())
        assert [header for header in session.requests[0].headers if header[0] in "ab"] == [
            ("a", "1"),
            ("b", "2"),
            ("a", "3"),
        ]
        assert dict(session.requests[0].headers) == {
            "host": "account.example.com",
            "a": "3",
            "b": "2",
            "content-length": "8",
        }

    async def test_no_redirect_is_followed(self) -> None:
        session = FakeSession(FakeResponse(302, {"Location": "http://other.example.com/"}))
        response = await transport(session).handle_async_request(request())
        assert response.status_code == 302
        assert session.requests[0].allow_redirects is False

    async def test_the_response(self) -> None:
        received = FakeResponse(429, {"Retry-After": "7", "X-A": "1", "Content-Encoding": "gzip"})
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert response.status_code == 429
        assert dict(response.headers) == {"retry-after": "7", "x-a": "1"}
        assert response.extensions[AIOHTTP_RESPONSE] is received
        assert response.request.url == ADDRESS

    async def test_repeated_headers_are_kept(self) -> None:
        received = FakeResponse()
        received.raw_headers = (
            (b"X-A", b"1"),
            (b"Set-Cookie", b"a=b"),
            (b"X-A", b"2"),
            (b"CONTENT-ENCODING", b"br"),
        )
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert response.headers.multi_items() == [("x-a", "1"), ("x-a", "2")]


class TestConnectionErrors:
    async def test_a_timeout(self) -> None:
        error = aiohttp.ConnectionTimeoutError()
        with pytest.raises(httpx2.ConnectTimeout, match=r"^no connection in time$") as caught:
            await transport(FakeSession(error)).handle_async_request(request())
        assert caught.value.__cause__ is error
        assert caught.value.request.url == ADDRESS

    @pytest.mark.parametrize(
        "error",
        [
            aiohttp.ClientConnectionError(),
            aiohttp.ServerDisconnectedError(),
            aiohttp.ClientOSError(),
            aiohttp.ClientPayloadError(),
            aiohttp.ServerTimeoutError(),
            OSError(),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_any_other(self, error: Exception) -> None:
        session = FakeSession(error)
        with pytest.raises(httpx2.ConnectError, match=r"^no connection$") as caught:
            await transport(session).handle_async_request(request())
        assert caught.value.__cause__ is error
        assert caught.value.request.url == ADDRESS
        assert len(session.requests) == 1


class TestKeptConnections:
    """A kept connection that the server closed at the same moment is no failure of the server's."""

    @pytest.mark.parametrize("error", [aiohttp.ServerDisconnectedError, aiohttp.ClientOSError])
    async def test_the_request_is_sent_again(self, error: type[Exception]) -> None:
        session = FakeSession(error(), FakeResponse(201), reused=(True, False))
        response = await transport(session).handle_async_request(request())
        assert response.status_code == 201
        first, second = session.requests
        assert first == second

    @pytest.mark.parametrize("reused", [(True, True), (True, False)], ids=["kept", "new"])
    async def test_but_only_once(self, reused: tuple[bool, ...]) -> None:
        errors = [aiohttp.ServerDisconnectedError() for _ in range(3)]
        session = FakeSession(*errors, reused=reused)
        with pytest.raises(httpx2.ConnectError) as caught:
            await transport(session).handle_async_request(request())
        assert caught.value.__cause__ is errors[1]
        assert len(session.requests) == 2

    async def test_and_not_on_another_error(self) -> None:
        session = FakeSession(aiohttp.ClientPayloadError(), reused=(True,))
        with pytest.raises(httpx2.ConnectError):
            await transport(session).handle_async_request(request())
        assert len(session.requests) == 1

    async def test_each_request_has_a_retry_of_its_own(self) -> None:
        session = FakeSession(
            aiohttp.ServerDisconnectedError(),
            FakeResponse(201),
            aiohttp.ServerDisconnectedError(),
            FakeResponse(202),
            reused=(True, True, True, True),
        )
        sender = transport(session)
        assert [(await sender.handle_async_request(request())).status_code for _ in range(2)] == [201, 202]


async def body(response: httpx2.Response) -> bytes:
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    return b"".join([chunk async for chunk in response.stream])


class TestErrorBody:
    async def test_it_is_read(self) -> None:
        received = FakeResponse(400, content=b'{"error": {}}')
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert await body(response) == b'{"error": {}}'
        await response.aclose()
        assert received.state == "closed"

    @pytest.mark.parametrize(("size", "reads"), [(1024, 64), (1023, 65), (64 * 1024, 1), (64 * 1024 - 1, 2)])
    async def test_up_to_a_bound(self, size: int, reads: int) -> None:
        received = FakeResponse(500)
        count = 0

        async def readany() -> bytes:
            nonlocal count
            count += 1
            return b"x" * size

        received.content = SimpleNamespace(readany=readany)  # type: ignore[assignment]
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert len(await body(response)) == reads * size
        assert count == reads

    @pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
    async def test_one_that_breaks_off_counts_as_absent(self, error: Exception) -> None:
        received = FakeResponse(500)
        received.content.set_exception(error)
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert await body(response) == b""


class TestSockets:
    """The same with aiohttp's own session."""

    @staticmethod
    async def send(session: aiohttp.ClientSession, port: int) -> StreamedAnswer:
        request = httpx2.Request("POST", f"http://127.0.0.1:{port}/v1", content=b"{}")
        response = await AiohttpTransport(session).handle_async_request(request)
        return StreamedAnswer(response.extensions[AIOHTTP_RESPONSE])

    async def test_a_connection_is_kept_and_used_again(self) -> None:
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await reader.readuntil(b"\r\n\r\n{}")
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\ndata: [DONE]\n\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with create_session(Settings(())) as session:
                for _ in range(3):
                    answer = await self.send(session, port)
                    assert await answer.read() == b"data: [DONE]\n\n"
                    await answer.end()
        assert connections == 1

    async def test_a_kept_connection_that_the_server_closes_is_replaced(self) -> None:
        served = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            # One answer on each connection, which is closed when the next request arrives on it.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"\r\n\r\n{}")
                served += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n{}")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with create_session(Settings(())) as session:
                for _ in range(3):
                    await (await self.send(session, port)).end()
        assert served == 3
