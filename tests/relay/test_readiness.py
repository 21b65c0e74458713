"""`GET /ready`: what is probed and how often, what comes back, and the finding and the remedy for each state."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
import pytest

from relay import readiness
from relay.problems import (
    CONTEXT_LENGTH_EXCEEDED,
    DEADLINE_EXCEEDED,
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    RATE_LIMITED,
    UPSTREAM_AUTH,
    UPSTREAM_ERROR,
    UPSTREAM_TIMEOUT,
)
from relay.readiness import Finding, Readiness
from relay.settings import BackendSettings, Identity, Settings, Wire
from relay.upstream.failures import Refusal
from relay.upstream.pool import Backend
from relay.upstream.request import UpstreamRequest
from relay.wires.stream import StreamRequest
from tests.relay.virtual_time import virtual_time

CAP: Final = 300
GOOD: Final = (True, True, True, True)
CHUNK: Final = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
TOO_SHORT: Final = Refusal(
    INVALID_REQUEST, "400, for its emptiness", status=400, error={"message": "[] is too short - 'messages'"}
)
BROKEN: Final = Refusal(UPSTREAM_ERROR, "500", status=500)
ADDRESS: Final = (
    "What answers at this address is not a model service's API: check AZURE_OPENAI_ENDPOINT or AZURE_OPENAI_BACKENDS, "
    "and that no sign-in page or proxy answers in its place. It must be an Azure OpenAI account or end in /v1."
)


class ScriptedAnswer:
    """An answer of these reads; an exception among them is raised, and after the last one the body has ended."""

    connection_errors: Final = (ConnectionError,)
    media_type = "text/event-stream"

    def __init__(self, *reads: bytes | Exception) -> None:
        self.reads = list(reads)
        self.closed = 0

    async def read(self) -> bytes:
        read = self.reads.pop(0) if self.reads else b""
        if isinstance(read, Exception):
            raise read
        return read

    def close(self) -> None:
        self.closed += 1


class Silent:
    """In a script: no answer within so many seconds, then a refusal."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


Outcome = Refusal | ScriptedAnswer | Silent


class ScriptedClient:
    """The client of all backends: it answers a deployment's requests by its script, the last outcome for ever."""

    def __init__(self, scripts: dict[str, Sequence[Outcome]], proxy: str | None) -> None:
        self.scripts = {name: list(script) for name, script in scripts.items()}
        self.proxy = proxy
        self.requests: list[tuple[str, UpstreamRequest, str]] = []

    async def open(self, request: UpstreamRequest, deployment: str, request_id: str, *hooks: Callable[[], None]) -> Any:
        self.requests.append((deployment, request, request_id))
        script = self.scripts[deployment]
        outcome = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(outcome, Silent):
            await asyncio.sleep(outcome.seconds)
            return BROKEN
        return outcome


class ScriptedPool:
    """A pool with a backend for each script; models as `models` has them, by default each its own."""

    def __init__(
        self,
        scripts: dict[str, Sequence[Outcome]],
        *,
        models: dict[str, str] | None = None,
        proxy: str | None = None,
        endpoint: str = "https://a.openai.azure.com/openai/v1/",
        wire: Wire = "chat",
        **settings: Any,
    ) -> None:
        self.client = ScriptedClient(scripts, proxy)
        entries = tuple(BackendSettings(f"b-{it}", endpoint, it, (models or {}).get(it, it), 1, wire) for it in scripts)
        self.settings = Settings(entries, max_output_tokens=CAP, **settings)
        self.models = self.settings.models
        self.backends = [Backend(entry, {endpoint: cast(Any, self.client)}) for entry in entries]
        self.connected = 0

    def all(self) -> list[Backend]:
        return self.backends

    async def connect(self) -> None:
        self.connected += 1

    @property
    def readiness(self) -> Readiness:
        return Readiness(cast(Any, self))


async def document(of: Readiness) -> tuple[int, dict[str, Any]]:
    status, content = await of.document()
    assert content.endswith(b"}\n")
    return status, json.loads(content)


async def finding(*script: Outcome, **pool: Any) -> dict[str, Any]:
    """The only finding, with its checks in order; the status of the document agrees."""
    scripted = ScriptedPool({"d": script}, **pool)
    status, found = await document(scripted.readiness)
    (member,) = found["backends"]
    assert (status, found["status"]) == ((200, "ready") if member["ready"] else (503, "not_ready"))
    assert list(member["checks"]) == ["token", "role", "deployment", "answers"]
    member["checks"] = tuple(member["checks"].values())
    assert member["ready"] is (member["checks"] == GOOD)
    assert (member["backend"], member["model"]) == ("b-d", "d")
    for answer in script:
        if isinstance(answer, ScriptedAnswer):
            assert answer.closed == 1
    return cast(dict[str, Any], member)


class TestDocument:
    async def test_of_several_models(self) -> None:
        pool = ScriptedPool({"a": [TOO_SHORT], "b": [BROKEN], "c": [BROKEN]}, models={"b": "a"})
        status, found = await document(pool.readiness)
        assert (status, found["status"]) == (503, "not_ready"), "no backend of model c answers"
        assert [it["ready"] for it in found["backends"]] == [True, False, False]

    async def test_one_backend_of_a_model_is_enough(self) -> None:
        pool = ScriptedPool({"a": [BROKEN], "b": [TOO_SHORT]}, models={"b": "a"})
        status, found = await document(pool.readiness)
        assert (status, found["status"]) == (200, "degraded")

    async def test_a_ready_backend_has_no_more_members(self) -> None:
        status, found = await document(ScriptedPool({"d": [TOO_SHORT]}).readiness)
        checks = {"token": True, "role": True, "deployment": True, "answers": True}
        assert (status, found) == (
            200,
            {
                "status": "ready",
                "backends": [{"backend": "b-d", "model": "d", "wire": "chat", "ready": True, "checks": checks}],
            },
        )

    def test_all_members(self) -> None:
        members = Finding("b", "m", True, None, None, False, "c", "remedy", "reason", ["x"], "http://p").members()
        assert members == {
            "backend": "b",
            "model": "m",
            "wire": "chat",
            "ready": False,
            "checks": {"token": True, "role": None, "deployment": None, "answers": False},
            "code": "c",
            "reason": "reason",
            "remedy": "remedy",
            "refused_additions": ["x"],
            "proxy": "http://p",
        }


class TestCache:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        clock = SimpleNamespace(now=5.0)
        monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: clock.now))
        return clock

    async def test_findings_are_cached_for_ten_seconds(self, clock: SimpleNamespace) -> None:
        pool = ScriptedPool({"a": [BROKEN, TOO_SHORT], "b": [TOO_SHORT]})
        cached = pool.readiness
        assert (await document(cached))[0] == 503
        clock.now += 9.9
        assert (await document(cached))[0] == 503
        assert len(pool.client.requests) == 2
        clock.now += 0.1
        assert (await document(cached))[0] == 200
        assert (len(pool.client.requests), pool.connected) == (4, 2)
        clock.now += 9.9
        assert (await document(cached))[0] == 200
        assert len(pool.client.requests) == 4, "the time counts from the last probe"

    async def test_a_clock_that_has_just_begun(self, clock: SimpleNamespace) -> None:
        clock.now = 0.0
        assert (await document(ScriptedPool({"a": [TOO_SHORT]}).readiness))[0] == 200

    @virtual_time
    async def test_concurrent_requests_share_one_probe_of_all_backends_at_once(self) -> None:
        pool = ScriptedPool({"a": [Silent(3)], "b": [Silent(3)]})
        cached = pool.readiness
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(cached.document() for _ in range(50)))
        assert asyncio.get_running_loop().time() - began == 3
        assert len(set(answers)) == 1
        assert len(pool.client.requests) == 2

    @virtual_time
    async def test_a_client_that_disconnects_does_not_cancel_the_probe(self) -> None:
        pool = ScriptedPool({"a": [Silent(3)]})
        cached = pool.readiness
        disconnecting = asyncio.create_task(cached.document())
        waiting = asyncio.create_task(cached.document())
        await asyncio.sleep(1)
        disconnecting.cancel()
        assert (await waiting)[0] == 503
        assert len(pool.client.requests) == 1

    async def test_a_probe_that_fails_is_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = ScriptedPool({"a": [TOO_SHORT]})
        cached = pool.readiness
        connect = pool.connect

        async def fail() -> None:
            raise OSError("no connection")

        monkeypatch.setattr(pool, "connect", fail)
        with pytest.raises(OSError, match=r"^no connection$"):
            await cached.document()
        monkeypatch.setattr(pool, "connect", connect)
        assert (await document(cached))[0] == 200


class TestProbe:
    async def test_it_carries_what_a_request_carries_but_for_the_conversation(self) -> None:
        pool = ScriptedPool({"d": [TOO_SHORT]})
        await document(pool.readiness)
        ((deployment, request, request_id),) = pool.client.requests
        assert (deployment, request_id) == ("d", "ready")
        real = StreamRequest(input="x").on("chat").upstream_request(max_output_tokens=CAP)
        assert request == replace(real, parameters={**real.parameters, "messages": []})
        assert request.parameters["max_completion_tokens"] == CAP

    async def test_to_another_server_too(self) -> None:
        pool = ScriptedPool({"d": [TOO_SHORT]}, endpoint="http://127.0.0.1:1/v1/")
        await document(pool.readiness)
        ((_, request, _),) = pool.client.requests
        assert request.parameters == {
            "messages": [],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": CAP,
            "max_tokens": CAP,
        }

    async def test_it_leaves_no_trace_on_the_backend(self) -> None:
        busy = Refusal(RATE_LIMITED, "429", retry_after=100.0, status=429)
        pool = ScriptedPool({"d": [busy]})
        await document(pool.readiness)
        (backend,) = pool.all()
        assert (backend.cooling_down(), backend.rank()) == (None, (False, 1, 0, 0))

    @pytest.mark.parametrize(
        "error",
        [
            {"message": "[] is too short - 'messages'", "type": "invalid_request_error", "param": None, "code": None},
            {"message": "Invalid 'messages': empty array. Expected an array with minimum length 1"},
            {"message": "The array is empty."},
            {"detail": [{"loc": ["body", "messages"], "msg": "List should have at least 1 item after validation"}]},
            {"message": "Conversation must have a user turn"},
            [{"error": {"message": "contents is not specified: a prompt is required"}}],
        ],
    )
    async def test_a_refusal_of_the_empty_conversation_is_enough(self, error: Any) -> None:
        pool = ScriptedPool({"d": [replace(TOO_SHORT, error=error)]})
        assert (await document(pool.readiness))[0] == 200
        assert len(pool.client.requests) == 1

    @pytest.mark.parametrize("error", [{"message": "no good"}, "Your messages are empty.", None])
    @pytest.mark.parametrize("answers", [False, True])
    async def test_after_any_other_bad_request_one_short_message_tells(self, error: Any, answers: bool) -> None:
        second = ScriptedAnswer(CHUNK) if answers else Refusal(INVALID_REQUEST, "again", status=400, error=error)
        pool = ScriptedPool({"d": [replace(TOO_SHORT, error=error), second]})
        status, found = await document(pool.readiness)
        assert status == (200 if answers else 503)
        assert [it.parameters["messages"] for _, it, _ in pool.client.requests[:2]] == [
            [],
            [{"role": "user", "content": "."}],
        ]
        others = [it.path for _, it, _ in pool.client.requests[2:]]
        assert others == ([] if answers or error is None or isinstance(error, str) else ["/responses", "/embeddings"])
        assert pool.client.requests[1][1] == StreamRequest(input=".").on("chat").upstream_request(max_output_tokens=CAP)
        if not answers:
            assert found["backends"][0]["reason"] == "again"

    @virtual_time
    @pytest.mark.parametrize(("seconds", "reason"), [(14.9, "500"), (15.1, "no answer within 15 s")])
    async def test_a_silent_backend_is_given_up(self, seconds: float, reason: str) -> None:
        member = await finding(Silent(seconds))
        assert member["reason"] == reason
        assert member["code"] == ("upstream_error" if reason == "500" else "upstream_timeout")


NO_INPUT: Final = replace(
    TOO_SHORT,
    error={"message": "Missing required parameter: 'input'.", "param": "input", "code": "missing_required_parameter"},
)
WRONG_OPERATION: Final = replace(
    TOO_SHORT,
    problem=INVALID_REQUEST.with_upstream_error({"code": "OperationNotSupported"}),
    error={"code": "OperationNotSupported", "message": "The chatCompletion operation does not work with messages."},
)
EMBEDDINGS: Final = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"model":"m"}'


class TestWires:
    async def test_the_responses_api(self) -> None:
        pool = ScriptedPool({"d": [NO_INPUT]}, wire="responses")
        status, found = await document(pool.readiness)
        assert (status, found["backends"][0]["wire"]) == (200, "responses")
        ((_, request, _),) = pool.client.requests
        assert (request.path, request.parameters) == (
            "/responses",
            {"input": [], "stream": True, "store": False, "max_output_tokens": CAP},
        )

    @pytest.mark.parametrize(
        "error",
        [
            {"message": "'$.input' is invalid. Please check the API reference."},
            {"message": 'One of "input" or "previous_response_id" must be provided.'},
            {"message": "Array too short.", "param": "input"},
            {"detail": [{"loc": ["body", "input"], "msg": "List should have at least 1 item after validation"}]},
        ],
    )
    @pytest.mark.parametrize("wire", ["responses", "embeddings"])
    async def test_a_refusal_of_the_empty_input_is_enough(self, wire: Wire, error: Any) -> None:
        pool = ScriptedPool({"d": [replace(TOO_SHORT, error=error)]}, wire=wire)
        assert (await document(pool.readiness))[0] == 200
        assert len(pool.client.requests) == 1

    async def test_embeddings(self) -> None:
        unclear = replace(TOO_SHORT, error={"message": "no good"})
        pool = ScriptedPool({"d": [unclear, ScriptedAnswer(EMBEDDINGS)]}, wire="embeddings")
        assert (await document(pool.readiness))[0] == 200
        sent = [(it.path, msgspec.json.encode(it.parameters)) for _, it, _ in pool.client.requests]
        assert sent == [("/embeddings", b'{"input":[]}'), ("/embeddings", b'{"input":"."}')]

    @pytest.mark.parametrize("wire", ["responses", "embeddings"])
    async def test_an_answer_is_read_by_its_wire(self, wire: Wire) -> None:
        text = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
        assert (await finding(ScriptedAnswer(text if wire == "responses" else EMBEDDINGS), wire=wire))["ready"]
        wrong = await finding(ScriptedAnswer(CHUNK), wire=wire)
        assert wrong["code"] == "upstream_error"

    @pytest.mark.parametrize(
        ("stated", "script", "right"),
        [
            ("chat", [WRONG_OPERATION, NO_INPUT], "responses"),
            ("chat", [WRONG_OPERATION, WRONG_OPERATION, NO_INPUT], "embeddings"),
            ("responses", [WRONG_OPERATION, WRONG_OPERATION, ScriptedAnswer(EMBEDDINGS)], "embeddings"),
            ("responses", [Refusal(NOT_CONFIGURED, "404", status=404, error={"code": "404"}), TOO_SHORT], "chat"),
            ("embeddings", [WRONG_OPERATION, TOO_SHORT], "chat"),
            (
                "chat",
                [
                    Refusal(
                        MODEL_NOT_FOUND,
                        "404",
                        status=404,
                        error={
                            "message": "This model is only supported in v1/responses and not in v1/chat/completions."
                        },
                    ),
                    NO_INPUT,
                ],
                "responses",
            ),
        ],
    )
    async def test_a_wrong_wire_is_found_out(self, stated: Wire, script: list[Outcome], right: Wire) -> None:
        names = {"chat": "chat completions", "responses": "Responses API", "embeddings": "embeddings"}
        member = await finding(*script, wire=stated)
        assert (member["wire"], member["ready"]) == (stated, False)
        assert isinstance(script[0], Refusal)
        assert member["reason"] == script[0].reason
        assert member["remedy"] == (
            f'The deployment d does not have the wire "{stated}" ({names[stated]}), but "{right}" ({names[right]}): '
            f'set "wire": "{right}" for it in the app setting AZURE_OPENAI_BACKENDS; Terraform: '
            "open_ai_instances[].models[].wire."
        )

    @pytest.mark.parametrize(
        "refusal",
        [
            BROKEN,
            Refusal(MODEL_NOT_FOUND, "404", status=404, error={"code": "DeploymentNotFound", "message": "No d."}),
            Refusal(NOT_CONFIGURED, "404", status=404, error="<html>"),
            Refusal(MODEL_NOT_FOUND, "404", status=404, error="no chat model"),
        ],
    )
    async def test_other_wires_are_not_tried_for_another_reason(self, refusal: Refusal) -> None:
        pool = ScriptedPool({"d": [refusal, TOO_SHORT]})
        status, _ = await document(pool.readiness)
        assert (status, len(pool.client.requests)) == (503, 1)

    async def test_a_deployment_with_none_of_them(self) -> None:
        pool = ScriptedPool({"d": [WRONG_OPERATION, WRONG_OPERATION, WRONG_OPERATION]}, wire="responses")
        status, found = await document(pool.readiness)
        assert status == 503
        assert [it.path for _, it, _ in pool.client.requests] == ["/responses", "/chat/completions", "/embeddings"]
        assert found["backends"][0]["remedy"] == (
            "The deployment d is of a model that has no Responses API: name another one in the app setting "
            "AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS."
        )


def refused(name: str) -> Refusal:
    return Refusal(INVALID_REQUEST, f"no {name}", status=400, error={"message": "unknown parameter", "param": name})


class TestRefusedAdditions:
    async def test_they_are_taken_back_and_remembered(self) -> None:
        pool = ScriptedPool({"d": [refused("stream_options"), refused("max_completion_tokens"), TOO_SHORT]})
        status, found = await document(pool.readiness)
        assert status == 200
        assert found["backends"][0]["refused_additions"] == ["max_completion_tokens", "stream_options"]
        assert [sorted(it.parameters) for _, it, _ in pool.client.requests] == [
            ["max_completion_tokens", "messages", "stream", "stream_options"],
            ["max_completion_tokens", "messages", "stream"],
            ["max_tokens", "messages", "stream"],
        ]
        (backend,) = pool.all()
        assert backend.refused.names == {"stream_options", "max_completion_tokens"}

    async def test_also_in_an_event(self) -> None:
        event = b'data: {"error":{"message":"unknown parameter","param":"stream_options","code":400}}\n\n'
        answer = ScriptedAnswer(event)
        member = await finding(answer, ScriptedAnswer(CHUNK))
        assert member["refused_additions"] == ["stream_options"]
        assert answer.closed == 1

    async def test_a_deployment_that_refuses_everything_is_not_ready(self) -> None:
        pool = ScriptedPool({"d": [refused("stream_options")]})
        status, found = await document(pool.readiness)
        (member,) = found["backends"]
        assert (status, member["code"]) == (503, "upstream_error")
        assert member["reason"] == "no stream_options, about a parameter that this app adds"
        assert pool.all()[0].refused.names == frozenset()
        assert len(pool.client.requests) == 2


HTML: Final = b"<!doctype html><html><body>Sign in</body></html>"


class TestAnswers:
    @pytest.mark.parametrize(
        "reads",
        [
            (CHUNK,),
            (b": ping\n\n", CHUNK[:10], CHUNK[10:]),
            (b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n"),
            (b'{"choices":[{"message":{"content":"x"}}]}',),
            (b'\n {"choices"', b':[{"message":{"content":"x"}}]}'),
        ],
    )
    async def test_of_a_model(self, reads: tuple[bytes, ...]) -> None:
        assert (await finding(ScriptedAnswer(*reads)))["checks"] == GOOD

    async def test_no_more_is_read_than_the_first_output(self) -> None:
        answer = ScriptedAnswer(CHUNK, ConnectionResetError())
        assert (await finding(answer))["ready"]

    @pytest.mark.parametrize(
        ("reads", "reason"),
        [
            ((HTML,), None),
            ((HTML[:7], HTML[7:]), None),
            ((), None),
            ((b"\n", b""), None),
            ((b'{"ok":true}',), None),
            ((b"{",), None),
            ((ConnectionResetError(),), "the model service's answer broke off (ConnectionResetError)"),
            ((b": ping\n\n", ConnectionResetError()), "the model service's answer broke off (ConnectionResetError)"),
        ],
    )
    async def test_of_something_else(self, reads: tuple[Any, ...], reason: str | None) -> None:
        """`reason`: None where it is the decoder's."""
        member = await finding(ScriptedAnswer(*reads))
        assert member["checks"] == (True, None, None, False)
        assert (member["code"], member["remedy"]) == ("upstream_error", ADDRESS)
        assert member["reason"] == reason if reason else member["reason"].startswith("the model service's answer ")

    async def test_an_error_in_place_of_an_answer(self) -> None:
        member = await finding(ScriptedAnswer(b'{"error":"Unexpected endpoint or method."}'))
        assert member["checks"] == (True, None, None, False)
        assert member["remedy"] == ADDRESS
        member = await finding(ScriptedAnswer(b'data: {"error":{"code":"rate_limit_exceeded"}}\n\n'))
        assert (member["code"], member["checks"]) == ("rate_limited", (True, None, None, False))


KEY: Final = {"api_key": "k"}
MANAGED: Final = {"identity": Identity("managed", "s", "the-client")}
SYSTEM: Final = {"identity": Identity("managed", "s")}
DEVELOPER: Final = {"identity": Identity("developer", "s")}
NO_TOKEN: Final = Refusal(UPSTREAM_AUTH, "no token")
NO_ROLE: Final = Refusal(UPSTREAM_AUTH, "401", status=401)
ROLE_REMEDY: Final = (
    'Give {} the role "Cognitive Services OpenAI User" on the Azure OpenAI account of this backend (terraform apply '
    "does); it takes some minutes to become effective. If it has the role, the account's network rules keep the app "
    "out: see the landing zone variables."
)
TOKEN_REMEDY: Final = (
    "The managed identity gives no token: check that it is assigned to the Function App and that the app setting "
    "AZURE_CLIENT_ID, now {}, is its client id."
)
KEY_REMEDY: Final = (
    "The model service refuses the key, which was sent in the header {}. Check the app setting AZURE_OPENAI_API_KEY, "
    "or remove it and let the app sign in with its identity. A gateway may look for the key in another header, such "
    "as api-key or Ocp-Apim-Subscription-Key: set AZURE_OPENAI_API_KEY_HEADER."
)
FAILS: Final = "The model service fails. If this lasts, look at Azure's service health for the account's region."
UNREACHABLE: Final = (
    "The model service can't be reached: check the address in AZURE_OPENAI_ENDPOINT or AZURE_OPENAI_BACKENDS, that it "
    "is running, and that the network and its DNS lead to it."
)
THROUGH_THE_PROXY: Final = (
    "The model service can't be reached through the proxy http://p:1 that the environment names: check the proxy, or "
    "list the model service's host in NO_PROXY, and check the address in AZURE_OPENAI_ENDPOINT or "
    "AZURE_OPENAI_BACKENDS."
)
BUSY_REMEDY: Final = (
    "The deployment is at its limit. Wait, raise its capacity (Terraform: open_ai_instances[].models[].capacity, in "
    "thousands of tokens a minute), or add a deployment of the model on another account."
)

# What a refusal means: the settings, the checks that passed, and the remedy.
REMEDIES: Final[list[tuple[Refusal, dict[str, Any], tuple[bool | None, ...], str]]] = [
    (NO_TOKEN, MANAGED, (False, None, None, None), TOKEN_REMEDY.format("the-client")),
    (NO_TOKEN, SYSTEM, (False, None, None, None), TOKEN_REMEDY.format("(not set: the system-assigned one)")),
    (
        NO_TOKEN,
        DEVELOPER,
        (False, None, None, None),
        "No developer sign-in was found: run `az login` (or `azd auth login`) in the account that has the role.",
    ),
    (NO_ROLE, MANAGED, (True, False, None, None), ROLE_REMEDY.format("the managed identity the-client")),
    (NO_ROLE, SYSTEM, (True, False, None, None), ROLE_REMEDY.format("the managed identity of the Function App")),
    (NO_ROLE, DEVELOPER, (True, False, None, None), ROLE_REMEDY.format("your own account")),
    (NO_ROLE, KEY, (True, False, None, None), KEY_REMEDY.format("Authorization")),
    (NO_ROLE, {**KEY, "api_key_header": "api-key"}, (True, False, None, None), KEY_REMEDY.format("api-key")),
    (
        NO_ROLE,
        {},
        (True, False, None, None),
        "The model service requires a key: set the app setting AZURE_OPENAI_API_KEY, or AZURE_OPENAI_TOKEN_SCOPE if it "
        "takes Entra tokens.",
    ),
    (
        Refusal(MODEL_NOT_FOUND, "404", status=404),
        {},
        (True, True, False, None),
        "The account has no deployment d. Name one that it has in the app setting AZURE_OPENAI_DEPLOYMENTS or "
        "AZURE_OPENAI_BACKENDS, or create it: Terraform variable open_ai_instances[].models. A new deployment takes "
        "some minutes to appear.",
    ),
    (
        Refusal(NOT_CONFIGURED, "404", status=404),
        {},
        (True, True, False, None),
        "There is no chat completions endpoint at this address: check AZURE_OPENAI_ENDPOINT or AZURE_OPENAI_BACKENDS; "
        "it must be an Azure OpenAI account's address or end in /v1.",
    ),
    (
        WRONG_OPERATION,
        {},
        (True, True, False, None),
        "The deployment d is of a model that has no chat completions: name another one in the app setting "
        "AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS.",
    ),
    (
        replace(TOO_SHORT, error={"message": "no good"}),
        {},
        (True, True, False, None),
        "The deployment d refuses even a request with one short message: check that it is a model with chat "
        "completions, or name another one in the app setting AZURE_OPENAI_DEPLOYMENTS or AZURE_OPENAI_BACKENDS.",
    ),
    (replace(TOO_SHORT, error=HTML.decode()), {}, (True, True, False, None), ADDRESS),
    (Refusal(RATE_LIMITED, "429", status=429), {}, (True, True, True, False), BUSY_REMEDY),
    (BROKEN, {}, (True, True, True, False), FAILS),
    *[
        (Refusal(UPSTREAM_ERROR, str(status), status=status), {}, (True, True, True, False), ADDRESS)
        for status in (405, 501)
    ],
    (Refusal(CONTEXT_LENGTH_EXCEEDED, "400", status=400), {}, (True, True, True, False), FAILS),
    (Refusal(DEADLINE_EXCEEDED, "?"), {}, (True, None, None, False), FAILS),
    (Refusal(UPSTREAM_ERROR, "no connection"), {}, (True, None, None, False), UNREACHABLE),
    (Refusal(UPSTREAM_ERROR, "no connection"), {"proxy": "http://p:1"}, (True, None, None, False), THROUGH_THE_PROXY),
    (BROKEN, {"proxy": "http://p:1"}, (True, True, True, False), FAILS),
    (
        Refusal(UPSTREAM_TIMEOUT, "no connection in time"),
        {},
        (True, None, None, False),
        "The model service does not answer in time: check that the network leads to it, then its status.",
    ),
    (
        Refusal(UPSTREAM_TIMEOUT, "504", status=504),
        {},
        (True, True, True, False),
        "The model service does not answer in time: check that the network leads to it, then its status.",
    ),
]


@pytest.mark.parametrize(
    ("refusal", "settings", "checks", "remedy"),
    REMEDIES,
    ids=[f"{it[0].problem.code}-{number}" for number, it in enumerate(REMEDIES)],
)
async def test_a_refusal_and_its_remedy(
    refusal: Refusal, settings: dict[str, Any], checks: tuple[bool | None, ...], remedy: str
) -> None:
    member = await finding(refusal, **settings)
    assert member["checks"] == checks
    assert (member["code"], member["reason"], member["remedy"]) == (refusal.problem.code, refusal.reason, remedy)
    assert member.get("proxy") == settings.get("proxy")
