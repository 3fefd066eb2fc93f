"""Transactions on SQLite: the statements inside, and the blocks around them.

Invariants:
    - A transaction serves inside its block only.
    - A write block that ends normally has committed; whatever else happens, it leaves nothing and passes the turn on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import apsw

from holdfast.core.errors import StoreError
from holdfast.store.catalogue import Catalogue
from holdfast.store.database import Row
from holdfast.store.sqlite_batch import first_of, roll_back
from holdfast.store.sqlite_errors import Edge

if TYPE_CHECKING:
    from holdfast.store.sqlite import SqliteDatabase

__all__ = ["ReadBlock", "SqliteTx", "WriteBlock"]


class SqliteTx:
    """A `Tx` on a connection, for as long as its block lasts."""

    __slots__ = ("_connection", "_edge", "_statements", "channels")

    def __init__(self, connection: apsw.Connection, statements: Catalogue, edge: Edge) -> None:
        self._connection: apsw.Connection | None = connection
        self._statements = statements
        self._edge = edge
        self.channels: list[str] = []

    async def one(self, statement: str, /, **params: object) -> Row | None:
        found = self._statements[statement]
        connection = self._open()
        with self._edge:
            row = connection.execute(found.text, found.bind(params)).fetchone()
        return first_of(found, [] if row is None else [row], connection)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        found = self._statements[statement]
        if found.counts:
            row = await self.one(statement, **params)
            return [] if row is None else [row]
        with self._edge:
            return list(map(found.row, self._open().execute(found.text, found.bind(params))))

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        found = self._statements[statement]
        connection = self._open()
        before = connection.total_changes()
        with self._edge:
            for _ in connection.executemany(found.text, cast(Any, rows)):
                pass
        return connection.total_changes() - before

    def notify(self, channel: str, /) -> None:
        self.channels.append(channel)

    def end(self) -> None:
        """Let nothing use it any more."""
        self._connection = None

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            raise StoreError("the transaction has ended", "use it inside its block only")
        return self._connection


class ReadBlock:
    """A consistent view."""

    __slots__ = ("_database", "_reader", "_tx")

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def __aenter__(self) -> SqliteTx:
        database = self._database
        self._reader = await database.take_reader()
        try:
            with database.edge:
                self._reader.connection.execute("BEGIN")
        except BaseException:
            database.give_reader(self._reader)
            raise
        self._tx = SqliteTx(self._reader.connection, database.statements, database.edge)
        return self._tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tx.end()
        try:
            roll_back(self._reader.connection)
            if error is None:
                self._database.verify(self._reader)
        finally:
            self._database.give_reader(self._reader)


class WriteBlock:
    """A transaction that commits at its end."""

    __slots__ = ("_database", "_tx")

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def __aenter__(self) -> SqliteTx:
        database = self._database
        database.check()
        await database.turn.take()
        try:
            await database.begin()
        except BaseException:
            database.turn.give()
            raise
        self._tx = SqliteTx(database.connection, database.statements, database.edge)
        return self._tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        database = self._database
        self._tx.end()
        try:
            if error is None:
                await database.commit_block()
            else:
                roll_back(database.connection)
        finally:
            database.turn.give()
        if error is None:
            for channel in self._tx.channels:
                database.hints.wake(channel)
