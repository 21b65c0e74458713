"""The processes of the benchmark: what runs on which core, and the CPU time and memory that each has used.

Every app runs in the worker of `local.functions_host`, and so on the platform's event loop, with its task factory.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from local.functions_host import Worker
from tests.bench.load import ParseAnswer, RelayAnswer, Target, TextAnswer, UpstreamAnswer
from tests.end_to_end.hosting import ROOT, bare_environment

FOLDER: Final = Path(__file__).parent

# Each app's folder, and the parser of its answers. `--beside` adds another state of the relay.
APPS: Final[dict[str, tuple[Path, ParseAnswer]]] = {
    "relay": (ROOT, RelayAnswer),
    "usual way": (FOLDER / "usual_way_app", TextAnswer),
    "byte copy": (FOLDER / "byte_copy_app", UpstreamAnswer),
}


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process with all its threads, to the nanosecond (clock_getcpuclockid(3), on Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


def waited_seconds(pid: int) -> float:
    """How long a process's first thread, which runs the event loop, was ready to run while others used its core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def event_loop(pid: int) -> str:
    """The event loop of a worker: uvloop if it has loaded it."""
    return "uvloop" if "/uvloop/" in Path(f"/proc/{pid}/maps").read_text() else "asyncio"


_CORES: Final = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]


def pin_to_core(core: int) -> None:
    """Restrict this process, and those that it starts, to one core where there are several."""
    os.sched_setaffinity(0, {_CORES[core % len(_CORES)]})


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Restrict the processes that are started inside to one core."""
    before = os.sched_getaffinity(0)
    pin_to_core(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ModelServiceProcess:
    """The benchmark's model service; it runs on the core of the load generator."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.upstream"],
            cwd=ROOT,
            env=bare_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.port = int(self._process.stdout.readline())

    @property
    def direct(self) -> Target:
        """The model service itself as a target."""
        return Target("direct", ("127.0.0.1", self.port), None, UpstreamAnswer)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class App:
    """An app in a worker of its own, on a core of its own."""

    def __init__(self, name: str, model_service: ModelServiceProcess) -> None:
        self.name = name
        self.root, self._parse = APPS[name]
        self._worker = Worker(self.root, app_environment(model_service.port), lambda _line: None)

    async def __aenter__(self) -> Self:
        with on_core(0):
            await self._worker.start()
        process = self._worker._process
        assert process is not None
        self.pid = process.transport.get_pid()
        connection = await self._worker.connect()
        address = connection.transport.get_extra_info("peername")
        connection.transport.close()
        self.target = Target(self.name, address, self._worker, self._parse)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.target.close()
        await self._worker.stop()


def app_environment(port: int) -> dict[str, str]:
    """The settings of every app, with the model service at this port."""
    return bare_environment(
        {
            "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{port}/openai/v1/",
            "BENCH_UPSTREAM": f"http://127.0.0.1:{port}",
            "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini",
            "AZURE_OPENAI_API_KEY": "0123456789abcdef0123456789abcdef",
        }
    )


@dataclass(frozen=True, slots=True)
class Clocks:
    """Readings of the clocks in seconds: wall time, and CPU time of the app, the model service and the load generator.

    `waited` is for how long the app did not have its core when it could have used it.
    """

    wall: float
    app: float
    waited: float
    model_service: float
    load: float

    @classmethod
    def read(cls, app: int, model_service: int) -> Self:
        """Read all of them; `app` and `model_service` are process ids."""
        return cls(
            time.monotonic(),
            cpu_seconds(app),
            waited_seconds(app),
            cpu_seconds(model_service),
            time.process_time(),
        )


async def settle() -> None:
    """Wait until the apps have finished their work on the last measurement."""
    await asyncio.sleep(0.2)
