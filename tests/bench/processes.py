"""The processes of the benchmark: who runs where, and what CPU time and memory each has used."""

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

from local.worker_client import Worker
from tests.bench.load import Read, RelayReading, SeedReading, Target, WireReading
from tests.end_to_end.hosting import ROOT, bare_environment

FOLDER: Final = Path(__file__).parent

# Each app's folder, and how its answers are read. `--beside` adds another state of the relay.
APPS: Final[dict[str, tuple[Path, Read]]] = {
    "relay": (ROOT, RelayReading),
    "seed": (FOLDER / "seed_app", SeedReading),
    "copy": (FOLDER / "copy_app", WireReading),
}


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process with all its threads, to the nanosecond (clock_getcpuclockid(3), on Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


def waited_seconds(pid: int) -> float:
    """How long a process's first thread, where the event loop is, was ready to run while others had its core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def resident_bytes(pid: int) -> int:
    """The memory of a process that is resident now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_CORES: Final = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]


def stay_on_core(core: int) -> None:
    """Let this process, and what it starts, run on one core only, where there is more than one."""
    os.sched_setaffinity(0, {_CORES[core % len(_CORES)]})


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile runs on one core only."""
    before = os.sched_getaffinity(0)
    stay_on_core(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ModelServiceProcess:
    """The benchmark's model service; it runs on the core of the callers, who start it."""

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
        return Target("direct", ("127.0.0.1", self.port), None, WireReading)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class App:
    """An app in a worker of its own, with a core of its own."""

    def __init__(self, name: str, model_service: ModelServiceProcess) -> None:
        self.name = name
        self.root, self._read = APPS[name]
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
        self.target = Target(self.name, address, self._worker, self._read)
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
class Moment:
    """What the clocks say now: the wall's, and the CPU's of the app, the model service and the callers.

    `waited` is for how long the app has not had its core when it could have used it.
    """

    wall: float
    app: float
    waited: float
    model_service: float
    callers: float

    @classmethod
    def now(cls, app: int, model_service: int) -> Self:
        """Read all of them; `app` and `model_service` are process ids."""
        return cls(
            time.monotonic(),
            cpu_seconds(app),
            waited_seconds(app),
            cpu_seconds(model_service),
            time.process_time(),
        )


async def settle() -> None:
    """Let what the last scenario left behind come to its end."""
    await asyncio.sleep(0.2)
