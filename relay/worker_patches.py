"""Patches of the official worker's library, each with its reason.

Seen with azure-functions-runtime 1.3.0, azurefunctions-extensions-http-fastapi 1.0.1, fastapi 0.165 and uvicorn 0.54.
Every patch looks before it touches: where the library has changed, it does nothing. Its test fails on the day that the
patch is no longer needed, so that it can be removed.
"""

import functools
import inspect
import sys
from typing import Any, Final

import uvicorn.config
from fastapi.applications import FastAPI

_COORDINATOR: Final = "azure_functions_runtime.http_v2"


def apply() -> None:
    """Patch the worker that hosts this process, if one does: once, before its web server starts."""
    silence_access_log()
    disable_framework_telemetry()
    forget_finished_requests()


def silence_access_log() -> None:
    """No line per request from uvicorn: on stdout each becomes a billed trace, and says only GET or POST.

    The host's own request telemetry says more.
    """
    logger: dict[str, Any] = uvicorn.config.LOGGING_CONFIG["loggers"].get("uvicorn.access", {})
    logger["level"] = "WARNING"


def disable_framework_telemetry() -> None:
    """No telemetry of the web framework's own.

    Its span holds the request's whole URL, the function key in the query included, and there is one for each write to
    the caller. With the Application Insights integration on, two layers create them: that integration replaces
    FastAPI's class by an instrumented one before the app is imported, and FastAPI brings telemetry itself. So the
    worker's web server gets the plain class, with all of it off. The host's request telemetry has no keys in it.
    """
    web: Any = sys.modules.get("azurefunctions.extensions.http.fastapi.web")
    if hasattr(web, "FastAPI") and "telemetry" in inspect.signature(FastAPI).parameters:
        web.FastAPI = functools.partial(FastAPI, telemetry={"tracing": False, "metrics": False, "logs": False})


def forget_finished_requests() -> None:
    """Let the worker's coordinator forget a request when its response is taken.

    It keeps an entry of every request for ever: 2 kB each, in a process that serves for weeks.
    """
    module = sys.modules.get(_COORDINATOR)
    coordinator: Any = getattr(module, "HttpCoordinator", None)
    if not hasattr(coordinator, "_pop_http_response") or hasattr(coordinator, "_pop_http_response_and_keep"):
        return

    def pop_http_response(self: Any, invoc_id: str) -> Any:
        try:
            return self._pop_http_response_and_keep(invoc_id)
        finally:
            getattr(self, "_context_references", {}).pop(invoc_id, None)

    coordinator._pop_http_response_and_keep = coordinator._pop_http_response
    coordinator._pop_http_response = pop_http_response
