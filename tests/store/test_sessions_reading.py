"""Questions about what was captured: pages, turns, nodes, totals, trees and branches."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from tests.store.sessions_ledger import NOON, ORG, answer, ask, event, recording, session, told
from tests.unit.sessions_data import SHARED

from holdfast.sessions import instants
from holdfast.sessions.archive import changing, reading
from holdfast.sessions.errors import CursorMismatch, InvalidQuery
from holdfast.sessions.values import Call, Upstream
from holdfast.sessions.verify import verify
from holdfast.sessions.views import Page, Session, SessionFilters, document
from holdfast.store.database import Database

SECRET = bytes(32)
ALL = SessionFilters()


async def page(database: Database, filters: SessionFilters = ALL, **how: object) -> Page[Session]:
    async with database.read() as tx:
        return await reading.page_sessions(tx, ORG, filters, secret=SECRET, now=NOON, **how)


def ids(shown: str) -> bytes:
    return bytes.fromhex(shown.partition("_")[2])


async def some(database: Database, count: int = 5) -> None:
    """Sessions, the later ones with more turns."""
    events = []
    for number in range(count):
        for turn in range(number + 1):
            made = Call(
                "anthropic",
                ask(f"{number} {turn}"),
                answer("ok", f"m{number}-{turn}", (100 + number, turn)),
                session=session(f"s{number}", "claude" if number % 2 else "codex", auth_subject=f"u{number % 2}"),
                tags=frozenset([f"t{number}"]),
                thread_id="side" if turn == 2 else "",
                upstream=Upstream(529) if turn == 3 else None,
                agent_name=f"a{number}",
            )
            events.append(event(made, f"c{number}-{turn}", NOON + (10 * number + turn) * 1_000_000))
    await told(database, events)


@pytest.mark.parametrize("sort", ["last_seen", "-started", "turns", "-cost", "-tokens"])
async def test_pages_neither_repeat_nor_skip_while_others_insert(db: Database, sort: str) -> None:
    """SA-51, but for the size."""
    await some(db)
    seen: list[str] = []
    cursor = ""
    for number in range(9):
        found = await page(db, sort=sort, limit=2, cursor=cursor)
        seen += [each.harness_session_id for each in found.items]
        made = Call("anthropic", ask("new"), answer("x", f"n{number}"), session=session(f"new{number}"))
        await told(db, [event(made, f"n{number}", NOON + number)])
        if found.next is None:
            break
        cursor = found.next
    old = [each for each in seen if each.startswith("s")]
    assert len(set(seen)) == len(seen)
    expected = [f"s{number}" for number in range(5)]
    assert [each for each in expected if each in old] == (old[::-1] if sort.startswith("-") else old)


async def test_a_cursor_belongs_to_its_list(db: Database) -> None:
    """SX-130."""
    await some(db, 3)
    cursor = (await page(db, limit=1)).next
    assert cursor
    for other in ({"sort": "last_seen"}, {"sort": "-cost"}, {"filters": SessionFilters(tag="t1")}):
        with pytest.raises(CursorMismatch):
            await page(db, **{"cursor": cursor, **other})
    with pytest.raises(CursorMismatch):
        await page(db, cursor="A" + cursor[1:])
    for wrong in ({"sort": "name"}, {"limit": 0}, {"limit": 201}):
        with pytest.raises(InvalidQuery):
            await page(db, **wrong)


async def test_sessions_are_found_by_what_is_known_of_them(db: Database) -> None:
    await some(db)
    second = timedelta(seconds=1)
    noon = instants.moment(NOON)
    cases: list[tuple[SessionFilters, str]] = [
        (SessionFilters(harness_id="claude"), "s1 s3"),
        (SessionFilters(harness_session_id="s2"), "s2"),
        (SessionFilters(auth_subject="u1"), "s1 s3"),
        (SessionFilters(model="claude-sonnet-4-6", tag="t4"), "s4"),
        (SessionFilters(provider="openai"), ""),
        (SessionFilters(agent_name="a0"), "s0"),
        (SessionFilters(thread="side"), "s2 s3 s4"),
        (SessionFilters(parent_state="none", since=noon + 20 * second), "s2 s3 s4"),
        (SessionFilters(until=noon + 10 * second), "s0"),
        (SessionFilters(min_cost=Decimal("0.001")), "s3 s4"),
    ]
    for filters, expected in cases:
        found = await page(db, filters, sort="started")
        assert " ".join(each.harness_session_id for each in found.items) == expected, filters


@SHARED
async def test_a_session_is_shown_with_its_turns_and_their_messages(db: Database) -> None:
    await told(db, recording())
    [found] = (await page(db)).items
    assert (found.title, found.name, found.live) == ("tapes-fixture-run-7c", "tapes-fixture-run-7c", False)
    assert found.outcome is not None
    async with db.read() as tx:
        turns, after = await reading.page_turns(tx, ORG, ids(found.id), limit=10)
        assert after is not None
        more, end = await reading.page_turns(tx, ORG, ids(found.id), limit=10, after=after)
        assert (len(turns), len(more), end) == (10, 7, None)
        last = more[-1]
        assert await reading.get_turn(tx, ORG, ids(last.evidence[0].event_id)) == last
        chain = await reading.load_chain(tx, ORG, ids(last.id))
        assert (len(chain), chain[-1].hash, chain[0].hash) == (last.chain_length, last.response_hash, last.root_hash)
        assert [below.parent_hash for below in chain[1:]] == [above.hash for above in chain[:-1]]
        short = await reading.load_chain(tx, ORG, ids(last.id), preview=True)
        assert any(node.preview for node in short)
        request = await reading.get_body(tx, ORG, ids(last.id), "request")
        assert request is not None
        sent = json.loads(request.data())
        assert {**last.request_params, "messages": sent["messages"]} == sent
        way = await reading.ancestry(tx, ORG, bytes.fromhex(last.response_hash), depth=3)
        assert way is not None
        assert (len(way), way.truncated, way.missing_parent) == (4, True, None)
        rows = await reading.stats(tx, ORG, group_by="session")
        assert [(row.key, row.turns, row.cost.usd) for row in rows] == [(found.id, 17, found.cost.usd)]
        assert rows[0].tokens == found.tokens
    assert document(found)["cost"] == {
        "usd": "0.525090750000", "state": "priced", "unpriced_turns": 0, "partial_turns": 0, "provided_turns": 0,
    }  # fmt: skip
    assert document(last)["cost"]["lines"][0]["what"]
    assert document(chain[0])["content"][0]["type"] == "text"


async def test_totals_are_shown_by_day_model_harness_and_subject(db: Database) -> None:
    await some(db, 4)
    async with db.read() as tx:
        for group, expected in (
            ("day", {instants.written(NOON)[:10]: 10}),
            ("model", {"claude-sonnet-4-6": 10}),
            ("harness", {"claude": 6, "codex": 4}),
            ("subject", {"u0": 4, "u1": 6}),
        ):
            found = await reading.stats(tx, ORG, group_by=group)
            assert {row.key: row.turns for row in found} == expected
        [some_] = await reading.stats(tx, ORG, since=NOON + 30_000_000, until=NOON + 32_000_000)
        assert (some_.turns, some_.failed, some_.tokens["input"]) == (2, 0, 206)
        [every] = await reading.stats(tx, ORG)
        assert (every.failed, every.cost.unpriced_turns, every.cost.state) == (1, 0, "priced")


async def test_a_tree_has_what_is_above_and_below(db: Database) -> None:
    named = [("a", ""), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "gone")]
    events = []
    for at, (name, parent) in enumerate(named):
        more = {"parent_harness_session_id": parent, "parent_harness_id": "claude"} if parent else {}
        made = Call("anthropic", ask(name), answer("x", name), session=session(name, **more), thread_id="t" * (at % 2))
        events.append(event(made, name, NOON + at))
    await told(db, events)
    by_name = {each.harness_session_id: each for each in (await page(db)).items}
    async with db.read() as tx:
        found = await reading.tree(tx, ORG, ids(by_name["b"].id), now=NOON)
        assert found is not None
        assert [each.harness_session_id for each in found.ancestors] == ["a"]
        assert [(each.session.harness_session_id, each.depth) for each in found.descendants] == [("c", 1), ("d", 1)]
        assert (found.own.turns, found.subtree.turns, found.subtree.tokens["input"], found.depth) == (1, 3, 15, 1)
        assert [(each.thread_id, each.turns) for each in found.threads] == [("t", 1)]
        for how in ({"depth": 1}, {"nodes_max": 2}):
            cut = await reading.tree(tx, ORG, ids(by_name["a"].id), now=NOON, **how)
            assert cut is not None
            assert cut.truncated
        [above] = (await reading.tree(tx, ORG, ids(by_name["e"].id), now=NOON) or found).ancestors
        assert (above.is_placeholder, above.title, above.cost.usd) == (True, above.id, Decimal("0E-12"))


async def test_branches_part_where_two_turns_do(db: Database) -> None:
    said = [("hi",), ("hi", "yes", "left"), ("hi", "yes", "right")]
    made = [Call("anthropic", ask(*each), answer("yes", each[-1]), session=session("s")) for each in said]
    await told(db, [event(each, str(at), NOON + at) for at, each in enumerate(made)])
    [found] = (await page(db)).items
    async with db.read() as tx:
        shown = await reading.branches(tx, ORG, ids(found.id), nodes_max=99)
        assert ([len(fork.children) for fork in shown.forks], [len(leaf.path) for leaf in shown.leaves]) == (
            [2],
            [4, 4],
        )
        a, b = (bytes.fromhex(leaf.hash) for leaf in shown.leaves)
        differ = await reading.difference(tx, ORG, ids(found.id), (a, b))
        assert differ is not None
        assert {name: len(each) for name, each in differ.items()} == {"common": 2, "a": 2, "b": 2}
        assert await reading.difference(tx, ORG, ids(found.id), (a, bytes(32))) is None
        assert (await reading.branches(tx, ORG, ids(found.id), nodes_max=2)).truncated
        node = await reading.get_node(tx, ORG, bytes.fromhex(shown.forks[0].hash))
        assert node is not None
        assert node.sessions == (found.id,)


async def test_a_session_is_shown_by_the_name_it_was_given(db: Database) -> None:
    await some(db, 1)
    [before] = (await page(db)).items
    assert await changing.rename(db, ORG, ids(before.id), "mine", actor="me")
    [after] = (await page(db)).items
    assert (after.display_name, after.title) == ("mine", "mine")
    assert after.row_hash != before.row_hash
    more = Call("anthropic", ask("more"), answer("x", "more"), session=session("s0", "codex"))
    await told(db, [event(more, "more", NOON)])
    assert (await page(db)).items[0].display_name == "mine"
    assert await changing.rename(db, ORG, ids(before.id), None, actor="me")
    assert (await page(db)).items[0].title == "0 0"
    assert not await changing.rename(db, ORG, bytes(16), "x", actor="me")
    assert not await changing.rename(db, UUID(int=1), ids(before.id), "x", actor="me")
    assert (await verify(db, lag_us=2**62)).ok
