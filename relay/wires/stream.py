"""`POST /stream`: what a caller may ask. The upstream request made of it is in one module for each upstream wire."""

import re
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Raw
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from relay.problems import INVALID_JSON, INVALID_REQUEST, FieldError, Problem
from relay.settings import TEXT_WIRES, Wire
from relay.streaming.call import UpstreamCall
from relay.streaming.events import Encoder
from relay.wires.stream_encoders import JSONDocumentEncoder, encoder_for
from relay.wires.stream_on_chat import ChatCall
from relay.wires.stream_on_responses import ResponsesCall

MAX_MESSAGES: Final = 2048  # Azure OpenAI's own limit of one conversation
MAX_PARTS: Final = 64  # of one message; Azure OpenAI takes 50 images in one request
MAX_URL_LENGTH: Final = 8192  # characters of an image's address; many servers take no longer one

# An address without a name and a password in it, or a data URL (RFC 2397) of a type that models read; for what is not
# white space see `Text`.
_IMAGE_URL: Final = (
    r"^(https://[^\s\x85\uFEFF/?#@\\]+([/?#][^\s\x85\uFEFF]*)?"
    r"|data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2})$"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _kind(value: Any) -> str | None:
    """Which of its two kinds an input is of, so that errors concern that one alone."""
    return "(text)" if isinstance(value, str) else "(list)" if isinstance(value, list) else None


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["input_text"]
    text: str


def _within_length(url: str) -> str:
    if len(url) > MAX_URL_LENGTH and not url.startswith("data:"):
        raise PydanticCustomError("url_too_long", f"must have at most {MAX_URL_LENGTH} characters, or be a data URL")
    return url


class ImagePart(_Strict):
    """An image in a message: at an address from which the model service fetches it, or in the request itself."""

    type: Literal["input_image"]
    image_url: Annotated[
        str,
        Field(
            pattern=_IMAGE_URL,
            json_schema_extra={"anyOf": [{"maxLength": MAX_URL_LENGTH}, {"pattern": "^data:"}]},
        ),
        AfterValidator(_within_length),
    ]
    detail: Literal["auto", "low", "high"] | None = None


def _of_user(parts: list[Any], info: ValidationInfo) -> list[Any]:
    if info.data.get("role", "user") != "user":
        raise PydanticCustomError("parts_of_another", "must be a string; only a message of the user may be a list")
    return parts


Parts = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
    Field(min_length=1, max_length=MAX_PARTS),
    FailFast(),
    AfterValidator(_of_user),
]


class Message(_Strict):
    """One message of a conversation. Only a user's may be a list of parts, which can be images."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"required": ["content"], "properties": {"content": {"type": "array"}}},
            "then": {"properties": {"role": {"const": "user"}}},
        }
    )

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Annotated[str, Tag("(text)")] | Annotated[Parts, Tag("(list)")], Discriminator(_kind)]


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

    input: Annotated[Annotated[Text, Tag("(text)")] | Annotated[Conversation, Tag("(list)")], Discriminator(_kind)]
    instructions: str | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_output_tokens: Annotated[int, Field(gt=0), BeforeValidator(_integral)] | None = None
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    reasoning_summary: Literal["auto", "concise", "detailed"] | None = None
    stream: bool = True
    resumable: bool = False

    @property
    def response_id(self) -> None:
        """No stored response is named."""

    @property
    def wires(self) -> tuple[Wire, ...]:
        """Any by which a model generates text."""
        return TEXT_WIRES

    def on(self, wire: Wire) -> UpstreamCall:
        """The request by this wire."""
        return _CALLS[wire](self)

    @property
    def image_bytes(self) -> int:
        """The length of all images' addresses and data URLs."""
        if isinstance(self.input, str):
            return 0
        lists = [message.content for message in self.input if not isinstance(message.content, str)]
        return sum(len(part.image_url) for parts in lists for part in parts if isinstance(part, ImagePart))

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response, for an `Accept` header."""
        if self.stream:
            return encoder_for(accept)
        return JSONDocumentEncoder(reasoning=self.reasoning_summary is not None)


# How a request is sent by each upstream wire, and its answer read. To a model of embeddings none is sent.
_CALLS: Final[dict[Wire, Callable[[StreamRequest], UpstreamCall]]] = {
    "chat": ChatCall,
    "responses": ResponsesCall,
    "embeddings": ChatCall,
}

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
    "too_short": "must not be empty",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must not be empty",
    "dict_type": "must be a JSON object",
}
_KINDS: Final = ("(text)", "(list)")
_PART_TYPES: Final = ("input_text", "input_image")
_NO_PART: Final = "must be 'input_text' or 'input_image'"
_NO_IMAGE: Final = (
    "must be an https:// address, or a data URL of a png, jpeg, gif or webp image in base64, such as "
    "data:image/png;base64,…"
)

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


_ABSENT: Final = Raw(b"null")


class _PartMembers(msgspec.Struct, forbid_unknown_fields=True):
    """The members of a part of a message, not yet validated."""

    type: Raw
    text: Raw = _ABSENT
    image_url: Raw = _ABSENT
    detail: Raw = _ABSENT

    def given(self) -> dict[str, Raw]:
        """Those that are there, without the values of objects and lists."""
        members = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: _emptied(value) for name, value in members.items() if value is not _ABSENT}


_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
# These end at the first wrong element.
_decode_messages: Final = msgspec.json.Decoder(list[_MessageMembers]).decode
_decode_parts: Final = msgspec.json.Decoder(list[_PartMembers]).decode
_EMPTY: Final = {b"{": Raw(b"{}"), b"[": Raw(b"[]")}


def _prune(body: bytes) -> bytes | Problem:
    """The same request, of which the validator has to report only so much as errors can name; or the problem."""
    where, expected = "", ""
    try:
        members = _decode_members(body)
        known = {name: _emptied(members[name]) for name in StreamRequest.model_fields if name in members}
        if known.get("input") is _EMPTY[b"["]:
            where, expected = "input", '{"role": "…", "content": "…"} without other fields'
            messages = _decode_messages(members["input"])[: MAX_MESSAGES + 1]
            expected = '{"type": "input_text", "text": "…"} or {"type": "input_image", "image_url": "…"}'
            for number, message in enumerate(messages):
                where = f"input[{number}].content"
                message.role, message.content = _emptied(message.role), _pruned_content(message.content)
            known["input"] = Raw(msgspec.json.encode(messages))
    except msgspec.ValidationError as error:
        found = re.search(r"\$\[([0-9]+)\]", str(error))
        if found is None:
            return INVALID_REQUEST.with_detail(_NO_OBJECT)
        return INVALID_REQUEST.with_errors(FieldError(f"{where}[{found[1]}]", f"must be {expected}"))
    except (msgspec.DecodeError, RecursionError):
        return INVALID_JSON
    unknown = (name for name in members if name not in known)
    return msgspec.json.encode(known | dict.fromkeys(islice(unknown, _MAX_ERRORS)))


def _pruned_content(content: Raw) -> Raw:
    if _emptied(content) is not _EMPTY[b"["]:
        return _emptied(content)
    return Raw(msgspec.json.encode([part.given() for part in _decode_parts(content)[: MAX_PARTS + 1]]))


def _emptied(value: Raw) -> Raw:
    """The value; of an object or a list, which none of the fields is but `input`, an empty one."""
    return _EMPTY.get(bytes(memoryview(value)[:1]), value)


def _field(error: ErrorDetails) -> str:
    """`input[2].role`, as a caller would write it."""
    steps: list[int | str] = []
    before: int | str = ""
    for step in error["loc"]:
        of_input, of_part = before in ("input", "content"), isinstance(before, int) and "content" in steps
        if not (of_input and step in _KINDS) and not (of_part and step in _PART_TYPES):  # a kind is no field
            steps.append(step)
        before = step
    if error["type"].startswith("union_tag") and isinstance(steps[-1], int):
        steps.append("type")
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
            return f"must have at most {context['max_length']} {'parts' if 'content' in error['loc'] else 'messages'}"
        case "string_pattern_mismatch" if context["pattern"] == _IMAGE_URL:
            return _NO_IMAGE
        case "union_tag_invalid":
            return _NO_PART
        case "union_tag_not_found" if isinstance(error["loc"][-1], int):
            return _NO_PART
        case "union_tag_not_found":
            return f"must be a string or a list of {'parts' if error['loc'][-1] == 'content' else 'messages'}"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case kind:
            return _MESSAGES.get(kind, error["msg"])
