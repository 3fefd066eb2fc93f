"""What the databases themselves can do with our rows, and what else is done to a ledger behind Holdfast's back.

The raw limit writes the journal rows, or the receipts, of a ledger that Holdfast has just filled into an empty table
with the same columns and indexes, so many per commit as Holdfast's batches held on average. Nothing is asked of a
row: no fence is checked, nobody is woken, and the parameters are ready before the clock starts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import asyncpg
from workload import Case, Job, Sample

Rows = list[tuple[Any, ...]]

PASSES = 5
"""How often the rows are written, each time into an empty table."""
COMMITS = 200
"""One-row commits that are timed."""

GROWN = ("durable_executions", "durable_generations", "durable_trail", "durable_journal")
"""The tables that every execution has rows in."""
APART = 1_000_000
"""What separates the numbers of one clone of an execution from those of the next."""


@dataclass(frozen=True)
class Table:
    """A table whose rows are written again, and the column by which the database numbers them."""

    name: str
    number: str

    def rows(self, columns: Sequence[str], rows_max: int | None) -> str:
        """Return the statement that gives its newest rows, oldest first."""
        names = ", ".join(columns)
        newest = f"SELECT * FROM {self.name} ORDER BY {self.number} DESC LIMIT {rows_max or APART * APART}"  # noqa: S608 - names of our own
        return f"SELECT {names} FROM ({newest}) AS newest ORDER BY {self.number}"  # noqa: S608 - names of our own


JOURNAL = Table("durable_journal", "seq")
RECEIPTS = Table("lifecycle_receipts", "id")


def limit(job: Job) -> Sample:
    """Write the ledger's journal rows in batches of `job.batch`."""
    return asyncio.run(written(job.target, JOURNAL, job.batch, PASSES))


def one_row(job: Job) -> Sample:
    """Commit rows one by one: the yardstick *c* of the budgets."""
    return asyncio.run(written(job.target, JOURNAL, 1, 1, COMMITS))


async def written(target: str, table: Table, batch: int, passes: int, rows_max: int | None = None) -> Sample:
    """Write the newest rows of a table in batches, each time into an empty table."""
    if target.startswith("postgresql"):
        return await _limit_postgres(target, table, batch, passes, rows_max)
    return await asyncio.to_thread(_limit_sqlite, target, table, batch, passes, rows_max)


def grow(job: Job) -> Sample:
    """Clone the executions of a small ledger until it holds `growth_large` journal rows."""
    clones = job.sizes.growth_large // job.sizes.growth_small - 1
    started = time.perf_counter()
    if job.target.startswith("postgresql"):
        rows = asyncio.run(_grow_postgres(job.target, clones))
    else:
        rows = _grow_sqlite(job.target, clones)
    return Sample(rows, time.perf_counter() - started)


def expire(job: Job) -> Sample:
    """End the leases in a ledger whose process has died.

    Copies of it are taken over one after the other. The first finds the dead process's lock file, and removes it;
    without the file the others would wait for the lease.
    """
    statement = "UPDATE holdfast_owners SET lease_until = 0"
    if job.target.startswith("postgresql"):
        asyncio.run(_execute_postgres(job.target, statement))
    else:
        with closing(apsw.Connection(job.target)) as ledger:
            ledger.execute(statement)
    return Sample(0, 0.0)


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


# Names of tables and columns come from our own schema.
def _insertion(table: str, columns: Sequence[str], rows: str) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) {rows}"


# --- SQLite ------------------------------------------------------------------------------------------


def _limit_sqlite(target: str, table: Table, batch: int, passes: int, rows_max: int | None) -> Sample:
    with closing(apsw.Connection(target)) as ledger:
        schema = ledger.execute(
            "SELECT sql FROM sqlite_schema WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'table' DESC",
            (table.name,),
        ).fetchall()
        named = [row[1] for row in ledger.execute(f"PRAGMA table_info({table.name})")]
        columns = [name for name in named if name != table.number]
        rows: Rows = ledger.execute(table.rows(columns, rows_max)).fetchall()
    insertion = _insertion(table.name, columns, f"VALUES ({', '.join('?' * len(columns))})")
    batches = list(_batches(rows, batch))
    seconds = 0.0
    for number in range(passes):
        path = f"{target}-raw-{batch}-{number}"
        with closing(apsw.Connection(path)) as connection:
            # Every commit is flushed. SQLite's own small checkpoints, between commits, are the quickest for it: they
            # keep the log short, and overwriting a file costs half of what extending it does.
            connection.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL").fetchall()
            for (statement,) in schema:
                connection.execute(str(statement))
            started = time.perf_counter()
            for some in batches:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(insertion, some)
                connection.execute("COMMIT")
            seconds += time.perf_counter() - started
            assert connection.execute(f"SELECT count(*) FROM {table.name}").get == len(rows)  # noqa: S608 - as above
        Path(path).unlink()
    return Sample(passes * len(rows), seconds)


def _grow_sqlite(target: str, clones: int) -> int:
    with closing(apsw.Connection(target)) as ledger:
        ledger.execute("PRAGMA synchronous=OFF; BEGIN")
        for table in GROWN:
            columns = [row[1] for row in ledger.execute(f"PRAGMA table_info({table})")]
            ledger.execute(_cloning(table, columns, random="randomblob(16)", series=_SERIES_SQLITE), (clones,))
        ledger.execute("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return int(ledger.execute("SELECT count(*) FROM durable_journal").get)


_SERIES_SQLITE = (
    "(WITH RECURSIVE clones (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM clones WHERE number < ?)"
    " SELECT number FROM clones)"
)


# --- PostgreSQL --------------------------------------------------------------------------------------


async def _limit_postgres(target: str, table: Table, batch: int, passes: int, rows_max: int | None) -> Sample:
    # One connection: on a small machine a second one writes no more rows.
    connection = await asyncpg.connect(target)
    columns, types = await _columns(connection, table.name)
    rows: Rows = [tuple(row) for row in await connection.fetch(table.rows(columns, rows_max))]
    arrays = ", ".join(f"${place}::{type_}[]" for place, type_ in enumerate(types, 1))
    insertion = _insertion("raw_copy", columns, f"SELECT * FROM unnest({arrays})")  # noqa: S608 - names of our own
    batches = [[list(column) for column in zip(*some, strict=True)] for some in _batches(rows, batch)]
    seconds = 0.0
    for _ in range(passes):
        await connection.execute("DROP TABLE IF EXISTS raw_copy")
        await connection.execute(f"CREATE TABLE raw_copy (LIKE {table.name} INCLUDING ALL)")
        statement = await connection.prepare(insertion)
        started = time.perf_counter()
        for arrays_of_some in batches:
            await statement.fetch(*arrays_of_some)
        seconds += time.perf_counter() - started
        assert await connection.fetchval("SELECT count(*) FROM raw_copy") == len(rows)
    await connection.close()
    return Sample(passes * len(rows), seconds)


async def _columns(connection: Any, table: str) -> tuple[list[str], list[str]]:
    """Return names and types of the columns that the database does not number itself."""
    found = await connection.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attidentity = '' ORDER BY attnum",
        table,
    )
    return [row[0] for row in found], [row[1] for row in found]


async def _execute_postgres(target: str, statement: str) -> None:
    connection = await asyncpg.connect(target)
    await connection.execute(statement)
    await connection.close()


async def _grow_postgres(target: str, clones: int) -> int:
    connection = await asyncpg.connect(target)
    await connection.execute("SET synchronous_commit = off")
    random = "decode(replace(gen_random_uuid()::text, '-', ''), 'hex')"
    for table in GROWN:
        columns, _ = await _columns(connection, table)
        await connection.execute(
            _cloning(table, columns, random=random, series=f"generate_series(1, {clones}) AS series (number)"),
            timeout=600,
        )
    # What autovacuum would do sooner or later; it should not do it while something is timed.
    await connection.execute("VACUUM ANALYZE", timeout=600)
    await connection.execute("CHECKPOINT", timeout=600)
    rows = await connection.fetchval("SELECT count(*) FROM durable_journal")
    await connection.close()
    return int(rows)


# --- both --------------------------------------------------------------------------------------------


def _cloning(table: str, columns: Sequence[str], *, random: str, series: str) -> str:
    """Return the statement that adds clones of all rows of a table.

    Clones are numbered below zero: they look older than anything that comes later, as real ones would.
    """
    as_clone: dict[str, Callable[[str], str]] = {
        "pk": lambda column: f"-(number * {APART} + {column})",
        "execution_pk": lambda column: f"-(number * {APART} + {column})",
        "id": lambda column: f"{column} || '-' || number",
        "uid": lambda _: random,
    }
    kept = [column for column in columns if column != "seq"]
    values = ", ".join(as_clone.get(column, str)(column) for column in kept)
    return _insertion(table, kept, f"SELECT {values} FROM {table}, {series}")  # noqa: S608 - names of our own


CASES: dict[str, Case] = {"limit": limit, "one_row": one_row, "grow": grow, "expire": expire}
