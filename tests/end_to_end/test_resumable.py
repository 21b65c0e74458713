"""Streams that can be resumed, behind the host: cut, resumed, continued, stopped, forgotten.

What every cut must keep is in tests/relay/wires/test_resumable_cuts.py; the life of a stream, in every order, in
tests/relay/streaming/test_resumable.py.
"""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx
import openai
import pytest

from local.key import new_key
from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from tests.end_to_end.answers import BREAKS, NDJSON, PLAIN, SSE, STREAMS
from tests.end_to_end.hosting import HostedApp, eventually, own_host

GRACE: Final = 1.5
DEADLINE: Final = 3.0
TEXT: Final = "Grün, 🌿 and a  line\nbreak, " * 12
PROMPT: Final = {"input": "x", "resumable": True}


def settings_for(port: int, **more: str) -> dict[str, str]:
    endpoint = f"http://127.0.0.1:{port}/openai/v1/"
    backends = [
        {"endpoint": endpoint, "deployment": DEFAULT_DEPLOYMENT, "wire": "responses"},
        {"endpoint": endpoint, "deployment": MANUAL_PACE, "wire": "responses"},
        {"endpoint": endpoint, "deployment": "a-chat-model"},
    ]
    return {
        "AZURE_OPENAI_BACKENDS": json.dumps(backends),
        "RESUMABLE_STREAMS": "1",
        "RESUMABLE_GRACE_SECONDS": str(GRACE),
        "STREAM_DEADLINE_SECONDS": str(DEADLINE),
    } | more


@pytest.fixture(scope="module")
def app(functions_app: Callable[..., HostedApp], model_service_port: int) -> HostedApp:
    """The app, which allows streams that can be resumed."""
    return functions_app(env=settings_for(model_service_port))


@pytest.fixture
async def client(app: HostedApp, model_service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    model_service.answer(TEXT)
    async with app.client() as client:
        yield client


class Reader:
    """A client that reads whole events only, and knows where it is. `cut`: it closes the connection after so many bytes
    of the body; `ends` are the terminal events that it received."""

    def __init__(self, client: httpx.AsyncClient, media_type: str = SSE) -> None:
        self.client = client
        self.media_type = media_type
        self.response_id = ""
        self.last_id = ""
        self.text = ""
        self.plain = b""
        self.ends: list[str] = []
        self.status = 0
        self.broken = False

    async def begin(self, cut: int | None = None, **members: Any) -> None:
        headers = {"accept": self.media_type}
        async with self.client.stream("POST", "/stream", json=PROMPT | members, headers=headers) as response:
            await self._read(response, cut)

    async def resume(self, cut: int | None = None) -> None:
        headers = {"accept": self.media_type}
        query = ""
        if self.media_type == PLAIN:
            query = f"?after_bytes={len(self.plain)}"
        elif self.last_id:
            headers["last-event-id"] = self.last_id
        url = f"/stream/{self.response_id}{query}"
        async with self.client.stream("GET", url, headers=headers) as response:
            await self._read(response, cut)

    async def read_to_the_end(self) -> None:
        while not self.ends or self.ends[-1] == "continue":
            await self.resume()

    async def _read(self, response: httpx.Response, cut: int | None) -> None:
        self.status, self.broken = response.status_code, False
        self.response_id = response.headers.get("x-response-id", self.response_id)
        content = b""
        try:
            async for chunk in response.aiter_raw():
                content += chunk
                if cut is not None and len(content) >= cut:
                    content = content[:cut]
                    break
            else:
                if self.media_type == PLAIN and response.status_code == 200:
                    self.ends.append("done")
        except BREAKS:
            self.broken = True
        if response.status_code == 200:
            self._take(content)

    def _take(self, content: bytes) -> None:
        if self.media_type == PLAIN:
            self.plain += content
            self.text = self.plain.decode(errors="ignore")
        elif self.media_type == NDJSON:
            for line in content.split(b"\n")[:-1]:
                members = json.loads(line)
                self._take_event(members["id"], members["type"], members)
        else:
            for block in content.replace(b": ping\n\n", b"").decode(errors="ignore").split("\n\n")[:-1]:
                fields = dict(line.split(": ", 1) for line in block.split("\n"))
                self.last_id = fields["id"]
                if "data" in fields:
                    self._take_event(fields["id"], fields.get("event", "text"), json.loads(fields["data"]))
        self.response_id = self.response_id or self.last_id.partition(".")[0]

    def _take_event(self, event_id: str, kind: str, members: dict[str, Any]) -> None:
        self.last_id = event_id
        if kind == "text":
            self.text += members["text"]
        else:
            self.ends.append(kind)


async def test_a_whole_stream_and_its_replay(client: httpx.AsyncClient, model_service: ModelService) -> None:
    for media_type in STREAMS:
        reader = Reader(client, media_type)
        await reader.begin()
        assert (reader.text, reader.ends) == (TEXT, ["done"])
        for other_type in STREAMS:
            again = Reader(client, other_type)
            again.response_id = reader.response_id
            await again.resume()
            assert (again.text, again.ends, again.response_id) == (TEXT, ["done"], reader.response_id)
    body = model_service.requests[0].body
    assert (body["background"], body["store"], body["stream"]) == (True, True, True)
    assert set(body["metadata"]) == {"relay_caller"}


@pytest.mark.parametrize("media_type", STREAMS)
async def test_cut_at_random_and_resumed(
    client: httpx.AsyncClient, model_service: ModelService, media_type: str
) -> None:
    """Also while it is being resumed, and while it is being generated."""
    model_service.tokens_per_second = 300
    dice = random.Random(16)

    async def one(cut: int) -> None:
        reader = Reader(client, media_type)
        await reader.begin(cut)
        while not reader.response_id:
            await reader.begin(cut + 500)  # cut before there was an id: all that a client can do is to ask again
        for _ in range(2):
            if not reader.ends:
                await reader.resume(dice.randint(1, 4000))
        await reader.read_to_the_end()
        assert reader.text == TEXT

    for _ in range(3):
        await asyncio.gather(*[one(dice.randint(1, 7000)) for _ in range(8)])


async def test_an_answer_that_takes_longer_than_a_connection(
    client: httpx.AsyncClient, app: HostedApp, model_service: ModelService
) -> None:
    model_service.tokens_per_second = 30
    tokens = [f"{number} " for number in range(240)]  # 8 s
    model_service.answer(tokens)

    async def one(media_type: str) -> None:
        reader = Reader(client, media_type)
        await reader.begin()
        while not reader.ends or reader.ends[-1] == "continue":
            assert reader.broken == (media_type == PLAIN)
            await reader.resume()
        assert reader.text == "".join(tokens)
        if media_type != PLAIN:
            assert reader.ends == ["continue"] * (len(reader.ends) - 1) + ["done"]
            assert len(reader.ends) > 1

    await asyncio.gather(*map(one, STREAMS))
    outcomes = [record["relay.outcome"] for record in app.stream_records().values()]
    assert "continued" in outcomes
    assert "failed" not in outcomes


async def test_an_event_source_can_take_it_up(client: httpx.AsyncClient) -> None:
    """It has an address and no header of its own; when it connects again, it sends the last id that it has received."""
    reader = Reader(client)
    await reader.begin(600)
    assert reader.last_id
    half = reader.last_id
    first = await client.get(f"/stream/{half}", headers={"accept": SSE})
    assert first.text.startswith("retry: ")
    assert "event: done" in first.text
    last = first.text.rpartition("id: resp_")[2].partition("\n")[0]
    again = await client.get(f"/stream/{half}", headers={"accept": SSE, "last-event-id": f"resp_{last}"})
    assert (again.status_code, again.content) == (204, b""), "it must not connect for ever"
    number = half.partition(".")[2]
    by_query = await client.get(f"/stream/{reader.response_id}?after={number}&code=a-key", headers={"accept": SSE})
    assert by_query.text == first.text
    head = await client.head(f"/stream/{half}")
    assert (head.status_code, head.content) == (200, b"")


async def test_stop(client: httpx.AsyncClient, model_service: ModelService) -> None:
    """The model service sees the cancellation at once; a stream that still reads ends, and nothing is left."""
    async with client.stream("POST", "/stream", json=PROMPT | {"model": MANUAL_PACE}) as response:
        lines = response.aiter_lines()
        model_service.release(3)
        while not (line := await anext(lines)).startswith("data:"):
            response_id = line.removeprefix("id: ").partition(".")[0] or response.headers.get("x-response-id")
        response_id = response.headers["x-response-id"]
        began = time.monotonic()
        stop = asyncio.create_task(client.delete(f"/stream/{response_id}"))
        await model_service.wait_for(lambda it: any(record.path.endswith("/cancel") for record in it.requests))
        assert time.monotonic() - began < 0.5
        assert (await stop).json() == {"id": response_id, "deleted": True}
        rest = [line async for line in lines]
    assert rest[-3] == "event: done"
    assert json.loads(rest[-2].removeprefix("data: "))["finish_reason"] == "cancelled"
    assert len(model_service.responses) == 0
    for method in ("GET", "DELETE"):
        answer = await client.request(method, f"/stream/{response_id}")
        assert (answer.status_code, answer.json()["code"]) == (404, "response_not_found")


async def test_a_vanished_client_and_one_that_comes_back(
    client: httpx.AsyncClient, model_service: ModelService
) -> None:
    vanished, back = Reader(client), Reader(client)
    model_service.tokens_per_second = 5
    await asyncio.gather(vanished.begin(150), back.begin(150))
    left_at = time.monotonic()

    def cancelled() -> list[str]:
        """Of these two: what earlier tests left behind is stopped now, too."""
        paths = [it.path.rpartition("/cancel") for it in model_service.requests]
        return [
            path.rpartition("/")[2] for path, *_ in paths if vanished.response_id in path or back.response_id in path
        ]

    async with client.stream("GET", f"/stream/{back.response_id}") as response:
        assert response.status_code == 200
        await model_service.wait_for(lambda _: cancelled(), timeout=GRACE + 10)
        assert time.monotonic() - left_at >= GRACE - 0.2
        await eventually(lambda: model_service.responses.get(vanished.response_id) is None)
        assert model_service.responses.get(back.response_id) is not None
    assert cancelled() == [vanished.response_id]
    await eventually(lambda: model_service.responses.get(back.response_id) is None)


async def test_an_answer_is_deleted_after_its_end(
    client: httpx.AsyncClient, app: HostedApp, model_service: ModelService
) -> None:
    reader = Reader(client)
    await reader.begin()
    ended = time.monotonic()
    assert model_service.responses.get(reader.response_id) is not None
    await eventually(lambda: model_service.responses.get(reader.response_id) is None)
    assert time.monotonic() - ended >= GRACE - 0.2
    assert not any(it.path.endswith(f"{reader.response_id}/cancel") for it in model_service.requests)
    counts = (await client.get("/ready")).json()["resumable"]
    assert set(counts) == {"streaming", "waiting", "kept", "left_behind"}
    assert counts["kept"] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "a-chat-model"}, "which none of this model is stated to have"),
        ({"stream": False}, "needs a stream"),
        ({"resumable": "yes"}, "must be true or false"),
    ],
)
async def test_a_wrong_request(
    client: httpx.AsyncClient, model_service: ModelService, body: dict[str, Any], message: str
) -> None:
    answer = await client.post("/stream", json=PROMPT | body)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["field"] == "resumable"
    assert message in error["message"]
    assert model_service.requests == []


async def test_a_wrong_place(client: httpx.AsyncClient, model_service: ModelService) -> None:
    for url, headers, field in (
        ("/stream/resp_1?after=-1", {}, "after"),
        ("/stream/resp_1?after_bytes=1", {}, "after_bytes"),
        ("/stream/resp_1?before=1", {}, "before"),
        ("/stream/resp_1.x", {}, "response_id"),
        ("/stream/resp%201", {}, "response_id"),
        ("/stream/resp_1", {"last-event-id": "resp_2.1"}, "Last-Event-ID"),
    ):
        answer = await client.get(url, headers=headers)
        assert answer.status_code == 400
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert model_service.requests == []
    for method in ("GET", "DELETE"):
        unknown = await client.request(method, "/stream/resp_0123456789")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "response_not_found")


async def test_a_response_that_is_none_of_a_stream_is_not_found(
    app: HostedApp, client: httpx.AsyncClient, model_service: ModelService
) -> None:
    """Its id is known, but whose it is is not."""
    async with openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="unused", max_retries=0) as openai_client:
        made = await openai_client.responses.create(model=DEFAULT_DEPLOYMENT, input="x", background=True)
    for method in ("GET", "DELETE"):
        assert (await client.request(method, f"/stream/{made.id}")).status_code == 404
    assert len(model_service.responses) == 1


async def test_another_instance_and_a_worker_that_was_killed(
    functions_app: Callable[..., HostedApp], model_service_port: int, app: HostedApp, model_service: ModelService
) -> None:
    model_service.answer(TEXT)
    model_service.tokens_per_second = 100
    killed = functions_app(env=settings_for(model_service_port), fresh=True)
    readers = []
    async with killed.client() as client, app.client() as other:
        for media_type in STREAMS:
            reader = Reader(client, media_type)
            await reader.begin(900)
            reader.client = other
            readers.append(reader)
        killed.expected_to_end = True
        killed.process.kill()
        for reader in readers:
            await reader.read_to_the_end()
            assert reader.text == TEXT


async def test_what_the_model_service_does_wrong_is_repaired_or_told(
    client: httpx.AsyncClient, model_service: ModelService
) -> None:
    """A connection to the model service that breaks midway is one more reason to go on."""
    cut = "cut-midway-4"
    model_service.faults[DEFAULT_DEPLOYMENT] = [cut, None, cut, None, "reset-midway-5", None, "end-midway-6"]
    reader = Reader(client)
    await reader.begin()
    await reader.read_to_the_end()
    assert (reader.text, reader.ends) == (TEXT, ["continue"] * 4 + ["done"])
    model_service.faults[DEFAULT_DEPLOYMENT] = [None, "503"]
    await Reader(client).begin()
    answer = await client.get(f"/stream/{reader.response_id}")
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_error")


async def test_failures_to_stop_and_to_delete_are_logged(
    client: httpx.AsyncClient, app: HostedApp, model_service: ModelService
) -> None:
    model_service.faults[DEFAULT_DEPLOYMENT] = [None, "500"]
    reader = Reader(client)
    await reader.begin()
    assert reader.ends == ["done"]
    line = f'"event":"left_behind","gen_ai.response.id":"{reader.response_id}"'
    await eventually(lambda: line in app.output)


async def test_it_is_off_by_default(
    functions_app: Callable[..., HostedApp], model_service_port: int, model_service: ModelService
) -> None:
    app = functions_app(env=settings_for(model_service_port, RESUMABLE_STREAMS=""))
    async with app.client() as client:
        answer = await client.post("/stream", json=PROMPT)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "resumable")
        for method in ("GET", "DELETE"):
            answer = await client.request(method, "/stream/resp_1")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "resumable" not in (await client.get("/ready")).json()


@own_host("its worker is not this process's child")
async def test_nothing_private_is_logged(client: httpx.AsyncClient, app: HostedApp) -> None:
    await Reader(client).begin()
    assert "Grün" not in app.output


KEYS: Final = {name: new_key() for name in ("a", "b")}


@pytest.fixture(scope="module")
def caller_app(functions_app: Callable[..., HostedApp], model_service_port: int) -> HostedApp:
    """The same, with two callers."""
    callers = {name: {"key_digests": [hashlib.sha256(key.encode()).hexdigest()]} for name, key in KEYS.items()}
    return functions_app(env=settings_for(model_service_port, CALLERS=json.dumps(callers)))


def code_of(answer: httpx.Response) -> str:
    members = answer.json()
    return str(members.get("error", members)["code"])


async def test_no_answer_of_another_caller_can_be_read_or_stopped(
    caller_app: HostedApp, model_service: ModelService
) -> None:
    model_service.answer(TEXT)
    headers = {name: {"x-functions-key": key} for name, key in KEYS.items()}
    async with caller_app.client(headers=headers["a"]) as mine, caller_app.client(headers=headers["b"]) as other:
        reader = Reader(mine)
        await reader.begin(400)
        assert reader.text != TEXT
        response_id = reader.response_id
        assert KEYS["a"] not in json.dumps(model_service.requests[0].body)
        made = len(model_service.requests)
        stored = f"/v1/responses/{response_id}"
        attempts = [(method, f"/stream/{it}") for it in (response_id, reader.last_id) for method in ("GET", "DELETE")]
        attempts += [("GET", stored), ("DELETE", stored), ("POST", f"{stored}/cancel")]
        attempts += [("GET", f"{stored}?stream=true"), ("GET", f"{stored}/input_items")]
        for method, path in attempts:
            answer = await other.request(method, path)
            unknown = await other.request(method, path.replace(response_id, "resp_" + "0" * 48))
            assert (answer.status_code, unknown.status_code) == (404, 404), (method, path)
            assert code_of(answer) == code_of(unknown) == "response_not_found"
        assert (await other.head(f"/stream/{response_id}")).status_code == 404
        follow = {"model": DEFAULT_DEPLOYMENT, "input": "What did I ask?", "previous_response_id": response_id}
        refused = await other.post("/v1/responses", json=follow)
        assert (refused.status_code, code_of(refused)) == (400, "previous_response_not_found")
        asked = [it.path for it in model_service.requests[made:] if response_id in it.path]
        assert not any("/cancel" in path or "input_items" in path for path in asked)
        assert model_service.responses.get(response_id) is not None
        await reader.read_to_the_end()
        assert reader.text == TEXT
        assert (await mine.get(f"/v1/responses/{response_id}")).status_code == 200
        assert (await mine.delete(f"/stream/{response_id}")).status_code == 200


async def test_the_official_client_resumes_a_response_event_by_event(
    app: HostedApp, model_service: ModelService
) -> None:
    """By parameters of its own, which are passed through: cut anywhere, also while it resumes, no event is lost."""
    model_service.answer(TEXT)
    model_service.tokens_per_second = 400
    dice = random.Random(16)

    async def one(openai_client: openai.AsyncOpenAI) -> None:
        numbers: list[int] = []
        text = response_id = ""
        stream: Any = await openai_client.responses.create(
            model=DEFAULT_DEPLOYMENT, input="x", background=True, stream=True
        )
        while True:
            left = dice.randint(1, 60)
            async for event in stream:
                numbers.append(event.sequence_number)
                response_id = event.response.id if event.type == "response.created" else response_id
                text += event.delta if event.type == "response.output_text.delta" else ""
                if event.type == "response.completed":
                    assert text == TEXT
                    assert numbers == list(range(len(numbers)))
                    await openai_client.responses.delete(response_id)
                    return
                left -= 1
                if not left:
                    break
            await stream.close()
            stream = await openai_client.responses.retrieve(response_id, stream=True, starting_after=numbers[-1])

    async with openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="unused", max_retries=0) as openai_client:
        await asyncio.gather(*[one(openai_client) for _ in range(12)])
    assert len(model_service.responses) == 0
