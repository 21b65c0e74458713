"""`POST /chat/completions`: Azure OpenAI's v1 chat completions, streamed or as one document.

The shapes follow https://learn.microsoft.com/azure/ai-foundry/openai/reference and what the service was seen to send:
its prompt filter's results come first, in a chunk of empty `choices`, and every content chunk carries filter results.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Annotated, Any, Literal

import msgspec

from local.model_service import answers, text_generation
from local.model_service.answers import REASONING_TOKENS, SCHEMA_ERRORS, ToolCall
from local.model_service.content_filter import filter_results, prompt_filter_results
from local.model_service.deployments import has_chat, is_reasoning, model_name
from local.model_service.encoding import Document, as_json
from local.model_service.errors import ErrorResponse, error_object, invalid_request, wrong_operation
from local.model_service.reply import Reply
from local.model_service.steps import DONE, Event, Headers, Step, Token, TokenKind
from local.model_service.wires.base import GenerationWire


class ChatCompletions(GenerationWire):
    """The wire: from a request to its reply."""

    name = "chat"
    path = "/chat/completions"

    def validate(self, body: Document) -> ErrorResponse | None:
        if not has_chat(body["model"]):
            return wrong_operation("chatCompletion", body["model"])
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
        except SCHEMA_ERRORS:
            # All that can be wrong here is a JSON schema.
            return invalid_request("invalid_json_schema", "Invalid schema.", "response_format")
        streams = body.get("stream") is True
        options = body.get("stream_options") or {}
        return ChatReply(
            model=model_name(body["model"]),
            choices=choices,
            prompt_tokens=text_generation.count_prompt_tokens(body["messages"]),
            reasoning_tokens=REASONING_TOKENS if is_reasoning(body["model"]) else 0,
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
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
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
class Choice:
    """One answer: its tokens or tool calls, and why it ended; `filtered`: the categories that stopped it."""

    tokens: Sequence[str]
    finish_reason: str
    calls: Sequence[ToolCall] = ()
    filtered: Mapping[str, str] = field(default_factory=dict)
    refused: bool = False

    @property
    def kind(self) -> TokenKind:
        """What its tokens are."""
        return "arguments" if self.calls else "refusal" if self.refused else "text"

    @property
    def written(self) -> Sequence[tuple[str, int]]:
        """What is streamed token by token: the answer, or the arguments of each call; with the call's index."""
        if self.calls:
            return [(text, index) for index, call in enumerate(self.calls) for text in call.arguments]
        return [(text, 0) for text in self.tokens]


def _choices(body: Document, fixed_answer: Sequence[str] | None) -> list[Choice]:
    prompt = _prompt(body)
    if fixed_answer is None and (calls := answers.tool_calls(prompt)):
        return [Choice((), "tool_calls", calls)] * (body.get("n") or 1)
    stops = body.get("stop") or []
    limit: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    choices = []
    for variant in range(body.get("n") or 1):
        tokens = text_generation.tokenize(answers.text(prompt, variant)) if fixed_answer is None else fixed_answer
        tokens = answers.stopped(tokens, [stops] if isinstance(stops, str) else stops)
        over = limit is not None and len(tokens) > limit
        choices.append(Choice(tokens[:limit] if over else tokens, "length" if over else "stop"))
    return choices


def _prompt(body: Document) -> answers.Prompt:
    choice: Any = body.get("tool_choice") or "auto"
    functions = [
        answers.Function(tool["function"]["name"], tool["function"].get("parameters"))
        for tool in body.get("tools") or []
        if tool["type"] == "function"
    ]
    if isinstance(choice, dict):
        functions = [one for one in functions if one.name == choice.get("function", {}).get("name")]
        choice = "required"
    wanted = body.get("response_format") or {}
    return answers.Prompt(
        messages=body["messages"],
        functions=functions,
        calls=choice,
        parallel_calls=body.get("parallel_tool_calls") is not False,
        json_schema=wanted["json_schema"]["schema"] if wanted.get("type") == "json_schema" else None,
        json_object=wanted.get("type") == "json_object",
    )


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
        self._around_token: dict[tuple[int, TokenKind, int, bool], tuple[bytes, bytes]] = {}

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

    def refuse(self) -> None:
        self.choices = [replace(choice, refused=True) for choice in self.choices]

    def stop_by_limit(self, tokens: int) -> None:
        self.choices = [
            replace(choice, tokens=choice.tokens[:tokens], finish_reason="length") for choice in self.choices
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
        if choice.refused:
            message |= {"content": None, "refusal": message["content"]}
        if choice.calls:
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in choice.calls
            ]
            message |= {"content": None, "tool_calls": calls}
        return {
            "content_filter_results": {} if choice.calls else filter_results(**choice.filtered),
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
        begun = [0] * len(self.choices)  # the last tool call of each choice that was begun
        for row in zip_longest(*(choice.written for choice in self.choices)):
            for index, written in enumerate(row):
                if written is None:
                    continue
                text, call = written
                if call > begun[index]:
                    begun[index] = call
                    yield self.call(index, call)
                yield Token(text, index, self.choices[index].kind, call)
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
        if not self.choices[index].calls:
            return Event("role", self.delta({"content": "", "refusal": None, "role": "assistant"}, index))
        calls = [self._empty_call(index, 0)]
        return Event("role", self.delta({"content": None, "role": "assistant", "tool_calls": calls}, index))

    def call(self, index: int, call: int) -> Event:
        """The event that begins a tool call after the first one of a choice."""
        return Event("role", self.delta({"tool_calls": [self._empty_call(index, call)]}, index))

    def _empty_call(self, index: int, call: int) -> Document:
        made = self.choices[index].calls[call]
        return {"function": {"arguments": "", "name": made.name}, "id": made.id, "index": call, "type": "function"}

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

    def malformed_event(self) -> Event:
        return Event("odd", b'{"choices":[{"delta":{"content":"cut off mid')

    def text_event(self, text: str | None) -> Event:
        return Event("content", self.delta({"content": text}))

    def reasoning_event(self, text: str) -> Event:
        return Event("odd", self.delta({"reasoning_content": text}))

    def raw_text_event(self, literal: bytes) -> Event:
        return Event("odd", b'{"choices":[{"delta":{"content":%b},"finish_reason":null,"index":0}]}' % literal)

    def filter_event(self, checked: int, written: int) -> Event:
        offsets = {"check_offset": checked, "start_offset": checked, "end_offset": written}
        choice = {"content_filter_offsets": offsets, "content_filter_results": filter_results(), "index": 0}
        empty = {"created": 0, "id": "", "model": "", "object": ""}
        return Event("filter", as_json({"choices": [choice | {"finish_reason": None}], **empty}))

    def token(self, token: Token) -> bytes:
        # The hot path: all of the chunk except the text is made only once.
        if self.logprobs and token.kind == "text":
            logprobs = {"content": [self._logprob(token.text)], "refusal": None}
            choice = {"content_filter_results": filter_results(), "delta": {"content": token.text}}
            return self.chunk(choice | {"finish_reason": None, "index": token.choice, "logprobs": logprobs})
        around = self._around_token.get((token.choice, token.kind, token.part, self.filter_each_token))
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
        if token.kind == "arguments":
            delta = {"tool_calls": [{"function": {"arguments": mark}, "index": token.part}]}
        elif token.kind == "refusal":
            delta = {"refusal": mark}
        filtered = filter_results() if self.filter_each_token and token.kind == "text" else {}
        whole = self.delta(delta, token.choice, content_filter_results=filtered)
        before, after = whole.split(as_json(mark, escape=self.escape))
        if self.obfuscate:
            after = after[:-1] + b',"obfuscation":'
        around = self._around_token[token.choice, token.kind, token.part, self.filter_each_token] = (before, after)
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
