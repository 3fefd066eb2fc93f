"""Programs that tests run as processes of their own: `python -m tests.store.programs NAME ARGUMENT…`."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
from functools import partial
from pathlib import Path

from tests.store.lifecycle_bench import draft
from tests.store.notes import count, listed, note, notes, open_notes, put, until

from holdfast.core.clock import SystemClock
from holdfast.core.errors import HoldfastError, WrongProcess
from holdfast.lifecycle.ledger import Inserted
from holdfast.lifecycle.sequencer import Sequencer
from holdfast.store import StoreSettings, catalogue, open_database
from holdfast.store.migrate import load as migrate_files


def say(*words: object) -> None:
    """Tell the test, at once."""
    print(*words, flush=True)  # noqa: T201 - its standard output is how a program answers


async def append(path: str, run: str, amount: str) -> None:
    """Append notes one after the other, and say each that was acknowledged."""
    async with notes(path) as database:
        for idx in range(int(amount)):
            await put(database, [note(int(run), idx)])
            say(idx)


async def crowd(path: str, first: str, runs: str, amount: str) -> None:
    """Append to several runs at once."""
    async with notes(path) as database:

        async def one(run: int) -> None:
            for idx in range(int(amount)):
                assert (await put(database, [note(run, idx)]))[0].run == run

        say("ready")
        await asyncio.gather(*(one(int(first) + run) for run in range(int(runs))))
    say("done")


async def hold(path: str) -> None:
    """Keep a write transaction open until told to go on."""
    async with notes(path) as database, database.write():
        say("holding")
        sys.stdin.readline()
    say("done")


async def own(path: str) -> None:
    """Be an owner until told to go on."""
    async with notes(path) as database:
        say(await database.owner.ensure())
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def own_and_fork(path: str) -> None:
    """Be an owner, and leave a child behind that outlives its parent."""
    database = await open_notes(path)
    say(await database.owner.ensure())
    if os.fork() == 0:
        say("forked")
        sys.stdin.readline()
        os._exit(0)
    await asyncio.get_running_loop().create_future()


async def fork(path: str) -> None:
    """Use every handle in a forked child; then go on in the parent."""
    async with notes(path) as database:
        await database.owner.ensure()
        await put(database, [note(1, 0)])
        child = os.fork()
        if child == 0:
            refused = 0
            offer = partial(database.writer.offer, note(1, 9, quiet=True))
            for use in (database.read, database.write, partial(database.wake, "c"), offer):
                try:
                    use()
                except WrongProcess:
                    refused += 1
            for wait in (database.close(), database.owner.ensure(), database.wait("c", 1.0)):
                try:
                    wait.send(None)
                except WrongProcess:
                    refused += 1
            del use, wait, offer, database.connection, database._pool
            gc.collect()  # closing a connection here would fold the parent's log
            os._exit(refused)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
        say(os.waitstatus_to_exitcode(status))
        await put(database, [note(1, 1)])
        say(await listed(database, 1), database.owner.fresh())


async def migrate(path: str) -> None:
    """Open a ledger, as several do at once."""
    database = await open_database(path, clock=SystemClock())
    say(database.namespace.hex())
    await database.close()


async def fill(path: str) -> None:
    """Run into the end of the disk, and go on when there is space again."""
    async with notes(path, ack_timeout_ms=2000) as database:
        await put(database, [note(1, 0)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(path + "-wal").st_size + 1000, hard))
        append = note(1, 1, body=b"x" * 4_000_000)
        assert database.writer.offer(append)
        later = note(1, 2)
        assert database.writer.offer(later)
        await until(lambda: database.writer.failures)
        try:
            async with database.write() as tx:
                await tx.run("notes.add", [(1, 3, b"x" * 4_000_000, 1)])
        except HoldfastError as error:
            say(error.code, error.hint != "")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert append.future is not None
        assert later.future is not None
        await append.future
        await later.future
        say(await listed(database, 1), await count(database))


async def unprivileged(path: str, *what: str) -> None:
    """Open as a user who may not, and say why not."""
    catalogue.load("sqlite")  # read now: that user may not be able to
    migrate_files("sqlite")
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        database = await open_database(
            path, clock=SystemClock(), settings=StoreSettings(owner_dir=Path(path).parent), read_only="read" in what
        )
        if "write" in what:
            async with database.write() as tx:
                await tx.run("ledger.put", [("x", b"y")])
        await database.close()
    except HoldfastError as error:
        say(error.code, error.hint != "")
    else:
        say("opened")


async def emit(target: str, run: str, name: str, amount: str) -> None:
    """Emit receipts of one run, one after the other, and say their numbers."""
    database = await open_database(target, clock=SystemClock())
    sequencer = Sequencer(database)
    for idx in range(int(amount)):
        found = await sequencer.emit(draft(f"{name}{idx}", run=run, receipt_id=f"{name}{idx}"), mode="strict")
        assert isinstance(found, Inserted)
        say(found.receipt.sequence)
    await database.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
