"""The simulated model service's embeddings over a real socket."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from local.model_service import ModelService, faults
from tests.model_service_requests import example_of, read_until_broken

MODEL = "text-embedding-3-small"


@pytest.fixture
async def service() -> AsyncIterator[ModelService]:
    async with ModelService(tokens_per_second=0) as running:
        yield running


@pytest.fixture
async def client(service: ModelService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=service.url, api_key="k", max_retries=0) as connected:
        yield connected


async def embed(service: ModelService, body: Any, path: str = "/openai/v1/embeddings") -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession(headers={"api-key": "k"}) as http,
        http.post(service.origin + path, json=body) as response,
    ):
        return response.status, await response.json()


async def test_each_input_has_its_unit_vector(service: ModelService, client: openai.AsyncOpenAI) -> None:
    made = await client.embeddings.create(model=MODEL, input=["a river", "a garden", "a river"])
    assert [one.index for one in made.data] == [0, 1, 2]
    first, second, again = (one.embedding for one in made.data)
    assert len(first) == 1536
    assert math.hypot(*first) == pytest.approx(1, abs=1e-6)
    assert first == again != second
    assert abs(sum(a * b for a, b in zip(first, second, strict=True))) < 0.2
    assert made.usage.prompt_tokens == made.usage.total_tokens == 6
    assert made.model == MODEL
    assert (service.requests[0].ended, service.requests[0].deployment) == ("complete", MODEL)


async def test_formats_and_dimensions(service: ModelService, client: openai.AsyncOpenAI) -> None:
    whole = (await client.embeddings.create(model=MODEL, input="x", encoding_format="float")).data[0].embedding
    # The official client asks for base64 when no format is given, and decodes it.
    assert list((await client.embeddings.create(model=MODEL, input="x")).data[0].embedding) == whole
    assert service.requests[1].body["encoding_format"] == "base64"
    short = (await client.embeddings.create(model=MODEL, input="x", dimensions=8)).data[0].embedding
    length = math.hypot(*whole[:8])
    assert short == pytest.approx([value / length for value in whole[:8]], abs=1e-6)
    large = await client.embeddings.create(model="text-embedding-3-large", input="x")
    assert len(large.data[0].embedding) == 3072
    status, document = await embed(service, {"model": MODEL, "input": "x"})
    CreateEmbeddingResponse.model_validate(document, strict=True)
    assert (status, type(document["data"][0]["embedding"])) == (200, list)


async def test_tokens_as_input(client: openai.AsyncOpenAI) -> None:
    one = await client.embeddings.create(model=MODEL, input=[1, 2, 3])
    assert (len(one.data), one.usage.prompt_tokens) == (1, 3)
    two = await client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]])
    assert (len(two.data), two.usage.prompt_tokens) == (2, 4)
    assert two.data[0].embedding == one.data[0].embedding


@pytest.mark.parametrize(
    ("members", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "input"),
        ({"input": ""}, 400, None, "input"),
        ({"input": []}, 400, None, "input"),
        ({"input": ["x", ""]}, 400, None, "input"),
        ({"input": 7}, 400, "invalid_type", "input"),
        ({"input": ["x", 7]}, 400, "invalid_type", "input"),
        ({"input": ["x", [7]]}, 400, "invalid_type", "input"),
        ({"input": "x", "dimensions": "many"}, 400, "invalid_type", "dimensions"),
        ({"input": "x", "dimensions": 1537}, 400, "integer_above_max_value", "dimensions"),
        ({"input": "x", "dimensions": 8, "model": "text-embedding-ada-002"}, 400, None, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, 400, "invalid_type", "encoding_format"),
        ({"input": ["x"] * 2049}, 400, "array_above_max_length", "input"),
        ({"input": list(range(8193))}, 400, None, None),
        ({"input": [list(range(8000))] * 38}, 400, "max_tokens_per_request", "input"),
        ({"input": "x", "model": "gpt-5.4-mini"}, 400, "OperationNotSupported", None),
        ({"input": "x", "model": "a-missing-one"}, 404, "DeploymentNotFound", None),
        ({"input": "x", "model": "fault-no-finish"}, 400, "unknown_fault", "model"),
    ],
)
async def test_error_responses(
    service: ModelService, members: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    got, document = await embed(service, {"model": MODEL} | members)
    assert (got, document["error"]["code"], document["error"].get("param")) == (status, code, param)


async def test_the_limits_are_accepted(service: ModelService) -> None:
    assert (await embed(service, {"model": MODEL, "input": ["x"] * 2048, "dimensions": 1}))[0] == 200
    assert (await embed(service, {"model": MODEL, "input": list(range(8192)), "dimensions": 1536}))[0] == 200


async def test_the_dated_api(service: ModelService) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=service.origin, api_key="k", api_version="2024-10-21", max_retries=0
    ) as azure:
        assert len((await azure.embeddings.create(model=MODEL, input="x")).data) == 1
    assert service.requests[0].path == f"/openai/deployments/{MODEL}/embeddings"
    assert (await embed(service, {"input": "x"}, f"/openai/deployments/{MODEL}/embeddings"))[0] == 404


# Whole responses past the HTTP server are the same on every wire: `tests/test_model_service.py`.
@pytest.mark.parametrize(
    "fault", [fault for fault in faults.FAULTS.values() if fault.connection is None], ids=lambda fault: fault.name
)
async def test_every_fault_in_the_table(service: ModelService, fault: faults.Fault) -> None:
    name = example_of(fault)
    async with aiohttp.ClientSession() as http:
        body = {"model": name, "input": "x"}
        arrived, broken = await read_until_broken(http, service.url + "embeddings", body, {"api-key": "k"})
    await service.wait_for(lambda one: one.requests[0].ended != "open")
    record = service.requests[0]
    if "embeddings" not in fault.wires:
        assert b"unknown_fault" in arrived
        return
    assert record.fault == name
    assert broken == fault.name.startswith(("cut", "reset", "brotli"))
    if fault.error:
        assert record.ended == "fault"
    else:
        assert record.ended == ("fault" if fault.breaks else "complete")
        assert fault.breaks or len(json.loads(arrived)["data"]) == 1


async def test_a_caller_that_disconnects_is_noticed(service: ModelService) -> None:
    request = asyncio.create_task(embed(service, {"model": "fault-stall-headers", "input": "x"}))
    await service.wait_for(lambda it: it.open_requests)
    request.cancel()
    await service.wait_for(lambda it: it.requests[0].ended == "aborted")
