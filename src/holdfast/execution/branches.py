"""Run parts of a program side by side, each with positions of its own, and record who came first.

Invariants:
    - Positions are taken when the call is evaluated; what comes back is only awaited.
    - A branch's calls are numbered by the branch, whatever its siblings do meanwhile.
    - No task made here outlives the call that made it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar, overload

from holdfast.core.codec import decode, encode
from holdfast.core.errors import LimitError
from holdfast.core.loops import spawn
from holdfast.execution import keys
from holdfast.execution.context import current_scope
from holdfast.execution.effects import StepDescriptor, StepHandle, check_name
from holdfast.execution.errors import NestedEffect, OutsideExecution
from holdfast.execution.machine import OPENED, OUTCOME
from holdfast.execution.scope import Scope, _effect, _scope
from holdfast.execution.steps import StepCall
from holdfast.execution.values import Asked, value_codes

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

_FRAMED = {kind: keys.what(kind, "", "") for kind in ("now", "random", "uuid", "first")}
_SHAPES = {kind: keys.shape(framed, b"") for kind, framed in _FRAMED.items()}

# --- values that are recorded ---------------------------------------------------------------------


DEPTH_MAX = 16
"""Levels of a position: it is part of an index, and of what people read."""


class Branch:
    """A part of the program with positions of its own. Enter it once, in the task that uses it."""

    def __init__(self, label: str, scope: Scope | None, kind: str = "branch") -> None:
        check_name(label, kind)
        if scope is not None and len(scope.path) // 4 + 2 > DEPTH_MAX:
            raise LimitError(
                f"{kind} {label!r} would nest positions more than {DEPTH_MAX} levels deep",
                "flatten the program, or let an inner part be one step",
                limit="position_depth",
                maximum=DEPTH_MAX,
                actual=len(scope.path) // 4 + 2,
            )
        self.label = label
        self._asked = Asked(scope, kind, label) if scope is not None else None
        self._labels = scope.label(label) if scope is not None else b""
        self.child: Scope | None = None
        self._token: Any = None

    @property
    def path(self) -> bytes:
        """The scope path of the branch."""
        assert self._asked is not None
        return keys.extend(self._asked.scope.path, self._asked.index)

    async def open(self) -> Scope:
        """Look the branch up, record it if it is new, and give its scope to the current task."""
        asked = self._asked
        assert asked is not None
        if self.child is not None:
            raise OutsideExecution(f"branch {self.label!r} was entered twice", "make one branch per use")
        records = await asked.look()
        if not records:
            asked.ride(OPENED)
            await asked.scope.run.flush_riders()
        self.child = Scope(asked.scope.run, self.path, self._labels, recorded=bool(records)).bind()
        return self.child

    async def __aenter__(self) -> Branch:
        if self._asked is not None and self._token is None:
            self._token = _scope.set(await self.open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asked is None or self.child is None:
            return
        _scope.reset(self._token)
        if error is None:
            await self.child.run.check_tail(self.child)

    async def run_awaitable(self, awaitable: Awaitable[T]) -> T:
        """Await something inside the branch."""
        try:
            await self.__aenter__()
        except BaseException:
            discard(awaitable)
            raise
        async with self:
            return await awaitable

    def run(self, fn: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> Coroutine[object, object, T]:
        """Return a coroutine that calls a function inside the branch."""
        return self._run(fn, args, kwargs)

    async def _run(self, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        async with self:
            return await fn(*args, **kwargs)


def branch(label: str = "branch") -> Branch:
    """Open a part of the program whose durable calls are numbered on their own.

    `await branch("fetch").run(fn, *args)`, or `async with branch("fetch"):` in the task that uses it.
    """
    return Branch(label, current_scope("branch()"))


def is_durable_call(awaitable: object) -> bool:
    """Say whether an awaitable is itself a durable call, which has its position already."""
    return (inspect.iscoroutine(awaitable) and awaitable.cr_code in _CODES) or isinstance(awaitable, ParallelFuture)


_NOWHERE = b"\xff" * 64
"""A scope path that no position has."""


class Contender:
    """One argument of `gather` or `first`: a durable call, or anything else in a branch of its own."""

    __slots__ = ("awaitable", "branch", "index", "path")

    def __init__(self, scope: Scope, awaitable: Awaitable[Any]) -> None:
        self.awaitable = awaitable
        self.branch: Branch | None = None
        self.path, self.index = scope.path, None
        if is_durable_call(awaitable):
            frame = getattr(awaitable, "cr_frame", None)
            call = frame.f_locals.get("self") if frame is not None else None
            if isinstance(call, StepCall):
                self.index = call.index
            else:  # a branch's effects stand under its path, those of other calls nowhere
                self.path = call.path if isinstance(call, Branch) else _NOWHERE
        else:
            self.branch = Branch("branch", scope)
            self.path = self.branch.path

    def start(self) -> asyncio.Task[Any]:
        work = self.awaitable if self.branch is None else self.branch.run_awaitable(self.awaitable)
        return spawn(_await(work), "holdfast.branch")

    def discard(self) -> None:
        """Never start it."""
        discard(self.awaitable)

    def concerns(self, handle: StepHandle) -> bool:
        """Say whether a running exactly_once effect belongs to it."""
        scope, index = handle.place
        if not handle.guarded:
            return False
        if self.index is None:
            return scope.startswith(self.path)
        return scope == self.path and index == self.index


def discard(awaitable: Awaitable[Any]) -> None:
    """Let go of an awaitable that will not be awaited."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    elif isinstance(awaitable, asyncio.Future):
        awaitable.cancel()


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _settle_all(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for all tasks; when the waiting is cancelled, they are."""
    try:
        if tasks:
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        raise


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def gathered(contenders: list[Contender], *, return_exceptions: bool) -> list[Any]:
    tasks = [contender.start() for contender in contenders]
    await _settle_all(tasks)
    errors = [_error(task) for task in tasks]
    for error in errors:  # a signal to stop is nobody's result
        if error is not None and not isinstance(error, Exception | asyncio.CancelledError):
            raise error
    if not return_exceptions:
        for error in errors:
            if error is not None:
                raise error
    return [task.result() if error is None else error for task, error in zip(tasks, errors, strict=True)]


@overload
def gather(a1: Awaitable[T1], /) -> Coroutine[object, object, tuple[T1]]: ...
@overload
def gather(a1: Awaitable[T1], a2: Awaitable[T2], /) -> Coroutine[object, object, tuple[T1, T2]]: ...
@overload
def gather(
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], /
) -> Coroutine[object, object, tuple[T1, T2, T3]]: ...
@overload
def gather(
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], a4: Awaitable[T4], /
) -> Coroutine[object, object, tuple[T1, T2, T3, T4]]: ...
@overload
def gather(
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], a4: Awaitable[T4], a5: Awaitable[T5], /
) -> Coroutine[object, object, tuple[T1, T2, T3, T4, T5]]: ...
@overload
def gather(*aws: Awaitable[T]) -> Coroutine[object, object, list[T]]: ...
@overload
def gather(*aws: Awaitable[T], return_exceptions: bool) -> Coroutine[object, object, list[T | BaseException]]: ...
def gather(*aws: Awaitable[Any], return_exceptions: bool = False) -> Coroutine[object, object, Any]:
    """Run awaitables concurrently, each in a branch of its own, and return their results in order.

    Durable calls keep the positions they have. All are settled; then the error of the lowest index is
    raised, or with `return_exceptions` errors stand among the results.
    """
    scope = current_scope("gather()")
    if scope is None:
        return _plain_gather(aws, return_exceptions=return_exceptions)
    return gathered([Contender(scope, each) for each in aws], return_exceptions=return_exceptions)


async def _plain_gather(aws: Iterable[Awaitable[Any]], *, return_exceptions: bool) -> list[Any]:
    tasks = [spawn(_await(each), "holdfast.branch") for each in aws]
    await _settle_all(tasks)
    for task in tasks:
        if not return_exceptions and (error := _error(task)) is not None:
            raise error
    return [_error(task) or task.result() for task in tasks]


async def first_of(asked: Asked, contenders: list[Contender]) -> tuple[int, Any]:
    run = asked.scope.run
    try:
        records = await asked.look()
    except BaseException:
        for contender in contenders:
            contender.discard()
        raise
    outcome = next((record for record in records if record.part == OUTCOME), None)
    if outcome is not None:
        winner = int(decode(outcome.payload or b""))
        for index, contender in enumerate(contenders):
            if index != winner:
                contender.discard()
        return winner, await contenders[winner].start()
    if not records:
        asked.ride(OPENED)
    tasks = [contender.start() for contender in contenders]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _cancel(tasks)
        raise
    winner = next(index for index, task in enumerate(tasks) if task.done())
    error = _error(tasks[winner])
    if (error is None or isinstance(error, Exception)) and not run.over:
        asked.ride(OUTCOME, payload=encode(winner))
        await run.flush_riders()
    losers = [(c, t) for index, (c, t) in enumerate(zip(contenders, tasks, strict=True)) if index != winner]
    places = [(c.path, c.index) for c, _ in losers]
    run.losing = (*run.losing, *places)
    await run.settled_effects(lambda handle: any(c.concerns(handle) for c, _ in losers))
    await _cancel([task for _, task in losers])
    run.losing = tuple(place for place in run.losing if place not in places)
    return winner, tasks[winner].result()


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            _error(task)  # a loser's error is nobody's


@overload
def first(a1: Awaitable[T1], /) -> Coroutine[object, object, tuple[int, T1]]: ...
@overload
def first(a1: Awaitable[T1], a2: Awaitable[T2], /) -> Coroutine[object, object, tuple[int, T1 | T2]]: ...
@overload
def first(
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], /
) -> Coroutine[object, object, tuple[int, T1 | T2 | T3]]: ...
@overload
def first(*aws: Awaitable[T]) -> Coroutine[object, object, tuple[int, T]]: ...
def first(*aws: Awaitable[Any]) -> Coroutine[object, object, tuple[int, Any]]:
    """Run awaitables concurrently and return (index, value) of the one that settles first, recorded.

    A tie goes to the lowest index; a winner's error is raised. The others are cancelled once their
    exactly_once effects in flight have ended.
    """
    scope = current_scope("first()")
    if scope is None:
        return _plain_first(aws)
    asked = Asked(scope, "first")
    return first_of(asked, [Contender(scope, each) for each in aws])


async def _plain_first(aws: Iterable[Awaitable[Any]]) -> tuple[int, Any]:
    tasks = [spawn(_await(each), "holdfast.branch") for each in aws]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    winner = next(index for index, task in enumerate(tasks) if task.done())
    await _cancel([task for index, task in enumerate(tasks) if index != winner])
    return winner, tasks[winner].result()


class ParallelFuture(asyncio.Future[T]):
    """The result of a step started in `parallel()`; remembers whether anybody looked at it."""

    looked_at = False

    def __await__(self) -> Any:
        self.looked_at = True
        return super().__await__()

    def result(self) -> T:
        """Return the step's value, or raise its error."""
        self.looked_at = True
        return super().result()

    def exception(self) -> BaseException | None:
        """Return the step's error, or None."""
        self.looked_at = True
        return super().exception()


class Parallel(AbstractAsyncContextManager["Parallel"]):
    """Steps that start at once and are numbered in the order they are written."""

    def __init__(self, label: str, scope: Scope) -> None:
        self._branch = Branch(label, scope, "parallel")
        self._started: list[tuple[asyncio.Task[Any], ParallelFuture[Any]]] = []

    async def __aenter__(self) -> Parallel:
        await self._branch.open()
        return self

    @overload
    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], Awaitable[T]]) -> asyncio.Future[T]: ...
    @overload
    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], T]) -> asyncio.Future[T]: ...
    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]) -> asyncio.Future[Any]:
        """Start a step now; its future may be awaited inside the block or after it."""
        child = self._branch.child
        if child is None:
            raise OutsideExecution("parallel().step() was called outside its block", "use `async with`")
        call = described(child, descriptor, op)
        future: ParallelFuture[Any] = ParallelFuture(loop=child.run.loop)
        task = spawn(call.perform(), f"holdfast.parallel.{descriptor.name}")
        task.add_done_callback(lambda done: _copy(done, future))
        self._started.append((task, future))
        return future

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task, _ in self._started]
        if tasks:
            await asyncio.wait([*tasks, *(future for _, future in self._started)])
        if error is not None:
            return
        unseen: list[Exception] = []
        for task, future in self._started:
            failure = _error(task)
            if failure is not None and not isinstance(failure, Exception | asyncio.CancelledError):
                raise failure
            if isinstance(failure, Exception) and not future.looked_at:
                unseen.append(failure)
        if unseen:
            raise ExceptionGroup(f"{len(unseen)} of {len(tasks)} parallel steps failed", unseen)
        child = self._branch.child
        assert child is not None
        await child.run.check_tail(child)


def _copy(task: asyncio.Task[Any], future: ParallelFuture[Any]) -> None:
    if future.done():
        return
    error = _error(task)
    if error is None:
        future.set_result(task.result())
    elif isinstance(error, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(error)
        future._log_traceback = False  # noqa: SLF001 - the block reports it


def described(scope: Scope, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]) -> StepCall:
    """Make the call of a step that is described rather than decorated."""
    effect = _effect.get()
    if effect is not None:
        raise NestedEffect(
            f"step {descriptor.name!r} was called inside the running step {effect.name!r}",
            "make durable calls in the durable function, not in a step's operation",
        )
    fingerprint = descriptor.fingerprint
    shape = keys.shape(descriptor.framed, fingerprint)
    threaded = not inspect.iscoroutinefunction(op)
    return StepCall(scope, descriptor, fingerprint, shape, op, None, {}, threaded=threaded)


_CODES = frozenset(
    {
        StepCall.perform.__code__, StepCall.perform_recorded.__code__, Branch._run.__code__, gathered.__code__,  # noqa: SLF001 - this module's own
        first_of.__code__, *value_codes(),
    }
)  # fmt: skip
