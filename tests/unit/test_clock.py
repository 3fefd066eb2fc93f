"""Clocks: the machine's, and the one a test moves."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.clock import Clock, SystemClock, from_datetime, micros, to_datetime
from holdfast.core.errors import ConfigError
from holdfast.core.loops import spawn
from holdfast.testing import ManualClock

SECOND = timedelta(seconds=1)


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=3))])))
def test_an_instant_survives_the_trip_through_microseconds(moment: datetime) -> None:
    try:
        there = from_datetime(moment)
    except OverflowError:  # the last hours of the year 9999
        return
    assert to_datetime(there) == moment
    assert to_datetime(there).tzinfo is UTC


def test_a_datetime_without_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="time zone"):
        from_datetime(datetime(2026, 1, 1))  # noqa: DTZ001 - the point
    assert micros(timedelta(milliseconds=-1, microseconds=1)) == -999


def test_the_system_clock_reads_the_machine_moved_by_its_offset() -> None:
    before = time.time_ns() // 1000
    assert before <= SystemClock().now() <= time.time_ns() // 1000
    assert SystemClock(offset=-5_000_000).now() < before
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()


async def test_the_system_clock_waits_without_cancelling() -> None:
    clock: Clock = SystemClock()
    future = asyncio.get_running_loop().create_future()
    assert await clock.wait(future, 0.001) is False
    assert not future.cancelled()
    fired = asyncio.Event()
    clock.call_later(0, fired.set)
    clock.call_later(0, lambda: future.set_result(None))
    clock.call_later(0, lambda: pytest.fail("taken back")).cancel()
    assert await clock.wait(future, None) is True
    assert await clock.wait(future, 0) is True
    assert fired.is_set()
    await clock.sleep(-1)


def test_a_thread_pauses_for_as_long_as_it_says() -> None:
    clock = SystemClock()
    began = clock.monotonic()
    clock.pause(0.002)
    assert clock.monotonic() - began >= 0.002
    clock.pause(-1)


def test_a_paused_thread_goes_on_when_another_moves_the_clock() -> None:
    clock = ManualClock()
    clock.pause(0)
    thread = threading.Thread(target=clock.pause, args=(2,))
    thread.start()
    while not clock._due:
        pass
    clock.advance(SECOND)
    assert thread.is_alive()
    clock.advance(SECOND)
    thread.join(10)
    assert not thread.is_alive()


def test_a_crowded_clock_keeps_the_threads_that_pause() -> None:
    clock = ManualClock()
    thread = threading.Thread(target=clock.pause, args=(1,))
    thread.start()
    while not clock._due:
        pass
    clock._crowded = 1
    other = threading.Thread(target=clock.pause, args=(1,))
    other.start()
    while len(clock._due) < 2:
        pass
    clock.advance(SECOND)
    for each in (thread, other):
        each.join(10)
        assert not each.is_alive()


async def test_a_cancelled_waiter_leaves_the_future_alone() -> None:
    for clock in (SystemClock(), ManualClock()):
        future = asyncio.get_running_loop().create_future()
        waiter = spawn(clock.wait(future, 60), "waiter")
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not future.done()


async def test_nothing_happens_until_a_manual_clock_moves() -> None:
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    assert to_datetime(clock.now()) == datetime(2030, 1, 1, tzinfo=UTC)
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [spawn(sleeper(*each), "sleeper") for each in (("late", 3), ("soon", 1), ("middle", 2))]
    await asyncio.sleep(0)
    clock.advance(timedelta(microseconds=999_999))
    await asyncio.sleep(0)
    assert woken == []
    await clock.advance(timedelta(microseconds=1))
    assert woken == ["soon"]
    await clock.advance(10 * SECOND)
    assert woken == ["soon", "middle", "late"]
    assert clock.monotonic() == 11
    await asyncio.gather(*tasks)


async def test_a_plain_advance_wakes_when_the_loop_turns() -> None:
    clock = ManualClock()
    task = spawn(clock.sleep(5), "sleeper")
    await asyncio.sleep(0)
    clock.advance(5 * SECOND)
    await task


async def test_a_wait_ends_with_its_future_or_its_timeout() -> None:
    clock = ManualClock()
    loop = asyncio.get_running_loop()
    slow, quick = loop.create_future(), loop.create_future()
    first, second, endless = (spawn(clock.wait(f, t), "w") for f, t in ((slow, 1), (quick, 1), (quick, None)))
    await asyncio.sleep(0)
    quick.set_result(None)
    assert (await second, await endless) == (True, True)
    await clock.advance(SECOND)
    assert await first is False
    assert not slow.done()
    assert await clock.wait(slow, 0) is False
    assert await clock.wait(quick, 0) is True
    await clock.sleep(0)


async def test_callbacks_can_be_taken_back() -> None:
    clock = ManualClock()
    calls: list[int] = []
    kept = clock.call_later(1, lambda: calls.append(1))
    clock.call_later(1, lambda: calls.append(2)).cancel()
    clock.call_later(-1, lambda: calls.append(0))
    await clock.advance(timedelta(0))
    assert calls == [0]
    late = clock.call_later(1, lambda: calls.append(3))
    clock.advance(SECOND)
    late.cancel()  # due, but the loop has not turned
    await clock.advance(timedelta(0))
    kept.cancel()
    assert calls == [0, 1]


async def test_timers_of_waits_that_ended_are_not_kept() -> None:
    clock = ManualClock()
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    for _ in range(5000):
        clock.call_later(1, done.cancel).cancel()
    assert len(clock._due) < 2000


async def test_setting_the_clock_forwards_lets_time_pass_and_backwards_does_not() -> None:
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    task = spawn(clock.sleep(60), "sleeper")
    await asyncio.sleep(0)
    await clock.set(datetime(2029, 1, 1, tzinfo=UTC))
    assert to_datetime(clock.now()).year == 2029
    assert (clock.monotonic(), task.done()) == (0, False)
    await clock.set(datetime(2029, 1, 1, 0, 1, tzinfo=UTC))
    assert (clock.monotonic(), task.done()) == (60, True)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-SECOND)


async def test_another_thread_may_move_the_clock() -> None:
    clock = ManualClock()
    task = spawn(clock.sleep(1), "sleeper")
    await asyncio.sleep(0)
    thread = threading.Thread(target=clock.advance, args=(SECOND,))
    thread.start()
    await asyncio.wait_for(task, 10)
    thread.join()


def test_a_clock_outlives_the_loops_of_its_waiters() -> None:
    clock = ManualClock()

    async def ask() -> None:
        clock.call_later(1, lambda: pytest.fail("nobody waits there any more"))

    asyncio.run(ask())
    clock.advance(SECOND)
