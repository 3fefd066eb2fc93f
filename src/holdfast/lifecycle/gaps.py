"""Find numbers of a run that no receipt has, and tell of them.

Invariants:
    - A gap is told of once: the key of its receipt is made of the run and the range.
    - The receipt of a gap belongs to no run, so it takes no number and leaves no gap.
"""

from __future__ import annotations

import msgspec
from blake3 import blake3

from holdfast.lifecycle.chain import canonical
from holdfast.lifecycle.documents import LifecycleReceipt, ReceiptKey, warning
from holdfast.lifecycle.errors import LifecycleError
from holdfast.lifecycle.recording import Put, record
from holdfast.lifecycle.sheet import Inserted, stored_of
from holdfast.store.database import Tx

__all__ = ["Gap", "gaps", "raise_gaps"]


class Gap(msgspec.Struct, frozen=True):
    """Numbers that are missing in a run, the first and the last one included."""

    run_id: str
    first: int
    last: int


async def gaps(tx: Tx, run_id: str | None = None) -> list[Gap]:
    """Return the missing numbers between 1 and the counter, of one run or of all.

    Numbers that went when a run was pruned are not missed.
    """
    return [Gap(*row) for row in await tx.all("receipts.gaps", run_id=run_id)]


async def raise_gaps(
    tx: Tx, run_id: str | None = None, *, now: int, chain_key: bytes | None = None
) -> list[LifecycleReceipt]:
    """Record one receipt for each gap that has none; return those that are new.

    It takes client, adapter and mode from the receipt after the gap; a gap that has none after it has to wait.

    Args:
        tx: A transaction that may write.
        run_id: The run; None: all.
        now: When, microseconds.
        chain_key: What the chains' hashes are keyed with: 32 bytes.
    """
    entries = []
    for gap in await gaps(tx, run_id):
        row = await tx.one("receipts.following", run_id=gap.run_id, sequence=gap.last)
        if row is not None:
            receipt = _receipt(gap, stored_of(row).receipt, now)
            key = ReceiptKey(receipt.client_id, receipt.adapter_id, receipt.idempotency_key or "")
            entries.append(Put(key, receipt, "semantic", origin="emit"))
    found = await record(tx, entries, now=now, chain_key=chain_key) if entries else []
    for each in found:
        if isinstance(each, LifecycleError):
            raise each
    return [each.receipt for each in found if isinstance(each, Inserted)]


def _receipt(gap: Gap, after: LifecycleReceipt, now: int) -> LifecycleReceipt:
    name = blake3(canonical(["gap", gap.run_id, gap.first, gap.last])).hexdigest()[:32]
    missing = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    return LifecycleReceipt(
        schema_version=after.schema_version,
        receipt_id=f"gap_{name}",
        idempotency_key=f"gap_{name}",
        client_id=after.client_id,
        adapter_id=after.adapter_id,
        invocation_id=f"inv_{name}",
        event="receipt.gap_detected",
        event_id=f"evt_{name}",
        sequence=None,
        parent_receipt_id=after.receipt_id,
        integration_mode=after.integration_mode,
        status="observed",
        at_epoch_s=now // 1_000_000,
        harness_session_id=after.harness_session_id,
        warnings=(warning("sequence_gap", f"no receipt has the number {missing} of run {gap.run_id}"),),
    )
