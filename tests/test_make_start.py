"""What `make start` decides before it starts anything, and what it prints; see `end_to_end/test_start.py`."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from local.functions_host import HostError, LocalSettings
from local.functions_host.readable_log import readable
from local.session import has_desktop, readiness_text
from local.upstream import CHOICES, Upstream, choose

ROOT: Final = Path(__file__).parents[1]
SIMULATED: Final = {
    "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:7072/openai/v1/",
    "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini",
}
AZURE: Final = {
    "AZURE_OPENAI_ENDPOINT": "https://name.openai.azure.com/",
    "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini",
}
TWO: Final = {
    "AZURE_OPENAI_BACKENDS": json.dumps(
        [
            {"endpoint": "http://localhost:7072/openai/v1", "deployment": "a"},
            {"endpoint": "http://127.0.0.1:7073/openai/v1/", "deployment": "b"},
            {"endpoint": "http://127.0.0.1:11434/v1", "deployment": "c"},
        ]
    )
}


class TestUpstream:
    @pytest.mark.parametrize(
        ("values", "ports"),
        [
            (SIMULATED, [7072]),
            (TWO, [7072, 7073]),
            (AZURE, []),
            ({"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:11434/v1"}, []),
            ({"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:7072/openai/v1/x"}, []),
            ({"AZURE_OPENAI_ENDPOINT": "http://10.0.0.1:7072/openai/v1"}, []),
            ({}, []),
        ],
    )
    def test_where_a_simulated_model_service_is_expected(self, values: dict[str, str], ports: list[int]) -> None:
        assert Upstream(values, {}).simulated_ports() == ports

    def test_it_may_be_moved_to_another_port(self) -> None:
        upstream = Upstream(SIMULATED, {})
        upstream.move(7072, 5000)
        assert upstream.moved == {"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:5000/openai/v1/"}
        assert upstream.simulated_ports() == [5000]

    def test_one_of_several_is_moved_alone(self) -> None:
        upstream = Upstream(TWO, {})
        upstream.move(7072, 5000)
        assert upstream.simulated_ports() == [5000, 7073]
        assert "http://127.0.0.1:11434/v1" in upstream.moved["AZURE_OPENAI_BACKENDS"]

    def test_all_can_be_one(self) -> None:
        upstream = Upstream(TWO, {})
        upstream.move_all(5000)
        assert upstream.simulated_ports() == [5000]

    @pytest.mark.parametrize(
        ("values", "environ", "expected"),
        [
            (SIMULATED, {}, ["Model service: simulated, on this machine (port 7072); no key is sent"]),
            (
                AZURE,
                {},
                [
                    "Model service: https://name.openai.azure.com/openai/v1/; signed in as you (az login, or azd auth "
                    "login)"
                ],
            ),
            (
                AZURE,
                {"IDENTITY_ENDPOINT": "http://127.0.0.1:1/msi/token", "IDENTITY_HEADER": "x"},
                ["Model service: https://name.openai.azure.com/openai/v1/; signed in with the managed identity"],
            ),
            (
                SIMULATED,
                {"AZURE_OPENAI_ENDPOINT": "https://other.example/v1", "AZURE_OPENAI_API_KEY": "SECRET-KEY"},
                [
                    "Model service: https://other.example/v1/; the key in AZURE_OPENAI_API_KEY is sent",
                    "These environment variables override local.settings.json: AZURE_OPENAI_API_KEY, "
                    "AZURE_OPENAI_ENDPOINT. To use the file: unset AZURE_OPENAI_API_KEY AZURE_OPENAI_ENDPOINT",
                ],
            ),
            (SIMULATED | {"PING_INTERVAL_SECONDS": "15"}, {"PING_INTERVAL_SECONDS": "15"}, None),
            (
                {},
                {},
                [
                    "Wrong setting: AZURE_OPENAI_ENDPOINT set it to",
                    "Wrong setting: AZURE_OPENAI_DEPLOYMENTS set it to",
                ],
            ),
        ],
    )
    def test_the_description(self, values: dict[str, str], environ: dict[str, str], expected: list[str] | None) -> None:
        lines = Upstream(values, {"PATH": "/bin", **environ}).description()
        if expected is None:
            assert len(lines) == 1
            return
        assert len(lines) == len(expected)
        for line, beginning in zip(lines, expected, strict=True):
            assert line.startswith(beginning)
            assert "SECRET-KEY" not in line


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "local.settings.json"
    path.write_bytes((ROOT / "local.settings.json.example").read_bytes())
    return path


@pytest.fixture
def model_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that lists models, as Ollama does: its address, and the models."""
    models = [{"id": "llama3.2"}, {"id": "other"}]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"object": "list", "data": models}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", models
    server.shutdown()
    server.server_close()


class TestChoice:
    def chosen(self, path: Path) -> tuple[str, str]:
        values = LocalSettings.read(path).values
        return values["AZURE_OPENAI_ENDPOINT"], values["AZURE_OPENAI_DEPLOYMENTS"]

    def test_azure(self, settings_file: Path) -> None:
        before = LocalSettings.read(settings_file).values
        wrote = choose(settings_file, "azure", {}, endpoint="https://name.openai.azure.com/", deployments="mini,large")
        assert wrote.endswith(
            "AZURE_OPENAI_ENDPOINT=https://name.openai.azure.com/ AZURE_OPENAI_DEPLOYMENTS=mini,large"
        )
        assert self.chosen(settings_file) == ("https://name.openai.azure.com/", "mini,large")
        after = LocalSettings.read(settings_file).values
        assert {name for name in after if after[name] != before[name]} == {
            "AZURE_OPENAI_ENDPOINT",
            "AZURE_OPENAI_DEPLOYMENTS",
        }

    def test_back_to_the_simulated_one(self, settings_file: Path) -> None:
        text = settings_file.read_text()
        choose(settings_file, "azure", {}, endpoint="https://name.openai.azure.com/", deployments="x")
        choose(settings_file, "simulated", {})
        assert settings_file.read_text() == text

    def test_a_server_that_lists_its_models(
        self, settings_file: Path, model_server: tuple[str, list[dict[str, Any]]]
    ) -> None:
        choose(settings_file, "ollama", {}, endpoint=model_server[0])
        assert self.chosen(settings_file) == (model_server[0], "llama3.2")
        model_server[1].clear()
        with pytest.raises(HostError, match="has no model: load one"):
            choose(settings_file, "ollama", {}, endpoint=model_server[0])

    def test_a_server_that_does_not_answer(self, settings_file: Path) -> None:
        with pytest.raises(HostError, match=r"ollama does not list its models at .*DEPLOYMENTS=llama3\.2"):
            choose(settings_file, "ollama", {}, endpoint="http://127.0.0.1:1/v1")

    @pytest.mark.parametrize("name", ["azure", "openai"])
    def test_what_is_missing_is_named(self, settings_file: Path, name: str) -> None:
        with pytest.raises(HostError, match=f"MODEL={name} needs: make start MODEL={name} .*DEPLOYMENTS="):
            choose(settings_file, name, {})

    def test_an_unknown_one(self, settings_file: Path) -> None:
        with pytest.raises(HostError, match=r"is not known\. Choose one of: simulated, azure"):
            choose(settings_file, "bard", {})

    @pytest.mark.parametrize("name", ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENTS", "AZURE_OPENAI_BACKENDS"])
    def test_an_exported_variable_would_override_it(self, settings_file: Path, name: str) -> None:
        with pytest.raises(HostError, match=f"would have no effect: {name} is exported"):
            choose(settings_file, "simulated", {name: "x"})

    def test_comments_and_other_members_stay(self, settings_file: Path) -> None:
        settings_file.write_text(
            '{\n  // mine\n  "Values": {\n    "AZURE_OPENAI_ENDPOINT" : "a \\"b\\" c", /* here */\n'
            '    "AZURE_OPENAI_DEPLOYMENTS": "x",\n    "Z": "1",\n  },\n}\n'
        )
        choose(settings_file, "openai", {}, deployments="gpt-5.4-mini")
        assert settings_file.read_text() == (
            '{\n  // mine\n  "Values": {\n    "AZURE_OPENAI_ENDPOINT" : "https://api.openai.com/v1", /* here */\n'
            '    "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini",\n    "Z": "1",\n  },\n}\n'
        )

    def test_values_that_are_missing_are_added(self, settings_file: Path) -> None:
        settings_file.write_text('{"Values": {"Z": "1"}}')
        choose(settings_file, "openai", {}, deployments="m")
        assert self.chosen(settings_file) == ("https://api.openai.com/v1", "m")
        settings_file.write_text("{}")
        with pytest.raises(HostError, match="has no Values: delete it"):
            choose(settings_file, "openai", {}, deployments="m")

    def test_a_list_of_backends_is_not_thrown_away(self, settings_file: Path) -> None:
        text = settings_file.read_text().replace('"AZURE_OPENAI_BACKENDS": ""', '"AZURE_OPENAI_BACKENDS": "[]"')
        settings_file.write_text(text)
        with pytest.raises(HostError, match=r"AZURE_OPENAI_BACKENDS in local\.settings\.json names the deployments"):
            choose(settings_file, "simulated", {})
        assert settings_file.read_text() == text

    def test_a_file_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(HostError, match=r"local.settings.json can't be changed: No such file"):
            choose(tmp_path / "local.settings.json", "simulated", {})

    def test_each_is_documented(self) -> None:
        page = (ROOT / "docs/configure.md").read_text()
        for name in CHOICES:
            assert f"`make start MODEL={name}" in page


class TestLocalSettings:
    @pytest.mark.parametrize(
        "text",
        [
            '{"Values": {"A": "1"}}',
            '\ufeff{"Values": {"A": "1"}}',
            '// first\n{"Values": /* x */ {"A": "1",} , }',
            '{"Values": {"A": "1", // not "B": "2"\n}}',
            '{"Values": {"A": "1" /* , } */, // ]\n } /* " */ }',
        ],
    )
    def test_comments_and_trailing_commas_as_core_tools_read_them(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "local.settings.json"
        path.write_text(text, encoding="utf-8")
        assert LocalSettings.read(path).values == {"A": "1"}

    @pytest.mark.parametrize("value", ["http://a//b", "/* not */", 'say \\"// hi\\",}', "a,}", "\\\\"])
    def test_what_looks_like_a_comment_in_a_string_is_none(self, tmp_path: Path, value: str) -> None:
        path = tmp_path / "local.settings.json"
        path.write_text(f'{{"Values": {{"A": "{value}",}}}}')
        assert LocalSettings.read(path).values == {"A": json.loads(f'"{value}"')}

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            (b'{\n  // x\n  "Values": {"A" "1"}}', r"local.settings.json is not JSON: .*line 3 column 18"),
            (b"{", "is not JSON"),
            (b"[]", "must be a JSON object"),
            (b'{"Values": {"A": "\xff"}}', "is not UTF-8"),
            (b'{"Values": {"A": 1}}', "the value of A must be a string"),
        ],
    )
    def test_a_broken_file(self, tmp_path: Path, content: bytes, error: str) -> None:
        path = tmp_path / "local.settings.json"
        path.write_bytes(content)
        with pytest.raises(HostError, match=error):
            LocalSettings.read(path)

    def test_a_file_that_can_not_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "local.settings.json"
        path.mkdir()
        with pytest.raises(HostError, match=r"local\.settings\.json can't be read: Is a directory"):
            LocalSettings.read(path)


class TestReadiness:
    def test_ready(self) -> None:
        assert readiness_text(b'{"status":"ready","backends":[{"backend":"a","ready":true}]}') == "Ready."

    def test_what_is_wrong_and_the_remedy(self) -> None:
        backends = [{"backend": "a", "ready": True}, {"backend": "b", "ready": False, "reason": "R", "remedy": "M"}]
        text = readiness_text(json.dumps({"status": "degraded", "backends": backends}).encode())
        assert text == "Ready, except for:\n  b: R\n    M\n"
        text = readiness_text(json.dumps({"status": "not_ready", "backends": backends[1:]}).encode())
        assert text == "The app runs, but it is NOT READY:\n  b: R\n    M\n"

    def test_wrong_settings(self) -> None:
        problem = {"status": 503, "detail": "D", "errors": [{"field": "AZURE_OPENAI_ENDPOINT", "message": "set it"}]}
        text = readiness_text(json.dumps(problem).encode())
        assert text == "The app runs, but it is NOT READY:\n  AZURE_OPENAI_ENDPOINT: set it\n"
        assert "  D" in readiness_text(b'{"status": 500, "detail": "D"}')

    @pytest.mark.parametrize("document", [None, b"", b"<html>"])
    def test_no_answer(self, document: bytes | None) -> None:
        assert readiness_text(document).startswith("Not ready")


@pytest.mark.parametrize(
    ("environ", "platform", "terminal", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True, True),
        ({}, "darwin", True, True),
        ({}, "linux", True, False),
        ({"DISPLAY": ""}, "linux", True, False),
        ({"DISPLAY": ":0"}, "linux", False, False),
        ({"DISPLAY": ":0", "CI": "true"}, "linux", True, False),
        ({"SSH_CONNECTION": "x"}, "darwin", True, False),
        ({"DISPLAY": "localhost:10.0", "SSH_TTY": "x"}, "linux", True, False),
    ],
)
def test_a_page_is_opened_only_where_its_window_would_be_seen(
    environ: dict[str, str], platform: str, terminal: bool, expected: bool
) -> None:
    assert has_desktop(environ, platform, terminal=terminal) is expected


class TestReadableLog:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("INFO:     Uvicorn running on http://127.0.0.1:33677 (Press CTRL+C to quit)", None),
            ("INFO:     Started server process [1]", None),
            ("Traceback (most recent call last):", "Traceback (most recent call last):"),
            ("ERROR:    Exception in ASGI application", "ERROR:    Exception in ASGI application"),
            ('{"no": "event"}', '{"no": "event"}'),
            ("[1]", "[1]"),
        ],
    )
    def test_lines_that_are_no_records(self, line: str, expected: str | None) -> None:
        assert readable(line) == expected

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            (
                {
                    "event": "stream",
                    "gen_ai.request.model": "m",
                    "relay.outcome": "completed",
                    "relay.duration": 1.234,
                    "gen_ai.response.time_to_first_chunk": 0.2,
                    "gen_ai.usage.input_tokens": 3,
                    "gen_ai.usage.output_tokens": 0,
                    "relay.attempts": 2,
                    "relay.request_id": "R",
                },
                "m  completed  1.23 s, first token after 0.20 s, 3 + 0 tokens, 2 attempts  request R",
            ),
            (
                {
                    "event": "stream",
                    "gen_ai.operation.name": "retrieve",
                    "relay.outcome": "failed",
                    "relay.code": "upstream_error",
                    "relay.reason": "why",
                    "relay.attempts": 1,
                },
                "retrieve  failed, upstream_error: why  0.00 s",
            ),
            (
                {"event": "not_configured", "setting": "A", "message": "set it"},
                "not configured  setting A, message set it",
            ),
            (
                {"event": "refused", "relay.code": "c", "relay.request_id": "R", "relay.invocation_id": "I"},
                "refused  code c  request R",
            ),
        ],
    )
    def test_records(self, record: dict[str, Any], expected: str) -> None:
        text = readable(json.dumps(record))
        assert text is not None
        assert text[8:] == f"  {expected}"
