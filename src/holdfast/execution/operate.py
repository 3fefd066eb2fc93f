"""What operators and supervisors do to executions they do not run.

Every verb is one transaction that reads the execution's row, decides, and writes under the fence it read;
when the row changed meanwhile it looks again. What an owner must hear is left as a request in the row.

Invariants:
    - A verb repeated has the effect of one.
    - Nothing is taken from a live owner without `force` or the end of its grace.
    - A decision, its effect on the journal and its audit are one transaction.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.core import points
from holdfast.core.codec import encode
from holdfast.core.config import config_path, ledger_target
from holdfast.core.errors import Closed, ConfigError, LimitError, StoreError
from holdfast.execution import journal, keys, machine
from holdfast.execution.claims import owner_alive
from holdfast.execution.doubt import needs_decision
from holdfast.execution.effects import Verdict
from holdfast.execution.errors import ExecutionFinished, NoDecisionOpen
from holdfast.execution.payloads import Failure
from holdfast.store.owners import Alive, Dead, probe

if TYPE_CHECKING:
    from holdfast.execution.context import Run
    from holdfast.execution.declare import Durable
    from holdfast.execution.effects import StepDescriptor
    from holdfast.execution.engine import Holdfast
    from holdfast.store.database import Row, Tx

points.register("decision.committed", "cancel.requested")

NOTE_CHARS_MAX = 2000
OWNER_KEPT_US = 24 * 3600 * 1_000_000
"""How long the row of a dead owner is kept for people to look at, from the end of its lease."""
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Canceled:
    """It is canceled."""


@dataclass(frozen=True, slots=True)
class Paused:
    """It is paused."""


@dataclass(frozen=True, slots=True)
class Requested:
    """Its live owner has been asked."""


@dataclass(frozen=True, slots=True)
class AlreadyTerminal:
    """It had ended before."""

    status: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """There is no such execution."""


CancelOutcome: TypeAlias = Canceled | Paused | Requested | AlreadyTerminal | NotFound
"""What `cancel` and `pause` answer."""


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """What one recovery found.

    Attributes:
        resumed: Ids taken over and started.
        unknown_kind: Ids of kinds, or versions, this process does not run.
        crash_loops: Ids aborted because they were recovered too often without progress.
        live_count: Executions that live owners have.
    """

    resumed: tuple[str, ...]
    unknown_kind: tuple[str, ...]
    crash_loops: tuple[str, ...]
    live_count: int


def configured_ledger() -> str:
    """Return the ledger that environment and configuration file name."""
    return str(ledger_target(None, config_path(None, os.environ), os.environ))


def _check_note(text: str, what: str) -> None:
    if len(text) > NOTE_CHARS_MAX:
        raise LimitError(
            f"the {what} has {len(text)} characters, the limit is {NOTE_CHARS_MAX}", "shorten it",
            limit="note_chars", maximum=NOTE_CHARS_MAX, actual=len(text),
        )  # fmt: skip


# --- cancel, pause, resume ----------------------------------------------------------------------------


async def cancel(engine: Holdfast, id: str, *, reason: str, force: bool) -> CancelOutcome:
    """See `Holdfast.cancel`."""
    _check_note(reason, "reason")
    return await _stop(engine, id, "cancel", reason, force=force)


async def pause(engine: Holdfast, id: str) -> CancelOutcome:
    """See `Holdfast.pause`."""
    return await _stop(engine, id, "pause", "", force=False)


async def honour(engine: Holdfast, id: str, request: str) -> None:
    """Act on a request that no owner is left to hear."""
    word, _, reason = request.partition(":")
    await _stop(engine, id, word, reason, force=False)


async def _stop(engine: Holdfast, id: str, word: str, reason: str, *, force: bool) -> CancelOutcome:
    while True:
        outcome = None
        async with engine.database.write() as tx:
            row = await journal.get(tx, id)
            if row is None:
                return NotFound()
            if row.status in machine.TERMINAL:
                return AlreadyTerminal(row.status)
            now = engine.clock.now()
            alive = owner_alive(engine, row)
            expired = (row.request or "").startswith("cancel") and (
                row.request_at + engine.config.cancel_grace_ms * 1000 <= now
            )
            if alive and not (word == "cancel" and (force or expired)):
                outcome = await _ask_owner(tx, row, word, reason, now)
            elif word == "cancel":
                outcome = await _cancel_now(tx, row, reason, now)
            elif row.status == "waiting" and row.waiting_on == "paused":
                return Paused()
            elif await journal.shift(tx, row, "waiting", now=now, waiting_on="paused", deadline_at=row.deadline_at):
                await journal.audit(tx, row.id, row.generation, now, "pause")
                outcome = Paused()
            tx.notify(f"execution:{id}")
        if outcome is not None:
            if isinstance(outcome, Requested) and id in engine.flights and engine.flights[id].run is not None:
                run = engine.flights[id].run
                assert run is not None
                run.requested(f"{word}:{reason}")
            return outcome


async def _ask_owner(tx: Tx, row: Row, word: str, reason: str, now: int) -> CancelOutcome | None:
    if row.request is not None and row.request.startswith(("cancel", word)):
        return Requested()
    asked = await tx.one("executions.request", request=f"{word}:{reason}", request_at=now, pk=row.pk, fence=row.fence)
    if asked is None:
        return None
    await journal.audit(tx, row.id, row.generation, now, word, detail={"requested": True})
    if points.armed:
        points.reach("cancel.requested")
    return Requested()


async def _cancel_now(tx: Tx, row: Row, reason: str, now: int) -> CancelOutcome | None:
    if not await journal.shift(
        tx, row, "canceled", now=now, reason=reason or None, deadline_at=row.deadline_at, ended=True
    ):
        return None
    await tx.run("decisions.close", [("canceled", now, row.pk)])
    await journal.audit(tx, row.id, row.generation, now, "cancel", detail={"requested": False})
    return Canceled()


async def resume(engine: Holdfast, id: str, deadline_at: int | None) -> None:
    """See `Holdfast.resume`."""
    while True:
        async with engine.database.write() as tx:
            row = await journal.get(tx, id)
            if row is None:
                raise engine.unknown(id)
            refused = row.status in ("completed", "canceled") or (row.status, row.reason) == ("aborted", "integrity")
            if refused:
                raise ExecutionFinished(
                    f"execution {id!r} has ended: {row.status}" + (f" ({row.reason})" if row.reason else ""),
                    "it stays so; start another id",
                    status=row.status,
                )
            paused = row.status == "waiting" and row.waiting_on == "paused"
            if not paused and row.status not in ("failed", "aborted"):
                if (row.request or "").startswith("pause"):
                    await tx.one("executions.request", request=None, request_at=None, pk=row.pk, fence=row.fence)
                return
            now = engine.clock.now()
            generation = row.generation
            if row.status == "failed":
                await _rearm(tx, row)
            if row.status == "aborted" and row.reason == "divergence":
                generation = await _open_next(tx, row, now)
            deadline = (
                deadline_at if deadline_at is not None else (row.deadline_at if row.reason != "deadline" else None)
            )
            if await journal.shift(tx, row, "pending", now=now, generation=generation, deadline_at=deadline):
                await journal.audit(tx, row.id, generation, now, "resume", detail={"was": row.status})
                tx.notify(f"execution:{id}")
                return


async def _rearm(tx: Tx, row: Row) -> None:
    """Let the failures that ended the execution, and results that were lost, run their next attempt."""
    failure: Failure | None = machine_failure(row.failure)
    named = set(failure.positions) if failure is not None else set()
    for lost in await tx.all("journal.lost", execution_pk=row.pk, generation=row.generation):
        named_here = lost.outcome == "failed" and keys.position(lost.scope, lost.idx) in named
        if named_here or (lost.outcome == "no_value" and lost.effect != "exactly_once"):
            await tx.run("journal.rearm", [(lost.seq,)])


def machine_failure(blob: bytes | None) -> Failure | None:
    """Decode a recorded failure."""
    from holdfast.execution.payloads import FAILURE

    return FAILURE.decode(blob) if blob else None


async def _open_next(tx: Tx, row: Row, now: int) -> int:
    generation = int(row.generation) + 1
    more = await tx.one("generations.input", execution_pk=row.pk, chapter=row.chapter)
    await tx.run(
        "generations.open",
        [(row.pk, generation, row.chapter, "resume", more.input if more is not None else None, row.code_version, now)],
    )
    return generation


# --- decisions ----------------------------------------------------------------------------------------


async def decide(engine: Holdfast, id: str, position: str, decision: Verdict, *, by: str, note: str) -> None:
    """See `Holdfast.decide`."""
    _check_note(note, "note")
    if not by:
        raise ConfigError("a decision needs the name of who took it", "give by=…")
    if not isinstance(decision, Verdict):
        raise ConfigError(f"{decision!r} is not a decision", "use happened(value), not_happened() or abort()")
    if decision.answer == "unknown":
        raise ConfigError("unknown() is not a decision", "use happened(value), not_happened() or abort()")
    try:
        scope, idx = keys.parse_position(position)
    except ValueError:
        raise ConfigError(f"position {position!r} is not valid", "positions look like 3 or 3.0.2") from None
    async with engine.database.write() as tx:
        row = await journal.get(tx, id)
        if row is None:
            raise engine.unknown(id)
        now = engine.clock.now()
        records = [machine.Record(*r) for r in await journal.position(tx, row.pk, row.generation, scope, idx)]
        opened = await tx.one(
            "decisions.decide", decision=decision.answer, decided_by=by, note=note, decided_at=now,
            execution_pk=row.pk, generation=row.generation, position=position,
        )  # fmt: skip
        lost = _lost(records)
        if row.status in machine.TERMINAL and lost is None:
            opened = None
        if opened is None and (lost is None or decision.answer != "happened"):
            raise NoDecisionOpen(
                f"execution {id!r} has no open decision at {position}", "the first answer stands; see its timeline"
            )
        await _apply(tx, row, (scope, idx), records, decision, now)
        await _go_on(tx, row, decision, now)
        key = records[0].key if records else None
        await journal.audit(
            tx, id, row.generation, now, "decision", position=position, key=key, policy=decision.answer, actor=by,
            effect=records[0].effect if records else None, detail={"note": note} if note else None,
        )  # fmt: skip
        tx.notify(f"execution:{id}")
    if points.armed:
        points.reach("decision.committed")


def _lost(records: list[machine.Record]) -> machine.Record | None:
    """Return the outcome whose value was lost, if that is what stands there."""
    return next((r for r in records if r.part == machine.OUTCOME and r.outcome == "no_value"), None)


async def _apply(
    tx: Tx, row: Row, place: tuple[bytes, int], records: list[machine.Record], decision: Verdict, now: int
) -> None:
    """Write what the decision says into the journal."""
    if decision.answer == "abort":
        return
    lost = _lost(records)
    if lost is not None:
        payload = decision.blob if decision.blob is not None else encode(decision.value)
        await tx.run("journal.assume", [(payload, "operator", lost.seq)])
        return
    opened = max((r for r in records if r.part == machine.OPENED), key=lambda r: r.attempt)
    if decision.answer == "happened":
        payload = decision.blob if decision.blob is not None else encode(decision.value)
        carried = opened.carried_from
        if opened.attempt == 0 and carried is not None:
            claimed = await tx.one("journal.row", seq=carried)
            if claimed is not None and claimed.outcome in ("value", "assumed"):
                payload = claimed.payload
        fields = {"outcome": "assumed", "payload": payload, "carried_from": carried, "policy": "operator"}
        part = machine.OUTCOME
    else:
        fields = {"outcome": "not_happened", "policy": opened.policy, "carried_from": None}
        part = machine.FAILED
    statement, values = journal.entry(
        (row.pk, row.fence), row.generation, now, *place, part, opened.attempt, opened.kind, opened.name,
        opened.shape, effect=opened.effect, effect_kind=opened.effect_kind, key=opened.key, **fields,  # type: ignore[arg-type]  # the columns of the row
    )  # fmt: skip
    await tx.run(statement, [values])


async def _go_on(tx: Tx, row: Row, decision: Verdict, now: int) -> None:
    """Change the status if this was the last open decision, or an abort."""
    if row.status != "needs_decision":
        return
    if decision.answer == "abort":
        await tx.run("decisions.close", [("aborted", now, row.pk)])
        await journal.shift(tx, row, "aborted", now=now, reason="decision", deadline_at=row.deadline_at, ended=True)
        await journal.audit(tx, row.id, row.generation, now, "aborted", detail={"reason": "decision"})
    elif not await journal.open_decisions(tx, row.pk):
        await journal.shift(tx, row, "pending", now=now, deadline_at=row.deadline_at)


# --- watching and recovering ----------------------------------------------------------------------------


async def watch(engine: Holdfast, id: str, fn: Durable[..., Any] | None) -> Any:
    """Wait for an execution that others run, and return its output or raise how it ended."""
    from holdfast.execution.flight import Flight
    from holdfast.execution.request import Request

    while True:
        async with engine.database.read() as tx:
            row = await journal.get(tx, id)
        if row is None:
            raise engine.unknown(id)
        if row.status in machine.TERMINAL:
            fn = fn or _known(row.kind)
            request = Request(id=id, kind=row.kind, fn=fn, call=None)
            ended = Flight(engine, request).replay(row)
            if fn is None and row.output is not None:
                from holdfast.core.codec import decode

                return decode(row.output)
            return ended.value
        if row.status == "needs_decision":
            async with engine.database.read() as tx:
                waiting = await journal.open_decisions(tx, row.pk)
            raise needs_decision(id, tuple(each.position for each in waiting) or ("?",))
        if engine.closing or engine.crashed:
            raise Closed("the ledger was closed while a result was awaited", "open it again")
        await engine.database.wait(f"execution:{id}", engine.config.poll_ms / 1000)


def _known(kind: str) -> Durable[..., Any] | None:
    from holdfast.execution.declare import registered, require_kind

    return require_kind(kind) if kind in registered() else None


async def _takeable(engine: Holdfast) -> tuple[list[Row], int]:
    """List the executions nobody alive has, and count those that somebody has."""
    found: list[Row] = []
    live, after = 0, 0
    alive: dict[str, bool] = {}
    while True:
        async with engine.database.read() as tx:
            rows = await tx.all("executions.takeable", after=after, most=_BATCH)
        for row in rows:
            after = row.pk
            if row.owner_id is not None:
                if row.owner_id == engine.database.owner.id:
                    lives = row.pk in engine.flying
                else:
                    if row.owner_id not in alive:
                        alive[row.owner_id] = owner_alive(engine, row)
                    lives = alive[row.owner_id]
                if lives:
                    live += 1
                    continue
            found.append(row)
        if len(rows) < _BATCH:
            return found, live


def _runnable(engine: Holdfast, row: Row, kinds: frozenset[str]) -> bool:
    accepted = engine.config.accept_versions
    return row.kind in kinds and (not accepted or row.code_version in accepted)


async def recover(engine: Holdfast, kinds: frozenset[str]) -> RecoverReport:
    """See `Holdfast.recover`."""
    rows, live = await _takeable(engine)
    resumed: list[str] = []
    unknown: list[str] = []
    loops: list[str] = []
    for row in rows:
        if (row.status == "waiting" and row.waiting_on == "paused") or (row.queue is not None):
            continue
        if not _runnable(engine, row, kinds):
            unknown.append(row.id)
            continue
        flight = engine.fly_recorded(row.id, row.kind)
        if flight is None:
            continue
        with contextlib.suppress(Exception):  # what stands against it is delivered to whoever asks for its result
            await flight.departed()
        if flight.crash_looped:
            loops.append(row.id)
        elif flight.run is not None or flight.ended:
            resumed.append(row.id)
    return RecoverReport(tuple(resumed), tuple(unknown), tuple(loops), live)


async def tend(engine: Holdfast, kinds: frozenset[str]) -> None:
    """One round of what an opener that recovers does: end what is over, take over, tidy up."""
    await supervise(engine)
    await recover(engine, kinds)
    await sweep_owners(engine)


async def supervise(engine: Holdfast) -> None:
    """End what nobody owns and nobody can: passed deadlines, orphans past their time."""
    from holdfast.execution.context import deadline_exceeded
    from holdfast.execution.declare import registered

    config, now = engine.config, engine.clock.now()
    async with engine.database.read() as tx:
        for each in await tx.all("executions.tally"):
            engine.metrics.executions.set(each.count, each.status)
    rows, _ = await _takeable(engine)
    for row in rows:
        if row.deadline_at is not None and row.deadline_at <= now:
            failure = Failure.of(deadline_exceeded(row.id, row.deadline_at), 1, (), config).encode()
            async with engine.database.write() as tx:
                await journal.shift(
                    tx, row, "failed", now=now, reason="deadline", failure=failure, deadline_at=row.deadline_at,
                    ended=True,
                )  # fmt: skip
            continue
        if row.request is not None and row.owner_id is None:
            await honour(engine, row.id, row.request)
            continue
        since = row.updated_at + config.orphan_after_ms * 1000
        paused = row.status == "waiting" and row.waiting_on == "paused"
        if config.orphan_after_ms and since <= now and not paused and not _runnable(engine, row, registered()):
            async with engine.database.write() as tx:
                if await journal.shift(
                    tx, row, "aborted", now=now, reason="orphaned", deadline_at=row.deadline_at, ended=True
                ):
                    await journal.audit(tx, row.id, row.generation, now, "aborted", detail={"reason": "orphaned"})


async def sweep_owners(engine: Holdfast) -> None:
    """Remove the rows and files of owners that died without leaving anything to take over."""
    async with engine.database.read() as tx:
        rows = await tx.all("owners.list")
    for row in rows:
        if row.owner_id == engine.database.owner.id:
            continue
        death = probe(row)
        if isinstance(death, Alive) or row.lease_until + OWNER_KEPT_US > engine.clock.now():
            if isinstance(death, Dead):
                death.lock.release()
            continue
        async with engine.database.write() as tx:
            if await tx.one("executions.owned", owner_id=row.owner_id) is None:
                await tx.run("owners.delete", [(row.owner_id,)])
        if isinstance(death, Dead):
            death.lock.remove()


async def heed_requests(engine: Holdfast) -> None:
    """Act on requests that operators left for executions of this process."""
    async with engine.database.read() as tx:
        rows = await tx.all("executions.requests", owner_id=engine.database.owner.id)
    for row in rows:
        flight = engine.flights.get(row.id)
        if flight is not None and flight.run is not None:
            flight.run.requested(row.request)


async def audit_late(engine: Holdfast, run: Run, position: str, spec: StepDescriptor, key: bytes) -> None:
    """Audit an outcome that came after the execution was lost."""
    try:
        async with engine.database.write() as tx:
            await journal.audit(
                tx, run.id, run.generation, engine.clock.now(), "late_result", position=position,
                effect=spec.effect.cls, key=key,
            )  # fmt: skip
    except StoreError:
        journal.audit_log.warning("late_result of execution=%s position=%s could not be stored", run.id, position)
