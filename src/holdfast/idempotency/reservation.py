"""Claim a key: find its row, make it, or take it over, in as few statements as that can be done.

What a claim means is decided by `machine.transition`. Here is how its answer gets into the ledger while others do
the same: a row is made under a unique key, or taken over under the fence that was read, so of all who try one
succeeds, and whoever loses looks again.

While secrets are rotated a key has several ids. The record stands under the first, a pointer row (an alias) under
each other, and they are made in ascending order, so that two processes that share any secret meet on a row of it.

Invariants:
    - A claim that changes nothing writes nothing.
    - A row is taken over only as it was read: under the same fence, state, lease and mark.
    - A holder's record stands under the first key id of its claim.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from holdfast.idempotency import machine
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.rows import NEWER, record_of
from holdfast.idempotency.rules import lapse_by_method
from holdfast.idempotency.values import (
    Absent,
    Conflict,
    Decision,
    InFlight,
    KeyRecord,
    Lapse,
    Mode,
    Proceed,
    Replay,
    Running,
    State,
)
from holdfast.store.database import Row, Tx

__all__ = ["Claim", "Terms", "lookup", "reserve"]

LOOKS_MAX = 5
"""How often a claim looks again at a row that others change under it before it says that they are at it."""
HOUR_US = 3_600_000_000


@dataclass(slots=True, kw_only=True)
class Claim:
    """What is claimed, by whom, and under which policy. Made for every request, so not frozen.

    Attributes:
        key_ids: The key's id under each accepted secret, the writing one's first; 16 bytes each.
        scope_ids: The principal's, in the same order.
        record_id: Names the operation, should the key be new.
        fingerprint: What a retry must not differ in; 32 bytes.
        claim_id: 16 bytes that no other claim has.
        owner: The owner id of this process.
        method: The request's method, or `CALL`.
        route: The rule's path, else the endpoint's, else `*`.
        fp_version: The rules the fingerprint was made by.
        mode: Where claim and outcome are committed.
        on_lapse: What a lapse means; None: by method.
        irreversible: Whether the effect is marked as one that cannot be taken back from the start.
        execution_id: In mode `execution`.
        first_sent_at: What the client said about its first sending.
    """

    key_ids: tuple[bytes, ...]
    scope_ids: tuple[bytes, ...]
    record_id: bytes
    fingerprint: bytes
    claim_id: bytes
    owner: str
    method: str
    route: str
    fp_version: int = 1
    mode: Mode = "separate"
    on_lapse: Lapse | None = None
    irreversible: bool = False
    execution_id: str | None = None
    first_sent_at: int | None = None


@dataclass(slots=True)
class Terms:
    """The terms of one claim: until when, since when, and within which limits. Made for every request, so not frozen.

    Attributes:
        lease_until: When it lapses.
        expires_at: When the key is new again if nothing is settled.
        now: The present.
        in_flight_max: Live claims of one principal.
        keys_per_hour_max: New keys of one principal in an hour.
        stored_bytes_max: Recorded bytes of one principal.
        dead: An owner that is proven dead; its claims have lapsed.
        attached: What `attach` said of a lapsed record's execution; None: it was not asked.
        new: Whether the key is taken to be new: its row is made at once, and looked for when there is one already.
    """

    lease_until: int
    expires_at: int
    now: int
    in_flight_max: int | None = None
    keys_per_hour_max: int | None = None
    stored_bytes_max: int | None = None
    dead: str | None = None
    attached: Running | Absent | None = None
    new: bool = False

    @property
    def counted(self) -> bool:
        """Whether keys or bytes of a principal are limited."""
        return self.keys_per_hour_max is not None or self.stored_bytes_max is not None


@dataclass(slots=True)
class _Seen:
    """What a look at a key found.

    Attributes:
        row: The record's row.
        record: The record, or None when the row counts as absent.
        after: The record as the claim would leave it.
        decision: What the claim comes to.
    """

    row: Row
    record: KeyRecord | None
    after: KeyRecord | None
    decision: Decision


async def reserve(tx: Tx, claim: Claim, terms: Terms) -> Decision:
    """Claim a key; see `keys.claim`."""
    for _ in range(LOOKS_MAX):
        if len(claim.key_ids) > 1:
            decision = await _reserve_all(tx, claim, terms)
        elif terms.counted and await _is_refused(tx, claim, terms):
            return Conflict("quota")
        else:
            row = await _write(tx, "keys.make" if terms.new else "keys.claim", claim, terms)
            if row is not None and (terms.new or _is_ours(row, claim)):
                return Proceed(row.fence, 1, claim.record_id) if terms.new else _proceed(row)
            decision = await _reserve_one(tx, claim, terms, row)
        if decision is not None:
            return decision
    return InFlight(terms.lease_until, terms.now)


async def lookup(tx: Tx, claim: Claim, *, now: int, dead: str | None = None) -> Decision | None:
    """Say what a claim would come to, without writing; None: it would run, or must be made to know."""
    terms = Terms(lease_until=now, expires_at=now, now=now, dead=dead)
    for key_id in claim.key_ids:
        row = await tx.one("keys.get", key_id=key_id)
        if row is None:
            continue
        found = await _follow(tx, row)
        if found is None:
            continue
        seen = _look(claim, terms, found)
        if isinstance(seen.decision, Proceed) or seen.after is not seen.record:
            return None
        return seen.decision
    return None


# One key id


async def _is_refused(tx: Tx, claim: Claim, terms: Terms) -> bool:
    """Say whether the key would be new, and its principal may have no more."""
    row = await tx.one("keys.get", key_id=claim.key_ids[0])
    return (row is None or _expired(row, terms)) and await _used_up(tx, claim, terms)


async def _reserve_one(tx: Tx, claim: Claim, terms: Terms, row: Row | None) -> Decision | None:
    """Claim under the only key id, which has a row already, or one too many; None: look again."""
    key_id = claim.key_ids[0]
    if row is None:
        row = await tx.one("keys.get", key_id=key_id)
        if row is None:
            return Conflict("quota") if await _full(tx, claim, terms) else None
        if _is_ours(row, claim):
            return _proceed(row)
    found = await _follow(tx, row)
    if found is None or (found.key_id != key_id and _expired(found, terms)):
        # A pointer to nothing, or to what has expired: the record takes its place.
        return await _take(tx, claim, terms, row, _absent(claim, terms))
    seen = _look(claim, terms, found)
    if isinstance(seen.decision, Proceed):
        return await _take(tx, claim, terms, found, seen)
    return await _conclude(tx, claim, terms, seen)


def _write(tx: Tx, statement: str, claim: Claim, terms: Terms) -> Awaitable[Row | None]:
    """Make the row of a key nobody has claimed (`keys.make`); `keys.claim` also gives the one that is there."""
    return tx.one(
        statement,
        key_id=claim.key_ids[0],
        scope_id=claim.scope_ids[0],
        record_id=claim.record_id,
        fingerprint=claim.fingerprint,
        fp_version=claim.fp_version,
        method=claim.method,
        route=claim.route,
        claim_id=claim.claim_id,
        owner=claim.owner,
        lease_until=terms.lease_until,
        mode=claim.mode,
        on_lapse=claim.on_lapse or lapse_by_method(claim.method),
        irreversible=int(claim.irreversible),
        execution_id=claim.execution_id,
        now=terms.now,
        expires_at=terms.expires_at,
        first_sent_at=claim.first_sent_at,
        in_flight_max=terms.in_flight_max,
    )


async def _take(tx: Tx, claim: Claim, terms: Terms, row: Row, seen: _Seen) -> Decision | None:
    """Take a row over; None: it has changed, look again."""
    after = seen.after
    assert after is not None
    won = await tx.one(
        "keys.take",
        scope_id=claim.scope_ids[0],
        record_id=after.record_id,
        fingerprint=after.fingerprint,
        fp_version=after.fp_version,
        method=after.method,
        route=after.route,
        claim_id=after.claim_id,
        attempt=after.attempt,
        owner=after.owner,
        lease_until=after.lease_until,
        mode=after.mode,
        on_lapse=after.on_lapse,
        irreversible=int(after.irreversible),
        execution_id=after.execution_id,
        created_at=after.created_at,
        now=after.claimed_at,
        expires_at=after.expires_at,
        first_sent_at=after.first_sent_at,
        key_id=row.key_id,
        was_fence=row.fence,
        was_state=row.state,
        was_until=row.lease_until,
        was_irreversible=row.irreversible,
        in_flight_max=terms.in_flight_max,
    )
    if won is not None:
        reclaimed = isinstance(seen.decision, Proceed) and seen.decision.reclaimed
        return Proceed(won.fence, won.attempt, won.record_id, reclaimed=reclaimed)
    if terms.in_flight_max is None:
        return None
    again = await tx.one("keys.get", key_id=row.key_id)
    unchanged = again is not None and _stamp(again) == _stamp(row)
    return Conflict("quota") if unchanged and await _full(tx, claim, terms) else None


def _stamp(row: Row) -> tuple[int, int, int, int]:
    """What a takeover depends on."""
    return row.fence, row.state, row.lease_until, row.irreversible


async def _conclude(tx: Tx, claim: Claim, terms: Terms, seen: _Seen) -> Decision | None:
    """Answer a claim that does not run; None: the record has changed, look again."""
    after, record = seen.after, seen.record
    if after is record or record is None or after is None:
        return seen.decision
    # The lapse of an attempt nobody can judge is found out here; the record says so from now on.
    row, decision = seen.row, seen.decision
    if await _full(tx, claim, terms):
        dead = terms.dead == record.owner
        after, decision = _decide(record, claim, terms, owner_dead=dead, quota_reached=True)
        if after is record:
            return decision
        assert after is not None
    won = await tx.one(
        "keys.lapse", reason=after.reason, key_id=row.key_id, fence=row.fence, lease_until=row.lease_until
    )
    return decision if won is not None else None


# Several key ids


async def _reserve_all(tx: Tx, claim: Claim, terms: Terms) -> Decision | None:
    """Claim under every key id, inside a transaction; None: look again."""
    rows = {}
    for key_id in sorted(claim.key_ids):
        row = await tx.one("keys.get", key_id=key_id)
        if row is not None:
            rows[key_id] = row
    seen: list[_Seen] = []
    for row in rows.values():
        if _is_ours(row, claim):
            return _proceed(row)
        found = await _follow(tx, row)
        if found is not None and all(found.key_id != other.row.key_id for other in seen):
            seen.append(_look(claim, terms, found))
    for each in seen:
        if not isinstance(each.decision, Proceed):
            return await _conclude(tx, claim, terms, each)
    if terms.counted and all(each.record is None for each in seen) and await _used_up(tx, claim, terms):
        return Conflict("quota")
    if not rows:
        return await _make_all(tx, claim, terms)
    return await _take_all(tx, claim, terms, rows, seen)


async def _make_all(tx: Tx, claim: Claim, terms: Terms) -> Decision | None:
    made: list[bytes] = []
    proceed: Proceed | None = None
    for key_id in sorted(claim.key_ids):
        if key_id == claim.key_ids[0]:
            row = await _write(tx, "keys.make", claim, terms)
            if row is not None:
                proceed = Proceed(row.fence, 1, claim.record_id)
        else:
            row = await _point(tx, claim, key_id, terms.now)
        if row is None:
            await _undo(tx, made)
            rival = await tx.one("keys.get", key_id=key_id)
            return Conflict("quota") if rival is None and await _full(tx, claim, terms) else None
        made.append(key_id)
    assert proceed is not None
    return proceed


async def _take_all(tx: Tx, claim: Claim, terms: Terms, rows: dict[bytes, Row], seen: list[_Seen]) -> Decision | None:
    """Take the record over, and bring it and its pointers to where this claim's secrets want them."""
    home = claim.key_ids[0]
    made: list[bytes] = []
    for key_id in sorted(set(claim.key_ids) - set(rows)):
        if await _point(tx, claim, key_id, terms.now) is None:
            await _undo(tx, made)
            return None
        made.append(key_id)
    chosen = seen[0] if seen else None
    at = chosen.row if chosen is not None else next(iter(rows.values()))
    decision = await _take(tx, claim, terms, at, chosen or _absent(claim, terms))
    if not isinstance(decision, Proceed):
        await _undo(tx, made)
        return decision
    # Nobody else can have the record now. What is in its way is a pointer, or a record that counts as absent too.
    others = [each.row.key_id for each in seen[1:]]
    if at.key_id != home:
        await tx.run("keys.delete", [(home,)])
        await tx.one("keys.move", key_id=home, old_id=at.key_id)
        others.append(at.key_id)
    for key_id in others:
        if key_id not in (home, at.key_id):
            await tx.run("keys.delete", [(key_id,)])
        await tx.one("keys.repoint", alias_of=home, old_id=key_id)
    for key_id in sorted({*claim.key_ids, *others} - {home}):
        if await _point(tx, claim, key_id, terms.now) is None:
            await tx.one("keys.redirect", alias_of=home, key_id=key_id)
    return decision


async def _point(tx: Tx, claim: Claim, key_id: bytes, now: int) -> Row | None:
    """Make a pointer row to the record; None: there is a row."""
    return await tx.one("keys.alias", key_id=key_id, alias_of=claim.key_ids[0], now=now)


async def _undo(tx: Tx, made: list[bytes]) -> None:
    if made:
        await tx.run("keys.delete", [(key_id,) for key_id in made])


# What a row says


async def _follow(tx: Tx, row: Row) -> Row | None:
    """Return the row of the record that a row leads to; None: it leads to none."""
    if row.state != State.ALIAS:
        return row
    target = await tx.one("keys.get", key_id=row.alias_of)
    return target if target is not None and target.state != State.ALIAS else None


def _look(claim: Claim, terms: Terms, row: Row) -> _Seen:
    try:
        record = record_of(row)
    except RecordUnreadable as error:
        return _Seen(row, None, None, Conflict("newer" if error.code == NEWER else "unreadable"))
    dead = terms.dead is not None and terms.dead == row.owner
    ours = _accepted(row.scope_id, claim.scope_ids)
    if not ours and not machine.expired(record, now=terms.now, owner_dead=dead):
        return _Seen(row, None, None, Conflict("unreadable"))
    after, decision = _decide(record, claim, terms, owner_dead=dead)
    if isinstance(decision, Replay) and record.sealed is None:
        return _Seen(row, None, None, Conflict("unreadable"))
    gone = isinstance(decision, Proceed) and machine.expired(record, now=terms.now, owner_dead=dead)
    return _Seen(row, None if gone else record, after, decision)


def _absent(claim: Claim, terms: Terms) -> _Seen:
    after, decision = _decide(None, claim, terms)
    return _Seen(None, None, after, decision)


def _decide(
    record: KeyRecord | None, claim: Claim, terms: Terms, *, owner_dead: bool = False, quota_reached: bool = False
) -> tuple[KeyRecord | None, Decision]:
    event = machine.Claim(
        key_id=claim.key_ids[0],
        scope_id=claim.scope_ids[0],
        record_id=claim.record_id,
        fingerprint=claim.fingerprint,
        claim_id=claim.claim_id,
        owner=claim.owner,
        method=claim.method,
        route=claim.route,
        fence=0,  # the statement that writes it issues one
        lease_until=terms.lease_until,
        expires_at=terms.expires_at,
        fp_version=claim.fp_version,
        mode=claim.mode,
        on_lapse=claim.on_lapse or lapse_by_method(claim.method),
        irreversible=claim.irreversible,
        first_sent_at=claim.first_sent_at,
        owner_dead=owner_dead,
        quota_reached=quota_reached,
        attached=terms.attached,
    )
    after, decision = machine.transition(record, event, now=terms.now)
    assert not isinstance(decision, bool)
    return after, decision


def _is_ours(row: Row, claim: Claim) -> bool:
    """The claim has been made before, and only its acknowledgement was lost; or it has just been made."""
    return bool(row.claim_id == claim.claim_id and row.state == State.RESERVED)


def _proceed(row: Row) -> Proceed:
    return Proceed(row.fence, row.attempt, row.record_id)


def _accepted(scope_id: bytes, scope_ids: tuple[bytes, ...]) -> bool:
    return any(hmac.compare_digest(scope_id, each) for each in scope_ids)


def _expired(row: Row, terms: Terms) -> bool:
    if row.state == State.ALIAS:
        return False
    try:
        return machine.expired(record_of(row), now=terms.now, owner_dead=terms.dead == row.owner)
    except RecordUnreadable:
        return False


# Quotas


async def _full(tx: Tx, claim: Claim, terms: Terms) -> bool:
    """Say whether the principal has all the live claims it may have."""
    most = terms.in_flight_max
    if most is None:
        return False
    row: Any = await tx.one("keys.live", scope_id=claim.scope_ids[0], now=terms.now, most=most)
    return bool(row.live >= most)


async def _used_up(tx: Tx, claim: Claim, terms: Terms) -> bool:
    """Say whether the principal has made or stored as much as it may."""
    row: Any = await tx.one("keys.usage", since=terms.now - HOUR_US, scope_id=claim.scope_ids[0])
    keys, stored = terms.keys_per_hour_max, terms.stored_bytes_max
    return (keys is not None and row.keys_count >= keys) or (stored is not None and row.stored_bytes >= stored)
