"""Take an event to its client and its receipt into the ledger, once.

    route → negotiate → claim → call the client → settle

The claim is committed before the client is called, and the receipt is written under the claim's fence. An event
that has its receipt is answered with it. One that somebody else is calling about is waited for, within the deadline;
that somebody is taken for dead at once where the kernel says so, elsewhere when the lease is over. What became of a
call whose caller died is not known: it is closed with a receipt that says so, unless `ambiguous` is `rerun`.

Invariants:
    - A client is called only after its claim was committed, and never about an event that has a receipt.
    - Whoever subscribes hears of a receipt after the commit that holds it, and cannot harm who recorded it.
    - `receipt.emitted` is told to subscribers, and never dispatched, recorded or numbered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from holdfast.core import points, trace
from holdfast.core.clock import micros
from holdfast.core.errors import Busy, ConfigError, StoreError, Unavailable
from holdfast.core.loops import seen, spawn
from holdfast.lifecycle import labels, ledger, wire
from holdfast.lifecycle.annotations import Annotations
from holdfast.lifecycle.dispatch import Callback, Command, ask, failed_response
from holdfast.lifecycle.documents import (
    CallbackRequest,
    CallbackResponse,
    CapabilityRequirement,
    DispatchEnvelope,
    LifecycleReceipt,
    NegotiatedPlan,
    PayloadEnvelope,
    ReceiptContext,
)
from holdfast.lifecycle.enums import Ambiguous, ReplayMode
from holdfast.lifecycle.errors import EventInFlight, LifecycleError, ReceiptEmittedNotEmittable
from holdfast.lifecycle.flight import Event, Note, Unasked
from holdfast.lifecycle.ledger import (
    Claim,
    Claimed,
    Conflict,
    Draft,
    InFlight,
    Inserted,
    Lease,
    Lost,
    Origin,
    Proceed,
    Replay,
    Replayed,
    Settled,
    Stored,
)
from holdfast.lifecycle.metrics import METRICS
from holdfast.lifecycle.negotiation import DEFAULT_POLICY, PayloadPolicy, negotiate, request_of, route
from holdfast.lifecycle.rules import NOTIFICATION
from holdfast.lifecycle.sequencer import Sequencer
from holdfast.store.owners import Alive, Dead, Lock, probe

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.lifecycle.manifest import Registry
    from holdfast.store.database import Database, Row

__all__ = ["Callback", "Dispatched", "Listener", "Router"]

log = logging.getLogger("holdfast.lifecycle")

points.register("lifecycle.claimed", "lifecycle.dispatching", "lifecycle.answered")

Listener = Callable[[LifecycleReceipt], None]
"""Is told of a receipt."""

LEASE_SLACK: Final = timedelta(seconds=10)
"""How much longer than its client's time a claim holds: to stop a program, and to settle on a slow database."""

POLL_S: Final = 0.06
"""The longest a waiter sleeps: what another process has settled is seen well within 0.1 s."""

CONTEST_EVERY: Final = 8
"""Of so many looks one also asks whether the caller is alive."""

SETTLE_S: Final = 5.0
"""How long an answer is tried to be written while the database is busy or away."""

SETTLE_PAUSE_S: Final = 0.1
"""How long between two of these tries."""

RELEASE_S: Final = 1.0
"""How long a dispatch that is cancelled tries to give back its claim."""

RECOVERED_MAX: Final = 100
"""Intents that are closed in one transaction."""


class Dispatched(msgspec.Struct, frozen=True):
    """What became of an event.

    Attributes:
        receipt: Its receipt.
        outcome: Whether the receipt is new, or was there.
        response: What the client answered, or the failure to get an answer; None: nobody was asked, or it said nothing.
        annotations: What the ledger knows beyond the receipt; None for one that came without.
        error: Why the client gave no answer, if it was called now and gave none.
    """

    receipt: LifecycleReceipt
    outcome: Inserted | Replayed
    response: CallbackResponse | None
    annotations: Annotations | None
    error: Exception | None = None


class Router:
    """Dispatches events to clients and keeps their receipts. Belongs to the event loop of its database."""

    def __init__(  # noqa: PLR0913 - dependencies and settings, by name
        self,
        database: Database,
        *,
        registry: Registry,
        clock: Clock,
        mode: ReplayMode = "strict",
        ambiguous: Ambiguous = "close",
        chain_key: bytes | None = None,
        policy: PayloadPolicy = DEFAULT_POLICY,
    ) -> None:
        """Make one; the first use becomes an owner of the ledger, and closes what dead ones have left.

        Args:
            database: The open ledger; its owner closes it.
            registry: The adapters there are.
            clock: The ledger's time.
            mode: Whether a duplicate must have the same receipt id and second.
            ambiguous: What becomes of a call whose caller died: `close` it, or `rerun` it when the event is
                dispatched again; until then it is left open.
            chain_key: What the chains' hashes are keyed with: 32 bytes.
            policy: How odd payloads are taken.

        Raises:
            ConfigError: The key has another length.
        """
        if chain_key is not None and len(chain_key) != 32:
            raise ConfigError(f"the chain key has {len(chain_key)} bytes", "it must have 32", keys=("chain_key_file",))
        self._database = database
        self._registry = registry
        self._clock = clock
        self._mode: ReplayMode = mode
        self._ambiguous: Ambiguous = ambiguous
        self._policy = policy
        self._sequencer = Sequencer(database, chain_key=chain_key)
        self._owner = ""
        self._starting = asyncio.Lock()
        self._listeners: list[Listener] = []
        self._closed: deque[Stored] = deque(maxlen=RECOVERED_MAX)

    # --- opening and closing ---

    async def start(self) -> None:
        """Become an owner and see to what the dead have left, now instead of on first use. Harmless when done before.

        Raises:
            StoreError: The ledger cannot be used.
        """
        if self._owner:
            return
        async with self._starting:
            if not self._owner:
                trace.configure()
                owner = await self._database.owner.ensure()
                if self._ambiguous == "close":
                    await self.recover()
                else:  # whoever dispatches the event again calls the client again
                    await self._end_the_dead()
                self._owner = owner

    async def stop(self) -> None:
        """Let what is being recorded be written, and take no more. Harmless when it was done before."""
        await self._sequencer.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a callable called with every receipt that this router records; return what takes it back.

        It is called in the event loop and should be quick; what it raises is logged.
        """
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # --- one event ---

    async def dispatch(  # noqa: PLR0913 - an event, its client, and the terms, by name
        self,
        request: CallbackRequest,
        *,
        client: Callback | Command | None,
        context: ReceiptContext,
        payloads: Sequence[PayloadEnvelope] = (),
        requirements: Sequence[CapabilityRequirement] = (),
        deadline: timedelta = timedelta(seconds=30),
        mode: ReplayMode | None = None,
        origin: Origin = "emit",
        note: Note | None = None,
    ) -> Dispatched:
        """Call a client about an event, and record what became of it; or return what was recorded before.

        A cancellation stops the client; whether it had acted then is not known, and the next to claim the event
        records just that.

        Args:
            request: The event.
            client: Whom to call; None: nobody is bound, and the receipt says `observed`.
            context: Ids and clock of the receipt.
            payloads: What goes to the client, where it has a place.
            requirements: What the client needs the adapter to be able to do.
            deadline: How long the client has; and how long somebody else's call about this event is waited for.
            mode: Whether a duplicate must have the same receipt id and second; None: as the router was told.
            origin: What the ledger says the receipt comes from.
            note: Is given the annotations and the answer before they are stored, and returns the annotations.

        Raises:
            RouteError: The request has no adapter.
            ValidationError: Request, payloads or context break a rule.
            ReceiptConflict: The event was recorded otherwise.
            ReceiptEmittedNotEmittable: The event is the one that tells of receipts.
            EventInFlight: Somebody else was still calling the client at the deadline.
            StoreError: The ledger could not be used; a claim that was made stays until its lease is over.
        """
        due = self._clock.monotonic() + deadline.total_seconds()
        negotiated = self._negotiated(request, payloads, requirements)
        wire.validate(context)
        await self.start()
        event = Event(negotiated, client, context, tuple(payloads), mode or self._mode, due, origin, note)
        with trace.span(
            "holdfast.lifecycle.dispatch",
            event=request.event, adapter_id=negotiated.plan.adapter.adapter_id, client_id=context.client_id,
        ) as span:  # fmt: skip
            try:
                found = await (self._asked(event) if event.is_asked else self._unasked(event))
            except (LifecycleError, StoreError) as error:
                METRICS.events.add(1, error.code.partition(".")[2])
                raise
            outcome = "inserted" if isinstance(found.outcome, Inserted) else "replayed"
            METRICS.events.add(1, outcome)
            span.set(outcome=outcome, status=found.receipt.status, receipt_id=found.receipt.receipt_id)
        return found

    async def emit(
        self,
        request: CallbackRequest,
        response: CallbackResponse | None,
        context: ReceiptContext,
        *,
        mode: ReplayMode | None = None,
        payloads: Sequence[PayloadEnvelope] = (),
    ) -> LifecycleReceipt:
        """Record an event that a client was told of elsewhere; return its receipt, which may have been there.

        Args:
            request: The event.
            response: What the client answered; None: nobody was asked.
            context: Ids and clock of the receipt.
            mode: Whether a duplicate must be equal in every field; None: as the router was told.
            payloads: What went to the client.

        Raises:
            RouteError: The request has no adapter.
            ReceiptError: The event was recorded otherwise, or its receipt breaks a rule.
            ValidationError: Response or payloads break a rule.
            StoreError: The ledger could not be used.
        """
        negotiated = self._negotiated(request, payloads, ())
        if response is not None:
            wire.validate(response)
            labels.agree(request.schema_version, response.schema_version)
        await self.start()
        found = await self._sequencer.emit(Draft(negotiated, response, context), mode=mode or self._mode)
        if isinstance(found, Conflict):
            raise found.error()
        if isinstance(found, Inserted):
            self.tell(found.receipt)
        return found.receipt

    async def recover(self) -> list[LifecycleReceipt]:
        """Close what dead callers have left; return the receipts that say so.

        Raises:
            StoreError: The ledger could not be used.
        """
        await self._end_the_dead()
        found: list[LifecycleReceipt] = []
        while True:
            some = await self._sequencer.recover(limit=RECOVERED_MAX)
            for receipt in some:
                self.tell(receipt)
            found += some
            if len(some) < RECOVERED_MAX:
                return found

    def _negotiated(
        self,
        request: CallbackRequest,
        payloads: Sequence[PayloadEnvelope],
        requirements: Sequence[CapabilityRequirement],
    ) -> NegotiatedPlan:
        plan = route(request, self._registry)
        if plan.event == NOTIFICATION:
            raise ReceiptEmittedNotEmittable
        for payload in payloads:
            labels.agree(request.schema_version, payload.schema_version)
        wire.validate(
            DispatchEnvelope(schema_version=request.schema_version, request=request, payloads=tuple(payloads))
        )
        now = self._clock.now() // 1_000_000
        return negotiate(plan, requirements, payloads, now_epoch_s=now, policy=self._policy)

    # --- claiming ---

    def _claim(self, event: Event) -> Claim:
        held = max(event.due - self._clock.monotonic(), 0.0)
        until = self._clock.now() + int(held * 1e6) + micros(LEASE_SLACK)
        return Claim(
            event.negotiated,
            event.context,
            Lease(self._owner, until),
            payloads=event.payloads,
            mode=event.mode,
            ambiguous=self._ambiguous,
        )

    async def _unasked(self, event: Event) -> Dispatched:
        draft = event.draft(None, self._policy, dispatched=False)
        waited = 0
        while True:
            found: Claimed | Settled = await self._sequencer.record(Unasked(self._claim(event), draft))
            if isinstance(found, Inserted):
                return self._inserted(found, None)
            if not isinstance(found, InFlight):
                assert not isinstance(found, Proceed)  # it was settled in its own transaction
                return self._replayed(found)
            await self._wait(event, found.until, waited)
            waited += 1

    async def _asked(self, event: Event) -> Dispatched:
        waited = 0
        while True:
            found = await self._sequencer.claim(self._claim(event))
            if isinstance(found, Proceed):
                return await self._call(event, found)
            if not isinstance(found, InFlight):
                return self._replayed(found)
            await self._wait(event, found.until, waited)
            waited += 1

    def _replayed(self, found: Replay | Conflict | Lost) -> Dispatched:
        if isinstance(found, Conflict):
            raise found.error()
        stored = found.stored
        assert stored is not None  # nobody rests on a claim that is lost to one still under way
        if stored.row is None and stored.origin == "recovery" and not any(stored is each for each in self._closed):
            # This very claim has closed it, or one that shared its transaction.
            self._closed.append(stored)
            METRICS.recovered.add(1)
            self.tell(stored.receipt)
        return Dispatched(stored.receipt, Replayed(stored), stored.response, stored.annotations)

    def _inserted(self, found: Inserted, error: Exception | None) -> Dispatched:
        self.tell(found.receipt)
        return Dispatched(found.receipt, found, found.stored.response, found.stored.annotations, error)

    async def _wait(self, event: Event, until: int, waited: int) -> None:
        """Wait for somebody else's call to end, a little while.

        Raises:
            EventInFlight: The event's time is over.
        """
        if waited % CONTEST_EVERY == 0 and await self._end_the_dead():
            return
        patience = event.due - self._clock.monotonic()
        if patience <= 0:
            raise EventInFlight(until)
        lapse = (until - self._clock.now()) / 1e6
        await self._database.wait(ledger.CHANNEL, max(min(POLL_S, patience, lapse), 0.001))

    # --- calling ---

    async def _call(self, event: Event, claimed: Proceed) -> Dispatched:
        assert event.client is not None
        if points.armed:
            points.reach("lifecycle.claimed")
        try:
            if points.armed:
                points.reach("lifecycle.dispatching")
            response, error = await self._answer(event, event.client)
        except asyncio.CancelledError:
            await self._release(claimed)
            raise
        if points.armed:
            points.reach("lifecycle.answered")
        draft = event.draft(response, self._policy, dispatched=True)
        found = await self._settle(claimed, draft)
        if isinstance(found, Inserted):
            return self._inserted(found, error)
        METRICS.lost.add(1)
        if found.stored is not None:
            return self._replayed(found)
        return await self._asked_by_another(event, found)

    async def _answer(
        self, event: Event, client: Callback | Command
    ) -> tuple[CallbackResponse | None, Exception | None]:
        """Call the client; return what it answered, or the failure and why."""
        began = self._clock.monotonic()
        response: CallbackResponse | None
        error: Exception | None = None
        with trace.span("holdfast.lifecycle.client", client_id=event.context.client_id) as span:
            try:
                response = await ask(
                    client,
                    request_of(event.negotiated.plan),
                    event.placed(),
                    client_id=event.context.client_id,
                    clock=self._clock,
                    seconds=event.due - began,
                )
            except Exception as failure:  # noqa: BLE001 - whatever it is, the event gets a receipt
                error = failure
                response = failed_response(event.label, failure)
            result = "observed" if response is None else response.failure_class or response.status
            span.set(result=result)
        METRICS.client_calls.add(1, result)
        METRICS.client_seconds.observe(self._clock.monotonic() - began)
        return response, error

    async def _asked_by_another(self, event: Event, lost: Lost) -> Dispatched:
        """Wait for who took over the claim; the client is not called a second time from here."""
        identity = Draft(event.negotiated, None, event.context).identity
        waited = 0
        while True:
            async with self._database.read() as tx:
                stored = await ledger.find(tx, identity)
            if stored is not None:
                return self._replayed(Replay(stored))
            await self._wait(event, lost.until or self._clock.now(), waited)
            waited += 1

    async def _settle(self, claimed: Proceed, draft: Draft) -> Settled:
        """Write the receipt; an answer is worth some patience with the database."""
        until = self._clock.monotonic() + SETTLE_S
        again = False
        while True:
            try:
                if again and (mine := await self._settled(draft)) is not None:
                    return Inserted(mine)
                return await self._sequencer.settle(claimed.intent, claimed.fence, draft)
            except (Busy, Unavailable):
                if self._clock.monotonic() >= until:
                    raise
            again = True
            await self._clock.sleep(SETTLE_PAUSE_S)

    async def _settled(self, draft: Draft) -> Stored | None:
        """Return what settling wrote, where only the acknowledgement was lost."""
        async with self._database.read() as tx:
            stored = await ledger.find(tx, draft.identity)
        answer = None if draft.response is None else wire.encode(draft.response)
        ours = stored is not None and stored.origin == draft.origin and stored.answer == answer
        return stored if ours else None

    async def _release(self, claimed: Proceed) -> None:
        """Let the lease end now: nobody will settle this claim."""

        async def work() -> None:
            async with self._database.write() as tx:
                await ledger.renew(tx, claimed.intent, claimed.fence, 0)

        task: asyncio.Future[Any] = spawn(work(), "holdfast lifecycle release")
        task.add_done_callback(seen)
        await self._clock.wait(task, RELEASE_S)

    # --- the dead ---

    async def _end_the_dead(self) -> bool:
        """End the leases of callers that are known to be dead; say whether there were any."""
        async with self._database.read() as tx:
            now = self._clock.now()
            pending = [each for each in await ledger.pending(tx) if each.lease_until > now]
            owners = await tx.all("owners.list") if pending else []
        suspects = {each.owner for each in pending} - {self._database.owner.id}
        dead, locks = _dead([row for row in owners if row.owner_id in suspects])
        ended = False
        try:
            if dead:
                async with self._database.write() as tx:
                    await tx.run("owners.end", [(owner,) for owner in dead])
                    for each in pending:
                        if each.owner in dead:
                            await ledger.renew(tx, each.intent, each.fence, 0)
                ended = True
        finally:
            for lock in locks:
                if ended:
                    lock.remove()
                else:
                    lock.release()
        return ended

    # --- telling ---

    def tell(self, receipt: LifecycleReceipt) -> None:
        """Have who subscribes hear of a receipt that is recorded; those of this router are told of by themselves."""
        for listener in tuple(self._listeners):
            try:
                listener(receipt)
            except Exception as error:  # noqa: BLE001 - the receipt is recorded, whatever a listener makes of it
                METRICS.listener_failures.add(1)
                log.warning("a listener failed: %s", type(error).__qualname__)


def _dead(owners: Sequence[Row]) -> tuple[list[str], list[Lock]]:
    """Say which owners are dead, with the locks that prove it, which are held."""
    dead: list[str] = []
    locks: list[Lock] = []
    for row in owners:
        match probe(row):
            case Dead(lock):
                locks.append(lock)
                dead.append(row.owner_id)
            case Alive():
                pass
            case _ if row.lease_until == 0:  # whoever held its lock has ended it
                dead.append(row.owner_id)
    return dead, locks
