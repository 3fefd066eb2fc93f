"""Continuations, each call in a transaction of its own.

    continuations = Continuations(hf.database)
    version = await continuations.put("session-1", "plan", b"buy milk", if_version=0)

Whoever writes more in the same transaction uses the functions over a `Tx`, which are exported from here, too.

Invariants:
    - The time is the database's clock, so all processes agree on what has expired.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from holdfast.lifecycle.continuations import (
    TTL,
    Blob,
    Kept,
    drop_continuation,
    drop_thread,
    get_continuation,
    list_continuations,
    put_continuation,
)

if TYPE_CHECKING:
    from holdfast.store.database import Database

__all__ = [
    "Blob", "Continuations", "Kept", "drop_continuation", "drop_thread", "get_continuation", "list_continuations",
    "put_continuation",
]  # fmt: skip


class Continuations:
    """The continuations of a ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self, thread: str, name: str, body: bytes, *, ttl: timedelta = TTL, if_version: int | None = None
    ) -> int:
        """Put a blob in the place of what is there; return its version.

        Args:
            thread: Whose it is: a session, a task.
            name: What it is called there.
            body: The blob, of at most 256 KiB; a thread has at most 64 of them, and 4 MiB.
            ttl: How long it is kept: at most 30 days.
            if_version: Only if this version is there; 0: only if there is none.

        Raises:
            ContinuationConflict: Another version is there.
            ContinuationRefused: A name cannot be one, or a limit would be passed.
        """
        now = self._database.clock.now()
        async with self._database.write() as tx:
            return await put_continuation(tx, thread, name, body, ttl=ttl, if_version=if_version, now=now)

    async def get(self, thread: str, name: str) -> Blob | None:
        """Return a blob; None: there is none, or it has expired."""
        async with self._database.read() as tx:
            return await get_continuation(tx, thread, name, now=self._database.clock.now())

    async def list(self, thread: str | None = None) -> list[Kept]:
        """Return what is known of a thread's blobs, or of all threads', in the order of their names."""
        async with self._database.read() as tx:
            return await list_continuations(tx, thread, now=self._database.clock.now())

    async def drop(self, thread: str, name: str) -> bool:
        """Delete a blob; tell whether there was one."""
        async with self._database.write() as tx:
            return await drop_continuation(tx, thread, name, now=self._database.clock.now())

    async def drop_thread(self, thread: str) -> int:
        """Delete all blobs of a thread; return how many there were."""
        async with self._database.write() as tx:
            return await drop_thread(tx, thread, now=self._database.clock.now())
