"""Callers that append without end, while something is done to the database."""

from __future__ import annotations

import asyncio

from holdfast.core.loops import spawn
from holdfast.store import Database
from holdfast.testing.store_contract.ledgers import entries, entry, put

__all__ = ["Appenders"]


class Appenders:
    """Tasks that append, each to an execution of its own, one entry after the other, until they are stopped."""

    def __init__(self, database: Database, pks: list[int]) -> None:
        self.database = database
        self.acknowledged = dict.fromkeys(pks, 0)
        self.progress = asyncio.Event()
        self._stopped = False
        self._tasks = [spawn(self._append(pk), "an appender") for pk in pks]

    async def _append(self, pk: int) -> None:
        while not self._stopped:
            [result] = await put(self.database, entry(self.database, pk, self.acknowledged[pk]))
            assert result.fence == 1
            self.acknowledged[pk] += 1
            self.progress.set()

    async def more(self, count: int = 1) -> None:
        """Wait until every appender is that much further."""
        goals = {pk: done + count for pk, done in self.acknowledged.items()}
        while any(self.acknowledged[pk] < goal for pk, goal in goals.items()):
            self.progress.clear()
            async with asyncio.timeout(20):
                await self.progress.wait()

    async def stop(self) -> None:
        """End them, and see that what they were told is true."""
        self._stopped = True
        await asyncio.gather(*self._tasks)
        for pk, count in self.acknowledged.items():
            assert [row.idx for row in await entries(self.database, pk)] == list(range(count))
