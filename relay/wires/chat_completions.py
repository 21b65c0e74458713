"""What a caller of `/v1/chat/completions` may ask: all that the model takes, but for what this app decides.

The body goes on as it came, value by value; only the model's name, the output limit and the request for usage are this
app's own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.completion import Reading, VerbatimCompletion, WholeCompletion
from relay.formats import Format, OpenAIDocument, OpenAIEvents
from relay.problems import INVALID_JSON, INVALID_REQUEST, FieldError, Problem

_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_LIMITS: Final = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Chat:
    """The body of `POST /v1/chat/completions` (OpenAI API reference, "Create chat completion").

    `members` are all of the body's, as they stood in it; the others are what this app reads of them.
    """

    members: dict[str, Raw]
    model: str | None
    stream: bool
    stream_options: dict[str, Any]
    limits: dict[str, int]
    choices: int

    @property
    def reading(self) -> Callable[[], Reading]:
        """How the answer is read."""
        return VerbatimCompletion if self.stream else WholeCompletion

    def form(self, accept: str | None) -> Format:
        """How the answer is written; OpenAI's wire has no other forms to accept."""
        if not self.stream:
            return OpenAIDocument()
        return OpenAIEvents(include_usage=self.stream_options.get("include_usage") is True)

    def parameters(self, *, max_output_tokens: int) -> dict[str, Any]:
        """The upstream's parameters, all but the model's name."""
        parameters: dict[str, Any] = dict(self.members)
        if self.stream:
            parameters["stream_options"] = {**self.stream_options, "include_usage": True}
        # A limit keeps the name that the caller gave it: a model may know only one of the two.
        # The cap is for the answer as a whole, and the model service counts for each of its choices.
        cap = max(1, max_output_tokens // self.choices)
        limits = self.limits or {"max_completion_tokens": cap}
        parameters.update((name, min(limit, cap)) for name, limit in limits.items())
        return parameters


def read(body: bytes) -> Chat | Problem:
    """What the body asks for, or the problem that names each field and the mend. What this app does not decide is the
    model service's to judge."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        members = _members(body)
    except (msgspec.ValidationError, TypeError):
        return INVALID_REQUEST.because("The body must be one JSON object with messages in it.")
    except (ValueError, RecursionError):
        return INVALID_JSON.because('Send one JSON object in UTF-8, with "model" and "messages".')
    reading = _Reading(members)
    chat = Chat(
        members=members,
        model=reading.text("model"),
        stream=reading.truth("stream"),
        stream_options=reading.options("stream_options"),
        limits={name: limit for name in _LIMITS if (limit := reading.count(name)) is not None},
        choices=reading.count("n") or 1,
    )
    if "messages" not in members:
        reading.complain("messages", "is required")
    return INVALID_REQUEST.at(*reading.errors) if reading.errors else chat


def _members(body: bytes) -> dict[str, Raw]:
    """The members of the JSON object, each as it stands in the body.

    Raises ValueError for what is no JSON (msgspec's and the decoding's errors are of that kind), and
    msgspec.ValidationError or TypeError for what is no object.
    """
    text = body.decode()
    try:
        return _decode_members(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # msgspec refuses half a surrogate pair, which is JSON all the same (RFC 8259, section 8.2).
        if not isinstance(_JSON.decode(text), dict):
            raise TypeError from None
    members: dict[str, Raw] = {}
    at = text.index("{") + 1
    while text[at := _past_space(text, at)] != "}":
        name, at = _JSON.raw_decode(text, at)
        begin = _past_space(text, _past_space(text, at) + 1)
        _, at = _JSON.raw_decode(text, begin)
        name.encode()  # a name has to be written again, and half a surrogate pair in it can't be
        members[name] = Raw(text[begin:at].encode())
        at = _past_space(text, at)
        at += text[at] == ","
    return members


def _past_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_JSON: Final = json.JSONDecoder(parse_constant=_no_constant)


class _Reading:
    """The members that this app reads; null is as good as absent, as it is for OpenAI's own service."""

    def __init__(self, members: dict[str, Raw]) -> None:
        self._members = members
        self.errors: list[FieldError] = []

    def complain(self, name: str, message: str) -> None:
        self.errors.append(FieldError(name, message))

    def text(self, name: str) -> str | None:
        value = self._value(name)
        if value is not None and (not isinstance(value, str) or not value):
            self.complain(name, "must be a string and not empty")
            return None
        return value

    def truth(self, name: str) -> bool:
        value = self._value(name)
        if value is not None and not isinstance(value, bool):
            self.complain(name, "must be true or false")
        return value is True

    def options(self, name: str) -> dict[str, Any]:
        value = self._value(name)
        if value is not None and not isinstance(value, dict):
            self.complain(name, "must be a JSON object")
            return {}
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            self.complain(name, "must not hold half a surrogate pair")
        return value or {}

    def count(self, name: str) -> int | None:
        value = self._value(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.complain(name, "must be a whole number greater than 0")
            return None
        return value

    def _value(self, name: str) -> Any:
        raw = self._members.get(name)
        try:
            return None if raw is None else _JSON.decode(bytes(raw).decode())
        except (ValueError, RecursionError):  # a number of thousands of digits, say
            self.complain(name, "can't be read")
            return None


def models(names: tuple[str, ...], since: int) -> bytes:
    """The list that `GET /v1/models` answers with; `since`, in Unix seconds, is when this app began to serve them."""
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": since, "owned_by": "azure-openai"} for name in names],
        }
    )
