"""`GET /ready`: whether the app can serve. For each backend: token, role, deployment, an answer; and the remedy.

A probe is a real request in all but its conversation, which has no message: Azure checks the token, the role and the
deployment, and refuses it before a token is generated. What a server that accepts it sends back is read up to its first
output. Where the refusal is not about the empty conversation, one short message tells more.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from relay.problems import (
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
    UPSTREAM_INTERRUPTED,
    UPSTREAM_TIMEOUT,
    Problem,
)
from relay.settings import Identity, Settings
from relay.streaming.events import Failed
from relay.upstream.answer import Answer
from relay.upstream.failures import Refusal
from relay.upstream.pool import Adaptation, Backend, BackendPool
from relay.upstream.refused_additions import UpstreamError, without_blame
from relay.upstream.request import UpstreamRequest
from relay.wires.chat_decoders import TextDecoder
from relay.wires.stream import StreamRequest

_CACHE_SECONDS: Final = 10.0  # however often it is called, the model service is probed no more often than this
_PROBE_TIMEOUT: Final = 15.0  # seconds that one backend is given to answer

_NO_CHAT: Final = "OperationNotSupported"  # Azure's code for a deployment of a model that has no chat completions

# What a refusal of an empty conversation is about: "[] is too short - 'messages'", "'messages' must not be empty".
_ABOUT_THE_CONVERSATION: Final = re.compile(r"message|conversation|prompt|too[ _]short|empty|at least (?:1|one)")


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one backend: the checks that passed (`token`, `role`, `deployment`, `answers`; None: unknown, as an
    earlier one failed), the code of what is wrong, the reason, and the remedy.

    `refused_additions`: what the deployment does not take of what this app adds to a request. `proxy`: the address of
    the proxy that leads to it.
    """

    backend: str
    model: str
    token: bool | None
    role: bool | None
    deployment: bool | None
    answers: bool | None
    code: str | None = None
    remedy: str | None = None
    reason: str | None = None
    refused_additions: list[str] = field(default_factory=list)
    proxy: str | None = None

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
            members |= {"code": self.code, "reason": self.reason, "remedy": self.remedy}
        if self.refused_additions:
            members["refused_additions"] = self.refused_additions
        if self.proxy is not None:
            members["proxy"] = self.proxy
        return members


class Readiness:
    """The document of `GET /ready`, cached, so that the model service is probed rarely and never twice at once."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._probed_at = -_CACHE_SECONDS
        self._probing: asyncio.Task[list[Finding]] | None = None
        self._findings: list[Finding] = []
        limit = pool.settings.max_output_tokens
        self._short = StreamRequest(input=".").upstream_request(max_output_tokens=limit)
        self._empty = replace(self._short, parameters={**(self._short.parameters or {}), "messages": []})

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
                refusal = await self._ask(backend, self._empty)
                if refusal is not None and _is_bad_request(refusal):
                    refusal = None if _is_about_the_conversation(refusal) else await self._ask(backend, self._short)
        except TimeoutError:
            refusal = Refusal(UPSTREAM_TIMEOUT, f"no answer within {_PROBE_TIMEOUT:g} s")
        finding = self._finding(backend, refusal)
        return replace(finding, refused_additions=backend.refused.descriptions(), proxy=backend.proxy)

    async def _ask(self, backend: Backend, probe: UpstreamRequest) -> Refusal | None:
        """What the backend refuses the probe with; None: it answers."""
        adaptation = Adaptation(backend, probe)
        while True:
            opened = await backend.open(adaptation.request, "ready")
            refusal = opened if isinstance(opened, Refusal) else await _refusal_in(opened)
            if refusal is not None and adaptation.repeat_without(refusal):
                continue
            if refusal is None or _is_about_the_conversation(refusal):
                adaptation.remember()
                return refusal
            return without_blame(refusal, probe)

    def _finding(self, backend: Backend, refusal: Refusal | None) -> Finding:
        name, model = backend.settings.name, backend.settings.model
        if refusal is None:
            return Finding(name, model, token=True, role=True, deployment=True, answers=True)
        problem, status, reason = refusal.problem, refusal.status, refusal.reason
        code, remedy = problem.code, _remedy(problem, refusal, backend, self._pool.settings)
        if code == UPSTREAM_AUTH.code and status is None:
            return Finding(name, model, False, None, None, None, code, remedy, reason)
        if code == UPSTREAM_AUTH.code:
            return Finding(name, model, True, False, None, None, code, remedy, reason)
        if code in (MODEL_NOT_FOUND.code, NOT_CONFIGURED.code, INVALID_REQUEST.code):
            return Finding(name, model, True, True, False, None, code, remedy, reason)
        if status is None or status == 200:
            # Nothing came back, or nothing that a model service sends: all that is known is that there was a token,
            # where one is needed.
            return Finding(name, model, True, None, None, False, code, remedy, reason)
        return Finding(name, model, True, True, True, False, code, remedy, reason)


async def _refusal_in(answer: Answer) -> Refusal | None:
    """What is wrong with an answer that has begun; None where its first output, or its end, is understood."""
    decoder = TextDecoder()
    try:
        while True:
            chunk = await answer.read()
            for event in decoder.feed(chunk) if chunk else decoder.end():
                if isinstance(event, Failed):
                    problem = UPSTREAM_ERROR if event.problem is UPSTREAM_INTERRUPTED else event.problem
                    return Refusal(problem, event.reason, status=200, error=event.error)
                return None
    except answer.connection_errors as error:
        return Refusal(UPSTREAM_ERROR, f"the model service's answer broke off ({type(error).__name__})", status=200)
    finally:
        answer.close()


def _is_bad_request(refusal: Refusal) -> bool:
    return refusal.problem.code == INVALID_REQUEST.code and _code(refusal) != _NO_CHAT


def _is_about_the_conversation(refusal: Refusal) -> bool:
    """Whether a request was refused for its conversation, after all else was checked."""
    if not _is_bad_request(refusal) or not isinstance(refusal.error, dict | list):
        return False
    return any(map(_ABOUT_THE_CONVERSATION.search, UpstreamError(refusal.error).statements))


def _code(refusal: Refusal) -> object:
    return (refusal.problem.upstream_error or {}).get("code")


def _remedy(problem: Problem, refusal: Refusal, backend: Backend, settings: Settings) -> str:
    deployment, identity = backend.settings.deployment, settings.identity
    if refusal.remedy is not None:
        return refusal.remedy
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
                "The model service refuses the key, which was sent in the header "
                f"{settings.api_key_header or 'Authorization'}. Check the app setting AZURE_OPENAI_API_KEY, or remove "
                "it and let the app sign in with its identity. A gateway may look for the key in another header, such "
                "as api-key or Ocp-Apim-Subscription-Key: set AZURE_OPENAI_API_KEY_HEADER."
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
        case INVALID_REQUEST.code if _code(refusal) == _NO_CHAT:
            return (
                f"The deployment {deployment} is of a model that has no chat completions: name another one in the app "
                "setting AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS."
            )
        case INVALID_REQUEST.code if not isinstance(refusal.error, dict | list):
            return _ADDRESS_REMEDY
        case INVALID_REQUEST.code:
            return (
                f"The deployment {deployment} refuses even a request with one short message: check that it is a model "
                "with chat completions, or name another one in the app setting AZURE_OPENAI_DEPLOYMENTS or "
                "AZURE_OPENAI_BACKENDS."
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
        case UPSTREAM_ERROR.code if refusal.status in (200, 405, 501):
            return _ADDRESS_REMEDY
        case UPSTREAM_ERROR.code if refusal.status is None and backend.proxy is not None:
            return (
                f"The model service can't be reached through the proxy {backend.proxy} that the environment names: "
                "check the proxy, or list the model service's host in NO_PROXY, and check the address in "
                "AZURE_OPENAI_ENDPOINT or AZURE_OPENAI_BACKENDS."
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


_ADDRESS_REMEDY: Final = (
    "What answers at this address is not a model service's API: check AZURE_OPENAI_ENDPOINT or AZURE_OPENAI_BACKENDS, "
    "and that no sign-in page or proxy answers in its place. It must be an Azure OpenAI account or end in /v1."
)


def _sign_in_remedy(identity: Identity | None) -> str:
    if identity is not None and identity.kind == "managed":
        client = identity.client_id or "(not set: the system-assigned one)"
        return (
            "The managed identity gives no token: check that it is assigned to the Function App and that the app "
            f"setting AZURE_CLIENT_ID, now {client}, is its client id."
        )
    return "No developer sign-in was found: run `az login` (or `azd auth login`) in the account that has the role."
