"""Prove that nothing was changed: compute every chain again, and hold it against what is stored.

What a receipt's hash covers is its place, its time, its body and its annotations; the columns beside them repeat the
body, and the chain's row has the newest hash. So every edit contradicts something. Which of two contradicting things
was edited is told by a third: the body by its digest, a hash by the next receipt, which has it as well.

A time and the annotations are covered by the hash alone. Annotations that read well are blamed, unless the time is
not between those of the neighbours.

Invariants:
    - A chain that nobody touched has no break, and the first break of a chain is at the first receipt that was touched.
    - Nothing here writes.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, get_args

import msgspec

from holdfast.lifecycle import wire
from holdfast.lifecycle.chain import canonical, chain_id, full_digest, genesis, link, semantic_digest
from holdfast.lifecycle.documents import CallbackResponse, LifecycleReceipt, ReceiptContext
from holdfast.lifecycle.errors import ChainBreak, ChainBroken, UndecodableDocument, ValidationError
from holdfast.lifecycle.sheet import Origin
from holdfast.store.database import Row, Tx

__all__ = ["Audit", "Head", "Heads", "Verified", "read_heads", "verify"]

_PAGE: Final = 200
"""Rows read at once: receipts are small."""
_BEFORE_ALL: Final = -(2**63)


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a chain.

    Attributes:
        chain: The chain's id.
        index: The index of its newest receipt.
        hash: Its hash, in lower-case hexadecimal digits.
    """

    chain: str
    index: int
    hash: str


class Heads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ends of all chains: the last line of an export, and what may be kept elsewhere to compare with.

    Attributes:
        heads: One for each chain.
        count: How many receipts the export has.
    """

    heads: tuple[Head, ...]
    count: int = 0


class Verified(msgspec.Struct, frozen=True):
    """Nothing is broken."""

    chains_count: int
    receipts_count: int


def read_heads(data: bytes) -> Heads:
    """Read the ends of chains from the last line of an export, or from a file that has only that.

    Raises:
        UndecodableDocument: They are not there.
    """
    lines = data.splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=Heads)
    except (msgspec.MsgspecError, UnicodeError):
        raise UndecodableDocument("the file does not end with the heads of an export") from None


async def verify(tx: Tx, *, chain_key: bytes | None = None, anchor: Heads | None = None) -> Verified | ChainBroken:
    """Check every chain and every intent; return the first break, if there is one.

    Args:
        tx: A transaction; one that only reads will do.
        chain_key: What the chains' hashes are keyed with: 32 bytes.
        anchor: Ends of chains that were kept elsewhere: a chain must still have them. Without them, and without a
            key, somebody who computes everything anew is not found out.
    """
    audit = Audit(tx, chain_key=chain_key)
    async for broken in audit.run(anchor):
        return broken
    return Verified(audit.chains_count, audit.receipts_count)


class Audit:
    """One round of checking.

    Attributes:
        chains_count: Chains checked so far.
        receipts_count: Receipts checked so far.
    """

    def __init__(self, tx: Tx, *, chain_key: bytes | None = None) -> None:
        """Check what a transaction sees.

        Args:
            tx: A transaction; one that only reads will do.
            chain_key: What the chains' hashes are keyed with: 32 bytes.
        """
        self._tx = tx
        self._key = chain_key
        self.chains_count = 0
        self.receipts_count = 0

    async def run(self, anchor: Heads | None = None) -> AsyncIterator[ChainBroken]:
        """Yield every break."""
        for row in await self._tx.all("receipts.strays", most=_PAGE):
            yield _stray(row)
        anchored = {} if anchor is None else {head.chain: head for head in anchor.heads}
        async for chain in self._chains():
            self.chains_count += 1
            async for broken in self.chain(chain, anchored.pop(chain.chain_id, None)):
                yield broken
        for head in anchored.values():
            if head.index:
                yield ChainBroken(head.chain, head.index, "", "head_mismatch")
        async for broken in self._intents():
            yield broken

    async def one(self, name: str) -> AsyncIterator[ChainBroken]:
        """Yield every break of one chain, given by its id or by its run."""
        for chain_name in (name, chain_id(name, "", "")):
            row = await self._tx.one("chains.get", chain_id=chain_name)
            if row is not None:
                self.chains_count += 1
                async for broken in self.chain(row):
                    yield broken

    async def _chains(self) -> AsyncIterator[Row]:
        after = ""
        while rows := await self._tx.all("chains.list", after=after, most=_PAGE):
            for row in rows:
                yield row
            after = rows[-1].chain_id

    async def chain(self, chain: Row, anchor: Head | None = None) -> AsyncIterator[ChainBroken]:
        """Yield the breaks of one chain."""
        name: str = chain.chain_id
        walk = _Walk(chain, self._key)
        if anchor is not None and anchor.index == walk.index and anchor.hash != walk.hash.hex():
            yield ChainBroken(name, anchor.index, "", "head_mismatch")
        previous: Row | None = None
        async for row, following in self._pairs(name):
            self.receipts_count += 1
            if row.chain_index <= walk.index:
                # They come in order, so it is below where the chain begins, where no receipt can be.
                yield ChainBroken(name, row.chain_index, row.receipt_id, _COLUMN)
                continue
            if row.chain_index != walk.index + 1:
                moved = await self._moved(name, walk.hash)
                blamed, why = (row, _MISSING) if moved is None else (moved, _COLUMN)
                yield ChainBroken(name, walk.index + 1, blamed.receipt_id, why)
                walk.go_on(row.chain_index - 1, row.prev_hash)
            rewritten, why_not = walk.judge(row, previous, following)
            if why_not is not None:
                blamed = previous if rewritten and previous is not None else row
                yield ChainBroken(name, blamed.chain_index, blamed.receipt_id, why_not)
            walk.go_on(row.chain_index, row.hash, row.sequence)
            if anchor is not None and anchor.index == walk.index and anchor.hash != row.hash.hex():
                yield ChainBroken(name, walk.index, row.receipt_id, "head_mismatch")
            previous = row
        for why in walk.end(anchor):
            yield ChainBroken(
                name, walk.index + (why == _MISSING), "" if previous is None else previous.receipt_id, why
            )

    async def _pairs(self, chain: str) -> AsyncIterator[tuple[Row, Row | None]]:
        """Yield the receipts of a chain, each with the one after it."""
        after, held = _BEFORE_ALL, None
        while rows := await self._tx.all("receipts.chain", chain_id=chain, after=after, most=_PAGE):
            for row in rows:
                if held is not None:
                    yield held, row
                held = row
            after = rows[-1].chain_index
        if held is not None:
            yield held, None

    async def _moved(self, chain: str, previous: bytes) -> Row | None:
        """Find the receipt that belongs where there is none, under another index."""
        async for row, _ in self._pairs(chain):
            if row.prev_hash == previous:
                return row
        return None

    async def _intents(self) -> AsyncIterator[ChainBroken]:
        after = ""
        while rows := await self._tx.all("intents.ended", after=after, most=_PAGE):
            for row in rows:
                if (why := _intent_break(row)) is not None:
                    yield ChainBroken(row.chain_id or "", row.chain_index or 0, _receipt_of(row), why)
            after = rows[-1].id


_MISSING: Final[ChainBreak] = "missing_row"
_COLUMN: Final[ChainBreak] = "column_mismatch"


def _stray(row: Row) -> ChainBroken:
    receipt = _read(row.body)
    # Either the receipt was moved to a chain that there is not, or the chain's row is gone.
    own = receipt is not None and _chain_of(receipt) == row.chain_id
    return ChainBroken(row.chain_id, row.chain_index, row.receipt_id, _MISSING if own else _COLUMN)


def _intent_break(row: Row) -> ChainBreak | None:
    if row.receipt_id is None:
        return "orphan_intent"
    own = f"r:{row.receipt_id}" if row.idempotency_key is None else f"k:{row.idempotency_key}"
    if (row.row_client_id, row.row_adapter_id, own) != (row.client_id, row.adapter_id, row.claim_key):
        return "orphan_intent"
    return _COLUMN if row.request_digest not in (None, row.intent_digest) else None


def _receipt_of(row: Row) -> str:
    if row.receipt_id is not None:
        return str(row.receipt_id)
    try:
        return wire.restore(row.context, ReceiptContext).receipt_id
    except ValidationError:
        return ""


class _Walk:
    """Where the check of a chain stands."""

    def __init__(self, chain: Row, key: bytes | None) -> None:
        self._chain = chain
        self._key = key
        self._newest = 0
        self.index: int = chain.base_index
        self.hash: bytes = chain.base_hash if chain.base_hash is not None else genesis(chain.chain_id, key=key)

    def go_on(self, index: int, hashed: bytes, sequence: int | None = None) -> None:
        self.index, self.hash = index, hashed
        if sequence is not None and self._chain.run_id is not None:
            self._newest = max(self._newest, sequence)

    def judge(self, row: Row, previous: Row | None, following: Row | None) -> tuple[bool, ChainBreak | None]:
        """Say what is wrong with a receipt, and whether it is the one before it that is to blame."""
        expected = self._link(row, self.hash)
        if expected == row.hash:
            return False, _sound_break(row, self.hash)
        receipt = _read(row.body)
        if receipt is None or full_digest(receipt) != row.full_digest or wire.encode(receipt) != row.body:
            return False, "body_changed"
        if row.prev_hash != self.hash and self._link(row, row.prev_hash) == row.hash:
            # This receipt fits what was here: the one before it, or where the chain begins, was written anew.
            return previous is not None, "head_mismatch" if previous is None else "body_changed"
        newest = self._chain.head_hash if following is None else following.prev_hash
        if expected == newest:
            return False, _COLUMN
        if not _reads_well(row.annotations):
            return False, "annotations_changed"
        after = previous is None or previous.recorded_at <= row.recorded_at
        before = row.recorded_at <= (self._chain.updated_at if following is None else following.recorded_at)
        return False, "annotations_changed" if after and before else _COLUMN

    def _link(self, row: Row, previous: bytes) -> bytes:
        try:
            return link(
                previous,
                index=row.chain_index,
                recorded_at=row.recorded_at,
                body=row.body,
                annotations=row.annotations,
                key=self._key,
            )
        except Exception:  # noqa: BLE001 - a number that no link can hold was never linked
            return b""

    def end(self, anchor: Head | None) -> list[ChainBreak]:
        """Say what is wrong with the chain as a whole."""
        chain, found = self._chain, list[ChainBreak]()
        untouched = chain.head_index == 0 and chain.head_hash is None
        own = untouched or chain.head_hash == self.hash
        if chain.head_index > self.index and not own:
            found.append(_MISSING)
        elif chain.head_index != self.index or not own:
            found.append("head_mismatch")
        elif anchor is not None and anchor.index > self.index:
            found.append(_MISSING)
        if chain.last_sequence < self._newest:
            found.append("counter_below_sequence")
        if chain.run_id is not None and chain.chain_id != chain_id(chain.run_id, "", ""):
            found.append(_COLUMN)
        return found


def _sound_break(row: Row, previous: bytes) -> ChainBreak | None:
    """Say what is wrong with a receipt whose hash is right."""
    if row.prev_hash != previous:
        return _COLUMN
    try:
        receipt = wire.decode(row.body, LifecycleReceipt)
    except ValidationError:
        return "body_invalid"
    if _SAID_BESIDE(row) != _SAID_WITHIN(receipt) or row.chain_id != _chain_of(receipt):
        return _COLUMN
    if (row.full_digest, row.semantic_digest) != (full_digest(receipt), semantic_digest(receipt)):
        return _COLUMN
    if row.origin not in get_args(Origin) or not _is_response(row.response):
        return _COLUMN
    return None


_COLUMNS: Final[Mapping[str, str]] = {
    "receipt_id": "receipt_id",
    "client_id": "client_id",
    "adapter_id": "adapter_id",
    "idempotency_key": "idempotency_key",
    "run_id": "harness_run_id",
    "session_id": "harness_session_id",
    "sequence": "sequence",
    "event": "event",
    "status": "status",
    "failure_class": "failure_class",
    "label": "schema_version",
    "at_epoch_s": "at_epoch_s",
}
_SAID_BESIDE = operator.attrgetter(*_COLUMNS)
_SAID_WITHIN = operator.attrgetter(*_COLUMNS.values())


def _chain_of(receipt: LifecycleReceipt) -> str:
    return chain_id(receipt.harness_run_id, receipt.client_id, receipt.adapter_id)


def _read(body: bytes) -> LifecycleReceipt | None:
    try:
        return wire.decode(body, LifecycleReceipt)
    except ValidationError:
        return None


def _is_response(data: bytes | None) -> bool:
    if data is None:
        return True
    try:
        wire.decode(data, CallbackResponse)
    except ValidationError:
        return False
    return True


def _reads_well(notes: bytes) -> bool:
    """Whether annotations are JSON as it is written here, whatever they say."""
    try:
        value: Any = msgspec.json.decode(notes)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return isinstance(value, dict) and len(canonical(value)) == len(notes)
