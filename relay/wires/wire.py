"""What every wire's parsed request offers to the code that streams its answer."""

from typing import Protocol

from relay.settings import Wire
from relay.streaming.call import UpstreamCall
from relay.streaming.events import Encoder
from relay.upstream.request import ModelName


class WireRequest(Protocol):
    """A caller's request, parsed.

    `model` is the name that the caller gave; None for the default model. `response_id` is that of a stored response
    which the request names: its account is asked first. `wires` are the upstream wires that the request can be sent by.
    """

    @property
    def model(self) -> ModelName: ...

    @property
    def response_id(self) -> str | None: ...

    @property
    def wires(self) -> tuple[Wire, ...]: ...

    def on(self, wire: Wire) -> UpstreamCall:
        """The request as a deployment with this wire is asked it.

        A request of OpenAI's API is the same for every deployment, whatever wire it is stated to have.
        """
        ...

    def encoder(self, accept: str | None) -> Encoder:
        """The encoder of the response, by the request's `Accept` header."""
        ...
