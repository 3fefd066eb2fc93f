"""What is captured is put elsewhere, priced again, derived anew: a dry run says what happens, and undo undoes."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from tests.flow.captured import AT, CARDS, archive, call, recording
from tests.unit.sessions_data import SHARED

from holdfast.sessions import Attribution, AttributionReport, Selector, SessionFilters, TurnFilters, instants
from holdfast.sessions.archive import rebuilds, repricing
from holdfast.sessions.config import Derive, Prices, SessionsConfig
from holdfast.sessions.errors import AttributionRefused, Forbidden, InvalidField, NoPriceSource, NotFound
from holdfast.sessions.facade import Archive
from holdfast.sessions.pricing import CardSource, PriceQuery, RateCard
from holdfast.sessions.values import LOCAL, Call, Cost, Envelope, Stored
from holdfast.store import Database
from holdfast.testing.store_contract import LocalStore


def chat(name: str, said: list[str], **more: object) -> Call:
    """A call that goes on from an earlier one: what was said so far, by the user and the assistant in turns."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
    body = json.dumps({"model": "claude-sonnet-4-6", "messages": messages}).encode()
    return replace(call(name, session=""), request=body, captured_at=AT + timedelta(seconds=len(said)), **more)


async def captured(books: Archive, *calls: Call) -> None:
    for answer in await books.ingest_many(calls):
        assert isinstance(answer, Stored), answer
    await emptied(books)


async def emptied(books: Archive) -> None:
    """Derive until nothing waits, whoever else derives."""
    while (await books.derive()).pending:
        pass


async def keys(books: Archive) -> dict[tuple[str, str], int]:
    """The sessions there are, and how many turns each has."""
    return {(each.harness_id, each.harness_session_id): each.turn_count for each in (await books.list()).items}


async def sound(books: Archive) -> None:
    assert await books.verify() == []


async def group_of(books: Archive) -> str:
    [found] = [each for each in (await books.list()).items if each.is_synthetic]
    return found.id


SESSIONS = ["s1", "s2", "s3", ""]
INTO = Attribution(harness_id="claude", harness_session_id="s")


def another() -> AbstractAsyncContextManager[Database]:
    """Another ledger, in memory, to compare with."""
    return LocalStore(":memory:", Path()).opened()


def effect(report: AttributionReport) -> AttributionReport:
    """What a report says but that it was made."""
    return replace(report, attribution_id="", dry_run=True)


# --- attributions -------------------------------------------------------------------------------------


async def test_a_group_that_nobody_named_is_put_into_the_session_it_is_of_and_taken_out_again(db: Database) -> None:
    """SA-61."""
    books = archive(db)
    await captured(books, call("a"), chat("g1", ["hi"]), chat("g2", ["hi", "done", "more"]))
    before = await books.projection_hash()
    group = await group_of(books)
    said = await books.attribute(Selector(session=group), INTO, reason="lost its header")
    assert (await books.projection_hash(), await books.attributions()) == (before, [])
    done = await books.attribute(Selector(session=group), INTO, reason="lost its header", dry_run=False)
    assert effect(done) == said
    assert (done.events, len(done.turns)) == (2, 2)
    totals = {each.harness_session_id: (each.before, each.after) for each in done.sessions}
    was, now = totals["s"]
    assert was is not None
    assert now is not None
    assert (was.turn_count, now.turn_count, now.tokens["input"]) == (1, 3, 15)
    assert now.cost.usd == 3 * (was.cost.usd or 0)
    assert totals[next(key for key in totals if key.startswith("syn-"))][1] is None
    assert await keys(books) == {("claude", "s"): 3}
    await sound(books)
    repaired = await books.projection_hash()
    await books.rebuild()
    assert await books.projection_hash() == repaired
    assert effect(await books.undo_attribution(done.attribution_id, dry_run=True)).turns[0].after is not None
    await books.undo_attribution(done.attribution_id)
    assert await books.projection_hash() == before
    await sound(books)
    with pytest.raises(NotFound):
        await books.undo_attribution(done.attribution_id)
    [kept] = await books.attributions()
    assert (kept.reason, kept.actor, kept.undone_at is None) == ("lost its header", "local", False)


async def test_what_comes_later_under_a_selected_key_is_put_there_too_whatever_came_first(db: Database) -> None:
    books = archive(db)
    change = Attribution(harness_id="codex", harness_session_id="t", parent_harness_session_id="p")
    late = (call("b", session="wrong"), call("c", session="wrong", thread_id="x"))
    await captured(books, call("a", session="wrong"), late[0])
    await books.attribute(Selector(session=("claude", "wrong"), thread_id=""), change, reason="r", dry_run=False)
    await captured(books, *late[1:])
    assert await keys(books) == {("codex", "t"): 2, ("claude", "wrong"): 1}
    found = await books.get(("codex", "t"))
    assert found is not None
    assert (found.parent.state, found.parent.hint) == ("pending", found.parent.hint)
    await sound(books)
    first = await books.projection_hash()
    async with another() as other:  # the attribution first, then the calls, the other way round
        again = archive(other)
        await again.attribute(Selector(session=("claude", "wrong"), thread_id=""), change, reason="r", dry_run=False)
        await captured(again, late[1], call("a", session="wrong"), late[0])
        assert await again.projection_hash() == first


async def test_of_two_attributions_the_later_one_counts_and_each_can_go_alone(db: Database) -> None:
    books = archive(db)
    await captured(books, call("a"), call("b"))
    hashes = [await books.projection_hash()]
    chosen = Selector(session=("claude", "s"))
    made = []
    for change in (
        Attribution(harness_session_id="one", parent_harness_session_id="p"),
        Attribution(harness_session_id="two", thread_id="t"),
    ):
        made.append(await books.attribute(chosen, change, reason="r", dry_run=False))
        hashes.append(await books.projection_hash())
    found = await books.get(("claude", "two"))
    assert found is not None
    assert (found.turn_count, found.parent.state) == (2, "pending")
    assert [turn.thread_id async for turn in books.turns(("claude", "two"))] == ["t", "t"]
    await books.undo_attribution(made[0].attribution_id)
    found = await books.get(("claude", "two"))
    assert found is not None
    assert found.parent.state == "none"
    await sound(books)
    await books.undo_attribution(made[1].attribution_id)
    assert await books.projection_hash() == hashes[0]
    await sound(books)


async def test_one_event_is_put_under_a_parent_and_under_none(db: Database) -> None:
    books = archive(db)
    told = Envelope(harness_id="claude", harness_session_id="child", parent_harness_session_id="wrong")
    [stored] = await books.ingest_many([replace(call("a"), session=told)])
    assert isinstance(stored, Stored)
    await captured(books, call("p", session="right"))
    chosen = Selector(event_ids=(stored.event_id,))
    report = await books.attribute(chosen, Attribution(parent_harness_session_id="right"), reason="r", dry_run=False)
    [session] = report.sessions
    assert session.before is not None
    assert session.after is not None
    assert (session.before.parent_state, session.after.parent_state) == ("pending", "resolved")
    assert session.after.parent == "claude/right"
    await books.attribute(chosen, Attribution(parent_harness_session_id=""), reason="r", dry_run=False)
    found = await books.get(("claude", "child"))
    assert found is not None
    assert found.parent.state == "none"
    await sound(books)


async def test_an_attribution_that_contradicts_itself_is_refused_and_changes_nothing(db: Database) -> None:
    books = archive(db)
    await captured(books, call("a"), call("b", session="gone"))
    await books.delete(("claude", "gone"), reason="asked")
    before = await books.projection_hash()
    chosen = Selector(session=("claude", "s"))
    for change in (
        Attribution(parent_harness_session_id="s"),
        Attribution(harness_session_id="t", parent_harness_session_id="t"),
        Attribution(harness_session_id="gone"),
    ):
        for dry_run in (True, False):
            with pytest.raises(AttributionRefused):
                await books.attribute(chosen, change, reason="r", dry_run=dry_run)
    for selector, change in (
        (Selector(), INTO),
        (Selector(event_ids=("cap_" + "0" * 32,), session="x"), INTO),
        (Selector(event_ids=("cap_" + "0" * 32,), thread_id=""), INTO),
        (chosen, Attribution()),
        (chosen, Attribution(harness_session_id="syn-1")),
        (chosen, Attribution(thread_id="\0")),
        (chosen, Attribution(parent_harness_id="claude")),
    ):
        with pytest.raises(InvalidField):
            await books.attribute(selector, change, reason="r", dry_run=False)
    for ids in ("cap_" + "0" * 32, "nonsense"):
        with pytest.raises(NotFound):
            await books.attribute(Selector(event_ids=(ids,)), INTO, reason="r", dry_run=False)
    with pytest.raises(NotFound):
        await books.attribute(Selector(session="ses_" + "0" * 32), INTO, reason="r")
    with pytest.raises(Forbidden):
        await books.attribute(chosen, INTO, reason="r", principal=replace(LOCAL, scopes=frozenset(("read",))))
    assert (await books.projection_hash(), await books.attributions()) == (before, [])


async def test_a_deleted_session_takes_what_was_put_into_it_along_and_leaves_what_was_taken_out(db: Database) -> None:
    books = archive(db)
    await captured(books, call("a"), call("b", session="in"), call("c", session="out"))
    into = await books.attribute(Selector(session=("claude", "in")), INTO, reason="r", dry_run=False)
    away = Attribution(harness_session_id="else")
    taken = await books.attribute(Selector(session=("claude", "out")), away, reason="r", dry_run=False)
    assert await keys(books) == {("claude", "s"): 2, ("claude", "else"): 1}
    gone = await books.delete(("claude", "s"), reason="asked")
    assert (gone.events, gone.turns) == (2, 2)
    assert await keys(books) == {("claude", "else"): 1}
    await books.undo_attribution(into.attribution_id)  # there is nothing left of it
    await books.undo_attribution(taken.attribution_id)
    assert await keys(books) == {("claude", "out"): 1}
    await sound(books)


async def test_taking_back_what_would_lead_into_a_deleted_session_is_refused(db: Database) -> None:
    books = archive(db)
    await captured(books, call("a", session="out"), call("b", session="out"))
    async with db.read() as tx:
        first = (await tx.all("raw_events.page", org=LOCAL.org_id.bytes, after=0, limit=1))[0].event_id
    moved = await books.attribute(
        Selector(event_ids=(f"cap_{first.hex()}",)), Attribution(harness_session_id="else"), reason="r", dry_run=False
    )
    assert (await books.delete(("claude", "out"), reason="asked")).events == 1
    with pytest.raises(AttributionRefused):
        await books.undo_attribution(moved.attribution_id)
    assert await keys(books) == {("claude", "else"): 1}
    await books.rebuild()
    assert await keys(books) == {("claude", "else"): 1}
    await sound(books)


async def test_random_attributions_beside_live_capture_end_as_if_everything_had_been_there_before(db: Database) -> None:
    """Any interleaving of calls, derivation, attributions and their undoing is what a fresh derivation gives."""
    rng = random.Random(7)  # noqa: S311 - cases, not secrets
    config = SessionsConfig(derive=Derive(workers=3, poll_ms=10), prices=Prices(cards=CARDS, package=False))
    books = archive(db, config=config)
    calls = [
        call(
            f"c{number}", rng.choice("ab"), session=rng.choice(["s1", "s2", "s3", ""]), thread_id=rng.choice(["", "t"])
        )
        for number in range(24)
    ]
    made: list[str] = []

    async def capture() -> None:
        for each in calls:
            await books.ingest(each)
            await asyncio.sleep(0)

    async def repair() -> None:
        for _ in range(8):
            selector = Selector(session=("claude", rng.choice(["s1", "s2"])), thread_id=rng.choice([None, "", "t"]))
            change = Attribution(
                harness_session_id=rng.choice(["", "s2", "s3", "new"]),
                thread_id=rng.choice([None, "", "u"]),
                parent_harness_session_id=rng.choice([None, "", "p"]),
            )
            if change == Attribution():
                continue
            made.append((await books.attribute(selector, change, reason="r", dry_run=False)).attribution_id)
            if rng.random() < 0.4:
                await books.undo_attribution(made.pop(rng.randrange(len(made))))

    async with books:
        await asyncio.gather(capture(), repair())
        await emptied(books)
    await sound(books)
    live = await books.projection_hash()
    await books.rebuild()
    assert await books.projection_hash() == live
    for each in made:
        await books.undo_attribution(each)
    async with another() as other:
        fresh = archive(other)
        await captured(fresh, *calls)
        assert await books.projection_hash() == await fresh.projection_hash()


# --- prices -------------------------------------------------------------------------------------------


def rates(version: str, rate: str, since: str | None = None) -> RateCard:
    return RateCard(
        id=version,
        provider="anthropic",
        model="claude-sonnet-4-6",
        effective_from=None if since is None else instants.micros(datetime.fromisoformat(since)),
        per_million={"input": Decimal(rate), "output": Decimal(rate)},
    )


async def test_a_price_that_changes_leaves_old_turns_alone_until_they_are_priced_again(db: Database) -> None:
    """SA-44."""
    old = archive(db, prices=CardSource([rates("old", "1")]))
    given = replace(call("p", session="p"), cost_usd=Decimal("0.5"))
    await captured(old, call("a"), call("b"), given, replace(call("u", session="u"), provider="ollama", response=None))
    cards = [rates("old", "1"), rates("new", "10", "2025-12-31T00:00:00+00:00")]
    books = archive(db, prices=CardSource(cards))
    before = await books.projection_hash()
    await captured(books, call("c"))
    await books.rebuild()
    found = await books.get(("claude", "s"))
    assert found is not None
    assert found.cost.usd == Decimal("0.000084")
    said = await books.reprice(reason="list prices rose")
    assert (said.turns, said.repriced, said.unknown, said.provided) == (4, 3, 0, 1)
    assert (said.before.usd, said.after.usd) == (Decimal("0.500084"), Decimal("0.500210"))
    done = await books.reprice(reason="list prices rose", dry_run=False)
    assert done == replace(said, dry_run=False)
    assert (await books.reprice(reason="again", dry_run=False)).repriced == 0
    found = await books.get(("claude", "s"))
    assert found is not None
    assert found.cost.usd == Decimal("0.000210")
    shown = await books.get(("claude", "p"))
    assert shown is not None
    assert shown.cost.usd == Decimal("0.5")
    await sound(books)
    async with db.read() as tx:
        event_id = (await tx.all("raw_events.page", org=LOCAL.org_id.bytes, after=0, limit=1))[0].event_id
        last = await tx.one("cost_ledger.last", org=LOCAL.org_id.bytes, event_id=event_id, evidence_key="")
    assert last is not None
    assert (last.n, last.cost_pusd) == (1, 70_000_000)
    await books.rebuild()
    await old.reprice(
        TurnFilters(session=("claude", "s"), model="claude-sonnet-4-6"), reason="taken back", dry_run=False
    )
    found = await books.get(("claude", "s"))
    assert found is not None
    assert found.cost.usd == Decimal("0.000021")
    assert before != await books.projection_hash()
    await sound(books)


async def test_only_what_was_captured_in_a_window_is_priced_again(db: Database) -> None:
    books = archive(db, prices=CardSource([rates("old", "1")]))
    await captured(books, call("a"), replace(call("b"), captured_at=AT + timedelta(days=1)))
    books = archive(db, prices=CardSource([rates("new", "2")]))
    day = timedelta(days=1)
    for window, count in (((AT, AT + day), 1), ((AT + day, None), 1), ((None, AT), 0), ((AT, AT + 2 * day), 2)):
        said = await books.reprice(TurnFilters(since=window[0], until=window[1]), reason="r")
        assert said.repriced == count
    assert (await books.reprice(TurnFilters(model="other"), reason="r")).turns == 0
    with pytest.raises(NotFound):
        await books.reprice(TurnFilters(session="nonsense"), reason="r")


async def test_without_any_source_nothing_is_priced_again(db: Database) -> None:
    books = archive(db, config=SessionsConfig(prices=Prices(package=False)))
    with pytest.raises(NoPriceSource):
        await books.reprice(reason="r")


async def test_many_turns_are_priced_again_by_pages(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repricing, "PAGE", 3)
    books = archive(db, prices=CardSource([rates("old", "1")]))
    await captured(books, *(call(f"c{number}", session=f"s{number % 2}") for number in range(9)))
    books = archive(db, prices=CardSource([rates("new", "2")]))
    before = await books.projection_hash()
    done = await books.reprice(reason="r", dry_run=False)
    assert (done.turns, done.repriced, done.after.usd) == (9, 9, Decimal("0.000126"))
    await sound(books)
    await archive(db, prices=CardSource([rates("old", "1")])).reprice(reason="taken back", dry_run=False)
    assert await books.projection_hash() == before


# --- deriving again -----------------------------------------------------------------------------------


@SHARED
async def test_everything_is_derived_anew_beside_live_capture_and_readers(db: Database) -> None:
    """SA-52."""
    config = SessionsConfig(derive=Derive(workers=2, poll_ms=10), prices=Prices(cards=CARDS, package=False))
    books = archive(db, config=config)
    first, late = recording()[:9], recording()[9:]
    await captured(books, *first, call("x"), chat("g1", ["hi"]), chat("g2", ["hi", "done", "more"]))
    least, seen = len(await keys(books)), []
    reading = True

    async def read() -> None:
        while reading:
            counts = await keys(books)
            seen.append((len(counts), min(counts.values())))
            await asyncio.sleep(0)

    async def capture() -> None:
        for each in late:
            await books.ingest(each)
            await asyncio.sleep(0)

    async with books:
        reader = asyncio.ensure_future(read())
        await asyncio.gather(capture(), books.rebuild())
        await emptied(books)
        reading = False
        await reader
    assert min(seen) >= (least, 1)
    async with another() as other:
        fresh = archive(other)
        await captured(fresh, *recording(), call("x"), chat("g1", ["hi"]), chat("g2", ["hi", "done", "more"]))
        assert await books.projection_hash() == await fresh.projection_hash()
    await sound(books)


async def test_a_session_keeps_its_id_whatever_is_derived_anew(db: Database) -> None:
    """SX-24: one that a harness names, a group that nobody named, and a parent that nobody has seen."""
    books = archive(db)
    kid = replace(
        call("kid"), session=Envelope(harness_id="claude", harness_session_id="kid", parent_harness_session_id="nobody")
    )
    await captured(books, call("a"), kid, chat("g", ["hi"]))
    filters = SessionFilters(include_placeholders=True)

    async def ids() -> dict[tuple[str, str], str]:
        return {(each.harness_id, each.harness_session_id): each.id for each in (await books.list(filters)).items}

    before = await ids()
    assert len(before) == 4
    assert (await books.rebuild()).derived == 3
    assert await ids() == before
    for each in before.values():
        await books.rebuild(each)
    assert await ids() == before
    assert (await books.rebuild(("claude", "s"))).derived == 1
    assert {key: found.id for key in before if (found := await books.get(key)) is not None} == before


BROKEN = {
    "counters": "UPDATE session_sessions SET turn_count = turn_count + 1, cost_pusd = 1",
    "turns": "UPDATE session_turns SET status = 'failed', input = 99, thread_id = 'no'",
    "evidence": "DELETE FROM session_turn_evidence WHERE message_id = 'msg-a'",
    "links": "DELETE FROM session_node_links",
    "nodes": "DELETE FROM session_nodes",
    "parents": "UPDATE session_sessions SET parent_state = 'ambiguous', parent_session_id = NULL",
    "parts": "DELETE FROM session_part_links",
    "changes": "UPDATE session_changes SET row_hash = zeroblob(16)",
}


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_rows_that_were_damaged_are_made_again(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "ledger.db")
    told = Envelope(harness_id="claude", harness_session_id="child", parent_harness_session_id="s")
    async with LocalStore(path, tmp_path / "owners").opened() as db:
        books = archive(db)
        big = json.loads(call("a").request or b"") | {"tools": [{"name": "x" * 600}]}
        await captured(books, replace(call("a"), request=json.dumps(big).encode()), replace(call("b"), session=told))
        before = await books.projection_hash()
    with closing(sqlite3.connect(path)) as damaged:
        damaged.execute(BROKEN[name])
        damaged.commit()
    async with LocalStore(path, tmp_path / "owners").opened() as db:
        books = archive(db)
        assert await books.verify() != []
        assert (await books.rebuild(dry_run=True)).pending == 2
        assert (await books.rebuild()).derived == 2
        assert await books.projection_hash() == before
        assert await books.verify() == []


async def test_a_rebuild_that_was_broken_off_goes_on_where_it_stopped(db: Database) -> None:
    books = archive(db)
    await captured(books, *(call(f"c{number}", session=f"s{number}") for number in range(5)))
    before = await books.projection_hash()
    async with db.read() as tx:
        seqs = [row.seq for row in await tx.all("raw_events.page", org=LOCAL.org_id.bytes, after=0, limit=9)]
    await rebuilds.begin(db, LOCAL.org_id)
    await rebuilds.advance(db, LOCAL.org_id, seqs[2])
    await captured(books, call("late"))
    assert (await books.rebuild(dry_run=True)).pending == 2
    assert (await books.rebuild()).derived == 2
    assert (await books.rebuild(dry_run=True)).pending == 6
    await books.delete(("claude", "s"), reason="late")
    assert await books.projection_hash() == before


async def test_an_event_that_cannot_be_derived_anew_keeps_its_turn_and_is_set_aside(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = archive(db, config=SessionsConfig(derive=Derive(attempts_max=1)))
    await captured(books, poisoned("a"), call("b"))
    poison = archive(db, config=SessionsConfig(derive=Derive(attempts_max=1)), prices=Poison())
    report = await poison.rebuild()
    assert (report.derived, report.pending) == (1, 1)
    assert (await keys(books)) == {("claude", "s"): 2}
    assert (await poison.derive()).dead == 1
    [dead] = (await books.events(state="dead")).items
    assert dead.reason == "PoisonError"
    assert (await books.replay()).derived == 1
    assert (await books.events(state="dead")).items == ()
    await sound(books)


class PoisonError(Exception):
    """What a source of prices fails with."""


class Poison:
    """A source of prices that fails about one model."""

    def quote(self, query: PriceQuery) -> Cost | None:
        if query.model == "poison":
            raise PoisonError
        return None


def poisoned(name: str) -> Call:
    """A call to that model."""
    given = call(name)
    return replace(given, response=(given.response or b"").replace(b"claude-sonnet-4-6", b"poison"))


async def test_one_event_that_nobody_can_read_is_tried_again_and_none_that_is_not_there(db: Database) -> None:
    """SX-83."""
    books = archive(db, config=SessionsConfig(derive=Derive(attempts_max=1)), prices=Poison())
    stored = await books.ingest(poisoned("a"))
    assert isinstance(stored, Stored)
    await books.ingest(call("b"))
    assert (await books.derive()).dead == 1
    assert await keys(books) == {("claude", "s"): 1}
    with pytest.raises(NotFound):
        await books.replay([stored.event_id, "cap_" + "0" * 32])
    assert [each.state for each in (await books.events()).items] == ["dead", "derived"]
    assert (await books.replay([stored.event_id, stored.event_id])).dead == 1
    healed = archive(db)
    assert (await healed.replay([stored.event_id])).derived == 1
    await sound(healed)
