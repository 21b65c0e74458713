"""The pool of backends (model deployments): the choice among them, fail-over, cool-down and probation.

One request makes one pass over the backends of its model: by priority, then by load. A backend that asked not to be
called for a while cools down for that long; one that failed without such a request is on probation for a moment, in
which it is tried last.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Final, Self

from relay import telemetry
from relay.problems import MODEL_NOT_FOUND, NOT_CONFIGURED, RATE_LIMITED, UPSTREAM_TIMEOUT, FieldError, Problem
from relay.settings import NO_KEY, BackendSettings, Settings, SettingsError
from relay.upstream.answer import Answer
from relay.upstream.failures import Refusal
from relay.upstream.request import UpstreamRequest

if TYPE_CHECKING:
    import aiohttp

    from relay.upstream.client import ModelServiceClient
    from relay.upstream.credential import EntraToken

# Seconds of probation after a failure; a silent backend costs its caller more than a failing one.
_PROBATION: Final = 2.0
_PROBATION_AFTER_TIMEOUT: Final = 30.0


class Backend:
    """One model deployment and its state. `load` is the number of its answers now open.

    `clients` maps an endpoint to its client. `clock` gives seconds.
    """

    def __init__(
        self,
        settings: BackendSettings,
        clients: Mapping[str, ModelServiceClient],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.load = 0
        self._clients = clients
        self._clock = clock
        self._cool_down_until = 0.0
        self._probation_until = 0.0
        self._refusal: Refusal | None = None

    async def open(self, request: UpstreamRequest, request_id: str) -> Answer | Refusal:
        """Send `request`, after `BackendPool.connect`; returns when the answer's headers have arrived."""
        client = self._clients[self.settings.endpoint]
        return await client.open(request, self.settings.deployment, request_id)

    def record_refusal(self, refusal: Refusal) -> None:
        """Note a refusal that another backend may make good."""
        now = self._clock()
        if refusal.retry_after and now + refusal.retry_after > self._cool_down_until:
            self._cool_down_until = now + refusal.retry_after
            self._refusal = refusal
        timed_out = refusal.problem.code == UPSTREAM_TIMEOUT.code
        probation = _PROBATION_AFTER_TIMEOUT if timed_out else _PROBATION
        self._probation_until = max(self._probation_until, now + probation)

    def record_success(self) -> None:
        """Note a complete answer, which ends the probation."""
        self._probation_until = 0.0

    def cooling_down(self) -> Refusal | None:
        """The refusal that it cools down after, with the time that is left; None when it may be asked."""
        left = self._cool_down_until - self._clock()
        if left <= 0 or self._refusal is None:
            return None
        return Refusal(
            self._refusal.problem.with_retry_after(math.ceil(left)),
            f"{self._refusal.reason}; cooling down for {left:.1f} s more",
            retry_after=left,
            status=self._refusal.status,
        )

    def rank(self) -> tuple[bool, int, int]:
        """The sort key of a model's backends: those on probation last, then by priority, then by load."""
        return (self._probation_until > self._clock(), self.settings.priority, self.load)


class Failover:
    """One request's pass over the backends of its model. `attempts` counts those that were asked."""

    def __init__(self, model: str, backends: list[Backend]) -> None:
        self.model = model
        self._remaining = backends
        self._refusals: list[Refusal] = []
        self.backend: Backend | None = None
        self.attempts = 0

    def next(self) -> Backend | None:
        """The backend to ask now, counted in its load until `release`; None when all have refused."""
        self.release()
        while self._remaining:
            backend = min(self._remaining, key=Backend.rank)
            self._remaining.remove(backend)
            if (cooling_down := backend.cooling_down()) is not None:
                self._refusals.append(cooling_down)
                continue
            self.backend = backend
            backend.load += 1
            self.attempts += 1
            return backend
        return None

    def has_more(self) -> bool:
        """Whether another backend is left that could be asked."""
        return any(backend.cooling_down() is None for backend in self._remaining)

    def record_refusal(self, refusal: Refusal) -> None:
        """Note that the current backend refused and that another may be asked."""
        if self.backend is not None:
            self.backend.record_refusal(refusal)
        self._refusals.append(refusal)

    def release(self) -> None:
        """Release the current backend: this request is no longer part of its load."""
        if self.backend is not None:
            self.backend.load -= 1
            self.backend = None

    def outcome(self) -> Refusal:
        """The refusal that the caller gets when all refused: the one with the soonest `Retry-After`, else the last."""
        timed = [refusal for refusal in self._refusals if refusal.problem.retry_after is not None]
        if timed:
            return min(timed, key=lambda refusal: refusal.problem.retry_after or 0)
        busy = [refusal for refusal in self._refusals if refusal.problem.code == RATE_LIMITED.code]
        return (busy or self._refusals)[-1]


class BackendPool:
    """All backends of the settings. Connections are made with the first request, on the event loop that serves it.

    The HTTP libraries take longer to import than the rest of the app: a thread does it while the worker starts, so that
    neither the app's start nor the event loop waits for them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._clients: dict[str, ModelServiceClient] = {}
        self._session: aiohttp.ClientSession | None = None
        self._token: EntraToken | None = None
        self._backends: dict[str, list[Backend]] = {}
        for entry in settings.backends:
            self._backends.setdefault(entry.model, []).append(Backend(entry, self._clients))
        threading.Thread(target=_import_connection, name="import relay.upstream", daemon=True).start()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self | Problem:
        """The pool that the app settings describe; a wrong setting is logged, and is a problem to answer with."""
        try:
            return cls(Settings.read(environ))
        except SettingsError as error:
            for it in error.errors:
                telemetry.log_setting_error(it.setting, it.message)
            return NOT_CONFIGURED.with_errors(*(FieldError(it.setting, it.message) for it in error.errors))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that callers may ask for, the default one first."""
        return self.settings.models

    def all(self) -> list[Backend]:
        """Every backend, grouped by model in the settings' order."""
        return [backend for backends in self._backends.values() for backend in backends]

    def failover(self, model: str | None) -> Failover | Problem:
        """The pass over the backends of `model` (None: the default one)."""
        model = model or self.models[0]
        backends = self._backends.get(model)
        return Failover(model, list(backends)) if backends else MODEL_NOT_FOUND

    async def connect(self) -> None:
        """Create the clients; returns at once but for the first requests, which wait for the import."""
        if self._clients:
            return
        connection = await asyncio.to_thread(_import_connection)
        if self._clients:
            return  # another request was first
        self._session = connection.create_session(self.settings)
        credential: Callable[[], Awaitable[str]] | str = self.settings.api_key or NO_KEY
        if self.settings.identity is not None:
            credential = self._token = connection.EntraToken(self.settings.identity)
        self._clients.update(
            (endpoint, connection.ModelServiceClient(endpoint, credential, self._session))
            for endpoint in dict.fromkeys(entry.endpoint for entry in self.settings.backends)
        )

    async def close(self) -> None:
        """Close every connection."""
        self._clients.clear()
        if self._token is not None:
            await self._token.close()
        if self._session is not None:
            await self._session.close()


def _import_connection() -> ModuleType:
    """Import the module once; a second importer waits for the first (importlib's lock)."""
    return importlib.import_module("relay.upstream.connection")
