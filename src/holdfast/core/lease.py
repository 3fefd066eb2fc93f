"""Lease arithmetic: when an owner counts as dead, and when it may no longer start anything.

Instants and durations are microseconds. Leases count where the kernel cannot tell: an owner whose lock is held is
alive, and one whose lock is free is dead, whatever any clock says.

Invariants:
    - An owner stops starting effects before anybody may take it for dead by its lease.
"""

from __future__ import annotations

import msgspec

__all__ = ["Lease", "is_over"]


class Lease(msgspec.Struct, frozen=True):
    """What an owner knows of its own lease.

    Attributes:
        renewed_at: When it was last renewed, measured before the renewal was sent.
        length: How long a renewal lasts.
    """

    renewed_at: int
    length: int

    @property
    def stale_at(self) -> int:
        """When the owner must not start effects any more: two thirds of the way."""
        return self.renewed_at + self.length * 2 // 3


def is_over(until: int | None, now: int) -> bool:
    """Whether others may take an owner for dead whose lease ends then; None: its row is gone."""
    return until is None or until <= now
