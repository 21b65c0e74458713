"""The OpenAPI description: valid, complete, and consistent with the request models and the problem catalogue."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response

from relay import openapi, problems
from relay.callers.request import CallerRequest
from relay.callers.routes import ADDRESSES, Route
from relay.problems import CATALOGUE, FieldError, Problem
from relay.wires.stream import StreamRequest, parse

DOCUMENT: Final[dict[str, Any]] = json.loads(openapi.document())
API_FUNCTIONS: Final = ("v1/{*path}", "openai/{*path}")  # their operations are in a table
FUNCTION_APP: Final = Path(__file__).resolve().parents[2] / "function_app.py"


@pytest.fixture(autouse=True)
def built_anew() -> None:
    """Mutation testing replaces functions after the import, and forgets no cache."""
    openapi.document.cache_clear()
    DOCUMENT.clear()
    DOCUMENT.update(json.loads(openapi.document()))


def accepts(schema: str, value: object) -> bool:
    """Whether a JSON value is valid by one of the description's schemas."""
    components = DOCUMENT["components"]
    return jsonschema_rs.is_valid({"$ref": f"#/components/schemas/{schema}", "components": components}, value)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_is_valid_openapi() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()  # raises where it is not
    broken = DOCUMENT | {"paths": {"/stream": {"post": {"responses": {"200": {}}}}}}
    with pytest.raises(Exception, match="description"):
        schemathesis.openapi.from_dict(broken).validate()


def test_every_schema_is_defined_and_referenced() -> None:
    referenced = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert referenced == set(DOCUMENT["components"]["schemas"])


async def unused(caller: CallerRequest, name: str | None) -> Response:
    raise NotImplementedError


def test_the_paths_are_the_routes_of_the_app() -> None:
    source = FUNCTION_APP.read_text()
    routes = re.findall(r'@app\.route\(route="([^"]+)", methods=\["(\w+)"(?:, "HEAD")?\](.*)\)', source)
    assert len(routes) + len(API_FUNCTIONS) == source.count("@app.route(")
    assert all(f'@app.route(route="{route}", methods=METHODS)' in source for route in API_FUNCTIONS)
    expected = {
        ("/" + route.strip("/"), method.lower(), "ANONYMOUS" not in options) for route, method, options in routes
    }
    of_openai = re.findall(
        r' Route\("(\w+)", "([^"]+)", [^\n]+?(by_deployment=True)?(?:, addresses=\("([^"]+)",\))?\),\n', source
    )
    assert len(of_openai) == source.count(" Route(")
    for method, path, by_deployment, address in of_openai:
        addresses = (address,) if address else ADDRESSES
        templates = Route(method, path, unused, bool(by_deployment), addresses).templates().values()
        expected |= {(template, method.lower(), True) for template in templates}
    assert {(path, method, "security" in operation) for path, method, operation in operations()} == expected


def test_every_name_in_a_path_is_described() -> None:
    for path, _, operation in operations():
        named = [it["name"] for it in operation.get("parameters", []) if it["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)


def test_every_route_that_answers_get_answers_head() -> None:
    source = FUNCTION_APP.read_text()
    assert source.count('methods=["GET", "HEAD"]') == 7
    assert 'METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]' in source
    assert source.count('"GET"') == 7 + 1 + source.count(' Route("GET"')


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
def test_every_problem_is_described_under_its_status(problem: Problem) -> None:
    full = (
        problem.with_errors(FieldError("input[0].role", "must be a string"))
        .with_retry_after(7)
        .with_content_filter({"violence": {"filtered": True, "severity": "medium"}})
    )
    for variant in (problem, full):
        assert accepts("Problem", variant.members("an-id"))
        assert accepts("OpenAIError", json.loads(variant.openai_document("an-id")))
    for path, _, operation in operations():
        if problem in (problems.NOT_FOUND, problems.METHOD_NOT_ALLOWED):
            assert problem.title not in json.dumps(operation), "an operation that exists has no such failure"
        elif "requestBody" in operation:
            response = operation["responses"][str(int(problem.status))]
            assert problem.code in response["description"]
            assert list(response["content"]) == [
                "application/json" if path.startswith(("/v1/", "/openai/")) else problems.PROBLEM_JSON
            ]


def test_the_schema_of_a_problem_is_strict() -> None:
    members = problems.RATE_LIMITED.with_retry_after(7).members("an-id")
    assert not accepts("Problem", members | {"code": "another"})
    assert not accepts("Problem", members | {"retry_after": -1})
    assert not accepts("Problem", {name: value for name, value in members.items() if name != "request_id"})
    assert not accepts("OpenAIError", {"error": {"message": "x"}})


URLS: Final = (
    "https://x/a",
    "https://x/" + "a" * 8192,
    "http://x/",
    "data:image/png;base64,AA==",
    "data:,x",
    "\ufeff",
    1,
)
PARTS: Final = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "input_image", "text"])},
    optional={
        "text": st.text(max_size=2) | st.none(),
        "image_url": st.sampled_from(URLS),
        "detail": st.sampled_from(["auto", "low", "high", "full", None]),
        "x": st.none(),
    },
)
FIELDS: Final = {
    "input": st.text()
    | st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": st.text()})),
    "content": st.lists(PARTS, max_size=3) | st.none() | st.just([{"type": "input_text", "text": "x"}] * 65),
    "instructions": st.text() | st.none() | st.integers(),
    "model": st.text(max_size=3) | st.none() | st.booleans(),
    "temperature": st.floats(-1, 3) | st.integers(-1, 3) | st.none() | st.just("1"),
    "top_p": st.floats(-1, 2) | st.none() | st.just("1"),
    "max_output_tokens": st.integers() | st.sampled_from([0.5, None, True, "1"]),
    "reasoning_effort": st.text(max_size=40) | st.none(),
    "reasoning_summary": st.sampled_from(["auto", "concise", "detailed", "none", "", None, 1]),
    "stream": st.booleans() | st.sampled_from([None, 1, "true"]),
    "unknown": st.none(),
}


@pytest.mark.parametrize("field", FIELDS)
@settings(deadline=None)
@given(st.data())
def test_a_request_is_accepted_exactly_where_it_is_valid_by_the_schema(field: str, data: st.DataObject) -> None:
    body: dict[str, Any] = {"input": "x", field: data.draw(FIELDS[field])}
    if field == "content":
        body = {"input": [{"role": data.draw(st.sampled_from(["user", "assistant"])), "content": body["content"]}]}
    assert isinstance(parse(json.dumps(body).encode()), StreamRequest) == accepts("StreamRequest", body)


@pytest.mark.parametrize("number", ["348.0", "1e3"])
def test_a_whole_number_in_any_notation(number: str) -> None:
    assert accepts("StreamRequest", {"input": "x", "max_output_tokens": float(number)})
    assert isinstance(parse(b'{"input": "x", "max_output_tokens": %b}' % number.encode()), StreamRequest)


@pytest.mark.parametrize("character", ["\x85", "\ufeff"])
def test_the_schema_and_the_parser_agree_on_white_space(character: str) -> None:
    body = {"input": character}
    assert isinstance(parse(json.dumps(body).encode()), StreamRequest) == accepts("StreamRequest", body)
