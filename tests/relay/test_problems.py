"""The problem catalogue, compared with the contract's table, and the two documents of a problem."""

import json
from dataclasses import replace
from http import HTTPStatus

import pytest

from relay.problems import CATALOGUE, INVALID_REQUEST, MODEL_NOT_FOUND, RATE_LIMITED, FieldError, Problem

# The contract's table of errors; one that only ever ends a stream keeps the status that it would have had.
TABLE = {
    "invalid_json": 400,
    "invalid_request": 400,
    "content_filter": 400,
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
    "model_not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "response_not_found": 404,
    "previous_response_not_found": 400,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "upstream_error": 502,
    "upstream_auth": 502,
    "not_configured": 503,
    "not_dispatched": 503,
    "upstream_timeout": 504,
    "upstream_interrupted": 502,
    "deadline_exceeded": 504,
    "internal_error": 500,
}


def test_the_catalogue_equals_the_contracts_table() -> None:
    assert {problem.code: int(problem.status) for problem in CATALOGUE} == TABLE
    assert len(CATALOGUE) == len(TABLE)


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
def test_the_document_of_each_problem(problem: Problem) -> None:
    document = json.loads(problem.document("request-1"))
    assert document == {
        "type": f"urn:problem-type:{problem.code}",
        "title": problem.title,
        "status": TABLE[problem.code],
        "detail": problem.detail,
        "code": problem.code,
        "request_id": "request-1",
    }
    assert isinstance(problem.status, HTTPStatus)
    assert problem.detail.endswith(".")
    assert not problem.title.endswith(".")


def test_optional_members_are_added() -> None:
    problem = (
        RATE_LIMITED.with_retry_after(3)
        .with_errors(FieldError("a", "b"))
        .with_content_filter({"hate": {"filtered": True}})
        .with_detail("Why.")
    )
    members = problem.members("request-1")
    assert members["retry_after"] == 3
    assert members["errors"] == [{"field": "a", "message": "b"}]
    assert members["content_filter"] == {"hate": {"filtered": True}}
    assert members["detail"] == "Why."
    assert RATE_LIMITED.retry_after is None, "a problem of the catalogue was changed"


def test_a_document_is_one_line() -> None:
    assert RATE_LIMITED.with_detail("two\nlines\u2028").document("request-1").splitlines(keepends=True)[1:] == []


class TestOpenAIDocument:
    def error(self, problem: Problem) -> dict[str, object]:
        document = json.loads(problem.openai_document("request-1"))
        assert document.pop("request_id") == "request-1"
        error: dict[str, object] = document.pop("error")
        assert document == {}
        return error

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, "invalid_request_error"),
            (404, "invalid_request_error"),
            (413, "invalid_request_error"),
            (415, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "server_error"),
            (502, "server_error"),
            (503, "server_error"),
            (504, "server_error"),
        ],
    )
    def test_the_type_follows_from_the_status(self, status: int, kind: str) -> None:
        problem = replace(MODEL_NOT_FOUND, status=HTTPStatus(status), title="A title", detail="A detail.")
        assert self.error(problem) == {
            "message": "A title. A detail.",
            "type": kind,
            "param": None,
            "code": "model_not_found",
        }

    def test_fields_take_the_place_of_the_detail(self) -> None:
        problem = INVALID_REQUEST.with_errors(FieldError("a[0]", "is required"), FieldError("b", "is wrong."))
        assert self.error(problem) == {
            "message": f"{INVALID_REQUEST.title}. a[0]: is required. b: is wrong.",
            "type": "invalid_request_error",
            "param": "a[0]",
            "code": "invalid_request",
        }

    def test_the_upstream_error_takes_precedence(self) -> None:
        upstream = {"message": "Unsupported.", "type": "a_type", "param": "n", "code": "a_code", "inner": "dropped"}
        problem = INVALID_REQUEST.with_errors(FieldError("b", "is wrong")).with_upstream_error(upstream)
        assert self.error(problem) == {"message": "Unsupported.", "type": "a_type", "param": "n", "code": "a_code"}

    @pytest.mark.parametrize("message", ["", None, 7, {}])
    def test_an_upstream_error_without_text_gets_the_problems(self, message: object) -> None:
        problem = RATE_LIMITED.with_upstream_error({"message": message, "code": ""})
        assert self.error(problem) == {
            "message": f"{RATE_LIMITED.title}. {RATE_LIMITED.detail}",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limited",
        }

    def test_the_content_filter_is_an_inner_error(self) -> None:
        categories = {"hate": {"filtered": True}}
        assert self.error(INVALID_REQUEST.with_content_filter(categories))["innererror"] == {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": categories,
        }
