"""The ledger in a SQLite file that the application itself uses through Python's own `sqlite3`.

Our driver brings a SQLite library of its own, and `sqlite3`, with all that builds on it, brings another. The locks
of a file belong to the process, not to the library, so in one process the two do not see each other at work, and
soon damage the file. Where the application's connections carry our records, the ledger is therefore opened here,
through the application's library. It is slower: a commit is shared by nobody, and there is no queue of appends.

Blocks are those of any ledger: one connection writes, in turns; each read block has one of its own.

Invariants:
    - WAL and `synchronous=FULL`: what a commit acknowledged survives a crash of the machine.
    - The write connection has at most one user, on at most one thread.
    - No connection is used or closed in a forked child.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from holdfast.core import points
from holdfast.core.errors import Busy, Closed, ConfigError, StoreError
from holdfast.store import catalogue, migrate
from holdfast.store.adopt import Edge, ForeignTx, execute, fetch
from holdfast.store.hints import Hints
from holdfast.store.home import Home, leak
from holdfast.store.owners import Owner
from holdfast.store.sqlite_pool import make_file
from holdfast.store.turn import Turn, outwait
from holdfast.store.worker import Worker
from holdfast.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.core.clock import Clock
    from holdfast.store.batch import Batch
    from holdfast.store.catalogue import Statement
    from holdfast.store.database import Row
    from holdfast.store.settings import StoreSettings

__all__ = ["ForeignDatabase", "open_sqlite3"]

VERSION_MIN = (3, 38, 0)
"""What our statements need: RETURNING, and tests of the upsert's own row."""
BUSY_MS = 10_000
"""How long to wait for another process, or for the application, to end its transaction."""
READERS_IDLE_MAX = 4


class ForeignDatabase:
    """A `Database` on Python's own `sqlite3`. Made by `open_sqlite3`.

    Attributes:
        home: The process and loop it belongs to.
        schema: Number of the newest migration it has.
        shares: How many have it open.
        gone: Closed or abandoned.
    """

    dialect: Literal["sqlite", "postgres"] = "sqlite"
    library = "sqlite3"
    lanes = 1
    read_only = False

    def __init__(self, path: str, *, clock: Clock, settings: StoreSettings) -> None:
        self.label = path
        self.clock = clock
        self.namespace = b""
        self.schema = 0
        self.shares = 1
        self.gone = False
        self.home = Home(path)
        self.edge = Edge(path)
        self.hints = Hints(clock)
        self.turn = Turn(self.home.loop)
        self.statements = catalogue.load("sqlite")
        self._worker = Worker("holdfast writer", self.home.loop, naps=True)
        self._connection: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        self._open: list[sqlite3.Connection] = []
        self.owner = Owner(
            self,
            home=self.home,
            directory=settings.owner_dir or Path(path + ".owners"),
            clock=clock,
            settings=settings,
        )
        self.writer = Writer(self, home=self.home, clock=clock, settings=settings)
        self.writer.abandon(self._refuse)
        self.home.on_fork(lambda: leak(list(self._open)))
        points.on_crash(self.abandon)

    # As a database

    def read(self) -> ReadBlock:
        self.check()
        return ReadBlock(self)

    def write(self) -> WriteBlock:
        self.check()
        return WriteBlock(self)

    async def submit(self, statement: str, /, **params: object) -> Row | None:
        reads = self.statements[statement].reads
        async with self.read() if reads else self.write() as tx:
            return await tx.one(statement, **params)

    async def wait(self, channel: str, timeout: float, /) -> bool:  # noqa: ASYNC109 - a hint's wait ends early
        self.check()
        return await self.hints.wait(channel, timeout)

    def wake(self, channel: str, /) -> None:
        self.check()
        self.hints.wake(channel)

    async def close(self) -> None:
        self.home.check()
        if self.gone or not self.shares:
            return
        self.shares -= 1
        if self.shares:
            return
        try:
            await self.owner.release()
        finally:
            self._shut()

    def abandon(self) -> None:
        """Drop everything at once, as a crash of the process would: nothing is committed or tidied up."""
        if not self.gone and not self.home.foreign:
            self.owner.abandon()
            self._shut()

    def check(self) -> None:
        """Make sure that the ledger is open, and the caller at home.

        Raises:
            Closed: It was closed.
            WrongProcess: This is a forked child of the process that opened it.
            WrongLoop: This is another event loop.
        """
        self.home.check()
        if self.gone:
            raise Closed(f"{self.label} is closed", "open it again")

    # As the committer of a writer that takes nothing

    def ready(self, lane: int, /) -> bool:
        return False

    def commit(self, batch: Batch, /) -> bool:
        raise self._refuse()

    async def reopen(self, lane: int, /) -> None:
        raise self._refuse()

    # Transactions

    async def begin(self) -> sqlite3.Connection:
        """Begin a write transaction, in one's turn.

        Raises:
            Busy: Another connection kept the file to itself for too long.
        """
        if not self._begins() and not await outwait(self._begins, BUSY_MS / 1000):
            raise Busy(f"{self.label} is held by another process", "try again; see who keeps a transaction open")
        assert self._connection is not None
        return self._connection

    def _begins(self) -> bool:
        self.check()
        assert self._connection is not None
        with self.edge:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return False
        return True

    def take_reader(self) -> sqlite3.Connection:
        """Return a connection for a read block."""
        self.check()
        with self.edge:
            connection = self._idle.pop() if self._idle else self._connect()
            connection.execute("BEGIN")
        return connection

    def give_reader(self, connection: sqlite3.Connection) -> None:
        """Take a connection back."""
        roll_back(connection)
        if not self.gone and len(self._idle) < READERS_IDLE_MAX:
            self._idle.append(connection)
        elif connection in self._open:
            self._open.remove(connection)
            connection.close()

    # Opening and closing

    async def open(self, namespace: bytes | None) -> None:
        """Connect, and bring journal mode and schema to what they should be.

        Raises:
            SchemaMismatch: The file holds a newer ledger; it was left as it is.
            StoreError: It cannot be used; the error says why.
        """
        make_file(self.label)
        with self.edge:
            connection = self._connection = self._connect()
            migrate.status(self._read_schema(connection), "sqlite", label=self.label)
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            mode = await self._worker.call(lambda: fetch(connection, "PRAGMA journal_mode = WAL", ()))
            if mode[0][0] != "wal":
                raise StoreError(f"{self.label} is on a file system that SQLite's log cannot use", "use a local disk")
            connection.execute("PRAGMA busy_timeout = 0")  # from here on a task waits, not the loop
            while pending := migrate.status(self._read_schema(connection), "sqlite", label=self.label).pending:
                await self._migrate(pending[0], namespace)
            self.schema = self._read_schema(connection)
            rows = fetch(connection, self.statements["ledger.get"].text, {"name": "namespace"})
        if not rows:
            raise StoreError(f"{self.label} has lost its namespace", "restore a backup", code="store.corrupt")
        self.namespace = rows[0][0]
        migrate.check_namespace(self.namespace, namespace, label=self.label)

    def discard(self) -> None:
        """Close what a failed opening has opened."""
        self._shut()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.label, timeout=1.0, isolation_level=None, check_same_thread=False)
        self._open.append(connection)
        for setting in ("synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {setting}")
        return connection

    async def _migrate(self, migration: migrate.Migration, namespace: bytes | None) -> None:
        async with self.write() as tx:
            connection = tx.connection
            if self._read_schema(connection) == migration.number - 1:  # else another opener was quicker
                for text in _statements(migration.text):
                    connection.execute(text)
                await tx.run("ledger.put", [("schema", migrate.encode_number(migration.number))])
                await tx.run("ledger.add", [("namespace", migrate.namespace(namespace))])

    def _read_schema(self, connection: sqlite3.Connection) -> int:
        if not fetch(connection, self.statements["ledger.exists"].text, ()):
            return 0
        rows = fetch(connection, self.statements["ledger.get"].text, {"name": "schema"})
        return migrate.decode_number(rows[0][0] if rows else None, label=self.label)

    def _shut(self) -> None:
        self.gone = True
        self.hints.dismiss()
        self._worker.end()
        self._idle.clear()
        for connection in self._open:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        self._open.clear()

    def _refuse(self) -> StoreError:
        return StoreError(
            f"{self.label} is open through the application's own SQLite library, which takes no appends",
            "run the engine in another process, or on a ledger of its own",
        )


class ForeignBlockTx(ForeignTx):
    """A `Tx` on a connection of Python's own driver, for as long as its block lasts."""

    def __init__(self, connection: sqlite3.Connection, edge: Edge) -> None:
        super().__init__("sqlite", edge)
        self.connection = connection

    async def fetch(self, text: str, values: object) -> list[tuple[object, ...]]:
        return fetch(self.connection, text, values)

    async def execute(self, statement: Statement, rows: list[Sequence[object]]) -> int:
        return execute(self.connection, statement, rows)


class ReadBlock:
    """A consistent view."""

    __slots__ = ("_database", "_tx")

    def __init__(self, database: ForeignDatabase) -> None:
        self._database = database

    async def __aenter__(self) -> ForeignBlockTx:
        self._tx = ForeignBlockTx(self._database.take_reader(), self._database.edge)
        return self._tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tx.end()
        self._database.give_reader(self._tx.connection)


class WriteBlock:
    """A transaction that commits at its end."""

    __slots__ = ("_database", "_tx")

    def __init__(self, database: ForeignDatabase) -> None:
        self._database = database

    async def __aenter__(self) -> ForeignBlockTx:
        database = self._database
        await database.turn.take()
        try:
            self._tx = ForeignBlockTx(await database.begin(), database.edge)
        except BaseException:
            database.turn.give()
            raise
        return self._tx

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        database, connection = self._database, self._tx.connection
        self._tx.end()
        try:
            if error is None:
                database.check()
                with database.edge:
                    connection.execute("COMMIT")
        finally:
            roll_back(connection)  # nothing, when it was committed
            database.turn.give()
        if error is None:
            for channel in self._tx.channels:
                database.hints.wake(channel)


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction without a trace, if there is one."""
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _statements(script: str) -> list[str]:
    """Split a migration: the driver runs a script only outside a transaction."""
    found, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text)
            text = ""
    return found


async def open_sqlite3(
    path: str, *, clock: Clock, settings: StoreSettings, namespace: bytes | None = None, read_only: bool = False
) -> ForeignDatabase:
    """Open a ledger in a file through Python's own SQLite library.

    Args:
        path: An absolute path.
        clock: The database's time.
        settings: Limits.
        namespace: What a new ledger gets, and an old one must have.
        read_only: Not offered here.

    Raises:
        StoreError: The ledger cannot be opened; the error says why.
        ConfigError: It has another namespace, or the library is too old.
    """
    if read_only:
        raise ConfigError("a ledger in the application's library is opened for writing", "leave read_only out")
    if sqlite3.sqlite_version_info < VERSION_MIN:
        raise ConfigError(
            f"Python's SQLite library is {sqlite3.sqlite_version}; a ledger needs 3.38",
            "use a newer Python, or apsw for the application's connections",
        )
    database = ForeignDatabase(path, clock=clock, settings=settings)
    try:
        await database.open(namespace)
    except BaseException:
        database.discard()
        raise
    return database
