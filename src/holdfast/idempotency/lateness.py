"""Which responses are under way for how long, so that slow ones are told.

Almost every response is over long before its time, so all that have the same time share one timer. It is set for
the oldest of them, and to have it costs a response one entry in a dict.

Invariants:
    - Who is told was entered at least its time ago, and has not left since.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from holdfast.core.clock import Clock, Timer

__all__ = ["Late", "Lateness", "Line"]


class Late(Protocol):
    """What can be told."""

    def late(self) -> None:
        """Its time has come."""
        ...


class Lateness:
    """Responses under way, by the time they have.

    It belongs to one event loop.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: dict[timedelta, Line] = {}

    def enter(self, who: Late, after: timedelta) -> Line:
        """Have somebody told after a time, unless they leave the line that is returned here before."""
        line = self._lines.get(after)
        if line is None:
            line = self._lines[after] = Line(self._clock, after.total_seconds())
        line.enter(who)
        return line


class Line:
    """Those that have the same time, the oldest first."""

    __slots__ = ("_clock", "_seconds", "_timer", "_waiting")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._waiting: dict[Late, float] = {}
        self._timer: Timer | None = None

    def enter(self, who: Late) -> None:
        """Stand at the end of the line."""
        self._waiting[who] = self._clock.monotonic() + self._seconds
        if self._timer is None:
            self._timer = self._clock.call_later(self._seconds, self._look)

    def leave(self, who: Late) -> None:
        """Leave it; harmless for one who was told, or has left."""
        self._waiting.pop(who, None)

    def _look(self) -> None:
        self._timer = None
        clock = self._clock
        now = clock.monotonic()
        told = []
        for who, due in self._waiting.items():
            if due > now:
                self._timer = clock.call_later(due - now, self._look)
                break
            told.append(who)
        for who in told:
            del self._waiting[who]
            who.late()
