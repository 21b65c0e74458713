"""The app's version."""

from typing import Final

VERSION: Final = "1.1.0-dev"
"""By semver.org; CHANGELOG.md says what is promised to stay. Between two releases: the next one, with `-dev`."""
