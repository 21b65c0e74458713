"""A function app that describes its process: what it has from the command that started it, and from nothing else."""

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import JSONResponse, Request, Response

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)


def kind_of_file(descriptor: str) -> str:
    """`socket`, `pipe`, a path, …"""
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).partition(":[")[0]


def name_of(handler: Any) -> str:
    return str(getattr(handler, "__qualname__", handler))


@app.route("process", methods=["GET"])
async def process(req: Request) -> JSONResponse:
    """All that is not numbered anew for each process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return JSONResponse(
        {
            "arguments": [argument.partition("=")[0] for argument in sys.argv],
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "standard_files": [kind_of_file(descriptor) for descriptor in "012"],
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "garbage_collector": [gc.isenabled(), gc.get_threshold()],
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "main": getattr(sys.modules["__main__"], "__file__", None),
            "modules": sorted(name for name in sys.modules if name.partition(".")[0] in ("local", "relay", "tests")),
            "path": sys.path,
            "session": os.getsid(0) == os.getpid(),
            "signals": [int(status[name], 16) & 0x7FFFFFFF for name in ("SigBlk", "SigIgn", "SigCgt")],
            "handlers": [name_of(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
            "threads": sorted(type(thread).__name__ for thread in threading.enumerate()),
            "output": [sys.stdout.write_through, sys.stdout.encoding, sys.stderr.encoding],
        }
    )


@app.route("slow", methods=["GET"])
async def slow(req: Request) -> Response:
    """Exceeds the functionTimeout of this app's host.json."""
    await asyncio.sleep(60)
    return Response()
