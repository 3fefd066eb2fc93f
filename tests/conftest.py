"""What tests are given: a PostgreSQL for the session, fresh ledgers in it and in files, open databases."""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.ledgers import Ledgers, memory

from holdfast.execution import declare
from holdfast.store.database import Database
from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore

# Whoever starts the suite in the background of a shell has it ignore interrupts, and so would the processes it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", settings.get_profile("ci"), max_examples=40)
settings.load_profile("suite")
"""The same examples in every run, and none too slow for a loaded machine; a property that wants more says so."""


def pytest_collection_finish() -> None:
    """All that collecting has made lives to the end: no collection goes through it again, and no fork copies it."""
    gc.freeze()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[PostgresServer]:
    """One server for the session, shared by all its workers. Outages need one of their own, which is on the disk.

    Hundreds of databases come into being, which nothing needs to tidy up behind the tests' backs.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with PostgresServer(shared=shared, folder=memory(), settings={"autovacuum_naptime": "1h"}) as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Ledgers:
    """Ledgers of the session's server that are migrated already."""
    return Ledgers(postgres, tmp_path_factory.mktemp("migrated"))


@pytest.fixture
def make_target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Make a fresh ledger's target of a kind: `sqlite-memory`, `sqlite-file`, `postgres` or `postgres-empty`.

    In `postgres` the migrations have run already; tests of what the first opening makes take `postgres-empty`.
    """

    def make(kind: str) -> str:
        if kind == "sqlite-memory":
            return ":memory:"
        if kind == "sqlite-file":
            return str(tmp_path / "ledger.db")
        if kind == "postgres-empty":
            server: PostgresServer = request.getfixturevalue("postgres")
            return server.fresh_schema()
        migrated: Ledgers = request.getfixturevalue("migrated")
        return migrated.fresh()

    return make


@pytest.fixture(params=["sqlite-file", "postgres"])
def ledger(request: pytest.FixtureRequest, make_target: Callable[[str], str]) -> str:
    """The path or URL of a fresh ledger, on each database."""
    return make_target(request.param)


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "postgres"])
def store(request: pytest.FixtureRequest, make_target: Callable[[str], str], tmp_path: Path) -> LocalStore:
    """What opens handles on a fresh ledger, on each database."""
    return LocalStore(make_target(request.param), tmp_path / "owners")


@pytest.fixture
async def db(store: LocalStore) -> AsyncIterator[Database]:
    """An open database, each in turn."""
    async with store.opened() as database:
        yield database


@pytest.fixture(autouse=True)
def _kinds() -> Iterator[None]:
    """What a test registers is gone after it, so that two tests may use one kind."""
    before = dict(declare._registry)
    yield
    declare._registry.clear()
    declare._registry.update(before)
