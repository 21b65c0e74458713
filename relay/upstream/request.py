"""One request to a model deployment, and what this app adds to the caller's own parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What a wire asks of a deployment.

    `path` is below the model service's base address. `parameters` are the members of the JSON body, all but the
    deployment's name. `stream`: an event stream is expected. `fields` maps those parameters that were made of a
    caller's field of another name to that field, so that an error can name it.
    """

    path: str
    parameters: dict[str, Any]
    stream: bool
    fields: Mapping[str, str] = field(default_factory=dict)

    def estimated_input_tokens(self) -> int:
        """An estimate for an answer whose usage was never received: a token of a prompt is about four bytes."""
        return len(msgspec.json.encode(self.parameters.get("messages"))) // 4


def chat_additions(
    *,
    stream: bool,
    max_output_tokens: int,
    stream_options: Mapping[str, Any] | None = None,
    output_limits: Mapping[str, int] | None = None,
    choices: int = 1,
) -> dict[str, Any]:
    """The parameters that this app decides in a chat completion request: the only place that adds any.

    A stream is always asked for its usage. `max_output_tokens` caps the answer as a whole, while the model service
    counts for each of the `choices`. A limit of the caller's in `output_limits` keeps its name, as a model may know
    only one of the two.
    """
    cap = max(1, max_output_tokens // choices)
    additions: dict[str, Any] = {
        name: min(limit, cap) for name, limit in (output_limits or {"max_completion_tokens": cap}).items()
    }
    if stream:
        additions["stream_options"] = {**(stream_options or {}), "include_usage": True}
    return additions
