"""Private data stays private: every kind of request, valid or not, is sent with marks in its prompt, keys and tokens,
and no mark is printed, exported, or sent in a response in which it does not belong."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest
from aiohttp import web

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from relay.problems import Problem
from relay.upstream.pool import BackendPool
from tests.end_to_end.answers import BREAKS, FORMATS, request_body
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import OUTCOMES

# `app_insights_app` uses this module's `secret_settings`.
from tests.end_to_end.test_telemetry import FUNCTION_KEY, MODEL_KEY, Ingestion, app_insights_app, ingestion

__all__ = ("app_insights_app", "ingestion")

CRASHING_APP: Final = Path(__file__).with_name("crashing_app")

PROMPT: Final = "mark-of-the-prompt"
INSTRUCTIONS: Final = "mark-of-the-instructions"
ANSWER: Final = "mark-of-the-answer"
QUERY: Final = "mark-of-the-query"
HEADER: Final = "mark-of-a-header"
WRONG_KEY: Final = "mark-of-a-wrong-key"
IDENTITY_HEADER: Final = "mark-of-the-identity-header"
SETTING: Final = "mark-of-a-setting"
# As Entra ID writes its tokens: three parts in base64, of which the first begins with `{"`.
TOKEN: Final = "eyJhbGciOiJub25lIn0.bWFyay1vZi10aGUtdG9rZW4.c2lnbmF0dXJl"

TEXTS: Final = (PROMPT, INSTRUCTIONS, ANSWER)
CALLER_KEY: Final = "mark-of-the-key-of-a-caller-" + "k" * 32
KEYS: Final = (FUNCTION_KEY, CALLER_KEY, MODEL_KEY, WRONG_KEY, IDENTITY_HEADER, TOKEN, SETTING)
ALL_MARKS: Final = (*TEXTS, *KEYS, QUERY, HEADER)

OPENAI: Final = "/v1/chat/completions"
SLOW: Final = "slow"
# The kinds of answer that a caller can request.
KINDS: Final = (*FORMATS, "openai stream", "openai document")

# Every fault, some of them shortened, for two kinds of answer.
SHORT: Final = {"long-40000": "long-20000", "huge-chunk": "huge-chunk-20000", "flood-8000": "flood-500"}
FAULTY: Final = [
    (SHORT.get(fault, fault), kind) for number, fault in enumerate(OUTCOMES) for kind in KINDS[number % 3 :: 3]
]


def marks_in(text: str, marks: Iterable[str], port: int = 0) -> set[str]:
    """The marks in a text, and the model service's address where its port is given."""
    address = {f":{port}", "/openai/v1"} if port else set()
    return {mark for mark in {*marks, *address} if mark in text}


def request(kind: str, **members: Any) -> dict[str, Any]:
    """The httpx arguments of a valid request for a kind of answer; `members` are added to its body."""
    if kind in FORMATS:
        body = request_body(kind, PROMPT, instructions=INSTRUCTIONS, **members)
        return {"url": "/stream", "json": body, "headers": {"Accept": kind}}
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": PROMPT}]
    return {"url": OPENAI, "json": {"messages": messages, "stream": kind == "openai stream", **members}, "headers": {}}


@dataclass(frozen=True)
class Received:
    """The response to one request; `request` describes the request."""

    request: str
    status: int
    content: str  # headers and body


class RecordingClient:
    """Sends requests with the key in each of the places where it may be by turns, and keeps all responses.

    `caller`: the key is a named caller's, which is not taken from the query.
    """

    def __init__(self, app: HostedApp, *, caller: bool = False) -> None:
        self._places = ("x-functions-key", "api-key", "Authorization") if caller else ("x-functions-key", "code")
        self._key = CALLER_KEY if caller else FUNCTION_KEY
        self._client = httpx.AsyncClient(base_url=app.url, timeout=30, verify=False)
        self.responses: list[Received] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(
        self,
        description: str,
        url: str,
        *,
        method: str = "POST",
        key: str | None = None,
        place: str = "",
        **options: Any,
    ) -> None:
        """Send a request and read its response to the end."""
        headers = {"Cookie": f"session={HEADER}", "X-Unknown-Header": HEADER, **options.pop("headers", {})}
        params = {"q": QUERY}
        place = place or self._places[len(self.responses) % len(self._places)]
        key = self._key if key is None else key
        (params if place == "code" else headers)[place] = f"Bearer {key}" if place == "Authorization" else key
        async with self._client.stream(method, url, params=params, headers=headers, **options) as response:
            chunks = []
            try:
                async for chunk in response.aiter_raw():
                    chunks.append(chunk)
            except BREAKS:
                pass  # the app broke the connection
        body = b"".join(chunks).decode(errors="replace")
        self.responses.append(Received(description, response.status_code, f"{response.headers.multi_items()}\n{body}"))

    async def disconnect(self, service: ModelService, kind: str, tokens: int) -> None:
        """Send a request, and disconnect after so many tokens (none of a document of OpenAI's, which has no tokens)."""
        whole = kind == "openai document"
        earlier = len(service.requests)
        sending = asyncio.create_task(self.send("disconnect", **request(kind, model=SLOW if whole else MANUAL_PACE)))
        await service.wait_for(lambda service: len(service.requests) > earlier)
        if not whole:
            service.release(tokens)
            await service.wait_for(lambda service: service.requests[-1].tokens == tokens)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await service.wait_for(lambda service: service.open_requests == 0)


# Invalid bodies, each with a mark.
INVALID_BODIES: Final = (
    PROMPT.encode(),
    f'{{"input": "{PROMPT}"'.encode(),
    f'"{PROMPT}"'.encode(),
    f'{{"input": "{PROMPT} caf'.encode() + b'\xe9"}',
    f'{{"input": {{"{PROMPT}": 1}}}}'.encode(),
    f'{{"input": [{{"role": "{PROMPT}", "content": "{PROMPT}"}}]}}'.encode(),
    f'{{"input": "x", "temperature": "{PROMPT}", "stream": "{PROMPT}", "top_p": ["{PROMPT}"]}}'.encode(),
    f'{{"input": "x", "model": "{PROMPT}"}}'.encode(),
    f'{{"messages": "{PROMPT}", "model": ["{PROMPT}"], "stream": "{PROMPT}", "max_tokens": "{PROMPT}"}}'.encode(),
    b'{"input": "' + PROMPT.encode() * 100_000 + b'"}',
)


@pytest.fixture(scope="module")
def secret_settings(app_settings: dict[str, str]) -> dict[str, str]:
    """Settings with a key, and a deployment for each fault and kind of answer."""
    faulty = [alias(fault, kind) for fault, kind in FAULTY]
    return app_settings | {
        "AZURE_OPENAI_API_KEY": MODEL_KEY,
        "AZURE_OPENAI_DEPLOYMENTS": ",".join([DEFAULT_DEPLOYMENT, MANUAL_PACE, SLOW, *faulty]),
        "COMMIT_WAIT_SECONDS": "0.2",
        "PING_INTERVAL_SECONDS": "0.1",
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "0.5",
        "MAX_OUTPUT_TOKENS": "1000000",
    }


def alias(fault: str, kind: str) -> str:
    """A deployment with the fault for one kind of answer only, so that no other request meets its cool-down."""
    return f"{fault}/{KINDS.index(kind)}"


async def send_every_request(app: HostedApp, service: ModelService, *, caller: bool = False) -> list[Received]:
    """One request of each kind: valid, invalid, rejected, failing, disconnecting; by a named `caller`."""
    service.api_key = MODEL_KEY
    service.answer([ANSWER[:6], ANSWER[6:], " ", *[ANSWER, " "] * 10])
    service.faults.update({alias(fault, kind): fault for fault, kind in FAULTY} | {SLOW: "stall-headers"})
    async with RecordingClient(app, caller=caller) as client:
        for kind in KINDS:
            await client.send("valid", **request(kind))
            await client.disconnect(service, kind, 0)
            await client.disconnect(service, kind, 3)
            await client.send("unknown model", **request(kind, model=PROMPT))
            await client.send("wrong key", **request(kind), key=WRONG_KEY)
        await asyncio.gather(
            *[client.send(f"fault {fault}", **request(kind, model=alias(fault, kind))) for fault, kind in FAULTY]
        )
        for body in INVALID_BODIES:
            for url in ("/stream", OPENAI):
                await client.send("invalid body", url, content=body, headers={"Content-Type": "application/json"})
        await client.send("wrong type", "/stream", content=PROMPT, headers={"Content-Type": f"text/{PROMPT}"})
        await client.send("wrong encoding", "/stream", content=PROMPT, headers={"Content-Encoding": PROMPT})
        for path in ("/v1/models", "/health", "/chat", "/openapi", f"/{QUERY}", "/docs"):
            await client.send(path, path, method="GET")
            await client.send(path, path, method="GET", key=WRONG_KEY)
        await client.send("wrong method", "/stream", method="PUT", content=PROMPT)
        if caller:
            for kind in KINDS:
                await client.send("key in the address", place="code", **request(kind))
                await client.send(
                    "several keys", **{**request(kind), "headers": {"api-key": WRONG_KEY}}, place="x-functions-key"
                )
        service.api_key = "another"
        for kind in KINDS:
            await client.send("refused key", **request(kind))
    return client.responses


def check_responses(responses: list[Received], port: int) -> None:
    """There is no key and no address in any response, and no text in an error."""
    # A refusal of the model service becomes a status, or an event where it came after the commit.
    assert {200, 400, 401, 404, 413, 415} <= {it.status for it in responses}
    assert all(any(code in it.content for it in responses) for code in ("rate_limited", "upstream_error"))
    for it in responses:
        # The description has paths of this app that are also those of the model service.
        content = it.content.replace('"/openai/v1/', '"/') if it.request == "/openapi" else it.content
        assert not marks_in(content, KEYS, port), it
        if it.status >= 400:
            assert not marks_in(it.content, TEXTS), it
        assert not marks_in(it.content, (PROMPT, INSTRUCTIONS, HEADER)), it
    assert all(ANSWER in it.content for it in responses if it.request == "valid"), "the marks are missing"


def without_server(text: str) -> str:
    """Without the host and port of the account, which the conventions put into each record (`server.address`)."""
    return re.sub(r'\\?"server\.(?:address|port)\\?": ?(?:\\?"[^"\\]*\\?"|\d+)', "", text)


def output_since(app: HostedApp, start: str) -> str:
    """What host and worker have printed after `start`, which contains the host's table of routes and the key."""
    assert app.output.startswith(start)
    return without_server(app.output[len(start) :])


async def test_nothing_private_is_printed(
    functions_app: Callable[..., HostedApp], secret_settings: dict[str, str], model_service: ModelService
) -> None:
    """Of a named caller; the test of Application Insights has the function key."""
    digest = hashlib.sha256(CALLER_KEY.encode()).hexdigest()
    callers = {"team-a": {"key_digests": [digest], "limits": {"tokens_per_day": 10**9, "streams": 1000}}}
    app = functions_app(env=secret_settings | {"CALLERS": json.dumps(callers)}, key=FUNCTION_KEY, fresh=True)
    start = app.output
    assert not marks_in(start, ALL_MARKS[:-2], model_service.port) - {FUNCTION_KEY}
    responses = await send_every_request(app, model_service, caller=True)
    check_responses(responses, model_service.port)
    assert {it.status for it in responses if it.request in ("key in the address", "several keys")} == {401}

    streams = 4 * len(KINDS) + len(FAULTY)
    await eventually(lambda: len(app.stream_records()) >= streams)
    output = output_since(app, start)
    assert not marks_in(output, (*ALL_MARKS, digest), model_service.port)
    assert '"relay.caller":"team-a"' in output


async def test_nothing_private_is_sent_to_application_insights(
    app_insights_app: HostedApp, ingestion: Ingestion, model_service: ModelService
) -> None:
    start = app_insights_app.output
    await send_every_request(app_insights_app, model_service)

    def spans() -> int:
        return len(ingestion.of("RemoteDependencyData"))

    await eventually(lambda: spans() >= 4 * len(KINDS) + len(FAULTY), within=30)
    assert not marks_in("\n".join(ingestion.raw), ALL_MARKS, model_service.port)
    assert not marks_in(output_since(app_insights_app, start), ALL_MARKS, model_service.port)


# ── A model service that repeats the request in its errors ───────────────────────────────────────────────────────────


@dataclass
class EchoService:
    """A model service whose errors contain the request: its key or token, its address, its body.

    `status` is the status of its responses; with 200 it fails in the stream. `/msi/token` returns `TOKEN` or, while
    `signing_in` is false, an error that contains the platform's header.
    """

    status: int = 400
    signing_in: bool = True

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = (await request.read()).decode()
        message = f"{request.headers['Authorization']} sent http://{request.host}{request.path_qs} this: {body}"
        failure = json.dumps({"error": {"message": message, "type": message, "param": message, "code": "echo"}})
        if self.status != 200:
            return web.Response(text=failure, status=self.status, content_type="application/json")
        events = f": {message}\nevent: {message}\nid: {message}\ndata: {failure}\n\n"
        return web.Response(text=events, content_type="text/event-stream")

    async def token(self, request: web.Request) -> web.StreamResponse:
        if not self.signing_in:
            return web.json_response({"message": f"not for {request.headers['X-IDENTITY-HEADER']}"}, status=400)
        document = {"access_token": TOKEN, "expires_on": "4070908800", "resource": "r", "token_type": "Bearer"}
        return web.json_response(document)


@pytest.fixture
async def echo(model_service_port: int) -> AsyncIterator[EchoService]:
    """This service in the model service's place."""
    echo = EchoService()
    application = web.Application()
    application.router.add_post("/openai/v1/chat/completions", echo.complete)
    application.router.add_get("/msi/token", echo.token)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", model_service_port, reuse_address=True).start()
    yield echo
    await runner.cleanup()


STATUSES: Final = (200, 400, 401, 403, 404, 408, 413, 422, 429, 500, 503)


@pytest.fixture(params=["key", "managed identity", "developer"])
def signed_in_app(
    request: pytest.FixtureRequest,
    functions_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    model_service_port: int,
    tmp_path: Path,
) -> HostedApp:
    """The app with one kind of credential, and with a deployment for each request, so that none meets a cool-down."""
    settings = app_settings | {"AZURE_OPENAI_DEPLOYMENTS": ",".join(f"model-{number}" for number in range(100))}
    match request.param:
        case "key":
            settings["AZURE_OPENAI_API_KEY"] = MODEL_KEY
        case "managed identity":
            settings["IDENTITY_ENDPOINT"] = f"http://127.0.0.1:{model_service_port}/msi/token"
            settings["IDENTITY_HEADER"] = IDENTITY_HEADER
            settings["AZURE_OPENAI_TOKEN_SCOPE"] = "https://cognitiveservices.azure.com/.default"
        case "developer":
            settings["AZURE_OPENAI_TOKEN_SCOPE"] = "https://cognitiveservices.azure.com/.default"
            settings["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
            sign_in = {"accessToken": TOKEN, "expires_on": 4070908800, "expiresOn": "2099-01-01 00:00:00.000000"}
            (tmp_path / "az").write_text(f"#!/bin/sh\necho '{json.dumps(sign_in | {'tokenType': 'Bearer'})}'\n")
            (tmp_path / "az").chmod(0o755)
    return functions_app(env=settings, key=FUNCTION_KEY, fresh=True)


async def test_upstream_errors_are_not_quoted(
    signed_in_app: HostedApp, echo: EchoService, model_service_port: int
) -> None:
    start = signed_in_app.output
    async with RecordingClient(signed_in_app) as client:
        models = iter(range(100))
        for echo.status in STATUSES:
            for kind in KINDS:
                await client.send(f"{echo.status} {kind}", **request(kind, model=f"model-{next(models)}"))
        await client.send("ready", "/ready", method="GET")
    assert len(client.responses) == len(STATUSES) * len(KINDS) + 1
    for it in client.responses:
        # The service's message about an invalid request is passed on to callers of OpenAI's wire.
        passed_on = it.request.startswith(("400 openai", "413 openai", "422 openai"))
        assert (PROMPT in it.content) == passed_on, it
        assert not marks_in(it.content, (*KEYS, f":{model_service_port}")), it
        if not passed_on:
            assert not marks_in(it.content, TEXTS, model_service_port), it
    assert not marks_in(output_since(signed_in_app, start), ALL_MARKS, model_service_port)


async def test_a_failed_sign_in_is_not_quoted(
    functions_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    echo: EchoService,
    model_service_port: int,
    tmp_path: Path,
) -> None:
    echo.signing_in = False
    scope = {"AZURE_OPENAI_TOKEN_SCOPE": "https://cognitiveservices.azure.com/.default"}
    managed = {
        "IDENTITY_ENDPOINT": f"http://127.0.0.1:{model_service_port}/msi/token",
        "IDENTITY_HEADER": IDENTITY_HEADER,
    }
    (tmp_path / "az").write_text(f"#!/bin/sh\necho 'ERROR: {TOKEN} of {HEADER} has expired' >&2\nexit 1\n")
    (tmp_path / "az").chmod(0o755)
    developer = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for identity in (managed, developer):
        app = functions_app(env=app_settings | scope | identity, key=FUNCTION_KEY, fresh=True)
        start = app.output
        async with RecordingClient(app) as client:
            for kind in KINDS:
                await client.send("no sign-in", **request(kind))
            await client.send("ready", "/ready", method="GET")
        assert {it.status for it in client.responses} <= {200, 502, 503}
        assert all("upstream_auth" in it.content for it in client.responses if "text/plain" not in it.content)
        for it in client.responses:
            assert not marks_in(it.content, ALL_MARKS, model_service_port), it
        # azure-identity logs why a sign-in failed, and quotes the response: without it no one could find the remedy.
        quoted = {IDENTITY_HEADER} if identity is managed else {TOKEN, HEADER}
        assert not marks_in(output_since(app, start), set(ALL_MARKS) - quoted, model_service_port)


# ── Exceptions in the app ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def crashing_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with exceptions that quote the prompt and the answer."""
    env = app_settings | {"AZURE_OPENAI_API_KEY": MODEL_KEY}
    return functions_app(env=env, key=FUNCTION_KEY, script_root=CRASHING_APP, fresh=True)


async def send_failing_requests(app: HostedApp, instructions: str) -> list[Received]:
    """Request an answer in each format, with the instructions that make the app fail."""
    async with RecordingClient(app) as client:
        for media_type in FORMATS:
            arguments = request(media_type)
            arguments["json"]["instructions"] = instructions
            await client.send(media_type, **arguments)
    return client.responses


async def test_an_exception_in_a_stream_is_not_quoted(crashing_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer([ANSWER, " ", ANSWER])
    model_service.tokens_per_second = 50
    start = crashing_app.output
    responses = await send_failing_requests(crashing_app, "fail while reading the answer")
    for it in responses:
        assert "internal_error" in it.content or "text/plain" in it.content, it
        assert not marks_in(it.content, (PROMPT, *KEYS, "what to do"), model_service.port)
    await eventually(lambda: output_since(crashing_app, start).count('"relay.code":"internal_error"') == len(FORMATS))
    assert "ValueError at function_app.py" in output_since(crashing_app, start), "the record names the place"
    assert not marks_in(output_since(crashing_app, start), (*ALL_MARKS, "what to do"), model_service.port)


async def test_an_exception_before_a_stream_is_not_quoted(crashing_app: HostedApp, model_service: ModelService) -> None:
    start = crashing_app.output
    responses = await send_failing_requests(crashing_app, "fail before asking")
    assert {it.status for it in responses} == {500}
    for it in responses:
        assert "internal_error" in it.content, it
        assert not marks_in(it.content, (*ALL_MARKS, "what to do"), model_service.port), it
    assert not marks_in(output_since(crashing_app, start), (*ALL_MARKS, "what to do"), model_service.port)


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG_SETTINGS: Final = (
    {"AZURE_OPENAI_ENDPOINT": SETTING},
    {"AZURE_OPENAI_ENDPOINT": f"https://user:{SETTING}@account.openai.azure.com/"},
    {"AZURE_OPENAI_ENDPOINT": f"https://account.openai.azure.com/?api-key={SETTING}"},
    {"AZURE_OPENAI_ENDPOINT": f"https://account.openai.azure.com/{SETTING}"},
    {"AZURE_OPENAI_DEPLOYMENTS": f"{SETTING} with spaces"},
    {"AZURE_OPENAI_API_KEY": f"{SETTING} with spaces"},
    {"AZURE_OPENAI_TOKEN_SCOPE": SETTING},
    {"MAX_BODY_BYTES": SETTING, "MAX_OUTPUT_TOKENS": SETTING, "COMMIT_WAIT_SECONDS": SETTING},
    {"AZURE_OPENAI_BACKENDS": SETTING},
    {"AZURE_OPENAI_BACKENDS": f'["{SETTING}"]'},
    {"AZURE_OPENAI_BACKENDS": f'[{{"endpoint": "{SETTING}", "deployment": "{SETTING} x", "name": "{SETTING} y"}}]'},
    {"AZURE_OPENAI_BACKENDS": f'[{{"endpoint": "https://a.azure.com/", "deployment": "a", "priority": "{SETTING}"}}]'},
)


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=range(len(WRONG_SETTINGS)))
def test_a_wrong_setting_is_not_quoted(wrong: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    valid = {"AZURE_OPENAI_ENDPOINT": "https://a.openai.azure.com/", "AZURE_OPENAI_DEPLOYMENTS": "a"}
    if "AZURE_OPENAI_BACKENDS" in wrong:
        valid = {}
    problem = BackendPool.from_environment(valid | wrong)
    assert isinstance(problem, Problem)
    assert problem.code == "not_configured"
    for document in (problem.document("an-id"), problem.openai_document("an-id")):
        assert SETTING not in document.decode()
    printed = "".join(capfd.readouterr())
    assert printed.count("not_configured") == len(problem.errors)
    assert SETTING not in printed
