"""What the store's own tests are given besides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.store.postgres import PostgresDatabase
from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore


@pytest.fixture
def postgres_store(postgres: PostgresServer, tmp_path: Path) -> LocalStore:
    """What opens handles on a fresh ledger in PostgreSQL."""
    return LocalStore(postgres.fresh_schema(), tmp_path / "owners")


@pytest.fixture
async def pg(postgres_store: LocalStore) -> AsyncIterator[PostgresDatabase]:
    """An open ledger in PostgreSQL."""
    async with postgres_store.opened() as database:
        assert isinstance(database, PostgresDatabase)
        yield database
