"""The seam between Holdfast and a database.

Everything above speaks to storage through the two protocols here: a `Tx` runs named statements inside
a transaction its caller owns, and a `Database` opens transactions, commits appends in groups and
delivers wake-up hints. SQL text is not visible here: a statement is a name in the catalogue, with the
same parameters and result columns in both dialects.

Invariants:
    - A `write()` block commits when it ends normally and leaves nothing behind when it does not.
    - An acknowledged `Append` is on disk, and so is every append of the same lane made before it.
    - A hint may be lost or come twice; whoever waits reads the truth again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.store.catalogue import Statement
    from holdfast.store.hints import Hints
    from holdfast.store.home import Home
    from holdfast.store.owners import Owner
    from holdfast.store.writer import Writer


Row = Any
"""A result row: a tuple, in the order of the statement's columns, whose columns are attributes too."""


class Tx(Protocol):
    """A transaction, or for reads a consistent view, owned by the block that opened it."""

    async def one(self, statement: str, /, **params: object) -> Row | None:
        """Run a statement and return its first row, or None."""
        ...

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        """Run a statement and return all its rows."""
        ...

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        """Run a statement once per row, the values in the order of its parameters; return rows changed."""
        ...

    def notify(self, channel: str, /) -> None:
        """Wake whoever waits on a channel once this transaction has committed."""
        ...


@dataclass(frozen=True, slots=True, eq=False)  # one of each: batches are sorted by what it is, not by what it says
class Plan:
    """How the appends of one slice become a transaction: its statements, in the order a batch runs them.

    A batch runs each statement once with the rows of all its appends, so the order is the plan's, not
    the callers'. `creates` run first; then every distinct `guard` key (the tuple an `Append` names) is
    looked up once with the guard statement, and appends whose key gives no row are refused: none of
    their `writes` happens.
    """

    name: str
    creates: tuple[str, ...]
    guard: str
    writes: tuple[str, ...]


class Append:
    """Rows that become durable together, in one group commit, or not at all.

    Attributes:
        plan: The slice's plan; `rows` name statements of it.
        lane: Appends of one lane become durable in the order they were offered.
        guard: Parameters of the plan's guard statement (None: not guarded).
        rows: (statement, parameters in order) pairs.
        size: What it weighs against the byte limits of batch and queue.
        label: `intent`, `outcome`, `finish` or "": which crash points it passes.
        future: Resolved when the fate is known, or None when nobody waits. Result: the guard's row
            (a true value) when durable, None when refused; an exception when the append itself is bad
            (`StoreError`), or `Overdue` when it was not acknowledged in time.
        settled: Called once, in the loop, when the append is durable (True) or refused or bad (False).
    """

    __slots__ = ("due", "future", "guard", "label", "lane", "plan", "rows", "settled", "size", "state")

    def __init__(  # noqa: PLR0913 - what an append is; made once per step
        self,
        plan: Plan,
        lane: int,
        guard: tuple[object, ...] | None,
        rows: list[tuple[str, tuple[object, ...]]],
        size: int,
        label: str = "",
        future: asyncio.Future[Any] | None = None,
        settled: Any = None,
    ) -> None:
        self.plan = plan
        self.lane = lane
        self.guard = guard
        self.rows = rows
        self.size = size
        self.label = label
        self.future = future
        self.settled = settled
        self.state = "new"
        self.due = 0.0


class Call(Append):
    """One statement on its own, whose row the caller waits for, that shares a group commit with others.

    Attributes:
        statement: What it runs.
        values: Its parameters, in order.
        row: The first row it gave.
        error: Why it could not be run; nothing else of the batch is spoilt by it.
    """

    __slots__ = ("error", "row", "statement", "values")

    def __init__(self, statement: Statement, values: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        super().__init__(ALONE, 0, None, NO_ROWS, CALL_BYTES + sum(map(getsizeof, values)), future=future)
        self.statement = statement
        self.values = values
        self.row: Row | None = None
        self.error: Exception | None = None


ALONE = Plan("alone", (), "", ())
NO_ROWS: list[tuple[str, tuple[object, ...]]] = []
CALL_BYTES = 128
"""What a call weighs beside its values."""


class Overdue(Exception):
    """An append was not acknowledged in time. It may still be queued: ask `Writer.withdraw`."""

    def __init__(self, append: Append) -> None:
        super().__init__("not acknowledged in time")
        self.append = append


class Statements:
    """A `Tx` whose every statement stands by itself, for records that are safe between any two of them."""

    __slots__ = ("_database", "one")

    def __init__(self, database: Database) -> None:
        self._database = database
        self.one: Callable[..., Coroutine[Any, Any, Row | None]] = database.submit

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        async with self._database.read() as tx:
            return await tx.all(statement, **params)

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        async with self._database.write() as tx:
            return await tx.run(statement, rows)

    def notify(self, channel: str, /) -> None:
        self._database.wake(channel)


class Database(Protocol):
    """An open ledger in one database. Shared by everything in this process that opened the same one."""

    dialect: Literal["sqlite", "postgres"]
    label: str
    """What to call it in messages: a path or a URL without credentials."""
    home: Home
    """The process and event loop it belongs to."""
    clock: Clock
    writer: Writer
    owner: Owner
    hints: Hints
    namespace: bytes
    """16 random bytes made with the ledger."""

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """Open a consistent view. Never waits for a writer."""
        ...

    def write(self) -> AbstractAsyncContextManager[Tx]:
        """Open a transaction (`BEGIN IMMEDIATE`; READ COMMITTED on PostgreSQL) that commits at its end."""
        ...

    async def submit(self, statement: str, /, **params: object) -> Row | None:
        """Run one statement by itself, and return its first row once what it wrote is durable.

        Callers that come together share a flush; a `SELECT` on a SQLite file waits for none. On PostgreSQL it takes one
        round trip, without BEGIN and COMMIT.
        When the fate of a commit is not known the statement runs again, so it must give the same answer again.

        Raises:
            StoreError: It could not be run; after `Unavailable` nobody knows whether it was.
        """
        ...

    async def wait(self, channel: str, timeout: float, /) -> bool:  # noqa: ASYNC109 - a hint's wait ends early
        """Wait for a hint on a channel, at most `timeout` seconds; say whether one came."""
        ...

    def wake(self, channel: str, /) -> None:
        """Wake local waiters of a channel without a transaction."""
        ...

    async def close(self) -> None:
        """Give up one share; the last share commits what was accepted and closes."""
        ...
