"""Claim an event before its client is called, settle it afterwards, and close what was left open.

An intent is the durable note that a client is about to be called. It is claimed under a lease, and every claim has
a fence of its own: whoever settles under an older one has lost it, and the receipt there is stands. An intent whose
lease is over may have reached the client or not, so it is closed with a receipt that says just that, unless the
caller would rather call again.

Invariants:
    - A client is not called about an event that has a receipt, or that somebody else is calling about.
    - An intent ends in the transaction that writes its receipt; until then it holds no number.
    - What comes too late is noted, and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from holdfast.lifecycle import wire
from holdfast.lifecycle.annotations import annotate
from holdfast.lifecycle.chain import FieldDiff, canonical, request_digest
from holdfast.lifecycle.documents import (
    CallbackRequest,
    CallbackResponse,
    LifecycleReceipt,
    NegotiatedPlan,
    PayloadEnvelope,
    ReceiptContext,
    RoutingPlan,
    warning,
)
from holdfast.lifecycle.enums import Ambiguous, ReplayMode
from holdfast.lifecycle.errors import LifecycleError, ReceiptEmittedNotEmittable
from holdfast.lifecycle.negotiation import request_of
from holdfast.lifecycle.recording import Draft, insert, record, record_one
from holdfast.lifecycle.rules import NOTIFICATION
from holdfast.lifecycle.sheet import Conflict, Inserted, Sheet, Stored
from holdfast.store.database import Row, Tx

__all__ = [
    "Claim", "Claimed", "Close", "InFlight", "Intent", "IntentId", "Lease", "Lost", "Pending", "Proceed", "Replay",
    "Settle", "Settled", "claim", "claim_key", "expire", "intent_id", "pending", "recover", "renew", "settle",
]  # fmt: skip

IntentId: TypeAlias = str


class Intent(NamedTuple):
    """A row of intents."""

    id: IntentId
    client_id: str
    adapter_id: str
    claim_key: str
    request: bytes
    context: bytes
    negotiated: bytes
    request_digest: bytes
    owner: str
    fence: int
    lease_until: int
    attempts: int
    state: str
    receipt_row: int | None
    late: bytes | None
    created_at: int
    settled_at: int | None


class Lease(msgspec.Struct, frozen=True):
    """Who calls the client, and how long nobody else may.

    Attributes:
        owner: Who.
        until: When it is over, microseconds.
    """

    owner: str
    until: int


class Proceed(msgspec.Struct, frozen=True):
    """Call the client, and settle under this fence.

    Attributes:
        intent: The intent that was written.
        fence: The claim's own number.
        attempts: How often the client will have been called.
    """

    intent: IntentId
    fence: int
    attempts: int


class Replay(msgspec.Struct, frozen=True):
    """Do not call the client: the event has its receipt, and this is it."""

    stored: Stored

    @property
    def receipt(self) -> LifecycleReceipt:
        """The receipt there is."""
        return self.stored.receipt


class InFlight(msgspec.Struct, frozen=True):
    """Somebody else is calling the client; their lease ends then, in microseconds."""

    until: int


class Lost(msgspec.Struct, frozen=True):
    """Somebody else has ended the intent, or claimed it.

    Attributes:
        stored: The receipt that stands; None while the other claim is under way.
        until: When the lease of that claim is over, microseconds.
    """

    stored: Stored | None
    until: int | None = None


Claimed = Proceed | Replay | InFlight | Conflict
"""How a claim ends."""
Settled = Inserted | Lost
"""How settling ends."""


def claim_key(context: ReceiptContext, plan: RoutingPlan) -> str:
    """Return what a claim is known by beside client and adapter."""
    return f"r:{context.receipt_id}" if plan.idempotency_key is None else f"k:{plan.idempotency_key}"


def intent_id(client_id: str, adapter_id: str, key: str) -> IntentId:
    """Return the id of the intent of a claim key."""
    return f"int_{blake3(canonical(['intent', client_id, adapter_id, key])).hexdigest()[:32]}"


# --- claim --------------------------------------------------------------------------------------------


class Claim:
    """Ask whether to call the client about an event."""

    __slots__ = (
        "_ambiguous", "_context", "_digest", "_draft", "_key", "_lease", "_mode", "_plan", "_request", "intent",
    )  # fmt: skip

    place = None

    def __init__(
        self,
        negotiated: NegotiatedPlan,
        context: ReceiptContext,
        lease: Lease,
        *,
        payloads: Sequence[PayloadEnvelope] = (),
        mode: ReplayMode,
        ambiguous: Ambiguous = "close",
    ) -> None:
        """Say what to claim.

        Args:
            negotiated: What the client is going to be asked.
            context: Ids and clock of the receipt to come.
            lease: Who calls, and for how long.
            payloads: What goes with the request.
            mode: Whether the receipt there is must have the same id and second.
            ambiguous: Whether an intent whose lease is over is closed or claimed again.

        Raises:
            ReceiptEmittedNotEmittable: The event is the one that tells of receipts.
        """
        plan = negotiated.plan
        if plan.event == NOTIFICATION:
            raise ReceiptEmittedNotEmittable
        self._plan = negotiated
        self._context = context
        self._lease = lease
        self._mode = mode
        self._ambiguous = ambiguous
        self._draft = Draft(negotiated, None, context)
        self._request = request_of(plan)
        self._digest = request_digest(self._request, payloads)
        self._key = claim_key(context, plan)
        self.intent = intent_id(context.client_id, plan.adapter.adapter_id, self._key)

    @property
    def chain(self) -> tuple[str, str | None]:
        """The chain of the receipt to come, and the run."""
        return self._draft.chain

    @property
    def identity(self) -> tuple[str, str, str | None, str]:
        """The receipt to come."""
        return self._draft.identity

    def decide(self, sheet: Sheet) -> Claimed:
        """Say whether to call the client, and write the claim down if so."""
        prior = sheet.stored(self.identity)
        if prior is not None:
            return self._prior(prior)
        found: Row | None = sheet.intent(self.intent)
        if found is None:
            sheet.begin(self._row(fence=1, attempts=1, created_at=sheet.now))
            return Proceed(self.intent, 1, 1)
        if found.state != "pending":
            # Its receipt was pruned, and with it the key was forgotten.
            return self._again(sheet, found, attempts=1)
        if found.request_digest != self._digest:
            return self._differs(wire.restore(found.context, ReceiptContext).receipt_id, found.request_digest)
        if found.lease_until > sheet.now:
            return InFlight(found.lease_until)
        if self._ambiguous == "rerun":
            return self._again(sheet, found, attempts=found.attempts + 1)
        return Replay(_close(sheet, found))

    def _prior(self, prior: Stored) -> Claimed:
        if prior.digest is None:
            fields = self._shared(prior.receipt)
        elif prior.digest != self._digest:
            return self._differs(prior.receipt.receipt_id, prior.digest, prior.receipt)
        else:
            fields = ()
        if self._mode == "strict":
            fields += _diffs(prior.receipt, self._context, ("receipt_id", "at_epoch_s"))
        return Conflict(self._named, prior.receipt.receipt_id, fields) if fields else Replay(prior)

    def _differs(self, receipt_id: str, digest: bytes, receipt: LifecycleReceipt | None = None) -> Conflict:
        fields = () if receipt is None else self._shared(receipt)
        shown = FieldDiff("request", f"blake3:{digest.hex()}", f"blake3:{self._digest.hex()}")
        return Conflict(self._named, receipt_id, fields or (shown,))

    def _shared(self, receipt: LifecycleReceipt) -> tuple[FieldDiff, ...]:
        ids = ("harness_session_id", "harness_run_id", "harness_task_id")
        own = ("schema_version", "event", "event_id", "integration_mode", "invocation_id", "idempotency_key")
        return _diffs(receipt, self._request, own) + _diffs(receipt, self._context, ids)

    @property
    def _named(self) -> str:
        return self._key[2:]

    def _again(self, sheet: Sheet, found: Row, *, attempts: int) -> Proceed:
        fence = found.fence + 1
        row = self._row(fence=fence, attempts=attempts, created_at=found.created_at)
        sheet.begin_again(row, was_fence=found.fence)
        return Proceed(self.intent, fence, attempts)

    def _row(self, *, fence: int, attempts: int, created_at: int) -> Intent:
        return Intent(
            id=self.intent,
            client_id=self._context.client_id,
            adapter_id=self._plan.plan.adapter.adapter_id,
            claim_key=self._key,
            request=wire.encode(self._request),
            context=wire.encode(self._context),
            negotiated=wire.encode(self._plan),
            request_digest=self._digest,
            owner=self._lease.owner,
            fence=fence,
            lease_until=self._lease.until,
            attempts=attempts,
            state="pending",
            receipt_row=None,
            late=None,
            created_at=created_at,
            settled_at=None,
        )


def _diffs(
    receipt: LifecycleReceipt, offered: CallbackRequest | ReceiptContext, names: Sequence[str]
) -> tuple[FieldDiff, ...]:
    pairs = [(name, getattr(receipt, name), getattr(offered, name)) for name in names]
    return tuple(FieldDiff(*pair) for pair in pairs if pair[1] != pair[2])


# --- settle -------------------------------------------------------------------------------------------


class Settle:
    """End a claim with the receipt of what the client answered."""

    __slots__ = ("_draft", "_fence", "chain", "identity", "intent")

    place = None

    def __init__(self, intent: IntentId, fence: int, draft: Draft) -> None:
        """Say what to settle.

        Args:
            intent: The intent that was claimed.
            fence: The fence it was claimed under.
            draft: The receipt; how often the client was called is taken from the intent.
        """
        self._fence = fence
        self._draft = draft
        self.intent = intent
        self.chain = draft.chain
        self.identity = draft.identity

    def decide(self, sheet: Sheet) -> Settled:
        """Write the receipt and the end of the intent, or note that the answer is late."""
        found = sheet.intent(self.intent)
        prior = sheet.stored(self.identity)
        mine = found is not None and found.state == "pending" and found.fence == self._fence
        if found is None:
            return Lost(prior)
        if not mine or prior is not None:
            sheet.note_late(found, self._late())
            if mine and prior is not None:
                # Somebody recorded the event without claiming it.
                sheet.end(found, "closed", prior)
            return Lost(prior, found.lease_until if prior is None and found.state == "pending" else None)
        stored = insert(sheet, self._draft, digest=found.request_digest, attempts=found.attempts)
        sheet.end(found, "settled", stored)
        return Inserted(stored)

    def _late(self) -> bytes:
        response = self._draft.response
        answer = b"" if response is None else wire.encode(response)
        status = None if response is None else response.status
        return msgspec.json.encode({"status": status, "blake3": blake3(answer).hexdigest()})


# --- recover ------------------------------------------------------------------------------------------


class Close:
    """Close an intent whose lease is over; nothing if somebody has ended or renewed it meanwhile."""

    __slots__ = ("chain", "identity", "intent")

    place = None

    def __init__(self, found: Row) -> None:
        """Say which, by its row."""
        draft = _unknown(found)
        self.intent: str = found.id
        self.chain = draft.chain
        self.identity = draft.identity

    def decide(self, sheet: Sheet) -> Stored | None:
        """Write the receipt that says so; None where there is nothing to close."""
        found = sheet.intent(self.intent)
        if found is None or found.state != "pending" or found.lease_until > sheet.now:
            return None
        prior = sheet.stored(self.identity)
        if prior is not None:
            sheet.end(found, "closed", prior)
            return None
        return _close(sheet, found)


def _close(sheet: Sheet, found: Row) -> Stored:
    stored = insert(sheet, _unknown(found), digest=found.request_digest, attempts=found.attempts, answered=False)
    sheet.end(found, "closed", stored)
    return stored


def _unknown(found: Row) -> Draft:
    """Make the receipt of a call of which nobody knows how it ended."""
    negotiated = wire.restore(found.negotiated, NegotiatedPlan)
    context = wire.restore(found.context, ReceiptContext)
    response = CallbackResponse(
        schema_version=negotiated.plan.schema_version,
        status="failed",
        failure_class="state_conflict",
        retry_class="retry_after_reread",
        warnings=(warning("outcome_unknown", "the client was being called, and nobody knows how that ended"),),
    )
    notes = msgspec.structs.replace(
        annotate(negotiated, response, context, dispatched=True), outcome_unknown=True, client_status=None
    )
    return Draft(negotiated, response, context, dispatched=True, annotations=notes, origin="recovery")


# --- over a transaction -------------------------------------------------------------------------------


async def claim(  # noqa: PLR0913 - the event, and the terms of the claim
    tx: Tx,
    negotiated: NegotiatedPlan,
    context: ReceiptContext,
    lease: Lease,
    *,
    payloads: Sequence[PayloadEnvelope] = (),
    mode: ReplayMode,
    ambiguous: Ambiguous = "close",
    now: int,
    chain_key: bytes | None = None,
) -> Claimed:
    """Ask whether to call the client about an event, and write the claim down if so.

    Args:
        tx: A transaction that may write; the client must not be called before it has committed.
        negotiated: What the client is going to be asked.
        context: Ids and clock of the receipt to come.
        lease: Who calls, and for how long.
        payloads: What goes with the request.
        mode: Whether the receipt there is must have the same id and second.
        ambiguous: Whether an intent whose lease is over is closed or claimed again.
        now: When, microseconds.
        chain_key: What the chains' hashes are keyed with: 32 bytes.

    Raises:
        ReceiptEmittedNotEmittable: The event is the one that tells of receipts.
    """
    entry = Claim(negotiated, context, lease, payloads=payloads, mode=mode, ambiguous=ambiguous)
    found: Claimed = await record_one(tx, entry, now=now, chain_key=chain_key)
    return found


async def settle(
    tx: Tx, intent: IntentId, fence: int, receipt: Draft, *, now: int, chain_key: bytes | None = None
) -> Settled:
    """End a claim with the receipt of what the client answered.

    Args:
        tx: A transaction that may write.
        intent: The intent that was claimed.
        fence: The fence it was claimed under.
        receipt: What became of the event.
        now: When, microseconds.
        chain_key: What the chains' hashes are keyed with: 32 bytes.

    Raises:
        ReceiptInvalid: The receipt would break a rule; the intent is still pending.
    """
    found: Settled = await record_one(tx, Settle(intent, fence, receipt), now=now, chain_key=chain_key)
    return found


async def renew(tx: Tx, intent: IntentId, fence: int, until: int) -> bool:
    """Make a lease longer; say whether the claim was still there."""
    return await tx.one("intents.renew", lease_until=until, id=intent, fence=fence) is not None


async def expire(tx: Tx, owner: str) -> int:
    """End the leases of an owner that is known to be dead; return how many claims anybody may close now."""
    return await tx.run("intents.expire", [(owner,)])


async def recover(
    tx: Tx, *, now: int, limit: int = 100, intent: IntentId | None = None, chain_key: bytes | None = None
) -> list[LifecycleReceipt]:
    """Close intents whose lease is over, each with a receipt that says that its outcome is unknown.

    Args:
        tx: A transaction that may write.
        now: When, microseconds.
        limit: How many at most; call again while there are as many.
        intent: Only this one; None: the oldest ones.
        chain_key: What the chains' hashes are keyed with: 32 bytes.

    Raises:
        LifecycleError: One of them cannot be closed; nothing was.
    """
    if intent is None:
        rows = await tx.all("intents.dead", now=now, most=limit)
    else:
        row = await tx.one("intents.get", id=intent)
        rows = [] if row is None or row.state != "pending" or row.lease_until > now else [row]
    found = await record(tx, [Close(row) for row in rows], now=now, chain_key=chain_key) if rows else []
    for each in found:
        if isinstance(each, LifecycleError):
            raise each
    return [each.receipt for each in found if isinstance(each, Stored)]


class Pending(msgspec.Struct, frozen=True):
    """A client that is being called, or was when its caller died.

    Attributes:
        intent: The intent.
        client_id: The client.
        adapter_id: The adapter.
        key: The idempotency key; None where there is none.
        receipt_id: The receipt to come.
        event: What the client is told of.
        owner: Who calls.
        fence: The claim's own number.
        attempts: How often the client was called.
        lease_until: When anybody may close it, microseconds.
        created_at: When it was claimed first, microseconds.
    """

    intent: IntentId
    client_id: str
    adapter_id: str
    key: str | None
    receipt_id: str
    event: str
    owner: str
    fence: int
    attempts: int
    lease_until: int
    created_at: int


async def pending(tx: Tx, *, limit: int = 500) -> list[Pending]:
    """Return intents that have not ended, those whose lease ends first before others."""
    return [
        Pending(
            intent=row.id,
            client_id=row.client_id,
            adapter_id=row.adapter_id,
            key=row.claim_key[2:] if row.claim_key.startswith("k:") else None,
            receipt_id=wire.restore(row.context, ReceiptContext).receipt_id,
            event=wire.restore(row.request, CallbackRequest).event,
            owner=row.owner,
            fence=row.fence,
            attempts=row.attempts,
            lease_until=row.lease_until,
            created_at=row.created_at,
        )
        for row in await tx.all("intents.pending", most=limit)
    ]
