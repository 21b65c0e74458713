"""The app against its own OpenAPI description: valid requests get responses that conform to it, and invalid ones get an
error that names the wrong fields.

`OPENAPI_EXAMPLES=2000 make test ARGS=tests/end_to_end/test_openapi.py` tries more requests.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from local.model_service import DEFAULT_DEPLOYMENT, ModelService, faults
from relay import openapi
from tests.end_to_end.answers import DOCUMENT as JSON
from tests.end_to_end.answers import PLAIN, STREAMS, ReceivedAnswer, parse_answer
from tests.end_to_end.hosting import HostedApp

KEY: Final = "a-function-key"
DOCUMENT: Final[dict[str, Any]] = json.loads(openapi.document())


def with_function_key(document: dict[str, Any]) -> dict[str, Any]:
    """Without the keys of named callers: a request in which one is wrong is invalid only where callers are named."""
    kept: dict[str, Any] = json.loads(json.dumps(document))
    schemes = kept["components"]["securitySchemes"]
    kept["components"]["securitySchemes"] = {"function_key": schemes["function_key"]}
    for operations in kept["paths"].values():
        for operation in operations.values():
            if "security" in operation:
                operation["security"] = [it for it in operation["security"] if "function_key" in it]
    return kept


SCHEMA: Final = schemathesis.openapi.from_dict(with_function_key(DOCUMENT))
# Operations by path and method.
OPERATIONS: Final = {
    (path, method): it for path, methods in DOCUMENT["paths"].items() for method, it in methods.items()
}
KEYED: Final = [operation for operation, it in OPERATIONS.items() if "security" in it]
WITH_BODY: Final = [operation for operation, it in OPERATIONS.items() if "requestBody" in it]
# Azure's addresses of OpenAI's API lead to the same functions (test_openai_paths.py).
TRIED: Final = [operation for operation in OPERATIONS if not operation[0].startswith("/openai/")]
TRIED_WITH_BODY: Final = [operation for operation in TRIED if operation in WITH_BODY]
STORED: Final = [operation for operation in TRIED if "{response_id}" in operation[0]]
WITHOUT_BODY: Final = [operation for operation in TRIED if operation not in (*WITH_BODY, *STORED)]
# `n` is left out: the model service has a limit of its own for it.
OWN_MEMBERS: Final = DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"].keys() - {"n"}

load_all_checks()
CONFORMANCE: Final = CHECKS.get_by_names(
    [
        "response_schema_conformance",
        "response_headers_conformance",
        "content_type_conformance",
        "status_code_conformance",
    ]
)
SCHEMA_CONFORMANCE: Final = CONFORMANCE[0]

# Shorter versions of the faults with long answers.
SHORT: Final = {"long": "long-20000", "huge-chunk": "huge-chunk-20000", "flood": "flood-500"}
FAULTS: Final = [SHORT.get(name, name) for name, fault in faults.FAULTS.items() if "chat" in fault.wires]

EXAMPLES: Final = int(os.environ.get("OPENAPI_EXAMPLES", "40"))
pytestmark = pytest.mark.timeout(60 + EXAMPLES)
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@pytest.fixture(scope="module")
def described_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app, which requires a key."""
    return functions_app(env=app_settings, key=KEY)


@pytest.fixture(scope="module")
def failing_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The same, with a deployment for each fault."""
    deployments = ",".join(f"fault-{fault}" for fault in FAULTS)
    return functions_app(
        env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": deployments, "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "1"},
        key=KEY,
    )


type Operation = tuple[str, str]
type Send = Callable[..., requests.Response]


@pytest.fixture
def send(described_app: HostedApp) -> Iterator[Send]:
    """Sends a request, reads the response to its end, and checks that it conforms to the description."""
    with requests.Session() as session:

        def send(case: Case, *, accept: str = "*/*", app: HostedApp = described_app) -> requests.Response:
            response = case.call(
                base_url=app.url, session=session, headers={"Accept": accept}, timeout=30, allow_redirects=False
            )
            case.validate_response(response, checks=CONFORMANCE, excluded_checks=excluded_checks(response))
            return response

        yield send


def excluded_checks(response: Any) -> list[Any]:
    """The schema check does not apply to a stream: it takes the schema for that of an event (as in OpenAPI 3.2)."""
    return [] if "json" in response.headers.get("content-type", [""])[0] else [SCHEMA_CONFORMANCE]


def requests_for(operation: Operation, mode: GenerationMode) -> st.SearchStrategy[Case]:
    """Requests for an operation, with the right key: the invalid ones have an invalid body."""
    path, method = operation
    return SCHEMA[path][method.upper()].as_strategy(generation_mode=mode, headers={"x-functions-key": KEY})


def test_the_app_serves_the_description(described_app: HostedApp) -> None:
    assert requests.get(described_app.url + "/openapi", timeout=30).json() == DOCUMENT


@pytest.mark.parametrize("operation", WITHOUT_BODY, ids=" ".join)
async def test_request_without_a_body(send: Send, model_service: ModelService, operation: Operation) -> None:
    @settings(fuzz, max_examples=5)
    @given(requests_for(operation, GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        expected = 302 if operation[0] == "/" else 404 if case.path_parameters else 200
        assert send(case).status_code == expected
        if "model" in case.path_parameters:
            case.path_parameters["model"] = DEFAULT_DEPLOYMENT
            assert send(case).status_code == 200

    await asyncio.to_thread(check)


@pytest.mark.parametrize("operation", STORED, ids=" ".join)
async def test_request_for_a_stored_response(send: Send, model_service: ModelService, operation: Operation) -> None:
    """No account has a response with an id like these; the model service refuses ids that begin otherwise."""

    @settings(fuzz, max_examples=(EXAMPLES + 3) // 4)
    @given(requests_for(operation, GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        assert send(case).status_code in (400, 404)
        case.path_parameters["response_id"] = "resp_1"
        assert send(case).status_code == 404

    await asyncio.to_thread(check)


async def test_valid_response_request(send: Send, model_service: ModelService) -> None:
    """Members that the app does not read may be refused by the model service."""

    @fuzz
    @given(requests_for(("/v1/responses", "post"), GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        assert send(case).status_code in (200, 400, 404)
        case.body = {name: case.body[name] for name in case.body if name in ("stream", "background")} | {"input": "x"}
        assert send(case).status_code == 200

    await asyncio.to_thread(check)


async def test_valid_stream_request(send: Send, model_service: ModelService) -> None:
    @fuzz
    @given(requests_for(("/stream", "post"), GenerationMode.POSITIVE), st.sampled_from(STREAMS))
    def check(case: Case, accept: str) -> None:
        if case.body.pop("resumable", False):
            case.body["resumable"] = True
            assert send(case, accept=accept).status_code == 400, "the app does not allow it"
            del case.body["resumable"]
        if case.body.get("model"):
            assert send(case, accept=accept).status_code == 404
            del case.body["model"]
        media_type = accept if case.body.get("stream", True) else JSON
        response = send(case, accept=accept)
        headers = httpx.Headers({"content-type": response.headers["content-type"][0]})
        received = ReceivedAnswer(response.status_code, headers, response.content)
        parse_answer(received, media_type)
        assert received.endings == 1
        assert received.text
        assert media_type == PLAIN or received.done

    await asyncio.to_thread(check)


async def test_valid_chat_completion_request(send: Send, model_service: ModelService) -> None:
    """Members that the app does not read may be refused by the model service."""

    @fuzz
    @given(requests_for(("/v1/chat/completions", "post"), GenerationMode.POSITIVE), st.booleans())
    def check(case: Case, own_members_only: bool) -> None:
        if own_members_only:
            case.body = {name: case.body[name] for name in case.body if name in OWN_MEMBERS}
            case.body["messages"] = [{"role": "user", "content": "Say something."}]
        if case.body.get("model"):
            assert send(case).status_code in (400, 404)
            del case.body["model"]
        assert send(case).status_code in ((200,) if own_members_only else (200, 400))

    await asyncio.to_thread(check)


@pytest.mark.parametrize("operation", TRIED_WITH_BODY, ids=" ".join)
async def test_invalid_request_is_rejected_by_field(
    send: Send, model_service: ModelService, operation: Operation
) -> None:
    schema = OPERATIONS[operation]["requestBody"]["content"]["application/json"]["schema"]
    body_validator = jsonschema_rs.validator_for(schema | {"components": DOCUMENT["components"]})
    properties = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]

    @fuzz
    @given(requests_for(operation, GenerationMode.NEGATIVE))
    def check(case: Case) -> None:
        response = send(case)
        assert response.status_code == 400
        problem = response.json()
        if not isinstance(case.body, dict):
            return
        wrong = wrong_fields(case.body, body_validator, properties)
        assert wrong
        if operation == ("/stream", "post"):
            named = [error["field"] for error in problem["errors"]]
            # Of a long body the first wrong message is named, and no other field.
            long = len(json.dumps(case.body)) > 16 * 1024
            assert all(any(names(field, it) for it in named) for field in wrong) or len(named) == 20 or long
        else:
            named = [problem["error"]["param"]]
            assert problem["error"]["message"]
        assert all(any(names(field, it) for field in wrong) for it in named)

    await asyncio.to_thread(check)
    assert model_service.requests == []


def wrong_fields(body: dict[str, Any], validator: Any, properties: dict[str, Any]) -> set[str]:
    """The fields that are invalid by the description: wrong, unknown or missing."""
    wrong = set()
    for error in validator.iter_errors(body):
        if error.instance_path:
            wrong.add(str(error.instance_path[0]))
        elif error.schema_path[-1] == "required":
            wrong |= {name for name in properties if name not in body and f'"{name}"' in error.message}
        else:
            wrong |= body.keys() - properties.keys()
    return wrong


def names(field: str, path: str) -> bool:
    """Whether `path`, such as `input[2].role`, is in the field; of a long name it has the beginning."""
    return path == field[:100] or path.startswith((f"{field}.", f"{field}["))


@pytest.mark.parametrize("operation", TRIED_WITH_BODY, ids=" ".join)
async def test_failures_conform_to_the_description(
    send: Send, failing_app: HostedApp, model_service: ModelService, operation: Operation
) -> None:
    path, method = operation
    message = {"role": "user", "content": "Say something."}
    body: dict[str, Any] = {"messages": [message]} if "chat" in path else {"input": "Say something."}
    statuses = set()

    def send_to(fault: str, *, stream: bool) -> None:
        members = {"model": fault} if "compact" in path else {"stream": stream, "model": fault}
        case = SCHEMA[path][method.upper()].Case(
            body=body | members,
            path_parameters={"deployment": fault},
            headers={"x-functions-key": KEY},
            media_type="application/json",
        )
        try:
            statuses.add(send(case, app=failing_app).status_code)
        except requests.exceptions.ChunkedEncodingError:
            statuses.add(200)  # a failure midway, after which the transfer breaks off
            assert stream

    await asyncio.gather(
        *[asyncio.to_thread(send_to, f"fault-{fault}", stream=stream) for fault in FAULTS for stream in (True, False)]
    )
    assert statuses == {200, 400, 404, 429, 502, 504}


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
async def test_the_key_is_required_where_the_description_says_so(
    described_app: HostedApp, model_service: ModelService, operation: Operation
) -> None:
    path, method = operation

    def status(headers: dict[str, str]) -> int:
        body = {"input": "x", "messages": []} if operation in WITH_BODY else None
        url = described_app.url + path.format(model="x", deployment="x", response_id="resp_1", name="x")
        return requests.request(method, url, json=body, headers=headers, timeout=30).status_code

    for headers in ({}, {"x-functions-key": "another"}):
        assert (await asyncio.to_thread(status, headers) == 401) == (operation in KEYED)
