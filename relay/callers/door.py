"""Who is admitted: the one authorisation step of every route that costs something."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from starlette.types import Scope

from relay import telemetry
from relay.callers.credentials import WRONG_KEY, CredentialsError, presented_digest, principal
from relay.callers.settings import CallerSettings, LimitsStore, NamedCaller
from relay.problems import INVALID_API_KEY, MODEL_NOT_ALLOWED, NOT_CONFIGURED, FieldError, Problem
from relay.settings import SettingsError
from relay.upstream.request import Accounts, ModelName

# Anyone can ask for this: no names, no positions. The log has them.
_CLOSED: Final = NOT_CONFIGURED.with_detail(
    "The settings about callers are wrong, so no one is admitted. The app's log names what to correct."
).with_errors(FieldError("CALLERS", "see the app's log, event not_configured"))
_NOT_SIGNED_IN: Final = INVALID_API_KEY.with_detail(
    "The platform did not say who signed in. Call the app through App Service authentication."
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, for the length of one request.

    `id` is safe to record: an Entra object id, or the beginning of the digest of the key that was used, which tells the
    two keys of a rotation apart. `named`: it is one of the settings' callers, of which there are few enough for a
    metric.
    """

    caller: NamedCaller
    id: str
    named: bool = True

    def model(self, asked: ModelName, models: tuple[str, ...]) -> ModelName | Problem:
        """The model to ask for `asked`; the default is the first of `models`, the app's, that the caller may use."""
        allowed = self.caller.models
        if allowed is None or asked is Accounts.EVERY:
            return asked
        if asked is None:
            return next((it for it in models if it in allowed), MODEL_NOT_ALLOWED)
        # A model that the app does not have at all is not found for any caller.
        return asked if asked in allowed or asked not in models else MODEL_NOT_ALLOWED

    def models(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the app's models that the caller may use."""
        allowed = self.caller.models
        return models if allowed is None else tuple(it for it in models if it in allowed)


class Door:
    """Admits the callers of the settings, and no one when the settings are wrong.

    There is no door where no callers are configured (`from_environment` gives None): the Functions host then checks its
    function key, as `relay.settings.auth_level` has it.
    """

    def __init__(self, settings: CallerSettings | None) -> None:
        self._settings = settings
        self._identities = {} if settings is None else _identities(settings)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self | None:
        """The door that the app settings describe; a wrong setting is logged, and closes it."""
        try:
            settings = CallerSettings.read(environ)
        except SettingsError as error:
            for it in error.errors:
                telemetry.log_setting_error(it.setting, it.message)
            return cls(None)
        return None if settings is None else cls(settings)

    @property
    def limits_store(self) -> LimitsStore | None:
        """Where all instances keep the use of limits; None: each one for itself."""
        return None if self._settings is None else self._settings.limits_store

    def admit(self, scope: Scope) -> Identity | Problem:
        """Who sends the request with this ASGI scope, or why it is not admitted."""
        settings = self._settings
        if settings is None:
            return _CLOSED
        if settings.entra_sign_in:
            return _signed_in(settings, scope)
        try:
            digest = presented_digest(scope["headers"], scope.get("query_string", b""))
        except CredentialsError as error:
            return INVALID_API_KEY.with_detail(str(error))
        # What the time of the look-up depends on is the digest, of which a caller can choose no part; so it tells
        # nothing about a key. The comparison that decides takes the same time whatever differs.
        found = self._identities.get(digest)
        if found is None or not hmac.compare_digest(digest, found[0]):
            return _WRONG_KEY
        return found[1]


_WRONG_KEY: Final = INVALID_API_KEY.with_detail(WRONG_KEY)


def _identities(settings: CallerSettings) -> dict[bytes, tuple[bytes, Identity]]:
    """Who presents each key, by its digest."""
    return {
        digest: (digest, Identity(caller, f"key:{digest[:4].hex()}")) for digest, caller in settings.by_digest.values()
    }


def _signed_in(settings: CallerSettings, scope: Scope) -> Identity | Problem:
    """The caller that the platform names; one without a name in the settings goes by its object id."""
    found = principal(scope["headers"])
    if found is None:
        return _NOT_SIGNED_IN
    named = settings.by_principal.get(found.object_id) or settings.by_principal.get(found.client_id or "")
    if named is not None:
        return Identity(named, found.object_id)
    return Identity(NamedCaller(found.object_id, limits=settings.limits), found.object_id, named=False)
