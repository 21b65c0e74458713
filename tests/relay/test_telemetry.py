"""The record of a stream: its attributes, and where it is reported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from relay import telemetry
from relay.telemetry import Record
from relay.usage import Usage

ROOT = Path(__file__).resolve().parents[2]


def completed() -> Record:
    return Record(
        "request-1",
        "invocation-1",
        "gpt",
        outcome="completed",
        status=200,
        finish_reason="stop",
        backend="eastus/gpt",
        attempts=2,
        refusals=["westus/gpt: the model service answered 429"],
        time_to_commit=0.1234567,
        time_to_first_token=0.1,
        stream=True,
        duration=2.5,
        usage=Usage(7, 3, reasoning_tokens=2, cached_tokens=1),
        bytes_sent=99,
    )


@pytest.fixture(autouse=True)
def undecided_reporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reporter is chosen with the first record; each test chooses anew."""
    monkeypatch.setattr(telemetry, "_reporter", None)


def test_unknown_values_are_left_out() -> None:
    attributes = Record("request-1", "", "gpt").attributes()
    assert None not in attributes.values()
    assert not [name for name in attributes if name.startswith(("gen_ai.usage", "gen_ai.response"))]
    assert {"relay.usage_estimated", "error.type", "relay.refusals"}.isdisjoint(attributes)
    assert attributes["relay.outcome"] == "failed", "a record without an outcome counts as failed"


def test_zero_is_a_known_value() -> None:
    record = completed()
    record.usage, record.time_to_first_token = Usage(0, 0, 0, 0), 0.0
    attributes = record.attributes()
    assert attributes["gen_ai.usage.output_tokens"] == 0
    assert attributes["gen_ai.usage.reasoning.output_tokens"] == 0
    assert attributes["gen_ai.response.time_to_first_chunk"] == 0
    assert attributes["relay.pings"] == 0


def test_without_an_sdk_a_record_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.report(completed())
    (line,) = capsys.readouterr().out.splitlines()
    members = json.loads(line)
    assert members.pop("event") == "stream"
    assert members == completed().attributes()
    assert members["gen_ai.response.finish_reasons"] == ["stop"]
    assert members["relay.time_to_commit"] == 0.123457
    assert members["relay.refusals"] == ["westus/gpt: the model service answered 429"]


def test_line_breaks_in_a_value_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    record = completed()
    record.reason = "two\nlines\u2028and\u0085more"
    telemetry.report(record)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """An SDK for one test."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing, metering = TracerProvider(), MeterProvider([reader])
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracing)
    monkeypatch.setattr(metrics_internal, "get_meter_provider", lambda: metering)
    return spans, reader


def points(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The sum of each metric, by its name."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: point.value if hasattr(point, "value") else point.sum
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_with_an_sdk_a_record_is_a_span_and_metrics(
    exported: tuple[InMemorySpanExporter, InMemoryMetricReader], capsys: pytest.CaptureFixture[str]
) -> None:
    spans, reader = exported
    telemetry.report(completed())
    (span,) = spans.get_finished_spans()
    assert span.name == "chat gpt"
    assert span.kind is trace.SpanKind.CLIENT
    assert span.status.status_code is trace.StatusCode.UNSET
    assert span.end_time - span.start_time == pytest.approx(2.5e9)
    attributes = {name: list(value) if isinstance(value, tuple) else value for name, value in span.attributes.items()}
    assert attributes == completed().attributes()
    assert points(reader) == {
        "gen_ai.client.inference.duration": 2.5,
        "gen_ai.client.inference.time_to_first_chunk": 0.1,
        "gen_ai.client.inference.operation.input_tokens": 7,
        "gen_ai.client.inference.operation.output_tokens": 3,
        "gen_ai.client.inference.usage.input_tokens": 7,
        "gen_ai.client.inference.usage.output_tokens": 3,
        "gen_ai.client.inference.usage.reasoning.output_tokens": 2,
        "gen_ai.client.inference.usage.cache_read.input_tokens": 1,
    }
    assert capsys.readouterr().out == ""


def test_a_failure_is_the_status_of_the_span(exported: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> None:
    spans, reader = exported
    telemetry.report(Record("request-1", "", "gpt", code="rate_limited", status=429, duration=0.5))
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "rate_limited"
    assert points(reader) == {
        "gen_ai.client.inference.duration": 0.5,
        "gen_ai.client.inference.usage.input_tokens": 0,
        "gen_ai.client.inference.usage.output_tokens": 0,
    }


def test_a_cancelled_stream_is_no_error(exported: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> None:
    telemetry.report(Record("request-1", "", "gpt", outcome="cancelled"))
    (span,) = exported[0].get_finished_spans()
    assert span.status.status_code is trace.StatusCode.UNSET


def test_a_metric_has_few_combinations_of_attributes(
    exported: tuple[InMemorySpanExporter, InMemoryMetricReader],
) -> None:
    for number in range(50):
        record = completed()
        record.request_id, record.invocation_id, record.response_id = (f"{kind}-{number}" for kind in "riv")
        record.reason, record.duration = f"reason {number}", number / 7
        telemetry.report(record)
    data = exported[1].get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert len(metric.data.data_points) <= 2


def test_the_api_without_an_sdk_gets_no_record() -> None:
    """The API alone drops every span; a library that merely imports it must not suppress the lines."""
    script = (
        "import opentelemetry.trace, opentelemetry.metrics\n"
        "from relay.telemetry import Record, report\n"
        "report(Record('request-1', '', 'gpt'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["relay.request_id"] == "request-1"


def test_a_setting_error_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.log_setting_error("SETTING", "set it")
    assert json.loads(capsys.readouterr().out) == {"event": "not_configured", "setting": "SETTING", "message": "set it"}


def test_the_api_uses_the_providers_that_the_fixture_replaces() -> None:
    assert metrics.get_meter.__globals__["get_meter_provider"] is metrics_internal.get_meter_provider
    assert trace.get_tracer.__globals__["get_tracer_provider"] is trace.get_tracer_provider
