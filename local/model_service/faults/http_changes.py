"""Faults below the response's content: its headers, its content coding, and bytes past the HTTP server."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from local.model_service.faults.fault import Arguments, Splitter
from local.model_service.steps import FOREVER, Cut, Pause, Raw, Step

type Connection = Callable[[Arguments], Iterator[Step]]

# Headers


def coded(name: str) -> Callable[[Arguments], Mapping[str, str]]:
    """The name of a content coding."""
    return lambda _: {"Content-Encoding": name}


def one_header(arguments: Arguments) -> Mapping[str, str]:
    """A header of as many bytes as the first argument says."""
    return {"x-policy": "x" * int(arguments[0])}


def many_headers(arguments: Arguments) -> Mapping[str, str]:
    """As many headers as the first argument says."""
    return {f"x-policy-{number}": "some value of a policy" for number in range(int(arguments[0]))}


# Content codings


def compressed(wbits: int) -> Callable[[Arguments], Splitter]:
    """Compressed by zlib with these `wbits`; what is written together can be decoded as soon as it arrives."""

    def make(_: Arguments) -> Splitter:
        compressor = zlib.compressobj(wbits=wbits)

        def split(written: bytes | None) -> Iterable[bytes]:
            if written is None:
                return (compressor.flush(),)
            return (compressor.compress(written) + compressor.flush(zlib.Z_SYNC_FLUSH),)

        return split

    return make


GZIP = compressed(zlib.MAX_WBITS | 16)
DEFLATE = compressed(zlib.MAX_WBITS)

# Whole responses as bytes: the connection ends with them


def raw(*steps: Step) -> Connection:
    """These steps: bytes, pauses, a cut."""
    return lambda _: iter(steps)


def _refusal(arguments: Arguments) -> tuple[bytes, bytes]:
    """Status line and headers of a refusal, and its body."""
    head = f"HTTP/1.1 {arguments[0]:.0f} Refused\r\nRetry-After: 7\r\nContent-Type: application/json\r\n"
    body = b'{"error":{"code":"Refused","message":"The request is refused."}}'
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


def stalling_refusal(arguments: Arguments) -> Iterator[Step]:
    """A refusal whose body never comes to its end."""
    head, body = _refusal(arguments)
    yield Raw(head + body[:20])
    yield Pause(FOREVER)


def trickling_refusal(arguments: Arguments) -> Iterator[Step]:
    """A refusal whose body takes half a minute."""
    head, body = _refusal(arguments)
    yield Raw(head)
    for at in range(len(body)):
        yield Raw(body[at : at + 1])
        yield Pause(0.5)


_EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
_COMMENT = b": a comment\n\n"
INVALID_CHUNK = raw(
    Raw(_EVENT_STREAM + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(_COMMENT), _COMMENT)),
    Pause(0.05),
    Raw(b"not hexadecimal\r\n"),
    Pause(FOREVER),
)
SHORT_BODY = raw(Raw(_EVENT_STREAM + b"Content-Length: 1000\r\n\r\n" + _COMMENT), Cut())
TWO_LENGTHS = raw(Raw(_EVENT_STREAM + b"Content-Length: 13\r\nContent-Length: 14\r\n\r\n" + _COMMENT), Pause(FOREVER))
NO_CONTENT = raw(Raw(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"), Cut())
REDIRECT = raw(Raw(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"), Cut())
