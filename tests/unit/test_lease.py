"""Leases: who is dead, and who may still start something."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.lease import Lease, is_over

INSTANTS = st.integers(min_value=0, max_value=10**16)


@given(INSTANTS, st.integers(min_value=1, max_value=10**12), INSTANTS)
def test_nobody_starts_an_effect_under_a_lease_that_others_may_take(renewed: int, length: int, now: int) -> None:
    lease = Lease(renewed, length)
    assert not (renewed <= now < lease.stale_at and is_over(renewed + length, now))


def test_an_owner_stops_starting_after_two_thirds() -> None:
    assert Lease(1000, 300).stale_at == 1200
    assert [is_over(1300, now) for now in (1299, 1300, 1301)] == [False, True, True]


def test_who_has_no_row_has_no_lease() -> None:
    assert is_over(None, 0)
