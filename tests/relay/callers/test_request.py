"""One HTTP request of a caller: the request id, the limits of its body, and the responses that are not a stream."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from relay import telemetry
from relay.callers import request as request_module
from relay.callers.door import Door
from relay.callers.limits import Limiter
from relay.callers.request import CallerRequest
from relay.problems import (
    CATALOGUE,
    INVALID_API_KEY,
    METHOD_NOT_ALLOWED,
    MODEL_NOT_ALLOWED,
    RATE_LIMITED,
    UNSUPPORTED_MEDIA_TYPE,
    FieldError,
    Problem,
)
from relay.telemetry import Record
from relay.usage import Usage
from tests.relay.virtual_time import virtual_time

BODY = b'{"input": "hi"}'
HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
    "x-request-id": "request-0001",
}


def request(*pieces: bytes, headers: Iterable[tuple[str, str]] = (), stalls: bool = False) -> Request:
    """A request whose body arrives in these pieces; `stalls`: and whose end never arrives."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not stalls:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    return received(messages, headers)


def received(messages: list[Message], headers: Iterable[tuple[str, str]] = ()) -> Request:
    """A request whose connection gives these messages, and then nothing more."""

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/stream", "headers": raw}, receive)


def unread(*headers: tuple[str, str]) -> Request:
    """A request whose body must not be read."""

    async def receive() -> Message:
        raise AssertionError("the body was read")

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/stream", "headers": raw}, receive)


def identified(*, openai: bool = False) -> CallerRequest:
    headers = [("x-request-id", "request-0001"), ("x-ms-invocation-id", "an-invocation")]
    return CallerRequest(request(headers=headers), openai=openai)


class TestRequestId:
    @pytest.mark.parametrize("given", ["a" * 8, "A" + "0" * 127, "0a.b:c_d-e"])
    def test_a_plain_identifier_is_kept(self, given: str) -> None:
        assert CallerRequest(request(headers=[("x-request-id", given)])).request_id == given

    @pytest.mark.parametrize("given", ["", "a" * 7, "a" * 129, "-abcdefgh", "abc defgh", "abcdefgh\n", "\xe4bcdefgh"])
    def test_anything_else_is_replaced(self, given: str) -> None:
        first, second = (CallerRequest(request(headers=[("x-request-id", given)])).request_id for _ in range(2))
        assert uuid.UUID(first).version == uuid.UUID(second).version == 4
        assert first != second

    def test_it_is_generated_where_the_caller_gives_none(self) -> None:
        assert uuid.UUID(CallerRequest(request()).request_id).version == 4

    def test_the_invocation_id_is_the_hosts(self) -> None:
        assert identified().invocation_id == "an-invocation"
        assert CallerRequest(request()).invocation_id == ""


class TestMediaType:
    @pytest.mark.parametrize(
        "content_type",
        [
            "application/json",
            "application/json; charset=utf-8",
            " Application/JSON ;x",
            "application/problem+json",
            "application/vnd.a-b_c.1+JSON",
            "",
            ";",
        ],
    )
    async def test_json_is_accepted(self, content_type: str) -> None:
        assert await CallerRequest(request(BODY, headers=[("content-type", content_type)])).read_body(1000) == BODY

    @pytest.mark.parametrize(
        "content_type",
        ["text/plain", "application/jsonl", "application/x-json", "application/+json", "xapplication/json", "json"],
    )
    async def test_anything_else_is_rejected_unread(self, content_type: str) -> None:
        assert await CallerRequest(unread(("content-type", content_type))).read_body(1000) is UNSUPPORTED_MEDIA_TYPE

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    async def test_a_cross_site_page_must_declare_json(self, site: str) -> None:
        assert await CallerRequest(unread(("sec-fetch-site", site))).read_body(1000) is UNSUPPORTED_MEDIA_TYPE

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("sec-fetch-site", "none")],
            [("sec-fetch-site", "same-origin")],
            [("sec-fetch-site", "cross-site"), ("content-type", "application/json")],  # a preflight has allowed it
        ],
        ids=["not a browser", "typed by a user", "the chat page", "another site, after a preflight"],
    )
    async def test_other_clients_need_not_declare_it(self, headers: list[tuple[str, str]]) -> None:
        assert await CallerRequest(request(BODY[:5], BODY[5:], headers=headers)).read_body(1000) == BODY

    @pytest.mark.parametrize("encoding", ["gzip", "identity, gzip", "br"])
    async def test_a_compressed_body_is_rejected_unread(self, encoding: str) -> None:
        rejected = await CallerRequest(unread(("content-encoding", encoding))).read_body(1000)
        assert rejected == UNSUPPORTED_MEDIA_TYPE.with_detail("Send the body as it is, without Content-Encoding.")

    @pytest.mark.parametrize("encoding", ["identity", " Identity "])
    async def test_identity_is_no_compression(self, encoding: str) -> None:
        assert await CallerRequest(request(BODY, headers=[("content-encoding", encoding)])).read_body(1000) == BODY


class TestBodyLimit:
    DETAIL = "The body may have 15 bytes at most. Shorten the input."

    async def test_a_body_of_exactly_the_limit_is_read(self) -> None:
        assert len(BODY) == 15
        announced = [("content-length", "15")]
        assert await CallerRequest(request(BODY, headers=announced)).read_body(15) == BODY
        assert await CallerRequest(request(BODY[:7], BODY[7:])).read_body(15) == BODY

    async def test_an_announced_length_beyond_the_limit_is_rejected_unread(self) -> None:
        rejected = await CallerRequest(unread(("content-length", "16"))).read_body(15)
        assert isinstance(rejected, Problem)
        assert (rejected.code, rejected.detail) == ("body_too_large", self.DETAIL)

    async def test_a_chunked_body_is_read_no_further_than_the_limit(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in (BODY, b"x", b"never read")
        ]
        rejected = await CallerRequest(received(messages)).read_body(15)
        assert isinstance(rejected, Problem)
        assert (rejected.code, rejected.detail) == ("body_too_large", self.DETAIL)
        assert [message["body"] for message in messages] == [b"never read"]

    @pytest.mark.parametrize("announced", ["x", "-1", "", "1e9", "\xb2\xb3"])
    async def test_an_unreadable_length_is_ignored(self, announced: str) -> None:
        assert await CallerRequest(request(BODY, headers=[("content-length", announced)])).read_body(15) == BODY

    async def test_an_announced_length_that_is_too_small_does_not_matter(self) -> None:
        rejected = await CallerRequest(request(BODY, b"x", headers=[("content-length", "1")])).read_body(15)
        assert isinstance(rejected, Problem)
        assert rejected.code == "body_too_large"

    async def test_an_empty_body_is_empty(self) -> None:
        assert await CallerRequest(request()).read_body(1) == b""

    async def test_a_disconnect_before_the_end_of_the_body(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": BODY, "more_body": True},
            {"type": "http.disconnect"},
        ]
        assert await CallerRequest(received(messages)).read_body(1000) is None


class TestBodyTimeout:
    async def test_a_body_that_does_not_arrive_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(request_module, "_BODY_TIMEOUT", 0.05)
        rejected = await CallerRequest(request(b'{"inp', stalls=True)).read_body(1000)
        assert isinstance(rejected, Problem)
        assert (rejected.status, rejected.code) == (400, "invalid_request")
        assert "did not arrive" in rejected.detail

    @virtual_time
    async def test_it_has_thirty_seconds(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        rejected = await CallerRequest(request(b'{"inp', stalls=True)).read_body(1000)
        assert loop.time() - began == 30
        assert isinstance(rejected, Problem)
        assert rejected.code == "invalid_request"
        assert rejected.detail == "The body did not arrive within 30 s. Send the request again."

    @virtual_time
    async def test_a_body_that_arrives_within_them_is_read(self) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": BODY[:9], "more_body": True},
            {"type": "http.request", "body": BODY[9:], "more_body": False},
        ]

        async def receive() -> Message:
            await asyncio.sleep(14.9)  # virtual
            return messages.pop(0)

        scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}
        assert await CallerRequest(Request(scope, receive)).read_body(1000) == BODY


async def test_wait_for_disconnect_returns_at_the_disconnect_and_not_before() -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "never received"},
    ]
    await CallerRequest(received(messages)).wait_for_disconnect()
    assert messages == [{"type": "never received"}]


class TestResponses:
    def test_headers(self) -> None:
        assert identified().headers("text/event-stream") == {"content-type": "text/event-stream", **HEADERS}

    def test_a_page_of_another_origin_may_read_what_it_needs(self) -> None:
        caller = CallerRequest(request(headers=[("origin", "https://www.example.com")]))
        exposed = caller.headers("text/event-stream")["access-control-expose-headers"].split(", ")
        assert exposed == [
            *("Retry-After", "WWW-Authenticate", "X-Request-Id", "X-Response-Id"),
            *("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens"),
            *("x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"),
            *("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"),
        ]
        assert caller.error_response(RATE_LIMITED).headers["access-control-expose-headers"] == ", ".join(exposed)

    def test_a_response(self) -> None:
        response = identified().response(b"{}")
        assert (response.status_code, response.body) == (200, b"{}")
        assert dict(response.headers) == {"content-type": "application/json", "content-length": "2", **HEADERS}
        other = identified().response(b"text", "text/plain; charset=utf-8", 503)
        assert other.status_code == 503
        assert other.headers["content-type"] == "text/plain; charset=utf-8"

    @pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
    def test_a_problem_document(self, problem: Problem) -> None:
        response = identified().error_response(problem)
        assert response.status_code == problem.status
        assert response.body == problem.document("request-0001")
        assert response.headers["content-type"] == "application/problem+json"
        assert "retry-after" not in response.headers
        assert "allow" not in response.headers

    @pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.code)
    def test_an_openai_error(self, problem: Problem) -> None:
        response = identified(openai=True).error_response(problem)
        assert response.status_code == problem.status
        assert response.body == problem.openai_document("request-0001")
        assert response.headers["content-type"] == "application/json"
        assert "retry-after" not in response.headers
        assert "allow" not in response.headers

    @pytest.mark.parametrize("openai", [False, True])
    @pytest.mark.parametrize("seconds", [0, 7])
    def test_retry_after_is_a_header_too(self, seconds: int, openai: bool) -> None:
        response = identified(openai=openai).error_response(RATE_LIMITED.with_retry_after(seconds))
        assert response.headers["retry-after"] == str(seconds)

    @pytest.mark.parametrize("openai", [False, True])
    def test_so_are_the_methods_that_a_path_takes(self, openai: bool) -> None:
        response = identified(openai=openai).error_response(METHOD_NOT_ALLOWED.with_allow("GET, HEAD"))
        assert response.headers["allow"] == "GET, HEAD"

    def test_a_rejection_is_logged(self, capsys: pytest.CaptureFixture[str]) -> None:
        problem = UNSUPPORTED_MEDIA_TYPE.with_errors(FieldError("a", "b"))
        response = identified().reject(problem)
        assert response.status_code == 415
        assert response.body == problem.document("request-0001")
        assert logged(capsys) == {
            "event": "refused",
            "relay.code": "unsupported_media_type",
            "relay.request_id": "request-0001",
            "relay.invocation_id": "an-invocation",
        }

    def test_an_internal_error_is_logged_by_its_location(self, capsys: pytest.CaptureFixture[str]) -> None:
        try:
            raise ValueError("SECRET")
        except ValueError as error:
            response = identified().internal_error(error)
        assert response.status_code == 500
        assert json.loads(response.body)["code"] == "internal_error"
        members = logged(capsys)
        assert members.pop("relay.reason").startswith("ValueError at test_request.py:")
        assert members == {
            "event": "crash",
            "relay.request_id": "request-0001",
            "relay.invocation_id": "an-invocation",
        }

    def test_a_closed_request_has_a_status_of_its_own(self) -> None:
        response = identified().client_closed_request()
        assert (response.status_code, response.body) == (499, b"")
        assert response.headers["content-type"] == "text/plain"
        assert response.headers["x-request-id"] == "request-0001"


def logged(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().out.splitlines()
    members: dict[str, Any] = json.loads(line)
    return members


KEY = "relay_" + "k" * 43
CALLER_DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def opened(**members: Any) -> Door:
    door = Door.from_environment({"CALLERS": json.dumps({"team-a": {"key_digests": [CALLER_DIGEST], **members}})})
    assert door is not None
    return door


def admitted(**members: Any) -> CallerRequest:
    """A request of a caller with these members in the settings, that was admitted."""
    caller = CallerRequest(request(headers=[("api-key", KEY), ("x-request-id", "request-0001")]))
    assert caller.admit(opened(**members)) is None
    return caller


class TestNamedCallers:
    def test_one_that_is_admitted(self) -> None:
        caller = admitted(models=["b"])
        assert caller.identity is not None
        assert caller.identity.caller.name == "team-a"
        assert caller.allowed_models(("a", "b")) == ("b",)
        assert caller.allowed_model(None, ("a", "b")) == "b"
        assert caller.allowed_model("a", ("a", "b")) is MODEL_NOT_ALLOWED

    def test_one_that_is_not(self) -> None:
        caller = identified()
        problem = caller.admit(opened())
        assert problem is not None
        assert problem.code == INVALID_API_KEY.code
        assert caller.identity is None

    def test_without_a_door_every_model_is_allowed(self) -> None:
        assert identified().allowed_models(("a", "b")) == ("a", "b")
        assert identified().allowed_model(None, ("a", "b")) is None

    @pytest.mark.parametrize("openai", [False, True])
    def test_a_refused_key_names_the_scheme(self, openai: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        logged_ids: list[str] = []
        monkeypatch.setattr(telemetry, "log_not_admitted", logged_ids.append)
        response = identified(openai=openai).reject(INVALID_API_KEY)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert logged_ids == ["an-invocation"]
        assert "www-authenticate" not in identified(openai=openai).error_response(RATE_LIMITED).headers

    def test_the_line_about_a_rejection_names_the_caller(self, capsys: pytest.CaptureFixture[str]) -> None:
        admitted().reject(MODEL_NOT_ALLOWED)
        assert logged(capsys)["relay.caller"] == "team-a"

    async def test_a_reservation_is_settled_by_the_record(self) -> None:
        limiter, caller = Limiter(), admitted(limits={"tokens_per_day": 1000, "streams": 1})
        assert await caller.reserve(limiter, 400, counts_tokens=True) is None
        assert caller.headers("text/plain")["x-ratelimit-remaining-tokens"] == "644"
        assert caller.response(b"{}").headers["x-ratelimit-limit-tokens"] == "1000"
        record = Record("request-0001", "", "gpt", usage=Usage(10, 20))
        caller.settle(record, answering=True)
        assert (record.caller, record.caller_is_named) == ("team-a", True)
        assert record.caller_id == f"key:{CALLER_DIGEST[:8]}"
        assert record.limits_store_away is False
        account = limiter._accounts["team-a"]
        assert account.streams == 0
        assert account.day is not None
        assert account.day.used(0.0) == pytest.approx(30, abs=1)

    async def test_an_estimated_usage_is_settled_as_one(self) -> None:
        limiter, caller = Limiter(), admitted(limits={"tokens_per_day": 1000})
        await caller.reserve(limiter, 400, counts_tokens=True)
        caller.settle(Record("request-0001", "", "gpt", usage=Usage(10, 20), usage_estimated=True), answering=True)
        assert limiter._accounts["team-a"].mean_output == 256, "an estimate teaches nothing"

    async def test_a_request_beyond_a_limit(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        limiter = Limiter()
        caller = admitted(limits={"streams": 1, "requests_per_minute": 5})
        assert await caller.reserve(limiter, 0, counts_tokens=False) is None
        refused = admitted(limits={"streams": 1, "requests_per_minute": 5})
        problem = await refused.reserve(limiter, 0, counts_tokens=False)
        assert problem is not None
        monkeypatch.setattr(telemetry, "_over_limit", {})
        response = refused.reject(problem)
        assert logged(capsys) == {
            "event": "over_limit",
            "relay.caller": "team-a",
            "relay.requests": 1,
            "relay.invocation_id": "",
        }
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert response.headers["x-ratelimit-remaining-requests"] == "4"
        caller.settle(Record("request-0001", "", "gpt"), answering=False)
        assert await refused.reserve(limiter, 0, counts_tokens=False) is None

    async def test_a_fault_before_the_stream_gives_the_reservation_back(self) -> None:
        limiter, caller = Limiter(), admitted(limits={"streams": 1, "tokens_per_minute": 1000})
        await caller.reserve(limiter, 400, counts_tokens=True)
        try:
            raise ValueError
        except ValueError as error:
            caller.internal_error(error)
        account = limiter._accounts["team-a"]
        assert (account.streams, account.token_buckets[0].used(0.0)) == (0, 0)

    async def test_without_limits_or_a_name_nothing_is_reserved(self) -> None:
        limiter = Limiter()
        for caller in (admitted(), identified()):
            assert await caller.reserve(limiter, 400, counts_tokens=True) is None
            assert not [name for name in caller.headers("text/plain") if name.startswith("x-ratelimit")]
        assert limiter._accounts == {}
        record = Record("request-0001", "", "gpt")
        identified().settle(record, answering=True)
        assert (record.caller, record.caller_id) == (None, None)
        admitted().settle(record, answering=True)
        assert record.caller == "team-a"

    async def test_a_store_that_is_away_is_in_the_record(self) -> None:
        class Away:
            counted: list[str] = []  # noqa: RUF012

            async def begin(self, *_: Any) -> float | None:
                return None

            def count_locally(self, name: str, _: Any) -> None:
                self.counted.append(name)

            def end(self, *_: Any) -> None:
                return

        limiter, caller = Limiter(Away()), admitted(limits={"streams": 1})
        await caller.reserve(limiter, 400, counts_tokens=True)
        record = Record("request-0001", "", "gpt")
        caller.settle(record, answering=False)
        assert record.limits_store_away is True
        assert Away.counted == ["team-a"]
