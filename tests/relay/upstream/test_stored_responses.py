"""Requests about stored responses: which account is asked first, which one next, and what is sent to it."""

import itertools
from typing import Any, Final

import msgspec
import pytest

from relay.problems import (
    INVALID_REQUEST,
    PREVIOUS_RESPONSE_NOT_FOUND,
    RATE_LIMITED,
    RESPONSE_NOT_FOUND,
    UPSTREAM_ERROR,
    Problem,
)
from relay.settings import BackendSettings, Settings
from relay.upstream import pool as pool_module
from relay.upstream.client import ModelServiceClient
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, BackendPool, Failover, ResponseAccounts
from relay.upstream.refused_additions import take_back, without_blame
from relay.upstream.request import NOTHING, Accounts, Refused, UpstreamRequest, response_additions
from tests.relay.upstream.fakes import FakeResponse, FakeSession

NOT_FOUND: Final = Refusal(RESPONSE_NOT_FOUND, "404", status=404)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "500", status=500)
BUSY: Final = Refusal(RATE_LIMITED.with_retry_after(7), "429", retry_after=7.0, status=429)


def settings(*backends: tuple[str, str]) -> Settings:
    """Backends of these accounts and models, the first preferred."""
    return Settings(
        tuple(
            BackendSettings(f"{account}/{model}", f"http://{account}/v1/", model, model, priority)
            for priority, (account, model) in enumerate(backends)
        )
    )


POOL: Final = settings(("a", "m"), ("b", "m"), ("b", "n"), ("c", "m"), ("c", "m2"))


def pass_over(pool: BackendPool, model: Any, response_id: str | None = None) -> Failover:
    failover = pool.failover(model, response_id)
    assert isinstance(failover, Failover)
    return failover


def asked(failover: Failover, refusal: Refusal = NOT_FOUND) -> list[str]:
    """The accounts that are asked where each refuses."""
    hosts = []
    while (backend := failover.next()) is not None:
        hosts.append(backend.settings.endpoint.split("/")[2])
        failover.record_refusal(refusal)
    return hosts


class TestAccounts:
    def test_each_is_asked_once_in_the_order_of_the_settings(self) -> None:
        failover = pass_over(BackendPool(POOL), Accounts.EVERY)
        assert failover.model is None
        assert asked(failover) == ["a", "b", "c"]

    def test_the_one_that_made_the_response_is_asked_first(self) -> None:
        pool = BackendPool(POOL)
        made = pass_over(pool, "m2")
        made.next()
        made.record_response("resp_1")
        assert asked(pass_over(pool, Accounts.EVERY, "resp_1")) == ["c", "a", "b"]
        assert asked(pass_over(pool, "m", "resp_1")) == ["c", "a", "b"]
        for response_id in ("resp_2", None):
            assert asked(pass_over(pool, "m", response_id)) == ["a", "b", "c"]
        assert asked(pass_over(pool, "n", "resp_1")) == ["b"], "the model decides before the response does"

    def test_it_is_found_once(self) -> None:
        pool = BackendPool(POOL)
        found = pass_over(pool, Accounts.EVERY, "resp_1")
        found.next()
        found.record_refusal(NOT_FOUND)
        found.next()
        found.record_response("resp_1")
        assert asked(pass_over(pool, Accounts.EVERY, "resp_1")) == ["b", "a", "c"]

    def test_without_a_backend_nothing_is_noted(self) -> None:
        accounts = ResponseAccounts()
        Failover("m", [], accounts).record_response("resp_1")
        assert accounts.get("resp_1") is None

    def test_the_notes_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_module, "_REMEMBERED_RESPONSES", 3)
        accounts = ResponseAccounts()
        for number in range(3):
            accounts.note(f"resp_{number}", "a")
        accounts.note("resp_0", "b")  # the newest again
        accounts.note("resp_3", "c")
        assert [accounts.get(f"resp_{number}") for number in range(4)] == ["b", None, "a", "c"]
        assert accounts.get(None) is None

    def test_an_account_that_lacks_it_is_not_on_probation(self) -> None:
        pool = BackendPool(POOL)
        for problem in (RESPONSE_NOT_FOUND, PREVIOUS_RESPONSE_NOT_FOUND):
            assert asked(pass_over(pool, "m"), Refusal(problem, "404")) == ["a", "b", "c"]
            assert not any(backend.rank()[0] for backend in pool.all())

    def test_a_deployment_at_its_limit_keeps_no_account_away(self) -> None:
        pool = BackendPool(POOL)
        assert asked(pass_over(pool, "m"), BUSY) == ["a", "b", "c"]
        assert asked(pass_over(pool, Accounts.EVERY)) == ["a", "b", "c"]

    @pytest.mark.parametrize("order", list(itertools.permutations((NOT_FOUND, BROKEN, NOT_FOUND))))
    def test_one_that_failed_may_have_it(self, order: tuple[Refusal, ...]) -> None:
        failover = pass_over(BackendPool(POOL), Accounts.EVERY)
        for refusal in order:
            failover.next()
            failover.record_refusal(refusal)
        assert failover.outcome() == BROKEN

    def test_only_where_none_has_it_it_is_not_found(self) -> None:
        failover = pass_over(BackendPool(POOL), Accounts.EVERY)
        asked(failover)
        assert failover.outcome() == NOT_FOUND
        busy = pass_over(BackendPool(POOL), Accounts.EVERY)
        for refusal in (BUSY, NOT_FOUND, NOT_FOUND):
            busy.next()
            busy.record_refusal(refusal)
        assert busy.outcome() == BUSY


def test_an_unknown_model_has_no_account() -> None:
    assert isinstance(BackendPool(POOL).failover("unknown", "resp_1"), Problem)


class TestRequest:
    def service(self, session: FakeSession) -> ModelServiceClient:
        return ModelServiceClient("https://h.example.com/v1/", "the-key", session)  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
    async def test_what_is_sent(self, method: Any) -> None:
        session = FakeSession(FakeResponse())
        request = UpstreamRequest("/responses/resp_1?include%5B%5D=x", None, stream=False, method=method)
        assert not isinstance(await self.service(session).open(request, "", "request-1"), Refusal)
        (sent,) = session.requests
        assert (sent.method, str(sent.url)) == (method, "https://h.example.com/v1/responses/resp_1?include%5B%5D=x")
        assert not sent.data
        headers = dict(sent.headers)
        assert (headers["authorization"], headers["accept"]) == ("Bearer the-key", "application/json")
        assert headers["x-ms-client-request-id"] == "request-1"

    async def test_what_404_means_is_the_requests_to_say(self) -> None:
        for not_found, code in ((RESPONSE_NOT_FOUND, RESPONSE_NOT_FOUND.code), (None, "not_configured")):
            session = FakeSession(
                FakeResponse(404, content=b'{"error":{"code":null}}', content_type="application/json")
            )
            request = UpstreamRequest("/responses/resp_1", None, stream=False, method="GET", not_found=not_found)
            refusal = await self.service(session).open(request, "", "request-1")
            assert isinstance(refusal, Refusal)
            assert refusal.problem.code == code

    @pytest.mark.parametrize(
        ("parameters", "tokens"),
        [
            (None, 1),
            ({"input": "x" * 38}, 10),
            ({"input": "x" * 38, "instructions": "y" * 38, "other": "z" * 99}, 20),
            ({"metadata": "x" * 99}, 1),
        ],
        ids=range(4),
    )
    def test_the_estimated_input(self, parameters: dict[str, Any] | None, tokens: int) -> None:
        assert UpstreamRequest("/responses", parameters, stream=True).estimated_input_tokens() == tokens

    def test_its_defaults(self) -> None:
        request = UpstreamRequest("/path", {}, stream=True)
        assert (request.method, request.not_found, request.operation) == ("POST", None, "chat")
        assert not request.creates_response


class TestAdditions:
    """The output limit of a response is this app's to take back, and only where it is this app's."""

    def request(self, cap: int, limit: int | None = None, **members: Any) -> UpstreamRequest:
        additions = response_additions(max_output_tokens=cap, limit=limit)
        own = {} if limit is None else {"max_output_tokens": limit}
        return UpstreamRequest("/responses", {**members, **own, **additions.parameters()}, True, additions=additions)

    def refusal(self, message: str) -> Refusal:
        error = {"message": message, "param": "max_output_tokens"}
        return Refusal(INVALID_REQUEST.with_upstream_error(error), "400", status=400, error=error)

    TOO_LARGE: Final = "max_output_tokens is too large: 16384. This model supports at most 12288 output tokens."
    UNKNOWN: Final = "Unknown parameter: 'max_output_tokens'."

    def test_what_is_added(self) -> None:
        assert self.request(16384).parameters == {"max_output_tokens": 16384}
        assert self.request(16384, 20).parameters == {"max_output_tokens": 20}
        assert self.request(16384, 99999).parameters == {"max_output_tokens": 16384}

    def test_a_lower_limit_of_the_deployments(self) -> None:
        request = self.request(16384, stream_options={"include_obfuscation": False})
        taken_back = take_back(self.refusal(self.TOO_LARGE), request, NOTHING)
        assert taken_back is not None
        assert taken_back.lasting == Refused(most=12288)
        again = request.without(taken_back.refused)
        assert again.parameters == {"stream_options": {"include_obfuscation": False}, "max_output_tokens": 12288}

    def test_a_server_that_does_not_know_it(self) -> None:
        taken_back = take_back(self.refusal(self.UNKNOWN), self.request(16384), NOTHING)
        assert taken_back is not None
        assert msgspec.json.encode(self.request(16384, input="x").without(taken_back.refused).parameters) == (
            b'{"input":"x"}'
        )

    def test_the_callers_own_limit_is_the_callers(self) -> None:
        for message in (self.UNKNOWN, "max_output_tokens is too large: 100. This model supports at most 50 tokens."):
            refusal, request = self.refusal(message), self.request(16384, 100)
            assert take_back(refusal, request, NOTHING) is None
            assert without_blame(refusal, request) == refusal

    def test_the_caller_is_not_blamed_for_what_the_app_added(self) -> None:
        refusal = without_blame(self.refusal("max_output_tokens is odd"), self.request(16384))
        assert refusal.problem.code == UPSTREAM_ERROR.code


def test_a_backend_of_an_account_has_no_deployment() -> None:
    pool = BackendPool(POOL)
    failover = pass_over(pool, Accounts.EVERY)
    backend = failover.next()
    assert isinstance(backend, Backend)
    assert (backend.settings.name, backend.settings.deployment) == ("account 1", "")
    assert backend not in pool.all()
