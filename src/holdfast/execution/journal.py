"""Keep executions and their journal: records, and the functions that read and write them.

Functions over a `Tx` whose transaction belongs to the caller, and the `Plan` by which an owner's appends
share commits. What the rows mean is decided in `machine`; here is only how they are kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.execution.machine import FAILED, OPENED, OUTCOME, Earlier, Past, Record
from holdfast.store.database import Plan, Row, Tx

audit_log = logging.getLogger("holdfast.durable.audit")

IDX_MIN = -(1 << 31)
"""Where a scope begins: the answers of patches stand below zero."""

PLAN = Plan(
    name="durable",
    creates=("executions.create",),
    guard="executions.held",
    writes=(
        "generations.close",
        "generations.open",
        "trail.add",
        "blobs.add",
        "decisions.open",
        "journal.append",
        "audit.add",
        "executions.degrade",
        "executions.move",
        "executions.settle",
    ),
)
"""How appends of owners become durable: an execution may be created and ended in the batch of its entries."""

Rows = list[tuple[str, tuple[object, ...]]]


@dataclass(slots=True)
class Claimed:
    """An execution that is ours under a fence."""

    pk: int
    id: str
    uid: bytes
    kind: str
    fence: int
    seed: bytes
    generation: int
    chapter: int
    deadline_at: int | None
    degraded: bool
    journal_bytes: int
    fresh: bool
    """No entry can be in the journal: the execution was created by this claim."""
    last_now: int
    input: bytes | None


def created(  # noqa: PLR0913 - what is new about it; made once per execution, so not by keyword
    pk: int, id: str, uid: bytes, kind: str, seed: bytes, deadline_at: int | None, input: bytes | None
) -> Claimed:
    """Return a new execution, held by its creator under the first fence."""
    return Claimed(
        pk, id, uid, kind, 1, seed, 1, 0, deadline_at, False, 0, True, 0, input  # noqa: FBT003 - in their order
    )  # fmt: skip


def entry(  # noqa: PLR0913 - the columns of the row
    guard: tuple[int, int],
    generation: int,
    at: int,
    scope: bytes,
    idx: int,
    part: int,
    attempt: int,
    kind: str,
    name: str,
    shape: bytes,
    *,
    effect: str | None = None,
    effect_kind: str | None = None,
    policy: str | None = None,
    key: bytes | None = None,
    outcome: str | None = None,
    payload: bytes | None = None,
    carried_from: int | None = None,
    due_at: int | None = None,
) -> tuple[str, tuple[object, ...]]:
    """Make a journal row of an owner."""
    return "journal.append", (
        guard[0], generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key,
        outcome, payload, carried_from, due_at, guard[1], at,
    )  # fmt: skip


def audit_row(  # noqa: PLR0913 - the columns of the row
    id: str,
    generation: int,
    at: int,
    event: str,
    *,
    position: str | None = None,
    effect: str | None = None,
    key: bytes | None = None,
    policy: str | None = None,
    actor: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> tuple[str, tuple[object, ...]]:
    """Log an event at WARN and make its audit row. Details are names and numbers, never payloads."""
    prefix = key.hex()[:16] if key is not None else None
    text = None
    if detail is not None:
        text = json.dumps(detail, sort_keys=True, default=str)
        if len(text) > 4096:
            text = json.dumps({"truncated": text[:3900]})
    said = {"position": position, "effect": effect, "key": prefix, "policy": policy, "actor": actor}
    more = "".join(f" {name}={value}" for name, value in said.items() if value is not None)
    audit_log.warning("%s execution=%s generation=%d%s", event, id, generation, more)
    return "audit.add", (id, at, generation, position, event, effect, prefix, policy, actor, text)


async def audit(tx: Tx, id: str, generation: int, at: int, event: str, **fields: Any) -> None:
    """Write one audit row in the caller's transaction."""
    statement, row = audit_row(id, generation, at, event, **fields)
    await tx.run(statement, [row])


async def get(tx: Tx, id: str) -> Row | None:
    """Return an execution's row with its owner's, or None."""
    return await tx.one("executions.get", id=id)


async def reserve(tx: Tx) -> int:
    """Reserve 256 numbers for executions of this process; return the first."""
    row = await tx.one("executions.reserve")
    assert row is not None
    return int(row.first)


async def claim(
    tx: Tx, row: Row, *, owner: str, now: int, code_version: str | None, stalled_max: int
) -> Claimed | None:
    """Raise the fence and take an execution; None when somebody else was first or its owner lives.

    The fence of the row read before makes the claim safe whenever that was. A takeover from a dead owner
    that recorded nothing counts as stalled; an execution stalled more than `stalled_max` times is not claimed: its
    `Claimed.fence` is 0.
    """
    more = await tx.one("executions.reopened", pk=row.pk)
    assert more is not None
    recoveries = row.recoveries
    if row.owner_id is not None:
        moved = more.last_fence is not None and more.last_fence >= row.fence
        recoveries = 1 if moved else row.recoveries + 1
        if recoveries > stalled_max:
            return _claimed(row, 0, more)
    won = await tx.one(
        "executions.claim",
        owner_id=owner, now=now, code_version=code_version, recoveries=recoveries, pk=row.pk, fence=row.fence,
    )  # fmt: skip
    if won is None:
        return None
    await tx.run("generations.claimed", [(code_version, row.pk, row.generation)])
    await tx.run("trail.add", [(row.pk, row.generation, "running", None, owner, won.fence, now)])
    return _claimed(row, won.fence, more)


def _claimed(row: Row, fence: int, more: Row) -> Claimed:
    return Claimed(
        pk=row.pk,
        id=row.id,
        uid=row.uid,
        kind=row.kind,
        fence=fence,
        seed=row.seed,
        generation=row.generation,
        chapter=row.chapter,
        deadline_at=row.deadline_at,
        degraded=bool(row.degraded),
        journal_bytes=row.bytes,
        fresh=False,
        last_now=more.last_now or 0,
        input=more.input,
    )


async def shift(  # noqa: PLR0913 - what a change of status may change
    tx: Tx,
    row: Row,
    status: str,
    *,
    now: int,
    waiting_on: str | None = None,
    reason: str | None = None,
    failure: bytes | None = None,
    generation: int | None = None,
    deadline_at: int | None = None,
    ended: bool = False,
) -> bool:
    """Change a status from outside the owner, raising the fence; False when the row has changed meanwhile."""
    generation = row.generation if generation is None else generation
    won = await tx.one(
        "executions.shift",
        status=status, waiting_on=waiting_on, reason=reason, generation=generation, failure=failure,
        deadline_at=deadline_at, finished_at=now if ended else None, now=now, pk=row.pk, fence=row.fence,
        was=row.status,
    )  # fmt: skip
    if won is None:
        return False
    await tx.run("trail.add", [(row.pk, generation, status, reason or waiting_on, None, won.fence, now)])
    return True


async def segment(tx: Tx, pk: int, generation: int, scope: bytes, start: int, most: int) -> list[Row]:
    """Read the next entries of a scope in order of position: `most` rows, or one whole longer position."""
    rows = await tx.all("journal.segment", execution_pk=pk, generation=generation, scope=scope, start=start, most=most)
    if len(rows) == most and rows[0].idx == rows[-1].idx:
        rows = await position(tx, pk, generation, scope, rows[0].idx)
    return rows


async def position(tx: Tx, pk: int, generation: int, scope: bytes, idx: int) -> list[Row]:
    """Read all entries of one position."""
    return await tx.all("journal.position", execution_pk=pk, generation=generation, scope=scope, idx=idx)


async def past(tx: Tx, pk: int, chapter: int, generation: int) -> Past | None:
    """Load what earlier generations of a chapter hold, and what this one has taken over; None if nothing."""
    found: dict[bytes, tuple[int, list[Record]]] = {}
    for row in await tx.all("journal.earlier", execution_pk=pk, chapter=chapter, generation=generation):
        known = found.setdefault(row.key, (row.generation, []))
        # The latest generation speaks for a key; earlier ones still count its attempts.
        if known[0] == row.generation or row.part in (OPENED, FAILED):
            known[1].append(Record(*row[1:]))
    if not found:
        return None
    earlier = {}
    for key, (latest, records) in sorted(found.items(), key=lambda item: min(r.seq for r in item[1][1])):
        newest = next((record for record in records if record.part == OUTCOME), records[0])
        effect = newest.effect or ""
        earlier[key] = Earlier(key, newest.name, effect, newest.effect_kind, latest, tuple(records))
    taken = await tx.all("journal.carried", execution_pk=pk, generation=generation)
    return Past(earlier, set(), {row.seq for row in taken})


async def open_decisions(tx: Tx, pk: int) -> list[Row]:
    """List the decisions of an execution that wait for an operator."""
    return [row for row in await tx.all("decisions.list", execution_pk=pk) if row.decided_at is None]


async def blob(tx: Tx, blob_pk: int) -> bytes:
    """Read a spilled value."""
    return b"".join(row.bytes for row in await tx.all("blobs.get", blob_pk=blob_pk))
