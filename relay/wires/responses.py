"""`/v1/responses`: OpenAI's Responses API, passed through but for what this app decides.

The body of a new response is forwarded value by value as it came; only the model's name and the output limit are this
app's own. A stored response is asked for, cancelled or deleted on the account that made it (`relay.upstream.pool`).
Source: OpenAI API reference, "Responses".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self
from urllib.parse import urlencode

from msgspec import Raw

from relay.problems import INVALID_REQUEST, RESPONSE_NOT_FOUND, FieldError, Problem
from relay.settings import Wire
from relay.streaming.events import Decoder, Encoder
from relay.upstream.request import Accounts, ModelName, UpstreamRequest, response_additions
from relay.wires.chat_completions import DocumentEncoder
from relay.wires.json_members import LookAlikes, MemberReader
from relay.wires.openai_members import problem_of, read_members
from relay.wires.responses_decoders import RESPONSE_ID, DocumentDecoder, EventDecoder, EventEncoder

UPSTREAM_PATH: Final = "/responses"

# Operations on what a response would be made of; the last segment of their paths.
Action = Literal["compact", "input_tokens"]
_OPERATIONS: Final[dict[Action, str]] = {"compact": "compact_response", "input_tokens": "count_input_tokens"}

_READ: Final = LookAlikes("model", "stream", "background", "max_output_tokens", "previous_response_id")


@dataclass(frozen=True, slots=True)
class NewResponse:
    """The body of `POST /v1/responses`, or of one of the operations that make no response of it (`action`).

    `members` are all members of the body as they stand in it; the others are those that this app reads. `response_id`
    is the previous response, which one account has. Only a response has an output limit.
    """

    members: dict[str, Raw]
    model: ModelName
    stream: bool
    background: bool
    max_output_tokens: int | None
    response_id: str | None
    action: Action | None = None
    wires: ClassVar[tuple[Wire, ...]] = ("responses",)

    def on(self, wire: Wire) -> Self:
        """The same for every deployment."""
        return self

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service."""
        if self.action is not None:
            return UpstreamRequest(
                f"{UPSTREAM_PATH}/{self.action}",
                {**self.members},
                stream=False,
                operation=_OPERATIONS[self.action],
                counts_usage=self.action == "compact",
            )
        additions = response_additions(max_output_tokens=max_output_tokens, limit=self.max_output_tokens)
        parameters = {**self.members, **additions.parameters()}
        return UpstreamRequest(UPSTREAM_PATH, parameters, self.stream, additions=additions, creates_response=True)

    def decoder(self) -> Decoder:
        """A decoder that passes the upstream's events, or its document, on unchanged.

        A response in the background goes on without its caller, who needs its id: nothing of it is held back.
        """
        return EventDecoder(hold=not self.background) if self.stream else DocumentDecoder()

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response; OpenAI's API has no other formats to accept."""
        return EventEncoder() if self.stream else DocumentEncoder()


def parse(body: bytes, deployment: str | None = None, *, action: Action | None = None) -> NewResponse | Problem:
    """What the body asks for, or the problem that names each field and the remedy.

    `deployment` is the model that the path names; the body's own is then of no effect, as it is for Azure. What this
    app does not decide is left to the model service to judge.
    """
    members = read_members(body, "an input")
    if isinstance(members, Problem):
        return members
    reader = MemberReader(members)
    request = NewResponse(
        members=members,
        model=deployment or reader.string("model"),
        stream=action is None and reader.boolean("stream"),
        background=action is None and reader.boolean("background"),
        max_output_tokens=None if action is not None else reader.positive_integer("max_output_tokens"),
        response_id=reader.string("previous_response_id"),
        action=action,
    )
    return problem_of(reader, _READ.find(members)) or request


def parse_compact(body: bytes, deployment: str | None = None) -> NewResponse | Problem:
    """The same for `POST /v1/responses/compact`."""
    return parse(body, deployment, action="compact")


def parse_input_tokens(body: bytes, deployment: str | None = None) -> NewResponse | Problem:
    """The same for `POST /v1/responses/input_tokens`."""
    return parse(body, deployment, action="input_tokens")


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A request that concerns the stored response `response_id`.

    `path` is below the API's base address, with the query. `stream` asks for its events, those after `starting_after`.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    operation: str
    response_id: str
    stream: bool = False
    starting_after: int = -1
    wires: ClassVar[tuple[Wire, ...]] = ("responses",)

    @property
    def model(self) -> ModelName:
        """No deployment is concerned: the account is looked for."""
        return Accounts.EVERY

    def on(self, wire: Wire) -> Self:
        """The same for every account."""
        return self

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service."""
        return UpstreamRequest(
            self.path,
            None,
            self.stream,
            method=self.method,
            not_found=RESPONSE_NOT_FOUND,
            operation=self.operation,
            creates_response=True,
            counts_usage=False,
        )

    def decoder(self) -> Decoder:
        """A decoder that passes everything on; the tokens were recorded when the response was made."""
        return EventDecoder(hold=False) if self.stream else DocumentDecoder(self.response_id)

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response."""
        return EventEncoder(starting_after=self.starting_after) if self.stream else DocumentEncoder()


_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_MAX_PARAMETERS: Final = 32
_MAX_VALUE_LENGTH: Final = 256  # characters

# The query parameters of each request, which are passed on as they came; and those that are for this app's own host and
# what stands before it, which are not.
_RETRIEVE: Final = frozenset({"include", "include[]", "include_obfuscation", "stream", "starting_after"})
_LIST: Final = frozenset({"include", "include[]", "after", "before", "limit", "order"})
_NOT_PASSED_ON: Final = frozenset({"code", "clientId", "api-version", "subscription-key"})

Query = Iterable[tuple[str, str]]


def retrieve(response_id: str, query: Query) -> StoredResponse | Problem:
    """`GET /v1/responses/{id}`."""
    return _stored("GET", "fetch_response", response_id, "", query, _RETRIEVE)


def input_items(response_id: str, query: Query) -> StoredResponse | Problem:
    """`GET /v1/responses/{id}/input_items`."""
    return _stored("GET", "list_input_items", response_id, "/input_items", query, _LIST)


def delete(response_id: str, query: Query) -> StoredResponse | Problem:
    """`DELETE /v1/responses/{id}`."""
    return _stored("DELETE", "delete_response", response_id, "", query, frozenset())


def cancel(response_id: str, query: Query) -> StoredResponse | Problem:
    """`POST /v1/responses/{id}/cancel`."""
    return _stored("POST", "cancel_response", response_id, "/cancel", query, frozenset())


def _stored(
    method: Literal["GET", "POST", "DELETE"],
    operation: str,
    response_id: str,
    suffix: str,
    query: Query,
    known: frozenset[str],
) -> StoredResponse | Problem:
    if not RESPONSE_ID.fullmatch(response_id):
        return INVALID_REQUEST.with_errors(
            FieldError("response_id", "must be the id of a response: letters, digits, _ and -, 256 at most")
        )
    parameters = [(name, value) for name, value in query if name not in _NOT_PASSED_ON]
    if errors := _query_errors(parameters, known):
        return INVALID_REQUEST.with_errors(*errors)
    values = dict(parameters)
    path = f"{UPSTREAM_PATH}/{response_id}{suffix}"
    return StoredResponse(
        method=method,
        path=f"{path}?{urlencode(parameters)}" if parameters else path,
        operation=operation,
        response_id=response_id,
        stream=values.get("stream", "").lower() == "true",
        starting_after=int(values.get("starting_after", -1)),
    )


def _query_errors(parameters: list[tuple[str, str]], known: frozenset[str]) -> list[FieldError]:
    if len(parameters) > _MAX_PARAMETERS:
        return [FieldError("query", f"must have {_MAX_PARAMETERS} parameters at most")]
    errors = []
    for name, value in parameters:
        if name not in known:
            expected = f"leave it out, or use {', '.join(sorted(known))}" if known else "leave it out"
            shown = name if RESPONSE_ID.fullmatch(name) else "query"
            errors.append(FieldError(shown, f"is not a parameter of this request; {expected}"))
        elif len(value) > _MAX_VALUE_LENGTH:
            errors.append(FieldError(name, f"must have {_MAX_VALUE_LENGTH} characters at most"))
        elif name == "stream" and value.lower() not in ("true", "false"):
            errors.append(FieldError(name, "must be true or false"))
        elif name == "starting_after" and not _NUMBER.fullmatch(value):
            errors.append(FieldError(name, "must be the sequence number of an event, a whole number"))
    return errors
