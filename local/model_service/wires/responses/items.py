"""Input items: their normal form as the API lists them, and the conversation that they are."""

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from local.model_service.encoding import Document
from local.model_service.sealing import Seal
from local.model_service.wires.responses.request import RequestError, missing

type FindItem = Callable[[str], Document | None]

_INPUT_PARTS = ("input_text", "input_image", "input_file")
_OUTPUT_PARTS = ("output_text", "refusal")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_REQUIRED = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "item_reference": ("id",),
    "reasoning": ("id", "summary"),
    "compaction": ("encrypted_content",),
}
_OTHERS = (
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "web_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "custom_tool_call",
    "custom_tool_call_output",
)


def new_id(prefix: str) -> str:
    """An id as the service makes them: a prefix and 48 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(24)}"


def normalized(given: str | Sequence[Document] | None, find: FindItem, seal: Seal) -> list[Document]:
    """The input as items, each with an id; a reference is replaced by its item. Raises `RequestError`."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_Reader(f"input[{index}]", find, seal).item(item) for index, item in enumerate(given or ())]


def check_calls(items: Iterable[Document]) -> None:
    """Raise `RequestError` unless each function call has its output, and each output its call before it."""
    calls: dict[str, str] = {}  # those that wait for an output
    for item in items:
        if item["type"] == "function_call":
            calls[item["call_id"]] = item["name"]
        elif item["type"] == "function_call_output":
            call = item["call_id"]
            if calls.pop(call, None) is None:
                raise RequestError(None, f"No tool call found for function call output with call_id {call}.", "input")
    if calls:
        raise RequestError(None, f"No tool output found for function call {next(iter(calls))}.", "input")


def conversation(items: Iterable[Document], instructions: object, seal: Seal) -> list[Document]:
    """The same as messages of chat completions; what is not text, a picture or a file is left out."""
    messages: list[Document] = []
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        match item["type"]:
            case "message":
                messages.append({"role": item["role"], "content": [_chat_part(part) for part in item["content"]]})
            case "function_call_output":
                output = item["output"]
                text = output if isinstance(output, str) else [_chat_part(part) for part in output]
                messages.append({"role": "tool", "content": text, "tool_call_id": item["call_id"]})
            case "function_call":
                messages.append({"role": "assistant", "content": item["arguments"]})
            case "compaction":
                messages.append({"role": "system", "content": seal.open(item["encrypted_content"])})
    return messages


def _chat_part(part: Mapping[str, Any]) -> Document:
    match part["type"]:
        case "input_text" | "output_text":
            return {"type": "text", "text": part["text"]}
        case "input_image":
            return {"type": "image_url", "image_url": {"url": part.get("image_url") or ""}}
        case "input_file":
            return {"type": "file", "file": dict(part)}
        case _:
            return {"type": part["type"]}


class _Reader:
    """Reads one item; `at` is its place in the request."""

    def __init__(self, at: str, find: FindItem, seal: Seal) -> None:
        self.at = at
        self.find = find
        self.seal = seal

    def item(self, item: Document) -> Document:
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind not in (*_PREFIXES, *_REQUIRED, *_OTHERS):
            supported = ", ".join(f"'{one}'" for one in (*_PREFIXES, "item_reference", "compaction", *_OTHERS))
            raise RequestError("invalid_value", f"Invalid value: '{kind}'. Supported values are: {supported}.", self.at)
        for member in _REQUIRED.get(kind, ()):
            if item.get(member) is None:
                raise missing(f"{self.at}.{member}")
        for member in ("id", "call_id", "name", "arguments", "encrypted_content"):
            if not isinstance(item.get(member, ""), str | None):
                at = f"{self.at}.{member}"
                raise RequestError("invalid_type", f"Invalid type for '{at}': expected a string.", at)
        item = {**item, "type": kind}
        match kind:
            case "message":
                return self.message(item)
            case "item_reference":
                return self.stored(item["id"])
            case "reasoning":
                self.check_reasoning(item)
            case "compaction":
                self.open(item)
            case "function_call_output":
                if not isinstance(item["output"], str):
                    self.parts(item["output"], "output", _INPUT_PARTS)
        return {"id": new_id(_PREFIXES.get(kind, "item")), "status": "completed", **_given(item)}

    def message(self, item: Document) -> Document:
        role, content = item.get("role"), item.get("content")
        if role not in ("user", "assistant", "system", "developer"):
            supported = "'assistant', 'system', 'developer', and 'user'"
            raise RequestError(
                "invalid_value", f"Invalid value: '{role}'. Supported values are: {supported}.", f"{self.at}.role"
            )
        text = "output_text" if role == "assistant" else "input_text"
        if isinstance(content, str):
            content = [{"type": text, "text": content}]
        content = self.parts(content, "content", _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS)
        return {"id": new_id("msg"), "status": "completed", **_given(item), "content": content}

    def parts(self, parts: object, member: str, kinds: Sequence[str]) -> list[Document]:
        at = f"{self.at}.{member}"
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise RequestError(
                "invalid_type", f"Invalid type for '{at}': expected a string or an array of objects.", at
            )
        return [self.part(part, f"{at}[{index}]", kinds) for index, part in enumerate(parts)]

    def part(self, part: Document, at: str, kinds: Sequence[str]) -> Document:
        kind = part.get("type")
        if kind not in kinds:
            supported = ", ".join(f"'{one}'" for one in kinds)
            raise RequestError("invalid_value", f"Invalid value: '{kind}'. Supported values are: {supported}.", at)
        match kind:
            case "input_image":
                self.check_image(part, at)
                return {"detail": "auto", **part}
            case "input_file":
                if not any(part.get(member) for member in ("file_data", "file_id", "file_url")):
                    message = f"Missing required parameter: '{at}': one of 'file_data', 'file_id' and 'file_url'."
                    raise RequestError("missing_required_parameter", message, at)
            case "refusal":
                pass
            case _:
                if not isinstance(part.get("text"), str):
                    raise RequestError(
                        "invalid_type", f"Invalid type for '{at}.text': expected a string.", f"{at}.text"
                    )
                if kind == "output_text":
                    return {"annotations": [], "logprobs": [], **part}
        return part

    def check_image(self, part: Document, at: str) -> None:
        url, param = part.get("image_url"), f"{at}.image_url"
        if url is None and part.get("file_id"):
            return
        if not isinstance(url, str):
            raise RequestError("invalid_type", f"Invalid type for '{param}': expected an image URL as a string.", param)
        if inline := re.match(r"data:image/[\w.+-]+;base64,", url):
            try:
                base64.b64decode(url[inline.end() :], validate=True)
            except binascii.Error:
                raise RequestError("invalid_base64_image", f"Invalid base64 data in '{param}'.", param) from None
        elif not url.startswith(("https://", "http://")):
            message = f"Invalid '{param}'. Expected a valid URL, but got a value with an invalid format."
            raise RequestError("invalid_value", message, param)

    def check_reasoning(self, item: Document) -> None:
        if item.get("encrypted_content"):
            self.open(item)
        else:
            self.stored(item["id"])

    def open(self, item: Document) -> None:
        if self.seal.open(item["encrypted_content"]) is None:
            raise RequestError(
                "invalid_encrypted_content",
                f"The encrypted content for item {item.get('id')} could not be verified. Reason: Encrypted content "
                "could not be decrypted or parsed.",
            )

    def stored(self, item_id: str) -> Document:
        found = self.find(item_id)
        if found is None:
            raise RequestError(
                None,
                f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false. Try again "
                "with `store` set to true, or remove this item from your input.",
                "input",
            )
        return found


def _given(item: Document) -> Document:
    """The members that have a value."""
    return {name: value for name, value in item.items() if value is not None}
