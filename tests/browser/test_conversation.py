"""Conversations: sending, streaming, stopping, retrying, editing, and the tab's session storage."""

import json

import pytest

from local.model_service import MANUAL_PACE, ModelService

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import Route, expect

from tests.browser.chat_page import ChatPage, new_tab

pytestmark = pytest.mark.asyncio(loop_scope="session")


def last_messages(service: ModelService) -> list[dict[str, str]]:
    """The messages of the last request that reached the model service."""
    return service.requests[-1].body["messages"]


async def test_message_is_sent_as_typed(chat: ChatPage, model_service: ModelService) -> None:
    await expect(chat.prompt).to_be_focused()
    await chat.page.keyboard.type("say: first line")
    await chat.page.keyboard.press("Shift+Enter")
    await chat.page.keyboard.type("second <b>line</b> & more")
    await expect(chat.prompt).to_have_value("say: first line\nsecond <b>line</b> & more")
    await chat.page.keyboard.press("Enter")
    await chat.wait_until_done()
    await expect(chat.prompt).to_have_value("")
    await expect(chat.page.locator(".bubble")).to_have_text("say: first line\nsecond <b>line</b> & more")
    assert last_messages(model_service) == [{"role": "user", "content": "say: first line\nsecond <b>line</b> & more"}]
    assert (await chat.answer_text.inner_text()).strip() == "first line\nsecond <b>line</b> & more"


async def test_blank_message_or_ime_composition_is_not_sent(chat: ChatPage, model_service: ModelService) -> None:
    await chat.prompt.press("Enter")
    await chat.ask("  \n ")
    await chat.prompt.fill("にほん")
    await chat.prompt.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    await expect(chat.answers).to_have_count(0)
    assert model_service.requests == []
    await chat.prompt.press("Enter")
    await chat.wait_until_done()
    assert last_messages(model_service)[0]["content"] == "にほん"


async def test_each_token_is_shown_before_the_next_is_generated(chat: ChatPage, model_service: ModelService) -> None:
    tokens = ["One", " by", " one", " the", " tokens", " **come", "** in", "."]
    model_service.answer(tokens)
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Go on")
    await expect(chat.answer.locator(".status")).to_contain_text("Thinking")
    expected = ""
    for token in tokens:
        await expect(chat.answer).to_have_attribute("aria-busy", "true")
        model_service.release()
        expected += token.replace("*", "")
        await expect(chat.answer_text).to_have_text(expected)  # delimiters never flash up
    assert model_service.requests[-1].tokens == len(tokens)
    await chat.wait_until_done()
    await expect(chat.answer_text).to_have_text("One by one the tokens come in.")
    await expect(chat.answer_text.locator("strong")).to_have_text("come")


async def test_stop_aborts_the_request_to_the_model_service(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["Half", " an", " answer", " and", " more"])
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Start")
    model_service.release(3)
    await expect(chat.answer_text).to_have_text("Half an answer")
    await chat.button("Stop").click()
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)
    await expect(chat.answer.locator(".notice")).to_contain_text("You stopped this answer")
    await expect(chat.answer_text).to_have_text("Half an answer")
    await expect(chat.prompt).to_be_focused()
    await expect(chat.button("Send")).to_be_visible()
    # The partial answer stays part of the conversation.
    await chat.choose_model("gpt-5.4-mini")
    model_service.answer("The rest.")
    await chat.ask_and_wait("Go on")
    assert [message["content"] for message in last_messages(model_service)] == ["Start", "Half an answer", "Go on"]


async def test_escape_stops_before_the_first_token(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Start")
    await expect(chat.answer.locator(".status")).to_contain_text("Thinking")
    await chat.page.keyboard.press("Escape")
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)
    await expect(chat.answer.locator(".notice")).to_contain_text("You stopped this answer")
    await expect(chat.answer_text).to_be_empty()
    await chat.choose_model("gpt-5.4-mini")
    await chat.ask_and_wait("say: now")
    assert [message["role"] for message in last_messages(model_service)] == ["user", "user"]


async def test_draft_can_be_typed_while_an_answer_streams(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Start")
    await chat.ask("The next question")
    await expect(chat.prompt).to_have_value("The next question")
    await expect(chat.answers).to_have_count(1)
    assert len(model_service.requests) == 1
    await chat.page.keyboard.press("Escape")
    await expect(chat.prompt).to_have_value("The next question")


async def test_double_click_sends_and_does_not_stop(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose_model(MANUAL_PACE)
    await chat.prompt.fill("Start")
    await chat.button("Send").dblclick()
    await expect(chat.answer.locator(".status")).to_contain_text("Thinking")
    assert model_service.open_requests == 1


async def test_whole_conversation_is_sent(chat: ChatPage, model_service: ModelService) -> None:
    await chat.button("Settings").click()
    await chat.page.get_by_label("Instructions for the model").fill("Answer in German.")
    await chat.button("Done").click()
    await chat.ask_and_wait("say: eins")
    await chat.ask_and_wait("say: zwei")
    assert last_messages(model_service) == [
        {"role": "system", "content": "Answer in German."},
        {"role": "user", "content": "say: eins"},
        {"role": "assistant", "content": "eins"},
        {"role": "user", "content": "say: zwei"},
    ]


async def test_retry_sends_the_same_message(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer("A first try.")
    await chat.ask_and_wait("Try")
    model_service.answer("A second try.")
    await chat.button("Retry").focus()
    await chat.page.keyboard.press("Enter")
    await expect(chat.answer_text).to_have_text("A second try.")
    await expect(chat.prompt).to_be_focused()
    await chat.wait_until_done()
    await expect(chat.answers).to_have_count(1)
    assert last_messages(model_service) == [{"role": "user", "content": "Try"}]


async def test_message_can_be_edited_and_sent_again(chat: ChatPage, model_service: ModelService) -> None:
    await chat.ask_and_wait("say: one")
    await chat.ask_and_wait("say: two")
    edit = chat.button("Edit").first
    await edit.click()
    field = chat.page.get_by_label("Edit your message")
    await field.fill("say: discarded")
    await field.press("Escape")
    await expect(edit).to_be_focused()
    await expect(chat.answers).to_have_count(2)
    await edit.click()
    await chat.button("Cancel").click()
    await expect(chat.page.locator(".bubble").first).to_have_text("say: one")
    await edit.click()
    await expect(field).to_have_value("say: one")
    await field.fill("say: three")
    await chat.page.locator(".edit-form").get_by_role("button", name="Send", exact=True).click()
    await expect(chat.answer_text).to_have_text("three")
    await chat.wait_until_done()
    await expect(chat.answers).to_have_count(1)
    assert last_messages(model_service) == [{"role": "user", "content": "say: three"}]


async def test_selected_model_answers(chat: ChatPage, model_service: ModelService) -> None:
    model_service.release(50)
    await expect(chat.model_select.locator("option")).to_have_text(["gpt-5.4-mini", MANUAL_PACE])
    await chat.ask_and_wait("say: a")
    assert model_service.requests[-1].deployment == "gpt-5.4-mini"
    await chat.choose_model(MANUAL_PACE)
    await chat.page.reload()
    await expect(chat.model_select).to_have_value(MANUAL_PACE)
    await chat.ask_and_wait("say: b")
    assert model_service.requests[-1].deployment == MANUAL_PACE


async def test_metrics_are_shown_below_an_answer(chat: ChatPage, model_service: ModelService) -> None:
    model_service.time_to_first_token = 0.4
    model_service.answer(["One", " two", " three"])
    await chat.ask_and_wait("Count")
    first_token, tokens, total, model = await chat.answer.locator(".metrics span").all_inner_texts()
    assert tokens == "3 tokens"
    assert model.startswith("gpt-5.4-mini")
    assert first_token.endswith(" s to first token")
    assert total.endswith(" s total")
    assert 0.4 <= float(first_token.split()[0]) <= float(total.split()[0]) + 0.05 < 5


async def test_answer_and_its_code_can_be_copied(chat: ChatPage, model_service: ModelService) -> None:
    text = "Some *code*:\n\n```python\nif a < b:\n\tprint('<b>')\n```\n\nand text."
    model_service.answer(text)
    await chat.ask_and_wait("Code")
    await chat.button("Copy", chat.answer_text).click()
    await expect(chat.button("Copied", chat.answer_text)).to_be_visible()
    assert await chat.page.evaluate("navigator.clipboard.readText()") == "if a < b:\n\tprint('<b>')"
    await chat.button("Copy", chat.answer.locator(".toolbar")).click()
    await expect(chat.button("Copied", chat.answer.locator(".toolbar"))).to_be_visible()
    assert await chat.page.evaluate("navigator.clipboard.readText()") == text


async def test_reload_keeps_the_conversation_in_this_tab_only(chat: ChatPage, model_service: ModelService) -> None:
    await chat.ask_and_wait("say: **kept**")
    html = await chat.answer_html()
    await chat.prompt.fill("a draft")
    await chat.page.reload()
    await expect(chat.page.locator(".bubble")).to_have_text("say: **kept**")
    assert await chat.answer_html() == html
    await expect(chat.prompt).to_have_value("a draft")
    await expect(chat.answer.locator(".metrics")).to_contain_text("tokens")
    await chat.ask_and_wait("say: more")
    assert len(last_messages(model_service)) == 3
    other = await new_tab(chat.page.context, chat.url)
    await expect(other.answers).to_have_count(0)
    assert await chat.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


async def test_reload_midway_keeps_the_partial_answer(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["Half", " of", " it", " all"])
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Start")
    model_service.release(2)
    await expect(chat.answer_text).to_have_text("Half of")
    await chat.page.reload()
    await expect(chat.answer_text).to_have_text("Half of")
    await expect(chat.answer.locator(".notice")).to_contain_text("reloaded before this answer was complete")
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)


async def test_conversation_that_exceeds_the_storage_quota_continues_with_a_warning(chat: ChatPage) -> None:
    warning = chat.page.get_by_role("alert")
    await chat.button("Settings").click()
    await chat.page.get_by_label("Keep conversations on this device").uncheck()
    await chat.button("Done").click()
    await chat.page.evaluate("sessionStorage.setItem('other', 'x'.repeat(5 * 1024 * 1024 - 200))")
    await chat.ask_and_wait("say: " + "long " * 100)
    await expect(warning).to_contain_text("will be lost if you reload")
    await chat.page.evaluate("sessionStorage.removeItem('other')")
    await chat.ask_and_wait("say: it fits again")
    await expect(warning).to_be_hidden()


async def test_invalid_stored_data_is_ignored(chat: ChatPage) -> None:
    for invalid in ("{", "[]", "null", '{"turns": [null, 1, {"role": "user"}, {"role": "tool", "text": "x"}]}'):
        await chat.page.goto(chat.url + "/health")  # the same session storage, without the chat page
        await chat.page.evaluate("text => sessionStorage.setItem('/chat#chat', text)", invalid)
        await chat.open()
        await expect(chat.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
        await expect(chat.page.locator(".turn")).to_have_count(0)


async def test_new_chat_starts_empty_and_the_old_one_can_be_restored(
    chat: ChatPage, model_service: ModelService
) -> None:
    await chat.ask_and_wait("say: old")
    await chat.button("New chat").click()
    await expect(chat.answers).to_have_count(0)
    await expect(chat.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    assert "old" not in await chat.session_storage()
    await chat.button("Restore conversation").click()
    await expect(chat.answer_text).to_have_text("old")
    await chat.button("New chat").click()
    await chat.ask_and_wait("say: new")
    assert last_messages(model_service) == [{"role": "user", "content": "say: new"}]


async def test_new_chat_aborts_the_streaming_answer(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Start")
    await model_service.wait_for(lambda service: service.open_requests == 1)
    await chat.button("New chat").click()
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)
    await expect(chat.answers).to_have_count(0)
    await chat.choose_model("gpt-5.4-mini")
    await chat.ask_and_wait("say: new")
    await expect(chat.answers).to_have_count(1)


async def test_all_data_can_be_cleared(chat: ChatPage) -> None:
    await chat.ask_and_wait("say: secret")
    await chat.button("Settings").click()
    await chat.page.get_by_label("Instructions for the model").fill("Be brief.")
    await chat.button("Clear all").click()
    await expect(chat.answers).to_have_count(0)
    assert json.loads(await chat.session_storage()) == []
    await chat.page.reload()
    await expect(chat.answers).to_have_count(0)
    assert json.loads(await chat.session_storage()) == []


async def test_suggestion_is_sent_with_a_click(chat: ChatPage, model_service: ModelService) -> None:
    await chat.button("Write a random 100 word paragraph").click()
    await chat.wait_until_done()
    assert last_messages(model_service)[0]["content"] == "Write a random 100 word paragraph"
    assert len((await chat.answer_text.inner_text()).split()) == 100


async def test_page_scrolls_along_until_the_user_scrolls_up(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer([f"Line {number}.\n\n" for number in range(200)])
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Go on")
    distance_from_bottom = "document.documentElement.scrollHeight - innerHeight - scrollY"
    model_service.release(60)
    await expect(chat.answer_text).to_contain_text("Line 59.")
    assert await chat.page.evaluate(distance_from_bottom) < 3
    await chat.page.mouse.move(400, 400)
    await chat.page.mouse.wheel(0, -600)
    jump = chat.button("Jump to latest")
    await expect(jump).to_be_visible()
    position = await chat.page.evaluate("scrollY")
    model_service.release(60)
    await expect(chat.answer_text).to_contain_text("Line 119.")
    assert await chat.page.evaluate("scrollY") == position
    await jump.click()
    await expect(jump).to_be_hidden()
    model_service.release(40)
    await expect(chat.answer_text).to_contain_text("Line 159.")
    assert await chat.page.evaluate(distance_from_bottom) < 3


async def test_page_works_under_any_path_prefix(chat: ChatPage) -> None:
    prefix = chat.url + "/any/prefix"

    requested = []

    async def without_prefix(route: Route) -> None:
        requested.append(route.request.url)
        await route.continue_(url=route.request.url.replace("/any/prefix", ""))

    await chat.page.route("**/any/prefix/**", without_prefix)
    await chat.page.goto(prefix + "/chat/?code=nothing")
    await expect(chat.model_select.locator("option")).to_have_count(2)
    await chat.ask_and_wait("say: here too")
    await expect(chat.answer_text).to_have_text("here too")
    assert requested == [f"{prefix}/chat/?code=nothing", f"{prefix}/v1/models", f"{prefix}/stream"]
