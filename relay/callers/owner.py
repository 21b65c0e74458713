"""Whose a stream is that can be resumed: the caller's, and no other's."""

import hashlib
from typing import Final

from relay.callers.request import CallerRequest

_LENGTH: Final = 32  # characters


def caller_name(caller: CallerRequest) -> str:
    """What tells the caller from others; empty where callers have no names: then all who have a key are one caller.

    Who signs in without being one of the settings' callers is told from others by the id of the identity.
    """
    identity = caller.identity
    if identity is None:
        return ""
    return f"name:{identity.caller.name}" if identity.named else f"id:{identity.id}"


def owner_of(caller: CallerRequest) -> str:
    """What the model service keeps with a response, to tell whose it is: not the name, which it has no use for."""
    return hashlib.sha256(b"relay\0" + caller_name(caller).encode()).hexdigest()[:_LENGTH]
