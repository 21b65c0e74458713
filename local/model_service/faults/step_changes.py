"""Faults that change the steps of a response: silence, an early end, wrong or unusual events."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace

from local.model_service.encoding import as_json
from local.model_service.faults.error_responses import html_page
from local.model_service.faults.fault import Arguments, ReplyChange, StepChange, Steps
from local.model_service.reply import Reply
from local.model_service.steps import Cut, Event, EventKind, Headers, Pause, Raw, Step, Token

# A step to insert: fixed, or made by the wire. A pause gets its seconds from the fault's first argument.
type Insertion = Step | Callable[[Reply], Event | None]

HTML_PAGE = Raw(html_page(200, "Sign in").body)
PAUSE = Pause(0)
REASONING = ("Let me ", "think.")

# Errors and other events as servers other than Azure's are known to send them, in the middle of a stream.
NAMED_ERROR = Event("odd", b'{"code":"Throttling.AllocationQuota","message":"Allocated quota exceeded."}', b"error")
FLAT_ERROR = Event("odd", b'{"choices":null,"error_type":"InternalServerError","error_message":"An error occurred."}')
ERROR_OBJECT = Event(
    "odd", b'{"object":"error","message":"An error occurred.","type":"InternalServerError","code":500}'
)
BARE_ERROR = Raw(b'{"error":{"message":"Rate limit reached.","type":"rate_limit_error","code":"429"}}\n\n')
BAD_REQUEST = Event("odd", b'{"error":{"message":"Invalid value.","type":"invalid_request_error","code":400}}')
TOO_LONG = Event(
    "odd",
    b'{"error":{"object":"error","message":"This model\'s maximum context length is 8192 tokens.",'
    b'"type":"BadRequestError","param":null,"code":400}}',
)
UNKNOWN_EVENT = Event("odd", b'{"status":"queued","position":3}')
PING_EVENT = Event("odd", b"ping")


def _made(insertions: Iterable[Insertion], reply: Reply, arguments: Arguments) -> Iterable[Step]:
    for one in insertions:
        if isinstance(one, Pause):
            yield Pause(arguments[0])
        else:
            step = one(reply) if callable(one) else one
            if step is not None:
                yield step


def _is_end(step: Step) -> bool:
    return isinstance(step, Event) and step.kind in ("finish", "done")


def midway(*inserted: Insertion, end: bool = False) -> StepChange:
    """Insert steps after as many tokens as the last argument says, or before the finish; `end`: no more follows.

    A response in one document is interrupted in its middle.
    """

    def change(steps: Steps, reply: Reply, arguments: Arguments) -> Steps:
        tokens, halves = 0, 0
        waiting = True
        for step in steps:
            halves += isinstance(step, Raw)
            enough = isinstance(step, Token) and tokens >= arguments[-1]
            if waiting and (enough or halves == 2 or (isinstance(step, Event) and step.kind == "finish")):
                waiting = False
                yield from _made(inserted, reply, arguments)
                if end:
                    return
            tokens += isinstance(step, Token)
            yield step

    return change


def before(kind: type[Headers] | type[Token], *inserted: Insertion, end: bool = False) -> StepChange:
    """Insert steps before the headers, or before the first token (in one document: before its first byte)."""

    def change(steps: Steps, reply: Reply, arguments: Arguments) -> Steps:
        waiting = True
        for step in steps:
            first = isinstance(step, kind) or (kind is Token and (isinstance(step, Raw) or _is_end(step)))
            if waiting and first:
                waiting = False
                yield from _made(inserted, reply, arguments)
                if end:
                    return
            yield step

    return change


def only(*steps: Insertion, done: bool = False) -> StepChange:
    """The headers and these steps in place of the response's own; `done`: and what marks a stream's end."""

    def change(_steps: Steps, reply: Reply, arguments: Arguments) -> Steps:
        yield Headers()
        yield from _made(steps, reply, arguments)
        if done:
            yield from reply.done_events

    return change


def without(*kinds: EventKind) -> StepChange:
    """Leave events of these kinds out, and what they carry where another event carries it."""

    def change(steps: Steps, reply: Reply, _: Arguments) -> Steps:
        reply.leave_out(*kinds)
        return (step for step in steps if not (isinstance(step, Event) and step.kind in kinds))

    return change


def without_tokens(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    """Leave the tokens' events out."""
    return (step for step in steps if not isinstance(step, Token))


def before_each_token(make: Callable[[Reply], Event]) -> StepChange:
    """Insert an event before each token and before the end."""

    def change(steps: Steps, reply: Reply, _: Arguments) -> Steps:
        for step in steps:
            if isinstance(step, Token) or _is_end(step):
                yield make(reply)
            yield step

    return change


def reasoning_first(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    """Reasoning, in events of its own, before the first token."""
    waiting = True
    for step in steps:
        if waiting and isinstance(step, Token):
            waiting = False
            yield from map(reply.reasoning_event, REASONING)
        yield step


def error_event(reply: Reply) -> Event:
    """The wire's error event."""
    return reply.error_event()


def failed_choice(reply: Reply) -> Event:
    """The event of a choice that ends in an error."""
    return reply.failed_finish_event()


def failed_finish(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    """The finish reason is an error."""
    return (reply.failed_finish_event() if isinstance(it, Event) and it.kind == "finish" else it for it in steps)


def unfinished_end(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    """The marker of the end is not finished: its blank line and line end are missing."""
    return (Raw(b"data: " + it.payload) if isinstance(it, Event) and it.kind == "done" else it for it in steps)


def usage_last(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    """The usage comes after the marker of the end."""
    usage = []
    for step in steps:
        if isinstance(step, Event) and step.kind == "usage":
            usage.append(step)
        else:
            yield step
    yield from usage


def reset_at_end(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    """The connection is reset where the marker of the end would come."""
    for step in steps:
        if isinstance(step, Event) and step.kind == "done":
            yield Cut(reset=True)
        yield step


def whole_document(_steps: Steps, reply: Reply, _arguments: Arguments) -> Steps:
    """One document, whatever was asked for."""
    return reply.whole(0)


def comments(steps: Steps, _reply: Reply, arguments: Arguments) -> Steps:
    """Nothing but comments for some seconds, after as many tokens as the last argument says; in a document, white space
    in their place."""
    seconds, tokens = arguments[0], 0
    for step in steps:
        while (
            seconds > 0 and tokens and (isinstance(step, Raw) or (isinstance(step, Token) and tokens >= arguments[1]))
        ):
            yield Raw(b"\n" if isinstance(step, Raw) else b": keep-alive\n\n")
            yield Pause(min(seconds, 0.1))
            seconds -= 0.1
        tokens += isinstance(step, Token | Raw)
        yield step


def text_event(text: str | None) -> Callable[[Reply], Event]:
    """An event with this text."""
    return lambda reply: reply.text_event(text)


def ping_event(_: Reply) -> Event:
    """An event that keeps the connection open, and is no chunk."""
    return PING_EVENT


def raw_text_event(literal: bytes) -> Callable[[Reply], Event]:
    """An event whose text is written as this JSON string literal."""
    return lambda reply: reply.raw_text_event(literal)


def malformed_event(reply: Reply) -> Event:
    """An event that is not JSON."""
    return reply.malformed_event()


def stopped_by_filter(reply: Reply, arguments: Arguments) -> None:
    """The content filter stops the answer after as many tokens as the first argument says."""
    reply.stop_by_filter(int(arguments[0]))


def stopped_by_limit(reply: Reply, arguments: Arguments) -> None:
    """The token limit stops the answer after as many tokens as the first argument says."""
    reply.stop_by_limit(int(arguments[0]))


def failed(code: str | None, message: str = "The model failed to generate a response.") -> ReplyChange:
    """The answer fails with this code after as many tokens as the last argument says, or at once without arguments."""

    def change(reply: Reply, arguments: Arguments) -> None:
        reply.fail(int(arguments[-1]) if arguments else 0, code, message)

    return change


def asynchronous_filter(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    """Content without filter results; these follow in events of their own, some tokens behind."""
    reply.filter_each_token = False
    checked = written = tokens = 0
    for step in steps:
        if _is_end(step) and checked < written:
            yield reply.filter_event(checked, written)
            checked = written
        yield step
        if isinstance(step, Token):
            written += len(step.text)
            tokens += 1
            if tokens % 12 == 0:
                yield reply.filter_event(checked, written)
                checked = written


def split_surrogates(steps: Steps, reply: Reply, _: Arguments) -> Steps:
    """Everything beyond ASCII escaped, and each surrogate pair divided between two tokens."""
    reply.escape = True
    for step in steps:
        if isinstance(step, Token) and max(step.text, default="") > "\uffff":
            units = step.text.encode("utf-16-le")
            where = next(at for at in range(0, len(units), 2) if 0xD8 <= units[at + 1] < 0xDC) + 2
            for half in (units[:where], units[where:]):
                yield replace(step, text=half.decode("utf-16-le", "surrogatepass"))
        else:
            yield step


def escaped(reply: Reply, _: Arguments) -> None:
    """Everything beyond ASCII escaped."""
    reply.escape = True


def finish_twice(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    """The event with the reason of the end comes twice."""
    for step in steps:
        yield step
        if isinstance(step, Event) and step.kind == "finish":
            yield step


def followed_by(make: Callable[[Reply], Event]) -> StepChange:
    """Append an event to the response's own steps."""

    def change(steps: Steps, reply: Reply, _: Arguments) -> Steps:
        yield from steps
        yield make(reply)

    return change


def commented(steps: Steps, _reply: Reply, _arguments: Arguments) -> Steps:
    """Comments and blank lines between the events."""
    for step in steps:
        if isinstance(step, Token | Event):
            yield Raw(b': a comment, data: {"not":"data"}\n\n\n:\n')
        yield step


# Of the Responses API alone


def rate_limit_event(reply: Reply) -> Event:
    """The error event that Azure sends after a `response.failed` without an error (earendil-works/pi#7983)."""
    return reply.error_event("rate_limit_exceeded", "Your requests to the deployment have exceeded rate limit.")


def flat_error_event(reply: Reply) -> Event:
    """The error event by OpenAI's reference: the error's members beside the type."""
    error = json.loads(reply.error_event().payload)["error"]
    return Event("odd", as_json(error | {"type": "error"}), b"error")


def unknown_event(_: Reply) -> Event:
    """An event of a type that no client knows yet."""
    return Event("odd", b'{"type":"response.unheard_of.delta","delta":"unheard of"}', b"response.unheard_of.delta")


def keepalive_event(_: Reply) -> Event:
    """The event that OpenAI sends while a model thinks."""
    return Event("odd", b'{"type":"keepalive"}', b"keepalive")


def unnumbered(reply: Reply, _: Arguments) -> None:
    """The events have no numbers."""
    reply.numbered = False


def skipped_number(reply: Reply) -> None:
    """A number that no event has."""
    reply.sequence_number += 1
