"""The transaction of a turn: whatever the order of events and the number of workers, the same rows."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from tests.store.sessions_ledger import (
    NOON,
    ORG,
    answer,
    ask,
    digest,
    event,
    fold,
    fresh,
    made_up,
    mint,
    recording,
    said,
    session,
    take,
    told,
)
from tests.unit.sessions_data import SHARED

from holdfast.sessions import archive, identity
from holdfast.sessions.archive import changing, reading
from holdfast.sessions.derivation import Derived
from holdfast.sessions.machine import Conflict, Dead, Gone, Proceed, Replay, Retry
from holdfast.sessions.values import Call
from holdfast.sessions.verify import verify
from holdfast.sessions.views import Session, SessionFilters
from holdfast.store import catalogue
from holdfast.store.database import Database
from holdfast.testing.store_contract import LocalStore

RECORDED = "cafd14e80ccdb1971289e010d9a8efd7b9c39ebfac0682f1bfff875e3f741087"
"""What is derived of the recorded session; a change of any rule changes it."""
ORDERS = {
    "in order": list(range(17)),
    "reversed": list(range(16, -1, -1)),
    "in pairs": [at ^ 1 if at < 16 else at for at in range(17)],
    "shuffled": random.Random(5).sample(range(17), 17),  # noqa: S311 - an order, not a secret
}
TERMS = archive.Terms()


async def sessions(database: Database, org: UUID = ORG, **filters: object) -> dict[str, Session]:
    async with database.read() as tx:
        wanted = SessionFilters(**filters)
        page = await reading.page_sessions(tx, org, wanted, secret=bytes(32), now=NOON, limit=200, sort="started")
    return {each.harness_session_id: each for each in page.items}


async def check(database: Database) -> None:
    report = await verify(database, lag_us=2**62, terms=TERMS)
    assert report.problems == ()


# --- any order, any number of workers


@SHARED
@pytest.mark.parametrize("order", ORDERS)
async def test_the_recorded_session_is_the_same_in_any_order(db: Database, order: str) -> None:
    """SA-7, SA-41."""
    await told(db, [recording()[at] for at in ORDERS[order]], workers=3 if order == "shuffled" else 1)
    [found] = (await sessions(db)).values()
    assert (found.turn_count, found.tokens["input"], found.tokens["output"]) == (17, 565_318, 3_827)
    assert (str(found.cost.usd), found.cost.state) == ("0.525090750000", "priced")
    assert await digest(db) == RECORDED
    await check(db)


@SHARED
@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 3])
async def test_the_recorded_session_is_the_same_in_200_orders(store: LocalStore, workers: int) -> None:
    """SA-7."""
    rng = random.Random(7)  # noqa: S311 - cases, not secrets
    hashes = set()
    for number in range(200):
        org = UUID(int=number + 1)
        events = [
            dataclasses.replace(each, org=org, event_id=bytes([number, at] * 8)) for at, each in enumerate(recording())
        ]
        rng.shuffle(events)
        async with store.opened() as database:
            await told(database, events, workers=workers, org=org)
            hashes.add(await digest(database, org))
    assert hashes == {RECORDED}


@pytest.mark.parametrize("seed", [3, 17, 59, 61])
async def test_calls_that_share_everything_end_the_same_in_any_order(db: Database, seed: int) -> None:
    """Sessions, parents, message ids, answers: what one order makes of them, each makes."""
    events, read = made_up(seed)
    await told(db, events, read=read, workers=2)
    await check(db)
    async with fresh() as other:
        await told(other, random.Random(seed).sample(events, len(events)), read=read)  # noqa: S311 - cases, not secrets
        assert await digest(db) == await digest(other)


@pytest.mark.torture
@pytest.mark.timeout(900)
async def test_many_calls_that_share_everything_end_the_same() -> None:
    rng = random.Random(1)  # noqa: S311 - cases, not secrets
    for seed in range(300):
        events, read = made_up(seed)
        hashes = set()
        for _ in range(3):
            rng.shuffle(events)
            async with fresh() as database:
                await told(database, events, read=read)
                hashes.add(await digest(database))
                await check(database)
        assert len(hashes) == 1, seed


# --- once


def call(*messages: str, text: str = "yes", message_id: str = "m", **more: object) -> Call:
    named = {"session": session("s"), **more}
    return Call("anthropic", ask(*messages), answer(text, message_id), **named)


async def test_an_event_is_taken_once_and_its_other_content_is_refused(db: Database) -> None:
    """SA-2, SA-4."""
    one = event(call("hi"), "c1", NOON)
    assert isinstance(await archive.accept(db, one), Proceed)
    assert isinstance(await archive.accept(db, one), Proceed), "its own answer may be lost"
    again = dataclasses.replace(one, event_id=bytes(16))
    assert await archive.accept(db, again) == Replay(one.event_id)
    assert await archive.accept(db, dataclasses.replace(again, fingerprint=bytes(32))) == Conflict()
    async with db.read() as tx:
        loaded = await archive.load(tx, ORG, one.event_id)
    assert loaded is not None
    found = await archive.settle(db, loaded, said(loaded), quote=None, mint=mint, terms=TERMS)
    before = await digest(db)
    assert isinstance(found, archive.Folded)
    assert await archive.settle(db, loaded, said(loaded), quote=None, mint=mint, terms=TERMS) == archive.Lost()
    assert await archive.accept(db, again) == Replay(one.event_id)
    assert await digest(db) == before
    async with db.read() as tx:
        known = await archive.recorded(tx, ORG, "c1")
        assert known is not None
        assert (known.turn_id, known.session_id, known.state) == (found.turn_id, found.session_id, "derived")


@pytest.mark.parametrize("name", ["join_key", "message_id"])
async def test_an_event_that_is_read_anew_and_says_another_name_leaves_those_of_the_old_one(
    db: Database, name: str
) -> None:
    """What was found under the new name says nothing about the old one."""
    loose = {"rank": 2, "source": "transcript"} | ({"message_id": ""} if name == "join_key" else {})

    def read(loaded: archive.Loaded, **more: object) -> Derived:
        found = said(loaded)
        assert found.evidence is not None
        own = loose if loaded.capture_id == "c2" else more
        return dataclasses.replace(found, evidence=msgspec.structs.replace(found.evidence, **own))

    events = [event(call("hi"), each, NOON) for each in ("c1", "c2")]
    await told(db, events, read=read)
    assert [each.turn_count for each in (await sessions(db)).values()] == [1]
    await fold(db, events[0].event_id, read=lambda loaded: read(loaded, **{name: "another"}))
    assert [each.turn_count for each in (await sessions(db)).values()] == [2]
    await check(db)


async def test_billed_calls_of_equal_content_are_two_turns_with_one_chain(db: Database) -> None:
    """SA-5."""
    await told(db, [event(call("hi", message_id=each), each, NOON) for each in ("m1", "m2")])
    [found] = (await sessions(db)).values()
    assert (found.turn_count, found.tokens["input"]) == (2, 10)
    async with db.read() as tx:
        turns, _ = await reading.page_turns(tx, ORG, ids(found.id))
        assert turns[0].response_hash == turns[1].response_hash


async def test_an_event_that_says_nothing_is_kept_and_may_say_more_later(db: Database) -> None:
    """SA-11."""
    one = event(Call("nobody", b"{}", session=session("s")), "c1", NOON)
    await take(db, [one])
    assert await fold(db, one.event_id) == archive.Unparsed("unknown_provider")
    async with db.write() as tx:
        assert [(each.state, each.count) for each in await archive.count_states(tx, ORG)] == [("unparsed", 1)]
        assert await archive.replay(tx, ORG, states=("unparsed",), version=1) == []
        assert await archive.replay(tx, ORG, states=("unparsed",)) == [one.event_id]
    async with db.read() as tx:
        assert [each.event_id for each in await archive.list_pending(tx, now=0, limit=9)] == [one.event_id]


async def test_an_event_that_fails_waits_and_then_is_set_aside(db: Database) -> None:
    """SX-83."""
    one = event(call("hi"), "c1", NOON)
    await take(db, [one])
    async with db.write() as tx:
        assert await archive.fail(tx, ORG, one.event_id, outcome=Retry(1, 50), error="why\0")
        assert await archive.list_pending(tx, now=49, limit=9) == []
        [due] = await archive.list_pending(tx, now=50, limit=9)
        assert (due.attempts, due.org) == (1, ORG)
        assert await archive.fail(tx, ORG, one.event_id, outcome=Dead(2), error="worse")
        assert not await archive.fail(tx, ORG, one.event_id, outcome=Dead(3), error="worse")
        page = await reading.page_events(tx, ORG, state="dead", secret=b"", limit=1, cursor="")
        [dead] = page.items
        assert (dead.reason, dead.attempts) == ("worse", 2)
        assert await archive.replay(tx, None) == [one.event_id]
    assert isinstance(await fold(db, one.event_id), archive.Folded)


# --- whose


async def test_what_is_held_is_what_a_turn_may_touch() -> None:
    """SX-81: the session's id and its parent's, the message, the join key; without a session, who called."""
    named = session("s", parent_harness_session_id="p")
    calls = [call("hi", session=named), call("hi", session=None), Call("nobody", b"{}")]
    held = []
    async with fresh() as database:
        for number, each in enumerate(calls):
            one = event(each, str(number), NOON)
            await take(database, [one])
            async with database.read() as tx:
                loaded = await archive.load(tx, ORG, one.event_id)
            assert loaded is not None
            held.append(archive.locks_of(loaded, said(loaded)))
    assert [sorted(lock[:1] for lock in each) for each in held] == [[b"j", b"m", b"s", b"s"], [b"c", b"j", b"m"], []]
    assert b's["","p"]' in held[0]


async def test_calls_without_a_session_follow_the_answers_they_repeat(db: Database) -> None:
    """SA-9: two runs that begin with the same words, a follow-up of each, and one that comes first."""
    first = [
        event(call("hi", text=text, message_id=text, session=None), text, NOON + at) for at, text in enumerate("ab")
    ]
    more = [
        event(call("hi", text, "go", text="end" + text, message_id="m" + text, session=None), "z" + text, NOON + 9)
        for text in "ab"
    ]
    last = event(call("hi", "a", "go", "enda", "on", message_id="l", session=None), "last", NOON + 20)
    await told(db, [last, more[0], *first, more[1]])
    found = await sessions(db)
    expected = {identity.synthetic_key(ORG, "a"): 3, identity.synthetic_key(ORG, "b"): 2}
    assert {key: each.turn_count for key, each in found.items()} == expected
    assert all(each.is_synthetic and each.harness_id == "unknown" for each in found.values())
    await check(db)


async def test_a_parent_may_come_later_or_under_another_harness(db: Database) -> None:
    """SA-12, SA-14."""
    child = event(call("hi", session=session("kid", parent_harness_session_id="top")), "c1", NOON)
    await told(db, [child])
    kid = (await sessions(db))["kid"]
    assert (kid.parent.state, kid.parent.flag) == ("pending", "harness_assumed")
    shown = await sessions(db, include_placeholders=True)
    assert (shown["top"].is_placeholder, shown["top"].turn_count, shown["top"].harness_id) == (True, 0, "claude")
    await told(db, [event(call("hi", message_id="x", session=session("top", "codex")), "c2", NOON + 1)])
    shown = await sessions(db, include_placeholders=True)
    assert sorted((each.harness_id, each.harness_session_id) for each in shown.values()) == [
        ("claude", "kid"),
        ("codex", "top"),
    ]
    assert (shown["kid"].parent.state, shown["kid"].parent.session_id) == ("resolved", shown["top"].id)
    await check(db)


async def test_what_is_anothers_is_not_there(db: Database) -> None:
    """SA-21: equal calls of two orgs, and one that only one of them has."""
    orgs = UUID(int=1), UUID(int=2)
    for number, org in enumerate(orgs):
        await told(db, [event(call("hi"), "c1", NOON, org=org)], org=org)
        await told(db, [event(call(f"only {number}", message_id="o"), "c2", NOON, org=org)], org=org)
    for org, other in (orgs, orgs[::-1]):
        [mine] = (await sessions(db, org)).values()
        assert mine.turn_count == 2
        async with db.read() as tx:
            turns, _ = await reading.page_turns(tx, org, ids(mine.id))
            for turn in turns:
                turn_id = bytes.fromhex(turn.id.removeprefix("turn_"))
                assert await reading.get_turn(tx, org, turn_id) == turn
                assert await reading.get_turn(tx, other, turn_id) is None
                assert await reading.get_body(tx, other, turn_id, "request") is None
                assert await archive.event_state(tx, other, turn_id) is None
            assert await reading.get_session(tx, other, ids(mine.id), now=NOON) is None
            assert await reading.page_turns(tx, other, ids(mine.id)) == ([], None)
            assert await reading.tree(tx, other, ids(mine.id), now=NOON) is None
            own = [turn.response_hash for turn in turns if turn.message_id == "o"]
            assert await reading.get_node(tx, org, bytes.fromhex(own[0])) is not None
            assert await reading.get_node(tx, other, bytes.fromhex(own[0])) is None
        assert await digest(db, org) != await digest(db, other)


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_every_statement_names_the_org(dialect: catalogue.Dialect) -> None:
    """SX-7: but for what the loops of the ledger itself ask, which say whose each row is."""
    of_all = {"raw_events.pending", "raw_events.orgs", "raw_events.count_keys", "turns.hold"}
    file = Path(catalogue.__file__).parent / "sql" / dialect / "sessions.sql"
    for each in catalogue.parse(dialect, file.name, file.read_text()):
        assert ("org" in each.params) != (each.name in of_all), each.name


async def test_an_event_of_a_deleted_session_is_not_taken(db: Database) -> None:
    one, two = (event(call("hi", message_id=each), each, NOON) for each in ("m1", "m2"))
    await take(db, [one])
    async with db.write() as tx:
        await tx.run("tombstones.put", [(ORG.bytes, "claude", "s", bytes(16), 0, "me", "why")])
    assert await fold(db, one.event_id) == archive.Refused()
    assert await archive.accept(db, two) == Gone()
    async with db.read() as tx:
        loaded = await archive.load(tx, ORG, one.event_id)
        assert loaded is not None
        assert (loaded.request, loaded.response, loaded.state) == (None, None, "refused")


def ids(shown: str) -> bytes:
    return bytes.fromhex(shown.partition("_")[2])


async def test_hashes_by_other_rules_outlive_what_is_derived_anew_and_go_with_their_session(db: Database) -> None:
    """SX-42: both versions have nodes of their own, also where a hash is the same."""

    def before(loaded: archive.Loaded) -> Derived:
        """Say what an event says by the rules of another time, by which the first message had the same hash."""
        found = said(loaded)
        assert found.evidence is not None
        [first, *rest] = found.nodes
        other = {node.hash: node.hash[::-1] for node in rest} | {first.hash: first.hash}
        chain = [first, *(dataclasses.replace(node, hash=other[node.hash], parent=other[node.parent]) for node in rest)]
        names = ("head_hash", "response_hash")
        hashes = {name: other[getattr(found.evidence.says, name)] for name in names}
        says = msgspec.structs.replace(found.evidence.says, hash_version=0, **hashes)
        return dataclasses.replace(found, nodes=chain, evidence=msgspec.structs.replace(found.evidence, says=says))

    async def chain(turn: bytes) -> list[tuple[int, str]]:
        async with db.read() as tx:
            return [(each.hash_version, each.hash) for each in await reading.load_chain(tx, ORG, turn)]

    one, two = (
        event(Call("anthropic", ask(*words), answer("ok", words[-1]), session=session("s")), words[-1], NOON)
        for words in (("hi",), ("hi", "ok", "more"))
    )
    await take(db, [one, two])
    for each in (one, two):
        await fold(db, each.event_id, read=before)
    old = await chain(two.event_id)
    await fold(db, one.event_id)  # the other is derived anew later
    assert await chain(two.event_id) == old
    await check(db)
    await fold(db, two.event_id)
    new = await chain(two.event_id)
    assert ({version for version, _ in old}, {version for version, _ in new}) == ({0}, {1})
    assert (old[0][1], len(old), len(new)) == (new[0][1], 4, 4)
    async with db.read() as tx:
        for version, hashed in [*old, *new]:
            node = await reading.get_node(tx, ORG, bytes.fromhex(hashed), version=version)
            assert node is not None
            assert len(node.sessions) == 1
            above = await reading.ancestry(tx, ORG, bytes.fromhex(hashed), depth=9, version=version)
            assert above is not None
            assert above.missing_parent is None
    await check(db)
    [found] = (await sessions(db)).values()
    shown = identity.parse_id("ses", found.id)
    assert shown is not None
    how = {"actor": "x", "reason": "x", "read": said, "mint": mint, "terms": TERMS}
    assert await changing.delete(db, ORG, shown, **how) is not None
    async with db.read() as tx:
        assert await tx.all("nodes.scan", org=ORG.bytes, after_hash_version=-1, after_hash=b"", limit=9) == []
    await check(db)
