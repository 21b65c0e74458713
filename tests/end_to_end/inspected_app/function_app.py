"""The app of this repository, with a window into the process that serves it: for tests, never deployed."""

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
COUNTED = ("Stream", "Answer", "Completion", "Route", "ClientResponse", "Call")

sys.path.insert(0, str(ROOT))
_spec = importlib.util.spec_from_file_location("the_app", ROOT / "function_app.py")
assert _spec is not None
assert _spec.loader is not None
the_app = importlib.util.module_from_spec(_spec)
sys.modules["the_app"] = the_app
_spec.loader.exec_module(the_app)
app = the_app.app


@app.route(route="inspect", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def inspect(req: Request) -> Response:
    """What lives in this process now; memory in bytes.

    `?collector=off` stops the garbage collector until the next call: `uncollected` is then what only it would free.
    """
    uncollected = sum(type(one).__name__ == "Stream" for one in gc.get_objects())
    gc.collect()
    # glibc keeps what was freed; resident is to be what is in use.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    gc.disable() if req.query_params.get("collector") == "off" else gc.enable()
    kinds = Counter(type(one).__name__ for one in gc.get_objects())
    coordinator = sys.modules["azure_functions_runtime.http_v2"].http_coordinator
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return JSONResponse(
        {
            "uncollected": uncollected,
            "objects": {name: kinds[name] for name in COUNTED},
            "tasks": sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()),
            "open_files": len(list(Path("/proc/self/fd").iterdir())),
            "requests_kept": len(coordinator._context_references),
            "resident": resident,
        }
    )
