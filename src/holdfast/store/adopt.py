"""An application's own transaction as a `Tx`, so that its writes and ours commit together.

The application opens, commits and closes; here statements only run. What is adopted is an asyncpg connection, an
apsw connection, an aiosqlite connection, or an asynchronous connection or session of SQLAlchemy on asyncpg or
aiosqlite. Its kind is told by the package of its class, so none of these drivers needs to be installed.

Invariants:
    - Nothing here begins, commits, rolls back or closes anything.
    - Hints are collected, not sent: whoever commits wakes the channels in `channels`.
    - What a driver raises comes out as an error of the store, whose cause is the driver's own error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

import apsw

from holdfast.core.errors import Busy, Closed, ConfigError, Conflict, SchemaMismatch, StoreError, Unavailable
from holdfast.store import catalogue, sqlite_errors
from holdfast.store.catalogue import Dialect, Statement
from holdfast.store.database import Row, Tx
from holdfast.store.sqlite_tx import SqliteTx

__all__ = [
    "LABEL",
    "AdoptedTx",
    "Edge",
    "ForeignTx",
    "adopt",
    "begin_immediate",
    "execute",
    "fetch",
    "in_thread",
    "translate",
]

LABEL = "the application's database"
"""What an adopted database is called in messages: its own name is the application's."""
_VALUE_FAULTS = (OverflowError, UnicodeError, TypeError, ValueError)
_BUSY, _LOCKED = apsw.SQLITE_BUSY, apsw.SQLITE_LOCKED
_DEPTH_MAX = 16
"""How many causes a driver's error may lie beneath: a dialect wraps it once or twice."""


class AdoptedTx(Tx, Protocol):
    """A transaction that somebody else ends."""

    @property
    def channels(self) -> Iterable[str]:
        """Whom to wake when it has been committed."""
        ...

    def end(self) -> None:
        """Let nothing use it any more."""
        ...


def adopt(connection: Any, dialect: Dialect) -> AdoptedTx:
    """Take an application's connection, inside its transaction, as a `Tx`.

    Args:
        connection: asyncpg, apsw, aiosqlite, or SQLAlchemy's `AsyncConnection` or `AsyncSession`.
        dialect: What the database speaks.

    Raises:
        ConfigError: It is none of these, or speaks another dialect.
    """
    package, speaks = _kind(connection)
    if speaks != dialect:
        raise ConfigError(
            f"a connection of {package} to {speaks} cannot carry a ledger in {dialect}",
            "give one to the ledger's own database",
            code="config.unit_database",
        )
    match package:
        case "asyncpg":
            return _adopt_asyncpg(connection)
        case "apsw":
            return SqliteTx(connection, catalogue.load("sqlite"), sqlite_errors.Edge(LABEL, values=True))
        case "aiosqlite":
            return _AiosqliteTx(connection)
        case _:
            return _SqlalchemyTx(connection, dialect)


def _kind(connection: Any) -> tuple[str, str]:
    """The package of a connection's driver, and the dialect it speaks."""
    packages = {each.__module__.partition(".")[0] for each in type(connection).__mro__}
    if "sqlalchemy" in packages:
        name = _bound(connection).dialect.name
        return "sqlalchemy", "postgres" if name == "postgresql" else name
    for package, dialect in (("asyncpg", "postgres"), ("apsw", "sqlite"), ("aiosqlite", "sqlite")):
        if package in packages:
            return package, dialect
    raise ConfigError(
        f"a {type(connection).__module__}.{type(connection).__qualname__} cannot be adopted",
        "give a connection of asyncpg, apsw or aiosqlite, or SQLAlchemy's AsyncConnection or AsyncSession",
        code="config.unit_database",
    )


def _bound(connection: Any) -> Any:
    """What a connection or session of SQLAlchemy leads to: something that has a dialect."""
    return connection if hasattr(connection, "dialect") else connection.get_bind()


def _adopt_asyncpg(connection: Any) -> AdoptedTx:
    from holdfast.store import postgres_errors
    from holdfast.store.postgres_pool import Link
    from holdfast.store.postgres_tx import PostgresTx

    return PostgresTx(Link(connection, None), catalogue.load("postgres"), postgres_errors.Edge(LABEL))


class ForeignTx:
    """What transactions on somebody else's driver have in common: it fetches all rows of a statement at once.

    Attributes:
        channels: Whom to wake when it has been committed.
    """

    def __init__(self, dialect: Dialect, edge: Edge) -> None:
        self._statements = catalogue.load(dialect)
        self._edge = edge
        self._ended = False
        self.channels: list[str] = []

    async def one(self, statement: str, /, **params: object) -> Row | None:
        rows = await self.all(statement, **params)
        return rows[0] if rows else None

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        found = self._statements[statement]
        values = self._bind(found, params)
        self._check()
        with self._edge:
            if found.counts:
                return [found.row((1,))] if await self.execute(found, [found.bind(params)]) else []
            return [found.row(tuple(row)) for row in await self.fetch(found.text, values)]

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        found = self._statements[statement]
        self._check()
        with self._edge:
            return await self.execute(found, list(rows))

    def notify(self, channel: str, /) -> None:
        self.channels.append(channel)

    def end(self) -> None:
        self._ended = True

    async def fetch(self, text: str, values: Any) -> list[Any]:
        """Run a statement and return all its rows."""
        raise NotImplementedError

    async def execute(self, statement: Statement, rows: list[Sequence[object]]) -> int:
        """Run a statement once per row; return rows changed."""
        raise NotImplementedError

    def _bind(self, statement: Statement, params: dict[str, object]) -> Any:
        statement.bind(params)
        return params  # Python's own driver binds named placeholders no other way

    def _check(self) -> None:
        if self._ended:
            raise StoreError("the transaction has ended", "use it inside its block only")


class _AiosqliteTx(ForeignTx):
    """On an aiosqlite connection: each call is one job of its thread, whatever row factory the application chose."""

    def __init__(self, connection: Any) -> None:
        super().__init__("sqlite", Edge(LABEL))
        self._connection = connection

    async def fetch(self, text: str, values: Any) -> list[Any]:
        rows: list[Any] = await in_thread(self._connection, fetch, text, values)
        return rows

    async def execute(self, statement: Statement, rows: list[Sequence[object]]) -> int:
        count: int = await in_thread(self._connection, execute, statement, rows)
        return count


class _SqlalchemyTx(ForeignTx):
    """On SQLAlchemy: texts and values go to the driver as they are."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        super().__init__(dialect, Edge(LABEL))
        self._owner = connection
        self._positional = dialect == "postgres"

    def _bind(self, statement: Statement, params: dict[str, object]) -> Any:
        values = statement.bind(params)
        return values if self._positional else params

    async def fetch(self, text: str, values: Any) -> list[Any]:
        result = await (await self._connection()).exec_driver_sql(text, values)
        return list(result.fetchall()) if result.returns_rows else []

    async def execute(self, statement: Statement, rows: list[Sequence[object]]) -> int:
        connection = await self._connection()
        count = 0
        for values in self._rounds(statement, rows):
            result = await connection.exec_driver_sql(statement.text, values)
            count += max(result.rowcount, 0)
            result.close()
        return count

    def _rounds(self, statement: Statement, rows: list[Sequence[object]]) -> list[Any]:
        if not self._positional:
            return [_by_name(statement, row) for row in rows]
        from holdfast.store.postgres_tx import takes_arrays

        if not takes_arrays(statement.text):
            return [tuple(row) for row in rows]
        columns = tuple(map(list, zip(*rows, strict=True)))
        return [columns] if columns else []

    async def _connection(self) -> Any:
        return self._owner if hasattr(self._owner, "exec_driver_sql") else await self._owner.connection()


async def in_thread(connection: Any, job: Callable[..., Any], *values: object) -> Any:
    """Run a job on an aiosqlite connection's thread, with the connection of Python's own driver beneath it."""
    beneath = connection._conn  # noqa: SLF001 - the public way takes a hop per call, and the application's row factory
    return await connection._execute(job, beneath, *values)  # noqa: SLF001 - as above


def begin_immediate(connection: sqlite3.Connection, wait_ms: int) -> None:
    """Begin a transaction that writes; wait at most that long for another to end."""
    [(usual,)] = fetch(connection, "PRAGMA busy_timeout", ())
    connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
    try:
        if connection.in_transaction:  # one that has only been promised: it has seen nothing yet
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.execute(f"PRAGMA busy_timeout = {usual}")


def fetch(connection: sqlite3.Connection, text: str, values: Any) -> list[tuple[Any, ...]]:
    """Run a statement with Python's own driver and return its rows as tuples, whatever the connection makes of rows."""
    cursor = connection.cursor()
    cursor.row_factory = None
    try:
        return cursor.execute(text, values).fetchall()
    finally:
        cursor.close()


def execute(connection: sqlite3.Connection, statement: Statement, rows: Iterable[Sequence[object]]) -> int:
    """Run a statement once per row with Python's own driver; return rows changed."""
    before = connection.total_changes
    for row in rows:
        fetch(connection, statement.text, _by_name(statement, row))
    return connection.total_changes - before


def _by_name(statement: Statement, row: Sequence[object]) -> dict[str, object]:
    """Return values by name: Python's own driver binds named placeholders no other way."""
    return dict(zip(statement.params, row, strict=True))


class Edge:
    """Turns what a driver raises in a block into errors of the store; reusable and reentrant."""

    __slots__ = ("_label",)

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, StoreError):
            driver = _driver_error(error)
            if driver is not None:
                # The dialect's own error quotes statement and values; the driver's under it does so for values only.
                raise translate(driver, self._label) from _cause_of(driver)


def translate(error: Exception, label: str) -> StoreError:
    """Return the store's error for one of a driver. Messages quote no values."""
    if isinstance(error, apsw.Error):
        return sqlite_errors.translate(error, label)
    if isinstance(error, sqlite3.Error):
        return _by_code(error, label)
    if _is_asyncpg(error):
        from holdfast.store import postgres_errors

        return postgres_errors.translate(error, label)
    if isinstance(error, ValueError) and "onnection" in str(error):
        return Closed(
            f"a connection to {label} is closed", "it ends with its unit"
        )  # aiosqlite has no error of its own
    return StoreError(f"a value cannot be stored in {label}: {type(error).__name__}", code="store.value")


def _by_code(error: sqlite3.Error, label: str) -> StoreError:
    """The errors of Python's own driver, as `sqlite_errors` reads those of apsw."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = str(error)
    if code in (_BUSY, _LOCKED):
        return Busy(f"{label} is held by another connection", "try again; see who keeps a transaction open")
    if code == apsw.SQLITE_CONSTRAINT:
        return Conflict(f"a row of {label} violates a constraint: {text}")
    if code in (apsw.SQLITE_FULL, apsw.SQLITE_IOERR):
        return Unavailable(f"writing {label} failed: {text}", "check the disk and its free space", retry_after=5.0)
    if code == apsw.SQLITE_READONLY:
        return StoreError(f"{label} cannot be written: its file or folder is read-only", code="store.read_only")
    if code == apsw.SQLITE_CANTOPEN:
        return StoreError(
            f"{label} cannot be opened", "its folder must exist and be writable", code="store.cannot_open"
        )
    if code in (apsw.SQLITE_CORRUPT, apsw.SQLITE_FORMAT):
        return StoreError(f"{label} is damaged", "stop writing to it, and restore a backup", code="store.corrupt")
    if code == apsw.SQLITE_NOTADB:
        return StoreError(f"{label} is not a SQLite database", "give another path", code="store.not_a_database")
    if code == apsw.SQLITE_TOOBIG:
        return StoreError(f"a value is too big for {label}", "store less in one value", code="store.too_big")
    if code == apsw.SQLITE_ERROR and text.startswith(("no such table", "no such column")):
        return SchemaMismatch(f"a table or column of {label} is missing", "open the ledger in it once")
    if "closed" in text:
        return Closed(f"a connection to {label} is closed", "open it again")
    return StoreError(f"{label}: {text}")


def _driver_error(error: Exception) -> Exception | None:
    """Find a driver's own error: it, or what it was made of; None when no driver is behind it."""
    seen: BaseException | None = error
    for _ in range(_DEPTH_MAX):
        if seen is None:
            break
        if isinstance(seen, apsw.Error | sqlite3.Error) or (isinstance(seen, Exception) and _is_asyncpg(seen)):
            return seen
        seen = getattr(seen, "orig", None) or seen.__cause__
    return error if isinstance(error, _VALUE_FAULTS) else None


def _cause_of(error: Exception) -> BaseException | None:
    """What may stand as the cause of a store's error: the driver's, unless that quotes values."""
    if _is_asyncpg(error):
        from holdfast.store import postgres_errors

        return postgres_errors.cause_of(error)
    return error


def _is_asyncpg(error: Exception) -> bool:
    return any(each.__module__.partition(".")[0] == "asyncpg" for each in type(error).__mro__) or isinstance(
        error, OSError
    )
