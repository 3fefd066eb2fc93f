"""What cancels a run of the application: it has taken too long, or its claim is lost.

Invariants:
    - It cancels the task that made it, at most once, and never after it was disarmed.
    - What is interrupted here is told apart from a cancellation that came from outside.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from holdfast.core.clock import Clock, Timer

__all__ = ["Interrupt"]


class Interrupt:
    """Cancels the task that made it, once, and knows that it did."""

    def __init__(self, clock: Clock) -> None:
        task = asyncio.current_task()
        assert task is not None, "an application runs in a task"
        self.reason: Literal["timeout", "lost"] | None = None
        self._clock = clock
        self._task = task
        self._before = task.cancelling()
        self._timer: Timer | None = None
        self._over = False

    def after(self, seconds: float) -> None:
        """Strike when that much time has passed."""
        self._timer = self._clock.call_later(seconds, lambda: self.strike("timeout"))

    def strike(self, reason: Literal["timeout", "lost"]) -> None:
        """Cancel the task, unless it is over."""
        if not self._over and self.reason is None:
            self.reason = reason
            self._task.cancel()

    def disarm(self) -> None:
        """Strike no more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def caught(self) -> bool:
        """Say whether it struck, and nobody else cancelled the task as well; take its cancellation back."""
        return self.reason is not None and self._task.uncancel() <= self._before
