"""Cross-origin requests: the preflight's response and the headers of all others, as the Functions host has them."""

from collections.abc import Sequence

from local.functions_host.caller_connection import CallerRequest

type _Headers = list[tuple[bytes, bytes]]


class CorsPolicy:
    """The origins that may call (`*`: all), and whether with credentials. Without origins it does nothing."""

    def __init__(self, origins: Sequence[str], *, credentials: bool) -> None:
        self._origins = frozenset(origin.lower() for origin in origins)
        self._credentials = credentials

    def preflight(self, request: CallerRequest) -> _Headers | None:
        """The headers of the response to a preflight request; None for any other request."""
        if not self._origins or request.method != "OPTIONS":
            return None
        origin, method = request.header(b"origin"), request.header(b"access-control-request-method")
        if origin is None or method is None:
            return None
        if self._allowed_origin(origin) is None:
            return []
        headers = [(b"Access-Control-Allow-Methods", method.encode())]
        if (wanted := request.header(b"access-control-request-headers")) is not None:
            headers.append((b"Access-Control-Allow-Headers", wanted.encode()))
        return headers

    def headers(self, request: CallerRequest) -> _Headers:
        """The headers that tell the browser whether the page may read the response."""
        origin = request.header(b"origin") if self._origins else None
        if origin is None:
            return []
        headers = []
        if (allowed := self._allowed_origin(origin)) is not None:
            headers.append((b"Access-Control-Allow-Origin", allowed.encode()))
            if self._credentials:
                headers.append((b"Access-Control-Allow-Credentials", b"true"))
        if allowed != "*":
            headers.append((b"Vary", b"Origin"))
        return headers

    def _allowed_origin(self, origin: str) -> str | None:
        if "*" in self._origins:
            return origin if self._credentials else "*"
        return origin if origin.lower() in self._origins else None
