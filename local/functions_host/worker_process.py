"""The worker: Microsoft's official worker library, driven over a socket instead of gRPC. The host runs it as a script.

The library asks its caller for protobuf messages; plain objects with the same members do. `_Worker` describes what goes
over the control channel, one JSON object a line. stdout and stderr stay free for the app's own output.

As in Azure, the app runs on uvloop where that is installed, and every task is an `InvocationTask`. The environment
variable `LOCAL_EVENT_LOOP=asyncio` asks for the standard library's event loop instead.
"""

import argparse
import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, ItemsView
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure_functions_runtime as runtime

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CONTROL_LINE_BYTES = 16 * 1024 * 1024
_LOOP_SETTING = "LOCAL_EVENT_LOOP"
_INVOCATION_ID = "__azure_function_invocation_id__"  # the platform's own name for the attribute of a task


class InvocationTask(asyncio.Task[Any]):
    """A task with the id of the invocation that it belongs to, which it gets from the task that created it.

    The platform's worker makes every task an instance of such a subclass (proxy_worker/dispatcher.py of
    https://github.com/Azure/azure-functions-python-worker), so the app's tasks are none of the standard library's here
    either.
    """

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(coro, loop=loop, **options)
        invocation = getattr(asyncio.current_task(loop), _INVOCATION_ID, None)
        if invocation is not None:
            setattr(self, _INVOCATION_ID, invocation)


def _create_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> InvocationTask:  # a task factory, as the event loop calls it
    return InvocationTask(coro, loop=loop, **options)


class _Message(SimpleNamespace):
    """A protobuf message with a oneof: `oneof` is the name of the member that is set."""

    oneof: str | None = None

    def WhichOneof(self, _group: str) -> str | None:  # noqa: N802 (protobuf's name)
        return self.oneof


class _TriggerMetadata:
    """Headers, query and top-level members of a JSON body, as the HTTP trigger's binding on the platform sends them.

    Nothing of the body is parsed before the library asks for it.
    """

    def __init__(self, metadata: dict[str, Any], body: bytes) -> None:
        self.metadata = metadata
        self.body = body

    def items(self) -> ItemsView[str, _Message]:
        """Name and value: an object as JSON, any other value as a string; null and lists are left out."""
        query = {name: value for name, value in self.metadata.get("Query", {}).items() if name != "code"}
        found = self.metadata | query | self._members()
        return {
            name: self._message(value) for name, value in found.items() if not isinstance(value, list | None)
        }.items()

    def _members(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self.body.decode("utf-8-sig", "replace"))
        except ValueError:
            return {}
        return document

    @staticmethod
    def _message(value: Any) -> _Message:
        if isinstance(value, dict):
            return _Message(oneof="json", json=json.dumps(value))
        return _Message(oneof="string", string=str(value))


class _StatusResult(SimpleNamespace):
    Failure = 0
    Success = 1


class _BindingInfo(SimpleNamespace):
    undefined = 0
    out = 1
    inout = 2


# The messages that the library builds, by the names of the Functions host's protobuf file.
_PROTOS = SimpleNamespace(
    BindingInfo=_BindingInfo,
    FunctionMetadataResponse=SimpleNamespace,
    InvocationResponse=SimpleNamespace,
    ParameterBinding=SimpleNamespace,
    RpcException=SimpleNamespace,
    RpcFunctionMetadata=SimpleNamespace,
    RpcRetryOptions=SimpleNamespace,
    StatusResult=_StatusResult,
    TypedData=_Message,
    WorkerInitResponse=SimpleNamespace,
    WorkerMetadata=SimpleNamespace,
)


class _Worker:
    """Serves the host until the host's end of the control channel closes.

    To the host: `{"ready": {"uri", "functions": [{"id", "name", "bindings"}]}}` or `{"failed": text}` once, then
    `{"finished": id, "error": text or null}` for each invocation.
    From the host: `{"id", "function", "parameter", "route", "traceparent", "tracestate", "metadata", "members"}`
    for each invocation, followed by as many bytes as "members" says: a body that may be a JSON object.
    """

    def __init__(self, control: socket.socket, script_root: Path) -> None:
        self.control = control
        self.script_root = script_root
        self.invocations: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        asyncio.get_running_loop().set_task_factory(_create_task)
        # Not open_connection: uvloop would treat the socket, which is a Unix one, as TCP.
        reader, self.writer = await asyncio.open_unix_connection(sock=self.control, limit=_CONTROL_LINE_BYTES)
        self.send(await self.initialise())
        while line := await reader.readline():
            invocation = json.loads(line)
            body = await reader.readexactly(invocation["members"]) if invocation["members"] else b""
            task = asyncio.create_task(self.invoke(invocation, body))
            self.invocations.add(task)
            task.add_done_callback(self.invocations.discard)
        # The host has ended. uvicorn's own shutdown would wait for open streams, which no one reads any more.
        os._exit(0)

    def send(self, message: dict[str, Any]) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def initialise(self) -> dict[str, Any]:
        """Load and index the app; returns the first message to the host."""
        runtime.start_threadpool_executor()
        initialised = await runtime.worker_init_request(
            SimpleNamespace(
                request=SimpleNamespace(
                    worker_init_request=SimpleNamespace(capabilities={}, function_app_directory=str(self.script_root))
                ),
                properties={"host": "127.0.0.1", "protos": _PROTOS},
            )
        )
        if initialised.result.status != _StatusResult.Success:
            exception = initialised.result.exception
            return {"failed": exception.stack_trace or exception.message}
        metadata = await runtime.functions_metadata_request(SimpleNamespace())
        functions = metadata.function_metadata_results
        if not functions:
            return {"failed": f"No function was found in {self.script_root / 'function_app.py'}."}
        uri = initialised.capabilities.get("HttpUri")
        if not uri:
            return {
                "failed": "The app does not stream: it has no HTTP function with a Request of "
                "azurefunctions.extensions.http.fastapi, and this host serves no other kind."
            }
        return {
            "ready": {
                "uri": uri,
                "functions": [
                    {
                        "id": function.function_id,
                        "name": function.name,
                        "bindings": [json.loads(binding) for binding in function.raw_bindings],
                    }
                    for function in functions
                ],
            }
        }

    async def invoke(self, invocation: dict[str, Any], body: bytes) -> None:
        """Call the function; its HTTP request arrives at the library's uvicorn under the same id."""
        setattr(asyncio.current_task(), _INVOCATION_ID, invocation["id"])
        request = _Message(
            oneof="http",
            http=SimpleNamespace(
                method="", url="", headers={}, query={}, params=invocation["route"], body=_Message(oneof=None)
            ),
        )
        response = await runtime.invocation_request(
            SimpleNamespace(
                request=SimpleNamespace(
                    invocation_request=SimpleNamespace(
                        invocation_id=invocation["id"],
                        function_id=invocation["function"],
                        input_data=[_Message(oneof="data", name=invocation["parameter"], data=request)],
                        trigger_metadata=_TriggerMetadata(invocation["metadata"], body),
                        trace_context=SimpleNamespace(
                            trace_parent=invocation["traceparent"], trace_state=invocation["tracestate"], attributes={}
                        ),
                        retry_context=SimpleNamespace(retry_count=0, max_retry_count=0, exception=None),
                    )
                )
            )
        )
        failed = response.result.status != _StatusResult.Success
        self.send({"finished": invocation["id"], "error": response.result.exception.message if failed else None})


class _LibraryMessages(logging.Filter):
    """Drops what the library logs below a warning, as the Functions host's console does."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("azure.functions") or record.levelno >= logging.WARNING


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_LibraryMessages())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _set_event_loop_policy() -> None:
    """Choose the event loop as the platform's worker does (proxy_worker/start_worker.py)."""
    if os.environ.get(_LOOP_SETTING) == "asyncio":
        return
    try:
        import uvloop
    except ImportError:
        return
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def _die_with_the_host(host: int) -> None:
    """Where the kernel can (Linux), be killed with the host, even while the app blocks the event loop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != host:
            os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="file descriptor of the control channel")
    parser.add_argument("--host", type=int, required=True, help="process id of the host")
    parser.add_argument("--script-root", type=Path, required=True, help="folder of function_app.py")
    options = parser.parse_args()
    _die_with_the_host(options.host)
    _log_to_stderr()
    _set_event_loop_policy()
    sys.path.insert(0, str(options.script_root))
    control = socket.socket(fileno=options.control)
    asyncio.run(_Worker(control, options.script_root).run())


if __name__ == "__main__":
    main()
