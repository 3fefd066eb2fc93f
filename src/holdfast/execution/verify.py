"""Check the ledger against its own rules, row by row, without any key.

Entries are unique, an intent stands before each exactly_once outcome, the trail leads to the status, and
whatever refers to a row finds it. Problems are listed in the order they are met; the first of an
execution names its first broken row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core import trace
from holdfast.core.codec import decode
from holdfast.core.errors import CodecError
from holdfast.execution import journal, keys, machine
from holdfast.execution.errors import IntegrityError
from holdfast.execution.payloads import SPILLED, read_spilled

if TYPE_CHECKING:
    from holdfast.execution.engine import Holdfast
    from holdfast.store.database import Row, Tx

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken invariant.

    Attributes:
        execution_id: The execution; empty when a row belongs to none.
        table: Where.
        row: Which row: its sequence number, or what identifies it.
        code: A stable name of the invariant.
        message: What is wrong.
    """

    execution_id: str
    table: str
    row: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `Holdfast.verify` found.

    Attributes:
        ok: Whether there is no problem.
        checked_count: Executions checked.
        problems: What is broken.
    """

    ok: bool
    checked_count: int
    problems: tuple[Problem, ...]


async def verify(engine: Holdfast, id: str | None) -> VerifyReport:
    """See `Holdfast.verify`."""
    with trace.span("holdfast.durable.verify"):
        return await _verify(engine, id)


async def _verify(engine: Holdfast, id: str | None) -> VerifyReport:
    problems: list[Problem] = []
    checked = 0
    if id is not None:
        async with engine.database.read() as tx:
            row = await journal.get(tx, id)
            if row is None:
                raise engine.unknown(id)
            problems += await _execution(tx, row)
        return VerifyReport(not problems, 1, tuple(problems))
    before: int | None = None
    while True:
        async with engine.database.read() as tx:
            rows = await tx.all("executions.list", status=None, kind=None, queue=None, before=before, most=_BATCH)
            for row in rows:
                problems += await _execution(tx, row)
        checked += len(rows)
        if len(rows) < _BATCH:
            break
        before = rows[-1].pk
        await engine.clock.sleep(0)
    problems += await _orphans(engine)
    return VerifyReport(not problems, checked, tuple(problems))


async def _orphans(engine: Holdfast) -> list[Problem]:
    async with engine.database.read() as tx:
        rows = await tx.all("executions.strays", most=_BATCH)
    return [Problem("", row.place, row.name, "reference", f"belongs to no execution (pk {row.pk})") for row in rows]


async def _execution(tx: Tx, row: Row) -> list[Problem]:
    entries = await _entries(tx, row.pk)
    trail = await tx.all("trail.list", execution_pk=row.pk)
    generations = await tx.all("generations.list", execution_pk=row.pk)
    problems = [Problem(row.id, *found) for found in _check_entries(row, entries)]
    problems += [Problem(row.id, *found) for found in _check_trail(row, trail)]
    problems += [Problem(row.id, *found) for found in _check_generations(row, generations, entries)]
    problems += [Problem(row.id, *found) for found in await _check_decisions(tx, row)]
    for entry in entries:
        if entry.payload is not None and entry.payload[:1] == bytes([SPILLED]):
            try:
                await read_spilled(tx, row.id, entry.payload)
            except IntegrityError as error:
                problems.append(Problem(row.id, error.table, error.row, "spilled", str(error)))
    return problems


Found = tuple[str, str, str, str]


def _check_entries(row: Row, entries: Sequence[Row]) -> Iterator[Found]:
    seen: set[tuple[object, ...]] = set()
    intents: set[tuple[object, ...]] = set()
    shapes: dict[tuple[object, ...], bytes] = {}
    known = {entry.seq for entry in entries}
    unanswered: dict[tuple[object, ...], Row] = {}
    for entry in entries:
        place = (entry.generation, entry.scope, entry.idx)
        where = f"at {keys.position(entry.scope, entry.idx)} of generation {entry.generation}" if entry.idx >= 0 else ""
        table, name = "durable_journal", str(entry.seq)
        identity = (*place, entry.part, 0 if entry.part == machine.OUTCOME else entry.attempt)
        if identity in seen:
            yield table, name, "duplicate", f"a second entry of part {entry.part} {where}"
        seen.add(identity)
        if entry.idx >= 0 and shapes.setdefault(place, entry.shape) != entry.shape:
            yield table, name, "shape", f"entries of different shapes {where}"
        if entry.part == machine.OPENED:
            intents.add(place)
            if entry.effect == "exactly_once" and entry.attempt > 0 and entry.generation == row.generation:
                unanswered[place] = entry
        elif place in unanswered and entry.attempt >= unanswered[place].attempt:
            del unanswered[place]
        outcome = entry.part == machine.OUTCOME and entry.effect == "exactly_once" and entry.carried_from is None
        if outcome and place not in intents:
            yield table, name, "intent", f"an exactly_once outcome without an intent {where}"
        if entry.kind == "step" and entry.part == machine.OUTCOME and not _payload_fits(entry):
            yield table, name, "payload", f"outcome {entry.outcome!r} with the wrong kind of payload {where}"
        if entry.carried_from is not None and entry.carried_from not in known:
            yield table, name, "reference", f"carried from entry {entry.carried_from}, which is not there"
        if entry.fence > row.fence:
            yield table, name, "fence", f"written under fence {entry.fence}, the execution is at {row.fence}"
    if row.status in ("completed", "failed"):
        for entry in unanswered.values():
            yield "durable_journal", str(entry.seq), "open_intent", f"an intent without outcome, but it is {row.status}"


def _payload_fits(entry: Row) -> bool:
    if entry.outcome not in ("value", "assumed", "failed", "no_value") or entry.payload is None:
        return False
    if entry.payload[:1] == bytes([SPILLED]):
        return True
    try:
        decode(entry.payload)
    except CodecError:
        return False
    return True


def _check_trail(row: Row, trail: Sequence[Row]) -> Iterator[Found]:
    before, fence = "", 0
    for each in trail:
        if each.status not in machine.TRANSITIONS.get(before, frozenset()):
            yield "durable_trail", str(each.seq), "transition", f"{each.status} cannot follow {before or 'nothing'}"
        if each.fence < fence:
            yield "durable_trail", str(each.seq), "fence", f"fence {each.fence} follows {fence}"
        before, fence = each.status, each.fence
    if before != row.status:
        yield "durable_executions", str(row.pk), "status", f"status is {row.status}, the trail leads to {before}"
    if (row.status in machine.TERMINAL) != (row.finished_at is not None):
        yield "durable_executions", str(row.pk), "finished", f"status {row.status} and finished_at disagree"


def _check_generations(row: Row, generations: Sequence[Row], entries: Sequence[Row]) -> Iterator[Found]:
    numbers = [each.generation for each in generations]
    if numbers != list(range(1, row.generation + 1)):
        yield "durable_generations", str(row.pk), "generations", f"{numbers} recorded, {row.generation} reached"
    known = set(numbers)
    for entry in entries:
        if entry.generation not in known:
            yield "durable_journal", str(entry.seq), "reference", f"belongs to no generation ({entry.generation})"
    places = {(entry.generation, entry.scope, entry.idx) for entry in entries}
    for entry in entries:
        if entry.scope and (entry.generation, *_parent(entry.scope)) not in places:
            yield "durable_journal", str(entry.seq), "reference", "its branch is not recorded"


def _parent(scope: bytes) -> tuple[bytes, int]:
    return scope[:-4], int.from_bytes(scope[-4:], "big")


async def _check_decisions(tx: Tx, row: Row) -> list[Found]:
    waiting = await journal.open_decisions(tx, row.pk)
    found: list[Found] = []
    if row.status == "needs_decision" and not waiting:
        found.append(("durable_executions", str(row.pk), "decision", "needs_decision without an open decision"))
    if row.status in machine.TERMINAL:
        found += [
            ("durable_decisions", each.position, "decision", f"still open, but the execution is {row.status}")
            for each in waiting
        ]
    return found


async def _entries(tx: Tx, pk: int) -> list[Row]:
    found: list[Row] = []
    after = 0
    while True:
        rows = await tx.all("journal.list", execution_pk=pk, generation=None, after=after, most=_BATCH)
        found += rows
        if len(rows) < _BATCH:
            return found
        after = rows[-1].seq
