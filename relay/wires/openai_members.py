"""What the wires of OpenAI's API have in common in reading a body: its members, and what is wrong with them."""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw

from relay.problems import INVALID_JSON, INVALID_REQUEST, Problem
from relay.wires.json_members import MemberReader, TooManyMembersError, split_members

_MAX_MEMBERS: Final = 256  # OpenAI's API has about forty, other servers' additions included a hundred
_MAX_ERRORS: Final = 20
_MAX_NAME: Final = 100  # characters of a caller's name in an error


def read_members(body: bytes, needed: str, example: str | None = None) -> dict[str, Raw] | Problem:
    """The members of a body, each as it stands in it; `needed` names in the problem what belongs there.

    `example`: how that is named where the body is no JSON at all.
    """
    try:
        return split_members(body.removeprefix(b"\xef\xbb\xbf"), _MAX_MEMBERS)
    except msgspec.ValidationError:
        return INVALID_REQUEST.with_detail(f"The body must be one JSON object with {needed} in it.")
    except (ValueError, RecursionError):
        return INVALID_JSON.with_detail(f"Send one JSON object in UTF-8, with {example or f'{needed} in it'}.")
    except TooManyMembersError:
        return INVALID_REQUEST.with_detail(f"The body may have {_MAX_MEMBERS} members at most; leave out the others.")


def problem_of(reader: MemberReader, look_alikes: Iterable[tuple[str, str]]) -> Problem | None:
    """The problem that names what is wrong with the members; `look_alikes` are names that one may be taken for another.

    A model service that took `MODEL` for `model` would let a caller pass by what this app decides.
    """
    for name, like in look_alikes:
        reader.add_error(name[:_MAX_NAME], f"must be written {like}, or left out")
    return INVALID_REQUEST.with_errors(*reader.errors[:_MAX_ERRORS]) if reader.errors else None
