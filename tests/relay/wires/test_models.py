"""`GET /v1/models`."""

from relay.wires import models


def test_the_list_has_the_models_in_their_order() -> None:
    assert models.document(("b", "a"), 1_700_000_000) == (
        b'{"object":"list","data":['
        b'{"id":"b","object":"model","created":1700000000,"owned_by":"azure-openai"},'
        b'{"id":"a","object":"model","created":1700000000,"owned_by":"azure-openai"}]}'
    )
