"""Transactions, claims, wake-ups, pages, values and errors."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from holdfast.core.errors import Closed, Conflict, StoreError, WrongLoop
from holdfast.core.loops import spawn
from holdfast.store.database import Database, Row
from holdfast.testing.clock import ManualClock
from holdfast.testing.store_contract.ledgers import Store, append, entries, entry, executions, put, reserve, values

__all__ = ["Claims", "Errors", "Pagination", "Transactions", "Values", "Wakeups"]


async def _value(db: Database, name: str) -> bytes | None:
    async with db.read() as tx:
        row = await tx.one("ledger.get", name=name)
    return None if row is None else row.value


async def _failing(db: Database, *, notify: str = "") -> None:
    """Write, and fail."""
    async with db.write() as tx:
        await tx.run("ledger.put", [("a", b"1")])
        tx.notify(notify)
        raise ZeroDivisionError


class Transactions:
    """Blocks commit or leave nothing."""

    async def test_a_block_that_ends_normally_has_committed(self, db: Database) -> None:
        async with db.write() as tx:
            await tx.run("ledger.put", [("a", b"1"), ("b", b"2")])
        assert (await _value(db, "a"), await _value(db, "b")) == (b"1", b"2")

    async def test_a_block_that_raises_leaves_nothing(self, db: Database) -> None:
        with pytest.raises(ZeroDivisionError):
            await _failing(db)
        assert await _value(db, "a") is None

    async def test_a_cancelled_block_leaves_nothing_and_others_go_on(self, db: Database) -> None:
        inside = asyncio.Event()

        async def forever() -> None:
            async with db.write() as tx:
                await tx.run("ledger.put", [("a", b"1")])
                inside.set()
                await asyncio.get_running_loop().create_future()

        task = spawn(forever(), "a block without end")
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with db.write() as tx:
            await tx.run("ledger.put", [("b", b"2")])
        assert (await _value(db, "a"), await _value(db, "b")) == (None, b"2")

    async def test_a_transaction_reads_what_it_wrote(self, db: Database) -> None:
        async with db.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])
            row = await tx.one("ledger.get", name="a")
            assert row is not None
            assert row.value == b"1"

    async def test_a_row_is_a_tuple_with_names(self, db: Database) -> None:
        [pk] = await executions(db)
        async with db.write() as tx:
            row = await tx.one("executions.lock", pk=pk)
        assert row is not None
        assert (row.pk, row[0], row.id, row.status) == (pk, pk, f"e{pk}", "running")
        assert isinstance(row, tuple)

    async def test_run_says_how_many_rows_changed(self, db: Database) -> None:
        async with db.write() as tx:
            assert await tx.run("ledger.put", (pair for pair in [("a", b"1"), ("b", b"2")])) == 2
            assert await tx.run("ledger.add", [("b", b"3"), ("c", b"4")]) == 1
            assert await tx.run("ledger.put", []) == 0
        assert await _value(db, "b") == b"2"

    async def test_a_transaction_serves_inside_its_block_only(self, db: Database) -> None:
        async with db.write() as tx:
            pass
        with pytest.raises(StoreError):
            await tx.run("ledger.put", [("a", b"1")])
        async with db.read() as tx:
            pass
        with pytest.raises(StoreError):
            await tx.one("ledger.get", name="a")

    async def test_a_task_opens_no_transaction_in_its_own(self, db: Database) -> None:
        with pytest.raises(StoreError, match="inside its own"):
            async with db.write(), db.write():
                pass
        async with db.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])

    async def test_concurrent_changes_of_one_row_add_up(self, db: Database) -> None:
        [pk] = await executions(db)

        async def raise_fence() -> None:
            async with db.write() as tx:
                row = await tx.one("executions.lock", pk=pk)
                assert row is not None
                assert await _shift(tx, pk, fence=row.fence, status=row.status)

        await asyncio.gather(*(raise_fence() for _ in range(20)))
        async with db.write() as tx:
            row = await tx.one("executions.lock", pk=pk)
        assert row is not None
        assert row.fence == 21

    async def test_numbers_are_reserved_once(self, db: Database) -> None:
        firsts = await asyncio.gather(*(reserve(db) for _ in range(10)))
        blocks = {number for first in firsts for number in range(first, first + 256)}
        assert len(blocks) == 10 * 256


async def _shift(tx: Any, pk: int, *, fence: int, status: str = "running", **columns: Any) -> Row | None:
    given = {
        "waiting_on": None, "reason": None, "generation": 1, "failure": None, "deadline_at": None, "finished_at": None,
        "now": 1, **columns,
    }  # fmt: skip
    return await tx.one("executions.shift", status=status, pk=pk, fence=fence, was="running", **given)


async def _claim(tx: Any, pk: int, fence: int, owner: str, now: int = 1) -> Row | None:
    row: Row | None = await tx.one(
        "executions.claim", owner_id=owner, now=now, code_version=None, recoveries=0, pk=pk, fence=fence
    )
    return row


async def _claim_and_fail(db: Database, pk: int) -> None:
    async with db.write() as tx:
        assert await _claim(tx, pk, 1, "o")
        raise ZeroDivisionError


class Claims:
    """Claim, act, settle: one winner, by the statement itself."""

    async def _own(self, db: Database, owner: str, until: int) -> None:
        async with db.write() as tx:
            row = values(
                db, "owners.renew", owner_id=owner, host="h", machine_id="m", pid=1, lease_until=until, started_at=0
            )
            await tx.run("owners.renew", [row])

    async def test_one_of_many_claims_wins(self, db: Database) -> None:
        [pk] = await executions(db)

        async def claim(owner: str) -> Row | None:
            async with db.write() as tx:
                return await _claim(tx, pk, 1, owner)

        won = [row for row in await asyncio.gather(*(claim(f"o{n}") for n in range(16))) if row is not None]
        assert [row.fence for row in won] == [2]

    async def test_a_live_lease_is_not_taken_and_an_ended_one_is(self, db: Database) -> None:
        [pk] = await executions(db)
        await self._own(db, "first", until=100)
        async with db.write() as tx:
            won = await _claim(tx, pk, 1, "first")
            assert won is not None
        async with db.write() as tx:
            assert await _claim(tx, pk, 2, "second", now=99) is None
        async with db.write() as tx:
            won = await _claim(tx, pk, 2, "second", now=100)
        assert won is not None
        assert won.fence == 3

    async def test_a_claim_that_is_rolled_back_is_none(self, db: Database) -> None:
        [pk] = await executions(db)
        with pytest.raises(ZeroDivisionError):
            await _claim_and_fail(db, pk)
        async with db.write() as tx:
            assert await _claim(tx, pk, 1, "o")

    async def test_what_has_ended_cannot_be_claimed(self, db: Database) -> None:
        [pk] = await executions(db)
        async with db.write() as tx:
            assert await _shift(tx, pk, fence=1, status="completed", finished_at=1)
        async with db.write() as tx:
            assert await _claim(tx, pk, 2, "o") is None

    async def test_an_append_under_the_old_fence_is_refused_after_a_claim(self, db: Database) -> None:
        [pk] = await executions(db)
        async with db.write() as tx:
            assert await _claim(tx, pk, 1, "o")
        late, timely = await put(db, entry(db, pk, 0), entry(db, pk, 1, fence=2))
        assert late is None
        assert timely.fence == 2
        assert [row.idx for row in await entries(db, pk)] == [1]


class Wakeups:
    """Hints: in time when they come, and nothing rests on them."""

    async def _waiting(self, db: Database, channel: str, seconds: float = 30.0) -> asyncio.Task[bool]:
        task = spawn(db.wait(channel, seconds), "a wait")
        await db.clock.sleep(0)  # lets it begin
        return task

    async def test_a_commit_wakes_those_who_wait(self, db: Database) -> None:
        first, second = await self._waiting(db, "c"), await self._waiting(db, "c")
        async with db.write() as tx:
            tx.notify("c")
            await tx.run("ledger.put", [("a", b"1")])
        assert await first
        assert await second

    async def test_a_block_that_fails_wakes_nobody(self, store: Store) -> None:
        async with store.opened() as db:
            # A first wait may be woken for nothing: whoever begins to listen has missed hints.
            await db.wait("c", 0.2)
            waiter = await self._waiting(db, "c")
            with pytest.raises(ZeroDivisionError):
                await _failing(db, notify="c")
            assert not waiter.done()
            db.wake("c")
            assert await waiter

    async def test_waiting_ends_when_its_time_is_over(self, store: Store) -> None:
        clock = ManualClock()
        async with store.opened(clock=clock) as db:
            assert not await db.wait("c", 0)
            waiter = await self._waiting(db, "c", seconds=5)
            await clock.advance(timedelta(seconds=6))
            await asyncio.wait([waiter])

    async def test_a_local_wake_wakes_its_channel_only(self, db: Database) -> None:
        waiter, other = await self._waiting(db, "c"), await self._waiting(db, "d")
        db.wake("c")
        assert await waiter
        other.cancel()

    async def test_names_of_channels_may_be_anything(self, db: Database) -> None:
        name = "promise:" + "é\"';\n" * 200
        waiter = await self._waiting(db, name)
        async with db.write() as tx:
            tx.notify(name)
        assert await waiter

    async def test_closing_lets_waiters_go(self, store: Store) -> None:
        db = await store.open()
        waiter = await self._waiting(db, "c")
        await db.close()
        assert await waiter in (False, True)


class Pagination:
    """Lists come in pages, whatever is added meanwhile."""

    async def test_pages_neither_repeat_nor_miss(self, db: Database) -> None:
        pks = await executions(db, 25)
        seen: list[int] = []
        before = None
        while True:
            async with db.read() as tx:
                page = await tx.all("executions.list", status=None, kind=None, queue=None, before=before, most=10)
            seen += [row.pk for row in page]
            if len(page) < 10:
                break
            before = page[-1].pk
            await executions(db)  # newer ones come first, before what was shown
        assert seen == sorted(pks, reverse=True)

    async def test_filters_left_out_do_not_filter(self, db: Database) -> None:
        await executions(db, 2, kind="a")
        await executions(db, 3, kind="b", status="waiting")

        async def count(**filters: Any) -> int:
            async with db.read() as tx:
                given = {"status": None, "kind": None, "queue": None, "before": None, "most": 100, **filters}
                return len(await tx.all("executions.list", **given))

        assert (await count(), await count(kind="a"), await count(kind="b", status="running")) == (5, 2, 0)

    async def test_a_journal_is_listed_in_the_order_of_its_commits(self, db: Database) -> None:
        [pk] = await executions(db)
        order = [3, 0, 2, 1, 9, 4]
        await put(db, *(entry(db, pk, idx) for idx in order))
        async with db.read() as tx:
            page = await tx.all("journal.list", execution_pk=pk, generation=None, after=0, most=4)
            rest = await tx.all("journal.list", execution_pk=pk, generation=None, after=page[-1].seq, most=4)
        assert [row.idx for row in [*page, *rest]] == order

    async def test_a_segment_is_read_in_the_order_of_its_positions(self, db: Database) -> None:
        [pk] = await executions(db)
        await put(db, *(entry(db, pk, idx) for idx in (3, 0, 2, 1, 9, 4)))
        async with db.read() as tx:
            rows = await tx.all("journal.segment", execution_pk=pk, generation=1, scope=b"", start=1, most=4)
        assert [row.idx for row in rows] == [1, 2, 3, 4]

    async def test_text_sorts_by_its_bytes(self, db: Database) -> None:
        names = ["b", "a", "B", "é", "z", "", "a b", "日本", "\U0001f600"]
        async with db.write() as tx:
            for name in names:
                row = values(
                    db, "owners.renew", owner_id=name, host="", machine_id="", pid=1, lease_until=0, started_at=0
                )
                await tx.run("owners.renew", [row])
        async with db.read() as tx:
            rows = await tx.all("owners.list")
        assert [row.owner_id for row in rows] == sorted(names, key=str.encode)


class Values:
    """What goes in comes out."""

    @pytest.mark.parametrize(
        "payload",
        [None, b"", b"\x00", bytes(range(256)), b"\xff" * 70_000, b"'\"\\;--"],
        ids=["none", "empty", "zero", "all", "long", "quotes"],
    )
    async def test_bytes(self, db: Database, payload: bytes | None) -> None:
        [pk] = await executions(db)
        assert (await put(db, entry(db, pk, 0, payload=payload)))[0]
        [row] = await entries(db, pk)
        assert row.payload == payload
        assert type(row.payload) in (bytes, type(None))

    @pytest.mark.parametrize("number", [0, 1, -1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)])
    async def test_integers(self, db: Database, number: int) -> None:
        [pk] = await executions(db)
        assert (await put(db, entry(db, pk, number, due_at=number)))[0]
        [row] = await entries(db, pk)
        assert (row.idx, row.due_at) == (number, number)

    @pytest.mark.parametrize("text", ["", "a", "Straße", "日本語", "\U0001f600", "a\nb\tc", "'; --", "x" * 10_000])
    async def test_text(self, db: Database, text: str) -> None:
        [pk] = await executions(db)
        assert (await put(db, entry(db, pk, 0, name=text)))[0]
        [row] = await entries(db, pk)
        assert row.name == text

    async def test_nothing_is_confused_in_a_batch(self, db: Database) -> None:
        """Rows with and without values, in one statement."""
        [pk] = await executions(db)
        payloads = [None, b"", b"a", None, b"bb", b"\x00" * 3]
        await put(
            db, *(entry(db, pk, idx, payload=payload, due_at=idx or None) for idx, payload in enumerate(payloads))
        )
        rows = await entries(db, pk)
        assert [row.payload for row in rows] == payloads
        assert [row.due_at for row in rows] == [None, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("bad", [2**63, -(2**63) - 1, "text"], ids=["large", "small", "text"])
    async def test_a_number_that_does_not_fit_is_an_error_of_its_block(self, db: Database, bad: object) -> None:
        [pk] = await executions(db)
        if bad == "text" and db.dialect == "sqlite":
            bad = "\ud800"  # SQLite's columns take any type; but no text that is none
        with pytest.raises(StoreError):
            async with db.write() as tx:
                await tx.run("journal.append", [values(db, "journal.append", execution_pk=pk, idx=bad)])
        async with db.write() as tx:
            await tx.run("journal.append", [values(db, "journal.append", execution_pk=pk, idx=1)])
        assert [row.idx for row in await entries(db, pk)] == [1]


async def _add_twice(db: Database, row: tuple[Any, ...]) -> None:
    async with db.write() as tx:
        await tx.run("journal.append", [row])
        await tx.run("journal.append", [row])


class Errors:
    """Failures have names, and leave the store usable."""

    async def test_a_violated_constraint_is_a_conflict(self, db: Database) -> None:
        [pk] = await executions(db)
        row = values(db, "journal.append", execution_pk=pk, idx=0, payload=b"hunter2", name="hunter2")
        with pytest.raises(Conflict) as caught:
            await _add_twice(db, row)
        assert "hunter2" not in str(caught.value)
        assert await entries(db, pk) == []

    async def test_a_statement_nobody_knows_is_an_error(self, db: Database) -> None:
        async with db.read() as tx:
            with pytest.raises(StoreError, match=r"nothing\.known"):
                await tx.one("nothing.known")

    async def test_other_parameters_than_a_statement_has_are_an_error(self, db: Database) -> None:
        async with db.read() as tx:
            with pytest.raises(StoreError):
                await tx.one("ledger.get")
        async with db.read() as tx:
            with pytest.raises(StoreError):
                await tx.one("ledger.get", name="a", more=1)

    async def test_an_append_that_names_no_statement_fails_alone(self, db: Database) -> None:
        [pk] = await executions(db)
        good, bad, other = await put(db, entry(db, pk, 0), append([("nothing.known", (1,))], pk), entry(db, pk, 1))
        assert good
        assert other
        assert isinstance(bad, StoreError)
        assert [row.idx for row in await entries(db, pk)] == [0, 1]

    async def test_a_row_that_does_not_fit_its_statement_fails_alone(self, db: Database) -> None:
        [pk] = await executions(db)
        short = values(db, "journal.append", execution_pk=pk, idx=7)[:-1]
        for others in ([], [entry(db, pk, 0)]):
            *good, bad = await put(db, *others, append([("journal.append", short)], pk))
            assert all(good)
            assert isinstance(bad, StoreError)
        assert [row.idx for row in await entries(db, pk)] == [0]

    async def test_a_closed_store_says_so(self, store: Store) -> None:
        db = await store.open()
        await db.close()
        with pytest.raises(Closed):
            async with db.read():
                pass
        with pytest.raises(Closed):
            async with db.write():
                pass
        with pytest.raises(Closed):
            await db.wait("c", 0)
        with pytest.raises(Closed):
            db.writer.offer(append([], 1))
        await db.close()

    async def test_another_loop_is_told_so(self, db: Database) -> None:
        async def use() -> None:
            with pytest.raises(WrongLoop):
                async with db.read():
                    pass
            with pytest.raises(WrongLoop):
                db.writer.offer(append([], 1))

        await asyncio.to_thread(asyncio.run, use())

    async def test_a_store_open_for_reading_refuses_to_write(self, store: Store, db: Database) -> None:
        async with db.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])
        if db.label == ":memory:":
            return  # there is nothing to open twice
        async with store.opened(read_only=True) as reader:
            assert await _value(reader, "a") == b"1"
            with pytest.raises(StoreError) as caught:
                async with reader.write():
                    pass
            assert caught.value.code == "store.read_only"
            with pytest.raises(StoreError):
                reader.writer.offer(append([], 1))

    async def test_abandoning_is_like_a_crash(self, db: Database) -> None:
        """What was not acknowledged may be lost; whoever waits is let go."""
        [pk] = await executions(db)
        pending = entry(db, pk, 0)
        db.writer.offer(pending)
        db.abandon()  # type: ignore[attr-defined] # for tests; not part of the protocol
        assert pending.future is not None
        with pytest.raises(asyncio.CancelledError):
            await pending.future
        with pytest.raises(Closed):
            async with db.read():
                pass
