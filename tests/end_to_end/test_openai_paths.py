"""The paths of OpenAI's API, at OpenAI's address and at Azure OpenAI's, and every other path and method there."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import unquote

import httpx
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import HostedApp, own_host

KEY: Final = "the-function-key"
SLASHED: Final = "meta/llama-4"
MESSAGES: Final[Any] = [{"role": "user", "content": "say: hi"}]
ADDRESSES: Final = ("/v1", "/openai/v1", "/openai")
VERSION: Final = "?api-version=2024-10-21"


@pytest.fixture(scope="module")
def keyed_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with its key checked, and a model whose name has a slash."""
    return functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": f"{DEFAULT_DEPLOYMENT},{SLASHED}"}, key=KEY)


@pytest.fixture
async def client(keyed_app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that app, with the model service running."""
    async with keyed_app.client() as client:
        yield client


def error_of(answer: httpx.Response, status: int, code: str) -> str:
    """The message of the error, which is of OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["request_id"] == answer.headers["x-request-id"]
    error = document["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    message: str = error["message"]
    return message


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "given", "deployment"),
    [
        ("/v1/chat/completions", SLASHED, SLASHED),
        ("/V1/Chat/Completions/", None, DEFAULT_DEPLOYMENT),
        ("/openai/v1/chat/completions", SLASHED, SLASHED),
        ("/openai/v1/chat/completions?api-version=preview", None, DEFAULT_DEPLOYMENT),
        (f"/openai/deployments/{DEFAULT_DEPLOYMENT}/chat/completions{VERSION}", None, DEFAULT_DEPLOYMENT),
        (f"/openai/deployments/{DEFAULT_DEPLOYMENT}/chat/completions{VERSION}", SLASHED, DEFAULT_DEPLOYMENT),
        (f"/openai/deployments/{DEFAULT_DEPLOYMENT}/chat/completions", "unknown", DEFAULT_DEPLOYMENT),
        ("/openai/deployments/meta%2Fllama-4/chat/completions", None, SLASHED),
        ("/openai/deployments/meta/llama-4/chat/completions", DEFAULT_DEPLOYMENT, SLASHED),
        ("/openai/deployments/%6Deta%2fllama%2D4/chat/completions", None, SLASHED),
    ],
)
async def test_chat_completions(
    client: httpx.AsyncClient, model_service: ModelService, path: str, given: str | None, deployment: str, stream: bool
) -> None:
    body = {"messages": MESSAGES, "stream": stream} | ({} if given is None else {"model": given})
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert ("data: [DONE]" in answer.text) == stream
    (sent,) = model_service.requests
    assert sent.deployment == sent.body["model"] == deployment
    assert sent.path.endswith("/openai/v1/chat/completions")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/openai/responses", f"/openai/deployments/{SLASHED}/responses"])
async def test_responses(client: httpx.AsyncClient, model_service: ModelService, path: str, stream: bool) -> None:
    body = {"model": SLASHED if path == "/openai/responses" else "unknown", "input": "say: hi", "stream": stream}
    answer = await client.post(path + VERSION, json=body)
    assert answer.status_code == 200, answer.text
    assert ("event: response.completed" in answer.text) == stream
    (sent,) = model_service.requests
    assert (sent.body["model"], sent.path) == (SLASHED, "/openai/v1/responses")


@pytest.mark.parametrize("name", ["unknown", "gr%C3%BCn", "a%20b", "100%25", "meta%252Fllama"])
async def test_an_unknown_deployment(client: httpx.AsyncClient, model_service: ModelService, name: str) -> None:
    path = f"/openai/deployments/{name}/chat/completions"
    error_of(await client.post(path, json={"messages": MESSAGES, "model": DEFAULT_DEPLOYMENT}), 404, "model_not_found")
    assert model_service.requests == []


@pytest.mark.parametrize("address", ADDRESSES)
async def test_models(client: httpx.AsyncClient, address: str) -> None:
    listed = (await client.get(f"{address}/models{VERSION}")).json()["data"]
    assert [model["id"] for model in listed] == [DEFAULT_DEPLOYMENT, SLASHED]
    for name, model in zip((DEFAULT_DEPLOYMENT, "meta/llama-4"), listed, strict=True):
        answer = await client.get(f"{address}/models/{name}{VERSION}")
        assert (answer.status_code, answer.json()) == (200, model)
        assert answer.headers["content-type"] == "application/json"
    assert (await client.get(f"{address}/models/meta%2Fllama-4")).json() == listed[1]
    for name in ("unknown", "meta", "meta%2Fllama-4%2F1", "a%0Ab", "%22%7D"):
        assert "GET /v1/models" in error_of(await client.get(f"{address}/models/{name}"), 404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models", 200),
        (f"/v1/models/{DEFAULT_DEPLOYMENT}", 200),
        ("/v1/models/unknown", 404),
        ("/openai/models", 200),
        ("/v1/nothing", 404),
        ("/v1/chat/completions", 405),
    ],
)
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, path: str, status: int) -> None:
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (status, b"")
    assert get.status_code == status
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    ("path", "exists"),
    [
        ("/v1", "POST /v1/chat/completions"),
        ("/v1/", "GET /v1/models/{model}"),
        ("/v1/completions", "POST /v1/chat/completions"),
        ("/v1/chat/completions/x", "POST /v1/chat/completions"),
        ("/v1//models", "GET /v1/models"),
        ("/v1/grün", "GET /v1/models"),
        ("/v1/a%0Ab", "GET /v1/models"),
        ("/openai", "POST /openai/deployments/{deployment}/chat/completions"),
        ("/openai/v1", "POST /openai/v1/chat/completions"),
        ("/openai/v1/files", "GET /openai/v1/models"),
        ("/openai/deployments", "POST /openai/deployments/{deployment}/chat/completions"),
        ("/openai/deployments/x/completions", "GET /openai/models/{model}"),
    ],
)
async def test_a_path_that_does_not_exist(client: httpx.AsyncClient, method: str, path: str, exists: str) -> None:
    message = error_of(await client.request(method, path, content=b"{}"), 404, "not_found")
    assert f" {method} {unquote(path)}. It has " in message
    assert exists in message


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/openai/v1/chat/completions", "POST"),
        ("GET", f"/openai/deployments/{DEFAULT_DEPLOYMENT}/chat/completions{VERSION}", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/openai/models", "GET, HEAD"),
        ("DELETE", f"/v1/models/{DEFAULT_DEPLOYMENT}", "GET, HEAD"),
    ],
)
async def test_a_method_that_the_path_does_not_take(
    client: httpx.AsyncClient, model_service: ModelService, method: str, path: str, allow: str
) -> None:
    answer = await client.request(method, path, json={"messages": MESSAGES})
    assert method in error_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow
    assert model_service.requests == []


async def test_a_body_that_no_one_reads_does_no_harm(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        error_of(await client.post("/v1/nothing", json={"input": "x" * 2_000_000}), 404, "not_found")
    assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/openai/nothing", "/openai/models/x"])
async def test_every_path_requires_the_key(keyed_app: HostedApp, path: str) -> None:
    async with httpx.AsyncClient(base_url=keyed_app.url) as stranger:
        assert (await stranger.get(path)).status_code == 401


async def test_without_settings_every_path_says_so(functions_app: Callable[..., HostedApp]) -> None:
    async with functions_app(env={"AZURE_OPENAI_DEPLOYMENTS": "x"}).client() as client:
        for path in ("/v1/models", "/openai/models/x"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "not_configured"
        path = "/openai/deployments/x/chat/completions"
        assert json.loads((await client.post(path, json={})).content)["error"]["code"] == "not_configured"
        error_of(await client.get("/v1/nothing"), 404, "not_found")


@own_host("CORS")
async def test_pages_of_other_sites_may_read_the_errors(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str]
) -> None:
    origin = "https://app.example"
    app = functions_app(env=app_settings, settings={"Host": {"CORS": origin}})
    async with app.client(headers={"Origin": origin}) as client:
        for path in ("/v1/nothing", "/openai/models/x", "/v1/chat/completions"):
            answer = await client.get(path)
            assert answer.json()["error"]["message"]
            assert answer.headers["access-control-allow-origin"] == origin
