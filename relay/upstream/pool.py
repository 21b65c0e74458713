"""The pool of backends (model deployments): the choice among them, fail-over, cool-down and probation.

One request makes one pass over the backends of its model: by priority, then by load, equals in turns. A backend that
failed is on probation for a moment, in which it is tried last. One that asked not to be called for a while cools down
for that long: it gets no request that another backend could take, and of the others a trial now and then, as the pause
may have been asked for one large request.

A backend also remembers which of this app's additions its deployment refuses (`relay.upstream.refused_additions`).
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Final, Self

from relay import telemetry
from relay.problems import (
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_TIMEOUT,
    FieldError,
    Problem,
)
from relay.settings import NO_KEY, TEXT_WIRES, BackendSettings, Settings, SettingsError, Wire
from relay.upstream.answer import Answer
from relay.upstream.environment import remove_client_settings
from relay.upstream.failures import Refusal
from relay.upstream.refused_additions import take_back
from relay.upstream.request import NOTHING, Accounts, ModelName, Refused, UpstreamRequest

if TYPE_CHECKING:
    import aiohttp

    from relay.upstream.client import ModelServiceClient
    from relay.upstream.credential import EntraToken

# Seconds of probation after a failure; a silent backend costs its caller more than a failing one.
_PROBATION: Final = 2.0
_PROBATION_AFTER_TIMEOUT: Final = 30.0

# Seconds between the trials of a backend that cools down: twice as many after each, until it answers.
_FIRST_TRIAL_PAUSE: Final = 1.0
_LONGEST_TRIAL_PAUSE: Final = 30.0

_REFUSED_FOR: Final = 3600.0  # seconds for which a deployment is remembered to refuse additions; then they are tried
_MAX_REPEATS: Final = 4  # of one request to one backend; each takes back another addition

_REMEMBERED_RESPONSES: Final = 4096  # about 1 MB at most

_OF_EMBEDDINGS: Final = INVALID_REQUEST.with_errors(
    FieldError(
        "model",
        "is a model of embeddings: send it to POST /v1/embeddings, or name a model of text out of GET /v1/models",
    )
)


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
        self.both_limits = settings.both_limits
        self.server = settings.server
        self.load = 0
        self._clients = clients
        self._clock = clock
        self._turn = 0  # of the last request; the one whose turn is the longest ago comes first
        self._cool_down_until = 0.0
        self._probation_until = 0.0
        self._refusal: Refusal | None = None
        self._on_trial = False
        self._next_trial = 0.0
        self._trial_pause = _FIRST_TRIAL_PAUSE
        self._refused = NOTHING
        self._refused_until = 0.0

    async def open(
        self,
        request: UpstreamRequest,
        request_id: str,
        on_repeat: Callable[[], None] = lambda: None,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> Answer | Refusal:
        """Send `request`, after `BackendPool.connect`; returns when the answer's headers have arrived.

        `on_repeat` is called when the request is sent once more, since a kept connection had been closed, and
        `on_refusal` as soon as it is known that there is no answer.
        """
        client = self._clients[self.settings.endpoint]
        return await client.open(request, self.settings.deployment, request_id, on_repeat, on_refusal)

    @property
    def proxy(self) -> str | None:
        """The address of the proxy that leads to it, without credentials; known after `BackendPool.connect`."""
        client = self._clients.get(self.settings.endpoint)
        return None if client is None else client.proxy

    @property
    def refused(self) -> Refused:
        """What the deployment refuses of this app's additions, as far as is known."""
        if self._refused and self._clock() >= self._refused_until:
            self._refused = NOTHING
        return self._refused

    def remember_refused(self, refused: Refused) -> None:
        """Note additions that the deployment refuses, after it has answered a request without them; logged once."""
        known = self.refused
        if known | refused != known:
            self._refused = known | refused
            self._refused_until = self._clock() + _REFUSED_FOR
            telemetry.log_refused_additions(self.settings.name, self._refused.descriptions())

    def record_refusal(self, refusal: Refusal) -> None:
        """Note a refusal that another backend may make good."""
        if refusal.is_elsewhere:
            return  # the account works
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

    def begin(self, turn: int) -> bool:
        """Note that it is asked now, for the `turn`-th time of all; returns whether this is a trial."""
        self.load += 1
        self._turn = turn
        if self.cooling_down() is None:
            return False
        self._on_trial = True
        self._next_trial = self._clock() + self._trial_pause
        self._trial_pause = min(2 * self._trial_pause, _LONGEST_TRIAL_PAUSE)
        return True

    def end(self, *, trial: bool) -> None:
        """Note that what `begin` began is over."""
        self.load -= 1
        if trial:
            self._on_trial = False

    def end_cool_down(self) -> None:
        """Note that a trial is answered."""
        self._cool_down_until = 0.0
        self._trial_pause = _FIRST_TRIAL_PAUSE
        self._next_trial = 0.0

    def can_be_tried(self) -> bool:
        """Whether a request may be sent as a trial while it cools down: one at a time, and now and then."""
        return not self._on_trial and self._clock() >= self._next_trial

    def cooling_down(self) -> Refusal | None:
        """The refusal that it cools down after, with the time that is left; None when it is not cooling down."""
        left = self._cool_down_until - self._clock()
        if left <= 0 or self._refusal is None:
            return None
        return Refusal(
            self._refusal.problem.with_retry_after(math.ceil(left)),
            f"{self._refusal.reason}; cooling down for {left:.1f} s more",
            retry_after=left,
            status=self._refusal.status,
        )

    def rank(self) -> tuple[bool, int, int, int]:
        """The sort key of a model's backends: those on probation last, then by priority, by load, and in turns."""
        return (self._probation_until > self._clock(), self.settings.priority, self.load, self._turn)


class Adaptation:
    """One request to one backend, and which of this app's additions are left out of it.

    `request` is the request to send now.
    """

    def __init__(self, backend: Backend, request: UpstreamRequest) -> None:
        self._backend = backend
        self._whole = request
        self._refused = backend.refused
        self._lasting = NOTHING
        self._repeats = 0
        self.request = self._without_refused()

    def repeat_without(self, refusal: Refusal) -> bool:
        """Whether to send `request` once more, now without what this refusal is about."""
        taken_back = take_back(refusal, self.request, self._refused)
        if taken_back is None or taken_back.refused == self._refused or self._repeats == _MAX_REPEATS:
            return False
        self._refused = taken_back.refused
        self._lasting |= taken_back.lasting
        self._repeats += 1
        self.request = self._without_refused()
        return True

    def remember(self) -> None:
        """Note that the deployment takes the request like this."""
        self._backend.remember_refused(self._lasting)

    def _without_refused(self) -> UpstreamRequest:
        return self._whole.without(self._refused, both_limits=self._backend.both_limits)


class ResponseAccounts:
    """Which account made a response, as far as this process remembers: `note` and `get` the endpoint by the id.

    It only saves questions: an account that does not have a response answers 404, and the next one is asked.
    """

    def __init__(self) -> None:
        self._endpoints: dict[str, str] = {}  # the oldest first

    def note(self, response_id: str, endpoint: str) -> None:
        """The account at `endpoint` has this response; the oldest note is dropped beyond `_REMEMBERED_RESPONSES`."""
        self._endpoints.pop(response_id, None)
        self._endpoints[response_id] = endpoint
        if len(self._endpoints) > _REMEMBERED_RESPONSES:
            del self._endpoints[next(iter(self._endpoints))]

    def get(self, response_id: str | None) -> str | None:
        """The endpoint of the account that has this response; None where that is not known."""
        return self._endpoints.get(response_id) if response_id is not None else None


class Failover:
    """One request's pass over the backends of its model. `attempts` counts the requests that were sent.

    `response_id` is that of a response which the request names: the backends on its account, by `accounts`, are asked
    first. `wire` is that of the backend asked now, and before that of the first one given.
    """

    _turns = itertools.count(1)

    def __init__(
        self,
        model: str | None,
        backends: list[Backend],
        accounts: ResponseAccounts | None = None,
        response_id: str | None = None,
    ) -> None:
        self.model = model
        self.wire: Wire = backends[0].settings.wire if backends else "chat"
        self._remaining = backends
        self._accounts = accounts or ResponseAccounts()
        self._preferred = self._accounts.get(response_id)
        self._refusals: list[Refusal] = []
        self.backend: Backend | None = None
        self.attempts = 0
        self._trial = False
        self._tried = False
        self._adaptation: Adaptation | None = None
        self._repeat = False

    def next(self) -> Backend | None:
        """The backend to ask now, counted in its load until `release`; None when all have refused.

        Those that cool down come last, and at most one of them. After `repeat_without` it is the same one once more.
        """
        if self._repeat:
            self._repeat = False
            self.attempts += 1
            return self.backend
        self.release()
        cooling_down = [backend for backend in self._remaining if backend.cooling_down() is not None]
        ready = [backend for backend in self._remaining if backend not in cooling_down]
        candidates = ready or ([] if self._tried else [it for it in cooling_down if it.can_be_tried()])
        if not candidates:
            self._refusals += [refusal for it in cooling_down if (refusal := it.cooling_down()) is not None]
            self._remaining = []
            return None
        backend = self.backend = min(candidates, key=self._rank)
        self._remaining.remove(backend)
        self.wire = backend.settings.wire
        self._trial = backend.begin(next(self._turns))
        self._tried = self._tried or self._trial
        self._adaptation = None
        self.attempts += 1
        return backend

    def _rank(self, backend: Backend) -> tuple[bool, bool, int, int, int]:
        return (self._preferred is not None and backend.settings.endpoint != self._preferred, *backend.rank())

    def has_more(self) -> bool:
        """Whether another backend is left that could be asked."""
        return any(it.cooling_down() is None or (not self._tried and it.can_be_tried()) for it in self._remaining)

    def adapted(self, request: UpstreamRequest) -> UpstreamRequest:
        """The request as the current backend's deployment takes it, as far as is known."""
        if self._adaptation is None:
            assert self.backend is not None  # noqa: S101 (a request is sent to the backend that `next` gave)
            self._adaptation = Adaptation(self.backend, request)
        return self._adaptation.request

    def repeat_without(self, refusal: Refusal) -> bool:
        """Whether the current backend is to be asked once more, without what it refused of this app's additions:
        `next` and `adapted` then give the backend and the request."""
        self._repeat = self._adaptation is not None and self._adaptation.repeat_without(refusal)
        return self._repeat

    def record_answer(self) -> None:
        """Note that the current backend answers: what had to be left out is remembered, and a trial is passed."""
        if self._adaptation is not None:
            self._adaptation.remember()
        if self.backend is not None and self._trial:
            self.backend.end_cool_down()

    def record_refusal(self, refusal: Refusal) -> None:
        """Note that the current backend refused and that another may be asked."""
        if self.backend is not None:
            self.backend.record_refusal(refusal)
            if self._trial and (cooling_down := self.backend.cooling_down()) is not None:
                self._refusals.append(cooling_down)  # it knows when to try again, where the refusal does not
        self._refusals.append(refusal)

    def record_response(self, response_id: str) -> None:
        """Note that the current backend's account has this response."""
        if self.backend is not None:
            self._accounts.note(response_id, self.backend.settings.endpoint)

    def release(self) -> None:
        """Release the current backend: this request is no longer part of its load."""
        if self.backend is not None:
            self.backend.end(trial=self._trial)
            self.backend = None

    def outcome(self) -> Refusal:
        """The refusal that the caller gets when all refused: the one with the soonest `Retry-After`, else the last.

        That a response was not found is one only where every account answered so: one that failed may have it.
        """
        refusals = [refusal for refusal in self._refusals if not refusal.is_elsewhere] or self._refusals
        timed = [refusal for refusal in refusals if refusal.problem.retry_after is not None]
        if timed:
            return min(timed, key=lambda refusal: refusal.problem.retry_after or 0)
        busy = [refusal for refusal in refusals if refusal.problem.code == RATE_LIMITED.code]
        return (busy or refusals)[-1]


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
        # Requests that concern an account and not a deployment: a deployment at its limit does not keep them away.
        endpoints = dict.fromkeys(entry.endpoint for entry in settings.backends)
        self._account_backends = [
            Backend(BackendSettings(f"account {number}", endpoint, "", "", number), self._clients)
            for number, endpoint in enumerate(endpoints, start=1)
        ]
        self._response_accounts = ResponseAccounts()
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

    def failover(
        self, model: ModelName, response_id: str | None = None, wires: tuple[Wire, ...] = TEXT_WIRES
    ) -> Failover | Problem:
        """The pass over the backends of `model`, or over all accounts; `response_id`: see `Failover`.

        `wires` are those that the request can be sent by. A model's backends that are stated to have one of them are
        asked; where it has none, all are, and the model service tells whether it has that API all the same. Only a
        model of embeddings is known to have nothing else.
        """
        if model is Accounts.EVERY:
            return Failover(None, list(self._account_backends), self._response_accounts, response_id)
        model = model or self.models[0]
        backends = self._backends.get(model)
        if not backends:
            return MODEL_NOT_FOUND
        able = [backend for backend in backends if backend.settings.wire in wires]
        if not able and backends[0].settings.wire == "embeddings":
            return _OF_EMBEDDINGS
        return Failover(model, able or list(backends), self._response_accounts, response_id)

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
        for account in self._account_backends:
            endpoint = account.settings.endpoint
            client = connection.ModelServiceClient(
                endpoint, credential, self._session, key_header=self.settings.api_key_header
            )
            self._clients[endpoint] = client
            if client.proxy is not None:
                telemetry.log_proxy(client.proxy)

    async def close(self) -> None:
        """Close every connection."""
        self._clients.clear()
        if self._token is not None:
            await self._token.close()
        if self._session is not None:
            await self._session.close()


def _import_connection() -> ModuleType:
    """Import the module once; a second importer waits for the first (importlib's lock)."""
    remove_client_settings()
    return importlib.import_module("relay.upstream.connection")
