"""The examples of README and `docs/`, run as they are written, against the app on its host."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from local.model_service import DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import ROOT, HostedApp, bare_environment

PAGES: Final = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
ADDRESS: Final = "http://127.0.0.1:7071"
CLIENT: Final = """
import openai
client = openai.OpenAI(base_url="http://127.0.0.1:7071/v1", api_key="unused")
"""


@pytest.fixture(scope="module")
def documented_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """An app with one deployment, as the documentation has it."""
    return functions_app(env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": DEFAULT_DEPLOYMENT})


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of this language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def sessions(page: Path) -> list[tuple[str, str]]:
    """The commands that stand with their output, `$ curl …` and what it prints."""
    commands = [block.split("\n", 1) for block in blocks(page, "") if block.startswith("$ ")]
    return [(command.removeprefix("$ "), output) for command, output in commands]


def commands(page: Path) -> list[str]:
    """The commands for a shell that call the app, without their output."""
    return re.findall(rf"^    (curl .*{re.escape(ADDRESS)}.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def joined(output: str) -> str:
    """Text that the model service sent in parts, as one part: how much of it arrives together is a matter of time."""
    return re.sub(r'"\}\n+(data: \{|\{"type":"text",)"text":"', "", output.strip())


def cases[T](examples: list[tuple[Path, T]]) -> list[object]:
    return [pytest.param(example, id=f"{page.stem}-{index}") for index, (page, example) in enumerate(examples)]


async def run(*command: str, stdin: str = "") -> str:
    """What the command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=bare_environment(),
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate(stdin.encode())
    assert process.returncode == 0, errors.decode()
    return output.decode()


def of_resumable(code: str) -> bool:
    """Whether the example is of a stream that can be resumed, which the app must allow."""
    return "resumable" in code


@pytest.fixture(scope="module")
def resumable_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app, which allows streams that can be resumed."""
    backend = {
        "endpoint": app_settings["AZURE_OPENAI_ENDPOINT"],
        "deployment": DEFAULT_DEPLOYMENT,
        "wire": "responses",
    }
    return functions_app(env={"AZURE_OPENAI_BACKENDS": json.dumps([backend]), "RESUMABLE_STREAMS": "1"})


@pytest.fixture
def cut_service(model_service: ModelService) -> ModelService:
    """The model service breaks off twice, so that each client has to go on."""
    model_service.faults[DEFAULT_DEPLOYMENT] = ["cut-midway-1", None, "cut-midway-2"]
    return model_service


@pytest.mark.parametrize("command", cases([(page, command) for page in PAGES for command in commands(page)]))
async def test_a_command(command: str, documented_app: HostedApp, model_service: ModelService) -> None:
    output = await run("bash", "-c", command.replace(ADDRESS, documented_app.url))
    assert model_service.requests
    assert output.endswith(("}\n\n", ".", ".\n"))


@pytest.mark.parametrize("session", cases([(page, session) for page in PAGES for session in sessions(page)]))
async def test_a_command_and_its_output(
    session: tuple[str, str], documented_app: HostedApp, model_service: ModelService
) -> None:
    """`…` stands for what differs from run to run, or for lines that are left out."""
    command, expected = session
    output = await run("bash", "-c", command.replace(ADDRESS, documented_app.url))
    assert model_service.requests or '"errors"' in expected
    assert re.fullmatch(re.escape(joined(expected)).replace("…", "(?s:.*?)"), joined(output))


async def test_python(documented_app: HostedApp, model_service: ModelService) -> None:
    """All in one process, each on its own; one that begins with the use of `client` gets an ordinary one."""
    program = ""
    answers = 0
    for page in PAGES:
        for index, code in enumerate(code for code in blocks(page, "python") if not of_resumable(code)):
            source = code if "import openai" in code else CLIENT + code
            answers += "print(" in source
            program += f"exec(compile({source!r}, '{page.name}, example {index}', 'exec'), {{}}); print()\n"
    output = await run(sys.executable, "-", stdin=program.replace(ADDRESS, documented_app.url))
    assert output.split("\n").count("1, 2, 3") == answers > 2


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.parametrize(
    "code", cases([(page, code) for page in PAGES for code in blocks(page, "js") if not of_resumable(code)])
)
async def test_javascript(code: str, documented_app: HostedApp, model_service: ModelService) -> None:
    output = await run("node", "--input-type=module", "-", stdin=code.replace(ADDRESS, documented_app.url))
    assert "".join(output.split()) == "1,2,3"


async def test_python_that_goes_on(resumable_app: HostedApp, cut_service: ModelService) -> None:
    (code,) = [code for page in PAGES for code in blocks(page, "python") if of_resumable(code)]
    output = await run(sys.executable, "-", stdin=code.replace(ADDRESS, resumable_app.url))
    assert output.strip() == "1, 2, 3"
    assert [it.path.count("/resp_") for it in cut_service.requests] == [0, 1, 1, 1, 1]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
async def test_javascript_that_goes_on(resumable_app: HostedApp, cut_service: ModelService) -> None:
    by_itself, source = [code for page in PAGES for code in blocks(page, "js") if of_resumable(code)]
    output = await run("node", "--input-type=module", "-", stdin=by_itself.replace(ADDRESS, resumable_app.url))
    assert "".join(output.split()) == "1,2,3"
    assert [it.path.count("/resp_") for it in cut_service.requests] == [0, 1, 1, 1, 1]
    (response,) = cut_service.responses
    cut_service.faults[DEFAULT_DEPLOYMENT] = [None, "cut-midway-2"]
    # Node, unlike a browser, ends while its event source waits to connect again.
    alive = "const alive = setInterval(() => source.readyState === 2 && clearInterval(alive), 20);"
    code = f"const id = '{response.id}';\n{source}\n{alive}"
    options = ("--experimental-eventsource", "--input-type=module", "-")
    output = await run("node", *options, stdin=code.replace(ADDRESS, resumable_app.url))
    assert "".join(output.split()) == "1,2,3"
    assert len(cut_service.requests) == 9, "the event source has connected twice"


async def test_curl_that_goes_on(resumable_app: HostedApp, cut_service: ModelService, tmp_path: Path) -> None:
    (code,) = [code for page in PAGES for code in blocks(page, "bash") if of_resumable(code)]
    await run("bash", "-c", f"cd {tmp_path}\n" + code.replace(ADDRESS, resumable_app.url))
    assert (tmp_path / "answer.txt").read_text() == "1, 2, 3"
    assert [it.path.count("/resp_") for it in cut_service.requests] == [0, 1, 1, 1, 1]
