"""The control routes: plan faults and answers, set the pace and look at the requests by HTTP."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from local.model_service import faults
from local.model_service.deployments import ANY_DEPLOYMENT, MANUAL_PACE
from local.model_service.encoding import json_response
from local.model_service.state import PlannedFault, ServiceState

type _Change = Callable[[Any, Mapping[str, str]], None]  # what a request's body and query change


class Control:
    """`GET /control/state`, `GET /control/requests`, and `POST /control/…`, each of which responds with the state."""

    def __init__(self, state: ServiceState) -> None:
        self.state = state

    def routes(self) -> Iterator[web.RouteDef]:
        """The routes of the server."""
        yield web.get("/control/state", self._get_state)
        yield web.get("/control/requests", self._get_requests)
        changes: dict[str, _Change] = {
            "faults": self._plan_faults,
            "answer": self._set_answer,
            "release": self._release,
            "pace": self._set_pace,
            "identity": self._set_identity,
            "reset": lambda _body, _query: self.state.reset(),
        }
        for name, change in changes.items():
            yield web.post(f"/control/{name}", self._handler(change))

    def _handler(self, change: _Change) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            text = await request.read()
            try:
                change(msgspec.json.decode(text) if text else {}, request.query)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                return json_response({"error": f"{type(error).__name__}: {error}"}, 400)
            return await self._get_state(request)

        return handle

    async def _get_state(self, _: web.Request) -> web.StreamResponse:
        state = self.state
        return json_response(
            {
                "open_requests": state.open_requests,
                "requests": state.request_count,
                "endings": Counter(record.ended for record in state.requests),
                "tokens": sum(record.tokens for record in state.requests),
                "stored_responses": len(state.responses),
                "tokens_per_second": state.tokens_per_second,
                "faults": state.faults,
                "identity_calls": len(state.identity.calls),
            }
        )

    async def _get_requests(self, request: web.Request) -> web.StreamResponse:
        """`?deployment=…&limit=…` (the latest); `token_times=0` leaves the times out."""
        deployment = request.query.get("deployment")
        records = [record for record in self.state.requests if deployment in (None, record.deployment)]
        documents = [record.as_document() for record in records[-int(request.query.get("limit", 1000)) :]]
        if request.query.get("token_times") == "0":
            for document in documents:
                del document["token_times"]
        return json_response(documents)

    def _plan_faults(self, body: Mapping[str, PlannedFault], _: Mapping[str, str]) -> None:
        """`{"gpt-5.4-mini": "429", "other": ["503", null, "cut-midway-3"]}`: added to what is planned."""
        for planned in body.values():
            for name in planned if isinstance(planned, list) else [planned]:
                if name:
                    faults.parse(name)
        self.state.faults.update(body)

    def _set_answer(self, body: Mapping[str, Any], _: Mapping[str, str]) -> None:
        """`{"deployment": "*", "text": "…"}`, or `"tokens": ["…", …]` in place of the text; neither: a generated answer
        again."""
        deployment = str(body.get("deployment", ANY_DEPLOYMENT))
        if "tokens" in body or "text" in body:
            self.state.answer(body["tokens"] if "tokens" in body else str(body["text"]), deployment)
        else:
            self.state.answers.pop(deployment, None)

    def _release(self, _: object, query: Mapping[str, str]) -> None:
        """`?tokens=…&deployment=…`."""
        self.state.release(int(query.get("tokens", 1)), query.get("deployment", MANUAL_PACE))

    def _set_pace(self, body: Mapping[str, Any], _: Mapping[str, str]) -> None:
        """`{"tokens_per_second": …, "time_to_first_token": …}`."""
        state = self.state
        state.tokens_per_second = float(body.get("tokens_per_second", state.tokens_per_second))
        state.time_to_first_token = float(body.get("time_to_first_token", state.time_to_first_token))

    def _set_identity(self, body: Mapping[str, Any], _: Mapping[str, str]) -> None:
        """`{"lifetime": …, "delay": …, "failure": …, "require_issued_token": …}`."""
        identity = self.state.identity
        identity.lifetime = float(body.get("lifetime", identity.lifetime))
        identity.delay = float(body.get("delay", identity.delay))
        identity.failure = body.get("failure", identity.failure)
        self.state.require_issued_token = bool(body.get("require_issued_token", self.state.require_issued_token))
