"""What end-to-end tests are given.

`model_service`   the simulated model service, new for each test and in the test's own event loop, so that a test may
                  look at `requests`, plan `faults`, and await `wait_for(…)`; without pauses between tokens until the
                  test sets `tokens_per_second`, or asks for the deployment `paced-by-hand` and calls `release()`.
`app`             a host with the app of this repository whose settings point at that service (its port stays the same
                  for the session). Keys are not checked.
`caller`          an httpx client of `app`, with the model service running.
`app_settings`    the app settings that `app` has, to start another host from them:
`functions_app`   a factory: `functions_app(env=app_settings | {"PING_INTERVAL_SECONDS": "0.1"}, key="…")`.
                  The same arguments give the same running host; `fresh=True` gives one that no other test has, for a
                  test that ends it or measures it. `settings` is the content of its local.settings.json,
                  `script_root` another app.
`sample_app`      a host with `sample_app/function_app.py`, for tests of the host itself.

Hosts are `HostedApp`s (see `hosting.py`): `url`, `client()`, `address`, `output`, `worker_pid`, `stop()`. They live as
long as the session; one that ended without being told to fails the session at its end, with all that it printed.
"""

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.model_service import BY_HAND, DEFAULT_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import ROOT, SAMPLE_APP, HostedApp


@pytest.fixture(scope="session")
def functions_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., HostedApp]]:
    """Hosts an app with settings of the test's own; see this module's docstring."""
    running: dict[str, HostedApp] = {}
    with ExitStack() as stack:

        def start(
            *,
            env: Mapping[str, str] | None = None,
            key: str | None = None,
            settings: Mapping[str, Any] | None = None,
            script_root: Path = ROOT,
            fresh: bool = False,
        ) -> HostedApp:
            name = repr((sorted((env or {}).items()), key, settings, script_root))
            if not fresh and name in running:
                return running[name]
            folder = tmp_path_factory.mktemp("host")
            app = HostedApp(folder, script_root=script_root, env=env, key=key, settings=settings)
            stack.callback(app.stop)
            if not fresh:
                running[name] = app
            return app

        yield start


@pytest.fixture(scope="session")
def sample_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    """A host with the sample app."""
    return functions_app(script_root=SAMPLE_APP)


@pytest.fixture(scope="session")
def model_service_port() -> Iterator[int]:
    """A port that is the model service's for the whole session."""
    with socket.socket() as reserved:
        # Bound and never listening: nobody else is given the port, and the service can still listen there (on Linux
        # two sockets may be bound to one address with SO_REUSEADDR as long as no other one listens).
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
        "AZURE_OPENAI_DEPLOYMENTS": f"{DEFAULT_DEPLOYMENT},{BY_HAND}",
    }


@pytest.fixture(scope="session")
def app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """A host with the app of this repository."""
    return functions_app(env=app_settings)


@pytest.fixture
async def caller(app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app`, with the model service running."""
    async with app.client() as client:
        yield client
