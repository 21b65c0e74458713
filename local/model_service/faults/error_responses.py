"""Faults that replace the response by an error."""

import time
from collections.abc import Callable
from email.utils import formatdate

from local.model_service.content_filter import content_filter_entry, prompt_filter_results
from local.model_service.encoding import as_json
from local.model_service.errors import (
    ErrorResponse,
    context_length_exceeded,
    error_response,
    invalid_request,
    previous_response_not_found,
)
from local.model_service.faults.fault import Arguments, MakeError


def always(make: Callable[[], ErrorResponse]) -> MakeError:
    """The same error whatever the arguments."""
    return lambda _: make()


def invalid_value(param: str) -> MakeError:
    """400, a value that is not allowed."""
    return always(lambda: invalid_request("invalid_value", "Invalid value.", param))


def filtered_prompt(_: Arguments) -> ErrorResponse:
    """400, the content filter stopped the prompt."""
    return error_response(
        400,
        "content_filter",
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        param="prompt",
        status=400,
        innererror={
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": prompt_filter_results(violence="medium"),
        },
    )


def filtered_input(_: Arguments) -> ErrorResponse:
    """The same of the Responses API."""
    return error_response(
        400,
        "content_filter",
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        kind="invalid_request_error",
        param="prompt",
        content_filters=[content_filter_entry("prompt", prompt_filter_results(violence="medium"), 590)],
        innererror={"code": "ContentFiltered"},
    )


def prompt_too_long(_: Arguments) -> ErrorResponse:
    """400, the prompt is longer than the model's context."""
    return invalid_request(
        "context_length_exceeded",
        "This model's maximum context length is 272000 tokens. However, your messages resulted in 300017 tokens. "
        "Please reduce the length of the messages.",
        "messages",
    )


def previous_response_missing(_: Arguments) -> ErrorResponse:
    """400, the response before this one is not there, or not yet (dotnet/extensions#7704)."""
    return previous_response_not_found("resp_0")


def input_too_long(_: Arguments) -> ErrorResponse:
    """The same of the Responses API."""
    return context_length_exceeded()


def rate_limited(header: str | None, value: Callable[[float], str] = "{:g}".format) -> MakeError:
    """429; `value` makes the header's value from the first argument."""

    def make(arguments: Arguments) -> ErrorResponse:
        headers = {header: value(arguments[0])} if header else {}
        return error_response(
            429, "RateLimitReached", "The token rate limit of this deployment is exceeded.", headers=headers
        )

    return make


def http_date(seconds: float) -> str:
    """The HTTP date in so many seconds from now."""
    return formatdate(time.time() + seconds, usegmt=True)


def status(number: int, code: str, message: str, header: str | None = None) -> MakeError:
    """An error of Azure's gateway; the header's value is the first argument."""

    def make(arguments: Arguments) -> ErrorResponse:
        return error_response(number, code, message, headers={header: f"{arguments[0]:g}"} if header else {})

    return make


def html_page(number: int, title: str) -> ErrorResponse:
    """A page of HTML in place of JSON, as a proxy sends one."""
    body = f"<html><head><title>{title}</title></head>\r\n<body><center><h1>{title}</h1></center></body></html>\r\n"
    return ErrorResponse(number, body.encode(), content_type="text/html")


def sign_in_page(_: Arguments) -> ErrorResponse:
    """200 with a page, as a proxy sends one (NousResearch/hermes-agent#83128)."""
    return html_page(200, "Sign in")


def unexpected_endpoint(_: Arguments) -> ErrorResponse:
    """200 with an error, as LM Studio sends it for a wrong path (lmstudio-ai/lmstudio-bug-tracker#618)."""
    return ErrorResponse(200, as_json({"error": "Unexpected endpoint or method. (POST /v1/chat/completions)"}))
