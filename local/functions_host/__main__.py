"""The command `python -m local.functions_host`; see the package's docstring."""

import argparse
import asyncio
import contextlib
import errno
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import local.functions_host
from local.functions_host.caller_connection import CallerConnection
from local.functions_host.host import FunctionsHost, log
from local.functions_host.readable_log import readable
from local.functions_host.settings import HostError, Limits, LocalSettings, route_prefix
from local.functions_host.worker import Worker, WorkerError

_ADDRESS = "127.0.0.1"
_CLOSE_SECONDS = 0.2
_KEY_SETTING = "FUNCTIONS_HOST_KEY"


async def serve(options: argparse.Namespace) -> int:
    """Host the app until a signal comes; the exit code is 0 then, and 1 when the worker ended by itself.

    Raises `HostError` and `WorkerError` when the start fails.
    """
    _raise_open_file_limit()
    script_root = options.script_root.resolve()
    prefix = route_prefix(script_root)
    settings = LocalSettings.read(options.settings or script_root / "local.settings.json")
    key: str | None = None
    if options.enable_auth:
        key = options.function_key or os.environ.get(_KEY_SETTING) or settings.values.get(_KEY_SETTING)
        key = key or secrets.token_urlsafe(24)
    if not options.readable:
        print(
            "This is a development tool that stands in for Azure Functions Core Tools; it is not the Functions host.",
            flush=True,
        )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(_listen(settings.port if options.port is None else options.port))
        environment = _worker_environment(settings, script_root)
        limits = Limits.read(script_root, environment)
        print_line = _print_readable_line if options.readable else _print_worker_line
        worker = Worker(script_root, environment, print_line, log)
        stack.push_async_callback(worker.stop)
        if not await _finishes_before(stopped, worker.start()):
            return 0
        host = FunctionsHost(worker, settings, prefix, key, limits, log_successes=not options.readable)
        connections: set[CallerConnection] = set()
        server = await asyncio.get_running_loop().create_server(
            lambda: CallerConnection(host.handle, connections, limits.upload_seconds), sock=listener, backlog=1024
        )
        stack.push_async_callback(_close, server, connections)
        if not options.readable:
            _print_functions(host, f"http://{_ADDRESS}:{listener.getsockname()[1]}")
        ended = asyncio.create_task(worker.ended())
        if await _finishes_before(stopped, ended):
            log(f"The worker ended by itself ({ended.result()}); it is not started again. See its output above.")
            return 1
        return 0


async def _close(server: asyncio.Server, connections: set[CallerConnection]) -> None:
    """Close all connections; a response that is about to end may do so before."""
    server.close()
    tasks = [connection.serving for connection in connections if connection.serving is not None]
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
    for connection in list(connections):
        connection.reset()
    for task in tasks:
        task.cancel()


async def _finishes_before(stopped: asyncio.Event, work: Awaitable[Any]) -> bool:
    """Wait for `work` until `stopped` is set; returns whether it finished, and raises its exception."""
    task = asyncio.ensure_future(work)
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        return False
    task.result()
    return True


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_ADDRESS, port), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise HostError(
            f"Port {port} is taken by another process. Choose another one: make start PORT={port + 10} "
            f"(or --port {port + 10}, or Host.LocalHttpPort in local.settings.json)."
        ) from None


def _worker_environment(settings: LocalSettings, script_root: Path) -> dict[str, str]:
    environment = {
        **settings.values,
        "AZURE_FUNCTIONS_ENVIRONMENT": "Development",
        "AzureWebJobsScriptRoot": str(script_root),
        "FUNCTIONS_WORKER_RUNTIME": "python",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
    }
    environment.pop(_KEY_SETTING, None)
    return environment


def _raise_open_file_limit() -> None:
    """Allow as many open files as possible, also to the worker: each stream takes two here, and 1,024 are usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (65536 if most == resource.RLIM_INFINITY else most, most))


def _print_functions(host: FunctionsHost, address: str) -> None:
    print("\nFunctions:\n")
    for route in host.routes:
        print(f"        {route.function.name}: [{','.join(route.methods) or 'ALL'}] {address}{route.path}\n")
    for function in host.other_functions:
        print(f"        {function.name}: {function.trigger['type']} (this host serves HTTP only: it never runs here)\n")
    if host.key is not None:
        print(f"Function key: {host.key}\n")
    print(f"Listening on {address}", flush=True)


def _print_worker_line(line: str) -> None:
    print(f"[worker] {line}", flush=True)


def _print_readable_line(line: str) -> None:
    text = readable(line)
    if text is not None:
        print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and serve; returns the exit code."""
    description = (local.functions_host.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m local.functions_host", description=description)
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: local.settings.json)")
    parser.add_argument("--enable-auth", action="store_true", help="check function keys, as the platform does")
    parser.add_argument("--function-key", help=f"the key (default: ${_KEY_SETTING}, or a new one)")
    parser.add_argument("--script-root", type=Path, default=Path.cwd(), help="folder of the app (default: this one)")
    parser.add_argument(
        "--readable", action="store_true", help="a line for each stream, instead of the lines that Core Tools print"
    )
    parser.add_argument("--settings", type=Path, help="default: local.settings.json in the app's folder")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(serve(options))
    except (HostError, WorkerError) as error:
        print(error, file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
