"""Patches of the worker's web server: FastAPI and uvicorn, as azurefunctions-extensions-http-fastapi sets them up."""

import functools
import inspect
import sys
from types import SimpleNamespace
from typing import Any, Final

import uvicorn
import uvicorn.config
from fastapi.applications import FastAPI
from starlette.convertors import PathConvertor

_WEB: Final = "azurefunctions.extensions.http.fastapi.web"

# Seconds. The host's proxy reuses a connection that was idle for up to 60 s, and can't repeat a POST on another one
# when the worker closes it at that moment: the request is lost without a response.
_KEEP_ALIVE: Final = 120


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
    web: Any = sys.modules.get(_WEB)
    if hasattr(web, "FastAPI") and "telemetry" in inspect.signature(FastAPI).parameters:
        web.FastAPI = functools.partial(FastAPI, telemetry={"tracing": False, "metrics": False, "logs": False})


def outlive_the_hosts_idle_connections() -> None:
    """Let uvicorn keep an idle connection longer than the host's proxy does, instead of its default of 5 s."""
    web: Any = sys.modules.get(_WEB)
    if getattr(web, "uvicorn", None) is not uvicorn:
        return
    if inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default < _KEEP_ALIVE:
        web.uvicorn = SimpleNamespace(
            Config=functools.partial(uvicorn.Config, timeout_keep_alive=_KEEP_ALIVE), Server=uvicorn.Server
        )


def match_every_path() -> None:
    """Let the web server's one route match a path with a line break (%0A) in it, too.

    It answered such a request by itself, and the invocation waited for its HTTP half.
    """
    if PathConvertor.regex == ".*":
        PathConvertor.regex = "(?s:.*)"
