"""The model deployments: which serves which model, the choice among them, and the rest that a refusal earns.

One request makes one pass over the deployments of its model: by priority, then the least loaded. A deployment that
asked to be left alone is left alone for that long; one that failed without saying so is tried last for a moment.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self

from relay import telemetry
from relay.answer import Answer, Refusal
from relay.problems import MODEL_NOT_FOUND, NOT_CONFIGURED, RATE_LIMITED, UPSTREAM_TIMEOUT, FieldError, Problem
from relay.settings import BackendSettings, Settings, SettingsError

if TYPE_CHECKING:
    import aiohttp

    from relay.upstream import EntraToken, Upstream

# Seconds for which a deployment that just failed is tried last; a silent one costs its caller more than a failing one.
_DOUBT: Final = 2.0
_DOUBT_AFTER_SILENCE: Final = 30.0

# Servers that want no key still want the header to be there; clients of such servers send a word like this.
_NO_KEY: Final = "none"


class Backend:
    """One deployment, and what is known of how it does. `load` is the number of its answers now open."""

    def __init__(self, settings: BackendSettings, upstreams: Mapping[str, Upstream]) -> None:
        self.settings = settings
        self.load = 0
        self._upstreams = upstreams
        self._rests_until = 0.0
        self._doubtful_until = 0.0
        self._refusal: Refusal | None = None

    async def open(self, parameters: dict[str, Any], request_id: str) -> Answer | Refusal:
        """Ask this deployment, after `Backends.connect`."""
        upstream = self._upstreams[self.settings.endpoint]
        return await upstream.open({**parameters, "model": self.settings.deployment}, request_id)

    def refused(self, refusal: Refusal) -> None:
        """Remember a refusal that another deployment may make good."""
        now = time.monotonic()
        if refusal.retry_after and now + refusal.retry_after > self._rests_until:
            self._rests_until = now + refusal.retry_after
            self._refusal = refusal
        doubt = _DOUBT_AFTER_SILENCE if refusal.problem.code == UPSTREAM_TIMEOUT.code else _DOUBT
        self._doubtful_until = max(self._doubtful_until, now + doubt)

    def answered(self) -> None:
        """Remember that it does well."""
        self._doubtful_until = 0.0

    def resting(self) -> Refusal | None:
        """The refusal it rests after, with the time that is left; None when it may be asked."""
        left = self._rests_until - time.monotonic()
        if left <= 0 or self._refusal is None:
            return None
        return Refusal(
            self._refusal.problem.after(math.ceil(left)),
            f"{self._refusal.reason}; it asked to be left alone for {left:.1f} s more",
            elsewhere=True,
            retry_after=left,
            status=self._refusal.status,
        )

    def rank(self) -> tuple[bool, int, int]:
        """What sorts the deployments of a model: those in doubt last, then by priority, then by load."""
        return (self._doubtful_until > time.monotonic(), self.settings.priority, self.load)


class Route:
    """One request's pass over the deployments of its model. `attempts` counts those that were asked."""

    def __init__(self, model: str, backends: list[Backend]) -> None:
        self.model = model
        self._left = backends
        self._refusals: list[Refusal] = []
        self.backend: Backend | None = None
        self.attempts = 0

    def next(self) -> Backend | None:
        """The deployment to ask now, its load counted until `leave`; None when all of them have refused."""
        self.leave()
        while self._left:
            backend = min(self._left, key=Backend.rank)
            self._left.remove(backend)
            if (resting := backend.resting()) is not None:
                self._refusals.append(resting)
                continue
            self.backend = backend
            backend.load += 1
            self.attempts += 1
            return backend
        return None

    def more(self) -> bool:
        """Whether another deployment is left that could be asked."""
        return any(backend.resting() is None for backend in self._left)

    def refused(self, refusal: Refusal) -> None:
        """The deployment that was asked refused, and another may be asked."""
        if self.backend is not None:
            self.backend.refused(refusal)
        self._refusals.append(refusal)

    def leave(self) -> None:
        """The deployment that was asked has no more to do with this request."""
        if self.backend is not None:
            self.backend.load -= 1
            self.backend = None

    def outcome(self) -> Refusal:
        """What the caller is told when all refused: of the refusals that a wait mends, the soonest; else the last."""
        timed = [refusal for refusal in self._refusals if refusal.problem.retry_after is not None]
        if timed:
            return min(timed, key=lambda refusal: refusal.problem.retry_after or 0)
        busy = [refusal for refusal in self._refusals if refusal.problem.code == RATE_LIMITED.code]
        return (busy or self._refusals)[-1]


class Backends:
    """All deployments of the settings. Connections are made with the first request, on the loop that serves it.

    The HTTP libraries take longer to import than all the rest of the app: a thread does it while the worker starts, so
    that neither the app's start nor the loop waits for them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._upstreams: dict[str, Upstream] = {}
        self._session: aiohttp.ClientSession | None = None
        self._token: EntraToken | None = None
        self._backends: dict[str, list[Backend]] = {}
        for entry in settings.backends:
            self._backends.setdefault(entry.model, []).append(Backend(entry, self._upstreams))
        threading.Thread(target=_import_upstream, name="import relay.upstream", daemon=True).start()

    @classmethod
    def configured(cls, environ: Mapping[str, str]) -> Self | Problem:
        """The deployments that the app settings name; a wrong setting is a problem to answer with, and is on record."""
        try:
            return cls(Settings.read(environ))
        except SettingsError as error:
            for complaint in error.complaints:
                telemetry.complain(complaint.setting, complaint.message)
            return NOT_CONFIGURED.at(*(FieldError(it.setting, it.message) for it in error.complaints))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that callers may ask for, the default one first."""
        return self.settings.models

    def all(self) -> list[Backend]:
        """Every deployment, in the settings' order of models."""
        return [backend for backends in self._backends.values() for backend in backends]

    def route(self, model: str | None) -> Route | Problem:
        """The pass over the deployments of `model` (None: the default one)."""
        model = model or self.models[0]
        backends = self._backends.get(model)
        return Route(model, list(backends)) if backends else MODEL_NOT_FOUND

    async def connect(self) -> None:
        """Be ready to ask; returns at once but for the first requests, which wait for the import."""
        if self._upstreams:
            return
        upstream = await asyncio.to_thread(_import_upstream)
        if self._upstreams:
            return  # another request has come first
        self._session = upstream.connect(self.settings)
        credential: Callable[[], Awaitable[str]] | str = self.settings.api_key or _NO_KEY
        if self.settings.identity is not None:
            credential = self._token = upstream.EntraToken(self.settings.identity)
        self._upstreams.update(
            (endpoint, upstream.Upstream(endpoint, credential, self._session))
            for endpoint in dict.fromkeys(entry.endpoint for entry in self.settings.backends)
        )

    async def close(self) -> None:
        """Let go of every connection."""
        self._upstreams.clear()
        if self._token is not None:
            await self._token.close()
        if self._session is not None:
            await self._session.close()


def _import_upstream() -> ModuleType:
    """The module, imported by whoever comes first; who comes second waits for the first (importlib's lock)."""
    return importlib.import_module("relay.upstream")
