"""The chat page as served: complete, self-contained, and with headers that allow no other scripts."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from relay import page

CHAT_HTML = Path(page.__file__).with_name("chat.html")


@pytest.fixture(autouse=True)
def built_anew() -> None:
    """Mutation testing replaces functions after the import, and forgets no cache."""
    page._page.cache_clear()


class _Elements(HTMLParser):
    """All elements with their attributes, and the text of inline scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.current: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.current = tag if tag in self.inline else None
        if self.current:
            self.inline[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.current:
            self.inline[self.current][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.current = None


def csp_directives() -> dict[str, list[str]]:
    """The Content-Security-Policy as a mapping from directive to sources."""
    policy = page.chat_page().headers["content-security-policy"]
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


def csp_hash(text: str) -> str:
    """The CSP hash source of an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_page_is_served_complete() -> None:
    response = page.chat_page()
    assert response.status_code == 200
    assert response.body == CHAT_HTML.read_bytes()
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_csp_allows_only_the_inline_script_and_style() -> None:
    elements = _Elements(CHAT_HTML.read_text("utf-8"))
    assert csp_directives() == {
        "default-src": ["'none'"],
        "script-src": [csp_hash(text) for text in elements.inline["script"]],
        "style-src": [csp_hash(text) for text in elements.inline["style"]],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }
    assert len(elements.inline["script"]) == len(elements.inline["style"]) == 1


def test_page_has_security_and_cache_headers() -> None:
    headers = page.chat_page().headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "microphone=()" in headers["permissions-policy"]
    assert headers["cache-control"] == "no-cache"


def test_matching_etag_gets_304() -> None:
    tag = page.chat_page().headers["etag"]
    response = page.chat_page(f'"other", W/{tag}')
    assert (response.status_code, response.body) == (304, b"")
    assert response.headers["etag"] == tag
    assert "content-security-policy" in response.headers
    assert page.chat_page('"other"').status_code == 200


def test_page_has_no_external_resource_inline_handler_or_inline_style() -> None:
    for tag, attributes in _Elements(CHAT_HTML.read_text("utf-8")).found:
        assert tag not in {"iframe", "object", "embed", "base", "img", "audio", "video"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert name not in {"style", "srcset", "src", "action", "formaction", "ping"}, f"<{tag} {name}>"
            if name == "href":
                assert value is not None
                assert value.startswith(("#", "data:image/svg+xml,")), value


def test_script_never_parses_text_as_html() -> None:
    (script,) = _Elements(CHAT_HTML.read_text("utf-8")).inline["script"]
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert sink not in script
    assert not re.search(r"\b(?:localStorage|indexedDB|document\.cookie|sendBeacon|XMLHttpRequest|WebSocket)\b", script)
    # The only two URLs that the script fetches.
    assert set(re.findall(r'siblingUrl\("([^"]+)"\)', script)) == {"stream", "v1/models"}
    assert len(re.findall(r"\bfetch\(", script)) == 2
