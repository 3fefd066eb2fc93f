"""Every journey, crashed at every named point and every store boundary that it passes.

A crash here drops all that the ledger holds in memory, in this process; `test_kill` does it to real ones. Whoever
comes after opens the ledger anew and goes on, and at the end nothing has happened twice, nothing is lost, and the
output is that of a journey nobody interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.crash.journeys import JOURNEYS, place
from tests.crash.lives import Relay, process
from tests.stage import Stage, halves

from holdfast.testing import crash
from holdfast.testing.boundaries import Boundaries

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    stage = Stage(ledger, tmp_path)
    place(stage.outside)
    return stage


@pytest.mark.parametrize(("ledger", "name"), halves(*JOURNEYS), indirect=["ledger"])
async def test_a_journey_survives_a_crash_at_every_named_point(stage: Stage, name: str) -> None:
    await crash_everywhere(stage, name, lambda count: {1, count})


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", JOURNEYS)
async def test_a_journey_survives_a_crash_at_each_pass_of_every_named_point(stage: Stage, name: str) -> None:
    await crash_everywhere(stage, name, lambda count: range(1, count + 1))


async def crash_everywhere(stage: Stage, name: str, passes: Callable[[int], Iterable[int]]) -> None:
    relay = Relay(stage, JOURNEYS[name])
    passed = await relay.rehearse()
    assert len(passed) > 8
    for point, count in passed.items():
        for hit in sorted(passes(count)):
            died = await relay.die(f"{point}:{hit}", lambda _, at=(point, hit): crash(*at, "raise"))
            assert died or hit > 1 or point.startswith("lock.")
    await process(stage, relay.journey, relay.finish)


@pytest.mark.parametrize(("ledger", "name"), halves(*JOURNEYS), indirect=["ledger"])
async def test_a_journey_survives_a_crash_at_every_store_boundary(stage: Stage, name: str) -> None:
    relay = Relay(stage, JOURNEYS[name])
    await relay.rehearse()
    number = 1
    while await relay.die(f"boundary-{number}", lambda hf: nullcontext(Boundaries(hf, number))):  # noqa: B023 - now
        number += 1
    assert number > 5
    await process(stage, relay.journey, relay.finish)
