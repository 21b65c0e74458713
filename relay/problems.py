"""The catalogue of problems: every failure that a caller can see, with its code, status and title.

A problem is a value that can be written as `application/problem+json` (RFC 9457) or as OpenAI's error object. It holds
nothing that a caller must not see: no exception text, no address, no key.
"""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec

PROBLEM_JSON: Final = "application/problem+json"

# nginx's status for a client that disconnected before there was a response, the one that dashboards know.
CLIENT_CLOSED_REQUEST: Final = 499

# The `type` of OpenAI's error object by HTTP status; for all others it is "server_error".
_OPENAI_TYPES: Final = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "invalid_request_error",
    HTTPStatus.FORBIDDEN: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "invalid_request_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "invalid_request_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of the request (or one app setting), and how to correct it."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure as a caller sees it (RFC 9457).

    `retry_after` is in whole seconds. `allow` lists methods, as in the header. `content_filter` maps each category that
    the filter acted on to its result. `upstream_error` is the model service's own error object where it describes what
    the caller sent; callers of the OpenAI API get its message.
    """

    code: str
    status: HTTPStatus
    title: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    retry_after: int | None = None
    allow: str | None = None
    content_filter: dict[str, Any] | None = None
    upstream_error: dict[str, Any] | None = None

    def with_detail(self, detail: str) -> Self:
        """The same problem with a more specific detail."""
        return replace(self, detail=detail)

    def with_errors(self, *errors: FieldError) -> Self:
        """The same problem, naming the fields at fault."""
        return replace(self, errors=errors)

    def with_retry_after(self, seconds: int | None) -> Self:
        """The same problem, with the time after which another try makes sense."""
        return replace(self, retry_after=seconds)

    def with_allow(self, methods: str) -> Self:
        """The same problem, with the methods that the path takes (RFC 9110, section 10.2.1)."""
        return replace(self, allow=methods)

    def with_content_filter(self, categories: dict[str, Any]) -> Self:
        """The same problem, with the categories that the content filter acted on."""
        return replace(self, content_filter=categories)

    def with_upstream_error(self, error: dict[str, Any]) -> Self:
        """The same problem, with the model service's own error object."""
        return replace(self, upstream_error=error)

    def members(self, request_id: str) -> dict[str, Any]:
        """The members of the problem document, those that do not apply left out (RFC 9457, section 3.1)."""
        members: dict[str, Any] = {
            "type": f"urn:problem-type:{self.code}",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.errors:
            members["errors"] = [{"field": error.field, "message": error.message} for error in self.errors]
        if self.retry_after is not None:
            members["retry_after"] = self.retry_after
        if self.content_filter is not None:
            members["content_filter"] = self.content_filter
        return members

    def document(self, request_id: str) -> bytes:
        """The problem as one line of `application/problem+json`."""
        return msgspec.json.encode(self.members(request_id)) + b"\n"

    def openai_document(self, request_id: str) -> bytes:
        """The same failure as OpenAI's error object on one line, so that its clients raise their usual exceptions."""
        return msgspec.json.encode({"error": self.openai_error(), "request_id": request_id})

    def openai_error(self) -> dict[str, Any]:
        """The members of OpenAI's error object."""
        upstream = self.upstream_error or {}
        message = upstream.get("message")
        error: dict[str, Any] = {
            "message": message if isinstance(message, str) and message else self._sentence(),
            "type": upstream.get("type") or _OPENAI_TYPES.get(self.status, "server_error"),
            "param": upstream.get("param") or (self.errors[0].field if self.errors else None),
            "code": upstream.get("code") or self.code,
        }
        if self.content_filter is not None:
            error["innererror"] = {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": self.content_filter,
            }
        return error

    def _sentence(self) -> str:
        fields = " ".join(f"{error.field}: {error.message.rstrip('.')}." for error in self.errors)
        return f"{self.title}. {fields or self.detail}"


INVALID_JSON: Final = Problem(
    "invalid_json",
    HTTPStatus.BAD_REQUEST,
    "The body is not JSON",
    'Send one JSON object in UTF-8, for example {"input": "write a haiku"}.',
)
INVALID_REQUEST: Final = Problem(
    "invalid_request",
    HTTPStatus.BAD_REQUEST,
    "The request has a field that is missing, unknown or out of range",
    "Correct the fields that are named and send the request again.",
)
CONTENT_FILTER: Final = Problem(
    "content_filter",
    HTTPStatus.BAD_REQUEST,
    "The content filter refused the prompt",
    "Azure's content filter refused the prompt. Rephrase it and send it again.",
)
CONTEXT_LENGTH_EXCEEDED: Final = Problem(
    "context_length_exceeded",
    HTTPStatus.BAD_REQUEST,
    "The prompt does not fit the model",
    "The conversation and the answer together are longer than the model's context: shorten the input or lower "
    "the output limit.",
)
INVALID_API_KEY: Final = Problem(
    "invalid_api_key",
    HTTPStatus.UNAUTHORIZED,
    "The key is missing or wrong",
    "Send a key in the header Authorization, as a Bearer token, or in api-key or x-functions-key.",
)
MODEL_NOT_ALLOWED: Final = Problem(
    "model_not_allowed",
    HTTPStatus.FORBIDDEN,
    "The key is not for this model",
    "Choose a model from the list of GET /v1/models, which has those that this key is for.",
)
MODEL_NOT_FOUND: Final = Problem(
    "model_not_found",
    HTTPStatus.NOT_FOUND,
    "There is no such model here",
    "Leave the model out to use the default one, or choose one from the list of GET /v1/models.",
)
NOT_FOUND: Final = Problem(
    "not_found",
    HTTPStatus.NOT_FOUND,
    "There is nothing at this path",
    "Correct the path; GET /openapi describes those that exist.",
)
METHOD_NOT_ALLOWED: Final = Problem(
    "method_not_allowed",
    HTTPStatus.METHOD_NOT_ALLOWED,
    "The path does not take this method",
    "Send the request with a method that the header Allow names.",
)
RESPONSE_NOT_FOUND: Final = Problem(
    "response_not_found",
    HTTPStatus.NOT_FOUND,
    "There is no such response here",
    "None of this app's accounts has a response with this id: it was not stored, was deleted, or has expired. Check "
    "the id, or create the response again.",
)
PREVIOUS_RESPONSE_NOT_FOUND: Final = Problem(
    "previous_response_not_found",
    HTTPStatus.BAD_REQUEST,
    "The previous response was not found",
    "None of the accounts with this model has a response with the id in previous_response_id: it was not stored, was "
    "deleted, or has expired. Check the id, or send the whole conversation as input.",
)
BODY_TOO_LARGE: Final = Problem(
    "body_too_large",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "The body is too large",
    "Shorten the input.",
)
UNSUPPORTED_MEDIA_TYPE: Final = Problem(
    "unsupported_media_type",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "The body must be JSON",
    "Send the body as JSON with the header Content-Type: application/json.",
)
RATE_LIMITED: Final = Problem(
    "rate_limited",
    HTTPStatus.TOO_MANY_REQUESTS,
    "The model is busy",
    "The model takes no more requests for now. Wait a moment and try again.",
)
INTERNAL_ERROR: Final = Problem(
    "internal_error",
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "The app failed",
    "The app has a fault. Try again; if it lasts, give the request id to whoever operates the app.",
)
UPSTREAM_ERROR: Final = Problem(
    "upstream_error",
    HTTPStatus.BAD_GATEWAY,
    "The model service failed",
    "The model service failed or sent something that is not an answer. Try again; if it lasts, GET /ready says more.",
)
UPSTREAM_AUTH: Final = Problem(
    "upstream_auth",
    HTTPStatus.BAD_GATEWAY,
    "The model service does not accept this app",
    "The app could not sign in to the model service. After a deployment a role takes some minutes to become "
    "effective; GET /ready names what is missing.",
)
UPSTREAM_INTERRUPTED: Final = Problem(
    "upstream_interrupted",
    HTTPStatus.BAD_GATEWAY,
    "The answer was cut off",
    "The connection to the model service broke before the end of the answer, so the text is incomplete. Try again.",
)
NOT_CONFIGURED: Final = Problem(
    "not_configured",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The app is not configured",
    "An app setting is missing or wrong. Whoever operates the app finds it, and how to correct it, at GET /ready.",
)
NOT_DISPATCHED: Final = Problem(
    "not_dispatched",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The request was not dispatched",
    "The Functions host passed the request on and did not start its function. Send it again.",
)
UPSTREAM_TIMEOUT: Final = Problem(
    "upstream_timeout",
    HTTPStatus.GATEWAY_TIMEOUT,
    "The model did not answer in time",
    "The model service was silent for too long. Try again.",
)
DEADLINE_EXCEEDED: Final = Problem(
    "deadline_exceeded",
    HTTPStatus.GATEWAY_TIMEOUT,
    "The answer took too long",
    "The answer reached this app's time limit before its end. Ask for a shorter one.",
)

CATALOGUE: Final = (
    INVALID_JSON,
    INVALID_REQUEST,
    CONTENT_FILTER,
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_API_KEY,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    RESPONSE_NOT_FOUND,
    PREVIOUS_RESPONSE_NOT_FOUND,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    RATE_LIMITED,
    INTERNAL_ERROR,
    UPSTREAM_ERROR,
    UPSTREAM_AUTH,
    UPSTREAM_INTERRUPTED,
    NOT_CONFIGURED,
    NOT_DISPATCHED,
    UPSTREAM_TIMEOUT,
    DEADLINE_EXCEEDED,
)
