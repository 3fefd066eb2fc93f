"""Take one step: look it up, guard it, run it, record it.

The conductor of the step protocol. `StepCall.perform` reads from top to bottom as the protocol's rows do;
what the records mean and what an unknown fate leads to is decided by `machine`.

Invariants:
    - A guarded effect begins only after its intent is on disk under our fence.
    - A recorded outcome is returned, never made again.
    - Cancellation of the caller loses no outcome: it was handed to the writer before anything is awaited.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core import points, trace
from holdfast.core.codec import encode
from holdfast.core.errors import CodecError, OutcomeUnknown
from holdfast.execution import doubt, journal, keys, machine
from holdfast.execution.effects import (
    Assumed,
    Live,
    Replayed,
    StepDescriptor,
    StepHandle,
    StepRecord,
)
from holdfast.execution.errors import (
    ExecutionFinished,
    JournalUnavailable,
    NestedEffect,
    ResultUnserializable,
    StepFailed,
)
from holdfast.execution.machine import FAILED, OPENED, OUTCOME, POSITION_MARK, Record, describe
from holdfast.execution.payloads import FAILURE, SPILLED, Failure, Lost, read_spilled, spill
from holdfast.execution.scope import Scope, _current_task, _effect
from holdfast.store.writer import Overdue

if TYPE_CHECKING:
    from holdfast.execution.context import Run
    from holdfast.store.database import Append

points.register("step.positioned", "step.looked_up", "intent.acked", "effect.returned", "outcome.encoded",
                "outcome.acked")  # fmt: skip

_failure_codec = FAILURE
_NO_KEYWORDS: dict[str, Any] = {}
"""Shared by all calls without any, which lets go of a dict per step in flight."""


class _Broken(Exception):
    """Carries what an operation raised past what the protocol itself raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.error = error


class StepCall:
    """One durable call of a step, from its call expression to its end."""

    __slots__ = (
        "args", "attempt", "bounded", "fingerprint", "fn", "index", "key_bytes", "kwargs", "occurrence",
        "outcome", "run", "scope", "shape", "spec", "threaded", "tries",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913 - what one call consists of; made in two places
        self,
        scope: Scope,
        spec: StepDescriptor,
        fingerprint: bytes,
        shape: bytes,
        fn: Callable[..., Any],
        args: tuple[Any, ...] | None,
        kwargs: dict[str, Any],
        *,
        threaded: bool,
    ) -> None:
        """Take a position for the call. `args` None: the operation takes the handle alone."""
        self.scope = scope
        run = self.run = scope.run
        self.spec = spec
        self.fingerprint = fingerprint
        self.shape = shape
        self.fn = fn
        self.args = args
        self.kwargs = kwargs or _NO_KEYWORDS
        self.threaded = threaded
        self.bounded = threaded or spec.timeout is not None
        self.index, self.occurrence = scope.take("step", spec.name, shape)
        self.key_bytes = b""
        self.attempt = 0
        self.tries = 0
        self.outcome: Any = None
        if run.past is not None:
            run.past.asked.add(self.key())
        if points.armed:
            points.reach("step.positioned")

    # --- what it is ---

    def key(self) -> bytes:
        """The step's idempotency key."""
        if not self.key_bytes:
            self.key_bytes = keys.key(self.scope.key_prefix, self.spec.framed, self.fingerprint, self.occurrence)
        return self.key_bytes

    @property
    def position(self) -> str:
        """Where it stands, for people."""
        return keys.position(self.scope.path, self.index)

    def entry(self, part: int, attempt: int, **fields: Any) -> tuple[str, tuple[object, ...]]:
        """Make one of the step's journal rows."""
        spec, effect, run = self.spec, self.spec.effect, self.run
        return "journal.append", (
            run.pk, run.generation, self.scope.path, self.index, part, attempt, "step", spec.name, effect.cls,
            effect.kind, fields.get("policy", spec.policy_name), self.shape, self.key(),
            fields.get("outcome"), fields.get("payload"), fields.get("carried_from"), fields.get("due_at"),
            run.fence, run.clock.now(),
        )  # fmt: skip

    # --- the protocol ---

    async def perform(self, *, spanned: bool = False) -> Any:
        """Return the step's value: recorded, carried, assumed or live."""
        if trace.enabled and not spanned:
            return await self.traced()
        run, scope, index = self.run, self.scope, self.index
        if run.over or run.deadline_at is not None:
            run.check()
        if run.abandoned:
            await doubt.settle_abandoned(run)
        found = scope.entries.pop(index, None)
        if found is None and not scope.exhausted:
            found = await scope.find(index)
        if points.armed:
            points.reach("step.looked_up")
        if found is not None:
            # The short way: one record, and it is the value.
            if type(found) is not list and found.outcome == "value" and found.shape == self.shape:
                spec = self.spec
                run.replayed[spec.effect.cls] += 1
                if found.policy is not None or spec.guarded:
                    run.advise(found, spec)
                payload = found.payload
                if payload[0] != SPILLED:
                    value = self.decode(payload)
                    self.outcome, self.attempt = Replayed, found.attempt
                    return value
            return await self.recorded(found if type(found) is list else [found])
        if run.replay_only:
            raise ExecutionFinished(
                f"execution {run.id!r} has completed: position {self.position} is not recorded",
                hint="start another execution under another id",
                status="completed",
            )
        if run.past is not None:
            return await doubt.carried(self)
        return await self.live(1)

    async def traced(self) -> Any:
        """Perform inside a span."""
        spec = self.spec
        with trace.span(
            "holdfast.durable.step", position=self.position, name=spec.name, effect=spec.effect.cls
        ) as span:
            value = await self.perform(spanned=True)
            outcome = self.outcome if isinstance(self.outcome, type) else type(self.outcome)
            span.set(attempt=self.attempt, outcome=outcome.__name__.lower())
            return value

    async def perform_recorded(self) -> StepRecord[Any]:
        """Return the value together with how it came about."""
        value = await self.perform()
        outcome = self.outcome if self.outcome is not Replayed and self.outcome is not Live else self.outcome(value)
        return StepRecord(self.position, self.key(), self.attempt, value, outcome)

    def decode(self, payload: bytes) -> Any:
        """Decode a recorded value to the declared type."""
        try:
            return self.spec.codec.decode(payload)
        except CodecError as error:
            raise self.unfit(error) from error

    def unfit(self, error: CodecError) -> ResultUnserializable:
        """Say that a recorded value is not of the declared type."""
        return ResultUnserializable(
            f"step {self.spec.name!r} at {self.position} of execution {self.run.id!r}: the recorded value does not "
            f"fit the declared type: {error}",
            hint="keep the result type readable for old records, or give the step a new version",
        )

    # --- row 3: own records ---

    async def recorded(self, records: list[Record]) -> Any:
        """Act on the records at the position."""
        run = self.run
        for record in records:
            if record.shape != self.shape or record.kind != "step":
                asked = describe("step", self.spec.name, self.spec.effect.cls, self.shape)
                run.diverge(self.position, record, asked)
        run.advise(records[0], self.spec)
        verdict = machine.judge(records)
        match verdict:
            case machine.Settled(record):
                return await self.settled(record)
            case machine.Ambiguous(attempt, record):
                return await doubt.ambiguous(self, attempt, machine.reruns(records))
            case machine.Due(attempt, due_at):
                if due_at is not None and due_at > run.clock.now():
                    await self.wait_retry(due_at)
                self.tries = machine.tries(records)
                return await self.live(attempt)
            case machine.Held():
                return doubt.stop(self)
        return await self.live(1)

    async def settled(self, record: Record) -> Any:
        """Return or raise a recorded outcome."""
        run = self.run
        run.replayed[self.spec.effect.cls] += 1
        self.attempt = record.attempt
        payload = record.payload
        if payload is not None and payload[:1] == bytes([SPILLED]):
            async with run.database.read() as tx:
                payload = await read_spilled(tx, run.id, payload)
        if record.outcome == "failed":
            raise self.failure(payload or b"")
        if record.outcome == "no_value":
            raise Lost.decode(payload or b"").error(self.spec.name, self.position)
        if record.outcome == "assumed":
            try:
                return self.assumed(record.policy, payload or _NONE)
            except CodecError as error:
                if record.policy == "operator":
                    await doubt.reopen(self, record, error)
                raise self.unfit(error) from error
        self.outcome = Replayed
        return self.decode(payload or b"")

    def assumed(self, vouched: str | None, payload: bytes) -> Any:
        """Return an assumed value. The substitute None fits every type."""
        by: Literal["policy", "probe", "operator"] = "policy"
        if vouched == "probe":
            by = "probe"
        elif vouched == "operator":
            by = "operator"
        substitute = by == "policy" and payload == _NONE
        value = None if substitute else self.spec.codec.decode(payload)
        self.outcome = Assumed(value, by)
        return value

    def failure(self, payload: bytes) -> Exception:
        """Rebuild a recorded failure as the program saw it."""
        recorded = _failure_codec.decode(payload)
        error = recorded.rebuild(self.spec.raises)
        if error is None:
            error = StepFailed(
                f"step {self.spec.name!r} at {self.position} failed: {recorded.error_type}: {recorded.message}",
                hint="handle it, or Holdfast.resume the failed execution to try again",
                position=self.position,
                error_type=recorded.error_type,
                error_message=recorded.message,
                attempts=recorded.attempt,
            )
        return mark(error, self.position)

    # --- rows 5 and 6: run ---

    async def intend(self, rows: journal.Rows, *, degradable: bool = True) -> None:
        """Write an intent and wait for it; without it the effect does not begin, unless it may run degraded."""
        run = self.run
        if run.losing and run.has_lost(self.scope.path, self.index):
            raise asyncio.CancelledError("a sibling of first() has won")
        future = run.loop.create_future()
        item = run.item(rows, 512, "intent", future)
        try:
            if run.writer.degraded:
                run.unride(run.rode)
                raise Overdue(item)  # noqa: TRY301 - one way out for what was not acknowledged
            if not run.writer.offer(item):
                await run.hand_over(item)
            row = await future
        except asyncio.CancelledError:
            if item.state != "new" and not run.writer.withdraw(item):
                self.abandon()
            raise
        except Overdue as overdue:
            if self.spec.effect.kind != "cost_bearing" or not degradable:
                self.take_back(item, len(rows))
                raise self.refuse_unavailable() from overdue
            if item.state == "new" and not run.send(rows, 512, "intent"):
                raise self.refuse_unavailable() from overdue
            run.note_degraded(self.spec.name, self.position)
            return
        run.acknowledged(row)
        if run.over:
            run.refuse()
        if points.armed:
            points.reach("intent.acked")

    def take_back(self, item: Append, own: int) -> None:
        """Keep the last `own` rows of an append out of the journal, and what rode with them in."""
        if item.state != "new" and self.run.writer.withdraw(item):
            self.run.unride(item.rows[:-own])

    def refuse_unavailable(self) -> JournalUnavailable:
        """Poison the context: a guarded effect cannot be recorded, so nothing more is done."""
        error = self.run.unavailable()
        self.run.halt(error)
        return error

    async def live(self, attempt: int, *, intended: bool = False, reruns: int = 0) -> Any:
        """Run attempts until one has an outcome, and record it."""
        run, spec = self.run, self.spec
        if run.resumed_at:
            run.caught_up()
        while True:
            if not run.owner.fresh():
                await run.engine.renewed(run)
            if run.over:
                run.refuse()
            if run.threads.running:
                await run.threads.ended(self.key())
            self.attempt = attempt
            handle = StepHandle(self, attempt)
            handle.task = _current_task(run.loop)
            run.inflight.add(handle)  # from here on nothing ends over it
            try:
                if spec.guarded and not intended:
                    await self.intend([self.entry(OPENED, attempt)])
                intended = False
                value = await self.operate(handle)
            except _Broken as broken:
                self.tries += 1
                due_at = await self.failed(broken.error, attempt, self.tries)
            else:
                handle.task = None  # it has happened: no cancellation may come between it and its record
                return await self.record(*self.encoded(value, attempt, handle))
            finally:
                run.ended(handle)
            if due_at < 0:
                return await doubt.ambiguous(self, attempt, reruns)
            await self.wait_retry(due_at)
            attempt += 1

    async def operate(self, handle: StepHandle) -> Any:
        """Run the operation once. What it raised is told apart from what befell us."""
        token = _effect.set(handle)
        try:
            if self.bounded:
                return await self.run_bounded(handle)
            if self.args is None:
                return await self.fn(handle)
            return await self.fn(*self.args, **self.kwargs)
        except Exception as error:
            raise _Broken(error) from error
        except BaseException as error:
            self.stopped(handle, error)
            raise
        finally:
            _effect.reset(token)

    def stopped(self, handle: StepHandle, error: BaseException) -> None:
        """An effect was stopped: nothing is known of a guarded one. Our own cancellation becomes the halt."""
        run = self.run
        if handle.guarded:
            self.abandon()
            return
        ours = run.halted is not None and isinstance(error, asyncio.CancelledError)
        if ours and handle.task is not None and handle.task.cancelling() and handle.task.uncancel() == 0:
            run.refuse()

    def abandon(self) -> None:
        """Remember an open intent that the program has given up: it is settled before anything else is done."""
        run = self.run
        run.abandoned = run.abandoned or {}
        run.abandoned[(self.scope.path, self.index)] = self

    async def run_bounded(self, handle: StepHandle) -> Any:
        """Run an operation in a thread, within its timeout, or both."""
        run, spec = self.run, self.spec
        args = (handle,) if self.args is None else self.args
        operation = run.threads.operate(self, args) if self.threaded else self.fn(*args, **self.kwargs)
        if spec.timeout is None:
            value = await operation
        else:
            value = await within(run, operation, spec.timeout.total_seconds())
        return await value if self.threaded and inspect.isawaitable(value) else value

    # --- row 7: record ---

    def encoded(self, value: Any, attempt: int, handle: StepHandle) -> tuple[journal.Rows, int, Any, Exception | None]:
        """Encode a result: the rows of its outcome, their size, the value as replay will give it, or what is wrong."""
        run, spec = self.run, self.spec
        if points.armed:
            points.reach("effect.returned")
        if spec.guarded and handle.key_missed:
            run.audit(
                "key_unused", position=self.position, effect=spec.effect.cls, key=self.key(), policy=spec.policy_name
            )
        rows: journal.Rows = []
        lost: Lost | None = None
        try:
            payload = spec.codec.encode(value)
            if type(value) is not spec.exact:
                value = spec.codec.decode(payload)
        except CodecError as error:
            lost = Lost("unserializable", str(error)[:1000], 0, 0)
        else:
            size = len(payload)
            if size > run.payload_max:
                most = run.engine.config.spill_bytes_max if spec.spill else run.payload_max
                if size > most:
                    lost = Lost("too_large", "", size, most)
                else:
                    payload, rows = spill(run.pk, payload)
        if points.armed:
            points.reach("outcome.encoded")
        if lost is not None:
            rows = [self.entry(OUTCOME, attempt, outcome="no_value", payload=lost.encode())]
            return rows, 256, None, mark(lost.error(spec.name, self.position), self.position)
        rows.append(
            (
                "journal.append",
                (
                    run.pk, run.generation, self.scope.path, self.index, OUTCOME, attempt, "step", spec.name,
                    spec.effect.cls, spec.effect.kind, spec.policy_name, self.shape, self.key(), "value", payload,
                    None, None, run.fence, run.clock.now(),
                ),
            )
        )  # fmt: skip
        return rows, size + 256, value, None

    async def record(self, rows: journal.Rows, size: int, value: Any = None, error: Exception | None = None) -> Any:
        """Hand an outcome to the writer; return the value, or raise the error, when it is durable.

        Or as soon as the class allows: what is not guarded goes on without its journal, degraded.
        """
        run, spec = self.run, self.spec
        run.bytes += size
        if not (run.pipelined and not spec.guarded and run.send(rows, size, "outcome", self.late)):
            future = run.loop.create_future()
            item = run.item(rows, size, "outcome", future)
            try:
                if not run.writer.offer(item):
                    await run.hand_over(item)
                if run.writer.degraded:
                    raise Overdue(item)  # noqa: TRY301 - one way out for what was not acknowledged
                row = await future
            except asyncio.CancelledError:
                item.settled = self.late  # the outcome is on its way; only its refusal is still news
                raise
            except Overdue as overdue:
                item.settled = self.late
                if item.state == "new" or (spec.guarded and spec.effect.kind != "cost_bearing"):
                    raise self.refuse_unavailable() from overdue
                run.note_degraded(spec.name, self.position)
            else:
                if row is None:
                    self.late(durable=False)
                if row is None or row.request is not None:
                    run.acknowledged(row)
                if points.armed:
                    points.reach("outcome.acked")
        run.ran[spec.effect.cls] += 1
        self.outcome = Live
        if error is not None:
            raise error
        return value

    def late(self, durable: bool) -> None:  # noqa: FBT001 - the writer's callback
        """An outcome was refused: the execution is no longer ours. Leave a trace without the payload."""
        if not durable:
            self.run.engine.late_result(self.run, self.position, self.spec, self.key())

    # --- failures ---

    async def failed(self, error: Exception, attempt: int, tries: int) -> int:
        """Act on what an operation raised: record the failure, and raise it when it is final.

        Returns:
            When the next attempt is due, or -1 when the fate of this one is unknown.
        """
        run, spec = self.run, self.spec
        if error is run.halted or (isinstance(error, NestedEffect) and not spec.guarded):
            raise error
        unknown = isinstance(error, (OutcomeUnknown, *spec.effect.unknown_on)) or hasattr(error, OVERRUN_MARK)
        if spec.guarded and unknown:
            return -1
        pause = machine.pause_before_next(spec.retry, tries, error, random.random())  # noqa: S311 - a pause, no secret
        failure = Failure.of(error, attempt, spec.raises, run.engine.config, retryable=pause is not None)
        payload = failure.encode()
        if pause is None:
            await self.record([self.entry(OUTCOME, attempt, outcome="failed", payload=payload)], len(payload) + 256)
            run.engine.metrics.steps.add(1, spec.effect.cls, "failed")
            if failure.args is not None:
                raise mark(error, self.position)
            raise self.failure(payload) from error
        run.engine.metrics.retries.add(1)
        due_at = run.clock.now() + int(pause * 1e6)
        rows = [self.entry(FAILED, attempt, outcome="failed", payload=payload, due_at=due_at)]
        await self.record(rows, len(payload) + 256)
        return due_at

    async def wait_retry(self, due_at: int) -> None:
        """Rest until the next attempt is due; the execution is `waiting` when nothing else runs in it."""
        run = self.run
        if due_at <= run.clock.now():
            return
        alone = not run.inflight and not run.waiting
        if alone:
            run.waiting = True
            run.send(run.move("waiting", waiting_on="retry"), 256)
        try:
            await run.rest(due_at)
        finally:
            if alone and run.waiting:
                run.waiting = False
                if not run.over:
                    run.send(run.move("running"), 256)


_NONE = encode(None)

OVERRUN_MARK = "_holdfast_overrun"
"""Attribute of a TimeoutError that the step's own `timeout` raised: the operation may have done anything."""


def mark(error: Exception, position: str) -> Exception:
    """Let an exception remember which step raised it."""
    setattr(error, POSITION_MARK, position)
    return error


async def within(run: Run, operation: Any, seconds: float) -> Any:
    """Await an operation for at most `seconds` of the engine's clock, else raise TimeoutError."""
    task = _current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = run.clock.call_later(seconds, expire)
    try:
        return await operation
    except asyncio.CancelledError:
        if expired and task.uncancel() == 0:
            overrun = TimeoutError(f"no answer within {seconds:g} s")
            setattr(overrun, OVERRUN_MARK, True)
            raise overrun from None
        raise
    finally:
        timer.cancel()
