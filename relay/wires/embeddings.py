"""`POST /v1/embeddings`: OpenAI's API, passed through but for the model's name (OpenAI API reference, "Embeddings")."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import msgspec
from msgspec import Raw, Struct

from relay.problems import INVALID_REQUEST, UPSTREAM_ERROR, UPSTREAM_INTERRUPTED, FieldError, Problem
from relay.settings import Wire
from relay.streaming.events import Decoder, Done, Encoder, Event, Failed
from relay.upstream.request import ModelName, UpstreamRequest
from relay.upstream.sse import EventTooLongError, SSEDecoder
from relay.usage import Usage
from relay.wires.chat_completions import DocumentEncoder
from relay.wires.decoding import (
    BOM,
    UNREADABLE,
    WholeDocumentDecoder,
    failure_in,
    is_event_stream,
    short_name,
    without_marker,
)
from relay.wires.json_members import LookAlikes, MemberReader
from relay.wires.openai_members import problem_of, read_members

UPSTREAM_PATH: Final = "/embeddings"

_READ: Final = LookAlikes("model", "input")


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """The body of `POST /v1/embeddings`. `members` are all members of the body as they stand in it."""

    members: dict[str, Raw]
    model: ModelName
    response_id: str | None = None
    wires: ClassVar[tuple[Wire, ...]] = ("embeddings",)

    def on(self, wire: Wire) -> Self:
        """The same for every deployment."""
        return self

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; there is no output to limit."""
        return UpstreamRequest(UPSTREAM_PATH, {**self.members}, stream=False, operation="embeddings")

    def decoder(self) -> Decoder:
        """A decoder that passes the document on unchanged."""
        return EmbeddingDecoder()

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response."""
        return DocumentEncoder()


def parse(body: bytes, deployment: str | None = None) -> EmbeddingRequest | Problem:
    """What the body asks for, or the problem that names each field and the remedy.

    `deployment` is the model that the path names; otherwise the body has to name it, since the default one is for text.
    """
    members = read_members(body, "model and input")
    if isinstance(members, Problem):
        return members
    reader = MemberReader(members)
    model = deployment or reader.string("model")
    if model is None and not reader.errors:
        reader.add_error("model", "is required: name a model of embeddings, one of GET /v1/models")
    if "input" not in members:
        reader.add_error("input", "is required")
    return problem_of(reader, _READ.find(members)) or EmbeddingRequest(members, model)


_DATA_START: Final = 32  # bytes of the list that are looked at


class _Document(Struct, gc=False):
    """What is read of the document; members of another type than the API's do not make it unreadable."""

    object: Any = None
    model: Any = None
    usage: Any = None
    data: Raw = Raw(b"null")
    error: Any = None

    @property
    def has_embeddings(self) -> bool:
        """Whether it is a list with anything in it; some servers leave out the member that calls it a list."""
        start = b"".join(bytes(memoryview(self.data)[:_DATA_START]).split())
        return not self.error and self.object in (None, "list") and start[:1] == b"[" and start[:2] != b"[]"

    def tokens(self) -> Usage | None:
        """The tokens of the input, where they can be read."""
        count = self.usage.get("prompt_tokens") if isinstance(self.usage, dict) else None
        return Usage(max(0, int(count)), 0) if isinstance(count, int | float) and abs(count) < 10**9 else None


# Bytes. A batch of 2,048 inputs in 3,072 dimensions takes 34 MB in base64, which OpenAI's clients ask for; 90 MB else.
_MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
_TOO_LONG: Final = INVALID_REQUEST.with_errors(
    FieldError("input", 'has too many embeddings for one answer; send fewer at once, or ask for "base64"')
)
_MAX_PARSED_BYTES: Final = 1024 * 1024  # a longer document is not parsed: that would block the event loop
_USAGE_AT_END: Final = 4096  # bytes at the end of such a document in which its usage is looked for


class EmbeddingDecoder(WholeDocumentDecoder):
    """Decodes a document of embeddings: read for the record, and passed on unchanged."""

    def _too_long(self, size: int) -> Failed | None:
        if size <= _MAX_DOCUMENT_BYTES:
            return None
        self._document.clear()
        return Failed(_TOO_LONG, f"the model service's answer is longer than {_MAX_DOCUMENT_BYTES} bytes")

    def end(self) -> list[Event]:
        """The document is complete, if it is one."""
        content = without_marker(bytes(self._document.removeprefix(BOM)))
        self._document.clear()
        if is_event_stream(content):
            content = _first_event(content)
        return [self._read(content)]

    def cut(self, reason: str) -> list[Event]:
        """The connection broke; a document that is whole all the same counts, unless it is too long to be parsed."""
        if len(self._document) > _MAX_PARSED_BYTES:
            return [Failed(UPSTREAM_INTERRUPTED, reason)]
        return super().cut(reason)

    def _read(self, content: bytes) -> Done | Failed:
        not_embeddings = "the model service's answer is not a list of embeddings"
        if len(content) > _MAX_PARSED_BYTES:
            document = _read_end(content)
        else:
            try:
                document = msgspec.json.decode(content, type=_Document)
            except UNREADABLE as error:
                return failure_in(content) or Failed(UPSTREAM_ERROR, f"{not_embeddings} ({type(error).__name__})")
            if not document.has_embeddings:
                return failure_in(content) or Failed(UPSTREAM_ERROR, not_embeddings)
        if document is None:
            return Failed(UPSTREAM_ERROR, not_embeddings)
        self.model = short_name(document.model) or None
        self.usage = document.tokens()
        return Done(None, self.model, self.usage, None, document=content)


def _first_event(content: bytes) -> bytes:
    """The data of the first event, where a stream was sent in place of a document."""
    decoder = SSEDecoder()
    try:
        return (decoder.feed(content) + decoder.end() or [b""])[0]
    except EventTooLongError:
        return b""


def _read_end(content: bytes) -> _Document | None:
    """What is read of a long document: its usage follows the embeddings. None for what is no JSON object."""
    content = content.strip()
    if content[:1] != b"{" or content[-1:] != b"}":
        return None
    _, found, usage = content[-_USAGE_AT_END:].rpartition(b'"usage"')
    try:
        return msgspec.json.decode(b'{"usage"' + usage, type=_Document) if found else _Document()
    except UNREADABLE:
        return _Document()
