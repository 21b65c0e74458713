"""Markdown rendering: correct output, independent of how the text was split, and safe against injection."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from local.model_service import ModelService
from tests.end_to_end.hosting import HostedApp

pytest.importorskip("playwright", reason="pip install -r tests/browser/requirements.txt")

from playwright.async_api import Browser, expect

from tests.browser.chat_page import ChatPage, new_tab
from tests.browser.samples import EVERYTHING

pytestmark = pytest.mark.asyncio(loop_scope="session")

type OpenChat = Callable[..., Awaitable[ChatPage]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_tab(browser: Browser, app: HostedApp) -> AsyncIterator[ChatPage]:
    """A tab shared by the tests that do not need their own."""
    context = await browser.new_context(viewport={"width": 1180, "height": 860})
    yield await new_tab(context, app.url)
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def fresh_chat(shared_tab: ChatPage, model_service: ModelService) -> AsyncIterator[ChatPage]:
    """A new chat in the shared tab."""
    await shared_tab.button("New chat").click()
    yield shared_tab
    shared_tab.assert_clean()


def split_text(text: str, size: int) -> list[str]:
    """The text in pieces of `size` characters."""
    return [text[at : at + size] for at in range(0, len(text), size)]


async def render(chat: ChatPage, service: ModelService, text: str | list[str]) -> str:
    """Make the model return this text; return the rendered HTML without classes, directions, tab indexes and roles."""
    service.answer(text)
    await chat.ask_and_wait("Write")
    await chat.assert_answer_is_inert()
    return re.sub(r' (?:class|dir|tabindex|role)="[^"]*"', "", await chat.answer_html())


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("# One\n## Two ##\n#hashtag", "<h3>One</h3><h4>Two</h4><p>#hashtag</p>"),
        ("a\nb  \nc", "<p>a<br>b<br>c</p>"),
        ("**a *b* c** __d__ _e_", "<p><strong>a <em>b</em> c</strong> <strong>d</strong> <em>e</em></p>"),
        ("***a***", "<p><em><strong>a</strong></em></p>"),
        ("**a* *b **c", "<p>*<em>a</em> *b **c</p>"),
        ("snake_case_name 2*3*4 * x", "<p>snake_case_name 2<em>3</em>4 * x</p>"),
        ("~~a~~ ~b~", "<p><del>a</del> ~b~</p>"),
        ("`a`` b` ``c`d``", "<p><code>a`` b</code> <code>c`d</code></p>"),
        ("\\*a\\* \\_ \\\\", "<p>*a* _ \\</p>"),
        ("- a\n- b\n  - c\n\n  d\n* e", "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d</p></li></ul><ul><li><p>e</p></li></ul>"),  # noqa: E501
        ("1. a\n  - b\n    - c\n2. d", '<ol start="1"><li><p>a</p><ul><li><p>b</p><ul><li><p>c</p></li></ul></li></ul></li><li><p>d</p></li></ol>'),  # noqa: E501
        ("7) a\n8) b", '<ol start="7"><li><p>a</p></li><li><p>b</p></li></ol>'),
        ("text\n1. a\n\ntext\n2. b", '<p>text</p><ol start="1"><li><p>a</p></li></ol><p>text<br>2. b</p>'),
        ("- ```\n  code\n  ```\n- b", None),
        ("> a\nb\n> > c", "<blockquote><p>a<br>b</p><blockquote><p>c</p></blockquote></blockquote>"),
        ("* * *\n---\n___", "<hr><hr><hr>"),
        ("a\n---\nb", "<h4>a</h4><p>b</p>"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", '<div aria-label="Table"><table><thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>'),  # noqa: E501
        ("a | b\nc", "<p>a | b<br>c</p>"),
        ("&lt;b&gt; &copy; &#x41; &nope; &#0;", "<p>&lt;b&gt; © A &amp;nope; \ufffd</p>"),
        ("a<br>b<br/>c<b>d</b>", "<p>a<br>b<br>c&lt;b&gt;d&lt;/b&gt;</p>"),
        ("[a][b] [c] [d](relative) [e]()", "<p>[a][b] [c] d e</p>"),
    ],
)  # fmt: skip
async def test_construct_is_rendered_correctly(
    fresh_chat: ChatPage, model_service: ModelService, source: str, html: str | None
) -> None:
    rendered = await render(fresh_chat, model_service, source)
    if html is not None:
        assert rendered == html
    else:
        assert await fresh_chat.answer_text.locator("li").first.locator("code").inner_text() == "code\n"


async def test_links_have_the_right_url(fresh_chat: ChatPage, model_service: ModelService) -> None:
    await render(fresh_chat, model_service, EVERYTHING)
    links = await fresh_chat.answer_text.locator("a").evaluate_all(
        "all => all.map(a => [a.textContent, a.getAttribute('href')])"
    )
    assert links == [
        ["a link", "https://example.com/a_(b)?q=1&r=2"],
        ["https://example.com/auto", "https://example.com/auto"],
        ["https://example.com/bare", "https://example.com/bare"],
        ["someone@example.com", "mailto:someone@example.com"],
        ["a picture", "https://example.com/x.png"],
    ]


async def test_code_keeps_every_character(fresh_chat: ChatPage, model_service: ModelService) -> None:
    await render(fresh_chat, model_service, EVERYTHING)
    blocks = fresh_chat.answer_text.locator("pre code")
    assert await blocks.all_text_contents() == [
        'def f(x):\n\treturn "<i>" + x  # & more\n\n',
        "indented code\n",
        "tildes\n",
    ]
    await expect(fresh_chat.answer_text.get_by_role("group", name="Code, python")).to_be_visible()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_streamed_rendering_equals_rendering_at_once(
    chat: ChatPage, model_service: ModelService, size: int
) -> None:
    """Text that arrived in pieces looks the same as after a reload, which renders it at once."""
    model_service.tokens_per_second = 300 if size < 7 else 40
    await render(chat, model_service, split_text(EVERYTHING, size))
    await chat.wait_until_rendered(formulas=2)
    streamed = await chat.answer_html()
    await chat.page.reload()
    await chat.wait_until_rendered(formulas=2)
    assert streamed == await chat.answer_html()
    for delimiter in ("**", "~~", "```", "|:-", "[x]"):
        assert delimiter not in await chat.answer_text.inner_text()


async def test_finished_blocks_are_not_rendered_again(chat: ChatPage, model_service: ModelService) -> None:
    model_service.tokens_per_second = 40
    model_service.answer(["# Title\n\n", "A **paragraph**.\n\n", *(f"- item {number}\n" for number in range(40))])
    await chat.ask("Write")
    await expect(chat.answer_text.locator("li")).not_to_have_count(0)
    await chat.answer_text.evaluate("root => { for (const each of root.querySelectorAll('*')) each.marked = true; }")
    await chat.wait_until_done()
    unchanged = "root => [...root.children, root.querySelector('li')].map(each => each.marked === true)"
    assert await chat.answer_text.evaluate(unchanged) == [True, True, True, True]


PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<svg onload=alert(1)><a xlink:href="javascript:alert(1)"><text>x</text></a></svg>',
    '<iframe srcdoc="<script>parent.alert(1)</script>"></iframe>',
    "<style>@import 'https://evil.example/x.css';</style>",
    '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
    '<base href="https://evil.example/"><form action="https://evil.example/"><button>b</button></form>',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;&#x61;vascript&colon;alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x]( javascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1)) [x](file:///etc/passwd) [x](blob:https://evil.example/1)",
    "[x](//evil.example/) [x](/chat?code=1) [x](stream)",
    '[x](https://a.example/" onclick="alert(1) "t" onmouseover="alert(1)")',
    "[x](https://a.example/ \"\\\"><img src=x onerror=alert(1)>\")",
    "[<img src=x onerror=alert(1)>](https://a.example/)",
    "![x](https://evil.example/pixel.png)",
    '![x" onerror="alert(1)](https://evil.example/pixel.png "onerror=alert(1)")',
    "![x](javascript:alert(1))",
    "[![x](javascript:alert(1))](javascript:alert(1))",
    "<javascript:alert(1)> <data:text/html,x> <https://a.example/\"onclick=alert(1)>",
    "https://a.example/\"onmouseover=alert(1) https://a.example/<script>alert(1)</script>",
    "[x]: javascript:alert(1)\n\n[x] [y][x]",
    "```\"><script>alert(1)</script>\nx\n```",
    "```js onclick=alert(1)\n</code></pre><script>alert(1)</script>\n```",
    "`<img src=x onerror=alert(1)>`",
    "    <script>alert(1)</script>",
    "| <script>alert(1)</script> | [x](javascript:alert(1)) |\n|---|:-:\" onclick=alert(1)|\n| ![x](https://evil.example/p) | <b onclick=alert(1)>b</b> |",  # noqa: E501
    "| a | b |\n|---|---|\n| <script>alert(1)</script> | [x](javascript:alert(1)) ![x](https://evil.example/p.png) |",
    "> <script>alert(1)</script>\n> > [x](javascript:alert(1))",
    "- <script>alert(1)</script>\n  1. [x](javascript:alert(1))\n- [x] <img src=x onerror=alert(1)>",
    "# <script>alert(1)</script> [x](javascript:alert(1))",
    "**<script>alert(1)</script>** *[x](javascript:alert(1))* ~~<img src=x onerror=alert(1)>~~",
    "<details open ontoggle=alert(1)><summary>s</summary></details><video><source onerror=alert(1)></video>",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=alert(1)&#62;",
    "<a href=\"javascript:alert(1)\" id=prompt name=send class=action>x</a><input autofocus onfocus=alert(1)>",
    "<![CDATA[<script>alert(1)</script>]]> <!-- --><script>alert(1)</script> <?php alert(1) ?>",
    "$\\href{javascript:alert(1)}{x}$ \\(\\htmlClass{a}{b} \\htmlStyle{background:url(https://evil.example/)}{c}\\)",
    "$\\color{red}x$ \\[\\includegraphics{https://evil.example/pixel.png}\\] \\(\\text{<img src=x onerror=alert(1)>}\\)",  # noqa: E501
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} %3Cscript%3Ealert(1)%3C/script%3E",
    "\u202e<script>alert(1)</script>\u2028<script>alert(1)</script>\x00<script>alert(1)</script>",
]  # fmt: skip


@pytest.mark.parametrize("with_csp", [True, False], ids=["csp", "no csp"])
async def test_model_output_cannot_run_scripts_or_fetch(
    open_chat: OpenChat, model_service: ModelService, with_csp: bool
) -> None:
    """The renderer is safe without the CSP as well."""
    chat = await open_chat(bypass_csp=not with_csp)
    model_service.tokens_per_second = 0
    for first in range(0, len(PAYLOADS), 6):
        await render(chat, model_service, split_text("\n\n".join(PAYLOADS[first : first + 6]), 3))
    model_service.answer("\n\n".join(PAYLOADS))
    await chat.ask_and_wait("All of it: <img src=x onerror=alert(1)> [x](javascript:alert(1))")
    await chat.assert_answer_is_inert()
    for element in await chat.answer_text.locator("a, button").all():
        await element.dispatch_event("mouseover")
        await element.dispatch_event("focus")
    await chat.page.reload()
    await chat.assert_answer_is_inert()
    assert "<script>alert(1)</script>" in await chat.answer_text.inner_text()
    assert await chat.page.locator("script").count() == 3  # data, import map, module
    for part in ("evil.example", "a.example"):
        assert not [request.url for request in chat.requests if part in request.url]
    chat.assert_clean()


async def test_csp_blocks_an_injected_script(chat: ChatPage) -> None:
    chat.expected_events += ["Content Security Policy", "TrustedHTML", "Trusted Type", "TrustedScript"]
    assert await chat.page.evaluate(
        """() => {
            const attempts = [
                () => { document.body.innerHTML += '<img src=x onerror="window.ran = 1">'; },
                () => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); },
                () => { document.body.setAttribute('onclick', 'window.ran = 1'); document.body.click(); },
                () => { const a = document.createElement('a'); a.href = 'javascript:window.ran = 1'; a.click(); },
                () => { new Image().src = 'https://evil.example/pixel.png'; },
            ];
            for (const attempt of attempts) try { attempt(); } catch { /* blocked synchronously */ }
            return new Promise((resolve) => setTimeout(() => resolve(window.ran ?? 0), 200));
        }"""  # noqa: E501
    ) == 0  # fmt: skip
    assert await chat.page.evaluate("fetch('https://evil.example/').then(() => 'sent', () => 'blocked')") == "blocked"
    chat.external_requests.clear()  # Chromium also reports requests that the CSP blocks


@pytest.mark.parametrize(
    "source",
    [
        "*a " * 8000 + "b* " * 8000,
        "**a" * 6000,
        "[" * 50000,
        "](" * 25000,
        "[a](" * 12500,
        "`" * 20000 + " " + "`" * 10001,
        "> " * 20000 + "x",
        "- " * 20000 + "x",
        "<" * 50000,
        "<a" * 25000,
        "&" * 50000,
        "~" * 50000 + "`",
        "```" + " " * 50000 + "`",
        "# " + " #" * 25000,
        "a|\n-" + " " * 50000 + "x",
        " " * 50000 + "x",
        "https://" * 6000,
        "http://a" + ")" * 50000,
        "![" * 20000 + "](x)" * 5000,
        "_a_ " * 5000,
        "\\" * 50000,
        "|" * 20000 + "\n" + "|-" * 20000,
    ],
    ids=lambda source: source[:6].strip() or "spaces",
)
async def test_pathological_text_does_not_hang_the_page(
    fresh_chat: ChatPage, model_service: ModelService, source: str
) -> None:
    model_service.tokens_per_write = 1
    await render(fresh_chat, model_service, split_text(source, 4000))
    assert await fresh_chat.page.evaluate("1 + 1") == 2
