"""`GET /ready`: what is wrong with each deployment, and the remedy; cheap, and safe to request often."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import httpx
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, ModelService, Record
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
    # What is no model service.
    "fault-html-always": (UNREACHED, "upstream_error", ("address", "AZURE_OPENAI_ENDPOINT")),
    "fault-error-document": (UNREACHED, "upstream_error", ("address", "AZURE_OPENAI_ENDPOINT")),
    "fault-empty+accepts-empty": (UNREACHED, "upstream_error", ("address", "AZURE_OPENAI_ENDPOINT")),
    "fault-html+accepts-empty": (UNREACHED, "upstream_error", ("address", "AZURE_OPENAI_ENDPOINT")),
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


def check_probes(probes: Sequence[Record], count: int) -> None:
    """There were so many probes, and none of them has cost a token."""
    assert len(probes) == count
    for record in probes:
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
    # The wrong path is not recorded; a refusal that is not about the conversation is followed by one short message.
    followed = {"fault-empty+accepts-empty", "fault-html+accepts-empty"}
    first = [record for record in model_service.requests if not record.body["messages"]]
    check_probes(first, len(DEPLOYMENTS) - 1)
    assert {it.deployment for it in model_service.requests if it not in first} == followed
    assert len(model_service.requests) == len(first) + len(followed)
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


# A server that accepts an empty conversation, and would send a long answer.
ACCEPTING: Final = "fault-accepts-empty+flood-100000"

# Deployments that refuse what the app adds to a request, and what `/ready` shows of it.
REFUSALS: Final = {
    "fault-no-stream-options": ["stream_options"],
    "fault-no-max-completion-tokens+limit-100": ["max_completion_tokens", "an output limit above 100"],
    "fault-one-limit": ["max_tokens"],
    "fault-context-8192": None,
}


async def test_all_backends_are_ready(own_app: Callable[..., HostedApp], model_service: ModelService) -> None:
    deployments = [DEFAULT_DEPLOYMENT, "o3", ACCEPTING, *REFUSALS]
    app = own_app(key="a-key", AZURE_OPENAI_ENDPOINT=model_service.url, AZURE_OPENAI_DEPLOYMENTS=",".join(deployments))
    async with httpx.AsyncClient(base_url=app.url, verify=False) as keyless:
        assert (await keyless.get("/ready")).status_code == 401
        assert (await keyless.get("/health")).status_code == 200
    assert model_service.requests == []

    async with app.client() as client:
        findings = check_ready(await client.get("/ready"), 200, "ready")
        assert [finding["model"] for finding in findings.values()] == deployments
        await model_service.wait_for(lambda it: it.open_requests == 0)
        probes: dict[str, list[Record]] = {name: [] for name in deployments}
        for record in model_service.requests:
            probes[record.deployment].append(record)
        check_probes([*probes[DEFAULT_DEPLOYMENT], *probes["o3"]], 2)
        (accepted,) = probes[ACCEPTING]
        assert accepted.ended == "aborted"
        assert accepted.tokens < 100_000

        for finding in findings.values():
            assert finding.get("refused_additions") == REFUSALS.get(finding["model"])
        for name, refused in REFUSALS.items():
            model_service.requests.clear()
            assert (await client.post("/stream", json={"input": "x", "model": name})).status_code == 200
            if refused:
                assert len(model_service.requests) == 1, "what the probe learned holds for requests"


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


async def test_missing_settings(own_app: Callable[..., HostedApp]) -> None:
    async with own_app().client() as client:
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_configured"
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {"AZURE_OPENAI_DEPLOYMENTS", "AZURE_OPENAI_ENDPOINT"}


# ── Keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

KEY: Final = "the-key"
GATEWAY_HEADERS: Final = ("api-key", "Ocp-Apim-Subscription-Key")


@pytest.fixture
async def gateways() -> AsyncIterator[dict[str, ModelService]]:
    """Servers that take this key, each in another header."""
    async with AsyncExitStack() as stack:
        services = {}
        for header in GATEWAY_HEADERS:
            services[header] = await stack.enter_async_context(ModelService(tokens_per_second=0))
            services[header].api_key, services[header].key_header = KEY, header
        yield services


async def test_keys_that_are_refused(
    own_app: Callable[..., HostedApp], model_service: ModelService, gateways: dict[str, ModelService]
) -> None:
    """A wrong one, and a right one where a gateway does not look for it."""
    model_service.api_key = model_service.accept_token = "the right one"
    services = {"wrong": model_service} | gateways
    backends = [
        {"endpoint": it.url, "deployment": "some", "model": name, "name": name} for name, it in services.items()
    ]
    async with own_app(AZURE_OPENAI_BACKENDS=json.dumps(backends), AZURE_OPENAI_API_KEY=KEY).client() as client:
        answer = await client.get("/ready")
        findings = {finding["model"]: finding for finding in check_ready(answer, 503, "not_ready").values()}
        assert KEY not in answer.text
        assert list(findings) == list(services)
        for name, finding in findings.items():
            assert finding["checks"] == NO_ROLE
            for text in ("the header Authorization", "AZURE_OPENAI_API_KEY", *GATEWAY_HEADERS):
                assert text in finding["remedy"], name
        assert "AZURE_OPENAI_API_KEY_HEADER" in findings[GATEWAY_HEADERS[0]]["remedy"]
        for header in gateways:
            refused = await client.post("/stream", json={"input": "x", "model": header})
            assert refused.json()["code"] == "upstream_auth"
            assert "the header Authorization" in refused.json()["detail"]
            assert KEY not in refused.text


@pytest.mark.parametrize("header", GATEWAY_HEADERS)
async def test_a_gateway_that_takes_its_key_in_another_header(
    own_app: Callable[..., HostedApp], gateways: dict[str, ModelService], header: str
) -> None:
    settings = {
        "AZURE_OPENAI_ENDPOINT": gateways[header].url,
        "AZURE_OPENAI_DEPLOYMENTS": DEFAULT_DEPLOYMENT,
        "AZURE_OPENAI_API_KEY": KEY,
        "AZURE_OPENAI_API_KEY_HEADER": header,
    }
    async with own_app(**settings).client() as client:
        check_ready(await client.get("/ready"), 200, "ready")
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200


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


async def test_the_identity_has_a_token_but_not_every_role(
    own_app: Callable[..., HostedApp], model_service: ModelService, managed: dict[str, str]
) -> None:
    model_service.faults["elsewhere"] = "401-role"
    managed["AZURE_OPENAI_DEPLOYMENTS"] += ",elsewhere"
    async with own_app(**managed).client() as client:
        good, refused = check_ready(await client.get("/ready"), 503, "not_ready").values()
    assert good["checks"] == GOOD
    assert refused["checks"] == NO_ROLE
    for text in (CLIENT_ID, "Cognitive Services OpenAI User", "terraform apply"):
        assert text in refused["remedy"]
    check_probes(model_service.requests, 2)
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
    check_probes(model_service.requests, 0)


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
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers.get("content-encoding") == got.headers.get("content-encoding")
