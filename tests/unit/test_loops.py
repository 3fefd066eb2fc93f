"""Supervised background work."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from datetime import timedelta
from itertools import pairwise

import pytest

from holdfast.core.errors import StoreError
from holdfast.core.loops import Loop, Tasks, spawn
from holdfast.core.points import Crashed
from holdfast.testing import ManualClock


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_loop_repeats_after_each_pause() -> None:
    clock, rounds = ManualClock(), []

    async def body() -> None:
        rounds.append(clock.monotonic())

    loop = Loop("rounds", body, 2.0, clock)
    loop.start()
    loop.start()
    await turns()
    assert rounds == [0]
    await clock.advance(timedelta(seconds=1))
    assert rounds == [0]
    await clock.advance(timedelta(seconds=1))
    assert rounds == [0, 2]
    loop.wake()
    await turns()
    assert rounds == [0, 2, 2]
    await loop.stop()
    await loop.stop()
    loop.wake()
    await clock.advance(timedelta(seconds=9))
    assert len(rounds) == 3


async def test_a_wake_during_a_round_starts_the_next_at_once() -> None:
    clock, rounds = ManualClock(), []

    async def body() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            loop.wake()

    loop = Loop("woken", body, 60.0, clock)
    loop.start()
    await turns()
    assert rounds == [0, 1]
    await loop.stop()


async def test_a_failing_loop_backs_off_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    clock, rounds = ManualClock(), []
    failing = True

    async def body() -> None:
        rounds.append(round(clock.monotonic(), 1))
        if failing:
            raise ValueError("quotes a secret") if len(rounds) % 2 else StoreError("the disk is full")

    loop = Loop("shaky", body, 1.0, clock)
    loop.start()
    await turns()
    for _ in range(250):
        await clock.advance(timedelta(milliseconds=100))
    gaps = [round(b - a, 1) for a, b in pairwise(rounds)]
    assert gaps[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert "store.error: the disk is full" in caplog.text
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
    failing = False
    await clock.advance(timedelta(seconds=5))
    seen = len(rounds)
    await clock.advance(timedelta(seconds=1))
    assert len(rounds) == seen + 1
    await loop.stop()


async def test_a_loop_ends_in_the_middle_of_a_round() -> None:
    ended = asyncio.Event()

    async def body() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop = Loop("stuck", body, 1.0, ManualClock())
    await loop.stop()
    loop.start()
    await turns()
    await loop.stop()
    assert ended.is_set()


async def test_a_crash_ends_the_loop() -> None:
    async def body() -> None:
        raise Crashed("here")

    loop = Loop("crashing", body, 1.0, ManualClock())
    loop.start()
    await turns()
    assert loop._task is not None
    assert isinstance(loop._task.exception(), Crashed)
    await loop.stop()


async def test_a_loop_may_stop_itself() -> None:
    async def body() -> None:
        await loop.stop()
        done.set()

    done = asyncio.Event()
    loop = Loop("suicidal", body, 1.0, ManualClock())
    loop.start()
    await asyncio.wait_for(done.wait(), 10)
    await loop.stop()


async def test_tasks_end_together(caplog: pytest.LogCaptureFixture) -> None:
    clock, tasks = ManualClock(), Tasks()
    tasks.spawn(clock.sleep(1), "short")
    long = tasks.spawn(clock.sleep(9), "long")

    async def fail() -> None:
        raise ValueError("quotes a secret")

    with caplog.at_level(logging.WARNING, "holdfast"):
        tasks.spawn(fail(), "failing")
        await turns()
    assert "failing failed: ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert len(tasks) == 2
    draining = spawn(tasks.drain(clock, 5), "drain")
    await turns()
    await clock.advance(timedelta(seconds=5))
    assert await draining is False
    assert len(tasks) == 1
    await tasks.stop()
    assert long.cancelled()
    await tasks.stop()
    assert await tasks.drain(clock, 0) is True
    await turns()
    assert len(tasks) == 0


async def test_a_running_task_is_not_collected() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    reference = weakref.ref(spawn(forever(), "kept"))
    await turns()
    gc.collect()
    task = reference()
    assert task is not None
    assert task.get_name() == "kept"
    task.cancel()
    await asyncio.wait([task])
