"""The managed identity endpoint of App Service."""

import asyncio
import hmac
import math
import secrets
import time
from dataclasses import dataclass, field

from aiohttp import web

from local.model_service.encoding import json_response


@dataclass(slots=True)
class IdentityEndpoint:
    """App Service's managed identity endpoint (`IDENTITY_ENDPOINT`, `IDENTITY_HEADER`), and how it behaves now.

    `failure` is a status to answer with instead of a token, or a list of such, one per request; None: a token.
    """

    header: str = field(default_factory=secrets.token_hex)
    lifetime: float = 24 * 3600.0  # seconds
    delay: float = 0.0  # seconds
    failure: int | list[int | None] | None = None
    calls: list[dict[str, str]] = field(default_factory=list)
    issued: dict[str, float] = field(default_factory=dict)  # token: when it expires, in seconds since 1970

    def accepts(self, token: str) -> bool:
        """Whether the token was issued here and has not expired."""
        return self.issued.get(token, 0.0) > time.time()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """`GET …?api-version=2019-08-01&resource=…[&client_id=…]`, by
        https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
        """
        self.calls.append(dict(request.query))
        if self.delay:
            await asyncio.sleep(self.delay)
        failure = (self.failure.pop(0) if self.failure else None) if isinstance(self.failure, list) else self.failure
        if not hmac.compare_digest(request.headers.get("X-IDENTITY-HEADER", "").encode(), self.header.encode()):
            failure = 401
        if not request.query.get("resource") or request.query.get("api-version") != "2019-08-01":
            failure = 400
        if failure:
            return json_response({"statusCode": failure, "message": "No token for this request."}, failure)
        token = f"local.{secrets.token_urlsafe(48)}.{len(self.issued)}"
        expires = math.ceil(time.time() + self.lifetime)  # whole seconds, as it is told
        self.issued[token] = expires
        return json_response(
            {
                "access_token": token,
                "client_id": request.query.get("client_id", "00000000-0000-0000-0000-000000000000"),
                "expires_on": str(expires),
                "resource": request.query["resource"],
                "token_type": "Bearer",
            }
        )
