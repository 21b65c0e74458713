"""The chat page as served: complete, self-contained, and with headers that allow no other scripts."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from relay import page

CHAT_HTML = Path(page.__file__).with_name("chat.html")
ASSETS = CHAT_HTML.with_name("assets")
WEB = Path(__file__).resolve().parent.parent / "web"


@pytest.fixture(autouse=True)
def built_anew() -> None:
    """Mutation testing replaces functions after the import, and forgets no cache."""
    for function in (page._page, page._asset, page._asset_names, page._compressed):
        function.cache_clear()


class _Elements(HTMLParser):
    """All elements with their attributes, and the text of inline scripts and styles: data blocks are no scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.current: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.current = tag if tag in self.inline and ("type", "application/json") not in attrs else None
        if self.current:
            self.inline[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.current:
            self.inline[self.current][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.current = None


def csp_directives() -> dict[str, list[str]]:
    """The Content-Security-Policy as a mapping from directive to sources."""
    policy = page.chat_page({}).headers["content-security-policy"]
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


def csp_hash(text: str) -> str:
    """The CSP hash source of an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_page_is_served_complete() -> None:
    response = page.chat_page({})
    assert response.status_code == 200
    assert response.body == CHAT_HTML.read_bytes()
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_csp_allows_only_the_inline_script_and_style() -> None:
    elements = _Elements(CHAT_HTML.read_text("utf-8"))
    assert csp_directives() == {
        "default-src": ["'none'"],
        "script-src": [
            *(csp_hash(text) for text in elements.inline["script"]),
            *(csp_hash(path.read_text("utf-8")) for path in sorted(ASSETS.glob("*.js"))),
        ],
        "style-src": [csp_hash(text) for text in elements.inline["style"]],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }
    assert len(elements.inline["script"]) == 2  # the import map, and the page's module
    assert len(elements.inline["style"]) == 1


def test_the_import_map_has_the_integrity_of_each_imported_file() -> None:
    import_map, _ = _Elements(CHAT_HTML.read_text("utf-8")).inline["script"]
    integrity = json.loads(import_map)["integrity"]
    expected = {}
    for path in ASSETS.glob("*.js"):
        # The page is at …/chat or …/chat/.
        for folder in ("./chat/assets/", "./assets/"):
            expected[folder + path.name] = csp_hash(path.read_text("utf-8")).strip("'")
    assert integrity == expected


def test_page_has_security_and_cache_headers() -> None:
    headers = page.chat_page({}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "microphone=()" in headers["permissions-policy"]
    assert headers["cache-control"] == "no-cache"


def test_matching_etag_gets_304() -> None:
    tag = page.chat_page({}).headers["etag"]
    response = page.chat_page({"if-none-match": f'"other", W/{tag}'})
    assert (response.status_code, response.body) == (304, b"")
    assert response.headers["etag"] == tag
    assert "content-security-policy" in response.headers
    assert page.chat_page({"if-none-match": '"other"'}).status_code == 200


def test_page_has_no_external_resource_inline_handler_or_inline_style() -> None:
    for tag, attributes in _Elements(CHAT_HTML.read_text("utf-8")).found:
        assert tag not in {"iframe", "object", "embed", "base", "img", "audio", "video"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert name not in {"style", "srcset", "src", "action", "formaction", "ping"}, f"<{tag} {name}>"
            if name == "href":
                assert value is not None
                assert value.startswith(("#", "data:image/svg+xml,")), value


@pytest.mark.parametrize(
    "path", [CHAT_HTML, *sorted(ASSETS.glob("*.js"))], ids=lambda path: path.name.partition("-")[0]
)
def test_script_never_parses_text_as_html(path: Path) -> None:
    text = path.read_text("utf-8")
    script = _Elements(text).inline["script"][1] if path == CHAT_HTML else text
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write(", "srcdoc", "setHTML"):
        assert sink not in script
    assert not re.search(r"\b(?:eval|Function)\(", script)
    assert not re.search(r"\b(?:document\.cookie|sendBeacon|XMLHttpRequest|WebSocket|EventSource)\b", script)


def test_page_requests_only_what_the_app_serves() -> None:
    source = "".join(path.read_text("utf-8") for path in sorted((WEB / "src").rglob("*.ts")))
    assert set(re.findall(r"siblingUrl\(.(\w[^)\"`$]*)", source)) == {"stream", "stream/", "v1/models", "chat/assets/"}
    assert len(re.findall(r"\bfetch\(", source)) == 5


# ---- Configuration ---------------------------------------------------------------------------------------------------


def config_of(body: bytes) -> object:
    found = re.search(rb'<script type="application/json" id="config">(.*?)</script>', body)
    assert found is not None
    return json.loads(found[1])


def test_configuration_is_data_in_the_page() -> None:
    config = {"name": "</script><script>alert(1)</script>", "notice": "a & b <!-- \u2028 ü"}
    response = page.chat_page({}, config)
    assert config_of(bytes(response.body)) == config
    assert b"<script>alert" not in response.body
    # The scripts are the same, and so is what may run.
    assert response.headers["content-security-policy"] == page.chat_page({}).headers["content-security-policy"]
    assert response.headers["etag"] != page.chat_page({}).headers["etag"]
    assert config_of(bytes(page.chat_page({}).body)) == {}


# ---- Compression and assets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5", "GZIP", "deflate , gzip ; q=1"])
def test_page_is_compressed_for_clients_that_accept_it(accepted: str) -> None:
    response = page.chat_page({"accept-encoding": accepted})
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(bytes(response.body)) == page.chat_page({}).body
    assert len(response.body) <= 60 * 1024, "the first load is too large"


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0", "gzip; q=0.000", "*"])
def test_page_is_not_compressed_for_other_clients(accepted: str) -> None:
    response = page.chat_page({"accept-encoding": accepted})
    assert "content-encoding" not in response.headers
    assert response.headers["vary"] == "Accept-Encoding"


def test_assets_are_served_for_good() -> None:
    paths = sorted(ASSETS.iterdir())
    assert paths
    for path in paths:
        response = page.asset(path.name, {})
        assert response is not None
        assert response.body == path.read_bytes()
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.media_type == ("text/javascript" if path.suffix == ".js" else "application/json")
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] in path.name
        compressed = page.asset(path.name, {"accept-encoding": "gzip"})
        assert compressed is not None
        assert gzip.decompress(bytes(compressed.body)) == path.read_bytes()
        again = page.asset(path.name, {"if-none-match": response.headers["etag"]})
        assert again is not None
        assert (again.status_code, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["", "..", "../chat.html", "nothing.js", "../__init__.py", "%2e%2e", "."])
def test_no_other_file_is_served(name: str) -> None:
    assert page.asset(name, {}) is None


def test_home_leads_to_the_page() -> None:
    response = page.redirect()
    assert response.status_code == 302
    assert response.headers["location"] == "chat"


# ---- The build -------------------------------------------------------------------------------------------------------


def hashes(paths: Iterable[Path], root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_what_is_served_was_built_from_these_sources() -> None:
    """Without Node this is all that can be checked; `make web-check` builds the page and compares."""
    manifest = json.loads(CHAT_HTML.with_name("build.json").read_text("utf-8"))
    sources = [path for path in (WEB / "src").rglob("*") if path.is_file()]
    remedy = "run `make web` and commit what it writes"
    assert manifest["sources"] == hashes([*sources, WEB / "build.mjs", WEB / "package-lock.json"], WEB), remedy
    assert manifest["outputs"] == hashes([CHAT_HTML, *ASSETS.iterdir()], CHAT_HTML.parent), remedy


def test_no_registry_address_is_stored() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text("utf-8"))
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert "registry=" not in re.sub(r"registry-resolved=", "", (WEB / ".npmrc").read_text("utf-8"))
