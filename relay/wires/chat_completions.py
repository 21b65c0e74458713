"""`POST /v1/chat/completions`: OpenAI's API, passed through but for what this app decides.

The body is forwarded value by value as it came; only the model's name, the output limit and the request for usage are
this app's own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from msgspec import Raw

from relay.problems import Problem
from relay.settings import Wire
from relay.streaming.events import Decoder, Done, Encoder, Failed, Text, Verbatim
from relay.upstream.request import OUTPUT_LIMITS, UpstreamRequest, chat_additions
from relay.wires.chat_decoders import DocumentDecoder, VerbatimDecoder
from relay.wires.json_members import LookAlikes, MemberReader
from relay.wires.openai_members import problem_of, read_members

UPSTREAM_PATH: Final = "/chat/completions"

_LOOK_ALIKES: Final = LookAlikes("model", "messages", "stream", "stream_options", "n", *OUTPUT_LIMITS)
_LOOK_ALIKES_IN_OPTIONS: Final = LookAlikes("include_usage")


@dataclass(frozen=True, slots=True)
class ChatCompletionRequest:
    """The body of `POST /v1/chat/completions` (OpenAI API reference, "Create chat completion").

    `members` are all members of the body as they stand in it; the others are those that this app reads.
    """

    members: dict[str, Raw]
    model: str | None
    stream: bool
    stream_options: dict[str, Any]
    output_limits: dict[str, int]
    choices: int
    response_id: None = None
    wires: ClassVar[tuple[Wire, ...]] = ("chat",)

    def on(self, wire: Wire) -> Self:
        """The same for every deployment."""
        return self

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service."""
        additions = chat_additions(
            stream=self.stream,
            max_output_tokens=max_output_tokens,
            stream_options=self.stream_options,
            output_limits=self.output_limits,
            choices=self.choices,
        )
        parameters = {**self.members, **additions.parameters()}
        return UpstreamRequest(UPSTREAM_PATH, parameters, self.stream, additions=additions)

    def decoder(self) -> Decoder:
        """A decoder that passes the upstream's events, or its document, on unchanged."""
        return VerbatimDecoder(self.choices) if self.stream else DocumentDecoder(self.choices)

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response; OpenAI's API has no other formats to accept."""
        if not self.stream:
            return DocumentEncoder()
        return EventEncoder(include_usage=self.stream_options.get("include_usage") is True)


def parse(body: bytes, deployment: str | None = None) -> ChatCompletionRequest | Problem:
    """What the body asks for, or the problem that names each field and the remedy.

    `deployment` is the model that the path names; the body's own is then of no effect, as it is for Azure. What this
    app does not decide is left to the model service to judge.
    """
    members = read_members(body, "messages", '"model" and "messages"')
    if isinstance(members, Problem):
        return members
    reader = MemberReader(members)
    request = ChatCompletionRequest(
        members=members,
        model=deployment or reader.string("model"),
        stream=reader.boolean("stream"),
        stream_options=reader.object("stream_options"),
        output_limits={name: limit for name in OUTPUT_LIMITS if (limit := reader.positive_integer(name)) is not None},
        choices=reader.positive_integer("n") or 1,
    )
    if "messages" not in members:
        # Cursor's agent sends the body of a response here (BerriAI/litellm#34029).
        hint = "; a body with input is for POST /v1/responses" if "input" in members else ""
        reader.add_error("messages", f"is required{hint}")
    look_alikes = _LOOK_ALIKES.find(members)
    look_alikes += [(f"stream_options.{it}", like) for it, like in _LOOK_ALIKES_IN_OPTIONS.find(request.stream_options)]
    return problem_of(reader, look_alikes) or request


class EventEncoder(Encoder):
    """OpenAI's event stream: the upstream's events as they came, the usage only for a caller who asked for it.

    A failure midway is an event with an error object and then a broken transfer: the OpenAI client for .NET skips such
    an event, and would take a clean end after it for that of a complete answer.
    """

    media_type = "text/event-stream; charset=utf-8"
    whole = False
    breaks_off = True
    ping = b": ping\n\n"

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage

    def text(self, text: Text) -> bytes:
        if not isinstance(text, Verbatim) or (text.usage and not self._include_usage):
            return b""
        events = b"\n\ndata: ".join([event.replace(b"\n", b"\ndata: ") for event in text.events])
        return b"data: %b\n\n" % events

    def done(self, done: Done) -> bytes:
        return b"data: [DONE]\n\n"

    def failed(self, failed: Failed, request_id: str) -> bytes:
        return b"data: %b\n\n" % failed.problem.openai_document(request_id)


class DocumentEncoder(Encoder):
    """OpenAI's document, as the upstream wrote it."""

    media_type = "application/json"
    whole = True
    breaks_off = False
    ping = b""

    def text(self, text: Text) -> bytes:
        return b""

    def done(self, done: Done) -> bytes:
        return done.document or b""

    def failed(self, failed: Failed, request_id: str) -> None:
        return None
