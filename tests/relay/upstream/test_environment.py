"""What the process's environment decides about requests to the model service: a proxy, and nothing else."""

import os
import urllib.request

import pytest

from relay.upstream.environment import is_loopback, proxy_for, remove_client_settings, without_credentials

URL = "https://account.openai.azure.com/openai/v1/"


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_clients_own_variables_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_CUSTOM_HEADERS", "OPENAI_LOG", "OPENAI_OF_A_LATER_VERSION"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "kept")
    remove_client_settings()
    assert not [name for name in os.environ if name.startswith("OPENAI_")]
    assert os.environ["AZURE_OPENAI_ENDPOINT"] == "kept"
    remove_client_settings()


class TestProxy:
    def test_none_is_named(self) -> None:
        assert proxy_for(URL) is None

    @pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
    def test_by_the_scheme(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, "http://user:secret@proxy.example.com:3128")
        assert proxy_for(URL) == "http://user:secret@proxy.example.com:3128"
        assert proxy_for(URL.replace("https", "http")) is None

    @pytest.mark.parametrize(
        ("value", "proxy"),
        [
            ("proxy:3128", "http://proxy:3128"),
            ("https://proxy:3128", "https://proxy:3128"),
            ("http://[::1]:3128", "http://[::1]:3128"),
            ("socks5://proxy:1080", None),
            ("http://", None),
        ],
    )
    def test_its_address(self, monkeypatch: pytest.MonkeyPatch, value: str, proxy: str | None) -> None:
        monkeypatch.setenv("https_proxy", value)
        assert proxy_for(URL) == proxy

    @pytest.mark.parametrize(
        "host",
        ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "api.localhost", "localhost.", "[::ffff:127.0.0.1]"],
    )
    def test_this_machine_is_reached_directly(self, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
        monkeypatch.setenv("http_proxy", "http://proxy:3128")
        assert proxy_for(f"http://{host}:11434/v1/") is None

    @pytest.mark.parametrize("host", ["128.0.0.1", "localhost.example.com", "notlocalhost", "[::2]", "10.0.0.1"])
    def test_others_are_not(self, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
        monkeypatch.setenv("http_proxy", "http://proxy:3128")
        assert proxy_for(f"http://{host}:11434/v1/") == "http://proxy:3128"

    @pytest.mark.parametrize(
        ("excluded", "host", "direct"),
        [
            ("*", "a.example.com", True),
            ("example.com", "example.com", True),
            ("example.com", "a.example.com", True),
            (".example.com", "a.example.com", True),
            ("*.example.com", "a.example.com", True),
            ("EXAMPLE.com", "a.example.com", True),
            ("example.com", "notexample.com", False),
            ("other.com, example.com", "a.example.com", True),
            ("other.com example.com", "a.example.com", True),
            ("example.com:8443", "example.com", True),
            ("example.com:443", "example.com", False),
            ("10.0.0.0/8", "10.1.2.3", True),
            ("10.0.0.0/8", "11.1.2.3", False),
            ("10.1.2.3/8", "10.9.9.9", True),
            ("10.1.2.3", "10.1.2.3", True),
            ("10.1.2.3", "110.1.2.3", False),
            ("fd00::/8", "[fd00::1]", True),
            ("[fd00::1]", "[fd00::1]", True),
            ("[fd00::1]:8443", "[fd00::1]", True),
            ("[fd00::1]:443", "[fd00::1]", False),
            ("fd00::1", "[fd00::1]", True),
            ("", "example.com", False),
            (",", "example.com", False),
            (".", "example.com", False),
        ],
    )
    @pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
    def test_excluded_hosts(
        self, monkeypatch: pytest.MonkeyPatch, name: str, excluded: str, host: str, direct: bool
    ) -> None:
        monkeypatch.setenv("https_proxy", "http://proxy:3128")
        monkeypatch.setenv(name, excluded)
        assert (proxy_for(f"https://{host}:8443/v1/") is None) is direct

    def test_the_systems_own_rules_are_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://proxy:3128")
        asked = []
        monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: asked.append(host) or True)
        assert proxy_for(URL) is None
        assert asked == ["account.openai.azure.com"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://user:secret@proxy:3128", "http://proxy:3128"),
        ("https://proxy/path?x=secret", "https://proxy"),
        ("http://user@[::1]:80", "http://[::1]:80"),
    ],
)
def test_an_address_without_credentials(url: str, address: str) -> None:
    assert without_credentials(url) == address


def test_what_is_no_address_is_not_this_machine() -> None:
    assert not is_loopback("")
    assert not is_loopback("example.com")
