"""What other people's model services really send, as reported in public, and what a caller gets of it on every wire.

Each case has the public thread that reports it, or no source where it only belongs to the same kind. An answer ends in
`done` where it was complete upstream, and in an error with its class where it was not; the record agrees.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.end_to_end.answers import DOCUMENT, FORMATS, PLAIN, SSE, ReceivedAnswer, post_stream, read_until_broken
from tests.end_to_end.hosting import HostedApp, eventually
from tests.end_to_end.scripted_upstream import USAGE, D, F, Script, ScriptedUpstream, W, chunk, document, sse
from tests.end_to_end.scripted_upstream import scripted_upstream as scripted_upstream

SILENCE_TIMEOUT: Final = 1.5  # seconds
WORDS: Final = "Hello wor"
LONG: Final = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."


@dataclass(frozen=True)
class Answer:
    """A complete answer with this text."""

    text: str = WORDS
    finish_reason: str | None = "stop"
    usage: bool = False


@dataclass(frozen=True)
class Error:
    """A failure of this class behind this text; without text it is the response's status."""

    status: int
    code: str
    text: str = ""
    message: str = ""  # a part of the message that callers of the OpenAI API get
    retry_after: int | None = None


@dataclass(frozen=True)
class Case:
    """What the model service sends, and what a caller gets of it."""

    name: str
    script: Script
    expected: Answer | Error
    source: str = ""
    id: str = field(default="", compare=False)


def stream(name: str, *body: bytes, expected: Answer | Error, source: str = "", id: str = "", **options: Any) -> Case:  # noqa: A002
    return Case(name, Script(*body, **options), expected, source, id)


def error(message: str = "?", **members: Any) -> bytes:
    return sse({"error": {"message": message, **members}})


TOO_LONG: Final = Error(400, "context_length_exceeded", message="maximum context length")
BAD: Final = Error(400, "invalid_request")
FAILED: Final = Error(502, "upstream_error")
FAILED_MIDWAY: Final = Error(502, "upstream_error", WORDS)
CUT: Final = Error(502, "upstream_interrupted", WORDS)
BUSY: Final = Error(429, "rate_limited")
WHOLE: Final = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}

# ── A failure inside a 200 never ends as `done` ──────────────────────────────────────────────────────────────────────

FAILURES: Final = [
    stream(
        "an error in members of its own",
        sse({"id": None, "choices": None, "error_type": "BadRequestError", "error_message": "no"}) + D,
        expected=BAD,
        source="NousResearch/hermes-agent#65631",
        id="S12",
    ),
    stream(
        "an error in members of its own, midway",
        W(WORDS) + sse({"choices": None, "error_type": "InternalServerError", "error_message": "no"}) + D,
        expected=FAILED_MIDWAY,
        source="NousResearch/hermes-agent#86635",
        id="S13",
    ),
    stream(
        "an event called error",
        W(WORDS) + sse({"code": "Throttling.AllocationQuota", "message": "quota"}, "error") + D,
        expected=Error(429, "rate_limited", WORDS),
        source="NousResearch/hermes-agent#58017",
        id="S14",
    ),
    stream(
        "an event called error that is text",
        W(WORDS) + sse("upstream connect error", "error") + D,
        expected=FAILED_MIDWAY,
    ),
    stream(
        "an event called error, with words only",
        W(WORDS) + sse({"reason": "x"}, "error") + D,
        expected=FAILED_MIDWAY,
    ),
    stream(
        "an object that is an error",
        W(WORDS) + sse({"object": "error", "message": "no", "type": "InternalServerError", "code": 500}) + D,
        expected=FAILED_MIDWAY,
        source="ogx-ai/ogx#4534",
        id="S16",
    ),
    stream(
        "an error in a choice",
        W(WORDS)
        + sse({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": {"code": 504}}]})
        + D,
        expected=Error(504, "upstream_timeout", WORDS),
        source="genkit-ai/genkit#6259",
        id="S18",
    ),
    stream(
        "a finish reason that is an error",
        W(WORDS) + chunk({}, "error") + D,
        expected=FAILED_MIDWAY,
        source="mastra-ai/mastra#20302",
        id="S19",
    ),
    *[
        stream(f"the finish reason {reason}", W(WORDS) + chunk({}, reason) + D, expected=FAILED_MIDWAY)
        for reason in ("abort", "insufficient_system_resource", "network_error", "UNEXPECTED_TOOL_CALL", "overloaded")
    ],
    stream(
        "nothing but the end marker",
        D,
        expected=FAILED,
        source="NousResearch/hermes-agent#65631",
        id="E8",
    ),
    stream("nothing at all", expected=FAILED),
    stream("nothing but comments", b": hello\n\n: hello\n\n", expected=FAILED),
    stream(
        "nothing but a report on the prompt", sse({"choices": [], "prompt_filter_results": []}) + D, expected=FAILED
    ),
    stream("nothing that is understood", sse({"foo": 1}) + D, expected=FAILED),
    stream("an event that is not understood, and no finish", W(WORDS) + sse({"foo": 1}) + D, expected=FAILED_MIDWAY),
    stream("a text that is no JSON, and no finish", W(WORDS) + sse("Bad Gateway") + D, expected=FAILED_MIDWAY),
    stream("a damaged chunk", W(WORDS) + b'data: {"choices":[{"delta":{"con\n\n' + F + D, expected=FAILED_MIDWAY),
    stream("an error behind the finish reason", W(WORDS) + F + error(code=500) + D, expected=FAILED_MIDWAY),
    stream(
        "an error without a field's name",
        W(WORDS) + b'{"error":{"code":429}}\n\n',
        expected=Error(429, BUSY.code, WORDS),
    ),
    stream(
        "a list of one error", W(WORDS) + sse([{"error": {"code": 500, "message": "?"}}]) + D, expected=FAILED_MIDWAY
    ),
    stream("an error that is a text", W(WORDS) + sse({"error": "out of memory"}) + D, expected=FAILED_MIDWAY),
    stream("a code and a message", W(WORDS) + sse({"code": 503, "message": "?"}) + D, expected=FAILED_MIDWAY),
    stream(
        "a status and a message",
        W(WORDS) + sse({"statusCode": 429, "message": "?"}) + D,
        expected=Error(429, BUSY.code, WORDS),
    ),
    stream("a status code and no message", W(WORDS) + sse({"code": 503, "msg": "?"}) + D, expected=FAILED_MIDWAY),
    stream("an event called error, without data", W(WORDS) + b"event: error\n\n" + D, expected=FAILED_MIDWAY),
    stream(
        "a list of one error without a field's name",
        W(WORDS) + b'[{"error":{"code":429}}]\n\n',
        expected=Error(429, BUSY.code, WORDS),
    ),
    stream(
        "an error in Groq's own member",
        W(WORDS) + chunk({}, x_groq={"id": "r", "error": "over capacity"}) + D,
        expected=FAILED_MIDWAY,
    ),
    stream("an error of the type", W(WORDS) + sse({"type": "error", "message": "?"}) + D, expected=FAILED_MIDWAY),
    stream("words, and no end", W(WORDS), expected=CUT),
    stream("a last event that is cut", W(WORDS) + b'data: {"choices":[{"index":0,"del', expected=CUT),
    stream("words, and a reset", W(WORDS), expected=CUT, ending="reset"),
    stream("words, and silence", W(WORDS), expected=Error(504, "upstream_timeout", WORDS), ending="silent"),
]

# ── A complete answer is not reported as cut ─────────────────────────────────────────────────────────────────────────


def counted_from_1(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return sse({"choices": [{"index": 1, "delta": delta, "finish_reason": finish_reason}]})


COMPLETE: Final = [
    stream("no end marker", W(WORDS) + F, expected=Answer(), source="ENTERPILOT/GoModel#1017", id="E1"),
    stream(
        "an end marker without its blank line",
        W(WORDS) + F + b"data: [DONE]\n",
        expected=Answer(),
        source="openai/openai-node#2725",
        id="E2",
    ),
    stream(
        "an end marker without a line end",
        W(WORDS) + F + b"data: [DONE]",
        expected=Answer(),
        source="google-gemini/gemini-cli#29059",
        id="E3",
    ),
    stream(
        "a reset behind the usage",
        W(WORDS) + F + USAGE,
        expected=Answer(usage=True),
        source="lbjlaq/Antigravity-Manager#2321",
        id="E6",
        ending="reset",
    ),
    stream("a reset behind the finish reason", W(WORDS) + F, expected=Answer(), ending="reset"),
    stream("silence behind the finish reason", W(WORDS) + F, expected=Answer(), ending="silent"),
    stream("a finish without its blank line", W(WORDS) + F.rstrip(), expected=Answer()),
    stream("usage behind the end marker", W(WORDS) + F + D + USAGE, expected=Answer(usage=True), id="C17"),
    stream(
        "usage a moment behind the end marker", W(WORDS), F, D, USAGE, expected=Answer(usage=True), id="C17", pause=0.05
    ),
    stream("silence behind the end marker", W(WORDS) + F + D, expected=Answer(), ending="silent"),
    stream(
        "pings that are no comments",
        W("Hello ") + sse("ping") + W("wor") + sse("ping") + F + D,
        expected=Answer(),
        source="aaif-goose/goose#11816",
        id="C13",
    ),
    stream(
        "pings, and no finish reason", sse("ping") + W(WORDS) + sse("ping") + D, expected=Answer(finish_reason=None)
    ),
    stream(
        "events called ping",
        sse("{}", "ping") + W(WORDS) + sse({"type": "ping"}) + D,
        expected=Answer(finish_reason=None),
    ),
    stream("no finish reason, but the end marker", W(WORDS) + D, expected=Answer(finish_reason=None)),
    stream("an event that is not understood, and a finish", W(WORDS) + sse({"foo": 1}) + F + D, expected=Answer()),
    *[
        stream(f"the end marker as {marker!r}", W(WORDS) + marker + b"\n\n", expected=Answer(finish_reason=None))
        for marker in (b"data:  [DONE]", b"data: [done]", b'data: "[DONE]"')
    ],
    stream(
        "a choice that is counted from 1",
        counted_from_1({"content": WORDS}) + counted_from_1({}, "stop") + D,
        expected=Answer(),
    ),
    stream("a chunk with an error that is null", chunk({"content": WORDS}, error=None) + F + D, expected=Answer()),
    stream("a chunk with an empty error", chunk({"content": WORDS}, error={}) + F + D, expected=Answer()),
    stream("a finish reason that is the word null", chunk({"content": WORDS}, "null") + F + D, expected=Answer()),
]

# ── An error keeps its class wherever it appears ─────────────────────────────────────────────────────────────────────

CLASSES: Final = [
    stream(
        "a context that is exceeded, by its message",
        sse({"error": {"object": "error", "message": LONG, "type": "BadRequestError", "param": None, "code": 400}}) + D,
        expected=TOO_LONG,
        source="sgl-project/sglang#12081",
        id="S1",
    ),
    stream(
        "a context that is exceeded, by its type",
        error("the request exceeds it", code=400, type="exceed_context_size_error"),
        expected=Error(400, "context_length_exceeded", message="the request exceeds it"),
        source="ggml-org/llama.cpp#14566",
        id="S2",
    ),
    stream(
        "a context that is exceeded, by its code",
        error("too long", code="context_length_exceeded") + D,
        expected=Error(400, "context_length_exceeded", message="too long"),
        source="BerriAI/litellm#6629",
        id="S3",
    ),
    stream(
        "a rate limit, by its type",
        error(type="rate_limit_error", param=None, code=None),
        expected=BUSY,
        source="dtzp555-max/ocp#482",
        id="S5",
    ),
    stream("a code that is a number in a text", error(code="429"), expected=BUSY),
    stream("a bad request, by its type", error("no such tool", type="invalid_request_error"), expected=BAD),
    stream("an overloaded service", error(type="overloaded_error"), expected=FAILED),
    stream("a quota of Google's", error(code=429, status="RESOURCE_EXHAUSTED"), expected=BUSY),
    stream("a code that is a number with a fraction", error(code=429.0), expected=BUSY),
    stream(
        "throttling, in AWS's form", sse({"__type": "com.amazon#ThrottlingException", "Message": "?"}), expected=BUSY
    ),
    stream(
        "a prompt that is too long, in other words",
        error("The decoder prompt (length 9000) is longer than the maximum model length of 8192.", code=400),
        expected=Error(400, "context_length_exceeded", message="maximum model length"),
    ),
    stream("a wrong key", error(type="authentication_error"), expected=Error(502, "upstream_auth")),
    stream("a missing model", error(type="not_found_error"), expected=Error(404, "model_not_found")),
    Case(
        "a model that Ollama does not have",
        document(
            {"error": {"message": "model 'x' not found", "type": "not_found_error", "param": None, "code": None}}, 404
        ),
        Error(404, "model_not_found"),
        "Ollama",
        "R1",
    ),
    Case(
        "a model that vLLM does not have",
        document(
            {
                "error": {
                    "message": "The model `m` does not exist.",
                    "type": "NotFoundError",
                    "param": "model",
                    "code": 404,
                }
            },
            404,
        ),
        Error(404, "model_not_found"),
        "vllm-project/vllm#58025",
        "R2",
    ),
    Case(
        "a path that llama.cpp does not have",
        document({"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, 404),
        Error(503, "not_configured"),
    ),
    Case(
        "a list of one error, with a status",
        document([{"error": {"code": 400, "message": "no such thing", "status": "INVALID_ARGUMENT"}}], 400),
        Error(400, "invalid_request", message="no such thing"),
        "Gemini",
        "R3",
    ),
    Case(
        "a quota of API Management",
        document({"statusCode": 403, "message": "Out of call volume quota."}, 403, headers={"Retry-After": "75"}),
        Error(429, "rate_limited", retry_after=75),
        "API Management, token limit",
        "R8",
    ),
    Case(
        "a quota of API Management, without a header",
        document({"statusCode": 403, "message": "Out of call volume quota. It will be replenished in 00:12:34."}, 403),
        BUSY,
    ),
    Case(
        "a model that LiteLLM does not have",
        document({"error": {"message": "Invalid model name passed in model=x", "param": "model", "code": "400"}}, 400),
        Error(404, "model_not_found"),
    ),
    Case(
        "a limit that is reset after so long, by a gateway's header",
        document({"error": {"message": "busy"}}, 429, headers={"X-RateLimit-Reset": "12"}),
        Error(429, "rate_limited", retry_after=12),
    ),
    Case("forbidden", document({"error": {"message": "no"}}, 403), Error(502, "upstream_auth")),
    Case(
        "a limit that is reset in so many seconds",
        document({"error": {"message": "busy"}}, 429, headers={"x-ratelimit-reset-tokens": "55"}),
        Error(429, "rate_limited", retry_after=55),
        "openai/openai-python#937",
        "R9",
    ),
    Case(
        "a limit that is reset in minutes",
        document({"error": {"message": "busy"}}, 429, headers={"x-ratelimit-reset-requests": "1m3s"}),
        Error(429, "rate_limited", retry_after=63),
        "openai/openai-python#937",
        "R9",
    ),
    Case(
        "a proxy that takes no such body",
        Script(b"<html>too large</html>", status=413, content_type="text/html"),
        Error(413, "body_too_large"),
        id="R10",
    ),
]

# ── The reader of words needs words only ─────────────────────────────────────────────────────────────────────────────


def odd(**members: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": {"content": WORDS}}], **members})


PARTS: Final = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
MEMBERS: Final = [
    stream(
        "ids that are numbers",
        odd(id=20260608123456) + chunk({}, "stop", id=20260608123456) + D,
        expected=Answer(),
        source="diegosouzapw/OmniRoute#3426",
        id="C3",
    ),
    stream(
        "an index that is null, and a delta that is a list",
        sse({"choices": [{"index": None, "delta": {"content": WORDS}}]})
        + sse({"choices": [{"index": None, "delta": [], "finish_reason": "stop"}]})
        + D,
        expected=Answer(),
        id="C6",
    ),
    stream(
        "an index that is a text",
        sse({"choices": [{"index": "0", "delta": {"content": WORDS}}]}) + F + D,
        expected=Answer(),
    ),
    stream(
        "content in parts",
        chunk({"content": PARTS}) + chunk({"content": [{"type": "text", "text": WORDS}]}) + F + D,
        expected=Answer(),
        source="vercel/ai#17779",
        id="C1",
    ),
    stream(
        "members of any type",
        odd(model=5, created="x", object=[], usage="many", x_groq={"error": None}) + F + D,
        expected=Answer(),
    ),
    stream("a whole message in an event", sse(WHOLE) + D, expected=Answer(usage=True)),
]

# ── Labels and framing ───────────────────────────────────────────────────────────────────────────────────────────────

GOOD: Final = W(WORDS) + F + D
LABELS: Final = [
    stream(
        "a stream without Content-Type",
        GOOD,
        expected=Answer(),
        source="sigoden/aichat#651",
        id="H1",
        content_type=None,
    ),
    stream(
        "a stream called JSON",
        GOOD,
        expected=Answer(),
        source="microsoft/foundry-dev-tools#195",
        id="H2",
        content_type="application/json",
    ),
    stream("a stream called binary", GOOD, expected=Answer(), content_type="application/octet-stream"),
    stream("a stream in a coding that is none", GOOD, expected=Answer(), headers={"Content-Encoding": "utf-8"}),
    stream("a page of HTML", b"<!doctype html><title>Sign in</title>", expected=FAILED, content_type="text/html"),
    stream("a page of HTML called a stream", b"\n<html><body>no</body></html>", expected=FAILED),
    Case(
        "a document where a stream was asked", document(WHOLE), Answer(usage=True), "tinyhumansai/tinyagents#56", "H11"
    ),
    Case("such a document called a stream", document(WHOLE, content_type="text/event-stream"), Answer(usage=True)),
    Case(
        "an error in such a document",
        document({"id": "gen-1", "error": {"message": "?", "code": 502}}),
        FAILED,
        "OpenRouter",
        "S20",
    ),
    Case(
        "a rate limit in such a document",
        document({"id": "gen-1", "error": {"message": "?", "code": 429}}),
        BUSY,
        "Aider-AI/aider#3550",
        "S21",
    ),
    Case(
        "a text in such a document",
        document({"error": "Unexpected endpoint or method. (POST /v1)"}),
        FAILED,
        "lmstudio-ai/lmstudio-bug-tracker#618",
        "H15",
    ),
    Case("a document that is no answer", document({"status": "ok"}), FAILED),
    stream("a document that is cut", json.dumps(WHOLE).encode()[:60], expected=FAILED, content_type="application/json"),
    stream(
        "nothing but comments for ever, behind a word",
        W(WORDS),
        b": keep-alive\n\n",
        expected=Error(504, "upstream_timeout", WORDS),
        source="aaif-goose/goose#11816",
        id="K11",
        ending="repeat",
        pause=0.1,
    ),
    *[
        stream(
            f"nothing but {name} for ever, behind a word",
            W(WORDS),
            event,
            expected=Error(504, "upstream_timeout", WORDS),
            ending="repeat",
            pause=0.1,
        )
        for name, event in (
            ("events without choices", sse({"choices": []})),
            ("events that are not understood", sse({"foo": 1})),
            ("events called ping", sse("{}", "ping")),
        )
    ],
    stream(
        "nothing but pings for ever, behind a word",
        W(WORDS),
        sse("ping"),
        expected=Error(504, "upstream_timeout", WORDS),
        ending="repeat",
        pause=0.1,
    ),
]

CASES: Final = {case.name: case for case in (*FAILURES, *COMPLETE, *CLASSES, *MEMBERS, *LABELS)}

# Those that fail before the first word, so that another deployment may be asked.
ASKED_ELSEWHERE: Final = [name for name, it in CASES.items() if isinstance(it.expected, Error) and not it.expected.text]

# Where no stream was asked for, on the OpenAI wire.
WHOLE_DOCUMENT: Final = json.dumps(WHOLE).encode()
DOCUMENTS: Final = {
    case.name: case
    for case in (
        Case("a document", document(WHOLE), Answer(usage=True)),
        Case(
            "an error in a document",
            document({"id": "g", "error": {"message": "?", "code": 502}}),
            FAILED,
            "open-jarvis/OpenJarvis#970",
            "S20",
        ),
        Case(
            "a rate limit in a document",
            document({"error": {"message": "?", "code": 429}}),
            BUSY,
            "Aider-AI/aider#3550",
            "S21",
        ),
        Case(
            "a bad request in a document",
            document({"error": {"message": "no such tool", "code": 400}}),
            Error(400, "invalid_request", message="no such tool"),
        ),
        Case(
            "a text in a document",
            document({"error": "Unexpected endpoint"}),
            FAILED,
            "lmstudio-ai/lmstudio-bug-tracker#618",
            "H15",
        ),
        Case("a document with nothing in it", document({"id": "x", "choices": None}), FAILED),
        Case("a document without a choice", document({"id": "x", "choices": []}), FAILED),
        Case(
            "a document that is finished by an error",
            document({"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}),
            FAILED,
        ),
        Case(
            "a document called a stream, with a marker behind it",
            Script(WHOLE_DOCUMENT + b"\n\ndata: [DONE]\n\n"),
            Answer(usage=True),
            id="H12",
        ),
        Case("a document in an event", Script(sse(WHOLE_DOCUMENT) + D), Answer(usage=True), id="H12"),
        Case("a stream where none was asked", Script(W("Hello ") + W("wor") + F + USAGE + D), Answer(usage=True)),
        Case("such a stream with an error", Script(W("Hello ") + error(code=429) + D), BUSY),
        Case("such a stream that is cut", Script(W("Hello ")), FAILED),
        Case("a document without Content-Type", Script(WHOLE_DOCUMENT, content_type=None), Answer(usage=True)),
        Case("such a document that is cut", Script(WHOLE_DOCUMENT[:50], content_type="application/json"), FAILED),
        Case(
            "a reset behind a document",
            Script(WHOLE_DOCUMENT, content_type="application/json", ending="reset"),
            Answer(usage=True),
        ),
        Case("HTML in place of a document", Script(b"<html>", content_type="text/html"), FAILED),
    )
}


# ── The tests ────────────────────────────────────────────────────────────────────────────────────────────────────────

V1: Final = "/v1/chat/completions"
WIRES: Final = (*FORMATS, V1)


def deployments(case: str, wire: str) -> tuple[str, str]:
    """The deployment that a case on a wire asks first, and the one that backs it up."""
    number = list(CASES).index(case) if case in CASES else 500 + list(DOCUMENTS).index(case)
    name = f"{number}-{WIRES.index(wire)}"
    return name, f"{name}-behind"


@pytest.fixture(scope="module")
def field_app(functions_app: Callable[..., HostedApp], model_service_port: int) -> HostedApp:
    """The app with a model for each case and wire, and another one that has a second deployment behind it."""
    endpoint = f"http://127.0.0.1:{model_service_port}/v1/"
    backends = []
    for case, wire in [(case, wire) for case in CASES for wire in WIRES] + [(case, V1) for case in DOCUMENTS]:
        first, second = deployments(case, wire)
        backends.append({"endpoint": endpoint, "deployment": first})
        if case in CASES and case not in ASKED_ELSEWHERE:
            continue  # an environment variable takes no more than 128 KiB
        for name, priority in ((f"{first}-two", 1), (second, 2)):
            backends.append({"endpoint": endpoint, "deployment": name, "model": f"{first}-two", "priority": priority})
    return functions_app(
        env={
            "AZURE_OPENAI_BACKENDS": json.dumps(backends, separators=(",", ":")),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": "20",
        }
    )


@pytest.fixture
async def field_client(field_app: HostedApp, scripted_upstream: ScriptedUpstream) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, whose upstream is scripted."""
    async with field_app.client() as client:
        yield client


async def receive(client: httpx.AsyncClient, wire: str, model: str, *, stream: bool = True) -> ReceivedAnswer:
    """One answer on a wire, read to its end."""
    if wire != V1:
        return await post_stream(client, wire, model=model)
    received = ReceivedAnswer()
    body = {"model": model, "messages": [], "stream": stream} | (
        {"stream_options": {"include_usage": True}} if stream else {}
    )
    async with client.stream("POST", V1, json=body) as response:
        received.raw, received.broken = await read_until_broken(response)
        received.status, received.headers = response.status_code, response.headers
    _parse(received, stream=stream)
    return received


def _parse(received: ReceivedAnswer, *, stream: bool) -> None:
    """Read an answer of the OpenAI wire into the same parts as the others'."""
    if received.status != 200:
        received.problem = json.loads(received.raw)["error"] | {"status": received.status}
    elif not stream:
        members = json.loads(received.raw)
        (choice,) = members["choices"]
        received.text = choice["message"]["content"]
        received.done = {"finish_reason": choice["finish_reason"], "usage": members.get("usage")}
    else:
        blocks = received.raw.decode().split("\n\n")
        assert blocks.pop() == ""
        usage = finish_reason = None
        for block in blocks:
            assert received.endings == 0, "there is an event after the terminal event"
            data = block.removeprefix("data: ")
            if data == "[DONE]":
                received.done, received.endings = {"finish_reason": finish_reason, "usage": usage}, 1
                continue
            members = json.loads(data)
            if isinstance(members.get("error"), dict) and members["error"]:
                received.error, received.endings = members["error"], 1
                continue
            usage = members.get("usage") if isinstance(members.get("usage"), dict) else usage
            for choice in members.get("choices") or ():
                content = (choice.get("delta") or {}).get("content") or ""
                parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
                received.text += "".join(part["text"] for part in parts if part["type"] == "text")
                reason = choice.get("finish_reason")
                finish_reason = finish_reason if reason in (None, "null") else reason


def check(received: ReceivedAnswer, wire: str, expected: Answer | Error) -> None:
    """The answer, or the failure, is the expected one."""
    if isinstance(expected, Answer):
        assert received.status == 200, received
        assert (received.text, received.broken) == (expected.text, False)
        assert wire == PLAIN or received.done is not None, received
        if received.done is not None:
            assert received.done["finish_reason"] == expected.finish_reason
            assert (received.done["usage"] is not None) == expected.usage
        return
    if wire == DOCUMENT or not expected.text:
        code = "upstream_error" if expected.code == "upstream_interrupted" and wire == V1 else expected.code
        assert received.problem is not None, received
        assert received.status == expected.status
        assert received.problem["code"] == code
        assert received.headers.get("retry-after") == (expected.retry_after and str(expected.retry_after))
        if wire == V1:
            assert expected.message in received.problem["message"]
        return
    assert (received.status, received.text) == (200, expected.text)
    # A clean end would pass for a complete answer with some clients of the OpenAI API.
    assert received.broken == (wire in (PLAIN, V1))
    if wire != PLAIN:
        assert received.error is not None, received
        assert received.error["code"] == expected.code


async def check_record(app: HostedApp, received: ReceivedAnswer, expected: Answer | Error) -> None:
    record = await eventually(lambda: app.stream_records().get(received.headers["x-request-id"]))
    if isinstance(expected, Answer):
        assert record["relay.outcome"] == "completed"
        assert record.get("gen_ai.response.finish_reasons", [None]) == [expected.finish_reason]
    else:
        assert record["relay.outcome"] == "failed"
        told = received.problem or received.error or {"code": expected.code}
        assert record["relay.code"] == told["code"]


type Answers = Mapping[tuple[str, str], tuple[ReceivedAnswer, int]]


@pytest.fixture(scope="module")
def answers(field_app: HostedApp, model_service_port: int) -> Answers:
    """What a caller gets of each case on each wire, and how often the deployment was asked for it.

    All of them are asked for at once, since a transfer that breaks off takes its time.
    """
    results: dict[tuple[str, str], tuple[ReceivedAnswer, int]] = {}

    async def receive_all() -> None:
        upstream = ScriptedUpstream()
        at_once = asyncio.Semaphore(40)

        async def one(case: Case, wire: str, *, stream: bool) -> None:
            deployment, _ = deployments(case.name, wire)
            upstream.script(case.script, deployment)
            async with at_once:
                received = await receive(client, wire, deployment, stream=stream)
            results[case.name, wire] = (received, upstream.asked(deployment))

        async with upstream.listen(model_service_port), field_app.client() as client:
            await asyncio.gather(
                *(one(case, wire, stream=True) for case in CASES.values() for wire in WIRES),
                *(one(case, V1, stream=False) for case in DOCUMENTS.values()),
            )
            await eventually(lambda: upstream.open_requests == 0)

    with asyncio.Runner() as runner:
        runner.run(receive_all())
    return results


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("name", CASES)
async def test_what_a_model_service_sends_where_a_stream_was_asked(
    field_app: HostedApp, answers: Answers, name: str, wire: str
) -> None:
    received, asked = answers[name, wire]
    check(received, wire, CASES[name].expected)
    await check_record(field_app, received, CASES[name].expected)
    assert asked == 1, "a request is sent once"


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_what_a_model_service_sends_where_no_stream_was_asked(
    field_app: HostedApp, answers: Answers, name: str
) -> None:
    expected = DOCUMENTS[name].expected
    received, asked = answers[name, V1]
    check(received, V1, expected)
    await check_record(field_app, received, expected)
    assert asked == 1, "a request is sent once"
    if isinstance(expected, Answer):
        assert received.headers["content-type"] == "application/json"


RETRYABLE: Final = ("upstream_error", "upstream_timeout", "upstream_auth", "upstream_interrupted", "rate_limited")


@pytest.mark.parametrize("name", ASKED_ELSEWHERE)
async def test_another_deployment_is_asked_unless_the_request_is_bad(  # S22
    field_client: httpx.AsyncClient, scripted_upstream: ScriptedUpstream, name: str
) -> None:
    case = CASES[name]
    assert isinstance(case.expected, Error)
    again = case.expected.code in RETRYABLE
    scripted_upstream.script(case.script)
    for wire in WIRES:
        first, second = deployments(name, wire)
        scripted_upstream.script(Script(W("second") + F + D), second)
        received = await receive(field_client, wire, f"{first}-two")
        check(received, wire, Answer("second") if again else case.expected)
        assert (scripted_upstream.asked(f"{first}-two"), scripted_upstream.asked(second)) == (1, int(again))


@pytest.mark.parametrize("name", [name for name, it in DOCUMENTS.items() if isinstance(it.expected, Error)])
async def test_another_deployment_is_asked_for_a_document(
    field_client: httpx.AsyncClient, scripted_upstream: ScriptedUpstream, name: str
) -> None:
    case = DOCUMENTS[name]
    assert isinstance(case.expected, Error)
    first, second = deployments(name, V1)
    scripted_upstream.script(case.script)
    scripted_upstream.script(document(WHOLE), second)
    received = await receive(field_client, V1, f"{first}-two", stream=False)
    check(received, V1, Answer(usage=True) if case.expected.code in RETRYABLE else case.expected)


async def test_an_endless_answer_for_one_document_is_bounded(
    field_app: HostedApp, field_client: httpx.AsyncClient, scripted_upstream: ScriptedUpstream
) -> None:
    scripted_upstream.script(Script(W("x" * 100_000), ending="repeat"))
    before = resident(field_app.worker_pid)
    received = await post_stream(field_client, DOCUMENT, model=deployments("a document that is no answer", DOCUMENT)[0])
    assert received.problem is not None
    assert (received.status, received.problem["code"]) == (502, "upstream_error")
    assert "longer than the 16 MiB" in received.problem["detail"]
    assert "stream" in received.problem["detail"], "the remedy is named"
    assert resident(field_app.worker_pid) - before < 64 * 1024**2
    await eventually(lambda: scripted_upstream.open_requests == 0)


def resident(pid: int) -> int:
    """The memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_half_a_megabyte_in_a_finish_reason_is_not_recorded(
    field_app: HostedApp, field_client: httpx.AsyncClient, scripted_upstream: ScriptedUpstream
) -> None:
    long = "x" * 500_000
    for wire in (SSE, V1):
        scripted_upstream.script(Script(chunk({"content": "a"}, long, id=long, model=long) + D))
        received = await receive(field_client, wire, deployments("a document that is no answer", wire)[0])
        record = await eventually(
            lambda answer=received: field_app.stream_records().get(answer.headers["x-request-id"])
        )
        assert record["relay.outcome"] == "completed"
        assert len(json.dumps(record)) < 5000


@pytest.mark.parametrize(
    "nested", [b"[" * 100_000, b'{"error":' * 100_000, b'{"choices":[{"delta":{"content":' * 30_000]
)
async def test_deep_nesting_is_a_failure_like_any_other(
    field_client: httpx.AsyncClient, scripted_upstream: ScriptedUpstream, nested: bytes
) -> None:
    name = deployments("a document that is no answer", V1)[0]
    for script in (Script(sse(nested)), Script(nested), Script(W(WORDS), sse(nested)), Script(nested, status=500)):
        scripted_upstream.script(script)
        for wire, model in ((SSE, deployments("a document that is no answer", SSE)[0]), (V1, name)):
            received = await receive(field_client, wire, model)
            assert (received.problem or received.error or {})["code"] == "upstream_error"
    scripted_upstream.script(Script(nested, content_type="application/json"))
    received = await receive(field_client, V1, name, stream=False)
    assert (received.problem or {})["code"] == "upstream_error"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (document({"error": "Unexpected endpoint or method. (POST /v1)"}), "address"),  # H15
        (Script(b"<html>Sign in</html>", content_type="text/html"), "address"),
        (document({"error": {"message": "model 'one' not found", "type": "not_found_error"}}, 404), "deployment one"),
        (document({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404), "address"),
    ],
    ids=["an error in a 200", "a page of HTML", "a missing model", "a wrong path"],
)
async def test_what_is_not_ready(
    functions_app: Callable[..., HostedApp],
    model_service_port: int,
    scripted_upstream: ScriptedUpstream,
    script: Script,
    words: str,
) -> None:
    settings = {
        "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{model_service_port}/v1/",
        "AZURE_OPENAI_DEPLOYMENTS": "one",
    }
    scripted_upstream.script(script)
    async with functions_app(env=settings, fresh=True).client() as client:
        answer = await client.get("/ready")
    (backend,) = answer.json()["backends"]
    assert answer.status_code == 503
    assert words in backend["remedy"]


@pytest.mark.parametrize("words", ["", "Hello "])
async def test_the_address_in_an_error_in_an_answer_is_not_passed_on(
    field_client: httpx.AsyncClient, scripted_upstream: ScriptedUpstream, model_service_port: int, words: str
) -> None:
    host = f"127.0.0.1:{model_service_port}"
    refused = error(f"The request to http://{host}/v1 is bad ({host}).", code=400, type=host, param=host)
    for script in (Script(refused), Script(W("Hello ") + refused), Script(refused.removeprefix(b"data: "))):
        scripted_upstream.script(script)
        received = await receive(field_client, V1, deployments("a document that is no answer", V1)[0])
        told = received.problem or received.error
        assert told is not None
        assert "is bad" in told["message"], "the words of the model service are passed on"
        assert host not in received.raw.decode()
        assert str(model_service_port) not in received.raw.decode()
