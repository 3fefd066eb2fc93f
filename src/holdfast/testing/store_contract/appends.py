"""Group commit and its guard."""

from __future__ import annotations

import asyncio

from holdfast.core.errors import Conflict, StoreError
from holdfast.core.loops import spawn
from holdfast.store.database import Database, Row, Statements
from holdfast.testing.store_contract.ledgers import append, create, entries, entry, executions, put, reserve, values

__all__ = ["Appends", "Fencing", "Submits"]


class Appends:
    """Acknowledged is durable, in order, whole."""

    async def test_an_acknowledged_append_is_there(self, db: Database) -> None:
        [pk] = await executions(db)
        for idx in range(5):
            [row] = await put(db, entry(db, pk, idx))
            assert (row.pk, row.fence, row.request) == (pk, 1, None)
            assert len(await entries(db, pk)) == idx + 1

    async def test_a_lane_keeps_its_order(self, db: Database) -> None:
        pks = await executions(db, 5)
        appends = [entry(db, pk, idx) for idx in range(60) for pk in pks]
        assert all(await put(db, *appends))
        for pk in pks:
            assert [row.idx for row in await entries(db, pk)] == list(range(60))

    async def test_an_acknowledgement_covers_all_before_it(self, db: Database) -> None:
        [pk] = await executions(db)
        appends = [entry(db, pk, idx) for idx in range(300)]
        for each in appends:
            assert db.writer.offer(each)
        assert appends[150].future is not None
        await appends[150].future
        assert all(each.future is not None and each.future.done() for each in appends[:150])
        assert len(await entries(db, pk)) >= 151
        await db.writer.drained()

    async def test_many_share_a_commit(self, db: Database) -> None:
        pks = await executions(db, 200)
        before = db.writer.batches
        assert all(await put(db, *(entry(db, pk, 0) for pk in pks)))
        assert db.writer.batches - before < 20

    async def test_the_rows_of_an_append_stand_together(self, db: Database) -> None:
        [pk] = await executions(db)
        await put(db, entry(db, pk, 1))
        both = append(
            [("journal.append", values(db, "journal.append", execution_pk=pk, idx=idx)) for idx in (0, 1)], pk
        )
        [result] = await put(db, both)
        assert isinstance(result, Conflict)
        assert [row.idx for row in await entries(db, pk)] == [1]

    async def test_one_bad_append_among_a_hundred_fails_alone(self, db: Database) -> None:
        pks = await executions(db, 10)
        await put(db, entry(db, pks[3], 5))
        results = await put(db, *(entry(db, pks[n % 10], n // 10) for n in range(100)))
        assert [n for n, result in enumerate(results) if isinstance(result, Exception)] == [53]
        assert isinstance(results[53], Conflict)
        for pk in pks:
            assert sorted(row.idx for row in await entries(db, pk)) == list(range(10))

    async def test_a_value_that_cannot_be_stored_fails_alone(self, db: Database) -> None:
        [pk] = await executions(db)
        good, bad, other = await put(db, entry(db, pk, 0), entry(db, pk, 2**63), entry(db, pk, 1))
        assert good
        assert other
        assert isinstance(bad, StoreError)
        assert [row.idx for row in await entries(db, pk)] == [0, 1]

    async def test_what_is_created_in_a_batch_can_be_written_in_it(self, db: Database) -> None:
        first = await reserve(db)
        appends = []
        for pk in range(first, first + 20):
            appends += [create(db, pk), entry(db, pk, 0), entry(db, pk, 1)]
        assert all(await put(db, *appends))
        assert [row.idx for row in await entries(db, first + 19)] == [0, 1]

    async def test_creating_what_exists_is_refused_and_the_rest_is_not(self, db: Database) -> None:
        first = await reserve(db)
        assert all(await put(db, create(db, first, id="same")))
        results = await put(
            db, create(db, first + 1, id="same"), create(db, first + 2), entry(db, first + 1, 0), entry(db, first, 0)
        )
        assert [result is not None for result in results] == [False, True, False, True]
        async with db.read() as tx:
            found = await tx.one("executions.get", id="same")
            assert found is not None
            assert found.pk == first
            assert await tx.all("generations.list", execution_pk=first + 1) == []

    async def test_every_append_is_settled_once(self, db: Database) -> None:
        [pk] = await executions(db)
        told: list[tuple[str, bool]] = []
        await put(db, entry(db, pk, 7))
        await put(
            db,
            entry(db, pk, 0, settled=lambda durable: told.append(("good", durable))),
            entry(db, pk, 7, settled=lambda durable: told.append(("bad", durable))),
            entry(db, pk, 1, fence=9, settled=lambda durable: told.append(("late", durable))),
        )
        assert sorted(told) == [("bad", False), ("good", True), ("late", False)]

    async def test_nobody_needs_to_wait(self, db: Database) -> None:
        [pk] = await executions(db)
        quiet = [entry(db, pk, idx) for idx in range(10)]
        for each in quiet:
            each.future = None
            assert db.writer.offer(each)
        await db.writer.drained(pk)
        assert len(await entries(db, pk)) == 10

    async def test_callers_that_are_cancelled_spoil_nothing(self, db: Database) -> None:
        [pk] = await executions(db)
        appends = [entry(db, pk, idx) for idx in range(20)]
        for each in appends:
            assert db.writer.offer(each)
        for each in appends[::2]:
            assert each.future is not None
            each.future.cancel()
        await db.writer.drained()
        assert [row.idx for row in await entries(db, pk)] == list(range(20))

    async def test_the_last_of_several_changes_in_a_batch_counts(self, db: Database) -> None:
        [pk] = await executions(db)
        appends = []
        for number in range(3):
            row = values(
                db, "executions.move", status="running", waiting_on=None, release=False, release_request=False,
                bytes=number, now=number, pk=pk,
            )  # fmt: skip
            appends.append(append([("executions.move", row)], pk))
        assert all(await put(db, *appends))
        async with db.read() as tx:
            found = await tx.one("executions.get", id=f"e{pk}")
        assert found is not None
        assert (found.bytes, found.updated_at) == (2, 2)


class Fencing:
    """A write that follows a claim counts only under the claim's fence."""

    async def test_a_stale_fence_writes_nothing_and_neighbours_do(self, db: Database) -> None:
        stale, fresh = await executions(db, 2)
        late, timely = await put(db, entry(db, stale, 0, fence=9), entry(db, fresh, 0))
        assert late is None
        assert timely.pk == fresh
        assert await entries(db, stale) == []
        assert len(await entries(db, fresh)) == 1

    async def test_none_of_the_rows_of_a_refused_append_is_written(self, db: Database) -> None:
        [pk] = await executions(db)
        rows = [
            ("journal.append", values(db, "journal.append", execution_pk=pk, idx=0)),
            ("trail.add", values(db, "trail.add", execution_pk=pk, at=0)),
        ]
        assert await put(db, append(rows, pk, fence=2)) == [None]
        async with db.read() as tx:
            assert await tx.all("trail.list", execution_pk=pk) == []
        assert await entries(db, pk) == []

    async def test_what_does_not_exist_is_not_held(self, db: Database) -> None:
        assert await put(db, entry(db, 1 << 40, 0)) == [None]

    async def test_what_has_ended_is_not_held(self, db: Database) -> None:
        [pk] = await executions(db)
        done = values(
            db, "executions.settle", status="completed", output=b"out", bytes=0, finished_at=1, pk=pk,
        )  # fmt: skip
        last, late = await put(
            db,
            append([("executions.settle", done)], pk),
        ) + await put(db, entry(db, pk, 1))
        assert last
        assert late is None
        assert await entries(db, pk) == []

    async def test_a_refusal_does_not_stop_later_appends(self, db: Database) -> None:
        [pk] = await executions(db)
        results = await asyncio.gather(*(put(db, entry(db, pk, idx, fence=1 + idx % 2)) for idx in range(20)))
        assert [result[0] is not None for result in results] == [True, False] * 10
        assert [row.idx for row in await entries(db, pk)] == list(range(0, 20, 2))

    async def test_the_guard_brings_requests(self, db: Database) -> None:
        [pk] = await executions(db)
        async with db.write() as tx:
            assert await tx.one("executions.request", request="cancel", request_at=1, pk=pk, fence=1)
        [row] = await put(db, entry(db, pk, 0))
        assert row.request == "cancel"

    async def test_an_append_without_guard_needs_none(self, db: Database) -> None:
        row = values(db, "audit.add", execution_id="e", at=1, event="takeover", generation=1)
        assert await put(db, append([("audit.add", row)], 1, fence=None)) == [True]
        async with db.read() as tx:
            assert len(await tx.all("audit.list", execution_id="e", after=0, most=10)) == 1


class Submits:
    """A statement by itself: its row, once what it wrote is durable."""

    async def test_a_statement_gives_its_row(self, db: Database) -> None:
        first, second = await db.submit("executions.reserve"), await db.submit("executions.reserve")
        assert first is not None
        assert second is not None
        assert second.first > first.first

    async def test_what_a_statement_writes_is_there(self, db: Database) -> None:
        [pk] = await executions(db)
        assert await ask(db, pk) is not None
        assert (await found(db, pk)).request == "pause:"

    async def test_a_statement_that_finds_nothing_gives_none(self, db: Database) -> None:
        [pk] = await executions(db)
        assert await ask(db, pk, fence=7) is None
        assert (await found(db, pk)).request is None

    async def test_many_together_each_get_their_own(self, db: Database) -> None:
        rows = await asyncio.gather(*(db.submit("executions.reserve") for _ in range(100)))
        assert len({row.first for row in rows if row is not None}) == 100

    async def test_a_bad_statement_fails_alone(self, db: Database) -> None:
        pks = await executions(db, 3)
        results = await asyncio.gather(
            ask(db, pks[0]), ask(db, pks[1], fence=2**70), ask(db, pks[2]), return_exceptions=True
        )
        assert [isinstance(result, StoreError) for result in results] == [False, True, False]
        assert [(await found(db, pk)).request for pk in pks] == ["pause:", None, "pause:"]

    async def test_what_it_does_not_take_is_an_error(self, db: Database) -> None:
        for statement, params in (
            ("executions.get", {}), ("executions.get", {"name": "a"}), ("executions.get", {"id": "a", "other": 1}),
            ("executions.fly", {"id": "a"}),
        ):  # fmt: skip
            try:
                await db.submit(statement, **params)
            except StoreError:
                continue
            raise AssertionError(statement, params)

    async def test_statements_and_appends_go_together(self, db: Database) -> None:
        [pk] = await executions(db)
        appends, row = await asyncio.gather(put(db, *(entry(db, pk, idx) for idx in range(10))), ask(db, pk))
        assert all(appends)
        assert row is not None
        assert len(await entries(db, pk)) == 10

    async def test_a_statement_comes_after_an_open_transaction(self, db: Database) -> None:
        [pk] = await executions(db)
        async with db.write() as tx:
            await tx.all("executions.lock", pk=pk)
            later = spawn(ask(db, pk), "test")
        assert await later is not None

    async def test_one_that_gives_up_leaves_the_others(self, db: Database) -> None:
        pks = await executions(db, 2)
        given_up, other = (spawn(ask(db, pk), "test") for pk in pks)
        given_up.cancel()
        assert await other is not None
        await asyncio.wait((given_up,))

    async def test_statements_by_themselves_serve_as_a_transaction(self, db: Database) -> None:
        tx = Statements(db)
        [pk] = await executions(db)
        assert await tx.one("executions.request", request="pause:", request_at=1, pk=pk, fence=1) is not None
        assert [row.pk for row in await tx.all("executions.get", id=f"e{pk}")] == [pk]
        assert await tx.run("generations.close", [(1, "done", None, pk, 1)]) == 1


async def ask(database: Database, pk: int, *, fence: int = 1) -> Row | None:
    """Ask for an execution to be paused, by a statement of its own."""
    return await database.submit("executions.request", request="pause:", request_at=1, pk=pk, fence=fence)


async def found(database: Database, pk: int) -> Row:
    """Return an execution."""
    async with database.read() as tx:
        row = await tx.one("executions.get", id=f"e{pk}")
    assert row is not None
    return row
