"""Faults that change the answer's text: very long answers."""

from collections.abc import Sequence
from functools import lru_cache

from local.model_service import text_generation
from local.model_service.faults.fault import Arguments


def long(arguments: Arguments) -> Sequence[str]:
    """As many bytes of UTF-8 as the first argument says."""
    return _prose(int(arguments[0]))


def one_token(arguments: Arguments) -> Sequence[str]:
    """The same as a single token."""
    return ["".join(_prose(int(arguments[0])))]


def many_tokens(arguments: Arguments) -> Sequence[str]:
    """As many tokens as the first argument says."""
    tokens = _prose(64 * 1024)
    count = int(arguments[0])
    return [*tokens * (count // len(tokens)), *tokens[: count % len(tokens)]]


def no_token(_: Arguments) -> Sequence[str]:
    """An empty answer."""
    return ()


def refusal(_: Arguments) -> Sequence[str]:
    """Why the model refuses."""
    return text_generation.tokenize("I'm sorry, but I can't help with that.")


@lru_cache(maxsize=4)
def _prose(size: int) -> list[str]:
    """Tokens of prose, `size` bytes of UTF-8 (at most a character less)."""
    prose = text_generation.compose([{"role": "user", "content": "2000 words"}]) + " 🌿\n\n"
    length = len(prose.encode())
    text = prose * (size // length) + prose.encode()[: size % length].decode(errors="ignore")
    return text_generation.tokenize(text)
