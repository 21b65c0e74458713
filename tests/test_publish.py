"""Tests of publish.py and smoke.py, with a fake az and a local HTTP server."""

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
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from infra import publish, smoke
from relay.problems import INVALID_API_KEY

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
        "relay/page/page.html": "<p>",
        "relay/page/assets/icons/icon.svg": "<svg>",
        "relay/__pycache__/a.cpython-313.pyc": "compiled",
        "relay/page/assets/__pycache__/cached.txt": "cached",
        "relay/b.pyc": "compiled",
        "relay/page/assets/c.pyc": "compiled",
        "tests/test.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


PACKAGE_FILES = [
    "function_app.py",
    "host.json",
    "relay/__init__.py",
    "relay/page/assets/icons/icon.svg",
    "relay/page/page.html",
    "requirements.txt",
]


# ---- The package -----------------------------------------------------------------------------------------------------


def test_package_files_are_selected_by_funcignore(project: Path) -> None:
    assert publish.package_files(project) == PACKAGE_FILES


@pytest.mark.parametrize("rule", ["relay/*.py", "/tests", "!**/*.py", "a b", "!../secret"])
def test_unsupported_rule_is_rejected(project: Path, rule: str) -> None:
    (project / ".funcignore").write_text(f"{RULES}{rule}\n", encoding="utf-8")
    with pytest.raises(publish.PublishError, match="is not supported"):
        publish.package_files(project)


@pytest.mark.parametrize(
    "rules",
    ["!relay/**\n", "!relay/**\n*\n", "*\n__pycache__/\n!relay/**\n"],
    ids=["exclude all is missing", "exclude all is last", "exclusions before inclusions"],
)
def test_rules_in_the_wrong_order_are_rejected(project: Path, rules: str) -> None:
    (project / ".funcignore").write_text(rules, encoding="utf-8")
    with pytest.raises(publish.PublishError, match="must first exclude everything"):
        publish.package_files(project)


def test_package_is_reproducible(project: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    publish.write_package(project, first)
    for name in PACKAGE_FILES:
        os.utime(project / name, (1_000_000_000, 1_000_000_000))
        (project / name).chmod(0o600)
    publish.write_package(project, second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as package:
        assert package.namelist() == PACKAGE_FILES
        assert package.read("relay/page/page.html") == b"<p>"
        assert {entry.external_attr >> 16 for entry in package.infolist()} == {0o100644}


def test_package_hash_depends_only_on_contents_and_names(project: Path) -> None:
    before = publish.package_hash(project)
    (project / "tests/test.py").write_text("changed", encoding="utf-8")
    (project / "relay/b.pyc").write_text("changed", encoding="utf-8")
    os.utime(project / "host.json", (1_000_000_000, 1_000_000_000))
    assert publish.package_hash(project) == before
    (project / "relay/page/page.html").rename(project / "relay/page/other.html")
    renamed = publish.package_hash(project)
    assert renamed != before
    (project / "relay/page/other.html").write_text("<b>", encoding="utf-8")
    assert publish.package_hash(project) not in (before, renamed)


def test_folder_without_the_app_is_rejected(project: Path, tmp_path: Path) -> None:
    (project / "host.json").unlink()
    with pytest.raises(publish.PublishError, match=r"host\.json is not in the package"):
        publish.write_package(project, tmp_path / "app.zip")


# ---- az --------------------------------------------------------------------------------------------------------------

# Records its arguments and the zip's files, and prints what the file `answers` holds for the command. The file
# `failures` holds how often each command fails, with the message in the file `error`.
AZ = """#!{python} -IS
import json, pathlib, sys, zipfile
folder = pathlib.Path({folder!r})
arguments = sys.argv[1:]
call = {{"arguments": arguments}}
if "--src" in arguments:
    archive = pathlib.Path(arguments[arguments.index("--src") + 1])
    call["files"] = zipfile.ZipFile(archive).namelist()
with (folder / "calls").open("a") as file:
    file.write(json.dumps(call) + "\\n")
failures = json.loads((folder / "failures").read_text())
for command, remaining in failures.items():
    if command in arguments and remaining:
        failures[command] = remaining - 1
        (folder / "failures").write_text(json.dumps(failures))
        sys.exit((folder / "error").read_text())
answers = json.loads((folder / "answers").read_text())
print(next((answer for command, answer in answers.items() if command in arguments), "a setting=a secret"))
"""


class FakeAz:
    """An `az` on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fail({})
        self.answer({})
        script = folder / "az"
        script.write_text(AZ.format(python=sys.executable, folder=str(folder)), encoding="utf-8")
        script.chmod(0o755)

    def fail(self, failures: dict[str, int], error: str = "ERROR: not yet authorized") -> None:
        """Fail the given number of times for each command."""
        (self.folder / "error").write_text(error, encoding="utf-8")
        (self.folder / "failures").write_text(json.dumps(failures), encoding="utf-8")

    def answer(self, answers: dict[str, object]) -> None:
        """What each command prints, as JSON."""
        texts = {command: json.dumps(answer) for command, answer in answers.items()}
        (self.folder / "answers").write_text(json.dumps(texts), encoding="utf-8")

    @property
    def commands(self) -> list[str]:
        """The commands without their options."""
        return [" ".join(takewhile(lambda word: not word.startswith("-"), call["arguments"])) for call in self.calls]

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


Responder = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Responder], str]]:
    """A function that starts a server with the given responder and returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Responder) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                respond(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                respond(self)

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


def health_responder(*statuses: int) -> Responder:
    """Returns the statuses in order, and from then on the last one."""
    remaining = list(statuses)

    def respond(request: BaseHTTPRequestHandler) -> None:
        status = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        request.send_response(status if request.path == "/health" else 404)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return respond


def target(url: str, **overrides: float) -> publish.Target:
    limits = {"attempts": 4, "pause": 0.01, "health_timeout": 2.0, "health_pause": 0.01, **overrides}
    return publish.Target("sub", "group", "app", url, **limits)  # type: ignore[arg-type]


APP_ARGUMENTS = ["--subscription", "sub", "--resource-group", "group", "--name", "app"]
LIST = "functionapp config appsettings list"
DELETE = "functionapp config appsettings delete"
SHOW = "functionapp update-strategy config show"
SET = "functionapp update-strategy config set"
UPLOAD = "functionapp deployment source config-zip"


def test_deploy_deletes_the_keyless_settings_and_publishes(
    project: Path, az: FakeAz, serve: Callable[[Responder], str], capsys: pytest.CaptureFixture[str]
) -> None:
    az.answer({"list": ["AzureWebJobsStorage", "AZURE_CLIENT_ID", "DEPLOYMENT_STORAGE_CONNECTION_STRING"]})
    publish.deploy(project, target(serve(health_responder(503, 404, 200, 502, 200))))
    listing, deletion, upload = az.calls
    assert listing["arguments"] == [
        *[*LIST.split(), *APP_ARGUMENTS],
        *["--query", "[].name", "--output", "json", "--only-show-errors"],
    ]
    assert deletion["arguments"] == [
        *[*DELETE.split(), *APP_ARGUMENTS],
        *["--setting-names", "AzureWebJobsStorage", "DEPLOYMENT_STORAGE_CONNECTION_STRING"],
        *["--output", "none", "--only-show-errors"],
    ]
    assert upload["arguments"][:10] == [*UPLOAD.split(), *APP_ARGUMENTS]
    assert upload["arguments"][12:] == ["--output", "none", "--only-show-errors"]
    assert upload["files"] == PACKAGE_FILES
    assert not Path(upload["arguments"][11]).exists(), "the temporary package is not deleted"
    assert "a secret" not in capsys.readouterr().out, "az prints every app setting"


def test_deploy_writes_no_setting_when_none_is_wrong(project: Path, az: FakeAz) -> None:
    """az writes all settings even to delete none, and each write of the settings ends all open streams."""
    az.answer({"list": ["AzureWebJobsStorage__clientId", "AZURE_CLIENT_ID"]})
    publish.deploy(project, target("http://127.0.0.1:9", check_health=False))
    assert az.commands == [LIST, UPLOAD]


@pytest.mark.parametrize("names", [["AzureWebJobsStorage"], ["DEPLOYMENT_STORAGE_CONNECTION_STRING", "other"]])
def test_only_the_keyless_settings_that_are_there_are_deleted(project: Path, az: FakeAz, names: list[str]) -> None:
    az.answer({"list": names})
    publish.restore_settings(target("http://127.0.0.1:9", check_health=False))
    assert az.commands == [LIST, DELETE]
    assert az.calls[1]["arguments"][11:-3] == names[:1]


def test_settings_that_az_lists_with_their_values_are_read(az: FakeAz) -> None:
    az.answer({"list": [{"name": "AZURE_CLIENT_ID", "value": "id"}, {"name": "AzureWebJobsStorage", "value": "x"}]})
    publish.restore_settings(target("http://127.0.0.1:9", check_health=False))
    assert az.commands == [LIST, DELETE]
    assert az.calls[1]["arguments"][11:-3] == ["AzureWebJobsStorage"]


def test_keyless_settings_are_deleted_when_the_list_is_unreadable(az: FakeAz) -> None:
    publish.restore_settings(target("http://127.0.0.1:9", check_health=False))
    assert az.calls[1]["arguments"][11:-3] == list(publish.KEYLESS_CONNECTION_STRINGS)


def test_settings_are_restored_without_publishing(az: FakeAz, serve: Callable[[Responder], str]) -> None:
    az.answer({"list": []})
    publish.restore_settings(target(serve(health_responder(503, 200))))
    assert az.commands == [LIST]
    with pytest.raises(publish.PublishError, match="did not become healthy"):
        publish.restore_settings(target(serve(health_responder(500)), health_timeout=0.1))


@pytest.mark.parametrize(
    ("current", "wanted", "changed"),
    [
        ("Recreate", "RollingUpdate", True),
        (None, "RollingUpdate", True),
        ("RollingUpdate", "RollingUpdate", False),
        ("RollingUpdate", "Recreate", True),
        (None, "Recreate", False),
        ("Recreate", "Recreate", False),
    ],
)
def test_update_strategy_is_set_before_anything_else_and_only_if_it_differs(
    current: str | None, wanted: str, changed: bool, project: Path, az: FakeAz
) -> None:
    az.answer({"show": current, "list": ["AzureWebJobsStorage"]})
    strategy = {"update_strategy": wanted}
    publish.deploy(project, target("http://127.0.0.1:9", check_health=False, **strategy))  # type: ignore[arg-type]
    assert az.commands == [SHOW, *([SET] if changed else []), LIST, DELETE, UPLOAD]
    assert az.calls[0]["arguments"][4:12] == [*APP_ARGUMENTS, "--query", "type"]
    if changed:
        assert az.calls[1]["arguments"][4:12] == [*APP_ARGUMENTS, "--type", wanted]


def test_publishing_does_not_depend_on_reading_the_default_strategy(
    project: Path, az: FakeAz, capsys: pytest.CaptureFixture[str]
) -> None:
    az.fail({"show": 1}, "ERROR: not supported in this region")
    az.answer({"list": []})
    options = {"update_strategy": "Recreate", "check_health": False, "pause": 60}
    publish.deploy(project, target("http://127.0.0.1:9", **options))  # type: ignore[arg-type]
    assert az.commands == [SHOW, LIST, UPLOAD]
    assert "not supported in this region" in capsys.readouterr().out
    az.fail({"show": 9}, "ERROR: not supported in this region")
    with pytest.raises(publish.PublishError, match="config show failed 4 times"):
        publish.restore_settings(target("http://127.0.0.1:9", update_strategy="RollingUpdate"))  # type: ignore[arg-type]


def test_command_that_an_old_az_lacks_is_not_retried(az: FakeAz) -> None:
    az.fail({"show": 9}, "ERROR: 'update-strategy' is misspelled or not recognized by the system.")
    with pytest.raises(publish.PublishError, match="update it"):
        publish.restore_settings(target("http://127.0.0.1:9", update_strategy="RollingUpdate", pause=60))  # type: ignore[arg-type]
    assert az.commands == [SHOW]


def test_az_is_retried_while_a_role_becomes_effective(
    project: Path, az: FakeAz, serve: Callable[[Responder], str]
) -> None:
    az.fail({"list": 3, "config-zip": 2})
    az.answer({"list": []})
    publish.deploy(project, target(serve(health_responder(200))))
    assert az.commands == [LIST] * 4 + [UPLOAD] * 3


def test_az_retries_are_limited(project: Path, az: FakeAz) -> None:
    az.fail({"config-zip": 9})
    az.answer({"list": []})
    with pytest.raises(
        publish.PublishError, match="config-zip failed 4 times; the last error:\nERROR: not yet authorized"
    ):
        publish.deploy(project, target("http://127.0.0.1:9"))
    assert len(az.calls) == 1 + 4


def test_missing_sign_in_is_not_retried(project: Path, az: FakeAz) -> None:
    az.fail({"list": 1}, "ERROR: Please run 'az login' to setup account.")
    with pytest.raises(publish.PublishError, match="not signed in to the subscription sub"):
        publish.deploy(project, target("http://127.0.0.1:9", pause=60))
    assert len(az.calls) == 1


def test_failed_build_stops_at_once_with_its_log(project: Path, az: FakeAz) -> None:
    az.answer({"list": []})
    az.fail(
        {"config-zip": 9},
        "ERROR: Zip deployment failed. {'status': 3}. These are the deployment logs: \n"
        '[{"message": "ERROR: No matching distribution found for left-pad==1.0"}]',
    )
    with pytest.raises(publish.PublishError, match=r"(?s)build of app failed.*--prebuilt.*No matching distribution"):
        publish.deploy(project, target("http://127.0.0.1:9", pause=60))
    assert az.commands == [LIST, UPLOAD]


def test_package_that_az_deployed_but_could_not_check_is_deployed(
    project: Path, az: FakeAz, serve: Callable[[Responder], str]
) -> None:
    """az asks the host for its status after the deployment, and fails where the app is private."""
    az.answer({"list": []})
    az.fail(
        {"config-zip": 9},
        "ERROR: Deployment was successful but the app appears to be unhealthy. Please check the app logs.",
    )
    publish.deploy(project, target(serve(health_responder(503, 200)), pause=60))
    assert az.commands == [LIST, UPLOAD]
    with pytest.raises(publish.PublishError, match="did not become healthy"):
        publish.deploy(project, target(serve(health_responder(500)), pause=60, health_timeout=0.1))


def test_health_check_can_be_skipped(project: Path, az: FakeAz) -> None:
    az.answer({"list": []})
    publish.deploy(project, target("http://127.0.0.1:9", check_health=False))
    assert len(az.calls) == 2


# ---- The prebuilt package --------------------------------------------------------------------------------------------


def fake_pip(monkeypatch: pytest.MonkeyPatch, *, error: str = "") -> list[list[str]]:
    """Replaces pip's process by one that writes two files and a script, or fails; returns its commands."""
    commands: list[list[str]] = []
    run = subprocess.run

    def install(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if command[1:4] != ["-m", "pip", "install"]:
            return run(command, **options)  # type: ignore[call-overload, no-any-return]
        commands.append(command)
        folder = Path(command[command.index("--target") + 1])
        for name in ("fastapi/__init__.py", "jiter/jiter.so", "bin/uvicorn", "fastapi/__pycache__/x.pyc"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name, encoding="utf-8")
        return subprocess.CompletedProcess(command, 1 if error else 0, "", error)

    monkeypatch.setattr(publish.subprocess, "run", install)
    return commands


PREBUILT_FILES = [
    *[name for name in PACKAGE_FILES if name != "requirements.txt"],
    ".python_packages/lib/site-packages/fastapi/__init__.py",
    ".python_packages/lib/site-packages/jiter/jiter.so",
]


def test_prebuilt_package_holds_verified_wheels_for_the_worker(
    project: Path, az: FakeAz, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_pip(monkeypatch)
    az.answer({"list": []})
    options = {"prebuilt": True, "check_health": False}
    publish.deploy(project, target("http://127.0.0.1:9", **options))
    upload = az.calls[1]
    assert upload["files"] == PREBUILT_FILES
    assert upload["arguments"][12:14] == ["--build-remote", "false"]
    (command,) = commands
    assert command[0] == sys.executable
    assert {"--require-hashes", "--no-deps"} <= set(command)
    selected = {option: value for option, value in pairwise(command) if option.startswith("--")}
    assert selected["--only-binary"] == ":all:"
    assert selected["--python-version"] == "3.13"
    assert selected["--implementation"] == "cp"
    assert selected["--requirement"] == str(project / "requirements.txt")
    platforms = [value for option, value in pairwise(command) if option == "--platform"]
    assert platforms == ["manylinux2014_x86_64", "manylinux_2_28_x86_64"]


def test_prebuilt_package_is_reproducible(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch)
    for archive in (tmp_path / "1.zip", tmp_path / "2.zip"):
        assert publish.write_prebuilt_package(project, archive) == PREBUILT_FILES
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_package_that_pip_cannot_install_is_not_published(
    project: Path, az: FakeAz, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, error="ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
    with pytest.raises(publish.PublishError, match=r"(?s)PIP_INDEX_URL.*DO NOT MATCH THE HASHES"):
        publish.deploy(project, target("http://127.0.0.1:9", prebuilt=True))
    assert az.calls == []


def test_runtime_of_the_prebuilt_package_is_that_of_the_app() -> None:
    source = (ROOT / "infra" / "publish.py").read_text(encoding="utf-8")
    version = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    assert f'"--python-version", "{version}"' in source
    assert f'runtime_version = "{version}"' in (ROOT / "infra" / "app.tf").read_text(encoding="utf-8")


# ---- az that is missing ----------------------------------------------------------------------------------------------


def test_error_without_az_names_the_remedy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(publish.PublishError, match="install the Azure CLI"):
        publish.deploy(project, target("http://127.0.0.1:9"))


# ---- /health ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "remedy"), [(500, "Log stream"), (403, "allowed_ip_ranges"), (401, "allowed_ip_ranges")]
)
def test_unhealthy_app_is_an_error_with_a_remedy(status: int, remedy: str, serve: Callable[[Responder], str]) -> None:
    with pytest.raises(publish.PublishError, match=f"last result: {status}.*{remedy}"):
        publish.wait_until_healthy(target(serve(health_responder(status)), health_timeout=0.2))


def test_unreachable_app_is_an_error() -> None:
    with pytest.raises(publish.PublishError, match="cannot reach the app"):
        publish.wait_until_healthy(target("http://127.0.0.1:1", health_timeout=0.1))


def test_one_successful_response_is_not_enough(serve: Callable[[Responder], str]) -> None:
    """An instance with the old code may still respond once."""
    with pytest.raises(publish.PublishError, match="500"):
        publish.wait_until_healthy(target(serve(health_responder(200, 500)), health_timeout=0.2))


def test_url_scheme_other_than_http_is_rejected() -> None:
    with pytest.raises(publish.PublishError, match="https://"):
        publish.wait_until_healthy(target("file:///etc"))


# ---- Command line ----------------------------------------------------------------------------------------------------


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "infra" / name, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_files_prints_the_package_files_and_hash() -> None:
    process = run_script("publish.py", "files")
    *names, digest = process.stdout.split()
    assert process.returncode == 0
    assert names == publish.package_files(ROOT)
    assert digest == publish.package_hash(ROOT)
    assert len(digest) == len(hashlib.sha256().hexdigest())


def test_package_writes_the_zip(project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "app.zip"
    process = run_script("publish.py", "package", str(archive), "--source", str(project))
    assert process.stdout.split() == PACKAGE_FILES
    assert zipfile.ZipFile(archive).namelist() == PACKAGE_FILES


def command_line(*options: str, url: str = "https://x.invalid") -> list[str]:
    """The arguments that infra/publish.tf passes."""
    app = ["--subscription", "sub", "--resource-group", "group", "--app", "app", "--url", url]
    return [*app, "--update-strategy", "Recreate", *options]


def test_deploy_with_the_arguments_of_terraform(project: Path, az: FakeAz, serve: Callable[[Responder], str]) -> None:
    az.answer({"list": []})
    url = serve(health_responder(200))
    process = run_script("publish.py", "deploy", *command_line(url=url), "--source", str(project))
    assert (process.returncode, process.stderr) == (0, "")
    assert az.commands == [SHOW, LIST, UPLOAD]
    without_check = run_script("publish.py", "deploy", *command_line("--no-health"), "--source", str(project))
    assert (without_check.returncode, without_check.stderr) == (0, "")


def test_settings_with_the_arguments_of_terraform(project: Path, az: FakeAz) -> None:
    az.answer({"list": ["AzureWebJobsStorage"]})
    process = run_script("publish.py", "settings", *command_line("--no-health"), "--source", str(project))
    assert (process.returncode, process.stderr) == (0, "")
    assert az.commands == [SHOW, LIST, DELETE]


def test_failure_gives_an_exit_code_and_a_message(project: Path, az: FakeAz) -> None:
    az.fail({"show": 1}, "ERROR: Please run 'az login' to setup account.")
    process = run_script("publish.py", "deploy", *command_line(), "--source", str(project))
    assert process.returncode == 1
    assert "not signed in" in process.stderr
    assert "Traceback" not in process.stderr


# ---- Smoke test ------------------------------------------------------------------------------------------------------

DONE_EVENT = 'event: done\ndata: {"finish_reason":"stop"}\n\n'


def stream_responder(
    chunks: list[str], *, pause: float, status: int = 200, content_type: str = "text/event-stream"
) -> Responder:
    """Sends the chunks with `pause` seconds after each."""

    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Type", content_type)
        request.send_header("X-Seen", request.headers.get("x-functions-key", ""))
        request.end_headers()
        for chunk in chunks:
            request.wfile.write(chunk.encode())
            request.wfile.flush()
            time.sleep(pause)

    return respond


def text_events(count: int) -> list[str]:
    return [f'data: {{"text":"word{position} "}}\n\n' for position in range(count)]


def test_streamed_answer_passes(serve: Callable[[Responder], str]) -> None:
    url = serve(stream_responder([": ping\n\n", *text_events(12), DONE_EVENT], pause=0.03))
    assert smoke.check(url, {}).startswith("12 words in ")


@pytest.mark.parametrize(
    ("chunks", "pause", "error"),
    [
        (["".join([*text_events(50), DONE_EVENT])], 0.0, "was not streamed"),
        (["".join(text_events(25)), "".join([*text_events(25), DONE_EVENT])], 0.3, "was not streamed"),
        (text_events(12), 0.03, "the stream ended with nothing"),
        ([*text_events(12), 'event: error\ndata: {"code":"upstream_auth"}\n\n'], 0.03, "upstream_auth"),
        ([*text_events(12), DONE_EVENT, DONE_EVENT], 0.03, "the stream ended with"),
        ([], 0.0, "the stream ended with nothing"),
    ],
    ids=["in one chunk", "in two chunks", "cut off", "error event", "two done events", "empty"],
)
def test_incomplete_or_buffered_answer_fails(
    chunks: list[str], pause: float, error: str, serve: Callable[[Responder], str]
) -> None:
    with pytest.raises(smoke.SmokeTestError, match=error):
        smoke.check(serve(stream_responder(chunks, pause=pause)), {})


def test_an_app_with_named_callers_takes_no_function_key(serve: Callable[[Responder], str]) -> None:
    refusal = [INVALID_API_KEY.document("request-1").decode()]
    url = serve(stream_responder(refusal, pause=0, status=401, content_type="application/problem+json"))
    assert smoke.check(url, {"x-functions-key": "k"}).startswith("not tested: the app takes its callers' keys only")
    with pytest.raises(smoke.SmokeTestError, match="status 401"):
        smoke.check(url, {"Authorization": "Bearer a-token"})


def test_wrong_status_or_content_type_fails(serve: Callable[[Responder], str]) -> None:
    with pytest.raises(smoke.SmokeTestError, match="status 401") as wrong_status:
        smoke.check(serve(stream_responder([], pause=0, status=401)), {})
    assert wrong_status.value.transient
    with pytest.raises(smoke.SmokeTestError, match="application/json") as wrong_type:
        smoke.check(serve(stream_responder(["{}"], pause=0, content_type="application/json")), {})
    assert not wrong_type.value.transient


@pytest.mark.parametrize(("path", "requested"), [("", "/stream"), ("/", "/stream"), ("/relay/", "/relay/stream")])
def test_smoke_test_keeps_the_path_of_a_gateway(path: str, requested: str, serve: Callable[[Responder], str]) -> None:
    paths: list[str] = []

    def respond(request: BaseHTTPRequestHandler) -> None:
        paths.append(request.path)
        stream_responder([], pause=0, status=404)(request)

    with pytest.raises(smoke.SmokeTestError, match="404"):
        smoke.check(f"{serve(respond)}{path}", {})
    assert paths == [requested]


def test_smoke_test_retries_transient_errors_and_sends_the_key(serve: Callable[[Responder], str]) -> None:
    keys: list[str | None] = []

    def respond(request: BaseHTTPRequestHandler) -> None:
        keys.append(request.headers.get("x-functions-key"))
        stream_responder([*text_events(12), DONE_EVENT], pause=0.03, status=502 if len(keys) < 3 else 200)(request)

    process = run_script("smoke.py", serve(respond), "--pause", "0.01", RELAY_FUNCTION_KEY="the key")
    assert process.returncode == 0, process.stderr
    assert keys == ["the key"] * 3
    assert "the key" not in process.stdout + process.stderr


def test_smoke_test_does_not_retry_a_buffered_answer(serve: Callable[[Responder], str]) -> None:
    process = run_script(
        "smoke.py", serve(stream_responder(["".join([*text_events(50), DONE_EVENT])], pause=0)), "--pause", "60"
    )
    assert process.returncode == 1
    assert "was not streamed" in process.stderr
