"""Responses that the model service generates in the background, and keeps, for streams that can be resumed.

The app has no store: the model service has the response, its events and whose it is. What is here is in memory, and
only of this instance: which streams read a response now, and when one that no stream reads is stopped and deleted.
"""

import asyncio
import hmac
import uuid
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import msgspec

from relay import telemetry
from relay.problems import INVALID_REQUEST, RESPONSE_NOT_FOUND, UPSTREAM_ERROR, UPSTREAM_TIMEOUT, Problem
from relay.settings import Settings
from relay.upstream.answer import Answer
from relay.upstream.failures import Refusal
from relay.upstream.pool import Failover
from relay.upstream.request import OWNER, Accounts, UpstreamRequest
from relay.usage import Usage

# Seconds for which the response of an answer that was sent to its end is left alone, as the end may not have arrived.
_AFTER_END: Final = 60.0
_MAX_WAITING: Final = 1024  # responses that no stream reads, about 1 MB; beyond, the one that waits longest is due
_MAX_AT_ONCE: Final = 8  # that are stopped and deleted
_LONGEST: Final = 7200.0  # seconds for which the end of a response is waited for that was handed over
_TIMEOUT: Final = 15.0  # seconds for a request about a response
_MAX_DOCUMENT: Final = 64 * 1024 * 1024  # bytes
_REMEMBERED: Final = 4096  # responses whose tokens were counted

_RUNNING: Final = ("queued", "in_progress")

# How a stream of a response ended. `ended`: so did the response. `handed_over`: the caller was told to go on in another
# stream, perhaps of another instance. `lost`: in any other way.
Ending = Literal["ended", "handed_over", "lost"]


class Reader(Protocol):
    """A stream that reads a response (`relay.streaming.resumable`)."""

    def stop(self) -> None:
        """End it, since the response is stopped."""
        ...


class Responses(Protocol):
    """What is needed of the pool (`relay.upstream.pool.BackendPool`)."""

    settings: Settings

    def failover(self, model: Literal[Accounts.EVERY], response_id: str) -> Failover | Problem:
        """The pass over all accounts."""
        ...

    async def connect(self) -> None:
        """Create the clients."""
        ...


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A response as the model service keeps it. `reasoning`: its summary was asked for."""

    id: str
    status: str
    reasoning: bool

    @property
    def running(self) -> bool:
        """Whether it is still generated."""
        return self.status in _RUNNING


class _Reasoning(msgspec.Struct):
    summary: Any = None


class _Document(msgspec.Struct):
    status: str = ""
    metadata: dict[str, Any] | None = None
    reasoning: _Reasoning | None = None


@dataclass(slots=True)
class _Counted:
    """The tokens of a response that were counted."""

    input_tokens: int = 0
    output_tokens: int = 0
    final: bool = False


@dataclass(slots=True)
class _Waiting:
    """A response that no stream reads. `since`: in the loop's time."""

    ending: Ending
    since: float
    timer: asyncio.TimerHandle


class BackgroundResponses:
    """The responses of this instance's resumable streams.

    `kept`: how many the model service keeps since the settings say so; `left_behind`: how many could not be deleted.
    Both count from the start of the process.
    """

    def __init__(self, pool: Responses) -> None:
        self.pool = pool
        self._grace = pool.settings.resumable_grace
        self._keep = pool.settings.resumable_keep
        self._readers: dict[str, list[Reader]] = {}
        self._waiting: dict[str, _Waiting] = {}  # the one that waits longest first
        self._counted: dict[str, _Counted] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_MAX_AT_ONCE)
        self.kept = 0
        self.left_behind = 0

    def members(self) -> dict[str, int]:
        """The counts for `GET /ready`: responses that are read, that wait, that are kept, that could not be deleted."""
        return {
            "streaming": len(self._readers),
            "waiting": len(self._waiting) + len(self._tasks),
            "kept": self.kept,
            "left_behind": self.left_behind,
        }

    # What a stream reports

    def attach(self, response_id: str, reader: Reader) -> None:
        """The stream reads this response from now on."""
        if (waiting := self._waiting.pop(response_id, None)) is not None:
            waiting.timer.cancel()
        self._readers.setdefault(response_id, []).append(reader)

    def detach(self, response_id: str, reader: Reader, ending: Ending | None) -> None:
        """The stream has ended like this; None: and nothing is to be done about the response."""
        readers = self._readers.get(response_id, [])
        if reader in readers:
            readers.remove(reader)
        if readers:
            return  # the last one decides
        self._readers.pop(response_id, None)
        if ending is not None:
            self._wait(response_id, ending)

    def abandon(self, response_id: str) -> None:
        """No one knows this response: stop and delete it now."""
        self._start(response_id, "lost", asyncio.get_running_loop().time())

    def count(self, response_id: str, usage: Usage, *, final: bool) -> Usage | None:
        """The tokens that a stream adds to those that were counted of the response before; None: nothing.

        `usage` is that of the response up to where the stream ended: an estimate, or, if `final`, that of the whole
        response. So the streams of a response, of which this process sees all, add up to its usage.
        """
        counted = self._counted.setdefault(response_id, _Counted())
        if len(self._counted) > _REMEMBERED:
            del self._counted[next(iter(self._counted))]
        if counted.final:
            return None
        added = replace(
            usage,
            input_tokens=max(0, usage.input_tokens - counted.input_tokens),
            output_tokens=max(0, usage.output_tokens - counted.output_tokens),
        )
        counted.final = final
        counted.input_tokens = max(counted.input_tokens, usage.input_tokens)
        counted.output_tokens = max(counted.output_tokens, usage.output_tokens)
        return added if final or added.input_tokens or added.output_tokens else None

    # Responses that no stream reads

    def _wait(self, response_id: str, ending: Ending, since: float | None = None) -> None:
        loop = asyncio.get_running_loop()
        delay = min(self._grace, _AFTER_END) if ending == "ended" else self._grace
        timer = loop.call_later(delay, self._due, response_id)
        self._waiting[response_id] = _Waiting(ending, loop.time() if since is None else since, timer)
        if len(self._waiting) > _MAX_WAITING:
            self._due(next(iter(self._waiting)))

    def _due(self, response_id: str) -> None:
        waiting = self._waiting.pop(response_id)
        waiting.timer.cancel()
        self._start(response_id, waiting.ending, waiting.since)

    def _start(self, response_id: str, ending: Ending, since: float) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(response_id, ending, since))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, response_id: str, ending: Ending, since: float) -> None:
        """Stop the response, if it is not to run on, and delete it, unless it is to be kept."""
        async with self._gate:
            request_id = str(uuid.uuid4())
            if ending == "handed_over" and await self._runs(response_id, request_id):
                # Another instance may stream it: only its end is waited for.
                if asyncio.get_running_loop().time() - since < _LONGEST and response_id not in self._readers:
                    self._wait(response_id, ending, since)
                return
            if response_id in self._readers:
                return  # it was resumed in the meantime
            if ending == "lost":
                await self._cancel(response_id, request_id)
            if self._keep:
                self.kept += 1
                return
            refusal = await self._delete(response_id, request_id)
            if refusal is not None:
                self.left_behind += 1
                telemetry.log_left_behind(request_id, response_id, refusal.reason)

    async def _runs(self, response_id: str, request_id: str) -> bool:
        document = await self._document(response_id, request_id)
        return not isinstance(document, Refusal) and document.status in _RUNNING

    # Requests to the model service

    async def find(self, response_id: str, owner: str, request_id: str) -> StoredAnswer | Problem:
        """The response, if it is this owner's; where it is another's, the problem is that there is none."""
        document = await self._document(response_id, request_id)
        if isinstance(document, Refusal):
            return document.problem
        found = (document.metadata or {}).get(OWNER)
        if not isinstance(found, str) or not hmac.compare_digest(found.encode(), owner.encode()):
            return RESPONSE_NOT_FOUND
        reasoning = document.reasoning is not None and document.reasoning.summary is not None
        return StoredAnswer(response_id, document.status, reasoning)

    async def is_anothers(self, response_id: str, owner: str, request_id: str) -> bool:
        """Whether the response is a resumable stream of another owner; False where that can't be told."""
        document = await self._document(response_id, request_id)
        found = None if isinstance(document, Refusal) else (document.metadata or {}).get(OWNER)
        return found is not None and found != owner

    async def stop(self, response_id: str, request_id: str) -> Problem | None:
        """Stop the response, its streams on this instance included, and delete it."""
        for reader in tuple(self._readers.get(response_id, ())):
            reader.stop()
        if (waiting := self._waiting.pop(response_id, None)) is not None:
            waiting.timer.cancel()
        await self._cancel(response_id, request_id)
        refusal = await self._delete(response_id, request_id)
        return None if refusal is None else refusal.problem

    async def _cancel(self, response_id: str, request_id: str) -> None:
        path = f"/responses/{response_id}/cancel"
        content = await self._ask("POST", path, "cancel_response", response_id, request_id)
        # One that has ended can't be cancelled, and one that is gone need not be.
        if isinstance(content, Refusal) and content.problem.code not in _NOTHING_TO_STOP:
            telemetry.log_not_stopped(request_id, response_id, content.reason)

    async def _delete(self, response_id: str, request_id: str) -> Refusal | None:
        content = await self._ask("DELETE", f"/responses/{response_id}", "delete_response", response_id, request_id)
        if isinstance(content, Refusal) and content.problem.code != RESPONSE_NOT_FOUND.code:
            return content
        return None

    async def _document(self, response_id: str, request_id: str) -> _Document | Refusal:
        content = await self._ask("GET", f"/responses/{response_id}", "retrieve_response", response_id, request_id)
        if isinstance(content, Refusal):
            return content
        try:
            return msgspec.json.decode(content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Refusal(UPSTREAM_ERROR, f"the model service's answer is not a response ({type(error).__name__})")

    async def _ask(
        self, method: Literal["GET", "POST", "DELETE"], path: str, operation: str, response_id: str, request_id: str
    ) -> bytes | Refusal:
        """The document that the account with this response answers with."""
        request = UpstreamRequest(
            path,
            None,
            stream=False,
            method=method,
            not_found=RESPONSE_NOT_FOUND,
            operation=operation,
            creates_response=True,
            counts_usage=False,
        )
        failover = self.pool.failover(Accounts.EVERY, response_id)
        if isinstance(failover, Problem):
            return Refusal(failover, "there is no account")
        try:
            async with asyncio.timeout(_TIMEOUT):
                while (backend := failover.next()) is not None:
                    opened = await backend.open(request, request_id)
                    content = opened if isinstance(opened, Refusal) else await _content(opened)
                    if not isinstance(content, Refusal):
                        failover.record_response(response_id)
                        return content
                    if not content.retryable:
                        return content
                    failover.record_refusal(content)
            return failover.outcome()
        except TimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, f"no answer within {_TIMEOUT:g} s")
        finally:
            failover.release()


_NOTHING_TO_STOP: Final = (RESPONSE_NOT_FOUND.code, INVALID_REQUEST.code)


async def _content(answer: Answer) -> bytes | Refusal:
    """All of the answer."""
    content = bytearray()
    try:
        while chunk := await answer.read():
            content += chunk
            if len(content) > _MAX_DOCUMENT:
                answer.close()
                return Refusal(UPSTREAM_ERROR, f"the model service's answer is longer than {_MAX_DOCUMENT} bytes")
    except answer.connection_errors as error:
        answer.close()
        return Refusal(UPSTREAM_ERROR, f"the model service's answer broke off ({type(error).__name__})")
    except asyncio.CancelledError:
        answer.close()
        raise
    await answer.end()
    return bytes(content)
