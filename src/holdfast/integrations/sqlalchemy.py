"""Transactions of SQLAlchemy sessions as units of mode `transaction`, on asyncpg or aiosqlite.

    sessions = async_sessionmaker(create_async_engine("postgresql+asyncpg://…"))
    guard = Idempotency("postgresql://…", config, unit=SessionUnit(sessions))

In a handler `current().handle` is an `AsyncSession`, inside the unit's transaction:

    session = cast(AsyncSession, current().handle)
    session.add(Order(…))

What is pending in the session is flushed before the commit. The handler does not commit: neither `session.commit()`
nor `async with session.begin()`; `session.begin_nested()` is fine. An abort by the server is raised as a
`BaseException`, so that it runs the whole unit again instead of being handled. On aiosqlite the guard is given the
file's path, not an open ledger, for it must use the file through the same SQLite library.

Invariants:
    - A session is closed with its unit; a connection goes back to its pool outside a transaction, or closed.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from holdfast.core.errors import ConfigError
from holdfast.idempotency.unit import Aborted, Ended, Unfit, UnitOfWork, WatchedTx, chain, is_abort
from holdfast.store.adopt import LABEL, Edge, adopt, begin_immediate, in_thread

__all__ = ["SessionUnit"]

OPTION = "holdfast_unit"
"""The execution option that tells a unit's connection from the application's others."""
DRIVERS = {"asyncpg": "postgres", "aiosqlite": "sqlite"}
NO_SUCH_SAVEPOINT = ("3B001", "25P01")

_edge = Edge(LABEL)
_watched: WeakSet[Any] = WeakSet()


class SessionUnit:
    """Opens transactions on sessions."""

    def __init__(self, sessions: async_sessionmaker[Any]) -> None:
        """Use the sessions of a maker.

        Args:
            sessions: Makes an `AsyncSession` on the guard's database.

        Raises:
            ConfigError: They are not on asyncpg or aiosqlite.
        """
        self._sessions = sessions
        engine: Any = sessions().get_bind()
        self._driver = engine.dialect.driver
        if self._driver not in DRIVERS:
            raise ConfigError(
                f"sessions on {self._driver} cannot carry a ledger",
                "make the engine with postgresql+asyncpg or sqlite+aiosqlite",
                code="config.unit_database",
            )

    @property
    def library(self) -> Literal["sqlite3"] | None:
        """Which SQLite library the sessions use, if any."""
        return "sqlite3" if self._driver == "aiosqlite" else None

    def begin(self, *, isolation: str | None, lock_timeout: timedelta) -> _Begun:
        """Begin a transaction; see `Unit`. On SQLite every isolation is its own, which is serializable."""
        return _Begun(self._sessions(), self._driver, isolation, lock_timeout)


class _Begun:
    """A transaction's block."""

    def __init__(self, session: AsyncSession, driver: str, isolation: str | None, lock_timeout: timedelta) -> None:
        self._session = session
        self._driver = driver
        self._isolation = isolation.upper() if isolation is not None and driver == "asyncpg" else None
        self._wait_ms = max(round(lock_timeout.total_seconds() * 1000), 1)  # 0 would mean for ever

    async def __aenter__(self) -> UnitOfWork:
        work = self._work = _Work(self._session, self._driver)
        options: dict[str, Any] = {OPTION: work}
        if self._isolation is not None:
            options["isolation_level"] = self._isolation
        with _edge:
            try:
                connection = await self._session.connection(execution_options=options)
                _watch(connection.sync_engine)
                raw = (await connection.get_raw_connection()).driver_connection
                if self._driver == "asyncpg":
                    await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {self._wait_ms}")
                else:
                    await in_thread(raw, begin_immediate, self._wait_ms)
                work.begun(raw)
            except BaseException:
                await _close(self._session)
                raise
        return work

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.part()
        await _close(self._session)


class _Work:
    """A transaction."""

    def __init__(self, session: AsyncSession, driver: str) -> None:
        self._session = session
        self._driver = driver
        self._adopted = adopt(session, "postgres" if driver == "asyncpg" else "sqlite")
        self.tx = self._watched_tx = WatchedTx(self._adopted)
        self.handle: object = session
        self._raw: Any = None
        self._root: Any = None
        self._nested: Any = None
        self.saw_abort = False

    @property
    def aborted(self) -> bool:
        """Whether the database aborted a statement."""
        return self._watched_tx.aborted or self.saw_abort

    def begun(self, raw: Any) -> None:
        """Take note of the transaction, so that another can be told from it."""
        self._raw = raw
        self._root = self._session.sync_session.get_transaction()

    async def savepoint(self) -> None:
        with _edge:
            self._nested = await self._session.begin_nested()
            if self._driver == "asyncpg":  # a handler's own waits are not the guard's business
                connection = await self._session.connection()
                await connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")

    async def undo(self) -> None:
        with _edge:
            await self._nested.rollback()

    async def commit(self) -> None:
        try:
            await self._session.flush()
        except Exception as error:
            raise Unfit from error
        try:
            await self._session.commit()
        except Exception as error:
            if _lost_savepoint(error):
                raise Ended from error
            raise

    async def rollback(self) -> None:
        await self._session.rollback()

    def intact(self) -> bool:
        if self._session.sync_session.get_transaction() is not self._root:
            return False
        try:
            if self._driver == "asyncpg":
                return not self._raw.is_closed() and bool(self._raw.is_in_transaction())
            return bool(self._raw.in_transaction)
        except ValueError:
            return False  # it was closed

    def part(self) -> None:
        """Let nothing use it any more."""
        self._adopted.end()


def _watch(engine: Any) -> None:
    """Have the aborts of a unit's statements raised as what no handler catches."""
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "handle_error", _on_error)


def _on_error(context: Any) -> BaseException | None:
    connection = context.connection
    work = connection.get_execution_options().get(OPTION) if connection is not None else None
    if not isinstance(work, _Work) or not is_abort(context.original_exception):
        return None
    work.saw_abort = True
    return Aborted()


def _lost_savepoint(error: BaseException) -> bool:
    return any(
        getattr(each, "sqlstate", None) in NO_SUCH_SAVEPOINT or "no such savepoint" in str(each)
        for each in chain(error)
    )


async def _close(session: AsyncSession) -> None:
    """Close a session to the end: a connection must not stay half given back."""
    await asyncio.shield(session.close())
