"""`POST /stream` on the Responses API of a deployment: its request, and the decoder of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from relay.upstream.request import RESPONSE_OUTPUT_LIMIT, UpstreamRequest, response_additions
from relay.wires.responses import UPSTREAM_PATH
from relay.wires.responses_text import ResponseTextDecoder

if TYPE_CHECKING:
    from relay.streaming.events import Decoder
    from relay.wires.stream import ImagePart, Message, StreamRequest, TextPart


@dataclass(frozen=True, slots=True)
class ResponsesCall:
    """The request by this wire. The model service stores nothing of it, as no later request could name it."""

    request: StreamRequest

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; the output limit is the lower of the caller's and the app's."""
        request = self.request
        prompt = request.input if isinstance(request.input, str) else [_item(message) for message in request.input]
        parameters: dict[str, Any] = {"input": prompt, "stream": True, "store": False}
        if request.instructions:
            parameters["instructions"] = request.instructions
        for name in ("temperature", "top_p"):
            if (value := getattr(request, name)) is not None:
                parameters[name] = value
        reasoning = {"effort": request.reasoning_effort, "summary": request.reasoning_summary}
        if given := {name: value for name, value in reasoning.items() if value is not None}:
            parameters["reasoning"] = given
        additions = response_additions(max_output_tokens=max_output_tokens, limit=request.max_output_tokens)
        return UpstreamRequest(
            UPSTREAM_PATH,
            parameters | additions.parameters(),
            stream=True,
            fields=_FIELDS if request.max_output_tokens is None else _FIELDS_WITH_LIMIT,
            additions=additions,
            image_bytes=request.image_bytes,
        )

    def decoder(self) -> Decoder:
        """A decoder of the answer's text: always of a stream, also where the response is one document."""
        return ResponseTextDecoder(reasoning=self.request.reasoning_summary is not None)


def _item(message: Message) -> dict[str, Any]:
    content = message.content
    return {"role": message.role, "content": content if isinstance(content, str) else [_part(it) for it in content]}


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if part.type == "input_text":
        return {"type": "input_text", "text": part.text}
    return {"type": "input_image", "image_url": part.image_url, "detail": part.detail or "auto"}


# The fields that the upstream's parameters are made of.
_FIELDS: Final = {
    "input": "input",
    "instructions": "instructions",
    "temperature": "temperature",
    "top_p": "top_p",
    "reasoning.effort": "reasoning_effort",
    "reasoning.summary": "reasoning_summary",
}
_FIELDS_WITH_LIMIT: Final = _FIELDS | {RESPONSE_OUTPUT_LIMIT: "max_output_tokens"}
