"""Keeps SQLite's write-ahead log from growing without bound, off the commit path.

Commits only append to the log. A second connection, on a thread of its own, copies it into the file
whenever it has grown by `CHECKPOINT_BYTES`. The log starts over when a commit finds it wholly copied and nobody
reading from it; under a load that never pauses that moment may never come. So when the log outgrows
`WAL_BYTES_MAX`, it is copied until little is left, and then writers are held off for that little.

Appending to a file that grows costs a flush twice what overwriting does, for the file's new size must reach
the disk too. So a ledger that is written to in earnest gets its log stretched with zeros to the size at which it
starts over; frames are told by their checksums, so what lies beyond the last one is never read.

Invariants:
    - A failure here loses nothing: what was not copied stays in the log, and later commits ask again.
    - Writers are held off only when what is left to copy is small and no reader is in the way.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import apsw

from holdfast.core.loops import spawn
from holdfast.store.home import leak
from holdfast.store.sqlite_pool import leave_log
from holdfast.store.turn import Turn
from holdfast.store.worker import Worker

__all__ = ["CHECKPOINT_BYTES", "WAL_BYTES_MAX", "LogKeeper"]

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 4 * 1024 * 1024
WAL_BYTES_MAX = 16 * 1024 * 1024
FRAME_HEADER_BYTES = 24
STRETCH_FROM_BYTES = 256 * 1024
"""How much is written before the log is stretched: a command that writes a few rows does without."""
STRETCH_BYTES = 1024 * 1024
"""What is stretched at a time; the flush of the commit at hand takes it along."""
STRETCH_AHEAD_PAGES = 48
"""How near its end the log is stretched: more than most commits write."""
DISK_FREE_MIN = 64 * 1024 * 1024
"""Free space below which the log is left as it is."""
REST_PAGES_MAX = 512
"""What may be left to copy while writers are held off: two megabytes, some ten milliseconds."""
ROUNDS_MAX = 8
READERS_MS = 5
"""How long writers are held off at most for a reader of the old log to end; it is tried again soon."""


class LogKeeper:
    """Watches the log of one ledger.

    Args:
        open_connection: Opens another connection to the file; called on the keeper's thread.
        turn: Whoever has it writes.
        page_bytes: The file's page size.
        label: What to call the file.
    """

    def __init__(
        self,
        open_connection: Callable[[], apsw.Connection],
        *,
        turn: Turn,
        loop: asyncio.AbstractEventLoop,
        page_bytes: int,
        label: str,
    ) -> None:
        self._open = open_connection
        self._turn = turn
        self._label = label
        self._page_bytes = page_bytes
        self._step = max(CHECKPOINT_BYTES // page_bytes, 1)
        self._pages_max = max(WAL_BYTES_MAX // page_bytes, 1)
        self._worker = Worker("holdfast log", loop, naps=False)
        self._connection: apsw.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._reach = STRETCH_FROM_BYTES // page_bytes  # pages of the log that the file has room for
        self._reach_max = self._pages_max
        self._seen = 0
        self._due_at = self._step
        self.pages = 0

    def on_commit(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        """Take note of the log's length; SQLite calls it with every commit, on whichever thread."""
        self.pages = pages
        return apsw.SQLITE_OK

    def look(self) -> None:
        """Start copying when it is time; call it in the loop after commits."""
        pages = self.pages
        if pages < self._seen:  # it has started over
            self._due_at = self._step
        self._seen = pages
        if self._task is not None or self._over:
            return
        if pages >= self._due_at:
            self._task = spawn(self._keep(), "holdfast log")

    def make_room(self, wal: str) -> None:
        """Stretch the log before a commit that comes near its end. Call it inside a write transaction.

        The transaction keeps every other process from appending meanwhile.
        """
        if self.pages + STRETCH_AHEAD_PAGES < self._reach or self._reach >= self._reach_max:
            return
        try:
            descriptor = os.open(wal, os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._reach = self._stretch(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._reach = self._reach_max = 0
            log.debug("the log of %s is not stretched: %s", self._label, error)

    def _stretch(self, descriptor: int) -> int:
        size = os.fstat(descriptor).st_size
        frame = self._page_bytes + FRAME_HEADER_BYTES
        if size >= (self.pages + STRETCH_AHEAD_PAGES) * frame and size > STRETCH_FROM_BYTES * 2:
            return size // frame  # somebody else has stretched it, or it is being used again from its start
        disk = os.fstatvfs(descriptor)
        if disk.f_bavail * disk.f_frsize < DISK_FREE_MIN:
            self._reach_max = 0
            return 0
        try:
            os.pwrite(descriptor, bytes(STRETCH_BYTES), size)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        return (size + STRETCH_BYTES) // frame

    async def stop(self) -> None:
        """End, and close the connection."""
        self._over = True
        if self._task is not None:
            await asyncio.wait((self._task,))
        await self._worker.call(self._close)
        self._worker.end()

    def abandon(self) -> None:
        """End at once; the connection is closed after what is under way on it."""
        self._over = True
        if self._connection is not None:
            leave_log(self._connection)
        self._worker.submit(self._close, lambda _: None)
        self._worker.end()

    def leak(self) -> None:
        """Never close the connection: this is a forked child."""
        if self._connection is not None:
            leak(self._connection)

    async def _keep(self) -> None:
        try:
            small = await self._worker.call(self._copy)
            if small and self.pages >= self._pages_max and not self._over:
                await self._turn.take()
                try:
                    if await self._worker.call(self._start_over):
                        self.pages = 0
                finally:
                    self._turn.give()
        except apsw.Error as error:
            log.warning("copying the log of %s into it failed, to be tried again: %s", self._label, error)
        finally:
            grown = self.pages >= self._pages_max
            self._due_at = self.pages + (self._step // 8 + 1 if grown else self._step)
            self._task = None

    def _copy(self) -> bool:
        """Copy until little is left; False: a reader, or the pace of writing, is in the way."""
        if self._connection is None:
            self._connection = self._open()
        done = -1
        for _ in range(ROUNDS_MAX):
            length, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if length - copied <= REST_PAGES_MAX or self.pages < self._pages_max:
                return True
            if copied == done:
                return False
            done = copied
        return False

    def _start_over(self) -> bool:
        """Have the next commit begin the log anew; False: a reader is in the way."""
        if self._connection is None:
            return False
        self._connection.set_busy_timeout(READERS_MS)
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.BusyError:
            return False
        return True

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close(True)  # noqa: FBT003 - force: its cursors go with it
            self._connection = None
