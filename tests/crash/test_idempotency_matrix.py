"""Keyed requests of the modes `separate` and `execution`, crashed at every named point and every store boundary.

A crash here drops all that the process holds in memory, in this process; `test_idempotency_processes` kills real ones.
Whoever comes after makes the request again, and it comes to what the record says: an answer, a further run, or
`outcome_unknown`. Mode `transaction` is in `test_idempotency_transaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.crash.keyed import DIED, Journey, Life, World, opened, reconciled, until_death
from tests.flow.guards import SECRET
from tests.stage import Stage, halves

from holdfast.testing import Crashed, CrashingDatabase, crash, crash_points
from holdfast.testing.boundaries import Boundaries

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)

RERUN = {"on_lapse": "rerun"}
EXECUTE = {"mode": "execution"}
OURS = ("keys", "handler", "response", "sweep", "pruned", "forced")
"""Whose points are passed here; those of executions have a matrix of their own."""
JOURNEYS = {
    "rerun": Journey(("ask", "ask"), RERUN),
    "ambiguous": Journey(("ask", "ask")),
    "irreversible": Journey(("ask", "ask"), RERUN, handler="marked"),
    "released after 429": Journey(("ask", "ask", "ask"), handler="busy_at_first"),
    "released after an exception": Journey(("ask", "ask"), RERUN, handler="broken_at_first"),
    "unknown after 503": Journey(
        ("ask", "ask", "decide", "ask"), {"on_5xx": "ambiguous"}, handler="unsure_at_first"
    ),
    "declared": Journey(("ask", "ask"), handler="declared"),
    "streamed": Journey(("ask", "ask"), {**RERUN, "stream": True}),
    "not kept": Journey(("ask", "ask"), RERUN, handler="unkept"),
    "longer than its lease": Journey(("ask", "ask"), RERUN, handler="long"),
    "two secrets": Journey(("ask", "ask"), RERUN, {"secrets": [b"n" * 32, SECRET]}),
    "taken over": Journey(("ask", "ask"), RERUN, before="handler.returned"),
    "found lapsed": Journey(("ask", "decide", "ask"), before="handler.entered"),
    "swept": Journey(("sweep", "ask", "decide", "ask"), before="keys.settling"),
    "reconciled": Journey(("sweep", "ask"), settings={"reconcile": reconciled}, before="handler.returned"),
    "expired": Journey(("ask", "outlive", "sweep", "ask"), RERUN),
    "a call": Journey(("once", "once"), RERUN),
    "an ambiguous call": Journey(("once", "once")),
    "executed": Journey(("ask", "ask"), EXECUTE, handler="execute"),
    "executed and taken over": Journey(("ask", "ask"), EXECUTE, handler="execute", before="handler.entered"),
    "executed and swept": Journey(("sweep", "ask"), EXECUTE, handler="execute", before="handler.returned"),
}  # fmt: skip


class Relay:
    """A journey crashed again and again: each process ends what the one before has left, and dies on its own way."""

    def __init__(self, stage: Stage, journey: Journey) -> None:
        self.stage = stage
        self.journey = journey
        self.world = World()
        self._left: list[str] = []

    async def live(self, id: str, meet: Callable[[Any], AbstractContextManager[Any]]) -> bool:
        """Finish what was left, then go on the journey to meet a fate; say whether it was death."""
        if self.journey.before:
            assert await self._life(id, ("ask",), lambda _: crash(self.journey.before, 1, "raise"))
        return await self._life(id, self.journey.acts, meet)

    async def finish(self) -> None:
        assert not await self._life("", (), lambda _: nullcontext())

    async def _life(self, id: str, acts: tuple[str, ...], meet: Callable[[Any], AbstractContextManager[Any]]) -> bool:
        died = False
        try:
            async with opened(self.stage, self.world) as hf:
                while self._left and self._left[-1] != id:
                    await self._finish(hf, self._left.pop())
                with told(id):
                    died = await until_death(hf, lambda: self._go(hf, id, acts, meet)) is DIED
        except Crashed:
            died = True
        if died:
            self.world.deaths[id] += 1
            if id not in self._left:
                self._left.append(id)
        return died

    async def _finish(self, hf: Any, id: str) -> None:
        life = Life(self.world, self.journey, hf, hf.database, hf.database)
        with told(id):
            await life.finish(id)
        await life.guard.stop(timedelta(0))

    async def _go(
        self, hf: Any, id: str, acts: tuple[str, ...], meet: Callable[[Any], AbstractContextManager[Any]]
    ) -> None:
        inner = hf.database
        with meet(hf) as met:
            database = met if isinstance(met, CrashingDatabase) else hf.database
            life = Life(self.world, self.journey, hf, inner, database)
            await life.guard.start()
            for act in acts:
                await getattr(life, act)(id)
            await life.guard.stop(timedelta(0))

    def meet_boundary(self, number: int) -> Callable[[Any], AbstractContextManager[Any]]:
        """Die at a boundary between the guard and the store; in one journey, of an execution's journal too."""
        if self.journey is JOURNEYS["executed"]:
            return lambda hf: nullcontext(Boundaries(hf, number))
        return lambda hf: nullcontext(CrashingDatabase(hf.database, number))


@contextmanager
def counted(passed: dict[str, int]) -> Iterator[None]:
    """Count how often each point is passed."""
    with ExitStack() as stack:
        armed = [stack.enter_context(crash(point, 10**9)) for point in crash_points()]
        yield
        passed.update({each.name: each.passed for each in armed if each.passed})


@contextmanager
def told(where: str) -> Iterator[None]:
    """Name the place of the crash in whatever fails after it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"after the crash at {where}")
        raise


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


@pytest.mark.parametrize(("ledger", "name"), halves(*JOURNEYS), indirect=["ledger"])
async def test_a_keyed_request_survives_a_crash_at_every_store_boundary(stage: Stage, name: str) -> None:
    relay = Relay(stage, JOURNEYS[name])
    number = 1
    while await relay.live(f"boundary-{number}-of-it", relay.meet_boundary(number)):
        number += 1
    assert number > 5
    await relay.finish()


@pytest.mark.parametrize(
    ("ledger", "name", "passes"),
    [
        *(pytest.param("sqlite-file", name, "ends", id=f"{name}-first and last pass") for name in list(JOURNEYS)[::2]),
        *(
            pytest.param(
                *(ledger, name, "all"),
                id=f"{ledger}-{name}-each pass",
                marks=[pytest.mark.torture, pytest.mark.timeout(600)],
            )
            for ledger in ("sqlite-file", "postgres")
            for name in JOURNEYS
        ),
    ],
    indirect=["ledger"],
)
async def test_a_keyed_request_survives_a_crash_at_every_named_point(stage: Stage, name: str, passes: str) -> None:
    relay = Relay(stage, JOURNEYS[name])
    passed: dict[str, int] = {}
    assert not await relay.live("a-rehearsal-of-it", lambda _: counted(passed))
    ours = {point: count for point, count in passed.items() if passes == "all" or point.split(".")[0] in OURS}
    assert len(ours) > 1
    for point, count in ours.items():
        for hit in sorted({1, count}) if passes == "ends" else range(1, count + 1):
            died = await relay.live(f"{point}:{hit}-of-it", lambda _, at=(point, hit): crash(*at, "raise"))
            assert died or point.startswith("lock.")
    await relay.finish()


async def test_every_point_of_the_slice_is_passed_by_some_journey(stage: Stage) -> None:
    """But for those of transactions and of the client's journal, which have their own tests."""
    passed: dict[str, int] = {}
    for number, journey in enumerate(JOURNEYS.values()):
        if "secrets" not in journey.settings:  # whoever lacks one of them could not use the ledger any more
            assert not await Relay(stage, journey).live(f"a-rehearsal-of-{number:03}", lambda _: counted(passed))
    ours = {point for point in crash_points() if point.split(".")[0] in OURS}
    assert ours - passed.keys() == set()
