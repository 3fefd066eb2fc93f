"""The synchronous face of Holdfast: `holdfast.sync.open(…)`, the same names without `await`.

A loop runs in a thread of its own; every call here waits for it. Durable functions and steps are plain
functions: each execution has its own thread, to which its positions belong, and its durable calls are the
functions of this module.

    @holdfast.durable(kind="agent_turn")
    def turn(prompt: str) -> str: ...

    with holdfast.sync.open("agent.db") as hf:
        answer = hf.run(turn, "buy milk", id="turn-42")
"""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future as ThreadFuture
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast
from uuid import UUID

from holdfast.core.clock import Clock
from holdfast.core.errors import Closed
from holdfast.core.page import Page
from holdfast.execution import branches, engine, flow, handle, values
from holdfast.execution.config import DurableConfig
from holdfast.execution.context import current_scope
from holdfast.execution.declare import Call, Durable
from holdfast.execution.effects import StepDescriptor, StepHandle, StepRecord, Verdict
from holdfast.execution.flow import continue_as_new
from holdfast.execution.operate import CancelOutcome, RecoverReport
from holdfast.execution.request import OnBusy, OnDivergence
from holdfast.execution.scope import Scope, _scope
from holdfast.execution.verify import VerifyReport
from holdfast.execution.views import AuditRecord, Difference, Entry, Event, Execution
from holdfast.store.database import Database

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

__all__ = [
    "Context",
    "Handle",
    "Holdfast",
    "branch",
    "continue_as_new",
    "current",
    "first",
    "gather",
    "now",
    "open",
    "patched",
    "random",
    "uuid",
]

CLOSE_S = 60.0  # how long `close` waits for the loop's thread to end


class _Portal:
    """A loop in a thread, and the way into it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="holdfast-loop", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for it; an interrupted wait cancels it."""
        if self.loop.is_closed():
            coroutine.close()
            raise Closed("this Holdfast is closed", "open it again")
        future: ThreadFuture[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self.loop.close()


class Handle(Generic[R]):
    """An execution under way, or at its end; see `holdfast.Handle`."""

    def __init__(self, portal: _Portal, inner: handle.Handle[R]) -> None:
        self._portal = portal
        self._inner = inner

    @property
    def id(self) -> str:
        """Its id."""
        return self._inner.id

    @property
    def created(self) -> bool:
        """Whether this call created it."""
        return self._inner.created

    def result(self, timeout: timedelta | None = None) -> R:
        """Return the output, waiting for the end if need be."""
        return self._portal.call(self._inner.result(timeout))

    def info(self) -> Execution:
        """Return what is known of it."""
        return self._portal.call(self._inner.info())

    def cancel(self, *, reason: str = "", force: bool = False) -> CancelOutcome:
        """As `Holdfast.cancel`."""
        return self._portal.call(self._inner.cancel(reason=reason, force=force))


def open(
    target: str | Path | None,
    *,
    durable: DurableConfig | None = None,
    clock: Clock | None = None,
    namespace: bytes | None = None,
    recover: bool = False,
) -> Holdfast:
    """Describe a ledger to open: `with holdfast.sync.open("agent.db") as hf:`. Arguments as `holdfast.open`."""
    return Holdfast(engine.open(target, durable=durable, clock=clock, namespace=namespace, recover=recover))


class Holdfast:
    """An open ledger; every method is the one of `holdfast.Holdfast`, waited for."""

    def __init__(self, inner: engine.Holdfast) -> None:
        self._inner = inner
        self._portal: _Portal | None = None

    @property
    def database(self) -> Database:
        """The open `Database`; use it in the loop of this ledger only."""
        return self._inner.database

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._portal is None:
            coroutine.close()
            raise Closed("this Holdfast is not open", "use `with holdfast.sync.open(…)`")
        return self._portal.call(coroutine)

    def open(self) -> Self:
        """Open the ledger."""
        if self._portal is None:
            self._portal = _Portal()
            try:
                self._call(self._inner.open())
            except BaseException:
                self._portal.close()
                self._portal = None
                raise
        return self

    def close(self) -> None:
        """Close the ledger; idempotent."""
        portal = self._portal
        if portal is not None:
            self._call(self._inner.close())
            self._portal = None
            portal.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self, fn: Durable[..., R] | Call[R], /, *args: Any, id: str | None = None,
        deadline: timedelta | None = None, on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait",
        reopen: bool = False, **kwargs: Any,
    ) -> R:  # fmt: skip
        """Run a durable function to its end, resume it, or return its recorded output."""
        return cast("R", self._call(self._inner.run(
            cast("Any", fn), *args, id=id, deadline=deadline, on_divergence=on_divergence, on_busy=on_busy,
            reopen=reopen, **kwargs,
        )))  # fmt: skip

    def start(
        self, fn: Durable[..., R] | Call[R], /, *args: Any, id: str | None = None,
        deadline: timedelta | None = None, on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait",
        reopen: bool = False, **kwargs: Any,
    ) -> Handle[R]:  # fmt: skip
        """Start, or resume, an execution in the background."""
        inner = self._call(self._inner.start(
            cast("Any", fn), *args, id=id, deadline=deadline, on_divergence=on_divergence, on_busy=on_busy,
            reopen=reopen, **kwargs,
        ))  # fmt: skip
        assert self._portal is not None
        return Handle(self._portal, cast("handle.Handle[R]", inner))

    @contextmanager
    def execution(
        self, id: str, *, kind: str, input: Any = ..., deadline: timedelta | None = None,
        on_divergence: OnDivergence = "raise", reopen: bool = False,
    ) -> Iterator[Context]:  # fmt: skip
        """Make the block an execution; its durable calls are made in this thread."""

        def opened() -> Any:
            return self._inner.execution(
                id, kind=kind, input=input, deadline=deadline, on_divergence=on_divergence, reopen=reopen
            )

        if self._portal is None:
            raise Closed("this Holdfast is not open", "use `with holdfast.sync.open(…)`")
        guest = _Guest(self._portal, opened)
        inner = guest.enter()
        inner.root.bind()
        token = _scope.set(inner.root)
        error: BaseException | None = None
        try:
            yield Context(inner)
        except BaseException as caught:
            error = caught
            raise
        finally:
            _scope.reset(token)
            guest.leave(error)

    def handle(self, id: str) -> Handle[Any]:
        """Return a handle of an execution, whether it exists or not."""
        if self._portal is None:
            raise Closed("this Holdfast is not open", "use `with holdfast.sync.open(…)`")
        return Handle(self._portal, self._inner.handle(id))

    def get(self, id: str) -> Execution | None:
        """Return what is known of an execution, or None."""
        return self._call(self._inner.get(id))

    def list(
        self, *, status: str | None = None, kind: str | None = None, queue: str | None = None, orphaned: bool = False,
        limit: int = 50, cursor: str | None = None,
    ) -> Page[Execution]:  # fmt: skip
        """List executions, newest first."""
        return self._call(
            self._inner.list(status=status, kind=kind, queue=queue, orphaned=orphaned, limit=limit, cursor=cursor)
        )

    def history(self, id: str, *, generation: int | None = None, reveal: bool = False) -> builtins.list[Entry]:
        """Return the journal of an execution."""
        return self._call(self._inner.history(id, generation=generation, reveal=reveal))

    def timeline(self, id: str) -> builtins.list[Event]:
        """Return what happened, in order."""
        return self._call(self._inner.timeline(id))

    def diff(self, id: str, left: int, right: int) -> builtins.list[Difference]:
        """Compare two generations by position."""
        return self._call(self._inner.diff(id, left, right))

    def audit(self, id: str | None = None) -> builtins.list[AuditRecord]:
        """Return audit records, oldest first."""
        return self._call(self._inner.audit(id))

    def verify(self, id: str | None = None) -> VerifyReport:
        """Check every invariant of the journal."""
        return self._call(self._inner.verify(id))

    def resume(self, id: str, *, deadline: timedelta | None = None) -> Handle[Any]:
        """Make a paused, failed or aborted execution claimable again."""
        inner = self._call(self._inner.resume(id, deadline=deadline))
        assert self._portal is not None
        return Handle(self._portal, inner)

    def decide(self, id: str, position: str, decision: Verdict, *, by: str, note: str = "") -> None:
        """Answer an open decision."""
        self._call(self._inner.decide(id, position, decision, by=by, note=note))

    def cancel(self, id: str, *, reason: str = "", force: bool = False) -> CancelOutcome:
        """Cancel an execution."""
        return self._call(self._inner.cancel(id, reason=reason, force=force))

    def pause(self, id: str) -> CancelOutcome:
        """Let an execution rest until `resume`."""
        return self._call(self._inner.pause(id))

    def recover(self, *, kinds: Iterable[str] | None = None) -> RecoverReport:
        """Take over what dead owners left and start it in the background."""
        return self._call(self._inner.recover(kinds=kinds))


class _Guest:
    """An async block kept open in the loop while its body runs in another thread."""

    def __init__(self, portal: _Portal, opened: Callable[[], Any]) -> None:
        self._portal = portal
        self._opened = opened
        self._body: asyncio.Future[BaseException | None] | None = None
        self._entered: ThreadFuture[flow.Context] = ThreadFuture()
        self._task: ThreadFuture[None] | None = None

    def enter(self) -> flow.Context:
        self._task = asyncio.run_coroutine_threadsafe(self._hold(), self._portal.loop)
        return self._entered.result()

    async def _hold(self) -> None:
        self._body = asyncio.get_running_loop().create_future()
        try:
            async with self._opened() as inner:
                self._entered.set_result(inner)
                error = await self._body
                if error is not None:
                    raise error  # noqa: TRY301 - the block must see it
        except BaseException as error:
            if not self._entered.done():
                self._entered.set_exception(error)
                return
            raise

    def leave(self, error: BaseException | None) -> None:
        """End the block; raise what it raises unless that is what the body raised."""
        assert self._body is not None
        assert self._task is not None
        body = self._body
        self._portal.loop.call_soon_threadsafe(body.set_result, error)
        try:
            self._task.result()
        except BaseException as ended:
            if ended is not error:
                raise


def _wait(scope: Scope | None, coroutine: Coroutine[Any, Any, T]) -> T:
    if scope is None:
        return asyncio.run(_alone(coroutine))
    return asyncio.run_coroutine_threadsafe(coroutine, scope.run.loop).result()


async def _alone(coroutine: Coroutine[Any, Any, T]) -> T:
    return await coroutine


def current() -> Context | None:
    """Return the context of the execution this thread runs, or None."""
    inner = flow.current()
    return Context(inner) if inner is not None else None


def now() -> datetime:
    """As `holdfast.now`."""
    return _wait(_scope.get(), values.now())


def random() -> float:
    """As `holdfast.random`."""
    return _wait(_scope.get(), values.random())


def uuid() -> UUID:
    """As `holdfast.uuid`."""
    return _wait(_scope.get(), values.uuid())


def patched(name: str) -> bool:
    """As `holdfast.patched`."""
    return _wait(_scope.get(), values.patched(name))


@contextmanager
def branch(label: str = "branch") -> Iterator[None]:
    """Open a part of the program whose durable calls are numbered on their own."""
    inner = branches.branch(label)
    with _entered(inner):
        yield


@contextmanager
def _entered(inner: branches.Branch) -> Iterator[None]:
    """Enter a branch in this thread: its scope belongs to the thread, its look-ups run in the loop."""
    outer = _scope.get()
    if outer is None:
        yield
        return
    child = _wait(outer, inner.open())
    child.task = None
    child.bind()
    token = _scope.set(child)
    try:
        yield
    finally:
        _scope.reset(token)
    _wait(outer, child.run.check_tail(child))


def gather(*functions: Callable[[], T]) -> builtins.list[T]:
    """Run functions without parameters, each in a thread and a branch of its own; return their results.

    All are settled; then the error of the lowest index is raised.
    """
    scope = current_scope("gather()")
    made = [branches.Branch("branch", scope) for _ in functions]
    threads = [_BranchThread(scope, inner, fn) for inner, fn in zip(made, functions, strict=True)]
    for thread in threads:
        thread.done.wait()
    for thread in threads:
        if thread.error is not None:
            raise thread.error
    return [cast("T", thread.value) for thread in threads]


def first(*functions: Callable[[], T]) -> tuple[int, T]:
    """Run functions without parameters side by side and return (index, value) of the one that settles first.

    A thread cannot be cancelled: a losing function ends at its next durable call.
    """
    scope = current_scope("first()")

    def attempt(fn: Callable[[], T]) -> Callable[[], Coroutine[Any, Any, T]]:
        async def contend() -> T:
            inner = _scope.get()
            thread = _BranchThread(inner, None, fn)
            try:
                await asyncio.to_thread(thread.done.wait)
            except asyncio.CancelledError:
                thread.lose()
                raise
            if thread.error is not None:
                raise thread.error
            return cast("T", thread.value)

        return contend

    if scope is None:
        return _wait(None, branches.first(*(attempt(fn)() for fn in functions)))
    asked = values.Asked(scope, "first")
    contenders = [branches.Contender(scope, attempt(fn)()) for fn in functions]
    return cast("tuple[int, T]", _wait(scope, branches.first_of(asked, contenders)))


class _BranchThread:
    """A function in a thread, with a branch's scope bound to the thread."""

    def __init__(self, scope: Scope | None, inner: branches.Branch | None, fn: Callable[[], Any]) -> None:
        self._scope = scope
        self._inner = inner
        self._fn = fn
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        threading.Thread(target=self._run, name="holdfast-branch", daemon=True).start()

    def _run(self) -> None:
        try:
            if self._scope is not None:
                _scope.set(self._scope)
            if self._inner is not None:
                with _entered(self._inner):
                    self.value = self._fn()
            else:
                if self._scope is not None:
                    self._scope.task = None
                    self._scope.bind()
                self.value = self._fn()
        except BaseException as error:  # noqa: BLE001 - raised where the branches meet
            self.error = error
        finally:
            self.done.set()

    def lose(self) -> None:
        """Take the scope away from the thread, so that its next durable call fails."""
        if self._scope is not None:
            self._scope.thread = -1


class Context:
    """A running execution, for programs that describe their steps; see `holdfast.Context`."""

    def __init__(self, inner: flow.Context) -> None:
        self._inner = inner

    @property
    def id(self) -> str:
        """The execution's id."""
        return self._inner.id

    @property
    def kind(self) -> str:
        """What the opener called it."""
        return self._inner.kind

    @property
    def uid(self) -> bytes:
        """Its 16 bytes."""
        return self._inner.uid

    @property
    def generation(self) -> int:
        """Which pass over the program, from 1."""
        return self._inner.generation

    @property
    def chapter(self) -> int:
        """Which chapter, from 0."""
        return self._inner.chapter

    @property
    def replaying(self) -> bool:
        """Whether recorded positions lie ahead."""
        return self._inner.replaying

    @property
    def degraded(self) -> bool:
        """Whether it ever went on without its journal."""
        return self._inner.degraded

    @property
    def should_continue(self) -> bool:
        """Whether the program should end its chapter soon."""
        return self._inner.should_continue

    def set_output(self, value: Any) -> None:
        """Set what the execution completes with when its block ends."""
        self._inner.set_output(value)

    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], T]) -> T:
        """Run, or replay, the described step."""
        return _wait(self._inner.root, self._inner.step(descriptor, op))

    def step_recorded(self, descriptor: StepDescriptor, op: Callable[[StepHandle], T]) -> StepRecord[T]:
        """As `step`, returning the value together with how it came about."""
        return _wait(self._inner.root, self._inner.step_recorded(descriptor, op))

    @contextmanager
    def parallel(self, label: str = "parallel") -> Iterator[Parallel]:
        """Open a block whose steps start at once; its end awaits all.

        Errors nobody looked at are raised as an ExceptionGroup.
        """
        inner = branches.Branch(label, self._inner.scope_here(), "parallel")
        with _entered(inner):
            block = Parallel()
            yield block
            block.settle()

    branch = staticmethod(branch)
    gather = staticmethod(gather)
    first = staticmethod(first)
    now = staticmethod(now)
    random = staticmethod(random)
    uuid = staticmethod(uuid)
    patched = staticmethod(patched)


class ParallelResult(Generic[R]):
    """The result of a step started in `parallel()`."""

    def __init__(self, inner: ThreadFuture[R]) -> None:
        self._inner = inner
        self.looked_at = False

    def result(self, timeout: float | None = None) -> R:
        """Return the step's value, waiting for it, or raise its error."""
        self.looked_at = True
        return self._inner.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the step's error, or None."""
        self.looked_at = True
        return self._inner.exception(timeout)


class Parallel:
    """Steps that start at once and are numbered in the order they are written."""

    def __init__(self) -> None:
        self._started: builtins.list[ParallelResult[Any]] = []

    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], T]) -> ParallelResult[T]:
        """Start a step now."""
        scope = _scope.get()
        assert scope is not None
        call = branches.described(scope, descriptor, op)
        started: ParallelResult[T] = ParallelResult(asyncio.run_coroutine_threadsafe(call.perform(), scope.run.loop))
        self._started.append(started)
        return started

    def settle(self) -> None:
        """Wait for all; raise what nobody looked at."""
        seen = [started.looked_at for started in self._started]
        errors = [started.exception() for started in self._started]
        for error in errors:
            if error is not None and not isinstance(error, Exception):
                raise error
        unseen = [e for e, looked in zip(errors, seen, strict=True) if isinstance(e, Exception) and not looked]
        if unseen:
            raise ExceptionGroup(f"{len(unseen)} of {len(errors)} parallel steps failed", unseen)
