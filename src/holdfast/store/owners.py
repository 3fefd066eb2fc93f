"""Who is at work on a ledger, and who is dead.

A process that claims anything holds one owner row, whose lease it renews, and an exclusive `flock` on a
file of its own. The kernel drops the lock with the process, so on one machine a death shows at once
and without doubt; elsewhere the lease's end shows it.

    lock file is here, locked           alive, whatever the clock says
    lock file is here, lockable         dead, at once
    not here, or locks are not to be had   the lease decides

The lock is taken before the row is written, so a row never promises a lock that is not yet held. Whoever
finds an owner dead by its lock keeps that lock while it claims: it ends the owner's lease in the claim's
transaction and removes the file after the commit.

Invariants:
    - An owner row with a lock path was written by a process that held that lock.
    - The lock's descriptor is closed on exec and in forked children, so only this process keeps it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from holdfast.core import points
from holdfast.core.ids import owner_id
from holdfast.core.lease import Lease
from holdfast.core.loops import Loop, spawn
from holdfast.store.database import Row

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.store.database import Database
    from holdfast.store.home import Home
    from holdfast.store.settings import StoreSettings

__all__ = ["Alive", "Dead", "Death", "Lock", "Owner", "Unknown", "machine_id", "probe", "take_lock"]

log = logging.getLogger(__name__)

points.register("lock.created", "lock.locked")

_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)


class Lock:
    """An exclusive lock on an owner's file, held until it is released."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @property
    def held(self) -> bool:
        """Whether this process still holds it."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Let go of the lock and leave the file; harmless when that was done before."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file, then let go: nobody can take the lock of an owner that has ended."""
        if self._descriptor >= 0:
            try:
                os.unlink(self.path)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    log.warning("the lock file of a dead owner stays behind: %s", error)
        self.release()


class Alive(msgspec.Struct, frozen=True):
    """The owner's process holds its lock."""


class Dead(msgspec.Struct, frozen=True):
    """The owner's process is gone; we hold its lock.

    In the claim's transaction run `owners.end` for it; after the commit call `lock.remove()`, without a
    commit `lock.release()`.
    """

    lock: Lock


class Unknown(msgspec.Struct, frozen=True):
    """The kernel here cannot tell: the owner's lease decides, in the claim's own statement."""


Death: TypeAlias = Alive | Dead | Unknown


def probe(row: Row) -> Death:
    """Ask the kernel whether the owner of a row of `holdfast_owners` is alive. Quick, and never waits."""
    if row.lock_path is None:
        return Unknown()
    try:
        descriptor = os.open(row.lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return Unknown()  # not here, or not ours to open
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return Alive() if error.errno in _HELD_ELSEWHERE else Unknown()
    return Dead(Lock(row.lock_path, descriptor))


def take_lock(directory: Path, name: str) -> Lock | None:
    """Make a lock file and lock it; None when this directory or file system offers no locks."""
    path = directory / name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        log.warning("no owner file can be made, so only the lease will show this process's death: %s", error)
        return None
    lock = Lock(str(path), descriptor)
    if points.armed:
        points.reach("lock.created")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        log.warning("files cannot be locked here, so only the lease will show this process's death: %s", error)
        lock.remove()
        return None
    if points.armed:
        points.reach("lock.locked")
    return lock


@cache
def machine_id() -> str:
    """Return what names this machine: its machine-id, else its boot and its host name."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        found = _first_line(path)
        if found:
            return found
    boot = _first_line("/proc/sys/kernel/random/boot_id")
    return f"{boot}@{socket.gethostname()}" if boot else socket.gethostname()


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""


class Owner:
    """This process as an owner of a ledger. It becomes one with the first `ensure`.

    Attributes:
        id: The owner id, fixed from the start.
        lock_path: Its lock file, once there is one.
        holds: Numbers of what this process has under way, whichever handle of the ledger began it.
    """

    def __init__(
        self, database: Database, *, home: Home, directory: Path | None, clock: Clock, settings: StoreSettings
    ) -> None:
        self._database = database
        self._directory = directory
        self._clock = clock
        self._home = home
        self._lease_us = settings.lease_ms * 1000
        self._renew_us = settings.renew_ms * 1000
        self._held: Lease | None = None  # in microseconds of the monotonic clock
        self._fresh_from = self._fresh_until = 0.0  # the same in seconds: asked before every effect
        self._monotonic = clock.monotonic
        self._started_at = 0
        self._lock: Lock | None = None
        self._loop: Loop | None = None
        self._ensuring = asyncio.Lock()
        self._over = False
        self.id = owner_id(clock.now())
        self.holds: set[int] = set()
        home.on_fork(self._part)

    @property
    def _lease(self) -> Lease | None:
        return self._held

    @_lease.setter
    def _lease(self, lease: Lease | None) -> None:
        self._held = lease
        self._fresh_from, self._fresh_until = (
            (lease.renewed_at / 1e6, lease.stale_at / 1e6) if lease is not None else (0.0, 0.0)
        )

    @property
    def lock_path(self) -> str | None:
        """Path of the lock file, None when there is none."""
        return self._lock.path if self._lock is not None else None

    async def ensure(self) -> str:
        """Be an owner: lock the file, write the row, start renewing. Returns the id.

        Raises:
            StoreError: The row could not be written.
        """
        self._home.check()
        if self._loop is None:
            async with self._ensuring:
                if self._loop is None:
                    await self._begin()
        return self.id

    def fresh(self) -> bool:
        """Say whether the lease was renewed within two thirds of it: only then may an effect begin."""
        return self._fresh_from <= self._monotonic() < self._fresh_until

    async def renew(self) -> None:
        """Renew the lease now."""
        async with self._database.write() as tx:
            # The time of waiting for one's turn is not taken off the lease, that of committing is.
            renewed_at, until = self._ticks(), self._clock.now() + self._lease_us
            row = (
                self.id, socket.gethostname(), machine_id(), os.getpid(), self.lock_path, until, self._started_at,
            )  # fmt: skip
            await tx.run("owners.renew", [row])
        self._lease = Lease(renewed_at, self._lease_us)

    async def release(self) -> None:
        """Stop being an owner: remove row and file. Harmless when it never was one."""
        self._over = True
        loop, self._loop = self._loop, None
        if loop is not None:
            await loop.stop()
            self._lease = None
            try:
                async with self._database.write() as tx:
                    await tx.run("owners.delete", [(self.id,)])
            finally:
                self._unlock()

    def abandon(self) -> None:
        """Vanish as a dead process does: the lock is let go, the row and the file stay."""
        self._over = True
        loop, self._loop = self._loop, None
        if loop is not None and not self._home.loop.is_closed():  # a closed one has ended all that ran in it
            spawn(loop.stop(), "holdfast owner")
        self._lease = None
        if self._lock is not None:
            self._lock.release()

    async def _begin(self) -> None:
        if self._lock is None and self._directory is not None:
            self._lock = take_lock(self._directory, self.id)
        self._started_at = self._clock.now()
        await self.renew()
        if self._over:  # closed or abandoned meanwhile
            self._unlock()
            return
        self._loop = Loop("holdfast owner", self._round, self._renew_us / 1e6, self._clock)
        self._loop.start()

    async def _round(self) -> None:
        if not self._over and (self._lease is None or self._ticks() - self._lease.renewed_at > self._renew_us // 2):
            await self.renew()

    def _ticks(self) -> int:
        return int(self._clock.monotonic() * 1e6)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.remove()
            self._lock = None

    def _part(self) -> None:
        """Close a forked child's copy of the descriptor; the parent's lock stays."""
        self._lease = None
        if self._lock is not None:
            self._lock.release()
