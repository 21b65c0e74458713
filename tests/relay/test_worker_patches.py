"""The patches of the official worker's library: each is still needed, and works. One that is not needed fails here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Each script runs in a process of its own, since the library and uvicorn keep state in their modules.
REQUESTS = """
import asyncio, json
from azure_functions_runtime import http_v2
{patch}
async def serve(count):
    coordinator = http_v2.HttpCoordinator()
    for number in range(count):
        invocation = f"invocation-{{number}}"
        coordinator.set_http_request(invocation, object())
        await coordinator.get_http_request_async(invocation)
        coordinator.set_http_response(invocation, number)
        assert await coordinator.await_http_response_async(invocation) == number
    return len(coordinator._context_references)
print(json.dumps(asyncio.run(serve(50))))
"""

FAILED = """
import asyncio, json
from azure_functions_runtime import http_v2
{patch}
async def serve():
    coordinator = http_v2.HttpCoordinator()
    coordinator.set_http_request("i", object())
    await coordinator.get_http_request_async("i")
    coordinator.set_http_response("i", ValueError("from the function"))
    answer = await coordinator.await_http_response_async("i")
    return [type(answer).__name__, len(coordinator._context_references)]
print(json.dumps(asyncio.run(serve())))
"""

ACCESS_LOG = """
import json, logging, uvicorn
{patch}
config = uvicorn.Config(app=None)
print(json.dumps(logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO)))
"""

SPANS = """
import asyncio, json
from azurefunctions.extensions.http.fastapi import web
from opentelemetry import trace
{patch}
names = []
class Tracer(trace.NoOpTracer):
    def start_span(self, name, *args, **kwargs):
        names.append(name)
        return super().start_span(name, *args, **kwargs)
class Provider(trace.TracerProvider):
    def get_tracer(self, *args, **kwargs):
        return Tracer()
trace.set_tracer_provider(Provider())
app = web.WebApp()
async def answer(request):
    return web.FastApiResponse("x")
app.web_app.add_api_route("/{{path:path}}", answer, methods=["POST"])
async def send_request():
    scope = {{
        "type": "http", "asgi": {{"version": "3.0"}}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/stream", "raw_path": b"/stream", "query_string": b"code=KEY", "root_path": "", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }}
    async def receive():
        return {{"type": "http.request", "body": b"", "more_body": False}}
    async def send(message):
        pass
    await app.web_app(scope, receive, send)
asyncio.run(send_request())
print(json.dumps(names))
"""

PATCH = "from relay import worker_patches; worker_patches.apply(); worker_patches.apply()"


def run(script: str, *, patched: bool) -> Any:
    """What the script prints, with the patches or without."""
    done = subprocess.run(
        [sys.executable, "-c", script.format(patch=PATCH if patched else "")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_library_still_keeps_every_request() -> None:
    assert run(REQUESTS, patched=False) == 50, "the library forgets by itself: remove forget_finished_requests"


def test_with_the_patch_it_forgets_finished_requests() -> None:
    assert run(REQUESTS, patched=True) == 0


def test_a_request_whose_function_raised_is_forgotten_too() -> None:
    assert run(FAILED, patched=True) == ["ValueError", 0]


def test_uvicorn_still_logs_every_request() -> None:
    assert run(ACCESS_LOG, patched=False) is True, "uvicorn's access log is off by itself: remove silence_access_log"


def test_with_the_patch_uvicorn_logs_none() -> None:
    assert run(ACCESS_LOG, patched=True) is False


def test_fastapi_still_creates_spans_with_the_whole_url() -> None:
    assert run(SPANS, patched=False), "FastAPI traces nothing by itself: remove disable_framework_telemetry"


def test_with_the_patch_fastapi_creates_none() -> None:
    assert run(SPANS, patched=True) == []


def test_a_library_that_has_changed_is_not_patched() -> None:
    script = """
import json, sys, types
module = types.ModuleType("azure_functions_runtime.http_v2")
class HttpCoordinator:
    pass
module.HttpCoordinator = HttpCoordinator
sys.modules["azure_functions_runtime.http_v2"] = module
{patch}
print(json.dumps([name for name in vars(HttpCoordinator) if "pop" in name]))
"""
    assert run(script, patched=True) == []
