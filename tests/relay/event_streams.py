"""Event streams of chat completions for the tests of what reads them."""

import itertools
import json
from collections.abc import Iterable
from typing import Any, Final

from relay.streaming.events import Event, Text

LINE_ENDS: Final = ("\n", "\r", "\r\n")
DONE: Final = b"data: [DONE]\n\n"


def split_at(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content, split at these positions (modulo its length)."""
    positions = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return [content[start:end] for start, end in itertools.pairwise(positions)]


def event(**members: Any) -> bytes:
    """An event whose data is a JSON object with these members."""
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def delta(content: Any, **members: Any) -> bytes:
    """An event with one delta of the answer."""
    return event(choices=[{"index": 0, "delta": {"content": content}, **members}])


def text_of(events: Iterable[Event]) -> str:
    """The text that a caller assembles: the strings concatenated, by code units."""
    text = "".join(json.loads(event.json) for event in events if isinstance(event, Text))
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
