"""The conformance run's comparison with what is known, and the table that it has written."""

import json
import re
import tomllib
from typing import Final

import pytest

from tests.conformance import results
from tests.conformance.catalogue import RUNNERS
from tests.conformance.results import Check, Deviation, Suite

PASSED: Final = Check("passed")
FAILED: Final = Check("failed", "why")
NAMES: Final = [runner.suite.name for runner in RUNNERS]

REPORT: Final = b"""<testsuites><testsuite>
<testcase classname="a.suites.b.TestC" name="test_1[x]" /><testcase classname="b" name="test_2"><skipped /></testcase>
<testcase classname="b" name="test_3"><failure message="one&#10;two" /></testcase>
<testcase classname="b" name="test_4" /><testcase classname="b" name="test_4"><error message="no teardown" /></testcase>
</testsuite></testsuites>"""


def test_a_report_of_pytest() -> None:
    assert results.read_junit(REPORT) == {
        "b.TestC::test_1[x]": PASSED,
        "b::test_2": Check("skipped"),
        "b::test_3": Check("failed", "one"),
        "b::test_4": Check("failed", "no teardown"),
    }


def test_the_lines_of_a_script() -> None:
    failed = {"name": "b", "outcome": "failed", "detail": "why"}
    output = "\n".join(["a warning", json.dumps({"name": "a", "outcome": "passed"}), json.dumps(failed), '{"x": 1}'])
    output = output.replace('": "', '":"')  # as JSON.stringify writes it
    assert results.read_lines(output) == {"a": PASSED, "b": FAILED}


@pytest.mark.parametrize(
    ("checks", "listed", "lines"),
    [
        ({"a": PASSED, "b": FAILED}, ("b",), []),
        ({"a": PASSED, "b": Check("skipped")}, (), []),
        ({"a": PASSED, "b1": FAILED, "b2": FAILED}, ("b*",), []),
        ({"a": FAILED}, (), ["a fails: why"]),
        ({"a": PASSED}, ("a",), ["a is a known deviation and now is passed: remove it from deviations.toml"]),
        (
            {"a": Check("skipped")},
            ("a",),
            ["a is a known deviation and now is skipped: remove it from deviations.toml"],
        ),
        ({"a": PASSED}, ("b",), ["b is a known deviation and now is gone: remove it from deviations.toml"]),
        ({"a": PASSED}, ("b*",), ["b* is a known deviation and now is gone: remove it from deviations.toml"]),
        (
            {"b1": FAILED, "b2": PASSED},
            ("b*",),
            ["b2 is a known deviation and now is passed: remove it from deviations.toml"],
        ),
        ({}, (), ["no test ran"]),
    ],
)
def test_every_change_is_named(checks: dict[str, Check], listed: tuple[str, ...], lines: list[str]) -> None:
    known = [Deviation("suite", listed, "a reason"), Deviation("another", ("a", "b"), "a reason")]
    assert results.changes("suite", checks, known) == lines


def test_each_deviation_is_of_a_suite_and_has_a_reason() -> None:
    for deviation in results.deviations():
        assert deviation.suite in NAMES
        assert len(deviation.reason) > 20
        assert deviation.tests
    listed = [(it.suite, test) for it in results.deviations() for test in it.tests]
    assert len(set(listed)) == len(listed)


def test_the_documented_table_is_the_recorded_one() -> None:
    suites = [runner.suite for runner in RUNNERS]
    assert sorted(results.recorded()) == sorted(NAMES)
    assert results.documented_table() == results.table(suites, results.recorded(), results.recorded_date())
    for suite in suites:
        assert results.recorded()[suite.name]["passed"] > 0
        known = [it for it in results.deviations() if it.suite == suite.name]
        assert bool(results.recorded()[suite.name]["failed"]) == bool(known)


def test_a_row_of_the_table() -> None:
    suite = Suite("a", "A", ("openai", "npm:openai"))
    pinned = results.versions()
    assert results.table([suite], {"a": {"passed": 2, "failed": 1, "skipped": 0}}, "2026-11-25").splitlines()[-1] == (
        f"| A | openai {pinned['openai']}, openai {pinned['npm:openai']} | 2 | 1 | 0 |"
    )


def test_the_pinned_versions_are_the_installed_ones() -> None:
    locked = (results.FOLDER / "requirements.txt").read_text()
    for name, version in results.versions().items():
        if not name.startswith("npm:"):
            assert re.search(rf"^{re.escape(name.lower())}=={re.escape(version)} ", locked, re.MULTILINE), name
    lock = json.loads((results.FOLDER / "package-lock.json").read_text())["packages"]
    package = json.loads((results.FOLDER / "package.json").read_text())
    assert lock[""]["dependencies"] == package["dependencies"]
    assert not any("resolved" in entry for entry in lock.values()), "the lock file names no registry"
    sources = (results.FOLDER / "sources.txt").read_text()
    assert f"openai=={results.versions()['openai']} --hash=sha256:" in sources
    tested = tomllib.loads((results.FOLDER.parents[1] / "pyproject.toml").read_text())["dependency-groups"]["deployed"]
    assert f"openai=={results.versions()['openai']}" in tested, "the app's own client is the one whose tests run"
