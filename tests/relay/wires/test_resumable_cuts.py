"""An answer that is cut anywhere, again and again, and resumed each time: put together, it equals the uncut one.

The model service here is a list of numbered events, the connection a function; decoder and encoder are the app's own.

RESUME_CUTS=1000000 pytest tests/relay/wires/test_resumable_cuts.py     # more cuts
RESUME_SEED=12345 pytest tests/relay/wires/test_resumable_cuts.py       # replays one answer with its cuts
"""

import json
import os
import random
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from relay.problems import Problem
from relay.streaming.events import Continued, Done, Failed, Text
from relay.wires.resumable import ResumableRequest, Resumption, parse_resumption
from relay.wires.resumable_encoders import ResumableEncoder
from relay.wires.resumable_text import ResumableTextDecoder
from relay.wires.stream import StreamRequest
from tests.relay.wires.test_responses_decoders import COUNTS, event, response

SSE: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
PLAIN: Final = "text/plain"
FORMATS: Final = (SSE, NDJSON, PLAIN)

CUTS: Final = int(os.environ.get("RESUME_CUTS", "10000"))
SEED: Final = os.environ.get("RESUME_SEED")
ID: Final = "resp_1"
PIECES: Final = ("one ", "two", "", " grün", "🌿", "\ud83c", "\udf3f", "\u2028", '"\\', "\n\n", "x" * 30)


def joined(text: str) -> str:
    """The text with the halves of surrogate pairs joined, and U+FFFD for any other half."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Answer:
    """The events of one response, and what there is in them."""

    def __init__(self, dice: random.Random, *, deltas: bool = True, announced: bool = True) -> None:
        self.events: list[bytes] = []
        self.reasoning = ""
        self.text = ""
        self._dice = dice
        self._add("response.created", response=response("queued"))
        self._add("response.queued", response=response("queued"))
        self._add("response.in_progress", response=response("in_progress"))
        output: list[dict[str, Any]] = []
        for index in range(dice.randint(1, 3)):
            # Reasoning begins with the first item, if there is any, as models send it; and where no part is announced,
            # there is none behind text.
            reasons = dice.random() < 0.5 and (index == 0 or self.reasoning) and (announced or not self.text)
            add = self._reasoning if reasons else self._message
            output.append(add(index, deltas=deltas, announced=announced))
        members = response("completed", usage=COUNTS, error=None) | {"output": output}
        self._add("response.completed", response=members)
        self.text, self.reasoning = joined(self.text), joined(self.reasoning)

    def _add(self, kind: str, **members: Any) -> None:
        self.events.append(event(kind, len(self.events), **members))

    def _pieces(self) -> list[str]:
        return [self._dice.choice(PIECES) for _ in range(self._dice.randint(1, 6))]

    def _message(self, index: int, *, deltas: bool, announced: bool) -> dict[str, Any]:
        where = {"item_id": f"msg_{index}", "output_index": index}
        pieces = self._pieces()
        if announced:
            self._add("response.output_item.added", **where, item={"type": "message", "content": []})
            self._add("response.content_part.added", **where, content_index=0, part={"type": "output_text", "text": ""})
        if deltas:
            for piece in pieces:
                self._add("response.output_text.delta", **where, content_index=0, delta=piece)
        text = "".join(pieces)
        self._add("response.output_text.done", **where, content_index=0, text=text)
        self._add("response.output_item.done", **where, item={"type": "message"})
        self.text += text
        return {"type": "message", "content": [{"type": "output_text", "text": text}]}

    def _reasoning(self, index: int, *, deltas: bool, announced: bool) -> dict[str, Any]:
        where = {"item_id": f"rs_{index}", "output_index": index}
        summary = []
        self._add("response.output_item.added", **where, item={"type": "reasoning", "summary": []})
        for part in range(self._dice.randint(1, 3)):
            pieces = ["part", *self._pieces()]
            if announced:
                kind = "response.reasoning_summary_part.added"
                self._add(kind, **where, summary_index=part, part={"type": "summary_text", "text": ""})
            if deltas:
                for piece in pieces:
                    self._add("response.reasoning_summary_text.delta", **where, summary_index=part, delta=piece)
            text = "".join(pieces)
            self._add("response.reasoning_summary_text.done", **where, summary_index=part, text=text)
            self.reasoning += ("\n\n" if self.reasoning else "") + text
            summary.append({"type": "summary_text", "text": text})
        self._add("response.output_item.done", **where, item={"type": "reasoning"})
        return {"type": "reasoning", "summary": summary}


@dataclass
class Client:
    """What a client has of an answer: it reads whole events only, as an `EventSource` does, and knows the last id."""

    media_type: str
    text: str = ""
    reasoning: str = ""
    last_id: str = ""
    received: bytes = b""
    ends: list[str] = field(default_factory=list)

    def take(self, content: bytes) -> None:
        if self.media_type == PLAIN:
            self.received += content
        elif self.media_type == SSE:
            for block in content.split(b"\n\n")[:-1]:
                self._take_block(block.decode())
        else:
            for line in content.split(b"\n")[:-1]:
                members = json.loads(line)
                self.last_id = members["id"]
                self._take_event(members["type"], members)

    def _take_block(self, block: str) -> None:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        self.last_id = fields.get("id", self.last_id)
        if "data" in fields:
            assert "id" in fields, "every event has an id"
            self._take_event(fields.get("event", "text"), json.loads(fields["data"]))

    def _take_event(self, kind: str, members: dict[str, Any]) -> None:
        assert not self.ends or self.ends[-1] == "continue", "nothing follows the end"
        if kind == "text":
            self.text += members["text"]
        elif kind == "reasoning":
            self.reasoning += members["text"]
        else:
            self.ends.append(kind)

    @property
    def whole_text(self) -> str:
        if self.media_type == PLAIN:
            return self.received.decode()
        return joined(self.text)

    def resumption(self) -> Resumption:
        """Its request to go on."""
        headers = {"accept": self.media_type}
        query: list[tuple[str, str]] = []
        if self.media_type == PLAIN:
            query = [("after_bytes", str(len(self.received)))]
        elif self.last_id:
            headers["last-event-id"] = self.last_id
        found = parse_resumption(ID, query, headers)
        assert not isinstance(found, Problem)
        return found


def connection(
    answer: Answer,
    dice: random.Random,
    decoder: ResumableTextDecoder,
    encoder: ResumableEncoder,
    after: int,
    *,
    until: int | None = None,
) -> tuple[bytes, bool]:
    """What one connection sends of the answer, in random reads, and whether it is its end; `until`: at the app's time
    limit only so many events have come, and the encoder tells the client to go on."""
    sent = b"".join(answer.events[after + 1 : until])
    written = b""
    while sent:
        size = dice.choice((90, 700, 4000, 100_000))
        chunk, sent = sent[:size], sent[size:]
        for found in decoder.feed(chunk):
            if isinstance(found, Text):
                written += encoder.text(found)
            elif isinstance(found, Failed):
                raise AssertionError(found)
            else:
                return written + (encoder.done(found) or b""), True
    if until is not None and encoder.can_continue:
        written += encoder.done(Continued(None, None, None, decoder.id)) or b""
    return written, False


def first(media_type: str) -> tuple[ResumableTextDecoder, ResumableEncoder]:
    """Decoder and encoder of the stream that begins the answer."""
    request = ResumableRequest(StreamRequest(input="x", reasoning_summary="auto", resumable=True), "owner")
    decoder = request.on("responses").decoder()
    assert isinstance(decoder, ResumableTextDecoder)
    return decoder, request.encoder(media_type)


def following(client: Client) -> tuple[ResumableTextDecoder, ResumableEncoder, int]:
    """Those of a stream that goes on, and the number after which the model service is asked to go on."""
    resumption = client.resumption()
    request = resumption.stream(reasoning=True)
    decoder = request.decoder()
    assert isinstance(decoder, ResumableTextDecoder)
    path = request.upstream_request(max_output_tokens=1).path
    after = int(path.partition("starting_after=")[2] or -1)
    return decoder, request.encoder(resumption.accept), after


def uncut(answer: Answer, media_type: str) -> Client:
    client = Client(media_type)
    client.take(connection(answer, random.Random(1), *first(media_type), -1)[0])
    return client


def check(answer: Answer, client: Client) -> None:
    assert client.whole_text == answer.text
    if client.media_type != PLAIN:
        assert joined(client.reasoning) == answer.reasoning
        assert client.ends[-1] == "done"


@pytest.mark.parametrize("media_type", FORMATS)
def test_cut_at_every_byte(media_type: str) -> None:
    dice = random.Random(16)
    answer = Answer(dice)
    whole = uncut(answer, media_type)
    check(answer, whole)
    content, ended = connection(answer, dice, *first(media_type), -1)
    assert ended
    for position in range(len(content) + 1):
        client = Client(media_type)
        client.take(content[:position])
        for _ in range(3):  # the second time a part of it is cut again
            if client.ends:
                break
            again, _ = connection(answer, dice, *following(client))
            client.take(again[: position % (len(again) + 1)] if _ == 0 else again)
        check(answer, client)


@pytest.mark.parametrize(
    ("deltas", "announced"), [(True, True), (True, False), (False, True)], ids=["usual", "no-role", "no-deltas"]
)
@pytest.mark.parametrize("media_type", FORMATS)
def test_cut_at_random(media_type: str, *, deltas: bool, announced: bool) -> None:
    """Also by the app's own limit, at which the client is told to go on."""
    cuts = 0
    seeds = random.Random(f"{media_type} {deltas} {announced}")
    while cuts < CUTS / 9:
        seed = int(SEED) if SEED else seeds.randrange(2**32)
        dice = random.Random(seed)
        try:
            cuts += 1 + cut_and_resume(dice, media_type, deltas=deltas, announced=announced)
        except AssertionError as error:
            raise AssertionError(f"RESUME_SEED={seed}: {error}") from error
        if SEED:
            break


def cut_and_resume(dice: random.Random, media_type: str, *, deltas: bool, announced: bool) -> int:
    """One answer, cut again and again; returns how often."""
    answer = Answer(dice, deltas=deltas, announced=announced)
    client = Client(media_type)
    decoder, encoder = first(media_type)
    after, cuts = -1, 0
    while True:
        until = dice.randint(1, len(answer.events)) if dice.random() < 0.3 else None
        content, ended = connection(answer, dice, decoder, encoder, after, until=until)
        if dice.random() < 0.1 * cuts or (media_type == PLAIN and ended and dice.random() < 0.3):
            client.take(content)
            if ended:
                break
        else:
            client.take(content[: dice.randint(0, len(content))])
            if client.ends and client.ends[-1] == "done":
                break
            ended = False
        cuts += 1
        decoder, encoder, after = following(client)
    check(answer, client)
    return cuts


def test_nothing_is_left_after_the_end() -> None:
    answer = Answer(random.Random(1))
    client = uncut(answer, SSE)
    decoder, encoder, after = following(client)
    assert (after, connection(answer, random.Random(1), decoder, encoder, after)) == (
        len(answer.events) - 1,
        (b"", False),
    )
    decoder.end()
    assert decoder.ended
    assert decoder.empty


def test_two_readers_get_the_same() -> None:
    answer = Answer(random.Random(2))
    one = uncut(answer, SSE)
    other = Client(SSE)
    other.take(connection(answer, random.Random(3), *following(other))[0])
    assert (one.text, one.reasoning, one.last_id) == (other.text, other.reasoning, other.last_id)


def test_the_end_names_the_response() -> None:
    answer = Answer(random.Random(4))
    decoder, encoder = first(NDJSON)
    content, _ = connection(answer, random.Random(4), decoder, encoder, -1)
    last = json.loads(content.splitlines()[-1])
    assert (last["type"], last["id"]) == ("done", f"{ID}.{len(answer.events) - 1}")
    decoder, encoder = first(SSE)
    content, _ = connection(answer, random.Random(4), decoder, encoder, -1)
    assert json.loads(content.rpartition(b"data: ")[2])["id"] == ID
    assert isinstance(decoder.end()[-1], Done)
