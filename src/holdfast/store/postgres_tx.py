"""Transactions on PostgreSQL: the statements inside, and the blocks around them.

A statement that takes arrays runs once for many rows; `PostgresTx.run` turns rows into the arrays of their
columns.

Invariants:
    - A transaction serves inside its block only.
    - A write block that ends normally has committed; whatever else happens, it leaves nothing.
    - Hints go out with the commit, to this process and to others, or not at all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

from holdfast.core.errors import StoreError
from holdfast.store.catalogue import Catalogue
from holdfast.store.database import Row
from holdfast.store.postgres_errors import Edge
from holdfast.store.postgres_pool import Link

if TYPE_CHECKING:
    from holdfast.store.postgres import PostgresDatabase

__all__ = ["PostgresTx", "ReadBlock", "WriteBlock", "takes_arrays"]

_ARRAY = re.compile(r"\$1::[\w ]+\[\]")


@cache
def takes_arrays(text: str) -> bool:
    """Whether a statement takes an array of values per parameter: its first one is cast to an array."""
    return _ARRAY.search(text) is not None


class PostgresTx:
    """A `Tx` on a connection, for as long as its block lasts."""

    __slots__ = ("_edge", "_link", "_statements", "channels")

    def __init__(self, link: Link, statements: Catalogue, edge: Edge) -> None:
        self._link: Link | None = link
        self._statements = statements
        self._edge = edge
        self.channels: dict[str, None] = {}

    async def one(self, statement: str, /, **params: object) -> Row | None:
        found = self._statements[statement]
        with self._edge:
            row = await self._open().connection.fetchrow(found.text, *found.bind(params))
        return None if row is None else found.row(row)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        found = self._statements[statement]
        with self._edge:
            return list(map(found.row, await self._open().connection.fetch(found.text, *found.bind(params))))

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        found = self._statements[statement]
        connection = self._open().connection
        count = 0
        with self._edge:
            if not takes_arrays(found.text):
                for row in rows:
                    count += _count_of(await connection.execute(found.text, *row))
            elif columns := list(zip(*rows, strict=True)):
                count = _count_of(await connection.execute(found.text, *columns))
        return count

    async def apply(self, script: str) -> None:
        """Run the statements of a migration."""
        with self._edge:
            await self._open().connection.execute(script)

    def notify(self, channel: str, /) -> None:
        self.channels[channel] = None

    def end(self) -> None:
        """Let nothing use it any more."""
        self._link = None

    def _open(self) -> Link:
        if self._link is None:
            raise StoreError("the transaction has ended", "use it inside its block only")
        return self._link


def _count_of(status: str) -> int:
    """Read the number of rows out of `INSERT 0 3`, `UPDATE 3`."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


class ReadBlock:
    """A consistent view."""

    __slots__ = ("_database", "_link", "_tx")

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def __aenter__(self) -> PostgresTx:
        database = self._database
        database.check()
        self._link = await database.readers.begin()
        self._tx = PostgresTx(self._link, database.statements, database.edge)
        return self._tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tx.end()
        await self._database.readers.roll_back(self._link)


class WriteBlock:
    """A transaction that commits at its end."""

    __slots__ = ("_database", "_link", "_task", "_tx")

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def __aenter__(self) -> PostgresTx:
        database = self._database
        database.check()
        task = asyncio.current_task()
        if task in database.writing:
            # It would not always wait for itself here, but it would on SQLite.
            raise StoreError(
                "a task opened a transaction inside its own transaction", "pass the transaction it has, or end it first"
            )
        self._link = await database.writers.begin()
        self._task = task
        database.writing.add(task)
        self._tx = PostgresTx(self._link, database.statements, database.edge)
        return self._tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        database, tx = self._database, self._tx
        tx.end()
        database.writing.discard(self._task)
        if error is not None:
            await database.writers.roll_back(self._link)
            return
        if tx.channels:
            try:
                with database.edge:
                    notify = database.statements["ledger.notify"].text
                    await self._link.connection.execute(notify, database.hint_channel, list(tx.channels))
            except BaseException:
                await database.writers.roll_back(self._link)
                raise
        await database.writers.commit(self._link)
        for channel in tx.channels:
            database.hints.wake(channel)
