"""The members of a JSON object, each kept as it stands in the body, and those that this app reads of them."""

import json
from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.problems import FieldError

_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode


def split_members(body: bytes) -> dict[str, Raw]:
    """The members of the JSON object, each as it stands in the body.

    Raises ValueError for what is not JSON (the errors of msgspec and of decoding UTF-8 are of that kind), and
    msgspec.ValidationError or TypeError for what is not an object.
    """
    text = body.decode()
    try:
        return _decode_members(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # msgspec refuses half a surrogate pair, which is valid JSON (RFC 8259, section 8.2).
        if not isinstance(_JSON.decode(text), dict):
            raise TypeError from None
    members: dict[str, Raw] = {}
    position = text.index("{") + 1
    while text[position := _skip_whitespace(text, position)] != "}":
        name, position = _JSON.raw_decode(text, position)
        begin = _skip_whitespace(text, _skip_whitespace(text, position) + 1)
        _, position = _JSON.raw_decode(text, begin)
        name.encode()  # a name has to be written again, and half a surrogate pair in it can't be
        members[name] = Raw(text[begin:position].encode())
        position = _skip_whitespace(text, position)
        position += text[position] == ","
    return members


def _skip_whitespace(text: str, position: int) -> int:
    while text[position] in " \t\r\n":
        position += 1
    return position


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_JSON: Final = json.JSONDecoder(parse_constant=_reject_constant)


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
        raw = self._members.get(name)
        try:
            return None if raw is None else _JSON.decode(bytes(raw).decode())
        except (ValueError, RecursionError):  # for example a number of thousands of digits
            self.add_error(name, "can't be read")
            return None
