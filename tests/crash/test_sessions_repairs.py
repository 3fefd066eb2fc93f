"""Repairs that die at a boundary to the store: what they leave is sound, and the next one finishes the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.flow.captured import CARDS, archive, call

from holdfast.core.clock import SystemClock
from holdfast.sessions import Attribution, Selector
from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.facade import Archive
from holdfast.store import StoreSettings, open_database
from holdfast.testing import Crashed
from holdfast.testing.boundaries import CrashingDatabase

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)

Open = Callable[..., AbstractAsyncContextManager[Archive]]


@pytest.fixture
def opened(ledger: str, tmp_path: Path) -> Open:
    """Open a ledger's archive; one that is to die leaves the ledger as a dead process does."""

    @asynccontextmanager
    async def open(dies_at: int | None = None, *, priced: bool = True) -> Any:
        settings = StoreSettings(owner_dir=tmp_path / "owners")
        database = await open_database(ledger, clock=SystemClock(), settings=settings)
        prices = Prices(cards=CARDS if priced else None, package=False)
        config = SessionsConfig(secret_file=tmp_path / "secret", prices=prices)
        try:
            yield archive(CrashingDatabase(database, dies_at), config=config)
        except Crashed:
            database.abandon()
            raise
        await database.close()

    return open


async def survives(opened: Open, work: Callable[[Archive], Awaitable[object]], step: int) -> list[str]:
    """Let some work die ever later until it does not any more; return the projections that it left."""
    left, boundary, done = [], 1, False
    while not done:
        try:
            async with opened(boundary) as books:
                await work(books)
                done = True
        except Crashed:
            boundary += step
        async with opened() as books:
            assert await books.verify() == []
            left.append(await books.projection_hash())
    return left


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.torture)])
async def test_a_repair_that_dies_leaves_a_sound_ledger_and_is_done_by_the_next(opened: Open, step: int) -> None:
    """SA-25, SA-52, SA-61: between any two statements of each repair."""
    async with opened(priced=False) as books:
        await books.ingest_many([call("a"), call("b", session="t"), call("c", session="t"), call("d", session="")])
        await books.derive()
        first = await books.projection_hash()
    assert set(await survives(opened, lambda books: books.rebuild(), step)) == {first}
    left = await survives(opened, lambda books: books.reprice(reason="r", dry_run=False), step)
    priced = left[-1]
    assert set(left) == {first, priced} != {first}
    chosen, change = Selector(session=("claude", "t")), Attribution(harness_session_id="s")
    left = await survives(opened, lambda books: books.attribute(chosen, change, reason="r", dry_run=False), step)
    put = left[-1]
    assert set(left) == {priced, put} != {priced}
    async with opened() as books:
        [made] = [each.attribution_id for each in await books.attributions()]
    left = await survives(opened, lambda books: books.undo_attribution(made), step)
    assert (left[-1], set(left)) == (priced, {priced, put})
