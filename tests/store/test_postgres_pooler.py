"""Behind a pooler that gives every transaction another session, nothing may be kept in one (HX-22)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.store.pooler import Pooler

from holdfast.core.errors import Unavailable
from holdfast.idempotency import Idempotency, IdempotencyConfig, shared_principal
from holdfast.store import StoreSettings, postgres_pool
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


async def test_the_kernel_asks_whether_the_other_machine_is_still_there(pooler: Pooler, tmp_path: Path) -> None:
    """Who only listens would never notice that it is gone."""
    async with LocalStore(pooler.url, tmp_path).opened() as database:
        assert isinstance(database, PostgresDatabase)
        link = await database.readers.begin()
        found = link.connection._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= postgres_pool.STALL_S
        await database.readers.roll_back(link)


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


async def test_a_session_that_ends_takes_its_client_along(
    pooler: Pooler, postgres: PostgresServer, tmp_path: Path
) -> None:
    async with LocalStore(pooler.url, tmp_path).opened() as database:
        async with asyncio.timeout(20), database.read() as tx:
            assert await tx.one("ledger.get", name="namespace") is not None
            await asyncio.to_thread(end_sessions, postgres, pooler)
            with pytest.raises(Unavailable):
                await tx.one("ledger.get", name="namespace")
        for _ in range(4):
            async with database.write() as tx:
                assert await tx.one("ledger.get", name="namespace") is not None


def end_sessions(postgres: PostgresServer, pooler: Pooler) -> None:
    """End every session of the pooler's."""
    name = pooler.url.rpartition("/")[2]
    query = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608 - ours
    postgres.sql(query)


async def test_a_pooler_without_a_free_session_is_not_waited_for(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It greets whoever comes, and then is silent: that must not hold up a reader or a lane for ever."""
    url = await asyncio.to_thread(postgres.fresh_database)
    settings = StoreSettings(owner_dir=tmp_path / "owners", ack_timeout_ms=60_000)
    async with Pooler(url, sessions=1) as pooler, LocalStore(pooler.url).opened(settings=settings) as database:
        assert isinstance(database, PostgresDatabase)
        [pk] = await executions(database, 1)
        append = entry(database, pk, 0)
        async with asyncio.timeout(20), database.write():
            with monkeypatch.context() as impatient:
                impatient.setattr(postgres_pool, "STALL_S", 0.1)
                for _ in range(2):  # on a connection that lay idle, and on a new one
                    with pytest.raises(Unavailable):
                        async with database.read():
                            pass
                assert database.writer.offer(append)
                while database.writer.failures < 2:  # the lane cannot be opened, and not be opened again
                    await database.clock.sleep(0.01)
        [result] = await settled_all(append)
        assert result.fence == 1


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
