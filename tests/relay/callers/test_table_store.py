"""The store of limits in a table: what it sends and makes of the answers. `test_limits_store.py` has a real Azurite."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.callers import table_store
from relay.callers.settings import LimitsStore
from relay.callers.shared_limits import State, StoreError
from relay.callers.table_store import TableStore, leased_limits
from relay.settings import Identity
from tests.relay.virtual_time import virtual_time

DATE = {"Date": "Wed, 25 Nov 2026 12:00:00 GMT"}
NOW = 1795608000.0
STORE = LimitsStore("http://127.0.0.1:10002/devstoreaccount1", "limits")
STATE = State(1.0, 2.0, 3.0, NOW - 5, {"an-instance": (2, NOW - 5)})


class AzureError(Exception):
    def __init__(self, status: int = 0, code: str = "") -> None:
        super().__init__("https://account.table.core.windows.net/limits?sig=SECRET")
        self.status_code = status
        self.error_code = code
        self.response = SimpleNamespace(headers=DATE)


class ResourceNotFoundError(AzureError):
    pass


class ResourceExistsError(AzureError):
    pass


class ResourceModifiedError(AzureError):
    pass


class Entity(dict[str, Any]):
    metadata = {"etag": "an-etag"}  # noqa: RUF012


def entity(state: State, **members: Any) -> Entity:
    return Entity(table_store._entity("team-a", state) | members)


class TableClient:
    """Answers by a script, and keeps what is written."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.written: list[tuple[str, Any, dict[str, Any]]] = []
        self.headers: dict[str, str] = DATE
        self.closed = False

    async def get_entity(self, partition: str, row: str, *, raw_response_hook: Any) -> Any:
        assert (partition, row) == ("team-a", "limits")
        step = self.script.pop(0)
        if step == "silent":
            await asyncio.get_running_loop().create_future()
        if isinstance(step, Exception):
            raise step
        raw_response_hook(SimpleNamespace(http_response=SimpleNamespace(headers=self.headers)))
        return step

    async def create_table(self) -> None:
        step = self.script.pop(0)
        if step is not None:
            raise step

    async def create_entity(self, written: Any) -> None:
        self._write("create", written, {})

    async def update_entity(self, written: Any, **options: Any) -> None:
        self._write("update", written, options)

    def _write(self, kind: str, written: Any, options: dict[str, Any]) -> None:
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        self.written.append((kind, written, options))

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In the place of the SDK."""
    module = SimpleNamespace(
        ResourceNotFoundError=ResourceNotFoundError,
        ResourceExistsError=ResourceExistsError,
        ResourceModifiedError=ResourceModifiedError,
        UpdateMode=SimpleNamespace(REPLACE="replace"),
        MatchConditions=SimpleNamespace(IfNotModified="if-not-modified"),
    )
    monkeypatch.setattr(table_store, "import_tables", lambda: module)
    return module


def store(client: TableClient, tables: Any) -> TableStore:
    made = TableStore(STORE)
    made._client, made._core = client, tables
    return made


def add(state: State, now: float) -> State:
    return State(state.requests + 1, state.minute, state.day, now, state.streams)


@virtual_time
async def test_a_caller_that_is_new() -> None:
    client = TableClient(ResourceNotFoundError(404, "ResourceNotFound"), None)
    assert await store(client, core()).update("team-a", add) == State(1.0, at=NOW)
    ((kind, written, _),) = client.written
    assert kind == "create"
    assert written == {
        "PartitionKey": "team-a",
        "RowKey": "limits",
        "requests": 1.0,
        "minute": 0.0,
        "day": 0.0,
        "at": NOW,
        "streams": "{}",
    }


def core() -> Any:
    return table_store.import_tables()


@virtual_time
async def test_a_caller_that_is_known_is_replaced_where_no_one_was_faster() -> None:
    client = TableClient(entity(STATE), None)
    state = await store(client, core()).update("team-a", add)
    assert state == State(2.0, 2.0, 3.0, NOW, {"an-instance": (2, NOW - 5)})
    ((kind, written, options),) = client.written
    assert (kind, written["requests"]) == ("update", 2.0)
    assert json.loads(written["streams"]) == {"an-instance": [2, NOW - 5]}
    assert options == {"mode": "replace", "etag": "an-etag", "match_condition": "if-not-modified"}


@pytest.mark.parametrize("error", [ResourceModifiedError(412), ResourceNotFoundError(404, "ResourceNotFound")])
def test_where_another_was_faster_its_state_is_changed(error: Exception) -> None:
    @virtual_time
    async def check() -> None:
        client = TableClient(entity(STATE), error, entity(State(7.0)), None)
        assert (await store(client, core()).update("team-a", add)).requests == 8.0

    check()


@virtual_time
async def test_where_another_created_it_first() -> None:
    missing = ResourceNotFoundError(404, "ResourceNotFound")
    client = TableClient(missing, ResourceExistsError(409), entity(State(1.0)), None)
    assert (await store(client, core()).update("team-a", add)).requests == 2.0


@pytest.mark.parametrize("created", [None, ResourceExistsError(409, "TableAlreadyExists")])
def test_a_table_that_is_missing_is_created(created: Exception | None) -> None:
    @virtual_time
    async def check() -> None:
        client = TableClient(ResourceNotFoundError(404, "TableNotFound"), created, entity(STATE), None)
        assert (await store(client, core()).update("team-a", add)).requests == 2.0

    check()


@virtual_time
async def test_a_table_that_must_not_be_created() -> None:
    client = TableClient(ResourceNotFoundError(404, "TableNotFound"), AzureError(403))
    with pytest.raises(StoreError, match="AzureError, status 403"):
        await store(client, core()).update("team-a", add)


@virtual_time
async def test_an_update_does_not_try_for_ever() -> None:
    client = TableClient(*[entity(STATE), ResourceModifiedError(412)] * 8)
    with pytest.raises(StoreError, match="8 updates"):
        await store(client, core()).update("team-a", add)


@virtual_time
async def test_a_silent_service() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(StoreError, match="no answer within 5 s"):
        await store(TableClient("silent"), core()).update("team-a", add)
    assert loop.time() == began + 5


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (AzureError(403), "AzureError, status 403"),
        (AzureError(), "AzureError"),
        (OSError("SECRET"), "OSError"),
    ],
)
def test_an_error_is_named_and_not_quoted(error: Exception, text: str) -> None:
    @virtual_time
    async def check() -> None:
        with pytest.raises(StoreError) as caught:
            await store(TableClient(error), core()).update("team-a", add)
        assert str(caught.value) == text

    check()


@pytest.mark.parametrize("headers", [{}, {"Date": "yesterday"}])
def test_an_answer_without_a_date_is_none(headers: dict[str, str]) -> None:
    @virtual_time
    async def check() -> None:
        client = TableClient(entity(STATE), None)
        client.headers = headers
        with pytest.raises(StoreError, match="without its date"):
            await store(client, core()).update("team-a", add)
        assert client.written == []

    check()


@pytest.mark.parametrize(
    "members",
    [
        {"streams": "["},
        {"streams": "[]"},
        {"streams": '{"a": 1}'},
        {"streams": '{"a": ["x", 1]}'},
        {"streams": None},
        {"requests": "many"},
        {"requests": float("nan")},
        {"day": float("inf")},
        {"at": None},
    ],
)
def test_an_entity_that_is_no_state_counts_as_none(members: dict[str, Any]) -> None:
    assert table_store._state(entity(STATE, **members)) == State()


def test_an_entity_without_a_member_counts_as_none() -> None:
    assert table_store._state(Entity()) == State()
    assert table_store._state(entity(STATE)) == STATE


async def test_the_client_is_made_once_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TableClient] = []

    def client(*_: Any) -> TableClient:
        made.append(TableClient(entity(STATE), None, entity(STATE), None))
        return made[0]

    monkeypatch.setattr(table_store, "_client", client)
    new = TableStore(STORE)
    await new.close()
    await asyncio.gather(new.update("team-a", add), new.update("team-a", add))
    assert len(made) == 1
    await new.close()
    assert made[0].closed


@pytest.mark.parametrize("identity", [None, Identity("managed", "a-scope", "an-id")])
def test_it_signs_in_by_identity_or_to_azurite(identity: Identity | None) -> None:
    calls: list[Any] = []
    module = SimpleNamespace(
        AzureNamedKeyCredential=lambda *arguments: ("named key", *arguments),
        entra_credential=lambda it: ("identity", it),
        TableClient=lambda *arguments, **options: calls.append((arguments, options)),
    )
    table_store._client(module, LimitsStore("an-endpoint", "a-table", identity))
    (((endpoint, table), options),) = calls
    assert (endpoint, table) == ("an-endpoint", "a-table")
    assert options.pop("credential")[:2] == (("identity", identity) if identity else ("named key", "devstoreaccount1"))
    assert options == {"retry_total": 0, "connection_timeout": 2, "read_timeout": 3}


def test_without_a_store_there_is_nothing_to_share() -> None:
    assert leased_limits(None) is None
    assert leased_limits(STORE) is not None


def test_the_sdk_is_imported_for_a_store_only() -> None:
    script = "import sys, relay.callers.request, relay.callers.table_store; print([*sys.modules])"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert "azure.data" not in done.stdout
    assert "azure.core" not in done.stdout
