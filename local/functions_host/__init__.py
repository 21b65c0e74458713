"""A host for the app on a machine without Azure Functions Core Tools: a development tool, not the Functions host.

For HTTP functions that stream it does what `func start` does: local.settings.json, CORS, keys on request, routes. The
app itself runs in Microsoft's official worker library, in a process of its own.

    python -m local.functions_host --port 7071 --script-root . --enable-auth --function-key KEY

| module | |
|---|---|
| `__main__` | the command: reads the options, listens, prints the functions |
| `settings` | local.settings.json and host.json |
| `host` | the path of a request: CORS, route, key, to the worker and back |
| `cors` | cross-origin requests |
| `routes` | route templates, as ASP.NET matches them |
| `worker` | the worker's process and its control channel, from the host's side |
| `worker_connection` | one HTTP connection to the worker |
| `worker_process` | the worker itself, run as a script of its own |
"""

from local.functions_host.settings import HostError, LocalSettings
from local.functions_host.worker import Function, Worker, WorkerError

__all__ = ["Function", "HostError", "LocalSettings", "Worker", "WorkerError"]
