"""What the app adds to a request is taken back where a deployment refuses it, on each wire: the caller gets an answer.

The model service is simulated and not Azure's, so that the output limit goes under both of its names.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from local.model_service import ModelService
from tests.end_to_end.hosting import HostedApp, eventually

KINDS: Final = ("stream", "document", "openai stream", "openai document")
CAP: Final = 16384
NEW, OLD = LIMITS = ("max_completion_tokens", "max_tokens")
TEXT: Final = "one two three"
DEPLOYMENTS: Final = 120


@pytest.fixture(scope="module")
def unused_deployments() -> Iterator[str]:
    """Deployments that no request has named yet."""
    return iter([f"d{number}" for number in range(DEPLOYMENTS)])


@pytest.fixture(scope="module")
def app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    deployments = ",".join(f"d{number}" for number in range(DEPLOYMENTS))
    return functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": deployments})


@pytest.fixture
async def client(app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    model_service.answer(["one", " two", " three"])
    async with app.client() as client:
        yield client


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def send(client: httpx.AsyncClient, kind: str, deployment: str, **members: Any) -> httpx.Response:
    stream = kind.endswith("stream")
    if kind.startswith("openai"):
        messages = [{"role": "user", "content": members.pop("input", "x")}]
        body: dict[str, Any] = {"model": deployment, "messages": messages, "stream": stream}
        return await client.post("/v1/chat/completions", json=body | members)
    return await client.post("/stream", json={"model": deployment, "input": "x", "stream": stream} | members)


def text_of(response: httpx.Response) -> str:
    """The text of a complete answer, whatever its wire."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("application/json"):
        document = response.json()
        return str(document["choices"][0]["message"]["content"] if "choices" in document else document["text"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]" or "\nevent: done\n" in response.text, "the stream is not complete"
    parts = []
    for event in events[:-1]:
        data = json.loads(event)
        parts.append(
            data["text"] if "text" in data else "".join(it["delta"].get("content") or "" for it in data["choices"])
        )
    return "".join(parts)


def sent(model_service: ModelService) -> list[dict[str, Any]]:
    """What the app decided in each request."""
    decided = (*LIMITS, "stream_options")
    return [{name: it.body[name] for name in decided if name in it.body} for it in model_service.requests]


async def logged(app: HostedApp, deployment: str) -> list[dict[str, Any]]:
    """The log's lines about a deployment: the record of its streams apart."""
    lines = [line.removeprefix("[worker] ") for line in app.output.splitlines() if '"relay.backend"' in line]
    return [it for it in map(json.loads, lines) if it["relay.backend"] == deployment]


USAGE: Final = {"include_usage": True}
# The fault, and the additions of the second request, and of those that follow it.
REFUSALS: Final[dict[str, tuple[set[str], int]]] = {
    "no-stream-options": ({"stream_options"}, CAP),
    "no-stream-options-event": ({"stream_options"}, CAP),
    "no-max-completion-tokens": ({NEW}, CAP),
    "one-limit": ({OLD}, CAP),
    "limit-12288": (set(), 12288),
}


@pytest.mark.parametrize("fault", REFUSALS)
async def test_a_refused_addition_is_taken_back_and_remembered(
    app: HostedApp,
    client: httpx.AsyncClient,
    model_service: ModelService,
    unused_deployments: Iterator[str],
    kind: str,
    fault: str,
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = fault
    refused, limit = REFUSALS[fault]
    usage = {} if kind == "openai document" else {"stream_options": USAGE}
    if kind == "openai document" and "stream_options" in refused:
        refused = set()
    assert text_of(await send(client, kind, deployment)) == TEXT
    assert text_of(await send(client, kind, deployment)) == TEXT
    whole = {NEW: CAP, OLD: CAP, **usage}
    accepted = {
        name: min(value, limit) if name in LIMITS else value for name, value in whole.items() if name not in refused
    }
    expected = [accepted] * 2 if accepted == whole else [whole, accepted, accepted]
    assert sent(model_service) == expected
    if accepted != whole:
        await eventually(lambda: app.output.count(f'"relay.backend":"{deployment}"') >= 3)
        lines = await logged(app, deployment)
        events = [it for it in lines if it["event"] == "refused_additions"]
        names = [*refused] if limit == CAP else ["an output limit above 12288"]
        assert [it["relay.refused_additions"] for it in events] == [names], "it is logged once"
        records = [it for it in lines if it["event"] == "stream"]
        assert [it["relay.attempts"] for it in records] == [2, 1]
        assert len(records[0]["relay.refusals"]) == 1
        estimated = "stream_options" in refused
        assert [it.get("relay.usage_estimated", False) for it in records] == [estimated] * 2


async def test_a_limit_without_room_is_left_out_for_this_request_only(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str], kind: str
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "context-16900"
    assert text_of(await send(client, kind, deployment, input="x" * 4000)) == TEXT
    assert text_of(await send(client, kind, deployment, input="x")) == TEXT
    assert [sorted(it.keys() & set(LIMITS)) for it in sent(model_service)] == [[NEW, OLD], [], [NEW, OLD]]


async def test_a_prompt_that_does_not_fit_is_the_callers(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str], kind: str
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "context-100"
    response = await send(client, kind, deployment, input="x" * 4000)
    assert response.status_code == 400
    assert "max_" not in response.text
    assert len(model_service.requests) == 2


async def test_a_cap_that_is_ignored_under_one_name_caps_under_the_other(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService, kind: str
) -> None:
    deployment = "fault-ignores-max-completion-tokens"
    model_service.answer(["one", " two", " three"])
    app = functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": deployment, "MAX_OUTPUT_TOKENS": "2"})
    async with app.client() as client:
        assert text_of(await send(client, kind, deployment)) == "one two"
        if kind.startswith("openai"):
            assert text_of(await send(client, kind, deployment, **{NEW: 100})) == "one two"
            assert text_of(await send(client, kind, deployment, **{NEW: 1})) == "one"
        else:
            assert text_of(await send(client, kind, deployment, max_output_tokens=100)) == "one two"
            assert text_of(await send(client, kind, deployment, max_output_tokens=1)) == "one"


async def test_a_limit_of_the_callers_keeps_its_value_under_another_name(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str]
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "no-max-completion-tokens"
    for _ in range(2):
        assert text_of(await send(client, "stream", deployment, max_output_tokens=2)) == "one two"
    assert [it.get(OLD) for it in sent(model_service)] == [2, 2, 2]


REFUSED_OF_THE_CALLER: Final = {
    "no-stream-options": {"stream_options": USAGE},
    "no-max-completion-tokens": {NEW: 100},
    "limit-12288": {OLD: 13000},
    "context-8192": {NEW: 16000},
}


@pytest.mark.parametrize("fault", REFUSED_OF_THE_CALLER)
async def test_what_the_caller_sent_is_the_callers(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str], fault: str
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = fault
    response = await send(client, "openai stream", deployment, **REFUSED_OF_THE_CALLER[fault])
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert len(model_service.requests) == 1


async def test_a_field_of_the_callers_is_named(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str]
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "limit-12288"
    problem = (await send(client, "stream", deployment, max_output_tokens=13000)).json()
    assert [it["field"] for it in problem["errors"]] == ["max_output_tokens"]
    assert len(model_service.requests) == 1


async def test_a_limit_above_the_cap_is_lowered_further(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str]
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "limit-12288"
    assert text_of(await send(client, "openai stream", deployment, **{OLD: 100_000})) == TEXT
    assert [it[OLD] for it in sent(model_service)] == [CAP, 12288]


async def test_several_refusals_of_one_request(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str], kind: str
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "no-stream-options+no-max-completion-tokens+limit-100"
    assert text_of(await send(client, kind, deployment)) == TEXT
    assert text_of(await send(client, kind, deployment)) == TEXT
    times = 3 if kind == "openai document" else 4
    assert sent(model_service)[times - 1 :] == [{OLD: 100}] * 2


async def test_concurrent_requests_learn_each_for_itself(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str]
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "no-stream-options+one-limit"
    answers = await asyncio.gather(*(send(client, kind, deployment) for kind in KINDS * 5))
    assert {text_of(answer) for answer in answers} == {TEXT}
    model_service.requests.clear()
    assert text_of(await send(client, "stream", deployment)) == TEXT
    assert sent(model_service) == [{NEW: CAP}]


async def test_one_large_request_takes_the_model_from_no_one(
    client: httpx.AsyncClient, model_service: ModelService, unused_deployments: Iterator[str], kind: str
) -> None:
    deployment = next(unused_deployments)
    model_service.faults[deployment] = "429-large-1000-60"
    large = await send(client, kind, deployment, input="x" * 2000)
    assert (large.status_code, large.headers["retry-after"]) == (429, "60")
    for _ in range(3):
        assert text_of(await send(client, kind, deployment)) == TEXT
