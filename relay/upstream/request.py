"""One request to a model deployment, and what this app adds to the caller's own parameters."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

import msgspec

from relay.problems import Problem


class Accounts(enum.Enum):
    """In place of a model's name: a request that concerns no deployment but the accounts themselves."""

    EVERY = enum.auto()


ModelName = str | Literal[Accounts.EVERY] | None  # None: the default model

STREAM_OPTIONS: Final = "stream_options"
# The names of an output limit. OpenAI's reasoning models refuse the second; servers such as Ollama, DeepSeek and
# llama-cpp-python know only the second and ignore the first (mozilla-ai/any-llm#867, abetlen/llama-cpp-python#1907).
OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens")
RESPONSE_OUTPUT_LIMIT: Final = "max_output_tokens"
OWNER: Final = "relay_caller"  # in the metadata of a response in the background: whose it is
MIN_RESPONSE_OUTPUT: Final = 16  # the least output limit that the Responses API accepts


@dataclass(frozen=True, slots=True)
class Refused:
    """What a deployment refuses of this app's additions: parameters by name, and output limits above `most` tokens."""

    names: frozenset[str] = frozenset()
    most: int | None = None

    def __or__(self, other: Self) -> Self:
        most = min((it.most for it in (self, other) if it.most is not None), default=None)
        return replace(self, names=self.names | other.names, most=most)

    def __bool__(self) -> bool:
        return bool(self.names) or self.most is not None

    def descriptions(self) -> list[str]:
        """For the log and `GET /ready`."""
        limit = [] if self.most is None else [f"an output limit above {self.most}"]
        return [*sorted(self.names), *limit]


NOTHING: Final = Refused()


@dataclass(frozen=True, slots=True)
class Additions:
    """What this app decides in one request (see `chat_additions` and `response_additions`).

    `cap`: the highest output limit, in tokens for each choice; `limit_names` are the names of that limit in this API.
    `named_limits` are the caller's own limits under the names that the caller chose; `limit` is one whose name this app
    chooses. `stream`: its usage is to be requested. `stream_options` are the caller's own.
    """

    stream: bool
    cap: int
    limit: int | None = None
    named_limits: Mapping[str, int] = field(default_factory=dict)
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    limit_names: tuple[str, ...] = OUTPUT_LIMITS

    def parameters(self, refused: Refused = NOTHING, *, both_limits: bool = False) -> dict[str, Any]:
        """The parameters for a deployment that refuses these; `both_limits`: the limit goes under both of its names."""
        parameters: dict[str, Any] = {
            name: self._capped(limit, refused.most) for name, limit in self.named_limits.items()
        }
        parameters |= self._added_limits(refused, both_limits=both_limits)
        if self.adds_usage and STREAM_OPTIONS not in refused.names:
            parameters[STREAM_OPTIONS] = {**self.stream_options, "include_usage": True}
        return parameters

    @property
    def decided(self) -> tuple[str, ...]:
        """The names of all parameters that `parameters` may give."""
        return (*self.limit_names, STREAM_OPTIONS) if self.stream else self.limit_names

    @property
    def adds_usage(self) -> bool:
        """Whether this app requests the usage, and the caller did not."""
        return self.stream and self.stream_options.get("include_usage") is not True

    @property
    def caps(self) -> bool:
        """Whether the limit is this app's: the caller set none, or one above the cap."""
        limits = self.named_limits.values() or ([] if self.limit is None else [self.limit])
        return not limits or any(limit > self.cap for limit in limits)

    def _capped(self, limit: int | None, most: int | None) -> int:
        """The caller's own limit, where it is below the cap, is left to the deployment to judge."""
        if limit is not None and limit <= self.cap:
            return limit
        return self.cap if most is None else min(self.cap, most)

    def _added_limits(self, refused: Refused, *, both_limits: bool) -> dict[str, int]:
        """The limit under the names that the caller did not choose."""
        names: Iterable[str] = self.limit_names if both_limits else self.limit_names[:1]
        if not self.named_limits:
            names = [name for name in names if name not in refused.names] or [
                name for name in self.limit_names if name not in refused.names
            ]
            return dict.fromkeys(names, self._capped(self.limit, refused.most))
        new, old = OUTPUT_LIMITS
        if both_limits and new in self.named_limits and old not in self.named_limits and old not in refused.names:
            return {old: self._capped(self.named_limits[new], refused.most)}
        return {}


def chat_additions(
    *,
    stream: bool,
    max_output_tokens: int,
    limit: int | None = None,
    stream_options: Mapping[str, Any] | None = None,
    output_limits: Mapping[str, int] | None = None,
    choices: int = 1,
) -> Additions:
    """The parameters that this app decides in a chat completion request: the only place that adds any.

    A stream is always asked for its usage. `max_output_tokens` caps the answer as a whole, while the model service
    counts for each of the `choices`. A limit of the caller's in `output_limits` keeps its name, as a model may know
    only one of the two; `limit` is a caller's limit that has no name of the upstream's yet.
    """
    cap = max(1, max_output_tokens // choices)
    return Additions(stream, cap, limit, output_limits or {}, stream_options or {})


def response_additions(*, max_output_tokens: int, limit: int | None) -> Additions:
    """The same for a request to create a response: the only place that adds any.

    A cap below the API's own minimum is raised to it; a caller's `limit` below it is left for the model service to
    refuse.
    """
    return Additions(
        stream=False,
        cap=max(max_output_tokens, MIN_RESPONSE_OUTPUT),
        named_limits={} if limit is None else {RESPONSE_OUTPUT_LIMIT: limit},
        limit_names=(RESPONSE_OUTPUT_LIMIT,),
    )


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What a wire asks of a deployment.

    `path` is below the model service's base address, with the query if there is one. `parameters` are the members of
    the JSON body, all but the deployment's name, with the `additions` as they are for a deployment that refuses none of
    them; None where the request has no body. `stream`: an event stream is expected. `fields` maps those parameters that
    were made of a caller's field of another name to that field, so that an error can name it. `not_found` is what the
    status 404 means, where it is not the deployment or the address that is missing. `operation` is its name in the
    record (`gen_ai.operation.name`). `creates_response`: the account keeps the answer under its id, and later requests
    that name it go there. `counts_usage`: False where the tokens are in another request's record, or none are spent.
    `image_bytes`: how much of the prompt is images, whose length tells nothing of their tokens.
    """

    path: str
    parameters: dict[str, Any] | None
    stream: bool
    fields: Mapping[str, str] = field(default_factory=dict)
    additions: Additions | None = None
    method: Literal["POST", "GET", "DELETE"] = "POST"
    not_found: Problem | None = None
    operation: str = "chat"
    creates_response: bool = False
    counts_usage: bool = True
    image_bytes: int = 0

    def without(self, refused: Refused, *, both_limits: bool = False) -> Self:
        """The same request for a deployment that refuses these of its additions."""
        if self.additions is None or self.parameters is None or not (refused or both_limits):
            return self
        kept = {name: value for name, value in self.parameters.items() if name not in self.additions.decided}
        if self.additions.stream_options:
            kept[STREAM_OPTIONS] = self.additions.stream_options
        return replace(self, parameters=kept | self.additions.parameters(refused, both_limits=both_limits))

    def estimated_input_tokens(self) -> int:
        """An estimate for an answer whose usage was never received: a token of a prompt is about four bytes."""
        parameters = self.parameters or {}
        prompt = [parameters[name] for name in _PROMPT if name in parameters] or [None]
        return (sum(len(msgspec.json.encode(part)) for part in prompt) - self.image_bytes) // 4


_PROMPT: Final = ("messages", "instructions", "input")  # the parameters that hold the prompt
