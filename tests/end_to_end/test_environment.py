"""Nothing but the app settings decides what is sent to the model service: no variable of another tool, no netrc file;
and a company network's proxy, where it leads there, is named."""

import json
from collections.abc import Callable

import httpx
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import HOST_COMMAND, HostedApp, own_host

OPENAI = {
    "OPENAI_ORG_ID": "org-of-someone",
    "OPENAI_PROJECT_ID": "project-of-someone",
    "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer of-someone\nX-Request-Id: of-someone",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    "OPENAI_API_KEY": "of-someone",
    "OPENAI_LOG": "debug",
}


@pytest.fixture(scope="module")
def app_beside_other_tools(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> HostedApp:
    """An app with a local model service, in whose environment other tools have left theirs."""
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("default login someone password of-someone\n")
    others = OPENAI | {"NETRC": str(netrc)}
    if not HOST_COMMAND:  # another host's own requests to the worker would go there
        others |= {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    return functions_app(env=app_settings | {"AZURE_OPENAI_API_KEY": "the-key"} | others)


async def test_variables_of_the_openai_client(app_beside_other_tools: HostedApp, model_service: ModelService) -> None:
    model_service.api_key = model_service.accept_token = "the-key"
    async with app_beside_other_tools.client() as client:
        assert (await client.post("/stream", json={"input": "a secret prompt"})).status_code == 200
    (record,) = model_service.requests
    assert "x-request-id" not in record.headers
    for text in ("of-someone", "a secret prompt", "the-key"):
        assert text not in str(record.headers) + app_beside_other_tools.output


async def test_a_proxy_and_a_netrc_file_beside_a_local_model_service(
    app_beside_other_tools: HostedApp, model_service: ModelService
) -> None:
    model_service.api_key = model_service.accept_token = "the-key"
    async with app_beside_other_tools.client() as client:
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200
        (finding,) = [it for it in (await client.get("/ready")).json()["backends"] if it["model"] == DEFAULT_DEPLOYMENT]
    assert finding["ready"]
    assert "proxy" not in finding
    assert '"event":"proxy"' not in app_beside_other_tools.output


@own_host("its own requests to the worker go through the environment's proxy")
async def test_an_identity_endpoint_is_never_reached_through_a_proxy(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService
) -> None:
    model_service.identity.header = "the-platforms-own-secret"
    model_service.require_issued_token = True
    app = functions_app(
        env=app_settings
        | {
            "IDENTITY_ENDPOINT": model_service.identity_url,
            "IDENTITY_HEADER": "the-platforms-own-secret",
            "AZURE_OPENAI_TOKEN_SCOPE": "https://cognitiveservices.azure.com/.default",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
    )
    async with app.client() as client:
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200
    assert len(model_service.identity.calls) == 1


@own_host("its own requests to the worker go through the environment's proxy")
async def test_a_proxy_that_leads_to_the_model_service_is_named(
    functions_app: Callable[..., HostedApp], model_service: ModelService
) -> None:
    """The model service takes the proxy's part as well: it answers for any host."""
    proxy = f"http://127.0.0.1:{model_service.port}"
    settings = {
        "AZURE_OPENAI_ENDPOINT": "http://model.example.com/v1/",
        "AZURE_OPENAI_DEPLOYMENTS": DEFAULT_DEPLOYMENT,
        "HTTP_PROXY": proxy.replace("//", "//user:of-someone@"),
    }
    app = functions_app(env=settings)
    async with app.client() as client:
        assert (await client.post("/stream", json={"input": "x"})).status_code == 200
        (finding,) = (await client.get("/ready")).json()["backends"]
    assert (finding["ready"], finding["proxy"]) == (True, proxy)
    lines = [json.loads(line.removeprefix("[worker] ")) for line in app.output.splitlines() if '"proxy"' in line]
    assert lines == [{"event": "proxy", "relay.proxy": proxy}]
    assert "of-someone" not in app.output


@own_host("its own requests to the worker go through the environment's proxy")
async def test_a_proxy_that_can_not_be_reached_is_named(
    functions_app: Callable[..., HostedApp], model_service: ModelService
) -> None:
    settings = {
        "AZURE_OPENAI_ENDPOINT": "http://model.example.com/v1/",
        "AZURE_OPENAI_DEPLOYMENTS": DEFAULT_DEPLOYMENT,
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    async with httpx.AsyncClient(base_url=functions_app(env=settings).url) as client:
        (finding,) = (await client.get("/ready")).json()["backends"]
    assert not finding["ready"]
    assert finding["proxy"] == "http://127.0.0.1:9"
    for text in ("the proxy http://127.0.0.1:9", "NO_PROXY"):
        assert text in finding["remedy"]
