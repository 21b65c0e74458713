"""The simulated model service: Azure OpenAI's v1 chat completions over HTTP, with faults on demand, and a memory of
what was asked of it.

    python -m local.model_service --port 7072          # stands alone
    async with ModelService(tokens_per_second=0) as service: …   # inside a test

What it sends is in `wire`, what it says in `answers`, how it fails in `faults` (a deployment named `fault-429`, for
example, refuses; `python -m local.faults` prints the table). Further deployments mean something by their name:

| deployment | |
|---|---|
| `paced-by-hand…` | each token waits for `release()` or `POST /control/release` |
| `o3…`, `…reasoning…` | a reasoning model: refuses `temperature`, `top_p` and `max_tokens` |
| `…missing…` | 404, code DeploymentNotFound |
| any other | answers |

It listens on 127.0.0.1 only, and writes neither prompts nor keys to any log.
"""

import argparse
import asyncio
import hmac
import math
import re
import secrets
import signal
import socket
import struct
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
from aiohttp import web

from local import answers, faults, wire
from local.wire import Choice, Cut, Document, Event, Headers, Pause, Raw, Refusal, Reply, Step, Token

LIMIT_BODY = 64 * 1024 * 1024  # bytes
LIMIT_RECORDS = 20_000  # the older half is forgotten beyond
MODEL_VERSION = "2026-03-17"
DEFAULT_DEPLOYMENT = "gpt-5.4-mini"
BY_HAND = "paced-by-hand"
EVERY = "*"  # in `faults` and `answers`: whatever the deployment

type Ending = Literal["open", "complete", "aborted", "fault"]
type Planned = str | list[str | None] | None


@dataclass(slots=True)
class Record:
    """What the service saw of one request. Times are of `time.monotonic()`, in seconds."""

    index: int
    deployment: str
    path: str
    body: Document
    auth: Literal["key", "token"] | None
    headers: dict[str, str]
    arrived: float
    fault: str | None = None
    status: int | None = None
    token_times: array[float] = field(default_factory=lambda: array("d"))  # when each token was written
    ended: Ending = "open"
    ended_at: float | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return len(self.token_times)

    def end(self, how: Ending) -> None:
        """Note how the request ended; the first note stands."""
        if self.ended == "open":
            self.ended, self.ended_at = how, time.monotonic()

    def as_document(self) -> Document:
        """The record as `GET /control/requests` gives it."""
        return {
            "index": self.index,
            "deployment": self.deployment,
            "path": self.path,
            "body": self.body,
            "auth": self.auth,
            "headers": self.headers,
            "arrived": self.arrived,
            "fault": self.fault,
            "status": self.status,
            "tokens": self.tokens,
            "token_times": self.token_times.tolist(),
            "ended": self.ended,
            "ended_at": self.ended_at,
        }


@dataclass(slots=True)
class IdentityEndpoint:
    """App Service's managed identity endpoint (`IDENTITY_ENDPOINT`, `IDENTITY_HEADER`), as it should behave now.

    `failure` is a status to answer with instead of a token, or a list of such, one a request, None for a good answer.
    """

    header: str = field(default_factory=secrets.token_hex)
    lifetime: float = 24 * 3600.0  # seconds
    delay: float = 0.0  # seconds
    failure: int | list[int | None] | None = None
    calls: list[dict[str, str]] = field(default_factory=list)
    issued: dict[str, float] = field(default_factory=dict)  # token: when it expires, in seconds since 1970

    def accepts(self, token: str) -> bool:
        """Whether the token was issued here and has not expired."""
        return self.issued.get(token, 0.0) > time.time()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """`GET …?api-version=2019-08-01&resource=…[&client_id=…]`, by
        https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
        """
        self.calls.append(dict(request.query))
        if self.delay:
            await asyncio.sleep(self.delay)
        failure = (self.failure.pop(0) if self.failure else None) if isinstance(self.failure, list) else self.failure
        if not hmac.compare_digest(request.headers.get("X-IDENTITY-HEADER", "").encode(), self.header.encode()):
            failure = 401
        if not request.query.get("resource") or request.query.get("api-version") != "2019-08-01":
            failure = 400
        if failure:
            return _json({"statusCode": failure, "message": "No token for this request."}, failure)
        token = f"local.{secrets.token_urlsafe(48)}.{len(self.issued)}"
        expires = time.time() + self.lifetime
        self.issued[token] = expires
        return _json(
            {
                "access_token": token,
                "client_id": request.query.get("client_id", "00000000-0000-0000-0000-000000000000"),
                "expires_on": str(math.ceil(expires)),
                "resource": request.query["resource"],
                "token_type": "Bearer",
            }
        )


class ModelService:
    """The service on a port of 127.0.0.1, as an asynchronous context.

    `tokens_per_second` 0 means no pause at all: then `tokens_per_write` tokens go out together. `api_key`: the one that
    is accepted, any when None; `accept_token` the same for bearer tokens; `require_issued_token`: only tokens that the
    identity endpoint issued and that have not expired.

    While it runs, `faults`, `answers`, `identity` and the pace may be changed; a change holds for the next request.
    `faults` maps a deployment (or `EVERY`) to the name of a fault, or to a list that is used up, one a request.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        tokens_per_second: float = 50.0,
        time_to_first_token: float = 0.0,
        tokens_per_write: int = 64,
        deployments: Sequence[str] = (),
        api_key: str | None = None,
        accept_token: str | None = None,
        require_issued_token: bool = False,
        identity: IdentityEndpoint | None = None,
    ) -> None:
        self.port = port
        self.tokens_per_second = tokens_per_second
        self.time_to_first_token = time_to_first_token
        self.tokens_per_write = tokens_per_write
        self.deployments = tuple(dict.fromkeys((DEFAULT_DEPLOYMENT, *deployments)))
        self.api_key = api_key
        self.accept_token = accept_token
        self.require_issued_token = require_issued_token
        self.identity = identity or IdentityEndpoint()
        self.requests: list[Record] = []
        self.faults: dict[str, Planned] = {}
        self.answers: dict[str, Sequence[str]] = {}
        self._seen = 0
        self._gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))
        self._waiting: set[asyncio.Future[None]] = set()
        self._runner: web.AppRunner | None = None

    # ── Life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; raises `OSError` when the port is taken. After `stop()`, the same port again."""
        application = web.Application(client_max_size=LIMIT_BODY)
        application.add_routes(self._routes())
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.05, keepalive_timeout=300
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, backlog=1024).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base of OpenAI's wire, as an Azure account has it; ends in a slash."""
        return f"{self.origin}/openai/v1/"

    @property
    def identity_url(self) -> str:
        """What `IDENTITY_ENDPOINT` should be."""
        return f"{self.origin}/msi/token"

    # ── What tests ask ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def open_requests(self) -> int:
        """How many completions are under way."""
        return sum(record.ended == "open" for record in self.requests)

    async def wait_for(self, predicate: Callable[[Self], object], timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until the predicate of this service holds; raises `TimeoutError` after `timeout` seconds.

        It is asked again whenever a request arrives, tokens are written or a request ends.
        """
        async with asyncio.timeout(timeout):
            while not predicate(self):
                changed = asyncio.get_running_loop().create_future()
                self._waiting.add(changed)
                try:
                    await changed
                finally:
                    self._waiting.discard(changed)

    def release(self, tokens: int = 1, deployment: str = BY_HAND) -> None:
        """Let a deployment that is paced by hand write so many more tokens, over all its requests."""
        for _ in range(tokens):
            self._gates[deployment].release()

    def answer(self, text: str | Sequence[str], deployment: str = EVERY) -> None:
        """From now on answer with exactly this text, in these tokens if it is a list of them."""
        self.answers[deployment] = answers.tokenize(text) if isinstance(text, str) else list(text)

    def reset(self) -> None:
        """Forget the requests that ended, all faults and answers, and what was released to no one."""
        self.requests[:] = [record for record in self.requests if record.ended == "open"]
        self.faults.clear()
        self.answers.clear()
        waiting = {record.deployment for record in self.requests}
        for deployment in self._gates.keys() - waiting:
            del self._gates[deployment]
        self.identity.calls.clear()
        self.identity.failure = None

    def _changed(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    # ── Routes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _routes(self) -> Iterator[web.RouteDef]:
        for base in ("/openai/v1", "/v1"):
            yield web.post(f"{base}/chat/completions", self._complete)
            yield web.get(f"{base}/models", self._models)
            yield web.get(f"{base}/models/{{model}}", self._model)
        yield web.get("/msi/token", self._token)
        yield web.get("/control/state", self._control_state)
        yield web.get("/control/requests", self._control_requests)
        controls: dict[str, Callable[[Any, Mapping[str, str]], None]] = {
            "faults": self._control_faults,
            "answer": self._control_answer,
            "release": self._control_release,
            "pace": self._control_pace,
            "identity": self._control_identity,
            "reset": lambda _body, _query: self.reset(),
        }
        for name, control in controls.items():
            yield web.post(f"/control/{name}", self._controlled(control))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        refused = self._authorize(request)[1] or self._refused_model(EVERY)
        if refused:
            return _refuse(refused)
        return _json({"object": "list", "data": [_model_document(name) for name in self.deployments]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        refused = self._authorize(request)[1] or self._refused_model(name)
        if refused:
            return _refuse(refused)
        return _json(_model_document(name))

    async def _token(self, request: web.Request) -> web.StreamResponse:
        return await self.identity.answer(request)

    def _refused_model(self, deployment: str) -> Refusal | None:
        """The refusal that a lasting fault has for a request that asks for no completion."""
        if "missing" in deployment:
            return wire.deployment_not_found()
        planned = self.faults.get(deployment, self.faults.get(EVERY, deployment))
        if isinstance(planned, str) and (planned != deployment or deployment.startswith(faults.PREFIX)):
            try:
                injections = faults.parse(planned)
            except ValueError:
                return wire.deployment_not_found()
            for injection in injections:
                if injection.fault.refuse:
                    return injection.fault.refuse(injection.arguments)
        return None

    def _authorize(self, request: web.Request) -> tuple[Literal["key", "token"] | None, Refusal | None]:
        """Which proof the request carries, and the refusal if it does not do."""
        key = request.headers.get("api-key")
        if key:
            good = self.api_key is None or hmac.compare_digest(key.encode(), self.api_key.encode())
            return "key", None if good and not self.require_issued_token else wire.wrong_key()
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None, wire.wrong_key()
        # An OpenAI client that was given a key sends it as the bearer, and the v1 endpoint takes it.
        good = self.accept_token in (None, token) or token == self.api_key
        if self.require_issued_token:
            good = self.identity.accepts(token)
        return "token", None if good else wire.wrong_token()

    # ── One completion ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        try:
            body = msgspec.json.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = None
        auth, refused = self._authorize(request)
        record = self._record(request, body if isinstance(body, dict) else {}, auth, arrived)
        try:
            refused = refused or _unaddressed(body)
            injections: tuple[faults.Injection, ...] = ()
            if refused is None:
                try:
                    injections = self._injections(record)
                except ValueError as problem:
                    refused = wire.invalid("unknown_fault", str(problem), "model")
            for injection in injections:
                if refused is None and injection.fault.refuse:
                    refused = injection.fault.refuse(injection.arguments)
            if refused is None and (refused := _misunderstood(body)):
                await self._before_refusal(request, record, injections)
            choices: list[Choice] = []
            if refused is None:
                try:
                    choices = self._choices(record, injections)
                except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
                    # All that can be wrong here is a JSON schema: one that contradicts or contains itself.
                    refused = wire.invalid("invalid_json_schema", "Invalid schema.", "response_format")
            if refused:
                record.status = refused.status
                record.end("fault")
                return _refuse(refused)
            response = await self._answer(request, record, choices, injections)
            record.end("fault" if any(injection.fault.breaks for injection in injections) else "complete")
            return response
        except asyncio.CancelledError:
            record.end("aborted")
            raise
        except ConnectionResetError:
            record.end("aborted")
            # The write noticed before the cancellation came; what follows is the same, and no failure to log.
            raise asyncio.CancelledError from None
        finally:
            self._changed()

    def _record(
        self, request: web.Request, body: Document, auth: Literal["key", "token"] | None, arrived: float
    ) -> Record:
        headers = {name: request.headers[name] for name in _HEADERS_KEPT if name in request.headers}
        record = Record(self._seen, str(body.get("model", "")), request.path, body, auth, headers, arrived)
        self._seen += 1
        self.requests.append(record)
        if len(self.requests) > LIMIT_RECORDS:
            del self.requests[: LIMIT_RECORDS // 2]
        self._changed()
        return record

    def _injections(self, record: Record) -> tuple[faults.Injection, ...]:
        """The faults of this request: what is planned for its deployment, else what the deployment's name asks for."""
        deployment = record.deployment
        name: str | None = deployment if deployment.startswith(faults.PREFIX) else None
        for key in (deployment, EVERY):
            if key in self.faults:
                planned = self.faults[key]
                name = (planned.pop(0) if planned else None) if isinstance(planned, list) else planned
                break
        record.fault = name
        return faults.parse(name) if name else ()

    async def _before_refusal(
        self, request: web.Request, record: Record, injections: Sequence[faults.Injection]
    ) -> None:
        """What a fault does before the headers befalls a request as well that is refused for what it asks."""
        steps: Iterator[Step] = iter((Headers(),))
        reply = Reply(model=record.deployment, choices=(), prompt_tokens=0)
        for injection in injections:
            if injection.fault.steps:
                steps = injection.fault.steps(steps, reply, injection.arguments)
        await _Writing(request, record, self._changed, pause=0, batch=1).precede(steps)

    async def _answer(
        self, request: web.Request, record: Record, choices: Sequence[Choice], injections: Sequence[faults.Injection]
    ) -> web.StreamResponse:
        body = record.body
        streams = body.get("stream") is True
        unpaced = any(injection.fault.unpaced for injection in injections)
        pause = 1 / self.tokens_per_second if self.tokens_per_second and not unpaced else 0.0
        reply = self._reply(body, choices, streams=streams)
        writing = _Writing(request, record, self._changed, pause=pause, batch=1 if pause else self.tokens_per_write)
        writing.first = self.time_to_first_token
        if record.deployment.startswith(BY_HAND):
            writing.gate = self._gates[record.deployment]
        if streams:
            steps = wire.streamed(reply)
        else:
            writing.content_type = "application/json"
            longest = max(len(choice.written) for choice in reply.choices)
            steps = wire.at_once(reply, self.time_to_first_token + longest * pause)
        for injection in injections:
            fault = injection.fault
            if fault.steps:
                steps = fault.steps(steps, reply, injection.arguments)
            if fault.slices:
                writing.slices = fault.slices(injection.arguments)
            writing.frame = fault.frame or writing.frame
            writing.content_type = fault.content_type or writing.content_type
        response = await writing.play(steps, reply)
        if not streams:
            record.token_times.extend([time.monotonic()] * sum(len(choice.written) for choice in reply.choices))
        return response

    def _choices(self, record: Record, injections: Sequence[faults.Injection]) -> list[Choice]:
        body = record.body
        fixed = self.answers.get(record.deployment, self.answers.get(EVERY))
        for injection in injections:
            if injection.fault.text:
                fixed = injection.fault.text(injection.arguments)
        if fixed is None:
            call = _call(body)
            if call:
                return [Choice((), "tool_calls", call)]
        variants = range(body.get("n") or 1)
        return [_limited(body, fixed, _text(body, variant) if fixed is None else "") for variant in variants]

    def _reply(self, body: Document, choices: Sequence[Choice], *, streams: bool) -> Reply:
        options = body.get("stream_options") or {}
        return Reply(
            model=_model_name(str(body["model"])),
            choices=choices,
            prompt_tokens=answers.prompt_tokens(body["messages"]),
            reasoning_tokens=64 if _reasons(str(body["model"])) else 0,
            include_usage=streams and options.get("include_usage") is True,
            obfuscate=streams and options.get("include_obfuscation") is not False,
            logprobs=body.get("logprobs") is True,
            top_logprobs=min(int(body.get("top_logprobs") or 0), 4),
        )

    # ── Control by HTTP ──────────────────────────────────────────────────────────────────────────────────────────────

    def _controlled(
        self, control: Callable[[Any, Mapping[str, str]], None]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            text = await request.read()
            try:
                control(msgspec.json.decode(text) if text else {}, request.query)
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                return _json({"error": f"{type(problem).__name__}: {problem}"}, 400)
            return await self._control_state(request)

        return handle

    async def _control_state(self, _: web.Request) -> web.StreamResponse:
        return _json(
            {
                "open_requests": self.open_requests,
                "requests": self._seen,
                "endings": Counter(record.ended for record in self.requests),
                "tokens": sum(record.tokens for record in self.requests),
                "tokens_per_second": self.tokens_per_second,
                "faults": self.faults,
                "identity_calls": len(self.identity.calls),
            }
        )

    async def _control_requests(self, request: web.Request) -> web.StreamResponse:
        """`?deployment=…&limit=…` (the latest); `token_times=0` leaves the times out."""
        wanted = request.query.get("deployment")
        records = [record for record in self.requests if wanted in (None, record.deployment)]
        documents = [record.as_document() for record in records[-int(request.query.get("limit", 1000)) :]]
        if request.query.get("token_times") == "0":
            for document in documents:
                del document["token_times"]
        return _json(documents)

    def _control_faults(self, body: Mapping[str, Planned], _: Mapping[str, str]) -> None:
        """`{"gpt-5.4-mini": "429", "other": ["503", null, "cut-midway-3"]}`: added to what is planned."""
        for planned in body.values():
            for name in planned if isinstance(planned, list) else [planned]:
                if name:
                    faults.parse(name)
        self.faults.update(body)

    def _control_answer(self, body: Mapping[str, Any], _: Mapping[str, str]) -> None:
        """`{"deployment": "*", "text": "…"}` or with `"tokens": ["…", …]` in its place; neither: as it was."""
        deployment = str(body.get("deployment", EVERY))
        if "tokens" in body or "text" in body:
            self.answer(body["tokens"] if "tokens" in body else str(body["text"]), deployment)
        else:
            self.answers.pop(deployment, None)

    def _control_release(self, _: object, query: Mapping[str, str]) -> None:
        self.release(int(query.get("tokens", 1)), query.get("deployment", BY_HAND))

    def _control_pace(self, body: Mapping[str, Any], _: Mapping[str, str]) -> None:
        self.tokens_per_second = float(body.get("tokens_per_second", self.tokens_per_second))
        self.time_to_first_token = float(body.get("time_to_first_token", self.time_to_first_token))

    def _control_identity(self, body: Mapping[str, Any], _: Mapping[str, str]) -> None:
        self.identity.lifetime = float(body.get("lifetime", self.identity.lifetime))
        self.identity.delay = float(body.get("delay", self.identity.delay))
        self.identity.failure = body.get("failure", self.identity.failure)
        self.require_issued_token = bool(body.get("require_issued_token", self.require_issued_token))


class _Writing:
    """One response on its way out: takes the steps one by one, keeps the pace, notes what was written when."""

    def __init__(
        self, request: web.Request, record: Record, changed: Callable[[], None], *, pause: float, batch: int
    ) -> None:
        self.request = request
        self.record = record
        self.changed = changed
        self.pause = pause  # seconds between tokens
        self.batch = batch  # tokens in one write
        self.first = 0.0  # seconds before the first token
        self.gate: asyncio.Semaphore | None = None
        self.frame: wire.Frame = wire.plain_frame
        self.slices: faults.Slice | None = None
        self.content_type = "text/event-stream; charset=utf-8"
        self.response: web.StreamResponse | None = None
        self._held: list[bytes] = []
        self._tokens_held = 0

    async def play(self, steps: Iterator[Step], reply: Reply) -> web.StreamResponse:
        """Carry out the steps to their end; the connection may be gone by then, if a step said so."""
        frame, held, batch = self.frame, self._held, 1 if self.gate else self.batch
        now = time.monotonic
        due = now() + self.first
        paced = bool(self.pause or self.first)
        for step in steps:
            match step:
                case Token():
                    if paced or self.gate:
                        if held:
                            await self._flush()
                        if self.gate:
                            await self.gate.acquire()
                        elif (wait := due - now()) > 0:
                            await asyncio.sleep(wait)
                        due += self.pause
                        paced = self.pause > 0
                    held.append(frame(reply.token(step)))
                    self._tokens_held += 1
                    if self._tokens_held >= batch:
                        await self._flush()
                        if not self.pause:
                            await asyncio.sleep(0)  # an unpaced stream must let others live, and notice its end
                case Event(payload=payload):
                    held.append(frame(payload))
                case Raw(body=body):
                    held.append(body)
                case Headers():
                    await self._begin(reply)
                case Pause(seconds=seconds):
                    await self._flush()
                    await _pause(seconds)
                    due += seconds
                case Cut(reset=reset):
                    await self._flush()
                    await self._cut(reset=reset)
        await self._flush()
        if self.slices:
            await self._write_pieces(None)
        if self.response is None:
            await self._begin(reply)
        assert self.response is not None
        await self.response.write_eof()
        return self.response

    async def precede(self, steps: Iterator[Step]) -> None:
        """Carry out the steps that come before the headers, and no more."""
        for step in steps:
            match step:
                case Pause(seconds=seconds):
                    await _pause(seconds)
                case Cut(reset=reset):
                    await self._cut(reset=reset)
                case _:
                    return

    async def _begin(self, reply: Reply) -> None:
        headers = {
            "Content-Type": self.content_type,
            "apim-request-id": reply.id.removeprefix("chatcmpl-"),
            "x-request-id": reply.id.removeprefix("chatcmpl-"),
            "x-ms-region": "Local",
            "x-ratelimit-remaining-requests": "999",
            "x-ratelimit-remaining-tokens": "999000",
        }
        if (given := self.request.headers.get("x-ms-client-request-id")) is not None:
            headers["x-ms-client-request-id"] = given
        self.response = web.StreamResponse(headers=headers)
        self.record.status = 200
        await self.response.prepare(self.request)

    async def _flush(self) -> None:
        if not self._held:
            return
        assert self.response is not None
        written = b"".join(self._held) if len(self._held) > 1 else self._held[0]
        self._held.clear()
        if self.slices:
            await self._write_pieces(written)
        else:
            await self.response.write(written)
        if self._tokens_held == 1:
            self.record.token_times.append(time.monotonic())
        elif self._tokens_held:
            self.record.token_times.extend([time.monotonic()] * self._tokens_held)
        self._tokens_held = 0
        self.changed()

    async def _write_pieces(self, written: bytes | None) -> None:
        assert self.slices is not None
        assert self.response is not None
        for piece in self.slices(written):
            await self.response.write(piece)
            await asyncio.sleep(0)

    async def _cut(self, *, reset: bool) -> None:
        """End the connection: closed after all that was written, or reset; the record says that we did it."""
        transport = self.request.transport
        self.record.end("fault")
        if transport is not None:
            if reset:
                await asyncio.sleep(0.02)  # what was written first arrives, as far as we can tell
                connection: socket.socket = transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                transport.close()
        await asyncio.get_running_loop().create_future()  # the end of the connection cancels this handler


async def _pause(seconds: float) -> None:
    await (asyncio.sleep(seconds) if seconds < math.inf else asyncio.get_running_loop().create_future())


# ── What a request asks for ──────────────────────────────────────────────────────────────────────────────────────────

_HEADERS_KEPT = (
    "accept",
    "content-type",
    "traceparent",
    "user-agent",
    "x-ms-client-request-id",
    "x-request-id",
    "x-stainless-retry-count",
)


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None


class _JSONSchema(msgspec.Struct):
    name: str
    schema: dict[str, Any]


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _JSONSchema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


type _Count = Annotated[int, msgspec.Meta(ge=1)]


class _Asked(msgspec.Struct):
    """The types of what this service makes use of; the rest of a request is not looked at."""

    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_completion_tokens: _Count | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: _ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None


def _unaddressed(body: object) -> Refusal | None:
    """The refusal of a body that leads to no deployment: found before the deployment has its say, and any fault."""
    if not isinstance(body, dict):
        return wire.invalid(None, "We could not parse the JSON body of your request.")
    model = body.get("model")
    if not model:
        return wire.invalid("missing_required_parameter", "Missing required parameter: 'model'.", "model")
    if not isinstance(model, str):
        return wire.invalid("invalid_type", "Invalid type for 'model': expected a string.", "model")
    return wire.deployment_not_found() if "missing" in model else None


def _misunderstood(body: Document) -> Refusal | None:
    """The refusal of a request that the deployment can't carry out, in the order in which it finds fault."""
    if not body.get("messages"):
        return wire.invalid("missing_required_parameter", "Missing required parameter: 'messages'.", "messages")
    try:
        model = msgspec.convert(body, _Asked).model
    except msgspec.ValidationError as problem:
        where = re.search(r"`\$\.(\w+)", str(problem))
        return wire.invalid("invalid_type", f"Invalid request: {problem}.", where[1] if where else None)
    if _reasons(model):
        if body.get("max_tokens") is not None:
            return wire.invalid(
                "unsupported_parameter",
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead.",
                "max_tokens",
            )
        for name in ("temperature", "top_p"):
            if body.get(name) not in (None, 1):
                return wire.invalid(
                    "unsupported_value",
                    f"Unsupported value: '{name}' does not support {body[name]} with this model. "
                    "Only the default (1) value is supported.",
                    name,
                )
    return None


def _reasons(deployment: str) -> bool:
    return bool(re.match(r"o\d", deployment)) or "reasoning" in deployment


def _text(body: Document, variant: int) -> str:
    """The whole answer, before any limit: text, or JSON if the request wants that."""
    messages = body["messages"]
    wanted = body.get("response_format") or {}
    prompt = answers.last_user_text(messages)
    if wanted.get("type") == "json_schema":
        return wire.as_json(answers.fitting(wanted["json_schema"]["schema"], prompt)).decode()
    if wanted.get("type") == "json_object":
        return wire.as_json(
            {"answer": answers.compose(messages, variant=variant), "topics": answers.topics(prompt)}
        ).decode()
    if messages[-1]["role"] == "tool":
        return answers.after_tools(messages)
    return answers.compose(messages, variant=variant)


def _limited(body: Document, tokens: Sequence[str] | None, text: str) -> Choice:
    """The answer up to the first stop sequence and the token limit."""
    reason = "stop"
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if stops:
        text = text if tokens is None else "".join(tokens)
        ends = [text.find(stop) for stop in stops if stop in text]
        if ends:
            text, tokens = text[: min(ends)], None
    if tokens is None:
        tokens = answers.tokenize(text)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit and len(tokens) > limit:
        tokens, reason = tokens[:limit], "length"
    return Choice(tokens, reason)


def _call(body: Document) -> wire.Call | None:
    """The tool call that answers the request: when the user spoke last and tools are offered, one is called."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice == "none" or body["messages"][-1]["role"] != "user":
        return None
    functions = [tool["function"] for tool in tools if tool["type"] == "function"]
    if isinstance(choice, dict):
        functions = [one for one in functions if one["name"] == choice.get("function", {}).get("name")]
    if not functions:
        return None
    arguments = answers.fitting(
        functions[0].get("parameters") or {"type": "object"}, answers.last_user_text(body["messages"])
    )
    return wire.Call(functions[0]["name"], answers.tokenize(wire.as_json(arguments).decode()))


def _model_name(deployment: str) -> str:
    """The model that a deployment runs, with its version."""
    base = deployment if re.match(r"gpt-|o\d", deployment) else DEFAULT_DEPLOYMENT
    return f"{base}-{MODEL_VERSION}"


def _model_document(name: str) -> Document:
    return {"id": name, "object": "model", "created": 1773705600, "owned_by": "azure-openai"}


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=wire.as_json(document), status=status, content_type="application/json")


def _refuse(refused: Refusal) -> web.Response:
    headers = {**refused.headers, "Content-Type": refused.content_type, "x-request-id": secrets.token_hex(16)}
    return web.Response(body=refused.body, status=refused.status, headers=headers)


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """`python -m local.model_service`: serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m local.model_service", description="A simulated model service.")
    parser.add_argument("--port", type=int, default=7072, help="0: any free one (default %(default)s)")
    parser.add_argument("--tokens-per-second", type=float, default=50.0, help="0: no pause (default %(default)s)")
    parser.add_argument("--time-to-first-token", type=float, default=0.2, help="seconds (default %(default)s)")
    parser.add_argument("--tokens-per-write", type=int, default=64, help="without a pause (default %(default)s)")
    parser.add_argument("--deployments", default="", help="listed beside the default one, separated by commas")
    parser.add_argument("--api-key", help="the key that is accepted (default: any)")
    parser.add_argument("--accept-token", help="the bearer token that is accepted (default: any)")
    parser.add_argument("--require-issued-token", action="store_true", help="take only tokens of /msi/token")
    parser.add_argument("--identity-header", help="what /msi/token expects as X-IDENTITY-HEADER (default: random)")
    options = parser.parse_args()
    service = ModelService(
        port=options.port,
        tokens_per_second=options.tokens_per_second,
        time_to_first_token=options.time_to_first_token,
        tokens_per_write=options.tokens_per_write,
        deployments=[name.strip() for name in options.deployments.split(",") if name.strip()],
        api_key=options.api_key,
        accept_token=options.accept_token,
        require_issued_token=options.require_issued_token,
        identity=IdentityEndpoint(header=options.identity_header) if options.identity_header else None,
    )
    asyncio.run(_serve(service))


async def _serve(service: ModelService) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await service.start()
    except OSError as problem:
        raise SystemExit(f"the model service can't listen on port {service.port}: {problem.strerror}") from None
    print(f"model service on {service.url}", flush=True)
    try:
        await ended.wait()
    finally:
        await service.stop()


if __name__ == "__main__":
    main()
