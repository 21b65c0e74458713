"""The benchmark's callers: an answer that is not what the model service said is never counted."""

import json
from collections.abc import Callable

import pytest

from tests.bench import upstream
from tests.bench.load import Heard, Read, RelayReading, SeedReading, WireReading, WrongAnswerError
from tests.bench.upstream import Plan

PLAN = Plan(5000, 0.02, 2)  # longer than the vocabulary
DUE = 1234.5
TEXT = upstream.first_token(DUE) + upstream.text(PLAN.tokens)


def relayed() -> bytes:
    events = [
        b": ping\n\n",
        *(b"data: %b\n\n" % json.dumps({"text": TEXT[at : at + 9]}).encode() for at in range(0, len(TEXT), 9)),
    ]
    return b"".join(events) + b'event: done\ndata: {"finish_reason":"stop"}\n\n'


BODIES: dict[Read, Callable[[], bytes]] = {
    RelayReading: relayed,
    SeedReading: TEXT.encode,
    WireReading: lambda: upstream.body().whole(DUE, PLAN.tokens),
}


def heard(body: bytes, *, status: int = 200, end: bytes = b"0\r\n\r\n") -> Heard:
    """The answer, its body cut into reads of 1,000 bytes, a millisecond apart from second 1,300 on."""
    head = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    reads = [head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), end]
    return Heard(PLAN, 1299.0, [(1300 + number / 1000, data) for number, data in enumerate(reads)])


@pytest.mark.parametrize("read", BODIES, ids=lambda read: read.__name__)
class TestReading:
    def test_a_right_answer_is_counted_to_the_last_token(self, read: Read) -> None:
        reading = read(heard(BODIES[read]()))
        assert reading.due == DUE
        assert reading.between(0, 9999) == PLAN.tokens
        assert len(reading.lateness(0, 9999)) == PLAN.tokens
        assert reading.lateness(0, 9999)[2] == pytest.approx(1300.001 - DUE - 0.02, abs=0.01)
        assert reading.first == pytest.approx(1.001, abs=0.0015)

    @pytest.mark.parametrize(
        "alter",
        [
            lambda body: body.replace(b" fox", b" fix", 1),
            lambda body: body[:-70] + body[-60:],
            lambda body: body.replace(b" quick", b"", 1),
            lambda body: body + b"x",
            lambda body: body[: len(body) // 2],
        ],
        ids=["changed", "shortened", "left out", "added", "cut"],
    )
    def test_a_wrong_one_is_not(self, read: Read, alter: Callable[[bytes], bytes]) -> None:
        body = BODIES[read]()
        assert alter(body) != body
        with pytest.raises((WrongAnswerError, ValueError)):
            read(heard(alter(body)))

    def test_an_answer_without_its_end_is_not(self, read: Read) -> None:
        with pytest.raises(WrongAnswerError):
            read(heard(BODIES[read](), end=b""))

    def test_an_error_is_not(self, read: Read) -> None:
        with pytest.raises(WrongAnswerError):
            read(heard(BODIES[read](), status=502))


def test_two_terminal_events_are_one_too_many() -> None:
    with pytest.raises(WrongAnswerError):
        RelayReading(heard(relayed() + b"event: done\ndata: {}\n\n"))


def test_a_plan_is_read_out_of_a_request() -> None:
    for plan in (PLAN, Plan(7), Plan(300, 1e-05, 10)):
        assert Plan.read(json.dumps({"messages": [{"content": plan.prompt}]}).encode()) == plan


def test_the_wire_is_what_its_pieces_are() -> None:
    wire = upstream.body()
    assert wire.some(0, 9000) == b"".join(wire.some(at, at + 60) for at in range(0, 9000, 60))
    assert wire.some(0, 9000).count(b'"content"') == 9000
