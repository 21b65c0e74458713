"""Which of the app's additions an error refuses, in the words of many servers, and what is repeated without them."""

from typing import Any, Final

import pytest

from relay.problems import (
    CONTENT_FILTER,
    CONTEXT_LENGTH_EXCEEDED,
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    RATE_LIMITED,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
    Problem,
)
from relay.upstream.failures import Refusal
from relay.upstream.refused_additions import TakenBack, take_back, without_blame
from relay.upstream.request import (
    NOTHING,
    OUTPUT_LIMITS,
    STREAM_OPTIONS,
    Refused,
    UpstreamRequest,
    chat_additions,
)

CAP: Final = 16384
NEW, OLD = OUTPUT_LIMITS
LEFT_OUT: Final = TakenBack(Refused(frozenset(OUTPUT_LIMITS)), NOTHING)


def request(*, both_limits: bool = False, refused: Refused = NOTHING, **more: Any) -> UpstreamRequest:
    additions = chat_additions(**{"stream": True, "max_output_tokens": CAP, **more})
    parameters = {"messages": [], "stream": True, **(more.get("output_limits") or {}), **additions.parameters()}
    return UpstreamRequest("/chat/completions", parameters, True, {}, additions).without(
        refused, both_limits=both_limits
    )


def refusal(error: Any, problem: Problem = INVALID_REQUEST, status: int | None = 400) -> Refusal:
    return Refusal(problem, "400", status=status, error=error)


def taken_back(error: Any, sent: UpstreamRequest, problem: Problem = INVALID_REQUEST) -> TakenBack | None:
    return take_back(refusal(error, problem), sent, NOTHING)


def lasting(*names: str, most: int | None = None) -> TakenBack:
    return TakenBack(Refused(frozenset(names), most), Refused(frozenset(names), most))


def openai(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "param": param, "code": code}


# What servers say, each with its source.
UNKNOWN_STREAM_OPTIONS: Final[dict[str, Any]] = {
    # modelscope/ms-agent#489
    "vLLM, a list as text": {
        "object": "error",
        "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'stream_options'), 'msg': 'Extra inputs are not "
        "permitted', 'input': {}}]",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    # openai/openai-agents-python#442
    "Mistral": {
        "object": "error",
        "message": {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "stream_options", "include_usage"],
                    "msg": "Extra inputs are not permitted",
                    "input": True,
                }
            ]
        },
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    },
    "FastAPI": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]},
    # NVIDIA/garak#748
    "NIM": {
        "type": "urn:inference-service:problem-details:unprocessable-entity",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "body -> stream_options\n  Extra inputs are not permitted (type=extra_forbidden)",
    },
    "OpenAI": openai("Unrecognized request argument supplied: stream_options"),
    "a param alone": openai("Unknown parameter.", "stream_options", "unknown_parameter"),
    "a text": "property 'stream_options' is unsupported",
    "a list": [{"message": "stream_options is not a valid field"}],
    "another spelling": openai("streamOptions: unknown field"),
    "two words": openai("Stream options are not supported by this model"),
}

UNKNOWN_LIMIT: Final[dict[str, Any]] = {
    # voideditor/void#128
    "vLLM": {
        "object": "error",
        "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg': 'Extra inputs are "
        "not permitted', 'input': 16384}]",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "FastAPI": {
        "detail": [
            {"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs", "input": CAP}
        ]
    },
    "OpenAI": openai("Unrecognized request argument supplied: max_completion_tokens"),
    "with the other's name": openai(
        "Unsupported parameter: 'max_completion_tokens' is not supported with this model. Use 'max_tokens' instead.",
        "max_completion_tokens",
        "unsupported_parameter",
    ),
    "with the other's name, no param": openai("max_completion_tokens is not supported, use `max_tokens`."),
    "JSON Schema": openai("Additional properties are not allowed ('max_completion_tokens' was unexpected)"),
    "a version in it": openai("Unsupported parameter: 'max_completion_tokens' (this model supports API version 2)."),
}

# The most that is allowed is 12288 in all of these; the limit was sent under the first name.
TOO_LARGE: Final[dict[str, Any]] = {
    # Gitlawb/openclaude#331
    "Volcengine": {
        "code": "InvalidParameter",
        "message": "The parameter `max_completion_tokens` specified in the request are not valid: integer above "
        "maximum value, expected a value <= 12288, but got 16384 instead. Request id: 0217752964393142fa50af54",
        "param": "max_completion_tokens",
        "type": "BadRequest",
    },
    "sentences with a param": openai("Invalid value. Expected ≤ 12288, got 16384.", "max_completion_tokens"),
    # tailcallhq/forgecode#1185
    "OpenAI": openai(
        "max_tokens is too large: 16384. This model supports at most 12288 completion tokens, whereas you provided "
        "16384.",
        "max_tokens",
        "invalid_value",
    ),
    # AQBot-Desktop/AQBot#93
    "OpenAI, garbled": {
        "message": "Param Incorrect",
        "type": "upstream_error",
        "param": "max_tokens is too large: 16384. This model supports at most 12288 completion tokens.",
        "code": "400",
    },
    # diffbot, portkey.ai/error-library/token-limit-exceeded-error-10021
    "a model's limit": openai(
        'The number of completion tokens provided exceeds the model"s limit of 12288. Adjust the max_tokens parameter '
        "to comply with this limit."
    ),
    "DashScope": openai("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 12288]"),
    "DeepSeek": openai("Invalid max_tokens value, the valid range of max_tokens is [1, 12288]"),
    "Groq": openai(
        "`max_completion_tokens` must be less than or equal to `12288`, the maximum value for `max_completion_tokens` "
        "is less than the `context_window` for this model",
        "max_completion_tokens",
    ),
    "Anthropic": openai(
        "max_tokens: 16384 > 12288, which is the maximum allowed number of output tokens for claude-3-5-sonnet-20241022"
    ),
    "Vertex AI": openai(
        "Unable to submit request because it has a maxOutputTokens value of 16384 but the supported range is from 1 "
        "(inclusive) to 12289 (exclusive). Update the value and try again."
    ),
    # huggingface/transformers#28523
    "Hugging Face": "Input validation error: `max_new_tokens` must be <= 12288",
    "pydantic": {
        "detail": [
            {
                "type": "less_than_equal",
                "loc": ["body", "max_completion_tokens"],
                "msg": "Input should be less than or equal to 12288",
                "input": CAP,
                "ctx": {"le": 12288},
            }
        ]
    },
    "an exclusive bound": openai("max_completion_tokens must be lower than 12289"),
    "in Chinese": openai("max_tokens 不能大于 12288"),
    "between": openai("max_completion_tokens must be between 1 and 12288"),
    "no more than": openai("max_completion_tokens should be no more than 12288 tokens"),
    "a limit behind": openai("max_completion_tokens of 16384 is above 12288 (the limit)"),
    "two things": {
        "detail": [
            {"loc": ["body", "temperature"], "msg": "Input should be less than or equal to 2"},
            {"loc": ["body", "max_completion_tokens"], "msg": "Input should be less than or equal to 12288"},
        ]
    },
}

# The prompt and the limit together are longer than the context.
NO_ROOM: Final[dict[str, Any]] = {
    # vllm-project/vllm#42474
    "vLLM": {
        "message": "This model's maximum context length is 8192 tokens. However, you requested 16384 output tokens and "
        "your prompt contains at least 1 input tokens, for a total of at least 16385 tokens. Please reduce the length "
        "of the input prompt or the number of requested output tokens.",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    },
    "vLLM before": {
        "object": "error",
        "message": "'max_tokens' or 'max_completion_tokens' is too large: 16384. This model's maximum context length "
        "is 8192 tokens and your request has 30 input tokens (16384 > 8192 - 30).",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    # ChatGPTNextWeb/NextChat#3195, ogx-ai/ogx#4534
    "OpenAI": openai(
        "This model's maximum context length is 8192 tokens. However, you requested 16448 tokens (64 in the messages, "
        "16384 in the completion). Please reduce the length of the messages or completion.",
        "messages",
        "context_length_exceeded",
    ),
    # huggingface/chat-ui#340
    "Hugging Face": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1000 `inputs` "
    "tokens and 16384 `max_new_tokens`",
    # openclaw/openclaw#85889
    "another vLLM": openai("max_completion_tokens=16384 cannot be greater than max_model_len=16384"),
    "SGLang": openai(
        "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a total of "
        "16414 tokens: 30 tokens from the input messages and 16384 tokens for the completion."
    ),
    "OpenRouter": openai(
        "This endpoint's maximum context length is 8192 tokens. However, you requested about 16414 tokens (30 of text "
        "input, 16384 in the output). Please reduce the length of either one."
    ),
    "Cerebras": openai(
        "Please reduce the length of the messages or completion. Current length is 16414 while limit is 8192",
        "messages",
        "context_length_exceeded",
    ),
    "no number": openai("max_completion_tokens is too large"),
}

BOTH: Final[dict[str, Any]] = {
    # HKUDS/nanobot#2548
    "Volcengine": {
        "code": "InvalidParameter",
        "message": "The parameter max_tokens specified in the request are not valid: max_tokens and "
        "max_completion_tokens cannot be set at the same time. Request id: xxx",
        "param": "max_tokens",
        "type": "BadRequest",
    },
    # yaroslavyaroslav/OpenAI-sublime-text#65
    "OpenAI": openai(
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        "max_tokens",
        "invalid_parameter_combination",
    ),
    "mutually exclusive": openai("max_completion_tokens and max_tokens are mutually exclusive"),
    "one alone is unknown": openai("Unrecognized request argument supplied: max_tokens"),
    # caozhiyuan/copilot-api#164
    "OpenAI, no param": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
        "instead.",
        "code": "invalid_request_body",
    },
    "a param decides": openai("max_tokens is not known; see the docs of max_completion_tokens", "max_tokens"),
}


def cases(texts: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("error", texts.values(), ids=list(texts))


class TestUsage:
    @cases(UNKNOWN_STREAM_OPTIONS)
    def test_stream_options_are_taken_back(self, error: Any) -> None:
        assert taken_back(error, request()) == lasting(STREAM_OPTIONS)

    @cases(UNKNOWN_STREAM_OPTIONS)
    def test_a_caller_who_asked_for_the_usage_gets_the_refusal(self, error: Any) -> None:
        assert taken_back(error, request(stream_options={"include_usage": True})) is None

    def test_of_the_callers_own_options_only_the_addition_is_taken_back(self) -> None:
        sent = request(stream_options={"include_obfuscation": False})
        assert taken_back(openai("Unknown parameter: 'stream_options.include_obfuscation'"), sent) is None
        assert taken_back(openai("Unknown parameter: 'stream_options.include_usage'"), sent) == lasting(STREAM_OPTIONS)

    def test_without_a_stream_there_is_nothing_to_take_back(self) -> None:
        assert taken_back(openai("stream_options is unknown"), request(stream=False)) is None

    def test_only_once(self) -> None:
        refused = Refused(frozenset((STREAM_OPTIONS,)))
        assert take_back(refusal(openai("stream_options?")), request(refused=refused), refused) is None

    def test_together_with_a_limit(self) -> None:
        error = {"detail": [{"loc": ["body", name], "msg": "Extra inputs"} for name in (STREAM_OPTIONS, NEW)]}
        assert taken_back(error, request()) == lasting(STREAM_OPTIONS, NEW)


class TestLimit:
    @cases(UNKNOWN_LIMIT)
    @pytest.mark.parametrize("both_limits", [False, True])
    def test_an_unknown_name_is_taken_back(self, error: Any, both_limits: bool) -> None:
        assert taken_back(error, request(both_limits=both_limits)) == lasting(NEW)

    @cases(TOO_LARGE)
    @pytest.mark.parametrize("both_limits", [False, True])
    def test_a_limit_that_is_too_large_is_lowered(self, error: Any, both_limits: bool) -> None:
        assert taken_back(error, request(both_limits=both_limits)) == lasting(most=12288)

    @cases(NO_ROOM)
    @pytest.mark.parametrize("problem", [INVALID_REQUEST, CONTEXT_LENGTH_EXCEEDED])
    @pytest.mark.parametrize("both_limits", [False, True])
    def test_a_limit_without_room_is_left_out_of_this_request(
        self, error: Any, problem: Problem, both_limits: bool
    ) -> None:
        assert taken_back(error, request(both_limits=both_limits), problem) == LEFT_OUT

    @cases(BOTH)
    def test_one_name_of_two_is_taken_back(self, error: Any) -> None:
        assert taken_back(error, request(both_limits=True)) == lasting(OLD)

    def test_both_names_may_be_unknown(self) -> None:
        error = openai("Extra inputs are not permitted: max_completion_tokens, max_tokens")
        assert taken_back(error, request(both_limits=True)) == lasting(NEW, OLD)

    @cases({**UNKNOWN_LIMIT, **TOO_LARGE, **NO_ROOM})
    def test_a_limit_of_the_callers_is_the_callers(self, error: Any) -> None:
        sent = request(output_limits={NEW: 16383})
        assert taken_back(error, sent) is None

    @cases({**TOO_LARGE, **NO_ROOM})
    def test_a_limit_of_the_callers_that_is_too_large_is_the_callers(self, error: Any) -> None:
        sent = request(limit=CAP, both_limits=True)
        assert taken_back(error, sent) is None

    @cases(TOO_LARGE)
    def test_a_limit_of_the_callers_above_the_cap_is_lowered(self, error: Any) -> None:
        assert taken_back(error, request(output_limits={NEW: 10**6})) == lasting(most=12288)
        assert taken_back(error, request(limit=10**6)) == lasting(most=12288)

    @cases(NO_ROOM)
    def test_a_name_of_the_callers_is_not_left_out(self, error: Any) -> None:
        assert taken_back(error, request(output_limits={NEW: 10**6})) is None

    def test_the_name_of_a_limit_that_has_none_of_the_callers(self) -> None:
        assert taken_back(UNKNOWN_LIMIT["OpenAI"], request(limit=7)) == lasting(NEW)
        assert taken_back(openai("max_completion_tokens: 7 > 5"), request(limit=7)) is None

    def test_a_name_added_beside_the_callers(self) -> None:
        sent = request(output_limits={NEW: 7}, both_limits=True)
        assert taken_back(BOTH["OpenAI"], sent) == lasting(OLD)

    def test_a_bound_that_is_not_lower_is_none(self) -> None:
        assert taken_back(openai("max_completion_tokens must be <= 16384"), request()) == lasting(NEW)

    def test_what_was_refused_before_stays_refused(self) -> None:
        before = Refused(frozenset((STREAM_OPTIONS,)), 100)
        found = take_back(refusal(UNKNOWN_LIMIT["OpenAI"]), request(refused=before), before)
        assert found == TakenBack(Refused(frozenset((STREAM_OPTIONS, NEW)), 100), Refused(frozenset((NEW,))))


class TestOther:
    @pytest.mark.parametrize(
        "error",
        [
            openai("Invalid value: messages", "messages"),
            openai("This model's maximum context length is 272000 tokens. However, your messages resulted in 300017 "
                   "tokens. Please reduce the length of the messages.", "messages", "context_length_exceeded"),
            openai("temperature must be <= 2", "temperature"),
            openai("image has 163840 pixels, at most 1000 are allowed"),
            "",
            {},
            [],
            None,
            17,
            "<html><body>Bad Request</body></html>",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("problem", [INVALID_REQUEST, CONTEXT_LENGTH_EXCEEDED])
    def test_what_is_not_about_an_addition(self, error: Any, problem: Problem) -> None:
        assert taken_back(error, request(both_limits=True), problem) is None

    @pytest.mark.parametrize("problem", [CONTENT_FILTER, MODEL_NOT_FOUND, RATE_LIMITED, UPSTREAM_AUTH])
    def test_what_is_refused_for_another_reason(self, problem: Problem) -> None:
        assert taken_back(UNKNOWN_STREAM_OPTIONS["OpenAI"], request(), problem) is None

    def test_an_error_of_the_server_counts_too(self) -> None:
        assert taken_back(UNKNOWN_STREAM_OPTIONS["OpenAI"], request(), UPSTREAM_ERROR) == lasting(STREAM_OPTIONS)

    def test_a_request_without_additions(self) -> None:
        plain = UpstreamRequest("/chat/completions", {"max_tokens": 1}, True)
        assert taken_back(BOTH["OpenAI"], plain) is None
        assert without_blame(refusal(BOTH["OpenAI"]), plain) == refusal(BOTH["OpenAI"])

    def test_a_long_error_is_read_in_part(self) -> None:
        assert taken_back({"a": "x" * 16_000, "b": "stream_options"}, request()) == lasting(STREAM_OPTIONS)
        assert taken_back({"a": ["x" * 17_000], "b": "y" * 17_000, "c": "stream_options"}, request()) is None

    def test_a_deep_error_is_read(self) -> None:
        error: Any = "stream_options"
        for _ in range(5000):
            error = [{"error": error}]
        assert taken_back(error, request()) == lasting(STREAM_OPTIONS)


class TestBlame:
    @pytest.mark.parametrize("error", [UNKNOWN_STREAM_OPTIONS["OpenAI"], UNKNOWN_LIMIT["OpenAI"], TOO_LARGE["OpenAI"]])
    def test_a_caller_hears_nothing_of_an_addition(self, error: Any) -> None:
        blameless = without_blame(refusal(error), request())
        assert blameless.problem == UPSTREAM_ERROR
        assert blameless.reason == "400, about a parameter that this app adds"
        assert (blameless.status, blameless.retryable) == (400, True)

    def test_of_what_the_caller_sent(self) -> None:
        sent = request(stream_options={"include_usage": True}, output_limits={OLD: 1})
        for error in (UNKNOWN_STREAM_OPTIONS["OpenAI"], UNKNOWN_LIMIT["OpenAI"]):
            assert without_blame(refusal(error), sent) == refusal(error)
        assert without_blame(refusal(TOO_LARGE["OpenAI"]), request(limit=1)) == refusal(TOO_LARGE["OpenAI"])
        own_options = request(stream_options={"x": 1})
        error = UNKNOWN_STREAM_OPTIONS["OpenAI"]
        assert without_blame(refusal(error), own_options) == refusal(error)

    def test_of_something_else(self) -> None:
        error = openai("Invalid value", "messages")
        assert without_blame(refusal(error), request()) == refusal(error)
        assert without_blame(refusal(None), request()) == refusal(None)

    def test_of_a_prompt_that_does_not_fit_only_the_words_go(self) -> None:
        error = openai("The prompt is too long, whatever max_tokens is")
        problem = CONTEXT_LENGTH_EXCEEDED.with_upstream_error(error)
        assert without_blame(refusal(error, problem), request()).problem == CONTEXT_LENGTH_EXCEEDED

    def test_of_what_another_backend_may_make_good(self) -> None:
        busy = refusal(UNKNOWN_LIMIT["OpenAI"], RATE_LIMITED)
        assert without_blame(busy, request()) is busy
        filtered = refusal(UNKNOWN_LIMIT["OpenAI"], CONTENT_FILTER)
        assert without_blame(filtered, request()) is filtered
