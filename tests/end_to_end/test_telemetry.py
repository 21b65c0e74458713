"""What is recorded of a stream, and what never is: the line on stdout, the spans and metrics of an SDK that is set up,
and all that the worker's Application Insights integration sends."""

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

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.answers import PING, post_streamed
from tests.end_to_end.hosting import HOST_COMMAND, HostedApp, eventually, own_host

TRACED_APP: Final = Path(__file__).with_name("traced_app")
PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE: Final = PARENT.split("-")[1]
CALLER: Final = PARENT.split("-")[2]

# None of these may ever be recorded.
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
COMMIT_WAIT: Final = 0.2  # seconds
LATE: Final = 0.9  # seconds after which the upstream's response to one request begins
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
        "AZURE_OPENAI_DEPLOYMENTS": f"{DEFAULT_DEPLOYMENT},{MANUAL_PACE},refusing,cut,late",
        "COMMIT_WAIT_SECONDS": str(COMMIT_WAIT),
        "PING_INTERVAL_SECONDS": "0.3",
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "2",
    }


async def one_of_each(app: HostedApp, model_service: ModelService) -> None:
    """One stream of each outcome, and requests that are not streams."""
    model_service.answer(ANSWER)
    model_service.api_key = MODEL_KEY
    model_service.faults |= {"refusing": "429-7", "cut": "cut-midway-3", "late": f"stall-headers-{LATE}+cut-first"}
    async with httpx.AsyncClient(base_url=app.url, timeout=30, verify=False) as client:
        query = f"?code={FUNCTION_KEY}&q={QUERY}"
        for name, url, body in (
            ("completed", "/stream", {"input": PROMPT}),
            ("whole-doc", "/stream", {"input": PROMPT, "stream": False}),
            ("openai-wire", "/v1/chat/completions", chat(stream=True)),
            ("openai-doc", "/v1/chat/completions", chat()),
            ("refused", "/stream", {"input": PROMPT, "model": "refusing"}),
            ("cut-midway", "/stream", {"input": PROMPT, "model": "cut"}),
            ("cut-late", "/v1/chat/completions", chat(model="late", stream=True)),
            ("invalid", "/stream", {"input": PROMPT, "unknown": PROMPT}),
        ):
            headers = {"X-Request-Id": f"the-{name}", "traceparent": PARENT}
            await post_streamed(client, url + query, body, headers=headers)
        # Disconnects after two tokens and a ping.
        model_service.release(2)
        async with client.stream(
            "POST",
            "/stream" + query,
            json={"input": PROMPT, "model": MANUAL_PACE},
            headers={"X-Request-Id": "the-cancelled", "traceparent": PARENT},
        ) as response:
            content = b""
            async for chunk in response.aiter_raw():
                content += chunk
                if PING in content and text_of(content) == "".join(ANSWER[:2]):
                    break
        await client.get("/v1/models" + query)
        await client.get("/health" + query)
        await client.get("/ready" + query)


def text_of(content: bytes) -> str:
    """The text of a stream of `/stream` that has not ended."""
    events = content.split(b"\n\n")[:-1]
    return "".join(json.loads(event[6:])["text"] for event in events if event.startswith(b"data: "))


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


# The output tokens of these streams: the complete ones, the one that was cut, and the cancelled one.
OUTPUT_TOKENS: Final = 4 * len(ANSWER) + 3 + 2


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
    assert COMMIT_WAIT - 0.01 < late["relay.time_to_commit"] < LATE
    cancelled = records["the-cancelled"]
    assert cancelled["relay.outcome"] == "cancelled"
    assert (cancelled["gen_ai.usage.output_tokens"], cancelled["relay.usage_estimated"]) == (2, True)
    assert cancelled["relay.pings"] >= 1
    invocations = {record["relay.invocation_id"] for record in records.values()}
    assert HOST_COMMAND or invocations <= set(re.findall(r"Id=([0-9a-f-]{36})", app.output))
    assert len(invocations) == len(records)


def reasons(record: dict[str, Any]) -> list[str]:
    """The finish reasons. Azure Monitor's exporter writes a list as Python's `repr` does."""
    value = record["gen_ai.response.finish_reasons"]
    return re.findall(r"\w+", value) if isinstance(value, str) else value


def check_nothing_private(output: str, model_service: ModelService) -> None:
    for secret in SECRETS:
        assert secret not in output, secret
    assert f"127.0.0.1:{model_service.port}" not in output
    assert "/openai/v1" not in output
    assert "?code" not in output


def worker_output(app: HostedApp) -> str:
    """What the app has printed; the host prints the key on purpose."""
    return "\n".join(line for line in app.output.splitlines() if line.startswith("[worker] "))


# ── Without an SDK: one line of JSON on stdout ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bare_app(functions_app: Callable[..., HostedApp], secret_settings: dict[str, str]) -> HostedApp:
    """The app in a process without an SDK."""
    return functions_app(env=secret_settings, key=FUNCTION_KEY, fresh=True)


async def test_one_line_for_each_stream(bare_app: HostedApp, model_service: ModelService) -> None:
    await one_of_each(bare_app, model_service)
    await eventually(lambda: len(bare_app.stream_records()) >= len(STREAMS))
    records = bare_app.stream_records()
    check_records(records, bare_app)
    assert bare_app.output.count('"event":"stream"') == len(STREAMS), "one line for each stream"
    assert {record["event"] for record in records.values()} == {"stream"}
    check_nothing_private(worker_output(bare_app), model_service)


# ── With an SDK that the app sets up ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def traced_app(functions_app: Callable[..., HostedApp], secret_settings: dict[str, str]) -> HostedApp:
    """The app in a process with an SDK that prints what it exports."""
    env = secret_settings | {"PYTHON_ENABLE_OPENTELEMETRY": "true"}
    return functions_app(env=env, key=FUNCTION_KEY, script_root=TRACED_APP, fresh=True)


def exported(app: HostedApp) -> list[dict[str, Any]]:
    """The spans and metrics that the SDK has printed."""
    start = "[worker] EXPORTED "
    complete = app.output.rpartition("\n")[0].splitlines()
    return [json.loads(line.removeprefix(start)) for line in complete if line.startswith(start)]


@own_host("it may not pass the caller's trace context on")
async def test_spans_and_metrics_of_an_sdk(traced_app: HostedApp, model_service: ModelService) -> None:
    await one_of_each(traced_app, model_service)

    def spans() -> list[dict[str, Any]]:
        return [it for it in exported(traced_app) if "attributes" in it]

    await eventually(lambda: len(spans()) >= len(STREAMS))
    check_records({span["attributes"]["relay.request_id"]: span["attributes"] for span in spans()}, traced_app)
    assert len(spans()) == len(STREAMS), "one span for each stream, and no others"
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
        exports = [it for it in exported(traced_app) if "resource_metrics" in it]
        return [
            point
            for export in exports[-1:]
            for resource in export["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
            if metric["name"] == name
            for point in metric["data"]["data_points"]
        ]

    duration = "gen_ai.client.inference.duration"
    await eventually(lambda: sum(point["count"] for point in points(duration)) == len(STREAMS))
    outcomes: Counter[str] = Counter()
    for point in points(duration):
        outcomes[point["attributes"]["relay.outcome"]] += point["count"]
        assert "relay.request_id" not in point["attributes"], "a metric is kept for each combination of its attributes"
    assert outcomes == {"completed": 4, "failed": 3, "cancelled": 1}
    first = points("gen_ai.client.inference.time_to_first_chunk")
    assert sum(point["count"] for point in first) >= 4

    def output_tokens() -> int:
        return sum(point["value"] for point in points("gen_ai.client.inference.usage.output_tokens"))

    await eventually(lambda: output_tokens() >= OUTPUT_TOKENS)
    assert output_tokens() == OUTPUT_TOKENS
    check_nothing_private(worker_output(traced_app), model_service)
    assert '"event":"stream"' not in traced_app.output, "a stream is recorded once"


# ── The worker's Application Insights integration ────────────────────────────────────────────────────────────────────


@dataclass
class Ingestion:
    """What Application Insights' ingestion endpoint has received: `raw` all requests, `items` the telemetry."""

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
    """A local ingestion endpoint."""
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
async def app_insights_app(
    functions_app: Callable[..., HostedApp], secret_settings: dict[str, str], ingestion: Ingestion, tmp_path: Path
) -> HostedApp:
    """The app with the worker's integration on."""
    endpoint = f"http://127.0.0.1:{ingestion.port}/"
    env = secret_settings | {
        "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY": "true",
        "APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=11111111-1111-1111-1111-111111111111;"
        f"IngestionEndpoint={endpoint};LiveEndpoint={endpoint}",
        "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",  # which would go to Microsoft, not to this endpoint
        "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
        "OTEL_TRACES_SAMPLER": "always_on",  # the default keeps a few spans a second
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_BLRP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "400",
        "TMPDIR": str(tmp_path),  # for what could not be sent
    }
    # In a thread, since starting a host waits for it, and its worker sends requests to the endpoint meanwhile.
    return await asyncio.to_thread(functions_app, env=env, key=FUNCTION_KEY, fresh=True)


@own_host("it may not pass the caller's trace context on")
async def test_what_application_insights_receives(
    app_insights_app: HostedApp, ingestion: Ingestion, model_service: ModelService
) -> None:
    await one_of_each(app_insights_app, model_service)

    def spans() -> list[dict[str, Any]]:
        return ingestion.of("RemoteDependencyData")

    def tokens() -> float:
        return sum(
            metric["value"]
            for item in ingestion.of("MetricData")
            for metric in item["data"]["baseData"]["metrics"]
            if metric["name"] == "gen_ai.client.inference.usage.output_tokens"
        )

    await eventually(lambda: len(spans()) >= len(STREAMS), within=30)
    await eventually(lambda: tokens() >= OUTPUT_TOKENS, within=30)
    assert tokens() == OUTPUT_TOKENS
    for span in spans():
        assert span["tags"]["ai.operation.id"] == TRACE
        assert span["tags"]["ai.operation.parentId"] == CALLER
        assert span["data"]["baseData"]["name"].startswith("chat ")
        failed = span["data"]["baseData"]["properties"]["relay.outcome"] == "failed"
        assert span["data"]["baseData"]["success"] is not failed
    records = [{**span["data"]["baseData"]["properties"]} for span in spans()]
    check_records({record["relay.request_id"]: numbers(record) for record in records}, app_insights_app)
    assert len(spans()) == len(STREAMS), "one span for each stream, and no others"
    assert ingestion.of("RequestData") == [], "the host records requests; its records contain no keys"

    async def no_more_messages() -> bool:
        messages, exports = len(ingestion.of("MessageData")), len(ingestion.raw)
        await eventually(lambda: len(ingestion.raw) >= exports + 3)  # metrics are exported at an interval
        return len(ingestion.of("MessageData")) == messages

    # What is logged about an export must not be exported in turn.
    await eventually(no_more_messages, within=30)
    check_nothing_private("\n".join(ingestion.raw), model_service)
    check_nothing_private(worker_output(app_insights_app), model_service)
    assert '"event":"stream"' not in app_insights_app.output, "a stream is recorded once"


def numbers(properties: dict[str, str]) -> dict[str, Any]:
    """The properties, which Application Insights stores as text, as values."""

    def read(text: str) -> Any:
        if text in ("True", "False"):
            return text == "True"
        try:
            return json.loads(text) if re.fullmatch(r"[-+.\de]+", text) else text
        except ValueError:
            return text

    return {name: read(text) for name, text in properties.items()}
