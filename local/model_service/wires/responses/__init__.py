"""The Responses API: `POST /responses`, and what is done with stored responses.

The shapes follow the types of the `openai` package, and beyond them what Azure sends:
https://learn.microsoft.com/azure/ai-foundry/openai/how-to/responses

| module | |
|---|---|
| `wire` | the routes |
| `request` | the types of a request, and the errors of a wrong one |
| `items` | input items: their normal form, and the conversation that they are |
| `output` | output items: what the model answers |
| `reply` | the response and its events |
"""

from local.model_service.wires.responses.wire import Responses

__all__ = ["Responses"]
