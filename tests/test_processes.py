"""The plugin that runs test files in several processes reports what pytest itself would."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIRST = """
import os, sys, warnings
import pytest

@pytest.fixture(scope="session", autouse=True)
def of_the_session():
    yield
    with open(os.environ["ENDS"], "a") as ends:
        ends.write(f"{os.getpid()}\\n")
    if "FAIL" in os.environ: raise OSError("at the end of the session")

def test_passes(tmp_path): warnings.warn("a warning of a test")
def test_fails(tmp_path):
    print("printed by the test", tmp_path)
    assert 1 == 2
@pytest.mark.skip(reason="for no reason")
def test_is_skipped(): pass
"""
SECOND = """
import os, signal
import pytest
from test_first import of_the_session

def test_before(): pass
def test_crashes(): os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
@pytest.fixture
def broken(): raise ValueError("in a fixture")
def test_error(broken): pass
"""
ENDLESS = """
import time
def test_endless(): time.sleep(100)
"""


def run(folder: Path, *options: str, env: dict[str, str] | None = None, **files: str) -> tuple[int, str]:
    """The exit code and output of pytest in this folder."""
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.processes", "--rootdir", folder, "-c", "/dev/null",
         "-p", "no:cacheprovider", *options, folder],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
        env={"ENDS": str(folder / "ends"), "PATH": "", **(env or {})},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_outcomes(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--processes=2", first=FIRST, second=SECOND)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"2 failed, 3 passed, 1 skipped, 1 warning, 1 error in", output), output
    assert "UserWarning: a warning of a test" in output
    assert re.search(r"printed by the test .*process-[01]/test_fails0", output)
    assert "assert 1 == 2" in output
    assert "its process ended: killed by SIGKILL" in output
    assert "test_second.py::test_crashes" in output
    assert "ValueError: in a fixture" in output
    ends = (tmp_path / "ends").read_text().split()
    assert len(ends) == len(set(ends)) == 2  # not the one that was killed


def test_an_error_at_the_end_of_the_session(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--processes=2", env={"FAIL": "1"}, first=FIRST, other="def test(): pass")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "OSError: at the end of the session" in output
    assert "1 failed, 2 passed, 1 skipped, 1 warning, 1 error in" in output


def test_the_first_failure_ends_all(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--processes=2", "-x", endless=ENDLESS, failing="def test(): assert False")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed in" in output


def test_a_single_file_needs_no_other_process(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--processes=2", own="import os\ndef test(): print(os.getpid())", endless="")
    assert (code, "1 passed in" in output) == (0, True)
