"""How the contract opens ledgers, and what it puts into them.

Rows are made by the names of a statement's parameters, so that a new column breaks no test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from holdfast.core.clock import Clock, SystemClock
from holdfast.execution.journal import PLAN
from holdfast.store import catalogue
from holdfast.store.database import Append, Database, Row, Tx
from holdfast.store.settings import StoreSettings
from holdfast.store.sqlite import open_sqlite

__all__ = [
    "LocalStore",
    "Store",
    "append",
    "create",
    "entries",
    "entry",
    "executions",
    "put",
    "reserve",
    "settled_all",
    "values",
]

_DEFAULTS: dict[str, Any] = {
    "kind": "k",
    "status": "running",
    "generation": 1,
    "chapter": 0,
    "available_at": 0,
    "input_hash": b"h" * 32,
    "seed": b"s" * 16,
    "fence": 1,
    "created_at": 1_700_000_000_000_000,
    "updated_at": 1_700_000_000_000_000,
    "scope": b"",
    "part": 2,
    "attempt": 1,
    "name": "search",
    "shape": b"s" * 32,
    "outcome": "value",
    "payload": b"payload",
    "cause": "start",
    "opened_at": 0,
    "reason": None,
}


class Store(Protocol):
    """Opens handles on one ledger. It is pickled to other processes, which use it at the same time."""

    async def open(
        self, *, settings: StoreSettings | None = None, clock: Clock | None = None, read_only: bool = False,
        namespace: bytes | None = None,
    ) -> Database:  # fmt: skip
        """Open a handle that shares nothing with another, not even in the same process."""
        ...

    def opened(self, **options: Any) -> AbstractAsyncContextManager[Database]:
        """Open a handle for a block."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """The store of a path, of `:memory:`, or of a `postgresql://` URL.

    Attributes:
        target: Which.
        owner_dir: Where its handles lock their files.
    """

    target: str
    owner_dir: Path | None = None

    async def open(
        self, *, settings: StoreSettings | None = None, clock: Clock | None = None, read_only: bool = False,
        namespace: bytes | None = None,
    ) -> Database:  # fmt: skip
        """Open a handle."""
        opener: Any = open_sqlite
        if self.target.startswith("postgres"):
            from holdfast.store.postgres import open_postgres

            opener = open_postgres
        database: Database = await opener(
            self.target,
            clock=clock or SystemClock(),
            settings=settings or StoreSettings(owner_dir=self.owner_dir),
            namespace=namespace,
            read_only=read_only,
        )
        return database

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Database]:
        """Open a handle for a block."""
        database = await self.open(**options)
        try:
            yield database
        finally:
            await database.close()


def values(database: Database, statement: str, **given: Any) -> tuple[Any, ...]:
    """Make a row of a statement: what is given, else a plausible value, else None."""
    params = catalogue.load(database.dialect)[statement].params
    unknown = given.keys() - set(params)
    assert not unknown, f"{statement} has no parameters {unknown}"
    return tuple(given[name] if name in given else _DEFAULTS.get(name) for name in params)


async def reserve(database: Database) -> int:
    """Reserve numbers for 256 executions; return the first."""
    async with database.write() as tx:
        row = await tx.one("executions.reserve")
    assert row is not None
    return int(row.first)


async def executions(database: Database, count: int = 1, **columns: Any) -> list[int]:
    """Create executions in a transaction of their own; return their numbers."""
    numbers: list[int] = []
    while len(numbers) < count:
        first = await reserve(database)
        numbers += range(first, first + 256)
    del numbers[count:]
    rows = [_execution(database, pk, **columns) for pk in numbers]
    async with database.write() as tx:
        await tx.run("executions.create", rows)
        await tx.run("generations.open", [values(database, "generations.open", execution_pk=pk) for pk in numbers])
    return numbers


def _execution(database: Database, pk: int, **columns: Any) -> tuple[Any, ...]:
    return values(database, "executions.create", **{"pk": pk, "id": f"e{pk}", "uid": pk.to_bytes(16, "big"), **columns})


def append(
    rows: Iterable[tuple[str, tuple[Any, ...]]], lane: int, *, fence: int | None = 1, size: int = 100, label: str = "",
    settled: Any = None,
) -> Append:  # fmt: skip
    """Make an append of an execution (its number is the lane) under a fence, or without a guard."""
    future = asyncio.get_running_loop().create_future()
    guard = None if fence is None else (lane, fence)
    return Append(PLAN, lane, guard, list(rows), size, label, future, settled)


def create(database: Database, pk: int, **columns: Any) -> Append:
    """Make the append that creates an execution and opens its generation."""
    rows = [
        ("executions.create", _execution(database, pk, **columns)),
        ("generations.open", values(database, "generations.open", execution_pk=pk)),
    ]
    return append(rows, pk)


def entry(
    database: Database, pk: int, idx: int, *, fence: int = 1, size: int = 100, settled: Any = None, **columns: Any
) -> Append:
    """Make the append of one journal entry."""
    row = values(database, "journal.append", execution_pk=pk, idx=idx, fence=fence, **columns)
    return append([("journal.append", row)], pk, fence=fence, size=size, settled=settled)


async def put(database: Database, *appends: Append) -> list[Any]:
    """Put appends, wait for all of them; return what became of each, exceptions included."""
    for each in appends:
        await database.writer.put(each)
    return await settled_all(*appends)


async def settled_all(*appends: Append) -> list[Any]:
    """Wait for what becomes of appends; exceptions are results."""
    futures = [each.future for each in appends if each.future is not None]
    return await asyncio.gather(*futures, return_exceptions=True)


async def entries(source: Database | Tx, pk: int) -> list[Row]:
    """Read the journal of an execution in the order of its commits."""
    if not hasattr(source, "read"):
        return await source.all("journal.list", execution_pk=pk, generation=None, after=0, most=100_000)
    async with source.read() as tx:
        return await tx.all("journal.list", execution_pk=pk, generation=None, after=0, most=100_000)
