"""The app against its own OpenAPI description: what fits it is answered as it says, and what does not is refused by the
name of what is wrong.

`make test ARGS=tests/end_to_end/test_openapi.py OPENAPI_EXAMPLES=2000` looks for longer.
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

from local import faults
from local.model_service import ModelService
from relay import description
from tests.end_to_end.answers import DOCUMENT as JSON
from tests.end_to_end.answers import PLAIN, STREAMS, Heard, understand
from tests.end_to_end.hosting import HostedApp

KEY: Final = "a-function-key"
DOCUMENT: Final[dict[str, Any]] = json.loads(description.document())
SCHEMA: Final = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS: Final = {
    (path, method): it for path, methods in DOCUMENT["paths"].items() for method, it in methods.items()
}
GUARDED: Final = [where for where, operation in OPERATIONS.items() if "security" in operation]
ASKING: Final = [where for where, operation in OPERATIONS.items() if "requestBody" in operation]
OWN: Final = DOCUMENT["components"]["schemas"]["Chat"]["properties"]

load_all_checks()
CONFORMITY: Final = CHECKS.get_by_names(
    [
        "response_schema_conformance",
        "response_headers_conformance",
        "content_type_conformance",
        "status_code_conformance",
    ]
)
SCHEMA_CONFORMITY: Final = CONFORMITY[0]

# Faults that take their time, or a lot of it, in short.
SHORT: Final = {"long": "long-20000", "huge-chunk": "huge-chunk-20000", "flood": "flood-500"}
FAULTS: Final = [SHORT.get(fault, fault) for fault in faults.FAULTS]

EXAMPLES: Final = int(os.environ.get("OPENAPI_EXAMPLES", "60"))
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
    """The app, which wants a key."""
    return functions_app(env=app_settings, key=KEY)


@pytest.fixture(scope="module")
def failing_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The same with a deployment for each fault."""
    deployments = ",".join(f"fault-{fault}" for fault in FAULTS)
    return functions_app(
        env=app_settings | {"AZURE_OPENAI_DEPLOYMENTS": deployments, "UPSTREAM_SILENCE_TIMEOUT_SECONDS": "0.3"},
        key=KEY,
    )


type Send = Callable[..., requests.Response]


@pytest.fixture
def send(described_app: HostedApp) -> Iterator[Send]:
    """Sends a request and reads the answer to its end, and holds it against the description, whatever it is."""
    with requests.Session() as session:

        def send(case: Case, *, accept: str = "*/*", app: HostedApp = described_app) -> requests.Response:
            response = case.call(base_url=app.url, session=session, headers={"Accept": accept}, timeout=20)
            case.validate_response(response, checks=CONFORMITY, excluded_checks=unless_json(response))
            return response

        yield send


def unless_json(response: Any) -> list[Any]:
    """The schema of a stream is beside the point: the checks take it for that of an event (as OpenAPI 3.2 has it)."""
    return [] if "json" in response.headers["content-type"][0] else [SCHEMA_CONFORMITY]


def requests_for(where: tuple[str, str], mode: GenerationMode) -> st.SearchStrategy[Case]:
    """Requests for an operation, with the right key: what is wrong with them is in their bodies."""
    path, method = where
    return SCHEMA[path][method.upper()].as_strategy(generation_mode=mode, headers={"x-functions-key": KEY})


def test_the_app_serves_the_description(described_app: HostedApp) -> None:
    assert requests.get(described_app.url + "/openapi", timeout=20).json() == DOCUMENT


@pytest.mark.parametrize("where", [where for where in OPERATIONS if where not in ASKING], ids=" ".join)
async def test_what_asks_nothing_is_answered(send: Send, model_service: ModelService, where: tuple[str, str]) -> None:
    @settings(fuzz, max_examples=5)
    @given(requests_for(where, GenerationMode.POSITIVE))
    def fitting(case: Case) -> None:
        assert send(case).status_code == 200

    await asyncio.to_thread(fitting)


async def test_a_prompt_that_fits_is_answered(send: Send, model_service: ModelService) -> None:
    @fuzz
    @given(requests_for(("/stream", "post"), GenerationMode.POSITIVE), st.sampled_from(STREAMS))
    def fitting(case: Case, accept: str) -> None:
        if case.body.get("model"):
            assert send(case, accept=accept).status_code == 404
            del case.body["model"]
        form = accept if case.body.get("stream", True) else JSON
        response = send(case, accept=accept)
        heard = Heard(
            status=response.status_code, headers=httpx.Headers({"content-type": response.headers["content-type"][0]})
        )
        heard.raw = response.content
        understand(heard, form)
        assert heard.endings == 1
        assert heard.text
        assert form == PLAIN or heard.done

    await asyncio.to_thread(fitting)


async def test_openais_request_that_fits_is_answered(send: Send, model_service: ModelService) -> None:
    """What goes beyond this app's own fields is the model service's to refuse."""

    @fuzz
    @given(requests_for(("/v1/chat/completions", "post"), GenerationMode.POSITIVE), st.booleans())
    def fitting(case: Case, understood: bool) -> None:
        if understood:
            case.body = {name: case.body[name] for name in case.body if name in OWN}
            case.body["messages"] = [{"role": "user", "content": "Say something."}]
        if case.body.get("model"):
            assert send(case).status_code in (400, 404)
            del case.body["model"]
        assert send(case).status_code in ((200,) if understood else (200, 400))

    await asyncio.to_thread(fitting)


@pytest.mark.parametrize("where", ASKING, ids=" ".join)
async def test_a_request_that_does_not_fit_is_refused_by_name(
    send: Send, model_service: ModelService, where: tuple[str, str]
) -> None:
    schema = OPERATIONS[where]["requestBody"]["content"]["application/json"]["schema"]
    body_validator = jsonschema_rs.validator_for(schema | {"components": DOCUMENT["components"]})
    properties = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]

    @fuzz
    @given(requests_for(where, GenerationMode.NEGATIVE))
    def unfitting(case: Case) -> None:
        response = send(case)
        assert response.status_code == 400
        problem = response.json()
        if not isinstance(case.body, dict):
            return
        wrong = wrong_fields(case.body, body_validator, properties)
        assert wrong
        if where == ("/stream", "post"):
            named = [error["field"] for error in problem["errors"]]
            assert all(any(names(field, it) for it in named) for field in wrong) or len(named) == 20
        else:
            named = [problem["error"]["param"]]
            assert problem["error"]["message"]
        assert all(any(names(field, it) for field in wrong) for it in named)

    await asyncio.to_thread(unfitting)
    assert model_service.requests == []


def wrong_fields(body: dict[str, Any], validator: Any, properties: dict[str, Any]) -> set[str]:
    """The fields that the description objects to: wrong, unknown or missing."""
    wrong = set()
    for error in validator.iter_errors(body):
        if error.instance_path:
            wrong.add(str(error.instance_path[0]))
        elif error.schema_path[-1] == "required":
            wrong |= {name for name in properties if name not in body and f'"{name}"' in error.message}
        else:
            wrong |= body.keys() - properties.keys()
    return wrong


def names(field: str, told: str) -> bool:
    """Whether `told`, such as `input[2].role`, speaks of the field; a long name is told by its beginning."""
    return told == field[:100] or told.startswith((f"{field}.", f"{field}["))


@pytest.mark.parametrize("where", ASKING, ids=" ".join)
async def test_a_failure_is_told_as_described(
    send: Send, failing_app: HostedApp, model_service: ModelService, where: tuple[str, str]
) -> None:
    path, method = where
    message = {"role": "user", "content": "Say something."}
    body = {"messages": [message]} if path.startswith("/v1/") else {"input": [message]}
    statuses = set()

    def ask(fault: str, *, stream: bool) -> None:
        case = SCHEMA[path][method.upper()].Case(
            body=body | {"stream": stream, "model": fault},
            headers={"x-functions-key": KEY},
            media_type="application/json",
        )
        statuses.add(send(case, app=failing_app).status_code)

    await asyncio.gather(
        *[asyncio.to_thread(ask, f"fault-{fault}", stream=stream) for fault in FAULTS for stream in (True, False)]
    )
    assert statuses == {200, 400, 404, 429, 502, 504}


@pytest.mark.parametrize("where", OPERATIONS, ids=" ".join)
async def test_the_key_is_wanted_where_the_description_says_so(
    described_app: HostedApp, model_service: ModelService, where: tuple[str, str]
) -> None:
    path, method = where

    def status(headers: dict[str, str]) -> int:
        body = {"input": "x", "messages": []} if where in ASKING else None
        return requests.request(method, described_app.url + path, json=body, headers=headers, timeout=20).status_code

    for headers in ({}, {"x-functions-key": "another"}):
        assert (await asyncio.to_thread(status, headers) == 401) == (where in GUARDED)
