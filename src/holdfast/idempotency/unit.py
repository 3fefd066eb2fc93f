"""The unit of work of mode `transaction`: one transaction of the application's database, and who may end it.

A `Unit` opens transactions on the application's own pool, engine or file; `holdfast.integrations` has one for each
driver. The conductor (`transaction`) claims, settles and commits in it; the handler only works in it.

Databases abort transactions that could not run as if they were alone; the same again may succeed. Such an abort has
to reach the conductor through handlers, frameworks and task groups that catch `Exception`, so it travels as an
`Aborted`, which is none.

Invariants:
    - A driver's error is an abort by its code alone: SQLSTATE 40001 or 40P01, or SQLITE_BUSY_SNAPSHOT.
    - `Aborted` is raised where an abort is seen first, and never means that anything was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from holdfast.idempotency.values import Outcome

if TYPE_CHECKING:
    from holdfast.store.database import Row, Tx

__all__ = [
    "Aborted",
    "Ended",
    "Ending",
    "Unit",
    "UnitOfWork",
    "WatchedTx",
    "aborts",
    "chain",
    "is_abort",
    "is_decided",
    "is_spoilt",
    "pick",
]

E = TypeVar("E", bound=BaseException)

ABORTS = ("40001", "40P01")
"""Serialisation failure, deadlock."""
BUSY_SNAPSHOT = 517
"""SQLite: what this transaction has read was changed by another before it could write."""
LOST = ("08", "57")
"""Classes of a server that went away: it cannot have said what became of a commit."""
BUSY = (5, 6)
"""SQLite: busy, locked."""
REFUSED = (*BUSY, 19)
"""SQLite: these, and a constraint. Any other failure of a commit may have come after it."""
SPOILT = "25P02"
CHAIN_MAX = 256
"""Errors looked at beneath one error: far more than frameworks wrap, and an end to rings."""


class UnitOfWork(Protocol):
    """One transaction, begun."""

    @property
    def tx(self) -> Tx:
        """The transaction as Holdfast's records take it."""
        ...

    @property
    def handle(self) -> object:
        """What the handler works with: a connection or a session."""
        ...

    async def savepoint(self) -> None:
        """Mark this point; called once, before the handler runs."""
        ...

    async def undo(self) -> None:
        """Take back what was done since the savepoint; called at most once."""
        ...

    async def commit(self) -> None:
        """Commit. Called at most once, and nothing follows it.

        Raises:
            Unfit: The handler's pending writes were refused.
            Ended: It is not the transaction that was begun; nothing of what it is was committed.
            BaseException: It failed. An error that carries the database's own refusal means that nothing was
                committed; after any other nobody knows.
        """
        ...

    async def rollback(self) -> None:
        """Leave nothing of it. Never raises what the end of a connection would achieve as well."""
        ...

    def intact(self) -> bool:
        """Say whether it is still the transaction that was begun: nobody else ended it or closed its connection."""
        ...


class Unit(Protocol):
    """Opens transactions on the application's database."""

    def begin(self, *, isolation: str | None, lock_timeout: timedelta) -> AbstractAsyncContextManager[UnitOfWork]:
        """Begin a transaction; leaving the block without a commit leaves nothing of it.

        Args:
            isolation: `read committed`, `repeatable read`, `serializable`; None: the database's own.
            lock_timeout: How long to wait for another transaction: for its lock on a row until the savepoint
                (PostgreSQL), or for its end (SQLite).

        Raises:
            Busy: SQLite: another connection kept writing for that long.
            StoreError: The database cannot be used.
            ConfigError: It has no such isolation.
        """
        ...


@dataclass(slots=True)
class Ending:
    """What a handler's response becomes, decided before its first byte leaves. Made for every request, so not frozen.

    Attributes:
        outcome: What would be recorded.
        verdict: Whether it is.
        keep: Whether its row stays; without it the writes are committed and a retry runs.
        ttl: How long it stays, if not for the rule's time.
    """

    outcome: Outcome
    verdict: Literal["store", "release", "unknown"]
    keep: bool = True
    ttl: timedelta | None = None


class Aborted(BaseException):
    """The database aborted the transaction, and the same again may succeed. No failure of the handler."""


class Ended(Exception):
    """The transaction to commit is not the one that was begun: somebody else has ended that."""


class Unfit(Exception):
    """What the handler left could not be written, before anything was committed; the cause says why."""


class WatchedTx:
    """A `Tx` in which an abort shows itself as `Aborted`.

    Attributes:
        aborted: Whether one was seen.
    """

    __slots__ = ("_tx", "aborted")

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.aborted = False

    async def one(self, statement: str, /, **params: object) -> Row | None:
        with aborts(self._saw):
            return await self._tx.one(statement, **params)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        with aborts(self._saw):
            return await self._tx.all(statement, **params)

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        with aborts(self._saw):
            return await self._tx.run(statement, rows)

    def notify(self, channel: str, /) -> None:
        self._tx.notify(channel)

    def _saw(self) -> None:
        self.aborted = True


class aborts:
    """Turn an abort that a driver raises in the block into `Aborted`.

    Args:
        saw: Called first.
    """

    __slots__ = ("_saw",)

    def __init__(self, saw: Callable[[], object] | None = None) -> None:
        self._saw = saw

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and is_abort(error):
            if self._saw is not None:
                self._saw()
            raise Aborted from error


def is_abort(error: BaseException) -> bool:
    """Say whether an error is an abort, or was raised because of one, alone or in a group."""
    return any(isinstance(each, Aborted) or _code_of(each) in (*ABORTS, BUSY_SNAPSHOT) for each in chain(error))


def is_decided(error: BaseException) -> bool:
    """Say whether the error of a commit is the database's own refusal, so that nothing was committed."""
    for each in chain(error):
        code = _code_of(each)
        if isinstance(code, str) and len(code) == 5 and not code.startswith(LOST):
            return True
        if isinstance(code, int) and code & 0xFF in REFUSED:
            return True
    return False


def is_busy(error: BaseException) -> bool:
    """Say whether SQLite refused because another connection was in the way."""
    codes = [_code_of(each) for each in chain(error)]
    return any(isinstance(code, int) and code & 0xFF in BUSY for code in codes)


def is_spoilt(error: BaseException) -> bool:
    """Say whether a statement failed because an earlier one had, and the handler went on all the same."""
    return any(_code_of(each) == SPOILT for each in chain(error))


def pick(error: BaseException, kind: type[E]) -> E | None:
    """Find an error of a kind: the error itself, one in its groups, or one it was raised because of."""
    return next((each for each in chain(error) if isinstance(each, kind)), None)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Go through an error, the members of its groups, and all they were raised because of."""
    seen: set[int] = set()
    waiting = [error]
    while waiting and len(seen) < CHAIN_MAX:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        beneath = (each.__cause__, each.__context__, getattr(each, "orig", None))
        waiting += [other for other in beneath if isinstance(other, BaseException)]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _code_of(error: BaseException) -> object:
    """What the server or library says an error is, by whatever name its driver gives that."""
    for name in ("sqlstate", "pgcode", "sqlite_errorcode", "extendedresult"):
        code = getattr(error, name, None)
        if code:
            return code
    return None
