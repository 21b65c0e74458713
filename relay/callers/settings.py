"""The app settings about callers: who may call, by which key or Entra identity, which models, within which limits.

A setting that is wrong is an error of all of them: with an error, no one is admitted.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

import msgspec

from relay.settings import CALLERS_SETTING, Identity, SettingError, SettingsError

# Characters of a key. 32 hexadecimal digits of a random generator have 128 bits, which no one guesses from a digest.
MIN_KEY_LENGTH: Final = 32
MAX_KEY_LENGTH: Final = 256

MAX_LIMIT: Final = 10**12

STORAGE_SCOPE: Final = "https://storage.azure.com/.default"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller may use: requests and tokens in a minute, tokens in a day, streams at a time; None: no limit.

    Tokens are those of prompts and answers together.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    streams: int | None = None

    def or_else(self, default: "Limits") -> "Limits":
        """These limits, and those of `default` where there is none."""
        chosen = {
            name: getattr(default, name) if getattr(self, name) is None else getattr(self, name) for name in LIMIT_NAMES
        }
        return Limits(**chosen)

    def __bool__(self) -> bool:
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.tokens_per_day is None
            and self.streams is None
        )


LIMIT_NAMES: Final = Limits.__struct_fields__
NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class NamedCaller:
    """A caller as the settings have it.

    `models` are those that it may use; None: all. `limits` are its own and the default ones together.
    """

    name: str
    models: frozenset[str] | None = None
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class LimitsStore:
    """The table that all instances keep the use of limits in.

    `endpoint` is that of a storage account's Table service. `identity` signs in to it; None: it is an Azurite on this
    machine.
    """

    endpoint: str
    table: str
    identity: Identity | None = None


@dataclass(frozen=True)
class CallerSettings:
    """Who may call. At least one of the two kinds of callers is there; without any, `read` gives None.

    `by_digest` maps the SHA-256 of a key, as bytes, to itself and its caller. `by_principal` maps the object id or
    client id of an Entra identity to its caller. `entra_sign_in`: the platform in front of the app admits only
    signed-in callers, and reports who they are; `limits` are then those of the ones that have no name here.
    `limits_store`: None where each instance counts for itself.
    """

    by_digest: Mapping[bytes, tuple[bytes, NamedCaller]] = field(default_factory=dict)
    by_principal: Mapping[str, NamedCaller] = field(default_factory=dict)
    entra_sign_in: bool = False
    limits: Limits = NO_LIMITS
    limits_store: LimitsStore | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self | None:
        """The settings in `environ`, None where they name no callers; raises `SettingsError` with every error."""
        parser = _Parser(environ)
        settings = [name for name in environ if CALLERS_SETTING.fullmatch(name) and environ[name].strip()]
        entra_sign_in = parser.entra_sign_in()
        limits = parser.default_limits(used=bool(settings) or entra_sign_in)
        limits_store = parser.limits_store(used=bool(settings) or entra_sign_in)
        by_digest: dict[bytes, tuple[bytes, NamedCaller]] = {}
        by_principal: dict[str, NamedCaller] = {}
        names: set[str] = set()
        for setting in sorted(settings, key=lambda name: (len(name), name)):
            for number, (name, entry) in enumerate(parser.entries(setting).items()):
                where = parser.name(setting, number, name)
                if name in names:
                    parser.add_error(where, "is there twice; give each caller a name of its own.")
                names.add(name)
                caller = NamedCaller(
                    name, None if entry.models is None else frozenset(entry.models), entry.limits.or_else(limits)
                )
                parser.check(where, entry, entra_sign_in=entra_sign_in)
                for position, text in enumerate(entry.key_digests):
                    digest = parser.digest(f"{where}.key_digests[{position}]", text)
                    if digest is not None and by_digest.setdefault(digest, (digest, caller))[1] is not caller:
                        parser.add_error(
                            f"{where}.key_digests[{position}]", "is another caller's as well; make a new key."
                        )
                for position, text in enumerate(entry.principals):
                    principal = parser.principal(f"{where}.principals[{position}]", text)
                    if principal is not None and by_principal.setdefault(principal, caller) is not caller:
                        parser.add_error(f"{where}.principals[{position}]", "is another caller's as well; remove one.")
        if parser.errors:
            raise SettingsError(tuple(parser.errors))
        if not settings and not entra_sign_in:
            return None
        return cls(by_digest, by_principal, entra_sign_in, limits, limits_store)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One caller in `CALLERS`."""

    key_digests: list[str] = []
    principals: list[str] = []
    models: list[str] | None = None
    limits: Limits = Limits()


# Shorter than a key, which so can never stand in a record in a name's place.
_MAX_NAME: Final = MIN_KEY_LENGTH - 1
NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_MAX_NAME - 1}}}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_PRINCIPAL: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Azure's clouds, and an Azurite on this machine; its name is the first part of the path (Azurite's README).
_STORE: Final = re.compile(
    r"(https://[a-z0-9]{3,24}\.table\.core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))/"
    r"([A-Za-z][A-Za-z0-9]{2,62})"
)
_DEVELOPMENT_STORE: Final = re.compile(r"(http://127\.0\.0\.1:[0-9]{1,5}/devstoreaccount1)/([A-Za-z][A-Za-z0-9]{2,62})")
_EXAMPLE: Final = '{"team-a": {"key_digests": ["…64 hexadecimal digits…"]}}'
_MAX_ERRORS: Final = 20
_MAX_ENTRIES: Final = 100  # keys, principals and models of one caller


class _Parser:
    """Parses the environment and collects errors; none of them quotes a value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.errors: list[SettingError] = []

    def add_error(self, setting: str, message: str) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(SettingError(setting, message))

    def entra_sign_in(self) -> bool:
        setting = "ENTRA_SIGN_IN"
        text = self._environ.get(setting, "").strip().lower()
        if text not in ("", "true", "false"):
            self.add_error(setting, "must be true or false.")
            # Whoever wrote it wanted callers to be known: the error closes the app.
            return False
        if text == "true" and self._environ.get("WEBSITE_AUTH_ENABLED", "").strip().lower() == "false":
            self.add_error(
                setting, "remove it, or switch on App Service authentication: the platform reports it as off."
            )
        if text == "true" and self._environ.get("HTTP_AUTH_LEVEL", "").strip().lower() != "anonymous":
            self.add_error(setting, "set HTTP_AUTH_LEVEL to anonymous as well: sign-in replaces the function key.")
        return text == "true"

    def default_limits(self, *, used: bool) -> Limits:
        setting = "CALLER_LIMITS"
        text = self._environ.get(setting, "").strip()
        if not text:
            return Limits()
        if not used:
            self.add_error(setting, "remove it, or name callers in CALLERS: only a caller that is known has limits.")
        try:
            limits = msgspec.convert(_decoded(text), Limits)
        except (ValueError, RecursionError) as error:
            members = ", ".join(LIMIT_NAMES)
            self.add_error(setting, f"must be a JSON object with {members}, each a whole number{_reason(error)}.")
            return Limits()
        self._check_limits(setting, limits)
        return limits

    def limits_store(self, *, used: bool) -> LimitsStore | None:
        setting = "LIMITS_STORE"
        text = self._environ.get(setting, "").strip()
        if not text:
            return None
        if not used:
            self.add_error(setting, "remove it, or name callers in CALLERS: only a caller that is known has limits.")
        if match := _DEVELOPMENT_STORE.fullmatch(text):
            return LimitsStore(match[1], match[2])
        if match := _STORE.fullmatch(text):
            # IDENTITY_ENDPOINT is where the platform serves tokens for a managed identity.
            kind: Literal["managed", "developer"] = "managed" if self._environ.get("IDENTITY_ENDPOINT") else "developer"
            client_id = self._environ.get("AZURE_CLIENT_ID", "").strip() or None
            return LimitsStore(match[1], match[2], Identity(kind, STORAGE_SCOPE, client_id))
        self.add_error(
            setting, "must be a table's address, without a key: https://ACCOUNT.table.core.windows.net/TABLE."
        )
        return None

    def entries(self, setting: str) -> dict[str, _Entry]:
        try:
            document = _decoded(self._environ[setting])
            entries: dict[str, _Entry] = msgspec.convert(document, dict[str, _Entry])
        except (ValueError, RecursionError) as error:
            self.add_error(setting, f"must be a JSON object such as {_EXAMPLE}{_reason(error)}.")
            return {}
        if not entries:
            self.add_error(setting, f"must name at least one caller, such as {_EXAMPLE}, or be removed.")
        return entries

    def name(self, setting: str, number: int, name: str) -> str:
        """Where the caller stands; what is no name could be a key, and is not repeated."""
        if NAME.fullmatch(name):
            return f'{setting}["{name}"]'
        self.add_error(
            f"{setting}[{number}]",
            f"must have a name: {_MAX_NAME} letters, digits, '.', '_' and '-' at most, of which the first is no sign.",
        )
        return f"{setting}[{number}]"

    def check(self, where: str, entry: _Entry, *, entra_sign_in: bool) -> None:
        if entra_sign_in and entry.key_digests:
            self.add_error(
                f"{where}.key_digests", "remove it: with ENTRA_SIGN_IN a caller signs in, and is named by principals."
            )
        elif entry.principals and not entra_sign_in:
            self.add_error(f"{where}.principals", "remove it: without ENTRA_SIGN_IN no one says who signed in.")
        elif not entry.key_digests and not entry.principals:
            self.add_error(
                where, f"must have {'principals' if entra_sign_in else 'key_digests'}; `make key NAME=…` makes a key."
            )
        for member in ("key_digests", "principals", "models"):
            values = getattr(entry, member)
            if values is not None and len(values) > _MAX_ENTRIES:
                self.add_error(f"{where}.{member}", f"must have {_MAX_ENTRIES} elements at most.")
        if entry.models == [] or any(not it.strip() for it in entry.models or ()):
            self.add_error(f"{where}.models", "must name at least one model, or be left out to allow all.")
        self._check_limits(f"{where}.limits", entry.limits)

    def _check_limits(self, where: str, limits: Limits) -> None:
        for name in LIMIT_NAMES:
            value = getattr(limits, name)
            if value is not None and not 1 <= value <= MAX_LIMIT:
                self.add_error(f"{where}.{name}", f"must be a whole number from 1 to {MAX_LIMIT}, or be left out.")

    def digest(self, where: str, text: str) -> bytes | None:
        if not _DIGEST.fullmatch(text):
            self.add_error(
                where,
                "must be the SHA-256 of a key as 64 hexadecimal digits, never the key; `make key NAME=…` makes both.",
            )
            return None
        digest = bytes.fromhex(text)
        if digest == hashlib.sha256(b"").digest():
            self.add_error(where, "is the digest of nothing; `make key NAME=…` makes a key.")
            return None
        return digest

    def principal(self, where: str, text: str) -> str | None:
        if not _PRINCIPAL.fullmatch(text):
            self.add_error(where, "must be the object id or client id of an Entra identity, such as 00000000-….")
            return None
        return text.lower()


class _TwiceError(ValueError):
    """An object has a member twice; of which no one knows which one is meant."""


def _reason(error: Exception) -> str:
    """What is wrong with the JSON, where the text of the error quotes nothing."""
    if isinstance(error, msgspec.ValidationError) and "unknown field" in str(error):
        return " (a member that is not known)"
    return f" ({error})" if isinstance(error, (msgspec.ValidationError, _TwiceError)) else ""


def _decoded(text: str) -> Any:
    """JSON without the leniency of most parsers, of two members of the same name to take the last."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _TwiceError("a member is there twice")
        return found

    return json.loads(text, object_pairs_hook=members)
