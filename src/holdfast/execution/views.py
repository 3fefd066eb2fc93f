"""Show executions: what they are, what they did, how two passes differ. Reading only.

Steps are counted as positions, not rows. No payload leaves this module unless it is asked for by name,
and that is audited.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core.clock import to_datetime
from holdfast.core.codec import decode
from holdfast.core.errors import CodecError
from holdfast.core.ids import uuid_text
from holdfast.core.page import Page, check_limit, decode_cursor, encode_cursor
from holdfast.execution import journal, keys, machine
from holdfast.execution.claims import owner_alive
from holdfast.execution.errors import PositionShape
from holdfast.execution.payloads import SPILLED, read_spilled

if TYPE_CHECKING:
    from holdfast.execution.engine import Holdfast
    from holdfast.store.database import Row, Tx

_BATCH = 1000
_PARTS = {machine.OPENED: "opened", machine.FAILED: "attempt", machine.OUTCOME: "outcome", machine.PATCH: "outcome"}


@dataclass(frozen=True, slots=True)
class Execution:
    """What is known of an execution.

    Attributes:
        id: Its id.
        uid: Its 16 bytes, as a UUID in text.
        kind: Which durable function.
        status: `pending`, `running`, `waiting`, `needs_decision`, `completed`, `failed`, `aborted`, `canceled`.
        waiting_on: What a waiting one waits for: `retry` or `paused`.
        reason: Why it ended or rests, if there is more to say.
        generation: Which pass over the program, from 1.
        chapter: Which chapter, from 0.
        queue: The queue it waits in.
        priority: Its priority there.
        parent_id: The execution that started it.
        owner: `host:pid` of the process that has it.
        owner_alive: Whether that process lives.
        fence: How often it was claimed, and otherwise taken from an owner.
        request: What an operator has asked its owner to do.
        degraded: Whether it ever went on without its journal.
        code_version: Label of the program that claimed it last.
        positions_count: Positions recorded in this generation.
        entries_count: Journal rows of all generations.
        recoveries_count: Takeovers in a row without progress.
        open_decisions: Positions that wait for an operator.
        created_at, updated_at, available_at, deadline_at, finished_at: Instants, aware UTC.
    """

    id: str
    uid: str
    kind: str
    status: str
    waiting_on: str | None
    reason: str | None
    generation: int
    chapter: int
    queue: str | None
    priority: int
    parent_id: str | None
    owner: str | None
    owner_alive: bool
    fence: int
    request: str | None
    degraded: bool
    code_version: str | None
    positions_count: int
    entries_count: int
    recoveries_count: int
    open_decisions: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    available_at: datetime
    deadline_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the journal, without its value unless that was asked for."""

    seq: int
    generation: int
    position: str
    kind: str
    name: str
    effect: str | None
    part: Literal["opened", "attempt", "outcome"]
    attempt: int
    outcome: str | None
    carried_from: int | None
    key_prefix: str | None
    payload_bytes: int
    folded: bool
    at: datetime
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an execution.

    Attributes:
        at: When it was written.
        generation: In which pass.
        position: Where, for entries and most audit records.
        event: `entry`, `attempt`, `status`, `generation`, or the name of an audit event.
        name: What it was called.
        outcome: How it ended, or the new status.
        duration: From its intent or failed attempt, or the change of status before, to this.
    """

    at: datetime
    generation: int
    position: str | None
    event: str
    name: str
    outcome: str | None
    duration: timedelta | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One position in two generations."""

    position: str
    change: Literal["same", "changed", "left", "right"]
    left: PositionShape | None
    right: PositionShape | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One audit record; `detail` holds names and numbers, never values."""

    seq: int
    at: datetime
    execution_id: str
    generation: int
    position: str | None
    event: str
    effect: str | None
    key_prefix: str | None
    policy: str | None
    actor: str | None
    detail: dict[str, Any] | None


async def require(engine: Holdfast, tx: Tx, id: str) -> Row:
    """Return an execution's row.

    Raises:
        UnknownExecution: There is none.
    """
    row = await journal.get(tx, id)
    if row is None:
        raise engine.unknown(id)
    return row


async def get(engine: Holdfast, id: str) -> Execution | None:
    """See `Holdfast.get`."""
    async with engine.database.read() as tx:
        row = await journal.get(tx, id)
        return None if row is None else await _execution(engine, tx, row)


async def _execution(engine: Holdfast, tx: Tx, row: Row) -> Execution:
    counts = await tx.one("executions.counts", pk=row.pk, generation=row.generation)
    assert counts is not None
    opened = await journal.open_decisions(tx, row.pk)
    return Execution(
        id=row.id,
        uid=uuid_text(row.uid),
        kind=row.kind,
        status=row.status,
        waiting_on=row.waiting_on,
        reason=row.reason,
        generation=row.generation,
        chapter=row.chapter,
        queue=row.queue,
        priority=row.priority,
        parent_id=None,
        owner=f"{row.host}:{row.pid}" if row.host is not None else None,
        owner_alive=owner_alive(engine, row),
        fence=row.fence,
        request=row.request.partition(":")[0] if row.request else None,
        degraded=bool(row.degraded),
        code_version=row.code_version,
        positions_count=counts.positions_count,
        entries_count=counts.entries_count,
        recoveries_count=row.recoveries,
        open_decisions=tuple(each.position for each in opened),
        created_at=to_datetime(row.created_at),
        updated_at=to_datetime(row.updated_at),
        available_at=to_datetime(row.available_at),
        deadline_at=_instant(row.deadline_at),
        finished_at=_instant(row.finished_at),
    )


def _instant(micros: int | None) -> datetime | None:
    return None if micros is None else to_datetime(micros)


async def list_executions(  # noqa: PLR0913 - the filters of the contract, by keyword
    engine: Holdfast, *, status: str | None, kind: str | None, queue: str | None, orphaned: bool, limit: int,
    cursor: str | None,
) -> Page[Execution]:  # fmt: skip
    """See `Holdfast.list`."""
    check_limit(limit)
    before: int | None = decode_cursor("executions", cursor, int)[0] if cursor is not None else None
    found: list[Row] = []
    async with engine.database.read() as tx:
        while len(found) <= limit:
            rows = await tx.all("executions.list", status=status, kind=kind, queue=queue, before=before, most=limit + 1)
            found += [row for row in rows if not orphaned or _orphaned(engine, row)]
            if len(rows) <= limit:
                break
            before = rows[-1].pk
        items = [await _execution(engine, tx, row) for row in found[:limit]]
    more = len(found) > limit
    return Page(items, encode_cursor("executions", [found[limit - 1].pk]) if more else None)


async def under(engine: Holdfast, id: str, *, most: int) -> list[Execution]:
    """Return the execution of an id, and those whose ids begin with it and a slash, as they were made."""
    # Between `id/` and `id0`, which is what follows the slash, lies all that begins with it.
    async with engine.database.read() as tx:
        rows = await tx.all("executions.under", id=id, low=f"{id}/", high=f"{id}0", most=most)
        return [await _execution(engine, tx, row) for row in rows]


def _orphaned(engine: Holdfast, row: Row) -> bool:
    """Whether nobody alive has it and this process could not take it over."""
    from holdfast.execution.declare import registered

    accepted = engine.config.accept_versions
    known = row.kind in registered() and (not accepted or row.code_version in accepted)
    resting = row.status == "waiting" and row.waiting_on == "paused"
    open_ = row.status in ("pending", "running", "waiting") and not resting
    return open_ and not known and not owner_alive(engine, row)


async def _rows(tx: Tx, pk: int, generation: int | None) -> list[Row]:
    found: list[Row] = []
    after = 0
    while True:
        rows = await tx.all("journal.list", execution_pk=pk, generation=generation, after=after, most=_BATCH)
        found += rows
        if len(rows) < _BATCH:
            return found
        after = rows[-1].seq


async def history(engine: Holdfast, id: str, *, generation: int | None, reveal: bool) -> list[Entry]:
    """See `Holdfast.history`."""
    async with engine.database.read() as tx:
        row = await require(engine, tx, id)
        entries = [await _entry(tx, id, each, reveal=reveal) for each in await _rows(tx, row.pk, generation)]
    if reveal and not engine.read_only:
        async with engine.database.write() as tx:
            await journal.audit(tx, id, row.generation, engine.clock.now(), "reveal", detail={"entries": len(entries)})
    return entries


async def _entry(tx: Tx, id: str, row: Row, *, reveal: bool) -> Entry:
    payload: Any = None
    if reveal and row.payload is not None and row.outcome in ("value", "assumed", "failed"):
        blob = await read_spilled(tx, id, row.payload) if row.payload[:1] == bytes([SPILLED]) else row.payload
        try:
            payload = decode(blob)
        except CodecError:
            payload = None
    return Entry(
        seq=row.seq,
        generation=row.generation,
        position=_position(row),
        kind=row.kind,
        name=row.name,
        effect=row.effect,
        part=_PARTS[row.part],  # type: ignore[arg-type]  # the columns of the row
        attempt=row.attempt,
        outcome=row.outcome,
        carried_from=row.carried_from,
        key_prefix=row.key.hex()[:16] if row.key is not None else None,
        payload_bytes=row.payload_bytes or 0,
        folded=bool(row.folded),
        at=to_datetime(row.created_at),
        payload=payload,
    )


def _position(row: Row) -> str:
    return keys.position(row.scope, row.idx) if row.idx >= 0 else f"patch:{row.name}"


async def timeline(engine: Holdfast, id: str) -> list[Event]:
    """See `Holdfast.timeline`."""
    async with engine.database.read() as tx:
        row = await require(engine, tx, id)
        entries = await _rows(tx, row.pk, None)
        trail = await tx.all("trail.list", execution_pk=row.pk)
        generations = await tx.all("generations.list", execution_pk=row.pk)
        audits = await _audits(tx, id)
    events = [*_entry_events(entries), *_trail_events(trail)]
    events += [
        Event(to_datetime(g.opened_at), g.generation, None, "generation", g.cause, None, None)
        for g in generations
        if g.generation > 1
    ]
    events += [
        Event(a.at, a.generation, a.position, a.event, a.policy or "", a.actor or _first(a.detail), None)
        for a in audits
    ]
    events.sort(key=lambda event: (event.at, event.generation))
    return events


def _first(detail: dict[str, Any] | None) -> str | None:
    return str(detail[next(iter(detail))]) if detail else None


def _entry_events(rows: Iterable[Row]) -> list[Event]:
    begun: dict[tuple[int, bytes, int], int] = {}
    events = []
    for row in rows:
        place = (row.generation, row.scope, row.idx)
        since = begun.get(place)
        duration = timedelta(microseconds=row.created_at - since) if since is not None else None
        begun[place] = row.created_at
        event = {machine.OPENED: "opened", machine.FAILED: "attempt"}.get(row.part, "outcome")
        events.append(
            Event(
                to_datetime(row.created_at),
                row.generation,
                _position(row),
                event,
                row.name or row.kind,
                row.outcome,
                duration,
            )
        )
    return events


def _trail_events(rows: Iterable[Row]) -> list[Event]:
    events = []
    before: int | None = None
    for row in rows:
        duration = timedelta(microseconds=row.at - before) if before is not None else None
        events.append(
            Event(to_datetime(row.at), row.generation, None, "status", row.reason or "", row.status, duration)
        )
        before = row.at
    return events


async def diff(engine: Holdfast, id: str, left: int, right: int) -> list[Difference]:
    """See `Holdfast.diff`."""
    async with engine.database.read() as tx:
        row = await require(engine, tx, id)
        sides = [await _shapes(tx, row.pk, generation) for generation in (left, right)]
    places = sorted(sides[0].keys() | sides[1].keys(), key=lambda place: keys.extend(*place))
    found = []
    for place in places:
        before, after = sides[0].get(place), sides[1].get(place)
        change: Literal["same", "changed", "left", "right"]
        if before is None:
            change = "right"
        elif after is None:
            change = "left"
        else:
            change = "same" if before == after else "changed"
        found.append(Difference(keys.position(*place), change, before, after))
    return found


async def _shapes(tx: Tx, pk: int, generation: int) -> dict[tuple[bytes, int], PositionShape]:
    return {
        (row.scope, row.idx): machine.describe(row.kind, row.name, row.effect, row.shape)
        for row in await _rows(tx, pk, generation)
        if row.idx >= 0
    }


async def audit(engine: Holdfast, id: str | None) -> list[AuditRecord]:
    """See `Holdfast.audit`."""
    async with engine.database.read() as tx:
        return await _audits(tx, id)


async def _audits(tx: Tx, id: str | None) -> list[AuditRecord]:
    found: list[AuditRecord] = []
    after = 0
    while True:
        rows = await tx.all("audit.list", execution_id=id, after=after, most=_BATCH)
        for row in rows:
            detail = json.loads(row.detail) if row.detail else None
            found.append(
                AuditRecord(
                    row.seq, to_datetime(row.at), row.execution_id, row.generation, row.position, row.event,
                    row.effect, row.key_prefix, row.policy, row.actor, detail,
                )
            )  # fmt: skip
        if len(rows) < _BATCH:
            return found
        after = rows[-1].seq
