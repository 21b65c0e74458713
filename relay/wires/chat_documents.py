"""A chat completion as one document and as a stream of chunks: either form where a server sent the other one.

Sources: OpenAI's API reference, "The chat completion object" and "The chat completion chunk object".
"""

import json
from typing import Any, Final


def chunk_of(document: dict[str, Any]) -> bytes:
    """The document as one chunk of a stream, without the usage: what is in its messages is in their deltas."""
    choices = [_streamed(choice) for choice in document["choices"] if isinstance(choice, dict)]
    return _encode({**_head(document), "choices": choices})


def usage_chunk_of(document: dict[str, Any]) -> bytes | None:
    """The chunk that carries the document's usage; None where it has none."""
    if not document.get("usage"):
        return None
    return _encode({**_head(document), "choices": [], "usage": document["usage"]})


def _head(document: dict[str, Any]) -> dict[str, Any]:
    head = {name: value for name, value in document.items() if name not in ("choices", "usage")}
    return head | {"object": "chat.completion.chunk"}


def _streamed(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    delta = dict(message) if isinstance(message, dict) else {}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [
            {"index": index, **call} if isinstance(call, dict) else call for index, call in enumerate(calls)
        ]
    return {"index": 0, **{name: value for name, value in choice.items() if name != "message"}, "delta": delta}


def document_of(chunks: list[dict[str, Any]]) -> bytes:
    """The document that the chunks of a stream add up to; raises ValueError where they are none of an answer."""
    document: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        document |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for streamed in chunk.get("choices") or ():
            index = streamed.get("index") or 0
            choice = choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
            choice |= {
                name: value
                for name, value in streamed.items()
                if name not in ("index", "delta") and (value is not None or name not in choice)
            }
            if isinstance(streamed.get("delta"), dict):
                _add(choice["message"], streamed["delta"])
    for choice in choices.values():
        choice["message"].setdefault("content", None)
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
    ordered = [choices[index] for index in sorted(choices)]
    return _encode(document | {"object": "chat.completion", "choices": ordered})


# Members that name something, and are repeated rather than continued.
_NAMES: Final = frozenset(("role", "id", "type", "index", "name"))
_MAX_ITEMS: Final = 256  # tool calls of one answer; each is looked for among all


class _Continued:
    """A text in parts, which are joined once."""

    def __init__(self, *parts: str) -> None:
        self.parts = list(parts)


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Continue each member of the message by the delta's."""
    for name, value in delta.items():
        present = message.get(name)
        if isinstance(present, _Continued) and isinstance(value, str):
            present.parts.append(value)
        elif isinstance(present, str) and isinstance(value, str) and name not in _NAMES:
            message[name] = _Continued(present, value)
        elif isinstance(present, dict) and isinstance(value, dict):
            _add(present, value)
        elif isinstance(value, list):
            message[name] = items = present if isinstance(present, list) else []
            for item in value:
                index = item.get("index") if isinstance(item, dict) else None
                same = [it for it in items if isinstance(it, dict) and it.get("index") == index]
                if index is not None and same:
                    _add(same[0], item)
                else:
                    items.append(item)
            if len(items) > _MAX_ITEMS:
                raise ValueError("too many items")
        elif value is not None:
            message[name] = value
        else:
            message.setdefault(name, None)


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), default=_joined).encode()


def _joined(text: _Continued) -> str:
    return "".join(text.parts)
