"""The store of limits in an Azure table: one entity for each caller, replaced where its ETag is still the same.

Source: "Performing entity group transactions" and "Update Entity" (optimistic concurrency) of the Table service's REST
API. The time is the service's own, from the `Date` header, so that the clocks of the instances do not matter.
"""

import asyncio
import importlib
import json
import math
import random
import threading
import uuid
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any, Final

from relay.callers.settings import LimitsStore
from relay.callers.shared_limits import Change, LeasedLimits, State, StoreError

_ATTEMPTS: Final = 8  # of one update; others may update the same caller
_TIMEOUT: Final = 5.0  # seconds for all of them
_ROW: Final = "limits"
# The account and key that every Azurite has: they are no secret (Azurite's README, "Default storage account").
_DEVELOPMENT_ACCOUNT: Final = "devstoreaccount1"
_DEVELOPMENT_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(slots=True)
class _Response:
    """What the SDK does not hand out: when the service answered, in seconds since 1970."""

    now: float = 0.0

    def note(self, headers: Any) -> None:
        date = headers.get("Date") or headers.get("date")
        try:
            self.now = parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError):
            raise StoreError("an answer without its date") from None


class TableStore:
    """A table of the Table service, by the app's identity, or Azurite's (`relay.callers.shared_limits.Store`)."""

    def __init__(self, settings: LimitsStore) -> None:
        self._settings = settings
        self._client: Any = None
        self._core: Any = None

    async def update(self, name: str, change: Change) -> State:
        """Replace a caller's state by `change(state, now)`, atomically; raises `StoreError`."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                client = await self._connected()
                for attempt in range(_ATTEMPTS):
                    if attempt:
                        await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 (so as not to meet again)
                    state = await self._try(client, name, change)
                    if state is not None:
                        return state
        except TimeoutError:
            raise StoreError(f"no answer within {_TIMEOUT:g} s") from None
        except StoreError:
            raise
        except Exception as error:  # the SDK raises its own errors, its transport's, and those of the sign-in
            status = getattr(error, "status_code", None)
            raise StoreError(f"{type(error).__name__}{f', status {status}' if status else ''}") from error
        raise StoreError(f"{_ATTEMPTS} updates at once were others'")

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _connected(self) -> Any:
        if self._client is None:
            tables = await asyncio.to_thread(import_tables)
            if self._client is None:
                self._core = tables
                self._client = _client(tables, self._settings)
        return self._client

    async def _try(self, client: Any, name: str, change: Change) -> State | None:
        """One attempt; None where another instance was faster."""
        core, answer = self._core, _Response()
        try:
            entity = await client.get_entity(
                name, _ROW, raw_response_hook=lambda response: answer.note(response.http_response.headers)
            )
        except core.ResourceNotFoundError as error:
            if error.error_code == "TableNotFound":
                await _create(client, core)
                return None
            answer.note(error.response.headers)
            state = change(State(), answer.now)
            try:
                await client.create_entity(_entity(name, state))
            except core.ResourceExistsError:
                return None
            return state
        state = change(_state(entity), answer.now)
        try:
            await client.update_entity(
                _entity(name, state),
                mode=core.UpdateMode.REPLACE,
                etag=entity.metadata["etag"],
                match_condition=core.MatchConditions.IfNotModified,
            )
        except (core.ResourceModifiedError, core.ResourceNotFoundError):
            return None
        return state


def leased_limits(settings: LimitsStore | None) -> LeasedLimits | None:
    """The limits that this instance shares with others through the table; None without one.

    A thread imports what is needed while the worker starts.
    """
    if settings is None:
        return None
    threading.Thread(target=import_tables, name="import relay.callers.azure_tables", daemon=True).start()
    return LeasedLimits(TableStore(settings), uuid.uuid4().hex[:12])


def import_tables() -> ModuleType:
    """Import the SDK once: slow, so that only apps with such a store pay for it, in a thread."""
    return importlib.import_module("relay.callers.azure_tables")


def _client(tables: Any, settings: LimitsStore) -> Any:
    if settings.identity is None:
        credential = tables.AzureNamedKeyCredential(_DEVELOPMENT_ACCOUNT, _DEVELOPMENT_KEY)
    else:
        credential = tables.entra_credential(settings.identity)
    return tables.TableClient(
        settings.endpoint,
        settings.table,
        credential=credential,
        # An update that fails is repeated here, with a new state.
        retry_total=0,
        connection_timeout=2,
        read_timeout=3,
    )


async def _create(client: Any, core: Any) -> None:
    """Create the table: Terraform can't, since its provider does that with a key of the account only."""
    try:
        await client.create_table()
    except core.ResourceExistsError:
        return  # another instance did


def _entity(name: str, state: State) -> dict[str, Any]:
    return {
        "PartitionKey": name,
        "RowKey": _ROW,
        "requests": float(state.requests),
        "minute": float(state.minute),
        "day": float(state.day),
        "at": float(state.at),
        "streams": json.dumps(state.streams),
    }


def _state(entity: Any) -> State:
    """The state that an entity holds; of one that is none, that nothing is used."""
    try:
        numbers = {kind: float(entity[kind]) for kind in ("requests", "minute", "day", "at")}
        leased = json.loads(entity["streams"]).items()
        streams = {str(instance): (int(count), float(when)) for instance, (count, when) in leased}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return State()
    return State(**numbers, streams=streams) if all(map(math.isfinite, numbers.values())) else State()
