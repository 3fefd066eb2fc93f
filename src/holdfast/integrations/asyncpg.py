"""Transactions of an asyncpg pool as units of mode `transaction`.

    pool = await asyncpg.create_pool(url)
    guard = Idempotency(url, config, unit=PoolUnit(pool))

In a handler `current().handle` is the pool's connection, inside the unit's transaction:

    connection = cast(asyncpg.Connection, current().handle)
    await connection.execute("INSERT INTO orders …")

`connection.transaction()` nests as usual. An abort by the server is raised as a `BaseException`, so that it runs the
whole unit again instead of being handled. From the savepoint on `lock_timeout` is the connection's default.

Invariants:
    - A connection goes back to its pool outside a transaction, or closed.
    - A statement that ends the unit's transaction is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from types import TracebackType
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from holdfast.idempotency.unit import UnitOfWork, WatchedTx, aborts
from holdfast.store.adopt import LABEL, adopt
from holdfast.store.postgres_errors import Edge

__all__ = ["PoolUnit"]

SAVEPOINT = "SAVEPOINT holdfast; SET LOCAL lock_timeout TO DEFAULT"
"""One round trip. A handler's own waits are not the guard's business."""
UNDO = "ROLLBACK TO SAVEPOINT holdfast"
STATEMENTS = (
    "copy_from_query", "copy_from_table", "copy_records_to_table", "copy_to_table", "execute", "executemany", "fetch",
    "fetchmany", "fetchrow", "fetchval", "prepare",
)  # fmt: skip

_edge = Edge(LABEL)


class PoolUnit:
    """Opens transactions on a pool."""

    library = None

    def __init__(self, pool: Any) -> None:
        """Use a pool.

        Args:
            pool: An `asyncpg.Pool` on the guard's database; its owner opens and closes it.
        """
        self._pool = pool

    def begin(self, *, isolation: str | None, lock_timeout: timedelta) -> _Begun:
        """Begin a transaction; see `Unit`."""
        return _Begun(self._pool, isolation, lock_timeout)


class _Begun:
    """A transaction's block."""

    def __init__(self, pool: Any, isolation: str | None, lock_timeout: timedelta) -> None:
        self._pool = pool
        self._isolation = isolation.replace(" ", "_") if isolation is not None else None
        self._wait_ms = max(round(lock_timeout.total_seconds() * 1000), 1)  # 0 would mean for ever

    async def __aenter__(self) -> UnitOfWork:
        with _edge:
            self._connection = connection = await self._pool.acquire()
            try:
                self._work = work = _Work(connection, connection.transaction(isolation=self._isolation))
                await work.transaction.start()
                await connection.execute(f"SET LOCAL lock_timeout = {self._wait_ms}")
            except BaseException:
                await self._give_back()
                raise
        return work

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._give_back()

    async def _give_back(self) -> None:
        connection, work = self._connection, self._work
        work.part()
        try:
            await work.rollback()
        except Exception:  # noqa: BLE001 - the server rolls back what nobody will commit
            work.over = False
        try:
            if not work.over:
                connection.terminate()
        except asyncpg.InterfaceError:
            return  # the handler has closed it, and the pool knows
        await self._pool.release(connection)


class _Work:
    """A transaction.

    Attributes:
        over: Whether it was ended here, and nowhere else.
    """

    def __init__(self, connection: Any, transaction: Any) -> None:
        self.transaction = transaction
        self._connection = connection
        self._adopted = adopt(connection, "postgres")
        self.tx = self._watched = WatchedTx(self._adopted)
        self.handle: object = Handle(connection)
        self.over = False

    @property
    def aborted(self) -> bool:
        """Whether the server aborted a statement."""
        assert isinstance(self.handle, Handle)
        return self._watched.aborted or self.handle.aborted

    async def savepoint(self) -> None:
        with _edge:
            await self._connection.execute(SAVEPOINT)

    async def undo(self) -> None:
        with _edge:
            await self._connection.execute(UNDO)

    async def commit(self) -> None:
        await self.transaction.commit()
        self.over = True

    async def rollback(self) -> None:
        if not self.over and self.intact():
            await self.transaction.rollback()
            self.over = True

    def intact(self) -> bool:
        assert isinstance(self.handle, Handle)
        try:
            open_ = not self._connection.is_closed() and self._connection.is_in_transaction()
        except asyncpg.InterfaceError:
            return False  # it is the pool's again
        return open_ and not self.handle.ended

    def part(self) -> None:
        """Let nothing use it any more."""
        self._adopted.end()


class Handle(PoolConnectionProxy):  # type: ignore[misc]  # the driver ships no types
    """A pool's connection as the handler sees it.

    Attributes:
        aborted: Whether the server aborted a statement.
        ended: Whether a statement ended the transaction.
    """

    def __init__(self, connection: Any) -> None:
        # Not the base's own: that would put this one in the place of the pool's.
        self._con = connection
        self._holder = None
        self.aborted = False
        self.ended = False

    def saw_abort(self) -> None:
        self.aborted = True

    def look(self) -> None:
        """Notice that the transaction is over."""
        try:
            self.ended = self.ended or not self._con.is_in_transaction()
        except asyncpg.InterfaceError:
            self.ended = True


def _watched(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    plain = getattr(PoolConnectionProxy, name)

    async def call(self: Handle, *values: Any, **options: Any) -> Any:
        try:
            with aborts(self.saw_abort):
                return await plain(self, *values, **options)
        finally:
            self.look()

    call.__name__, call.__doc__ = name, plain.__doc__
    return call


for _name in STATEMENTS:
    setattr(Handle, _name, _watched(_name))
