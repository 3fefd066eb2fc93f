"""The store contract on every database: fencing."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestFencing(store_contract.Fencing):
    """See the contract."""
