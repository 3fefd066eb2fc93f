"""Whole tables in the order of their keys, a page at a time; and one hash over all that was derived.

The hash is the same for two stores that were told the same, whatever came first and whoever told or derived it: ids
that were minted stand there by what they stand for, and what tells of arrival, or of a store's own secret, is left out.

Invariants:
    - A table is never held in memory as a whole; what the hash needs of it is a digest for each row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
from blake3 import blake3

from holdfast.sessions.archive import rows
from holdfast.store.database import Row, Tx

__all__ = ["orgs", "projection_hash", "scan"]

_PAGE = 500
_JSON = msgspec.json.Encoder(order="sorted")

_KEYS: dict[str, tuple[tuple[str, object], ...]] = {
    "raw_events.scan": (("seq", 0),),
    "turn_evidence.scan": (("event_id", b""), ("evidence_key", "")),
    "turns.scan": (("turn_id", b""),),
    "nodes.scan": (("hash_version", -1), ("hash", b"")),
    "node_links.scan": (("session_id", b""), ("hash_version", -1), ("hash", b"")),
    "parts.scan": (("hash", b""),),
    "part_links.scan": (("session_id", b""), ("hash", b"")),
    "sessions.scan": (("session_id", b""),),
    "changes.scan": (("kind", ""), ("id", b"")),
}
"""The columns that each statement reads by, and what comes before any value of them."""


async def orgs(tx: Tx) -> list[UUID]:
    """Return every org that has anything."""
    return [UUID(bytes=bytes(row.org)) for row in await tx.all("raw_events.orgs")]


async def scan(tx: Tx, org: UUID, statement: str, *, page: int = _PAGE) -> AsyncIterator[Row]:
    """Give the rows of a table in the order of their key, by the statement that reads a page of it."""
    names = [name for name, _ in _KEYS[statement]]
    after = {f"after_{name}": value for name, value in _KEYS[statement]}
    while True:
        found = await tx.all(statement, org=org.bytes, **after, limit=page)
        for row in found:
            yield row
        if len(found) < page:
            return
        after = {f"after_{name}": getattr(found[-1], name) for name in names}


async def projection_hash(tx: Tx, org: UUID) -> str:
    """Return the hash of everything that was derived for an org: 64 hex digits."""
    hashed = blake3()
    sessions: dict[bytes, list[str]] = {}
    after = b""
    while True:
        found = await tx.all("ids.scan", org=org.bytes, after_id=after, limit=_PAGE)
        sessions |= {row.session_id: [row.harness_id, row.harness_session_id] for row in found}
        if len(found) < _PAGE:
            break
        after = found[-1].session_id
    marks: dict[tuple[bytes, str], bytes] = {}
    turns: dict[bytes, bytes] = {}
    async for row in scan(tx, org, "turns.scan"):
        turns[row.turn_id] = row.mark
    digests: list[bytes] = []
    async for row in scan(tx, org, "turn_evidence.scan"):
        marks[row.event_id, row.evidence_key] = row.mark
        digests.append(_digest(turns.get(row.turn_id), row[4:11], rows.unpack(row.facts)))
    _add(hashed, "evidence", digests)
    async for row in scan(tx, org, "turns.scan"):
        usage = marks.get((row.usage_event, row.usage_key))
        plain = [
            value
            for name, value in zip(row._fields, row, strict=True)
            if name not in ("turn_id", "session_id", "caller", "usage_event", "usage_key")
        ]
        digests.append(_digest(row.mark, sessions.get(row.session_id), usage, plain))
    _add(hashed, "turns", digests)
    digests += [_digest(*row[:4], rows.unpack(row.content), row.mark) async for row in scan(tx, org, "nodes.scan")]
    _add(hashed, "nodes", digests)
    digests += [_digest(sessions.get(row.session_id), *row[1:]) async for row in scan(tx, org, "node_links.scan")]
    _add(hashed, "links", digests)
    digests += [_digest(row.hash, rows.unpack(row.content)) async for row in scan(tx, org, "parts.scan")]
    _add(hashed, "parts", digests)
    digests += [_digest(sessions.get(row.session_id), row.hash) async for row in scan(tx, org, "part_links.scan")]
    _add(hashed, "part_links", digests)
    async for row in scan(tx, org, "sessions.scan"):
        fold = None if row.fold is None else rows.unpack(row.fold)
        plain = [
            value
            for name, value in zip(row._fields, row, strict=True)
            if name not in ("session_id", "parent_session_id", "fold")
        ]
        digests.append(_digest(sessions.get(row.parent_session_id or b""), fold, plain))
    _add(hashed, "sessions", digests)
    return hashed.hexdigest()


def _digest(*values: object) -> bytes:
    return blake3(_JSON.encode(values)).digest()


def _add(hashed: blake3, table: str, digests: list[bytes]) -> None:
    """Add the rows of a table, by what they say: their order in the store depends on ids."""
    hashed.update(_JSON.encode([table, len(digests)]))
    for each in sorted(digests):
        hashed.update(each)
    digests.clear()
