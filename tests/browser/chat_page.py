"""The chat page in a browser as a reader sees it: what can be done there, and what must never happen there."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, Request, expect

# Chromium writes one for each answer of 400 and above; the page is tested on what it makes of them.
_EXPECTED_ERROR = re.compile(r"Failed to load resource")

# What rendered Markdown may consist of; anything else would be markup that the model's text has become.
_ELEMENTS = {
    "a", "blockquote", "br", "button", "code", "del", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "span", "strong", "svg", "table", "tbody", "td", "th", "thead", "tr", "ul", "use",
}  # fmt: skip
_ATTRIBUTES = {
    "aria-hidden", "aria-label", "class", "data-deed", "data-told", "dir", "href", "rel", "role", "scope", "start",
    "tabindex", "target", "type",
}  # fmt: skip


class ChatPage:
    """One tab with the chat page. `left_app` holds the addresses of requests that went anywhere but to the app."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[Request] = []
        self.left_app: list[str] = []
        self.complaints: list[str] = []  # errors, broken policies and dialogs; none is ever expected
        self.expected: list[str] = []  # parts of complaints that a test provokes
        page.on("request", self._requested)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", self._dialog)

    # ── What a reader does ───────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Load the page and wait until it knows the models."""
        async with self.page.expect_response("**/v1/models"):
            await self.page.goto(self.url + "/chat")

    async def ask(self, text: str) -> None:
        """Write a message and send it."""
        await self.prompt.fill(text)
        await self.prompt.press("Enter")

    async def ask_and_wait(self, text: str) -> None:
        """Send a message and wait until its answer is complete."""
        answered = await self.answers.count()
        await self.ask(text)
        await self.is_done(answered)

    async def choose(self, model: str) -> None:
        """Choose a model."""
        await self.models.select_option(model)

    # ── What there is ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def prompt(self) -> Locator:
        """The message field."""
        return self.page.get_by_label("Message", exact=True)

    @property
    def models(self) -> Locator:
        """The choice of models."""
        return self.page.get_by_label("Model", exact=True)

    @property
    def answers(self) -> Locator:
        """Each answer, with all that surrounds it."""
        return self.page.locator(".answer")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.answers.last

    @property
    def words(self) -> Locator:
        """The words of the last answer."""
        return self.answer.locator(".words")

    @property
    def failure(self) -> Locator:
        """What the last answer says of its failure."""
        return self.answer.locator(".failure")

    def button(self, name: str, within: Locator | None = None) -> Locator:
        """A button by what it is called."""
        return (within or self.page).get_by_role("button", name=name, exact=True)

    async def is_done(self, index: int = -1) -> None:
        """Wait until the answer is complete."""
        await expect(self.answers.nth(index)).to_have_attribute("aria-busy", "false")
        await expect(self.answers.nth(index).locator(".measures")).to_be_visible()

    async def stored(self) -> str:
        """All that the tab remembers."""
        return str(await self.page.evaluate("JSON.stringify(Object.entries(sessionStorage))"))

    async def rendered(self) -> str:
        """The markup of the last answer's words, attributes in alphabetical order."""
        return str(
            await self.words.evaluate(
                """root => {
                    const copy = root.cloneNode(true);
                    for (const each of copy.querySelectorAll('*')) {
                        const attributes = [...each.attributes].sort((a, b) => (a.name < b.name ? -1 : 1));
                        for (const { name } of attributes) each.removeAttribute(name);
                        for (const { name, value } of attributes) each.setAttribute(name, value);
                    }
                    return copy.innerHTML;
                }"""
            )
        )

    async def stays_inert(self) -> None:
        """The words are made of nothing but plain elements, and every link leads where a link may."""
        found: Sequence[tuple[str, dict[str, str]]] = await self.words.evaluate(
            "root => [...root.querySelectorAll('*')].map(each => "
            "[each.localName, Object.fromEntries([...each.attributes].map(({name, value}) => [name, value]))])"
        )
        for element, attributes in found:
            assert element in _ELEMENTS, f"<{element}> came out of Markdown: {await self.rendered()}"
            assert attributes.keys() <= _ATTRIBUTES, f"<{element}> has {attributes}"
            if element == "use":
                assert attributes["href"].startswith("#icon-"), attributes
            elif "href" in attributes:
                assert urlsplit(attributes["href"]).scheme in ("http", "https", "mailto"), attributes
                assert attributes["rel"] == "noopener noreferrer nofollow"
                assert attributes["target"] == "_blank"

    def is_clean(self) -> None:
        """Nothing went wrong that nobody sees: no error, no broken policy, no dialog, no request to elsewhere."""
        unexpected = [each for each in self.complaints if not any(part in each for part in self.expected)]
        assert unexpected == []
        assert self.left_app == []

    # ── What is noted ────────────────────────────────────────────────────────────────────────────────────────────────

    def _requested(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.url + "/", "data:")):
            self.left_app.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _EXPECTED_ERROR.search(message.text):
            self.complaints.append(f"{message.type}: {message.text}")

    async def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


async def new_tab(context: BrowserContext, url: str) -> ChatPage:
    """A tab of this context with the chat page open."""
    chat = ChatPage(await context.new_page(), url)
    await chat.open()
    return chat
