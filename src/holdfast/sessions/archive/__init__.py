"""What the ledger knows of sessions: records, as functions over a transaction of the caller's.

    rows       columns and their encodings
    captures   events: accept, load, fail, replay
    work       what one transaction works on
    grouping, chains, standing, family, derive    the transaction of a turn

Invariants:
    - Everything but `accept` and `settle` runs in the caller's transaction, and is undone with it.
    - Every statement names the org.
"""

from holdfast.sessions.archive.captures import (
    Due,
    Event,
    Known,
    Loaded,
    StateCount,
    accept,
    count_states,
    event_state,
    fail,
    list_pending,
    load,
    recorded,
    replay,
    told_of,
)
from holdfast.sessions.archive.chains import packed
from holdfast.sessions.archive.derive import Folded, Lost, Outcome, Refused, Unparsed, derive, settle
from holdfast.sessions.archive.rows import Body, body_of
from holdfast.sessions.archive.work import Terms, Widen, hold, locks_of

__all__ = [
    "Body", "Due", "Event", "Folded", "Known", "Loaded", "Lost", "Outcome", "Refused", "StateCount", "Terms",
    "Unparsed", "Widen", "accept", "body_of", "count_states", "derive", "event_state", "fail", "hold",
    "list_pending", "load", "locks_of", "packed", "recorded", "replay", "settle", "told_of",
]  # fmt: skip
