"""The official Python client pointed at the model service directly and through the app, for each fault of the service.

Through the app it gets the same text, finish reason and usage, or an error that is clearer; never less: no failure that
was raised directly ends as an answer, and no answer that was complete ends as a failure.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx2
import openai
import pytest

from local.model_service import ModelService, faults
from local.model_service.faults.fault import CHAT, EMBEDDINGS, RESPONSES
from relay.problems import CATALOGUE
from tests.end_to_end.hosting import HostedApp

TOKENS: Final = ["Leaves", " of", " gr\u00fcn", " \U0001f33f", ",", " and", " one", " more", "\n", "line", "."]
MESSAGES: Final[Any] = [{"role": "user", "content": "Say something."}]
SILENCE_TIMEOUT: Final = 5.0  # seconds, for the app and for the client that asks directly
CODES: Final = frozenset(problem.code for problem in CATALOGUE)

# Arguments that take less time than a fault's defaults, or that are needed for it to happen at all.
ARGUMENTS: Final = {
    "429-large": "429-large-1-60",
    "limit": "limit-12288",
    "long": "long-3000",
    "huge-chunk": "huge-chunk-40000",
    "flood": "flood-300",
}
# This client takes seconds for single bytes; and most of the codes of a failed response are like the others. Other
# tests have all of them.
_ALIKE: Final = [f"failed-{code.replace('_', '-')}" for code in faults.RESPONSE_ERROR_CODES[3:]]
EXCLUDED: Final = frozenset({"bytes", *_ALIKE})
# An answer labelled as what it is not: this client has no decoder of it, and ignores the label.
MISLABELLED: Final = frozenset({"brotli"})

type Usage = tuple[int, int] | None


@dataclass(frozen=True)
class Result:
    """What a program gets: its text, why the answer ended and its usage; and the exception, if there is one."""

    text: str = ""
    reason: str | None = None
    usage: Usage = None
    error: Exception | None = None

    @property
    def status(self) -> int | None:
        return self.error.status_code if isinstance(self.error, openai.APIStatusError) else None


type Ask = Callable[[openai.AsyncOpenAI, str], AsyncIterator[Result]]


async def chat_stream(client: openai.AsyncOpenAI, model: str) -> AsyncIterator[Result]:
    result = Result()
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await client.chat.completions.create(model=model, messages=MESSAGES, **options):
        for choice in chunk.choices or ():
            text = (choice.delta and (choice.delta.content or choice.delta.refusal)) or ""
            result = replace(result, text=result.text + text, reason=choice.finish_reason or result.reason)
        if chunk.usage:
            result = replace(result, usage=(chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
        yield result


async def chat_document(client: openai.AsyncOpenAI, model: str) -> AsyncIterator[Result]:
    answer = await client.chat.completions.create(model=model, messages=MESSAGES)
    (choice,) = answer.choices
    usage = answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    yield Result(choice.message.content or choice.message.refusal or "", choice.finish_reason, usage)


def synchronous_chat_stream(client: openai.OpenAI, model: str) -> Result:
    result = Result()
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    try:
        for chunk in client.chat.completions.create(model=model, messages=MESSAGES, **options):
            for choice in chunk.choices or ():
                text = (choice.delta and choice.delta.content) or ""
                result = replace(result, text=result.text + text, reason=choice.finish_reason or result.reason)
    except Exception as error:  # noqa: BLE001 (whatever the client raises)
        return replace(result, error=error)
    return result


async def response_stream(client: openai.AsyncOpenAI, model: str) -> AsyncIterator[Result]:
    result = Result()
    async for event in await client.responses.create(model=model, input="Say something.", stream=True):
        if event.type in ("response.output_text.delta", "response.refusal.delta"):
            result = replace(result, text=result.text + (event.delta or ""))
        elif event.type in ("response.completed", "response.incomplete"):
            usage = event.response.usage and (event.response.usage.input_tokens, event.response.usage.output_tokens)
            result = replace(result, reason=event.response.status, usage=usage)
        elif event.type == "response.failed":
            # A program has to look for it: this client raises nothing.
            result = replace(result, error=RuntimeError(event.response.error))
        elif event.type == "error":
            result = replace(result, error=RuntimeError(event.code or "?"))
        yield result


async def response_document(client: openai.AsyncOpenAI, model: str) -> AsyncIterator[Result]:
    answer = await client.responses.create(model=model, input="Say something.")
    parts = [part for item in answer.output if item.type == "message" for part in item.content]
    text = "".join(part.text if part.type == "output_text" else part.refusal for part in parts)
    usage = answer.usage and (answer.usage.input_tokens, answer.usage.output_tokens)
    error = RuntimeError(answer.error) if answer.error else None
    yield Result(text, answer.status, usage, error)


async def embeddings(client: openai.AsyncOpenAI, model: str) -> AsyncIterator[Result]:
    answer = await client.embeddings.create(model=model, input="Say something.", encoding_format="float")
    yield Result(json.dumps([it.embedding for it in answer.data]), None, (answer.usage.prompt_tokens, 0))


APIS: Final[dict[str, tuple[frozenset[str], Ask]]] = {
    "chat stream": (CHAT, chat_stream),
    "chat document": (CHAT, chat_document),
    "response stream": (RESPONSES, response_stream),
    "response document": (RESPONSES, response_document),
    "embeddings": (EMBEDDINGS, embeddings),
}
CASES: Final = [
    (api, name)
    for api, (wires, _) in APIS.items()
    for name, fault in faults.FAULTS.items()
    if wires & fault.wires and name not in EXCLUDED
]

# One of each kind, for the synchronous client.
SYNCHRONOUS: Final = ("400", "500", "crlf", "cut-midway", "end-midway", "error-first", "error-midway", "gzip", "html")


def deployment(api: str, fault: str) -> str:
    """One that only this case asks, so that no other meets its cool-down."""
    return f"{'embedding-' if api == 'embeddings' else ''}{[*APIS].index(api)}-{fault}"


async def outcome(ask: Ask, client: openai.AsyncOpenAI, model: str, *, seconds: float) -> Result:
    """All that a program has when it is done, when an exception ends it, or when it gives up."""
    result = Result()
    try:
        async with asyncio.timeout(seconds):
            async for received in ask(client, model):
                result = received
    except Exception as error:  # noqa: BLE001 (whatever the client raises)
        return result if result.error is not None else replace(result, error=error)
    return result


@pytest.fixture(scope="module")
def faulty_app(functions_app: Callable[..., HostedApp], app_settings: dict[str, str]) -> HostedApp:
    """The app with a deployment for each case."""
    return functions_app(
        env=app_settings
        | {
            "AZURE_OPENAI_DEPLOYMENTS": ",".join(deployment(*case) for case in CASES),
            "UPSTREAM_SILENCE_TIMEOUT_SECONDS": str(SILENCE_TIMEOUT),
            "COMMIT_WAIT_SECONDS": "20",
        }
    )


type Results = tuple[Mapping[tuple[str, str], tuple[Result, Result]], Mapping[str, Result]]


@pytest.fixture(scope="module")
def results(faulty_app: HostedApp, app_settings: dict[str, str], model_service_port: int) -> Results:
    """What the client gets in each case, directly and through the app, and the synchronous one through the app.

    Some are asked at once, as many of them take a second.
    """
    found: dict[tuple[str, str], tuple[Result, Result]] = {}
    synchronous: dict[str, Result] = {}

    async def all_cases() -> None:
        async with (
            ModelService(port=model_service_port, tokens_per_second=0) as service,
            httpx2.AsyncClient(verify=False, timeout=httpx2.Timeout(20, read=SILENCE_TIMEOUT)) as impatient,
            httpx2.AsyncClient(verify=False, timeout=30) as patient,
        ):
            service.answer(TOKENS)
            service.faults.update({deployment(api, name): ARGUMENTS.get(name, name) for api, name in CASES})
            options: Any = {"api_key": "unused", "max_retries": 0}
            directly = openai.AsyncOpenAI(
                base_url=app_settings["AZURE_OPENAI_ENDPOINT"], http_client=impatient, **options
            )
            through = openai.AsyncOpenAI(base_url=f"{faulty_app.url}/v1", http_client=patient, **options)
            at_once = asyncio.Semaphore(8)  # all of them, and the model service, share this process

            async def one(api: str, name: str) -> None:
                _, ask = APIS[api]
                async with at_once:
                    found[api, name] = (
                        await outcome(ask, directly, deployment(api, name), seconds=2 * SILENCE_TIMEOUT),
                        await outcome(ask, through, deployment(api, name), seconds=20),
                    )

            def one_synchronously(name: str) -> None:
                with openai.OpenAI(
                    base_url=f"{faulty_app.url}/v1", http_client=httpx2.Client(verify=False, timeout=30), **options
                ) as client:
                    synchronous[name] = synchronous_chat_stream(client, deployment("chat stream", name))

            await asyncio.gather(*(one(*case) for case in CASES))
            for name in SYNCHRONOUS:
                await asyncio.to_thread(one_synchronously, name)

    with asyncio.Runner() as runner:
        runner.run(all_cases())
    return found, synchronous


@pytest.mark.parametrize(("api", "name"), CASES)
def test_it_gets_the_same_or_a_clearer_error(results: Results, api: str, name: str) -> None:
    direct, through = results[0][api, name]
    if through.error is None:
        assert direct.status is None, f"a refusal has become an answer: {direct.error!r}"
        if name == "after-done":
            assert direct.text.startswith(through.text)
            return
        assert through.text.startswith(direct.text), (direct, through)
        if direct.error is not None:
            assert through.reason is not None or api == "embeddings", "it can't be known that it is complete"
        else:
            assert direct.text in ("", through.text)
            assert direct.reason in (None, through.reason)
            assert direct.usage in (None, through.usage)
        return
    if isinstance(through.error, UnicodeDecodeError):
        assert type(direct.error) is UnicodeDecodeError, "the bytes are the model service's, and no text"
        return
    assert isinstance(through.error, openai.APIError | RuntimeError), through
    complete = direct.error is None and direct.reason not in (None, "error", "failed")
    assert not complete or name in MISLABELLED or faults.FAULTS[name].breaks, (direct, through)
    assert direct.text.startswith(through.text), (direct, through)
    if direct.error is not None and "reset" not in name:  # a reset drops what has not been read
        assert direct.text == through.text, (direct, through)
    check_class(direct, through)


def check_class(direct: Result, through: Result) -> None:
    """The error tells as much as the direct one: a class of its own, a code, and the request's id."""
    if isinstance(through.error, openai.APIError):
        assert through.error.code
        assert through.error.message
    if isinstance(through.error, openai.APIStatusError):
        assert through.error.request_id
        assert not through.text
    match direct.status:
        case 400 | 404 | 413 | 429:
            assert through.status == direct.status
            assert type(through.error) is type(direct.error)
        case 422:
            assert through.status == 400
        case int():
            assert through.status is not None, "no fault of the caller's"
            assert through.status >= 500
            assert isinstance(through.error, openai.APIError)
            assert through.error.code in CODES


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_the_synchronous_client_gets_what_the_other_one_gets(results: Results, name: str) -> None:
    _, through = results[0]["chat stream", name]
    synchronous = results[1][name]
    assert (synchronous.text, synchronous.reason, synchronous.status) == (
        through.text,
        through.reason,
        through.status,
    )
    assert type(synchronous.error) is type(through.error)
