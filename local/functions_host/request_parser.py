"""Reads requests from the bytes of a caller's connection, as strictly and as leniently as the platform's server.

Kestrel accepts what stricter parsers refuse, such as a control character in the value of a header, a bare LF as the end
of a line, or a Content-Length beside chunks. The host has to accept it too: what becomes of it is decided further on.
"""

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, Protocol

# Kestrel's limits: sizes in bytes.
_MAX_REQUEST_LINE = 8 * 1024
_MAX_HEADERS = 32 * 1024
_MAX_HEADER_COUNT = 100
_MAX_CHUNK_LINE = 4 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=]*(?::[0-9]*)?|\[[0-9A-Fa-f:.]+\](?::[0-9]*)?")
_LENGTH = re.compile(rb"\+?[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_CHUNK_LINE_START = re.compile(rb"[0-9A-Fa-f]*(?:[ \t;\r\n]|\Z)")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)


class RequestError(Exception):
    """The bytes are no request that can be served; `status` is the answer."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(slots=True)
class RequestHead:
    """Request line and headers. `target` begins with `/`, or is `*`; `content_length` is None beside chunks."""

    method: str
    target: bytes
    http_1_0: bool
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    content_length: int | None = None
    chunked: bool = False
    expects_continue: bool = False
    keep_alive: bool = True

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header; `name` in lower case."""
        return [value for other, value in self.headers if other.lower() == name]


class RequestReceiver(Protocol):
    """What a parser reports to."""

    def on_head(self, head: RequestHead) -> None:
        """A request begins."""

    def on_body(self, data: bytes) -> None:
        """A part of its body."""

    def on_end(self) -> None:
        """It is complete."""


class RequestParser:
    """One connection's requests, one after the other. `feed` raises `RequestError`, after which nothing can be fed."""

    def __init__(self, receiver: RequestReceiver) -> None:
        self._receiver = receiver
        self._buffer = bytearray()
        self._state: Literal["head", "body", "size", "data", "data end", "trailers"] = "head"
        self._remaining = 0  # bytes of the body or the chunk

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrive, split anywhere."""
        self._buffer += data
        while self._step():
            pass

    def _step(self) -> bool:
        """Go on by one part; whether another may follow."""
        match self._state:
            case "head":
                return self._read_head()
            case "body" | "data":
                return self._read_data()
            case "trailers":
                line = self._line(_MAX_HEADERS, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                if line == b"":
                    self._end()
                return line is not None
            case "data end":
                line = self._line(_MAX_CHUNK_LINE, HTTPStatus.BAD_REQUEST)
                if line:
                    raise RequestError(HTTPStatus.BAD_REQUEST)
                self._state = "data end" if line is None else "size"
                return line is not None
            case "size":
                if not _CHUNK_LINE_START.match(self._buffer):
                    raise RequestError(HTTPStatus.BAD_REQUEST)
                line = self._line(_MAX_CHUNK_LINE, HTTPStatus.BAD_REQUEST)
                if line is None:
                    return False
                size = line.partition(b";")[0].strip()
                if not _CHUNK_SIZE.fullmatch(size):
                    raise RequestError(HTTPStatus.BAD_REQUEST)
                self._remaining = int(size, 16)
                self._state = "data" if self._remaining else "trailers"
                return True

    def _line(self, limit: int, too_long: HTTPStatus) -> bytes | None:
        """The next line without its end, None if it has not arrived."""
        end = self._buffer.find(b"\n")
        if max(end, len(self._buffer) if end < 0 else 0) > limit:
            raise RequestError(too_long)
        if end < 0:
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return line

    def _read_data(self) -> bool:
        if not self._buffer:
            return False
        data = bytes(self._buffer[: self._remaining])
        del self._buffer[: len(data)]
        self._remaining -= len(data)
        self._receiver.on_body(data)
        if self._remaining == 0:
            if self._state == "body":
                self._end()
            else:
                self._state = "data end"
        return True

    def _end(self) -> None:
        self._state = "head"
        self._receiver.on_end()

    def _read_head(self) -> bool:
        while self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
        first = self._buffer.find(b"\n")
        if (first if first >= 0 else len(self._buffer)) > _MAX_REQUEST_LINE:
            raise RequestError(HTTPStatus.REQUEST_URI_TOO_LONG)
        if first < 0:
            return False
        end = re.compile(rb"\n\r?\n").search(self._buffer, first)
        if (end.start() if end else len(self._buffer)) - first > _MAX_HEADERS:
            raise RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if end is None:
            _parse_request_line(bytes(self._buffer[:first]))  # what is no HTTP at all is refused at once
            return False
        request_line, *lines = (line.removesuffix(b"\r") for line in bytes(self._buffer[: end.start()]).split(b"\n"))
        del self._buffer[: end.end()]
        head = _parse_request_line(request_line)
        _parse_headers(head, lines)
        _check_host(head)
        _read_framing(head)
        self._receiver.on_head(head)
        self._remaining = head.content_length or 0
        self._state = "size" if head.chunked else "body"
        if not head.chunked and self._remaining == 0:
            self._end()
        return True


def _parse_request_line(line: bytes) -> RequestHead:
    method, _, rest = line.removesuffix(b"\r").partition(b" ")
    target, _, version = rest.partition(b" ")
    if not _TOKEN.fullmatch(method) or not _VERSION.fullmatch(version):
        raise RequestError(HTTPStatus.BAD_REQUEST)
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if not target.isascii() or b"\0" in target or b"%00" in target.partition(b"?")[0]:
        raise RequestError(HTTPStatus.BAD_REQUEST)
    if method == b"CONNECT" and _HOST.fullmatch(target):
        target = b"*"
    if not target.startswith(b"/") and not _ABSOLUTE.fullmatch(target) and target != b"*":
        raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED if _HOST.fullmatch(target) else HTTPStatus.BAD_REQUEST)
    return RequestHead(method.decode().upper(), target, http_1_0=version == b"HTTP/1.0")


def _parse_headers(head: RequestHead, lines: list[bytes]) -> None:
    if len(lines) > _MAX_HEADER_COUNT:
        raise RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\0" in value or b"\r" in value or not _is_utf8(value):
            raise RequestError(HTTPStatus.BAD_REQUEST)
        head.headers.append((name, value.strip(b" \t")))


def _check_host(head: RequestHead) -> None:
    hosts = head.values(b"host")
    if len(hosts) != 1 and not (head.http_1_0 and not hosts):
        raise RequestError(HTTPStatus.BAD_REQUEST)
    if any(not _HOST.fullmatch(host) for host in hosts):
        raise RequestError(HTTPStatus.BAD_REQUEST)
    if absolute := _ABSOLUTE.fullmatch(head.target):
        if hosts and hosts[0].lower().removesuffix(b":80") != absolute[1].lower().removesuffix(b":80"):
            raise RequestError(HTTPStatus.BAD_REQUEST)
        head.target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]


def _read_framing(head: RequestHead) -> None:
    """What the headers say about the body and the connection."""
    codings = head.values(b"transfer-encoding")
    lengths = head.values(b"content-length")
    if codings:
        if codings[-1].rpartition(b",")[2].strip().lower() != b"chunked":
            raise RequestError(HTTPStatus.BAD_REQUEST)
        head.chunked = True
    if lengths:
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise RequestError(HTTPStatus.BAD_REQUEST)
        if not head.chunked:
            head.content_length = int(lengths[0])
    elif head.http_1_0 and not head.chunked and head.method in ("POST", "PUT"):
        raise RequestError(HTTPStatus.BAD_REQUEST)
    connection = [token.strip().lower() for value in head.values(b"connection") for token in value.split(b",")]
    head.keep_alive = b"keep-alive" in connection if head.http_1_0 else b"close" not in connection
    head.expects_continue = any(value.lower() == b"100-continue" for value in head.values(b"expect"))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
