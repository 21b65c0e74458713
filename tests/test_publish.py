"""The publish script and the smoke test, against an az and an app of the test's own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra import publish, smoke

ROOT = Path(__file__).resolve().parent.parent

RULES = "# comment\r\n*\n!function_app.py\n!host.json\n!requirements.txt\n!relay/\n!relay/**\n__pycache__/\n*.pyc\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name, text in {
        ".funcignore": RULES,
        "function_app.py": "app",
        "host.json": "{}",
        "requirements.txt": "",
        "local.settings.json": "a key",
        "relay/__init__.py": "",
        "relay/deep/page.html": "<p>",
        "relay/__pycache__/a.cpython-313.pyc": "compiled",
        "relay/b.pyc": "compiled",
        "tests/test.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


PACKED = ["function_app.py", "host.json", "relay/__init__.py", "relay/deep/page.html", "requirements.txt"]


# ---- The package -----------------------------------------------------------------------------------------------------


def test_only_what_funcignore_leaves_is_packed(project: Path) -> None:
    assert publish.package_files(project) == PACKED


@pytest.mark.parametrize("rule", ["relay/*.py", "/tests", "!**/*.py", "a b", "!../secret"])
def test_a_rule_that_terraform_would_read_otherwise_is_refused(project: Path, rule: str) -> None:
    (project / ".funcignore").write_text(f"{RULES}{rule}\n", encoding="utf-8")
    with pytest.raises(publish.PublishError, match="none of the kinds"):
        publish.package_files(project)


@pytest.mark.parametrize(
    "rules",
    ["!relay/**\n", "!relay/**\n*\n", "*\n__pycache__/\n!relay/**\n"],
    ids=["nothing is left out", "everything is", "compiled files go in"],
)
def test_rules_in_an_order_that_git_would_read_otherwise_are_refused(project: Path, rules: str) -> None:
    (project / ".funcignore").write_text(rules, encoding="utf-8")
    with pytest.raises(publish.PublishError, match="must leave everything out"):
        publish.package_files(project)


def test_the_package_is_the_same_byte_for_byte(project: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    publish.write_package(project, first)
    for name in PACKED:
        os.utime(project / name, (1_000_000_000, 1_000_000_000))
        (project / name).chmod(0o600)
    publish.write_package(project, second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as package:
        assert package.namelist() == PACKED
        assert package.read("relay/deep/page.html") == b"<p>"
        assert {entry.external_attr >> 16 for entry in package.infolist()} == {0o100644}


def test_the_hash_follows_contents_and_names_only(project: Path) -> None:
    before = publish.package_hash(project)
    (project / "tests/test.py").write_text("changed", encoding="utf-8")
    (project / "relay/b.pyc").write_text("changed", encoding="utf-8")
    os.utime(project / "host.json", (1_000_000_000, 1_000_000_000))
    assert publish.package_hash(project) == before
    (project / "relay/deep/page.html").rename(project / "relay/deep/other.html")
    renamed = publish.package_hash(project)
    assert renamed != before
    (project / "relay/deep/other.html").write_text("<b>", encoding="utf-8")
    assert publish.package_hash(project) not in (before, renamed)


def test_a_folder_that_is_not_the_project_is_refused(project: Path, tmp_path: Path) -> None:
    (project / "host.json").unlink()
    with pytest.raises(publish.PublishError, match=r"host\.json is not in the package"):
        publish.write_package(project, tmp_path / "app.zip")


# ---- az --------------------------------------------------------------------------------------------------------------

# Writes down its arguments and what the zip holds; fails as often as the file `failures` says, for the named command.
AZ = """#!{python}
import json, pathlib, sys, zipfile
folder = pathlib.Path({folder!r})
words = sys.argv[1:]
call = {{"words": words}}
if "--src" in words:
    archive = pathlib.Path(words[words.index("--src") + 1])
    call["files"] = zipfile.ZipFile(archive).namelist()
with (folder / "calls").open("a") as file:
    file.write(json.dumps(call) + "\\n")
failing = json.loads((folder / "failures").read_text())
for command, left in failing.items():
    if command in words and left:
        failing[command] = left - 1
        (folder / "failures").write_text(json.dumps(failing))
        sys.exit((folder / "complaint").read_text())
print("a setting=a secret")
"""


class FakeAz:
    """An `az` on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fail({})
        script = folder / "az"
        script.write_text(AZ.format(python=sys.executable, folder=str(folder)), encoding="utf-8")
        script.chmod(0o755)

    def fail(self, times: dict[str, int], complaint: str = "ERROR: not yet authorized") -> None:
        (self.folder / "complaint").write_text(complaint, encoding="utf-8")
        (self.folder / "failures").write_text(json.dumps(times), encoding="utf-8")

    @property
    def calls(self) -> list[dict[str, list[str]]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def az(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAz:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return FakeAz(folder)


Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers as it is told, and returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answering(*statuses: int) -> Answer:
    """One status after the other, then the last for ever."""
    left = list(statuses)

    def answer(request: BaseHTTPRequestHandler) -> None:
        status = left.pop(0) if len(left) > 1 else left[0]
        request.send_response(status if request.path == "/health" else 404)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def target(url: str, **patience: float) -> publish.Target:
    values = {"attempts": 4, "pause": 0.01, "health_timeout": 2.0, "health_pause": 0.01, **patience}
    return publish.Target("sub", "group", "app", url, **values)  # type: ignore[arg-type]


def test_deploy_removes_the_keyless_settings_then_publishes(
    project: Path, az: FakeAz, serve: Callable[[Answer], str], capsys: pytest.CaptureFixture[str]
) -> None:
    publish.deploy(project, target(serve(answering(503, 404, 200, 502, 200))))
    app = ["--subscription", "sub", "--resource-group", "group", "--name", "app"]
    quiet = ["--output", "none", "--only-show-errors"]
    settings, upload = az.calls
    assert settings["words"] == [
        *["functionapp", "config", "appsettings", "delete", *app],
        *["--setting-names", "AzureWebJobsStorage", "DEPLOYMENT_STORAGE_CONNECTION_STRING", *quiet],
    ]
    assert upload["words"][:10] == ["functionapp", "deployment", "source", "config-zip", *app]
    assert upload["files"] == PACKED
    assert not Path(upload["words"][11]).exists(), "the package is left behind"
    assert "a secret" not in capsys.readouterr().out, "az's output holds every setting of the app"


def test_az_is_asked_again_while_a_role_becomes_effective(
    project: Path, az: FakeAz, serve: Callable[[Answer], str]
) -> None:
    az.fail({"delete": 3, "config-zip": 2})
    publish.deploy(project, target(serve(answering(200))))
    commands = [call["words"][3] for call in az.calls]
    assert commands == ["delete"] * 4 + ["config-zip"] * 3


def test_az_is_not_asked_for_ever(project: Path, az: FakeAz) -> None:
    az.fail({"config-zip": 9})
    with pytest.raises(
        publish.PublishError, match="config-zip failed 4 times; its last words:\nERROR: not yet authorized"
    ):
        publish.deploy(project, target("http://127.0.0.1:9"))
    assert len(az.calls) == 1 + 4


def test_whoever_is_not_signed_in_hears_of_it_at_once(project: Path, az: FakeAz) -> None:
    az.fail({"delete": 1}, "ERROR: Please run 'az login' to setup account.")
    with pytest.raises(publish.PublishError, match="not signed in to the subscription sub"):
        publish.deploy(project, target("http://127.0.0.1:9", pause=60))
    assert len(az.calls) == 1


def test_whoever_may_not_call_the_app_can_leave_the_check_out(project: Path, az: FakeAz) -> None:
    publish.deploy(project, target("http://127.0.0.1:9", check_health=False))
    assert len(az.calls) == 2


def test_without_az_it_says_where_to_get_it(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(publish.PublishError, match="install the Azure CLI"):
        publish.deploy(project, target("http://127.0.0.1:9"))


# ---- /health ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "mend"), [(500, "Log stream"), (403, "allowed_ip_ranges"), (401, "allowed_ip_ranges")]
)
def test_an_app_that_does_not_become_healthy_fails_the_apply(
    status: int, mend: str, serve: Callable[[Answer], str]
) -> None:
    with pytest.raises(publish.PublishError, match=f"the last answer was {status}.*{mend}"):
        publish.await_health(target(serve(answering(status)), health_timeout=0.2))


def test_an_app_that_can_not_be_reached_fails_the_apply() -> None:
    with pytest.raises(publish.PublishError, match="does not reach the app"):
        publish.await_health(target("http://127.0.0.1:1", health_timeout=0.1))


def test_one_good_answer_is_not_enough(serve: Callable[[Answer], str]) -> None:
    """An instance with the old code may still answer once."""
    with pytest.raises(publish.PublishError, match="500"):
        publish.await_health(target(serve(answering(200, 500)), health_timeout=0.2))


def test_only_a_web_address_is_asked() -> None:
    with pytest.raises(publish.PublishError, match="https://"):
        publish.await_health(target("file:///etc"))


# ---- The command line ------------------------------------------------------------------------------------------------


def script(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "infra" / name, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_files_lists_the_package_and_its_hash() -> None:
    done = script("publish.py", "files")
    *names, digest = done.stdout.split()
    assert done.returncode == 0
    assert names == publish.package_files(ROOT)
    assert digest == publish.package_hash(ROOT)
    assert len(digest) == len(hashlib.sha256().hexdigest())


def test_package_writes_the_zip(project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "app.zip"
    done = script("publish.py", "package", str(archive), "--source", str(project))
    assert done.stdout.split() == PACKED
    assert zipfile.ZipFile(archive).namelist() == PACKED


def test_deploy_runs_as_terraform_runs_it(project: Path, az: FakeAz, serve: Callable[[Answer], str]) -> None:
    words = ["--subscription", "sub", "--resource-group", "group", "--app", "app", "--url", serve(answering(200))]
    done = script("publish.py", "deploy", *words, "--source", str(project))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(az.calls) == 2
    unwatched = script(
        "publish.py", "deploy", *words[:-1], "https://x.invalid", "--no-health", "--source", str(project)
    )
    assert (unwatched.returncode, unwatched.stderr) == (0, "")


def test_a_failure_is_an_exit_code_and_a_sentence(project: Path, az: FakeAz) -> None:
    az.fail({"delete": 1}, "ERROR: Please run 'az login' to setup account.")
    words = ["--subscription", "sub", "--resource-group", "group", "--app", "app", "--url", "https://x.invalid"]
    done = script("publish.py", "deploy", *words, "--source", str(project))
    assert done.returncode == 1
    assert "not signed in" in done.stderr
    assert "Traceback" not in done.stderr


# ---- Do words arrive one by one? -------------------------------------------------------------------------------------

DONE = 'event: done\ndata: {"finish_reason":"stop"}\n\n'


def streaming(pieces: list[str], *, pause: float, status: int = 200, kind: str = "text/event-stream") -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("X-Seen", request.headers.get("x-functions-key", ""))
        request.end_headers()
        for piece in pieces:
            request.wfile.write(piece.encode())
            request.wfile.flush()
            time.sleep(pause)

    return answer


def words(number: int) -> list[str]:
    return [f'data: {{"text":"word{position} "}}\n\n' for position in range(number)]


def test_words_one_by_one_pass(serve: Callable[[Answer], str]) -> None:
    url = serve(streaming([": ping\n\n", *words(12), DONE], pause=0.03))
    assert smoke.check(url, {}).startswith("12 words in ")


@pytest.mark.parametrize(
    ("pieces", "pause", "complaint"),
    [
        (["".join([*words(50), DONE])], 0.0, "did not arrive one by one"),
        (["".join(words(25)), "".join([*words(25), DONE])], 0.3, "did not arrive one by one"),
        (words(12), 0.03, "the stream ended with nothing"),
        ([*words(12), 'event: error\ndata: {"code":"upstream_auth"}\n\n'], 0.03, "upstream_auth"),
        ([*words(12), DONE, DONE], 0.03, "the stream ended with"),
        ([], 0.0, "the stream ended with nothing"),
    ],
    ids=["in one piece", "in two", "cut", "error", "two ends", "empty"],
)
def test_anything_else_fails(pieces: list[str], pause: float, complaint: str, serve: Callable[[Answer], str]) -> None:
    with pytest.raises(smoke.SmokeError, match=complaint):
        smoke.check(serve(streaming(pieces, pause=pause)), {})


def test_another_status_or_format_fails(serve: Callable[[Answer], str]) -> None:
    with pytest.raises(smoke.SmokeError, match="status 401") as refused:
        smoke.check(serve(streaming([], pause=0, status=401)), {})
    assert refused.value.passing
    with pytest.raises(smoke.SmokeError, match="application/json") as unstreamed:
        smoke.check(serve(streaming(["{}"], pause=0, kind="application/json")), {})
    assert not unstreamed.value.passing


def test_the_smoke_test_waits_for_roles_and_sends_the_key(serve: Callable[[Answer], str]) -> None:
    seen: list[str | None] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers.get("x-functions-key"))
        streaming([*words(12), DONE], pause=0.03, status=502 if len(seen) < 3 else 200)(request)

    done = script("smoke.py", serve(answer), "--pause", "0.01", RELAY_FUNCTION_KEY="the key")
    assert done.returncode == 0, done.stderr
    assert seen == ["the key"] * 3
    assert "the key" not in done.stdout + done.stderr


def test_the_smoke_test_does_not_try_again_when_words_come_at_once(serve: Callable[[Answer], str]) -> None:
    done = script("smoke.py", serve(streaming(["".join([*words(50), DONE])], pause=0)), "--pause", "60")
    assert done.returncode == 1
    assert "did not arrive one by one" in done.stderr
