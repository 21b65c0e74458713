"""A chat completion as a document and as chunks: either form in place of the other."""

import json
import time
from typing import Any

import pytest

from relay.wires.chat_documents import chunk_of, document_of, usage_chunk_of

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}


def message(**members: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **members}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]}


def delta(index: int = 0, finish_reason: str | None = None, /, **members: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "delta": members, "finish_reason": finish_reason}]}


def test_tool_calls_get_an_index_in_a_chunk() -> None:
    chunk = json.loads(chunk_of(message(tool_calls=[CALL, CALL, 5])))
    (choice,) = chunk["choices"]
    assert chunk["object"] == "chat.completion.chunk"
    assert choice["delta"]["tool_calls"] == [{"index": 0, **CALL}, {"index": 1, **CALL}, 5]
    assert "message" not in choice


@pytest.mark.parametrize("document", [{"choices": []}, {"choices": [], "usage": None}, {"choices": [], "usage": {}}])
def test_without_usage_there_is_no_chunk_for_it(document: dict[str, Any]) -> None:
    assert usage_chunk_of(document) is None


def test_tool_calls_are_put_together() -> None:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"city":', '"Bonn"}')]
    chunks = [delta(role="assistant", content=None, tool_calls=[first]), *(delta(tool_calls=[it]) for it in parts)]
    document = json.loads(document_of([*chunks, {"id": "c", "model": "m", **delta(0, "stop")}]))
    assert document == message(tool_calls=[CALL])


def test_each_choice_is_put_together() -> None:
    chunks = [delta(1, content="b"), delta(0, content="a"), delta(1, "length", content="c"), delta(0, "stop")]
    choices = json.loads(document_of(chunks))["choices"]
    assert [(it["index"], it["message"]["content"], it["finish_reason"]) for it in choices] == [
        (0, "a", "stop"),
        (1, "bc", "length"),
    ]


def test_the_time_is_linear() -> None:
    def seconds(count: int) -> float:
        began = time.process_time()
        document_of([delta(content="x" * 100)] * count)
        return time.process_time() - began

    assert seconds(40_000) < max(10 * seconds(10_000), 0.2)


def test_the_number_of_tool_calls_is_bounded() -> None:
    with pytest.raises(ValueError, match="too many"):
        document_of([delta(tool_calls=[{"index": number}]) for number in range(300)])
