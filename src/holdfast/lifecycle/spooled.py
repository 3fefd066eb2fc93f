"""Bring into the ledger the hook calls that it could not take when they came.

Invariants:
    - A call leaves its spool file after the commit that holds it; until then it may be in both, under one id.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from holdfast.lifecycle import deliveries
from holdfast.lifecycle.deliveries import Delivery
from holdfast.store import drop

if TYPE_CHECKING:
    from holdfast.store.database import Database

__all__ = ["move"]

log = logging.getLogger("holdfast.lifecycle")


async def move(database: Database, paths: Iterable[str]) -> None:
    """Move calls from spool files; a file that cannot be read or written is left for the next time.

    Args:
        database: The ledger, open for writing.
        paths: The files; those that are not there are passed over.

    Raises:
        StoreError: The ledger could not be used.
    """
    for path in filter(os.path.exists, paths):
        try:
            while rows := await asyncio.to_thread(drop.waiting, path):
                async with database.write() as tx:
                    for row in rows:
                        await deliveries.append(tx, Delivery(*row))  # type: ignore[arg-type]  # as it was written
                await asyncio.to_thread(drop.forget, path, [str(row[0]) for row in rows])
        except drop.Refused as error:
            log.warning("hook calls wait in a file that cannot be emptied: %s", error.why)
