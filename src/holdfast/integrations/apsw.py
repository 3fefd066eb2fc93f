"""Transactions of apsw connections as units of mode `transaction`.

    guard = Idempotency("orders.db", config, unit=ConnectionUnit("orders.db"))

In a handler `current().handle` is an apsw connection, inside the unit's transaction:

    connection = cast(apsw.Connection, current().handle)
    connection.execute("INSERT INTO orders …")

Each unit has a connection of its own, opened by `connect` and closed at the end. Statements run on the event loop's
thread, as the ledger's own do; a wait for another writer does not.

Invariants:
    - A connection is closed with its unit, and never in a transaction that could still commit.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

import apsw

from holdfast.core.clock import Clock, SystemClock
from holdfast.idempotency.unit import Ended, UnitOfWork, WatchedTx
from holdfast.store.adopt import LABEL, adopt
from holdfast.store.sqlite_errors import Edge

__all__ = ["ConnectionUnit"]

PAUSE_FIRST_S, PAUSE_MAX_S = 0.0005, 0.01
COMMIT_BUSY_MS = 2000
"""How long a commit may hold up the loop for a reader, on a file without a write-ahead log."""

_edge = Edge(LABEL)


class ConnectionUnit:
    """Opens transactions on one file."""

    library = None

    def __init__(
        self,
        connect: str | os.PathLike[str] | Callable[[], apsw.Connection | Awaitable[apsw.Connection]],
        *,
        clock: Clock | None = None,
    ) -> None:
        """Use a file.

        Args:
            connect: Opens a connection to the guard's file; or the file's path.
            clock: Measures waits for other writers.
        """
        self._connect = connect
        self._clock = clock or SystemClock()

    def begin(self, *, isolation: str | None, lock_timeout: timedelta) -> _Begun:
        """Begin a transaction; see `Unit`. Every isolation is SQLite's own, which is serializable."""
        return _Begun(self._open, lock_timeout, self._clock)

    async def _open(self) -> apsw.Connection:
        if isinstance(self._connect, str | os.PathLike):
            connection = apsw.Connection(os.fspath(self._connect), flags=apsw.SQLITE_OPEN_READWRITE)
            connection.execute("PRAGMA synchronous = FULL").fetchall()
            return connection
        opened = self._connect()
        return await opened if inspect.isawaitable(opened) else opened


class _Begun:
    """A transaction's block."""

    def __init__(
        self, connect: Callable[[], Awaitable[apsw.Connection]], lock_timeout: timedelta, clock: Clock
    ) -> None:
        self._connect = connect
        self._wait_s = lock_timeout.total_seconds()
        self._clock = clock

    async def __aenter__(self) -> UnitOfWork:
        with _edge:
            connection = await self._connect()
            try:
                await self._begin(connection)
            except BaseException:
                connection.close(True)  # noqa: FBT003 - force: its cursors go with it
                raise
        self._work = _Work(connection)
        return self._work

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.part()

    async def _begin(self, connection: apsw.Connection) -> None:
        deadline = self._clock.monotonic() + self._wait_s
        pause = PAUSE_FIRST_S
        connection.set_busy_timeout(0)  # the wait must not hold up the loop: whom it is for may run in it
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except apsw.BusyError:
                if self._clock.monotonic() >= deadline:
                    raise
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, PAUSE_MAX_S)
        connection.set_busy_timeout(COMMIT_BUSY_MS)


class _Work:
    """A transaction."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._adopted = adopt(connection, "sqlite")
        self.tx = WatchedTx(self._adopted)
        self.handle: object = connection

    @property
    def aborted(self) -> bool:
        """Whether the library aborted a statement."""
        return self.tx.aborted

    async def savepoint(self) -> None:
        with _edge:
            self._connection.execute("SAVEPOINT holdfast")

    async def undo(self) -> None:
        with _edge:
            self._connection.execute("ROLLBACK TO holdfast")

    async def commit(self) -> None:
        try:
            self._connection.execute("RELEASE holdfast")
        except apsw.Error as error:  # it went with the transaction it was in
            raise Ended from error
        self._connection.execute("COMMIT")

    async def rollback(self) -> None:
        if self.intact():
            self._connection.execute("ROLLBACK")

    def intact(self) -> bool:
        try:
            return self._connection.in_transaction
        except apsw.ConnectionClosedError:
            return False

    def part(self) -> None:
        """Let nothing use it any more; what was not committed goes with the connection."""
        self._adopted.end()
        with suppress(apsw.Error):
            self._connection.close(True)  # noqa: FBT003 - force: its cursors go with it
