"""The caller's side of one HTTP request: its id, its body within the limit, and the answers that are no stream."""

import asyncio
import re
import uuid
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from relay import telemetry
from relay.problems import (
    BODY_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PROBLEM_JSON,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
)

# 499: nginx's code for a caller that closed the request, the one that dashboards know. Nobody reads the response.
CALLER_LEFT: Final = 499

_BODY_TIME: Final = 30  # seconds; a stream's own clock starts when it has been read

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}")
_JSON_TYPE: Final = re.compile(r"application/(?:json|[a-z0-9.!#$&^_-]+\+json)", re.IGNORECASE)


class Call:
    """One HTTP request to a function.

    `request_id` is the caller's own `X-Request-Id` where that is a plain word of 8 to 128 characters, otherwise a new
    one. `invocation_id` is the id that the Functions host logs the same request under. `openai`: the caller expects
    errors in OpenAI's form.
    """

    def __init__(self, request: Request, *, openai: bool = False) -> None:
        self.request = request
        self._openai = openai
        given = request.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        self.invocation_id = request.headers.get("x-ms-invocation-id", "")

    async def body(self, limit: int) -> bytes | Problem | None:
        """The body of a JSON request, read to its end before anything is answered; `limit` in bytes.

        None: the caller left before its end.
        """
        headers = self.request.headers
        media_type = headers.get("content-type", "").partition(";")[0].strip()
        if media_type and not _JSON_TYPE.fullmatch(media_type):
            return UNSUPPORTED_MEDIA_TYPE
        if not media_type and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            # Another site's page can send this without the browser's asking first (Fetch, section 4.8); it can't read
            # the answer, but the tokens would be spent.
            return UNSUPPORTED_MEDIA_TYPE
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            return UNSUPPORTED_MEDIA_TYPE.because("Send the body as it is, without Content-Encoding.")
        too_large = BODY_TOO_LARGE.because(f"The body may have {limit} bytes at most. Shorten the input.")
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_TIME):
                async for chunk in self.request.stream():
                    body += chunk
                    if len(body) > limit:
                        return too_large
        except ClientDisconnect:
            return None
        except TimeoutError:
            return INVALID_REQUEST.because(f"The body did not arrive within {_BODY_TIME} s. Send the request again.")
        return bytes(body)

    async def leaves(self) -> None:
        """Return when the caller has closed the connection. Only after the body was read."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def headers(self, media_type: str) -> dict[str, str]:
        """The headers of every answer of this app."""
        return {
            "content-type": media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "x-request-id": self.request_id,
        }

    def answer(self, content: bytes, media_type: str = "application/json", status: int = 200) -> Response:
        """A whole answer."""
        return Response(content, status, self.headers(media_type))

    def refuse(self, problem: Problem) -> Response:
        """The problem as an HTTP answer (RFC 9457), or in OpenAI's form."""
        if self._openai:
            response = self.answer(problem.openai_document(self.request_id), status=problem.status)
        else:
            response = self.answer(problem.document(self.request_id), PROBLEM_JSON, problem.status)
        if problem.retry_after is not None:
            response.headers["retry-after"] = str(problem.retry_after)
        return response

    def turn_away(self, problem: Problem) -> Response:
        """The same, for a request that does not come to be a stream, which would leave a record."""
        telemetry.refused(self.request_id, self.invocation_id, problem.code)
        return self.refuse(problem)

    def crashed(self, error: Exception) -> Response:
        """The answer to a caller who meets a fault of this app's; the record says where it is."""
        telemetry.crash(self.request_id, self.invocation_id, error)
        return self.refuse(INTERNAL_ERROR)

    def nobody(self) -> Response:
        """What is returned for a caller that has left."""
        return Response(None, CALLER_LEFT, self.headers("text/plain"))
