"""The fuzzers' corpus through their targets: what broke one of them once is tested for ever."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import _NAMES, CORPUS
from tests.fuzz.targets import TARGETS

SAMPLES = sorted(CORPUS.glob("*/*"))


def test_the_corpus_has_something_for_each_target() -> None:
    assert {sample.parent.name for sample in SAMPLES} == set(TARGETS) == set(_NAMES)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.parent.name}/{sample.name}")
def test_a_sample(sample: Path) -> None:
    TARGETS[sample.parent.name](sample.read_bytes())
