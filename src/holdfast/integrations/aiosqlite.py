"""Transactions of aiosqlite connections as units of mode `transaction`.

    guard = Idempotency("orders.db", config, unit=ConnectionUnit(lambda: aiosqlite.connect("orders.db")))

In a handler `current().handle` is an aiosqlite connection, inside the unit's transaction:

    connection = cast(aiosqlite.Connection, current().handle)
    await connection.execute("INSERT INTO orders …")

Each unit has a connection of its own, opened by `connect` and closed at the end. The guard is given the file's
path, not an open ledger: it opens the file through Python's own SQLite library too, because two libraries in one
process would damage it.

Invariants:
    - A connection is closed with its unit, and never in a transaction that could still commit.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

import aiosqlite

from holdfast.idempotency.unit import Ended, UnitOfWork, WatchedTx
from holdfast.store.adopt import LABEL, Edge, adopt, begin_immediate, in_thread

__all__ = ["ConnectionUnit"]

_edge = Edge(LABEL)


class ConnectionUnit:
    """Opens transactions on one file."""

    library = "sqlite3"

    def __init__(self, connect: str | os.PathLike[str] | Callable[[], Awaitable[aiosqlite.Connection]]) -> None:
        """Use a file.

        Args:
            connect: Opens a connection to the guard's file; or the file's path.
        """
        self._connect = connect

    def begin(self, *, isolation: str | None, lock_timeout: timedelta) -> _Begun:
        """Begin a transaction; see `Unit`. Every isolation is SQLite's own, which is serializable."""
        return _Begun(self._open, lock_timeout)

    async def _open(self) -> aiosqlite.Connection:
        if isinstance(self._connect, str | os.PathLike):
            connection = await aiosqlite.connect(f"file:{_quoted(self._connect)}?mode=rw", uri=True)
            await in_thread(connection, sqlite3.Connection.execute, "PRAGMA synchronous = FULL")
            return connection
        return await self._connect()


class _Begun:
    """A transaction's block."""

    def __init__(self, connect: Callable[[], Awaitable[aiosqlite.Connection]], lock_timeout: timedelta) -> None:
        self._connect = connect
        self._wait_ms = round(lock_timeout.total_seconds() * 1000)

    async def __aenter__(self) -> UnitOfWork:
        with _edge:
            connection = await self._connect()
            try:
                await in_thread(connection, begin_immediate, self._wait_ms)
            except BaseException:
                await connection.close()
                raise
        self._work = _Work(connection)
        return self._work

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._work.part()


class _Work:
    """A transaction."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._adopted = adopt(connection, "sqlite")
        self.tx = WatchedTx(self._adopted)
        self.handle: object = connection

    @property
    def aborted(self) -> bool:
        """Whether the library aborted a statement."""
        return self.tx.aborted

    async def savepoint(self) -> None:
        await self._run("SAVEPOINT holdfast")

    async def undo(self) -> None:
        await self._run("ROLLBACK TO holdfast")

    async def commit(self) -> None:
        await in_thread(self._connection, _commit)

    async def rollback(self) -> None:
        if self.intact():
            await self._run("ROLLBACK")

    def intact(self) -> bool:
        try:
            return self._connection.in_transaction
        except ValueError:
            return False  # it was closed

    async def part(self) -> None:
        """Let nothing use it any more; what was not committed goes with the connection."""
        self._adopted.end()
        with suppress(sqlite3.Error, ValueError):
            await self._connection.close()

    async def _run(self, text: str) -> None:
        with _edge:
            await in_thread(self._connection, sqlite3.Connection.execute, text)


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("RELEASE holdfast")
    except sqlite3.Error as error:  # it went with the transaction it was in
        raise Ended from error
    connection.execute("COMMIT")


def _quoted(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
