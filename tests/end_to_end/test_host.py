"""The host with a sample app: what it forwards, what it rejects, and how the end of each connection ends the other."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from local.functions_host.settings import Limits
from local.functions_host.worker_connection import WorkerConnection
from tests.end_to_end.hosting import ROOT, SAMPLE_APP, HostedApp, bare_environment, eventually, own_host

KEY = "the-key-of-this-test"
CHUNKED = "Transfer-Encoding: chunked"
NO_DATA_SECONDS = 0.2  # in which nothing may come; a slow machine lets it pass all the easier


@pytest.fixture
async def sample(sample_app: HostedApp) -> AsyncIterator[httpx.AsyncClient]:
    async with sample_app.client() as client:
        yield client


@pytest.fixture(scope="module")
def locked_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    return functions_app(script_root=SAMPLE_APP, key=KEY)


@contextlib.asynccontextmanager
async def raw(app: HostedApp, request: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*app.address)
    try:
        writer.write(request)
        yield reader, writer
    finally:
        writer.close()


async def happened(app: HostedApp, name: str) -> float | None:
    """The value of an event in the app; None: it has not happened yet."""
    async with raw(app, b"GET /events HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n") as (reader, _):
        response = await asyncio.wait_for(reader.read(), 5)
    value = json.loads(response.partition(b"\r\n\r\n")[2]).get(name)
    return None if value is None else float(value)


async def assert_happens(app: HostedApp, name: str) -> None:
    """The event happens in the app, long before an open stream or a waiting function would end by itself."""
    assert await eventually(lambda: happened(app, name))


async def assert_open(app: HostedApp, count: int) -> None:
    """So many invocations are open, and stay open; a busy host may need a moment to begin or end one."""

    async def is_open() -> bool:
        return await app.open_invocations() == count

    await eventually(is_open)
    await asyncio.sleep(NO_DATA_SECONDS)
    assert await is_open()


async def assert_no_data(reader: asyncio.StreamReader) -> None:
    """Nothing was sent to this caller, and its connection is open."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), NO_DATA_SECONDS)


async def response_to(app: HostedApp, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the response to a request after which the host closes the connection."""
    async with raw(app, request) as (reader, _):
        head, _, body = (await asyncio.wait_for(reader.read(), 15)).partition(b"\r\n\r\n")
    return head, body


def is_bare(response: tuple[bytes, bytes], status: int) -> bool:
    """Whether it has this status and no body."""
    head, body = response
    return head.startswith(b"HTTP/1.1 %d " % status) and b"Content-Length: 0" in head and body == b""


async def count_until_stalled(app: HostedApp, name: str) -> float:
    """How many events the app has sent once it sends no more, since the caller reads none."""
    before: float | None = None
    while True:
        count = await happened(app, name)
        if count is not None and count == before:
            return count
        before = count
        await asyncio.sleep(0.3)


class TestForwarding:
    @own_host("it may serve GET and POST only where a route lists no methods")
    async def test_the_request_arrives_unchanged(self, sample: httpx.AsyncClient) -> None:
        response = await sample.request("PATCH", "/echo?a=%C3%A9&b=1&b=2", content=b"body", headers={"X-Own": "a, b"})
        received = response.json()
        assert (received["method"], received["path"], received["query"]) == ("PATCH", "/echo", "a=%C3%A9&b=1&b=2")
        assert received["sha256"] == hashlib.sha256(b"body").hexdigest()
        headers = dict(received["headers"])
        assert headers["x-own"] == "a, b"
        assert headers["x-forwarded-host"] == sample.base_url.netloc.decode()
        assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "http")

    async def test_the_response_arrives_unchanged_except_for_hop_by_hop_headers(
        self, sample: httpx.AsyncClient
    ) -> None:
        response = await sample.get("/echo")
        assert response.status_code == 200
        assert response.headers["x-sample"] == "yes"
        assert response.headers["x-hop"] == "not for the caller", "Connection names it, which the proxy doesn't read"
        assert "connection" not in response.headers
        assert response.headers["server"] == "uvicorn"
        assert len(response.headers.get_list("date")) == 1

    async def test_hop_by_hop_headers_of_the_caller_are_not_forwarded(self, sample: httpx.AsyncClient) -> None:
        headers = {"Connection": "keep-alive, x-private", "X-Private": "1", "TE": "trailers", "Keep-Alive": "timeout=5"}
        headers |= {"Proxy-Authorization": "Basic x", "Forwarded": "for=1.2.3.4", "X-Forwarded-For": "1.2.3.4"}
        received = dict((await sample.get("/echo", headers=headers)).json()["headers"])
        assert not {"connection", "te", "keep-alive", "proxy-authorization", "forwarded"} & set(received)
        assert (received["x-private"], received["x-forwarded-for"]) == ("1", "127.0.0.1")

    async def test_a_header_is_one_line_for_the_worker(self, sample: httpx.AsyncClient) -> None:
        headers = [("Cookie", "a=1"), ("Cookie", "b=2"), ("X-A", "1"), ("X-A", "2")]
        received = (await sample.get("/echo", headers=headers)).json()["headers"]
        assert [value for name, value in received if name in ("cookie", "x-a")] == ["a=1; b=2", "1, 2"]

    @pytest.mark.parametrize(
        ("target", "path", "query"),
        [
            ('/echo?a="b"<c>{d}|\\^`', "/echo", "a=%22b%22%3Cc%3E%7Bd%7D%7C%5C%5E%60"),
            ("/echo?a#b", "/echo", "a%23b"),
            ("/echo?\x01\x7f", "/echo", "%01%7F"),
            ("/x/%2e%2E/./echo/?%2F", "/echo/", "%2F"),
            ("/x/../../ec%68o", "/echo", ""),
        ],
    )
    async def test_a_target_is_normalized_for_the_worker(
        self, sample_app: HostedApp, target: str, path: str, query: str
    ) -> None:
        request = f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
        received = json.loads((await response_to(sample_app, request))[1])
        assert (received["path"], received["query"]) == (path, query)

    @own_host("it may keep the caller's, as hosts of 2024 did")
    async def test_an_invocation_id_from_the_caller_is_replaced(self, sample: httpx.AsyncClient) -> None:
        forged = str(uuid.uuid4())
        response = await sample.get("/echo", headers=[("X-MS-Invocation-Id", forged), ("x-ms-invocation-id", "b")])
        ids = [value for name, value in response.json()["headers"] if name == "x-ms-invocation-id"]
        assert len(ids) == 1
        assert str(uuid.UUID(ids[0])) != forged

    @pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
    async def test_bodies_of_any_size_are_forwarded_both_ways(self, sample: httpx.AsyncClient, size: int) -> None:
        body = os.urandom(size)
        assert (await sample.post("/back", content=body)).content == body

    async def test_a_chunked_body_is_forwarded_both_ways(self, sample: httpx.AsyncClient) -> None:
        pieces = [os.urandom(size) for size in (1, 70_000, 3, 1_000_000)]

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        assert (await sample.post("/back", content=body())).content == b"".join(pieces)

    async def test_a_compressed_body_is_forwarded_unchanged(self, sample: httpx.AsyncClient) -> None:
        body = b"not really compressed"
        response = await sample.post("/back", content=body, headers={"Content-Encoding": "gzip"})
        assert response.content == body

    async def test_expect_100_continue_is_answered(self, sample_app: HostedApp) -> None:
        head = (
            b"POST /back HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        async with raw(sample_app, head) as (reader, writer):
            assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hello")
            rest = await asyncio.wait_for(reader.read(), 5)
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
        assert rest.endswith(b"\r\n\r\nhello")

    @own_host("it may serve GET and POST only where a route lists no methods")
    async def test_head_has_the_length_and_no_body(self, sample_app: HostedApp) -> None:
        request = b"HEAD /echo HTTP/1.1\r\nHost: h\r\n\r\n" * 2
        async with raw(sample_app, request) as (reader, _):
            for _ in range(2):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert re.search(rb"content-length: [1-9]", head, re.IGNORECASE)

    async def test_an_http_1_0_connection_is_kept_on_request(self, sample_app: HostedApp) -> None:
        request = b"GET /things/special HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n" * 2
        async with raw(sample_app, request) as (reader, _):
            for _ in range(2):
                response = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nspecial"), 5)
                assert b"Connection: keep-alive\r\n" in response

    async def test_an_http_1_0_response_is_not_chunked_and_ends_with_the_connection(
        self, sample_app: HostedApp
    ) -> None:
        async with raw(sample_app, b"GET /stream?count=2 HTTP/1.0\r\nHost: h\r\n\r\n") as (reader, _):
            response = await asyncio.wait_for(reader.read(), 5)
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"transfer-encoding" not in head.lower()
        assert body == b"data: 0\n\ndata: 1\n\n"

    async def test_connection_close_is_respected(self, sample_app: HostedApp) -> None:
        request = b"GET /stream?count=2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        async with raw(sample_app, request) as (reader, _):
            response = await asyncio.wait_for(reader.read(), 5)
        assert b"connection: close" in response.lower()
        assert response.endswith(b"0\r\n\r\n")

    async def test_no_content_has_no_content_type(self, sample: httpx.AsyncClient) -> None:
        response = await sample.delete("/empty")
        assert response.status_code == 204
        assert "content-type" not in response.headers

    async def test_one_connection_serves_many_requests(self, sample_app: HostedApp) -> None:
        async with raw(sample_app, b"") as (reader, writer):
            for _ in range(20):
                writer.write(b"GET /things/special HTTP/1.1\r\nHost: h\r\n\r\n")
                assert (await asyncio.wait_for(reader.readuntil(b"special\r\n\r\n"[:7]), 5)).endswith(b"special")


class TestStreams:
    async def test_events_arrive_one_by_one(self, sample: httpx.AsyncClient) -> None:
        name = uuid.uuid4().hex
        received = []
        await sample.post(f"/release?name={name}")  # the response's head comes with the first event
        async with sample.stream("GET", f"/stream?count=4&gated=1&name={name}") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert "content-length" not in response.headers
            async for event in response.aiter_raw():
                received.append(event)
                # Each event arrives before the next one may be sent.
                await sample.post(f"/release?name={name}")
        assert received == [b"data: %d\n\n" % number for number in range(4)]

    async def test_a_slow_caller_slows_the_worker_down(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        request = f"GET /stream?count=2000&size=65536&name={name} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        async with raw(sample_app, request) as (reader, _):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            sent = await count_until_stalled(sample_app, f"{name} sent")
            assert sent < 400, "128 MB were buffered somewhere"

    async def test_two_hundred_streams_at_once(self, sample_app: HostedApp) -> None:
        async def one(client: httpx.AsyncClient) -> bytes:
            return (await client.get("/stream?count=10&pause=0.05")).content

        limits = httpx.Limits(max_connections=None)
        async with sample_app.client(limits=limits) as client:
            responses = await asyncio.gather(*(one(client) for _ in range(200)))
        expected = b"".join(b"data: %d\n\n" % number for number in range(10))
        assert responses == [expected] * 200


class TestDisconnects:
    async def test_a_caller_that_disconnects_midway_cancels_the_generator(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        async with (
            sample_app.client() as client,
            client.stream("GET", f"/stream?count=600&pause=0.1&name={name}") as response,
        ):
            await anext(response.aiter_raw())
        await assert_happens(sample_app, f"{name} cancelled")

    async def test_a_caller_that_disconnects_before_a_response_is_noticed_by_the_function(
        self, sample_app: HostedApp
    ) -> None:
        name = uuid.uuid4().hex
        async with raw(sample_app, f"GET /silent?name={name} HTTP/1.1\r\nHost: h\r\n\r\n".encode()):
            await assert_happens(sample_app, f"{name} waiting")
            assert await happened(sample_app, f"{name} disconnected") is None
        await assert_happens(sample_app, f"{name} disconnected")

    async def test_a_caller_that_disconnects_while_it_sends_chunks_is_noticed_by_the_function(
        self, sample_app: HostedApp
    ) -> None:
        name = uuid.uuid4().hex
        request = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\n{CHUNKED}\r\n\r\n5\r\nhello\r\n".encode()
        async with raw(sample_app, request):
            await assert_happens(sample_app, f"{name} started")
            assert await happened(sample_app, f"{name} disconnected") is None
        await assert_happens(sample_app, f"{name} disconnected")

    async def test_a_slow_caller_that_disconnects_cancels_the_generator(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        request = f"GET /stream?count=2000&size=65536&name={name} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        async with raw(sample_app, request):
            await count_until_stalled(sample_app, f"{name} sent")  # all buffers are full
        await assert_happens(sample_app, f"{name} cancelled")

    @pytest.mark.parametrize("version", ["1.1", "1.0"])
    @pytest.mark.parametrize("length", ["", "&length=45"])
    async def test_a_broken_response_is_a_reset(self, sample_app: HostedApp, version: str, length: str) -> None:
        name = uuid.uuid4().hex
        request = f"GET /stream?count=5&break=2&gated=1&name={name}{length} HTTP/{version}\r\nHost: h\r\n\r\n"
        async with raw(sample_app, request.encode()) as (reader, _), sample_app.client() as client:
            await client.post(f"/release?name={name}")
            await asyncio.wait_for(reader.readuntil(b"data: 0\n\n"), 5)
            await client.post(f"/release?name={name}")
            with pytest.raises(ConnectionResetError):  # the second event may be lost by it
                await asyncio.wait_for(reader.read(), 5)

    async def test_a_response_before_the_body_was_read_arrives(self, sample: httpx.AsyncClient) -> None:
        for _ in range(3):
            response = await sample.post("/early", content=b"x" * 3_000_000)
            assert (response.status_code, response.text) == (413, "too much")

    @own_host("it may close the connection afterwards")
    async def test_a_function_that_raises_is_a_500_without_details(self, sample: httpx.AsyncClient) -> None:
        for _ in range(20):  # and the next request gets its own response
            response = await sample.get("/raises")
            assert (response.status_code, response.text) == (500, "Internal Server Error")

    async def test_a_function_that_returns_nothing_is_a_500(self, sample: httpx.AsyncClient) -> None:
        assert (await sample.get("/nothing")).status_code == 500


@pytest.fixture(scope="module")
def strict_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    """The sample app on a host with low limits, whose invocations may wait for ever."""
    limits = {
        "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT": "1000",
        "LOCAL_HOST_UPLOAD_SECONDS": "0.3",
        "LOCAL_HOST_ACTIVITY_SECONDS": "1.5",
        "HOST_ACTIVITY": "1.5",
    }
    return functions_app(script_root=SAMPLE_APP, env=limits)


@pytest.fixture(scope="module")
def bounded_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    """The sample app, which ends invocations whose HTTP request does not arrive."""
    return functions_app(script_root=SAMPLE_APP, env={"SAMPLE_BOUND_THE_WAITS": "1"})


class TestTheTwoHalves:
    @own_host("the host must be one process that can be stopped")
    async def test_the_invocation_of_a_caller_who_is_gone_reaches_the_worker_alone(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        before = await strict_app.open_invocations()
        strict_app.process.send_signal(signal.SIGSTOP)
        try:
            with socket.create_connection(strict_app.address) as caller:
                caller.sendall(f"GET /silent?name={name} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        finally:
            strict_app.process.send_signal(signal.SIGCONT)
        await eventually(lambda: "Executing 'Functions.silent'" in strict_app.output)
        assert await happened(strict_app, f"{name} waiting") is None, "the function was called"
        await assert_open(strict_app, before + 1)

    async def test_a_header_that_the_proxy_refuses_leaves_the_invocation_alone(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        before = await strict_app.open_invocations()
        request = f"GET /silent?name={name} HTTP/1.1\r\nHost: h\r\nX-Own: ö\r\n\r\n".encode()
        async with raw(strict_app, request) as (reader, _):
            await assert_no_data(reader)
            await assert_open(strict_app, before + 1)
        assert await happened(strict_app, f"{name} waiting") is None, "the function was called"
        await assert_open(strict_app, before + 1)

    @own_host("whether a kept connection is used is its choice")
    async def test_the_response_without_a_request_comes_with_the_end_of_the_invocation(
        self, bounded_app: HostedApp
    ) -> None:
        assert (await response_to(bounded_app, b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"))[1]
        refused, dropped = await asyncio.gather(
            response_to(
                bounded_app, "GET /echo HTTP/1.1\r\nHost: h\r\nCookie: ö=1\r\nConnection: close\r\n\r\n".encode()
            ),
            response_to(
                bounded_app,
                b"POST /back HTTP/1.1\r\nHost: h\r\nX-Drop: 1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            ),
        )
        assert is_bare(refused, 500)
        assert is_bare(dropped, 502)
        await eventually(lambda: no_open_invocations(bounded_app))

    async def test_a_request_without_a_body_is_sent_again_when_a_kept_connection_was_closed(
        self, sample_app: HostedApp
    ) -> None:
        close = b"Connection: close\r\n\r\n"
        before = await happened(sample_app, "dropped") or 0
        response = await response_to(sample_app, b"GET /things/special HTTP/1.1\r\nHost: h\r\nX-Drop: 1\r\n" + close)
        assert response[1] == b"special"
        assert await happened(sample_app, "dropped") == before + 1

    @own_host("whether a kept connection is used is its choice")
    async def test_a_request_with_a_body_is_not_sent_again(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        before = await strict_app.open_invocations()
        dropped = await happened(strict_app, "dropped") or 0
        request = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\nX-Drop: 1\r\nContent-Length: 1\r\n\r\nx".encode()
        async with raw(strict_app, request) as (reader, _):
            await eventually(lambda: happened(strict_app, "dropped"))
            await assert_no_data(reader)
        assert await happened(strict_app, "dropped") == dropped + 1
        assert await happened(strict_app, f"{name} started") is None
        await assert_open(strict_app, before + 1)

    @pytest.mark.parametrize("character", [b"\x01", b"\x1b", b"\x7f"])
    async def test_a_control_character_is_refused_by_the_worker_itself(
        self, strict_app: HostedApp, character: bytes
    ) -> None:
        before = await strict_app.open_invocations()
        request = b"GET /silent HTTP/1.1\r\nHost: h\r\nX-Own: a%bb\r\n\r\n" % character
        async with raw(strict_app, request) as (reader, _):
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 400")
            await asyncio.wait_for(reader.readuntil(b"Invalid HTTP request received."), 5)
            await assert_open(strict_app, before + 1)
        await assert_open(strict_app, before + 1)

    @pytest.mark.parametrize(
        ("request_head", "status"),
        [
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Own: \xf6", 400),  # Latin-1
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Own: a\0b", 400),
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Own: a\rb", 400),
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Own: a\r\n folded", 400),
            ("GET /echo?ö HTTP/1.1\r\nHost: h".encode(), 400),
            (b"GET /ech\xf6 HTTP/1.1\r\nHost: h", 400),
            (b"GET /echo%00 HTTP/1.1\r\nHost: h", 400),
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX Own: a", 400),
            ("GET /echo HTTP/1.1\r\nHost: h\r\nX-ö: a".encode(), 400),
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Own", 400),
            (b"GET /echo HTTP/1.1", 400),
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nHost: h", 400),
            (b"GET /echo HTTP/1.1\r\nHost: a b", 400),
            ("GET /echo HTTP/1.1\r\nHost: hö".encode(), 400),
            (b"GET http://other/echo HTTP/1.1\r\nHost: h", 400),
            (b"GET echo HTTP/1.1\r\nHost: h", 405),
            (b"hello", 400),
            (b"POST /echo HTTP/1.0\r\nHost: h", 400),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1", 400),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: -1", 400),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity", 400),
            (b"GET /echo HTTP/2.0\r\nHost: h", 505),
            (b"GET /echo?" + b"a" * 8200 + b" HTTP/1.1\r\nHost: h", 414),
            (b"GET /echo HTTP/1.1\r\nHost: h\r\nX-Own: " + b"a" * 33_000, 431),
            (b"GET /echo HTTP/1.1\r\nHost: h" + b"\r\nX: 1" * 100, 431),
            # The HTTP trigger's binding can't make a URI of these.
            (b"GET /echo HTTP/1.0", 500),
            (b"GET /echo HTTP/1.1\r\nHost:\r\nConnection: close", 500),
            (b"GET /echo HTTP/1.1\r\nHost: h:99999\r\nConnection: close", 500),
        ],
    )
    async def test_what_the_host_itself_refuses(self, strict_app: HostedApp, request_head: bytes, status: int) -> None:
        before = strict_app.output.count("Executing 'Functions.echo'")
        assert is_bare(await response_to(strict_app, request_head + b"\r\n\r\n"), status)
        assert strict_app.output.count("Executing 'Functions.echo'") == before

    @pytest.mark.parametrize(
        "request_",
        [
            b"GET /echo HTTP/1.1\nHost: h\nConnection: close\n\n",
            b"\r\nGET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            b"get /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            b"GET http://h/echo HTTP/1.1\r\nHost: h:80\r\nConnection: close\r\n\r\n",
            b"GET /echo HTTP/1.0\r\nHost: h\r\n\r\n",
            b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Own: a\tb" + b"\r\nX: 1" * 97 + b"\r\n\r\n",
            b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close, upgrade\r\nUpgrade: x\r\n"
            b"Content-Length: 2\r\n\r\n{}",
            b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: +2\r\n\r\n{}",
            b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 9\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n",
        ],
    )
    @pytest.mark.parametrize("split", [False, True], ids=["at once", "byte by byte"])
    async def test_what_the_host_accepts(self, sample_app: HostedApp, request_: bytes, *, split: bool) -> None:
        async with raw(sample_app, b"" if split else request_) as (reader, writer):
            for byte in request_ if split else b"":
                writer.write(bytes((byte,)))
                await asyncio.sleep(0)
            response = await asyncio.wait_for(reader.read(), 15)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert json.loads(response.partition(b"\r\n\r\n")[2])["size"] == (2 if b"{}" in request_ else 0)

    async def test_broken_chunks_are_a_500_and_a_disconnect_for_the_app(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        head = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\n{CHUNKED}\r\nConnection: close\r\n\r\n2\r\n{{}}\r\n"
        async with raw(sample_app, head.encode()) as (reader, writer):
            await assert_happens(sample_app, f"{name} started")
            writer.write(b"no size\r\n")
            assert (await asyncio.wait_for(reader.read(), 15)).startswith(b"HTTP/1.1 500 ")
        await assert_happens(sample_app, f"{name} disconnected")


async def members(sample: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The trigger metadata of a POST, without its headers and query."""
    metadata = (await sample.post("/metadata", **body)).json()
    return {name: value for name, value in metadata.items() if name not in ("Headers", "Query")}


class TestRequestBodies:
    async def test_a_body_of_known_length_is_read_before_the_function_is_called(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        head = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"
        async with raw(strict_app, head.encode() + b"x" * 999) as (reader, writer):
            assert await happened(strict_app, f"{name} started") is None
            writer.write(b"x")
            assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"x" * 1000)
        assert await happened(strict_app, f"{name} started") is not None

    @own_host("the printed lines")
    async def test_a_caller_that_disconnects_while_it_sends_one_is_unknown_to_the_app(
        self, sample_app: HostedApp
    ) -> None:
        before = sample_app.output.count("Executing 'Functions.back'")
        name = uuid.uuid4().hex
        head = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nhello".encode()
        async with raw(sample_app, head):
            assert await happened(sample_app, f"{name} started") is None
        await eventually(lambda: "could not be read: the caller disconnected" in sample_app.output)
        assert await happened(sample_app, f"{name} started") is None
        assert sample_app.output.count("Executing 'Functions.back'") == before

    @own_host("it may write nested JSON in another way")
    async def test_the_members_of_a_json_object_are_trigger_metadata(self, sample: httpx.AsyncClient) -> None:
        body = {"text": "höl", "number": 1.5, "truth": True, "list": [1], "object": {"a": [1, None]}, "none": None}
        assert await members(sample, json=body) == {
            "text": ["string", "höl"],
            "number": ["string", "1.5"],
            "truth": ["string", "True"],
            "object": ["json", {"a": [1, None]}],
        }

    async def test_headers_and_query_are_trigger_metadata(self, sample: httpx.AsyncClient) -> None:
        response = await sample.post("/metadata?q=1&q=%C3%B6&code=x", headers={"X-Own": "a"}, json={"a": 1})
        metadata = response.json()
        assert metadata["Headers"][1]["X-Own"] == "a"
        assert metadata["Query"][1]["code"] == "x"
        assert metadata["a"] == ["string", "1"]
        assert "code" not in metadata

    @pytest.mark.parametrize("body", [b"[1]", b"{", b"", b"1"])
    async def test_any_other_body_has_no_members(self, sample: httpx.AsyncClient, body: bytes) -> None:
        assert await members(sample, content=body) == {}

    async def test_a_chunked_body_has_no_metadata(self, sample: httpx.AsyncClient) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b'{"a": 1}'

        assert await members(sample, content=body()) == {}

    async def test_no_response_is_read_before_a_chunked_body_was_sent(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        request = f"POST /early?name={name} HTTP/1.1\r\nHost: h\r\n{CHUNKED}\r\n\r\n5\r\nhello\r\n".encode()
        async with raw(sample_app, request) as (reader, writer):
            await assert_happens(sample_app, f"{name} answered")
            await assert_no_data(reader)
            writer.write(b"0\r\n\r\n")
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")

    async def test_a_body_over_the_limit_is_refused_at_once(self, strict_app: HostedApp) -> None:
        head = b"POST /metadata HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000000\r\n\r\n"
        began = time.monotonic()
        assert is_bare(await response_to(strict_app, head), 500)
        assert time.monotonic() - began < 4, "the rest of the body was awaited"
        async with strict_app.client() as client:
            responses = [await client.post("/back", content=b"x" * size) for size in (1000, 1001)]
        assert [(it.status_code, len(it.content)) for it in responses] == [(200, 1000), (500, 0)]
        assert "Functions.metadata' (Reason" not in strict_app.output

    async def test_a_chunked_body_over_the_limit_is_cut_off(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex

        async def body() -> AsyncIterator[bytes]:
            for _ in range(2):
                yield b"x" * 600

        async with strict_app.client() as client:
            response = await client.post(f"/back?name={name}", content=body())
        assert (response.status_code, response.content) == (500, b"")
        await assert_happens(strict_app, f"{name} disconnected")

    @own_host("the time can't be set")
    async def test_a_slow_upload_is_a_500_and_unknown_to_the_app(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        head = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nhello".encode()
        async with raw(strict_app, head) as (reader, _):
            response = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert response.startswith(b"HTTP/1.1 500 ")
        assert await happened(strict_app, f"{name} started") is None

    async def test_a_slow_chunked_upload_is_cut_off(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        request = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\n{CHUNKED}\r\n\r\n5\r\nhello\r\n".encode()
        async with raw(strict_app, request) as (reader, _):
            response = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert response.startswith(b"HTTP/1.1 500 ")
        await assert_happens(strict_app, f"{name} disconnected")


class TestResponses:
    async def test_the_head_waits_for_the_first_byte(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        request = f"GET /stream?count=1&gated=1&name={name} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        async with raw(sample_app, request) as (reader, _), sample_app.client() as client:
            await assert_happens(sample_app, f"{name} called")
            await assert_no_data(reader)
            await client.post(f"/release?name={name}")
            assert (await asyncio.wait_for(reader.readuntil(b"data: 0\n\n"), 5)).startswith(b"HTTP/1.1 200 OK\r\n")

    async def test_a_failure_before_the_first_byte_is_a_bare_500(self, sample: httpx.AsyncClient) -> None:
        response = await sample.get("/stream?break=0")
        assert (response.status_code, response.content) == (500, b"")
        assert "content-type" not in response.headers

    async def test_a_response_without_a_byte_for_too_long_is_ended(self, strict_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        request = f"GET /stream?gated=1&name={name} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        async with raw(strict_app, request) as (reader, _), strict_app.client() as client:
            await client.post(f"/release?name={name}")
            await asyncio.wait_for(reader.readuntil(b"data: 0\n\n"), 5)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 10)
        await assert_happens(strict_app, f"{name} cancelled")
        assert (await response_to(strict_app, b"GET /silent HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"))[
            0
        ].startswith(b"HTTP/1.1 500 ")

    async def test_bytes_that_keep_coming_keep_a_response_open(self, strict_app: HostedApp) -> None:
        async with strict_app.client() as client:
            response = await client.get("/stream?count=12&pause=0.2")
        assert response.text.endswith("data: 11\n\n")

    async def test_head_is_served_where_the_route_lists_it(self, sample: httpx.AsyncClient) -> None:
        response = await sample.head("/things/special")
        assert (response.status_code, response.headers["content-length"]) == (200, "7")
        assert (await sample.head("/raises")).status_code == 404


@own_host("the printed lines")
class TestInvocations:
    async def test_their_lines_are_those_of_core_tools(self, sample_app: HostedApp, sample: httpx.AsyncClient) -> None:
        invocation = dict((await sample.get("/echo")).json()["headers"])["x-ms-invocation-id"]
        reason = "Reason='This function was programmatically called via the host APIs.'"
        assert f"Executing 'Functions.echo' ({reason}, Id={invocation})" in sample_app.output
        ended = re.compile(rf"Executed 'Functions\.echo' \(Succeeded, Id={invocation}, Duration=\d+ms\)")
        await eventually(lambda: ended.search(sample_app.output))

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("raises", r"Exception while executing function: Functions\.raises \(Id=[^)]+\): .*raised on demand"),
            ("stream?break=1", r"could not be proxied \(Id=[^)]+\): the worker broke the response off\."),
        ],
    )
    async def test_a_failure_of_function_or_response_is_reported(
        self, sample_app: HostedApp, sample: httpx.AsyncClient, path: str, reason: str
    ) -> None:
        function = path.partition("?")[0]
        line = re.compile(rf"Executed 'Functions\.{function}' \(Failed, Id=")
        before, reasons = (len(re.findall(text, sample_app.output)) for text in (line, reason))
        with contextlib.suppress(httpx.TransportError):
            await sample.get(f"/{path}")
        await eventually(lambda: len(line.findall(sample_app.output)) == before + 1)
        await eventually(lambda: len(re.findall(reason, sample_app.output)) == reasons + 1)

    async def test_one_is_open_until_its_response_has_ended(self, sample_app: HostedApp) -> None:
        name = uuid.uuid4().hex
        await eventually(lambda: no_open_invocations(sample_app))
        async with sample_app.client() as client:
            await client.post(f"/release?name={name}")
            async with client.stream("GET", f"/stream?count=2&gated=1&name={name}") as response:
                chunks = response.aiter_raw()
                await anext(chunks)
                assert await sample_app.open_invocations() == 1
                await client.post(f"/release?name={name}")
                await anext(chunks)
        await eventually(lambda: no_open_invocations(sample_app))

    async def test_one_that_exceeds_function_timeout_restarts_the_worker(self, tmp_path: Path) -> None:
        app = tmp_path / "app"
        shutil.copytree(SAMPLE_APP, app, ignore=shutil.ignore_patterns("__pycache__"))
        settings = json.loads((app / "host.json").read_text())
        (app / "host.json").write_text(json.dumps(settings | {"functionTimeout": "00:00:01.5"}))
        with HostedApp(tmp_path / "host", script_root=app) as hosted:
            worker = hosted.worker_pid
            request = b"GET /stream?count=1000&pause=0.1 HTTP/1.1\r\nHost: h\r\n\r\n"
            async with raw(hosted, request) as (reader, _):
                await asyncio.wait_for(reader.readuntil(b"data: 5\n\n"), 5)
                async with raw(hosted, request) as (other, _):  # its own time is not over
                    for broken in (reader, other):
                        with pytest.raises(ConnectionResetError):
                            await asyncio.wait_for(broken.read(), 10)
            async with hosted.client() as client:
                assert (await client.get("/things/special")).text == "special"
            assert "Timeout value of 1.5 seconds exceeded by function 'Functions.stream'" in hosted.output
            assert "The worker was restarted." in hosted.output
            assert hosted.worker_pid != worker
            await eventually(lambda: no_open_invocations(hosted))


async def no_open_invocations(app: HostedApp) -> bool:
    return await app.open_invocations() == 0


class TestRoutes:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/nowhere", 404),
            ("/back", 404),  # a wrong method, which is a 404 on the platform, too
            ("/things/abc/x1", 404),
            ("/things/1/1", 404),
            ("/", 404),
            ("/docs", 404),
            ("/ECHO", 200),
            ("/echo/", 200),
        ],
    )
    async def test_status(self, sample: httpx.AsyncClient, path: str, status: int) -> None:
        assert (await sample.get(path)).status_code == status

    async def test_parameters_reach_the_function(self, sample: httpx.AsyncClient) -> None:
        assert (await sample.get("/things/abc/12")).json() == {"kind": "abc", "number": "12"}
        assert (await sample.get("/things/%61bc")).json() == {"kind": "abc"}

    async def test_a_literal_has_precedence_over_a_parameter(self, sample: httpx.AsyncClient) -> None:
        assert (await sample.get("/things/special")).text == "special"

    @own_host("the printed lines")
    def test_every_function_is_listed_with_methods_and_address(self, sample_app: HostedApp) -> None:
        assert f"stream: [GET,POST] {sample_app.url}/stream" in sample_app.output
        assert f"echo: [ALL] {sample_app.url}/echo" in sample_app.output
        assert "not the Functions host" in sample_app.output


class TestKeys:
    @pytest.mark.parametrize("headers", [{}, {"x-functions-key": "wrong"}, {"x-functions-key": "ключ".encode()}])
    async def test_a_function_without_its_key_is_401_with_an_empty_body(
        self, locked_app: HostedApp, headers: dict[str, str]
    ) -> None:
        async with httpx.AsyncClient(base_url=locked_app.url) as client:
            response = await client.get("/things/special", headers=headers)
        assert (response.status_code, response.content) == (401, b"")

    async def test_the_key_is_accepted_in_header_or_query(self, locked_app: HostedApp) -> None:
        async with httpx.AsyncClient(base_url=locked_app.url) as client:
            assert (await client.get("/things/special", headers={"x-functions-key": KEY})).status_code == 200
            assert (await client.get(f"/things/special?code={KEY}")).status_code == 200
            assert (await client.get("/things/special?code=wrong")).status_code == 401

    async def test_anonymous_and_unknown_routes_need_no_key(self, locked_app: HostedApp) -> None:
        async with httpx.AsyncClient(base_url=locked_app.url) as client:
            assert (await client.get("/echo")).status_code == 200
            assert (await client.get("/nowhere")).status_code == 404

    @own_host("the printed lines")
    async def test_the_access_log_has_no_key(self, locked_app: HostedApp) -> None:
        async with httpx.AsyncClient(base_url=locked_app.url) as client:
            await client.get(f"/echo?a=1&code={KEY}&b=2")
        await eventually(lambda: "/echo?a=1&code=***&b=2" in locked_app.output)
        requests = locked_app.output.partition("Listening on")[2]
        assert KEY not in requests

    async def test_no_continue_without_a_key(self, locked_app: HostedApp) -> None:
        head = b"POST /back HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        async with raw(locked_app, head) as (reader, _):
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 401")

    @own_host("the option without a key")
    def test_a_key_is_generated_when_none_is_given(self, tmp_path: Path) -> None:
        with HostedApp(tmp_path, script_root=SAMPLE_APP, options=("--enable-auth",)) as app:
            key = app.wait_for("Function key: ").removeprefix("Function key: ")
            assert len(key) >= 32
            assert httpx.get(f"{app.url}/things/special").status_code == 401
            assert httpx.get(f"{app.url}/things/special", headers={"x-functions-key": key}).status_code == 200


PAGE = "https://page.example"


@pytest.fixture(scope="module")
def cors_for_all(functions_app: Callable[..., HostedApp]) -> HostedApp:
    return functions_app(script_root=SAMPLE_APP, key=KEY, settings={"Host": {"CORS": "*"}})


@pytest.fixture(scope="module")
def cors_for_one(functions_app: Callable[..., HostedApp]) -> HostedApp:
    host = {"CORS": f"{PAGE}/, https://b.example", "CORSCredentials": True}
    return functions_app(script_root=SAMPLE_APP, settings={"Host": host})


@own_host("CORS")
class TestCors:
    async def preflight(self, app: HostedApp, origin: str) -> httpx.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-functions-key",
        }
        async with httpx.AsyncClient(base_url=app.url) as client:
            return await client.options("/stream", headers=headers)

    async def test_a_preflight_needs_no_key(self, cors_for_all: HostedApp) -> None:
        response = await self.preflight(cors_for_all, PAGE)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-allow-methods"] == "POST"
        assert response.headers["access-control-allow-headers"] == "content-type,x-functions-key"

    async def test_responses_and_errors_have_the_header_too(self, cors_for_all: HostedApp) -> None:
        async with httpx.AsyncClient(base_url=cors_for_all.url, headers={"Origin": PAGE}) as client:
            for path, status in (("/echo", 200), ("/things/special", 401), ("/nowhere", 404)):
                response = await client.get(path)
                assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, "*")

    async def test_only_a_listed_origin_is_allowed(self, cors_for_one: HostedApp) -> None:
        response = await self.preflight(cors_for_one, PAGE)
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers["vary"] == "Origin"
        response = await self.preflight(cors_for_one, "https://other.example")
        assert "access-control-allow-origin" not in response.headers

    async def test_without_the_setting_options_is_an_ordinary_method(self, sample_app: HostedApp) -> None:
        assert (await self.preflight(sample_app, PAGE)).status_code == 404


def run_host(*options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local.functions_host", *options],
        cwd=ROOT,
        env=bare_environment(env),
        capture_output=True,
        text=True,
        timeout=30,
    )


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


class TestTheEventLoop:
    async def test_the_app_runs_as_on_the_platform(self, sample: httpx.AsyncClient) -> None:
        found = (await sample.get("/event-loop")).json()
        assert found["loop"] == "uvloop.Loop"
        for task in (found["own_task"], found["new_task"]):
            assert task["classes"][:2] == ["InvocationTask", "Task"], "a Python subclass, as in Azure's worker"

    @own_host("the printed lines")
    async def test_tasks_have_the_id_of_their_invocation(
        self, sample_app: HostedApp, sample: httpx.AsyncClient
    ) -> None:
        tasks = [(await sample.get("/event-loop")).json() for _ in range(2)]
        ids = [found["own_task"]["invocation_id"] for found in tasks]
        assert ids == [found["new_task"]["invocation_id"] for found in tasks]
        assert len(set(ids)) == 2
        for invocation in ids:
            await eventually(lambda it=invocation: f"(Succeeded, Id={it}," in sample_app.output)

    @own_host("LOCAL_EVENT_LOOP")
    async def test_the_plain_event_loop_on_request(self, functions_app: Callable[..., HostedApp]) -> None:
        app = functions_app(script_root=SAMPLE_APP, env={"LOCAL_EVENT_LOOP": "asyncio"})
        async with app.client() as client:
            found = (await client.get("/event-loop")).json()
        assert found["loop"].startswith("asyncio.")
        assert found["new_task"]["classes"][0] == "InvocationTask"
        assert found["new_task"]["invocation_id"] == found["own_task"]["invocation_id"] is not None


@own_host("the host's own process")
class TestTheProcess:
    @pytest.mark.parametrize(
        ("timeout", "seconds"),
        [("00:10:01.5", 601.5), ("1.00:00:00", 86_400), ("-1", None), (None, 1800)],
    )
    def test_the_limits_are_the_platforms(self, tmp_path: Path, timeout: str | None, seconds: float | None) -> None:
        (tmp_path / "host.json").write_text(json.dumps({"functionTimeout": timeout} if timeout else {}))
        assert Limits.read(tmp_path, {}) == Limits(100 * 1024 * 1024, 5, 240, seconds)

    def test_an_idle_connection_to_the_worker_is_kept_for_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        connection = WorkerConnection()
        connection.connection_made(Mock(asyncio.Transport, is_closing=lambda: False))
        connection.keep()
        now = 59.9
        assert connection.usable
        now = 60.0
        assert not connection.usable

    def test_a_taken_port_is_an_error_with_a_remedy(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ended = run_host(f"--port={port}", f"--script-root={SAMPLE_APP}")
        assert ended.returncode == 1
        assert f"Port {port} is taken" in ended.stderr
        assert "make start PORT=" in ended.stderr

    def test_an_app_that_can_t_be_loaded_is_an_error_with_its_traceback(self, tmp_path: Path) -> None:
        (tmp_path / "host.json").write_text("{}")
        (tmp_path / "function_app.py").write_text("import a_module_that_is_not_there\n")
        ended = run_host("--port=0", f"--script-root={tmp_path}")
        assert ended.returncode == 1
        assert "a_module_that_is_not_there" in ended.stderr
        assert "Listening" not in ended.stdout

    def test_an_app_without_functions_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "host.json").write_text("{}")
        (tmp_path / "function_app.py").write_text("import azure.functions as f\napp = f.FunctionApp()\n")
        ended = run_host("--port=0", f"--script-root={tmp_path}")
        assert ended.returncode == 1
        assert "No function was found" in ended.stderr

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("{", "local.settings.json is not JSON"),
            ("[]", "local.settings.json must be a JSON object"),
            ('{"IsEncrypted": true}', "local.settings.json is encrypted"),
            ('{"Values": {"A": 1}}', "the value of A must be a string"),
            ('{"Host": {"LocalHttpPort": "x"}}', "LocalHttpPort must be a port number"),
            ('{"Values": {"LOCAL_HOST_ACTIVITY_SECONDS": "0"}}', "LOCAL_HOST_ACTIVITY_SECONDS must be a number"),
        ],
    )
    def test_an_error_in_local_settings_is_named(self, tmp_path: Path, text: str, error: str) -> None:
        (tmp_path / "host.json").write_text("{}")
        (tmp_path / "local.settings.json").write_text(text)
        ended = run_host(f"--script-root={tmp_path}")
        assert ended.returncode == 1
        assert error in ended.stderr

    def test_a_folder_without_a_function_app_is_an_error(self, tmp_path: Path) -> None:
        ended = run_host(f"--script-root={tmp_path}")
        assert ended.returncode == 1
        assert "There is no host.json" in ended.stderr

    def test_an_error_in_function_timeout_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "host.json").write_text('{"functionTimeout": "soon"}')
        ended = run_host(f"--script-root={tmp_path}")
        assert ended.returncode == 1
        assert "functionTimeout must be a time" in ended.stderr

    def test_another_host_can_be_named(self) -> None:
        code = "from tests.end_to_end.hosting import HOST_COMMAND; print(HOST_COMMAND)"
        env = bare_environment({"FUNCTIONS_HOST_COMMAND": "python 'a host.py' --x"})
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert ran.stdout == "['python', 'a host.py', '--x']\n"

    def test_the_command_of_a_host(self, tmp_path: Path) -> None:
        command = ("env", "NAMED=by the test", sys.executable, "-m", "local.functions_host")
        with HostedApp(tmp_path, script_root=SAMPLE_APP, command=command) as app:
            assert b"NAMED=by the test" in Path(f"/proc/{app.process.pid}/environ").read_bytes()

    def test_app_settings_reach_the_app_and_the_environment_overrides_them(self, tmp_path: Path) -> None:
        app = tmp_path / "app"
        app.mkdir()
        (app / "host.json").write_text("{}")
        (app / "function_app.py").write_text(
            "import os\nimport azure.functions as func\n"
            "from azurefunctions.extensions.http.fastapi import JSONResponse, Request\n"
            "app = func.FunctionApp()\n"
            "@app.route('environment', methods=['GET'])\n"
            "async def environment(req: Request) -> JSONResponse:\n"
            "    return JSONResponse(dict(os.environ))\n"
        )
        settings = {"Values": {"FROM_FILE": "file", "FROM_BOTH": "file"}}
        env = {"FROM_BOTH": "environment", "FUNCTIONS_HOST_KEY": "secret"}
        with HostedApp(tmp_path / "host", script_root=app, settings=settings, env=env) as hosted:
            received = httpx.get(f"{hosted.url}/api/environment").json()  # the platform's default prefix
        assert (received["FROM_FILE"], received["FROM_BOTH"]) == ("file", "environment")
        assert received["AZURE_FUNCTIONS_ENVIRONMENT"] == "Development"
        assert "FUNCTIONS_HOST_KEY" not in received

    async def test_a_worker_that_ends_is_reported_and_not_restarted(self, tmp_path: Path) -> None:
        with HostedApp(tmp_path, script_root=SAMPLE_APP) as app:
            app.expected_to_end = True
            async with app.client() as client:
                assert (await client.get("/dies")).status_code == 502
            assert app.process.wait(10) == 1
            assert "The worker ended by itself (exit code 3)" in app.output

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    async def test_the_worker_ends_with_the_host(self, tmp_path: Path, number: signal.Signals) -> None:
        with HostedApp(tmp_path, script_root=SAMPLE_APP) as app:
            app.expected_to_end = True
            worker = app.worker_pid
            async with app.client() as client, client.stream("GET", "/stream?count=1000&pause=0.1") as response:
                await anext(response.aiter_raw())
                assert not has_ended(worker)
                app.process.send_signal(number)
                assert app.process.wait(10) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
                await eventually(lambda: has_ended(worker))
