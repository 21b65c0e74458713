"""Writes one response step by step, at the pace that is asked for."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from aiohttp import web

from local.model_service.faults import Splitter
from local.model_service.records import Record
from local.model_service.reply import Reply
from local.model_service.steps import FOREVER, Cut, Event, Frame, Headers, Pause, Raw, Step, Token, Wait, sse_frame


class PacedWriter:
    """One response: carries out the steps one by one, and notes in the record when each token was written.

    `pause`: seconds between tokens; `batch`: tokens in one write; `on_change` is called after each write.
    """

    def __init__(
        self, request: web.Request, record: Record, on_change: Callable[[], None], *, pause: float, batch: int
    ) -> None:
        self.request = request
        self.record = record
        self.on_change = on_change
        self.pause = pause
        self.batch = batch
        self.time_to_first_token = 0.0  # seconds
        self.gate: asyncio.Semaphore | None = None  # in place of the pause: each token acquires it
        self.frame: Frame = sse_frame
        self.split: Splitter | None = None
        self.content_type = "text/event-stream; charset=utf-8"
        self.headers: dict[str, str] = {}  # beside the usual ones
        self.response: web.StreamResponse | None = None
        self._held: list[bytes] = []
        self._tokens_held = 0

    async def write(self, steps: Iterator[Step], reply: Reply) -> web.StreamResponse:
        """Carry out all steps; a `Cut` among them ends the connection and never returns."""
        frame, held, batch = self.frame, self._held, 1 if self.gate else self.batch
        now = time.monotonic
        due = now() + self.time_to_first_token
        paced = bool(self.pause or self.time_to_first_token)
        for step in steps:
            match step:
                case Token():
                    if paced or self.gate:
                        if held:
                            await self._flush()
                        if self.gate:
                            await self.gate.acquire()
                        elif (wait := due - now()) > 0:
                            await asyncio.sleep(wait)
                        due += self.pause
                        paced = self.pause > 0
                    held.append(frame(reply.token(step), reply.token_name(step)))
                    self._tokens_held += 1
                    if self._tokens_held >= batch:
                        await self._flush()
                        if not self.pause:
                            await asyncio.sleep(0)  # without a pause, other requests and a disconnect get their turn
                case Event(name=name):
                    held.append(frame(reply.event(step), name))
                case Raw(body=body):
                    held.append(body)
                case Headers():
                    await self._send_headers(reply)
                case Pause(seconds=seconds):
                    await self._flush()
                    await _sleep(seconds)
                    due += seconds
                case Wait(until=until):
                    await self._flush()
                    await until()
                case Cut(reset=reset):
                    await self._flush()
                    await self._cut(reset=reset)
        await self._flush()
        if self.split:
            await self._write_pieces(None)
        if self.response is None:
            await self._send_headers(reply)
        assert self.response is not None
        await self.response.write_eof()
        return self.response

    async def write_before_headers(self, steps: Iterator[Step]) -> None:
        """Carry out the steps that come before the headers, and no others."""
        for step in steps:
            match step:
                case Pause(seconds=seconds):
                    await _sleep(seconds)
                case Cut(reset=reset):
                    await self._cut(reset=reset)
                case _:
                    return

    async def write_to_connection(self, steps: Iterator[Step]) -> NoReturn:
        """Write a whole response past the HTTP server, whose connection ends with it."""
        transport = self.request.transport
        for step in steps:
            match step:
                case Raw(body=body) if transport is not None:
                    transport.write(body)
                case Pause(seconds=seconds):
                    await _sleep(seconds)
        await self._cut(reset=False)

    async def _send_headers(self, reply: Reply) -> None:
        headers = {
            "Content-Type": self.content_type,
            "apim-request-id": reply.request_id,
            "x-request-id": reply.request_id,
            "x-ms-region": "Local",
            "x-ratelimit-remaining-requests": "999",
            "x-ratelimit-remaining-tokens": "999000",
        }
        headers |= self.headers
        if (client_request_id := self.request.headers.get("x-ms-client-request-id")) is not None:
            headers["x-ms-client-request-id"] = client_request_id
        self.response = web.StreamResponse(headers=headers)
        self.record.status = 200
        await self.response.prepare(self.request)

    async def _flush(self) -> None:
        if not self._held:
            return
        assert self.response is not None
        written = b"".join(self._held) if len(self._held) > 1 else self._held[0]
        self._held.clear()
        if self.split:
            await self._write_pieces(written)
        else:
            await self.response.write(written)
        if self._tokens_held == 1:
            self.record.token_times.append(time.monotonic())
        elif self._tokens_held:
            self.record.token_times.extend([time.monotonic()] * self._tokens_held)
        self._tokens_held = 0
        self.on_change()

    async def _write_pieces(self, written: bytes | None) -> None:
        assert self.split is not None
        assert self.response is not None
        for piece in self.split(written):
            await self.response.write(piece)
            await asyncio.sleep(0)

    async def _cut(self, *, reset: bool) -> NoReturn:
        """End the connection: closed after all that was written, or reset; the record shows that it was a fault."""
        transport = self.request.transport
        self.record.end("fault")
        if transport is not None:
            if reset:
                await asyncio.sleep(0.02)  # a reset discards what has not arrived yet: let the rest arrive first
                connection: socket.socket = transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                transport.close()
        await asyncio.get_running_loop().create_future()  # the end of the connection cancels this handler
        raise AssertionError("the handler was not cancelled")


async def _sleep(seconds: float) -> None:
    await (asyncio.sleep(seconds) if seconds < FOREVER else asyncio.get_running_loop().create_future())
