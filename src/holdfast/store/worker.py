"""A thread that gets its work done beside a busy event loop.

A thread needs the interpreter lock between any two calls into the driver, and a loop that never idles gives
it up too rarely: each poll releases the lock and has it back before the thread has woken. So while a worker has
jobs, the loop sleeps for a moment now and then, which is what gives the thread its chance.

Invariants:
    - Jobs run in the order they were submitted, one at a time.
    - The thread keeps no program from ending, and keeps nothing alive while it idles.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Worker"]

T = TypeVar("T")

NAP_S = 50e-6
NAP_EVERY_S = 0.001


class Worker:
    """One thread, started with its first job.

    Args:
        loop: Where results go; every method is called there.
        naps: Whether the loop naps for it.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, *, naps: bool) -> None:
        self._name = name
        self._loop = loop
        self._naps = naps
        self._jobs: SimpleQueue[Callable[[], None] | None] | None = None
        self._under_way = 0
        self._napper: asyncio.TimerHandle | None = None
        self.stopping = threading.Event()

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self._under_way == 0

    def submit(self, job: Callable[[], object], done: Callable[[BaseException | None], object]) -> None:
        """Run a job on the thread, then call `done` in the loop with its error."""
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()
        self._under_way += 1
        self._jobs.put(lambda: self._run(job, done))
        if self._naps and self._napper is None:
            self._napper = self._loop.call_later(NAP_EVERY_S, self._nap)

    async def call(self, job: Callable[[], T]) -> T:
        """Run a job on the thread and wait for its end, even when cancelled meanwhile."""
        future: asyncio.Future[None] = self._loop.create_future()
        results: list[T] = []
        self.submit(lambda: results.append(job()), lambda error: _resolve(future, error))
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError as error:
                cancelled = error
        future.result()
        if cancelled is not None:
            raise cancelled
        return results[0]

    def end(self) -> None:
        """Let the thread end after the jobs it has; jobs that look at `stopping` end early."""
        self.stopping.set()
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    def _run(self, job: Callable[[], object], done: Callable[[BaseException | None], object]) -> None:
        error: BaseException | None = None
        try:
            job()
        except BaseException as raised:  # noqa: BLE001 - handed to the loop
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed, and whoever waited gone with it
            self._loop.call_soon_threadsafe(self._done, done, error)

    def _done(self, done: Callable[[BaseException | None], object], error: BaseException | None) -> None:
        self._under_way -= 1
        if not self._under_way and self._napper is not None:
            self._napper.cancel()
            self._napper = None
        done(error)

    def _nap(self) -> None:
        time.sleep(NAP_S)
        self._napper = self._loop.call_later(NAP_EVERY_S, self._nap)


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job


def _resolve(future: asyncio.Future[None], error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
