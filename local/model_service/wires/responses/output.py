"""Output items: what the model answers, cut into tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from local.model_service import answers, text_generation
from local.model_service.answers import REASONING_TOKENS, Function, Prompt
from local.model_service.deployments import is_reasoning
from local.model_service.encoding import Document
from local.model_service.sealing import Seal
from local.model_service.stored_responses import Status
from local.model_service.wires.responses.items import new_id
from local.model_service.wires.responses.request import RequestError


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A reasoning item: the tokens of each part of its summary."""

    parts: Sequence[Sequence[str]] = ()
    encrypted: str | None = None
    id: str = field(default_factory=lambda: new_id("rs"))
    complete: bool = True

    @property
    def count(self) -> int:
        """How many tokens are written."""
        return sum(map(len, self.parts))

    def cut(self, tokens: int) -> "Reasoning":
        """The item up to so many tokens."""
        parts = []
        for part in self.parts:
            parts.append(part[:tokens])
            tokens -= len(parts[-1])
            if tokens <= 0:
                break
        return replace(self, parts=parts, complete=False)

    def begun(self) -> Document:
        """The item before its content."""
        return {"id": self.id, "type": "reasoning", "summary": []} | self._encrypted()

    def document(self) -> Document:
        """The item with its content."""
        summary = [{"type": "summary_text", "text": "".join(part)} for part in self.parts]
        return {"id": self.id, "type": "reasoning", "summary": summary} | self._encrypted()

    def _encrypted(self) -> Document:
        return {} if self.encrypted is None else {"encrypted_content": self.encrypted}


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the assistant; `top_logprobs`: how many alternatives to each token are listed, None: no logprobs."""

    tokens: Sequence[str]
    top_logprobs: int | None = None
    id: str = field(default_factory=lambda: new_id("msg"))
    complete: bool = True
    refused: bool = False

    @property
    def count(self) -> int:
        """How many tokens are written."""
        return len(self.tokens)

    def cut(self, tokens: int) -> "Message":
        """The item up to so many tokens."""
        return replace(self, tokens=self.tokens[:tokens], complete=False)

    def begun(self) -> Document:
        """The item before its content."""
        return {"id": self.id, "type": "message", "status": "in_progress", "content": [], "role": "assistant"}

    def document(self) -> Document:
        """The item with its content."""
        status = "completed" if self.complete else "incomplete"
        return self.begun() | {"status": status, "content": [self.part()]}

    def part(self, *, empty: bool = False) -> Document:
        """Its one content part."""
        tokens = () if empty else self.tokens
        if self.refused:
            return {"type": "refusal", "refusal": "".join(tokens)}
        logprobs = [self.logprob(token, with_bytes=True) for token in tokens] if self.top_logprobs is not None else []
        return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": "".join(tokens)}

    def logprob(self, token: str, *, with_bytes: bool = False) -> Document:
        """The log probability of a token; a stream's events list no bytes."""

        def entry(text: str, logprob: float) -> Document:
            octets = {"bytes": list(text.encode("utf-8", "surrogatepass"))} if with_bytes else {}
            return {"token": text, "logprob": logprob} | octets

        likely = -(sum(map(ord, token)) % 100) / 100
        others = [(token, likely), (" the", -2.0), (" a", -3.0), (" one", -4.0), (" it", -5.0)]
        return entry(token, likely) | {"top_logprobs": [entry(*other) for other in others[: self.top_logprobs or 0]]}


@dataclass(frozen=True, slots=True)
class Call:
    """A function call; the tokens are its arguments."""

    name: str
    tokens: Sequence[str]
    call_id: str
    id: str = field(default_factory=lambda: new_id("fc"))
    complete: bool = True

    @property
    def count(self) -> int:
        """How many tokens are written."""
        return len(self.tokens)

    def cut(self, tokens: int) -> "Call":
        """The item up to so many tokens."""
        return replace(self, tokens=self.tokens[:tokens], complete=False)

    def begun(self) -> Document:
        """The item before its content."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": "in_progress",
            "arguments": "",
            "call_id": self.call_id,
            "name": self.name,
        }

    def document(self) -> Document:
        """The item with its content."""
        status = "completed" if self.complete else "incomplete"
        return self.begun() | {"status": status, "arguments": "".join(self.tokens)}


type OutputItem = Reasoning | Message | Call


@dataclass(frozen=True, slots=True)
class Answer:
    """The output items and how they end; `filtered`: the categories that stopped the answer."""

    items: Sequence[OutputItem]
    reasoning_tokens: int = 0
    status: Status = "completed"
    incomplete_reason: str | None = None
    error: Mapping[str, Any] | None = None
    filtered: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many tokens are written."""
        return sum(item.count for item in self.items)

    @property
    def output_tokens(self) -> int:
        """How many tokens the answer costs: a summary costs nothing, the reasoning behind it does."""
        return self.reasoning_tokens + sum(item.count for item in self.items if not isinstance(item, Reasoning))

    def cut(self, tokens: int, status: Status, **members: Any) -> "Answer":
        """The answer up to so many written tokens, with another ending."""
        items: list[OutputItem] = []
        for item in self.items:
            if items and tokens <= 0:
                break
            items.append(item if item.count <= tokens and item is not self.items[-1] else item.cut(tokens))
            tokens -= item.count
        return replace(self, items=items, status=status, **members)


def answer(body: Document, prompt: Prompt, fixed_answer: Sequence[str] | None, seal: Seal) -> Answer:
    """What the model answers to a valid request; raises one of `answers.SCHEMA_ERRORS` for an impossible schema."""
    include = body.get("include") or []
    items: list[OutputItem] = []
    if reasoning_tokens := REASONING_TOKENS if _reasons(body) else 0:
        sealed = seal.seal(text_generation.last_user_text(prompt.messages)[:1000])
        items.append(
            Reasoning(_summary(body, prompt.messages), sealed if "reasoning.encrypted_content" in include else None)
        )
    if fixed_answer is None and (calls := answers.tool_calls(prompt)):
        items += [Call(call.name, call.arguments, call.id) for call in calls]
    else:
        tokens = text_generation.tokenize(answers.text(prompt)) if fixed_answer is None else fixed_answer
        logprobs = "message.output_text.logprobs" in include
        items.append(Message(tokens, int(body.get("top_logprobs") or 0) if logprobs else None))
    whole = Answer(items, reasoning_tokens)
    limit = body.get("max_output_tokens")
    if limit is None or whole.output_tokens <= limit:
        return whole
    summary = sum(item.count for item in items if isinstance(item, Reasoning))
    if limit <= reasoning_tokens:  # all of it is spent before the answer begins
        return Answer(items[:1], limit, "incomplete", "max_output_tokens")
    return whole.cut(summary + limit - reasoning_tokens, "incomplete", incomplete_reason="max_output_tokens")


def prompt(body: Document, messages: Sequence[Document]) -> Prompt:
    """The request with its conversation as the model sees it; raises `RequestError`."""
    functions = [
        Function(tool["name"], tool.get("parameters")) for tool in body.get("tools") or [] if tool["type"] == "function"
    ]
    choice: Any = body.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        named = [choice, *(choice.get("tools") or [])]
        allowed = {one.get("name") for one in named if one.get("type") == "function"}
        functions = [one for one in functions if one.name in allowed]
        choice = choice.get("mode") or "required"
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_object" and not any("json" in str(message).lower() for message in messages):
        raise RequestError(
            None,
            "Response input messages must contain the word 'json' in some form to use 'text.format' of type "
            "'json_object'.",
            "input",
        )
    return Prompt(
        messages=messages,
        functions=functions,
        calls=choice,
        parallel_calls=body.get("parallel_tool_calls") is not False,
        json_schema=wanted.get("schema") if wanted.get("type") == "json_schema" else None,
        json_object=wanted.get("type") == "json_object",
    )


def _reasons(body: Document) -> bool:
    """Whether the model thinks: a reasoning model does, others when they are asked for an effort or a summary."""
    wanted = body.get("reasoning") or {}
    effort = wanted.get("effort")
    return effort != "none" and (is_reasoning(body["model"]) or effort is not None or bool(_wanted_summary(body)))


def _wanted_summary(body: Document) -> str | None:
    wanted = body.get("reasoning") or {}
    return wanted.get("summary") or wanted.get("generate_summary")


def _summary(body: Document, messages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    kind = _wanted_summary(body)
    if kind is None:
        return []
    subject = ", ".join(text_generation.topics(text_generation.last_user_text(messages))[:3]) or "the question"
    texts = [f"**Considering {subject}**\n\nI look at what is asked, and at what is known about {subject}."]
    if kind != "concise":
        texts.append("**Choosing an answer**\n\nI prefer the answer that is short and says what was asked.")
    return [text_generation.tokenize(text) for text in texts]
