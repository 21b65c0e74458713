"""Prints the software bill of materials: each deployed package with its licence and dependencies (CycloneDX, JSON).

bill_of_materials.py > relay.cdx.json

Run it in the directory of requirements.txt, in an environment where those packages are installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The environment of the deployed app, for evaluating markers independently of this machine.
AZURE_ENVIRONMENT: Final = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.13.0",
    "python_version": "3.13",
    "sys_platform": "linux",
    "extra": "",
}

# Licences that require no more than including their text and notices; those of MPL-2.0 apply only to its own files.
ALLOWED_LICENCES: Final = frozenset(
    {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"}
)

# Values of the `License` field that are not SPDX expressions.
_SPDX_BY_LEGACY_NAME: Final = {"Apache 2.0": "Apache-2.0", "MIT License": "MIT"}

# Packages whose metadata holds only the full licence text; identified by reading it.
_LICENCE_FROM_TEXT: Final = {"isodate": "BSD-3-Clause"}


class UnknownLicenceError(Exception):
    """A package's metadata names no licence, or none that can be parsed."""


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One package of the lock file: normalized name, version, and the SHA-256 of each file that may be installed.

    `deployed` is false for a package that only systems other than Azure's install.
    """

    name: str
    version: str
    hashes: tuple[str, ...]
    deployed: bool


def parse_lock(text: str) -> list[LockedPackage]:
    """Parse a requirements file; raises ValueError for a requirement that is not pinned to one version."""
    packages = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        statement = re.sub(r"(^|\s)#.*", "", line).strip()
        if not statement:
            continue
        specification, *hashes = re.split(r"\s+--hash=sha256:", statement)
        requirement = Requirement(specification)
        pin = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        if pin is None:
            raise ValueError(f"{specification} is not pinned")
        marker = requirement.marker
        deployed = marker is None or marker.evaluate(AZURE_ENVIRONMENT)
        packages.append(LockedPackage(canonicalize_name(requirement.name), pin[1], tuple(hashes), deployed))
    return packages


def dependencies(name: str) -> Iterator[str]:
    """The normalized names of the packages that an installed package requires in `AZURE_ENVIRONMENT`."""
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(AZURE_ENVIRONMENT):
            yield canonicalize_name(requirement.name)


def licence(name: str) -> str:
    """The SPDX licence expression of an installed package; raises `UnknownLicenceError`."""
    if name in _LICENCE_FROM_TEXT:
        return _LICENCE_FROM_TEXT[name]
    metadata = importlib.metadata.metadata(name)
    declared = metadata.get("License-Expression") or metadata.get("License") or ""
    try:
        return canonicalize_license_expression(_SPDX_BY_LEGACY_NAME.get(declared, declared))
    except InvalidLicenseExpression:
        raise UnknownLicenceError(f"{name}: {declared[:60]!r} is not an SPDX licence expression") from None


def is_allowed(expression: str) -> bool:
    """Whether an alternative of the expression has only allowed licences; WITH and parentheses are not supported."""
    return any(ALLOWED_LICENCES.issuperset(choice.split(" AND ")) for choice in expression.split(" OR "))


def pinned_versions(pyproject: str, group: str) -> dict[str, str]:
    """The versions that a dependency group of pyproject.toml pins, by normalized package name."""
    entries = tomllib.loads(pyproject)["dependency-groups"][group]
    return {package.name: package.version for package in parse_lock("\n".join(entries))}


def build_document(packages: Iterable[LockedPackage], direct: Iterable[str]) -> dict[str, Any]:
    """The CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/); the same lock gives the same document.

    `direct`: the normalized names of the app's direct dependencies.
    """
    deployed = [package for package in packages if package.deployed]
    refs = {package.name: f"pkg:pypi/{package.name}@{package.version}" for package in deployed}
    depends_on = {
        name: sorted(refs[dependency] for dependency in set(dependencies(name)) if dependency in refs) for name in refs
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(refs.values()))}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "app", "name": "relay"}},
        "components": [
            {
                "type": "library",
                "bom-ref": refs[package.name],
                "name": package.name,
                "version": package.version,
                "purl": refs[package.name],
                "licenses": [{"expression": licence(package.name)}],
            }
            for package in deployed
        ],
        "dependencies": [
            {"ref": "app", "dependsOn": sorted(refs[name] for name in direct)},
            *({"ref": refs[name], "dependsOn": dependency_refs} for name, dependency_refs in depends_on.items()),
        ],
    }


def main() -> None:
    try:
        lock, pyproject = Path("requirements.txt").read_text(), Path("pyproject.toml").read_text()
        document = build_document(parse_lock(lock), pinned_versions(pyproject, "deployed"))
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed here: run make .venv/.for-start to install it") from None
    except UnknownLicenceError as error:
        raise SystemExit(str(error)) from None
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
