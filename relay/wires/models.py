"""`GET /v1/models`: the models that callers may name (OpenAI API reference, "List models", "Retrieve model")."""

from typing import Any

import msgspec


def document(names: tuple[str, ...], created: int) -> bytes:
    """The list of models; `created`, in Unix seconds, is when this app began to serve them."""
    return msgspec.json.encode({"object": "list", "data": [_model(name, created) for name in names]})


def model_document(name: str, created: int) -> bytes:
    """One model, as it is in the list."""
    return msgspec.json.encode(_model(name, created))


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "azure-openai"}
