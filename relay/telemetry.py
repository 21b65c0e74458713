"""The record of one stream, by OpenTelemetry's semantic conventions for generative AI: a span and metrics where an SDK
is set up (the worker's Application Insights integration does that), otherwise one line of JSON on stdout.

Never a prompt, an answer, a key or a URL. `logging` can't be used in a stream: the worker drops what is logged inside a
response, or files it under another request; the record carries the invocation's id instead.
"""

import logging
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from relay.usage import Usage

# Loggers that write a line, with the address, for each of their requests. The exporter of Application Insights does so
# for each of its exports, and the line is exported in turn, for ever.
_NOISY_LOGGERS: Final = (
    "httpx2",
    "azure.core.pipeline.policies.http_logging_policy",
    "azure.identity",
    "azure.monitor.opentelemetry",
)


@dataclass(slots=True)
class Record:
    """What is recorded of one stream while it runs. Times are in seconds since the request was read.

    `model` is the model asked for, None for a request that concerns none; `operation` is what was asked of it.
    `outcome` is `completed`, `continued`, `failed` or `cancelled`; `code` is the problem's code and `reason` has
    details; `refusals` are those of the backends that were asked before. `caller` is who asked, where callers are
    named, and `caller_id` tells its keys apart, or is the id of its identity; `caller_is_named`: it is one of the
    settings'.
    `limits_store_away`: its limits were held by this instance's count alone. `stream`: the model service was asked for
    an event stream. `server` is the host and port of the backend's account. `cost` is in the currency of the settings'
    prices.
    """

    request_id: str
    invocation_id: str
    model: str | None
    operation: str = "chat"
    outcome: str = "failed"
    status: int = 0
    code: str | None = None
    reason: str | None = None
    finish_reason: str | None = None
    response_id: str | None = None
    response_model: str | None = None
    backend: str | None = None
    attempts: int = 0
    refusals: list[str] = field(default_factory=list)
    time_to_commit: float | None = None
    time_to_first_token: float | None = None
    largest_gap: float = 0.0
    duration: float = 0.0
    usage: Usage | None = None
    usage_estimated: bool = False
    bytes_sent: int = 0
    pings: int = 0
    caller: str | None = None
    caller_id: str | None = None
    caller_is_named: bool = False
    limits_store_away: bool = False
    stream: bool = False
    server: tuple[str, int] | None = None
    cost: float | None = None

    def attributes(self) -> dict[str, Any]:
        """The record by the conventions' names, and `relay.…` for what they do not name; what is unknown is left out.

        Source: https://github.com/open-telemetry/semantic-conventions-genai (spans and metrics of a client).
        """
        usage = self.usage
        attributes = {
            "gen_ai.operation.name": self.operation,
            "gen_ai.provider.name": "azure.ai.openai",
            "gen_ai.request.model": self.model,
            "gen_ai.request.stream": True if self.stream else None,
            "server.address": self.server[0] if self.server else None,
            "server.port": self.server[1] if self.server else None,
            "gen_ai.response.id": self.response_id,
            "gen_ai.response.model": self.response_model,
            "gen_ai.response.finish_reasons": [self.finish_reason] if self.finish_reason else None,
            "gen_ai.response.time_to_first_chunk": self.time_to_first_token if self.stream else None,
            "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
            "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens if usage else None,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens if usage else None,
            "gen_ai.usage.cache_write.input_tokens": usage.cache_write_tokens if usage else None,
            "relay.usage_estimated": True if self.usage_estimated else None,
            "relay.cost": self.cost,
            "error.type": self.code,
            "relay.code": self.code,  # the same: Azure Monitor's exporter drops error.type from a span
            "relay.outcome": self.outcome,
            "relay.reason": self.reason,
            "relay.status": self.status,
            "relay.backend": self.backend,
            "relay.attempts": self.attempts,
            "relay.refusals": self.refusals or None,
            "relay.time_to_commit": self.time_to_commit,
            "relay.largest_gap": self.largest_gap,
            "relay.duration": self.duration,
            "relay.bytes_sent": self.bytes_sent,
            "relay.pings": self.pings,
            "relay.caller": self.caller,
            "relay.caller_id": self.caller_id,
            "relay.limits_store_away": True if self.limits_store_away else None,
            "relay.request_id": self.request_id,
            "relay.invocation_id": self.invocation_id,
        }
        return {
            name: round(value, 9 if name == "relay.cost" else 6) if isinstance(value, float) else value
            for name, value in attributes.items()
            if value is not None
        }


class _Reporter(Protocol):
    def report(self, record: Record) -> None: ...


class _Lines:
    """One line of JSON a stream, on stdout."""

    def report(self, record: Record) -> None:
        _print({"event": "stream", **record.attributes()})


class _OpenTelemetry:
    """A span and metrics a stream, through the SDK that is set up in this process.

    The names are those of the conventions' `docs/gen-ai/client-inference.md`, `gen-ai-token-metrics.md` and
    `client-embeddings.md`; what is neither inference nor embeddings has `gen_ai.client.operation.duration`.
    """

    def __init__(self) -> None:
        from opentelemetry import metrics, trace

        self._trace = trace
        self._tracer = trace.get_tracer("relay")
        meter = metrics.get_meter("relay")

        def histogram(name: str, unit: str, description: str, bounds: list[float]) -> Any:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        seconds = [0.01 * 2**power for power in range(14)]
        tokens = [4.0**power for power in range(14)]
        self._durations = {
            kind: histogram(f"gen_ai.client.{kind}.duration", "s", "Duration of a request", seconds)
            for kind in ("inference", "embeddings", "operation")
        }
        self._first = histogram(
            "gen_ai.client.inference.time_to_first_chunk", "s", "Time to the first output of a stream", seconds
        )
        self._tokens_of = {
            name: histogram(f"gen_ai.client.{name}", "{token}", "Tokens of a request", tokens)
            for name in (
                "inference.operation.input_tokens",
                "inference.operation.output_tokens",
                "embeddings.operation.input_tokens",
            )
        }
        self._usage = {
            member: meter.create_counter(f"gen_ai.client.inference.usage.{name}", "{token}", "Tokens used")
            for member, name in _USAGE_COUNTERS.items()
        }

    def report(self, record: Record) -> None:
        attributes = record.attributes()
        ended = time.time_ns()
        # The stream's task has inherited the context that the worker set for the invocation.
        span = self._tracer.start_span(
            f"{record.operation} {record.model}" if record.model else record.operation,
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=ended - int(record.duration * 1e9),
        )
        if not span.is_recording():
            # Left out by a sampler (a caller's `traceparent` can cause that): the stream is recorded all the same.
            _Lines().report(record)
        if record.outcome == "failed":
            span.set_status(self._trace.StatusCode.ERROR, record.code)
        span.end(ended)
        common: dict[str, Any] = {name: attributes[name] for name in _METRIC_ATTRIBUTES if name in attributes}
        if record.caller_is_named:
            common["relay.caller"] = record.caller
        kind = _KINDS.get(record.operation, "operation")
        self._durations[kind].record(record.duration, common)
        usage = record.usage
        if kind == "embeddings" and usage is not None:
            self._tokens_of["embeddings.operation.input_tokens"].record(usage.input_tokens, common)
        if kind != "inference":
            return
        if record.stream and record.time_to_first_token is not None:
            self._first.record(record.time_to_first_token, common)
        if usage is not None:
            self._tokens_of["inference.operation.input_tokens"].record(usage.input_tokens, common)
            self._tokens_of["inference.operation.output_tokens"].record(usage.output_tokens, common)
        # The model service does not break the usage down by modality.
        counted = {**common, "gen_ai.token.modality": "unknown"}
        if record.usage_estimated:
            counted["relay.usage_estimated"] = True
        used = {"input_tokens": 0, "output_tokens": 0} if usage is None else usage.members()
        for member, count in used.items():
            self._usage[member].add(count, counted)


# By the operation; a name that the conventions do not have is an operation of the app's own.
_KINDS: Final = {"chat": "inference", "compact_response": "inference", "embeddings": "embeddings"}

_USAGE_COUNTERS: Final = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "reasoning_tokens": "reasoning.output_tokens",
    "cached_tokens": "cache_read.input_tokens",
    "cache_write_tokens": "cache_write.input_tokens",
}

# Attributes of few values only: a metric is kept per combination.
_METRIC_ATTRIBUTES: Final = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
    "error.type",
    "relay.outcome",
    "relay.backend",
)

_reporter: _Reporter | None = None


def report(record: Record) -> None:
    """Record a stream that has ended."""
    global _reporter
    if _reporter is None:
        _reporter = _OpenTelemetry() if _sdk_is_set_up() else _Lines()
    _reporter.report(record)


def _sdk_is_set_up() -> bool:
    """Whether a span that is started now is exported: the API alone, without an SDK, drops it silently."""
    trace = sys.modules.get("opentelemetry.trace")
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    return trace is not None and sdk is not None and isinstance(trace.get_tracer_provider(), sdk.TracerProvider)


def log_setting_error(setting: str, message: str) -> None:
    """Log a wrong app setting and the remedy."""
    _print({"event": "not_configured", "setting": setting, "message": message})


def log_refused_additions(backend: str, refused: list[str]) -> None:
    """Log which of this app's additions a deployment refuses."""
    _print({"event": "refused_additions", "relay.backend": backend, "relay.refused_additions": refused})


def log_proxy(proxy: str) -> None:
    """Log that requests to the model service go through a proxy, whose address has no credentials in it."""
    _print({"event": "proxy", "relay.proxy": proxy})


def log_not_stopped(request_id: str, response_id: str, reason: str) -> None:
    """Log that the model service did not stop a response; its id is no secret, as it is read with a credential only."""
    _log_response("not_stopped", request_id, response_id, reason)


def log_left_behind(request_id: str, response_id: str, reason: str) -> None:
    """Log that the model service did not delete a response: it keeps the prompt and the answer until they expire."""
    _log_response("left_behind", request_id, response_id, reason)


def _log_response(event: str, request_id: str, response_id: str, reason: str) -> None:
    _print(
        {
            "event": event,
            "gen_ai.response.id": response_id,
            "relay.reason": reason,
            "relay.request_id": request_id,
        }
    )


def log_rejection(request_id: str, invocation_id: str, code: str, caller: str | None = None) -> None:
    """Log a request that was rejected before a backend was asked; `caller`: who sent it, where that is known."""
    _print(
        {
            "event": "refused",
            "relay.code": code,
            **({} if caller is None else {"relay.caller": caller}),
            "relay.request_id": request_id,
            "relay.invocation_id": invocation_id,
        }
    )


def log_internal_error(request_id: str, invocation_id: str, error: Exception) -> None:
    """Log a fault of this app's that kept a stream from beginning."""
    _print(
        {
            "event": "crash",
            "relay.reason": error_location(error),
            "relay.request_id": request_id,
            "relay.invocation_id": invocation_id,
        }
    )


_QUIET: Final = 60.0  # seconds between two lines of what anyone can cause, however often: each line is billed

_not_admitted = 0  # not logged yet
_not_admitted_logged = -_QUIET


def log_not_admitted(invocation_id: str) -> None:
    """Log that a request had no valid key; the first is logged at once, the following ones once a minute, counted."""
    global _not_admitted, _not_admitted_logged
    _not_admitted += 1
    now = time.monotonic()
    if now - _not_admitted_logged < _QUIET:
        return
    _not_admitted_logged = now
    _print({"event": "not_admitted", "relay.requests": _not_admitted, "relay.invocation_id": invocation_id})
    _not_admitted = 0


_MOST_OVER_LIMIT: Final = 1000  # callers that are counted at a time
_over_limit: dict[str, tuple[int, float]] = {}  # of a caller, what is not logged yet, and when it last was


def log_over_limit(caller: str, invocation_id: str) -> None:
    """Log that a caller is over a limit of its own: the first time at once, then once a minute, counted."""
    count, logged = _over_limit.get(caller, (0, -_QUIET))
    now = time.monotonic()
    if now - logged < _QUIET:
        _over_limit[caller] = (count + 1, logged)
        return
    if len(_over_limit) >= _MOST_OVER_LIMIT:
        _over_limit.clear()
    _over_limit[caller] = (0, now)
    _print(
        {
            "event": "over_limit",
            "relay.caller": caller,
            "relay.requests": count + 1,
            "relay.invocation_id": invocation_id,
        }
    )


_limits_store_away_logged = -_QUIET


def log_limits_store_away(reason: str) -> None:
    """Log that limits are held by each instance's own count, since their store does not answer; once a minute."""
    global _limits_store_away_logged
    now = time.monotonic()
    if now - _limits_store_away_logged >= _QUIET:
        _limits_store_away_logged = now
        _print({"event": "limits_store_away", "relay.reason": reason})


_missing_halves: dict[str, int] = {}  # not logged yet, by which half is missing
_missing_halves_logged = -_QUIET


def log_missing_half(half: str, invocation_id: str) -> None:
    """Log an invocation that ended since one half of it never arrived: `http_request` or `invocation`.

    The first is logged at once, the following ones once a minute, counted by half.
    """
    global _missing_halves_logged
    _missing_halves[half] = _missing_halves.get(half, 0) + 1
    now = time.monotonic()
    if now - _missing_halves_logged < _QUIET:
        return
    _missing_halves_logged = now
    _print({"event": "missing_half", "relay.missing": dict(_missing_halves), "relay.invocation_id": invocation_id})
    _missing_halves.clear()


def error_location(error: Exception) -> str:
    """The type of the error and where it was raised, without its text, which can hold anything."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def silence_noisy_loggers() -> None:
    """Silence the libraries' line per request: each would be a billed trace and has an address in it."""
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _print(members: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(members).decode() + "\n")
    sys.stdout.flush()
