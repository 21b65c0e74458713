"""This repository's app in a process that sets up an OpenTelemetry SDK: each span, and all metrics at an interval, are
printed as one line, `EXPORTED {…}`."""

import importlib.util
import sys
from pathlib import Path

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

ROOT = Path(__file__).resolve().parents[3]

tracing = TracerProvider()
tracing.add_span_processor(
    SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"EXPORTED {span.to_json(indent=None)}\n"))
)
trace.set_tracer_provider(tracing)
exporter = ConsoleMetricExporter(formatter=lambda exported: f"EXPORTED {exported.to_json(indent=None)}\n")
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=200)]))

sys.path.insert(0, str(ROOT))
_spec = importlib.util.spec_from_file_location("repository_function_app", ROOT / "function_app.py")
assert _spec is not None
assert _spec.loader is not None
_repository = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_repository)
app = _repository.app
