"""Keep what one running execution knows: what it may do, and what it still owes the ledger.

A `Run` is one claimed execution in one generation. It is bookkeeping in memory around one act: handing
appends to the writer.

Invariants:
    - Everything appended names the fence of the claim; once an append is refused nothing more is done.
    - A run that has been halted stays halted: every later durable call raises the same exception.
    - What is appended without being waited for is never behind what is appended after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from holdfast.core.clock import Timer, to_datetime
from holdfast.core.errors import LeaseLost, WrongProcess
from holdfast.execution import journal, keys
from holdfast.execution.errors import (
    DeadlineExceeded,
    DurableError,
    ExecutionCanceled,
    ExecutionFinished,
    JournalUnavailable,
    NestedEffect,
    OutsideExecution,
    PositionShape,
    ReplayDivergence,
)
from holdfast.execution.machine import Past, Record, describe, report, shown
from holdfast.execution.scope import Scope, _effect, _plain, _scope
from holdfast.store.database import Append, Row
from holdfast.store.writer import Overdue

if TYPE_CHECKING:
    from holdfast.execution.config import DurableConfig
    from holdfast.execution.effects import StepDescriptor, StepHandle
    from holdfast.execution.engine import Holdfast

log = logging.getLogger("holdfast.durable")

RIDING_ROWS_MAX = 256
"""Rows that may wait for a ride with the next acknowledged append before they are sent on their own."""


class Suspend(BaseException):
    """Leaves a program that is to rest: shutdown, or a pause. Private; never means failure."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class NewChapter(BaseException):
    """Leaves a program that continues as new, with the next chapter's input. Private."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("continue_as_new")
        self.arguments = args
        self.keywords = kwargs


class Run:
    """A running execution: its identity, what it may still do, and what it owes the ledger.

    Attributes:
        id: The execution's id.
        kind: Which durable function.
        generation: Which pass over the program, from 1.
        chapter: Which chapter, from 0.
    """

    __slots__ = (
        "abandoned", "advised", "bytes", "chapter", "clock", "database", "deadline_at", "degraded_flag", "drained",
        "engine", "fence", "fresh", "generation", "guard", "halted", "id", "inflight", "input_blob", "kind",
        "last_now", "leaving", "loop", "losing", "open_positions", "output", "over", "owner", "parked", "past",
        "payload_max", "pipelined", "pk", "positions", "prefetch", "program", "ran", "replay_only", "replayed",
        "resumed_at", "riding", "riding_size", "rode", "root", "seed", "segment_rows", "segments_read", "soft_max",
        "steps_max", "threads", "uid_bytes", "waiting", "watch", "writer",
    )  # fmt: skip

    def __init__(self, engine: Holdfast, row: journal.Claimed) -> None:
        config = engine.config
        self.engine = engine
        self.database = engine.database
        self.writer = engine.database.writer
        self.owner = engine.database.owner
        self.threads = engine.threads
        self.clock = engine.clock
        self.loop = engine.loop
        self.id = row.id
        self.uid_bytes = row.uid
        self.kind = row.kind
        self.pk = row.pk
        self.fence = row.fence
        self.guard = (row.pk, row.fence)
        self.seed = row.seed
        self.generation = row.generation
        self.chapter = row.chapter
        self.deadline_at = row.deadline_at
        self.degraded_flag = row.degraded
        self.bytes = row.journal_bytes
        self.steps_max = config.steps_live_max
        self.soft_max = config.steps_live_max * config.fold_at_percent // 100
        self.segment_rows = config.segment_rows
        self.prefetch = engine.database.dialect == "postgres"
        self.pipelined = config.ack == "pipelined"
        self.payload_max = config.payload_bytes_max
        self.replay_only = False
        self.fresh = row.fresh
        self.last_now = row.last_now
        self.input_blob = row.input
        self.resumed_at = 0.0 if row.fresh else self.clock.monotonic()
        self._renew()

    def _renew(self) -> None:
        """Set what belongs to one generation."""
        self.positions = 0
        self.segments_read = 0
        self.ran = {"idempotent": 0, "at_least_once": 0, "exactly_once": 0}
        self.replayed = {"idempotent": 0, "at_least_once": 0, "exactly_once": 0}
        self.over = False
        self.halted: BaseException | None = None
        self.riding: list[tuple[str, tuple[object, ...]]] = []
        self.riding_size = 0
        self.rode: list[tuple[str, tuple[object, ...]]] = []
        self.inflight: set[StepHandle] = set()
        self.drained: asyncio.Future[None] | None = None
        self.leaving: Timer | None = None
        self.program: asyncio.Task[Any] | None = None
        self.watch: asyncio.Future[None] | None = None
        self.parked: set[asyncio.Future[None]] | None = None
        self.waiting = False
        self.abandoned: dict[tuple[bytes, int], Any] | None = None
        self.losing: tuple[tuple[bytes, int | None], ...] = ()
        self.past: Past | None = None
        self.advised: set[str] | None = None
        self.open_positions: tuple[str, ...] = ()
        self.output: Any = None
        self.root = Scope(self, b"", b"", recorded=not self.fresh)

    def next_generation(self, chapter: int) -> None:
        """Start over in memory, after the ledger has opened the next generation."""
        self.generation += 1
        self.chapter = chapter
        self.fresh = True
        self._renew()

    # --- what the program may ask ---

    @property
    def uid(self) -> bytes:
        """The execution's 16 bytes, which its keys derive from."""
        return self.uid_bytes

    @property
    def replaying(self) -> bool:
        """Whether recorded positions lie ahead in the current scope."""
        if self.over:
            return False
        scope = _scope.get() or self.root
        return bool(scope.entries) or not scope.exhausted

    @property
    def degraded(self) -> bool:
        """Whether this execution ever went on without its journal."""
        return self.degraded_flag

    @property
    def should_continue(self) -> bool:
        """Whether the program should end its chapter with `continue_as_new` soon."""
        return self.positions >= self.soft_max

    def set_output(self, value: Any) -> None:
        """Set what the execution completes with when its block ends."""
        self.output = value

    def part(self) -> None:
        """Let go of the root scope when all is over: the two refer to each other, and to the task's context."""
        self.over = True
        self.root.task = None
        del self.root

    # --- guards ---

    @property
    def tidy(self) -> bool:
        """Whether nothing is left to look after: the usual case of a program that ran through."""
        return self.fresh and self.halted is None and not self.inflight and not self.abandoned and not self.root.entries

    def scope_here(self) -> Scope:
        """Return the scope durable calls of this context take positions in, here."""
        scope = _scope.get()
        if scope is not None and scope.run is self:
            return scope
        if self.over:
            self.refuse()
        return self.root

    def refuse(self) -> NoReturn:
        """Raise what every durable call raises from now on."""
        if self.engine.forked:
            raise WrongProcess(
                "a durable call in a process forked from the one that runs it",
                hint="open Holdfast again in the child process",
            )
        if self.halted is not None:
            raise self.halted
        raise ExecutionFinished(
            f"execution {self.id!r} has ended, or its block was left; no new durable call can be made in it",
            hint="await every durable call before the program returns",
            status="ended",
        )

    def check(self) -> None:
        """Row 2 of the step protocol: nothing must stand against going on."""
        if self.over:
            self.refuse()
        if self.deadline_at is not None and self.clock.now() >= self.deadline_at:
            self.halt(deadline_exceeded(self.id, self.deadline_at))
            self.refuse()

    def halt(self, error: BaseException) -> None:
        """Poison the context; the first poison stands. Waits end and interruptible effects are cancelled."""
        if self.halted is not None:
            return
        self.halted = error
        self.over = True
        for waiter in list(self.parked or ()):
            if not waiter.done():
                waiter.set_result(None)
        config = self.engine.config
        if isinstance(error, ExecutionCanceled):
            for handle in list(self.inflight):
                if not handle.guarded and handle.task is not None:
                    handle.task.cancel()
            self.leaving = self.clock.call_later(config.cancel_grace_ms / 1000, self.leave)
        elif isinstance(error, DurableError):
            self.leaving = self.clock.call_later(config.drain_ms / 1000, self.leave)

    def leave(self) -> None:
        """End what has not ended by itself since the halt; a guarded effect stays an open intent."""
        for handle in list(self.inflight):
            if handle.task is not None:
                handle.task.cancel()
        if self.program is not None:
            self.program.cancel()

    def requested(self, request: str) -> None:
        """Act on an operator's request seen in the ledger."""
        word, _, reason = request.partition(":")
        if word == "cancel":
            self.halt(canceled(self.id, reason))
        else:
            self.halt(Suspend("paused"))

    # --- appends ---

    def ride(self, statement: str, row: tuple[object, ...], size: int = 64) -> None:
        """Let a row that nobody waits for travel with the next append of this execution."""
        if self.replay_only:
            return
        self.riding.append((statement, row))
        self.riding_size += size

    def item(
        self,
        rows: list[tuple[str, tuple[object, ...]]],
        size: int,
        label: str,
        future: asyncio.Future[Any] | None,
        settled: Callable[[bool], None] | None = None,
    ) -> Append:
        """Make an append of these rows and of those that ride with it."""
        self.rode = self.riding
        if self.rode:
            rows = self.rode + rows
            size += self.riding_size
            self.riding = []
            self.riding_size = 0
        return Append(journal.PLAN, self.pk, self.guard, rows, size, label, future, settled)

    def unride(self, rode: list[tuple[str, tuple[object, ...]]]) -> None:
        """Take back what rode with an append that the writer did not take: later rows must not overtake it."""
        if rode:
            self.riding = rode + self.riding
            self.riding_size += 256 * len(rode)

    async def hand_over(self, item: Append) -> None:
        """Give the append just made, for which there was no room, to the writer as soon as there is some.

        Raises:
            Overdue: There was none in time, or the writer is known not to commit; nothing was taken.
        """
        rode = self.rode
        try:
            if self.writer.degraded:
                raise Overdue(item)  # noqa: TRY301 - as when waiting for room has taken too long
            await self.writer.put(item)
        except BaseException:
            if item.state == "new":
                self.unride(rode)
            raise

    async def store(self, rows: list[tuple[str, tuple[object, ...]]], size: int = 256, label: str = "") -> Row:
        """Append rows and return when they are durable; the guard's row tells what was asked of us meanwhile.

        Raises:
            LeaseLost: Somebody else has claimed the execution, or it was ended.
            JournalUnavailable: Not acknowledged in time; the rows may land yet.
        """
        future = self.loop.create_future()
        item = self.item(rows, size, label, future)
        try:
            if not self.writer.offer(item):
                await self.hand_over(item)
            row = await future
        except Overdue as overdue:
            error = self.unavailable()
            self.halt(error)
            raise error from overdue
        self.acknowledged(row)
        return row

    def acknowledged(self, row: Row | None) -> None:
        """Take the writer's answer to an append of this execution."""
        if row is None:
            raise self.lost()
        if row.request is not None and self.halted is None:
            self.requested(row.request)

    def lost(self) -> LeaseLost:
        """Halt: an append was refused, the execution is no longer ours."""
        self.engine.metrics.lease_lost.add(1)
        error = LeaseLost(f"execution {self.id!r} was taken over or ended elsewhere")
        self.halt(error)
        return error

    def send(
        self,
        rows: list[tuple[str, tuple[object, ...]]],
        size: int,
        label: str = "",
        settled: Callable[[bool], None] | None = None,
    ) -> bool:
        """Offer rows nobody waits for; say whether there was room."""
        item = self.item(rows, size, label, None, settled)
        if self.writer.offer(item):
            return True
        self.unride(self.rode)
        return False

    async def flush_riders(self) -> None:
        """Send riding rows on their own when many have gathered."""
        if len(self.riding) >= RIDING_ROWS_MAX:
            try:
                item = self.item([], 0, "", None)
                if not self.writer.offer(item):
                    await self.hand_over(item)
            except Overdue as overdue:
                raise self.unavailable() from overdue

    def unavailable(self) -> JournalUnavailable:
        """Say that the journal does not answer."""
        return unavailable(self.id, self.engine.config)

    def note_degraded(self, name: str, index: str) -> None:
        """Warn, count, and leave a lasting mark with the next append that succeeds."""
        log.warning("execution %r: %r at %s goes on without its journal", self.id, name, index)
        self.engine.metrics.degraded.add(1)
        if not self.degraded_flag:
            self.degraded_flag = True
            self.ride("executions.degrade", (self.pk,))
            self.audit("degraded", position=index, detail={"step": name})

    # --- the trail and the audit ---

    def trail(self, status: str, reason: str | None = None, owner: str | None = None) -> tuple[str, tuple[object, ...]]:
        """Make the trail's row for a change of status."""
        return "trail.add", (self.pk, self.generation, status, reason, owner, self.fence, self.clock.now())

    def move(
        self, status: str, *, waiting_on: str | None = None, reason: str | None = None, release: bool = False
    ) -> list[tuple[str, tuple[object, ...]]]:
        """Make the rows of a change of status that does not end the execution."""
        moved = (
            status, waiting_on, reason, self.generation, self.chapter, release, waiting_on == "paused", self.bytes,
            self.clock.now(), self.pk,
        )  # fmt: skip
        owner = None if release else self.database.owner.id
        return [self.trail(status, reason or waiting_on, owner), ("executions.move", moved)]

    def audit_row(self, event: str, **fields: Any) -> tuple[str, tuple[object, ...]]:
        """Log an event at WARN and make its audit row."""
        return journal.audit_row(self.id, self.generation, self.clock.now(), event, **fields)

    def audit(self, event: str, **fields: Any) -> None:
        """Audit an event that nothing has to wait for."""
        statement, row = self.audit_row(event, **fields)
        self.ride(statement, row, 512)

    def has_lost(self, path: bytes, index: int) -> bool:
        """Say whether a position belongs to a contender of `first` that has lost."""
        return any(
            path.startswith(prefix) and (alone is None or (path == prefix and index == alone))
            for prefix, alone in self.losing
        )

    # --- waiting and draining ---

    async def rest(self, due_at: int) -> None:
        """Wait until an instant, a halt or the deadline; then raise what stands against going on."""
        self.check()
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.parked = self.parked or set()
        self.parked.add(waiter)
        poll = self.engine.config.poll_ms / 1000
        try:
            while not self.over:
                until = due_at if self.deadline_at is None else min(due_at, self.deadline_at)
                left = (until - self.clock.now()) / 1e6
                if left <= 0:
                    break
                await self.clock.wait(waiter, min(left, poll))
        finally:
            self.parked.discard(waiter)
        self.check()

    async def drain(self, seconds: float) -> bool:
        """Wait for running effects to end; say whether none is left."""
        if self.inflight:
            self.drained = self.loop.create_future()
            await self.clock.wait(self.drained, seconds)
            self.drained = None
        return not self.inflight

    async def settled_effects(self, concerned: Callable[[StepHandle], bool]) -> None:
        """Wait until no running effect is concerned any more."""
        while any(concerned(handle) for handle in self.inflight):
            self.watch = self.loop.create_future()
            await self.watch

    def ended(self, handle: StepHandle) -> None:
        """Take an effect off the list of running ones."""
        self.inflight.discard(handle)
        if self.watch is not None and not self.watch.done():
            self.watch.set_result(None)
        if self.drained is not None and not self.inflight and not self.drained.done():
            self.drained.set_result(None)

    def caught_up(self) -> None:
        """Take note that replay has met its first live step."""
        self.engine.metrics.replay_seconds.observe(self.clock.monotonic() - self.resumed_at)
        self.resumed_at = 0.0

    def count(self) -> None:
        """Add what this generation did to the process's counters."""
        add = self.engine.metrics.steps.add
        for effect, number in self.ran.items():
            if number:
                add(number, effect, "live")
        for effect, number in self.replayed.items():
            if number:
                add(number, effect, "replayed")

    # --- divergence ---

    def diverge(self, position: str, stored: Record | None, asked: PositionShape | None) -> NoReturn:
        """Halt with a divergence and raise it."""
        was = describe(stored.kind, stored.name, stored.effect, stored.shape) if stored is not None else None
        text = report(self.id, self.generation, position, was, asked)
        self.halt(
            ReplayDivergence(
                f"execution {self.id!r} diverged at position {position} of generation {self.generation}: "
                f"recorded {shown(was)}, asked {shown(asked)}",
                hint="restore the program, guard the change with holdfast.patched(name), or let it restart",
                execution_id=self.id,
                generation=self.generation,
                position=position,
                stored=was,
                asked=asked,
                report=text,
            )
        )
        self.refuse()

    async def check_tail(self, scope: Scope) -> None:
        """Refuse to end a scope while it holds records beyond its counter."""
        if scope.exhausted and not scope.entries:
            return
        beyond = await scope.ahead_of(scope.counter)
        if beyond is not None:
            self.diverge(keys.position(scope.path, beyond.idx), beyond, None)

    def advise(self, record: Record, spec: StepDescriptor) -> None:
        """Audit, once per step name, that policy or kind are not those the record was made under."""
        if record.outcome == "assumed":
            return  # its policy column says who vouched for the value
        policy = spec.policy_name
        if record.policy == policy and record.effect_kind == spec.effect.kind:
            return
        self.advised = self.advised or set()
        if spec.name in self.advised:
            return
        self.advised.add(spec.name)
        detail = {"was": [record.effect_kind, record.policy], "is": [spec.effect.kind, policy]}
        self.audit("advisory_change", effect=spec.effect.cls, detail=detail)


def unavailable(id: str, config: DurableConfig) -> JournalUnavailable:
    """Say that the journal does not answer."""
    return JournalUnavailable(
        f"execution {id!r}: the journal did not acknowledge within {config.ack_timeout_ms} ms",
        hint="nothing was done that needs the record; run it again when the database answers",
        retry_after=config.ack_timeout_ms / 1000,
    )


def canceled(id: str, reason: str) -> ExecutionCanceled:
    """Say that an execution was cancelled."""
    return ExecutionCanceled(
        f"execution {id!r} was canceled" + (f": {reason}" if reason else ""),
        hint="a canceled execution stays canceled; start another id",
        reason=reason,
    )


def deadline_exceeded(id: str, deadline_at: int) -> DeadlineExceeded:
    """Say that an execution ran out of time."""
    at = to_datetime(deadline_at)
    return DeadlineExceeded(
        f"execution {id!r} passed its deadline of {at.isoformat()}",
        hint="resume it with a later deadline",
        deadline_at=at,
    )


def current_scope(what: str) -> Scope | None:
    """Return the current scope for a durable call that only an execution may make.

    None where the program runs without a ledger: the call then does its plain counterpart.
    """
    scope = _scope.get()
    if scope is None:
        if _plain.get():
            return None
        raise OutsideExecution(f"{what} was called outside an execution", hint="call it in a durable function")
    effect = _effect.get()
    if effect is not None:
        raise NestedEffect(
            f"{what} was called inside the running step {effect.name!r}",
            hint="make durable calls in the durable function, not in a step's operation",
        )
    return scope


def current_step() -> StepHandle:
    """Return the handle of the running step.

    Raises:
        OutsideExecution: No step is running here.
    """
    handle = _effect.get()
    if handle is None:
        raise OutsideExecution("current_step() was called outside a running step", hint="call it in a step's operation")
    return handle
