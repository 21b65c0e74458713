"""The names and values that dashboards and alerts are built on: every member of a record, a metric and a log line."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from relay import telemetry
from relay.telemetry import Record
from relay.usage import Usage

ROOT = Path(__file__).resolve().parents[2]
FAILED = Record(
    "request-1",
    "invocation-1",
    "gpt",
    outcome="failed",
    status=429,
    code="rate_limited",
    reason="the model service answered 429",
    finish_reason="length",
    response_id="chatcmpl-1",
    response_model="gpt-2026",
    backend="eastus/gpt",
    attempts=2,
    refusals=["westus/gpt: silent"],
    time_to_commit=0.25,
    time_to_first_token=0.1234567,
    largest_gap=1.5,
    duration=2.5,
    usage=Usage(7, 3, reasoning_tokens=2, cached_tokens=1, cache_write_tokens=5),
    usage_estimated=True,
    bytes_sent=99,
    pings=4,
    caller="team-a",
    caller_id="key:01234567",
    caller_is_named=True,
    limits_store_away=True,
    stream=True,
    server=("account.openai.azure.com", 443),
    cost=0.0000123456,
)
METRIC_ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "azure.ai.openai",
    "gen_ai.request.model": "gpt",
    "gen_ai.response.model": "gpt-2026",
    "error.type": "rate_limited",
    "relay.outcome": "failed",
    "relay.backend": "eastus/gpt",
    "server.address": "account.openai.azure.com",
    "server.port": 443,
    "relay.caller": "team-a",
}


@pytest.fixture(autouse=True)
def undecided_reporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reporter is chosen with the first record; each test chooses anew."""
    monkeypatch.setattr(telemetry, "_reporter", None)


def test_every_attribute() -> None:
    assert FAILED.attributes() == METRIC_ATTRIBUTES | {
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.time_to_first_chunk": 0.123457,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.usage.cache_write.input_tokens": 5,
        "gen_ai.request.stream": True,
        "relay.cost": 0.000012346,
        "relay.caller_id": "key:01234567",
        "relay.limits_store_away": True,
        "relay.usage_estimated": True,
        "relay.code": "rate_limited",
        "relay.reason": "the model service answered 429",
        "relay.status": 429,
        "relay.attempts": 2,
        "relay.refusals": ["westus/gpt: silent"],
        "relay.time_to_commit": 0.25,
        "relay.largest_gap": 1.5,
        "relay.duration": 2.5,
        "relay.bytes_sent": 99,
        "relay.pings": 4,
        "relay.request_id": "request-1",
        "relay.invocation_id": "invocation-1",
    }


def test_the_attributes_of_a_stream_of_which_nothing_is_known() -> None:
    assert Record("request-1", "invocation-1", "gpt").attributes() == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt",
        "relay.outcome": "failed",
        "relay.status": 0,
        "relay.attempts": 0,
        "relay.largest_gap": 0.0,
        "relay.duration": 0.0,
        "relay.bytes_sent": 0,
        "relay.pings": 0,
        "relay.request_id": "request-1",
        "relay.invocation_id": "invocation-1",
    }


class Exported:
    """An SDK for one test, and what it would export."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **tracing_options: Any) -> None:
        self.spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracing, metering = TracerProvider(**tracing_options), MeterProvider([self._reader])
        tracing.add_span_processor(SimpleSpanProcessor(self.spans))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracing)
        monkeypatch.setattr(metrics_internal, "get_meter_provider", lambda: metering)

    def bounds(self) -> dict[str, list[float]]:
        """The bounds of each histogram's buckets."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(point.explicit_bounds)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if hasattr(point, "explicit_bounds")
        }

    def metrics(self) -> dict[str, tuple[str, str | None, str | None, list[tuple[float, dict[str, Any]]]]]:
        """Of each metric its scope, unit, description, and points."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: (
                scope.scope.name,
                metric.unit,
                metric.description,
                [
                    (point.sum if hasattr(point, "sum") else point.value, dict(point.attributes or {}))
                    for point in metric.data.data_points
                ],
            )
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def test_every_metric_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = Exported(monkeypatch)
    telemetry.report(FAILED)
    counted = METRIC_ATTRIBUTES | {"gen_ai.token.modality": "unknown", "relay.usage_estimated": True}

    def used(count: int) -> tuple[str, str, str, list[Any]]:
        return ("relay", "{token}", "Tokens used", [(count, counted)])

    def tokens(count: int) -> tuple[str, str, str, list[Any]]:
        return ("relay", "{token}", "Tokens of a request", [(count, METRIC_ATTRIBUTES)])

    prefix = "gen_ai.client.inference"
    assert exported.metrics() == {
        f"{prefix}.duration": ("relay", "s", "Duration of a request", [(2.5, METRIC_ATTRIBUTES)]),
        f"{prefix}.time_to_first_chunk": (
            "relay",
            "s",
            "Time to the first output of a stream",
            [(0.1234567, METRIC_ATTRIBUTES)],
        ),
        f"{prefix}.operation.input_tokens": tokens(7),
        f"{prefix}.operation.output_tokens": tokens(3),
        f"{prefix}.usage.input_tokens": used(7),
        f"{prefix}.usage.output_tokens": used(3),
        f"{prefix}.usage.reasoning.output_tokens": used(2),
        f"{prefix}.usage.cache_read.input_tokens": used(1),
        f"{prefix}.usage.cache_write.input_tokens": used(5),
    }


def test_the_metrics_of_a_document_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time to its first output, as it is no stream; and no tokens, which are counted all the same."""
    exported = Exported(monkeypatch)
    record = Record("request-1", "", "gpt", time_to_first_token=1.0, caller="an-object-id")
    telemetry.report(record)
    metrics = exported.metrics()
    prefix = "gen_ai.client.inference"
    assert set(metrics) == {f"{prefix}.duration", f"{prefix}.usage.input_tokens", f"{prefix}.usage.output_tokens"}
    ((count, attributes),) = metrics[f"{prefix}.usage.input_tokens"][3]
    assert count == 0
    assert attributes["gen_ai.token.modality"] == "unknown"
    assert "relay.caller" not in attributes, "a caller without a name in the settings is one of too many"
    assert "relay.usage_estimated" not in attributes
    assert "gen_ai.response.time_to_first_chunk" not in record.attributes()


def test_the_metrics_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = Exported(monkeypatch)
    telemetry.report(Record("request-1", "", "gpt", "embeddings", usage=Usage(9, 0), duration=2.0))
    telemetry.report(Record("request-1", "", "gpt", "embeddings", duration=3.0))
    metrics = exported.metrics()
    assert {name: [value for value, _ in points] for name, (_, _, _, points) in metrics.items()} == {
        "gen_ai.client.embeddings.duration": [5.0],
        "gen_ai.client.embeddings.operation.input_tokens": [9],
    }


@pytest.mark.parametrize("operation", ["fetch_response", "delete_response", "list_input_items"])
def test_the_metrics_of_what_generates_nothing(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = Exported(monkeypatch)
    telemetry.report(Record("request-1", "", None, operation, stream=True, time_to_first_token=1.0))
    assert set(exported.metrics()) == {"gen_ai.client.operation.duration"}


def test_compaction_is_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = Exported(monkeypatch)
    telemetry.report(Record("request-1", "", "gpt", "compact_response", usage=Usage(9, 1)))
    assert "gen_ai.client.inference.usage.input_tokens" in exported.metrics()


def test_the_buckets_are_those_of_the_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = Exported(monkeypatch)
    telemetry.report(FAILED)
    bounds = exported.bounds()
    durations = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    assert bounds["gen_ai.client.inference.duration"] == durations
    assert bounds["gen_ai.client.inference.time_to_first_chunk"] == durations
    tokens = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]
    assert bounds["gen_ai.client.inference.operation.input_tokens"] == tokens
    assert bounds["gen_ai.client.inference.operation.output_tokens"] == tokens


def test_the_span(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    exported = Exported(monkeypatch)
    monkeypatch.setattr(time, "time_ns", lambda: 10_000_000_000)
    telemetry.report(FAILED)
    (span,) = exported.spans.get_finished_spans()
    assert span.instrumentation_scope is not None
    assert (span.name, span.instrumentation_scope.name) == ("chat gpt", "relay")
    assert (span.start_time, span.end_time) == (7_500_000_000, 10_000_000_000)
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "rate_limited")
    assert capsys.readouterr().out == ""


def test_a_span_that_the_sampler_drops_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = Exported(monkeypatch, sampler=ALWAYS_OFF)
    telemetry.report(FAILED)
    assert exported.spans.get_finished_spans() == ()
    assert json.loads(capsys.readouterr().out) == {"event": "stream", **FAILED.attributes()}
    assert len(exported.metrics()) == 9, "the metrics are not sampled"


@pytest.mark.parametrize(
    "imports",
    ["sys", "opentelemetry.trace", "opentelemetry.trace, opentelemetry.sdk.trace", "opentelemetry.sdk.trace"],
)
def test_an_sdk_that_is_imported_but_not_set_up_gets_no_record(imports: str) -> None:
    script = f"import {imports}\nfrom relay.telemetry import Record, report\nreport(Record('request-1', '', 'gpt'))\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["relay.request_id"] == "request-1"


@pytest.mark.parametrize("missing", ["opentelemetry.trace", "opentelemetry.sdk.trace"])
def test_without_a_part_of_opentelemetry_a_record_is_a_line(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Exported(monkeypatch)
    monkeypatch.delitem(sys.modules, missing)
    telemetry.report(FAILED)
    assert json.loads(capsys.readouterr().out)["event"] == "stream"


def test_the_choice_is_made_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as without_sdk:
        without_sdk.delitem(sys.modules, "opentelemetry.sdk.trace")
        telemetry.report(FAILED)
    Exported(monkeypatch)
    telemetry.report(FAILED)
    assert len(capsys.readouterr().out.splitlines()) == 2


class TestLines:
    """What is logged apart from the records of streams."""

    def test_a_rejection(self, capsys: pytest.CaptureFixture[str]) -> None:
        telemetry.log_rejection("request-1", "invocation-1", "invalid_json")
        assert json.loads(capsys.readouterr().out) == {
            "event": "refused",
            "relay.code": "invalid_json",
            "relay.request_id": "request-1",
            "relay.invocation_id": "invocation-1",
        }

    def test_an_internal_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        try:
            raise LookupError("a secret")
        except LookupError as error:
            telemetry.log_internal_error("request-1", "invocation-1", error)
            line = error.__traceback__.tb_lineno  # type: ignore[union-attr]
        assert json.loads(capsys.readouterr().out) == {
            "event": "crash",
            "relay.reason": f"LookupError at {Path(__file__).name}:{line}",
            "relay.request_id": "request-1",
            "relay.invocation_id": "invocation-1",
        }

    def test_the_location_of_an_error_is_where_it_was_raised(self) -> None:
        """Not where it was caught."""
        with pytest.raises(ValueError, match="Expecting") as caught:
            json.loads("{")
        assert telemetry.error_location(caught.value).startswith("JSONDecodeError at decoder.py:")

    def test_what_is_logged_is_flushed_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []

        class Output:
            def write(self, text: str) -> None:
                calls.append(text)

            def flush(self) -> None:
                calls.append("flush")

        monkeypatch.setattr(sys, "stdout", Output())
        telemetry.log_setting_error("SETTING", "set it")
        assert calls == ['{"event":"not_configured","setting":"SETTING","message":"set it"}\n', "flush"]


def test_missing_halves_are_one_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(telemetry, "_missing_halves_logged", -60.0)
    monkeypatch.setattr(telemetry, "_missing_halves", {})

    def log(half: str, invocation: str) -> list[dict[str, Any]]:
        telemetry.log_missing_half(half, invocation)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    event = {"event": "missing_half"}
    assert log("http_request", "i-1") == [
        {**event, "relay.missing": {"http_request": 1}, "relay.invocation_id": "i-1"}
    ], "the first one at once"
    now = 1.0
    assert log("http_request", "i-2") == []
    assert log("invocation", "i-3") == []
    now = 59.9
    assert log("http_request", "i-4") == []
    now = 60.0
    counts = {"http_request": 2, "invocation": 2}
    assert log("invocation", "i-5") == [{**event, "relay.missing": counts, "relay.invocation_id": "i-5"}]
    now = 119.9
    assert log("invocation", "i-6") == []
    now = 120.0
    assert log("invocation", "i-7") == [{**event, "relay.missing": {"invocation": 2}, "relay.invocation_id": "i-7"}], (
        "what was logged is not counted again"
    )


@pytest.mark.parametrize(
    "name",
    [
        "httpx2",
        "azure.core.pipeline.policies.http_logging_policy",
        "azure.identity",
        "azure.identity.aio",
        "azure.monitor.opentelemetry",
        "azure.monitor.opentelemetry.exporter.export._base",
    ],
)
def test_noisy_loggers_log_warnings_and_no_requests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for logger in list(telemetry._NOISY_LOGGERS):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.NOTSET)
    with monkeypatch.context() as as_in_the_worker:
        as_in_the_worker.setattr(logging.getLogger(), "level", logging.INFO)
        telemetry.silence_noisy_loggers()
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert logging.getLogger(name).isEnabledFor(logging.WARNING)
        assert logging.getLogger("relay.other").isEnabledFor(logging.INFO)
