"""Die at the n-th boundary between the engine and its store.

A boundary is where a process can be killed and the database knows something else than the process: before a
statement, before a commit, and after a commit whose acknowledgement never arrives. `Boundaries` stands between an
open ledger and its database, counts them, and drops everything in memory at one of them.

Invariants:
    - What it lets pass is unchanged; nothing is committed after the death.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from holdfast.core import points
from holdfast.store.batch import Batch
from holdfast.store.database import Row

__all__ = ["Boundaries"]


class _Opened(Protocol):
    database: Any


class Boundaries:
    """Count the boundaries an open ledger passes from now on, and die at one of them.

    Attributes:
        passed: What was passed, in order; the last is where it died, if it did.
    """

    def __init__(self, hf: _Opened, dies_at: int | None = None) -> None:
        """Stand between a ledger and its database.

        Args:
            hf: The open ledger; nothing may be under way on it.
            dies_at: At which boundary to die, counted from 1; None: at none.
        """
        self.passed: list[str] = []
        self._dies_at = dies_at
        database = hf.database
        hf.database = database.owner._database = _Database(database, self)  # noqa: SLF001 - a seam for tests
        database.writer._committer = _Committer(database, self)  # noqa: SLF001 - it stands between the parts of the store

    def reach(self, boundary: str) -> None:
        """Pass a boundary.

        Raises:
            Crashed: It is the one to die at.
        """
        self.passed.append(boundary)
        if len(self.passed) == self._dies_at:
            points.crash(boundary)


class _Database:
    def __init__(self, database: Any, boundaries: Boundaries) -> None:
        self._database = database
        self._boundaries = boundaries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def read(self) -> _Block:
        return _Block(self._database.read(), self._boundaries, writes=False)

    def write(self) -> _Block:
        return _Block(self._database.write(), self._boundaries, writes=True)


class _Block:
    def __init__(self, block: Any, boundaries: Boundaries, *, writes: bool) -> None:
        self._block = block
        self._boundaries = boundaries
        self._writes = writes

    async def __aenter__(self) -> _Tx:
        return _Tx(await self._block.__aenter__(), self._boundaries)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        commits = self._writes and error is None
        if commits:
            try:
                self._boundaries.reach("before commit")
            except points.Crashed as died:
                await self._block.__aexit__(type(died), died, died.__traceback__)
                raise
        await self._block.__aexit__(kind, error, trace)
        if commits:
            self._boundaries.reach("after commit")


class _Tx:
    def __init__(self, tx: Any, boundaries: Boundaries) -> None:
        self._tx = tx
        self._boundaries = boundaries

    async def one(self, statement: str, /, **params: object) -> Row | None:
        self._boundaries.reach(f"before {statement}")
        return await self._tx.one(statement, **params)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        self._boundaries.reach(f"before {statement}")
        found: list[Row] = await self._tx.all(statement, **params)
        return found

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        self._boundaries.reach(f"before {statement}")
        count: int = await self._tx.run(statement, rows)
        return count

    def notify(self, channel: str, /) -> None:
        self._tx.notify(channel)


class _Committer:
    """Stands where the writer hands its batches to the database."""

    def __init__(self, database: Any, boundaries: Boundaries) -> None:
        self._database = database
        self._boundaries = boundaries
        self.lanes: int = database.lanes

    def ready(self, lane: int, /) -> bool:
        answer: bool = self._database.ready(lane)
        return answer

    def commit(self, batch: Batch, /) -> bool:
        self._boundaries.reach("before batch")
        tell = batch._landed  # noqa: SLF001 - the acknowledgement is what is to be lost

        def landed(batch: Batch, error: BaseException | None) -> None:
            try:
                self._boundaries.reach("after batch")
            except points.Crashed:
                return
            tell(batch, error)

        batch._landed = landed  # noqa: SLF001 - it stands between the parts of the store
        done: bool = self._database.commit(batch)
        if done:
            self._boundaries.reach("after batch")
        return done

    async def reopen(self, lane: int, /) -> None:
        await self._database.reopen(lane)
