"""How bodies of requests that have lain for a while become deltas, and how they are bodies again.

    list_unpacked   events that may be packed, in the order they came
    load_bases      what the conversation's last bodies were packed against
    put             the fence: what nobody else has packed becomes what was computed of it
    free            before bodies go away: whatever is packed against them stands by itself again

Answers are left as they are: they do not repeat one another.

Invariants:
    - A delta and its base are in the ledger together, or neither is.
    - Nobody waits here for somebody else; what another holds is left for the next time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from holdfast.core import points
from holdfast.sessions import deltas
from holdfast.sessions.archive.captures import body
from holdfast.sessions.archive.rows import Body, body_of
from holdfast.store.database import Tx

__all__ = ["Packed", "Unpacked", "count_unpacked", "free", "list_unpacked", "load_bases", "load_request", "put"]

RECENT = 50
"""Events of a conversation that are looked at for what they were packed against."""

points.register("sessions.packing", "sessions.packed", "sessions.freeing")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An event whose request is not packed yet.

    Attributes:
        size: Of the request itself, in bytes.
    """

    seq: int
    org: UUID
    event_id: bytes
    group_key: bytes
    size: int


async def list_unpacked(tx: Tx, org: UUID | None, *, before: int, after: int, limit: int) -> list[Unpacked]:
    """Return events that came before an instant, those after a place in their order; None is all orgs."""
    rows = await tx.all(
        "raw_events.unpacked", before=before, after=after, org=None if org is None else org.bytes, limit=limit
    )
    return [Unpacked(row.seq, UUID(bytes=bytes(row.org)), row.event_id, row.group_key, row.size) for row in rows]


async def count_unpacked(tx: Tx, org: UUID | None, *, before: int) -> tuple[int, int]:
    """Return how many events came before an instant and are not packed, and what their requests take, in bytes."""
    row = await tx.one("raw_events.count_unpacked", before=before, org=None if org is None else org.bytes)
    return (0, 0) if row is None else (row.count, row.size)


async def load_request(tx: Tx, org: UUID, event_id: bytes) -> Body | None:
    """Return the request of an event; None where there is none."""
    row = await tx.one("raw_events.request", org=org.bytes, event_id=event_id)
    return None if row is None else body(row, "request")


async def load_bases(tx: Tx, org: UUID, group_key: bytes) -> list[tuple[bytes, Body, int]]:
    """Return the bodies that the last events of a group were packed against, and how many deltas each has."""
    found = await tx.all("raw_events.bases", org=org.bytes, group_key=group_key, recent=RECENT, limit=deltas.BASES_MAX)
    loaded = [(row.base_event, await load_request(tx, org, row.base_event), row.taken) for row in found]
    return [(event_id, request, taken) for event_id, request, taken in loaded if request is not None]


@dataclass(frozen=True, slots=True)
class Packed:
    """What is to become of a request.

    Attributes:
        base: The event it is packed against.
        delta: The delta; None: it stays as it is, and others may be packed against it.
    """

    event_id: bytes
    base: bytes
    delta: bytes | None


async def put(tx: Tx, org: UUID, packed: Sequence[Packed]) -> set[bytes]:
    """Store what was computed of requests, in the order it was; return the events for which that is done.

    Left out is what somebody else has packed, or works on; and what is packed against such an event.
    """
    held: set[bytes] = set()
    for base in sorted({each.base for each in packed} - {each.event_id for each in packed}):
        if await tx.one("raw_events.hold_base", org=org.bytes, event_id=base) is not None:
            held.add(base)
    done: set[bytes] = set()
    for each in packed:
        if each.delta is None:
            row = await tx.one("raw_events.keep", org=org.bytes, event_id=each.event_id)
            if row is not None:
                held.add(each.event_id)
        elif each.base in held:
            row = await tx.one(
                "raw_events.pack", request=each.delta, base_event=each.base, org=org.bytes, event_id=each.event_id
            )
        else:
            continue
        if row is not None:
            done.add(each.event_id)
        if points.armed:
            points.reach("sessions.packing")
    return done


async def free(tx: Tx, org: UUID, event_ids: Sequence[bytes]) -> None:
    """Have no other event depend on the bodies of these, which are about to go away in this transaction."""
    ids = json.dumps([each.hex() for each in event_ids])
    await tx.all("raw_events.hold", ids=ids, org=org.bytes)
    going = set(event_ids)
    for row in await tx.all("raw_events.deltas", ids=ids, org=org.bytes):
        request = None if row.event_id in going else await load_request(tx, org, row.event_id)
        if request is None or not await asyncio.to_thread(request.is_whole):
            continue  # what cannot be read now could not be read before
        whole = await asyncio.to_thread(lambda packed: body_of(packed.data()), request)
        await tx.one(
            "raw_events.unpack",
            request=whole.stored,
            request_storage=whole.storage,
            org=org.bytes,
            event_id=row.event_id,
        )
        if points.armed:
            points.reach("sessions.freeing")
