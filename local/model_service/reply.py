"""The response to one request before it is written: its content, and how each event of it is made."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from local.model_service.encoding import Document, as_json
from local.model_service.errors import error_object
from local.model_service.steps import Event, EventKind, Headers, Pause, Raw, Step, Token


class Reply(ABC):
    """What all the events of a response, or its one document, agree on. Each wire has a subclass.

    Faults act on it and on its steps, so that one fault serves every wire. A wire that does not stream needs
    `document` only; the methods that do nothing here are for the wires that need them.
    """

    done_events: tuple[Event, ...] = ()  # what marks the end of a stream
    filter_each_token: bool = True  # whether a token's event carries the content filter's results
    escape: bool = False  # whether everything beyond ASCII is written as \uXXXX
    paced: bool = True  # whether its tokens wait until they are due
    numbered: bool = True  # where events have a sequence number: whether it is written
    sequence_number: int = 0  # of the next event

    def __init__(self, model: str) -> None:
        self.model = model
        self.request_id = secrets.token_urlsafe(21)
        self.created = int(time.time())

    @abstractmethod
    def document(self) -> Document:
        """The whole response to a request that asked for no stream."""

    @property
    def token_counts(self) -> Sequence[int]:
        """How many tokens each choice has."""
        return ()

    def begin(self) -> None:  # noqa: B027
        """Called once, when the faults have changed the reply and before its first step."""

    def end(self, *, aborted: bool) -> None:  # noqa: B027
        """Called once, when nothing more is written; `aborted`: the caller disconnected."""

    # The steps of a healthy response

    def stream(self) -> Iterator[Step]:
        """The steps of a healthy stream."""
        raise NotImplementedError

    def whole(self, seconds: float) -> Iterator[Step]:
        """The steps of a healthy response in one document, `seconds` after its request."""
        body = as_json(self.document(), escape=self.escape)
        if seconds:
            yield Pause(seconds)
        yield Headers()
        yield Raw(body[: len(body) // 2])
        yield Raw(body[len(body) // 2 :])

    # How a step is written

    def token(self, token: Token) -> bytes:
        """The payload of one token's event."""
        raise NotImplementedError

    def token_name(self, token: Token) -> bytes:
        """The event type of one token's event."""
        return b""

    def event(self, event: Event) -> bytes:
        """The payload of an event as it is written."""
        return event.payload

    # Events that faults insert

    def error_event(self, code: str = "server_error", message: str = "The server had an error.") -> Event:
        """The event that reports an error in the middle of a stream."""
        return Event("odd", as_json({"error": error_object(code, message, kind="server_error")}))

    def malformed_event(self) -> Event:
        """An event that is not JSON: cut off in its middle."""
        return Event("odd", b'{"data":[{"cut off mid')

    def text_event(self, text: str | None) -> Event:
        """An event with this text that counts as no token."""
        raise NotImplementedError

    def reasoning_event(self, text: str) -> Event:
        """An event with a part of the reasoning, beside the text, that counts as no token."""
        raise NotImplementedError

    def raw_text_event(self, literal: bytes) -> Event:
        """An event whose text is written as this JSON string literal, valid or not."""
        raise NotImplementedError

    def filter_event(self, checked: int, written: int) -> Event:
        """An event of the asynchronous content filter: results for the text between two positions, in characters."""
        raise NotImplementedError

    # Changes by faults, before the first step only

    def stop_by_filter(self, tokens: int) -> None:
        """Let the content filter stop each choice after so many tokens."""
        raise NotImplementedError

    def stop_by_limit(self, tokens: int) -> None:
        """Let the token limit stop each choice after so many tokens."""
        raise NotImplementedError

    def refuse(self) -> None:
        """Let the text of each choice be the reason why the model refuses."""
        raise NotImplementedError

    def fail(self, tokens: int, code: str | None, message: str) -> None:
        """Let the answer fail after so many tokens, as the wire reports that in a response of status 200."""
        raise NotImplementedError

    def leave_out(self, *kinds: EventKind) -> None:  # noqa: B027
        """Leave out of other events what the events of these kinds carry on other wires."""

    def failed_finish_event(self) -> Event:
        """The event that ends a choice by an error."""
        raise NotImplementedError
