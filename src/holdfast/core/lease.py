"""Lease arithmetic: when an owner counts as dead, and when it may no longer start anything.

Instants and durations are microseconds. This module is pure: it is told the time, and what the kernel
says of a lock.

Invariants:
    - A held lock is alive and a free one is dead, whatever any clock says.
    - An owner stops starting effects before anybody may take it for dead by its lease.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Lease", "LockState", "is_dead"]

LockState = Literal["held", "free", "unknown"]
"""What `flock` says of an owner's file; `unknown`: it is not on this machine, or locks are not to be had."""


class Lease(msgspec.Struct, frozen=True):
    """What an owner knows of its own lease.

    Attributes:
        renewed_at: When it was last renewed, measured before the renewal was sent.
        length: How long a renewal lasts.
    """

    renewed_at: int
    length: int

    @property
    def until(self) -> int:
        """When others may take the owner for dead."""
        return self.renewed_at + self.length

    @property
    def stale_at(self) -> int:
        """When the owner must not start effects any more: two thirds of the way."""
        return self.renewed_at + self.length * 2 // 3

    def may_start(self, now: int) -> bool:
        """Whether an effect may start now. A clock that went back behind the renewal proves nothing."""
        return self.renewed_at <= now < self.stale_at

    def is_over(self, now: int) -> bool:
        """Whether others may take the owner for dead."""
        return now >= self.until

    def renew(self, now: int) -> Lease:
        """Return the lease after a renewal that was sent at `now`."""
        return Lease(now, self.length)


def is_dead(lock: LockState, lease_until: int, now: int) -> bool:
    """Decide whether an owner is dead: by the kernel where it knows, else by the lease."""
    if lock == "unknown":
        return now >= lease_until
    return lock == "free"
