"""The store contract on every database: pagination."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestPagination(store_contract.Pagination):
    """See the contract."""
