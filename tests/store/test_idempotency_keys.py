"""Keys under concurrency, lost acknowledgements and other people's transactions, on every database."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.flow.tamper import is_postgres, look

from holdfast.core.errors import CodecError, ConfigError, LimitError, Unavailable
from holdfast.core.points import Crashed
from holdfast.idempotency import keys
from holdfast.idempotency.machine import DecideOutcome, DecideRerun, ForceExpire, ForceRelease
from holdfast.idempotency.sealing import open_outcome
from holdfast.idempotency.values import Absent, Conflict, InFlight, Proceed, Replay, Running, State
from holdfast.idempotency.verify import verify
from holdfast.store import owners
from holdfast.store.database import Database, Statements
from holdfast.testing import ManualClock
from holdfast.testing.boundaries import CrashingDatabase
from holdfast.testing.key_contract.bench import LEASE, NOW, RESPONSE, STREAMED, TTL, Bench, told
from holdfast.testing.store_contract import LocalStore

shared = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)
on_postgres = pytest.mark.parametrize("store", ["postgres"], indirect=True)
TERMS: dict[str, Any] = {"lease_until": NOW + LEASE, "expires_at": NOW + TTL, "now": NOW}


@pytest.fixture
def bench(db: Database) -> Bench:
    return Bench(db)


@pytest.fixture
async def handles(store: LocalStore) -> AsyncIterator[list[Database]]:
    """Four handles on one ledger, as four processes have them."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(store.opened()) for _ in range(4)]


def another(claim: keys.Claim, **changes: Any) -> keys.Claim:
    """Another request with the same key."""
    return replace(claim, claim_id=os.urandom(16), **changes)


async def attempt(database: Database, claim: keys.Claim, **terms: Any) -> Any:
    given = {**TERMS, **terms}
    if len(claim.key_ids) == 1:
        return await keys.claim(Statements(database), claim, **given)
    async with database.write() as tx:
        return await keys.claim(tx, claim, **given)


async def at_once(handles: list[Database], claims: list[keys.Claim], **terms: Any) -> Counter[str]:
    """Claim over all handles at once; say how often each decision was made."""
    calls = [attempt(handles[n % len(handles)], claim, **terms) for n, claim in enumerate(claims)]
    return Counter(told(decision) for decision in await asyncio.gather(*calls))


def two_ids(bench: Bench, number: int) -> list[bytes]:
    """The ids of a key under two secrets; the first sorts before the second for odd numbers."""
    ids = (bench.digest(f"old {number}")[:16], bench.digest(f"new {number}")[:16])
    return sorted(ids, reverse=number % 2 == 0)


# --- at once ------------------------------------------------------------------------------------------


@shared
@pytest.mark.parametrize("new", [False, True])
async def test_of_fifty_claims_at_once_one_proceeds(handles: list[Database], new: bool) -> None:
    claim = Bench(handles[0]).claim()
    assert await at_once(handles, [another(claim) for _ in range(50)], new=new) == {"P(1)": 1, "InFlight": 49}


@shared
async def test_of_fifty_takeovers_at_once_one_proceeds(handles: list[Database]) -> None:
    subject = await Bench(handles[0]).make("rerun")
    assert await at_once(handles, [subject.again() for _ in range(50)]) == {"P(2)": 1, "InFlight": 49}


@shared
async def test_of_claims_at_once_under_rotating_secrets_one_proceeds(handles: list[Database]) -> None:
    """HX-19: [old], [old, new] and [new, old] at once, whichever id sorts first."""
    bench = Bench(handles[0])
    for number in range(6):
        old, new = two_ids(bench, number)
        claim = bench.claim(key_ids=(old, new), scope_ids=(b"o" * 16, b"n" * 16))
        turned = {"key_ids": (new, old), "scope_ids": (b"n" * 16, b"o" * 16)}
        single = {"key_ids": (old,), "scope_ids": (b"o" * 16,)}
        claims = [another(claim, **changes) for changes in ({}, turned, single) for _ in range(8)]
        decisions = await at_once(handles, claims)
        assert decisions["P(1)"] == 1, decisions
        assert decisions["P(1)"] + decisions["InFlight"] == len(claims)


@shared
async def test_of_claims_at_once_under_three_secrets_in_any_order_one_proceeds(handles: list[Database]) -> None:
    bench = Bench(handles[0])
    for number in range(4):
        ids = [bench.digest(f"{number} {secret}")[:16] for secret in range(3)]
        claim = bench.claim()
        claims = [
            another(claim, key_ids=tuple(ids[n] for n in order), scope_ids=tuple(bytes([n]) * 16 for n in order))
            for order in itertools.permutations(range(3))
            for _ in range(3)
        ]
        decisions = await at_once(handles, claims)
        assert decisions == {"P(1)": 1, "InFlight": len(claims) - 1}
    assert (await verify(handles[0])).problems == ()


@shared
async def test_of_takeovers_at_once_under_rotating_secrets_one_proceeds(handles: list[Database]) -> None:
    bench = Bench(handles[0])
    for number in range(6):
        old, new = two_ids(bench, number)
        claim = bench.claim(key_ids=(old, new), scope_ids=(b"o" * 16, b"n" * 16))
        first = await attempt(handles[0], claim)
        assert await keys.release(Statements(handles[0]), old, first.fence, expires_at=NOW + TTL, now=NOW)
        turned = {"key_ids": (new, old), "scope_ids": (b"n" * 16, b"o" * 16)}
        claims = [another(claim, **changes) for changes in ({}, turned) for _ in range(8)]
        decisions = await at_once(handles, claims)
        assert decisions == {"P(2)": 1, "InFlight": len(claims) - 1}
    assert (await verify(handles[0])).problems == ()


@shared
async def test_an_owner_that_settles_late_and_a_takeover_never_both_win(handles: list[Database]) -> None:
    bench = Bench(handles[0])
    for _ in range(20):
        subject = await bench.make("rerun")
        settled, decision = await asyncio.gather(
            keys.settle(Statements(handles[1]), subject.key_id, subject.fence, RESPONSE, expires_at=NOW + TTL, now=NOW),
            attempt(handles[2], subject.again()),
        )
        assert (settled, told(decision)) in {(True, "Replay"), (False, "P(2)")}


@shared
async def test_an_owner_that_renews_late_and_a_takeover_never_both_win(handles: list[Database]) -> None:
    bench = Bench(handles[0])
    for _ in range(20):
        subject = await bench.make("rerun")

        async def renew(subject: Any = subject) -> bool:
            async with handles[1].write() as tx:
                held = await keys.renew(tx, [(subject.key_id, subject.fence)], lease_until=NOW + LEASE, now=NOW)
            return bool(held)

        held, decision = await asyncio.gather(renew(), attempt(handles[2], subject.again()))
        assert (held, told(decision)) in {(True, "InFlight"), (False, "P(2)")}


@shared
async def test_a_mark_and_a_takeover_never_both_win(handles: list[Database]) -> None:
    bench = Bench(handles[0])
    for _ in range(20):
        subject = await bench.make("rerun")
        marked, decision = await asyncio.gather(
            keys.mark_irreversible(Statements(handles[1]), subject.key_id, subject.fence, now=NOW),
            attempt(handles[2], subject.again()),
        )
        assert (marked, told(decision)) in {(True, "Conflict(unknown)"), (False, "P(2)")}


@shared
async def test_a_key_that_is_pruned_while_it_is_claimed_is_claimed(handles: list[Database]) -> None:
    """HX-21: a row that vanishes between two statements is a fresh claim, never an unlocked run."""
    bench = Bench(handles[0])

    async def prune() -> int:
        async with handles[1].write() as tx:
            return await keys.prune(tx, now=NOW, limit=10)

    for _ in range(20):
        subject = await bench.make("expired response")
        claim = subject.again()
        _, decision = await asyncio.gather(prune(), attempt(handles[2], claim))
        assert told(decision) == "P(1)"
        record = await bench.record(subject)
        assert record is not None
        assert (record.claim_id, record.fence) == (claim.claim_id, decision.fence)


# --- the clock ----------------------------------------------------------------------------------------


async def test_fences_rise_while_the_clock_runs_backwards(store: LocalStore) -> None:
    clock = ManualClock()
    async with store.opened(clock=clock) as db:
        bench, fences = Bench(db), []
        claim = bench.claim()
        for year in (2026, 2025, 2025, 2020):
            clock.set(datetime(year, 1, 1, tzinfo=UTC))
            now = clock.now()
            terms = {"now": now, "lease_until": now + LEASE, "expires_at": now + TTL}
            decision = await attempt(db, claim, **terms)
            assert isinstance(decision, Proceed)
            fences.append(decision.fence)
            async with db.write() as tx:
                assert await keys.force(tx, claim.key_ids[0], ForceRelease(), actor="ops", reason="test", now=now)
                assert await keys.force(tx, claim.key_ids[0], ForceExpire(), actor="ops", reason="test", now=now)
            async with db.write() as tx:
                assert await keys.prune(tx, now=now, limit=10) == 1
            claim = another(claim)
        assert fences == sorted(set(fences))
        first = Statements(db), claim.key_ids[0], fences[0]
        assert not await keys.settle(*first, RESPONSE, expires_at=now + TTL, now=now)


# --- statements ---------------------------------------------------------------------------------------


async def test_a_first_run_takes_two_statements(store: LocalStore, db: Database) -> None:
    counting = CrashingDatabase(db, where="before")
    claim = Bench(db).claim()
    decision = await attempt(counting, claim, in_flight_max=100)
    assert await keys.settle(
        Statements(counting), claim.key_ids[0], decision.fence, RESPONSE, expires_at=NOW + TTL, now=NOW
    )
    assert counting.passed == ["before keys.claim", "before keys.settle"]


async def test_a_replay_takes_one_statement(store: LocalStore, db: Database) -> None:
    subject = await Bench(db).make("completed")
    counting = CrashingDatabase(db, where="before")
    if is_postgres(store.target):
        assert told(await attempt(counting, subject.again())) == "Replay"
    else:
        async with counting.read() as tx:
            decision = await keys.lookup(tx, subject.again(), now=NOW)
        assert decision is not None
        assert told(decision) == "Replay"
    assert counting.boundaries == 1


@pytest.mark.parametrize("column", ["rerun", "released", "expired response"])
async def test_a_takeover_takes_one_fenced_update_more(store: LocalStore, db: Database, column: Any) -> None:
    subject = await Bench(db).make(column)
    counting = CrashingDatabase(db, where="before")
    assert isinstance(await attempt(counting, subject.again(), in_flight_max=100), Proceed)
    assert counting.passed[-1] == "before keys.take"
    assert counting.boundaries == (2 if is_postgres(store.target) else 3)


async def test_renewing_many_claims_takes_one_statement(db: Database, bench: Bench) -> None:
    subjects = [await bench.make("live") for _ in range(20)]
    lost = await bench.make("released")
    counting = CrashingDatabase(db, where="before")
    claims = [(each.key_id, each.fence) for each in subjects]
    async with counting.write() as tx:
        held = await keys.renew(tx, [*claims, claims[0]], lease_until=NOW + 2 * LEASE, now=NOW)
    assert held == {key_id for key_id, _ in claims}
    assert counting.boundaries == 1
    async with counting.write() as tx:
        held = await keys.renew(tx, [*claims, (lost.key_id, lost.fence)], lease_until=NOW + 3 * LEASE, now=NOW)
        assert await keys.renew(tx, [], lease_until=NOW, now=NOW) == set()
    assert held == {key_id for key_id, _ in claims}


@on_postgres
async def test_a_replay_writes_nothing(store: LocalStore, db: Database, bench: Bench) -> None:
    """Without a transaction number of its own a statement cannot have written a row."""
    subject = await bench.make("completed")
    async with db.write() as tx:
        decision = await keys.claim(tx, subject.again(), **TERMS, in_flight_max=3)
        assert told(decision) == "Replay"
        link = tx._open()
        assert await link.connection.fetchval("SELECT pg_current_xact_id_if_assigned()::text") is None
    before = await look(store.target, "SELECT last_value FROM idem_fence")
    for _ in range(3):
        assert told(await attempt(db, subject.again())) == "Replay"
    assert await look(store.target, "SELECT last_value FROM idem_fence") == before


@on_postgres
async def test_the_lookup_of_a_key_uses_its_index(store: LocalStore, bench: Bench) -> None:
    for _ in range(3):
        await bench.make("completed")
    plan = await look(store.target, "EXPLAIN SELECT * FROM idem_keys WHERE key_id = '\\x00'")
    assert "idem_keys_pkey" in str(plan)


@pytest.mark.parametrize("store", ["sqlite-file"], indirect=True)
async def test_a_lookup_adds_nothing_to_the_log_and_waits_for_no_writer(
    store: LocalStore, db: Database, bench: Bench
) -> None:
    subject = await bench.make("completed")
    log = Path(f"{store.target}-wal")
    before = log.stat().st_size  # noqa: ASYNC240 - quick
    async with store.opened() as other, other.write() as writing:
        await writing.run("ledger.put", [("a", b"1")])
        for _ in range(50):
            async with db.read() as tx, asyncio.timeout(5):
                assert isinstance(await keys.lookup(tx, subject.again(), now=NOW), Replay)
            async with asyncio.timeout(5):
                assert isinstance(await keys.lookup(Statements(db), subject.again(), now=NOW), Replay)
    after = log.stat().st_size  # noqa: ASYNC240 - quick
    assert after - before < 3 * 4200, "only the other's own page"


# --- acknowledgements ---------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [False, True])
async def test_a_claim_whose_acknowledgement_is_lost_is_found_again(
    db: Database,
    bench: Bench,
    new: bool,
) -> None:
    """HA-33, beneath the guard."""
    claim = bench.claim()
    losing = CrashingDatabase(db, 1, "after_ack_lost", failure=Unavailable("the connection broke"))
    with pytest.raises(Unavailable):
        await attempt(losing, claim, new=new)
    assert told(await attempt(losing, another(claim), new=new)) == "InFlight"
    decision = await attempt(losing, claim, new=new)
    assert told(decision) == "P(1)"
    assert decision == await attempt(losing, claim, new=not new)


@pytest.mark.parametrize("column", ["rerun", "released", "expired tombstone"])
async def test_a_takeover_whose_acknowledgement_is_lost_is_found_again(db: Database, bench: Bench, column: Any) -> None:
    subject = await bench.make(column)
    claim = subject.again()
    statement = 1 if db.dialect == "postgres" else 2
    losing = CrashingDatabase(db, statement + 1, "after_ack_lost", failure=Unavailable("the connection broke"))
    lost = 0
    for _ in range(4):
        try:
            decision = await attempt(losing, claim)
        except Unavailable:
            lost += 1
    assert lost == 1
    assert isinstance(decision, Proceed)
    assert (await attempt(db, claim)) == decision


async def test_a_withdrawn_claim_leaves_the_key_as_it_was(db: Database, bench: Bench) -> None:
    fresh = bench.claim()
    await attempt(db, fresh)
    assert await keys.withdraw(bench.calls, fresh.claim_id)
    assert not await keys.withdraw(bench.calls, fresh.claim_id)
    assert told(await attempt(db, another(fresh))) == "P(1)"
    subject = await bench.make("released")
    takeover = subject.again()
    assert told(await attempt(db, takeover)) == "P(2)"
    assert await keys.withdraw(bench.calls, takeover.claim_id)
    record = await bench.record(subject)
    assert record is not None
    assert (record.state, record.attempt) == (State.RELEASED, 1)
    assert told(await attempt(db, subject.again())) == "P(2)"
    rotated = bench.claim(key_ids=(b"a" * 16, b"b" * 16), scope_ids=(b"a" * 16, b"b" * 16))
    await attempt(db, rotated)
    assert await keys.withdraw(bench.calls, rotated.claim_id)
    async with db.read() as tx:
        assert [await tx.one("keys.get", key_id=key_id) for key_id in rotated.key_ids] == [None, None]
    settled = await bench.make("completed")
    assert not await keys.withdraw(bench.calls, settled.claim.claim_id)


# --- crashes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "commit", "after_ack_lost"])
@shared
async def test_a_forced_action_and_its_audit_row_are_there_together_or_not_at_all(
    store: LocalStore, where: Any
) -> None:
    number, forced = 0, False
    while not forced:
        number += 1
        async with store.opened() as db:
            subject = await Bench(db).make("unknown")
            crashing = CrashingDatabase(db, number, where)
            try:
                async with crashing.write() as tx:
                    await keys.force(
                        tx, subject.key_id, DecideOutcome(RESPONSE), actor="ops", reason="seen in the books", now=NOW
                    )
                forced = crashing.boundaries < number
            except Crashed:
                pass
        async with store.opened() as db, db.read() as tx:
            record = await keys.get(tx, subject.key_id)
            trail = await keys.trail(tx, subject.claim.record_id)
        assert record is not None
        assert (record.state is State.COMPLETED) == (len(trail) == 1)
    assert number > 1


@shared
async def test_a_claim_under_rotating_secrets_is_whole_or_not_there(store: LocalStore) -> None:
    number, ended = 0, False
    while not ended:
        number += 1
        async with store.opened() as db:
            bench = Bench(db)
            claim = bench.claim(
                key_ids=(bench.digest("a")[:16], bench.digest("b")[:16], bench.digest("c")[:16]),
                scope_ids=(b"a" * 16, b"b" * 16, b"c" * 16),
            )
            crashing = CrashingDatabase(db, number)
            try:
                await attempt(crashing, claim)
                ended = crashing.boundaries < number
            except Crashed:
                pass
        async with store.opened() as db, db.read() as tx:
            found = [await tx.one("keys.get", key_id=key_id) for key_id in claim.key_ids]
        assert [row is None for row in found] in ([True] * 3, [False] * 3)
    assert number > 6


# --- quotas -------------------------------------------------------------------------------------------


async def test_live_claims_of_one_principal_are_counted(db: Database, bench: Bench) -> None:
    """HA-15, beneath the guard."""
    mine = [bench.claim(scope_ids=(b"s" * 16,)) for _ in range(5)]
    for claim in mine[:3]:
        assert told(await attempt(db, claim, in_flight_max=3)) == "P(1)"
    assert told(await attempt(db, mine[3], in_flight_max=3)) == "Conflict(quota)"
    assert told(await attempt(db, bench.claim(), in_flight_max=3)) == "P(1)"
    done = await attempt(db, mine[0], in_flight_max=3)
    assert await keys.settle(bench.calls, mine[0].key_ids[0], done.fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
    assert told(await attempt(db, another(mine[0]), in_flight_max=3)) == "Replay"
    assert told(await attempt(db, mine[3], in_flight_max=3)) == "P(1)"
    late = {"now": NOW + LEASE, "lease_until": NOW + 2 * LEASE}
    assert told(await attempt(db, mine[4], **late, in_flight_max=3)) == "P(1)", "lapsed claims do not count"


async def test_a_key_that_is_taken_to_be_new_is_decided_about_like_any_other(db: Database, bench: Bench) -> None:
    for state, decision in (
        ("completed", "Replay"), ("unknown", "Conflict(unknown)"), ("released", "P(2)"), ("reserved", "InFlight"),
    ):  # fmt: skip
        subject = await bench.make(state)
        assert told(await attempt(db, subject.again(), new=True)) == decision, state


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("store", ["sqlite-memory", "sqlite-file"], indirect=True)
async def test_on_sqlite_the_quota_is_exact_under_concurrency(
    db: Database,
    bench: Bench,
    new: bool,
) -> None:
    claims = [bench.claim(scope_ids=(b"s" * 16,)) for _ in range(30)]
    assert await at_once([db], claims, in_flight_max=7, new=new) == {"P(1)": 7, "Conflict(quota)": 23}


async def test_new_keys_in_an_hour_and_stored_bytes_are_counted(db: Database, bench: Bench) -> None:
    scope = {"scope_ids": (b"s" * 16,)}
    hour = 3_600_000_000
    first, second, third = (bench.claim(**scope) for _ in range(3))
    for claim in (first, second):
        assert told(await attempt(db, claim, keys_per_hour_max=2)) == "P(1)"
    assert told(await attempt(db, third, keys_per_hour_max=2)) == "Conflict(quota)"
    assert told(await attempt(db, another(first), keys_per_hour_max=2)) == "InFlight", "not a new key"
    later = {"now": NOW + hour + 1, "lease_until": NOW + hour + LEASE}
    assert told(await attempt(db, third, **later, keys_per_hour_max=2)) == "P(1)"
    fence = (await attempt(db, first)).fence
    assert await keys.settle(bench.calls, first.key_ids[0], fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
    assert await keys.usage(bench.calls, b"s" * 16, since=NOW) == (3, len(RESPONSE.body))
    size = len(RESPONSE.body)
    assert told(await attempt(db, bench.claim(**scope), stored_bytes_max=size)) == "Conflict(quota)"
    assert told(await attempt(db, bench.claim(**scope), stored_bytes_max=size + 1)) == "P(1)"
    assert told(await attempt(db, another(first), stored_bytes_max=size)) == "Replay"


# --- what the guard needs -----------------------------------------------------------------------------


@shared
async def test_the_owner_of_a_claim_can_be_probed(store: LocalStore, bench: Bench) -> None:
    """HX-12: its owner file shows at once whether it lives."""
    async with store.opened() as other:
        claim = bench.claim(owner=await other.owner.ensure())
        await attempt(other, claim)
        async with bench.database.read() as tx:
            [row] = await keys.owners(tx)
            rival = await keys.rival(tx, claim.key_ids[0])
            assert rival is not None
            assert await keys.rival(tx, bytes(16)) is None
        assert (row.owner_id, row.claims_count) == (rival.owner_id, 1) == (claim.owner, 1)
        assert rival.lease_until == NOW + LEASE
        assert rival.owner_lease_until > 0
        assert isinstance(owners.probe(rival), owners.Alive)
        other.owner.abandon()
        death = owners.probe(rival)
        assert isinstance(death, owners.Dead)
        assert told(await attempt(bench.database, another(claim))) == "InFlight"
        assert told(await attempt(bench.database, another(claim), dead=claim.owner)) == "P(2)"
        death.lock.release()


async def test_claims_that_somebody_must_decide_about_are_listed_in_pages(db: Database, bench: Bench) -> None:
    subjects = {column: await bench.make(column) for column in ("ambiguous", "marked", "transaction", "execution")}
    await bench.make("rerun")
    await bench.make("live")
    dead = bench.claim(owner="own_dead", on_lapse="ambiguous")
    await attempt(db, dead)
    async with db.read() as tx:
        found = await keys.lapsed(tx, now=NOW)
        assert {each.key_id for each in found} == {subject.key_id for subject in subjects.values()}
        page = await keys.lapsed(tx, now=NOW, limit=3)
        rest = await keys.lapsed(tx, now=NOW, after=page[-1].key_id, limit=3)
        assert [each.key_id for each in page + rest] == sorted(each.key_id for each in found)
        buried = await keys.lapsed(tx, now=NOW, owners=["own_dead", "own_nobody"])
        assert len(buried) == 5
    [late] = [each for each in buried if each.owner == "own_dead"]
    assert not await keys.lapse(bench.calls, late, now=NOW), "its lease holds"
    assert await keys.lapse(bench.calls, late, now=NOW, dead=True)
    [running] = [each for each in found if each.mode == "execution"]
    assert not await keys.lapse(bench.calls, running, now=NOW, attached=Running())
    assert not await keys.lapse(bench.calls, running, now=NOW, attached=Absent()), "it may run again"
    [doubtful] = [each for each in found if each.on_lapse == "ambiguous"]
    async with db.write() as tx:
        await keys.renew(tx, [(doubtful.key_id, doubtful.fence)], lease_until=NOW + LEASE, now=NOW)
    assert not await keys.lapse(bench.calls, doubtful, now=NOW), "it was renewed meanwhile"
    async with db.read() as tx:
        assert await keys.count_unknown(tx) == 1
        assert [each.reason for each in await keys.unknown(tx)] == ["lapsed"]
        assert await keys.unknown(tx, after=late.key_id) == []


async def test_an_execution_is_asked_for_before_its_claim_is_taken_over(db: Database, bench: Bench) -> None:
    subject = await bench.make("execution")
    for attached in (None, Running()):
        assert told(await attempt(db, subject.again(), attached=attached)) == "InFlight"
    assert await keys.settle(bench.calls, subject.key_id, subject.fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
    assert told(await attempt(db, subject.again())) == "Replay"
    lost = await bench.make("execution")
    claim = lost.again(execution_id=None)
    assert told(await attempt(db, claim, attached=Absent())) == "P(2)"
    record = await bench.record(lost)
    assert record is not None
    assert record.execution_id == f"idem_{record.record_id.hex()}"


async def test_a_takeover_of_a_lapsed_claim_says_so(db: Database, bench: Bench) -> None:
    lapsed = await attempt(db, (await bench.make("rerun")).again())
    released = await attempt(db, (await bench.make("released")).again())
    assert (lapsed.reclaimed, released.reclaimed) == (True, False)


async def test_a_lookup_says_nothing_where_a_claim_must_be_made(db: Database, bench: Bench) -> None:
    for column in ("absent", "rerun", "ambiguous", "released", "expired response"):
        subject = await bench.make(column)
        async with db.read() as tx:
            assert await keys.lookup(tx, subject.again(), now=NOW) is None
    subject = await bench.make("live")
    async with db.read() as tx:
        assert isinstance(await keys.lookup(tx, subject.again(), now=NOW), InFlight)
        assert await keys.lookup(tx, subject.again(), now=NOW, dead=subject.claim.owner) is None
        assert await keys.lookup(tx, subject.again(fingerprint=bytes(32)), now=NOW) == Conflict("reused")


async def test_what_was_settled_comes_back_as_it_was(db: Database, bench: Bench) -> None:
    for outcome in (RESPONSE, STREAMED):
        subject = await bench.make("live")
        await keys.settle(bench.calls, subject.key_id, subject.fence, outcome, expires_at=NOW + TTL, now=NOW)
        record = await bench.record(subject)
        assert record is not None
        assert record.sealed is not None
        opened = open_outcome(record.sealed, key_id=record.key_id, record_id=record.record_id)
        assert opened == outcome
        assert (record.settled_at, record.expires_at, record.status) == (NOW, NOW + TTL, outcome.status)


# --- operators ----------------------------------------------------------------------------------------


async def test_records_are_listed_newest_first_in_pages(db: Database, bench: Bench) -> None:
    made = []
    for number in range(7):
        claim = bench.claim(route="/odd" if number % 2 else "/even")
        made.append(claim.key_ids[0])
        await attempt(db, claim, now=NOW + number // 2)
    unknown = await bench.make("unknown")
    async with db.read() as tx:
        page, seen = await keys.list(tx, limit=3), []
        while True:
            seen += [record.key_id for record in page.items]
            if page.next is None:
                break
            page = await keys.list(tx, limit=3, cursor=page.next)
        assert len(seen) == 8
        assert seen[0] == made[6]
        assert seen[-1] == unknown.key_id
        assert set(seen[1:3]) == {made[4], made[5]}
        odd = await keys.list(tx, route="/odd", limit=500)
        assert {record.key_id for record in odd.items} == {made[1], made[3], made[5]}
        assert {record.key_id for record in (await keys.list(tx, state=State.UNKNOWN)).items} == {unknown.key_id}
        assert len((await keys.list(tx, since=NOW + 2)).items) == 3
        with pytest.raises(CodecError):
            await keys.list(tx, cursor="nonsense")
        with pytest.raises(LimitError):
            await keys.list(tx, limit=501)
        first = await keys.list(tx, limit=3)
        with pytest.raises(CodecError):
            await keys.list(tx, state=State.UNKNOWN, cursor=first.next)


async def test_a_list_carries_no_bodies(db: Database, bench: Bench) -> None:
    await bench.make("completed")
    async with db.read() as tx:
        [record] = (await keys.list(tx)).items
    assert record.sealed is None
    assert (record.status, record.body_bytes) == (RESPONSE.status, len(RESPONSE.body))


async def test_a_reference_means_one_key_or_says_that_it_is_ambiguous(db: Database, bench: Bench) -> None:
    ids = [bytes.fromhex("0123456789ab" + tail * 20) for tail in "07f"] + [bytes.fromhex("0123456f" + "0" * 24)]
    for key_id in ids:
        await attempt(db, bench.claim(key_ids=(key_id,)))
    pointed = bench.claim(
        key_ids=(bytes.fromhex("aaaaaaaa" * 4), bytes.fromhex("bbbbbbbb" * 4)), scope_ids=(b"a", b"b")
    )
    await attempt(db, pointed)
    async with db.read() as tx:
        assert await keys.search(tx, ids[1].hex()) == [ids[1]]
        assert await keys.search(tx, "0123456f") == [ids[3]]
        assert await keys.search(tx, "0123456789abf") == [ids[2]]
        assert len(await keys.search(tx, "0123456789ab")) == 2
        assert await keys.search(tx, "ffffffff") == []
        assert await keys.search(tx, "bbbbbbbb") == [pointed.key_ids[0]]
        for wrong in ("0123456", "0123456G", "0123456789ab" * 3, "01234567 ", "ABCDEF01"):
            with pytest.raises(ConfigError):
                await keys.search(tx, wrong)


async def test_an_action_needs_an_actor_and_a_reason_and_is_refused_otherwise(db: Database, bench: Bench) -> None:
    subject = await bench.make("unknown")
    record = await bench.record(subject)
    assert record is not None
    for actor, reason, error in (("", "why", ConfigError), ("ops", "  ", ConfigError), ("ops", "x" * 1001, LimitError)):
        with pytest.raises(error):
            async with db.write() as tx:
                await keys.force(tx, subject.key_id, DecideRerun(), actor=actor, reason=reason, now=NOW)
        with pytest.raises(error):
            async with db.write() as tx:
                await keys.audit(tx, record, "show", actor=actor, reason=reason, now=NOW)
    async with db.write() as tx:
        await keys.audit(tx, record, "show", actor="ops", reason="asked by support", now=NOW)
        assert not await keys.force(tx, bytes(16), DecideRerun(), actor="ops", reason="none", now=NOW)
        [row] = await keys.trail(tx, subject.claim.record_id)
    assert (row.action, row.state_before, row.state_after, row.fence) == ("show", "unknown", "unknown", subject.fence)
    assert row.key_ref == subject.key_id.hex()[:12]


async def test_a_forced_action_works_through_a_pointer(db: Database, bench: Bench) -> None:
    claim = bench.claim(key_ids=(b"n" * 16, b"o" * 16), scope_ids=(b"n" * 16, b"o" * 16))
    await attempt(db, claim)
    async with db.write() as tx:
        assert await keys.force(tx, b"o" * 16, ForceRelease(), actor="ops", reason="stuck", now=NOW)
        record = await keys.get(tx, b"o" * 16)
    assert record is not None
    assert (record.key_id, record.state) == (b"n" * 16, State.RELEASED)


# --- other people's transactions ----------------------------------------------------------------------


@on_postgres
async def test_pruning_passes_over_rows_that_somebody_has_under_way(store: LocalStore, bench: Bench) -> None:
    subjects = [await bench.make("expired response") for _ in range(4)]
    async with store.opened() as other, other.write() as busy:
        assert await keys.force(busy, subjects[0].key_id, ForceExpire(), actor="ops", reason="test", now=NOW - 2 * TTL)
        async with bench.database.write() as tx, asyncio.timeout(5):
            assert await keys.prune(tx, now=NOW, limit=10) == 3
    async with bench.database.write() as tx:
        assert await keys.prune(tx, now=NOW, limit=10) == 1


@on_postgres
async def test_renewing_passes_over_a_row_whose_outcome_is_being_written(store: LocalStore, bench: Bench) -> None:
    subjects = [await bench.make("live") for _ in range(3)]
    claims = [(each.key_id, each.fence) for each in subjects]
    async with store.opened() as other, other.write() as busy:
        assert await keys.settle(busy, *claims[0], RESPONSE, expires_at=NOW + TTL, now=NOW)
        async with bench.database.write() as tx, asyncio.timeout(5):
            held = await keys.renew(tx, claims, lease_until=NOW + 2 * LEASE, now=NOW)
    assert held == {key_id for key_id, _ in claims[1:]}


@on_postgres
async def test_a_claim_waits_for_a_rival_that_has_not_committed(store: LocalStore, bench: Bench) -> None:
    """HX-67: if the rival commits it is in flight, if it rolls back the claim proceeds."""
    for commits in (True, False):
        claim = bench.claim()
        async with store.opened() as other:
            waiting: asyncio.Task[Any] | None = None
            try:
                async with other.write() as tx:
                    await keys.claim(tx, claim, **TERMS)
                    waiting = asyncio.ensure_future(attempt(bench.database, another(claim)))
                    await asyncio.wait((waiting,), timeout=0.2)
                    assert not waiting.done()
                    assert commits, "it rolls back"
            except AssertionError:
                assert not commits
            assert waiting is not None
            assert told(await waiting) == ("InFlight" if commits else "P(1)")
