"""What a guard tells about its work: events, metrics, and how long handlers take.

A *decision* is the one event of a keyed or refused request; a *notice* is something else worth knowing.

Invariants:
    - No event, metric or log line holds a key, a principal, a header's value or a payload.
    - Events reach `on_event` in the order they happen; its failures are counted and stop nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakSet

from holdfast.core.trace import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.idempotency.claims import Ticket

__all__ = ["DecisionKind", "IdempotencyEvent", "NoticeKind", "Observer", "claim_seconds", "settle_seconds"]

DecisionKind: TypeAlias = Literal[
    "proceed", "replay", "executed", "in_flight", "reused", "unknown", "refused", "unprotected", "observed", "abandoned"
]
NoticeKind: TypeAlias = Literal[
    "waited", "reclaimed", "lease_lost", "completion_retry", "completion_lost", "tombstoned", "released",
    "marked_unknown", "result_differs", "transaction_misused", "weak_key", "forced", "breaker",
]  # fmt: skip

WEAK_EVERY_S = 60.0
"""Weak keys come in crowds: one notice a minute says enough."""
TIMES_KEPT = 128
"""Handler times per route that the percentile is taken from: enough for a tenth of them to mean something."""
ROUTES_MAX = 1024
"""Routes whose times are kept. Routes are templates and names in the program; more of them is a mistake."""
SLOW = 0.9

_log = logging.getLogger("holdfast.idempotency")

_prefix = "holdfast_idempotency_"
_requests = Counter(_prefix + "requests_total", "Keyed or refused requests, by what was decided", "route", "outcome")
_notices = Counter(_prefix + "notices_total", "Other things worth knowing, by kind", "kind")
_event_failures = Counter(_prefix + "event_failures_total", "Events whose receiver raised")
_store_failures = Counter(_prefix + "store_failures_total", "Calls of the ledger that failed or took too long")
claim_seconds = Histogram(_prefix + "claim_seconds", "From asking for a key to the decision")
settle_seconds = Histogram(_prefix + "settle_seconds", "From an outcome to its acknowledgement")
_handler_seconds = Histogram(_prefix + "handler_seconds", "Runs of handlers", "route")
_in_flight = Gauge(_prefix + "in_flight", "Claims this process holds")
_waiting = Gauge(_prefix + "waiting", "Duplicates that wait in this process")
_unknown = Gauge(_prefix + "unknown", "Records whose outcome is unknown, when the ledger was last swept")
_pending_settles = Gauge(_prefix + "pending_settles", "Outcomes that wait for the ledger to come back")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyEvent:
    """Something that happened to a request or a record.

    Attributes:
        kind: A decision's or a notice's.
        at: When, in microseconds since the epoch, UTC.
        method: Of the request; `CALL` for a function; empty where there is none.
        route: The rule's path, else the endpoint's, else `*`; empty where there is none.
        status: Of the answer, if it is an answer.
        code: Of the refusal, or what a notice says more.
        key_ref: Names the key: 12 hex digits.
        scope_ref: Names the principal: 12 hex digits.
        attempt: Which run it is about.
        latency_us: From the request's arrival to the decision's answer, in microseconds.
    """

    kind: DecisionKind | NoticeKind
    at: int
    method: str = ""
    route: str = ""
    status: int | None = None
    code: str | None = None
    key_ref: str | None = None
    scope_ref: str | None = None
    attempt: int | None = None
    latency_us: int | None = None


class Observer:
    """Whom a guard tells.

    Attributes:
        in_flight: How many claims it holds; read by the gauge.
        waiting: How many duplicates wait.
        pending: How many settles wait for the ledger.
        unknown: How many records were unknown when last counted.
    """

    def __init__(self, clock: Clock, on_event: Callable[[IdempotencyEvent], object] | None = None) -> None:
        self.clock = clock
        self.in_flight: Callable[[], int] = int
        self.pending: Callable[[], int] = int
        self.waiting = 0
        self.unknown = 0
        self._on_event = on_event
        self._times: dict[str, deque[float]] = {}
        self._weak_at: float | None = None
        _observers.add(self)

    def decision(self, kind: DecisionKind, route: str, event: Callable[[], IdempotencyEvent]) -> None:
        """Tell how a keyed or refused request was decided; once for each. `event` makes what `on_event` is told."""
        _requests.add(1, route, kind)
        if self._on_event is not None:
            self._emit(event())

    def notice(
        self,
        kind: NoticeKind,
        ticket: Ticket | None = None,
        *,
        code: str | None = None,
        attempt: int | None = None,
        key_ref: str | None = None,
    ) -> None:
        """Tell of something else.

        Args:
            kind: What it is.
            ticket: The request it is about, if there is one.
            code: What more there is to say, such as the reason of a tombstone.
            attempt: The run it is about.
            key_ref: The key, where there is no ticket.
        """
        _notices.add(1, kind)
        if self._on_event is None:
            return
        now = self.clock.now()
        if ticket is None:
            self._emit(IdempotencyEvent(kind=kind, at=now, code=code, attempt=attempt, key_ref=key_ref))
        else:
            self._emit(
                IdempotencyEvent(
                    kind=kind, at=now, method=ticket.method, route=ticket.route, code=code, attempt=attempt,
                    key_ref=ticket.key_ref, scope_ref=ticket.scope_ref,
                )
            )  # fmt: skip

    def weak_key(self, ticket: Ticket | None = None) -> None:
        """Notice a key that is short or all digits; at most once a minute."""
        now = self.clock.monotonic()
        if self._weak_at is None or now - self._weak_at >= WEAK_EVERY_S:
            self._weak_at = now
            self.notice("weak_key", ticket)

    def store_failure(self) -> None:
        """Count a call of the ledger that failed or took too long."""
        _store_failures.add(1)

    def handled(self, route: str, seconds: float) -> None:
        """Note how long a handler ran."""
        _handler_seconds.observe(seconds, route)
        times = self._times.get(route)
        if times is None:
            if len(self._times) >= ROUTES_MAX:
                return
            times = self._times[route] = deque(maxlen=TIMES_KEPT)
        times.append(seconds)

    def p90_us(self, route: str) -> int | None:
        """Return the 90th percentile of a route's latest handler times in microseconds; None before the first."""
        times = sorted(self._times.get(route, ()))
        return int(times[min(int(len(times) * SLOW), len(times) - 1)] * 1_000_000) if times else None

    def _emit(self, event: IdempotencyEvent) -> None:
        assert self._on_event is not None
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - somebody else's code; the request goes on
            _event_failures.add(1)
            _log.warning("on_event failed for a %s event: %s", event.kind, type(error).__qualname__)


_observers: WeakSet[Observer] = WeakSet()
_in_flight.follow(lambda: sum(each.in_flight() for each in _observers))
_waiting.follow(lambda: sum(each.waiting for each in _observers))
_unknown.follow(lambda: sum(each.unknown for each in _observers))
_pending_settles.follow(lambda: sum(each.pending() for each in _observers))
