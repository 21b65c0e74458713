"""Responses in the background: whose they are, and when one that no stream reads is stopped and deleted."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import pytest

from relay import telemetry
from relay.problems import INVALID_REQUEST, RATE_LIMITED, RESPONSE_NOT_FOUND, UPSTREAM_ERROR, UPSTREAM_TIMEOUT, Problem
from relay.settings import BackendSettings, Settings
from relay.upstream import background as background_module
from relay.upstream.background import BackgroundResponses, StoredAnswer
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, Failover, ResponseAccounts
from relay.upstream.request import Accounts, UpstreamRequest
from relay.usage import Usage
from tests.relay.virtual_time import virtual_time
from tests.schedules.virtual_loop import VirtualLoop
from tests.schedules.world import Break, End, ScriptedAnswer, Send

GRACE: Final = 100.0
ID: Final = "resp_1"
MINE: Final = {"relay_caller": "me"}
NOT_FOUND: Final = Refusal(RESPONSE_NOT_FOUND, "404", status=404)
ENDED: Final = Refusal(INVALID_REQUEST, "400", status=400)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "500", status=500)


@dataclass
class Account:
    """A model service, with what it does by method; `asked` are the requests, with their times."""

    name: str = "a"
    document: dict[str, Any] = field(
        default_factory=lambda: {"status": "in_progress", "metadata": {"relay_caller": "me"}}
    )
    refusals: dict[str, Refusal] = field(default_factory=dict)
    asked: list[tuple[float, str]] = field(default_factory=list)
    silent: bool = False
    breaks: bool = False
    answers: list[ScriptedAnswer] = field(default_factory=list)

    async def open(self, request: UpstreamRequest, deployment: str, request_id: str, *_: Any) -> Any:
        assert request.parameters is None
        assert request.not_found is RESPONSE_NOT_FOUND
        assert request_id
        loop = asyncio.get_running_loop()
        what = {"GET": "get", "DELETE": "delete", "POST": "cancel"}[request.method]
        assert request.path == f"/responses/{ID}" + ("/cancel" if what == "cancel" else "")
        self.asked.append((loop.time(), what))
        if self.silent:
            await loop.create_future()
        if what in self.refusals:
            return self.refusals[what]
        answer = ScriptedAnswer("application/json")
        answer.deliver(Send(json.dumps(self.document).encode()))
        answer.deliver(Break() if self.breaks else End())
        self.answers.append(answer)
        return answer

    @property
    def requests(self) -> list[str]:
        return [what for _, what in self.asked]


class Pool:
    def __init__(self, *accounts: Account, **settings: Any) -> None:
        self.settings = Settings((), resumable_streams=True, **{"resumable_grace": GRACE, **settings})
        loop = asyncio.get_running_loop()
        self.backends = [
            Backend(
                BackendSettings(it.name, f"http://{it.name}/", "", ""), {f"http://{it.name}/": cast(Any, it)}, loop.time
            )
            for it in accounts
        ]
        self.accounts = ResponseAccounts()

    def failover(self, model: Literal[Accounts.EVERY], response_id: str) -> Failover | Problem:
        assert model is Accounts.EVERY
        return Failover(None, list(self.backends), self.accounts, response_id)

    async def connect(self) -> None:
        raise AssertionError


class Stream:
    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


async def later(seconds: float) -> None:
    """All that happens in this time has happened."""
    await asyncio.sleep(seconds)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    await loop.rest()


def begin(account: Account, **settings: Any) -> tuple[BackgroundResponses, Stream]:
    background = BackgroundResponses(Pool(account, **settings))
    reader = Stream()
    background.attach(ID, reader)
    return background, reader


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What is logged: the event, the response, the reason."""
    logged: list[tuple[str, str, str]] = []
    monkeypatch.setattr(
        telemetry, "_log_response", lambda event, _, response_id, reason: logged.append((event, response_id, reason))
    )
    return logged


class TestTheEndOfAResponse:
    @virtual_time
    async def test_lost_it_is_stopped_and_deleted_after_the_grace_period_and_not_before(self) -> None:
        account = Account()
        background, reader = begin(account)
        await later(500)
        background.detach(ID, reader, "lost")
        await later(GRACE - 0.001)
        assert account.asked == []
        assert background.members() == {"streaming": 0, "waiting": 1, "kept": 0, "left_behind": 0}
        await later(0.001)
        assert account.requests == ["cancel", "delete"]
        assert background.members() == {"streaming": 0, "waiting": 0, "kept": 0, "left_behind": 0}
        assert {it.state for it in account.answers} == {"returned"}

    @virtual_time
    async def test_resumed_in_time_it_goes_on(self) -> None:
        account = Account()
        background, reader = begin(account)
        background.detach(ID, reader, "lost")
        await later(GRACE - 1)
        other = Stream()
        background.attach(ID, other)
        assert background.members()["streaming"] == 1
        await later(10 * GRACE)
        assert account.asked == []
        background.detach(ID, other, "lost")
        await later(GRACE - 1)
        assert account.asked == []
        await later(1)
        assert account.requests == ["cancel", "delete"]

    @virtual_time
    async def test_ended_it_is_deleted_after_a_minute(self) -> None:
        account = Account()
        background, reader = begin(account)
        background.detach(ID, reader, "ended")
        await later(59.999)
        assert account.asked == []
        await later(0.001)
        assert account.requests == ["delete"]

    @virtual_time
    async def test_ended_it_is_deleted_after_a_shorter_grace_period(self) -> None:
        account = Account()
        background, reader = begin(account, resumable_grace=2.0)
        background.detach(ID, reader, "ended")
        await later(2)
        assert account.requests == ["delete"]

    @virtual_time
    async def test_without_a_grace_period_it_is_stopped_at_once(self) -> None:
        account = Account()
        background, reader = begin(account, resumable_grace=0.0)
        background.detach(ID, reader, "lost")
        await later(0)
        assert account.requests == ["cancel", "delete"]

    @virtual_time
    async def test_handed_over_its_end_is_waited_for(self) -> None:
        """Another instance may stream it: it is not stopped."""
        account = Account()
        background, reader = begin(account)
        background.detach(ID, reader, "handed_over")
        await later(2.5 * GRACE)
        assert account.requests == ["get", "get"]
        account.document["status"] = "completed"
        await later(GRACE)
        assert account.requests == ["get", "get", "get", "delete"]

    @virtual_time
    async def test_handed_over_its_end_is_not_waited_for_for_ever(self) -> None:
        account = Account()
        background, reader = begin(account)
        background.detach(ID, reader, "handed_over")
        await later(20_000)
        assert set(account.requests) == {"get"}
        assert 71 <= len(account.requests) <= 73
        assert background.members()["waiting"] == 0

    @virtual_time
    async def test_the_last_of_several_streams_decides(self) -> None:
        account = Account()
        background, one = begin(account)
        other = Stream()
        background.attach(ID, other)
        background.detach(ID, one, "ended")
        await later(10 * GRACE)
        assert account.asked == []
        background.detach(ID, other, "lost")
        await later(GRACE)
        assert account.requests == ["cancel", "delete"]

    @virtual_time
    async def test_nothing_is_done_where_the_app_shuts_down(self) -> None:
        account = Account()
        background, reader = begin(account)
        background.detach(ID, reader, None)
        await later(10 * GRACE)
        assert account.asked == []
        assert background.members()["streaming"] == 0

    @virtual_time
    async def test_a_response_that_no_one_knows_is_stopped_at_once(self) -> None:
        account = Account()
        background = BackgroundResponses(Pool(account))
        background.abandon(ID)
        await later(0)
        assert account.requests == ["cancel", "delete"]

    @virtual_time
    async def test_kept(self) -> None:
        account = Account()
        background, reader = begin(account, resumable_keep=True)
        background.detach(ID, reader, "ended")
        await later(GRACE)
        assert account.asked == []
        background.attach(ID, reader)
        background.detach(ID, reader, "lost")
        await later(GRACE)
        assert account.requests == ["cancel"]
        assert background.members()["kept"] == 2


class TestBounds:
    @virtual_time
    async def test_the_one_that_waits_longest_is_dealt_with(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(background_module, "_MAX_WAITING", 1)
        account = Account()
        background, reader = begin(account)
        background.detach(ID, reader, "lost")
        background.attach("resp_2", reader)
        background.detach("resp_2", reader, "lost")
        await later(0)
        assert account.requests == ["cancel", "delete"]
        assert background.members()["waiting"] == 1

    @virtual_time
    async def test_the_model_service_is_asked_about_a_few_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        account = Account(silent=True)
        background = BackgroundResponses(Pool(account))
        for _ in range(20):
            background.abandon(ID)
        await later(1)
        assert len(account.asked) == 8
        await later(1000)
        assert len(account.asked) == 40, "each gives up after a while"

    @virtual_time
    async def test_tokens_are_counted_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(background_module, "_REMEMBERED", 2)
        background = BackgroundResponses(Pool(Account()))

        def count(response_id: str, prompt: int, output: int, *, final: bool = False) -> tuple[int, int] | None:
            added = background.count(response_id, Usage(prompt, output, 1, 2), final=final)
            return None if added is None else (added.input_tokens, added.output_tokens)

        assert count("a", 10, 20) == (10, 20)
        assert count("a", 0, 20) is None, "another reader of the same part"
        assert count("a", 0, 50) == (0, 30)
        assert count("a", 12, 70, final=True) == (2, 20)
        assert count("a", 12, 70, final=True) is None
        assert count("b", 5, 6, final=True) == (5, 6)
        assert count("c", 1, 90) == (1, 90)
        assert count("c", 1, 80, final=True) == (0, 0), "never less than nothing"
        assert count("a", 1, 1) == (1, 1), "the oldest is forgotten"


class TestFailures:
    @virtual_time
    async def test_what_is_gone_is_no_failure(self, lines: list[Any]) -> None:
        account = Account(refusals={"cancel": NOT_FOUND, "delete": NOT_FOUND})
        background, reader = begin(account)
        background.detach(ID, reader, "lost")
        await later(GRACE)
        assert account.requests == ["cancel", "delete"]
        assert (lines, background.left_behind) == ([], 0)

    @virtual_time
    async def test_what_has_ended_can_not_be_stopped(self, lines: list[Any]) -> None:
        account = Account(refusals={"cancel": ENDED})
        background, reader = begin(account)
        background.detach(ID, reader, "lost")
        await later(GRACE)
        assert account.requests == ["cancel", "delete"]
        assert lines == []

    @virtual_time
    async def test_they_are_logged_and_counted(self, lines: list[Any]) -> None:
        account = Account(refusals={"cancel": BROKEN, "delete": BROKEN})
        background, reader = begin(account)
        background.detach(ID, reader, "lost")
        await later(GRACE)
        assert lines == [("not_stopped", ID, "500"), ("left_behind", ID, "500")]
        assert background.members()["left_behind"] == 1

    @virtual_time
    async def test_silence(self, lines: list[Any]) -> None:
        background, reader = begin(Account(silent=True))
        background.detach(ID, reader, "ended")
        await later(60 + 14.9)
        assert lines == []
        await later(0.1)
        assert lines == [("left_behind", ID, "no answer within 15 s")]

    @virtual_time
    async def test_an_answer_that_breaks_off(self, lines: list[Any]) -> None:
        account = Account(breaks=True)
        background, reader = begin(account)
        background.detach(ID, reader, "ended")
        await later(60)
        assert lines == [("left_behind", ID, "the model service's answer broke off (ConnectionResetError)")]
        assert account.answers[0].state == "closed"


class TestFind:
    @virtual_time
    async def test_ones_own(self) -> None:
        account = Account()
        background = BackgroundResponses(Pool(account))
        assert await background.find(ID, "me", "request") == StoredAnswer(ID, "in_progress", reasoning=False)
        account.document |= {"status": "completed", "reasoning": {"summary": "auto"}}
        found = await background.find(ID, "me", "request")
        assert found == StoredAnswer(ID, "completed", reasoning=True)
        assert not found.running
        assert StoredAnswer(ID, "queued", reasoning=False).running

    @pytest.mark.parametrize(
        "metadata", [None, {}, {"relay_caller": "another"}, {"relay_caller": 1}, {"relay_caller": ""}, {"other": "me"}]
    )
    @virtual_time
    async def test_anothers_is_not_found(self, metadata: Any) -> None:
        background = BackgroundResponses(Pool(Account(document={"status": "completed", "metadata": metadata})))
        assert await background.find(ID, "me", "request") is RESPONSE_NOT_FOUND

    @virtual_time
    async def test_none_is_not_found(self) -> None:
        background = BackgroundResponses(Pool(Account(refusals={"get": NOT_FOUND})))
        assert await background.find(ID, "me", "request") is RESPONSE_NOT_FOUND

    @virtual_time
    async def test_on_any_account(self) -> None:
        one, other = Account("a", refusals={"get": NOT_FOUND}), Account("b")
        background = BackgroundResponses(Pool(one, other))
        for _ in range(2):
            assert isinstance(await background.find(ID, "me", "request"), StoredAnswer)
        assert (len(one.asked), len(other.asked)) == (1, 2), "where it was is remembered"

    @pytest.mark.parametrize(
        ("account", "problem"),
        [
            (lambda: Account(refusals={"get": BROKEN}), UPSTREAM_ERROR),
            (lambda: Account(refusals={"get": Refusal(RATE_LIMITED, "429")}), RATE_LIMITED),
            (lambda: Account(refusals={"get": ENDED}), INVALID_REQUEST),
            (lambda: Account(silent=True), UPSTREAM_TIMEOUT),
            (lambda: Account(breaks=True), UPSTREAM_ERROR),
            (lambda: Account(document=cast(Any, "no object")), UPSTREAM_ERROR),
        ],
    )
    @virtual_time
    async def test_what_goes_wrong_is_told(self, account: Callable[[], Account], problem: Problem) -> None:
        background = BackgroundResponses(Pool(account()))
        assert await background.find(ID, "me", "request") == problem
        assert all(it.load == 0 for it in cast(Pool, background.pool).backends)

    @virtual_time
    async def test_a_document_that_is_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(background_module, "_MAX_DOCUMENT", 20)
        account = Account()
        assert await BackgroundResponses(Pool(account)).find(ID, "me", "request") == UPSTREAM_ERROR
        assert account.answers[0].state == "closed"


class TestIsAnothers:
    @pytest.mark.parametrize(
        ("metadata", "anothers"), [(None, False), ({}, False), (MINE, False), ({"relay_caller": "another"}, True)]
    )
    @virtual_time
    async def test_only_what_has_an_owner_is_anothers(self, metadata: Any, anothers: bool) -> None:
        background = BackgroundResponses(Pool(Account(document={"status": "completed", "metadata": metadata})))
        assert await background.is_anothers(ID, "me", "request") is anothers

    @virtual_time
    async def test_what_is_not_found_is_left_to_the_request(self) -> None:
        background = BackgroundResponses(Pool(Account(refusals={"get": NOT_FOUND})))
        assert not await background.is_anothers(ID, "me", "request")


class TestStop:
    @virtual_time
    async def test_its_streams_end_first(self) -> None:
        account = Account()
        background, one = begin(account)
        other = Stream()
        background.attach(ID, other)
        assert await background.stop(ID, "request") is None
        assert one.stopped
        assert other.stopped
        assert account.requests == ["cancel", "delete"]
        for reader in (one, other):
            background.detach(ID, reader, None)
        await later(10 * GRACE)
        assert account.requests == ["cancel", "delete"]

    @virtual_time
    async def test_it_no_longer_waits(self) -> None:
        account = Account()
        background, reader = begin(account, resumable_keep=True)
        background.detach(ID, reader, "lost")
        assert await background.stop(ID, "request") is None
        await later(10 * GRACE)
        assert account.requests == ["cancel", "delete"], "what the caller deletes is not kept"

    @virtual_time
    async def test_it_is_told_that_it_was_not_deleted(self, lines: list[Any]) -> None:
        account = Account(refusals={"cancel": BROKEN, "delete": BROKEN})
        background = BackgroundResponses(Pool(account))
        assert await background.stop(ID, "request") == UPSTREAM_ERROR
        assert lines == [("not_stopped", ID, "500")]


def test_the_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.log_left_behind("r", ID, "why")
    telemetry.log_not_stopped("r", ID, "why")
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    common = {"gen_ai.response.id": ID, "relay.reason": "why", "relay.request_id": "r"}
    assert written == [{"event": "left_behind"} | common, {"event": "not_stopped"} | common]
