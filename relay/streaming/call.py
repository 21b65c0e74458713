"""What is asked of a deployment, by one upstream wire."""

from typing import Protocol

from relay.streaming.events import Decoder
from relay.upstream.request import UpstreamRequest


class UpstreamCall(Protocol):
    """A request as it is asked by one upstream wire, and how the answer is read."""

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; `max_output_tokens` is the app's cap."""
        ...

    def decoder(self) -> Decoder:
        """A new decoder for one upstream answer."""
        ...
