"""The response to a request: as one document, as a stream of typed events, and what follows a stored one."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from local.model_service.content_filter import content_filter_entry, filter_results, prompt_filter_results
from local.model_service.encoding import Document, as_json
from local.model_service.reply import Reply
from local.model_service.steps import Event, EventKind, Headers, Pause, Raw, Step, Token, Wait
from local.model_service.stored_responses import Status, StoredResponse
from local.model_service.wires.responses.items import new_id
from local.model_service.wires.responses.output import Answer, Call, Message, OutputItem, Reasoning

# Parameters of the request that a response repeats, and their values where the request has none.
_REPEATED: Document = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_DELTAS = {
    "text": b"response.output_text.delta",
    "arguments": b"response.function_call_arguments.delta",
    "reasoning": b"response.reasoning_summary_text.delta",
    "refusal": b"response.refusal.delta",
}
_PADDING = b"q7Zk2VxR9mTc4LwE"


class ResponseReply(Reply):
    """One response and its events.

    Azure's own members beside those of OpenAI's reference are `content_filters`, `frequency_penalty` and
    `presence_penalty`; `model` is the name of the deployment.
    """

    def __init__(
        self, body: Document, answer: Answer, *, prompt_tokens: int, cached_tokens: int, characters: int
    ) -> None:
        super().__init__(body["model"])
        self.id = new_id("resp")
        self.body = body
        self.answer = answer
        self.stored = StoredResponse(self.id, body["model"], body.get("background") is True, body.get("stream") is True)
        self.obfuscate = (body.get("stream_options") or {}).get("include_obfuscation") is not False
        self.paced = not self.stored.background
        self.on_begin: Callable[[], None] = _nothing
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._characters = characters  # of the prompt
        self._left_out: frozenset[EventKind] = frozenset()
        self._reported_error: tuple[str, str] | None = None  # code and message
        self._around_token: dict[tuple[int, str, int], tuple[bytes, bytes]] = {}

    @property
    def token_counts(self) -> Sequence[int]:
        return [] if self.stored.background else [self.answer.count]

    def begin(self) -> None:
        begin, self.on_begin = self.on_begin, _nothing  # it refers to the response before this one, which may go
        begin()

    # Changes by faults

    def stop_by_filter(self, tokens: int) -> None:
        filtered = {"violence": "medium"}
        self.answer = self.answer.cut(tokens, "incomplete", incomplete_reason="content_filter", filtered=filtered)

    def stop_by_limit(self, tokens: int) -> None:
        self.answer = self.answer.cut(tokens, "incomplete", incomplete_reason="max_output_tokens")

    def refuse(self) -> None:
        items = [replace(item, refused=True) if isinstance(item, Message) else item for item in self.answer.items]
        self.answer = replace(self.answer, items=items)

    def fail(self, tokens: int, code: str | None, message: str) -> None:
        error = None if code is None else {"code": code, "message": message}
        answer = self.answer.cut(tokens, "failed", error=error)
        self.answer = answer if tokens else replace(answer, items=())

    def leave_out(self, *kinds: EventKind) -> None:
        self._left_out |= frozenset(kinds)

    # The response object

    def document(self) -> Document:
        return self.snapshot(self.stored.status)

    def snapshot(self, status: Status) -> Document:
        """The response as it is in this status; only a final one has output, usage and the filter's results."""
        body, answer = self.body, self.answer
        generated = status in ("completed", "incomplete", "failed")
        repeated = {name: default if body.get(name) is None else body[name] for name, default in _REPEATED.items()}
        reasoning = {"effort": None, "summary": None} | (body.get("reasoning") or {})
        text = body.get("text") or {}
        first = {"id": self.id, "object": "response", "created_at": self.created, "status": status}
        return (
            first
            | repeated
            | {
                "completed_at": self.stored.completed_at if status == "completed" else None,
                "content_filters": self._content_filters() if generated and "filter" not in self._left_out else None,
                "error": answer.error if status == "failed" else None,
                "frequency_penalty": 0.0,
                "incomplete_details": {"reason": answer.incomplete_reason} if status == "incomplete" else None,
                "model": self.model,
                "moderation": None,
                "output": self.output()
                if status in ("completed", "incomplete") and "content" not in self._left_out
                else [],
                "presence_penalty": 0.0,
                "reasoning": reasoning,
                "service_tier": "default" if generated else "auto",
                "text": {"verbosity": "medium"} | text | {"format": self._format()},
                "tools": [_tool(tool) for tool in body.get("tools") or []],
                "usage": self.usage()
                if status in ("completed", "incomplete") and "usage" not in self._left_out
                else None,
            }
        )

    def output(self) -> list[Document]:
        """The output items."""
        return [item.document() for item in self.answer.items]

    def usage(self) -> Document:
        """The count of tokens."""
        output = self.answer.output_tokens
        return {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": self._cached_tokens},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": self.answer.reasoning_tokens},
            "total_tokens": self.total_tokens,
        }

    @property
    def total_tokens(self) -> int:
        """Those of the prompt and of the answer."""
        return self._prompt_tokens + self.answer.output_tokens

    def _format(self) -> Document:
        wanted = (self.body.get("text") or {}).get("format") or {"type": "text"}
        if wanted["type"] != "json_schema":
            return {"type": wanted["type"]}
        return {"description": None, "strict": False} | wanted

    def _content_filters(self) -> list[Document]:
        written = sum(len(token) for item in self.answer.items if isinstance(item, Message) for token in item.tokens)
        results = [("prompt", prompt_filter_results(), self._characters)]
        if self.answer.items:
            results.append(("completion", filter_results(**self.answer.filtered), written))
        return [content_filter_entry(*result) for result in results]

    # As one document

    def whole(self, seconds: float) -> Iterator[Step]:
        if not self.stored.background:
            if seconds:
                yield Pause(seconds)
            self.finish()
            yield from super().whole(0)
            return
        body = as_json(self.snapshot("queued"), escape=self.escape)
        yield Headers()
        yield Raw(body[: len(body) // 2])
        yield Raw(body[len(body) // 2 :])

    def finish(self) -> None:
        """Set the final status of the stored response."""
        answer = self.answer
        output = self.output() if answer.status != "failed" else []
        self.stored.finish(answer.status, int(time.time()), output)
        self.stored.progress.end()

    def end(self, *, aborted: bool) -> None:
        """A caller that disconnects cancels its response; one whose connection breaks finds it completed."""
        if self.stored.background:
            return
        if aborted:
            self.stored.cancel(int(time.time()))
        elif self._reported_error:
            self.fail(0, *self._reported_error)
        self.finish()

    # As a stream

    def stream(self) -> Iterator[Step]:
        yield Headers()
        yield from self.follow(-1) if self.stored.background else self.events(finish=True)

    def follow(self, after: int) -> Iterator[Step]:
        """The events with a greater number than `after`, each when it was generated."""
        progress = self.stored.progress
        events = self.events()
        for number in itertools.count():
            if progress.made <= number:
                yield Wait(functools.partial(progress.past, number))
                if progress.made <= number:
                    return
            step = next(events)
            if number > after:
                yield step

    def events(self, *, finish: bool = False) -> Iterator[Step]:
        """The events and tokens of the response, the same each time; `finish`: they are being generated now."""
        if self.stored.background:
            yield self._lifecycle("begin", "created", "queued")
            yield self._lifecycle("begin", "queued", "queued")
        else:
            yield self._lifecycle("begin", "created", "in_progress")
        yield self._lifecycle("begin", "in_progress", "in_progress")
        for index, item in enumerate(self.answer.items):
            ends = item.complete or self.answer.status != "failed"
            match item:
                case Reasoning():
                    yield from self._reasoning(index, item, ends=ends)
                case Message():
                    yield from self._message(index, item, ends=ends)
                case Call():
                    yield from self._call(index, item, ends=ends)
        if finish:
            self.finish()
        yield self._lifecycle("finish", self.answer.status, self.answer.status)

    def _reasoning(self, index: int, item: Reasoning, *, ends: bool) -> Iterator[Step]:
        yield self._item_event("added", index, item)
        for part, tokens in enumerate(item.parts):
            at = {"item_id": item.id, "output_index": index, "summary_index": part}
            empty = {"type": "summary_text", "text": ""}
            yield self._event("role", "response.reasoning_summary_part.added", at, part=empty)
            for text in tokens:
                yield Token(text, index, "reasoning", part)
            if ends or part < len(item.parts) - 1:
                whole = empty | {"text": "".join(tokens)}
                yield self._event("close", "response.reasoning_summary_text.done", at, text=whole["text"])
                yield self._event("close", "response.reasoning_summary_part.done", at, part=whole)
        if ends:
            yield self._item_event("done", index, item)

    def _message(self, index: int, item: Message, *, ends: bool) -> Iterator[Step]:
        yield self._item_event("added", index, item)
        at = {"item_id": item.id, "output_index": index, "content_index": 0}
        yield self._event("role", "response.content_part.added", at, part=item.part(empty=True))
        for text in item.tokens:
            yield Token(text, index, "refusal" if item.refused else "text")
        if not ends:
            return
        part = item.part()
        if item.refused:
            yield self._event("close", "response.refusal.done", at, refusal=part["refusal"])
        else:
            logprobs = [item.logprob(token) for token in item.tokens] if item.top_logprobs is not None else []
            yield self._event("close", "response.output_text.done", at, text=part["text"], logprobs=logprobs)
        yield self._event("close", "response.content_part.done", at, part=part)
        yield self._item_event("done", index, item)

    def _call(self, index: int, item: Call, *, ends: bool) -> Iterator[Step]:
        yield self._item_event("added", index, item)
        for text in item.tokens:
            yield Token(text, index, "arguments")
        if not ends:
            return
        at = {"item_id": item.id, "output_index": index}
        arguments = "".join(item.tokens)
        yield self._event("close", "response.function_call_arguments.done", at, arguments=arguments)
        yield self._item_event("done", index, item)

    def _item_event(self, what: str, index: int, item: OutputItem) -> Event:
        document = item.begun() if what == "added" else item.document()
        kind: EventKind = "role" if what == "added" else "close"
        return self._event(kind, f"response.output_item.{what}", {"output_index": index}, item=document)

    def _lifecycle(self, kind: EventKind, name: str, status: Status) -> Event:
        return self._event(kind, f"response.{name}", {}, response=self.snapshot(status))

    def _event(self, kind: EventKind, name: str, place: Document, **members: Any) -> Event:
        return Event(kind, as_json({"type": name, **place, **members}, escape=self.escape), name.encode())

    # How a step is written

    def event(self, event: Event) -> bytes:
        return self._number(event.payload) if event.payload.endswith(b"}") else event.payload

    def token(self, token: Token) -> bytes:
        # As in chat completions, all of the event except the text is made only once.
        item = self.answer.items[token.choice]
        logprobs = isinstance(item, Message) and item.top_logprobs is not None
        around = self._around_token.get((token.choice, token.kind, token.part))
        if around is None or logprobs:
            around = self._prepare_token(token)
        encoded = as_json(token.text, escape=self.escape)
        payload = around[0] + encoded + around[1]
        if self.obfuscate:
            payload = b'%b,"obfuscation":"%b"}' % (payload[:-1], _PADDING[: 16 - len(encoded) % 16])
        return self._number(payload)

    def token_name(self, token: Token) -> bytes:
        return _DELTAS[token.kind]

    def _prepare_token(self, token: Token) -> tuple[bytes, bytes]:
        mark = "\ue000token\ue000"
        item = self.answer.items[token.choice]
        delta: Document = {"type": _DELTAS[token.kind].decode(), "item_id": item.id, "output_index": token.choice}
        if token.kind == "reasoning":
            delta["summary_index"] = token.part
        elif isinstance(item, Message):
            delta["content_index"] = 0
            if token.kind == "text":
                delta["logprobs"] = [item.logprob(token.text)] if item.top_logprobs is not None else []
        before, after = as_json(delta | {"delta": mark}, escape=self.escape).split(as_json(mark, escape=self.escape))
        around = self._around_token[token.choice, token.kind, token.part] = (before, after)
        return around

    def _number(self, payload: bytes) -> bytes:
        """The payload with the next sequence number behind its type."""
        if not self.numbered:
            return payload
        behind = payload.index(b'"', len(b'{"type":"')) + 1
        numbered = b'%b,"sequence_number":%d%b' % (payload[:behind], self.sequence_number, payload[behind:])
        self.sequence_number += 1
        return numbered

    # Events that faults insert

    def error_event(self, code: str = "server_error", message: str = "The server had an error.") -> Event:
        """Azure's form: the error in an object of its own, not beside the type (earendil-works/pi#7983)."""
        self._reported_error = (code, message)
        kind = "too_many_requests" if code == "rate_limit_exceeded" else code
        error = {"type": kind, "code": code, "message": message, "param": None}
        return self._event("odd", "error", {}, error=error)

    def malformed_event(self) -> Event:
        return Event("odd", b'{"type":"response.output_text.delta","delta":"cut off mid', _DELTAS["text"])

    def text_event(self, text: str | None) -> Event:
        return self._event("content", "response.output_text.delta", self._place(), delta=text)

    def raw_text_event(self, literal: bytes) -> Event:
        before, after = self.text_event("\ue000").payload.split(as_json("\ue000", escape=self.escape))
        return Event("odd", before + literal + after, _DELTAS["text"])

    def _place(self) -> Document:
        """Where the text of the answer is."""
        found = [(index, item) for index, item in enumerate(self.answer.items) if isinstance(item, Message)]
        index, item_id = (found[0][0], found[0][1].id) if found else (0, "msg_0")
        return {"item_id": item_id, "output_index": index, "content_index": 0, "logprobs": []}


class FollowingReply(ResponseReply):
    """A stream of a response that is generated in the background: its events as they come, after a given one.

    It has its own numbering and encoding, so that a fault of one connection concerns no other.
    """

    def __init__(self, reply: ResponseReply, after: int) -> None:
        vars(self).update(vars(reply))
        self.after = after
        self.sequence_number = after + 1
        self.escape, self.numbered, self._around_token = False, True, {}

    def begin(self) -> None:
        pass

    def stream(self) -> Iterator[Step]:
        yield Headers()
        yield from self.follow(self.after)


def _nothing() -> None:
    """Begin nothing."""


def _tool(tool: Document) -> Document:
    """A tool as a response repeats it."""
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": {"type": "object", "properties": {}}, "strict": True} | tool


class DocumentReply(Reply):
    """A document that is there already."""

    paced = False

    def __init__(self, model: str, document: Document) -> None:
        super().__init__(model)
        self._document = document

    def document(self) -> Document:
        return self._document
