"""The writer's limits, and its ways through failures."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.core.errors import Closed
from holdfast.core.loops import spawn
from holdfast.store.database import Database
from holdfast.store.settings import StoreSettings
from holdfast.store.writer import Overdue
from holdfast.testing.store_contract.ledgers import Store, append, entries, entry, executions, put, settled_all, values

__all__ = ["Limits", "Outages"]


class Limits:
    """The queue is bounded; nothing is dropped."""

    async def test_a_full_queue_takes_nothing_more_until_there_is_room(self, store: Store) -> None:
        async with store.opened(settings=StoreSettings(queue_items_max=3)) as db:
            [pk] = await executions(db)
            db.writer.faults.stall()
            appends = [entry(db, pk, idx) for idx in range(6)]
            assert [db.writer.offer(each) for each in appends[:4]] == [True, True, True, False]
            waiting = [spawn(db.writer.put(each), "a put") for each in appends[3:]]
            await db.clock.sleep(0)  # lets them begin
            assert db.writer.pending_items == 3
            assert not db.writer.offer(entry(db, pk, 99))
            db.writer.faults.resume()
            await asyncio.gather(*waiting)
            assert all(await settled_all(*appends))
            assert [row.idx for row in await entries(db, pk)] == list(range(6))

    async def test_bytes_in_the_queue_never_pass_their_limit(self, store: Store) -> None:
        async with store.opened(settings=StoreSettings(queue_bytes_max=1000)) as db:
            [pk] = await executions(db)
            appends = [entry(db, pk, idx, size=300) for idx in range(30)]
            most = 0

            async def bring() -> None:
                nonlocal most
                for each in appends:
                    await db.writer.put(each)
                    most = max(most, db.writer.pending_bytes)

            await bring()
            assert all(await settled_all(*appends))
            assert most <= 1000
            assert db.writer.pending_bytes == 0

    async def test_what_is_larger_than_the_queue_goes_alone(self, store: Store) -> None:
        async with store.opened(settings=StoreSettings(queue_bytes_max=1000, batch_bytes_max=1000)) as db:
            [pk] = await executions(db)
            assert all(
                await put(db, entry(db, pk, 0, size=5000), entry(db, pk, 1, size=10), entry(db, pk, 2, size=5000))
            )
            assert len(await entries(db, pk)) == 3

    async def test_a_batch_has_its_limits(self, store: Store) -> None:
        async with store.opened(settings=StoreSettings(batch_items_max=10)) as db:
            [pk] = await executions(db)
            before = db.writer.batches
            appends = [entry(db, pk, idx) for idx in range(45)]
            for each in appends:
                assert db.writer.offer(each)
            assert all(await settled_all(*appends))
            assert db.writer.batches - before >= 5

    async def test_a_withdrawn_append_is_never_written(self, db: Database) -> None:
        [pk] = await executions(db)
        db.writer.faults.stall()
        kept, withdrawn = entry(db, pk, 0), entry(db, pk, 1)
        assert db.writer.offer(kept)
        assert db.writer.offer(withdrawn)
        assert db.writer.withdraw(withdrawn)
        db.writer.faults.resume()
        assert all(await settled_all(kept))
        assert not db.writer.withdraw(kept)
        assert [row.idx for row in await entries(db, pk)] == [0]


class Outages:
    """A database that fails costs time, never an acknowledged append or the order."""

    async def test_a_stalled_writer_says_so_in_time(self, store: Store) -> None:
        async with store.opened(settings=StoreSettings(ack_timeout_ms=100)) as db:
            [pk] = await executions(db)
            db.writer.faults.stall()
            late = entry(db, pk, 0)
            began = db.clock.monotonic()
            assert db.writer.offer(late)
            with pytest.raises(Overdue):
                await late.future  # type: ignore[misc] # it has one
            assert 0.09 < db.clock.monotonic() - began < 0.25
            assert db.writer.degraded
            db.writer.faults.resume()
            await db.writer.drained()
            assert not db.writer.degraded
            assert [row.idx for row in await entries(db, pk)] == [0]

    async def test_commits_that_fail_are_made_again_in_order(self, db: Database) -> None:
        pks = await executions(db, 3)
        db.writer.faults.fail_next(2)
        appends = [entry(db, pk, idx) for idx in range(5) for pk in pks]
        assert all(await put(db, *appends))
        for pk in pks:
            assert [row.idx for row in await entries(db, pk)] == list(range(5))

    async def test_a_writer_that_dies_is_restarted(self, db: Database) -> None:
        [pk] = await executions(db)
        appends = [entry(db, pk, idx) for idx in range(5)]
        for each in appends:
            assert db.writer.offer(each)
        db.writer.faults.die()
        assert all(await settled_all(*appends))
        assert [row.idx for row in await entries(db, pk)] == list(range(5))

    async def test_an_append_whose_acknowledgement_was_lost_is_there_once(self, db: Database) -> None:
        [pk] = await executions(db)
        db.writer.faults.die(after_commit=True)
        rows = [
            ("journal.append", values(db, "journal.append", execution_pk=pk, idx=9)),
            ("audit.add", values(db, "audit.add", execution_id="e", at=1, event="takeover", generation=1)),
        ]
        results = await put(db, *(entry(db, pk, idx) for idx in range(5)), append(rows, pk))
        assert [result.fence for result in results] == [1] * 6
        assert [row.idx for row in await entries(db, pk)] == [0, 1, 2, 3, 4, 9]
        async with db.read() as tx:
            assert len(await tx.all("audit.list", execution_id="e", after=0, most=10)) == 1

    async def test_an_end_whose_acknowledgement_was_lost_is_an_end(self, db: Database) -> None:
        """The guard would refuse it the second time: the execution has ended."""
        [pk] = await executions(db)
        rows = [
            ("trail.add", values(db, "trail.add", execution_pk=pk, status="completed", at=5)),
            ("executions.settle", values(db, "executions.settle", status="completed", bytes=0, finished_at=5, pk=pk)),
        ]
        db.writer.faults.die(after_commit=True)
        [result] = await put(db, append(rows, pk))
        assert result is not None
        assert not isinstance(result, Exception)
        async with db.read() as tx:
            assert len(await tx.all("trail.list", execution_pk=pk)) == 1

    async def test_closing_commits_what_was_accepted(self, store: Store) -> None:
        db = await store.open()
        pks = await executions(db, 20)
        appends = [entry(db, pk, idx) for idx in range(50) for pk in pks]
        for each in appends:
            assert db.writer.offer(each)
        await db.close()
        assert all(each.future is not None and each.future.result() for each in appends)
        with pytest.raises(Closed):
            db.writer.offer(appends[0])
