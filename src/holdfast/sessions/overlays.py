"""Attributions: events that an operator puts into another session, thread or harness, or under another parent. Pure.

An attribution selects events by what was sent, never by what another attribution made of it, so that taking one back
leaves the others as they are. They count in the order they were made: of two that say something of the same member of
the same event the later one does. An event that comes later is selected like those that were there before.

Invariants:
    - An event is placed by what was sent and by the attributions that are in force; by nothing else.
    - What was sent is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from holdfast.sessions import envelope, identity
from holdfast.sessions.derivation import RawEvent
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.jcs import Json
from holdfast.sessions.limits import ID_BYTES_MAX
from holdfast.sessions.values import Envelope, SessionKey

__all__ = ["NONE", "Attribution", "Choice", "Overlay", "Overlays", "attributed", "checked", "is_own_parent", "key_of"]


class Attribution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where events are put; what is not set stays as it was sent.

    Attributes:
        harness_id: The harness; empty: as it was sent.
        harness_session_id: The session; empty: as it was sent.
        thread_id: The thread, empty for the main one; None: as it was sent.
        parent_harness_id: The parent's harness; it is only said together with its session.
        parent_harness_session_id: The parent, empty for none; None: as it was sent.
    """

    harness_id: str = ""
    harness_session_id: str = ""
    thread_id: str | None = None
    parent_harness_id: str = ""
    parent_harness_session_id: str | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which events are meant: some, or all that were sent under a session's key, or in one thread of it.

    Attributes:
        events: Their ids as hexadecimal digits.
    """

    events: frozenset[str] = frozenset()
    session: SessionKey | None = None
    thread_id: str | None = None


@dataclass(frozen=True, slots=True)
class Overlay:
    """An attribution as it is kept."""

    attribution_id: bytes
    choice: Choice
    change: Attribution

    def selects(self, event: RawEvent) -> bool:
        """Say whether an event is meant, as it was sent."""
        choice = self.choice
        if choice.session is None:
            return event.event_id.hex() in choice.events
        return key_of(event) == choice.session and choice.thread_id in (None, event.call.thread_id)


@dataclass(frozen=True, slots=True)
class Overlays:
    """The attributions of an org that are in force, in the order they were made.

    Attributes:
        stamp: Grows with every attribution, and with every one that is taken back.
    """

    stamp: int = 0
    active: tuple[Overlay, ...] = ()


NONE = Overlays()
"""Of an org where nobody has attributed anything."""


def attributed(event: RawEvent, overlays: Sequence[Overlay]) -> RawEvent:
    """Return an event as it is derived: put where the attributions say that select it."""
    changes = [each.change for each in overlays if each.selects(event)]
    if not changes:
        return event
    session, thread_id = event.call.session or Envelope(), event.call.thread_id
    for change in changes:
        thread_id = thread_id if change.thread_id is None else change.thread_id
        session = replace(
            session,
            harness_id=change.harness_id or session.harness_id,
            harness_session_id=change.harness_session_id or session.harness_session_id,
        )
        if change.parent_harness_session_id is not None:
            session = replace(
                session,
                parent_harness_id=change.parent_harness_id,
                parent_harness_session_id=change.parent_harness_session_id,
            )
    return replace(event, call=replace(event.call, session=session, thread_id=thread_id))


def key_of(event: RawEvent) -> SessionKey:
    """Return the key of an event's session; without a session id that is empty."""
    session = event.call.session
    return (identity.UNKNOWN, "") if session is None else (session.harness_id, session.harness_session_id)


def is_own_parent(event: RawEvent) -> bool:
    """Say whether an event names its own session as the parent."""
    session = event.call.session
    if session is None or not session.harness_session_id:
        return False
    harness_id = session.parent_harness_id or session.harness_id
    return (harness_id, session.parent_harness_session_id) == (session.harness_id, session.harness_session_id)


def checked(change: Attribution) -> Attribution:
    """Return an attribution whose members keep the rules of what is sent.

    Raises:
        InvalidField: One does not, or nothing is said.
    """
    said: dict[str, Json] = {name: value for name, value in msgspec.to_builtins(change).items() if value}
    flags: set[str] = set()
    found = envelope.checked(said, flags, org=None, at="/change")
    thread_id = envelope.limited(said, "thread_id", ID_BYTES_MAX, flags, "/change")
    if flags:
        raise InvalidField("an id has characters that cannot be stored", field="/change")
    if change == Attribution():
        raise InvalidField(
            "an attribution says where events are put", "name a session, thread or parent", field="/change"
        )
    return Attribution(
        harness_id=change.harness_id and found.harness_id,
        harness_session_id=found.harness_session_id,
        thread_id=None if change.thread_id is None else thread_id,
        parent_harness_id=found.parent_harness_id,
        parent_harness_session_id=None if change.parent_harness_session_id is None else found.parent_harness_session_id,
    )
