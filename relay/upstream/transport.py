"""The openai client's HTTP transport on aiohttp, which hands its own response over to be read directly.

The client library's layers cost more per token than everything else, so the response's `extensions`, which exist for
such things, carry aiohttp's response; no private attribute is touched.
"""

import asyncio
import codecs
import contextlib
import json
import zlib
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import httpx2
import yarl

from relay.problems import Problem
from relay.settings import Settings
from relay.upstream.connector import Connector
from relay.upstream.content_coding import InflatedReader, Inflater, UnreadableCodingError, coding_of

AIOHTTP_RESPONSE: Final = "relay.response"  # the key in `extensions`
# The body is not in the response; and the openai client would send a cookie back with the next request, whoever's.
_DROPPED_HEADERS: Final = frozenset((b"content-encoding", b"content-length", b"set-cookie", b"transfer-encoding"))
_END_OF_BODY: Final = 0.5  # seconds between an answer's last event and the end of its body
_MAX_HEADER: Final = 64 * 1024  # bytes of one header; gateways send tokens and policies in them
_MAX_HEADERS: Final = 1000

# A refusal is one by its status. What its body adds may take this long, and this many bytes.
_REFUSAL_BODY_TIMEOUT: Final = 1.0
_MAX_REFUSAL_BODY: Final = 64 * 1024

# Seconds after a request within which the end of a kept connection means that the server had closed it already: more
# than a round trip, less than a server needs to begin an answer and fail.
_CLOSED_BEFORE: Final = 0.5

# In other encodings than these an error's text is read as UTF-8. Not all that Python knows: some take time that grows
# with the square of the length.
_TEXT_ENCODINGS: Final = frozenset(
    (
        *("ascii", "iso8859-1", "iso8859-15", "cp1252", "utf-16", "utf-16-be", "utf-16-le", "utf-32"),
        *("gb2312", "gbk", "gb18030", "big5", "shift_jis", "cp932", "euc_jp", "euc_kr"),
    )
)


class ClosedConnectionError(httpx2.ConnectError):
    """The request went out on a kept connection that the server had closed: it was not received, as far as known."""


class StreamedAnswer:
    """An answer that has begun (`relay.upstream.answer`): aiohttp's response, read without any layer in between."""

    connection_errors: Final = (aiohttp.ClientError, OSError, RuntimeError)

    def __init__(
        self, response: aiohttp.ClientResponse, redact: Callable[[Problem], Problem] = lambda problem: problem
    ) -> None:
        self._response = response
        self.read: Callable[[], Coroutine[Any, Any, bytes]] = response.content.readany
        self._inflated: InflatedReader | None = None
        coding = coding_of(response.headers.get("content-encoding"))
        if coding is not None:
            self._inflated = InflatedReader(response.content, coding)
            self.read = self._inflated.read
        self.redact = redact

    def read_remaining(self) -> bytes:
        """The bytes that had arrived when the connection broke; aiohttp's reader raises before it returns them."""
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]
        remaining = content.read_nowait()
        return remaining if self._inflated is None else self._inflated.read_remaining(remaining)

    @property
    def media_type(self) -> str:
        """The answer's media type in lower case, without parameters; empty where the answer names none."""
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

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

    Only connecting is timed here, as a whole: name, proxy, TCP and TLS. An answer's silence is timed by its stream.
    Nothing is taken from the environment: aiohttp would read a netrc file with the proxy's address; the transport is
    given its proxy.
    """
    timeout = settings.upstream_connect_timeout
    reuse = aiohttp.TraceConfig()
    reuse.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=Connector(),
        timeout=aiohttp.ClientTimeout(connect=timeout, ceil_threshold=timeout),  # not rounded up to a whole second
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[reuse],
        trust_env=False,
        auto_decompress=False,
        max_line_size=_MAX_HEADER,
        max_field_size=_MAX_HEADER,
        max_headers=_MAX_HEADERS,
    )


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx["reused_at"] = asyncio.get_running_loop().time()


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends the openai client's requests through an aiohttp session, and through `proxy`, a URL, where there is one.

    The body of an answer is left to `StreamedAnswer`, and that of a refusal, which is empty here, to `refusal_text`.
    Beside httpx's errors, whose texts are fit for a log, it raises `ClosedConnectionError` and `UnreadableCodingError`.
    """

    def __init__(self, session: aiohttp.ClientSession, proxy: str | None = None) -> None:
        self._session = session
        self._proxy = None if proxy is None else yarl.URL(proxy)
        self._proxy_headers: dict[str, str] = {}
        if self._proxy is not None and self._proxy.raw_user is not None:
            user, password = self._proxy.user or "", self._proxy.password or ""
            self._proxy_headers["proxy-authorization"] = aiohttp.encode_basic_auth(user, password)
            self._proxy = self._proxy.with_user(None)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        context: dict[str, float] = {}
        headers = request.headers.multi_items()
        if request.url.scheme == "http":
            headers += self._proxy_headers.items()  # there is no tunnel, whose headers are apart
        try:
            response = await self._session.request(
                request.method,
                yarl.URL(str(request.url), encoded=True),
                headers=headers,
                data=request.content,
                allow_redirects=False,
                trace_request_ctx=context,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers or None,
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise httpx2.ConnectTimeout("no connection in time", request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            if _had_been_closed(error, context.get("reused_at")):
                raise ClosedConnectionError("the server had closed the connection", request=request) from error
            raise httpx2.ConnectError(_reason(error), request=request) from error
        body: dict[str, Any] = {"content": b""}
        if 200 <= response.status < 300:
            try:
                coding_of(response.headers.get("content-encoding"))
            except UnreadableCodingError:
                response.close()
                raise
            body = {"stream": _Unread(response)}
        return httpx2.Response(
            response.status,
            headers=[header for header in response.raw_headers if header[0].lower() not in _DROPPED_HEADERS],
            request=request,
            extensions={AIOHTTP_RESPONSE: response},
            **body,
        )


def _had_been_closed(error: Exception, reused_at: float | None) -> bool:
    """Whether the request can be sent again: it went out on a kept connection that was closed at that very moment.

    A server that takes the request, works on it and then fails is not asked twice, and neither is one that has sent
    a part of an answer.
    """
    if reused_at is None or isinstance(error, aiohttp.ClientConnectorError):
        return False
    if not isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return False
    if not isinstance(getattr(error, "message", ""), str):
        return False  # the beginning of a response, in aiohttp's own form
    return asyncio.get_running_loop().time() - reused_at < _CLOSED_BEFORE


def _reason(error: Exception) -> str:
    """Why there is no answer, without any text of the other side's."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    for kind, text in _REASONS:
        if isinstance(error, kind):
            return f"{text} ({type(cause).__name__})"
    return f"no connection to the model service ({type(cause).__name__})"


_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientConnectorDNSError, "the name of the model service's host can't be resolved"),
    (aiohttp.ClientConnectorCertificateError, "the model service's TLS certificate is not trusted"),
    (aiohttp.ClientConnectorSSLError, "no TLS connection to the model service"),
    (aiohttp.ClientProxyConnectionError, "no connection to the proxy"),
    (aiohttp.ClientHttpProxyError, "the proxy refuses the connection to the model service"),
    (aiohttp.ClientConnectorError, "no connection to the model service"),
    (aiohttp.ServerDisconnectedError, "the model service closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the model service closed the connection within its answer"),
    (aiohttp.ClientOSError, "the connection to the model service broke before its answer"),
    (aiohttp.ClientResponseError, "the model service's answer is not valid HTTP"),
)


async def refusal_text(response: aiohttp.ClientResponse) -> str:
    """The text of a refusal, as much of it as arrives within the bounds: the status has what matters.

    The response is closed, or its connection returned to the pool where all of it has arrived.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_REFUSAL_BODY_TIMEOUT):
            while len(body) <= _MAX_REFUSAL_BODY and (chunk := await response.content.readany()):
                body += chunk
    except (TimeoutError, *StreamedAnswer.connection_errors):
        pass  # what has arrived is read all the same
    finally:
        response.close()
    content = bytes(body[:_MAX_REFUSAL_BODY])
    try:
        coding = coding_of(response.headers.get("content-encoding"))
        if coding is not None:
            content = Inflater(coding).decode(content, _MAX_REFUSAL_BODY)
    except (UnreadableCodingError, zlib.error):
        return ""
    return content.decode(_text_encoding(response.headers.get("content-type", ""), content), errors="replace")


def _text_encoding(content_type: str, content: bytes) -> str:
    """The encoding of a text: what the header names, or what its first bytes are, as in JSON."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            with contextlib.suppress(LookupError, ValueError):
                encoding = codecs.lookup(value.strip().strip("\"'")).name
                if encoding in _TEXT_ENCODINGS:
                    return encoding
    return json.detect_encoding(content)


class _Unread(httpx2.AsyncByteStream):
    """The body of an answer, which the openai client does not read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def aclose(self) -> None:
        self._response.close()
