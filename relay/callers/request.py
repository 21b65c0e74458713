"""One HTTP request of a caller: its id, its body within the limit, and the responses that are not a stream."""

import asyncio
import re
import uuid
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from relay import telemetry
from relay.callers.door import Door, Identity
from relay.callers.limits import Limiter, Refused, Reservation
from relay.problems import (
    BODY_TOO_LARGE,
    CLIENT_CLOSED_REQUEST,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PROBLEM_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
)
from relay.telemetry import Record
from relay.upstream.request import ModelName

_BODY_TIMEOUT: Final = 30  # seconds; a stream's own clock starts when the body has been read

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}")
# What a page on another origin may read of a response, beside its type (Fetch standard, section 3.3.6, which has no
# wildcard for requests with credentials). Whether it may read the response at all is the platform's to decide.
_EXPOSED_HEADERS: Final = ", ".join(
    (
        "Retry-After",
        "WWW-Authenticate",
        "X-Request-Id",
        "X-Response-Id",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    )
)
_JSON_TYPE: Final = re.compile(r"application/(?:json|[a-z0-9.!#$&^_-]+\+json)", re.IGNORECASE)


class CallerRequest:
    """One HTTP request to a function.

    `request_id` is the caller's own `X-Request-Id` where that is a plain identifier of 8 to 128 characters, otherwise a
    new one. `invocation_id` is the id under which the Functions host logs the same request. `openai`: errors are
    written as OpenAI's error object. `identity` is who sends it, where callers are named and `admit` was passed.
    """

    def __init__(self, request: Request, *, openai: bool = False) -> None:
        self.request = request
        self._openai = openai
        given = request.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        self.invocation_id = request.headers.get("x-ms-invocation-id", "")
        self.identity: Identity | None = None
        self._reservation: Reservation | None = None
        self._limit_headers: dict[str, str] | None = None

    def admit(self, door: Door) -> Problem | None:
        """Let the door decide who sends this; the problem where it admits no one."""
        admitted = door.admit(self.request.scope)
        if isinstance(admitted, Problem):
            return admitted
        self.identity = admitted
        return None

    def allowed_model(self, asked: ModelName, models: tuple[str, ...]) -> ModelName | Problem:
        """The model to ask for `asked`, out of the app's `models`; the problem where it is not for this caller."""
        return asked if self.identity is None else self.identity.model(asked, models)

    def allowed_models(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the app's models that this caller may use."""
        return models if self.identity is None else self.identity.models(models)

    async def reserve(self, limiter: Limiter, body_bytes: int, *, counts_tokens: bool) -> Problem | None:
        """Reserve what a request with a body of this size will take of the caller's limits; the problem where it can't.

        `settle` corrects it, or `internal_error` where it comes to no stream.
        """
        if self.identity is None or not self.identity.caller.limits:
            return None
        reserved = await limiter.reserve(self.identity, body_bytes, counts_tokens=counts_tokens)
        self._limit_headers = reserved.headers
        if isinstance(reserved, Refused):
            return reserved.problem
        self._reservation = reserved
        return None

    def settle(self, record: Record, *, answering: bool) -> None:
        """Note the end of the stream that answers this request: who asked, in its record, and what was used.

        `answering`: a model may have read the prompt, whether or not its usage is known.
        """
        if self.identity is None:
            return
        record.caller, record.caller_id = self.identity.caller.name, self.identity.id
        record.caller_is_named = self.identity.named
        if self._reservation is not None:
            record.limits_store_away = self._reservation.store_away
            self._reservation.settle(record.usage, estimated=record.usage_estimated, answering=answering)

    async def read_body(self, limit: int) -> bytes | Problem | None:
        """The body of a JSON request, at most `limit` bytes; None when the client disconnected before its end."""
        headers = self.request.headers
        media_type = headers.get("content-type", "").partition(";")[0].strip()
        if media_type and not _JSON_TYPE.fullmatch(media_type):
            return UNSUPPORTED_MEDIA_TYPE
        if not media_type and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            # Another site's page can send this without a CORS preflight (Fetch, section 4.8); it can't read the answer,
            # but the tokens would be spent.
            return UNSUPPORTED_MEDIA_TYPE
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            return UNSUPPORTED_MEDIA_TYPE.with_detail("Send the body as it is, without Content-Encoding.")
        too_large = BODY_TOO_LARGE.with_detail(f"The body may have {limit} bytes at most. Shorten the input.")
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                async for chunk in self.request.stream():
                    body += chunk
                    if len(body) > limit:
                        return too_large
        except ClientDisconnect:
            return None
        except TimeoutError:
            return INVALID_REQUEST.with_detail(
                f"The body did not arrive within {_BODY_TIMEOUT} s. Send the request again."
            )
        return bytes(body)

    @property
    def last_segment(self) -> str:
        """The last segment of the path, decoded."""
        path: str = self.request.scope["path"]
        return path.rstrip("/").rpartition("/")[2]

    async def skip_body(self) -> bool:
        """Read over the body of a request that takes none; False where there is one."""
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                async for chunk in self.request.stream():
                    if chunk:
                        return False
        except (ClientDisconnect, TimeoutError):
            return False
        return True

    async def wait_for_disconnect(self) -> None:
        """Return when the client has closed the connection; to be called only after the body was read."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def headers(self, media_type: str) -> dict[str, str]:
        """The headers of every response of this app."""
        headers = {
            "content-type": media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "x-request-id": self.request_id,
        }
        if "origin" in self.request.headers:
            headers["access-control-expose-headers"] = _EXPOSED_HEADERS
        return headers if self._limit_headers is None else headers | self._limit_headers

    def response(self, content: bytes, media_type: str = "application/json", status: int = 200) -> Response:
        """A response that is not a stream."""
        return Response(content, status, self.headers(media_type))

    def error_response(self, problem: Problem) -> Response:
        """The problem as an HTTP response (RFC 9457), or as OpenAI's error object."""
        if self._openai:
            response = self.response(problem.openai_document(self.request_id), status=problem.status)
        else:
            response = self.response(problem.document(self.request_id), PROBLEM_JSON, problem.status)
        if problem.retry_after is not None:
            response.headers["retry-after"] = str(problem.retry_after)
        if problem.allow is not None:
            response.headers["allow"] = problem.allow
        if problem.status == HTTPStatus.UNAUTHORIZED:
            response.headers["www-authenticate"] = "Bearer"  # RFC 9110, section 11.6.1
        return response

    def reject(self, problem: Problem) -> Response:
        """The same for a request that never became a stream, which would leave a record of its own: it is logged."""
        if problem.status == HTTPStatus.UNAUTHORIZED:
            telemetry.log_not_admitted(self.invocation_id)
        elif problem.status == HTTPStatus.TOO_MANY_REQUESTS and self.identity is not None:
            telemetry.log_over_limit(self.identity.caller.name, self.invocation_id)
        else:
            caller = self.identity.caller.name if self.identity is not None else None
            telemetry.log_rejection(self.request_id, self.invocation_id, problem.code, caller)
        return self.error_response(problem)

    def internal_error(self, error: Exception) -> Response:
        """The response to a fault of this app's; the log names the place."""
        if self._reservation is not None:
            self._reservation.settle(None)
        telemetry.log_internal_error(self.request_id, self.invocation_id, error)
        return self.error_response(INTERNAL_ERROR)

    def client_closed_request(self) -> Response:
        """What the function returns when the client has disconnected; it goes to no one."""
        return Response(None, CLIENT_CLOSED_REQUEST, self.headers("text/plain"))
