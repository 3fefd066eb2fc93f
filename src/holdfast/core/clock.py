"""The only reader of time, and the only sleeper.

Everything else takes a `Clock`, so a test, or a user who tests, is in charge of time. Instants are
integer microseconds since the epoch, UTC; they leave Holdfast as aware UTC datetimes.

Invariants:
    - Waiting never cancels what is waited for.
    - `monotonic` never goes back; `now` may, when the machine's clock is set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol

from holdfast.core.errors import ConfigError

__all__ = ["Clock", "SystemClock", "Timer", "from_datetime", "micros", "to_datetime"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Timer(Protocol):
    """A callback that has been asked for."""

    def cancel(self) -> None:
        """Take it back; harmless when it has run."""
        ...


class Clock(Protocol):
    """Wall time, monotonic time, and waiting."""

    def now(self) -> int:
        """Return the wall time in microseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Sleep for that long; not at all, but yielding once, when it is zero or less."""
        ...

    def pause(self, seconds: float, /) -> None:
        """Keep the calling thread for that long, where no event loop runs; not at all when it is zero or less."""
        ...

    async def wait(self, future: asyncio.Future[Any], timeout: float | None, /) -> bool:  # noqa: ASYNC109 - the primitive
        """Wait until a future is done, at most `timeout` seconds; say whether it is. Never cancels it."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Timer:
        """Call back in the running loop after that long."""
        ...


class SystemClock:
    """The machine's clock, moved by an offset where another clock has the authority.

    Attributes:
        offset: Microseconds added to the machine's wall time.
    """

    __slots__ = ("offset",)

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def now(self) -> int:
        return time.time_ns() // 1000 + self.offset

    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float, /) -> None:
        await asyncio.sleep(max(seconds, 0))

    def pause(self, seconds: float, /) -> None:
        time.sleep(max(seconds, 0))

    async def wait(self, future: asyncio.Future[Any], timeout: float | None, /) -> bool:  # noqa: ASYNC109 - the primitive
        if not future.done():
            await asyncio.wait((future,), timeout=timeout)
        return future.done()

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


def to_datetime(instant: int) -> datetime:
    """Return microseconds since the epoch as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=instant)


def from_datetime(moment: datetime) -> int:
    """Return an aware datetime as microseconds since the epoch.

    Raises:
        ConfigError: It has no time zone, so it names no instant.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ConfigError("a datetime without a time zone names no instant", "pass an aware one, datetime.now(UTC)")
    return (moment - _EPOCH) // _MICROSECOND


@lru_cache(maxsize=256)  # durations come from settings: few, and asked for with every request
def micros(duration: timedelta) -> int:
    """Return a duration in whole microseconds."""
    return duration // _MICROSECOND
