"""`holdfast verify` on the command line: whatever is broken by hand, on either database, is named, and nothing else."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import apsw
import asyncpg
import pytest
from tests.flow.captured import CARDS, archive, call
from tests.flow.commandline import ask, tell
from tests.unit.sessions_data import SHARED

from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.values import LOCAL, Envelope, Principal
from holdfast.testing.store_contract import LocalStore

BREAKS = [
    ("counters", "UPDATE session_sessions SET turn_count = turn_count + 1"),
    ("counters", "UPDATE session_sessions SET cost_pusd = cost_pusd + 1"),
    ("turn", "UPDATE session_turn_evidence SET message_id = 'another'"),
    ("turn", "UPDATE session_turns SET status = 'failed', input = 99"),
    ("turn", "UPDATE session_turns SET row_hash = {x:00}"),
    ("node_hash", "UPDATE session_nodes SET role = 'nobody'"),
    ("node_parent", "UPDATE session_nodes SET parent_hash = {x:01} WHERE parent_hash IS NOT NULL"),
    ("chain", "DELETE FROM session_nodes WHERE parent_hash IS NULL"),
    ("links", "DELETE FROM session_node_links"),
    ("owner", "DELETE FROM session_turns"),
    ("parents", "UPDATE session_sessions SET parent_state = 'none', parent_session_id = NULL"),
    ("cost", "UPDATE session_cost_ledger SET cost_pusd = cost_pusd + 1"),
    ("body", "UPDATE session_raw_events SET response_sha256 = {x:00}"),
    ("fold", "UPDATE session_sessions SET started_at = started_at + 1"),
    ("fold", "UPDATE session_sessions SET auth_subject = 'another'"),
    ("changes", "UPDATE session_changes SET row_hash = {x:00}"),
    ("lag", "UPDATE session_raw_events SET derive_state = 'pending', received_at = 0"),
    ("unreadable", "UPDATE session_raw_events SET envelope = {x:00}"),
    ("unreadable", "UPDATE session_turn_evidence SET facts = {x:00}"),
    ("unreadable", "UPDATE session_sessions SET fold = {x:01}"),
]
"""What breaks each promise; each is done to an org of its own."""


def org_of(number: int) -> UUID:
    return UUID(int=0xABAD << 96 | number)


async def capture(ledger: str, folder: Path) -> None:
    """The same calls in every org: a session with two turns, and a child of it."""
    config = SessionsConfig(secret_file=folder / "secret", prices=Prices(cards=CARDS, package=False))
    async with LocalStore(ledger, folder / "owners").opened() as database:
        books = archive(database, config=config)
        for number in range(len(BREAKS) + 1):
            child = Envelope(harness_id="claude", harness_session_id="kid", parent_harness_session_id="s")
            calls = [call("a"), call("b", "ho"), replace(call("c"), session=child)]
            await books.ingest_many(calls, principal=Principal(org_of(number), LOCAL.scopes))
        while (await books.derive()).pending:
            pass


async def spoil(ledger: str) -> None:
    """Break every promise, each in its org."""
    postgres = "://" in ledger
    statements = []
    for number, (_, statement) in enumerate(BREAKS):
        org = org_of(number).hex
        where = "AND" if "WHERE" in statement else "WHERE"
        literal = "'\\x{}'::bytea" if postgres else "x'{}'"
        for each in ("00", "01"):
            statement = statement.replace(f"{{x:{each}}}", literal.format(each))
        statements.append(f"{statement} {where} org = {literal.format(org)}")
    if postgres:
        connection = await asyncpg.connect(ledger)
        for each in statements:
            await connection.execute(each)
        await connection.close()
        return
    with closing(apsw.Connection(ledger)) as connection:
        for each in statements:
            connection.execute(each)


@SHARED
def test_whatever_is_broken_is_named(ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SA-56, SX-164: of each org what was broken in it; the one that nobody touched is sound."""
    monkeypatch.setenv("HOLDFAST_SESSIONS_SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("HOLDFAST_SESSIONS_PRICES__CARDS", str(CARDS))
    asyncio.run(capture(ledger, tmp_path))
    assert tell("verify", "--slice", "sessions", "--db", ledger)["ok"]
    asyncio.run(spoil(ledger))
    answer = ask("verify", "--slice", "sessions", "--db", ledger, "--json")
    assert answer.code == 1
    named: dict[str, set[str]] = {}
    for problem in answer.json["problems"]:
        assert problem["row"]
        assert problem["table"].startswith("session_")
        named.setdefault(problem["org_id"], set()).add(problem["code"])
    missed = [each for number, each in enumerate(BREAKS) if each[0] not in named.get(str(org_of(number)), set())]
    assert missed == []
    assert str(org_of(len(BREAKS))) not in named
