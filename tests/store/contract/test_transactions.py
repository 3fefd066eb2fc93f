"""The store contract on every database: transactions."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestTransactions(store_contract.Transactions):
    """See the contract."""
