"""The only place that creates tasks, so that nothing runs unowned.

`spawn` starts one task and holds on to it; `Tasks` owns several and ends them together; a `Loop` runs
its body again and again and survives its failures.

Invariants:
    - A task made here cannot be collected while it runs, and its failure is never silent.
    - Stopping is idempotent, and returns only when what was stopped has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from holdfast.core.clock import Clock
from holdfast.core.errors import HoldfastError

__all__ = ["Loop", "Tasks", "seen", "spawn", "spawn_held"]

T = TypeVar("T")

BACKOFF_FIRST = 0.1
BACKOFF_MAX = 5.0
"""Seconds: quick enough to ride out a hiccup, slow enough not to hammer a database that is down."""

_log = logging.getLogger("holdfast.loops")
_running: set[asyncio.Task[Any]] = set()  # the event loop itself holds tasks only weakly


def spawn(coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start a task in the running loop; whoever calls owns it: awaits it, or cancels it, at the latest at close."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


def spawn_held(coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start a task that its caller holds on to until it has ended: `spawn` without its bookkeeping."""
    return asyncio.get_running_loop().create_task(coro, name=name)


def seen(future: asyncio.Future[Any]) -> None:
    """Take a failure off a future that nobody may wait for any more: `future.add_done_callback(seen)`."""
    if not future.cancelled():
        future.exception()


class Tasks:
    """A set of tasks with one owner. A failure is logged when its task ends, whoever else sees it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task of this set."""
        task = spawn(coro, name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drain(self, clock: Clock, seconds: float) -> bool:
        """Wait until all tasks have ended, at most that long; say whether they have. Cancels nothing."""
        deadline = clock.monotonic() + seconds
        while pending := [task for task in self._tasks if not task.done()]:
            if not await clock.wait(pending[0], deadline - clock.monotonic()):
                return False
        return True

    async def settle(self, seconds: float) -> None:
        """Wait until all tasks have ended, at most that long in real time. Cancels nothing."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def stop(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        await _cancel_all(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log_failure("task %s failed: %s", task.get_name(), error)


class Loop:
    """Background work that repeats: `body`, then a pause, for ever.

    When the body raises, it is tried again after 100 ms, doubling to 5 s. A `BaseException` that is no
    `Exception` ends the loop: it is a simulated crash or the end of the program.
    """

    def __init__(self, name: str, body: Callable[[], Awaitable[object]], every: float, clock: Clock) -> None:
        """Describe a loop; nothing runs before `start`.

        Args:
            name: Shown in logs and as the task's name.
            body: One round of the work.
            every: Seconds between the end of one round and the start of the next.
            clock: What the pauses are measured with.
        """
        self.name = name
        self._body = body
        self._every = every
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._woken: asyncio.Future[None] | None = None
        self._wake_next = False

    def start(self) -> None:
        """Start the first round now; harmless when it runs already."""
        if self._task is None or self._task.done():
            self._task = spawn(self._run(), self.name)

    def wake(self) -> None:
        """Start the next round without waiting out the pause."""
        self._wake_next = True
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def stop(self) -> None:
        """End the loop, in the middle of a round if need be, and wait until it has ended."""
        if self._task is not None:
            await _cancel_all({self._task})

    async def _run(self) -> None:
        backoff = BACKOFF_FIRST
        while True:
            pause = self._every
            try:
                await self._body()
                backoff = BACKOFF_FIRST
            except Exception as error:  # noqa: BLE001 - supervision is what a loop is for
                pause, backoff = backoff, min(backoff * 2, BACKOFF_MAX)
                _log_failure(f"loop %s failed, again in {pause:g} s: %s", self.name, error)
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        self._woken = asyncio.get_running_loop().create_future()
        # A wake during the round counts for the next one. Even then others get their turn first.
        await self._clock.wait(self._woken, 0 if self._wake_next else seconds)
        self._wake_next = False


async def _cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, except the one that asks."""
    others = [task for task in tasks if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)


def _log_failure(text: str, name: str, error: BaseException) -> None:
    # Messages of drivers and of users may quote values, ours may not; the traceback is for debugging only.
    shown = f"{error.code}: {error}" if isinstance(error, HoldfastError) else type(error).__qualname__
    _log.warning(text, name, shown, exc_info=error if _log.isEnabledFor(logging.DEBUG) else None)
