"""What is derived can be proved, taken away without a trace, and made again."""

from __future__ import annotations

import pytest
from tests.store.sessions_ledger import (
    NOON,
    ORG,
    TERMS,
    answer,
    ask,
    digest,
    event,
    fold,
    fresh,
    made_up,
    mint,
    rates,
    recording,
    said,
    session,
    take,
    told,
)
from tests.unit.sessions_data import SHARED

from holdfast.sessions import archive
from holdfast.sessions.archive import changing
from holdfast.sessions.archive.derive import mend
from holdfast.sessions.machine import Gone, Proceed
from holdfast.sessions.values import Call
from holdfast.sessions.verify import projection_hash, verify
from holdfast.store.database import Database
from holdfast.store.sqlite import SqliteDatabase

LAG = 2**62


async def session_id(database: Database, key: tuple[str, str]) -> bytes | None:
    async with database.read() as tx:
        row = await tx.one("sessions.find", org=ORG.bytes, harness_id=key[0], harness_session_id=key[1])
    return None if row is None else row.session_id


BREAKS = {
    "counters": """UPDATE session_sessions SET fold = replace(CAST(fold AS TEXT), '_count":2', '_count":3')""",
    "turn": "UPDATE session_turns SET row_hash = x'00'",
    "node_hash": "UPDATE session_nodes SET role = 'nobody'",
    "node_parent": "UPDATE session_nodes SET parent_hash = x'01' WHERE parent_hash IS NOT NULL",
    "chain": "DELETE FROM session_nodes WHERE parent_hash IS NULL",
    "links": "DELETE FROM session_node_links",
    "owner": "DELETE FROM session_raw_events",
    "parents": "UPDATE session_sessions SET parent_state = 'ambiguous'",
    "cost": "UPDATE session_cost_ledger SET cost_pusd = cost_pusd + 1, state = 'priced'",
    "body": "UPDATE session_raw_events SET response = x'00'",
    "fold": """UPDATE session_sessions SET fold = replace(CAST(fold AS TEXT), ':"hi"', ':"ho"')""",
    "changes": "UPDATE session_changes SET row_hash = x'00'",
    "lag": "UPDATE session_raw_events SET derive_state = 'pending'",
}


@SHARED
@pytest.mark.parametrize("rule", BREAKS)
async def test_a_row_that_is_wrong_is_named(rule: str) -> None:
    """SA-56."""
    async with fresh() as database:
        made = [Call("anthropic", ask("hi", tools=["x" * 600]), answer("a", "m"), session=session("s"))]
        made.append(Call("anthropic", ask("hi", "a", "go"), answer("b", "n"), session=session("s")))
        await told(database, [event(each, str(at), NOON + at) for at, each in enumerate(made)])
        assert (await verify(database, lag_us=LAG, cards=rates()._given, terms=TERMS)).problems == ()
        assert isinstance(database, SqliteDatabase)
        database.connection.execute(BREAKS[rule])
        report = await verify(database, lag_us=0 if rule == "lag" else LAG)
        assert rule in {problem.code for problem in report.problems}
        assert not report.ok
        assert all(problem.row and problem.table.startswith("session_") for problem in report.problems)


@SHARED
async def test_the_recorded_session_is_proved_and_made_again(db: Database) -> None:
    """SA-52, with nobody else about: every event derived again, every session folded again."""
    await told(db, recording())
    before, whole = await digest(db), await projection_hash(db)
    async with db.write() as tx:
        assert len(await archive.replay(tx, ORG, [each.event_id for each in recording()])) == 17
    for each in recording()[::3]:
        assert isinstance(await fold(db, each.event_id), archive.Folded)
        assert await digest(db) == before
    found = await session_id(db, ("claude", recording()[0].harness_session_id))
    assert found is not None
    await mend(db, ORG, found, mint=mint, terms=TERMS)
    assert await projection_hash(db) == whole
    assert (await verify(db, ORG, lag_us=LAG, terms=TERMS)).ok


async def test_what_was_broken_is_made_again() -> None:
    async with fresh() as database:
        events, read = made_up(3)
        await told(database, events, read=read)
        before = await digest(database)
        assert isinstance(database, SqliteDatabase)
        for statement in (
            "DELETE FROM session_node_links",
            "UPDATE session_sessions SET parent_state = 'none', parent_session_id = NULL, started_at = 5",
        ):
            database.connection.execute(statement)
        for (found,) in database.connection.execute("SELECT session_id FROM session_sessions").fetchall():
            await mend(database, ORG, found, mint=mint, terms=TERMS)
        assert await digest(database) == before


# --- deleting


@pytest.mark.parametrize("seed", [1, 4, 12, 33])
async def test_a_deleted_session_leaves_what_would_be_there_without_it(db: Database, seed: int) -> None:
    """SA-20, SX-161: shared nodes stay, turns that others tell of move, children know."""
    events, read = made_up(seed)
    await told(db, events, read=read, workers=2)
    key, found = await _some_session(db, events)
    before = await digest(db)
    how = {"actor": "me", "reason": "why", "read": read, "mint": mint, "terms": TERMS}
    dry = await changing.delete(db, ORG, found, **how, dry_run=True)
    assert await digest(db) == before
    assert dry == await changing.delete(db, ORG, found, **how)
    assert await changing.delete(db, ORG, found, **how) is None
    assert (await verify(db, lag_us=LAG, terms=TERMS)).problems == ()
    async with fresh() as other:
        async with other.write() as tx:
            await tx.run("tombstones.put", [(ORG.bytes, *key, found, 0, "", "")])
        kept = [each for each in events if (each.harness_id, each.harness_session_id) != key]
        await told(other, kept, read=read)
        assert await digest(db) == await digest(other)
    gone = next(each for each in events if (each.harness_id, each.harness_session_id) == key)
    assert await archive.accept(db, gone) == Gone()
    assert await changing.undelete(db, ORG, key, mint=mint, terms=TERMS)
    assert not await changing.undelete(db, ORG, key, mint=mint, terms=TERMS)
    async with fresh() as other:
        await told(other, kept, read=read)
        assert await digest(db) == await digest(other), "those that name it wait for it again"
    assert isinstance(await archive.accept(db, gone), Proceed)


async def _some_session(database: Database, events: list[archive.Event]) -> tuple[tuple[str, str], bytes]:
    for each in events:
        key = each.harness_id, each.harness_session_id
        if key[1] and (found := await session_id(database, key)) is not None:
            return key, found
    raise AssertionError("there is a session in every case")


async def test_a_message_keeps_the_form_of_whoever_is_left(db: Database) -> None:
    """SX-161: equal under its hash, spelt differently; the first to send it goes."""
    first = Call("anthropic", ask("hi"), answer("a", "m1"), session=session("s"))
    second = Call("anthropic", ask("hi\n"), answer("a", "m2"), session=session("t"))
    await told(db, [event(first, "c1", NOON), event(second, "c2", NOON + 1)])
    found = await session_id(db, ("claude", "s"))
    assert found is not None
    gone = await changing.delete(db, ORG, found, actor="me", reason="why", read=said, mint=mint, terms=TERMS)
    assert gone == changing.Deleted(found, 1, 1, 0)
    assert (await verify(db, lag_us=LAG)).ok
    async with fresh() as other:
        async with other.write() as tx:
            await tx.run("tombstones.put", [(ORG.bytes, "claude", "s", found, 0, "", "")])
        await told(other, [event(second, "c2", NOON + 1)])
        assert await digest(other) == await digest(db)


async def test_a_group_without_a_session_id_is_deleted_whole(db: Database) -> None:
    first = Call("anthropic", ask("hi"), answer("a", "m1"))
    second = Call("anthropic", ask("hi", "a", "go"), answer("b", "m2"))
    events = [event(first, "c1", NOON), event(second, "c2", NOON + 1)]
    await told(db, events)
    async with db.read() as tx:
        known = await archive.recorded(tx, ORG, "c2")
    assert known is not None
    assert known.session_id is not None
    gone = await changing.delete(db, ORG, known.session_id, actor="me", reason="why", read=said, mint=mint, terms=TERMS)
    assert gone == changing.Deleted(known.session_id, 2, 2, 0)
    async with fresh() as empty:
        assert await digest(db) == await digest(empty)
    assert await archive.accept(db, events[0]) == Gone()


async def test_an_event_that_comes_while_its_session_is_deleted_is_refused(db: Database) -> None:
    made = [Call("anthropic", ask("hi"), answer("a", each), session=session("s")) for each in ("m1", "m2")]
    one, two = (event(each, str(at), NOON + at) for at, each in enumerate(made))
    await told(db, [one])
    await take(db, [two])
    found = await session_id(db, ("claude", "s"))
    assert found is not None
    await changing.delete(db, ORG, found, actor="me", reason="why", read=said, mint=mint, terms=TERMS)
    async with db.read() as tx:
        assert await archive.event_state(tx, ORG, two.event_id) is None, "what waits goes too"
