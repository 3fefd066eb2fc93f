"""`CrashingDatabase`: what was committed before a death stays, and nothing comes after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from holdfast.core.errors import Unavailable
from holdfast.core.points import Crashed
from holdfast.idempotency import keys
from holdfast.store.database import Database, Statements
from holdfast.testing import CrashingDatabase
from holdfast.testing.key_contract.bench import LEASE, NOW, TTL, Bench
from holdfast.testing.store_contract import LocalStore

shared = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)


async def note(database: Database, name: str) -> None:
    async with database.write() as tx:
        await tx.run("ledger.put", [(name, b"1")])


async def noted(database: Database, name: str) -> bool:
    async with database.read() as tx:
        return await tx.one("ledger.get", name=name) is not None


async def test_boundaries_are_counted_by_kind(db: Database) -> None:
    everything = CrashingDatabase(db)
    await note(everything, "a")
    assert await noted(everything, "a")
    await everything.submit("ledger.get", name="a")
    assert everything.passed == [
        "before ledger.put", "before commit", "after commit", "before ledger.get",
        "before ledger.get", "before commit", "after commit",
    ]  # fmt: skip
    for where, count in {"before": 3, "commit": 2, "after_ack_lost": 2}.items():
        counting = CrashingDatabase(db, where=where)
        await note(counting, "a")
        assert await noted(counting, "a")
        await counting.submit("ledger.get", name="a")
        assert counting.boundaries == count


@shared
@pytest.mark.parametrize(("where", "kept"), [("before", False), ("commit", False), ("after_ack_lost", True)])
@pytest.mark.parametrize("how", ["block", "submit"])
async def test_a_death_leaves_what_was_committed(store: LocalStore, where: Any, kept: bool, how: str) -> None:
    async with store.opened() as db:
        bench = Bench(db)
        claim = bench.claim()
        crashing = CrashingDatabase(db, 1, where)
        with pytest.raises(Crashed):
            await claimed(crashing, claim, how)
    async with store.opened() as db, db.read() as tx:
        assert (await keys.get(tx, claim.key_ids[0]) is not None) == kept


async def claimed(database: Database, claim: keys.Claim, how: str) -> None:
    terms = {"lease_until": NOW + LEASE, "expires_at": NOW + TTL, "now": NOW}
    if how == "submit":
        await keys.claim(Statements(database), claim, **terms)
    else:
        async with database.write() as tx:
            await keys.claim(tx, claim, **terms)


@pytest.mark.parametrize(("where", "kept"), [("before", False), ("commit", False), ("after_ack_lost", True)])
async def test_a_failure_instead_of_a_death_happens_once(db: Database, where: Any, kept: bool) -> None:
    failing = CrashingDatabase(db, 1, where, failure=Unavailable("the connection broke"))
    with pytest.raises(Unavailable):
        await note(failing, "a")
    assert await noted(db, "a") == kept
    await note(failing, "a")
    assert await noted(failing, "a")


async def test_everything_else_is_the_databases_own(db: Database) -> None:
    standing = CrashingDatabase(db, 1)
    assert (standing.label, standing.namespace, standing.dialect) == (db.label, db.namespace, db.dialect)
    assert standing.schema == db.schema
    waiting = asyncio.ensure_future(standing.wait("channel", 5))
    await asyncio.sleep(0)
    standing.wake("channel")
    assert await waiting
    await standing.close()
