"""Run a program without a ledger: durable calls become what they are called after.

With `enabled=false` nothing is written anywhere. Decorated steps are ordinary calls by themselves; this
module is the context that programs get which describe their steps.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from holdfast.execution import branches, values
from holdfast.execution.context import NewChapter
from holdfast.execution.declare import Call
from holdfast.execution.effects import Live, StepDescriptor, StepHandle, StepRecord
from holdfast.execution.scope import _effect, _plain

T = TypeVar("T")


class _Nowhere:
    path = b""


class _PlainCall:
    """A call that is counted, and nothing else."""

    scope = _Nowhere()

    def __init__(self, context: PlainContext, index: int, spec: StepDescriptor) -> None:
        self.run = context
        self.index = index
        self.spec = spec
        self._key = os.urandom(32)

    def key(self) -> bytes:
        return self._key


async def _operate(
    context: PlainContext, index: int, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]
) -> Any:
    handle = StepHandle(_PlainCall(context, index, descriptor), 1)
    token = _effect.set(handle)
    try:
        if inspect.iscoroutinefunction(op):
            return await op(handle)
        value = await asyncio.to_thread(op, handle)
        return await value if inspect.isawaitable(value) else value
    finally:
        _effect.reset(token)


class PlainParallel:
    """Steps that start at once, without positions in a ledger."""

    def __init__(self, context: PlainContext) -> None:
        self._context = context
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> PlainParallel:
        await self._group.__aenter__()
        return self

    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]) -> asyncio.Future[Any]:
        """Start a step now."""
        return self._group.create_task(self._context.step(descriptor, op))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._group.__aexit__(kind, error, trace)


class PlainContext:
    """The context of an execution that is not recorded."""

    generation = 1
    chapter = 0
    replaying = False
    degraded = False
    should_continue = False

    def __init__(self, id: str, kind: str) -> None:
        self.id = id
        self.kind = kind
        self.uid = b"\0" * 16
        self.output: Any = None
        self._count = 0

    def set_output(self, value: Any) -> None:
        """Keep the output; nobody reads it from a ledger."""
        self.output = value

    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]) -> Coroutine[object, object, Any]:
        """Call the operation."""
        self._count += 1
        return _operate(self, self._count - 1, descriptor, op)

    async def step_recorded(self, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]) -> StepRecord[Any]:
        """Call the operation and say that it ran."""
        index = self._count
        value = await self.step(descriptor, op)
        return StepRecord(str(index), b"\0" * 32, 1, value, Live(value))

    def parallel(self, label: str = "parallel") -> PlainParallel:
        """Open a block whose steps start at once."""
        return PlainParallel(self)

    branch = staticmethod(branches.branch)
    gather = staticmethod(branches.gather)
    first = staticmethod(branches.first)
    now = staticmethod(values.now)
    random = staticmethod(values.random)
    uuid = staticmethod(values.uuid)
    patched = staticmethod(values.patched)


async def run_plain(call: Call[Any]) -> Any:
    """Run a durable function as the function it is."""
    token = _plain.set(True)
    args, kwargs = call.args, call.kwargs
    try:
        while True:
            try:
                if call.fn.plain:
                    return await asyncio.to_thread(call.fn.fn, *args, **kwargs)
                return await call.fn.fn(*args, **kwargs)
            except NewChapter as again:
                args, kwargs = again.arguments, again.keywords
    finally:
        _plain.reset(token)
