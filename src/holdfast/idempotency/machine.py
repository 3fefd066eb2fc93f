"""Decide what a keyed request may do, and what becomes of its record. Pure: no clock, no randomness, no storage.

`transition` is the table of a record's ways. Its rows are the classes of events, its columns what a record is
at an instant:

    absent      no row, or one past `expires_at`: the key is new
    live        reserved, and its lease holds
    lapsed      reserved, and its lease has ended, or its owner is known to be dead
    completed   settled with a response
    tombstone   settled, the body not kept
    unknown     it may have taken effect, and nobody can tell whether; never expires
    released    it took no effect; the next claim is its next attempt

Invariants:
    - A settled outcome changes only by an operator's word.
    - A request with another fingerprint never runs, never waits and never sees the record, unless it is released.
    - A write under another fence than the record's changes nothing. No transition lowers a fence.
    - What may have taken effect is never run again, unless its policy, its owner or an operator allows it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, TypeAlias, assert_never

from holdfast.idempotency.answers import answer
from holdfast.idempotency.fingerprint import canonical_json, fingerprint
from holdfast.idempotency.headers import decode_headers, encode_headers, filter_headers
from holdfast.idempotency.identity import (
    derived_key,
    execution_id,
    key_id,
    parse_first_sent,
    parse_key,
    record_id,
    scope_id,
    weak_key,
)
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import (
    Absent,
    Completed,
    Conflict,
    Decision,
    InFlight,
    KeyRecord,
    Lapse,
    Mode,
    Outcome,
    Proceed,
    Replay,
    Rerun,
    Running,
    State,
    Tombstone,
    Undecided,
    UnknownReason,
)

__all__ = [
    "Claim", "Column", "DecideOutcome", "DecideRerun", "End", "Ending", "Event", "ForceExpire", "ForceRelease",
    "MarkIrreversible", "MarkUnknown", "Prune", "Release", "Renew", "Settle", "Sweep", "answer", "asks_attach",
    "canonical_json", "classify", "classify_end", "column", "decode_headers", "derived_key", "encode_headers",
    "expired", "filter_headers", "fingerprint", "key_id", "lapsed", "parse_first_sent", "parse_key", "record_id",
    "retry_after", "scope_id", "transition", "unknown_reason", "weak_key",
]  # fmt: skip

# --- events -------------------------------------------------------------------------------------
#
# `fence` of an event that makes a claim or takes one away is the store's next one, or less where the store
# numbers the row itself: the record's new fence is then at least one above its old one.


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A request wants to run.

    Attributes:
        key_id: For a new record, what it is found by.
        scope_id: For a new record, whose it is.
        record_id: Names the operation, unless an earlier attempt has named it.
        fingerprint: What the request must not differ in, under the record's own `fp_version` if there is one.
        claim_id: Made for this request; repeating it finds the same claim.
        owner: The claiming process.
        method: The request's method, or `CALL`.
        route: The rule's path, else the endpoint's, else `*`.
        fence: The fence that a new claim gets, at least.
        lease_until: When a new claim lapses.
        expires_at: When the outcome of a new claim is forgotten, should nobody settle it.
        fp_version: Version of the rules the fingerprint was made by.
        mode: Of the rule.
        on_lapse: What a lapse of this claim will mean.
        irreversible: Whether the attempt begins with its effect marked as irreversible.
        first_sent_at: What the client said about its first sending.
        quota_reached: Whether the principal may hold no more claims.
        owner_dead: Whether the record's owner is known to be dead.
        attached: For `asks_attach`, what `attach` said; None: it was not asked or did not answer.
    """

    key_id: bytes
    scope_id: bytes
    record_id: bytes
    fingerprint: bytes
    claim_id: bytes
    owner: str
    method: str
    route: str
    fence: int
    lease_until: int
    expires_at: int
    fp_version: int = 1
    mode: Mode = "separate"
    on_lapse: Lapse = "ambiguous"
    irreversible: bool = False
    first_sent_at: int | None = None
    quota_reached: bool = False
    owner_dead: bool = False
    attached: Running | Completed | Absent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """The owner goes on: its claim holds until `lease_until`."""

    fence: int
    lease_until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkIrreversible:
    """The owner is about to do what cannot be taken back."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """The owner knows the outcome, which answers until `expires_at`."""

    fence: int
    outcome: Outcome
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The owner ends without an outcome and without effect; the attempt is remembered until `expires_at`."""

    fence: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkUnknown:
    """The owner ends and cannot tell whether it took effect."""

    fence: int
    reason: UnknownReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ForceRelease:
    """An operator lets a retry run. `expires_at` None keeps the retention that the record was claimed with."""

    fence: int = 0
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForceExpire:
    """An operator makes the key new."""

    fence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideRerun:
    """An operator or a reconciler found that it took no effect."""

    fence: int = 0
    expires_at: int | None = None
    owner_dead: bool = False


@dataclass(frozen=True, slots=True)
class DecideOutcome:
    """An operator or a reconciler found what came of it."""

    outcome: Outcome
    fence: int = 0
    expires_at: int | None = None
    owner_dead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The ledger is tidied.

    Attributes:
        fence: The fence that a record decided now gets, at least.
        expires_at: When an outcome found now is forgotten.
        attached: For `asks_attach`, what `attach` said; None: it was not asked or did not answer.
        reconciled: For an unknown record, what `reconcile` said; None: it was not asked or did not answer.
        owner_dead: Whether the record's owner is known to be dead.
    """

    fence: int = 0
    expires_at: int | None = None
    attached: Running | Completed | Absent | None = None
    reconciled: Rerun | Completed | Undecided | None = None
    owner_dead: bool = False


@dataclass(frozen=True, slots=True)
class Prune:
    """What retention has let go of is deleted."""


_Write: TypeAlias = Renew | MarkIrreversible | Settle | Release | MarkUnknown
_Force: TypeAlias = ForceRelease | ForceExpire | DecideRerun | DecideOutcome
Event: TypeAlias = Claim | _Write | _Force | Sweep | Prune

# --- what a record is at an instant -------------------------------------------------------------

Column: TypeAlias = Literal["absent", "live", "lapsed", "completed", "tombstone", "unknown", "released"]


def lapsed(record: KeyRecord, *, now: int, owner_dead: bool = False) -> bool:
    """Say whether a reserved record's claim has ended without a settle."""
    return record.state is State.RESERVED and (owner_dead or record.lease_until <= now)


def expired(record: KeyRecord, *, now: int, owner_dead: bool = False) -> bool:
    """Say whether the key is new again. A live lease and an unknown outcome never expire."""
    if record.state is State.RESERVED and not lapsed(record, now=now, owner_dead=owner_dead):
        return False
    return record.state is not State.UNKNOWN and record.expires_at is not None and record.expires_at <= now


def column(record: KeyRecord | None, *, now: int, owner_dead: bool = False) -> Column:
    """Say what a record is at an instant.

    Raises:
        ValueError: It is an alias; the record it leads to has a state.
    """
    if record is None or expired(record, now=now, owner_dead=owner_dead):
        return "absent"
    match record.state:
        case State.RESERVED:
            return "lapsed" if lapsed(record, now=now, owner_dead=owner_dead) else "live"
        case State.COMPLETED:
            return "completed"
        case State.TOMBSTONE:
            return "tombstone"
        case State.UNKNOWN:
            return "unknown"
        case State.RELEASED:
            return "released"
        case State.ALIAS:
            raise ValueError("an alias has no state of its own")
        case _:
            assert_never(record.state)


def asks_attach(record: KeyRecord, fingerprint: bytes, *, now: int, owner_dead: bool = False) -> bool:
    """Say whether `attach` must be asked before a claim of this fingerprint, or a sweep, goes on."""
    return (
        record.mode == "execution"
        and column(record, now=now, owner_dead=owner_dead) == "lapsed"
        and hmac.compare_digest(record.fingerprint, fingerprint)
    )


# --- the table ----------------------------------------------------------------------------------

RETENTION = timedelta(hours=24) // timedelta.resolution
"""What a decided record is kept for when neither the operator nor the record says; the default `ttl`."""


def transition(record: KeyRecord | None, event: Event, *, now: int) -> tuple[KeyRecord | None, Decision | bool]:
    """Decide what an event makes of a record.

    Args:
        record: The record, or None; no alias.
        event: What happens.
        now: The store's clock, in microseconds.

    Returns:
        The record after it (the same object if nothing changes, None if there is none), and for a claim the
        decision, for everything else whether the event is accepted, or for a sweep and a prune, has changed it.
    """
    match event:
        case Claim():
            return _claim(record, event, now)
        case Renew() | MarkIrreversible() | Settle() | Release() | MarkUnknown():
            after = None if record is None or record.fence != event.fence else _write(record, event, now)
        case ForceRelease() | ForceExpire() | DecideRerun() | DecideOutcome():
            after = None if record is None else _force(record, event, now)
        case Sweep():
            after = None if record is None else _sweep(record, event, now)
        case Prune():
            gone = record is not None and expired(record, now=now)
            return (None if gone else record), gone
        case _:
            assert_never(event)
    return (record, False) if after is None else (after, True)


def _claim(record: KeyRecord | None, event: Claim, now: int) -> tuple[KeyRecord | None, Decision]:
    where = column(record, now=now, owner_dead=event.owner_dead)
    if record is None or where == "absent":
        return _begin(record, event, now)
    if where in ("live", "lapsed") and record.claim_id == event.claim_id:
        return record, Proceed(record.fence, record.attempt, record.record_id)
    same = hmac.compare_digest(record.fingerprint, event.fingerprint) and record.fp_version == event.fp_version
    if not same:
        return _begin(record, event, now) if where == "released" else (record, Conflict("reused"))
    match where:
        case "live":
            return record, InFlight(record.lease_until, record.claimed_at)
        case "lapsed":
            return _claim_lapsed(record, event, now)
        case "completed" | "tombstone":
            return record, Replay(record)
        case "unknown":
            return record, Conflict("unknown")
        case "released":
            return _begin(record, event, now, goes_on=record)
        case _:
            assert_never(where)


def _claim_lapsed(record: KeyRecord, event: Claim, now: int) -> tuple[KeyRecord | None, Decision]:
    if event.quota_reached and record.mode != "execution":
        return record, Conflict("quota")
    after = _lapse(record, event, now)
    if after is not None:
        return after, Replay(after) if after.state is State.COMPLETED else Conflict("unknown")
    if record.mode == "execution" and not isinstance(event.attached, Absent):
        return record, InFlight(now, record.claimed_at)
    return _begin(record, event, now, goes_on=record)


def _begin(
    row: KeyRecord | None, event: Claim, now: int, *, goes_on: KeyRecord | None = None
) -> tuple[KeyRecord | None, Decision]:
    """Reserve the row for the event: the next attempt of the operation that goes on, else the first of a new one."""
    if event.quota_reached:
        return row, Conflict("quota")
    name = event.record_id if goes_on is None else goes_on.record_id
    after = KeyRecord(
        # A row found through another accepted secret keeps the ids it was made with.
        key_id=event.key_id if row is None else row.key_id,
        scope_id=event.scope_id if row is None else row.scope_id,
        record_id=name,
        state=State.RESERVED,
        fingerprint=event.fingerprint,
        fp_version=event.fp_version,
        method=event.method,
        route=event.route,
        fence=event.fence if row is None else _next(row, event.fence),
        claim_id=event.claim_id,
        attempt=1 if goes_on is None else goes_on.attempt + 1,
        owner=event.owner,
        lease_until=event.lease_until,
        mode=event.mode,
        on_lapse=event.on_lapse,
        irreversible=event.irreversible,
        execution_id=execution_id(name) if event.mode == "execution" else None,
        created_at=now if goes_on is None else goes_on.created_at,
        claimed_at=now,
        expires_at=event.expires_at,
        first_sent_at=event.first_sent_at,
    )
    reclaimed = goes_on is not None and goes_on.state is State.RESERVED
    return after, Proceed(after.fence, after.attempt, after.record_id, reclaimed)


def _write(record: KeyRecord, event: _Write, now: int) -> KeyRecord | None:
    """Return the record after a write of its own claim, or None where it is refused."""
    where = column(record, now=now)
    held = where in ("live", "lapsed")
    match event:
        case Renew():
            return replace(record, lease_until=event.lease_until) if held else None
        case MarkIrreversible():
            return replace(record, irreversible=True) if held else None
        case Settle():
            if where in ("completed", "tombstone"):
                return record
            allowed = held or where == "unknown"
            return _settled(record, event.outcome, record.fence, event.expires_at, now) if allowed else None
        case Release():
            if where == "released":
                return record
            if held and record.irreversible:
                return _unknown(record, "raised")
            return _freed(record, record.fence, event.expires_at) if held else None
        case MarkUnknown():
            if where == "unknown":
                return record
            return _unknown(record, event.reason) if held else None
        case _:
            assert_never(event)


def _force(record: KeyRecord, event: _Force, now: int) -> KeyRecord | None:
    """Return the record after an operator's or a reconciler's word, or None where it is refused."""
    fence = _next(record, event.fence)
    match event:
        case ForceRelease():
            if column(record, now=now) in ("live", "lapsed", "unknown"):
                return _freed(record, fence, _kept_until(record, event.expires_at, now))
        case ForceExpire():
            if column(record, now=now) in ("completed", "tombstone", "released"):
                return replace(record, fence=fence, expires_at=now)
        case DecideRerun():
            if column(record, now=now, owner_dead=event.owner_dead) in ("lapsed", "unknown"):
                return _freed(record, fence, _kept_until(record, event.expires_at, now))
        case DecideOutcome():
            if column(record, now=now, owner_dead=event.owner_dead) in ("lapsed", "unknown"):
                return _settled(record, event.outcome, fence, _kept_until(record, event.expires_at, now), now)
        case _:
            assert_never(event)
    return None


def _sweep(record: KeyRecord, event: Sweep, now: int) -> KeyRecord | None:
    """Return the record after a sweep, or None where it leaves it as it is."""
    where = column(record, now=now, owner_dead=event.owner_dead)
    if where == "lapsed":
        return _lapse(record, event, now)
    if where != "unknown":
        return None
    match event.reconciled:
        case Completed():
            decision: _Force = DecideOutcome(event.reconciled, event.fence, event.expires_at)
        case Rerun():
            decision = DecideRerun(fence=event.fence, expires_at=event.expires_at)
        case Undecided() | None:
            return None
        case _:
            assert_never(event.reconciled)
    return _force(record, decision, now)


def _lapse(record: KeyRecord, event: Claim | Sweep, now: int) -> KeyRecord | None:
    """Return what a lapse alone makes of a record; None: it runs on elsewhere, or may run again."""
    if record.mode == "execution":
        if isinstance(event.attached, Completed):
            # Under a new fence: should the owner still be there, its own answer must not differ from the record's.
            until = _kept_until(record, event.expires_at, now)
            return _settled(record, event.attached, _next(record, event.fence), until, now)
        doubtful = record.irreversible and isinstance(event.attached, Absent)
    else:
        # In mode `transaction` a claim is committed with its outcome. One found without was committed by the handler.
        doubtful = record.irreversible or record.mode == "transaction" or record.on_lapse == "ambiguous"
    return _unknown(record, "lapsed") if doubtful else None


def _next(record: KeyRecord, fence: int) -> int:
    return max(fence, record.fence + 1)


def _kept_until(record: KeyRecord, given: int | None, now: int) -> int:
    if given is not None:
        return given
    return now + (RETENTION if record.expires_at is None else record.expires_at - record.claimed_at)


def _settled(record: KeyRecord, outcome: Outcome, fence: int, expires_at: int, now: int) -> KeyRecord:
    known = replace(
        record,
        outcome=outcome,
        sealed=None,
        status=outcome.status,
        fence=fence,
        settled_at=now,
        expires_at=expires_at,
    )
    match outcome:
        case Completed():
            return replace(known, state=State.COMPLETED, body_bytes=len(outcome.body), reason=None)
        case Tombstone():
            return replace(known, state=State.TOMBSTONE, body_bytes=outcome.body_bytes, reason=outcome.reason)
        case _:
            assert_never(outcome)


def _freed(record: KeyRecord, fence: int, expires_at: int) -> KeyRecord:
    return replace(record, state=State.RELEASED, reason=None, fence=fence, expires_at=expires_at)


def _unknown(record: KeyRecord, reason: UnknownReason) -> KeyRecord:
    return replace(record, state=State.UNKNOWN, reason=reason, expires_at=None)


# --- what an outcome becomes --------------------------------------------------------------------

NOT_NOW = frozenset({401, 403, 407, 408, 409, 413, 421, 423, 425, 428, 429, 431})
"""Statuses that speak about the moment, the caller or the connection: the same request may fare better later."""

End: TypeAlias = Literal["answered", "raised", "timeout"]
"""How a handler ends: with a whole answer; by raising, returning early or being cancelled; or over its time."""
Ending: TypeAlias = Literal["release", "freeze", "truncated", "unknown"]
"""What becomes of that: a release; a stored problem; a tombstone `truncated`; unknown."""


def classify(status: int, rule: RouteRule, *, irreversible: bool) -> Literal["store", "release", "unknown"]:
    """Decide what becomes of a whole answer.

    Args:
        status: 200 to 599.
        rule: The rule of the request.
        irreversible: Whether this attempt has marked its effect as irreversible.
    """
    named = rule.statuses.get(status) or rule.statuses.get(f"{status // 100}xx")
    if named is not None:
        return named
    if status < 500:
        return "release" if status in NOT_NOW and not irreversible else "store"
    if irreversible:
        return "unknown"
    match rule.on_5xx:
        case "release":
            return "release"
        case "freeze":
            return "store"
        case "ambiguous":
            return "unknown"
        case _:
            assert_never(rule.on_5xx)


def classify_end(status: int | None, rule: RouteRule, *, irreversible: bool) -> Ending:
    """Decide what becomes of a request whose handler raised, was cancelled, or returned without a whole answer.

    Args:
        status: The status of the answer it had begun; None before that.
        rule: The rule of the request.
        irreversible: Whether this attempt has marked its effect as irreversible.
    """
    if status is None:
        if irreversible or rule.on_5xx == "ambiguous":
            return "unknown"
        return "freeze" if rule.on_5xx == "freeze" else "release"
    whole = classify(status, rule, irreversible=irreversible)
    return "truncated" if whole == "store" else whole


def unknown_reason(end: End, status: int | None) -> UnknownReason:
    """Say why an outcome is unknown, given how the handler ended and the status it had begun with, if any."""
    if end == "timeout":
        return "timeout"
    return "5xx" if end == "answered" or (status is not None and status >= 500) else "raised"


# --- when to ask again --------------------------------------------------------------------------

_SECOND = 1_000_000
JITTER = 0.2
"""Share of the wait that is added at most, so that duplicates do not come back together."""


def retry_after(*, until: int, since: int, now: int, p90_us: int | None, lease: timedelta, jitter: float) -> int:
    """Return the seconds after which a duplicate may ask again: at least 1, at most the lease.

    Args:
        until: When the claim lapses.
        since: When it was made.
        now: The store's clock.
        p90_us: What nine of ten requests of the route take, in microseconds, if that is known.
        lease: The rule's.
        jitter: A number in [0, 1).
    """
    wait = until - now
    if p90_us is not None:
        wait = min(wait, p90_us - (now - since))
    jittered = wait + int(wait * JITTER * jitter)
    return max(1, min(-(-jittered // _SECOND), lease // timedelta(seconds=1)))
