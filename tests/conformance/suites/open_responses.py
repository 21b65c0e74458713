"""llm-comply's cases of the Open Responses specification and of chat completions, one test each.

The specification's own acceptance tests are in no registry; these are made after them, with its OpenAPI description.
"""

from pathlib import Path

import llm_comply
import pytest
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus
from llm_comply.runner import TestRunner
from llm_comply.schema import SpecLoader
from llm_comply.test_case import TestCase
from llm_comply.tests import get_tests
from target import MODEL, REASONING, URL

for imported in (TestCase, TestRunner, TestStatus):
    imported.__test__ = False

SPECS = {"open-responses": "openresponses.json", "openai-chat": "openai_chat.json"}
CASES = [(name, case) for name in SPECS for case in get_tests(name)]


@pytest.mark.parametrize("model", [MODEL, REASONING])
@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case.id}" for name, case in CASES])
def test_case(name: str, case: TestCase, model: str) -> None:
    spec = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / SPECS[name]))
    config = ComplianceConfig(base_url=f"{URL}/v1", api_key="unused", model=model, timeout=30)
    result = TestRunner(config, [case], spec).run_one(case)
    if result.status is TestStatus.SKIPPED:
        pytest.skip(result.errors[0])
    assert result.errors == []
