"""What the host reads from the app's folder: local.settings.json and host.json."""

import json
import re
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a request, with the platform's values: sizes in bytes, times in seconds.

    `function_seconds` None: no bound.
    """

    body_bytes: int = 104_857_600
    upload_seconds: float = 5.0
    activity_seconds: float = 240.0
    function_seconds: float | None = 1800.0

    @classmethod
    def read(cls, script_root: Path, environment: Mapping[str, str]) -> Self:
        """The limits by host.json and the app settings; raises `HostError` that names what is wrong."""
        return cls(
            body_bytes=int(_number(environment, "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT", cls().body_bytes)),
            upload_seconds=_number(environment, "LOCAL_HOST_UPLOAD_SECONDS", cls().upload_seconds),
            activity_seconds=_number(environment, "LOCAL_HOST_ACTIVITY_SECONDS", cls().activity_seconds),
            function_seconds=_function_seconds(_host_document(script_root).get("functionTimeout")),
        )


def route_prefix(script_root: Path) -> str:
    """`extensions.http.routePrefix` of host.json; `api` where it is not set, as on the platform."""
    http = _host_document(script_root).get("extensions", {}).get("http", {})
    return str(http.get("routePrefix", "api")).strip("/")


def _host_document(script_root: Path) -> dict[str, Any]:
    path = script_root / "host.json"
    if not path.exists():
        raise HostError(f"There is no host.json in {script_root}: it is not the folder of a function app.")
    return _json_object(path)


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise HostError(f"{name} must be a number greater than 0.")
    return number


def _function_seconds(text: Any) -> float | None:
    if text is None:
        return Limits().function_seconds
    if text == "-1":
        return None
    match = re.fullmatch(r"(?:(\d+)\.)?(\d+):(\d+):(\d+(?:\.\d+)?)", str(text))
    if match is None:
        raise HostError("host.json: functionTimeout must be a time such as 00:30:00, or -1 for none.")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# Core Tools read these files with comments and with commas behind the last member; so they are read here.
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[}\]])', re.DOTALL)


def _without_comments(text: str) -> str:
    """The text with blanks instead, so that an error's line and column stay true."""
    return _STRING_OR_COMMENT.sub(
        lambda found: found[0] if found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0]), text
    )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_without_comments(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise HostError(f"{path.name} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise HostError(f"{path.name} is not UTF-8: save it in this encoding.") from None
    except ValueError as error:
        raise HostError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise HostError(f"{path.name} must be a JSON object.")
    return document
