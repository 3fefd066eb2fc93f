"""Leases: who is dead, and who may still start something."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.lease import Lease, LockState, is_dead

INSTANTS = st.integers(min_value=0, max_value=10**16)


@pytest.mark.parametrize("lock", get_args(LockState))
@pytest.mark.parametrize("now", [9, 10, 11])
def test_the_kernel_decides_where_it_knows(lock: LockState, now: int) -> None:
    assert is_dead(lock, 10, now) is {"held": False, "free": True, "unknown": now >= 10}[lock]


@given(INSTANTS, st.integers(min_value=1, max_value=10**12), INSTANTS)
def test_nobody_starts_an_effect_under_a_lease_that_others_may_take(renewed: int, length: int, now: int) -> None:
    lease = Lease(renewed, length)
    assert not (lease.may_start(now) and lease.is_over(now))
    assert lease.is_over(now) == is_dead("unknown", lease.until, now)


def test_an_owner_stops_starting_after_two_thirds() -> None:
    lease = Lease(1000, 300)
    assert [lease.may_start(now) for now in (999, 1000, 1199, 1200, 1300)] == [False, True, True, False, False]
    assert (lease.stale_at, lease.until, lease.is_over(1299)) == (1200, 1300, False)
    assert lease.renew(1200) == Lease(1200, 300)
    assert lease.renew(1200).may_start(1399)
