"""Versions: one place, a changelog that agrees with it, and a release that is refused where they disagree."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from infra.release import SEMANTIC_VERSION, ReleaseError, app_version, changelog, notes
from relay.version import VERSION

ROOT: Final = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose version 1.2.3 is ready to be released."""
    (tmp_path / "relay").mkdir()
    (tmp_path / "relay/version.py").write_text('"""Doc."""\n\nVERSION: Final = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 1.2.3 - 2026-11-25\n\n### Fixed\n\n- It.\n\n## 1.2.2 - 2026-11-24\n\n- B.\n"
    )
    return tmp_path


def test_the_notes_are_the_section_of_the_version(project: Path) -> None:
    assert notes(project, "v1.2.3") == "### Fixed\n\n- It."


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3-rc.1", "v01.2.3", "v1.2.3\n", ""])
def test_a_tag_that_is_not_a_version(project: Path, tag: str) -> None:
    with pytest.raises(ReleaseError, match="is not a version"):
        notes(project, tag)


def test_a_tag_of_another_version(project: Path) -> None:
    with pytest.raises(ReleaseError, match=r"VERSION in relay/version\.py is 1\.2\.3: set it to 1\.2\.2"):
        notes(project, "v1.2.2")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("## 1.2.3 - 2026-11-25", "## 1.2.30 - 2026-11-25", "has no section '1.2.3 - DATE'"),
        ("## 1.2.3 - 2026-11-25", "## 1.2.3", "has no section"),
        ("### Fixed\n\n- It.\n\n", "", "is empty"),
    ],
)
def test_a_changelog_without_the_version(project: Path, old: str, new: str, error: str) -> None:
    path = project / "CHANGELOG.md"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ReleaseError, match=error):
        notes(project, "v1.2.3")


def test_no_version(project: Path) -> None:
    (project / "relay/version.py").write_text("")
    with pytest.raises(ReleaseError, match="has no VERSION"):
        notes(project, "v1.2.3")


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "infra/release.py")]
    refused = subprocess.run([*command, "v0.0.1"], capture_output=True, text=True, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("VERSION in relay/version.py is")
    assert subprocess.run(command, capture_output=True, cwd=tmp_path).returncode == 2


def test_this_project() -> None:
    """A version without `-dev` is a release: it has its section; one with it is newer than the newest release."""
    assert app_version(ROOT) == VERSION
    first, *versions = changelog(ROOT)
    assert first == "Unreleased"
    released = [heading.split(" - ")[0] for heading in versions]
    assert all(re.fullmatch(SEMANTIC_VERSION, version) for version in released)
    ordered = [tuple(map(int, version.split("."))) for version in released]
    assert ordered == sorted(ordered, reverse=True)
    number, _, suffix = VERSION.partition("-")
    if suffix:
        assert suffix == "dev"
        assert tuple(map(int, number.split("."))) > ordered[0]
    else:
        assert number == released[0]
