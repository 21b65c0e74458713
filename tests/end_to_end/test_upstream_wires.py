"""`POST /stream` on whichever wire a deployment has, and what each route does with a deployment of another wire."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx
import openai
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, ModelService, faults
from local.model_service.faults.step_changes import REASONING
from tests.end_to_end.answers import FORMATS, NDJSON, PLAIN, SSE, ReceivedAnswer, post_stream
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import (
    OUTCOMES,
    SILENCE_TIMEOUT,
    TEXT,
    TOKENS,
    Complete,
    Interrupted,
    Refused,
    check_completion,
    check_interruption,
    check_problem,
    text_of_fault,
)
from tests.end_to_end.test_responses_wire import FAILED, OF_THIS_WIRE, RawUpstream, upstream

__all__ = ("upstream",)

CODEX: Final = "gpt-5.4-codex"  # a model without chat completions
EMBEDDINGS: Final = "text-embedding-3-small"
IMAGE: Final = "data:image/png;base64,iVBORw0KGgo="

# What a caller of `/stream` receives for each fault of the Responses API: mostly what it does for that fault of chat
# completions. These also precede the terminal event, and no marker.
EXPECTED: Final[dict[str, Refused | Interrupted | Complete]] = {
    fault: outcome
    for fault, outcome in (
        OUTCOMES
        | OF_THIS_WIRE
        | {
            "400": OUTCOMES["400"],
            "refusal": OUTCOMES["refusal"],
            "length-midway": OUTCOMES["length-midway"],
            "filter-midway": OUTCOMES["filter-midway"],
            "no-deltas": Complete(),
            "no-output": Complete(),
            "previous-unknown": Refused(400, "previous_response_not_found"),
            "failed-null": Interrupted(502, "upstream_error"),
            "invalid-utf8": Complete("".join("caf\ufffd \ufffd\ufffd" + token for token in [*TOKENS, ""])),
            "lone-surrogate": Complete("".join("\ud83d" + token for token in [*TOKENS, ""])),
        }
        | {name: Interrupted(502, "upstream_error") for name in FAILED.values()}
        | {name: Interrupted(400, "invalid_request") for name in FAILED.values() if "server" not in name}
        | {"failed-vector-store-timeout": Interrupted(502, "upstream_error")}
        | {"failed-rate-limit-exceeded": Interrupted(429, "rate_limited")}
    ).items()
    if all("responses" in injection.fault.wires for injection in faults.parse(fault))
}


@pytest.fixture(scope="module")
def app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with deployments of each wire, and one by the Responses API for each fault."""
    deployments: list[dict[str, Any]] = [
        {"deployment": "first", "model": "mixed", "priority": 1},
        {"deployment": "second", "model": "mixed", "priority": 2, "wire": "responses"},
        {"deployment": DEFAULT_DEPLOYMENT, "wire": "responses"},
        {"deployment": "a-chat-model"},
        {"deployment": CODEX, "wire": "responses"},
        {"deployment": CODEX, "model": "stated-wrongly", "name": "stated-wrongly"},
        {"deployment": EMBEDDINGS, "wire": "embeddings"},
        *({"deployment": fault, "wire": "responses"} for fault in EXPECTED),
    ]
    endpoint = {"endpoint": app_settings["AZURE_OPENAI_ENDPOINT"]}
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": json.dumps([endpoint | it for it in deployments]),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": "10",
            "MAX_OUTPUT_TOKENS": "1000000",
        }
    )


@pytest.fixture
async def client(app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    async with app.client() as client:
        yield client


async def test_an_answer_by_the_responses_api(client: httpx.AsyncClient, model_service: ModelService) -> None:
    members = {
        "input": [
            {"role": "user", "content": "say: one"},
            {"role": "user", "content": [{"type": "input_text", "text": "say: two"}]},
        ],
        "instructions": "Be brief.",
        "max_output_tokens": 50,
    }
    for media_type in FORMATS:
        received = await post_stream(client, media_type, members, model=DEFAULT_DEPLOYMENT)
        assert (received.status, received.text, received.endings) == (200, "two", 1)
        if media_type != PLAIN:
            assert received.done is not None
            assert (received.done["finish_reason"], received.done["model"]) == ("stop", DEFAULT_DEPLOYMENT)
            assert received.done["id"].startswith("resp_")
            assert {"input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"} <= set(received.done["usage"])
    for record in model_service.requests:
        assert record.path.endswith("/responses")
        assert record.body == {
            **members,
            "model": DEFAULT_DEPLOYMENT,
            "stream": True,
            "store": False,
            "max_output_tokens": 50,
        }


async def test_a_failover_between_wires(client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.answer(TOKENS)
    for fault in ("500", "cut-first", "error-first"):
        model_service.requests.clear()
        model_service.faults = {"first": fault}
        received = await post_stream(client, SSE, model="mixed", stream=True)
        assert (received.text, received.endings) == (TEXT, 1)
        asked = [it.path.rpartition("/v1")[2] for it in model_service.requests]
        assert asked[-1] == "/responses", "the first one may be on probation"
    assert set(model_service.requests[-1].body) == {"model", "input", "stream", "store", "max_output_tokens"}


async def test_reasoning(client: httpx.AsyncClient, model_service: ModelService) -> None:
    model_service.faults["a-chat-model"] = "thinking"
    asked = {"input": "say: yes", "reasoning_summary": "concise", "reasoning_effort": "low"}
    of_responses = "**Considering the question**\n\nI look at what is asked, and at what is known about the question."
    for model, reasoning in ((DEFAULT_DEPLOYMENT, of_responses), ("a-chat-model", "".join(REASONING))):
        for media_type in FORMATS:
            received = await post_stream(client, media_type, asked, model=model)
            assert (received.status, received.text, received.endings) == (200, "yes", 1)
            assert received.reasoning == ("" if media_type == PLAIN else reasoning)
            without = await post_stream(client, media_type, {"input": "say: yes"}, model=model)
            assert (without.text, without.reasoning) == ("yes", "")
            assert b"reasoning" not in without.raw.replace(b'"reasoning_tokens"', b"")
    sent = [it.body for it in model_service.requests if "reasoning" in it.body or "reasoning_effort" in it.body]
    assert [it.get("reasoning") for it in sent] == [{"effort": "low", "summary": "concise"}] * 4 + [None] * 4


async def test_images(client: httpx.AsyncClient, model_service: ModelService) -> None:
    content = [
        {"type": "input_text", "text": "say: a cat"},
        {"type": "input_image", "image_url": IMAGE},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
    ]
    for model in (DEFAULT_DEPLOYMENT, "a-chat-model"):
        received = await post_stream(client, SSE, {"input": [{"role": "user", "content": content}]}, model=model)
        assert (received.status, received.text) == (200, "a cat")
    by_responses, by_chat = (it.body for it in model_service.requests)
    assert by_responses["input"][0]["content"] == [content[0], content[1] | {"detail": "auto"}, content[2]]
    assert by_chat["messages"][0]["content"] == [
        {"type": "text", "text": "say: a cat"},
        {"type": "image_url", "image_url": {"url": IMAGE}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
    ]


async def test_a_bad_image_is_the_callers(client: httpx.AsyncClient) -> None:
    """The model service tells; its own parameter is the caller's input."""
    content = [{"type": "input_image", "image_url": "data:image/png;base64,A"}]
    received = await post_stream(
        client, SSE, {"input": [{"role": "user", "content": content}]}, model=DEFAULT_DEPLOYMENT
    )
    assert (received.status, received.problem and received.problem["errors"]) == (
        400,
        [{"field": "input", "message": "is not accepted by this model; leave it out or change it"}],
    )


async def test_every_fault(client: httpx.AsyncClient, model_service: ModelService) -> None:
    """Of the Responses API: the caller learns the same as of chat completions."""
    model_service.answer(TOKENS)
    model_service.tokens_per_write = 3
    model_service.faults.update({fault: fault for fault in EXPECTED})
    gate = asyncio.Semaphore(6)

    async def ask(model: str) -> ReceivedAnswer:
        async with gate:
            return await post_stream(client, SSE, model=model)

    wrong = []
    for fault, received in zip(EXPECTED, await asyncio.gather(*map(ask, EXPECTED)), strict=True):
        try:
            check(EXPECTED[fault], received)
        except AssertionError as error:
            wrong.append(f"{fault}: {error}\n{received}")
    assert not wrong, "\n".join(wrong)
    await eventually(lambda: model_service.open_requests == 0)


def check(outcome: Refused | Interrupted | Complete, received: ReceivedAnswer) -> None:
    match outcome:
        case Refused():
            check_problem(received, outcome.status, outcome.code, outcome.retry_after)
        case Interrupted():
            check_interruption(received, SSE, outcome)
        case Complete():
            if received.done is not None:
                assert received.done["id"].startswith("resp_")
                received.done |= {"id": "chatcmpl-", "model": "gpt-5.4-mini-2026-03-17"}
            check_completion(received, SSE, outcome)


async def test_models_that_lack_an_api(app: HostedApp, client: httpx.AsyncClient) -> None:
    """Only a model of embeddings is refused here; the model service tells the rest."""
    models = [it["id"] for it in (await client.get("/v1/models")).json()["data"]]
    assert (models[0], models[-1]) == ("mixed", EMBEDDINGS)
    for url, body in (
        ("/stream", {"input": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/responses/input_tokens", {"input": "x"}),
    ):
        answer = await client.post(url, json=body | {"model": EMBEDDINGS})
        assert answer.status_code == 400
        assert "POST /v1/embeddings" in answer.text
        assert "model" in answer.text
    embeddings = await client.post("/v1/embeddings", json={"input": "x", "model": EMBEDDINGS})
    assert embeddings.status_code == 200
    chat = {"messages": [{"role": "user", "content": "say: x"}]}
    for model, status in ((CODEX, 400), (DEFAULT_DEPLOYMENT, 200)):
        answer = await client.post("/v1/chat/completions", json=chat | {"model": model})
        assert answer.status_code == status, answer.text
    assert (await client.post("/v1/responses", json={"input": "x", "model": "a-chat-model"})).status_code == 200


async def test_the_api_with_the_stated_wire_is_asked(client: httpx.AsyncClient, model_service: ModelService) -> None:
    await client.post("/v1/responses", json={"input": "x", "model": "mixed"})
    await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "model": "mixed"})
    assert [it.deployment for it in model_service.requests] == ["second", "first"]


async def test_ready_tells_which_wire_is_right(client: httpx.AsyncClient, model_service: ModelService) -> None:
    findings = {it["backend"].rpartition("/")[2]: it for it in (await client.get("/ready")).json()["backends"]}
    for name, wire in ((DEFAULT_DEPLOYMENT, "responses"), ("a-chat-model", "chat"), (CODEX, "responses")):
        assert (findings[name]["ready"], findings[name]["wire"]) == (True, wire)
    assert findings[EMBEDDINGS]["ready"]
    wrong = findings["stated-wrongly"]
    assert not wrong["ready"]
    assert 'set "wire": "responses" for it in the app setting AZURE_OPENAI_BACKENDS' in wrong["remedy"]
    assert sum(it.tokens for it in model_service.requests) == 0


async def test_counting_tokens(app: HostedApp, model_service: ModelService) -> None:
    async with openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="unused", max_retries=0) as client:
        counted = await client.responses.input_tokens.count(model=DEFAULT_DEPLOYMENT, input="How many tokens?")
    assert (counted.object, counted.input_tokens > 3) == ("response.input_tokens", True)
    (record,) = model_service.requests
    assert record.path.endswith("/responses/input_tokens")
    assert record.body == {"model": DEFAULT_DEPLOYMENT, "input": "How many tokens?"}


@pytest.mark.parametrize("after_output", [True, False])
async def test_the_address_in_a_failed_response_is_not_passed_on(
    app: HostedApp, upstream: RawUpstream, model_service_port: int, after_output: bool
) -> None:
    host = f"127.0.0.1:{model_service_port}"
    upstream.head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    created = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}
    delta = {"type": "response.output_text.delta", "delta": "Hello"}
    error = {"code": "invalid_prompt", "message": f"The request to http://{host}/v1 is bad ({host})."}
    failed = {"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "error": error}}
    events = [created, delta, failed] if after_output else [created, failed]
    upstream.writes = [b"data: %b\n\n" % json.dumps(it).encode() for it in events]
    async with app.client() as client:
        answer = await client.post("/v1/responses", json={"input": "x", "model": DEFAULT_DEPLOYMENT, "stream": True})
        streamed = await post_stream(client, NDJSON, model=DEFAULT_DEPLOYMENT)
    assert answer.status_code == (200 if after_output else 400)
    assert "is bad" in answer.text, "the words of the model service are passed on"
    assert "invalid_prompt" in answer.text
    for content in (answer.content, streamed.raw):
        assert str(model_service_port).encode() not in content
        assert b"127.0.0.1" not in content


def test_every_fault_of_the_wire_is_there() -> None:
    of_this_wire = {name for name, fault in faults.FAULTS.items() if "responses" in fault.wires}
    assert {faults.parse(name)[-1].fault.name for name in EXPECTED} == of_this_wire
    assert text_of_fault("refusal")
