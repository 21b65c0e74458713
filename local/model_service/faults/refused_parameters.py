"""Faults that depend on the request: parameters that a server does not take, in the words of such servers."""

from collections.abc import Callable
from typing import Any

from local.model_service.encoding import as_json
from local.model_service.errors import ErrorResponse, error_response

type Refuse = Callable[[dict[str, Any], tuple[float, ...]], ErrorResponse | None]

_LIMITS = ("max_completion_tokens", "max_tokens")


def extra_forbidden(name: str, *, event: bool = False) -> Refuse:
    """422 as of Mistral's API for a parameter (openai/openai-agents-python#442); `event`: in a stream, after a 200."""

    def refuse(body: dict[str, Any], _: tuple[float, ...]) -> ErrorResponse | None:
        if name not in body:
            return None
        detail = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
        error = {"object": "error", "message": {"detail": [detail]}, "type": "invalid_request_error", "param": None}
        if event:
            content = b"data: %b\n\ndata: [DONE]\n\n" % as_json({"error": error | {"code": 422}})
            return ErrorResponse(200, content, content_type="text/event-stream")
        return ErrorResponse(422, as_json(error | {"code": None}))

    return refuse


def both_limits(body: dict[str, Any], _: tuple[float, ...]) -> ErrorResponse | None:
    """400 as of OpenAI for both names of the output limit at once (yaroslavyaroslav/OpenAI-sublime-text#65)."""
    if not all(name in body for name in _LIMITS):
        return None
    return error_response(
        400,
        "invalid_parameter_combination",
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        kind="invalid_request_error",
        param="max_tokens",
    )


def high_limit(body: dict[str, Any], arguments: tuple[float, ...]) -> ErrorResponse | None:
    """400 as of Volcengine for an output limit above the first argument (Gitlawb/openclaude#331)."""
    most = int(arguments[0])
    for name in _LIMITS:
        if body.get(name, 0) > most:
            return error_response(
                400,
                "InvalidParameter",
                f"The parameter `{name}` specified in the request are not valid: integer above maximum value, expected "
                f"a value <= {most}, but got {body[name]} instead. Request id: 0217752964393142fa50af54af66c5cfb922304",
                kind="BadRequest",
                param=name,
            )
    return None


def small_context(body: dict[str, Any], arguments: tuple[float, ...]) -> ErrorResponse | None:
    """400 as of vLLM where prompt and limit exceed the context, the first argument (vllm-project/vllm#42474)."""
    context = int(arguments[0])
    prompt = len(as_json(body.get("messages"))) // 4
    limit = max(body.get(name, 0) for name in _LIMITS)
    if prompt + limit <= context:
        return None
    requested = f"you requested {limit} output tokens and your prompt contains at least {prompt} input tokens"
    return error_response(
        400,
        None,
        f"This model's maximum context length is {context} tokens. However, {requested}, for a total of at least "
        f"{prompt + limit} tokens. Please reduce the length of the input prompt or the number of requested output "
        "tokens.",
        kind="BadRequestError",
        param="input_tokens",
    )


def large_prompt(body: dict[str, Any], arguments: tuple[float, ...]) -> ErrorResponse | None:
    """429 with the second argument as Retry-After, for conversations of more bytes than the first."""
    if len(as_json(body.get("messages"))) <= arguments[0]:
        return None
    message = "Rate limit reached for tokens: the request is larger than what is left of this minute."
    return error_response(429, "RateLimitReached", message, headers={"Retry-After": f"{arguments[1]:g}"})
