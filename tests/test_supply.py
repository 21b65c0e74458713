"""What is shipped: locked to the last package and file, under licences that allow it, and written down."""

import importlib.metadata
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from infra import bill_of_materials
from infra.bill_of_materials import UnknownLicenceError, asked_for, document, is_allowed, licence, needs, read_lock

ROOT: Final = Path(__file__).resolve().parents[1]
PYPROJECT: Final = (ROOT / "pyproject.toml").read_text()
TEXTS: Final = {
    "deployed": (ROOT / "requirements.txt").read_text(),
    "local": (ROOT / "local/requirements.txt").read_text(),
}
LOCKED: Final = {group: read_lock(text) for group, text in TEXTS.items()}
VERSIONS: Final = {package.name: package.version for package in LOCKED["deployed"]}
DEPLOYED: Final = [package.name for package in LOCKED["deployed"] if package.deployed]

STALE: Final = "pyproject.toml and the lock differ: run `make lock`"


@pytest.mark.parametrize("group", LOCKED)
def test_what_is_asked_for_is_what_is_locked(group: str) -> None:
    locked = {package.name: package.version for package in LOCKED[group]}
    assert asked_for(PYPROJECT, group).items() <= locked.items(), STALE


@pytest.mark.parametrize("group", LOCKED)
def test_every_package_is_there_once_with_the_hashes_of_its_files(group: str) -> None:
    names = [package.name for package in LOCKED[group]]
    assert len(set(names)) == len(names)
    for package in LOCKED[group]:
        assert package.hashes, package.name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in package.hashes)


@pytest.mark.parametrize("group", TEXTS)
def test_no_address_is_in_the_lock(group: str) -> None:
    statements = [line for line in TEXTS[group].splitlines() if not line.lstrip().startswith(("#", "--hash="))]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.!+]+( ; [^\\]+)?( \\)?", line) for line in statements), statements


def test_nothing_is_missing_and_nothing_is_there_for_nobody() -> None:
    for name in DEPLOYED:
        assert set(needs(name)) <= set(DEPLOYED), f"{name} needs more than is locked: run `make lock`"
    wanted, more = set(asked_for(PYPROJECT, "deployed")), True
    while more:
        more = {need for name in wanted for need in needs(name)} - wanted
        wanted |= more
    assert wanted == set(DEPLOYED), STALE
    (runtime,) = LOCKED["local"]
    assert set(needs(runtime.name)) <= wanted, "its own needs are taken from the deployed packages"


def test_what_is_tested_is_what_is_shipped() -> None:
    assert {name: importlib.metadata.version(name) for name in DEPLOYED} == {name: VERSIONS[name] for name in DEPLOYED}


def test_what_belongs_to_the_functions_worker_is_left_to_it() -> None:
    assert not {"grpcio", "protobuf"} & VERSIONS.keys()


@pytest.mark.parametrize("name", DEPLOYED)
def test_its_licence_allows_it_to_be_shipped(name: str) -> None:
    assert is_allowed(licence(name)), f"{name} comes under {licence(name)}"


def test_an_unknown_licence_is_no_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_allowed("GPL-3.0-only OR MIT")
    for expression in ("GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 WITH LLVM-exception", "(MIT)", ""):
        assert not is_allowed(expression)
    for said in ("", "See LICENSE", "Proprietary, ask us"):
        monkeypatch.setattr(importlib.metadata, "metadata", lambda _, said=said: {"License": said})
        with pytest.raises(UnknownLicenceError, match="a-package"):
            licence("a-package")


def test_the_bill_of_materials() -> None:
    bill = document(LOCKED["deployed"], asked_for(PYPROJECT, "deployed"))
    assert bill == document(LOCKED["deployed"], asked_for(PYPROJECT, "deployed"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["bom-ref"]: component for component in bill["components"]}
    assert {component["name"]: component["version"] for component in components.values()} == {
        name: VERSIONS[name] for name in DEPLOYED
    }
    assert components[f"pkg:pypi/certifi@{VERSIONS['certifi']}"]["licenses"] == [{"expression": "MPL-2.0"}]
    app, *others = bill["dependencies"]
    assert len(app["dependsOn"]) == len(asked_for(PYPROJECT, "deployed"))
    assert [entry["ref"] for entry in others] == list(components)
    reached, more = set(), set(app["dependsOn"])
    depends = {entry["ref"]: set(entry["dependsOn"]) for entry in others}
    while more:
        reached |= more
        more = {need for ref in more for need in depends[ref]} - reached
    assert reached == set(components)


@pytest.mark.parametrize("line", ["fastapi", "fastapi>=0.1", "fastapi==0.*", "fastapi==1,<2"])
def test_a_version_that_is_left_open_is_no_lock(line: str) -> None:
    with pytest.raises(ValueError, match="not pinned"):
        read_lock(line)


def test_what_other_systems_need_is_not_deployed() -> None:
    colorama = "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n    # via click\n"
    windows, linux = read_lock(colorama + "h11==0.16.0 \\\n    --hash=sha256:11\n")
    assert (windows.deployed, windows.hashes, linux.deployed) == (False, ("00",), True)
    assert bill_of_materials.AZURE["python_version"] == (ROOT / ".python-version").read_text().strip()


def test_every_list_of_needs_is_kept_up_to_date() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    watched = {
        (update["package-ecosystem"], folder.strip("/"))
        for update in updates
        for folder in update.get("directories") or [update["directory"]]
    }
    lists = {"requirements.txt": "pip", "package.json": "npm", "terraform.tf": "terraform"}
    there = {
        (lists[path.name], path.parent.relative_to(ROOT).as_posix().removeprefix("."))
        for folder in ("*", "infra/*", "local/*", "tests/**/*")
        for path in ROOT.glob(folder)
        if path.name in lists and "node_modules" not in path.parts
    }
    locked_with_the_app = {("pip", "local")}
    assert watched == there - locked_with_the_app | {("github-actions", "")}
    for update in updates:
        assert update["schedule"] == {"interval": "weekly"}
