"""Entra tokens: fetched once for all, renewed beside the requests, never used beyond their expiry."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.core.settings import settings as azure_settings

from local.model_service import ModelService
from relay.settings import AZURE_TOKEN_SCOPE, Identity
from relay.upstream import credential as credential_module
from relay.upstream.credential import EntraToken, SignInError
from tests.relay.virtual_time import virtual_time

HOUR = 3600.0


class FakeCredential:
    """Gives tokens named "token-1", "token-2" and so on, or raises `failures`, one for each call that is not None."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock
        self.lifetime = HOUR
        self.delay: float | None = None  # seconds of the event loop's clock; None: none
        self.failures: list[BaseException | None] = []
        self.scopes: list[str] = []
        self.identities: list[Identity] = []
        self.closed = 0

    async def get_token(self, scope: str) -> Any:
        self.scopes.append(scope)
        number = len(self.scopes)
        if self.delay is not None:
            await asyncio.sleep(self.delay)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return SimpleNamespace(token=f"token-{number}", expires_on=int(self.clock.now + self.lifetime))

    async def close(self) -> None:
        self.closed += 1

    @property
    def calls(self) -> int:
        return len(self.scopes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of day, which a test moves: `now`, in seconds since 1970."""
    clock = SimpleNamespace(now=1_000_000.0)
    monkeypatch.setattr(credential_module, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> FakeCredential:
    fake = FakeCredential(clock)

    def create(identity: Identity) -> FakeCredential:
        fake.identities.append(identity)
        return fake

    monkeypatch.setattr(credential_module, "entra_credential", create)
    return fake


@pytest.fixture
def token(fake: FakeCredential) -> EntraToken:
    return EntraToken(Identity("managed", "the-scope"))


async def settle() -> None:
    """Let everything run that needs no time."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestFetching:
    @virtual_time
    async def test_one_token_serves_all(self, fake: FakeCredential, token: EntraToken) -> None:
        fake.delay = 0.1
        assert set(await asyncio.gather(*[token() for _ in range(20)])) == {"token-1"}
        assert await token() == "token-1"
        assert fake.scopes == ["the-scope"]
        assert fake.identities == [Identity("managed", "the-scope")]

    @virtual_time
    async def test_the_first_request_waits_for_it_at_any_time_of_day(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        clock.now = 0.25
        fake.delay = 0.1
        assert await token() == "token-1"

    @virtual_time
    async def test_the_credential_is_created_once_and_with_the_first_request(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        assert fake.identities == []
        await token()
        clock.now += HOUR
        assert await token() == "token-2"
        assert len(fake.identities) == 1

    @virtual_time
    async def test_a_caller_who_disconnects_does_not_cancel_it_for_the_others(
        self, fake: FakeCredential, token: EntraToken
    ) -> None:
        fake.delay = 0.2
        disconnecting, waiting = asyncio.create_task(token()), asyncio.create_task(token())
        await asyncio.sleep(0.05)  # virtual
        disconnecting.cancel()
        assert await waiting == "token-1"
        assert fake.calls == 1
        assert disconnecting.cancelled()

    @virtual_time
    async def test_a_failure_is_raised_to_all_and_not_remembered(self, fake: FakeCredential, token: EntraToken) -> None:
        fake.delay = 0.1
        fake.failures = [ClientAuthenticationError("SECRET")]
        results = await asyncio.gather(*[token() for _ in range(3)], return_exceptions=True)
        assert [type(result) for result in results] == [SignInError] * 3
        assert {str(result) for result in results} == {"no token (managed identity, ClientAuthenticationError)"}
        assert fake.calls == 1
        assert await token() == "token-2"

    @pytest.mark.parametrize(
        "error", [ClientAuthenticationError("x"), OSError("x"), ValueError("x"), KeyError("x"), RecursionError("x")]
    )
    @virtual_time
    async def test_the_kinds_of_failure(self, fake: FakeCredential, error: Exception) -> None:
        fake.failures = [error]
        with pytest.raises(SignInError) as caught:
            await EntraToken(Identity("developer", "s"))()
        assert str(caught.value) == f"no token (developer identity, {type(error).__name__})"
        assert caught.value.__cause__ is error

    @virtual_time
    async def test_one_attempt_has_twenty_seconds(self, fake: FakeCredential, token: EntraToken) -> None:
        loop = asyncio.get_running_loop()
        fake.delay = 20.5
        began = loop.time()
        with pytest.raises(SignInError, match=r"^no token within 20 s \(managed identity\)$"):
            await token()
        assert loop.time() - began == 20
        fake.delay = 19.5
        assert await token() == "token-2"


class TestRenewal:
    @virtual_time
    async def test_five_minutes_before_the_expiry_and_no_request_waits(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        loop = asyncio.get_running_loop()
        assert await token() == "token-1"
        clock.now += HOUR - 300.5
        assert await token() == "token-1"
        await settle()
        assert fake.calls == 1
        clock.now += 0.5
        fake.delay = 0.3
        began = loop.time()
        assert await token() == "token-1"
        assert loop.time() == began
        await settle()
        assert fake.calls == 2
        assert [await token() for _ in range(3)] == ["token-1"] * 3
        await asyncio.sleep(0.4)  # virtual
        assert await token() == "token-2"
        assert fake.calls == 2

    @pytest.mark.parametrize(
        ("lifetime", "after"),
        [(HOUR, 3300), (331, 31), (330, 30), (310, 30), (60, 30), (58, 29), (40, 20), (2, 1)],
    )
    @virtual_time
    async def test_when_it_begins(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace, lifetime: float, after: float
    ) -> None:
        fake.lifetime = lifetime
        await token()
        clock.now += after - 0.25
        await token()
        await settle()
        assert fake.calls == 1
        clock.now += 0.25
        assert await token() == "token-1"
        await settle()
        assert fake.calls == 2
        assert await token() == "token-2"

    @virtual_time
    async def test_one_that_fails_is_tried_again_later_and_no_request_notices(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        await token()
        fake.failures = [ClientAuthenticationError("x"), OSError("x")]
        clock.now += HOUR - 290
        for calls in (2, 3):
            assert await token() == "token-1"
            await settle()
            assert fake.calls == calls
            clock.now += 29.75
            assert await token() == "token-1"
            await settle()
            assert fake.calls == calls, "tried again at once"
            clock.now += 0.25
        assert await token() == "token-1"
        await settle()
        assert fake.calls == 4
        assert await token() == "token-4"

    @virtual_time
    async def test_a_token_is_never_used_beyond_its_expiry(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        await token()
        fake.failures = [ClientAuthenticationError("x")]
        clock.now += HOUR - 10
        assert await token() == "token-1"
        await settle()
        clock.now += 9.75
        assert await token() == "token-1"
        await settle()
        assert fake.calls == 2
        clock.now += 0.25
        assert await token() == "token-3"

    @virtual_time
    async def test_at_the_expiry_a_renewal_under_way_is_waited_for(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        await token()
        fake.delay = 5.0
        clock.now += HOUR - 1
        assert await token() == "token-1"
        clock.now += 1
        assert await token() == "token-2"
        assert fake.calls == 2

    @virtual_time
    async def test_a_failure_after_the_expiry_is_raised_and_the_next_request_tries_again(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        await token()
        fake.failures = [OSError("x"), OSError("x")]
        clock.now += HOUR
        for _ in range(2):
            with pytest.raises(SignInError):
                await token()
        assert await token() == "token-4"

    @virtual_time
    async def test_a_renewal_that_fails_as_the_token_expires_is_tried_again_by_the_next_request(
        self, fake: FakeCredential, token: EntraToken, clock: SimpleNamespace
    ) -> None:
        await token()
        fake.delay = 5.0
        fake.failures = [OSError("x")]
        clock.now += HOUR - 1
        assert await token() == "token-1"
        await asyncio.sleep(1)  # virtual
        clock.now += 1
        await asyncio.sleep(5)  # virtual
        assert await token() == "token-3"


class TestClosing:
    @virtual_time
    async def test_the_credential_is_closed(self, fake: FakeCredential, token: EntraToken) -> None:
        await token()
        await token.close()
        assert fake.closed == 1

    @virtual_time
    async def test_before_any_request_there_is_none_to_close(self, fake: FakeCredential, token: EntraToken) -> None:
        await token.close()
        assert (fake.identities, fake.closed) == ([], 0)

    @virtual_time
    async def test_a_fetch_under_way_is_cancelled(self, fake: FakeCredential, token: EntraToken) -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        fake.delay = 5.0
        waiting = asyncio.create_task(token())
        await settle()
        await token.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await settle()
        assert fake.closed == 1
        assert errors == []


class TestKindsOfCredential:
    @pytest.fixture(autouse=True)
    def classes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fake_class(name: str) -> Any:
            return lambda *arguments, **options: (name, arguments, options)

        for name in (
            "AzureCliCredential",
            "AzureDeveloperCliCredential",
            "ChainedTokenCredential",
            "ManagedIdentityCredential",
        ):
            monkeypatch.setattr(f"azure.identity.aio.{name}", fake_class(name))

    @pytest.mark.parametrize("client_id", [None, "the-client-id"])
    def test_managed(self, client_id: str | None) -> None:
        credential = credential_module.entra_credential(Identity("managed", "s", client_id))
        options = {"client_id": client_id, "use_env_settings": False}
        assert credential == ("ManagedIdentityCredential", (), options)

    def test_developer(self) -> None:
        credential = credential_module.entra_credential(Identity("developer", "s"))
        sign_ins = (("AzureCliCredential", (), {}), ("AzureDeveloperCliCredential", (), {}))
        assert credential == ("ChainedTokenCredential", sign_ins, {})

    def test_no_span_is_recorded_of_a_token_request(self) -> None:
        azure_settings.tracing_enabled = True
        try:
            credential_module.entra_credential(Identity("managed", "s"))
            assert azure_settings.tracing_enabled() is False
        finally:
            azure_settings.tracing_enabled.unset_value()


class TestManagedIdentityEndpoint:
    """The same with azure-identity and the endpoint of a managed identity."""

    @pytest.fixture
    async def service(self) -> AsyncIterator[ModelService]:
        async with ModelService(tokens_per_second=0) as service:
            yield service

    @pytest.fixture
    async def token(self, service: ModelService, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EntraToken]:
        service.identity.lifetime = HOUR
        monkeypatch.setenv("IDENTITY_ENDPOINT", service.identity_url)
        monkeypatch.setenv("IDENTITY_HEADER", service.identity.header)
        token = EntraToken(Identity("managed", AZURE_TOKEN_SCOPE))
        yield token
        await token.close()

    async def test_a_token_is_fetched_once_and_accepted(self, service: ModelService, token: EntraToken) -> None:
        service.identity.delay = 0.1
        (found,) = set(await asyncio.gather(*[token() for _ in range(20)]))
        assert await token() == found
        assert len(service.identity.calls) == 1
        assert service.identity.accepts(found)

    async def test_a_failure_is_raised_to_all_and_not_remembered(
        self, service: ModelService, token: EntraToken
    ) -> None:
        service.identity.failure = 400
        results = await asyncio.gather(*[token() for _ in range(3)], return_exceptions=True)
        assert [type(result) for result in results] == [SignInError] * 3
        assert service.identity.header not in str(results)
        service.identity.failure = None
        assert await token()
