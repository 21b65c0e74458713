"""Long and fast answers: the page stays responsive while it renders them."""

from typing import Self

import pytest

from local.model_service import ModelService

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import CDPSession, Page

from tests.browser.chat_page import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")

LENGTH = 50_000  # characters
PARAGRAPH = (
    "Tokens that *arrive* should be **shown**, with `code` among them, and links like https://example.com/a too. "
)
MIXED = (
    f"{PARAGRAPH * 2}It is \\(a^2 + b^2 = c^2\\), or $\\frac{{1}}{{2}}$.\n\n"
    "\\[\n\\sum_{k=1}^n k = \\frac{n(n+1)}{2}\n\\]\n\n"
    "```python\ndef f(x: int) -> int:\n    return x ** 2 + 1  # a comment\n```\n\n"
    "- an item with **bold**\n- another one\n\n"
)

LONG = {
    "paragraphs": (PARAGRAPH * 4 + "\n\n") * (LENGTH // (len(PARAGRAPH) * 4 + 2)),
    "one paragraph": PARAGRAPH * (LENGTH // len(PARAGRAPH)),
    "one list": f"- {PARAGRAPH}\n" * (LENGTH // (len(PARAGRAPH) + 3)),
    "one block of code": "```python\n" + "    print('a line of code')  # a comment\n" * (LENGTH // 40),
    "formulas and code": MIXED * (LENGTH // len(MIXED)),
    "one table": "| a | b |\n|---|---|\n" + f"| {PARAGRAPH} | b |\n" * (LENGTH // (len(PARAGRAPH) + 9)),
}

# Counts the frames that the page draws once the long part is shown.
COUNT_FRAMES = """() => new Promise((resolve) => {
    window.framesDrawn = 0;
    const check = () => {
        const text = document.querySelector('.markdown')?.textContent ?? '';
        if (!text.includes('more tokens')) return requestAnimationFrame(check);
        const count = () => { window.framesDrawn += 1; requestAnimationFrame(count); };
        count();
        resolve();
    };
    check();
})"""


# Waits for the end without Playwright's polling, whose snapshots of a long page take more time than the page itself.
WAIT_FOR_END = """() => new Promise((resolve) => {
    const check = () => (document.body.classList.contains('busy') ? requestAnimationFrame(check) : resolve());
    check();
})"""


class MainThread:
    """Measures the CPU time of the page's main thread, in seconds. Unlike wall-clock time it does not depend on the
    machine's load."""

    def __init__(self, session: CDPSession) -> None:
        self.session = session

    @classmethod
    async def attach(cls, page: Page) -> Self:
        """Start measuring the main thread of this page."""
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        return cls(session)

    async def cpu_time(self) -> float:
        """The CPU time used so far."""
        metrics = (await self.session.send("Performance.getMetrics"))["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


@pytest.mark.parametrize("kind", LONG)
async def test_page_keeps_up_with_200_tokens_per_second_in_a_long_answer(
    chat: ChatPage, model_service: ModelService, kind: str
) -> None:
    """400 tokens, 200 per second, are appended to the last block of an answer of 50,000 characters."""
    text = LONG[kind].rstrip("\n") if kind == "one paragraph" else LONG[kind]
    model_service.answer([text, *["more", " tokens "] * 200])
    model_service.tokens_per_second = 200
    thread = await MainThread.attach(chat.page)
    await chat.ask("Write")
    await chat.page.evaluate(COUNT_FRAMES)
    before = await thread.cpu_time()
    await chat.page.evaluate(WAIT_FOR_END)
    busy, frames = await thread.cpu_time() - before, await chat.page.evaluate("window.framesDrawn")
    print(f"{kind}: {busy:.2f} s of 2 s busy, {frames} frames")
    assert (await chat.answer_text.text_content() or "").count("more tokens") == 200
    # The thread must stay free most of the 2 s for scrolling and selecting.
    assert busy < 1.4
    # How many there are is the machine's pace; that some come between the first and the last is the page's.
    assert frames > 2


async def test_long_answer_that_arrives_at_once(chat: ChatPage, model_service: ModelService) -> None:
    thread = await MainThread.attach(chat.page)
    model_service.tokens_per_write = 8
    model_service.answer(LONG["paragraphs"])
    before = await thread.cpu_time()
    await chat.ask_and_wait("Write")
    busy = await thread.cpu_time() - before
    print(f"at once: {busy:.2f} s busy")
    assert (await chat.answer_text.inner_text()).count("Tokens that arrive") == LONG["paragraphs"].count("Tokens that")
    assert await chat.answer_text.locator("p").count() == LONG["paragraphs"].count("\n\n")
    assert busy < 3
    await chat.page.reload()
    assert await chat.answer_text.locator("p").count() == LONG["paragraphs"].count("\n\n")
