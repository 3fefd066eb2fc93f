"""Check what the ledger promises about receipts: chains, columns and digests, counters, and intents.

All of it is looked at in one view, so that a ledger can be checked while it is being written.

Invariants:
    - A ledger that only this library has written has no problem, while it is being written and after any crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core import trace
from holdfast.lifecycle.audit import Audit
from holdfast.lifecycle.errors import ChainBreak, ChainBroken

if TYPE_CHECKING:
    from holdfast.store.database import Database

__all__ = ["Problem", "VerifyReport", "verify"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken promise.

    Attributes:
        receipt_id: The receipt; empty when none is to blame.
        table: Where.
        row: Which row: its chain and its place in the chain.
        code: A stable name of the promise.
        message: What is wrong.
    """

    receipt_id: str
    table: str
    row: str
    code: ChainBreak
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        ok: Whether there is no problem.
        checked_count: Receipts checked.
        problems: What is broken.
    """

    ok: bool
    checked_count: int
    problems: tuple[Problem, ...]


async def verify(database: Database, chain: str | None = None, *, chain_key: bytes | None = None) -> VerifyReport:
    """Check every chain and every intent, or one chain.

    Args:
        database: The ledger; one that is open for reading only will do.
        chain: The id of a chain, or of a run; None: everything.
        chain_key: What the chains' hashes are keyed with: 32 bytes.
    """
    with trace.span("holdfast.lifecycle.verify") as span:
        async with database.read() as tx:
            audit = Audit(tx, chain_key=chain_key)
            found = audit.run() if chain is None else audit.one(chain)
            problems = [_problem(broken) async for broken in found]
        span.set(receipts=audit.receipts_count, problems=len(problems))
    return VerifyReport(not problems, audit.receipts_count, tuple(problems))


def _problem(broken: ChainBroken) -> Problem:
    return Problem(
        receipt_id=broken.receipt_id,
        table=_TABLES.get(broken.why, "lifecycle_receipts"),
        row=f"{broken.chain} {broken.index}".strip(),
        code=broken.why,
        message=_MESSAGES[broken.why],
    )


_TABLES: dict[ChainBreak, str] = {
    "head_mismatch": "lifecycle_chains",
    "counter_below_sequence": "lifecycle_chains",
    "orphan_intent": "lifecycle_intents",
}
_MESSAGES: dict[ChainBreak, str] = {
    "body_changed": "the receipt is not the one that was recorded",
    "annotations_changed": "the annotations are not those that were recorded",
    "column_mismatch": "a column says something else than the receipt, or than its neighbours",
    "body_invalid": "the receipt was recorded so, but breaks a rule",
    "missing_row": "a receipt is missing",
    "head_mismatch": "the chain does not end, or begin, as its row says",
    "counter_below_sequence": "the run's counter is below a number that a receipt has",
    "orphan_intent": "the intent has ended, but its receipt is not there",
}
