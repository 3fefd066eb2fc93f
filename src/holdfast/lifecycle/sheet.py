"""The working copy of what a transaction knows of receipts, chains and intents: load, decide, write back.

Many callers share one transaction. It locks their chains and looks up what they ask about in one statement each,
then decides about one after the other on this copy, as if each were alone, and writes all of it at the end.

Invariants:
    - Chains are locked before anything else is read, in the order of their ids, intents after them.
    - An entry sees what the entries before it have decided.
    - What is not decided is not written: a caller that raised has left nothing on the sheet.
    - No text is looked up or stored that one of the databases would cut or refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from holdfast.lifecycle import wire
from holdfast.lifecycle.annotations import Annotations, decode_annotations
from holdfast.lifecycle.chain import FieldDiff, full_digest, genesis, link, semantic_digest
from holdfast.lifecycle.documents import CallbackResponse, LifecycleReceipt
from holdfast.lifecycle.errors import InvalidReceipt, ReceiptConflict, ReceiptInvalid, ValidationError
from holdfast.store.database import Row, Tx

__all__ = [
    "CHANNEL", "Conflict", "Identity", "Inserted", "Origin", "Place", "Replayed", "Sheet", "Stored", "checked",
    "identity_of", "stored_of",
]  # fmt: skip

CHANNEL = "receipts"
"""Who waits on it is woken when receipts were recorded."""

Origin: TypeAlias = Literal["emit", "hook", "replay", "recovery"]
"""Where a receipt came from."""
Identity: TypeAlias = tuple[str, str, str | None, str]
"""Client, adapter, idempotency key and receipt id; the last tells receipts apart only where there is no key."""
Place: TypeAlias = tuple[str, int]
"""A run, and a number in it."""


class Stored(msgspec.Struct, frozen=True):
    """A receipt as the ledger has it.

    Attributes:
        receipt: The receipt.
        notes: Its annotations, as stored.
        answer: What the client answered, as stored, if it is known.
        digest: Of what the client was asked, if it is known.
        chain: The id of its chain.
        index: Its place in the chain, from 1.
        recorded_at: When it was recorded, microseconds.
        origin: Where it came from.
        row: Its number among all receipts; None until the transaction has written it.
    """

    receipt: LifecycleReceipt
    notes: bytes
    answer: bytes | None
    digest: bytes | None
    chain: str
    index: int
    recorded_at: int
    origin: Origin
    row: int | None = None

    @property
    def annotations(self) -> Annotations | None:
        """What the ledger knows beyond the receipt; None for one that came without."""
        try:
            return decode_annotations(self.notes)
        except msgspec.MsgspecError:
            return None

    @property
    def response(self) -> CallbackResponse | None:
        """What the client answered, if it is known."""
        return None if self.answer is None else wire.restore(self.answer, CallbackResponse)


class Inserted(msgspec.Struct, frozen=True):
    """The receipt is new."""

    stored: Stored

    @property
    def receipt(self) -> LifecycleReceipt:
        """The receipt, as it was recorded."""
        return self.stored.receipt


class Replayed(msgspec.Struct, frozen=True):
    """The receipt was there, and is the same."""

    stored: Stored

    @property
    def receipt(self) -> LifecycleReceipt:
        """The receipt, as it was recorded then."""
        return self.stored.receipt


class Conflict(msgspec.Struct, frozen=True):
    """Another receipt, or another claim, has the place; nothing was written.

    Attributes:
        key: The idempotency key, or the receipt's id where it has none.
        stored_receipt_id: The receipt that has it, or that a claim is going to make.
        fields: In what the two differ.
    """

    key: str
    stored_receipt_id: str
    fields: tuple[FieldDiff, ...]

    def error(self) -> ReceiptConflict:
        """Return what to raise for it."""
        return ReceiptConflict(self.key, self.stored_receipt_id, [field.name for field in self.fields])


class _Chain(msgspec.Struct):
    """The end of a chain, as the entries before have left it."""

    run_id: str | None
    last_sequence: int
    head_index: int
    head_hash: bytes
    moved: bool = False


class Sheet:
    """What one transaction works on.

    Attributes:
        now: When it happens, microseconds.
        inserted: The receipts that are new, in their order.
    """

    def __init__(self, tx: Tx, *, now: int, chain_key: bytes | None = None) -> None:
        """Begin with nothing loaded.

        Args:
            tx: A transaction that may write.
            now: When it happens, microseconds.
            chain_key: What the chains' hashes are keyed with: 32 bytes.
        """
        self.now = now
        self.inserted: list[LifecycleReceipt] = []
        self._tx = tx
        self._key = chain_key
        self._chains: dict[str, _Chain] = {}
        self._receipts: dict[Identity, Stored] = {}
        self._places: dict[Place, Stored] = {}
        self._intents: dict[str, Row] = {}
        self._added: list[tuple[object, ...]] = []
        self._begun: list[tuple[object, ...]] = []
        self._again: list[tuple[object, ...]] = []
        self._ended: list[tuple[object, ...]] = []
        self._late: list[tuple[object, ...]] = []

    # --- load ---------------------------------------------------------------------------------------------

    async def hold(self, chains: Iterable[tuple[str, str | None]]) -> None:
        """Lock chains, each an id and its run, making those that are new; once, before anything else is loaded."""
        wanted = sorted(set(chains))
        while missing := [each for each in wanted if each[0] not in self._chains]:
            for row in await self._tx.all("chains.hold", chains=_json(missing), now=self.now):
                head = genesis(row.chain_id, key=self._key) if row.head_hash is None else row.head_hash
                self._chains[row.chain_id] = _Chain(row.run_id, row.last_sequence, row.head_index, head)
            missing = [each for each in missing if each[0] not in self._chains]
            if missing:
                await self._tx.run("chains.make", [(chain, run, self.now) for chain, run in missing])

    async def find(self, identities: Iterable[Identity]) -> None:
        """Look up receipts."""
        wanted = sorted(set(identities), key=str)
        if wanted:
            for row in await self._tx.all("receipts.find", keys=_json(wanted)):
                self._keep(stored_of(row))

    async def look_at(self, places: Iterable[Place]) -> None:
        """Look up which receipts have numbers of runs."""
        for run_id, sequence in sorted(set(places)):
            row = await self._tx.one("receipts.place", run_id=run_id, sequence=sequence)
            if row is not None:
                self._places[run_id, sequence] = stored_of(row)

    async def hold_intents(self, intents: Iterable[str]) -> None:
        """Lock intents."""
        wanted = sorted(set(intents))
        if wanted:
            self._intents.update({row.id: row for row in await self._tx.all("intents.hold", ids=_json(wanted))})

    # --- decide -------------------------------------------------------------------------------------------

    def stored(self, identity: Identity) -> Stored | None:
        """Return the receipt of an identity that was looked up."""
        return self._receipts.get(_slot(identity))

    def at(self, place: Place) -> Stored | None:
        """Return the receipt that has a number."""
        return self._places.get(place)

    def intent(self, intent: str) -> Row | None:
        """Return an intent, as it was when it was locked or as an entry before has left it."""
        return self._intents.get(intent)

    def next_sequence(self, chain: str) -> int | None:
        """Return the number that the next receipt of a chain gets; None where it counts nothing."""
        held = self._chains[chain]
        return None if held.run_id is None else held.last_sequence + 1

    def skip_sequence(self, chain: str) -> int:
        """Move a run's counter without a receipt; return where it is then."""
        held = self._chains[chain]
        held.last_sequence += 1
        held.moved = True
        return held.last_sequence

    def insert(  # noqa: PLR0913 - what a receipt is stored with, by name
        self,
        chain: str,
        receipt: LifecycleReceipt,
        body: bytes,
        notes: bytes,
        *,
        origin: Origin,
        digest: bytes | None = None,
        answer: bytes | None = None,
    ) -> Stored:
        """Append a receipt that was checked to its chain, and raise the run's counter to its number."""
        held = self._chains[chain]
        index, previous = held.head_index + 1, held.head_hash
        at = self.now
        hashed = link(previous, index=index, recorded_at=at, body=body, annotations=notes, key=self._key)
        held.head_index, held.head_hash, held.moved = index, hashed, True
        if held.run_id is not None and receipt.sequence is not None:
            held.last_sequence = max(held.last_sequence, receipt.sequence)
        self._added.append(
            (
                chain, index, receipt.receipt_id, receipt.client_id, receipt.adapter_id, receipt.idempotency_key,
                receipt.harness_run_id, receipt.harness_session_id, receipt.sequence, receipt.event, receipt.status,
                receipt.failure_class, receipt.schema_version, receipt.at_epoch_s, body, notes, full_digest(receipt),
                semantic_digest(receipt), digest, answer, origin, at, previous, hashed,
            )
        )  # fmt: skip
        stored = Stored(receipt, notes, answer, digest, chain, index, at, origin)
        self.inserted.append(receipt)
        self._keep(stored)
        if receipt.harness_run_id is not None and receipt.sequence is not None:
            self._places[receipt.harness_run_id, receipt.sequence] = stored
        return stored

    def begin(self, intent: Row) -> None:
        """Write a new intent. Its row need not have what only an ended one has."""
        self._intents[intent.id] = intent
        self._begun.append(
            (
                intent.id, intent.client_id, intent.adapter_id, intent.claim_key, intent.request, intent.context,
                intent.negotiated, intent.request_digest, intent.owner, intent.fence, intent.lease_until,
                intent.attempts, intent.state, intent.created_at,
            )
        )  # fmt: skip

    def begin_again(self, intent: Row, *, was_fence: int) -> None:
        """Write a new claim of an intent that is dead or forgotten."""
        self._intents[intent.id] = intent
        self._again.append(
            (
                intent.request, intent.context, intent.negotiated, intent.request_digest, intent.owner, intent.fence,
                intent.lease_until, intent.attempts, intent.id, was_fence,
            )
        )  # fmt: skip

    def end(self, intent: Row, state: Literal["settled", "closed"], stored: Stored) -> None:
        """End an intent with its receipt."""
        self._intents[intent.id] = intent._replace(state=state)
        self._ended.append((state, stored.chain, stored.index, self.now, intent.id, intent.fence))

    def note_late(self, intent: Row, late: bytes) -> None:
        """Note that an answer came when nobody waited for it any more."""
        self._late.append((late, intent.id))

    # --- write --------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """Write what was decided; wake who waits for receipts when there are new ones."""
        for statement, rows in (
            ("receipts.add", self._added),
            ("chains.move", [self._move(name) for name in sorted(self._chains) if self._chains[name].moved]),
            ("chains.drop", [(name,) for name in sorted(self._chains) if self._unused(name)]),
            ("intents.add", self._begun),
            ("intents.again", self._again),
            ("intents.end", self._ended),
            ("intents.late", self._late),
        ):
            if rows:
                await self._tx.run(statement, rows)
        if self._added:
            self._tx.notify(CHANNEL)

    def _move(self, name: str) -> tuple[object, ...]:
        held = self._chains[name]
        head = held.head_hash if held.head_index else None
        return held.last_sequence, held.head_index, head, self.now, name

    def _unused(self, name: str) -> bool:
        held = self._chains[name]
        return not held.moved and held.head_index == 0 and held.last_sequence == 0

    def _keep(self, stored: Stored) -> None:
        self._receipts[_slot(identity_of(stored.receipt))] = stored


def identity_of(receipt: LifecycleReceipt) -> Identity:
    """Return what tells a receipt from others."""
    return receipt.client_id, receipt.adapter_id, receipt.idempotency_key, receipt.receipt_id


def checked(receipt: LifecycleReceipt) -> bytes:
    """Check a receipt as if it had been read, and return its bytes.

    Raises:
        ReceiptInvalid: It breaks a rule, or holds a character that no database stores.
    """
    try:
        wire.validate(receipt)
        body = wire.encode(receipt)
        for name in _LOOKED_UP:
            if "\0" in (getattr(receipt, name) or ""):
                raise InvalidReceipt(f"`receipt.{name}` holds the character NUL, which cannot be stored")
    except ValidationError as error:
        raise ReceiptInvalid(error) from None
    return body


_LOOKED_UP = ("receipt_id", "client_id", "adapter_id", "idempotency_key", "harness_run_id", "harness_session_id")


def stored_of(row: Row) -> Stored:
    """Return what a row of receipts says."""
    return Stored(
        receipt=wire.restore(row.body, LifecycleReceipt),
        notes=row.annotations,
        answer=row.response,
        digest=row.request_digest,
        chain=row.chain_id,
        index=row.chain_index,
        recorded_at=row.recorded_at,
        origin=row.origin,
        row=row.id,
    )


def _slot(identity: Identity) -> Identity:
    client, adapter, key, receipt_id = identity
    return client, adapter, key, receipt_id if key is None else ""


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
