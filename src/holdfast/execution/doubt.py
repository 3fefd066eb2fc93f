"""Settle effects that nobody can vouch for: carried over, in doubt, or out of place.

The part of the step protocol that acts on an intent without an outcome, whoever left it: this pass, an
earlier generation, or a program that gave the call up. What it leads to is decided by `machine`; here it is
made durable, with its audit, before anything acts on it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

from holdfast.core import points
from holdfast.core.codec import encode
from holdfast.core.errors import CodecError
from holdfast.core.loops import spawn
from holdfast.execution import journal, machine
from holdfast.execution.context import Run, log
from holdfast.execution.effects import Fail, Policy, Reconcile, StepHandle, Verdict
from holdfast.execution.errors import NeedsDecision
from holdfast.execution.machine import OPENED, OUTCOME, Earlier, Record
from holdfast.execution.scope import _effect
from holdfast.store.database import Row

if TYPE_CHECKING:
    from holdfast.execution.steps import StepCall

points.register("ambiguity.audited")

# --- row 4 of the step protocol: earlier generations ---


async def carried(call: StepCall) -> Any:
    """Look the key up in the earlier generations of the chapter; then guard against shifted effects."""
    run, spec = call.run, call.spec
    assert run.past is not None
    carries = spec.effect.cls != "idempotent" or run.engine.config.carry == "all"
    known = run.past.earlier.get(call.key()) if carries else None
    if known is None:
        return await shifted(call) if spec.guarded else await call.live(1)
    match machine.judge(known.records):
        case machine.Settled(record) if record.outcome != "failed":
            return await take_over(call, known, record)
        case machine.Ambiguous(attempt, record):
            row = call.entry(OPENED, attempt, carried_from=record.seq)
            await run.store([row], label="intent")
            return await ambiguous(call, attempt, machine.reruns(known.records))
    return await call.live(machine.attempts(known.records) + 1)


async def take_over(call: StepCall, known: Earlier, record: Record) -> Any:
    """Append an earlier generation's outcome here, and go on as if it had been made here."""
    run = call.run
    async with run.database.read() as tx:
        full = await tx.one("journal.row", seq=record.seq)
    assert full is not None
    fields = {"outcome": full.outcome, "payload": full.payload, "carried_from": full.seq}
    await run.store([call.entry(OUTCOME, full.attempt, **fields)], len(full.payload or b"") + 256, "outcome")
    assert run.past is not None
    run.past.claim(known)
    return await call.settled(Record(*full))


async def shifted(call: StepCall) -> Any:
    """Stop a new effect that looks like an old one under another key."""
    run, spec = call.run, call.spec
    assert run.past is not None
    candidate = run.past.shifted(spec.name)
    if candidate is None:
        return await call.live(1)
    fields = {
        "effect": spec.effect.cls,
        "key": call.key(),
        "policy": spec.effect.policy and spec.effect.policy.name,
    }
    if run.engine.config.shifted_effect == "run" or spec.effect.kind not in machine.GUARDED_KINDS:
        run.audit("shifted_effect", position=call.position, detail={"action": "run"}, **fields)
        return await call.live(1)
    record = candidate.outcome or candidate.records[-1]
    held = call.entry(OPENED, 0, carried_from=record.seq)
    return await ask(call, "shifted_effect", [held], event="shifted_effect")


# --- ambiguity ---


async def ambiguous(call: StepCall, attempt: int, reruns: int) -> Any:
    """Let the policy, a probe or an operator say what becomes of attempt `attempt`."""
    run, spec = call.run, call.spec
    policy = spec.effect.policy
    if policy is None:  # the program's step is no longer guarded: ask, rather than guess
        policy = Fail()
    run.engine.metrics.ambiguities.add(1, policy.name)
    most = run.engine.config.ambiguous_attempts_max
    decision = machine.resolve(policy, reruns=reruns, reruns_max=most)
    if isinstance(decision, machine.Probe):
        verdict = await probe(call, decision.policy, attempt)
        decision = machine.resolve(policy, reruns=reruns, reruns_max=most, verdict=verdict)
    match decision:
        case machine.Assume():
            return await assume(call, policy, attempt, decision)
        case machine.Ask(reason):
            return await ask(call, reason, [], policy=policy)
        case machine.Again() | machine.Probe():
            rows = [audit_ambiguity(call, policy, "run_again"), call.entry(OPENED, attempt + 1)]
            await call.intend(rows, degradable=False)  # nothing acts before the audit is on disk
            if points.armed:
                points.reach("ambiguity.audited")
            return await call.live(attempt + 1, intended=True, reruns=reruns + 1)


def audit_ambiguity(call: StepCall, policy: Policy, decision: str) -> tuple[str, tuple[object, ...]]:
    return call.run.audit_row(
        "ambiguity", position=call.position, effect=call.spec.effect.cls, key=call.key(), policy=policy.name,
        detail={"decision": decision, "effect_kind": call.spec.effect.kind},
    )  # fmt: skip


async def probe(call: StepCall, policy: Reconcile, attempt: int) -> Verdict:
    """Ask the other side; no clear answer in time is `unknown`."""
    run = call.run
    handle = StepHandle(call, attempt)
    task = spawn(_ask_probe(call, policy, handle), "holdfast.probe")
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # what it raises is nobody's to show
    try:
        if await run.clock.wait(task, run.engine.config.probe_timeout_ms / 1000):
            verdict = task.result()
            if isinstance(verdict, Verdict):
                return verdict
            log.warning("the probe of step %r answered %s instead of a verdict", call.spec.name, type(verdict))
        else:
            log.warning("the probe of step %r did not answer in time", call.spec.name)
    except Exception as error:  # noqa: BLE001 - whatever the probe raises, the answer is: unknown
        log.warning("the probe of step %r raised %s", call.spec.name, type(error).__name__)
    finally:
        task.cancel()
    return Verdict("unknown")


async def _ask_probe(call: StepCall, policy: Reconcile, handle: StepHandle) -> Any:
    token = _effect.set(handle)
    try:
        answer = policy.probe(handle) if inspect.iscoroutinefunction(policy.probe) else None
        if answer is None:
            answer = await call.run.engine.threads.call(policy.probe, handle)
        return await answer if inspect.isawaitable(answer) else answer
    finally:
        _effect.reset(token)


async def assume(call: StepCall, policy: Policy, attempt: int, decision: machine.Assume) -> Any:
    """Record an assumed outcome with its audit, then act on it."""
    run = call.run
    by = decision.by
    payload = encode(decision.value) if decision.blob is None else decision.blob
    if by == "probe":
        try:
            call.spec.codec.decode(payload)
        except CodecError:
            await ask(call, "probe_value_unfit", [], policy=policy)
    vouched = policy.name if by == "policy" else by
    row = call.entry(OUTCOME, attempt, outcome="assumed", payload=payload, policy=vouched)
    await run.store([audit_ambiguity(call, policy, f"assumed by {by}"), row], len(payload) + 512, "outcome")
    if points.armed:
        points.reach("ambiguity.audited")
    call.attempt = attempt
    return call.assumed(vouched, payload)


async def ask(
    call: StepCall, reason: str, rows: journal.Rows, *, policy: Policy | None = None, event: str = "ambiguity"
) -> NoReturn:
    """Open a decision, durably and audited, and stop the execution."""
    run = call.run
    name = policy.name if policy is not None else "fail"
    audit = run.audit_row(
        event, position=call.position, effect=call.spec.effect.cls, key=call.key(), policy=name,
        detail={"decision": "asked", "reason": reason, "effect_kind": call.spec.effect.kind},
    )  # fmt: skip
    opened = (run.pk, run.generation, call.position, reason, call.key(), run.clock.now())
    await run.store([*rows, audit, ("decisions.open", opened)], 1024)
    if points.armed:
        points.reach("ambiguity.audited")
    stop(call)


def stop(call: StepCall) -> NoReturn:
    """Halt the run: an operator must decide about this step."""
    call.run.halt(needs_decision(call.run.id, (call.position,)))
    call.run.refuse()


async def settle_abandoned(run: Run) -> None:
    """Resolve open intents whose calls the program has given up, before it goes on."""
    while run.abandoned:
        _, call = run.abandoned.popitem()
        policy = call.spec.effect.policy or Fail()
        run.engine.metrics.ambiguities.add(1, policy.name)
        decision = machine.abandoned(policy)
        if isinstance(decision, machine.Assume):
            await assume(call, policy, call.attempt, decision)
        else:
            await ask(call, decision.reason, [], policy=policy)


async def reopen(call: StepCall, record: Record, error: CodecError) -> NoReturn:
    """Take back an operator's value that does not fit, and ask again."""
    run = call.run
    now = run.clock.now()
    async with run.database.write() as tx:
        row = await tx.one("executions.lock", pk=run.pk)
        if row is None or row.fence != run.fence:
            raise run.lost()
        await tx.run("journal.reopen", [(record.seq,)])
        opened = (run.pk, run.generation, call.position, "value_unfit", call.key(), now)
        await tx.run("decisions.open", [opened])
        detail = {"reason": "value_unfit", "error": str(error)[:500]}
        await journal.audit(
            tx, run.id, run.generation, now, "ambiguity", position=call.position,
            effect=call.spec.effect.cls, key=call.key(), policy="fail", detail=detail,
        )  # fmt: skip
    stop(call)


async def assume_skipped(run: Run, row: Row, position: str) -> None:
    """Settle an open intent under `skip` whose call was not made in this pass: nobody reads its value."""
    detail = {"decision": "assumed by policy", "reason": "abandoned"}
    audit = run.audit_row(
        "ambiguity", position=position, effect=row.effect, key=row.key, policy=row.policy, detail=detail
    )
    outcome = journal.entry(
        run.guard, run.generation, run.clock.now(), row.scope, row.idx, OUTCOME, row.attempt, "step",
        row.name, row.shape, effect=row.effect, effect_kind=row.effect_kind, policy=row.policy, key=row.key,
        outcome="assumed", payload=encode(None),
    )  # fmt: skip
    await run.store([audit, outcome])


def needs_decision(id: str, positions: tuple[str, ...]) -> NeedsDecision:
    """Say that an operator must decide."""
    where = ", ".join(positions)
    return NeedsDecision(
        f"execution {id!r}: nobody knows whether the effect at {where} took place",
        hint=f"look at the other side, then: holdfast executions decide {id} {positions[0]} --happened JSON | "
        "--not-happened | --abort --by NAME",
        execution_id=id,
        positions=positions,
    )
