"""The store contract on every database: claims."""

from __future__ import annotations

from holdfast.testing import store_contract


class TestClaims(store_contract.Claims):
    """See the contract."""
