"""An event on its way to its client, crashed at every named point and every boundary to the store.

Whoever comes after dispatches the event again, and at the end the client was asked at most once, the event has one
receipt, no number is missing, and nothing is pending.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import ask
from tests.unit.plans import context, request, response

from holdfast.core.clock import SystemClock
from holdfast.lifecycle import CallbackRequest, CallbackResponse, LifecycleReceipt, Registry, Router
from holdfast.lifecycle import ledger as receipts
from holdfast.store import Database, StoreSettings, open_database
from holdfast.testing import Crashed, crash
from holdfast.testing.boundaries import CrashingDatabase

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)

POINTS = [f"lifecycle.{name}" for name in ("claimed", "dispatching", "answered", "settling", "settled")]


class World:
    """A ledger, and clients that outlive whoever asks them."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self.asked: list[str] = []
        self.number = 0

    async def client(self, about: CallbackRequest, payloads: tuple[Any, ...]) -> CallbackResponse:
        assert about.idempotency_key is not None
        self.asked.append(about.idempotency_key)
        return response()

    async def dispatch(
        self, name: str, database: Database, *, asks: bool, ambiguous: Any = "close"
    ) -> LifecycleReceipt:
        router = Router(database, registry=Registry.builtin(), clock=database.clock, ambiguous=ambiguous)
        made = await router.dispatch(
            request(idempotency_key=name), client=self.client if asks else None, context=context(receipt_id=name)
        )
        return made.receipt

    async def live(
        self, name: str, fate: AbstractContextManager[Any], dies_at: int | None, *, asks: bool
    ) -> int | None:
        """Dispatch an event and die; return how many boundaries were passed, None for a death."""
        database = await self.open()
        crashing = CrashingDatabase(database, dies_at)
        try:
            with fate:
                await self.dispatch(name, crashing, asks=asks)
        except Crashed:
            database.abandon()  # its lock is let go, and nothing else
            return None
        await database.close()
        return crashing.boundaries

    async def open(self) -> Any:
        return await open_database(self.target, clock=SystemClock(), settings=StoreSettings(owner_dir=self.folder))

    async def judge(self, name: str, *, asks: bool, ambiguous: str = "close") -> None:
        """Dispatch the event again, and see that all is well."""
        self.number += 1
        database = await self.open()
        try:
            before = self.asked.count(name)
            receipt = await self.dispatch(name, database, asks=asks, ambiguous=ambiguous)
            again = await self.dispatch(name, database, asks=asks, ambiguous=ambiguous)
            assert again == receipt
            async with database.read() as tx:
                stored = await receipts.show(tx, name)
                assert [each.receipt for each in stored] == [receipt]
                assert await receipts.pending(tx) == []
                assert await receipts.gaps(tx) == []
                assert isinstance(await receipts.verify(tx), receipts.Verified)
            assert receipt.sequence == self.number
            unknown = any(each["code"] == "outcome_unknown" for each in receipt.warnings)
            count = self.asked.count(name)
            if ambiguous == "close":
                assert count <= 1
                # The client was asked and its answer is there, or nobody knows whether it was asked.
                assert unknown or count == int(asks)
                assert not (unknown and count > before)
            else:
                assert not unknown
                assert 1 <= count <= 2
        finally:
            await database.close()


@pytest.fixture
def world(ledger: str, tmp_path: Path) -> Iterator[World]:
    world = World(ledger, tmp_path / "owners")
    yield world
    answer = ask("verify", "--db", world.target)
    assert answer.code == 0, answer


@pytest.mark.parametrize("ambiguous", ["close", "rerun"])
async def test_an_event_survives_a_crash_at_every_named_point(world: World, ambiguous: str) -> None:
    """LA-42, LA-68."""
    for point in POINTS:
        assert await world.live(point, crash(point, 1, "raise"), None, asks=True) is None, point
        await world.judge(point, asks=True, ambiguous=ambiguous)


@pytest.mark.parametrize("asks", [True, pytest.param(False, marks=pytest.mark.torture)])
async def test_an_event_survives_a_crash_at_every_store_boundary(world: World, asks: bool) -> None:
    """LA-68."""
    boundary = 1
    while await world.live(name := f"boundary-{boundary:03}", nullcontext(), boundary, asks=asks) is None:
        await world.judge(name, asks=asks)
        boundary += 1
    assert boundary > 10
