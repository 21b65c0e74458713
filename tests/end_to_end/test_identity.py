"""How the app proves who it is: the managed identity, a developer's sign-in, a key, or nothing at all."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from local.model_service import BY_HAND, ModelService
from tests.end_to_end.answers import DOCUMENT, SSE, Heard, ask
from tests.end_to_end.hosting import HostedApp, eventually

HEADER = "the-platforms-own-secret"
SCOPE = "https://cognitiveservices.azure.com/.default"


@pytest.fixture
def identity_settings(app_settings: dict[str, str], model_service: ModelService) -> dict[str, str]:
    """An app in Azure, as far as its identity goes; the model service takes nothing but its tokens."""
    model_service.identity.header = HEADER
    model_service.require_issued_token = True
    return app_settings | {
        "IDENTITY_ENDPOINT": model_service.identity_url,
        "IDENTITY_HEADER": HEADER,
        "AZURE_OPENAI_TOKEN_SCOPE": SCOPE,
        "AZURE_CLIENT_ID": "11111111-2222-3333-4444-555555555555",
        "COMMIT_WAIT_SECONDS": "2",
        "PING_INTERVAL_SECONDS": "0.5",
    }


@pytest.fixture
def own_app(functions_app: Callable[..., HostedApp]) -> Iterator[Callable[[dict[str, str]], HostedApp]]:
    """Starts an app that has no token yet, and ends it with the test: the next one's identity endpoint is another."""
    apps: list[HostedApp] = []

    def start(env: dict[str, str]) -> HostedApp:
        apps.append(functions_app(env=env, fresh=True))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()
        app.expected_to_end = True


def problem_code(heard: Heard) -> str:
    """The code of the failure, told before the commit or after it."""
    failure = heard.problem or heard.error
    assert failure is not None, heard
    assert heard.status in (200, failure["status"])
    return str(failure["code"])


async def test_the_managed_identity(
    own_app: Callable[[dict[str, str]], HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    app = own_app(identity_settings)
    model_service.identity.delay = 0.2
    async with app.client() as client:
        answers = await asyncio.gather(*[ask(client, SSE) for _ in range(10)])
        answers.append(await ask(client, DOCUMENT))
        model_service.faults["*"] = "401-role"
        refused = await ask(client, SSE, model=BY_HAND)
    assert all(heard.done for heard in answers)
    assert (refused.status, problem_code(refused)) == (502, "upstream_auth")
    assert {record.auth for record in model_service.requests} == {"token"}
    (call,) = model_service.identity.calls
    assert call["resource"] == "https://cognitiveservices.azure.com"
    assert call["client_id"] == "11111111-2222-3333-4444-555555555555"
    (token,) = model_service.identity.issued
    assert token not in app.output
    assert HEADER not in app.output


async def test_no_token_is_a_clear_problem_and_mends_itself(
    own_app: Callable[[dict[str, str]], HostedApp],
    identity_settings: dict[str, str],
    model_service: ModelService,
) -> None:
    app = own_app(identity_settings)
    async with app.client(timeout=30) as client:
        for failure in (400, 500):
            model_service.identity.failure = failure
            answers = await asyncio.gather(*[ask(client, form) for form in (SSE, DOCUMENT)])
            assert {problem_code(heard) for heard in answers} == {"upstream_auth"}
            assert all(b"127.0.0.1" not in heard.raw for heard in answers)
        assert model_service.requests == []
        model_service.identity.failure = None
        await eventually(lambda: answered(client), within=5)


async def answered(client: httpx.AsyncClient) -> bool:
    return (await ask(client, SSE)).done is not None


async def test_a_slow_token_is_no_hang_and_holds_nobody_up(
    own_app: Callable[[dict[str, str]], HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    app = own_app(identity_settings)
    model_service.identity.delay = 60
    async with app.client(timeout=40) as client:
        began = time.monotonic()
        asking = asyncio.create_task(ask(client, SSE))
        leaving = asyncio.create_task(ask(client, SSE))
        await eventually(lambda: model_service.identity.calls, within=15)
        leaving.cancel()
        for _ in range(20):
            asked = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            assert time.monotonic() - asked < 0.3
        heard = await asking
        assert time.monotonic() - began < 30
        assert problem_code(heard) == "upstream_auth"
        assert heard.pings > 5
        model_service.identity.delay = 0
        assert (await ask(client, SSE)).done


async def test_no_token_goes_to_a_server_that_is_not_azures(
    own_app: Callable[[dict[str, str]], HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    del identity_settings["AZURE_OPENAI_TOKEN_SCOPE"]
    model_service.require_issued_token = False
    app = own_app(identity_settings)
    async with app.client() as client:
        assert (await ask(client, SSE)).done
    assert model_service.identity.calls == []
    model_service.require_issued_token = True
    async with app.client() as client:
        assert problem_code(await ask(client, SSE)) == "upstream_auth"


async def test_a_key_is_sent_where_one_is_set(
    own_app: Callable[[dict[str, str]], HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    key = "a-key-of-the-model-service"
    app = own_app(identity_settings | {"AZURE_OPENAI_API_KEY": key})
    model_service.require_issued_token = False
    model_service.api_key, model_service.accept_token = key, "no other"
    async with app.client() as client:
        assert (await ask(client, SSE)).done
        assert model_service.identity.calls == []
        model_service.api_key = "another"
        assert problem_code(await ask(client, SSE, model=BY_HAND)) == "upstream_auth"
    assert key not in app.output


def fake_az(folder: Path, script: str) -> str:
    """A PATH whose `az` is this script."""
    az = folder / "az"
    az.write_text(f"#!/bin/sh\n{script}\n")
    az.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


async def test_a_developers_sign_in(
    own_app: Callable[[dict[str, str]], HostedApp],
    app_settings: dict[str, str],
    model_service: ModelService,
    tmp_path: Path,
) -> None:
    token = "a-token-that-az-has"
    script = (
        f'echo "$@" >> {tmp_path}/asked\n'
        f'echo \'{{"accessToken": "{token}", "expiresOn": "2099-01-01 00:00:00.000000", "expires_on": 4070908800, '
        f'"subscription": "s", "tenant": "t", "tokenType": "Bearer"}}\''
    )
    app = own_app(app_settings | {"AZURE_OPENAI_TOKEN_SCOPE": SCOPE, "PATH": fake_az(tmp_path, script)})
    model_service.accept_token = token
    async with app.client() as client:
        for _ in range(3):
            assert (await ask(client, SSE)).done
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if "get-access-token" in line]
    assert len(asked) == 1
    assert "cognitiveservices.azure.com" in asked[0]
    assert token not in app.output


async def test_a_developer_who_has_not_signed_in(
    own_app: Callable[[dict[str, str]], HostedApp],
    app_settings: dict[str, str],
    model_service: ModelService,
    tmp_path: Path,
) -> None:
    script = "echo \"ERROR: Please run 'az login' to setup account.\" >&2\nexit 1"
    app = own_app(app_settings | {"AZURE_OPENAI_TOKEN_SCOPE": SCOPE, "PATH": fake_az(tmp_path, script)})
    async with app.client() as client:
        assert problem_code(await ask(client, SSE)) == "upstream_auth"
    assert model_service.requests == []
