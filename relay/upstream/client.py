"""The client of one model service: the openai client for address, credential and errors, and the answer's raw bytes."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec
import openai

from relay.problems import UPSTREAM_AUTH, UPSTREAM_ERROR, UPSTREAM_TIMEOUT
from relay.settings import AZURE_HOSTS, NO_KEY
from relay.upstream.answer import Answer
from relay.upstream.credential import SignInError
from relay.upstream.failures import Refusal, classify
from relay.upstream.redaction import Redactor
from relay.upstream.request import UpstreamRequest
from relay.upstream.transport import AIOHTTP_RESPONSE, AiohttpTransport, StreamedAnswer


class ModelServiceClient:
    """The client of one model service's address, with its credential; serves all deployments there.

    `credential` is a key, or a callable that gives a token and may raise `SignInError`.
    """

    def __init__(
        self, endpoint: str, credential: Callable[[], Awaitable[str]] | str, session: aiohttp.ClientSession
    ) -> None:
        host = urlsplit(endpoint).hostname or ""
        secrets = [urlsplit(endpoint).netloc, host]
        if isinstance(credential, str) and credential != NO_KEY:
            secrets.append(credential)
        if host.endswith(AZURE_HOSTS):
            secrets.append(host.split(".")[0])
        self._redact = Redactor(secrets)
        # No retries here, since there may be another backend, and no redirects, which would carry the credential to
        # another host.
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=credential,
            max_retries=0,
            http_client=httpx2.AsyncClient(
                transport=AiohttpTransport(session),
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
                    }
                },
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
        except openai.APIStatusError as error:
            refusal = classify(
                error.body, status=error.status_code, headers=error.response.headers, fields=request.fields
            )
            return replace(refusal, problem=self._redact(refusal.problem))
        except openai.APITimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, "no connection in time")
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            return Refusal(UPSTREAM_ERROR, f"no connection to the model service ({cause})")
        except SignInError as error:
            return Refusal(UPSTREAM_AUTH, str(error))
        except Exception as error:  # noqa: BLE001 (the client decodes an error's body by its headers, and raises as that does)
            return Refusal(UPSTREAM_ERROR, f"its answer can't be read ({type(error).__name__})")
        return StreamedAnswer(response.extensions[AIOHTTP_RESPONSE], self._redact)
