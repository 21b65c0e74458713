"""What an error of the model service means: each row of the table, and all that is read of the error."""

import datetime
import email.utils
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest

from relay.problems import (
    CATALOGUE,
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
from relay.upstream import failures
from relay.upstream.failures import (
    MAX_RETRY_AFTER,
    Refusal,
    classify,
    filtered_categories,
    printable_code,
    retryable,
)

NOW = 1_700_000_000.25
MISSING = MODEL_NOT_FOUND.with_detail("The model service has no such deployment (any more). Name another model.")
NO_CATEGORIES = CONTENT_FILTER.with_content_filter({})
WRONG_ADDRESS = NOT_CONFIGURED.with_detail("There is no such API at the model service's address in the app's settings.")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "time", SimpleNamespace(time=lambda: NOW))


def refused(error: Any) -> Problem:
    """The problem of a bad request with this error object."""
    return INVALID_REQUEST.with_detail("The model refused the request.").with_upstream_error(error)


class TestTable:
    """Errors with an HTTP status, then those in a stream."""

    @pytest.mark.parametrize(
        ("status", "error", "problem"),
        [
            *[(status, {"code": "content_filter"}, NO_CATEGORIES) for status in (400, 413, 422)],
            *[(status, {"code": "context_length_exceeded"}, CONTEXT_LENGTH_EXCEEDED) for status in (400, 413, 422)],
            *[(status, {"code": "other"}, refused({"code": "other"})) for status in (400, 413, 422)],
            (400, {"code": "429"}, refused({"code": "429"})),
            (400, {"code": "model_not_found"}, refused({"code": "model_not_found"})),
            (400, None, refused({})),
            (401, {"code": "401"}, UPSTREAM_AUTH),
            (403, {"code": "content_filter"}, UPSTREAM_AUTH),
            (404, {"code": "DeploymentNotFound"}, MISSING),
            (404, {"code": "model_not_found"}, MISSING),
            (404, {"code": "not_found"}, MISSING),
            (404, {"type": "Not_Found", "code": "other"}, MISSING),
            (404, {"type": "invalid_model_error"}, MISSING),
            (404, {"code": "404"}, WRONG_ADDRESS),
            (404, {"type": "invalid_request_error"}, WRONG_ADDRESS),
            (404, {"code": "content_filter"}, WRONG_ADDRESS),
            (404, None, WRONG_ADDRESS),
            (408, {}, UPSTREAM_TIMEOUT),
            (504, {}, UPSTREAM_TIMEOUT),
            (429, {}, RATE_LIMITED),
            (429, {"code": "context_length_exceeded"}, RATE_LIMITED),
            *[(status, {}, UPSTREAM_ERROR) for status in (302, 405, 409, 418, 500, 502, 503, 529, 999)],
            (500, {"code": "429"}, UPSTREAM_ERROR),
            (500, {"code": "content_filter"}, UPSTREAM_ERROR),
            (500, {"type": "model_error"}, UPSTREAM_ERROR),
        ],
    )  # fmt: skip
    def test_a_response(self, status: int, error: Any, problem: Problem) -> None:
        refusal = classify(error, status=status)
        assert refusal.problem == problem
        assert refusal.status == status

    @pytest.mark.parametrize(
        ("error", "problem"),
        [
            ({"code": "content_filter"}, NO_CATEGORIES),
            ({"type": "Content_Filter"}, NO_CATEGORIES),
            ({"code": "context_length_exceeded"}, CONTEXT_LENGTH_EXCEEDED),
            ({"code": "429"}, RATE_LIMITED),
            ({"code": 429}, RATE_LIMITED),
            ({"code": "rate_limit_exceeded"}, RATE_LIMITED),
            ({"code": "TOO_MANY_REQUESTS"}, RATE_LIMITED),
            ({"code": "other", "type": "insufficient_quota"}, RATE_LIMITED),
            ({"code": "DeploymentNotFound"}, UPSTREAM_ERROR),
            ({"code": "server_error"}, UPSTREAM_ERROR),
            ({"type": "model_error"}, UPSTREAM_ERROR),
            ({}, UPSTREAM_ERROR),
            ("text", UPSTREAM_ERROR),
            (["a"], UPSTREAM_ERROR),
            (None, UPSTREAM_ERROR),
            ({"code": {"a": 1}}, UPSTREAM_ERROR),
        ],
        ids=str,
    )
    def test_an_error_in_a_stream(self, error: Any, problem: Problem) -> None:
        refusal = classify(error)
        assert refusal.problem == problem
        assert refusal.status is None
        assert refusal.retry_after is None


class TestReason:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            ({"code": "DeploymentNotFound"}, "DeploymentNotFound"),
            ({"code": "", "type": "a_type"}, "none"),
            ({"type": "a_type"}, "none"),
            ({"code": 429}, "429"),
            ({"code": "two words"}, "unreadable"),
            ({"code": {"a": 1}}, "unreadable"),
            (None, "none"),
        ],
    )
    def test_of_a_response(self, error: Any, code: str) -> None:
        assert classify(error, status=503).reason == f"the model service answered 503, code {code}"

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            ({"code": "a_code", "type": "a_type"}, "a_code"),
            ({"code": "", "type": "a_type"}, "a_type"),
            ({"type": "two words"}, "unreadable"),
            ({}, "none"),
            ("text", "none"),
        ],
    )
    def test_of_an_error_in_a_stream(self, error: Any, code: str) -> None:
        assert classify(error).reason == f"the model service sent an error in the stream, code {code}"

    @pytest.mark.parametrize("code", ["a", "A.b_c-9", "x" * 64])
    def test_a_plain_identifier_is_printable(self, code: str) -> None:
        assert printable_code(code) == code

    @pytest.mark.parametrize("code", ["", "a b", "a\n", "x" * 65, "<a>", "\xe4", "a/b", "a:b"])
    def test_anything_else_is_not(self, code: str) -> None:
        assert printable_code(code) == "unreadable"


class TestContentFilter:
    def test_the_categories_that_were_filtered(self) -> None:
        results = {
            "violence": {"filtered": True, "severity": "medium", "text": "not repeated"},
            "hate": {"filtered": False, "severity": "safe"},
            "jailbreak": {"filtered": True, "detected": False},
            "self_harm2": {"filtered": 1, "severity": "Not an identifier", "detected": "yes"},
            "unknown": {"severity": "high"},
            "odd": 7,
            "null": None,
            "<script>": {"filtered": True},
            "Upper": {"filtered": True},
            "2x": {"filtered": True},
            "x" * 51: {"filtered": True},
            "y" * 50: {"filtered": True, "severity": None, "detected": None},
        }
        assert filtered_categories(results) == {
            "violence": {"filtered": True, "severity": "medium"},
            "jailbreak": {"filtered": True, "detected": False},
            "self_harm2": {"filtered": True},
            "y" * 50: {"filtered": True},
        }

    def test_they_are_part_of_the_problem(self) -> None:
        inner = {"code": "x", "content_filter_result": {"hate": {"filtered": True}, "violence": {"filtered": False}}}
        expected = CONTENT_FILTER.with_content_filter({"hate": {"filtered": True}})
        error = {"code": "content_filter", "innererror": inner, "message": "not repeated"}
        assert classify(error, status=400).problem == expected
        assert classify(error).problem == expected

    @pytest.mark.parametrize(
        "inner", [None, [], "x", {}, {"content_filter_result": None}, {"content_filter_result": []}]
    )
    def test_without_results_there_are_none(self, inner: Any) -> None:
        error = {"code": "content_filter", "innererror": inner}
        assert classify(error, status=400).problem == NO_CATEGORIES


FIELDS = {"messages": "input", "temperature": "temperature"}


class TestBadRequest:
    def test_the_callers_field_is_named(self) -> None:
        error = {"code": "x", "param": "messages", "message": "Too long."}
        assert classify(error, status=400, fields=FIELDS).problem == refused(error).with_errors(
            FieldError("input", "is not accepted by this model; leave it out or change it")
        )

    @pytest.mark.parametrize("param", ["messages[0]", "other", None, ["messages"]])
    def test_unless_there_is_no_such_field(self, param: Any) -> None:
        error = {"param": param}
        assert classify(error, status=400, fields=FIELDS).problem == refused(error)

    def test_without_fields_none_is_named(self) -> None:
        error = {"param": "messages"}
        assert classify(error, status=400).problem == classify(error, status=400, fields={}).problem == refused(error)

    @pytest.mark.parametrize(
        "error", [{"code": "content_filter"}, {"code": "context_length_exceeded"}], ids=lambda error: error["code"]
    )
    def test_no_other_problem_holds_the_upstream_error(self, error: Any) -> None:
        assert classify({**error, "param": "messages"}, status=400, fields=FIELDS).problem.upstream_error is None
        assert classify({**error, "param": "messages"}, status=429, fields=FIELDS).problem.errors == ()


def date(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return email.utils.format_datetime(moment, usegmt=True)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds", "shown"),
        [
            ({"retry-after": "7"}, 7.0, 7),
            ({"retry-after": " 7 "}, 7.0, 7),
            ({"retry-after": "1.2"}, 1.2, 2),
            ({"retry-after": "0"}, 0.0, 0),
            ({"retry-after": "-5"}, 0.0, 0),
            ({"retry-after": "120"}, 120.0, 120),
            ({"retry-after": "121"}, 120.0, 120),
            ({"retry-after": "86400"}, 120.0, 120),
            ({"retry-after-ms": "1500"}, 1.5, 2),
            ({"retry-after-ms": "0"}, 0.0, 0),
            ({"x-ms-retry-after-ms": "400"}, 0.4, 1),
            ({"retry-after-ms": "1000", "x-ms-retry-after-ms": "2000", "retry-after": "3"}, 1.0, 1),
            ({"x-ms-retry-after-ms": "2000", "retry-after": "3"}, 2.0, 2),
            ({"retry-after-ms": "soon", "x-ms-retry-after-ms": "", "retry-after": "3"}, 3.0, 3),
            ({"retry-after-ms": "200000"}, 120.0, 120),
            ({"retry-after": date(NOW + 10)}, 9.75, 10),
            ({"retry-after": date(NOW + 1000)}, 120.0, 120),
            ({"retry-after": date(NOW - 1000)}, 0.0, 0),
            ({"retry-after": "nan"}, None, None),
            ({"retry-after": "inf"}, None, None),
            ({"retry-after": ""}, None, None),
            ({"retry-after": "soon"}, None, None),
            ({"retry-after": "Tue, 99 Nov 2023 22:13:20 GMT"}, None, None),
            ({"retry-after": "Tue, 14 Nov 999999999999 22:13:20 GMT"}, None, None),
            ({"other": "7"}, None, None),
            ({}, None, None),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("status", [429, 503])
    def test_its_forms(self, status: int, headers: dict[str, str], seconds: float | None, shown: int | None) -> None:
        refusal = classify({}, status=status, headers=headers)
        assert refusal.retry_after == seconds
        assert refusal.problem.retry_after == shown
        assert refusal.problem == (RATE_LIMITED if status == 429 else UPSTREAM_ERROR).with_retry_after(shown)

    def test_its_bound(self) -> None:
        assert MAX_RETRY_AFTER == 120

    @pytest.mark.parametrize("status", [408, 504])
    def test_after_a_timeout_it_is_for_this_app_alone(self, status: int) -> None:
        refusal = classify({}, status=status, headers={"retry-after": "7"})
        assert (refusal.problem, refusal.retry_after) == (UPSTREAM_TIMEOUT, 7.0)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, {}),
            (400, {"code": "content_filter"}),
            (400, {"code": "context_length_exceeded"}),
            (401, {}),
            (403, {}),
            (404, {}),
            (404, {"code": "not_found"}),
        ],
    )
    def test_otherwise_it_is_ignored(self, status: int, error: dict[str, Any]) -> None:
        with_header = classify(error, status=status, headers={"retry-after": "7"})
        assert with_header == classify(error, status=status)
        assert (with_header.retry_after, with_header.problem.retry_after) == (None, None)

    def test_in_a_stream_there_is_none(self) -> None:
        assert classify({"code": "429"}) == Refusal(
            RATE_LIMITED, "the model service sent an error in the stream, code 429", None, None
        )


RETRYABLE = {UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, UPSTREAM_TIMEOUT, UPSTREAM_AUTH, RATE_LIMITED}


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
def test_which_failures_another_backend_may_make_good(problem: Problem) -> None:
    expected = problem in RETRYABLE
    assert retryable(problem) is expected
    assert retryable(problem.with_detail("Another detail.")) is expected
    assert Refusal(problem, "a reason").retryable is expected


def test_a_refusal_without_a_response() -> None:
    refusal = Refusal(UPSTREAM_ERROR, "a reason")
    assert (refusal.retry_after, refusal.status) == (None, None)
    with pytest.raises(FrozenInstanceError):
        refusal.reason = "another"  # type: ignore[misc]
