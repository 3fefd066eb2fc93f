"""The counters of the lifecycle, named as the reference documents them.

Invariants:
    - A label is a word of a closed set: never an id, a client's or a harness's, nor anything else that users write.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from holdfast.core.trace import Counter, Histogram

if TYPE_CHECKING:
    from holdfast.lifecycle.documents import LifecycleReceipt

__all__ = ["METRICS", "recorded"]

ITEMS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Buckets for the entries of a transaction, up to the most that share one."""


class Metrics:
    """What this process has counted."""

    def __init__(self) -> None:
        prefix = "holdfast_lifecycle_"
        self.receipts = Counter(prefix + "receipts_total", "Receipts recorded, by event and status", "event", "status")
        self.events = Counter(prefix + "events_total", "Events that were dispatched, by how that ended", "outcome")
        self.client_calls = Counter(
            prefix + "client_calls_total", "Calls of clients, by what they answered or how they failed", "result"
        )
        self.client_seconds = Histogram(prefix + "client_seconds", "Calls of clients")
        self.record_seconds = Histogram(prefix + "record_seconds", "From asking to record to the acknowledgement")
        self.batch_items = Histogram(prefix + "batch_items", "Entries that shared a transaction", buckets=ITEMS)
        self.hooks = Counter(prefix + "hooks_total", "Hook calls that were answered, by what became of them", "result")
        self.hook_seconds = Histogram(prefix + "hook_seconds", "Hook calls, until their answer is there")
        self.recovered = Counter(prefix + "recovered_total", "Calls of dead callers that were closed")
        self.lost = Counter(prefix + "lost_total", "Answers that came when the claim was somebody else's")
        self.listener_failures = Counter(prefix + "listener_failures_total", "Receipts whose listener raised")


METRICS: Final = Metrics()


def recorded(receipts: Iterable[LifecycleReceipt]) -> None:
    """Count receipts that are new, after the commit that holds them."""
    for receipt in receipts:
        METRICS.receipts.add(1, receipt.event, receipt.status)
