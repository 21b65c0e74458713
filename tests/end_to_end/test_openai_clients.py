"""OpenAI clients, unchanged, against an app that requires its function key.

The official Python client is the version that the app has pinned; the npm client is installed from `clients/`.
LangChain, litellm and llm take a minute or more to install: they are tested where CLIENTS=1 is set.
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

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.hosting import HostedApp, bare_environment, eventually

CLIENTS: Final = Path(__file__).with_name("clients")
KEY: Final = "the-function-key"
TEXT: Final = "Grün 🌿 is\na colour, and \u2028 so on."
PROMPT: Final = f"say: {TEXT}"  # the model service answers with the text
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
    "unknown": (openai.NotFoundError, 404, "model_not_found"),
}
MIDWAY: Final = {
    "fault-cut-midway": "upstream_interrupted",
    "fault-error-midway": "upstream_error",
    "fault-garbage-midway": "upstream_error",
}


@pytest.fixture(scope="module")
def keyed_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with its key checked, and a deployment for each fault."""
    deployments = [
        DEFAULT_DEPLOYMENT,
        MANUAL_PACE,
        *FAULTS,
        *MIDWAY,
        "fault-429-1",
        "busy",
        "busy/1",
        "busy-ms",
        "busy-date",
        "down",
    ]
    deployments.remove("unknown")
    env = app_settings | {"AZURE_OPENAI_DEPLOYMENTS": ",".join(deployments), "MAX_BODY_BYTES": "100000"}
    return functions_app(env=env, key=KEY, fresh=True)


@pytest.fixture
async def client(keyed_app: HostedApp, model_service: ModelService) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, as the documentation shows it, without retries."""
    async with openai.AsyncOpenAI(
        base_url=keyed_app.url + "/v1", api_key="unused", default_headers={"x-functions-key": KEY}, max_retries=0
    ) as client:
        yield client


# ── The official Python client ───────────────────────────────────────────────────────────────────────────────────────


async def test_document_and_stream(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, n=2
        )
    ]
    for index in (0, 1):
        deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(deltas) == TEXT
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    async for chunk in await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True):
        assert chunk.usage is None


async def test_synchronous_client(keyed_app: HostedApp, model_service: ModelService) -> None:
    def request() -> tuple[str | None, str, list[str]]:
        with openai.OpenAI(
            base_url=keyed_app.url + "/v1", api_key="unused", default_headers={"x-functions-key": KEY}, max_retries=0
        ) as client:
            document = client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
            streamed = ""
            for chunk in client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True):
                streamed += chunk.choices[0].delta.content or "" if chunk.choices else ""
            return document.choices[0].message.content, streamed, [model.id for model in client.models.list()]

    document, streamed, models = await asyncio.to_thread(request)
    assert document == streamed == TEXT
    assert models[:2] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]


async def test_one_model(client: openai.AsyncOpenAI) -> None:
    assert (await client.models.retrieve(DEFAULT_DEPLOYMENT)).id == DEFAULT_DEPLOYMENT
    assert (await client.models.retrieve("busy/1")).id == "busy/1", "the client encodes the slash"
    with pytest.raises(openai.NotFoundError) as raised:
        await client.models.retrieve("unknown")
    assert (raised.value.code, raised.value.status_code) == ("model_not_found", 404)


@pytest.mark.parametrize(
    "api",
    [
        lambda client: client.completions.create(model=DEFAULT_DEPLOYMENT, prompt="x"),
        lambda client: client.files.list(),
        lambda client: client.models.delete(DEFAULT_DEPLOYMENT),
    ],
)
async def test_an_api_that_does_not_exist_is_named(client: openai.AsyncOpenAI, api: Callable[..., Any]) -> None:
    with pytest.raises(openai.APIStatusError, match="/v1/") as raised:
        await api(client)
    assert raised.value.code in ("not_found", "method_not_allowed")
    assert "POST /v1/chat/completions" in raised.value.message or "it takes GET, HEAD" in raised.value.message


# With the address alone, as programs for Azure OpenAI are configured; or with the deployment in the base address.
AZURE: Final[dict[str, dict[str, str]]] = {
    "model": {},
    "deployment": {"azure_deployment": DEFAULT_DEPLOYMENT},
}


@pytest.mark.parametrize("options", AZURE.values(), ids=AZURE)
async def test_the_client_of_azure_openai(
    keyed_app: HostedApp, model_service: ModelService, options: dict[str, Any]
) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=keyed_app.url,
        api_version="2024-10-21",
        api_key="unused",
        default_headers={"x-functions-key": KEY},
        max_retries=0,
        **options,
    ) as client:
        document = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
        stream = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True)
        streamed = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        models = [model.id async for model in client.models.list()]
        model = await client.models.retrieve("busy/1")
        with pytest.raises(openai.NotFoundError, match="GET /openai/models") as raised:
            await client.files.list()
    assert document.choices[0].message.content == "".join(streamed) == TEXT
    assert models[:2] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]
    assert model.id == "busy/1"
    assert raised.value.code == "not_found"
    assert {record.deployment for record in model_service.requests} == {DEFAULT_DEPLOYMENT}


async def test_a_deployment_whose_name_has_a_slash(keyed_app: HostedApp, model_service: ModelService) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=keyed_app.url,
        api_version="2024-10-21",
        api_key="unused",
        default_headers={"x-functions-key": KEY},
        max_retries=0,
    ) as client:
        answer = await client.chat.completions.create(model="busy/1", messages=MESSAGES)
        assert answer.choices[0].message.content == TEXT
        with pytest.raises(openai.NotFoundError) as raised:
            await client.chat.completions.create(model="unknown", messages=MESSAGES)
        assert raised.value.code == "model_not_found"
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="fault-429-7", messages=MESSAGES, stream=True)
    assert [record.deployment for record in model_service.requests] == ["busy/1", "fault-429-7"]


async def test_the_synchronous_client_of_azure_openai(keyed_app: HostedApp, model_service: ModelService) -> None:
    def request() -> tuple[str | None, str, list[str]]:
        with openai.AzureOpenAI(
            azure_endpoint=keyed_app.url,
            api_version="2024-10-21",
            api_key="unused",
            default_headers={"x-functions-key": KEY},
            max_retries=0,
        ) as client:
            document = client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES)
            streamed = ""
            for chunk in client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True):
                streamed += chunk.choices[0].delta.content or "" if chunk.choices else ""
            return document.choices[0].message.content, streamed, [model.id for model in client.models.list()]

    document, streamed, models = await asyncio.to_thread(request)
    assert document == streamed == TEXT
    assert models[:2] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]


async def test_tools_and_the_stream_helper(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, tools=[WEATHER], stream_options={"include_usage": True}
    ) as stream:
        types = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= types
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert final.usage is not None
    messages: Any = [*MESSAGES, final.choices[0].message.to_dict()]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "Rain."})
    answer = await client.chat.completions.create(model=DEFAULT_DEPLOYMENT, messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content
    async with client.chat.completions.stream(model=DEFAULT_DEPLOYMENT, messages=MESSAGES) as stream:
        text = "".join([event.delta async for event in stream if event.type == "content.delta"])
    assert text == TEXT


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


async def test_raw_response(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, extra_headers={"X-Request-Id": "my-own-request"}
    )
    assert raw.status_code == 200
    assert raw.request_id == "my-own-request"
    assert raw.parse().choices[0].message.content == TEXT
    async with client.chat.completions.with_streaming_response.create(
        model=DEFAULT_DEPLOYMENT, messages=MESSAGES, stream=True
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", FAULTS)
async def test_exception_of_each_failure(client: openai.AsyncOpenAI, model: str, *, stream: bool) -> None:
    exception, status, code = FAULTS[model]
    with pytest.raises(exception) as raised:
        await client.chat.completions.create(model=model, messages=MESSAGES, stream=stream)
    error: Any = raised.value
    assert type(error) is exception
    assert (error.status_code, error.code) == (status, code)
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.message
    if model == "fault-429-7":
        assert int(error.response.headers["retry-after"]) in range(1, 8)
    if model == "fault-content-filter":
        assert error.body["innererror"]["content_filter_result"]["violence"]["filtered"] is True
    if model == "fault-400":
        assert (error.type, error.param) == ("invalid_request_error", "messages")


async def test_exceptions_for_invalid_requests(client: openai.AsyncOpenAI) -> None:
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
async def test_failure_midway_is_raised_within_the_stream(client: openai.AsyncOpenAI, model: str) -> None:
    text = ""
    stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)

    async def read() -> None:
        nonlocal text
        async for chunk in stream:
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""

    with pytest.raises(openai.APIError) as raised:
        await read()
    assert TEXT.startswith(text)
    assert text
    assert raised.value.code == MIDWAY[model]


@pytest.mark.parametrize(("model", "fault"), [("busy", "429-1"), ("busy-ms", "429-ms-600"), ("busy-date", "429-date")])
async def test_the_client_waits_for_retry_after(
    client: openai.AsyncOpenAI, model_service: ModelService, model: str, fault: str
) -> None:
    model_service.faults[model] = [fault]
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await client.with_options(max_retries=1).chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert 0.5 < loop.time() - began < 10
    assert len(model_service.requests) == 2


async def test_the_client_retries_a_failure(client: openai.AsyncOpenAI, model_service: ModelService) -> None:
    model_service.faults["down"] = ["500", "cut-headers", None]
    stream = await client.with_options(max_retries=2).chat.completions.create(
        model="down", messages=MESSAGES, stream=True
    )
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(texts) == TEXT


async def test_a_client_that_closes_the_stream_ends_the_upstream_request(
    client: openai.AsyncOpenAI, model_service: ModelService
) -> None:
    model_service.release(3)
    async with await client.chat.completions.create(model=MANUAL_PACE, messages=MESSAGES, stream=True) as stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
    await eventually(lambda: model_service.open_requests == 0)
    assert model_service.requests[0].ended == "aborted"


# ── Other clients, each in a process of its own ──────────────────────────────────────────────────────────────────────


def installed(name: str, pins: tuple[str, ...], install: Callable[[Path], list[list[str]]]) -> Path:
    """A folder in the virtual environment with the packages that `pins`, files of `clients/`, list."""
    digest = hashlib.sha256(b"".join((CLIENTS / pin).read_bytes() for pin in pins)).hexdigest()
    folder = Path(sys.prefix) / f"clients-{name}"
    marker = folder / ".installed"
    if not marker.exists() or marker.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for pin in pins:
            shutil.copy(CLIENTS / pin, folder)
        for command in install(folder):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"{command[0]} can't install {name}: {(done.stderr or done.stdout)[-300:]}")
        marker.write_text(digest)
    return folder


async def run(app: HostedApp, *command: str, cwd: Path, **environment: str) -> str:
    """The output of a command; `environment` are further variables."""
    settings = {"RELAY_URL": app.url, "RELAY_KEY": KEY, "RELAY_MODEL": DEFAULT_DEPLOYMENT, "RELAY_PROMPT": PROMPT}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=bare_environment(settings | environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 90)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_official_npm_client(keyed_app: HostedApp, model_service: ModelService) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = await asyncio.to_thread(
        installed,
        "npm",
        ("package.json", "package-lock.json"),
        lambda _: [[npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]],
    )
    shutil.copy(CLIENTS / "npm_client.mjs", folder)
    model_service.faults["fault-429-1"] = ["429-1"]
    model_service.release(1)
    results = json.loads(await run(keyed_app, node, "npm_client.mjs", cwd=folder, RELAY_PACED_MODEL=MANUAL_PACE))
    assert results["document"] == results["streamed"] == results["helper"] == results["retried"] == TEXT
    assert results["tokens"] == results["helperTokens"] > 0
    assert results["unrequestedUsage"] is False
    assert results["tool"] == ["weather", ["city"]]
    assert results["models"][:2] == [DEFAULT_DEPLOYMENT, MANUAL_PACE]
    assert results["model"] == DEFAULT_DEPLOYMENT
    assert results["azure"] == {
        "document": TEXT,
        "streamed": TEXT,
        "models": results["models"],
        "model": "busy/1",
        "slash": TEXT,
        "missing": ["NotFoundError", 404, "not_found"],
    }
    assert results["requestId"]
    assert results["errors"] == {
        "no key": ["AuthenticationError", 401, None],
        "no model": ["NotFoundError", 404, "model_not_found"],
        "refused": ["RateLimitError", 429, "rate_limited"],
        "failed": ["InternalServerError", 502, "upstream_error"],
        "filtered": ["BadRequestError", 400, "content_filter"],
        "midway": ["APIError", None, "upstream_error"],
    }
    await eventually(lambda: model_service.open_requests == 0)
    assert model_service.requests[-1].ended == "aborted", "closing the stream ends the upstream request"


@pytest.fixture(scope="module")
def python_clients() -> Path:
    """The `bin` folder of a virtual environment with the clients that can't share this one."""
    if os.environ.get("CLIENTS") != "1":
        pytest.skip("CLIENTS=1 installs and tests LangChain, litellm and llm")
    folder = installed(
        "python",
        ("requirements.txt",),
        lambda folder: [
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "-q", "-r", "requirements.txt"],
        ],
    )
    return folder / "bin"


async def test_langchain(python_clients: Path, keyed_app: HostedApp, model_service: ModelService) -> None:
    script = str(CLIENTS / "langchain_client.py")
    results = json.loads(await run(keyed_app, str(python_clients / "python"), script, cwd=python_clients))
    assert results["document"] == results["streamed"] == results["ainvoke"] == results["astream"] == TEXT
    assert results["tokens"] == results["streamed_tokens"] > 0
    assert results["tool"] == ["weather", ["city"]]
    assert results["structured"] == "City"
    assert results["error"] == 429


async def test_litellm(python_clients: Path, keyed_app: HostedApp, model_service: ModelService) -> None:
    script = str(CLIENTS / "litellm_client.py")
    python = str(python_clients / "python")
    # Without the variable it requests prices from a server.
    output = await run(keyed_app, python, script, cwd=python_clients, LITELLM_LOCAL_MODEL_COST_MAP="True")
    results = json.loads(output.splitlines()[-1])
    assert results["document"] == results["streamed"] == results["astream"] == TEXT
    assert results["tokens"] == results["streamed_tokens"] > 0
    assert results["tool"] == ["weather", ["city"]]
    assert results["error"] == 429


async def test_llm(python_clients: Path, keyed_app: HostedApp, model_service: ModelService, tmp_path: Path) -> None:
    models = tmp_path / "extra-openai-models.yaml"
    models.write_text(
        f"- model_id: relay\n  model_name: {DEFAULT_DEPLOYMENT}\n  api_base: {keyed_app.url}/v1\n"
        f"  headers:\n    x-functions-key: {KEY}\n"
    )
    for option in ("--no-stream", "--no-log"):  # with the second, it streams
        command = (str(python_clients / "llm"), "-m", "relay", "--key", "unused", option, PROMPT)
        assert (await run(keyed_app, *command, cwd=tmp_path, LLM_USER_PATH=str(tmp_path))).strip() == TEXT
    assert [record.body["stream"] for record in model_service.requests] == [False, True]
