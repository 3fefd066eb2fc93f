"""Die at the n-th boundary between a program and its store.

A boundary is where a process can be killed and the database knows something else than the process: before a
statement, before a commit, and after a commit whose acknowledgement never arrives. `CrashingDatabase` stands before a
database and counts them; `Boundaries` puts one into an open ledger, whose appends pass boundaries too.

Invariants:
    - What it lets pass is unchanged; nothing is committed after the death.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from holdfast.core import points
from holdfast.store.batch import Batch
from holdfast.store.database import Database, Row

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.store.home import Home
    from holdfast.store.owners import Owner
    from holdfast.store.writer import Writer

__all__ = ["Boundaries", "CrashingDatabase", "Where"]

Where: TypeAlias = Literal["before", "commit", "after_ack_lost"]
"""Before a statement, before a commit, or after a commit whose acknowledgement is lost."""


class CrashingDatabase:
    """A database that dies at the n-th boundary of a kind; give it where a `Database` goes.

    To try every one, run once without `n`, look at `boundaries`, and run again for each number.

    Attributes:
        passed: The boundaries passed, in order; the last is where it died, if it did.
    """

    dialect: Literal["sqlite", "postgres"]
    label: str
    home: Home
    clock: Clock
    writer: Writer
    owner: Owner
    namespace: bytes

    def __init__(
        self, inner: Database, n: int | None = None, where: Where | None = None, *, failure: Exception | None = None
    ) -> None:
        """Stand before an open database.

        Args:
            inner: The database.
            n: At which boundary to die, counted from 1; None: at none.
            where: Which kind of boundary counts; None: every kind.
            failure: Raised there instead of dying, once: a lost connection rather than a killed process.
        """
        self.passed: list[str] = []
        self._inner = inner
        self._dies_at = n
        self._where = where
        self._failure = failure
        for name in ("dialect", "label", "home", "clock", "writer", "owner", "namespace"):
            setattr(self, name, getattr(inner, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def boundaries(self) -> int:
        """How many were passed."""
        return len(self.passed)

    def reach(self, kind: Where, boundary: str) -> None:
        """Pass a boundary.

        Raises:
            Crashed: It is the one to die at.
            Exception: It is, and it was said what to raise instead.
        """
        if self._where not in (None, kind):
            return
        self.passed.append(boundary)
        if len(self.passed) == self._dies_at:
            if self._failure is not None:
                raise self._failure
            points.crash(boundary)

    def read(self) -> _Block:
        return _Block(self._inner.read(), self, writes=False)

    def write(self) -> _Block:
        return _Block(self._inner.write(), self, writes=True)

    async def submit(self, statement: str, /, **params: object) -> Row | None:
        self.reach("before", f"before {statement}")
        self.reach("commit", "before commit")
        row = await self._inner.submit(statement, **params)
        self.reach("after_ack_lost", "after commit")
        return row

    async def wait(self, channel: str, timeout: float, /) -> bool:  # noqa: ASYNC109 - as in the protocol
        return await self._inner.wait(channel, timeout)

    def wake(self, channel: str, /) -> None:
        self._inner.wake(channel)

    async def close(self) -> None:
        await self._inner.close()


class _Opened(Protocol):
    database: Any


class Boundaries:
    """Count the boundaries an open ledger passes from now on, and die at one of them."""

    def __init__(self, hf: _Opened, dies_at: int | None = None) -> None:
        """Stand between a ledger and its database.

        Args:
            hf: The open ledger; nothing may be under way on it.
            dies_at: At which boundary to die, counted from 1; None: at none.
        """
        database = hf.database
        self._crashing = CrashingDatabase(database, dies_at)
        hf.database = database.owner._database = self._crashing  # noqa: SLF001 - a seam for tests
        database.writer._committer = _Committer(database, self._crashing)  # noqa: SLF001 - it stands between the parts of the store

    @property
    def passed(self) -> list[str]:
        """What was passed, in order; the last is where it died, if it did."""
        return self._crashing.passed


class _Block:
    def __init__(self, block: Any, crashing: CrashingDatabase, *, writes: bool) -> None:
        self._block = block
        self._crashing = crashing
        self._writes = writes

    async def __aenter__(self) -> _Tx:
        return _Tx(await self._block.__aenter__(), self._crashing)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        commits = self._writes and error is None
        if commits:
            try:
                self._crashing.reach("commit", "before commit")
            except BaseException as died:
                await self._block.__aexit__(type(died), died, died.__traceback__)
                raise
        await self._block.__aexit__(kind, error, trace)
        if commits:
            self._crashing.reach("after_ack_lost", "after commit")


class _Tx:
    def __init__(self, tx: Any, crashing: CrashingDatabase) -> None:
        self._tx = tx
        self._crashing = crashing

    async def one(self, statement: str, /, **params: object) -> Row | None:
        self._crashing.reach("before", f"before {statement}")
        return await self._tx.one(statement, **params)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        self._crashing.reach("before", f"before {statement}")
        found: list[Row] = await self._tx.all(statement, **params)
        return found

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        self._crashing.reach("before", f"before {statement}")
        count: int = await self._tx.run(statement, rows)
        return count

    def notify(self, channel: str, /) -> None:
        self._tx.notify(channel)


class _Committer:
    """Stands where the writer hands its batches to the database."""

    def __init__(self, database: Any, crashing: CrashingDatabase) -> None:
        self._database = database
        self._crashing = crashing
        self.lanes: int = database.lanes

    def ready(self, lane: int, /) -> bool:
        answer: bool = self._database.ready(lane)
        return answer

    def commit(self, batch: Batch, /) -> bool:
        self._crashing.reach("commit", "before batch")
        tell = batch._landed  # noqa: SLF001 - the acknowledgement is what is to be lost

        def landed(batch: Batch, error: BaseException | None) -> None:
            try:
                self._crashing.reach("after_ack_lost", "after batch")
            except points.Crashed:
                return
            tell(batch, error)

        batch._landed = landed  # noqa: SLF001 - it stands between the parts of the store
        done: bool = self._database.commit(batch)
        if done:
            self._crashing.reach("after_ack_lost", "after batch")
        return done

    async def reopen(self, lane: int, /) -> None:
        await self._database.reopen(lane)
