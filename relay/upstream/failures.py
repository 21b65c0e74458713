"""What a failure of the model service means: one table for HTTP errors, error events and error documents alike."""

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from relay.problems import (
    CONTENT_FILTER,
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
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


@dataclass(frozen=True, slots=True)
class Refusal:
    """The model service gave no answer.

    `reason` is for the log, never for a caller. `retry_after`: seconds for which the backend asked not to be called,
    bounded. `status`: the model service's HTTP status, where there was one. `error` is what it said, as it came: it can
    hold anything and goes nowhere. `remedy`: what an operator can do, where the problem does not tell it.
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


def retryable(problem: Problem) -> bool:
    """Whether another backend may answer where this one failed with `problem`."""
    return problem.code in _RETRYABLE


_DEPLOYMENT_MISSING: Final = MODEL_NOT_FOUND.with_detail(
    "The model service has no such deployment (any more). Name another model."
)
_ADDRESS_WRONG: Final = NOT_CONFIGURED.with_detail(
    "There is no such API at the model service's address in the app's settings."
)

# The table. The first row that matches decides: by the error's `code` or `type`, in lower case, where `names` has it,
# and by the HTTP status where `statuses` has it; an empty set matches all.
_ANY: Final[frozenset[Any]] = frozenset()
_MISSING_NAMES: Final = frozenset({"deploymentnotfound", "model_not_found", "not_found"})
_BAD_REQUEST: Final = frozenset({400, 413, 422})


def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


def _statuses(*statuses: int | None) -> frozenset[int | None]:
    return frozenset(statuses)


_TABLE: Final[tuple[tuple[frozenset[str], frozenset[int | None], Problem], ...]] = (
    (_names("content_filter"), _statuses(None, *_BAD_REQUEST), CONTENT_FILTER),
    (_names("context_length_exceeded"), _statuses(None, *_BAD_REQUEST), CONTEXT_LENGTH_EXCEEDED),
    (_ANY, _statuses(*_BAD_REQUEST), INVALID_REQUEST),
    (_ANY, _statuses(401, 403), UPSTREAM_AUTH),
    (_MISSING_NAMES, _statuses(404), _DEPLOYMENT_MISSING),
    (_ANY, _statuses(404), _ADDRESS_WRONG),
    (_ANY, _statuses(408, 504), UPSTREAM_TIMEOUT),
    (_ANY, _statuses(429), RATE_LIMITED),
    (
        _names("429", "rate_limit_exceeded", "too_many_requests", "insufficient_quota"),
        _statuses(None),
        RATE_LIMITED,
    ),
    (_ANY, _ANY, UPSTREAM_ERROR),
)


def classify(
    error: object,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    fields: Mapping[str, str] | None = None,
) -> Refusal:
    """What an error object of the model service means for the caller.

    `status` is the HTTP status that it came with; None for an error object in a stream. `headers` are searched for the
    time after which to try again. `fields` maps the upstream's parameters to the caller's fields (see
    `relay.upstream.request`).
    """
    members = error if isinstance(error, dict) else {}
    code = str(members.get("code") or "none")
    names = {code.lower(), str(members.get("type")).lower()}
    problem = next(
        problem
        for known_names, statuses, problem in _TABLE
        if (not known_names or known_names & names) and (not statuses or status in statuses)
    )
    if status == 404 and "model" in str(members.get("type")):
        problem = _DEPLOYMENT_MISSING
    if status is None:
        reason = f"the model service sent an error in the stream, code {printable_code(str(_name(members)))}"
    else:
        reason = f"the model service answered {status}, code {printable_code(code)}"
    retry_after = _retry_after(headers or {})
    if problem is CONTENT_FILTER:
        problem = problem.with_content_filter(filtered_categories(_filter_results(members)))
    elif problem is INVALID_REQUEST:
        problem = _bad_request(members, fields or {})
    if not retryable(problem) or problem.code == UPSTREAM_AUTH.code:
        return Refusal(problem, reason, status=status, error=error)
    if retry_after is not None and problem.code in (RATE_LIMITED.code, UPSTREAM_ERROR.code):
        problem = problem.with_retry_after(math.ceil(retry_after))
    return Refusal(problem, reason, retry_after, status, error)


def _name(error: dict[str, Any]) -> object:
    return error.get("code") or error.get("type") or "none"


def _bad_request(error: dict[str, Any], fields: Mapping[str, str]) -> Problem:
    problem = INVALID_REQUEST.with_detail("The model refused the request.").with_upstream_error(error)
    field = fields.get(str(error.get("param")))
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
    return categories


def _filter_results(error: dict[str, Any]) -> dict[str, Any]:
    """The content filter's results on the prompt, out of the error object that refuses it."""
    inner = error.get("innererror")
    results = inner.get("content_filter_result") if isinstance(inner, dict) else None
    return results if isinstance(results, dict) else {}


def printable_code(code: str) -> str:
    """An upstream code, fit for a log line: whatever is not a plain identifier is not repeated."""
    return code if _CODE.fullmatch(code) else "unreadable"


_CATEGORY: Final = re.compile(r"[a-z][a-z0-9_]{0,49}")
_CODE: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, by whichever header gives them, from 0 to `MAX_RETRY_AFTER`; None where none does.

    `retry-after-ms` and `x-ms-retry-after-ms` are Azure's, in milliseconds; `Retry-After` is in seconds or an HTTP date
    (RFC 9110, section 10.2.3).
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(headers.get(name))) is not None:
            return _bounded(milliseconds / 1000)
    text = headers.get("retry-after")
    if (seconds := _number(text)) is not None:
        return _bounded(seconds)
    if text:
        try:
            return _bounded(email.utils.parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
