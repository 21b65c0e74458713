"""JSON as the service writes it."""

import json
from typing import Any

from aiohttp import web

type Document = dict[str, Any]


def as_json(value: object, *, escape: bool = False) -> bytes:
    """Compact JSON; `escape` writes everything beyond ASCII as `\\uXXXX`. A lone surrogate is always escaped."""
    text = json.dumps(value, ensure_ascii=escape, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def json_response(document: object, status: int = 200) -> web.Response:
    """An HTTP response with a JSON document."""
    return web.Response(body=as_json(document), status=status, content_type="application/json")
