"""The life of a stream that can be resumed: the same as of any stream, but its answer outlives it.

The model service generates and keeps the response; each stream of it, the first or a later one, brings a part. A stream
that reaches the app's time limit, or whose model service is silent or breaks off, tells the caller to go on in another
one. Nothing that the caller is told to have may be missing: what a limit interrupts is still sent, in full.
"""

import asyncio
from dataclasses import replace
from typing import Final, Protocol, cast

from starlette.responses import Response

from relay.problems import UPSTREAM_INTERRUPTED
from relay.settings import Settings
from relay.streaming.events import Continued, Decoder, Done, Encoder, Failed
from relay.streaming.stream import BREAK_DELAY, Caller, Stream, StreamedRequest, Termination
from relay.upstream.answer import Answer
from relay.upstream.background import BackgroundResponses, Ending, StoredAnswer
from relay.upstream.pool import Failover
from relay.usage import Usage

# Seconds before the app's time limit at which the stream ends so that the caller goes on: what is left for its end to
# arrive. Of a short limit, this part.
_BEFORE_DEADLINE: Final = 5.0
_PART_OF_DEADLINE: Final = 0.1

_CANCELLED: Final = "cancelled"


class ResumableDecoder(Decoder, Protocol):
    """A decoder of a response, or of the part of it after an event.

    `event_id`: where it is (`relay.streaming.events`). `has_output`: it has brought output. `ended`: the body came to
    its end, and was not cut; `empty`: without any event.
    """

    has_output: bool
    ended: bool
    event_id: bytes

    @property
    def empty(self) -> bool: ...


class ResumableEncoder(Encoder, Protocol):
    """An encoder that can tell the caller to go on (`Continued`); `can_continue`: it knows after which event."""

    @property
    def can_continue(self) -> bool: ...


class ResumableStream(Stream):
    """One stream of a response in the background.

    `stored` is the response where it is an earlier one; None: the stream begins a new one, whose id is known when the
    model service has accepted it. A client that disconnects before that is waited for: the response can be stopped only
    by its id.
    """

    def __init__(
        self,
        caller: Caller,
        failover: Failover,
        request: StreamedRequest,
        encoder: ResumableEncoder,
        settings: Settings,
        background: BackgroundResponses,
        stored: StoredAnswer | None = None,
    ) -> None:
        limit = settings.stream_deadline
        limit -= min(_BEFORE_DEADLINE, limit * _PART_OF_DEADLINE)
        if encoder.breaks_off:
            limit -= min(BREAK_DELAY, limit / 2)
        super().__init__(caller, failover, request, encoder, replace(settings, stream_deadline=limit))
        self._background = background
        self._position = encoder
        self._stored = stored
        self._attached: str | None = None
        self._disconnected = False
        self._unsent = b""  # content that waits for the web server to take it
        self._nothing_left = False
        self._continues = False
        self._ending: Ending | None = "lost"
        if stored is not None:
            self._attach(stored.id)

    def stop(self) -> None:
        """End the stream, since its response is stopped."""
        self._terminate("stopped")

    async def respond(self) -> Response:
        response = await super().respond()
        if self._nothing_left and getattr(response, "body", None) == b"":
            # 204 keeps an `EventSource` from connecting again (WHATWG HTML, section 9.2.3).
            return Response(None, 204, self._headers())
        return response

    def _headers(self) -> dict[str, str]:
        headers = super()._headers()
        return headers if self._attached is None else headers | {"x-response-id": self._attached}

    # The response

    def _attach(self, response_id: str) -> None:
        self._attached = response_id
        self._background.attach(response_id, self)

    def _attach_new(self) -> None:
        """Attach the response once its id is known."""
        if self._attached is None and self._decoder.id is not None:
            self._attach(self._decoder.id)
            if self._disconnected:
                super()._terminate("disconnect")

    @property
    def _part(self) -> ResumableDecoder:
        """The decoder, with what those of resumable streams have in addition."""
        return cast(ResumableDecoder, self._decoder)

    async def _read(self, answer: Answer) -> Done | Failed:
        terminal = await super()._read(answer)
        if not isinstance(terminal, Failed):
            return terminal
        if self._stored is not None and self._part.ended:
            done = self._without_more(self._stored)
            if done is not None:
                return done
        if terminal.problem.code == UPSTREAM_INTERRUPTED.code and self._output_begun and self._can_continue():
            return Continued(None, self._decoder.model, None, self._decoder.id)
        if self._stored is None and not self._output_begun:
            self._abandon()
        return terminal

    def _without_more(self, stored: StoredAnswer) -> Done | None:
        """How an earlier response ended that has no more events than came; None where it is not known to have ended."""
        if stored.status == _CANCELLED:
            return Done(_CANCELLED, None, None, stored.id, closed=True)
        if self._part.empty and not stored.running:
            self._nothing_left = True
            return Done(None, None, None, stored.id, closed=True)
        return None

    def _can_continue(self) -> bool:
        """Whether the caller can be told to go on: by an event, or by breaking off what was begun."""
        if self._decoder.id is None or not self._position.can_continue:
            return False
        return self._committed.done() or bool(self._pending) or not self._encoder.breaks_off

    def _abandon(self) -> None:
        """Another deployment may answer, or none: no one will ask for the response of this one."""
        if self._attached is not None:
            self._background.detach(self._attached, self, None)
            self._attached = None
        if self._decoder.id is not None:
            self._background.abandon(self._decoder.id)
            self._decoder.id = None

    # Its end

    def _terminate(self, termination: Termination) -> None:
        if termination == "disconnect" and self._attached is None and self._decoder.id is None:
            self._disconnected = True
            return
        super()._terminate(termination)

    def _terminal_event(self, termination: Termination) -> Done | Failed | None:
        decoder = self._decoder
        if not decoder.complete:
            if termination == "stopped":
                return Done(_CANCELLED, decoder.model, None, decoder.id, closed=True)
            if termination in ("deadline", "silence") and self._can_continue():
                return Continued(None, decoder.model, None, decoder.id)
        return super()._terminal_event(termination)

    async def _send_terminal_event(self, terminal: Done | Failed | None) -> None:
        self._continues = isinstance(terminal, Continued)
        self._attach_new()
        if self._nothing_left and not self._committed.done():
            self._committed.set_result(b"")
        else:
            await super()._send_terminal_event(terminal)
        if isinstance(terminal, Done) and not self._disconnected:
            self._ending = "handed_over" if self._continues else "ended"

    def _record_outcome(self, terminal: Done | Failed | None) -> None:
        super()._record_outcome(terminal)
        record = self._record
        if isinstance(terminal, Continued):
            record.outcome = "continued"
        part = self._part
        if part.id is None:
            return
        final = record.usage is not None and not record.usage_estimated
        usage = record.usage if final else None
        if usage is None:
            # The number of an event is about that of the output's tokens before it, and tells what others have sent.
            prompt = self._request.estimated_input_tokens() if self._stored is None else 0
            usage = Usage(prompt, int(part.event_id.rpartition(b".")[2] or 0))
        record.usage = self._background.count(part.id, usage, final=final)
        record.usage_estimated = record.usage is not None and not final

    async def _return_connection(self) -> None:
        if self._continues:
            self._abort_answer()
        await super()._return_connection()

    def _end_without_caller(self) -> None:
        self._ending = None  # the app is shutting down: the caller may go on with another instance
        super()._end_without_caller()

    def _clean_up(self) -> None:
        super()._clean_up()
        if self._attached is None and self._decoder.id is not None:
            self._attach(self._decoder.id)
        if self._attached is not None:
            self._background.detach(self._attached, self, None if self._termination == "stopped" else self._ending)

    # Writing

    def _note_output(self) -> None:
        if self._part.has_output:  # the id of a response is none
            super()._note_output()

    async def _write(self, content: bytes, *, last: bool = False) -> None:
        """Hand over all of the content, also where the wait for the web server is ended by a limit: the next one, which
        is that of the terminal event, sends what is left."""
        self._attach_new()
        self._unsent += content
        await self._wait_to_write()
        content, self._unsent = self._unsent, b""
        self._ping_task = self._loop.create_task(self._send_content(content, last=last))
        await asyncio.wait((self._ping_task,))
        self._ping_task.result()
        self._ping_task = None
        self._watchdog.last_received = self._loop.time()
