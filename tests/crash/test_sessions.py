"""A call on its way from its sender to its turn, crashed at every named point and every boundary to the store.

The sender sends again what was not acknowledged, whoever comes after derives what waits, and at the end the call is
one turn, its session counts it once, and nothing is pending.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.flow.captured import archive, call
from tests.flow.commandline import ask
from tests.tree import ROOT

from holdfast.core.clock import SystemClock
from holdfast.sessions.archive.rows import read_session
from holdfast.sessions.config import SessionsConfig
from holdfast.sessions.facade import Archive
from holdfast.sessions.values import LOCAL, Duplicate, Stored
from holdfast.store import StoreSettings, open_database
from holdfast.testing import Crashed, crash
from holdfast.testing.boundaries import CrashingDatabase

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)

POINTS = ("accepting", "accepted", "deriving", "derived", "folding", "committed")


class World:
    """A ledger that outlives whoever works on it; each call has a name, and a session of its own."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target = target
        self.folder = folder

    async def open(self) -> Any:
        settings = StoreSettings(owner_dir=self.folder / "owners")
        return await open_database(self.target, clock=SystemClock(), settings=settings)

    def books(self, database: Any) -> Archive:
        return archive(database, config=SessionsConfig(secret_file=self.folder / "secret"))

    async def live(self, name: str, fate: AbstractContextManager[Any], dies_at: int | None = None) -> bool:
        """Send a call and derive it, or die; say whether that was survived."""
        database = await self.open()
        try:
            with fate:
                books = self.books(CrashingDatabase(database, dies_at))
                await books.ingest(call(name, session=name))
                await books.derive()
        except Crashed:
            database.abandon()
            return False
        await database.close()
        return True

    async def judge(self, name: str, *, sent: bool = True) -> None:
        """Send the call again if its sender would, derive what waits, and see that all is well."""
        database = await self.open()
        try:
            books = self.books(database)
            if sent:
                assert isinstance(await books.ingest(call(name, session=name)), Stored | Duplicate)
            assert (await books.derive()).pending == 0
            again = await books.ingest(call(name, session=name))
            assert isinstance(again, Duplicate)
            assert again.session_id is not None
            org = LOCAL.org_id.bytes
            async with database.read() as tx:
                row = await tx.one("sessions.find", org=org, harness_id="claude", harness_session_id=name)
            assert row is not None
            fold = read_session(row.fold)
            assert (fold.turn_count, fold.tokens["input"], fold.tokens["output"]) == (1, (1, 5), (1, 2))
        finally:
            await database.close()


@pytest.fixture
def world(ledger: str, tmp_path: Path) -> Iterator[World]:
    world = World(ledger, tmp_path)
    yield world
    answer = ask("verify", "--slice", "sessions", "--db", ledger)
    assert answer.code == 0, answer


async def test_a_call_survives_a_crash_at_every_named_point(world: World) -> None:
    """SA-8, SA-25, SA-56."""
    for point in POINTS:
        assert not await world.live(point, crash(f"sessions.{point}", 1, "raise")), point
        await world.judge(point)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.torture)])
async def test_a_call_survives_a_crash_at_store_boundaries(world: World, step: int) -> None:
    """SA-25: between any two statements of accept and derive."""
    boundary = 1
    while not await world.live(name := f"boundary-{boundary}", nullcontext(), boundary):
        await world.judge(name)
        boundary += step
    assert boundary > 15


SENDER = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.crash.test_sessions import World, call

async def main() -> None:
    world = World(sys.argv[1], Path(sys.argv[2]))
    books = world.books(await world.open())
    print((await books.ingest(call("a", session="a"))).event_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_acknowledged_outlives_a_kill(world: World) -> None:
    """SA-26: nobody sends it again."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SENDER, world.target, str(world.folder), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert told.startswith(b"cap_")
    await world.judge("a", sent=False)
