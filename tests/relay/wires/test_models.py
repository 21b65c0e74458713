"""`GET /v1/models` and `GET /v1/models/{model}`."""

from relay.wires import models


def test_one_model_is_as_in_the_list() -> None:
    assert models.model_document("meta/llama", 1_700_000_000) == (
        b'{"id":"meta/llama","object":"model","created":1700000000,"owned_by":"azure-openai"}'
    )


def test_the_list_has_the_models_in_their_order() -> None:
    assert models.document(("b", "a"), 1_700_000_000) == (
        b'{"object":"list","data":['
        b'{"id":"b","object":"model","created":1700000000,"owned_by":"azure-openai"},'
        b'{"id":"a","object":"model","created":1700000000,"owned_by":"azure-openai"}]}'
    )
