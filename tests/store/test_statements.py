"""Both dialects have the same statements: names, parameters, columns, as the databases themselves see them."""

from __future__ import annotations

from pathlib import Path

import apsw
import apsw.ext
import pytest

from holdfast.core.clock import SystemClock
from holdfast.core.errors import StoreError
from holdfast.execution.journal import PLAN
from holdfast.idempotency import Completed, keys
from holdfast.idempotency.rows import columns_of
from holdfast.idempotency.sealing import seal_outcome
from holdfast.idempotency.values import Proceed
from holdfast.store import Plan, StoreSettings, catalogue
from holdfast.store.catalogue import Catalogue, Dialect, Statement, parse
from holdfast.store.database import Database, Row, Statements
from holdfast.store.postgres import PostgresDatabase
from holdfast.store.postgres_tx import takes_arrays
from holdfast.store.sqlite import open_sqlite

PLANS = [PLAN]
SQL = Path(catalogue.__file__).parent / "sql"
ONLY_POSTGRES = {"session.sql"}
"""Statements only that dialect's own store runs; no record module may."""


def shipped(dialect: Dialect) -> dict[str, Statement]:
    """The statements of the package, without those that tests have registered."""
    found = {}
    for file in sorted((SQL / dialect).glob("*.sql")):
        if file.name not in ONLY_POSTGRES:
            found.update({each.name: each for each in parse(dialect, file.name, file.read_text())})
    return found


SQLITE, POSTGRES = shipped("sqlite"), shipped("postgres")


def test_the_files_are_the_same() -> None:
    files = {dialect: {file.name for file in (SQL / dialect).glob("*.sql")} for dialect in ("sqlite", "postgres")}
    assert files["sqlite"] == files["postgres"] - ONLY_POSTGRES


def test_the_names_are_the_same() -> None:
    assert sorted(SQLITE) == sorted(POSTGRES)


@pytest.mark.parametrize("name", sorted(SQLITE.keys() & POSTGRES.keys()))
def test_parameters_and_columns_are_the_same(name: str) -> None:
    assert SQLITE[name].params == POSTGRES[name].params
    assert SQLITE[name].columns == POSTGRES[name].columns


async def test_sqlite_takes_and_gives_what_the_headers_say(tmp_path: Path) -> None:
    database = await open_sqlite(str(tmp_path / "ledger.db"), clock=SystemClock(), settings=StoreSettings())
    wrong = {}
    try:
        for name, statement in SQLITE.items():
            info = apsw.ext.query_info(database.connection, statement.text)
            given = tuple(column[0] for column in info.description)
            placeholders = tuple(placeholder.removeprefix(":") for placeholder in info.bindings_names or ())
            says = () if statement.counts else statement.columns  # what the driver tells is in no text
            if (given, placeholders) != (says, statement.params):
                wrong[name] = (given, placeholders)
    except apsw.SQLError as error:
        pytest.fail(f"{name}: {error}")
    finally:
        await database.close()
    assert wrong == {}


async def test_postgres_takes_and_gives_what_the_headers_say(pg: PostgresDatabase) -> None:
    session = {each.name: each for each in parse("postgres", "session", (SQL / "postgres" / "session.sql").read_text())}
    wrong = {}
    link = await pg.readers.begin()
    for name, statement in (POSTGRES | session).items():
        prepared = await link.connection.prepare(statement.text)
        given = tuple(column.name for column in prepared.get_attributes())
        arrays = {parameter.kind == "array" for parameter in prepared.get_parameters()}
        if statement.columns and given != statement.columns:
            wrong[name] = f"gives {given}"
        elif len(prepared.get_parameters()) != len(statement.params):
            wrong[name] = f"takes {len(prepared.get_parameters())} parameters"
        elif statement.params and name not in session and arrays != {takes_arrays(statement.text)}:
            wrong[name] = "takes arrays for some parameters, and values for others; or the first has no cast"
    await pg.readers.roll_back(link)
    assert wrong == {}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("statements", [SQLITE, POSTGRES], ids=["sqlite", "postgres"])
def test_plans_are_made_of_statements_that_fit(plan: Plan, statements: dict[str, Statement]) -> None:
    guard = statements[plan.guard]
    assert guard.columns[: len(guard.params)] == guard.params, "a guard's first columns are its key"
    for name in (*plan.creates, *plan.writes):
        assert not statements[name].columns, f"{name} gives rows, which nobody takes"
    if statements is POSTGRES:
        for name in (plan.guard, *plan.creates, *plan.writes):
            assert takes_arrays(statements[name].text), f"{name} takes one row"


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_what_finds_a_recorded_append_gives_the_rows_of_its_guard(plan: Plan, dialect: Dialect) -> None:
    loaded: Catalogue = catalogue.load(dialect)
    companions = [companion for name in plan.writes if (companion := loaded.companion(name)) is not None]
    assert companions, "an append could not be told from one that was never made"
    for companion in companions:
        assert companion.statement.columns == loaded[plan.guard].columns
        assert dialect == "sqlite" or not takes_arrays(companion.statement.text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT 1", "before the first"),
        ("-- name: a b\nSELECT 1", "not a header"),
        ("-- name: a.b(x)\nSELECT 1", "lists the parameters"),
        ("-- name: a.b(x, y)\nSELECT :y, :x", "lists the parameters"),
        ("-- name: a.b()\nSELECT :x", "lists the parameters"),
        ("-- name: a.b()\n", "no text"),
        ("-- columns: a\n", "right after a header"),
    ],
)
def test_a_malformed_file_says_where(text: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        parse("sqlite", "sqlite/x.sql", text)


async def test_a_statement_that_counts_gives_a_row_when_it_changed_one(db: Database) -> None:
    async def first(**values: object) -> Row | None:
        async with db.write() as tx:
            return await tx.one("keys.settle", **values)

    async def only(**values: object) -> Row | None:
        async with db.write() as tx:
            rows = await tx.all("keys.settle", **values)
        return rows[0] if rows else None

    async def alone(**values: object) -> Row | None:
        return await db.submit("keys.settle", **values)

    for settle in (first, only, alone):
        name = settle.__name__.encode().ljust(16, b"-")
        claim = keys.Claim(
            key_ids=(name,), scope_ids=(name,), record_id=name, fingerprint=name * 2, claim_id=name,
            owner="", method="POST", route="*",
        )  # fmt: skip
        held = await keys.claim(Statements(db), claim, lease_until=20, expires_at=90, now=10)
        assert isinstance(held, Proceed)
        outcome = columns_of(seal_outcome(Completed(200, [], b"done"), key_id=name, record_id=name))
        values = {"state": 2, **outcome, "now": 11, "expires_at": 99, "key_id": name}
        assert await settle(**values, fence=held.fence + 1) is None
        assert await settle(**values, fence=held.fence) == (1,)
        assert await settle(**values, fence=held.fence) is None, "it has been settled"
