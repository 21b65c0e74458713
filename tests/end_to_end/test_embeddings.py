"""`/v1/embeddings`: passed on byte for byte, failed over, recorded, and bounded."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx
import pytest

from local.model_service import ModelService, faults
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import SILENCE_TIMEOUT

URL: Final = "/v1/embeddings"
MODEL: Final = "text-embedding-3-large"
COMPLETE: Final = ("bytes", "split", "one-write")  # faults that change nothing but the reads
STATUS: Final = {
    "400": 400,
    "context-length": 400,
    "content-filter": 400,
    "404": 404,
    "408": 504,
    "504": 504,
    "stall-headers": 504,
    "stall-first": 504,
}


def refusal_of(fault: str) -> int:
    """The status that a client receives for a fault on each of the model's deployments."""
    return STATUS.get(fault, 429 if fault.startswith(("429", "error-stall", "error-trickle")) else 502)


FAULTS: Final = [name for name, fault in faults.FAULTS.items() if "embeddings" in fault.wires]


@pytest.fixture(scope="module")
def embedding_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a deployment for each fault, alone and before a good one of the same model."""
    endpoint = app_settings["AZURE_OPENAI_ENDPOINT"]
    backends = [{"endpoint": endpoint, "deployment": MODEL}]
    for fault in FAULTS:
        backends.append(
            {"endpoint": endpoint, "deployment": f"embedding-fault-{fault}/alone", "model": f"{fault}/alone"}
        )
        for priority, name in enumerate(("first", "second"), start=1):
            deployment = f"embedding-{fault}/{name}"
            entry: dict[str, Any] = {"endpoint": endpoint, "deployment": deployment, "model": f"{fault}/two"}
            backends.append(entry | {"priority": priority})
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": json.dumps(backends),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "FAILOVER_AFTER_SECONDS": "0.7",
        }
    )


@pytest.fixture
async def client(embedding_app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    async with embedding_app.client() as client:
        yield client


async def test_it_is_passed_on_as_it_came(
    embedding_app: HostedApp, client: httpx.AsyncClient, model_service: ModelService
) -> None:
    body = b'{"model":"%b","input":["gr\\u00fcn", "x"],"encoding_format":"base64","dimensions":8,"user":"u"}'
    answer = await client.post(URL, content=body % MODEL.encode())
    assert answer.headers["content-type"] == "application/json"
    direct = httpx.AsyncClient(headers={"api-key": "any"})
    async with direct:
        expected = await direct.post(
            model_service.url.rstrip("/").removesuffix("/openai/v1") + "/openai/v1/embeddings",
            content=body % MODEL.encode(),
        )
    assert answer.content == expected.content
    record = await eventually(lambda: embedding_app.stream_records().get(answer.headers["x-request-id"]))
    assert (record["gen_ai.operation.name"], record["gen_ai.request.model"]) == ("embeddings", MODEL)
    assert record["gen_ai.usage.input_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert record["gen_ai.usage.output_tokens"] == 0
    assert record["relay.bytes_sent"] == len(answer.content)


@pytest.mark.parametrize("encoding", ["base64", "float"])
async def test_a_large_batch(
    functions_app: Callable[..., HostedApp], app_settings: dict[str, str], model_service: ModelService, encoding: str
) -> None:
    body = {
        "model": MODEL,
        "input": [str(number) for number in range(2048)],  # as many as OpenAI takes
        "encoding_format": encoding,
        "dimensions": 128,  # 1.4 MB or more: a document that is not parsed
    }
    async with functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": MODEL}).client(timeout=60) as client:
        answer = await client.post(URL, json=body)
    assert answer.status_code == 200
    assert len(answer.content) > 2**20
    assert len(answer.json()["data"]) == 2048


async def test_a_request_that_is_wrong(client: httpx.AsyncClient, model_service: ModelService) -> None:
    for body, status, param in (
        ({"input": "x"}, 400, "model"),
        ({"model": MODEL}, 400, "input"),
        ({"model": "unknown", "input": "x"}, 404, None),
    ):
        answer = await client.post(URL, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert model_service.requests == []
    refused = await client.post(URL, json={"model": MODEL, "input": "x", "dimensions": 0})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_of_the_model_service(client: httpx.AsyncClient, model_service: ModelService, fault: str) -> None:
    model_service.faults[f"embedding-fault-{fault}/alone"] = fault
    model_service.faults[f"embedding-{fault}/first"] = fault
    alone, two = await asyncio.gather(
        *[
            # Short vectors: one of the faults sends each byte by itself.
            client.post(URL, json={"model": f"{fault}/{name}", "input": ["x", "y"], "dimensions": 64})
            for name in ("alone", "two")
        ]
    )
    if fault in COMPLETE:
        assert (alone.status_code, two.status_code) == (200, 200)
        return
    if alone.status_code != 200:
        assert alone.status_code == refusal_of(fault), alone.text
        assert alone.json()["error"]["code"]
    # What is wrong with the request is so everywhere; and once the headers are there, silence ends the request.
    final = refusal_of(fault) in (400, 404) or fault == "stall-first"
    assert two.status_code == (refusal_of(fault) if final else 200), two.text
    if two.status_code == 200:
        assert [item["index"] for item in two.json()["data"]] == [0, 1]
    await eventually(lambda: model_service.open_requests == 0)
