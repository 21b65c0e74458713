"""Connections to the model service that end at once, and whose reader learns of everything that breaks them.

aiohttp's own connections are made for peers that behave: they say goodbye before they end, and wait for the answer.
"""

import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError


class Connector(aiohttp.TCPConnector):
    """Keeps connections for reuse, without a limit of their number; makes those of the class `Connection`."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=60)
        # There is no public way to name the class. `tests/relay/upstream/test_connector.py` fails where this one ends.
        self._factory = functools.partial(Connection, loop=self._loop)  # type: ignore[assignment]


class Connection(ResponseHandler):
    """One connection. `responded`: since its last request, at least the headers of some response have arrived."""

    responded = False
    _body: Any = None  # the body of the last response

    def close(self) -> None:
        """End the connection at once.

        A TLS connection that is closed sends its goodbye and waits up to 30 s for the other side's; any connection
        waits for ever until the other side has taken all bytes that were written.
        """
        self._body = None
        self.abort()

    def is_connected(self) -> bool:
        """Whether it can be used for a request: not after a response that no request asked for.

        Some servers report a timeout on an idle connection (RFC 9112, section 9.5); it would answer the next request.
        """
        return super().is_connected() and not len(self)

    def set_response_params(self, **parameters: Any) -> None:
        """A request follows."""
        self.responded = False
        self._body = None
        super().set_response_params(**parameters)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """The headers of a response have arrived, an interim one (1xx) included."""
        self.responded = True
        self._body = data[1]
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """The connection broke.

        aiohttp tells it only to those who wait for headers. After bytes that are not HTTP, such as an invalid chunk
        size, the reader of the body would wait for ever.
        """
        if self.responded and isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
            # Not to be taken for a kept connection that was closed in the meantime: the request is being answered.
            exc = aiohttp.ClientPayloadError("The connection broke after an interim response.")
        super().set_exception(exc, exc if exc_cause is None else exc_cause)
        body = self._body
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError(f"The body is not valid HTTP ({type(exc_cause).__name__})."))
