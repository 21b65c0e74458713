"""What the service is set to do, and what it has seen: all that its wires, its control routes and tests share."""

import asyncio
import hmac
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Self

from aiohttp import web

from local.model_service import faults, text_generation
from local.model_service.deployments import ANY_DEPLOYMENT, DEFAULT_DEPLOYMENT, MANUAL_PACE, is_missing
from local.model_service.encoding import Document
from local.model_service.errors import ErrorResponse, deployment_not_found, wrong_key, wrong_token
from local.model_service.identity import IdentityEndpoint
from local.model_service.records import Credential, Record
from local.model_service.stored_responses import ResponseStore

MAX_RECORDS = 20_000  # the older half is forgotten beyond

type PlannedFault = str | list[str | None] | None

_RECORDED_HEADERS = (
    "accept",
    "content-type",
    "traceparent",
    "user-agent",
    "x-ms-client-request-id",
    "x-request-id",
    "x-stainless-retry-count",
)


class ServiceState:
    """Settings, plans and records.

    `tokens_per_second` 0 means no pause at all: then `tokens_per_write` tokens are written together. `api_key`: the one
    that is accepted, any when None; `key_header`: the only header that it is accepted in; `accept_token` the same for
    bearer tokens; `require_issued_token`: only tokens that
    the identity endpoint issued and that have not expired. `lenient`: as a mock server made from the API's description,
    which clients' own tests expect, the Responses API judges no request and has a response with any id.

    All of them, `faults`, `answers` and `identity` may be changed at any time; a change holds for the next request.
    `faults` maps a deployment (or `ANY_DEPLOYMENT`) to the name of a fault, or to a list that is used up, one per
    request; `answers` maps it to the tokens of its answer.
    """

    def __init__(
        self,
        *,
        tokens_per_second: float = 50.0,
        time_to_first_token: float = 0.0,
        tokens_per_write: int = 64,
        deployments: Sequence[str] = (),
        api_key: str | None = None,
        key_header: str | None = None,
        accept_token: str | None = None,
        require_issued_token: bool = False,
        lenient: bool = False,
        identity: IdentityEndpoint | None = None,
    ) -> None:
        self.tokens_per_second = tokens_per_second
        self.time_to_first_token = time_to_first_token
        self.tokens_per_write = tokens_per_write
        self.deployments = tuple(dict.fromkeys((DEFAULT_DEPLOYMENT, *deployments)))
        self.api_key = api_key
        self.key_header = key_header
        self.accept_token = accept_token
        self.require_issued_token = require_issued_token
        self.lenient = lenient
        self.identity = identity or IdentityEndpoint()
        self.requests: list[Record] = []
        self.request_count = 0  # those included whose records were forgotten
        self.faults: dict[str, PlannedFault] = {}
        self.answers: dict[str, Sequence[str]] = {}
        self.gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))
        self.responses = ResponseStore()
        self._waiters: set[asyncio.Future[None]] = set()

    # ── For tests ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def open_requests(self) -> int:
        """How many requests are being answered."""
        return sum(record.ended == "open" for record in self.requests)

    async def wait_for(self, predicate: Callable[[Self], object], timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until the predicate of this service holds; raises `TimeoutError` after `timeout` seconds.

        It is evaluated again whenever a request arrives, tokens are written or a request ends.
        """
        async with asyncio.timeout(timeout):
            while not predicate(self):
                changed = asyncio.get_running_loop().create_future()
                self._waiters.add(changed)
                try:
                    await changed
                finally:
                    self._waiters.discard(changed)

    def release(self, tokens: int = 1, deployment: str = MANUAL_PACE) -> None:
        """Let a manually paced deployment write so many more tokens, over all its requests."""
        for _ in range(tokens):
            self.gates[deployment].release()

    def answer(self, text: str | Sequence[str], deployment: str = ANY_DEPLOYMENT) -> None:
        """From now on answer with exactly this text, in these tokens if it is a list of them."""
        self.answers[deployment] = text_generation.tokenize(text) if isinstance(text, str) else list(text)

    def reset(self) -> None:
        """Forget the requests and responses that ended, all faults and answers, and releases that no request used."""
        self.requests[:] = [record for record in self.requests if record.ended == "open"]
        self.faults.clear()
        self.answers.clear()
        waiting = {record.deployment for record in self.requests}
        for deployment in self.gates.keys() - waiting:
            del self.gates[deployment]
        self.responses.forget_ended()
        self.identity.calls.clear()
        self.identity.failure = None

    # ── For the wires ────────────────────────────────────────────────────────────────────────────────────────────────

    def notify(self) -> None:
        """Evaluate the predicates of `wait_for` again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def record(
        self,
        request: web.Request,
        body: Document,
        auth: Credential | None,
        *,
        deployment: str,
        arrived: float | None = None,
    ) -> Record:
        """A new record of a request, which is kept in `requests`."""
        headers = {name: request.headers[name] for name in _RECORDED_HEADERS if name in request.headers}
        record = Record(
            index=self.request_count,
            deployment=deployment,
            path=request.path,
            body=body,
            auth=auth,
            headers=headers,
            arrived=time.monotonic() if arrived is None else arrived,
        )
        self.request_count += 1
        self.requests.append(record)
        if len(self.requests) > MAX_RECORDS:
            del self.requests[: MAX_RECORDS // 2]
        self.notify()
        return record

    def authenticate(self, request: web.Request) -> tuple[Credential | None, ErrorResponse | None]:
        """Which credential the request carries, and the error if it is not accepted."""
        key = request.headers.get(self.key_header or "api-key")
        if not key and self.key_header is not None:
            return None, wrong_key()
        if key:
            accepted = self.api_key is None or hmac.compare_digest(key.encode(), self.api_key.encode())
            return "key", None if accepted and not self.require_issued_token else wrong_key()
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None, wrong_key()
        # An OpenAI client that was given a key sends it as the bearer, and the v1 endpoint accepts it.
        accepted = self.accept_token in (None, token) or token == self.api_key
        if self.require_issued_token:
            accepted = self.identity.accepts(token)
        return "token", None if accepted else wrong_token()

    def take_fault(self, deployment: str, *, by_name: bool = True) -> str | None:
        """The fault of one request: what is planned for its deployment, else what the deployment's name asks for.

        `by_name` false: only what is planned.
        """
        for key in (deployment, ANY_DEPLOYMENT):
            if key in self.faults:
                planned = self.faults[key]
                return (planned.pop(0) if planned else None) if isinstance(planned, list) else planned
        return deployment if by_name and deployment.startswith(faults.PREFIX) else None

    def lasting_error(self, deployment: str) -> ErrorResponse | None:
        """The error of a request that generates nothing: only a fault that lasts counts, none that is used up."""
        if is_missing(deployment):
            return deployment_not_found()
        planned = self.faults.get(deployment, self.faults.get(ANY_DEPLOYMENT, deployment))
        if isinstance(planned, str) and (planned != deployment or deployment.startswith(faults.PREFIX)):
            try:
                injections = faults.parse(planned)
            except ValueError:
                return deployment_not_found()
            for injection in injections:
                if error := injection.error("models"):
                    return error
        return None

    def fixed_answer(self, deployment: str, injections: Sequence[faults.Injection]) -> Sequence[str] | None:
        """The tokens that a fault or `answer` sets for the deployment; None: the wire generates an answer."""
        tokens = self.answers.get(deployment, self.answers.get(ANY_DEPLOYMENT))
        for injection in injections:
            if injection.fault.text:
                tokens = injection.fault.text(injection.arguments)
        return tokens
