"""A slice that only tests have: runs with a fence, and notes on them, in a ledger of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from holdfast.core.clock import Clock, SystemClock
from holdfast.store import Append, Plan, StoreSettings, catalogue, open_database
from holdfast.store.sqlite import SqliteDatabase

catalogue.register(Path(__file__).parent / "statements")

PLAN = Plan("notes", ("runs.create",), "runs.guard", ("notes.add", "runs.finish"))

TABLES = """
    CREATE TABLE IF NOT EXISTS test_runs (run INTEGER PRIMARY KEY, fence INTEGER NOT NULL, open INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS test_notes (
        seq INTEGER PRIMARY KEY, run INTEGER NOT NULL, idx INTEGER NOT NULL, body BLOB, fence INTEGER NOT NULL,
        UNIQUE (run, idx)
    );
"""


def note(
    run: int,
    idx: int,
    *,
    body: Any = b"note",
    fence: int = 1,
    create: bool = True,
    finish: bool = False,
    size: int = 100,
    label: str = "",
    quiet: bool = False,
    settled: Any = None,
) -> Append:
    """An append of one note, which creates its run unless told otherwise."""
    rows: list[tuple[str, tuple[object, ...]]] = [("runs.create", (run, fence))] if create else []
    rows.append(("notes.add", (run, idx, body, fence)))
    if finish:
        rows.append(("runs.finish", (run,)))
    future = None if quiet else asyncio.get_running_loop().create_future()
    return Append(PLAN, run, (run, fence), rows, size, label, future, settled)


async def open_notes(path: Path | str, *, clock: Clock | None = None, **settings: Any) -> SqliteDatabase:
    """Open a ledger that has the tables of the notes."""
    database = await open_database(path, clock=clock or SystemClock(), settings=StoreSettings(**settings))
    assert isinstance(database, SqliteDatabase)
    for _ in database.connection.execute(TABLES):
        pass
    return database


@asynccontextmanager
async def notes(path: Path | str, **options: Any) -> AsyncIterator[SqliteDatabase]:
    """Open such a ledger for a block."""
    database = await open_notes(path, **options)
    try:
        yield database
    finally:
        await database.close()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds."""
    while not condition():  # noqa: ASYNC110 - nothing tells; a test would have to be told
        await asyncio.sleep(0)


async def put(database: SqliteDatabase, appends: Iterable[Append]) -> list[Any]:
    """Put appends one after the other, then wait for all; an exception is a result."""
    futures = []
    for append in appends:
        await database.writer.put(append)
        futures.append(append.future)
    return await asyncio.gather(*(future for future in futures if future is not None), return_exceptions=True)


async def listed(database: SqliteDatabase, run: int) -> list[int]:
    """The indexes of a run's notes, in the order they were written."""
    async with database.read() as tx:
        return [row.idx for row in await tx.all("notes.list", run=run)]


async def count(database: SqliteDatabase) -> int:
    """How many notes there are."""
    async with database.read() as tx:
        return int((await tx.one("notes.count")).amount)
