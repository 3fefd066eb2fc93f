"""What the rows of the ledger decide: damaged and newer ones, fences after a row is gone, replays that only read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import asyncpg
import pytest
from tests.flow.exchanges import Counting, guarded
from tests.flow.guards import CREATED, desk
from tests.flow.tamper import change, is_postgres

from holdfast.idempotency import keys
from holdfast.idempotency.machine import ForceExpire, ForceRelease
from holdfast.testing import ManualClock
from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore

K = "order-17-of-this-test"


@pytest.mark.parametrize(
    ("damage", "status", "code"),
    [
        ("UPDATE idem_keys SET format = 2", 503, "record_newer"),
        ("UPDATE idem_keys SET fp_version = 2", 503, "record_newer"),
        ("UPDATE idem_keys SET codec = 2", 503, "record_newer"),
        ("UPDATE idem_keys SET body = {flipped}", 500, "record_unreadable"),
        ("UPDATE idem_keys SET status = 200", 500, "record_unreadable"),
        ("UPDATE idem_keys SET state = 9", 500, "record_unreadable"),
    ],
)
async def test_a_row_that_cannot_be_read_is_a_refusal_and_never_a_run(
    ledger: str, damage: str, status: int, code: str
) -> None:
    """HA-41."""
    app = Counting()
    async with guarded(app, ledger) as shop:
        assert (await shop.ask(K)).status == 201
        flipped = "'\\x7b2272756e223a307d'" if is_postgres(ledger) else "x'7b2272756e223a307d'"
        await change(ledger, damage.format(flipped=flipped))
        answer = await shop.ask(K)
        assert (answer.status, answer.code, app.runs) == (status, code, 1)
        assert (answer.header("retry-after") is not None) == (status == 503)


async def test_with_a_clock_that_stands_still_an_old_fence_settles_nothing(store: LocalStore) -> None:
    """HA-36."""
    clock = ManualClock()
    async with desk(store, clock) as it:
        first = await it.held()
        for action in (ForceRelease(), ForceExpire()):
            async with it.guard.database.write() as tx:
                assert await keys.force(tx, first.key_id, action, actor="ann", reason="a test", now=clock.now())
        assert (await it.guard.sweep()).pruned == 1
        second = await it.held()
        assert (second.fence > first.fence, second.attempt) == (True, 1)
        async with it.guard.database.write() as tx:
            now, later = clock.now(), clock.now() + 1_000_000
            assert not await keys.settle(tx, first.key_id, first.fence, CREATED, expires_at=later, now=now)
            assert not await keys.release(tx, first.key_id, first.fence, expires_at=later, now=now)
            assert not await keys.renew(tx, [(first.key_id, first.fence)], lease_until=later, now=now)
            assert not await keys.mark_irreversible(tx, first.key_id, first.fence)
        assert await it.guard.settle(second, CREATED)


@pytest.fixture(scope="module")
def alone() -> Iterator[PostgresServer]:
    """A server whose log nobody else writes."""
    with PostgresServer() as server:
        yield server


async def test_replays_write_nothing_into_the_log(alone: PostgresServer) -> None:
    """HA-61. The server notes something for itself now and then, so most rounds count."""
    url = alone.fresh_schema()
    app = Counting()
    async with guarded(app, url, sweep_every=timedelta(days=1000)) as shop:
        assert (await shop.ask(K)).status == 201
        assert (await shop.ask(K)).replayed
        connection = await asyncpg.connect(url)
        written = []
        for _ in range(5):
            before = await connection.fetchval("SELECT pg_current_wal_insert_lsn()")
            for _ in range(60):
                assert (await shop.ask(K)).replayed
            query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::pg_lsn)"
            written.append(int(await connection.fetchval(query, before)))
        await connection.close()
        assert written.count(0) >= 3, written
        assert app.runs == 1
