"""Pack what has lain for a while: now and then, or when asked.

    list → load, in a view → compute, in a thread → put, in a transaction of its own

Any number of processes may pack one ledger: each event is packed by one of them. What is computed in vain costs time,
never truth.

Invariants:
    - One conversation's requests at a time, and of them a few megabytes: memory and transactions stay small.
    - Nothing that is captured, derived or read waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from holdfast.core import points, trace
from holdfast.core.loops import Loop
from holdfast.sessions.archive import packing
from holdfast.sessions.archive.packing import Packed, Unpacked
from holdfast.sessions.deltas import Base, Packing
from holdfast.sessions.metrics import METRICS

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.sessions.archive.rows import Body
    from holdfast.sessions.config import SessionsConfig
    from holdfast.store.database import Database

__all__ = ["PackReport", "Packer"]

EVERY_S: Final = 60.0
PAGE: Final = 500
BATCH_MAX: Final = 64
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Events of one transaction, and what their requests weigh together; a larger one is alone."""


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed, or would be looked at.

    Attributes:
        events: Events whose request was looked at.
        deltas: Requests that are deltas now; the others stay as they were, and are what deltas are against.
        bytes_before: What the requests took in the ledger.
        bytes_after: What they take now; in a dry run the same.
    """

    events: int = 0
    deltas: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


class Packer:
    """Packs the events of one ledger. Belongs to the event loop of its database."""

    def __init__(self, database: Database, *, clock: Clock, config: SessionsConfig) -> None:
        """Make one; nothing runs before `start`."""
        self._database = database
        self._clock = clock
        self._config = config
        self._loop = Loop("holdfast sessions pack", self._round, EVERY_S, clock)

    def start(self) -> None:
        """Pack every minute from now on, where this process derives. Harmless when done before."""
        if self._config.derive.workers:
            self._loop.start()

    async def stop(self) -> None:
        """Pack no more; what is being written is written or not at all. Harmless when done before."""
        await self._loop.stop()

    async def _round(self) -> None:
        await self.pack(None)

    async def pack(self, org: UUID | None, *, dry_run: bool = False) -> PackReport:
        """Pack what came long enough ago; None is all orgs.

        Raises:
            StoreError: The ledger cannot be reached; what was packed stays so.
        """
        before = self._clock.now() - self._config.pack_after_ms * 1000 + 1
        if dry_run:
            async with self._database.read() as tx:
                count, size = await packing.count_unpacked(tx, org, before=before)
            return PackReport(count, 0, size, size)
        reports: list[PackReport] = []
        after = 0
        while True:
            async with self._database.read() as tx:
                page = await packing.list_unpacked(tx, org, before=before, after=after, limit=PAGE)
            for batch in _batches(page):
                with trace.span("holdfast.sessions.pack"):
                    reports.append(await self._pack(batch))
            if len(page) < PAGE:
                break
            after = page[-1].seq
        return PackReport(
            sum(each.events for each in reports),
            sum(each.deltas for each in reports),
            sum(each.bytes_before for each in reports),
            sum(each.bytes_after for each in reports),
        )

    async def _pack(self, batch: Sequence[Unpacked]) -> PackReport:
        org = batch[0].org
        async with self._database.read() as tx:
            bases = await packing.load_bases(tx, org, batch[0].group_key)
            loaded = [(each.event_id, await packing.load_request(tx, org, each.event_id)) for each in batch]
        requests = {event_id: request for event_id, request in loaded if request is not None}
        packed = await asyncio.to_thread(_computed, bases, requests)
        async with self._database.write() as tx:
            done = await packing.put(tx, org, packed)
        if points.armed:
            points.reach("sessions.packed")
        settled = [each for each in packed if each.event_id in done]
        deltas = [each.delta for each in settled if each.delta is not None]
        METRICS.packed.add(len(deltas), "delta")
        METRICS.packed.add(len(settled) - len(deltas), "base")
        before = sum(len(requests[each.event_id].stored) for each in settled)
        kept = sum(len(requests[each.event_id].stored) for each in settled if each.delta is None)
        return PackReport(len(settled), len(deltas), before, kept + sum(map(len, deltas)))


def _batches(page: Sequence[Unpacked]) -> Iterator[list[Unpacked]]:
    """Cut events into what is packed at once: of one conversation, and not too much."""
    groups: dict[tuple[UUID, bytes], list[Unpacked]] = {}
    for each in page:
        groups.setdefault((each.org, each.group_key), []).append(each)
    for group in groups.values():
        batch: list[Unpacked] = []
        size = 0
        for each in group:
            if batch and (len(batch) == BATCH_MAX or size + each.size > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(each)
            size += each.size
        yield batch


def _computed(bases: Sequence[tuple[bytes, Body, int]], requests: dict[bytes, Body]) -> list[Packed]:
    line = Packing([Base(event_id, each.data(), taken) for event_id, each, taken in bases if each.is_whole()])
    found: list[Packed] = []
    for event_id, request in requests.items():
        # What is damaged is left to be found as it is, and nothing is packed against it.
        delta = line.add(event_id, request.data(), len(request.stored)) if request.is_whole() else None
        found.append(Packed(event_id, event_id, None) if delta is None else Packed(event_id, *delta))
    return found
