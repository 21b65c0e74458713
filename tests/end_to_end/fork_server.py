"""Starts hosts and their workers without a second of imports for each of them.

The fork server is a process that has imported the packages of the host and the worker, and nothing of this repository.
It forks a process for each host, which first forks the worker that it will need: both copies are as a new interpreter
is, except for the modules that are loaded. Then they run what the command line would have run, with its arguments,
environment, folder and output. The worker waits for its own until the host starts it; a second worker of a host, after
functionTimeout, is started by the host's command.

A package may read an environment variable when it is imported, for the last time. Which ones do is recorded, and what
is to have another value of one of them, or of those that the interpreter or a C library reads, is not forked: there
`ForkServer.start` returns None, and the host starts its worker by the command.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import re
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

# What host and worker import before the app is ready; most of it are the worker's.
_PACKAGES = (
    "aiohttp",
    "azure.functions",
    "azure_functions_runtime",
    "azurefunctions.extensions.http.fastapi",
    "httpx2",
    "openai",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "uvloop",
)
_COMMAND = (sys.executable, "-P", __file__)
# Read by the interpreter and by C libraries. Every worker gets PYTHONUNBUFFERED, and so does the fork server.
_READ_IN_C = ("LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "SSL_CERT_", "TZ", "UV_")
_INTERPRETER = ("PYTHON_COLORS", "PYTHON_CPU_COUNT", "PYTHON_FROZEN_MODULES", "PYTHON_GIL", "PYTHON_PERF_JIT_SUPPORT")
_PYTHON = re.compile("PYTHON[A-Z]")
# Read by the openai package as a default of its global client, which the app does not have.
_READ_IN_VAIN = frozenset(("AZURE_OPENAI_ENDPOINT",))
_LENGTH_BYTES = 8
_RAISED = 512
_MOST_DESCRIPTORS = 1 << 20


class ForkedProcess:
    """A process that the fork server has started; its members are those of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status  # a pipe, on which the fork server writes how the process has ended

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            poll = select.poll()  # not select(), which is for descriptors below 1,024
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(os.read(self._status, 16) or -signal.SIGKILL)
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The fork server, from the side of the tests; `close` ends it, and all that it started."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [*_COMMAND, str(other.fileno())],
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )

    def start(
        self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, output: int
    ) -> ForkedProcess | None:
        """Start `python -m MODULE ARGUMENTS` with stdout and stderr to the file descriptor `output`.

        None if it would find the packages imported in another environment than its own.
        """
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
        }
        status, write_status = os.pipe()
        try:
            with self._lock:
                _send(self._socket, request, (output, write_status))
                answer = _receive(self._socket)
        finally:
            os.close(write_status)
        if not answer:
            os.close(status)
            raise ConnectionError("the fork server has ended")
        pid = json.loads(answer)
        if pid is None:
            os.close(status)
            return None
        return ForkedProcess(pid, status)

    def close(self) -> None:
        """End it, and all processes that it started."""
        self._socket.close()
        self._process.wait(20)


def _send(channel: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    content = json.dumps(message).encode()
    socket.send_fds(channel, [len(content).to_bytes(_LENGTH_BYTES)], descriptors)
    channel.sendall(content)


def _receive(channel: socket.socket, descriptors: list[int] | None = None) -> bytes:
    """The next message, empty at the end; its file descriptors are appended to the list."""
    head, received, _, _ = socket.recv_fds(channel, _LENGTH_BYTES, 16)
    if descriptors is not None:
        descriptors += received
    remaining, pieces = int.from_bytes(head), []
    while remaining:
        pieces.append(channel.recv(remaining))
        remaining -= len(pieces[-1])
        if not pieces[-1]:
            return b""
    return b"".join(pieces)


class _RecordingEnviron(os._Environ[str]):
    """`os.environ`, while packages are imported: it notes which variables they ask for."""

    names: ClassVar[set[str]] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("a package reads the whole environment when it is imported")


class _Imports:
    """The imported packages, and the environment that they have seen."""

    def __init__(self) -> None:
        os.environ.__class__ = _RecordingEnviron
        for name in _PACKAGES:
            importlib.import_module(name)
        os.environ.__class__ = os._Environ
        assert threading.active_count() == 1, "a package starts a thread when it is imported"
        self._environment = dict(os.environ)
        self._read = _RecordingEnviron.names - _READ_IN_VAIN

    def would_be_the_same(self, environment: Mapping[str, str]) -> bool:
        """Whether the packages and the interpreter would be the same in this environment."""
        return not any(
            name in self._read or name in _INTERPRETER or name.startswith(_READ_IN_C) or _PYTHON.match(name)
            for name, _ in environment.items() ^ self._environment.items()
            if name != "PYTHONUNBUFFERED"
        )


def _serve(control: socket.socket, imports: _Imports) -> dict[str, Any]:
    """Fork a process for each request. Returns the request in that process, and never in the fork server itself."""
    running: dict[int, tuple[int, int]] = {}  # by its pidfd: process id and the pipe for its status
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in running:
                poll.unregister(descriptor)
                pid, status = running.pop(descriptor)
                _, result = os.waitpid(pid, 0)
                with contextlib.suppress(BrokenPipeError):  # the tests do not wait for it any more
                    os.write(status, str(os.waitstatus_to_exitcode(result)).encode())
                os.close(status)
                os.close(descriptor)
                continue
            descriptors: list[int] = []
            content = _receive(control, descriptors)
            if not content:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            request: dict[str, Any] = json.loads(content)
            if not imports.would_be_the_same(request["environment"]):
                for received in descriptors:
                    os.close(received)
                _send(control, None)
                continue
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.dup2(descriptors[0], 1)
                os.dup2(descriptors[0], 2)
                control.detach()
                os.closerange(3, _MOST_DESCRIPTORS)
                return request
            os.close(descriptors[0])
            pidfd = os.pidfd_open(pid)
            running[pidfd] = (pid, descriptors[1])
            poll.register(pidfd, select.POLLIN)
            _send(control, pid)


def _fork_worker(imports: _Imports) -> list[str] | None:
    """Fork the worker of this host. Returns the worker's command line in the worker, when the host starts it."""
    channel, other = socket.socketpair()
    pid = os.fork()
    if pid != 0:
        other.close()
        _start_with_subprocess(channel, pid, imports)
        return None
    channel.close()
    descriptors: list[int] = []
    content = _receive(other, descriptors)
    if not content:
        os._exit(0)  # the host has ended, or needed no worker
    other.detach()
    request = json.loads(content)
    os.setsid()
    # Out of the way of the numbers that they are to have.
    raised = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _RAISED) for descriptor in descriptors]
    os.closerange(3, _RAISED)
    for descriptor, number in zip(raised, request["numbers"], strict=True):
        os.dup2(descriptor, number)
    os.closerange(_RAISED, _MOST_DESCRIPTORS)
    _take_over(request["environment"], request["folder"])
    command: list[str] = request["command"]
    return command


def _start_with_subprocess(channel: socket.socket, pid: int, imports: _Imports) -> None:
    """Let `subprocess` start the waiting process in place of the first one, which is the worker."""
    fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]

    def start(
        command: list[bytes], executables: Any, close: bool, kept: tuple[int, ...], folder: Any, environment: Any,
        stdin: int, _1: int, _2: int, stdout: int, _3: int, stderr: int, _4: int, errors: int, *more: Any
    ) -> int:  # fmt: skip
        """What the C function of this name does, whose parameters these are."""
        variables = [variable.partition(b"=") for variable in environment]
        passed_on = {os.fsdecode(name): os.fsdecode(value) for name, _, value in variables}
        if channel.fileno() < 0 or not imports.would_be_the_same(passed_on):
            if channel.fileno() >= 0:
                channel.close()
                os.waitpid(pid, 0)
            result: int = fork_exec(
                command, executables, close, kept, folder, environment,
                stdin, _1, _2, stdout, _3, stderr, _4, errors, *more
            )  # fmt: skip
            return result
        python, safe_path, *script = map(os.fsdecode, command)
        assert (python, safe_path) == (sys.executable, "-P")
        # By the number in the worker; -1 is the host's own.
        numbers = {0: stdin, 1: stdout, 2: stderr} | {number: number for number in kept if number != errors}
        given = {number: descriptor for number, descriptor in numbers.items() if descriptor >= 0}
        request = {
            "command": script,
            "environment": passed_on,
            "folder": os.fsdecode(folder),
            "numbers": list(given),
        }
        resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        _send(channel, request, list(given.values()))
        channel.close()
        return pid

    subprocess._fork_exec = start  # type: ignore[attr-defined]


def _take_over(environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def main() -> None:
    """Import the packages, and fork until the tests' end of the channel closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    imports = _Imports()
    gc.collect()
    gc.freeze()  # a collection in a copy need not touch, and so copy, what all have in common
    request = _serve(control, imports)
    worker = _fork_worker(imports)
    if worker is not None:
        sys.argv = worker
        runpy.run_path(worker[0], run_name="__main__")
        return
    _take_over(request["environment"], request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv = ["", *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
