"""What the wires have in common: the path of a request from its body to the end of its response."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec
from aiohttp import web

from local.model_service import faults
from local.model_service.deployments import is_missing, is_paced_manually
from local.model_service.encoding import Document
from local.model_service.errors import ErrorResponse, deployment_not_found, invalid_request
from local.model_service.faults import Injection
from local.model_service.records import Record
from local.model_service.reply import Reply
from local.model_service.state import ServiceState
from local.model_service.steps import Headers, Step
from local.model_service.writer import PacedWriter


class Wire(ABC):
    """One HTTP API of the service."""

    def __init__(self, state: ServiceState) -> None:
        self.state = state

    @abstractmethod
    def routes(self, base: str) -> Iterator[web.RouteDef]:
        """The routes of the API below `base`, a path without a slash at its end."""


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

    def routes(self, base: str) -> Iterator[web.RouteDef]:
        yield web.post(base + self.path, self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        try:
            body = msgspec.json.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = None
        auth, error = self.state.authenticate(request)
        record = self.state.record(request, body if isinstance(body, dict) else {}, auth, arrived)
        try:
            injections: tuple[Injection, ...] = ()
            error = error or _address_error(body)
            if error is None:
                record.fault = self.state.take_fault(record.deployment)
                try:
                    injections = faults.parse(record.fault) if record.fault else ()
                except ValueError as problem:
                    error = invalid_request("unknown_fault", str(problem), "model")
            for injection in injections:
                if error is None and injection.fault.error:
                    error = injection.fault.error(injection.arguments)
                if error is None and injection.fault.refuse:
                    error = injection.fault.refuse(record.body, injection.arguments)
            reply = error or await self._valid_reply(request, record, injections)
            if isinstance(reply, ErrorResponse):
                record.status = reply.status
                record.end("fault")
                return reply.as_response()
            response = await self._respond(request, record, reply, injections)
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

    async def _valid_reply(
        self, request: web.Request, record: Record, injections: Sequence[Injection]
    ) -> Reply | ErrorResponse:
        lenient = any(injection.fault.lenient for injection in injections)
        error = None if lenient else self.validate(record.body)
        if error is None:
            ignored = {name for injection in injections for name in injection.fault.ignored}
            body = {name: value for name, value in record.body.items() if name not in ignored}
            return self.reply(body, self.state.fixed_answer(record.deployment, injections))
        # What a fault does before the headers, it does to a request with such an error as well.
        steps: Iterator[Step] = iter((Headers(),))
        for injection in injections:
            if injection.fault.steps:
                steps = injection.fault.steps(steps, _NoReply(record.deployment), injection.arguments)
        await PacedWriter(request, record, self.state.notify, pause=0, batch=1).write_before_headers(steps)
        return error

    async def _respond(
        self, request: web.Request, record: Record, reply: Reply, injections: Sequence[Injection]
    ) -> web.StreamResponse:
        state = self.state
        streams = record.body.get("stream") is True
        unpaced = any(injection.fault.unpaced for injection in injections)
        pause = 1 / state.tokens_per_second if state.tokens_per_second and not unpaced else 0.0
        writer = PacedWriter(request, record, state.notify, pause=pause, batch=1 if pause else state.tokens_per_write)
        writer.time_to_first_token = state.time_to_first_token
        if is_paced_manually(record.deployment):
            writer.gate = state.gates[record.deployment]
        if streams:
            steps = reply.stream()
        else:
            writer.content_type = "application/json"
            steps = reply.whole(state.time_to_first_token + max(reply.token_counts, default=0) * pause)
        for injection in injections:
            fault = injection.fault
            if fault.steps:
                steps = fault.steps(steps, reply, injection.arguments)
            if fault.split:
                writer.split = fault.split(injection.arguments)
            writer.frame = fault.frame or writer.frame
            writer.content_type = fault.content_type or writer.content_type
        response = await writer.write(steps, reply)
        if not streams:
            record.token_times.extend([time.monotonic()] * sum(reply.token_counts))
        return response


class _NoReply(Reply):
    """For the faults of a request that has an error: its steps end before the headers."""

    def document(self) -> Document:
        return {}

    def stop_by_filter(self, tokens: int) -> None:
        pass


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
