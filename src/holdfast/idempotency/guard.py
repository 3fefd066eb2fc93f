"""The guard: one per application, and the door to everything a keyed request needs of the ledger.

    guard = Idempotency("orders.db", IdempotencyConfig(principal=…, secrets=[…]))

It opens the ledger on first use and belongs to the event loop and the process of that use. In a new loop after the
first is closed, or in a forked child, a guard that opened the ledger itself opens it again; one that was given an
open `Database` belongs where that belongs.

Invariants:
    - Of all who claim one key exactly one is given a `Held`; only who has one runs the handler.
    - No method starts a task on behalf of one request, except to end what a cancellation would cut short.
    - Nothing a guard holds is used in another loop or process than its own.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from holdfast.core.clock import SystemClock
from holdfast.core.config import in_memory
from holdfast.core.errors import ConfigError, StoreError
from holdfast.core.loops import seen, spawn
from holdfast.idempotency import claiming, identity, keys, machine, policy, settling
from holdfast.idempotency import once as calls
from holdfast.idempotency.claims import Held, Ticket
from holdfast.idempotency.errors import StoreUnavailable
from holdfast.idempotency.events import Observer
from holdfast.idempotency.gate import INCURABLE, unavailable
from holdfast.idempotency.opened import Opened
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.sweep import Sweep, Sweeper
from holdfast.idempotency.values import Completed, Conflict, InFlight, Proceed, Replay
from holdfast.idempotency.waits import Waiters
from holdfast.store import open_database

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.idempotency.idem import Idem
    from holdfast.idempotency.lateness import Lateness
    from holdfast.idempotency.rules import IdempotencyConfig
    from holdfast.idempotency.unit import Unit
    from holdfast.idempotency.values import Decision, KeyRecord, Once, Outcome, Principal, UnknownReason
    from holdfast.store.database import Database, Tx

__all__ = ["Idempotency"]

T = TypeVar("T")

OPEN_MAX_S = 60.0
"""How long an explicit `start` may take: the first one on a large ledger may have to migrate it."""
PRINCIPALS_MAX = 4096
"""Principals whose names are remembered: they come back, and an id costs a hash per secret."""
RULES_MAX = 1024
"""Routes of mode `execution` that a sweep knows how to ask about."""


class Idempotency:
    """Guards keyed requests and calls; see the module.

    Attributes:
        config: Its settings.
        unit: Opens transactions of mode `transaction`.
        events: Whom it tells.
    """

    def __init__(
        self,
        database: Database | str | os.PathLike[str],
        config: IdempotencyConfig,
        *,
        unit: Unit | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Describe a guard; nothing is opened before its first use.

        Args:
            database: An open ledger, which its owner closes; or a path, a `postgresql://` URL, or `:memory:`.
            config: Settings.
            unit: For mode `transaction`: opens transactions on the application's database, which is the ledger's.
            clock: Replaces the machine's clock, where the guard opens the ledger itself.

        Raises:
            ConfigError: A ledger in memory without `allow_memory` (`config.memory_store`), or a rule of mode
                `transaction` without `unit` (`config.mode_conflict`).
        """
        self.config = config
        self.unit = unit
        self._given: Database | None = None
        self._target = ""
        if isinstance(database, str | os.PathLike):
            self._target = os.fspath(database)
            if in_memory(self._target) and not config.allow_memory:
                raise ConfigError(
                    "a ledger in memory forgets every key when the process ends",
                    "give a path or a URL, or allow_memory=True in a test",
                    code="config.memory_store",
                    keys=("allow_memory",),
                )
        else:
            self._given = database
        rules = [rule for rule in (config.rule, *config.routes) if rule is not None]
        if unit is None and any(rule.mode == "transaction" for rule in rules):
            raise ConfigError(
                "a rule has mode transaction, and there is no unit to open one",
                "give unit=, one of holdfast.integrations",
                code="config.mode_conflict",
                keys=("unit",),
            )
        self._clock: Clock = self._given.clock if self._given is not None else clock or SystemClock()
        self.events = Observer(self._clock, config.on_event)
        self._opened: Opened | None = None
        self._opening: asyncio.Task[Opened] | None = None
        self._sweeper: Sweeper | None = None
        self._waiters = Waiters()
        self._names: dict[tuple[str, str], identity.Names] = {}
        self._asking: dict[tuple[str, str], RouteRule] = {}
        self._ruled = rules

    # --- opening and closing ---

    @property
    def clock(self) -> Clock:
        """The ledger's time, once it is open."""
        return self._opened.clock if self._opened is not None else self._clock

    @property
    def database(self) -> Database:
        """The open ledger.

        Raises:
            StoreUnavailable: It is not open.
        """
        if self._opened is None:
            raise unavailable("the guard's ledger is not open", 0.0)
        return self._opened.database

    async def start(self) -> None:
        """Open the ledger now, instead of on first use.

        Raises:
            ConfigError: Secrets, unit or target cannot work; the code says which.
            StoreError: The ledger cannot be opened.
        """
        if not self._is_here():
            await self._open(OPEN_MAX_S)

    async def ready(self) -> None:
        """See to it that the guard is open here; a cheap look when it is.

        Raises:
            StoreUnavailable: The ledger cannot be opened just now.
            ConfigError, StoreError: It never can, so.
        """
        if not self._is_here():
            await self._open_for_a_request()

    async def stop(self, timeout: timedelta = timedelta(seconds=5)) -> None:  # noqa: ASYNC109 - for what is under way
        """Let what is held end and what waits be written, for at most `timeout`, then close. Idempotent.

        A guard that is used again afterwards opens again.
        """
        opened, sweeper = self._opened, self._sweeper
        if opened is None or not self._is_here():
            return
        if sweeper is not None:
            await sweeper.stop()
        await opened.close(timeout.total_seconds())
        if self._opened is opened:
            self._opened = self._sweeper = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        await self.stop()

    def _is_here(self) -> bool:
        opened = self._opened
        if opened is None:
            return False
        return opened.home.here

    async def _open(self, seconds: float) -> Opened:
        """Open the guard in this loop, or wait until somebody has."""
        before = self._opened
        if before is not None and not before.home.foreign and not before.home.loop.is_closed():
            before.home.check()  # raises: another loop is using it
        if before is not None and self._given is None:
            before.abandon()
        self._opened = self._sweeper = None
        loop = asyncio.get_running_loop()
        opening = self._opening
        if opening is None or opening.done() or opening.get_loop() is not loop:
            opening = self._opening = spawn(self._make(), "holdfast idempotency open")
            opening.add_done_callback(seen)  # who waits for it has its failure; nobody may be left by then
        if not await self._clock.wait(opening, seconds):
            raise unavailable("the ledger was not opened in time", 0.0)
        return opening.result()

    async def _open_for_a_request(self) -> Opened:
        try:
            return await self._open(self.config.store_timeout.total_seconds())
        except INCURABLE:
            raise
        except StoreError as error:
            raise unavailable(f"the ledger cannot be opened ({error.code})", 0.0) from error

    async def _make(self) -> Opened:
        database = self._given
        if database is None:
            database = await self._open_ledger()
        opened = Opened(database, self.config, self.events, owned=self._given is None)
        try:
            await opened.open()
            if self.unit is not None:
                await opened.check_unit(self.unit)
        except BaseException:
            await opened.close(0.0)
            raise
        self._opened = opened
        self._sweeper = Sweeper(opened, self._rule_of)
        self._sweeper.start()
        return opened

    async def _open_ledger(self) -> Database:
        # Two SQLite libraries in one process damage a file that both use: the unit's is used for both.
        library: Any = getattr(self.unit, "library", None) or "apsw"
        return await open_database(self._target, clock=self._clock, library=library)

    async def _here(self) -> Opened:
        """The open guard, for a request."""
        opened = self._opened
        if opened is None or not self._is_here():
            opened = await self._open_for_a_request()
        if opened.closing:
            raise unavailable("the guard is stopping", 0.0)
        return opened

    def _held_here(self) -> Opened:
        """The open guard, for a claim that it holds."""
        if self._opened is None:
            raise unavailable("the guard has stopped", 0.0)
        return self._opened

    # --- one request ---

    def ticket(  # noqa: PLR0913 - what a request is known by, by name
        self,
        *,
        principal: Principal,
        key: str,
        rule: RouteRule,
        method: str,
        route: str,
        fingerprint: bytes,
        first_sent_at: int | None = None,
    ) -> Ticket:
        """Make what a keyed request is known by. Needs no ledger.

        Args:
            principal: Who asks.
            key: As parsed.
            rule: What holds for the request.
            method: Its method.
            route: The rule's path, else the endpoint's, else `*`.
            fingerprint: What it must not differ in.
            first_sent_at: `Idempotency-First-Sent`, in microseconds, if it was sent.
        """
        names = self._names.get((principal.tenant, principal.subject)) or self._named(principal)
        ticket = Ticket(
            names=names,
            key_ids=names.key_ids(key, route=(method, route) if rule.key_scope == "route" else None),
            fingerprint=fingerprint,
            rule=rule,
            key=key,
            method=method,
            route=route,
            first_sent_at=first_sent_at,
        )
        if rule.attach is not None and len(self._asking) < RULES_MAX:
            self._asking[method, route] = rule
        if identity.weak_key(key):
            self.events.weak_key(ticket)
        return ticket

    def _named(self, principal: Principal) -> identity.Names:
        if len(self._names) >= PRINCIPALS_MAX:
            self._names.clear()
        found = self._names[principal.tenant, principal.subject] = identity.Names(self.config.secrets, principal)
        return found

    async def lookup(self, ticket: Ticket) -> Replay | InFlight | Conflict | None:
        """Decide from the record alone, writing nothing; None: there is none that answers.

        Raises:
            StoreUnavailable: The ledger cannot be read.
        """
        return await claiming.look(await self._here(), ticket)

    def claim(self, ticket: Ticket) -> Coroutine[Any, Any, Held | Replay | InFlight | Conflict]:
        """Decide about a request: it runs (`Held`), or is answered by the decision.

        A cancellation meanwhile takes the claim back before it is raised.

        Raises:
            StoreUnavailable: The ledger cannot be asked; the claim is taken back in the background.
        """
        opened = self._opened
        if opened is None or opened.closing or not opened.home.here:
            return self._open_and_claim(ticket)
        return claiming.claim(opened, ticket)

    async def _open_and_claim(self, ticket: Ticket) -> Held | Replay | InFlight | Conflict:
        return await claiming.claim(await self._here(), ticket)

    async def observe(self, ticket: Ticket) -> Held | None:
        """Claim for a request that runs in any case: what would have refused it gives None, and is counted."""
        try:
            found = await self.claim(ticket)
        except StoreUnavailable:
            return None
        return found if isinstance(found, Held) else None

    async def wait(
        self, ticket: Ticket, found: InFlight, *, gone: asyncio.Future[Any] | None = None
    ) -> Held | Replay | InFlight | Conflict:
        """Wait for a claim in flight to end, for the rule's `wait_max`, and decide anew.

        Args:
            ticket: Who waits.
            found: The decision so far; it comes back when nothing has changed, or too many wait already.
            gone: Done when the client has left: then waiting ends.

        Raises:
            StoreUnavailable: The ledger cannot be asked.
        """
        opened = await self._here()

        async def again(*, contested: bool) -> Held | Replay | InFlight | Conflict:
            return await claiming.decide(await self._here(), ticket, contested=contested)

        return await self._waiters.wait(opened, ticket, found, again, gone)

    def retry_after(self, found: InFlight | Conflict, ticket: Ticket) -> int:
        """Return the seconds after which a duplicate may come again: from 1 to the rule's lease."""
        now = self.clock.now()
        lease = ticket.rule.lease
        p90_us = self.events.p90_us(ticket.route)
        if isinstance(found, InFlight):
            until, since = found.until, found.since
        else:  # some claim of the principal's must end first
            until, since = now + (p90_us or 0), now
        jitter = random.random()  # noqa: S311 - spreads load, guards nothing
        return machine.retry_after(until=until, since=since, now=now, p90_us=p90_us, lease=lease, jitter=jitter)

    async def record(self, ticket: Ticket) -> KeyRecord | None:
        """Return the record as it stands, with its outcome.

        Raises:
            StoreUnavailable: The ledger cannot be read.
            RecordUnreadable: The record cannot be.
        """
        opened = self._held_here()

        async def look() -> KeyRecord | None:
            async with opened.database.read() as tx:
                return await keys.get(tx, ticket.key_id)

        found = await opened.gate.call(look)
        return None if found is None else await opened.unsealed(found)

    @property
    def lateness(self) -> Lateness | None:
        """Tells responses that have taken their time; None: the guard has stopped."""
        return None if self._opened is None else self._opened.lateness

    def holds(self, ticket: Ticket) -> bool:
        """Say whether this process holds the key."""
        return self._opened is not None and self._opened.claims.of(ticket.key_id) is not None

    # --- what becomes of a claim ---

    def settle(self, held: Held, outcome: Outcome, *, ttl: timedelta | None = None) -> Coroutine[Any, Any, bool]:
        """Write an outcome, durable on return; False: refused, because the claim is lost.

        When the ledger cannot take it now, it is tried again in the background, and True returned. A cancellation
        is raised after the write.

        Args:
            held: The claim.
            outcome: What is kept, with the headers that are kept.
            ttl: How long; None: as the rule says.
        """
        if self._opened is None:
            return self._too_late(held)
        return settling.settle(self._opened, held, outcome, ttl)

    async def release(self, held: Held) -> bool:
        """Let a claim go without outcome: a retry runs at once. After `mark_irreversible` the key is unknown instead.

        The same holds as for `settle`.
        """
        return await (self._too_late(held) if self._opened is None else settling.release(self._opened, held))

    async def mark_unknown(self, held: Held, reason: UnknownReason) -> bool:
        """Say that nobody can tell whether the handler took effect. The same holds as for `settle`."""
        if self._opened is None:
            return await self._too_late(held)
        return await settling.mark_unknown(self._opened, held, reason)

    async def mark_irreversible(self, held: Held) -> bool:
        """Note durably that the effect that comes now cannot be taken back; False: the claim is lost.

        Raises:
            StoreUnavailable: It could not be written.
        """
        return await settling.mark_irreversible(self._held_here(), held)

    async def set_result(
        self, held: Held, response: Completed, *, tx: Tx | None = None, ttl: timedelta | None = None
    ) -> bool:
        """Write what a handler declares as its outcome, or with `tx` leave it to the caller's commit; False: lost.

        Raises:
            StoreUnavailable: It could not be written.
        """
        return await settling.set_result(self._held_here(), held, response, tx=tx, ttl=ttl)

    def unprotected(self, ticket: Ticket) -> Held:
        """Return what stands in for a claim where a rule lets a request run without the ledger."""
        naming = self.config.secrets[0] if self._opened is None else self._opened.naming
        record_id = ticket.names.record_id(naming, ticket.key, ticket.fingerprint)
        held = Held(ticket, Proceed(0, 1, record_id))
        held.ended = held.won = True
        return held

    # --- mode `transaction`: the transaction is the caller's ---

    async def claim_in(self, tx: Tx, ticket: Ticket) -> Decision:
        """Claim a key in a transaction of the caller's; a replay's outcome is opened. Nothing is renewed."""
        opened = self._held_here()
        found = await opened.take_in(tx, ticket)
        return found if isinstance(found, Proceed) else await claiming.told(opened, found)

    async def settle_in(self, tx: Tx, held: Held, outcome: Outcome, *, ttl: timedelta | None = None) -> bool:
        """Write an outcome in a transaction of the caller's; it stands when that commits."""
        return await settling.settle_in(self._held_here(), tx, held, outcome, ttl)

    async def gated(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None = None) -> T:
        """Make a call of the database as every other is made: bounded in time, and not while the breaker is open.

        Raises:
            StoreUnavailable: It could not be made, failed, or took longer than `seconds` (None: `store_timeout`).
        """
        return await (await self._here()).gate.call(work, seconds)

    def holding(self, ticket: Ticket) -> Held | None:
        """Return this process's claim of a key, if it has one."""
        return self._opened.claims.of(ticket.key_id) if self._opened is not None else None

    def enter(self, held: Held) -> None:
        """Note that this process holds a key, without renewing its claim."""
        self._held_here().claims.enter(held, renewed=False)

    def leave(self, held: Held) -> None:
        """Undo `enter`, and tell those who wait for the key."""
        opened = self._opened
        if opened is not None:
            opened.claims.leave(held)
            if opened.hints and not opened.database_gone:
                opened.database.wake(keys.channel(held.key_id))

    # --- beside requests ---

    async def once(
        self,
        key: str,
        payload: bytes,
        op: Callable[[Idem], Awaitable[bytes]],
        *,
        principal: Principal | str,
        name: str,
        rule: RouteRule | None = None,
    ) -> Once:
        """Run an async function once per key, on the same records as requests.

        Args:
            key: 1 to 255 printable ASCII characters, of the configured format.
            payload: What the call is about; the same key with another payload is refused.
            op: Runs with the object that speaks for the call; returns what is kept.
            principal: On whose behalf.
            name: What it does; it is the route of rules, events and commands.
            rule: What holds for it; default: the configuration's rule.

        Raises:
            KeyReused: The key stands for another call.
            KeyInFlight: A call with this key is running.
            OutcomeUnknown: An earlier call may have taken effect.
            AlreadyExecuted: It was made, and what it returned is not kept.
            QuotaExceeded: The principal has too much under way or stored.
            KeyInvalid: It is no key.
            HandlerTimeout: It took longer than the rule's `handler_timeout`.
            RecordUnreadable: The record is damaged, or written by a newer Holdfast.
            StoreUnavailable: The ledger cannot be reached; nothing has run.
        """
        return await calls.once(self, key, payload, op, principal=principal, name=name, rule=rule)

    async def sweep(self) -> Sweep:
        """Tidy the ledger now: mark what has lapsed, reconcile what is unknown, delete what has expired.

        Raises:
            StoreUnavailable: The ledger cannot be reached; what was done stays done.
        """
        await self._here()
        assert self._sweeper is not None
        return await self._sweeper.sweep()

    def policy(self) -> dict[str, object]:
        """Return what a client should know, ready for JSON."""
        return policy.of(self.config)

    # --- within ---

    async def _too_late(self, held: Held) -> bool:
        """Say of a claim that outlived its guard what is said of one that cannot be written: its lease ends it."""
        if not held.ended:
            held.ended = held.won = True
            self.events.notice("completion_lost", held.ticket, attempt=held.attempt)
        return held.won

    def _rule_of(self, method: str, route: str) -> RouteRule | None:
        """The rule by which a sweep asks about a record, if this process has seen one."""
        known = self._asking.get((method, route))
        if known is not None:
            return known
        listed = (rule for rule in self._ruled if rule.path in (None, route))
        return next((rule for rule in listed if rule.methods is None or method in rule.methods), None)
