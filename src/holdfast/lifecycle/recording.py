"""Record receipts: number them, check them, and tell the same one from another.

What is to be recorded is an entry. Entries of many callers run in one transaction, on one `Sheet`; each is decided
as if it were alone. An entry that cannot be recorded has raised by then, and has taken no number.

Invariants:
    - A number is taken only by a receipt that is inserted.
    - A stored receipt is never written again: what is offered under its identity is a replay or a conflict.
    - The receipt, its place in the chain and the run's counter change together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from holdfast.lifecycle import wire
from holdfast.lifecycle.annotations import Annotations, annotate, encode_annotations
from holdfast.lifecycle.chain import FieldDiff, chain_id, compare
from holdfast.lifecycle.documents import (
    CallbackResponse,
    LifecycleReceipt,
    NegotiatedPlan,
    ReceiptContext,
    ReceiptKey,
)
from holdfast.lifecycle.enums import ReplayMode
from holdfast.lifecycle.errors import InvalidReceipt, LifecycleError, ReceiptEmittedNotEmittable, ReceiptInvalid
from holdfast.lifecycle.receipts import synthesize
from holdfast.lifecycle.rules import NOTIFICATION
from holdfast.lifecycle.sheet import (
    Conflict,
    Identity,
    Inserted,
    Origin,
    Place,
    Replayed,
    Sheet,
    Stored,
    checked,
    identity_of,
)
from holdfast.store.database import Tx

__all__ = ["Draft", "Emit", "Entry", "Put", "Recorded", "emit", "insert", "put", "record", "record_one"]

Recorded = Inserted | Replayed | Conflict
"""How recording ends."""


class Draft(msgspec.Struct, frozen=True):
    """A receipt before it has its number.

    Attributes:
        negotiated: What was settled before the client was called.
        response: What the client answered, or the failure to get an answer; None if there is neither.
        context: Ids and clock of the receipt.
        dispatched: Whether the client was called.
        annotations: What is known beyond the receipt; None: what follows from the rest.
        origin: Where it comes from.
    """

    negotiated: NegotiatedPlan
    response: CallbackResponse | None
    context: ReceiptContext
    dispatched: bool = False
    annotations: Annotations | None = None
    origin: Origin = "emit"

    @property
    def chain(self) -> tuple[str, str | None]:
        """The chain of its receipt, and the run."""
        run = self.context.harness_run_id
        return chain_id(run, self.context.client_id, self.negotiated.plan.adapter.adapter_id), run

    @property
    def identity(self) -> Identity:
        """What tells its receipt from others."""
        plan = self.negotiated.plan
        return self.context.client_id, plan.adapter.adapter_id, plan.idempotency_key, self.context.receipt_id

    def notes(self) -> Annotations:
        """What is known beyond the receipt."""
        if self.annotations is not None:
            return self.annotations
        return annotate(self.negotiated, self.response, self.context, dispatched=self.dispatched)


class Entry(Protocol):
    """Something to be decided in a transaction with others."""

    @property
    def chain(self) -> tuple[str, str | None]:
        """The chain it may add to, and the run."""
        ...

    @property
    def identity(self) -> Identity:
        """The receipt it is about."""
        ...

    @property
    def place(self) -> Place | None:
        """The number it wants, if it has one already."""
        ...

    @property
    def intent(self) -> str | None:
        """The intent it is about, if it is about one."""
        ...

    def decide(self, sheet: Sheet) -> Any:
        """Say what becomes of it, and write that on the sheet."""
        ...


async def record(
    tx: Tx,
    entries: Sequence[Entry],
    *,
    now: int,
    chain_key: bytes | None = None,
    told: list[LifecycleReceipt] | None = None,
) -> list[Any | LifecycleError]:
    """Record entries in a transaction, in their order; return what became of each.

    The chains of all of them are locked from the start. An entry that cannot be recorded gives its error, and
    spoils nothing. One that others raced for on another chain makes the transaction fail with a `Conflict` of the
    store; then nothing is recorded, and the whole transaction may be run again: `Sequencer` does that.

    Args:
        tx: A transaction that may write; nothing else must have been locked in it.
        entries: What to record.
        now: When, microseconds.
        chain_key: What the chains' hashes are keyed with: 32 bytes.
        told: Gets every receipt that is new, whichever entry made it.
    """
    sheet = Sheet(tx, now=now, chain_key=chain_key)
    found: list[Any | LifecycleError] = [_unstorable(entry) for entry in entries]
    sound = [entry for entry, error in zip(entries, found, strict=True) if error is None]
    if not sound:
        return found
    await sheet.hold(entry.chain for entry in sound)
    await sheet.find(entry.identity for entry in sound)
    await sheet.look_at(entry.place for entry in sound if entry.place is not None)
    await sheet.hold_intents(entry.intent for entry in sound if entry.intent is not None)
    for number, entry in enumerate(entries):
        if found[number] is None:
            try:
                found[number] = entry.decide(sheet)
            except LifecycleError as error:
                found[number] = error
    await sheet.write()
    if told is not None:
        told += sheet.inserted
    return found


def _unstorable(entry: Entry) -> LifecycleError | None:
    for text in (*entry.identity, entry.chain[1]):
        if text is not None and ("\0" in text or not (text.isascii() or _is_text(text))):
            return ReceiptInvalid(InvalidReceipt("an id of the receipt holds a character that cannot be stored"))
    return None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def record_one(tx: Tx, entry: Entry, *, now: int, chain_key: bytes | None = None) -> Any:
    """Record one entry; return what became of it.

    Raises:
        LifecycleError: It cannot be recorded; nothing was written.
    """
    [found] = await record(tx, [entry], now=now, chain_key=chain_key)
    if isinstance(found, LifecycleError):
        raise found
    return found


class Emit:
    """Make a receipt and record it."""

    __slots__ = ("_draft", "_mode", "chain", "identity")

    place = intent = None

    def __init__(self, draft: Draft, mode: ReplayMode) -> None:
        """Say what to record.

        Args:
            draft: The receipt.
            mode: Whether a retry must be equal in every field.

        Raises:
            ReceiptEmittedNotEmittable: The event is the one that tells of receipts.
        """
        if draft.negotiated.plan.event == NOTIFICATION:
            raise ReceiptEmittedNotEmittable
        self._draft = draft
        self._mode = mode
        self.chain = draft.chain
        self.identity = draft.identity

    def decide(self, sheet: Sheet) -> Recorded:
        """Insert the receipt, or say how it stands to the one there is."""
        prior = sheet.stored(self.identity)
        if prior is None:
            return Inserted(insert(sheet, self._draft))
        draft = self._draft
        offered = synthesize(draft.negotiated, draft.response, draft.context, sequence=prior.receipt.sequence)
        checked(offered)
        return _compared(prior, offered, self._mode)


def insert(
    sheet: Sheet,
    draft: Draft,
    *,
    digest: bytes | None = None,
    attempts: int | None = None,
    answered: bool = True,
) -> Stored:
    """Number a receipt that has no prior, check it, and write it on the sheet.

    Args:
        sheet: The transaction's.
        draft: The receipt.
        digest: Of what the client was asked.
        attempts: How often the client was called, where that is known better than from the draft.
        answered: Whether the response is the client's own, to be given again to who asks again.

    Raises:
        ReceiptInvalid: It breaks a rule.
    """
    chain, _ = draft.chain
    receipt = synthesize(draft.negotiated, draft.response, draft.context, sequence=sheet.next_sequence(chain))
    body = checked(receipt)
    notes = draft.notes()
    if attempts is not None and notes.dispatched:
        notes = msgspec.structs.replace(notes, attempts=attempts)
    answer = wire.encode(draft.response) if answered and draft.response is not None else None
    return sheet.insert(
        chain, receipt, body, encode_annotations(notes), origin=draft.origin, digest=digest, answer=answer
    )


class Put:
    """Record a finished receipt, number and all."""

    __slots__ = ("_mode", "_notes", "_origin", "_receipt", "chain", "identity", "place")

    intent = None

    def __init__(
        self,
        key: ReceiptKey | None,
        receipt: LifecycleReceipt,
        mode: ReplayMode,
        *,
        annotations: bytes = b"{}",
        origin: Origin = "replay",
    ) -> None:
        """Say what to record.

        Args:
            key: What it is recorded under; None for a receipt without an idempotency key.
            receipt: The receipt.
            mode: Whether the one there is must be equal in every field.
            annotations: What is known beyond it, as a JSON object.
            origin: Where it comes from.

        Raises:
            ReceiptInvalid: It is not that key's.
        """
        own = (receipt.client_id, receipt.adapter_id, receipt.idempotency_key)
        wanted = (*own[:2], None) if key is None else (key.client_id, key.adapter_id, key.idempotency_key)
        if own != wanted:
            raise ReceiptInvalid(InvalidReceipt("the receipt is not that of the key it is put under"))
        run = receipt.harness_run_id
        self._receipt = receipt
        self._mode = mode
        self._notes = annotations
        self._origin = origin
        self.chain = chain_id(run, receipt.client_id, receipt.adapter_id), run
        self.identity = identity_of(receipt)
        self.place = None if run is None or receipt.sequence is None else (run, receipt.sequence)

    def decide(self, sheet: Sheet) -> Recorded:
        """Insert the receipt, or say how it stands to those there are."""
        receipt = self._receipt
        body = checked(receipt)
        prior = sheet.stored(self.identity)
        if prior is not None:
            return _compared(prior, receipt, self._mode)
        holder = None if self.place is None else sheet.at(self.place)
        if holder is not None:
            field = FieldDiff("sequence", holder.receipt.sequence, receipt.sequence)
            return Conflict(_key_of(receipt), holder.receipt.receipt_id, (field,))
        return Inserted(sheet.insert(self.chain[0], receipt, body, self._notes, origin=self._origin))


def _compared(prior: Stored, offered: LifecycleReceipt, mode: ReplayMode) -> Recorded:
    fields = compare(prior.receipt, offered, mode)
    return Conflict(_key_of(offered), prior.receipt.receipt_id, fields) if fields else Replayed(prior)


def _key_of(receipt: LifecycleReceipt) -> str:
    return receipt.idempotency_key or receipt.receipt_id


async def emit(  # noqa: PLR0913 - what a receipt is made of, and the terms of recording it
    tx: Tx,
    negotiated: NegotiatedPlan,
    response: CallbackResponse | None,
    context: ReceiptContext,
    *,
    mode: ReplayMode,
    now: int,
    chain_key: bytes | None = None,
) -> Recorded:
    """Make the receipt of an event for a client, and record it.

    Args:
        tx: A transaction that may write.
        negotiated: What was settled before the client was called.
        response: What the client answered; None if it was not called, or nobody is bound.
        context: Ids and clock of the receipt.
        mode: Whether a retry must be equal in every field.
        now: When, microseconds.
        chain_key: What the chains' hashes are keyed with: 32 bytes.

    Raises:
        ReceiptEmittedNotEmittable: The event is the one that tells of receipts; the store was not asked.
        ReceiptInvalid: The receipt would break a rule; no number is taken.
    """
    entry = Emit(Draft(negotiated, response, context, dispatched=response is not None), mode)
    found: Recorded = await record_one(tx, entry, now=now, chain_key=chain_key)
    return found


async def put(  # noqa: PLR0913 - what is recorded, and the terms of it
    tx: Tx,
    key: ReceiptKey | None,
    receipt: LifecycleReceipt,
    *,
    mode: ReplayMode,
    now: int,
    annotations: bytes = b"{}",
    origin: Origin = "replay",
    chain_key: bytes | None = None,
) -> Recorded:
    """Record a finished receipt. A number beyond the run's counter raises the counter to it.

    Args:
        tx: A transaction that may write.
        key: What it is recorded under; None for a receipt without an idempotency key.
        receipt: The receipt.
        mode: Whether the one there is must be equal in every field.
        now: When, microseconds.
        annotations: What is known beyond it, as a JSON object.
        origin: Where it comes from.
        chain_key: What the chains' hashes are keyed with: 32 bytes.

    Raises:
        ReceiptInvalid: It breaks a rule, or is not that key's.
    """
    entry = Put(key, receipt, mode, annotations=annotations, origin=origin)
    found: Recorded = await record_one(tx, entry, now=now, chain_key=chain_key)
    return found
