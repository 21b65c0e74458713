"""An app with missing or wrong settings starts, logs each of them, and answers with a problem that names them."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from relay.version import VERSION
from tests.end_to_end.hosting import HostedApp

ASSETS = Path(__file__).resolve().parents[2] / "relay" / "page" / "assets"
SECRET = "sk-secret-4711"

WRONG: dict[str, tuple[dict[str, str], set[str]]] = {
    "nothing": ({}, {"AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENTS"}),
    "several": (
        {
            "AZURE_OPENAI_ENDPOINT": f"https://user:{SECRET}@account.openai.azure.com/",
            "AZURE_OPENAI_DEPLOYMENTS": "\udcff",
            "AZURE_OPENAI_API_KEY": f"{SECRET}\nx",
            "PING_INTERVAL_SECONDS": "soon",
            "MAX_BODY_BYTES": "-1",
            "CHAT_PAGE": "OFF",
            "CHAT_EXAMPLES": "one, two",
        },
        {
            "CHAT_EXAMPLES",
            "AZURE_OPENAI_ENDPOINT",
            "AZURE_OPENAI_DEPLOYMENTS",
            "AZURE_OPENAI_API_KEY",
            "PING_INTERVAL_SECONDS",
            "MAX_BODY_BYTES",
        },
    ),
    "a list that is not one": ({"AZURE_OPENAI_BACKENDS": f'[{{"endpoint": "{SECRET}"'}, {"AZURE_OPENAI_BACKENDS"}),
}


async def assert_chat_page_is(client: httpx.AsyncClient, *, on: bool) -> None:
    """The page, its files and what leads to it, for GET and HEAD, without a key."""
    script = next(path.name for path in ASSETS.glob("*.js"))
    expected = {"/": 302, "/chat": 200, f"/chat/assets/{script}": 200, "/chat/assets/nothing.js": 404}
    for path, status in expected.items():
        answer, head = await client.get(path), await client.head(path)
        assert answer.status_code == head.status_code == (status if on else 404)
        assert head.content == b""
        if answer.status_code == 404:
            assert answer.json()["code"] == "not_found"
        elif answer.status_code == 302:
            assert answer.headers["location"] == "chat"
        else:
            assert answer.headers["content-encoding"] == "gzip"
            assert int(head.headers["content-length"]) < len(answer.content) / 2


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_settings_are_named_and_affect_nothing_else(
    functions_app: Callable[..., HostedApp], case: str
) -> None:
    environment, named = WRONG[case]
    app = functions_app(env=environment)
    async with app.client() as client:
        assert (await client.get("/health")).json() == {"status": "ok", "version": VERSION}
        answer = await client.post("/stream", json={"input": "x"})
        await assert_chat_page_is(client, on="CHAT_PAGE" not in environment)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("not_configured", 503)
    assert {error["field"] for error in problem["errors"]} == named
    assert all(error["message"] for error in problem["errors"])
    logged = [line for line in app.output.splitlines() if '"event":"not_configured"' in line]
    assert len(logged) == len(named)
    for setting in named:
        assert any(setting in line for line in logged)
    assert SECRET not in app.output
    assert SECRET not in answer.text
