"""The store contract on every database: append."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestAppends(store_contract.Appends):
    """See the contract."""
