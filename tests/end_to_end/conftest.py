"""What end-to-end tests are given.

`sample_app`     a host with `sample_app/function_app.py`, for tests of the host itself.
`functions_app`  a factory: `functions_app(env={...}, key="...", settings={...})` hosts the app of this repository (or
                 another `script_root`) with those app settings; the same arguments give the same running host.
                 `fresh=True` gives one that no other test has, for a test that ends it.

Each is a `HostedApp` (see `hosting.py`): `url`, `client()`, `output`, `worker_pid`, `stop()`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.hosting import ROOT, SAMPLE_APP, HostedApp


@pytest.fixture(scope="session")
def functions_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., HostedApp]]:
    """Hosts the app with other settings; see this module's docstring."""
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
            app = HostedApp(
                tmp_path_factory.mktemp("host"), script_root=script_root, env=env, key=key, settings=settings
            )
            stack.callback(app.stop)
            if not fresh:
                running[name] = app
            return app

        yield start


@pytest.fixture(scope="session")
def sample_app(functions_app: Callable[..., HostedApp]) -> HostedApp:
    """A host with the sample app: no keys are checked."""
    return functions_app(script_root=SAMPLE_APP)
