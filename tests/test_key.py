"""`make key`: the key is shown once, and what is configured is its digest."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from local import key
from relay.callers.settings import MAX_KEY_LENGTH, MIN_KEY_LENGTH, CallerSettings

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_prints_what_the_app_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert key.main(["team-a"]) == 0
    printed = capsys.readouterr().out
    (made,) = re.findall(r"relay_[A-Za-z0-9_-]{43}", printed)
    (setting,) = re.findall(r"^  (\{\"team-a\".*)$", printed, re.MULTILINE)
    settings = CallerSettings.read({"CALLERS": setting})
    assert settings is not None
    digest = hashlib.sha256(made.encode()).digest()
    assert settings.by_digest[digest][1].name == "team-a"
    assert f'callers = {{ "team-a" = {{ key_digests = ["{digest.hex()}"] }} }}' in printed
    assert MIN_KEY_LENGTH <= len(made) <= MAX_KEY_LENGTH
    assert json.loads(setting)


def test_every_key_is_new() -> None:
    assert len({key.new_key() for _ in range(100)}) == 100


@pytest.mark.parametrize("name", ["", "a b", "a" * 32, "-a"])
def test_a_name_that_the_app_would_not_take(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        key.main(["--", name])
    assert ended.value.code == 2
    assert "31 letters" in capsys.readouterr().err


def test_make_names_what_is_missing() -> None:
    done = subprocess.run(["make", "-n", "key"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "make key NAME=team-a" in done.stderr
