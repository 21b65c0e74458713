"""What a generated client takes from the OpenAPI description: each operation's name, body, responses and schemas."""

import json
from typing import Any, Final

import pytest

from relay import openapi
from relay.problems import CATALOGUE, METHOD_NOT_ALLOWED, NOT_FOUND, PROBLEM_JSON

KEYED: Final = [{"function_key": []}, {"bearer": []}, {"api_key": []}]
CHAT_ASSET: Final = "/chat/assets/{name}"
REQUEST_ID: Final = {"X-Request-Id": {"schema": {"type": "string"}}}
STREAMS: Final = ("text/event-stream", "application/x-ndjson", "application/jsonl", "text/plain")
# What an operation that exists can fail with.
PROBLEMS: Final = [problem for problem in CATALOGUE if problem not in (NOT_FOUND, METHOD_NOT_ALLOWED)]
ERRORS: Final = {str(int(problem.status)) for problem in PROBLEMS} - {"401"}

# Of each operation: its id, the schema of its body, what it answers with, and the type and schema of its errors.
OPERATIONS: Final[dict[tuple[str, str], tuple[str, str | None, dict[str, str], tuple[str, str] | None]]] = {
    ("post", "/stream"): (
        "stream",
        "StreamRequest",
        dict.fromkeys(STREAMS, "string") | {"application/json": "Answer"},
        (PROBLEM_JSON, "Problem"),
    ),
    ("post", "/v1/chat/completions"): (
        "chat_completions",
        "ChatCompletionRequest",
        {"text/event-stream": "string", "application/json": "object"},
        ("application/json", "OpenAIError"),
    ),
    ("get", "/v1/models"): ("models", None, {"application/json": "object"}, ("application/json", "OpenAIError")),
    ("get", "/ready"): ("ready", None, {"application/json": "object"}, (PROBLEM_JSON, "Problem")),
    ("get", "/health"): ("health", None, {"application/json": "object"}, None),
    ("get", "/chat"): ("chat", None, {"text/html": "string"}, None),
    ("get", "/openapi"): ("openapi", None, {"application/json": "object"}, None),
}


@pytest.fixture
def document() -> dict[str, Any]:
    """Built anew."""
    openapi.document.cache_clear()
    built: dict[str, Any] = json.loads(openapi.document())
    return built


def content(schemas: dict[str, str]) -> dict[str, Any]:
    """The `content` of a body: a name with a capital is one of the description's schemas, the others are types."""
    return {
        media_type: {"schema": {"$ref": f"#/components/schemas/{name}"} if name[0].isupper() else {"type": name}}
        for media_type, name in schemas.items()
    }


def test_the_keys(document: dict[str, Any]) -> None:
    of_callers = {"description": "the key of a caller, where the app names its callers"}
    assert document["components"]["securitySchemes"] == {
        "function_key": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
        "bearer": {"type": "http", "scheme": "bearer", **of_callers},
        "api_key": {"type": "apiKey", "in": "header", "name": "api-key", **of_callers},
    }


def test_the_operations_are_these_and_those_of_openai(document: dict[str, Any]) -> None:
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    others = found - set(OPERATIONS)
    assert found >= set(OPERATIONS)
    others -= {("get", "/"), ("get", CHAT_ASSET)}
    assert all(path.startswith(("/v1/", "/openai/", "/stream/")) for _, path in others)


def test_the_operations_of_streams_that_can_be_resumed(document: dict[str, Any]) -> None:
    operations = document["paths"]["/stream/{response_id}"]
    assert {method: it["operationId"] for method, it in operations.items()} == {
        "get": "resume_stream",
        "delete": "stop_stream",
    }
    resume, stop = operations["get"], operations["delete"]
    named = [(it["name"], it["in"], it["required"]) for it in resume["parameters"]]
    assert named == [
        ("response_id", "path", True),
        ("Last-Event-ID", "header", False),
        ("after", "query", False),
        ("after_bytes", "query", False),
    ]
    assert stop["parameters"] == resume["parameters"][:1]
    assert resume["responses"]["200"]["content"] == content(dict.fromkeys(STREAMS, "string"))
    assert resume["responses"]["204"]["headers"] == REQUEST_ID
    schema = stop["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(schema["required"]) == {"id", "deleted"}
    for operation in (resume, stop):
        assert operation["security"] == KEYED
        assert operation["summary"]
        assert "requestBody" not in operation
        assert {*operation["responses"]} - {"204"} == ERRORS | {"200", "401"}
        assert operation["responses"]["404"]["content"] == content({PROBLEM_JSON: "Problem"})
    assert "not_found" in resume["responses"]["404"]["description"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_an_operation(document: dict[str, Any], method: str, path: str) -> None:
    name, body, answers, error = OPERATIONS[method, path]
    operation = document["paths"][path][method]
    assert operation["operationId"] == name
    assert operation["summary"]
    assert operation.get("security") == (KEYED if error else None)
    request = {"required": True, "content": content({"application/json": body})} if body else None
    assert operation.get("requestBody") == request
    responses = operation["responses"]
    success = responses.pop("200")
    for described in success["content"].values():
        described["schema"].pop("description", None)
    assert success["description"] == "OK"
    assert success["content"] == content(answers)
    assert success.get("headers") == (REQUEST_ID if error else None)
    if error is None:
        assert responses == {}
        return
    unauthorized = responses.pop("401")
    assert unauthorized == {
        "description": "invalid_api_key: The key is missing or wrong; without a body and these headers where the "
        "Functions host checks the key",
        "headers": {**REQUEST_ID, "WWW-Authenticate": {"schema": {"type": "string"}}},
        "content": content(dict([error])),
    }
    assert set(responses) == (ERRORS if body else {"503"})
    schemas = dict([error])
    if path == "/ready":
        schemas["application/json"] = "object"
    for status, response in responses.items():
        titles = [f"{problem.code}: {problem.title}" for problem in PROBLEMS if int(problem.status) == int(status)]
        assert response == {
            "description": "; ".join(titles),
            "headers": REQUEST_ID,
            "content": content(schemas),
        }


def test_the_chat_page_is_reached_from_the_root_and_loads_files(document: dict[str, Any]) -> None:
    problem = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    home, asset = (document["paths"][path]["get"]["responses"] for path in ("/", CHAT_ASSET))
    assert set(home) == {"302", "404"}
    assert set(home["302"]["headers"]) == {"Location"}
    assert set(asset) == {"200", "404"}
    assert set(asset["200"]["content"]) == {"text/javascript", "application/json"}
    assert home["404"]["content"] == asset["404"]["content"] == problem
