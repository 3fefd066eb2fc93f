"""Change the keys of captured conversations: what is stored is sealed anew with the key that seals now.

It goes through the tables row by row, beside whoever captures, derives and reads; what has the right key already is
passed over, so it may be stopped and begun again at any time.

Invariants:
    - A row is replaced only by what opens to the same, and only while it is as it was read.
    - A key is forgotten only when nothing is sealed with it any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from holdfast.sessions.archive import scans
from holdfast.sessions.sealing import (
    MARK,
    SealedDatabase,
    drop_keys,
    key_of,
    note_key,
    open_value,
    place_of,
    seal_value,
)
from holdfast.store.database import Statements

if TYPE_CHECKING:
    from holdfast.core.keyring import KeyRing
    from holdfast.store.database import Database, Row

__all__ = ["KeyCount", "count_keys", "reseal"]

BATCH: Final = 100
"""Rows of one transaction, unless told otherwise."""


class _Table(NamedTuple):
    """A table with sealed columns: what reads a page of it and what replaces them, and what names a row of an org."""

    scan: str
    reseal: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]


_TABLES: Final = (
    _Table("raw_events.scan", "raw_events.reseal", ("event_id",), ("envelope", "request", "response")),
    _Table("turn_evidence.scan", "turn_evidence.reseal", ("event_id", "evidence_key"), ("facts",)),
    _Table("nodes.scan", "nodes.reseal", ("hash_version", "hash"), ("content",)),
    _Table("parts.scan", "parts.reseal", ("hash",), ("content",)),
    _Table("sessions.scan", "sessions.reseal", ("session_id",), ("fold",)),
)


@dataclass(frozen=True, slots=True)
class KeyCount:
    """How many values of a table are sealed with a key.

    Attributes:
        key_id: The number of the key; 0: not sealed.
    """

    table: str
    key_id: int
    count: int


async def count_keys(database: Database) -> list[KeyCount]:
    """Return with which keys the captured conversations of a ledger are sealed. Needs no key."""
    async with database.read() as tx:
        found = await tx.all("raw_events.count_keys", mark=MARK)
    return [KeyCount(row.item, 0 if row.head is None else key_of(row.head), row.count) for row in found]


async def reseal(database: SealedDatabase, *, batch: int = BATCH) -> int:
    """Seal with the current key whatever is not; return how many rows that were.

    Args:
        database: What seals in the ledger.
        batch: Rows of one transaction.

    Raises:
        ConfigError: Something is sealed with a key that is not there.
    """
    inner, ring = database.inner, database.ring
    async with inner.write() as tx:
        await note_key(tx, ring)
    count, missed = await _go_through(inner, ring, batch)
    while missed:  # somebody wrote these between reading and writing them
        more, missed = await _go_through(inner, ring, batch)
        count += more
    current = ring.numbers[0]
    if all(each.key_id in (0, current) for each in await count_keys(inner)):
        async with inner.write() as tx:
            await drop_keys(tx, but=current)
    return count


async def _go_through(database: Database, ring: KeyRing, batch: int) -> tuple[int, int]:
    """Seal every row once; return how many that were, and how many were changed by others meanwhile."""
    tried = done = 0
    async with database.read() as tx:
        orgs = await scans.orgs(tx)
    for org in orgs:
        for table in _TABLES:
            changes: list[dict[str, object]] = []
            async for row in scans.scan(Statements(database), org, table.scan, page=batch):
                change = await asyncio.to_thread(_change, ring, org, table, row)
                if change is not None:
                    changes.append(change)
                    tried += 1
                if len(changes) >= batch:
                    done += await _write(database, table, changes)
                    changes.clear()
            done += await _write(database, table, changes)
    return done, tried - done


async def _write(database: Database, table: _Table, changes: list[dict[str, object]]) -> int:
    if not changes:
        return 0
    async with database.write() as tx:
        done = [await tx.one(table.reseal, **change) for change in changes]
    return sum(row is not None for row in done)


def _change(ring: KeyRing, org: UUID, table: _Table, row: Row) -> dict[str, object] | None:
    """Return what seals a row anew; None: it is as it should be."""
    change: dict[str, object] = {name: getattr(row, name) for name in table.keys} | {"org": org.bytes}
    stale = False
    for name in table.columns:
        value: bytes | None = getattr(row, name)
        change[name] = value
        change["was" if len(table.columns) == 1 else f"was_{name}"] = value
        if value is not None and key_of(value) != ring.numbers[0]:
            place = place_of(name, change)
            change[name] = seal_value(ring, open_value(ring, value, place), place)
            stale = True
    return change if stale else None
