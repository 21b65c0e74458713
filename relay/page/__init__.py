"""Serves the chat page, `chat.html`, with a Content-Security-Policy that allows only its inline script and style."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

_FILE = Path(__file__).with_name("chat.html")

# A CSP hash covers an inline element's text, exactly as it is between the tags:
# https://www.w3.org/TR/CSP3/#match-element-to-source-list
_INLINE = re.compile(rb"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)


def chat_page(if_none_match: str | None = None) -> Response:
    """Response to `GET /chat`: the page, or 304 when `if_none_match`, the If-None-Match header, contains its ETag.

    Raises `OSError` when `chat.html` is missing from the deployed package.
    """
    body, headers = _page()
    if if_none_match is not None and headers["ETag"] in re.findall(r'"[^"]*"', if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="text/html", headers=headers)


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    body = _FILE.read_bytes()
    return body, {
        "Content-Security-Policy": _content_security_policy(body),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Permissions-Policy": (
            "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=(), clipboard-write=(self)"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _content_security_policy(body: bytes) -> str:
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for element, text in _INLINE.findall(body):
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        hashes[element.decode()].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",  # the favicon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
