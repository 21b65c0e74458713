"""Finds Chromium, with the flags to start it. Without a browser the tests fail in CI (`CI=true`) and are skipped
elsewhere."""

import os
import shutil
from typing import NoReturn

import pytest

FLAGS = (
    "--no-sandbox",  # containers, including those in CI, run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Requests to any other host fail in name resolution.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def skip_or_fail(reason: str) -> NoReturn:
    """Skip this test, or fail it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def executable_path() -> str | None:
    """The system's Chromium or Chrome, or None when it is not installed."""
    # The first one takes half of the CPU time: it has no windows, and no pages of its own for their contents.
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)
