"""All processes of `make start`: the model service where the settings point at the simulated one, and the app's host.

The host is `func start` where Azure Functions Core Tools are installed, and `local.functions_host` where they are not.
Ctrl-C ends all of them, and so does the end of any one.
"""

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from local.functions_host import HostError
from local.upstream import Upstream

ROOT = Path(__file__).resolve().parents[1]
_ADDRESS = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START_SECONDS = 120.0
_READY_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_FUNC = "func start"

type _Check = Callable[[int, bytes], bool]  # is it the expected response, by its status and body?


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    `model_service_port`: where the simulated model service listens; None: where the settings say, or on a free port if
    that one is taken. `core_tools`: use Core Tools where they are installed. `verbose`: print what Core Tools would
    print about each invocation, and the records as they are. `open_page`: open the chat page where a desktop is.
    """

    port: int
    model_service_port: int | None = None
    core_tools: bool = True
    verbose: bool = False
    open_page: bool = True


class _ChildProcess:
    """One process in a process group of its own, so that Ctrl-C reaches it and its children through this one only."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, stop: signal.Signals) -> None:
        self.name = name
        self.process = process
        self.stop = stop
        self.ended = asyncio.create_task(process.wait())

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Session:
    """One run of `make start`, from its start to its end."""

    def __init__(self, options: Options, values: Mapping[str, str], environ: Mapping[str, str]) -> None:
        """`values` are those of local.settings.json, which variables of the environment override."""
        self.options = options
        self.upstream = Upstream(values, environ)
        self.environ = dict(environ)
        self.children: list[_ChildProcess] = []
        self.stopped = asyncio.Event()

    @property
    def url(self) -> str:
        """The app's own address."""
        return f"http://{_ADDRESS}:{self.options.port}"

    async def run(self) -> int:
        """Start everything, wait for the end, end everything; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.stopped.set)
        try:
            if _is_taken(self.options.port):
                raise HostError(
                    f"Port {self.options.port} is taken by another process. Choose another one: "
                    f"make start PORT={self.options.port + 10}"
                )
            for port in self.upstream.simulated_ports():
                await self._start_model_service(port)
            print("\n".join(self.upstream.description()), flush=True)
            await self._start_host()
            if await self._responds(f"{self.url}/health", _is_ok):
                print("\n" + await self._readiness(), flush=True)
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

    async def _start_model_service(self, configured: int) -> None:
        """Start the simulated model service that the settings expect on this port, if need be on another one."""
        port = self.options.model_service_port or configured
        if port == self.options.port:
            if self.options.model_service_port:
                raise HostError(f"Port {port} is the app's. Choose another one: make start MODEL_PORT={port + 1}")
            port = _free_port()
        elif _is_taken(port):
            if self.options.model_service_port:
                await self._use_running_model_service(port)
                return
            port = _free_port()
        if port != configured:
            self.upstream.move(configured, port)
        quiet = () if self.options.verbose else ("--quiet",)
        await self._start("The model service", sys.executable, "-m", "local.model_service", "--port", str(port), *quiet)
        await self._responds(_state_url(port), _is_model_service)

    async def _use_running_model_service(self, port: int) -> None:
        if not await _response_passes(_state_url(port), _is_model_service):
            raise HostError(
                f"Port {port} is taken by something that is not the model service of this project. "
                f"Choose another one: make start MODEL_PORT={port + 10}"
            )
        self.upstream.move_all(port)
        print(f"A model service runs on port {port} already and is used; it keeps running when this ends.", flush=True)

    async def _start_host(self) -> None:
        port = str(self.options.port)
        core_tools = shutil.which("func") if self.options.core_tools else None
        if core_tools:
            print("Core Tools are installed: func start (make start FUNC=no uses the built-in host)", flush=True)
            await self._start(_FUNC, core_tools, "start", "--port", port)
            return
        readable = () if self.options.verbose else ("--readable",)
        await self._start("The host", sys.executable, "-m", "local.functions_host", "--port", port, *readable)

    async def _start(self, name: str, *command: str) -> None:
        if self.stopped.is_set() or any(child.ended.done() for child in self.children):
            return
        # Core Tools take the Python of the active environment for their worker.
        folder = str(Path(sys.executable).parent)
        path = f"{folder}{os.pathsep}{self.environ.get('PATH', os.defpath)}"
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**self.environ, **self.upstream.moved, "PATH": path, "VIRTUAL_ENV": sys.prefix},
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,
            preexec_fn=_die_with(os.getpid()),
        )
        # A Python program that still imports its modules ends by SIGTERM without a traceback; Core Tools expect Ctrl-C.
        self.children.append(_ChildProcess(name, process, signal.SIGINT if name == _FUNC else signal.SIGTERM))

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

    async def _readiness(self) -> str:
        """`Ready.`, or what `GET /ready` says is wrong, and the remedy."""
        asking = asyncio.create_task(_get(f"{self.url}/ready", _READY_SECONDS))
        end = asyncio.create_task(self._first_end())
        await asyncio.wait((asking, end), return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if not asking.done():
            asking.cancel()
            return "Not ready."
        response = asking.result()
        return readiness_text(None if response is None else response[1])

    def _print_invitation(self) -> None:
        body = """-d '{"input": "write a random 100 word paragraph"}'"""
        print(
            f"The chat page: {self.url}/chat\n\n"
            "Or paste one of these into another terminal; Ctrl-C here ends everything.\n\n"
            "The events, with all that curl can show:\n\n"
            '  curl -L -H "Accept: application/json" -H "Connection: close" -H "Content-type: application/json" '
            f"-X POST {body} {self.url}/stream --no-buffer --verbose\n\n"
            "The text and nothing else:\n\n"
            '  curl --no-buffer -H "Accept: text/plain" -H "Content-Type: application/json" '
            f"{body} {self.url}/stream\n",
            flush=True,
        )
        if self.options.open_page and has_desktop(self.environ, sys.platform, terminal=sys.stdout.isatty()):
            webbrowser.open(f"{self.url}/chat")

    async def _end_all(self) -> None:
        for kill in (False, True):
            running = [child for child in self.children if not child.ended.done()]
            if not running:
                return
            for child in running:
                child.signal(signal.SIGKILL if kill else child.stop)
            await asyncio.wait([child.ended for child in running], timeout=_GRACE_SECONDS)


def readiness_text(document: bytes | None) -> str:
    """What a response of `GET /ready` means to a person; None: there was no response."""
    try:
        found = json.loads(document or b"")
    except ValueError:
        return "Not ready: GET /ready gave no answer that can be read."
    if found.get("status") == "ready":
        return "Ready."
    problems = [
        f"  {error['field']}: {error['message']}"
        for error in found.get("errors", ())
        if {"field", "message"} <= set(error)
    ]
    for backend in found.get("backends", ()):
        if not backend.get("ready"):
            problems += [f"  {backend.get('backend')}: {backend.get('reason')}", f"    {backend.get('remedy')}"]
    start = "Ready, except for:" if found.get("status") == "degraded" else "The app runs, but it is NOT READY:"
    return "\n".join([start, *(problems or [f"  {found.get('detail', 'see GET /ready')}"])]) + "\n"


def has_desktop(environ: Mapping[str, str], platform: str, *, terminal: bool) -> bool:
    """Whether a browser window would appear before the person who has started this."""
    if not terminal or any(name in environ for name in ("CI", "SSH_CONNECTION", "SSH_TTY")):
        return False
    return platform == "darwin" or any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: where the kernel can (Linux), ask to end with its parent."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def request_signal() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return request_signal


def _state_url(port: int) -> str:
    return f"http://{_ADDRESS}:{port}/control/state"


def _is_ok(status: int, _body: bytes) -> bool:
    return status == 200


def _is_model_service(status: int, body: bytes) -> bool:
    try:
        document = json.loads(body)
    except ValueError:
        return False
    return status == 200 and isinstance(document, dict) and "tokens_per_second" in document


async def _response_passes(url: str, check: _Check) -> bool:
    response = await _get(url, 5)
    return response is not None and check(*response)


async def _get(url: str, seconds: float) -> tuple[int, bytes] | None:
    """The status and the body of the response; None where there is none."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(url) as response,
        ):
            return response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError):
        return None


def _free_port() -> int:
    with socket.create_server((_ADDRESS, 0)) as listener:
        return int(listener.getsockname()[1])


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
