"""A transaction beside which nothing of its org is derived or changed, for what touches many sessions at once.

Invariants:
    - A dry run does the same work, and leaves nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from holdfast.sessions.archive.work import SWEEP, Terms, Work
from holdfast.store.database import Database

__all__ = ["alone"]


class _Undone(Exception):
    """Nothing is to be kept of the transaction."""


@asynccontextmanager
async def alone(
    database: Database, org: UUID, *, mint: Callable[[], bytes], terms: Terms, dry_run: bool = False
) -> AsyncIterator[Work]:
    """Give a transaction's work that holds everything of an org.

    Args:
        database: The ledger.
        org: Whose rows.
        mint: Makes an id of 16 bytes.
        terms: What derivation depends on.
        dry_run: Whether to leave nothing of it.
    """
    try:
        async with database.write() as tx:
            work = Work(tx, org, frozenset((SWEEP,)), mint, database.clock.now(), terms)
            await work.take()
            yield work
            _keep(dry_run=dry_run)
    except _Undone:
        return


def _keep(*, dry_run: bool) -> None:
    if dry_run:
        raise _Undone
