"""Azure OpenAI's wire for chat completions: the documents, the chunks, and a response as a list of steps.

The shapes follow https://learn.microsoft.com/azure/ai-foundry/openai/reference and what the service was seen to send:
its prompt filter's results come first, in a chunk of empty `choices`, and every content chunk carries filter results.
"""

import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

type Document = dict[str, Any]

# ── A response is a list of steps; a fault is a function from the healthy list to another ────────────────────────────


@dataclass(frozen=True, slots=True)
class Headers:
    """The status line and the headers go out."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one choice: waits for its time, and is counted."""

    text: str
    choice: int = 0
    tool: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `kind` is one of filter, role, tool, content, finish, usage, done, odd."""

    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that go out as they are, in no event's frame."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence for some seconds, or for ever (`math.inf`)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends here: closed, or reset so that what was under way may be lost."""

    reset: bool = False


type Step = Headers | Token | Event | Raw | Pause | Cut
FOR_EVER = math.inf
DONE = Event("done", b"[DONE]")


# ── Content filter ───────────────────────────────────────────────────────────────────────────────────────────────────

CATEGORIES = ("hate", "self_harm", "sexual", "violence")


def filter_results(**filtered: str) -> Document:
    """The categories, all safe but those named: `filter_results(violence="medium")`."""
    return {name: {"filtered": name in filtered, "severity": filtered.get(name, "safe")} for name in CATEGORIES}


def prompt_filter_results(**filtered: str) -> Document:
    """The same for a prompt, which is searched for a jailbreak as well."""
    results = filter_results(**filtered)
    return {"hate": results.pop("hate"), "jailbreak": {"detected": False, "filtered": False}, **results}


# ── One choice, one reply ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool by the model; the arguments are JSON, cut into tokens."""

    name: str
    arguments: Sequence[str]
    id: str = field(default_factory=lambda: "call_" + secrets.token_urlsafe(18))


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: its tokens, or a call of a tool, and why it ended; `filtered`: the categories that stopped it."""

    tokens: Sequence[str]
    finish_reason: str
    call: Call | None = None
    filtered: Mapping[str, str] = field(default_factory=dict)

    @property
    def written(self) -> Sequence[str]:
        """What is streamed token by token: the answer, or the arguments of the call."""
        return self.call.arguments if self.call else self.tokens


class Reply:
    """What all the chunks, or the one document, of a response agree on, and how each is made."""

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
        self.id = "chatcmpl-" + secrets.token_urlsafe(21)
        self.created = int(time.time())
        self.model = model
        self.fingerprint = "fp_" + f"{sum(map(ord, model)) * 2654435761 % 2**40:010x}"
        self.choices = choices
        self.include_usage = include_usage
        self.obfuscate = obfuscate
        self.logprobs = logprobs
        self.top_logprobs = top_logprobs
        self.filter_each_chunk = True
        self.escape = False
        self._prompt_tokens = prompt_tokens
        self._reasoning_tokens = reasoning_tokens
        self._around: dict[tuple[int, bool, bool], tuple[bytes, bytes]] = {}

    @property
    def usage(self) -> Document:
        """The count of tokens, of the prompt and of all choices together."""
        completion = sum(len(choice.written) for choice in self.choices) + self._reasoning_tokens
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

    def document(self) -> Document:
        """The whole answer of a request that asked for no stream."""
        return {
            "choices": [self._whole(index, choice) for index, choice in enumerate(self.choices)],
            "created": self.created,
            "id": self.id,
            "model": self.model,
            "object": "chat.completion",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": prompt_filter_results()}],
            "system_fingerprint": self.fingerprint,
            "usage": self.usage,
        }

    def _whole(self, index: int, choice: Choice) -> Document:
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

    def usage_event(self) -> Event:
        """The event that a request asks for with `stream_options.include_usage`."""
        return Event("usage", self.chunk(usage=self.usage))

    def token(self, token: Token) -> bytes:
        """The chunk of one token. All of it but the text was made beforehand: this is the hot path."""
        if self.logprobs and not token.tool:
            logprobs = {"content": [self._logprob(token.text)], "refusal": None}
            choice = {"content_filter_results": filter_results(), "delta": {"content": token.text}}
            return self.chunk(choice | {"finish_reason": None, "index": token.choice, "logprobs": logprobs})
        around = self._around.get((token.choice, token.tool, self.filter_each_chunk))
        if around is None:
            around = self._prepare(token)
        text = token.text
        if self.escape or not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
            encoded = as_json(text, escape=self.escape)
        else:
            encoded = b'"%b"' % text.encode()
        if self.obfuscate:
            # Random padding to whole blocks, against reading the text off the lengths; here it needs no secrecy.
            return b'%b%b%b"%b"}' % (around[0], encoded, around[1], _PADDING[: 16 - len(encoded) % 16])
        return around[0] + encoded + around[1]

    def _prepare(self, token: Token) -> tuple[bytes, bytes]:
        mark = "\ue000token\ue000"
        delta: Document = {"content": mark}
        if token.tool:
            delta = {"tool_calls": [{"function": {"arguments": mark}, "index": 0}]}
        filtered = filter_results() if self.filter_each_chunk and not token.tool else {}
        whole = self.delta(delta, token.choice, content_filter_results=filtered)
        before, after = whole.split(as_json(mark, escape=self.escape))
        if self.obfuscate:
            after = after[:-1] + b',"obfuscation":'
        around = self._around[token.choice, token.tool, self.filter_each_chunk] = (before, after)
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


def streamed(reply: Reply) -> Iterator[Step]:
    """The steps of a healthy stream."""
    yield Headers()
    yield reply.prompt_filter()
    for index in range(len(reply.choices)):
        yield reply.role(index)
    if len(reply.choices) == 1:
        tool = reply.choices[0].call is not None
        for text in reply.choices[0].written:
            yield Token(text, 0, tool)
    else:
        for row in zip_longest(*(choice.written for choice in reply.choices)):
            for index, text in enumerate(row):
                if text is not None:
                    yield Token(text, index, reply.choices[index].call is not None)
    for index in range(len(reply.choices)):
        yield reply.finish(index)
    if reply.include_usage:
        yield reply.usage_event()
    yield DONE


def at_once(reply: Reply, thinking: float) -> Iterator[Step]:
    """The steps of a healthy answer in one document, after the time that its tokens take (seconds)."""
    body = as_json(reply.document(), escape=reply.escape)
    if thinking:
        yield Pause(thinking)
    yield Headers()
    yield Raw(body[: len(body) // 2])
    yield Raw(body[len(body) // 2 :])


# ── Frames: how an event's payload becomes bytes ─────────────────────────────────────────────────────────────────────

type Frame = Callable[[bytes], bytes]


def plain_frame(payload: bytes) -> bytes:
    """One event as the service sends it."""
    return b"data: %b\n\n" % payload


def as_json(value: object, *, escape: bool = False) -> bytes:
    """Compact JSON; `escape` writes everything beyond ASCII as `\\uXXXX`. A lone surrogate is always escaped."""
    text = json.dumps(value, ensure_ascii=escape, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no completion: the status, the body and further headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


def refusal(
    status: int,
    code: str | None,
    message: str,
    /,
    *,
    kind: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Refusal:
    """A refusal with OpenAI's error object as its body."""
    return Refusal(status, as_json({"error": error(code, message, kind=kind, param=param, **members)}), headers or {})


def error(
    code: str | None, message: str, *, kind: str | None = None, param: str | None = None, **members: Any
) -> Document:
    """OpenAI's error object; Azure's gateway leaves `type` and `param` out, and so does a call without them."""
    shaped: Document = {"code": code, "message": message}
    if kind is not None or param is not None:
        shaped |= {"param": param, "type": kind}
    return shaped | members


def invalid(code: str | None, message: str, param: str | None = None) -> Refusal:
    """A request that the service does not understand: 400."""
    return refusal(400, code, message, kind="invalid_request_error", param=param)


def deployment_not_found() -> Refusal:
    """No such deployment: 404."""
    return refusal(
        404,
        "DeploymentNotFound",
        "The API deployment for this resource does not exist. One made within the last 5 minutes may need a moment.",
    )


def wrong_key() -> Refusal:
    """The gateway's answer to a key that is missing or wrong: 401."""
    return refusal(
        401,
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
        "active subscription and use a correct regional API endpoint for your resource.",
    )


def wrong_token() -> Refusal:
    """The gateway's answer to a token that is not valid, or not any more: 401."""
    return refusal(401, "Unauthorized", "Access token is missing, invalid, audience is incorrect, or have expired.")


def lacks_role() -> Refusal:
    """The answer to an identity without the role, also for minutes after the role was given: 401 PermissionDenied."""
    return refusal(
        401,
        "PermissionDenied",
        "The principal lacks the required data action "
        "`Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action`.",
    )
