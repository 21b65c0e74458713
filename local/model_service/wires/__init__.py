"""The wires, one module each: the HTTP APIs of the service. A new one is a subclass of `Wire`, and one line here."""

from local.model_service.wires.base import Wire
from local.model_service.wires.chat_completions import ChatCompletions
from local.model_service.wires.embeddings import Embeddings
from local.model_service.wires.models import Models
from local.model_service.wires.responses import Responses

WIRES: tuple[type[Wire], ...] = (
    ChatCompletions,
    Responses,
    Embeddings,
    Models,
)

__all__ = ["WIRES", "Wire"]
