"""What the wires have in common: the path of a request from its body to the end of its response."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import ClassVar

import msgspec
from aiohttp import web

from local.model_service import faults
from local.model_service.deployments import is_missing, is_paced_manually
from local.model_service.encoding import Document
from local.model_service.errors import ErrorResponse, deployment_not_found, invalid_request, resource_not_found
from local.model_service.faults import Injection
from local.model_service.records import Record
from local.model_service.reply import Reply
from local.model_service.state import ServiceState
from local.model_service.steps import Headers, Step
from local.model_service.writer import PacedWriter

V1 = ("/openai/v1", "/v1")  # Azure's and OpenAI's
DATED = "/openai"  # Azure's older API, with `?api-version=` in each request
DEPLOYMENT = DATED + "/deployments/{deployment}"

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
type MakeReply = Callable[[Sequence[Injection]], Reply | ErrorResponse]


class Wire(ABC):
    """One HTTP API of the service."""

    name: ClassVar[str]  # as the table of faults calls it

    def __init__(self, state: ServiceState) -> None:
        self.state = state

    @abstractmethod
    def routes(self) -> Iterator[web.RouteDef]:
        """The routes of the API."""

    async def respond(
        self,
        request: web.Request,
        record: Record,
        make: MakeReply,
        *,
        error: ErrorResponse | None,
        streams: bool = False,
        by_name: bool = True,
    ) -> web.StreamResponse:
        """Write the error, or the reply that `make` makes, with the deployment's fault; the record gets the outcome.

        `by_name`: also a fault that the deployment's name asks for, and not only a planned one.
        """
        try:
            injections: tuple[Injection, ...] = ()
            if error is None:
                record.fault = self.state.take_fault(record.deployment, by_name=by_name)
                try:
                    injections = faults.parse(record.fault, self.name) if record.fault else ()
                except ValueError as problem:
                    error = invalid_request("unknown_fault", str(problem), "model")
            for injection in injections:
                error = error or injection.error(self.name)
                if error is None and injection.fault.refuse:
                    error = injection.fault.refuse(record.body, injection.arguments)
                if error is None and injection.fault.connection:
                    writer = PacedWriter(request, record, self.state.notify, pause=0, batch=1)
                    await writer.write_to_connection(injection.fault.connection(injection.arguments))
            reply = error or await self._make(request, record, make, injections)
            if isinstance(reply, ErrorResponse):
                record.status = reply.status
                record.end("fault")
                return reply.as_response()
            response = await self._write(request, record, reply, injections, streams=streams)
            record.end("fault" if any(injection.fault.breaks for injection in injections) else "complete")
            return response
        except asyncio.CancelledError:
            record.end("aborted")
            raise
        except ConnectionResetError:
            record.end("aborted")
            # The write noticed the disconnect before the cancellation came; this is the same, and no error to log.
            raise asyncio.CancelledError from None
        finally:
            self.state.notify()

    async def _make(
        self, request: web.Request, record: Record, make: MakeReply, injections: Sequence[Injection]
    ) -> Reply | ErrorResponse:
        reply = make(injections)
        if isinstance(reply, ErrorResponse):
            # What a fault does before the headers, it does to a request with such an error as well.
            steps: Iterator[Step] = iter((Headers(),))
            for injection in injections:
                if injection.fault.steps:
                    steps = injection.fault.steps(steps, _NoReply(record.deployment), injection.arguments)
            await PacedWriter(request, record, self.state.notify, pause=0, batch=1).write_before_headers(steps)
        return reply

    async def _write(
        self, request: web.Request, record: Record, reply: Reply, injections: Sequence[Injection], *, streams: bool
    ) -> web.StreamResponse:
        state = self.state
        for injection in injections:
            if injection.fault.reply:
                injection.fault.reply(reply, injection.arguments)
        unpaced = not reply.paced or any(injection.fault.unpaced for injection in injections)
        pause = 1 / state.tokens_per_second if state.tokens_per_second and not unpaced else 0.0
        writer = PacedWriter(request, record, state.notify, pause=pause, batch=1 if pause else state.tokens_per_write)
        if reply.paced:
            writer.time_to_first_token = state.time_to_first_token
            if is_paced_manually(record.deployment):
                writer.gate = state.gates[record.deployment]
        reply.begin()
        if streams:
            steps = reply.stream()
        else:
            writer.content_type = "application/json"
            steps = reply.whole(writer.time_to_first_token + max(reply.token_counts, default=0) * pause)
        for injection in injections:
            fault = injection.fault
            if fault.steps:
                steps = fault.steps(steps, reply, injection.arguments)
            if fault.split:
                writer.split = fault.split(injection.arguments)
            writer.frame = fault.frame or writer.frame
            writer.content_type = fault.content_type or writer.content_type
            if fault.headers:
                writer.headers |= fault.headers(injection.arguments)
        aborted = True
        try:
            response = await writer.write(steps, reply)
            aborted = False
        finally:
            reply.end(aborted=aborted and record.ended == "open")
        if not streams:
            record.token_times.extend([time.monotonic()] * sum(reply.token_counts))
        return response

    async def accept(self, request: web.Request) -> tuple[Document, Record, ErrorResponse | None]:
        """The body of a request with its deployment as `model`, its record, and the error of its address or key."""
        arrived = time.monotonic()
        body = await json_body(request)
        auth, error = self.state.authenticate(request)
        sent = body if isinstance(body, dict) else {}
        if isinstance(body, dict) and "deployment" in request.match_info:
            body = body | {"model": request.match_info["deployment"]}
        error = error or _address_error(body)
        used: Document = body if isinstance(body, dict) else {}
        record = self.state.record(request, sent, auth, deployment=str(used.get("model", "")), arrived=arrived)
        return used, record, error


class GenerationWire(Wire):
    """An API with one route, whose requests name a deployment as `model` and get something generated.

    Each request is recorded and commits the faults of its deployment.
    """

    path: ClassVar[str]  # below the base, with its slash

    @abstractmethod
    def validate(self, body: Document) -> ErrorResponse | None:
        """The error of a request that the deployment can't carry out, by the first thing that is wrong in it."""

    @abstractmethod
    def reply(self, body: Document, fixed_answer: Sequence[str] | None) -> Reply | ErrorResponse:
        """The reply to a valid request, with these tokens as its answer if they are given."""

    def routes(self) -> Iterator[web.RouteDef]:
        for base in V1:
            yield web.post(base + self.path, self._handle)
        yield web.post(DEPLOYMENT + self.path, dated(self._handle))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body, record, error = await self.accept(request)

        def make(injections: Sequence[Injection]) -> Reply | ErrorResponse:
            lenient = any(injection.fault.lenient for injection in injections)
            ignored = {name for injection in injections for name in injection.fault.ignored}
            used = {name: value for name, value in body.items() if name not in ignored}
            error = None if lenient else self.validate(body)
            return error or self.reply(used, self.state.fixed_answer(record.deployment, injections))

        return await self.respond(request, record, make, error=error, streams=body.get("stream") is True)


def dated(handler: Handler) -> Handler:
    """The same for Azure's older API: 404 without an API version."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not request.query.get("api-version"):
            return resource_not_found().as_response()
        return await handler(request)

    return handle


async def json_body(request: web.Request) -> object:
    """The decoded body; None when it is not JSON."""
    try:
        return msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class _NoReply(Reply):
    """For the faults of a request that has an error: its steps end before the headers."""

    def document(self) -> Document:
        return {}


def _address_error(body: object) -> ErrorResponse | None:
    """The error of a body that names no deployment: found before the deployment's own errors, and any fault."""
    if not isinstance(body, dict):
        return invalid_request(None, "We could not parse the JSON body of your request.")
    model = body.get("model")
    if not model:
        return invalid_request("missing_required_parameter", "Missing required parameter: 'model'.", "model")
    if not isinstance(model, str):
        return invalid_request("invalid_type", "Invalid type for 'model': expected a string.", "model")
    return deployment_not_found() if is_missing(model) else None
