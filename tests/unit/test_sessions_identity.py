"""What things are called, and when two calls are one."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from holdfast.sessions import instants, jcs
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.identity import (
    Captured,
    Synthetic,
    caller,
    capture_id,
    continued,
    fingerprint,
    group_key,
    groups,
    is_synthetic,
    org_id,
    parse_id,
    shown_id,
    synthetic_key,
    turn_id,
)

RAW = bytes.fromhex("0199aaaabbbb7ccc8dddeeeeffff0001")
ORG = UUID(int=7)
SECRET = b"s" * 32
CAPTURED = Captured(
    org=ORG, harness_id="", harness_session_id="", provider="p", captured_at=None, request=b"r", response=None
)


def test_ids_are_shown_with_a_prefix_and_read_in_any_form_of_a_uuid() -> None:
    shown = shown_id("cap", RAW)
    assert shown == "cap_0199aaaabbbb7ccc8dddeeeeffff0001"
    text = str(UUID(bytes=RAW))
    for digits in (text, text.upper(), RAW.hex(), RAW.hex().upper()):
        for form in (digits, f"{{{digits}}}", f"urn:uuid:{digits}", f"URN:UUID:{digits}", f"cap_{digits}"):
            assert parse_id("cap", form) == RAW, form
    assert parse_id("cap", shown) == RAW
    for wrong in (
        "ses_" + RAW.hex(),
        "",
        "cap_",
        text[:-1],
        f"{{{text}",
        f"{RAW.hex()}}}",
        f"urn:uuid:{{{text}}}",
        "0199-aaaabbbb7ccc8dddeeeeffff0001",
        text + "\n",
    ):
        assert parse_id("cap", wrong) is None
    assert org_id("URN:UUID:" + text) == UUID(text)
    assert org_id("acme") is None


def test_a_turn_of_a_segment_has_an_id_of_its_own() -> None:
    assert turn_id(RAW, "") == RAW
    first, second = turn_id(RAW, "msg_1"), turn_id(RAW, "msg_2")
    assert len({RAW, first, second}) == 3
    assert first == turn_id(RAW, "msg_1")
    assert UUID(bytes=first).version == 7
    assert UUID(bytes=first).variant == UUID(bytes=RAW).variant
    assert first[:8] == RAW[:8]


@pytest.mark.parametrize(
    ("body", "header", "request_id", "found"),
    [
        ("a:1", "", "", "a:1"),
        ("", "k", "r", "k"),
        ("", ' "k" ', "", "k"),
        ("k", '"k"', "", "k"),
        ("", "", "r-1", "req:r-1"),
        ("", '"', "", None),
    ],
)
def test_the_first_capture_id_that_exists_counts(body: str, header: str, request_id: str, found: str | None) -> None:
    if found is None:
        with pytest.raises(InvalidField):
            capture_id(body, header, request_id, CAPTURED)
    else:
        assert capture_id(body, header, request_id, CAPTURED) == (found, False)


@pytest.mark.parametrize(
    ("body", "header", "request_id"),
    [
        ("a", "b", ""),
        ("a b", "", ""),
        ("x" * 201, "", ""),
        ("seg:1", "", ""),
        ("", "sha:1", ""),
        ("", "", "r r"),
        ("é", "", ""),
    ],
)
def test_a_capture_id_that_cannot_be_is_refused(body: str, header: str, request_id: str) -> None:
    with pytest.raises(InvalidField) as caught:
        capture_id(body, header, request_id, CAPTURED)
    assert caught.value.field in ("/capture_id", "/meta/request_id")


def test_without_an_id_the_content_is_one() -> None:
    made, keyed = capture_id("", "", "", CAPTURED)
    assert (made[:4], len(made), keyed) == ("sha:", 68, True)
    seen = {made}
    for change in (
        {"org": UUID(int=8)},
        {"captured_at": 5},
        {"captured_at": "5"},
        {"response": b""},
        {"harness_id": "h"},
    ):
        parts: dict[str, Any] = {name: getattr(CAPTURED, name) for name in CAPTURED.__slots__} | change
        seen.add(capture_id("", "", "", Captured(**parts))[0])
    assert len(seen) == 6


def test_a_fingerprint_ignores_the_attempt_and_nothing_else() -> None:
    base = fingerprint(SECRET, {"a": 1}, b"x", None)
    assert base == fingerprint(SECRET, {"sent_at": 5, "attempt": 2, "a": 1.0}, b"x", None)
    for envelope in ({"a": 1}, {"sent_at": 5, "a": 1}):
        assert base == fingerprint(SECRET, envelope, b"x", None, written=jcs.write(envelope))
    others = [
        fingerprint(b"t" * 32, {"a": 1}, b"x", None),
        fingerprint(SECRET, {"a": 2}, b"x", None),
        fingerprint(SECRET, {"a": 1}, b"x", b""),
        fingerprint(SECRET, {"a": 1}, None, b"x"),
        fingerprint(SECRET, {"a": 1}, b"", b"x"),
    ]
    assert len({base, *others}) == 6


def test_callers_and_groups_are_told_apart_without_being_named() -> None:
    assert caller(SECRET, "") == b""
    assert len(caller(SECRET, "key")) == 8
    assert caller(SECRET, "key") != caller(b"t" * 32, "key")
    assert group_key(("h", "s"), "t1") == group_key(("h", "s"), "t2")
    assert group_key(("h", ""), "t1") != group_key(("h", ""), "t2")


# --- synthetic sessions

WHO = (b"c", "agent")


def turn(at: int, answer: str, after: str = "", who: tuple[bytes, str] = WHO) -> Synthetic:
    return Synthetic(mark=(at, f"c{at}", ""), caller=who, response_hash=answer, continues_hash=after)


def test_synthetic_keys_follow_from_the_first_turn() -> None:
    key = synthetic_key(ORG, "c1")
    assert (key[:4], len(key)) == ("syn-", 36)
    assert is_synthetic(key)
    assert not is_synthetic("s")
    assert len({key, synthetic_key(ORG, "c2"), synthetic_key(UUID(int=8), "c1")}) == 3


def test_a_turn_goes_on_from_the_latest_answer_it_repeats() -> None:
    first, second, other = turn(1, "a"), turn(2, "a"), turn(3, "a", who=(b"d", "agent"))
    assert continued(turn(9, "b", "a"), [second, first, other, turn(9, "a"), turn(10, "a")]) == second
    assert continued(turn(9, "b", "a"), [first, second]) == second
    assert continued(turn(9, "b", "a"), [first], window_us=7) is None
    assert continued(turn(9, "b", "a"), [first], window_us=8) == first
    assert continued(turn(9, "b"), [turn(1, "")]) is None


def test_groups_are_the_same_in_any_order() -> None:
    """SA-9: two unrelated runs, each follow-up in its own."""
    turns = [
        turn(1, "a"),
        turn(2, "x"),
        turn(3, "b", "a"),
        turn(4, "y", "x"),
        turn(5, "c", "b"),
        turn(6, "", "c"),
        turn(7, "d", "?"),
    ]
    wanted = {1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 1, 7: 7}
    for shuffled in itertools.islice(itertools.permutations(turns), 0, None, 97):
        assert {mark[0]: first[0] for mark, first in groups(shuffled).items()} == wanted
    assert {mark[0]: first[0] for mark, first in groups(turns, window_us=0).items()} == {at: at for at in wanted}


def test_grouping_agrees_with_the_rule_for_one_turn() -> None:
    for answers in itertools.product("ab", repeat=4):
        turns = [turn(at, answer, "a") for at, answer in enumerate(answers)]
        firsts = groups(turns)
        for each in turns:
            before = continued(each, turns)
            assert firsts[each.mark] == (each.mark if before is None else firsts[before.mark])


# --- instants


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01.5z", 1_500_000),
        ("1970-01-01 01:00:00.0000019+01:00", 1),
        ("2026-07-27T21:32:31.641321Z", 1_785_187_951_641_321),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2026-07-27T21:32:31", None),
        ("2026-13-27T21:32:31Z", None),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000_000),
        ("1785187951641321", None),
        ("٢026-07-27T21:32:31Z", None),
    ],
)
def test_instants_are_read_to_the_microsecond(text: str, at: int | None) -> None:
    assert instants.parse(text) == at


def test_instants_are_written_with_six_decimals_in_utc() -> None:
    assert instants.written(1_785_187_951_641_321) == "2026-07-27T21:32:31.641321Z"
    assert instants.written(-1) == "1969-12-31T23:59:59.999999Z"
    when = datetime(2026, 7, 27, tzinfo=UTC)
    assert instants.moment(instants.micros(when)) == when
