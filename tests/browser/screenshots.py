"""`python -m tests.browser.screenshots`: the README's pictures of the chat page, taken of the app on its host."""

import asyncio
import json
import tempfile
from functools import partial
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

from local.answers import tokenize
from local.model_service import BY_HAND, DEFAULT_DEPLOYMENT, ModelService
from tests.browser.chat_page import new_tab
from tests.browser.chromium import FLAGS, program
from tests.end_to_end.hosting import HostedApp

FOLDER = Path(__file__).with_name("screenshots")
LIMIT = 150 * 1024  # bytes of one picture

LARGE = "gpt-5.4"

QUESTION = "How do server-sent events work?"
ANSWER = """\
The server keeps **one HTTP response** open and writes events into it as they happen. Each is a few lines of text, and \
a blank line ends it:

```text
: ping

data: {"text":"The"}

event: done
data: {"finish_reason":"stop"}
```

Three things make the format pleasant:

1. **It is plain HTTP.** Proxies, keys and `curl` work as they are.
2. **It ends on purpose.** A stream without `done` was cut.
3. A comment such as `: ping` tells the reader that somebody is still there.

| Format | Framing | Read it with |
|:-------|:--------|:-------------|
| SSE | a blank line | browsers, `curl -N` |
| NDJSON | one line | `jq`, pipelines |
"""

SHOWN = ANSWER[: ANSWER.index(" work as they are")]  # while it is being written


async def desktop(browser: Browser, host: HostedApp, service: ModelService, scheme: str) -> Page:
    """A conversation on a desktop's screen: in the light a complete answer, in the dark one that is being written."""
    context = await browser.new_context(
        viewport={"width": 1000, "height": 980 if scheme == "light" else 760},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=1.25,
    )
    chat = await new_tab(context, host.url)
    if scheme == "dark":
        await chat.choose(LARGE)
        await chat.ask(QUESTION)
        service.release(len(tokenize(SHOWN)))
        await expect(chat.words).to_contain_text("Proxies, keys and curl")
    else:
        await chat.ask_and_wait(QUESTION)
    return chat.page


async def phone(browser: Browser, host: HostedApp, service: ModelService) -> Page:
    """A phone, an answer in another script, and a model that is busy for a while."""
    context = await browser.new_context(viewport={"width": 360, "height": 780}, device_scale_factor=2)
    chat = await new_tab(context, host.url)
    service.answer("تُكتب الكلمات **واحدة تلو الأخرى**:\n\n1. يصل الرمز الأول\n2. ثم يصل الباقي")
    await chat.ask_and_wait("اشرح البث في جملة")
    service.faults[DEFAULT_DEPLOYMENT] = "429-20"
    await chat.ask("And in German, please")
    await expect(chat.failure).to_be_visible()
    return chat.page


async def main() -> None:
    """Take every picture; fails when one is too large for a README."""
    FOLDER.mkdir(exist_ok=True)
    async with ModelService(tokens_per_second=100) as service, async_playwright() as playwright:
        service.answer(ANSWER)
        backends = [
            {"endpoint": service.url, "deployment": DEFAULT_DEPLOYMENT},
            {"endpoint": service.url, "deployment": BY_HAND, "model": LARGE},
        ]
        settings = {"AZURE_OPENAI_BACKENDS": json.dumps(backends)}
        browser = await playwright.chromium.launch(executable_path=program(), args=list(FLAGS))
        with HostedApp(Path(tempfile.mkdtemp()), env=settings) as host:
            for name in ("desktop-light", "desktop-dark", "phone"):
                take = phone if name == "phone" else partial(desktop, scheme=name.removeprefix("desktop-"))
                page = await take(browser, host, service)
                await page.mouse.move(0, 0)
                path = FOLDER / f"{name}.png"
                await page.screenshot(path=path, animations="disabled", caret="hide")
                await page.context.close()
                assert path.stat().st_size <= LIMIT, f"{path} has {path.stat().st_size} bytes"
                print(f"{path.relative_to(Path.cwd())}: {path.stat().st_size // 1024} KiB")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
