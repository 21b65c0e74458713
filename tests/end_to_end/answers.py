"""What a caller makes of an answer of `/stream`, whatever its format: the words, and how it ended."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from httpx_sse import EventSource

SSE: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
PLAIN: Final = "text/plain"
DOCUMENT: Final = "application/json"  # `"stream": false`
STREAMS: Final = (SSE, NDJSON, PLAIN)
FORMATS: Final = (*STREAMS, DOCUMENT)

PING: Final = b": ping\n\n"


@dataclass(slots=True)
class Heard:
    """One answer, read to its end.

    `done` or `error`: the members of the terminal event (of a document: of its end). `problem`: those of a refusal.
    `broken`: the connection broke off before the body's end. `endings` counts the terminal events.
    """

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    raw: bytes = b""
    text: str = ""
    done: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    broken: bool = False
    endings: int = 0

    @property
    def pings(self) -> int:
        """How many pings came."""
        return self.raw.count(PING)


def body_for(form: str, asked: str | Mapping[str, Any] = "Say something.", **more: Any) -> dict[str, Any]:
    """The request's body that asks for an answer in this format."""
    body = {"input": asked} if isinstance(asked, str) else dict(asked)
    return body | ({"stream": False} if form == DOCUMENT else {}) | more


async def ask(
    client: httpx.AsyncClient, form: str, asked: str | Mapping[str, Any] = "Say something.", **more: Any
) -> Heard:
    """Ask for an answer in a format, and read it to its end."""
    headers = {} if form == DOCUMENT else {"Accept": form}
    heard = Heard()
    async with client.stream("POST", "/stream", json=body_for(form, asked, **more), headers=headers) as response:
        pieces: list[bytes] = []
        try:
            async for piece in response.aiter_raw():
                pieces.append(piece)
        except httpx.RemoteProtocolError:
            heard.broken = True
        heard.status, heard.headers, heard.raw = response.status_code, response.headers, b"".join(pieces)
    understand(heard, form)
    return heard


def understand(heard: Heard, form: str) -> None:
    """Read `raw`: the words and how they ended. Strict: what the format does not have is a failure."""
    if heard.status != 200:
        assert heard.headers["content-type"] == "application/problem+json"
        heard.problem = json.loads(heard.raw)
        return
    media_type = heard.headers["content-type"].partition(";")[0]
    assert media_type == form
    if form == SSE:
        _understand_sse(heard)
    elif form == NDJSON:
        _understand_ndjson(heard)
    elif form == PLAIN:
        heard.text = heard.raw.decode()
        heard.endings = not heard.broken
    else:
        document = json.loads(heard.raw)
        heard.text = document.pop("text")
        heard.done, heard.endings = document, 1


def _understand_sse(heard: Heard) -> None:
    content = httpx.Response(200, headers={"content-type": SSE}, content=heard.raw)
    words: list[str] = []
    for event in EventSource(content).iter_sse():
        members = event.json()
        assert heard.endings == 0, "something came after the terminal event"
        if event.event == "message":
            assert set(members) == {"text"}
            words.append(members["text"])
        else:
            heard.endings += 1
            assert event.event in ("done", "error")
            setattr(heard, event.event, members)
    heard.text = whole("".join(words))


def _understand_ndjson(heard: Heard) -> None:
    words: list[str] = []
    # Text's own idea of a line is wider than that of bytes: the format has to hold for the widest.
    lines = heard.raw.decode().splitlines()
    assert len(lines) == heard.raw.count(b"\n")
    for line in lines:
        members = json.loads(line)
        assert heard.endings == 0, "something came after the terminal event"
        kind = members.pop("type")
        if kind == "text":
            assert set(members) == {"text"}
            words.append(members["text"])
        else:
            heard.endings += 1
            assert kind in ("done", "error")
            setattr(heard, kind, members)
    heard.text = whole("".join(words))


def whole(text: str) -> str:
    """The same with the halves of surrogate pairs put together, as a caller's strings of UTF-16 have them anyway."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


async def pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """What the network brings, as it comes."""
    async for piece in response.aiter_raw():
        yield piece
