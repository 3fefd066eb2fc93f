"""Connections to PostgreSQL: made as they should be, lent to one transaction at a time.

Between us and the server may be a pooler that gives every transaction another session. It shows: a session is not
the one that the connection was told of, or a statement that was prepared is gone. Then nothing is kept in a session:
statements are not prepared, and a transaction sets for itself what a session would have.

Invariants:
    - A session, or where there is a pooler a transaction, commits with `synchronous_commit=on`, in READ COMMITTED, on
      a server that flushes.
    - A connection is lent once at a time, and comes back outside a transaction or not at all.
    - To make a connection, to begin and to end a transaction takes no longer than `STALL_S`, whatever the server does.
      A statement inside may wait for a lock, for as long as somebody holds that; not for a machine that is gone.
    - No connection is used or closed in a forked child.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg

from holdfast.core.errors import Closed, ConfigError, StoreError
from holdfast.store.catalogue import Catalogue
from holdfast.store.database import Row
from holdfast.store.home import leak
from holdfast.store.postgres_errors import DRIVER_ERRORS, Edge, is_lost, is_unprepared, translate

if TYPE_CHECKING:
    from holdfast.store.settings import StoreSettings

__all__ = ["Connector", "Link", "Pool", "Watch", "begun"]

CONNECT_S = 10.0
CLOSE_S = 2.0
STALL_S = 30.0
"""How long a connection may not answer before it counts as lost."""
PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": int(STALL_S * 1000)}
"""Seconds without a word, seconds between two probes, how many; and milliseconds until what was sent has arrived."""
READ_BYTES = 64 * 1024
"""An answer is read in pieces of at most this size: below 128 KiB the allocator keeps them."""
SERVER_MIN = 140_000
"""PostgreSQL 14 waits for a session to end when it is told to end it, which a lost commit needs."""
IDLE_MAX = 8
SETTINGS = {
    "application_name": "holdfast",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "jit": "off",  # it takes longer than any of our statements
}
"""A setting of the server, the database or the role must not weaken what an acknowledgement promises."""
LOCAL = ("synchronous_commit", "jit")
"""Those that are more than names, or are said where a transaction begins."""


def begun(begin: str, settings: Mapping[str, str]) -> str:
    """Return what begins a transaction that has these settings, whatever session it gets."""
    local = {name: SETTINGS[name] for name in LOCAL} | dict(settings)
    return "; ".join((begin, *(f"SET LOCAL {name} TO '{value}'" for name, value in local.items())))


class Watch:
    """Cuts a connection when a block takes too long; one timer for many blocks.

    Real time, whatever clock a test may set: one that leaps must not cut a connection that works.

    Args:
        connection: The driver's connection.
    """

    __slots__ = ("_connection", "_due", "_timer")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = math.inf

    def start(self) -> None:
        """Give the connection `STALL_S` from now."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + STALL_S
        if self._timer is not None and self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if loop.time() >= self._due:
            self._connection.terminate()
        elif self._due < math.inf:
            self._timer = loop.call_at(self._due, self._look)


class Link:
    """A connection, and what the server calls its session.

    Attributes:
        connection: The driver's connection.
        session: What `ledger.session` said of it.
        watch: Cuts it when it does not answer.
        pooled: Whether each transaction may get another session.
        used: Whether a transaction has been on it: its server may have gone since.
        calls: What a lane has prepared on it.
    """

    __slots__ = ("calls", "connection", "pooled", "session", "used", "watch")

    def __init__(self, connection: Any, session: Row, *, pooled: bool = False) -> None:
        self.connection = connection
        self.session = session
        self.watch = Watch(connection)
        self.pooled = pooled
        self.used = False
        self.calls: dict[Any, Any] = {}

    @property
    def closed(self) -> bool:
        """Whether it can be used no more."""
        return bool(self.connection.is_closed())


class Connector:
    """Opens connections, and knows all that are open.

    Attributes:
        pooled: Whether there is a pooler of transactions in between.
    """

    def __init__(
        self, url: str, label: str, *, settings: StoreSettings, statements: Catalogue, read_only: bool
    ) -> None:
        self._url = url
        self._label = label
        self._unsafe = settings.allow_unsafe_storage
        self._read_only = read_only
        self._edge = Edge(label)
        self._session = statements["ledger.session"]
        self._links: set[Link] = set()
        self._cut = False
        self._looked = False
        self.pooled = False

    async def connect(self, settings: Mapping[str, str] | None = None) -> Link:
        """Open a connection.

        Raises:
            ConfigError: The URL makes no sense, or the server does not flush and nobody allowed that.
            StoreError: The server cannot be reached, refuses, is too old, or cannot be written.
        """
        wanted = {**SETTINGS, **(settings or {})}
        if self._read_only:
            wanted["default_transaction_read_only"] = "on"
        link = None
        while link is None:
            pooled = self.pooled
            connection = await self._open(pooled=pooled)
            transport = getattr(connection, "_transport", None)
            if transport is not None:
                _read_less(transport)
                _probe(transport)
            try:
                link = await self._introduce(connection, wanted, pooled=pooled)
                if self._cut:
                    raise Closed(f"{self._label} is closed", "open it again")  # noqa: TRY301 - one way out for whatever stands against the connection
            except BaseException:
                connection.terminate()
                raise
            if link is None:
                connection.terminate()
                self.pooled = True
        made = link
        self._links.add(made)
        connection.add_termination_listener(lambda _: self._links.discard(made))
        return made

    async def _open(self, *, pooled: bool) -> Any:
        try:
            return await asyncpg.connect(
                self._url, timeout=CONNECT_S, statement_cache_size=0 if pooled else 512,
                max_cached_statement_lifetime=0, max_cacheable_statement_size=0,
            )  # fmt: skip
        except (asyncpg.ClientConfigurationError, ValueError):
            raise ConfigError(f"{self._label} cannot be opened: its URL makes no sense", "check its parts") from None
        except DRIVER_ERRORS as error:
            raise translate(error, self._label) from error

    async def _introduce(self, connection: Any, wanted: Mapping[str, str], *, pooled: bool) -> Link | None:
        """Make a session what it should be; None: it is a pooler's, and was not expected to be."""
        try:
            with self._edge, Watch(connection):
                if not pooled and not self._looked:
                    # Nothing is set yet: if the session is somebody else's next, he must not find it changed.
                    session = await self._ask(connection, {})
                    if session.pid != connection.get_server_pid():
                        return None
                    self._looked = True
                session = await self._ask(connection, {} if pooled else wanted)
        except StoreError as error:
            if not pooled and is_unprepared(error.__cause__):
                return None
            raise
        self._check(session)
        return Link(connection, session, pooled=pooled)

    async def _ask(self, connection: Any, settings: Mapping[str, str]) -> Row:
        return self._session.row(await connection.fetchrow(self._session.text, list(settings), list(settings.values())))

    def learn(self, error: BaseException | None) -> None:
        """Take from an error that there is a pooler: links made before are used no more."""
        if is_unprepared(error):
            self.pooled = True

    async def close(self) -> None:
        """Take leave of the server on every connection."""
        links = list(self._links)
        results = await asyncio.gather(
            *(link.connection.close(timeout=CLOSE_S) for link in links), return_exceptions=True
        )
        for link, result in zip(links, results, strict=True):
            if result is not None:
                link.connection.terminate()

    def terminate(self) -> None:
        """Cut every connection, as the end of the process would, and those on their way."""
        self._cut = True
        for link in list(self._links):
            link.connection.terminate()

    def leak(self) -> None:
        """In a forked child: see to it that no connection is ever closed there."""
        leak(list(self._links))

    def owns(self, pid: int) -> bool:
        """Whether a session of the server is one of these."""
        return any(link.session.pid == pid for link in self._links)

    def _check(self, session: Row) -> None:
        if session.version < SERVER_MIN:
            raise StoreError(
                f"{self._label} runs PostgreSQL {session.version // 10_000}",
                f"it must be {SERVER_MIN // 10_000} or newer",
                code="store.server_version",
            )
        if session.encoding != "UTF8":
            raise StoreError(
                f"{self._label} encodes text as {session.encoding}", "create the database with ENCODING 'UTF8'",
                code="store.encoding",
            )  # fmt: skip
        if not session.flushes and not self._unsafe:
            raise ConfigError(
                f"{self._label} runs with fsync=off: what it acknowledges may be lost",
                "turn fsync on, or set allow_unsafe_storage",
                code="config.unsafe_storage",
                keys=("allow_unsafe_storage",),
            )
        if session.standby and not self._read_only:
            raise StoreError(
                f"{self._label} is a standby and cannot be written", "give the primary server", code="store.read_only"
            )


def _read_less(transport: Any) -> None:
    """Let answers be read in pieces that the allocator keeps at hand.

    A transport reads into a buffer of 256 KiB, which for every answer is mapped anew and given back: that costs as
    much as the rest of the round trip. `max_size` is the transport's own, where it has one.
    """
    if getattr(transport, "max_size", 0) > READ_BYTES:
        transport.max_size = READ_BYTES


def _probe(transport: Any) -> None:
    """Let the kernel find out that the server's machine is gone, without which some waits would have no end.

    Who listens says nothing himself, and a statement may take as long as it likes.
    """
    found = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # it is closed already: whoever uses it is told
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in PROBES.items():
                if hasattr(socket, name):  # not every system has all of them
                    found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Pool:
    """Connections for transactions of one kind; whoever finds none free waits, in the order of asking.

    Args:
        connector: Opens them.
        begin: The statement that begins such a transaction.
        most: How many there may be.
    """

    def __init__(self, connector: Connector, *, begin: str, edge: Edge, most: int) -> None:
        self._connector = connector
        self._begin = begin
        self._edge = edge
        self._free = most
        self._idle: list[Link] = []
        self._line: deque[asyncio.Future[None]] = deque()

    async def begin(self) -> Link:
        """Begin a transaction; give the connection back with `give`.

        Raises:
            StoreError: The server cannot be reached.
        """
        await self._admit()
        try:
            while True:
                link = await self._find()
                begin = begun(self._begin, {}) if link.pooled else self._begin
                try:
                    with self._edge, link.watch:
                        await link.connection.execute(begin)
                except BaseException as error:
                    link.connection.terminate()
                    # The server may have restarted while the connection lay idle: nothing has happened yet.
                    if link.used and isinstance(error.__cause__, Exception) and is_lost(error.__cause__):
                        continue
                    raise
                link.used = True
                return link
        except BaseException:
            self._release()
            raise

    async def fetch(self, text: str, values: Sequence[object]) -> Row | None:
        """Run one statement outside a transaction; return its first row.

        It runs again, once, when the connection is lost meanwhile; or when the statement was prepared in vain.

        Raises:
            StoreError: It failed; after `Unavailable` nobody knows whether it did.
        """
        await self._admit()
        again = True
        try:
            while True:
                link = await self._find()
                fresh, link.used = not link.used, True
                try:
                    with self._edge:
                        row = await self._fetch(link, text, values)
                except BaseException as error:
                    cause = error.__cause__
                    lost = isinstance(cause, Exception) and is_lost(cause)
                    if lost or link.closed or not isinstance(error, StoreError):
                        link.connection.terminate()
                    self._keep(link)
                    if again and ((lost and not fresh) or is_unprepared(cause)):
                        again = False
                        continue
                    raise
                self._keep(link)
                return row
        finally:
            self._release()

    async def _fetch(self, link: Link, text: str, values: Sequence[object]) -> Any:
        if not link.pooled:
            return await link.connection.fetchrow(text, *values)
        with link.watch:
            await link.connection.execute(begun(self._begin, {}))
        row = await link.connection.fetchrow(text, *values)
        with link.watch:
            await link.connection.execute("COMMIT")
        return row

    def lend(self, link: Link) -> None:
        """Take a connection that was made elsewhere."""
        self._idle.append(link)

    def give(self, link: Link) -> None:
        """Take a connection back."""
        self._keep(link)
        self._release()

    def _keep(self, link: Link) -> None:
        if link.closed:
            pass
        elif (
            link.connection.is_in_transaction()
            or link.pooled is not self._connector.pooled
            or len(self._idle) >= IDLE_MAX
        ):
            link.connection.terminate()
        else:
            self._idle.append(link)

    async def roll_back(self, link: Link) -> None:
        """End a transaction without a trace, and take the connection back."""
        try:
            if not link.closed:
                with link.watch:
                    await link.connection.execute("ROLLBACK")
        except BaseException as error:
            link.connection.terminate()  # the server rolls back what nobody will commit
            if not isinstance(error, Exception):
                raise
        finally:
            self.give(link)

    async def commit(self, link: Link) -> None:
        """Commit, and take the connection back.

        Raises:
            StoreError: It failed; after `Unavailable` nobody knows whether it did.
        """
        try:
            with self._edge, link.watch:
                done = await link.connection.execute("COMMIT")
        except BaseException:
            link.connection.terminate()
            raise
        finally:
            self.give(link)
        if done != "COMMIT":
            raise StoreError(
                "nothing was committed: a statement of the transaction failed", "leave the block when it does"
            )

    async def _find(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link.pooled is not self._connector.pooled:
                link.connection.terminate()
            elif not link.closed:
                return link
        return await self._connector.connect()

    async def _admit(self) -> None:
        if self._free > 0 and not self._line:
            self._free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(future)
        try:
            await future
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                self._line.remove(future)
            if future.done() and not future.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        while self._line:
            future = self._line.popleft()
            if not future.done():
                future.set_result(None)  # the place passes on
                return
        self._free += 1
