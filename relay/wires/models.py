"""`GET /v1/models`: the models that callers may name (OpenAI API reference, "List models")."""

import msgspec


def document(names: tuple[str, ...], created: int) -> bytes:
    """The list of models; `created`, in Unix seconds, is when this app began to serve them."""
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": created, "owned_by": "azure-openai"} for name in names],
        }
    )
