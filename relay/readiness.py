"""`GET /ready`: whether the app can serve. For each backend: token, role, deployment, an answer; and the remedy."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from relay.problems import (
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
    UPSTREAM_TIMEOUT,
    Problem,
)
from relay.settings import Identity, Settings
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, BackendPool
from relay.upstream.request import UpstreamRequest
from relay.wires.chat_completions import UPSTREAM_PATH

_CACHE_SECONDS: Final = 10.0  # however often it is called, the model service is probed no more often than this
_PROBE_TIMEOUT: Final = 15.0  # seconds that one backend is given to answer

# A conversation without a message: the model service checks the token, the role and the deployment, and refuses it
# before a token is generated.
_PROBE: Final = UpstreamRequest(UPSTREAM_PATH, {"messages": [], "max_completion_tokens": 1}, stream=False)
_NO_CHAT: Final = "OperationNotSupported"  # Azure's code for a deployment of a model that has no chat completions


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one backend: the checks that passed (`token`, `role`, `deployment`, `answers`; None: unknown, as an
    earlier one failed), the code of what is wrong, and the remedy."""

    backend: str
    model: str
    token: bool | None
    role: bool | None
    deployment: bool | None
    answers: bool | None
    code: str | None = None
    remedy: str | None = None

    def members(self) -> dict[str, Any]:
        """As JSON members."""
        members: dict[str, Any] = {
            "backend": self.backend,
            "model": self.model,
            "ready": self.code is None,
            "checks": {
                "token": self.token,
                "role": self.role,
                "deployment": self.deployment,
                "answers": self.answers,
            },
        }
        if self.code is not None:
            members |= {"code": self.code, "remedy": self.remedy}
        return members


class Readiness:
    """The document of `GET /ready`, cached, so that the model service is probed rarely and never twice at once."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._probed_at = -_CACHE_SECONDS
        self._probing: asyncio.Task[list[Finding]] | None = None
        self._findings: list[Finding] = []

    async def document(self) -> tuple[int, bytes]:
        """The status, 200 when every model has a backend that answers and otherwise 503, and the document."""
        if time.monotonic() - self._probed_at >= _CACHE_SECONDS:
            if self._probing is None:
                self._probing = asyncio.create_task(self._probe_all())
            # Shielded: a client that disconnects does not cancel the probe that others wait for.
            await asyncio.shield(self._probing)
        serving = {finding.model for finding in self._findings if finding.code is None}
        ready = serving.issuperset(self._pool.models)
        status = "ready" if all(finding.code is None for finding in self._findings) else "degraded"
        return (200 if ready else 503), msgspec.json.encode(
            {
                "status": status if ready else "not_ready",
                "backends": [finding.members() for finding in self._findings],
            }
        ) + b"\n"

    async def _probe_all(self) -> list[Finding]:
        try:
            await self._pool.connect()
            self._findings = await asyncio.gather(*(self._probe(backend) for backend in self._pool.all()))
            self._probed_at = time.monotonic()
        finally:
            self._probing = None
        return self._findings

    async def _probe(self, backend: Backend) -> Finding:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                opened = await backend.open(_PROBE, "ready")
        except TimeoutError:
            opened = Refusal(UPSTREAM_TIMEOUT, f"no answer within {_PROBE_TIMEOUT:g} s")
        if not isinstance(opened, Refusal):
            opened.close()  # a server that accepts an empty conversation
            return self._finding(backend)
        if opened.status in (400, 422) and (opened.problem.upstream_error or {}).get("code") != _NO_CHAT:
            return self._finding(backend)  # refused for its emptiness, after all else was checked
        return self._finding(backend, opened)

    def _finding(self, backend: Backend, refusal: Refusal | None = None) -> Finding:
        name, model = backend.settings.name, backend.settings.model
        if refusal is None:
            return Finding(name, model, token=True, role=True, deployment=True, answers=True)
        problem, status = refusal.problem, refusal.status
        code, remedy = problem.code, _remedy(problem, refusal, backend, self._pool.settings)
        if code == UPSTREAM_AUTH.code and status is None:
            return Finding(name, model, False, None, None, None, code, remedy)
        if code == UPSTREAM_AUTH.code:
            return Finding(name, model, True, False, None, None, code, remedy)
        if code in (MODEL_NOT_FOUND.code, NOT_CONFIGURED.code, INVALID_REQUEST.code):
            return Finding(name, model, True, True, False, None, code, remedy)
        if status is None:
            # Nothing came back: all that is known is that there was a token, where one is needed.
            return Finding(name, model, True, None, None, False, code, remedy)
        return Finding(name, model, True, True, True, False, code, remedy)


def _remedy(problem: Problem, refusal: Refusal, backend: Backend, settings: Settings) -> str:
    deployment, identity = backend.settings.deployment, settings.identity
    match problem.code:
        case UPSTREAM_AUTH.code if refusal.status is None:
            return _sign_in_remedy(identity)
        case UPSTREAM_AUTH.code if identity is None and settings.api_key is None:
            return (
                "The model service requires a key: set the app setting AZURE_OPENAI_API_KEY, or "
                "AZURE_OPENAI_TOKEN_SCOPE if it takes Entra tokens."
            )
        case UPSTREAM_AUTH.code if identity is None:
            return (
                "The model service refuses the key. Check the app setting AZURE_OPENAI_API_KEY, or remove it and let "
                "the app sign in with its identity."
            )
        case UPSTREAM_AUTH.code:
            whom = "your own account"
            if identity is not None and identity.kind == "managed":
                whom = f"the managed identity {identity.client_id or 'of the Function App'}"
            return (
                f'Give {whom} the role "Cognitive Services OpenAI User" on the Azure OpenAI account of this backend '
                "(terraform apply does); it takes some minutes to become effective. If it has the role, the account's "
                "network rules keep the app out: see the landing zone variables."
            )
        case MODEL_NOT_FOUND.code:
            return (
                f"The account has no deployment {deployment}. Name one that it has in the app setting "
                "AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS, or create it: Terraform variable "
                "open_ai_instances[].models. A new deployment takes some minutes to appear."
            )
        case INVALID_REQUEST.code:
            return (
                f"The deployment {deployment} is of a model that has no chat completions: name another one in the app "
                "setting AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS."
            )
        case NOT_CONFIGURED.code:
            return (
                "There is no chat completions endpoint at this address: check AZURE_OPENAI_ENDPOINT or "
                "AZURE_OPENAI_BACKENDS; it must be an Azure OpenAI account's address or end in /v1."
            )
        case RATE_LIMITED.code:
            return (
                "The deployment is at its limit. Wait, raise its capacity (Terraform: open_ai_instances[].models[]"
                ".capacity, in thousands of tokens a minute), or add a deployment of the model on another account."
            )
        case UPSTREAM_ERROR.code if refusal.status is None:
            return (
                "The model service can't be reached: check the address in AZURE_OPENAI_ENDPOINT or "
                "AZURE_OPENAI_BACKENDS, that it is running, and that the network and its DNS lead to it."
            )
        case UPSTREAM_TIMEOUT.code:
            return "The model service does not answer in time: check that the network leads to it, then its status."
        case _:
            return "The model service fails. If this lasts, look at Azure's service health for the account's region."


def _sign_in_remedy(identity: Identity | None) -> str:
    if identity is not None and identity.kind == "managed":
        client = identity.client_id or "(not set: the system-assigned one)"
        return (
            "The managed identity gives no token: check that it is assigned to the Function App and that the app "
            f"setting AZURE_CLIENT_ID, now {client}, is its client id."
        )
    return "No developer sign-in was found: run `az login` (or `azd auth login`) in the account that has the role."
