"""Failures as the user sees them: the error message, what is kept, and the actions offered."""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping

import pytest

from local.model_service import ANY_DEPLOYMENT, MANUAL_PACE, ModelService
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
    """A host that requires a function key, and an app with low request and output limits."""
    return functions_app(env={**app_settings, "MAX_BODY_BYTES": "2000", "MAX_OUTPUT_TOKENS": "5"}, key=KEY)


async def assert_retry_succeeds(chat: ChatPage, service: ModelService, retry: str = "Retry") -> None:
    """Clear the faults, retry, and check that the answer replaces the failure."""
    service.faults.clear()
    service.answer("It works.")
    await chat.button(retry, chat.failure).click()
    await expect(chat.answer_text).to_have_text("It works.")
    await chat.wait_until_done()
    await expect(chat.answers).to_have_count(1)
    await expect(chat.failure).to_have_count(0)


@pytest.mark.parametrize(
    ("fault", "title", "action"),
    [
        ("500", "The model service failed", "Retry"),
        ("502", "The model service failed", "Retry"),
        ("cut-headers", "The model service failed", "Retry"),
        ("401-role", "The model service does not accept this app", "Retry"),
        ("content-filter", "The content filter refused the prompt", "Edit your message"),
        ("context-length", "The prompt does not fit the model", "Start a new chat"),
        ("404", "There is no such model here", "Retry"),
    ],
)
async def test_error_response_is_shown_with_an_action(
    chat: ChatPage, model_service: ModelService, fault: str, title: str, action: str
) -> None:
    model_service.faults[ANY_DEPLOYMENT] = fault
    await chat.ask("Hello")
    await expect(chat.failure.get_by_role("heading")).to_contain_text(title)
    await expect(chat.button(action, chat.failure)).to_be_visible()
    await expect(chat.page.get_by_role("status").filter(has_text="Failed.")).to_be_attached()
    await expect(chat.failure).to_contain_text("Request ID: ")
    await expect(chat.button("Send")).to_be_visible()
    if action == "Retry":
        await assert_retry_succeeds(chat, model_service)


async def test_filter_categories_are_shown_and_the_message_can_be_edited(
    chat: ChatPage, model_service: ModelService
) -> None:
    model_service.faults[ANY_DEPLOYMENT] = "content-filter"
    await chat.ask("say: something bad")
    await expect(chat.failure).to_contain_text("Categories: ")
    model_service.faults.clear()
    await chat.button("Edit your message", chat.failure).click()
    await chat.page.get_by_label("Edit your message").fill("say: something good")
    await chat.page.keyboard.press("Enter")
    await expect(chat.answer_text).to_have_text("something good")


async def test_rate_limit_shows_a_countdown_to_the_retry(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[ANY_DEPLOYMENT] = "429-2"
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
    await assert_retry_succeeds(chat, model_service)


async def test_thinking_is_shown_while_pings_arrive(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[ANY_DEPLOYMENT] = "stall-first-2.5"
    await chat.ask("say: finally")
    status = chat.answer.locator(".status")
    await expect(status).to_contain_text("Connecting")
    await expect(status).to_contain_text("Thinking · 2 s")
    await expect(chat.answer_text).to_have_text("finally")
    await expect(status).to_be_hidden()


@pytest.mark.parametrize("fault", ["cut-midway", "reset-midway", "error-midway", "garbage-midway", "end-midway"])
async def test_failure_midway_keeps_the_partial_answer(chat: ChatPage, model_service: ModelService, fault: str) -> None:
    model_service.answer(["One", " two", " three", " four", " five", " six", " seven"])
    model_service.faults[ANY_DEPLOYMENT] = f"{fault}-3"
    await chat.ask("Count")
    await expect(chat.failure.get_by_role("heading")).to_contain_text("The answer was interrupted")
    await expect(chat.answer_text).to_have_text("One two three")
    await expect(chat.answer).not_to_have_class("streaming")
    await assert_retry_succeeds(chat, model_service)


async def test_answer_stopped_by_the_content_filter_shows_a_notice(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["One", " two", " three", " four"])
    model_service.faults[ANY_DEPLOYMENT] = "filter-midway-2"
    await chat.ask("Count")
    await expect(chat.answer.locator(".notice")).to_contain_text("The content filter stopped this answer")
    await expect(chat.answer_text).to_have_text("One two")
    await expect(chat.button("Retry", chat.answer)).to_be_visible()


async def test_empty_answer_shows_a_notice(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[ANY_DEPLOYMENT] = "silent"
    await chat.ask("Hello")
    await expect(chat.answer.locator(".notice")).to_have_text(
        "The model returned an empty answer. Retry, or edit your message."
    )


async def test_worker_killed_midway_leaves_an_incomplete_answer(
    functions_app: HostApp, app_settings: Mapping[str, str], open_chat: OpenChat, model_service: ModelService
) -> None:
    host = functions_app(env=app_settings, fresh=True)
    chat = await open_chat(host)
    model_service.answer(["Half", " an", " answer"])
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Start")
    model_service.release(2)
    await expect(chat.answer_text).to_have_text("Half an")
    host.expected_to_end = True
    os.kill(host.worker_pid, signal.SIGKILL)
    await expect(chat.failure).to_contain_text("The connection was lost")
    await expect(chat.answer_text).to_have_text("Half an")


async def test_stream_without_a_done_event_is_incomplete(chat: ChatPage) -> None:
    async def answer(route: Route) -> None:
        await route.fulfill(
            body='data: {"text":"Half"}\n\ndata: {"text":" an', headers={"content-type": "text/event-stream"}
        )

    await chat.page.route("**/stream", answer)
    await chat.ask("Start")
    await expect(chat.failure).to_contain_text("The answer is incomplete.")
    await expect(chat.answer_text).to_have_text("Half")
    await chat.page.unroute("**/stream")
    await chat.button("Retry", chat.failure).click()
    await chat.wait_until_done()


async def test_app_cannot_be_reached_without_a_network(chat: ChatPage) -> None:
    chat.expected_events.append("ERR_INTERNET_DISCONNECTED")
    await chat.page.context.set_offline(True)
    await chat.ask("say: hello")
    await expect(chat.failure).to_contain_text("This app could not be reached")
    await chat.page.context.set_offline(False)
    await chat.button("Retry", chat.failure).click()
    await expect(chat.answer_text).to_have_text("hello")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"status": 401, "headers": {"www-authenticate": 'Bearer realm="app"'}}, "Your sign-in has expired"),
        ({"status": 302, "headers": {"location": "https://login.example/"}}, "Your sign-in has expired"),
        ({"status": 403, "body": ""}, "You are not allowed to use this app"),
        (
            {"status": 404, "body": "<h1>Not here</h1>", "content_type": "text/html"},
            "The app rejected the request (404)",
        ),
        ({"status": 429, "body": "", "headers": {"retry-after": "30"}}, "Retry in 30 s"),
        ({"status": 503, "body": "Starting"}, "The app returned an error (503)"),
        ({"status": 200, "body": "<p>Hello</p>", "content_type": "text/html"}, "an unexpected response"),
        ({"status": 500, "body": "{", "content_type": "application/json"}, "The app returned an error (500)"),
    ],
)
async def test_responses_from_in_front_of_the_app_are_explained(
    chat: ChatPage, response: dict[str, object], expected: str
) -> None:
    await chat.page.route("**/stream", lambda route: route.fulfill(**response))  # type: ignore[arg-type]
    await chat.ask("Hello")
    await expect(chat.failure).to_contain_text(expected)


async def test_a_refused_key_of_a_caller_is_no_expired_sign_in(chat: ChatPage) -> None:
    """The app names the scheme as a sign-in does, but answers in JSON."""
    body = '{"code": "invalid_api_key", "title": "The key is missing or wrong", "status": 401}'
    headers = {"www-authenticate": "Bearer", "content-type": "application/problem+json"}
    await chat.page.route("**/stream", lambda route: route.fulfill(status=401, headers=headers, body=body))
    await chat.ask("Hello")
    await expect(chat.page.locator("#key-dialog")).to_be_visible()
    await expect(chat.page.locator("#key-reason")).to_contain_text("This app needs a function key")


async def test_failure_survives_a_reload(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[ANY_DEPLOYMENT] = "500"
    await chat.ask("Hello")
    await expect(chat.failure).to_be_visible()
    await chat.page.reload()
    await expect(chat.failure).to_be_visible()
    await assert_retry_succeeds(chat, model_service)


async def test_key_is_requested_once_and_sent_only_in_the_header(
    app_with_key: HostedApp, open_chat: OpenChat, model_service: ModelService
) -> None:
    chat = await open_chat(app_with_key)
    dialog = chat.page.get_by_role("dialog", name="Function key")
    field = dialog.get_by_label("Key", exact=True)
    await expect(dialog).to_contain_text("This app needs a function key.")
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
    await expect(chat.answer_text).to_have_text("hi")
    await chat.wait_until_done()
    await expect(chat.answers).to_have_count(1)
    await expect(dialog).to_be_hidden()
    await expect(chat.model_select.locator("option")).to_have_count(2)

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
    assert KEY not in await chat.session_storage()
    await chat.button("Done").click()
    await chat.ask("say: no key")
    await expect(dialog).to_contain_text("This app needs a function key.")


async def test_truncated_answer_can_be_continued(
    app_with_key: HostedApp, open_chat: OpenChat, model_service: ModelService
) -> None:
    chat = await open_chat(app_with_key)
    await chat.page.get_by_label("Key", exact=True).fill(KEY)
    await chat.page.keyboard.press("Enter")
    model_service.answer([f"{number} " for number in range(20)])
    await chat.ask("Count")
    await expect(chat.answer.locator(".notice")).to_contain_text("reached the length limit")
    await expect(chat.answer_text).to_have_text("0 1 2 3 4")
    await chat.button("Continue").click()
    await expect(chat.answers).to_have_count(2)
    await chat.wait_until_done()
    assert model_service.requests[-1].body["messages"][-1] == {"role": "user", "content": "Continue."}


async def test_too_long_conversation_offers_a_new_chat(app_with_key: HostedApp, open_chat: OpenChat) -> None:
    chat = await open_chat(app_with_key)
    await chat.page.get_by_label("Key", exact=True).fill(KEY)
    await chat.page.keyboard.press("Enter")
    await chat.ask("long " * 500)
    await expect(chat.button("Edit your message", chat.failure)).to_be_visible()
    await chat.button("Start a new chat", chat.failure).click()
    await expect(chat.answers).to_have_count(0)


async def test_default_model_is_offered_when_the_model_is_gone(chat: ChatPage, model_service: ModelService) -> None:
    await chat.page.evaluate("document.querySelector('#model').append(new Option('retired', 'retired'))")
    await chat.choose_model("retired")
    await chat.ask("say: still here")
    await expect(chat.failure).to_be_visible()
    await chat.button("Use the default model", chat.failure).click()
    await expect(chat.answer_text).to_have_text("still here")
    assert model_service.requests[-1].deployment == "gpt-5.4-mini"
