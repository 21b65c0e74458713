"""The app of this repository in a process that has an OpenTelemetry SDK of its own: each span, and now and then all
metrics, are printed as one line, `EXPORTED {…}`."""

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
specification = importlib.util.spec_from_file_location("repository_function_app", ROOT / "function_app.py")
assert specification is not None
assert specification.loader is not None
repository = importlib.util.module_from_spec(specification)
specification.loader.exec_module(repository)
app = repository.app
