"""Named callers: clients that know a base URL and an API key only, and everyone else in front of a closed door."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

import httpx
import openai
import pytest

from local.key import new_key
from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.hosting import HostedApp

KEY: Final = new_key()
SECOND: Final = new_key()
OTHER: Final = new_key()
FEW: Final = new_key()
ONE: Final = new_key()
HOST_KEY: Final = "the-function-key-of-the-host"
PROMPT: Final = {"input": "say: hello"}
MESSAGES: Final[Any] = [{"role": "user", "content": "say: hello"}]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def caller_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with two callers, of which one may use the second model only, behind a host that checks its own key."""
    callers = {
        "team-a": {"key_digests": [digest(KEY), digest(SECOND)]},
        "team-b": {"key_digests": [digest(OTHER)], "models": [MANUAL_PACE]},
        "few": {"key_digests": [digest(FEW)], "limits": {"requests_per_minute": 2, "tokens_per_day": 100_000}},
        "one": {"key_digests": [digest(ONE)], "limits": {"streams": 1, "tokens_per_day": 1_000_000}},
    }
    return functions_app(env=app_settings | {"CALLERS": json.dumps(callers)}, key=HOST_KEY)


def client(app: HostedApp, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=app.url, headers=headers, timeout=30, verify=False)


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"api-key": SECOND}, {"x-functions-key": KEY}],
    ids=["bearer", "azure", "functions"],
)
async def test_a_key_in_each_header(
    caller_app: HostedApp, model_service: ModelService, headers: dict[str, str]
) -> None:
    async with client(caller_app, headers) as caller:
        answer = await caller.post("/stream", json={**PROMPT, "stream": False})
        assert (answer.status_code, answer.json()["text"]) == (200, "hello")
        models = (await caller.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]
        assert (await caller.get("/ready")).status_code == 200


async def test_openai_clients_with_a_base_url_and_an_api_key_only(
    caller_app: HostedApp, model_service: ModelService
) -> None:
    """As Cursor, Codex, Open WebUI and most others are set up."""
    async with openai.AsyncOpenAI(base_url=f"{caller_app.url}/v1", api_key=KEY, max_retries=0) as caller:
        completion = await caller.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
        assert completion.choices[0].message.content == "hello"
        stream = await caller.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "hello"
        response = await caller.responses.create(model=DEFAULT_DEPLOYMENT, input="say: hello")
        assert response.output_text == "hello"
        assert [model.id async for model in caller.models.list()] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]
    azure = openai.AsyncAzureOpenAI(
        azure_endpoint=caller_app.url, api_key=SECOND, api_version="2024-10-21", max_retries=0
    )
    async with azure:
        completion = await azure.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
        assert completion.choices[0].message.content == "hello"
    async with openai.AsyncOpenAI(base_url=f"{caller_app.url}/v1", api_key="w" * 40, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
        assert caught.value.code == "invalid_api_key"


async def test_a_caller_uses_its_own_models_only(caller_app: HostedApp, model_service: ModelService) -> None:
    async with openai.AsyncOpenAI(base_url=f"{caller_app.url}/v1", api_key=OTHER, max_retries=0) as caller:
        assert [model.id async for model in caller.models.list()] == [MANUAL_PACE]
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await caller.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
        assert caught.value.code == "model_not_allowed"
        with pytest.raises(openai.NotFoundError):
            await caller.models.retrieve(DEFAULT_DEPLOYMENT)
    async with client(caller_app, {"api-key": OTHER}) as raw:
        refused = await raw.post("/stream", json={**PROMPT, "model": DEFAULT_DEPLOYMENT})
        assert (refused.status_code, refused.json()["code"]) == (403, "model_not_allowed")
        by_path = f"/openai/deployments/{DEFAULT_DEPLOYMENT}/chat/completions"
        assert (await raw.post(by_path, json={"messages": MESSAGES})).status_code == 403
        assert len(model_service.requests) == 0
        sending = raw.stream("POST", "/stream", json=PROMPT)
        async with sending as answer:
            assert answer.status_code == 200
            await model_service.wait_for(lambda service: len(service.requests) == 1)
            assert model_service.requests[0].deployment == MANUAL_PACE, "its default is the first of its own"


async def test_limits_and_their_headers(caller_app: HostedApp, model_service: ModelService) -> None:
    async with client(caller_app, {"api-key": FEW}) as caller:
        first = await caller.post("/stream", json=PROMPT)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30s"
        assert first.headers["x-ratelimit-limit-tokens"] == "100000"
        assert 99_000 < int(first.headers["x-ratelimit-remaining-tokens"]) < 100_000
        await caller.post("/v1/chat/completions", json={"model": DEFAULT_DEPLOYMENT, "messages": MESSAGES})
        assert (await caller.get("/v1/models")).status_code == 200, "the list of models costs nothing"
        for path, body in (("/stream", PROMPT), ("/v1/chat/completions", {"messages": MESSAGES})):
            refused = await caller.post(path, json=body)
            assert refused.status_code == 429
            assert 25 <= int(refused.headers["retry-after"]) <= 30
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            error = refused.json() if path == "/stream" else refused.json()["error"]
            assert error["code"] == "rate_limited"
    assert len(model_service.requests) == 2
    async with openai.AsyncOpenAI(base_url=f"{caller_app.url}/v1", api_key=FEW, max_retries=0) as limited:
        with pytest.raises(openai.RateLimitError):
            await limited.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)


async def test_a_stream_is_given_back_when_its_caller_disconnects(
    caller_app: HostedApp, model_service: ModelService
) -> None:
    body = {"input": "write a random 100 word paragraph", "model": MANUAL_PACE}
    async with client(caller_app, {"api-key": ONE}) as caller:
        async with caller.stream("POST", "/stream", json=body) as answer:
            assert answer.status_code == 200
            await model_service.wait_for(lambda service: len(service.requests) == 1)
            model_service.release(3)
            refused = await caller.post("/stream", json=PROMPT)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        await model_service.wait_for(lambda service: service.open_requests == 0)
        await eventually_admitted(caller)
    records = [it for it in caller_app.stream_records().values() if it.get("relay.caller") == "one"]
    record = next(it for it in records if it["relay.outcome"] == "cancelled")
    assert record["relay.caller_id"] == f"key:{digest(ONE)[:8]}"
    assert record["gen_ai.usage.output_tokens"] == 3, "what was used of a cancelled stream is counted"


async def eventually_admitted(caller: httpx.AsyncClient) -> httpx.Response:
    """The stream before is over for the model service a moment before it is for the limits."""
    while (answer := await caller.post("/stream", json=PROMPT)).status_code == 429:
        await asyncio.sleep(0.01)
    assert answer.status_code == 200
    return answer


async def test_no_one_else_is_admitted(caller_app: HostedApp, model_service: ModelService) -> None:
    principal = {"X-MS-CLIENT-PRINCIPAL-ID": "team-a", "X-MS-CLIENT-PRINCIPAL-NAME": "team-a"}
    attempts: list[tuple[dict[str, str], str]] = [
        ({}, ""),
        ({"api-key": "w" * 40}, ""),
        ({"x-functions-key": HOST_KEY}, ""),
        (principal, ""),
        ({"api-key": KEY, "x-functions-key": OTHER}, ""),
        ({}, f"?code={KEY}"),
        ({"api-key": KEY}, f"?code={KEY}"),
    ]
    async with client(caller_app) as stranger:
        for headers, query in attempts:
            for method, path in (
                ("POST", "/stream"),
                ("GET", "/ready"),
                ("POST", "/v1/chat/completions"),
                ("GET", "/v1/models"),
                ("GET", "/openai/v1/responses/resp_1"),
                ("GET", "/v1/nothing"),
            ):
                answer = await stranger.request(method, path + query, headers=headers)
                assert answer.status_code == 401, (headers, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                document = answer.json()
                if path.startswith(("/stream", "/ready")):
                    assert document["code"] == "invalid_api_key"
                    assert answer.headers["content-type"] == "application/problem+json"
                else:
                    assert document["error"]["code"] == "invalid_api_key"
                    assert document["error"]["type"] == "invalid_request_error"
        for path in ("/health", "/chat", "/openapi"):
            assert (await stranger.get(path)).status_code == 200
    assert len(model_service.requests) == 0
    assert not [key for key in (KEY, SECOND, OTHER, FEW, ONE) if key in caller_app.output]


async def test_a_malformed_setting_admits_no_one(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    callers = {"team-a": {"key_digests": [digest(KEY)]}, "team-b": {"key_digests": [KEY]}}
    app = functions_app(env=app_settings | {"CALLERS": json.dumps(callers)}, key=HOST_KEY)
    async with client(app) as caller:
        for headers in ({"api-key": KEY}, {"x-functions-key": HOST_KEY}, {}):
            for method, path in (("POST", "/stream"), ("GET", "/v1/models"), ("GET", "/ready")):
                answer = await caller.request(method, path, headers=headers)
                assert (answer.status_code, "not_configured" in answer.text) == (503, True)
                assert "team" not in answer.text
        assert (await caller.get("/health")).status_code == 200
    assert len(model_service.requests) == 0
    assert 'CALLERS[\\"team-b\\"].key_digests[0]' in app.output
    assert KEY not in app.output
