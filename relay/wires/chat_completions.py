"""`POST /v1/chat/completions`: OpenAI's API, passed through but for what this app decides.

The body is forwarded value by value as it came; only the model's name, the output limit and the request for usage are
this app's own.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.problems import INVALID_JSON, INVALID_REQUEST, Problem
from relay.streaming.events import Decoder, Done, Encoder, Failed, Text, Verbatim
from relay.upstream.request import UpstreamRequest, chat_additions
from relay.wires.chat_decoders import DocumentDecoder, VerbatimDecoder
from relay.wires.json_members import LookAlikes, MemberReader, TooManyMembersError, split_members

UPSTREAM_PATH: Final = "/chat/completions"

_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_LOOK_ALIKES: Final = LookAlikes("model", "messages", "stream", "stream_options", "n", *_OUTPUT_LIMITS)
_LOOK_ALIKES_IN_OPTIONS: Final = LookAlikes("include_usage")
_MAX_MEMBERS: Final = 256  # OpenAI's API has about forty, other servers' additions included a hundred
_MAX_ERRORS: Final = 20
_MAX_NAME: Final = 100  # characters of a caller's name in an error


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
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        members = split_members(body, _MAX_MEMBERS)
    except msgspec.ValidationError:
        return INVALID_REQUEST.with_detail("The body must be one JSON object with messages in it.")
    except (ValueError, RecursionError):
        return INVALID_JSON.with_detail('Send one JSON object in UTF-8, with "model" and "messages".')
    except TooManyMembersError:
        return INVALID_REQUEST.with_detail(f"The body may have {_MAX_MEMBERS} members at most; leave out the others.")
    reader = MemberReader(members)
    request = ChatCompletionRequest(
        members=members,
        model=deployment or reader.string("model"),
        stream=reader.boolean("stream"),
        stream_options=reader.object("stream_options"),
        output_limits={name: limit for name in _OUTPUT_LIMITS if (limit := reader.positive_integer(name)) is not None},
        choices=reader.positive_integer("n") or 1,
    )
    if "messages" not in members:
        reader.add_error("messages", "is required")
    # A model service that took `MODEL` for `model` would let a caller pass by what this app decides.
    look_alikes = _LOOK_ALIKES.find(members)
    look_alikes += [(f"stream_options.{it}", like) for it, like in _LOOK_ALIKES_IN_OPTIONS.find(request.stream_options)]
    for name, like in look_alikes:
        reader.add_error(name[:_MAX_NAME], f"must be written {like}, or left out")
    return INVALID_REQUEST.with_errors(*reader.errors[:_MAX_ERRORS]) if reader.errors else request


class EventEncoder:
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


class DocumentEncoder:
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
