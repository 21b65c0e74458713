"""Where the browser is, how it is started, and what happens where there is none: under CI (`CI=true`) the tests fail,
anywhere else they skip and say what is missing."""

import os
import shutil
from typing import NoReturn

import pytest

FLAGS = (
    "--no-sandbox",  # containers, CI's among them, run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Whatever a page may try to fetch from elsewhere finds nobody there.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def missing(reason: str) -> NoReturn:
    """Skip this test, or fail it under CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program() -> str | None:
    """The system's Chromium or Chrome, None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
