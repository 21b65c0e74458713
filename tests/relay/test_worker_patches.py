"""The mends of the official worker's library: each still needed, and each at work. One that fails here can go."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Each runs in a process of its own, as the library and uvicorn keep their state in their modules.
REQUESTS = """
import asyncio, json
from azure_functions_runtime import http_v2
{mend}
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
{mend}
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
{mend}
config = uvicorn.Config(app=None)
print(json.dumps(logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO)))
"""

SPANS = """
import asyncio, json
from azurefunctions.extensions.http.fastapi import web
from opentelemetry import trace
{mend}
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
async def ask():
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
asyncio.run(ask())
print(json.dumps(names))
"""

MEND = "from relay import worker; worker.mend(); worker.mend()"


def run(script: str, *, mend: bool) -> Any:
    """What the script prints, with the mends or without."""
    done = subprocess.run(
        [sys.executable, "-c", script.format(mend=MEND if mend else "")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_library_still_keeps_every_request() -> None:
    assert run(REQUESTS, mend=False) == 50, "azure-functions-runtime forgets by itself: drop forget_finished_requests"


def test_the_mend_lets_it_forget() -> None:
    assert run(REQUESTS, mend=True) == 0


def test_a_function_that_raised_is_forgotten_too() -> None:
    assert run(FAILED, mend=True) == ["ValueError", 0]


def test_uvicorn_still_logs_every_request() -> None:
    assert run(ACCESS_LOG, mend=False) is True, "uvicorn's access log is off by itself: drop quiet_access_log"


def test_the_mend_silences_it() -> None:
    assert run(ACCESS_LOG, mend=True) is False


def test_fastapi_still_makes_spans_with_the_whole_address() -> None:
    assert run(SPANS, mend=False), "FastAPI traces nothing by itself: drop trace_no_requests"


def test_the_mend_leaves_none() -> None:
    assert run(SPANS, mend=True) == []


def test_a_library_that_has_changed_is_left_alone() -> None:
    script = """
import json, sys, types
module = types.ModuleType("azure_functions_runtime.http_v2")
class HttpCoordinator:
    pass
module.HttpCoordinator = HttpCoordinator
sys.modules["azure_functions_runtime.http_v2"] = module
{mend}
print(json.dumps([name for name in vars(HttpCoordinator) if "pop" in name]))
"""
    assert run(script, mend=True) == []
