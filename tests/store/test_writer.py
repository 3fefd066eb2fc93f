"""Group commit on SQLite: order, room, time, failure, recovery."""

# ruff: noqa: ASYNC240 - the files are the tests' own, and small
from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.store.notes import count, listed, note, notes, open_notes, put, until

from holdfast.core import points
from holdfast.core.errors import Closed, Conflict, StoreError, Unavailable
from holdfast.store import sqlite
from holdfast.store.batch import Batch
from holdfast.store.sqlite import SqliteDatabase
from holdfast.store.writer import Overdue
from holdfast.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.fixture(params=["inline", "thread"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Commit inline, or always on the writer thread."""
    if request.param == "thread":
        monkeypatch.setattr(SqliteDatabase, "_is_quick", lambda self: self.memory or points.armed)
    return str(request.param)


# Commits


async def test_what_is_acknowledged_is_there_when_the_ledger_is_opened_again(path: str, mode: str) -> None:
    async with notes(path) as database:
        rows = await put(database, [note(7, idx) for idx in range(10)])
        assert [tuple(row) for row in rows] == [(7, 1)] * 10
    async with notes(path) as database:
        assert await listed(database, 7) == list(range(10))


async def test_concurrent_appends_share_commits(path: str, mode: str) -> None:
    async with notes(path) as database:

        async def one(run: int) -> None:
            for idx in range(20):
                append = note(run, idx)
                assert database.writer.offer(append)
                assert append.future is not None
                assert (await append.future).fence == 1

        await asyncio.gather(*(one(run) for run in range(32)))
        assert await count(database) == 640
        assert database.writer.batches <= 60
        assert database.writer.pending_items == database.writer.pending_bytes == 0


async def test_appends_become_durable_in_the_order_they_were_offered(path: str, mode: str) -> None:
    async with notes(path, batch_items_max=7) as database:
        done: list[int] = []
        appends = [note(1, idx, settled=lambda durable, idx=idx: done.append(idx)) for idx in range(100)]
        await put(database, appends)
        assert done == list(range(100))
        assert await listed(database, 1) == list(range(100))
        assert database.writer.batches >= 100 // 7


async def test_batches_keep_their_limits_and_a_large_append_goes_alone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with notes(path, batch_bytes_max=1000, batch_items_max=4) as database:
        sizes = []
        commit = database.commit

        def measured(batch: Batch) -> bool:
            sizes.append((len(batch.items), batch.size))
            return commit(batch)

        monkeypatch.setattr(database, "commit", measured)
        await put(database, [note(1, idx, size=size) for idx, size in enumerate([10] * 6 + [5000] + [600] * 3)])
        assert sizes == [(4, 40), (2, 20), (1, 5000), (1, 600), (1, 600), (1, 600)]


async def test_an_append_nobody_waits_for_rides_along(path: str) -> None:
    async with notes(path) as database:
        told: list[bool] = []
        assert database.writer.offer(note(1, 0, quiet=True, settled=told.append))
        await put(database, [note(1, 1)])
        assert told == [True]
        assert database.writer.batches == 1


async def test_a_callback_that_fails_spoils_nothing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(durable: bool) -> None:
        raise ValueError(durable)

    async with notes(path) as database:
        assert [row.run for row in await put(database, [note(1, 0, settled=broken), note(1, 1)])] == [1, 1]
    assert "callback" in caplog.text


async def test_a_callback_may_offer_more(path: str) -> None:
    async with notes(path) as database:
        second = note(1, 1)
        await put(database, [note(1, 0, settled=lambda durable: database.writer.offer(second))])
        assert second.future is not None
        assert (await second.future).run == 1


# Guards and bad appends


async def test_what_a_guard_refuses_writes_nothing_and_its_neighbours_commit(path: str, mode: str) -> None:
    async with notes(path) as database:
        await put(database, [note(1, 0), note(2, 0)])
        told: list[bool] = []
        stale = note(1, 1, fence=9, settled=told.append)
        results = await put(database, [note(2, 1), stale, note(1, 2)])
        assert [result is None for result in results] == [False, True, False]
        assert told == [False]
        assert await listed(database, 1) == [0, 2]


async def test_a_guard_holds_for_the_whole_batch_that_ends_its_run(path: str) -> None:
    async with notes(path) as database:
        assert None not in await put(database, [note(1, 0), note(1, 1, finish=True)])
        assert await put(database, [note(1, 2)]) == [None]


async def test_an_append_without_a_guard_is_not_guarded(path: str) -> None:
    async with notes(path) as database:
        append = note(1, 0, create=False)
        append.guard = None
        assert await put(database, [append]) == [True]
        assert await listed(database, 1) == [0]


@pytest.mark.parametrize("body", [object(), 2**70, "\ud800"])
async def test_one_bad_append_among_a_hundred_fails_alone(path: str, mode: str, body: object) -> None:
    async with notes(path) as database:
        results = await put(database, [note(idx % 5, idx, body=body if idx == 50 else b"x") for idx in range(100)])
        assert [idx for idx, result in enumerate(results) if isinstance(result, Exception)] == [50]
        assert isinstance(results[50], StoreError)
        assert "ud800" not in str(results[50])
        assert await count(database) == 99
        assert database.writer.failures == 0


async def test_a_repeated_row_is_a_conflict_of_its_own_append(path: str) -> None:
    async with notes(path) as database:
        told: list[bool] = []
        results = await put(database, [note(1, 0), note(1, 0, settled=told.append), note(1, 1)])
        assert isinstance(results[1], Conflict)
        assert told == [False]
        assert await listed(database, 1) == [0, 1]


async def test_an_append_with_an_unknown_statement_fails_alone(path: str) -> None:
    async with notes(path) as database:
        bad = note(1, 1)
        bad.rows.append(("notes.burn", (1,)))
        results = await put(database, [note(1, 0), bad, note(1, 2)])
        assert [isinstance(result, StoreError) for result in results] == [False, True, False]
        assert await listed(database, 1) == [0, 2]


# Room


@pytest.mark.parametrize("limits", [{"queue_items_max": 4}, {"queue_bytes_max": 400}])
async def test_a_full_queue_makes_callers_wait_in_order(path: str, limits: dict[str, int]) -> None:
    async with notes(path, **limits) as database:
        writer = database.writer
        writer.faults.stall()
        assert [writer.offer(note(1, idx)) for idx in range(5)] == [True] * 4 + [False]
        waiting = [asyncio.ensure_future(writer.put(note(1, idx))) for idx in range(4, 12)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert writer.pending_items == 4
        assert not writer.offer(note(1, 99)), "nobody passes those who wait"
        writer.faults.resume()
        await asyncio.gather(*waiting)
        await writer.drained()
        assert await listed(database, 1) == list(range(12))


async def test_an_append_larger_than_the_queue_goes_in_when_it_is_empty(path: str) -> None:
    async with notes(path, queue_bytes_max=400) as database:
        results = await put(database, [note(1, 0), note(1, 1, size=5000), note(1, 2)])
        assert [row.run for row in results] == [1, 1, 1]


async def test_a_put_that_is_cancelled_leaves_its_place(path: str) -> None:
    async with notes(path, queue_items_max=1) as database:
        writer = database.writer
        writer.faults.stall()
        assert writer.offer(note(1, 0))
        first, second = (asyncio.ensure_future(writer.put(note(1, idx))) for idx in (1, 2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        writer.faults.resume()
        await second
        await writer.drained()
        assert await listed(database, 1) == [0, 2]


async def test_an_append_can_be_withdrawn_until_it_is_taken(path: str) -> None:
    async with notes(path, queue_items_max=2) as database:
        writer = database.writer
        writer.faults.stall()
        appends = [note(1, idx) for idx in range(2)]
        assert all(writer.offer(append) for append in appends)
        waiting = asyncio.ensure_future(writer.put(note(1, 2)))
        await asyncio.sleep(0)
        assert writer.withdraw(appends[0])
        assert writer.withdraw(appends[0])
        await waiting
        writer.faults.resume()
        await writer.drained()
        assert appends[0].state == "withdrawn"
        assert not writer.withdraw(appends[1])
        assert await listed(database, 1) == [1, 2]
        assert writer.pending_items == writer.pending_bytes == 0


async def test_drained_waits_for_what_came_before_it(path: str) -> None:
    async with notes(path) as database:
        writer = database.writer
        await writer.drained()
        writer.faults.stall()
        early, late = note(1, 0), note(1, 1)
        assert writer.offer(early)
        drained = asyncio.ensure_future(writer.drained(1))
        await asyncio.sleep(0)
        assert writer.offer(late)
        assert writer.withdraw(early)
        writer.faults.resume()
        await drained
        assert early.state == "withdrawn"


# Time


async def test_an_append_that_is_not_acknowledged_in_time_is_overdue_and_still_commits(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, ack_timeout_ms=1000) as database:
        writer = database.writer
        writer.faults.stall()
        told: list[bool] = []
        first, second = note(1, 0, settled=told.append), note(1, 1)
        assert first.future is not None
        assert second.future is not None
        writer.offer(first)
        await clock.advance(timedelta(milliseconds=500))
        writer.offer(second)
        await clock.advance(timedelta(milliseconds=499))
        assert not first.future.done()
        assert not writer.degraded
        await clock.advance(timedelta(milliseconds=51))
        with pytest.raises(Overdue) as caught:
            await first.future
        assert caught.value.append is first
        assert first.state == "queued"
        assert not second.future.done()
        assert writer.degraded
        await clock.advance(timedelta(milliseconds=500))
        assert isinstance(second.future.exception(), Overdue)
        writer.faults.resume()
        await writer.drained()
        assert told == [True]
        assert not writer.degraded
        assert await listed(database, 1) == [0, 1]


async def test_overdue_can_be_withdrawn_and_an_empty_queue_is_not_degraded(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, ack_timeout_ms=1000) as database:
        database.writer.faults.stall()
        append = note(1, 0)
        database.writer.offer(append)
        await clock.advance(timedelta(seconds=2))
        assert append.future is not None
        assert isinstance(append.future.exception(), Overdue)
        assert database.writer.degraded
        assert database.writer.withdraw(append)
        assert not database.writer.degraded
        database.writer.faults.resume()
        assert await count(database) == 0


async def test_waiting_for_room_counts_as_waiting(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, ack_timeout_ms=1000, queue_items_max=1) as database:
        writer = database.writer
        writer.faults.stall()
        writer.offer(note(1, 0, quiet=True))
        late = note(1, 1)
        waiting = asyncio.ensure_future(writer.put(late))
        await asyncio.sleep(0)
        await clock.advance(timedelta(milliseconds=1050))
        with pytest.raises(Overdue):
            await waiting
        assert late.state == "new"
        assert writer.degraded
        writer.faults.resume()
        await writer.drained()
        assert await listed(database, 1) == [0]


async def test_a_long_stall_costs_few_looks_at_a_long_queue(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, ack_timeout_ms=1000) as database:
        writer = database.writer
        writer.faults.stall()
        looks = 0
        expire = writer._expire

        def counted(*arguments: Any) -> float:
            nonlocal looks
            looks += 1
            return expire(*arguments)

        monkeypatch.setattr(writer, "_expire", counted)
        for idx in range(500):
            writer.offer(note(1, idx, quiet=True))
            await clock.advance(timedelta(milliseconds=2))
        await clock.advance(timedelta(seconds=3))
        assert looks <= 45
        writer.faults.resume()
        await writer.drained()


# Failure


async def test_a_writer_that_dies_comes_back_and_commits_in_order(path: str, mode: str) -> None:
    async with notes(path) as database:
        writer = database.writer
        appends = [note(1, idx) for idx in range(50)]
        for append in appends:
            assert writer.offer(append)
        writer.faults.die()
        late = note(1, 50)
        assert writer.offer(late)
        assert late.future is not None
        await late.future
        assert await listed(database, 1) == list(range(51))
        assert writer.failures == 1


async def test_a_restart_that_fails_as_nobody_foresaw_is_tried_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with notes(path) as database:
        reopen, tried = database.reopen, 0

        async def odd(lane: int) -> None:
            nonlocal tried
            tried += 1
            if tried == 1:
                raise RuntimeError("odd")
            await reopen(lane)

        monkeypatch.setattr(database, "reopen", odd)
        append = note(1, 0)
        assert database.writer.offer(append)
        database.writer.faults.die()
        assert append.future is not None
        async with asyncio.timeout(20):
            await append.future
        assert tried == 2
        assert await listed(database, 1) == [0]


async def test_a_batch_whose_acknowledgement_was_lost_is_recognised(path: str, mode: str) -> None:
    """Its rows are there under the same fence, and its run is finished: that is an ack, not a lost fence."""
    async with notes(path) as database:
        await put(database, [note(1, 0)])
        database.writer.faults.die(after_commit=True)
        told: list[bool] = []
        last = note(1, 2, finish=True, settled=told.append)
        results = await put(database, [note(1, 1), last])
        assert [tuple(row) for row in results] == [(1, 1), (1, 1)]
        assert told == [True]
        assert await listed(database, 1) == [0, 1, 2]
        assert database.writer.failures == 1
        assert not database.writer._lanes[0].doubtful


async def test_what_may_be_on_disk_cannot_be_withdrawn(path: str) -> None:
    async with notes(path) as database:
        database.writer.faults.die(after_commit=True)
        append = note(1, 0)
        database.writer.offer(append)
        await until(lambda: database.writer.failures)
        assert not database.writer.withdraw(append)
        assert append.future is not None
        assert (await append.future).run == 1


async def test_the_writer_backs_off_from_a_tenth_of_a_second_to_five(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, ack_timeout_ms=600_000) as database:
        writer = database.writer
        writer.faults.fail_next(9)
        append = note(1, 0)
        assert append.future is not None
        writer.offer(append)
        await asyncio.sleep(0)
        for failed, pause in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0], 1):
            await clock.advance(timedelta(seconds=pause - 0.01))
            assert writer.failures == failed
            assert append.state == "queued"
            await clock.advance(timedelta(seconds=0.01))
        assert (await append.future).run == 1
        writer.faults.fail_next()
        again = note(1, 1)
        writer.offer(again)
        await asyncio.sleep(0)
        await clock.advance(timedelta(seconds=0.11))
        assert again.future is not None
        assert (await again.future).run == 1, "a commit resets the pause"


async def test_close_commits_everything_that_was_accepted(path: str, mode: str) -> None:
    database = await open_notes(path)
    appends = [note(idx % 3, idx) for idx in range(1000)]
    assert all(database.writer.offer(append) for append in appends)
    await database.close()
    assert all(append.future is not None and append.future.result().fence == 1 for append in appends)
    with pytest.raises(Closed):
        database.writer.offer(note(1, 2000))
    async with notes(path) as database:
        assert await count(database) == 1000


async def test_close_brings_a_dead_writer_back_first(path: str) -> None:
    clock = ManualClock()
    database = await open_notes(path, clock=clock)
    append = note(1, 0)
    database.writer.offer(append)
    database.writer.faults.die()
    await database.close()
    assert append.state == "done"


async def test_close_ends_the_attempts_to_bring_a_dead_writer_back(path: str) -> None:
    database = await open_notes(path)
    database.writer.faults.die()
    await database.close()
    await database.clock.sleep(0.2)
    assert database.writer.failures == 1


async def test_close_gives_up_in_the_end_and_says_what_was_lost(path: str) -> None:
    database = await open_notes(path, ack_timeout_ms=100)
    database.writer.faults.stall()
    told: list[bool] = []
    append = note(1, 0, settled=told.append)
    database.writer.offer(append)
    database.writer.offer(note(1, 1, quiet=True))
    with pytest.raises(Unavailable, match="2 accepted appends"):
        await database.close()
    assert told == [False]
    assert database.gone
    assert append.future is not None
    assert isinstance(append.future.exception(), Overdue)


async def test_whoever_waits_for_room_at_close_is_told(path: str) -> None:
    database = await open_notes(path, queue_items_max=1)
    database.writer.faults.stall()
    database.writer.offer(note(1, 0))
    waiting = asyncio.ensure_future(database.writer.put(note(1, 1)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(database.close())
    await asyncio.sleep(0)
    database.writer.faults.resume()
    with pytest.raises(Closed):
        await waiting
    await closing


async def test_abandoning_drops_everything_as_a_crash_would(path: str) -> None:
    database = await open_notes(path)
    await put(database, [note(1, 0)])
    database.writer.faults.stall()
    append = note(1, 1)
    database.writer.offer(append)
    draining = asyncio.ensure_future(database.writer.drained())
    await asyncio.sleep(0)
    database.abandon()
    assert append.future is not None
    assert append.future.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await draining
    with pytest.raises(Closed):
        database.read()
    assert Path(path + "-wal").stat().st_size > 0, "nobody tidied up"
    async with notes(path) as database:
        assert await listed(database, 1) == [0]


# Crash points


@pytest.mark.parametrize(
    ("point", "there"),
    [
        ("intent.queued", []),
        ("batch.begun", []),
        ("batch.inserted", []),
        ("batch.committed", [0, 1]),
        ("intent.committed", [0, 1]),
    ],
)
async def test_a_crash_at_a_point_leaves_the_whole_batch_or_none(path: str, point: str, there: list[int]) -> None:
    database = await open_notes(path)
    armed = points.arm(point, 1, "raise")
    first, second = note(1, 0), note(1, 1, label="intent")
    try:
        database.writer.offer(first)
        try:
            database.writer.offer(second)
        except points.Crashed:
            assert point == "intent.queued"
        assert first.future is not None
        with pytest.raises(asyncio.CancelledError):
            await first.future
    finally:
        points.disarm(armed)
    assert database.gone
    async with notes(path) as database:
        assert await listed(database, 1) == there


# A loop that never idles


@pytest.fixture
async def saturated() -> Any:
    """A task that for ever computes for a millisecond and yields."""

    async def spin() -> None:
        while True:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.ensure_future(spin())
    yield task
    task.cancel()
    await asyncio.wait((task,))


async def test_a_saturated_loop_does_not_starve_commits(path: str, mode: str, saturated: Any) -> None:
    async with notes(path) as database:
        waits = []
        for idx in range(40):
            began = time.perf_counter()
            await put(database, [note(run, idx) for run in range(8)])
            waits.append(time.perf_counter() - began)
        waits.sort()
        assert waits[20] < 0.05, f"median {waits[20]:.3f} s"
        assert await count(database) == 320


async def test_a_saturated_loop_does_not_starve_a_commit_that_waited_for_another_process(
    path: str, saturated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 60.0)
    async with notes(path) as database:
        other = database._pool.connect(2)
        other.execute("BEGIN IMMEDIATE")
        append = note(1, 0)
        database.writer.offer(append)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not database._worker.idle
        other.execute("ROLLBACK")
        assert append.future is not None
        began = time.perf_counter()
        await append.future
        assert time.perf_counter() - began < 0.5
