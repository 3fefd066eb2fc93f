"""Writes that failed when they came about, and are tried again while the ledger is away.

Outcomes: the client has its answer, what is missing is the record. Their claims go on being renewed as far as
that goes, and duplicates are refused as in flight. And claims to take back, whose fate nobody knows.

Invariants:
    - A write is repeated under its own fence or claim id, so it takes effect once or not at all.
    - What waits holds at most so many bytes of bodies; `fits` says whether another one may.
    - When its time is over a write is given up, and its owner told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import StoreError
from holdfast.core.loops import Loop
from holdfast.idempotency.errors import StoreUnavailable

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.idempotency.gate import Gate

__all__ = ["Unwritten", "Write"]

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 5.0

log = logging.getLogger("holdfast.idempotency")


@dataclass(slots=True, eq=False)
class Write:
    """Something to be written.

    Attributes:
        work: Writes it; gives whether it took effect.
        until: When to give up, in seconds of the monotonic clock.
        done: Told what came of it: True or False from `work`, None when it was given up.
        size: Bytes of body it holds.
        looks: How often a False is not believed yet: what it undoes may still be under way.
    """

    work: Callable[[], Coroutine[Any, Any, bool]]
    until: float
    done: Callable[[bool | None], object] = field(default=lambda _: None)
    size: int = 0
    looks: int = 0


class Unwritten:
    """All writes of one guard that wait for the ledger.

    Attributes:
        size: Bytes of bodies in them.
    """

    def __init__(self, *, gate: Gate, clock: Clock, bytes_max: int) -> None:
        self.size = 0
        self._gate = gate
        self._clock = clock
        self._bytes_max = bytes_max
        self._writes: dict[Write, None] = {}
        self._retry = RETRY_FIRST_S
        self._woken: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._loop = Loop("holdfast idempotency unwritten", self._round, 0.0, clock)

    def __len__(self) -> int:
        return len(self._writes)

    def fits(self, size: int) -> bool:
        """Say whether a body of that size may wait."""
        return self.size + size <= self._bytes_max

    def add(self, write: Write) -> None:
        """Take in a write that has just failed; it is tried again after a moment."""
        self._writes[write] = None
        self.size += write.size
        self._loop.start()
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing is left, at most that long; say whether nothing is."""
        if not self._writes:
            return True
        self._emptied = asyncio.get_running_loop().create_future()
        return await self._clock.wait(self._emptied, seconds)

    async def stop(self) -> None:
        """Try no more; what is left stays unwritten."""
        await self._loop.stop()

    async def _round(self) -> None:
        self._woken = asyncio.get_running_loop().create_future()
        if not self._writes:
            await self._clock.wait(self._woken, None)
        await self._clock.sleep(self._retry)
        self._retry = min(self._retry * 2, RETRY_MAX_S)
        for write in list(self._writes):
            try:
                took = await self._gate.attempt(write.work)
            except (StoreUnavailable, StoreError):
                self._writes.pop(write)
                self._writes[write] = None  # it may be this one alone that fails: next time others go first
                break
            except Exception as error:  # noqa: BLE001 - one that cannot be made must not hold up the others
                log.warning("an outcome cannot be written: %s", type(error).__qualname__)
                self._end(write, None)
                continue
            if took:
                self._retry = RETRY_FIRST_S  # the ledger is back
            if took or write.looks <= 0:
                self._end(write, took)
            else:
                write.looks -= 1
        now = self._clock.monotonic()
        for write in [each for each in self._writes if each.until <= now]:
            self._end(write, None)
        if not self._writes:
            self._retry = RETRY_FIRST_S
            if self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    def _end(self, write: Write, took: bool | None) -> None:  # noqa: FBT001 - what `work` gave
        del self._writes[write]
        self.size -= write.size
        write.done(took)
