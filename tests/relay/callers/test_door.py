"""Who is admitted: keys in every place where clients put them, attacks on them, and the platform's sign-in."""

import base64
import hashlib
import json
import logging
from typing import Any

import pytest

from relay import telemetry
from relay.callers import door as door_module
from relay.callers.door import Door, Identity
from relay.callers.settings import MAX_KEY_LENGTH, MIN_KEY_LENGTH
from relay.problems import INVALID_API_KEY, MODEL_NOT_ALLOWED, Problem
from relay.upstream.request import Accounts

KEY = "relay_" + "k" * 43
SECOND = "relay_" + "s" * 43
OTHER = "relay_" + "o" * 43
APPLICATION = "00000000-0000-0000-0000-00000000000a"
USER = "00000000-0000-0000-0000-00000000000b"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("latin-1")).hexdigest()


CALLERS = {
    "team-a": {"key_digests": [digest(KEY), digest(SECOND)], "models": ["large", "small"]},
    "team-b": {"key_digests": [digest(OTHER)]},
}


def open_door(callers: Any = CALLERS, **environ: str) -> Door:
    door = Door.from_environment({"CALLERS": json.dumps(callers), **environ})
    assert door is not None
    return door


def admit(door: Door, *headers: tuple[str, str], query: str = "") -> Identity | Problem:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return door.admit({"type": "http", "headers": raw, "query_string": query.encode("latin-1")})


def name(admitted: Identity | Problem) -> str:
    assert isinstance(admitted, Identity), admitted
    return admitted.caller.name


def refused(admitted: Identity | Problem) -> str:
    assert isinstance(admitted, Problem)
    assert admitted.code == INVALID_API_KEY.code
    assert admitted.status == 401
    return admitted.detail


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"bearer   {KEY} ")],
        [("Authorization", f"BEARER {SECOND}")],
        [("api-key", KEY)],
        [("x-functions-key", f" {SECOND} ")],
        [("api-key", KEY), ("x-functions-key", KEY), ("Authorization", f"Bearer {KEY}")],
        [("api-key", KEY), ("Authorization", "Bearer ")],
        [("api-key", ""), ("x-functions-key", KEY), ("api-key", KEY)],
        [("accept", "*/*"), ("api-key", KEY), ("x-ms-client-principal-id", "someone")],
    ],
)
def test_a_key_in_each_place(headers: list[tuple[str, str]]) -> None:
    assert name(admit(open_door(), *headers)) == "team-a"


def test_the_id_tells_two_keys_of_a_caller_apart_and_is_no_key() -> None:
    first, second = (admit(open_door(), ("api-key", key)) for key in (KEY, SECOND))
    assert isinstance(first, Identity)
    assert isinstance(second, Identity)
    assert (first.id, second.id) == (f"key:{digest(KEY)[:8]}", f"key:{digest(SECOND)[:8]}")
    assert first.named


@pytest.mark.parametrize(
    "headers",
    [
        [("api-key", KEY + "x")],
        [("api-key", KEY[:-1] + "x")],
        [("api-key", KEY.upper())],
        [("api-key", digest(KEY))],
        [("api-key", "team-a")],
        [("api-key", "x" * (MAX_KEY_LENGTH + 1))],
        [("api-key", "x" * 100_000)],
        [("api-key", "\xe4" * 40)],
        [("api-key", f"Bearer {KEY}")],
        [("Authorization", f"Bearer Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}, Bearer {KEY}")],
    ],
)
def test_every_wrong_key_is_refused_alike(headers: list[tuple[str, str]]) -> None:
    """Nothing tells whether a caller of some name exists, or how near a key was."""
    assert admit(open_door(), *headers) == admit(open_door(), ("api-key", "w" * 40))


@pytest.mark.parametrize("headers", [[], [("api-key", "")], [("Authorization", "Bearer")], [("cookie", KEY)]])
def test_a_missing_key_is_named_as_that(headers: list[tuple[str, str]]) -> None:
    assert "presents no key" in refused(admit(open_door(), *headers))


@pytest.mark.parametrize("value", [f"Basic {KEY}", KEY, f"ApiKey {KEY}", f"Bearer:{KEY}", f"Bearer\t{KEY}"])
def test_another_scheme_is_refused(value: str) -> None:
    assert "must be Bearer" in refused(admit(open_door(), ("Authorization", value)))


@pytest.mark.parametrize(
    "headers",
    [
        [("api-key", KEY), ("x-functions-key", OTHER)],
        [("api-key", KEY), ("api-key", OTHER)],
        [("api-key", KEY), ("Authorization", f"Bearer {SECOND}")],
        [("Authorization", "Bearer none"), ("x-functions-key", KEY)],
        [("api-key", OTHER), ("x-functions-key", "wrong")],
    ],
)
def test_keys_that_differ_are_refused(headers: list[tuple[str, str]]) -> None:
    assert "several keys that differ" in refused(admit(open_door(), *headers))


@pytest.mark.parametrize(
    "query",
    [f"code={KEY}", f"a=b&CODE={KEY}", f"%63ode={KEY}", f"api-key={KEY}", f"api_key={KEY}", "code", f"key={KEY}"],
)
def test_a_key_in_the_address_is_refused_also_beside_a_valid_one(query: str) -> None:
    assert "in the address" in refused(admit(open_door(), query=query))
    assert "in the address" in refused(admit(open_door(), ("api-key", KEY), query=query))


@pytest.mark.parametrize("query", ["api-version=2024-10-21", "clientId=x", "include[]=a&stream=true", "codes=1", "&&="])
def test_other_parameters_are_none_of_the_doors(query: str) -> None:
    assert name(admit(open_door(), ("api-key", KEY), query=query)) == "team-a"


def test_a_short_key_is_refused_even_if_its_digest_is_configured() -> None:
    """A digest does not tell how long its key is; the key that is presented does."""
    short, long_enough = "k" * (MIN_KEY_LENGTH - 1), "k" * MIN_KEY_LENGTH
    longest, too_long = "k" * MAX_KEY_LENGTH, "k" * (MAX_KEY_LENGTH + 1)
    door = open_door({"a": {"key_digests": [digest(key) for key in (short, long_enough, longest, too_long)]}})
    assert name(admit(door, ("api-key", long_enough))) == "a"
    assert name(admit(door, ("api-key", longest))) == "a"
    assert "wrong" in refused(admit(door, ("api-key", short)))
    assert "wrong" in refused(admit(door, ("api-key", too_long)))


def test_what_decides_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    door = open_door()
    monkeypatch.setattr(door_module.hmac, "compare_digest", compare)
    assert "wrong" in refused(admit(door, ("api-key", KEY)))
    assert compared == [(bytes.fromhex(digest(KEY)), bytes.fromhex(digest(KEY)))]


def test_a_wrong_setting_closes_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    callers = {"team-secret": {"key_digests": [digest(KEY), "short"]}}
    door = open_door(callers)
    log = capsys.readouterr().out
    assert 'CALLERS[\\"team-secret\\"].key_digests[1]' in log
    for headers in ([("api-key", KEY)], [], [("x-functions-key", "x")]):
        problem = admit(door, *headers)
        assert isinstance(problem, Problem)
        assert (problem.status, problem.code) == (503, "not_configured")
        assert "team-secret" not in str(problem.members("request-1")), "anyone may ask"


def test_without_callers_there_is_no_door() -> None:
    assert Door.from_environment({}) is None


class TestModels:
    MODELS = ("small", "large", "other")

    def identity(self, key: str = KEY) -> Identity:
        admitted = admit(open_door(), ("api-key", key))
        assert isinstance(admitted, Identity)
        return admitted

    def test_a_caller_with_models(self) -> None:
        identity = self.identity()
        assert identity.models(self.MODELS) == ("small", "large")
        assert identity.model("large", self.MODELS) == "large"
        assert identity.model("other", self.MODELS) is MODEL_NOT_ALLOWED
        assert identity.model("unknown", self.MODELS) == "unknown", "it is not found for any caller"
        assert identity.model(None, self.MODELS) == "small"
        assert identity.model(None, ("other", "large")) == "large", "the first of its own is its default"
        assert identity.model(None, ("other",)) is MODEL_NOT_ALLOWED
        assert identity.model(Accounts.EVERY, ("other",)) is Accounts.EVERY

    def test_a_caller_of_all_models(self) -> None:
        identity = self.identity(OTHER)
        assert identity.models(self.MODELS) == self.MODELS
        assert identity.model(None, self.MODELS) is None
        assert identity.model("other", self.MODELS) == "other"


def claims(*pairs: tuple[str, str]) -> str:
    document = {"auth_typ": "aad", "claims": [{"typ": kind, "val": value} for kind, value in pairs]}
    return base64.b64encode(json.dumps(document).encode()).decode()


SIGN_IN = {"ENTRA_SIGN_IN": "true", "HTTP_AUTH_LEVEL": "anonymous", "CALLER_LIMITS": '{"streams": 3}'}
NO_CLAIMS = [
    "",
    "%%%",
    "AAAA",
    base64.b64encode(b"[]").decode(),
    base64.b64encode(b'{"claims":1}').decode(),
    "A" * 10**5,
]


class TestSignIn:
    def door(self) -> Door:
        return open_door({"batch": {"principals": [APPLICATION], "limits": {"streams": 9}}}, **SIGN_IN)

    @pytest.mark.parametrize("claim", ["appid", "azp"])
    def test_the_application_of_the_token(self, claim: str) -> None:
        headers = [("X-MS-CLIENT-PRINCIPAL-ID", USER), ("X-MS-CLIENT-PRINCIPAL", claims((claim, APPLICATION.upper())))]
        admitted = admit(self.door(), *headers)
        assert name(admitted) == "batch"
        assert isinstance(admitted, Identity)
        assert (admitted.id, admitted.named, admitted.caller.limits.streams) == (USER, True, 9)

    def test_an_object_id_comes_first(self) -> None:
        door = open_door({"u": {"principals": [USER]}, "a": {"principals": [APPLICATION]}}, **SIGN_IN)
        encoded = claims(("appid", APPLICATION))
        headers = [("X-MS-CLIENT-PRINCIPAL-ID", USER.upper()), ("X-MS-CLIENT-PRINCIPAL", encoded)]
        assert name(admit(door, *headers)) == "u"

    def test_without_a_name_the_object_id_is_the_name(self) -> None:
        admitted = admit(
            self.door(), ("X-MS-CLIENT-PRINCIPAL-ID", USER), ("X-MS-CLIENT-PRINCIPAL-NAME", "me@example.com")
        )
        assert name(admitted) == USER
        assert isinstance(admitted, Identity)
        assert (admitted.id, admitted.named, admitted.caller.limits.streams) == (USER, False, 3)

    @pytest.mark.parametrize("encoded", NO_CLAIMS)
    def test_claims_that_are_none_name_no_application(self, encoded: str) -> None:
        headers = [("X-MS-CLIENT-PRINCIPAL-ID", USER), ("X-MS-CLIENT-PRINCIPAL", encoded)]
        assert name(admit(self.door(), *headers)) == USER

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("Authorization", f"Bearer {KEY}")],
            [("X-MS-CLIENT-PRINCIPAL", claims(("appid", APPLICATION)))],
            [("X-MS-CLIENT-PRINCIPAL-ID", "")],
            [("X-MS-CLIENT-PRINCIPAL-ID", "x" * 129)],
            [("X-MS-CLIENT-PRINCIPAL-ID", "\xe4")],
            [("X-MS-CLIENT-PRINCIPAL-ID", USER), ("X-MS-CLIENT-PRINCIPAL-ID", APPLICATION)],
            [("X-MS-CLIENT-PRINCIPAL-ID", USER), *[("X-MS-CLIENT-PRINCIPAL", claims())] * 2],
        ],
    )
    def test_no_one_signed_in(self, headers: list[tuple[str, str]]) -> None:
        assert "who signed in" in refused(admit(self.door(), *headers))

    def test_the_headers_are_of_no_effect_without_the_setting(self) -> None:
        """Then nothing in front of the app removes them from what callers send."""
        headers = [("X-MS-CLIENT-PRINCIPAL-ID", APPLICATION), ("X-MS-CLIENT-PRINCIPAL", claims(("appid", APPLICATION)))]
        assert "presents no key" in refused(admit(open_door(), *headers))
        assert name(admit(open_door(), *headers, ("api-key", OTHER))) == "team-b"


def test_refused_keys_are_one_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anyone can cause them, and each line is billed."""
    now = 0.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    monkeypatch.setattr(telemetry, "_not_admitted_logged", -60.0)
    monkeypatch.setattr(telemetry, "_not_admitted", 0)
    lines = []
    for now in (0.0, 1.0, 59.9, 60.0, 119.9, 120.0):
        telemetry.log_not_admitted(f"i-{now:g}")
        lines.append(capsys.readouterr().out)
    event = '{"event":"not_admitted","relay.requests":%d,"relay.invocation_id":"i-%s"}\n'
    assert lines == [event % (1, "0"), "", "", event % (3, "60"), "", event % (2, "120")]


def test_a_caller_over_its_limit_is_one_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    monkeypatch.setattr(telemetry, "_over_limit", {})
    monkeypatch.setattr(telemetry, "_MOST_OVER_LIMIT", 3)

    def log(caller: str) -> list[int]:
        telemetry.log_over_limit(caller, "an-invocation")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected = {"event": "over_limit", "relay.caller": caller, "relay.invocation_id": "an-invocation"}
        assert all(line == expected | {"relay.requests": line["relay.requests"]} for line in lines)
        return [line["relay.requests"] for line in lines]

    assert log("a") == [1]
    assert log("a") == []
    assert log("b") == [1], "each caller has a line of its own"
    now = 59.9
    assert log("a") == []
    now = 60.0
    assert log("a") == [3]
    now = 120.0
    assert log("a") == [1]
    for number in range(10):
        log(f"n{number}")
    assert len(telemetry._over_limit) <= 3


def test_nothing_is_logged_of_a_request(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        admit(open_door(), ("api-key", KEY))
        admit(open_door(), ("api-key", "w" * 40), query=f"code={KEY}")
    assert (caplog.text, capsys.readouterr().out) == ("", "")
