"""What holds of captured calls whatever happens to who takes them in and derives them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.flow.captured import AT, archive, call

from holdfast.core.errors import Busy, Conflict
from holdfast.core.loops import spawn
from holdfast.sessions.values import Call, Duplicate, Stored
from holdfast.store import Database
from holdfast.testing.boundaries import CrashingDatabase


def following(name: str, at: int) -> Call:
    """A call without a session id that goes on from the answer of the first."""
    roles = [("user", "hi"), ("assistant", "done"), ("user", "go")][: 3 if at else 1]
    asked = {"model": "m", "messages": [{"role": role, "content": text} for role, text in roles]}
    given = call(name, session="", captured_at=AT + timedelta(seconds=at))
    return replace(given, request=json.dumps(asked).encode())


@pytest.mark.parametrize(("how", "counts"), [("continuation", [2]), ("per_call", [1, 1])])
async def test_calls_without_a_session_id_are_put_together_or_not(db: Database, how: str, counts: list[int]) -> None:
    """SX-25."""
    config = archive(db).config
    books = archive(db, config=replace(config, synthetic_sessions=how))
    await books.ingest_many([following("a", 0), following("b", 1)])
    await books.derive()
    assert sorted(each.turn_count for each in (await books.list()).items) == counts


@pytest.mark.parametrize("failure", [Busy("held"), Conflict("met another")])
async def test_a_transaction_that_meets_another_is_run_again(db: Database, failure: Exception) -> None:
    """SX-81: wherever it happens it is no failure of the event's, and the event is one turn."""
    for number, boundary in enumerate((6, 12, 18)):
        books = archive(db)
        await books.ingest(call(f"c{number}", session=f"s{number}"))
        meeting = CrashingDatabase(db, boundary, failure=failure)
        report = await archive(meeting).derive()
        assert len(meeting.passed) > boundary, "it went on"
        assert (report.derived, report.dead, report.pending) == (1, 0, 0)
    listed = (await books.events()).items
    assert [(each.state, each.attempts) for each in listed] == [("derived", 0)] * 3
    assert [each.turn_count for each in (await books.list()).items] == [1, 1, 1]
    assert await books.verify() == []


async def test_who_goes_away_loses_nothing_and_leaves_nothing_half_done(db: Database) -> None:
    """SX-186: a caller that gives up may send again; whatever had got in is in once."""
    books = archive(db)
    for turns in range(12):
        given = call(f"c{turns}", session=f"s{turns}")
        sending = spawn(books.ingest(given), "a caller")
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert isinstance(await books.ingest(given), Stored | Duplicate)
    await books.derive()
    assert [each.turn_count for each in (await books.list()).items] == [1] * 12
    assert await books.verify() == []
