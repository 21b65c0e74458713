"""Packages the app, publishes it to Azure and waits until it is healthy. Requires only Python and az.

publish.py deploy ...       publish the app; the Terraform output publish_command has the arguments
publish.py settings ...     restore the app's settings after a change of the app, without publishing the code
publish.py package OUT.zip  write the package only; with --prebuilt including the installed packages
publish.py files            print the package's files and its hash
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

# The provider writes both settings, without a key, on every change of the app. The host prefers them to the identity
# and then fails (terraform-provider-azurerm #29149, #29693, #30732, #33211).
KEYLESS_CONNECTION_STRINGS = ("AzureWebJobsStorage", "DEPLOYMENT_STORAGE_CONNECTION_STRING")

# How an update of the app treats requests in progress: Recreate ends them, RollingUpdate (in preview) lets them finish.
# https://learn.microsoft.com/azure/azure-functions/flex-consumption-site-updates
UPDATE_STRATEGIES = ("Recreate", "RollingUpdate")

# Where the Functions worker looks for the packages of a package that was built before publishing.
_SITE_PACKAGES = ".python_packages/lib/site-packages"

# The kinds of rule that infra/package.tf supports and describes.
_RULE = re.compile(
    r"\*|\*\.[a-zA-Z0-9]+|[a-zA-Z0-9_.-]+/|!([a-zA-Z0-9_][a-zA-Z0-9_.-]*/)*([a-zA-Z0-9_][a-zA-Z0-9_.-]*/?|\*\*)"
)


class PublishError(Exception):
    """The code could not be published; the message names the cause and the remedy."""


class AzError(PublishError):
    """az failed in each attempt, for a reason that another attempt could have ended."""


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
    names = _required_package_files(root)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as package:
        for name in names:
            _add_file(package, name, root / name)
    return names


def write_prebuilt_package(root: Path, archive: Path) -> list[str]:
    """Write the package with all packages of `requirements.txt` installed in it, and return its files.

    The packages are wheels for the Functions worker's platform (Linux x86-64, CPython 3.13), whatever machine this runs
    on, and pip verifies the hash of each. The package contains no requirements.txt, so that a remote build, which az
    2.91 requests for Python even with `--build-remote false` (`build_remote or runtime == 'python'` in its
    enable_zip_deploy_flex), has nothing to install and leaves the packages as they are. Raises `PublishError`, with
    pip's message, when a wheel can't be downloaded or has another hash.
    """
    names = [name for name in _required_package_files(root) if name != "requirements.txt"]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        _install_packages(root / "requirements.txt", Path(folder))
        for name in names:
            _add_file(package, name, root / name)
        for path in sorted(Path(folder).rglob("*")):
            installed = path.relative_to(folder).as_posix()
            # The scripts in bin/ begin with the path of this machine's interpreter, and nothing runs them in Azure.
            if path.is_file() and not installed.startswith("bin/") and "__pycache__" not in path.parts:
                _add_file(package, f"{_SITE_PACKAGES}/{installed}", path)
                names.append(f"{_SITE_PACKAGES}/{installed}")
    return names


def _install_packages(requirements: Path, folder: Path) -> None:
    process = subprocess.run(  # noqa: S603 (an argument list, without a shell)
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--target", str(folder), "--requirement", str(requirements), "--require-hashes"),
            # Complete and pinned: nothing is resolved, and no file of a wheel is compiled by this machine's Python.
            *("--no-deps", "--no-compile", "--only-binary", ":all:"),
            *("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"),
            *("--implementation", "cp", "--python-version", "3.13"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise PublishError(
            f"pip could not install the packages of {requirements} for Linux and Python 3.13 (exit code "
            f"{process.returncode}). It needs pip, and a way to a package index; a private one is set by "
            f"PIP_INDEX_URL.\n{process.stderr.strip()}"
        )


def _required_package_files(root: Path) -> list[str]:
    names = package_files(root)
    for required in ("function_app.py", "host.json", "requirements.txt"):
        if required not in names:
            raise PublishError(f"{required} is not in the package; set --source to the project's folder, not {root}.")
    return names


def _add_file(package: zipfile.ZipFile, name: str, path: Path) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix; otherwise the permissions below are ignored
    entry.external_attr = 0o100644 << 16
    entry.compress_type = package.compression
    package.writestr(entry, path.read_bytes())


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
    # One of UPDATE_STRATEGIES; None leaves the app's strategy as it is.
    update_strategy: str | None = None
    # Install the packages here instead of in Azure.
    prebuilt: bool = False

    @property
    def az_arguments(self) -> list[str]:
        """The arguments of az that select the app."""
        return ["--subscription", self.subscription, "--resource-group", self.resource_group, "--name", self.app]


def deploy(root: Path, target: Target) -> None:
    """Publish the app in `root`; raises `PublishError` when az fails or the app does not become healthy."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "app.zip")
        names = write_prebuilt_package(root, archive) if target.prebuilt else write_package(root, archive)
        _print(f"{target.app}: {len(names)} files, {archive.stat().st_size:,} bytes, {package_hash(root)[:12]}")
        _restore_settings(target)
        upload = ["functionapp", "deployment", "source", "config-zip", *target.az_arguments, "--src", str(archive)]
        _run_az(target, [*upload, *(["--build-remote", "false"] if target.prebuilt else [])], output="none")
    if target.check_health:
        wait_until_healthy(target)


def restore_settings(target: Target) -> None:
    """Undo what a change of the app by the Terraform provider did to its settings; changes nothing that is right.

    Raises `PublishError` when az fails or the app does not become healthy.
    """
    _restore_settings(target)
    if target.check_health:
        wait_until_healthy(target)


def _restore_settings(target: Target) -> None:
    # The strategy first: the deletion below is an update of the app too, and ends requests in progress unless it rolls.
    if target.update_strategy is not None:
        _set_update_strategy(target, target.update_strategy)
    # az writes all settings again, which restarts the app, even when there is nothing to delete: so look first.
    listed = _run_az(
        target,
        ["functionapp", "config", "appsettings", "list", *target.az_arguments, "--query", "[].name"],
    )
    names = _parse_names(listed)
    # An unreadable answer says nothing: then both are deleted, which is what matters.
    present = [name for name in KEYLESS_CONNECTION_STRINGS if names is None or name in names]
    if present:
        _run_az(
            target,
            ["functionapp", "config", "appsettings", "delete", *target.az_arguments, "--setting-names", *present],
            output="none",
        )


def _set_update_strategy(target: Target, wanted: str) -> None:
    """Set how updates treat requests in progress, unless it is set already.

    The provider writes the app with an API version that does not have this property, which resets it to Recreate.
    """
    command = ["functionapp", "update-strategy", "config"]
    default = UPDATE_STRATEGIES[0]
    try:
        # An app that keeps Azure's default is published all the same where this can't be read.
        answer = _run_az(
            replace(target, attempts=1) if wanted == default else target,
            [*command, "show", *target.az_arguments, "--query", "type"],
        )
    except AzError as error:
        if wanted != default:
            raise
        _print(f"{target.app}: the update strategy could not be read, and is taken for {default}: {error}")
        answer = ""
    current = _parse_json(answer)
    if (current if current in UPDATE_STRATEGIES else default) != wanted:
        _run_az(target, [*command, "set", *target.az_arguments, "--type", wanted], output="none")
        _print(f"{target.app}: the update strategy is now {wanted}")


def _parse_names(text: str) -> set[str] | None:
    """The names of the settings that az lists; None when they can't be told."""
    listed = _parse_json(text)
    if not isinstance(listed, list):
        return None
    return {str(entry.get("name") if isinstance(entry, dict) else entry) for entry in listed}


def _parse_json(text: str) -> object:
    """The parsed output of az; None when there is none, or it is not JSON."""
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        return None


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


# What `az functionapp deployment source config-zip` prints (azure-cli 2.91, _check_zip_deployment_status_flex and
# _validate_app_service_deployment): the first when the build failed, the second when the package is deployed, but az
# could not reach the app to see whether it runs, as is the case for a private app.
_BUILD_FAILED = "Zip deployment failed"
_DEPLOYED = "Deployment was successful"


def _run_az(target: Target, arguments: list[str], *, output: str = "json") -> str:
    """Run az and return its output; retries, since a role assigned a minute ago may not be effective yet.

    Raises `PublishError` when all attempts failed, and at once where a further attempt would end in the same way.
    """
    command = " ".join(["az", *takewhile(lambda argument: not argument.startswith("-"), arguments)])
    error = ""
    for attempt in range(1, target.attempts + 1):
        process = _run_az_once(arguments, output)
        if process.returncode == 0:
            return process.stdout
        error = process.stderr.strip() or f"exit code {process.returncode}"
        if "az login" in error:
            raise PublishError(f"az is not signed in to the subscription {target.subscription}:\n{error}")
        if "not recognized by the system" in error:
            raise AzError(f"{command} is not a command of this version of az; update it:\n{error}")
        if _DEPLOYED in error:
            # With check_health the script itself finds out whether the app runs.
            _print(f"{target.app} is deployed; az could not check it: {error}")
            return process.stdout
        if _BUILD_FAILED in error:
            raise PublishError(
                f"The build of {target.app} failed, so the code that was there before stays. Fix what its log reports, "
                f"or install the packages on this machine instead: --prebuilt, or remote_build = false in Terraform.\n"
                f"{error}"
            )
        _print(f"{command}, attempt {attempt} of {target.attempts}:\n{error}")
        if attempt < target.attempts:
            time.sleep(target.pause)
    times = "once" if target.attempts == 1 else f"{target.attempts} times"
    raise AzError(f"{command} failed {times}; the last error:\n{error}")


def _run_az_once(arguments: list[str], output: str) -> subprocess.CompletedProcess[str]:
    # On Windows az is az.cmd, which can only be started by its full path.
    az = shutil.which("az")
    if az is None:
        raise PublishError("az is not on the PATH: install the Azure CLI (https://aka.ms/azure-cli) and run az login.")
    # Nothing that az returns is printed: a change of the settings returns all of them.
    return subprocess.run(  # noqa: S603 (an argument list, without a shell)
        [az, *arguments, "--output", output, "--only-show-errors"],
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
    settings_parser = commands.add_parser("settings", help="restore the app's settings and wait until it is healthy")
    for command in (deploy_parser, settings_parser):
        command.add_argument("--subscription", required=True)
        command.add_argument("--resource-group", required=True)
        command.add_argument("--app", required=True)
        command.add_argument("--url", required=True)
        command.add_argument(
            "--update-strategy", choices=UPDATE_STRATEGIES, help="how updates of the app treat requests in progress"
        )
        command.add_argument("--attempts", type=int, default=Target.attempts, help="attempts of each az command")
        command.add_argument("--pause", type=float, default=Target.pause, help="seconds between attempts")
        command.add_argument("--no-health", action="store_true", help="do not wait for /health")
        command.add_argument(
            "--health-timeout", type=float, default=Target.health_timeout, help="seconds to wait for /health"
        )
    package_parser = commands.add_parser("package", help="write the package only")
    package_parser.add_argument("archive", type=Path)
    files_parser = commands.add_parser("files", help="print the package's files and its hash")
    for command in (deploy_parser, package_parser):
        command.add_argument(
            "--prebuilt", action="store_true", help="install the packages on this machine instead of in Azure"
        )
    for command in (deploy_parser, settings_parser, package_parser, files_parser):
        command.add_argument(
            "--source", type=Path, default=Path(__file__).resolve().parent.parent, help="the project's folder"
        )
    return parser.parse_args(arguments)


def _parse_target(options: argparse.Namespace) -> Target:
    return Target(
        subscription=options.subscription,
        resource_group=options.resource_group,
        app=options.app,
        url=options.url,
        attempts=max(1, options.attempts),
        pause=options.pause,
        check_health=not options.no_health,
        health_timeout=options.health_timeout,
        update_strategy=options.update_strategy,
        prebuilt=getattr(options, "prebuilt", False),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0 on success, otherwise 1 with the reason on stderr."""
    options = _parse_arguments(arguments)
    try:
        if options.command == "deploy":
            deploy(options.source, _parse_target(options))
        elif options.command == "settings":
            restore_settings(_parse_target(options))
        elif options.command == "package":
            write = write_prebuilt_package if options.prebuilt else write_package
            _print("\n".join(write(options.source, options.archive)))
        else:
            _print("\n".join([*package_files(options.source), package_hash(options.source)]))
    except PublishError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
