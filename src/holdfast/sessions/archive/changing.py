"""What an operator does to a session: give it a name, delete it, let its key come back.

Deleting takes what the session's events say out of everything, in one transaction: turns that other events tell of
too move to the sessions of those, and a message that others hold as well keeps the form that the next of them gave it.

Invariants:
    - After a delete nothing of the session is left but its id and the note that it was deleted.
    - What was deleted does not come back by being sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from holdfast.sessions import identity, jcs
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.alone import alone
from holdfast.sessions.archive.attributions import events_under
from holdfast.sessions.archive.captures import Loaded, load, recorded
from holdfast.sessions.archive.derive import apply, own_of, replace
from holdfast.sessions.archive.family import settle_parents
from holdfast.sessions.archive.packing import free
from holdfast.sessions.archive.standing import Standings
from holdfast.sessions.archive.work import Seen, Terms, Widen, Work, lock_names
from holdfast.sessions.derivation import Derived
from holdfast.sessions.values import SessionKey
from holdfast.store.database import Database

__all__ = ["Deleted", "delete", "rename", "undelete"]

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a delete took away, or would take.

    Attributes:
        events: Captured events, with their bodies.
        turns: Turns that went.
        moved: Turns that other events tell of too: they are in the sessions of those now.
    """

    session_id: bytes
    events: int
    turns: int
    moved: int


async def delete(  # noqa: PLR0913 - which session, who says so, and the terms
    database: Database,
    org: UUID,
    session_id: bytes,
    *,
    actor: str,
    reason: str,
    read: Callable[[Loaded], Derived],
    mint: Callable[[], bytes],
    terms: Terms,
    dry_run: bool = False,
) -> Deleted | None:
    """Delete a session with all its events; None where there is none.

    Args:
        database: The ledger.
        org: Whose.
        session_id: Which.
        actor: Who says so; kept.
        reason: Why; kept.
        read: Says what an event says: a message whose first sender goes takes the form that the next one gave it.
        mint: Makes an id of 16 bytes.
        terms: What derivation depends on.
        dry_run: Say what would go, and leave it.
    """
    async with alone(database, org, mint=mint, terms=terms, dry_run=dry_run) as work:
        return await _delete(work, session_id, actor, reason, read)


async def _delete(
    work: Work, session_id: bytes, actor: str, reason: str, read: Callable[[Loaded], Derived]
) -> Deleted | None:
    tx, org = work.tx, work.org.bytes
    standing = await Standings(work).get(session_id)
    if standing is None:
        return None
    note = (org, *standing.key, session_id, work.now, jcs.scrub(actor), jcs.scrub(reason))
    await tx.run("tombstones.put", [note])
    events = await _events(work, standing.key, session_id)
    own = [seen for event_id in events for seen in await own_of(work, event_id)]
    touched = await _touched(work, session_id, own)
    moves = await replace(work, own, [])
    await apply(work, moves, Derived(), None, {})
    await _forget(work, session_id)
    await _mend_nodes(work, touched, read)
    gone = [(org, event_id) for event_id in events]
    await free(tx, work.org, events)
    await tx.run("raw_events.drop", gone)
    await tx.run("cost_ledger.drop", gone)
    await tx.run("edits.drop", [(org, session_id)])
    turns = [
        change for change in work.changes.values() if change.old is not None and change.old.session_id == session_id
    ]
    moved = sum(change.new is not None for change in turns)
    return Deleted(session_id, len(events), len(turns) - moved, moved)


async def _forget(work: Work, session_id: bytes) -> None:
    """Take away a session that had no turns of its own, and tell those whose parent it was."""
    standings = Standings(work)
    if await standings.get(session_id) is not None:
        await standings.write(await settle_parents(work, standings, whole=True))


async def _events(work: Work, key: SessionKey, session_id: bytes) -> list[bytes]:
    """Return the events of a session: those that were sent or put under its key, or, where nobody sent one, grouped."""
    org = work.org.bytes
    if identity.is_synthetic(key[1]):
        found = await work.tx.all("turn_evidence.of_session", org=org, session_id=session_id)
        return sorted({row.event_id for row in found})
    return await events_under(work.tx, work.org, key)


async def _touched(work: Work, session_id: bytes, own: list[Seen]) -> list[tuple[int, bytes]]:
    """Return the nodes whose kept form is of evidences that go."""
    marks = {rows.mark_of(each.evidence.mark) for each in own}
    sessions = {session_id}
    for each in own:
        row = await work.tx.one("turns.session_of", org=work.org.bytes, turn_id=each.turn_id)
        if row is not None:
            sessions.add(row.session_id)
    found: dict[tuple[int, bytes], None] = {}
    for each_id in sorted(sessions):
        for row in await work.tx.all("nodes.kept", org=work.org.bytes, session_id=each_id):
            if row.mark in marks:
                found[row.hash_version, row.hash] = None
    return list(found)


async def _mend_nodes(work: Work, touched: list[tuple[int, bytes]], read: Callable[[Loaded], Derived]) -> None:
    """Give nodes that are still held the form that the first of their senders gave them."""
    org = work.org.bytes
    wanted: dict[bytes, list[tuple[int, bytes]]] = {}
    for version, hashed in touched:
        found = await work.tx.all("node_links.of_node", org=org, hash_version=version, hash=hashed, limit=1)
        if found:
            wanted.setdefault(found[0].mark, []).append((version, hashed))
    for mark, nodes in sorted(wanted.items()):
        known = await recorded(work.tx, work.org, rows.read_mark(mark)[1])
        loaded = None if known is None else await load(work.tx, work.org, known.event_id)
        if loaded is None:
            continue
        forms = {bytes.fromhex(node.hash): node for node in read(loaded).nodes}
        mended = [
            (rows.write_blocks(forms[hashed]), mark, org, version, hashed)
            for version, hashed in nodes
            if hashed in forms
        ]
        await work.tx.run("nodes.mend", mended)


async def undelete(database: Database, org: UUID, key: SessionKey, *, mint: Callable[[], bytes], terms: Terms) -> bool:
    """Let events of a deleted session be taken again; say whether it was deleted. What was deleted stays so."""
    held: frozenset[bytes] = frozenset(lock_names([key]))
    while True:
        try:
            async with database.write() as tx:
                work = Work(tx, org, held, mint, database.clock.now(), terms)
                await work.take()
                return await _undelete(work, key)
        except Widen as more:
            held |= more.keys


async def _undelete(work: Work, key: SessionKey) -> bool:
    harness_id, harness_session_id = map(jcs.scrub, key)
    row = await work.tx.one(
        "tombstones.drop", org=work.org.bytes, harness_id=harness_id, harness_session_id=harness_session_id
    )
    if row is None:
        return False
    standings = Standings(work)
    await standings.find(key)  # whoever names it as the parent waits for it again
    await standings.write(await settle_parents(work, standings, whole=True))
    return True


async def rename(database: Database, org: UUID, session_id: bytes, display_name: str | None, *, actor: str) -> bool:
    """Give a session the name it is shown with, or take it away; say whether there is such a session."""
    held: frozenset[bytes] = frozenset()
    while True:
        try:
            async with database.write() as tx:
                work = Work(tx, org, held, _no_id, database.clock.now(), Terms())
                await work.take()
                return await _rename(work, session_id, display_name, actor)
        except Widen as more:
            held |= more.keys


async def _rename(work: Work, session_id: bytes, display_name: str | None, actor: str) -> bool:
    org = work.org.bytes
    standings = Standings(work)
    standing = await standings.get(session_id)
    if standing is None or standing.fold is None:
        return False
    await work.guard_session(session_id, standing.key)
    row = await work.tx.one("edits.last", org=org, session_id=session_id)
    number = 0 if row is None else row.n + 1
    name = jcs.scrub(display_name) if display_name else None
    await work.tx.run("edits.append", [(org, session_id, number, name, jcs.scrub(actor), work.now)])
    standing.display_name = name
    await standings.write(None)
    return True


def _no_id() -> bytes:
    raise AssertionError("renaming mints nothing")
