"""What a caller of `/stream` may ask, and the upstream parameters made of it."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, FailFast, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from relay.completion import Completion, Reading
from relay.formats import Format, JsonDocument, choose
from relay.problems import INVALID_JSON, INVALID_REQUEST, FieldError, Problem

MAX_MESSAGES = 2048  # Azure OpenAI's own limit of one conversation


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Message(_Asked):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str


def _form(value: Any) -> str | None:
    """Which of its two forms `input` has, so that an error speaks of that one alone."""
    return "text" if isinstance(value, str) else "conversation" if isinstance(value, list) else None


# White space to both dialects, of JSON Schema (ECMA-262) and of this validator (Rust), which differ in two characters.
Text = Annotated[str, Field(pattern=r"[^\s\x85\uFEFF]")]
# The first message that is wrong is enough: a megabyte of wrong ones would take the loop's time to list.
Conversation = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES), FailFast()]


def _whole(value: Any) -> Any:
    """348.0 is a whole number as much as 348 is (JSON Schema, validation, section 6.1.1)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Prompt(_Asked):
    """The body of `POST /stream`; the names follow OpenAI's Responses API where it has one."""

    input: Annotated[Annotated[Text, Tag("text")] | Annotated[Conversation, Tag("conversation")], Discriminator(_form)]
    instructions: str | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_output_tokens: Annotated[int, Field(gt=0), BeforeValidator(_whole)] | None = None
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    stream: bool = True

    @property
    def reading(self) -> Callable[[], Reading]:
        """How the answer is read: always as a stream, also where it is given as one document."""
        return Completion

    def form(self, accept: str | None) -> Format:
        """How the answer is written, for an `Accept` header."""
        return choose(accept) if self.stream else JsonDocument()

    def parameters(self, *, max_output_tokens: int) -> dict[str, Any]:
        """The upstream's parameters, all but the model's name; the output limit is the lower of the two."""
        messages: list[dict[str, str]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages.extend({"role": message.role, "content": message.content} for message in self.input)
        parameters: dict[str, Any] = {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": min(self.max_output_tokens or max_output_tokens, max_output_tokens),
        }
        for name in ("temperature", "top_p", "reasoning_effort"):
            if (value := getattr(self, name)) is not None:
                parameters[name] = value
        return parameters


_MENDS = {
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

_MOST_ERRORS = 20  # a reply is never a multiple of a hostile request
_LONGEST_FIELD = 100


def read(body: bytes) -> Prompt | Problem:
    """What the body asks for, or the problem that names each field and the mend.

    A byte order mark, as some shells write one, is passed over (RFC 8259, section 8.1, allows it).
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    if not body.strip():
        return INVALID_JSON.because('The body is empty. Send one JSON object, for example {"input": "write a haiku"}.')
    try:
        return Prompt.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return INVALID_JSON
    if errors[0]["type"] == "model_type" and not errors[0]["loc"]:
        return INVALID_REQUEST.because('The body must be one JSON object, for example {"input": "write a haiku"}.')
    return INVALID_REQUEST.at(
        *dict.fromkeys(FieldError(_field(error), _mend(error)) for error in errors[:_MOST_ERRORS])
    )


def _field(error: ErrorDetails) -> str:
    """`input[2].role`, as a caller would write it."""
    steps = error["loc"]
    if steps[0] == "input":
        steps = steps[:1] + steps[2:]  # the second step is the form of the input, which is no field
    name = ""
    for step in steps:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name[:_LONGEST_FIELD]


def _mend(error: ErrorDetails) -> str:
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
            return _MENDS.get(kind, error["msg"])
