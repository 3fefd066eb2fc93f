"""So many bodies are let in at a time; who finds no place in time is told to come again, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from holdfast.core.loops import spawn
from holdfast.sessions.admission import Admission, Place
from holdfast.sessions.config import SessionsConfig
from holdfast.sessions.errors import SaturatedBytes, SaturatedItems, Stopping
from holdfast.testing import ManualClock

PAST = timedelta(milliseconds=251)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def door(clock: ManualClock, **limits: int) -> Admission:
    return Admission(SessionsConfig(**{"inflight_items_max": 2, "inflight_bytes_max": 1024, **limits}), clock)


@asynccontextmanager
async def entered(admission: Admission) -> AsyncIterator[Place]:
    place = await admission.enter()
    try:
        yield place
    finally:
        place.leave()


async def held(admission: Admission, size: int, leave: asyncio.Event) -> None:
    async with entered(admission) as place:
        await place.grow(size)
        await leave.wait()


async def test_who_finds_no_place_in_time_is_told_so(clock: ManualClock) -> None:
    """SA-29."""
    admission = door(clock, inflight_items_max=1)
    async with entered(admission):
        waiting = spawn(held(admission, 0, asyncio.Event()), "waiting")
        await clock.advance(timedelta(0))
        await clock.advance(PAST)
        with pytest.raises(SaturatedItems):
            await waiting
    async with entered(admission):
        pass
    assert admission.items.held == 0


async def test_bytes_are_counted_as_they_come(clock: ManualClock) -> None:
    """SA-29."""
    admission = door(clock)
    async with entered(admission) as one:
        await one.grow(600)
        waiting = spawn(held(admission, 600, asyncio.Event()), "waiting")
        await clock.advance(timedelta(0))
        await clock.advance(PAST)
        with pytest.raises(SaturatedBytes):
            await waiting
        await one.grow(400)
    assert (admission.items.held, admission.weight.held) == (0, 0)


async def test_a_place_that_is_left_goes_to_who_waits_longest(clock: ManualClock) -> None:
    admission, leave = door(clock), asyncio.Event()
    async with entered(admission) as one:
        await one.grow(1000)
        large = spawn(held(admission, 1024, leave), "large")
        await clock.advance(timedelta(milliseconds=10))
        assert admission.weight.held == 1000
    await clock.advance(timedelta(milliseconds=10))
    assert admission.weight.held == 1024
    leave.set()
    await large


async def test_a_body_that_outweighs_the_limit_is_let_in_alone(clock: ManualClock) -> None:
    admission = door(clock)
    async with entered(admission) as place:
        await place.grow(1000)
        await place.grow(5000)
        assert admission.weight.held == 6000


async def test_who_goes_away_while_waiting_holds_up_nobody(clock: ManualClock) -> None:
    admission, leave = door(clock), asyncio.Event()
    async with entered(admission) as one:
        await one.grow(1000)
        gone = spawn(held(admission, 1024, leave), "gone")
        await clock.advance(timedelta(milliseconds=1))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        async with entered(admission) as two:
            await two.grow(24)
            assert admission.weight.held == 1024
    assert (admission.items.held, admission.weight.held) == (0, 0)


async def test_a_closed_door_lets_nobody_in(clock: ManualClock) -> None:
    """SA-28."""
    admission, leave = door(clock, inflight_items_max=1), asyncio.Event()
    inside = spawn(held(admission, 1, leave), "inside")
    await clock.advance(timedelta(milliseconds=1))
    waiting = spawn(held(admission, 1, leave), "waiting")
    await clock.advance(timedelta(milliseconds=1))
    admission.close()
    with pytest.raises(Stopping):
        async with entered(admission):
            pass
    leave.set()
    await inside
    with pytest.raises(Stopping):
        await waiting
    assert admission.items.held == 0
