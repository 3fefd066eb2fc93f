"""An application's own connection, inside its transaction, serves as a `Tx` and is ended by nobody but it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
import apsw
import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from holdfast.core.clock import SystemClock
from holdfast.core.errors import Busy, Closed, ConfigError, Conflict, SchemaMismatch, StoreError
from holdfast.store import open_database
from holdfast.store.adopt import adopt

MakeTarget = Callable[[str], str]
KINDS = ("asyncpg", "pooled", "connection-postgres", "session-postgres", "apsw", "aiosqlite", "connection-sqlite")


def dialect_of(kind: str) -> Any:
    return "postgres" if kind in ("asyncpg", "pooled") or kind.endswith("postgres") else "sqlite"


@asynccontextmanager
async def connected(kind: str, target: str) -> AsyncIterator[Any]:
    """A connection of a kind, in a transaction that is rolled back in the end."""
    if kind == "asyncpg":
        connection = await asyncpg.connect(target)
        await connection.execute("BEGIN")
        yield connection
        await connection.close()
    elif kind == "pooled":
        async with asyncpg.create_pool(target, min_size=1, max_size=1) as pool, pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            yield connection
            await transaction.rollback()
    elif kind == "apsw":
        connection = apsw.Connection(target)
        connection.execute("BEGIN")
        yield connection
        connection.close(True)
    elif kind == "aiosqlite":
        async with aiosqlite.connect(target, isolation_level=None) as connection:
            await connection.execute("BEGIN")
            yield connection
    else:
        on_postgres = kind.endswith("postgres")
        url = "postgresql+asyncpg://" if on_postgres else f"sqlite+aiosqlite:///{target}"
        creator: dict[str, Any] = {"async_creator": lambda: asyncpg.connect(target)} if on_postgres else {}
        engine = create_async_engine(url, **creator)
        async with AsyncSession(engine) if kind.startswith("session") else engine.connect() as connection:
            yield connection
        await engine.dispose()


@pytest.fixture(params=KINDS)
async def ledger_of(request: pytest.FixtureRequest, make_target: MakeTarget) -> tuple[str, str]:
    """A kind of connection, and the target of a ledger it can reach; nothing has it open."""
    target = make_target("postgres" if dialect_of(request.param) == "postgres" else "sqlite-file")
    database = await open_database(target, clock=SystemClock())
    await database.close()
    return request.param, target


async def test_statements_run_in_the_applications_transaction(ledger_of: tuple[str, str]) -> None:
    kind, target = ledger_of
    async with connected(kind, target) as connection:
        tx = adopt(connection, dialect_of(kind))
        assert await tx.run("ledger.put", [("a", b"1"), ("b", b"\0\xff")]) == 2
        row = await tx.one("ledger.get", name="b")
        assert (row.value, row[0]) == (b"\0\xff", b"\0\xff")
        assert await tx.one("ledger.get", name="none") is None
        assert await tx.run("ledger.put", []) == 0
        owner = ("o", "host", "machine", 1, None, 2, 3)
        assert await tx.run("owners.renew", [owner]) == 1
        assert [tuple(each) for each in await tx.all("owners.list")] == [owner]
    async with connected(kind, target) as connection:
        assert await adopt(connection, dialect_of(kind)).one("ledger.get", name="a") is None


async def test_it_says_what_is_wrong_in_the_ledgers_own_words(ledger_of: tuple[str, str]) -> None:
    kind, target = ledger_of
    async with connected(kind, target) as connection:
        tx = adopt(connection, dialect_of(kind))
        with pytest.raises(StoreError, match="no statement"):
            await tx.one("ledger.none")
        with pytest.raises(StoreError, match="takes"):
            await tx.one("ledger.get", name="a", more=1)
        with pytest.raises(Conflict):
            await tx.run("ledger.put", [("a", None)])


async def test_nothing_runs_once_it_has_ended(ledger_of: tuple[str, str]) -> None:
    kind, target = ledger_of
    async with connected(kind, target) as connection:
        tx = adopt(connection, dialect_of(kind))
        tx.notify("somebody")
        assert list(tx.channels) == ["somebody"]
        tx.end()
        for statement in (tx.one("ledger.exists"), tx.all("ledger.exists"), tx.run("ledger.put", [("a", b"1")])):
            with pytest.raises(StoreError, match="ended"):
                await statement


async def test_a_dialect_that_the_connection_does_not_speak_is_refused(ledger_of: tuple[str, str]) -> None:
    kind, target = ledger_of
    async with connected(kind, target) as connection:
        with pytest.raises(ConfigError) as refused:
            adopt(connection, "sqlite" if dialect_of(kind) == "postgres" else "postgres")
        assert refused.value.code == "config.unit_database"


def test_what_is_no_connection_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"builtins\.object"):
        adopt(object(), "sqlite")


async def test_errors_of_pythons_own_driver_are_translated(make_target: MakeTarget) -> None:
    target = make_target("sqlite-file")
    async with connected("aiosqlite", target) as connection:
        tx = adopt(connection, "sqlite")
        with pytest.raises(SchemaMismatch):
            await tx.one("ledger.get", name="a")
        await connection.execute("ROLLBACK")
        other = sqlite3.connect(target, isolation_level=None)
        other.execute("CREATE TABLE holdfast_ledger (name TEXT PRIMARY KEY, value BLOB NOT NULL)")
        other.execute("BEGIN IMMEDIATE")
        await connection.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(Busy):
            await tx.run("ledger.put", [("a", b"1")])
        other.close()
        with pytest.raises(StoreError) as refused:
            await tx.run("ledger.put", [("a", object())])
        assert refused.value.code in ("store.value", "store.error")
        await connection.close()
        with pytest.raises(Closed):
            await tx.one("ledger.get", name="a")
