"""What the simulated model answers to a prompt, on any wire: text, JSON for a schema, or calls of tools."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from local.model_service import text_generation
from local.model_service.encoding import as_json
from local.model_service.schema_values import quoted, value_for_schema
from local.model_service.text_generation import Message

REASONING_TOKENS = 64  # what a reasoning model reports

# What a schema that contradicts or contains itself raises.
SCHEMA_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)

_SEVERAL_CALLS = re.compile(r"\b(?:parallel|(?:each|every|all|both) (?:of )?(?:the )?(?:tool|function)s?)\b", re.I)


@dataclass(frozen=True, slots=True)
class Function:
    """A tool that the model can call, and the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, whatever wire it came by.

    `messages` are those of chat completions. `calls`: whether the model may or must call one of the functions.
    `json_schema`: of the JSON that is wanted as the answer; `json_object`: any JSON.
    """

    messages: Sequence[Message]
    functions: Sequence[Function] = ()
    calls: Literal["none", "auto", "required"] = "auto"
    parallel_calls: bool = True
    json_schema: Mapping[str, Any] | None = None
    json_object: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model; the arguments are JSON, cut into tokens."""

    name: str
    arguments: Sequence[str]
    id: str = field(default_factory=lambda: "call_" + secrets.token_urlsafe(18))


def tool_calls(prompt: Prompt) -> list[ToolCall]:
    """The calls that answer the prompt: of the first function when the last message is the user's, or one is required.

    A prompt that asks for parallel calls, or for each tool, gets a call of every function.
    """
    if not prompt.functions or prompt.calls == "none":
        return []
    if prompt.calls == "auto" and prompt.messages[-1].get("role") != "user":
        return []
    text = text_generation.last_user_text(prompt.messages)
    several = prompt.parallel_calls and _SEVERAL_CALLS.search(text)
    return [_call(function, text) for function in (prompt.functions if several else prompt.functions[:1])]


def text(prompt: Prompt, variant: int = 0) -> str:
    """The whole answer, before any limit: text, or JSON if the prompt wants that."""
    messages = prompt.messages
    asked = text_generation.last_user_text(messages)
    if prompt.json_schema is not None:
        return as_json(value_for_schema(prompt.json_schema, asked)).decode()
    if prompt.json_object:
        if members := [name for name in quoted(asked) if name.isidentifier()]:
            return as_json({name: text_generation.sentence(messages, name) for name in members}).decode()
        answer = text_generation.compose(messages, variant=variant)
        return as_json({"answer": answer, "topics": text_generation.topics(asked)}).decode()
    if messages[-1].get("role") == "tool":
        return text_generation.answer_from_tools(messages)
    return text_generation.compose(messages, variant=variant)


def stopped(tokens: Sequence[str], stops: Sequence[str]) -> Sequence[str]:
    """The tokens before the first of the stop sequences."""
    if not stops:
        return tokens
    text = "".join(tokens)
    ends = [text.find(stop) for stop in stops if stop in text]
    return text_generation.tokenize(text[: min(ends)]) if ends else tokens


def _call(function: Function, text: str) -> ToolCall:
    """The call with the arguments that are required, as models leave the others out; with all where none is."""
    schema = function.schema or {"type": "object"}
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and required and isinstance(properties, Mapping):
        schema = {**schema, "properties": {name: one for name, one in properties.items() if name in required}}
    arguments = value_for_schema(schema, text)
    return ToolCall(function.name, text_generation.tokenize(as_json(arguments).decode()))
