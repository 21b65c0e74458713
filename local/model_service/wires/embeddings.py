"""`POST /embeddings`: a unit vector for each input, the same for the same input in every process.

The shapes and limits follow https://learn.microsoft.com/azure/ai-foundry/openai/how-to/embeddings and OpenAI's
reference: at most 2048 inputs of 8192 tokens each, 300,000 tokens in all.
"""

import base64
import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from local.model_service import text_generation
from local.model_service.deployments import is_generative
from local.model_service.encoding import Document, as_json
from local.model_service.errors import ErrorResponse, invalid_request, wrong_operation
from local.model_service.reply import Reply
from local.model_service.wires.base import GenerationWire

MAX_INPUTS = 2048
MAX_TOKENS = 8192  # of one input
MAX_TOTAL_TOKENS = 300_000

type _Input = str | list[int]


class _Request(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class Embeddings(GenerationWire):
    """The wire: from a request to its reply."""

    name = "embeddings"
    path = "/embeddings"

    def validate(self, body: Document) -> ErrorResponse | None:
        model = body["model"]
        if is_generative(model):
            return wrong_operation("embeddings", model)
        if "input" not in body:
            return invalid_request("missing_required_parameter", "Missing required parameter: 'input'.", "input")
        try:
            msgspec.convert(body, _Request)
            inputs = _inputs(body)
        except (msgspec.ValidationError, TypeError) as problem:
            _, _, place = str(problem).partition("`$.")
            param = place.partition("[")[0].rstrip("`") or "input"
            return invalid_request("invalid_type", f"Invalid type for '{param}': {problem}.", param)
        return _input_error(inputs) or _dimensions_error(body)

    def reply(self, body: Document, fixed_answer: Sequence[str] | None) -> Reply | ErrorResponse:
        dimensions = body.get("dimensions") or _dimensions(body["model"])
        return EmbeddingsReply(
            body["model"], _inputs(body), dimensions, as_base64=body.get("encoding_format") == "base64"
        )


def _inputs(body: Document) -> list[_Input]:
    """One input or many: a text, a list of texts, a list of tokens, a list of such lists; `TypeError` for a mixture."""
    given = body["input"]
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(one, int) for one in given):
        return [given]
    if not all(isinstance(one, str) for one in given) and not all(isinstance(one, list) for one in given):
        raise TypeError("expected texts, tokens, or arrays of tokens")
    return list(given)


def _input_error(inputs: Sequence[_Input]) -> ErrorResponse | None:
    if not inputs or not all(inputs):
        return invalid_request(None, "'$.input' is invalid. It must not be empty, and have no empty text.", "input")
    if len(inputs) > MAX_INPUTS:
        return invalid_request(
            "array_above_max_length",
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, but got an array "
            f"with length {len(inputs)} instead.",
            "input",
        )
    counts = [_count(one) for one in inputs]
    if max(counts) > MAX_TOKENS:
        return invalid_request(
            None,
            f"This model's maximum context length is {MAX_TOKENS} tokens, however you requested {max(counts)} tokens "
            f"({max(counts)} in your prompt; 0 for the completion). Please reduce your prompt; or completion length.",
        )
    if sum(counts) > MAX_TOTAL_TOKENS:
        return invalid_request(
            "max_tokens_per_request",
            f"Invalid 'input': maximum request size is {MAX_TOTAL_TOKENS} tokens per request.",
            "input",
        )
    return None


def _dimensions_error(body: Document) -> ErrorResponse | None:
    wanted = body.get("dimensions")
    if wanted is None:
        return None
    if "ada" in body["model"]:
        return invalid_request(None, "This model does not support specifying dimensions.", "dimensions")
    most = _dimensions(body["model"])
    if wanted > most:
        return invalid_request(
            "integer_above_max_value",
            f"Invalid value for 'dimensions' = {wanted}. Must be less than or equal to {most}.",
            "dimensions",
        )
    return None


def _dimensions(deployment: str) -> int:
    return 3072 if "large" in deployment else 1536


def _count(one: _Input) -> int:
    return len(text_generation.tokenize(one)) if isinstance(one, str) else len(one)


class EmbeddingsReply(Reply):
    """The vectors of the inputs."""

    def __init__(self, model: str, inputs: Sequence[_Input], dimensions: int, *, as_base64: bool) -> None:
        super().__init__(model)
        self.inputs = inputs
        self.dimensions = dimensions
        self.as_base64 = as_base64

    def document(self) -> Document:
        tokens = sum(map(_count, self.inputs))
        return {
            "object": "list",
            "data": list(self._data()),
            "model": self.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _data(self) -> Iterator[Document]:
        for index, one in enumerate(self.inputs):
            vector = unit_vector(one, self.dimensions)
            coded = base64.b64encode(vector.tobytes()).decode() if self.as_base64 else vector.tolist()
            yield {"object": "embedding", "index": index, "embedding": coded}


def unit_vector(one: _Input, dimensions: int) -> "array[float]":
    """A vector of length 1, as 32-bit floats; fewer dimensions are the first ones of more, scaled to length 1."""
    digest = hashlib.shake_256(as_json(one)).digest(2 * dimensions)
    values = [int.from_bytes(digest[at : at + 2], "little", signed=True) + 0.5 for at in range(0, len(digest), 2)]
    length = math.sqrt(sum(value * value for value in values))
    return array("f", [value / length for value in values])
