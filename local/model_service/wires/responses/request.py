"""The request for a response: its types, and the error of a wrong one in OpenAI's form."""

import re
from typing import Annotated, Any, Literal, Self

import msgspec

from local.model_service.deployments import is_embedding, is_reasoning
from local.model_service.encoding import Document
from local.model_service.errors import ErrorResponse, invalid_request, wrong_operation

MIN_OUTPUT_TOKENS = 16


class RequestError(Exception):
    """A request that can't be carried out, with the response to it."""

    def __init__(self, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.response = invalid_request(code, message, param)

    @classmethod
    def of(cls, response: ErrorResponse) -> Self:
        """With a response that there is already."""
        rejected = cls(None, "")
        rejected.response = response
        return rejected


def missing(param: str) -> RequestError:
    """The error of a parameter that is not there."""
    return RequestError("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


class _Reasoning(msgspec.Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class _Format(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _Tool(msgspec.Struct):
    type: Literal[
        "function",
        "custom",
        "file_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "computer",
        "computer_use_preview",
        "mcp",
        "code_interpreter",
        "image_generation",
        "local_shell",
        "shell",
        "apply_patch",
        "tool_search",
        "namespace",
    ]
    name: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _NamedTool(msgspec.Struct):
    type: str
    name: str | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[_NamedTool] | None = None


class _StreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


type _MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
type _MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]
type _Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """All parameters of the API; those of type `Any` are accepted and change nothing."""

    model: str
    input: str | list[dict[str, Any]] | None = None
    instructions: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: list[_Includable] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], msgspec.Meta(max_length=16)] | None = None
    client_metadata: dict[str, str] | None = (
        None  # in no reference; Codex CLI sends it to Azure too (openai/codex#17910)
    )
    max_output_tokens: int | None = None
    max_tool_calls: Annotated[int, msgspec.Meta(ge=1)] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: _Reasoning | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    text: _Text | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _ToolChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    service_tier: Any = None
    prompt: Any = None
    conversation: Any = None
    context_management: Any = None
    moderation: Any = None


class _CompactRequest(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    service_tier: Any = None


def example(body: Document) -> Document:
    """A valid request in the place of any: of its parameters only those that no value makes wrong."""
    text = body.get("input")
    flags = {name: True for name in ("stream", "background") if body.get(name) is True}
    return {"model": body["model"], "input": text if isinstance(text, str) and text else "Hello"} | flags


def check(body: Document) -> None:
    """Raise `RequestError` for the first thing that is wrong in a request beside its items."""
    _check_types(body, _Request)
    _check_input(body)
    limit = body.get("max_output_tokens")
    if limit is not None and limit < MIN_OUTPUT_TOKENS:
        raise RequestError(
            "integer_below_min_value",
            f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= {MIN_OUTPUT_TOKENS}, but "
            f"got {limit} instead.",
            "max_output_tokens",
        )
    if body.get("background") and body.get("store") is False:
        raise RequestError("invalid_value", "Background mode requires 'store' to be true.", "background")
    if body.get("stream_options") is not None and body.get("stream") is not True:
        raise RequestError(None, "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    _check_format(body)
    _check_tools(body)
    _check_model(body)


def check_compaction(body: Document) -> None:
    """The same for a request to compact a conversation."""
    _check_types(body, _CompactRequest)
    _check_input(body)


def operation_error(deployment: str) -> ErrorResponse | None:
    """The error of a deployment whose model does not respond."""
    return wrong_operation("responses", deployment) if is_embedding(deployment) else None


def _check_types(body: Document, kind: type[msgspec.Struct]) -> None:
    for moved, to in (("messages", "input"), ("response_format", "text.format"), ("max_tokens", "max_output_tokens")):
        if moved in body:
            raise RequestError(
                "unsupported_parameter",
                f"Unsupported parameter: '{moved}'. In the Responses API, this parameter has moved to '{to}'.",
                moved,
            )
    try:
        msgspec.convert(body, kind)
    except msgspec.ValidationError as problem:
        text, _, place = str(problem).partition(" - at `$")
        param = place.rstrip("`").removeprefix(".").removesuffix("[...]")
        if absent := re.match(r"Object missing required field `(\w+)`", text):
            param = f"{param}.{absent[1]}".lstrip(".")
            raise missing(param) from problem
        if unknown := re.match(r"Object contains unknown field `(.+)`", text):
            raise RequestError("unknown_parameter", f"Unknown parameter: '{unknown[1]}'.", unknown[1]) from problem
        if bound := re.search(r"`(int|float)` ([<>])=", text):
            number = "integer" if bound[1] == "int" else "decimal"
            code = f"{number}_{'above_max' if bound[2] == '<' else 'below_min'}_value"
        else:
            code = "invalid_value" if "enum" in text or "length" in text else "invalid_type"
        raise RequestError(code, f"Invalid '{param}': {text[0].lower()}{text[1:]}.", param or None) from problem


def _check_input(body: Document) -> None:
    if body.get("input") in (None, []) and not body.get("previous_response_id") and not body.get("prompt"):
        raise missing("input")
    previous = body.get("previous_response_id")
    if previous is not None and not previous.startswith("resp_"):
        raise RequestError(
            "invalid_value",
            f"Invalid 'previous_response_id': '{previous}'. Expected an ID that begins with 'resp'.",
            "previous_response_id",
        )


def _check_format(body: Document) -> None:
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("type") != "json_schema":
        return
    for member in ("name", "schema"):
        if not wanted.get(member):
            raise missing(f"text.format.{member}")


def _check_tools(body: Document) -> None:
    functions = []
    for index, tool in enumerate(body.get("tools") or []):
        if tool["type"] != "function":
            continue
        if not tool.get("name"):
            raise missing(f"tools[{index}].name")
        functions.append(tool["name"])
    choice = body.get("tool_choice")
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise RequestError(
            "invalid_value",
            f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', and 'required'.",
            "tool_choice",
        )
    if choice == "required" and not body.get("tools"):
        raise RequestError(None, "Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function" and choice.get("name") not in functions:
        raise RequestError(
            None, f"Tool choice 'function' not found in 'tools' parameter: {choice.get('name')!r}.", "tool_choice"
        )


def _check_model(body: Document) -> None:
    model = body["model"]
    if is_reasoning(model):
        for name in ("temperature", "top_p"):
            if body.get(name) not in (None, 1):
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                raise RequestError("unsupported_parameter", message, name)
    elif body.get("reasoning") and re.match(r"gpt-[34]", model):
        for name in ("effort", "summary"):
            if body["reasoning"].get(name) is not None:
                param = f"reasoning.{name}"
                message = f"Unsupported parameter: '{param}' is not supported with this model."
                raise RequestError("unsupported_parameter", message, param)
