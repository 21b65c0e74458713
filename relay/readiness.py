"""`GET /ready`: whether the app can serve. For each backend: token, role, deployment, an answer; and the remedy.

A probe is a real request, by the wire that the backend is stated to have, in all but its conversation, which has no
message: Azure checks the token, the role and the deployment, and refuses it before a token is generated. What a server
that accepts it sends back is read up to its first output. Where the refusal is not about the empty conversation, one
short message tells more. Where the deployment does not have that wire, the others are probed, to name the right one.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

import msgspec
from msgspec import Raw

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
from relay.settings import WIRES, Identity, Settings, Wire
from relay.streaming.call import UpstreamCall
from relay.streaming.events import Decoder, Failed
from relay.upstream.answer import Answer
from relay.upstream.failures import Refusal
from relay.upstream.pool import Adaptation, Backend, BackendPool
from relay.upstream.refused_additions import UpstreamError, without_blame
from relay.upstream.request import UpstreamRequest
from relay.wires.embeddings import EmbeddingRequest
from relay.wires.stream import StreamRequest

_CACHE_SECONDS: Final = 10.0  # however often it is called, the model service is probed no more often than this
_PROBE_TIMEOUT: Final = 15.0  # seconds that one backend is given to answer

_WRONG_OPERATION: Final = "OperationNotSupported"  # Azure's code for a deployment of a model that lacks the API

# What a refusal of an empty conversation is about: "[] is too short - 'messages'", "'messages' must not be empty",
# "Missing required parameter: 'input'", "'$.input' is invalid".
_ABOUT_THE_CONVERSATION: Final = re.compile(
    r"message|conversation|prompt|too[ _]short|empty|at least (?:1|one)|[\"'`.]input\b"
)
# What a refusal speaks of where another API is meant: "only supported in v1/responses", "not a chat model".
_ABOUT_THE_WIRE: Final = re.compile(r"v1/|chat model|chat ?completion|responses|embedding")


class _Api(NamedTuple):
    """An API that a deployment may have: its name, the parameter that holds the conversation, and the request."""

    name: str
    conversation: str
    call: UpstreamCall


_SHORT: Final = StreamRequest(input=".")
_APIS: Final[dict[Wire, _Api]] = {
    "chat": _Api("chat completions", "messages", _SHORT.on("chat")),
    "responses": _Api("Responses API", "input", _SHORT.on("responses")),
    "embeddings": _Api("embeddings", "input", EmbeddingRequest({"input": Raw(b'"."')}, None)),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one backend: the checks that passed (`token`, `role`, `deployment`, `answers`; None: unknown, as an
    earlier one failed), the code of what is wrong, the reason, and the remedy.

    `wire` is the one that the backend is stated to have. `refused_additions`: what the deployment does not take of what
    this app adds to a request. `proxy`: the address of the proxy that leads to it.
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
    wire: Wire = "chat"

    def members(self) -> dict[str, Any]:
        """As JSON members."""
        members: dict[str, Any] = {
            "backend": self.backend,
            "model": self.model,
            "wire": self.wire,
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


class _Probe(NamedTuple):
    """The requests to probe a backend with, without a message and with a short one, and the decoder of an answer."""

    empty: UpstreamRequest
    short: UpstreamRequest
    decoder: Callable[[], Decoder]

    @classmethod
    def by(cls, api: _Api, limit: int) -> Self:
        """The probe by this API; `limit` is the app's output limit."""
        short = api.call.upstream_request(max_output_tokens=limit)
        empty = replace(short, parameters={**(short.parameters or {}), api.conversation: []})
        return cls(empty, short, api.call.decoder)


class Readiness:
    """The document of `GET /ready`, cached, so that the model service is probed rarely and never twice at once.

    `resumable` gives the counts of streams that can be resumed; None where there are none.
    """

    def __init__(self, pool: BackendPool, resumable: Callable[[], dict[str, int]] | None = None) -> None:
        self._pool = pool
        self._resumable = resumable
        self._probed_at = -_CACHE_SECONDS
        self._probing: asyncio.Task[list[Finding]] | None = None
        self._findings: list[Finding] = []
        self._probes = {wire: _Probe.by(api, pool.settings.max_output_tokens) for wire, api in _APIS.items()}

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
        members: dict[str, Any] = {
            "status": status if ready else "not_ready",
            "backends": [finding.members() for finding in self._findings],
        }
        if self._resumable is not None:
            members["resumable"] = self._resumable()
        return (200 if ready else 503), msgspec.json.encode(members) + b"\n"

    async def _probe_all(self) -> list[Finding]:
        try:
            await self._pool.connect()
            self._findings = await asyncio.gather(*(self._probe(backend) for backend in self._pool.all()))
            self._probed_at = time.monotonic()
        finally:
            self._probing = None
        return self._findings

    async def _probe(self, backend: Backend) -> Finding:
        wire = backend.settings.wire
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                refusal = await self._ask_by(wire, backend)
                if refusal is not None and _may_lack_the_wire(refusal):
                    refusal = await self._with_right_wire(refusal, backend)
        except TimeoutError:
            refusal = Refusal(UPSTREAM_TIMEOUT, f"no answer within {_PROBE_TIMEOUT:g} s")
        finding = self._finding(backend, refusal)
        return replace(finding, refused_additions=backend.refused.descriptions(), proxy=backend.proxy, wire=wire)

    async def _ask_by(self, wire: Wire, backend: Backend) -> Refusal | None:
        """What the backend refuses a request by this wire with; None: it answers."""
        probe, conversation = self._probes[wire], _APIS[wire].conversation
        refusal = await self._ask(backend, probe.empty, probe.decoder, conversation)
        if refusal is None or not _is_bad_request(refusal):
            return refusal
        if _is_about(conversation, refusal):
            return None
        return await self._ask(backend, probe.short, probe.decoder, conversation)

    async def _with_right_wire(self, refusal: Refusal, backend: Backend) -> Refusal:
        """The same refusal, with the remedy if the deployment has another wire than the one that it is stated to have.

        Only a request without a message is sent: one that is refused for that has been checked for all else.
        """
        stated = backend.settings.wire
        for wire in WIRES:
            if wire == stated:
                continue
            probe, conversation = self._probes[wire], _APIS[wire].conversation
            other = await self._ask(backend, probe.empty, probe.decoder, conversation)
            if other is None or _is_about(conversation, other):
                return replace(refusal, remedy=_wire_remedy(backend.settings.deployment, stated, wire))
        return refusal

    async def _ask(
        self, backend: Backend, probe: UpstreamRequest, decoder: Callable[[], Decoder], conversation: str
    ) -> Refusal | None:
        """What the backend refuses the probe with; None: it answers."""
        adaptation = Adaptation(backend, probe)
        while True:
            opened = await backend.open(adaptation.request, "ready")
            refusal = opened if isinstance(opened, Refusal) else await _refusal_in(opened, decoder())
            if refusal is not None and adaptation.repeat_without(refusal):
                continue
            if refusal is None or _is_about(conversation, refusal):
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


async def _refusal_in(answer: Answer, decoder: Decoder) -> Refusal | None:
    """What is wrong with an answer that has begun; None where its first output, or its end, is understood."""
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
    return refusal.problem.code == INVALID_REQUEST.code and _code(refusal) != _WRONG_OPERATION


def _is_about(conversation: str, refusal: Refusal) -> bool:
    """Whether a request was refused for its conversation, in this parameter, after all else was checked."""
    if not _is_bad_request(refusal) or not isinstance(refusal.error, dict | list):
        return False
    error = UpstreamError(refusal.error)
    return conversation in error.parameters or any(map(_ABOUT_THE_CONVERSATION.search, error.statements))


def _may_lack_the_wire(refusal: Refusal) -> bool:
    """Whether the deployment may have another API than the one that it was asked by."""
    if refusal.problem.code in (INVALID_REQUEST.code, NOT_CONFIGURED.code):
        return isinstance(refusal.error, dict | list)
    missing = refusal.problem.code == MODEL_NOT_FOUND.code and isinstance(refusal.error, dict | list)
    return missing and any(map(_ABOUT_THE_WIRE.search, UpstreamError(refusal.error).statements))


def _wire_remedy(deployment: str, stated: Wire, wire: Wire) -> str:
    return (
        f'The deployment {deployment} does not have the wire "{stated}" ({_APIS[stated].name}), but "{wire}" '
        f'({_APIS[wire].name}): set "wire": "{wire}" for it in the app setting AZURE_OPENAI_BACKENDS; Terraform: '
        "open_ai_instances[].models[].wire."
    )


def _code(refusal: Refusal) -> object:
    return (refusal.problem.upstream_error or {}).get("code")


def _remedy(problem: Problem, refusal: Refusal, backend: Backend, settings: Settings) -> str:
    deployment, identity = backend.settings.deployment, settings.identity
    api = _APIS[backend.settings.wire].name
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
        case INVALID_REQUEST.code if _code(refusal) == _WRONG_OPERATION:
            return (
                f"The deployment {deployment} is of a model that has no {api}: name another one in the app setting "
                "AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS."
            )
        case INVALID_REQUEST.code if not isinstance(refusal.error, dict | list):
            return _ADDRESS_REMEDY
        case INVALID_REQUEST.code:
            return (
                f"The deployment {deployment} refuses even a request with one short message: check that it is a model "
                f"with {api}, or name another one in the app setting AZURE_OPENAI_DEPLOYMENTS or "
                "AZURE_OPENAI_BACKENDS."
            )
        case NOT_CONFIGURED.code:
            return (
                f"There is no {api} endpoint at this address: check AZURE_OPENAI_ENDPOINT or "
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
