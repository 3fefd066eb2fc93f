"""Behind a pooler that gives every transaction another session, nothing may be kept in one (HX-22)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.store.pooler import Pooler

from holdfast.core.errors import Unavailable
from holdfast.idempotency import Idempotency, IdempotencyConfig, shared_principal
from holdfast.store import StoreSettings
from holdfast.store.postgres import PostgresDatabase
from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore
from holdfast.testing.store_contract.ledgers import entries, entry, executions, put, settled_all

SECRET = bytes(range(32))


@pytest.fixture
async def pooler(postgres: PostgresServer) -> AsyncIterator[Pooler]:
    async with Pooler(await asyncio.to_thread(postgres.fresh_database)) as pooler:
        yield pooler


async def test_a_guard_works_behind_a_pooler(pooler: Pooler) -> None:
    runs = 0

    async def op(_: object) -> bytes:
        nonlocal runs
        runs += 1
        return b"done"

    async with Idempotency(pooler.url, IdempotencyConfig(principal=shared_principal("x"), secrets=[SECRET])) as guard:
        for replayed in (False, True):
            made = await asyncio.gather(
                *(guard.once(f"a-key-of-its-own-{n}", b"x", op, principal="p", name="pay") for n in range(12))
            )
            assert {(each.value, each.replayed) for each in made} == {(b"done", replayed)}
        assert (await guard.sweep()).marked_unknown == 0
    assert runs == 12


async def test_a_ledger_works_behind_a_pooler(pooler: Pooler, tmp_path: Path) -> None:
    async with LocalStore(pooler.url, tmp_path).opened() as database:
        assert isinstance(database, PostgresDatabase)
        pks = await executions(database, 4)
        for number in range(6):
            assert all(await put(database, *(entry(database, pk, number) for pk in pks)))
            assert await put(database, entry(database, pks[0], 99, fence=2)) == [None]
        for pk in pks:
            assert [row.idx for row in await entries(database, pk)] == list(range(6))
        link = await database.writers.begin()
        assert await link.connection.fetchval("SHOW synchronous_commit") == "on"
        prepared = await link.connection.fetchval("SELECT count(*) FROM pg_prepared_statements")
        assert prepared <= 1, "but for the one that found out"
        await database.writers.roll_back(link)


async def test_an_append_in_doubt_behind_a_pooler_is_there_once(pooler: Pooler, tmp_path: Path) -> None:
    """The session belongs to everybody; only the transaction that may still commit is ended."""
    settings = StoreSettings(owner_dir=tmp_path / "owners", ack_timeout_ms=60_000)
    async with LocalStore(pooler.url).opened(settings=settings) as database:
        assert isinstance(database, PostgresDatabase)
        pks = await executions(database, 8)
        for number in range(3):
            appends = [entry(database, pk, number) for pk in pks]
            for each in appends:
                assert database.writer.offer(each)
            await database.clock.sleep(0)
            database.writer.die()
            assert all(result.fence == 1 for result in await settled_all(*appends))
        for pk in pks:
            assert [row.idx for row in await entries(database, pk)] == [0, 1, 2]


async def test_a_pooler_that_does_not_show_at_first_is_found(postgres: PostgresServer, tmp_path: Path) -> None:
    """With one session it looks like a server; then the prepared statements are gone."""
    url = await asyncio.to_thread(postgres.fresh_database)
    settings = StoreSettings(owner_dir=tmp_path / "owners", ack_timeout_ms=60_000)
    async with Pooler(url, sessions=1) as pooler, LocalStore(pooler.url).opened(settings=settings) as database:
        assert isinstance(database, PostgresDatabase)
        [pk] = await executions(database, 1)
        assert all(await put(database, entry(database, pk, 0)))
        await database.submit("executions.reserve")
        await pooler.grow(3)
        for _ in range(4):
            assert await database.submit("executions.reserve") is not None
        assert all(await put(database, entry(database, pk, 1)))
        while True:
            try:
                async with database.write() as tx:
                    assert await tx.one("ledger.get", name="namespace") is not None
                break
            except Unavailable:
                continue
        assert [row.idx for row in await entries(database, pk)] == [0, 1]
