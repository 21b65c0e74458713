"""Decoding of Server-Sent Events: WHATWG HTML, section 9.2.6, "Interpreting an event stream"."""

from typing import Final

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024  # a model's longest answer in one event is a fraction of it


_BRACE: Final = 0x7B
_LIST: Final = b"[{"
_ERROR: Final = b"error"


class EventTooLongError(ValueError):
    """An event has grown beyond `MAX_EVENT_BYTES`."""


class NamedEvent(bytes):
    """The data of an event that has an event type, `name`."""

    name: bytes = b""


class SSEDecoder:
    """Splits the bytes of an event stream into the data of its events, wherever the reads were split.

    Line ends may be LF, CR or CRLF, also mixed; a leading byte order mark is dropped; the `data:` lines of an event are
    joined by LF; comments and other fields are ignored. The data of an event with an event type is a `NamedEvent`.
    Beyond the standard, a line that begins as a JSON object or a list of them does is data, as gateways write errors
    into a stream without a field's name; and the event type `error` is an event without any data. `named`: whether any
    event has had an event type. `feed` raises `EventTooLongError`.
    """

    def __init__(self) -> None:
        self._partial_line: list[bytes] = []  # reads of a line whose end has not arrived; joined once, when it does
        self._data: list[bytes] = []  # the data lines of the current event
        self._name = b""  # its event type
        self.named = False  # whether any event has had one
        self._after_cr = False
        self._event_bytes = 0  # size of the current event
        self._first_line = True

    @property
    def within_data(self) -> bool:
        """Whether a part of an event's data has arrived: a comment is none."""
        return bool(self._data) or b"".join(self._partial_line[:5]).startswith(b"data:")

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes, in order."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk[-1] == 0x0D
        lines = chunk.splitlines(keepends=False)
        unfinished = lines.pop() if chunk[-1] not in b"\r\n" else None
        self._event_bytes += len(chunk)
        if self._partial_line and lines:
            self._partial_line.append(lines[0])
            lines[0] = b"".join(self._partial_line)
            self._partial_line = []
        if unfinished:
            self._partial_line.append(unfinished)
        if self._first_line and lines:
            self._first_line = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                self._event_bytes = 0
                if data:
                    event = data[0] if len(data) == 1 else b"\n".join(data)
                    if self._name:
                        event = NamedEvent(event)
                        event.name, self._name = self._name, b""
                    events.append(event)
                    data.clear()
                elif self._name:
                    if self._name.lower() == _ERROR:
                        event = NamedEvent()
                        event.name = self._name
                        events.append(event)
                    self._name = b""
            elif line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                data.append(b"")
            elif line.startswith(b"event:"):
                self._name = line[7:] if line.startswith(b"event: ") else line[6:]
                self.named = True
            elif line[0] == _BRACE or line.startswith(_LIST):
                data.append(line)
        if self._event_bytes > MAX_EVENT_BYTES:
            raise EventTooLongError
        return events

    def end(self) -> list[bytes]:
        """The last event of a body that ended cleanly, where its blank line is missing.

        The standard drops such an event; but model services are known to end like this (openai/openai-node#2725,
        google-gemini/gemini-cli#29059), and what arrived of it is whole, as the body is.
        """
        return self.feed(b"\n\n") if self._partial_line or self._data or self._name else []
