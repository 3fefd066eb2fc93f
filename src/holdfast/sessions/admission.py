"""Let so many bodies in at a time, by number and by weight; who finds no place in time is told to come again.

A place is held from a body's first byte to its commit. Whoever waits is served in the order of coming, so a large
body is not overtaken for ever by small ones. A body that outweighs the whole limit is let in when it is alone: the
limit of one body is another one's business.

Invariants:
    - The bodies that are in never weigh more than the limit, unless one of them does so alone.
    - A place is given back however its holder ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from holdfast.sessions.errors import SaturatedBytes, SaturatedItems, Stopping
from holdfast.sessions.metrics import METRICS

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.sessions.config import SessionsConfig

__all__ = ["Admission", "Place"]

RETRY_S = 1.0
"""When to come again: a full house empties within a few commits."""


class _Full:
    """So many units, of which holders have some; who wants more waits in line."""

    def __init__(self, most: int, clock: Clock, wait_s: float) -> None:
        self.held = 0
        self._most = most
        self._clock = clock
        self._wait_s = wait_s
        self._line: deque[tuple[asyncio.Future[None], int, int]] = deque()

    async def take(self, units: int, mine: int = 0) -> bool:
        """Take more units, `mine` of which the caller has already; say whether there was room in time."""
        if not self._line and self._fits(units, mine):
            self.held += units
            return True
        turn = asyncio.get_running_loop().create_future()
        entry = turn, units, mine
        self._line.append(entry)
        try:
            await self._clock.wait(turn, self._wait_s)
        except asyncio.CancelledError:
            if turn.done():
                self.give(units)
            raise
        finally:
            if not turn.done():
                self._line.remove(entry)
                self._serve()
        return turn.done()

    def give(self, units: int) -> None:
        """Give units back, and let in who waits."""
        self.held -= units
        self._serve()

    def _serve(self) -> None:
        while self._line:
            turn, units, mine = self._line[0]
            if not self._fits(units, mine):
                return
            self._line.popleft()
            self.held += units
            turn.set_result(None)

    def _fits(self, units: int, mine: int) -> bool:
        return self.held + units <= self._most or self.held == mine


class Place:
    """A body's place, from when there is one until it is left."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._weight = 0
        self._left = False

    async def grow(self, size: int) -> None:
        """Weigh so many bytes more.

        Raises:
            SaturatedBytes: There was no room for them in time; the place is kept until it is left.
        """
        if not await self._admission.weight.take(size, self._weight):
            raise SaturatedBytes(
                "the calls that are being taken weigh as much as they may",
                "send it again after a moment",
                retry_after=RETRY_S,
            )
        self._weight += size
        self._admission.show()

    def leave(self) -> None:
        """Give it back; harmless when that was done."""
        if not self._left:
            self._left = True
            self._admission.leave(self._weight)


class Admission:
    """The places there are. It belongs to one event loop."""

    def __init__(self, config: SessionsConfig, clock: Clock) -> None:
        wait_s = config.admission_wait_ms / 1000
        self.items = _Full(config.inflight_items_max, clock, wait_s)
        self.weight = _Full(config.inflight_bytes_max, clock, wait_s)
        self._closed = False

    def close(self) -> None:
        """Give no more places; who has one keeps it."""
        self._closed = True

    async def enter(self) -> Place:
        """Return a place as soon as there is one; whoever has it leaves it.

        Raises:
            SaturatedItems: There was none in time.
            Stopping: None is given any more.
        """
        self._refuse_when_closed()
        if not await self.items.take(1):
            raise SaturatedItems(
                "as many calls are being taken as may be", "send it again after a moment", retry_after=RETRY_S
            )
        try:
            self._refuse_when_closed()
        except Stopping:
            self.items.give(1)
            raise
        self.show()
        return Place(self)

    def leave(self, weight: int) -> None:
        """Give a place back; leaving it does."""
        self.weight.give(weight)
        self.items.give(1)
        self.show()

    def show(self) -> None:
        """Tell the metrics what is held."""
        METRICS.inflight_items.set(self.items.held)
        METRICS.inflight_bytes.set(self.weight.held)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Stopping("no more calls are taken here", "send it again, to whoever takes over")
