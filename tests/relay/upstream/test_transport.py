"""The HTTP transport on aiohttp: the answer's bytes, the session's settings, reuse of connections, errors."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx2
import pytest
import yarl

from relay.settings import Settings
from relay.upstream.content_coding import UnreadableCodingError
from relay.upstream.transport import (
    AIOHTTP_RESPONSE,
    AiohttpTransport,
    ClosedConnectionError,
    StreamedAnswer,
    create_session,
    refusal_text,
)
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

    @pytest.mark.parametrize(
        ("header", "media_type"),
        [
            ("Text/Event-Stream; charset=utf-8", "text/event-stream"),
            (" application/json ;a", "application/json"),
            ("odd", "odd"),
            (";", ""),
            (None, ""),
        ],
    )
    async def test_the_media_type(self, header: str | None, media_type: str) -> None:
        assert answer(FakeResponse(content_type=header)).media_type == media_type

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
        assert session.timeout == aiohttp.ClientTimeout(
            total=None, connect=7.5, sock_read=None, sock_connect=None, ceil_threshold=7.5
        )

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
        noted: dict[str, float] = {}
        await note(session, SimpleNamespace(trace_request_ctx=noted), aiohttp.TraceConnectionReuseconnParams())  # type: ignore[arg-type]
        assert noted == {"reused_at": pytest.approx(asyncio.get_running_loop().time())}

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
        received = FakeResponse(201, {"Retry-After": "7", "X-A": "1", "Content-Encoding": "gzip"})
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert response.status_code == 201
        assert dict(response.headers) == {"content-type": "text/event-stream", "retry-after": "7", "x-a": "1"}
        assert response.extensions[AIOHTTP_RESPONSE] is received
        assert response.request.url == ADDRESS
        assert received.state == "open"
        await response.aclose()
        assert received.state == "closed"

    async def test_repeated_headers_are_kept(self) -> None:
        received = FakeResponse()
        received.raw_headers = (
            (b"X-A", b"1"),
            (b"Set-Cookie", b"a=b"),
            (b"X-A", b"2"),
            (b"CONTENT-ENCODING", b"gzip"),
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
        ("error", "reason"),
        [
            (aiohttp.ClientConnectionError(), "no connection to the model service (ClientConnectionError)"),
            (
                aiohttp.ServerDisconnectedError("SECRET"),
                "the model service closed the connection without an answer (ServerDisconnectedError)",
            ),
            (
                aiohttp.ClientOSError("SECRET"),
                "the connection to the model service broke before its answer (ClientOSError)",
            ),
            (
                aiohttp.ClientPayloadError("SECRET"),
                "the model service closed the connection within its answer (ClientPayloadError)",
            ),
            (aiohttp.ServerTimeoutError("SECRET"), "no connection to the model service (ServerTimeoutError)"),
            (OSError("SECRET"), "no connection to the model service (OSError)"),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_any_other(self, error: Exception, reason: str) -> None:
        session = FakeSession(error)
        with pytest.raises(httpx2.ConnectError) as caught:
            await transport(session).handle_async_request(request())
        assert str(caught.value) == reason
        assert caught.value.__cause__ is error
        assert caught.value.request.url == ADDRESS
        assert len(session.requests) == 1

    async def test_the_deepest_cause_is_named(self) -> None:
        error = aiohttp.ClientConnectionError()
        error.__cause__ = OSError()
        error.__cause__.__cause__ = KeyError("SECRET")
        with pytest.raises(httpx2.ConnectError, match=r"^no connection to the model service \(KeyError\)$"):
            await transport(FakeSession(error)).handle_async_request(request())


class TestKeptConnections:
    """A kept connection that the server closed at the same moment is no failure of the server's."""

    @pytest.mark.parametrize("error", [aiohttp.ServerDisconnectedError(), aiohttp.ClientOSError()])
    async def test_one_that_the_server_closed(self, error: Exception) -> None:
        with pytest.raises(ClosedConnectionError) as caught:
            await transport(FakeSession(error, reused=(True,))).handle_async_request(request())
        assert caught.value.__cause__ is error
        assert caught.value.request.url == ADDRESS

    @pytest.mark.parametrize(
        "error",
        [
            aiohttp.ClientPayloadError(),
            aiohttp.ClientConnectionError(),
            aiohttp.ServerDisconnectedError(SimpleNamespace(code=200)),  # type: ignore[arg-type]
            aiohttp.ClientConnectorError(SimpleNamespace(host="h", port=1, ssl=True), OSError()),  # type: ignore[arg-type]
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_another_failure_of_one(self, error: Exception) -> None:
        with pytest.raises(httpx2.ConnectError) as caught:
            await transport(FakeSession(error, reused=(True,))).handle_async_request(request())
        assert type(caught.value) is httpx2.ConnectError

    @virtual_time
    @pytest.mark.parametrize(("seconds", "kind"), [(0.49, ClosedConnectionError), (0.51, httpx2.ConnectError)])
    async def test_one_that_is_closed_later_was_not_closed_before(self, seconds: float, kind: type[Exception]) -> None:
        class Later(FakeSession):
            async def request(self, *arguments: Any, **options: Any) -> Any:
                try:
                    return await super().request(*arguments, **options)
                finally:
                    await asyncio.sleep(seconds)

        with pytest.raises(httpx2.ConnectError) as caught:
            await transport(Later(aiohttp.ServerDisconnectedError(), reused=(True,))).handle_async_request(request())
        assert type(caught.value) is kind


async def refused(received: FakeResponse) -> str:
    """The text of a refusal."""
    return await refusal_text(received)  # type: ignore[arg-type]


class TestRefusals:
    """A refusal is one by its status; its body adds what it can."""

    async def test_its_body_is_read(self) -> None:
        received = FakeResponse(400, content=b'{"error": {}}')
        assert await refused(received) == '{"error": {}}'
        assert received.state == "closed"

    @pytest.mark.parametrize("status", [101, 199, 300, 304, 400, 503, 999])
    async def test_the_response_does_not_wait_for_it(self, status: int) -> None:
        received = FakeResponse(status, {"Retry-After": "7", "Content-Encoding": "br", "Content-Length": "9"})
        response = await transport(FakeSession(received)).handle_async_request(request())
        assert (response.status_code, response.content) == (status, b"")
        assert response.headers["retry-after"] == "7"
        assert not {"content-encoding", "content-length"} & set(response.headers)
        assert response.extensions[AIOHTTP_RESPONSE] is received
        assert received.state == "open"

    @pytest.mark.parametrize(("size", "reads"), [(1024, 65), (1023, 65), (64 * 1024, 2), (64 * 1024 - 1, 2)])
    async def test_up_to_a_bound(self, size: int, reads: int) -> None:
        received = FakeResponse(500)
        count = 0

        async def readany() -> bytes:
            nonlocal count
            count += 1
            return b"x" * size

        received.content = SimpleNamespace(readany=readany)  # type: ignore[assignment]
        assert len(await refused(received)) == 64 * 1024
        assert count == reads

    @virtual_time
    @pytest.mark.parametrize("pause", [None, 0.3])
    async def test_for_a_second(self, pause: float | None) -> None:
        received = FakeResponse(429)
        received.content.feed_data(b"{")
        loop = asyncio.get_running_loop()
        for turn in range(1, 10 if pause else 1):
            loop.call_later(turn * (pause or 0), received.content.feed_data, b"x")
        began = loop.time()
        assert await refused(received) == ("{xxx" if pause else "{")
        assert loop.time() - began == pytest.approx(1)
        assert received.state == "closed"

    async def test_one_that_is_cancelled_is_closed(self) -> None:
        received = FakeResponse(429)
        reading = asyncio.create_task(refused(received))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert received.state == "closed"

    @pytest.mark.parametrize("error", CONNECTION_ERRORS, ids=lambda error: type(error).__name__)
    async def test_one_that_breaks_off_counts_as_absent(self, error: Exception) -> None:
        received = FakeResponse(500)
        received.content.set_exception(error)
        assert await refused(received) == ""

    @pytest.mark.parametrize(
        ("content_type", "content"),
        [
            ("application/json", "\u00fc".encode()),
            ("application/json; charset=utf-8", "\u00fc".encode()),
            ("application/json", b"\xef\xbb\xbf" + "\u00fc".encode()),
            ("application/json", "\u00fc!".encode("utf-16")),
            ("application/json", "\u00fc!".encode("utf-16-le")),
            ('application/json; a=b; CHARSET="UTF-16LE"', "\u00fc".encode("utf-16-le")),
            ("application/json;charset=ISO-8859-1", b"\xfc"),
            ("application/json; charset='windows-1252'", b"\xfc"),
            ("application/json; charset=gb18030", "\u00fc".encode("gb18030")),
            ("application/json; charset=unheard-of", "\u00fc".encode()),
            ("application/json; charset=idna", "\u00fc".encode()),
            ("application/json; charset=base64", "\u00fc".encode()),
            ("application/json; charset=", "\u00fc".encode()),
            ("application/json; charset", "\u00fc".encode()),
            ("application/json; charset=a\0b", "\u00fc".encode()),
            (None, "\u00fc".encode()),
        ],
    )
    async def test_text_encodings(self, content_type: str | None, content: bytes) -> None:
        text = await refused(FakeResponse(400, content=content, content_type=content_type))
        assert text.rstrip("!") == "\u00fc"

    async def test_what_is_no_text_is_replaced(self) -> None:
        assert await refused(FakeResponse(400, content=b"a\xff")) == "a\ufffd"

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    async def test_content_codings(self, coding: str) -> None:
        coded = gzip.compress(b"x" * 100_000) if coding == "gzip" else zlib.compress(b"x" * 100_000)
        assert await refused(FakeResponse(400, {"Content-Encoding": coding}, content=coded)) == "x" * 64 * 1024

    @pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "gzip"])
    async def test_what_can_not_be_decoded_counts_as_absent(self, coding: str) -> None:
        assert await refused(FakeResponse(429, {"Content-Encoding": coding}, content=b"not coded")) == ""


class TestContentCodings:
    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    async def test_an_answer_is_decoded(self, coding: str) -> None:
        coded = gzip.compress(b"data: x\n\n") if coding == "gzip" else zlib.compress(b"data: x\n\n")
        received = FakeResponse(headers={"Content-Encoding": coding}, content=coded)
        response = await transport(FakeSession(received)).handle_async_request(request())
        begun = StreamedAnswer(response.extensions[AIOHTTP_RESPONSE])
        assert await begun.read() == b"data: x\n\n"
        assert await begun.read() == b""

    async def test_what_arrived_of_it_before_the_connection_broke_can_be_read(self) -> None:
        received = FakeResponse(headers={"Content-Encoding": "gzip"})
        received.content.feed_data(gzip.compress(b"data: x\n\n")[:-8])
        received.content.set_exception(aiohttp.ClientPayloadError())
        begun = answer(received)
        with pytest.raises(begun.connection_errors):
            await begun.read()
        assert begun.read_remaining() == b"data: x\n\n"

    async def test_one_in_another_coding_is_closed(self) -> None:
        received = FakeResponse(headers={"Content-Encoding": "br"})
        with pytest.raises(UnreadableCodingError, match=r"^br$"):
            await transport(FakeSession(received)).handle_async_request(request())
        assert received.state == "closed"


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
