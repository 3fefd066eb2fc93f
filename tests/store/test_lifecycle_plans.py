"""Statements about receipts find their rows by an index, however many there are."""

from __future__ import annotations

import re
from pathlib import Path

from holdfast.core.clock import SystemClock
from holdfast.store import StoreSettings, catalogue
from holdfast.store.catalogue import Dialect, Statement, parse
from holdfast.store.postgres import PostgresDatabase
from holdfast.store.sqlite import open_sqlite

SQL = Path(catalogue.__file__).parent / "sql"
LOOKS_AT_ALL = {"chains.idle", "receipts.list", "receipts.strays", "receipts.gaps"}
"""Statements for people and checks; each says so, or has to see every receipt."""


def statements(dialect: Dialect) -> list[Statement]:
    text = (SQL / dialect / "lifecycle.sql").read_text()
    return [each for each in parse(dialect, "lifecycle.sql", text) if each.name not in LOOKS_AT_ALL]


async def test_sqlite_searches(tmp_path: Path) -> None:
    database = await open_sqlite(str(tmp_path / "ledger.db"), clock=SystemClock(), settings=StoreSettings())
    try:
        scanning = {}
        for each in statements("sqlite"):
            plan = [row[3] for row in database.connection.execute(f"EXPLAIN QUERY PLAN {each.text}", _nothing(each))]
            if scans := [line for line in plan if re.match(r"SCAN (?!w |CONSTANT ROW)", line)]:
                scanning[each.name] = scans
    finally:
        await database.close()
    assert scanning == {}


def _nothing(statement: Statement) -> dict[str, None]:
    return dict.fromkeys(statement.params)


async def test_postgres_searches(pg: PostgresDatabase) -> None:
    link = await pg.readers.begin()
    connection = link.connection
    # A table without rows is always read whole, unless that is forbidden; then it shows who has no other way.
    await connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan")
    scanning = {}
    for number, each in enumerate(statements("postgres")):
        await connection.execute(f"PREPARE plan_{number} AS {each.text}")
        nothing = f"({', '.join(['NULL'] * len(each.params))})" if each.params else ""
        plan = [row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE plan_{number}{nothing}")]
        if scans := [line for line in plan if "Seq Scan on lifecycle" in line]:
            scanning[each.name] = scans
        await connection.execute(f"DEALLOCATE plan_{number}")
    assert scanning == {}
