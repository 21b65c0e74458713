"""What a request presents to say who it is: a key in one of three headers, or what the platform's sign-in added."""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_plus

import msgspec

from relay.callers.settings import MAX_KEY_LENGTH, MIN_KEY_LENGTH

Headers = Iterable[tuple[bytes, bytes]]  # as in an ASGI scope: names in lower case, values in Latin-1

# Where clients put a key: OpenAI's and most others, Azure OpenAI's, and those of Azure Functions.
KEY_HEADERS: Final = ("Authorization: Bearer", "api-key", "x-functions-key")
_HEADERS: Final = frozenset((b"authorization", b"api-key", b"x-functions-key"))

# The names under which keys are put into addresses, in lower case; `code` is that of Azure Functions.
_QUERY_NAMES: Final = frozenset(
    ("code", "key", "api-key", "api_key", "apikey", "access_token", "subscription-key", "x-functions-key")
)
_MAX_QUERY: Final = 64 * 1024  # bytes that are looked at


class CredentialsError(ValueError):
    """The request presents no key that could be one; the text is for the caller, and quotes nothing."""


def presented_digest(headers: Headers, query: bytes) -> bytes:
    """The SHA-256 of the key that the request presents; raises `CredentialsError`.

    Several keys must be equal: it is not for the app to choose, and something before it may have chosen otherwise.
    """
    if query and _has_key(query):
        raise CredentialsError(f"A key in the address is refused, since addresses are logged. {_SEND}")
    key = b""
    for name, value in headers:
        if name not in _HEADERS:
            continue
        value = value.strip()
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise CredentialsError(f"The scheme of the header Authorization must be Bearer. {_SEND}")
            value = value.strip()
        if not value or value == key:
            continue
        if key:
            raise CredentialsError(
                "The request presents several keys that differ. Send one, in one of the headers "
                f"{', '.join(KEY_HEADERS)}; remove placeholders."
            )
        key = value
    if not key:
        raise CredentialsError(f"The request presents no key. {_SEND}")
    if not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
        raise CredentialsError(WRONG_KEY)
    return hashlib.sha256(key).digest()


_SEND: Final = "Send it in the header Authorization, as a Bearer token, or in api-key or x-functions-key."
WRONG_KEY: Final = "The key is wrong. Check it for typos, or ask the app's operator for a new one."


def _has_key(query: bytes) -> bool:
    """Whether a parameter has a name under which keys are sent."""
    for parameter in query[:_MAX_QUERY].split(b"&"):
        name = parameter.partition(b"=")[0]
        if unquote_plus(name.decode("latin-1")).strip().lower() in _QUERY_NAMES:
            return True
    return False


class Principal(msgspec.Struct, frozen=True):
    """Who signed in: the object id of a user or a service principal, and the client id of the application it used."""

    object_id: str
    client_id: str | None


class _Claim(msgspec.Struct):
    typ: str = ""
    val: str = ""


class _Claims(msgspec.Struct):
    claims: list[_Claim] = []


_MAX_PRINCIPAL: Final = 64 * 1024  # bytes


def principal(headers: Headers) -> Principal | None:
    """Who the platform says has signed in; None where it says nothing.

    Only for an app with App Service authentication in front that requires sign-in: it removes these headers from what
    callers send and sets its own. Source: "Work with user identities in Azure App Service authentication",
    https://learn.microsoft.com/azure/app-service/configure-authentication-user-identities
    """
    object_id, encoded = b"", b""
    for name, value in headers:
        if name == b"x-ms-client-principal-id":
            if object_id:
                return None  # the platform sets one
            object_id = value.strip()
        elif name == b"x-ms-client-principal":
            if encoded:
                return None
            encoded = value
    if not object_id or len(object_id) > 128 or not object_id.isascii():
        return None
    return Principal(object_id.decode().lower(), _client_id(encoded))


def _client_id(encoded: bytes) -> str | None:
    """The client id of the application that has the token: `appid` in tokens of version 1, `azp` in those of 2."""
    if not encoded or len(encoded) > _MAX_PRINCIPAL:
        return None
    try:
        document = msgspec.json.decode(base64.b64decode(encoded + b"=" * (-len(encoded) % 4)), type=_Claims)
    except (binascii.Error, msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    found = [claim.val.lower() for claim in document.claims if claim.typ in ("appid", "azp")]
    return found[0] if found else None
