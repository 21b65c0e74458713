"""The client of one model service: what is sent, what is received, what is refused, and what is never repeated."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from local.model_service import ModelService
from relay.problems import INVALID_REQUEST, RATE_LIMITED, UPSTREAM_AUTH, UPSTREAM_ERROR, UPSTREAM_TIMEOUT, FieldError
from relay.settings import AZURE_TOKEN_SCOPE, NO_KEY, Settings
from relay.upstream.answer import Answer
from relay.upstream.client import ModelServiceClient
from relay.upstream.credential import SignInError
from relay.upstream.failures import MAX_RETRY_AFTER, Refusal, classify
from relay.upstream.pool import BackendPool, Failover
from relay.upstream.request import UpstreamRequest
from tests.relay.upstream.fakes import FakeResponse, FakeSession

ENDPOINT = "https://gateway.example.com:8443/team/v1/"
REQUEST = UpstreamRequest(
    "/chat/completions",
    {"messages": [{"role": "user", "content": "x"}], "stream": True, "model": "the caller's"},
    stream=True,
    fields={"messages": "input"},
)


def client(
    session: FakeSession, endpoint: str = ENDPOINT, credential: Callable[[], Awaitable[str]] | str = "the-key"
) -> ModelServiceClient:
    return ModelServiceClient(endpoint, credential, session)  # type: ignore[arg-type]


async def refusal(session: FakeSession, **arguments: Any) -> Refusal:
    refused = await client(session, **arguments).open(REQUEST, "deployment-1", "request-1")
    assert isinstance(refused, Refusal), refused
    return refused


def error_response(status: int, error: Any, headers: dict[str, str] | None = None) -> FakeResponse:
    headers = {"Content-Type": "application/json", **(headers or {})}
    return FakeResponse(status, headers, json.dumps({"error": error}).encode(), content_type="application/json")


class TestRequest:
    async def test_what_is_sent(self) -> None:
        session = FakeSession(FakeResponse())
        await client(session).open(REQUEST, "deployment-1", "request-1")
        (sent,) = session.requests
        assert sent.method == "POST"
        assert str(sent.url) == "https://gateway.example.com:8443/team/v1/chat/completions"
        assert sent.data == (b'{"messages":[{"role":"user","content":"x"}],"stream":true,"model":"deployment-1"}')
        headers = dict(sent.headers)
        assert {name: headers[name] for name in headers if not name.startswith("x-stainless")} == {
            "host": "gateway.example.com:8443",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "authorization": "Bearer the-key",
            "connection": "keep-alive",
            "content-length": str(len(sent.data)),
            "content-type": "application/json",
            "user-agent": headers["user-agent"],
            "x-ms-client-request-id": "request-1",
        }
        assert headers["x-stainless-retry-count"] == "0"
        assert REQUEST.parameters["model"] == "the caller's", "the caller's parameters were changed"

    async def test_a_document_is_accepted_where_no_stream_is_requested(self) -> None:
        session = FakeSession(FakeResponse())
        await client(session).open(UpstreamRequest("/other", {}, stream=False), "deployment-1", "request-1")
        (sent,) = session.requests
        assert dict(sent.headers)["accept"] == "application/json"
        assert str(sent.url).endswith("/team/v1/other")
        assert sent.data == b'{"model":"deployment-1"}'

    async def test_a_token_is_asked_for_with_each_request(self) -> None:
        tokens = ["token-1", "token-2"]

        async def token() -> str:
            return tokens.pop(0)

        session = FakeSession(FakeResponse(), FakeResponse())
        service = client(session, credential=token)
        for _ in range(2):
            await service.open(REQUEST, "deployment-1", "request-1")
        assert [dict(sent.headers)["authorization"] for sent in session.requests] == [
            "Bearer token-1",
            "Bearer token-2",
        ]

    @pytest.mark.parametrize(("scheme", "tunnelled"), [("https", True), ("http", False)])
    async def test_a_proxy_of_the_environment_is_used(
        self, monkeypatch: pytest.MonkeyPatch, scheme: str, tunnelled: bool
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv(f"{scheme}_proxy", "http://us%65r:p%40ss@proxy.example.com:3128")
        session = FakeSession(FakeResponse())
        service = client(session, endpoint=f"{scheme}://gateway.example.com/v1/")
        assert service.proxy == "http://proxy.example.com:3128"
        assert not isinstance(await service.open(REQUEST, "d", "request-1"), Refusal)
        (sent,) = session.requests
        assert str(sent.proxy) == "http://proxy.example.com:3128"
        credentials = aiohttp.encode_basic_auth("user", "p@ss")
        assert sent.proxy_headers == {"proxy-authorization": credentials}
        assert ("proxy-authorization" not in dict(sent.headers)) is tunnelled
        if not tunnelled:
            assert dict(sent.headers)["proxy-authorization"] == credentials

    async def test_a_proxy_without_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
        session = FakeSession(FakeResponse())
        await client(session, endpoint="http://gateway.example.com/v1/").open(REQUEST, "d", "request-1")
        (sent,) = session.requests
        assert sent.proxy_headers is None
        assert "proxy-authorization" not in dict(sent.headers)

    async def test_without_a_proxy(self) -> None:
        session = FakeSession(FakeResponse())
        service = client(session, endpoint="http://127.0.0.1:1/v1/")
        await service.open(REQUEST, "d", "request-1")
        assert (service.proxy, session.requests[0].proxy, session.requests[0].proxy_headers) == (None, None, None)

    async def test_no_variable_of_the_openai_client_changes_what_is_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = FakeSession(FakeResponse())
        await client(plain).open(REQUEST, "d", "request-1")
        for name in ("ORG_ID", "PROJECT_ID", "API_KEY", "ADMIN_KEY", "WEBHOOK_SECRET"):
            monkeypatch.setenv(f"OPENAI_{name}", f"the-{name}")
        monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example.com/v1")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer stolen\nX-Custom: 1\nAccept: text/html")
        session = FakeSession(FakeResponse())
        await client(session).open(REQUEST, "d", "request-1")
        assert session.requests == plain.requests

    @pytest.mark.parametrize("header", ["api-key", "Ocp-Apim-Subscription-Key"])
    async def test_a_key_in_a_header_of_the_gateways(self, header: str) -> None:
        session = FakeSession(FakeResponse(), error_response(401, {"message": "no"}))
        service = ModelServiceClient(ENDPOINT, "the-key", session, key_header=header)  # type: ignore[arg-type]
        await service.open(REQUEST, "d", "request-1")
        headers = {name.lower(): value for name, value in session.requests[0].headers}
        assert headers[header.lower()] == "the-key"
        assert "authorization" not in headers
        refused = await service.open(REQUEST, "d", "request-1")
        assert isinstance(refused, Refusal)
        assert f"the header {header}." in refused.problem.detail
        assert refused.reason.endswith(f"; the key was sent in the header {header}")

    async def test_a_refused_key_is_named_by_its_header(self) -> None:
        refused = await refusal(FakeSession(error_response(401, {"message": "no", "code": "x"})))
        assert refused.problem == UPSTREAM_AUTH.with_detail(
            "The model service refuses the key, which this app sent in the header Authorization. GET /ready says more."
        )
        assert refused.reason == "the model service answered 401, code x; the key was sent in the header Authorization"

    async def test_of_a_token_and_of_no_key_nothing_is_named(self) -> None:
        async def token() -> str:
            return "a-token"

        for credential in (token, "none"):
            session = FakeSession(error_response(401, {"message": "no", "code": "x"}))
            refused = await refusal(session, credential=credential)
            assert refused.problem == UPSTREAM_AUTH
            assert refused.reason == "the model service answered 401, code x"

    async def test_another_refusal_names_no_header(self) -> None:
        refused = await refusal(FakeSession(error_response(500, {"message": "no", "code": "x"})))
        assert refused.reason == "the model service answered 500, code x"

    async def test_no_cookie_is_sent_back(self) -> None:
        session = FakeSession(FakeResponse(headers={"Set-Cookie": "name=value; Path=/; Secure"}), FakeResponse())
        service = client(session)
        for _ in range(2):
            await service.open(REQUEST, "deployment-1", "request-1")
        assert "cookie" not in dict(session.requests[1].headers)


class TestAnswer:
    async def test_it_is_read_from_the_response_itself(self) -> None:
        response = FakeResponse(content=b"data: [DONE]\n\n")
        answer = await client(FakeSession(response)).open(REQUEST, "deployment-1", "request-1")
        assert not isinstance(answer, Refusal)
        assert answer.media_type == "text/event-stream"
        assert response.state == "open"
        assert await answer.read() == b"data: [DONE]\n\n"
        await answer.end()
        assert response.state == "released"

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_no_redirect_is_followed(self, status: int) -> None:
        response = FakeResponse(status, {"Location": "https://other.example.com/"}, content=b"")
        session = FakeSession(response, FakeResponse())
        refused = await refusal(session)
        assert refused.remedy is not None
        assert refused.remedy.startswith("The address redirects elsewhere, and the app follows no redirect")
        reason = f"the model service answered {status}, code none: a redirect, which is not followed"
        assert refused == Refusal(UPSTREAM_ERROR, reason, None, status, remedy=refused.remedy)
        assert len(session.requests) == 1
        assert response.state == "closed"


class TestRefusal:
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
    async def test_no_request_is_repeated(self, status: int) -> None:
        session = FakeSession(error_response(status, {"code": "a_code"}), FakeResponse())
        refused = await refusal(session)
        assert refused == classify({"code": "a_code"}, status=status)
        assert len(session.requests) == 1

    async def test_its_body_and_headers_are_read(self) -> None:
        response = error_response(429, {"code": "429"}, {"Retry-After": "7"})
        refused = await refusal(FakeSession(response))
        assert refused == Refusal(
            RATE_LIMITED.with_retry_after(7), "the model service answered 429, code 429", 7.0, 429
        )
        assert response.state == "closed"

    async def test_the_callers_field_is_named(self) -> None:
        error = {"code": "a_code", "param": "messages", "message": "Too long."}
        refused = await refusal(FakeSession(error_response(400, error)))
        assert refused.problem == INVALID_REQUEST.with_detail("The model refused the request.").with_errors(
            FieldError("input", "is not accepted by this model; leave it out or change it")
        ).with_upstream_error({"param": "messages", "code": "a_code", "message": "Too long."})

    async def test_no_connection_in_time(self) -> None:
        refused = await refusal(FakeSession(aiohttp.ConnectionTimeoutError()))
        assert refused == Refusal(UPSTREAM_TIMEOUT, "no connection in time")

    async def test_no_connection(self) -> None:
        refused = await refusal(FakeSession(aiohttp.ServerDisconnectedError("SECRET")))
        reason = "the model service closed the connection without an answer (ServerDisconnectedError)"
        assert refused == Refusal(UPSTREAM_ERROR, reason)

    async def test_another_status_without_a_body_is_no_redirect(self) -> None:
        refused = await refusal(FakeSession(FakeResponse(304, content=b"")))
        assert refused == Refusal(UPSTREAM_ERROR, "the model service answered 304, code none", None, 304)

    async def test_a_content_coding_that_was_not_asked_for(self) -> None:
        response = FakeResponse(headers={"Content-Encoding": "br"})
        refused = await refusal(FakeSession(response))
        assert refused.remedy is not None
        assert "turn compression off there" in refused.remedy
        reason = "the model service answered with Content-Encoding br though identity was asked for"
        assert refused == Refusal(UPSTREAM_ERROR, reason, remedy=refused.remedy)
        assert response.state == "closed"

    async def test_no_token(self) -> None:
        async def token() -> str:
            raise SignInError("no token, and why")

        session = FakeSession()
        assert await refusal(session, credential=token) == Refusal(UPSTREAM_AUTH, "no token, and why")
        assert session.requests == []

    @pytest.mark.parametrize(
        "error",
        [
            UnicodeDecodeError("utf-8", b"SECRET", 0, 1, "SECRET"),
            LookupError("SECRET"),
            RecursionError("SECRET"),
            ValueError("SECRET"),
            openai.OpenAIError("SECRET"),
            openai.APIResponseValidationError(
                httpx2.Response(200, request=httpx2.Request("GET", "http://h")), "SECRET"
            ),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_whatever_the_libraries_raise(self, error: Exception) -> None:
        class Unreadable(FakeSession):
            async def request(self, *_: object, **__: object) -> Any:
                raise error

        reason = f"its answer can't be read ({type(error).__name__})"
        assert await refusal(Unreadable()) == Refusal(UPSTREAM_ERROR, reason)

    async def test_a_connection_error_of_another_origin(self) -> None:
        class Broken(FakeSession):
            async def request(self, *_: object, **__: object) -> Any:
                raise httpx2.ReadError("SECRET")

        assert await refusal(Broken()) == Refusal(UPSTREAM_ERROR, "no connection to the model service")

    async def test_a_cancellation_is_no_refusal(self) -> None:
        class Hanging(FakeSession):
            async def request(self, *_: object, **__: object) -> Any:
                await asyncio.get_running_loop().create_future()

        opening = asyncio.create_task(client(Hanging()).open(REQUEST, "deployment-1", "request-1"))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


class TestKeptConnections:
    """A kept connection that the server had closed: the request is sent once more, and counted."""

    async def test_the_request_is_sent_again(self) -> None:
        session = FakeSession(aiohttp.ServerDisconnectedError(), FakeResponse(), reused=(True, False))
        repeats: list[int] = []
        answer = await client(session).open(
            REQUEST, "deployment-1", "request-1", lambda: repeats.append(len(session.requests))
        )
        assert not isinstance(answer, Refusal)
        first, second = session.requests
        assert (first.data, first.url, dict(first.headers)) == (second.data, second.url, dict(second.headers))
        assert repeats == [1]

    @pytest.mark.parametrize("reused", [(True, True), (True, False)], ids=["kept", "new"])
    async def test_but_only_once(self, reused: tuple[bool, ...]) -> None:
        session = FakeSession(*[aiohttp.ServerDisconnectedError() for _ in range(3)], reused=reused)
        refused = await refusal(session)
        assert refused.problem == UPSTREAM_ERROR
        assert len(session.requests) == 2

    async def test_and_on_no_other_error(self) -> None:
        session = FakeSession(aiohttp.ClientPayloadError(), reused=(True,))
        assert (await refusal(session)).problem == UPSTREAM_ERROR
        assert len(session.requests) == 1

    async def test_each_request_has_a_repeat_of_its_own(self) -> None:
        session = FakeSession(
            aiohttp.ServerDisconnectedError(),
            FakeResponse(),
            aiohttp.ServerDisconnectedError(),
            FakeResponse(),
            reused=(True, True, True, True),
        )
        service = client(session)
        for _ in range(2):
            assert not isinstance(await service.open(REQUEST, "deployment-1", "request-1"), Refusal)


JWT = "eyJhbGciOi-_J9.eyJhdWQiOi-_J9.c2lnbmF0dXJl-_"


class TestSecrets:
    async def cleaned(self, error: Any, **arguments: Any) -> dict[str, Any] | None:
        refused = await refusal(FakeSession(error_response(400, error)), **arguments)
        return refused.problem.upstream_error

    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("at gateway.example.com:8443", "at […]"),
            ("at gateway.example.com:9000", "at […]:9000"),
            ("at https://GATEWAY.example.com/team", "at https://[…]/team"),
            ("the key the-key.", "the key […]."),
            ("The-Key", "[…]"),
            ("x-the-key, (the-key)", "x-[…], ([…])"),
            ("xthe-key the-keys", "xthe-key the-keys"),
            ("mygateway.example.com gateway.example.com2", "mygateway.example.com gateway.example.com2"),
            ("gatewayXexample.com", "gatewayXexample.com"),
            ("gateway", "gateway"),
            (f"the token {JWT}, again {JWT}", "the token […], again […]"),
            ("eyJhbGciOi.eyJhdWQiOi.", "[…]"),
            ("eyJ", "eyJ"),
            ("half \ud83c a pair", "half ? a pair"),
            ("none", "none"),
        ],
    )
    async def test_they_are_removed_from_the_message(self, text: str, clean: str) -> None:
        assert await self.cleaned({"message": text}) == {"message": clean}

    @pytest.mark.parametrize(
        ("endpoint", "text", "clean"),
        [
            ("https://account.openai.azure.com/openai/v1/", "ACCOUNT, account.openai.azure.com", "[…], […]"),
            ("https://account.services.ai.azure.com/openai/v1/", "account accounts", "[…] accounts"),
            ("https://account.example.com/v1/", "account", "account"),
            ("https://127.0.0.1:7072/v1/", "127.0.0.1:7072 127.0.0.1 127", "[…] […] 127"),
        ],
    )
    async def test_the_name_of_an_azure_account_is_one(self, endpoint: str, text: str, clean: str) -> None:
        assert await self.cleaned({"message": text}, endpoint=endpoint) == {"message": clean}

    async def test_without_a_key_nothing_else_is(self) -> None:
        async def token() -> str:
            return "token-1"

        message = {"message": "the-key None none. (  ) "}
        assert await self.cleaned(message, credential=token) == message
        assert await self.cleaned(message, credential=NO_KEY) == message

    async def test_an_empty_message_is_left_out(self) -> None:
        assert await self.cleaned({"message": ""}) == {}

    async def test_an_answer_that_has_begun_removes_them_too(self) -> None:
        answer = await client(FakeSession(FakeResponse())).open(REQUEST, "deployment-1", "request-1")
        assert not isinstance(answer, Refusal)
        problem = INVALID_REQUEST.with_upstream_error({"message": "the-key"})
        assert answer.redact(problem) == INVALID_REQUEST.with_upstream_error({"message": "[…]"})
        assert answer.redact(UPSTREAM_ERROR) is UPSTREAM_ERROR

    async def test_only_identifiers_are_kept_beside_the_message(self) -> None:
        error = {
            "message": 7,
            "type": "two words",
            "param": "messages[0].content-x",
            "code": 400,
            "innererror": {"a": 1},
            "status": "x",
        }
        assert await self.cleaned(error) == {"param": "messages[0].content-x"}
        assert await self.cleaned({"type": None, "param": "x" * 65, "code": "x" * 64}) == {"code": "x" * 64}
        assert await self.cleaned({"type": "the-key", "param": "", "code": "\u00fc"}) == {"type": "[…]"}
        assert await self.cleaned({}) == {}

    async def test_other_problems_hold_no_upstream_error(self) -> None:
        refused = await refusal(FakeSession(error_response(500, {"message": "the-key"})))
        assert refused.problem == UPSTREAM_ERROR

    async def test_the_rest_of_the_refusal_is_kept(self) -> None:
        refused = await refusal(FakeSession(error_response(422, {"code": "a_code"})))
        assert (refused.status, refused.reason) == (422, "the model service answered 422, code a_code")
        assert refused.problem.detail == "The model refused the request."


# With sockets


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as service:
        yield service


@contextlib.asynccontextmanager
async def connected(url: str, **more: str) -> AsyncIterator[Callable[[], Awaitable[Answer | Refusal]]]:
    """Opens answers of the model service at an address."""
    environ = {"AZURE_OPENAI_ENDPOINT": url, "AZURE_OPENAI_DEPLOYMENTS": "some", **more}
    pool = BackendPool(Settings.read(environ))
    await pool.connect()

    async def ask() -> Answer | Refusal:
        failover = pool.failover(None)
        assert isinstance(failover, Failover)
        backend = failover.next()
        assert backend is not None
        try:
            parameters = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            return await backend.open(UpstreamRequest("/chat/completions", parameters, stream=True), "request-1")
        finally:
            failover.release()

    try:
        yield ask
    finally:
        await pool.close()


async def content_of(answer: Answer | Refusal) -> bytes:
    assert not isinstance(answer, Refusal), answer
    content = b""
    while chunk := await answer.read():
        content += chunk
    return content


async def test_the_bytes_of_an_answer(service: ModelService) -> None:
    async with connected(service.url) as ask:
        answer = await ask()
        content = await content_of(answer)
        assert content.endswith(b"data: [DONE]\n\n")
        assert not isinstance(answer, Refusal)
        assert answer.media_type == "text/event-stream"
        await answer.end()
    (record,) = service.requests
    assert record.body == {"messages": [{"role": "user", "content": "x"}], "stream": True, "model": "some"}
    assert record.headers["x-ms-client-request-id"] == "request-1"
    assert record.headers["x-stainless-retry-count"] == "0"


async def test_what_arrived_before_the_connection_broke_can_be_read(service: ModelService) -> None:
    service.answer(["one", "two", "three"])
    service.faults["*"] = "cut-midway-2"
    async with connected(service.url) as ask:
        answer: Any = await ask()
        assert not isinstance(answer, Refusal)
        async with asyncio.timeout(5):  # until the text and the end of the connection have both arrived
            while answer._response.content.exception() is None:
                await asyncio.sleep(0.005)
        content = b""
        try:
            while chunk := await answer.read():
                content += chunk
        except answer.connection_errors:
            content += answer.read_remaining()
        else:
            pytest.fail("the cut was taken for the end")
        assert b"one" in content
        assert b"two" in content
        answer.close()


async def test_closing_an_answer_ends_the_model_services_work(service: ModelService) -> None:
    service.faults["*"] = "stall-midway"
    async with connected(service.url) as ask:
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
        async with connected(f"http://127.0.0.1:{port}/v1") as ask:
            for _ in range(3):
                answer = await ask()
                assert not isinstance(answer, Refusal)
                assert await answer.read() == b"data: [DONE]\n\n"
                await answer.end()
    assert connections == 1


async def test_a_kept_connection_that_the_server_closes_is_no_failure() -> None:
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        # One answer, then the connection is closed when the next request arrives.
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
        async with connected(f"http://127.0.0.1:{port}/v1") as ask:
            for _ in range(3):
                answer = await ask()
                assert not isinstance(answer, Refusal), answer
                await answer.end()
    assert served == 3


class FixedServer:
    """A server that answers every request with the same bytes, and then closes the connection or keeps it open."""

    def __init__(self, answer: bytes, *, keeps_open: bool = False) -> None:
        self.answer = answer
        self.keeps_open = keeps_open

    async def __aenter__(self) -> str:
        self.ended = asyncio.Event()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        if self.keeps_open:
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
async def test_malformed_answers_are_refusals(answer: bytes, code: str) -> None:
    async with FixedServer(answer) as url, connected(url) as ask:
        refused = await asyncio.wait_for(ask(), 5)
        assert isinstance(refused, Refusal), refused
        assert refused.problem.code == code
        assert refused.problem.openai_document("x")
        assert "example.com" not in refused.problem.document("x").decode()


async def test_an_endless_error_is_not_read_to_its_end() -> None:
    answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 200_000
    async with FixedServer(answer, keeps_open=True) as url, connected(url) as ask:
        refused = await asyncio.wait_for(ask(), 5)
        assert isinstance(refused, Refusal)
        assert refused.problem.code == "upstream_error"


async def test_a_server_that_does_not_listen() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with connected(f"http://127.0.0.1:{unused.getsockname()[1]}/v1") as ask:
            refused = await ask()
    assert isinstance(refused, Refusal)
    assert (refused.problem.code, refused.retryable) == ("upstream_error", True)


@pytest.mark.parametrize(
    ("fault", "seconds", "shown"),
    [
        ("429-0", 0, 0),
        ("429-7", 7, 7),
        ("429-ms-1500", 1.5, 2),
        ("429-x-ms-400", 0.4, 1),
        ("429-absurd", MAX_RETRY_AFTER, MAX_RETRY_AFTER),
        ("429-garbled", None, None),
        ("429-none", None, None),
        ("503-after-3", 3, 3),
        ("503", None, None),
    ],
)
async def test_retry_after(service: ModelService, fault: str, seconds: float | None, shown: int | None) -> None:
    service.faults["*"] = fault
    async with connected(service.url) as ask:
        refused = await ask()
    assert isinstance(refused, Refusal)
    assert (refused.retry_after, refused.problem.retry_after) == (seconds, shown)
    assert refused.retryable


@pytest.mark.parametrize("fault", ["400", "context-length", "content-filter", "404"])
async def test_what_no_other_backend_makes_good(service: ModelService, fault: str) -> None:
    service.faults["*"] = fault
    async with connected(service.url) as ask:
        refused = await ask()
    assert isinstance(refused, Refusal)
    assert not refused.retryable


async def test_requests_while_the_token_is_renewed(service: ModelService, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = SimpleNamespace(ahead=0.0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock.ahead)
    monkeypatch.setenv("IDENTITY_ENDPOINT", service.identity_url)
    monkeypatch.setenv("IDENTITY_HEADER", service.identity.header)
    service.identity.lifetime = 3600
    service.require_issued_token = True
    more: dict[str, Any] = {"IDENTITY_ENDPOINT": service.identity_url, "AZURE_OPENAI_TOKEN_SCOPE": AZURE_TOKEN_SCOPE}
    async with connected(service.url, **more) as ask:
        for clock.ahead in (0, 1800, 3400, 3590, 7000, 9000, 20_000):
            answer = await ask()
            assert (await content_of(answer)).endswith(b"data: [DONE]\n\n")
            assert not isinstance(answer, Refusal)
            await answer.end()
    assert {record.auth for record in service.requests} == {"token"}
