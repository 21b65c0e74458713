"""The paths of OpenAI's API: what answers which, and what a caller learns of a path or a method that does not exist."""

from typing import Any

import pytest
from starlette.responses import Response

from relay.callers.request import CallerRequest
from relay.callers.routes import Route, Routes
from relay.problems import METHOD_NOT_ALLOWED, NOT_FOUND, Problem


def handler(name: str) -> Any:
    async def handle(caller: CallerRequest, name: str | None) -> Response:
        raise NotImplementedError

    handle.__name__ = name
    return handle


ROUTES = Routes(
    Route("POST", "/chat/completions", handler("chat"), by_deployment=True),
    Route("GET", "/models", handler("models")),
    Route("GET", "/models/{model}", handler("model")),
    Route("GET", "/responses/{response_id}", handler("response")),
    Route("DELETE", "/responses/{response_id}", handler("delete")),
    Route("POST", "/responses/{response_id}/cancel", handler("cancel")),
    Route("POST", "/responses", handler("create"), by_deployment=True, addresses=("/openai",)),
)


def found(method: str, path: str) -> tuple[str, str | None]:
    result = ROUTES.find(method, path)
    assert not isinstance(result, Problem), result
    return result[0].__name__, result[1]


def problem(method: str, path: str) -> Problem:
    result = ROUTES.find(method, path)
    assert isinstance(result, Problem), result
    return result


@pytest.mark.parametrize(
    ("method", "path", "name", "in_path"),
    [
        ("POST", "/v1/chat/completions", "chat", None),
        ("POST", "/openai/v1/chat/completions", "chat", None),
        ("POST", "/openai/deployments/gpt-5.4-mini/chat/completions", "chat", "gpt-5.4-mini"),
        ("POST", "/openai/deployments/meta/llama/chat/completions", "chat", "meta/llama"),
        ("POST", "/openai/deployments/meta%2Fllama/chat/completions", "chat", "meta/llama"),
        ("POST", "/openai/deployments/meta%2fllama/chat/completions", "chat", "meta/llama"),
        ("POST", "/openai/deployments/v1/chat/completions", "chat", "v1"),
        ("POST", "/OpenAI/Deployments/Mini/Chat/Completions/", "chat", "Mini"),
        ("GET", "/v1/models", "models", None),
        ("HEAD", "/v1/models/", "models", None),
        ("GET", "/openai/models", "models", None),
        ("GET", "/openai/v1/models", "models", None),
        ("GET", "/v1/models/gpt-5.4-mini", "model", "gpt-5.4-mini"),
        ("HEAD", "/openai/models/a b", "model", "a b"),
        ("GET", "/openai/models/a\nb", "model", "a\nb"),
        ("GET", "/openai/v1/models/meta/llama", "model", "meta/llama"),
        ("GET", "/v1/responses/resp_1", "response", "resp_1"),
        ("DELETE", "/v1/responses/resp_1", "delete", "resp_1"),
        ("GET", "/v1/responses/compact_1", "response", "compact_1"),
        ("GET", "/v1/responses/my-input_tokens", "response", "my-input_tokens"),
        ("POST", "/openai/responses/resp_1/cancel", "cancel", "resp_1"),
        ("POST", "/openai/deployments/meta/llama/responses", "create", "meta/llama"),
    ],
)
def test_what_answers(method: str, path: str, name: str, in_path: str | None) -> None:
    assert found(method, path) == (name, in_path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/openai",
        "/openai/chat/completions",
        "/openai/deployments",
        "/openai/deployments//chat/completions",
        "/openai/deployments/x",
        "/openai/deployments/x/models",
        "/openai/v1/deployments/x/chat/completions",
        "/v1/deployments/x/chat/completions",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/v1/chat/completions\n",
        "/v1/modelsx",
        "/v1/embeddings",
        "/v1//models",
        "/v1/responses/a/b",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/openai/Responses/Compact/",
        "/openai/v1/responses",
        "/openai/responses",
        "/api/v1/models",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_path_that_does_not_exist_is_named(method: str, path: str) -> None:
    assert problem(method, path).code == NOT_FOUND.code
    assert problem(method, path).detail.startswith(f"The app has no {method} {path}. It has ")


def test_what_exists_is_listed_as_it_is_at_that_address() -> None:
    names = [
        "GET {0}/models",
        "GET {0}/models/{{model}}",
        "GET {0}/responses/{{response_id}}",
        "DELETE {0}/responses/{{response_id}}",
    ]
    names.append("POST {0}/responses/{{response_id}}/cancel")
    for address, chat in (
        ("/v1", "POST /v1/chat/completions"),
        ("/openai/v1", "POST /openai/v1/chat/completions"),
        ("/openai", "POST /openai/deployments/{deployment}/chat/completions"),
    ):
        listed = ", ".join([chat, *(name.format(address) for name in names)])
        if address == "/openai":
            listed += ", POST /openai/deployments/{deployment}/responses"
        assert problem("GET", f"{address}/x").detail == f"The app has no GET {address}/x. It has {listed}."
        assert f" It has {listed}." in problem("GET", f"{address.upper()}/x").detail


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("GET", "/openai/deployments/x/chat/completions", "POST"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("POST", "/openai/models/x", "GET, HEAD"),
        ("PUT", "/v1/responses/x", "GET, HEAD, DELETE"),
        ("GET", "/v1/responses/x/cancel", "POST"),
    ],
)
def test_a_method_that_the_path_does_not_take(method: str, path: str, allow: str) -> None:
    assert problem(method, path) == METHOD_NOT_ALLOWED.with_allow(allow).with_detail(
        f"{path} does not take {method}; it takes {allow}."
    )


def test_a_long_path_is_cut() -> None:
    assert f" {'/v1/' + 'x' * 196}…. It has " in problem("GET", "/v1/" + "x" * 197).detail
    assert f" {'/v1/' + 'x' * 196}. It has " in problem("GET", "/v1/" + "x" * 196).detail
    path = "/openai/deployments/" + "x" * 10_000 + "/chat/completions"
    assert len(problem("GET", path).detail) < 300
