"""Tidy the ledger: what has lapsed is marked, what is unknown is reconciled, what has expired is deleted.

Any number of processes may sweep one ledger. Each change is fenced, so it happens once.

Invariants:
    - Nothing that somebody still holds is touched: a lapse is marked only if the lease is as it was read.
    - At most `prune_batch` rows go in one transaction, and others get their turn between two.
    - A reconciler's word about one attempt is never applied to another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core import points
from holdfast.core.loops import Loop
from holdfast.idempotency import headers as fields
from holdfast.idempotency import keys, lapses
from holdfast.idempotency.gate import Expired, bounded
from holdfast.idempotency.machine import DecideOutcome, DecideRerun
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import Completed, Rerun, Undecided

if TYPE_CHECKING:
    from holdfast.idempotency.opened import Opened
    from holdfast.idempotency.values import KeyRecord
    from holdfast.store.database import Tx
    from holdfast.store.owners import Lock

__all__ = ["Sweep", "Sweeper"]

RECONCILE_MAX_S = 30.0
"""A reconciler asks somebody else's service; one that takes longer is asked again by the next sweep."""
ACTOR = "reconciler"

log = logging.getLogger("holdfast.idempotency")

points.register("sweep.marked", "pruned")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did.

    Attributes:
        pruned: Rows deleted.
        marked_unknown: Lapsed records whose outcome nobody knows.
        reconciled: Unknown or lapsed records that got an outcome, or may run again.
    """

    pruned: int = 0
    marked_unknown: int = 0
    reconciled: int = 0


class Sweeper:
    """Sweeps for one open guard, now and then or when asked.

    Args:
        opened: The open guard.
        rule_of: The rule of a method and a route, if this process knows one.
    """

    def __init__(self, opened: Opened, rule_of: Callable[[str, str], RouteRule | None]) -> None:
        self._opened = opened
        self._rule_of = rule_of
        self._fresh = True
        every = opened.config.sweep_every.total_seconds()
        self._loop = Loop("holdfast idempotency sweep", self._round, every, opened.clock)

    def start(self) -> None:
        """Sweep every `sweep_every` from now on."""
        self._loop.start()

    async def stop(self) -> None:
        """Sweep no more."""
        await self._loop.stop()

    async def sweep(self) -> Sweep:
        """Sweep now.

        Raises:
            StoreUnavailable: The ledger cannot be reached; what was done stays done.
        """
        marked, settled = await self._lapsed()
        reconciled = await self._reconcile()
        pruned = await self._prune()
        opened = self._opened

        async def count() -> int:
            async with opened.database.read() as tx:
                return await keys.count_unknown(tx)

        opened.events.unknown = await opened.gate.attempt(count)
        return Sweep(pruned, marked, settled + reconciled)

    async def _round(self) -> None:
        if self._fresh:  # a process that has just started has requests to answer
            self._fresh = False
        else:
            await self.sweep()

    # What has lapsed

    async def _lapsed(self) -> tuple[int, int]:
        dead, proven = await self._find_dead()
        await lapses.end(self._opened, proven)
        marked = settled = 0
        after = b""
        while page := await self._page_lapsed(dead, after):
            for record in page:
                if record.mode == "execution":
                    settled += await self._attach(record)
                else:
                    marked += await self._mark(record, dead=record.owner in dead)
            after = page[-1].key_id
        return marked, settled

    async def _find_dead(self) -> tuple[list[str], dict[str, Lock]]:
        """The owners of claims that are known to be dead, and the locks that prove it where nobody has ended them."""
        opened = self._opened

        async def look() -> list[Any]:
            async with opened.database.read() as tx:
                return await keys.owners(tx)

        dead: list[str] = []
        proven: dict[str, Lock] = {}
        for row in await opened.gate.attempt(look):
            if row.owner_id != opened.owner:
                gone, lock = lapses.find_dead(row)
                if gone:
                    dead.append(row.owner_id)
                if lock is not None:
                    proven[row.owner_id] = lock
        return dead, proven

    async def _page_lapsed(self, dead: list[str], after: bytes) -> list[KeyRecord]:
        opened = self._opened

        async def look() -> list[KeyRecord]:
            async with opened.database.read() as tx:
                return await keys.lapsed(
                    tx, now=opened.clock.now(), owners=dead, after=after, limit=opened.config.prune_batch
                )

        return await opened.gate.attempt(look)

    async def _mark(self, record: KeyRecord, *, dead: bool) -> bool:
        opened = self._opened
        held = opened.claims.of(record.key_id)
        if held is not None and held.fence == record.fence and not held.lost:
            return False  # ours, and at work: the renewal comes late
        now = opened.clock.now()
        if not await opened.gate.attempt(lambda: keys.lapse(opened.single, record, now=now, dead=dead)):
            return False
        opened.events.notice("marked_unknown", code="lapsed", attempt=record.attempt, key_ref=record.key_ref)
        opened.database.wake(keys.channel(record.key_id))
        if points.armed:
            points.reach("sweep.marked")
        return True

    async def _attach(self, record: KeyRecord) -> bool:
        rule = self._rule_of(record.method, record.route)
        if rule is None or record.execution_id is None:
            return False
        answer = await lapses.ask_attach(self._opened, rule, record.execution_id)
        return isinstance(answer, Completed) and await lapses.settle_attached(self._opened, record, answer, rule)

    # What is unknown

    async def _reconcile(self) -> int:
        opened = self._opened
        if opened.config.reconcile is None:
            return 0
        count, after = 0, b""
        while page := await self._page_unknown(after):
            for record in page:
                count += await self._decide(record)
            after = page[-1].key_id
        return count

    async def _page_unknown(self, after: bytes) -> list[KeyRecord]:
        opened = self._opened

        async def look() -> list[KeyRecord]:
            async with opened.database.read() as tx:
                return await keys.unknown(tx, after=after, limit=opened.config.prune_batch)

        return await opened.gate.attempt(look)

    async def _decide(self, record: KeyRecord) -> bool:
        """Ask the reconciler about a record, and write what it says."""
        opened = self._opened
        match await self._ask(record):
            case Rerun():
                action: DecideRerun | DecideOutcome = DecideRerun()
                sealed = None
            case Completed() as outcome:
                rule = self._rule_of(record.method, record.route) or RouteRule()
                outcome = Completed(outcome.status, fields.filter_headers(outcome.headers, rule), outcome.body)
                action = DecideOutcome(outcome)
                sealed = await opened.seal(outcome, record.key_id, record.record_id)
            case _:
                return False

        async def work() -> bool:
            async with opened.database.write() as tx:
                return await _unchanged(tx, record) and await keys.force(
                    tx, record.key_id, action, actor=ACTOR, reason="reconcile", now=opened.clock.now(), sealed=sealed
                )

        if not await opened.gate.attempt(work):
            return False
        opened.events.notice("forced", code=ACTOR, attempt=record.attempt, key_ref=record.key_ref)
        opened.database.wake(keys.channel(record.key_id))
        return True

    async def _ask(self, record: KeyRecord) -> Rerun | Completed | Undecided:
        reconcile = self._opened.config.reconcile
        assert reconcile is not None
        try:
            return await bounded(self._opened.clock, _awaited(reconcile(record)), RECONCILE_MAX_S)
        except Expired:
            log.warning("the reconciler took too long about key %s", record.key_ref)
        except Exception as error:  # noqa: BLE001 - the application's own code; the record stays as it is
            log.warning("the reconciler failed about key %s: %s", record.key_ref, type(error).__qualname__)
        return Undecided()

    # What has expired

    async def _prune(self) -> int:
        opened, count = self._opened, 0
        batch = opened.config.prune_batch

        async def work() -> int:
            async with opened.database.write() as tx:
                return await keys.prune(tx, now=opened.clock.now(), limit=batch)

        while True:
            began = opened.clock.monotonic()
            gone = await opened.gate.attempt(work)
            count += gone
            if points.armed:
                points.reach("pruned")
            if gone < batch:
                return count
            await opened.clock.sleep(opened.clock.monotonic() - began)  # half of the time is for others


async def _unchanged(tx: Tx, record: KeyRecord) -> bool:
    now = await keys.get(tx, record.key_id)
    return now is not None and now.fence == record.fence and now.state is record.state


async def _awaited(answer: Any) -> Any:
    return await answer
