"""Codex CLI, its binary from npm: real sessions in a folder, with calls of its shell tool."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from target import MODEL, URL

CODEX = Path(__file__).parents[1] / "node_modules/@openai/codex/bin/codex.js"
CONFIG = """
model = "{model}"
model_provider = "relay"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.relay]
name = "{name}"
base_url = "{url}"
wire_api = "responses"
{more}
"""

type Session = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Runs `codex exec` and returns its events."""

    def run(*arguments: str, address: str = f"{URL}/v1", name: str = "Relay", more: str = "", code: int = 0) -> Any:
        home, work = tmp_path / "home", tmp_path / "work"
        for folder in (home, work):
            folder.mkdir(exist_ok=True)
        (home / "config.toml").write_text(CONFIG.format(model=MODEL, url=address, name=name, more=more))
        command = [os.environ["NODE"], CODEX, "exec", *arguments]
        options = ["--json", "--skip-git-repo-check", "--sandbox", "danger-full-access"]
        if arguments[0] == "resume":
            options = options[:2]
        done = subprocess.run(
            [*command, *options],
            cwd=work,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), "KEY": "a-key"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == code, done.stdout.decode() + done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]

    return run


def items(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The completed items of a kind."""
    return [it["item"] for it in events if it["type"] == "item.completed" and it["item"]["type"] == kind]


def check_session(events: list[dict[str, Any]]) -> None:
    (command,) = items(events, "command_execution")
    assert (command["aggregated_output"], command["exit_code"]) == ("hello from codex\n", 0)
    assert items(events, "reasoning")
    assert "hello from codex" in items(events, "agent_message")[-1]["text"]
    assert events[-1]["type"] == "turn.completed"
    assert events[-1]["usage"]["output_tokens"] > 0


PROMPT = "Run 'echo hello from codex' and report what it printed."


def test_a_session_with_a_command(session: Session) -> None:
    check_session(session(PROMPT))


def test_a_session_at_azures_address_with_a_key(session: Session) -> None:
    more = 'query_params = { api-version = "2025-04-01-preview" }\nenv_http_headers = { "api-key" = "KEY" }'
    check_session(session(PROMPT, address=f"{URL}/openai", name="Azure", more=more))


def test_a_session_is_resumed(session: Session) -> None:
    session(PROMPT)
    events = session("resume", "--last", "How many words is that?")
    assert events[-1]["type"] == "turn.completed"


def test_an_answer_in_a_schema(session: Session, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"printed": {"type": "string"}},
                "required": ["printed"],
                "additionalProperties": False,
            }
        )
    )
    events = session(PROMPT, "--output-schema", str(schema))
    assert list(json.loads(items(events, "agent_message")[-1]["text"])) == ["printed"]


def test_a_refused_request_is_reported(session: Session) -> None:
    events = session(PROMPT, "--model", "unknown", code=1)
    assert events[-1]["type"] == "turn.failed"
    assert "model" in events[-1]["error"]["message"].lower()


def test_an_answer_that_breaks_off_is_reported(session: Session) -> None:
    more = "stream_max_retries = 0\nrequest_max_retries = 0"
    events = session("Tell a story.", "--model", "fault-cut-midway", more=more, code=1)
    assert events[-1]["type"] == "turn.failed"
