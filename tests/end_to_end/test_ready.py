"""`GET /ready`: what is wrong with each deployment, and the mend in words; cheap to ask, and safe to ask often."""

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

# A deployment that is out of order in each way: what holds of it, the code, and words of the mend.
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
}


@pytest.fixture
def own_app(functions_app: Callable[..., HostedApp]) -> Iterator[Callable[..., HostedApp]]:
    """Starts an app that has asked nobody yet, and ends it with the test."""
    apps: list[HostedApp] = []

    def start(key: str | None = None, **env: str) -> HostedApp:
        apps.append(functions_app(env=env, key=key, fresh=True))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()
        app.expected_to_end = True


def check_ready(answer: httpx.Response, status: int, says: str) -> dict[str, dict[str, Any]]:
    """The findings, by backend."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["status"] == says
    findings = {finding["backend"]: finding for finding in document["backends"]}
    assert len(findings) == len(document["backends"])
    for finding in findings.values():
        assert finding["ready"] is (finding["checks"] == GOOD)
        assert ("mend" in finding) is not finding["ready"]
    return findings


def check_cheap(model_service: ModelService, asked: int) -> None:
    assert len(model_service.requests) == asked
    for record in model_service.requests:
        assert record.body["messages"] == []
        assert record.tokens == 0
        assert record.ended != "complete"


async def test_each_thing_that_can_be_wrong_and_its_mend(
    own_app: Callable[..., HostedApp], model_service: ModelService
) -> None:
    app = own_app(AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS=",".join(DEPLOYMENTS))
    async with app.client() as client:
        answers = await asyncio.gather(*(client.get("/ready") for _ in range(20)))
        answers.append(await client.get("/ready"))
    assert len({answer.content for answer in answers}) == 1
    check_cheap(model_service, len(DEPLOYMENTS))
    findings = check_ready(answers[0], 503, "not_ready")
    assert list(findings) == list(DEPLOYMENTS)
    for name, (checks, code, words) in DEPLOYMENTS.items():
        finding = findings[name]
        assert finding["model"] == name
        assert finding["checks"] == checks, name
        assert finding.get("code") == code, name
        for word in words:
            assert word in finding["mend"], name
    assert "127.0.0.1" not in answers[0].text
    assert str(model_service.port) not in answers[0].text


async def test_all_is_well(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    app = own_app(
        key="a-key", AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS=f"{DEFAULT_DEPLOYMENT},o3"
    )
    async with httpx.AsyncClient(base_url=app.url, verify=False) as stranger:
        assert (await stranger.get("/ready")).status_code == 401
        assert (await stranger.get("/health")).status_code == 200
    assert model_service.requests == []
    async with app.client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
    check_cheap(model_service, 2)
    assert all(record.deployment in (DEFAULT_DEPLOYMENT, "o3") for record in model_service.requests)


def two_accounts(model_service: ModelService, port: int) -> str:
    return json.dumps(
        [
            {"endpoint": model_service.url, "deployment": "here", "model": "m", "name": "first"},
            {"endpoint": f"http://127.0.0.1:{port}/v1/", "deployment": "there", "model": "m", "name": "second"},
        ]
    )


async def test_one_of_two_is_enough_and_is_told(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        app = own_app(AZURE_OPENAI_BACKENDS=two_accounts(model_service, port))
        async with app.client() as client:
            answer = await client.get("/ready")
            findings = check_ready(answer, 200, "degraded")
            assert findings["first"]["ready"]
            assert findings["second"]["checks"] == UNREACHED
            assert "AZURE_OPENAI_BACKENDS" in findings["second"]["mend"]
            assert str(port) not in answer.text
            # Asking changes nothing for those who want an answer.
            assert (await client.post("/stream", json={"input": "x"})).status_code == 200


async def test_a_wrong_path(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    app = own_app(AZURE_OPENAI_ENDPOINT=f"{model_service.origin}/nothing/v1/", AZURE_OPENAI_DEPLOYMENTS="some")
    async with app.client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert finding["code"] == "not_configured"
    assert "AZURE_OPENAI_ENDPOINT" in finding["mend"]


async def test_a_wrong_key(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
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
    assert "AZURE_OPENAI_API_KEY" in finding["mend"]
    assert "the-wrong-one" not in answer.text


async def test_settings_that_are_missing(own_app: Callable[..., HostedApp]) -> None:
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
    """An app in Azure, as far as its identity goes."""
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


async def test_the_identity_gives_a_token(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    async with own_app(**managed).client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
    check_cheap(model_service, 1)
    assert len(model_service.identity.calls) == 1


async def test_the_identity_gives_none(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    model_service.identity.failure = 400
    async with own_app(**managed).client() as client:
        answer = await client.get("/ready")
    (finding,) = check_ready(answer, 503, "not_ready").values()
    assert finding["checks"] == NO_TOKEN
    assert finding["code"] == "upstream_auth"
    assert CLIENT_ID in finding["mend"]
    assert "AZURE_CLIENT_ID" in finding["mend"]
    assert "the-platforms-own-secret" not in answer.text
    check_cheap(model_service, 0)


async def test_the_identity_lacks_its_role(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    model_service.faults[DEFAULT_DEPLOYMENT] = "401-role"
    async with own_app(**managed).client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert finding["checks"] == NO_ROLE
    for word in (CLIENT_ID, "Cognitive Services OpenAI User", "terraform apply"):
        assert word in finding["mend"]


async def test_a_developer_without_a_sign_in(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    for setting in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "AZURE_CLIENT_ID"):
        del managed[setting]
    async with own_app(**managed, PATH="/nowhere").client() as client:
        (finding,) = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert finding["checks"] == NO_TOKEN
    assert "az login" in finding["mend"]
