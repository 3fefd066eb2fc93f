"""The store contract on every database that processes can share."""

from __future__ import annotations

import pytest

from holdfast.testing import store_contract

shared = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)


@shared
class TestSharing(store_contract.Sharing):
    """See the contract."""


@shared
class TestProcesses(store_contract.Processes):
    """See the contract."""
