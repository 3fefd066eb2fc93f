"""Calls go in and turns come out: exactly once, in any order, with exact totals, by however many derivers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from blake3 import blake3
from tests.flow.captured import CARDS, archive, call, recording, rows
from tests.unit.sessions_data import SHARED

from holdfast.core.errors import Busy, Closed, Unavailable
from holdfast.sessions import Attribution, Selector, SessionFilters, instants
from holdfast.sessions.archive import count_states
from holdfast.sessions.archive.rows import read_session
from holdfast.sessions.config import Derive, Prices, Retention, SessionsConfig
from holdfast.sessions.errors import CaptureConflict, Forbidden, InvalidField, NotFound, SessionError
from holdfast.sessions.evidence import SessionRow
from holdfast.sessions.facade import Archive
from holdfast.sessions.ingest import store_error
from holdfast.sessions.pricing import CardSource, PriceQuery, from_pusd
from holdfast.sessions.values import LOCAL, Call, Cost, Duplicate, Principal, Refused, Stored
from holdfast.store import Database, StoreSettings
from holdfast.testing import CrashingDatabase, ManualClock
from holdfast.testing.store_contract import LocalStore

OTHER = Principal(UUID(int=9), LOCAL.scopes)
RECORDED = (17, (17, 565_318), (17, 3_827), "0.525090750000")


async def folded(database: Database, key: tuple[str, str], org: UUID = LOCAL.org_id) -> SessionRow | None:
    """What the turns of a session make of it, as it lies in the ledger."""
    async with database.read() as tx:
        row = await tx.one("sessions.find", org=org.bytes, harness_id=key[0], harness_session_id=key[1])
    return None if row is None or row.fold is None else read_session(row.fold)


async def totals(database: Database, given: Call) -> tuple[object, ...]:
    assert given.session is not None
    row = await folded(database, (given.session.harness_id, given.session.harness_session_id))
    assert row is not None
    return row.turn_count, row.tokens["input"], row.tokens["output"], str(from_pusd(row.cost_pusd))


async def drained(books: Archive) -> int:
    """Derive until nothing waits; return how many turns that made."""
    count = 0
    while (report := await books.derive()).pending:
        count += report.derived
    return count + report.derived


def stored(answer: object) -> Stored:
    assert isinstance(answer, Stored), answer
    return answer


@SHARED
async def test_the_recorded_session_has_its_turns_and_its_totals(db: Database) -> None:
    """SA-7, SA-41."""
    books = archive(db)
    for each in recording():
        assert stored(await books.ingest(each)).state == "accepted"
    assert await drained(books) == 17
    assert await totals(db, recording()[0]) == RECORDED


@SHARED
@pytest.mark.parametrize("kind", ["sqlite-file", "postgres"])
async def test_three_derivers_end_where_one_does(kind: str, make_target: Callable[[str], str], tmp_path: Path) -> None:
    """SA-7: in another order, and while calls still come in."""
    store = LocalStore(make_target(kind), tmp_path / "owners")
    calls = list(recording())
    calls.sort(key=lambda each: blake3(each.capture_id.encode()).digest())
    config = SessionsConfig.load(
        None, {}, secret_file=tmp_path / "secret", derive={"poll_ms": 20}, prices={"cards": CARDS, "package": False}
    )
    async with store.opened() as one, store.opened() as two, store.opened() as three:
        books = [archive(each, config=config) for each in (one, two, three)]
        async with books[0], books[1], books[2]:
            answers = await asyncio.gather(
                *(books[at % 3].ingest(each, wait=timedelta(seconds=60)) for at, each in enumerate(calls))
            )
        assert all(stored(each).derived for each in answers)
        assert await totals(one, calls[0]) == RECORDED


@pytest.mark.parametrize("kind", ["sqlite-file", "postgres"])
async def test_a_retry_changes_nothing_at_all(kind: str, make_target: Callable[[str], str], tmp_path: Path) -> None:
    """SA-2, SA-8."""
    target = make_target(kind)
    async with LocalStore(target, tmp_path / "owners").opened() as db:
        books = archive(db, config=SessionsConfig(secret_file=tmp_path / "secret"))
        first = stored(await books.ingest(call("a")))
        await drained(books)
        before = await rows(target)
        again = await books.ingest(call("a"), wait=timedelta(0))
        assert isinstance(again, Duplicate)
        assert (again.event_id, again.turn_id) == (first.event_id, first.turn_id)
        assert again.session_id is not None
        assert (await books.derive()).derived == 0
        assert await rows(target) == before
        assert sum(map(len, before.values())) > 5


async def test_equal_calls_at_once_are_one(db: Database) -> None:
    """SA-3."""
    books = archive(db)
    answers = await books.ingest_many([call("a")] * 20)
    assert [type(each) for each in answers].count(Stored) == 1
    assert [type(each) for each in answers].count(Duplicate) == 19
    assert await drained(books) == 1


async def test_another_call_under_a_known_id_is_refused_and_the_first_kept(db: Database) -> None:
    """SA-4."""
    books = archive(db)
    await books.ingest(call("a"))
    answer = await books.ingest(call("a", "other"))
    assert isinstance(answer, Refused)
    assert answer.code == "capture_conflict"
    with pytest.raises(CaptureConflict):
        await books.receive(b'{"capture_id":"a","provider":"anthropic","request":{}}')
    assert await drained(books) == 1


async def test_equal_calls_under_two_ids_are_two_turns(db: Database) -> None:
    """SA-5."""
    books = archive(db)
    for name in ("a", "b"):
        await books.ingest(replace(call(name), response=call("x").response, upstream=None))
    await drained(books)
    row = await folded(db, ("claude", "s"))
    assert row is not None
    assert (row.turn_count, row.tokens["input"]) == (2, (2, 10))


async def test_what_nobody_can_read_is_kept_and_says_why(db: Database) -> None:
    """SA-11."""
    books = archive(db)
    answers = await books.ingest_many(
        [
            call("a", provider="acme"),
            call("b", request=b'{"messages":[]}'),
            call("c", request=b'{"messages":[{"role":"user","content":[{"x":1e999}]}]}'),
            call("d", request=b"zip", request_encoding="gzip"),
            call("e"),
        ]
    )
    assert [(stored(each).state, stored(each).reason) for each in answers] == [
        ("stored_unparsed", "unknown_provider"),
        ("stored_unparsed", "no_messages"),
        ("stored_unparsed", "number_range"),
        ("stored_unparsed", "undecodable"),
        ("accepted", ""),
    ]
    report = await books.derive()
    assert (report.derived, report.unparsed, report.pending) == (1, 4, 0)
    again = await books.replay()
    assert (again.unparsed, again.derived) == (4, 0)


async def test_a_caller_may_wait_for_the_turn(db: Database) -> None:
    books = archive(db)
    alone = stored(await books.ingest(call("a"), wait=timedelta(seconds=30)))
    assert alone.derived
    assert alone.session_id is not None
    unread = stored(await books.ingest(call("b", provider="acme"), wait=timedelta(seconds=30)))
    assert (unread.derived, unread.state, unread.reason) == (False, "stored_unparsed", "unknown_provider")
    async with books:
        later = stored(await books.receive(
            b'{"capture_id":"c","provider":"anthropic","session":{"harness_id":"claude","harness_session_id":"s"},'
            b'"request":{"messages":[{"role":"user","content":"hi"}]}}', wait=timedelta(seconds=60),
        ))  # fmt: skip
        assert (later.derived, later.session_id) == (True, alone.session_id)


async def test_a_wrong_clock_is_noted_and_not_believed(db: Database) -> None:
    books = archive(db)
    for name, when in (("a", datetime(1999, 1, 1, tzinfo=UTC)), ("b", datetime(2200, 1, 1, tzinfo=UTC))):
        await books.ingest(call(name, captured_at=when))
    await drained(books)
    row = await folded(db, ("claude", "s"))
    assert row is not None
    assert row.started_at is not None
    assert abs(row.started_at - db.clock.now()) < 600_000_000


async def test_an_instant_without_a_time_zone_is_refused_by_its_name(db: Database) -> None:
    books, when = archive(db), datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is tried
    answer = await books.ingest(call("a", started_at=when))
    assert isinstance(answer, Refused)
    assert (answer.code, answer.field) == ("invalid_field", "/started_at")
    with pytest.raises(InvalidField):
        await books.list(SessionFilters(until=when))
    with pytest.raises(InvalidField):
        await books.stats(since=when)


async def test_a_call_from_before_what_is_kept_is_refused(db: Database) -> None:
    books = archive(db, config=SessionsConfig(retention=Retention(days=1)))
    answer = await books.ingest(call("a", captured_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert isinstance(answer, Refused)
    assert answer.code == "past_retention"
    assert (await books.derive()).pending == 0


async def test_whoever_lacks_the_scope_may_not(db: Database) -> None:
    books = archive(db)
    reader = Principal(LOCAL.org_id, frozenset({"read"}))
    answers = [await books.ingest(call("a"), principal=reader), *await books.ingest_many([call("a")], principal=reader)]
    assert [each.code for each in answers if isinstance(each, Refused)] == ["forbidden"] * 2
    for asked in (books.receive(b"{}", principal=reader), books.receive_many([b"{}"], principal=reader),
                  books.replay(principal=reader)):  # fmt: skip
        with pytest.raises(Forbidden):
            await asked
    with pytest.raises(NotFound):
        await books.replay(["cap_" + "0" * 32])
    with pytest.raises(NotFound):
        await books.replay(["nonsense"])


async def test_an_element_of_a_batch_fails_alone(db: Database) -> None:
    """SA-33."""
    parts = [b'{"provider":"anthropic","request":{"messages":[{"role":"user","content":"%d"}]}}' % n for n in range(5)]
    books = archive(db)
    parts[1], parts[3] = b"[]", b'{"provider":7}'
    found = await books.receive_many(parts)
    assert [getattr(each, "bare_code", "") for each in found] == ["", "malformed_json", "", "invalid_field", ""]
    assert [type(each) for each in await books.receive_many(parts)].count(Duplicate) == 3
    assert await drained(books) == 3


async def test_orgs_do_not_meet(db: Database) -> None:
    """SA-21."""
    books = archive(db)
    for who in (LOCAL, OTHER):
        assert isinstance(await books.ingest(call("a"), principal=who), Stored)
    await drained(books)
    for who in (LOCAL, OTHER):
        row = await folded(db, ("claude", "s"), who.org_id)
        assert row is not None
        assert row.turn_count == 1


async def test_what_is_another_orgs_costs_what_is_nowhere_costs(db: Database) -> None:
    """SX-102: who counts statements learns no more than who reads answers."""
    theirs = archive(db)
    await theirs.ingest(call("a"), principal=OTHER)
    await drained(theirs)
    [session] = (await theirs.list(principal=OTHER)).items
    [turn] = [each async for each in theirs.turns(session.id, payload="full", principal=OTHER)]
    assert turn.messages is not None
    first, last = turn.messages[0].hash, turn.messages[-1].hash
    event = turn.evidence[0].event_id
    counted = CrashingDatabase(db)
    books = archive(cast("Database", counted))
    await books.ingest(call("b", "another text", session="b"))
    await drained(books)

    def nobody(shown: str) -> str:
        return shown[:-8] + ("00000000" if shown[-8:] != "00000000" else "11111111")

    async def answered(ask: Awaitable[object]) -> tuple[object, list[str]]:
        counted.passed.clear()
        try:
            found: object = await ask
        except SessionError as error:
            found = error.code
        return found, [*counted.passed]

    asks: list[tuple[Callable[[str], Awaitable[object]], str]] = [
        (books.get, session.id),
        (books.page, session.id),
        (books.moments, session.id),
        (books.tree, session.id),
        (books.branches, session.id),
        (lambda id: books.difference(id, first, last), session.id),
        (lambda id: books.get(("claude", id)), "s"),
        (books.turn, turn.id),
        (lambda id: books.turn(id, payload="full"), turn.id),
        (lambda id: books.raw(id, "request"), turn.id),
        (lambda id: books.raw(id, "response"), event),
        (books.event, event),
        (books.node, last),
        (books.ancestry, last),
        (lambda id: books.rename(id, "mine"), session.id),
        (lambda id: books.delete(id, reason="mine"), session.id),
        (books.rebuild, session.id),
        (lambda id: books.replay([id]), event),
        (lambda id: books.attribute(Selector(event_ids=(id,)), Attribution(thread_id="t"), reason="mine"), event),
    ]
    for at, (ask, id) in enumerate(asks):
        found, statements = await answered(ask(id))
        assert (found, statements) == await answered(ask(nobody(id))), at
        assert statements, at
    assert await theirs.get(session.id, principal=OTHER) == session


class Touchy:
    """Prices, of which the source fails about calls that begin with a word, until it is mended."""

    def __init__(self) -> None:
        self.mended = False

    def quote(self, query: PriceQuery) -> Cost | None:
        if not self.mended and query.model == "poison":
            raise ZeroDivisionError
        return CardSource(()).quote(query)


async def test_an_event_that_fails_delays_no_other_and_is_set_aside_in_the_end(store: LocalStore) -> None:
    """SX-83."""
    clock, prices = ManualClock(), Touchy()
    async with store.opened(clock=clock) as db:
        books = archive(
            db, prices=prices, config=SessionsConfig(derive=Derive(attempts_max=3, backoff_ms=1000))
        )  # fmt: skip
        bad = call("bad")
        await books.ingest(replace(bad, response=(bad.response or b"").replace(b"claude-sonnet-4-6", b"poison")))
        await books.ingest(call("good"))
        first = await books.derive()
        assert (first.derived, first.dead, first.pending) == (1, 0, 1)
        assert (await books.derive()).pending == 1
        clock.advance(timedelta(milliseconds=1001))
        assert (await books.derive()).dead == 0
        clock.advance(timedelta(milliseconds=1001))
        assert (await books.derive()).pending == 1
        clock.advance(timedelta(milliseconds=1000))
        assert ((last := await books.derive()).dead, last.pending) == (1, 0)
        prices.mended = True
        assert (await books.replay()).derived == 1
        row = await folded(db, ("claude", "s"))
        assert row is not None
        assert row.turn_count == 2


async def test_a_clock_that_steps_back_changes_no_order_and_lets_nobody_wait_longer(store: LocalStore) -> None:
    """SX-188: the time of a call is its sender's, that of a retry the ledger's."""
    clock, prices = ManualClock(), Touchy()
    noon = instants.moment(clock.now())
    async with store.opened(clock=clock) as db:
        books = archive(db, prices=prices, config=SessionsConfig(derive=Derive(attempts_max=9, backoff_ms=1000)))

        async def take(name: str, minute: int, model: bytes = b"claude-sonnet-4-6") -> None:
            given = call(name, captured_at=noon - timedelta(hours=3) + timedelta(minutes=minute))
            told = (given.response or b"").replace(b"claude-sonnet-4-6", model)
            assert isinstance(await books.ingest(replace(given, response=told)), Stored)

        await take("a", 2, b"poison")
        assert (await books.derive()).pending == 1
        clock.set(noon - timedelta(hours=1))  # the event was told to wait for an instant an hour away now
        await take("b", 1)
        prices.mended = True
        assert (await books.derive()).derived == 2
        await take("c", 3)
        prices.mended = False
        await take("d", 4, b"poison")
        assert (await books.derive()).pending == 1
        clock.set(noon - timedelta(hours=1, minutes=4))
        prices.mended = True
        assert (await books.derive()).derived == 0
        clock.advance(timedelta(minutes=4, seconds=1))
        assert (await books.derive()).derived == 1
        assert [each.capture_id for each in (await books.events()).items] == ["a", "b", "c", "d"]
        [session] = (await books.list()).items
        shown = [turn async for turn in books.turns(session.id)]
        assert [turn.evidence[0].capture_id for turn in shown] == ["b", "a", "c", "d"]
        assert (session.started_at, session.last_seen_at) == (shown[0].captured_at, shown[-1].captured_at)
        assert await books.verify() == []


def read(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_no_secret_reaches_a_file(make_target: Callable[[str], str], tmp_path: Path) -> None:
    """SA-24."""
    secrets = [f"sk-ant-{where}-0123456789abcdefghij" for where in ("system", "answer", "agent")]
    async with LocalStore(make_target("sqlite-file"), tmp_path / "owners").opened() as db:
        books = archive(db)
        asked = b'{"system":"%s","messages":[{"role":"user","content":"hi"}]}' % secrets[0].encode()
        given = call("a", request=asked, response=b'{"error":"%s"}' % secrets[1].encode(), agent_name=secrets[2])
        await books.ingest(given)
        assert isinstance(await books.ingest(given), Duplicate)
        # What stands in an address looks like nothing in particular, and is known by its name alone.
        secrets += ["hunter2-told", "hunter2-sent", "hunter2-translated"]
        told = call("b", endpoint="/v1/messages?beta=true&key=hunter2-told")
        assert isinstance(await books.ingest(told), Stored)
        assert isinstance(await books.ingest(told), Duplicate)
        for body in (
            b'{"provider":"anthropic","request":{"n":1},"endpoint":"/v1/messages?api_key=hunter2-sent"}',
            b'{"provider":"anthropic","request":{"n":2},"meta":{"path":"/v1/messages?access_token=hunter2-translated"}}',
        ):
            assert isinstance(await books.receive(body, principal=LOCAL), Stored)
        await drained(books)
        everything = read(tmp_path)
    assert b"redacted:provider_key" in everything
    assert b"/v1/messages?beta=true&key=" in everything
    assert not [each for each in secrets if each.encode() in everything]


async def test_a_ledger_that_is_closed_takes_nothing(store: LocalStore) -> None:
    database = await store.open()
    books = archive(database)
    await database.close()
    answer = await books.ingest(call("a"))
    assert isinstance(answer, Refused)
    assert answer.code == "stopping"


async def test_an_operator_names_deletes_and_lets_back(db: Database) -> None:
    """SX-161: what was deleted does not come back by being sent again."""
    books = archive(db)
    await books.ingest_many([call("a"), call("b", session="t")])
    await drained(books)
    assert (await books.rename(("claude", "s"), "my name")).display_name == "my name"
    assert (await books.rename(("claude", "s"), None)).display_name is None
    with pytest.raises(InvalidField):
        await books.rename(("claude", "s"), "x" * 201)
    before = await books.projection_hash()
    dry = await books.delete(("claude", "s"), reason="asked", dry_run=True)
    assert (dry.events, dry.turns, await books.projection_hash()) == (1, 1, before)
    assert await books.delete(("claude", "s"), reason="asked") == dry
    for each in (call("a"), call("c")):
        answer = await books.ingest(each)
        assert isinstance(answer, Refused)
        assert answer.code == "session_deleted"
    with pytest.raises(NotFound):
        await books.delete(("claude", "s"), reason="asked")
    with pytest.raises(NotFound):
        await books.rename("nonsense", "x")
    assert await books.undelete_key(("claude", "s"))
    assert isinstance(await books.ingest(call("a")), Stored)
    await drained(books)
    assert await books.verify() == []


async def test_an_event_of_a_session_that_was_deleted_meanwhile_is_refused(db: Database) -> None:
    """SX-81, step 5."""
    books = archive(db)
    await books.ingest(call("a"))
    await drained(books)
    await books.ingest(call("b"))
    await books.delete(("claude", "s"), reason="asked")
    report = await books.derive()
    assert (report.derived, report.pending) == (0, 0)
    assert await books.verify() == []


def test_what_the_ledger_cannot_do_now_says_when_to_come_again() -> None:
    full = Unavailable("the disk is full", retry_after=5.0)
    full.__cause__ = type("FullError", (Exception,), {})()
    told = [store_error(each) for each in (Closed("closed"), Unavailable("away", retry_after=2.0), full, Busy("held"))]
    assert [each.bare_code for each in told] == ["stopping", "store_unavailable", "disk_full", "store_unavailable"]
    assert [getattr(each, "retry_after", None) for each in told] == [1.0, 2.0, 5.0, 1.0]


async def test_what_is_derived_anew_is_what_was(db: Database) -> None:
    """SA-52: the rows of a session, or of all, made again of what was captured."""
    books = archive(db)
    await books.ingest_many([call(name, session=name[0]) for name in ("a1", "a2", "b1")])
    await drained(books)
    before = await books.projection_hash()
    assert (await books.rebuild(("claude", "a"))).derived == 2
    assert (await books.rebuild()).derived == 3
    assert await books.projection_hash() == before
    assert await books.verify() == []
    with pytest.raises(NotFound):
        await books.rebuild("nonsense")


async def test_calls_that_come_in_go_before_what_is_derived(tmp_path: Path) -> None:
    """SX-172: while a call waits to be written the deriver pauses after each of its transactions."""
    clock = ManualClock()
    patient = StoreSettings(ack_timeout_ms=3_600_000)
    async with LocalStore(str(tmp_path / "ledger.db")).opened(clock=clock, settings=patient) as db:
        books = archive(db, config=SessionsConfig(derive=Derive(workers=1), prices=Prices(cards=CARDS, package=False)))
        await books.ingest_many([call(str(number), session=str(number)) for number in range(40)])

        async def left() -> int:
            async with db.read() as tx:
                return sum(each.count for each in await count_states(tx, None) if each.state == "pending")

        db.writer.die()  # it comes back after a pause of the clock
        late = asyncio.ensure_future(books.ingest(call("late")))
        deriving = asyncio.ensure_future(books.derive())
        for pending in (24, 8):
            while await left() > pending:
                await clock.advance(timedelta(0))
            for _ in range(20):
                await clock.advance(timedelta(0))
            assert (await left(), deriving.done(), late.done()) == (pending, False, False)
            await clock.advance(timedelta(milliseconds=1))
        await clock.advance(timedelta(milliseconds=100))
        while not (late.done() and deriving.done()):
            await clock.advance(timedelta(milliseconds=1))
        assert isinstance(await late, Stored)
        assert (await deriving).derived == 40
