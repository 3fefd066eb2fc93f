"""The ledger in a SQLite file, or in memory.

One connection writes; a few more read, each block in a snapshot of its own; one copies the log
(`sqlite_log`). The write connection has one user at a time, a `write()` block or a group commit, in the order
they came (`Turn`). Statements run inline on the loop's thread: they are short, and a thread would cost more
than they do. What can take long, a slow flush or a batch's wait for another process, goes to the writer thread.

A flush is inline too while flushes are quick: on a good disk it takes less time than waking a thread, and
unlike a thread it cannot be starved by a loop that never idles.

In memory there is one connection, so a read block takes its turn like a write block.

Invariants:
    - WAL and `synchronous=FULL`: what a commit acknowledged survives a crash of the machine.
    - The write connection has at most one user, on at most one thread.
    - No connection is used or closed in a forked child.
    - What was deleted or replaced is overwritten with zeros in the file, once the log is copied.
    - A read-only ledger has no connection that could write, and leaves no file behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import apsw

from holdfast.core import points, trace
from holdfast.core.errors import Busy, Closed, StoreError, Unavailable
from holdfast.store import catalogue, migrate
from holdfast.store.batch import Batch
from holdfast.store.database import Call, Overdue
from holdfast.store.hints import Hints
from holdfast.store.home import Home
from holdfast.store.owners import Owner
from holdfast.store.sqlite_batch import first_of, roll_back, run_batch
from holdfast.store.sqlite_errors import Edge, translate
from holdfast.store.sqlite_log import WAL_BYTES_MAX, LogKeeper
from holdfast.store.sqlite_pool import Pool, Reader, find_file, leave_log, make_file, pragmas
from holdfast.store.sqlite_tx import ReadBlock, WriteBlock
from holdfast.store.turn import Turn, outwait
from holdfast.store.worker import Worker
from holdfast.store.writer import Writer

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.store.catalogue import Statement
    from holdfast.store.database import Row
    from holdfast.store.settings import StoreSettings

__all__ = ["SqliteDatabase", "open_sqlite"]

MEMORY = ":memory:"
BUSY_S = 10.0
"""How long to wait for another process to end its transaction: far longer than any of ours takes."""
QUICK_S = 0.003
"""A flush up to this long may hold up the loop."""
PROBE_EVERY, PROBE_EVERY_MAX = 32, 1024
"""While flushes are slow, every so many commits one is made inline, to see whether they are quick again."""


class _Occupied(Exception):
    """Another process is writing."""


class SqliteDatabase:
    """A `Database` on SQLite, and the `Committer` of its writer. Made by `open_sqlite`.

    Attributes:
        home: The process and loop it belongs to.
        schema: Number of the newest migration it has.
        shares: How many have it open.
        gone: Closed or abandoned.
    """

    dialect: Literal["sqlite", "postgres"] = "sqlite"
    lanes = 1
    connection: apsw.Connection
    _cursor: apsw.Cursor

    def __init__(self, path: str, *, clock: Clock, settings: StoreSettings, read_only: bool) -> None:
        self.label = path
        self.memory = path == MEMORY
        self.read_only = read_only
        self.clock = clock
        self.namespace = b""
        self.schema = 0
        self.shares = 1
        self.gone = False
        self.home = Home(path)
        self.edge = Edge(path, values=True)
        self.hints = Hints(clock)
        self.turn = Turn(self.home.loop)
        self.statements = catalogue.load("sqlite")
        self._pool = Pool(path, read_only=read_only)
        self._worker = Worker("holdfast writer", self.home.loop, naps=True)
        self._log: LogKeeper | None = None
        self._flush_s = 0.0
        self._unprobed = 0
        self._probe_every = PROBE_EVERY
        directory = None if self.memory or read_only else settings.owner_dir or Path(path + ".owners")
        self.owner = Owner(self, home=self.home, directory=directory, clock=clock, settings=settings)
        self.writer = Writer(self, home=self.home, clock=clock, settings=settings)
        if read_only:
            self.writer.abandon(self._refuse)
        self.home.on_fork(self._part)
        self._crashed = False
        points.on_crash(self._crash)

    # As a database

    def read(self) -> ReadBlock:
        self.check()
        return ReadBlock(self)

    def write(self) -> WriteBlock:
        self.check()
        if self.read_only:
            raise self._refuse()
        return WriteBlock(self)

    async def submit(self, statement: str, /, **params: object) -> Row | None:
        self.check()
        found = self.statements[statement]
        values = found.bind(params)
        if not self.memory:
            if found.reads:
                return self._look(found, values)
        elif not (self.turn.taken or self.writer.pending_items or points.armed):  # there is no flush to share
            try:
                rows = self._cursor.execute(found.text, values).fetchall()
            except self.edge.mapped as error:
                raise translate(error, self.label) from error
            return first_of(found, rows, self.connection)
        future: asyncio.Future[Row | None] = self.home.loop.create_future()
        call = Call(found, values, future)
        try:
            if not self.writer.offer(call):
                await self.writer.put(call)
            return await future
        except Overdue:
            self.writer.withdraw(call)
            raise Unavailable(f"{self.label} did not acknowledge a statement in time", "try again") from None
        except asyncio.CancelledError:
            self.writer.withdraw(call)
            if self._crashed:  # which is what ended the wait
                raise points.Crashed("the process crashed") from None
            raise

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
            if not self.read_only:
                await self.writer.close()
        finally:
            try:
                await self.owner.release()
            finally:
                await self._shut()

    def abandon(self) -> None:
        """Drop everything at once, as a crash of the process would: nothing is committed or tidied up."""
        if self.gone or self.home.foreign:
            return
        self.gone = True
        self.writer.abandon()
        self.owner.abandon()
        self.hints.dismiss()
        self._pool.leave_log()
        if self._log is not None:
            self._log.abandon()
        if self._worker.idle:
            self._pool.close()
        else:
            self._worker.submit(self._pool.close, lambda _: None)
        self._worker.end()

    def _crash(self) -> None:
        self._crashed = True
        self.abandon()

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

    # As the writer's committer

    def ready(self, lane: int, /) -> bool:
        if self.turn.taken:
            self.turn.ask(self._go)
            return False
        return True

    def commit(self, batch: Batch, /) -> bool:
        self.turn.take_now()
        if not self._is_quick():
            self._worker.submit(lambda: self._commit_slowly(batch), lambda error: self._landed(batch, error))
            return False
        try:
            try:
                self._begin()
            except _Occupied:
                self._worker.submit(self._begin_patiently, lambda error: self._begun(batch, error))
                return False
            self._finish(batch)
        except BaseException:
            self.turn.give()
            raise
        if self._log is not None:
            self._log.look()
        self.turn.give()
        return True

    async def reopen(self, lane: int, /) -> None:
        await self.turn.take()
        try:
            self.check()
            with self.edge:
                self._reconnect()
                self.connection.execute(self.statements["ledger.exists"].text).fetchall()
        finally:
            self.turn.give()

    def _look(self, statement: Statement, values: tuple[Any, ...]) -> Row | None:
        """Run a statement that only reads, beside whoever writes."""
        with self.edge:
            reader = self._pool.take()
            try:
                rows = reader.connection.execute(statement.text, values).fetchall()
                self._pool.verify(reader)
            finally:
                self._pool.give(reader)
        return statement.row(rows[0]) if rows else None

    def _go(self) -> None:
        self.writer.go(0)

    def _begun(self, batch: Batch, error: BaseException | None) -> None:
        """Go on with a batch whose transaction the thread could begin."""
        if error is None:
            try:
                self._finish(batch)
            except points.Crashed:
                return
            except Exception as raised:  # noqa: BLE001 - the writer sorts failures
                error = raised
        self._landed(batch, error)

    def _landed(self, batch: Batch, error: BaseException | None) -> None:
        if self.gone:
            return
        if self._log is not None:
            self._log.look()
        self.turn.give()
        batch.landed(error)

    def _commit_slowly(self, batch: Batch) -> None:
        self._begin_patiently()
        self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        """Run a batch in the transaction that has begun, and commit it."""
        if trace.enabled:
            with trace.span("holdfast.durable.commit", items=len(batch.items), bytes=batch.size):
                self._run_and_commit(batch)
        else:
            self._run_and_commit(batch)

    def _run_and_commit(self, batch: Batch) -> None:
        run_batch(batch, self.connection, self.statements, self.label)
        if self._log is not None:
            self._log.make_room(self.connection.filename_wal)
        try:
            self._commit()
        except apsw.Error as error:
            batch.in_doubt = True
            roll_back(self.connection)
            raise translate(error, self.label) from error
        if points.armed:
            points.reach("batch.committed")

    # Transactions

    async def begin(self) -> None:
        """Begin a write transaction, in one's turn.

        Raises:
            Busy: Another process kept the file to itself for too long.
        """
        if not self._begins() and not await outwait(self._begins, BUSY_S):
            raise Busy(f"{self.label} is held by another process", "try again; see who keeps a transaction open")

    def _begins(self) -> bool:
        self.check()
        try:
            self._begin()
        except _Occupied:
            return False
        return True

    async def commit_block(self) -> None:
        """Commit the transaction of a write block; roll it back when that fails."""
        self.check()
        try:
            with self.edge:
                if self._is_quick():
                    self._commit()
                else:
                    await self._worker.call(self._commit)
        finally:
            roll_back(self.connection)  # nothing, when it was committed
        if self._log is not None:
            self._log.look()

    def _begin(self) -> None:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            raise _Occupied from None
        except apsw.Error as error:
            raise translate(error, self.label) from error

    def _begin_patiently(self) -> None:
        """Begin on the writer thread, where waiting for another process holds up nobody."""
        with self.edge:
            self._wait_while_busy(lambda: self.connection.execute("BEGIN IMMEDIATE"))

    def _wait_while_busy(self, action: Callable[[], object]) -> None:
        deadline = time.perf_counter() + BUSY_S
        pause = 0.0005
        while True:
            try:
                action()
            except apsw.BusyError:
                if time.perf_counter() > deadline:
                    raise
            else:
                return
            if self._worker.stopping.wait(pause):
                raise Closed(f"{self.label} is closed", "open it again")
            pause = min(pause * 1.5, 0.01)

    def _commit(self) -> None:
        began = time.perf_counter()
        self.connection.execute("COMMIT")
        flush_s = time.perf_counter() - began
        self._flush_s += (flush_s - self._flush_s) * 0.2
        if flush_s < QUICK_S:
            self._probe_every = PROBE_EVERY

    def _is_quick(self) -> bool:
        """Whether a flush may hold up the loop; now and then one does, to find out."""
        if self._flush_s < QUICK_S or self.memory or points.armed:
            return True
        self._unprobed += 1
        if self._unprobed < self._probe_every:
            return False
        self._unprobed = 0
        self._probe_every = min(self._probe_every * 2, PROBE_EVERY_MAX)
        self._flush_s = 0.0  # a thread's times include its wait for the interpreter: start measuring afresh
        return True

    async def take_reader(self) -> Reader:
        """Return a connection for a read block."""
        self.check()
        if self.memory:
            await self.turn.take()
            return Reader(self.connection, None)
        with self.edge:
            return self._pool.take()

    def give_reader(self, reader: Reader) -> None:
        """Take a connection back."""
        if self.memory:
            self.turn.give()
        else:
            self._pool.give(reader)

    def verify(self, reader: Reader) -> None:
        """Make sure that what a block read belongs together.

        Raises:
            Busy: The file was read without locks, and somebody changed it meanwhile.
        """
        self._pool.verify(reader)

    # Opening

    async def open(self, namespace: bytes | None) -> None:
        """Connect, and bring journal mode and schema to what they should be.

        Raises:
            SchemaMismatch: The file holds a newer ledger; it was left as it is.
            StoreError: It cannot be used; the error says why.
        """
        if not self.memory:
            make_file(self.label)
        with Edge(self.label):
            await self._patiently(self._connect)
            await self._patiently(lambda: migrate.status(self._read_schema(), "sqlite", label=self.label))
            if not self.memory:
                await self._patiently(self._start_log)
            self._prepare()
            await self._migrate(namespace)
            self._read_identity(self.connection, namespace)

    async def open_read_only(self, namespace: bytes | None) -> None:
        """See that there is a ledger whose schema we know."""
        with Edge(self.label):
            find_file(self.label)
            reader = await self.take_reader()
            applied = self._read_schema(reader.connection)
            if migrate.status(applied, "sqlite", label=self.label).pending:
                raise migrate.behind(applied, label=self.label)
            self._read_identity(reader.connection, namespace)
            self.give_reader(reader)

    def discard(self) -> None:
        """Close what a failed opening has opened."""
        self.gone = True
        self.writer.abandon()
        self._pool.close()
        self._worker.end()

    async def _patiently(self, action: Callable[[], object]) -> None:
        try:
            action()
        except apsw.BusyError:
            await self._worker.call(lambda: self._wait_while_busy(action))

    def _connect(self) -> None:
        create = apsw.SQLITE_OPEN_CREATE if self.memory else 0  # a file has been made, with its mode
        self.connection = self._pool.connect(apsw.SQLITE_OPEN_READWRITE | create)
        self._cursor = self.connection.cursor()  # for statements on their own: making one costs as much as a small one

    def _start_log(self) -> None:
        mode = self.connection.execute("PRAGMA journal_mode = WAL").fetchall()[0][0]
        if mode != "wal":
            raise StoreError(
                f"{self.label} is on a file system without shared memory, which SQLite's log needs", "use a local disk"
            )

    def _prepare(self) -> None:
        """Make the write connection what it should be."""
        pragmas(
            self.connection, "synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON",
            "wal_autocheckpoint = 0", f"journal_size_limit = {WAL_BYTES_MAX}",
        )  # fmt: skip
        if self.memory:
            return
        # What is deleted is gone from the file. It costs where values of many pages are deleted: twice the log.
        pragmas(self.connection, "secure_delete = ON")
        self.connection.set_busy_timeout(0)  # from here on the writer thread waits, not the loop
        if self._log is None:
            page_bytes = cast(int, self.connection.execute("PRAGMA page_size").fetchall()[0][0])
            self._log = LogKeeper(
                self._connect_keeper, turn=self.turn, loop=self.home.loop, page_bytes=page_bytes, label=self.label
            )
        self.connection.set_wal_hook(self._log.on_commit)

    def _connect_keeper(self) -> apsw.Connection:
        connection = apsw.Connection(self.label, flags=apsw.SQLITE_OPEN_READWRITE)
        pragmas(connection, "synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON")
        return connection

    def _reconnect(self) -> None:
        """Replace the write connection: after an error of the file its own state is not to be trusted."""
        if self.memory:
            roll_back(self.connection)
            return
        before = self.connection
        self._connect()
        self._prepare()
        leave_log(before)
        with contextlib.suppress(apsw.Error):
            self._pool.part_with(before)

    async def _migrate(self, namespace: bytes | None) -> None:
        while pending := migrate.status(self._read_schema(), "sqlite", label=self.label).pending:
            migration = pending[0]
            async with self.write() as tx:
                if self._read_schema() == migration.number - 1:  # else another opener was quicker
                    for _ in self.connection.execute(migration.text):
                        pass
                    await tx.run("ledger.put", [("schema", migrate.encode_number(migration.number))])
                    await tx.run("ledger.add", [("namespace", migrate.namespace(namespace))])

    def _read_schema(self, connection: apsw.Connection | None = None) -> int:
        execute = (connection or self.connection).execute
        if not execute(self.statements["ledger.exists"].text).fetchall():
            return 0
        rows = execute(self.statements["ledger.get"].text, {"name": "schema"}).fetchall()
        return migrate.decode_number(cast(bytes, rows[0][0]) if rows else None, label=self.label)

    def _read_identity(self, connection: apsw.Connection, namespace: bytes | None) -> None:
        self.schema = self._read_schema(connection)
        rows = connection.execute(self.statements["ledger.get"].text, {"name": "namespace"}).fetchall()
        if not rows:
            raise StoreError(f"{self.label} has lost its namespace", "restore a backup", code="store.corrupt")
        self.namespace = cast(bytes, rows[0][0])
        migrate.check_namespace(self.namespace, namespace, label=self.label)

    # Closing

    async def _shut(self) -> None:
        try:
            if self._log is not None:
                await self._log.stop()
            self.gone = True
            self.hints.dismiss()
            with self.edge:
                if self.memory:
                    self._pool.close()
                else:
                    # The last connection copies the log into the file, which can take a while.
                    await self._worker.call(self._pool.close)
        finally:
            self.gone = True
            self._worker.end()

    def _part(self) -> None:
        """In a forked child: see to it that no connection is ever closed there."""
        self._pool.leak()
        if self._log is not None:
            self._log.leak()

    def _refuse(self) -> StoreError:
        return StoreError(f"{self.label} is open for reading only", "open it for writing", code="store.read_only")


async def open_sqlite(
    path: str, *, clock: Clock, settings: StoreSettings, namespace: bytes | None = None, read_only: bool = False
) -> SqliteDatabase:
    """Open a ledger in a file, made if need be with mode 0600, or in memory.

    Args:
        path: An absolute path, or `:memory:`.
        clock: The database's time.
        settings: Limits.
        namespace: What a new ledger gets, and an old one must have.
        read_only: Change nothing, and refuse to write.

    Raises:
        StoreError: The ledger cannot be opened; the error says why.
        ConfigError: It has another namespace.
    """
    database = SqliteDatabase(path, clock=clock, settings=settings, read_only=read_only)
    try:
        if read_only and not database.memory:
            await database.open_read_only(namespace)
        else:
            await database.open(namespace)
    except BaseException:
        database.discard()
        raise
    return database
