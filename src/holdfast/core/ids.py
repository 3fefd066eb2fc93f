"""Identifiers: time-sortable ones that we mint, and the shape of derived ones.

Minted ids are UUIDv7 (RFC 9562): 48 bits of milliseconds, then a 74-bit counter that starts at a
random number each millisecond and grows by a random step within it.

Invariants:
    - Ids minted in one process sort in the order they were minted, even when the clock goes back.
    - A forked child starts afresh, so it never repeats what its parent mints.
"""

from __future__ import annotations

import os
import threading
from uuid import UUID

__all__ = ["owner_id", "uuid7", "uuid7_bytes", "uuid_text", "v8"]

_COUNTER_BITS = 74
_COUNTER_MAX = (1 << _COUNTER_BITS) - 1
_RAND_B_BITS = 62


class _Mint:
    """The last id minted in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.millis = -1
        self.counter = 0

    def next(self, millis: int) -> tuple[int, int]:
        with self.lock:
            if millis > self.millis:
                self.millis = millis
                # The top bit starts clear, which leaves room to count within the millisecond.
                self.counter = int.from_bytes(os.urandom(10), "big") >> (81 - _COUNTER_BITS)
            else:
                self.counter += 1 + int.from_bytes(os.urandom(4), "big")
                if self.counter > _COUNTER_MAX:
                    self.millis += 1
                    self.counter = int.from_bytes(os.urandom(10), "big") >> (81 - _COUNTER_BITS)
            return self.millis, self.counter


_mint = _Mint()


def _start_afresh() -> None:
    global _mint
    _mint = _Mint()


os.register_at_fork(after_in_child=_start_afresh)


def uuid7(now: int) -> UUID:
    """Mint a UUIDv7.

    Args:
        now: The instant, in microseconds since the epoch.
    """
    return UUID(bytes=uuid7_bytes(now))


def uuid7_bytes(now: int) -> bytes:
    """Mint the 16 bytes of a UUIDv7; `uuid_text` writes them as text."""
    millis, counter = _mint.next(max(now, 0) // 1000)
    rand_a, rand_b = counter >> _RAND_B_BITS, counter & ((1 << _RAND_B_BITS) - 1)
    number = (millis & (1 << 48) - 1) << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b
    return number.to_bytes(16, "big")


def v8(digest: bytes) -> bytes:
    """Return the first 16 bytes of a digest as the bytes of a UUIDv8."""
    derived = bytearray(digest[:16])
    derived[6] = derived[6] & 0x0F | 0x80
    derived[8] = derived[8] & 0x3F | 0x80
    return bytes(derived)


def uuid_text(raw: bytes) -> str:
    """Return 16 bytes in canonical UUID text."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def owner_id(now: int) -> str:
    """Mint the id of an owner: one process that has a ledger open."""
    return f"own_{uuid7(now)}"
