"""The benchmark's load generator: an answer that is not what the model service sent is never counted."""

import json
from collections.abc import Callable

import pytest

from tests.bench import upstream
from tests.bench.load import ParseAnswer, RawAnswer, RelayAnswer, TextAnswer, UpstreamAnswer, WrongAnswerError
from tests.bench.upstream import Plan

PLAN = Plan(5000, 0.02, 2)  # longer than the vocabulary
DUE = 1234.5
TEXT = upstream.first_token(DUE) + upstream.text(PLAN.tokens)


def relay_body() -> bytes:
    """An answer of the relay, with a ping."""
    events = [
        b": ping\n\n",
        *(b"data: %b\n\n" % json.dumps({"text": TEXT[start : start + 9]}).encode() for start in range(0, len(TEXT), 9)),
    ]
    return b"".join(events) + b'event: done\ndata: {"finish_reason":"stop"}\n\n'


BODIES: dict[ParseAnswer, Callable[[], bytes]] = {
    RelayAnswer: relay_body,
    TextAnswer: TEXT.encode,
    UpstreamAnswer: lambda: upstream.body().answer(DUE, PLAN.tokens),
}


def raw_answer(body: bytes, *, status: int = 200, end: bytes = b"0\r\n\r\n") -> RawAnswer:
    """The answer with this body, in reads of 1,000 bytes that are a millisecond apart, from second 1,300 on."""
    head = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    chunks = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    reads = [head, *(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks), end]
    return RawAnswer(PLAN, 1299.0, [(1300 + number / 1000, data) for number, data in enumerate(reads)])


@pytest.mark.parametrize("parse", BODIES, ids=lambda parse: parse.__name__)
class TestParsing:
    def test_every_token_of_a_correct_answer_is_counted(self, parse: ParseAnswer) -> None:
        answer = parse(raw_answer(BODIES[parse]()))
        assert answer.due == DUE
        assert answer.tokens_between(0, 9999) == PLAN.tokens
        assert len(answer.delays(0, 9999)) == PLAN.tokens
        assert answer.delays(0, 9999)[2] == pytest.approx(1300.001 - DUE - 0.02, abs=0.01)
        assert answer.time_to_first_token == pytest.approx(1.001, abs=0.0015)

    @pytest.mark.parametrize(
        "alter",
        [
            lambda body: body.replace(b" fox", b" fix", 1),
            lambda body: body[:-70] + body[-60:],
            lambda body: body.replace(b" quick", b"", 1),
            lambda body: body + b"x",
            lambda body: body[: len(body) // 2],
        ],
        ids=["changed", "shortened", "omitted", "added", "cut"],
    )
    def test_wrong_answer_is_rejected(self, parse: ParseAnswer, alter: Callable[[bytes], bytes]) -> None:
        body = BODIES[parse]()
        assert alter(body) != body
        with pytest.raises((WrongAnswerError, ValueError)):
            parse(raw_answer(alter(body)))

    def test_answer_without_its_end_is_rejected(self, parse: ParseAnswer) -> None:
        with pytest.raises(WrongAnswerError):
            parse(raw_answer(BODIES[parse](), end=b""))

    def test_error_response_is_rejected(self, parse: ParseAnswer) -> None:
        with pytest.raises(WrongAnswerError):
            parse(raw_answer(BODIES[parse](), status=502))


def test_second_terminal_event_is_rejected() -> None:
    with pytest.raises(WrongAnswerError):
        RelayAnswer(raw_answer(relay_body() + b"event: done\ndata: {}\n\n"))


def test_plan_is_parsed_from_a_request() -> None:
    for plan in (PLAN, Plan(7), Plan(300, 1e-05, 10)):
        assert Plan.parse(json.dumps({"messages": [{"content": plan.prompt}]}).encode()) == plan


def test_ranges_of_tokens_are_consistent() -> None:
    body = upstream.body()
    content = body.tokens_between(0, 9000)
    assert content == b"".join(body.tokens_between(start, start + 60) for start in range(0, 9000, 60))
    assert content.count(b'"content"') == 9000
