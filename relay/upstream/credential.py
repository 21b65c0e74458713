"""Entra tokens for the model service, by the managed identity in Azure or the developer's sign-in on a laptop."""

import asyncio
import time
from typing import Any, Final

from relay.settings import Identity

_TOKEN_TIMEOUT: Final = 20  # seconds for one attempt to sign in; az alone takes some
_RENEW_BEFORE: Final = 300  # seconds before its expiry that a token is renewed, beside the requests
_RENEW_RETRY: Final = 30  # seconds after which a failed renewal is tried again


class SignInError(Exception):
    """No token could be obtained; the text is for the log."""


class EntraToken:
    """Tokens for `identity`: fetched without blocking the event loop, cached, and renewed before they expire.

    Calling it gives a valid token; raises `SignInError` where none can be obtained.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._credential: Any = None
        self._token = ""
        self._expires = 0.0
        self._renew_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def __call__(self) -> str:
        now = time.time()
        if now >= self._renew_at and self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        if now >= self._expires and self._fetching is not None:
            # Shielded: this request's client may disconnect while others wait for the same token.
            await asyncio.shield(self._fetching)
        return self._token

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled() and task.exception() is not None and time.time() < self._expires:
            self._renew_at = min(time.time() + _RENEW_RETRY, self._expires)

    async def _fetch(self) -> None:
        if self._credential is None:
            self._credential = entra_credential(self._identity)
        try:
            async with asyncio.timeout(_TOKEN_TIMEOUT):
                token = await self._credential.get_token(self._identity.scope)
        except TimeoutError:
            raise SignInError(f"no token within {_TOKEN_TIMEOUT} s ({self._identity.kind} identity)") from None
        except Exception as error:  # the libraries raise whatever their parsing of an identity endpoint's answer does
            raise SignInError(f"no token ({self._identity.kind} identity, {type(error).__name__})") from error
        self._token = token.token
        self._expires = float(token.expires_on)
        self._renew_at = max(
            self._expires - _RENEW_BEFORE, time.time() + min(_RENEW_RETRY, (self._expires - time.time()) / 2)
        )

    async def close(self) -> None:
        """Close the credential's connections."""
        if self._fetching is not None:
            self._fetching.cancel()
        if self._credential is not None:
            await self._credential.close()


def entra_credential(identity: Identity) -> Any:
    # azure-identity is slow to import and to construct: only apps that need a token pay for it.
    from azure.core.settings import settings
    from azure.identity.aio import (
        AzureCliCredential,
        AzureDeveloperCliCredential,
        ChainedTokenCredential,
        ManagedIdentityCredential,
    )

    settings.tracing_enabled = False  # a span of a token request would record its URL

    if identity.kind == "managed":
        # Its endpoint is the platform's own, on this machine: no proxy of the environment may see its secret header.
        return ManagedIdentityCredential(client_id=identity.client_id, use_env_settings=False)
    return ChainedTokenCredential(AzureCliCredential(), AzureDeveloperCliCredential())
