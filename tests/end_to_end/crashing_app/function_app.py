"""The app of this repository with faults of its own, whose exceptions have in their text what was asked: for tests,
never deployed."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

sys.path.insert(0, str(ROOT))
_spec = importlib.util.spec_from_file_location("the_app", ROOT / "function_app.py")
assert _spec is not None
assert _spec.loader is not None
the_app = importlib.util.module_from_spec(_spec)
sys.modules["the_app"] = the_app
_spec.loader.exec_module(the_app)
app = the_app.app

from relay import prompt  # noqa: E402 (the path to it is set above)
from relay.completion import Completion  # noqa: E402


class FaultyCompletion(Completion):
    """Fails over the answer's second read."""

    def read(self, chunk: bytes) -> Any:
        if b"finish_reason" in chunk and self.deltas:
            raise ValueError(f"what to do with {chunk!r}?")
        return super().read(chunk)


class FaultyPrompt(prompt.Prompt):
    """Fails where `instructions` says so."""

    @property
    def reading(self) -> Any:
        return FaultyCompletion if self.instructions == "fail while reading the answer" else Completion

    def parameters(self, **limits: int) -> dict[str, Any]:
        if self.instructions == "fail before asking":
            raise ValueError(f"what to do with {self!r}?")
        return super().parameters(**limits)


prompt.Prompt = FaultyPrompt  # type: ignore[misc]
