"""The table of faults and the grammar of their names."""

from local.model_service.errors import deployment_not_found, role_missing, wrong_key
from local.model_service.faults import (
    byte_changes,
    error_responses,
    http_changes,
    refused_parameters,
    step_changes,
    texts,
)
from local.model_service.faults.error_responses import always, rate_limited, status
from local.model_service.faults.fault import CHAT, RESPONSES, STREAMING, Fault, Injection
from local.model_service.faults.step_changes import (
    BAD_REQUEST,
    BARE_ERROR,
    ERROR_OBJECT,
    FLAT_ERROR,
    HTML_PAGE,
    NAMED_ERROR,
    PAUSE,
    TOO_LONG,
    UNKNOWN_EVENT,
    before,
    before_each_token,
    error_event,
    failed,
    failed_choice,
    followed_by,
    malformed_event,
    midway,
    only,
    ping_event,
    raw_text_event,
    text_event,
    without,
)
from local.model_service.steps import DONE, FOREVER, Cut, Headers, Token

PREFIX = "fault-"
_K = 5.0  # after how many tokens something happens midway

# What `error.code` of a response can be, by OpenAI's API reference.
RESPONSE_ERROR_CODES = (
    "server_error",
    "rate_limit_exceeded",
    "invalid_prompt",
    "data_residency_mismatch",
    "bio_policy",
    "misalignment_policy_violation",
    "vector_store_timeout",
    "invalid_image",
    "invalid_image_format",
    "invalid_base64_image",
    "invalid_image_url",
    "image_too_large",
    "image_too_small",
    "image_parse_error",
    "image_content_policy_violation",
    "invalid_image_mode",
    "image_file_too_large",
    "unsupported_image_media_type",
    "empty_image_file",
    "failed_to_download_image",
    "image_file_not_found",
)

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        # Errors in place of the response
        Fault(
            "400",
            "400, an invalid request",
            error=error_responses.invalid_value("input"),
            errors={"chat": error_responses.invalid_value("messages")},
        ),
        Fault(
            "context-length",
            "400, code context_length_exceeded",
            error=error_responses.prompt_too_long,
            errors={"responses": error_responses.input_too_long},
        ),
        Fault(
            "content-filter",
            "400, code content_filter, with the categories",
            error=error_responses.filtered_prompt,
            errors={"responses": error_responses.filtered_input},
        ),
        Fault("401", "401, a wrong key or token", error=always(wrong_key)),
        Fault(
            "401-role",
            "401, code PermissionDenied: the role is missing",
            error=always(role_missing),
            errors={
                "responses": always(lambda: role_missing("responses/write")),
                "embeddings": always(lambda: role_missing("deployments/embeddings/action")),
            },
        ),
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
        Fault("html-always", "200 with a page of HTML, whatever the request", error=error_responses.sign_in_page),
        Fault(
            "error-document",
            "200 with a document that holds an error, whatever the request",
            error=error_responses.unexpected_endpoint,
        ),
        # Parameters that a server does not take
        Fault(
            "no-stream-options",
            "422 for stream_options",
            refuse=refused_parameters.extra_forbidden("stream_options"),
            wires=CHAT,
        ),
        Fault(
            "no-stream-options-event",
            "422 for stream_options, in an error event",
            refuse=refused_parameters.extra_forbidden("stream_options", event=True),
            wires=CHAT,
        ),
        Fault(
            "no-max-completion-tokens",
            "422 for max_completion_tokens",
            refuse=refused_parameters.extra_forbidden("max_completion_tokens"),
            wires=CHAT,
        ),
        Fault(
            "ignores-max-completion-tokens",
            "max_completion_tokens limits nothing",
            ignored=frozenset({"max_completion_tokens"}),
            wires=CHAT,
        ),
        Fault(
            "one-limit",
            "400 for max_tokens beside max_completion_tokens",
            refuse=refused_parameters.both_limits,
            wires=CHAT,
        ),
        Fault(
            "limit", "400 for an output limit above TOKENS", (12288,), refuse=refused_parameters.high_limit, wires=CHAT
        ),
        Fault(
            "context",
            "400 where prompt and limit exceed TOKENS",
            (8192,),
            refuse=refused_parameters.small_context,
            wires=CHAT,
        ),
        Fault(
            "429-large",
            "429 for a conversation of more than BYTES, Retry-After in SECONDS",
            (1000, 60),
            refuse=refused_parameters.large_prompt,
            wires=CHAT,
        ),
        Fault("accepts-empty", "accepts a conversation without a message", lenient=True, wires=CHAT),
        # Silence, for SECONDS or forever
        Fault("stall-headers", "silent before the headers for SECONDS", (FOREVER,), steps=before(Headers, PAUSE)),
        Fault("stall-first", "silent before the first token for SECONDS", (FOREVER,), steps=before(Token, PAUSE)),
        Fault("stall-midway", "silent for SECONDS after K tokens", (FOREVER, _K), steps=midway(PAUSE), wires=STREAMING),
        Fault(
            "stall-comments",
            "only comments for SECONDS after K tokens",
            (FOREVER, _K),
            steps=step_changes.comments,
            wires=CHAT,
        ),
        # An early end
        Fault("cut-headers", "closed before the headers", steps=before(Headers, Cut(), end=True), breaks=True),
        Fault("cut-first", "closed before the first token", steps=before(Token, Cut(), end=True), breaks=True),
        Fault("cut-midway", "closed after K tokens", (_K,), steps=midway(Cut(), end=True), breaks=True),
        Fault(
            "reset-headers", "reset before the headers", steps=before(Headers, Cut(reset=True), end=True), breaks=True
        ),
        Fault("reset-midway", "reset after K tokens", (_K,), steps=midway(Cut(reset=True), end=True), breaks=True),
        Fault(
            "end-midway",
            "ends cleanly after K tokens, no terminal event",
            (_K,),
            steps=midway(end=True),
            breaks=True,
            wires=STREAMING,
        ),
        Fault("no-done", "ends cleanly without [DONE]", steps=without("done"), breaks=True, wires=CHAT),
        Fault(
            "no-finish",
            "no finish_reason, or no terminal event, and a clean end",
            steps=without("finish"),
            breaks=True,
            wires=STREAMING,
        ),
        # Wrong things in the stream
        Fault(
            "filter-midway",
            "the filter stops the answer after K tokens",
            (_K,),
            reply=step_changes.stopped_by_filter,
            wires=STREAMING,
        ),
        Fault(
            "length-midway",
            "the token limit stops the answer after K tokens",
            (_K,),
            reply=step_changes.stopped_by_limit,
            wires=STREAMING,
        ),
        Fault(
            "refusal",
            "the model refuses",
            text=texts.refusal,
            reply=lambda reply, _: reply.refuse(),
            wires=STREAMING,
        ),
        Fault(
            "error-first",
            "an error object as the first event",
            steps=only(error_event, done=True),
            breaks=True,
            wires=STREAMING,
        ),
        Fault(
            "error-midway",
            "an error object after K tokens, then the end",
            (_K,),
            steps=midway(error_event, end=True),
            breaks=True,
            wires=STREAMING,
        ),
        Fault(
            "error-event",
            "an event called error after K tokens",
            (_K,),
            steps=midway(NAMED_ERROR),
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-members",
            "error_type and error_message after K tokens",
            (_K,),
            steps=midway(FLAT_ERROR),
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-object",
            "an object that is an error after K tokens",
            (_K,),
            steps=midway(ERROR_OBJECT),
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-bare",
            "an error without `data:` after K tokens",
            (_K,),
            steps=midway(BARE_ERROR),
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-choice",
            "an error in a choice after K tokens",
            (_K,),
            steps=midway(failed_choice),
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-finish",
            "a finish reason that is an error",
            steps=step_changes.failed_finish,
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-bad-request",
            "a bad request in the first event",
            steps=only(BAD_REQUEST, done=True),
            breaks=True,
            wires=CHAT,
        ),
        Fault(
            "error-too-long",
            "a prompt too long, in the first event",
            steps=only(TOO_LONG, done=True),
            breaks=True,
            wires=CHAT,
        ),
        Fault("no-chunk", "JSON that is no chunk after K tokens", (_K,), steps=midway(UNKNOWN_EVENT), wires=CHAT),
        Fault("no-answer", "the marker of the end and nothing else", steps=only(done=True), breaks=True, wires=CHAT),
        Fault("garbage-first", "the first event is not JSON", steps=only(malformed_event), breaks=True),
        Fault(
            "garbage-midway",
            "an event that is not JSON after K tokens",
            (_K,),
            steps=midway(malformed_event),
            breaks=True,
        ),
        Fault("html", "200 with a page of HTML", steps=only(HTML_PAGE), content_type="text/html", breaks=True),
        Fault("empty", "200 with an empty body", steps=only(), breaks=True),
        Fault("content-type", "a correct stream called text/plain", content_type="text/plain"),
        Fault("json-type", "a correct stream called application/json", content_type="application/json", wires=CHAT),
        Fault("document", "a document, whatever was asked for", steps=step_changes.whole_document, wires=CHAT),
        Fault("unfinished-end", "[DONE] without a line end", steps=step_changes.unfinished_end, wires=CHAT),
        Fault("reset-end", "reset before [DONE]", steps=step_changes.reset_at_end, breaks=True, wires=CHAT),
        Fault("late-usage", "the usage after [DONE]", steps=step_changes.usage_last, wires=CHAT),
        Fault("pings", "`data: ping` before each token", steps=before_each_token(ping_event), wires=CHAT),
        Fault(
            "invalid-utf8",
            "bytes that are not UTF-8 before each token",
            steps=before_each_token(raw_text_event(b'"caf\xe9 \xff\xfe"')),
            breaks=True,
            wires=STREAMING,
        ),
        Fault(
            "lone-surrogate",
            "half a surrogate pair, escaped, before each token",
            steps=before_each_token(raw_text_event(b'"\\ud83d"')),
            wires=STREAMING,
        ),
        Fault(
            "after-done",
            "text after the end",
            steps=followed_by(text_event(" and more after the end")),
            wires=STREAMING,
        ),
        # Correct, but rare
        Fault(
            "surrogates",
            "escaped surrogate pairs, each split over two tokens",
            steps=step_changes.split_surrogates,
            wires=STREAMING,
        ),
        Fault("escaped", "all but ASCII escaped", reply=step_changes.escaped, wires=STREAMING),
        Fault(
            "async-filter",
            "the asynchronous filter: results in chunks without delta",
            steps=step_changes.asynchronous_filter,
            wires=CHAT,
        ),
        Fault(
            "no-filter", "no results of the content filter, as OpenAI itself", steps=without("filter"), wires=STREAMING
        ),
        Fault("no-role", "no event that begins a choice or an output item", steps=without("role"), wires=STREAMING),
        Fault("no-usage", "no usage, though requested", steps=without("usage"), wires=STREAMING),
        Fault(
            "double-finish",
            "the event with the finish_reason, or the terminal event, twice",
            steps=step_changes.finish_twice,
            wires=STREAMING,
        ),
        Fault(
            "empty-content",
            "an event with empty text before each token",
            steps=before_each_token(text_event("")),
            wires=STREAMING,
        ),
        Fault(
            "thinking",
            "reasoning beside the text, before the first token, as many open models send it",
            steps=step_changes.reasoning_first,
            wires=CHAT,
        ),
        Fault(
            "null-content",
            "an event with text null before each token",
            steps=before_each_token(text_event(None)),
            wires=STREAMING,
        ),
        Fault("comments", "comments and blank lines between the events", steps=step_changes.commented, wires=STREAMING),
        Fault("crlf", "lines end in CRLF", frame=byte_changes.crlf, wires=STREAMING),
        Fault("cr", "lines end in CR", frame=byte_changes.cr, wires=STREAMING),
        Fault("no-space", "`data:` without a space", frame=byte_changes.no_space, wires=STREAMING),
        Fault("data-lines", "two `data:` lines in one event", frame=byte_changes.several_data_lines, wires=STREAMING),
        Fault(
            "fields",
            "`id`, `retry` and an unknown field beside `data`",
            frame=byte_changes.more_fields,
            wires=STREAMING,
        ),
        Fault("bytes", "each byte a write of its own", split=byte_changes.each_byte),
        Fault("split", "cut at random places, by SEED", (0,), split=byte_changes.random_pieces),
        Fault("one-write", "the whole stream in one write", split=byte_changes.one_write, unpaced=True),
        # Wrong or rare things of the Responses API alone
        *(
            Fault(
                "failed-" + code.replace("_", "-"),
                f"status failed with the error {code} after K tokens",
                (_K,),
                reply=failed(code),
                breaks=True,
                wires=RESPONSES,
            )
            for code in RESPONSE_ERROR_CODES
        ),
        Fault(
            "failed-null",
            "response.failed without an error after K tokens",
            (_K,),
            reply=failed(None),
            breaks=True,
            wires=RESPONSES,
        ),
        Fault(
            "failed-then-error",
            "response.failed without an error, then an error event with rate_limit_exceeded, before the first token",
            reply=failed(None),
            steps=followed_by(step_changes.rate_limit_event),
            breaks=True,
            wires=RESPONSES,
        ),
        Fault(
            "error-flat",
            "an error event without an inner object after K tokens, then the end",
            (_K,),
            steps=midway(step_changes.flat_error_event, end=True),
            breaks=True,
            wires=RESPONSES,
        ),
        Fault(
            "previous-unknown",
            "400, code previous_response_not_found",
            error=error_responses.previous_response_missing,
            wires=RESPONSES,
        ),
        Fault(
            "no-output",
            "no output items in the terminal event, though they were streamed",
            reply=lambda reply, _: reply.leave_out("content"),
            wires=RESPONSES,
        ),
        Fault("no-deltas", "the text in the closing events only", steps=step_changes.without_tokens, wires=RESPONSES),
        Fault("no-close", "no event that ends a content part or item", steps=without("close"), wires=RESPONSES),
        Fault(
            "unknown-event",
            "an event of an unknown type before each token",
            steps=before_each_token(step_changes.unknown_event),
            wires=RESPONSES,
        ),
        Fault(
            "keepalive",
            "an event of the type keepalive before each token",
            steps=before_each_token(step_changes.keepalive_event),
            wires=RESPONSES,
        ),
        Fault("no-sequence", "no sequence_number", reply=step_changes.unnumbered, wires=RESPONSES),
        Fault(
            "sequence-gap",
            "the numbers skip one after K tokens",
            (_K,),
            steps=midway(step_changes.skipped_number),
            wires=RESPONSES,
        ),
        Fault("no-event-name", "`data:` only, no `event:`", frame=byte_changes.nameless, wires=RESPONSES),
        Fault("done-marker", "[DONE] after the terminal event", steps=followed_by(lambda _: DONE), wires=RESPONSES),
        # HTTP that is unusual, or wrong
        Fault(
            "gzip", "gzip, though identity is asked for", headers=http_changes.coded("gzip"), split=http_changes.GZIP
        ),
        Fault("deflate", "the same in deflate", headers=http_changes.coded("deflate"), split=http_changes.DEFLATE),
        Fault("brotli", "called br, though identity is asked for", headers=http_changes.coded("br"), breaks=True),
        Fault("header", "one header of BYTES", (9000,), headers=http_changes.one_header),
        Fault("headers", "COUNT headers", (500,), headers=http_changes.many_headers),
        Fault("error-stall", "STATUS with a body that stalls", (429,), connection=http_changes.stalling_refusal),
        Fault("error-trickle", "STATUS with a body that trickles", (429,), connection=http_changes.trickling_refusal),
        Fault("redirect", "307 to another address", connection=http_changes.REDIRECT, breaks=True),
        Fault("no-content", "204 without a body", connection=http_changes.NO_CONTENT, breaks=True),
        Fault("invalid-chunk", "a chunk whose size is no number", connection=http_changes.INVALID_CHUNK, breaks=True),
        Fault("short-body", "closed before the announced length", connection=http_changes.SHORT_BODY, breaks=True),
        Fault("two-lengths", "two different lengths", connection=http_changes.TWO_LENGTHS, breaks=True),
        # Long answers, and an empty one
        Fault(
            "long", "an answer of BYTES, without a pause", (1_000_000,), text=texts.long, unpaced=True, wires=STREAMING
        ),
        Fault(
            "huge-chunk",
            "an answer of BYTES in one token",
            (1_000_000,),
            text=texts.one_token,
            unpaced=True,
            wires=STREAMING,
        ),
        Fault("flood", "TOKENS without a pause", (100_000,), text=texts.many_tokens, unpaced=True, wires=STREAMING),
        Fault("silent", "a correct answer without a single token", text=texts.no_token, wires=STREAMING),
    )
}


def parse(name: str, wire: str | None = None) -> tuple[Injection, ...]:
    """The faults that a name asks for, with or without the prefix.

    Raises `ValueError` for what the table lacks, and for what can't happen on the wire.
    """
    injections = tuple(_parse_one(part) for part in name.removeprefix(PREFIX).split("+"))
    for injection in injections:
        fault = injection.fault
        if wire is not None and wire not in fault.wires:
            raise ValueError(f"the fault {fault.name!r} is one of {', '.join(sorted(fault.wires))}, not of {wire}")
    return injections


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
