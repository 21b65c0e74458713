"""Checks that a tag, the app's version and the changelog agree, and prints the changelog's section as release notes.

release.py v1.2.3 > notes.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

SEMANTIC_VERSION: Final = r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)"  # without pre-releases, which get no tag


class ReleaseError(Exception):
    """What must be changed before this tag can be released."""


def app_version(root: Path) -> str:
    """`VERSION` of the app, read without importing it."""
    found = re.search(r'^VERSION\b.*?= "(.*)"$', (root / "relay/version.py").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise ReleaseError("relay/version.py has no VERSION.")
    return found[1]


def changelog(root: Path) -> dict[str, str]:
    """The text of each section of CHANGELOG.md, by its heading: a version, with its date, or `Unreleased`."""
    _, *parts = re.split(r"^## (.*)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {heading.strip(): text.strip() for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def notes(root: Path, tag: str) -> str:
    """The notes of the release with this tag; raises `ReleaseError` where tag, version and changelog disagree."""
    if not re.fullmatch(rf"v{SEMANTIC_VERSION}", tag):
        raise ReleaseError(f"{tag} is not a version: a tag is named like v1.2.3.")
    version = tag.removeprefix("v")
    if app_version(root) != version:
        found = app_version(root)
        raise ReleaseError(f"VERSION in relay/version.py is {found}: set it to {version}, and tag that commit.")
    for heading, text in changelog(root).items():
        if re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", heading):
            if text:
                return text
            raise ReleaseError(f"The section {heading} of CHANGELOG.md is empty.")
    raise ReleaseError(f"CHANGELOG.md has no section '{version} - DATE': rename Unreleased.")


def main(arguments: list[str]) -> int:
    """Print the notes of the tag in the only argument."""
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    try:
        sys.stdout.write(notes(Path(__file__).parents[1], arguments[0]) + "\n")
    except ReleaseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
