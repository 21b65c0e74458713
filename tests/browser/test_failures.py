"""Every way to fail, as a reader sees it: what is said, what stays, and what can be done next."""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping

import pytest

from local.model_service import BY_HAND, EVERY, ModelService
from tests.end_to_end.hosting import HostedApp

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import Route, expect

from tests.browser.chat_page import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")

type OpenChat = Callable[..., Awaitable[ChatPage]]
type HostApp = Callable[..., HostedApp]

KEY = "a-key-of-this-test"


@pytest.fixture(scope="session")
def app_with_key(functions_app: HostApp, app_settings: Mapping[str, str]) -> HostedApp:
    """A host that asks for a key, and an app that keeps questions and answers short."""
    return functions_app(env={**app_settings, "MAX_BODY_BYTES": "2000", "MAX_OUTPUT_TOKENS": "5"}, key=KEY)


async def works_again(chat: ChatPage, service: ModelService, retry: str = "Retry") -> None:
    """Retrying, once the service is well, gives the answer in the failure's place."""
    service.faults.clear()
    service.answer("All is well.")
    await chat.button(retry, chat.failure).click()
    await expect(chat.words).to_have_text("All is well.")
    await chat.is_done()
    await expect(chat.answers).to_have_count(1)
    await expect(chat.failure).to_have_count(0)


@pytest.mark.parametrize(
    ("fault", "title", "deed"),
    [
        ("500", "The model service failed", "Retry"),
        ("502", "The model service failed", "Retry"),
        ("cut-headers", "The model service failed", "Retry"),
        ("401-role", "The model service does not accept this app", "Retry"),
        ("content-filter", "The content filter refused the prompt", "Edit your message"),
        ("context-length", "The prompt does not fit the model", "Begin a new chat"),
        ("404", "There is no such model here", "Retry"),
    ],
)
async def test_a_refusal_is_shown_with_what_to_do(
    chat: ChatPage, model_service: ModelService, fault: str, title: str, deed: str
) -> None:
    model_service.faults[EVERY] = fault
    await chat.ask("Hello")
    await expect(chat.failure.get_by_role("heading")).to_contain_text(title)
    await expect(chat.button(deed, chat.failure)).to_be_visible()
    await expect(chat.page.get_by_role("status").filter(has_text="Failed.")).to_be_attached()
    await expect(chat.failure).to_contain_text("Request ")
    await expect(chat.button("Send")).to_be_visible()
    if deed == "Retry":
        await works_again(chat, model_service)


async def test_what_the_filter_names_is_shown_and_the_message_can_be_edited(
    chat: ChatPage, model_service: ModelService
) -> None:
    model_service.faults[EVERY] = "content-filter"
    await chat.ask("say: something bad")
    await expect(chat.failure).to_contain_text("It names: ")
    model_service.faults.clear()
    await chat.button("Edit your message", chat.failure).click()
    await chat.page.get_by_label("Edit your message").fill("say: something good")
    await chat.page.keyboard.press("Enter")
    await expect(chat.words).to_have_text("something good")


async def test_too_many_requests_count_down_to_the_retry(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[EVERY] = "429-2"
    await chat.ask("Hello")
    retry = chat.failure.locator("#retry")
    await expect(retry).to_have_text("Retry in 2 s")
    await expect(retry).to_be_disabled()
    await retry.click(force=True)
    await expect(retry).to_have_text("Retry in 1 s")
    assert len(model_service.requests) == 1
    await expect(retry).to_have_text("Retry")
    await expect(retry).to_be_enabled()
    await expect(chat.page.get_by_text("You can retry now.")).to_be_attached()
    await works_again(chat, model_service)


async def test_thinking_goes_on_while_pings_arrive(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[EVERY] = "stall-first-2.5"
    await chat.ask("say: at last")
    state = chat.answer.locator(".state")
    await expect(state).to_contain_text("Connecting")
    await expect(state).to_contain_text("Thinking · 2 s")
    await expect(chat.words).to_have_text("at last")
    await expect(state).to_be_hidden()


@pytest.mark.parametrize("fault", ["cut-midway", "reset-midway", "error-midway", "garbage-midway", "end-midway"])
async def test_a_failure_midway_keeps_the_words(chat: ChatPage, model_service: ModelService, fault: str) -> None:
    model_service.answer(["One", " two", " three", " four", " five", " six", " seven"])
    model_service.faults[EVERY] = f"{fault}-3"
    await chat.ask("Count")
    await expect(chat.failure.get_by_role("heading")).to_contain_text("The answer broke off")
    await expect(chat.words).to_have_text("One two three")
    await expect(chat.answer).not_to_have_class("writing")
    await works_again(chat, model_service)


async def test_an_answer_that_the_filter_ends_says_so(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["One", " two", " three", " four"])
    model_service.faults[EVERY] = "filter-midway-2"
    await chat.ask("Count")
    await expect(chat.answer.locator(".note")).to_contain_text("The content filter ended this answer")
    await expect(chat.words).to_have_text("One two")
    await expect(chat.button("Retry", chat.answer)).to_be_visible()


async def test_an_answer_without_a_word_says_so(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[EVERY] = "silent"
    await chat.ask("Hello")
    await expect(chat.answer.locator(".note")).to_have_text("The model answered without a word.")


async def test_a_worker_that_dies_midway_leaves_a_cut_answer(
    functions_app: HostApp, app_settings: Mapping[str, str], open_chat: OpenChat, model_service: ModelService
) -> None:
    host = functions_app(env=app_settings, fresh=True)
    chat = await open_chat(host)
    model_service.answer(["Half", " an", " answer"])
    await chat.choose(BY_HAND)
    await chat.ask("Begin")
    model_service.release(2)
    await expect(chat.words).to_have_text("Half an")
    host.expected_to_end = True
    os.kill(host.worker_pid, signal.SIGKILL)
    await expect(chat.failure).to_contain_text("the connection was cut")
    await expect(chat.words).to_have_text("Half an")


async def test_a_stream_that_ends_without_its_closing_event_was_cut(chat: ChatPage) -> None:
    async def answer(route: Route) -> None:
        await route.fulfill(
            body='data: {"text":"Half"}\n\ndata: {"text":" an', headers={"content-type": "text/event-stream"}
        )

    await chat.page.route("**/stream", answer)
    await chat.ask("Begin")
    await expect(chat.failure).to_contain_text("ended without its closing event")
    await expect(chat.words).to_have_text("Half")
    await chat.page.unroute("**/stream")
    await chat.button("Retry", chat.failure).click()
    await chat.is_done()


async def test_without_a_network_the_app_cannot_be_reached(chat: ChatPage) -> None:
    chat.expected.append("ERR_INTERNET_DISCONNECTED")
    await chat.page.context.set_offline(True)
    await chat.ask("say: hello")
    await expect(chat.failure).to_contain_text("This app could not be reached")
    await chat.page.context.set_offline(False)
    await chat.button("Retry", chat.failure).click()
    await expect(chat.words).to_have_text("hello")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 401, "headers": {"www-authenticate": 'Bearer realm="app"'}}, "Your sign-in has ended"),
        ({"status": 302, "headers": {"location": "https://login.example/"}}, "Your sign-in has ended"),
        ({"status": 403, "body": ""}, "You are not allowed to use this app"),
        (
            {"status": 404, "body": "<h1>Not here</h1>", "content_type": "text/html"},
            "The app refused the request (404)",
        ),
        ({"status": 429, "body": "", "headers": {"retry-after": "30"}}, "Retry in 30 s"),
        ({"status": 503, "body": "Starting"}, "The app failed (503)"),
        ({"status": 200, "body": "<p>Hello</p>", "content_type": "text/html"}, "a way this page does not know"),
        ({"status": 500, "body": "{", "content_type": "application/json"}, "The app failed (500)"),
    ],
)
async def test_answers_of_what_stands_before_the_app_are_understood(
    chat: ChatPage, answer: dict[str, object], said: str
) -> None:
    await chat.page.route("**/stream", lambda route: route.fulfill(**answer))  # type: ignore[arg-type]
    await chat.ask("Hello")
    await expect(chat.failure).to_contain_text(said)


async def test_a_failure_is_still_there_after_a_reload(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[EVERY] = "500"
    await chat.ask("Hello")
    await expect(chat.failure).to_be_visible()
    await chat.page.reload()
    await expect(chat.failure).to_be_visible()
    await works_again(chat, model_service)


async def test_the_key_is_asked_for_once_and_never_leaves_the_header(
    app_with_key: HostedApp, open_chat: OpenChat, model_service: ModelService
) -> None:
    chat = await open_chat(app_with_key)
    dialog = chat.page.get_by_role("dialog", name="Function key")
    field = dialog.get_by_label("Key", exact=True)
    await expect(dialog).to_contain_text("This app asks for a function key.")
    await expect(field).to_be_focused()
    await chat.page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()

    await chat.ask("say: hi")
    await expect(dialog).to_be_visible()
    await field.fill("wrong")
    await field.press("Enter")
    await expect(dialog).to_contain_text("This app does not accept the key.")
    await expect(chat.failure).to_contain_text("This app does not accept the key")
    assert model_service.requests == []
    await field.fill(KEY)
    await field.press("Enter")
    await expect(chat.words).to_have_text("hi")
    await chat.is_done()
    await expect(chat.answers).to_have_count(1)
    await expect(dialog).to_be_hidden()
    await expect(chat.models.locator("option")).to_have_count(2)

    await chat.page.reload()
    await chat.ask_and_wait("say: again")
    await expect(dialog).to_be_hidden()
    keys = [request.headers["x-functions-key"] for request in chat.requests if "x-functions-key" in request.headers]
    assert KEY in keys
    assert not [request.url for request in chat.requests if KEY in request.url or "wrong" in request.url]
    assert KEY not in chat.page.url
    assert KEY not in await chat.page.content()
    assert await chat.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]

    await chat.button("Settings").click()
    await chat.button("Remove").click()
    assert KEY not in await chat.stored()
    await chat.button("Done").click()
    await chat.ask("say: locked out")
    await expect(dialog).to_contain_text("This app asks for a function key.")


async def test_a_short_answer_can_be_continued(
    app_with_key: HostedApp, open_chat: OpenChat, model_service: ModelService
) -> None:
    chat = await open_chat(app_with_key)
    await chat.page.get_by_label("Key", exact=True).fill(KEY)
    await chat.page.keyboard.press("Enter")
    model_service.answer([f"{number} " for number in range(20)])
    await chat.ask("Count")
    await expect(chat.answer.locator(".note")).to_contain_text("reached its longest length")
    await expect(chat.words).to_have_text("0 1 2 3 4")
    await chat.button("Continue").click()
    await expect(chat.answers).to_have_count(2)
    await chat.is_done()
    assert model_service.requests[-1].body["messages"][-1] == {"role": "user", "content": "Continue."}


async def test_a_conversation_that_is_too_long_can_be_left(app_with_key: HostedApp, open_chat: OpenChat) -> None:
    chat = await open_chat(app_with_key)
    await chat.page.get_by_label("Key", exact=True).fill(KEY)
    await chat.page.keyboard.press("Enter")
    await chat.ask("long " * 500)
    await expect(chat.button("Edit your message", chat.failure)).to_be_visible()
    await chat.button("Begin a new chat", chat.failure).click()
    await expect(chat.answers).to_have_count(0)


async def test_a_model_that_is_gone_gives_way_to_the_default(chat: ChatPage, model_service: ModelService) -> None:
    await chat.page.evaluate("document.querySelector('#model').append(new Option('retired', 'retired'))")
    await chat.choose("retired")
    await chat.ask("say: still here")
    await expect(chat.failure).to_be_visible()
    await chat.button("Use the default model", chat.failure).click()
    await expect(chat.words).to_have_text("still here")
    assert model_service.requests[-1].deployment == "gpt-5.4-mini"
