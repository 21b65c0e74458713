"""The response to one request before it is written: its content, and how each event of it is made."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from local.model_service.encoding import Document, as_json
from local.model_service.errors import error_object
from local.model_service.steps import Event, Headers, Pause, Raw, Step, Token


class Reply(ABC):
    """What all the events of a response, or its one document, agree on. Each wire has a subclass.

    Faults act on it and on its steps, so that one fault serves every wire. A wire that does not stream needs
    `document` only.
    """

    token_event: bytes = b""  # the event type of a token's event
    done_events: tuple[Event, ...] = ()  # what marks the end of a stream
    filter_each_token: bool = True  # whether a token's event carries the content filter's results
    escape: bool = False  # whether everything beyond ASCII is written as \uXXXX

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

    def stream(self) -> Iterator[Step]:
        """The steps of a healthy stream."""
        raise NotImplementedError

    def token(self, token: Token) -> bytes:
        """The payload of one token's event."""
        raise NotImplementedError

    def text_event(self, text: str | None) -> Event:
        """An event with this text that counts as no token."""
        raise NotImplementedError

    def raw_text_event(self, literal: bytes) -> Event:
        """An event whose text is written as this JSON string literal, valid or not."""
        raise NotImplementedError

    def filter_event(self, checked: int, written: int) -> Event:
        """An event of the asynchronous content filter: results for the text between two positions, in characters."""
        raise NotImplementedError

    def stop_by_filter(self, tokens: int) -> None:
        """Let the content filter stop each choice after so many tokens; before the first step only."""
        raise NotImplementedError

    def error_event(self) -> Event:
        """The event that reports an error in the middle of a stream."""
        error = error_object("server_error", "The server had an error.", kind="server_error")
        return Event("odd", as_json({"error": error}))

    def failed_finish_event(self) -> Event:
        """The event that ends a choice by an error."""
        raise NotImplementedError

    def whole(self, seconds: float) -> Iterator[Step]:
        """The steps of a healthy response in one document, `seconds` after its request."""
        body = as_json(self.document(), escape=self.escape)
        if seconds:
            yield Pause(seconds)
        yield Headers()
        yield Raw(body[: len(body) // 2])
        yield Raw(body[len(body) // 2 :])
