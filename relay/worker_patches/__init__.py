"""Patches of the official worker's library, each with its reason.

Seen with azure-functions-runtime 1.3.0, azurefunctions-extensions-http-fastapi 1.0.1, fastapi 0.165 and uvicorn 0.54.
Every patch looks before it touches: where the library has changed, it does nothing. Its test fails on the day that the
patch is no longer needed, so that it can be removed.
"""

from relay.worker_patches import invocations, web_server


def apply() -> None:
    """Patch the worker that hosts this process, if one does: once, before its web server starts."""
    web_server.silence_access_log()
    web_server.disable_framework_telemetry()
    web_server.outlive_the_hosts_idle_connections()
    web_server.match_every_path()
    invocations.bound_the_waits()
    invocations.forget_finished_requests()
    invocations.skip_trigger_metadata()
