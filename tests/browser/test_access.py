"""Accessibility: screen readers, keyboard, colour schemes, phone widths, right-to-left text, reduced motion."""

import json
import re
from collections.abc import Awaitable, Callable

import pytest

from local.model_service import ANY_DEPLOYMENT, MANUAL_PACE, ModelService

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")
pytest.importorskip("axe_playwright_python", reason="pip install -r tests/browser/requirements.txt")

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.browser.chat_page import ChatPage
from tests.browser.samples import EVERYTHING

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROBLEM = "application/problem+json"

type OpenChat = Callable[..., Awaitable[ChatPage]]


async def assert_accessible(chat: ChatPage) -> None:
    """Check that axe finds nothing. The page's CSP blocks axe: open the page with `bypass_csp`."""
    found = await Axe().run(chat.page)
    violations = [
        f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes']]}"
        for each in found.response["violations"]
    ]
    assert violations == []
    assert found.response["passes"]


@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark", "forced_colors": "active"},
        {"color_scheme": "dark", "viewport": {"width": 360, "height": 800}},
    ],
    ids=["light", "forced colours", "dark phone"],
)
async def test_axe_finds_no_violation(
    open_chat: OpenChat, model_service: ModelService, options: dict[str, object]
) -> None:
    chat = await open_chat(bypass_csp=True, **options)
    await assert_accessible(chat)
    model_service.answer(EVERYTHING)
    await chat.ask_and_wait("Everything")
    model_service.answer("Another version.")
    await chat.button("Retry").click()
    await chat.wait_until_done()
    await chat.button("Previous version").click()
    await expect(chat.answer_text.locator("math")).to_have_count(2)
    await expect(chat.answer_text.locator(".hl-keyword")).not_to_have_count(0)
    # Not faults of the model service: the app would then put the backend into cool-down.
    refusal = json.dumps({"code": "content_filter", "title": "Refused", "detail": "No.", "status": 400})
    await chat.page.route("**/stream", lambda route: route.fulfill(status=400, body=refusal, content_type=PROBLEM))
    await chat.ask("Refused")
    await expect(chat.page.get_by_text("Not sent again with later messages.")).to_be_visible()
    await chat.page.unroute("**/stream")
    await chat.page.route("**/stream", lambda route: route.fulfill(status=429, headers={"retry-after": "60"}))
    await chat.ask("Fail")
    await expect(chat.failure).to_be_visible()
    await chat.page.unroute("**/stream")
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Go on")
    model_service.release(5)
    await expect(chat.answer_text).to_have_text(re.compile("Another"))
    await assert_accessible(chat)
    await chat.page.keyboard.press("Escape")
    await chat.button("Edit").first.click()
    for opener in ("Control+k", "Control+/"):
        await chat.page.keyboard.press(opener)
        await expect(chat.page.get_by_role("dialog")).to_be_visible()
        await assert_accessible(chat)
        await chat.page.keyboard.press("Escape")
    await chat.button("Settings").click()
    await assert_accessible(chat)
    await chat.button("Enter a key").click()
    await assert_accessible(chat)


async def test_screen_reader_announces_states_and_answers_but_no_single_tokens(
    chat: ChatPage, model_service: ModelService
) -> None:
    await chat.page.evaluate(
        """() => {
            window.announcements = [];
            const live = [...document.querySelectorAll('[aria-live]:not([aria-live=off]), [role=status], [role=alert]')];
            for (const each of live) new MutationObserver(() => {
                if (each.textContent) window.announcements.push(each.textContent);
            }).observe(each, { childList: true, characterData: true, subtree: true });
        }"""  # noqa: E501
    )
    tokens = [f"word{number} " for number in range(40)]
    model_service.tokens_per_second = 100
    model_service.answer(tokens)
    await chat.ask_and_wait("Count")
    await expect(chat.page.get_by_role("status")).to_contain_text("Answer complete")
    announcements = await chat.page.evaluate("window.announcements")
    assert announcements[0] == "Message sent"
    assert announcements[-1] == "Answer complete. " + "".join(tokens).strip()
    assert set(announcements[1:-1]) <= {"Thinking", "Writing"}
    assert await chat.page.get_by_role("log").get_attribute("aria-live") == "off"


async def test_page_can_be_used_with_the_keyboard_alone(chat: ChatPage, model_service: ModelService) -> None:
    press = chat.page.keyboard.press
    await expect(chat.prompt).to_be_focused()
    model_service.answer("Some code:\n\n```text\nx\n```")
    await chat.page.keyboard.type("Hello")
    await press("Enter")
    await chat.wait_until_done()
    # Shift+Tab from the message field visits each control in page order and is never trapped.
    focused = []
    for _ in range(10):
        await press("Shift+Tab")
        focused.append(
            await chat.page.evaluate(
                "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent).trim()"
            )
        )
    assert focused == [
        "Retry",
        "Copy",
        "Code, text",
        "Copy",
        "Edit",
        "New chat",
        "Settings",
        "Model",
        "Conversations",
        "Skip to the message field",
    ]
    await expect(chat.page.get_by_role("link", name="Skip to the message field")).to_be_in_viewport()
    await press("Enter")
    await expect(chat.prompt).to_be_focused()
    # Escape closes a dialog and returns the focus to the message field.
    await chat.button("Settings").focus()
    await press("Enter")
    await expect(chat.page.get_by_role("dialog", name="Settings")).to_be_visible()
    await press("Escape")
    await expect(chat.page.get_by_role("dialog", name="Settings")).to_be_hidden()
    await expect(chat.prompt).to_be_focused()


async def test_focus_is_visible(chat: ChatPage) -> None:
    for _ in range(7):
        await chat.page.keyboard.press("Tab")
        outlined = await chat.page.evaluate(
            """() => {
                const focused = document.activeElement;
                const outline = getComputedStyle(focused);
                return focused === document.body || focused.id === 'prompt'
                    || (outline.outlineStyle !== 'none' && parseFloat(outline.outlineWidth) >= 2);
            }"""
        )
        assert outlined
    await chat.prompt.focus()
    border_colour = "getComputedStyle(document.querySelector('.composer')).borderTopColor"
    focused = await chat.page.evaluate(border_colour)
    await chat.button("New chat").focus()
    assert await chat.page.evaluate(border_colour) != focused


@pytest.mark.parametrize("width", [360, 320])
async def test_phone_layout_does_not_scroll_horizontally(
    open_chat: OpenChat, model_service: ModelService, width: int
) -> None:
    chat = await open_chat(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)
    long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    model_service.answer(
        EVERYTHING
        + f"\n\n{long * 2}\n\n| {long} | {long} |\n|---|---|\n| a | b |\n\n`{long}`\n\nhttps://example.com/{long}"
    )
    overflow = f"document.documentElement.scrollWidth - {width}"  # on a phone, overflow widens `innerWidth`
    assert await chat.page.evaluate(overflow) <= 0
    await chat.ask_and_wait(long)
    assert await chat.page.evaluate(overflow) <= 0
    model_service.faults[ANY_DEPLOYMENT] = "500"
    await chat.ask("Fail")
    await expect(chat.failure).to_be_visible()
    assert await chat.page.evaluate(overflow) <= 0
    for control in (
        chat.button("Send"),
        chat.button("Settings"),
        chat.button("New chat"),
        chat.prompt,
        chat.model_select,
    ):
        box = await control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 32
    await chat.button("Settings").click()
    await expect(chat.button("Done")).to_be_in_viewport()
    assert await chat.page.evaluate(overflow) <= 0


async def test_each_block_has_the_direction_of_its_text(chat: ChatPage, model_service: ModelService) -> None:
    model_service.answer(
        "مرحبا بالعالم\n\n- قائمة\n- عناصر\n\n> اقتباس\n\n| عمود | آخر |\n|---|---|\n| ١ | ٢ |\n\n"
        "```python\nprint('x')\n```\n\nGrüße aus Köln, groß und übel.\n\n1. eins\n2. zwei"
    )
    await chat.ask_and_wait("اكتب فقرة")
    directions = await chat.answer_text.evaluate(
        "root => [...root.children].map(each => [each.localName, getComputedStyle(each).direction])"
    )
    assert directions == [
        ["p", "rtl"],
        ["ul", "rtl"],
        ["blockquote", "rtl"],
        ["div", "rtl"],
        ["div", "ltr"],
        ["p", "ltr"],
        ["ol", "ltr"],
    ]  # fmt: skip
    assert await chat.page.locator(".bubble").evaluate("each => getComputedStyle(each).direction") == "rtl"
    await chat.prompt.fill("سؤال")
    assert await chat.prompt.evaluate("each => getComputedStyle(each).direction") == "rtl"
    # The list marker is on the right.
    item = chat.answer_text.locator("ul li").first
    assert await item.evaluate("each => parseFloat(getComputedStyle(each.parentElement).paddingRight)") > 0


async def test_colour_scheme_follows_the_preference(open_chat: OpenChat) -> None:
    lightness = {}
    for scheme in ("light", "dark"):
        chat = await open_chat(color_scheme=scheme)
        colour = await chat.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        lightness[scheme] = sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    assert lightness["light"] > 700
    assert lightness["dark"] < 100


async def test_nothing_is_animated_with_reduced_motion(open_chat: OpenChat) -> None:
    chat = await open_chat(reduced_motion="reduce")
    await chat.choose_model(MANUAL_PACE)
    await chat.ask("Wait")
    await expect(chat.answer.locator(".status")).to_contain_text("Thinking")
    assert await chat.page.evaluate("document.getAnimations().length") == 0
