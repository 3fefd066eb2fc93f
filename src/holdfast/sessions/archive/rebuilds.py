"""How far everything of an org has been derived anew: a note that is there while that goes on, and survives a crash.

Invariants:
    - What a rebuild has passed is not looked at again when it goes on.
    - Events that come meanwhile are not its concern: they are derived by the same rules anyway.
"""

from __future__ import annotations

from uuid import UUID

from holdfast.store.database import Database, Tx

__all__ = ["advance", "begin", "count", "events_of", "page"]

_PAGE = 200


async def begin(database: Database, org: UUID) -> None:
    """Begin a rebuild of an org, or go on with the one that was broken off."""
    async with database.write() as tx:
        await tx.run("rebuilds.begin", [(org.bytes, database.clock.now())])


async def page(tx: Tx, org: UUID) -> list[tuple[int, bytes]]:
    """Return the events that come next, with their places in the order of coming; none: it has come to its end."""
    at = await tx.one("rebuilds.get", org=org.bytes)
    if at is None:
        return []
    found = await tx.all("raw_events.page", org=org.bytes, after=at.after_seq, limit=_PAGE)
    return [(row.seq, row.event_id) for row in found if row.seq <= at.until_seq]


async def count(tx: Tx, org: UUID) -> int:
    """Return how many events a rebuild would have to derive, or has left."""
    row = await tx.one("rebuilds.left", org=org.bytes)
    assert row is not None
    return int(row.count)


async def advance(database: Database, org: UUID, seq: int | None) -> None:
    """Note that all events up to a place were derived anew; None: all of them were."""
    async with database.write() as tx:
        if seq is None:
            await tx.run("rebuilds.finish", [(org.bytes,)])
        else:
            await tx.run("rebuilds.advance", [(seq, org.bytes)])


async def events_of(tx: Tx, org: UUID, session_id: bytes) -> list[bytes]:
    """Return the events that tell of a session's turns, in the order they came."""
    found = await tx.all("turn_evidence.of_session", org=org.bytes, session_id=session_id)
    return [event_id for _, event_id in sorted({(row.seq, row.event_id) for row in found})]
