"""The catalogue of failures, held against the contract's table."""

import json
from http import HTTPStatus

import pytest

from relay.problems import CATALOGUE, RATE_LIMITED, FieldError, Problem

# The contract's table of errors; what only ends a stream that has begun keeps the status that it would have had.
TABLE = {
    "invalid_json": 400,
    "invalid_request": 400,
    "content_filter": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "upstream_error": 502,
    "upstream_auth": 502,
    "not_configured": 503,
    "upstream_timeout": 504,
    "upstream_interrupted": 502,
    "deadline_exceeded": 504,
    "internal_error": 500,
}


def test_the_catalogue_is_the_contracts_table() -> None:
    assert {problem.code: int(problem.status) for problem in CATALOGUE} == TABLE
    assert len(CATALOGUE) == len(TABLE)


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
def test_each_says_what_is_wrong_and_what_to_do(problem: Problem) -> None:
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


def test_what_applies_is_added() -> None:
    problem = RATE_LIMITED.after(3).at(FieldError("a", "b")).filtered({"hate": {"filtered": True}}).because("Why.")
    members = problem.members("request-1")
    assert members["retry_after"] == 3
    assert members["errors"] == [{"field": "a", "message": "b"}]
    assert members["content_filter"] == {"hate": {"filtered": True}}
    assert members["detail"] == "Why."
    assert RATE_LIMITED.retry_after is None, "a problem of the catalogue is never changed"


def test_a_document_is_one_line() -> None:
    assert RATE_LIMITED.because("two\nlines\u2028").document("request-1").splitlines(keepends=True)[1:] == []
