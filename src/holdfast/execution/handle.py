"""Hold on to an execution that runs somewhere, or has ended."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from holdfast.execution.operate import CancelOutcome
from holdfast.execution.views import Execution

if TYPE_CHECKING:
    from holdfast.execution.declare import Durable
    from holdfast.execution.engine import Holdfast

R = TypeVar("R")


class Handle(Generic[R]):
    """An execution under way, or at its end.

    Attributes:
        id: Its id.
        created: Whether this call created it.
    """

    def __init__(self, engine: Holdfast, id: str, *, created: bool, fn: Durable[..., R] | None = None) -> None:
        self.id = id
        self.created = created
        self._engine = engine
        self._fn = fn

    async def result(self, timeout: timedelta | None = None) -> R:  # noqa: ASYNC109 - part of the contract
        """Return the output, waiting for the end if need be.

        Raises:
            TimeoutError: It has not ended in time; it goes on.
            ExecutionFailed, ExecutionAborted, ExecutionCanceled, NeedsDecision: As `Holdfast.run`.
        """
        waiting = self._engine.watch(self.id, self._fn)
        if timeout is None:
            return cast("R", await waiting)
        task = self._engine.tasks.spawn(waiting, "holdfast.result")
        try:
            if not await self._engine.clock.wait(task, timeout.total_seconds()):
                raise TimeoutError(f"execution {self.id!r} has not ended within {timeout}")
            return cast("R", task.result())
        finally:
            task.cancel()

    async def info(self) -> Execution:
        """Return what is known of it.

        Raises:
            UnknownExecution: It was pruned.
        """
        found = await self._engine.get(self.id)
        if found is None:
            raise self._engine.unknown(self.id)
        return found

    async def cancel(self, *, reason: str = "", force: bool = False) -> CancelOutcome:
        """As `Holdfast.cancel`."""
        return await self._engine.cancel(self.id, reason=reason, force=force)

    def __repr__(self) -> str:
        return f"<Handle of execution {self.id!r}>"
