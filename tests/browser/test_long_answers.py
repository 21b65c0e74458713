"""Long answers and fast ones: the page stays responsive, frame by frame."""

from typing import Self

import pytest

from local.model_service import ModelService

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import CDPSession, Page

from tests.browser.chat_page import ChatPage

pytestmark = pytest.mark.asyncio(loop_scope="session")

LENGTH = 50_000  # characters
PARAGRAPH = (
    "Words that *arrive* should be **shown**, with `code` among them, and links like https://example.com/a too. "
)

LONG = {
    "paragraphs": (PARAGRAPH * 4 + "\n\n") * (LENGTH // (len(PARAGRAPH) * 4 + 2)),
    "one paragraph": PARAGRAPH * (LENGTH // len(PARAGRAPH)),
    "one list": f"- {PARAGRAPH}\n" * (LENGTH // (len(PARAGRAPH) + 3)),
    "one block of code": "```python\n" + "    print('a line of code')  # and why\n" * (LENGTH // 40),
    "one table": "| a | b |\n|---|---|\n" + f"| {PARAGRAPH} | b |\n" * (LENGTH // (len(PARAGRAPH) + 9)),
}

# The frames that the page draws, from the moment when the long part is there.
WATCH = """() => new Promise((resolve) => {
    window.frames_drawn = 0;
    const look = () => {
        if (!document.querySelector('.words')?.textContent.includes('more words')) return requestAnimationFrame(look);
        const count = () => { window.frames_drawn += 1; requestAnimationFrame(count); };
        count();
        resolve();
    };
    look();
})"""


class MainThread:
    """The CPU time that the page's main thread takes, in seconds: unlike a clock's it does not depend on what else runs
    on the machine."""

    def __init__(self, session: CDPSession) -> None:
        self.session = session

    @classmethod
    async def of(cls, page: Page) -> Self:
        """The main thread of this page."""
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        return cls(session)

    async def busy(self) -> float:
        """How long it has been busy until now."""
        metrics = (await self.session.send("Performance.getMetrics"))["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


@pytest.mark.parametrize("kind", LONG)
async def test_two_hundred_tokens_a_second_at_the_end_of_a_long_answer(
    chat: ChatPage, model_service: ModelService, kind: str
) -> None:
    """50,000 characters are there already when the next 400 tokens come, 200 a second, into the same block."""
    text = LONG[kind].rstrip("\n") if kind == "one paragraph" else LONG[kind]
    model_service.answer([text, *["more", " words "] * 200])
    model_service.tokens_per_second = 200
    thread = await MainThread.of(chat.page)
    await chat.ask("Write")
    await chat.page.evaluate(WATCH)
    before = await thread.busy()
    await chat.is_done()
    busy, frames = await thread.busy() - before, await chat.page.evaluate("window.frames_drawn")
    print(f"{kind}: {busy:.2f} s of 2 s busy, {frames} frames")
    assert (await chat.words.text_content() or "").count("more words") == 200
    # Whoever reads, selects or scrolls meanwhile has most of the thread to himself.
    assert busy < 1.4
    assert frames > 5


async def test_a_long_answer_that_comes_at_once(chat: ChatPage, model_service: ModelService) -> None:
    thread = await MainThread.of(chat.page)
    model_service.tokens_per_write = 8
    model_service.answer(LONG["paragraphs"])
    before = await thread.busy()
    await chat.ask_and_wait("Write")
    busy = await thread.busy() - before
    print(f"at once: {busy:.2f} s busy")
    assert (await chat.words.inner_text()).count("Words that arrive") == LONG["paragraphs"].count("Words that")
    assert await chat.words.locator("p").count() == LONG["paragraphs"].count("\n\n")
    assert busy < 3
    await chat.page.reload()
    assert await chat.words.locator("p").count() == LONG["paragraphs"].count("\n\n")
