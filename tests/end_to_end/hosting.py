"""A function app hosted in a process of its own, for end-to-end tests.

The environment variable `FUNCTIONS_HOST_COMMAND` is the command of another host to test the app behind, in shell words:
one that takes the options of `local.functions_host`, prints the same lines and has its `GET /_state`. Tests of what
such a host may lack are marked `own_host`.
"""

import asyncio
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httpx
import pytest

from tests.end_to_end.fork_server import ForkedProcess, ForkServer

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_APP = Path(__file__).with_name("sample_app")

_OWN_HOST = "local.functions_host"
HOST_COMMAND = shlex.split(os.environ.get("FUNCTIONS_HOST_COMMAND", ""))


def own_host(reason: str) -> pytest.MarkDecorator:
    """Skips a test of what only `local.functions_host` has, behind another host."""
    return pytest.mark.skipif(bool(HOST_COMMAND), reason=f"another host: {reason}")


# Environment variables that a process needs; a developer's own settings must not reach the app under test.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")


def bare_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a process under test: what every process needs, and `environment`."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | dict(environment or {})


class HostedApp:
    """A running `local.functions_host`, or the host that `FUNCTIONS_HOST_COMMAND` names.

    `url` has no trailing slash. `output` is all that the host and its worker have printed; lines of the worker begin
    with `[worker] `. `stop`, or leaving the context, ends it, and fails the test if it had ended before.
    """

    def __init__(
        self,
        folder: Path,
        *,
        script_root: Path = ROOT,
        env: Mapping[str, str] | None = None,
        key: str | None = None,
        settings: Mapping[str, Any] | None = None,
        options: tuple[str, ...] = (),
        command: Sequence[str] = (),
        fork_server: ForkServer | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = key
        self.expected_to_end = False  # a test sets it that ends the process itself
        self._interrupted = False
        self._log = folder / "output.txt"
        self._records: dict[str, dict[str, Any]] = {}
        self._records_read = 0  # bytes of the output
        settings_file = folder / "local.settings.json"
        settings_file.write_text(json.dumps(settings or {}))
        arguments = ["--port=0", f"--script-root={script_root}", f"--settings={settings_file}", *options]
        if key is not None:
            arguments += ["--enable-auth", f"--function-key={key}"]
        forked = None
        with self._log.open("wb") as log:
            if fork_server is not None and not command and not HOST_COMMAND:
                forked = fork_server.start(
                    _OWN_HOST, arguments, environment=bare_environment(env), folder=ROOT, output=log.fileno()
                )
            self.process: subprocess.Popen[bytes] | ForkedProcess = forked or subprocess.Popen(
                [*(command or HOST_COMMAND or (sys.executable, "-m", _OWN_HOST)), *arguments],
                cwd=ROOT,
                env=bare_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.url = self.wait_for("Listening on ", seconds=60).removeprefix("Listening on ")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """All that the host and its worker have printed."""
        return self._log.read_text(errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        """Host name and port, for a socket that the test opens itself."""
        parts = urlsplit(self.url)
        return cast(str, parts.hostname), cast(int, parts.port)

    @property
    def worker_pid(self) -> int:
        """The process id of the worker, in which the app runs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = children.read_text().split()
        assert len(pids) == 1, f"the host has {len(pids)} children"
        return int(pids[0])

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of this app that sends the function key; `options` are httpx's."""
        headers = {"x-functions-key": self.key} if self.key is not None else {}
        headers |= options.pop("headers", {})
        options.setdefault("timeout", 30)
        options.setdefault(
            "verify", False
        )  # there is no TLS here, and loading the CA certificates takes longer than a request
        return httpx.AsyncClient(base_url=self.url, headers=headers, **options)

    async def open_invocations(self) -> int:
        """The number of invocations that are open in the host; if it can't tell, by the lines that it has printed."""
        async with httpx.AsyncClient(timeout=30, verify=False) as client:
            response = await client.get(f"{self.url}/_state")
        if response.status_code == 200:
            return int(response.json()["open"])
        output = self.output
        return output.count("Executing 'Functions.") - output.count("Executed 'Functions.")

    def wait_for(self, text: str, *, seconds: float = 30) -> str:
        """The first line of output that begins with `text`; fails if the host ends before there is one."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll()
            for line in self.output.splitlines(keepends=True):
                if line.startswith(text) and line.endswith("\n"):
                    return line.rstrip("\n")
            if ended is not None:
                raise AssertionError(f"the host ended with exit code {ended}:\n{self.output}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no line {text!r} within {seconds} s:\n{self.output}")
            time.sleep(0.02)

    def stream_records(self) -> dict[str, dict[str, Any]]:
        """The records of the streams that the app has printed, by request id."""
        with self._log.open("rb") as log:
            log.seek(self._records_read)  # what was read before is not read again, by a thousand tests
            complete = log.read().rpartition(b"\n")[0]
        if complete:
            self._records_read += len(complete) + 1
        start = b'[worker] {"event":"stream"'
        for line in complete.split(b"\n"):
            if line.startswith(start):
                record = json.loads(line.removeprefix(b"[worker] "))
                self._records[record["relay.request_id"]] = record
        return dict(self._records)

    def interrupt(self) -> None:
        """Tell it to stop, as Ctrl-C does; returns at once. Fails the test if it has ended before."""
        code = self.process.poll()
        if code is None and not self._interrupted:
            self.process.send_signal(signal.SIGINT)
        elif code is not None:
            assert self.expected_to_end or self._interrupted, f"the host had ended with code {code}:\n{self.output}"
        self._interrupted = True

    def stop(self) -> int:
        """Stop it and wait for its end; returns its exit code."""
        self.interrupt()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the host did not end within 20 s of SIGINT:\n{self.output}") from None


async def eventually[T](condition: Callable[[], Awaitable[T | None] | T | None], *, within: float = 15.0) -> T:
    """Call `condition` until its result is truthy, and return the result; fails after `within` seconds.

    The default is generous, for a busy machine: pass `within` where the time is what is tested.
    """
    deadline = time.monotonic() + within
    while True:
        result = condition()
        value = cast(T | None, await result if inspect.isawaitable(result) else result)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: the last result was {value!r}")
        await asyncio.sleep(0.01)
