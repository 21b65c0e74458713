"""Packages the app, publishes it to Azure and waits until it is healthy. Requires only Python and az.

publish.py deploy ...       publish the app; the Terraform output publish_command has the arguments
publish.py package OUT.zip  write the package only
publish.py files            print the package's files and its hash
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

# The provider writes both settings, without a key, on every change of the app. The host prefers them to the identity
# and then fails (terraform-provider-azurerm #29149, #29693, #30732, #33211).
KEYLESS_CONNECTION_STRINGS = ("AzureWebJobsStorage", "DEPLOYMENT_STORAGE_CONNECTION_STRING")

# The kinds of rule that infra/package.tf supports and describes.
_RULE = re.compile(
    r"\*|\*\.[a-zA-Z0-9]+|[a-zA-Z0-9_.-]+/|!([a-zA-Z0-9_][a-zA-Z0-9_.-]*/)*([a-zA-Z0-9_][a-zA-Z0-9_.-]*/?|\*\*)"
)


class PublishError(Exception):
    """The code could not be published; the message names the cause and the remedy."""


@dataclass(frozen=True)
class PackageRules:
    """The rules of `.funcignore`, limited to the four kinds that Terraform and Azure's tools interpret identically."""

    included: tuple[str, ...]
    excluded_folders: tuple[str, ...]
    excluded_suffixes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> PackageRules:
        """Parse the contents of a `.funcignore`; raises `PublishError` for an unsupported rule or order."""
        rules = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        for rule in rules:
            if not _RULE.fullmatch(rule):
                raise PublishError(f".funcignore: {rule!r} is not supported; infra/package.tf lists the kinds of rule.")
        # In git's semantics the last matching rule decides, so only this order gives the same result everywhere.
        order = [0 if rule == "*" else 1 if rule.startswith("!") else 2 for rule in rules]
        if 0 not in order or order != sorted(order):
            raise PublishError(
                ".funcignore must first exclude everything with '*', then list what to include, then what to exclude."
            )
        return cls(
            included=tuple(rule[1:] for rule in rules if rule.startswith("!") and not rule.endswith("/")),
            excluded_folders=tuple(f"/{rule}" for rule in rules if not rule.startswith("!") and rule.endswith("/")),
            excluded_suffixes=tuple(rule[1:] for rule in rules if rule.startswith("*.")),
        )

    def files(self, root: Path) -> list[str]:
        """The package's files relative to `root`, with forward slashes, sorted by their UTF-8 bytes."""
        names: set[str] = set()
        for pattern in self.included:
            if pattern.endswith("/**"):
                names.update(
                    path.relative_to(root).as_posix() for path in (root / pattern[:-3]).rglob("*") if path.is_file()
                )
            elif (root / pattern).is_file():
                names.add(pattern)
        return sorted(
            (name for name in names if not self._is_excluded(name)),
            key=lambda name: name.encode(),
        )

    def _is_excluded(self, name: str) -> bool:
        return any(folder in f"/{name}" for folder in self.excluded_folders) or name.endswith(self.excluded_suffixes)


def package_files(root: Path) -> list[str]:
    """The files of the package, relative to `root`, selected by `root`'s `.funcignore`."""
    return PackageRules.parse((root / ".funcignore").read_text(encoding="utf-8")).files(root)


def package_hash(root: Path) -> str:
    """SHA-256 (hex) of the files' contents and names; equals Terraform's `local.package_hash`."""
    lines = (f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in package_files(root))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_package(root: Path, archive: Path) -> list[str]:
    """Write the package to `archive` and return its files.

    The archive is reproducible: order, timestamps and permissions are fixed, and nothing is compressed, as deflate's
    output differs between versions of zlib.
    """
    names = package_files(root)
    for required in ("function_app.py", "host.json", "requirements.txt"):
        if required not in names:
            raise PublishError(f"{required} is not in the package; set --source to the project's folder, not {root}.")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as package:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix; otherwise the permissions below are ignored
            entry.external_attr = 0o100644 << 16
            package.writestr(entry, (root / name).read_bytes())
    return names


@dataclass(frozen=True)
class Target:
    """The Function App to publish to, and the retry limits. Times are in seconds."""

    subscription: str
    resource_group: str
    app: str
    url: str
    attempts: int = 4
    pause: float = 60.0
    check_health: bool = True
    health_timeout: float = 300.0
    health_pause: float = 5.0


def deploy(root: Path, target: Target) -> None:
    """Publish the app in `root`; raises `PublishError` when az fails or the app does not become healthy."""
    app = ["--subscription", target.subscription, "--resource-group", target.resource_group, "--name", target.app]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "app.zip")
        names = write_package(root, archive)
        _print(f"{target.app}: {len(names)} files, {archive.stat().st_size:,} bytes, {package_hash(root)[:12]}")
        _run_az(
            target,
            ["functionapp", "config", "appsettings", "delete", *app, "--setting-names", *KEYLESS_CONNECTION_STRINGS],
        )
        _run_az(target, ["functionapp", "deployment", "source", "config-zip", *app, "--src", str(archive)])
    if target.check_health:
        wait_until_healthy(target)


def wait_until_healthy(target: Target) -> None:
    """Return when `/health` has returned 200 twice in a row; raises `PublishError` after `health_timeout`."""
    url = f"{target.url.rstrip('/')}/health"
    deadline = time.monotonic() + target.health_timeout
    successes, result = 0, "none"
    while successes < 2:
        if time.monotonic() > deadline:
            raise PublishError(
                f"{url} did not become healthy within {target.health_timeout:.0f} s; last result: {result}. "
                + _remedy(result, target)
            )
        result = _get(url)
        successes = successes + 1 if result == "200" else 0
        if successes < 2:
            time.sleep(target.health_pause)
    _print(f"{url} is healthy")


def _remedy(result: str, target: Target) -> str:
    if result in ("401", "403"):
        return "This machine may not call the app: add its address to allowed_ip_ranges, or set check_health = false."
    if result.isdigit():
        return f"See the cause in the portal, on the pages Deployment Center and Log stream of {target.app}."
    return "This machine cannot reach the app: check its network, and whether the app is private."


def _get(url: str) -> str:
    """The status code of a GET request, or a description of the connection error."""
    if not url.startswith(("https://", "http://")):
        raise PublishError(f"--url must begin with https://, but {url} does not.")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 (the scheme is checked above)
            return str(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)
    except OSError as error:
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"


def _run_az(target: Target, arguments: list[str]) -> None:
    """Run az, with retries: a role assigned a minute ago may not be effective yet."""
    command = f"az {' '.join(arguments[:4])}"
    for attempt in range(1, target.attempts + 1):
        process = _run_az_once(arguments)
        if process.returncode == 0:
            return
        error = process.stderr.strip() or f"exit code {process.returncode}"
        if "az login" in error:
            # A missing sign-in does not resolve itself: no retry.
            raise PublishError(f"az is not signed in to the subscription {target.subscription}:\n{error}")
        _print(f"{command}, attempt {attempt} of {target.attempts}:\n{error}")
        if attempt < target.attempts:
            time.sleep(target.pause)
    raise PublishError(f"{command} failed {target.attempts} times; the last error:\n{error}")


def _run_az_once(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # On Windows az is az.cmd, which can only be started by its full path.
    az = shutil.which("az")
    if az is None:
        raise PublishError("az is not on the PATH: install the Azure CLI (https://aka.ms/azure-cli) and run az login.")
    # `--output none`: az would otherwise print every app setting.
    return subprocess.run(  # noqa: S603 (an argument list, without a shell)
        [az, *arguments, "--output", "none", "--only-show-errors"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    deploy_parser = commands.add_parser("deploy", help="publish the app and wait until it is healthy")
    deploy_parser.add_argument("--subscription", required=True)
    deploy_parser.add_argument("--resource-group", required=True)
    deploy_parser.add_argument("--app", required=True)
    deploy_parser.add_argument("--url", required=True)
    deploy_parser.add_argument("--attempts", type=int, default=Target.attempts, help="attempts of each az command")
    deploy_parser.add_argument("--pause", type=float, default=Target.pause, help="seconds between attempts")
    deploy_parser.add_argument("--no-health", action="store_true", help="do not wait for /health")
    deploy_parser.add_argument(
        "--health-timeout", type=float, default=Target.health_timeout, help="seconds to wait for /health"
    )
    package_parser = commands.add_parser("package", help="write the package only")
    package_parser.add_argument("archive", type=Path)
    files_parser = commands.add_parser("files", help="print the package's files and its hash")
    for command in (deploy_parser, package_parser, files_parser):
        command.add_argument(
            "--source", type=Path, default=Path(__file__).resolve().parent.parent, help="the project's folder"
        )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0 on success, otherwise 1 with the reason on stderr."""
    options = _parse_arguments(arguments)
    try:
        if options.command == "deploy":
            target = Target(
                subscription=options.subscription,
                resource_group=options.resource_group,
                app=options.app,
                url=options.url,
                attempts=max(1, options.attempts),
                pause=options.pause,
                check_health=not options.no_health,
                health_timeout=options.health_timeout,
            )
            deploy(options.source, target)
        elif options.command == "package":
            _print("\n".join(write_package(options.source, options.archive)))
        else:
            _print("\n".join([*package_files(options.source), package_hash(options.source)]))
    except PublishError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
