"""The requests of clients that are no package to run here, in the shapes that their public sources and users report.

- Open WebUI: `backend/open_webui/routers/openai.py` in open-webui/open-webui: a connection of OpenAI's kind, of Azure's
  kind, and one of the Responses API.
- Cursor: its models with a custom address; reports in cursor/cursor#635, cursor/cursor#1640 and BerriAI/litellm#34029.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from target import MODEL, PARAMETERS, PROMPT, REASONING, TEXT, URL

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
FUNCTION = {"name": "read_file", "description": "Reads a file.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
OPEN_WEBUI = {
    "Authorization": "Bearer unused",
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "Rosa%20Example",
    "X-OpenWebUI-User-Id": "3f0c",
    "X-OpenWebUI-User-Email": "rosa@example.com",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "8d1e",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "User-Agent": "Python/3.11 aiohttp/3.13.2",
}
CURSOR = {
    "Authorization": "Bearer unused",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": "OpenAI/JS 4.93.0",
    "X-Stainless-Lang": "js",
    "X-Stainless-Retry-Count": "0",
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(base_url=URL, timeout=30) as client:
        yield client


def chunks_of(answer: httpx.Response) -> list[Any]:
    """The chunks of a stream that ends as it has to."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [it.removeprefix("data: ") for it in answer.text.split("\n") if it.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def text_of(chunks: list[Any]) -> str:
    return "".join(it["choices"][0]["delta"].get("content") or "" for it in chunks if it["choices"])


def test_open_webui_verifies_a_connection(client: httpx.Client) -> None:
    answer = client.get("/v1/models", headers=OPEN_WEBUI)
    assert MODEL in [it["id"] for it in answer.json()["data"]]
    # With Azure's kind of connection:
    answer = client.get("/openai/models?api-version=2023-03-15-preview", headers=OPEN_WEBUI | {"api-key": "unused"})
    assert MODEL in [it["id"] for it in answer.json()["data"]]


def test_open_webui_chats(client: httpx.Client) -> None:
    body = {
        "stream": True,
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "User Context:\n\n"},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
            {"role": "assistant", "content": "A picture."},
            {"role": "user", "content": PROMPT},
        ],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 2000,
        "frequency_penalty": 0.1,
        "seed": 42,
        "stop": ["<end>"],
        "stream_options": {"include_usage": True},
    }
    chunks = chunks_of(client.post("/v1/chat/completions", headers=OPEN_WEBUI, json=body))
    assert text_of(chunks) == TEXT
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_open_webui_chats_with_a_reasoning_model(client: httpx.Client) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    body = {
        "stream": True,
        "model": REASONING,
        "messages": messages,
        "max_completion_tokens": 2000,
        "reasoning_effort": "low",
    }
    assert text_of(chunks_of(client.post("/v1/chat/completions", headers=OPEN_WEBUI, json=body))) == TEXT


def test_open_webui_asks_for_a_title(client: httpx.Client) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": '### Task:\nAnswer in JSON: { "title": "your title" }'}],
        "stream": False,
        "max_completion_tokens": 1000,
    }
    answer = client.post("/v1/chat/completions", headers=OPEN_WEBUI, json=body)
    assert answer.json()["choices"][0]["message"]["content"]


def test_open_webui_calls_a_tool(client: httpx.Client) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Read 'a.txt'"}], "tools": TOOLS}
    chunks = chunks_of(client.post("/v1/chat/completions", headers=OPEN_WEBUI, json=body | {"stream": True}))
    deltas = [it["choices"][0]["delta"] for it in chunks if it["choices"]]
    pieces = [delta["tool_calls"][0] for delta in deltas if delta.get("tool_calls")]
    arguments = "".join(it["function"]["arguments"] for it in pieces)
    call = {"index": 0, "id": pieces[0]["id"], "function": {"name": "read_file", "arguments": arguments}}
    body["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [call | {"type": "function"}]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Rain."},
    ]
    answer = text_of(chunks_of(client.post("/v1/chat/completions", headers=OPEN_WEBUI, json=body | {"stream": True})))
    assert "The tool returned: Rain." in answer


def test_open_webui_chats_at_azures_address(client: httpx.Client) -> None:
    path = f"/openai/deployments/{MODEL}/chat/completions?api-version=2024-10-21"
    body = {
        "stream": True,
        "messages": [{"role": "user", "content": PROMPT}],
        "stream_options": {"include_usage": True},
    }
    headers = OPEN_WEBUI | {"api-key": "unused", "api-version": "2024-10-21"}
    assert text_of(chunks_of(client.post(path, headers=headers, json=body))) == TEXT


def test_open_webui_embeds(client: httpx.Client) -> None:
    body = {"model": "text-embedding-3-small", "input": ["a part", "another"]}
    answer = client.post("/v1/embeddings", headers=OPEN_WEBUI, json=body)
    assert [len(it["embedding"]) for it in answer.json()["data"]] == [1536, 1536]


def test_open_webui_uses_responses(client: httpx.Client) -> None:
    content = [{"type": "input_text", "text": PROMPT}]
    body = {
        "model": MODEL,
        "input": [{"type": "message", "role": "user", "content": content}],
        "instructions": "Be brief.",
        "stream": True,
        "max_output_tokens": 2000,
    }
    answer = client.post("/v1/responses", headers=OPEN_WEBUI, json=body)
    assert answer.status_code == 200, answer.text
    assert "event: response.completed" in answer.text


def test_cursor_verifies_a_key(client: httpx.Client) -> None:
    messages = [
        {"role": "system", "content": "You are a test assistant."},
        {"role": "user", "content": "Testing. Just say hi and nothing else."},
    ]
    for path in ("/v1/chat/completions", f"/openai/deployments/{MODEL}/chat/completions"):
        answer = client.post(path, headers=CURSOR, json={"messages": messages, "model": MODEL})
        assert answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", [MODEL, REASONING])
def test_cursor_chats(client: httpx.Client, model: str) -> None:
    body: dict[str, Any] = {
        "user": "google-oauth2|user_01",
        "messages": [{"role": "system", "content": "You are a coding assistant."}, {"role": "user", "content": PROMPT}],
        "model": model,
        "temperature": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": TOOLS,
        "tool_choice": "none",
    }
    chunks = chunks_of(client.post("/v1/chat/completions", headers=CURSOR, json=body))
    assert text_of(chunks) == TEXT


def test_cursor_sends_the_body_of_a_response_to_chat_completions(client: httpx.Client) -> None:
    """What its agent sends, whatever API the address has: it expects chunks of chat completions for it."""
    body = {
        "user": "google-oauth2|user_01",
        "model": MODEL,
        "input": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "medium", "summary": "auto"},
    }
    answer = client.post("/v1/chat/completions", headers=CURSOR, json=body)
    assert answer.status_code == 200, answer.text
