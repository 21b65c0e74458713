"""The worker's output for people: one line for each stream; of what the web server says about itself, nothing."""

import json
import re
import time
from typing import Any

# uvicorn's lines about its start and end; the address in them is the worker's own, which is of no use to a caller.
_WEB_SERVER_LINE = re.compile(r"INFO:     \S")


def readable(line: str) -> str | None:
    """The line as a person reads it; None for one that says nothing to a person."""
    if _WEB_SERVER_LINE.match(line):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict) or not isinstance(event := record.get("event"), str):
        return line
    text = _stream(record) if event == "stream" else _other(event, record)
    request = record.get("relay.request_id")
    return f"{time.strftime('%H:%M:%S')}  {text}" + (f"  request {request}" if request else "")


def _stream(record: dict[str, Any]) -> str:
    parts = [str(record.get("gen_ai.request.model") or record.get("gen_ai.operation.name"))]
    reason = ": ".join(str(record[name]) for name in ("relay.code", "relay.reason") if record.get(name))
    parts.append(f"{record.get('relay.outcome')}, {reason}" if reason else str(record.get("relay.outcome")))
    figures = [f"{record.get('relay.duration', 0.0):.2f} s"]
    if (first := record.get("gen_ai.response.time_to_first_chunk")) is not None:
        figures.append(f"first token after {first:.2f} s")
    if (tokens := record.get("gen_ai.usage.output_tokens")) is not None:
        figures.append(f"{record.get('gen_ai.usage.input_tokens')} + {tokens} tokens")
    if record.get("relay.attempts", 1) > 1:
        figures.append(f"{record['relay.attempts']} attempts")
    return "  ".join([*parts, ", ".join(figures)])


def _other(event: str, record: dict[str, Any]) -> str:
    left_out = ("event", "relay.request_id", "relay.invocation_id")
    members = ", ".join(
        f"{name.removeprefix('relay.')} {value}" for name, value in record.items() if name not in left_out
    )
    return f"{event.replace('_', ' ')}  {members}"
