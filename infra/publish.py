"""Packs the app, hands it to Azure and waits until it answers. It needs Python and az, and nothing else.

publish.py deploy ...       what the output publish_command prints
publish.py package OUT.zip  only the package
publish.py files            what goes into it, and its hash
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

# The provider writes both with every change of the app, without a key; the host prefers them to the identity and then
# fails (terraform-provider-azurerm #29149, #29693, #30732, #33211).
KEYLESS_CONNECTION_STRINGS = ("AzureWebJobsStorage", "DEPLOYMENT_STORAGE_CONNECTION_STRING")

# The same rules as infra/package.tf, which explains them.
_RULE = re.compile(
    r"\*|\*\.[a-zA-Z0-9]+|[a-zA-Z0-9_.-]+/|!([a-zA-Z0-9_][a-zA-Z0-9_.-]*/)*([a-zA-Z0-9_][a-zA-Z0-9_.-]*/?|\*\*)"
)


class PublishError(Exception):
    """The code could not be published; the message says why, and what to do about it."""


@dataclass(frozen=True)
class PackageRules:
    """What `.funcignore` says, read in the four forms that Terraform and Azure's tools understand alike."""

    included: tuple[str, ...]
    excluded_folders: tuple[str, ...]
    excluded_ends: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> PackageRules:
        """Raise `PublishError` for a rule of any other form."""
        rules = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        for rule in rules:
            if not _RULE.fullmatch(rule):
                raise PublishError(
                    f".funcignore: {rule!r} is none of the kinds of rule that infra/package.tf explains."
                )
        # By git's rules the last one that fits a file decides, so that the order must be this.
        order = [0 if rule == "*" else 1 if rule.startswith("!") else 2 for rule in rules]
        if 0 not in order or order != sorted(order):
            raise PublishError(
                ".funcignore must leave everything out with '*', then name what goes in, then what not of it."
            )
        return cls(
            included=tuple(rule[1:] for rule in rules if rule.startswith("!") and not rule.endswith("/")),
            excluded_folders=tuple(f"/{rule}" for rule in rules if not rule.startswith("!") and rule.endswith("/")),
            excluded_ends=tuple(rule[1:] for rule in rules if rule.startswith("*.")),
        )

    def files(self, root: Path) -> list[str]:
        """The package's files below `root`, with forward slashes, in the order of their UTF-8 bytes."""
        names: set[str] = set()
        for pattern in self.included:
            if pattern.endswith("/**"):
                names.update(
                    path.relative_to(root).as_posix() for path in (root / pattern[:-3]).rglob("*") if path.is_file()
                )
            elif (root / pattern).is_file():
                names.add(pattern)
        return sorted(
            (name for name in names if not self._excludes(name)),
            key=lambda name: name.encode(),
        )

    def _excludes(self, name: str) -> bool:
        return any(folder in f"/{name}" for folder in self.excluded_folders) or name.endswith(self.excluded_ends)


def package_files(root: Path) -> list[str]:
    """The names of the files that are deployed, as `.funcignore` in `root` says."""
    return PackageRules.read((root / ".funcignore").read_text(encoding="utf-8")).files(root)


def package_hash(root: Path) -> str:
    """SHA-256 over the files' contents and names; the same as Terraform's `local.package_hash`."""
    lines = (f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in package_files(root))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_package(root: Path, archive: Path) -> list[str]:
    """Write the package to `archive` and return its files.

    The same files give the same bytes, on any machine: order, times and rights are fixed, and nothing is compressed
    (what deflate makes differs between versions of zlib).
    """
    names = package_files(root)
    for needed in ("function_app.py", "host.json", "requirements.txt"):
        if needed not in names:
            raise PublishError(f"{needed} is not in the package; --source must be the project's folder, not {root}.")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as package:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, so that the rights below mean something
            entry.external_attr = 0o100644 << 16
            package.writestr(entry, (root / name).read_bytes())
    return names


@dataclass(frozen=True)
class Target:
    """The Function App that the code goes to, and how patient to be with Azure (seconds)."""

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
    """Publish the app in `root`; raise `PublishError` when Azure refuses it or it does not become healthy."""
    app = ["--subscription", target.subscription, "--resource-group", target.resource_group, "--name", target.app]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "app.zip")
        names = write_package(root, archive)
        _say(f"{target.app}: {len(names)} files, {archive.stat().st_size:,} bytes, {package_hash(root)[:12]}")
        # `--output none`: az would print every setting of the app.
        _az(
            target,
            ["functionapp", "config", "appsettings", "delete", *app, "--setting-names", *KEYLESS_CONNECTION_STRINGS],
        )
        _az(target, ["functionapp", "deployment", "source", "config-zip", *app, "--src", str(archive)])
    if target.check_health:
        await_health(target)


def await_health(target: Target) -> None:
    """Return when `/health` has answered 200 twice running; raise `PublishError` after `health_timeout`."""
    address = f"{target.url.rstrip('/')}/health"
    deadline = time.monotonic() + target.health_timeout
    healthy, last = 0, "nothing"
    while healthy < 2:
        if time.monotonic() > deadline:
            raise PublishError(
                f"{address} did not become healthy in {target.health_timeout:.0f} s; the last answer was {last}. "
                + _mend(last, target)
            )
        last = _status(address)
        healthy = healthy + 1 if last == "200" else 0
        if healthy < 2:
            time.sleep(target.health_pause)
    _say(f"{address} answers")


def _mend(last: str, target: Target) -> str:
    if last in ("401", "403"):
        return "This machine may not call the app: add its address to allowed_ip_ranges, or set check_health = false."
    if last.isdigit():
        return f"The portal's pages Deployment Center and Log stream of {target.app} show why."
    return "This machine does not reach the app: check its network, and whether the app is private."


def _status(address: str) -> str:
    """The HTTP status of a GET, or what kept it from having one."""
    if not address.startswith(("https://", "http://")):
        raise PublishError(f"--url must begin with https://, not be {address}.")
    try:
        with urllib.request.urlopen(address, timeout=30) as response:  # noqa: S310 (the scheme is checked above)
            return str(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)
    except OSError as error:
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"


def _az(target: Target, arguments: list[str]) -> None:
    """Run az, and again after a pause: a role assigned a minute ago may not be effective yet."""
    for attempt in range(1, target.attempts + 1):
        done = _run(arguments)
        if done.returncode == 0:
            return
        said = done.stderr.strip() or f"exit code {done.returncode}"
        if "az login" in said:
            # No patience here: whoever is not signed in should hear of it at once.
            raise PublishError(f"az is not signed in to the subscription {target.subscription}. It said:\n{said}")
        _say(f"az {' '.join(arguments[:4])}, attempt {attempt} of {target.attempts}:\n{said}")
        if attempt < target.attempts:
            time.sleep(target.pause)
    raise PublishError(f"az {' '.join(arguments[:4])} failed {target.attempts} times; its last words:\n{said}")


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # On Windows az is az.cmd, which only its full path starts.
    az = shutil.which("az")
    if az is None:
        raise PublishError("az is not on the PATH: install the Azure CLI (https://aka.ms/azure-cli) and run az login.")
    return subprocess.run(  # noqa: S603 (the arguments are a list; no shell reads them)
        [az, *arguments, "--output", "none", "--only-show-errors"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    deploying = commands.add_parser("deploy", help="publish the app and wait until it is healthy")
    deploying.add_argument("--subscription", required=True)
    deploying.add_argument("--resource-group", required=True)
    deploying.add_argument("--app", required=True)
    deploying.add_argument("--url", required=True)
    deploying.add_argument("--attempts", type=int, default=Target.attempts, help="tries of each az call")
    deploying.add_argument("--pause", type=float, default=Target.pause, help="seconds between them")
    deploying.add_argument("--no-health", action="store_true", help="don't wait for /health")
    deploying.add_argument(
        "--health-timeout", type=float, default=Target.health_timeout, help="seconds to wait for /health"
    )
    packing = commands.add_parser("package", help="write the package only")
    packing.add_argument("archive", type=Path)
    listing = commands.add_parser("files", help="print the package's files and its hash")
    for command in (deploying, packing, listing):
        command.add_argument(
            "--source", type=Path, default=Path(__file__).resolve().parent.parent, help="the project's folder"
        )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when it was done, 1 when not, with the reason on stderr."""
    asked = _arguments(words)
    try:
        if asked.command == "deploy":
            target = Target(
                subscription=asked.subscription,
                resource_group=asked.resource_group,
                app=asked.app,
                url=asked.url,
                attempts=max(1, asked.attempts),
                pause=asked.pause,
                check_health=not asked.no_health,
                health_timeout=asked.health_timeout,
            )
            deploy(asked.source, target)
        elif asked.command == "package":
            _say("\n".join(write_package(asked.source, asked.archive)))
        else:
            _say("\n".join([*package_files(asked.source), package_hash(asked.source)]))
    except PublishError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
