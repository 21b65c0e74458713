"""Content codings: which are decoded, how they arrive in pieces, what is bounded, and what counts as cut."""

import asyncio
import gzip
import random
import zlib
from typing import Any

import aiohttp
import pytest

from relay.upstream.content_coding import InflatedReader, Inflater, UnreadableCodingError, coding_of
from tests.relay.upstream.fakes import FakeResponse

TEXT = b"".join(b'data: {"choices":[{"delta":{"content":"word %d"}}]}\n\n' % number for number in range(2000))


def bare(content: bytes) -> bytes:
    """Deflate without zlib's header, as some servers send it."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]),
    "deflate": zlib.compress(TEXT),
    "deflate, bare": bare(TEXT),
    "gzip, stored": gzip.compress(TEXT, 0),
}


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        (" Identity , ,identity", None),
        ("gzip", "gzip"),
        ("identity, GZIP", "gzip"),
        ("x-gzip", "x-gzip"),
        ("deflate", "deflate"),
        ("none", None),
        ("UTF-8", None),
        ("aws-chunked", None),
        ("aws-chunked, gzip", "gzip"),
        ("\u00fc" * 70, None),
    ],
)
def test_what_is_decoded(header: str | None, coding: str | None) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("br", "br"),
        ("ZSTD", "zstd"),
        ("gzip,br", "gzip, br"),
        ("gzip, gzip", "gzip, gzip"),
        ("br," * 1000, "br, br, br, br"),
        *[
            (name, name)
            for name in (
                "brotli",
                "compress",
                "x-compress",
                "bzip2",
                "xz",
                "lzma",
                "lz4",
                "snappy",
                "exi",
                "dcb",
                "dcz",
            )
        ],
        ("none, br", "br"),
    ],
)
def test_what_is_not(header: str, named: str) -> None:
    with pytest.raises(UnreadableCodingError) as caught:
        coding_of(header)
    assert str(caught.value) == named


async def read_all(reader: InflatedReader) -> list[bytes]:
    pieces = []
    while piece := await reader.read():
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
async def test_pieces(name: str, seed: int | None) -> None:
    response = FakeResponse()
    reader = InflatedReader(response.content, name.partition(",")[0])
    coded, rng = CODED[name], random.Random(seed)

    async def feed() -> None:
        at = 0
        while at < len(coded):
            size = len(coded) if seed is None else rng.choice((1, 2, 7, 100, 5000))
            response.content.feed_data(coded[at : at + size])
            at += size
            await asyncio.sleep(0)
        response.content.feed_eof()

    feeding = asyncio.create_task(feed())
    assert b"".join(await read_all(reader)) == TEXT
    await feeding


async def test_an_event_is_decoded_when_it_arrives() -> None:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    response = FakeResponse()
    reader = InflatedReader(response.content, "gzip")
    for number in range(3):
        event = b"data: %d\n\n" % number
        response.content.feed_data(compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH))
        assert await reader.read() == event
    response.content.feed_data(compressor.flush())
    response.content.feed_eof()
    assert await reader.read() == b""


@pytest.mark.parametrize("size", [10_000_000, 262_144, 262_145, 2 * 262_144, 262_144 + 258])
async def test_a_read_is_bounded_and_others_have_their_turn(size: int) -> None:
    response = FakeResponse(content=gzip.compress(b"\0" * size))
    reader = InflatedReader(response.content, "gzip")
    reading = asyncio.create_task(read_all(reader))
    turns = 0
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    pieces = await reading
    assert sum(map(len, pieces)) == size
    assert max(map(len, pieces)) <= 256 * 1024
    assert turns >= len(pieces)


@pytest.mark.parametrize("name", ["gzip", "deflate", "deflate, bare"])
@pytest.mark.parametrize("missing", [1, 4, 1000])
async def test_a_body_that_ends_within_the_coding_is_cut(name: str, missing: int) -> None:
    response = FakeResponse(content=CODED[name][:-missing])
    reader = InflatedReader(response.content, name.partition(",")[0])
    received = b""
    with pytest.raises(aiohttp.ClientPayloadError, match=r"^The coded body is cut\.$"):  # noqa: PT012
        while True:
            received += await reader.read()
    assert TEXT.startswith(received)
    assert len(received) > len(TEXT) / 2


async def test_an_empty_body_is_complete() -> None:
    assert await InflatedReader(FakeResponse(content=b"").content, "gzip").read() == b""


@pytest.mark.parametrize("content", [b"data: x\n\n", CODED["gzip"][:100] + b"\xff" * 100, CODED["gzip"] + b"more"])
async def test_what_is_not_in_the_coding(content: bytes) -> None:
    reader = InflatedReader(FakeResponse(content=content).content, "gzip")
    with pytest.raises(aiohttp.ClientPayloadError, match="not in its content coding"):
        await read_all(reader)


async def test_cancelling_a_read_loses_nothing() -> None:
    response = FakeResponse()
    reader = InflatedReader(response.content, "gzip")
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait((reading,))
    response.content.feed_data(gzip.compress(b"x"))
    assert await reader.read() == b"x"


class TestRemaining:
    def reader(self) -> InflatedReader:
        content: Any = None
        return InflatedReader(content, "gzip")

    def test_what_was_received(self) -> None:
        assert self.reader().read_remaining(CODED["gzip"][:-1]) == TEXT

    def test_it_is_bounded(self) -> None:
        assert len(self.reader().read_remaining(gzip.compress(b"\0" * 20_000_000))) == 16 * 1024 * 1024

    def test_what_is_not_in_the_coding(self) -> None:
        assert self.reader().read_remaining(b"data: x") == b""


def test_a_limit() -> None:
    inflater = Inflater("gzip")
    pieces = [inflater.decode(CODED["gzip"], 1000)]
    while inflater.waiting:
        pieces.append(inflater.decode(limit=1000))
    assert b"".join(pieces) == TEXT
    assert inflater.finished
    assert max(map(len, pieces)) == 1000
