"""Content codings of responses (RFC 9110, section 8.4.1): this app asks for none, and reads what can be read.

Decoded as a stream, in bounded pieces. Brotli and Zstandard can't be: Python 3.13 has no decoder of theirs. What is no
coding (`none`, `utf-8`, `aws-chunked`) is sent by servers that mean none, and ignored as other clients do.
"""

import asyncio
import zlib
from typing import Final

import aiohttp

_PIECE: Final = 256 * 1024  # bytes that one read decodes at most: a thousandth of them may have been received
_REMAINDER: Final = 16 * 1024 * 1024  # bytes
_DECODED: Final = frozenset(("gzip", "x-gzip", "deflate"))
_UNREADABLE: Final = frozenset(
    ("br", "brotli", "zstd", "compress", "x-compress", "bzip2", "xz", "lzma", "lz4", "snappy", "exi", "dcb", "dcz")
)
_NAMED: Final = 4  # codings of one response that an error names


class UnreadableCodingError(Exception):
    """The response is in a content coding that can't be decoded; the text names it, fit for a log."""


def coding_of(header: str | None) -> str | None:
    """The coding to decode, by the header `Content-Encoding`; None where there is none.

    Raises `UnreadableCodingError`.
    """
    if not header:
        return None
    codings = [name for part in header.split(",") if (name := part.strip().lower()) in _DECODED | _UNREADABLE]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _DECODED:
        raise UnreadableCodingError(", ".join(codings[:_NAMED]))
    return codings[0]


class Inflater:
    """Decodes gzip, also of several members, and deflate, of which servers send two kinds: with zlib's header or bare.

    `finished`: the coded data has come to its end. Raises `zlib.error` for what is not in the coding.
    """

    def __init__(self, coding: str) -> None:
        self._gzip = coding != "deflate"
        self._inflate: zlib._Decompress | None = None
        self._waiting = b""  # received, not decoded yet
        self._held_back = False  # zlib may hold some of the content without any further input

    @property
    def finished(self) -> bool:
        """Whether the data may end here."""
        return not self.waiting and (self._inflate is None or self._inflate.eof)

    @property
    def waiting(self) -> bool:
        """Whether there may be more to decode without further bytes."""
        return bool(self._waiting) or self._held_back

    def decode(self, received: bytes = b"", limit: int = _PIECE) -> bytes:
        """The next piece of the content, at most `limit` bytes."""
        data = self._waiting + received if self._waiting else received
        self._waiting = b""
        while data or self._held_back:
            if self._inflate is None or self._inflate.eof:
                self._inflate = self._new(data)
            content = self._inflate.decompress(data, limit)
            ended = self._inflate.eof
            data = self._inflate.unused_data if ended else self._inflate.unconsumed_tail
            self._held_back = len(content) == limit and not ended
            if content:
                self._waiting = data
                return content
        return b""

    def _new(self, data: bytes) -> "zlib._Decompress":
        if self._gzip:
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        with_header = data[0] & 0x0F == zlib.DEFLATED  # RFC 1950, section 2.2
        return zlib.decompressobj(zlib.MAX_WBITS if with_header else -zlib.MAX_WBITS)


class InflatedReader:
    """The decoded body of a response: `read` as of `relay.upstream.answer.Answer`."""

    def __init__(self, content: aiohttp.StreamReader, coding: str) -> None:
        self._content = content
        self._inflater = Inflater(coding)

    async def read(self) -> bytes:
        """The next piece of what has arrived; empty at the end. A body that ends within the coding is a cut one."""
        while True:
            if self._inflater.waiting:
                await asyncio.sleep(0)  # a megabyte can decode to a gigabyte: others have their turn in between
                received = b""
            elif not (received := await self._content.readany()):
                if not self._inflater.finished:
                    raise aiohttp.ClientPayloadError("The coded body is cut.")
                return b""
            if decoded := self._decode(received):
                return decoded

    def read_remaining(self, received: bytes) -> bytes:
        """What the last bytes before a break decode to, at most `_REMAINDER` bytes."""
        try:
            return self._inflater.decode(received, _REMAINDER)
        except zlib.error:
            return b""

    def _decode(self, received: bytes) -> bytes:
        try:
            return self._inflater.decode(received)
        except zlib.error as error:
            raise aiohttp.ClientPayloadError("The body is not in its content coding.") from error
