"""The table of faults and the grammar of their names."""

from local.model_service.errors import deployment_not_found, role_missing, wrong_key
from local.model_service.faults import byte_changes, error_responses, step_changes, texts
from local.model_service.faults.error_responses import always, rate_limited, status
from local.model_service.faults.fault import Fault, Injection
from local.model_service.faults.step_changes import (
    BAD_REQUEST,
    BARE_ERROR,
    ERROR_OBJECT,
    FLAT_ERROR,
    HTML_PAGE,
    MALFORMED,
    NAMED_ERROR,
    PAUSE,
    TOO_LONG,
    UNKNOWN_EVENT,
    before,
    before_each_token,
    error_event,
    failed_choice,
    followed_by,
    midway,
    only,
    ping_event,
    raw_text_event,
    text_event,
    without,
)
from local.model_service.steps import FOREVER, Cut, Headers, Token

PREFIX = "fault-"
_K = 5.0  # after how many tokens something happens midway

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        # Errors in place of the response
        Fault("400", "400, an invalid request", error=error_responses.invalid_value),
        Fault("context-length", "400, code context_length_exceeded", error=error_responses.prompt_too_long),
        Fault(
            "content-filter",
            "400, code content_filter, the categories in innererror",
            error=error_responses.filtered_prompt,
        ),
        Fault("401", "401, a wrong key or token", error=always(wrong_key)),
        Fault("401-role", "401, code PermissionDenied: the role is missing", error=always(role_missing)),
        Fault("403", "403, the network rules forbid it", error=status(403, "403", "Public access is disabled.")),
        Fault("404", "404, code DeploymentNotFound", error=always(deployment_not_found)),
        Fault("408", "408, the service timed out", error=status(408, "Timeout", "The operation was timeout.")),
        Fault("429", "429, Retry-After in SECONDS", (1,), error=rate_limited("Retry-After")),
        Fault(
            "429-date",
            "429, Retry-After as the HTTP date in SECONDS",
            (2,),
            error=rate_limited("Retry-After", error_responses.http_date),
        ),
        Fault("429-ms", "429, retry-after-ms in MILLISECONDS", (250,), error=rate_limited("retry-after-ms")),
        Fault(
            "429-x-ms", "429, x-ms-retry-after-ms in MILLISECONDS", (250,), error=rate_limited("x-ms-retry-after-ms")
        ),
        Fault("429-absurd", "429, Retry-After: 86400", (86400,), error=rate_limited("Retry-After")),
        Fault("429-garbled", "429, Retry-After: soon", (0,), error=rate_limited("Retry-After", lambda _: "soon")),
        Fault("429-none", "429 without a retry header", (0,), error=rate_limited(None)),
        Fault("500", "500", error=status(500, "InternalServerError", "The server had an error.")),
        Fault("502", "502 with a page of HTML", error=lambda _: error_responses.html_page(502, "502 Bad Gateway")),
        Fault("503", "503 without Retry-After", error=status(503, "ServiceUnavailable", "The service is overloaded.")),
        Fault(
            "503-after",
            "503, Retry-After in SECONDS",
            (1,),
            error=status(503, "ServiceUnavailable", "The service is overloaded.", "Retry-After"),
        ),
        Fault("504", "504", error=status(504, "GatewayTimeout", "The gateway timed out.")),
        # Silence, for SECONDS or forever
        Fault("stall-headers", "silent before the headers for SECONDS", (FOREVER,), steps=before(Headers, PAUSE)),
        Fault("stall-first", "silent before the first token for SECONDS", (FOREVER,), steps=before(Token, PAUSE)),
        Fault("stall-midway", "silent for SECONDS after K tokens", (FOREVER, _K), steps=midway(PAUSE)),
        Fault("stall-comments", "only comments for SECONDS after K tokens", (FOREVER, _K), steps=step_changes.comments),
        # An early end
        Fault("cut-headers", "closed before the headers", steps=before(Headers, Cut(), end=True), breaks=True),
        Fault("cut-first", "closed before the first token", steps=before(Token, Cut(), end=True), breaks=True),
        Fault("cut-midway", "closed after K tokens", (_K,), steps=midway(Cut(), end=True), breaks=True),
        Fault(
            "reset-headers", "reset before the headers", steps=before(Headers, Cut(reset=True), end=True), breaks=True
        ),
        Fault("reset-midway", "reset after K tokens", (_K,), steps=midway(Cut(reset=True), end=True), breaks=True),
        Fault("end-midway", "ends cleanly after K tokens, no finish", (_K,), steps=midway(end=True), breaks=True),
        Fault("no-done", "ends cleanly without [DONE]", steps=without("done"), breaks=True),
        Fault("no-finish", "no chunk with a finish_reason, but [DONE]", steps=without("finish"), breaks=True),
        # Wrong things in the stream
        Fault(
            "filter-midway",
            "the filter stops the answer after K tokens",
            (_K,),
            steps=step_changes.stopped_by_filter,
        ),
        Fault("error-first", "an error object as the first event", steps=only(error_event, done=True), breaks=True),
        Fault(
            "error-midway",
            "an error object after K tokens, then the end",
            (_K,),
            steps=midway(error_event, end=True),
            breaks=True,
        ),
        Fault("error-event", "an event called error after K tokens", (_K,), steps=midway(NAMED_ERROR), breaks=True),
        Fault(
            "error-flat", "error_type and error_message after K tokens", (_K,), steps=midway(FLAT_ERROR), breaks=True
        ),
        Fault(
            "error-object", "an object that is an error after K tokens", (_K,), steps=midway(ERROR_OBJECT), breaks=True
        ),
        Fault("error-bare", "an error without `data:` after K tokens", (_K,), steps=midway(BARE_ERROR), breaks=True),
        Fault("error-choice", "an error in a choice after K tokens", (_K,), steps=midway(failed_choice), breaks=True),
        Fault("error-finish", "a finish reason that is an error", steps=step_changes.failed_finish, breaks=True),
        Fault("error-bad-request", "a bad request in the first event", steps=only(BAD_REQUEST, done=True), breaks=True),
        Fault("error-too-long", "a prompt too long, in the first event", steps=only(TOO_LONG, done=True), breaks=True),
        Fault("unknown-event", "JSON that is no chunk after K tokens", (_K,), steps=midway(UNKNOWN_EVENT)),
        Fault("no-answer", "the marker of the end and nothing else", steps=only(done=True), breaks=True),
        Fault("garbage-first", "the first event is not JSON", steps=only(MALFORMED), breaks=True),
        Fault(
            "garbage-midway", "an event that is not JSON after K tokens", (_K,), steps=midway(MALFORMED), breaks=True
        ),
        Fault("html", "200 with a page of HTML", steps=only(HTML_PAGE), content_type="text/html", breaks=True),
        Fault("empty", "200 with an empty body", steps=only(), breaks=True),
        Fault("content-type", "a correct stream called text/plain", content_type="text/plain"),
        Fault("json-type", "a correct stream called application/json", content_type="application/json"),
        Fault("document", "a document, whatever was asked for", steps=step_changes.whole_document),
        Fault("unfinished-end", "[DONE] without a line end", steps=step_changes.unfinished_end),
        Fault("reset-end", "reset before [DONE]", steps=step_changes.reset_at_end, breaks=True),
        Fault("late-usage", "the usage behind [DONE]", steps=step_changes.usage_last),
        Fault("pings", "`data: ping` before each token", steps=before_each_token(ping_event)),
        Fault(
            "invalid-utf8",
            "bytes that are not UTF-8 before each token",
            steps=before_each_token(raw_text_event(b'"caf\xe9 \xff\xfe"')),
            breaks=True,
        ),
        Fault(
            "lone-surrogate",
            "half a surrogate pair, escaped, before each token",
            steps=before_each_token(raw_text_event(b'"\\ud83d"')),
        ),
        Fault("after-done", "a chunk after [DONE]", steps=followed_by(text_event(" and more after the end"))),
        # Correct, but rare
        Fault("surrogates", "escaped surrogate pairs, each split over two chunks", steps=step_changes.split_surrogates),
        Fault("escaped", "all but ASCII escaped", steps=step_changes.escaped),
        Fault(
            "async-filter",
            "the asynchronous filter: results in chunks without delta",
            steps=step_changes.asynchronous_filter,
        ),
        Fault("no-filter", "no prompt_filter_results, as OpenAI itself", steps=without("filter")),
        Fault("no-role", "no chunk with the role", steps=without("role")),
        Fault("no-usage", "no usage, though requested", steps=without("usage")),
        Fault("double-finish", "the chunk with finish_reason twice", steps=step_changes.finish_twice),
        Fault(
            "empty-content",
            "a chunk with empty content before each token",
            steps=before_each_token(text_event("")),
        ),
        Fault(
            "null-content",
            "a chunk with content null before each token",
            steps=before_each_token(text_event(None)),
        ),
        Fault("comments", "comments and blank lines between the events", steps=step_changes.commented),
        Fault("crlf", "lines end in CRLF", frame=byte_changes.crlf),
        Fault("cr", "lines end in CR", frame=byte_changes.cr),
        Fault("no-space", "`data:` without a space", frame=byte_changes.no_space),
        Fault("data-lines", "two `data:` lines in one event", frame=byte_changes.several_data_lines),
        Fault("fields", "`id`, `retry` and an unknown field beside `data`", frame=byte_changes.more_fields),
        Fault("bytes", "each byte a write of its own", split=byte_changes.each_byte),
        Fault("split", "cut at random places, by SEED", (0,), split=byte_changes.random_pieces),
        Fault("one-write", "the whole stream in one write", split=byte_changes.one_write, unpaced=True),
        # Long answers, and an empty one
        Fault("long", "an answer of BYTES, without a pause", (1_000_000,), text=texts.long, unpaced=True),
        Fault("huge-chunk", "an answer of BYTES in one chunk", (1_000_000,), text=texts.one_token, unpaced=True),
        Fault("flood", "TOKENS without a pause", (100_000,), text=texts.many_tokens, unpaced=True),
        Fault("silent", "a correct answer without a single token", text=texts.no_token),
    )
}


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
    given = [FOREVER if word == "ever" else float(word) for word in part[len(name) + 1 :].split("-") if word]
    if len(given) > len(fault.defaults):
        raise ValueError(f"{part!r}: the fault {name!r} takes at most {len(fault.defaults)} arguments")
    return Injection(fault, (*given, *fault.defaults[len(given) :]))
