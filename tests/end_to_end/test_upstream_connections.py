"""Connections to the model service: with TLS they end at once with the stream, whatever ends it; refusals that dawdle;
kept connections; bodies that are not taken."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from local.model_service import MANUAL_PACE, ModelService
from tests.certificates import Certificates
from tests.end_to_end.answers import DOCUMENT, SSE, post_stream, request_body
from tests.end_to_end.hosting import HostedApp, eventually
from tests.relay.upstream.raw_server import HOLD, RECEIVE, RECEIVE_HEAD, RawServer, Tap, chunked, response

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")
SILENCE: Final = 1.5  # seconds
DEADLINE: Final = 3.0
FAILOVER: Final = 0.8

OTHER: Final = "other"  # a deployment behind each first one
FIRST_FAULTS: Final = ("stall-headers", "error-first", "error-stall-429", "error-trickle-503", "error-stall-401")


def backends(endpoint: str) -> list[dict[str, Any]]:
    """A model with one deployment, and for each fault one with two, of which the first commits the fault.

    A model for each, since a deployment that failed is not asked first for a while.
    """
    first = [{"endpoint": endpoint, "deployment": f"first-{fault}", "model": fault} for fault in FIRST_FAULTS]
    second = [
        {"endpoint": endpoint, "deployment": OTHER, "model": fault, "priority": 2, "name": f"second-{fault}"}
        for fault in FIRST_FAULTS
    ]
    single = [{"endpoint": endpoint, "deployment": name} for name in ("single", MANUAL_PACE)]
    return [*single, *first, *second]


SETTINGS: Final = {
    "COMMIT_WAIT_SECONDS": "0.3",
    "PING_INTERVAL_SECONDS": "60",
    "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE),
    "STREAM_DEADLINE_SECONDS": str(DEADLINE),
    "FAILOVER_AFTER_SECONDS": str(FAILOVER),
    "MAX_BODY_BYTES": "20000000",
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """For 127.0.0.1."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_app(functions_app: Callable[..., HostedApp], certificates: Certificates, model_service_port: int) -> HostedApp:
    """The app with an address of TLS, and with trust in these certificates."""
    env = {
        "AZURE_OPENAI_BACKENDS": json.dumps(backends(f"https://127.0.0.1:{model_service_port}/v1")),
        "SSL_CERT_FILE": str(certificates.authority),
    }
    return functions_app(env=SETTINGS | env)


class TestTLS:
    """On the platform's event loop, to a model service that never responds to TLS's goodbye."""

    @pytest.fixture
    async def service(self, certificates: Certificates) -> AsyncIterator[ModelService]:
        async with ModelService(tls=certificates.server_context(), tokens_per_second=0) as service:
            yield service

    @pytest.fixture
    async def tap(self, service: ModelService, model_service_port: int) -> AsyncIterator[Tap]:
        async with Tap(service.port, model_service_port) as tap:
            yield tap

    async def test_answers(self, tls_app: HostedApp, service: ModelService, tap: Tap) -> None:
        service.answer(["The", " fox"])
        async with tls_app.client() as client:
            for media_type in (SSE, DOCUMENT):
                assert (await post_stream(client, media_type, model="single")).text == "The fox"
        assert tap.opened == 1, "the connection is kept"

    @pytest.mark.parametrize("fault", ["stall-headers", "stall-first", "stall-midway"])
    async def test_the_client_disconnects(
        self, tls_app: HostedApp, service: ModelService, tap: Tap, fault: str
    ) -> None:
        service.faults["*"] = fault
        began = fault != "stall-headers"
        async with tls_app.client() as client:
            asking = asyncio.create_task(client.post("/stream", json=request_body(SSE, model="single")))
            await service.wait_for(lambda it: it.requests and (not began or it.requests[0].status == 200))
            tap.deafen()
            asking.cancel()
            await tap.wait_for_end(within=1)

    @pytest.mark.parametrize("fault", ["stall-headers", "stall-first", "stall-midway"])
    async def test_the_service_is_silent(self, tls_app: HostedApp, service: ModelService, tap: Tap, fault: str) -> None:
        service.faults["*"] = fault
        async with tls_app.client() as client:
            asking = asyncio.create_task(post_stream(client, SSE, model="single"))
            await service.wait_for(lambda it: it.requests)
            tap.deafen()
            received = await asking
            assert (received.problem or received.error or {})["code"] == "upstream_timeout"
            await tap.wait_for_end(within=1)

    async def test_the_deadline(self, tls_app: HostedApp, service: ModelService, tap: Tap) -> None:
        async def release() -> None:
            while True:
                service.release()
                await asyncio.sleep(0.2)

        releasing = asyncio.create_task(release())
        async with tls_app.client() as client:
            asking = asyncio.create_task(post_stream(client, SSE, model=MANUAL_PACE))
            await service.wait_for(lambda it: it.requests)
            tap.deafen()
            received = await asking
            assert received.error is not None
            assert received.error["code"] == "deadline_exceeded"
            await tap.wait_for_end(within=1)
        releasing.cancel()

    @pytest.mark.parametrize("fault", ["stall-headers", "error-stall-429"])
    async def test_fail_over(self, tls_app: HostedApp, service: ModelService, tap: Tap, fault: str) -> None:
        service.faults[f"first-{fault}"] = fault
        async with tls_app.client() as client:
            asking = asyncio.create_task(post_stream(client, SSE, model=fault))
            await service.wait_for(lambda it: it.requests)
            tap.deafen()
            assert (await asking).text
            await tap.wait_for_end(within=1)

    async def test_an_error_event(
        self, tls_app: HostedApp, certificates: Certificates, model_service_port: int
    ) -> None:
        error = b'data: {"error":{"code":"server_error","message":"x"}}\n\n'
        script = (RECEIVE, 0.2, chunked(error), HOLD)  # the pause: what the app sends is lost by then
        async with (
            RawServer(script, tls=certificates.server_context()) as server,
            Tap(server.port, model_service_port) as tap,
            tls_app.client() as client,
        ):
            asking = asyncio.create_task(post_stream(client, SSE, model="single"))
            while not server.received:
                await asyncio.sleep(0.005)
            tap.deafen()
            received = await asking
            told = received.problem or received.error  # before or after the commit
            assert told is not None
            assert told["code"] == "upstream_error"
            await tap.wait_for_end(within=1)


@pytest.fixture(scope="module")
def plain_app(functions_app: Callable[..., HostedApp], model_service_port: int) -> HostedApp:
    """The same settings without TLS, and `GET /inspect`."""
    env = {"AZURE_OPENAI_BACKENDS": json.dumps(backends(f"http://127.0.0.1:{model_service_port}/v1"))}
    return functions_app(env=SETTINGS | env, script_root=INSPECTED_APP)


@pytest.fixture
async def plain_client(plain_app: HostedApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with plain_app.client() as client:
        yield client


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("error-stall-429", "the model service answered 429, code none"),
        ("error-trickle-503", "the model service answered 503, code none"),
        ("error-stall-401", "the model service answered 401, code none"),
    ],
)
async def test_a_refusal_is_one_by_its_status(
    plain_app: HostedApp, plain_client: httpx.AsyncClient, model_service: ModelService, fault: str, reason: str
) -> None:
    """Also where its body takes longer than a deployment may be silent."""
    model_service.faults[f"first-{fault}"] = fault
    await post_stream(plain_client, SSE, model="single")  # the first request of all waits for an import
    began = time.monotonic()
    received = await post_stream(plain_client, SSE, model=fault)
    assert time.monotonic() - began < 2
    assert received.text
    record = await record_of(plain_app, received.headers["x-request-id"])
    (refusal,) = record["relay.refusals"]
    assert refusal.endswith(f": {reason}")


async def record_of(app: HostedApp, request_id: str) -> dict[str, Any]:
    """The record of one stream."""
    return await eventually(lambda: app.stream_records().get(request_id))


class TestKeptConnections:
    async def ask_twice(
        self, app: HostedApp, client: httpx.AsyncClient, port: int, pause: float
    ) -> tuple[httpx.Response, dict[str, Any], RawServer]:
        """The second request goes on the kept connection, which the server closes after so many seconds."""
        document = response(b'{"choices":[{"finish_reason":"stop"}]}', "Content-Type: application/json")
        async with RawServer((RECEIVE, document, RECEIVE, pause), (RECEIVE, document), port=port) as server:
            body = {"model": "single", "messages": [{"role": "user", "content": "x"}]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            second = await client.post("/v1/chat/completions", json=body)
        return second, await record_of(app, second.headers["x-request-id"]), server

    async def test_one_that_was_closed_before_the_request(
        self, plain_app: HostedApp, plain_client: httpx.AsyncClient, model_service_port: int
    ) -> None:
        second, record, server = await self.ask_twice(plain_app, plain_client, model_service_port, 0)
        assert second.status_code == 200
        assert record["relay.attempts"] == 2
        assert len(server.received) == 3

    async def test_one_that_is_closed_after_seconds_of_work(
        self, plain_app: HostedApp, plain_client: httpx.AsyncClient, model_service_port: int
    ) -> None:
        second, record, server = await self.ask_twice(plain_app, plain_client, model_service_port, 1.0)
        assert second.status_code == 502
        assert record["relay.attempts"] == 1
        assert record["relay.reason"] == (
            "the model service closed the connection without an answer (ServerDisconnectedError)"
        )
        assert len(server.received) == 2, "the work is not done twice"


class TestBodiesThatAreNotTaken:
    """The model service reads no more than the heads of six requests of 10 MB."""

    BODY: Final = json.dumps({"input": "x" * 10_000_000, "model": "single"}).encode()

    @staticmethod
    async def resident(client: httpx.AsyncClient) -> int:
        """The memory of the worker in use, in bytes."""
        return int((await client.get("/inspect")).json()["resident"])

    @pytest.mark.parametrize("ending", ["left", "silence"])
    async def test_their_memory_is_freed(
        self, plain_client: httpx.AsyncClient, model_service_port: int, ending: str
    ) -> None:
        async with RawServer((RECEIVE_HEAD, HOLD), port=model_service_port) as server:
            for measured in (False, True):  # the first time the process allocates what it keeps for good
                before = await self.resident(plain_client)
                headers = {"Content-Type": "application/json"}
                asking = [
                    asyncio.create_task(plain_client.post("/stream", content=self.BODY, headers=headers))
                    for _ in range(6)
                ]
                expected = 12 if measured else 6
                await eventually(lambda expected=expected: len(server.received) >= expected)
                if ending == "left":
                    for task in asking:
                        task.cancel()
                    await asyncio.wait(asking)
                else:
                    codes = [(await task).text for task in asking]
                    assert all("upstream_timeout" in code for code in codes)

                async def freed(before: int = before) -> bool:
                    return await self.resident(plain_client) < before + 12_000_000

                if measured:
                    await eventually(freed)


CODED: Final = (
    response(b"coded", "Content-Type: text/event-stream", "Content-Encoding: br"),
    "turn compression off there",
    "the model service answered with Content-Encoding br though identity was asked for",
)
REDIRECT: Final = (
    response(b"", "Location: http://127.0.0.1:9/", status="308 Permanent Redirect"),
    "to the address that it leads to",
    "the model service answered 308, code none: a redirect, which is not followed",
)


async def test_readiness_tells_what_can_not_be_read(functions_app: Callable[..., HostedApp]) -> None:
    """`GET /ready` tells what keeps answers away, and so do the record and the error of a request."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(RawServer((RECEIVE, it[0]))) for it in (CODED, REDIRECT)]
        unreadable = [
            {"endpoint": f"http://127.0.0.1:{server.port}/v1", "deployment": name, "model": name}
            for server, name in zip(servers, ("coded", "redirect"), strict=True)
        ]
        app = functions_app(env={"AZURE_OPENAI_BACKENDS": json.dumps(unreadable)})
        client = await stack.enter_async_context(app.client())
        ready = await client.get("/ready")
        assert ready.status_code == 503
        findings = ready.json()["backends"]
        assert [finding["model"] for finding in findings] == ["coded", "redirect"]
        for finding, server, (_, remedy, reason) in zip(findings, servers, (CODED, REDIRECT), strict=True):
            assert finding["code"] == "upstream_error"
            assert remedy in finding["remedy"]
            received = await post_stream(client, SSE, model=finding["model"])
            assert (received.status, (received.problem or {})["code"]) == (502, "upstream_error")
            assert server.received
            record = await record_of(app, received.headers["x-request-id"])
            assert record["relay.reason"] == reason
