"""Take hook calls of harnesses: keep them, ask the clients that are bound, answer, and record what happened.

    append → decide which moment it is → one event after the other → the answer, and the end of the delivery

A call about which nobody is to be asked is only kept; whoever reads receipts derives them later, and so it is with a
call that did not come to its end. What is derived later follows from what was kept: a client that was to be asked is
not asked any more, unless it wants to be.

Invariants:
    - A delivery is on disk before anything is made of it.
    - Derivation is repeatable: receipts that are there stay, and the last of them and the end of the delivery are one
      transaction.
    - `receive` answers, whatever fails: the neutral answer, or the one that blocks where that was configured.
    - No text of a body, a payload or a prompt is in a message or a log line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self, TypeVar

import msgspec
from blake3 import blake3

from holdfast.core import points, trace
from holdfast.core.errors import Busy, HoldfastError
from holdfast.core.errors import Conflict as Collision
from holdfast.core.loops import seen, spawn
from holdfast.lifecycle import deliveries, ledger, metrics, spooled
from holdfast.lifecycle.continuations import prune_continuations
from holdfast.lifecycle.deliveries import Delivery, Duplicate, Moment
from holdfast.lifecycle.dispatch import Command
from holdfast.lifecycle.documents import LifecycleReceipt, OpenObject
from holdfast.lifecycle.errors import (
    EventInFlight,
    HookError,
    HookProtocol,
    LifecycleError,
    TransportTimeout,
)
from holdfast.lifecycle.harness import (
    BODY_BYTES_MAX,
    Adapter,
    EventDraft,
    Hook,
    HookEvent,
    HookReply,
    shorten,
)
from holdfast.lifecycle.harness.answers import Answer
from holdfast.lifecycle.harness.known import HARNESSES, canonical_harness, deadline_us
from holdfast.lifecycle.harness.requests import context_for
from holdfast.lifecycle.ledger import Entry, InFlight
from holdfast.lifecycle.manifest import Registry
from holdfast.lifecycle.metrics import METRICS
from holdfast.lifecycle.moments import Late, Scribe
from holdfast.lifecycle.router import Router

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.lifecycle.config import Client, LifecycleConfig
    from holdfast.store.database import Database, Row, Tx

__all__ = ["Hooks", "derive", "run_hook"]

log = logging.getLogger("holdfast.lifecycle")

points.register("hooks.appended", "hooks.deriving", "hooks.derived", "hooks.replied")

T = TypeVar("T")

RESERVE_S: Final = 0.2
"""What is kept of a hook's time to write the end of its delivery and to print the answer."""

KILL_S: Final = 0.6
"""What is kept of it to end a client's program that does not end by itself."""

LATE_SLACK_US: Final = 10_000_000
"""How much longer than its clients' time a delivery is held that is derived late."""

SHARED_MAX: Final = 32
"""Deliveries that are derived in one transaction."""

PENDING_MAX: Final = 100
"""Deliveries that one hook call looks at before its own."""


class _Derived(msgspec.Struct, frozen=True):
    """How far a delivery was derived: whether it has ended; if not, what is left for whom."""

    ended: bool
    moment: Moment | None = None
    late: Sequence[Late] = ()


class Hooks:
    """Takes hook calls into one ledger. Belongs to the event loop of its database."""

    def __init__(
        self,
        database: Database,
        *,
        config: LifecycleConfig,
        clock: Clock,
        registry: Registry | None = None,
        harnesses: Mapping[str, Adapter] = HARNESSES,
        spools: Sequence[str] = (),
    ) -> None:
        """Make one.

        Args:
            database: The open ledger; its owner closes it.
            config: Who is asked, and how.
            clock: The time that deliveries came by: this machine's.
            registry: The manifests of the harnesses; None: those that come with the package.
            harnesses: Who can read whose hooks, by canonical id.
            spools: Files with calls that the ledger could not take.

        Raises:
            ConfigError: The chain key cannot be used.
        """
        self._database = database
        self._config = config
        self._clock = clock
        self._registry = Registry.builtin() if registry is None else registry
        self._harnesses = harnesses
        self._spools = tuple(spools)
        self._scribe = Scribe(config, self._registry)
        self._chain_key = config.chain_key()
        self._keeps = config.raw == "full"
        self._router = Router(
            database,
            registry=self._registry,
            clock=database.clock,
            mode=config.hook_mode,
            ambiguous=config.ambiguous,
            chain_key=self._chain_key,
            policy=config.policy,
        )

    @property
    def router(self) -> Router:
        """Dispatches the events of hooks; whoever subscribes to it hears of all receipts."""
        return self._router

    async def stop(self) -> None:
        """Let what is being recorded be written. Harmless when it was done before."""
        await self._router.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- one call -----------------------------------------------------------------------------------------

    async def receive(self, delivery: Delivery, *, appended: bool = False) -> HookReply:
        """Take a hook call, and return what its process prints and exits with.

        Args:
            delivery: The call.
            appended: Whether the ledger, or a spool file, has it already.
        """
        adapter = self._harnesses.get(self._registry.canonical(delivery.harness))
        if adapter is None:
            return HookReply(stderr=f"there is no harness {delivery.harness}", exit_code=1)
        event = deliveries.glance(adapter, delivery)
        hook = delivery.event_hint if event is None else event.hook
        ends = (delivery.received_at + deadline_us(adapter, hook) - self._clock.now()) / 1e6 - RESERVE_S
        began = self._clock.monotonic()
        harness = canonical_harness(delivery.harness)
        known = hook if hook in adapter.HOOKS else "other"
        with trace.span("holdfast.lifecycle.hook", harness=harness, hook=known, delivery_id=delivery.id) as span:
            work = self._received(delivery, adapter, event, began + ends, appended=appended)
            task = spawn(work, "holdfast hook")
            try:
                if await self._clock.wait(task, max(ends, 0.0)):
                    result, reply = task.result()
                else:
                    task.cancel()
                    await self._clock.wait(task, RESERVE_S / 2)
                    result, reply = "late", self._failure(adapter, hook, "the hook was not done in time")
            except Exception as error:  # noqa: BLE001 - a hook is never in the way
                refused = isinstance(error, (HookError, HookProtocol))
                result, reply = "refused" if refused else "failed", self._failure(adapter, hook, _said(error))
            finally:
                task.cancel()
                task.add_done_callback(seen)
            span.set(result=result, exit_code=reply.exit_code)
        METRICS.hooks.add(1, result)
        METRICS.hook_seconds.observe(self._clock.monotonic() - began)
        return reply

    def _failure(self, adapter: Adapter, hook: str, why: str) -> HookReply:
        if self._config.on_error == "closed" and "block" in adapter.HOOKS.get(hook, Hook()).means:
            return HookReply(stderr=why, exit_code=2)
        return HookReply(adapter.NEUTRAL, why)

    async def _received(
        self, delivery: Delivery, adapter: Adapter, event: HookEvent | None, due: float, *, appended: bool
    ) -> tuple[str, HookReply]:
        if not appended:
            async with self._database.write() as tx:
                await deliveries.append(tx, delivery)
        if points.armed:
            points.reach("hooks.appended")
        if event is not None:
            if not self._is_asked(event):
                return "observed", await self._observed(delivery, adapter)
            await spooled.move(self._database, self._spools)
            session = (event.harness, event.session_id)
            await self._derive(call_clients=True, limit=PENDING_MAX, session=session, own=delivery.id, due=due)
        found = await self._decided(delivery, adapter)
        if points.armed:
            points.reach("hooks.deriving")
        if found is None:  # somebody has derived it: its time was over
            return "late", HookReply(adapter.NEUTRAL)
        if isinstance(found, Duplicate):
            return "duplicate", await self._answered(found, adapter, due)
        reply = await self._dispatched(found, adapter, due)
        if points.armed:
            points.reach("hooks.derived")
        return "asked", reply

    def _is_asked(self, event: HookEvent) -> bool:
        return any(self._config.bound(event.harness, draft.event) for draft in event.drafts)

    async def _observed(self, delivery: Delivery, adapter: Adapter) -> HookReply:
        """Leave a delivery to whoever reads receipts."""
        if delivery.lease_until:
            async with self._database.write() as tx:
                await deliveries.append(tx, delivery)  # it may be in the spool file only
                await deliveries.lease(tx, delivery.id, 0)
        return HookReply(adapter.NEUTRAL)

    async def _decided(self, delivery: Delivery, adapter: Adapter) -> Moment | Duplicate | None:
        """Decide about the call's own delivery; None: it has ended already.

        Raises:
            HookError: It cannot be read; HookProtocol: it names no session. It is refused then.
        """
        async with self._database.write() as tx:
            await deliveries.append(tx, delivery)
            row = await deliveries.hold(tx, delivery.id)
            found = None if row is None else await self._decided_in(tx, row, adapter)
        if isinstance(found, LifecycleError):
            raise found
        return found

    async def _decided_in(self, tx: Tx, row: Row, adapter: Adapter) -> Moment | Duplicate | LifecycleError:
        """Decide about a delivery that is held, and end it if nothing comes of it; return why it is refused."""
        delivery = deliveries.delivery_of(row)
        now = self._clock.now()
        try:
            found = await deliveries.decide(tx, row, adapter, window_us=self._config.dedupe_window_ms * 1000)
        except (HookError, HookProtocol) as error:
            why = f"{error.code}: {error.message}"
            await deliveries.settle(tx, delivery, "refused", now=now, keep=self._keeps, error=why)
            return error
        if isinstance(found, Duplicate):
            await deliveries.settle(tx, delivery, "done", now=now, keep=self._keeps)
        return found

    async def _answered(self, duplicate: Duplicate, adapter: Adapter, due: float) -> HookReply:
        """Give the answer that the first delivery of the same moment gets, if it gets one soon."""
        neutral = HookReply(adapter.NEUTRAL)
        until = min(due, self._clock.monotonic() + self._config.inflight_wait_ms / 1000)
        while True:
            async with self._database.read() as tx:
                reply = await deliveries.reply_of(tx, duplicate, neutral)
            left = until - self._clock.monotonic()
            if reply is not None or left <= 0:
                return neutral if reply is None else reply
            await self._database.wait(deliveries.CHANNEL, min(left, 0.06))

    # --- asking clients -----------------------------------------------------------------------------------

    async def _dispatched(self, moment: Moment, adapter: Adapter, due: float) -> HookReply:
        event, at = moment.event, moment.delivery.received_at
        answer = Answer(event, self._scribe.manifest(event), now_epoch_s=at // 1_000_000, policy=self._config.policy)
        failures: list[str] = []
        told: list[str] = []
        entries: list[Entry] = []
        for draft in event.drafts:
            if answer.keeps(draft.event):
                continue
            told.append(draft.event)
            for client in self._config.bound(event.harness, draft.event):
                if entries:
                    await self._record(entries)
                    entries = []
                why, degraded = await self._asked(moment, draft, client, answer, due)
                failures += [] if why is None else [f"client {client.id}: {why}"]
                entries += [self._scribe.degraded(moment, each) for each in degraded]
            entries += self._scribe.unbound(moment, draft)
        reply = msgspec.structs.replace(adapter.encode(event, answer.directive), stderr="; ".join(failures))
        if failures:
            failed = self._failure(adapter, event.hook, reply.stderr)
            reply = failed if failed.exit_code else reply
        await self._settled(moment, told, entries, reply)
        return reply

    async def _asked(
        self, moment: Moment, draft: EventDraft, client: Client, answer: Answer, due: float
    ) -> tuple[str | None, Sequence[OpenObject]]:
        """Ask a client about an event; return why that failed, and which capabilities are less than it wants."""
        left = due - self._clock.monotonic()
        seconds = min(left - min(KILL_S, left / 3), client.timeout_ms / 1000)
        if seconds <= 0:
            raise TransportTimeout("no time is left to ask")
        request = self._scribe.request(moment, draft)
        try:
            found = await self._router.dispatch(
                request,
                client=Command(
                    client.command, timedelta(milliseconds=client.timeout_ms), client.env_pass, _folder(moment.delivery)
                ),
                context=context_for(request, client.id, moment.delivery.received_at),
                requirements=client.requirements(),
                deadline=timedelta(seconds=seconds),
                origin="hook",
                note=lambda notes, response: msgspec.structs.replace(
                    answer.annotated(notes, response), delivery=moment.delivery.id
                ),
            )
        except EventInFlight:  # who is asking records it, or whoever derives this delivery
            raise
        except LifecycleError as error:
            log.warning("an event of hook %s was not recorded: %s", moment.event.hook, error.code)
            return error.message, ()
        answer.take(answer.hear(found.response))
        why = None
        if found.receipt.status == "failed":
            why = f"it failed ({found.receipt.failure_class})"  # its own words may be anything
        return why, found.receipt.capability_degradations

    async def _settled(
        self, moment: Moment, told: Sequence[str], entries: Sequence[Entry], reply: HookReply | None
    ) -> None:
        """Record what is left to be recorded, and end the delivery."""

        async def work(tx: Tx, new: list[LifecycleReceipt]) -> None:
            now = self._clock.now()
            await deliveries.settle(tx, moment.delivery, "done", now=now, keep=self._keeps, reply=reply)
            await deliveries.finish(tx, moment, told)
            await self._record_in(tx, entries, new)

        await self._write(work)

    # --- deriving -----------------------------------------------------------------------------------------

    async def derive(self, *, call_clients: bool, limit: int = 100) -> int:
        """Derive receipts of deliveries that nobody sees to, oldest first; return how many deliveries were ended.

        Args:
            call_clients: Whether clients that want to be asked even late are asked; else their deliveries wait.
            limit: How many deliveries at most.

        Raises:
            StoreError: The ledger could not be used.
        """
        await spooled.move(self._database, self._spools)
        return await self._derive(call_clients=call_clients, limit=limit)

    async def _derive(
        self,
        *,
        call_clients: bool,
        limit: int,
        session: tuple[str, str] | None = None,
        own: str = "",
        due: float | None = None,
    ) -> int:
        count = 0
        after = (-1, "")
        looked = 0
        while count < limit and (session is None or looked < PENDING_MAX):
            async with self._database.read() as tx:
                rows = await deliveries.pending(tx, now=self._clock.now(), after=after, limit=limit)
            found = [(row, self._harnesses.get(self._registry.canonical(row.harness))) for row in rows]
            ours = [
                (row.id, adapter)
                for row, adapter in found
                if adapter is not None
                and row.id != own
                and (session is None or deliveries.is_of(adapter, row, session))
            ]
            for first in range(0, len(ours), SHARED_MAX):
                some = ours[first : first + SHARED_MAX]
                count += await self._derived_some(some, call_clients=call_clients, due=due)
            looked += len(rows)
            if len(rows) < limit:
                break
            after = (rows[-1].received_at, rows[-1].id)
        if count and session is None:
            await self._expire()
        return count

    async def _derived_some(self, some: Sequence[tuple[str, Adapter]], *, call_clients: bool, due: float | None) -> int:
        """Derive deliveries in one transaction, or each in its own, where one of them makes trouble."""
        if len(some) > 1 and not (call_clients and any(client.late for client in self._config.clients)):

            async def work(tx: Tx, new: list[LifecycleReceipt]) -> int:
                return sum([(await self._derived_in(tx, *each, call_clients=False, new=new)).ended for each in some])

            try:
                return await self._write(work)
            except (LifecycleError, Busy, Collision):
                pass
        return sum([await self._derived_one(*each, call_clients=call_clients, due=due) for each in some])

    async def _derived_one(
        self, name: str, adapter: Adapter, *, call_clients: bool, due: float | None, again: bool = False
    ) -> bool:
        """Derive a delivery as far as that can be; say whether it has ended."""
        try:
            found = await self._write(
                lambda tx, new: self._derived_in(tx, name, adapter, call_clients=call_clients, new=new)
            )
            if found.moment is not None:
                await self._ask_late(found.moment, found.late, due)
        except EventInFlight:
            if again:
                return False  # who is asking ends it
            await self._router.start()  # whoever was asking may be dead
            return await self._derived_one(name, adapter, call_clients=call_clients, due=due, again=True)
        except LifecycleError as error:
            log.warning("a delivery could not be derived: %s", error.code)
            return False
        if points.armed:
            points.reach("hooks.derived")
        return found.ended or found.moment is not None

    async def _derived_in(
        self, tx: Tx, name: str, adapter: Adapter, *, call_clients: bool, new: list[LifecycleReceipt]
    ) -> _Derived:
        """Record what can be recorded of a delivery without asking anybody, and end it if that was all.

        Raises:
            EventInFlight: A client is being asked about it.
            LifecycleError: Something of it cannot be recorded.
        """
        now = self._clock.now()
        row = await deliveries.hold(tx, name, now=now)
        if row is None:
            return _Derived(ended=False)
        found = await self._decided_in(tx, row, adapter)
        if isinstance(found, LifecycleError):
            log.warning("a hook call of %s is refused: %s", row.harness, found.message)
        if not isinstance(found, Moment):
            return _Derived(ended=True)
        entries, late = self._scribe.told(found)
        if not late:
            await deliveries.settle(tx, found.delivery, "done", now=now, keep=self._keeps)
            await deliveries.finish(tx, found, [draft.event for draft in found.event.drafts])
        elif call_clients:
            wait_us = sum(each.client.timeout_ms for each in late) * 1000 + LATE_SLACK_US
            await deliveries.lease(tx, name, now + wait_us)
        await self._record_in(tx, entries, new)
        return _Derived(ended=not late, moment=found if late and call_clients else None, late=late)

    async def _ask_late(self, moment: Moment, late: Sequence[Late], due: float | None) -> None:
        answer = Answer(
            msgspec.structs.replace(moment.event, means=()),  # nobody reads it any more
            self._scribe.manifest(moment.event),
            now_epoch_s=moment.delivery.received_at // 1_000_000,
            policy=self._config.policy,
        )
        entries: list[Entry] = []
        for draft, client in late:
            ends = self._clock.monotonic() + client.timeout_ms / 1000 + KILL_S
            _, degraded = await self._asked(moment, draft, client, answer, min(ends, due or ends))
            entries += [self._scribe.degraded(moment, each) for each in degraded]
        await self._settled(moment, [draft.event for draft in moment.event.drafts], entries, None)

    # --- recording ----------------------------------------------------------------------------------------

    async def _record(self, entries: Sequence[Entry]) -> None:
        await self._write(lambda tx, new: self._record_in(tx, entries, new))

    async def _record_in(self, tx: Tx, entries: Sequence[Entry], new: list[LifecycleReceipt]) -> None:
        """Record entries. What is there already stays, whatever it says.

        Raises:
            EventInFlight: A client is being asked about one of them.
            LifecycleError: One cannot be recorded.
        """
        if not entries:
            return
        now = self._database.clock.now()
        found = await ledger.record(tx, entries, now=now, chain_key=self._chain_key, told=new)
        for each in found:
            if isinstance(each, InFlight):
                raise EventInFlight(each.until)
            if isinstance(each, LifecycleError):
                raise each

    async def _write(self, work: Callable[[Tx, list[LifecycleReceipt]], Awaitable[T]]) -> T:
        """Run something in a transaction; once more where another process recorded the same at the same moment."""
        for last in (False, True):
            new: list[LifecycleReceipt] = []
            try:
                async with self._database.write() as tx:
                    found = await work(tx, new)
            except Collision:
                if last:
                    raise
            else:
                metrics.recorded(new)
                for receipt in new:
                    self._router.tell(receipt)
                return found
        raise AssertionError  # pragma: no cover - the second round has returned or raised

    # --- what is over its time ----------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Close what dead processes have left, and let go of what is over its time.

        Raises:
            StoreError: The ledger could not be used.
        """
        if self._config.ambiguous == "close":  # else the next to dispatch the event has its client called again
            await self._router.recover()
        await self._expire()

    async def _expire(self) -> None:
        now = self._database.clock.now()
        keep_us = self._config.raw_keep_ms * 1000 if self._keeps else 0
        async with self._database.write() as tx:
            await deliveries.blank(tx, before=now - keep_us)
            await prune_continuations(tx, now=now)


def _folder(delivery: Delivery) -> str | None:
    """Where a client's program starts: where the hook was called, if that is still there."""
    return delivery.cwd if delivery.cwd is not None and os.path.isdir(delivery.cwd) else None


def _said(error: Exception) -> str:
    """Say what went wrong on one line; an unknown error's own words might quote anything."""
    said = error.message if isinstance(error, HoldfastError) else f"internal error ({type(error).__qualname__})"
    return " ".join(said.split())


# --- in one call --------------------------------------------------------------------------------------


async def run_hook(
    harness: str,
    raw: bytes,
    *,
    event_hint: str | None,
    config: LifecycleConfig,
    database: Database,
    clock: Clock,
) -> HookReply:
    """Take one hook call of a harness; return what its process prints and exits with.

    Args:
        harness: Who called, by id or alias.
        raw: What it wrote.
        event_hint: The hook, where the input may not name it.
        config: Who is asked, and how.
        database: The ledger.
        clock: This machine's time.

    Raises:
        ConfigError: The chain key cannot be used.
    """
    now = clock.now()
    adapter = HARNESSES.get(canonical_harness(harness))
    lease = 0 if adapter is None else now + deadline_us(adapter, event_hint or "")
    digest = blake3(raw).digest() if len(raw) > BODY_BYTES_MAX else None
    body = raw if digest is None else shorten(raw[:BODY_BYTES_MAX], len(raw), digest)
    name = f"dlv_{os.urandom(16).hex()}"
    delivery = Delivery(name, harness, event_hint or "", body, len(raw), digest, now, None, lease)
    async with Hooks(database, config=config, clock=clock) as hooks:
        return await hooks.receive(delivery)


async def derive(database: Database, *, config: LifecycleConfig, call_clients: bool, limit: int = 100) -> int:
    """Derive receipts of deliveries that nobody sees to; return how many deliveries were ended. See `Hooks.derive`.

    Raises:
        ConfigError: The chain key cannot be used.
        StoreError: The ledger could not be used.
    """
    async with Hooks(database, config=config, clock=database.clock) as hooks:
        return await hooks.derive(call_clients=call_clients, limit=limit)
