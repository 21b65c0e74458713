"""`make start`: the commands that it prints work, and no process remains after its end."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from tests.end_to_end.hosting import ROOT, bare_environment, eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Session:
    """`python -m local`, as `make start` runs it, with a model service of its own."""

    def __init__(
        self,
        log: Path,
        *options: str,
        port: int | None = None,
        model_port: int | None = None,
        path: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.model_port = model_port or free_port()
        self.log = log
        environment = bare_environment(
            {
                "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{self.model_port}/openai/v1/",
                "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini",
                # A developer's own local.settings.json has no effect here.
                "AZURE_OPENAI_BACKENDS": "",
                "AZURE_OPENAI_API_KEY": "",
            }
        )
        # Core Tools on this machine are hidden; a test of them brings its own.
        folders = [folder for folder in environment["PATH"].split(os.pathsep) if not (Path(folder) / "func").exists()]
        environment["PATH"] = os.pathsep.join(([str(path)] if path else []) + folders)
        command = [sys.executable, "-m", "local", f"--port={self.port}", *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while "The text and nothing else" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def wait_for_end(self) -> int:
        return self.process.wait(15)

    def curl_commands(self) -> list[str]:
        return re.findall(r"^  (curl .+)$", self.output, re.MULTILINE)

    def descendants(self) -> list[int]:
        """The ids of all processes that it started, and of those that they started."""
        found, remaining = [], [self.process.pid]
        while remaining:
            pid = remaining.pop()
            for task in Path(f"/proc/{pid}/task").iterdir():
                remaining += [int(child) for child in (task / "children").read_text().split()]
            found.append(pid)
        return found[1:]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    running = Session(tmp_path_factory.mktemp("start") / "output.txt")
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        running.wait_for_end()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
class TestThePrintedCommands:
    def test_they_are_the_one_for_events_and_one_for_plain_text(self, started: Session) -> None:
        events, plain = started.curl_commands()
        assert events == (
            'curl -L -H "Accept: application/json" -H "Connection: close" -H "Content-type: application/json" -X POST '
            """-d '{"input": "write a random 100 word paragraph"}' """
            f"http://127.0.0.1:{started.port}/stream --no-buffer --verbose"
        )
        assert '-H "Accept: text/plain"' in plain

    def run(self, command: str) -> tuple[str, list[float]]:
        """Run the command in a shell; returns its output, and the time of each read of it."""
        with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as curl:
            assert curl.stdout is not None
            output, times = b"", []
            while data := os.read(curl.stdout.fileno(), 65536):
                output += data
                times.append(time.monotonic())
        assert curl.returncode == 0
        return output.decode(), times

    def test_the_first_one_shows_events_as_they_are_generated(self, started: Session) -> None:
        text, times = self.run(started.curl_commands()[0])
        assert text.count("data: ") > 50
        assert text.rstrip().rpartition("event: done")[1]
        assert len(times) > 20
        assert times[-1] - times[0] > 0.5  # the model service's own pace is 50 tokens a second

    def test_the_second_one_shows_a_hundred_words_as_they_are_generated(self, started: Session) -> None:
        text, times = self.run(started.curl_commands()[1])
        assert len(text.split()) == 100
        assert "data:" not in text
        assert len(times) > 20
        assert times[-1] - times[0] > 0.5


class TestWhatItPrints:
    def test_the_model_service_and_what_decides_it(self, started: Session) -> None:
        assert (
            f"Model service: simulated, on this machine (port {started.model_port}); no key is sent" in started.output
        )
        (named,) = re.findall("These environment variables override local.settings.json: (.*?)[.] ", started.output)
        assert "AZURE_OPENAI_ENDPOINT" in named.split(", ")
        assert "AZURE_OPENAI_API_KEY" not in named  # empty, as where it is not set

    def test_ready_and_the_chat_page_come_before_the_commands(self, started: Session) -> None:
        ready, page, command = (
            started.output.index(text) for text in ("\nReady.\n", f"http://127.0.0.1:{started.port}/chat\n", "  curl ")
        )
        assert ready < page < command

    def test_a_line_for_each_stream_and_no_other_address(self, started: Session) -> None:
        answer = httpx.post(f"http://127.0.0.1:{started.port}/stream", json={"input": "say: hi"})
        request = answer.headers["x-request-id"]
        deadline = time.monotonic() + 10
        while request not in started.output:
            assert time.monotonic() < deadline, started.output
            time.sleep(0.02)
        assert re.search(
            rf"\d\d:\d\d:\d\d  gpt-5.4-mini  completed  .* 10 \+ 1 tokens  request {request}\n", started.output
        )
        assert set(re.findall(r"127\.0\.0\.1:(\d+)", started.output)) == {str(started.port)}
        assert "Functions.stream" not in started.output


class TestTheEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    async def test_no_process_remains(self, tmp_path: Path, number: signal.Signals) -> None:
        running = Session(tmp_path / "output.txt")
        running.wait_until_ready()
        processes = running.descendants()
        assert len(processes) == 3, "model service, host and worker"
        body = '{"input": "write a random 1000 word paragraph"}'
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-sN", "-d", body, "-H", "Content-Type: application/json"),
            f"http://127.0.0.1:{running.port}/stream",
            stdout=asyncio.subprocess.PIPE,
        )
        assert curl.stdout is not None
        await curl.stdout.readline()  # a stream has started
        running.process.send_signal(number)
        assert running.wait_for_end() == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        await eventually(lambda: not any(is_running(pid) for pid in processes))
        rest = await asyncio.wait_for(curl.stdout.read(), 5)
        assert await curl.wait() != 0 or b"event: error" in rest
        for port in (running.port, running.model_port):
            socket.create_server(("127.0.0.1", port)).close()

    async def test_the_end_of_one_process_ends_the_others(self, tmp_path: Path) -> None:
        running = Session(tmp_path / "output.txt")
        running.wait_until_ready()
        processes = running.descendants()
        model_service = next(pid for pid in processes if b"model_service" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(model_service, signal.SIGKILL)
        assert running.wait_for_end() == 1
        assert "The model service ended by itself" in running.output
        await eventually(lambda: not any(is_running(pid) for pid in processes))


class TestPorts:
    def test_a_taken_port_is_an_error_with_a_remedy(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            rejected = Session(tmp_path / "output.txt", port=port)
            assert rejected.wait_for_end() == 1
        assert f"Port {port} is taken" in rejected.output
        assert "make start PORT=" in rejected.output

    async def test_a_second_start_has_a_model_service_of_its_own(self, started: Session, tmp_path: Path) -> None:
        second = Session(tmp_path / "output.txt", "--verbose", model_port=started.model_port)
        try:
            await asyncio.to_thread(second.wait_until_ready)
            found = re.search(r"simulated, on this machine \(port (\d+)\)", second.output)
            assert found is not None
            assert int(found[1]) not in (started.model_port, second.port)
            assert "Executed 'Functions.ready' (Succeeded" in second.output
        finally:
            second.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(second.wait_for_end) == 0
        socket.create_connection(("127.0.0.1", started.model_port)).close()  # the first session's is still running

    def test_a_chosen_model_service_that_runs_is_used(self, started: Session, tmp_path: Path) -> None:
        option = f"--model-service-port={started.model_port}"
        second = Session(tmp_path / "output.txt", option)
        try:
            second.wait_until_ready()
            assert f"A model service runs on port {started.model_port} already" in second.output
        finally:
            second.process.send_signal(signal.SIGINT)
            assert second.wait_for_end() == 0
        socket.create_connection(("127.0.0.1", started.model_port)).close()  # the first session's is still running

    async def test_another_server_on_the_chosen_port_is_an_error(self, tmp_path: Path) -> None:
        async def answer(_request: web.BaseRequest) -> web.Response:
            return web.json_response({"hello": "world"})

        other = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
        port = other.sockets[0].getsockname()[1]
        async with other:
            rejected = Session(tmp_path / "output.txt", f"--model-service-port={port}", model_port=port)
            assert await asyncio.to_thread(rejected.wait_for_end) == 1
        assert f"Port {port} is taken by something that is not the model service" in rejected.output


CORE_TOOLS = """#!{python}
import http.server, os, sys
print("func was called with", *sys.argv[1:], flush=True)
print("its python is", os.popen("command -v python").read().strip(), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
"""


def test_core_tools_are_used_where_they_are_installed(tmp_path: Path) -> None:
    func = tmp_path / "bin" / "func"
    func.parent.mkdir()
    func.write_text(CORE_TOOLS.format(python=sys.executable))
    func.chmod(0o755)
    running = Session(tmp_path / "output.txt", path=func.parent)
    try:
        running.wait_until_ready()
        assert f"func was called with start --port {running.port}" in running.output
        assert f"its python is {Path(sys.executable).parent}/python" in running.output
        assert "Listening on" not in running.output
    finally:
        running.process.send_signal(signal.SIGINT)
        assert running.wait_for_end() == 0


def words(text: str) -> str:
    """The text with one blank between two words."""
    return " ".join(text.replace("\\\n", " ").split())


class TestMake:
    def dry(self, *arguments: str, environ: dict[str, str] | None = None) -> str:
        made = subprocess.run(
            ["make", "-n", *arguments],
            cwd=ROOT,
            env=bare_environment(environ),
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout

    def test_the_port_is_an_argument(self) -> None:
        assert words(self.dry("start", "PORT=8080")).endswith('python -m local --port "8080"')

    def test_other_options(self) -> None:
        made = self.dry(
            *("start", "MODEL_PORT=7000", "MODEL=azure", "ENDPOINT=https://x", "DEPLOYMENTS=a,b"),
            *("FUNC=no", "OPEN=no", "VERBOSE=1"),
        )
        assert words(made).endswith(
            'python -m local --model-service-port "7000" --model "azure" --endpoint "https://x" --deployments "a,b" '
            "--no-func --no-open --verbose"
        )

    def test_exported_variables_of_the_same_names_are_no_options(self) -> None:
        exported = {"PORT": "1", "MODEL": "gpt", "ENDPOINT": "x", "DEPLOYMENTS": "y", "FUNC": "no", "VERBOSE": "1"}
        assert words(self.dry("start", environ=exported)).endswith("python -m local")

    def test_windows_is_sent_to_wsl(self) -> None:
        made = subprocess.run(
            ["make", "-n", "start", "OS=Windows_NT"], cwd=ROOT, env=bare_environment(), capture_output=True, text=True
        )
        assert made.returncode == 2
        assert "On Windows, run it in WSL" in made.stderr

    def test_help_lists_every_target(self) -> None:
        listed = subprocess.run(["make"], cwd=ROOT, env=bare_environment(), capture_output=True, text=True, check=True)
        targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert targets is not None
        for target in targets[1].split():
            assert f"make {target} " in listed.stdout

    def test_without_uv_and_python_3_13_the_error_names_what_to_install(self, tmp_path: Path) -> None:
        folder = tmp_path / "clone"
        folder.mkdir()
        shutil.copy(ROOT / "Makefile", folder)
        (tmp_path / "bin").mkdir()
        for tool in ("bash", "make"):
            (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
        (tmp_path / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")  # a Python of another version
        (tmp_path / "bin" / "python3").chmod(0o755)
        made = subprocess.run(
            ["make", ".venv/bin/python"],
            cwd=folder,
            env={"PATH": str(tmp_path / "bin")},
            capture_output=True,
            text=True,
        )
        assert made.returncode == 2
        assert "Python 3.13 was not found. Install uv" in made.stderr
