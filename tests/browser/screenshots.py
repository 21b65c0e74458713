"""`python -m tests.browser.screenshots` takes the README's screenshots of the chat page, with the app on its host."""

import asyncio
import json
import tempfile
from functools import partial
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

from local.model_service import DEFAULT_DEPLOYMENT, MANUAL_PACE, ModelService
from local.model_service.text_generation import tokenize
from tests.browser.chat_page import new_tab
from tests.browser.chromium import FLAGS, executable_path
from tests.end_to_end.hosting import HostedApp

SCREENSHOTS = Path(__file__).with_name("screenshots")
MAX_SIZE = 150 * 1024  # bytes per screenshot

LARGE_MODEL = "gpt-5.4"

QUESTION = "How do server-sent events work?"
ANSWER = """\
The server keeps **one HTTP response** open and writes events to it as they happen. Each event is a few lines of text, \
followed by a blank line:

```text
: ping

data: {"text":"The"}

event: done
data: {"finish_reason":"stop"}
```

Three things make the format easy to use:

1. **It is plain HTTP.** Proxies, keys and `curl` work unchanged.
2. **It has an explicit end.** A stream without `done` is incomplete.
3. A comment such as `: ping` keeps the connection alive.

| Format | Framing | Clients |
|:-------|:--------|:-------------|
| SSE | a blank line | browsers, `curl -N` |
| NDJSON | one line | `jq`, pipelines |
"""

PARTIAL_ANSWER = ANSWER[: ANSWER.index(" work unchanged")]  # shown while streaming


async def desktop(browser: Browser, host: HostedApp, service: ModelService, scheme: str) -> Page:
    """A desktop window: a complete answer in the light scheme, a streaming one in the dark scheme."""
    context = await browser.new_context(
        viewport={"width": 1000, "height": 980 if scheme == "light" else 760},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=1.25,
    )
    chat = await new_tab(context, host.url)
    if scheme == "dark":
        await chat.choose_model(LARGE_MODEL)
        await chat.ask(QUESTION)
        service.release(len(tokenize(PARTIAL_ANSWER)))
        await expect(chat.answer_text).to_contain_text("Proxies, keys and curl")
    else:
        await chat.ask_and_wait(QUESTION)
    return chat.page


async def phone(browser: Browser, host: HostedApp, service: ModelService) -> Page:
    """A phone: an Arabic answer, and a rate-limited model with a countdown."""
    context = await browser.new_context(viewport={"width": 360, "height": 780}, device_scale_factor=2)
    chat = await new_tab(context, host.url)
    service.answer("تُكتب الكلمات **واحدة تلو الأخرى**:\n\n1. يصل الرمز الأول\n2. ثم يصل الباقي")
    await chat.ask_and_wait("اشرح البث في جملة")
    service.faults[DEFAULT_DEPLOYMENT] = "429-20"
    await chat.ask("And in German, please")
    await expect(chat.failure).to_be_visible()
    return chat.page


async def main() -> None:
    """Take all screenshots; fail when one is larger than `MAX_SIZE`."""
    SCREENSHOTS.mkdir(exist_ok=True)
    async with ModelService(tokens_per_second=100) as service, async_playwright() as playwright:
        service.answer(ANSWER)
        backends = [
            {"endpoint": service.url, "deployment": DEFAULT_DEPLOYMENT},
            {"endpoint": service.url, "deployment": MANUAL_PACE, "model": LARGE_MODEL},
        ]
        settings = {"AZURE_OPENAI_BACKENDS": json.dumps(backends)}
        browser = await playwright.chromium.launch(executable_path=executable_path(), args=list(FLAGS))
        with HostedApp(Path(tempfile.mkdtemp()), env=settings) as host:
            for name in ("desktop-light", "desktop-dark", "phone"):
                capture = phone if name == "phone" else partial(desktop, scheme=name.removeprefix("desktop-"))
                page = await capture(browser, host, service)
                await page.mouse.move(0, 0)
                path = SCREENSHOTS / f"{name}.png"
                await page.screenshot(path=path, animations="disabled", caret="hide")
                await page.context.close()
                assert path.stat().st_size <= MAX_SIZE, f"{path} has {path.stat().st_size} bytes"
                print(f"{path.relative_to(Path.cwd())}: {path.stat().st_size // 1024} KiB")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
