"""The command `llm`, with models in its own file of OpenAI-compatible ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from target import EMBEDDINGS, MODEL, PROMPT, TEXT, URL

LLM = Path(sys.executable).parent / "llm"


@pytest.fixture(params=["chat", "responses"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    lines = ["- model_id: relay", f"  model_name: {MODEL}", f"  api_base: {URL}/v1", "  supports_schema: true"]
    lines += ["  supports_tools: true", "  vision: true"]
    if request.param == "responses":
        lines.append("  responses: true")
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path


def llm(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [LLM, *arguments],
        env={"LLM_USER_PATH": str(folder), "PATH": "/usr/bin:/bin", "OPENAI_API_KEY": "unused"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return (done.stdout if code == 0 else done.stderr).decode()


@pytest.mark.parametrize("option", ["--no-stream", "--no-log"])  # with the second, it streams
def test_prompt(folder: Path, option: str) -> None:
    assert llm(folder, "-m", "relay", option, PROMPT).strip() == TEXT


def test_conversation(folder: Path) -> None:
    llm(folder, "-m", "relay", "What are lanterns?")
    assert "I remember 1 earlier turn" in llm(folder, "-m", "relay", "--continue", "And mirrors?")


def test_schema(folder: Path) -> None:
    answer = json.loads(llm(folder, "-m", "relay", "--schema", "name, people int", "'Lisbon' with 500000 people"))
    assert answer == {"name": "Lisbon", "people": 500000}


def test_tool(folder: Path) -> None:
    function = 'def weather(city: str) -> str:\n    "The weather."\n    return "Rain in " + city'
    answer = llm(folder, "-m", "relay", "--functions", function, "How is it in 'Lisbon'?")
    assert "Rain in Lisbon" in answer


def test_picture(folder: Path) -> None:
    picture = folder / "a.png"
    picture.write_bytes(bytes.fromhex("89504e470d0a1a0a"))
    assert "1 picture (image/png, 8 bytes)" in llm(folder, "-m", "relay", "-a", str(picture), "What is it?")


def test_unknown_model_is_reported(folder: Path) -> None:
    models = folder / "extra-openai-models.yaml"
    models.write_text(models.read_text().replace(MODEL, "unknown"))
    assert "There is no such model here" in llm(folder, "-m", "relay", "hi", code=1)


def test_list_of_models(tmp_path: Path) -> None:
    assert EMBEDDINGS in llm(tmp_path, "openai", "endpoint", f"{URL}/v1", "--models")
