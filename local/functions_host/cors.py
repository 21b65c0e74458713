"""Cross-origin requests: the preflight's response and the headers of all others, as the Functions host has them."""

from collections.abc import Sequence

from aiohttp import hdrs, web


class CorsPolicy:
    """The origins that may call (`*`: all), and whether with credentials. Without origins it does nothing."""

    def __init__(self, origins: Sequence[str], *, credentials: bool) -> None:
        self._origins = frozenset(origin.lower() for origin in origins)
        self._credentials = credentials

    def preflight(self, request: web.Request) -> web.Response | None:
        """The response to a preflight request; None for any other request."""
        headers = request.headers
        if (
            not self._origins
            or request.method != "OPTIONS"
            or hdrs.ORIGIN not in headers
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in headers
        ):
            return None
        response = web.Response(status=204)
        if self._allowed_origin(headers[hdrs.ORIGIN]):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = headers[hdrs.ACCESS_CONTROL_REQUEST_METHOD]
            if hdrs.ACCESS_CONTROL_REQUEST_HEADERS in headers:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = headers[hdrs.ACCESS_CONTROL_REQUEST_HEADERS]
        return response

    def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the browser whether the page may read the response."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not self._origins:
            return
        if (allowed := self._allowed_origin(origin)) is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
            if self._credentials:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        if allowed != "*":
            response.headers.add(hdrs.VARY, "Origin")

    def _allowed_origin(self, origin: str) -> str | None:
        if "*" in self._origins:
            return origin if self._credentials else "*"
        return origin if origin.lower() in self._origins else None
