"""Wake-ups between processes, by LISTEN and NOTIFY.

All hints of a ledger go over one channel of the server, the ledger's; the payload says what is meant, so
that names of any length and shape will do.

Invariants:
    - A hint that came while nobody listened is made up for: whoever waits is woken when listening begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from holdfast.core.loops import Loop
from holdfast.store.hints import Hints
from holdfast.store.postgres_errors import Edge
from holdfast.store.postgres_pool import Link

if TYPE_CHECKING:
    from holdfast.core.clock import Clock

__all__ = ["HINT_BYTES_MAX", "Listener"]

log = logging.getLogger(__name__)

HINT_BYTES_MAX = 7999
"""The server's limit for the payload of a notification."""
PAUSE_S = 0.1


class Listener:
    """A connection that listens from the first wait on, and is made again when it is lost.

    Args:
        connect: Opens it.
        channel: The ledger's channel on the server.
        hints: Whom to wake.
        ours: Whether a session of the server is of this process: those it wakes itself, and sooner.
        edge: Maps errors.
        clock: Times reconnection.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Link]],
        *,
        channel: str,
        hints: Hints,
        ours: Callable[[int], bool],
        edge: Edge,
        clock: Clock,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._hints = hints
        self._ours = ours
        self._edge = edge
        self._loop = Loop("holdfast listener", self._listen, PAUSE_S, clock)
        self._started = False

    def start(self) -> None:
        """See to it that somebody listens; quick when somebody does."""
        if not self._started:
            self._started = True
            self._loop.start()

    async def stop(self) -> None:
        """Listen no more."""
        await self._loop.stop()

    async def _listen(self) -> None:
        link = await self._connect()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.connection.add_termination_listener(lambda _: ended.cancel())
        try:
            with self._edge, link.watch:
                await link.connection.add_listener(self._channel, self._heard)
            for channel in self._hints.channels():
                self._hints.wake(channel)
            await asyncio.wait([ended])
        finally:
            link.connection.terminate()

    def _heard(self, _connection: Any, pid: int, _channel: str, hint: str) -> None:
        if not self._ours(pid):
            self._hints.wake(hint)
