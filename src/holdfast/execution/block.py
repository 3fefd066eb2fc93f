"""Make a block of the caller's own code an execution.

The conductor of `async with hf.execution(…)`: the program is the block, so it runs in the caller's task,
is never run again by itself, and passes on whatever it raises.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from holdfast.core import points
from holdfast.execution.doubt import needs_decision
from holdfast.execution.errors import ExecutionBusy
from holdfast.execution.flight import Ended, Flight
from holdfast.execution.flow import Context
from holdfast.execution.journal import Claimed
from holdfast.execution.plain import PlainContext
from holdfast.execution.request import Request
from holdfast.execution.scope import _plain, _scope

if TYPE_CHECKING:
    from holdfast.execution.engine import Holdfast
    from holdfast.store.database import Row


@asynccontextmanager
async def plain_block(id: str, kind: str) -> AsyncIterator[Context]:
    """Run the block without a ledger."""
    token = _plain.set(True)
    try:
        yield cast("Context", PlainContext(id, kind))
    finally:
        _plain.reset(token)


@asynccontextmanager
async def open_block(engine: Holdfast, request: Request) -> AsyncIterator[Context]:
    """Admit the execution, run the block in it, settle how it ended. See `Holdfast.execution`."""
    if request.id in engine.flights:
        raise busy_here(request.id)
    flight = Flight(engine, request)
    engine.flights[request.id] = flight
    try:
        admitted = await flight.admit()
        run = replay_only(engine, admitted.row) if isinstance(admitted, Ended) else admitted
    except BaseException:
        if flight.run is not None:
            engine.flying.discard(flight.run.pk)
        engine.landed(flight)
        if engine.crashed:
            raise points.Crashed("the process crashed") from None
        raise
    engine.blocks.add(run)
    token = _scope.set(run.root.bind())
    caught: BaseException | None = None
    try:
        if run.open_positions:
            run.halt(needs_decision(run.id, run.open_positions))
        run.check()
        yield run
    except BaseException as error:
        caught = error
        raise
    finally:
        _scope.reset(token)
        try:
            await _close(flight, run, caught)
        finally:
            engine.blocks.discard(run)
            engine.flying.discard(run.pk)
            engine.landed(flight)


async def _close(flight: Flight, run: Context, caught: BaseException | None) -> None:
    """Settle the end. What the block raised goes on unchanged; a poison it swallowed is raised."""
    if run.replay_only:
        run.over = True
        return
    try:
        await flight.conclude(run, run.output, caught)
    except BaseException as end:
        if caught is None or isinstance(end, points.Crashed):
            raise
        if isinstance(caught, Exception) and not isinstance(end, Exception):
            raise


def replay_only(engine: Holdfast, row: Row | None) -> Context:
    """Open a completed execution for reading its recorded positions."""
    assert row is not None
    claimed = Claimed(
        pk=row.pk, id=row.id, uid=row.uid, kind=row.kind, fence=row.fence, seed=row.seed, generation=row.generation,
        chapter=row.chapter, deadline_at=None, degraded=bool(row.degraded), journal_bytes=row.bytes, fresh=False,
        last_now=0, input=None,
    )  # fmt: skip
    run = Context(engine, claimed)
    run.replay_only = True
    return run


def busy_here(id: str) -> ExecutionBusy:
    """Say that a block of this process has the execution."""
    return ExecutionBusy(
        f"execution {id!r} is run by this process",
        "wait for it to end",
        execution_id=id,
        host=socket.gethostname(),
        pid=os.getpid(),
    )
