"""The store contract on every database: a statement by itself."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestSubmits(store_contract.Submits):
    """See the contract."""
