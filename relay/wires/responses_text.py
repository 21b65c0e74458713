"""Decoder of the Responses API for `POST /stream`: the model service's typed events, or document → the answer's text.

The text is that of all messages of the response, in the order in which it arrives, one directly behind the other, as
in the SDKs' `output_text`; a refusal is text, as it is in chat completions. Of the reasoning there is the summary, or
the reasoning itself where the model shows it. Source: OpenAI's API reference, "Responses", "Streaming events".
"""

import json
from typing import Any, Final

from msgspec import Raw

from relay.streaming.events import Done, Event, Failed
from relay.upstream.failures import filter_results, filtered_categories, is_failed_finish
from relay.wires.decoding import Output, as_raw, valid_utf8
from relay.wires.responses_decoders import (
    FAILED,
    NULL,
    READ_ALWAYS,
    Response,
    ResponseEvent,
    ResponseStreamDecoder,
    decode_response,
    event_type,
    is_to_read,
)

# The events that carry a piece of the output, and those that end a part of it with all of its text in them.
_TEXT: Final = frozenset((b"response.output_text.delta", b"response.refusal.delta"))
TEXT_DONE: Final = frozenset((b"response.output_text.done", b"response.refusal.done"))
_REASONING: Final = frozenset((b"response.reasoning_summary_text.delta", b"response.reasoning_text.delta"))
_REASONING_DONE: Final = frozenset((b"response.reasoning_summary_text.done", b"response.reasoning_text.done"))
_READ_FOR_TEXT: Final = READ_ALWAYS | _TEXT | TEXT_DONE
_READ_FOR_REASONING: Final = _READ_FOR_TEXT | _REASONING | _REASONING_DONE

_EMPTY: Final = b'""'
_BETWEEN_PARTS: Final = b'"\\n\\n'  # of reasoning: each is a paragraph with a heading

# Why a response ended, by the names that chat completions have for it.
_FINISH_REASONS: Final = {"completed": "stop", "done": "stop", "max_output_tokens": "length", "max_tokens": "length"}


class ResponseTextDecoder(ResponseStreamDecoder):
    """Decodes the event stream of a response into its text; `reasoning`: and into the summary of its reasoning."""

    def __init__(self, *, reasoning: bool = False) -> None:
        super().__init__()
        self._output = Output()
        self._reasoning = reasoning
        self._read = _READ_FOR_REASONING if reasoning else _READ_FOR_TEXT
        self._in_text = False  # a piece of the part that is now being written has arrived
        self._in_reasoning = False
        self._reasoned = False  # a part of the reasoning is whole: another one is separated from it

    def _collect(self, terminal: Done | Failed | None) -> list[Event]:
        return self._output.take()

    def _read_events(self, payloads: list[bytes]) -> Done | Failed | None:
        for data in payloads:
            kind = event_type(data)
            if kind is not None and kind not in self._read:
                self._judgement.begun = True
                self.progress += 1
            elif is_to_read(data):
                terminal = self._event(data)
                if terminal is not None:
                    return terminal
        return None

    def _take(self, kind: bytes, data: bytes, event: ResponseEvent) -> Failed | None:
        if kind in _TEXT:
            self._in_text = True
            return self._add_text(event.delta)
        if kind in TEXT_DONE:
            whole, self._in_text = not self._in_text, False
            return self._add_text(event.refusal if bytes(event.text) == NULL else event.text) if whole else None
        if self._reasoning and kind in _REASONING:
            self._in_reasoning = True
            self._add_reasoning(event.delta)
        elif self._reasoning and kind in _REASONING_DONE:
            if not self._in_reasoning:
                self._add_reasoning(event.text)
            self._in_reasoning, self._reasoned = False, True
        return None

    def _add_text(self, string: Raw) -> Failed | None:
        text = bytes(string)
        if text in (NULL, _EMPTY):
            return None
        if text[:1] != b'"':
            return self._failed("the text of an event is not a string")
        self._output.strings.append(valid_utf8(text))
        self.deltas += 1
        return None

    def _add_reasoning(self, string: Raw) -> None:
        text = bytes(string)
        if text[:1] != b'"' or text == _EMPTY:
            return
        if self._reasoned:
            text = _BETWEEN_PARTS + text[1:]
            self._reasoned = False
        self._output.add_reasoning(text)

    def _ended(self, kind: bytes, data: bytes, response: Response) -> Done | Failed | None:
        if response.error:
            return self._error(response.error)
        if kind == FAILED or response.status == "failed":
            self._failed_silently = True  # Azure has an `error` event follow, which tells why (earendil-works/pi#7983)
            return None
        if not self.deltas:
            self._read_output(response.output)
        return self._done(response, kind.removeprefix(b"response.").decode())

    def _read_document(self, document: bytes) -> Done | Failed:
        response = decode_response(document)
        self._read_output(response.output)
        return self._done(response, "completed")

    def _done(self, response: Response, ending: str) -> Done | Failed:
        reason = self.finish_reason or ending
        if is_failed_finish(reason):
            return self._error({"code": reason})
        self.finish_reason = _FINISH_REASONS.get(reason, reason)
        content_filter = None
        if reason == "content_filter":
            content_filter = filtered_categories(filter_results({"content_filters": _value(response.content_filters)}))
        return Done(self.finish_reason, self.model, self.usage, self.id, content_filter, closed=True)

    def _read_output(self, output: Raw) -> None:
        """The text of a whole response, and its reasoning where none of that has come."""
        reasoning = self._reasoning and not (self._in_reasoning or self._reasoned)
        for item in _objects(_value(output)):
            parts = _objects(item.get("content"))
            if item.get("type") == "reasoning" and reasoning:
                for thought in (*_objects(item.get("summary")), *parts):
                    self._add_reasoning(as_raw(thought.get("text")))
                    self._reasoned = True
            elif item.get("type") == "message":
                for part in parts:
                    self._add_text(as_raw(part.get("refusal" if part.get("type") == "refusal" else "text")))


def _value(raw: Raw) -> Any:
    try:
        return json.loads(bytes(raw).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [it for it in value if isinstance(it, dict)] if isinstance(value, list) else []
