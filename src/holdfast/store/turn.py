"""Who may use the one connection that writes; and waiting for whoever else writes to the file.

Invariants:
    - One at a time, in the order of asking; whoever gives up waiting holds up nobody.
    - Whoever waits for another process does nothing meanwhile: cancelled, he has begun nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import StoreError

__all__ = ["Turn", "outwait"]

PAUSE_FIRST_S, PAUSE_MAX_S = 0.0005, 0.01
"""Between two looks whether another process has ended its transaction."""


class Turn:
    """A lock that tasks wait for, and that callbacks can ask for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._line: deque[asyncio.Future[None] | Callable[[], object]] = deque()
        self._holder: asyncio.Task[Any] | None = None
        self.taken = False

    async def take(self) -> None:
        """Wait for one's turn.

        Raises:
            StoreError: The same task has it already, and would wait for itself.
        """
        task = asyncio.current_task()
        if self.taken:
            if task is not None and self._holder is task:
                raise StoreError(
                    "a task opened a transaction inside its own transaction", "use the one it has, or end it first"
                )
            future: asyncio.Future[None] = self._loop.create_future()
            self._line.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self.give()
                raise
        self.taken = True
        self._holder = task

    def take_now(self) -> None:
        """Take a turn that is free."""
        self.taken = True

    def ask(self, start: Callable[[], object]) -> None:
        """Have something called when the turn has come; it may take the turn, or not."""
        if start not in self._line:
            self._line.append(start)

    def give(self) -> None:
        """Pass the turn on."""
        self.taken = False
        self._holder = None
        while self._line and not self.taken:
            following = self._line.popleft()
            if not isinstance(following, asyncio.Future):
                following()
            elif not following.done():
                self.taken = True
                following.set_result(None)


async def outwait(begin: Callable[[], bool], seconds: float) -> bool:
    """Begin as soon as nobody else writes; False: somebody did for that long.

    In real time, whatever clock a test may set: the other process knows no other.

    Args:
        begin: Begins a transaction at once, or says that somebody else has one.
        seconds: How long to wait.
    """
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    deadline = time.perf_counter() + seconds
    pause = PAUSE_FIRST_S
    while True:
        await asyncio.wait((never,), timeout=pause)
        if begin():
            return True
        if time.perf_counter() > deadline:
            return False
        pause = min(pause * 1.5, PAUSE_MAX_S)
