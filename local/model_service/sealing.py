"""Content that only the account which made it can read: encrypted reasoning and compacted conversations."""

import base64
import binascii
import hashlib
import hmac
import secrets


class Seal:
    """Seals text and opens what it sealed. It stands for encryption: the text is not secret, but can't be forged."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def seal(self, text: str) -> str:
        """The sealed text, in URL-safe base64."""
        return base64.urlsafe_b64encode(self._mark(text.encode()) + text.encode()).decode()

    def open(self, sealed: str) -> str | None:
        """The text; None when it was not sealed by this account."""
        try:
            content = base64.urlsafe_b64decode(sealed)
        except (binascii.Error, ValueError):
            return None
        mark, text = content[:32], content[32:]
        return text.decode() if hmac.compare_digest(mark, self._mark(text)) else None

    def _mark(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, hashlib.sha256)
