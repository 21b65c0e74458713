"""The members of a JSON object, each kept as it stands in the body, and those that this app reads of them."""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.problems import FieldError

_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode

# The escape of half a surrogate pair, in a text in which every backslash begins an escape: of a high one without a low
# one after it, or of a low one without a high one before it.
_HALF_PAIR: Final = re.compile(
    rb"\\u(?=[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F])"
)
_MAX_HALF_PAIRS: Final = 10_000  # a text that was cut has one
# Control characters, of which no text has all: as they are, and escaped, which is possible in one way only, as their
# codes have no letters.
_STAND_INS: Final = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (*range(0x80, 0x8A), *range(0x90, 0x9A)))


class TooManyMembersError(Exception):
    """The object has more members than it may have."""


def split_members(body: bytes, most: int) -> dict[str, Raw]:
    """The members of the JSON object, each as it stands in the body; of equal names the last one counts.

    No value is decoded, so that the time is about that of some copies of the body, whatever it holds, and 0.3 µs for
    each member.

    Raises ValueError for what is not JSON (the errors of msgspec and of decoding UTF-8 are of that kind),
    msgspec.ValidationError for what is not an object, and TooManyMembersError for more than `most` members.
    """
    body.decode()
    # msgspec refuses half a surrogate pair, which is valid JSON (RFC 8259, section 8.2): another character stands in
    # for the beginning of its escape meanwhile.
    stand_in = b""
    if rb"\ud" in body or rb"\uD" in body:
        body, stand_in = _hide_half_pairs(body)
    members = _decode_members(body)
    if len(members) > most:
        raise TooManyMembersError
    if not stand_in:
        return members
    if any(stand_in.decode() in name for name in members):
        raise ValueError("half a surrogate pair in a name, which can't be written again")
    return {name: Raw(bytes(raw).replace(stand_in, rb"\u")) for name, raw in members.items()}


def _hide_half_pairs(body: bytes) -> tuple[bytes, bytes]:
    """The same with a stand-in for the first two characters of each half pair's escape, and that stand-in."""
    single = body.replace(rb"\\", b"\x01\x01")  # so that every backslash begins an escape
    hidden, count = _HALF_PAIR.subn(b"\x02", single, _MAX_HALF_PAIRS)
    if not count:
        return body, b""
    stand_in = next((it for it, escaped in _STAND_INS if it not in body and escaped not in body), None)
    if stand_in is None or b"\x01" in body or b"\x02" in body:
        raise ValueError("control characters beside half a surrogate pair")
    return hidden.replace(b"\x01\x01", rb"\\").replace(b"\x02", stand_in), stand_in


class LookAlikes:
    """Finds the names that a service may take for one of `read`, which they are not.

    Go's encoding/json matches members without regard to case, by Unicode's simple case folding (which makes a k of the
    Kelvin sign and an s of the long s); its second version, and protobuf's JSON, also know names without their
    underscores; Java's equalsIgnoreCase takes both kinds of the dotless i for an i; and in C a name ends at a NUL.
    """

    def __init__(self, *read: str) -> None:
        self._read = frozenset(read)
        self._folded = {_fold(name): name for name in read}

    def find(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Each such name, with the one that it may be taken for."""
        folded = ((name, self._folded.get(_fold(name))) for name in names if name not in self._read)
        return [(name, like) for name, like in folded if like is not None]


def _fold(name: str) -> str:
    """The name as the most lenient service reads it; the beginning of one that is longer than any that is read."""
    name = name.partition("\0")[0].replace("_", "").replace("-", "")[:64]
    return name.replace("\u0130", "i").upper().lower()


_decode: Final = json.JSONDecoder().decode  # knows half a surrogate pair
_MAX_VALUE: Final = 16 * 1024  # bytes of a value that is read: a model's name, a number, an object of options


class MemberReader:
    """Reads single members and collects what is wrong with them in `errors`.

    null counts as absent, as it does for OpenAI's own service.
    """

    def __init__(self, members: dict[str, Raw]) -> None:
        self._members = members
        self.errors: list[FieldError] = []

    def add_error(self, name: str, message: str) -> None:
        self.errors.append(FieldError(name, message))

    def string(self, name: str) -> str | None:
        value = self._value(name)
        if value is not None and (not isinstance(value, str) or not value):
            self.add_error(name, "must be a string and not empty")
            return None
        return value

    def boolean(self, name: str) -> bool:
        value = self._value(name)
        if value is not None and not isinstance(value, bool):
            self.add_error(name, "must be true or false")
        return value is True

    def object(self, name: str) -> dict[str, Any]:
        value = self._value(name)
        if value is not None and not isinstance(value, dict):
            self.add_error(name, "must be a JSON object")
            return {}
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            self.add_error(name, "must not hold half a surrogate pair")
        return value or {}

    def positive_integer(self, name: str) -> int | None:
        value = self._value(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.add_error(name, "must be a whole number greater than 0")
            return None
        return value

    def _value(self, name: str) -> Any:
        member = self._members.get(name)
        if member is None:
            return None
        raw = bytes(member)
        if len(raw) > _MAX_VALUE:
            self.add_error(name, f"is too long: it may have {_MAX_VALUE} bytes at most")
            return None
        try:
            return _decode(raw.decode())
        except (ValueError, RecursionError):  # for example a number of thousands of digits
            self.add_error(name, "can't be read")
            return None
