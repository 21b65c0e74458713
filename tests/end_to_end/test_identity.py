"""How the app authenticates: by managed identity, a developer's sign-in, a key, or not at all."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.model_service import MANUAL_PACE, ModelService
from tests.end_to_end.answers import DOCUMENT, SSE, ReceivedAnswer, post_stream
from tests.end_to_end.hosting import HostedApp, eventually

INSPECTED_APP = Path(__file__).with_name("inspected_app")
HEADER = "the-platforms-own-secret"
SCOPE = "https://cognitiveservices.azure.com/.default"


@pytest.fixture
def identity_settings(app_settings: dict[str, str], model_service: ModelService) -> dict[str, str]:
    """The settings of an app in Azure; the model service accepts only tokens that its identity endpoint has issued."""
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
def own_app(functions_app: Callable[..., HostedApp]) -> Iterator[Callable[..., HostedApp]]:
    """Starts an app that has no token yet, and ends it with the test, as its identity endpoint does."""
    apps: list[HostedApp] = []

    def start(env: dict[str, str], **options: Any) -> HostedApp:
        apps.append(functions_app(env=env, fresh=True, **options))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()


def problem_code(received: ReceivedAnswer) -> str:
    """The code of the failure, whether it came before the commit or after it."""
    failure = received.problem or received.error
    assert failure is not None, received
    assert received.status in (200, failure["status"])
    return str(failure["code"])


async def test_managed_identity(
    own_app: Callable[..., HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    app = own_app(identity_settings)
    model_service.identity.delay = 0.2
    async with app.client() as client:
        answers = await asyncio.gather(*[post_stream(client, SSE) for _ in range(10)])
        answers.append(await post_stream(client, DOCUMENT))
        model_service.faults["*"] = "401-role"
        refused = await post_stream(client, SSE, model=MANUAL_PACE)
    assert all(received.done for received in answers)
    assert (refused.status, problem_code(refused)) == (502, "upstream_auth")
    assert {record.auth for record in model_service.requests} == {"token"}
    (call,) = model_service.identity.calls
    assert call["resource"] == "https://cognitiveservices.azure.com"
    assert call["client_id"] == "11111111-2222-3333-4444-555555555555"
    (token,) = model_service.identity.issued
    assert token not in app.output
    assert HEADER not in app.output


async def test_after_a_failed_sign_in_the_next_request_tries_again(
    own_app: Callable[..., HostedApp],
    identity_settings: dict[str, str],
    model_service: ModelService,
) -> None:
    app = own_app(identity_settings)
    async with app.client(timeout=30) as client:
        for failure in (400, 500):
            model_service.identity.failure = failure
            answers = await asyncio.gather(*[post_stream(client, media_type) for media_type in (SSE, DOCUMENT)])
            assert {problem_code(received) for received in answers} == {"upstream_auth"}
            assert all(b"127.0.0.1" not in received.raw for received in answers)
        assert model_service.requests == []
        model_service.identity.failure = None
        await eventually(lambda: is_answered(client))


async def is_answered(client: httpx.AsyncClient) -> bool:
    return (await post_stream(client, SSE)).done is not None


async def test_a_slow_sign_in_times_out_and_delays_no_other_request(
    own_app: Callable[..., HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    token_timeout = 4.0  # seconds
    settings = {"COMMIT_WAIT_SECONDS": "0.5", "PING_INTERVAL_SECONDS": "0.2", "TOKEN_TIMEOUT": str(token_timeout)}
    app = own_app(identity_settings | settings, script_root=INSPECTED_APP)
    model_service.identity.delay = 60
    async with app.client() as client:
        requesting = asyncio.create_task(post_stream(client, SSE))
        disconnecting = asyncio.create_task(post_stream(client, SSE))
        await eventually(lambda: model_service.identity.calls)
        signing_in_since = time.monotonic()
        disconnecting.cancel()
        delays: list[float] = []
        for _ in range(20):
            began = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            delays.append(time.monotonic() - began)
        assert sorted(delays)[len(delays) // 2] < 0.3
        assert max(delays) < token_timeout / 2  # generous for a busy machine
        received = await requesting
        assert time.monotonic() - signing_in_since < token_timeout + 10
        assert problem_code(received) == "upstream_auth"
        assert received.pings > 5
        model_service.identity.delay = 0
        assert (await post_stream(client, SSE)).done


async def test_no_token_is_sent_to_a_server_that_is_not_azures(
    own_app: Callable[..., HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    del identity_settings["AZURE_OPENAI_TOKEN_SCOPE"]
    model_service.require_issued_token = False
    app = own_app(identity_settings)
    async with app.client() as client:
        assert (await post_stream(client, SSE)).done
    assert model_service.identity.calls == []
    model_service.require_issued_token = True
    async with app.client() as client:
        assert problem_code(await post_stream(client, SSE)) == "upstream_auth"


async def test_a_key_is_used_where_one_is_set(
    own_app: Callable[..., HostedApp], identity_settings: dict[str, str], model_service: ModelService
) -> None:
    key = "a-key-of-the-model-service"
    app = own_app(identity_settings | {"AZURE_OPENAI_API_KEY": key})
    model_service.require_issued_token = False
    model_service.api_key, model_service.accept_token = key, "no other"
    async with app.client() as client:
        assert (await post_stream(client, SSE)).done
        assert model_service.identity.calls == []
        model_service.api_key = "another"
        assert problem_code(await post_stream(client, SSE, model=MANUAL_PACE)) == "upstream_auth"
    assert key not in app.output


def fake_az(folder: Path, script: str) -> str:
    """A PATH on which `az` is this script."""
    az = folder / "az"
    az.write_text(f"#!/bin/sh\n{script}\n")
    az.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


async def test_developer_sign_in(
    own_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    model_service: ModelService,
    tmp_path: Path,
) -> None:
    token = "a-token-that-az-has"
    script = (
        f'echo "$@" >> {tmp_path}/calls\n'
        f'echo \'{{"accessToken": "{token}", "expiresOn": "2099-01-01 00:00:00.000000", "expires_on": 4070908800, '
        f'"subscription": "s", "tenant": "t", "tokenType": "Bearer"}}\''
    )
    app = own_app(app_settings | {"AZURE_OPENAI_TOKEN_SCOPE": SCOPE, "PATH": fake_az(tmp_path, script)})
    model_service.accept_token = token
    async with app.client() as client:
        for _ in range(3):
            assert (await post_stream(client, SSE)).done
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "get-access-token" in line]
    assert len(calls) == 1
    assert "cognitiveservices.azure.com" in calls[0]
    assert token not in app.output


async def test_developer_who_is_not_signed_in(
    own_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    model_service: ModelService,
    tmp_path: Path,
) -> None:
    script = "echo \"ERROR: Please run 'az login' to setup account.\" >&2\nexit 1"
    app = own_app(app_settings | {"AZURE_OPENAI_TOKEN_SCOPE": SCOPE, "PATH": fake_az(tmp_path, script)})
    async with app.client() as client:
        assert problem_code(await post_stream(client, SSE)) == "upstream_auth"
    assert model_service.requests == []
