"""The child of `local.functions_host`: the official worker library, driven over a socket instead of gRPC.

The library asks its caller for protobuf messages; plain objects with the same members do. What goes over the control
channel, one JSON object a line, is described at `_Worker`. stdout and stderr stay free for the app's own words.
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
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure_functions_runtime as runtime

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Message(SimpleNamespace):
    """A protobuf message with a oneof: `oneof` is the name of the member that is set."""

    oneof: str | None = None

    def WhichOneof(self, _group: str) -> str | None:  # noqa: N802 (protobuf's name)
        return self.oneof


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
    """Answers the host until the host goes away.

    To the host: `{"ready": {"uri", "functions": [{"id", "name", "bindings"}]}}` or `{"failed": text}` once, then
    `{"finished": id, "error": text or null}` for each invocation.
    From the host: `{"id", "function", "parameter", "route", "traceparent", "tracestate"}` for each invocation.
    """

    def __init__(self, control: socket.socket, script_root: Path) -> None:
        self.control = control
        self.script_root = script_root
        self.invocations: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        reader, self.writer = await asyncio.open_connection(sock=self.control, limit=16 * 1024 * 1024)
        self.tell(await self.initialise())
        while line := await reader.readline():
            task = asyncio.create_task(self.invoke(json.loads(line)))
            self.invocations.add(task)
            task.add_done_callback(self.invocations.discard)
        # The host is gone: nothing is left to serve, and uvicorn's own shutdown would wait for open streams.
        os._exit(0)

    def tell(self, message: dict[str, Any]) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def initialise(self) -> dict[str, Any]:
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

    async def invoke(self, invocation: dict[str, Any]) -> None:
        """Call the function; its HTTP request arrives at the library's uvicorn under the same id."""
        request = _Message(
            oneof="http",
            http=SimpleNamespace(
                method="", url="", headers={}, query={}, params=invocation["route"], body=_Message(oneof=None)
            ),
        )
        answer = await runtime.invocation_request(
            SimpleNamespace(
                request=SimpleNamespace(
                    invocation_request=SimpleNamespace(
                        invocation_id=invocation["id"],
                        function_id=invocation["function"],
                        input_data=[_Message(oneof="data", name=invocation["parameter"], data=request)],
                        trigger_metadata={},
                        trace_context=SimpleNamespace(
                            trace_parent=invocation["traceparent"], trace_state=invocation["tracestate"], attributes={}
                        ),
                        retry_context=SimpleNamespace(retry_count=0, max_retry_count=0, exception=None),
                    )
                )
            )
        )
        failed = answer.result.status != _StatusResult.Success
        self.tell({"finished": invocation["id"], "error": answer.result.exception.message if failed else None})


class _LibraryChatter(logging.Filter):
    """Keeps the library's running commentary out, as the Functions host's console does."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("azure.functions") or record.levelno >= logging.WARNING


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_LibraryChatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


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
    sys.path.insert(0, str(options.script_root))
    control = socket.socket(fileno=options.control)
    asyncio.run(_Worker(control, options.script_root).run())


if __name__ == "__main__":
    main()
