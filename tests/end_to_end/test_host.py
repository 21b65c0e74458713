"""The host with a sample app: what it forwards, what it rejects, and how the end of each connection ends the other."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.hosting import ROOT, SAMPLE_APP, HostedApp, bare_environment, eventually

KEY = "the-key-of-this-test"


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
    async def test_the_request_arrives_unchanged(self, sample: httpx.AsyncClient) -> None:
        response = await sample.request(
            "PATCH", "/echo?a=%C3%A9&b=1&b=2", content=b"body", headers={"X-Own": "höl".encode()}
        )
        received = response.json()
        assert (received["method"], received["path"], received["query"]) == ("PATCH", "/echo", "a=%C3%A9&b=1&b=2")
        assert received["sha256"] == hashlib.sha256(b"body").hexdigest()
        headers = dict(received["headers"])
        assert headers["x-own"].encode("latin-1").decode() == "höl"
        assert headers["host"] == sample.base_url.netloc.decode()

    async def test_the_response_arrives_unchanged_except_for_hop_by_hop_headers(
        self, sample: httpx.AsyncClient
    ) -> None:
        response = await sample.get("/echo")
        assert response.status_code == 200
        assert response.headers["x-sample"] == "yes"
        assert "x-hop" not in response.headers
        assert response.headers["server"] == "uvicorn"
        assert len(response.headers.get_list("date")) == 1

    async def test_hop_by_hop_headers_of_the_caller_are_not_forwarded(self, sample: httpx.AsyncClient) -> None:
        headers = {"Connection": "keep-alive, x-private", "X-Private": "1", "TE": "trailers", "Keep-Alive": "timeout=5"}
        received = dict((await sample.get("/echo", headers=headers)).json()["headers"])
        assert not {"connection", "x-private", "te", "keep-alive"} & set(received)

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

    async def test_head_has_the_length_and_no_body(self, sample_app: HostedApp) -> None:
        request = b"HEAD /echo HTTP/1.1\r\nHost: h\r\n\r\n" * 2
        async with raw(sample_app, request) as (reader, _):
            for _ in range(2):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert re.search(rb"content-length: [1-9]", head, re.IGNORECASE)

    async def test_an_http_1_0_response_is_not_chunked_and_ends_with_the_connection(
        self, sample_app: HostedApp
    ) -> None:
        async with raw(sample_app, b"GET /stream?count=2 HTTP/1.0\r\n\r\n") as (reader, _):
            response = await asyncio.wait_for(reader.read(), 5)
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK")
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
        async with sample.stream("GET", f"/stream?count=4&gated=1&name={name}") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert "content-length" not in response.headers
            await sample.post(f"/release?name={name}")
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

    @pytest.mark.parametrize("head", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
    async def test_a_caller_that_disconnects_while_it_sends_is_noticed_by_the_function(
        self, sample_app: HostedApp, head: str
    ) -> None:
        name = uuid.uuid4().hex
        request = f"POST /back?name={name} HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n5\r\nhello\r\n".encode()
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

    async def test_a_broken_response_does_not_end_cleanly(self, sample: httpx.AsyncClient) -> None:
        received = b""

        async def read() -> None:
            nonlocal received
            async with sample.stream("GET", "/stream?count=5&break=2&pause=0.05") as response:
                async for data in response.aiter_raw():
                    received += data

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert received == b"data: 0\n\ndata: 1\n\n"

    async def test_a_broken_response_of_known_length_does_not_end_cleanly(self, sample: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await sample.get("/stream?count=5&break=2&pause=0.05&length=45")

    async def test_a_broken_response_to_http_1_0_is_a_reset(self, sample_app: HostedApp) -> None:
        async with raw(sample_app, b"GET /stream?count=5&break=2&pause=0.05 HTTP/1.0\r\n\r\n") as (reader, _):
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)

    async def test_a_response_before_the_body_was_read_arrives(self, sample: httpx.AsyncClient) -> None:
        for _ in range(3):
            response = await sample.post("/early", content=b"x" * 3_000_000)
            assert (response.status_code, response.text) == (413, "too much")

    async def test_a_function_that_raises_is_a_500_without_details(self, sample: httpx.AsyncClient) -> None:
        for _ in range(20):  # and the next request gets its own response
            response = await sample.get("/raises")
            assert (response.status_code, response.text) == (500, "Internal Server Error")

    async def test_a_function_that_returns_nothing_is_a_500(self, sample: httpx.AsyncClient) -> None:
        assert (await sample.get("/nothing")).status_code == 500


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

    async def test_tasks_have_the_id_of_their_invocation(
        self, sample_app: HostedApp, sample: httpx.AsyncClient
    ) -> None:
        tasks = [(await sample.get("/event-loop")).json() for _ in range(2)]
        ids = [found["own_task"]["invocation_id"] for found in tasks]
        assert ids == [found["new_task"]["invocation_id"] for found in tasks]
        assert len(set(ids)) == 2
        for invocation in ids:
            await eventually(lambda it=invocation: f"(200, Id={it}," in sample_app.output)

    async def test_the_plain_event_loop_on_request(self, functions_app: Callable[..., HostedApp]) -> None:
        app = functions_app(script_root=SAMPLE_APP, env={"LOCAL_EVENT_LOOP": "asyncio"})
        async with app.client() as client:
            found = (await client.get("/event-loop")).json()
        assert found["loop"].startswith("asyncio.")
        assert found["new_task"]["classes"][0] == "InvocationTask"
        assert found["new_task"]["invocation_id"] == found["own_task"]["invocation_id"] is not None


class TestTheProcess:
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
