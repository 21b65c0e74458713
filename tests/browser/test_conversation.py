"""Talking: typing, words that arrive one by one, stopping, asking again, and what the tab remembers."""

import json

import pytest

from local.model_service import BY_HAND, ModelService

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import Route, expect

from tests.browser.chat_page import ChatPage, new_tab

pytestmark = pytest.mark.asyncio(loop_scope="session")


def conversation(service: ModelService) -> list[dict[str, str]]:
    """The messages of the last request that reached the model service."""
    return service.requests[-1].body["messages"]


async def test_what_is_typed_is_what_is_asked(chat: ChatPage, model_service: ModelService) -> None:
    await expect(chat.prompt).to_be_focused()
    await chat.page.keyboard.type("say: first line")
    await chat.page.keyboard.press("Shift+Enter")
    await chat.page.keyboard.type("second <b>line</b> & more")
    await expect(chat.prompt).to_have_value("say: first line\nsecond <b>line</b> & more")
    await chat.page.keyboard.press("Enter")
    await chat.is_done()
    await expect(chat.prompt).to_have_value("")
    await expect(chat.page.locator(".bubble")).to_have_text("say: first line\nsecond <b>line</b> & more")
    assert conversation(model_service) == [{"role": "user", "content": "say: first line\nsecond <b>line</b> & more"}]
    assert (await chat.words.inner_text()).strip() == "first line\nsecond <b>line</b> & more"


async def test_nothing_is_sent_for_nothing_or_in_the_middle_of_a_word(
    chat: ChatPage, model_service: ModelService
) -> None:
    await chat.prompt.press("Enter")
    await chat.ask("  \n ")
    await chat.prompt.fill("にほん")
    await chat.prompt.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    await expect(chat.answers).to_have_count(0)
    assert model_service.requests == []
    await chat.prompt.press("Enter")
    await chat.is_done()
    assert conversation(model_service)[0]["content"] == "にほん"


async def test_each_word_is_shown_before_the_next_is_written(chat: ChatPage, model_service: ModelService) -> None:
    tokens = ["One", " by", " one", " the", " words", " **come", "** in", "."]
    model_service.answer(tokens)
    await chat.choose(BY_HAND)
    await chat.ask("Go on")
    await expect(chat.answer.locator(".state")).to_contain_text("Thinking")
    seen = ""
    for token in tokens:
        await expect(chat.answer).to_have_attribute("aria-busy", "true")
        model_service.release()
        seen += token.replace("*", "")
        await expect(chat.words).to_have_text(seen)  # no asterisk ever flashes by
    assert model_service.requests[-1].tokens == len(tokens)
    await chat.is_done()
    await expect(chat.words).to_have_text("One by one the words come in.")
    await expect(chat.words.locator("strong")).to_have_text("come")


async def test_stop_ends_the_answer_at_the_model_service(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["Half", " an", " answer", " and", " more"])
    await chat.choose(BY_HAND)
    await chat.ask("Begin")
    model_service.release(3)
    await expect(chat.words).to_have_text("Half an answer")
    await chat.button("Stop").click()
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)
    await expect(chat.answer.locator(".note")).to_contain_text("You stopped this answer")
    await expect(chat.words).to_have_text("Half an answer")
    await expect(chat.prompt).to_be_focused()
    await expect(chat.button("Send")).to_be_visible()
    # What was said stays part of the conversation.
    await chat.choose("gpt-5.4-mini")
    model_service.answer("The rest.")
    await chat.ask_and_wait("Go on")
    assert [message["content"] for message in conversation(model_service)] == ["Begin", "Half an answer", "Go on"]


async def test_escape_stops_before_the_first_word(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose(BY_HAND)
    await chat.ask("Begin")
    await expect(chat.answer.locator(".state")).to_contain_text("Thinking")
    await chat.page.keyboard.press("Escape")
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)
    await expect(chat.answer.locator(".note")).to_contain_text("You stopped this answer")
    await expect(chat.words).to_be_empty()
    await chat.choose("gpt-5.4-mini")
    await chat.ask_and_wait("say: now")
    assert [message["role"] for message in conversation(model_service)] == ["user", "user"]


async def test_a_draft_can_be_written_while_an_answer_comes(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose(BY_HAND)
    await chat.ask("Begin")
    await chat.ask("The next question")
    await expect(chat.prompt).to_have_value("The next question")
    await expect(chat.answers).to_have_count(1)
    assert len(model_service.requests) == 1
    await chat.page.keyboard.press("Escape")
    await expect(chat.prompt).to_have_value("The next question")


async def test_a_double_click_sends_and_does_not_stop(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose(BY_HAND)
    await chat.prompt.fill("Begin")
    await chat.button("Send").dblclick()
    await expect(chat.answer.locator(".state")).to_contain_text("Thinking")
    assert model_service.open_requests == 1


async def test_the_whole_conversation_goes_along(chat: ChatPage, model_service: ModelService) -> None:
    await chat.button("Settings").click()
    await chat.page.get_by_label("Instructions to the model").fill("Answer in German.")
    await chat.button("Done").click()
    await chat.ask_and_wait("say: eins")
    await chat.ask_and_wait("say: zwei")
    assert conversation(model_service) == [
        {"role": "system", "content": "Answer in German."},
        {"role": "user", "content": "say: eins"},
        {"role": "assistant", "content": "eins"},
        {"role": "user", "content": "say: zwei"},
    ]


async def test_retry_asks_the_same_again(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer("A first try.")
    await chat.ask_and_wait("Try")
    model_service.answer("A second try.")
    await chat.button("Retry").focus()
    await chat.page.keyboard.press("Enter")
    await expect(chat.words).to_have_text("A second try.")
    await expect(chat.prompt).to_be_focused()
    await chat.is_done()
    await expect(chat.answers).to_have_count(1)
    assert conversation(model_service) == [{"role": "user", "content": "Try"}]


async def test_a_message_can_be_edited_and_sent_again(chat: ChatPage, model_service: ModelService) -> None:
    await chat.ask_and_wait("say: one")
    await chat.ask_and_wait("say: two")
    edit = chat.button("Edit").first
    await edit.click()
    field = chat.page.get_by_label("Edit your message")
    await field.fill("say: never")
    await field.press("Escape")
    await expect(edit).to_be_focused()
    await expect(chat.answers).to_have_count(2)
    await edit.click()
    await chat.button("Cancel").click()
    await expect(chat.page.locator(".bubble").first).to_have_text("say: one")
    await edit.click()
    await expect(field).to_have_value("say: one")
    await field.fill("say: three")
    await chat.page.locator(".edit").get_by_role("button", name="Send", exact=True).click()
    await expect(chat.words).to_have_text("three")
    await chat.is_done()
    await expect(chat.answers).to_have_count(1)
    assert conversation(model_service) == [{"role": "user", "content": "say: three"}]


async def test_the_model_that_is_chosen_answers(chat: ChatPage, model_service: ModelService) -> None:
    model_service.release(50)
    await expect(chat.models.locator("option")).to_have_text(["gpt-5.4-mini", BY_HAND])
    await chat.ask_and_wait("say: a")
    assert model_service.requests[-1].deployment == "gpt-5.4-mini"
    await chat.choose(BY_HAND)
    await chat.page.reload()
    await expect(chat.models).to_have_value(BY_HAND)
    await chat.ask_and_wait("say: b")
    assert model_service.requests[-1].deployment == BY_HAND


async def test_what_an_answer_took_stands_below_it(chat: ChatPage, model_service: ModelService) -> None:
    model_service.time_to_first_token = 0.4
    model_service.answer(["One", " two", " three"])
    await chat.ask_and_wait("Count")
    first, tokens, whole, model = await chat.answer.locator(".measures span").all_inner_texts()
    assert tokens == "3 tokens"
    assert model.startswith("gpt-5.4-mini")
    assert first.endswith(" s to first word")
    assert whole.endswith(" s in all")
    assert 0.4 <= float(first.split()[0]) <= float(whole.split()[0]) + 0.05 < 5


async def test_an_answer_and_its_code_can_be_copied(chat: ChatPage, model_service: ModelService) -> None:
    text = "Some *code*:\n\n```python\nif a < b:\n\tprint('<b>')\n```\n\nand words."
    model_service.answer(text)
    await chat.ask_and_wait("Code")
    await chat.button("Copy", chat.words).click()
    await expect(chat.button("Copied", chat.words)).to_be_visible()
    assert await chat.page.evaluate("navigator.clipboard.readText()") == "if a < b:\n\tprint('<b>')"
    await chat.button("Copy", chat.answer.locator(".tools")).click()
    await expect(chat.button("Copied", chat.answer.locator(".tools"))).to_be_visible()
    assert await chat.page.evaluate("navigator.clipboard.readText()") == text


async def test_a_reload_keeps_the_conversation_in_this_tab_alone(chat: ChatPage, model_service: ModelService) -> None:
    await chat.ask_and_wait("say: **kept**")
    rendered = await chat.rendered()
    await chat.prompt.fill("a draft")
    await chat.page.reload()
    await expect(chat.page.locator(".bubble")).to_have_text("say: **kept**")
    assert await chat.rendered() == rendered
    await expect(chat.prompt).to_have_value("a draft")
    await expect(chat.answer.locator(".measures")).to_contain_text("tokens")
    await chat.ask_and_wait("say: more")
    assert len(conversation(model_service)) == 3
    other = await new_tab(chat.page.context, chat.url)
    await expect(other.answers).to_have_count(0)
    assert await chat.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


async def test_a_reload_midway_keeps_what_had_come_and_says_so(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["Half", " of", " it", " all"])
    await chat.choose(BY_HAND)
    await chat.ask("Begin")
    model_service.release(2)
    await expect(chat.words).to_have_text("Half of")
    await chat.page.reload()
    await expect(chat.words).to_have_text("Half of")
    await expect(chat.answer.locator(".note")).to_contain_text("reloaded before the answer was complete")
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)


async def test_a_conversation_that_does_not_fit_the_tabs_memory_goes_on(chat: ChatPage) -> None:
    warning = chat.page.get_by_role("alert")
    await chat.page.evaluate("sessionStorage.setItem('other', 'x'.repeat(5 * 1024 * 1024 - 200))")
    await chat.ask_and_wait("say: " + "long " * 100)
    await expect(warning).to_contain_text("will not survive a reload")
    await chat.page.evaluate("sessionStorage.removeItem('other')")
    await chat.ask_and_wait("say: it fits again")
    await expect(warning).to_be_hidden()


async def test_memories_that_make_no_sense_are_left_out(chat: ChatPage) -> None:
    for nonsense in ("{", "[]", "null", '{"turns": [null, 1, {"role": "user"}, {"role": "tool", "text": "x"}]}'):
        await chat.page.goto(chat.url + "/health")  # the same tab's memory, without the page that keeps it in order
        await chat.page.evaluate("text => sessionStorage.setItem('/chat#chat', text)", nonsense)
        await chat.open()
        await expect(chat.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
        await expect(chat.page.locator(".turn")).to_have_count(0)


async def test_a_new_chat_begins_empty_and_the_old_one_can_come_back(
    chat: ChatPage, model_service: ModelService
) -> None:
    await chat.ask_and_wait("say: old")
    await chat.button("New chat").click()
    await expect(chat.answers).to_have_count(0)
    await expect(chat.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    assert "old" not in await chat.stored()
    await chat.button("Bring the conversation back").click()
    await expect(chat.words).to_have_text("old")
    await chat.button("New chat").click()
    await chat.ask_and_wait("say: new")
    assert conversation(model_service) == [{"role": "user", "content": "say: new"}]


async def test_a_new_chat_ends_the_answer_under_way(chat: ChatPage, model_service: ModelService) -> None:
    await chat.choose(BY_HAND)
    await chat.ask("Begin")
    await model_service.wait_for(lambda service: service.open_requests == 1)
    await chat.button("New chat").click()
    await model_service.wait_for(lambda service: service.requests[-1].ended == "aborted", timeout=3)
    await expect(chat.answers).to_have_count(0)
    await chat.choose("gpt-5.4-mini")
    await chat.ask_and_wait("say: new")
    await expect(chat.answers).to_have_count(1)


async def test_everything_can_be_forgotten(chat: ChatPage) -> None:
    await chat.ask_and_wait("say: secret")
    await chat.button("Settings").click()
    await chat.page.get_by_label("Instructions to the model").fill("Whisper.")
    await chat.button("Forget it all").click()
    await expect(chat.answers).to_have_count(0)
    assert json.loads(await chat.stored()) == []
    await chat.page.reload()
    await expect(chat.answers).to_have_count(0)
    assert json.loads(await chat.stored()) == []


async def test_an_idea_can_be_sent_with_a_click(chat: ChatPage, model_service: ModelService) -> None:
    await chat.button("Write a random 100 word paragraph").click()
    await chat.is_done()
    assert conversation(model_service)[0]["content"] == "Write a random 100 word paragraph"
    assert len((await chat.words.inner_text()).split()) == 100


async def test_the_page_follows_until_the_reader_scrolls_away(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer([f"Line {number}.\n\n" for number in range(200)])
    await chat.choose(BY_HAND)
    await chat.ask("Go on")
    distance = "document.documentElement.scrollHeight - innerHeight - scrollY"
    model_service.release(60)
    await expect(chat.words).to_contain_text("Line 59.")
    assert await chat.page.evaluate(distance) < 3
    await chat.page.mouse.move(400, 400)
    await chat.page.mouse.wheel(0, -600)
    jump = chat.button("Jump to latest")
    await expect(jump).to_be_visible()
    place = await chat.page.evaluate("scrollY")
    model_service.release(60)
    await expect(chat.words).to_contain_text("Line 119.")
    assert await chat.page.evaluate("scrollY") == place
    await jump.click()
    await expect(jump).to_be_hidden()
    model_service.release(40)
    await expect(chat.words).to_contain_text("Line 159.")
    assert await chat.page.evaluate(distance) < 3


async def test_the_page_works_under_any_prefix(chat: ChatPage) -> None:
    prefix = chat.url + "/any/prefix"

    asked = []

    async def without_prefix(route: Route) -> None:
        asked.append(route.request.url)
        await route.continue_(url=route.request.url.replace("/any/prefix", ""))

    await chat.page.route("**/any/prefix/**", without_prefix)
    await chat.page.goto(prefix + "/chat/?code=nothing")
    await expect(chat.models.locator("option")).to_have_count(2)
    await chat.ask_and_wait("say: here too")
    await expect(chat.words).to_have_text("here too")
    assert asked == [f"{prefix}/chat/?code=nothing", f"{prefix}/v1/models", f"{prefix}/stream"]
