"""What of a stream is put on record, and what never is: the line on stdout, an SDK of the app's own, and all that the
worker's Application Insights integration sends."""

import asyncio
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiohttp import web

from local.model_service import BY_HAND, DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import HostedApp, eventually

TRACED_APP: Final = Path(__file__).with_name("traced_app")
PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE: Final = PARENT.split("-")[1]
CALLER: Final = PARENT.split("-")[2]

# Nothing of these may ever be on record.
FUNCTION_KEY: Final = "the-function-key-4f1c"
MODEL_KEY: Final = "the-model-key-9b2e"
PROMPT: Final = "the-prompt-77aa"
QUERY: Final = "the-query-31cd"
ANSWER: Final = ["the", "-", "answer", "-", "c0de", " and", " more"]
SECRETS: Final = (FUNCTION_KEY, MODEL_KEY, PROMPT, QUERY, "".join(ANSWER[:5]), "c0de")

COMPLETED: Final = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "azure.ai.openai",
    "gen_ai.request.model": DEFAULT_DEPLOYMENT,
    "gen_ai.response.model": "gpt-5.4-mini-2026-03-17",
    "gen_ai.usage.output_tokens": len(ANSWER),
    "relay.outcome": "completed",
    "relay.status": 200,
    "relay.backend": DEFAULT_DEPLOYMENT,
    "relay.attempts": 1,
}
TIMES: Final = (
    "relay.time_to_commit",
    "gen_ai.response.time_to_first_chunk",
    "relay.largest_gap",
    "relay.duration",
)


@pytest.fixture(scope="module")
def secret_settings(app_settings: dict[str, str]) -> dict[str, str]:
    """Settings with a key, and with short times."""
    return app_settings | {
        "AZURE_OPENAI_API_KEY": MODEL_KEY,
        "AZURE_OPENAI_DEPLOYMENTS": f"{DEFAULT_DEPLOYMENT},{BY_HAND},refusing,cut,late",
        "COMMIT_WAIT_SECONDS": "0.2",
        "PING_INTERVAL_SECONDS": "0.3",
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "2",
    }


async def one_of_each(app: HostedApp, model_service: ModelService) -> None:
    """One stream of each outcome, and requests that are no streams."""
    model_service.answer(ANSWER)
    model_service.api_key = MODEL_KEY
    model_service.faults |= {"refusing": "429-7", "cut": "cut-midway-3", "late": "stall-headers-0.9+cut-first"}
    async with httpx.AsyncClient(base_url=app.url, timeout=20, verify=False) as client:
        address = f"?code={FUNCTION_KEY}&q={QUERY}"
        for name, url, body in (
            ("completed", "/stream", {"input": PROMPT}),
            ("whole-doc", "/stream", {"input": PROMPT, "stream": False}),
            ("openai-wire", "/v1/chat/completions", chat(stream=True)),
            ("openai-doc", "/v1/chat/completions", chat()),
            ("refused", "/stream", {"input": PROMPT, "model": "refusing"}),
            ("cut-midway", "/stream", {"input": PROMPT, "model": "cut"}),
            ("cut-late", "/v1/chat/completions", chat(model="late", stream=True)),
            ("invalid", "/stream", {"input": PROMPT, "unheard": PROMPT}),
        ):
            await client.post(url + address, json=body, headers={"X-Request-Id": f"the-{name}", "traceparent": PARENT})
        asking = asyncio.create_task(
            client.post(
                "/stream" + address,
                json={"input": PROMPT, "model": BY_HAND},
                headers={"X-Request-Id": "the-cancelled", "traceparent": PARENT},
            )
        )
        await model_service.wait_for(lambda service: service.open_requests == 1)
        model_service.release(2)
        await model_service.wait_for(lambda service: service.requests[-1].tokens == 2)
        await asyncio.sleep(0.45)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await client.get("/v1/models" + address)
        await client.get("/health" + address)
        await client.get("/ready" + address)


STREAMS: Final = (
    "the-completed",
    "the-whole-doc",
    "the-openai-wire",
    "the-openai-doc",
    "the-refused",
    "the-cut-midway",
    "the-cut-late",
    "the-cancelled",
)


def chat(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": PROMPT}], "model": DEFAULT_DEPLOYMENT} | members


def check_records(records: dict[str, dict[str, Any]], app: HostedApp) -> None:
    """The records of the streams, by request id."""
    assert set(records) == set(STREAMS)
    for name in STREAMS[:4]:
        assert records[name] == records[name] | COMPLETED, name
        assert reasons(records[name]) == ["stop"]
        assert records[name]["gen_ai.response.id"].startswith("chatcmpl-")
        assert records[name]["gen_ai.usage.input_tokens"] > 0
        assert records[name]["gen_ai.usage.reasoning.output_tokens"] == 0
        assert records[name]["relay.bytes_sent"] > 0
        assert "relay.usage_estimated" not in records[name]
        assert "error.type" not in records[name]
    for name in ("the-completed", "the-openai-wire"):
        for time_ in TIMES:
            assert 0 <= records[name][time_] <= records[name]["relay.duration"] < 10, time_
    refused = records["the-refused"]
    assert (refused["relay.outcome"], refused["relay.code"], refused["relay.status"]) == ("failed", "rate_limited", 429)
    assert "429" in refused["relay.reason"]
    assert "gen_ai.usage.output_tokens" not in refused
    cut = records["the-cut-midway"]
    assert (cut["relay.outcome"], cut["relay.code"]) == ("failed", "upstream_interrupted")
    assert cut["relay.status"] == 200
    assert (cut["gen_ai.usage.output_tokens"], cut["relay.usage_estimated"]) == (3, True)
    late = records["the-cut-late"]
    assert (late["relay.outcome"], late["relay.status"]) == ("failed", 200)
    assert late["relay.pings"] >= 2
    assert late["relay.time_to_commit"] == pytest.approx(0.2, abs=0.15)
    cancelled = records["the-cancelled"]
    assert cancelled["relay.outcome"] == "cancelled"
    assert (cancelled["gen_ai.usage.output_tokens"], cancelled["relay.usage_estimated"]) == (2, True)
    assert cancelled["relay.pings"] >= 1
    invocations = {record["relay.invocation_id"] for record in records.values()}
    assert invocations <= set(re.findall(r"Id=([0-9a-f-]{36})", app.output))
    assert len(invocations) == len(records)


def reasons(record: dict[str, Any]) -> list[str]:
    """The finish reasons. Azure Monitor's exporter writes a list as Python does."""
    value = record["gen_ai.response.finish_reasons"]
    return re.findall(r"\w+", value) if isinstance(value, str) else value


def check_nothing_private(told: str, model_service: ModelService) -> None:
    for secret in SECRETS:
        assert secret not in told, secret
    assert f"127.0.0.1:{model_service.port}" not in told
    assert "/openai/v1" not in told
    assert "?code" not in told


def words_of_the_worker(app: HostedApp) -> str:
    """What the app printed; the host's own table of routes has the key in it, on purpose."""
    return "\n".join(line for line in app.output.splitlines() if line.startswith("[worker] "))


# ── Nothing is set up: one line of JSON on stdout ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bare(functions_app: Callable[..., HostedApp], secret_settings: dict[str, str]) -> HostedApp:
    """The app in a process without an SDK."""
    return functions_app(env=secret_settings, key=FUNCTION_KEY, fresh=True)


async def test_one_line_a_stream(bare: HostedApp, model_service: ModelService) -> None:
    await one_of_each(bare, model_service)

    def lines() -> list[dict[str, Any]]:
        return [
            json.loads(line.removeprefix("[worker] "))
            for line in bare.output.splitlines()
            if line.startswith('[worker] {"event":"stream"')
        ]

    await eventually(lambda: len(lines()) >= len(STREAMS))
    check_records({record["relay.request_id"]: record for record in lines()}, bare)
    assert len(lines()) == len(STREAMS), "one line a stream"
    assert {record["event"] for record in lines()} == {"stream"}
    check_nothing_private(words_of_the_worker(bare), model_service)


# ── An SDK of the app's own ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def traced(functions_app: Callable[..., HostedApp], secret_settings: dict[str, str]) -> HostedApp:
    """The app in a process with an SDK that prints what it exports."""
    env = secret_settings | {"PYTHON_ENABLE_OPENTELEMETRY": "true"}
    return functions_app(env=env, key=FUNCTION_KEY, script_root=TRACED_APP, fresh=True)


def exported(app: HostedApp) -> list[dict[str, Any]]:
    mark = "[worker] EXPORTED "
    return [json.loads(line.removeprefix(mark)) for line in app.output.splitlines() if line.startswith(mark)]


async def test_spans_and_metrics_through_an_sdk(traced: HostedApp, model_service: ModelService) -> None:
    await one_of_each(traced, model_service)

    def spans() -> list[dict[str, Any]]:
        return [one for one in exported(traced) if "attributes" in one]

    await eventually(lambda: len(spans()) >= len(STREAMS))
    check_records({span["attributes"]["relay.request_id"]: span["attributes"] for span in spans()}, traced)
    assert len(spans()) == len(STREAMS), "a span a stream, and none of anything else"
    for span in spans():
        record = span["attributes"]
        assert span["name"] == f"chat {record['gen_ai.request.model']}"
        assert span["kind"] == "SpanKind.CLIENT"
        assert span["context"]["trace_id"] == "0x" + TRACE
        assert span["parent_id"] == "0x" + CALLER
        failed = record["relay.outcome"] == "failed"
        assert span["status"]["status_code"] == ("ERROR" if failed else "UNSET")
        assert record.get("error.type") == (record["relay.code"] if failed else None)

    def points(name: str) -> list[dict[str, Any]]:
        latest = [one for one in exported(traced) if "resource_metrics" in one][-1]
        return [
            point
            for resource in latest["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
            if metric["name"] == name
            for point in metric["data"]["data_points"]
        ]

    duration = "gen_ai.client.operation.duration"
    await eventually(lambda: sum(point["count"] for point in points(duration)) == len(STREAMS))
    outcomes: Counter[str] = Counter()
    for point in points(duration):
        outcomes[point["attributes"]["relay.outcome"]] += point["count"]
        assert "relay.request_id" not in point["attributes"], "a metric is kept per combination of its attributes"
    assert outcomes == {"completed": 4, "failed": 3, "cancelled": 1}
    first = points("gen_ai.client.operation.time_to_first_chunk")
    assert sum(point["count"] for point in first) >= 4
    output = [p for p in points("gen_ai.client.token.usage") if p["attributes"]["gen_ai.token.type"] == "output"]
    assert sum(point["sum"] for point in output) == 4 * len(ANSWER) + 3 + 2
    check_nothing_private(words_of_the_worker(traced), model_service)
    assert '"event":"stream"' not in traced.output, "a stream is put on record once"


# ── The worker's Application Insights integration ────────────────────────────────────────────────────────────────────


@dataclass
class Ingestion:
    """What Application Insights' ingestion endpoint received: `raw` all of it, `items` the telemetry."""

    port: int = 0
    raw: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        match request.headers.get("Content-Encoding", ""):
            case "gzip" if body[:2] == b"\x1f\x8b":
                body = gzip.decompress(body)
            case "deflate":
                body = zlib.decompress(body)
        self.raw.append(request.path_qs + body.decode())
        if not request.path.endswith("/track"):
            return web.json_response({})
        items = json.loads(body)
        self.items += items
        return web.json_response({"itemsReceived": len(items), "itemsAccepted": len(items), "errors": []})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.items if item["data"]["baseType"] == kind]


@pytest.fixture
async def ingestion() -> AsyncIterator[Ingestion]:
    """An ingestion endpoint of this machine's."""
    ingestion = Ingestion()
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", ingestion.receive)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ingestion.port = runner.addresses[0][1]
    yield ingestion
    await runner.cleanup()


@pytest.fixture
async def insightful(
    functions_app: Callable[..., HostedApp], secret_settings: dict[str, str], ingestion: Ingestion, tmp_path: Path
) -> HostedApp:
    """The app with the worker's integration on."""
    endpoint = f"http://127.0.0.1:{ingestion.port}/"
    env = secret_settings | {
        "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY": "true",
        "APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=11111111-1111-1111-1111-111111111111;"
        f"IngestionEndpoint={endpoint};LiveEndpoint={endpoint}",
        "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",  # to Microsoft's own, not to this endpoint
        "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
        "OTEL_TRACES_SAMPLER": "always_on",  # by itself it keeps a few spans a second
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_BLRP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "700",
        "TMPDIR": str(tmp_path),  # where it keeps what it could not send
    }
    # Starting a host waits for it, and its worker speaks with the endpoint meanwhile.
    return await asyncio.to_thread(functions_app, env=env, key=FUNCTION_KEY, fresh=True)


async def test_what_application_insights_receives(
    insightful: HostedApp, ingestion: Ingestion, model_service: ModelService
) -> None:
    await one_of_each(insightful, model_service)

    def spans() -> list[dict[str, Any]]:
        return ingestion.of("RemoteDependencyData")

    def tokens() -> float:
        return sum(
            metric["value"]
            for item in ingestion.of("MetricData")
            for metric in item["data"]["baseData"]["metrics"]
            if metric["name"] == "gen_ai.client.token.usage"
            and item["data"]["baseData"]["properties"]["gen_ai.token.type"] == "output"
        )

    await eventually(lambda: len(spans()) >= len(STREAMS), within=10)
    await eventually(lambda: tokens() >= 4 * len(ANSWER) + 3 + 2, within=10)
    assert tokens() == 4 * len(ANSWER) + 3 + 2
    for span in spans():
        assert span["tags"]["ai.operation.id"] == TRACE
        assert span["tags"]["ai.operation.parentId"] == CALLER
        assert span["data"]["baseData"]["name"].startswith("chat ")
        failed = span["data"]["baseData"]["properties"]["relay.outcome"] == "failed"
        assert span["data"]["baseData"]["success"] is not failed
    records = [{**span["data"]["baseData"]["properties"]} for span in spans()]
    check_records({record["relay.request_id"]: numbers(record) for record in records}, insightful)
    assert len(spans()) == len(STREAMS), "a span a stream, and none of anything else"
    assert ingestion.of("RequestData") == [], "requests are the host's to tell of: its addresses have no keys in them"
    # What is said of an export must not be exported in its turn.
    await asyncio.sleep(0.5)
    told = len(ingestion.of("MessageData"))
    await asyncio.sleep(1.5)
    assert len(ingestion.of("MessageData")) == told
    check_nothing_private("\n".join(ingestion.raw), model_service)
    check_nothing_private(words_of_the_worker(insightful), model_service)
    assert '"event":"stream"' not in insightful.output, "a stream is put on record once"


def numbers(properties: dict[str, str]) -> dict[str, Any]:
    """Application Insights keeps all properties as text."""

    def read(text: str) -> Any:
        if text in ("True", "False"):
            return text == "True"
        try:
            return json.loads(text) if re.fullmatch(r"[-+.\de]+", text) else text
        except ValueError:
            return text

    return {name: read(text) for name, text in properties.items()}
