"""Attributions: notes beside events that put them elsewhere, and the move of what was derived of them.

What is known of each event is kept by its evidence, so a move needs no body: the evidence is placed anew, and its turn,
the sessions it leaves and comes to, and the parents follow as they do when an event is folded in. All of it is one
transaction that nobody derives beside: whoever read an event before it notices at the fence, and reads again.

Invariants:
    - What was derived is what the attributions in force say, after every commit.
    - A dry run is the same work, undone: what it says is what would be.
    - Nothing is put under the key of a deleted session, and no session becomes its own parent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from holdfast.sessions import derivation, identity, intake, jcs, overlays
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.alone import alone
from holdfast.sessions.archive.derive import apply, replace
from holdfast.sessions.archive.standing import Standing, Standings
from holdfast.sessions.archive.work import Seen, Terms, Work, seen_of
from holdfast.sessions.derivation import Derived, RawEvent
from holdfast.sessions.errors import AttributionRefused, NotFound
from holdfast.sessions.evidence import TurnFacts
from holdfast.sessions.overlays import Attribution, Choice, Overlay, Overlays
from holdfast.sessions.values import SessionKey
from holdfast.store.database import Database, Row, Tx

__all__ = [
    "EVENTS_MAX", "Kept", "Move", "attribute", "events_in", "events_under", "key_of_session", "list_attributions",
    "load_overlays", "sent", "undo",
]  # fmt: skip

EVENTS_MAX = 10_000
"""Events of one attribution: they are moved in one transaction, beside which nothing is derived."""

_PAGE = 500
_JSON = msgspec.json.Encoder(order="sorted")
_CHOICE = msgspec.json.Decoder(Choice)
_CHANGE = msgspec.json.Decoder(Attribution)


@dataclass(frozen=True, slots=True)
class Kept:
    """An attribution with what is noted of it. Instants are microseconds."""

    overlay: Overlay
    reason: str
    actor: str
    created_at: int
    undone_at: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """What an attribution changes.

    Attributes:
        events: Events that it selects.
        turns: By turn id, the turn before and after.
        sessions: By key, the session before and after.
    """

    events: int
    turns: dict[bytes, tuple[TurnFacts | None, TurnFacts | None]]
    sessions: dict[SessionKey, tuple[Standing | None, Standing | None]]


# --- what is noted ------------------------------------------------------------------------------------


async def list_attributions(tx: Tx, org: UUID) -> list[Kept]:
    """Return the attributions of an org in the order they were made, with those that were taken back."""
    return [
        Kept(
            Overlay(row.attribution_id, _CHOICE.decode(row.selector), _CHANGE.decode(row.change)),
            row.reason,
            row.actor,
            row.created_at,
            row.undone_at,
        )
        for row in await tx.all("attributions.list", org=org.bytes)
    ]


async def load_overlays(tx: Tx, org: UUID) -> Overlays:
    """Return the attributions that are in force."""
    return _in_force(await list_attributions(tx, org))


def _in_force(kept: Sequence[Kept]) -> Overlays:
    stamp = len(kept) + sum(each.undone_at is not None for each in kept)
    return Overlays(stamp, tuple(each.overlay for each in kept if each.undone_at is None))


# --- making and taking back ---------------------------------------------------------------------------


async def attribute(  # noqa: PLR0913 - what is put where, who says so, and the terms
    database: Database,
    org: UUID,
    overlay: Overlay,
    *,
    actor: str,
    reason: str,
    mint: Callable[[], bytes],
    terms: Terms,
    dry_run: bool,
) -> Move:
    """Put events elsewhere, and whatever of the kind comes later.

    Args:
        database: The ledger.
        org: Whose.
        overlay: Which events, and where; its id is new.
        actor: Who says so; kept.
        reason: Why; kept.
        mint: Makes an id of 16 bytes.
        terms: What derivation depends on.
        dry_run: Say what would change, and leave it.

    Raises:
        AttributionRefused: It would make a session its own parent, or put events into a deleted one; or there are too
            many of them.
        NotFound: One of the events is not there.
    """

    async def note(work: Work) -> Overlay:
        number = len(await list_attributions(work.tx, org))
        choice, change = _JSON.encode(overlay.choice), _JSON.encode(overlay.change)
        said = (jcs.scrub(reason), jcs.scrub(actor), work.now)
        await work.tx.run("attributions.put", [(org.bytes, overlay.attribution_id, number, choice, change, *said)])
        if len(await _selected(work, overlay)) < len(overlay.choice.events):
            raise NotFound("an id names no event that is there", "ids of events begin with cap_")
        return overlay

    return await _change(database, org, note, mint=mint, terms=terms, dry_run=dry_run)


async def undo(
    database: Database,
    org: UUID,
    attribution_id: bytes,
    *,
    mint: Callable[[], bytes],
    terms: Terms,
    dry_run: bool,
) -> Move:
    """Take an attribution back: its events are where those that are left put them, or where they were sent.

    Raises:
        NotFound: There is none of that id that is in force.
        AttributionRefused: Events would come into a session that was deleted meanwhile.
    """

    async def note(work: Work) -> Overlay:
        named = {"org": org.bytes, "attribution_id": attribution_id}
        kept = {each.overlay.attribution_id: each.overlay for each in await list_attributions(work.tx, org)}
        if await work.tx.one("attributions.undo", undone_at=work.now, **named) is None:
            raise NotFound("there is no such attribution in force", "holdfast sessions attributions lists them")
        return kept[attribution_id]

    return await _change(database, org, note, mint=mint, terms=terms, dry_run=dry_run)


async def _change(
    database: Database,
    org: UUID,
    note: Callable[[Work], Awaitable[Overlay]],
    *,
    mint: Callable[[], bytes],
    terms: Terms,
    dry_run: bool,
) -> Move:
    async with alone(database, org, mint=mint, terms=terms, dry_run=dry_run) as work:
        before = (await load_overlays(work.tx, org)).active
        overlay = await note(work)
        return await _move(work, overlay, before, (await load_overlays(work.tx, org)).active)


async def _move(work: Work, overlay: Overlay, before: Sequence[Overlay], after: Sequence[Overlay]) -> Move:
    """Place the events that an attribution selects anew, and all that was derived of them."""
    selected = await _selected(work, overlay)
    own: list[Seen] = []
    new: list[Seen] = []
    for start in range(0, len(selected), _PAGE):
        page = {each.event_id: each for each in selected[start : start + _PAGE]}
        for each in page.values():
            await _check(work, overlays.attributed(each, before), overlays.attributed(each, after))
        ids = json.dumps([each.hex() for each in page])
        for row in await work.tx.all("turn_evidence.of_events", ids=ids, org=work.org.bytes):
            seen = seen_of(row)
            placed = derivation.moved(seen.evidence, overlays.attributed(page[seen.evidence.event_id], after))
            if placed != seen.evidence:
                own.append(seen)
                new.append(Seen(placed, seen.caller, b""))
    moves = await replace(work, own, new)
    facts = {
        turn_id: tuple(None if side is None else side.facts for side in (change.old, change.new))
        for turn_id, change in work.changes.items()
    }
    keys = sorted({side.key for sides in facts.values() for side in sides if side is not None})
    was = [await _standing(work, key) for key in keys]
    await apply(work, moves, Derived(), None, {})
    now = [await _standing(work, key) for key in keys]
    return Move(
        len(selected),
        {turn_id: (sides[0], sides[1]) for turn_id, sides in sorted(facts.items())},
        {key: (old, new) for key, old, new in zip(keys, was, now, strict=True)},
    )


async def _standing(work: Work, key: SessionKey) -> Standing | None:
    """Return a session as it stands in the transaction; None where it has no turns."""
    standings = Standings(work)
    found = await standings.find(key)
    if found.fold is None:
        return None
    if found.parent_id is not None:
        above = await standings.get(found.parent_id)
        found.parent = None if above is None else above.key
    return found


async def _check(work: Work, before: RawEvent, after: RawEvent) -> None:
    if overlays.is_own_parent(after) and not overlays.is_own_parent(before):
        raise AttributionRefused("a session would be its own parent", "name another session, or another parent")
    session = after.call.session
    if before == after or session is None or not session.harness_session_id:
        return
    key = {"harness_id": session.harness_id, "harness_session_id": session.harness_session_id}
    if await work.tx.one("tombstones.get", org=work.org.bytes, **key) is not None:
        raise AttributionRefused(
            "the events would come into a session that was deleted", "holdfast sessions undelete-key lets it come back"
        )


# --- events -------------------------------------------------------------------------------------------


async def _selected(work: Work, overlay: Overlay) -> list[RawEvent]:
    """Return the events that an attribution selects, without their bodies."""
    ids = await _chosen(work.tx, work.org, overlay)
    if len(ids) > EVENTS_MAX:
        raise AttributionRefused(
            f"more than {EVENTS_MAX} events would be moved at once", "select them by thread, or by event"
        )
    return [each async for each in _told(work.tx, work.org, ids) if overlay.selects(each)]


async def _chosen(tx: Tx, org: UUID, overlay: Overlay) -> list[bytes]:
    """Return the events among which are all that an attribution selects."""
    choice = overlay.choice
    if choice.session is None:
        return sorted(map(bytes.fromhex, choice.events))
    return await _sent_under(tx, org, choice.session)


async def _sent_under(tx: Tx, org: UUID, key: SessionKey) -> list[bytes]:
    events: list[bytes] = []
    after = 0
    while True:
        named = {"org": org.bytes, "group_key": identity.group_key(key)}
        page = await tx.all("raw_events.of_group", **named, after=after, limit=_PAGE)
        events += [row.event_id for row in page]
        if len(page) < _PAGE:
            return events
        after = page[-1].seq


async def _told(tx: Tx, org: UUID, event_ids: Sequence[bytes]) -> AsyncIterator[RawEvent]:
    """Give events as they were sent, without their bodies."""
    for start in range(0, len(event_ids), _PAGE):
        ids = json.dumps([each.hex() for each in event_ids[start : start + _PAGE]])
        for row in await tx.all("raw_events.told", ids=ids, org=org.bytes):
            yield sent(row, org)


def sent(row: Row, org: UUID) -> RawEvent:
    """Return an event as it was sent, without its bodies."""
    return RawEvent(
        seq=row.seq,
        event_id=row.event_id,
        org=org,
        capture_id=row.capture_id,
        captured_at=row.captured_at,
        call=intake.reread(jcs.read(rows.unpack(row.envelope)), None, None, org=org),
        flags=frozenset(row.flags.split()),
    )


async def events_under(tx: Tx, org: UUID, key: SessionKey) -> list[bytes]:
    """Return the events that are in a session, whether a turn was made of them or not: sent there or put there."""
    found = await _sent_under(tx, org, key)
    in_force = (await load_overlays(tx, org)).active
    if not in_force:
        return found
    near = set(found)
    for each in in_force:
        if each.change.harness_id or each.change.harness_session_id:
            near.update(await _chosen(tx, org, each))
    placed = (overlays.attributed(each, in_force) async for each in _told(tx, org, sorted(near)))
    return [each.event_id async for each in placed if overlays.key_of(each) == key]


async def key_of_session(tx: Tx, org: UUID, session_id: bytes) -> SessionKey:
    """Return the key of a session that is there."""
    row = await tx.one("sessions.load", org=org.bytes, session_id=session_id)
    assert row is not None
    return row.harness_id, row.harness_session_id


async def events_in(tx: Tx, org: UUID, session_id: bytes, thread_id: str | None) -> set[bytes]:
    """Return the events that tell of a session's turns; of one thread, or of all."""
    found = map(seen_of, await tx.all("turn_evidence.of_session", org=org.bytes, session_id=session_id))
    return {each.evidence.event_id for each in found if thread_id in (None, each.evidence.says.thread_id)}
