"""Faults that change the bytes: unusual frames of events, and how the bytes are divided into writes."""

import random
from collections.abc import Iterable, Iterator

from local.model_service.faults.fault import Arguments, Splitter

# Frames


def _event_line(name: bytes, line_end: bytes = b"\n") -> bytes:
    return b"event: " + name + line_end if name else b""


def crlf(payload: bytes, name: bytes = b"", /) -> bytes:
    """Lines end in CR LF."""
    return b"%bdata: %b\r\n\r\n" % (_event_line(name, b"\r\n"), payload)


def cr(payload: bytes, name: bytes = b"", /) -> bytes:
    """Lines end in CR."""
    return b"%bdata: %b\r\r" % (_event_line(name, b"\r"), payload)


def no_space(payload: bytes, name: bytes = b"", /) -> bytes:
    """No space after the colon of `data:`."""
    return b"%bdata:%b\n\n" % (_event_line(name), payload)


def several_data_lines(payload: bytes, name: bytes = b"", /) -> bytes:
    """One event's payload in two `data:` lines."""
    # Between the members of the outer object a line end is white space to JSON.
    lines = [payload]
    for member in (b',"created":', b',"sequence_number":'):
        first, found, rest = payload.rpartition(member)
        if found:
            lines = [first, found + rest]
    return _event_line(name) + b"".join(b"data: %b\n" % line for line in lines) + b"\n"


def more_fields(payload: bytes, name: bytes = b"", /) -> bytes:
    """Further fields beside `data:`, one of them unknown."""
    return b"id: 7\nretry: 3000\nunheard: of\n%bdata: %b\n\n" % (_event_line(name), payload)


def nameless(payload: bytes, name: bytes = b"", /) -> bytes:
    """No event type, only `data:`."""
    return b"data: %b\n\n" % payload


# Splitters


def each_byte(_: Arguments) -> Splitter:
    """Every byte is a write of its own."""

    def split(written: bytes | None) -> Iterable[bytes]:
        return (written[at : at + 1] for at in range(len(written))) if written else ()

    return split


def random_pieces(arguments: Arguments) -> Splitter:
    """Pieces of random sizes, across the bounds of events; a piece is held back until all of it is there."""
    rng = random.Random(int(arguments[0]))
    held = bytearray()
    size = 1

    def split(written: bytes | None) -> Iterator[bytes]:
        nonlocal size
        if written is None:
            if held:
                yield bytes(held)
            return
        held.extend(written)
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
            size = rng.choice((1, 2, 3, 5, rng.randint(6, 60), rng.randint(60, 900)))

    return split


def one_write(_: Arguments) -> Splitter:
    """The whole response is one write."""
    held = bytearray()

    def split(written: bytes | None) -> Iterator[bytes]:
        if written is None:
            yield bytes(held)
        else:
            held.extend(written)

    return split
