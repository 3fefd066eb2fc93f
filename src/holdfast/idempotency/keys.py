"""Keep the records of idempotency keys: functions over a `Tx` that read and change them.

Every change is one statement that names the fence it acts under. When such a statement finds no row, the record is
read and `machine.transition` says whether that is a repetition of what was done before, or a claim that was lost.
So a function may be repeated after a lost acknowledgement, and most serve over `Statements` as well as inside
`database.write()`. Three need a transaction: `claim` with several key ids, `prune` and `force`.

Records come back with their outcome sealed: opening it can take long, and needs no transaction.

Invariants:
    - A write under a fence that is not the record's changes nothing.
    - What a forced action changes and its audit row are committed together.
    - Nothing here compresses, encrypts or waits, unless it is given an outcome that is not sealed yet.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence

from holdfast.core import points
from holdfast.core.errors import ConfigError, LimitError
from holdfast.core.page import Page, check_limit, decode_cursor, encode_cursor
from holdfast.idempotency import machine
from holdfast.idempotency.machine import DecideOutcome, DecideRerun, ForceExpire, ForceRelease
from holdfast.idempotency.reservation import Claim, Terms, lookup, reserve
from holdfast.idempotency.rows import columns_of, record_of
from holdfast.idempotency.sealing import seal_outcome
from holdfast.idempotency.values import (
    Absent,
    Completed,
    Decision,
    KeyRecord,
    Outcome,
    Running,
    Sealed,
    State,
    Tombstone,
    UnknownReason,
)
from holdfast.store.database import Row, Tx

__all__ = [
    "Action",
    "Claim",
    "Terms",
    "audit",
    "channel",
    "claim",
    "count_unknown",
    "force",
    "get",
    "lapse",
    "lapsed",
    "last_sealed",
    "list",
    "lookup",
    "mark_irreversible",
    "mark_unknown",
    "owners",
    "prune",
    "release",
    "renew",
    "reserve",
    "rival",
    "routes",
    "search",
    "secrets",
    "settle",
    "touch_secret",
    "trail",
    "unknown",
    "usage",
    "withdraw",
]

Action = ForceRelease | ForceExpire | DecideRerun | DecideOutcome
"""What an operator or a reconciler may do to a record."""

REASON_CHARS_MAX = 1000
"""Of an audit row: room for a sentence and a ticket, not for a log."""
REF_DIGITS_MIN, REF_DIGITS_MAX = 8, 32
_REF = re.compile(rf"[0-9a-f]{{{REF_DIGITS_MIN},{REF_DIGITS_MAX}}}")
_TRIES = 3
_LIST = "idem_keys"

points.register("forced.written")


# A holder's calls


async def claim(  # noqa: PLR0913 - the terms of a claim
    tx: Tx,
    claim: Claim,
    *,
    lease_until: int,
    expires_at: int,
    now: int,
    in_flight_max: int | None = None,
    keys_per_hour_max: int | None = None,
    stored_bytes_max: int | None = None,
    dead: str | None = None,
    attached: Running | Absent | None = None,
    new: bool = False,
) -> Decision:
    """Claim a key, or say why it may not run.

    With one key id it serves over `Statements`, and a new key takes one statement; so does every other decision on
    PostgreSQL. With several it must be inside `database.write()`. Repeating it with the same `claim_id` gives the same
    `Proceed` again.

    Args:
        tx: Where.
        claim: What is claimed.
        lease_until: When it lapses unless it is renewed.
        expires_at: When the key is new again if nothing is settled.
        now: The store clock's present, microseconds.
        in_flight_max: Live claims its principal may have; None: any number.
        keys_per_hour_max: New keys its principal may make in an hour; None: any number. Takes two statements more.
        stored_bytes_max: Recorded bytes its principal may have; None: any number. The same two statements.
        dead: An owner that was proven dead, whose claims count as lapsed.
        attached: What `attach` said of the execution of a lapsed record of mode `execution`. When it has ended, settle
            the record under its own fence instead, and claim again.
        new: Whether the key is taken to be new. The decision is the same; on SQLite a new key costs less so, and on
            PostgreSQL any other a statement more.

    Returns:
        The decision. A `Replay`'s record has its outcome sealed.
    """
    terms = Terms(
        lease_until=lease_until,
        expires_at=expires_at,
        now=now,
        in_flight_max=in_flight_max,
        keys_per_hour_max=keys_per_hour_max,
        stored_bytes_max=stored_bytes_max,
        dead=dead,
        attached=attached,
        new=new,
    )
    return await reserve(tx, claim, terms)


async def renew(tx: Tx, claims: Sequence[tuple[bytes, int]], *, lease_until: int, now: int) -> set[bytes]:
    """Renew many claims, (key id, fence) each, in one statement; return the key ids of those still held."""
    wanted = dict.fromkeys(claims)
    rows = [(lease_until, key_id, fence, now) for key_id, fence in wanted]
    if not rows:
        return set()
    if await tx.run("keys.renew", rows) == len(rows):
        return {key_id for key_id, _ in wanted}
    held = set()
    for key_id, fence in wanted:
        if await tx.one("keys.held", key_id=key_id, fence=fence, lease_until=lease_until) is not None:
            held.add(key_id)
    return held


async def settle(tx: Tx, key_id: bytes, fence: int, outcome: Sealed | Outcome, *, expires_at: int, now: int) -> bool:
    """Write the outcome under a fence; False: the claim was lost, and nothing has changed.

    Repeating it under the fence that won returns True and changes nothing, whatever it carries.

    Args:
        tx: Where.
        key_id: The claim's first key id.
        fence: The claim's.
        outcome: Sealed; one that is not is sealed here, uncompressed and without a cipher.
        expires_at: When the key is new again.
        now: The present.
    """
    sealed = outcome if isinstance(outcome, Sealed) else _sealed(outcome, key_id)
    won = await tx.one(
        "keys.settle",
        state=3 if sealed.body is None else 2,  # tombstone, completed
        status=sealed.status,
        headers=sealed.headers,
        body=sealed.body,
        body_bytes=sealed.body_bytes,
        body_digest=sealed.body_digest,
        block_sum=sealed.block_sum,
        codec=sealed.codec,
        cipher_key=sealed.cipher_key,
        reason=sealed.reason,
        now=now,
        expires_at=expires_at,
        key_id=key_id,
        fence=fence,
    )
    if won is not None:
        return True
    event = machine.Settle(fence=fence, outcome=_gist(sealed), expires_at=expires_at)
    return await _repeated(tx, key_id, event, now=now)


async def release(tx: Tx, key_id: bytes, fence: int, *, expires_at: int, now: int) -> bool:
    """Let go of a claim so that a retry may run; after `mark_irreversible` the record becomes unknown instead."""
    won = await tx.one("keys.release", expires_at=expires_at, key_id=key_id, fence=fence, now=now)
    event = machine.Release(fence=fence, expires_at=expires_at)
    return won is not None or await _repeated(tx, key_id, event, now=now)


async def withdraw(tx: Tx, claim_id: bytes) -> bool:
    """Undo a claim that ran nothing, by its own id; False: there is no such claim under way.

    A first claim leaves no row. A takeover leaves the record released, with the attempts it had.
    """
    found = await tx.one("keys.claimed", claim_id=claim_id)
    if found is None:
        return False
    if found.attempt > 1:
        return (
            await tx.one("keys.retreat", attempt=found.attempt - 1, key_id=found.key_id, fence=found.fence) is not None
        )
    # Pointers first: one that leads nowhere would be a fault, a record that lacks one is not.
    await tx.run("keys.unalias", [(found.key_id,)])
    return await tx.one("keys.withdraw", key_id=found.key_id, fence=found.fence) is not None


async def mark_irreversible(tx: Tx, key_id: bytes, fence: int, *, now: int | None = None) -> bool:
    """Note that the attempt's effect cannot be taken back; False: the claim was lost, and the effect must not start.

    Args:
        tx: Where.
        key_id: The claim's first key id.
        fence: The claim's.
        now: The present: a claim that has lapsed and expired since counts as lost. None: only the fence counts.
    """
    return await tx.one("keys.mark_irreversible", key_id=key_id, fence=fence, now=now) is not None


async def mark_unknown(tx: Tx, key_id: bytes, fence: int, reason: UnknownReason, *, now: int) -> bool:
    """Say that nobody can tell whether the attempt took effect."""
    won = await tx.one("keys.mark_unknown", reason=reason, key_id=key_id, fence=fence, now=now)
    event = machine.MarkUnknown(fence=fence, reason=reason)
    return won is not None or await _repeated(tx, key_id, event, now=now)


def channel(key_id: bytes) -> str:
    """Return the channel of hints about a key. Whoever changes a record wakes it, once that is durable."""
    return f"idem.{key_id.hex()}"


# Reading


async def get(tx: Tx, key_id: bytes) -> KeyRecord | None:
    """Return the record of a key id, also one that has expired; None: there is none.

    Raises:
        RecordUnreadable: It is damaged, or of a newer release.
    """
    row = await _row(tx, key_id)
    return None if row is None else record_of(row)


async def list(
    tx: Tx,
    *,
    state: State | None = None,
    route: str | None = None,
    since: int | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page[KeyRecord]:
    """List records, newest first, without their outcomes.

    Args:
        tx: Where.
        state: Only those in it.
        route: Only those of it.
        since: Only keys that were new then or later, microseconds.
        cursor: Where an earlier page ended.
        limit: Records on a page, at most `PAGE_ITEMS_MAX`.

    Raises:
        CodecError: The cursor is none of this list.
        ConfigError, LimitError: The limit cannot be.
    """
    of = f"{_LIST}:{state}:{route}:{since}"
    before_at, before_id = decode_cursor(of, cursor, int, bytes) if cursor is not None else (None, None)
    rows = await tx.all(
        "keys.list",
        state=None if state is None else int(state),
        route=route,
        since=since,
        before_at=before_at,
        before_id=before_id,
        most=check_limit(limit) + 1,
    )
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(
        [record_of(row) for row in rows], encode_cursor(of, (rows[-1].created_at, rows[-1].key_id)) if more else None
    )


async def search(tx: Tx, ref: str) -> builtins.list[bytes]:
    """Return the key ids of the records that a reference may mean: none, the one, or two when it is ambiguous.

    Args:
        tx: Where.
        ref: The first 8 to 32 hex digits of a key id.

    Raises:
        ConfigError: It is no such reference (`config.key_ref`).
    """
    if not _REF.fullmatch(ref):
        raise ConfigError(
            "a key reference is the first 8 to 32 hex digits of a key id",
            "take it from `keys list`",
            code="config.key_ref",
        )
    low, high = (bytes.fromhex(ref.ljust(REF_DIGITS_MAX, fill)) for fill in "0f")
    return [row.key_id for row in await tx.all("keys.search", low=low, high=high, most=2)]


async def routes(tx: Tx, scope_id: bytes) -> builtins.list[tuple[str, str]]:
    """List the methods and routes that a principal has keys for: what a key of `key_scope="route"` is hashed with."""
    return [(row.method, row.route) for row in await tx.all("keys.routes", scope_id=scope_id)]


async def last_sealed(tx: Tx) -> KeyRecord | None:
    """Return the record whose outcome was sealed with a cipher last; None: no cipher has sealed any."""
    row = await tx.one("keys.last_sealed")
    return None if row is None else await get(tx, row.key_id)


async def rival(tx: Tx, key_id: bytes) -> Row | None:
    """Return the claim under way on a key, with what is known of its owner (`owners.probe`); None: there is none.

    Columns: key_id, fence, owner_id, lease_until, mode, and host, machine_id, pid, lock_path, owner_lease_until, null
    where the owner has no row; a lease of 0 says that somebody has proven its death.
    """
    row = await _row(tx, key_id)
    return None if row is None else await tx.one("keys.rival", key_id=row.key_id)


async def owners(tx: Tx) -> builtins.list[Row]:
    """List the owners of claims under way: owner_id, claims_count, and what `rival` gives of an owner."""
    return await tx.all("keys.owners")


async def usage(tx: Tx, scope_id: bytes, *, since: int) -> tuple[int, int]:
    """Return how many keys a principal has made since a time, and how many bytes are recorded for it."""
    row = await tx.one("keys.usage", since=since, scope_id=scope_id)
    assert row is not None
    return int(row.keys_count), int(row.stored_bytes)


# Tidying up


async def lapsed(
    tx: Tx, *, now: int, owners: Sequence[str] = (), after: bytes = b"", limit: int = 500
) -> builtins.list[KeyRecord]:
    """List lapsed claims that somebody must decide about, in the order of key ids; those that may run again wait.

    Args:
        tx: Where.
        now: The present.
        owners: Owners that were proven dead: their claims have lapsed too.
        after: The last key id of the page before.
        limit: Records at most.
    """
    rows = await tx.all("keys.lapsed", now=now, after=after, most=limit)
    for owner in owners:
        rows += await tx.all("keys.owned", owner=owner, after=after, most=limit)
    found = {row.key_id: row for row in rows}
    return [record_of(found[key_id]) for key_id in sorted(found)[:limit]]


async def lapse(
    tx: Tx, record: KeyRecord, *, now: int, dead: bool = False, attached: Running | Absent | None = None
) -> bool:
    """Let a lapsed claim become unknown as the machine says; False: it stays, or was renewed or taken meanwhile.

    Args:
        tx: Where.
        record: As `lapsed` gave it.
        now: The present.
        dead: Its owner was proven dead.
        attached: In mode `execution`, what `attach` said.
    """
    after, _ = machine.transition(record, machine.Sweep(owner_dead=dead, attached=attached), now=now)
    if after is None or after.state is not State.UNKNOWN or record.state is State.UNKNOWN:
        return False
    won = await tx.one(
        "keys.lapse", reason=after.reason, key_id=record.key_id, fence=record.fence, lease_until=record.lease_until
    )
    return won is not None


async def unknown(tx: Tx, *, after: bytes = b"", limit: int = 500) -> builtins.list[KeyRecord]:
    """List records whose outcome is unknown, in the order of key ids; go on with the last one's id as `after`."""
    return [record_of(row) for row in await tx.all("keys.unknown", after=after, most=limit)]


async def count_unknown(tx: Tx) -> int:
    """Return how many records' outcomes are unknown."""
    row = await tx.one("keys.unknowns")
    assert row is not None
    return int(row.count)


async def prune(tx: Tx, *, now: int, limit: int) -> int:
    """Delete at most `limit` records that have expired, with their pointers; return how many.

    Call it in a `database.write()` of its own, again while it deletes as many as it may. On PostgreSQL it skips
    rows that somebody else has under way.
    """
    rows = [(row.key_id,) for row in await tx.all("keys.expired", now=now, most=limit)]
    if rows:
        await tx.run("keys.unalias", rows)
        await tx.run("keys.delete", rows)
    return len(rows)


async def touch_secret(tx: Tx, secret_ref: str, *, ttl_max: int, now: int) -> None:
    """Note that a secret writes keys, and for how long they are kept at most, microseconds."""
    await tx.one("secrets.touch", secret_ref=secret_ref, now=now, ttl_max=ttl_max)


async def secrets(tx: Tx) -> builtins.list[Row]:
    """List the secrets that have written keys: secret_ref, first_used_at, last_used_at, ttl_max."""
    return await tx.all("secrets.list")


# Operators


async def force(  # noqa: PLR0913 - who did what to which record, and why
    tx: Tx, key_id: bytes, action: Action, *, actor: str, reason: str, now: int, sealed: Sealed | None = None
) -> bool:
    """Do to a record what an operator or a reconciler decided, and write the audit row; False: its state refuses.

    Call it in a `database.write()`. The record gets a new fence, so a handler that is still at work has lost its claim.

    Args:
        tx: Where.
        key_id: The record's.
        action: What to do.
        actor: Who.
        reason: Why; 1 to 1,000 characters.
        now: The present.
        sealed: The outcome of a `DecideOutcome` as it is to be stored; None: uncompressed and without a cipher.

    Raises:
        ConfigError: Actor or reason is blank (`config.reason_required`).
        LimitError: The reason is too long.
        RecordUnreadable: The record is damaged, or of a newer release.
    """
    _check_reason(actor, reason)
    for _ in range(_TRIES):
        row = await _row(tx, key_id)
        record = None if row is None else record_of(row)
        after, done = machine.transition(record, action, now=now)
        if not done or record is None or after is None:
            return False
        if isinstance(action, DecideOutcome) and sealed is None:
            sealed = _sealed(action.outcome, record.key_id)
        fence = await _force(tx, record, after, action, sealed)
        if fence is not None:
            became = "expired" if isinstance(action, ForceExpire) else after.state.name.lower()
            await _audit(tx, record, fence, became, _name(action), actor=actor, reason=reason, now=now)
            if points.armed:
                points.reach("forced.written")
            return True
    return False


async def audit(tx: Tx, record: KeyRecord, action: str, *, actor: str, reason: str, now: int) -> None:
    """Write an audit row of something that changes nothing, such as showing a stored body.

    Raises:
        ConfigError, LimitError: As `force`.
    """
    _check_reason(actor, reason)
    await _audit(tx, record, record.fence, record.state.name.lower(), action, actor=actor, reason=reason, now=now)


async def trail(tx: Tx, record_id: bytes) -> builtins.list[Row]:
    """List the audit rows of an operation, oldest first."""
    return await tx.all("keys.audited", record_id=record_id)


async def _force(tx: Tx, record: KeyRecord, after: KeyRecord, action: Action, sealed: Sealed | None) -> int | None:
    """Write a forced change; None: the record has changed since it was read."""
    if isinstance(action, ForceExpire):
        won = await tx.one(
            "keys.expire",
            expires_at=after.expires_at, key_id=record.key_id, was_fence=record.fence, was_state=int(record.state),
        )  # fmt: skip
    else:
        won = await tx.one(
            "keys.force",
            state=int(after.state),
            **columns_of(sealed if isinstance(action, DecideOutcome) else None),
            settled_at=after.settled_at,
            expires_at=after.expires_at,
            key_id=record.key_id,
            was_fence=record.fence,
            was_state=int(record.state),
            was_until=record.lease_until,
        )
    return None if won is None else int(won.fence)


async def _audit(  # noqa: PLR0913 - the columns of the row
    tx: Tx, record: KeyRecord, fence: int, became: str, action: str, *, actor: str, reason: str, now: int
) -> None:
    row = (now, actor, action, record.key_ref, record.record_id, fence, record.state.name.lower(), became, reason)
    await tx.run("keys.audit", [row])


def _check_reason(actor: str, reason: str) -> None:
    if not actor.strip() or not reason.strip():
        raise ConfigError(
            "a forced action needs an actor and a reason", "say who and why", code="config.reason_required"
        )
    if len(reason) > REASON_CHARS_MAX:
        raise LimitError(
            f"a reason has {REASON_CHARS_MAX} characters at most, not {len(reason)}",
            "put the story where it belongs, and refer to it",
            limit="reason",
            maximum=REASON_CHARS_MAX,
            actual=len(reason),
        )


def _name(action: Action) -> str:
    match action:
        case ForceRelease():
            return "release"
        case ForceExpire():
            return "expire"
        case DecideRerun():
            return "rerun"
        case DecideOutcome():
            return "result" if isinstance(action.outcome, Completed) else "tombstone"


# Shared


async def _row(tx: Tx, key_id: bytes) -> Row | None:
    """Return the row of the record that a key id leads to."""
    row = await tx.one("keys.get", key_id=key_id)
    if row is not None and row.state == State.ALIAS:
        row = await tx.one("keys.get", key_id=row.alias_of)
    return row if row is not None and row.state != State.ALIAS else None


async def _repeated(
    tx: Tx, key_id: bytes, event: machine.Settle | machine.Release | machine.MarkUnknown, *, now: int
) -> bool:
    """Say whether what changed no row had been done before."""
    row = await tx.one("keys.get", key_id=key_id)
    if row is None or row.state == State.ALIAS:
        return False
    record = record_of(row)
    after, done = machine.transition(record, event, now=now)
    return bool(done) and after is record


def _sealed(outcome: Sealed | Outcome, key_id: bytes) -> Sealed:
    return outcome if isinstance(outcome, Sealed) else seal_outcome(outcome, key_id=key_id, record_id=b"")


def _gist(sealed: Sealed) -> Outcome:
    """What the machine must know of an outcome: whether there is a body."""
    if sealed.body is None:
        return Tombstone(sealed.status, [], "decided")
    return Completed(sealed.status, [], b"")
