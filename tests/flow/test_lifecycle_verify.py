"""`holdfast verify` looks at receipts too."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.flow.commandline import ask
from tests.flow.tamper import change
from tests.store.lifecycle_bench import draft, emit

from holdfast.core.clock import SystemClock
from holdfast.store import open_database


def test_receipts_are_checked_and_an_edit_is_named(tmp_path: Path) -> None:
    """LA-39."""
    path = str(tmp_path / "ledger.db")

    async def furnish() -> None:
        database = await open_database(path, clock=SystemClock())
        for i in range(2):
            await emit(database, draft(f"k{i}", run="A", receipt_id=f"r{i}"))
        await database.close()

    asyncio.run(furnish())
    assert ask("verify", "--db", path).out == "0 executions and 2 receipts checked, no problem found\n"
    assert ask("verify", "A", "--slice", "lifecycle", "--db", path).out == "2 receipts checked, no problem found\n"
    asyncio.run(change(path, "UPDATE lifecycle_receipts SET status = 'observed' WHERE receipt_id = 'r1'"))
    found = ask("verify", "--slice", "lifecycle", "--db", path)
    assert found.code == 1
    assert "r1: lifecycle_receipts" in found.out
    assert "column_mismatch" in found.out
