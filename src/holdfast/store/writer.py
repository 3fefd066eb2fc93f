"""Group commit: many callers, one flush.

Callers offer `Append`s; the writer queues them, commits what waits in one transaction and resolves every
caller of that transaction at once. This module hides queueing, back-pressure, timeouts, isolation of bad
appends, and recovery from a failing database. It contains no SQL: how one batch becomes a transaction is
the dialect's part, behind `Committer`.

The way of an append:

    new --offer--> queued --take--> taken --commit--> done       its future and `settled` say how it ended
                     |                |
                     | withdraw       +--failure--> queued again, or taken still when the commit is in doubt
                     v
                 withdrawn

A dialect is asked for one batch per lane at a time; while it is under way the next piles up. It answers at
once (`commit` returns True) or later (it returns False and calls `Batch.landed` in the loop). A failure is
either of an append (`AppendFailed`: the batch is rolled back and given again with `careful` set, one
group per append) or of the database (any `StoreError`: everything stays queued in its order, and the lane
is reopened after a pause that doubles from 100 ms to 5 s).

Invariants:
    - Appends of one lane become durable in the order they were taken in; nothing accepted is dropped.
    - An append is acknowledged only after the commit that holds it has returned.
    - Queued and unsettled appends never exceed the limits of items and bytes, save one that alone is larger.
    - Nothing is scheduled per append: one callback per batch, one timer for all.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from holdfast.core import points
from holdfast.core.errors import Closed, StoreError, Unavailable
from holdfast.core.loops import spawn
from holdfast.store import meters
from holdfast.store.batch import Batch, Committer
from holdfast.store.database import Append, Overdue, Row
from holdfast.store.faults import Faults

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.store.home import Home
    from holdfast.store.settings import StoreSettings

__all__ = ["Overdue", "Writer"]

log = logging.getLogger(__name__)

points.register(
    "batch.begun", "batch.inserted", "batch.committed",
    "intent.queued", "intent.committed", "outcome.queued", "outcome.committed", "finish.queued", "finish.committed",
)  # fmt: skip

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 5.0
GATHER_TICKS_MAX = 3
GATHER_S_MAX = 0.0002
"""How long a batch smaller than the last waits for more, as long as each tick of the loop brings some. On a loop
that is busy with other things a tick costs more than the flush it would save."""
CLOSE_S_MIN = 0.5
"""However short an acknowledgement may take, closing tries for this long."""


class _Lane:
    """The queue of one connection and what is under way on it."""

    __slots__ = (
        "careful", "doubtful", "down", "first_tick", "flying", "index", "last_count", "pause", "queue", "restart",
        "seen", "settled", "taken_in", "ticking", "ticks",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.queue: deque[Append] = deque()
        self.flying: Batch | None = None
        self.ticking = False
        self.down = False  # until it has been reopened
        self.careful = False  # the next batch contains a bad append
        self.pause = RESTART_FIRST_S
        self.restart: Any = None
        self.doubtful: set[Append] = set()
        self.taken_in = self.settled = 0  # appends ever accepted, and ever left behind: what `drained` compares
        self.last_count = 1
        self.seen = 0
        self.ticks = 0
        self.first_tick = 0.0


class Writer:
    """The queue of appends of one database in one process, and what becomes of them.

    Every method is called in the loop it was made in. `degraded` turns True with the first append that was
    not acknowledged within the timeout, and False when a batch commits or nothing is left to commit.

    Args:
        committer: The dialect's part.
        home: The process and loop it belongs to.
        clock: Times acknowledgements and pauses.
        settings: The limits.
    """

    def __init__(self, committer: Committer, *, home: Home, clock: Clock, settings: StoreSettings) -> None:
        self._committer = committer
        self._home_check = home.check
        self._clock = clock
        self._loop = home.loop
        self._monotonic = clock.monotonic
        self._timeout = settings.ack_timeout_ms / 1000
        self._batch_items_max = settings.batch_items_max
        self._batch_bytes_max = settings.batch_bytes_max
        self._queue_items_max = settings.queue_items_max
        self._queue_bytes_max = settings.queue_bytes_max
        self._lanes = [_Lane(index) for index in range(committer.lanes)]
        self._lane_count = committer.lanes
        self._line: deque[tuple[Append, asyncio.Future[None]]] = deque()
        self._timer: Any = None
        self._drains: list[tuple[_Lane, int, asyncio.Future[None]]] = []
        self._shut: Callable[[], StoreError] | None = None
        self._last_error: StoreError | None = None
        self._over = False
        self.faults = Faults(self)
        self.faulty = False
        self.degraded = False
        self.pending_items: int = 0
        self.pending_bytes: int = 0
        self.batches = self.appends = self.failures = 0
        meters.watch(self)

    # Taking in

    def offer(self, append: Append, /) -> bool:
        """Take an append if there is room and nobody waits for room; say whether it was taken.

        Raises:
            Closed: The writer takes nothing any more.
            WrongLoop: Called from another event loop or thread.
            WrongProcess: Called in a forked child.
        """
        self._home_check()
        if self._shut is not None:
            raise self._shut()
        items = self.pending_items
        if items and (
            self._line or items >= self._queue_items_max or self.pending_bytes + append.size > self._queue_bytes_max
        ):
            return False
        append.due = self._monotonic() + self._timeout
        self._accept(append)
        return True

    async def put(self, append: Append, /) -> None:
        """Take an append as soon as there is room, in the order of the calls.

        A put that is cancelled leaves nothing behind, unless its append was already taken.

        Raises:
            Overdue: There was no room within the timeout; the append was not taken.
            Closed: The writer takes nothing any more.
        """
        if self.offer(append):
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        append.due = self._monotonic() + self._timeout
        place = (append, waiter)
        self._line.append(place)
        if self._timer is None:
            self._arm(self._timeout)
        try:
            await waiter
        except asyncio.CancelledError:
            if append.state == "new":
                if place in self._line:
                    self._line.remove(place)
            else:
                self.withdraw(append)
            raise

    def withdraw(self, append: Append, /) -> bool:
        """Take back an append; True when it will never be committed, False when it was taken already."""
        if append.state != "queued":
            return append.state == "withdrawn"
        append.state = "withdrawn"  # it leaves the queue when its turn comes
        self.pending_items -= 1
        self.pending_bytes -= append.size
        if not self.pending_items:
            self.degraded = False
        self._admit()
        return True

    def poke(self, lane: int | None = None, /) -> None:
        """Look again at a lane, or at all: something that held it up is over."""
        for each in self._lanes if lane is None else (self._lanes[lane],):
            if each.queue or self._drains:
                self._schedule(each)

    def pending(self, lane: int, /) -> bool:
        """Say whether something accepted for an append's lane is not settled."""
        return (each := self._lanes[lane % self._lane_count]).settled < each.taken_in

    async def drained(self, lane: int | None = None, /) -> None:
        """Return when everything accepted so far has been settled, in an append's lane or in all."""
        waiting = []
        for each in self._lanes if lane is None else (self._lanes[lane % self._lane_count],):
            if each.settled < each.taken_in:
                future: asyncio.Future[None] = self._loop.create_future()
                self._drains.append((each, each.taken_in, future))
                waiting.append(future)
        for future in waiting:
            await future

    def _accept(self, append: Append) -> None:
        append.state = "queued"
        self.pending_items += 1
        self.pending_bytes += append.size
        lane = self._lanes[append.lane % self._lane_count]
        lane.taken_in += 1
        lane.queue.append(append)
        if not lane.ticking:
            lane.ticking = True
            self._loop.call_soon(self._tick, lane)
        if self._timer is None:
            self._arm(self._timeout)
        if points.armed and append.label:
            points.reach(f"{append.label}.queued")

    def _admit(self) -> None:
        """Let those who wait for room in, in their order."""
        line = self._line
        while line:
            append, waiter = line[0]
            items = self.pending_items
            if items and (items >= self._queue_items_max or self.pending_bytes + append.size > self._queue_bytes_max):
                return
            line.popleft()
            if not waiter.done():
                self._accept(append)
                waiter.set_result(None)

    # Committing

    def _schedule(self, lane: _Lane) -> None:
        if not lane.ticking:
            lane.ticking = True
            self._loop.call_soon(self._tick, lane)

    def _tick(self, lane: _Lane) -> None:
        """Commit what waits in a lane, at the end of a loop tick."""
        waiting = len(lane.queue)
        if waiting < lane.last_count and waiting > lane.seen and lane.ticks < GATHER_TICKS_MAX:
            # Callers of the last batch are still on their way back: a tick costs less than a flush.
            now = self._loop.time()
            if not lane.ticks:
                lane.first_tick = now
            if now - lane.first_tick < GATHER_S_MAX:
                lane.seen = waiting
                lane.ticks += 1
                self._loop.call_soon(self._tick, lane)
                return
        lane.ticking = False
        lane.seen = lane.ticks = 0
        self._run(lane)

    def go(self, lane: int, /) -> None:
        """Start what waits in a lane right now: the dialect has become ready for it."""
        self._run(self._lanes[lane])

    def _run(self, lane: _Lane) -> None:
        if not lane.queue or lane.flying is not None or lane.down or (self.faulty and self.faults.stalled):
            return
        if not self._committer.ready(lane.index):
            return
        items = self._take(lane)
        if items:
            lane.last_count = len(items)
            careful, lane.careful = lane.careful or bool(lane.doubtful), False
            self._commit(lane, items, careful=careful)
        elif self._drains:
            self._drain_done()

    def _take(self, lane: _Lane) -> list[Append]:
        queue = lane.queue
        if len(queue) <= self._batch_items_max and self.pending_bytes <= self._batch_bytes_max:
            items = [append for append in queue if append.state != "withdrawn"]
            lane.settled += len(queue) - len(items)
            queue.clear()
            return items
        items = []
        size = 0
        while queue and len(items) < self._batch_items_max:
            append = queue[0]
            if append.state == "withdrawn":
                lane.settled += 1
            elif items and size + append.size > self._batch_bytes_max:
                break
            else:
                items.append(append)
                size += append.size
            queue.popleft()
        return items

    def _commit(self, lane: _Lane, items: list[Append], *, careful: bool) -> None:
        batch = Batch(lane.index, items, self._land, careful=careful)
        lane.flying = batch
        try:
            batch.group(lane.doubtful)
            if self.faulty and self.faults.failing:
                self._fault()
            landed = self._committer.commit(batch)
        except points.Crashed:
            return  # everything has been dropped already, as a crash would
        except Exception as error:  # noqa: BLE001 - _land sorts every failure
            self._land(batch, error)
        else:
            if landed:
                self._land(batch, None)

    def _fault(self) -> None:
        self.faults.failing -= 1
        self.faulty = self.faults.any
        raise Unavailable("a commit was made to fail", "this is a test's doing", retry_after=RESTART_FIRST_S)

    def _land(self, batch: Batch, error: BaseException | None) -> None:
        lane = self._lanes[batch.lane]
        if lane.flying is not batch:
            return  # the writer died meanwhile, and the batch's appends are queued again
        if error is None and points.armed and not self._survives(batch):
            return
        lane.flying = None
        if error is None and self.faulty and self.faults.mute:
            self.faults.mute = 0
            self.faulty = self.faults.any
            batch.in_doubt = True
            error = Unavailable("an acknowledgement was made to get lost", "this is a test's doing")
        if error is None:
            self._settle(lane, batch)
        elif isinstance(error, StoreError):
            self._fail(lane, batch, error)
        elif not batch.careful:
            self._put_back(lane, batch)
            lane.careful = True
        else:
            log.error("a batch could not be committed one by one", exc_info=error)
            for group in batch.groups:
                group.error = group.error or StoreError(f"the append could not be written: {type(error).__name__}")
            self._settle(lane, batch)
        if lane.queue:
            self._schedule(lane)

    def _survives(self, batch: Batch) -> bool:
        """Pass the crash points of appends whose callers do not know yet; False: they never will."""
        try:
            for append in batch.items:
                if append.label:
                    points.reach(f"{append.label}.committed")
        except points.Crashed:
            return False
        return True

    def _settle(self, lane: _Lane, batch: Batch) -> None:
        """Tell every caller of a committed batch, in one go."""
        count = len(batch.items)
        lane.settled += count
        lane.pause = RESTART_FIRST_S
        if lane.doubtful:
            lane.doubtful.difference_update(batch.items)
        self.pending_items -= count
        self.pending_bytes -= batch.size
        self.batches += 1
        self.appends += count
        meters.observe_batch(batch, self._monotonic() + self._timeout)
        self.degraded = False
        self._last_error = None
        for group in batch.groups:
            if group.error is not None or group.recorded is not None:
                _tell(group.items[0], group.recorded, group.error)
                continue
            guards = group.guards
            for append in group.items:
                append.state = "done"
                result = True if append.guard is None else guards[append.guard]
                future = append.future
                if future is not None and not future.done():
                    future.set_result(result)
                if append.settled is not None:
                    _call(append.settled, durable=result is not None)
        for call in batch.calls:
            _tell(call, call.row, call.error)
        if self._line:
            self._admit()
        if self._drains:
            self._drain_done()

    def _drain_done(self) -> None:
        still = []
        for lane, mark, future in self._drains:
            if lane.settled < mark:
                still.append((lane, mark, future))
            elif not future.done():
                future.set_result(None)
        self._drains = still

    # Failing

    def die(self) -> None:
        """Lose every connection at once: what is under way is in doubt, everything restarts after a pause."""
        error = Unavailable("the writer died", "it restarts by itself")
        for lane in self._lanes:
            batch, lane.flying = lane.flying, None
            if batch is not None:
                batch.in_doubt = True
            self._fail(lane, batch, error)

    def _fail(self, lane: _Lane, batch: Batch | None, error: StoreError) -> None:
        """Keep a batch the database refused, and try again after a pause."""
        self.failures += 1
        self._last_error = error
        if batch is not None:
            if batch.in_doubt:
                lane.doubtful.update(batch.items)
            self._put_back(lane, batch)
        if lane.down:
            return
        lane.down = True
        log.warning("commits fail, next try in %.1f s: %s", lane.pause, error)
        lane.restart = self._clock.call_later(lane.pause, partial(self._restart, lane))
        lane.pause = min(lane.pause * 2, RESTART_MAX_S)

    def _put_back(self, lane: _Lane, batch: Batch) -> None:
        """Queue a batch again, ahead of everything; what may be on disk already cannot be withdrawn."""
        for append in batch.items:
            if append not in lane.doubtful:
                append.state = "queued"
        lane.queue.extendleft(reversed(batch.items))

    def _restart(self, lane: _Lane) -> None:
        lane.restart = None
        meters.restarts.add()
        spawn(self._reopen(lane), "holdfast writer restart")

    async def _reopen(self, lane: _Lane) -> None:
        failed: StoreError | None = None
        try:
            await self._committer.reopen(lane.index)
        except Exception as error:  # noqa: BLE001 - a lane that is not tried again holds up its appends for ever
            failed = error if isinstance(error, StoreError) else StoreError(f"no new start: {type(error).__name__}")
        if self._over:
            return
        lane.down = False
        if failed is None:
            self.poke(lane.index)
        else:
            self._fail(lane, None, failed)

    # Keeping time

    def _arm(self, delay: float) -> None:
        self._timer = self._clock.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        """Give up waiting for appends that are overdue. Runs once per timeout while all is well."""
        self._timer = None
        now = self._monotonic()
        soonest = math.inf
        while self._line and self._line[0][0].due <= now:
            append, waiter = self._line.popleft()
            self.degraded = True
            if not waiter.done():
                waiter.set_exception(Overdue(append))
        if self._line:
            soonest = self._line[0][0].due
        for lane in self._lanes:
            if lane.flying is not None:
                soonest = min(soonest, self._expire(lane.flying.items, now))
            soonest = min(soonest, self._expire(lane.queue, now))
        if soonest < math.inf:
            # Rounded up to a twentieth of the timeout, so that a long queue is not walked for every append.
            self._arm(max(soonest - now, self._timeout / 20))

    def _expire(self, appends: deque[Append] | list[Append], now: float) -> float:
        """Mark what is overdue; return when the next will be. Appends are in the order of their `due`."""
        for append in appends:
            if append.state == "withdrawn" or append.due == math.inf:
                continue
            if append.due > now:
                return append.due
            append.due = math.inf
            self.degraded = True
            if append.future is not None and not append.future.done():
                append.future.set_exception(Overdue(append))
        return math.inf

    # Ending

    async def close(self) -> None:
        """Commit everything accepted, and take nothing more.

        Raises:
            StoreError: The database kept failing for as long as an acknowledgement may take; what was not
                committed is lost, and its callers were told the same.
        """
        if self._shut is None:
            self._shut = _closed
        while self._line:
            _, waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_exception(_closed())
        await self._flush()
        if self.pending_items:
            raise self._give_up()
        self._drop(lambda future: future.cancel())  # there is nothing, but a lane that is down would be tried for ever

    async def _flush(self) -> None:
        # In real time: a program that ends must end, whatever clock its ledger goes by.
        deadline = self._loop.time() + max(self._timeout, CLOSE_S_MIN)
        done = spawn(self.drained(), "holdfast writer drain")
        try:
            while not done.done() and self._loop.time() < deadline:
                for lane in self._lanes:
                    if lane.down and lane.restart is not None:  # no sense in waiting out a long pause
                        lane.restart.cancel()
                        lane.restart = self._loop.call_later(RESTART_FIRST_S / 2, self._restart, lane)
                    elif lane.queue:
                        self._schedule(lane)
                await asyncio.wait((done,), timeout=RESTART_FIRST_S)
        finally:
            if not done.done():
                done.cancel()

    def _give_up(self) -> StoreError:
        lost = self.pending_items
        error = self._last_error or StoreError("commits are held up")
        for append in self._drop(lambda future: future.set_exception(error)):
            if append.settled is not None:
                _call(append.settled, durable=False)
        return Unavailable(f"{lost} accepted appends could not be committed: {error}", error.hint)

    def abandon(self, shut: Callable[[], StoreError] | None = None) -> None:
        """Drop everything as a crash would: nothing is committed, whoever waits is cancelled."""
        self._shut = shut or _closed
        self._drop(lambda future: future.cancel())

    def _drop(self, tell: Callable[[asyncio.Future[Any]], object]) -> list[Append]:
        """Forget every append, and tell whoever waits; return those that had been accepted."""
        self._over = True
        dropped: list[Append] = []
        for lane in self._lanes:
            batch, lane.flying = lane.flying, None
            lane.down = True
            if lane.restart is not None:
                lane.restart.cancel()
            dropped += batch.items if batch is not None else []
            dropped += [append for append in lane.queue if append.state != "withdrawn"]
            lane.queue.clear()
        futures = [append.future for append in dropped]
        futures += [waiter for _, waiter in self._line]
        futures += [future for _, _, future in self._drains]
        self._line.clear()
        self._drains = []
        self.pending_items = self.pending_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future in futures:
            if future is not None and not future.done():
                tell(future)
        return dropped


def _tell(append: Append, row: Row | None, error: Exception | None) -> None:
    """Tell the caller of an append that was committed, found or refused on its own."""
    append.state = "done"
    future = append.future
    if future is not None and not future.done():
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(row)
    if append.settled is not None:
        _call(append.settled, durable=error is None)


def _call(settled: Callable[[bool], None], *, durable: bool) -> None:
    try:
        settled(durable)
    except Exception:
        log.exception("a callback of a settled append failed")


def _closed() -> StoreError:
    return Closed("the ledger is closed", "open it again")
