"""Every way to fail: its code, its status, its title; as `application/problem+json` and as OpenAI's error.

A problem is a value. It holds nothing that a caller must not see: no text of an exception, no address, no key.
"""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec

PROBLEM_JSON: Final = "application/problem+json"

# The `type` of OpenAI's errors, by status; what is not here is the server's fault.
_OPENAI_TYPES: Final = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "invalid_request_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of the request (or one app setting), and the mend."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure as a caller sees it (RFC 9457).

    `retry_after` is in whole seconds. `content_filter` maps each category that the filter objected to, to what it said
    of it. `said` is the model service's own error object of a request that it finds at fault: it speaks of what the
    caller sent, and callers of the OpenAI wire get it.
    """

    code: str
    status: HTTPStatus
    title: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    retry_after: int | None = None
    content_filter: dict[str, Any] | None = None
    said: dict[str, Any] | None = None

    def because(self, detail: str) -> Self:
        """The same problem, told more exactly."""
        return replace(self, detail=detail)

    def at(self, *errors: FieldError) -> Self:
        """The same problem, naming the fields."""
        return replace(self, errors=errors)

    def after(self, seconds: int | None) -> Self:
        """The same problem, with the time after which another try makes sense."""
        return replace(self, retry_after=seconds)

    def filtered(self, categories: dict[str, Any]) -> Self:
        """The same problem, with what the content filter objected to."""
        return replace(self, content_filter=categories)

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
        """The same failure as OpenAI's error object on one line, so that its clients raise what their users know."""
        said = self.said or {}
        message = said.get("message")
        error: dict[str, Any] = {
            "message": message if isinstance(message, str) and message else self._sentence(),
            "type": said.get("type") or _OPENAI_TYPES.get(self.status, "server_error"),
            "param": said.get("param") or (self.errors[0].field if self.errors else None),
            "code": said.get("code") or self.code,
        }
        if self.content_filter is not None:
            error["innererror"] = {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": self.content_filter,
            }
        return msgspec.json.encode({"error": error, "request_id": request_id})

    def _sentence(self) -> str:
        fields = " ".join(f"{error.field}: {error.message.rstrip('.')}." for error in self.errors)
        return f"{self.title}. {fields or self.detail}"


def _problem(code: str, status: HTTPStatus, title: str, detail: str) -> Problem:
    return Problem(code, status, title, detail)


INVALID_JSON: Final = _problem(
    "invalid_json",
    HTTPStatus.BAD_REQUEST,
    "The body is not JSON",
    'Send one JSON object in UTF-8, for example {"input": "write a haiku"}.',
)
INVALID_REQUEST: Final = _problem(
    "invalid_request",
    HTTPStatus.BAD_REQUEST,
    "The request has a field that is missing, unknown or out of range",
    "Correct the fields named under errors and send the request again.",
)
CONTENT_FILTER: Final = _problem(
    "content_filter",
    HTTPStatus.BAD_REQUEST,
    "The content filter refused the prompt",
    "Azure's content filter refused the prompt; content_filter names the categories. Change the prompt.",
)
CONTEXT_LENGTH_EXCEEDED: Final = _problem(
    "context_length_exceeded",
    HTTPStatus.BAD_REQUEST,
    "The prompt does not fit the model",
    "The conversation and the answer together are longer than the model's context: shorten the input or lower "
    "the output limit.",
)
MODEL_NOT_FOUND: Final = _problem(
    "model_not_found",
    HTTPStatus.NOT_FOUND,
    "There is no such model here",
    "Leave model out for the default one, or name one that GET /v1/models lists.",
)
BODY_TOO_LARGE: Final = _problem(
    "body_too_large",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "The body is too large",
    "Shorten the input.",
)
UNSUPPORTED_MEDIA_TYPE: Final = _problem(
    "unsupported_media_type",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "The body must be JSON",
    "Send the body as JSON with the header Content-Type: application/json.",
)
RATE_LIMITED: Final = _problem(
    "rate_limited",
    HTTPStatus.TOO_MANY_REQUESTS,
    "The model is busy",
    "Every deployment of this model refuses for now. Wait before you try again: retry_after seconds, where given.",
)
INTERNAL_ERROR: Final = _problem(
    "internal_error",
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "The app failed",
    "This is a fault of the app. Its log has the particulars under the same request_id.",
)
UPSTREAM_ERROR: Final = _problem(
    "upstream_error",
    HTTPStatus.BAD_GATEWAY,
    "The model service failed",
    "The model service failed or sent something that is no answer. Try again; if it lasts, GET /ready says more.",
)
UPSTREAM_AUTH: Final = _problem(
    "upstream_auth",
    HTTPStatus.BAD_GATEWAY,
    "The model service does not accept this app",
    "The app could not sign in to the model service. After a deployment a role takes some minutes to become "
    "effective; GET /ready says what is missing.",
)
UPSTREAM_INTERRUPTED: Final = _problem(
    "upstream_interrupted",
    HTTPStatus.BAD_GATEWAY,
    "The answer was cut off",
    "The model service broke the answer off before its end. What arrived is not complete. Try again.",
)
NOT_CONFIGURED: Final = _problem(
    "not_configured",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The app is not configured",
    "An app setting is missing or wrong. errors names it and says how to correct it; GET /ready says more.",
)
UPSTREAM_TIMEOUT: Final = _problem(
    "upstream_timeout",
    HTTPStatus.GATEWAY_TIMEOUT,
    "The model did not answer in time",
    "The model service was silent for too long. Try again.",
)
DEADLINE_EXCEEDED: Final = _problem(
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
    MODEL_NOT_FOUND,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    RATE_LIMITED,
    INTERNAL_ERROR,
    UPSTREAM_ERROR,
    UPSTREAM_AUTH,
    UPSTREAM_INTERRUPTED,
    NOT_CONFIGURED,
    UPSTREAM_TIMEOUT,
    DEADLINE_EXCEEDED,
)
