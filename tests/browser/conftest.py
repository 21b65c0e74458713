"""Fixtures of the browser tests: Chromium, tabs with the chat page, and the app on its host with the model service.

The browser lives as long as the session, so everything runs in the session's event loop. Without a browser the tests
are skipped; in CI (`CI=true`) they fail instead.
"""

import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from local.model_service import ModelService
from tests.browser import chromium
from tests.end_to_end.conftest import app_settings, functions_app, model_service_port
from tests.end_to_end.hosting import HostedApp

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.browser.chat_page import ChatPage

if os.environ.get("CI") == "true":
    for module in ("playwright", "axe_playwright_python"):
        importlib.import_module(module)  # fails here, whereas the test modules would be skipped

__all__ = ("app_settings", "functions_app", "model_service_port")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator["Browser"]:
    """Headless Chromium."""
    from playwright.async_api import async_playwright, expect

    executable = chromium.executable_path()
    if executable is None:
        chromium.skip_or_fail("Chromium is not installed: apt-get install chromium-headless-shell")
    expect.set_options(timeout=20_000)  # allows for a busy machine
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(chromium.FLAGS))
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def app(functions_app: Callable[..., HostedApp], app_settings: Mapping[str, str]) -> HostedApp:
    """A host with the app, with a short commit wait and ping interval to keep the tests fast."""
    return functions_app(env={**app_settings, "COMMIT_WAIT_SECONDS": "0.3", "PING_INTERVAL_SECONDS": "0.2"})


@pytest_asyncio.fixture(loop_scope="session")
async def model_service(model_service_port: int) -> AsyncIterator[ModelService]:
    """A new simulated model service for this test."""
    async with ModelService(port=model_service_port, tokens_per_second=0) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="session")
async def open_chat(
    browser: "Browser", app: HostedApp, model_service: ModelService
) -> AsyncIterator[Callable[..., Awaitable["ChatPage"]]]:
    """Opens the chat page of `app`, or of another host, in a new browser context with Playwright's `options`.

    At the end of the test, every page is checked with `assert_clean`.
    """
    from tests.browser.chat_page import ChatPage, new_tab

    pages: list[ChatPage] = []

    async def open_page(host: HostedApp = app, **options: Any) -> ChatPage:
        options = {"viewport": {"width": 1180, "height": 860}, **options}
        context = await browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        context.set_default_timeout(20_000)
        pages.append(await new_tab(context, host.url))
        pages[-1].touch = options.get("has_touch", False)
        return pages[-1]

    yield open_page
    for chat in pages:
        await chat.page.context.close()
    for chat in pages:
        chat.assert_clean()


@pytest_asyncio.fixture(loop_scope="session")
async def chat(open_chat: Callable[..., Awaitable["ChatPage"]]) -> "ChatPage":
    """A tab with the chat page of `app`."""
    return await open_chat()
