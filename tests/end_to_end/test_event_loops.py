"""The app on uvloop, as on the platform, and on the standard library's event loop: a few requests of each kind."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.answers import SSE, post_stream
from tests.end_to_end.hosting import HostedApp, eventually, own_host

INSPECTED_APP: Final = Path(__file__).with_name("inspected_app")


@pytest.fixture(scope="module", params=["uvloop", pytest.param("asyncio", marks=own_host("LOCAL_EVENT_LOOP"))])
def event_loop_app(
    request: pytest.FixtureRequest, functions_app: Callable[..., HostedApp], model_service_port: int
) -> HostedApp:
    """The app with `GET /inspect` and two backends for one model."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="there is no uvloop for this operating system")
    endpoint = f"http://127.0.0.1:{model_service_port}/openai/v1/"
    backends = [
        {"endpoint": endpoint, "deployment": DEFAULT_DEPLOYMENT},
        {"endpoint": endpoint, "deployment": MANUAL_PACE},
        {"endpoint": endpoint, "deployment": "first", "model": "pooled"},
        {"endpoint": endpoint, "deployment": "second", "model": "pooled"},
    ]
    env = {"AZURE_OPENAI_BACKENDS": json.dumps(backends), "LOCAL_EVENT_LOOP": request.param}
    return functions_app(env=env, script_root=INSPECTED_APP)


@pytest.fixture
async def loop_client(event_loop_app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this app."""
    async with event_loop_app.client() as client:
        yield client


async def inspect(client: httpx.AsyncClient) -> dict[str, Any]:
    """What exists in the worker process."""
    return dict((await client.get("/inspect")).json())


async def test_event_loop_and_tasks(
    loop_client: httpx.AsyncClient, event_loop_app: HostedApp, request: pytest.FixtureRequest
) -> None:
    state = await inspect(loop_client)
    assert state["event_loop"] == request.node.callspec.params["event_loop_app"]
    assert state["task_type"] == "InvocationTask", "the platform's worker has a task factory"


async def test_stream(loop_client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["The", " quick", " fox"])
    model_service.release(3)
    received = await post_stream(loop_client, SSE, model=MANUAL_PACE)
    assert received.text == "The quick fox"
    assert received.done is not None
    assert received.done["usage"]["output_tokens"] == 3


async def test_disconnect(loop_client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.release()
    body = {"input": "x", "model": MANUAL_PACE}
    async with loop_client.stream("POST", "/stream", json=body) as response:
        await anext(response.aiter_raw())
        assert model_service.open_requests == 1
    await model_service.wait_for(lambda service: service.open_requests == 0, timeout=10)  # less than the ping interval
    assert [record.ended for record in model_service.requests] == ["aborted"]

    async def nothing_remains() -> bool:
        return not any((await inspect(loop_client))["objects"].values())

    await eventually(nothing_remains)


async def test_failover(loop_client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(["The", " quick", " fox"])
    model_service.faults["first"] = "cut-first"
    received = await post_stream(loop_client, SSE, model="pooled")
    assert received.text == "The quick fox"
    assert received.done
    assert [record.deployment for record in model_service.requests] == ["first", "second"]


async def test_openai_client(event_loop_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer(["The", " quick", " fox"])
    messages: Any = [{"role": "user", "content": "Say something."}]
    async with openai.AsyncOpenAI(base_url=event_loop_app.url + "/v1", api_key="unused", max_retries=0) as client:
        chunks = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=messages, stream=True)
        texts = [choice.delta.content or "" async for chunk in chunks for choice in chunk.choices]
        document = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=messages)
    assert "".join(texts) == document.choices[0].message.content == "The quick fox"
