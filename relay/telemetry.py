"""The record of one stream: a line of JSON on stdout. Never a prompt, an answer, a key or a URL.

`logging` inside a response is dropped by the worker or filed under another request; a line on stdout that carries the
invocation's id is not.
"""

import sys
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from relay.completion import Usage


@dataclass(slots=True)
class Record:
    """What one stream was, gathered while it lives. Times are in seconds since the request was read.

    `outcome` is `completed`, `failed` or `cancelled`; `code` is the problem's; `refusals` are those of the deployments
    that another one made good.
    """

    request_id: str
    invocation_id: str
    operation: str
    model: str
    outcome: str = "failed"
    status: int = 0
    code: str | None = None
    reason: str | None = None
    finish_reason: str | None = None
    response_model: str | None = None
    backend: str | None = None
    attempts: int = 0
    refusals: list[str] = field(default_factory=list)
    time_to_commit: float | None = None
    time_to_first_token: float | None = None
    largest_gap: float = 0.0
    duration: float = 0.0
    usage: Usage | None = None
    output_tokens_estimated: int | None = None
    bytes_sent: int = 0
    pings: int = 0

    def report(self) -> None:
        """Put it on record."""
        members: dict[str, Any] = {"event": "stream"}
        for name in _NAMES:
            value = getattr(self, name)
            if isinstance(value, Usage):
                members.update(value.members())
            elif value is not None and value != []:
                members[name] = round(value, 4) if isinstance(value, float) else value
        _print(members)


_NAMES = tuple(entry.name for entry in fields(Record))


def complain(setting: str, message: str) -> None:
    """Put a wrong setting on record, with its mend."""
    _print({"event": "not_configured", "setting": setting, "message": message})


def _print(members: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(members).decode() + "\n")
    sys.stdout.flush()
