"""The app settings: their defaults, bounds and errors; no error repeats a secret."""

import json
import re
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import yarl
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.settings import (
    AZURE_TOKEN_SCOPE,
    BackendSettings,
    ChatSettings,
    Identity,
    Price,
    SettingError,
    Settings,
    SettingsError,
    auth_level,
)
from relay.usage import Usage

ROOT = Path(__file__).resolve().parents[2]
AZURE = {"AZURE_OPENAI_ENDPOINT": "https://account.openai.azure.com/", "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini"}
OTHER = {"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:11434/v1", "AZURE_OPENAI_DEPLOYMENTS": "llama"}
SECRET = "sk-4711-xyzzy"

# The settings that `relay/settings.py` reads, by its source; IDENTITY_ENDPOINT is set by the platform.
NAMES = sorted(
    set(re.findall(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"', (ROOT / "relay/settings.py").read_text()))
    - {"IDENTITY_ENDPOINT"}
)


def errors(environ: dict[str, str]) -> dict[str, str]:
    """The message for each wrong setting."""
    with pytest.raises(SettingsError) as caught:
        Settings.read(environ)
    return {error.setting: error.message for error in caught.value.errors}


def test_the_minimal_configuration() -> None:
    settings = Settings.read(AZURE)
    name = "gpt-5.4-mini"
    assert settings.backends == (BackendSettings(name, "https://account.openai.azure.com/openai/v1/", name, name),)
    assert settings.identity == Identity("developer", AZURE_TOKEN_SCOPE)
    assert settings.models == (name,)
    assert settings.api_key is None
    # The defaults that docs/configure.md documents.
    assert (settings.commit_wait, settings.ping_interval, settings.stream_deadline) == (5, 15, 220)
    assert (settings.max_body_bytes, settings.max_output_tokens) == (1024 * 1024, 16384)


def test_the_example_file_is_valid() -> None:
    values = json.loads((ROOT / "local.settings.json.example").read_text())["Values"]
    assert Settings.read(values).models == ("gpt-5.4-mini",)


def test_an_empty_setting_counts_as_absent() -> None:
    assert Settings.read(AZURE | {name: " " for name in NAMES if name not in AZURE}) == Settings.read(AZURE)


def test_without_settings_there_are_two_errors_with_their_remedies() -> None:
    found = errors({})
    assert set(found) == {"AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENTS"}
    assert "https://" in found["AZURE_OPENAI_ENDPOINT"]
    assert "gpt-5.4-mini" in found["AZURE_OPENAI_DEPLOYMENTS"]


@pytest.mark.parametrize(
    ("setting", "attribute", "good", "bad"),
    [
        ("COMMIT_WAIT_SECONDS", "commit_wait", ["0", "60", " 2.5 "], ["-0.1", "61", "nan", "inf", "soon", "1,5"]),
        ("PING_INTERVAL_SECONDS", "ping_interval", ["0.05", "200"], ["0", "201", "-1", "x"]),
        ("STREAM_DEADLINE_SECONDS", "stream_deadline", ["0.1", "1500"], ["0", "1501", "x"]),
        ("UPSTREAM_CONNECT_TIMEOUT_SECONDS", "upstream_connect_timeout", ["0.1", "60"], ["0", "61", "x"]),
        ("UPSTREAM_SILENCE_TIMEOUT_SECONDS", "upstream_silence_timeout", ["0.1", "3600"], ["0", "3601", "x"]),
        ("MAX_BODY_BYTES", "max_body_bytes", ["1", "104857600"], ["0", "104857601", "-1", "1e3", "1.0", "x", "9" * 99]),
        ("MAX_OUTPUT_TOKENS", "max_output_tokens", ["1", "1000000"], ["0", "1000001", "\u0661", "x"]),
    ],
)
def test_numbers(setting: str, attribute: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert getattr(Settings.read(AZURE | {setting: text}), attribute) == float(text)
    for text in bad:
        found = errors(AZURE | {setting: text})
        assert set(found) == {setting}
        assert "must be" in found[setting]


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("https://a.openai.azure.com", "https://a.openai.azure.com/openai/v1/"),
        ("https://a.openai.azure.com/", "https://a.openai.azure.com/openai/v1/"),
        (" https://a.openai.azure.com/openai ", "https://a.openai.azure.com/openai/v1/"),
        ("https://a.openai.azure.com/openai/v1", "https://a.openai.azure.com/openai/v1/"),
        ("https://a.openai.azure.com/openai/v1///", "https://a.openai.azure.com/openai/v1/"),
        ("http://localhost:11434/v1", "http://localhost:11434/v1/"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1/"),
        ("https://gateway.example.com/team/llm/v1", "https://gateway.example.com/team/llm/v1/"),
    ],
)
def test_addresses(given: str, base: str) -> None:
    settings = Settings.read({"AZURE_OPENAI_ENDPOINT": given, "AZURE_OPENAI_DEPLOYMENTS": "d"})
    assert settings.backends[0].endpoint == base


@pytest.mark.parametrize(
    "given",
    [
        "account.openai.azure.com",
        "ftp://account.openai.azure.com/",
        "https://",
        "https:///v1",
        "https://a.openai.azure.com/openai/deployments/gpt-5.4-mini",
        "https://a.openai.azure.com/?api-version=2026-01-01",
        "https://a.openai.azure.com/#x",
        f"https://user:{SECRET}@a.openai.azure.com/",
        f"https://{SECRET}@a.openai.azure.com/",
        "https://a.openai.azure.com:0/",
        "https://a.openai.azure.com:99999/",
        "https://a.openai.azure.com:x/",
        "https://a b.com/v1",
        "https://[::1/v1",
        "https://[v1.x]/v1",
        "https://1.2.3.999/v1",
        "https://\u2603.net/v1",
        "https://a\x00b/v1",
        "https://a%zz/v1",
        "\udcff",
    ],
)
def test_invalid_addresses(given: str) -> None:
    found = errors({"AZURE_OPENAI_ENDPOINT": given, "AZURE_OPENAI_DEPLOYMENTS": "d"})
    assert set(found) == {"AZURE_OPENAI_ENDPOINT"}
    assert SECRET not in str(found)


@settings(max_examples=60)
@given(st.text(max_size=30) | st.from_regex(r"https?://[\[\]a-z0-9.:@%\-]{1,20}(/openai)?(/v1)?/?", fullmatch=True))
def test_an_accepted_address_can_be_used(given: str) -> None:
    try:
        settings = Settings.read({"AZURE_OPENAI_ENDPOINT": given, "AZURE_OPENAI_DEPLOYMENTS": "d"})
    except SettingsError:
        return
    endpoint = settings.backends[0].endpoint
    assert endpoint.endswith("/v1/")
    assert httpx2.URL(endpoint).host
    assert yarl.URL(endpoint).host


@given(
    st.dictionaries(
        st.sampled_from([*NAMES, "IDENTITY_ENDPOINT"]),
        st.text(st.characters(), max_size=30)
        | st.sampled_from(
            [*AZURE.values(), *OTHER.values(), "1", "[]", "[{}]", '[{"endpoint":"https://a/v1","deployment":"d"}]']
        ),
    )
)
def test_no_environment_raises_another_exception(environ: dict[str, str]) -> None:
    found: tuple[SettingError, ...] = ()
    try:
        settings = Settings.read(environ)
    except SettingsError as error:
        found = error.errors
    else:
        assert settings.backends
        # Accepted values can be sent: as JSON, and in a header.
        json.dumps([members(backend) for backend in settings.backends], ensure_ascii=False).encode()
        assert (settings.api_key or "k").isascii()
        assert (settings.api_key or "k").isprintable()
    for setting_error in found:
        assert setting_error.setting.split("[")[0] in NAMES
        assert len(setting_error.message) > 10


def members(backend: BackendSettings) -> dict[str, Any]:
    return {name: getattr(backend, name) for name in ("name", "endpoint", "deployment", "model", "priority")}


def test_the_first_of_several_deployments_is_the_default() -> None:
    settings = Settings.read(AZURE | {"AZURE_OPENAI_DEPLOYMENTS": " b , a,,b "})
    assert settings.models == ("b", "a")


class TestBackendList:
    def read(self, *entries: Any, **more: str) -> Settings:
        return Settings.read({"AZURE_OPENAI_BACKENDS": json.dumps(entries), **more})

    def errors(self, *entries: Any, **more: str) -> dict[str, str]:
        return errors({"AZURE_OPENAI_BACKENDS": json.dumps(entries), **more})

    def test_all_members(self) -> None:
        settings = self.read(
            {"endpoint": "https://one.openai.azure.com", "deployment": "mini-1", "model": "mini", "name": "eu"},
            {"endpoint": "https://two.openai.azure.com", "deployment": "mini-2", "model": "mini", "priority": 2},
            {"endpoint": "https://two.openai.azure.com", "deployment": "large"},
        )
        assert settings.backends == (
            BackendSettings("eu", "https://one.openai.azure.com/openai/v1/", "mini-1", "mini", 1),
            BackendSettings("two/mini-2", "https://two.openai.azure.com/openai/v1/", "mini-2", "mini", 2),
            BackendSettings("two/large", "https://two.openai.azure.com/openai/v1/", "large", "large", 1),
        )
        assert settings.models == ("mini", "large")

    @pytest.mark.parametrize(
        "text", ["{}", "[", "[1]", '[{"endpoint": "https://a/v1"}]', "\udcff", '[{"x": 1}]', "null"]
    )
    def test_an_invalid_list(self, text: str) -> None:
        found = errors({"AZURE_OPENAI_BACKENDS": text})
        assert set(found) == {"AZURE_OPENAI_BACKENDS"}
        assert '"deployment"' in found["AZURE_OPENAI_BACKENDS"]

    def test_errors_name_the_position_of_the_entry(self) -> None:
        found = self.errors(
            {"endpoint": "https://one.openai.azure.com", "deployment": " "},
            {"endpoint": "two", "deployment": "d"},
            {"endpoint": "https://one.openai.azure.com", "deployment": "d", "priority": -1},
        )
        assert {"AZURE_OPENAI_BACKENDS[0].deployment", "AZURE_OPENAI_BACKENDS[1].endpoint"} < set(found)
        assert "AZURE_OPENAI_BACKENDS[2].priority" in found

    def test_duplicate_entries(self) -> None:
        entry = {"endpoint": "https://one.openai.azure.com", "deployment": "d"}
        assert set(self.errors(entry, entry)) == {"AZURE_OPENAI_BACKENDS[1].name"}

    def test_an_empty_list(self) -> None:
        assert set(self.errors()) == {"AZURE_OPENAI_BACKENDS"}

    def test_both_kinds_of_configuration_at_once(self) -> None:
        entry = {"endpoint": "https://one.openai.azure.com", "deployment": "d"}
        assert set(self.errors(entry, **AZURE)) == set(AZURE)

    def test_servers_of_azure_and_others(self) -> None:
        entries = (
            {"endpoint": "https://one.openai.azure.com", "deployment": "d"},
            {"endpoint": "https://other.example.com/v1", "deployment": "d"},
        )
        found = self.errors(*entries)
        assert "AZURE_OPENAI_TOKEN_SCOPE" in found["AZURE_OPENAI_BACKENDS"]
        assert self.read(*entries, AZURE_OPENAI_TOKEN_SCOPE=AZURE_TOKEN_SCOPE).identity


class TestIdentity:
    def test_in_azure_it_is_the_managed_identity(self) -> None:
        settings = Settings.read(AZURE | {"IDENTITY_ENDPOINT": "http://169.254.1.1/msi", "AZURE_CLIENT_ID": "id"})
        assert settings.identity == Identity("managed", AZURE_TOKEN_SCOPE, "id")

    def test_a_key_replaces_it(self) -> None:
        settings = Settings.read(AZURE | {"AZURE_OPENAI_API_KEY": f" {SECRET} "})
        assert (settings.identity, settings.api_key) == (None, SECRET)

    @pytest.mark.parametrize(
        "host",
        ["azure.com", "evil-openai.azure.com.example.com", "openai.azure.com.", "xopenai.azure.com", "127.0.0.1"],
    )
    def test_a_server_outside_azure_gets_no_token(self, host: str) -> None:
        settings = Settings.read(OTHER | {"AZURE_OPENAI_ENDPOINT": f"https://{host}/v1"})
        assert settings.identity is None

    def test_a_token_scope_sends_tokens_to_any_server(self) -> None:
        settings = Settings.read(OTHER | {"AZURE_OPENAI_TOKEN_SCOPE": "api://gateway/.default"})
        assert settings.identity == Identity("developer", "api://gateway/.default")

    @pytest.mark.parametrize("host", ["a.openai.azure.com", "A.OPENAI.AZURE.COM", "a.services.ai.azure.com"])
    def test_no_token_over_plain_http(self, host: str) -> None:
        found = errors(AZURE | {"AZURE_OPENAI_ENDPOINT": f"http://{host}/"})
        assert set(found) == {"AZURE_OPENAI_ENDPOINT"}
        assert "https://" in found["AZURE_OPENAI_ENDPOINT"]

    def test_no_token_over_plain_http_to_one_of_a_list(self) -> None:
        found = errors({"AZURE_OPENAI_BACKENDS": '[{"endpoint":"http://a.openai.azure.com","deployment":"d"}]'})
        assert {name.split("[")[0] for name in found} == {"AZURE_OPENAI_BACKENDS"}

    @pytest.mark.parametrize("scope", ["nonsense", "https://", "a b://c"])
    def test_an_invalid_scope(self, scope: str) -> None:
        assert set(errors(AZURE | {"AZURE_OPENAI_TOKEN_SCOPE": scope})) == {"AZURE_OPENAI_TOKEN_SCOPE"}


class TestKeyHeader:
    KEY: Final = AZURE | {"AZURE_OPENAI_API_KEY": SECRET}

    @pytest.mark.parametrize(
        ("text", "header"),
        [
            ("", None),
            ("api-key", "api-key"),
            (" Ocp-Apim-Subscription-Key ", "Ocp-Apim-Subscription-Key"),
            ("Authorization", None),
            ("authorization", None),
            ("x" * 100, "x" * 100),
        ],
    )
    def test_the_header_of_the_key(self, text: str, header: str | None) -> None:
        assert Settings.read(self.KEY | {"AZURE_OPENAI_API_KEY_HEADER": text}).api_key_header == header

    @pytest.mark.parametrize("text", ["a b", "a:b", "\u00e9", "a\nb", "x" * 101, "Content-Type", "HOST", "accept"])
    def test_what_is_no_header_for_a_key(self, text: str) -> None:
        assert errors(self.KEY | {"AZURE_OPENAI_API_KEY_HEADER": text}) == {
            "AZURE_OPENAI_API_KEY_HEADER": "must be the name of a header that carries the key, for example api-key or "
            "Ocp-Apim-Subscription-Key."
        }

    def test_without_a_key(self) -> None:
        assert errors(AZURE | {"AZURE_OPENAI_API_KEY_HEADER": "api-key"}) == {
            "AZURE_OPENAI_API_KEY_HEADER": "remove it, or set AZURE_OPENAI_API_KEY: only a key is sent in this header."
        }

    @pytest.mark.parametrize(
        "header",
        [
            "accept",
            "accept-encoding",
            "connection",
            "content-encoding",
            "content-length",
            "content-type",
            "cookie",
            "expect",
            "host",
            "keep-alive",
            "proxy-authorization",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "user-agent",
            "x-ms-client-request-id",
        ],
    )
    def test_the_headers_of_every_request(self, header: str) -> None:
        assert errors(self.KEY | {"AZURE_OPENAI_API_KEY_HEADER": header.title()})


@pytest.mark.parametrize(
    ("host", "both"),
    [
        ("a.openai.azure.com", False),
        ("a.services.ai.azure.com", False),
        ("a.openai.azure.us", False),
        ("api.openai.com", False),
        ("eu.api.openai.com", False),
        ("notapi.openai.com", True),
        ("openai.azure.com", True),
        ("127.0.0.1:11434", True),
        ("gateway.example.com", True),
    ],
)
def test_where_the_output_limit_goes_under_both_names(host: str, both: bool) -> None:
    assert BackendSettings("b", f"https://{host}/v1/", "d", "m").both_limits is both


A: Final = "https://a.openai.azure.com/"
ADDRESS_EXAMPLE: Final = "for example https://NAME.openai.azure.com/ (or any server's /v1 address)."
NAMES_EXAMPLE: Final = "for example gpt-5.4-mini (several: separated by commas, the default one first)."
LIST: Final = (
    'must be a JSON list of {"endpoint": "https://NAME.openai.azure.com/", "deployment": "gpt-5.4-mini"}, each with '
    '"model", "name", "priority" and "wire" if wanted'
)


def listed(**members: Any) -> dict[str, str]:
    return {"AZURE_OPENAI_BACKENDS": json.dumps([{"endpoint": A, "deployment": "d"} | members])}


@pytest.mark.parametrize(
    ("environ", "messages"),
    [
        (
            {},
            {
                "AZURE_OPENAI_ENDPOINT": f"set it to the address of the model service, {ADDRESS_EXAMPLE}",
                "AZURE_OPENAI_DEPLOYMENTS": f"set it to the name of a model deployment, {NAMES_EXAMPLE}",
            },
        ),
        (
            AZURE | {"AZURE_OPENAI_DEPLOYMENTS": "a b"},
            {"AZURE_OPENAI_DEPLOYMENTS": f"must be names without spaces and quotation marks, {NAMES_EXAMPLE}"},
        ),
        (
            AZURE | {"AZURE_OPENAI_ENDPOINT": "ftp://a/v1"},
            {"AZURE_OPENAI_ENDPOINT": f"must be an http or https address, {ADDRESS_EXAMPLE}"},
        ),
        (
            AZURE | {"AZURE_OPENAI_ENDPOINT": f"{A}?x=1"},
            {
                "AZURE_OPENAI_ENDPOINT": "must be an address without a query, a fragment or a password, "
                f"{ADDRESS_EXAMPLE}"
            },
        ),
        (
            AZURE | {"AZURE_OPENAI_ENDPOINT": "https://a.example.com/v2"},
            {"AZURE_OPENAI_ENDPOINT": f"its path must end in /v1, {ADDRESS_EXAMPLE}"},
        ),
        (
            AZURE | {"AZURE_OPENAI_ENDPOINT": "http://a.openai.azure.com"},
            {"AZURE_OPENAI_ENDPOINT": "must begin with https:// when the app signs in with its Entra identity."},
        ),
        (
            AZURE | {"AZURE_OPENAI_API_KEY": "a b"},
            {
                "AZURE_OPENAI_API_KEY": "must be a key as the portal shows it: letters, digits and signs, without "
                "spaces."
            },
        ),
        (
            AZURE | {"AZURE_OPENAI_TOKEN_SCOPE": "x"},
            {"AZURE_OPENAI_TOKEN_SCOPE": f"must be a token scope, for example {AZURE_TOKEN_SCOPE}."},
        ),
        (
            AZURE | {"PING_INTERVAL_SECONDS": "x", "FAILOVER_AFTER_SECONDS": "0", "MAX_BODY_BYTES": "x"},
            {
                "PING_INTERVAL_SECONDS": "must be a number of seconds from 0.05 to 200, for example 15.",
                "FAILOVER_AFTER_SECONDS": "must be a number of seconds from 0.1 to 3600, for example 10.",
                "MAX_BODY_BYTES": "must be a whole number from 1 to 104857600, for example 1048576.",
            },
        ),
        ({"AZURE_OPENAI_BACKENDS": "["}, {"AZURE_OPENAI_BACKENDS": f"{LIST}."}),
        (
            {"AZURE_OPENAI_BACKENDS": '[{"endpoint":"x"}]'},
            {"AZURE_OPENAI_BACKENDS": f"{LIST} (Object missing required field `deployment` - at `$[0]`)."},
        ),
        ({"AZURE_OPENAI_BACKENDS": "[]"}, {"AZURE_OPENAI_BACKENDS": "must name at least one deployment."}),
        (
            listed() | AZURE,
            dict.fromkeys(AZURE, "remove it: AZURE_OPENAI_BACKENDS is set and names every deployment."),
        ),
        (
            listed(deployment="a b", model="c,d", name='"', priority=1001),
            {
                "AZURE_OPENAI_BACKENDS[0].deployment": "must be a name without spaces, commas and quotation marks.",
                "AZURE_OPENAI_BACKENDS[0].model": "must be a name without spaces, commas and quotation marks.",
                "AZURE_OPENAI_BACKENDS[0].name": "must be a name without spaces, commas and quotation marks.",
                "AZURE_OPENAI_BACKENDS[0].priority": "must be from 0 to 1000; the lowest is tried first.",
            },
        ),
        (
            listed(endpoint="x"),
            {"AZURE_OPENAI_BACKENDS[0].endpoint": f"must be an http or https address, {ADDRESS_EXAMPLE}"},
        ),
        (
            {"AZURE_OPENAI_BACKENDS": json.dumps([{"endpoint": A, "deployment": "d"}] * 2)},
            {"AZURE_OPENAI_BACKENDS[1].name": "is there twice; give each backend a name of its own."},
        ),
        (
            {
                "AZURE_OPENAI_BACKENDS": json.dumps(
                    [{"endpoint": A, "deployment": "d"}, {"endpoint": "http://b/v1", "deployment": "d"}]
                )
            },
            {
                "AZURE_OPENAI_BACKENDS": "names servers of Azure and others; set AZURE_OPENAI_TOKEN_SCOPE to send all "
                "of them the Entra token."
            },
        ),
    ],
)
def test_messages(environ: dict[str, str], messages: dict[str, str]) -> None:
    assert errors(environ) == messages


def test_all_errors_at_once_in_one_exception() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.read(AZURE | {"MAX_BODY_BYTES": "x", "MAX_OUTPUT_TOKENS": "x"})
    assert [error.setting for error in caught.value.errors] == ["MAX_BODY_BYTES", "MAX_OUTPUT_TOKENS"]
    assert str(caught.value) == (
        "MAX_BODY_BYTES: must be a whole number from 1 to 104857600, for example 1048576.; "
        "MAX_OUTPUT_TOKENS: must be a whole number from 1 to 1000000, for example 16384."
    )


def test_every_number_is_read() -> None:
    settings = Settings.read(
        AZURE
        | {
            "COMMIT_WAIT_SECONDS": "1",
            "PING_INTERVAL_SECONDS": "2",
            "STREAM_DEADLINE_SECONDS": "3",
            "UPSTREAM_CONNECT_TIMEOUT_SECONDS": "4",
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "5",
            "FAILOVER_AFTER_SECONDS": "6",
            "MAX_BODY_BYTES": "7",
            "MAX_OUTPUT_TOKENS": "8",
            "RESUMABLE_STREAMS": "1",
            "RESUMABLE_GRACE_SECONDS": "9",
            "RESUMABLE_KEEP": "1",
        }
    )
    assert settings == Settings(
        settings.backends,
        identity=settings.identity,
        commit_wait=1,
        ping_interval=2,
        stream_deadline=3,
        upstream_connect_timeout=4,
        upstream_silence_timeout=5,
        failover_after=6,
        max_body_bytes=7,
        max_output_tokens=8,
        resumable_streams=True,
        resumable_grace=9,
        resumable_keep=True,
    )
    defaults = Settings.read(AZURE)
    assert defaults == Settings(settings.backends, identity=settings.identity)
    assert (defaults.upstream_connect_timeout, defaults.upstream_silence_timeout) == (10, 120)
    assert defaults.failover_after is None


@pytest.mark.parametrize(
    ("text", "level"),
    [("", "FUNCTION"), (" Anonymous ", "ANONYMOUS"), ("anonymous", "ANONYMOUS"), ("admin", "FUNCTION")],
)
def test_the_level_of_authentication(text: str, level: str) -> None:
    assert auth_level({"HTTP_AUTH_LEVEL": text}) == level
    assert auth_level({}) == "FUNCTION"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (listed(priority=0), ("a/d", "d", "d", 0)),
        (listed(priority=1000, model=" m ", name=" n "), ("n", "d", "m", 1000)),
        (listed(deployment=" d "), ("a/d", "d", "d", 1)),
        (listed(endpoint=f" {A} ", model="", name=""), ("a/d", "d", "d", 1)),
        (listed(deployment="x" * 254), (f"a/{'x' * 254}", "x" * 254, "x" * 254, 1)),
    ],
)
def test_an_entry(entry: dict[str, str], expected: tuple[Any, ...]) -> None:
    (backend,) = Settings.read(entry).backends
    assert (backend.name, backend.deployment, backend.model, backend.priority) == expected
    assert backend.endpoint == f"{A}openai/v1/"


@pytest.mark.parametrize("deployment", ["x" * 257, "\u00e9", "a\\b", "\x7f", ""])
def test_an_invalid_name(deployment: str) -> None:
    assert "AZURE_OPENAI_BACKENDS[0].deployment" in errors(listed(deployment=deployment))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_token_may_go_over_plain_http_on_this_machine(host: str) -> None:
    environ = OTHER | {"AZURE_OPENAI_ENDPOINT": f"http://{host}:1/v1", "AZURE_OPENAI_TOKEN_SCOPE": "api://x/.default"}
    assert Settings.read(environ).identity == Identity("developer", "api://x/.default")


@pytest.mark.parametrize("host", ["10.0.0.1", "example.com", "[::2]"])
def test_but_not_elsewhere(host: str) -> None:
    environ = OTHER | {"AZURE_OPENAI_ENDPOINT": f"http://{host}:1/v1", "AZURE_OPENAI_TOKEN_SCOPE": "api://x/.default"}
    assert set(errors(environ)) == {"AZURE_OPENAI_ENDPOINT"}


def test_a_scope_may_be_an_application_id() -> None:
    scope = "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd/.default"
    assert Settings.read(AZURE | {"AZURE_OPENAI_TOKEN_SCOPE": scope}).identity == Identity("developer", scope)


class TestChatPage:
    def test_without_settings_it_is_on_with_its_own_texts(self) -> None:
        chat = ChatSettings.read({})
        assert chat == ChatSettings()
        assert chat.enabled
        assert chat.page_config() == {"name": "", "greeting": "", "notice": "", "examples": [], "models": []}

    def test_all_settings(self) -> None:
        chat = ChatSettings.read(
            {
                "CHAT_PAGE": " Off ",
                "CHAT_NAME": " Contoso ",
                "CHAT_GREETING": "Hello",
                "CHAT_NOTICE": "No secrets.",
                "CHAT_EXAMPLES": '["one ", "two"]',
                "CHAT_MODELS": "a, b,a,",
            }
        )
        assert chat == ChatSettings(False, "Contoso", "Hello", ("one", "two"), "No secrets.", ("a", "b"))
        assert chat.page_config() == {
            "name": "Contoso",
            "greeting": "Hello",
            "notice": "No secrets.",
            "examples": ["one", "two"],
            "models": ["a", "b"],
        }

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("CHAT_PAGE", "no", "must be on or off."),
            ("CHAT_NAME", "x" * 61, "must have 60 characters at most."),
            ("CHAT_GREETING", "x" * 201, "must have 200 characters at most."),
            ("CHAT_NOTICE", "x" * 501, "must have 500 characters at most."),
            *(
                (
                    "CHAT_EXAMPLES",
                    text,
                    'must be a JSON list of 1 to 8 texts of 1 to 300 characters, for example ["Summarise this: "].',
                )
                for text in ("x", "[]", '[""]', "[1]", '{"a": "b"}', json.dumps(["x"] * 9), json.dumps(["x" * 301]))
            ),
            ("CHAT_MODELS", "two words", "must be names of models, separated by commas."),
        ],
    )
    def test_a_wrong_one_is_an_error_and_has_no_effect(self, name: str, text: str, message: str) -> None:
        assert errors(AZURE | {name: text}) == {name: message}
        assert ChatSettings.read({name: text}) == ChatSettings()

    def test_the_longest_texts(self) -> None:
        texts = {"CHAT_NAME": "x" * 60, "CHAT_GREETING": "x" * 200, "CHAT_NOTICE": "x" * 500}
        assert Settings.read(AZURE | texts | {"CHAT_EXAMPLES": json.dumps(["x" * 300] * 8)})


class TestSecrets:
    def test_a_key_is_not_in_the_representation_of_the_settings(self) -> None:
        settings = Settings.read(AZURE | {"AZURE_OPENAI_API_KEY": SECRET})
        assert SECRET not in repr(settings)
        assert SECRET not in str(settings)

    @pytest.mark.parametrize("key", [f"{SECRET}\nx", f"{SECRET} x", f"\u00e9{SECRET}", f"{SECRET}\x00"])
    def test_a_key_that_is_not_valid_in_a_header(self, key: str) -> None:
        found = errors(AZURE | {"AZURE_OPENAI_API_KEY": key})
        assert set(found) == {"AZURE_OPENAI_API_KEY"}
        assert SECRET not in str(found)

    @pytest.mark.parametrize("name", NAMES)
    def test_no_error_repeats_a_value(self, name: str) -> None:
        found = errors(AZURE | {name: f"{SECRET}\n"} | {"PING_INTERVAL_SECONDS": f"x{SECRET}"})
        assert SECRET not in str(found)


class TestPrices:
    def test_a_price_for_each_model(self) -> None:
        prices = '{"a": {"input": 2, "cached_input": 0.5, "output": 8}, "b": {"input": 0.02}}'
        settings = Settings.read(AZURE | {"TOKEN_PRICES": prices})
        usage = Usage(1000, 100, cached_tokens=400)
        assert settings.prices["a"].cost(usage) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 8) / 1e6)
        assert settings.prices["b"].cost(usage) == pytest.approx(1000 * 0.02 / 1e6)
        assert settings.prices["b"].cost(Usage(0, 0)) == 0

    def test_no_more_is_cached_than_was_sent(self) -> None:
        assert Price(input=1.0, cached_input=0.0).cost(Usage(10, 0, cached_tokens=1000)) == 0

    def test_none_is_the_default(self) -> None:
        assert Settings.read(AZURE).prices == {}

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            '{"a": 1}',
            '{"a": {}}',
            '{"a": {"input": "1"}}',
            '{"a": {"input": -1}}',
            '{"a": {"input": 1, "output": 1e9}}',
            '{"a": {"input": 1, "cached_input": -0.1}}',
            '{"a": {"input": 1, "per": "token"}}',
        ],
    )
    def test_other_tables_are_errors(self, text: str) -> None:
        found = errors(AZURE | {"TOKEN_PRICES": text})
        assert found["TOKEN_PRICES"].startswith('must be a JSON object such as {"gpt-5.4-mini": {"input": 0,')


class TestDocumentation:
    def test_the_names_are_found(self) -> None:
        assert {"AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "COMMIT_WAIT_SECONDS", "MAX_BODY_BYTES"} <= set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_each_setting_is_documented(self, name: str) -> None:
        assert f"`{name}`" in (ROOT / "docs/configure.md").read_text()

    def test_the_documentation_names_no_setting_that_is_not_read(self) -> None:
        named = set(re.findall(r"^\| `([A-Z][A-Z0-9_]+)`", (ROOT / "docs/configure.md").read_text(), re.MULTILINE))
        sources = "".join(path.read_text() for path in [*ROOT.glob("relay/**/*.py"), ROOT / "function_app.py"])
        assert named
        assert {name for name in named if name not in sources} == set()


class TestWires:
    @staticmethod
    def listed(*wires: str | None) -> Settings:
        entries = [
            {"endpoint": "https://a.openai.azure.com", "deployment": f"d{number}"} | ({"wire": wire} if wire else {})
            for number, wire in enumerate(wires)
        ]
        return Settings.read({"AZURE_OPENAI_BACKENDS": json.dumps(entries)})

    def test_each_backend_has_one(self) -> None:
        settings = self.listed(None, "responses", " embeddings ", "chat")
        assert [it.wire for it in settings.backends] == ["chat", "responses", "embeddings", "chat"]

    def test_without_a_list_it_is_chat(self) -> None:
        settings = Settings.read({"AZURE_OPENAI_ENDPOINT": "http://h/v1", "AZURE_OPENAI_DEPLOYMENTS": "a"})
        assert [it.wire for it in settings.backends] == ["chat"]

    @pytest.mark.parametrize(
        ("wires", "models"),
        [
            (("embeddings", "chat", "responses"), ("d1", "d2", "d0")),
            (("embeddings", "responses", "chat"), ("d1", "d2", "d0")),
            (("embeddings", "embeddings"), ("d0", "d1")),
        ],
    )
    def test_the_default_model_is_one_of_text(self, wires: tuple[str, ...], models: tuple[str, ...]) -> None:
        settings = self.listed(*wires)
        assert settings.models == models
        assert [it.deployment for it in settings.backends] == ["d0", "d1", "d2"][: len(wires)]
