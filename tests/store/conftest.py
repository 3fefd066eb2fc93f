"""What the store's own tests are given besides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.ledgers import Ledgers

from holdfast.store.postgres import PostgresDatabase
from holdfast.testing.store_contract import LocalStore


@pytest.fixture
def postgres_store(migrated: Ledgers, tmp_path: Path) -> LocalStore:
    """What opens handles on a fresh ledger in PostgreSQL."""
    return LocalStore(migrated.fresh(), tmp_path / "owners")


@pytest.fixture
async def pg(postgres_store: LocalStore) -> AsyncIterator[PostgresDatabase]:
    """An open ledger in PostgreSQL."""
    async with postgres_store.opened() as database:
        assert isinstance(database, PostgresDatabase)
        yield database
