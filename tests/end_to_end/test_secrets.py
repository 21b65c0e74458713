"""What is private stays private: marked prompts, answers, keys and tokens go through every kind of request, good and
bad, and none of the marks is ever on record, or in an answer that it does not belong in."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiohttp import web

from local.model_service import BY_HAND, DEFAULT_DEPLOYMENT, ModelService
from relay.backends import Backends
from relay.problems import Problem
from tests.end_to_end.answers import FORMATS, body_for
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.test_errors import OUTCOMES

# The fixtures of Application Insights' door; `secret_settings`, which they take, is this module's own.
from tests.end_to_end.test_telemetry import FUNCTION_KEY, MODEL_KEY, Ingestion, ingestion, insightful  # noqa: F401

CRASHING_APP: Final = Path(__file__).with_name("crashing_app")

PROMPT: Final = "mark-of-the-prompt"
INSTRUCTIONS: Final = "mark-of-the-instructions"
ANSWER: Final = "mark-of-the-answer"
QUERY: Final = "mark-of-the-query"
HEADER: Final = "mark-of-a-header"
WRONG_KEY: Final = "mark-of-a-wrong-key"
IDENTITY_HEADER: Final = "mark-of-the-identity-header"
SETTING: Final = "mark-of-a-setting"
# As Entra ID writes its tokens: three parts in base64, the first of which begins with {" .
TOKEN: Final = "eyJhbGciOiJub25lIn0.bWFyay1vZi10aGUtdG9rZW4.c2lnbmF0dXJl"

WORDS: Final = (PROMPT, INSTRUCTIONS, ANSWER)
KEYS: Final = (FUNCTION_KEY, MODEL_KEY, WRONG_KEY, IDENTITY_HEADER, TOKEN, SETTING)
EVERY_MARK: Final = (*WORDS, *KEYS, QUERY, HEADER)

OPENAI: Final = "/v1/chat/completions"
SLOW: Final = "slow"
WAYS: Final = (*FORMATS, "openai stream", "openai document")

# Every fault, none of them longer than it needs to be, in two ways of asking.
SHORT: Final = {"long-100000": "long-20000", "huge-chunk": "huge-chunk-20000", "flood-20000": "flood-500"}
FAULTY: Final = [
    (SHORT.get(fault, fault), way) for number, fault in enumerate(OUTCOMES) for way in WAYS[number % 3 :: 3]
]


def found(text: str, marks: Iterable[str], port: int = 0) -> set[str]:
    """The marks in a text, and the model service's address where its port is given."""
    address = {f":{port}", "/openai/v1"} if port else set()
    return {mark for mark in {*marks, *address} if mark in text}


def request(way: str, **more: Any) -> dict[str, Any]:
    """The httpx arguments of one good request in a way of asking; `more` are members of its body."""
    if way in FORMATS:
        members = body_for(way, PROMPT, instructions=INSTRUCTIONS, **more)
        return {"url": "/stream", "json": members, "headers": {"Accept": way}}
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": PROMPT}]
    return {"url": OPENAI, "json": {"messages": messages, "stream": way == "openai stream", **more}, "headers": {}}


@dataclass(frozen=True)
class Answered:
    """What came back, and for what."""

    what: str
    status: int
    told: str  # the head and the body


class Asker:
    """Sends requests with the key in the header and in the query by turns, and keeps all that comes back."""

    def __init__(self, app: HostedApp) -> None:
        self.client = httpx.AsyncClient(base_url=app.url, timeout=20, verify=False)
        self.answers: list[Answered] = []

    async def ask(self, what: str, url: str, *, method: str = "POST", key: str = FUNCTION_KEY, **options: Any) -> None:
        headers = {"Cookie": f"session={HEADER}", "X-Of-Their-Own": HEADER, **options.pop("headers", {})}
        params = {"q": QUERY}
        if len(self.answers) % 2:
            headers["x-functions-key"] = key
        else:
            params["code"] = key
        async with self.client.stream(method, url, params=params, headers=headers, **options) as response:
            pieces = []
            try:
                async for piece in response.aiter_raw():
                    pieces.append(piece)
            except httpx.RemoteProtocolError:
                pass  # an answer that was broken off
        body = b"".join(pieces).decode(errors="replace")
        self.answers.append(Answered(what, response.status_code, f"{response.headers.multi_items()}\n{body}"))

    async def leave(self, service: ModelService, way: str, tokens: int) -> None:
        """Ask, and go away after so many tokens (an answer of OpenAI's wire in one document has none until its end)."""
        whole = way == "openai document"
        asking = asyncio.create_task(self.ask("left", **request(way, model=SLOW if whole else BY_HAND)))
        await service.wait_for(lambda service: service.open_requests == 1)
        if not whole:
            service.release(tokens)
            await service.wait_for(lambda service: service.requests[-1].tokens == tokens)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await service.wait_for(lambda service: service.open_requests == 0)


# Bodies that are wrong, all with a mark in them.
WRONG_BODIES: Final = (
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
    """Settings with a key, and a deployment for each fault and way of asking."""
    faulty = [alias(fault, way) for fault, way in FAULTY]
    return app_settings | {
        "AZURE_OPENAI_API_KEY": MODEL_KEY,
        "AZURE_OPENAI_DEPLOYMENTS": ",".join([DEFAULT_DEPLOYMENT, BY_HAND, SLOW, *faulty]),
        "COMMIT_WAIT_SECONDS": "0.2",
        "PING_INTERVAL_SECONDS": "0.1",
        "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "0.5",
        "MAX_OUTPUT_TOKENS": "1000000",
    }


def alias(fault: str, way: str) -> str:
    """A deployment that commits the fault for one way of asking alone: its rest after a refusal is nobody else's."""
    return f"{fault}/{WAYS.index(way)}"


async def every_request(app: HostedApp, service: ModelService) -> list[Answered]:
    """One of each kind of request that there is: good, bad, refused, failed, left."""
    service.api_key = MODEL_KEY
    service.answer([ANSWER[:6], ANSWER[6:], " ", *[ANSWER, " "] * 10])
    service.faults.update({alias(fault, way): fault for fault, way in FAULTY} | {SLOW: "stall-headers"})
    asker = Asker(app)
    async with asker.client:
        for way in WAYS:
            await asker.ask("good", **request(way))
            await asker.leave(service, way, 0)
            await asker.leave(service, way, 3)
            await asker.ask("unknown model", **request(way, model=PROMPT))
            await asker.ask("wrong key", **request(way), key=WRONG_KEY)
        await asyncio.gather(
            *[asker.ask(f"fault {fault}", **request(way, model=alias(fault, way))) for fault, way in FAULTY]
        )
        for body in WRONG_BODIES:
            for url in ("/stream", OPENAI):
                await asker.ask("wrong body", url, content=body, headers={"Content-Type": "application/json"})
        await asker.ask("wrong type", "/stream", content=PROMPT, headers={"Content-Type": f"text/{PROMPT}"})
        await asker.ask("wrong encoding", "/stream", content=PROMPT, headers={"Content-Encoding": PROMPT})
        for path in ("/v1/models", "/health", "/chat", "/openapi", f"/{QUERY}", "/docs"):
            await asker.ask(path, path, method="GET")
            await asker.ask(path, path, method="GET", key=WRONG_KEY)
        await asker.ask("wrong method", "/stream", method="PUT", content=PROMPT)
        service.api_key = "another"
        for way in WAYS:
            await asker.ask("refused key", **request(way))
    return asker.answers


def check_answers(answers: list[Answered], port: int) -> None:
    """No key, no address in any; the caller's own words in none that is a failure."""
    # What the model service refuses comes as a status or, where it took its time, as an event.
    assert {200, 400, 401, 404, 413, 415} <= {answer.status for answer in answers}
    assert all(any(code in answer.told for answer in answers) for code in ("rate_limited", "upstream_error"))
    for answer in answers:
        assert not found(answer.told, KEYS, port), answer
        if answer.status >= 400:
            assert not found(answer.told, WORDS), answer
        assert not found(answer.told, (PROMPT, INSTRUCTIONS, HEADER)), answer
    assert all(ANSWER in answer.told for answer in answers if answer.what == "good"), "the marks are not there at all"


def said_since(app: HostedApp, start: str) -> str:
    """What host and worker printed after `start`, which has the host's table of routes, with the key, in it."""
    assert app.output.startswith(start)
    return app.output[len(start) :]


async def test_nothing_private_is_printed(
    functions_app: Callable[..., HostedApp], secret_settings: dict[str, str], model_service: ModelService
) -> None:
    app = functions_app(env=secret_settings, key=FUNCTION_KEY, fresh=True)
    start = app.output
    assert not found(start, EVERY_MARK[:-2], model_service.port) - {FUNCTION_KEY}
    answers = await every_request(app, model_service)
    check_answers(answers, model_service.port)

    def records() -> int:
        return app.output.count('[worker] {"event":"stream"')

    asked = 4 * len(WAYS) + len(FAULTY)
    await eventually(lambda: records() >= asked, within=5)
    assert not found(said_since(app, start), EVERY_MARK, model_service.port)


async def test_nothing_private_is_sent_to_application_insights(
    insightful: HostedApp,  # noqa: F811
    ingestion: Ingestion,  # noqa: F811
    model_service: ModelService,
) -> None:
    start = insightful.output
    await every_request(insightful, model_service)

    def spans() -> int:
        return len(ingestion.of("RemoteDependencyData"))

    await eventually(lambda: spans() >= 4 * len(WAYS) + len(FAULTY), within=20)
    assert not found("\n".join(ingestion.raw), EVERY_MARK, model_service.port)
    assert not found(said_since(insightful, start), EVERY_MARK, model_service.port)


# ── A model service that repeats what it was sent ────────────────────────────────────────────────────────────────────


@dataclass
class Echo:
    """A model service whose every word is the request: its key or token, its address, its body.

    `status` is what it answers with; with 200 it fails in the stream. `/msi/token` gives `TOKEN`, or while `signing_in`
    is false refuses with the header that the platform sent.
    """

    status: int = 400
    signing_in: bool = True

    async def complete(self, asked: web.Request) -> web.StreamResponse:
        body = (await asked.read()).decode()
        message = f"{asked.headers['Authorization']} asked http://{asked.host}{asked.path_qs} for {body}"
        failure = json.dumps({"error": {"message": message, "type": message, "param": message, "code": "echo"}})
        if self.status != 200:
            return web.Response(text=failure, status=self.status, content_type="application/json")
        events = f": {message}\nevent: {message}\nid: {message}\ndata: {failure}\n\n"
        return web.Response(text=events, content_type="text/event-stream")

    async def token(self, asked: web.Request) -> web.StreamResponse:
        if not self.signing_in:
            return web.json_response({"message": f"not for {asked.headers['X-IDENTITY-HEADER']}"}, status=400)
        document = {"access_token": TOKEN, "expires_on": "4070908800", "resource": "r", "token_type": "Bearer"}
        return web.json_response(document)


@pytest.fixture
async def echo(model_service_port: int) -> AsyncIterator[Echo]:
    """It, in the model service's place."""
    echo = Echo()
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
def proven_app(
    request: pytest.FixtureRequest,
    functions_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    model_service_port: int,
    tmp_path: Path,
) -> HostedApp:
    """The app, proving itself in one of its ways. None of its deployments gets in the way of another request."""
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


async def test_what_the_model_service_repeats_goes_no_further(
    proven_app: HostedApp, echo: Echo, model_service_port: int
) -> None:
    start = proven_app.output
    asker = Asker(proven_app)
    async with asker.client:
        models = iter(range(100))
        for echo.status in STATUSES:
            for way in WAYS:
                await asker.ask(f"{echo.status} {way}", **request(way, model=f"model-{next(models)}"))
        await asker.ask("ready", "/ready", method="GET")
    assert len(asker.answers) == len(STATUSES) * len(WAYS) + 1
    for answer in asker.answers:
        # To a caller of OpenAI's wire, what the service says of a request that it finds at fault is passed on.
        passed_on = answer.what.startswith(("400 openai", "413 openai", "422 openai"))
        assert (PROMPT in answer.told) == passed_on, answer
        assert not found(answer.told, (*KEYS, f":{model_service_port}")), answer
        if not passed_on:
            assert not found(answer.told, WORDS, model_service_port), answer
    assert not found(said_since(proven_app, start), EVERY_MARK, model_service_port)


async def test_a_sign_in_that_fails_is_not_quoted(
    functions_app: Callable[..., HostedApp],
    app_settings: dict[str, str],
    echo: Echo,
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
        asker = Asker(app)
        async with asker.client:
            for way in WAYS:
                await asker.ask("no sign-in", **request(way))
            await asker.ask("ready", "/ready", method="GET")
        assert {answer.status for answer in asker.answers} <= {200, 502, 503}
        assert all("upstream_auth" in answer.told for answer in asker.answers if "text/plain" not in answer.told)
        for answer in asker.answers:
            assert not found(answer.told, EVERY_MARK, model_service_port), answer
        # Why a sign-in failed is azure-identity's to say, in its service's words: nobody could mend it otherwise.
        quoted = {IDENTITY_HEADER} if identity is managed else {TOKEN, HEADER}
        assert not found(said_since(app, start), set(EVERY_MARK) - quoted, model_service_port)


# ── The app's own faults ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def crashing_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with exceptions that quote the prompt and the answer."""
    env = app_settings | {"AZURE_OPENAI_API_KEY": MODEL_KEY}
    return functions_app(env=env, key=FUNCTION_KEY, script_root=CRASHING_APP, fresh=True)


async def test_a_crash_in_a_stream_quotes_nothing(crashing_app: HostedApp, model_service: ModelService) -> None:
    model_service.answer([ANSWER, " ", ANSWER])
    model_service.tokens_per_second = 50
    start = crashing_app.output
    asker = Asker(crashing_app)
    async with asker.client:
        for way in FORMATS:
            asked = request(way)
            asked["json"]["instructions"] = "fail while reading the answer"
            await asker.ask(way, **asked)
    for answer in asker.answers:
        assert "internal_error" in answer.told or "text/plain" in answer.told, answer
        assert not found(answer.told, (PROMPT, *KEYS, "what to do"), model_service.port)
    await eventually(lambda: said_since(crashing_app, start).count('"relay.code":"internal_error"') == len(FORMATS))
    assert "ValueError at function_app.py" in said_since(crashing_app, start), "the record says where"
    assert not found(said_since(crashing_app, start), (*EVERY_MARK, "what to do"), model_service.port)


async def test_a_crash_before_a_stream_quotes_nothing(crashing_app: HostedApp, model_service: ModelService) -> None:
    start = crashing_app.output
    asker = Asker(crashing_app)
    async with asker.client:
        for way in FORMATS:
            asked = request(way)
            asked["json"]["instructions"] = "fail before asking"
            await asker.ask(way, **asked)
    assert {answer.status for answer in asker.answers} == {500}
    for answer in asker.answers:
        assert "internal_error" in answer.told, answer
        assert not found(answer.told, (*EVERY_MARK, "what to do"), model_service.port), answer
    assert not found(said_since(crashing_app, start), (*EVERY_MARK, "what to do"), model_service.port)


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
    good = {"AZURE_OPENAI_ENDPOINT": "https://a.openai.azure.com/", "AZURE_OPENAI_DEPLOYMENTS": "a"}
    if "AZURE_OPENAI_BACKENDS" in wrong:
        good = {}
    problem = Backends.configured(good | wrong)
    assert isinstance(problem, Problem)
    assert problem.code == "not_configured"
    for told in (problem.document("an-id"), problem.openai_document("an-id")):
        assert SETTING not in told.decode()
    printed = "".join(capfd.readouterr())
    assert printed.count("not_configured") == len(problem.errors)
    assert SETTING not in printed
