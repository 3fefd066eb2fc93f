"""The context of a running execution, with every durable call as a method.

For programs that describe their steps instead of decorating functions; module functions act on the same
scopes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, NoReturn, TypeVar, cast, overload
from uuid import UUID

from holdfast.execution import keys
from holdfast.execution.branches import Branch, Contender, Parallel, described, first_of, gathered
from holdfast.execution.context import NewChapter, Run, current_scope
from holdfast.execution.effects import StepDescriptor, StepHandle, StepRecord, check_name
from holdfast.execution.scope import _scope
from holdfast.execution.values import Asked, _now, _patched, _random_float, _random_uuid

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

_FRAMED = {kind: keys.what(kind, "", "") for kind in ("now", "random", "uuid", "first")}
_SHAPES = {kind: keys.shape(framed, b"") for kind, framed in _FRAMED.items()}

# --- values that are recorded ---------------------------------------------------------------------


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End the chapter and start the function again with new arguments, an empty journal and new keys."""
    scope = current_scope("continue_as_new()")
    signal = NewChapter(args, kwargs)
    if scope is not None:
        scope.own("continue_as_new", "")
        scope.run.halt(signal)
    raise signal


class Context(Run):
    """A running execution, for programs that describe their steps instead of decorating functions.

    Attributes:
        id: The execution's id.
        kind: Which durable function, or what the opener called it.
        generation: Which pass over the program, from 1.
        chapter: Which chapter, from 0.
    """

    __slots__ = ()

    @overload
    def step(
        self, descriptor: StepDescriptor, op: Callable[[StepHandle], Awaitable[T]]
    ) -> Coroutine[object, object, T]: ...
    @overload
    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], T]) -> Coroutine[object, object, T]: ...
    def step(self, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]) -> Coroutine[object, object, Any]:
        """Run, or replay, the described step; `op` gets its handle. A plain `op` runs in a thread."""
        return described(self.scope_here(), descriptor, op).perform()

    @overload
    def step_recorded(
        self, descriptor: StepDescriptor, op: Callable[[StepHandle], Awaitable[T]]
    ) -> Coroutine[object, object, StepRecord[T]]: ...
    @overload
    def step_recorded(
        self, descriptor: StepDescriptor, op: Callable[[StepHandle], T]
    ) -> Coroutine[object, object, StepRecord[T]]: ...
    def step_recorded(
        self, descriptor: StepDescriptor, op: Callable[[StepHandle], Any]
    ) -> Coroutine[object, object, StepRecord[Any]]:
        """As `step`, returning the value together with how it came about."""
        return described(self.scope_here(), descriptor, op).perform_recorded()

    def parallel(self, label: str = "parallel") -> Parallel:
        """Open a block whose steps start at once; its end awaits all and cancels none.

        Errors that nobody awaited are raised as an ExceptionGroup.
        """
        return Parallel(label, self.scope_here())

    def branch(self, label: str = "branch") -> Branch:
        """Open a part of the program whose durable calls are numbered on their own."""
        return Branch(label, self.scope_here())

    @overload
    def gather(self, a1: Awaitable[T1], /) -> Coroutine[object, object, tuple[T1]]: ...
    @overload
    def gather(self, a1: Awaitable[T1], a2: Awaitable[T2], /) -> Coroutine[object, object, tuple[T1, T2]]: ...
    @overload
    def gather(
        self, a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], /
    ) -> Coroutine[object, object, tuple[T1, T2, T3]]: ...
    @overload
    def gather(
        self, a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], a4: Awaitable[T4], /
    ) -> Coroutine[object, object, tuple[T1, T2, T3, T4]]: ...
    @overload
    def gather(
        self, a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], a4: Awaitable[T4], a5: Awaitable[T5], /
    ) -> Coroutine[object, object, tuple[T1, T2, T3, T4, T5]]: ...
    @overload
    def gather(self, *aws: Awaitable[T]) -> Coroutine[object, object, list[T]]: ...
    @overload
    def gather(
        self, *aws: Awaitable[T], return_exceptions: bool
    ) -> Coroutine[object, object, list[T | BaseException]]: ...
    def gather(self, *aws: Awaitable[Any], return_exceptions: bool = False) -> Coroutine[object, object, Any]:
        """As `holdfast.gather`."""
        scope = self.scope_here()
        return gathered([Contender(scope, each) for each in aws], return_exceptions=return_exceptions)

    @overload
    def first(self, a1: Awaitable[T1], /) -> Coroutine[object, object, tuple[int, T1]]: ...
    @overload
    def first(self, a1: Awaitable[T1], a2: Awaitable[T2], /) -> Coroutine[object, object, tuple[int, T1 | T2]]: ...
    @overload
    def first(
        self, a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], /
    ) -> Coroutine[object, object, tuple[int, T1 | T2 | T3]]: ...
    @overload
    def first(self, *aws: Awaitable[T]) -> Coroutine[object, object, tuple[int, T]]: ...
    def first(self, *aws: Awaitable[Any]) -> Coroutine[object, object, tuple[int, Any]]:
        """As `holdfast.first`."""
        scope = self.scope_here()
        return first_of(Asked(scope, "first"), [Contender(scope, each) for each in aws])

    def now(self) -> Coroutine[object, object, datetime]:
        """As `holdfast.now`."""
        return _now(Asked(self.scope_here(), "now"))

    def random(self) -> Coroutine[object, object, float]:
        """As `holdfast.random`."""
        return _random_float(Asked(self.scope_here(), "random"))

    def uuid(self) -> Coroutine[object, object, UUID]:
        """As `holdfast.uuid`."""
        return _random_uuid(Asked(self.scope_here(), "uuid"))

    def patched(self, name: str) -> Coroutine[object, object, bool]:
        """As `holdfast.patched`."""
        check_name(name, "patch")
        scope = self.scope_here()
        scope.own("patched", name)
        return _patched(scope, name, scope.counter)


def current() -> Context | None:
    """Return the context of the execution this code runs in, or None."""
    scope = _scope.get()
    return cast(Context, scope.run) if scope is not None else None
