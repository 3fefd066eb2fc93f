"""Captured events: each is taken once, waits to be derived, and is settled once.

    claim    `accept`: an event is on disk, or is known, or its session is gone
    act      somebody reads it with `load` and folds it into turns
    settle   the fence of that, in `derive`; or `fail`, which gives it back or sets it aside

Invariants:
    - A capture id is taken once; whatever comes under it later changes nothing.
    - An event leaves `pending` once for every time it was put there.
    - Bodies are never changed, only stored in another form; those of a deleted session are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from holdfast.sessions import identity, intake, jcs
from holdfast.sessions.archive.rows import Body, Storage, pack, unpack
from holdfast.sessions.derivation import RawEvent
from holdfast.sessions.jcs import Json
from holdfast.sessions.machine import (
    BACKOFF_US_MAX,
    Dead,
    Decision,
    DeriveState,
    Proceed,
    Recorded,
    Replay,
    Retry,
    decide,
)
from holdfast.sessions.values import Source
from holdfast.store.database import Database, Row, Tx

__all__ = [
    "Due", "Event", "Known", "Loaded", "StateCount", "accept", "body", "count_states", "event_state", "fail",
    "list_pending", "load", "recorded", "replay", "told_of",
]  # fmt: skip

_PAGE = 500
"""Events that are put back at once."""

ERROR_CHARS_MAX = 2000
"""What is kept of why an event failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One captured call, ready to be stored.

    Attributes:
        fingerprint: Keyed hash of what a retry must not differ in.
        harness_id: Empty where it was not said; the same for `harness_session_id`.
        thread: The call's thread: calls without a session are stored together by it.
        told: Canonical JSON of everything that was sent but the bodies.
        flags: What was noted when it was taken.
    """

    org: UUID
    event_id: bytes
    capture_id: str
    source: Source
    provider: str
    fingerprint: bytes
    captured_at: int
    received_at: int
    told: bytes
    request: Body | None
    response: Body | None
    harness_id: str = ""
    harness_session_id: str = ""
    thread: str = ""
    access_key_id: str = ""
    caller: bytes = b""
    fidelity: str = "raw"
    flags: frozenset[str] = field(default=frozenset())


_NOTHING = Body(b"", "plain", b"", 0)


async def accept(database: Database, event: Event) -> Decision:
    """Put an event on disk, or say why it is not put there. Calls that come together share a commit.

    Raises:
        StoreError: It could not be stored; after `Unavailable` nobody knows whether it was, and it may be tried again.
    """
    harness_id = event.harness_id or identity.UNKNOWN
    session = event.harness_session_id or identity.synthetic_key(event.org, event.capture_id)
    request, response = event.request or _NOTHING, event.response or _NOTHING
    row = await database.submit(
        "raw_events.accept",
        org=event.org.bytes,
        event_id=event.event_id,
        capture_id=event.capture_id,
        source=event.source,
        provider=event.provider,
        fingerprint=event.fingerprint,
        group_key=identity.group_key((harness_id, event.harness_session_id), event.thread),
        captured_at=event.captured_at,
        received_at=event.received_at,
        access_key_id=event.access_key_id,
        caller=event.caller,
        envelope=pack(event.told),
        request=None if event.request is None else request.stored,
        request_storage=request.storage,
        request_encoding=jcs.scrub(request.encoding),
        request_type=jcs.scrub(request.content_type),
        request_sha256=None if event.request is None else request.sha256,
        request_bytes=request.size,
        response=None if event.response is None else response.stored,
        response_storage=response.storage,
        response_encoding=jcs.scrub(response.encoding),
        response_type=jcs.scrub(response.content_type),
        response_sha256=None if event.response is None else response.sha256,
        response_bytes=response.size,
        fidelity=event.fidelity,
        flags=" ".join(sorted(event.flags)),
        harness_id=jcs.scrub(harness_id),
        harness_session_id=jcs.scrub(session),
    )
    if row is not None:
        return Proceed(row.seq)
    async with database.read() as tx:
        known = await recorded(tx, event.org, event.capture_id)
    if known is None:
        return decide(None, event.fingerprint)
    if known.event_id == event.event_id:
        return Proceed(known.seq)  # the statement ran again after a commit that nobody had heard of
    found = decide(Recorded(known.fingerprint, known.event_id), event.fingerprint)
    return Replay(known.event_id) if isinstance(found, Replay) else found


# --- what is known of an event ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """Where an event is.

    Attributes:
        reason: Why it is unparsed, refused, or failed last; else empty.
        turn_id: The turn it belongs to now; None before it is derived, and where it has none.
        session_id: That turn's session.
    """

    seq: int
    event_id: bytes
    fingerprint: bytes
    state: DeriveState
    reason: str
    turn_id: bytes | None
    session_id: bytes | None


async def recorded(tx: Tx, org: UUID, capture_id: str) -> Known | None:
    """Return what is known under a capture id."""
    row = await tx.one("raw_events.known", org=org.bytes, capture_id=capture_id)
    return None if row is None else Known(*row)


async def event_state(tx: Tx, org: UUID, event_id: bytes) -> Known | None:
    """Return what is known of an event."""
    row = await tx.one("raw_events.state", org=org.bytes, event_id=event_id)
    return None if row is None else Known(*row)


# --- what waits ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """An event that waits to be derived.

    Attributes:
        group_key: Equal for the events of one session: best derived one after the other.
        size: Of both bodies, in bytes.
    """

    seq: int
    org: UUID
    event_id: bytes
    group_key: bytes
    attempts: int
    size: int
    received_at: int


async def list_pending(tx: Tx, *, now: int, limit: int, after: int = 0) -> list[Due]:
    """Return events of all orgs that are due, in the order they came, those after a place in it."""
    latest = now + BACKOFF_US_MAX
    rows = await tx.all("raw_events.pending", after=after, now=now, latest=latest, limit=limit)
    return [Due(row[0], UUID(bytes=bytes(row[1])), *row[2:]) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An event with its bodies."""

    org: UUID
    seq: int
    event_id: bytes
    capture_id: str
    provider: str
    source: Source
    fingerprint: bytes
    group_key: bytes
    caller: bytes
    captured_at: int
    received_at: int
    told: bytes
    request: Body | None
    response: Body | None
    fidelity: str
    flags: frozenset[str]
    state: DeriveState
    attempts: int
    reason: str

    def raw(self) -> RawEvent:
        """Return the event as it is derived. It takes a while for large bodies."""
        request = None if self.request is None else self.request.data()
        response = None if self.response is None else self.response.data()
        return RawEvent(
            seq=self.seq,
            event_id=self.event_id,
            org=self.org,
            capture_id=self.capture_id,
            captured_at=self.captured_at,
            call=intake.reread(jcs.read(unpack(self.told)), request, response, org=self.org),
            flags=self.flags,
        )


async def load(tx: Tx, org: UUID, event_id: bytes) -> Loaded | None:
    """Return an event with its bodies."""
    row = await tx.one("raw_events.load", org=org.bytes, event_id=event_id)
    if row is None:
        return None
    return Loaded(
        org=org,
        seq=row.seq,
        event_id=row.event_id,
        capture_id=row.capture_id,
        provider=row.provider,
        source=row.source,
        fingerprint=row.fingerprint,
        group_key=row.group_key,
        caller=row.caller,
        captured_at=row.captured_at,
        received_at=row.received_at,
        told=row.envelope,
        request=body(row, "request"),
        response=body(row, "response"),
        fidelity=row.fidelity,
        flags=frozenset(row.flags.split()),
        state=row.derive_state,
        attempts=row.attempts,
        reason=row.error,
    )


def body(row: Row, part: Literal["request", "response"]) -> Body | None:
    """Return a body of an event's row."""
    stored: bytes | None = getattr(row, part)
    if stored is None:
        return None
    storage: Storage = getattr(row, f"{part}_storage")
    base = None
    if storage == "delta" and row.base_request is not None:
        base = Body(row.base_request, row.base_storage, b"", 0)
    return Body(
        stored,
        storage,
        getattr(row, f"{part}_sha256"),
        getattr(row, f"{part}_bytes"),
        getattr(row, f"{part}_encoding"),
        getattr(row, f"{part}_type"),
        base,
    )


# --- what goes wrong ----------------------------------------------------------------------------------


async def fail(tx: Tx, org: UUID, event_id: bytes, *, outcome: Retry | Dead, error: str) -> bool:
    """Note that an event could not be folded in; say whether it still waited."""
    row = await tx.one(
        "raw_events.fail",
        derive_state="pending" if isinstance(outcome, Retry) else "dead",
        attempts=outcome.attempts,
        retry_at=outcome.retry_at if isinstance(outcome, Retry) else None,
        error=jcs.scrub(error[:ERROR_CHARS_MAX]),
        org=org.bytes,
        event_id=event_id,
    )
    return row is not None


async def replay(
    tx: Tx,
    org: UUID | None,
    event_ids: Sequence[bytes] = (),
    *,
    states: Sequence[DeriveState] = ("dead",),
    version: int | None = None,
) -> list[bytes]:
    """Put events back among those that wait; return which: fewer than were named where some cannot be.

    Args:
        tx: A transaction that may write.
        org: Whose; None for all orgs, which only the operator may.
        event_ids: Which; none for all that are in one of the states.
        states: Which, where no events are named.
        version: Leave those that were settled at it; None: none.
    """
    found: list[bytes] = []
    for event_id in dict.fromkeys(event_ids):
        assert org is not None
        if await tx.run("raw_events.again", [(org.bytes, event_id)]):
            found.append(event_id)
    if event_ids:
        return found
    for state in states:
        after = 0
        while True:
            rows = await tx.all(
                "raw_events.left",
                derive_state=state,
                org=None if org is None else org.bytes,
                after=after,
                version=version,
                limit=_PAGE,
            )
            await tx.run("raw_events.again", [(row.org, row.event_id) for row in rows])
            found += [row.event_id for row in rows]
            if len(rows) < _PAGE:
                break
            after = rows[-1].seq
    return found


@dataclass(frozen=True, slots=True)
class StateCount:
    """How many events are in a state, and when the first of them came, in microseconds."""

    state: DeriveState
    count: int
    oldest: int


async def count_states(tx: Tx, org: UUID | None) -> list[StateCount]:
    """Return how many events there are in each state but `derived`; None is all orgs."""
    rows = await tx.all("raw_events.states", org=None if org is None else org.bytes)
    return [StateCount(*row) for row in rows]


async def told_of(tx: Tx, org: UUID, event_id: bytes) -> dict[str, Json]:
    """Return what was told of an event but its bodies; nothing where its session was deleted."""
    row = await tx.one("raw_events.told", ids=json.dumps([event_id.hex()]), org=org.bytes)
    found = {} if row is None else jcs.read(unpack(row.envelope))
    assert isinstance(found, dict)
    return found
