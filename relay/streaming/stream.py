"""The life of one stream: commit, pings, deadline, the caller's leaving, exactly one terminal event, its record.

One task carries a stream from the request to its record. It reads all that has arrived and writes it at once; nothing
stands between the model and the caller but the caller's own socket, so a slow reader slows its own upstream and nothing
else. A timer, moved lazily, watches over it: it fills a silence with a ping, and ends a stream that is silent for too
long or too old.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from relay.answer import Answer, Refusal
from relay.backends import Backend, Route
from relay.caller import CALLER_LEFT, Call
from relay.completion import Done, Failed, Reading, Text, Usage
from relay.formats import Format
from relay.problems import (
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    RATE_LIMITED,
    UPSTREAM_ERROR,
    UPSTREAM_INTERRUPTED,
    UPSTREAM_TIMEOUT,
    Problem,
)
from relay.settings import Settings
from relay.telemetry import Record, report, where

_LAST_WORD: Final = 10.0  # seconds that a caller who does not read is given to take the terminal event

_LOOK_AGAIN: Final = 1.0  # seconds

# What another deployment may make good, as long as no word has gone out.
_MENDABLE: Final = frozenset({UPSTREAM_ERROR.code, UPSTREAM_INTERRUPTED.code, RATE_LIMITED.code})

_Ending = Literal["left", "deadline", "silence"]


class Stream:
    """One answer on its way to one caller.

    It begins to live when it is made; `respond` gives what the function returns: the answer, or the problem with its
    true status when the model service refused before the commit.
    """

    def __init__(
        self,
        call: Call,
        route: Route,
        parameters: dict[str, Any],
        reading: Callable[[], Reading],
        form: Format,
        settings: Settings,
    ) -> None:
        self._call = call
        self._reading = reading
        self._route = route
        self._parameters = parameters
        self._format = form
        self._settings = settings
        self._record = Record(call.request_id, call.invocation_id, route.model)
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._deadline = self._began + settings.stream_deadline
        self._heard = self._began  # when the model service last said something, or could have
        self._wrote = self._began  # when the caller was last given something
        self._spoke = self._began  # when the caller was last given words
        self._committed: asyncio.Future[Failed | bytes | None] = self._loop.create_future()
        self._sender: asyncio.Future[Send] = self._loop.create_future()
        self._send: Send | None = None
        self._waiting = False  # for the model service; so nothing is being written
        self._ending: _Ending | None = None
        self._over = False  # the terminal event is decided
        self._pinging: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._completion = reading()
        self._pending = b""  # words that came in one read with the terminal event, and go out in one write with it
        self._spoken = False
        self._task = self._loop.create_task(self._live())
        self._leaving: asyncio.Task[None] | None = self._loop.create_task(self._watch_caller())
        self._timer = self._loop.call_at(self._due(), self._tick)

    async def respond(self) -> Response:
        """Wait for the commit: the first words, a refusal, or the end of the time that the model service gets."""
        wait = None if self._format.whole else self._settings.commit_wait
        await asyncio.wait((self._committed,), timeout=wait)
        self._record.time_to_commit = self._loop.time() - self._began
        in_time = self._committed.done()
        if not in_time:
            self._committed.set_result(None)
        result = self._committed.result()
        if isinstance(result, Failed):
            return self._call.refuse(result.problem)
        if isinstance(result, bytes):
            return self._call.answer(result, self._format.media_type)
        if self._ending == "left":
            return self._call.nobody()
        return _StreamResponse(self._call.headers(self._format.media_type), self, ping=not in_time)

    async def carry(self, send: Send, *, ping: bool) -> None:
        """Let the stream go out by `send`; returns when it has ended.

        `ping`: at once, because a host in between may hold the headers back until a first byte follows them.
        """
        self._send = send
        if ping and self._format.ping and self._waiting:
            await self._write_ping()
        self._sender.set_result(send)
        if not self._task.done():
            self._wrote = self._loop.time()
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due(), self._tick)
        try:
            await asyncio.wait((self._task,))
        finally:
            self._task.cancel()  # does nothing to a task that has ended; the web server is being stopped otherwise

    # The task

    async def _live(self) -> None:
        terminal: Done | Failed | None
        try:
            terminal = await self._relay()
        except asyncio.CancelledError:
            if self._ending is None:
                self._let_go()
                raise
            self._task.uncancel()
            terminal = self._verdict(self._ending)
        except Exception as error:  # noqa: BLE001 (a fault of ours: the caller must learn of the end all the same)
            terminal = Failed(INTERNAL_ERROR, where(error))
        self._over = True
        try:
            self._conclude(terminal)
            async with asyncio.timeout(_LAST_WORD):
                await self._finish(terminal)
            self._record.duration = self._loop.time() - self._began
            if isinstance(terminal, Done):
                await self._spare()
        except TimeoutError:
            self._record.duration = self._loop.time() - self._began
            self._record.reason = f"{self._record.reason or 'the answer is complete'}; the caller did not read its end"
        except Exception as error:  # noqa: BLE001 (a fault of ours at the very end: the stream is cut, the record says why)
            self._record.outcome, self._record.code = "failed", INTERNAL_ERROR.code
            self._record.reason = where(error)
            if not self._committed.done():
                self._committed.set_result(Failed(INTERNAL_ERROR, self._record.reason))
        finally:
            self._let_go()
            report(self._record)

    async def _relay(self) -> Done | Failed:
        """One pass over the deployments, until one has an answer. All words are written, the terminal event is not."""
        while (backend := self._route.next()) is not None:
            self._record.backend = backend.settings.name
            self._record.attempts = self._route.attempts
            opened = await self._open(backend)
            if not isinstance(opened, Refusal):
                self._answer = opened
                terminal = await self._read(opened)
                if self._spoken or not isinstance(terminal, Failed) or terminal.problem.code not in _MENDABLE:
                    if isinstance(terminal, Done):
                        backend.answered()
                    return terminal
                self._answer = None
                opened.close()
                opened = Refusal(self._before_words(terminal), terminal.reason, elsewhere=True)
            if not opened.elsewhere:
                return Failed(opened.problem, opened.reason)
            self._record.refusals.append(f"{backend.settings.name}: {opened.reason}")
            self._route.refused(opened)
        outcome = self._route.outcome()
        return Failed(outcome.problem, outcome.reason)

    async def _open(self, backend: Backend) -> Answer | Refusal:
        self._waiting = True
        patience = self._settings.failover_after if self._route.more() else None
        try:
            async with asyncio.timeout(patience):
                return await backend.open(self._parameters, self._call.request_id)
        except TimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, f"silent for {patience:g} s before its answer began", elsewhere=True)
        finally:
            self._waiting = False
            self._heard = self._loop.time()

    async def _read(self, answer: Answer) -> Done | Failed:
        """Everything of one answer, up to its terminal event."""
        completion = self._completion = self._reading()
        if answer.media_type != completion.media_type:
            return Failed(UPSTREAM_ERROR, f"the model service's answer is not {completion.media_type}")
        read, understand, write = answer.read, completion.read, self._format.text
        while True:
            broken: Exception | None = None
            self._waiting = True
            try:
                chunk = await read()
            except answer.broken as error:
                chunk, broken = answer.rest(), error
            finally:
                self._waiting = False
            self._heard = self._loop.time()
            if chunk:
                for event in understand(chunk):
                    if not isinstance(event, Text):
                        return event
                    self._pending += write(event)
                    self._note_words()
            if broken is not None:
                return completion.cut(f"the model service's answer broke off ({type(broken).__name__})")
            if not chunk:
                return completion.end()
            if self._pending:
                content, self._pending = self._pending, b""
                await self._write(content)

    def _before_words(self, failed: Failed) -> Problem:
        """An answer that was cut before its first word is no answer: before the commit, a failure like any other."""
        if failed.problem is UPSTREAM_INTERRUPTED and not self._committed.done():
            return UPSTREAM_ERROR
        return failed.problem

    def _keeps_its_status(self) -> bool:
        """Whether a failure now is an HTTP status: nothing has been said, and no words wait to go out before it."""
        return not self._committed.done() and (self._format.whole or not self._pending)

    def _verdict(self, ending: _Ending) -> Failed | None:
        usage = self._completion.usage
        match ending:
            case "left":
                return None
            case "deadline":
                return Failed(DEADLINE_EXCEEDED, f"no end after {self._settings.stream_deadline:g} s", usage)
            case "silence":
                reason = f"the model service was silent for {self._settings.upstream_silence_timeout:g} s"
                self._route.refused(Refusal(UPSTREAM_TIMEOUT, reason, elsewhere=True))
                return Failed(UPSTREAM_TIMEOUT, reason, usage)

    async def _finish(self, terminal: Done | Failed | None) -> None:
        """Tell the caller how it ended."""
        if not isinstance(terminal, Done):
            self._abort()
        if terminal is None:
            if not self._committed.done():
                self._committed.set_result(None)
            return
        if isinstance(terminal, Failed) and self._keeps_its_status():
            self._committed.set_result(terminal)
            return
        if isinstance(terminal, Done):
            last: bytes | None = self._format.done(terminal)
            if self._format.whole and last is not None:
                self._record.bytes_sent = len(last)
                self._committed.set_result(last)
                return
        else:
            last = self._format.failed(terminal, self._call.request_id)
        content, self._pending = self._pending, b""
        if last is None:
            if content:
                await self._write(content)
            return  # without the end of the body: the connection breaks off
        await self._write(content + last, last=True)

    def _conclude(self, terminal: Done | Failed | None) -> None:
        """Put on record how it ended."""
        record, completion = self._record, self._completion
        record.response_model = completion.model
        record.finish_reason = completion.finish_reason
        record.response_id = completion.id
        record.usage = completion.usage
        if completion.usage is None and completion.deltas:
            # A delta is about a token, and a token of a prompt about four bytes: what was paid for is not forgotten.
            prompt = len(msgspec.json.encode(self._parameters.get("messages")))
            record.usage = Usage(prompt // 4, completion.deltas)
            record.usage_estimated = True
        if isinstance(terminal, Done):
            record.outcome, record.status = "completed", 200
        elif isinstance(terminal, Failed):
            record.outcome, record.code, record.reason = "failed", terminal.problem.code, terminal.reason
            record.status = int(terminal.problem.status) if self._keeps_its_status() else 200
        else:
            record.outcome = "cancelled"
            record.status = 200 if self._sender.done() else CALLER_LEFT

    async def _spare(self) -> None:
        """Read the answer's end, if it has not come with its last event, so that the connection can serve again."""
        if self._answer is not None:
            await self._answer.end()
            self._answer = None

    def _abort(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _let_go(self) -> None:
        self._abort()
        self._route.leave()
        self._timer.cancel()
        # A cancelled task keeps its error, whose traceback leads back here: without this, all that a stream held would
        # wait for the garbage collector's rarest run.
        for task in (self._leaving, self._pinging):
            if task is not None:
                task.cancel()
        self._leaving = self._pinging = None

    # What goes out

    async def _write(self, content: bytes, *, last: bool = False) -> None:
        if self._send is None or not self._sender.done():
            if not self._committed.done():
                self._committed.set_result(None)
            await asyncio.wait((self._sender,))
        if self._pinging is not None:
            # `wait`, because a deadline that ends the waiting must not cancel what is waited for.
            await asyncio.wait((self._pinging,))
            self._pinging = None
        assert self._send is not None  # noqa: S101 (set before the future that was awaited)
        await self._send({"type": "http.response.body", "body": content, "more_body": not last})
        self._record.bytes_sent += len(content)
        self._wrote = self._heard = self._loop.time()

    async def _write_ping(self) -> None:
        assert self._send is not None  # noqa: S101 (a ping is only due after the commit)
        await self._send({"type": "http.response.body", "body": self._format.ping, "more_body": True})
        self._wrote = self._loop.time()
        self._record.pings += 1

    def _note_words(self) -> None:
        now = self._heard
        if not self._spoken:
            self._spoken = True
            self._record.time_to_first_token = now - self._began
        elif now - self._spoke > self._record.largest_gap:
            self._record.largest_gap = now - self._spoke
        self._spoke = now

    # What watches over it

    def _due(self) -> float:
        """When there is next something to look at, in the loop's time."""
        due = min(self._deadline, self._heard + self._settings.upstream_silence_timeout)
        if self._format.ping and self._sender.done():
            due = min(due, self._wrote + self._settings.ping_interval)
        return due

    def _tick(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self._end("deadline")
            return
        if self._waiting:
            if now >= self._heard + self._settings.upstream_silence_timeout:
                self._end("silence")
                return
            if self._format.ping and now >= self._wrote + self._settings.ping_interval and self._sender.done():
                self._pinging = self._loop.create_task(self._write_ping())
                self._wrote = now
        due = self._due()
        if due <= now:  # but can't be done now, because the caller does not read: look again in a while
            due = now + _LOOK_AGAIN
        self._timer = self._loop.call_at(due, self._tick)

    async def _watch_caller(self) -> None:
        await self._call.leaves()
        self._end("left")

    def _end(self, ending: _Ending) -> None:
        """End the stream before its time, unless it is just ending by itself."""
        if self._ending is None and not self._over:
            self._ending = ending
            self._task.cancel()


class _StreamResponse(Response):
    """The stream as an ASGI response, in place of Starlette's, which needs a task group and a generator for one."""

    def __init__(self, headers: dict[str, str], stream: Stream, *, ping: bool) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(headers)
        self._stream = stream
        self._ping = ping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._stream.carry(send, ping=self._ping)
