"""What was captured can be asked for: sessions by pages, turns with their messages, bodies as they were, totals."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest
from tests.flow.captured import archive, call, recording
from tests.unit.sessions_data import SHARED

from holdfast.sessions.asking import RawBody
from holdfast.sessions.errors import CursorMismatch, Forbidden, InvalidQuery
from holdfast.sessions.values import LOCAL, Envelope, Principal, Stored
from holdfast.sessions.views import SessionFilters
from holdfast.store import Database


@SHARED
async def test_the_recorded_session_can_be_read(db: Database) -> None:
    """SA-41, and the totals as people see them."""
    books = archive(db)
    await books.ingest_many(recording())
    await books.derive()
    [session] = (await books.list()).items
    assert (session.turn_count, session.tokens["input"], session.tokens["output"]) == (17, 565_318, 3_827)
    assert (session.cost.usd, session.cost.state) == (Decimal("0.52509075"), "priced")
    assert session.name == "tapes-fixture-run-7c"
    assert await books.get(session.id) == session
    assert await books.get((session.harness_id, session.harness_session_id)) == session
    turns = [turn async for turn in books.turns(session.id, payload="full")]
    assert len(turns) == 17
    assert sum(turn.tokens["input"] or 0 for turn in turns) == 565_318
    assert sum(turn.cost.usd or 0 for turn in turns) == session.cost.usd
    assert all(turn.messages is not None and len(turn.messages) == turn.chain_length for turn in turns)
    bodies = {given.capture_id: given for given in recording()}
    for turn in turns[:3]:
        given = bodies[turn.evidence[0].capture_id]
        assert given.response is not None
        expected = RawBody(given.response, given.response_type, given.response_encoding)
        assert await books.raw(turn.id, "response") == expected
        assert (await books.turn(turn.evidence[0].event_id)) == replace(turn, messages=None)
    [row] = await books.stats()
    assert (row.key, row.turns) == ("claude-sonnet-4-6", 17)
    tree, branches = await books.tree(session.id), await books.branches(session.id)
    assert tree is not None
    assert branches is not None
    assert (tree.session, tree.descendants, branches.truncated) == (session, (), False)
    assert branches.leaves


async def test_lists_go_on_where_they_ended(db: Database) -> None:
    """SA-51 in small."""
    books = archive(db)
    await books.ingest_many([call(f"c{at}", session=f"s{at}") for at in range(7)])
    await books.derive()
    seen, cursor = [], ""
    while True:
        page = await books.list(sort="started", limit=3, cursor=cursor)
        seen += [each.harness_session_id for each in page.items]
        if page.next is None:
            break
        cursor = page.next
    assert sorted(seen) == [f"s{at}" for at in range(7)]
    with pytest.raises(CursorMismatch):
        await books.list(sort="-started", cursor=cursor)
    with pytest.raises(InvalidQuery):
        await books.list(limit=0)
    only = await books.list(SessionFilters(harness_session_id="s3"))
    assert [each.harness_session_id for each in only.items] == ["s3"]


async def test_a_fork_hangs_below_its_parent(db: Database) -> None:
    """SA-12."""
    books = archive(db)
    forked = Envelope(harness_id="claude", harness_session_id="child", parent_harness_session_id="parent")
    await books.ingest(replace(call("a"), session=forked))
    await books.ingest(call("c", session="parent"))
    await books.derive()
    tree = await books.tree(("claude", "parent"))
    assert tree is not None
    assert [node.session.harness_session_id for node in tree.descendants] == ["child"]


async def test_what_is_not_there_is_not_there(db: Database) -> None:
    """SA-21: also for another org."""
    books = archive(db)
    stored = await books.ingest(call("a"))
    await books.derive()
    assert isinstance(stored, Stored)
    stranger = Principal(UUID(int=5), LOCAL.scopes)
    for who, turn, session in (
        (stranger, stored.turn_id, ("claude", "s")),
        (LOCAL, "turn_" + "0" * 32, "ses_" + "0" * 32),
        (LOCAL, "nonsense", "nonsense"),
    ):
        assert await books.turn(turn, principal=who) is None
        assert await books.raw(turn, "request", principal=who) is None
        assert await books.get(session, principal=who) is None
        assert await books.tree(session, principal=who) is None
        assert await books.branches(session, principal=who) is None
        assert [each async for each in books.turns(session, principal=who)] == []
    assert (await books.list(principal=stranger)).items == ()
    assert await books.stats(principal=stranger) == []
    nobody = Principal(LOCAL.org_id, frozenset())
    for asked in (books.list(principal=nobody), books.stats(principal=nobody), books.events(principal=nobody)):
        with pytest.raises(Forbidden):
            await asked
    assert [(each.state, each.capture_id) for each in (await books.events()).items] == [("derived", "a")]
