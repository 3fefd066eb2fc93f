"""The counters of captured sessions, named as the reference documents them.

Invariants:
    - A label is a word of a closed set: never an org, a session, a path, or anything else that users write.
"""

from __future__ import annotations

from typing import Final

from holdfast.core.trace import Counter, Gauge, Histogram
from holdfast.sessions.providers import PROVIDERS
from holdfast.sessions.redact import BUILTIN

__all__ = ["METRICS", "provider_label", "rule_label"]


class Metrics:
    """What this process has counted."""

    def __init__(self) -> None:
        prefix = "holdfast_sessions_"
        self.events = Counter(
            prefix + "events_total", "Events that were offered, by source and outcome", "source", "outcome"
        )
        self.rejected = Counter(prefix + "rejected_total", "Requests and calls that were refused, by code", "code")
        self.dropped = Counter(
            prefix + "dropped_total", "Bodies that were not kept of calls that were stored, by reason", "reason"
        )
        self.derived = Counter(prefix + "derive_total", "Derivations, by what they ended in", "result")
        self.derive_lag = Gauge(prefix + "derive_lag_seconds", "Age of the oldest event that waits to be derived")
        self.pending = Gauge(prefix + "pending_events", "Events that wait to be derived")
        self.dead = Gauge(prefix + "dead_events", "Events that were set aside")
        self.unparsed = Gauge(prefix + "unparsed_events", "Events that nobody here can read")
        self.inflight_items = Gauge(prefix + "inflight_items", "Bodies between first byte and commit")
        self.inflight_bytes = Gauge(prefix + "inflight_bytes", "What these weigh, decoded")
        self.commit_seconds = Histogram(prefix + "commit_seconds", "From offering an event to its being on disk")
        self.turns = Counter(prefix + "turns_total", "Turns that are new, by provider and status", "provider", "status")
        self.unpriced = Counter(prefix + "unpriced_turns", "New turns without a price")
        self.unmeasured = Counter(prefix + "unmeasured_turns", "New turns without a count of tokens")
        self.packed = Counter(prefix + "packed_total", "Requests that were packed, by what became of them", "result")
        self.redactions = Counter(prefix + "redactions_total", "Secrets that were taken out, by rule", "rule")


METRICS: Final = Metrics()


def provider_label(provider: str) -> str:
    """Return a provider's name where it is one that comes with the slice."""
    return provider if provider in PROVIDERS else "other"


def rule_label(rule: str) -> str:
    """Return a rule's name where it is one that comes with the slice."""
    return rule if rule in BUILTIN else "custom"
