"""This repository's app with exceptions of its own, whose texts quote the request and the answer: for tests only."""

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

from relay.wires import stream  # noqa: E402 (the path to it is set above)
from relay.wires.chat_decoders import TextDecoder  # noqa: E402
from relay.wires.stream_on_chat import ChatCall  # noqa: E402


class FaultyDecoder(TextDecoder):
    """Fails over the second read of the answer."""

    def feed(self, chunk: bytes) -> Any:
        if b"finish_reason" in chunk and self.deltas:
            raise ValueError(f"what to do with {chunk!r}?")
        return super().feed(chunk)


class FaultyCall(ChatCall):
    """Fails where `instructions` demand it."""

    def decoder(self) -> Any:
        failing = self.request.instructions == "fail while reading the answer"
        return FaultyDecoder() if failing else super().decoder()

    def upstream_request(self, **limits: int) -> Any:
        if self.request.instructions == "fail before asking":
            raise ValueError(f"what to do with {self.request!r}?")
        return super().upstream_request(**limits)


class FaultyRequest(stream.StreamRequest):
    """Is asked so."""

    def on(self, wire: Any) -> Any:
        return FaultyCall(self)


stream.StreamRequest = FaultyRequest  # type: ignore[misc]
