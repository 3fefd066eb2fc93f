"""The store contract on every database: errors."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestErrors(store_contract.Errors):
    """See the contract."""
