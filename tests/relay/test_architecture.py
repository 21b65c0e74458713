"""The architecture of the deployed app: imports run one way."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
FUNCTION_APP: Final = ROOT / "function_app.py"

# From top to bottom. A module may import from its own package and from lower layers only.
LAYERS: Final = (
    {"function_app"},
    {"relay.openapi", "relay.readiness", "relay.worker_patches"},
    {"relay.wires"},
    {"relay.callers"},
    {"relay.streaming"},
    {"relay.upstream"},
    {"relay.telemetry"},
    {"relay.settings", "relay.problems", "relay.version"},
    {"relay.usage"},
)
INDEPENDENT: Final = {"relay", "relay.page"}  # they import nothing of `relay`

HTTP_CLIENTS: Final = {"aiohttp", "httpx2", "openai"}
CONNECTING: Final = {f"relay.upstream.{name}" for name in ("pool", "client", "transport", "connection", "credential")}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES: Final = {module_name(path): path for path in sorted((FUNCTION_APP, *(ROOT / "relay").rglob("*.py")))}


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """Every module that the source imports, by its full name: anywhere in it, also by `importlib`."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in MODULES else origin
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                (name,) = [it.value for it in node.args[:1] if isinstance(it, ast.Constant)]
                yield str(name)


IMPORTS: Final = {
    module: set(imports(module, path.read_text(), is_package=path.name == "__init__.py"))
    for module, path in MODULES.items()
}


def of_relay(names: set[str]) -> set[str]:
    return {name for name in names if name == "relay" or name.startswith("relay.")}


def unit(module: str) -> str:
    """The package or module directly below `relay`."""
    return ".".join(module.split(".")[:2])


def layer(module: str) -> int:
    (found,) = [depth for depth, units in enumerate(LAYERS) if unit(module) in units]
    return found


def closure(module: str) -> set[str]:
    """All that is imported with the module, directly or not."""
    found: set[str] = set()
    pending = [module]
    while pending:
        for name in IMPORTS.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def test_every_module_has_its_place() -> None:
    places = set().union(*LAYERS, INDEPENDENT)
    assert {unit(module) for module in MODULES} == places


def test_every_import_of_relay_is_of_a_module() -> None:
    assert set().union(*map(of_relay, IMPORTS.values())) <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    imported = of_relay(IMPORTS[module])
    if unit(module) in INDEPENDENT:
        assert imported == set()
        return
    others = {name for name in imported if unit(name) != unit(module) and unit(name) not in INDEPENDENT}
    assert {name for name in others if layer(name) <= layer(module)} == set()
    if module != "function_app":
        assert {name for name in imported if unit(name) in INDEPENDENT} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if unit(module) == "relay.wires"])
def test_wires_do_not_connect(module: str) -> None:
    everything = closure(module)
    assert {name for name in everything if name.split(".")[0] in HTTP_CLIENTS} == set()
    assert everything & CONNECTING == set()


@pytest.mark.parametrize("module", [module for module in MODULES if unit(module) == "relay.streaming"])
def test_streaming_knows_no_wire(module: str) -> None:
    assert {name for name in closure(module) if unit(name) == "relay.wires"} == set()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_deployed_imports_what_is_not(module: str) -> None:
    assert {name for name in IMPORTS[module] if name.split(".")[0] in ("local", "tests", "infra")} == set()


@pytest.mark.parametrize("text", ["FastAPI()", "from fastapi import"])
def test_the_functions_do_not_name_fastapi(text: str) -> None:
    """With one of these texts in the file, the worker shell would start another runtime."""
    assert text not in FUNCTION_APP.read_text()


class TestTheCheckItself:
    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("import relay.settings", {"relay.settings"}),
            ("import relay.settings as s, os.path", {"relay.settings", "os.path"}),
            ("from relay import telemetry, problems", {"relay.telemetry", "relay.problems"}),
            ("from relay.settings import Settings", {"relay.settings"}),
            ("from relay.upstream import sse", {"relay.upstream.sse"}),
            ("from . import sse", {"relay.upstream.sse"}),
            ("from .sse import SSEDecoder", {"relay.upstream.sse"}),
            ("from .. import telemetry", {"relay.telemetry"}),
            ("from ..wires import stream", {"relay.wires.stream"}),
            ("def f():\n    import aiohttp", {"aiohttp"}),
            ("if TYPE_CHECKING:\n    from relay.upstream.client import X", {"relay.upstream.client"}),
            ("importlib.import_module('relay.wires.stream')", {"relay.wires.stream"}),
            ("import_module('local.x')", {"local.x"}),
            ("__import__('tests')", {"tests"}),
        ],
    )
    def test_it_finds_every_kind_of_import(self, source: str, found: set[str]) -> None:
        assert set(imports("relay.upstream.example", source)) == found

    def test_a_relative_import_of_a_package(self) -> None:
        assert set(imports("relay.upstream", "from . import sse", is_package=True)) == {"relay.upstream.sse"}

    def test_it_reads_the_app(self) -> None:
        assert "relay.upstream.connection" in IMPORTS["relay.upstream.pool"]
        assert "relay.wires.stream" in IMPORTS["function_app"]
        assert set(MODULES) >= CONNECTING
        assert CONNECTING - {"relay.upstream.pool"} <= closure("relay.upstream.pool")
        assert closure("relay.upstream.pool") >= HTTP_CLIENTS
