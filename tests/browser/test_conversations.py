"""Versions of questions and answers, the conversations on the device, languages, and what the operator sets."""

import json
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from local.model_service import ANY_DEPLOYMENT, ModelService
from tests.end_to_end.hosting import HostedApp

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import Route, expect

from tests.browser.chat_page import ChatPage, new_tab
from tests.browser.test_conversation import last_messages

pytestmark = pytest.mark.asyncio(loop_scope="session")

type OpenChat = Callable[..., Awaitable[ChatPage]]

EVENTS = {"content-type": "text/event-stream"}


def png() -> bytes:
    """A picture of one grey pixel: https://www.w3.org/TR/png-3/#5DataRep"""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x80")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


async def test_retry_and_edit_keep_what_was_there(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer("First.")
    await chat.ask_and_wait("Try")
    model_service.answer("Second.")
    await chat.button("Retry").click()
    await expect(chat.answer_text).to_have_text("Second.")
    await chat.wait_until_done()
    await expect(chat.answer.locator(".versions")).to_contain_text("2 of 2")
    await chat.button("Previous version").click()
    await expect(chat.answer_text).to_have_text("First.")
    await expect(chat.answers).to_have_count(1)
    # The next question goes on from the version that is shown.
    await chat.ask_and_wait("say: on")
    assert [message["content"] for message in last_messages(model_service)] == ["Try", "First.", "say: on"]
    model_service.answer("Edited.")
    await chat.button("Edit").first.click()
    await chat.page.get_by_label("Edit your message").fill("Try again")
    await chat.page.keyboard.press("Enter")
    await expect(chat.answer_text).to_have_text("Edited.")
    await chat.wait_until_done()
    await expect(chat.answers).to_have_count(1)
    await chat.page.reload()
    await chat.page.locator(".user").get_by_role("button", name="Previous version").click()
    await expect(chat.answers).to_have_count(2)
    await expect(chat.answers.first.locator(".markdown")).to_have_text("First.")


async def test_refused_question_is_not_sent_again(chat: ChatPage, model_service: ModelService) -> None:
    model_service.faults[ANY_DEPLOYMENT] = "content-filter"
    await chat.ask("something bad")
    await expect(chat.page.get_by_text("Not sent again with later messages.")).to_be_visible()
    model_service.faults.clear()
    await chat.ask_and_wait("say: good")
    assert [message["content"] for message in last_messages(model_service)] == ["say: good"]


async def test_failure_midway_keeps_its_text_when_it_is_retried(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(["One", " two", " three", " four"])
    model_service.faults[ANY_DEPLOYMENT] = "cut-midway-2"
    await chat.ask("Count")
    await expect(chat.failure).to_be_visible()
    model_service.faults.clear()
    model_service.answer("Whole.")
    await chat.button("Retry", chat.failure).click()
    await expect(chat.answer_text).to_have_text("Whole.")
    await chat.wait_until_done()
    await chat.button("Previous version").click()
    await expect(chat.answer_text).to_have_text("One two")
    await expect(chat.failure).to_be_visible()


async def test_conversations_stay_on_the_device(chat: ChatPage, tmp_path: Path) -> None:
    dialog = chat.page.get_by_role("dialog", name="Conversations")
    titles = dialog.locator(".conversation-title span")
    await chat.ask_and_wait("say: about coffee")
    await chat.button("New chat").click()
    await chat.ask_and_wait("say: about <img src=x onerror=alert(1)> tea")
    # Another tab has them too.
    other = await new_tab(chat.page.context, chat.url)
    await expect(other.answers).to_have_count(0)
    await other.button("Conversations").click()
    await expect(other.page.locator(".conversation-title")).to_have_count(2)

    await chat.page.keyboard.press("Control+k")
    await expect(titles).to_have_text(["say: about <img src=x onerror=alert(1)> tea", "say: about coffee"])
    await chat.page.get_by_label("Search conversations").fill("ABOUT coffee")
    await expect(titles).to_have_text(["say: about coffee"])
    await chat.button("Rename: say: about coffee").click()
    await chat.page.get_by_label("New name").fill("Coffee")
    await chat.page.keyboard.press("Enter")
    await expect(titles).to_have_text(["Coffee"])
    await chat.page.get_by_label("Search conversations").fill("")
    await chat.button("Pin: Coffee").click()
    await expect(titles).to_have_text(["Coffee", "say: about <img src=x onerror=alert(1)> tea"])

    async with chat.page.expect_download() as download:
        await chat.button("Export all").click()
    exported = tmp_path / "chat.json"
    await (await download.value).save_as(exported)
    async with chat.page.expect_download() as download:
        await chat.button("Export this one as Markdown").click()
    markdown = await (await download.value).path()
    assert "## You\n\nsay: about <img" in markdown.read_text("utf-8")

    await chat.button("Delete: Coffee").click()
    await expect(titles).to_have_count(1)
    await chat.button("Restore conversation", dialog).click()
    await expect(titles).to_have_count(2)
    hostile = tmp_path / "hostile.json"
    entries = [{"turns": [{"role": "user", "text": "<script>alert(1)</script>"}], "title": "<b>x</b>"}, {"turns": 5}]
    hostile.write_text(json.dumps({"conversations": entries}), "utf-8")
    await chat.page.locator("#import-files").set_input_files([exported, hostile])
    await expect(dialog.get_by_role("status")).to_contain_text("Imported conversations: 3")
    await expect(dialog.get_by_role("status")).to_contain_text("damaged: 1")
    await expect(titles).to_have_count(5)
    await titles.get_by_text("<b>x</b>").click()
    await expect(chat.page.locator(".bubble")).to_have_text("<script>alert(1)</script>")

    await chat.button("Settings").click()
    await chat.page.get_by_label("Keep conversations on this device").uncheck()
    await chat.button("Done").click()
    await expect(chat.button("Conversations")).to_be_hidden()
    await chat.button("Undo").click()
    await chat.button("Conversations").click()
    await expect(titles).to_have_count(5)


async def test_page_starts_whatever_its_storage_holds(chat: ChatPage) -> None:
    damaged = {
        "/chat#chat": ["{", "[]", '{"format": 99, "turns": []}', '{"format": 2, "turns": [{"text": 1}], "chosen": 5}'],
        "/chat#preferences": ["{", "null", '"x"', '{"theme": {}, "language": 5, "keep": "no"}'],
    }
    for index in range(4):
        values = {key: texts[index] for key, texts in damaged.items()}
        await chat.page.goto(chat.url + "/health")
        await chat.page.evaluate(
            "values => Object.entries(values).forEach(([key, text]) => "
            "(key.endsWith('preferences') ? localStorage : sessionStorage).setItem(key, text))",
            values,
        )
        await chat.open()
        await expect(chat.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    # Without any storage the page works until it is closed.
    blocked = """() => {
        for (const name of ['indexedDB', 'sessionStorage', 'localStorage'])
            Object.defineProperty(window, name, { get() { throw new DOMException('blocked', 'SecurityError'); } });
    }"""
    await chat.page.add_init_script(f"({blocked})()")
    await chat.open()
    await chat.ask_and_wait("say: still here")
    await expect(chat.answer_text).to_have_text("still here")
    await expect(chat.page.get_by_role("alert")).to_contain_text("will be lost if you reload")


@pytest.mark.parametrize(
    ("locale", "message", "send", "refusal", "direction"),
    [
        ("de-DE", "Nachricht", "Senden", "Der Inhaltsfilter hat die Nachricht abgelehnt", "ltr"),
        ("ar-EG", "الرسالة", "إرسال", "رفض مرشّح المحتوى الرسالة", "rtl"),
    ],
)
async def test_page_is_in_the_language_of_its_reader(
    open_chat: OpenChat, model_service: ModelService, locale: str, message: str, send: str, refusal: str, direction: str
) -> None:
    chat = await open_chat(locale=locale)
    field = chat.page.get_by_label(message, exact=True)
    model_service.faults[ANY_DEPLOYMENT] = "content-filter"
    await field.fill("Hallo")
    await chat.button(send).click()
    await expect(chat.failure.get_by_role("heading")).to_have_text(refusal)
    assert await chat.page.evaluate("getComputedStyle(document.body).direction") == direction
    assert await chat.page.evaluate("document.documentElement.lang") == locale[:2]
    # The choice outlives a reload.
    await chat.page.locator("#open-settings").click()
    await chat.page.locator("#language").select_option("en")
    await chat.page.locator("#theme").select_option("dark")
    await chat.page.keyboard.press("Escape")
    await chat.page.reload()
    await expect(chat.button("Send")).to_be_visible()
    background = await chat.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == "rgb(23, 22, 20)"


async def test_thinking_is_folded_above_the_answer(chat: ChatPage) -> None:
    answers = [
        'event: reasoning\ndata: {"text":"Let me **think**."}\n\ndata: {"text":"Because."}\n\nevent: done\ndata: {}\n\n'
    ]
    await chat.page.route("**/stream", lambda route: route.fulfill(body=answers[0], headers=EVENTS))
    await chat.ask("Why?")
    await expect(chat.answer_text).to_have_text("Because.")
    thoughts = chat.answer.locator("details")
    await expect(thoughts.locator("summary")).to_contain_text("Thought for")
    await expect(thoughts.locator("strong")).to_be_hidden()
    await thoughts.locator("summary").click()
    await expect(thoughts.locator("strong")).to_have_text("think")
    await chat.page.reload()
    await expect(chat.answer.locator("details strong")).to_have_text("think")


async def with_config(chat: ChatPage, **config: bool) -> None:
    """Open the page as an app with these abilities serves it."""

    async def change(route: Route) -> None:
        response = await route.fetch()
        body = await response.text()
        given = re.search(r'(?<=id="config">)[^<]*', body)
        assert given is not None
        body = body.replace(given[0], json.dumps(json.loads(given[0]) | config), 1)
        await route.fulfill(response=response, body=body)

    await chat.page.route("**/chat", change)
    await chat.open()


async def test_stream_that_was_cut_goes_on_and_so_does_a_reload(chat: ChatPage) -> None:
    requests: list[tuple[str, str, Any]] = []
    first = 'id: resp_1.1\ndata: {"text":"One"}\n\nid: resp_1.2\ndata: {"text":" two"}\n\n'
    parts = {
        "resp_1.2": 'id: resp_1.3\ndata: {"text":" three"}\n\nevent: continue\ndata: {"id":"resp_1","after":3}\n\n',
        "resp_1.3": 'id: resp_1.4\ndata: {"text":" four"}\n\n',
        "resp_1.4": 'id: resp_1.5\ndata: {"text":" five"}\n\nevent: done\ndata: {"finish_reason":"stop"}\n\n',
    }
    online = False

    async def answer(route: Route) -> None:
        request = route.request
        requests.append((request.method, request.url.rpartition("/stream")[2], request.post_data_json))
        if request.method == "POST":
            fields = (request.post_data_json or {}).keys()
            named = [{"field": "reasoning_summary", "message": "x"}] if "reasoning_summary" in fields else None
            problem = {"status": 400, "code": "invalid_request", "title": "Refused", "errors": named}
            await (route.fulfill(status=400, json=problem) if named else route.fulfill(body=first, headers=EVENTS))
        elif request.headers["last-event-id"] == "resp_1.4" and not online:
            await route.abort()
        else:
            await route.fulfill(body=parts[request.headers["last-event-id"]], headers=EVENTS)

    chat.expected_events.append("ERR_FAILED")
    await with_config(chat, resumable=True)
    await chat.page.route(re.compile(r"/stream(/|$)"), answer)
    await chat.ask("Count")
    await expect(chat.answer_text).to_have_text("One two three four")
    await expect(chat.answer.locator(".status")).to_contain_text("Connecting again to get the rest")
    online = True
    await chat.open()
    await chat.wait_until_done()
    await expect(chat.answer_text).to_have_text("One two three four five")
    await expect(chat.answer.locator(".notice")).to_have_count(0)
    posts = [body for method, _, body in requests if method == "POST"]
    assert [body.get("reasoning_summary") for body in posts] == ["auto", None]
    assert all(body["resumable"] is True for body in posts)
    assert {path for method, path, _ in requests if method == "GET"} == {f"/{name}" for name in parts}


async def test_stopping_stops_the_generation_of_an_answer_that_can_be_resumed(chat: ChatPage) -> None:
    deleted: list[str] = []

    async def answer(route: Route) -> None:
        if route.request.method == "DELETE":
            deleted.append(route.request.url.rpartition("/stream")[2])
            await route.fulfill(json={"id": "resp_1", "deleted": True})
        elif route.request.method == "POST":
            await route.fulfill(body='id: resp_1.1\ndata: {"text":"One"}\n\n', headers=EVENTS)
        else:
            await route.fulfill(status=503)

    await with_config(chat, resumable=True)
    await chat.page.route(re.compile(r"/stream(/|$)"), answer)
    await chat.ask("Count")
    await expect(chat.answer_text).to_have_text("One")
    async with chat.page.expect_request_finished(lambda request: request.method == "DELETE"):
        await chat.page.keyboard.press("Escape")
    await expect(chat.answer.locator(".notice")).to_contain_text("You stopped this answer")
    assert deleted == ["/resp_1"]


async def test_pictures_are_scaled_down_and_sent_as_parts(chat: ChatPage) -> None:
    sent: list[dict[str, Any]] = []

    async def answer(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or ""))
        await route.fulfill(body='data: {"text":"A dot."}\n\nevent: done\ndata: {}\n\n', headers=EVENTS)

    await chat.page.route("**/stream", answer)
    name = "<b>dot</b>.png"
    await chat.page.locator("#files").set_input_files(
        [
            {"name": name, "mimeType": "image/png", "buffer": png()},
            {"name": "x.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"},
            {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"},
        ]
    )
    await expect(chat.page.locator(".thumbnail")).to_have_count(1)
    await expect(chat.page.locator("#tray")).to_contain_text("x.svg is not a picture that can be sent.")
    await expect(chat.page.locator("#tray")).to_contain_text("broken.png is not a picture that can be sent.")
    await chat.ask_and_wait("What is it?")
    text, picture = sent[0]["input"][0]["content"]
    assert text == {"type": "input_text", "text": "What is it?"}
    assert picture["type"] == "input_image"
    assert re.match(r"data:image/png;base64,[A-Za-z0-9+/=]+$", picture["image_url"])
    await chat.page.reload()
    await expect(chat.page.get_by_role("img", name=name)).to_be_visible()


async def test_operator_sets_name_greeting_examples_notice_and_models(
    functions_app: Callable[..., HostedApp], app_settings: Mapping[str, str], open_chat: OpenChat
) -> None:
    hostile = "</script><script>alert(1)</script>"
    texts = {"CHAT_NAME": "Contoso", "CHAT_GREETING": f"Hello {hostile}", "CHAT_NOTICE": "No secrets, please."}
    lists = {"CHAT_EXAMPLES": json.dumps(["say: hi", "<b>two</b>"]), "CHAT_MODELS": "gpt-5.4-mini"}
    chat = await open_chat(functions_app(env={**app_settings, **texts, **lists}))
    await chat.page.goto(chat.url + "/")
    assert chat.page.url == chat.url + "/chat"
    await expect(chat.page.get_by_role("heading", name="Contoso")).to_be_visible()
    await expect(chat.page.locator("#greeting")).to_have_text(f"Hello {hostile}")
    await expect(chat.page.get_by_text("No secrets, please.")).to_be_visible()
    await expect(chat.model_select).to_be_hidden()
    await chat.button("say: hi").click()
    await expect(chat.answer_text).to_have_text("hi")


async def test_long_message_folds_and_the_arrow_edits_it(chat: ChatPage) -> None:
    await chat.ask_and_wait("say: " + "line\n" * 40)
    bubble = chat.page.locator(".bubble")
    folded = (await bubble.bounding_box() or {})["height"]
    await chat.button("Show all").click()
    assert (await bubble.bounding_box() or {})["height"] > 2 * folded
    await expect(chat.prompt).to_be_visible()
    await chat.prompt.press("ArrowUp")
    await expect(chat.page.get_by_label("Edit your message")).to_be_focused()
