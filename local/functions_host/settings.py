"""What the host reads from the app's folder: local.settings.json and host.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_DEFAULT_PORT = 7071


class HostError(Exception):
    """The host can't start; the text states the reason and what the developer can do."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """The content of local.settings.json: app settings, and the host's own port and CORS origins."""

    values: Mapping[str, str]
    port: int
    cors: tuple[str, ...]
    cors_credentials: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; a missing one has the defaults. Raises `HostError` that names what is wrong in it."""
        document = _json_object(path) if path.exists() else {}
        if document.get("IsEncrypted"):
            raise HostError(f"{path.name} is encrypted, which only Core Tools can read: set IsEncrypted to false.")
        values, host = document.get("Values") or {}, document.get("Host") or {}
        if not isinstance(values, dict) or not isinstance(host, dict):
            raise HostError(f"{path.name}: Values and Host must be objects.")
        for name, value in values.items():
            if not isinstance(value, str):
                raise HostError(f"{path.name}: the value of {name} must be a string.")
        port = host.get("LocalHttpPort", _DEFAULT_PORT)
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise HostError(f"{path.name}: Host.LocalHttpPort must be a port number.")
        origins = (origin.strip().rstrip("/") for origin in str(host.get("CORS") or "").split(","))
        return cls(
            values=values,
            port=port,
            cors=tuple(origin for origin in origins if origin),
            cors_credentials=bool(host.get("CORSCredentials")),
        )


def route_prefix(script_root: Path) -> str:
    """`extensions.http.routePrefix` of host.json; `api` where it is not set, as on the platform."""
    path = script_root / "host.json"
    if not path.exists():
        raise HostError(f"There is no host.json in {script_root}: it is not the folder of a function app.")
    http = _json_object(path).get("extensions", {}).get("http", {})
    return str(http.get("routePrefix", "api")).strip("/")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise HostError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise HostError(f"{path.name} must be a JSON object.")
    return document
