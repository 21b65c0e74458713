"""Every schedule of the scenarios below, up to a depth, and seeded random ones beyond.

SCHEDULE='backend-0 clock server …' pytest tests/schedules -k 'name of the scenario'     # replays one schedule
SCHEDULE_SEED=12345 pytest tests/schedules -k random      # replays the random schedules of a seed
SCHEDULE_RUNS=100000 pytest tests/schedules -k random     # more of them
"""

import os
import random
from typing import Any, Final

import pytest

from relay.problems import CONTENT_FILTER, INVALID_REQUEST, RATE_LIMITED, UPSTREAM_ERROR, Problem
from relay.settings import Wire
from relay.upstream.failures import Refusal
from relay.wires import chat_completions, responses, stream
from relay.wires.wire import WireRequest
from tests.schedules.explorer import Schedule, _following, attempt, explore, randomly, replayed
from tests.schedules.world import Break, CallerStep, Cancelled, End, Headers, Scenario, Send, UpstreamStep


def parsed(request: WireRequest | Problem) -> WireRequest:
    assert not isinstance(request, Problem)
    return request


STREAM: Final = parsed(stream.parse(b'{"input": "x"}'))
DOCUMENT: Final = parsed(stream.parse(b'{"input": "x", "stream": false}'))
REASONING: Final = parsed(stream.parse(b'{"input": "x", "reasoning_summary": "auto"}'))
REASONING_DOCUMENT: Final = parsed(stream.parse(b'{"input": "x", "reasoning_summary": "auto", "stream": false}'))
CHAT: Final = parsed(chat_completions.parse(b'{"messages": [], "stream": true}'))
RESPONSE: Final = parsed(responses.parse(b'{"input": "x", "stream": true}'))
RESPONSE_DOCUMENT: Final = parsed(responses.parse(b'{"input": "x"}'))
CHAT_DOCUMENT: Final = parsed(chat_completions.parse(b'{"messages": []}'))


def text(words: str) -> Send:
    chunk = b'{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}' % words.encode()
    return Send(b"data: %b\n\n" % chunk, words)


def thought(words: str) -> Send:
    chunk = b'{"id":"c","choices":[{"index":0,"delta":{"reasoning_content":"%b"}}]}' % words.encode()
    return Send(b"data: %b\n\n" % chunk, reasoning=words)


FILTER: Final = Send(b'data: {"choices":[],"prompt_filter_results":[]}\n\n', progress=False)
USAGE: Final = Send(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n', usage=True)
FINISH: Final = Send(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', finishes=True)
COMMENT: Final = Send(b": keep-alive\n\n", progress=False)
PING: Final = Send(b"data: ping\n\n", progress=False)
UNKNOWN: Final = Send(b'data: {"foo":1}\n\n', progress=False)
REFUSED: Final = Send(b'data: {"error":{"code":400,"message":"?"}}\n\n')
DONE: Final = Send(b"data: [DONE]\n\n", completes=True)
NOTHING: Final = Send(b"data: [DONE]\n\n")
ERROR: Final = Send(b'data: {"error":{"code":"server_error","message":"?"}}\n\n')
GOOD: Final = (Headers(), text("one "), text("two"), DONE, End())
BUSY: Final = Refusal(RATE_LIMITED.with_retry_after(3), "429", retry_after=3.0, status=429)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "500", status=500)
BAD: Final = Refusal(INVALID_REQUEST, "400", status=400)
# Of something that the app added to the request: it is sent once more without that.
REFUSED_ADDITION: Final = Refusal(
    INVALID_REQUEST, "400", status=400, error={"message": "unknown parameter", "param": "stream_options"}
)
FILTERED: Final = Refusal(CONTENT_FILTER, "400", status=400)
SHORT: Final = {
    "commit_wait": 2.0,
    "ping_interval": 3.0,
    "stream_deadline": 20.0,
    "upstream_silence_timeout": 8.0,
}
WHOLE_DOCUMENT: Final = Send(
    b'{"id":"c","choices":[{"index":0,"message":{"content":"one two"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2}}',
    "one two",
    usage=True,
)


def response_event(number: int, kind: str, members: str = "", **step: Any) -> Send:
    """An event of the Responses API; `step` is what its bytes mean to the scenario."""
    data = f'{{"type":"{kind}","sequence_number":{number}{members and "," + members}}}'
    return Send(f"event: {kind}\ndata: {data}\n\n".encode(), **step)


def response_text(number: int, words: str) -> Send:
    return response_event(number, "response.output_text.delta", f'"delta":"{words}"', text=words)


def response_thought(number: int, words: str) -> Send:
    return response_event(number, "response.reasoning_summary_text.delta", f'"delta":"{words}"', reasoning=words)


COUNTS: Final = '"usage":{"input_tokens":3,"output_tokens":2}'
CREATED: Final = response_event(0, "response.created", '"response":{"id":"r","model":"m","status":"in_progress"}')
COMPLETED: Final = response_event(
    3, "response.completed", f'"response":{{"id":"r","status":"completed",{COUNTS}}}', completes=True, usage=True
)
INCOMPLETE: Final = response_event(
    2, "response.incomplete", '"response":{"id":"r","incomplete_details":{"reason":"content_filter"}}', completes=True
)
RESPONSE_FAILED: Final = response_event(
    2, "response.failed", '"response":{"id":"r","status":"failed","error":{"code":"server_error"}}'
)
FAILED_SILENTLY: Final = response_event(2, "response.failed", '"response":{"id":"r","status":"failed"}')
RESPONSE_ERROR: Final = response_event(2, "error", '"code":"server_error","message":"?"')
GOOD_RESPONSE: Final = (Headers(), CREATED, response_text(1, "one "), response_text(2, "two"), COMPLETED, End())
WHOLE_RESPONSE: Final = Send(
    b'{"id":"r","object":"response","status":"completed","output":[{"content":[{"text":"one two"}]}],%b}'
    % COUNTS.encode(),
    "one two",
    usage=True,
)


TYPED_RESPONSE: Final = Send(
    WHOLE_RESPONSE.content.replace(b'{"content":[{', b'{"type":"message","content":[{"type":"output_text",'), usage=True
)


def scenario(
    *upstream: tuple[UpstreamStep, ...],
    request: WireRequest = STREAM,
    caller: tuple[CallerStep, ...] = (),
    accept: str | None = None,
    on_probation: tuple[int, ...] = (),
    wires: tuple[Wire, ...] = (),
    **settings: float,
) -> Scenario:
    return Scenario(request, upstream, caller, accept, {**SHORT, **settings}, on_probation, wires)


SCENARIOS: Final = {
    "good": scenario(GOOD),
    "good, with usage": scenario((Headers(), text("one "), text("two"), FINISH, USAGE, DONE)),
    "usage, then silent": scenario((Headers(), text("one "), FINISH, USAGE), accept="application/jsonl"),
    "usage, then the deadline": scenario((Headers(), text("one "), USAGE), upstream_silence_timeout=60.0),
    "good, nothing before the deadline but pings": scenario((Headers(), text("one ")), upstream_silence_timeout=60.0),
    "good, ndjson": scenario(GOOD, accept="application/x-ndjson"),
    "good, plain text": scenario(GOOD, accept="text/plain"),
    "good, one document": scenario(GOOD, request=DOCUMENT),
    "good, chat": scenario((Headers(), FILTER, text("one "), FINISH, USAGE, DONE, End()), request=CHAT),
    "good, chat document": scenario(
        (Headers("application/json"), WHOLE_DOCUMENT, End(completes=True)), request=CHAT_DOCUMENT
    ),
    "disconnect": scenario(GOOD, caller=("disconnect",)),
    "disconnect, plain text": scenario(GOOD, caller=("disconnect",), accept="text/plain"),
    "disconnect, one document": scenario(GOOD, request=DOCUMENT, caller=("disconnect",)),
    "slow reader": scenario(GOOD, caller=("stop reading", "read on")),
    "slow reader, beyond the silence timeout": scenario(
        GOOD, caller=("stop reading", "read on"), upstream_silence_timeout=2.0, ping_interval=60.0
    ),
    "slow reader of pings": scenario((Headers(),), caller=("stop reading", "read on"), ping_interval=2.0),
    "good, after a failure": scenario(GOOD, on_probation=(0,)),
    "stops reading": scenario(GOOD, caller=("stop reading",)),
    "stops reading and disconnects": scenario(GOOD, caller=("stop reading", "disconnect")),
    "shut down": scenario(GOOD, caller=("shut down",)),
    "refused": scenario((BAD,)),
    "a refused addition": scenario((REFUSED_ADDITION, *GOOD), caller=("disconnect",)),
    "a refused addition, then a failure": scenario((REFUSED_ADDITION, BROKEN), GOOD),
    "a refused addition, again and again": scenario((REFUSED_ADDITION, REFUSED_ADDITION), GOOD, request=CHAT),
    "a refused addition, then silence": scenario((REFUSED_ADDITION,), GOOD, failover_after=4.0),
    "filtered": scenario((FILTERED,), GOOD),
    "busy, then good": scenario((BUSY,), GOOD),
    "busy, then good, disconnect": scenario((BUSY,), GOOD, caller=("disconnect",)),
    "all refuse": scenario((BUSY,), (BROKEN,)),
    "cut before output, then good": scenario((Headers(), Break()), GOOD),
    "empty, then good": scenario((Headers(), End()), GOOD, accept="application/x-ndjson"),
    "error first, then good": scenario((Headers(), ERROR), GOOD, request=CHAT),
    "wrong media type, then good": scenario((Headers("text/html"),), GOOD),
    "cut midway": scenario((Headers(), text("one "), Break()), GOOD),
    "cut midway, plain text": scenario((Headers(), text("one "), Break()), accept="text/plain"),
    "cut midway, one document": scenario((Headers(), text("one "), Break()), request=DOCUMENT),
    "cut midway, chat": scenario((Headers(), FILTER, text("one "), Break()), GOOD, request=CHAT),
    "ends midway": scenario((Headers(), text("one "), End()), caller=("stop reading", "read on")),
    "error midway": scenario((Headers(), text("one "), ERROR), caller=("disconnect",)),
    "silent before the headers": scenario((), GOOD),
    "silent before the headers, fail-over": scenario((), GOOD, failover_after=5.0),
    "silent before output": scenario((Headers(),), caller=("disconnect",)),
    "silent midway": scenario((Headers(), text("one ")), caller=("stop reading", "read on")),
    "chat silent after the filter": scenario((Headers(), FILTER), GOOD, request=CHAT),
    "good, response": scenario(GOOD_RESPONSE, request=RESPONSE),
    "good, response document": scenario(
        (Headers("application/json"), WHOLE_RESPONSE, End(completes=True)), request=RESPONSE_DOCUMENT
    ),
    "response, disconnect": scenario(GOOD_RESPONSE, request=RESPONSE, caller=("disconnect",)),
    "response, slow reader": scenario(GOOD_RESPONSE, request=RESPONSE, caller=("stop reading", "read on")),
    "response, shut down": scenario(GOOD_RESPONSE, request=RESPONSE, caller=("shut down",)),
    "response incomplete": scenario((Headers(), CREATED, response_text(1, "one "), INCOMPLETE), request=RESPONSE),
    "response refused": scenario((BAD,), request=RESPONSE),
    "response failed, then good": scenario((Headers(), CREATED, RESPONSE_FAILED), GOOD_RESPONSE, request=RESPONSE),
    "response error, then good": scenario((Headers(), CREATED, RESPONSE_ERROR), GOOD_RESPONSE, request=RESPONSE),
    "response cut before output, then good": scenario((Headers(), CREATED, Break()), GOOD_RESPONSE, request=RESPONSE),
    "response failed midway": scenario(
        (Headers(), CREATED, response_text(1, "one "), RESPONSE_FAILED), GOOD_RESPONSE, request=RESPONSE
    ),
    "response error midway": scenario(
        (Headers(), CREATED, response_text(1, "one "), RESPONSE_ERROR), GOOD_RESPONSE, request=RESPONSE
    ),
    "response cut midway": scenario((Headers(), CREATED, response_text(1, "one "), Break()), request=RESPONSE),
    "response ends midway": scenario(
        (Headers(), CREATED, response_text(1, "one "), End()), request=RESPONSE, caller=("stop reading", "read on")
    ),
    "response silent before output": scenario((Headers(), CREATED), GOOD_RESPONSE, request=RESPONSE),
    "response silent midway": scenario((Headers(), CREATED, response_text(1, "one ")), request=RESPONSE),
    "response, the deadline": scenario(
        (Headers(), CREATED, response_text(1, "one ")), request=RESPONSE, upstream_silence_timeout=60.0
    ),
    "by responses": scenario(GOOD_RESPONSE, caller=("disconnect",), wires=("responses",)),
    "by responses, slow reader": scenario(
        GOOD_RESPONSE, caller=("stop reading", "read on"), accept="application/x-ndjson", wires=("responses",)
    ),
    "by responses, one document": scenario(GOOD_RESPONSE, request=DOCUMENT, wires=("responses",)),
    "by responses, a document": scenario(
        (Headers("application/json"), TYPED_RESPONSE, End(completes=True, text="one two")), wires=("responses",)
    ),
    "by responses, cut midway": scenario(
        (Headers(), CREATED, response_text(1, "one "), Break()), GOOD, wires=("responses", "chat")
    ),
    "by responses, silent": scenario((Headers(), CREATED, response_text(1, "one ")), wires=("responses",)),
    "by responses, failed midway": scenario(
        (Headers(), CREATED, response_text(1, "one "), RESPONSE_FAILED), GOOD_RESPONSE, wires=("responses",) * 2
    ),
    "by responses, failed for an unknown reason": scenario(
        (Headers(), CREATED, response_text(1, "one "), FAILED_SILENTLY, RESPONSE_ERROR), wires=("responses",)
    ),
    "by chat, then by responses": scenario((BUSY,), GOOD_RESPONSE, wires=("chat", "responses")),
    "by responses, then by chat": scenario(
        (Headers(), CREATED, RESPONSE_FAILED), GOOD, wires=("responses", "chat"), caller=("disconnect",)
    ),
    "by each in turn": scenario(
        (Headers(), Break()),
        (Headers(), CREATED, End()),
        (BROKEN,),
        GOOD_RESPONSE,
        wires=("chat", "responses", "chat", "responses"),
    ),
    "a refused addition, then by responses": scenario(
        (REFUSED_ADDITION, BROKEN), GOOD_RESPONSE, wires=("chat", "responses")
    ),
    "reasoning": scenario(
        (Headers(), thought("a"), thought("b"), text("one "), DONE), request=REASONING, caller=("disconnect",)
    ),
    "reasoning, by responses": scenario(
        (Headers(), CREATED, response_thought(1, "a"), response_text(2, "one "), COMPLETED),
        request=REASONING,
        accept="application/jsonl",
        wires=("responses",),
    ),
    "reasoning, cut": scenario((Headers(), thought("a"), Break()), GOOD, request=REASONING),
    "reasoning that is not sent, cut": scenario((Headers(), thought("a"), Break()), GOOD),
    "reasoning in plain text, cut": scenario(
        (Headers(), CREATED, response_thought(1, "a"), RESPONSE_FAILED),
        GOOD,
        request=REASONING,
        accept="text/plain",
        wires=("responses", "chat"),
    ),
    "reasoning in one document, cut": scenario(
        (Headers(), thought("a"), Break()),
        (Headers(), CREATED, response_thought(1, "b"), response_text(2, "one "), COMPLETED),
        request=REASONING_DOCUMENT,
        wires=("chat", "responses"),
    ),
    "reasoning in one document, then none": scenario(
        (Headers(), thought("a"), Break()), GOOD, request=REASONING_DOCUMENT
    ),
    "no commit wait": scenario(GOOD, commit_wait=0.0),
    "finish, then the end": scenario((Headers(), text("one "), FINISH, End())),
    "finish, then broken": scenario((Headers(), text("one "), FINISH, Break()), accept="application/jsonl"),
    "finish, then broken, chat": scenario((Headers(), FINISH, Break()), GOOD, request=CHAT),
    "finish, then silent": scenario((Headers(), text("one "), FINISH), caller=("stop reading", "read on")),
    "finish, then silent, one document": scenario((Headers(), text("one "), FINISH), request=DOCUMENT),
    "finish, then silent, chat": scenario((Headers(), FILTER, text("one "), FINISH), request=CHAT),
    "finish, then the deadline": scenario((Headers(), text("one "), FINISH), stream_deadline=3.0),
    "finish, then an error": scenario((Headers(), text("one "), FINISH, ERROR), GOOD),
    "late usage": scenario((Headers(), text("one "), FINISH, DONE, USAGE, End())),
    "late usage, chat": scenario((Headers(), text("one "), DONE, USAGE), request=CHAT, caller=("disconnect",)),
    "late usage, broken": scenario((Headers(), text("one "), DONE, Break()), caller=("stop reading", "read on")),
    "comments": scenario((Headers(), COMMENT, text("one "), COMMENT, PING, COMMENT, COMMENT)),
    "comments, then good": scenario((Headers(), COMMENT, COMMENT, *GOOD[1:]), caller=("disconnect",)),
    "not understood": scenario((Headers(), text("one "), UNKNOWN, NOTHING, End())),
    "not understood, then finished": scenario((Headers(), text("one "), UNKNOWN, FINISH, DONE, End())),
    "nothing understood, then good": scenario((Headers(), UNKNOWN, NOTHING, End()), GOOD),
    "no answer, then good, chat": scenario((Headers(), FILTER, NOTHING, End()), GOOD, request=CHAT),
    "a bad request in the answer": scenario((Headers(), REFUSED), GOOD),
    "a document": scenario(
        (Headers("application/json"), Send(WHOLE_DOCUMENT.content), End(completes=True, text="one two", usage=True))
    ),
    "a document, chat": scenario(
        (Headers("application/json"), Send(WHOLE_DOCUMENT.content), End(completes=True, text="one two", usage=True)),
        request=CHAT,
        caller=("disconnect",),
    ),
    "cancelled": scenario(GOOD, caller=("cancel",)),
    "cancelled, one document": scenario(GOOD, request=DOCUMENT, caller=("cancel",)),
    "cancelled while the caller does not read": scenario(GOOD, caller=("stop reading", "cancel")),
    "what it waits for is cancelled": scenario((Cancelled(),), GOOD),
    "what it waits for is cancelled, chat": scenario((Cancelled(),), GOOD, request=CHAT, caller=("disconnect",)),
    "split": scenario((Headers(), Send(DONE.content[:5]), Send(b"x\n\n")), caller=("disconnect",)),
}

DEPTH: Final = int(os.environ.get("SCHEDULE_DEPTH", "4"))
HASTY: Final = 1  # turns of an explored schedule that are not followed by rest
SEED: Final = os.environ.get("SCHEDULE_SEED")
RUNS: Final = int(os.environ.get("SCHEDULE_RUNS", "40"))  # random schedules of each scenario


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (turns := replayed()) is not None:
        attempt(SCENARIOS[name], Schedule(_following(turns)), monkeypatch)
        return
    assert explore(SCENARIOS[name], DEPTH, HASTY, monkeypatch) > 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_random_schedules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in [int(SEED)] if SEED else [random.randrange(2**32) for _ in range(RUNS)]:
        randomly(SCENARIOS[name], seed, monkeypatch)
