"""Reads out of an error which of this app's additions a deployment refuses, so that they can be taken back.

Each server words it differently. Public threads that have them:

- unknown parameters: vllm-project/vllm#10463, openai/openai-agents-python#442 (Mistral), voideditor/void#128,
  NVIDIA/garak#748, caozhiyuan/copilot-api#164 (OpenAI)
- both limits at once: HKUDS/nanobot#2548 (Volcengine), yaroslavyaroslav/OpenAI-sublime-text#65 (OpenAI)
- a limit above the deployment's own: Gitlawb/openclaude#331, tailcallhq/forgecode#1185, huggingface/transformers#28523
- a limit that the context has no room for: vllm-project/vllm#42474, huggingface/chat-ui#340, ogx-ai/ogx#4534
"""

import re
from dataclasses import dataclass, replace
from typing import Final

from relay.problems import (
    CONTENT_FILTER,
    CONTEXT_LENGTH_EXCEEDED,
    MODEL_NOT_FOUND,
    RATE_LIMITED,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
)
from relay.upstream.failures import Refusal
from relay.upstream.request import (
    NOTHING,
    OUTPUT_LIMITS,
    RESPONSE_OUTPUT_LIMIT,
    STREAM_OPTIONS,
    Additions,
    Refused,
    UpstreamRequest,
)

_MAX_TEXT: Final = 16 * 1024  # characters of an error that are read

# Refusals for another reason, whatever parameters their text names.
_OTHER_REASONS: Final = frozenset(
    problem.code for problem in (CONTENT_FILTER, MODEL_NOT_FOUND, RATE_LIMITED, UPSTREAM_AUTH)
)


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What a request is repeated without: `refused`. The deployment is remembered to refuse `lasting`."""

    refused: Refused
    lasting: Refused


def take_back(refusal: Refusal, request: UpstreamRequest, refused: Refused) -> TakenBack | None:
    """What to repeat `request` without after this refusal; None: the refusal is not about this app's additions.

    `request` is the one that was sent, to a deployment that was known to refuse `refused`.
    """
    additions = request.additions
    if additions is None or refusal.error is None or refusal.problem.code in _OTHER_REASONS:
        return None
    error = UpstreamError(refusal.error)
    usage = _usage_taken_back(error, request, additions)
    limit = _limit_taken_back(error, request, additions, context=refusal.problem.code == CONTEXT_LENGTH_EXCEEDED.code)
    now, lasting = usage | limit.refused, usage | limit.lasting
    return TakenBack(refused | now, lasting) if now else None


def without_blame(refusal: Refusal, request: UpstreamRequest) -> Refusal:
    """The same refusal, unless it tells the caller of a parameter that this app added: then it is no one's fault but
    the backend's, and another one may answer. Of a prompt that does not fit, only the upstream's text is removed."""
    if refusal.retryable or not _names_an_addition(refusal, request.additions):
        return refusal
    if refusal.problem.code == CONTEXT_LENGTH_EXCEEDED.code:
        return replace(refusal, problem=replace(refusal.problem, upstream_error=None))
    reason = f"{refusal.reason}, about a parameter that this app adds"
    return replace(refusal, problem=UPSTREAM_ERROR, reason=reason)


def _names_an_addition(refusal: Refusal, additions: Additions | None) -> bool:
    if additions is None or refusal.error is None or refusal.problem.code in _OTHER_REASONS:
        return False
    error = UpstreamError(refusal.error)
    if additions.adds_usage and not additions.stream_options and error.mentions(STREAM_OPTIONS):
        return True
    return not (additions.named_limits or additions.limit) and any(map(error.mentions, additions.limit_names))


def _usage_taken_back(error: "UpstreamError", request: UpstreamRequest, additions: Additions) -> Refused:
    """Of options that the caller sent, only the one that was added to them is taken back."""
    options = (request.parameters or {}).get(STREAM_OPTIONS)
    added = additions.adds_usage and isinstance(options, dict) and "include_usage" in options
    if added and error.mentions("include_usage" if additions.stream_options else STREAM_OPTIONS):
        return Refused(frozenset((STREAM_OPTIONS,)))
    return NOTHING


def _limit_taken_back(
    error: "UpstreamError", request: UpstreamRequest, additions: Additions, *, context: bool
) -> TakenBack:
    parameters = request.parameters or {}
    sent = {name: limit for name in additions.limit_names if isinstance(limit := parameters.get(name), int)}
    value = max(sent.values(), default=0)
    too_large = _value_taken_back(error, value, additions, context=context)
    if too_large is not None:
        return too_large if additions.caps else _NO_CHANGE  # a limit of the caller's is the caller's to lower
    names = frozenset(_named(error, [name for name in sent if name not in additions.named_limits]))
    return TakenBack(Refused(names), Refused(names))


def _value_taken_back(error: "UpstreamError", value: int, additions: Additions, *, context: bool) -> TakenBack | None:
    """The limit lowered or left out, where the error is about its height; None where it is about anything else."""
    about_limit = error.about_limit(value)
    if not about_limit:
        return None
    # Where the prompt and the limit together exceed the context, what is left of it is less than the limit: without
    # the limit the answer is capped all the same. Another prompt may leave more, so that it is not remembered.
    left_out = TakenBack(NOTHING if additions.named_limits else Refused(frozenset(additions.limit_names)), NOTHING)
    unknown = any(map(_UNKNOWN.search, about_limit))
    if not unknown and any(map(_WITH_PROMPT.search, error.statements)):
        return left_out
    most = _bound(_BOUNDS, about_limit, value)
    if most is None and not unknown:
        if context or any(map(_CONTEXT.search, error.statements)):
            return left_out
        most = _bound(_VAGUE_BOUNDS, about_limit, value)
        if most is None and any(map(_TOO_LARGE.search, about_limit)):
            return left_out
    return None if most is None else TakenBack(Refused(most=most), Refused(most=most))


def _named(error: "UpstreamError", added: list[str]) -> list[str]:
    """Those of the added names that the error is about; some errors name the right one as well."""
    right = {found[1] for statement in error.statements for found in _INSTEAD.finditer(statement)}
    named = [name for name in added if error.mentions(name) and name not in right]
    if len(named) > 1:
        if any(map(_TOGETHER.search, error.statements)):
            return named[1:]
        return [name for name in named if name in error.parameters] or named
    return named


_MENTIONS: Final = {
    STREAM_OPTIONS: re.compile(r"(?<![a-z0-9])(?:stream[_ ]?options|include_?usage)(?![a-z0-9])"),
    "include_usage": re.compile(r"(?<![a-z0-9])include_?usage(?![a-z0-9])"),
    OUTPUT_LIMITS[0]: re.compile(r"(?<![a-z0-9])max_?completion_?tokens(?![a-z0-9])"),
    OUTPUT_LIMITS[1]: re.compile(r"(?<![a-z0-9])max_?tokens(?![a-z0-9])"),
    RESPONSE_OUTPUT_LIMIT: re.compile(r"(?<![a-z0-9])max_?output_?tokens(?![a-z0-9])"),
}
# An output limit by whatever name: some servers translate the request for another API.
_LIMIT: Final = re.compile(
    r"max(?:imum)?[ _]?(?:new|output|completion|generation|response)?[ _]?tokens|n(?:um)?_predict"
    r"|(?:output|completion|generated|new) tokens|in the (?:completion|output)|or (?:the )?completion"
)
_UNKNOWN: Final = re.compile(
    r"extra_forbidden|extra (?:inputs|fields|data|parameters)|additional propert|unknown|un?recogni[sz]ed|unsupported"
    r"|not (?:be )?(?:supported|permitted|recogni[sz]ed|set at)|unexpected|instead of|['`\"] instead"
)
_TOO_LARGE: Final = re.compile(r"too (?:large|big|high|long|many)|exceed|greater|above|over the|out of range")
_WITH_PROMPT: Final = re.compile(
    r"\+\W{0,3}max_|total (?:of|number|tokens)|total_tokens|token count|reduce the (?:length|size|number)"
    r"|(?:in|from|of) the (?:messages|prompt|input)|(?:prompt|input) (?:tokens|contains)|inputs?\W{0,3}tokens"
)
_CONTEXT: Final = re.compile(r"context|max_(?:model|seq)_len")
_TOGETHER: Final = re.compile(
    r"same time|\bboth\b|together|simultaneous|mutually|exclusive|only one|either|conflict|combin"
)
_INSTEAD: Final = re.compile(r"(?:use|try|prefer|replaced by|fav(?:o|ou)r of|renamed to)\W{1,3}(max_\w{1,32})")

_NUMBER: Final = r"(?P<most>\d{1,9})(?!\d)"
# A number that the limit may not exceed; `exclusive`: nor reach.
_BOUNDS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:<=|≤|=<)\W{{0,3}}{_NUMBER}",
        rf"(?:less|lower|smaller|fewer) than or equal to\W{{0,3}}{_NUMBER}",
        rf"[\[(]\s*\d\s*(?:,|-|to|\.\.)\s*{_NUMBER}\s*(?P<exclusive>\))?",
        rf"(?:between|from) \d{{1,9}}\D{{0,16}}(?:and|to) {_NUMBER}(?P<exclusive>\W{{0,2}}exclusive)?",
        rf"(?:at most|up to|no (?:more|greater|larger|higher) than|not (?:be )?(?:more|greater|larger|higher) than"
        rf"|not exceed(?:ing)?|only afford)\D{{0,24}}{_NUMBER}",
        rf"(?P<exclusive>(?:less|lower|smaller|fewer) than|below)\W{{0,3}}{_NUMBER}",
        rf"\d\s*>\s*{_NUMBER}",
        rf"(?:不能|不得|不可|不应)(?:大于|超过|高于)\D{{0,8}}{_NUMBER}",
    )
)
_VAGUE_BOUNDS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b(?:maximum|max|limit(?:ed)?|cap|ceiling|supports?|allows?|exceeds?)\b[^\d]{{0,60}}\b{_NUMBER}\b",
        rf"\b{_NUMBER}\b[^\d]{{0,30}}\b(?:maximum|limit|allowed)\b",
    )
)


def _bound(patterns: tuple[re.Pattern[str], ...], statements: list[str], value: int) -> int | None:
    """The highest limit that the statements allow, if it is lower than `value`."""
    for pattern in patterns:
        for statement in statements:
            for found in pattern.finditer(statement):
                most = int(found["most"]) - bool(found.groupdict().get("exclusive"))
                if 1 <= most < value:
                    return most
    return None


_NO_CHANGE: Final = TakenBack(NOTHING, NOTHING)


class UpstreamError:
    """The text of an upstream's error, in whatever form: OpenAI's object, a validator's list, a text.

    `statements` are its sentences in lower case, or the object as a whole where it names a parameter; `parameters` are
    what its members `param` and `loc` name.
    """

    def __init__(self, error: object) -> None:
        self.parameters: set[str] = set()
        self.statements: list[str] = []
        left = _MAX_TEXT
        pending = [error]
        while pending and left > 0:
            value = pending.pop(0)
            members = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
            pending += [it for it in members if isinstance(it, dict) or (isinstance(it, list) and not _scalars(it))]
            text = " , ".join(text for member in members for text in _scalars(member))[:left].lower()
            left -= len(text) + 1
            named = {*_scalars(value.get("param")), *_scalars(value.get("loc"))} if isinstance(value, dict) else set()
            self.parameters |= named
            self.statements += [text] if named else _SENTENCE_END.split(text)

    def mentions(self, name: str) -> bool:
        """Whether a parameter is named anywhere."""
        return any(map(_MENTIONS[name].search, self.statements))

    def about_limit(self, value: int) -> list[str]:
        """The statements about an output limit, or about the number that was sent as one."""
        number = re.compile(rf"(?<!\d){value}(?!\d)")
        return [it for it in self.statements if _LIMIT.search(it) or number.search(it)]


_SENTENCE_END: Final = re.compile(r"[.;!]\s+|\n+")


def _scalars(value: object) -> list[str]:
    """The texts of a scalar, or of a list of scalars such as the path of a field."""
    if isinstance(value, list):
        return [] if any(isinstance(it, dict | list) for it in value) else [str(it) for it in value]
    return [] if value is None or isinstance(value, dict | bool | int | float) else [str(value)]
