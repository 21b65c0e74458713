"""The patches of the official worker's library: each is still needed, and works. One that is not needed fails here."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[2]

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

MISSING_REQUEST = """
import asyncio, json
from azure_functions_runtime import handle_event, http_v2
from tests.schedules.virtual_loop import run
{patch}
async def invoke():
    loop, coordinator, calls = asyncio.get_running_loop(), http_v2.http_coordinator, []
    async def function(req):
        calls.append(req)
    began = loop.time()
    try:
        async with asyncio.timeout(3600):
            request = await coordinator.get_http_request_async("i")
    except TimeoutError:
        return "waits"
    waited = loop.time() - began
    response = await handle_event.execute_async(function, {{"req": request}})
    coordinator.set_http_response("i", response)
    return [waited, response.status_code, len(calls), len(coordinator._context_references), len(asyncio.all_tasks())]
print(json.dumps(run(invoke())))
"""

MISSING_INVOCATION = """
import asyncio, json
from azure_functions_runtime import http_v2
from starlette.requests import Request
from tests.schedules.virtual_loop import run
{patch}
async def serve(path):
    loop, coordinator = asyncio.get_running_loop(), http_v2.http_coordinator
    scope = {{"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"h")], "query_string": b""}}
    began = loop.time()
    coordinator.set_http_request(path, Request(scope))
    try:
        async with asyncio.timeout(3600):
            response = await coordinator.await_http_response_async(path)
    except TimeoutError:
        return "waits"
    document = json.loads(response.body)
    code = document["error"]["code"] if "error" in document else document["code"]
    form = "openai" if "error" in document else "problem"
    return [loop.time() - began, response.status_code, code, form, len(coordinator._context_references)]
print(json.dumps([run(serve(path)) for path in ("/stream", "/v1x", "/V1", "/v1/models", "/OpenAI/models")]))
"""

LATE_REQUEST = """
import asyncio, json
from azure_functions_runtime import handle_event, http_v2
from tests.schedules.virtual_loop import run
{patch}
async def invoke():
    loop, coordinator = asyncio.get_running_loop(), http_v2.http_coordinator
    request = await coordinator.get_http_request_async("i")
    coordinator.set_http_response("i", await handle_event.execute_async(None, {{"req": request}}))
    began = loop.time()
    coordinator.set_http_request("i", object())
    response = await coordinator.await_http_response_async("i")
    return [loop.time() - began, response.status_code, len(coordinator._context_references)]
print(json.dumps(run(invoke())))
"""

BLOCKED_LOOP = """
import asyncio, json
from azure_functions_runtime import http_v2
from tests.schedules.virtual_loop import run
{patch}
async def invoke():
    loop, coordinator = asyncio.get_running_loop(), http_v2.http_coordinator
    def block():
        loop._virtual.now += 60
        loop.call_soon(coordinator.set_http_request, "i", "the request")
    loop.call_later(1, block)
    return await coordinator.get_http_request_async("i")
print(json.dumps(run(invoke())))
"""

METADATA = """
import json
from types import SimpleNamespace
from azure_functions_runtime import handle_event
import azure.functions
from azure_functions_runtime.bindings import meta
{patch}
meta.load_binding_registry()
converted = []
class TypedData(SimpleNamespace):
    def WhichOneof(self, _):
        converted.append(self.kind)
        return self.kind
empty = TypedData(kind=None)
http = SimpleNamespace(method="POST", url="/", headers={{}}, query={{}}, params={{"id": "7"}}, body=empty)
data = TypedData(kind="http", http=http)
binding = TypedData(kind="data", name="req", data=data)
metadata = {{name: TypedData(kind="string", string="x") for name in "abc"}}
decoded = handle_event.from_incoming_proto(
    "httpTrigger", binding, trigger_metadata=metadata, pytype=None, function_name="f", is_deferred_binding=False
)
print(json.dumps([converted.count("string"), dict(decoded.route_params)]))
"""

KEEP_ALIVE = """
import json
from azurefunctions.extensions.http.fastapi import web
{patch}
print(json.dumps(web.uvicorn.Config(app=None).timeout_keep_alive))
"""

PATHS = """
import asyncio, json
from azurefunctions.extensions.http.fastapi import web
{patch}
async def answer():
    return "reached"
application = web.WebApp()
application.route(answer)
async def status(path):
    scope = {{"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}}
    sent = []
    async def receive():
        return {{"type": "http.request"}}
    async def send(message):
        sent.append(message)
    await application.get_app()(scope, receive, send)
    return sent[0]["status"]
print(json.dumps([asyncio.run(status(path)) for path in ("/", "/v1/models", "/a\\nb", "/a\\n")]))
"""

CHANGED = """
import json, sys, types
module = types.ModuleType("azure_functions_runtime.http_v2")
class HttpCoordinator:
    pass
module.HttpCoordinator = HttpCoordinator
sys.modules["azure_functions_runtime.http_v2"] = module
{patch}
print(json.dumps([name for name in vars(HttpCoordinator) if "pop" in name]))
"""

PATCH = "from relay import worker_patches; worker_patches.apply(); worker_patches.apply()"

SCRIPTS: Final = {
    "REQUESTS": REQUESTS,
    "FAILED": FAILED,
    "ACCESS_LOG": ACCESS_LOG,
    "SPANS": SPANS,
    "MISSING_REQUEST": MISSING_REQUEST,
    "MISSING_INVOCATION": MISSING_INVOCATION,
    "LATE_REQUEST": LATE_REQUEST,
    "BLOCKED_LOOP": BLOCKED_LOOP,
    "METADATA": METADATA,
    "KEEP_ALIVE": KEEP_ALIVE,
    "PATHS": PATHS,
    "CHANGED": CHANGED,
}

# Each script runs in a process of its own, since the library and uvicorn keep state in their modules; it is forked from
# one that has imported all that they need.
FORK = """
import json, os, sys
import azure.functions, fastapi, opentelemetry.trace, uvicorn
from azure_functions_runtime import handle_event, http_v2
from azurefunctions.extensions.http.fastapi import web
from tests.schedules import virtual_loop

results = {}
for name, script in json.load(sys.stdin).items():
    reader, writer = os.pipe()
    if not (process := os.fork()):
        os.dup2(writer, 1)
        exec(script, {"__name__": name})
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with open(reader) as output:
        lines = output.read().splitlines()
    results[name] = lines[-1] if os.waitpid(process, 0)[1] == 0 else "null"
print("{" + ",".join(f"{json.dumps(name)}: {result}" for name, result in results.items()) + "}")
"""


@functools.cache
def results(*, patched: bool) -> dict[str, Any]:
    """What the scripts print, with the patches or without."""
    scripts = {name: script.format(patch=PATCH if patched else "") for name, script in SCRIPTS.items()}
    if not patched:
        for needs_the_patch in ("LATE_REQUEST", "BLOCKED_LOOP", "CHANGED"):
            del scripts[needs_the_patch]
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        cwd=ROOT,
        input=json.dumps(scripts),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert None not in printed.values(), done.stderr
    return printed


def run(name: str, *, patched: bool) -> Any:
    """What one script prints."""
    return results(patched=patched)[name]


def test_the_library_still_keeps_every_request() -> None:
    assert run("REQUESTS", patched=False) == 50, "the library forgets by itself: remove forget_finished_requests"


def test_with_the_patch_it_forgets_finished_requests() -> None:
    assert run("REQUESTS", patched=True) == 0


def test_a_request_whose_function_raised_is_forgotten_too() -> None:
    assert run("FAILED", patched=True) == ["ValueError", 0]


def test_uvicorn_still_logs_every_request() -> None:
    assert run("ACCESS_LOG", patched=False) is True, "uvicorn's access log is off by itself: remove silence_access_log"


def test_with_the_patch_uvicorn_logs_none() -> None:
    assert run("ACCESS_LOG", patched=True) is False


def test_fastapi_still_creates_spans_with_the_whole_url() -> None:
    assert run("SPANS", patched=False), "FastAPI traces nothing by itself: remove disable_framework_telemetry"


def test_with_the_patch_fastapi_creates_none() -> None:
    assert run("SPANS", patched=True) == []


def test_a_library_that_has_changed_is_not_patched() -> None:
    assert run("CHANGED", patched=True) == []


def test_the_library_still_waits_without_a_bound() -> None:
    assert run("MISSING_REQUEST", patched=False) == "waits", "the library bounds the wait: remove bound_the_waits"
    assert run("MISSING_INVOCATION", patched=False) == ["waits"] * 5


def test_with_the_patch_an_invocation_without_its_request_ends_and_leaves_nothing() -> None:
    waited, status, calls, entries, tasks = run("MISSING_REQUEST", patched=True)
    assert (waited, status) == (5.0, 499)
    assert calls == 0, "the function was called"
    assert (entries, tasks) == (0, 1)


def test_with_the_patch_a_request_without_its_invocation_gets_a_problem() -> None:
    forms = ["problem", "problem", "openai", "openai", "openai"]
    assert run("MISSING_INVOCATION", patched=True) == [[5.0, 503, "not_dispatched", form, 0] for form in forms]


def test_a_request_that_comes_after_its_invocation_has_ended_is_answered_at_once() -> None:
    assert run("LATE_REQUEST", patched=True) == [0.0, 503, 0]


def test_time_in_which_the_event_loop_was_blocked_does_not_count() -> None:
    assert run("BLOCKED_LOOP", patched=True) == "the request"


def test_the_library_still_converts_the_metadata_of_an_http_trigger() -> None:
    converted, parameters = run("METADATA", patched=False)
    assert converted == 3, "the library converts no metadata: remove skip_trigger_metadata"
    assert parameters == {"id": "7"}


def test_with_the_patch_no_metadata_is_converted() -> None:
    assert run("METADATA", patched=True) == [0, {"id": "7"}]


def test_uvicorn_still_closes_an_idle_connection_before_the_host_does() -> None:
    assert run("KEEP_ALIVE", patched=False) < 60, "uvicorn keeps it longer: remove outlive_the_hosts_idle_connections"


def test_with_the_patch_uvicorn_keeps_it_longer() -> None:
    assert run("KEEP_ALIVE", patched=True) == 120


def test_the_web_server_still_answers_a_path_with_a_line_break_by_itself() -> None:
    assert run("PATHS", patched=False)[:3] == [200, 200, 404], "it matches every path: remove match_every_path"


def test_with_the_patch_every_path_reaches_the_library() -> None:
    assert run("PATHS", patched=True) == [200, 200, 200, 200]
