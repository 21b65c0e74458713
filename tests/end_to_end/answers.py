"""Reads answers of `POST /stream` in every format: the text, and how the answer ended."""

import json
from collections.abc import Mapping
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

# A transfer that is broken off: the host resets the connection, or closes it before the end of the body.
BREAKS: Final = (httpx.ReadError, httpx.RemoteProtocolError)

PING: Final = b": ping\n\n"


@dataclass(slots=True)
class ReceivedAnswer:
    """One answer, read to its end.

    `done` or `error`: the members of the terminal event (of a document: those beside its text). `problem`: the members
    of an error response. `broken`: the connection broke before the end of the body. `endings` counts the terminal
    events.
    """

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    raw: bytes = b""
    text: str = ""
    reasoning: str = ""
    done: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    broken: bool = False
    endings: int = 0

    @property
    def pings(self) -> int:
        """The number of pings."""
        return self.raw.count(PING)


def request_body(media_type: str, prompt: str | Mapping[str, Any] = "Say something.", **members: Any) -> dict[str, Any]:
    """The body of a request for an answer in this format; `prompt` is the input, or all members of the body."""
    body = {"input": prompt} if isinstance(prompt, str) else dict(prompt)
    return body | ({"stream": False} if media_type == DOCUMENT else {}) | members


async def read_until_broken(response: httpx.Response) -> tuple[bytes, bool]:
    """The body of a streamed response, as much of it as arrives, and whether its transfer was broken off."""
    chunks: list[bytes] = []
    try:
        async for chunk in response.aiter_raw():
            chunks.append(chunk)
    except BREAKS:
        return b"".join(chunks), True
    return b"".join(chunks), False


async def post_stream(
    client: httpx.AsyncClient, media_type: str, prompt: str | Mapping[str, Any] = "Say something.", **members: Any
) -> ReceivedAnswer:
    """Request an answer in a format, and read it to its end."""
    headers = {} if media_type == DOCUMENT else {"Accept": media_type}
    body = request_body(media_type, prompt, **members)
    answer = ReceivedAnswer()
    async with client.stream("POST", "/stream", json=body, headers=headers) as response:
        answer.raw, answer.broken = await read_until_broken(response)
        answer.status, answer.headers = response.status_code, response.headers
    parse_answer(answer, media_type)
    return answer


@dataclass(frozen=True)
class StreamedResponse:
    """A response that was streamed, as it came; `broken`: its transfer was broken off."""

    status_code: int
    headers: httpx.Headers
    content: bytes
    broken: bool

    def json(self) -> Any:
        """The content, parsed."""
        return json.loads(self.content)

    @property
    def text(self) -> str:
        """The content, decoded."""
        return self.content.decode()


async def post_streamed(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
) -> StreamedResponse:
    """Request a stream that may be broken off, and read it to its end."""
    async with client.stream("POST", url, json=body, headers=headers) as response:
        content, broken = await read_until_broken(response)
        return StreamedResponse(response.status_code, response.headers, content, broken)


def parse_answer(answer: ReceivedAnswer, media_type: str) -> None:
    """Parse `raw` into the text and the ending. Strict: anything that the format does not contain is a failure."""
    if answer.status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        answer.problem = json.loads(answer.raw)
        return
    assert answer.headers["content-type"].partition(";")[0] == media_type
    if media_type == SSE:
        _parse_sse(answer)
    elif media_type == NDJSON:
        _parse_ndjson(answer)
    elif media_type == PLAIN:
        answer.text = answer.raw.decode()
        answer.endings = not answer.broken
    else:
        document = json.loads(answer.raw)
        answer.text, answer.reasoning = document.pop("text"), document.pop("reasoning", None) or ""
        answer.done, answer.endings = document, 1


def _parse_sse(answer: ReceivedAnswer) -> None:
    content = httpx.Response(200, headers={"content-type": SSE}, content=answer.raw)
    texts: list[str] = []
    for event in EventSource(content).iter_sse():
        members = event.json()
        assert answer.endings == 0, "there is an event after the terminal event"
        if event.event == "message":
            assert set(members) == {"text"}
            texts.append(members["text"])
        elif event.event == "reasoning":
            assert set(members) == {"text"}
            answer.reasoning += members["text"]
        else:
            answer.endings += 1
            assert event.event in ("done", "error")
            setattr(answer, event.event, members)
    answer.text = join_surrogates("".join(texts))


def _parse_ndjson(answer: ReceivedAnswer) -> None:
    texts: list[str] = []
    # `str.splitlines` splits at more characters than `bytes.splitlines`: neither may find more lines than there are.
    lines = answer.raw.decode().splitlines()
    assert len(lines) == answer.raw.count(b"\n")
    for line in lines:
        members = json.loads(line)
        assert answer.endings == 0, "there is a line after the terminal event"
        kind = members.pop("type")
        if kind == "text":
            assert set(members) == {"text"}
            texts.append(members["text"])
        elif kind == "reasoning":
            assert set(members) == {"text"}
            answer.reasoning += members["text"]
        else:
            answer.endings += 1
            assert kind in ("done", "error")
            setattr(answer, kind, members)
    answer.text = join_surrogates("".join(texts))


def join_surrogates(text: str) -> str:
    """The same text with the halves of surrogate pairs joined; in a caller's UTF-16 strings they are joined anyway."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
