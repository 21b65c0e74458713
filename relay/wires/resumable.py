"""Streams that can be resumed: `POST /stream` with `"resumable": true`, `GET` and `DELETE /stream/{id}`.

The model service generates such an answer in the background, and keeps it: a response of the Responses API. What names
a place in it, here and in the caller's events, is RESPONSE.N: the response's id and the sequence number of the event
after which to go on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal
from urllib.parse import urlencode

from relay.problems import INVALID_REQUEST, NOT_FOUND, RESPONSE_NOT_FOUND, FieldError, Problem
from relay.settings import Settings, Wire
from relay.streaming.events import Decoder
from relay.upstream.request import OWNER, Accounts, ModelName, UpstreamRequest
from relay.wires.responses import UPSTREAM_PATH
from relay.wires.responses_decoders import RESPONSE_ID
from relay.wires.resumable_encoders import ResumableEncoder, resumable_encoder_for
from relay.wires.resumable_text import ResumableTextDecoder
from relay.wires.stream import StreamRequest
from relay.wires.stream_on_responses import ResponsesCall

_WIRE: Final[Wire] = "responses"

_OFF: Final = "the app setting RESUMABLE_STREAMS is off"
OFF: Final = NOT_FOUND.with_detail(f"No stream can be resumed here: {_OFF}.")


@dataclass(frozen=True, slots=True)
class ResumableRequest:
    """A new stream that can be resumed, by `owner` only."""

    request: StreamRequest
    owner: str
    wires: ClassVar[tuple[Wire, ...]] = (_WIRE,)

    @property
    def model(self) -> ModelName:
        """The name that the caller gave."""
        return self.request.model

    @property
    def response_id(self) -> None:
        """No stored response is named."""

    def check(self, model: ModelName, settings: Settings) -> Problem | None:
        """Why the settings do not allow this stream of this model to be resumed; None where they do."""
        return _check(self.request, model, settings)

    def on(self, wire: Wire) -> "ResumableCall":
        """By the Responses API, the only one that has responses in the background."""
        return ResumableCall(self.request, self.owner)

    def encoder(self, accept: str | None) -> ResumableEncoder:
        """The encoder of the response, for an `Accept` header."""
        return resumable_encoder_for(accept)


@dataclass(frozen=True, slots=True)
class ResumableCall:
    """The request for a response in the background."""

    request: StreamRequest
    owner: str

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; it is the one to keep whose the response is."""
        request = ResponsesCall(self.request).upstream_request(max_output_tokens=max_output_tokens)
        added = {"background": True, "store": True, "metadata": {OWNER: self.owner}}
        return replace(request, parameters={**(request.parameters or {}), **added}, creates_response=True)

    def decoder(self) -> Decoder:
        """A decoder of the answer's text and of its place."""
        return ResumableTextDecoder(reasoning=self.request.reasoning_summary is not None)


def _check(request: StreamRequest, model: ModelName, settings: Settings) -> Problem | None:
    if not settings.resumable_streams:
        return _problem("resumable", f"is not allowed here: {_OFF}; leave it out")
    if not request.stream:
        return _problem("resumable", 'needs a stream: leave out "stream": false, or this field')
    model = model or settings.models[0]
    wires = {backend.wire for backend in settings.backends if backend.model == model}
    if wires and _WIRE not in wires:  # a model that does not exist is a problem of its own
        return _problem(
            "resumable",
            "is possible only where a deployment of the model has the Responses API, which none of this model is "
            'stated to have ("wire": "responses" in AZURE_OPENAI_BACKENDS); leave it out, or name another model',
        )
    return None


@dataclass(frozen=True, slots=True)
class Resumption:
    """A request to go on with the response `response_id`, after the event `after` (-1: from the beginning).

    `skipped`: bytes of the text that the caller has, for plain text. `accept` is the header.
    """

    response_id: str
    after: int = -1
    skipped: int = 0
    accept: str | None = None

    def stream(self, *, reasoning: bool) -> "ResumedStream":
        """The request for the events; `reasoning`: their caller asked for the summary of the reasoning."""
        return ResumedStream(self, reasoning)


@dataclass(frozen=True, slots=True)
class ResumedStream:
    """The request for the events of an earlier response, as a stream is asked."""

    resumption: Resumption
    reasoning: bool
    wires: ClassVar[tuple[Wire, ...]] = (_WIRE,)

    @property
    def model(self) -> Literal[Accounts.EVERY]:
        """No deployment is concerned: the account is looked for."""
        return Accounts.EVERY

    @property
    def response_id(self) -> str:
        """The response's id."""
        return self.resumption.response_id

    def on(self, wire: Wire) -> "ResumedStream":
        """The same for every account."""
        return self

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service."""
        query = {"stream": "true"}
        if self.resumption.after >= 0:
            query["starting_after"] = str(self.resumption.after)
        return UpstreamRequest(
            f"{UPSTREAM_PATH}/{self.response_id}?{urlencode(query)}",
            None,
            stream=True,
            method="GET",
            not_found=RESPONSE_NOT_FOUND,
            operation="resume_stream",
            creates_response=True,
        )

    def decoder(self) -> Decoder:
        """A decoder of the text after the event."""
        return ResumableTextDecoder(reasoning=self.reasoning, response_id=self.response_id, after=self.resumption.after)

    def encoder(self, accept: str | None) -> ResumableEncoder:
        """The encoder of the response, for an `Accept` header."""
        resumption = self.resumption
        event_id = f"{resumption.response_id}.{resumption.after}".encode() if resumption.after >= 0 else b""
        return resumable_encoder_for(accept, event_id, resumption.skipped)


_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_FOR_OTHERS: Final = frozenset({"code", "clientId", "api-version", "subscription-key"})  # for what is before the app
_MAX_PARAMETERS: Final = 16

_ID_ERROR: Final = FieldError(
    "response_id", "must be the id of a response, or of an event of a stream: RESPONSE or RESPONSE.NUMBER"
)


def parse_resumption(place: str, query: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> Resumption | Problem:
    """`GET /stream/{place}`: where to go on.

    The header `Last-Event-ID`, which an `EventSource` sends when it connects again to the address that it was given, is
    before the query's `after`, and that before the number in the path.
    """
    found = _split(place)
    if found is None:
        return INVALID_REQUEST.with_errors(_ID_ERROR)
    response_id, after = found
    parameters = {name: value for name, value in query if name not in _FOR_OTHERS}
    errors = [
        FieldError(name if RESPONSE_ID.fullmatch(name) else "query", "is not a parameter of this request; leave it out")
        for name in list(parameters)[:_MAX_PARAMETERS]
        if name not in ("after", "after_bytes")
    ]
    numbers: dict[str, int] = {}
    for name in ("after", "after_bytes"):
        if name not in parameters:
            continue
        if not _NUMBER.fullmatch(parameters[name]):
            errors.append(FieldError(name, "must be a whole number, 0 or greater"))
        else:
            numbers[name] = int(parameters[name])
    last = headers.get("last-event-id", "")
    if last:
        last_found = _split(last)
        if last_found is None or last_found[0] != response_id or last_found[1] < 0:
            errors.append(
                FieldError("Last-Event-ID", f"must be the id of an event of this stream: {response_id}.NUMBER")
            )
        else:
            after = last_found[1]
    accept = headers.get("accept")
    skipped = numbers.get("after_bytes", 0)
    if "after_bytes" in numbers and not resumable_encoder_for(accept).breaks_off:
        errors.append(FieldError("after_bytes", "is for plain text only (Accept: text/plain); use after"))
    if errors:
        return INVALID_REQUEST.with_errors(*errors)
    if "after_bytes" in numbers:
        return Resumption(response_id, -1, skipped, accept)
    return Resumption(response_id, after if last else numbers.get("after", after), 0, accept)


def parse_stop(place: str) -> str | Problem:
    """`DELETE /stream/{place}`: the id of the response."""
    found = _split(place)
    return INVALID_REQUEST.with_errors(_ID_ERROR) if found is None else found[0]


def stopped(response_id: str) -> bytes:
    """What a caller gets whose answer was stopped and deleted."""
    return b'{"id":"%b","deleted":true}\n' % response_id.encode()


def _split(place: str) -> tuple[str, int] | None:
    """The response's id, and the number of an event, -1 where it names none."""
    response_id, dot, number = place.partition(".")
    if not RESPONSE_ID.fullmatch(response_id) or (dot and not _NUMBER.fullmatch(number)):
        return None
    return response_id, int(number) if dot else -1


def _problem(field: str, message: str) -> Problem:
    return INVALID_REQUEST.with_errors(FieldError(field, message))
