"""Error responses, in the shapes of OpenAI and of Azure's gateway."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from local.model_service.encoding import Document, as_json


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A whole response with an error status: the body and headers beside the usual ones."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    def as_response(self) -> web.Response:
        """The HTTP response, with an id of its own."""
        headers = {**self.headers, "Content-Type": self.content_type, "x-request-id": secrets.token_hex(16)}
        return web.Response(body=self.body, status=self.status, headers=headers)


def error_object(
    code: str | None, message: str, *, kind: str | None = None, param: str | None = None, **members: Any
) -> Document:
    """OpenAI's error object; Azure's gateway leaves `type` and `param` out, and so does a call without them."""
    document: Document = {"code": code, "message": message}
    if kind is not None or param is not None:
        document |= {"param": param, "type": kind}
    return document | members


def error_response(
    status: int,
    code: str | None,
    message: str,
    /,
    *,
    kind: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> ErrorResponse:
    """A response with OpenAI's error object as its body."""
    error = error_object(code, message, kind=kind, param=param, **members)
    return ErrorResponse(status, as_json({"error": error}), headers or {})


def invalid_request(code: str | None, message: str, param: str | None = None) -> ErrorResponse:
    """A request that the service does not understand: 400."""
    return error_response(400, code, message, kind="invalid_request_error", param=param)


def previous_response_not_found(response_id: str) -> ErrorResponse:
    """`previous_response_id` names no stored response: 400."""
    message = f"Previous response with id '{response_id}' not found."
    return invalid_request("previous_response_not_found", message, "previous_response_id")


def context_length_exceeded() -> ErrorResponse:
    """The input of a response is longer than the model's context: 400."""
    message = "Your input exceeds the context window of this model. Please adjust your input and try again."
    return invalid_request("context_length_exceeded", message, "input")


def wrong_operation(operation: str, deployment: str) -> ErrorResponse:
    """The deployment's model can't do this: 400."""
    return error_response(
        400,
        "OperationNotSupported",
        f"The {operation} operation does not work with the specified model, {deployment}. Please choose different "
        "model and try again. You can learn more about which models can be used with each operation here: "
        "https://go.microsoft.com/fwlink/?linkid=2197993.",
    )


def resource_not_found() -> ErrorResponse:
    """No such path or API version: 404."""
    return error_response(404, "404", "Resource not found")


def deployment_not_found() -> ErrorResponse:
    """No such deployment: 404."""
    return error_response(
        404,
        "DeploymentNotFound",
        "The API deployment for this resource does not exist. One made within the last 5 minutes may need a moment.",
    )


def wrong_key() -> ErrorResponse:
    """The gateway's response to a key that is missing or wrong: 401."""
    return error_response(
        401,
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
        "active subscription and use a correct regional API endpoint for your resource.",
    )


def wrong_token() -> ErrorResponse:
    """The gateway's response to a token that is invalid or has expired: 401."""
    return error_response(
        401, "Unauthorized", "Access token is missing, invalid, audience is incorrect, or have expired."
    )


def role_missing(action: str = "deployments/chat/completions/action") -> ErrorResponse:
    """The response to an identity without the role, also for minutes after it was assigned: 401 PermissionDenied."""
    return error_response(
        401,
        "PermissionDenied",
        f"The principal lacks the required data action `Microsoft.CognitiveServices/accounts/OpenAI/{action}`.",
    )
