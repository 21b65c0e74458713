"""Removes what a caller must not see from the text of an upstream error: the service's address and the credential."""

import re
from collections.abc import Iterable
from typing import Any, Final

from relay.problems import Problem

_MAX_TEXT: Final = 4000  # characters; no message that helps a caller is longer

# A JSON Web Token, in case a service repeats the one it was sent. Each run of these characters is looked at once from
# its beginning and never given back, so that the time is linear in the length, whatever the text.
_RUN: Final = r"[A-Za-z0-9_-]"
_JWT: Final = rf"(?<!{_RUN})(?={_RUN}*eyJ){_RUN}++\.{_RUN}++\.{_RUN}*+"
_WORD: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class Redactor:
    """Removes `secrets`, which are not looked for within words, and whatever looks like a token."""

    def __init__(self, secrets: Iterable[str]) -> None:
        patterns = [rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in secrets if secret]
        self._secrets = re.compile("|".join([*patterns, _JWT]), re.IGNORECASE)

    def __call__(self, problem: Problem) -> Problem:
        """The same problem, with the upstream error cleaned."""
        error = problem.upstream_error
        return problem if error is None else problem.with_upstream_error(self._clean(error))

    def _clean(self, error: dict[str, Any]) -> dict[str, str]:
        kept = {
            name: value
            for name in ("type", "param", "code")
            if isinstance(value := error.get(name), str) and _WORD.fullmatch(value)
        }
        message = error.get("message")
        if isinstance(message, str):
            kept["message"] = _shortened(message)
        return {name: self._secrets.sub("[…]", text) for name, text in kept.items()}


def _shortened(text: str) -> str:
    """At most `_MAX_TEXT` characters, without a last word that may be part of a secret; fit for UTF-8."""
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT]
        text = text[: max(text.rfind(" "), text.rfind("\n"), 0)] + " …"
    return text.encode(errors="replace").decode()  # half a surrogate pair can't be passed on
