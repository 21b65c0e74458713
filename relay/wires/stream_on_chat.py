"""`POST /stream` on the chat completions of a deployment: its request, and the decoder of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from relay.upstream.request import OUTPUT_LIMITS, UpstreamRequest, chat_additions
from relay.wires.chat_completions import UPSTREAM_PATH
from relay.wires.chat_decoders import TextDecoder

if TYPE_CHECKING:
    from relay.streaming.events import Decoder
    from relay.wires.stream import ImagePart, Message, StreamRequest, TextPart


@dataclass(frozen=True, slots=True)
class ChatCall:
    """The request by this wire. It has no parameter for a summary of the reasoning: where the answer has the reasoning
    beside its text, as that of many open models has, the caller who asked for a summary gets that."""

    request: StreamRequest

    def upstream_request(self, *, max_output_tokens: int) -> UpstreamRequest:
        """The request to the model service; the output limit is the lower of the caller's and the app's."""
        request = self.request
        messages: list[dict[str, Any]] = []
        if request.instructions:
            messages.append({"role": "system", "content": request.instructions})
        if isinstance(request.input, str):
            messages.append({"role": "user", "content": request.input})
        else:
            messages.extend({"role": message.role, "content": _content(message)} for message in request.input)
        parameters: dict[str, Any] = {"messages": messages, "stream": True}
        for name in ("temperature", "top_p", "reasoning_effort"):
            if (value := getattr(request, name)) is not None:
                parameters[name] = value
        additions = chat_additions(stream=True, max_output_tokens=max_output_tokens, limit=request.max_output_tokens)
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
        return TextDecoder(reasoning=self.request.reasoning_summary is not None)


def _content(message: Message) -> str | list[dict[str, Any]]:
    return message.content if isinstance(message.content, str) else [_part(part) for part in message.content]


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if part.type == "input_text":
        return {"type": "text", "text": part.text}
    image = {"url": part.image_url}
    return {"type": "image_url", "image_url": image if part.detail is None else image | {"detail": part.detail}}


# The fields that the upstream's parameters are made of.
_FIELDS: Final = {
    "messages": "input",
    "temperature": "temperature",
    "top_p": "top_p",
    "reasoning_effort": "reasoning_effort",
}
_FIELDS_WITH_LIMIT: Final = _FIELDS | dict.fromkeys(OUTPUT_LIMITS, "max_output_tokens")
