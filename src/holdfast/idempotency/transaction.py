"""The conductor of mode `transaction`: claim, business writes, outbox and outcome in one commit.

    begin -> claim -> savepoint -> handler -> undo? -> settle -> commit -> send
      ^                               |                    |
      └────────── again, if the database aborted it ───────┘

The guard's unit opens a transaction on the application's database. Everything happens in it, so that a crash at any
point leaves either nothing, and a retry runs, or all of it, and a retry is answered from the record. The response
is held until the commit has returned; what the handler does after it (background work) is outside, and runs once.

The end of a transaction is decided in the application's own `send`. What goes wrong there must unwind the
application and may not be mistaken for its failure, so it travels as a private `BaseException`, and is
noted besides, for an application that swallows it.

Invariants:
    - Nothing of a response leaves before the commit that holds its record, or before the rollback that lets go of it.
    - A handler runs again only when nothing of its earlier run was committed.
    - A commit of unknown fate is looked up before anything else happens; if that fails, nobody runs.
    - The key of a transaction that somebody else ended is never run again on its account.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from holdfast.core import points
from holdfast.core.clock import micros
from holdfast.core.errors import Busy, ConfigError, StoreError
from holdfast.core.loops import spawn
from holdfast.idempotency import headers as fields
from holdfast.idempotency import keys
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import StoreUnavailable, TransactionMisused
from holdfast.idempotency.events import claim_seconds, settle_seconds
from holdfast.idempotency.gate import INCURABLE, Expired, bounded, unavailable
from holdfast.idempotency.idem import Idem
from holdfast.idempotency.machine import unknown_reason
from holdfast.idempotency.unit import (
    Aborted,
    Ended,
    Ending,
    Unfit,
    Unit,
    UnitOfWork,
    is_abort,
    is_busy,
    is_decided,
    is_spoilt,
    pick,
)  # fmt: skip
from holdfast.idempotency.values import Conflict, InFlight, Proceed, Replay, State, Tombstone
from holdfast.store.turn import Turn

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.events import NoticeKind
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.values import Outcome
    from holdfast.store.database import Database

__all__ = ["Run", "conduct"]

Found: TypeAlias = Replay | InFlight | Conflict
T = TypeVar("T")

PAUSE_FIRST_S, PAUSE_MAX_S = 0.01, 0.5
"""Between runs of one unit: long enough for the transaction that was in the way to end, as a rule."""
LOOKS_MAX = 3
"""How often a lost commit is looked for: connections of a server that restarted fail one after the other."""
CLIENT_ERROR, SERVER_ERROR = 400, 500

points.register("unit.claimed", "unit.settled", "unit.committed")


class Run(Protocol):
    """The application's runs for one request; `holdfast.idempotency.run` has it."""

    async def attempt(self, idem: Idem, end: Callable[[Ending], Awaitable[None]]) -> None:
        """Run the application once, its scope and body as at entry; nothing leaves before `end` has returned.

        Args:
            idem: What speaks for the request.
            end: Called in the application's task once its response is decided, at most once. What it raises comes
                out of the application's `send`.
        """
        ...


class _Unwind(BaseException):
    """Take the application's run apart: its transaction is over, and not by a commit."""


class _Again(Exception):
    """Nothing was committed, and the same again may succeed."""


_log = logging.getLogger("holdfast.idempotency")


@dataclass(eq=False, slots=True)
class _Round:
    """One transaction of a request, claimed.

    Attributes:
        work: The transaction.
        held: The claim in it.
        claim_id: What the claim is known by; a number given back by a rollback may name another's.
        closing: Gives back what was taken for it.
        over: Whether it was committed or rolled back, and the connection given back.
        stop: Why the run is to be taken apart, if it is: an error, or what another request has made of the key.
        outcome: What the response would be recorded as, once it is decided.
    """

    work: UnitOfWork
    held: Held
    claim_id: bytes
    closing: AsyncExitStack
    over: bool = False
    stop: BaseException | Found | None = None
    outcome: Outcome | None = None


async def conduct(guard: Idempotency, ticket: Ticket, run: Run) -> Found | None:
    """Run a keyed request in a transaction of the guard's unit.

    Args:
        guard: The guard.
        ticket: The request.
        run: Its application.

    Returns:
        What answers the request without a run; None when the application ran and its response is sent, or when it
        returned without one and everything was rolled back.

    Raises:
        StoreUnavailable: The database is busy or cannot be reached, or aborted every run; nothing was written, or
            the next request with this key finds what was.
        TransactionMisused: The handler ended the transaction itself.
        ConfigError: The guard has no unit.
        BaseException: What the application raised; everything was rolled back.
    """
    if guard.unit is None:
        raise ConfigError(
            "a rule has mode transaction, and the guard has no unit to open one",
            "give Idempotency unit=, one of holdfast.integrations",
            code="config.mode_conflict",
            keys=("unit",),
        )
    await guard.ready()
    conductor = _Conductor(guard, guard.unit, ticket, run)
    pause = PAUSE_FIRST_S
    for rerun in range(ticket.rule.retries + 1):
        if rerun:
            await guard.clock.sleep(pause * random.random())  # noqa: S311 - spreads load, guards nothing
            pause = min(pause * 2, PAUSE_MAX_S)
        try:
            return await conductor.round(rerun)
        except _Again:
            continue
    raise unavailable("the database aborted the transaction every time", 0.0)


class _Conductor:
    """What conducts one request."""

    def __init__(self, guard: Idempotency, unit: Unit, ticket: Ticket, run: Run) -> None:
        self._guard = guard
        self._unit = unit
        self._ticket = ticket
        self._rule = ticket.rule
        self._run = run
        self._clock = guard.clock
        self._timeout = guard.config.store_timeout.total_seconds()
        self._sqlite = guard.database.dialect == "sqlite"

    async def round(self, rerun: int) -> Found | None:
        """Run the request in one transaction.

        Raises:
            _Again: The database aborted it.
        """
        held = self._guard.holding(self._ticket)
        if held is not None and not hmac.compare_digest(held.ticket.fingerprint, self._ticket.fingerprint):
            return Conflict("reused")  # its record cannot be seen before it is committed
        if self._sqlite and (found := await self._guard.lookup(self._ticket)) is not None:
            return found
        began = self._clock.monotonic()
        entered = await self._enter(began, rerun)
        claim_seconds.observe(self._clock.monotonic() - began)
        if not isinstance(entered, _Round):
            return entered
        return await self._play(entered)

    # --- the beginning

    async def _enter(self, began: float, rerun: int) -> _Round | Found:
        """Begin a transaction and claim the key in it."""
        wait_s = self._rule.lock_timeout.total_seconds()
        closing = AsyncExitStack()
        try:
            if self._sqlite:
                line = _line(self._guard.database)
                await bounded(self._clock, line.take(), wait_s)
                closing.callback(line.give)
                wait_s = max(wait_s - (self._clock.monotonic() - began), 0.001)
            entered = await self._guard.gated(lambda: self._claim(closing, wait_s, rerun), wait_s + self._timeout)
        except Expired:
            return self._busy()
        except BaseException as error:
            await self._outlasting(_leave(closing, error))
            if is_abort(error):
                raise _Again from error
            raise
        if isinstance(entered, _Round):
            return entered
        await _leave(closing, None)
        return self._busy() if entered is None else entered

    async def _claim(self, closing: AsyncExitStack, wait_s: float, rerun: int) -> _Round | Found | None:
        """Begin, and claim; None: another transaction was in the way for too long."""
        guard, ticket, rule = self._guard, self._ticket, self._rule
        try:
            work = await closing.enter_async_context(
                self._unit.begin(isolation=rule.isolation, lock_timeout=timedelta(seconds=wait_s))
            )
            ticket.owner = ""  # a claim of its own
            found = await guard.claim_in(work.tx, ticket)
        except Busy as error:
            if is_abort(error):
                raise Aborted from error
            return None
        if not isinstance(found, Proceed):
            return found
        if points.armed:
            points.reach("unit.claimed")
        await work.savepoint()
        held = Held(ticket, found)
        held.attempt += rerun
        guard.enter(held)
        closing.callback(guard.leave, held)
        if found.reclaimed:
            guard.events.notice("reclaimed", ticket, attempt=held.attempt)
        return _Round(work, held, ticket.claim_id, closing)

    def _busy(self) -> InFlight:
        """What a request is told that waited for another transaction long enough.

        Raises:
            StoreUnavailable: It is not the key that others hold, but the file.
        """
        if self._sqlite and not self._guard.holds(self._ticket):
            raise self._store_busy()
        now = self._clock.now()
        # When it began nobody can see before it ends.
        return InFlight(until=now + micros(self._rule.lease), since=now - micros(self._rule.lock_timeout))

    def _store_busy(self) -> StoreUnavailable:
        return StoreUnavailable(
            "another connection kept the database to itself",
            "try again with the same key",
            code="idempotency.store_busy",
            retry_after=1,
        )

    # --- the run

    async def _play(self, round_: _Round) -> Found | None:
        """Run the application in a transaction, and see what became of both."""
        idem = Idem(self._guard, round_.held, unit=round_.work)

        async def end(ending: Ending) -> None:
            await self._outlasting(self._end(round_, ending))
            if round_.stop is not None:
                raise _Unwind

        error: BaseException | None = None
        try:
            await self._run.attempt(idem, end)
        except BaseException as raised:  # noqa: BLE001 - it is raised below, if it is the application's
            error = raised
        if error is not None and (crashed := pick(error, points.Crashed)) is not None:
            await _leave(round_.closing, crashed)
            raise error
        if round_.stop is None and not round_.over:
            await self._outlasting(self._unfinished(round_, error))
        if isinstance(round_.stop, BaseException):
            raise round_.stop
        if error is not None and round_.stop is None:
            raise error
        return round_.stop

    async def _unfinished(self, round_: _Round, error: BaseException | None) -> None:
        """Leave nothing of a run that ended without a response."""
        work = round_.work
        if _aborted(work) or (error is not None and is_abort(error)):
            round_.stop = _Again()
        elif not work.intact():
            round_.stop = await self._misused(round_, error)
            return
        await self._roll_back(round_)

    # --- the end

    async def _end(self, round_: _Round, ending: Ending) -> None:
        """Commit what a response means, or leave nothing; `round_.stop` says that it was not to be."""
        work, round_.outcome = round_.work, ending.outcome
        try:
            if _aborted(work):
                raise _Again  # noqa: TRY301 - what else is found out below ends alike
            if not work.intact():
                raise Ended  # noqa: TRY301 - as above
            if ending.verdict == "release":
                await self._roll_back(round_)
                self._tell("released", round_)
                return
            began = self._clock.monotonic()
            await self._write(round_, ending)
            if points.armed:
                points.reach("unit.settled")
            await self._commit(round_, ending)
            settle_seconds.observe(self._clock.monotonic() - began)
        except points.Crashed:
            raise
        except Ended as error:
            round_.stop = await self._misused(round_, error.__cause__)
        except _Elsewhere as error:
            round_.stop = error.found
            await self._roll_back(round_)
        except BaseException as error:  # noqa: BLE001 - it unwinds the application, and is raised behind it
            round_.stop = _Again() if is_abort(error) else error
            await self._roll_back(round_)
        else:
            await self._close(round_)

    async def _write(self, round_: _Round, ending: Ending) -> None:
        """Put the record into the transaction, beside what of the handler's writes is to stay."""
        guard, work, held = self._guard, round_.work, round_.held
        status = ending.outcome.status
        refused = CLIENT_ERROR <= status < SERVER_ERROR and self._rule.on_4xx_writes == "rollback"
        if refused or ending.verdict == "unknown":
            await self._bounded(work.undo())
        if ending.verdict == "unknown":
            reason = unknown_reason("answered", status)
            written = await self._bounded(
                keys.mark_unknown(work.tx, held.key_id, held.fence, reason, now=self._clock.now())
            )
        elif ending.keep:
            written = await self._bounded(guard.settle_in(work.tx, held, ending.outcome, ttl=ending.ttl))
        else:
            written = await self._bounded(keys.withdraw(work.tx, round_.claim_id))
        if not written:
            raise Ended  # the claim has gone with the transaction it was in

    async def _commit(self, round_: _Round, ending: Ending) -> None:
        """Commit, and see to it that it is known whether it happened."""
        try:
            await bounded(self._clock, round_.work.commit(), self._timeout)
        except (asyncio.CancelledError, points.Crashed, Ended):
            raise
        except BaseException as error:
            if is_abort(error):
                raise
            if isinstance(error, Unfit) and error.__cause__ is not None:
                raise error.__cause__ from None
            if is_busy(error):
                raise self._store_busy() from error
            if is_decided(error):
                raise
            await self._look_up(round_, ending)
        if points.armed:
            points.reach("unit.committed")
        for channel in getattr(round_.work.tx, "channels", ()):
            self._guard.database.wake(channel)
        if isinstance(ending.outcome, Tombstone) and ending.keep and ending.verdict == "store":
            self._tell("tombstoned", round_, ending.outcome.reason)
        elif ending.verdict == "unknown":
            self._tell("marked_unknown", round_, unknown_reason("answered", ending.outcome.status))

    async def _look_up(self, round_: _Round, ending: Ending) -> None:
        """Find out on a fresh connection whether a lost commit happened; return if it did.

        Raises:
            _Again: It did not.
            StoreUnavailable: Nobody can tell now.
        """
        if not ending.keep:
            raise unavailable("the connection was lost while the transaction was committed", 0.0)
        for _ in range(LOOKS_MAX):
            try:
                found = await self._bounded(self._look(round_))
            except StoreUnavailable:
                continue
            match found:
                case True:
                    return
                case False:
                    raise _Again
                case _:
                    raise _Elsewhere(found)
        raise unavailable("the connection was lost while the transaction was committed", 0.0)

    async def _look(self, round_: _Round) -> bool | Found:
        """Claim the key anew: what is in the way is what was committed, if not by this round, by another."""
        rule, ticket = self._rule, self._ticket
        ticket.owner = ""  # a claim of its own
        async with self._unit.begin(isolation=None, lock_timeout=rule.lock_timeout) as work:
            found = await self._guard.claim_in(work.tx, ticket)
            if isinstance(found, Proceed):
                return False  # leaving takes the claim back
            record = await keys.get(work.tx, ticket.key_id)
            if record is None or record.claim_id != round_.claim_id:
                return found
            if record.state is State.RESERVED:
                raise Ended  # committed without its outcome: not by us
            return True

    async def _misused(self, round_: _Round, cause: BaseException | None) -> TransactionMisused:
        """Say for good that the handler ran, if what it committed holds the claim; return what to raise."""
        guard, held = self._guard, round_.held
        await self._roll_back(round_)
        self._tell("transaction_misused", round_)
        try:
            await guard.gated(lambda: self._bury(round_))
        except (StoreUnavailable, StoreError) as error:
            # Its row, if there is one, turns unknown when its lease ends.
            _log.warning(
                "key %s was committed by its handler, which could not be noted: %s", held.ticket.key_ref, error.code
            )
        misused = TransactionMisused(
            f"the handler of key {held.ticket.key_ref} ended the transaction of its request itself",
            "neither commit, roll back nor close what Idem.handle gives: the guard does when the response is decided",
        )
        misused.__cause__ = cause
        return misused

    async def _bury(self, round_: _Round) -> None:
        outcome, rule = round_.outcome, self._rule
        status, kept = (outcome.status, outcome.headers) if outcome is not None else (SERVER_ERROR, [])
        headers = fields.tombstone_headers(kept, rule)
        tombstone = Tombstone(status, headers, "handler_commit")
        async with self._guard.database.write() as tx:
            record = await keys.get(tx, round_.held.key_id)
            # By its id: a fence that was rolled back may be another claim's by now.
            if record is not None and record.claim_id == round_.claim_id:
                await self._guard.settle_in(tx, round_.held, tombstone)

    # --- parting

    async def _roll_back(self, round_: _Round) -> None:
        """Leave nothing of a transaction, and part with it."""
        try:
            await bounded(self._clock, round_.work.rollback(), self._timeout)
        except (Exception, Expired) as error:  # noqa: BLE001 - a connection that is closed has rolled back too
            _log.debug("a transaction was ended by closing its connection: %s", type(error).__qualname__)
        await self._close(round_)

    async def _close(self, round_: _Round) -> None:
        round_.over = True
        await _leave(round_.closing, None)

    async def _bounded(self, work: Coroutine[Any, Any, T]) -> T:
        """Make one call of the transaction.

        Raises:
            StoreUnavailable: The connection failed, or it took too long.
            StoreError: The handler spoilt the transaction, or trying again will not help.
        """
        try:
            return await bounded(self._clock, work, self._timeout)
        except Expired:
            raise unavailable("the database did not answer in time", 0.0) from None
        except INCURABLE:
            raise
        except StoreError as error:
            if is_abort(error) or is_spoilt(error):
                raise
            raise unavailable(f"the database failed ({error.code})", 0.0) from error

    async def _outlasting(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something to its end though this task is cancelled, then at most `release_timeout` longer."""
        task = spawn(work, "holdfast idempotency unit")
        cancelled: asyncio.CancelledError | None = None
        left: float | None = None
        while not task.done() and (left is None or left > 0):
            began = self._clock.monotonic()
            try:
                await self._clock.wait(task, left)
            except asyncio.CancelledError as error:
                cancelled = error
            if cancelled is not None:
                spent = self._clock.monotonic() - began
                left = self._guard.config.release_timeout.total_seconds() if left is None else left - spent
        if not task.done():
            task.cancel()
        elif cancelled is None or task.exception() is not None:
            task.result()
        if cancelled is not None:
            raise cancelled

    def _tell(self, kind: NoticeKind, round_: _Round, code: str | None = None) -> None:
        self._guard.events.notice(kind, self._ticket, code=code, attempt=round_.held.attempt)


class _Elsewhere(Exception):
    """The key has become another request's meanwhile."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found


def _aborted(work: UnitOfWork) -> bool:
    """Whether the database aborted a statement, even if the handler caught that."""
    return getattr(work, "aborted", False) is True


async def _leave(closing: AsyncExitStack, error: BaseException | None) -> None:
    """Give back what was taken; a connection that cannot even be given back is the pool's to replace."""
    try:
        await closing.__aexit__(type(error) if error is not None else None, error, None)
    except Exception as failed:  # noqa: BLE001 - whether anything was committed is known by now
        if failed is not error:
            _log.warning("a connection could not be given back: %s", type(failed).__qualname__)


def _line(database: Database) -> Turn:
    """Those of this process that want to write a SQLite file, in the order they came."""
    line = _lines.get(database)
    if line is None:
        line = _lines[database] = Turn(asyncio.get_running_loop())
    return line


_lines: WeakKeyDictionary[Database, Turn] = WeakKeyDictionary()
