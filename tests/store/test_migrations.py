"""The schema is the sum of its migrations, the same in both dialects, and made once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.clock import SystemClock
from holdfast.core.errors import ConfigError, SchemaMismatch, StoreError
from holdfast.store import Database, StoreSettings, migrate
from holdfast.store.postgres import PostgresDatabase
from holdfast.store.sqlite import SqliteDatabase, open_sqlite
from holdfast.testing.store_contract import LocalStore

shared = pytest.mark.parametrize("store", ["sqlite-file", "postgres-empty"], indirect=True)


def test_the_numbers_are_the_same() -> None:
    sqlite, postgres = migrate.load("sqlite"), migrate.load("postgres")
    assert [(each.number, each.name) for each in sqlite] == [(each.number, each.name) for each in postgres]


async def query(database: Database, text: str) -> list[Any]:
    """Ask a database about itself."""
    if isinstance(database, SqliteDatabase):
        return database.connection.execute(text).fetchall()
    assert isinstance(database, PostgresDatabase)
    link = await database.readers.begin()
    try:
        return [tuple(row) for row in await link.connection.fetch(text)]
    finally:
        await database.readers.roll_back(link)


@pytest.fixture
async def both(tmp_path: Path, pg: PostgresDatabase) -> AsyncIterator[tuple[SqliteDatabase, PostgresDatabase]]:
    """A fresh ledger of each dialect."""
    sqlite = await open_sqlite(str(tmp_path / "ledger.db"), clock=SystemClock(), settings=StoreSettings())
    yield sqlite, pg
    await sqlite.close()


Both = tuple[SqliteDatabase, PostgresDatabase]


async def test_tables_and_columns_are_the_same(both: Both) -> None:
    """Names, order, what may be null: but for generated numbers, which SQLite's rowid tables need not declare."""
    sqlite = await query(
        both[0],
        """SELECT m.name, c.name, c."notnull" OR c.pk > 0 FROM sqlite_schema m, pragma_table_info(m.name) c
           WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, c.cid""",
    )
    postgres = await query(
        both[1],
        """SELECT table_name, column_name, is_nullable = 'NO' FROM information_schema.columns
           WHERE table_schema = current_schema() ORDER BY table_name COLLATE "C", ordinal_position""",
    )
    assert [(table, column, bool(required)) for table, column, required in sqlite] == postgres
    assert ("durable_journal", "payload", False) in postgres


async def test_indexes_are_the_same(both: Both) -> None:
    sqlite = await query(
        both[0], "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    )
    postgres = await query(
        both[1],
        """SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()
           AND indexname !~ '_(pkey|key)$' ORDER BY indexname COLLATE "C" """,
    )

    def unique(name: str, text: str) -> tuple[str, bool, bool]:
        return name, bool(re.match("CREATE UNIQUE", text)), " WHERE " in text.replace("\n", " ")

    assert [unique(*row) for row in sqlite] == [unique(*row) for row in postgres]


@shared
async def test_opening_again_changes_nothing(store: LocalStore, db: Database) -> None:
    catalogue = {
        "sqlite": "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
        "postgres": "SELECT oid::int8, relname FROM pg_class "
        "WHERE relnamespace = current_schema()::regnamespace ORDER BY oid",
    }[db.dialect]
    before = await query(db, catalogue)
    async with store.opened() as again:
        assert again.namespace == db.namespace
        assert again.schema == db.schema == len(migrate.load(db.dialect))  # type: ignore[attr-defined] # of both
    assert await query(db, catalogue) == before


@shared
async def test_a_newer_schema_is_refused_and_left_alone(store: LocalStore, db: Database) -> None:
    async with db.write() as tx:
        await tx.run("ledger.put", [("schema", b"9999")])
    for read_only in (False, True):
        with pytest.raises(SchemaMismatch, match="9999"):
            await store.open(read_only=read_only)
    async with db.read() as tx:
        row = await tx.one("ledger.get", name="schema")
    assert row is not None
    assert row.value == b"9999"


@shared
async def test_a_table_of_somebody_else_is_no_ledger(store: LocalStore, db: Database) -> None:
    async with db.write() as tx:
        await tx.run("ledger.put", [("schema", b"who knows")])
    with pytest.raises(SchemaMismatch):
        await store.open()


@shared
async def test_openers_at_once_make_one_ledger(store: LocalStore) -> None:
    databases = await asyncio.gather(*(store.open() for _ in range(6)))
    assert len({database.namespace for database in databases}) == 1
    for database in databases:
        await database.close()


@shared
async def test_processes_that_open_at_once_make_one_ledger(store: LocalStore) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        namespaces = await asyncio.to_thread(pool.map, namespace_of, [store] * 3)
    assert len(set(namespaces)) == 1


def namespace_of(store: LocalStore) -> bytes:
    """In another process: open the ledger and say what it is called."""

    async def run() -> bytes:
        async with store.opened() as database:
            return database.namespace

    return asyncio.run(run())


@shared
async def test_a_namespace_can_be_given_once(store: LocalStore) -> None:
    given = bytes(range(16))
    async with store.opened(namespace=given) as database:
        assert database.namespace == given
    async with store.opened() as database:
        assert database.namespace == given
    with pytest.raises(ConfigError):
        await store.open(namespace=bytes(16))
    with pytest.raises(ConfigError):
        await store.open(namespace=b"short")


@shared
async def test_reading_makes_no_ledger(store: LocalStore) -> None:
    with pytest.raises(StoreError):
        await store.open(read_only=True)
    if not store.target.startswith("postgres"):
        assert not os.path.exists(store.target)  # noqa: ASYNC240 - quick


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(StoreError) as caught:
        await open_sqlite(str(path), clock=SystemClock(), settings=StoreSettings())
    assert caught.value.code == "store.not_a_database"
