"""The client of one model service: the openai client for address, credential and errors, and the answer's raw bytes."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec
import openai
from openai._models import FinalRequestOptions

from relay.problems import UPSTREAM_AUTH, UPSTREAM_ERROR, UPSTREAM_TIMEOUT
from relay.settings import AZURE_HOSTS, NO_KEY
from relay.upstream.answer import Answer
from relay.upstream.content_coding import UnreadableCodingError
from relay.upstream.credential import SignInError
from relay.upstream.environment import proxy_for, remove_client_settings, without_credentials
from relay.upstream.failures import Refusal, classify
from relay.upstream.redaction import Redactor
from relay.upstream.request import UpstreamRequest
from relay.upstream.transport import (
    AIOHTTP_RESPONSE,
    AiohttpTransport,
    ClosedConnectionError,
    StreamedAnswer,
    refusal_text,
)


def _ignore() -> None:
    pass


class ModelServiceClient:
    """The client of one model service's address, with its credential; serves all deployments there.

    `credential` is a key, or a callable that gives a token and may raise `SignInError`. A key is sent in the header
    `key_header`; None: as a bearer token in `Authorization`, as a token is. `proxy` is the address of the proxy that
    leads to the service, without credentials.
    """

    def __init__(
        self,
        endpoint: str,
        credential: Callable[[], Awaitable[str]] | str,
        session: aiohttp.ClientSession,
        *,
        key_header: str | None = None,
    ) -> None:
        host = urlsplit(endpoint).hostname or ""
        secrets = [urlsplit(endpoint).netloc, host]
        if isinstance(credential, str) and credential != NO_KEY:
            secrets.append(credential)
        if host.endswith(AZURE_HOSTS):
            secrets.append(host.split(".")[0])
        self._redact = Redactor(secrets)
        self._sends_key = isinstance(credential, str) and credential != NO_KEY
        self._key_header = key_header
        self._key_headers: dict[str, Any] = {}
        if isinstance(credential, str) and key_header is not None:
            self._key_headers = {"authorization": openai.Omit(), key_header: credential}
        proxy = proxy_for(endpoint)
        self.proxy = None if proxy is None else without_credentials(proxy)
        remove_client_settings()
        # No retries here, since there may be another backend, and no redirects, which would carry the credential to
        # another host.
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=credential,
            max_retries=0,
            http_client=httpx2.AsyncClient(
                transport=AiohttpTransport(session, proxy),
                headers={"accept-encoding": "identity"},
                follow_redirects=False,
                trust_env=False,
            ),
        )

    async def open(
        self,
        request: UpstreamRequest,
        deployment: str,
        request_id: str,
        on_repeat: Callable[[], None] = _ignore,
        on_refusal: Callable[[], None] = _ignore,
    ) -> Answer | Refusal:
        """Send the request to `deployment`; returns when the answer's headers have arrived.

        `on_repeat` is called before the request is sent once more, since the server had closed the kept connection that
        it was sent on: only once, as a failing server would be asked on each of its connections. `on_refusal` is called
        when the status shows that there is no answer: from then on it takes a second at most.
        """
        content = None
        if request.parameters is not None:
            content = msgspec.json.encode({**request.parameters, "model": deployment})
        try:
            try:
                return await self._send(request, content, request_id)
            except openai.APIConnectionError as error:
                if not isinstance(error.__cause__, ClosedConnectionError):
                    raise
                on_repeat()
                return await self._send(request, content, request_id)
        except openai.APIStatusError as error:
            on_refusal()
            response = error.response
        except openai.APITimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, "no connection in time")
        except openai.APIConnectionError as error:
            # The transport's own text; any other can hold anything.
            ours = isinstance(error.__cause__, httpx2.ConnectError)
            return Refusal(UPSTREAM_ERROR, str(error.__cause__) if ours else "no connection to the model service")
        except UnreadableCodingError as error:
            reason = f"the model service answered with Content-Encoding {error} though identity was asked for"
            return Refusal(UPSTREAM_ERROR, reason, remedy=_CODING_REMEDY)
        except SignInError as error:
            return Refusal(UPSTREAM_AUTH, str(error))
        except Exception as error:  # noqa: BLE001 (whatever else the libraries raise; its text can hold anything)
            return Refusal(UPSTREAM_ERROR, f"its answer can't be read ({type(error).__name__})")
        body = error_object(await refusal_text(response.extensions[AIOHTTP_RESPONSE]))
        refusal = classify(
            body,
            status=response.status_code,
            headers=response.headers,
            fields=request.fields,
            not_found=request.not_found,
            deployment=deployment,
        )
        if response.status_code in _REDIRECTS:
            refusal = _redirect(refusal)
        refusal = self._with_credential_named(refusal)
        return replace(refusal, problem=self._redact(refusal.problem))

    async def _send(self, request: UpstreamRequest, content: bytes | None, request_id: str) -> StreamedAnswer:
        # `stream` leaves the body unread; with this `cast_to` the client returns the response itself, which its types
        # can't express.
        headers = {
            "accept": "text/event-stream" if request.stream else "application/json",
            "x-ms-client-request-id": request_id,
            **self._key_headers,
        }
        body: dict[str, Any] = {}
        if content is not None:
            headers["content-type"] = "application/json"
            body["content"] = content
        response: Any = await self._client.request(
            httpx2.Response,
            FinalRequestOptions.construct(method=request.method, url=request.path, headers=headers, **body),
            stream=True,
            stream_cls=openai.AsyncStream[Any],
        )
        return StreamedAnswer(response.extensions[AIOHTTP_RESPONSE], self._redact)

    def _with_credential_named(self, refusal: Refusal) -> Refusal:
        """A refused credential, with the header that it was sent in: some gateways look for it in another one."""
        if refusal.problem.code != UPSTREAM_AUTH.code or not self._sends_key:
            return refusal
        header = self._key_header or "Authorization"
        return replace(
            refusal,
            problem=refusal.problem.with_detail(
                f"The model service refuses the key, which this app sent in the header {header}. GET /ready says more."
            ),
            reason=f"{refusal.reason}; the key was sent in the header {header}",
        )


def error_object(text: str) -> object:
    """The error in the text of a refusal, as the openai client finds it; the text itself where it is not JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return document.get("error", document) if isinstance(document, dict) else document


def _redirect(refusal: Refusal) -> Refusal:
    return replace(refusal, reason=f"{refusal.reason}: a redirect, which is not followed", remedy=_REDIRECT_REMEDY)


_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_REDIRECT_REMEDY: Final = (
    "The address redirects elsewhere, and the app follows no redirect, since it would take the credential along: set "
    "AZURE_OPENAI_ENDPOINT or AZURE_OPENAI_BACKENDS to the address that it leads to."
)
_CODING_REMEDY: Final = (
    "The model service, or a gateway before it, compresses its answers in a way that this app can't read, though the "
    "app asks for none: turn compression off there for requests with Accept-Encoding: identity."
)
