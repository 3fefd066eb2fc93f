"""Raw events, cursors and errors: what is decided about them."""

from __future__ import annotations

import base64
import copy
import pickle
from uuid import UUID

import msgspec
import pytest

from holdfast.sessions import cursors, errors
from holdfast.sessions.cursors import Listing
from holdfast.sessions.errors import CaptureConflict, CursorMismatch, InvalidField, SessionError, shown
from holdfast.sessions.limits import CLOCK_AHEAD_US_MAX, CLOCK_EARLIEST_US
from holdfast.sessions.machine import (
    BACKOFF_US_MAX,
    Conflict,
    Dead,
    Gone,
    Recorded,
    Replay,
    Retry,
    after_failure,
    captured_time,
    decide,
    locks,
    past_retention,
)

NOW = 1_785_187_951_000_000
SECRET = b"s" * 32


def test_an_event_the_ledger_did_not_take_is_answered_from_what_is_there() -> None:
    """SA-2, SA-4."""
    recorded = Recorded(b"f", b"e")
    assert decide(recorded, b"f") == Replay(b"e")
    assert decide(recorded, b"g") == Conflict()
    assert decide(None, b"f") == Gone()


def test_an_event_that_fails_waits_twice_as_long_each_time_and_then_is_set_aside() -> None:
    """SX-83."""
    delays = []
    for attempts in range(12):
        found = after_failure(attempts, attempts_max=12, backoff_us=500_000, now=NOW)
        if isinstance(found, Dead):
            assert (attempts, found.attempts) == (11, 12)
            break
        assert found.attempts == attempts + 1
        delays.append(found.retry_at - NOW)
    assert delays[:3] == [500_000, 1_000_000, 2_000_000]
    assert delays[-1] == BACKOFF_US_MAX
    assert after_failure(10_000, attempts_max=20_000, backoff_us=1, now=0) == Retry(10_001, BACKOFF_US_MAX)


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (None, (NOW, False)),
        (NOW - 5, (NOW - 5, False)),
        (NOW + CLOCK_AHEAD_US_MAX, (NOW + CLOCK_AHEAD_US_MAX, False)),
        (NOW + CLOCK_AHEAD_US_MAX + 1, (NOW, True)),
        (CLOCK_EARLIEST_US - 1, (NOW, True)),
    ],
)
def test_a_clock_that_cannot_be_right_is_replaced(sent: int | None, found: tuple[int, bool]) -> None:
    assert captured_time(sent, received_at=NOW) == found


def test_retention_keeps_for_ever_unless_told() -> None:
    assert not past_retention(0, retention_us=0, now=NOW)
    assert past_retention(NOW - 11, retention_us=10, now=NOW)
    assert not past_retention(NOW - 10, retention_us=10, now=NOW)


def test_locks_are_taken_in_one_order_and_once() -> None:
    held = locks(
        [("h", "s"), ("h", "p"), ("h", "s")], [("anthropic", "m"), ("anthropic", "")], ["k", None], [(b"\xff", "agent")]
    )
    assert held == sorted(held)
    assert held == [b'c["ff","agent"]', b"jk", b'm["anthropic","m"]', b's["h","p"]', b's["h","s"]']
    assert locks([]) == []


# --- cursors

LIST = Listing(UUID(int=1), "sessions", "cost", True, {"tag": "x"})


def test_a_cursor_fits_its_own_list_only() -> None:
    """SA-51."""
    values = (5, "a", b"\x00", None)
    cursor = cursors.encode(LIST, values, secret=SECRET)
    assert cursors.decode(LIST, cursor, secret=SECRET) == values
    others = [
        Listing(UUID(int=2), "sessions", "cost", True, {"tag": "x"}),
        Listing(UUID(int=1), "turns", "cost", True, {"tag": "x"}),
        Listing(UUID(int=1), "sessions", "turns", True, {"tag": "x"}),
        Listing(UUID(int=1), "sessions", "cost", False, {"tag": "x"}),
        Listing(UUID(int=1), "sessions", "cost", True, {}),
    ]
    for other in others:
        with pytest.raises(CursorMismatch):
            cursors.decode(other, cursor, secret=SECRET)
    with pytest.raises(CursorMismatch):
        cursors.decode(LIST, cursor, secret=b"t" * 32)


@pytest.mark.parametrize("cursor", ["", "x", "é", "A" * 40, "A" * 3000, "????"])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(CursorMismatch):
        cursors.decode(LIST, cursor, secret=SECRET)


def test_a_cursor_of_another_version_is_refused() -> None:
    body = msgspec.msgpack.encode((2, 5))
    forged = base64.urlsafe_b64encode(body + cursors._mac(LIST, body, SECRET)).rstrip(b"=").decode()
    with pytest.raises(CursorMismatch):
        cursors.decode(LIST, forged, secret=SECRET)


# --- errors

CODES = """
malformed_json invalid_field undecodable_body capture_conflict unauthenticated forbidden org_mismatch not_found
session_deleted past_retention too_large unsupported_media_type unsupported_encoding saturated_items saturated_bytes
store_unavailable disk_full stopping cursor_mismatch invalid_query number_range chain_broken node_corrupt
unknown_provider dead_letter import_corrupt spool_full no_price_source attribution_refused
"""


def test_every_code_of_the_contract_has_its_error() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SessionError)]
    codes = [each.code for each in classes]
    assert len(codes) == len(set(codes))
    assert {f"sessions.{code}" for code in CODES.split()} <= set(codes)
    assert {each.__name__ for each in classes} | {"shown"} == set(errors.__all__)


def test_errors_name_keys_and_survive_being_sent() -> None:
    conflict = CaptureConflict("0123456789abcdef")
    assert str(conflict) == "another call is stored under capture id 0123456789ab…"
    assert shown("short") == "short"
    assert conflict.bare_code == "capture_conflict"
    field = InvalidField("wrong", field="/x", limit="l")
    busy = errors.SaturatedItems("full", retry_after=2.5)
    for error in (conflict, field, busy, CursorMismatch(), errors.NumberRange(), errors.NodeCorrupt("a" * 64)):
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
            assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))
    assert (field.field, field.limit, busy.retry_after) == ("/x", "l", 2.5)
