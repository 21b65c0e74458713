"""`POST /chat/completions`: Azure OpenAI's v1 chat completions, streamed or as one document.

The shapes follow https://learn.microsoft.com/azure/ai-foundry/openai/reference and what the service was seen to send:
its prompt filter's results come first, in a chunk of empty `choices`, and every content chunk carries filter results.
"""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Annotated, Any

import msgspec

from local.model_service import text_generation
from local.model_service.content_filter import filter_results, prompt_filter_results
from local.model_service.deployments import is_reasoning, model_name
from local.model_service.encoding import Document, as_json
from local.model_service.errors import ErrorResponse, error_object, invalid_request
from local.model_service.reply import Reply
from local.model_service.schema_values import value_for_schema
from local.model_service.steps import DONE, Event, Headers, Step, Token
from local.model_service.wires.base import GenerationWire

_REASONING_TOKENS = 64  # what a reasoning model reports


class ChatCompletions(GenerationWire):
    """The wire: from a request to its reply."""

    path = "/chat/completions"

    def validate(self, body: Document) -> ErrorResponse | None:
        if not body.get("messages"):
            return invalid_request("missing_required_parameter", "Missing required parameter: 'messages'.", "messages")
        try:
            deployment = msgspec.convert(body, _Request).model
        except msgspec.ValidationError as problem:
            where = re.search(r"`\$\.(\w+)", str(problem))
            return invalid_request("invalid_type", f"Invalid request: {problem}.", where[1] if where else None)
        return _reasoning_error(body) if is_reasoning(deployment) else None

    def reply(self, body: Document, fixed_answer: Sequence[str] | None) -> Reply | ErrorResponse:
        try:
            choices = _choices(body, fixed_answer)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
            # All that can be wrong here is a JSON schema: one that contradicts or contains itself.
            return invalid_request("invalid_json_schema", "Invalid schema.", "response_format")
        streams = body.get("stream") is True
        options = body.get("stream_options") or {}
        return ChatReply(
            model=model_name(body["model"]),
            choices=choices,
            prompt_tokens=text_generation.count_prompt_tokens(body["messages"]),
            reasoning_tokens=_REASONING_TOKENS if is_reasoning(body["model"]) else 0,
            include_usage=streams and options.get("include_usage") is True,
            obfuscate=streams and options.get("include_obfuscation") is not False,
            logprobs=body.get("logprobs") is True,
            top_logprobs=min(int(body.get("top_logprobs") or 0), 4),
        )


# ── The request ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None


class _JSONSchema(msgspec.Struct):
    name: str
    schema: dict[str, Any]


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _JSONSchema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


type _TokenLimit = Annotated[int, msgspec.Meta(ge=1)]


class _Request(msgspec.Struct):
    """The types of the members that this service uses; it does not look at the others."""

    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_completion_tokens: _TokenLimit | None = None
    max_tokens: _TokenLimit | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: _ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None


def _reasoning_error(body: Document) -> ErrorResponse | None:
    """The error of a parameter that reasoning models don't take."""
    if body.get("max_tokens") is not None:
        return invalid_request(
            "unsupported_parameter",
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "max_tokens",
        )
    for name in ("temperature", "top_p"):
        if body.get(name) not in (None, 1):
            return invalid_request(
                "unsupported_value",
                f"Unsupported value: '{name}' does not support {body[name]} with this model. "
                "Only the default (1) value is supported.",
                name,
            )
    return None


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model; the arguments are JSON, cut into tokens."""

    name: str
    arguments: Sequence[str]
    id: str = field(default_factory=lambda: "call_" + secrets.token_urlsafe(18))


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: its tokens or a tool call, and why it ended; `filtered`: the categories that stopped it."""

    tokens: Sequence[str]
    finish_reason: str
    call: ToolCall | None = None
    filtered: Mapping[str, str] = field(default_factory=dict)

    @property
    def written(self) -> Sequence[str]:
        """What is streamed token by token: the answer, or the arguments of the call."""
        return self.call.arguments if self.call else self.tokens


def _choices(body: Document, fixed_answer: Sequence[str] | None) -> list[Choice]:
    if fixed_answer is None and (call := _tool_call(body)):
        return [Choice((), "tool_calls", call)]
    return [
        _limited(body, fixed_answer, _text(body, variant) if fixed_answer is None else "")
        for variant in range(body.get("n") or 1)
    ]


def _tool_call(body: Document) -> ToolCall | None:
    """The tool call that answers the request: one tool is called when the last message is the user's."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice == "none" or body["messages"][-1]["role"] != "user":
        return None
    functions = [tool["function"] for tool in tools if tool["type"] == "function"]
    if isinstance(choice, dict):
        functions = [one for one in functions if one["name"] == choice.get("function", {}).get("name")]
    if not functions:
        return None
    schema = functions[0].get("parameters") or {"type": "object"}
    arguments = value_for_schema(schema, text_generation.last_user_text(body["messages"]))
    return ToolCall(functions[0]["name"], text_generation.tokenize(as_json(arguments).decode()))


def _text(body: Document, variant: int) -> str:
    """The whole answer, before any limit: text, or JSON if the request wants that."""
    messages = body["messages"]
    wanted = body.get("response_format") or {}
    prompt = text_generation.last_user_text(messages)
    if wanted.get("type") == "json_schema":
        return as_json(value_for_schema(wanted["json_schema"]["schema"], prompt)).decode()
    if wanted.get("type") == "json_object":
        answer = text_generation.compose(messages, variant=variant)
        return as_json({"answer": answer, "topics": text_generation.topics(prompt)}).decode()
    if messages[-1]["role"] == "tool":
        return text_generation.answer_from_tools(messages)
    return text_generation.compose(messages, variant=variant)


def _limited(body: Document, tokens: Sequence[str] | None, text: str) -> Choice:
    """The answer up to the first stop sequence and the token limit."""
    reason = "stop"
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if stops:
        text = text if tokens is None else "".join(tokens)
        ends = [text.find(stop) for stop in stops if stop in text]
        if ends:
            text, tokens = text[: min(ends)], None
    if tokens is None:
        tokens = text_generation.tokenize(text)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit and len(tokens) > limit:
        tokens, reason = tokens[:limit], "length"
    return Choice(tokens, reason)


# ── The response ─────────────────────────────────────────────────────────────────────────────────────────────────────


class ChatReply(Reply):
    """What all the chunks, or the one document, of a response agree on, and how each is made."""

    done_events = (DONE,)

    def __init__(
        self,
        *,
        model: str,
        choices: Sequence[Choice],
        prompt_tokens: int,
        reasoning_tokens: int = 0,
        include_usage: bool = False,
        obfuscate: bool = True,
        logprobs: bool = False,
        top_logprobs: int = 0,
    ) -> None:
        super().__init__(model)
        self.id = "chatcmpl-" + self.request_id
        self.fingerprint = "fp_" + f"{sum(map(ord, model)) * 2654435761 % 2**40:010x}"
        self.choices = choices
        self.include_usage = include_usage
        self.obfuscate = obfuscate
        self.logprobs = logprobs
        self.top_logprobs = top_logprobs
        self._prompt_tokens = prompt_tokens
        self._reasoning_tokens = reasoning_tokens
        self._around_token: dict[tuple[int, bool, bool], tuple[bytes, bytes]] = {}

    @property
    def token_counts(self) -> Sequence[int]:
        return [len(choice.written) for choice in self.choices]

    @property
    def usage(self) -> Document:
        """The count of tokens, of the prompt and of all choices together."""
        completion = sum(self.token_counts) + self._reasoning_tokens
        return {
            "completion_tokens": completion,
            "completion_tokens_details": {
                "accepted_prediction_tokens": 0,
                "audio_tokens": 0,
                "reasoning_tokens": self._reasoning_tokens,
                "rejected_prediction_tokens": 0,
            },
            "prompt_tokens": self._prompt_tokens,
            "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
            "total_tokens": self._prompt_tokens + completion,
        }

    def stop_by_filter(self, tokens: int) -> None:
        self.choices = [
            Choice(choice.tokens[:tokens], "content_filter", filtered={"violence": "medium"}) for choice in self.choices
        ]

    # One document

    def document(self) -> Document:
        return {
            "choices": [self._whole_choice(index, choice) for index, choice in enumerate(self.choices)],
            "created": self.created,
            "id": self.id,
            "model": self.model,
            "object": "chat.completion",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": prompt_filter_results()}],
            "system_fingerprint": self.fingerprint,
            "usage": self.usage,
        }

    def _whole_choice(self, index: int, choice: Choice) -> Document:
        message: Document = {"annotations": [], "content": "".join(choice.tokens), "refusal": None, "role": "assistant"}
        if choice.call:
            function = {"name": choice.call.name, "arguments": "".join(choice.call.arguments)}
            message |= {
                "content": None,
                "tool_calls": [{"id": choice.call.id, "type": "function", "function": function}],
            }
        return {
            "content_filter_results": {} if choice.call else filter_results(**choice.filtered),
            "finish_reason": choice.finish_reason,
            "index": index,
            "logprobs": {"content": [self._logprob(token) for token in choice.tokens], "refusal": None}
            if self.logprobs
            else None,
            "message": message,
        }

    # A stream

    def stream(self) -> Iterator[Step]:
        yield Headers()
        yield self.prompt_filter()
        for index in range(len(self.choices)):
            yield self.role(index)
        if len(self.choices) == 1:
            tool = self.choices[0].call is not None
            for text in self.choices[0].written:
                yield Token(text, 0, tool)
        else:
            for row in zip_longest(*(choice.written for choice in self.choices)):
                for index, text in enumerate(row):
                    if text is not None:
                        yield Token(text, index, self.choices[index].call is not None)
        for index in range(len(self.choices)):
            yield self.finish(index)
        if self.include_usage:
            yield self.usage_event()
        yield DONE

    def chunk(self, *choices: Document, **members: Any) -> bytes:
        """One chunk with these choices; further members stand beside them."""
        chunk: Document = {"choices": list(choices), "created": self.created, "id": self.id, "model": self.model}
        chunk |= {"object": "chat.completion.chunk", "system_fingerprint": self.fingerprint}
        if self.include_usage:
            chunk["usage"] = None
        return as_json(chunk | members, escape=self.escape)

    def delta(self, delta: Document, choice: int = 0, *, finish_reason: str | None = None, **members: Any) -> bytes:
        """One chunk of one choice."""
        members.setdefault("content_filter_results", {})
        members |= {"delta": delta, "finish_reason": finish_reason, "index": choice, "logprobs": None}
        return self.chunk(dict(sorted(members.items())))

    def prompt_filter(self) -> Event:
        """The first event of a stream. Azure leaves its id, model and time empty."""
        results = [{"prompt_index": 0, "content_filter_results": prompt_filter_results()}]
        empty = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": results}
        return Event("filter", as_json(empty))

    def role(self, index: int) -> Event:
        """The event that begins a choice, and its tool call."""
        call = self.choices[index].call
        if call is None:
            return Event("role", self.delta({"content": "", "refusal": None, "role": "assistant"}, index))
        function = {"arguments": "", "name": call.name}
        calls = [{"function": function, "id": call.id, "index": 0, "type": "function"}]
        return Event("role", self.delta({"content": None, "role": "assistant", "tool_calls": calls}, index))

    def finish(self, index: int) -> Event:
        """The event that ends a choice."""
        choice = self.choices[index]
        filtered = filter_results(**choice.filtered) if choice.filtered else {}
        chunk = self.delta({}, index, finish_reason=choice.finish_reason, content_filter_results=filtered)
        return Event("finish", chunk)

    def failed_finish_event(self) -> Event:
        error = error_object("500", "The generation failed.", kind="server_error")
        return Event("odd", self.delta({"content": ""}, finish_reason="error", error=error))

    def usage_event(self) -> Event:
        """The event that a request asks for with `stream_options.include_usage`."""
        return Event("usage", self.chunk(usage=self.usage))

    def text_event(self, text: str | None) -> Event:
        return Event("content", self.delta({"content": text}))

    def raw_text_event(self, literal: bytes) -> Event:
        return Event("odd", b'{"choices":[{"delta":{"content":%b},"finish_reason":null,"index":0}]}' % literal)

    def filter_event(self, checked: int, written: int) -> Event:
        offsets = {"check_offset": checked, "start_offset": checked, "end_offset": written}
        choice = {"content_filter_offsets": offsets, "content_filter_results": filter_results(), "index": 0}
        empty = {"created": 0, "id": "", "model": "", "object": ""}
        return Event("filter", as_json({"choices": [choice | {"finish_reason": None}], **empty}))

    def token(self, token: Token) -> bytes:
        # The hot path: all of the chunk except the text is made only once.
        if self.logprobs and not token.tool:
            logprobs = {"content": [self._logprob(token.text)], "refusal": None}
            choice = {"content_filter_results": filter_results(), "delta": {"content": token.text}}
            return self.chunk(choice | {"finish_reason": None, "index": token.choice, "logprobs": logprobs})
        around = self._around_token.get((token.choice, token.tool, self.filter_each_token))
        if around is None:
            around = self._prepare_token(token)
        text = token.text
        if self.escape or not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
            encoded = as_json(text, escape=self.escape)
        else:
            encoded = b'"%b"' % text.encode()
        if self.obfuscate:
            # Random padding to whole blocks hides the text's length from an observer; here it needs no secrecy.
            return b'%b%b%b"%b"}' % (around[0], encoded, around[1], _PADDING[: 16 - len(encoded) % 16])
        return around[0] + encoded + around[1]

    def _prepare_token(self, token: Token) -> tuple[bytes, bytes]:
        mark = "\ue000token\ue000"
        delta: Document = {"content": mark}
        if token.tool:
            delta = {"tool_calls": [{"function": {"arguments": mark}, "index": 0}]}
        filtered = filter_results() if self.filter_each_token and not token.tool else {}
        whole = self.delta(delta, token.choice, content_filter_results=filtered)
        before, after = whole.split(as_json(mark, escape=self.escape))
        if self.obfuscate:
            after = after[:-1] + b',"obfuscation":'
        around = self._around_token[token.choice, token.tool, self.filter_each_token] = (before, after)
        return around

    def _logprob(self, token: str) -> Document:
        def entry(text: str, logprob: float) -> Document:
            return {"token": text, "bytes": list(text.encode("utf-8", "surrogatepass")), "logprob": logprob}

        others = [
            entry(text, -2.0 - place) for place, text in enumerate((" the", " a", " one", " it")[: self.top_logprobs])
        ]
        likely = -(sum(map(ord, token)) % 100) / 100
        return entry(token, likely) | {"top_logprobs": ([entry(token, likely)] if self.top_logprobs else []) + others}


_PADDING = b"q7Zk2VxR9mTc4LwE"
