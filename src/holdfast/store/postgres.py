"""The ledger in PostgreSQL.

Blocks borrow connections from two pools, one for reading and one for writing, so that a reader never
waits for writers. Appends go over lanes: connections of their own, each committing one batch at a time while
the next piles up; an execution keeps to one lane, so its appends become durable in their order. One more
connection listens for hints once somebody waits.

A hint is sent inside the transaction it is about. Waiters of this process are woken by the commit itself.

The database's clock has the authority: a `SystemClock` gets an offset from it when the ledger is opened. No
statement asks the database for the time.

Invariants:
    - What a commit acknowledged survives a crash of the server: it flushes, and every session waits for that.
    - Of many openers one at a time changes the schema.
    - No message holds a password.
    - A connection is never closed, or used, in a forked child.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from holdfast.core import points, trace
from holdfast.core.clock import SystemClock
from holdfast.core.errors import Closed, ConfigError, SchemaMismatch, StoreError, Unavailable
from holdfast.core.loops import Tasks, spawn, spawn_held
from holdfast.store import catalogue, migrate
from holdfast.store.batch import Batch
from holdfast.store.hints import Hints
from holdfast.store.home import Home
from holdfast.store.owners import Owner
from holdfast.store.postgres_batch import Lane
from holdfast.store.postgres_errors import Edge, label_of
from holdfast.store.postgres_hints import Listener
from holdfast.store.postgres_pool import CLOSE_S, Connector, Link, Pool
from holdfast.store.postgres_tx import PostgresTx, ReadBlock, WriteBlock
from holdfast.store.writer import Writer

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.store.database import Row
    from holdfast.store.settings import StoreSettings

__all__ = ["PostgresDatabase", "open_postgres"]

LANES: Final = 2
"""While one waits for the server's flush the other is filled; more would make smaller batches."""
PREPARE_AFTER: Final = 3
"""A process with so many batches behind it will have more: lanes that were not needed yet are made ready."""
READERS_MAX: Final = 8
WRITERS_MAX: Final = 8
BEGIN_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
BEGIN_WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
MIGRATION_LOCK: Final = 0x686F6C6466617374
"""An advisory lock is a number; this one spells the name."""
OFFSET_MIN_US: Final = 1000
"""Clocks that differ by less are one clock: the machine's own."""


class PostgresDatabase:
    """A `Database` on PostgreSQL, and the `Committer` of its writer. Made by `open_postgres`.

    Attributes:
        home: The process and loop it belongs to.
        schema: Number of the newest migration it has.
        shares: How many have it open.
        gone: Closed or abandoned.
        writing: The tasks inside a write block.
    """

    dialect: Literal["sqlite", "postgres"] = "postgres"
    lanes = LANES

    def __init__(self, url: str, *, clock: Clock, settings: StoreSettings, read_only: bool) -> None:
        self.label = label_of(url)
        self.read_only = read_only
        self.clock = clock
        self.namespace = b""
        self.schema = 0
        self.shares = 1
        self.gone = False
        self.home = Home(self.label)
        self.hints = Hints(clock)
        self.statements = catalogue.load("postgres")
        self.writing: set[asyncio.Task[Any] | None] = set()
        self.hint_channel = ""
        self._connector = Connector(url, self.label, settings=settings, statements=self.statements, read_only=read_only)
        self.edge = Edge(self.label, self._connector.learn)
        self.readers = Pool(self._connector, begin=BEGIN_READ, edge=self.edge, most=READERS_MAX)
        self.writers = Pool(self._connector, begin=BEGIN_WRITE, edge=self.edge, most=WRITERS_MAX)
        self._listener: Listener | None = None
        self._lanes = [Lane(self._connect_lane, statements=self.statements, label=self.label) for _ in range(LANES)]
        directory = None if read_only else settings.owner_dir or _runtime_directory()
        self.owner = Owner(self, home=self.home, directory=directory, clock=clock, settings=settings)
        self._batches = 0
        self._commits: list[asyncio.Task[None]] = []
        self._making = Tasks()
        self.writer = Writer(self, home=self.home, clock=clock, settings=settings)
        if read_only:
            self.writer.abandon(self._refuse)
        self.home.on_fork(self._connector.leak)
        points.on_crash(self.abandon)

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
        if self.read_only:
            raise self._refuse()
        found = self.statements[statement]
        row = await self.writers.fetch(found.text, found.bind(params))
        return None if row is None else found.row(row)

    async def wait(self, channel: str, timeout: float, /) -> bool:  # noqa: ASYNC109 - a hint's wait ends early
        self.check()
        if self._listener is not None and not self._connector.pooled:  # a pooler's session is not ours to listen on
            self._listener.start()
        return await self.hints.wait(channel, timeout)

    def wake(self, channel: str, /) -> None:
        self.check()
        self.hints.wake(channel)

    async def close(self) -> None:
        self.home.check()
        if self.gone:
            return
        self.shares -= 1
        if self.shares > 0:
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
        if self.home.loop.is_closed():  # it has ended what ran in it, and its connections cannot be spoken to
            return
        if self._listener is not None:
            spawn(self._listener.stop(), "holdfast listener")
        self._connector.terminate()

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
        return not self.gone

    def commit(self, batch: Batch, /) -> bool:
        # Of a lane one is under way, and perhaps one that was given up when the writer died.
        self._commits = [each for each in self._commits if not each.done()]
        self._commits.append(spawn_held(self._commit(batch), "holdfast commit"))
        self._batches += 1
        if self._batches == PREPARE_AFTER and not self._connector.pooled:
            plans = {group.plan for group in batch.groups}
            for lane in self._lanes:
                self._making.spawn(lane.prepare(plans), "holdfast lane")
        return False

    async def reopen(self, lane: int, /) -> None:
        await self._lanes[lane].reopen()

    async def _commit(self, batch: Batch) -> None:
        error: Exception | None = None
        try:
            if not trace.enabled:
                await self._lanes[batch.lane].commit(batch)
            else:
                with trace.span("holdfast.durable.commit", items=len(batch.items), bytes=batch.size):
                    await self._lanes[batch.lane].commit(batch)
        except points.Crashed:
            return
        except Exception as raised:  # noqa: BLE001 - the writer sorts failures
            self._connector.learn(raised.__cause__)
            error = raised
        if not self.gone:
            batch.landed(error)

    async def _connect_lane(self, settings: dict[str, str]) -> Link:
        self.check()
        try:
            return await self._connector.connect(settings)
        except ConfigError as error:
            # The server was restarted with other settings. Appends wait until it is set right.
            raise Unavailable(str(error), error.hint) from error

    # Opening

    async def open(self, namespace: bytes | None) -> None:
        """Connect, and bring the schema to what it should be.

        Raises:
            SchemaMismatch: The database holds a newer ledger; it was left as it is.
            StoreError: It cannot be used; the error says why.
        """
        await self._take_time()
        try:
            status = await self._status()
        except SchemaMismatch:
            # A name is looked up in the catalogue as it is now, rows in the view as it was taken: another opener may
            # have made the ledger in between.
            status = await self._status()
        if status.pending and self.read_only:
            raise migrate.behind(status.applied, label=self.label)
        for _ in status.pending:
            await self._migrate(namespace)
        async with self.read() as tx:
            await self._read_identity(tx, namespace)
        self.hint_channel = f"holdfast_{self.namespace.hex()}"
        self._listener = Listener(
            self._connector.connect,
            channel=self.hint_channel,
            hints=self.hints,
            ours=self._connector.owns,
            edge=self.edge,
            clock=self.clock,
        )

    async def _status(self) -> migrate.Status:
        async with self.read() as tx:
            return migrate.status(await self._read_schema(tx), "postgres", label=self.label)

    def discard(self) -> None:
        """Close what a failed opening has opened."""
        self.gone = True
        self.writer.abandon()
        self._connector.terminate()

    async def _take_time(self) -> None:
        """Give the clock the database's time, if it is a clock that can take it."""
        before = self.clock.now()
        link = await self._connector.connect()
        after = self.clock.now()
        self.readers.lend(link)
        if not isinstance(self.clock, SystemClock):
            return
        error = link.session.now - (before + after) // 2
        if abs(error) > max(after - before, OFFSET_MIN_US):
            self.clock.offset += error

    async def _migrate(self, namespace: bytes | None) -> None:
        """Apply the next migration, unless another opener was quicker."""
        async with self.write() as tx:
            await tx.one("ledger.lock", number=MIGRATION_LOCK)
            pending = migrate.status(await self._read_schema(tx), "postgres", label=self.label).pending
            if pending:
                await tx.apply(pending[0].text)
                await tx.run("ledger.put", [("schema", migrate.encode_number(pending[0].number))])
                await tx.run("ledger.add", [("namespace", migrate.namespace(namespace))])

    async def _read_schema(self, tx: PostgresTx) -> int:
        if await tx.one("ledger.exists") is None:
            return 0
        row = await tx.one("ledger.get", name="schema")
        return migrate.decode_number(None if row is None else row.value, label=self.label)

    async def _read_identity(self, tx: PostgresTx, namespace: bytes | None) -> None:
        self.schema = await self._read_schema(tx)
        row = await tx.one("ledger.get", name="namespace")
        if row is None:
            raise StoreError(f"{self.label} has lost its namespace", "restore a backup", code="store.corrupt")
        self.namespace = row.value
        migrate.check_namespace(self.namespace, namespace, label=self.label)

    # Closing

    async def _shut(self) -> None:
        self.gone = True
        self.hints.dismiss()
        if self._listener is not None:
            await self._listener.stop()
        await self._making.settle(CLOSE_S)
        await self._connector.close()

    def _refuse(self) -> StoreError:
        return StoreError(f"{self.label} is open for reading only", "open it for writing", code="store.read_only")


def _runtime_directory() -> Path | None:
    """Where this user's lock files live; None where somebody else could have made that directory."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given) / "holdfast"
    directory = Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        safe = directory.lstat().st_uid == os.getuid() and not directory.is_symlink()
    except OSError:
        return None
    return directory if safe else None


async def open_postgres(
    url: str, *, clock: Clock, settings: StoreSettings, namespace: bytes | None = None, read_only: bool = False
) -> PostgresDatabase:
    """Open a ledger in a PostgreSQL database, made there if need be.

    Args:
        url: `postgresql://user:password@host:port/database`; `?host=/directory` for a unix socket.
        clock: The database's time; a `SystemClock` is set to the server's.
        settings: Limits, and whether a server that does not flush will do.
        namespace: What a new ledger gets, and an old one must have.
        read_only: Change nothing, and refuse to write; a standby will do.

    Raises:
        ConfigError: The URL makes no sense, the server does not flush, or the ledger has another namespace.
        StoreError: The ledger cannot be opened; the error says why.
    """
    database = PostgresDatabase(url, clock=clock, settings=settings, read_only=read_only)
    try:
        await database.open(namespace)
    except BaseException:
        database.discard()
        raise
    return database
