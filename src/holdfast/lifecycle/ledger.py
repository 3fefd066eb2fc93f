"""What the ledger knows of receipts, over a transaction of the caller's: all of it, under one roof.

    sheet        what one transaction works on
    recording    number, check and record receipts; replays and conflicts
    intents      claim an event before its client is called, settle it, recover
    gaps         numbers that no receipt has
    audit        prove that nothing was changed
    exports      receipts as a file, and back

Here are the plain questions, and pruning.

Invariants:
    - Everything here runs in the caller's transaction, and is undone with it.
    - A chain that was pruned goes on: counter, head and hash stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.core import points
from holdfast.lifecycle.audit import Verified, verify
from holdfast.lifecycle.chain import chain_id
from holdfast.lifecycle.documents import LifecycleReceipt, ReceiptKey
from holdfast.lifecycle.exports import ReplayCounts, export, replay, verify_file
from holdfast.lifecycle.gaps import Gap, gaps, raise_gaps
from holdfast.lifecycle.intents import (
    Claim,
    Claimed,
    Close,
    InFlight,
    IntentId,
    Lease,
    Lost,
    Pending,
    Proceed,
    Replay,
    Settle,
    Settled,
    claim,
    claim_key,
    expire,
    intent_id,
    pending,
    recover,
    renew,
    settle,
)
from holdfast.lifecycle.recording import Draft, Emit, Entry, Put, Recorded, emit, put, record, record_one
from holdfast.lifecycle.sheet import CHANNEL, Conflict, Identity, Inserted, Origin, Replayed, Sheet, Stored, stored_of
from holdfast.store.database import Row, Tx

__all__ = [
    "CHANNEL", "Claim", "Claimed", "Close", "Conflict", "Draft", "Emit", "Entry", "Gap", "Identity", "InFlight",
    "Inserted", "IntentId", "Lease", "Lost", "Origin", "Pending", "Proceed", "Pruned", "Put", "Recorded", "Replay",
    "ReplayCounts", "Replayed", "Settle", "Settled", "Stored", "Verified", "claim", "claim_key", "emit", "expire",
    "export", "find", "gaps", "get", "intent_id", "list_receipts", "next_sequence", "peek_sequence", "pending",
    "prune", "put", "raise_gaps", "record", "record_one", "recover", "renew", "replay", "settle", "show", "verify",
    "verify_file",
]  # fmt: skip

points.register("receipts.pruned")


async def find(tx: Tx, identity: ReceiptKey | Identity) -> Stored | None:
    """Return a receipt with all that is known of it, by its key, or by what tells it apart without one."""
    if isinstance(identity, ReceiptKey):
        identity = (identity.client_id, identity.adapter_id, identity.idempotency_key, "")
    if any("\0" in text for text in identity if text is not None):
        return None
    sheet = Sheet(tx, now=0)
    await sheet.find([identity])
    return sheet.stored(identity)


async def get(tx: Tx, key: ReceiptKey) -> LifecycleReceipt | None:
    """Return the receipt of a key, exactly as it was recorded."""
    found = await find(tx, key)
    return None if found is None else found.receipt


async def show(tx: Tx, receipt_id: str, *, limit: int = 100) -> list[Stored]:
    """Return the receipts of an id, newest first; among those with a key it need not be unique."""
    return _stored(await tx.all("receipts.named", receipt_id=receipt_id, most=limit))


async def list_receipts(  # noqa: PLR0913 - one filter each
    tx: Tx,
    *,
    run_id: str | None = None,
    session_id: str | None = None,
    client_id: str | None = None,
    event: str | None = None,
    status: str | None = None,
    since: int | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Stored]:
    """Return receipts, newest first.

    Args:
        tx: A transaction.
        run_id: Only of this run.
        session_id: Only of this session of a harness.
        client_id: Only for this client.
        event: Only of this event.
        status: Only of this status.
        since: Only those recorded from then on, microseconds.
        before: Only those before this row, to read on.
        limit: How many at most.
    """
    narrowed: dict[str, object] = {
        "client_id": client_id, "event": event, "status": status, "since": since, "before": before, "most": limit,
    }  # fmt: skip
    if run_id is not None:
        return _stored(await tx.all("receipts.of_run", run_id=run_id, session_id=session_id, **narrowed))
    if session_id is not None:
        return _stored(await tx.all("receipts.of_session", session_id=session_id, **narrowed))
    return _stored(await tx.all("receipts.list", **narrowed))


def _stored(rows: Sequence[Row]) -> list[Stored]:
    return [stored_of(row) for row in rows]


async def peek_sequence(tx: Tx, run_id: str) -> int:
    """Return the newest number of a run; 0 where there is none."""
    row = await tx.one("chains.peek", run_id=run_id)
    return 0 if row is None else row.last_sequence


async def next_sequence(tx: Tx, run_id: str, *, now: int) -> int:
    """Move a run's counter without a receipt, which leaves a gap; return where it is then."""
    chain = chain_id(run_id, "", "")
    sheet = Sheet(tx, now=now)
    await sheet.hold([(chain, run_id)])
    number = sheet.skip_sequence(chain)
    await sheet.write()
    return number


class Pruned(msgspec.Struct, frozen=True):
    """What was dropped."""

    chains_count: int
    receipts_count: int


async def prune(tx: Tx, *, before: int, now: int, limit: int = 100) -> Pruned:
    """Drop the receipts of chains to which nothing was added for long. Their keys are forgotten.

    Args:
        tx: A transaction that may write.
        before: Chains that changed last before this are dropped, microseconds.
        now: When, microseconds.
        limit: How many chains at most; call again while there are as many.
    """
    idle = {row.chain_id: row for row in await tx.all("chains.idle", before=before, most=limit)}
    sheet = Sheet(tx, now=now)
    await sheet.hold((row.chain_id, row.run_id) for row in idle.values())
    # Somebody may have added to one before it was locked.
    still = {row.chain_id for row in await tx.all("chains.idle", before=before, most=limit)}
    chains = [(name,) for name in sorted(idle.keys() & still)]
    await tx.run("intents.prune", chains)
    count = await tx.run("receipts.prune", chains)
    await tx.run("chains.prune", [(now, name) for (name,) in chains])
    if points.armed:
        points.reach("receipts.pruned")
    return Pruned(len(chains), count)
