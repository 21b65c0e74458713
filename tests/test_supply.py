"""Tests of the supply chain: lock files, licences, bill of materials and Dependabot configuration."""

import importlib.metadata
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from infra.bill_of_materials import (
    AZURE_ENVIRONMENT,
    UnknownLicenceError,
    build_document,
    dependencies,
    is_allowed,
    licence,
    parse_lock,
    pinned_versions,
)

ROOT: Final = Path(__file__).resolve().parents[1]
PYPROJECT: Final = (ROOT / "pyproject.toml").read_text()
LOCK_FILES: Final = {
    "deployed": (ROOT / "requirements.txt").read_text(),
    "local": (ROOT / "local/requirements.txt").read_text(),
}
LOCKED: Final = {group: parse_lock(text) for group, text in LOCK_FILES.items()}
VERSIONS: Final = {package.name: package.version for package in LOCKED["deployed"]}
DEPLOYED: Final = [package.name for package in LOCKED["deployed"] if package.deployed]

OUTDATED: Final = "pyproject.toml and the lock file differ: run `make lock`"


@pytest.mark.parametrize("group", LOCKED)
def test_lock_contains_the_pinned_versions(group: str) -> None:
    locked = {package.name: package.version for package in LOCKED[group]}
    assert pinned_versions(PYPROJECT, group).items() <= locked.items(), OUTDATED


@pytest.mark.parametrize("group", LOCKED)
def test_lock_contains_each_package_once_with_hashes(group: str) -> None:
    names = [package.name for package in LOCKED[group]]
    assert len(set(names)) == len(names)
    for package in LOCKED[group]:
        assert package.hashes, package.name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in package.hashes)


@pytest.mark.parametrize("group", LOCK_FILES)
def test_lock_contains_no_url(group: str) -> None:
    statements = [line for line in LOCK_FILES[group].splitlines() if not line.lstrip().startswith(("#", "--hash="))]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.!+]+( ; [^\\]+)?( \\)?", line) for line in statements), statements


def test_lock_contains_exactly_the_transitive_dependencies() -> None:
    for name in DEPLOYED:
        assert set(dependencies(name)) <= set(DEPLOYED), f"a dependency of {name} is not locked: run `make lock`"
    required, added = set(pinned_versions(PYPROJECT, "deployed")), True
    while added:
        added = {dependency for name in required for dependency in dependencies(name)} - required
        required |= added
    assert required == set(DEPLOYED), OUTDATED
    for package in LOCKED["local"]:
        assert set(dependencies(package.name)) <= required, "the local lock relies on the deployed packages"


def test_installed_versions_are_the_locked_versions() -> None:
    assert {name: importlib.metadata.version(name) for name in DEPLOYED} == {name: VERSIONS[name] for name in DEPLOYED}


def test_packages_of_the_functions_worker_are_not_locked() -> None:
    assert not {"grpcio", "protobuf"} & VERSIONS.keys()


@pytest.mark.parametrize("name", DEPLOYED)
def test_licence_is_allowed(name: str) -> None:
    assert is_allowed(licence(name)), f"{name} is licensed under {licence(name)}"


def test_other_or_unknown_licence_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_allowed("GPL-3.0-only OR MIT")
    for expression in ("GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 WITH LLVM-exception", "(MIT)", ""):
        assert not is_allowed(expression)
    for declared in ("", "See LICENSE", "Proprietary"):
        monkeypatch.setattr(importlib.metadata, "metadata", lambda _, declared=declared: {"License": declared})
        with pytest.raises(UnknownLicenceError, match="a-package"):
            licence("a-package")


def test_bill_of_materials() -> None:
    document = build_document(LOCKED["deployed"], pinned_versions(PYPROJECT, "deployed"))
    assert document == build_document(LOCKED["deployed"], pinned_versions(PYPROJECT, "deployed"))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["bom-ref"]: component for component in document["components"]}
    assert {component["name"]: component["version"] for component in components.values()} == {
        name: VERSIONS[name] for name in DEPLOYED
    }
    assert components[f"pkg:pypi/certifi@{VERSIONS['certifi']}"]["licenses"] == [{"expression": "MPL-2.0"}]
    app, *others = document["dependencies"]
    assert len(app["dependsOn"]) == len(pinned_versions(PYPROJECT, "deployed"))
    assert [entry["ref"] for entry in others] == list(components)
    reached, added = set(), set(app["dependsOn"])
    depends_on = {entry["ref"]: set(entry["dependsOn"]) for entry in others}
    while added:
        reached |= added
        added = {dependency for ref in added for dependency in depends_on[ref]} - reached
    assert reached == set(components)


@pytest.mark.parametrize("line", ["fastapi", "fastapi>=0.1", "fastapi==0.*", "fastapi==1,<2"])
def test_unpinned_version_is_rejected(line: str) -> None:
    with pytest.raises(ValueError, match="not pinned"):
        parse_lock(line)


def test_packages_of_other_systems_are_not_deployed() -> None:
    colorama = "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n    # via click\n"
    windows, linux = parse_lock(colorama + "h11==0.16.0 \\\n    --hash=sha256:11\n")
    assert (windows.deployed, windows.hashes, linux.deployed) == (False, ("00",), True)
    assert AZURE_ENVIRONMENT["python_version"] == (ROOT / ".python-version").read_text().strip()


def test_dependabot_updates_all_dependency_files() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    updated = {
        (update["package-ecosystem"], folder.strip("/"))
        for update in updates
        for folder in update.get("directories") or [update["directory"]]
    }
    ecosystems = {"requirements.txt": "pip", "package.json": "npm", "terraform.tf": "terraform"}
    existing = {
        (ecosystems[path.name], path.parent.relative_to(ROOT).as_posix().removeprefix("."))
        for folder in ("*", "infra/*", "local/*", "tests/**/*")
        for path in ROOT.glob(folder)
        if path.name in ecosystems and "node_modules" not in path.parts
    }
    updated_with_the_app = {("pip", "local")}
    assert updated == existing - updated_with_the_app | {("github-actions", ""), ("devcontainers", "")}
    for update in updates:
        assert update["schedule"] == {"interval": "weekly"}
