"""Page object for the chat page in a browser: user actions, locators, and checks for unwanted side effects."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, Request, expect

# Chromium logs this for each response with status 400 or above; the tests check how the page handles these.
_EXPECTED_CONSOLE_ERROR = re.compile(r"Failed to load resource")

# The elements and attributes that rendered Markdown may contain; any other would be HTML injected by the model's text.
_ALLOWED_ELEMENTS = {
    "a", "blockquote", "br", "button", "code", "del", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "span", "strong", "svg", "table", "tbody", "td", "th", "thead", "tr", "ul", "use",
}  # fmt: skip
# MathML Core's elements that only show something, with the attributes that the gate to the DOM lets through.
_MATH_ELEMENTS = {
    "annotation", "math", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mrow", "mspace", "msqrt", "mstyle", "msub",
    "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover", "semantics",
}  # fmt: skip
_MATH_ATTRIBUTES = {
    "class", "columnalign", "columnspacing", "display", "encoding", "fence", "form", "lspace", "mathvariant", "maxsize",
    "minsize", "rowspacing", "rspace", "scriptlevel", "displaystyle", "stretchy", "style", "symmetric", "width",
    "movablelimits", "accent", "linethickness", "separator", "height", "depth", "voffset",
}  # fmt: skip
_ALLOWED_ATTRIBUTES = {
    "aria-hidden", "aria-label", "class", "data-action", "data-copied", "dir", "href", "rel", "role", "scope", "start",
    "tabindex", "target", "type",
}  # fmt: skip


class ChatPage:
    """One tab with the chat page. `external_requests` holds the URLs of requests to anything but the app."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.touch = False
        self.requests: list[Request] = []
        self.external_requests: list[str] = []
        self.unexpected_events: list[str] = []  # errors, CSP violations and dialogs
        self.expected_events: list[str] = []  # substrings of events that a test provokes on purpose
        page.on("request", self._on_request)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.unexpected_events.append(f"error: {error}"))
        page.on("dialog", self._on_dialog)

    # ── User actions ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Load the page and wait until it has fetched the models."""
        async with self.page.expect_response("**/v1/models"):
            await self.page.goto(self.url + "/chat")

    async def ask(self, text: str) -> None:
        """Type a message and send it; on a touch screen, Enter makes a line, and the button sends."""
        await self.prompt.fill(text)
        await (self.button("Send").click() if self.touch else self.prompt.press("Enter"))

    async def ask_and_wait(self, text: str) -> None:
        """Send a message and wait until its answer is complete."""
        index = await self.answers.count()
        await self.ask(text)
        await self.wait_until_done(index)

    async def choose_model(self, model: str) -> None:
        """Select a model."""
        await self.model_select.select_option(model)

    # ── Locators ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def prompt(self) -> Locator:
        """The message field."""
        return self.page.get_by_label("Message", exact=True)

    @property
    def model_select(self) -> Locator:
        """The model selector."""
        return self.page.get_by_label("Model", exact=True)

    @property
    def answers(self) -> Locator:
        """All answers, each with its status, notices and toolbar."""
        return self.page.locator(".answer")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.answers.last

    @property
    def answer_text(self) -> Locator:
        """The rendered Markdown of the last answer."""
        return self.answer.locator(".markdown")

    @property
    def failure(self) -> Locator:
        """The error message of the last answer."""
        return self.answer.locator(".failure")

    def button(self, name: str, within: Locator | None = None) -> Locator:
        """The button with this accessible name."""
        return (within or self.page).get_by_role("button", name=name, exact=True)

    async def wait_until_done(self, index: int = -1) -> None:
        """Wait until the answer is complete."""
        await expect(self.answers.nth(index)).to_have_attribute("aria-busy", "false")
        await expect(self.answers.nth(index).locator(".metrics")).to_be_visible()

    async def wait_until_rendered(self, formulas: int) -> None:
        """Wait until the last answer's formulas are MathML and its code has colours."""
        await expect(self.answer_text.locator("math")).to_have_count(formulas)
        await expect(self.answer_text.locator(".hl-keyword")).not_to_have_count(0)

    async def session_storage(self) -> str:
        """The tab's session storage as JSON."""
        return str(await self.page.evaluate("JSON.stringify(Object.entries(sessionStorage))"))

    async def answer_html(self) -> str:
        """The HTML of the last answer, with attributes in alphabetical order."""
        return str(
            await self.answer_text.evaluate(
                """root => {
                    const copy = root.cloneNode(true);
                    for (const each of copy.querySelectorAll('*')) {
                        const attributes = [...each.attributes].sort((a, b) => (a.name < b.name ? -1 : 1));
                        for (const { name } of attributes) each.removeAttribute(name);
                        // The Content-Security-Policy blocks style attributes that are set as text.
                        for (const { name, value } of attributes) if (name !== 'style') each.setAttribute(name, value);
                    }
                    return copy.innerHTML;
                }"""
            )
        )

    async def assert_answer_is_inert(self) -> None:
        """Check that the answer contains only allowed elements and attributes, and links only to allowed schemes."""
        found: Sequence[tuple[str, dict[str, str]]] = await self.answer_text.evaluate(
            "root => [...root.querySelectorAll('*')].map(each => "
            "[each.localName, Object.fromEntries([...each.attributes].map(({name, value}) => [name, value]))])"
        )
        for element, attributes in found:
            if element in _MATH_ELEMENTS:
                assert attributes.keys() <= _MATH_ATTRIBUTES, f"<{element}> has {attributes}"
                assert "url" not in attributes.get("style", "")
                continue
            assert element in _ALLOWED_ELEMENTS, f"<{element}> was rendered from Markdown: {await self.answer_html()}"
            assert attributes.keys() <= _ALLOWED_ATTRIBUTES, f"<{element}> has {attributes}"
            if element == "use":
                assert attributes["href"].startswith("#icon-"), attributes
            elif "href" in attributes:
                assert urlsplit(attributes["href"]).scheme in ("http", "https", "mailto"), attributes
                assert attributes["rel"] == "noopener noreferrer nofollow"
                assert attributes["target"] == "_blank"

    def assert_clean(self) -> None:
        """Check that there was no unexpected error, CSP violation, dialog or external request."""
        unexpected = [each for each in self.unexpected_events if not any(part in each for part in self.expected_events)]
        assert unexpected == [], unexpected
        assert self.external_requests == []

    # ── Event handlers ───────────────────────────────────────────────────────────────────────────────────────────────

    def _on_request(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.url + "/", "data:")):
            self.external_requests.append(request.url)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _EXPECTED_CONSOLE_ERROR.search(message.text):
            self.unexpected_events.append(f"{message.type}: {message.text}")

    async def _on_dialog(self, dialog: Any) -> None:
        self.unexpected_events.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


async def new_tab(context: BrowserContext, url: str) -> ChatPage:
    """Open the chat page in a new tab of this context."""
    chat = ChatPage(await context.new_page(), url)
    await chat.open()
    return chat
