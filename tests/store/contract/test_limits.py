"""The store contract on every database: limits."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestLimits(store_contract.Limits):
    """See the contract."""
