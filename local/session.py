"""All processes of `make start`: the model service where the settings point at it, and the app's host.

The host is `func start` where Azure Functions Core Tools are installed, and `local.functions_host` where they are not.
Ctrl-C ends all of them, and so does the end of any one.
"""

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from local.functions_host import HostError, LocalSettings

ROOT = Path(__file__).resolve().parents[1]
_ADDRESS = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START_SECONDS = 120.0
_GRACE_SECONDS = 5.0

type _Check = Callable[[int, bytes], bool]  # is it the expected response, by its status and body?


class _ChildProcess:
    """One process in a process group of its own, so that Ctrl-C reaches it and its children through this one only."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.ended = asyncio.create_task(process.wait())

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Session:
    """One run of `make start`, from its start to its end."""

    def __init__(self, port: int, model_service_port: int, settings: LocalSettings) -> None:
        self.port = port
        self.model_service_port = model_service_port
        self.app_settings: Mapping[str, str] = {**settings.values, **os.environ}
        self.children: list[_ChildProcess] = []
        self.stopped = asyncio.Event()

    @property
    def url(self) -> str:
        """The app's own address."""
        return f"http://{_ADDRESS}:{self.port}"

    async def run(self) -> int:
        """Start everything, wait for the end, end everything; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.stopped.set)
        try:
            if self.port == self.model_service_port and self._needs_model_service():
                raise HostError(
                    f"Port {self.port} is the model service's. Choose another one: make start PORT={self.port + 10}"
                )
            if _is_taken(self.port):
                raise HostError(
                    f"Port {self.port} is taken by another process. Choose another one: "
                    f"make start PORT={self.port + 10}"
                )
            if self._needs_model_service():
                await self._start_model_service()
            await self._start_host()
            if await self._responds(f"{self.url}/health", _is_ok):
                self._print_invitation()
                await self._first_end()
            if self.stopped.is_set():
                print("\nStopped.", flush=True)
                return 0
            for child in self.children:
                if child.ended.done():
                    code = child.ended.result()
                    print(f"\n{child.name} ended by itself (exit code {code}); all is stopped.", file=sys.stderr)
            return 1
        finally:
            await self._end_all()

    def _needs_model_service(self) -> bool:
        settings = (self.app_settings.get(name, "") for name in ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_BACKENDS"))
        return any(
            urlsplit(address).netloc
            in (f"{_ADDRESS}:{self.model_service_port}", f"localhost:{self.model_service_port}")
            for address in re.findall(r"https?://[^\s\"',]+", " ".join(settings))
        )

    async def _start_model_service(self) -> None:
        url = f"http://{_ADDRESS}:{self.model_service_port}/control/state"
        if _is_taken(self.model_service_port):
            if not await _response_passes(url, _is_model_service):
                raise HostError(
                    f"Port {self.model_service_port} is taken by something that is not the model service of this "
                    "project. End it, or set AZURE_OPENAI_ENDPOINT in local.settings.json to the address of a model."
                )
            print(
                f"A model service runs on port {self.model_service_port} already and is used; it keeps running when "
                "this ends.",
                flush=True,
            )
            return
        port = str(self.model_service_port)
        await self._start("The model service", sys.executable, "-m", "local.model_service", "--port", port)
        await self._responds(url, _is_model_service)

    async def _start_host(self) -> None:
        if core_tools := shutil.which("func"):
            print("Core Tools are installed: func start", flush=True)
            await self._start("func start", core_tools, "start", "--port", str(self.port))
        else:
            await self._start("The host", sys.executable, "-m", "local.functions_host", "--port", str(self.port))

    async def _start(self, name: str, *command: str) -> None:
        if self.stopped.is_set() or any(child.ended.done() for child in self.children):
            return
        # Core Tools take the Python of the active environment for their worker.
        folder = str(Path(sys.executable).parent)
        path = f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix},
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with(os.getpid()),
        )
        self.children.append(_ChildProcess(name, process))

    async def _responds(self, url: str, check: _Check) -> bool:
        """Wait until the address gives the expected response; False when the session ends before."""
        end = asyncio.create_task(self._first_end())
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not end.done():
                    if await _response_passes(url, check):
                        return True
                    await asyncio.wait((end,), timeout=0.1)
        except TimeoutError:
            raise HostError(f"{url} did not answer within {_START_SECONDS:.0f} s.") from None
        finally:
            end.cancel()
        return False

    async def _first_end(self) -> None:
        """Wait for Ctrl-C or the end of any process."""
        stop = asyncio.create_task(self.stopped.wait())
        await asyncio.wait((stop, *(child.ended for child in self.children)), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()

    def _print_invitation(self) -> None:
        body = """-d '{"input": "write a random 100 word paragraph"}'"""
        print(
            "\nReady. Paste one of these into another terminal; Ctrl-C here ends everything.\n\n"
            "The events, with all that curl can show:\n\n"
            '  curl -L -H "Accept: application/json" -H "Connection: close" -H "Content-type: application/json" '
            f"-X POST {body} {self.url}/stream --no-buffer --verbose\n\n"
            "The text and nothing else:\n\n"
            '  curl --no-buffer -H "Accept: text/plain" -H "Content-Type: application/json" '
            f"{body} {self.url}/stream\n\n"
            f"Or open the chat page: {self.url}/chat\n",
            flush=True,
        )

    async def _end_all(self) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):
            running = [child for child in self.children if not child.ended.done()]
            if not running:
                return
            for child in running:
                child.signal(number)
            await asyncio.wait([child.ended for child in running], timeout=_GRACE_SECONDS)


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: where the kernel can (Linux), ask to end with its parent."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def request_signal() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return request_signal


def _is_ok(status: int, _body: bytes) -> bool:
    return status == 200


def _is_model_service(status: int, body: bytes) -> bool:
    try:
        document = json.loads(body)
    except ValueError:
        return False
    return status == 200 and isinstance(document, dict) and "tokens_per_second" in document


async def _response_passes(url: str, check: _Check) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(url) as response,
        ):
            return check(response.status, await response.read())
    except (aiohttp.ClientError, TimeoutError):
        return False


def _is_taken(port: int) -> bool:
    try:
        socket.create_server((_ADDRESS, port)).close()
    except PermissionError:
        raise HostError(f"Port {port} needs privileges; take one from 1024 up: make start PORT=8080") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return True
    return False
