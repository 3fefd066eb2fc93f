"""Attributions: what was sent, and those in force, say where an event is; nothing else does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from holdfast.sessions import derivation
from holdfast.sessions.derivation import RawEvent
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.overlays import Attribution, Choice, Overlay, attributed, checked, is_own_parent, key_of
from holdfast.sessions.values import Call, Envelope

ID = bytes(15) + b"\x07"
ASKED = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
ALL = Choice(session=("claude", "s"))


def event(thread: str = "", **session: Any) -> RawEvent:
    envelope = Envelope(harness_id="claude", **session) if session else None
    call = Call("anthropic", b"{}", b"{}", session=envelope, thread_id=thread)
    return RawEvent(seq=1, event_id=ID, org=UUID(int=0), capture_id="c", captured_at=0, call=call)


def overlay(choice: Choice = ALL, **change: Any) -> Overlay:
    return Overlay(b"", choice, Attribution(**change))


def where(given: RawEvent, *overlays: Overlay) -> tuple[str, str, str, str, str]:
    placed = attributed(given, overlays).call
    session = placed.session or Envelope()
    parent = session.parent_harness_id, session.parent_harness_session_id
    return session.harness_id, session.harness_session_id, placed.thread_id, *parent


@pytest.mark.parametrize(
    ("choice", "given", "selected"),
    [
        (ALL, event(harness_session_id="s"), True),
        (ALL, event("t", harness_session_id="s"), True),
        (ALL, event(harness_session_id="other"), False),
        (ALL, event(), False),
        (Choice(session=("claude", "s"), thread_id=""), event("t", harness_session_id="s"), False),
        (Choice(session=("claude", "s"), thread_id="t"), event("t", harness_session_id="s"), True),
        (Choice(events=frozenset((ID.hex(),))), event(), True),
        (Choice(events=frozenset(("00",))), event(), False),
    ],
)
def test_an_event_is_selected_by_what_was_sent(choice: Choice, given: RawEvent, selected: bool) -> None:
    assert overlay(choice).selects(given) is selected
    assert (attributed(given, [overlay(choice, thread_id="x")]) == given) is not selected


def test_later_attributions_count_over_earlier_ones_member_by_member() -> None:
    given = event("t", harness_session_id="s", parent_harness_session_id="p")
    first = overlay(harness_session_id="one", parent_harness_session_id="q", parent_harness_id="codex")
    assert where(given, first) == ("claude", "one", "t", "codex", "q")
    assert where(given, first, overlay(harness_id="pi", thread_id="")) == ("pi", "one", "", "codex", "q")
    assert where(given, first, overlay(parent_harness_session_id="")) == ("claude", "one", "t", "", "")
    assert where(given, overlay(harness_session_id="two"), first) == ("claude", "one", "t", "codex", "q")
    elsewhere = overlay(Choice(session=("claude", "one")), harness_session_id="never")
    assert where(given, first, elsewhere)[1] == "one", "what another attribution made of it selects nothing"


def test_an_event_of_no_session_gets_one() -> None:
    choice = Choice(events=frozenset((ID.hex(),)))
    placed = attributed(event(), [overlay(choice, harness_id="claude", harness_session_id="s")])
    assert (key_of(event()), key_of(placed)) == (("unknown", ""), ("claude", "s"))
    derived = derivation.derive(replace(placed, call=replace(placed.call, request=ASKED)))
    assert derived.evidence is not None
    moved = derivation.moved(derived.evidence, event())
    assert (moved.says.synthetic, moved.says.harness_id) == (True, "unknown")
    assert derivation.moved(moved, placed) == derived.evidence


@pytest.mark.parametrize(
    ("given", "own"),
    [
        (event(harness_session_id="s", parent_harness_session_id="s"), True),
        (event(harness_session_id="s", parent_harness_session_id="s", parent_harness_id="claude"), True),
        (event(harness_session_id="s", parent_harness_session_id="s", parent_harness_id="codex"), False),
        (event(harness_session_id="s", parent_harness_session_id="p"), False),
        (event(harness_session_id="s"), False),
        (event(name="n"), False),
        (event(), False),
    ],
)
def test_a_session_may_name_itself(given: RawEvent, own: bool) -> None:
    assert is_own_parent(given) is own


def test_a_change_keeps_the_rules_of_what_is_sent() -> None:
    whole = Attribution(
        harness_id="pi", harness_session_id="s", thread_id="", parent_harness_id="codex", parent_harness_session_id="p"
    )
    assert checked(whole) == whole
    assert checked(Attribution(parent_harness_session_id="")) == Attribution(parent_harness_session_id="")
    for change in (
        Attribution(),
        Attribution(harness_id="a b"),
        Attribution(harness_session_id=" s"),
        Attribution(harness_session_id="syn-1"),
        Attribution(thread_id="x" * 257),
        Attribution(thread_id="\ud800"),
        Attribution(parent_harness_id="codex"),
    ):
        with pytest.raises(InvalidField):
            checked(change)
