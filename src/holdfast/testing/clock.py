"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

from holdfast.core.clock import from_datetime, micros

__all__ = ["ManualClock"]

_START = datetime(2026, 1, 1, tzinfo=UTC)
_CROWDED = 1024
_TURNS = 20
"""Turns of the loop that an awaited `advance` gives: enough for a chain of callbacks and awaits to unwind."""


class ManualClock:
    """Time under the test's control: given as `open(…, clock=)`, it drives everything that waits.

    `advance` moves wall and monotonic time together and wakes, in the order they are due, all whose
    time has come. It is an ordinary call; what it woke runs when the event loop next turns, and
    `await clock.advance(…)` turns it a few times.

    Example:
        >>> clock = ManualClock()
        >>> before = clock.now()
        >>> _ = clock.advance(timedelta(seconds=3))
        >>> clock.now() - before
        3000000
    """

    def __init__(self, start: datetime | None = None) -> None:
        """Start at an aware datetime; without one, at the beginning of 2026."""
        self._wall = from_datetime(start or _START)
        self._elapsed = 0
        self._due: list[tuple[int, int, _Timer | _Alarm]] = []
        self._crowded = _CROWDED
        self._order = itertools.count()
        self._lock = threading.Lock()  # a synchronous program moves the clock from another thread

    def now(self) -> int:
        return self._wall

    def monotonic(self) -> float:
        return self._elapsed / 1_000_000

    def advance(self, duration: timedelta) -> Settled:
        """Let time pass.

        Returns:
            An awaitable that gives what was woken time to run; ignore it in plain functions.

        Raises:
            ValueError: The duration is negative; `set` turns the wall clock back.
        """
        if duration < timedelta(0):
            raise ValueError("time cannot pass backwards; set() turns the wall clock back")
        return self._move(micros(duration))

    def set(self, moment: datetime) -> Settled:
        """Set the wall clock: forwards, that much time passes; backwards, only the wall clock goes back."""
        ahead = from_datetime(moment) - self._wall
        if ahead >= 0:
            return self._move(ahead)
        self._wall += ahead
        return Settled()

    async def sleep(self, seconds: float, /) -> None:
        if seconds <= 0:
            await Settled(1)
            return
        await self._sleeping(seconds)

    def pause(self, seconds: float, /) -> None:
        """Keep the calling thread until another thread has moved the clock that far."""
        if seconds > 0:
            alarm = _Alarm()
            self._set(seconds, alarm)
            alarm.wait()

    async def wait(self, future: asyncio.Future[Any], timeout: float | None, /) -> bool:  # noqa: ASYNC109 - the primitive
        if future.done():
            return True
        if timeout is None:
            await asyncio.wait((future,))
        elif timeout <= 0:
            await Settled(1)
        else:
            over = self._sleeping(timeout)
            try:
                await asyncio.wait((future, over), return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
        return future.done()

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> _Timer:
        timer = _Timer(asyncio.get_running_loop(), callback)
        self._set(seconds, timer)
        return timer

    def _set(self, seconds: float, timer: _Timer | _Alarm) -> None:
        due = self._elapsed + max(math.ceil(seconds * 1_000_000), 0)
        with self._lock:
            if len(self._due) >= self._crowded:
                # Most waits end before their timeout; a clock nobody moves would keep all their timers.
                self._due = [entry for entry in self._due if entry[2].pending]
                heapq.heapify(self._due)
                self._crowded = max(_CROWDED, 2 * len(self._due))
            heapq.heappush(self._due, (due, next(self._order), timer))
        if due <= self._elapsed:
            self._fire(self._elapsed)

    def _sleeping(self, seconds: float) -> asyncio.Future[None]:
        """A future that is done when that long has passed; cancelling it takes its timer back."""
        future = asyncio.get_running_loop().create_future()

        def over() -> None:
            if not future.done():
                future.set_result(None)

        timer = self.call_later(seconds, over)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def _move(self, microseconds: int) -> Settled:
        self._wall += microseconds
        self._elapsed += microseconds
        self._fire(self._elapsed)
        return Settled()

    def _fire(self, elapsed: int) -> None:
        due: list[_Timer | _Alarm] = []
        with self._lock:
            while self._due and self._due[0][0] <= elapsed:
                due.append(heapq.heappop(self._due)[2])
        for timer in due:
            timer.fire()


class Settled:
    """What moving the clock returns; awaiting it lets what was woken run."""

    def __init__(self, turns: int = _TURNS) -> None:
        self._turns = turns

    def __await__(self) -> Generator[None, None, None]:
        for _ in range(self._turns):
            yield  # a bare yield is one turn of the loop


class _Timer:
    """A callback of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._callback: Callable[[], object] | None = callback

    @property
    def pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        # The loop of a test that has ended may be closed: nobody waits there any more.
        if self._callback is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class _Alarm:
    """What a paused thread waits for."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    @property
    def pending(self) -> bool:
        return not self._rung.is_set()

    def wait(self) -> None:
        self._rung.wait()

    def fire(self) -> None:
        self._rung.set()
