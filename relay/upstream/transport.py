"""The openai client's HTTP transport on aiohttp, which hands its own response over to be read directly.

The client library's layers cost more per token than everything else, so the response's `extensions`, which exist for
such things, carry aiohttp's response; no private attribute is touched.
"""

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Final

import aiohttp
import httpx2
import yarl

from relay.problems import Problem
from relay.settings import Settings

AIOHTTP_RESPONSE: Final = "relay.response"  # the key in `extensions`
_MAX_ERROR_BODY: Final = 64 * 1024  # bytes; no error object is longer
# The body is read undecoded; and the openai client would send a cookie back with the next request, whoever's it is.
_DROPPED_HEADERS: Final = frozenset((b"content-encoding", b"set-cookie"))
_END_OF_BODY: Final = 0.5  # seconds between an answer's last event and the end of its body


class StreamedAnswer:
    """An answer that has begun (`relay.upstream.answer`): aiohttp's response, read without any layer in between."""

    connection_errors: Final = (aiohttp.ClientError, OSError, RuntimeError)

    def __init__(
        self, response: aiohttp.ClientResponse, redact: Callable[[Problem], Problem] = lambda problem: problem
    ) -> None:
        self._response = response
        self.read = response.content.readany
        self.redact = redact

    def read_remaining(self) -> bytes:
        """The bytes that had arrived when the connection broke; aiohttp's reader raises before it returns them."""
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]
        return content.read_nowait()

    @property
    def media_type(self) -> str:
        """The answer's media type, without parameters."""
        return self._response.content_type

    def close(self) -> None:
        """Abort the answer at once; the model service sees its client disconnect."""
        self._response.close()

    async def end(self) -> None:
        """Return the connection to the pool, once the end of the body has arrived; it is waited for briefly."""
        try:
            async with asyncio.timeout(_END_OF_BODY):
                while not self._response.content.at_eof():
                    await self.read()
        except (TimeoutError, *self.connection_errors):
            self._response.close()
        else:
            self._response.release()


def create_session(settings: Settings) -> aiohttp.ClientSession:
    """The session that all model services share: its connections are kept and reused, without a limit of their number.

    Only connecting is timed here; the silence of an answer is timed by its stream.
    """
    reuse = aiohttp.TraceConfig()
    reuse.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(sock_connect=settings.upstream_connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[reuse],
        trust_env=bool(urllib.request.getproxies()),  # a company network's proxy; looked up once, as it is slow
    )


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx["reused"] = True


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends the openai client's requests through an aiohttp session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._send(request)
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx2.ConnectTimeout("no connection in time", request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ConnectError("no connection", request=request) from error
        return httpx2.Response(
            response.status,
            headers=[(name, value) for name, value in response.raw_headers if name.lower() not in _DROPPED_HEADERS],
            stream=_ErrorBody(response),
            request=request,
            extensions={AIOHTTP_RESPONSE: response},
        )

    async def _send(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        context: dict[str, bool] = {}
        while True:
            first_try = "reused" not in context
            try:
                return await self._session.request(
                    request.method,
                    yarl.URL(str(request.url), encoded=True),
                    headers=request.headers.multi_items(),
                    data=request.content,
                    allow_redirects=False,
                    trace_request_ctx=context,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # A kept connection that the server closed just then: the request got no answer and is sent once more
                # on another connection. Only once, as a failing server would be asked on each of them.
                if not first_try or "reused" not in context:
                    raise


class _ErrorBody(httpx2.AsyncByteStream):
    """The body as the openai client reads it: only of an error, up to `_MAX_ERROR_BODY`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        # A body that breaks off counts as absent: the status has told what matters.
        with contextlib.suppress(*StreamedAnswer.connection_errors):
            while size < _MAX_ERROR_BODY and (chunk := await self._response.content.readany()):
                size += len(chunk)
                yield chunk

    async def aclose(self) -> None:
        self._response.close()
