"""Patches of how the worker's library joins the two halves of an invocation.

The host sends each request in two halves that travel independently: the HTTP request to the worker's web server, and
the invocation, which names the function, over gRPC. The library's coordinator waits for the other half of either
without a bound and keeps an entry for every request.
"""

import asyncio
import inspect
import sys
from collections import OrderedDict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from relay import telemetry
from relay.problems import CLIENT_CLOSED_REQUEST, NOT_DISPATCHED, PROBLEM_JSON

_COORDINATOR: Final = "azure_functions_runtime.http_v2"
_HANDLER: Final = "azure_functions_runtime.handle_event"

# The host's proxy gives up on the HTTP half after ten retries in about 2 s; both halves are sent at the same moment.
# The wait is cut into slices, so that time in which the event loop was blocked counts as one slice at most.
_SLICES: Final = 10
_SLICE: Final = 0.5  # seconds

_REMEMBERED: Final = 1024  # invocations that were ended and whose HTTP half may still arrive


class _MissingRequest(Request):
    """Stands for an HTTP request that never arrived; whoever reads it meets a client that has disconnected."""

    def __init__(self) -> None:
        super().__init__(
            {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "path_params": {}},
            _disconnected,
        )


async def _disconnected() -> dict[str, str]:
    return {"type": "http.disconnect"}


def bound_the_waits() -> None:
    """End an invocation whose HTTP request does not arrive, and an HTTP request whose invocation does not.

    Callers cause the first at will: by disconnecting before the proxy has sent the request, or by a header that the
    proxy or uvicorn refuses. Such an invocation would occupy a place of the instance's concurrency until
    functionTimeout, at which the host restarts the worker with all its streams. It ends as a success, without the
    function being called, as it is no fault of the app; a counted line of the log tells.
    """
    coordinator: Any = getattr(sys.modules.get(_COORDINATOR), "HttpCoordinator", None)
    handler: Any = sys.modules.get(_HANDLER)
    expected = ("get_http_request_async", "await_http_response_async", "set_http_request", "set_http_response")
    if coordinator is None or not all(hasattr(coordinator, name) for name in expected):
        return
    if hasattr(coordinator, "relay_ended") or not inspect.iscoroutinefunction(getattr(handler, "execute_async", None)):
        return
    reference: Any = getattr(sys.modules[_COORDINATOR], "AsyncContextReference", None)
    if reference is None or not hasattr(coordinator(), "_context_references"):
        return
    ended: OrderedDict[str, None] = OrderedDict()
    coordinator.relay_ended = ended
    set_request, set_response = coordinator.set_http_request, coordinator.set_http_response
    get_request, await_response = coordinator.get_http_request_async, coordinator.await_http_response_async
    execute = handler.execute_async

    def entry(self: Any, invocation: str) -> Any:
        """The coordinator's entry, with an event for the arrival of the invocation."""
        found = self._context_references.get(invocation)
        if found is None:
            found = self._context_references[invocation] = reference()
        if not hasattr(found, "relay_invoked"):
            found.relay_invoked = asyncio.Event()
            found.relay_ended = False
        return found

    async def get_http_request_async(self: Any, invoc_id: str) -> Any:
        waiting = entry(self, invoc_id)
        waiting.relay_invoked.set()
        if await _happens(waiting.http_request_available_event):
            return await get_request(self, invoc_id)
        waiting.relay_ended = True
        ended[invoc_id] = None
        while len(ended) > _REMEMBERED:
            ended.popitem(last=False)
        telemetry.log_missing_half("http_request", invoc_id)
        return _MissingRequest()

    async def await_http_response_async(self: Any, invoc_id: str) -> Any:
        waiting = entry(self, invoc_id)
        late = ended.pop(invoc_id, ended) is None
        if not late and (waiting.relay_invoked.is_set() or await _happens(waiting.relay_invoked)):
            return await await_response(self, invoc_id)
        request = waiting.http_request
        self._context_references.pop(invoc_id, None)
        telemetry.log_missing_half("invocation", invoc_id)
        return _not_dispatched(request, invoc_id)

    def set_http_request(self: Any, invoc_id: str, http_request: Any) -> None:
        set_request(self, invoc_id, http_request)
        entry(self, invoc_id)

    def set_http_response(self: Any, invoc_id: str, http_response: Any) -> None:
        set_response(self, invoc_id, http_response)
        # The library's error path sets a response too: the entry had to live until now, and no one waits for it.
        if getattr(self._context_references.get(invoc_id), "relay_ended", False):
            del self._context_references[invoc_id]

    async def execute_async(function: Any, args: dict[str, Any]) -> Any:
        if any(isinstance(argument, _MissingRequest) for argument in args.values()):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return await execute(function, args)

    coordinator.get_http_request_async = get_http_request_async
    coordinator.await_http_response_async = await_http_response_async
    coordinator.set_http_request = set_http_request
    coordinator.set_http_response = set_http_response
    handler.execute_async = execute_async


async def _happens(event: asyncio.Event) -> bool:
    """Whether the event is set within the bound."""
    for _ in range(_SLICES):
        try:
            async with asyncio.timeout(_SLICE):
                await event.wait()
        except TimeoutError:
            continue
        return True
    return event.is_set()


def _not_dispatched(request: Any, invocation: str) -> Response:
    """The response to an HTTP request whose invocation never came, in the form of the API that was called."""
    path = f"{request.url.path}/".lower() if isinstance(request, Request) else ""
    if path.startswith(("/v1/", "/openai/")):
        content, media_type = NOT_DISPATCHED.openai_document(invocation), "application/json"
    else:
        content, media_type = NOT_DISPATCHED.document(invocation), PROBLEM_JSON
    return Response(content, int(NOT_DISPATCHED.status), {"content-type": media_type, "cache-control": "no-store"})


def forget_finished_requests() -> None:
    """Let the worker's coordinator forget a request when its response is taken.

    It keeps an entry of every request for ever: 2 kB each, in a process that serves for weeks.
    """
    coordinator: Any = getattr(sys.modules.get(_COORDINATOR), "HttpCoordinator", None)
    if not hasattr(coordinator, "_pop_http_response") or hasattr(coordinator, "relay_pop_http_response"):
        return

    def pop_http_response(self: Any, invoc_id: str) -> Any:
        try:
            return self.relay_pop_http_response(invoc_id)
        finally:
            getattr(self, "_context_references", {}).pop(invoc_id, None)

    coordinator.relay_pop_http_response = coordinator._pop_http_response
    coordinator._pop_http_response = pop_http_response


def skip_trigger_metadata() -> None:
    """Do not convert the metadata of an HTTP trigger, which no function of this app reads.

    The host sends each top-level member of a JSON body as metadata, whatever the route, and the library converts them
    one by one on the event loop, 4 µs each: a body of 95,000 members in 1 MiB would stop all streams for 0.4 s.
    """
    handler: Any = sys.modules.get(_HANDLER)
    convert: Any = getattr(handler, "from_incoming_proto", None)
    if convert is None or "trigger_metadata" not in inspect.signature(convert).parameters:
        return
    if hasattr(handler, "relay_from_incoming_proto"):
        return

    def from_incoming_proto(binding: str, pb: Any, *, trigger_metadata: Any, **options: Any) -> Any:
        if binding == "httpTrigger":
            trigger_metadata = None
        return convert(binding, pb, trigger_metadata=trigger_metadata, **options)

    handler.relay_from_incoming_proto = convert
    handler.from_incoming_proto = from_incoming_proto
