"""The store contract on every database: outages."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestOutages(store_contract.Outages):
    """See the contract."""
