"""A forked host and its worker are as those that are started by their commands."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.fork_server import ForkedProcess, ForkServer
from tests.end_to_end.hosting import ROOT, HostedApp, bare_environment, eventually, own_host

pytestmark = own_host("hosts that are forked")

PROCESS_APP = Path(__file__).with_name("process_app")
OPTIONS = ["--port=0", f"--script-root={PROCESS_APP}", "--settings=/nowhere"]

# 32 and 33, which the C library keeps for itself: what they are set to is inherited from whoever started the tests.
LIBRARY_SIGNALS = 1 << 31 | 1 << 32


@pytest.fixture(scope="module")
def started_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedApp]:
    """The app that describes its process, started by the command."""
    with HostedApp(tmp_path_factory.mktemp("host"), script_root=PROCESS_APP, env={"SOME": "value"}) as app:
        yield app


@pytest.fixture(scope="module")
def forked_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    return functions_app(script_root=PROCESS_APP, env={"SOME": "value"})


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer(bare_environment())
    yield server
    server.close()


def get(app: HostedApp, path: str) -> httpx.Response:
    return httpx.get(f"{app.url}/{path}", timeout=60)  # a second worker takes its time on a busy machine


def process(app: HostedApp) -> dict[str, Any]:
    return dict(get(app, "process").json())


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def start(server: ForkServer, output: Path, **environment: str) -> ForkedProcess | None:
    with output.open("wb") as file:
        return server.start(
            "local.functions_host",
            OPTIONS,
            environment=bare_environment(environment),
            folder=ROOT,
            output=file.fileno(),
        )


def test_a_forked_worker_is_as_one_that_the_command_starts(started_app: HostedApp, forked_app: HostedApp) -> None:
    assert isinstance(started_app.process, subprocess.Popen)
    assert isinstance(forked_app.process, ForkedProcess)
    assert "worker_process.py" in str(command_line(started_app.worker_pid))
    assert "fork_server.py" in str(command_line(forked_app.worker_pid))
    assert process(forked_app) == process(started_app)


def test_a_forked_host_is_as_one_that_the_command_starts(started_app: HostedApp, forked_app: HostedApp) -> None:
    def state(app: HostedApp) -> dict[str, Any]:
        folder = Path(f"/proc/{app.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "folder": (folder / "cwd").readlink(),
            "input": (folder / "fd/0").readlink(),
            "files": len(list((folder / "fd").iterdir())),
            "limits": (folder / "limits").read_text(),
            "session": os.getsid(app.process.pid) == app.process.pid,
            "signals": [int(status[name], 16) & ~LIBRARY_SIGNALS for name in ("SigBlk", "SigIgn", "SigCgt")],
            "threads": status["Threads"],
        }

    assert state(forked_app) == state(started_app)


def test_a_second_worker_is_started_by_the_command(started_app: HostedApp, forked_app: HostedApp) -> None:
    first = forked_app.worker_pid
    assert get(forked_app, "slow").status_code == 502
    assert process(forked_app) == process(started_app)
    assert forked_app.worker_pid != first
    assert "worker_process.py" in str(command_line(forked_app.worker_pid))


@pytest.mark.parametrize("name", ["AIOHTTP_NO_EXTENSIONS", "OPENAI_LOG", "PYTHONHASHSEED", "SSL_CERT_FILE"])
def test_what_a_package_or_the_interpreter_has_read_is_not_forked(
    fork_server: ForkServer, tmp_path: Path, name: str
) -> None:
    assert start(fork_server, tmp_path / "output.txt", **{name: "1"}) is None


def test_a_worker_with_such_a_setting_is_started_by_the_command(functions_app: Callable[..., HostedApp]) -> None:
    app = functions_app(script_root=PROCESS_APP, settings={"Values": {"OPENAI_LOG": "info"}})
    assert isinstance(app.process, ForkedProcess)
    assert "worker_process.py" in str(command_line(app.worker_pid))
    assert process(app)["environment"]["OPENAI_LOG"] == "info"


def test_exit_codes_are_those_of_the_process(fork_server: ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "output.txt").open("wb") as file:
        failed = fork_server.start(
            "local.functions_host", ["--port=x"], environment=bare_environment(), folder=ROOT, output=file.fileno()
        )
    assert failed is not None
    assert failed.wait(10) == 2
    assert "invalid int value" in (tmp_path / "output.txt").read_text()
    killed = start(fork_server, tmp_path / "output.txt")
    assert killed is not None
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0)
    killed.kill()
    assert killed.wait(10) == -signal.SIGKILL


async def test_nothing_outlives_the_tests_process(tmp_path: Path) -> None:
    """It ends without closing the fork server, as one that is killed does."""
    script = f"""
import os
from pathlib import Path
from tests.end_to_end.conftest import Hosts
app = Hosts(lambda: Path({str(tmp_path)!r}))(script_root=Path({str(PROCESS_APP)!r}))
print(app.process.pid, app.worker_pid, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    for pid in map(int, done.stdout.split()):
        await eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())


def test_the_end_of_the_fork_server_is_an_error(tmp_path: Path) -> None:
    server = ForkServer(bare_environment({"PYTHONHOME": "/nowhere"}))  # the interpreter ends at once
    with pytest.raises(ConnectionError):
        start(server, tmp_path / "output.txt")
    server.close()
