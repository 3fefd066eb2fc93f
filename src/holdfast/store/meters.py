"""What the writer tells about itself."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from holdfast.core.trace import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from holdfast.store.batch import Batch
    from holdfast.store.writer import Writer

__all__ = ["observe_batch", "restarts", "watch"]

_commit_seconds = Histogram("holdfast_durable_commit_seconds", "From a batch's start to its commit's answer")
_batch_items = Histogram(
    "holdfast_durable_batch_items", "Appends in a commit", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
_ack_seconds = Histogram("holdfast_durable_ack_seconds", "From taking an append in to its acknowledgement")
restarts = Counter("holdfast_durable_writer_restarts_total", "Times a lane was reopened after a failure")
_queue_items = Gauge("holdfast_durable_queue_items", "Appends accepted and not settled")
_queue_bytes = Gauge("holdfast_durable_queue_bytes", "Their bytes")


def observe_batch(batch: Batch, due: float) -> None:
    """Count a committed batch.

    Args:
        due: When an append that is taken in now would be due.
    """
    _commit_seconds.observe(time.perf_counter() - batch.began)
    _batch_items.observe(len(batch.items))
    # Appends of a batch came in together, or nearly so: the oldest stands for all, as one sample.
    waited = due - batch.items[0].due
    if waited > -math.inf:  # else it was overdue, and its caller told so
        _ack_seconds.observe(waited)


_writers: WeakSet[Writer] = WeakSet()
_queue_items.follow(lambda: sum(writer.pending_items for writer in _writers))
_queue_bytes.follow(lambda: sum(writer.pending_bytes for writer in _writers))


def watch(writer: Writer) -> None:
    """Let the gauges of the queue tell of a writer for as long as it lives."""
    _writers.add(writer)
