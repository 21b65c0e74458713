"""What an error of the model service means: each row of the table, and all that is read of the error."""

import datetime
import email.utils
import time
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest

from relay.problems import (
    BODY_TOO_LARGE,
    CATALOGUE,
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
from relay.upstream import failures
from relay.upstream.failures import (
    MAX_RETRY_AFTER,
    Refusal,
    classify,
    filtered_categories,
    find_error,
    is_failed_finish,
    printable_code,
    retryable,
)

NOW = 1_700_000_000.25
MISSING = MODEL_NOT_FOUND.with_detail("The model service has no such deployment (any more). Name another model.")
NO_CATEGORIES = CONTENT_FILTER.with_content_filter({})
TOO_LONG = CONTEXT_LENGTH_EXCEEDED.with_upstream_error({"code": "context_length_exceeded"})
TOO_LARGE = BODY_TOO_LARGE.with_upstream_error({"code": "body_too_large"})
WRONG_ADDRESS = NOT_CONFIGURED.with_detail("There is no such API at the model service's address in the app's settings.")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "time", SimpleNamespace(time=lambda: NOW))


def refused(error: Any) -> Problem:
    """The problem of a bad request with this error object."""
    return INVALID_REQUEST.with_detail("The model refused the request.").with_upstream_error(error)


CHOICES = {"choices": [{"index": 0, "delta": {"content": "x"}}]}


class TestTable:
    """Errors with an HTTP status, then those in a stream."""

    @pytest.mark.parametrize(
        ("status", "error", "problem"),
        [
            *[(status, {"code": "content_filter"}, NO_CATEGORIES) for status in (400, 403, 413, 422, 500)],
            *[(status, {"code": "context_length_exceeded"}, TOO_LONG) for status in (400, 413, 422, 429, 500)],
            *[(status, {"code": "other"}, refused({"code": "other"})) for status in (400, 422)],
            (413, {"code": "other"}, TOO_LARGE),
            (413, {"code": "tokens_limit_reached"}, TOO_LONG),
            (413, None, TOO_LARGE),
            (413, "<html>", TOO_LARGE),
            (400, {"code": "429"}, RATE_LIMITED),
            (400, {"code": 429}, RATE_LIMITED),
            (400, {"code": "399"}, refused({})),
            (400, {"code": True}, refused({})),
            (400, {"code": "model_not_found"}, MISSING),
            (400, {"type": "not_found_error"}, refused({"type": "not_found_error"})),
            (400, None, refused({})),
            (400, "<html>", refused({})),
            (400, "no such thing", refused({"message": "no such thing"})),
            (400, [{"error": {"code": 400, "message": "no"}}], refused({"message": "no"})),
            (400, {"detail": [{"loc": ["body"], "msg": "no"}]}, refused({"message": "no"})),
            (401, {"code": "401"}, UPSTREAM_AUTH),
            (401, {"type": "invalid_request_error"}, UPSTREAM_AUTH),
            (403, {"type": "invalid_request_error", "code": "other"}, UPSTREAM_AUTH),
            (404, {"code": "DeploymentNotFound"}, MISSING),
            (404, {"code": "model_not_found"}, MISSING),
            (404, {"type": "invalid_model_error"}, MISSING),
            (404, {"type": "not_found_error", "message": "model 'x' not found"}, MISSING),
            (404, {"type": "NotFoundError", "param": "model", "code": 404}, MISSING),
            (404, {"code": 404, "message": "models/x is not found"}, MISSING),
            (404, {"code": "not_found"}, WRONG_ADDRESS),
            (404, {"code": 404, "message": "File Not Found", "type": "not_found_error"}, WRONG_ADDRESS),
            (404, {"code": "404"}, WRONG_ADDRESS),
            (404, {"type": "invalid_request_error", "message": "Invalid URL (POST /v1/chat)"}, WRONG_ADDRESS),
            (404, {"detail": "Not Found"}, WRONG_ADDRESS),
            (404, None, WRONG_ADDRESS),
            *[
                (status, {"message": text}, MISSING)
                for status in (400, 422)
                for text in (
                    "Invalid model name passed in model=x. Call `/v1/models` to view available models",
                    "Unknown model: x",
                    "Invalid model: 'x'",
                    "The model `x` does not exist",
                    "Model not exist.",
                    "no router for requested model",
                    "model: meta/llama-4 was not found",
                    "The requested model 'x:latest' is not available",
                    "The model gpt-4, is no longer supported",
                )
            ],
            (400, {"code": "unavailable_model"}, MISSING),
            (404, {"code": 404, "message": "No endpoints found for the/name."}, MISSING),
            (404, {"code": 404, "message": "no such file: /the/name/chat"}, WRONG_ADDRESS),
            *[
                (400, {"message": text}, refused({"message": text}))
                for text in ("bad model of x", "The model's tool 'f' was not found", "the model could not find a file")
            ],
            (403, {"message": "Out of call volume Quota."}, RATE_LIMITED),
            (403, {"message": "quotas"}, UPSTREAM_AUTH),
            (401, {"message": "quota"}, UPSTREAM_AUTH),
            (403, {"code": "AllocationQuota.FreeTierOnly"}, RATE_LIMITED),
            (403, {"code": "insufficient_user_quota"}, RATE_LIMITED),
            (403, {"code": 403, "metadata": {"reasons": ["x"], "flagged_input": "y"}}, NO_CATEGORIES),
            (403, {"code": 403, "metadata": {"provider_name": "x"}}, UPSTREAM_AUTH),
            (400, {"code": "moderation_blocked"}, NO_CATEGORIES),
            (400, {"__type": "com.amazon.coral.service#ThrottlingException"}, RATE_LIMITED),
            (522, "<html>", UPSTREAM_TIMEOUT),
            (408, {}, UPSTREAM_TIMEOUT),
            (504, {}, UPSTREAM_TIMEOUT),
            (504, {"type": "server_error"}, UPSTREAM_TIMEOUT),
            (524, "<html>", UPSTREAM_TIMEOUT),
            (429, {}, RATE_LIMITED),
            (429, {"type": "invalid_request_error"}, RATE_LIMITED),
            *[(status, {}, UPSTREAM_ERROR) for status in (302, 405, 409, 418, 500, 502, 503, 529, 999)],
            (500, {"code": "429"}, RATE_LIMITED),
            (500, {"code": 400, "type": "None"}, refused({"type": "None"})),
            (500, {"type": "invalid_request_error"}, refused({"type": "invalid_request_error"})),
            (500, {"type": "model_error"}, UPSTREAM_ERROR),
            (500, {"type": "server_error"}, UPSTREAM_ERROR),
            (503, {"code": "overloaded_error"}, UPSTREAM_ERROR),
        ],
    )  # fmt: skip
    def test_a_response(self, status: int, error: Any, problem: Problem) -> None:
        refusal = classify(error, status=status, deployment="the/name")
        assert refusal.problem == problem
        assert refusal.status == status
        assert refusal.error is error

    @pytest.mark.parametrize(
        ("error", "problem"),
        [
            ({"code": "content_filter"}, NO_CATEGORIES),
            ({"type": "Content_Filter"}, NO_CATEGORIES),
            ({"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, NO_CATEGORIES),
            ({"code": "content_filter", "status": 400}, NO_CATEGORIES),
            ({"code": "DataInspectionFailed"}, NO_CATEGORIES),
            ({"code": "context_length_exceeded"}, TOO_LONG),
            (
                {"code": 400, "type": "exceed_context_size_error"},
                CONTEXT_LENGTH_EXCEEDED.with_upstream_error(
                    {"code": "context_length_exceeded", "type": "exceed_context_size_error"}
                ),
            ),
            ({"code": "429"}, RATE_LIMITED),
            ({"code": 429}, RATE_LIMITED),
            ({"code": 429.0}, RATE_LIMITED),
            ({"code": 429.5}, UPSTREAM_ERROR),
            ({"code": " 429 "}, RATE_LIMITED),
            ({"code": 429, "msg": "?"}, RATE_LIMITED),
            ({"error": 429}, RATE_LIMITED),
            ({"error": 200}, UPSTREAM_ERROR),
            ({"x_groq": {"error": "over capacity"}, **CHOICES}, UPSTREAM_ERROR),
            ({"__type": "ThrottlingException", "Message": "?"}, RATE_LIMITED),
            ({"__type": "ModelTimeoutException"}, UPSTREAM_TIMEOUT),
            ({"code": "rate_limit_exceeded"}, RATE_LIMITED),
            ({"code": "TOO_MANY_REQUESTS"}, RATE_LIMITED),
            ({"code": "other", "type": "insufficient_quota"}, RATE_LIMITED),
            ({"type": "rate_limit_error", "code": None}, RATE_LIMITED),
            ({"code": "Throttling.AllocationQuota"}, RATE_LIMITED),
            ({"status": "RESOURCE_EXHAUSTED"}, RATE_LIMITED),
            ({"code": 500, "type": "rate_limit_error"}, UPSTREAM_ERROR),
            ({"code": "rate_limit_error", "type": "content_filter"}, RATE_LIMITED),
            ({"code": "DeploymentNotFound"}, MISSING),
            ({"type": "NotFoundError"}, MISSING),
            ({"code": 404}, MISSING),
            ({"type": "authentication_error"}, UPSTREAM_AUTH),
            ({"type": "permission_error"}, UPSTREAM_AUTH),
            ({"code": 401}, UPSTREAM_AUTH),
            ({"type": "overloaded_error"}, UPSTREAM_ERROR),
            ({"code": 504}, UPSTREAM_TIMEOUT),
            ({"type": "timeout_error"}, UPSTREAM_TIMEOUT),
            (
                {"type": "request_too_large"},
                BODY_TOO_LARGE.with_upstream_error({"type": "request_too_large", "code": "body_too_large"}),
            ),
            ({"type": "BadRequestError"}, refused({"type": "BadRequestError"})),
            ({"type": "invalid_request_error"}, refused({"type": "invalid_request_error"})),
            ({"code": "InvalidParameter"}, refused({"code": "InvalidParameter"})),
            ({"status_code": 429, "message": "?"}, RATE_LIMITED),
            ({"statusCode": "503", "message": "?"}, UPSTREAM_ERROR),
            ({"error": {"error": {"code": 429}}}, RATE_LIMITED),
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


class TestTooLong:
    """A prompt that does not fit, which many servers tell by their words alone."""

    @pytest.mark.parametrize(
        "message",
        [
            "This model's maximum context length is 8192 tokens.",
            "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
            "the request exceeds the available context size",
            "Prompt contains 9000 tokens, too large for model with 8192 maximum context length",
            "prompt is too long: 210000 tokens > 200000 maximum",
            "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            "Range of input length should be [1, 8192]",
            "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000",
            "Input validation error: `inputs` must have less than 1024 tokens. Given: 1025",
            "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
            "The number of tokens to keep from the initial prompt is greater than the context length",
            "The decoder prompt (length 9000) is longer than the maximum model length of 8192. Make sure that",
            "Invalid request: Your request exceeded model token limit: 8192",
            "Prompt exceeds max length",
            "the number of input tokens 5000 cannot exceed the total tokens limit 4096 for this model",
            "prompt token count of 70000 exceeds the limit of 64000",
            "Input Tokens Exceeded: Number of input tokens exceeds maximum length.",
            "Too many input tokens. Max input tokens: 8192, request input token count: 9000",
            "Request body too large for gpt-4o-mini model. Max size: 8000 tokens.",
            "Context size has been exceeded.",
            "The total length of the prompt exceeds 4096 tokens",
            "Input length 9000 exceeds maximum allowed token size 8192",
            "Exceeded context length of 8192",
            "validation: max input length is 8192 tokens but got 9000",
            "Conversation is too long for the model",
        ],
    )
    def test_by_its_words(self, message: str) -> None:
        shown = {"message": message, "code": "context_length_exceeded"}
        expected = CONTEXT_LENGTH_EXCEEDED.with_upstream_error(shown)
        for error in ({"message": message, "code": 400}, {"message": message}, message, {"error": message}):
            assert classify(error).problem == expected
            assert classify(error, status=400).problem == expected
        assert classify({"message": message}, status=500).problem == UPSTREAM_ERROR
        assert classify({"message": message}, status=429).problem == RATE_LIMITED

    @pytest.mark.parametrize(
        "message",
        [
            "unknown field context",
            "max_tokens exceeds the model token limit",
            "the context has too many output tokens",
            "Invalid 'input[0].content': string too long. Expected a string with maximum length 10485760",
            "'tools[0].name' is too long: string length 70 exceeds the maximum of 64",
            "Too many images in the request",
            "The image in the prompt is too large",
            "max_turns is too large",
            "prompt" + " " * 81 + "has tokens that exceed",
        ],
    )
    def test_other_words_do_not(self, message: str) -> None:
        assert classify({"message": message}, status=400).problem.code == "invalid_request"

    def test_a_long_message_is_searched_in_a_moment(self) -> None:
        for part in ("prompt ", "exceed ", "too large for ", "model ", "context token prompt ", "no router "):
            began = time.perf_counter()
            for _ in range(10):
                classify({"message": part * 10_000}, status=400)
            assert time.perf_counter() - began < 0.5


class TestFindError:
    @pytest.mark.parametrize(
        ("document", "error"),
        [
            ({"error": {"code": 1}}, {"code": 1}),
            ({"error": {"code": 1}, **CHOICES}, {"code": 1}),
            ({"error": [{"code": 1}]}, {"code": 1}),
            ({"error": "text", "code": 429, "x": 1}, {"message": "text", "code": 429}),
            ({"error": "text", **CHOICES}, {"message": "text"}),
            ({"error": True, "message": "m"}, {"message": "m"}),
            ({"error": {}}, {}),
            ({"error": False}, {}),
            ({"error": []}, {}),
            ({"error": {"error": {"code": 1}}}, {"code": 1}),
            ({"error": {"message": "m", "error": {"code": 1}}}, {"message": "m", "error": {"code": 1}}),
            ([{"error": {"code": 1}}], {"code": 1}),
            ({"object": "error", "message": "m"}, {"object": "error", "message": "m"}),
            ({"type": "error", "code": "c"}, {"type": "error", "code": "c"}),
            (
                {"error_type": "t", "error_message": "m", "error_code": 5, "choices": None},
                {"type": "t", "message": "m", "code": 5},
            ),
            ({"error_message": "m", **CHOICES}, {"message": "m"}),
            ({"message": "m"}, {"message": "m"}),
            ({"message": "m", "code": 500}, {"message": "m", "code": 500}),
            ({"code": 429, "msg": "m"}, {"code": 429, "msg": "m", "message": "m"}),
            ({"status": 503}, {"status": 503}),
            ({"__type": "T", "Message": "m"}, {"__type": "T", "Message": "m", "message": "m"}),
            ({"error_code": 336003, "error_msg": "m"}, {"code": 336003, "message": "m"}),
            ({"x_groq": {"error": "m"}, **CHOICES}, {"message": "m"}),
            ({"error": 503}, {"code": 503}),
            ({"message": "m", "code": "c", "choices": []}, {"message": "m", "code": "c", "choices": []}),
            ({"errors": [{"message": "m"}]}, {"message": "m"}),
            ({"errors": ["m"]}, {"message": "m"}),
            ({"detail": "m"}, {"message": "m"}),
            ({"detail": [{"msg": "m"}]}, {"message": "m"}),
            ({"choices": [{"error": {"code": 1}}]}, {"code": 1}),
            ({"choices": [{"error": "m"}]}, {"message": "m"}),
            ({"choices": [{"delta": {"error": {"code": 1}}}]}, {"code": 1}),
            ({"choices": [{"message": {"error": {"code": 1}}}]}, {"code": 1}),
            ({"choices": [{}, {"finish_reason": "error"}]}, {"code": "error"}),
        ],
        ids=str,
    )
    def test_where_it_may_be(self, document: Any, error: Any) -> None:
        assert find_error(document) == error

    @pytest.mark.parametrize(
        "document",
        [
            None,
            5,
            "text",
            [],
            ["error"],
            {},
            CHOICES,
            {**CHOICES, "error": None},
            {**CHOICES, "error": {}},
            {**CHOICES, "error": ""},
            {**CHOICES, "message": "m", "code": 5},
            {"choices": [None, 5, {"finish_reason": "stop", "error": None}, {"finish_reason": 5, "delta": []}]},
            {"message": "ok", "code": 0},
            {"message": "ok", "code": 200},
            {"message": {"content": "x"}},
            {"msg": "ok"},
            {"msg": "ok", "code": 200},
            {"status": "completed"},
            {"status": 200},
            {**CHOICES, "x_groq": {"id": "r", "error": None}},
            {**CHOICES, "x_groq": 5},
            {"message": ""},
            {"detail": []},
            {"detail": [5]},
            {"errors": []},
            {"error_message": ""},
            {"usage": {}},
        ],
        ids=str,
    )
    def test_where_there_is_none(self, document: Any) -> None:
        assert find_error(document) is None

    def test_its_nesting_is_bounded(self) -> None:
        error: Any = "text"
        for _ in range(100_000):
            error = {"error": error}
        assert classify(error).problem == UPSTREAM_ERROR

    @pytest.mark.parametrize(
        "reason",
        [
            *("error", "ERROR", "abort", "cancelled", "failed", "network_error", "insufficient_system_resource"),
            *("UNEXPECTED_TOOL_CALL", "rate_limited", "overloaded", "internal", "server_disconnected", "timed_out"),
            "service_unavailable",
        ],
    )
    def test_a_finish_that_is_none(self, reason: str) -> None:
        assert is_failed_finish(reason)

    @pytest.mark.parametrize(
        "reason",
        [
            *("stop", "length", "content_filter", "tool_calls", "function_call", "end_turn", "eos_token", "x" * 10**6),
            *("SAFETY", "sensitive", "model_length", "MAX_TOKENS", "model_context_window_exceeded", "COMPLETE"),
            "guardrail_intervened",
        ],
    )
    def test_a_finish_that_is_one(self, reason: str) -> None:
        assert not is_failed_finish(reason)


class TestReason:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            ({"code": "DeploymentNotFound"}, "DeploymentNotFound"),
            ({"code": "", "type": "a_type"}, "a_type"),
            ({"type": "a_type"}, "a_type"),
            ({"code": 429}, "429"),
            ({"code": "two words"}, "unreadable"),
            ({"code": {"a": 1}}, "none"),
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
        assert classify(error).reason == f"the model service sent an error in its answer, code {code}"

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

    def test_their_number_is_bounded(self) -> None:
        results = {f"category_{number}": {"filtered": True} for number in range(1000)}
        assert len(filtered_categories(results)) == 50

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
    @pytest.mark.parametrize("param", ["messages", "messages[0]", "messages[0].content[1].image_url", "messages.0"])
    def test_the_callers_field_is_named(self, param: str) -> None:
        error = {"code": "x", "param": param, "message": "Too long."}
        assert classify(error, status=400, fields=FIELDS).problem == refused(error).with_errors(
            FieldError("input", "is not accepted by this model; leave it out or change it")
        )

    @pytest.mark.parametrize("param", ["other", "other[0]", "other.messages", None, ["messages"]])
    def test_unless_there_is_no_such_field(self, param: Any) -> None:
        shown = {"param": param} if isinstance(param, str) else {}
        assert classify({"param": param}, status=400, fields=FIELDS).problem == refused(shown)

    def test_what_is_passed_on_of_it_is_bounded(self) -> None:
        error = {"code": "c" * 300, "type": ["t"], "param": 5, "message": "m" * 90_000, "other": "o"}
        shown = {"code": "c" * 100, "param": "5", "message": "m" * 4000}
        assert classify(error, status=400).problem == refused(shown)

    def test_without_fields_none_is_named(self) -> None:
        error = {"param": "messages"}
        assert classify(error, status=400).problem == classify(error, status=400, fields={}).problem == refused(error)

    def test_a_prompt_that_is_too_long_holds_it_too(self) -> None:
        error = {"code": "context_length_exceeded", "param": "messages", "message": "too long"}
        problem = classify(error, status=400, fields=FIELDS).problem
        assert problem == CONTEXT_LENGTH_EXCEEDED.with_upstream_error(error)

    @pytest.mark.parametrize("code", ["content_filter", "rate_limit_exceeded", "model_not_found", "server_error"])
    def test_no_other_problem_holds_the_upstream_error(self, code: str) -> None:
        problem = classify({"code": code, "param": "messages", "message": "x"}, fields=FIELDS).problem
        assert (problem.upstream_error, problem.errors) == (None, ())


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
            ({"retry-after": "30s"}, 30.0, 30),
            ({"retry-after": "1m3s"}, 63.0, 63),
            ({"retry-after": "5, 7"}, 5.0, 5),
            ({"retry-after": "Tue, 14-Nov-23 22:13:30 GMT"}, 9.75, 10),
            ({"retry-after": "Tue Nov 14 22:13:30 2023"}, 9.75, 10),
            ({"retry-after": "2023-11-14T22:13:30Z"}, 9.75, 10),
            ({"retry-after": "2023-11-14T23:13:30+01:00"}, 9.75, 10),
            ({"retry-after": str(int(NOW) + 10)}, 9.75, 10),
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
            (404, {}),
            (404, {"code": "not_found"}),
        ],
    )
    def test_otherwise_it_is_ignored(self, status: int, error: dict[str, Any]) -> None:
        with_header = classify(error, status=status, headers={"retry-after": "7"})
        assert with_header == classify(error, status=status)
        assert (with_header.retry_after, with_header.problem.retry_after) == (None, None)

    def test_a_quota_that_is_used_up_at_api_management(self) -> None:
        refusal = classify({}, status=403, headers={"retry-after": "754"})
        assert (refusal.problem, refusal.retry_after) == (RATE_LIMITED.with_retry_after(120), 120.0)
        assert classify({}, status=403, headers={"retry-after": "soon"}).problem is UPSTREAM_AUTH
        assert classify({}, status=401, headers={"retry-after": "7"}).problem is UPSTREAM_AUTH

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"x-ratelimit-reset-tokens": "55"}, 55.0),
            ({"x-ratelimit-reset-requests": "1m3s"}, 63.0),
            ({"x-ratelimit-reset-requests": "120ms"}, 0.12),
            ({"x-ratelimit-reset-tokens": "1.5s"}, 1.5),
            ({"x-ratelimit-reset-tokens": "0h0m7.66s"}, 7.66),
            ({"x-ratelimit-reset-tokens": "6h0m0s"}, 120.0),
            ({"x-ratelimit-reset-tokens": "1d"}, 120.0),
            ({"x-ratelimit-reset-tokens": "1s500ms"}, 1.5),
            ({"x-ratelimit-reset-tokens": "2s", "x-ratelimit-reset-requests": "9s"}, 9.0),
            (
                {
                    "x-ratelimit-reset-tokens": "2s",
                    "x-ratelimit-reset-requests": "9s",
                    "x-ratelimit-remaining-tokens": "0",
                    "x-ratelimit-remaining-requests": "5",
                },
                2.0,
            ),
            ({"retry-after": "3", "x-ratelimit-reset-tokens": "55"}, 3.0),
            ({"x-ratelimit-reset-tokens": str(int(NOW) + 50)}, 49.75),
            ({"x-ratelimit-reset-requests": "2023-11-14T22:13:30Z"}, 9.75),
            ({"x-ratelimit-reset": "12"}, 12.0),
            ({"x-ratelimit-reset": f"{int(NOW) + 50}000"}, 49.75),
            ({"ratelimit-reset": "12"}, 12.0),
            ({"x-ratelimit-reset": "12", "x-ratelimit-reset-tokens": "5s"}, 5.0),
            ({"anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:30Z"}, 9.75),
            (
                {
                    "anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:30Z",
                    "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:50Z",
                    "anthropic-ratelimit-tokens-remaining": "0",
                },
                9.75,
            ),
            *[({"x-ratelimit-reset-tokens": text}, None) for text in ("", "soon", "s", "-", "3 s", "5m3", "nan")],
            ({"x-ratelimit-reset-tokens": "9" * 10_000 + "s"}, 120.0),
        ],
        ids=str,
    )
    def test_a_limit_that_is_reset(self, headers: dict[str, str], seconds: float | None) -> None:
        assert classify({}, status=429, headers=headers).retry_after == seconds

    @pytest.mark.parametrize(
        ("error", "seconds"),
        [
            ({"details": [{"@type": "x"}, {"retryDelay": "30s"}]}, 30.0),
            ({"details": "x"}, None),
            ({"details": [5, {"retryDelay": 5}]}, None),
            ({"metadata": {"headers": {"X-RateLimit-Reset": f"{int(NOW) + 50}000"}}}, 49.75),
            ({"metadata": {"headers": {"Retry-After": "7", "X-RateLimit-Reset": "9"}}}, 7.0),
            ({"metadata": {"headers": {"X-RateLimit-Reset": 5}}}, None),
            ({"metadata": {"headers": []}}, None),
            ({"metadata": "x"}, None),
        ],
        ids=str,
    )
    def test_what_the_error_itself_tells(self, error: dict[str, Any], seconds: float | None) -> None:
        for status in (429, None):
            assert classify({"code": 429, **error}, status=status).retry_after == seconds
        assert classify({"code": 429, **error}, headers={"x-ratelimit-reset": "3"}).retry_after == 3.0
        assert classify({"code": 503, **error}).retry_after is None

    def test_in_a_stream_there_is_none(self) -> None:
        assert classify({"code": "429"}) == Refusal(
            RATE_LIMITED, "the model service sent an error in its answer, code 429", None, None
        )


ELSEWHERE = {RESPONSE_NOT_FOUND, PREVIOUS_RESPONSE_NOT_FOUND}


class TestStoredResponses:
    """What an account answers about a response that it does not have, or that is not in a state for the request."""

    @pytest.mark.parametrize("error", [{"code": None, "type": "invalid_request_error"}, {"code": "404"}, None])
    def test_a_response_that_is_not_there(self, error: Any) -> None:
        refusal = classify(error, status=404, not_found=RESPONSE_NOT_FOUND)
        assert refusal.problem == RESPONSE_NOT_FOUND
        assert (refusal.retry_after, refusal.status) == (None, 404)

    def test_only_that_status_tells_so(self) -> None:
        assert classify({}, status=500, not_found=RESPONSE_NOT_FOUND).problem == UPSTREAM_ERROR
        assert classify({}, status=400, not_found=RESPONSE_NOT_FOUND).problem == refused({})

    def test_a_response_in_another_state(self) -> None:
        assert classify({"code": "x"}, status=409, not_found=RESPONSE_NOT_FOUND).problem == refused({"code": "x"})

    @pytest.mark.parametrize("status", [None, 400, 404])
    def test_a_previous_response_that_is_not_there(self, status: int | None) -> None:
        problem = classify({"code": "previous_response_not_found"}, status=status).problem
        assert problem.code == PREVIOUS_RESPONSE_NOT_FOUND.code
        assert [error.field for error in problem.errors] == ["previous_response_id"]


RETRYABLE = ELSEWHERE | {UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, UPSTREAM_TIMEOUT, UPSTREAM_AUTH, RATE_LIMITED}


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
def test_which_failures_another_backend_may_make_good(problem: Problem) -> None:
    expected = problem in RETRYABLE
    assert retryable(problem) is expected
    assert retryable(problem.with_detail("Another detail.")) is expected
    assert Refusal(problem, "a reason").retryable is expected
    assert Refusal(problem.with_detail("Another detail."), "a reason").is_elsewhere is (problem in ELSEWHERE)


def test_a_refusal_without_a_response() -> None:
    refusal = Refusal(UPSTREAM_ERROR, "a reason")
    assert (refusal.retry_after, refusal.status) == (None, None)
    with pytest.raises(FrozenInstanceError):
        refusal.reason = "another"  # type: ignore[misc]
