"""Run plain functions: operations of steps, probes, and whole programs, each in a thread.

A thread cannot be stopped, only outlived. What it must not do is overlap with a second attempt of the
same effect in this process, so an attempt waits for the thread of the one before.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from holdfast.execution.context import Run, Suspend
from holdfast.execution.scope import _scope

if TYPE_CHECKING:
    from holdfast.execution.engine import Holdfast
    from holdfast.execution.steps import StepCall

STEP_THREADS = 64
"""Plain operations running at once; more wait for a thread."""


class Threads:
    """The threads of one open ledger.

    Attributes:
        running: Operations under way, by the key of their step.
    """

    def __init__(self, engine: Holdfast) -> None:
        self._engine = engine
        self._executor: ThreadPoolExecutor | None = None
        self.running: dict[bytes, ThreadFuture[Any]] = {}

    def _submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> ThreadFuture[Any]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(STEP_THREADS, thread_name_prefix="holdfast-step")
        return self._executor.submit(contextvars.copy_context().run, fn, *args, **kwargs)

    async def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run a plain function in a thread, in this context."""
        return await asyncio.wrap_future(self._submit(fn, *args))

    async def operate(self, call: StepCall, args: tuple[Any, ...]) -> Any:
        """Run a step's plain operation. When the caller gives up, its late result is discarded and audited."""
        key, engine = call.key(), self._engine
        future = self._submit(call.fn, *args, **call.kwargs)
        self.running[key] = future
        future.add_done_callback(lambda _: self._soon(self.running.pop, key, None))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                late = (call.run, call.position, call.spec, key)
                future.add_done_callback(lambda _: self._soon(engine.late_result, *late))
            raise

    async def ended(self, key: bytes) -> None:
        """Wait until no earlier attempt of a key runs in this process."""
        future = self.running.get(key)
        if future is not None and not future.done():
            waiting = self._engine.loop.create_future()
            future.add_done_callback(lambda _: self._soon(resolve, waiting))
            await waiting

    def _soon(self, callback: Callable[..., Any], *args: Any) -> None:
        loop = self._engine.loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback, *args)

    async def program(
        self, run: Run, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, BaseException | None]:
        """Run a plain durable function in a thread of its own, to which the root scope belongs."""
        done: asyncio.Future[tuple[Any, BaseException | None]] = self._engine.loop.create_future()

        def body() -> None:
            _scope.set(run.root.bind())
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = fn(*args, **kwargs), None
            except BaseException as error:  # noqa: BLE001 - the flight decides what it means
                outcome = None, error
            self._soon(resolve, done, outcome)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(body,), name=f"holdfast {run.id}", daemon=True).start()
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError as cancelled:
            run.halt(Suspend("closing"))
            await self._engine.clock.wait(done, self._engine.config.drain_ms / 1000)
            return None, cancelled

    def close(self) -> None:
        """Take no more; what runs goes on unheeded."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


def resolve(future: asyncio.Future[Any], value: Any = None) -> None:
    """Set a future's result unless it has ended."""
    if not future.done():
        future.set_result(value)
