"""The life of one stream: commit, pings, deadline, client disconnect, exactly one terminal event, its record.

One task carries a stream from the request to its record. It reads all that has arrived and writes it at once; there is
no queue between the model service and the caller but the caller's socket, so that a slow reader slows its own upstream
and nothing else. A watchdog pings in a silence, and ends a stream that is silent for too long or too old.
"""

import asyncio
import re
from dataclasses import replace
from typing import Final, Literal, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from relay.problems import (
    CLIENT_CLOSED_REQUEST,
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    UPSTREAM_ERROR,
    UPSTREAM_INTERRUPTED,
    UPSTREAM_TIMEOUT,
    Problem,
)
from relay.settings import Settings, Wire
from relay.streaming.call import UpstreamCall
from relay.streaming.events import AnswerTooLongError, Decoder, Done, Encoder, Event, Failed, Reasoning, Text
from relay.streaming.watchdog import Watchdog
from relay.telemetry import Record, error_location, report
from relay.upstream.answer import Answer
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend, Failover
from relay.upstream.refused_additions import without_blame
from relay.usage import Usage

_TERMINAL_EVENT_TIMEOUT: Final = 10.0  # seconds that a caller who does not read is given to take the terminal event
# Seconds between the last bytes of a stream that breaks off and the break. The host makes the break a reset of the
# caller's connection, and a reset drops all that has not reached the caller.
BREAK_DELAY: Final = 1.0

# Seconds for which the usage is waited for after the end of an answer that has none.
_LATE_USAGE_TIMEOUT: Final = 0.5
# Seconds of silence after a finish reason after which an answer ends that its model service does not end.
_SILENCE_AFTER_FINISH: Final = 5.0

Termination = Literal["disconnect", "deadline", "silence", "stopped"]

_MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,60}", re.IGNORECASE)


class Caller(Protocol):
    """What a stream needs of the HTTP request that it answers (`relay.callers.request.CallerRequest`)."""

    request_id: str
    invocation_id: str

    async def wait_for_disconnect(self) -> None:
        """Return when the client has closed the connection."""
        ...

    def headers(self, media_type: str) -> dict[str, str]:
        """The headers of the response."""
        ...

    def response(self, content: bytes, media_type: str) -> Response:
        """A response that is not a stream."""
        ...

    def error_response(self, problem: Problem) -> Response:
        """The problem as a response with its HTTP status."""
        ...

    def client_closed_request(self) -> Response:
        """What the function returns when the client has disconnected."""
        ...

    def settle(self, record: Record, *, answering: bool) -> None:
        """Note the end of the stream; `answering`: a model may have read the prompt, whatever is known of the usage."""
        ...


class StreamedRequest(Protocol):
    """What a stream needs of the parsed request (`relay.wires.wire.WireRequest`)."""

    def on(self, wire: Wire) -> UpstreamCall:
        """The request as a deployment with this wire is asked it."""
        ...


class Stream:
    """One answer on its way to one caller.

    It runs from its construction on. `respond` gives what the function returns: the streaming response, or the problem
    with its HTTP status when the model service refused before the commit.
    """

    def __init__(
        self, caller: Caller, failover: Failover, request: StreamedRequest, encoder: Encoder, settings: Settings
    ) -> None:
        self._caller = caller
        self._failover = failover
        self._on_wire = request.on
        self._settings = settings
        self._use_wire(failover.wire)
        self._decoder = self._new_decoder()
        self._encoder = encoder
        self._record = Record(caller.request_id, caller.invocation_id, failover.model, self._request.operation)
        self._record.stream = self._request.stream
        self._loop = asyncio.get_running_loop()
        # The outcome of the commit: a failure that keeps its HTTP status, a whole document, or None for a stream.
        self._committed: asyncio.Future[Failed | bytes | None] = self._loop.create_future()
        self._sender: asyncio.Future[Send] = self._loop.create_future()
        self._send: Send | None = None
        self._termination: Termination | None = None
        self._terminal_decided = False
        self._answer: Answer | None = None
        self._pending = b""  # encoded text that goes out in one write with what follows it
        self._body_ended = False  # the end of the body was sent
        self._output_begun = False
        self._prompt_read = False  # or so it may be: a backend was asked and did not refuse
        self._last_output = 0.0  # when the last output was received, in the loop's time
        self._ping_task: asyncio.Task[None] | None = None
        self._watchdog = Watchdog(
            deadline=settings.stream_deadline,
            silence_timeout=settings.upstream_silence_timeout,
            ping_interval=settings.ping_interval if encoder.ping else None,
            on_deadline=lambda: self._terminate("deadline"),
            on_silence=lambda: self._terminate("silence"),
            on_ping=self._start_ping,
        )
        self._task = self._loop.create_task(self._run())
        self._disconnect_task: asyncio.Task[None] | None = self._loop.create_task(self._watch_for_disconnect())

    def _use_wire(self, wire: Wire) -> None:
        """Ask by this upstream wire from now on."""
        call = self._on_wire(wire)
        self._wire = wire
        self._request = call.upstream_request(max_output_tokens=self._settings.max_output_tokens)
        self._new_decoder = call.decoder

    async def respond(self) -> Response:
        """Wait for the commit: the first output, a refusal, or the end of the time that the model service is given."""
        # Without a ping there is no byte that a commit could send, and until the first one the host holds the headers
        # back: such a format waits for its first output, and a failure before that keeps its HTTP status.
        timeout = self._settings.commit_wait if self._encoder.ping else None
        try:
            await asyncio.wait((self._committed, self._task), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()  # the function was cancelled: no one will send what the stream has
            raise
        if self._task.done() and not self._committed.done():
            self._end_without_caller()  # it was cancelled before it began
        self._record.time_to_commit = self._watchdog.elapsed
        in_time = self._committed.done()
        if not in_time:
            self._committed.set_result(None)
        result = self._committed.result()
        if isinstance(result, Failed):
            return self._caller.error_response(result.problem)
        if isinstance(result, bytes):
            return self._caller.response(result, self._encoder.media_type)
        if self._termination == "disconnect":
            return self._caller.client_closed_request()
        return _StreamResponse(self._headers(), self, ping=not in_time)

    def _headers(self) -> dict[str, str]:
        return self._caller.headers(self._encoder.media_type)

    async def send_to(self, send: Send, *, ping: bool) -> None:
        """Send the body of the response by `send`; returns when the stream has ended.

        `ping`: send one at once, as a proxy may hold the headers back until the first byte of the body.
        """
        self._send = send
        if ping and self._encoder.ping and self._watchdog.awaiting_upstream:
            await self._write_ping()
        self._sender.set_result(send)
        if not self._task.done():
            self._watchdog.enable_pings()
        try:
            await asyncio.wait((self._task,))
            if not (self._body_ended or self._task.cancelled() or self._termination == "disconnect"):
                await asyncio.sleep(self._watchdog.last_written + BREAK_DELAY - self._loop.time())
        finally:
            self._task.cancel()  # no effect on a task that has ended; otherwise the web server is shutting down

    # The task of the stream

    async def _run(self) -> None:
        terminal: Done | Failed | None
        try:
            terminal = await self._relay_answer()
        except asyncio.CancelledError:
            if self._termination is None and self._task.cancelling():
                self._end_without_caller()
                raise
            if self._termination is None:
                # What the stream waited for was cancelled, and not the stream.
                terminal = Failed(INTERNAL_ERROR, "something that the stream waited for was cancelled")
            else:
                self._task.uncancel()
                terminal = self._terminal_event(self._termination)
        except Exception as error:  # noqa: BLE001 (a fault of this app's: the caller must learn of the end all the same)
            terminal = Failed(INTERNAL_ERROR, error_location(error))
        self._terminal_decided = True
        try:
            self._record_outcome(terminal)
            async with asyncio.timeout(_TERMINAL_EVENT_TIMEOUT):
                await self._send_terminal_event(terminal)
            self._record.duration = self._watchdog.elapsed
            if isinstance(terminal, Done):
                await self._return_connection()
        except TimeoutError:
            self._record.duration = self._watchdog.elapsed
            reason = self._record.reason or "the answer is complete"
            self._record.reason = f"{reason}; the caller did not read its end"
        except Exception as error:  # noqa: BLE001 (a fault of this app's at the very end: the stream is cut, the record says why)
            self._record.outcome, self._record.code = "failed", INTERNAL_ERROR.code
            self._record.reason = error_location(error)
            if not self._committed.done():
                self._committed.set_result(Failed(INTERNAL_ERROR, self._record.reason))
        finally:
            self._end()

    async def _relay_answer(self) -> Done | Failed:
        """One pass over the backends, until one answers. Writes all output, but not the terminal event."""
        while (backend := self._failover.next()) is not None:
            if backend.settings.wire != self._wire:
                self._use_wire(backend.settings.wire)
            self._record.backend = backend.settings.name
            self._record.server = backend.server
            self._record.attempts = self._failover.attempts
            before, self._prompt_read = self._prompt_read, True
            opened = await self._open(backend)
            if not isinstance(opened, Refusal):
                self._answer = opened
                terminal = await self._read(opened)
                if isinstance(terminal, Done):
                    self._failover.record_answer()
                    backend.record_success()
                    return terminal
                if self._output_begun:
                    return terminal
                self._abort_answer()
                self._encoder.restart()
                opened = Refusal(self._problem_before_output(terminal), terminal.reason, error=terminal.error)
            elif opened.problem is not UPSTREAM_TIMEOUT:
                self._prompt_read = before
            if self._failover.repeat_without(opened):
                self._record.refusals.append(f"{backend.settings.name}: {opened.reason}; repeated without an addition")
                continue
            opened = without_blame(opened, self._request)
            if not opened.retryable:
                return Failed(opened.problem, opened.reason, self._decoder.usage)
            self._record.refusals.append(f"{backend.settings.name}: {opened.reason}")
            self._failover.record_refusal(opened)
        outcome = self._failover.outcome()
        return Failed(outcome.problem, outcome.reason)

    async def _open(self, backend: Backend) -> Answer | Refusal:
        self._watchdog.awaiting_upstream = True
        self._watchdog.begin_silence()
        timeout = self._settings.failover_after if self._failover.has_more() else None
        try:
            async with asyncio.timeout(timeout) as limit:
                # A refusal that is known is no silence, though its body may take a moment.
                return await backend.open(
                    self._failover.adapted(self._request),
                    self._caller.request_id,
                    self._note_repeat,
                    lambda: limit.reschedule(None),
                )
        except TimeoutError:
            return Refusal(UPSTREAM_TIMEOUT, f"silent for {timeout:g} s before its answer began")
        finally:
            self._watchdog.awaiting_upstream = False
            self._watchdog.last_received = self._loop.time()

    def _note_repeat(self) -> None:
        self._failover.attempts += 1
        self._record.attempts = self._failover.attempts

    async def _read(self, answer: Answer) -> Done | Failed:
        """Read one answer up to its terminal event."""
        decoder = self._decoder = self._new_decoder()
        try:
            terminal = await self._read_to_end(answer, decoder)
        except AnswerTooLongError as error:
            terminal = Failed(UPSTREAM_ERROR.with_detail(str(error)), "the answer is too long for one document")
        if isinstance(terminal, Failed):
            return self._explained(terminal, answer)
        if terminal.usage is None and terminal.document is None and not terminal.closed:
            return await self._with_late_usage(terminal, answer, decoder)
        return terminal

    async def _read_to_end(self, answer: Answer, decoder: Decoder) -> Done | Failed:
        read, feed, encode, watchdog = answer.read, decoder.feed, self._encoder.text, self._watchdog
        while True:
            broken: str | None = None  # not the error itself, whose traceback would keep this frame in a cycle
            watchdog.awaiting_upstream = True
            try:
                chunk = await read()
            except answer.connection_errors as error:
                chunk, broken = answer.read_remaining(), type(error).__name__
            finally:
                watchdog.awaiting_upstream = False
            progress, silent_since = decoder.progress, watchdog.last_received
            if chunk:
                for event in feed(chunk):
                    if not isinstance(event, Text):
                        return event
                    content = encode(event)
                    self._pending += content
                    if content or not isinstance(event, Reasoning):
                        self._note_output()
            if decoder.progress != progress and not self._pending:
                watchdog.last_received = self._loop.time()
            if broken is not None:
                return self._take(decoder.cut(f"the model service's answer broke off ({broken})"))
            if not chunk:
                return self._take(decoder.end())
            if self._pending:
                content, self._pending = self._pending, b""
                began = self._loop.time()
                await self._write(content)
                if decoder.progress == progress:
                    # What is passed on without being a part of the answer, such as empty events, ends no silence; but
                    # the time in which the caller took it is not the model service's.
                    watchdog.last_received = silent_since + watchdog.last_received - began
            if decoder.complete:
                watchdog.lower_silence_timeout(_SILENCE_AFTER_FINISH)

    def _take(self, events: list[Event]) -> Done | Failed:
        """Encode the last events of an answer; returns the terminal one."""
        for event in events:
            if not isinstance(event, Text):
                return event
            content = self._encoder.text(event)
            self._pending += content
            if content or not isinstance(event, Reasoning):
                self._note_output()
        raise AssertionError("the last event is the terminal one")

    async def _with_late_usage(self, done: Done, answer: Answer, decoder: Decoder) -> Done:
        """The same end with the usage, where a model service sends that afterwards, within a moment.

        The text is not held back for it.
        """
        if self._pending:
            content, self._pending = self._pending, b""
            await self._write(content)
        endings: tuple[type[Exception], ...] = (TimeoutError, *answer.connection_errors)
        try:
            async with asyncio.timeout(_LATE_USAGE_TIMEOUT):
                while decoder.usage is None and (chunk := await answer.read()):
                    self._pending += b"".join(
                        [self._encoder.text(event) for event in decoder.feed(chunk) if isinstance(event, Text)]
                    )
        except endings:
            pass
        return done if decoder.usage is None else replace(done, usage=decoder.usage)

    def _explained(self, failed: Failed, answer: Answer) -> Failed:
        """The same failure, fit for the caller, and with what the log should have of an answer that is none."""
        if failed.problem.upstream_error is not None:
            failed = replace(failed, problem=answer.redact(failed.problem))
        if self._output_begun or failed.error is not None:
            return failed
        media_type = answer.media_type if _MEDIA_TYPE.fullmatch(answer.media_type) else "unknown"
        return replace(failed, reason=f"{failed.reason}; its media type is {media_type}")

    def _problem_before_output(self, failed: Failed) -> Problem:
        """An answer that was cut before any output is no answer: before the commit, a failure like any other."""
        if failed.problem is UPSTREAM_INTERRUPTED and not self._committed.done():
            return UPSTREAM_ERROR
        return failed.problem

    def _keeps_http_status(self) -> bool:
        """Whether a failure now becomes the HTTP status: nothing was sent, and no text waits to be sent before it."""
        return not self._committed.done() and (self._encoder.whole or not self._pending)

    def _terminal_event(self, termination: Termination) -> Done | Failed | None:
        """The terminal event of a stream that was terminated; None when there is no one to send it to.

        An answer that is complete, and whose model service only did not end it, is complete all the same.
        """
        usage = self._decoder.usage
        if termination != "disconnect" and self._decoder.complete:
            return self._take(self._decoder.cut(""))
        match termination:
            case "disconnect" | "stopped":
                return None
            case "deadline":
                return Failed(DEADLINE_EXCEEDED, f"no end after {self._settings.stream_deadline:g} s", usage)
            case "silence":
                reason = f"the model service was silent for {self._settings.upstream_silence_timeout:g} s"
                self._failover.record_refusal(Refusal(UPSTREAM_TIMEOUT, reason))
                return Failed(UPSTREAM_TIMEOUT, reason, usage)

    async def _send_terminal_event(self, terminal: Done | Failed | None) -> None:
        if not isinstance(terminal, Done):
            self._abort_answer()
        if terminal is None:
            if not self._committed.done():
                self._committed.set_result(None)
            return
        if isinstance(terminal, Failed) and self._keeps_http_status():
            self._committed.set_result(terminal)
            return
        if isinstance(terminal, Done):
            last: bytes | None = self._encoder.done(terminal)
            if self._encoder.whole and last is not None:
                self._record.bytes_sent = len(last)
                self._committed.set_result(last)
                return
        else:
            last = self._encoder.failed(terminal, self._caller.request_id)
        content, self._pending = self._pending, b""
        if last is None:
            if content:
                await self._write(content)
            return  # without the end of the body: the connection breaks off
        broken = isinstance(terminal, Failed) and self._encoder.breaks_off and terminal.event is None
        await self._write(content + last, last=not broken)

    def _record_outcome(self, terminal: Done | Failed | None) -> None:
        record, decoder = self._record, self._decoder
        record.response_model = decoder.model
        record.finish_reason = decoder.finish_reason
        record.response_id = decoder.id
        if isinstance(terminal, Done):
            self._record_response()
        record.usage = decoder.usage if self._request.counts_usage else None
        if decoder.usage is None and decoder.deltas and self._request.counts_usage:
            record.usage = Usage(self._request.estimated_input_tokens(), decoder.deltas)  # a delta is about a token
            record.usage_estimated = True
        if isinstance(terminal, Done):
            record.outcome, record.status = "completed", 200
        elif isinstance(terminal, Failed):
            record.outcome, record.code, record.reason = "failed", terminal.problem.code, terminal.reason
            record.status = int(terminal.problem.status) if self._keeps_http_status() else 200
        else:
            record.outcome = "cancelled"
            record.status = 200 if self._sender.done() else CLIENT_CLOSED_REQUEST

    def _end_without_caller(self) -> None:
        """End a stream whose task was cancelled from outside: the web server is shutting down."""
        self._terminal_decided = True
        reason = "the stream was cancelled: the app is shutting down"
        self._record_outcome(None)
        self._record.reason = reason
        self._record.duration = self._watchdog.elapsed
        if not self._committed.done():
            self._committed.set_result(Failed(INTERNAL_ERROR, reason))
        self._end()

    def _end(self) -> None:
        self._clean_up()
        record = self._record
        if record.usage is not None and (price := self._settings.prices.get(record.model or "")) is not None:
            record.cost = price.cost(record.usage)
        self._caller.settle(self._record, answering=self._prompt_read)
        report(self._record)

    async def _return_connection(self) -> None:
        """Read the end of the body, if it has not come with the last event, so that the connection can be reused."""
        if self._answer is not None:
            await self._answer.end()
            self._answer = None

    def _abort_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _clean_up(self) -> None:
        self._abort_answer()
        self._failover.release()
        self._watchdog.stop()
        # A cancelled task keeps its error, whose traceback refers back to this stream: without this, all that the
        # stream held would wait for the garbage collector's rarest run.
        for task in (self._disconnect_task, self._ping_task):
            if task is not None:
                task.cancel()
        self._disconnect_task = self._ping_task = None

    # Writing

    async def _write(self, content: bytes, *, last: bool = False) -> None:
        await self._wait_to_write()
        await self._send_content(content, last=last)
        self._watchdog.last_received = self._watchdog.last_written

    async def _wait_to_write(self) -> None:
        """Commit, if that is still to be done, and wait until the web server can take the next part of the body."""
        if self._send is None or not self._sender.done():
            if not self._committed.done():
                self._committed.set_result(None)
            await asyncio.wait((self._sender,))
        if self._ping_task is not None:
            # `wait`, since a deadline that ends the waiting must not cancel the ping, which is half written.
            await asyncio.wait((self._ping_task,))
            self._ping_task = None

    async def _send_content(self, content: bytes, *, last: bool) -> None:
        assert self._send is not None  # noqa: S101 (set before the future that was awaited)
        await self._send({"type": "http.response.body", "body": content, "more_body": not last})
        self._body_ended = last
        self._record.bytes_sent += len(content)
        self._watchdog.last_written = self._loop.time()

    async def _write_ping(self) -> None:
        assert self._send is not None  # noqa: S101 (a ping is only due after the commit)
        await self._send({"type": "http.response.body", "body": self._encoder.ping, "more_body": True})
        self._watchdog.last_written = self._loop.time()
        self._record.pings += 1

    def _start_ping(self) -> None:
        if self._ping_task is not None and not self._ping_task.done():
            return  # the caller has not read the last one
        self._ping_task = self._loop.create_task(self._write_ping())

    def _note_output(self) -> None:
        now = self._loop.time()
        if not self._output_begun:
            self._output_begun = True
            self._record.time_to_first_token = now - self._watchdog.started
            self._failover.record_answer()
            self._record_response()
        elif now - self._last_output > self._record.largest_gap:
            self._record.largest_gap = now - self._last_output
        self._last_output = self._watchdog.last_received = now

    def _record_response(self) -> None:
        """From here on the caller knows the id of a response, and may ask for it."""
        if self._request.creates_response and self._decoder.id is not None:
            self._failover.record_response(self._decoder.id)

    # Termination from outside

    async def _watch_for_disconnect(self) -> None:
        await self._caller.wait_for_disconnect()
        self._terminate("disconnect")

    def _terminate(self, termination: Termination) -> None:
        """End the stream early, unless it is just ending by itself."""
        if self._termination is None and not self._terminal_decided:
            self._termination = termination
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
        await self._stream.send_to(send, ping=self._ping)
