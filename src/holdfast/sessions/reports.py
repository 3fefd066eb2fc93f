"""What operators ask for and are told: selectors and filters of repairs, and what each of them changes. Pure.

Invariants:
    - A report of a dry run differs from that of the work in `dry_run` and the new id, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from holdfast.sessions.overlays import Attribution
from holdfast.sessions.parents import ParentState
from holdfast.sessions.views import Total, TotalTokens

__all__ = [
    "Attributed",
    "AttributedSession",
    "AttributedTurn",
    "AttributionReport",
    "DeleteReport",
    "Place",
    "RepriceReport",
    "Selector",
    "SessionRef",
    "SessionTotals",
    "TurnFilters",
]  # fmt: skip

SessionRef: TypeAlias = str | tuple[str, str]
"""A session: its id, or harness id and harness session id."""


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What was deleted, or would be.

    Attributes:
        events: Captured events, with their bodies.
        turns: Turns that are gone.
        moved: Turns that other events tell of too: they are in the sessions of those now.
    """

    session_id: str
    events: int
    turns: int
    moved: int


# --- attributions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which events are put elsewhere: some, or those of a session, or those of one thread of it.

    A session is meant by what was sent: what comes later under its key is put there too. One that was made here,
    because nobody named one, stands for the events that it has now.

    Attributes:
        event_ids: Some events.
        session: Those that were sent as of this session.
        thread_id: Only those of this thread of it, empty for the main one; None: of all.
    """

    event_ids: tuple[str, ...] = ()
    session: SessionRef | None = None
    thread_id: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a turn is."""

    harness_id: str
    harness_session_id: str
    thread_id: str


@dataclass(frozen=True, slots=True)
class AttributedTurn:
    """A turn whose place, or whose parts, change; None: it is not there then."""

    turn_id: str
    before: Place | None
    after: Place | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTotals:
    """What a session comes to.

    Attributes:
        parent: The linked parent's harness id and harness session id with a slash between them; None: there is none.
    """

    turn_count: int
    failed_turn_count: int
    tokens: TotalTokens
    cost: Total
    parent: str | None
    parent_state: ParentState


@dataclass(frozen=True, slots=True)
class AttributedSession:
    """A session whose turns change; None: it is not there then."""

    harness_id: str
    harness_session_id: str
    before: SessionTotals | None
    after: SessionTotals | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionReport:
    """What an attribution, or taking one back, changes.

    Attributes:
        attribution_id: What takes it back; empty: it was not made.
        events: How many events it selects.
    """

    attribution_id: str
    dry_run: bool
    events: int
    turns: tuple[AttributedTurn, ...]
    sessions: tuple[AttributedSession, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """An attribution on record.

    Attributes:
        selector: Which events: `events`, or `session` and perhaps `thread_id`.
        undone_at: When it was taken back; None: it is in force.
    """

    attribution_id: str
    selector: Mapping[str, Any]
    change: Attribution
    reason: str
    actor: str
    created_at: datetime
    undone_at: datetime | None


# --- prices -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFilters:
    """Which turns: each that is set must fit exactly.

    Attributes:
        since: Captured at this instant or later.
        until: Captured before it.
    """

    session: SessionRef | None = None
    model: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepriceReport:
    """What pricing again changes.

    Attributes:
        turns: Turns that fit, and whose usage is known.
        repriced: Those whose price is another; each has a new line in the ledger of costs.
        unknown: Those of which no source knows a price: they keep what they have.
        provided: Those that cost what the caller said, whatever the price.
        before: What they cost together.
        after: What they cost then.
    """

    dry_run: bool
    turns: int
    repriced: int
    unknown: int
    provided: int
    before: Total
    after: Total
