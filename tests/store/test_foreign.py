"""A ledger opened through Python's own SQLite library does what every ledger does, but for appends."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.clock import Clock, SystemClock
from holdfast.core.errors import Busy, Closed, ConfigError, SchemaMismatch, StoreError
from holdfast.execution.journal import PLAN
from holdfast.store import StoreSettings, foreign, open_database
from holdfast.store.adopt import translate
from holdfast.store.database import Append, Database
from holdfast.store.foreign import open_sqlite3
from holdfast.testing import store_contract


@dataclass(frozen=True)
class ForeignStore:
    """Opens handles on one file, each through the application's library."""

    path: str
    owner_dir: Path

    async def open(
        self,
        *,
        settings: StoreSettings | None = None,
        clock: Clock | None = None,
        read_only: bool = False,
        namespace: bytes | None = None,
    ) -> Database:
        settings = settings or StoreSettings(owner_dir=self.owner_dir)
        clock = clock or SystemClock()
        return await open_sqlite3(self.path, clock=clock, settings=settings, namespace=namespace, read_only=read_only)

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Database]:
        database = await self.open(**options)
        try:
            yield database
        finally:
            await database.close()


@pytest.fixture
def store(tmp_path: Path) -> ForeignStore:
    return ForeignStore(str(tmp_path / "app.db"), tmp_path / "owners")


@pytest.fixture
async def db(store: ForeignStore) -> AsyncIterator[Database]:
    async with store.opened() as database:
        yield database


class TestTransactions(store_contract.Transactions): ...


class TestWakeups(store_contract.Wakeups): ...


class TestClaims(store_contract.Claims):
    test_an_append_under_the_old_fence_is_refused_after_a_claim = None


class TestErrors(store_contract.Errors):
    test_a_closed_store_says_so = None  # by an append
    test_a_row_that_does_not_fit_its_statement_fails_alone = None  # as above
    test_a_store_open_for_reading_refuses_to_write = None
    test_abandoning_is_like_a_crash = None
    test_an_append_that_names_no_statement_fails_alone = None


class TestSubmits(store_contract.Submits):
    test_statements_and_appends_go_together = None


async def test_it_takes_no_appends(db: Database) -> None:
    with pytest.raises(StoreError, match="takes no appends"):
        await db.writer.put(Append(PLAN, 0, None, [], 1))


async def test_it_is_not_opened_for_reading_only(store: ForeignStore) -> None:
    with pytest.raises(ConfigError):
        await store.open(read_only=True)


async def test_a_closed_ledger_says_so(store: ForeignStore) -> None:
    database = await store.open()
    await database.close()
    await database.close()
    for use in (database.read, database.write):
        with pytest.raises(Closed):
            use()


async def test_abandoning_commits_nothing(store: ForeignStore) -> None:
    database: Any = await store.open()
    with pytest.raises(Closed):  # noqa: PT012 - it is the end of the block that says so
        async with database.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])
            database.abandon()
    async with store.opened() as again, again.read() as tx:
        assert await tx.one("ledger.get", name="a") is None


async def test_a_busy_file_is_waited_for_off_the_loop(store: ForeignStore) -> None:
    async with store.opened() as database:
        other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.05, lambda: other.execute("COMMIT"))
        async with database.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])
        other.close()


async def test_who_waits_for_a_busy_file_can_be_cancelled(store: ForeignStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async with store.opened() as database:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(note(database, "a"))
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        monkeypatch.setattr(foreign, "BUSY_MS", 10)
        with pytest.raises(Busy):
            await note(database, "b")
        other.execute("COMMIT")
        other.close()
        async with database.read() as tx:
            assert [await tx.one("ledger.get", name=name) for name in "ab"] == [None, None]


async def note(database: Database, name: str) -> None:
    async with database.write() as tx:
        await tx.run("ledger.put", [(name, b"1")])


async def test_a_share_is_given_and_taken_back(store: ForeignStore) -> None:
    clock = SystemClock()
    first = await open_database(store.path, clock=clock, library="sqlite3")
    second = await open_database(store.path, clock=clock, library="sqlite3")
    assert first is second
    await first.close()
    async with second.read() as tx:
        assert await tx.one("ledger.exists") is not None
    await second.close()


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
async def test_a_file_is_open_through_one_library_at_a_time(store: ForeignStore, library: Any) -> None:
    clock = SystemClock()
    other: Any = {"apsw": "sqlite3", "sqlite3": "apsw"}[library]
    database = await open_database(store.path, clock=clock, library=library)
    with pytest.raises(ConfigError) as refused:
        await open_database(store.path, clock=clock, library=other)
    assert refused.value.code == "config.unit_database"
    await database.close()
    await (await open_database(store.path, clock=clock, library=other)).close()


async def test_a_newer_ledger_is_left_as_it_is(store: ForeignStore) -> None:
    async with store.opened() as database, database.write() as tx:
        await tx.run("ledger.put", [("schema", b"9999")])
    with pytest.raises(SchemaMismatch):
        await store.open()


async def test_an_old_library_is_refused(store: ForeignStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(ConfigError, match=r"3\.38"):
        await store.open()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("BUSY", "store.busy"), ("LOCKED", "store.busy"), ("CONSTRAINT", "store.conflict"),
        ("FULL", "store.unavailable"), ("IOERR", "store.unavailable"), ("READONLY", "store.read_only"),
        ("CANTOPEN", "store.cannot_open"), ("CORRUPT", "store.corrupt"), ("NOTADB", "store.not_a_database"),
        ("TOOBIG", "store.too_big"), ("MISUSE", "store.error"),
    ],
)  # fmt: skip
def test_errors_are_told_in_the_ledgers_own_words(error: str, code: str) -> None:
    raised = sqlite3.OperationalError("said so")
    raised.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{error}")
    assert translate(raised, "app.db").code == code
