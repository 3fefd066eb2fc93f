"""Keep hook calls as they arrived, and what they say of their sessions. Records over a transaction of the caller's.

A delivery is appended before anything is made of it. Then it is decided about once: which moment it tells of, and what
was known of its session before it. That is kept with it, so a derivation that is repeated tells the same. At last it is
settled: done, or refused.

Invariants:
    - A delivery is settled once, and its body may be blanked after that, not before.
    - Of the deliveries of one moment, one has `decided`: the receipts and the answer come from it.
    - A delivery is locked before its session, and its session before chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from blake3 import blake3

from holdfast.lifecycle import wire
from holdfast.lifecycle.documents import PressureObservation
from holdfast.lifecycle.errors import LifecycleError, UndecodableDocument, UndecodableHook
from holdfast.lifecycle.harness import Adapter, HookEvent, HookReply, SessionState
from holdfast.store.database import Row, Tx

__all__ = [
    "CHANNEL", "Delivery", "Duplicate", "Moment", "Unfinished", "append", "blank", "decide", "delivery_of", "finish",
    "get", "glance", "hold", "is_of", "lease", "pending", "press", "pressure_of", "reply_of", "settle", "unfinished",
    "waiting",
]  # fmt: skip

CHANNEL: Final = "hooks"
"""Who waits on it is woken when a delivery was settled."""

FOR_EVER: Final = 2**62
"""Longer than any instant is from any other."""


class Delivery(msgspec.Struct, frozen=True):
    """A hook call as it arrived; its fields are the parameters of `hooks.append`.

    Attributes:
        id: Random.
        harness: Who called, by any of its names.
        event_hint: The hook, as the handler names it; empty: it names none.
        body: What the harness wrote, or its known fields where that was too long; None: it was blanked.
        body_bytes: The size of what the harness wrote.
        body_digest: BLAKE3 of that, where `body` is not all of it.
        received_at: When, microseconds.
        cwd: Where.
        lease_until: Until when its own call sees to it, microseconds; 0: it does not.
    """

    id: str
    harness: str
    event_hint: str
    body: bytes | None
    body_bytes: int
    body_digest: bytes | None
    received_at: int
    cwd: str | None
    lease_until: int


class Moment(msgspec.Struct, frozen=True):
    """What a delivery tells of.

    Attributes:
        delivery: The delivery.
        event: What it says.
        occurrence: How often the same was told before.
    """

    delivery: Delivery
    event: HookEvent
    occurrence: int


class Duplicate(msgspec.Struct, frozen=True):
    """Another delivery has told of the same moment.

    Attributes:
        delivery: The delivery.
        event: What it says.
        occurrence: How often the same was told before that other.
    """

    delivery: Delivery
    event: HookEvent
    occurrence: int


class Unfinished(msgspec.Struct, frozen=True):
    """A delivery whose events have no receipts yet.

    Attributes:
        delivery: Its id.
        harness: Who called.
        hook: The hook, as the handler names it.
        session_id: Its session, once that is known.
        received_at: When, microseconds.
        lease_until: Until when its own call sees to it, microseconds.
    """

    delivery: str
    harness: str
    hook: str
    session_id: str | None
    received_at: int
    lease_until: int


async def append(tx: Tx, delivery: Delivery) -> bool:
    """Keep a delivery; say whether it is new."""
    return await tx.one("hooks.append", **{name: getattr(delivery, name) for name in _FIELDS}) is not None


_FIELDS: Final = Delivery.__struct_fields__


def delivery_of(row: Row) -> Delivery:
    """Return the delivery that a row of `hold` or `pending` is of."""
    return Delivery(*(getattr(row, name) for name in _FIELDS))


async def get(tx: Tx, delivery_id: str) -> Row | None:
    """Return all that is known of a delivery."""
    return await tx.one("hooks.get", id=delivery_id)


async def hold(tx: Tx, delivery_id: str, *, now: int | None = None) -> Row | None:
    """Lock a delivery that is pending, and return it; None: there is none, or not any more.

    Args:
        tx: A transaction that may write.
        delivery_id: The delivery.
        now: When, microseconds, for who is not its own call: it must not be seen to by that; None: for its own call.
    """
    row = await tx.one("hooks.hold", id=delivery_id)
    if row is None or row.state != "pending" or (now is not None and row.lease_until > now):
        return None
    return row


async def waiting(tx: Tx, *, now: int) -> bool:
    """Say whether there are deliveries that nobody sees to."""
    return await tx.one("hooks.waiting", now=now) is not None


async def pending(tx: Tx, *, now: int, after: tuple[int, str] = (-1, ""), limit: int = 100) -> list[Row]:
    """Return deliveries that nobody sees to, in the order of their arrival.

    Args:
        tx: A transaction.
        now: When, microseconds.
        after: Arrival and id of the one to go on after.
        limit: How many at most.
    """
    return await tx.all("hooks.pending", now=now, after_at=after[0], after_id=after[1], most=limit)


async def unfinished(tx: Tx, *, limit: int = 500) -> list[Unfinished]:
    """Return deliveries that have no receipts yet, those that somebody sees to included, oldest first."""
    rows = await tx.all("hooks.unfinished", most=limit)
    return [
        Unfinished(row.id, row.harness, row.event_hint, row.session_id, row.received_at, row.lease_until)
        for row in rows
    ]


async def lease(tx: Tx, delivery_id: str, until: int) -> None:
    """Say until when its call sees to a delivery."""
    await tx.run("hooks.lease", [(until, delivery_id)])


def glance(adapter: Adapter, delivery: Delivery | Row) -> HookEvent | None:
    """Read a delivery without what is known of its session; None: it cannot be read, and will be refused."""
    hint = delivery.event_hint or None
    try:
        return adapter.decode(delivery.body or b"", event_hint=hint, state=SessionState(), received_at=0)
    except LifecycleError:
        return None


def is_of(adapter: Adapter, row: Row, session: tuple[str, str] | None) -> bool:
    """Say whether a delivery is of a session, given by harness and id; None: of any."""
    if session is None:
        return True
    event = glance(adapter, row)
    return event is not None and (event.harness, event.session_id) == session


async def decide(tx: Tx, row: Row, adapter: Adapter, *, window_us: int) -> Moment | Duplicate:
    """Decide which moment a delivery tells of, and move its session on; once, and the same again when asked again.

    Args:
        tx: A transaction that may write.
        row: The delivery, from `hold`.
        adapter: Who can read it.
        window_us: How long equal deliveries are one moment, where nothing else tells.

    Raises:
        HookProtocol: It names no session.
        UndecodableHook: It cannot be read.
    """
    delivery = delivery_of(row)
    told = _decoded(delivery, adapter, SessionState())
    harness, session_id = told.harness, told.session_id
    session = await tx.one("sessions.hold", harness=harness, session_id=session_id)
    assert session is not None  # it is made where there is none
    if row.decided is not None:
        state = msgspec.json.decode(row.decided, type=SessionState)
        return Moment(delivery, _decoded(delivery, adapter, state), row.occurrence)
    state = SessionState(*(getattr(session, name) for name in SessionState.__struct_fields__))
    event = _decoded(delivery, adapter, state)
    span = FOR_EVER if event.strong else window_us
    at = delivery.received_at
    alike = await tx.one("hooks.alike", material=event.material, id=delivery.id, since=at - span, until=at + span)
    if alike is not None:
        await tx.run("hooks.decide", [(session_id, event.material, alike.occurrence, None, delivery.id)])
        return Duplicate(delivery, event, alike.occurrence)
    newest = await tx.one("hooks.newest", material=event.material)
    occurrence = 0 if newest is None or newest.occurrence is None else newest.occurrence + 1
    kept = msgspec.json.encode(state)
    await tx.run("hooks.decide", [(session_id, event.material, occurrence, kept, delivery.id)])
    if event.after != state:
        after = event.after
        moved = (after.frame_ordinal, after.turn_id, after.compacted_by, after.compacted_at)
        await tx.run("sessions.move", [(*moved, harness, session_id)])
    return Moment(delivery, event, occurrence)


def _decoded(delivery: Delivery, adapter: Adapter, state: SessionState) -> HookEvent:
    if delivery.body is None:
        raise UndecodableHook("the delivery's body is gone")
    return adapter.decode(
        delivery.body, event_hint=delivery.event_hint or None, state=state, received_at=delivery.received_at
    )


async def finish(tx: Tx, moment: Moment, told: Sequence[str]) -> None:
    """Note in its session what a delivery's events have changed.

    Args:
        tx: A transaction that may write, in which the session is locked, or nothing after it is.
        moment: What the delivery told of.
        told: The events that it turned out to tell of.
    """
    event = moment.event
    place = (event.harness, event.session_id)
    if "frame.ended" in told and event.turn_id is not None and event.agent_id is None:
        await tx.run("sessions.turn", [(event.turn_id, *place)])
    if "session.ended" in told:
        await tx.run("sessions.end", [(moment.delivery.received_at, *place)])
    elif "context.compacted" in told or "context.pressure_observed" in told:
        await _notice(tx, moment, full="context.compacted" not in told)


async def _notice(tx: Tx, moment: Moment, *, full: bool) -> None:
    """Keep that a compaction was told of as what is known last of the session's context."""
    event = moment.event
    at = moment.delivery.received_at // 1_000_000
    known = await pressure_of(tx, event.harness, event.session_id)
    try:
        last = None if known is None else wire.restore(known, PressureObservation)
    except UndecodableDocument:  # of a newer version
        last = None
    if last is None:
        # A harness compacts what is full; how much it has left nobody says.
        last = PressureObservation(
            adapter_id=event.harness, observed_at_epoch_s=at, context_used_pct=100 if full else 0
        )
    if last.observed_at_epoch_s <= at:
        notice = msgspec.structs.replace(last, observed_at_epoch_s=at, compaction_signaled=True)
        await press(tx, event.harness, event.session_id, wire.encode(notice))


async def settle(  # noqa: PLR0913 - the end of a delivery, by name
    tx: Tx,
    delivery: Delivery,
    state: Literal["done", "refused"],
    *,
    now: int,
    keep: bool,
    error: str | None = None,
    reply: HookReply | None = None,
) -> bool:
    """End a delivery; say whether it was not ended before.

    Args:
        tx: A transaction that may write.
        delivery: The delivery.
        state: How it ends.
        now: When, microseconds.
        keep: Whether its body stays.
        error: Why it was refused.
        reply: What the harness is answered.
    """
    digest = delivery.body_digest
    if digest is None and delivery.body is not None:
        digest = blake3(delivery.body).digest()
    row = await tx.one(
        "hooks.settle",
        state=state,
        error=error,
        body=delivery.body if keep else None,
        body_digest=digest,
        reply=None if reply is None else msgspec.json.encode(reply),
        derived_at=now,
        id=delivery.id,
    )
    tx.notify(CHANNEL)
    return row is not None


async def reply_of(tx: Tx, duplicate: Duplicate, neutral: HookReply) -> HookReply | None:
    """Return what the harness was answered to the first telling of a moment; None: nothing yet.

    Args:
        tx: A transaction.
        duplicate: The second telling.
        neutral: The answer where nobody had anything to say, or nobody waited for it.
    """
    row = await tx.one("hooks.first", material=duplicate.event.material, occurrence=duplicate.occurrence)
    if row is None or row.state == "pending":
        return None
    return neutral if row.reply is None else msgspec.json.decode(row.reply, type=HookReply)


async def blank(tx: Tx, *, before: int, limit: int = 1000) -> int:
    """Blank bodies of deliveries that were derived before an instant in microseconds; return how many."""
    rows: list[Any] = await tx.all("hooks.blank", before=before, most=limit)
    return len(rows)


# --- pressure -----------------------------------------------------------------------------------------


async def press(tx: Tx, harness: str, session_id: str, pressure: bytes) -> None:
    """Keep what was observed last of how full a session's context is."""
    await tx.run("sessions.press", [(harness, session_id, pressure)])


async def pressure_of(tx: Tx, harness: str, session_id: str) -> bytes | None:
    """Return what was observed last of how full a session's context is."""
    row = await tx.one("sessions.get", harness=harness, session_id=session_id)
    return None if row is None else row.pressure
