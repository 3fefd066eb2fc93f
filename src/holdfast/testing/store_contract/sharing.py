"""One ledger, several handles and processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from holdfast.core.errors import ConfigError, WrongProcess
from holdfast.store.database import Database
from holdfast.testing.store_contract.ledgers import Store, append, entries, entry, executions, put, reserve

__all__ = ["Processes", "Sharing"]

PROCESSES = 3


class Sharing:
    """Handles of one ledger, as processes have them."""

    async def test_what_one_commits_the_other_reads(self, store: Store, db: Database) -> None:
        async with store.opened() as other:
            async with db.write() as tx:
                await tx.run("ledger.put", [("a", b"1")])
            async with other.read() as tx:
                row = await tx.one("ledger.get", name="a")
            assert row is not None
            assert row.value == b"1"
            assert other.namespace == db.namespace
            assert len(db.namespace) == 16

    async def test_another_namespace_than_its_own_is_refused(self, store: Store, db: Database) -> None:
        with pytest.raises(ConfigError):
            await store.open(namespace=bytes(16))
        async with store.opened(namespace=db.namespace):
            pass

    async def test_a_read_is_one_view(self, store: Store, db: Database) -> None:
        async with store.opened() as other, db.read() as tx:
            assert await tx.one("ledger.get", name="a") is None
            async with other.write() as writing:
                await writing.run("ledger.put", [("a", b"1")])
            assert await tx.one("ledger.get", name="a") is None
        async with db.read() as tx:
            assert await tx.one("ledger.get", name="a") is not None

    async def test_a_reader_does_not_wait_for_a_writer(self, store: Store, db: Database) -> None:
        async with store.opened() as other, db.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])
            async with other.read() as reading, asyncio.timeout(5):
                assert await reading.one("ledger.get", name="a") is None
            async with db.read() as reading, asyncio.timeout(5):
                assert await reading.one("ledger.get", name="a") is None

    async def test_a_claim_elsewhere_ends_the_right_to_append(self, store: Store, db: Database) -> None:
        [pk] = await executions(db)
        async with store.opened() as other:
            assert await put(db, entry(db, pk, 0)) != [None]
            async with other.write() as tx:
                assert await tx.one(
                    "executions.claim", owner_id="o", now=1, code_version=None, recoveries=0, pk=pk, fence=1
                )
            assert await put(db, entry(db, pk, 1)) == [None]
            assert (await put(other, entry(other, pk, 1, fence=2)))[0].fence == 2
        assert [row.fence for row in await entries(db, pk)] == [1, 2]

    async def test_what_a_claimer_has_read_nobody_adds_to(self, store: Store, db: Database) -> None:
        """The claimer reads the journal in its claim; an append of the owner before it is in that, or refused."""
        pks = await executions(db, 8)
        async with store.opened() as other:

            async def own(pk: int) -> int:
                acknowledged = 0
                while (await put(db, entry(db, pk, acknowledged)))[0] is not None:
                    acknowledged += 1
                return acknowledged

            async def take(pk: int) -> int:
                for _ in range(pk % 4 + 1):
                    await put(other, append([], pk, fence=None))
                async with other.write() as tx:
                    won = await tx.one(
                        "executions.claim", owner_id="o", now=1, code_version=None, recoveries=0, pk=pk, fence=1
                    )
                    assert won is not None
                    return len(await entries(tx, pk))

            results = await asyncio.gather(*(own(pk) for pk in pks), *(take(pk) for pk in pks))
        assert results[:8] == results[8:]
        assert [len(await entries(db, pk)) for pk in pks] == results[:8]

    async def test_a_forked_child_may_use_nothing(self, db: Database) -> None:
        [pk] = await executions(db)
        child = os.fork()
        if child == 0:
            os._exit(_refused_everywhere(db))
        assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1]) == 0
        assert all(await put(db, *(entry(db, pk, idx) for idx in range(5))))
        async with db.write() as tx:
            await tx.run("ledger.put", [("a", b"1")])


def _refused_everywhere(db: Database) -> int:
    """In a forked child: 0 when every use of the handle raises `WrongProcess`."""
    uses: list[Callable[[], object]] = [
        db.read,
        db.write,
        lambda: db.wake("c"),
        lambda: db.writer.offer(None),  # type: ignore[arg-type] # refused before it is looked at
        lambda: db.wait("c", 0).send(None),
        lambda: db.close().send(None),
    ]
    wrong = 0
    for use in uses:
        try:
            use()
        except WrongProcess:
            continue
        except BaseException:  # noqa: BLE001, S110 - counted
            pass
        wrong += 1
    return wrong


class Processes:
    """Real processes at work on one ledger."""

    async def test_each_execution_is_claimed_by_one(self, store: Store, db: Database) -> None:
        pks = await executions(db, 40)
        won = await _everywhere(_claim_all, store, pks)
        assert sorted(pk for each in won for pk in each) == pks

    async def test_changes_of_one_row_add_up(self, store: Store, db: Database) -> None:
        [pk] = await executions(db)
        await _everywhere(_raise_fence, store, [pk])
        async with db.write() as tx:
            row = await tx.one("executions.lock", pk=pk)
        assert row is not None
        assert row.fence == 1 + PROCESSES * 10

    async def test_appends_of_all_are_there_in_order(self, store: Store, db: Database) -> None:
        pks = await executions(db, 4)
        await _everywhere(_append_own, store, pks)
        for pk in pks:
            rows = await entries(db, pk)
            for process in range(PROCESSES):
                assert [row.idx for row in rows if row.part == 10 + process] == list(range(25))

    async def test_numbers_are_reserved_once(self, store: Store, db: Database) -> None:
        firsts = [first for each in await _everywhere(_reserve, store, []) for first in each]
        assert len(set(firsts)) == len(firsts)
        assert all(abs(one - two) >= 256 for one in firsts for two in firsts if one != two)


_Work = Callable[[Database, list[int], int], Coroutine[Any, Any, list[int]]]


async def _everywhere(work: _Work, store: Store, pks: list[int]) -> list[list[int]]:
    """Do some work in several processes at once, each with a handle of its own."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    gate = context.Barrier(PROCESSES)
    processes = [
        context.Process(target=_in_process, args=(work, store, pks, n, gate, results)) for n in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        return [await asyncio.to_thread(results.get) for _ in processes]
    finally:
        for process in processes:
            await asyncio.to_thread(process.join, 30)
            process.kill()


def _in_process(work: _Work, store: Store, pks: list[int], number: int, gate: Any, results: Any) -> None:
    async def run() -> list[int]:
        async with store.opened() as db:
            gate.wait(30)
            return await work(db, pks, number)

    results.put(asyncio.run(run()))


async def _claim_all(db: Database, pks: list[int], number: int) -> list[int]:
    won = []
    for pk in pks:
        async with db.write() as tx:
            if await tx.one(
                "executions.claim", owner_id=f"o{number}", now=1, code_version=None, recoveries=0, pk=pk, fence=1
            ):
                won.append(pk)
    return won


async def _raise_fence(db: Database, pks: list[int], _number: int) -> list[int]:
    for _ in range(10):
        async with db.write() as tx:
            row = await tx.one("executions.lock", pk=pks[0])
            assert row is not None
            await tx.one(
                "executions.claim", owner_id="o", now=1, code_version=None, recoveries=0, pk=pks[0], fence=row.fence
            )
    return []


async def _append_own(db: Database, pks: list[int], number: int) -> list[int]:
    results = await put(db, *(entry(db, pk, idx, part=10 + number) for idx in range(25) for pk in pks))
    assert all(not isinstance(result, Exception) and result.fence == 1 for result in results)
    return []


async def _reserve(db: Database, _pks: list[int], _number: int) -> list[int]:
    return [await reserve(db) for _ in range(5)]
