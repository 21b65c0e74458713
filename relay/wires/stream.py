"""`POST /stream`: what a caller may ask, and the upstream request made of it."""

import re
from itertools import islice
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Raw
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, FailFast, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from relay.problems import INVALID_JSON, INVALID_REQUEST, FieldError, Problem
from relay.streaming.events import Decoder, Encoder
from relay.upstream.request import OUTPUT_LIMITS, UpstreamRequest, chat_additions
from relay.wires.chat_completions import UPSTREAM_PATH
from relay.wires.chat_decoders import TextDecoder
from relay.wires.stream_encoders import JSONDocumentEncoder, encoder_for

MAX_MESSAGES: Final = 2048  # Azure OpenAI's own limit of one conversation


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str


def _input_kind(value: Any) -> str | None:
    """Which of its two kinds `input` is of, so that errors concern that one alone."""
    return "text" if isinstance(value, str) else "conversation" if isinstance(value, list) else None


# Not white space in both dialects of regular expressions, JSON Schema's (ECMA-262) and this validator's (Rust), which
# differ in two characters.
Text = Annotated[str, Field(pattern=r"[^\s\x85\uFEFF]")]
# Stop at the first wrong message: listing a megabyte of wrong ones would block the event loop.
Conversation = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES), FailFast()]


def _integral(value: Any) -> Any:
    """348.0 is a whole number as much as 348 is (JSON Schema, validation, section 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class StreamRequest(_Strict):
    """The body of `POST /stream`; the names follow OpenAI's Responses API where it has one."""

    input: Annotated[
        Annotated[Text, Tag("text")] | Annotated[Conversation, Tag("conversation")], Discriminator(_input_kind)
    ]
    instructions: str | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_output_tokens: Annotated[int, Field(gt=0), BeforeValidator(_integral)] | None = None
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    stream: bool = True

    @property
    def response_id(self) -> None:
        """No stored response is named."""

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; the output limit is the lower of the caller's and the app's."""
        messages: list[dict[str, str]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages.extend({"role": message.role, "content": message.content} for message in self.input)
        parameters: dict[str, Any] = {"messages": messages, "stream": True}
        for name in ("temperature", "top_p", "reasoning_effort"):
            if (value := getattr(self, name)) is not None:
                parameters[name] = value
        additions = chat_additions(stream=True, max_output_tokens=max_output_tokens, limit=self.max_output_tokens)
        fields = _FIELDS if self.max_output_tokens is None else _FIELDS_WITH_LIMIT
        return UpstreamRequest(UPSTREAM_PATH, parameters | additions.parameters(), True, fields, additions)

    def decoder(self) -> Decoder:
        """A decoder of the answer's text: always of a stream, also where the response is one document."""
        return TextDecoder()

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response, for an `Accept` header."""
        return encoder_for(accept) if self.stream else JSONDocumentEncoder()


# The fields that the upstream's parameters are made of.
_FIELDS: Final = {
    "messages": "input",
    "temperature": "temperature",
    "top_p": "top_p",
    "reasoning_effort": "reasoning_effort",
}
_FIELDS_WITH_LIMIT: Final = _FIELDS | dict.fromkeys(OUTPUT_LIMITS, "max_output_tokens")

_MESSAGES: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request; leave it out",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "model_type": "must be a JSON object",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must not be empty",
    "too_short": "must not be empty",
    "finite_number": "must be a finite number",
    "union_tag_invalid": "must be a string or a list of messages",
    "union_tag_not_found": "must be a string or a list of messages",
}

_MAX_ERRORS: Final = 20  # so that the response to a hostile request is never a multiple of it
_MAX_FIELD_LENGTH: Final = 100

# The validator takes 3 µs for each wrong member, and 0.3 µs for each element of a value of the wrong kind: a longer
# body is pruned of these first.
_SHORT: Final = 16 * 1024  # bytes

_NO_OBJECT: Final = 'The body must be one JSON object, for example {"input": "write a haiku"}.'


def parse(body: bytes) -> StreamRequest | Problem:
    """What the body asks for, or the problem that names each field and the remedy.

    A byte order mark, as some shells write one, is ignored (RFC 8259, section 8.1, allows it).
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    if not body.strip():
        return INVALID_JSON.with_detail(
            'The body is empty. Send one JSON object, for example {"input": "write a haiku"}.'
        )
    if len(body) > _SHORT:
        pruned = _prune(body)
        if isinstance(pruned, Problem):
            return pruned
        body = pruned
    try:
        return StreamRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return INVALID_JSON
    if errors[0]["type"] == "model_type" and not errors[0]["loc"]:
        return INVALID_REQUEST.with_detail(_NO_OBJECT)
    return INVALID_REQUEST.with_errors(
        *dict.fromkeys(FieldError(_field(error), _message(error)) for error in errors[:_MAX_ERRORS])
    )


class _MessageMembers(msgspec.Struct, forbid_unknown_fields=True):
    """The members of a message, not yet validated."""

    role: Raw
    content: Raw


_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_messages: Final = msgspec.json.Decoder(list[_MessageMembers]).decode  # ends at the first wrong message
_EMPTY: Final = {b"{": Raw(b"{}"), b"[": Raw(b"[]")}


def _prune(body: bytes) -> bytes | Problem:
    """The same request, of which the validator has to report only so much as errors can name; or the problem."""
    try:
        members = _decode_members(body)
        known = {name: _emptied(members[name]) for name in StreamRequest.model_fields if name in members}
        if known.get("input") is _EMPTY[b"["]:
            messages = _decode_messages(members["input"])[: MAX_MESSAGES + 1]
            for message in messages:
                message.role, message.content = _emptied(message.role), _emptied(message.content)
            known["input"] = Raw(msgspec.json.encode(messages))
    except msgspec.ValidationError as error:
        found = re.search(r"\$\[([0-9]+)\]", str(error))
        if found is None:
            return INVALID_REQUEST.with_detail(_NO_OBJECT)
        return INVALID_REQUEST.with_errors(
            FieldError(f"input[{found[1]}]", 'must be {"role": "…", "content": "…"} without other fields')
        )
    except (msgspec.DecodeError, RecursionError):
        return INVALID_JSON
    unknown = (name for name in members if name not in known)
    return msgspec.json.encode(known | dict.fromkeys(islice(unknown, _MAX_ERRORS)))


def _emptied(value: Raw) -> Raw:
    """The value; of an object or a list, which none of the fields is but `input`, an empty one."""
    return _EMPTY.get(bytes(memoryview(value)[:1]), value)


def _field(error: ErrorDetails) -> str:
    """`input[2].role`, as a caller would write it."""
    steps = error["loc"]
    if steps[0] == "input":
        steps = steps[:1] + steps[2:]  # the second step is the kind of the input, not a field
    name = ""
    for step in steps:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name[:_MAX_FIELD_LENGTH]


def _message(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"must be greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "too_long":
            return f"must have at most {context['max_length']} messages"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case kind:
            return _MESSAGES.get(kind, error["msg"])
