"""Text that a regular expression matches, for the `pattern` of a JSON schema, by the parser of `re` itself."""

import random
import re
import string
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_MOST = 3  # repetitions beyond the least, where there is no limit
_PRINTABLE = string.ascii_letters + string.digits + " -_.,:;!?#%&+*/=<>()[]{}'\"@$~^|\\"
_CATEGORIES = {
    codes.CATEGORY_DIGIT: string.digits,
    codes.CATEGORY_NOT_DIGIT: string.ascii_letters,
    codes.CATEGORY_WORD: string.ascii_letters + string.digits + "_",
    codes.CATEGORY_NOT_WORD: " -.",
    codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_NOT_SPACE: string.ascii_letters,
}


def text_for_pattern(pattern: str, rng: random.Random) -> str:
    """A text that the pattern matches; raises `ValueError` where none is found, as for a look-ahead."""
    try:
        text = _text(parser.parse(pattern), rng, {})
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if not re.search(pattern, text):
        raise ValueError(f"no text was found for the pattern {pattern!r}")
    return text


def _text(parsed: Any, rng: random.Random, groups: dict[int, str]) -> str:
    return "".join(_piece(code, argument, rng, groups) for code, argument in parsed)


def _piece(code: Any, argument: Any, rng: random.Random, groups: dict[int, str]) -> str:
    match code:
        case codes.LITERAL:
            return chr(argument)
        case codes.NOT_LITERAL:
            return rng.choice(_PRINTABLE.replace(chr(argument), ""))
        case codes.ANY:
            return rng.choice(string.ascii_lowercase)
        case codes.IN:
            return rng.choice(_members(argument))
        case codes.MAX_REPEAT | codes.MIN_REPEAT | codes.POSSESSIVE_REPEAT:
            least, most, repeated = argument
            count = rng.randint(least, min(most, least + _MOST))
            return "".join(_text(repeated, rng, groups) for _ in range(count))
        case codes.SUBPATTERN:
            group, _, _, inner = argument
            text = _text(inner, rng, groups)
            if group is not None:
                groups[group] = text
            return text
        case codes.ATOMIC_GROUP:
            return _text(argument, rng, groups)
        case codes.BRANCH:
            return _text(rng.choice(argument[1]), rng, groups)
        case codes.GROUPREF:
            return groups.get(argument, "")
        case _:
            return ""  # an assertion: the text as a whole is checked


def _members(argument: Any) -> str:
    """The characters of a class; of a negated one those that can be printed."""
    members = ""
    for code, value in argument:
        match code:
            case codes.LITERAL:
                members += chr(value)
            case codes.RANGE:
                members += "".join(chr(one) for one in range(value[0], min(value[1], value[0] + 200) + 1))
            case codes.CATEGORY:
                members += _CATEGORIES[value]
    if argument[0][0] is codes.NEGATE:
        return "".join(sorted(set(_PRINTABLE) - set(members)))
    return members
