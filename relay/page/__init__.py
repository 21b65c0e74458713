"""Serves the chat page, `chat.html`, with a Content-Security-Policy that allows only its own scripts and style, and the
files in `assets` that it loads on first use.

`make web` builds all of them from `web/`; `build.json` has the hashes of what went in and came out.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

_FILE: Final = Path(__file__).with_name("chat.html")
_ASSETS: Final = Path(__file__).with_name("assets")

# A CSP hash covers an inline element's text, exactly as it is between the tags:
# https://www.w3.org/TR/CSP3/#match-element-to-source-list
_INLINE: Final = re.compile(rb"<(script|style)\b([^>]*)>(.*?)</\1>", re.DOTALL)
_DATA: Final = b'type="application/json"'  # a data block, which never runs
_CONFIG: Final = b'<script type="application/json" id="config">{}</script>'

_ASSET_TYPES: Final = {".js": "text/javascript", ".json": "application/json"}


def chat_page(headers: Mapping[str, str], config: Mapping[str, Any] | None = None) -> Response:
    """Response to `GET /chat`: the page with this configuration, or 304 when If-None-Match contains its ETag.

    `headers` are the request's. `config` has the members of `Config` in `web/src/config.ts`; those that are missing
    have the page's own values. Raises `OSError` when `chat.html` is missing from the deployed package.
    """
    body, page_headers = _page(json.dumps(config or {}, sort_keys=True))
    return _answer(headers, body, page_headers, "text/html")


def asset(name: str, headers: Mapping[str, str]) -> Response | None:
    """Response to `GET /chat/assets/{name}`: a file whose name holds its hash, or None when there is no such file."""
    if name not in _asset_names():
        return None
    body, tag = _asset(name)
    asset_headers = {
        "Cache-Control": "public, max-age=31536000, immutable",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": tag,
        "X-Content-Type-Options": "nosniff",
    }
    return _answer(headers, body, asset_headers, _ASSET_TYPES[Path(name).suffix])


def redirect() -> Response:
    """Response to `GET /`: the page is at `/chat`."""
    return RedirectResponse("chat", status_code=302, headers={"Cache-Control": "no-cache"})


def _answer(request: Mapping[str, str], body: bytes, headers: Mapping[str, str], media_type: str) -> Response:
    headers = {**headers, "Vary": "Accept-Encoding"}
    if headers["ETag"] in re.findall(r'"[^"]*"', request.get("if-none-match") or ""):
        return Response(status_code=304, headers=headers)
    if _accepts_gzip(request.get("accept-encoding") or ""):
        return Response(_compressed(body), media_type=media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(body, media_type=media_type, headers=headers)


def _accepts_gzip(accept_encoding: str) -> bool:
    """RFC 9110, section 12.5.3; a client that accepts any coding gets none."""
    for entry in accept_encoding.lower().split(","):
        coding, _, parameters = entry.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q\s*=\s*0(?:\.0*)?\s*", parameters)
    return False


@cache
def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, 9, mtime=0)


@cache
def _page(config: str) -> tuple[bytes, dict[str, str]]:
    # The characters that could end the element or begin a comment in it.
    data = config.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    body = _FILE.read_bytes().replace(_CONFIG, _CONFIG.replace(b"{}", data.encode()), 1)
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


@cache
def _asset_names() -> frozenset[str]:
    return frozenset(path.name for path in _ASSETS.iterdir())


@cache
def _asset(name: str) -> tuple[bytes, str]:
    body = (_ASSETS / name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _content_security_policy(body: bytes) -> str:
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for element, attributes, text in _INLINE.findall(body):
        if _DATA not in attributes:
            hashes[element.decode()].append(_source(text))
    # A module that the page imports matches by its hash, which the page's import map names too:
    # https://www.w3.org/TR/CSP3/#external-hash
    hashes["script"] += [_source(_asset(name)[0]) for name in sorted(_asset_names()) if name.endswith(".js")]
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",  # the favicon, and the pictures of a message
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _source(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
