"""Decide about raw events: whether one is new, what becomes of one that fails, what time it counts for. Pure.

    claim    `decide`: the capture id is new, known with the same content, known with other content, or its
             session is gone
    act      the event is read and folded in, outside of this module
    settle   `after_failure`: an event that could not be folded in comes back later, or is set aside

Invariants:
    - A known capture id changes nothing at all.
    - An event that fails delays no other; after its last attempt it is kept, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from holdfast.sessions import jcs
from holdfast.sessions.limits import CLOCK_AHEAD_US_MAX, CLOCK_EARLIEST_US
from holdfast.sessions.values import SessionKey

__all__ = [
    "BACKOFF_US_MAX", "Conflict", "Dead", "Decision", "DeriveState", "Gone", "Proceed", "Recorded", "Replay", "Retry",
    "after_failure", "captured_time", "decide", "locks", "past_retention",
]  # fmt: skip

DeriveState: TypeAlias = Literal["pending", "derived", "unparsed", "refused", "dead"]

BACKOFF_US_MAX = 5 * 60 * 1_000_000
"""The longest an event that failed waits: an operator who mended something does not want to wait longer."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger has under a capture id."""

    fingerprint: bytes
    event_id: bytes


@dataclass(frozen=True, slots=True)
class Proceed:
    """The event is new, and on disk."""

    seq: int


@dataclass(frozen=True, slots=True)
class Replay:
    """The same event is on disk already."""

    event_id: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another event is on disk under the same capture id."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The event's session was deleted."""


Decision: TypeAlias = Proceed | Replay | Conflict | Gone


def decide(recorded: Recorded | None, fingerprint: bytes) -> Replay | Conflict | Gone:
    """Choose how to answer an event that the ledger did not take.

    Call only when the insert gave no row, with what is recorded under the capture id, read after it.

    Args:
        recorded: What is there; None: nothing is, so the session's tombstone kept the event out.
        fingerprint: Of the event.
    """
    if recorded is None:
        return Gone()
    return Replay(recorded.event_id) if recorded.fingerprint == fingerprint else Conflict()


@dataclass(frozen=True, slots=True)
class Retry:
    """The event is tried again from an instant on, in microseconds."""

    attempts: int
    retry_at: int


@dataclass(frozen=True, slots=True)
class Dead:
    """The event is set aside."""

    attempts: int


def after_failure(attempts: int, *, attempts_max: int, backoff_us: int, now: int) -> Retry | Dead:
    """Choose what becomes of an event that could not be folded in.

    Args:
        attempts: How often it had been tried before.
        attempts_max: How often it may be.
        backoff_us: How long it waits after the first failure; twice as long after each further one.
        now: The ledger's clock, in microseconds.
    """
    tried = attempts + 1
    if tried >= attempts_max:
        return Dead(tried)
    return Retry(tried, now + min(backoff_us << min(tried - 1, 40), BACKOFF_US_MAX))


def captured_time(sent: int | None, *, received_at: int) -> tuple[int, bool]:
    """Return the captured time that counts, and whether the sender's clock is to be distrusted."""
    if sent is None:
        return received_at, False
    if sent < CLOCK_EARLIEST_US or sent > received_at + CLOCK_AHEAD_US_MAX:
        return received_at, True
    return sent, False


def past_retention(captured_at: int, *, retention_us: int, now: int) -> bool:
    """Say whether a call is older than what is kept; 0 keeps for ever."""
    return bool(retention_us) and captured_at < now - retention_us


def locks(
    sessions: Iterable[SessionKey],
    messages: Iterable[tuple[str, str]] = (),
    joins: Iterable[str | None] = (),
    callers: Iterable[tuple[bytes, str]] = (),
) -> list[bytes]:
    """Return what a derivation must hold before it reads, in the one order everybody takes it in.

    Args:
        sessions: The turn's session, and those that may be its parent.
        messages: Provider and message id; without a message id there is nothing to hold.
        joins: Join keys.
        callers: Of synthetic turns, who called.
    """
    held = {b"s" + jcs.write(list(key)) for key in sessions}
    held |= {b"m" + jcs.write(list(pair)) for pair in messages if pair[1]}
    held |= {b"j" + key.encode() for key in joins if key is not None}
    held |= {b"c" + jcs.write([who.hex(), agent]) for who, agent in callers}
    return sorted(held)
