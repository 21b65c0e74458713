"""What is deployed, as a bill of materials: each package of the lock, its licence and its own needs (CycloneDX, JSON).

bill_of_materials.py > relay.cdx.json        (beside requirements.txt, in an environment that has what it names)
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

# Where the app runs, whatever machine this is.
AZURE: Final = {
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

# Licences that ask for no more than their text and their notices; MPL-2.0 asks it of its own files alone.
ALLOWED: Final = frozenset({"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"})

# What packages write in `License` that is no SPDX expression.
_OLD_NAMES: Final = {"Apache 2.0": "Apache-2.0", "MIT License": "MIT"}

# What is told by its whole text alone, read there.
_READ: Final = {"isodate": "BSD-3-Clause"}


class UnknownLicenceError(Exception):
    """A package does not say under which licence it comes, or not so that it can be understood."""


@dataclass(frozen=True, slots=True)
class Locked:
    """One package of the lock: its normalized name, the version, and the SHA-256 of each file that may be installed.

    Not `deployed`: it is for other systems than Azure's.
    """

    name: str
    version: str
    hashes: tuple[str, ...]
    deployed: bool


def read_lock(text: str) -> list[Locked]:
    """The packages of a requirements file in which all are pinned; raises ValueError for what is not."""
    packages = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        statement = re.sub(r"(^|\s)#.*", "", line).strip()
        if not statement:
            continue
        words, *hashes = re.split(r"\s+--hash=sha256:", statement)
        requirement = Requirement(words)
        pin = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        if pin is None:
            raise ValueError(f"{words} is not pinned")
        marker = requirement.marker
        deployed = marker is None or marker.evaluate(AZURE)
        packages.append(Locked(canonicalize_name(requirement.name), pin[1], tuple(hashes), deployed))
    return packages


def needs(name: str) -> Iterator[str]:
    """The normalized names of the packages that an installed one needs, there where the app runs."""
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(AZURE):
            yield canonicalize_name(requirement.name)


def licence(name: str) -> str:
    """The SPDX licence expression of an installed package; raises `UnknownLicenceError`."""
    if name in _READ:
        return _READ[name]
    metadata = importlib.metadata.metadata(name)
    said = metadata.get("License-Expression") or metadata.get("License") or ""
    try:
        return canonicalize_license_expression(_OLD_NAMES.get(said, said))
    except InvalidLicenseExpression:
        raise UnknownLicenceError(f"{name}: its licence is told as {said[:60]!r}") from None


def is_allowed(expression: str) -> bool:
    """Whether one of an expression's choices has only licences that are allowed. Exceptions and brackets are not."""
    return any(ALLOWED.issuperset(choice.split(" AND ")) for choice in expression.split(" OR "))


def asked_for(pyproject: str, group: str) -> dict[str, str]:
    """The version of each package, by its normalized name, that a dependency group of pyproject.toml pins."""
    entries = tomllib.loads(pyproject)["dependency-groups"][group]
    return {package.name: package.version for package in read_lock("\n".join(entries))}


def document(packages: Iterable[Locked], direct: Iterable[str]) -> dict[str, Any]:
    """The bill of materials (CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/); the same for the same lock.

    `direct`: the packages that the app itself needs.
    """
    there = [package for package in packages if package.deployed]
    refs = {package.name: f"pkg:pypi/{package.name}@{package.version}" for package in there}
    wanted = {name: sorted(refs[need] for need in set(needs(name)) if need in refs) for name in refs}
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
            for package in there
        ],
        "dependencies": [
            {"ref": "app", "dependsOn": sorted(refs[name] for name in direct)},
            *({"ref": refs[name], "dependsOn": dependencies} for name, dependencies in wanted.items()),
        ],
    }


def main() -> None:
    try:
        lock, pyproject = Path("requirements.txt").read_text(), Path("pyproject.toml").read_text()
        bill = document(read_lock(lock), asked_for(pyproject, "deployed"))
    except importlib.metadata.PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed here: make .venv/.for-start installs it") from None
    except UnknownLicenceError as error:
        raise SystemExit(str(error)) from None
    sys.stdout.write(json.dumps(bill, indent=2) + "\n")


if __name__ == "__main__":
    main()
