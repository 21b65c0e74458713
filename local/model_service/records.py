"""What the service remembers of each request."""

import time
from array import array
from dataclasses import dataclass, field
from typing import Literal

from local.model_service.encoding import Document

type Credential = Literal["key", "token"]
type Ending = Literal["open", "complete", "aborted", "fault"]


@dataclass(slots=True)
class Record:
    """One request. Times are of `time.monotonic()`, in seconds."""

    index: int
    deployment: str
    path: str
    body: Document
    auth: Credential | None
    headers: dict[str, str]
    arrived: float
    fault: str | None = None
    status: int | None = None
    token_times: array[float] = field(default_factory=lambda: array("d"))  # when each token was written
    ended: Ending = "open"
    ended_at: float | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return len(self.token_times)

    def end(self, ending: Ending) -> None:
        """Note how the request ended; only the first note counts."""
        if self.ended == "open":
            self.ended, self.ended_at = ending, time.monotonic()

    def as_document(self) -> Document:
        """The record as `GET /control/requests` gives it."""
        return {
            "index": self.index,
            "deployment": self.deployment,
            "path": self.path,
            "body": self.body,
            "auth": self.auth,
            "headers": self.headers,
            "arrived": self.arrived,
            "fault": self.fault,
            "status": self.status,
            "tokens": self.tokens,
            "token_times": self.token_times.tolist(),
            "ended": self.ended,
            "ended_at": self.ended_at,
        }
