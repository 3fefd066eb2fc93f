"""The way to the ledger: every call bounded in time, and a breaker that spares a ledger that is down.

A request never waits for the ledger longer than `store_timeout`, and not at all while the breaker is open.
What comes out is a result, `StoreUnavailable`, or an error that no retry cures.

Invariants:
    - After a call that timed out or failed nobody knows whether it took effect; whoever made it says it again
      under the same claim id or fence, or takes it back.
    - While the breaker is open, requests make no call, except one probe when its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.core.errors import SchemaMismatch, StoreError, WrongLoop, WrongProcess
from holdfast.core.loops import spawn
from holdfast.idempotency.errors import StoreUnavailable

if TYPE_CHECKING:
    from holdfast.core.clock import Clock, Timer
    from holdfast.idempotency.events import Observer
    from holdfast.idempotency.rules import IdempotencyConfig

__all__ = ["Expired", "Gate", "NotAsked", "bounded", "outlast", "resumed", "unavailable"]

T = TypeVar("T")

INCURABLE = (SchemaMismatch, WrongProcess, WrongLoop)
"""Mistakes of the program or of its set-up: trying again later would hide them."""


class Expired(Exception):
    """Something took longer than it may. No `TimeoutError`, so that it is never mistaken for one from inside."""


class NotAsked(StoreUnavailable):
    """The breaker is open: the ledger was not asked, so nothing is to be taken back."""


class _Watch:
    """A call under way."""

    __slots__ = ("before", "due", "expired", "task")

    def __init__(self, task: asyncio.Task[Any], due: float) -> None:
        self.task = task
        self.due = due
        self.before = task.cancelling()
        self.expired = False


class Gate:
    """What stands between a guard and its open database.

    Attributes:
        timeout: Seconds a call may take.
    """

    def __init__(self, config: IdempotencyConfig, *, clock: Clock, events: Observer) -> None:
        self.timeout = config.store_timeout.total_seconds()
        self._failures_max = config.breaker_failures
        self._open_s = config.breaker_open.total_seconds()
        self._clock = clock
        self._events = events
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self._watched: dict[_Watch, None] = {}
        self._timer: Timer | None = None

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None = None) -> Coroutine[Any, Any, T]:
        """Make a call on behalf of a request.

        Args:
            work: Makes the coroutine of the call; not called while the breaker is open.
            seconds: How long it may take; default: `timeout`.

        Raises:
            NotAsked: The breaker is open.
            StoreUnavailable: The call failed, or it took too long.
            StoreError: Trying again will not help.
        """
        return self.attempt(work, seconds) if self._open_until is None else self._probe(work, seconds)

    async def attempt(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None = None) -> T:
        """Make a call whatever the breaker says: on behalf of a claim that is already held.

        Raises:
            StoreUnavailable: It failed, or it took too long.
            StoreError: Trying again will not help.
        """
        try:
            call = work()
            try:
                waits_for = call.send(None)
            except StopIteration as over:  # it never waited, so nobody had to watch the time
                result: T = over.value
            else:
                going_on = resumed(call, waits_for)
                if seconds is None:
                    result = await self._watch(going_on)
                else:
                    result = await bounded(self._clock, going_on, seconds)
        except INCURABLE:
            raise
        except Expired:
            raise self._failed("the ledger did not answer in time") from None
        except StoreError as error:
            raise self._failed(f"the ledger failed ({error.code})") from error
        if self._failures:
            self._failures = 0
            self._open_until = None
        return result

    async def _probe(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None) -> T:
        """Refuse, unless the breaker's time is over and nobody else asks."""
        if self._open_until is None:
            return await self.attempt(work, seconds)
        left = self._open_until - self._clock.monotonic()
        if left > 0 or self._probing:
            raise NotAsked(
                "the ledger did not answer lately, and was not asked",
                "try again with the same key",
                retry_after=max(math.ceil(left), 1),
            )
        self._probing = True
        try:
            return await self.attempt(work, seconds)
        finally:
            self._probing = False

    async def _watch(self, work: Awaitable[T]) -> T:
        """Run a call for `timeout` at most. All such calls share one timer: the oldest is always the first due."""
        task = asyncio.current_task()
        assert task is not None, "a guard works in tasks"
        watch = _Watch(task, self._clock.monotonic() + self.timeout)
        self._watched[watch] = None
        if self._timer is None:
            self._timer = self._clock.call_later(self.timeout, self._look)
        try:
            return await work
        except asyncio.CancelledError:
            if watch.expired:
                watch.expired = False
                if task.uncancel() <= watch.before:
                    raise Expired from None
            raise
        finally:
            del self._watched[watch]
            if watch.expired:  # it came to an end all the same
                task.uncancel()

    def _look(self) -> None:
        """End what is due, and come back for the next."""
        self._timer = None
        now = self._clock.monotonic()
        for watch in self._watched:
            if watch.due > now:
                self._timer = self._clock.call_later(watch.due - now, self._look)
                return
            if not watch.expired:
                watch.expired = True
                watch.task.cancel()

    def _failed(self, message: str) -> StoreUnavailable:
        self._events.store_failure()
        self._failures += 1
        if self._failures < self._failures_max:
            return unavailable(message, 0.0)
        if self._open_until is None:
            self._events.notice("breaker")
        self._open_until = self._clock.monotonic() + self._open_s
        return unavailable(message, self._open_s)


def unavailable(message: str, seconds: float) -> StoreUnavailable:
    """Return the error of a request that could not reach the ledger; it may come again after `seconds`."""
    return StoreUnavailable(message, "try again with the same key", retry_after=max(math.ceil(seconds), 1))


async def bounded(clock: Clock, work: Awaitable[T], seconds: float) -> T:
    """Run a coroutine in this task for at most that long; no task is made.

    Raises:
        Expired: It took longer, and was cancelled.
    """
    task = asyncio.current_task()
    assert task is not None, "a guard works in tasks"
    before = task.cancelling()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = clock.call_later(seconds, expire)
    try:
        result = await work
    except asyncio.CancelledError:
        # Somebody else may have cancelled the task as well: then that counts.
        if expired and task.uncancel() <= before:
            raise Expired from None
        raise
    except BaseException:
        if expired:
            task.uncancel()
        raise
    finally:
        timer.cancel()
    if expired:  # it came in time after all
        task.uncancel()
    return result


@types.coroutine
def resumed(begun: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that was begun by hand, and now waits for what it gave."""
    try:
        while True:
            try:
                told = yield waits_for
            except GeneratorExit:
                begun.close()
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the coroutine's
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(told)
    except StopIteration as over:
        result: T = over.value
        return result


async def outlast(clock: Clock, work: Coroutine[Any, Any, T], seconds: float, name: str) -> asyncio.Task[T] | None:
    """Run a coroutine to its end though this task is cancelled meanwhile, at most that long.

    For a task that has been cancelled and raises that afterwards: what comes on top of it is swallowed. A task
    scope may cancel again and again; each is outlasted.

    Returns:
        The task that ran it, ended; None when it was still running, and has been cancelled.
    """
    task = spawn(work, name)
    until = clock.monotonic() + seconds
    while not task.done() and (left := until - clock.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await clock.wait(task, left)
    if not task.done():
        task.cancel()
        return None
    if not task.cancelled():
        task.exception()  # seen here; who asks for the result meets it again
    return task
