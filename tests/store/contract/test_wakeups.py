"""The store contract on every database: wakeups."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestWakeups(store_contract.Wakeups):
    """See the contract."""
