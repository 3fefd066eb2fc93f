"""The contract of idempotency keys on every database: each cell of the table, and each law."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.core.clock import SystemClock
from holdfast.store import Database, open_database
from holdfast.testing.key_contract import key_contract
from holdfast.testing.key_contract.bench import COLUMNS
from holdfast.testing.key_contract.cells import ROWS
from holdfast.testing.key_contract.laws import LAWS
from holdfast.testing.store_contract import LocalStore

LAWS_OF = {
    "HX-8": "fences rise",
    "HX-9": "attempts count",
    "HX-10": "a lease lapses and a record expires at their instant",
    "HX-11": "may be repeated after a lost acknowledgement",
    "HX-12": "the claim of a dead owner",
    "HX-13": "what is unknown never expires",
    "HX-14": "the machine is the table",
    "HX-15": "a record of a newer release, or a damaged one",
    "HX-16": "a large body is stored compressed",
    "HX-17": "under a cipher",
    "HX-18": "no row holds a key or a principal",
    "HX-19": "processes that share a secret never both proceed",
    "HX-20": "which secrets write",
    "HX-21": "pruning takes no more than a batch",
    "HX-22": "a claim belongs to no session",
    "HX-105": "a forced action and its audit row are one",
}


async def test_every_cell_and_every_law_holds(store: LocalStore) -> None:
    verdicts = await key_contract(store.opened)
    assert [f"{verdict.name}: {verdict.detail}" for verdict in verdicts if not verdict.ok] == []
    assert len(verdicts) == len(ROWS) * len(COLUMNS) + len(LAWS)


@pytest.mark.parametrize("law", LAWS_OF)
def test_every_requirement_has_its_law(law: str) -> None:
    assert len([each for each in LAWS if LAWS_OF[law] in each.name]) == 1


def test_every_law_is_of_a_requirement() -> None:
    assert len(LAWS) == len(LAWS_OF)


async def test_the_contract_holds_through_pythons_own_library_too(tmp_path: Path) -> None:
    """A unit may share a transaction of an application's `sqlite3` connection: the same statements, another library."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Database]:
        database = await open_database(tmp_path / "ledger.db", clock=SystemClock(), library="sqlite3")
        yield database
        await database.close()

    verdicts = await key_contract(opened)
    assert [f"{verdict.name}: {verdict.detail}" for verdict in verdicts if not verdict.ok] == []
