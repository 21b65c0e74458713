"""The settings about callers: what they may name, and that every wrong one closes the door."""

import hashlib
import json
from typing import Any

import pytest

from relay.callers.settings import CallerSettings, Limits, LimitsStore
from relay.settings import Identity, SettingsError, auth_level

KEY = "relay_" + "k" * 43
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()
PRINCIPAL = "0000000A-0000-0000-0000-00000000000b"
SIGN_IN = {"ENTRA_SIGN_IN": "true", "HTTP_AUTH_LEVEL": "anonymous"}


def callers(**entries: Any) -> dict[str, str]:
    return {"CALLERS": json.dumps({name.replace("_", "-"): entry for name, entry in entries.items()})}


def entry(*digests: str, **members: Any) -> dict[str, Any]:
    return {"key_digests": list(digests or [DIGEST]), **members}


def read(environ: dict[str, str]) -> CallerSettings:
    settings = CallerSettings.read(environ)
    assert settings is not None
    return settings


def errors(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        CallerSettings.read(environ)
    return [f"{error.setting}: {error.message}" for error in caught.value.errors]


@pytest.mark.parametrize("environ", [{}, {"CALLERS": ""}, {"CALLERS": " \n"}, {"ENTRA_SIGN_IN": "false"}])
def test_without_callers_there_are_no_settings(environ: dict[str, str]) -> None:
    assert CallerSettings.read(environ) is None


def test_a_caller_with_two_keys() -> None:
    settings = read(callers(team_a=entry(DIGEST, OTHER.upper(), models=["gpt"], limits={"streams": 2})))
    first, second = (settings.by_digest[bytes.fromhex(digest)] for digest in (DIGEST, OTHER))
    assert (first[0].hex(), second[0].hex()) == (DIGEST, OTHER)
    assert first[1] is second[1]
    assert (first[1].name, first[1].models, first[1].limits) == ("team-a", frozenset(["gpt"]), Limits(streams=2))


def test_a_callers_own_limits_replace_the_default_ones_one_by_one() -> None:
    environ = callers(team_a=entry(limits={"streams": 2}), team_b=entry(OTHER))
    settings = read(environ | {"CALLER_LIMITS": '{"streams": 9, "tokens_per_day": 1000}'})
    assert settings.by_digest[bytes.fromhex(DIGEST)][1].limits == Limits(streams=2, tokens_per_day=1000)
    assert settings.by_digest[bytes.fromhex(OTHER)][1].limits == Limits(streams=9, tokens_per_day=1000)
    assert settings.limits == Limits(streams=9, tokens_per_day=1000)
    assert bool(settings.limits)
    assert not Limits()


def test_ten_thousand_callers_in_several_settings() -> None:
    """One environment variable of Linux has 128 KiB at most."""
    environ = {}
    for part in range(100):
        entries = {
            f"team-{part}-{number}": entry(hashlib.sha256(b"%d/%d" % (part, number)).hexdigest())
            for number in range(100)
        }
        environ[f"CALLERS_{part}" if part else "CALLERS"] = json.dumps(entries)
    assert all(len(value) < 128 * 1024 for value in environ.values())
    settings = read(environ)
    assert len(settings.by_digest) == 10_000
    assert settings.by_digest[hashlib.sha256(b"99/99").digest()][1].name == "team-99-99"
    twice = environ | {"CALLERS_100": json.dumps({"team-0-0": entry(OTHER)})}
    assert errors(twice) == ['CALLERS_100["team-0-0"]: is there twice; give each caller a name of its own.']


def test_callers_by_their_sign_in() -> None:
    settings = read(SIGN_IN | callers(team_a={"principals": [PRINCIPAL]}) | {"CALLER_LIMITS": '{"streams": 1}'})
    assert settings.by_principal[PRINCIPAL.lower()].name == "team-a"
    assert settings.entra_sign_in
    assert settings.limits == Limits(streams=1)
    assert read(SIGN_IN).by_principal == {}


MALFORMED: list[Any] = [
    ("nonsense", "CALLERS: must be a JSON object such as"),
    ("[]", "CALLERS: must be a JSON object such as"),
    ("null", "CALLERS: must be a JSON object such as"),
    ('"team-a"', "CALLERS: must be a JSON object such as"),
    ("{}", "CALLERS: must name at least one caller"),
    ("[" * 100_000, "CALLERS: must be a JSON object such as"),
    (f'{{"a": {{"key_digests": ["{DIGEST}"]}}, "a": {{"key_digests": []}}}}', "(a member is there twice)"),
    (f'{{"a": {{"key_digests": ["{DIGEST}"], "key_digests": []}}}}', "(a member is there twice)"),
    ({"a": {}}, 'CALLERS["a"]: must have key_digests'),
    ({"a": {"key_digests": []}}, 'CALLERS["a"]: must have key_digests'),
    ({"a": {"key_digests": None}}, "CALLERS: must be a JSON object such as"),
    ({"a": {"key_digests": DIGEST}}, "CALLERS: must be a JSON object such as"),
    ({"a": {"key_digests": [DIGEST[:-1]]}}, 'CALLERS["a"].key_digests[0]: must be the SHA-256 of a key'),
    ({"a": {"key_digests": [DIGEST, KEY]}}, 'CALLERS["a"].key_digests[1]: must be the SHA-256 of a key'),
    ({"a": entry(hashlib.sha256(b"").hexdigest())}, 'CALLERS["a"].key_digests[0]: is the digest of nothing'),
    ({"a": entry(), "b": entry()}, 'CALLERS["b"].key_digests[0]: is another caller\'s as well'),
    ({"a": entry(*[DIGEST] * 101)}, 'CALLERS["a"].key_digests: must have 100 elements at most.'),
    ({"a": entry(key="x")}, "(a member that is not known)"),
    ({"a": entry(models=[])}, 'CALLERS["a"].models: must name at least one model'),
    ({"a": entry(models=["x", " "])}, 'CALLERS["a"].models: must name at least one model'),
    ({"a": entry(models=["x"] * 101)}, 'CALLERS["a"].models: must have 100 elements at most.'),
    ({"a": entry(limits={"streams": 0})}, 'CALLERS["a"].limits.streams: must be a whole number from 1'),
    ({"a": entry(limits={"streams": 10**12 + 1})}, 'CALLERS["a"].limits.streams: must be a whole number from 1'),
    ({"a": entry(limits={"streams": "1"})}, "Expected `int | null`, got `str`"),
    ({"a": entry(limits={"streams": True})}, "Expected `int | null`, got `bool`"),
    ({"a": entry(limits={"tokens_per_hour": 1})}, "(a member that is not known)"),
    ({"a": entry(principals=[PRINCIPAL])}, 'CALLERS["a"].principals: remove it'),
    ({"": entry()}, "CALLERS[0]: must have a name"),
    ({"a b": entry()}, "CALLERS[0]: must have a name"),
    ({"a": entry(), "n" * 32: entry(OTHER)}, "CALLERS[1]: must have a name"),
    ({KEY: entry()}, "CALLERS[0]: must have a name"),
]


@pytest.mark.parametrize(("document", "message"), MALFORMED)
def test_a_malformed_setting(document: Any, message: str) -> None:
    environ = {"CALLERS": document if isinstance(document, str) else json.dumps(document)}
    found = errors(environ)
    assert message in found[0]
    assert KEY not in str(found)
    assert auth_level(environ) == "ANONYMOUS", "the app itself answers, and admits no one"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ENTRA_SIGN_IN": "yes"}, "ENTRA_SIGN_IN: must be true or false."),
        ({"ENTRA_SIGN_IN": "true"}, "ENTRA_SIGN_IN: set HTTP_AUTH_LEVEL to anonymous as well"),
        (SIGN_IN | {"WEBSITE_AUTH_ENABLED": "False"}, "ENTRA_SIGN_IN: remove it, or switch on"),
        (SIGN_IN | callers(a=entry()), 'CALLERS["a"].key_digests: remove it'),
        (SIGN_IN | callers(a={}), 'CALLERS["a"]: must have principals'),
        (SIGN_IN | callers(a={"principals": ["me"]}), 'CALLERS["a"].principals[0]: must be the object id'),
        (
            SIGN_IN | callers(a={"principals": [PRINCIPAL]}, b={"principals": [PRINCIPAL.upper()]}),
            'CALLERS["b"].principals[0]: is another caller\'s as well',
        ),
        ({"CALLER_LIMITS": '{"streams": 1}'}, "CALLER_LIMITS: remove it, or name callers"),
        ({"LIMITS_STORE": "https://abc.table.core.windows.net/limits"}, "LIMITS_STORE: remove it, or name callers"),
        (callers(a=entry()) | {"CALLER_LIMITS": "{"}, "CALLER_LIMITS: must be a JSON object with requests_per_minute"),
        (callers(a=entry()) | {"CALLER_LIMITS": '{"x": 1}'}, "(a member that is not known)"),
        (callers(a=entry()) | {"CALLER_LIMITS": '{"streams": -1}'}, "CALLER_LIMITS.streams: must be a whole number"),
    ],
)
def test_other_errors(environ: dict[str, str], message: str) -> None:
    assert message in errors(environ)[0]


@pytest.mark.parametrize(
    ("address", "store"),
    [
        ("https://account1.table.core.windows.net/limits", ("https://account1.table.core.windows.net", "limits")),
        ("https://abc.table.core.usgovcloudapi.net/l1m", ("https://abc.table.core.usgovcloudapi.net", "l1m")),
        ("https://abc.table.core.chinacloudapi.cn/abc", ("https://abc.table.core.chinacloudapi.cn", "abc")),
    ],
)
def test_the_store_of_limits(address: str, store: tuple[str, str]) -> None:
    environ = callers(a=entry()) | {"LIMITS_STORE": f" {address} "}
    identity = Identity("developer", "https://storage.azure.com/.default")
    assert read(environ).limits_store == LimitsStore(*store, identity)
    managed = environ | {"IDENTITY_ENDPOINT": "http://127.0.0.1/msi", "AZURE_CLIENT_ID": "an-id"}
    identity = Identity("managed", "https://storage.azure.com/.default", "an-id")
    assert read(managed).limits_store == LimitsStore(*store, identity)


def test_a_store_for_development() -> None:
    environ = callers(a=entry()) | {"LIMITS_STORE": "http://127.0.0.1:10002/devstoreaccount1/limits"}
    assert read(environ).limits_store == LimitsStore("http://127.0.0.1:10002/devstoreaccount1", "limits")
    assert read(callers(a=entry())).limits_store is None


@pytest.mark.parametrize(
    "address",
    [
        "limits",
        "http://account1.table.core.windows.net/limits",
        "https://account1.table.core.windows.net/",
        "https://account1.table.core.windows.net/limits?sig=SECRET",
        "https://account1.table.core.windows.net.example.com/limits",
        "https://account1.blob.core.windows.net/limits",
        "https://account1.table.core.windows.net/1imits",
        "http://10.0.0.1:10002/devstoreaccount1/limits",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=SECRET",
    ],
)
def test_no_other_address_is_sent_the_apps_token(address: str) -> None:
    (error,) = errors(callers(a=entry()) | {"LIMITS_STORE": address})
    assert error == (
        "LIMITS_STORE: must be a table's address, without a key: https://ACCOUNT.table.core.windows.net/TABLE."
    )


def test_all_errors_at_once_but_not_thousands() -> None:
    assert len(errors(callers(**{f"n{number}": {} for number in range(3)}))) == 3
    assert len(errors(callers(**{f"n{number}": {} for number in range(1000)}))) == 20


def test_the_longest_name() -> None:
    assert read(callers(**{"n" * 31: entry()})).by_digest[bytes.fromhex(DIGEST)][1].name == "n" * 31


@pytest.mark.parametrize(
    ("environ", "level"),
    [
        ({}, "FUNCTION"),
        ({"CALLERS": " "}, "FUNCTION"),
        ({"CALLERS_X": "x"}, "FUNCTION"),
        ({"callers": "x"}, "FUNCTION"),
        ({"CALLERS": "x"}, "ANONYMOUS"),
        ({"CALLERS_2": "x"}, "ANONYMOUS"),
        ({"HTTP_AUTH_LEVEL": "anonymous"}, "ANONYMOUS"),
        ({"CALLERS": "x", "HTTP_AUTH_LEVEL": "function"}, "ANONYMOUS"),
    ],
)
def test_the_functions_are_anonymous_exactly_where_the_app_admits(environ: dict[str, str], level: str) -> None:
    assert auth_level(environ) == level
