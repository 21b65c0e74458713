"""The simulated model service: Azure OpenAI's v1 API over HTTP, with faults on demand and a record of each request.

    python -m local.model_service --port 7072                        # as a program
    async with ModelService(tokens_per_second=0) as service: …       # inside a test

A deployment's name can have a meaning:

| deployment | |
|---|---|
| `fault-…` | commits a fault, for example `fault-429`; `python -m local.model_service.faults` prints the table |
| `paced-by-hand…` | each token waits for `release()` or `POST /control/release` |
| `o3…`, `…reasoning…` | a reasoning model: rejects `temperature`, `top_p` and `max_tokens` |
| `…embedding…` | an embedding model: answers on its own API only |
| `…codex…` | a model that has the Responses API and no chat completions |
| `…missing…` | 404, code DeploymentNotFound |
| any other | answers |

It listens on 127.0.0.1 only, and writes neither prompts nor keys to any log.

| module | |
|---|---|
| `service` | the HTTP server |
| `state` | settings, planned faults and answers, records of requests |
| `wires` | the HTTP APIs, one module or package each |
| `reply`, `steps` | a response before it is written: its content, and the steps in which it is written |
| `writer` | writes the steps at a pace |
| `faults` | the table of faults |
| `answers`, `text_generation`, `schema_values` | the model: what it answers, text for a prompt, JSON for a schema |
| `stored_responses`, `sealing` | what the account keeps of the Responses API, and what only it can read |
| `control` | the control routes |
| `identity` | the managed identity endpoint |
| `errors`, `content_filter`, `records`, `deployments`, `encoding` | shapes that the others share |
"""

from local.model_service.deployments import ANY_DEPLOYMENT, DEFAULT_DEPLOYMENT, MANUAL_PACE
from local.model_service.identity import IdentityEndpoint
from local.model_service.records import Record
from local.model_service.service import ModelService

__all__ = ["ANY_DEPLOYMENT", "DEFAULT_DEPLOYMENT", "MANUAL_PACE", "IdentityEndpoint", "ModelService", "Record"]
