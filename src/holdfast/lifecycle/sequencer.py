"""Let callers share transactions: whoever waits while one is under way is served by the next, all at once.

A flush of the disk costs the same for one receipt as for many, and a run's counter is one row. So callers do not
open transactions of their own: they leave an entry, and one task runs all that wait in one `write()` block.

A transaction that fails because of one entry, or because another process recorded the same identity on another
chain at the same moment, is taken apart: every entry runs once more, alone, and is restarted once if it collides.
What is the database's fault is told to all.

Invariants:
    - A caller is told only after the commit that holds its entry.
    - A bad entry fails alone; the others are recorded as if it had not been there.
    - The entries of one transaction run in the order in which their callers came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.core import points, trace
from holdfast.core.errors import Closed, StoreError
from holdfast.core.errors import Conflict as Collision
from holdfast.core.loops import spawn
from holdfast.lifecycle import ledger
from holdfast.lifecycle.documents import LifecycleReceipt, ReceiptKey
from holdfast.lifecycle.enums import ReplayMode
from holdfast.lifecycle.errors import LifecycleError
from holdfast.lifecycle.intents import Claim, Claimed, Settle, Settled
from holdfast.lifecycle.metrics import METRICS, recorded
from holdfast.lifecycle.recording import Draft, Emit, Entry, Put, Recorded
from holdfast.lifecycle.sheet import Origin

if TYPE_CHECKING:
    from holdfast.store.database import Database

__all__ = ["Sequencer"]

SHARED_MAX = 256
"""Entries of one transaction: many enough that a flush costs each of them little, few enough to be quick."""

points.register("lifecycle.settling", "lifecycle.settled", "receipts.put")


class _Waiter:
    """A caller, and what it wants recorded."""

    __slots__ = ("entry", "future")

    def __init__(self, entry: Entry, future: asyncio.Future[Any]) -> None:
        self.entry = entry
        self.future = future

    def tell(self, found: Any) -> None:
        """Give the caller its answer, unless it has gone."""
        if self.future.done():
            return
        if isinstance(found, BaseException):
            self.future.set_exception(found)
        else:
            self.future.set_result(found)


class Sequencer:
    """Records entries of many callers in few transactions. It belongs to the event loop of its database."""

    def __init__(
        self,
        database: Database,
        *,
        chain_key: bytes | None = None,
        told: Callable[[LifecycleReceipt], object] | None = None,
    ) -> None:
        """Make one; nothing runs until somebody calls.

        Args:
            database: The ledger.
            chain_key: What the chains' hashes are keyed with: 32 bytes.
            told: Called in the loop with every receipt that is new, after the commit and before the caller goes on;
                it must not raise.
        """
        self._told = told
        self._database = database
        self._chain_key = chain_key
        self._waiting: deque[_Waiter] = deque()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    async def claim(self, entry: Claim) -> Claimed:
        """Ask whether to call the client about an event; see `ledger.claim`."""
        found: Claimed = await self.record(entry)
        return found

    async def settle(self, intent: str, fence: int, receipt: Draft) -> Settled:
        """End a claim with its receipt; see `ledger.settle`."""
        found: Settled = await self.record(Settle(intent, fence, receipt))
        return found

    async def emit(self, receipt: Draft, *, mode: ReplayMode) -> Recorded:
        """Make a receipt and record it; see `ledger.emit`."""
        found: Recorded = await self.record(Emit(receipt, mode))
        return found

    async def put(
        self,
        key: ReceiptKey | None,
        receipt: LifecycleReceipt,
        *,
        mode: ReplayMode,
        annotations: bytes = b"{}",
        origin: Origin = "replay",
    ) -> Recorded:
        """Record a finished receipt; see `ledger.put`."""
        found: Recorded = await self.record(Put(key, receipt, mode, annotations=annotations, origin=origin))
        return found

    async def record(self, entry: Entry) -> Any:
        """Record an entry with those of others; return what became of it.

        A caller that is cancelled may find its entry recorded all the same.

        Raises:
            LifecycleError: The entry cannot be recorded.
            StoreError: The ledger could not; after `Unavailable` nobody knows whether it did.
        """
        if self._stopped:
            raise Closed("the sequencer was stopped", "make a new one")
        began = self._database.clock.monotonic()
        waiter = _Waiter(entry, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        if self._task is None:
            self._task = spawn(self._run(), "holdfast-receipts")
        found = await waiter.future
        METRICS.record_seconds.observe(self._database.clock.monotonic() - began)
        return found

    async def recover(self, *, limit: int = 100, intent: str | None = None) -> list[LifecycleReceipt]:
        """Close intents whose lease is over; see `ledger.recover`. A collision restarts it once."""
        try:
            return await self._recover(limit, intent)
        except Collision:
            return await self._recover(limit, intent)

    async def stop(self) -> None:
        """Serve who waits, and take no more callers; harmless when it was done before."""
        self._stopped = True
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _recover(self, limit: int, intent: str | None) -> list[LifecycleReceipt]:
        async with self._database.write() as tx:
            now = self._database.clock.now()
            closed = await ledger.recover(tx, now=now, limit=limit, intent=intent, chain_key=self._chain_key)
        METRICS.recovered.add(len(closed))
        self._tell(closed)
        return closed

    async def _run(self) -> None:
        batch: list[_Waiter] = []
        try:
            while self._waiting:
                batch = self._take()
                if batch:
                    await self._serve(batch)
        except BaseException as error:
            # A simulated crash, or the end of the loop: nobody may wait for ever.
            for waiter in (*batch, *self._waiting):
                if isinstance(error, asyncio.CancelledError):
                    waiter.future.cancel()
                else:
                    waiter.tell(error)
            self._waiting.clear()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._task = None

    def _take(self) -> list[_Waiter]:
        count = min(len(self._waiting), SHARED_MAX)
        taken = [self._waiting.popleft() for _ in range(count)]
        return [waiter for waiter in taken if not waiter.future.done()]

    async def _serve(self, batch: list[_Waiter]) -> None:
        try:
            found = await self._record([waiter.entry for waiter in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to whom it concerns
            if not self._is_of_an_entry(error):
                found = [error] * len(batch)
            else:
                found = [await self._alone(waiter.entry) for waiter in batch]
        for waiter, each in zip(batch, found, strict=True):
            waiter.tell(each)

    async def _alone(self, entry: Entry) -> Any:
        for last in (False, True):
            try:
                return (await self._record([entry]))[0]
            except Exception as error:  # noqa: BLE001 - as above
                if last or not self._is_of_an_entry(error):
                    return error
        raise AssertionError  # pragma: no cover - the second round has returned

    def _is_of_an_entry(self, error: Exception) -> bool:
        """Whether other entries may do better, or the same one a second time."""
        if not isinstance(error, StoreError):
            return True
        # On PostgreSQL two transactions that lock each other out are told so at once; elsewhere it is a full wait.
        met = error.code == "store.busy" and self._database.dialect == "postgres"
        return met or error.code in ("store.conflict", "store.value", "store.too_big", "store.error")

    async def _record(self, entries: Sequence[Entry]) -> list[Any | LifecycleError]:
        settles = any(isinstance(entry, Settle) for entry in entries)
        new: list[LifecycleReceipt] = []
        METRICS.batch_items.observe(len(entries))
        with trace.span("holdfast.lifecycle.commit", items=len(entries)):
            async with self._database.write() as tx:
                now = self._database.clock.now()
                found = await ledger.record(tx, entries, now=now, chain_key=self._chain_key, told=new)
                if points.armed:
                    if settles:
                        points.reach("lifecycle.settling")
                    if any(isinstance(entry, Put) for entry in entries):
                        points.reach("receipts.put")
        if settles and points.armed:
            points.reach("lifecycle.settled")
        self._tell(new)
        return found

    def _tell(self, new: Sequence[LifecycleReceipt]) -> None:
        recorded(new)
        if self._told is not None:
            for receipt in new:
                self._told(receipt)
