"""A host for the app on a machine without Azure Functions Core Tools: a development tool, not the Functions host.

For HTTP functions that stream it does what `func start` does: local.settings.json, CORS, keys on request, routes. The
app itself runs in Microsoft's official worker library, in a process of its own.

    python -m local.functions_host --port 7071 --script-root . --enable-auth --function-key KEY

At the edges, too, it behaves as the platform: a request and its invocation are sent independently, a body with a
Content-Length is read before the app sees the request, the head of a response waits for the first byte of its body,
and a response that breaks off is a reset. `functionTimeout` of host.json restarts the worker. Settings, from the
environment or `Values` of local.settings.json:

| setting | |
|---|---|
| `FUNCTIONS_REQUEST_BODY_SIZE_LIMIT` | the platform's own: the largest body, in bytes (104857600) |
| `LOCAL_HOST_ACTIVITY_SECONDS` | a response without a byte from the worker for so long is ended (240) |
| `LOCAL_HOST_UPLOAD_SECONDS` | after so long an upload must have 240 bytes for each second (5) |

`GET /_state` returns the number of open invocations as JSON.

| module | |
|---|---|
| `__main__` | the command: reads the options, listens, prints the functions |
| `settings` | local.settings.json, host.json and the limits of a request |
| `host` | the path of a request: CORS, route, key, in two halves to the worker, and back |
| `caller_connection` | the HTTP server: a caller's requests and responses |
| `request_parser` | reads requests, with the strictness and the leniency of the platform's server |
| `cors` | cross-origin requests |
| `routes` | route templates, as ASP.NET matches them |
| `worker` | the worker's process and its control channel, from the host's side |
| `worker_connection` | one HTTP connection to the worker |
| `worker_process` | the worker itself, run as a script of its own |
"""

from local.functions_host.settings import HostError, LocalSettings
from local.functions_host.worker import Function, Worker, WorkerError

__all__ = ["Function", "HostError", "LocalSettings", "Worker", "WorkerError"]
