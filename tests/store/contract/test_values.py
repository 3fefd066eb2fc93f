"""The store contract on every database: values, those of the contract and any that Hypothesis thinks of."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.store.database import Database
from holdfast.testing import store_contract
from holdfast.testing.store_contract.ledgers import entries, entry, executions, put

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=50)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


class TestValues(store_contract.Values):
    """See the contract."""

    positions = itertools.count()

    # One database for all examples: each writes rows of its own.
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.none() | st.binary(max_size=300), TEXT, st.none() | NUMBERS), min_size=1, max_size=8))
    async def test_any_rows_come_back_as_they_were(
        self, db: Database, rows: list[tuple[bytes | None, str, int | None]]
    ) -> None:
        [pk] = await executions(db)
        appends = [
            entry(db, pk, next(self.positions), payload=payload, name=name, due_at=due_at)
            for payload, name, due_at in rows
        ]
        assert all(await put(db, *appends))
        assert [(row.payload, row.name, row.due_at) for row in await entries(db, pk)] == rows
