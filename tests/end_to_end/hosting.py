"""A function app hosted in a process of its own, and what a test asks of it."""

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_APP = Path(__file__).with_name("sample_app")

# What a process needs of this machine; none of a developer's own settings reach the app under test.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")


def bare_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a process under test: this machine's bare needs and `environment`."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | dict(environment or {})


class HostedApp:
    """A running `local.functions_host`.

    `url` has no slash at its end. `output` is all that host and worker said until now; the worker's lines begin with
    `[worker] `. Leaving the context, or `stop`, ends it and fails the test when it had ended before.
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
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = key
        self.expected_to_end = False
        self._log = folder / "output.txt"
        settings_file = folder / "local.settings.json"
        settings_file.write_text(json.dumps(settings or {}))
        command = [sys.executable, "-m", "local.functions_host", "--port=0", f"--script-root={script_root}"]
        command += [f"--settings={settings_file}", *options]
        if key is not None:
            command += ["--enable-auth", f"--function-key={key}"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
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
        """All that the host and its worker printed until now."""
        return self._log.read_text(errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        """Host name and port, for a socket of the test's own."""
        parts = urlsplit(self.url)
        return cast(str, parts.hostname), cast(int, parts.port)

    @property
    def worker_pid(self) -> int:
        """The process id of the worker, where the app itself runs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = children.read_text().split()
        assert len(pids) == 1, f"the host has {len(pids)} children"
        return int(pids[0])

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of this app that brings the key along; `options` are httpx's."""
        headers = {"x-functions-key": self.key} if self.key is not None else {}
        headers |= options.pop("headers", {})
        options.setdefault("timeout", 20)
        options.setdefault("verify", False)  # no TLS here, and reading the authorities takes longer than a request
        return httpx.AsyncClient(base_url=self.url, headers=headers, **options)

    def wait_for(self, text: str, *, seconds: float = 10) -> str:
        """The first line of output that begins with `text`; fails when the host ends before it comes."""
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

    def stop(self) -> int:
        """End it as Ctrl-C does; returns its exit code."""
        if (code := self.process.poll()) is not None:
            assert self.expected_to_end, f"the host had ended with exit code {code}:\n{self.output}"
            return code
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the host did not end within 10 s of SIGINT:\n{self.output}") from None


async def eventually[T](ask: Callable[[], Awaitable[T] | T], *, within: float = 2.0) -> T:
    """Ask until the answer is truthy and return it; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = ask()
        value = cast(T, await answer if inspect.isawaitable(answer) else answer)
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: the last answer was {value!r}")
        await asyncio.sleep(0.01)
