"""Owners: the lock file, the lease, and telling the dead from the living."""

# ruff: noqa: ASYNC240 - the files are the tests' own, and small
from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.store.notes import notes, open_notes, until
from tests.store.processes import Program

from holdfast.core import points
from holdfast.core.errors import StoreError
from holdfast.store import owners
from holdfast.store.owners import Alive, Dead, Unknown, probe
from holdfast.store.sqlite import SqliteDatabase
from holdfast.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test enters here ends with it."""
    with ExitStack() as stack:
        yield stack


async def row_of(database: SqliteDatabase, owner_id: str) -> Any:
    async with database.read() as tx:
        rows = {row.owner_id: row for row in await tx.all("owners.list")}
    return rows.get(owner_id)


async def test_an_owner_holds_its_lock_before_it_has_a_row(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with notes(path) as database:
        owner = database.owner
        assert not owner.fresh()
        assert not Path(path + ".owners").exists()
        held: list[bool] = []
        renew = owner.renew

        async def watched() -> None:
            held.append(owner.lock_path is not None and isinstance(probe(owner), Alive))
            await renew()

        monkeypatch.setattr(owner, "renew", watched)
        assert await asyncio.gather(owner.ensure(), owner.ensure()) == [owner.id] * 2
        assert held == [True]
        assert owner.fresh()
        row = await row_of(database, owner.id)
        assert row.pid == os.getpid()
        assert row.machine_id == owners.machine_id()
        assert row.lock_path == str(Path(path + ".owners") / owner.id)
        assert stat.S_IMODE(os.stat(row.lock_path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path + ".owners").st_mode) == 0o700
        assert isinstance(probe(row), Alive), "to itself, too"


async def test_an_owner_that_closes_removes_its_row_and_file(path: str, stack: ExitStack) -> None:
    async with notes(path) as other:
        process = stack.enter_context(Program("own", path))
        owner_id = await process.hear()
        row = await row_of(other, owner_id)
        assert isinstance(probe(row), Alive)
        process.say()
        assert process.finish() == []
        assert await row_of(other, owner_id) is None
        assert not Path(row.lock_path).exists()
        assert probe(row) == Unknown(), "there is no file: the lease decides"


async def test_a_killed_owner_is_dead_at_once(path: str, stack: ExitStack) -> None:
    async with notes(path) as database:
        process = stack.enter_context(Program("own", path))
        row = await row_of(database, await process.hear())
        process.process.send_signal(signal.SIGSTOP)
        assert isinstance(probe(row), Alive), "a stopped process is alive"
        process.kill()
        dead = probe(row)
        assert isinstance(dead, Dead)
        assert isinstance(probe(row), Alive), "whoever holds the lock keeps others away"
        async with database.write() as tx:
            assert await tx.run("owners.end", [(row.owner_id,)]) == 1
        dead.lock.remove()
        dead.lock.remove()
        assert not dead.lock.held
        assert not Path(row.lock_path).exists()
        assert (await row_of(database, row.owner_id)).lease_until == 0
        assert probe(row) == Unknown()


async def test_a_claim_that_failed_lets_go_of_the_lock(path: str, stack: ExitStack) -> None:
    async with notes(path) as database:
        process = stack.enter_context(Program("own", path))
        row = await row_of(database, await process.hear())
        process.kill()
        first = probe(row)
        assert isinstance(first, Dead)
        first.lock.release()
        second = probe(row)
        assert isinstance(second, Dead)
        second.lock.remove()


async def test_a_forked_child_keeps_no_lock_of_a_dead_parent(path: str, stack: ExitStack) -> None:
    async with notes(path) as database:
        process = stack.enter_context(Program("own_and_fork", path))
        row = await row_of(database, await process.hear())
        assert await process.hear() == "forked"
        assert isinstance(probe(row), Alive)
        process.kill()
        dead = probe(row)  # its child is still there
        assert isinstance(dead, Dead)
        dead.lock.remove()
        process.say()


async def test_a_started_program_inherits_no_lock(path: str) -> None:
    database = await open_notes(path)
    await database.owner.ensure()
    row = await row_of(database, database.owner.id)
    started = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    )
    try:
        assert started.stdout is not None
        started.stdout.readline()  # the kernel closes descriptors on exec a moment after it lets the parent go on
        database.abandon()
        dead = probe(row)
        assert isinstance(dead, Dead)
        dead.lock.remove()
    finally:
        started.communicate(b"\n")


async def test_an_owner_renews_its_lease(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, lease_ms=3000, renew_ms=1000) as database:
        await database.owner.ensure()
        first = (await row_of(database, database.owner.id)).lease_until
        assert first == clock.now() + 3_000_000
        lease = database.owner._lease
        await clock.advance(timedelta(seconds=1))
        await until(lambda: database.owner._lease is not lease)
        assert (await row_of(database, database.owner.id)).lease_until == first + 1_000_000


async def test_an_owner_that_could_not_renew_is_not_fresh_until_it_has(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock, lease_ms=3000, renew_ms=1000) as database:
        owner = database.owner
        await owner.ensure()
        async with database.write():  # nobody else gets to write
            await clock.advance(timedelta(milliseconds=1999))
            assert owner.fresh()
            await clock.advance(timedelta(milliseconds=1))
            assert not owner.fresh()
        await until(owner.fresh)
        assert (await row_of(database, owner.id)).lease_until == clock.now() + 3_000_000


async def test_a_row_that_somebody_removed_comes_back_with_the_next_renewal(path: str) -> None:
    async with notes(path) as database:
        await database.owner.ensure()
        async with database.write() as tx:
            await tx.run("owners.delete", [(database.owner.id,)])
        await database.owner.renew()
        assert (await row_of(database, database.owner.id)).pid == os.getpid()


async def test_in_memory_there_is_no_lock_and_the_lease_decides() -> None:
    async with notes(":memory:") as database:
        await database.owner.ensure()
        assert database.owner.fresh()
        row = await row_of(database, database.owner.id)
        assert row.lock_path is None
        assert probe(row) == Unknown()


async def test_where_no_file_can_be_made_the_lease_decides(path: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(path + ".owners").touch()
    async with notes(path) as database:
        await database.owner.ensure()
        assert (await row_of(database, database.owner.id)).lock_path is None
    assert "owner file" in caplog.text


async def test_where_files_cannot_be_locked_the_lease_decides(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    async with notes(path) as database:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", unsupported)
            await database.owner.ensure()
        row = await row_of(database, database.owner.id)
        assert row.lock_path is None
        assert list(Path(path + ".owners").iterdir()) == []
    assert "cannot be locked" in caplog.text


async def test_owner_files_go_where_they_are_told(path: str, tmp_path: Path) -> None:
    async with notes(path, owner_dir=tmp_path / "a" / "b") as database:
        await database.owner.ensure()
        assert database.owner.lock_path == str(tmp_path / "a" / "b" / database.owner.id)


async def test_an_abandoned_owner_leaves_row_and_file_and_is_dead(path: str) -> None:
    database = await open_notes(path)
    await database.owner.ensure()
    owner_id = database.owner.id
    database.abandon()
    assert not database.owner.fresh()
    async with notes(path) as database:
        assert database.owner.id != owner_id
        dead = probe(await row_of(database, owner_id))
        assert isinstance(dead, Dead)
        dead.lock.release()


@pytest.mark.parametrize("point", ["lock.created", "lock.locked"])
async def test_a_crash_at_the_lock_leaves_no_row(path: str, point: str) -> None:
    database = await open_notes(path)
    armed = points.arm(point, 1, "raise")
    try:
        with pytest.raises(points.Crashed):
            await database.owner.ensure()
    finally:
        points.disarm(armed)
    async with notes(path) as database:
        assert await row_of(database, database.owner.id) is None
        async with database.read() as tx:
            assert await tx.all("owners.list") == []
        await database.owner.ensure()


async def test_an_owner_that_cannot_write_its_row_says_so_and_may_try_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with notes(path) as database:
        with monkeypatch.context() as patch:
            patch.setattr(database, "write", lambda: (_ for _ in ()).throw(StoreError("no")))
            with pytest.raises(StoreError):
                await database.owner.ensure()
        assert not database.owner.fresh()
        await database.owner.ensure()
        assert len(list(Path(path + ".owners").iterdir())) == 1
