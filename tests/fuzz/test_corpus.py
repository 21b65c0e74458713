"""The corpus of the fuzz targets, run through them: an input that broke one of them is a regression test."""

from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, TARGET_NAMES
from tests.fuzz.targets import TARGETS

SAMPLES = sorted(CORPUS.glob("*/*"))


def test_the_corpus_has_samples_for_each_target() -> None:
    assert {sample.parent.name for sample in SAMPLES} == set(TARGETS) == set(TARGET_NAMES)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.parent.name}/{sample.name}")
def test_sample(sample: Path) -> None:
    TARGETS[sample.parent.name](sample.read_bytes())
