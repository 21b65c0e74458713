"""What an operator reads about a wrong setting: each error names the setting, what it must be, and an example."""

import json
from typing import Any

import pytest

from relay.settings import AZURE_HOSTS, AZURE_TOKEN_SCOPE, Identity, SettingError, Settings, SettingsError, auth_level

AZURE = {"AZURE_OPENAI_ENDPOINT": "https://account.openai.azure.com/", "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini"}
ADDRESS = "for example https://NAME.openai.azure.com/ (or any server's /v1 address)."
NAME = "must be a name without spaces, commas and quotation marks."
LIST = (
    'must be a JSON list of {"endpoint": "https://NAME.openai.azure.com/", "deployment": "gpt-5.4-mini"}, '
    'each with "model", "name", "priority" and "wire" if wanted'
)


def errors(environ: dict[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(SettingsError) as caught:
        Settings.read(environ)
    return [(error.setting, error.message) for error in caught.value.errors]


def listed(*entries: Any, **more: str) -> dict[str, str]:
    return {"AZURE_OPENAI_BACKENDS": json.dumps(entries), **more}


def entry(**members: Any) -> dict[str, Any]:
    return {"endpoint": "https://one.openai.azure.com", "deployment": "d", **members}


@pytest.mark.parametrize(
    ("setting", "attribute", "least", "most", "example"),
    [
        ("COMMIT_WAIT_SECONDS", "commit_wait", "0", "60", "5"),
        ("PING_INTERVAL_SECONDS", "ping_interval", "0.05", "200", "15"),
        ("STREAM_DEADLINE_SECONDS", "stream_deadline", "0.1", "1500", "220"),
        ("UPSTREAM_CONNECT_TIMEOUT_SECONDS", "upstream_connect_timeout", "0.1", "60", "10"),
        ("UPSTREAM_SILENCE_TIMEOUT_SECONDS", "upstream_silence_timeout", "0.1", "3600", "120"),
        ("FAILOVER_AFTER_SECONDS", "failover_after", "0.1", "3600", "10"),
        ("RESUMABLE_GRACE_SECONDS", "resumable_grace", "0", "3600", "900"),
    ],
)
def test_seconds(setting: str, attribute: str, least: str, most: str, example: str) -> None:
    message = f"must be a number of seconds from {least} to {most}, for example {example}."
    for good in (least, most):
        assert getattr(Settings.read(AZURE | {setting: good}), attribute) == float(good)
    for bad in (str(float(least) - 0.01), str(float(most) + 0.01), "soon", "nan"):
        assert errors(AZURE | {setting: bad}) == [(setting, message)]


@pytest.mark.parametrize(
    ("setting", "attribute", "most", "example"),
    [
        ("MAX_BODY_BYTES", "max_body_bytes", 104857600, 1048576),
        ("MAX_OUTPUT_TOKENS", "max_output_tokens", 1000000, 16384),
    ],
)
def test_whole_numbers(setting: str, attribute: str, most: int, example: int) -> None:
    message = f"must be a whole number from 1 to {most}, for example {example}."
    for good in (1, most):
        assert getattr(Settings.read(AZURE | {setting: str(good)}), attribute) == good
    for bad in ("0", str(most + 1), "1.5", "many"):
        assert errors(AZURE | {setting: bad}) == [(setting, message)]


@pytest.mark.parametrize(
    ("setting", "attribute"), [("RESUMABLE_STREAMS", "resumable_streams"), ("RESUMABLE_KEEP", "resumable_keep")]
)
def test_switches(setting: str, attribute: str) -> None:
    for text, on in (("", False), ("0", False), ("1", True)):
        assert getattr(Settings.read(AZURE | {setting: text}), attribute) is on
    for bad in ("2", "true", "on", "-1"):
        assert errors(AZURE | {setting: bad}) == [(setting, "must be 1 (on) or 0 (off).")]


def test_the_defaults() -> None:
    settings = Settings.read(AZURE)
    assert (settings.resumable_streams, settings.resumable_grace, settings.resumable_keep) == (False, 900, False)
    assert settings.failover_after is None
    assert (settings.upstream_connect_timeout, settings.upstream_silence_timeout) == (10, 120)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", f"set it to the address of the model service, {ADDRESS}"),
        ("account.openai.azure.com", f"must be an http or https address, {ADDRESS}"),
        ("ftp://account.openai.azure.com", f"must be an http or https address, {ADDRESS}"),
        ("https://a..b/v1", f"must be an http or https address, {ADDRESS}"),
        ("https://a:0/v1", f"must be an http or https address, {ADDRESS}"),
        ("https://a:1000000/v1", f"must be an http or https address, {ADDRESS}"),
        ("https://a/x y/v1", f"must be an http or https address, {ADDRESS}"),
        ("https://[v1.x]/v1", f"must be an http or https address, {ADDRESS}"),
        ("https:///v1", f"must be an http or https address, {ADDRESS}"),
        ("https://a.openai.azure.com/?x=1", f"must be an address without a query, a fragment or a password, {ADDRESS}"),
        ("https://a.openai.azure.com/#x", f"must be an address without a query, a fragment or a password, {ADDRESS}"),
        ("https://u@a.openai.azure.com/", f"must be an address without a query, a fragment or a password, {ADDRESS}"),
        ("https://:p@a.openai.azure.com/", f"must be an address without a query, a fragment or a password, {ADDRESS}"),
        ("https://a.openai.azure.com/openai/x", f"its path must end in /v1, {ADDRESS}"),
        ("https://a.openai.azure.com/v1X", f"its path must end in /v1, {ADDRESS}"),
        ("https://a.openai.azure.com/v10", f"its path must end in /v1, {ADDRESS}"),
    ],
)
def test_addresses(given: str, message: str) -> None:
    assert errors(AZURE | {"AZURE_OPENAI_ENDPOINT": given}) == [("AZURE_OPENAI_ENDPOINT", message)]
    assert errors(listed(entry(endpoint=given))) == [("AZURE_OPENAI_BACKENDS[0].endpoint", message)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (" , ", "set it to the name of a model deployment, for example gpt-5.4-mini"),
        ("a,b c", "must be names without spaces and quotation marks, for example gpt-5.4-mini"),
        ('a,"b"', "must be names without spaces and quotation marks, for example gpt-5.4-mini"),
        ("a\\b", "must be names without spaces and quotation marks, for example gpt-5.4-mini"),
        ("a\x7f", "must be names without spaces and quotation marks, for example gpt-5.4-mini"),
        ("d" * 257, "must be names without spaces and quotation marks, for example gpt-5.4-mini"),
    ],
)
def test_deployments(given: str, message: str) -> None:
    full = f"{message} (several: separated by commas, the default one first)."
    assert errors(AZURE | {"AZURE_OPENAI_DEPLOYMENTS": given}) == [("AZURE_OPENAI_DEPLOYMENTS", full)]


def test_the_longest_name() -> None:
    assert Settings.read(AZURE | {"AZURE_OPENAI_DEPLOYMENTS": "d" * 256}).models == ("d" * 256,)


class TestBackendList:
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("nonsense", ""),
            ("[", ""),
            ("{}", " (Expected `array`, got `object`)"),
            ('[{"deployment": "d"}]', " (Object missing required field `endpoint` - at `$[0]`)"),
            (json.dumps([entry(weight=1)]), " (Object contains unknown field `weight` - at `$[0]`)"),
            (json.dumps([entry(priority="1")]), " (Expected `int`, got `str` - at `$[0].priority`)"),
        ],
    )
    def test_not_such_a_list(self, text: str, where: str) -> None:
        assert errors({"AZURE_OPENAI_BACKENDS": text}) == [("AZURE_OPENAI_BACKENDS", f"{LIST}{where}.")]

    def test_an_empty_one(self) -> None:
        assert errors(listed()) == [("AZURE_OPENAI_BACKENDS", "must name at least one deployment.")]

    @pytest.mark.parametrize("given", [" ", "a b", "a,b", '"a"', "a\nb"])
    def test_a_deployment_without_a_usable_name(self, given: str) -> None:
        found = errors(listed(entry(), entry(deployment=given, model="m", name="n")))
        assert found == [("AZURE_OPENAI_BACKENDS[1].deployment", NAME)]

    @pytest.mark.parametrize("given", ["a b", "a,b", '"a"'])
    def test_a_model_without_a_usable_name(self, given: str) -> None:
        assert errors(listed(entry(model=given))) == [("AZURE_OPENAI_BACKENDS[0].model", NAME)]

    @pytest.mark.parametrize("given", ["a b", "a,b", '"a"'])
    def test_a_backend_without_a_usable_name(self, given: str) -> None:
        assert errors(listed(entry(name=given))) == [("AZURE_OPENAI_BACKENDS[0].name", NAME)]

    def test_a_name_that_is_there_twice(self) -> None:
        message = "is there twice; give each backend a name of its own."
        found = errors(listed(entry(name="x"), entry(name="y"), entry(name=" x ")))
        assert found == [("AZURE_OPENAI_BACKENDS[2].name", message)]

    @pytest.mark.parametrize("wire", ["", "Chat", "completions", "chat,responses"])
    def test_a_wire_that_there_is_not(self, wire: str) -> None:
        message = (
            "must be the API that the deployment has: chat (chat completions, the default), responses or embeddings."
        )
        assert errors(listed(entry(), entry(wire=wire, name="n"))) == [("AZURE_OPENAI_BACKENDS[1].wire", message)]

    @pytest.mark.parametrize("wires", [("chat", "embeddings"), ("embeddings", "responses")])
    def test_a_model_of_two_kinds(self, wires: tuple[str, str]) -> None:
        message = 'names a model of embeddings and one of text alike: give one another name, or correct its "wire".'
        entries = [entry(wire=wire, name=wire, model="m") for wire in wires]
        assert errors(listed(*entries)) == [("AZURE_OPENAI_BACKENDS[1].model", message)]
        entries[1]["model"] = "another"
        assert Settings.read(listed(*entries))

    @pytest.mark.parametrize("priority", [-1, 1001])
    def test_a_priority_out_of_bounds(self, priority: int) -> None:
        message = "must be from 0 to 1000; the lowest is tried first."
        assert errors(listed(entry(priority=priority))) == [("AZURE_OPENAI_BACKENDS[0].priority", message)]

    @pytest.mark.parametrize("priority", [0, 1000])
    def test_the_bounds_of_a_priority(self, priority: int) -> None:
        assert Settings.read(listed(entry(priority=priority))).backends[0].priority == priority

    def test_every_error_at_once(self) -> None:
        found = errors(
            listed(entry(priority=-1), entry(endpoint="x"), entry(deployment="a b"), COMMIT_WAIT_SECONDS="soon")
        )
        assert [setting for setting, _ in found] == [
            "AZURE_OPENAI_BACKENDS[0].priority",
            "AZURE_OPENAI_BACKENDS[1].endpoint",
            "AZURE_OPENAI_BACKENDS[2].deployment",
            "AZURE_OPENAI_BACKENDS[2].model",
            "AZURE_OPENAI_BACKENDS[2].name",
            "COMMIT_WAIT_SECONDS",
        ]

    @pytest.mark.parametrize("setting", ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENTS"])
    def test_beside_the_settings_of_a_single_account(self, setting: str) -> None:
        message = "remove it: AZURE_OPENAI_BACKENDS is set and names every deployment."
        assert errors(listed(entry(), **{setting: AZURE[setting]})) == [(setting, message)]


class TestSignIn:
    def test_a_key(self) -> None:
        message = "must be a key as the portal shows it: letters, digits and signs, without spaces."
        assert errors(AZURE | {"AZURE_OPENAI_API_KEY": "a b"}) == [("AZURE_OPENAI_API_KEY", message)]

    @pytest.mark.parametrize("scope", ["nonsense", "https://", "a b://c", "/x", "0" * 36, "0" * 35 + "/.default"])
    def test_a_token_scope(self, scope: str) -> None:
        message = f"must be a token scope, for example {AZURE_TOKEN_SCOPE}."
        assert errors(AZURE | {"AZURE_OPENAI_TOKEN_SCOPE": scope}) == [("AZURE_OPENAI_TOKEN_SCOPE", message)]

    @pytest.mark.parametrize("scope", ["api://gateway/.default", "0123abcd-89EF-0000-0000-000000000000/.default"])
    def test_good_token_scopes(self, scope: str) -> None:
        assert Settings.read(AZURE | {"AZURE_OPENAI_TOKEN_SCOPE": scope}).identity == Identity("developer", scope)

    def test_no_token_over_plain_http(self) -> None:
        message = "must begin with https:// when the app signs in with its Entra identity."
        plain = "http://a.openai.azure.com/"
        assert errors(AZURE | {"AZURE_OPENAI_ENDPOINT": plain}) == [("AZURE_OPENAI_ENDPOINT", message)]
        assert errors(listed(entry(), entry(endpoint=plain, name="x"))) == [("AZURE_OPENAI_BACKENDS", message)]

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
    def test_but_to_this_machine(self, host: str) -> None:
        environ = AZURE | {"AZURE_OPENAI_ENDPOINT": f"http://{host}:9000/v1", "AZURE_OPENAI_TOKEN_SCOPE": "api://x/y"}
        assert Settings.read(environ).identity == Identity("developer", "api://x/y")

    @pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "[fe80::1]", "localhost.example.com"])
    def test_and_to_no_other(self, host: str) -> None:
        environ = AZURE | {"AZURE_OPENAI_ENDPOINT": f"http://{host}/v1", "AZURE_OPENAI_TOKEN_SCOPE": "api://x/y"}
        assert [setting for setting, _ in errors(environ)] == ["AZURE_OPENAI_ENDPOINT"]

    def test_servers_of_azure_and_others(self) -> None:
        message = "names servers of Azure and others; set AZURE_OPENAI_TOKEN_SCOPE to send all of them the Entra token."
        found = errors(listed(entry(), entry(endpoint="https://other.example.com/v1")))
        assert found == [("AZURE_OPENAI_BACKENDS", message)]

    @pytest.mark.parametrize("host", AZURE_HOSTS)
    def test_every_cloud_of_azure_gets_a_token(self, host: str) -> None:
        environ = AZURE | {"AZURE_OPENAI_ENDPOINT": f"https://account{host}"}
        assert Settings.read(environ).identity == Identity("developer", AZURE_TOKEN_SCOPE)


def test_the_text_of_the_exception_names_every_error() -> None:
    error = SettingsError((SettingError("ONE", "set it."), SettingError("TWO", "remove it.")))
    assert str(error) == "ONE: set it.; TWO: remove it."


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (None, "FUNCTION"),
        ("", "FUNCTION"),
        ("function", "FUNCTION"),
        ("anonymously", "FUNCTION"),
        ("anonymous", "ANONYMOUS"),
        (" Anonymous ", "ANONYMOUS"),
    ],
)
def test_the_authorization_level(given: str | None, level: str) -> None:
    assert auth_level({} if given is None else {"HTTP_AUTH_LEVEL": given}) == level
