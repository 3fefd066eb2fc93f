"""Wake-ups inside one process: who waits on which channel.

Invariants:
    - A waiter returns when its channel is woken or its time is over, and leaves nothing behind.
    - A hint is not kept: it wakes those who wait now. Whoever waits reads the truth again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.core.clock import Clock

__all__ = ["Hints"]


class Hints:
    """The waiters of one database."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiters: dict[str, set[asyncio.Future[bool]]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, channel: str, timeout: float, /) -> bool:  # noqa: ASYNC109 - a hint's wait ends early
        """Wait for a hint; say whether one came in time."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(channel, set())
        waiters.add(future)
        try:
            return await self._clock.wait(future, timeout) and future.result()
        finally:
            waiters.discard(future)
            if not waiters and self._waiters.get(channel) is waiters:
                del self._waiters[channel]

    def wake(self, channel: str, /) -> None:
        """Wake all who wait on a channel."""
        for future in self._waiters.pop(channel, ()):
            if not future.done():
                future.set_result(True)

    def channels(self) -> tuple[str, ...]:
        """Return the channels somebody waits on."""
        return tuple(self._waiters)

    def dismiss(self) -> None:
        """Let every waiter go without a hint: the database is closing."""
        for channel in self.channels():
            for future in self._waiters.pop(channel):
                if not future.done():
                    future.set_result(False)
