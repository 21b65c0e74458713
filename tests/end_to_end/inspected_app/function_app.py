"""This repository's app with a route that inspects its process: for tests, never deployed.

The environment variable `TOKEN_TIMEOUT` sets the time limit for a sign-in, which is a constant in the app.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import azure.functions as func
from azurefunctions.extensions.http.fastapi import JSONResponse, Request, Response

ROOT = Path(__file__).resolve().parents[3]
# Every stream creates one of each, or one of either decoder.
COUNTED = (
    "Stream",
    "StreamedAnswer",
    "TextDecoder",
    "VerbatimDecoder",
    "Failover",
    "ClientResponse",
    "CallerRequest",
    "Watchdog",
)

sys.path.insert(0, str(ROOT))
_spec = importlib.util.spec_from_file_location("repository_function_app", ROOT / "function_app.py")
assert _spec is not None
assert _spec.loader is not None
_repository = importlib.util.module_from_spec(_spec)
sys.modules["repository_function_app"] = _repository
_spec.loader.exec_module(_repository)
app = _repository.app

if "TOKEN_TIMEOUT" in os.environ:
    from relay.upstream import credential

    credential._TOKEN_TIMEOUT = float(os.environ["TOKEN_TIMEOUT"])  # type: ignore[misc]


@app.route(route="inspect", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def inspect(req: Request) -> Response:
    """What exists in this process now; memory in bytes.

    `?collector=off` stops the garbage collector until the next call: `uncollected` is then the number of streams that
    only the collector would free.
    """
    uncollected = sum(type(it).__name__ == "Stream" for it in gc.get_objects())
    gc.collect()
    # glibc keeps freed memory, but `resident` is to be the memory in use.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    gc.disable() if req.query_params.get("collector") == "off" else gc.enable()
    types = Counter(type(it).__name__ for it in gc.get_objects())
    coordinator = sys.modules["azure_functions_runtime.http_v2"].http_coordinator
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return JSONResponse(
        {
            "event_loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
            "task_type": type(asyncio.current_task()).__name__,
            "uncollected": uncollected,
            "objects": {name: types[name] for name in COUNTED},
            "tasks": sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()),
            "open_files": len(list(Path("/proc/self/fd").iterdir())),
            "requests_kept": len(coordinator._context_references),
            "resident": resident,
            "loads": [backend.load for backend in _repository.pool.all()],
        }
    )
