"""`GET /ready`: what is wrong with each deployment, and the remedy; cheap, and safe to request often."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import HostedApp

CLIENT_ID: Final = "11111111-2222-3333-4444-555555555555"
GOOD: Final = {"token": True, "role": True, "deployment": True, "answers": True}
NO_TOKEN: Final = {"token": False, "role": None, "deployment": None, "answers": None}
NO_ROLE: Final = {"token": True, "role": False, "deployment": None, "answers": None}
NO_DEPLOYMENT: Final = {"token": True, "role": True, "deployment": False, "answers": None}
NO_ANSWER: Final = {"token": True, "role": True, "deployment": True, "answers": False}
UNREACHED: Final = {"token": True, "role": None, "deployment": None, "answers": False}

# A deployment with each fault: the checks, the code, and texts that the remedy contains.
DEPLOYMENTS: Final[dict[str, tuple[dict[str, Any], str | None, tuple[str, ...]]]] = {
    DEFAULT_DEPLOYMENT: (GOOD, None, ()),
    "o3": (GOOD, None, ()),
    "fault-400": (GOOD, None, ()),
    "fault-cut-midway": (GOOD, None, ()),
    "fault-stall-headers-0.3": (GOOD, None, ()),
    "a-missing-one": (
        NO_DEPLOYMENT,
        "model_not_found",
        ("a-missing-one", "AZURE_OPENAI_DEPLOYMENTS", "open_ai_instances"),
    ),
    "fault-404": (NO_DEPLOYMENT, "model_not_found", ("fault-404",)),
    "fault-401": (NO_ROLE, "upstream_auth", ("AZURE_OPENAI_API_KEY",)),
    "fault-403": (NO_ROLE, "upstream_auth", ()),
    "fault-429-7": (NO_ANSWER, "rate_limited", ("capacity",)),
    "fault-500": (NO_ANSWER, "upstream_error", ("service health",)),
    "fault-503-after": (NO_ANSWER, "upstream_error", ()),
    "fault-504": (NO_ANSWER, "upstream_timeout", ()),
    "fault-cut-headers": (UNREACHED, "upstream_error", ("network",)),
    "wrong-path": (NO_DEPLOYMENT, "not_configured", ("AZURE_OPENAI_ENDPOINT",)),
}


@pytest.fixture
def own_app(functions_app: Callable[..., HostedApp]) -> Iterator[Callable[..., HostedApp]]:
    """Starts an app that has sent no probe yet, and ends it with the test."""
    apps: list[HostedApp] = []

    def start(key: str | None = None, **env: str) -> HostedApp:
        apps.append(functions_app(env=env, key=key, fresh=True))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()


def check_ready(answer: httpx.Response, status_code: int, status: str) -> dict[str, dict[str, Any]]:
    """The findings, by backend."""
    assert answer.status_code == status_code
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["status"] == status
    findings = {finding["backend"]: finding for finding in document["backends"]}
    assert len(findings) == len(document["backends"])
    for finding in findings.values():
        assert finding["ready"] is (finding["checks"] == GOOD)
        assert ("remedy" in finding) is not finding["ready"]
    return findings


def check_probes(model_service: ModelService, count: int) -> None:
    """There were so many probes, and none of them has cost a token."""
    assert len(model_service.requests) == count
    for record in model_service.requests:
        assert record.body["messages"] == []
        assert record.tokens == 0
        assert record.ended != "complete"


async def test_every_fault_and_its_remedy(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    backends = [
        {
            "endpoint": f"{model_service.origin}/nothing/v1/" if name == "wrong-path" else model_service.url,
            "deployment": name,
            "name": name,
        }
        for name in DEPLOYMENTS
    ]
    async with own_app(AZURE_OPENAI_BACKENDS=json.dumps(backends)).client() as client:
        answers = await asyncio.gather(*(client.get("/ready") for _ in range(20)))
        answers.append(await client.get("/ready"))
    assert len({answer.content for answer in answers}) == 1
    check_probes(model_service, len(DEPLOYMENTS) - 1)  # the wrong path is not recorded
    findings = check_ready(answers[0], 503, "not_ready")
    assert list(findings) == list(DEPLOYMENTS)
    for name, (checks, code, texts) in DEPLOYMENTS.items():
        finding = findings[name]
        assert finding["model"] == name
        assert finding["checks"] == checks, name
        assert finding.get("code") == code, name
        for text in texts:
            assert text in finding["remedy"], name
    assert "127.0.0.1" not in answers[0].text
    assert str(model_service.port) not in answers[0].text


async def test_all_backends_are_ready(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    app = own_app(
        key="a-key", AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS=f"{DEFAULT_DEPLOYMENT},o3"
    )
    async with httpx.AsyncClient(base_url=app.url, verify=False) as keyless:
        assert (await keyless.get("/ready")).status_code == 401
        assert (await keyless.get("/health")).status_code == 200
    assert model_service.requests == []
    async with app.client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
    check_probes(model_service, 2)
    assert all(record.deployment in (DEFAULT_DEPLOYMENT, "o3") for record in model_service.requests)


def two_accounts(model_service: ModelService, port: int) -> str:
    return json.dumps(
        [
            {"endpoint": model_service.url, "deployment": "here", "model": "m", "name": "first"},
            {"endpoint": f"http://127.0.0.1:{port}/v1/", "deployment": "there", "model": "m", "name": "second"},
        ]
    )


async def test_one_of_two_backends_is_enough(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        app = own_app(AZURE_OPENAI_BACKENDS=two_accounts(model_service, port))
        async with app.client() as client:
            answer = await client.get("/ready")
            findings = check_ready(answer, 200, "degraded")
            assert findings["first"]["ready"]
            assert findings["second"]["checks"] == UNREACHED
            assert "AZURE_OPENAI_BACKENDS" in findings["second"]["remedy"]
            assert str(port) not in answer.text
            # A probe that failed has no effect on the requests of callers.
            assert (await client.post("/stream", json={"input": "x"})).status_code == 200


async def test_wrong_key(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    model_service.api_key = model_service.accept_token = "the right one"
    app = own_app(
        AZURE_OPENAI_ENDPOINT=model_service.url,
        AZURE_OPENAI_DEPLOYMENTS="some",
        AZURE_OPENAI_API_KEY="the-wrong-one",
    )
    async with app.client() as client:
        answer = await client.get("/ready")
    (finding,) = check_ready(answer, 503, "not_ready").values()
    assert finding["checks"] == NO_ROLE
    assert "AZURE_OPENAI_API_KEY" in finding["remedy"]
    assert "the-wrong-one" not in answer.text


async def test_missing_settings(own_app: Callable[..., HostedApp]) -> None:
    async with own_app().client() as client:
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_configured"
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {"AZURE_OPENAI_DEPLOYMENTS", "AZURE_OPENAI_ENDPOINT"}


# ── The app's identity ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def managed(model_service: ModelService) -> dict[str, str]:
    """The settings of an app in Azure that concern its identity."""
    model_service.identity.header = "the-platforms-own-secret"
    model_service.require_issued_token = True
    return {
        "AZURE_OPENAI_ENDPOINT": model_service.url,
        "AZURE_OPENAI_DEPLOYMENTS": DEFAULT_DEPLOYMENT,
        "IDENTITY_ENDPOINT": model_service.identity_url,
        "IDENTITY_HEADER": "the-platforms-own-secret",
        "AZURE_OPENAI_TOKEN_SCOPE": "https://cognitiveservices.azure.com/.default",
        "AZURE_CLIENT_ID": CLIENT_ID,
    }


async def test_the_identity_has_a_token(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    async with own_app(**managed).client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
    check_probes(model_service, 1)
    assert len(model_service.identity.calls) == 1


async def test_the_identity_has_no_token(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    model_service.identity.failure = 400
    async with own_app(**managed).client() as client:
        answer = await client.get("/ready")
    (finding,) = check_ready(answer, 503, "not_ready").values()
    assert finding["checks"] == NO_TOKEN
    assert finding["code"] == "upstream_auth"
    assert CLIENT_ID in finding["remedy"]
    assert "AZURE_CLIENT_ID" in finding["remedy"]
    assert "the-platforms-own-secret" not in answer.text
    check_probes(model_service, 0)


async def test_the_identity_has_no_role(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    model_service.faults[DEFAULT_DEPLOYMENT] = "401-role"
    async with own_app(**managed).client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert finding["checks"] == NO_ROLE
    for text in (CLIENT_ID, "Cognitive Services OpenAI User", "terraform apply"):
        assert text in finding["remedy"]


async def test_a_developer_who_is_not_signed_in(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    for setting in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "AZURE_CLIENT_ID"):
        del managed[setting]
    async with own_app(**managed, PATH="/nowhere").client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert finding["checks"] == NO_TOKEN
    assert "az login" in finding["remedy"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/chat", "/openapi", "/v1/models"])
async def test_head_is_answered_as_get_without_a_body(app: HostedApp, model_service: ModelService, path: str) -> None:
    async with app.client() as client:
        got, head = await client.get(path), await client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["content-length"] == str(len(got.content))


# ── What the deployments really do ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["html-always", "error-document", "empty", "html"])
async def test_what_is_no_model_service(
    own_app: Callable[..., HostedApp], model_service: ModelService, fault: str
) -> None:
    model_service.faults["d"] = f"{fault}+accepts-empty" if fault in ("empty", "html") else fault
    async with own_app(AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS="d").client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert finding["checks"] == UNREACHED
    assert "address" in finding["remedy"]
    assert "AZURE_OPENAI_ENDPOINT" in finding["remedy"]


async def test_a_server_that_accepts_an_empty_conversation(
    own_app: Callable[..., HostedApp], model_service: ModelService
) -> None:
    model_service.faults["d"] = "accepts-empty+flood-100000"
    async with own_app(AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS="d").client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
    await model_service.wait_for(lambda it: it.open_requests == 0)
    assert model_service.requests[0].ended == "aborted"
    assert model_service.requests[0].tokens < 100_000


REFUSALS: Final = {
    "no-stream-options": ["stream_options"],
    "no-max-completion-tokens+limit-100": ["max_completion_tokens", "an output limit above 100"],
    "one-limit": ["max_tokens"],
    "context-8192": None,
}


@pytest.mark.parametrize("fault", REFUSALS)
async def test_refused_additions_are_taken_back_and_shown(
    own_app: Callable[..., HostedApp], model_service: ModelService, fault: str
) -> None:
    model_service.faults["d"] = fault
    async with own_app(AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS="d").client() as client:
        (finding,) = check_ready(await client.get("/ready"), 200, "ready").values()
        assert finding.get("refused_additions") == REFUSALS[fault]
        model_service.requests.clear()
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200
    if REFUSALS[fault]:
        assert len(model_service.requests) == 1, "what the probe learned holds for requests"


@pytest.mark.parametrize("header", ["api-key", "Ocp-Apim-Subscription-Key"])
async def test_a_gateway_that_takes_its_key_in_another_header(
    own_app: Callable[..., HostedApp], model_service: ModelService, header: str
) -> None:
    model_service.api_key, model_service.key_header = "the-key", header
    settings = {
        "AZURE_OPENAI_ENDPOINT": model_service.url,
        "AZURE_OPENAI_DEPLOYMENTS": DEFAULT_DEPLOYMENT,
        "AZURE_OPENAI_API_KEY": "the-key",
    }
    async with own_app(**settings).client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
        for text in ("the header Authorization", "AZURE_OPENAI_API_KEY_HEADER", header):
            assert text in finding["remedy"]
        refused = await client.post("/stream", json={"input": "x"})
        assert refused.json()["code"] == "upstream_auth"
        assert "the header Authorization" in refused.json()["detail"]
        assert "the-key" not in refused.text + json.dumps(finding)
    async with own_app(**settings, AZURE_OPENAI_API_KEY_HEADER=header).client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200
