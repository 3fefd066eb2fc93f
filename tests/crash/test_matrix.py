"""Every journey, crashed at every named point and every store boundary that it passes.

A crash here drops all that the ledger holds in memory, in this process; `test_kill` does it to real ones. Whoever
comes after opens the ledger anew and goes on, and at the end nothing has happened twice, nothing is lost, and the
output is that of a journey nobody interrupted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.crash.journeys import JOURNEYS, Journey, inspect, place
from tests.stage import Stage

import holdfast
from holdfast.testing import Crashed, crash, crash_points
from holdfast.testing.boundaries import Boundaries

LIFE_SECONDS_MAX = 20
HITS_MAX = 3
"""Of a point that is passed more often only the first, one in the middle and the last pass are crashed."""

DIED = object()

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    stage = Stage(ledger, tmp_path)
    place(stage.outside)
    return stage


async def live(stage: Stage, journey: Journey, id: str, meet: Callable[[holdfast.Holdfast], Any]) -> Any:
    """Go on with a journey in a fresh process; return its output, or `DIED`."""
    hf = stage.open(**journey.config)
    try:
        async with asyncio.timeout(LIFE_SECONDS_MAX), hf:
            with ExitStack() as stack:
                fate = meet(hf)
                if hasattr(fate, "__enter__"):
                    stack.enter_context(fate)
                return await journey.drive(hf, id)
    except (Crashed, asyncio.CancelledError, holdfast.StoreError):
        if hf.crashed:  # whatever a dying process sees, nobody hears of it
            return DIED
        raise


async def rehearse(stage: Stage, journey: Journey) -> tuple[Any, dict[str, int]]:
    """Go a journey without a crash; return its output and how often each point was passed."""
    if journey.prepare is not None:
        await journey.prepare(stage, "rehearsal")
    with ExitStack() as stack:
        armed = [stack.enter_context(crash(point, 10**9)) for point in crash_points()]
        output = await live(stage, journey, "rehearsal", lambda hf: None)
    await check(stage, journey, "rehearsal", deaths=0)
    return output, {each.name: each.passed for each in armed if each.passed}


async def check(stage: Stage, journey: Journey, id: str, *, deaths: int) -> None:
    async with stage.open() as hf:
        await inspect(hf, journey, id, deaths=deaths + (journey.prepare is not None))


@contextmanager
def told(where: str) -> Iterator[None]:
    """Name the place of the crash in whatever fails after it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"after the crash at {where}")
        raise


def hits(count: int) -> list[int]:
    return list(range(1, count + 1)) if count <= HITS_MAX else [1, (count + 1) // 2, count]


@pytest.mark.parametrize("name", JOURNEYS)
async def test_a_journey_survives_a_crash_at_every_named_point(stage: Stage, name: str) -> None:
    journey = JOURNEYS[name]
    expected, passed = await rehearse(stage, journey)
    assert len(passed) > 8
    for point, count in passed.items():
        for hit in hits(count):
            id = f"{point}:{hit}"
            with told(id):
                if journey.prepare is not None:
                    await journey.prepare(stage, id)
                output = await live(stage, journey, id, lambda hf, at=(point, hit): crash(*at, "raise"))
                if output is DIED:
                    output = await live(stage, journey, id, lambda hf: None)
                else:  # it took another way this time, which is no less a journey
                    assert hit > 1
                assert output == expected
                await check(stage, journey, id, deaths=1)


@pytest.mark.parametrize("name", JOURNEYS)
async def test_a_journey_survives_a_crash_at_every_store_boundary(stage: Stage, name: str) -> None:
    journey = JOURNEYS[name]
    expected, _ = await rehearse(stage, journey)
    for number in range(1, 1000):
        id = f"boundary-{number}"
        met: list[Boundaries] = []
        if journey.prepare is not None:
            await journey.prepare(stage, id)
        output = await live(stage, journey, id, lambda hf, at=number, met=met: met.append(Boundaries(hf, at)))
        with told(f"boundary {number}, {met[0].passed[-1]}"):
            if output is not DIED:
                assert output == expected
                assert number > 5
                return
            output = await live(stage, journey, id, lambda hf: None)
            assert output == expected
            await check(stage, journey, id, deaths=1)
    raise AssertionError("the journey has no end")
