"""`holdfast verify` looks at keys too, and names the slice it is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.flow.commandline import ask, tell
from tests.flow.tamper import change

from holdfast.core.clock import SystemClock
from holdfast.store import open_database
from holdfast.testing.key_contract.bench import Bench


@pytest.fixture
async def keyed(ledger: str) -> tuple[str, list[str]]:
    """A ledger with two keys, and their references."""
    database = await open_database(ledger, clock=SystemClock())
    bench = Bench(database)
    refs = [(await bench.make(column)).key_id.hex() for column in ("completed", "unknown")]
    await database.close()
    return ledger, refs


def test_keys_are_counted_beside_executions(keyed: tuple[str, list[str]]) -> None:
    db, refs = keyed
    assert ask("verify", "--db", db).out == "0 executions and 2 keys checked, no problem found\n"
    assert ask("verify", "--slice", "idempotency", "--db", db).out == "2 keys checked, no problem found\n"
    assert ask("verify", "--slice", "durable", "--db", db).out == "0 executions checked, no problem found\n"
    assert tell("verify", "--db", db) == {"ok": True, "checked_count": 2, "problems": []}
    assert ask("verify", refs[0][:12], "--slice", "idempotency", "--db", db).out == "1 key checked, no problem found\n"


def test_a_broken_key_is_named(keyed: tuple[str, list[str]], ledger: str) -> None:
    db, refs = keyed
    asyncio.run(change(db, "UPDATE idem_keys SET status = 500 WHERE state = 2"))
    answer = ask("verify", "--db", db)
    assert answer.code == 1
    assert answer.out.startswith(f"{refs[0][:12]}: idem_keys {refs[0]}: block_sum: ")
    assert answer.out.endswith("0 executions and 2 keys checked, 1 problem found\n")
    report = json.loads(ask("verify", "--slice", "idempotency", "--json", "--db", db).out)
    assert not report["ok"]
    assert [problem["key_ref"] for problem in report["problems"]] == [refs[0][:12]]
    assert ask("verify", refs[1][:12], "--slice", "idempotency", "--db", db).code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("ffffffff", "--slice", "idempotency"), 1), (("ff", "--slice", "idempotency"), 2), (("--slice", "nonsense"), 2)],
)
def test_what_is_no_key_and_no_slice_is_refused(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    db = tmp_path / "ledger.db"
    assert ask("db", "migrate", "--db", db).code == 0
    answer = ask("verify", *arguments, "--db", db)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("error: ")
