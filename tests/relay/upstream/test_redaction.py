"""What is removed from an upstream error, and how long that takes at most."""

import time

import pytest

from relay.problems import INVALID_REQUEST
from relay.upstream import redaction
from relay.upstream.redaction import Redactor

TOKEN = "eyJhbGciOi.eyJhdWQiOi.c2ln_bmF0-dXJl"


def cleaned(message: str, *secrets: str) -> str:
    error = Redactor(secrets)(INVALID_REQUEST.with_upstream_error({"message": message})).upstream_error
    assert error is not None
    return str(error["message"])


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (TOKEN, "[…]"),
        (f"Bearer {TOKEN}.", "Bearer […]."),
        (f"token={TOKEN};{TOKEN}", "token=[…];[…]"),
        (f"key_{TOKEN}", "[…]"),
        ("eyJhbGciOi.eyJhdWQiOi", "eyJhbGciOi.eyJhdWQiOi"),
        ("a.b.c", "a.b.c"),
        ("", ""),
    ],
)
def test_tokens(text: str, clean: str) -> None:
    assert cleaned(text) == clean


def test_a_long_text_is_cut_without_a_part_of_a_secret() -> None:
    text = "x" * 3990 + " the-secret-key and more"
    assert cleaned(text, "the-secret-key") == "x" * 3990 + " …"
    assert cleaned("y" * 5000) == " …"
    assert cleaned("z" * 4000) == "z" * 4000


@pytest.mark.parametrize("part", ["eyJ", "eyJ.", "eyJa.eyJb", "-eyJ", "a", "eyJ.a.", "eyJ_", "host."])
def test_the_time_is_linear(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_MAX_TEXT", 10**9)

    def seconds(size: int) -> float:
        text = part * (size // len(part))
        times = []
        for _ in range(3):
            began = time.process_time()
            cleaned(text, "host.example")
            times.append(time.process_time() - began)
        return min(times)

    # A quadratic pattern takes minutes for the second, and 16 times as long as for the first.
    assert seconds(400_000) < max(10 * seconds(100_000), 0.2)
