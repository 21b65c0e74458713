"""The OpenAPI description: a valid one, of the routes that there are, true to the models and to the catalogue."""

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

from relay import description, problems
from relay.problems import CATALOGUE, FieldError, Problem
from relay.prompt import Prompt, read

DOCUMENT: Final[dict[str, Any]] = json.loads(description.document())
FUNCTION_APP: Final = Path(__file__).resolve().parents[1] / "function_app.py"


def accepts(schema: str, value: object) -> bool:
    """Whether JSON fits one of the description's schemas."""
    components = DOCUMENT["components"]
    return jsonschema_rs.is_valid({"$ref": f"#/components/schemas/{schema}", "components": components}, value)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_is_valid_openapi() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()  # raises for what is not
    broken = DOCUMENT | {"paths": {"/stream": {"post": {"responses": {"200": {}}}}}}
    with pytest.raises(Exception, match="description"):
        schemathesis.openapi.from_dict(broken).validate()


def test_every_reference_leads_somewhere_and_everything_is_used() -> None:
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert referred == set(DOCUMENT["components"]["schemas"])


def test_it_has_every_route_and_no_other() -> None:
    source = FUNCTION_APP.read_text()
    routes = re.findall(r'@app\.route\(route="([^"]+)", methods=\["(\w+)"\](.*)\)', source)
    assert len(routes) == source.count("@app.route(")
    assert {(path, method, "security" in operation) for path, method, operation in operations()} == {
        ("/" + route, method.lower(), "ANONYMOUS" not in options) for route, method, options in routes
    }


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
def test_every_problem_is_told_with_its_status(problem: Problem) -> None:
    full = (
        problem.at(FieldError("input[0].role", "must be a string"))
        .after(7)
        .filtered({"violence": {"filtered": True, "severity": "medium"}})
    )
    for told in (problem, full):
        assert accepts("Problem", told.members("an-id"))
        assert accepts("OpenAIError", json.loads(told.openai_document("an-id")))
    for path, _, operation in operations():
        if "requestBody" in operation:
            response = operation["responses"][str(int(problem.status))]
            assert problem.code in response["description"]
            assert list(response["content"]) == [
                "application/json" if path.startswith("/v1/") else problems.PROBLEM_JSON
            ]


def test_a_problem_is_not_just_anything() -> None:
    members = problems.RATE_LIMITED.after(7).members("an-id")
    assert not accepts("Problem", members | {"code": "another"})
    assert not accepts("Problem", members | {"retry_after": -1})
    assert not accepts("Problem", {name: value for name, value in members.items() if name != "request_id"})
    assert not accepts("OpenAIError", {"error": {"message": "x"}})


FIELDS: Final = {
    "input": st.text()
    | st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": st.text()})),
    "instructions": st.text() | st.none() | st.integers(),
    "model": st.text(max_size=3) | st.none() | st.booleans(),
    "temperature": st.floats(-1, 3) | st.integers(-1, 3) | st.none() | st.just("1"),
    "top_p": st.floats(-1, 2) | st.none() | st.just("1"),
    "max_output_tokens": st.integers() | st.sampled_from([0.5, None, True, "1"]),
    "reasoning_effort": st.text(max_size=40) | st.none(),
    "stream": st.booleans() | st.sampled_from([None, 1, "true"]),
    "unheard-of": st.none(),
}


@pytest.mark.parametrize("field", FIELDS)
@settings(deadline=None)
@given(st.data())
def test_a_prompt_is_accepted_where_it_fits_the_description(field: str, data: st.DataObject) -> None:
    body = {"input": "x", field: data.draw(FIELDS[field])}
    assert isinstance(read(json.dumps(body).encode()), Prompt) == accepts("Prompt", body)


@pytest.mark.parametrize("number", ["348.0", "1e3"])
def test_a_whole_number_however_it_is_written(number: str) -> None:
    assert accepts("Prompt", {"input": "x", "max_output_tokens": float(number)})
    assert isinstance(read(b'{"input": "x", "max_output_tokens": %b}' % number.encode()), Prompt)


@pytest.mark.parametrize("character", ["\x85", "\ufeff"])
def test_what_is_only_white_space_is_the_same_to_both(character: str) -> None:
    body = {"input": character}
    assert isinstance(read(json.dumps(body).encode()), Prompt) == accepts("Prompt", body)
