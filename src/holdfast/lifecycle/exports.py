"""Receipts as a file of lines: out of a ledger, checked without one, and into another.

The first line names the format. Each receipt is a line, with the exact text of its body and annotations and the
hashes that tie it to the one before; the last line has the ends of all chains, so that a cut file shows.

Invariants:
    - A file that was written here and not changed verifies, and putting it into an empty ledger gives the same
      bodies and annotations.
    - Putting it in again changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

import msgspec

from holdfast.lifecycle import wire
from holdfast.lifecycle.audit import Head, Heads, Verified
from holdfast.lifecycle.chain import chain_id, genesis, link
from holdfast.lifecycle.documents import LifecycleReceipt, ReceiptKey
from holdfast.lifecycle.errors import ChainBreak, ChainBroken, LifecycleError, UndecodableDocument, ValidationError
from holdfast.lifecycle.gaps import raise_gaps
from holdfast.lifecycle.recording import Put, record
from holdfast.lifecycle.sheet import Conflict, Inserted
from holdfast.store.database import Row, Tx

__all__ = ["FORMAT", "ReplayCounts", "export", "replay", "verify_file"]

T = TypeVar("T", bound=msgspec.Struct)

FORMAT: Final = "holdfast.receipts.v1"
_PAGE: Final = 200
"""Receipts read or put at once."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str
    index: int
    recorded_at: int
    body: str
    annotations: str
    prev: str
    hash: str


class ReplayCounts(msgspec.Struct, frozen=True):
    """What became of a file's receipts.

    Attributes:
        inserted: How many are new.
        replayed: How many were there.
        conflicts: Those that others are in the way of.
        gaps: Receipts of gaps in the file's runs, where they are new.
    """

    inserted: int
    replayed: int
    conflicts: tuple[Conflict, ...]
    gaps: tuple[LifecycleReceipt, ...]


# --- out ----------------------------------------------------------------------------------------------


async def export(tx: Tx, run_id: str | None = None) -> AsyncIterator[bytes]:
    """Yield the lines of a file with all receipts, or with those of a run, each with its line end.

    Args:
        tx: A transaction, open until the last line was taken; one that only reads will do.
        run_id: The run; None: everything.
    """
    yield _written(_Header(FORMAT))
    heads, count = [], 0
    async for chain in _chains(tx, run_id):
        after = -1
        while rows := await tx.all("receipts.chain", chain_id=chain.chain_id, after=after, most=_PAGE):
            for row in rows:
                yield _written(_line(row))
            count += len(rows)
            after = rows[-1].chain_index
        if chain.head_hash is not None:
            heads.append(Head(chain.chain_id, chain.head_index, chain.head_hash.hex()))
    yield _written(Heads(tuple(heads), count))


async def _chains(tx: Tx, run_id: str | None) -> AsyncIterator[Row]:
    if run_id is not None:
        row = await tx.one("chains.get", chain_id=chain_id(run_id, "", ""))
        if row is not None:
            yield row
        return
    after = ""
    while rows := await tx.all("chains.list", after=after, most=_PAGE):
        for row in rows:
            yield row
        after = rows[-1].chain_id


def _line(row: Row) -> _Line:
    return _Line(
        chain=row.chain_id,
        index=row.chain_index,
        recorded_at=row.recorded_at,
        body=row.body.decode(),
        annotations=row.annotations.decode(),
        prev=row.prev_hash.hex(),
        hash=row.hash.hex(),
    )


def _written(line: msgspec.Struct) -> bytes:
    return msgspec.json.encode(line) + b"\n"


# --- check --------------------------------------------------------------------------------------------


def verify_file(lines: Iterable[bytes], *, chain_key: bytes | None = None) -> Verified | ChainBroken:
    """Check a file by itself; return the first break, if there is one.

    Args:
        lines: The file's lines with their line ends; an open file will do.
        chain_key: What the hashes are keyed with: 32 bytes.

    Raises:
        UndecodableDocument: It is no such file.
    """
    ends: dict[str, tuple[int, str]] = {}
    for count, line in enumerate(_read(lines)):
        if isinstance(line, Heads):
            return _ends_break(line, ends, count) or Verified(len(ends), count)
        if (why := _line_break(line, ends.get(line.chain), chain_key)) is not None:
            return ChainBroken(line.chain, line.index, _receipt_id(line), why)
        ends[line.chain] = line.index, line.hash
    raise AssertionError  # pragma: no cover - what is read ends with heads


def _line_break(line: _Line, end: tuple[int, str] | None, key: bytes | None) -> ChainBreak | None:
    if end is None:
        # A pruned chain begins in its middle: what it goes on from is not in the file.
        end = (0, genesis(line.chain, key=key).hex()) if line.index == 1 else (line.index - 1, line.prev)
    try:
        receipt = wire.decode(line.body, LifecycleReceipt)
        hashed = link(
            bytes.fromhex(end[1]),
            index=line.index,
            recorded_at=line.recorded_at,
            body=line.body.encode(),
            annotations=line.annotations.encode(),
            key=key,
        )
    except ValidationError:
        return "body_invalid"
    except Exception:  # noqa: BLE001 - numbers and digits that no link was ever made of
        return "column_mismatch"
    if line.index != end[0] + 1:
        return "missing_row"
    if line.prev != end[1] or line.chain != chain_id(receipt.harness_run_id, receipt.client_id, receipt.adapter_id):
        return "column_mismatch"
    # Only the hash speaks here, and it speaks of body and annotations alike.
    return None if line.hash == hashed.hex() else "body_changed"


def _ends_break(last: Heads, ends: dict[str, tuple[int, str]], count: int) -> ChainBroken | None:
    said = {head.chain: (head.index, head.hash) for head in last.heads}
    for chain, end in ends.items():
        if said.get(chain) != end:
            # A head that is further on is that of receipts that are not here any more.
            why: ChainBreak = "missing_row" if said.get(chain, end)[0] > end[0] else "head_mismatch"
            return ChainBroken(chain, end[0], "", why)
    return None if count == last.count else ChainBroken("", 0, "", "missing_row")


def _receipt_id(line: _Line) -> str:
    try:
        return wire.decode(line.body, LifecycleReceipt).receipt_id
    except ValidationError:
        return ""


def _read(lines: Iterable[bytes]) -> Iterator[_Line | Heads]:
    """Yield the lines after the first one; the last one, and no other, is the heads."""
    number = 0
    ended = False
    for number, line in enumerate(lines, 1):
        if ended:
            raise UndecodableDocument(f"line {number} comes after the end of the export")
        if number == 1:
            if _parsed(line, _Header, number).format != FORMAT:
                raise UndecodableDocument(f"the file is no export of format {FORMAT}")
            continue
        ended = line.startswith(b'{"heads":')
        yield _parsed(line, Heads, number) if ended else _parsed(line, _Line, number)
    if not ended:
        raise UndecodableDocument(f"the file is cut after line {number}: its last line is missing")


def _parsed(line: bytes, kind: type[T], number: int) -> T:
    try:
        found = msgspec.json.decode(line, type=kind)
        if _written(found) == line:
            return found
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    raise UndecodableDocument(f"line {number} is none of an export")


# --- in -----------------------------------------------------------------------------------------------


async def replay(tx: Tx, lines: Iterable[bytes], *, now: int, chain_key: bytes | None = None) -> ReplayCounts:
    """Put the receipts of a file into a ledger, each with its annotations; tell of gaps in their runs.

    Args:
        tx: A transaction that may write.
        lines: The file's lines with their line ends; an open file will do.
        now: When, microseconds.
        chain_key: What the hashes of this ledger are keyed with: 32 bytes.

    Raises:
        UndecodableDocument: It is no such file.
        LifecycleError: A body breaks a rule; nothing of the file may be committed then.
    """
    inserted = replayed = 0
    conflicts: list[Conflict] = []
    runs: set[str] = set()
    found_lines = (line for line in _read(lines) if isinstance(line, _Line))
    while entries := [_entry(line) for line in islice(found_lines, _PAGE)]:
        runs.update(entry.chain[1] for entry in entries if entry.chain[1] is not None)
        for found in await record(tx, entries, now=now, chain_key=chain_key):
            if isinstance(found, LifecycleError):
                raise found
            if isinstance(found, Conflict):
                conflicts.append(found)
            elif isinstance(found, Inserted):
                inserted += 1
            else:
                replayed += 1
    told = [receipt for run in sorted(runs) for receipt in await raise_gaps(tx, run, now=now, chain_key=chain_key)]
    return ReplayCounts(inserted, replayed, tuple(conflicts), tuple(told))


def _entry(line: _Line) -> Put:
    receipt = wire.decode(line.body, LifecycleReceipt)
    key = receipt.idempotency_key
    named = None if key is None else ReceiptKey(receipt.client_id, receipt.adapter_id, key)
    try:
        notes = msgspec.json.decode(line.annotations)
    except msgspec.MsgspecError:
        notes = None
    if not isinstance(notes, dict):
        raise UndecodableDocument("the annotations of a receipt are no JSON object")
    return Put(named, receipt, "strict", annotations=line.annotations.encode())
