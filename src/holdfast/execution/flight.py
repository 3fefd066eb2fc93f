"""Fly one execution in this process: admit it, run its generations, settle how it ends.

One conductor per execution and process: whoever asks for the same id here shares it. It owns the order
of things (claim, act, settle) and nothing else; steps take care of themselves, and who may run what is
decided by `machine`.

Invariants:
    - The function runs only under a claim that is on disk, or, for an id nobody else can know, one that
      becomes durable with the first entry.
    - The status follows the poison: what halted the run decides how it ends, whatever the program did.
    - An end is reported only when it is on disk.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from holdfast.core import points, trace
from holdfast.core.codec import encode
from holdfast.core.errors import Closed, CodecError, LeaseLost
from holdfast.execution import journal, keys, machine
from holdfast.execution.claims import audit_claim, owner_dead, settle_kept
from holdfast.execution.context import NewChapter, Suspend, deadline_exceeded
from holdfast.execution.doubt import assume_skipped, needs_decision, settle_abandoned
from holdfast.execution.ends import busy, conflict, ended, failed, too_large
from holdfast.execution.errors import (
    DeadlineExceeded,
    ExecutionCanceled,
    IntegrityError,
    JournalUnavailable,
    NeedsDecision,
    ReplayDivergence,
    StepCapExceeded,
)
from holdfast.execution.flow import Context
from holdfast.execution.payloads import Failure
from holdfast.execution.request import Request
from holdfast.execution.scope import _scope
from holdfast.store.owners import Lock

if TYPE_CHECKING:
    from holdfast.execution.declare import Durable
    from holdfast.execution.engine import Holdfast
    from holdfast.store.database import Row

points.register("claim.updated", "generation.opened")


@dataclass(frozen=True, slots=True)
class Ended:
    """The execution has ended, with this output."""

    value: Any
    row: Row | None = None


class Flight:
    """One execution on its way in this process."""

    def __init__(self, engine: Holdfast, request: Request) -> None:
        self.engine = engine
        self.request = request
        self.id = request.id
        self.run: Context | None = None
        self.task: asyncio.Task[Any] | None = None
        self.waiters: set[asyncio.Future[Any]] = set()
        self.kept = False
        """Whether a handle keeps it going although nobody waits."""
        self.created = False
        self.known = False
        self.crash_looped = False
        self.error: BaseException | None = None
        self.admitted: asyncio.Future[None] | None = None
        self.ended = False

    # --- waiting for it ---

    async def departed(self) -> None:
        """Return when it is known what becomes of the request: claimed, created, or somebody else's."""
        if not self.known and not self.ended:
            if self.admitted is None:
                self.admitted = self.engine.loop.create_future()
            await asyncio.shield(self.admitted)
        elif not self.known and self.error is not None:
            raise self.error

    async def result(self) -> Any:
        """Wait for the end; the last waiter that is cancelled cancels it, unless a handle keeps it."""
        if self.ended:
            if self.error is not None:
                raise self.error
            return self.output
        waiter: asyncio.Future[Any] = self.engine.loop.create_future()
        self.waiters.add(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not self.waiters - {waiter} and not self.kept and self.task is not None and not self.ended:
                self.task.cancel()
                await asyncio.wait([self.task])
            raise
        finally:
            self.waiters.discard(waiter)

    def deliver(self, value: Any, error: BaseException | None) -> None:
        """Tell everybody who waits."""
        self.ended = True
        self.output, self.error = value, error
        admitted = self.admitted
        if admitted is not None and not admitted.done():
            if error is None:
                admitted.set_result(None)
            else:
                admitted.set_exception(error)
                admitted.exception()
        for waiter in self.waiters:
            if not waiter.done():
                if error is None:
                    waiter.set_result(value)
                else:
                    waiter.set_exception(error)

    async def fly(self) -> None:
        """Run it to its end, or to where it rests, and deliver what came of it."""
        value: Any = None
        error: BaseException | None = None
        try:
            value = await self._fly()
        except (KeyboardInterrupt, SystemExit) as stop:
            error = stop
            raise
        except BaseException as caught:  # noqa: BLE001 - delivered to whoever waits
            error = caught
        finally:
            self.engine.landed(self)
            self.deliver(value, self._told(error))
            if self.run is not None:
                self.engine.flying.discard(self.run.pk)
                self.run.part()

    def _told(self, error: BaseException | None) -> BaseException | None:
        if isinstance(error, Suspend) or (isinstance(error, asyncio.CancelledError) and self.engine.closing):
            return Closed(
                "the ledger was closed while the execution was under way", "open it again and run the same id"
            )
        return error

    async def _fly(self) -> Any:
        while True:
            admitted = await self.admit()
            if isinstance(admitted, Ended):
                return admitted.value
            assert self.run is not None
            assert self.request.fn is not None
            try:
                if not trace.enabled:
                    return await self._generations(self.run, self.request.fn)
                with trace.span("holdfast.durable.execution", execution=self.id, kind=self.request.kind):
                    return await self._generations(self.run, self.request.fn)
            except LeaseLost:
                self.run = None  # somebody else has it now: wait for its end
            except Suspend as suspend:
                self.run = None
                if suspend.why != "paused":
                    raise

    # --- admission ---

    async def admit(self) -> Context | Ended:
        """Claim the execution, wait for somebody else's end of it, or answer from the record."""
        engine, request = self.engine, self.request
        if request.minted is not None:
            created = await self._create()
            if created is not None:
                return created
        while True:
            async with engine.database.read() as tx:
                row = await journal.get(tx, self.id)
            if (
                row is not None
                and row.owner_id == engine.database.owner.id
                and await settle_kept(engine, self.id, row.pk)
            ):
                continue
            if row is None:
                if not request.create:
                    raise engine.unknown(self.id)
                created = await self._create()
                if created is not None:
                    return created
                continue
            lock, dead = owner_dead(engine, row)
            try:
                answer = machine.admit(row, owner_dead=dead, asked_kind=request.kind, asked_hash=request.input_hash)
                match answer:
                    case machine.Proceed():
                        with trace.span("holdfast.durable.claim", execution=self.id):
                            run = await self._claim(row, lock)
                        if run is not None:
                            return run
                    case machine.Replay(status):
                        if status in ("failed", "aborted") and request.reopen:
                            await engine.resume(self.id)
                        else:
                            return self.replay(row)
                    case machine.Conflict(field):
                        raise conflict(self.id, field, row.kind, request.kind)
                    case machine.Blocked():
                        raise await self._blocked(row)
                    case machine.InFlight(why):
                        if request.on_busy == "raise":
                            raise busy(row, why)
                        self._settle_admission(created=False)
                        await engine.database.wait(f"execution:{self.id}", engine.config.poll_ms / 1000)
            finally:
                if lock is not None:
                    lock.release()

    def _settle_admission(self, *, created: bool) -> None:
        self.created = created
        self.known = True
        if self.admitted is not None and not self.admitted.done():
            self.admitted.set_result(None)

    async def _create(self) -> Context | None:
        """Create the execution and hold it; None when somebody else has created it first."""
        engine, request = self.engine, self.request
        config, now = engine.config, engine.clock.now()
        owner = engine.owner_id or await engine.be_owner()
        pk = engine.numbers.pop() if engine.numbers else await engine.number()
        raw = request.minted or keys.uid(engine.database.namespace, self.id)
        claimed = journal.created(pk, self.id, raw, request.kind, os.urandom(32), request.deadline_at, request.input)
        run = Context(engine, claimed)
        row = (
            pk, self.id, raw, request.kind, "running", 1, 0, now, request.input, request.input_hash or b"",
            claimed.seed, owner, 1, request.deadline_at, config.code_version, now, now, now,
        )  # fmt: skip
        run.riding = [
            ("executions.create", row),
            ("generations.open", (pk, 1, 0, "start", None, config.code_version, now)),
            ("trail.add", (pk, 1, "running", None, owner, 1, now)),
        ]
        run.riding_size = 512 + len(request.input or b"")
        engine.flying.add(pk)
        self.run = run
        if request.minted is None or self.kept:
            try:
                await run.store([])
            except LeaseLost:
                engine.flying.discard(pk)
                self.run = None
                return None
        self._settle_admission(created=True)
        return run

    async def _claim(self, row: Row, lock: Lock | None) -> Context | None:
        """Take the execution over; None when somebody else was quicker or it was given up."""
        engine = self.engine
        config, now = engine.config, engine.clock.now()
        owner = await engine.be_owner()
        async with engine.database.write() as tx:
            if lock is not None:
                await tx.run("owners.end", [(row.owner_id,)])
            claimed = await journal.claim(
                tx, row, owner=owner, now=now, code_version=config.code_version,
                stalled_max=config.stalled_recoveries_max,
            )  # fmt: skip
            if claimed is not None and claimed.fence == 0:
                await journal.shift(
                    tx, row, "aborted", now=now, reason="crash_loop", deadline_at=row.deadline_at, ended=True
                )
                detail = {"reason": "crash_loop", "recoveries": row.recoveries}
                await journal.audit(tx, row.id, row.generation, now, "aborted", detail=detail)
            elif claimed is not None:
                await audit_claim(tx, row, now, config.code_version)
            if points.armed:
                points.reach("claim.updated")
        if lock is not None:
            lock.remove()
        if claimed is None or claimed.fence == 0:
            self.crash_looped = claimed is not None
            return None
        if row.owner_id is not None:
            engine.metrics.recoveries.add(1)
        engine.flying.add(row.pk)
        run = Context(engine, claimed)
        self.run = run
        await self._load(run)
        self._settle_admission(created=False)
        return run

    async def _load(self, run: Context) -> None:
        """Load what a resumed run must know before its first call."""
        async with self.engine.database.read() as tx:
            if run.generation > 1:
                run.past = await journal.past(tx, run.pk, run.chapter, run.generation)
            waiting = await journal.open_decisions(tx, run.pk)
        run.open_positions = tuple(each.position for each in waiting if each.generation == run.generation)

    async def _blocked(self, row: Row) -> NeedsDecision:
        async with self.engine.database.read() as tx:
            waiting = await journal.open_decisions(tx, row.pk)
        return needs_decision(self.id, tuple(each.position for each in waiting) or ("?",))

    def replay(self, row: Row) -> Ended:
        """Answer from the record, or raise how it ended."""
        fn = self.request.fn
        self._settle_admission(created=False)
        if row.status == "completed":
            codec = fn.codecs()[1] if fn is not None else None
            blob = row.output if row.output is not None else encode(None)
            return Ended(codec.decode(blob) if codec is not None else None, row)
        raise ended(row, fn.raises if fn is not None else ())

    # --- generations ---

    async def _generations(self, run: Context, fn: Durable[..., Any]) -> Any:
        request = self.request
        fn.codecs()  # an annotation that cannot be decoded to is said before anything is done
        if request.call is not None and run.chapter == 0:
            args, kwargs = request.call.args, request.call.kwargs
        else:
            args, kwargs = await self._recorded_input(run, fn)
        try:
            while True:
                if run.open_positions:
                    run.halt(needs_decision(run.id, run.open_positions))
                value, error = await self._generation(run, fn, args, kwargs)
                again = await self.conclude(run, value, error)
                if again is None:
                    return self.output
                args, kwargs = again if again else (args, kwargs)
        finally:
            self.engine.flying.discard(run.pk)

    async def _recorded_input(self, run: Context, fn: Durable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return fn.unpack(run.input_blob or encode({}))
        except CodecError as error:
            await self.release(run, "pending")
            self.engine.flying.discard(run.pk)
            raise CodecError(
                f"execution {run.id!r}: the recorded input does not fit {fn!r}: {error}",
                "keep the parameters readable for executions already begun",
                code="codec.decode",
            ) from error

    async def _generation(
        self, run: Context, fn: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, BaseException | None]:
        """Run the function once, from its start."""
        if run.deadline_at is not None and self.engine.clock.now() >= run.deadline_at:
            run.halt(deadline_exceeded(run.id, run.deadline_at))
        if run.halted is not None:
            return None, run.halted
        if fn.plain:
            return await self.engine.threads.program(run, fn.fn, args, kwargs)
        token = _scope.set(run.root.bind())
        run.program = self.task
        try:
            return await fn.fn(*args, **kwargs), None
        except BaseException as error:  # noqa: BLE001 - conclude decides what it means
            return None, error
        finally:
            _scope.reset(token)
            run.program = None

    # --- ends ---

    output: Any = None

    async def conclude(
        self, run: Context, value: Any, error: BaseException | None
    ) -> tuple[()] | tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Record how a generation ended.

        Returns None when the execution has completed, otherwise what the next generation starts with (an
        empty tuple: the same arguments). Raises every other end.
        """
        run.count()
        if run.leaving is not None:
            run.leaving.cancel()
        if isinstance(error, points.Crashed) or self.engine.crashed:
            raise error if isinstance(error, points.Crashed) else points.Crashed("the process crashed")
        if error is not None or not run.tidy:
            await self._tidy(run, error)
        cause = run.halted if run.halted is not None else error
        match cause:
            case None:
                await self._complete(run, value)
                return None
            case NewChapter():
                return await self._next_chapter(run, cause)
            case ReplayDivergence():
                await self._diverged(run, cause)
                return ()
            case LeaseLost() | points.Crashed():
                raise cause
            case NeedsDecision():
                await self.release(run, "needs_decision")
                await self._tell_positions(run, cause)
                raise cause
            case ExecutionCanceled():
                await self._settle(run, "canceled", cause.reason or None)
                await self._audit_close(run)
                raise cause
            case DeadlineExceeded():
                failure = Failure.of(cause, 1, (), self.engine.config)
                await self._settle(run, "failed", "deadline", failure=failure.encode())
                raise failed(run.id, failure) from cause
            case StepCapExceeded() | IntegrityError():
                reason = "step_cap" if isinstance(cause, StepCapExceeded) else "integrity"
                run.audit("aborted", detail={"reason": reason})
                await self._settle(run, "aborted", reason)
                raise cause
            case Suspend(why="paused"):
                run.audit("pause")
                await self.release(run, "waiting", waiting_on="paused")
            case Suspend() | asyncio.CancelledError():
                await self.release(
                    run, "waiting" if run.waiting else "pending", waiting_on="retry" if run.waiting else None
                )
            case JournalUnavailable() if cause is run.halted:
                await self.release(run, "pending")
            case Exception():
                await self._fail(run, cause)
            case _:
                await self.release(run, "pending")
        raise cause

    async def _tidy(self, run: Context, error: BaseException | None) -> None:
        """Before an end: the tail, effects in flight, and intents that nobody answers for."""
        try:
            if error is None and run.halted is None:
                await run.check_tail(run.root)
            if run.inflight and not await run.drain(self.engine.config.drain_ms / 1000):
                await self.engine.cancel_effects(run)
            if run.halted is None and isinstance(error, Exception | None):
                await self._settle_intents(run)
        except Exception as found:  # noqa: BLE001 - it halted the run, or it is how the run ends
            if run.halted is None:
                run.halt(found)
        except LeaseLost:
            pass

    async def _settle_intents(self, run: Context) -> None:
        """No generation ends over an open intent of its own."""
        await settle_abandoned(run)
        if run.fresh or run.replay_only:
            return
        async with self.engine.database.read() as tx:
            rows = await tx.all("journal.intents", execution_pk=run.pk, generation=run.generation)
        for row in rows:
            if row.effect != "exactly_once" or row.attempt == 0:
                continue
            position = keys.position(row.scope, row.idx)
            if row.policy == "skip":  # its call was not made, so what stands in for its value is read by nobody
                await assume_skipped(run, row, position)
                continue
            audit = run.audit_row("ambiguity", position=position, effect=row.effect, key=row.key, policy=row.policy,
                                  detail={"decision": "asked", "reason": "abandoned"})  # fmt: skip
            opened = (run.pk, run.generation, position, "abandoned", row.key, run.clock.now())
            await run.store([audit, ("decisions.open", opened)])
            run.halt(needs_decision(run.id, (position,)))

    async def _complete(self, run: Context, value: Any) -> None:
        fn = self.request.fn
        try:
            codec = fn.codecs()[1] if fn is not None else None
            output = codec.encode(value) if codec is not None else encode(value)
            if codec is not None:
                value = codec.decode(output)  # what the caller sees now is what the record will give
        except CodecError as error:
            await self._fail(run, error)
        if len(output) > run.payload_max:
            await self._fail(run, too_large(len(output), run.payload_max))
        if run.past is not None:
            for item in run.past.unclaimed():
                run.audit("unclaimed_effects", effect=item.effect, key=item.key, detail={"name": item.name})
        await self._settle(run, "completed", None, output=output)
        self.output = value

    async def _fail(self, run: Context, error: Exception) -> NoReturn:
        """Record a failure and raise it."""
        fn = self.request.fn
        raises = fn.raises if fn is not None else ()
        positions = machine.failed_positions(error)
        failure = Failure.of(error, 1, raises, self.engine.config, positions=positions)
        if await run.root.ahead_of(run.root.counter) is not None:
            run.audit("early_failure", detail={"type": failure.error_type})
        await self._settle(run, "failed", failure.error_type, failure=failure.encode())
        if failure.args is not None or fn is None:
            raise error
        raise failed(run.id, failure) from error

    async def _settle(
        self, run: Context, status: str, reason: str | None, *, output: bytes | None = None,
        failure: bytes | None = None, rows: journal.Rows | None = None,
    ) -> None:  # fmt: skip
        """Write a terminal status, and return when it is on disk."""
        now = run.clock.now()
        settle = (status, reason, output, failure, run.bytes, now, now, run.pk)
        run.over = True
        every = [*(rows or []), run.trail(status, reason), ("executions.settle", settle)]
        await run.store(every, 512 + len(output or b"") + len(failure or b""), "finish")
        self.engine.database.wake(f"execution:{run.id}")

    async def _audit_close(self, run: Context) -> None:
        async with self.engine.database.write() as tx:
            await tx.run("decisions.close", [("canceled", run.clock.now(), run.pk)])

    async def _tell_positions(self, run: Context, cause: NeedsDecision) -> None:
        async with self.engine.database.read() as tx:
            waiting = await journal.open_decisions(tx, run.pk)
        cause.positions = tuple(each.position for each in waiting) or cause.positions

    async def release(self, run: Context, status: str, *, waiting_on: str | None = None) -> None:
        """Give the execution up, keeping what it is waiting for; what cannot be written now is left to recovery."""
        rows = run.move(status, waiting_on=waiting_on, release=True)
        if isinstance(run.halted, JournalUnavailable):
            run.send(rows, 256)  # it lands when the journal is back
            return
        try:
            held = await run.store(rows)
            self.engine.database.wake(f"execution:{run.id}")
            if held.request is not None and waiting_on != "paused":
                await self.engine.honour(run.id, held.request)
        except (LeaseLost, JournalUnavailable, Closed):
            pass

    # --- the next pass ---

    async def _diverged(self, run: Context, cause: ReplayDivergence) -> None:
        """Open the next generation, or abort."""
        engine = self.engine
        engine.metrics.divergences.add(1)
        async with engine.database.read() as tx:
            opened = await tx.all("generations.list", execution_pk=run.pk)
        count = sum(each.chapter == run.chapter for each in opened)
        restart = self.request.on_divergence == "restart"
        now = run.clock.now()
        detail = {"stored": machine.shown(cause.stored), "asked": machine.shown(cause.asked)}
        rows: journal.Rows = [
            ("generations.close", (now, "diverged", cause.report, run.pk, run.generation)),
            run.audit_row("divergence", position=cause.position, detail=detail),
        ]
        if not restart or count >= engine.config.generations_max:
            rows.append(run.audit_row("aborted", detail={"reason": "divergence"}))
            await self._settle(run, "aborted", "divergence", rows=rows)
            raise cause
        await self._open_generation(run, rows, run.chapter, "divergence", run.input_blob)
        if self.request.fn is None:
            await self.release(run, "pending")
            raise cause
        async with engine.database.read() as tx:
            run.past = await journal.past(tx, run.pk, run.chapter, run.generation)

    async def _open_generation(
        self, run: Context, rows: journal.Rows, chapter: int, cause: str, blob: bytes | None
    ) -> None:
        config, now, number = self.engine.config, run.clock.now(), run.generation + 1
        owner = self.engine.database.owner.id
        moved = ("running", None, None, number, chapter, False, False, run.bytes, now, run.pk)
        rows = [
            *rows,
            ("generations.open", (run.pk, number, chapter, cause, blob, config.code_version, now)),
            ("trail.add", (run.pk, number, "running", cause, owner, run.fence, now)),
            ("executions.move", moved),
        ]
        await run.store(rows, 1024 + len(blob or b""))
        if points.armed:
            points.reach("generation.opened")
        run.next_generation(chapter)

    async def _next_chapter(self, run: Context, signal: NewChapter) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """End the chapter: what came before is durable first, for the append waits for it."""
        fn = self.request.fn
        if fn is None:
            raise signal
        arguments = fn.signature.bind(signal.arguments, signal.keywords)
        blob, _ = fn.pack(arguments)
        run.halted = None
        rows: journal.Rows = [("generations.close", (run.clock.now(), "continued", None, run.pk, run.generation))]
        await self._open_generation(run, rows, run.chapter + 1, "continue_as_new", blob)
        run.input_blob = blob
        return fn.call_with(arguments)
