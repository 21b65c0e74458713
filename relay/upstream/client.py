"""The client of one model service: the openai client for address, credential and errors, and the answer's raw bytes."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec
import openai

from relay.problems import UPSTREAM_AUTH, UPSTREAM_ERROR, UPSTREAM_TIMEOUT
from relay.settings import AZURE_HOSTS, NO_KEY
from relay.upstream.answer import Answer
from relay.upstream.credential import SignInError
from relay.upstream.environment import proxy_for, remove_client_settings, without_credentials
from relay.upstream.failures import Refusal, classify
from relay.upstream.request import UpstreamRequest
from relay.upstream.transport import AIOHTTP_RESPONSE, AiohttpTransport, StreamedAnswer


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
        secrets = [urlsplit(endpoint).netloc, host, credential if isinstance(credential, str) else ""]
        if host.endswith(AZURE_HOSTS):
            secrets.append(host.split(".")[0])
        patterns = [rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in secrets if secret]
        self._secrets = re.compile("|".join([*patterns, _JWT]), re.IGNORECASE)
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

    async def open(self, request: UpstreamRequest, deployment: str, request_id: str) -> Answer | Refusal:
        """Send the request to `deployment`; returns when the answer's headers have arrived."""
        try:
            # `stream` leaves the body unread; with this `cast_to` the client returns the response itself, which its
            # types can't express.
            response: Any = await self._client.post(
                request.path,
                content=msgspec.json.encode({**request.parameters, "model": deployment}),
                cast_to=httpx2.Response,
                options={
                    "headers": {
                        "content-type": "application/json",
                        "accept": "text/event-stream" if request.stream else "application/json",
                        "x-ms-client-request-id": request_id,
                        **self._key_headers,
                    }
                },
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
        except openai.APIStatusError as error:
            refusal = classify(
                error.body, status=error.status_code, headers=error.response.headers, fields=request.fields
            )
            return self._without_secrets(self._with_credential_named(refusal))
        except openai.APITimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, "no connection in time")
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            return Refusal(UPSTREAM_ERROR, f"no connection to the model service ({cause})")
        except SignInError as error:
            return Refusal(UPSTREAM_AUTH, str(error))
        except Exception as error:  # noqa: BLE001 (the client decodes an error's body by its headers, and raises as that does)
            return Refusal(UPSTREAM_ERROR, f"its answer can't be read ({type(error).__name__})")
        return StreamedAnswer(response.extensions[AIOHTTP_RESPONSE])

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

    def _without_secrets(self, refusal: Refusal) -> Refusal:
        """The same refusal, with this service's address and the app's credential removed from the upstream error."""
        error = refusal.problem.upstream_error
        if error is None:
            return refusal
        kept = {name: text for name in ("type", "param", "code") if _WORD.fullmatch(text := str(error.get(name)))}
        message = error.get("message")
        if isinstance(message, str):
            kept["message"] = message.encode(errors="replace").decode()  # half a surrogate pair can't be passed on
        clean = {name: self._secrets.sub("[…]", text) for name, text in kept.items() if text != "None"}
        return replace(refusal, problem=refusal.problem.with_upstream_error(clean))


# A JSON Web Token, in case a service repeats the one it was sent.
_JWT: Final = r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
_WORD: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
