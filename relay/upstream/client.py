"""The way to one model service: the openai client for address, credential and errors, and its answer's bytes, read
directly.

The client library's own layers cost more per token than all the rest of the way, so the transport hands its reader over
with the response, in the response's `extensions`, which exist for such things; no private attribute is touched.
"""

import asyncio
import contextlib
import email.utils
import math
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec
import openai
import yarl

from relay.answer import Answer, Refusal
from relay.completion import filter_results, filtered_categories, printable
from relay.problems import (
    CONTENT_FILTER,
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
    UPSTREAM_TIMEOUT,
    FieldError,
    Problem,
)
from relay.settings import AZURE_HOSTS, Identity, Settings

LONGEST_RETRY_AFTER: Final = 120  # seconds; the upstream's own values can be as absurd as a day
_LONGEST_ERROR_BODY: Final = 64 * 1024  # bytes; an error that is longer is none
_TOKEN_TIMEOUT: Final = 20  # seconds for one attempt to sign in; az alone takes some
_RENEW_BEFORE: Final = 300  # seconds before its end that a token is renewed, beside the requests
_RENEW_AGAIN: Final = 30  # seconds after which a renewal that failed is tried again
_END_OF_BODY: Final = 0.5  # seconds between an answer's last event and the end of its body
_HANDED_OVER: Final = "relay.response"


class StreamedAnswer:
    """An answer that has begun: aiohttp's response, read past every layer that is not needed (see `relay.answer`)."""

    broken: Final = (aiohttp.ClientError, OSError, RuntimeError)

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.read = response.content.readany

    def rest(self) -> bytes:
        """What had arrived when the connection broke. aiohttp's reader raises before it gives that away."""
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]
        return content.read_nowait()

    @property
    def media_type(self) -> str:
        """The answer's media type, without parameters."""
        return self._response.content_type

    def close(self) -> None:
        """Abort the answer at once; the model service sees its caller leave."""
        self._response.close()

    async def end(self) -> None:
        """Give the connection back for the next request, once the answer's end has come; it is waited for briefly."""
        try:
            async with asyncio.timeout(_END_OF_BODY):
                while not self._response.content.at_eof():
                    await self.read()
        except (TimeoutError, *self.broken):
            self._response.close()
        else:
            self._response.release()


class SignInError(Exception):
    """No token could be had; the text is for the log."""


class EntraToken:
    """Tokens for `identity`, fetched without blocking the loop, kept, and renewed before they end."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._credential: Any = None
        self._token = ""
        self._ends = 0.0
        self._renew_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def __call__(self) -> str:
        now = time.time()
        if now >= self._renew_at and self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        if now >= self._ends and self._fetching is not None:
            # Shielded: the caller of this request may leave, the others wait for the same token.
            await asyncio.shield(self._fetching)
        return self._token

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled() and task.exception() is not None and time.time() < self._ends:
            self._renew_at = min(time.time() + _RENEW_AGAIN, self._ends)

    async def _fetch(self) -> None:
        # azure-identity is slow to import and slow to make: only who needs a token pays for it.
        from azure.core.exceptions import AzureError

        if self._credential is None:
            self._credential = _credential(self._identity)
        try:
            async with asyncio.timeout(_TOKEN_TIMEOUT):
                token = await self._credential.get_token(self._identity.scope)
        except TimeoutError:
            raise SignInError(f"no token within {_TOKEN_TIMEOUT} s ({self._identity.kind} identity)") from None
        except (AzureError, OSError, ValueError) as error:
            raise SignInError(f"no token ({self._identity.kind} identity, {type(error).__name__})") from error
        self._token = token.token
        self._ends = float(token.expires_on)
        self._renew_at = max(
            self._ends - _RENEW_BEFORE, time.time() + min(_RENEW_AGAIN, (self._ends - time.time()) / 2)
        )

    async def close(self) -> None:
        """Let go of the credential's connections."""
        if self._fetching is not None:
            self._fetching.cancel()
        if self._credential is not None:
            await self._credential.close()


def _credential(identity: Identity) -> Any:
    from azure.core.settings import settings
    from azure.identity.aio import (
        AzureCliCredential,
        AzureDeveloperCliCredential,
        ChainedTokenCredential,
        ManagedIdentityCredential,
    )

    settings.tracing_enabled = False  # a span of a token request has its URL in it, and says nothing that is missed

    if identity.kind == "managed":
        return ManagedIdentityCredential(client_id=identity.client_id)
    return ChainedTokenCredential(AzureCliCredential(), AzureDeveloperCliCredential())


class Upstream:
    """One model service's address, with the credential that it is used with; serves all its deployments."""

    def __init__(
        self, endpoint: str, credential: Callable[[], Awaitable[str]] | str, session: aiohttp.ClientSession
    ) -> None:
        host = urlsplit(endpoint).hostname or ""
        secrets = [urlsplit(endpoint).netloc, host, credential if isinstance(credential, str) else ""]
        if host.endswith(AZURE_HOSTS):
            secrets.append(host.split(".")[0])
        words = [rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in secrets if secret]
        self._secrets = re.compile("|".join([*words, _JWT]), re.IGNORECASE)
        # A caller decides about retries (there may be another deployment), and a redirect is not followed: it would
        # carry the credential to another host.
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=credential,
            max_retries=0,
            http_client=httpx2.AsyncClient(
                transport=Transport(session),
                headers={"accept-encoding": "identity"},
                follow_redirects=False,
                trust_env=False,
            ),
        )

    async def open(self, parameters: dict[str, Any], request_id: str) -> Answer | Refusal:
        """Send a chat completion request and return when the answer's headers are there."""
        try:
            # `stream` leaves the body unread; with this `cast_to` the client returns the response itself, which its
            # types can't express.
            response: Any = await self._client.post(
                "/chat/completions",
                content=msgspec.json.encode(parameters),
                cast_to=httpx2.Response,
                options={
                    "headers": {
                        "content-type": "application/json",
                        "accept": "text/event-stream" if parameters.get("stream") else "application/json",
                        "x-ms-client-request-id": request_id,
                    }
                },
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
        except openai.APIStatusError as error:
            return self._discreet(refusal(error.status_code, error.response.headers, error.body))
        except openai.APITimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, "no connection in time", elsewhere=True)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            return Refusal(UPSTREAM_ERROR, f"no connection to the model service ({cause})", elsewhere=True)
        except SignInError as error:
            return Refusal(UPSTREAM_AUTH, str(error), elsewhere=True)
        except Exception as error:  # noqa: BLE001 (the client decodes an error's body as its headers say, and raises as that does)
            return Refusal(UPSTREAM_ERROR, f"its answer can't be read ({type(error).__name__})", elsewhere=True)
        return StreamedAnswer(response.extensions[_HANDED_OVER])

    def _discreet(self, refused: Refusal) -> Refusal:
        """The same, its words free of this service's address and of what the app proves itself with."""
        said = refused.problem.said
        if said is None:
            return refused
        words = {name: word for name in ("type", "param", "code") if _WORD.fullmatch(word := str(said.get(name)))}
        message = said.get("message")
        if isinstance(message, str):
            words["message"] = message.encode(errors="replace").decode()  # half a surrogate pair can't be passed on
        clean = {name: self._secrets.sub("[…]", word) for name, word in words.items() if word != "None"}
        return replace(refused, problem=replace(refused.problem, said=clean))


# A JSON Web Token, in case a service repeats the one it was sent.
_JWT: Final = r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
_WORD: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


def connect(settings: Settings) -> aiohttp.ClientSession:
    """The session that all model services share: its connections are kept and reused, and never fewer than the streams.

    A silent answer is the stream's business; here only connecting is timed.
    """
    reuse = aiohttp.TraceConfig()
    reuse.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(sock_connect=settings.upstream_connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[reuse],
        trust_env=bool(urllib.request.getproxies()),  # a company's network may have a proxy; asked once, it is slow
    )


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx["reused"] = True


class Transport(httpx2.AsyncBaseTransport):
    """The openai client's HTTP, by aiohttp; the response's `extensions` hold aiohttp's own response."""

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
            headers=[(name, value) for name, value in response.raw_headers if name.lower() != b"content-encoding"],
            stream=_ErrorBody(response),
            request=request,
            extensions={_HANDED_OVER: response},
        )

    async def _send(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        context: dict[str, bool] = {}
        while True:
            again = "reused" not in context
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
                # A kept connection that the server closed just then: the request never got an answer, and the same on
                # another connection is not a retry but the first try. Once, or a failing server is asked on each.
                if not again or "reused" not in context:
                    raise


class _ErrorBody(httpx2.AsyncByteStream):
    """The body as the openai client reads it: only of an error, and no more of it than an error can have."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        # A body that breaks off is as good as none: the status has said what there is to say.
        with contextlib.suppress(*StreamedAnswer.broken):
            while size < _LONGEST_ERROR_BODY and (chunk := await self._response.content.readany()):
                size += len(chunk)
                yield chunk

    async def aclose(self) -> None:
        self._response.close()


def refusal(status: int, headers: httpx2.Headers, body: object) -> Refusal:
    """What an error status of the model service means for the caller, and whether to try elsewhere."""
    error = body if isinstance(body, dict) else {}
    code = str(error.get("code") or "none")
    reason = f"the model service answered {status}, code {printable(code)}"
    retry_after = _retry_after(headers)
    seconds = None if retry_after is None else math.ceil(retry_after)
    match status:
        case 400 | 413 | 422:
            return Refusal(_bad_request(error, code), reason, status=status)
        case 401 | 403:
            return Refusal(UPSTREAM_AUTH, reason, elsewhere=True, status=status)
        case 404 if code in ("DeploymentNotFound", "model_not_found", "not_found") or "model" in str(error.get("type")):
            return Refusal(
                MODEL_NOT_FOUND.because("The model service has no such deployment (any more). Name another model."),
                reason,
                status=status,
            )
        case 404:
            return Refusal(
                NOT_CONFIGURED.because("There is no chat completions endpoint at the address in the app's settings."),
                reason,
                status=status,
            )
        case 408 | 504:
            return Refusal(UPSTREAM_TIMEOUT, reason, elsewhere=True, retry_after=retry_after, status=status)
        case 429:
            return Refusal(RATE_LIMITED.after(seconds), reason, elsewhere=True, retry_after=retry_after, status=status)
        case _:
            return Refusal(
                UPSTREAM_ERROR.after(seconds), reason, elsewhere=True, retry_after=retry_after, status=status
            )


def _bad_request(error: dict[str, Any], code: str) -> Problem:
    if code == "content_filter":
        return CONTENT_FILTER.filtered(filtered_categories(filter_results(error)))
    if code == "context_length_exceeded":
        return CONTEXT_LENGTH_EXCEEDED
    problem = replace(INVALID_REQUEST.because("The model refused the request."), said=error)
    field = _FIELDS.get(str(error.get("param")))
    return (
        problem.at(FieldError(field, "is not accepted by this model; leave it out or change it")) if field else problem
    )


# The fields of `/stream` that the upstream's parameters are made of.
_FIELDS: Final = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "reasoning_effort": "reasoning_effort",
}


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds to wait, of whichever header tells them, from 0 to `LONGEST_RETRY_AFTER`; None where none does.

    `retry-after-ms` and `x-ms-retry-after-ms` are Azure's, in milliseconds; `Retry-After` is in seconds or an HTTP date
    (RFC 9110, section 10.2.3).
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(headers.get(name))) is not None:
            return _bounded(milliseconds / 1000)
    text = headers.get("retry-after")
    if (seconds := _number(text)) is not None:
        return _bounded(seconds)
    if text:
        try:
            return _bounded(email.utils.parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
