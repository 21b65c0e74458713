"""The wires, one module each: the HTTP APIs of the service. A new one is a subclass of `Wire`, and one line here."""

from local.model_service.wires.base import Wire
from local.model_service.wires.chat_completions import ChatCompletions
from local.model_service.wires.models import Models

WIRES: tuple[type[Wire], ...] = (
    ChatCompletions,
    Models,
)

__all__ = ["WIRES", "Wire"]
