"""The ledger in a SQLite file: opening, blocks, other processes, broken files, the log."""

# ruff: noqa: ASYNC240, PT012 - the files are the tests' own and small; what fails is often a block's end
from __future__ import annotations

import asyncio
import os
import shutil
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.store import processes
from tests.store.notes import count, listed, note, notes, open_notes, put, until
from tests.store.processes import Program

from holdfast.core.clock import SystemClock
from holdfast.core.errors import Busy, Closed, ConfigError, Conflict, SchemaMismatch, StoreError, Unavailable, WrongLoop
from holdfast.store import StoreSettings, migrate, open_database, sqlite, sqlite_log
from holdfast.store.sqlite import SqliteDatabase
from holdfast.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.fixture(params=["file", "memory"])
def target(request: pytest.FixtureRequest, path: str) -> str:
    return path if request.param == "file" else ":memory:"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test enters here ends with it."""
    with ExitStack() as stack:
        yield stack


async def open_reader(path: str) -> SqliteDatabase:
    database = await open_database(path, clock=SystemClock(), read_only=True)
    assert isinstance(database, SqliteDatabase)
    return database


def everything(path: str) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {file.name: file.read_bytes() for file in Path(path).parent.iterdir() if file.is_file()}


# Opening


async def test_a_new_ledger_is_private_durable_and_has_the_newest_schema(path: str) -> None:
    async with notes(path) as database:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path + "-wal").st_mode) == 0o600
        pragma = database.connection.pragma
        assert (pragma("journal_mode"), pragma("synchronous"), pragma("wal_autocheckpoint")) == ("wal", 2, 0)
        assert database.schema == len(migrate.load("sqlite"))
        assert len(database.namespace) == 16
        namespace = database.namespace
    async with notes(path) as database:
        assert database.namespace == namespace


async def test_a_namespace_can_be_given_and_must_match(path: str) -> None:
    clock = SystemClock()
    await (await open_database(path, clock=clock, namespace=b"n" * 16)).close()
    with pytest.raises(ConfigError):
        await open_database(path, clock=clock, namespace=b"m" * 16)
    with pytest.raises(ConfigError):
        await open_database(":memory:", clock=clock, namespace=b"short")


async def test_what_opens_the_same_ledger_shares_it(path: str, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    first = await open_notes(path)
    second, third = await asyncio.gather(open_notes(Path(path)), open_notes(tmp_path / "link.db"))
    assert first is second is third
    with pytest.raises(ConfigError, match="another clock"):
        await open_database(path, clock=ManualClock())
    await first.close()
    await second.close()
    await put(third, [note(1, 0)])
    await third.close()
    with pytest.raises(Closed):
        third.read()
    await third.close()
    fourth = await open_notes(path)
    assert fourth is not third
    await fourth.close()


async def test_memory_is_never_shared() -> None:
    async with notes(":memory:") as first, notes(":memory:") as second:
        await put(first, [note(1, 0)])
        assert await count(second) == 0


@pytest.mark.parametrize("target", ["", "mysql://host/db"])
async def test_a_target_that_makes_no_sense_is_refused(target: str) -> None:
    with pytest.raises(ConfigError):
        await open_database(target, clock=SystemClock())


def test_settings_out_of_range_are_refused() -> None:
    settings: tuple[dict[str, Any], ...] = ({"batch_items_max": 0}, {"renew_ms": 20_000})
    for wrong in settings:
        with pytest.raises(ConfigError):
            StoreSettings(**wrong)


async def test_an_application_may_have_its_tables_in_the_same_file(path: str) -> None:
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.close()
    async with notes(path) as database:
        await put(database, [note(1, 0)])
    connection = apsw.Connection(path)
    assert connection.execute("SELECT count(*) FROM orders").fetchall() == [(0,)]
    connection.close()


async def test_several_processes_may_make_the_same_ledger(path: str) -> None:
    with ExitStack() as stack:
        running = [stack.enter_context(Program("migrate", path)) for _ in range(4)]
        said = [program.finish() for program in running]
    assert all(each == said[0] for each in said)
    assert len(said[0][0]) == 32


async def test_every_thread_and_loop_but_its_own_is_refused(path: str) -> None:
    async with notes(path) as database:
        refused: list[type[BaseException]] = []

        def elsewhere() -> None:
            async def use() -> None:
                for action in (database.read, database.write, lambda: database.writer.offer(note(1, 0))):
                    try:
                        action()
                    except WrongLoop as error:
                        refused.append(type(error))

            asyncio.run(use())
            try:
                database.wake("c")
            except WrongLoop as error:
                refused.append(type(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(refused) == 4


async def test_a_forked_child_may_use_nothing_and_harms_nothing(path: str) -> None:
    assert processes.run("fork", path) == ["7", "[0, 1] True"]


# Blocks


async def test_a_write_block_commits_at_its_end_and_not_when_it_raises(target: str) -> None:
    async with notes(target) as database:
        async with database.write() as tx:
            assert await tx.run("notes.add", [(1, 0, b"a", 1), (1, 1, None, 1)]) == 2
        with pytest.raises(ZeroDivisionError):
            async with database.write() as tx:
                await tx.run("notes.add", [(1, 2, b"c", 1)])
                raise ZeroDivisionError
        with pytest.raises(Conflict):
            async with database.write() as tx:
                await tx.run("notes.add", [(1, 3, b"c", 1), (1, 0, b"again", 1)])
        async with database.read() as tx:
            rows = await tx.all("notes.list", run=1)
            assert [tuple(row) for row in rows] == [(1, 0, b"a"), (2, 1, None)]
            assert (rows[0].idx, rows[0].body) == (0, b"a")
            assert await tx.one("runs.guard", run=1, fence=1) is None
        with pytest.raises(StoreError, match="ended"):
            await tx.one("notes.count")


async def test_a_read_block_sees_one_state(path: str) -> None:
    async with notes(path) as database, database.read() as tx:
        assert (await tx.one("notes.count")).amount == 0
        await put(database, [note(1, 0)])
        async with database.write() as other:
            await other.run("notes.add", [(1, 1, b"", 1)])
        assert (await tx.one("notes.count")).amount == 0
        assert await count(database) == 2


async def test_in_memory_nobody_sees_what_is_not_committed() -> None:
    async with notes(":memory:") as database:
        async with database.write() as tx:
            await tx.run("notes.add", [(1, 0, b"", 1)])
            reading = asyncio.ensure_future(count(database))
            append = note(1, 1)
            database.writer.offer(append)
            for _ in range(5):
                await asyncio.sleep(0)
            assert not reading.done()
        assert await reading in (1, 2)
        assert append.future is not None
        await append.future


async def test_a_block_inside_ones_own_block_is_refused_and_not_waited_for(path: str) -> None:
    async with notes(path) as database:
        async with database.write():
            with pytest.raises(StoreError, match="inside"):
                async with database.write():
                    pass
        async with database.write():
            pass
    async with notes(":memory:") as database, database.read():
        with pytest.raises(StoreError, match="inside"):
            async with database.read():
                pass


async def test_write_blocks_and_appends_take_turns_in_order(path: str) -> None:
    async with notes(path) as database:
        order: list[str] = []

        async def block(name: str) -> None:
            async with database.write():
                order.append(name)
                await asyncio.sleep(0)

        first = asyncio.ensure_future(block("first"))
        await asyncio.sleep(0)
        database.writer.offer(note(1, 0, quiet=True, settled=lambda durable: order.append("append")))
        await asyncio.sleep(0)
        blocks = [first, *(asyncio.ensure_future(block(f"later {number}")) for number in range(3))]
        await asyncio.gather(*blocks)
        assert order == ["first", "append", "later 0", "later 1", "later 2"]


async def test_a_cancelled_block_leaves_nothing_and_passes_the_turn_on(path: str) -> None:
    async with notes(path) as database:
        entered = asyncio.Event()

        async def block() -> None:
            async with database.write() as tx:
                await tx.run("notes.add", [(1, 0, b"", 1)])
                entered.set()
                await asyncio.get_running_loop().create_future()

        holding = asyncio.ensure_future(block())
        await entered.wait()
        waiting = [asyncio.ensure_future(block()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        holding.cancel()
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.gather(holding, *waiting, return_exceptions=True)
        assert await count(database) == 0
        await put(database, [note(1, 0)])


async def test_a_slow_flush_is_made_on_the_thread_even_for_blocks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with notes(path) as database:
        database._flush_s = 1.0
        where: list[str] = []
        commit = database._commit
        monkeypatch.setattr(database, "_commit", lambda: (where.append(threading.current_thread().name), commit()))
        async with database.write() as tx:
            await tx.run("notes.add", [(1, 0, b"", 1)])
        await put(database, [note(1, idx) for idx in range(1, 3)])
        assert where == ["holdfast writer"] * 2
        for idx in range(3, 3 + sqlite.PROBE_EVERY):
            await put(database, [note(1, idx)])
        assert "MainThread" in where, "now and then one is made inline, to see"
        assert await count(database) == 3 + sqlite.PROBE_EVERY


async def test_wrong_parameters_and_unknown_statements_are_clear_errors(path: str) -> None:
    async with notes(path) as database, database.read() as tx:
        with pytest.raises(StoreError, match=r"notes\.list takes \(run\)"):
            await tx.all("notes.list")
        with pytest.raises(StoreError, match=r"notes\.burn"):
            await tx.all("notes.burn")
        with pytest.raises(StoreError) as caught:
            await tx.all("notes.list", run=object())
        assert caught.value.code == "store.value"
        with pytest.raises(StoreError) as caught:
            await tx.all("notes.list", run=2**64)
        assert caught.value.code == "store.value"


# Hints


async def test_a_hint_is_sent_after_the_commit_and_not_without(path: str) -> None:
    async with notes(path) as database:
        waiting = [asyncio.ensure_future(database.wait("c", 60.0)) for _ in range(3)]
        other = asyncio.ensure_future(database.wait("d", 60.0))
        await asyncio.sleep(0)
        with pytest.raises(ZeroDivisionError):
            async with database.write() as tx:
                tx.notify("c")
                raise ZeroDivisionError
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        async with database.write() as tx:
            tx.notify("c")
        assert await asyncio.gather(*waiting) == [True] * 3
        assert not other.done()
        database.wake("d")
        assert await other
        assert database.hints.channels() == ()


async def test_a_hint_that_does_not_come_is_not_waited_for_longer(path: str) -> None:
    clock = ManualClock()
    async with notes(path, clock=clock) as database:
        waiting = asyncio.ensure_future(database.wait("c", 2.0))
        cancelled = asyncio.ensure_future(database.wait("c", 2.0))
        await asyncio.sleep(0)
        cancelled.cancel()
        await clock.advance(timedelta(seconds=2))
        assert not await waiting
        assert database.hints.channels() == ()
        dismissed = asyncio.ensure_future(database.wait("c", 2.0))
        await asyncio.sleep(0)
    assert not await dismissed


# Other processes


async def test_two_processes_append_to_one_file_at_once(path: str, stack: ExitStack) -> None:
    async with notes(path) as database:
        other = stack.enter_context(Program("crowd", path, 100, 8, 40))

        async def one(run: int) -> None:
            for idx in range(40):
                assert (await put(database, [note(run, idx)]))[0].run == run

        assert await other.hear() == "ready"
        await asyncio.gather(*(one(run) for run in range(8)))
        assert other.finish() == ["done"]
        assert await count(database) == 640
        assert await listed(database, 103) == list(range(40))
        assert database.writer.failures == 0


async def test_another_process_that_writes_does_not_hold_up_the_loop(path: str, stack: ExitStack) -> None:
    async with notes(path) as database:
        other = stack.enter_context(Program("hold", path))
        assert await other.hear() == "holding"
        append = note(1, 0)
        database.writer.offer(append)

        async def block() -> None:
            async with database.write() as tx:
                await tx.run("notes.add", [(1, 1, b"", 1)])

        writing = asyncio.ensure_future(block())
        for _ in range(50):
            await asyncio.sleep(0)
        assert await count(database) == 0, "reading goes on"
        other.say()
        assert append.future is not None
        await append.future
        await writing
        assert await listed(database, 1) == [0, 1]
        assert other.finish() == ["done"]


async def test_who_waits_for_another_process_can_be_cancelled_and_commits_nothing(path: str) -> None:
    async with notes(path) as database:
        other = apsw.Connection(path)
        other.execute("BEGIN IMMEDIATE")

        async def block() -> None:
            async with database.write() as tx:
                await tx.run("notes.add", [(1, 0, b"", 1)])

        waiting = asyncio.ensure_future(block())
        await until(lambda: database.turn.taken)
        waiting.cancel()
        # The file is still held: only a cancellation that is heard at once comes back.
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not database.turn.taken
        other.execute("ROLLBACK")
        other.close()
        await put(database, [note(1, 1)])
        assert await listed(database, 1) == [1]


async def test_a_file_that_stays_busy_is_an_error_in_the_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with notes(path) as database:
        monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
        other = apsw.Connection(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy):
            async with database.write():
                pass
        append = note(1, 0)
        database.writer.offer(append)
        await until(lambda: database.writer.failures)
        assert append.state == "queued"
        other.execute("ROLLBACK")
        assert append.future is not None
        await append.future
        other.close()


async def test_what_a_killed_process_had_acknowledged_is_there(path: str) -> None:
    with Program("append", path, 1, 100_000) as program:
        acknowledged = -1
        while acknowledged < 50:
            acknowledged = int(await program.hear())
        program.process.kill()
        output, _ = program.process.communicate()
        acknowledged = int((output.split() or [acknowledged])[-1])
    async with notes(path) as database:
        found = await listed(database, 1)
        assert found == list(range(len(found)))
        assert len(found) > acknowledged


# Broken files


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: str) -> None:
    Path(path).write_bytes(b"Dear diary, " * 500)
    with pytest.raises(StoreError) as caught:
        await open_database(path, clock=SystemClock())
    assert caught.value.code == "store.not_a_database"
    assert caught.value.hint
    assert Path(path).read_bytes() == b"Dear diary, " * 500


async def test_a_folder_and_a_path_into_nowhere_are_refused(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "nowhere" / "ledger.db", tmp_path / "nul\0.db"):
        for read_only in (False, True):
            with pytest.raises((StoreError, ConfigError)) as caught:
                await open_database(target, clock=SystemClock(), read_only=read_only)
            assert caught.value.hint


async def test_a_damaged_file_is_a_clear_error(path: str) -> None:
    async with notes(path) as database:
        await put(database, [note(1, idx, body=os.urandom(3000)) for idx in range(100)])
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    Path(path).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        async with notes(path) as database, database.read() as tx:
            for run in range(100):
                await tx.all("notes.list", run=run)
    assert caught.value.code == "store.corrupt"


async def test_a_newer_ledger_is_refused_and_left_alone(path: str) -> None:
    async with notes(path) as database, database.write() as tx:
        await tx.run("ledger.put", [("schema", migrate.encode_number(999))])
    before = everything(path)
    for read_only in (False, True):
        with pytest.raises(SchemaMismatch, match="999") as caught:
            await open_database(path, clock=SystemClock(), read_only=read_only)
        assert "upgrade" in caught.value.hint
    assert everything(path) == before


async def test_a_ledger_table_of_somebody_else_is_refused(path: str) -> None:
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE holdfast_ledger (name TEXT PRIMARY KEY, value BLOB)")
    connection.close()
    with pytest.raises(SchemaMismatch):
        await open_database(path, clock=SystemClock())


async def test_a_full_disk_loses_nothing_and_is_got_over(path: str) -> None:
    said = processes.run("fill", path)
    assert said == ["store.unavailable True", "[0, 1, 2] 3"]


async def test_a_full_database_is_a_clear_error(path: str) -> None:
    async with notes(path) as database:
        connection = database.connection
        connection.execute(f"PRAGMA max_page_count = {connection.pragma('page_count')}").fetchall()
        with pytest.raises(Unavailable, match="full"):
            async with database.write() as tx:
                await tx.run("notes.add", [(1, idx, b"x" * 4000, 1) for idx in range(50)])
        append = note(1, 0, body=b"x" * 100_000)
        await put(database, [append])  # the writer opened the file anew, without the pragma
        assert database.writer.failures == 1
        assert await listed(database, 1) == [0]


async def test_a_folder_one_may_not_write_is_a_clear_error(tmp_path: Path) -> None:
    outside = Path("/tmp") / f"holdfast-test-{os.getpid()}"  # noqa: S108 - a folder that others may enter
    outside.mkdir(mode=0o755)
    try:
        path = outside / "ledger.db"
        assert processes.run("unprivileged", path, "write") == ["store.cannot_open True"]
        async with notes(path, owner_dir=tmp_path) as database:
            await put(database, [note(1, 0)])
        path.chmod(0o644)
        if os.getuid() != 0:
            path.chmod(0o444)
            outside.chmod(0o555)
        assert processes.run("unprivileged", path, "write") in (["store.cannot_open True"], ["store.read_only True"])
        assert processes.run("unprivileged", path, "read") == ["opened"]
        path.chmod(0o000)
        assert processes.run("unprivileged", path, "read") == ["store.cannot_open True"]
    finally:
        outside.chmod(0o755)
        shutil.rmtree(outside)


async def test_after_a_power_loss_the_log_holds_a_prefix(path: str, tmp_path: Path) -> None:
    """Whatever part of the log reached the disk, whole commits are there, in order, and no others."""
    database = await open_notes(path, batch_items_max=2)
    base = await count(database)
    assert base == 0
    for idx in range(0, 12, 2):
        await put(database, [note(1, idx), note(1, idx + 1)])
    database.abandon()
    log = Path(path + "-wal").read_bytes()
    frame = 24 + struct.unpack(">I", log[8:12])[0]
    # The file may be longer than what is written to it; a frame that is bears the salt of the log's header.
    frames = 0
    while log[32 + frames * frame + 8 : 32 + frames * frame + 16] == log[16:24]:
        frames += 1
    seen = set()
    for kept in range(frames + 1):
        for torn in (0, frame // 2):
            copy = tmp_path / f"copy-{kept}-{torn}.db"
            shutil.copy(path, copy)
            Path(f"{copy}-wal").write_bytes(log[: 32 + kept * frame + torn])
            connection = apsw.Connection(str(copy))
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE name = 'test_notes'").fetchall()
            found = connection.execute("SELECT idx FROM test_notes ORDER BY seq").fetchall() if tables else []
            assert [idx for (idx,) in found] == list(range(len(found)))
            assert len(found) % 2 == 0, "a commit is there as a whole or not at all"
            seen.add(len(found))
            connection.close()
    assert seen == set(range(0, 13, 2))


# The log


async def test_the_log_does_not_grow_without_bound(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_log, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite_log, "WAL_BYTES_MAX", 400_000)
    async with notes(path) as database:

        async def one(run: int) -> None:
            for idx in range(150):
                await put(database, [note(run, idx, body=b"x" * 2000)])

        sizes: list[int] = []
        writing = asyncio.gather(*(one(run) for run in range(8)))
        await until(lambda: sizes.append(os.stat(path + "-wal").st_size) or writing.done())
        await writing
        assert await count(database) == 1200
        assert os.stat(path).st_size > 1_000_000, "most of it is in the file"
        assert max(sizes) < 2_500_000


async def test_a_reader_that_stays_does_not_hold_up_writers(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_log, "CHECKPOINT_BYTES", 50_000)
    monkeypatch.setattr(sqlite_log, "WAL_BYTES_MAX", 100_000)
    async with notes(path) as database:
        async with database.read() as tx:
            assert (await tx.one("notes.count")).amount == 0
            for idx in range(100):
                await put(database, [note(1, idx, body=b"x" * 4000)])
            assert (await tx.one("notes.count")).amount == 0
        assert await count(database) == 100


async def test_closing_leaves_one_file(path: str) -> None:
    async with notes(path) as database:
        await put(database, [note(1, 0)])
        await database.owner.ensure()
    assert [file.name for file in Path(path).parent.iterdir() if file.is_file()] == ["ledger.db"]
    assert list(Path(path + ".owners").iterdir()) == []


# Reading only


async def test_reading_only_needs_a_ledger(path: str) -> None:
    with pytest.raises(StoreError) as caught:
        await open_reader(path)
    assert caught.value.code == "store.missing"
    assert not Path(path).exists()
    Path(path).touch()
    with pytest.raises(SchemaMismatch, match="no Holdfast ledger"):
        await open_reader(path)
    assert everything(path) == {"ledger.db": b""}


async def test_reading_only_changes_no_byte_and_leaves_no_file(path: str) -> None:
    async with notes(path) as database:
        await put(database, [note(1, 0)])
    before = everything(path)
    reader = await open_reader(path)
    assert await listed(reader, 1) == [0]
    with pytest.raises(StoreError) as caught:
        reader.write()
    assert caught.value.code == "store.read_only"
    with pytest.raises(StoreError) as caught:
        reader.writer.offer(note(1, 1))
    assert caught.value.code == "store.read_only"
    with pytest.raises(StoreError):
        await reader.owner.ensure()
    assert everything(path) == before
    await reader.close()
    assert everything(path) == before
    assert not Path(path + ".owners").exists()


async def test_reading_only_follows_a_live_writer(path: str) -> None:
    async with notes(path) as database:
        await put(database, [note(1, 0)])
        reader = await open_reader(path)
        assert reader is not database
        assert await listed(reader, 1) == [0]
        await put(database, [note(1, 1)])
        assert await listed(reader, 1) == [0, 1]
    before = everything(path)
    assert await listed(reader, 1) == [0, 1]
    async with notes(path) as database:
        await put(database, [note(1, 2)])
        assert await listed(reader, 1) == [0, 1, 2]
    assert await listed(reader, 1) == [0, 1, 2]
    await reader.close()
    assert set(everything(path)) == set(before)


async def test_reading_only_sees_what_a_killed_writer_left_in_its_log(path: str) -> None:
    database = await open_notes(path)
    await put(database, [note(1, 0)])
    database.abandon()
    log = Path(path + "-wal").read_bytes()
    ledger = Path(path).read_bytes()
    reader = await open_reader(path)
    assert await listed(reader, 1) == [0]
    await reader.close()
    assert Path(path + "-wal").read_bytes() == log
    assert Path(path).read_bytes() == ledger


async def test_a_file_that_changes_while_it_is_read_without_locks_is_read_again(path: str) -> None:
    async with notes(path) as database:
        await put(database, [note(1, 0)])
    reader = await open_reader(path)
    with pytest.raises(Busy):
        async with reader.read() as tx:
            await tx.all("notes.list", run=1)
            async with notes(path) as database:
                await put(database, [note(1, 1)])
    assert await listed(reader, 1) == [0, 1]
    await reader.close()


async def test_reading_an_old_schema_asks_for_a_migration(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with notes(path):
        pass
    known = migrate.load("sqlite")
    newer: tuple[Any, ...] = (*known, migrate.Migration(len(known) + 1, "more", "CREATE TABLE test_more (x)"))
    monkeypatch.setattr(migrate, "load", lambda dialect: newer)
    with pytest.raises(SchemaMismatch, match="old schema"):
        await open_reader(path)
    async with notes(path) as database:
        assert database.schema == len(known) + 1


async def test_a_migration_that_fails_leaves_the_schema_before_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrate.load("sqlite")
    broken = migrate.Migration(len(known) + 1, "broken", "CREATE TABLE test_more (x); CREATE TABLE test_more (x)")
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda dialect: (*known, broken))
        with pytest.raises(StoreError):
            await open_database(path, clock=SystemClock())
    async with notes(path) as database:
        assert database.schema == len(known)
