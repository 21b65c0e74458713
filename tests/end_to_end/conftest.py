"""Fixtures of the end-to-end tests.

`model_service`   the simulated model service, new for each test and in the test's event loop, so that a test can
                  read `requests`, plan `faults` and await `wait_for(…)`. There are no pauses between tokens unless the
                  test sets `tokens_per_second`, or requests the manually paced deployment and calls `release()`.
`app`             a host with this repository's app, whose settings point at that service (its port stays the same for
                  the session). Keys are not checked.
`client`          an httpx client of `app`, with the model service running.
`app_settings`    the app settings of `app`, from which other hosts are started:
`functions_app`   a factory: `functions_app(env=app_settings | {"PING_INTERVAL_SECONDS": "0.1"}, key="…")`.
                  The same arguments return the same running host; `fresh=True` starts one that no other test uses, for
                  a test that ends it or measures it. `settings` is the content of its local.settings.json,
                  `script_root` the folder of another app. A host takes a second or two of CPU time to start. It runs
                  until the last test of the module, a `lasting` one until the last test of all.
`sample_app`      a host with `sample_app/function_app.py`, for tests of the host itself.

Hosts are `HostedApp`s (see `hosting.py`): `url`, `client()`, `address`, `output`, `worker_pid`, `stop()`. If one ends
unexpectedly, the last test that could use it fails with all that the host printed.
"""

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.fork_server import ForkServer
from tests.end_to_end.hosting import ROOT, SAMPLE_APP, HostedApp, bare_environment


class Hosts:
    """Starts hosts, and returns a running one where it was started with the same arguments."""

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._fork_server: ForkServer | None = None
        self._running: list[tuple[str, HostedApp, bool]] = []

    def __call__(
        self,
        *,
        env: Mapping[str, str] | None = None,
        key: str | None = None,
        settings: Mapping[str, Any] | None = None,
        script_root: Path = ROOT,
        fresh: bool = False,
        lasting: bool = False,
    ) -> HostedApp:
        name = repr((sorted((env or {}).items()), key, settings, script_root))
        for other, app, _ in self._running:
            if other == name and not fresh:
                return app
        if self._fork_server is None:
            self._fork_server = ForkServer(bare_environment())
        app = HostedApp(
            self._new_folder(),
            script_root=script_root,
            env=env,
            key=key,
            settings=settings,
            fork_server=self._fork_server,
        )
        self._running.append(("" if fresh else name, app, lasting))
        return app

    def close(self) -> None:
        """Stop all hosts."""
        try:
            self.stop(lasting=True)
        finally:
            if self._fork_server is not None:
                self._fork_server.close()

    def count(self) -> int:
        """The number of hosts that run."""
        return len(self._running)

    def stop(self, since: int = 0, *, lasting: bool = False) -> None:
        """Stop the hosts that were started since there were so many; `lasting`: those of the session as well."""
        stopped = [it for it in self._running[since:] if lasting or not it[2]]
        self._running = [it for it in self._running if it not in stopped]
        with ExitStack() as stack:
            for _, app, _ in stopped:
                stack.callback(app.stop)
            for _, app, _ in stopped:
                app.interrupt()


@pytest.fixture(scope="session")
def functions_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Hosts an app with settings of the test's choice; see this module's docstring."""
    hosts = Hosts(lambda: tmp_path_factory.mktemp("host"))
    yield hosts
    hosts.close()


@pytest.fixture(scope="module", autouse=True)
def stop_hosts(functions_app: Hosts) -> Iterator[None]:
    """Stops the hosts that the module's tests have started: those of all modules need too much memory."""
    count = functions_app.count()
    yield
    functions_app.stop(count)


@pytest.fixture(scope="session")
def sample_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    """A host with the sample app."""
    return functions_app(script_root=SAMPLE_APP, lasting=True)


@pytest.fixture(scope="session")
def model_service_port() -> Iterator[int]:
    """The model service's port for the whole session."""
    with socket.socket() as reserved:
        # Bound but never listening: no other process is given the port, and the service can still listen there (on
        # Linux two sockets can be bound to one address with SO_REUSEADDR as long as no other one listens).
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
async def model_service(model_service_port: int) -> AsyncIterator[ModelService]:
    """The simulated model service, new for this test."""
    async with ModelService(port=model_service_port, tokens_per_second=0) as service:
        yield service


@pytest.fixture(scope="session")
def app_settings(model_service_port: int) -> dict[str, str]:
    """The app settings of `app`."""
    return {
        "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{model_service_port}/openai/v1/",
        "AZURE_OPENAI_DEPLOYMENTS": f"{DEFAULT_DEPLOYMENT},{MANUAL_PACE}",
    }


@pytest.fixture(scope="session")
def app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """A host with this repository's app."""
    return functions_app(env=app_settings, lasting=True)


@pytest.fixture
async def client(app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app`, with the model service running."""
    async with app.client() as client:
        yield client
