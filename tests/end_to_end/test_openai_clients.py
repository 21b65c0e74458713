"""Real clients of OpenAI's wire, unchanged, against an app that wants its function key.

The official Python client is the one that the app itself has pinned; the npm one is installed from `clients/`.
LangChain, litellm and llm take a minute or more to install: they are tried where CLIENTS=1 is set.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from pydantic import BaseModel

from local.model_service import BY_HAND, DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import HostedApp, bare_environment, eventually

CLIENTS: Final = Path(__file__).with_name("clients")
KEY: Final = "the-function-key"
SAID: Final = "Grün 🌿 is\na colour, and \u2028 so on."
PROMPT: Final = f"say: {SAID}"
MESSAGES: Final[Any] = [{"role": "user", "content": PROMPT}]
WEATHER: Final[Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FAULTS: Final = {
    "fault-400": (openai.BadRequestError, 400, "invalid_value"),
    "fault-context-length": (openai.BadRequestError, 400, "context_length_exceeded"),
    "fault-content-filter": (openai.BadRequestError, 400, "content_filter"),
    "fault-404": (openai.NotFoundError, 404, "model_not_found"),
    "fault-429-7": (openai.RateLimitError, 429, "rate_limited"),
    "fault-401": (openai.InternalServerError, 502, "upstream_auth"),
    "fault-500": (openai.InternalServerError, 502, "upstream_error"),
    "fault-503": (openai.InternalServerError, 502, "upstream_error"),
    "fault-504": (openai.InternalServerError, 504, "upstream_timeout"),
    "none-of-ours": (openai.NotFoundError, 404, "model_not_found"),
}
MIDWAY: Final = {
    "fault-cut-midway": "upstream_interrupted",
    "fault-error-midway": "upstream_error",
    "fault-garbage-midway": "upstream_error",
}


@pytest.fixture(scope="module")
def locked_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with its key checked, and a deployment for each fault."""
    deployments = [DEFAULT_DEPLOYMENT, BY_HAND, *FAULTS, *MIDWAY, "fault-429-1", "busy", "busy-ms", "busy-date", "down"]
    deployments.remove("none-of-ours")
    env = app_settings | {"AZURE_OPENAI_DEPLOYMENTS": ",".join(deployments), "MAX_BODY_BYTES": "100000"}
    return functions_app(env=env, key=KEY, fresh=True)


@pytest.fixture
async def client(locked_app: HostedApp, model_service: ModelService) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, as the README shows it; it does not try again by itself."""
    async with openai.AsyncOpenAI(
        base_url=locked_app.url + "/v1", api_key="unused", default_headers={"x-functions-key": KEY}, max_retries=0
    ) as client:
        yield client


# ── The official Python client ───────────────────────────────────────────────────────────────────────────────────────


async def test_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
    assert answer.choices[0].message.content == SAID
    assert answer.usage is not None
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, n=2
        )
    ]
    for index in (0, 1):
        deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(deltas) == SAID
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    async for chunk in await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True):
        assert chunk.usage is None


async def test_without_asyncio(locked_app: HostedApp, model_service: ModelService) -> None:
    def ask() -> tuple[str | None, str, list[str]]:
        with openai.OpenAI(
            base_url=locked_app.url + "/v1", api_key="unused", default_headers={"x-functions-key": KEY}, max_retries=0
        ) as client:
            whole = client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
            streamed = ""
            for chunk in client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True):
                streamed += chunk.choices[0].delta.content or "" if chunk.choices else ""
            return whole.choices[0].message.content, streamed, [model.id for model in client.models.list()]

    whole, streamed, models = await asyncio.to_thread(ask)
    assert whole == streamed == SAID
    assert models[:2] == [DEFAULT_DEPLOYMENT, BY_HAND]


async def test_tools_and_the_stream_helper(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, tools=[WEATHER], stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert final.usage is not None
    asked: Any = [*MESSAGES, final.choices[0].message.to_dict()]
    asked.append({"role": "tool", "tool_call_id": call.id, "content": "Rain."})
    answer = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=asked, tools=[WEATHER])
    assert answer.choices[0].message.content
    async with client.chat.completions.stream(model=DEFAULT_DEPLOYMENT, messages=MESSAGES) as stream:
        words = "".join([event.delta async for event in stream if event.type == "content.delta"])
    assert words == SAID


async def test_structured_output(client: openai.AsyncOpenAI) -> None:
    class City(BaseModel):
        name: str
        people: int

    parsed = await client.chat.completions.parse(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    async with client.chat.completions.stream(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, response_format=City
    ) as stream:
        assert isinstance((await stream.get_final_completion()).choices[0].message.parsed, City)


async def test_the_raw_response(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, extra_headers={"X-Request-Id": "my-own-request"}
    )
    assert raw.status_code == 200
    assert raw.request_id == "my-own-request"
    assert raw.parse().choices[0].message.content == SAID
    async with client.chat.completions.with_streaming_response.create(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", FAULTS)
async def test_which_failure_raises_what(client: openai.AsyncOpenAI, model: str, *, stream: bool) -> None:
    kind, status, code = FAULTS[model]
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(model=model, messages=MESSAGES, stream=stream)
    error: Any = raised.value
    assert type(error) is kind
    assert (error.status_code, error.code) == (status, code)
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.message
    if model == "fault-429-7":
        assert int(error.response.headers["retry-after"]) in range(1, 8)
    if model == "fault-content-filter":
        assert error.body["innererror"]["content_filter_result"]["violence"]["filtered"] is True
    if model == "fault-400":
        assert (error.type, error.param) == ("invalid_request_error", "messages")


async def test_failures_of_the_request_itself(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(default_headers={"x-functions-key": "wrong"}).models.list()
    with pytest.raises(openai.APIStatusError) as too_large:
        await client.chat.completions.create(
            model=DEFAULT_DEPLOYMENT, messages=[{"role": "user", "content": "x" * 100_000}]
        )
    assert too_large.value.status_code == 413
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, max_tokens=0)
    assert wrong.value.param == "max_tokens"


@pytest.mark.parametrize("model", MIDWAY)
async def test_a_failure_midway_is_raised_in_the_stream(client: openai.AsyncOpenAI, model: str) -> None:
    words = ""
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)

    async def read() -> None:
        nonlocal words
        async for chunk in stream:
            words += chunk.choices[0].delta.content or "" if chunk.choices else ""

    with pytest.raises(openai.APIError) as raised:
        await read()
    assert SAID.startswith(words)
    assert words
    assert raised.value.code == MIDWAY[model]


@pytest.mark.parametrize(("model", "fault"), [("busy", "429-1"), ("busy-ms", "429-ms-600"), ("busy-date", "429-date")])
async def test_the_client_waits_as_long_as_it_is_told(
    client: openai.AsyncOpenAI, model_service: ModelService, model: str, fault: str
) -> None:
    model_service.faults[model] = [fault]
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await client.with_options(max_retries=1).chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].message.content == SAID
    assert 0.5 < loop.time() - began < 4
    assert len(model_service.requests) == 2


async def test_the_client_tries_again_when_the_model_failed(
    client: openai.AsyncOpenAI, model_service: ModelService
) -> None:
    model_service.faults["down"] = ["500", "cut-headers", None]
    stream = await client.with_options(max_retries=2).chat.completions.create(
        model="down", messages=MESSAGES, stream=True
    )
    words = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(words) == SAID


async def test_a_client_that_stops_reading_ends_the_upstream(
    client: openai.AsyncOpenAI, model_service: ModelService
) -> None:
    model_service.release(3)
    async with await client.chat.completions.create(model=BY_HAND, messages=MESSAGES, stream=True) as stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
    await eventually(lambda: model_service.open_requests == 0)
    assert model_service.requests[0].ended == "aborted"


# ── Clients of other kinds, in processes of their own ────────────────────────────────────────────────────────────────


def installed(name: str, pins: tuple[str, ...], install: Callable[[Path], list[list[str]]]) -> Path:
    """A folder in this environment's own with what `pins` (files of `clients/`) name; made once for each content."""
    digest = hashlib.sha256(b"".join((CLIENTS / pin).read_bytes() for pin in pins)).hexdigest()
    folder = Path(sys.prefix) / f"clients-{name}"
    mark = folder / ".made-of"
    if not mark.exists() or mark.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for pin in pins:
            shutil.copy(CLIENTS / pin, folder)
        for command in install(folder):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"{command[0]} can't install {name}: {(done.stderr or done.stdout)[-300:]}")
        mark.write_text(digest)
    return folder


async def run(app: HostedApp, *command: str, cwd: Path, **more: str) -> str:
    environment = bare_environment(
        {"RELAY_URL": app.url, "RELAY_KEY": KEY, "RELAY_MODEL": DEFAULT_DEPLOYMENT, "RELAY_PROMPT": PROMPT} | more
    )
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 90)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_official_npm_client(locked_app: HostedApp, model_service: ModelService) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no Node.js with npm here")
    folder = await asyncio.to_thread(
        installed,
        "npm",
        ("package.json", "package-lock.json"),
        lambda _: [[npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]],
    )
    shutil.copy(CLIENTS / "npm_client.mjs", folder)
    model_service.faults["fault-429-1"] = ["429-1"]
    model_service.release(1)
    seen = json.loads(await run(locked_app, node, "npm_client.mjs", cwd=folder))
    assert seen["whole"] == seen["streamed"] == seen["helped"] == seen["retried"] == SAID
    assert seen["tokens"] == seen["helpedTokens"] > 0
    assert seen["usageUnasked"] is False
    assert seen["tool"] == ["weather", ["city"]]
    assert seen["models"][:2] == [DEFAULT_DEPLOYMENT, BY_HAND]
    assert seen["requestId"]
    assert seen["errors"] == {
        "no key": ["AuthenticationError", 401, None],
        "no model": ["NotFoundError", 404, "model_not_found"],
        "refused": ["RateLimitError", 429, "rate_limited"],
        "failed": ["InternalServerError", 502, "upstream_error"],
        "filtered": ["BadRequestError", 400, "content_filter"],
        "midway": ["APIError", None, "upstream_error"],
    }
    await eventually(lambda: model_service.open_requests == 0)
    assert model_service.requests[-1].ended == "aborted", "who stops reading ends the upstream"


@pytest.fixture(scope="module")
def python_clients() -> Path:
    """The `bin` of an environment with the clients that can't share this one."""
    if os.environ.get("CLIENTS") != "1":
        pytest.skip("CLIENTS=1 installs LangChain, litellm and llm, and tries them")
    folder = installed(
        "python",
        ("requirements.txt",),
        lambda folder: [
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "-q", "-r", "requirements.txt"],
        ],
    )
    return folder / "bin"


async def test_langchain(python_clients: Path, locked_app: HostedApp, model_service: ModelService) -> None:
    script = str(CLIENTS / "langchain_client.py")
    seen = json.loads(await run(locked_app, str(python_clients / "python"), script, cwd=python_clients))
    assert seen["whole"] == seen["streamed"] == seen["ainvoke"] == seen["astream"] == SAID
    assert seen["tokens"] == seen["streamed_tokens"] > 0
    assert seen["tool"] == ["weather", ["city"]]
    assert seen["structured"] == "City"
    assert seen["error"] == 429


async def test_litellm(python_clients: Path, locked_app: HostedApp, model_service: ModelService) -> None:
    script = str(CLIENTS / "litellm_client.py")
    python = str(python_clients / "python")
    # Otherwise it asks a server for prices.
    out = await run(locked_app, python, script, cwd=python_clients, LITELLM_LOCAL_MODEL_COST_MAP="True")
    seen = json.loads(out.splitlines()[-1])
    assert seen["whole"] == seen["streamed"] == seen["astream"] == SAID
    assert seen["tokens"] == seen["streamed_tokens"] > 0
    assert seen["tool"] == ["weather", ["city"]]
    assert seen["error"] == 429


async def test_llm(python_clients: Path, locked_app: HostedApp, model_service: ModelService, tmp_path: Path) -> None:
    models = tmp_path / "extra-openai-models.yaml"
    models.write_text(
        f"- model_id: relay\n  model_name: {DEFAULT_DEPLOYMENT}\n  api_base: {locked_app.url}/v1\n"
        f"  headers:\n    x-functions-key: {KEY}\n"
    )
    for option in ("--no-stream", "--no-log"):  # with the second, it streams
        command = (str(python_clients / "llm"), "-m", "relay", "--key", "unused", option, PROMPT)
        assert (await run(locked_app, *command, cwd=tmp_path, LLM_USER_PATH=str(tmp_path))).strip() == SAID
    assert [record.body["stream"] for record in model_service.requests] == [False, True]
