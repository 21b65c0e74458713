"""What every wire's parsed request offers to the code that streams its answer."""

from typing import Protocol

from relay.streaming.events import Decoder, Encoder
from relay.upstream.request import ModelName, UpstreamRequest


class WireRequest(Protocol):
    """A caller's request, parsed.

    `model` is the name that the caller gave; None for the default model. `response_id` is that of a stored response
    which the request names: its account is asked first.
    """

    @property
    def model(self) -> ModelName: ...

    @property
    def response_id(self) -> str | None: ...

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; `max_output_tokens` is the app's cap."""
        ...

    def decoder(self) -> Decoder:
        """A new decoder for one upstream answer."""
        ...

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response, by the request's `Accept` header."""
        ...
