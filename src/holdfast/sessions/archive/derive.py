"""Fold one event into turns, nodes and sessions: one transaction, all of it or nothing.

    hold      what guards everything that is read below
    fence     the event leaves the state it was loaded in; whoever comes second stops
    evidence  what the event says; the groups it is in are parted into turns anew
    turns     each that comes, changes or goes; those without a session id find their group
    nodes     the chain, and who holds it
    sessions  what the turns change of each, its parent, and what that changes of others

Every decision is a pure function's. What is found to be unguarded on the way ends the transaction with `Widen`.

Invariants:
    - Whatever the order in which events come, and however many workers fold them in, the rows end the same.
    - An event is folded in once; a session's sums move by the difference that it makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

import msgspec

from holdfast.core import points
from holdfast.sessions import identity, jcs, pricing, turns
from holdfast.sessions.archive import chains, rows
from holdfast.sessions.archive.captures import Loaded
from holdfast.sessions.archive.family import settle_parents
from holdfast.sessions.archive.grouping import regroup
from holdfast.sessions.archive.packing import free
from holdfast.sessions.archive.standing import Standings
from holdfast.sessions.archive.work import (
    About,
    Change,
    Kept,
    Price,
    Seen,
    Terms,
    Widen,
    Work,
    hold,
    kept_of,
    locks_of,
    seen_of,
)
from holdfast.sessions.derivation import Derived
from holdfast.sessions.evidence import Evidence, SessionRow
from holdfast.sessions.values import COLUMNS, Cost, SessionKey
from holdfast.store.database import Database, Tx

__all__ = [
    "Folded", "Lost", "Moves", "Outcome", "Refused", "Unparsed", "apply", "columns_of", "derive", "identity_of", "mend",
    "own_of", "replace", "settle",
]  # fmt: skip

points.register("sessions.deriving", "sessions.folding")


@dataclass(frozen=True, slots=True)
class Folded:
    """The event is in its turn."""

    turn_id: bytes
    session_id: bytes


@dataclass(frozen=True, slots=True)
class Unparsed:
    """No turn can be made of the event; it is kept."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The event's session was deleted, and its bodies are gone."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The event is not what it was when it was loaded, or something was attributed meanwhile."""


Outcome: TypeAlias = Folded | Unparsed | Refused | Lost


async def settle(
    database: Database,
    loaded: Loaded,
    derived: Derived,
    *,
    quote: Cost | None,
    mint: Callable[[], bytes],
    terms: Terms,
) -> Outcome:
    """Fold an event in, in a transaction of its own.

    Args:
        database: The ledger.
        loaded: The event.
        derived: What it says.
        quote: What a source of prices says to `derived.query`; None: no source knows, or nothing is to be priced.
        mint: Makes an id of 16 bytes that sorts by time.
        terms: What derivation depends on besides.

    Raises:
        StoreError: Nothing was written. After `Conflict` and `Busy` it may be tried again at once.
    """
    held = locks_of(loaded, derived)
    while True:
        try:
            async with database.write() as tx:
                now = database.clock.now()
                await hold(tx, loaded.org, held)
                return await derive(tx, loaded, derived, quote=quote, mint=mint, now=now, terms=terms, held=held)
        except Widen as more:
            held |= more.keys


async def derive(  # noqa: PLR0913 - an event, what it says, and the terms
    tx: Tx,
    loaded: Loaded,
    derived: Derived,
    *,
    quote: Cost | None,
    mint: Callable[[], bytes],
    now: int,
    terms: Terms,
    held: frozenset[bytes],
) -> Outcome:
    """Fold an event in, inside a transaction of the caller's, which may fold in others before and after.

    Args:
        tx: The transaction.
        loaded: The event.
        derived: What it says.
        quote: As for `settle`.
        mint: As for `settle`.
        now: When, in microseconds; only noted.
        terms: As for `settle`.
        held: What is held of the event's org: `locks_of(loaded, derived)`, and what `Widen` named before.

    Raises:
        Widen: More must be held: roll back and run again.
    """
    work = Work(tx, loaded.org, held, mint, now, terms)
    evidence = derived.evidence
    org = loaded.org.bytes
    if evidence is not None:
        work.about = await _about(work, evidence)
    if work.about is not None and work.about.gone:
        await free(tx, loaded.org, [loaded.event_id])
        row = await tx.one(
            "raw_events.refuse", org=org, event_id=loaded.event_id, was=loaded.state, stamp=derived.stamp
        )
        return Lost() if row is None else Refused()
    row = await tx.one(
        "raw_events.derived",
        derive_state="unparsed" if evidence is None else "derived",
        derive_version=terms.version,
        error=derived.unparsed,
        org=org,
        event_id=loaded.event_id,
        was=loaded.state,
        stamp=derived.stamp,
    )
    if row is None:
        return Lost()
    if points.armed:
        points.reach("sessions.deriving")
    said, parts = _shrunk(evidence)
    if said is not None:
        await _note_price(work, said, derived, quote)
    new = [] if said is None else [Seen(said, loaded.caller, b"")]
    own = [] if work.about is not None and not work.about.known else await own_of(work, loaded.event_id)
    await apply(work, await replace(work, own, new), derived if said is not None else Derived(), said, parts)
    return Unparsed(derived.unparsed) if said is None else _folded(work, said)


def _folded(work: Work, said: Evidence) -> Folded:
    """Return where an evidence is now."""
    turn = next(change.new for change in work.changes.values() if change.new is not None and said in change.new.cell)
    assert turn.session_id is not None
    return Folded(turn.facts.turn_id, turn.session_id)


async def _about(work: Work, evidence: Evidence) -> About:
    says = evidence.says
    row = await work.tx.one(
        "turn_evidence.about",
        org=work.org.bytes,
        event_id=evidence.event_id,
        evidence_key=evidence.evidence_key,
        harness_id=jcs.scrub(says.harness_id),
        harness_session_id=jcs.scrub(says.harness_session_id),
        provider=jcs.scrub(evidence.provider),
        message_id=jcs.scrub(evidence.message_id),
        request_id=jcs.scrub(evidence.request_id),
        join_key=evidence.join_key,
    )
    assert row is not None
    return About(evidence, *row)


def _shrunk(evidence: Evidence | None) -> tuple[Evidence | None, dict[bytes, bytes]]:
    if evidence is None:
        return None, {}
    small, parts = rows.shrink(evidence.says.request_params)
    says = msgspec.structs.replace(evidence.says, request_params=small)
    return msgspec.structs.replace(evidence, says=says), parts


async def _note_price(work: Work, evidence: Evidence, derived: Derived, quote: Cost | None) -> None:
    """Price an evidence that measures usage, the first time it is derived."""
    assert work.about is not None
    if work.about.priced:
        return
    key = evidence.event_id, evidence.evidence_key
    work.prices[key] = None
    if derived.query is not None:
        cost = quote or Cost(None, "unpriced", "", ())
        price = work.prices[key] = Price(pricing.to_pusd(cost.usd), cost.state, cost.price_version)
        line = (work.org.bytes, *key, 0, work.now, "derive", price.state, price.cost_pusd, price.price_version)
        await work.tx.run("cost_ledger.append", [(*line, rows.write_lines(cost), "", "")])


# --- evidence and turns -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moves:
    """What becomes of evidences.

    Attributes:
        before: Those of the groups that are touched, by id, as they were.
        after: As they are.
    """

    before: dict[tuple[bytes, str], Seen]
    after: dict[tuple[bytes, str], Seen]


async def own_of(work: Work, event_id: bytes) -> list[Seen]:
    """Return the stored evidences of an event."""
    return [seen_of(row) for row in await work.tx.all("turn_evidence.of_event", org=work.org.bytes, event_id=event_id)]


async def replace(work: Work, own: Sequence[Seen], new: Sequence[Seen]) -> Moves:
    """Put evidences in the place of others, part their groups anew, and find the groups of what has no session id."""
    before = await _groups(work, own, new)
    gone = {each.id for each in own}
    after = {key: seen for key, seen in before.items() if key not in gone}
    after |= {each.id: each for each in new}
    await _part(work, before, after, {each.id for each in (*own, *new)})
    await regroup(work)
    return Moves(before, after)


async def _groups(work: Work, own: Iterable[Seen], new: Iterable[Seen]) -> dict[tuple[bytes, str], Seen]:
    """Return the stored evidences of all groups that evidences are in, and that those lead to."""
    found = {each.id: each for each in own}
    unseen = [*found.values(), *new]
    asked: set[tuple[str, ...]] = set()
    while unseen:
        evidence = unseen.pop().evidence
        work.guard(evidence)
        rows_: list[object] = []
        named, joined = (evidence.provider, evidence.message_id), (evidence.join_key or "",)
        if evidence.message_id and named not in asked and await _is_mixed(work, evidence):
            asked.add(named)
            rows_ += await work.tx.all(
                "turn_evidence.named",
                org=work.org.bytes,
                provider=jcs.scrub(evidence.provider),
                message_id=jcs.scrub(evidence.message_id),
            )
        if evidence.join_key and joined not in asked and await _is_joined(work, evidence):
            asked.add(joined)
            rows_ += await work.tx.all("turn_evidence.joined", org=work.org.bytes, join_key=evidence.join_key)
        for seen in map(seen_of, rows_):
            if seen.id not in found:
                found[seen.id] = seen
                unseen.append(seen)
    return found


async def _is_mixed(work: Work, evidence: Evidence) -> bool:
    """Say whether the others of an evidence's message id may share a turn with it.

    A server whose message ids repeat makes large groups; each of its calls is a turn by itself all the same.
    """
    if evidence.rank:
        return True
    if work.about is not None and work.about.is_of(evidence):
        return work.about.mixed
    row = await work.tx.one(
        "turn_evidence.mixed",
        org=work.org.bytes,
        provider=jcs.scrub(evidence.provider),
        message_id=jcs.scrub(evidence.message_id),
        request_id=jcs.scrub(evidence.request_id),
        event_id=evidence.event_id,
    )
    return row is not None


async def _is_joined(work: Work, evidence: Evidence) -> bool:
    """Say whether an evidence's join key decides anything: somebody without a message id must have it."""
    if evidence.rank and not evidence.message_id:
        return True
    if work.about is not None and work.about.is_of(evidence):
        return work.about.joined
    row = await work.tx.one("turn_evidence.loose", org=work.org.bytes, join_key=evidence.join_key)
    return row is not None


async def _part(
    work: Work,
    before: dict[tuple[bytes, str], Seen],
    after: dict[tuple[bytes, str], Seen],
    own: set[tuple[bytes, str]],
) -> None:
    """Note which turns come, change or go."""
    held: dict[bytes, list[Seen]] = defaultdict(list)
    for seen in before.values():
        held[seen.turn_id].append(seen)
    cells = {identity_of(cell): cell for cell in turns.partition([each.evidence for each in after.values()])}
    for turn_id in sorted(held.keys() | cells.keys()):
        cell = cells.get(turn_id)
        was = tuple(sorted((each.evidence for each in held.get(turn_id, ())), key=lambda each: (each.rank, each.mark)))
        # What an event says is written again even where it says the same: that is how rows are rebuilt.
        if cell is not None and cell == was and not any((each.event_id, each.evidence_key) in own for each in cell):
            continue
        old: Kept | None = None
        if was:
            row = await work.tx.one("turns.get", org=work.org.bytes, turn_id=turn_id)
            if row is not None:
                old = kept_of(row, held[turn_id])
        new = None
        if cell is not None:
            new = await work.made(cell, after[cell[0].event_id, cell[0].evidence_key].caller)
        for side in (old, new):
            work.guard_turn(side)
        work.changes[turn_id] = Change(old, new)


def identity_of(cell: tuple[Evidence, ...]) -> bytes:
    """Return the id of the turn of a cell: that of the evidence that came into the ledger first."""
    first = min(cell, key=lambda each: (each.seq, each.evidence_key))
    return identity.turn_id(first.event_id, first.evidence_key)


# --- rows ---------------------------------------------------------------------------------------------


async def apply(work: Work, moves: Moves, derived: Derived, said: Evidence | None, parts: dict[bytes, bytes]) -> None:
    """Write what changed: evidences, turns, nodes and links, sessions, parents, and the list of changes."""
    standings = Standings(work)
    await _write_turns(work, standings)
    await _write_evidence(work, moves)
    await _write_chains(work, derived, said, parts)
    if points.armed:
        points.reach("sessions.folding")
    await _fold(work, standings)
    needed = await settle_parents(work, standings)
    await standings.write(needed)


async def _write_turns(work: Work, standings: Standings) -> None:
    org = work.org.bytes
    dropped, put, changes = [], [], []
    for turn_id, change in sorted(work.changes.items()):
        if change.new is None:
            if change.old is not None:
                dropped.append((org, turn_id))
                changes.append((org, "turn", turn_id, change.old.row_hash, 1))
            continue
        session_id = (await standings.find(change.new.facts.key)).session_id
        row_hash = rows.hash_turn(change.new.facts, change.new.cell)
        work.changes[turn_id] = Change(
            change.old,
            Kept(change.new.facts, change.new.cell, change.new.caller, session_id, row_hash),
        )
        put.append((org, *columns_of(work.changes[turn_id].new, row_hash)))
        changes.append((org, "turn", turn_id, row_hash, 0))
    if dropped:
        await work.tx.run("turns.drop", dropped)
    await work.tx.run("turns.put", put)
    standings.changes += changes


def columns_of(kept: Kept | None, row_hash: bytes) -> tuple[object, ...]:
    """Return the columns of a turn, as far as they are asked for."""
    assert kept is not None
    facts = kept.facts
    counts = [None if facts.usage is None else getattr(facts.usage, column) for column in COLUMNS]
    return (
        facts.turn_id,
        kept.session_id,
        jcs.scrub(facts.thread_id),
        jcs.scrub(facts.provider),
        jcs.scrub(facts.model),
        jcs.scrub(facts.agent_name),
        facts.status,
        jcs.scrub(facts.stop_reason),
        facts.captured_at,
        kept.mark,
        kept.caller,
        bytes.fromhex(facts.response_hash) or None,
        bytes.fromhex(facts.continues_hash) or None,
        *counts,
        facts.usage_state,
        facts.usage_event,
        facts.usage_key,
        facts.cost_pusd,
        facts.computed_pusd,
        facts.cost_state,
        facts.price_version,
        jcs.write([jcs.scrub(tag) for tag in facts.tags]).decode(),
        row_hash,
    )


async def _write_evidence(work: Work, moves: Moves) -> None:
    org = work.org.bytes
    gone = [(org, *key) for key in sorted(moves.before.keys() - moves.after.keys())]
    if gone:
        await work.tx.run("turn_evidence.drop", gone)
    of_turn = {
        (each.event_id, each.evidence_key): turn_id
        for turn_id, change in work.changes.items()
        if change.new is not None
        for each in change.new.cell
    }
    put = []
    for key, seen in sorted(moves.after.items()):
        turn_id = of_turn.get(key, seen.turn_id)
        if moves.before.get(key) == seen and turn_id == seen.turn_id:
            continue
        one = seen.evidence
        put.append(
            (
                org,
                *key,
                one.seq,
                turn_id,
                one.rank,
                one.source,
                rows.mark_of(one.mark),
                jcs.scrub(one.provider),
                jcs.scrub(one.message_id),
                jcs.scrub(one.request_id),
                one.join_key,
                seen.caller,
                rows.write_account(one.says),
            )
        )
    await work.tx.run("turn_evidence.put", put)


async def _write_chains(work: Work, derived: Derived, said: Evidence | None, parts: dict[bytes, bytes]) -> None:
    """Link nodes and parts to the sessions that evidences have come to, and unlink them where they have left."""
    was: dict[tuple[bytes, str], tuple[bytes, Evidence]] = {}
    now: dict[tuple[bytes, str], tuple[bytes, Evidence]] = {}
    for change in work.changes.values():
        for side, into in ((change.old, was), (change.new, now)):
            if side is not None and side.session_id is not None:
                for each in side.cell:
                    into[each.event_id, each.evidence_key] = side.session_id, each
    left: set[bytes] = set()
    for key, (session_id, evidence) in now.items():
        if said is not None and evidence is said:
            await chains.add_chain(work, session_id, said, derived)
            await chains.add_parts(work, session_id, parts)
        elif key not in was or was[key][0] != session_id:
            await chains.add_held(work, session_id, evidence)
    for key, (session_id, evidence) in was.items():
        if key not in now or now[key] != (session_id, evidence):
            left.add(session_id)
    for session_id in sorted(left):
        await chains.relink(work, session_id)


# --- sessions -----------------------------------------------------------------------------------------


async def _fold(work: Work, standings: Standings) -> None:
    """Fold turns into their sessions; where that takes all turns of one, read them all."""
    steps: dict[SessionKey, list[tuple[Kept | None, Kept | None]]] = defaultdict(list)
    for _, change in sorted(work.changes.items()):
        old, new = change.old, change.new
        if old is not None and (new is None or new.facts.key != old.facts.key):
            steps[old.facts.key].append((old, None))
            old = None
        if new is not None:
            steps[new.facts.key].append((old, new))
    for key in sorted(steps):
        standing = await standings.find(key)
        row = standing.fold
        for before, after in steps[key]:
            row = turns.fold(row, None if before is None else before.facts, None if after is None else after.facts)
            if row is None:
                row = await refolded(work, standing.session_id, key)
                break
        standing.fold = row


async def refolded(work: Work, session_id: bytes, key: SessionKey) -> SessionRow | None:
    """Return what all stored turns of a session make of it; None where it has none."""
    named = {"org": work.org.bytes, "session_id": session_id}
    cells: dict[bytes, list[Seen]] = defaultdict(list)
    for row in await work.tx.all("turn_evidence.of_session", **named):
        cells[row.turn_id].append(seen_of(row))
    found = await work.tx.all("turns.of_session", **named)
    return turns.refold(key, (kept_of(row, cells[row.turn_id]).facts for row in found))


async def mend(database: Database, org: UUID, session_id: bytes, *, mint: Callable[[], bytes], terms: Terms) -> None:
    """Make a session anew of its stored turns: what is folded, what it holds, and the parents it is concerned with."""
    held: frozenset[bytes] = frozenset()
    while True:
        try:
            async with database.write() as tx:
                work = Work(tx, org, held, mint, database.clock.now(), terms)
                await work.take()
                standings = Standings(work)
                standing = await standings.get(session_id)
                if standing is not None:
                    await work.guard_session(session_id, standing.key)
                    await chains.relink(work, session_id)
                    standing.fold = await refolded(work, session_id, standing.key)
                    await standings.write(await settle_parents(work, standings, whole=True), again=True)
                return
        except Widen as more:
            held |= more.keys
