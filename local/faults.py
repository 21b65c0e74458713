"""Every fault that the simulated model service commits on demand, in one table, and the grammar of its names.

A deployment called `fault-NAME[-ARGUMENT…]` commits the fault NAME; several are joined by `+`: `fault-crlf+split-7`.
An argument is a number or `ever`. `python -m local.faults` prints the table.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache

from local import answers
from local.wire import (
    DONE,
    FOR_EVER,
    Choice,
    Cut,
    Event,
    Headers,
    Pause,
    Raw,
    Refusal,
    Reply,
    Step,
    Token,
    as_json,
    deployment_not_found,
    error,
    filter_results,
    invalid,
    lacks_role,
    prompt_filter_results,
    refusal,
    wrong_key,
)

PREFIX = "fault-"

type Arguments = tuple[float, ...]
type Steps = Iterator[Step]
type Slice = Callable[[bytes | None], Iterable[bytes]]  # bytes in, pieces out; None: the response is over


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. Each of the functions changes one thing about a response; what is None stays healthy."""

    name: str
    says: str
    takes: tuple[float, ...] = ()  # the arguments' defaults; their count is the most that the name may carry
    refuse: Callable[[Arguments], Refusal] | None = None
    steps: Callable[[Steps, Reply, Arguments], Steps] | None = None
    frame: Callable[[bytes], bytes] | None = None
    slices: Callable[[Arguments], Slice] | None = None
    text: Callable[[Arguments], Sequence[str]] | None = None
    content_type: str | None = None
    unpaced: bool = False
    breaks: bool = False  # the response is not a whole and good one: its record ends as "fault"


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault with its arguments, as a name asked for it."""

    fault: Fault
    arguments: Arguments


def parse(name: str) -> tuple[Injection, ...]:
    """The faults that a name asks for, with or without the prefix; raises `ValueError` for what the table lacks."""
    return tuple(_parse_one(part) for part in name.removeprefix(PREFIX).split("+"))


def _parse_one(part: str) -> Injection:
    name = part
    while name not in FAULTS:
        name, dash, _ = name.rpartition("-")
        if not dash:
            raise ValueError(f"no fault is called {part!r}")
    fault = FAULTS[name]
    given = [FOR_EVER if word == "ever" else float(word) for word in part[len(name) + 1 :].split("-") if word]
    if len(given) > len(fault.takes):
        raise ValueError(f"{part!r}: the fault {name!r} takes at most {len(fault.takes)} arguments")
    return Injection(fault, (*given, *fault.takes[len(given) :]))


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _filtered_prompt(_: Arguments) -> Refusal:
    return refusal(
        400,
        "content_filter",
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        param="prompt",
        status=400,
        innererror={
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": prompt_filter_results(violence="medium"),
        },
    )


def _too_long(_: Arguments) -> Refusal:
    return invalid(
        "context_length_exceeded",
        "This model's maximum context length is 272000 tokens. However, your messages resulted in 300017 tokens. "
        "Please reduce the length of the messages.",
        "messages",
    )


def _too_many(header: str | None, value: Callable[[float], str] = "{:g}".format) -> Callable[[Arguments], Refusal]:
    def refuse(arguments: Arguments) -> Refusal:
        headers = {header: value(arguments[0])} if header else {}
        return refusal(429, "RateLimitReached", "The token rate limit of this deployment is exceeded.", headers=headers)

    return refuse


def _date_after(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


def _status(status: int, code: str, message: str, header: str | None = None) -> Callable[[Arguments], Refusal]:
    def refuse(arguments: Arguments) -> Refusal:
        return refusal(status, code, message, headers={header: f"{arguments[0]:g}"} if header else {})

    return refuse


def _html(status: int, title: str) -> Refusal:
    body = f"<html><head><title>{title}</title></head>\r\n<body><center><h1>{title}</h1></center></body></html>\r\n"
    return Refusal(status, body.encode(), content_type="text/html")


# ── Changes to the steps ─────────────────────────────────────────────────────────────────────────────────────────────


def _interrupt(*inserted: Step, end: bool = False) -> Callable[[Steps, Reply, Arguments], Steps]:
    """Insert steps after as many tokens as the last argument says, or before the finish; `end`: no more comes.

    An answer in one document is interrupted in its middle.
    """

    def change(steps: Steps, _: Reply, arguments: Arguments) -> Steps:
        tokens, halves = 0, 0
        waiting = True
        for step in steps:
            halves += isinstance(step, Raw)
            enough = isinstance(step, Token) and tokens >= arguments[-1]
            if waiting and (enough or halves == 2 or (isinstance(step, Event) and step.kind == "finish")):
                waiting = False
                yield from (Pause(arguments[0]) if isinstance(one, Pause) else one for one in inserted)
                if end:
                    return
            tokens += isinstance(step, Token)
            yield step

    return change


def _before(
    kind: type[Headers] | type[Token], *inserted: Step, end: bool = False
) -> Callable[[Steps, Reply, Arguments], Steps]:
    """Insert steps before the headers, or before the first token (in one document: before its first byte)."""

    def change(steps: Steps, _: Reply, arguments: Arguments) -> Steps:
        waiting = True
        for step in steps:
            first = isinstance(step, kind) or (kind is Token and (isinstance(step, Raw) or _ends(step)))
            if waiting and first:
                waiting = False
                yield from (Pause(arguments[0]) if isinstance(one, Pause) else one for one in inserted)
                if end:
                    return
            yield step

    return change


def _ends(step: Step) -> bool:
    return isinstance(step, Event) and step.kind in ("finish", "done")


def _instead(*others: Step) -> Callable[[Steps, Reply, Arguments], Steps]:
    def change(_steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
        yield Headers()
        yield from others

    return change


def _drop(*kinds: str) -> Callable[[Steps, Reply, Arguments], Steps]:
    def change(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
        return (step for step in steps if not (isinstance(step, Event) and step.kind in kinds))

    return change


def _filter_midway(steps: Steps, reply: Reply, arguments: Arguments) -> Steps:
    # The steps are made one by one out of the reply, so that a change of it before the first holds for all.
    reply.choices = [
        Choice(choice.tokens[: int(arguments[0])], "content_filter", filtered={"violence": "medium"})
        for choice in reply.choices
    ]
    return steps


def _asynchronous_filter(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    """Content without filter results; these follow in chunks of their own, without `delta`, some tokens behind."""
    reply.filter_each_chunk = False
    told = written = tokens = 0

    def verdict() -> Event:
        offsets = {"check_offset": told, "start_offset": told, "end_offset": written}
        choice = {"content_filter_offsets": offsets, "content_filter_results": filter_results(), "index": 0}
        empty = {"created": 0, "id": "", "model": "", "object": ""}
        return Event("filter", as_json({"choices": [choice | {"finish_reason": None}], **empty}))

    for step in steps:
        if isinstance(step, Event) and step.kind in ("finish", "done") and told < written:
            yield verdict()
            told = written
        yield step
        if isinstance(step, Token):
            written += len(step.text)
            tokens += 1
            if tokens % 12 == 0:
                yield verdict()
                told = written


def _between_tokens(make: Callable[[Reply], Event]) -> Callable[[Steps, Reply, Arguments], Steps]:
    def change(steps: Steps, reply: Reply, _: Arguments) -> Steps:
        for step in steps:
            if isinstance(step, Token) or _ends(step):
                yield make(reply)
            yield step

    return change


def _split_surrogates(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    reply.escape = True
    for step in steps:
        if isinstance(step, Token) and max(step.text, default="") > "\uffff":
            units = step.text.encode("utf-16-le")
            where = next(at for at in range(0, len(units), 2) if 0xD8 <= units[at + 1] < 0xDC) + 2
            for half in (units[:where], units[where:]):
                yield Token(half.decode("utf-16-le", "surrogatepass"), step.choice, step.tool)
        else:
            yield step


def _lone_surrogate(_: Reply) -> Event:
    return Event("odd", b'{"choices":[{"delta":{"content":"\\ud83d"},"finish_reason":null,"index":0}]}')


def _escape(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    reply.escape = True
    return steps


def _double_finish(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    for step in steps:
        yield step
        if isinstance(step, Event) and step.kind == "finish":
            yield step


def _after_done(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    yield from steps
    yield Event("odd", reply.delta({"content": " and more after the end"}))


def _broken_utf8(_: Reply) -> Event:
    return Event("odd", b'{"choices":[{"delta":{"content":"caf\xe9 \xff\xfe"},"finish_reason":null,"index":0}]}')


def _comments(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    for step in steps:
        if isinstance(step, Token | Event):
            yield Raw(b': a comment, data: {"not":"data"}\n\n\n:\n')
        yield step


_ERROR = Event("odd", as_json({"error": error("server_error", "The server had an error.", kind="server_error")}))
_GARBAGE = Event("odd", b'{"choices":[{"delta":{"content":"cut off mid')
_PAGE = Raw(_html(200, "Sign in").body)


# ── Changes to the bytes ─────────────────────────────────────────────────────────────────────────────────────────────


def _crlf(payload: bytes) -> bytes:
    return b"data: %b\r\n\r\n" % payload


def _cr(payload: bytes) -> bytes:
    return b"data: %b\r\r" % payload


def _no_space(payload: bytes) -> bytes:
    return b"data:%b\n\n" % payload


def _several_lines(payload: bytes) -> bytes:
    # Between the members of the outer object a line end is white space to JSON.
    first, found, rest = payload.rpartition(b',"created":')
    lines = [first, b',"created":' + rest] if found else [payload]
    return b"".join(b"data: %b\n" % line for line in lines) + b"\n"


def _fields(payload: bytes) -> bytes:
    return b"id: 7\nretry: 3000\nunheard: of\ndata: %b\n\n" % payload


def _each_byte(_: Arguments) -> Slice:
    def cut(written: bytes | None) -> Iterable[bytes]:
        return (written[at : at + 1] for at in range(len(written))) if written else ()

    return cut


def _seeded(arguments: Arguments) -> Slice:
    """Pieces of random sizes, across the bounds of events; what a piece still lacks is held back until it comes."""
    dice = random.Random(int(arguments[0]))
    held = bytearray()
    size = 1

    def cut(written: bytes | None) -> Iterator[bytes]:
        nonlocal size
        if written is None:
            if held:
                yield bytes(held)
            return
        held.extend(written)
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
            size = dice.choice((1, 2, 3, 5, dice.randint(6, 60), dice.randint(60, 900)))

    return cut


def _one_write(_: Arguments) -> Slice:
    held = bytearray()

    def cut(written: bytes | None) -> Iterator[bytes]:
        if written is None:
            yield bytes(held)
        else:
            held.extend(written)

    return cut


# ── Other answers ────────────────────────────────────────────────────────────────────────────────────────────────────


def _long(arguments: Arguments) -> Sequence[str]:
    return _long_tokens(int(arguments[0]))


@lru_cache(maxsize=4)
def _long_tokens(size: int) -> list[str]:
    """Tokens of prose, `size` bytes of UTF-8 (up to a character's length more)."""
    prose = answers.compose([{"role": "user", "content": "2000 words"}]) + " 🌿\n\n"
    length = len(prose.encode())
    text = prose * (size // length) + prose.encode()[: size % length].decode(errors="ignore")
    return answers.tokenize(text)


def _flood(arguments: Arguments) -> Sequence[str]:
    tokens = _long_tokens(64 * 1024)
    count = int(arguments[0])
    return [*tokens * (count // len(tokens)), *tokens[: count % len(tokens)]]


def _huge(arguments: Arguments) -> Sequence[str]:
    return ["".join(_long_tokens(int(arguments[0])))]


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────

_K = 5.0  # after how many tokens something happens midway

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        # Refusals
        Fault(
            "400", "400, an invalid request", refuse=lambda _: invalid("invalid_value", "Invalid value.", "messages")
        ),
        Fault("context-length", "400, code context_length_exceeded", refuse=_too_long),
        Fault("content-filter", "400, code content_filter, the categories in innererror", refuse=_filtered_prompt),
        Fault("401", "401, a wrong key or token", refuse=lambda _: wrong_key()),
        Fault("401-role", "401, code PermissionDenied: the role is missing", refuse=lambda _: lacks_role()),
        Fault("403", "403, the network rules forbid it", refuse=_status(403, "403", "Public access is disabled.")),
        Fault("404", "404, code DeploymentNotFound", refuse=lambda _: deployment_not_found()),
        Fault("408", "408, the service timed out", refuse=_status(408, "Timeout", "The operation was timeout.")),
        Fault("429", "429, Retry-After in SECONDS", (1,), refuse=_too_many("Retry-After")),
        Fault(
            "429-date",
            "429, Retry-After as the HTTP date in SECONDS",
            (2,),
            refuse=_too_many("Retry-After", _date_after),
        ),
        Fault("429-ms", "429, retry-after-ms in MILLISECONDS", (250,), refuse=_too_many("retry-after-ms")),
        Fault("429-x-ms", "429, x-ms-retry-after-ms in MILLISECONDS", (250,), refuse=_too_many("x-ms-retry-after-ms")),
        Fault("429-absurd", "429, Retry-After: 86400", (86400,), refuse=_too_many("Retry-After")),
        Fault("429-garbled", "429, Retry-After: soon", (0,), refuse=_too_many("Retry-After", lambda _: "soon")),
        Fault("429-none", "429 without a retry header", (0,), refuse=_too_many(None)),
        Fault("500", "500", refuse=_status(500, "InternalServerError", "The server had an error.")),
        Fault("502", "502 with a page of HTML", refuse=lambda _: _html(502, "502 Bad Gateway")),
        Fault(
            "503", "503 without Retry-After", refuse=_status(503, "ServiceUnavailable", "The service is overloaded.")
        ),
        Fault(
            "503-after",
            "503, Retry-After in SECONDS",
            (1,),
            refuse=_status(503, "ServiceUnavailable", "The service is overloaded.", "Retry-After"),
        ),
        Fault("504", "504", refuse=_status(504, "GatewayTimeout", "The gateway timed out.")),
        # Silence, for SECONDS or for ever
        Fault("stall-headers", "silent before the headers for SECONDS", (FOR_EVER,), steps=_before(Headers, Pause(0))),
        Fault("stall-first", "silent before the first token for SECONDS", (FOR_EVER,), steps=_before(Token, Pause(0))),
        Fault("stall-midway", "silent for SECONDS after K tokens", (FOR_EVER, _K), steps=_interrupt(Pause(0))),
        # Broken off
        Fault("cut-headers", "closed before the headers", steps=_before(Headers, Cut(), end=True), breaks=True),
        Fault("cut-first", "closed before the first token", steps=_before(Token, Cut(), end=True), breaks=True),
        Fault("cut-midway", "closed after K tokens", (_K,), steps=_interrupt(Cut(), end=True), breaks=True),
        Fault(
            "reset-headers", "reset before the headers", steps=_before(Headers, Cut(reset=True), end=True), breaks=True
        ),
        Fault("reset-midway", "reset after K tokens", (_K,), steps=_interrupt(Cut(reset=True), end=True), breaks=True),
        Fault("end-midway", "ends cleanly after K tokens, no finish", (_K,), steps=_interrupt(end=True), breaks=True),
        Fault("no-done", "ends cleanly without [DONE]", steps=_drop("done"), breaks=True),
        Fault("no-finish", "no chunk with a finish_reason, but [DONE]", steps=_drop("finish"), breaks=True),
        # Wrong things in the stream
        Fault("filter-midway", "the filter stops the answer after K tokens", (_K,), steps=_filter_midway),
        Fault("error-first", "an error object as the first event", steps=_instead(_ERROR, DONE), breaks=True),
        Fault(
            "error-midway",
            "an error object after K tokens, then the end",
            (_K,),
            steps=_interrupt(_ERROR, end=True),
            breaks=True,
        ),
        Fault("garbage-first", "the first event is not JSON", steps=_instead(_GARBAGE), breaks=True),
        Fault(
            "garbage-midway", "an event that is not JSON after K tokens", (_K,), steps=_interrupt(_GARBAGE), breaks=True
        ),
        Fault("html", "200 with a page of HTML", steps=_instead(_PAGE), content_type="text/html", breaks=True),
        Fault("empty", "200 with an empty body", steps=_instead(), breaks=True),
        Fault("content-type", "a good stream called text/plain", content_type="text/plain"),
        Fault(
            "invalid-utf8",
            "bytes that are no UTF-8 before each token",
            steps=_between_tokens(_broken_utf8),
            breaks=True,
        ),
        Fault(
            "lone-surrogate",
            "half a surrogate pair, escaped, before each token",
            steps=_between_tokens(_lone_surrogate),
        ),
        Fault("after-done", "a chunk after [DONE]", steps=_after_done),
        # Right, but rare
        Fault("surrogates", "escaped surrogate pairs, each split over two chunks", steps=_split_surrogates),
        Fault("escaped", "all but ASCII escaped", steps=_escape),
        Fault("async-filter", "the asynchronous filter: results in chunks without delta", steps=_asynchronous_filter),
        Fault("no-filter", "no prompt_filter_results, as OpenAI itself", steps=_drop("filter")),
        Fault("no-role", "no chunk with the role", steps=_drop("role")),
        Fault("no-usage", "no usage, though asked for", steps=_drop("usage")),
        Fault("double-finish", "the chunk with finish_reason twice", steps=_double_finish),
        Fault(
            "empty-content",
            "a chunk with empty content before each token",
            steps=_between_tokens(lambda reply: Event("content", reply.delta({"content": ""}))),
        ),
        Fault(
            "null-content",
            "a chunk with content null before each token",
            steps=_between_tokens(lambda reply: Event("content", reply.delta({"content": None}))),
        ),
        Fault("comments", "comments and blank lines between the events", steps=_comments),
        Fault("crlf", "lines end in CRLF", frame=_crlf),
        Fault("cr", "lines end in CR", frame=_cr),
        Fault("no-space", "`data:` without a space", frame=_no_space),
        Fault("data-lines", "two `data:` lines in one event", frame=_several_lines),
        Fault("fields", "`id`, `retry` and an unknown field beside `data`", frame=_fields),
        Fault("bytes", "each byte a write of its own", slices=_each_byte),
        Fault("split", "cut at random places, by SEED", (0,), slices=_seeded),
        Fault("one-write", "the whole stream in one write", slices=_one_write, unpaced=True),
        # Much
        Fault("long", "an answer of BYTES, without a pause", (1_000_000,), text=_long, unpaced=True),
        Fault("huge-chunk", "an answer of BYTES in one chunk", (1_000_000,), text=_huge, unpaced=True),
        Fault("flood", "TOKENS without a pause", (100_000,), text=_flood, unpaced=True),
        Fault("silent", "a good answer without a single token", text=lambda _: ()),
    )
}

if __name__ == "__main__":
    for fault in FAULTS.values():
        print(f"{PREFIX + fault.name:24} {' '.join(format(value, 'g') for value in fault.takes):10} {fault.says}")
