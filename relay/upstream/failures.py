"""What a failure of the model service means: one table for HTTP errors, error events and error documents alike.

`find_error` finds the error in whatever shape a server gives it, `classify` says what it means for the caller. The
shapes and names are those of OpenAI, Azure and its API Management, vLLM, SGLang, llama.cpp, Ollama, LM Studio, LiteLLM,
OpenRouter, Gemini, Anthropic and DashScope, as their users reported them in public.
"""

import datetime
import email.utils
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from relay.problems import (
    BODY_TOO_LARGE,
    CONTENT_FILTER,
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    PREVIOUS_RESPONSE_NOT_FOUND,
    RATE_LIMITED,
    RESPONSE_NOT_FOUND,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
    UPSTREAM_INTERRUPTED,
    UPSTREAM_TIMEOUT,
    FieldError,
    Problem,
)

MAX_RETRY_AFTER: Final = 120  # seconds; the model service's own values can be as absurd as a day

# What another backend may make good; a bad request is one everywhere.
_RETRYABLE: Final = frozenset(
    problem.code for problem in (UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, UPSTREAM_TIMEOUT, UPSTREAM_AUTH, RATE_LIMITED)
)
# What an account does not have and another one may: no fault of the backend that was asked.
_ELSEWHERE: Final = frozenset(problem.code for problem in (RESPONSE_NOT_FOUND, PREVIOUS_RESPONSE_NOT_FOUND))


@dataclass(frozen=True, slots=True)
class Refusal:
    """The model service gave no answer.

    `reason` is for the log, never for a caller. `retry_after`: seconds for which the backend asked not to be called,
    bounded. `status`: the model service's HTTP status, where there was one. `error` is its error object as it came: it
    can hold anything and goes nowhere. `remedy`: what an operator can do, where the problem does not say it.
    """

    problem: Problem
    reason: str
    retry_after: float | None = None
    status: int | None = None
    error: object = field(default=None, repr=False, compare=False)
    remedy: str | None = None

    @property
    def retryable(self) -> bool:
        """Whether another backend may still answer."""
        return retryable(self.problem)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the account only lacks the response that the request names: another one may have it."""
        return self.problem.code in _ELSEWHERE


def retryable(problem: Problem) -> bool:
    """Whether another backend may answer where this one failed with `problem`."""
    return problem.code in _RETRYABLE or problem.code in _ELSEWHERE


_DEPLOYMENT_MISSING: Final = MODEL_NOT_FOUND.with_detail(
    "The model service has no such deployment (any more). Name another model."
)
_ADDRESS_WRONG: Final = NOT_CONFIGURED.with_detail(
    "There is no such API at the model service's address in the app's settings."
)
_PREVIOUS_RESPONSE_MISSING: Final = PREVIOUS_RESPONSE_NOT_FOUND.with_errors(
    FieldError(
        "previous_response_id",
        "names a response that no account with this model has: check it, or send the whole conversation as input",
    )
)

# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────

# By name: an error's `code` or `type`, in lower case and without punctuation. A name that ends in * is a beginning, and
# one between two is anywhere in it.
_BY_NAME: Final[dict[str, Problem]] = {
    name: problem
    for problem, names in (
        (
            CONTENT_FILTER,
            "contentfilter* responsibleaipolicyviolation contentpolicyviolation* datainspectionfailed moderation*",
        ),
        (
            CONTEXT_LENGTH_EXCEEDED,
            "contextlengthexceeded* contextwindowexceeded* exceedcontextsize* tokenslimitreached modelcontextwindow* "
            "modelmaxprompttokens*",
        ),
        (BODY_TOO_LARGE, "requesttoolarge requestentitytoolarge payloadtoolarge"),
        (
            RATE_LIMITED,
            "ratelimit* toomanyrequests* *quota* resourceexhausted throttl* limitrequests",
        ),
        (
            UPSTREAM_AUTH,
            "authentication* invalidauthentication* invalidapikey incorrectapikey unauthorized unauthenticated "
            "permission* accessdenied forbidden",
        ),
        (_PREVIOUS_RESPONSE_MISSING, "previousresponsenotfound"),
        (
            _DEPLOYMENT_MISSING,
            "modelnotfound* deploymentnotfound unknownmodel unavailablemodel invalidmodel* modelnotexist* "
            "modelnotavailable* modelnotsupported*",
        ),
        (UPSTREAM_TIMEOUT, "timeout* gatewaytimeout requesttimeout apitimeout* modeltimeout* deadlineexceeded"),
    )
    for name in names.split()
}
# Names that say no more than the HTTP status does: they decide where that is missing, or blames the server.
_BAD_REQUEST_NAMES: Final = (
    *("badrequest*", "invalid*", "unsupported*", "missingrequired*", "validation*", "unproc*"),
    # Of a failed response (OpenAI API reference, "The response object").
    *("image*", "emptyimage*", "failedtodownload*", "dataresidency*", "biopolicy", "cyberpolicy", "misalignment*"),
)
_NOT_FOUND_NAMES: Final = ("notfound*",)

# By status: the error's own numeric `code`, else the HTTP status.
_BY_STATUS: Final[dict[int, Problem]] = {
    400: INVALID_REQUEST,
    422: INVALID_REQUEST,
    413: BODY_TOO_LARGE,
    401: UPSTREAM_AUTH,
    403: UPSTREAM_AUTH,
    404: _ADDRESS_WRONG,
    408: UPSTREAM_TIMEOUT,
    504: UPSTREAM_TIMEOUT,
    522: UPSTREAM_TIMEOUT,
    524: UPSTREAM_TIMEOUT,
    429: RATE_LIMITED,
}
# What a name may make of a status that is the error's own code: nothing of another kind.
_NARROWER: Final[dict[int, tuple[Problem, ...]]] = {
    400: (
        *(CONTENT_FILTER, CONTEXT_LENGTH_EXCEEDED, BODY_TOO_LARGE, _DEPLOYMENT_MISSING),
        _PREVIOUS_RESPONSE_MISSING,
    ),
    413: (CONTENT_FILTER, CONTEXT_LENGTH_EXCEEDED),
    422: (CONTENT_FILTER, CONTEXT_LENGTH_EXCEEDED),
    404: (_DEPLOYMENT_MISSING, _PREVIOUS_RESPONSE_MISSING),
}

# By message, where nothing else tells a prompt that is too long from another bad request: parts of it in lower case.
_TOO_LONG: Final = (
    "maximum context length",
    "context length of only",
    "model's context length",
    "exceeds the context",
    "exceeds the available context size",
    "exceeds the maximum context",
    "exceed context",
    "context_length_exceeded",
    "context window",
    "prompt is too long",
    "input is too long",
    "prompt too long",
    "input token count",
    "maximum number of tokens allowed",
    "maximum prompt length",
    "maximum model length",
    "too large for model with",
    "range of input length should be",
    "reduce the length of the messages",
    "`inputs` tokens + `max_new_tokens` must be",
)
# The same in general, of messages that are not about the output: what is too long, and that it is.
_PROMPT: Final = r"(?:prompt|inputs?\b|context|conversation|messages)"
_EXCEEDS: Final = r"(?:exceed|too long|too many|longer than|greater than|larger than|less than|but got)"
_PROMPT_TOO_LONG: Final = re.compile(
    rf"{_PROMPT}[^.;\n]{{0,80}}{_EXCEEDS}|(?:exceed|too many)[^.;\n]{{0,60}}(?:{_PROMPT}|token limit)"
    r"|too large for[^;\n]{0,80}tokens"
)
_OF_LENGTH: Final = re.compile(r"token|context|prompt length|input length|prompt exceeds|conversation is too long")
_OF_OUTPUT: Final = re.compile(r"max_(?:completion_|output_|new_)?tokens|(?:output|completion) tokens")

# By message, of a bad request: the name of the model is the only one of its members that this app chooses.
_NO_MODEL: Final = re.compile(
    r"(?:invalid|unknown|unavailable|no such) model\b(?: name| id| identifier)?\s*(?:[:'\"`]|passed|specified|$)"
    r"|\bmodel\b:?\s?(?:[`'\"]?[\w./:@-]{1,80}[`'\"]?,?\s)?(?:is |was |does )?"
    r"(?:not exist|not found|not available|unavailable|no longer)\b"
    r"|no (?:router|endpoints?) (?:found )?for\b"
)
# By message, of a refused credential: API Management's quotas, among others.
_QUOTA: Final = re.compile(r"\bquota\b")

# ── Finding the error ────────────────────────────────────────────────────────────────────────────────────────────────

_STATUS_NAMES: Final = ("code", "status", "status_code", "statusCode", "http_status", "http_code")
_MEMBERS: Final = frozenset((*_STATUS_NAMES, "type", "message", "param"))
_FLAT_NAMES: Final = {
    "type": ("error_type",),
    "message": ("error_message", "error_msg"),
    "code": ("error_code",),
}
# The message of an error that is a whole document.
_MESSAGE_NAMES: Final = ("message", "Message", "msg")

# Parts of the finish reasons of answers that were not finished, as servers name them: `error` (OpenRouter, Mistral,
# vLLM), `abort` (vLLM, SGLang), `insufficient_system_resource` (DeepSeek), `network_error` (Zhipu),
# `MALFORMED_FUNCTION_CALL` and `UNEXPECTED_TOOL_CALL` (Gemini), `USER_CANCEL` (Cohere).
_FAILED_FINISH: Final = (
    "error",
    "fail",
    "abort",
    "cancel",
    "interrupt",
    "exception",
    "malformed",
    "timeout",
    "timed_out",
    "insufficient",
    "unexpected",
    "unavailable",
    "overload",
    "rate_limit",
    "disconnect",
    "internal",
)


def is_failed_finish(reason: str) -> bool:
    """Whether a finish reason means that the answer was not finished."""
    lowered = reason[:_MAX_WORD].lower()
    return any(part in lowered for part in _FAILED_FINISH)


def find_error(document: object) -> dict[str, Any] | None:
    """The error in a parsed event or document, as an object; None where there is none.

    It may be the member `error` (an object, a text, a list of one), an error in a choice or a finish reason that means
    one, the whole document (`"object": "error"`, `"type": "error"`, members such as `error_message`, or a message or
    the status of an error with no choices beside it), or the one element of a list.
    """
    if isinstance(document, list):
        return next((error for it in document[:1] if (error := find_error(it)) is not None), None)
    if not isinstance(document, dict):
        return None
    choices = document.get("choices")
    choices = choices if isinstance(choices, list) else []
    error = document.get("error")
    if error or (error is not None and not choices):
        return _error_object(error, document)
    if document.get("object") == "error" or document.get("type") == "error":
        return document
    flat = {name: document[it] for name, given in _FLAT_NAMES.items() for it in given if document.get(it)}
    if flat:
        return flat
    groq = document.get("x_groq")
    if isinstance(groq, dict) and groq.get("error"):
        return _error_object(groq["error"], {})
    if choices:
        return next((error for choice in choices if (error := _error_in_choice(choice)) is not None), None)
    return _error_without_choices(document)


def _error_object(error: object, document: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    if isinstance(error, list):
        error = error[0] if error else None
    if isinstance(error, dict) and error:
        inner = error.get("error")
        if inner and "message" not in error and depth < _MAX_DEPTH:
            return _error_object(inner, error, depth + 1)
        return error
    beside = {name: value for name, value in document.items() if name in _MEMBERS}
    if isinstance(error, int) and _is_error_status(error):
        beside["code"] = error
    return beside | ({"message": error} if isinstance(error, str) and error else {})


def _error_in_choice(choice: object) -> dict[str, Any] | None:
    if not isinstance(choice, dict):
        return None
    delta = choice.get("delta") or choice.get("message")
    for members in (choice, delta):
        if isinstance(members, dict) and (error := members.get("error")):
            return _error_object(error, {})
    reason = choice.get("finish_reason")
    return {"code": reason} if isinstance(reason, str) and is_failed_finish(reason) else None


def _error_without_choices(document: dict[str, Any]) -> dict[str, Any] | None:
    errors = document.get("errors")
    if isinstance(errors, list) and errors:
        return _error_object(errors, document)
    code = document.get("code")
    message = next((it for name in _MESSAGE_NAMES if isinstance(it := document.get(name), str) and it), None)
    if message is None:
        if _stated_status(document, *_STATUS_NAMES) is not None:
            return document
    elif "message" in document or "__type" in document or _stated_status(document, *_STATUS_NAMES) is not None:
        if isinstance(code, int) and not _is_error_status(code):
            return None
        return {**document, "message": message}
    detail = document.get("detail")  # FastAPI's errors: a text, or a list of what is wrong with fields
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        detail = detail[0].get("msg")
    return {"message": detail} if isinstance(detail, str) and detail else None


def _is_error_status(number: int) -> bool:
    return 400 <= number <= 599


_MAX_DEPTH: Final = 3  # of error objects in error objects
_MAX_WORD: Final = 100  # characters read of a code or type
_MAX_MESSAGE: Final = 4000  # characters read and passed on of a message


# ── Classifying it ───────────────────────────────────────────────────────────────────────────────────────────────────


def classify(
    error: object,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    fields: Mapping[str, str] | None = None,
    not_found: Problem | None = None,
    deployment: str | None = None,
) -> Refusal:
    """What an error of the model service means for the caller.

    `error` is an error object, or anything that `find_error` finds one in. `status` is the HTTP status that it came
    with; None for an error in an answer that had begun. Its own numeric code counts as a status, before that; otherwise
    its code decides, then its type, then the HTTP status. `headers` are searched for the time after which to try again.
    `fields` maps the upstream's parameters to the caller's fields, and `not_found` is what the status 404 means (see
    `relay.upstream.request`). `deployment`: the name of the deployment that was asked, as a model that is missing.
    """
    members = _members(error)
    names = [name for name in _names(members) if not name.isdecimal()]
    headers = headers or {}
    problem = _by_name(names, _stated_status(members, "code")) or _by_status(members, names, status, deployment)
    if not_found is not None and status == 404:
        problem = not_found
    elif not_found is not None and status == 409:
        problem = INVALID_REQUEST  # what is named is not in a state for it
    retry_after = _retry_after(headers)
    if problem is UPSTREAM_AUTH and status == 403:
        if retry_after is not None or _QUOTA.search(_text(members.get("message")).lower()):
            problem = RATE_LIMITED  # the limits of API Management answer 403 when a quota is used up
        elif _has_flagged_input(members):
            problem = CONTENT_FILTER
    if retry_after is None and problem is RATE_LIMITED:
        retry_after = _limit_reset(headers)
        retry_after = _stated_delay(members) if retry_after is None else retry_after
    code = printable_code(_word(members.get("code")) or _word(members.get("type")) or "none")
    if status is None:
        reason = f"the model service sent an error in its answer, code {code}"
    else:
        reason = f"the model service answered {status}, code {code}"
    if problem is CONTENT_FILTER:
        problem = problem.with_content_filter(filtered_categories(filter_results(members)))
    elif problem is INVALID_REQUEST:
        problem = _bad_request(members, fields or {})
    elif problem is CONTEXT_LENGTH_EXCEEDED or problem is BODY_TOO_LARGE:
        problem = problem.with_upstream_error({**_shown(members), "code": problem.code})
    if not retryable(problem) or problem.code == UPSTREAM_AUTH.code:
        return Refusal(problem, reason, status=status, error=error)
    if retry_after is not None and problem.code in (RATE_LIMITED.code, UPSTREAM_ERROR.code):
        problem = problem.with_retry_after(math.ceil(retry_after))
    return Refusal(problem, reason, retry_after, status, error)


def _members(error: object) -> dict[str, Any]:
    found = find_error(error)
    if found is not None:
        return found
    if isinstance(error, str) and not error.lstrip().startswith("<"):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _stated_status(members: dict[str, Any], *names: str) -> int | None:
    """The status that the error object itself states."""
    for name in names:
        value = members.get(name)
        if isinstance(value, str) and _THREE_DIGITS.fullmatch(text := value[:_MAX_WORD].strip()):
            value = int(text)
        elif isinstance(value, float) and value in range(400, 600):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and _is_error_status(value):
            return value
    return None


def _names(members: dict[str, Any]) -> list[str]:
    """The error's code and type, and what else names its kind, most significant first; without punctuation."""
    inner = members.get("innererror")
    values = [members.get("code"), members.get("type"), members.get("status")]
    values.append(inner.get("code") if isinstance(inner, dict) else None)
    values.append(_word(members.get("__type")).rpartition("#")[2])  # AWS's
    return ["".join(filter(str.isalnum, word)).lower() for value in values if (word := _word(value))]


def _is_among(name: str, patterns: Iterable[str]) -> bool:
    return any(_fits(name, pattern) for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    if not pattern.endswith("*"):
        return name == pattern
    return pattern[1:-1] in name if pattern.startswith("*") else name.startswith(pattern[:-1])


def _by_name(names: list[str], code: int | None) -> Problem | None:
    for name in names:
        for pattern, problem in _BY_NAME.items():
            if _is_among(name, (pattern,)) and (code is None or problem in _NARROWER.get(code, ())):
                return problem
    return None


def _by_status(members: dict[str, Any], names: list[str], http_status: int | None, deployment: str | None) -> Problem:
    stated = _stated_status(members, *_STATUS_NAMES)
    status = http_status if stated is None else stated
    if stated is None and (http_status is None or not 400 <= http_status < 500):
        # The names of these kinds are often beside a status that is another, such as 401, which then tells more.
        if any(_is_among(name, _BAD_REQUEST_NAMES) for name in names):
            status = 400
        elif any(_is_among(name, _NOT_FOUND_NAMES) for name in names):
            status = 404
    problem = UPSTREAM_ERROR if status is None else _BY_STATUS.get(status, UPSTREAM_ERROR)
    if problem is _ADDRESS_WRONG and (http_status != 404 or _names_a_model(members, names, deployment)):
        return _DEPLOYMENT_MISSING  # an address that answers with another status has the API
    if status in (None, 400, 413, 422) and _says_too_long(members):
        return CONTEXT_LENGTH_EXCEEDED
    if problem is INVALID_REQUEST and _NO_MODEL.search(_text(members.get("message")).lower()):
        return _DEPLOYMENT_MISSING
    return problem


def _names_a_model(members: dict[str, Any], names: list[str], deployment: str | None) -> bool:
    message = _text(members.get("message"))
    if any(_MODEL.search(text) for text in (*names, _word(members.get("param")), message)):
        return True
    return bool(deployment) and re.search(rf"(?<![\w/.-]){re.escape(deployment or '')}(?![\w/-])", message) is not None


def _says_too_long(members: dict[str, Any]) -> bool:
    message = _text(members.get("message")).lower()
    if any(part in message for part in _TOO_LONG):
        return True
    if _OF_OUTPUT.search(message) or not _OF_LENGTH.search(message):
        return False
    return _PROMPT_TOO_LONG.search(message) is not None


def _has_flagged_input(members: dict[str, Any]) -> bool:
    """Whether the error is the moderation's, in OpenRouter's form."""
    metadata = members.get("metadata")
    return isinstance(metadata, dict) and "flagged_input" in metadata


def _word(value: object) -> str:
    """A code or type as text; empty where it is none."""
    if isinstance(value, str):
        return value[:_MAX_WORD]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9 else ""


def _text(value: object) -> str:
    return value[:_MAX_MESSAGE] if isinstance(value, str) else ""


def _shown(members: dict[str, Any]) -> dict[str, Any]:
    """What callers of the OpenAI API may see of the error, before secrets are removed (`relay.upstream.redaction`)."""
    shown = {name: word for name in ("type", "param", "code") if (word := _word(members.get(name)))}
    if shown.get("code", "").isdecimal():
        del shown["code"]  # a status, which the response has
    if message := _text(members.get("message")):
        shown["message"] = message
    return shown


def _bad_request(error: dict[str, Any], fields: Mapping[str, str]) -> Problem:
    problem = INVALID_REQUEST.with_detail("The model refused the request.").with_upstream_error(_shown(error))
    param = _word(error.get("param"))
    field = fields.get(param) or fields.get(_MEMBER_OF.sub("", param))
    if field is None:
        return problem
    return problem.with_errors(FieldError(field, "is not accepted by this model; leave it out or change it"))


def filtered_categories(results: dict[str, Any]) -> dict[str, Any]:
    """The categories that the filter acted on, out of all that it reports: `{"violence": {"filtered": true, …}}`."""
    categories: dict[str, Any] = {}
    for category, result in results.items():
        if not isinstance(result, dict) or not result.get("filtered") or not _CATEGORY.fullmatch(category):
            continue
        kept: dict[str, Any] = {"filtered": True}
        if isinstance(severity := result.get("severity"), str) and _CATEGORY.fullmatch(severity):
            kept["severity"] = severity
        if isinstance(detected := result.get("detected"), bool):
            kept["detected"] = detected
        categories[category] = kept
        if len(categories) == _MAX_CATEGORIES:
            break
    return categories


def filter_results(error: dict[str, Any]) -> dict[str, Any]:
    """The content filter's results, out of the error object that refuses a prompt, or of a response.

    The Responses API has them in a list, `content_filters`, with an element for each part that was checked.
    """
    inner = error.get("innererror")
    results = inner.get("content_filter_result") if isinstance(inner, dict) else None
    checked = error.get("content_filters")
    if results is None and isinstance(checked, list):
        parts = [it.get("content_filter_results") for it in checked if isinstance(it, dict) and it.get("blocked")]
        results = {name: result for part in parts if isinstance(part, dict) for name, result in part.items()}
    return results if isinstance(results, dict) else {}


def printable_code(code: str) -> str:
    """An upstream code, fit for a log line: whatever is not a plain identifier is not repeated."""
    return code if _CODE.fullmatch(code) else "unreadable"


_CATEGORY: Final = re.compile(r"[a-z][a-z0-9_]{0,49}")
_MAX_CATEGORIES: Final = 50
_CODE: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_MEMBER_OF: Final = re.compile(r"[.\[].*", re.DOTALL)  # what follows the name of the parameter in `messages[0].content`
_THREE_DIGITS: Final = re.compile(r"[0-9]{3}")
_MODEL: Final = re.compile(r"\b(?:model|deployment)s?\b|^(?:model|deployment)", re.IGNORECASE)


# ── When to try again ────────────────────────────────────────────────────────────────────────────────────────────────


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, by whichever header gives them, from 0 to `MAX_RETRY_AFTER`; None where none does.

    `retry-after-ms` and `x-ms-retry-after-ms` are Azure's, in milliseconds; `Retry-After` is in seconds or an HTTP date
    (RFC 9110, section 10.2.3).
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(headers.get(name))) is not None:
            return _bounded(milliseconds / 1000)
    text = headers.get("retry-after")
    if (seconds := _wait(text)) is None and text is not None:
        seconds = _wait(text.partition(",")[0])  # a proxy that adds its own makes a list of it
    return seconds


def _limit_reset(headers: Mapping[str, str]) -> float | None:
    """Seconds until the limit that was reached is reset, where only the headers of limits tell it.

    With two limits it is the one of which nothing remains, and the later one where that is not known. The names are
    OpenAI's, Anthropic's, and those of gateways with one limit (also draft-ietf-httpapi-ratelimit-headers-07).
    """
    for names in _RESETS:
        resets = {name: seconds for name in names if (seconds := _wait(headers.get(name))) is not None}
        reached = [it for name, it in resets.items() if headers.get(name.replace("reset", "remaining")) == "0"]
        if resets:
            return max(reached or resets.values())
    return None


_RESETS: Final = (
    ("x-ratelimit-reset-tokens", "x-ratelimit-reset-requests"),
    (
        "anthropic-ratelimit-requests-reset",
        "anthropic-ratelimit-tokens-reset",
        "anthropic-ratelimit-input-tokens-reset",
        "anthropic-ratelimit-output-tokens-reset",
    ),
    ("x-ratelimit-reset", "ratelimit-reset"),
)


def _stated_delay(members: dict[str, Any]) -> float | None:
    """Seconds to wait, where the error object itself tells it: Google's RetryInfo, and OpenRouter's headers in it."""
    details = members.get("details")
    for detail in details[:_MAX_DETAILS] if isinstance(details, list) else ():
        if isinstance(detail, dict) and isinstance(delay := detail.get("retryDelay"), str):
            return _wait(delay)
    metadata = members.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if not isinstance(headers, dict):
        return None
    texts = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    seconds = _retry_after(texts)
    return _limit_reset(texts) if seconds is None else seconds


_MAX_DETAILS: Final = 20


def _wait(text: str | None) -> float | None:
    """Seconds of `55`, `7.66s`, `1m3s`, `6h0m0s` or `120ms`, or until a date: an HTTP date, one of RFC 3339, or seconds
    or milliseconds since 1970. Bounded; None for anything else."""
    text = (text or "").strip()[:_MAX_TIME]
    if (number := _number(text)) is not None:
        if number >= _EPOCH:
            number = number / (1000 if number >= 1000 * _EPOCH else 1) - time.time()
        return _bounded(number)
    if not text:
        return None
    if (found := _DURATION.fullmatch(text)) is not None:
        days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
        return _bounded(((days * 24 + hours) * 60 + minutes) * 60 + seconds + milliseconds / 1000)
    for parse in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            date = parse(text)
        except (ValueError, OverflowError):
            continue
        return _bounded((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp() - time.time())
    return None


_EPOCH: Final = 1e9  # seconds since 1970, in 2001: no one waits for that long
_MAX_TIME: Final = 64  # characters of a header that gives a time
_PART: Final = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_DURATION: Final = re.compile(rf"(?:{_PART}d)?(?:{_PART}h)?(?:{_PART}m(?!s))?(?:{_PART}s)?(?:{_PART}ms)?")


def _number(text: str | None) -> float | None:
    try:
        number = float((text or "")[:_MAX_TIME])
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
